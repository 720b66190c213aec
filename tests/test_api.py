"""The HTTP face from outside: bytes in, status, headers and JSON out; and ``kawai serve`` itself."""

import contextlib
import functools
import http.client
import json
import os
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import openai
import pytest

from kawai_tools import __version__
from kawai_tools.api.app import build_app
from kawai_tools.api.guard import known_by
from kawai_tools.api.health import ALIVE, READY
from kawai_tools.api.server import Calls, Server, listen
from kawai_tools.contract import Level, NoRequest, Nothing, Operation, Stream
from kawai_tools.events import FINAL, Event, ModelPullEvent, Progress, Status, VerifyEvent
from kawai_tools.operations.pulls import PullRow
from kawai_tools.operations.table import OPERATIONS
from kawai_tools.remote.daemon import serve_file
from kawai_tools.transfer.pulls import Feed, Job, Pull
from kawai_tools.workspace import Workspace
from tests.hub import LocalHub
from tests.program import Daemon, Program, Reply, serving
from tests.samples import F32, tiny_gguf
from tests.workspaces import Workspaces

REPO, MODEL = "me/tiny-GGUF", "Tiny-Q8_0"
BIG, BIG_SIZE = "Big-Q8_0", 4 << 20
LIMIT = 1 << 20
JSON = "Content-Type: application/json"


def big_gguf() -> bytes:
    return tiny_gguf(tensors=(("token_embd.weight", (1024, BIG_SIZE // 4096), F32),))


# The daemon that most tests ask, and how


class Server_(NamedTuple):  # noqa: N801 - Server is the product's
    """A daemon with one installed model, for tests that leave it as it was."""

    daemon: Daemon
    cli: Program
    hub: LocalHub

    @property
    def host(self) -> str:
        return f"Host: {urlsplit(self.daemon.url).netloc}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server_]:
    root = tmp_path_factory.mktemp("api")
    with LocalHub(root / "hub") as hub:
        hub.add_file(REPO, f"{MODEL}.gguf", tiny_gguf())
        cli = Program(root, {"HF_ENDPOINT": hub.endpoint})
        assert cli("models", "pull", REPO).code == 0
        with serving(cli) as daemon:
            yield Server_(daemon, cli, hub)
            assert daemon.process.poll() is None
        log = root / "kawai" / "logs" / "kawai.log"
        assert not log.exists() or "Traceback" not in log.read_text()


@contextlib.contextmanager
def connected(url: str, timeout: float = 10) -> Iterator[socket.socket]:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout) as wire:
        yield wire


def read_reply(wire: socket.socket, method: str = "GET") -> Reply:
    with http.client.HTTPResponse(wire, method=method) as answer:
        answer.begin()
        return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())


def send_raw(daemon: Daemon, data: bytes, method: str = "GET") -> Reply:
    """Send these bytes and nothing more; what is answered to them."""
    with connected(daemon.url) as wire:
        wire.sendall(data)
        return read_reply(wire, method)


def head(start: str, *headers: str) -> bytes:
    return "\r\n".join([f"{start} HTTP/1.1", *headers, "", ""]).encode("latin-1")


def is_error(reply: Reply, status: int, code: str) -> bool:
    """Whether this is an error of the one shape."""
    assert reply.headers["content-type"] == "application/json", reply
    assert list(reply.json) == ["error"]
    assert list(reply.error) == ["code", "type", "message", "hint"]
    assert not re.search(r"\w\.$", reply.error["message"])
    assert (reply.status, reply.error["code"]) == (status, code), reply
    return True


# Routes and methods

PATHS: dict[str, set[str]] = {path: {"GET", "HEAD"} for path in (*ALIVE, *READY)}
for row in OPERATIONS:
    if row.path:
        extra = {"HEAD"} if row.method == "GET" else set()
        PATHS.setdefault(row.path, set()).update({row.method}, extra)


@pytest.mark.parametrize("path", PATHS)
def test_other_methods_are_405_and_allow_tells_which_there_are(server: Server_, path: str) -> None:
    where = path.format(model=MODEL, pull="x", version="b1", filter="x", id="x")
    for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"} - PATHS[path]:
        reply = send_raw(server.daemon, head(f"{method} {where}", server.host, "Content-Length: 0"), method)
        assert reply.status == 405
        assert set(reply.headers["allow"].split(", ")) == PATHS[path]
        assert not [name for name in reply.headers if name.startswith("access-control")]
        if method != "HEAD":
            assert is_error(reply, 405, "method_not_allowed")


def test_a_route_is_never_a_model(server: Server_) -> None:
    for path in ("/v1/models/pull", "/v1/models/verify", "/v1/models/index", "/v1/models/p%75ll"):
        assert server.daemon.ask("GET", path).headers["allow"] == "POST"
        assert is_error(server.daemon.ask("DELETE", path), 405, "method_not_allowed")


@pytest.mark.parametrize(
    "path", ["/v1/models", f"/v1/models/{MODEL}", "/v1/models/nope", "/v1/pulls", *READY]
)
def test_head_is_get_without_the_body(server: Server_, path: str) -> None:
    get, without = server.daemon.ask("GET", path), server.daemon.ask("HEAD", path)
    assert (without.status, without.body) == (get.status, b"")
    assert without.headers["content-length"] == str(len(get.body))


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v2/models",
        "/v1/pulls/",
        "/v1/pulls/a/b",
        "/healthz/",
        "//v1/models",
        "/v1/models%0a",
        "/%00",
    ],
)
def test_unknown_routes_and_trailing_slashes_are_404(server: Server_, path: str) -> None:
    assert is_error(server.daemon.ask("GET", path), 404, "route_not_found")


@pytest.mark.parametrize(
    ("method", "path", "words"),
    [
        ("GET", "/v1/models?x=1", "'x'"),
        ("GET", f"/v1/models/{MODEL}?metadata=1&y", "'metadata', 'y'"),
        ("GET", f"/v1/models/{MODEL}?model=other", "'model'"),
        ("POST", "/v1/models/index?force=true", "'force'"),
        ("POST", "/v1/models/pull?model_url=a/b", "'model_url'"),
        ("DELETE", "/v1/models/nope?force=true&force=true", "only once"),
        ("DELETE", "/v1/models/nope?force=maybe", "force"),
        ("DELETE", "/v1/models/nope?force=", "force"),
        ("GET", "/v1/models?" + "&".join(map(str, range(200))), "query"),
    ],
)
def test_the_query_is_read_strictly(server: Server_, method: str, path: str, words: str) -> None:
    reply = server.daemon.ask(method, path)
    assert is_error(reply, 400, "invalid_request")
    assert words in reply.error["message"]


# Ids

