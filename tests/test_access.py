"""Who may do what: every operation with every kind of credential, in every mode; and where secrets go."""

import contextlib
import json
import os
import shutil
import socket
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from kawai_tools.operations.table import OPERATIONS
from kawai_tools.remote.daemon import find_daemon
from tests.bundles import asset_name, host_platform, launcher_bundle
from tests.hub import LocalHub
from tests.program import Daemon, Program, Reply, serving
from tests.samples import tiny_gguf
from tests.test_catalog_pull import at_hub, entry, lists

REPO, MODEL = "me/tiny-GGUF", "Tiny-Q8_0"
ENTRY, GONE, NEW = "Small-Q8_0", "Gone-Q8_0", "New-Q8_0"
HEALTH, READ, CATALOG, USE, ADMIN = "health", "read", "catalog pull", "any token", "admin"

ROUTES: dict[tuple[str, str], str] = {
    ("GET", "/healthz"): HEALTH,
    ("GET", "/readyz"): HEALTH,
    ("GET", "/v1/liveness"): HEALTH,
    ("GET", "/v1/readiness"): HEALTH,
    ("GET", "/openapi.json"): USE,
    ("GET", "/metrics"): USE,
    ("GET", "/v1/stats"): USE,
    ("POST", "/v1/chat/completions"): USE,
    ("POST", "/v1/completions"): USE,
    ("POST", "/v1/embeddings"): USE,
    ("POST", "/v1/rerank"): USE,
    ("POST", "/v1/responses"): USE,
    ("POST", "/v1/messages"): USE,
    ("GET", "/v1/libs"): READ,
    ("GET", "/v1/libs/available"): READ,
    ("POST", "/v1/libs/pull"): ADMIN,
    ("POST", "/v1/libs/use"): ADMIN,
    ("POST", "/v1/libs/rollback"): ADMIN,
    ("DELETE", "/v1/libs/{version}"): ADMIN,
    ("GET", "/v1/models"): READ,
    ("GET", "/v1/models/{model}"): READ,
    ("GET", "/v1/models/ps"): READ,
    ("POST", "/v1/models/index"): ADMIN,
    ("POST", "/v1/models/load"): ADMIN,
    ("POST", "/v1/models/unload"): ADMIN,
    ("POST", "/v1/models/pull"): ADMIN,
    ("POST", "/v1/models/verify"): ADMIN,
    ("GET", "/v1/models/outdated"): READ,
    ("POST", "/v1/models/update"): ADMIN,
    ("GET", "/v1/outdated"): READ,
    ("POST", "/v1/models/protect"): ADMIN,
    ("POST", "/v1/models/unprotect"): ADMIN,
    ("DELETE", "/v1/models/{model}"): ADMIN,
    ("GET", "/v1/pulls"): READ,
    ("GET", "/v1/pulls/{pull}"): READ,
    ("DELETE", "/v1/pulls/{pull}"): ADMIN,
    ("GET", "/v1/catalog"): READ,
    ("GET", "/v1/catalog/filter/{filter}"): READ,
    ("GET", "/v1/catalog/{model}"): READ,
    ("POST", "/v1/catalog/pull/{model}"): CATALOG,
    ("POST", "/v1/catalog/update"): ADMIN,
    ("GET", "/v1/fit"): USE,
    ("GET", "/v1/doctor"): ADMIN,
    ("GET", "/v1/logs"): ADMIN,
    ("GET", "/v1/storage"): READ,
    ("GET", "/v1/session"): USE,
    ("DELETE", "/v1/session"): USE,
    ("POST", "/v1/session/codes"): ADMIN,
    ("POST", "/v1/tokens"): ADMIN,
    ("GET", "/v1/tokens"): ADMIN,
    ("DELETE", "/v1/tokens/{id}"): ADMIN,
}
"""What the contract says of each, in the words of its table."""

MODES: dict[str, tuple[str, ...]] = {"off": (), "auth": ("--auth",), "strict": ("--strict",)}
BODILESS = {"GET", "HEAD", "DELETE"}
PASSES, ABSENT, MALFORMED = "passes", "absent", "malformed"


