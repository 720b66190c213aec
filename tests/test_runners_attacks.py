"""Engines that answer garbage, and clients that mean ill: through the whole server, over real sockets.

The engine is a few lines of Python that say whatever the request tells them to.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kawai_tools.api import app as app_module
from kawai_tools.api.app import App, build_app
from kawai_tools.api.guard import known_by
from kawai_tools.api.observing import RequestLog
from kawai_tools.api.server import Calls, Server, listen
from kawai_tools.runners import process as process_module
from kawai_tools.runners.engines import Launch, Wanted
from kawai_tools.runners.orders import Orders
from kawai_tools.workspace import Workspace
from tests.inference import refused, soon
from tests.program import Reply
from tests.samples import Entry, tiny_gguf
from tests.workspaces import Workspaces

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")

PARROT = r"""
import json, os, socket, sys, threading, time
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen(int(os.environ.get("BACKLOG", "200")))
working = []
def answer(one):
    data = b""
    while b"\r\n\r\n" not in data:
        data += one.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    path = head.split()[1]
    if path == b"/health":
        one.sendall(os.environ.get("HEALTH", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").encode())
        one.close()
        return
    if path == b"/slots":
        busy = [] if os.environ.get("IDLE") else working
        said = json.dumps([{"is_processing": True} for _ in busy]).encode()
        one.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said))
        one.close()
        return
    length = int(head.lower().split(b"content-length:")[1].split()[0])
    while len(body) < length:
        body += one.recv(1 << 20)
    asked = json.loads(body)
    working.append(one)
    try:
        for piece in asked["say"]:
            if isinstance(piece, str):
                one.sendall(piece.encode("latin-1"))
            else:
                time.sleep(piece)
        flood = asked.get("flood", 0)
        while flood > 0:
            one.sendall(b"10000\r\n" + bytes(0x10000) + b"\r\n")
            flood -= 0x10000
            print(flood, flush=True)
        if asked.get("die"):
            os._exit(7)
    finally:
        working.remove(one)
        if not asked.get("stay"):
            one.close()
        else:
            working.append(one)
            time.sleep(60)
while True:
    threading.Thread(target=answer, args=(listening.accept()[0],), daemon=True).start()
"""

Json = dict[str, Any]


class Parrot:
    """An engine that answers what it is told to."""

    name = "parrot"
    most_parallel: int | None = None
    beside = 0

    def __init__(self, **environ: str) -> None:
        self.environ = environ

    def why_not(self) -> str | None:
        return None

    def launch(self, wanted: Wanted, socket: Path, key: str) -> Launch:  # noqa: ARG002
        command = (sys.executable, "-I", "-S", "-c", PARROT, str(socket))
        return Launch(command, {"PATH": os.environ["PATH"]} | self.environ, socket.parent)


class Served(NamedTuple):
    """A server in this process, and what it stands on."""

    port: int
    app: App
    server: Server
    workspace: Workspace

    def connect(self, timeout: float = 20) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> Reply:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = ({"Content-Type": "application/json"} if data is not None else {}) | headers
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, data, sent)
            answer = connection.getresponse()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def hear(self, *say: str | float, path: str = "/v1/chat/completions", **more: Any) -> Reply:  # noqa: ANN401
        """What a client gets where the engine says this."""
        return self.ask("POST", path, {"model": "a", "say": list(say), **more})

    def raw(self, data: bytes, timeout: float = 20) -> bytes:
        """All that comes back for these bytes, until the server closes or says nothing for a while."""
        found = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout) as wire:
            wire.sendall(data)
            with contextlib.suppress(TimeoutError, ConnectionError):
                while piece := wire.recv(65536):
                    found += piece
        return found

    @property
    def leases(self) -> int:
        return sum(each["active_streams"] for each in self.ask("GET", "/v1/models/ps").json)


@contextlib.contextmanager
def served(workspaces: Workspaces, engine: Parrot | None = None, **settings: Any) -> Iterator[Served]:  # noqa: ANN401
    """A server whose models are run by an engine of ours."""
    chosen = engine or Parrot()
    store = workspaces.home / "models"
    store.mkdir(parents=True, exist_ok=True)
    for name in ("a", "b", "c"):
        tiny_gguf(store / f"{name}.gguf")
    workspace = workspaces(serves=True, **{"memory_budget": 1 << 40} | settings)
    workspace.models.reindex()
    made = workspace.orders
    workspace.orders = Orders(made.store, lambda: chosen, made.run, made.place, made.fitting, made.state)
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    ready = threading.Event()
    log = RequestLog(workspaces.home / "logs" / "requests.log")
    app = build_app(workspace, known_by([("127.0.0.1", port)]), log=log)
    server = Server(app, Calls(ready.set))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        assert ready.wait(10)
        yield Served(port, app, server, workspace)
    finally:
        server.stop()
        thread.join(45)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose engine lives through all that it says."""
    patch = pytest.MonkeyPatch()
    patch.setattr(process_module, "_GLANCE", 0.2)
    made = Workspaces(tmp_path_factory.mktemp("t") / "kawai", "http://127.0.0.1:9")
    try:
        with served(made, Parrot(IDLE="1")) as up:
            yield up
            assert soon(lambda: not up.leases)
    finally:
        made.close()
        patch.undo()