TOO_MUCH = "a" * 10_240
HOSTILE = (
    *("..", "../x", "x/..", "%2e%2e", "%2e%2e%2fx", "x%2F..", ".", "./x", "..%5cx", "%2E%2E/%2E%2E"),
    *("a/b/c", "a%2Fb%2Fc", "a%2fb/c", "%2F", "a%2F", "%2Fa", "a//b", "a/", "/a", "//"),
    *("%252e%252e", "a%252Fb", "%25", "100%25", "%", "%zz"),
    *("%00", "a%00b", "a%0d%0aX-Injected:%20b", "a%0a", "%0a", "%09", "%7f", "a%1b[31m", "a%C2%85"),
    *("a%5cb", "a\\b", "-rf", "a/-rf", ".hidden", "a/.hidden", TOO_MUCH, "%C3%A9" * 201),
)


@pytest.mark.parametrize("words", HOSTILE, ids=lambda words: words[:20])
def test_what_cannot_be_an_id_is_refused_on_every_route(server: Server_, words: str) -> None:
    rows = [row for row in OPERATIONS if row.path and "{model}" in row.path]
    assert {row.method for row in rows} == {"GET", "DELETE", "POST"}
    for row in rows:
        path = (row.path or "").replace("{model}", words)
        reply = send_raw(server.daemon, head(f"{row.method} {path}", server.host))
        assert is_error(reply, 400, "invalid_id")
        assert len(reply.body) < 2000
    assert MODEL in server.daemon.ask("GET", "/v1/models").body.decode()


@pytest.mark.parametrize(
    "words", ["../x", "a/b/c", "a//b", "%2e", "a\0b", "a\\b", "-x", ".x", "a\r\nb", TOO_MUCH, ""]
)
def test_what_cannot_be_an_id_is_refused_in_a_body(server: Server_, words: str) -> None:
    assert is_error(server.daemon.ask("POST", "/v1/models/verify", {"model": words}), 400, "invalid_id")


@pytest.mark.parametrize(
    "words", ["%D0%A2iny-Q8_0", "Tiny%E2%80%90Q8_0", "Tiny-Q8_0%E2%80%8B", "Tiny-Q8_0%20", "%ff"]
)
def test_look_alikes_are_other_ids(server: Server_, words: str) -> None:
    for method in ("GET", "DELETE"):
        assert is_error(server.daemon.ask(method, f"/v1/models/{words}"), 404, "model_not_found")
    assert server.daemon.ask("GET", f"/v1/models/{MODEL}").status == 200


@pytest.mark.parametrize(
    "words", [MODEL, MODEL.upper(), f"me/{MODEL}", f"me%2F{MODEL}", f"ME%2f{MODEL.lower()}"]
)
def test_every_way_to_name_a_model(server: Server_, words: str) -> None:
    reply = server.daemon.ask("GET", f"/v1/models/{words}")
    assert (reply.status, reply.json["id"]) == (200, MODEL)


@pytest.mark.parametrize("words", ["x", "..", "%00", "%2e%2e%2f", "a" * 10_000, "%F0%9F%92%A9"])
def test_what_is_no_pull_is_404(server: Server_, words: str) -> None:
    for method in ("GET", "DELETE"):
        reply = server.daemon.ask(method, f"/v1/pulls/{words}")
        assert reply.status == 404
        assert reply.error["code"] in {"pull_not_found", "route_not_found"}
        assert len(reply.body) < 1000


# Who may ask

EVERYWHERE = [(method, path) for path, methods in PATHS.items() for method in methods] + [("GET", "/nowhere")]
FOREIGN_HOSTS = (
    *("evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost.:{port}", ""),
    *("localhost:{port}.evil.example", "evil.example@localhost:{port}", "127.0.0.1:{port}, evil.example"),
    *("0.0.0.0:{port}", "2130706433:{port}", "[::1", "127.1:{port}"),
)


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_a_host_that_is_not_this_server_is_421(server: Server_, host: str) -> None:
    name = host.format(port=urlsplit(server.daemon.url).port)
    reply = send_raw(server.daemon, head("GET /healthz", f"Host: {name}"))
    assert is_error(reply, 421, "wrong_host")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
def test_every_name_of_loopback_is_this_server(server: Server_, host: str) -> None:
    own = f"{host}:{urlsplit(server.daemon.url).port}"
    assert send_raw(server.daemon, head("GET /healthz", f"Host: {own}")).status == 200
    assert (
        send_raw(server.daemon, head("GET /healthz", f"Host: {own}", f"Origin: http://{own}")).status == 200
    )


ORIGINS = (
    "http://evil.example",
    "null",
    "https://{own}",
    "http://{own}/",
    "http://{own}.evil.example",
    "",
    "file://",
)


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_foreign_origin_is_403(server: Server_, origin: str) -> None:
    given = origin.format(own=urlsplit(server.daemon.url).netloc)
    reply = send_raw(server.daemon, head("GET /healthz", server.host, f"Origin: {given}"))
    assert is_error(reply, 403, "foreign_origin")


def test_host_and_origin_are_checked_on_every_route_before_the_body(server: Server_) -> None:
    for method, path in EVERYWHERE:
        where = path.format(model=MODEL, pull="x", version="b1", filter="x", id="x")
        body = (JSON, "Content-Length: 5")  # and it is never sent
        reply = send_raw(server.daemon, head(f"{method} {where}", "Host: evil.example", *body), method)
        assert reply.status == 421, (method, path)
        foreign = head(f"{method} {where}", server.host, "Origin: http://evil.example", *body)
        assert send_raw(server.daemon, foreign, method).status == 403, (method, path)
    own = f"Origin: {server.daemon.url}"
    two = head("GET /healthz", server.host, own, "Origin: http://evil.example")
    assert is_error(send_raw(server.daemon, two), 403, "foreign_origin")
    assert server.daemon.ask("GET", f"/v1/models/{MODEL}").status == 200


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param((), id="none"),
        pytest.param(("{host}", "{host}"), id="doubled"),
        pytest.param(("{host}", "Host: evil.example"), id="two"),
    ],
)
def test_a_missing_or_doubled_host_is_an_error_of_the_one_shape(
    server: Server_, headers: tuple[str, ...]
) -> None:
    reply = send_raw(
        server.daemon, head("GET /healthz", *(each.format(host=server.host) for each in headers))
    )
    assert reply.status in {400, 421}
    assert reply.headers["content-type"] == "application/json"
    assert reply.error["type"] == "invalid_request"


def test_an_authorization_header_is_ignored_while_there_are_no_tokens(server: Server_) -> None:
    for value in ("Bearer x", "Basic dXNlcjpwYXNz", "Bearer " + "x" * 30_000, "", "Bearer"):
        assert server.daemon.ask("GET", "/v1/models", headers={"Authorization": value}).status == 200


# Bodies


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/json", "application/octet-stream", "nonsense"]
)
def test_an_empty_body_is_no_body_whatever_its_content_type(server: Server_, kind: str | None) -> None:
    typed = [f"Content-Type: {kind}"] if kind else []
    for length in ((), ("Content-Length: 0",), ("Transfer-Encoding: chunked",)):
        sent = head("POST /v1/models/verify", server.host, *typed, *length)
        reply = send_raw(server.daemon, sent + (b"0\r\n\r\n" if "chunked" in "".join(length) else b""))
        assert [event["status"] for event in reply.events][-1:] == ["verified"]
    assert server.daemon.ask("POST", "/v1/models/index", b"", {"Content-Type": kind or "a/b"}).status == 204


