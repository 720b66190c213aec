"""The surface against those who mean harm, or only take too much: web pages, crowds, odd addresses."""

import contextlib
import itertools
import json
import os
import re
import resource
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import pytest

from kawai_tools.api.protocol import MOST_CONNECTIONS
from kawai_tools.api.sse import MOST_FOLLOWERS
from kawai_tools.events import FINAL
from kawai_tools.operations.table import OPERATIONS
from kawai_tools.remote.daemon import serve_file
from tests.hub import LocalHub
from tests.program import Daemon, Ended, Program, Reply, serving
from tests.samples import tiny_gguf
from tests.test_api import (
    BIG,
    JSON,
    LIMIT,
    MODEL,
    REPO,
    SOURCE,
    big_gguf,
    connected,
    following,
    head,
    is_error,
    local,
    read_reply,
)
from tests.workspaces import Workspaces

ALL = "0.0.0.0"  # noqa: S104 - given to be refused, or behind tokens
ORIGIN, OTHER = "https://chat.example.org", "http://localhost:3000"
PROC = Path("/proc")
on_linux = pytest.mark.skipif(not (PROC / "net" / "tcp").exists(), reason="only Linux tells who listens")


@pytest.fixture(scope="module", autouse=True)
def _descriptors() -> Iterator[None]:
    """Room for both ends' worth of connections in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def with_a_token(kawai: Program) -> Program:
    """So that a server that asks for tokens makes none."""
    assert kawai("tokens", "create", "--admin").code == 0
    return kawai


def port_of(daemon: Daemon) -> int:
    return urlsplit(daemon.url).port or 0


def send(daemon: Daemon, start: str, *headers: str, body: bytes = b"", host: str = "") -> Reply:
    named = f"Host: {host or urlsplit(daemon.url).netloc}"
    with connected(daemon.url) as wire:
        with contextlib.suppress(ConnectionError):  # answered before all is sent
            wire.sendall(head(start, named, *headers) + body)
        return read_reply(wire, start.partition(" ")[0])


# A hostile page


class Page(NamedTuple):
    """What a page attacks, with what a browser of the operator would send by itself."""

    daemon: Daemon
    cli: Program
    hub: LocalHub
    token: str | None
    changes: dict[str, tuple[str, str, object]]

    def headers(self) -> tuple[str, ...]:
        return (f"Authorization: Bearer {self.token}",) if self.token else ()

    def state(self) -> dict[str, tuple[int, int]]:
        """All files of the home with size and time, but for the log."""
        for _ in range(100):  # a pull that is under way makes files and removes them
            with contextlib.suppress(FileNotFoundError):
                return dict(self._files())
        raise AssertionError("the home never holds still")

    def _files(self) -> Iterator[tuple[str, tuple[int, int]]]:
        for each in self.daemon.home.rglob("*"):
            if each.parent.name != "logs" and each.is_file():
                found = each.stat()
                yield str(each.relative_to(self.daemon.home)), (found.st_size, found.st_mtime_ns)


def changes_of(token_id: str, pull: str) -> dict[str, tuple[str, str, object]]:
    """A request for each row that changes something, which would be carried out if it were honest."""
    asked: dict[str, tuple[str, object]] = {
        "models.index": ("/v1/models/index", None),
        "models.load": ("/v1/models/load", {"model": MODEL}),
        "models.unload": ("/v1/models/unload", {"model": MODEL}),
        "models.pull": ("/v1/models/pull", {"model_url": "me/other-GGUF"}),
        "models.protect": ("/v1/models/protect", {"model": MODEL}),
        "models.unprotect": ("/v1/models/unprotect", {"model": MODEL}),
        "models.rm": (f"/v1/models/{MODEL}", None),
        "models.verify": ("/v1/models/verify", None),
        "models.update": ("/v1/models/update", None),
        "pulls.cancel": (f"/v1/pulls/{pull}", None),
        "libs.pull": ("/v1/libs/pull", None),
        "libs.use": ("/v1/libs/use", {"version": "b1"}),
        "libs.rollback": ("/v1/libs/rollback", None),
        "libs.rm": ("/v1/libs/b1", None),
        "catalog.pull": ("/v1/catalog/pull/Qwen3-0.6B-Q8_0", None),
        "catalog.update": ("/v1/catalog/update", None),
        "tokens.create": ("/v1/tokens", {"role": "admin"}),
        "tokens.revoke": (f"/v1/tokens/{token_id}", None),
    }
    methods = {row.name: row.method for row in OPERATIONS if row.path and row.method != "GET"}
    assert set(asked) == set(methods), "each row that changes something has its attack here"
    return {name: (methods[name], *what) for name, what in asked.items()}


@contextlib.contextmanager
def attacked(root: Path, *, auth: bool) -> Iterator[Page]:
    with LocalHub(root / "hub") as hub:
        for name in (MODEL, "Other-Q8_0"):
            hub.add_file(REPO if name == MODEL else "me/other-GGUF", f"{name}.gguf", tiny_gguf())
        hub.add_file("me/big-GGUF", f"{BIG}.gguf", big_gguf())
        lists = hub.add_plain("list.yaml", b"nothing yet")
        environ = {"HF_ENDPOINT": hub.endpoint, "KAWAI_LIBS_API": hub.libs_api, "KAWAI_CATALOGS": lists}
        cli = Program(root, environ)
        assert cli("models", "pull", REPO).code == 0
        made = cli("tokens", "create", "--admin", "--json").events[0]
        token = str(made["token"]) if auth else None
        hub.throttle = 20_000
        with serving(cli, *(["--auth"] if auth else [])) as daemon:
            bearer = {"Authorization": f"Bearer {token}"}
            with following(daemon.url, "/v1/models/pull", {"model_url": "me/big-GGUF"}, bearer) as pulled:
                pull = str(pulled.until("downloading")["pull"])
                yield Page(daemon, cli, hub, token, changes_of(str(made["id"]), pull))


@pytest.fixture(scope="module", params=[False, True], ids=["auth off", "admin token"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with attacked(tmp_path_factory.mktemp("page"), auth=request.param) as page:
        yield page


FOREIGN = "Origin: http://evil.example"
ATTACKS: dict[str, tuple[tuple[str, ...], str, str, set[int]]] = {
    "foreign origin": ((FOREIGN,), JSON, "", {403}),
    "foreign origin, encrypted": (("Origin: https://evil.example",), JSON, "", {403}),
    "no-cors fetch": ((FOREIGN, "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Site: cross-site"), JSON, "", {403}),
    "null origin of a sandboxed frame": (("Origin: null",), JSON, "", {403}),
    "origin of another port": (("Origin: http://127.0.0.1:1",), JSON, "", {403}),
    "two origins": ((FOREIGN, "Origin: http://{own}"), JSON, "", {403}),
    "rebound name": (("Origin: http://evil.example:{port}",), JSON, "evil.example:{port}", {421}),
    "rebound name, no origin": ((), JSON, "evil.example:{port}", {421}),
    "rebound name, no port": (("Origin: http://evil.example",), JSON, "evil.example", {421}),
    "text form": ((FOREIGN,), "Content-Type: text/plain", "", {403}),
    "urlencoded form": ((FOREIGN,), "Content-Type: application/x-www-form-urlencoded", "", {403}),
    "multipart form": ((FOREIGN,), "Content-Type: multipart/form-data; boundary=x", "", {403}),
    "text form, null origin": (("Origin: null",), "Content-Type: text/plain", "", {403}),
    "text form that hides its origin": ((), "Content-Type: text/plain", "", {415}),
    "urlencoded form that hides its origin": (
        (),
        "Content-Type: application/x-www-form-urlencoded",
        "",
        {415},
    ),
    "multipart form that hides its origin": ((), "Content-Type: multipart/form-data; boundary=x", "", {415}),
    "form that hides what it is": ((), "X-Nothing: x", "", {415}),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_page_changes_nothing(page: Page, name: str) -> None:
    headers, kind, host, refused = ATTACKS[name]
    words = {"own": urlsplit(page.daemon.url).netloc, "port": port_of(page.daemon)}
    before = state_beside_the_pull(page)
    pulls = [(row["pull"], row["status"]) for row in page.daemon.ask("GET", "/v1/pulls").json]
    page.hub.clear_requests()
    for method, path, body in page.changes.values():
        data = b"{}" if body is None else json.dumps(body).encode()
        sent = [*(each.format(**words) for each in headers), kind, f"Content-Length: {len(data)}"]
        reply = send(
            page.daemon, f"{method} {path}", *sent, *page.headers(), body=data, host=host.format(**words)
        )
        assert reply.status in refused, (method, path, reply)
        assert not [each for each in reply.headers if each.startswith("access-control")]
    after = [(row["pull"], row["status"]) for row in page.daemon.ask("GET", "/v1/pulls").json]
    assert after == pulls
    assert [status for _, status in pulls] == ["downloading"]
    assert state_beside_the_pull(page) == before
    assert [each for each in page.hub.requests if "big" not in each.path.lower()] == []


def state_beside_the_pull(page: Page) -> dict[str, tuple[int, int]]:
    return {
        name: what
        for name, what in page.state().items()
        if ".partial" not in name and "big-GGUF" not in name and not name.startswith("run/")
    }


def test_a_form_without_fields_from_elsewhere_changes_nothing(page: Page) -> None:
    before = state_beside_the_pull(page)
    for method, path, _ in page.changes.values():
        for origin in (FOREIGN, "Origin: null"):
            reply = send(page.daemon, f"{method} {path}", origin, "Content-Length: 0", *page.headers())
            assert is_error(reply, 403, "foreign_origin")
        assert is_error(
            send(page.daemon, f"{method} {path}", *page.headers(), host="evil.example"), 421, "wrong_host"
        )
    assert state_beside_the_pull(page) == before


def test_a_hostile_page_is_not_told_that_it_may(page: Page) -> None:
    for path in ("/v1/models", "/v1/models/pull", "/healthz", "/v1/tokens"):
        wish = "Access-Control-Request-Method: POST"
        for origin in (FOREIGN, "Origin: null", f"Origin: http://{'a' * 2000}.example"):
            reply = send(page.daemon, f"OPTIONS {path}", origin, wish)
            assert is_error(reply, 403, "foreign_origin")
            assert not [each for each in reply.headers if each.startswith("access-control")]


def test_the_same_requests_are_carried_out_when_they_are_honest(tmp_path: Path) -> None:
    """The control: what was refused above was refused for its sender."""
    with attacked(tmp_path, auth=True) as page:
        own = f"Origin: {page.daemon.url}"
        before, statuses = state_beside_the_pull(page), dict[str, int]()
        page.hub.throttle = None
        for name in ("catalog.update", "models.verify", "models.rm", "pulls.cancel", "tokens.create"):
            method, path, body = page.changes[name]
            data = b"{}" if body is None and method == "POST" else b""
            data = json.dumps(body).encode() if body is not None else data
            typed = [JSON, f"Content-Length: {len(data)}"] if data else []
            statuses[name] = send(
                page.daemon, f"{method} {path}", own, *typed, *page.headers(), body=data
            ).status
        assert statuses == {
            "catalog.update": 200,
            "models.verify": 200,
            "models.rm": 204,
            "pulls.cancel": 204,
            "tokens.create": 201,
        }
        assert state_beside_the_pull(page) != before


# Pages that may


@pytest.fixture(scope="module")
def open_to_pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    root = tmp_path_factory.mktemp("cors")
    with LocalHub(root / "hub") as hub:
        hub.add_file(REPO, f"{MODEL}.gguf", tiny_gguf())
        origins = f"{ORIGIN},{OTHER.upper()}"
        cli = Program(root, {"HF_ENDPOINT": hub.endpoint, "KAWAI_ALLOW_ORIGINS": origins})
        assert cli("models", "pull", REPO).code == 0
        with serving(cli) as daemon:
            yield daemon


PATHS = sorted({row.path or "" for row in OPERATIONS if row.path} | {"/healthz", "/openapi.json", "/nowhere"})


@pytest.mark.parametrize("origin", [ORIGIN, OTHER, ORIGIN.upper()])
def test_a_preflight_of_a_configured_page_is_answered_on_every_path(
    open_to_pages: Daemon, origin: str
) -> None:
    for path in PATHS:
        wish = "Access-Control-Request-Method: DELETE", "Access-Control-Request-Headers: content-type"
        reply = send(open_to_pages, f"OPTIONS {path}", f"Origin: {origin}", *wish)
        assert (reply.status, reply.body) == (204, b""), path
        assert reply.headers["access-control-allow-origin"].lower() == origin.lower()
        assert "origin" in reply.headers["vary"].lower()
        methods = set(reply.headers["access-control-allow-methods"].split(", "))
        assert methods >= {"GET", "POST", "DELETE"}
        allowed = reply.headers["access-control-allow-headers"].lower().split(", ")
        assert set(allowed) >= {"authorization", "content-type"}
        assert "*" not in {*methods, *allowed}
        assert "access-control-allow-credentials" not in reply.headers


BODY = (JSON, "Content-Length: 2")
ANSWERS: dict[str, tuple[str, tuple[str, ...], bytes, int]] = {
    "payload": ("GET /v1/models", (), b"", 200),
    "head": ("HEAD /v1/models", (), b"", 200),
    "at hand": ("GET /v1/catalog?search=zzz", (), b"", 200),
    "health": ("GET /healthz", (), b"", 200),
    "description": ("GET /openapi.json", (), b"", 200),
    "nothing": ("POST /v1/models/index", (), b"", 204),
    "stream": ("POST /v1/models/verify", BODY, b"{}", 200),
    "no such model": ("GET /v1/models/nope", (), b"", 404),
    "no such route": ("GET /nowhere", (), b"", 404),
    "wrong method": ("PATCH /v1/models", (), b"", 405),
    "plain options": ("OPTIONS /v1/models", (), b"", 405),
    "wrong body": ("POST /v1/models/verify", (JSON, "Content-Length: 2"), b"[]", 400),
    "wrong query": ("GET /v1/models?x=1", (), b"", 400),
    "body that is not JSON": ("POST /v1/models/verify", ("Content-Length: 2",), b"{}", 415),
    "chunks that are not JSON": (
        "POST /v1/models/verify",
        ("Transfer-Encoding: chunked",),
        b"2\r\n{}\r\n0\r\n\r\n",
        415,
    ),
    "body too large": ("POST /v1/models/pull", (JSON, f"Content-Length: {LIMIT + 1}"), b"", 413),
    "chunk too large": (
        "POST /v1/models/pull",
        (JSON, "Transfer-Encoding: chunked"),
        b"%x\r\n" % (LIMIT + 1) + b" " * (LIMIT + 1) + b"\r\n",
        413,
    ),
    "framing twice": (
        "POST /v1/models/verify",
        (JSON, "Content-Length: 5", "Transfer-Encoding: chunked"),
        b"0\r\n\r\n",
        400,
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_configured_page_may_read_every_answer(open_to_pages: Daemon, name: str) -> None:
    start, headers, body, status = ANSWERS[name]
    for origin in (ORIGIN, OTHER):
        reply = send(open_to_pages, start, f"Origin: {origin}", *headers, body=body)
        assert reply.status == status, reply
        assert reply.headers.get("access-control-allow-origin") == origin
        assert reply.headers.get("vary") == "Origin"


@pytest.mark.parametrize("name", ANSWERS)
def test_no_answer_is_for_other_pages(open_to_pages: Daemon, name: str) -> None:
    start, headers, body, status = ANSWERS[name]
    for origin in (f"{ORIGIN}.evil.example", f"{ORIGIN}:444", "http://chat.example.org", "null"):
        reply = send(open_to_pages, start, f"Origin: {origin}", *headers, body=body)
        assert (reply.status, list(reply.headers).count("access-control-allow-origin")) == (403, 0)
    without = send(open_to_pages, start, *headers, body=body)
    assert without.status == status
    assert not [each for each in without.headers if each.startswith("access-control")]


def test_a_configured_page_needs_this_servers_name_and_one_origin(open_to_pages: Daemon) -> None:
    start, wish = "OPTIONS /v1/models", "Access-Control-Request-Method: POST"
    assert send(open_to_pages, start, f"Origin: {ORIGIN}", wish, host="evil.example").status == 421
    for two in ((FOREIGN, f"Origin: {ORIGIN}"), (f"Origin: {ORIGIN}", f"Origin: {OTHER}")):
        reply = send(open_to_pages, start, *two, wish)
        assert is_error(reply, 403, "foreign_origin")


def test_a_preflight_needs_no_token_and_a_refusal_can_be_read(kawai: Program) -> None:
    """Browsers send no credentials with a preflight (the Fetch standard, 4.8)."""
    kawai.environ["KAWAI_ALLOW_ORIGINS"] = ORIGIN
    with serving(with_a_token(kawai), "--strict") as daemon:
        wish = "Access-Control-Request-Method: POST"
        assert send(daemon, "OPTIONS /v1/models/pull", f"Origin: {ORIGIN}", wish).status == 204
        for headers, status in (((), 401), (BODY, 401), (("Authorization: Bearer x",), 401)):
            reply = send(daemon, "POST /v1/models/index", f"Origin: {ORIGIN}", *headers)
            assert (reply.status, reply.headers.get("access-control-allow-origin")) == (status, ORIGIN)


@pytest.mark.parametrize(
    "origins", ["*", "null", "chat.example.org", "https://*.example.org", f"{ORIGIN}/", "ftp://x", "https://"]
)
def test_what_is_no_origin_is_refused_at_the_start(kawai: Program, origins: str) -> None:
    ended = refused(kawai, KAWAI_ALLOW_ORIGINS=origins)
    assert ended.error["code"] == "invalid_config"
    assert "KAWAI_ALLOW_ORIGINS" in ended.error["message"]


# Names


class Name(NamedTuple):
    given: str
    known: tuple[str, ...]
    unknown: tuple[str, ...] = ()


NAMES = [
    Name("models.example.org", ("models.example.org", "models.example.org:{port}", "MODELS.example.ORG")),
    Name("models.example.org:8443", ("models.example.org:8443",)),
    Name("workstation", ("workstation", "workstation:{port}")),
    Name("2001:db8::1", ("[2001:db8::1]", "[2001:db8::1]:{port}")),
    Name("[2001:db8::2]", ("[2001:db8::2]", "[2001:db8::2]:{port}")),
    Name("[2001:db8::3]:8443", ("[2001:db8::3]:8443",)),
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.given)
def test_a_given_name_is_this_server_plain_and_behind_a_proxy(kawai: Program, name: Name) -> None:
    with serving(kawai, "--allow-host", name.given, "--allow-host", "second.example") as daemon:
        port = port_of(daemon)
        for known in (*name.known, "second.example", "127.0.0.1:{port}", "localhost:{port}"):
            host = known.format(port=port)
            assert send(daemon, "GET /healthz", host=host).status == 200, host
            assert send(daemon, "GET /healthz", f"Origin: http://{host}", host=host).status == 200
        for known in name.known:
            host = known.format(port=port)
            if host.lower() == name.given or host == f"[{name.given}]":
                assert send(daemon, "GET /healthz", f"Origin: https://{host}", host=host).status == 200
        for host in ("models.example.org.evil.example", "example.org", f"{name.given}:1", "second.example:1"):
            assert send(daemon, "GET /healthz", host=host).status == 421, host
        own = f"127.0.0.1:{port}"
        assert send(daemon, "GET /healthz", f"Origin: https://{own}", host=own).status == 403


def test_several_names_with_one_flag_and_from_the_environment(kawai: Program) -> None:
    kawai.environ["KAWAI_ALLOW_HOSTS"] = "a.example, b.example"
    with serving(kawai) as daemon:
        for host in ("a.example", "b.example"):
            assert send(daemon, "GET /healthz", host=host).status == 200
    with serving(kawai, "--allow-host", "c.example") as daemon:
        assert send(daemon, "GET /healthz", host="c.example").status == 200
        assert send(daemon, "GET /healthz", host="a.example").status == 421


@pytest.mark.parametrize("name", ["*", "http://x", "x/y", "a b", "x@y", "*.example.org", ".", ""])
def test_what_is_no_name_is_refused_at_the_start(kawai: Program, name: str) -> None:
    ended = refused(kawai, "--allow-host", name)
    assert "--allow-host must" in ended.error["message"], "the flag as it is typed"


# Where it listens


EVERYWHERE = (
    ALL,
    "::",
    "[::]",
    "0",
    "192.0.2.1",
    "fe80::1",
    "example.com",
    "127.0.0.1.nip.io",
    "*",
    "",
)
NAMED = ("--allow-host", "models.example.org")


def refused(kawai: Program, *args: str, **environ: str) -> Ended:
    kawai.environ |= environ
    with kawai.start("serve", "--port", "0", "--json", *args) as process:
        try:
            out, err = process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail(f"it serves with {args} {environ}")
    ended = Ended(process.returncode, out, err)
    assert (ended.code, ended.out, ended.error["type"]) == (2, "", "invalid_request"), ended
    assert not serve_file(kawai.home / "kawai").exists()
    assert not (kawai.home / "kawai" / "run" / "admin.token").exists()
    return ended


@pytest.mark.parametrize("host", EVERYWHERE)
def test_beyond_this_machine_it_wants_tokens_and_a_name(kawai: Program, host: str) -> None:
    for missing in ((), NAMED, ("--auth",), ("--insecure",), ("--strict",)):
        ended = refused(kawai, "--host", host, *missing)
        if host:
            assert ("--auth" if not missing or missing is NAMED else "--allow-host") in ended.error["hint"]
    assert refused(kawai, KAWAI_HOST=host or " ")


@pytest.mark.parametrize("host", ["198.51.100.7", "a..b", "a" * 64 + ".example", "no such name", "[::1"])
def test_an_address_that_this_machine_does_not_have_is_said(kawai: Program, host: str) -> None:
    ended = refused(kawai, "--host", host, "--auth", *NAMED)
    assert host in ended.error["message"]
    assert "Traceback" not in ended.err


def own_addresses() -> Iterator[str]:
    """Where this machine is reached from others, none over the network: the kernel's own table."""
    with contextlib.suppress(OSError):
        lines = (PROC / "net" / "fib_trie").read_text().splitlines()
        for before, line in itertools.pairwise(lines):
            if "host LOCAL" in line and (found := re.search(r"\d+\.\d+\.\d+\.\d+", before)):
                yield found[0]