class Kind(NamedTuple):
    """A kind of credential: the headers that carry it, and what it is worth where tokens are asked for.

    ``csrf`` is what a session needs to change something, where it has that.
    """

    worth: str
    headers: tuple[bytes, ...] = ()
    cookie: bytes | None = None
    csrf: bytes | None = None

    @property
    def lines(self) -> list[bytes]:
        """The lines of a head that carry it."""
        found = [b"Authorization: " + value for value in self.headers]
        found += [b"Cookie: kawai_session=" + self.cookie] if self.cookie is not None else []
        return found + ([b"X-Kawai-CSRF: " + self.csrf] if self.csrf is not None else [])


def kinds(user: str, admin: str, key: str, revoked: str, expired: str) -> dict[str, Kind]:
    """Every kind of credential: ``worth`` is a role, ``absent``, ``malformed``, or a refusal's code."""
    unknown = {
        "wrong": f"Bearer kawai_{'A' * 43}",
        "a token cut short": f"Bearer {user[:-1]}",
        "a token with more": f"Bearer {user}x",
        "upper case": f"Bearer {user.upper()}",
        "50,000 characters": f"Bearer {'a' * 50_000}",
    }
    malformed = {
        "empty": "",
        "blanks": "   ",
        "the scheme alone": "Bearer",
        "the scheme and a blank": "Bearer ",
        "the token alone": admin,
        "another scheme": f"Basic {admin}",
        "a scheme glued on": f"Bearer{admin}",
        "a longer scheme": f"Bearers {admin}",
        "a colon": f"Bearer: {admin}",
        "an equals sign": f"Bearer={admin}",
        "a tab": f"Bearer\t{admin}",
        "two tokens": f"Bearer {admin} {admin}",
        "two in one": f"Bearer {admin}, Bearer {admin}",
        "with a comma": f"Bearer {admin},",
        "in quotes": f'Bearer "{admin}"',
        "with parameters": f'Bearer token="{admin}"',
        "not ASCII": f"Bearer {admin}\u00e9",
        "many blanks inside": f"Bearer {'a ' * 20_000}",
    }
    good = f"Bearer {admin}".encode()
    return {
        "none": Kind(ABSENT),
        "user": Kind("user", (f"Bearer {user}".encode(),)),
        "admin": Kind("admin", (good,)),
        "local key": Kind("admin", (f"Bearer {key}".encode(),)),
        "lower-case scheme": Kind("admin", (f"bearer {admin}".encode(),)),
        "upper-case scheme": Kind("user", (f"BEARER {user}".encode(),)),
        "several blanks": Kind("user", (f"Bearer    {user}".encode(),)),
        "blanks around": Kind("admin", (f"   Bearer {admin}   ".encode(),)),
        "revoked": Kind("token_revoked", (f"Bearer {revoked}".encode(),)),
        "expired": Kind("token_expired", (f"Bearer {expired}".encode(),)),
        "doubled": Kind(MALFORMED, (good, good)),
        "good, then wrong": Kind(MALFORMED, (good, b"Bearer x")),
        "empty, then good": Kind(MALFORMED, (b"", good)),
        **{name: Kind("invalid_token", (value.encode("latin-1"),)) for name, value in unknown.items()},
        **{name: Kind(MALFORMED, (value.encode("latin-1"),)) for name, value in malformed.items()},
    }


def expected(mode: str, method: str, level: str, kind: Kind) -> str:
    """``passes``, or the code of the refusal, as the contract's table has it."""
    worth = kind.worth
    if mode == "off":
        return PASSES
    if worth == MALFORMED:
        return "invalid_token"
    if level == HEALTH:
        return PASSES
    if worth == ABSENT:
        return PASSES if level in {READ, CATALOG} and mode == "auth" else "token_required"
    if worth in {"user", "admin"}:
        lacks = kind.cookie is not None and kind.csrf is None and method not in {"GET", "HEAD"}
        refused = "admin_required" if level == ADMIN and worth == "user" else PASSES
        return "csrf_required" if lacks else refused
    return worth


# A home for all modes


class Home(NamedTuple):
    """A home with a model, a build, a list, and tokens of every kind; to be copied."""

    path: Path
    hub: LocalHub
    tokens: Mapping[str, str]

    def program(self, root: Path, **environ: str) -> Program:
        """The command line on a copy of it."""
        shutil.copytree(self.path, root / "kawai", symlinks=True)
        return Program(root, {**surroundings(self.hub), **environ})


def surroundings(hub: LocalHub) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.endpoint, "KAWAI_LIBS_API": hub.libs_api}