@pytest.mark.parametrize(
    "kind",
    [
        *(
            None,
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "text/json",
        ),
        *(
            "application/problem+json",
            "application/jsonx",
            "text/plain; application/json",
            "application/json, text/plain",
        ),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_not_declared_json_is_415(server: Server_, kind: str | None, *, chunked: bool) -> None:
    typed = [f"Content-Type: {kind}"] if kind else []
    size = "Transfer-Encoding: chunked" if chunked else "Content-Length: 2"
    for path in ("/v1/models/verify", "/v1/models/pull", "/v1/models/index"):
        sent = head(f"POST {path}", server.host, *typed, size) + (
            b"2\r\n{}\r\n0\r\n\r\n" if chunked else b"{}"
        )
        assert is_error(send_raw(server.daemon, sent), 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/json ;x=y"]
)
def test_parameters_and_case_of_the_content_type_do_not_matter(server: Server_, kind: str) -> None:
    reply = server.daemon.ask("POST", "/v1/models/verify", b"{}", {"Content-Type": kind})
    assert reply.events[-1]["status"] == "verified"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[]", "JSON object"),
        (b"null", "JSON object"),
        (b'"x"', "JSON object"),
        (b"1", "JSON object"),
        (b"{", "not valid JSON"),
        (b"{}{}", "not valid JSON"),
        (b"{'model': 'x'}", "not valid JSON"),
        (b'{"model": NaN}', "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b'{"model": "\xff"}', "not valid JSON"),
        (b'{"model": "\\ud800"}', "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b" ", "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
        (b'{"model":' * 100_000, "not valid JSON"),
        (b'{"modle": "x", "zzz": 1}', "'modle', 'zzz'"),
        (b'{"Model": "x"}', "'Model'"),
        (b'{"__proto__": 1}', "'__proto__'"),
        (b'{"model": 1}', "model"),
        (b'{"model": ["x"]}', "model"),
    ],
)
def test_a_body_that_does_not_fit_is_a_400_that_says_why(server: Server_, body: bytes, words: str) -> None:
    reply = server.daemon.ask("POST", "/v1/models/verify", body, {"Content-Type": "application/json"})
    assert is_error(reply, 400, "invalid_body")
    assert words in reply.error["message"]
    assert len(reply.body) < 1000


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "model_url"),
        ({"model_url": None}, "model_url"),
        ({"model_url": "a/b", "connections": 0}, "1 to 64"),
        ({"model_url": "a/b", "connections": 65}, "1 to 64"),
        ({"model_url": "a/b", "connections": 1.5}, "connections"),
        ({"model_url": "a/b", "connections": True}, "connections"),
        ({"model_url": "a/b", "limit_rate": 0}, "above zero"),
        ({"model_url": "a/b", "limit_rate": -5}, "limit_rate"),
        ({"model_url": "a/b", "limit_rate": "fast"}, "'fast'"),
        ({"model_url": "a/b", "limit_rate": True}, "limit_rate"),
        ({"model_url": "a/b", "force": "true"}, "force"),
        ({"model_url": "a/b", "dry_run": 1}, "dry_run"),
        ({"model_url": "a/b", "proj_url": 1}, "proj_url"),
        ({"model_url": "a/b", "pull": "x"}, "'pull'"),
    ],
    ids=str,
)
def test_a_pull_that_cannot_be_asked_is_refused_before_the_hub_is(
    server: Server_, body: dict[str, object], words: str
) -> None:
    server.hub.clear_requests()
    reply = server.daemon.ask("POST", "/v1/models/pull", body)
    assert is_error(reply, 400, "invalid_body")
    assert words in reply.error["message"]
    assert server.hub.requests == []


@pytest.mark.parametrize("path", ["/etc/passwd", "./x.gguf", "file:///etc/passwd", "~/x.gguf", "C:\\x.gguf"])
def test_a_path_is_never_recognised_over_http(server: Server_, path: str) -> None:
    reply = server.daemon.ask("POST", "/v1/models/pull", {"model_url": path})
    assert is_error(reply, 400, "invalid_source")
    assert "this machine" not in reply.body.decode()


def test_the_body_may_have_a_mebibyte(server: Server_) -> None:
    reply = server.daemon.ask(
        "POST", "/v1/models/verify", b"{}".ljust(LIMIT), {"Content-Type": "application/json"}
    )
    assert reply.events[-1]["status"] == "verified"


@pytest.mark.parametrize("kind", [JSON, "Content-Type: text/plain"])
@pytest.mark.parametrize("path", ["/v1/models/pull", "/v1/models/verify", "/v1/models", "/nowhere"])
def test_more_is_413_as_soon_as_it_is_announced(server: Server_, kind: str, path: str) -> None:
    announced = head(f"POST {path}", server.host, kind, f"Content-Length: {LIMIT + 1}")
    assert is_error(send_raw(server.daemon, announced), 413, "body_too_large")


def test_more_is_413_as_soon_as_it_is_received(server: Server_) -> None:
    first = head("POST /v1/models/pull", server.host, JSON, "Transfer-Encoding: chunked")
    sent = first + b"%x\r\n" % (LIMIT + 1) + b" " * (LIMIT + 1) + b"\r\n"  # and the end never comes
    assert is_error(send_raw(server.daemon, sent), 413, "body_too_large")


def test_a_client_that_is_still_sending_gets_to_read_why(server: Server_) -> None:
    reply = server.daemon.ask(
        "POST", "/v1/models/pull", b" " * (8 * LIMIT), {"Content-Type": "application/json"}
    )
    assert is_error(reply, 413, "body_too_large")
    assert reply.headers["connection"] == "close"


# What is hardly HTTP


@pytest.mark.parametrize(
    "headers",
    [
        ("Content-Length: 2", "Content-Length: 3"),
        ("Content-Length: -2",),
        ("Content-Length: +2",),
        ("Content-Length: two",),
        ("Content-Length: 99999999999999999999999",),
        ("Transfer-Encoding: gzip, chunked",),
        ("Transfer-Encoding: identity",),
        ("Content-Length: 2", "Transfer-Encoding: chunked"),
        (JSON, "Content-Length: 2"),
        ("Authorization: Bearer a", "Authorization: Bearer b", "Content-Length: 2"),
        ("X : y", "Content-Length: 2"),
    ],
)
def test_doubtful_framing_is_a_400_of_the_one_shape(server: Server_, headers: tuple[str, ...]) -> None:
    reply = send_raw(server.daemon, head("POST /v1/models/verify", server.host, JSON, *headers) + b"{}")
    assert 400 <= reply.status < 500
    assert reply.headers["content-type"] == "application/json", reply
    assert reply.error["type"] == "invalid_request"