BEYOND = [(ALL, "127.0.0.1"), ("::", "[::1]")]


@pytest.mark.parametrize(("host", "near"), BEYOND)
def test_with_tokens_and_a_name_it_listens_everywhere(kawai: Program, host: str, near: str) -> None:
    with serving(with_a_token(kawai), "--host", host, "--auth", *NAMED) as daemon:
        port = port_of(daemon)
        assert daemon.announced.url == f"http://{near}:{port}"
        assert kawai("pulls", "list", "--json").out == "[]\n"
        for known in ("models.example.org", f"models.example.org:{port}", f"localhost:{port}"):
            assert send(daemon, "GET /healthz", host=known).status == 200
        for unknown in (f"{ALL}:{port}", f"[::]:{port}", ALL, f"0:{port}", f"[0::0]:{port}"):
            assert is_error(send(daemon, "GET /healthz", host=unknown), 421, "wrong_host")
        assert send(daemon, "POST /v1/models/index").status == 401


def test_it_listens_on_an_address_of_this_machine(kawai: Program) -> None:
    address = next((each for each in own_addresses() if not each.startswith("127.")), None)
    if address is None:
        pytest.skip("this machine is alone")
    refused(kawai, "--host", address, *NAMED)
    with serving(with_a_token(kawai), "--host", address, "--auth", *NAMED) as daemon:
        assert daemon.url == f"http://{address}:{port_of(daemon)}"
        assert daemon.ask("GET", "/healthz").status == 200
        assert send(daemon, "GET /healthz", host="models.example.org").status == 200
        assert kawai("pulls", "list", "--json").out == "[]\n"


