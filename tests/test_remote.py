"""Every row on another kawai: the same bytes and exit codes, dropped connections, and what is no kawai."""

import contextlib
import http.server
import json
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from kawai_tools import __version__
from kawai_tools.contract import NoRequest
from kawai_tools.errors import NoServer, Unreachable
from kawai_tools.events import Event
from kawai_tools.operations.models import MODELS_LIST, MODELS_PULL, PullRequest
from kawai_tools.operations.table import OPERATIONS
from kawai_tools.remote import executing
from kawai_tools.remote.daemon import find_daemon
from kawai_tools.remote.feed import RemoteFeed
from kawai_tools.remote.peer import Peer
from kawai_tools.transfer.outbound import Route
from kawai_tools.transfer.patience import Patience
from tests.hub import LocalHub
from tests.inference import brief
from tests.program import Daemon, Ended, Program, serving
from tests.samples import F32, tiny_gguf

REPO, MODEL = "me/tiny-GGUF", "Tiny-Q8_0"
BIG, BIG_SIZE = "me/big-GGUF", 3 << 20
SLOWLY = ("--limit-rate", "2M")
VARYING = re.compile(r'"(rate|eta|seq|pull|started_at|free)":("[^"]*"|\d+|null),?')


def big_gguf() -> bytes:
    return tiny_gguf(tensors=(("token_embd.weight", (1024, BIG_SIZE // 4096), F32),))


class There(NamedTuple):
    """A daemon, the command line on its home, and one elsewhere that asks it."""

    daemon: Daemon
    here: Program
    far: Program

    def at(self, *args: str, **environ: str) -> Ended:
        return self.far(*args, "--server", self.daemon.url, **environ)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[There]:
    root = tmp_path_factory.mktemp("remote")
    with LocalHub(root / "hub") as hub:
        hub.add_file(REPO, f"{MODEL}.gguf", tiny_gguf())
        hub.add_file(BIG, "Big-Q8_0.gguf", big_gguf())
        cli = Program(root / "a", {"HF_ENDPOINT": hub.endpoint, "KAWAI_LIBS_API": hub.libs_api})
        cli.home.mkdir()
        far = Program(root / "b")
        assert cli("models", "pull", REPO).code == 0
        brief(cli, "Smol-Q4_1")
        with serving(cli) as daemon:
            yield There(daemon, cli, far)
            assert daemon.process.poll() is None
        assert not (far.home / "kawai" / "models").exists()


# The same, here and there


@pytest.mark.parametrize(
    "command",
    [
        "models list",
        f"models show {MODEL}",
        "models show nope",
        "models show ../x",
        "models ps",
        "models index",
        "models verify",
        f"models verify {MODEL}",
        "models verify nope",
        "models rm nope",
        f"models protect {MODEL}",
        f"models unprotect {MODEL}",
        "models protect nope",
        "df",
        "models unload nope",
        "models outdated",
        "models update --all",
        "models update nope",
        "models update --all --dry-run",
        "outdated",
        "models load nope",
        f"models pull {REPO}",
        f"models pull {REPO} --dry-run",
        f"models pull {BIG} --dry-run",
        "models pull me/none-GGUF",
        "models pull no-source",
        f"models pull {REPO} --connections 99",
        "libs list",
        "libs show",
        "libs available b1",
        "libs use b1",
        "libs rollback",
        "libs rm b1",
        "libs pull b1",
        "catalog list --search qwen3",
        "catalog list --downloaded",
        "catalog list --category no-such",
        "catalog show Qwen3-0.6B-Q8_0",
        "catalog show nope",
        "catalog pull nope",
        "catalog update",
        "pulls list",
        "pulls attach nope",
        "pulls cancel nope",
        "tokens list",
        "tokens revoke nope",
        f"fit {MODEL}",
        f"fit {MODEL} --context 7",
        f"fit {REPO}",
        "fit nope",
        "fit acme/Nope-GGUF",
        "logs --lines 1",
        f"logs {MODEL}",
    ],
)
def test_a_row_answers_the_same_bytes_here_and_there(there: There, command: str) -> None:
    here, far = there.here(*command.split(), "--json"), there.at(*command.split(), "--json")
    assert (far.code, VARYING.sub("", far.out)) == (here.code, VARYING.sub("", here.out))
    assert far.err == here.err


def test_for_people_it_reads_the_same_too(there: There) -> None:
    for words in ("models list", f"models show {MODEL}", "libs list", "catalog list", "tokens list"):
        here, far = there.here(*words.split()), there.at(*words.split())
        assert (far.code, far.out, far.err) == (here.code, here.out, here.err)
    assert there.at("models", "pull", REPO).out == f"{MODEL} is already here: {there.daemon.url}\n"


def test_a_pull_tells_the_same_and_lands_there(there: There) -> None:
    far = there.at("models", "pull", BIG, "--json")
    assert (far.code, far.err, far.events[-1]["status"]) == (0, "", "downloaded")
    assert [row["id"] for row in json.loads(there.at("models", "list", "--json").out)["data"]] == [
        "Big-Q8_0",
        MODEL,
    ]
    assert there.at("models", "rm", "Big-Q8_0").code == 0
    here = there.here("models", "pull", BIG, "--json")
    said = [line["message"] for line in json.loads(there.at("logs", "--json").out)]
    assert [words.split(" ", 2)[2] for words in said if words.startswith("pull ")][-2:] == [
        "of Big-Q8_0 begins",
        "of Big-Q8_0 ends: downloaded",
    ]
    steps = [[(each["status"], each["file"], sorted(each)) for each in ended.events] for ended in (here, far)]
    assert [step for step in steps[0] if step[0] != "downloading"] == [
        step for step in steps[1] if step[0] != "downloading"
    ]
    assert VARYING.sub("", here.out.splitlines()[-1]) == VARYING.sub("", far.out.splitlines()[-1])
    assert there.at("models", "rm", "Big-Q8_0", "--force").code == 0


@pytest.mark.parametrize("row", [row for row in OPERATIONS if row.path is None], ids=lambda row: row.name)
def test_a_row_without_a_route_is_for_this_machine_only(there: There, row: Any) -> None:  # noqa: ANN401
    arguments = {"models.adopt": ["x.gguf"], "export": ["x.tar"], "import": ["x.tar"]}
    ended = there.at(*row.name.split("."), *arguments.get(row.name, []), "--json")
    assert (ended.code, ended.out, ended.error["code"]) == (2, "", "local_only")


@pytest.mark.parametrize("command", ["serve", "serve --port 0 --auth", "config show", "config path"])
def test_a_command_of_this_machine_does_not_go_elsewhere(there: There, command: str) -> None:
    ended = there.far(*command.split(), KAWAI_SERVER=there.daemon.url)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        f"error: kawai {' '.join(command.split()[: 1 if 'serve' in command else 2])} "
        "works on this machine only, and another kawai is named\nhint: leave out --server (KAWAI_SERVER)\n"
    )


def test_its_address_may_be_short_and_stand_anywhere(there: There) -> None:
    bare = urlsplit(there.daemon.url).netloc
    assert there.far("--server", bare, "models", "list").out == there.at("models", "list").out
    assert there.far("models", "--server", bare, "list").code == 0
    assert there.far("models", "list", KAWAI_SERVER=f"http://{bare}/").code == 0
    assert there.far("models", "list", KAWAI_SERVER=f"http://{bare}/v1").code == 0
    assert (
        there.far("models", "list", "--server", f"HTTP://{bare}", KAWAI_SERVER="http://127.0.0.1:1").code == 0
    )
    for wrong in ("ftp://x", "http://", "http://a b", "http://u:sesame@h", "http://h/?q", "a:b:c"):
        ended = there.far("models", "list", "--server", wrong)
        assert "sesame" not in ended.err
        assert (ended.code, "--server must be the address of a kawai" in ended.err) == (2, True)


def test_offline_it_may_be_on_this_machine_only(there: There) -> None:
    assert there.at("models", "list", "--offline").code == 0
    ended = there.far("models", "list", "--offline", "--server", "http://box.example.org:1", "--json")
    assert (ended.code, ended.error["code"]) == (9, "offline")


def test_no_proxy_stands_before_the_own_daemon_and_one_before_another(there: There) -> None:
    proxy = {"HTTP_PROXY": "http://127.0.0.1:1"}
    assert there.here("pulls", "list", **proxy).code == 0
    assert there.at("models", "list", "--offline", **proxy).code == 0  # nor before this machine
    ended = there.far("models", "list", "--json", "--server", "http://box.invalid", **proxy)
    assert (ended.code, ended.error["code"]) == (6, "unreachable")
    assert "the proxy 127.0.0.1:1" in ended.error["message"]


def test_completion_asks_there(there: There) -> None:
    asked = {"_KAWAI_COMPLETE": "complete_bash", "COMP_CWORD": "3", "KAWAI_SERVER": there.daemon.url}
    assert there.far(COMP_WORDS="kawai models show Ti", **asked).out.split() == [MODEL]
    asked["KAWAI_SERVER"] = "http://127.0.0.1:1"
    assert there.far(COMP_WORDS="kawai models show Ti", **asked).out.split() == []


# Tokens


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[There]:
    root = tmp_path_factory.mktemp("locked")
    cli = Program(root)
    with serving(cli, "--strict") as daemon:
        yield There(daemon, cli, Program(root / "far"))


def test_a_token_comes_from_a_file_or_a_variable(locked: There, tmp_path: Path) -> None:
    admin = locked.daemon.home / "run" / "admin.token"
    bare = locked.at("models", "list")
    assert (bare.code, "--token-file FILE (KAWAI_TOKEN)" in bare.err) == (4, True)
    assert locked.at("models", "list", "--token-file", str(admin)).code == 0
    token = admin.read_text().strip()
    assert locked.at("models", "list", KAWAI_TOKEN=token).code == 0
    assert locked.at("models", "list", KAWAI_TOKEN_FILE=str(admin)).code == 0
    assert locked.at("models", "list", KAWAI_TOKEN=token, KAWAI_TOKEN_FILE="/nowhere").code == 0
    assert locked.at("models", "list", "--token-file", str(admin), KAWAI_TOKEN="wrong").code == 0
    user = locked.at("tokens", "create", "--token-file", str(admin)).out.strip()
    refused = locked.at("models", "index", "--json", KAWAI_TOKEN=user)
    assert (refused.code, refused.error["code"]) == (4, "admin_required")
    wrong = locked.at("models", "list", "--json", KAWAI_TOKEN="wrong")
    assert (wrong.code, wrong.error["code"]) == (4, "invalid_token")
    for content in ("", "two words", "\x00", "tökén"):
        (tmp_path / "token").write_text(content)
        ended = locked.at("models", "list", "--json", "--token-file", str(tmp_path / "token"))
        assert (ended.code, ended.error["code"]) == (2, "invalid_config")
    for nowhere in (tmp_path / "none", tmp_path):
        assert locked.at("models", "list", "--token-file", str(nowhere)).code == 2
    log = "".join(path.read_text() for path in locked.daemon.home.glob("logs/*"))
    assert token not in log


# What answers there


class Answers(NamedTuple):
    """A small server that answers each path with a status, headers and a body, and what it was asked."""

    url: str
    asked: list[tuple[str, dict[str, str]]]


@contextlib.contextmanager
def answering(answers: dict[str, tuple[int, dict[str, str], bytes]]) -> Iterator[Answers]:
    asked: list[tuple[str, dict[str, str]]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            status, headers, body = answers.get(self.path, (404, {"Content-Type": "text/html"}, b"<p>no"))
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815 - http.server calls them so

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield Answers(f"http://127.0.0.1:{server.server_port}", asked)
        finally:
            server.shutdown()


JSON_TYPE = {"Content-Type": "application/json"}
OTHER = (200, JSON_TYPE, b'{"status":"ok","version":"9.9.9"}')
SAME = (200, JSON_TYPE, json.dumps({"status": "ok", "version": __version__}).encode())
OPENAI = (
    200,
    JSON_TYPE,
    b'{"object":"list","data":[{"id":"x","object":"model","created":1,"owned_by":"y"}]}',
)
STREAM = {"Content-Type": "text/event-stream"}
UNKNOWN_KEY = json.dumps(
    {
        "error": {
            "code": "invalid_body",
            "type": "invalid_request",
            "message": "no key 'x'",
            "hint": "leave it out",
        }
    }
).encode()
STEP: dict[str, Any] = {
    "status": "resolving",
    "id": "x",
    "file": None,
    "completed": 0,
    "total": None,
    "file_completed": None,
    "file_total": None,
    "rate": None,
    "eta": None,
    "model_files": [],
    "proj_file": None,
    "downloaded": False,
    "error": None,
    "pull": "p",
    "seq": 1,
}


def frame(**changes: object) -> bytes:
    event = STEP | changes
    return b"id: %d\ndata: %s\n\n" % (event["seq"], json.dumps(event).encode())


@pytest.mark.parametrize(
    ("answers", "command", "code"),
    [
        ({}, "models list", "not_kawai"),
        ({}, "models rm x", "not_kawai"),
        ({}, "models pull a/b", "not_kawai"),
        ({"/v1/models": OPENAI}, "models list", "not_kawai"),
        ({"/v1/models": (200, STREAM, b"<p>hello")}, "models list", "not_kawai"),
        ({"/v1/models": (302, {"Location": "http://127.0.0.1:1/"}, b"")}, "models list", "not_kawai"),
        ({"/v1/models/x": (200, JSON_TYPE, b"{}")}, "models rm x", "not_kawai"),
        (
            {"/v1/models": (404, JSON_TYPE, b'{"error":{"code":404,"message":"no"}}')},
            "models list",
            "not_kawai",
        ),
        ({"/v1/models": OPENAI, "/healthz": OTHER}, "models list", "version_skew"),
        ({"/v1/models": OPENAI, "/healthz": SAME}, "models list", "remote_fault"),
        (
            {"/v1/models/index": (400, JSON_TYPE, UNKNOWN_KEY), "/healthz": OTHER},
            "models index",
            "invalid_body",
        ),
        (
            {"/v1/models/pull": (200, STREAM, frame() + frame(status="dreaming", seq=2)), "/healthz": OTHER},
            "models pull a/b",
            "version_skew",
        ),
    ],
)
def test_what_is_no_kawai_or_another_says_so(
    kawai: Program, answers: dict[str, tuple[int, dict[str, str], bytes]], command: str, code: str
) -> None:
    with answering(answers) as other:
        ended = kawai(*command.split(), "--server", other.url, "--json", KAWAI_TOKEN="s3cret")
        error = json.loads(ended.err.splitlines()[-1])["error"]
        assert (error["code"], ended.code) == (
            code,
            {"remote_fault": 70, "invalid_body": 2}.get(code, 6),
        )
        assert "Traceback" not in ended.err
        assert all(headers["authorization"] == "Bearer s3cret" for _, headers in other.asked)
    if "/healthz" in answers and code != "remote_fault":
        assert "9.9.9" in error["message"] + error["hint"]
        assert __version__ in error["message"] + error["hint"]


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [(502, "unreachable", 6), (504, "unreachable", 6), (429, "unavailable", 9), (403, "not_allowed", 4)],
)
def test_what_stands_before_it_is_no_bug_of_it(
    kawai: Program, status: int, code: str, exit_code: int
) -> None:
    with answering(
        {"/healthz": SAME, "/v1/models": (status, {"Content-Type": "text/html"}, b"<p>")}
    ) as other:
        ended = kawai("models", "list", "--json", "--server", other.url)
        assert (ended.code, ended.error["code"]) == (exit_code, code)
        assert "what stands before the kawai server" in ended.error["message"]


def test_a_pull_ends_with_its_final_event_whatever_follows(kawai: Program) -> None:
    final = frame(status="downloaded", seq=2, downloaded=True)
    told = frame() + final + frame(seq=3)
    with answering({"/v1/models/pull": (200, STREAM, told)}) as other:
        ended = kawai("models", "pull", "a/b", "--json", "--server", other.url)
    assert (ended.code, [event["seq"] for event in ended.events]) == (0, [1, 2])
    failed = frame(status="failed", seq=1)
    with answering({"/v1/models/pull": (200, STREAM, failed)}) as other:
        assert kawai("models", "pull", "a/b", "--server", other.url).code == 70


def test_a_pull_of_which_nothing_is_told_has_failed(kawai: Program) -> None:
    with answering({"/v1/models/pull": (200, STREAM, b"")}) as other:
        assert kawai("models", "pull", "a/b", "--server", other.url).code == 6


def test_a_server_that_repeats_itself_for_ever_is_left() -> None:
    same = (200, STREAM, frame())
    with answering({"/v1/models/pull": same, "/v1/pulls/p": same}) as other:
        feed = executing.run(MODELS_PULL, PullRequest("a/b"), _peer(other.url))
        assert isinstance(feed, RemoteFeed)
        feed._patience = Patience(pause=lambda _: None, attempts=9)
        with pytest.raises(Unreachable):
            list(feed.follow())
        assert len(other.asked) == 9


def test_more_than_is_known_of_is_no_skew(kawai: Program) -> None:
    body = json.dumps({"object": "list", "data": [], "news": 1}).encode()
    with answering({"/v1/models": (200, JSON_TYPE, body)}) as other:
        assert kawai("models", "list", "--json", "--server", other.url).out == '{"object":"list","data":[]}\n'


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"])
def test_what_speaks_otherwise_is_6(kawai: Program, said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    wire, _ = listener.accept()
                    with wire:
                        wire.recv(65_536)
                        wire.sendall(said)

        threading.Thread(target=answer, daemon=True).start()
        ended = kawai("models", "list", "--json", "--server", f"127.0.0.1:{listener.getsockname()[1]}")
        assert (ended.code, ended.error["type"]) == (6, "upstream")


# Dropped connections


def _request(client: socket.socket) -> bytes:
    """A whole request, with its body."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += client.recv(65_536)
    head, _, body = got.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    while len(body) < int(length[1] if length else 0):
        body += client.recv(65_536)
    return head + b"\r\n\r\n" + body


class Relay:
    """Passes bytes on to a server, and drops connections on command."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._target = address.hostname or "", address.port or 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.heads: list[bytes] = []
        self.drops_at: list[int | None] = []
        self._closed = False
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(self._target) as server:
            head = _request(client)
            self.heads.append(head)
            head = head.replace(self.url[7:].encode(), "{}:{}".format(*self._target).encode())
            left = self.drops_at.pop(0) if self.drops_at else None
            server.sendall(head)
            while data := server.recv(65_536 if left is None else min(left, 65_536)):
                client.sendall(data)
                if left is not None and (left := left - len(data)) <= 0:
                    return

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed before
            self._listener.shutdown(socket.SHUT_RDWR)  # else accept would take one more
        self._listener.close()


@pytest.fixture
def relay(daemon: Daemon, hub: LocalHub) -> Iterator[Relay]:
    hub.add_file(BIG, "Big-Q8_0.gguf", big_gguf())
    relay = Relay(daemon.url)
    yield relay
    relay.close()


def test_a_dropped_connection_is_attached_again(relay: Relay, tmp_path: Path) -> None:
    relay.drops_at = [1200, 900, 10]
    ended = Program(tmp_path / "far")("models", "pull", BIG, *SLOWLY, "--json", "--server", relay.url)
    assert (ended.code, ended.err) == (0, "")
    numbers = [event["seq"] for event in ended.events]
    assert numbers == sorted(set(numbers))  # type: ignore[type-var]
    assert [event["status"] for event in ended.events][-1] == "downloaded"
    assert len({event["pull"] for event in ended.events}) == 1
    first, *others = relay.heads
    assert first.startswith(b"POST /v1/models/pull ")
    assert len(others) == 3
    assert all(b"\r\nLast-Event-ID: " in each for each in others)


def _peer(url: str) -> Peer:
    return Peer(url, None, Route())


def _begun(peer: Peer) -> tuple[RemoteFeed, Iterator[Any]]:
    feed = executing.run(MODELS_PULL, PullRequest(BIG, limit_rate="1M"), peer)
    assert isinstance(feed, RemoteFeed)
    feed._patience = Patience(pause=lambda _: None, attempts=9)
    events = feed.follow()
    assert isinstance(next(events), Event)
    return feed, events


def test_a_server_that_stays_away_is_6_and_how_to_attach_is_said(relay: Relay) -> None:
    relay.drops_at = [1000]
    feed, events = _begun(_peer(relay.url))
    told: list[str] = []
    feed.on_drop = lambda error: told.append(error.message)
    relay.close()
    with pytest.raises(Unreachable) as caught:
        list(events)
    assert feed.pull is not None
    assert f"kawai pulls attach {feed.pull.pull} --server {relay.url}" in (caught.value.hint or "")
    assert (caught.value.exit_code, len(told)) == (6, 1)


def test_a_server_that_was_started_anew_has_no_such_pull(cli: Program, hub: LocalHub) -> None:
    hub.add_file(BIG, "Big-Q8_0.gguf", big_gguf())
    with serving(cli) as daemon:
        port = str(urlsplit(daemon.url).port)
        _, events = _begun(_peer(daemon.url))
        daemon.process.kill()
        daemon.process.wait()
        with cli.start("serve", "--port", port) as again:
            assert again.stderr
            assert "is serving on" in again.stderr.readline()
            with pytest.raises(Unreachable, match="started anew") as caught:
                list(events)
            again.send_signal(signal.SIGTERM)
            again.communicate()
    assert "run the same command again" in (caught.value.hint or "")


def test_the_own_daemon_that_has_ended_is_no_server(cli: Program, hub: LocalHub) -> None:
    hub.add_file(BIG, "Big-Q8_0.gguf", big_gguf())
    with serving(cli) as daemon:
        found = find_daemon(daemon.home)
        assert found
        feed, events = _begun(Peer.of_daemon(found, daemon.home))
        feed._patience = Patience()  # its sockets end a moment before it does
        daemon.process.kill()
        with pytest.raises(NoServer):
            list(events)
        daemon.process.wait()
    with pytest.raises(NoServer):
        executing.run(MODELS_LIST, NoRequest(), Peer.of_daemon(found, daemon.home))


@pytest.mark.parametrize("how", ["with pipes", "on a terminal"])
def test_ctrl_c_leaves_the_pull_and_says_how_to_attach(
    daemon: Daemon, hub: LocalHub, tmp_path: Path, how: str
) -> None:
    hub.add_file(BIG, "Big-Q8_0.gguf", big_gguf())
    far = Program(tmp_path / "far")
    words = ("models", "pull", BIG, "--limit-rate", "500k", "--server", daemon.url)
    if how == "with pipes":
        process = far.start(*words)
        assert process.stderr
        assert "downloading" in next(line for line in process.stderr if "downloading" in line)
        process.send_signal(signal.SIGINT)
        said, code = process.stderr.read(), process.wait(10)
        process.communicate()
    else:
        shown = far.on_terminal(*words, seen="kB/s", then=lambda each: each.send_signal(signal.SIGINT))
        said, code = shown.plain, shown.code
    (row,) = daemon.ask("GET", "/v1/pulls").json
    assert (
        f"the pull goes on; kawai pulls attach {row['pull']} --server {daemon.url} follows it again" in said
    )
    assert (code, row["status"]) == (130, "downloading")
    if how == "with pipes":
        attached = far("pulls", "attach", row["pull"], "--server", daemon.url)
        assert (attached.code, attached.out) == (0, f"Big-Q8_0 is installed: {daemon.url}\n")
    else:
        assert far("pulls", "cancel", row["pull"], "--server", daemon.url).code == 0
        ended = far("pulls", "attach", row["pull"], "--server", daemon.url)
        assert (ended.code, "cancelled; what was fetched is kept" in ended.err) == (130, True)


# With an engine


def test_kawai_run_answers_there(there: There, real_model: Path) -> None:
    store = there.daemon.home / "models" / "me" / "smol"
    store.mkdir(parents=True)
    (store / "Smol-Q4_1.gguf").symlink_to(real_model)
    assert there.at("models", "index").code == 0
    ended = there.at("run", "Smol-Q4_1", "Hi")
    assert (ended.code, ended.err, bool(ended.out.strip())) == (0, "", True)
    (row,) = json.loads(there.at("models", "ps", "--json").out)
    assert (row["id"], row["state"]) == ("Smol-Q4_1", "ready")
    said = there.at("logs", "Smol-Q4_1", "--json")
    assert any(line["source"] == row["engine"] for line in json.loads(said.out))
    assert there.at("models", "unload", "Smol-Q4_1").code == 0
    assert there.at("run", "nope", "x", "--json").error["code"] == "model_not_found"
    missing = there.at("run", BIG, "x")
    assert (missing.code, "add --yes to fetch it" in missing.err) == (3, True)
    both = there.at("run", "Smol-Q4_1", "x", "--engine", "xllamacpp")
    assert (both.code, "--server names another kawai" in both.err) == (2, True)
    assert there.at("models", "rm", "Smol-Q4_1").code == 0
    assert real_model.exists()