def test_after_conflicting_framing_the_connection_ends(server: Server_) -> None:
    """RFC 9112, 6.1: what follows may be the body of one and the next request of another reader."""
    both = head(
        "POST /v1/models/verify", server.host, JSON, "Content-Length: 5", "Transfer-Encoding: chunked"
    )
    with connected(server.daemon.url, 3) as wire:
        wire.sendall(both + b"0\r\n\r\n" + head("GET /healthz", server.host))
        received = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            for piece in iter(lambda: wire.recv(65_536), b""):
                received += piece
    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET /v1/models/\xff HTTP/1.1\r\n", id="target that is not ASCII"),
        pytest.param(b"G\0T / HTTP/1.1\r\n", id="NUL in the method"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\r\n", id="TLS"),
        pytest.param(b"nonsense\r\n", id="nonsense"),
    ],
)
def test_what_is_not_http_is_an_error_of_the_one_shape(server: Server_, data: bytes) -> None:
    reply = send_raw(server.daemon, data + f"{server.host}\r\n\r\n".encode())
    assert reply.status == 400
    assert reply.headers["content-type"] == "application/json", reply
    assert reply.error["type"] == "invalid_request"


@pytest.mark.parametrize("size", [66_000, 130_000, 1 << 20])
@pytest.mark.parametrize("where", ["header", "target"])
def test_a_head_of_more_than_64_kib_is_431(server: Server_, size: int, where: str) -> None:
    long = head(f"GET /{'a' * size}", server.host)
    sent = head("GET /healthz", server.host, f"X: {'a' * size}") if where == "header" else long
    with connected(server.daemon.url) as wire:
        with contextlib.suppress(ConnectionError):  # answered before all is sent
            wire.sendall(sent)
        reply = read_reply(wire)
    assert reply.status in ({431} if where == "header" else {414, 431}), reply
    assert reply.error["type"] == "invalid_request"


def test_a_head_of_less_than_64_kib_is_taken(server: Server_) -> None:
    assert send_raw(server.daemon, head("GET /healthz", server.host, f"X: {'a' * 63_000}")).status == 200


SLOW: dict[str, Callable[[str], bytes]] = {
    "half a request line": lambda _: b"GET /heal",
    "half a head": lambda host: b"GET /healthz HTTP/1.1\r\n" + host.encode() + b"\r\nX: ",
    "a body that does not come": lambda host: head("POST /v1/models/verify", host, JSON, "Content-Length: 2"),
    "half a body": lambda host: head("POST /v1/models/verify", host, JSON, "Content-Length: 2") + b"{",
    "half a chunk": lambda host: (
        head("POST /v1/models/verify", host, JSON, "Transfer-Encoding: chunked") + b"2\r\n{"
    ),
}


@pytest.mark.slow
def test_slow_heads_and_bodies_are_408_after_15_seconds(server: Server_) -> None:
    begin, ended = time.monotonic(), dict[str, tuple[float, bytes]]()
    with contextlib.ExitStack() as stack:
        waiting: dict[socket.socket, str] = {}
        for name, data in SLOW.items():
            wire = stack.enter_context(connected(server.daemon.url))
            wire.sendall(data(server.host))
            waiting[wire] = name
        while waiting and (left := begin + 20 - time.monotonic()) > 0:
            for each in select.select(list(waiting), [], [], left)[0]:
                ended[waiting.pop(each)] = time.monotonic() - begin, each.recv(65_536)
        assert server.daemon.ask("GET", "/healthz").status == 200
    assert set(ended) == set(SLOW), "the others still hold their connection after 20 s"
    for name, (seconds, answer) in ended.items():
        assert 13 < seconds < 20, name
        assert answer.startswith(b"HTTP/1.1 408 "), name
        assert b'{"error":{"code":' in answer, name


@pytest.mark.slow
def test_a_head_that_comes_byte_by_byte_has_15_seconds_in_all(server: Server_) -> None:
    """Each byte comes in time; the head does not."""
    begin = time.monotonic()
    with connected(server.daemon.url, 1) as wire:
        wire.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        answered = b""
        while not answered and time.monotonic() < begin + 20:
            wire.sendall(b"a")
            with contextlib.suppress(TimeoutError):
                answered = wire.recv(65_536)
    assert answered.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - begin > 13


def test_a_client_that_leaves_inside_its_body_harms_nobody(server: Server_) -> None:
    for size in ("Content-Length: 100", "Transfer-Encoding: chunked"):
        with connected(server.daemon.url) as wire:
            wire.sendall(head("POST /v1/models/pull", server.host, JSON, size) + b'40\r\n{"model_url"')
    assert server.daemon.ask("GET", "/healthz").status == 200


@pytest.mark.slow
def test_500_idle_connections_keep_nobody_out(server: Server_) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(connected(server.daemon.url))
        assert server.daemon.ask("GET", "/v1/models").status == 200


def test_requests_that_follow_on_one_connection(server: Server_) -> None:
    with contextlib.closing(server.daemon.connect()) as connection:
        for path, status in (
            ("/v1/models", 200),
            ("/v1/models/nope", 404),
            ("/v1/models/pull", 405),
            ("/readyz", 200),
        ):
            connection.request("GET", path)
            answer = connection.getresponse()
            assert (answer.status, bool(answer.read())) == (status, True)


# Health


def test_health(server: Server_) -> None:
    for path in (*ALIVE, *READY):
        reply = server.daemon.ask("GET", path)
        assert (reply.status, reply.json) == (200, {"status": "ok", "version": __version__})
    assert set(ALIVE) | set(READY) == {"/healthz", "/v1/liveness", "/readyz", "/v1/readiness"}


def test_not_ready_without_its_store_and_alive_all_the_same(
    hub: LocalHub, cli: Program, daemon: Daemon
) -> None:
    hub.add_file(REPO, f"{MODEL}.gguf", tiny_gguf())
    assert cli("models", "pull", REPO).code == 0
    marker = daemon.home / "models" / ".kawai-store"
    marker.rename(marker.with_name("away"))
    for path in READY:
        reply = daemon.ask("GET", path)
        assert is_error(reply, 503, "store_missing")
        assert str(marker.parent) in reply.error["message"]
    assert daemon.ask("GET", "/healthz").status == 200
    marker.with_name("away").rename(marker)
    assert daemon.ask("GET", "/readyz").status == 200


def test_not_ready_without_its_index(daemon: Daemon) -> None:
    (daemon.home / "index.sqlite3").mkdir()
    reply = daemon.ask("GET", "/readyz")
    assert (reply.status, reply.error["type"]) == (503, "unavailable")
    assert "index" in reply.error["message"]


# Other people's clients


