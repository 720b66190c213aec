"""The probe: start a build before it is used, the way it will be used.

A build may be whole and still not run here: compiled for newer instructions (SIGILL), linked against
libraries this system lacks, made for another architecture. So its server is asked for its version and
devices, then loads a tiny model and makes one token. Flags and variables are llama-server's own
(``tools/server/README.md`` of llama.cpp).
"""

import contextlib
import errno
import json
import os
import re
import secrets
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kawai_tools.errors import ProbeFailed
from kawai_tools.files import storage_errors
from kawai_tools.libs import children
from kawai_tools.libs.bundle import Probe
from kawai_tools.libs.platforms import Processor

if TYPE_CHECKING:
    import subprocess

SERVER = "llama-server"
MODEL = Path(__file__).parent / "probe.gguf"
ANSWER_PATIENCE, START_PATIENCE = 20.0, 180.0
"""Seconds: for a version or a list of devices; for a model loaded, which a GPU driver may compile for."""

_TAIL, _LAST_WORDS, _GLANCE, _OK = 4096, 0.5, 1.0, 200
_TICK = 0.01


def probe(directory: Path, processor: Processor, pause: Callable[[float], None]) -> Probe:
    """Try a build; ``pause`` waits, and may raise to give up.

    Never raises for a build that fails; ``NoSpace`` for a disk that is full.
    """
    at = datetime.now(UTC).replace(microsecond=0)
    try:
        server = _server_in(directory)
        version = _version(_ask(server, "--version", pause))
        devices = _devices(_ask(server, "--list-devices", pause), processor)
        seconds = _answer_once(server, pause)
    except ProbeFailed as failure:
        hint = f" ({failure.hint})" if failure.hint else ""
        return Probe(ok=False, detail=f"{failure.message}{hint}", at=at)
    return Probe(ok=True, detail=f"{version}; answered in {seconds:.1f} s", devices=devices, at=at)


_OTHER = "another build may suit: kawai libs pull --processor cpu"


def _server_in(directory: Path) -> Path:
    server = directory / SERVER
    if not server.is_file() or not os.access(server, os.X_OK):
        raise ProbeFailed(f"there is no {SERVER} in it", "this is no build that kawai can use")
    return server


def _version(said: str) -> str:
    found = re.search(r"^version:.*$", said, re.MULTILINE)
    return found[0].strip() if found else "no version"


def _devices(said: str, processor: Processor) -> list[str]:
    """``--list-devices`` prints a heading and a line a device, ``(none)`` for none."""
    lines = said.partition("Available devices:")[2].splitlines()
    found = [line.strip() for line in lines if line.strip() and line.strip() != "(none)"]
    if processor is not Processor.CPU and not found:
        raise ProbeFailed(f"it starts, but finds no {processor} device", _OTHER)
    return found


def _ask(server: Path, flag: str, pause: Callable[[float], None]) -> str:
    with _started(server, flag) as (child, log):
        until = time.monotonic() + ANSWER_PATIENCE
        while child.poll() is None:
            if time.monotonic() > until:
                raise ProbeFailed(f"{SERVER} {flag} does not end", _OTHER)
            pause(_TICK)
        said = log.said()
        if child.returncode != 0:
            raise _explained(child.returncode, f"{SERVER} {flag}", said)
        return said