def test_insecure_is_said_at_every_start_even_if_quiet(kawai: Program) -> None:
    for options in ((), (), ("--quiet",)):
        with kawai.start(
            "serve",
            "--port",
            "0",
            "--host",
            ALL,
            "--insecure",
            *NAMED,
            *options,
        ) as process:
            assert process.stderr
            lines = [process.stderr.readline() for _ in range(1 if options else 2)]
            process.send_signal(signal.SIGTERM)
            rest = process.stderr.read()
        assert process.returncode == 0
        assert "--insecure" in lines[-1]
        assert "nobody is asked for a token" in lines[-1]
        assert ("models are run by" in rest) == (not options)
        assert bool(rest) == (not options)


def test_insecure_beside_tokens_is_no_danger(kawai: Program) -> None:
    with serving(with_a_token(kawai), "--insecure", "--host", ALL, "--auth", *NAMED) as daemon:
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.stderr
        assert "insecure" not in daemon.first_line + daemon.process.stderr.read()


# Who else listens


LISTENS = """
import socket, sys
name, address, port = sys.argv[1:]
open("/proc/self/comm", "w").write(name)
listener = socket.create_server((address, int(port)))
print(listener.getsockname()[1], flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def listening(name: str, address: str = "127.0.0.1", port: int = 0) -> Iterator[tuple[int, int]]:
    """Another program that listens; its process id and port."""
    command = [sys.executable, "-c", LISTENS, name, address, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        yield other.pid, int(other.stdout.readline())
        other.communicate()


@on_linux
@pytest.mark.parametrize("address", ["127.0.0.1", ALL])
def test_a_port_in_use_names_its_holder(kawai: Program, address: str) -> None:
    with listening("gatekeeper", address) as (pid, port):
        ended = kawai("serve", "--port", str(port), "--json")
        assert (ended.code, ended.error["code"]) == (5, "port_in_use")
        assert f"gatekeeper (pid {pid})" in ended.error["message"]
        assert str(port) in ended.error["message"]
        assert "--port" in ended.error["hint"]


@on_linux
def test_of_two_on_one_port_the_one_that_is_in_the_way_is_named(kawai: Program) -> None:
    with (
        listening("elsewhere", "127.0.0.2") as (_, port),
        listening("inthe-way", "127.0.0.1", port) as (pid, _),
    ):
        assert f"inthe-way (pid {pid})" in kawai("serve", "--port", str(port), "--json").error["message"]
    with listening("inthe-way", "127.0.0.1") as (pid, port), listening("elsewhere", "127.0.0.2", port):
        assert f"inthe-way (pid {pid})" in kawai("serve", "--port", str(port), "--json").error["message"]


@on_linux
def test_the_name_of_the_holder_cannot_drive_the_terminal(kawai: Program) -> None:
    with listening("a\x1b[31m\nb") as (pid, port):
        ended = kawai("serve", "--port", str(port))
    assert ended.code == 5
    assert "\x1b" not in ended.err
    assert str(pid) in ended.err
    assert len(ended.err.splitlines()) == 2


@on_linux
def test_a_kawai_of_another_home_is_named_too(kawai: Program, tmp_path: Path) -> None:
    with serving(kawai) as daemon:
        port = str(port_of(daemon))
        ended = kawai("serve", "--port", port, "--json", "--home", str(tmp_path / "other"))
        assert (ended.code, ended.error["code"]) == (5, "port_in_use")
        assert f"(pid {daemon.process.pid})" in ended.error["message"]


def test_a_second_server_of_a_home_is_told_where_the_first_is(kawai: Program) -> None:
    with serving(with_a_token(kawai), "--host", ALL, "--strict", *NAMED) as daemon:
        for args in ((), ("--port", str(port_of(daemon))), ("--auth", "--port", "0")):
            ended = kawai("serve", "--json", *args)
            assert (ended.code, ended.out, ended.error["code"]) == (5, "", "already_serving")
            assert f"{daemon.url} (pid {daemon.process.pid})" in ended.error["message"]
        assert daemon.ask("GET", "/healthz").status == 200
        assert serve_file(daemon.home).exists()


def _unprivileged() -> Sequence[str]:
    return ("setpriv", "--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service")


def test_a_port_that_only_root_may_take_is_said(kawai: Program) -> None:
    first = PROC / "sys" / "net" / "ipv4" / "ip_unprivileged_port_start"
    if not first.exists() or int(first.read_text()) < 2:
        pytest.skip("every port is free to all here")
    command = [sys.executable, "-m", "kawai_tools", "serve", "--port", "1", "--json"]
    if os.geteuid() == 0:
        command = [*_unprivileged(), *command]
        if subprocess.run([*_unprivileged(), "true"], check=False, capture_output=True).returncode:
            pytest.skip("this root may not give up what it may")
    done = subprocess.run(command, env=kawai.environ, capture_output=True, text=True, timeout=60, check=False)
    ended = Ended(done.returncode, done.stdout, done.stderr)
    assert (ended.code, ended.out, ended.error["code"]) == (2, "", "invalid_config")
    assert "port 1: Permission denied" in ended.error["message"]
    assert not serve_file(kawai.home / "kawai").exists()


# Crowds


def awaited(daemon: Daemon, met: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether it is so in time; the server works on meanwhile."""
    until = time.monotonic() + seconds
    while not met():
        if time.monotonic() > until:
            return False
        assert daemon.ask("GET", "/healthz").status in {200, 503}
    return True