def test_openai_clients_list_and_retrieve_models(server: Server_) -> None:
    with openai.OpenAI(base_url=f"{server.daemon.url}/v1", api_key="x", max_retries=0) as client:
        (found,) = client.models.list().data
        assert (found.id, found.object, found.owned_by) == (MODEL, "model", "me")
        assert abs(found.created - time.time()) < 600
        assert client.models.retrieve(MODEL) == client.models.retrieve(f"me/{MODEL}")
        with pytest.raises(openai.NotFoundError, match="there is no model 'nope'") as caught:
            client.models.retrieve("nope")
        assert (caught.value.code, caught.value.type) == ("model_not_found", "not_found")
        with pytest.raises(openai.BadRequestError):
            client.models.retrieve("../../etc/passwd")


# Streams

KEYS = (
    *("status", "id", "file", "completed", "total", "file_completed", "file_total", "rate", "eta"),
    *("model_files", "proj_file", "downloaded", "error", "pull", "seq"),
)


class Following:
    """A response that is being read, one frame at a time."""

    def __init__(self, url: str, method: str, path: str, body: object, headers: Mapping[str, str]) -> None:
        address = urlsplit(url)
        self.connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)
        data = None if body is None else json.dumps(body).encode()
        typed = {"Content-Type": "application/json"} if data else {}
        self.connection.request(method, path, data, {**typed, **headers})
        self.response = self.connection.getresponse()

    def frame(self) -> list[bytes]:
        """The lines of the next frame; none at the end."""
        lines: list[bytes] = []
        while (line := self.response.readline()) not in {b"\n", b""}:
            lines.append(line)
        return lines

    def event(self) -> dict[str, object]:
        """The next event."""
        lines = self.frame()
        assert lines, "the stream ended before its end was told"
        found: dict[str, object] = json.loads(lines[-1].removeprefix(b"data: "))
        return found

    def until(self, *statuses: str) -> dict[str, object]:
        """The first event from here on with one of these statuses; repetitions do not count as life."""
        deadline = time.monotonic() + 15
        while (event := self.event())["status"] not in statuses:
            assert time.monotonic() < deadline, f"still {event['status']} after 15 s"
        return event


@contextlib.contextmanager
def following(
    url: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
) -> Iterator[Following]:
    follower = Following(url, "GET" if body is None else "POST", path, body, headers or {})
    with contextlib.closing(follower.connection), contextlib.closing(follower.response):
        yield follower


@pytest.fixture
def big(hub: LocalHub) -> LocalHub:
    """A hub whose one model does not come to its end before it is let go."""
    hub.add_file(REPO, f"{BIG}.gguf", big_gguf())
    hub.throttle = 40_000
    return hub


SOURCE = {"model_url": REPO}


@pytest.mark.parametrize(
    ("accept", "with_ids"),
    [
        (None, False),
        ("*/*", False),
        ("application/json", False),
        ("text/event-stream", True),
        ("application/json, Text/Event-Stream;q=0.9", True),
    ],
)
def test_the_frames_of_a_stream(hub: LocalHub, daemon: Daemon, accept: str | None, *, with_ids: bool) -> None:
    hub.add_file(REPO, f"{MODEL}.gguf", tiny_gguf())
    reply = daemon.ask("POST", "/v1/models/pull", SOURCE, {"Accept": accept} if accept else {})
    assert reply.headers["content-type"] == "text/event-stream"
    frame = rb"id: (\d+)\ndata: (\{[^\n]*\})\n\n" if with_ids else rb"()data: (\{[^\n]*\})\n\n"
    assert re.fullmatch(b"(?:" + frame + b")+", reply.body)
    frames = re.findall(frame, reply.body)
    assert len(frames) == len(reply.events) > 3
    for seq, data in frames:
        event = json.loads(data)
        assert set(event) == set(KEYS)
        assert seq in {b"", str(event["seq"]).encode()}
    numbers = [event["seq"] for event in reply.events]
    assert numbers == sorted(set(numbers))
    assert numbers[0] == 1
    finals = [event["status"] for event in reply.events if event["status"] in FINAL]
    assert finals == [reply.events[-1]["status"]] == ["downloaded"]
    assert [event["downloaded"] for event in reply.events] == [False] * (len(frames) - 1) + [True]
    assert len({event["pull"] for event in reply.events}) == 1


def test_one_that_comes_late_gets_what_it_missed(hub: LocalHub, daemon: Daemon) -> None:
    hub.add_file(REPO, f"{MODEL}.gguf", tiny_gguf())
    first = daemon.ask("POST", "/v1/models/pull", SOURCE)
    where = f"/v1/pulls/{first.events[0]['pull']}"
    late = daemon.ask("GET", where, headers={"Accept": "text/event-stream"})
    assert late.events == [event for event in first.events if event["rate"] is None]
    changes = [event["status"] for event in late.events]
    assert changes == ["resolving", "downloading", "verifying", "installing", "downloaded"]
    last = late.events[-1]["seq"]
    for event in late.events[:-1]:
        back = daemon.ask("GET", where, headers={"Last-Event-ID": str(event["seq"])})
        assert back.events == [each for each in late.events if each["seq"] > event["seq"]]
    done = daemon.ask("GET", where, headers={"Last-Event-ID": str(last)})
    assert (done.status, done.body) == (204, b"")
    without = daemon.ask("HEAD", where)
    assert (without.status, without.body, without.headers["content-type"]) == (200, b"", "text/event-stream")


@pytest.mark.parametrize("number", ["x", "-1", "1.5", "1e3", "9" * 30, "1, 2", "%31"])
def test_a_last_event_id_that_is_none_is_refused_before_anything_begins(daemon: Daemon, number: str) -> None:
    reply = daemon.ask("POST", "/v1/models/pull", SOURCE, {"Last-Event-ID": number})
    assert is_error(reply, 400, "invalid_request")
    assert daemon.ask("GET", "/v1/pulls").json == []


def test_a_verification_is_told_whole_whatever_was_seen_of_an_earlier_one(server: Server_) -> None:
    """It is begun anew by every request, so the number is of another log."""
    reply = server.daemon.ask("POST", "/v1/models/verify", {"model": MODEL}, {"Last-Event-ID": "1"})
    assert [event["status"] for event in reply.events] == ["verifying", "verified"]


def test_what_can_be_refused_is_refused_before_the_stream(hub: LocalHub, daemon: Daemon) -> None:
    hub.add_file(REPO, f"{MODEL}.gguf", tiny_gguf())
    hub.gate(REPO)
    assert is_error(daemon.ask("POST", "/v1/models/pull", SOURCE), 412, "hub_token_required")
    assert is_error(daemon.ask("POST", "/v1/models/verify", {"model": "nope"}), 404, "model_not_found")
    assert daemon.ask("GET", "/v1/pulls").json == []


