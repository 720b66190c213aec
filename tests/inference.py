"""Asks a daemon with the real model as clients do, and looks at its engines from the system."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import openai

from tests.hub import LocalHub
from tests.program import Daemon, Program, Reply
from tests.samples import tiny_gguf

REPO, MODEL = "HuggingFaceTB/SmolLM2-135M-GGUF", "SmolLM2-135M-Instruct.Q4_1"
BROKEN = "Tiny-Q8_0"
GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
ROUTES = (*GENERATING, "/v1/embeddings", "/v1/rerank")
PS_KEYS = {
    *("id", "owned_by", "model_family", "size", "expires_at", "active_streams", "state", "engine"),
    *("loaded_at", "context_length", "memory"),
}
"""Contract, Models: a row of ps."""

SECRET_PROMPT = "canary-prompt-8f1c"
SECRETS = {"HF_TOKEN": "hf_canary_5d02", "GITHUB_TOKEN": "ghp_canary_77ab"}
Json = dict[str, Any]


# Asking


def soon(met: Callable[[], object], within: float = 10.0) -> bool:
    """Wait until something is so; whether it came to be."""
    until = time.monotonic() + within
    while not met():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def chat(words: str = "Name three colours", /, **more: Any) -> Json:  # noqa: ANN401
    """The body of a chat that is over soon."""
    asked = {"model": MODEL, "messages": [{"role": "user", "content": words}], "max_tokens": 8}
    return asked | {"temperature": 0} | more


def body_for(path: str, **more: Any) -> Json:  # noqa: ANN401
    """A short request that suits a route."""
    asked: dict[str, Json] = {
        "/v1/chat/completions": chat(),
        "/v1/messages": chat(),
        "/v1/completions": {"model": MODEL, "prompt": "Once upon", "max_tokens": 8},
        "/v1/responses": {"model": MODEL, "input": "Say hello", "max_output_tokens": 8},
        "/v1/embeddings": {"model": MODEL, "input": "words"},
        "/v1/rerank": {"model": MODEL, "query": "a", "documents": ["b", "c"]},
    }
    return asked[path] | more


LONG = {"max_tokens": 3000, "ignore_eos": True}
"""As long as the context has room: what is only ever left, killed or cut off."""


class Flow:
    """A streamed answer, read frame by frame."""

    def __init__(self, daemon: Daemon, path: str, body: Json) -> None:
        self._connection = daemon.connect()
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", path, json.dumps(body).encode(), headers)
        self.answer = self._connection.getresponse()

    def frames(self) -> Iterator[Json]:
        """The JSON of each frame; ``[DONE]`` is none."""
        while line := self.answer.readline():
            data = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:") and data != b"[DONE]":
                yield json.loads(data)

    def leave(self) -> None:
        self.answer.close()
        self._connection.close()


@contextlib.contextmanager
def flow(daemon: Daemon, body: Json | None = None, path: str = "/v1/chat/completions") -> Iterator[Flow]:
    """A stream whose first frame has come."""
    opened = Flow(daemon, path, chat(stream=True, **LONG) if body is None else body)
    try:
        assert opened.answer.status == 200, opened.answer.read()
        yield opened
    finally:
        opened.leave()


def started(opened: Flow) -> Flow:
    """The same, once words have come."""
    assert next(opened.frames())
    return opened


@contextlib.contextmanager
def hung_up(daemon: Daemon, body: Json) -> Iterator[socket.socket]:
    """A request that is sent and not waited for; the connection is closed at the end."""
    address = urlsplit(daemon.url)
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    with socket.create_connection((address.hostname or "", address.port or 0), 10) as wire:
        wire.sendall(head.encode() + data)
        yield wire


def rows(daemon: Daemon) -> list[Json]:
    found: list[Json] = daemon.ask("GET", "/v1/models/ps").json
    return found


def row(daemon: Daemon, model: str = MODEL) -> Json:
    (found,) = [each for each in rows(daemon) if each["id"] == model]
    return found


def streams(daemon: Daemon) -> int:
    return sum(each["active_streams"] for each in rows(daemon))


def unload(daemon: Daemon, model: str = MODEL) -> None:
    reply = daemon.ask("POST", "/v1/models/unload", {"model": model})
    assert (reply.status, reply.body) == (204, b"")


def load(daemon: Daemon, model: str = MODEL) -> Json:
    reply = daemon.ask("POST", "/v1/models/load", {"model": model})
    assert reply.status == 200, reply
    found: Json = reply.json
    return found


def left_until(text: str) -> float:
    """Seconds from now until a time of the contract."""
    assert text.endswith("Z")
    return (datetime.fromisoformat(text) - datetime.now(UTC)).total_seconds()


def in_background(call: Callable[[], Reply]) -> "Future[Reply]":
    """Ask in a thread."""
    future: Future[Reply] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except Exception as error:  # noqa: BLE001 - raised again where the result is taken
            future.set_exception(error)

    threading.Thread(target=work).start()
    return future


def refused(reply: Reply, status: int, code: str) -> str:
    """Check an error's form and code; its words."""
    assert (reply.status, reply.headers["content-type"]) == (status, "application/json"), reply
    assert list(reply.json) == ["error"]
    assert list(reply.error) == ["code", "type", "message", "hint"]
    assert reply.error["code"] == code, reply
    return f"{reply.error['message']} {reply.error['hint']}"