def descriptors(daemon: Daemon) -> int:
    return len(list((PROC / str(daemon.process.pid) / "fd").iterdir()))


def resident(daemon: Daemon) -> int:
    """Bytes of memory that it has in use."""
    lines = (PROC / str(daemon.process.pid) / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024


def is_closed(wire: socket.socket) -> bool:
    try:
        return wire.recv(65_536) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def answered(wire: socket.socket) -> bytes:
    """All that comes before the end; empty for a connection that is reset or silent."""
    received = b""
    with contextlib.suppress(ConnectionError, TimeoutError):
        for piece in iter(lambda: wire.recv(65_536), b""):
            received += piece
    return received


@pytest.mark.slow
def test_more_connections_than_there_may_be(kawai: Program) -> None:
    with serving(kawai) as daemon, contextlib.ExitStack() as stack:
        before = descriptors(daemon) if PROC.exists() else 0
        host = f"Host: {urlsplit(daemon.url).netloc}"
        open_ = [stack.enter_context(connected(daemon.url)) for _ in range(500)]
        begin = time.monotonic()
        for _ in range(20):
            assert daemon.ask("GET", "/healthz").status == 200
        assert time.monotonic() - begin < 20 * 0.5, "healthz beside 500 idle connections"
        open_ += [stack.enter_context(connected(daemon.url)) for _ in range(MOST_CONNECTIONS - 500)]
        surplus = [stack.enter_context(connected(daemon.url, 5)) for _ in range(100)]
        for wire in surplus:
            with contextlib.suppress(ConnectionError):
                wire.sendall(head("GET /healthz", host))
        refusals = [answered(wire) for wire in surplus]
        assert all(each == b"" or each.startswith(b"HTTP/1.1 503 ") for each in refusals)
        told = [json.loads(each.partition(b"\r\n\r\n")[2])["error"] for each in refusals if each]
        assert len(told) > 50
        assert {(each["code"], each["type"]) for each in told} == {("too_many", "unavailable")}
        spared = open_.pop()
        spared.sendall(head("GET /healthz", host, "Connection: close"))
        assert answered(spared).startswith(b"HTTP/1.1 200 "), "one that was there before is served"
        until = time.monotonic() + 20
        left = set(open_)
        with selectors.DefaultSelector() as watched:
            for wire in open_:
                watched.register(wire, selectors.EVENT_READ)
            while left and (rest := until - time.monotonic()) > 0:
                for key, _ in watched.select(rest):
                    watched.unregister(key.fileobj)
                    left.discard(cast("socket.socket", key.fileobj))
                    assert is_closed(cast("socket.socket", key.fileobj))
        assert not left, "idle connections are still open after 20 s"
        assert daemon.ask("GET", "/healthz").status == 200
        assert not PROC.exists() or awaited(daemon, lambda: descriptors(daemon) < before + 10)


@pytest.fixture
def slow_pull(hub: LocalHub, daemon: Daemon) -> Iterator[tuple[Daemon, LocalHub, str]]:
    """A pull that ends when it is let go."""
    hub.add_file(REPO, f"{BIG}.gguf", big_gguf())
    hub.add_file("me/tiny-too-GGUF", f"{MODEL}.gguf", tiny_gguf())
    hub.throttle = 20_000
    with following(daemon.url, "/v1/models/pull", SOURCE) as first:
        yield daemon, hub, str(first.until("downloading")["pull"])


def follow(daemon: Daemon, pull: str, *headers: str) -> socket.socket:
    """Begin to follow, reading nothing yet."""
    address = urlsplit(daemon.url)
    wire = socket.create_connection((address.hostname, address.port), 20)
    start = head(f"GET /v1/pulls/{pull}", f"Host: {address.netloc}", "Connection: close", *headers)
    wire.sendall(start)
    return wire


def reset(wire: socket.socket) -> None:
    """Leave as a process that is killed with unread bytes leaves."""
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.close()


@pytest.mark.slow
def test_a_crowd_of_followers(slow_pull: tuple[Daemon, LocalHub, str]) -> None:
    """As many as there may be; one more is refused; some leave; all others are told the end."""
    daemon, hub, pull = slow_pull
    threads = len(list((PROC / str(daemon.process.pid) / "task").iterdir())) if PROC.exists() else 0
    wires = [follow(daemon, pull) for _ in range(MOST_FOLLOWERS - 1)]
    with contextlib.ExitStack() as stack:
        for wire in wires:
            stack.callback(wire.close)
            assert wire.recv(12) == b"HTTP/1.1 200"
        for method, path, body in (
            ("GET", f"/v1/pulls/{pull}", None),
            ("POST", "/v1/models/pull", SOURCE),
            ("POST", "/v1/models/verify", {}),
        ):
            assert is_error(daemon.ask(method, path, body), 503, "too_many")
        assert daemon.ask("GET", "/v1/models").status == 200
        if PROC.exists():
            assert len(list((PROC / str(daemon.process.pid) / "task").iterdir())) < threads + 40
        for wire in wires[:100]:
            reset(wire)
        (row,) = daemon.ask("GET", "/v1/pulls").json
        assert (row["pull"], row["status"]) == (pull, "downloading")
        assert awaited(daemon, lambda: _may_follow(daemon, pull))
        hub.throttle = None
        for wire in wires[100:]:
            last = answered(wire).rpartition(b"data: ")[2]
            assert b'"status":"downloaded"' in last, last[-500:]
    assert daemon.ask("GET", f"/v1/models/{BIG}").status == 200


def _may_follow(daemon: Daemon, pull: str) -> bool:
    with contextlib.closing(follow(daemon, pull)) as wire:
        return wire.recv(12) == b"HTTP/1.1 200"


def test_what_is_refused_for_too_many_followers_is_not_begun(slow_pull: tuple[Daemon, LocalHub, str]) -> None:
    daemon, _, pull = slow_pull
    with contextlib.ExitStack() as stack:
        for wire in [follow(daemon, pull) for _ in range(MOST_FOLLOWERS - 1)]:
            stack.callback(wire.close)
            assert wire.recv(12) == b"HTTP/1.1 200"
        reply = daemon.ask("POST", "/v1/models/pull", {"model_url": "me/tiny-too-GGUF"})
        assert is_error(reply, 503, "too_many")
        assert [row["pull"] for row in daemon.ask("GET", "/v1/pulls").json] == [pull]


def test_followers_that_stop_reading_hurt_nobody(slow_pull: tuple[Daemon, LocalHub, str]) -> None:
    daemon, hub, pull = slow_pull
    stopped = [follow(daemon, pull) for _ in range(100)]
    with contextlib.ExitStack() as stack:
        for wire in stopped:
            stack.callback(wire.close)
        with following(daemon.url, f"/v1/pulls/{pull}") as reader:
            for _ in range(4):
                reader.event()
            hub.throttle = None
            assert reader.until(*FINAL)["status"] == "downloaded"
        assert b'"status":"downloaded"' in answered(stopped[-1])


def test_one_that_asks_and_never_reads_is_not_listened_to(kawai: Program) -> None:
    """Its requests wait in its own system: the server holds one answer, not thousands."""
    with serving(kawai) as daemon, connected(daemon.url, 2) as wire:
        assert daemon.ask("GET", "/v1/catalog").status == 200
        before = resident(daemon) if PROC.exists() else 0
        asked = head("GET /v1/catalog", f"Host: {urlsplit(daemon.url).netloc}") * 100
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 64 << 20:
                sent += wire.send(asked)
        assert sent < 64 << 20
        assert daemon.ask("GET", "/healthz").status == 200
        assert not PROC.exists() or resident(daemon) - before < 16 << 20


# Leaks


def refuse(daemon: Daemon) -> None:
    assert send(daemon, "GET /v1/models", host="evil.example").status == 421
    announced = f"Content-Length: {LIMIT + 1}"
    assert send(daemon, "POST /v1/models/pull", JSON, announced).status == 413
    with connected(daemon.url) as wire:
        wire.sendall(b"nonsense\r\n\r\n")
        assert answered(wire).startswith(b"HTTP/1.1 400 ")


def break_off(daemon: Daemon) -> None:
    host = f"Host: {urlsplit(daemon.url).netloc}"
    for size, part in (("Content-Length: 100", b"{"), ("Transfer-Encoding: chunked", b"40\r\n{")):
        for leave in (socket.socket.close, reset):
            with connected(daemon.url) as wire:
                wire.sendall(head("POST /v1/models/pull", host, JSON, size) + part)
                leave(wire)


def _leave(daemon: Daemon, pull: str) -> None:
    for leave in (socket.socket.close, reset):
        wire = follow(daemon, pull)
        assert wire.recv(12) == b"HTTP/1.1 200"
        leave(wire)


def _verify_and_leave(daemon: Daemon) -> None:
    host = f"Host: {urlsplit(daemon.url).netloc}"
    with connected(daemon.url) as wire:
        wire.sendall(head("POST /v1/models/verify", host))
        assert wire.recv(12) == b"HTTP/1.1 200"
        reset(wire)


LEAVES: dict[str, Callable[[Daemon, str], None]] = {
    "refused": lambda daemon, _: refuse(daemon),
    "broken off in the body": lambda daemon, _: break_off(daemon),
    "followers": _leave,
    "verifications": lambda daemon, _: _verify_and_leave(daemon),
}


@on_linux
@pytest.mark.slow
def test_nothing_is_left_of_hundreds_that_have_gone(slow_pull: tuple[Daemon, LocalHub, str]) -> None:
    daemon, _, pull = slow_pull
    assert daemon.program("models", "pull", "me/tiny-too-GGUF").code == 0
    for leave in LEAVES.values():
        leave(daemon, pull)
    assert awaited(daemon, lambda: _is_calm(daemon))
    before = descriptors(daemon)
    left = {}
    for name, leave in LEAVES.items():
        for _ in range(100):
            leave(daemon, pull)
        awaited(daemon, lambda: descriptors(daemon) <= before + 5, 5)
        left[name] = descriptors(daemon) - before
    assert max(left.values()) <= 5, left
    log = daemon.home / "logs" / "kawai.log"
    assert not log.exists() or "Traceback" not in log.read_text()
    (row,) = daemon.ask("GET", "/v1/pulls").json
    assert row["status"] == "downloading"


def _is_calm(daemon: Daemon) -> bool:
    """Whether no connection but that of the first follower is open."""
    links = [
        str(each.readlink())
        for each in (PROC / str(daemon.process.pid) / "fd").iterdir()
        if each.is_symlink()
    ]
    return len([each for each in links if each.startswith("socket:")]) < 20


# What waits elsewhere


def test_who_waits_for_a_silent_server_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        api = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with (
            serving(Program(tmp_path, {"KAWAI_LIBS_API": api})) as daemon,
            contextlib.ExitStack() as waiting,
        ):
            own = f"Host: {urlsplit(daemon.url).netloc}"
            for _ in range(40):
                wire = waiting.enter_context(connected(daemon.url))
                wire.sendall(head("GET /v1/libs/available", own))
            accepted, _ = silent.accept()
            begin = time.monotonic()
            assert daemon.ask("GET", "/v1/models").status == 200
            assert daemon.ask("GET", "/readyz").status == 200
            assert time.monotonic() - begin < 3
            accepted.close()


@pytest.mark.parametrize("line", ["Authorization : Bearer kawai_CANARY", "Bearer kawai_CANARY"])
def test_a_broken_header_line_is_not_repeated(kawai: Program, line: str) -> None:
    with serving(kawai) as daemon:
        reply = send(daemon, "GET /v1/models", line)
        assert reply.status == 400
        assert b"CANARY" not in reply.body
        assert b"bytearray" not in reply.body


@pytest.mark.parametrize(
    ("site", "mode", "path", "status"),
    [
        ("cross-site", "no-cors", "/v1/models", 403),
        ("cross-site", "no-cors", "/ui/", 403),
        ("same-site", "cors", "/v1/models", 403),
        ("cross-site", "navigate", "/v1/doctor", 403),
        ("same-site", "navigate", "/uid", 403),
        ("cross-site", "navigate", "/ui/", 200),
        ("cross-site", "navigate", "/ui", 307),
        ("same-origin", "cors", "/v1/models", 200),
        ("none", "navigate", "/v1/models", 200),
    ],
)
def test_pages_of_elsewhere_ask_for_nothing_but_may_link_to_the_page(
    kawai: Program, site: str, mode: str, path: str, status: int
) -> None:
    """Browsers leave Origin out of images and links, and say where the page is from by Sec-Fetch-Site."""
    with serving(kawai) as daemon:
        sent = (f"Sec-Fetch-Site: {site}", f"Sec-Fetch-Mode: {mode}")
        assert send(daemon, f"GET {path}", *sent).status == status


def exhaust(step: Callable[[], object]) -> None:
    """Do it again and again, until that fails."""
    while True:
        step()


def test_who_reads_nothing_does_not_stay(workspaces: Workspaces, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kawai_tools.api.protocol.UNREAD", 0.5)
    with local(workspaces(serves=True)) as (url, _):
        address = urlsplit(url)
        with socket.socket() as wire:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.connect((address.hostname, address.port))
            wire.settimeout(10)
            asked = head("GET /v1/catalog", f"Host: {address.netloc}")
            with pytest.raises(ConnectionError):
                exhaust(lambda: wire.sendall(asked))