def test_what_fails_later_ends_the_stream_with_the_error(hub: LocalHub, daemon: Daemon) -> None:
    hub.add_file(REPO, f"{MODEL}.gguf", b"<!doctype html><title>Sign in</title>".ljust(5000))
    reply = daemon.ask("POST", "/v1/models/pull", SOURCE)
    last = reply.events[-1]
    assert (reply.status, last["status"], last["downloaded"]) == (200, "failed", False)
    assert (last["error"]["code"], last["error"]["type"]) == ("not_a_model", "integrity")
    assert [event["error"] for event in reply.events[:-1]] == [None] * (len(reply.events) - 1)
    (row,) = daemon.ask("GET", "/v1/pulls").json
    assert (row["status"], row["error"]) == ("failed", last["error"])


def test_100_followers_that_all_leave_do_not_end_the_pull(big: LocalHub, daemon: Daemon) -> None:
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(following(daemon.url, "/v1/models/pull", SOURCE))
        pull = first.event()["pull"]
        for number in range(99):
            again = number % 2  # a second request for the same is one more follower
            path, body = ("/v1/models/pull", SOURCE) if again else (f"/v1/pulls/{pull}", None)
            each = stack.enter_context(following(daemon.url, path, body))
            assert each.event()["pull"] == pull
    assert [(row["pull"], row["status"]) for row in daemon.ask("GET", "/v1/pulls").json] == [
        (pull, "downloading")
    ]
    with following(daemon.url, f"/v1/pulls/{pull}") as last:
        big.throttle = None
        assert last.until(*FINAL)["status"] == "downloaded"
    assert daemon.ask("GET", f"/v1/models/{BIG}").json["size"] > BIG_SIZE


def test_cancelling_ends_the_stream_and_leaves_what_was_fetched(big: LocalHub, daemon: Daemon) -> None:
    with following(daemon.url, "/v1/models/pull", SOURCE) as follower:
        event = next(event for event in iter(follower.event, None) if event["completed"])
        cancelled = daemon.ask("DELETE", f"/v1/pulls/{event['pull']}")
        assert (cancelled.status, cancelled.body) == (204, b"")
        end = follower.until(*FINAL)
        assert (end["status"], end["error"], end["downloaded"]) == ("cancelled", None, False)
        assert follower.frame() == []
    plan = daemon.ask("POST", "/v1/models/pull", {**SOURCE, "dry_run": True}).json
    assert 0 < plan["files"][0]["have"] < plan["total"]
    big.throttle = None
    big.clear_requests()
    assert daemon.ask("POST", "/v1/models/pull", SOURCE).events[-1]["status"] == "downloaded"
    fetched = sum(each.sent_bytes for each in big.requests if each.server == "cdn" and each.method == "GET")
    assert fetched <= plan["total"] - plan["files"][0]["have"]