CHUNKED = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"

# Engines that answer garbage


def _with(*lines: str, body: str = "{}") -> str:
    return "\r\n".join(("HTTP/1.1 200 OK", *lines, "", body))


BAD_HEADS = {
    "nothing": "",
    "one word": "garbage\r\n\r\n",
    "words": "this is no HTTP\r\n\r\n",
    "an empty head": "\r\n\r\n",
    "a head without end": "HTTP/1.1 200 OK\r\n" + "X: y\r\n" * 20_000,
    "status 99": "HTTP/1.1 99 x\r\nContent-Length: 2\r\n\r\n{}",
    "status 1000": "HTTP/1.1 1000 x\r\nContent-Length: 2\r\n\r\n{}",
    "status -1": "HTTP/1.1 -1 x\r\nContent-Length: 2\r\n\r\n{}",
    "status 101": "HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "status 302": "HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
    "a negative length": _with("Content-Length: -5"),
    "a length with a sign": _with("Content-Length: +2"),
    "a length in words": _with("Content-Length: two"),
    "a length beyond 64 bits": _with("Content-Length: 99999999999999999999999"),
    "two lengths": _with("Content-Length: 2", "Content-Length: 3"),
    "a type with a NUL": _with("Content-Type: a\x00b", "Content-Length: 2"),
    "a folded line": _with("Content-Type: a", " b", "Content-Length: 2"),
    "an unknown coding": _with("Transfer-Encoding: gzip, chunked", body="2\r\n{}\r\n0\r\n\r\n"),
}
"""Answers of which nothing can be passed on."""


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("what", BAD_HEADS)
def test_a_head_that_makes_no_sense_is_502(
    talker: Served, what: str, caplog: pytest.LogCaptureFixture, *, stream: bool
) -> None:
    assert refused(talker.hear(BAD_HEADS[what], stream=stream), 502, "engine_error")
    assert "Exception in ASGI application" not in caplog.text


BAD_BODIES = {
    "a chunk that is cut": CHUNKED + "10\r\nabc",
    "a chunk that is longer than it says": CHUNKED + "2\r\nabcdef\r\n0\r\n\r\n",
    "a chunk that is shorter than it says": CHUNKED + "9\r\nabcdef\r\n0\r\n\r\n",
    "a size in no digits": CHUNKED + "zz\r\nabc\r\n0\r\n\r\n",
    "no size": CHUNKED + "x" * 200,
    "no last chunk": CHUNKED + "2\r\n{}\r\n",
    "half a frame": CHUNKED + '8\r\ndata: {"\r\n',
}
"""Answers that begin well."""


@pytest.mark.parametrize("what", BAD_BODIES)
def test_a_body_that_breaks_off_ends_a_stream_with_an_error(talker: Served, what: str) -> None:
    reply = talker.hear(BAD_BODIES[what], stream=True)
    if reply.status != 200:
        assert refused(reply, 502, "engine_error")
        return
    *_, last = reply.body.removesuffix(b"\n\n").split(b"\n")
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "engine_error"


@pytest.mark.parametrize("what", BAD_BODIES)
def test_a_body_that_breaks_off_is_not_taken_for_whole(talker: Served, what: str) -> None:
    with contextlib.suppress(http.client.IncompleteRead):
        assert refused(talker.hear(BAD_BODIES[what]), 502, "engine_error")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("length", [1, 9])
def test_chunks_count_and_not_a_length_beside_them(talker: Served, length: int, *, stream: bool) -> None:
    said = CHUNKED.replace("Content-Type", f"Content-Length: {length}\r\nContent-Type")
    try:
        reply = talker.hear(said + "2\r\n{}\r\n0\r\n\r\n", stream=stream)
    except http.client.HTTPException as error:
        pytest.fail(f"neither the answer nor an error: {error!r}")
    assert (reply.status, reply.body) == (200, b"{}") or refused(reply, 502, "engine_error")