def done(program: Program, *words: str) -> str:
    ended = program(*words)
    assert ended.code == 0, ended
    return ended.out


def make_token(program: Program, *words: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(done(program, "tokens", "create", "--json", *words))
    return made


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    root = tmp_path_factory.mktemp("house")
    with LocalHub(root / "hub") as hub:
        hub.add_release(
            "b1", {asset_name("b1", host_platform()): launcher_bundle("b1", directory=root / "shelf")}
        )
        hub.add_file(REPO, f"{MODEL}.gguf", tiny_gguf())
        hub.add_file("me/gone-GGUF", f"{GONE}.gguf", tiny_gguf(name=GONE))
        hub.add_file("me/new-GGUF", f"{NEW}.gguf", tiny_gguf(name=NEW))
        hub.add_file("me/small-GGUF", f"{ENTRY}.gguf", tiny_gguf(name=ENTRY))
        program = Program(root, surroundings(hub))
        lists(program, entry(ENTRY, at_hub("small-GGUF", f"{ENTRY}.gguf")))
        for repo in (REPO, "me/gone-GGUF"):
            done(program, "models", "pull", repo)
        yield Home(root / "kawai", hub, _tokens(program))


def _tokens(program: Program) -> dict[str, str]:
    made = {name: make_token(program, f"--name={name}") for name in ("user", "revoked", "expired")}
    made["admin"] = make_token(program, "--admin", "--name=admin")
    done(program, "tokens", "revoke", made["revoked"]["id"])
    path = Path(program.environ["KAWAI_HOME"], "tokens.json")
    content = json.loads(path.read_text())
    for row in content["tokens"]:
        if row["name"] == "expired":
            row["expires_at"] = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    path.write_text(json.dumps(content))
    return {name: each["token"] for name, each in made.items()}


class Modes:
    """Servers of copies of one home, one a mode, started when first asked for."""

    def __init__(self, house: Home, root: Path, stack: contextlib.ExitStack) -> None:
        self.house = house
        self._root = root
        self._stack = stack
        self._daemons: dict[str, Daemon] = {}

    def __getitem__(self, mode: str) -> Daemon:
        if mode not in self._daemons:
            program = self.house.program(self._root / mode)
            self._daemons[mode] = self._stack.enter_context(serving(program, *MODES[mode]))
        return self._daemons[mode]

    def kinds(self, mode: str) -> dict[str, Kind]:
        """Every kind of credential of this mode's server."""
        return kinds(key=self[mode].announced.key, **self.house.tokens)


@pytest.fixture(scope="module")
def modes(house: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Modes]:
    root = tmp_path_factory.mktemp("modes")
    with contextlib.ExitStack() as stack:
        yield Modes(house, root, stack)
    for log in root.glob("*/kawai/logs/kawai.log"):
        assert "Traceback" not in log.read_text()


# Every operation, every kind of credential


def head(daemon: Daemon, method: str, path: str, *lines: bytes) -> bytes:
    first = f"{method} {path} HTTP/1.1".encode()
    host = f"Host: {urlsplit(daemon.url).netloc}".encode()
    return b"\r\n".join([first, host, *lines, b"", b""])


def send(daemon: Daemon, method: str, data: bytes, timeout: float = 10) -> Reply:
    """Send these bytes and nothing more; what is answered."""
    address = urlsplit(daemon.url)
    with socket.create_connection((address.hostname, address.port), timeout) as wire:
        wire.sendall(data)
        with HTTPResponse(wire, method=method) as answer:
            answer.begin()
            return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())