def test_pulls_are_listed_newest_first_and_as_their_streams_end(hub: LocalHub, daemon: Daemon) -> None:
    assert daemon.ask("GET", "/v1/pulls").body == b"[]"
    hub.add_file(REPO, f"{MODEL}.gguf", tiny_gguf())
    hub.add_file("me/bad-GGUF", "Bad-Q8_0.gguf", b"no model".ljust(5000))
    ends = [
        daemon.ask("POST", "/v1/models/pull", {"model_url": repo}).events[-1]
        for repo in (REPO, "me/bad-GGUF", REPO)
    ]
    rows = daemon.ask("GET", "/v1/pulls").json
    assert [row["status"] for row in rows] == ["exists", "failed", "downloaded"]
    for row, end in zip(rows, reversed(ends), strict=True):
        assert tuple(row) == PullRow.__struct_fields__
        shared = ("pull", "status", "completed", "total", "rate", "eta", "error")
        assert {name: row[name] for name in shared} == {name: end[name] for name in shared}
        assert (row["kind"], row["target"]) == ("model", end["id"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", row["started_at"])


def test_a_verification_ends_when_its_client_leaves(hub: LocalHub, cli: Program, daemon: Daemon) -> None:
    hub.add_file(REPO, f"{MODEL}.gguf", tiny_gguf())
    assert cli("models", "pull", REPO).code == 0
    os.truncate(daemon.home / "models" / REPO / f"{MODEL}.gguf", 1 << 38)  # holes: long to hash, no disk
    with following(daemon.url, "/v1/models/verify", {"model": MODEL}) as follower:
        next(event for event in iter(follower.event, None) if event["completed"])
        assert is_error(daemon.ask("DELETE", f"/v1/models/{MODEL}"), 409, "in_use")
    deadline = time.monotonic() + 5
    while (reply := daemon.ask("DELETE", f"/v1/models/{MODEL}")).status == 409:
        assert time.monotonic() < deadline, "still being verified for nobody"
    assert reply.status == 204


# Streams in this process: what must be timed


@contextlib.contextmanager
def local(
    workspace: Workspace, *operations: Operation[Any], heartbeat: float = 0.1
) -> Iterator[tuple[str, Server]]:
    """The application in a thread of this process, with more rows and a quick heart."""
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    ready = threading.Event()
    app = build_app(
        workspace, known_by([("127.0.0.1", port)]), operations=(*OPERATIONS, *operations), heartbeat=heartbeat
    )
    server = Server(app, Calls(ready.set))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        assert ready.wait(10)
        yield f"http://127.0.0.1:{port}", server
    finally:
        server.stop()
        thread.join(20)
    assert not thread.is_alive()


def _event(status: Status, pull: str = "p", seq: int = 0, file: str = "f") -> ModelPullEvent:
    return ModelPullEvent(
        status=status,
        file=file,
        completed=seq,
        total=None,
        rate=None,
        eta=None,
        error=None,
        pull=pull,
        seq=seq,
        id="x",
        file_completed=None,
        file_total=None,
        model_files=[],
        proj_file=None,
        downloaded=False,
    )


def row_of(work: Callable[[Workspace, NoRequest], object]) -> Operation[NoRequest]:
    return Operation(
        name="models.try",
        method="POST",
        path="/v1/try",
        request=NoRequest,
        result=Stream(ModelPullEvent),
        level=Level.ADMIN,
        run=work,
        summary="Try",
    )


def test_while_nothing_changes_the_last_event_is_repeated_under_its_number(workspaces: Workspaces) -> None:
    feed = Feed[Event]()
    feed.publish(lambda seq: _event(Status.DOWNLOADING, seq=seq), keep=True)
    feed.publish(lambda seq: _event(Status.DOWNLOADING, seq=seq, file="g"), keep=True)
    with (
        local(workspaces(serves=True), row_of(lambda *_: feed)) as (url, _),
        following(url, "/v1/try", {}, {"Accept": "text/event-stream"}) as follower,
    ):
        first, second, *repeated = [follower.frame() for _ in range(6)]
        assert (first[0], second[0]) == (b"id: 1\n", b"id: 2\n")
        assert repeated == [second] * 4
        feed.publish(lambda seq: _event(Status.CANCELLED, seq=seq), keep=True)
        feed.close()
        assert follower.until("cancelled")["seq"] == 3
        assert follower.frame() == []


def test_the_last_event_is_repeated_every_ten_seconds_by_default(workspaces: Workspaces) -> None:
    app = build_app(workspaces(serves=True), known_by([("127.0.0.1", 1)]))
    assert app._streams.heartbeat == 10


def test_a_pull_is_not_cancelled_by_its_followers_and_other_work_is(workspaces: Workspaces) -> None:
    workspace = workspaces(serves=True)
    begun, ended = threading.Event(), threading.Event()

    def work(pull: Pull) -> Status:
        begun.set()
        ended.wait(20)
        return Status.CANCELLED if pull.is_cancelled() else Status.DOWNLOADED

    def render(progress: Progress, pull: str, seq: int) -> ModelPullEvent:
        return _event(progress.status, pull, seq)

    job = Job(kind="model", target="x", same=None, lock=None, work=work, render=render)
    with local(workspace, row_of(lambda space, _: space.pulls.start(job))) as (url, _):
        with following(url, "/v1/try", {}) as follower:
            pull = str(follower.event()["pull"])
            assert begun.wait(10)
        with following(url, f"/v1/pulls/{pull}") as last:
            ended.set()
            assert last.until(*FINAL)["status"] == "downloaded"


def test_a_follower_that_stops_reading_costs_nothing(workspaces: Workspaces) -> None:
    """50 MB of progress pass it by; what it gets when it reads again is what fits into the sockets."""
    feed, going = Feed[Event](), threading.Event()
    feed.publish(lambda seq: _event(Status.DOWNLOADING, seq=seq), keep=True)
    address: Callable[[str], tuple[str, int]] = lambda url: ("127.0.0.1", urlsplit(url).port or 0)  # noqa: E731
    with local(workspaces(serves=True), row_of(lambda *_: feed)) as (url, _), socket.socket() as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        wire.settimeout(20)
        wire.connect(address(url))
        wire.sendall(head("POST /v1/try", f"Host: {urlsplit(url).netloc}", "Connection: close"))
        unsubscribe = feed.subscribe(going.set)
        for _ in range(50_000):
            feed.publish(lambda seq: _event(Status.DOWNLOADING, seq=seq, file="f" * 1000), keep=False)
        unsubscribe()
        assert going.is_set()
        assert http_ok(url)
        feed.publish(lambda seq: _event(Status.CANCELLED, seq=seq), keep=True)
        feed.close()
        received = sum(map(len, iter(functools.partial(wire.recv, 65_536), b"")))
    assert received < 16_000_000


def http_ok(url: str) -> bool:
    with following(url, "/healthz") as asked:
        return asked.response.status == 200


def test_a_verification_that_the_end_of_the_server_breaks_off_says_so(hub: LocalHub, cli: Program) -> None:
    """Contract: a verify stream ends in ``verified`` or ``failed``."""
    hub.add_file(REPO, f"{MODEL}.gguf", tiny_gguf())
    assert cli("models", "pull", REPO).code == 0
    with serving(cli) as daemon:
        os.truncate(daemon.home / "models" / REPO / f"{MODEL}.gguf", 1 << 38)
        with following(daemon.url, "/v1/models/verify", {"model": MODEL}) as follower:
            next(event for event in iter(follower.event, None) if event["completed"])
            daemon.process.send_signal(signal.SIGTERM)
            lines = follower.response.read().split(b"\n\n")
        assert daemon.stop() == 0
    events = [json.loads(line.removeprefix(b"data: ")) for line in lines if line]
    assert [event["status"] for event in events][-1:] == ["failed"]
    assert events[-1]["error"]["type"] == "unavailable"
    assert tuple(events[-1]) == VerifyEvent.__struct_fields__


# The life of a server


def test_serve_json_tells_how_to_reach_it_and_goes_with_it(cli: Program) -> None:
    with serving(cli) as daemon:
        path = serve_file(daemon.home)
        told = json.loads(path.read_bytes())
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert set(told) == {"url", "pid", "key", "version"}
        assert (told["pid"], told["version"]) == (daemon.process.pid, __version__)
        assert len(told["key"]) >= 40
        assert json.loads(daemon.first_line)["message"] == f"kawai is serving on {told['url']}"
        assert daemon.stop() == 0
        assert list(path.parent.glob("serve.json*")) == []
    with serving(cli) as again:
        assert json.loads(serve_file(again.home).read_bytes())["key"] != told["key"]


def test_one_server_a_home_and_one_a_port(cli: Program, daemon: Daemon, tmp_path: Path) -> None:
    second = cli("serve", "--port", "0", "--json")
    assert (second.code, second.out, second.error["code"]) == (5, "", "already_serving")
    assert daemon.url in second.error["message"]
    assert str(daemon.process.pid) in second.error["message"]
    port = str(urlsplit(daemon.url).port)
    elsewhere = cli("serve", "--port", port, "--json", "--home", str(tmp_path / "other"))
    assert (elsewhere.code, elsewhere.error["code"]) == (5, "port_in_use")
    assert port in elsewhere.error["message"]
    assert not serve_file(tmp_path / "other").exists()
    assert daemon.ask("GET", "/healthz").status == 200


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "192.0.2.1", "example.com", "127.0.0.1.example.com", "", "*"],  # noqa: S104
)
def test_it_binds_loopback_only(kawai: Program, host: str) -> None:
    ended = kawai("serve", "--port", "0", "--host", host, "--json")
    assert (ended.code, ended.out, ended.error["type"]) == (2, "", "invalid_request")
    assert not serve_file(kawai.home / "kawai").exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.2"])