# Looking at the engine


class Child(NamedTuple):
    """An engine, seen from the system."""

    pid: int
    command: str
    environ: dict[str, str]

    def slots(self) -> list[Json]:
        """What llama.cpp says of its slots, asked behind kawai's back."""
        where = self.environ.get("KAWAI_SOCKET") or self.command.split("--host ")[1].split()[0]
        with contextlib.closing(Unix(where)) as connection:
            key = f"Bearer {self.environ['LLAMA_API_KEY']}"
            connection.request("GET", "/slots", headers={"Authorization": key})
            found: list[Json] = json.loads(connection.getresponse().read())
            return found

    @property
    def is_busy(self) -> bool:
        return any(each["is_processing"] for each in self.slots())

    @property
    def is_alive(self) -> bool:
        return is_alive(self.pid)


class Unix(http.client.HTTPConnection):
    """A connection to a UNIX socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def is_alive(pid: int) -> bool:
    """Whether a process lives; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[Child]:
    """The live children of a process."""
    found = []
    for proc in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (proc / "stat").read_text().rpartition(") ")[2].split()[1] != str(pid):
                continue
            if not is_alive(int(proc.name)):
                continue
            words = (proc / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            pairs = (proc / "environ").read_bytes().decode().split("\0")
            environ = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
            found.append(Child(int(proc.name), words, environ))
    return found


def engine(daemon: Daemon) -> Child:
    """The one engine of a daemon."""
    (found,) = children(daemon.process.pid)
    return found


# The daemon that most tests ask


class Home(NamedTuple):
    """A daemon with the real model, and one that is no good, for tests that leave both installed."""

    daemon: Daemon
    cli: Program
    hub: LocalHub

    def post(self, path: str = "/v1/chat/completions", body: object = None) -> Reply:
        return self.daemon.ask("POST", path, chat() if body is None else body)

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.daemon.url}/v1", api_key="none", max_retries=0, timeout=60)


def stocked(root: Path, hub: LocalHub, real_model: Path, **environ: str) -> Program:
    """A home with the real model and a broken one."""
    for token in SECRETS.values():
        hub.add_token(token)
    hub.add_file(REPO, f"{MODEL}.gguf", real_model)
    hub.add_file("me/tiny-GGUF", f"{BROKEN}.gguf", tiny_gguf())
    cli = Program(root, {"HF_ENDPOINT": hub.endpoint, "KAWAI_LIBS_API": hub.libs_api} | SECRETS | environ)
    cli.environ["KAWAI_THREADS"] = "1"  # two that wait for each other crawl where others work as well
    for repo in (REPO, "me/tiny-GGUF"):
        ended = cli("models", "pull", repo)
        assert ended.code == 0, ended
    return cli


def brief(cli: Program, name: str) -> None:
    """Let the real model of this name answer "Hi" in ten words; left to chance it may talk for minutes."""
    config = Path(cli.environ["KAWAI_HOME"]) / "config.toml"
    config.write_text(f'[models."{name}"]\nthreads = 1\ntemperature = 0.0\n')


def logs_of(cli: Program) -> str:
    folder = Path(cli.environ["KAWAI_HOME"]) / "logs"
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file())