def harmless(daemon: Daemon, method: str, path: str, kind: Kind) -> Reply:
    """A request that whoever is let through is told makes no sense."""
    where = path.format(model="nope", version="b0", pull="nope", filter="nope", id="nope")
    lines = kind.lines
    if method in BODILESS:
        return send(daemon, method, head(daemon, method, f"{where}?nonsense=1", *lines))
    body = b'{"nonsense":1}'
    lines += [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    return send(daemon, method, head(daemon, method, where, *lines) + body)


def outcome(reply: Reply, method: str) -> str:
    """``passes``, or the code of the refusal, whose shape is looked at."""
    if reply.status not in {401, 403}:
        assert "www-authenticate" not in reply.headers
        return PASSES
    challenge = reply.headers.get("www-authenticate", "")
    assert challenge.startswith("Bearer ") == (reply.status == 401)
    assert reply.headers["content-type"] == "application/json"
    if method == "HEAD":
        return f"status {reply.status}"
    assert list(reply.json) == ["error"]
    assert list(reply.error) == ["code", "type", "message", "hint"]
    assert reply.error["type"] == "not_allowed"
    assert (reply.status == 403) == (reply.error["code"] in {"admin_required", "csrf_required"})
    assert ("invalid_token" in challenge) == (reply.status == 401 and reply.error["code"] != "token_required")
    return reply.error["code"]


def test_the_table_has_every_operation() -> None:
    rows = {(row.method, row.path) for row in OPERATIONS if row.path}
    fit = ("GET", "/v1/fit")  # the one that any token is for; the others of these are no rows
    named = {key for key, level in ROUTES.items() if level not in {HEALTH, USE} or key == fit}
    assert rows == named - {("POST", "/v1/session/codes")}


KINDS = tuple(kinds("a" * 43, "b" * 43, "c" * 43, "d" * 43, "e" * 43))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_who_may_what(modes: Modes, mode: str, kind: str) -> None:
    daemon, credential = modes[mode], modes.kinds(mode)[kind]
    found, wanted = {}, {}
    for (method, path), level in ROUTES.items():
        key = f"{method} {path}"
        reply = harmless(daemon, method, path, credential)
        found[key] = outcome(reply, method)
        wanted[key] = expected(mode, method, level, credential)
        assert reply.status < 500
        for token in modes.house.tokens.values():
            assert token[:24] not in reply.body.decode()
    assert found == wanted


@pytest.mark.parametrize("mode", MODES)
def test_who_may_what_by_a_cookie(modes: Modes, mode: str) -> None:
    """Also inference, which a page of elsewhere could have a browser ask for."""
    daemon, wrong = modes[mode], b"A" * 43
    credentials = [Kind("session_expired", cookie=wrong), Kind("session_expired", cookie=b"", csrf=wrong)]
    for role in ("user", "admin"):
        reply = daemon.ask("POST", "/v1/session", {"token": modes.house.tokens[role]})
        cookie = reply.headers["set-cookie"].partition(";")[0].partition("=")[2]
        csrf = daemon.ask("GET", "/v1/session", None, {"Cookie": f"kawai_session={cookie}"}).json["csrf"]
        session = Kind(role, cookie=cookie.encode())
        credentials += [session, session._replace(csrf=(csrf or "unasked").encode())]
    for credential in credentials:
        for (method, path), level in ROUTES.items():
            if (method, path) == ("DELETE", "/v1/session") and credential.csrf is not None:
                continue  # it would end the session
            reply = harmless(daemon, method, path, credential)
            assert outcome(reply, method) == expected(mode, method, level, credential), (path, credential)


@pytest.mark.parametrize("kind", ["none", "user", "wrong", "admin"])
@pytest.mark.parametrize("mode", MODES)
def test_head_is_allowed_as_get_is(modes: Modes, mode: str, kind: str) -> None:
    credential = modes.kinds(mode)[kind]
    for (method, path), level in ROUTES.items():
        if method == "GET":
            code = expected(mode, "HEAD", level, credential)
            status = {PASSES: PASSES, "admin_required": "status 403"}.get(code, "status 401")
            assert outcome(harmless(modes[mode], "HEAD", path, credential), "HEAD") == status


@pytest.mark.parametrize("announced", [b"Content-Length: 1000", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize("expects", [(), (b"Expect: 100-continue",)])
def test_access_is_decided_before_a_body_is_read(
    modes: Modes, announced: bytes, expects: tuple[bytes, ...]
) -> None:
    daemon = modes["auth"]
    user = b"Authorization: Bearer " + modes.house.tokens["user"].encode()
    changing = [key for key, level in ROUTES.items() if level == ADMIN and key[0] != "GET"]
    for lines, code in (((), "token_required"), ((user,), "admin_required")):
        for method, path in changing:
            began = time.monotonic()
            more = (b"Content-Type: application/json", announced, *expects, *lines)
            reply = send(daemon, method, head(daemon, method, path, *more))
            assert outcome(reply, method) == code
            assert time.monotonic() - began < 2


def test_of_a_long_body_that_is_refused_nothing_is_kept(modes: Modes) -> None:
    daemon = modes["auth"]
    lines = (b"Content-Type: application/json", b"Content-Length: 900000")
    data = head(daemon, "POST", "/v1/tokens", *lines) + b" " * 900_000
    assert outcome(send(daemon, "POST", data), "POST") == "token_required"


def test_the_key_of_another_start_is_no_token(modes: Modes) -> None:
    keys = {mode: modes[mode].announced.key for mode in MODES}
    assert len(set(keys.values())) == len(MODES)
    headers = {"Authorization": f"Bearer {keys['off']}"}
    reply = modes["auth"].ask("GET", "/v1/models", headers=headers)
    assert outcome(reply, "GET") == "invalid_token"


def test_local_commands_work_beside_a_strict_server(modes: Modes) -> None:
    program = modes["strict"].program
    for words in (("models", "ps"), ("pulls", "list"), ("tokens", "list"), ("models", "list")):
        ended = program(*words, "--json")
        assert (ended.code, ended.err) == (0, "")
        assert json.loads(ended.out) is not None
    assert program("pulls", "cancel", "nope").code == 3


# How it is turned on


@pytest.mark.parametrize(
    ("args", "environ", "config", "mode"),
    [
        ((), {"KAWAI_AUTH": "1"}, "", "auth"),
        ((), {"KAWAI_AUTH": "off"}, "auth = true", "off"),
        ((), {}, "auth = true", "auth"),
        ((), {}, "strict = true", "strict"),
        ((), {"KAWAI_STRICT": "true"}, "auth = false", "strict"),
        (("--auth",), {"KAWAI_AUTH": "0"}, "auth = false", "auth"),
        (("--auth", "--strict"), {}, "", "strict"),
    ],
)
def test_variables_and_file_do_as_flags_do(
    house: Home, tmp_path: Path, args: tuple[str, ...], environ: dict[str, str], config: str, mode: str
) -> None:
    program = house.program(tmp_path, **environ)
    (tmp_path / "kawai" / "config.toml").write_text(config)
    with serving(program, *args) as daemon:
        read, change = daemon.ask("GET", "/v1/models"), daemon.ask("POST", "/v1/models/index")
        assert outcome(read, "GET") == expected(mode, "GET", READ, Kind(ABSENT))
        assert outcome(change, "POST") == expected(mode, "POST", ADMIN, Kind(ABSENT))


@contextlib.contextmanager
def first_lines(program: Program, *args: str) -> Iterator[list[str]]:
    """A server for a while, and what it said until it served."""
    process = program.start("serve", "--port", "0", *args)
    assert process.stderr
    try:
        lines: list[str] = []
        while not lines or ("is serving on" not in lines[-1] and lines[-1]):
            lines.append(process.stderr.readline())
        yield lines
    finally:
        process.terminate()
        lines.append(process.stderr.read())
        process.communicate(timeout=30)


def admin_token(program: Program) -> Path:
    return Path(program.environ["KAWAI_HOME"], "run", "admin.token")


def answers(program: Program, token: str) -> int:
    found = find_daemon(Path(program.environ["KAWAI_HOME"]))
    assert found
    daemon = Daemon.__new__(Daemon)
    daemon.url = found.url
    return daemon.ask("GET", "/v1/tokens", headers={"Authorization": f"Bearer {token}"}).status


@pytest.mark.parametrize("flag", ["--auth", "--strict"])
def test_the_first_admins_token_is_made_once(kawai: Program, flag: str) -> None:
    path = admin_token(kawai)
    before = os.umask(0)
    try:
        with first_lines(kawai, flag) as lines:
            token = path.read_text().strip()
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            assert answers(kawai, token) == 200
        assert "".join(lines).count(str(path)) == 1
        assert token not in "".join(lines)
    finally:
        os.umask(before)
    with first_lines(kawai, flag) as lines:
        assert not [line for line in lines if "admin" in line]
        assert path.read_text().strip() == token
        assert answers(kawai, token) == 200
    (row,) = json.loads(done(kawai, "tokens", "list", "--json"))
    assert row["role"] == "admin"


@pytest.mark.parametrize("words", [("--admin",), ()])
def test_with_tokens_none_is_made(kawai: Program, words: tuple[str, ...]) -> None:
    make_token(kawai, *words)
    with first_lines(kawai, "--auth") as lines:
        assert len(lines) == 1
        assert not admin_token(kawai).exists()
    assert len(json.loads(done(kawai, "tokens", "list", "--json"))) == 1


def test_without_asking_for_tokens_none_is_made(kawai: Program) -> None:
    with first_lines(kawai):
        assert not admin_token(kawai).exists()
    assert not Path(kawai.environ["KAWAI_HOME"], "tokens.json").exists()


def test_a_first_token_that_could_not_be_written_is_made_at_the_next_start(kawai: Program) -> None:
    admin_token(kawai).mkdir(parents=True)
    ended = kawai("serve", "--port", "0", "--auth")
    assert (ended.code, ended.out) == (9, "")
    admin_token(kawai).rmdir()
    with first_lines(kawai, "--auth"):
        assert admin_token(kawai).is_file(), "the home has a token that nobody knows"
        assert answers(kawai, admin_token(kawai).read_text().strip()) == 200


# The routes of the document, as it says them

OPTIONAL, REQUIRED = "optional", "required"


class Route(NamedTuple):
    """A route of the document: who may, and the fields that it names."""

    method: str
    path: str
    authentication: str
    fields: tuple[str, ...] = ()
    body: object = None


LIST = ("id", "owned_by", "model_family", "size", "modified")
CATALOG_LIST = ("id", "category", "owned_by", "model_family", "capabilities")
DOCUMENT = (
    Route("GET", "/v1/libs", OPTIONAL, ("arch", "os", "processor", "latest", "current")),
    Route("POST", "/v1/libs/pull", REQUIRED, ("status", "arch", "os", "processor", "latest", "current")),
    Route("GET", "/v1/models", OPTIONAL, LIST),
    Route("GET", f"/v1/models/{MODEL}", OPTIONAL, ("metadata", "capabilities")),
    Route("GET", "/v1/models/ps", OPTIONAL),
    Route("POST", "/v1/models/index", REQUIRED),
    Route("POST", "/v1/models/pull", REQUIRED, ("status",), {"model_url": f"{NEW}"}),
    Route("DELETE", f"/v1/models/{GONE}", REQUIRED),
    Route("GET", "/v1/catalog", OPTIONAL, CATALOG_LIST),
    Route("GET", "/v1/catalog/filter/text", OPTIONAL, CATALOG_LIST),
    Route("GET", f"/v1/catalog/{ENTRY}", OPTIONAL, ("files", "capabilities", "metadata")),
    Route("POST", f"/v1/catalog/pull/{ENTRY}", OPTIONAL, ("status",)),
)


def ask(daemon: Daemon, route: Route, token: str | None) -> Reply:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return daemon.ask(route.method, route.path, route.body, headers)


def rows_of(reply: Reply) -> list[dict[str, Any]]:
    """What has the fields: the rows of a list, the events of a stream, or the answer itself."""
    if reply.headers["content-type"] == "text/event-stream":
        return reply.events
    found = reply.json
    rows: list[dict[str, Any]] = found if isinstance(found, list) else found.get("data", [found])
    return rows


def check_answer(route: Route, reply: Reply) -> None:
    if route.method == "DELETE" or route.path.endswith("/index"):
        assert (reply.status, reply.body) == (204, b"")
        return
    assert reply.status == 200, reply
    streams = "/pull" in route.path
    assert reply.headers["content-type"] == ("text/event-stream" if streams else "application/json")
    rows = rows_of(reply)
    assert rows or not route.fields
    for row in rows:
        assert set(route.fields) <= row.keys()
    if streams:
        assert rows[-1]["status"] in {"downloaded", "exists"}, rows[-1]


@pytest.mark.parametrize("route", DOCUMENT, ids=lambda route: f"{route.method} {route.path}")
@pytest.mark.parametrize("mode", MODES)
def test_the_document_is_kept(modes: Modes, mode: str, route: Route) -> None:
    daemon, tokens = modes[mode], modes.house.tokens
    if "model_url" in (route.body if isinstance(route.body, dict) else {}):
        route = route._replace(body={"model_url": modes.house.hub.url("me/new-GGUF", f"{NEW}.gguf")})
    required = route.authentication == REQUIRED
    if mode == "strict" or (mode == "auth" and required):
        assert outcome(ask(daemon, route, None), route.method) == "token_required"
    if mode != "off" and required:
        assert outcome(ask(daemon, route, tokens["user"]), route.method) == "admin_required"
    token = {"off": None, "auth": tokens["admin"] if required else None}.get(
        mode, tokens["admin"] if required else tokens["user"]
    )
    check_answer(route, ask(daemon, route, token))


# Where secrets go


def children_of(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(each) for each in (task / "children").read_text().split()]
    return found


def traces_of(pid: int) -> bytes:
    """Command line and environment of a process, as far as it still runs."""
    found = b""
    for name in ("cmdline", "environ"):
        with contextlib.suppress(OSError):
            found += Path(f"/proc/{pid}/{name}").read_bytes()
    return found


def watch(pid: int, until: threading.Event, seen: dict[int, bytes]) -> None:
    while not until.wait(0.002):
        for child in children_of(pid):
            seen[child] = max(seen.get(child, b""), traces_of(child), key=len)


@contextlib.contextmanager
def watching(pid: int) -> Iterator[dict[int, bytes]]:
    """The traces of every child of a process, by its id."""
    seen: dict[int, bytes] = {}
    until = threading.Event()
    thread = threading.Thread(target=watch, args=(pid, until, seen))
    thread.start()
    try:
        yield seen
    finally:
        until.set()
        thread.join()


def use(daemon: Daemon, hub: LocalHub, tokens: Mapping[str, str]) -> list[Reply]:
    """Much of what clients do, right and wrong, with every token."""
    requests: list[tuple[str, str, object]] = [
        ("GET", "/v1/models", None),
        ("POST", "/v1/models/pull", {"model_url": hub.url("me/new-GGUF", f"{NEW}.gguf")}),
        ("POST", "/v1/models/pull", {"model_url": hub.url("me/broken-GGUF", "Broken-Q8_0.gguf")}),
        ("POST", "/v1/models/pull", {"model_url": "nonsense"}),
        ("POST", "/v1/tokens", {"name": ""}),
        ("DELETE", "/v1/tokens/nope", None),
        ("POST", "/v1/models/index", b"x"),
        ("GET", "/nowhere", None),
    ]
    replies = []
    for token in tokens.values():
        headers = {"Authorization": f"Bearer {token}"}
        replies += [daemon.ask(method, path, body, headers) for method, path, body in requests]
        data = b"GARBAGE\r\nAuthorization: Bearer " + token.encode() + b"\r\n\r\n"
        replies.append(send(daemon, "GET", data))
    return replies


def test_tokens_go_nowhere(house: Home, tmp_path: Path) -> None:
    hub = house.hub
    hub.add_file("me/broken-GGUF", "Broken-Q8_0.gguf", b"no model" * 100)
    program = house.program(tmp_path)
    place = tmp_path / "kawai"
    (place / "tokens.json").unlink()
    process = program.start("serve", "--port", "0", "--auth", "--verbose")
    try:
        assert process.stderr
        said = process.stderr.readline() + process.stderr.readline()
        found = find_daemon(place)
        assert found, said
        daemon = Daemon.__new__(Daemon)
        daemon.url, daemon.process = found.url, process
        admin = admin_token(program).read_text().strip()
        made = daemon.ask("POST", "/v1/tokens", {}, {"Authorization": f"Bearer {admin}"}).json["token"]
        tokens = {"admin": admin, "user": made, "wrong": "kawai_" + "W" * 43, "key": found.key}
        with watching(process.pid) as children:
            pulled = daemon.ask("POST", "/v1/libs/pull", None, {"Authorization": f"Bearer {admin}"})
        assert pulled.events[-1]["status"] == "downloaded", pulled
        replies = [pulled, *use(daemon, hub, tokens)]
        traces = [traces_of(process.pid), *children.values()]
    finally:
        process.terminate()
        out, err = process.communicate(timeout=30)
    assert children
    assert any(b"llama-server" in trace for trace in traces)
    shown = [out.encode(), (said + err).encode(), *(reply.body for reply in replies), *traces]
    files = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    shown += [data for path, data in files.items() if path != admin_token(program)]
    asked = "".join(f"{each}" for each in hub.requests).encode()
    for name, token in tokens.items():
        secret = token.removeprefix("kawai_")[:24].encode()
        assert not [data for data in (*shown, asked) if secret in data], name
    assert files[admin_token(program)] == f"{admin}\n".encode()
