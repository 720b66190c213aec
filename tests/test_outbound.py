"""The way out: who gets a credential, which redirects are followed, proxies, certificates, offline."""

import contextlib
import http.client
import http.server
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlsplit

import pytest

from kawai_tools.errors import BadRedirect, HostNotAllowed
from kawai_tools.transfer.egress import Address, Egress, Hop, Origin, origin_of, resolve
from kawai_tools.transfer.outbound import Route
from tests.hub import Fault, LocalHub
from tests.program import Daemon, Program, serving
from tests.samples import tiny_gguf
from tests.workspaces import Workspaces

FILE = tiny_gguf()
TOKEN = "hf_canary"
BEARER = f"Bearer {TOKEN}"


def shown_to(hub: LocalHub, server: str) -> set[str | None]:
    """Every ``Authorization`` that a server was sent."""
    return {each.headers.get("authorization") for each in hub.requests if each.server == server}


def last_error(cli: Program, *args: str) -> tuple[int, dict[str, str]]:
    """Exit code and error of a pull, refused or failed."""
    ended = cli("models", "pull", *args, "--json")
    events: list[Any] = ended.events
    return ended.code, events[-1]["error"] if events else ended.error


# Credentials


@pytest.fixture
def gated(hub: LocalHub) -> LocalHub:
    hub.add_file("me/gated", "gated.gguf", FILE)
    hub.gate("me/gated")
    hub.add_token(TOKEN, accepts={"me/gated"})
    return hub


def test_the_token_stays_with_the_hub(cli: Program, gated: LocalHub) -> None:
    assert cli("models", "pull", "me/gated", HF_TOKEN=TOKEN).code == 0
    assert shown_to(gated, "hub") == {BEARER}
    assert shown_to(gated, "cdn") == {None}