def _answer_once(server: Path, pause: Callable[[float], None]) -> float:
    """Load the tiny model, make one token; how many seconds that took."""
    begin, key = time.monotonic(), secrets.token_urlsafe(24)
    with storage_errors(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory(prefix="kawai-") as folder:
        path = f"{folder}/p.sock"  # a socket's path has room for some 100 bytes
        arguments = ("--model", str(MODEL), "--host", path, "--ctx-size", "64", "--parallel", "1")
        with _started(server, *arguments, "--no-webui", "--no-warmup", LLAMA_API_KEY=key) as (child, log):
            until = begin + START_PATIENCE
            while _ask_server(path, key, "GET", "/health", None, _GLANCE, pause)[0] != _OK:
                if child.poll() is not None:
                    raise _explained(child.returncode, f"{SERVER}, loading a tiny model,", log.said())
                if time.monotonic() > until:
                    raise ProbeFailed(f"{SERVER} loads no tiny model within {START_PATIENCE:g} s", _OTHER)
                pause(_TICK)
            asked = {"prompt": "a", "n_predict": 1}
            status, body = _ask_server(path, key, "POST", "/completion", asked, ANSWER_PATIENCE, pause)
            if child.poll() is not None:
                raise _explained(child.returncode, f"{SERVER}, answering,", log.said())
            if status != _OK or '"content"' not in body:
                raise ProbeFailed(
                    f"{SERVER} answers {status} where a token was asked for: {body[:200]}", _OTHER
                )
    return time.monotonic() - begin


@contextlib.contextmanager
def _started(server: Path, *arguments: str, **more: str) -> "Iterator[tuple[subprocess.Popen[bytes], _Tail]]":
    """A child of the build, and what it says last."""
    reading, writing = os.pipe()
    log = _Tail(reading)
    try:
        env = children.environment(os.environ, **more)
        child = children.start([server, *arguments], env, server.parent, writing)
    except OSError as error:
        raise _cannot_start(error) from error
    finally:
        os.close(writing)
        log.start()
    try:
        yield child, log
    finally:
        children.kill(child)
        log.join(_LAST_WORDS)  # what the child left behind may hold the pipe


class _Tail(threading.Thread):
    """Reads a pipe to its end and keeps what came last, however much comes."""

    def __init__(self, fd: int) -> None:
        super().__init__(name="probe-log", daemon=True)
        self._fd = fd
        self._last = b""

    def run(self) -> None:
        with os.fdopen(self._fd, "rb", buffering=0) as pipe:
            while more := pipe.read(1 << 16):
                self._last = (self._last + more)[-_TAIL:]

    def said(self) -> str:
        """The last words; all of them, once the child and whatever it started have ended."""
        self.join(_LAST_WORDS)
        return self._last.decode("utf-8", "replace")


def _cannot_start(error: OSError) -> ProbeFailed:
    if error.errno == errno.ENOEXEC:
        return ProbeFailed(f"{SERVER} was made for another kind of machine", "check --arch and --os")
    if error.errno == errno.ENOENT:
        return ProbeFailed(
            f"{SERVER} needs a program loader that this system lacks",
            "builds are made for glibc, not for musl",
        )
    return ProbeFailed(f"{SERVER} cannot be started: {error.strerror}", "is its disk mounted noexec?")


def _explained(code: int, what: str, said: str) -> ProbeFailed:
    """Why a child ended, from how it ended and what it said last."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1][:300] if lines else ""
    loader = next((line for line in lines if "shared librar" in line or "version `GLIBC" in line), None)
    if code == -signal.SIGILL:
        return ProbeFailed(f"{what} ended with SIGILL: it was built for instructions this CPU lacks", _OTHER)
    if loader:
        return ProbeFailed(
            f"{what} cannot be loaded: {loader[:300]}", "install what it lacks, or another build"
        )
    return ProbeFailed(f"{what} ended with {children.ending(code)}" + (f": {last}" if last else ""), _OTHER)


def _ask_server(
    path: str,
    key: str,
    method: str,
    target: str,
    body: object,
    patience: float,
    pause: Callable[[float], None],
) -> tuple[int, str]:
    """Status and body; 0 where there is no whole answer in time. Whoever is paused may give up meanwhile."""
    answers: list[tuple[int, str]] = []

    def ask() -> None:
        answers.append(_request(path, key, method, target, body, patience))

    asking = threading.Thread(target=ask, name="probe-ask", daemon=True)
    asking.start()
    until = time.monotonic() + patience
    while asking.is_alive() and time.monotonic() < until:
        asking.join(_TICK / 10)
        pause(0)
    return answers[0] if answers else (0, "")


def _request(path: str, key: str, method: str, target: str, body: object, timeout: float) -> tuple[int, str]:
    import http.client  # noqa: PLC0415 - only where a build is tried
    import socket  # noqa: PLC0415

    connection = http.client.HTTPConnection("localhost", timeout=timeout)
    with contextlib.closing(connection):
        try:
            connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.sock.settimeout(timeout)
            connection.sock.connect(path)
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            connection.request(method, target, json.dumps(body) if body else None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read(1 << 16).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            return 0, ""