def test_what_comes_before_the_answer_and_after_it_is_left_out(talker: Served) -> None:
    assert talker.hear(WHOLE + "trailing").body == b"{}"
    try:
        reply = talker.hear("HTTP/1.1 100 Continue\r\n\r\n" + WHOLE)
    except http.client.HTTPException as error:
        pytest.fail(f"neither the answer nor an error: {error!r}")
    assert (reply.status, reply.body) == (200, b"{}") or refused(reply, 502, "engine_error")


_TAKE = """
import resource, sys
from kawai_tools.runners.asking import _take_chunks
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
try:
    _take_chunks(bytearray(sys.argv[1].encode()))
except ValueError:
    sys.exit(3)
"""


@pytest.mark.parametrize("size", ["-6", "-3", "+5", "0x5", "0_5", " 5"])
def test_a_size_is_hexadecimal_digits_and_nothing_else(size: str) -> None:
    command = [sys.executable, "-c", _TAKE, f"{size}\r\nabcde\r\n0\r\n\r\n"]
    try:
        done = subprocess.run(command, timeout=5, check=False, capture_output=True)
    except subprocess.TimeoutExpired:
        pytest.fail("the event loop never comes out of it")
    assert done.returncode == 3, done.stderr.decode()[-300:]


@pytest.mark.parametrize("said", ["x" * 100_000, "HTTP/1.1 " + "9" * 100_000], ids=["no line", "no end"])
def test_an_engine_whose_health_is_no_http_is_502_and_rests(
    workspaces: Workspaces, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module.Runner.start, "__defaults__", (1.0,))
    with served(workspaces, Parrot(HEALTH=said)) as up:
        assert refused(up.hear(WHOLE), 502, "engine_error")
        assert [row["state"] for row in up.ask("GET", "/v1/models/ps").json] == ["failed"]


@pytest.mark.parametrize("backlog", [1, 5])
def test_an_engine_that_accepts_slowly_costs_no_request(workspaces: Workspaces, backlog: int) -> None:
    with served(workspaces, Parrot(BACKLOG=str(backlog))) as up:
        up.hear(WHOLE)
        with ThreadPoolExecutor(60) as crowd:
            found = list(crowd.map(lambda _: up.hear(0.1, WHOLE).status, range(120)))
    assert found == [200] * 120


def test_a_thousand_answers_leave_nothing(talker: Served) -> None:
    def left() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    talker.hear(WHOLE)
    before = left()
    with ThreadPoolExecutor(8) as crowd:
        assert set(crowd.map(lambda _: talker.hear(WHOLE).status, range(1000))) == {200}
    assert soon(lambda: left() <= before + 2)
    assert len(talker.workspace.pool._own) == 0


# Clients


def test_a_client_that_reads_nothing_makes_the_engine_wait(talker: Served) -> None:
    asked = {"model": "a", "stream": True, "say": [CHUNKED], "flood": 1 << 28}
    memory = process_module.resident("self") or 0
    with _sent(talker, asked):
        time.sleep(1.5)
        assert (process_module.resident("self") or 0) - memory < 32 << 20
        assert talker.leases == 1
    assert soon(lambda: not talker.leases, 3)