@pytest.mark.parametrize("way", ["other port", "other name", "plain URL"])
def test_the_token_goes_to_no_other_origin(cli: Program, gated: LocalHub, way: str) -> None:
    url = gated.add_plain("plain.gguf", FILE)
    if way == "other name":
        url = f"{gated.endpoint.replace('127.0.0.1', 'localhost')}/me/gated/resolve/main/gated.gguf"
    elif way == "other port":
        gated.misbehave(Fault.redirect(url, server="hub", path="/resolve/"))
    ended = cli("models", "pull", "me/gated" if way == "other port" else url, "--json", HF_TOKEN=TOKEN)
    assert gated.requests
    assert shown_to(gated, "cdn") <= {None}
    if way == "other name":
        assert ended.code != 0
        assert shown_to(gated, "hub") == {None}
    assert TOKEN not in ended.out + ended.err
    planted = [path for path in cli.home.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert planted == []


@pytest.mark.parametrize(
    ("hosts", "code", "sent"),
    [("", 5, None), ("elsewhere.example", 5, None), ("127.0.0.1", 0, BEARER)],
)
def test_the_token_file_is_for_the_public_hub_unless_a_host_is_named(
    cli: Program, gated: LocalHub, hosts: str, code: int, sent: str | None
) -> None:
    cache = cli.home / "cache"
    cache.mkdir()
    (cache / "token").write_text(f"{TOKEN}\n")
    ended = cli("models", "pull", "me/gated", HF_HOME=str(cache), KAWAI_HUB_TOKEN_HOSTS=hosts)
    assert ended.code == code, ended.err
    assert shown_to(gated, "hub") == {sent}


def test_a_token_that_cannot_be_one_is_refused_without_repeating_it(cli: Program, hub: LocalHub) -> None:
    ended = cli("models", "pull", "me/x", "--json", HF_TOKEN="hf_can\xe4ry x")
    assert (ended.code, ended.error["code"]) == (2, "invalid_config")
    assert "HF_TOKEN" in ended.error["hint"]
    assert "ry x" not in ended.err
    assert hub.requests == []


# What is asked


def test_bodies_are_asked_for_unencoded_and_kawai_names_itself(cli: Program, hub: LocalHub) -> None:
    hub.add_file("me/x", "x.gguf", FILE)
    assert cli("models", "pull", "me/x").code == 0
    assert {each.headers["accept-encoding"] for each in hub.requests} == {"identity"}
    assert all(each.headers["user-agent"].startswith("kawai/") for each in hub.requests)


# The hosts of the daemon


def test_the_daemon_fetches_from_its_hosts_only(cli: Program, daemon: Daemon, hub: LocalHub) -> None:
    url = hub.add_plain("x.gguf", FILE)
    for host in (
        "localhost",
        "example.org",
        "[::1]",
        "2130706433",
        "127.1",
        "0x7f.1",
        "127.0.0.2",
        "169.254.169.254",
    ):
        foreign = url.replace("127.0.0.1", host)
        for body in ({"model_url": foreign}, {"model_url": foreign, "dry_run": True}):
            reply = daemon.ask("POST", "/v1/models/pull", body)
            assert (reply.status, reply.error["code"]) == (403, "host_not_allowed"), host
            assert "pull_hosts" in reply.error["hint"]
    hub.add_file("me/x", "x.gguf", FILE)
    body = {"model_url": "me/x", "proj_url": url.replace("127.0.0.1", "localhost")}
    assert daemon.ask("POST", "/v1/models/pull", body).error["code"] == "host_not_allowed"
    assert [each for each in hub.requests if each.server == "cdn"] == []
    assert cli("models", "pull", url.replace("127.0.0.1", "localhost")).code == 0


def test_pull_hosts_adds_a_host_but_no_redirect_from_it(cli: Program, hub: LocalHub) -> None:
    near = hub.add_plain("x.gguf", FILE).replace("127.0.0.1", "localhost")
    other = hub.add_plain("y.gguf", FILE)
    cli.environ["KAWAI_PULL_HOSTS"] = "localhost"
    with serving(cli) as daemon:
        hub.misbehave(Fault.redirect(other, path="x.gguf"))
        reply = daemon.ask("POST", "/v1/models/pull", {"model_url": near})
        assert (reply.status, reply.error["code"]) == (502, "bad_redirect")
        hub.behave()
        assert daemon.ask("POST", "/v1/models/pull", {"model_url": near}).events[-1]["downloaded"]


@pytest.mark.parametrize(
    "target",
    [
        "http://localhost:{port}/files/y.gguf",
        "http://example.org/y.gguf",
        "https://localhost:{port}/files/y.gguf",
        "https://127.0.0.2:{port}/y.gguf",
        "https://[::ffff:127.0.0.1]:{port}/y.gguf",
        "https://2130706433:{port}/y.gguf",
        "https://169.254.169.254/latest/meta-data",
        "https://[fe80::1]/y.gguf",
        "https://10.0.0.1/y.gguf",
        "https://[fd00::1]/y.gguf",
        "https://0.0.0.0:{port}/y.gguf",
        "ftp://127.0.0.1/y.gguf",
        "file:///etc/hostname",
        "gopher://127.0.0.1:{port}/y",
        "//localhost:{port}/files/y.gguf",
    ],
)
@pytest.mark.parametrize("stage", ["HEAD", "GET"])
def test_a_redirect_of_the_daemon_leads_to_https_and_a_public_address(
    workspaces: Workspaces, hub: LocalHub, target: str, stage: str
) -> None:
    hub.add_file("me/x", "x.gguf", FILE)
    hub.add_plain("y.gguf", FILE)
    to = target.format(port=urlsplit(hub.cdn_endpoint).port)
    hub.misbehave(Fault.redirect(to, server="hub", path="/resolve/"))
    outbound = workspaces(serves=True).outbound
    with pytest.raises(BadRedirect) as refused:
        outbound.request(stage, hub.url("me/x", "x.gguf"))
    assert urlsplit(hub.endpoint).netloc in refused.value.message
    assert [each for each in hub.requests if each.server == "cdn"] == []


def test_a_configured_hub_may_redirect_to_its_other_port(daemon: Daemon, hub: LocalHub) -> None:
    hub.add_file("me/x", "x.gguf", FILE)
    assert daemon.ask("POST", "/v1/models/pull", {"model_url": "me/x"}).events[-1]["downloaded"]
    assert {each.server for each in hub.requests} == {"hub", "cdn"}


def test_a_name_that_resolves_to_a_private_address_is_refused(
    workspaces: Workspaces, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resolver cannot be made to lie on demand, so this one is ours."""
    real = socket.getaddrinfo
    lies = {"cdn.example": ["93.184.216.34", "10.0.0.1"]}

    def lying(host: str, port: int, **more: Any) -> list[Any]:  # noqa: ANN401 - as the real one
        return [found for each in lies.get(host, [host]) for found in real(each, port, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", lying)
    hub.add_file("me/x", "x.gguf", FILE)
    hub.misbehave(Fault.redirect("https://cdn.example/y.gguf", server="hub"))
    with pytest.raises(BadRedirect, match=r"cdn\.example.*10\.0\.0\.1"):
        workspaces(serves=True).outbound.request("GET", hub.url("me/x", "x.gguf"))


# Redirects of the command line


@pytest.mark.parametrize(
    "target",
    [
        "file:///etc/hostname",
        "ftp://127.0.0.1/x.gguf",
        "http://169.254.169.254/x.gguf",
        "http://[fe80::1]/x.gguf",
        "http://[::ffff:169.254.169.254]/x.gguf",
        "http://2852039166/x.gguf",
        "http://0xa9fea9fe/x.gguf",
        "http://0.0.0.0:{port}/x.gguf",
        "http://[::]:{port}/x.gguf",
        "http://2130706433:{port}/x.gguf",
        "http://0x7f000001:{port}/x.gguf",
        "http://017700000001:{port}/x.gguf",
        "http://0177.0.0.1:{port}/x.gguf",
        "http://127.1:{port}/x.gguf",
        "http://224.0.0.1/x.gguf",
        "http:///x.gguf",
        "http://127.0.0.1:99999/x.gguf",
        "http://[::1/x.gguf",
        "",
    ],
)
def test_a_redirect_that_leads_nowhere_good_is_refused(
    workspaces: Workspaces, hub: LocalHub, target: str
) -> None:
    url = hub.add_plain("x.gguf", FILE)
    hub.misbehave(Fault.redirect(target.format(port=urlsplit(hub.cdn_endpoint).port)))
    with pytest.raises(BadRedirect):
        workspaces().outbound.request("GET", url)


def test_a_refused_redirect_is_told_with_its_exit_code(cli: Program, hub: LocalHub) -> None:
    url = hub.add_plain("x.gguf", FILE)
    hub.add_file("me/x", "x.gguf", FILE)
    unreadable = Fault.redirect("http://[::1/x.gguf")
    asked = [(Fault.redirect("file:///etc/hostname"), url), (Fault.redirect_loop(), url)]
    for fault, source in [*asked, (unreadable, url), (unreadable, hub.url("me/x", "x.gguf"))]:
        hub.behave()
        hub.misbehave(fault)
        code, error = last_error(cli, source)
        assert (code, error["code"]) == (6, "bad_redirect")
        assert urlsplit(source).netloc in error["message"]


def test_redirects_end(workspaces: Workspaces, hub: LocalHub) -> None:
    urls = [hub.add_plain(f"{number:02}.gguf", FILE) for number in range(13)]
    for number in range(12):
        hub.misbehave(Fault.redirect(urls[number + 1], path=f"/{number:02}.gguf"))
    outbound = workspaces().outbound
    with pytest.raises(BadRedirect, match="more than 10"):
        outbound.request("GET", urls[0])
    with outbound.request("GET", urls[8]) as answer:
        assert (answer.status, answer.url, answer.read()) == (200, urls[12], FILE)


# Addresses by themselves

PRIVATE = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",  # noqa: S104 - never bound
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "192.0.0.192",  # a cloud's metadata
    "198.18.0.1",
    "203.0.113.5",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::7f00:1",
    "64:ff9b:1::a00:1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2001:0:7f00:1::1",
    "2001:db8::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fe80::1%1",
    "fec0::1",
    "ff02::1",
]


def addressed(text: str) -> Address:
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    return Address(family, (text, 443))


@pytest.mark.parametrize("text", PRIVATE)
@pytest.mark.parametrize(
    "policy", [Egress(), Egress(hosts=frozenset({"example.org"}))], ids=["shell", "daemon"]
)
@pytest.mark.parametrize("beside", [[], ["93.184.216.34"]], ids=["alone", "beside a public one"])
def test_no_redirect_from_a_public_place_leads_to(text: str, policy: Egress, beside: list[str]) -> None:
    public, found = (
        Hop(origin_of("https://example.org"), near=False),
        [addressed(each) for each in [*beside, text]],
    )
    with pytest.raises(BadRedirect):
        policy.check_addresses(public, origin_of("https://cdn.example"), found)


@pytest.mark.parametrize(
    "text",
    ["93.184.216.34", "2606:4700::1111", "::ffff:93.184.216.34", "64:ff9b::5db8:d822", "2002:5db8:d822::1"],
)
def test_redirects_lead_to_public_addresses(text: str) -> None:
    public = Hop(origin_of("https://example.org"), near=False)
    for policy in (Egress(), Egress(hosts=frozenset())):
        policy.check_addresses(public, origin_of("https://cdn.example"), [addressed(text)])


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("HTTPS://Example.ORG.:443/x", Origin("https", "example.org", 443)),
        ("http://example.org", Origin("http", "example.org", 80)),
        ("http://[::1]:8080/", Origin("http", "::1", 8080)),
        ("http://\uff11\uff12\uff17.0.0.1/", Origin("http", "127.0.0.1", 80)),
        ("http://127\u30020.0.1/", Origin("http", "127.0.0.1", 80)),
        ("http://b\xfccher.example/", Origin("http", "xn--bcher-kva.example", 80)),
        ("http://user@example.org@127.0.0.1/", Origin("http", "127.0.0.1", 80)),
    ],
)
def test_origins_are_spelled_one_way(url: str, origin: Origin) -> None:
    assert origin_of(url) == origin


def test_a_policy_of_hosts_refuses_all_others() -> None:
    policy = Egress(hosts=frozenset({"a.example"}), trusted=frozenset({"hub.example"}))
    for host in ("a.example", "hub.example", "A.Example."):
        policy.check_first(origin_of(f"https://{host}/"))
    for host in ("b.a.example", "xa.example", "a.example.org", "127.0.0.1"):
        with pytest.raises(HostNotAllowed):
            policy.check_first(origin_of(f"https://{host}/"))


def test_only_a_configured_host_may_be_plain_or_private_for_itself() -> None:
    policy = Egress(hosts=frozenset(), trusted=frozenset({"hub.lan"}))
    policy.check_redirect(origin_of("http://hub.lan"), "http://hub.lan:8080/x")
    for before, after in (
        ("https://hub.lan", "http://hub.lan/x"),
        ("http://hub.lan", "http://cdn.lan/x"),
        ("http://a.example", "http://hub.lan/x"),
    ):
        with pytest.raises(BadRedirect):
            policy.check_redirect(origin_of(before), after)


# Proxies and certificates: small servers of our own


class Asked(NamedTuple):
    """One request as a small server saw it."""

    method: str
    target: str
    headers: dict[str, str]


class Handler(http.server.BaseHTTPRequestHandler):
    """Notes what it is asked; what it answers is its server's to say."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[Asked]]
    reply: ClassVar[Callable[["Handler"], None]]

    def _any(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.asked.append(Asked(self.command, self.path, headers))
        type(self).reply(self)

    do_GET = do_HEAD = do_CONNECT = _any  # noqa: N815 - http.server's names

    def say(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Say nothing."""


class Small(NamedTuple):
    """A small server."""

    port: int
    asked: list[Asked]


@contextlib.contextmanager
def small(reply: Callable[[Handler], None], context: ssl.SSLContext | None = None) -> Iterator[Small]:
    asked: list[Asked] = []
    handler = type("Bound", (Handler,), {"asked": asked, "reply": staticmethod(reply)})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign] # a client that leaves is expected
        if context:
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield Small(server.server_port, asked)
        finally:
            server.shutdown()
            thread.join()


def forwards(handler: Handler) -> None:
    """What a proxy of plain addresses does."""
    parts = urlsplit(handler.path)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    sent = {name: value for name, value in handler.headers.items() if not name.lower().startswith("proxy-")}
    with contextlib.closing(connection):
        connection.request(handler.command, f"{parts.path}?{parts.query}", headers=sent)
        answer = connection.getresponse()
        kept = {name: value for name, value in answer.getheaders() if name != "Connection"}
        handler.say(answer.status, answer.read(), **kept)


def tunnels_to(port: int) -> Callable[[Handler], None]:
    """What a proxy does with CONNECT, but every name leads to one port of this machine."""

    def reply(handler: Handler) -> None:
        with socket.create_connection(("127.0.0.1", port)) as there:
            handler.send_response(200)
            handler.end_headers()
            back = threading.Thread(target=_copy, args=(there, handler.connection))
            back.start()
            _copy(handler.connection, there)
            back.join()
        handler.close_connection = True

    return reply


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy"])
def test_an_http_proxy_is_honoured(cli: Program, hub: LocalHub, variable: str) -> None:
    hub.add_file("me/x", "x.gguf", FILE)
    with small(forwards) as proxy:
        cli.environ |= {variable: f"http://me:sesame@127.0.0.1:{proxy.port}", "HF_TOKEN": TOKEN}
        hub.add_token(TOKEN)
        ended = cli("models", "pull", "me/x", "--json")
        assert ended.code == 0, ended
    assert len(proxy.asked) == len(hub.requests) > 2
    assert all(each.target.startswith("http://127.0.0.1:") for each in proxy.asked)
    assert {each.headers["proxy-authorization"] for each in proxy.asked} == {"Basic bWU6c2VzYW1l"}
    assert shown_to(hub, "cdn") == {None}
    assert "sesame" not in ended.out + ended.err


@pytest.mark.parametrize("exempt", ["127.0.0.1", "localhost, 127.0.0.0/8", "*"])
def test_no_proxy_is_honoured(cli: Program, hub: LocalHub, exempt: str) -> None:
    hub.add_file("me/x", "x.gguf", FILE)
    with small(forwards) as proxy:
        address = f"http://me:sesame@127.0.0.1:{proxy.port}"
        assert cli("models", "pull", "me/x", HTTP_PROXY=address, NO_PROXY=exempt).code == 0
    assert proxy.asked == []
    assert not [each for each in hub.requests if "proxy-authorization" in each.headers]


@pytest.mark.parametrize(
    ("entry", "host", "direct"),
    [
        ("example.org", "example.org", True),
        ("example.org", "cdn.example.org", True),
        (".example.org", "cdn.example.org", True),
        ("*.example.org", "cdn.example.org", True),
        ("example.org", "notexample.org", False),
        ("example.org:8080", "example.org", True),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("[::1]", "::1", True),
        ("", "example.org", False),
    ],
)
def test_entries_of_no_proxy(entry: str, host: str, direct: bool) -> None:  # noqa: FBT001 - a row's last word
    route = Route({"https": "http://proxy:3128"}, (entry,))
    assert (route.proxy_for(Origin("https", host, 443)) is None) is direct


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:{port}/x.gguf",
        "http://localhost:{port}/x.gguf",
        "http://intranet/x.gguf",
        "http://db.internal/x.gguf",
        "http://2130706433:{port}/x.gguf",
        "http://[::ffff:10.0.0.1]/x.gguf",
        "http://192.168.0.1/x.gguf",
        "http://169.254.169.254/x.gguf",
    ],
)
def test_no_redirect_from_a_public_name_to_a_private_one(cli: Program, hub: LocalHub, target: str) -> None:
    """Through a proxy, since no public server is at hand: it says what a public one might."""
    to = target.format(port=urlsplit(hub.add_plain("x.gguf", FILE)).port)
    with small(lambda handler: handler.say(302, Location=to)) as proxy:
        cli.environ["HTTP_PROXY"] = f"http://127.0.0.1:{proxy.port}"
        code, error = last_error(cli, "http://files.example.org/x.gguf")
    assert (code, error["code"]) == (6, "bad_redirect")
    assert "files.example.org redirects to" in error["message"]
    assert [each.target for each in proxy.asked] == ["http://files.example.org/x.gguf"]
    assert hub.requests == []


@pytest.mark.slow
def test_a_proxy_that_is_down_is_named(kawai: Program) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        proxy = f"127.0.0.1:{unused.getsockname()[1]}"
        kawai.environ["HTTP_PROXY"] = f"http://me:sesame@{proxy}"
        code, error = last_error(kawai, "http://files.example.org/x.gguf")
    assert (code, error["code"]) == (6, "unreachable")
    assert proxy in f"{error['message']} {error['hint']}"
    assert "sesame" not in str(error)


def test_a_proxy_that_cannot_be_one_is_refused_without_its_password(kawai: Program) -> None:
    ended = kawai("models", "pull", "me/x", "--json", HTTPS_PROXY="socks5://me:sesame@proxy:1080")
    assert (ended.code, ended.error["code"]) == (2, "invalid_config")
    assert "HTTPS_PROXY" in ended.error["message"]
    assert "sesame" not in ended.err


class Authority(NamedTuple):
    """A certificate authority of our own, and a server certificate that it signed."""

    ca: Path
    context: ssl.SSLContext


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    home = tmp_path_factory.mktemp("authority")

    def openssl(*args: str) -> None:
        subprocess.run(["openssl", *args], cwd=home, check=True, capture_output=True)

    new = (
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    )
    openssl(*new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=kawai test authority")
    names = "subjectAltName=DNS:localhost,DNS:huggingface.co"
    openssl(
        *new,
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-keyout",
        "key.pem",
        "-out",
        "cert.pem",
        "-subj",
        "/CN=localhost",
        "-addext",
        names,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home / "cert.pem", home / "key.pem")
    return Authority(home / "ca.pem", context)


def test_a_bad_certificate_is_refused_and_a_given_authority_is_trusted(
    kawai: Program, authority: Authority
) -> None:
    with small(lambda handler: handler.say(200, FILE), authority.context) as server:
        url = f"https://localhost:{server.port}/x.gguf"
        code, error = last_error(kawai, url)
        assert (code, error["code"]) == (6, "bad_certificate")
        assert f"localhost:{server.port}" in error["message"]
        assert "SSL_CERT_FILE" in error["hint"]
        assert server.asked == []
        kawai.environ["SSL_CERT_FILE"] = str(authority.ca)
        code, error = last_error(kawai, url.replace("localhost", "127.0.0.1"))
        assert (code, error["code"]) == (6, "bad_certificate")
        assert server.asked == []
        assert kawai("models", "pull", url).code == 0
    assert {each.method for each in server.asked} == {"HEAD", "GET"}


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_of_certificates_that_cannot_be_used_is_named(kawai: Program, content: str | None) -> None:
    file = kawai.home / "ca.pem"
    if content:
        file.write_text(content)
    kawai.environ["SSL_CERT_FILE"] = str(file)
    code, error = last_error(kawai, "https://localhost:9/x.gguf")
    assert code in {2, 6}
    assert str(file) in error["message"]
    assert "SSL_CERT_FILE" in error["message"]


def test_https_does_not_become_http(kawai: Program, hub: LocalHub, authority: Authority) -> None:
    plain = hub.add_plain("x.gguf", FILE)
    kawai.environ["SSL_CERT_FILE"] = str(authority.ca)
    with small(lambda handler: handler.say(302, Location=plain), authority.context) as server:
        code, error = last_error(kawai, f"https://localhost:{server.port}/x.gguf")
    assert (code, error["code"]) == (6, "bad_redirect")
    assert "without encryption" in error["message"]
    assert hub.requests == []


def test_the_token_file_goes_to_the_public_hub_through_a_proxy_that_never_sees_it(
    kawai: Program, authority: Authority
) -> None:
    """The public hub's name leads to a server of ours; its certificate is ours, too."""
    cache = kawai.home / "cache"
    cache.mkdir()
    (cache / "token").write_text(f"{TOKEN}\n")
    kawai.environ |= {"HF_HOME": str(cache), "SSL_CERT_FILE": str(authority.ca)}
    commit = {"X-Repo-Commit": "0" * 40}
    with (
        small(lambda handler: handler.say(200, FILE, **commit), authority.context) as server,
        small(tunnels_to(server.port)) as proxy,
    ):
        kawai.environ["HTTPS_PROXY"] = f"127.0.0.1:{proxy.port}"
        ended = kawai("models", "pull", "hf.co/me/x/resolve/main/x.gguf", "--json")
        assert ended.code == 0, ended
    assert {(each.method, each.target) for each in proxy.asked} == {("CONNECT", "huggingface.co:443")}
    assert not [each for each in proxy.asked if "authorization" in each.headers]
    assert {each.headers["host"] for each in server.asked} == {"huggingface.co"}
    assert {each.headers.get("authorization") for each in server.asked} == {BEARER}


# Offline

SPY = """
import os, sys
def note(event, args):
    if event.startswith("socket."):
        with open(os.environ["SPY"], "a") as file:
            print(event, args[1:], file=file)
sys.addaudithook(note)
"""


@pytest.mark.slow
def test_offline_opens_no_socket_at_all(cli: Program, hub: LocalHub) -> None:
    hub.add_file("me/x", "x.gguf", FILE)
    spied = cli.home / "spied"
    (cli.home / "sitecustomize.py").write_text(SPY)
    cli.environ |= {"PYTHONPATH": str(cli.home), "SPY": str(spied)}
    assert cli("models", "pull", "me/x").code == 0
    assert "socket.connect" in spied.read_text(), "the spy sees what is opened"
    spied.unlink()
    url = hub.add_plain("y.gguf", FILE)
    for args, code in (
        (("pull", "me/x"), 0),
        (("pull", "me/x", "--force"), 9),
        (("pull", "me/none"), 9),
        (("pull", url), 9),
        (("pull", "http://example.org/x.gguf"), 9),
        (("pull", "me/x", "--proj", url), 9),
        (("list",), 0),
        (("show", "x"), 0),
        (("verify",), 0),
        (("index",), 0),
        (("rm", "x"), 0),
    ):
        ended = cli("models", *args, "--offline", "--json")
        assert ended.code == code, args
        if code:
            assert ended.error["code"] == "offline"
            assert "--offline" in ended.error["hint"]
    assert not spied.exists() or spied.read_text() == ""


def test_an_offline_daemon_answers_503_and_asks_nobody(cli: Program, hub: LocalHub) -> None:
    hub.add_file("me/x", "x.gguf", FILE)
    cli.environ["KAWAI_OFFLINE"] = "1"
    with serving(cli) as daemon:
        reply = daemon.ask("POST", "/v1/models/pull", {"model_url": "me/x"})
        assert (reply.status, reply.error["code"]) == (503, "offline")
        listed = json.loads(cli("pulls", "list", "--offline", "--json").out)
    assert listed == []
    assert hub.requests == []


def test_every_address_of_a_name_is_looked_at() -> None:
    found = resolve(origin_of("http://127.0.0.1:80"))
    assert [(str(each.ip), each.is_near, each.is_public) for each in found] == [("127.0.0.1", True, False)]