def test_it_answers_at_the_address_that_it_prints(cli: Program, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as trial:
        try:
            trial.bind((host, 0))
        except OSError as error:
            pytest.skip(f"this machine has no {host}: {error}")
    with serving(cli, "--host", host) as daemon:
        assert daemon.ask("GET", "/healthz").status == 200
        listed = cli("pulls", "list", "--json")
        assert (listed.code, listed.out, listed.err) == (0, "[]\n", "")


def test_an_end_by_sigterm_tells_streams_and_leaves_a_partial(big: LocalHub, cli: Program) -> None:
    with serving(cli) as daemon:
        with following(daemon.url, "/v1/models/pull", SOURCE) as follower:
            next(event for event in iter(follower.event, None) if event["completed"])
            daemon.process.send_signal(signal.SIGTERM)
            assert follower.until(*FINAL)["status"] == "cancelled"
            assert follower.frame() == []
        assert daemon.stop() == 0
        assert not serve_file(daemon.home).exists()
    plan = cli("models", "pull", REPO, "--dry-run", "--json").events[0]
    assert not plan["exists"]
    big.throttle = None
    big.clear_requests()
    assert cli("models", "pull", REPO).code == 0
    fetched = sum(each.sent_bytes for each in big.requests if each.server == "cdn" and each.method == "GET")
    assert fetched < BIG_SIZE


def test_a_sigkilled_server_is_succeeded_by_the_next(cli: Program) -> None:
    with serving(cli) as daemon:
        daemon.stop(signal.SIGKILL)
        assert serve_file(daemon.home).exists()
        assert cli("pulls", "list", "--json").out == "[]\n"
        cancelled = cli("pulls", "cancel", "x", "--json")
        assert (cancelled.code, cancelled.error["code"]) == (9, "no_server")
    with serving(cli) as again:
        assert again.ask("GET", "/healthz").status == 200


def _dead(home: Path) -> str:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    return json.dumps(
        {"url": "http://127.0.0.1:9", "pid": gone.pid, "key": "k", "version": "0", "home": str(home)}
    )


STALE: dict[str, Callable[[Path], str]] = {
    "of a dead process": _dead,
    "of another process that has its number": lambda _: json.dumps(
        {"url": "http://127.0.0.1:9", "pid": os.getpid(), "key": "k", "version": "0"}
    ),
    "empty": lambda _: "",
    "cut": lambda _: '{"url": "http://127.0.0',
    "garbage": lambda _: "\0\0\0",
    "of another shape": lambda _: "[1, 2]",
    "of pid 0": lambda _: json.dumps({"url": "http://127.0.0.1:9", "pid": 0, "key": "k", "version": "0"}),
    "of a huge pid": lambda _: json.dumps(
        {"url": "http://127.0.0.1:9", "pid": 2**40, "key": "k", "version": "0"}
    ),
}


@pytest.mark.parametrize("name", STALE)
def test_a_stale_serve_json_is_no_server(kawai: Program, name: str) -> None:
    path = serve_file(kawai.home / "kawai")
    path.parent.mkdir(parents=True)
    path.write_text(STALE[name](kawai.home))
    listed = kawai("models", "ps", "--json")
    assert (listed.code, listed.out) == (0, "[]\n")
    assert "no kawai server" in listed.err
    with serving(kawai) as daemon:
        assert daemon.ask("GET", "/healthz").status == 200


# The commands that ask the server


@pytest.mark.parametrize("args", [("pulls", "list"), ("models", "ps")])
def test_without_a_server_lists_are_empty_and_say_why(kawai: Program, args: tuple[str, ...]) -> None:
    for option, out in (((), ""), (("--json",), "[]\n")):
        ended = kawai(*args, *option)
        assert (ended.code, ended.out) == (0, out)
        assert "kawai serve" in ended.err
    assert kawai(*args, "--quiet").err == ""


@pytest.mark.parametrize("args", [("pulls", "attach", "x"), ("pulls", "cancel", "x")])
def test_without_a_server_the_others_are_9(kawai: Program, args: tuple[str, ...]) -> None:
    ended = kawai(*args, "--json")
    assert (ended.code, ended.out, ended.error["code"]) == (9, "", "no_server")
    assert "kawai serve" in ended.error["hint"]


def test_attach_follows_to_the_end_and_cancel_is_as_over_http(
    big: LocalHub, cli: Program, daemon: Daemon
) -> None:
    with following(daemon.url, "/v1/models/pull", SOURCE) as follower:
        pull = str(follower.event()["pull"])
        listed = cli("pulls", "list")
        assert (listed.code, pull in listed.out, BIG in listed.out) == (0, True, True)
        with cli.start("pulls", "attach", pull, "--json") as attached:
            assert attached.stdout
            assert json.loads(attached.stdout.readline())["seq"] == 1
            big.throttle = None
            events = [json.loads(line) for line in attached.stdout]
            assert attached.wait(20) == 0
        assert (events[-1]["status"], set(events[-1])) == ("downloaded", set(KEYS))
        assert follower.until(*FINAL)["seq"] == events[-1]["seq"]
    people = cli("pulls", "attach", pull)
    assert people.code == 0
    assert people.out.startswith(f"{BIG} is installed: ")


def test_attach_to_a_failed_pull_has_its_exit_code(hub: LocalHub, cli: Program, daemon: Daemon) -> None:
    hub.add_file(REPO, f"{MODEL}.gguf", b"no model".ljust(5000))
    pull = daemon.ask("POST", "/v1/models/pull", SOURCE).events[-1]["pull"]
    assert cli("pulls", "attach", pull, "--json").code == 7
    people = cli("pulls", "attach", pull)
    assert (people.code, people.out) == (7, "")
    assert "error: " in people.err


def test_ctrl_c_on_attach_detaches_and_says_how_to_come_back(
    big: LocalHub, cli: Program, daemon: Daemon
) -> None:
    with following(daemon.url, "/v1/models/pull", SOURCE) as follower:
        pull = str(follower.event()["pull"])
        follower.until("downloading")
        with cli.start("pulls", "attach", pull) as attached:
            assert attached.stdout
            assert attached.stderr
            assert "resolving" in attached.stderr.readline()
            attached.send_signal(signal.SIGINT)
            out, err = attached.communicate(timeout=20)
        assert (attached.returncode, out) == (130, "")
        assert f"kawai pulls attach {pull}" in err
        assert "Traceback" not in err
        (row,) = daemon.ask("GET", "/v1/pulls").json
        assert row["status"] == "downloading"
        cancelled = cli("pulls", "cancel", pull, "--json")
        assert cancelled == (0, "", "")
        assert follower.until(*FINAL)["status"] == "cancelled"
    gone = cli("pulls", "attach", pull)
    assert gone.code == 130
    assert "running the same command again goes on" not in gone.err, "attach does not pull"
    assert big.endpoint


def test_attach_to_a_server_that_dies_is_9(big: LocalHub, cli: Program, daemon: Daemon) -> None:
    with following(daemon.url, "/v1/models/pull", SOURCE) as follower:
        pull = str(follower.event()["pull"])
        with cli.start("pulls", "attach", pull, "--json") as attached:
            assert attached.stdout
            assert attached.stdout.readline()
            daemon.stop(signal.SIGKILL)
            _, err = attached.communicate(timeout=20)
    assert attached.returncode == 9
    assert json.loads(err)["error"]["code"] == "no_server"
    assert big.endpoint


@pytest.mark.parametrize("words", ["../../healthz", "x?force=true", "x#y", "%2e%2e", "", "a b", "\u00e9"])
def test_a_pull_id_is_carried_as_it_is_typed(cli: Program, daemon: Daemon, words: str) -> None:
    assert daemon.ask("GET", f"/v1/pulls/{quote(words, safe='')}").status == 404
    ended = cli("pulls", "cancel", "--json", "--", words)
    assert (ended.code, ended.out, ended.error["type"]) == (3, "", "not_found")


def test_rows_without_an_answer_are_204(server: Server_) -> None:
    rows = [row for row in OPERATIONS if isinstance(row.result, Nothing)]
    assert {row.name for row in rows} == {
        *("models.index", "models.rm", "models.unload", "pulls.cancel", "libs.rm", "tokens.revoke"),
        *("models.protect", "models.unprotect"),
    }
    reply = server.daemon.ask("POST", "/v1/models/index")
    assert (reply.status, reply.body) == (204, b"")
    assert "content-type" not in reply.headers
