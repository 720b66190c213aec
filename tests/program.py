"""The real program in a process of its own, with pipes, on a terminal, or serving."""

import contextlib
import ctypes
import fcntl
import http.client
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from kawai_tools.remote.daemon import Daemon as Announced
from kawai_tools.remote.daemon import find_daemon

KAWAI = (sys.executable, "-m", "kawai_tools")
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


_PAST_MODES = (1, 2)
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (linux/capability.h)."""

_PR_CAPBSET_DROP = 24
_PRCTL = getattr(ctypes.CDLL(None), "prctl", None) or (lambda *_: 1)


def _obeys_modes() -> None:
    """Give up what lets root past the modes of files (capabilities(7): they are not regained by exec)."""
    if os.geteuid() == 0:
        for capability in _PAST_MODES:
            if _PRCTL(_PR_CAPBSET_DROP, capability, 0, 0, 0):
                raise OSError("a capability cannot be dropped")


class Ended(NamedTuple):
    """How a process ended; on a terminal all is in ``out``."""

    code: int
    out: str
    err: str = ""

    @property
    def plain(self) -> str:
        """What a terminal showed, without the escapes."""
        return ESCAPES.sub("", self.out)

    @property
    def events(self) -> list[dict[str, object]]:
        """Stdout as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> dict[str, str]:
        """The one error object on stderr."""
        (line,) = self.err.splitlines()
        found: dict[str, str] = json.loads(line)["error"]
        return found


class Program:
    """``kawai`` with a home of its own and nothing of this environment but the path."""

    def __init__(self, home: Path, environ: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.environ = {"PATH": os.environ["PATH"], "HOME": str(home), "KAWAI_HOME": str(home / "kawai")}
        self.environ |= environ or {}

    def __call__(self, *args: str, **environ: str) -> Ended:
        """Run to the end, with pipes."""
        done = subprocess.run(
            [*KAWAI, *args],
            env=self.environ | environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def unprivileged(self, *args: str) -> Ended:
        """Run to the end as somebody whom modes of files stop, also where tests run as root."""
        done = subprocess.run(
            [*KAWAI, *args],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            preexec_fn=_obeys_modes,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Start, with pipes."""
        return subprocess.Popen(
            [*KAWAI, *args],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def on_terminal(
        self, *args: str, seen: str = "", then: Callable[[subprocess.Popen[bytes]], None] | None = None
    ) -> Ended:
        """Run on a terminal of 80 columns; call ``then`` once ``seen`` has been shown."""
        ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        environ = {"TERM": "xterm-256color"} | self.environ
        process = subprocess.Popen(
            [*KAWAI, *args], env=environ, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        shown = ""
        with contextlib.closing(os.fdopen(ours, "rb", buffering=0)) as screen, process:
            for piece in iter(lambda: _read(screen.fileno()), b""):
                shown += piece.decode(errors="replace")
                if then is not None and seen in shown:
                    then(process)
                    then = None
        return Ended(process.returncode, shown.replace("\r\n", "\n"))


def _read(screen: int) -> bytes:
    with contextlib.suppress(OSError):  # Linux: EIO where the other side has gone
        return os.read(screen, 1 << 16)
    return b""


class Reply(NamedTuple):
    """What the daemon answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever the route answers
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, str]:
        found: dict[str, str] = self.json["error"]
        return found

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events of a stream."""
        lines = self.body.decode().splitlines()
        return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]


class Daemon:
    """``kawai serve`` of a program's home, on a free port."""

    def __init__(self, program: Program, *args: str) -> None:
        self.program = program
        self.process = program.start("serve", "--port", "0", *args)
        assert self.process.stderr
        self.first_line = next((line for line in self.process.stderr if "is serving on" in line), "")
        found = find_daemon(self.home)
        assert found is not None, self.first_line + self.process.stderr.read()
        self.announced: Announced = found
        self.url = found.url

    @property
    def home(self) -> Path:
        """Its ``KAWAI_HOME``."""
        return Path(self.program.environ["KAWAI_HOME"])

    def connect(self, timeout: float = 60) -> http.client.HTTPConnection:
        """A connection to it."""
        address = urlsplit(self.url)
        return http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout)

    def ask(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """One request to its end; ``body`` is JSON unless it is bytes."""
        sent = dict(headers or {})
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if data is not None and not isinstance(body, bytes):
            sent.setdefault("Content-Type", "application/json")
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, data, sent)
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.communicate(timeout=30)
        return self.process.returncode


@contextlib.contextmanager
def serving(program: Program, *args: str) -> Iterator[Daemon]:
    """A daemon for a while."""
    daemon = Daemon(program, *args)
    try:
        yield daemon
    finally:
        daemon.stop()