def test_clients_that_send_all_at_once_are_answered_one_after_the_other(talker: Served) -> None:
    stream = {"model": "a", "stream": True, "say": [CHUNKED, "3\r\none\r\n", 0.1, "3\r\ntwo\r\n0\r\n\r\n"]}
    whole = {"model": "b", "say": [WHOLE]}
    said = talker.raw(
        _request(talker, stream) + _request(talker, whole) + _request(talker, stream, last=True)
    )
    assert said.count(b"HTTP/1.1 200 OK") == 3
    assert said.count(b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n") == 2
    with _sent(talker, stream | {"say": [CHUNKED, "1\r\na\r\n", 5.0]}, whole):
        assert soon(lambda: talker.leases)
    assert soon(lambda: not talker.leases, 2)


def test_a_client_of_http_1_0_gets_a_stream_that_ends_with_its_connection(talker: Served) -> None:
    asked = {"model": "a", "stream": True, "say": [CHUNKED, "3\r\none\r\n", "3\r\ntwo\r\n0\r\n\r\n"]}
    head, _, body = talker.raw(_request(talker, asked).replace(b"HTTP/1.1", b"HTTP/1.0")).partition(
        b"\r\n\r\n"
    )
    assert b"chunked" not in head.lower()
    assert body == b"onetwo"


def test_methods_that_nobody_knows_are_counted_as_one(talker: Served) -> None:
    before = len(talker.ask("GET", "/metrics").body)
    with contextlib.closing(talker.connect()) as connection:
        for number in range(200):
            connection.request(f"M{'x' * 500}{number}", "/healthz")
            assert connection.getresponse().read()
        connection.request("A" * 50_000, "/healthz")
        connection.getresponse().read()
    said = talker.ask("GET", "/metrics").body
    assert len(said) < before + 2000
    assert list(text_string_to_metric_families(said.decode()))
    log = talker.workspace.settings.state_dir / "logs" / "requests.log"
    assert max(map(len, log.read_text().splitlines())) < 1000


def test_a_body_of_many_small_things_is_read_at_once() -> None:
    body = b'{"model":"a","say":["none"],"x":[' + b"[]," * (5 << 20) + b"0]}"
    begun = time.process_time()
    with pytest.raises(ValueError, match="model"):  # what is measured is the reading of it
        _read_all(body.replace(b'"model"', b'"other"'))
    assert time.process_time() - begun < 0.5


@pytest.mark.parametrize("part", [b"[],", b"{},", b"0,", b"[" * 50 + b"0" + b"]" * 50 + b","])
@pytest.mark.parametrize("key", [b'"image_url":0', b'"\\u0069mage_url":0'])
def test_a_body_that_is_looked_into_has_a_bounded_number_of_parts(part: bytes, key: bytes) -> None:
    body = b'{"model":"a",' + key + b',"x":[' + part * ((20 << 20) // len(part)) + b"0]}"
    begun = time.process_time()
    with pytest.raises(ValueError, match="50,000 parts"):
        _read_all(body)
    assert time.process_time() - begun < 3


def test_words_in_any_script_are_not_looked_into() -> None:
    words = b'"\\u00e9\\u4e2d",' * 200_000
    _read_all(b'{"model":"a","input":[' + words + b'"x"]}')


@pytest.mark.parametrize("key", ["image_url", "\\u0069mage_url", "input_audi\\u006f"])
def test_a_key_is_found_however_it_is_written(key: str) -> None:
    value = '{"data":"http://x/"}' if "audi" in key else '"http://x/"'
    with pytest.raises(ValueError, match="data: URL"):
        _read_all(b'{"model":"a","messages":[{"%s":%s}]}' % (key.encode(), value.encode()))


def _read_all(body: bytes) -> None:
    from kawai_tools.api.inference import read  # noqa: PLC0415
    from kawai_tools.errors import InvalidBody  # noqa: PLC0415

    try:
        read(body)
    except InvalidBody as error:
        raise ValueError(error.message) from None


def _request(up: Served, asked: Json, *, last: bool = False) -> bytes:
    body = json.dumps(asked).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", f"Host: 127.0.0.1:{up.port}"]
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += ["Connection: close"] if last else []
    return "\r\n".join([*lines, "", ""]).encode() + body


@contextlib.contextmanager
def _sent(up: Served, *asked: Json) -> Iterator[None]:
    """Requests of a client that reads nothing, and leaves at the end."""
    with socket.socket() as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.connect(("127.0.0.1", up.port))
        wire.sendall(b"".join(_request(up, each) for each in asked))
        yield


# Use against removal, pins and the end


def test_force_removes_a_model_that_is_asked_without_a_pause(workspaces: Workspaces) -> None:
    with served(workspaces) as up:
        up.hear(WHOLE)
        stop = threading.Event()

        def ask() -> int:
            status = 200
            while status == 200 and not stop.is_set():
                status = up.hear(0.02, WHOLE).status
            return status

        with ThreadPoolExecutor(4) as crowd:
            asking = [crowd.submit(ask) for _ in range(4)]
            time.sleep(0.3)
            reply = up.ask("DELETE", "/v1/models/a?force=true")
            stop.set()
            assert (reply.status, reply.body) == (204, b"")
            assert {each.result() for each in asking} <= {200, 404, 409, 502, 503}


def test_where_pins_take_every_place_the_advice_is_not_to_shrink_the_model(workspaces: Workspaces) -> None:
    store = workspaces.home / "models"
    store.mkdir(parents=True)
    more: Mapping[str, Entry] = {"llama.block_count": 4, "llama.embedding_length": 64}
    tiny_gguf(store / "grown.gguf", extra=more)
    with served(workspaces, max_models=1) as up:
        assert up.hear(WHOLE, keep_alive=-1).status == 200
        words = refused(up.ask("POST", "/v1/models/load", {"model": "grown"}), 503, "no_room")
        assert "parallel" not in words
        assert "context_length" not in words


def test_who_asks_while_a_pinned_model_leaves_waits_for_its_place(workspaces: Workspaces) -> None:
    with served(workspaces, max_models=1) as up, ThreadPoolExecutor(2) as crowd:
        up.hear(WHOLE, keep_alive=-1)
        answer = crowd.submit(up.hear, 1.0, WHOLE)
        assert soon(lambda: up.leases)
        crowd.submit(up.ask, "POST", "/v1/models/unload", {"model": "a"})
        assert soon(lambda: up.ask("GET", "/v1/models/ps").json[0]["state"] == "draining")
        assert up.ask("POST", "/v1/chat/completions", {"model": "b", "say": [WHOLE]}).status == 200
        assert answer.result().status == 200


def test_a_second_interrupt_waits_for_nobody(workspaces: Workspaces) -> None:
    with served(workspaces) as up, ThreadPoolExecutor(1) as crowd:
        up.hear(WHOLE)
        answer = crowd.submit(_broken, up)
        assert soon(lambda: up.leases)
        up.server.handle_exit(signal.SIGINT, None)
        time.sleep(0.3)
        up.server.handle_exit(signal.SIGINT, None)
        begun = time.monotonic()
        answer.result()
        assert time.monotonic() - begun < 5


def test_the_end_does_not_wait_for_what_nobody_waits_for(workspaces: Workspaces) -> None:
    begun = 0.0
    with served(workspaces) as up:
        up.hear(WHOLE)
        with _sent(up, {"model": "a", "stream": True, "say": [20.0]}):
            assert soon(lambda: up.leases)
        time.sleep(0.3)
        begun = time.monotonic()
    assert time.monotonic() - begun < 10


def _broken(up: Served) -> None:
    with contextlib.suppress(http.client.HTTPException, OSError):
        up.hear(CHUNKED, "1\r\na\r\n", 20.0, stream=True)


# Odd headers of models

HEADS = "llama.attention.head_count"
ODD: dict[str, Mapping[str, Entry]] = {
    "none": {HEADS: 0, "llama.block_count": 30, "llama.embedding_length": 576},
    "negative": {HEADS: -4, f"{HEADS}_kv": -1, "llama.block_count": -30, "llama.embedding_length": -576},
    "arrays": {HEADS: [9, 9], f"{HEADS}_kv": [3, 0], "llama.block_count": 2, "llama.embedding_length": 576},
    "words": {HEADS: "nine", "llama.block_count": "x", "llama.embedding_length": 1.5},
    "more-heads-than-width": {HEADS: 1 << 31, "llama.block_count": 4, "llama.embedding_length": 576},
    "context-none": {"llama.context_length": 0},
    "context-negative": {"llama.context_length": -128},
}


def test_models_with_odd_headers_are_loaded_or_refused_in_words(workspaces: Workspaces) -> None:
    store = workspaces.home / "models"
    store.mkdir(parents=True)
    for name, extra in ODD.items():
        tiny_gguf(store / f"{name}.gguf", extra=extra)
    vast: Mapping[str, Entry] = dict.fromkeys(("llama.block_count", "llama.embedding_length"), (1 << 64) - 1)
    vast = {**vast, "llama.attention.head_count": 1}
    tiny_gguf(store / "vast.gguf", extra=vast)
    with served(workspaces, max_models=len(ODD)) as up:
        for name in ODD:
            reply = up.ask("POST", "/v1/models/load", {"model": name})
            assert reply.status == 200, (name, reply)
            assert reply.json["context_length"] > 0
        assert refused(up.ask("POST", "/v1/models/load", {"model": "vast"}), 503, "no_room")


def test_bodies_together_are_bounded_and_what_ended_counts_no_more(
    talker: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "MOST_BODIES", 2000)
    reply = talker.hear(WHOLE, more="x" * 3000)
    assert refused(reply, 503, "busy")
    assert reply.headers["retry-after"] == "1"
    for number in range(10):
        body: dict[str, Any] = {"more": "x" * 1500} | ({"model": None} if number % 2 else {})
        assert talker.hear(WHOLE, **body).status == (400 if number % 2 else 200)
