"""The download corpus: whatever a server does, files are right, state is sound, and the next run succeeds."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import socket
import ssl
import stat
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from kawai_tools.contract import NoRequest
from kawai_tools.errors import KawaiError, NotAModel, tree
from kawai_tools.events import ModelPullEvent
from kawai_tools.models.model import ModelList, PlanPayload
from kawai_tools.operations.models import MODELS_LIST, MODELS_PULL, PullRequest
from kawai_tools.transfer.patience import LONGEST_WAIT, Patience
from kawai_tools.transfer.pulls import Pull
from kawai_tools.transfer.ranges import BLOCK
from kawai_tools.transfer.wire import Timeouts
from tests.hub import Fault, LocalHub
from tests.samples import F32, tiny_gguf
from tests.workspaces import pull

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kawai_tools.workspace import Workspace
    from tests.hub.exchange import Exchange
    from tests.hub.messages import Answer, Request, ServerName
    from tests.program import Program
    from tests.workspaces import Workspaces

pytestmark = pytest.mark.timeout(20)  # whatever hangs is cut off here, not after minutes

REPO, FILE = "me/tiny", "tiny-Q4_0.gguf"
SIZE = 300_000
SECRET = "hf_canaryNeverToBeSeen"
SHORT = Timeouts(connect=2.0, stall=0.3, tick=0.02)
HURRY = 50.0
CAP = 20.0
"""Seconds that any case may take."""

FAILURES = {each.code: each for each in tree()}


def model(seed: int = 0, size: int = SIZE, split: tuple[int, int] | None = None) -> bytes:
    """Make a valid model whose tensor no other seed has, so that a splice of two shows."""
    numbers = size // 4
    whole = tiny_gguf(tensors=(("token_embd.weight", (numbers,), F32),), split=split)
    return whole[: -4 * numbers] + random.Random(seed).randbytes(4 * numbers)  # noqa: S311 - reproducible


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class End(NamedTuple):
    """How a pull ended: its final status, the error's code, and all events."""

    status: str
    code: str | None
    events: list[ModelPullEvent]
    seconds: float


class Watcher:
    """Hashes every sighting of a final name while pulls run."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.seen: dict[tuple[str, int, int, int], str] = {}
        self.looking = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher")
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.look()

    def look(self) -> None:
        for path in final_names(self.store):
            with suppress(FileNotFoundError), self.looking, path.open("rb") as file:
                found = os.fstat(file.fileno())
                key = (path.name, found.st_ino, found.st_size, found.st_mtime_ns)
                if key not in self.seen:
                    self.seen[key] = hashlib.file_digest(file, "sha256").hexdigest()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self.look()


def final_names(store: Path) -> list[Path]:
    """Every file in the store under a name that promises verified bytes."""
    found = []
    for folder, folders, names in os.walk(store):
        folders[:] = [each for each in folders if each not in {".partial", ".kawai"}]
        found += [
            store / folder / name for name in names if name != ".kawai-store" and ".partial" not in name
        ]
    return found


def snapshot(root: Path, *left_out: Path) -> dict[str, object]:
    """Everything below a directory: content, target and mode of each name."""
    found: dict[str, object] = {}
    for folder, folders, names in os.walk(root):
        here = root / folder
        folders[:] = [each for each in folders if here / each not in left_out]
        for path in [here, *(here / name for name in names)]:
            mode = path.lstat().st_mode
            content = path.readlink() if stat.S_ISLNK(mode) else path.read_bytes() if path.is_file() else None
            found[str(path)] = (mode, content)
    return found


def open_files() -> set[tuple[int, int, int]]:
    """The open regular files of this process."""
    found = set()
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 - not a directory of files
        with suppress(OSError):
            status = os.fstat(int(name))
            if stat.S_ISREG(status.st_mode):
                found.add((int(name), status.st_dev, status.st_ino))
    return found


def connections_to(ports: set[int]) -> list[int]:
    """The descriptors of this process that are connected to these ports."""
    found = []
    for name in os.listdir("/dev/fd"):  # noqa: PTH208
        with suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as sock:
                if sock.family == socket.AF_INET and sock.getpeername()[1] in ports:
                    found.append(int(name))
    return found


class Corpus:
    """A hub, a home with a canary tree around it, and what must hold whatever happened."""

    def __init__(self, root: Path, hub: LocalHub, workspaces: Workspaces) -> None:
        self.root, self.hub, self.workspaces = root, hub, workspaces
        self.home = workspaces.home
        self.store = self.home / "models"
        self.good: set[str] = set()
        self.told: list[str] = []
        (root / "canary" / "models").mkdir(parents=True)
        (root / "canary" / "models" / FILE).write_bytes(b"canary")
        (root / "canary" / "link").symlink_to(root / "canary" / "models")
        hub.add_token(SECRET)
        self._before = snapshot(root, self.home, root / "hub")
        self._threads = set(threading.enumerate())
        self._files = open_files()
        self._watcher = Watcher(self.store)

    # What is there to be pulled

    def publish(self, data: bytes, path: str = FILE) -> str:
        """Put a good file on the hub; return its URL."""
        self.good.add(digest(data))
        self.hub.add_file(REPO, path, data)
        return self.hub.url(REPO, path)

    def plain(self, data: bytes, path: str = FILE) -> str:
        """Put a good file where no hub describes it; return its URL."""
        self.good.add(digest(data))
        return self.hub.add_plain(path, data)

    def serve(self, kind: str, data: bytes) -> str:
        return self.publish(data) if kind == "hub" else self.plain(data)

    # Pulling

    @contextmanager
    def workspace(self, **settings: Any) -> Iterator[Workspace]:  # noqa: ANN401
        """Make a workspace as a new process would; when it is closed nothing of it may be left."""
        made = self.workspaces(**{"timeouts": SHORT, "hub_token": SECRET, **settings})
        try:
            yield made
        finally:
            made.pulls.close(10)
            for each in made.pulls.list():
                each.join(10)
            made.close()

    def pull(self, source: str, proj_url: str | None = None, **more: Any) -> End:  # noqa: ANN401
        """Pull to the end in a workspace of its own."""
        settings = {name: more.pop(name) for name in ("serves", "ssl_cert_file", "timeouts") if name in more}
        begin = time.monotonic()
        with self.workspace(**settings) as workspace:
            try:
                events = pull(workspace, source, proj_url, **more)
            except KawaiError as error:
                self.told.append(repr(error.info))
                return End("failed", error.code, [], time.monotonic() - begin)
        self.told.append(repr(events))
        last = events[-1]
        assert [event.seq for event in events] == sorted({event.seq for event in events})
        return End(last.status, last.error.code if last.error else None, events, time.monotonic() - begin)

    def cancel_when(self, source: str, enough: Callable[[ModelPullEvent], bool], **more: Any) -> End:  # noqa: ANN401
        """Pull until an event says that it is enough, then cancel."""
        begin = time.monotonic()
        with self.workspace() as workspace:
            running = MODELS_PULL.run(workspace, PullRequest(source, **more))
            assert isinstance(running, Pull)
            events = []
            for event in running.follow():
                assert isinstance(event, ModelPullEvent)
                events.append(event)
                if enough(event):
                    running.cancel()
        return End(events[-1].status, None, events, time.monotonic() - begin)

    # What the servers saw

    def bodies(self, path: str = "") -> list[Request]:
        """The requests for a file's bytes that were answered, in the order of their ends."""
        return [each for each in self.hub.requests if is_body(each) and path in each.path]

    def starts(self) -> list[int]:
        """Where each request for bytes began."""
        return [start_of(each) for each in self.bodies()]

    def sent(self) -> int:
        return sum(each.sent_bytes for each in self.bodies())

    # What must hold

    def check(self, *, installed: int | None = None) -> None:
        """Hold everything to what must be true whatever happened."""
        assert snapshot(self.root, self.home, self.root / "hub") == self._before
        self._check_files(installed)
        self._check_secret()
        self._check_leaks()

    def _check_files(self, installed: int | None) -> None:
        for path in final_names(self.store):
            assert digest(path.read_bytes()) in self.good, f"{path} has a final name and is not right"
        with self.workspace() as workspace:
            listing = MODELS_LIST.run(workspace, NoRequest())
            assert isinstance(listing, ModelList)
            rows = listing.data
            entries = [workspace.models.index.by_id(row.id) for row in rows]
        assert installed is None or len(rows) == installed
        listed = [file for entry in entries if entry for file in entry.record.files]
        for file in listed:
            assert file.sha256 == digest((self.store / file.path).read_bytes())
            assert file.sha256 in self.good
        assert len(final_names(self.store)) == len(listed)

    def _check_secret(self) -> None:
        needle = SECRET.encode()
        for folder, _, names in os.walk(self.home):
            for name in names:
                assert SECRET not in name
                assert needle not in (self.home / folder / name).read_bytes()
        assert SECRET not in "".join(self.told)
        for each in self.hub.requests:
            if each.server == "cdn" or not each.headers["host"].startswith("127.0.0.1:"):
                assert SECRET not in repr(each)

    def _check_leaks(self) -> None:
        servers = ("hub-", "cdn-", "tls-", "watcher")
        left_over = [
            each.name
            for each in set(threading.enumerate()) - self._threads
            if not each.name.startswith(servers) and not isinstance(each, threading.Timer)
        ]
        assert left_over == []
        below = {
            (each.st_dev, each.st_ino)
            for folder, _, names in os.walk(self.home)
            for each in (os.lstat(os.path.join(folder, name)) for name in names)  # noqa: PTH118
        }
        with self._watcher.looking:
            left = [each for each in open_files() - self._files if each[1:] in below]
        assert left == []
        ports = {urlsplit(self.hub.endpoint).port, urlsplit(self.hub.cdn_endpoint).port}
        assert connections_to({port for port in ports if port}) == []

    def stop(self) -> None:
        self._watcher.stop()
        bad = {key[0] for key, found in self._watcher.seen.items() if found not in self.good}
        assert bad == set(), "a final name was seen with bytes that are not right"


def is_body(request: Request) -> bool:
    asked = request.headers.get("range") != "bytes=0-0"
    return request.server == "cdn" and request.method == "GET" and request.status in {200, 206} and asked


def start_of(request: Request) -> int:
    header = request.headers.get("range", "bytes=0-")
    return int(header.removeprefix("bytes=").partition("-")[0])


@pytest.fixture
def corpus(
    tmp_path: Path, hub: LocalHub, workspaces: Workspaces, caplog: pytest.LogCaptureFixture
) -> Iterator[Corpus]:
    made = Corpus(tmp_path, hub, workspaces)
    try:
        yield made
    finally:
        made.stop()
    assert SECRET not in caplog.text
    assert [each for each in caplog.records if each.exc_info] == [], "a bug in kawai, with a traceback"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits before another attempt, as they were asked for; what really passes is a fiftieth."""
    asked: list[float] = []
    init = Patience.__init__

    def hurried(
        self: Patience,
        budget: float = 30.0,
        pause: Callable[[float], None] = time.sleep,
        **more: Any,  # noqa: ANN401
    ) -> None:
        def short(seconds: float) -> None:
            asked.append(seconds)
            pause(seconds / HURRY)

        init(self, budget, short, **more)

    monkeypatch.setattr(Patience, "__init__", hurried)
    return asked


# The corpus

ONCE_CUT = Fault.cut(0.4, times=1)
LATER: dict[str, Any] = {"method": "GET", "skip": 1}
NEVER = "not a case"
"""Without a digest, or without a hub, there is nothing in it that could be told, or go wrong."""


class Case(NamedTuple):
    """Faults, and the code that a pull from a hub and one from a plain URL end with; None: downloaded."""

    faults: tuple[Fault, ...]
    hub: str | None = None
    plain: str | None = None


def case(*faults: Fault, hub: str | None = None, plain: str | None = None, both: str | None = None) -> Case:
    return Case(faults, both or hub, both or plain)


def header(name: str, value: str, server: Any = "hub", method: str = "HEAD") -> Fault:  # noqa: ANN401
    return Fault("header", lambda ex: ex.answer().having(name, value), server=server, method=method)


DAY = {"Retry-After": "86400"}
CASES = {
    "200 to every Range request": case(Fault.ignore_range()),
    "no ranges at all": case(Fault.no_ranges()),
    "200 to the request that resumes": case(ONCE_CUT, Fault.ignore_range(skip=1)),
    "206 from further on": case(Fault.shift_range(1000)),
    "206 from before, on resuming": case(ONCE_CUT, Fault.shift_range(-1000, skip=1)),
    "206 from further on under the right Content-Range": case(
        ONCE_CUT, Fault.shift_range(1000, lie=True, skip=1, times=1)
    ),
    "206 from before under the right Content-Range": case(
        ONCE_CUT, Fault.shift_range(-1000, lie=True, skip=1, times=1), hub="digest_mismatch", plain=NEVER
    ),
    "206 without Content-Range": case(Fault.no_content_range()),
    "206 without Content-Range, on resuming": case(ONCE_CUT, Fault.no_content_range(skip=1)),
    "206 that ends early": case(Fault.short_range(0.5, times=1)),
    "206 that always ends early": case(Fault.short_range(100_000)),
    "206 that always ends early, in small steps": case(Fault.short_range(40_000)),
    "206 with a Content-Range of 5,000 digits": case(
        header("Content-Range", f"bytes 0-{'9' * 5000}/*", "cdn", "GET")
    ),
    "206 of an unknown total": case(
        Fault(
            "star",
            lambda ex: ex.answer().having(
                "Content-Range", (ex.answer().header("Content-Range") or "").partition("/")[0] + "/*"
            ),
            "range",
        ),
        ONCE_CUT,
    ),
    "more bytes, and a length that says so": case(Fault.surplus(1000), both="bad_response"),
    "more bytes once": case(Fault.surplus(1000, times=1)),
    "more bytes after the stated length": case(Fault.surplus(1000, "length")),
    "more bytes, chunked": case(Fault.surplus(1000, "chunked"), both="bad_response"),
    "more bytes, chunked, once": case(Fault.surplus(1000, "chunked", times=1)),
    "more bytes until the connection closes": case(Fault.surplus(1000, "close"), both="bad_response"),
    "ETag changed": case(ONCE_CUT, Fault.etag('"new"', **LATER)),
    "ETag changed each time": case(
        ONCE_CUT,
        Fault.etag('"b"', **LATER),
        Fault.cut(0.6, skip=1, times=1),
        Fault.etag('"c"', method="GET", skip=2),
    ),
    "ETag weak": case(Fault.weak_etag(), ONCE_CUT),
    "ETag becomes weak": case(ONCE_CUT, Fault.weak_etag(**LATER)),
    "ETag absent": case(Fault.no_etag(), ONCE_CUT),
    "ETag absent, always cut": case(Fault.no_etag(), Fault.cut(0.4), hub=NEVER, plain="bad_response"),
    "416 to every Range request": case(Fault.range_refused()),
    "416 on resuming": case(ONCE_CUT, Fault.range_refused(skip=1)),
    "cut at 40 %": case(ONCE_CUT),
    "cut by RST": case(Fault.cut(0.4, reset=True, times=1)),
    "cut at once, always": case(Fault.cut(0), both="unreachable"),
    "ends early without a length": case(Fault.truncate(0.4, times=1)),
    "ends at once without a length, always": case(Fault.truncate(0), both="unreachable"),
    "right size, wrong bytes": case(Fault.flip(0.5), hub="digest_mismatch", plain=NEVER),
    "right size, wrong bytes, in what was resumed": case(
        ONCE_CUT, Fault.flip(0.7, skip=1), hub="digest_mismatch", plain=NEVER
    ),
    "login page": case(Fault.login_page(), both="not_a_model"),
    "login page on resuming": case(ONCE_CUT, Fault.login_page(**LATER), both="not_a_model"),
    "login page of the hub": case(
        Fault.status(200, body="<!doctype html><title>Sign in</title>", server="hub"),
        hub="not_a_model",
        plain=NEVER,
    ),
    "pointer text": case(Fault.pointer(), both="not_a_model"),
    "endless body": case(Fault.endless(), both="malformed_gguf"),
    "endless body under a length": case(Fault.endless(chunked=False), both="bad_response"),
    "endless body on resuming": case(ONCE_CUT, Fault.endless(skip=1), both="bad_response or malformed_gguf"),
    "a byte every ten seconds": case(Fault.drip(10), both="upstream_timeout"),
    "a byte every ten seconds from 40 % on": case(Fault.drip(10, after=0.4, times=1)),
    "accepted, then silent": case(Fault.silent(server="cdn", method="GET"), both="upstream_timeout"),
    "accepted, then silent, when asked for its size": case(
        Fault.silent(method="HEAD"), both="upstream_timeout"
    ),
    "silent from 40 % on": case(Fault.silent(0.4, times=1)),
    "gzip though identity was asked": case(Fault.gzip(), both="bad_response"),
    "gzip once": case(Fault.gzip(times=1)),
    "redirect loop": case(Fault.redirect_loop(server="cdn"), both="bad_redirect"),
    "redirect loop of the hub": case(Fault.redirect_loop(server="hub"), hub="bad_redirect", plain=NEVER),
    "signed URL expires mid-file": case(Fault.expire(0.4, times=1)),
    "signed URLs are never good": case(
        Fault.expire(method="GET", server="cdn"), hub="bad_response", plain=NEVER
    ),
    "429 for a day": case(Fault.status(429, DAY, server="cdn", method="GET"), both="rate_limited"),
    "429 for a day, once": case(Fault.status(429, DAY, times=1)),
    "429 for a day when asked for its size": case(Fault.status(429, DAY, method="HEAD"), both="rate_limited"),
    "503 always": case(Fault.status(503), both="unreachable"),
    "503 four times": case(Fault.status(503, server="cdn", method="GET", times=4)),
    "connections refused for a moment": case(Fault.refuse(0.03, server="cdn", method="GET", times=1)),
    "404 for the bytes": case(Fault.status(404, server="cdn", method="GET"), both="file_not_found"),
    "204 for the bytes": case(Fault.status(204, server="cdn", method="GET"), both="bad_response"),
    "HEAD refused": case(Fault.head_refused(), hub="bad_response"),
    "hostile Content-Disposition": case(
        Fault.disposition('attachment; filename="../../../canary/models/tiny-Q4_0.gguf"')
    ),
    "a size of 2^60": case(header("X-Linked-Size", str(1 << 60)), hub="no_space", plain=NEVER),
    "a size of 5,000 digits": case(header("X-Linked-Size", "9" * 5000), hub="bad_response", plain=NEVER),
    "a size of superscript two": case(header("X-Linked-Size", "\xb2"), hub="bad_response", plain=NEVER),
    "a negative size": case(header("X-Linked-Size", "-1"), hub="bad_response", plain=NEVER),
    "a size too small": case(header("X-Linked-Size", str(SIZE // 2)), hub="bad_response", plain=NEVER),
    "a size too large": case(header("X-Linked-Size", str(SIZE * 2)), hub="bad_response", plain=NEVER),
    "a wrong digest": case(header("X-Linked-ETag", f'"{"0" * 64}"'), hub="digest_mismatch", plain=NEVER),
}

REFUSED_TARGETS = [
    "file:///etc/hostname",
    "ftp://127.0.0.1/x",
    "data:application/octet-stream,GGUF",
    "http://169.254.169.254/latest/meta-data",
    "http://[::ffff:169.254.169.254]/latest",
    "http://[64:ff9b::a9fe:a9fe]/latest",
    "http://2852039166/latest",
    "http://0xa9.0xfe.0xa9.0xfe/latest",
    "http://2130706433:{port}/x",
    "http://0x7f000001:{port}/x",
    "http://0177.0.0.1:{port}/x",
    "http://127.1:{port}/x",
    "http://0:{port}/x",
    "http://0.0.0.0:{port}/x",
    "http://[::]:{port}/x",
    "http://[fe80::1]:{port}/x",
    "http://224.0.0.1/x",
    "http://127.0.0.1:99999/x",
    "http://127.0.0.1:http/x",
    "http://[::1/x",
    "http://[zz]/x",
]


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in CASES for kind in ("hub", "plain") if getattr(CASES[name], kind) != NEVER],
)
def test_corpus(name: str, kind: str, corpus: Corpus, hub: LocalHub, waits: list[float]) -> None:
    expected = getattr(CASES[name], kind)
    data = model()
    source = corpus.serve(kind, data)
    hub.misbehave(*CASES[name].faults)
    end = corpus.pull(source)
    assert end.status == ("failed" if expected else "downloaded")
    assert end.code in (expected.split(" or ") if expected else [None])
    assert end.seconds < CAP
    assert all(wait <= LONGEST_WAIT for wait in waits)
    assert sum(waits) <= 30
    corpus.check(installed=0 if expected else 1)
    hub.behave()
    hub.up()
    again = corpus.pull(source)
    assert again.status == ("downloaded" if expected else "exists")
    corpus.check(installed=1)
    assert [path.read_bytes() for path in final_names(corpus.store)] == [data]
    assert not any((corpus.store / ".partial").iterdir())


@pytest.mark.parametrize("kind", ["hub", "plain"])
@pytest.mark.parametrize("to", REFUSED_TARGETS)
def test_a_redirect_that_must_not_be_followed_is_refused(
    to: str, kind: str, corpus: Corpus, hub: LocalHub, waits: list[float]
) -> None:
    data = model()
    source = corpus.serve(kind, data)
    bait = urlsplit(hub.add_plain("bait.gguf", data))
    hub.misbehave(Fault.redirect(to.replace("/x", bait.path).format(port=bait.port), path=FILE, server="cdn"))
    end = corpus.pull(source)
    assert (end.status, end.code) == ("failed", "bad_redirect")
    assert not [each for each in hub.requests if each.path == bait.path]
    assert waits == []
    corpus.check(installed=0)
    hub.behave()
    assert corpus.pull(source).status == "downloaded"
    corpus.check(installed=1)


@pytest.mark.parametrize("serves", [False, True])
def test_credentials_stay_behind_when_another_host_is_named(
    corpus: Corpus, hub: LocalHub, *, serves: bool
) -> None:
    source = corpus.publish(model())
    port = urlsplit(hub.endpoint).port

    def elsewhere(ex: Exchange) -> Answer:
        to = f"http://localhost:{port}{ex.call.path}"
        return Fault.redirect(to, status=307).twist(ex)

    hub.misbehave(Fault("elsewhere", elsewhere, server="hub", method="GET", times=1))
    end = corpus.pull(source, serves=serves)
    there = [each for each in hub.requests if each.headers["host"].startswith("localhost")]
    assert [each for each in there if "authorization" in each.headers] == []
    if serves:
        # a server's redirects must be https to a public address, but for the hub's own host
        assert (end.code, there) == ("bad_redirect", [])
    else:
        assert (end.status, len(there)) == ("downloaded", 1)
    asked = [each for each in hub.requests if each.server == "hub" and each not in there]
    assert {each.headers["authorization"] for each in asked} == {f"Bearer {SECRET}"}
    corpus.check(installed=0 if serves else 1)


# Resuming


def partly(corpus: Corpus, hub: LocalHub, source: str, share: float = 0.4) -> int:
    """Pull a share of a file and cancel; the number of bytes that are here then."""
    hub.misbehave(Fault.silent(share))
    end = corpus.cancel_when(source, lambda event: (event.file_completed or 0) >= int(SIZE * share))
    assert end.status == "cancelled"
    assert end.events[-1].error is None
    corpus.check(installed=0)
    hub.behave()
    hub.clear_requests()
    return end.events[-1].completed


@pytest.mark.parametrize("kind", ["hub", "plain"])
def test_a_cancelled_pull_goes_on_in_another_process_with_what_is_missing(
    kind: str, corpus: Corpus, hub: LocalHub
) -> None:
    data = model()
    source = corpus.serve(kind, data)
    have = partly(corpus, hub, source)
    assert have == int(len(data) * 0.4)
    with corpus.workspace() as workspace:
        plan = MODELS_PULL.run(workspace, PullRequest(source, dry_run=True))
        assert isinstance(plan, PlanPayload)
        assert plan.files[0].have == have
    hub.clear_requests()  # a plan has read the header
    end = corpus.pull(source)
    assert end.status == "downloaded"
    assert end.events[1].completed == have
    assert corpus.starts() == [have]
    assert corpus.sent() == len(data) - have
    corpus.check(installed=1)


@pytest.mark.parametrize("fault", [Fault.weak_etag(), Fault.no_etag()], ids=lambda fault: fault.name)
def test_bytes_that_nothing_binds_to_a_version_are_fetched_again(
    fault: Fault, corpus: Corpus, hub: LocalHub
) -> None:
    data = model()
    source = corpus.plain(data)
    hub.misbehave(fault)
    partly(corpus, hub, source)
    hub.misbehave(fault)
    assert corpus.pull(source).status == "downloaded"
    assert corpus.sent() == len(data)
    corpus.check(installed=1)


CHANGES = {
    "other bytes of the same size": lambda: model(1),
    "a longer file": lambda: model(1, SIZE + 40_000),
    "a shorter file": lambda: model(1, SIZE // 2),
}


@pytest.mark.parametrize("kind", ["hub", "plain"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changed_between_runs_is_fetched_from_its_start(
    change: str, kind: str, corpus: Corpus, hub: LocalHub
) -> None:
    source = corpus.serve(kind, model())
    partly(corpus, hub, source)
    corpus.good.clear()
    data = CHANGES[change]()
    assert corpus.serve(kind, data) == source
    assert corpus.pull(source).status == "downloaded"
    assert corpus.starts() == [0]
    assert corpus.sent() == len(data)
    corpus.check(installed=1)


def test_a_new_size_under_an_old_etag_is_fetched_from_its_start(corpus: Corpus, hub: LocalHub) -> None:
    source = corpus.plain(model())
    same = Fault.etag('"always"')
    hub.misbehave(same)
    partly(corpus, hub, source)
    corpus.good.clear()
    corpus.plain(model(1, SIZE + 4000))
    hub.misbehave(same)
    assert corpus.pull(source).status == "downloaded"
    assert corpus.starts() == [0]
    corpus.check(installed=1)


def test_a_partial_that_rotted_is_fetched_again_in_the_same_run(corpus: Corpus, hub: LocalHub) -> None:
    data = model()
    source = corpus.publish(data)
    partly(corpus, hub, source)
    (kept,) = corpus.store.glob(".partial/*/*.partial")
    with kept.open("r+b") as file:
        file.seek(50_000)
        file.write(b"rot")
    end = corpus.pull(source)
    assert end.status == "downloaded"
    assert corpus.starts() == [int(len(data) * 0.4), 0]
    corpus.check(installed=1)


@pytest.mark.parametrize(
    "garbage", [b"", b"{", b'{"url":1}', b"[" * 100_000], ids=["empty", "cut", "wrong", "deep"]
)
def test_a_broken_record_of_a_partial_starts_over(garbage: bytes, corpus: Corpus, hub: LocalHub) -> None:
    source = corpus.publish(model())
    partly(corpus, hub, source)
    (record,) = (each for each in corpus.store.glob(".partial/*/*.json") if each.name != "claim.json")
    record.write_bytes(garbage)
    assert corpus.pull(source).status == "downloaded"
    assert corpus.starts() == [0]
    corpus.check(installed=1)


def test_a_login_page_in_between_costs_nothing_that_was_fetched(corpus: Corpus, hub: LocalHub) -> None:
    source = corpus.publish(model())
    have = partly(corpus, hub, source)
    hub.misbehave(Fault.login_page())
    assert corpus.pull(source).code == "not_a_model"
    hub.behave()
    hub.clear_requests()
    assert corpus.pull(source).status == "downloaded"
    assert corpus.starts() == [have]
    corpus.check(installed=1)


def test_a_signed_url_that_expires_mid_file_is_resolved_again_and_resumed(
    corpus: Corpus, hub: LocalHub, waits: list[float]
) -> None:
    data = model()
    source = corpus.publish(data)
    hub.misbehave(Fault.expire(0.4, times=1))
    assert corpus.pull(source).status == "downloaded"
    assert corpus.sent() == len(data)
    assert len({each.query for each in corpus.bodies()}) == 2
    assert len(waits) == 1
    corpus.check(installed=1)


@pytest.mark.parametrize("seed", range(16))
def test_random_schedules_never_splice(seed: int, corpus: Corpus, hub: LocalHub, waits: list[float]) -> None:
    dice = random.Random(seed)  # noqa: S311 - reproducible
    kind = dice.choice(["hub", "plain"])
    versions = [model(number, SIZE + 4000 * dice.choice([0, 0, number])) for number in range(4)]
    source = corpus.serve(kind, versions[0])

    def change(ex: Exchange) -> Answer:
        answer = ex.answer()
        corpus.serve(kind, dice.choice(versions))
        return answer

    def strikes() -> Fault:
        skip = dice.randrange(4)
        once: dict[str, Any] = {"skip": skip, "times": dice.choice([1, 1, 2])}
        return dice.choice(
            [
                Fault.cut(dice.random(), reset=dice.random() < 0.5, **once),
                Fault.cut(dice.random(), **once),
                Fault.truncate(dice.random(), **once),
                Fault.short_range(dice.random(), **once),
                Fault.ignore_range(**once),
                Fault.shift_range(dice.choice([-500, 500]), **once),
                Fault.no_content_range(**once),
                Fault.range_refused(**once),
                Fault.expire(dice.random(), **once),
                Fault.endless(**once),
                Fault.surplus(500, "chunked", **once),
                Fault.etag(dice.choice(['"x"', 'W/"x"', None]), method="GET", **once),
                Fault("change", change, server="cdn", **once),
            ]
        )

    for _ in range(3):
        hub.misbehave(*(strikes() for _ in range(dice.randrange(1, 6))))
        end = corpus.pull(source, force=dice.random() < 0.5)
        assert end.code is None or FAILURES[end.code].type in {"upstream", "integrity", "conflict"}, end.code
        corpus.check()
        hub.behave()
    final = versions[0]
    corpus.serve(kind, final)
    assert corpus.pull(source, force=True).status in {"downloaded", "exists"}
    corpus.check(installed=1)
    assert [path.read_bytes() for path in final_names(corpus.store)] == [final]
    assert sum(waits) < 400


# Shards


def shard_names(count: int = 3) -> list[str]:
    return [f"big-Q4_0-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]


def publish_shards(corpus: Corpus, version: int = 0) -> list[bytes]:
    shards = [model(10 * version + number, split=(number, 3)) for number in range(3)]
    for name, data in zip(shard_names(), shards, strict=True):
        corpus.publish(data, name)
    return shards


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault.status(404, server="cdn", path="00002-of"), "file_not_found"),
        (Fault.status(503, server="cdn", path="00002-of"), "unreachable"),
        (Fault.flip(path="00002-of"), "digest_mismatch"),
        (Fault.login_page(path="00002-of"), "not_a_model"),
    ],
    ids=["404", "503", "wrong bytes", "login page"],
)
def test_a_set_that_lacks_a_shard_is_not_listed_and_keeps_the_good_one(
    fault: Fault, code: str, corpus: Corpus, hub: LocalHub, waits: list[float]
) -> None:
    shards = publish_shards(corpus)
    source = hub.url(REPO, shard_names()[2])
    hub.misbehave(fault)
    end = corpus.pull(source)
    assert (end.status, end.code) == ("failed", code)
    assert end.events[-1].file == f"{REPO}/{shard_names()[1]}"
    assert len(waits) in {0, 4}
    corpus.check(installed=0)
    hub.behave()
    hub.clear_requests()
    end = corpus.pull(source)
    assert end.status == "downloaded"
    assert end.events[-1].completed == end.events[-1].total == sum(map(len, shards))
    assert corpus.bodies("00001-of") == []
    assert corpus.sent() == len(shards[1]) + len(shards[2])
    corpus.check(installed=1)


def test_a_shard_that_the_hub_lacks_refuses_the_plan_and_names_it(corpus: Corpus, hub: LocalHub) -> None:
    publish_shards(corpus)
    hub.remove_file(REPO, shard_names()[1])
    end = corpus.pull(hub.url(REPO, shard_names()[0]))
    assert (end.code, end.events) == ("file_not_found", [])
    assert shard_names()[1] in corpus.told[-1]
    assert corpus.bodies() == []
    corpus.check(installed=0)


def test_shards_are_all_of_one_commit_whatever_is_pushed_meanwhile(corpus: Corpus, hub: LocalHub) -> None:
    shards = publish_shards(corpus)

    def push(ex: Exchange) -> Answer:
        answer = ex.answer()
        publish_shards(corpus, 1)
        return answer

    hub.misbehave(Fault("push", push, server="hub", method="HEAD", path="00001-of", times=1))
    assert corpus.pull(hub.url(REPO, shard_names()[0])).status == "downloaded"
    assert sorted(path.read_bytes() for path in final_names(corpus.store)) == sorted(shards)
    corpus.check(installed=1)


# Patience


@pytest.mark.parametrize("server", ["hub", "cdn"])
@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_failing_server_is_asked_at_least_five_times_within_thirty_seconds(
    status: int,
    server: ServerName,
    corpus: Corpus,
    hub: LocalHub,
    waits: list[float],
) -> None:
    source = corpus.publish(model())
    hub.misbehave(Fault.status(status, DAY, server=server))
    end = corpus.pull(source)
    assert (end.status, end.code) == ("failed", "rate_limited" if status == 429 else "unreachable")
    assert len([each for each in hub.requests if each.status == status]) >= 5
    assert len(waits) >= 4
    assert waits == sorted(waits)
    assert sum(waits) <= 30


@pytest.mark.slow
def test_patience_ends_in_real_time_too(cli: Program, hub: LocalHub) -> None:
    hub.add_file(REPO, FILE, model())
    hub.misbehave(Fault.status(503, server="cdn"))
    begin = time.monotonic()
    ended = cli("models", "pull", hub.url(REPO, FILE), "--json")
    assert 2 < time.monotonic() - begin < 31
    assert ended.code == 6
    assert len([each for each in hub.requests if each.status == 503]) >= 5


def test_a_cancelled_pull_does_not_wait_out_a_retry_after(corpus: Corpus, hub: LocalHub) -> None:
    source = corpus.publish(model())
    hub.misbehave(Fault.status(429, DAY, server="cdn"))
    end = corpus.cancel_when(source, lambda event: event.status == "downloading")
    assert end.status == "cancelled"
    assert end.seconds < 2
    corpus.check(installed=0)


@pytest.mark.parametrize("after", [None, 0.4], ids=["before the head", "mid-file"])
def test_a_cancelled_pull_does_not_wait_for_a_silent_server(
    after: float | None, corpus: Corpus, hub: LocalHub
) -> None:
    source = corpus.publish(model())
    hub.misbehave(Fault.silent(after, server="cdn"))
    with corpus.workspace(timeouts=Timeouts(stall=60)) as workspace:
        running = MODELS_PULL.run(workspace, PullRequest(source))
        assert isinstance(running, Pull)
        wanted = int(SIZE * (after or 0))
        for event in running.follow():
            assert isinstance(event, ModelPullEvent)
            if event.status == "downloading" and (event.file_completed or 0) >= wanted:
                running.cancel()
                begin = time.monotonic()
        assert time.monotonic() - begin < 1.5
        assert running.last.status == "cancelled"
    corpus.check(installed=0)


def test_a_pull_that_is_cancelled_while_hashing_lags_behind_ends(
    corpus: Corpus, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = threading.Event()

    class Lagging:
        """No disk and processor can be made to hash slower than loopback delivers, every time."""

        def update(self, _: object) -> None:
            cancelled.wait(10)

        def hexdigest(self) -> str:
            return "0" * 64

    monkeypatch.setattr("kawai_tools.transfer.downloads.hashlib", SimpleNamespace(sha256=Lagging))
    source = corpus.publish(model())
    # cut first, so that hashing has begun, and waits, before more bytes come
    hub.misbehave(Fault.cut(0.4, times=1), Fault.silent(0.5, skip=1))
    with corpus.workspace() as workspace:
        running = MODELS_PULL.run(workspace, PullRequest(source))
        assert isinstance(running, Pull)
        for event in running.follow():
            assert isinstance(event, ModelPullEvent)
            if (event.file_completed or 0) > 0.6 * SIZE:
                break
        running.cancel()
        cancelled.set()
        running.join(3)
        assert running.last.status == "cancelled"
    corpus.check(installed=0)


@pytest.mark.parametrize(
    "source",
    [
        f"{{endpoint}}/{REPO}/resolve/main/{FILE}",
        f"{{endpoint}}/{REPO}/blob/main/{FILE}",
        f"https://huggingface.co/{REPO}/resolve/main/{FILE}",
        f"hf.co/{REPO}/blob/main/{FILE}",
        f"{REPO}:Q4_0",
    ],
)
def test_an_installed_model_exists_while_the_hub_is_down(source: str, corpus: Corpus, hub: LocalHub) -> None:
    corpus.publish(model())
    source = source.format(endpoint=hub.endpoint)
    assert corpus.pull(source).status == "downloaded"
    hub.down()
    hub.clear_requests()
    end = corpus.pull(source)
    assert (end.status, end.seconds < 1) == ("exists", True)
    hub.up()
    assert hub.requests == []
    assert corpus.pull(source).status == "exists"
    assert hub.requests == []
    corpus.check(installed=1)


# Many connections


BIG = 3 * BLOCK + 1000


@pytest.fixture(scope="module")
def big() -> bytes:
    return model(7, BIG)


def test_a_slow_server_is_asked_for_several_segments_at_once_in_order(
    corpus: Corpus, hub: LocalHub, big: bytes
) -> None:
    source = corpus.publish(big)
    hub.throttle = 16_000_000
    end = corpus.pull(source, connections=4)
    assert end.status == "downloaded"
    assert len(corpus.bodies()) >= 4
    assert {0, BLOCK, 2 * BLOCK} <= set(corpus.starts())
    # one connection alone would have needed 3.1 s
    assert end.seconds < 2.8
    completed = [event.completed for event in end.events]
    assert completed == sorted(completed)
    corpus.check(installed=1)


def test_connections_of_one_mean_one(corpus: Corpus, hub: LocalHub, big: bytes) -> None:
    source = corpus.publish(big[:])
    hub.throttle = 40_000_000
    assert corpus.pull(source, connections=1).status == "downloaded"
    assert corpus.starts() == [0]
    corpus.check(installed=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "faults",
    [
        (Fault.cut(2_000_000, skip=1, times=2),),
        (Fault.expire(2_000_000, skip=1, times=1),),
        (Fault.silent(1_000_000, skip=2, times=1),),
        (Fault.status(503, server="cdn", method="GET", skip=1),),
        (Fault.etag('"other"', method="GET", skip=2, times=1),),
        (Fault.ignore_range(skip=1),),
        (Fault.no_content_range(skip=2, times=1),),
    ],
    ids=lambda faults: faults[0].name,
)
def test_segments_come_together_whatever_happens_to_one(
    faults: tuple[Fault, ...], corpus: Corpus, hub: LocalHub, big: bytes, waits: list[float]
) -> None:
    source = corpus.publish(big)
    hub.throttle = 30_000_000
    hub.misbehave(*faults)
    end = corpus.pull(source, connections=4)
    assert end.status == "downloaded"
    assert len([each for each in hub.requests if (each.server, each.method) == ("cdn", "GET")]) > 1
    corpus.check(installed=1)
    assert len(waits) < 20


def test_holes_that_segments_left_are_filled_and_nothing_else_is_fetched(
    corpus: Corpus, hub: LocalHub, big: bytes
) -> None:
    source = corpus.publish(big)
    hub.throttle = 8_000_000
    end = corpus.cancel_when(source, lambda event: event.completed > BIG // 3, connections=4)
    assert end.status == "cancelled"
    have = end.events[-1].completed
    hub.throttle = None
    hub.clear_requests()
    assert corpus.pull(source).status == "downloaded"
    assert len(set(corpus.starts())) >= 2
    assert 0 not in corpus.starts()
    assert corpus.sent() <= len(big) - have
    corpus.check(installed=1)


@pytest.mark.parametrize("connections", [1, 4])
def test_the_rate_is_limited_for_all_connections_together(
    connections: int, corpus: Corpus, hub: LocalHub, big: bytes
) -> None:
    data = big if connections > 1 else model()
    source = corpus.publish(data)
    hub.throttle = 30_000_000 if connections > 1 else None
    rate = len(data)  # a second's worth
    end = corpus.pull(source, connections=connections, limit_rate=rate)
    assert end.status == "downloaded"
    assert 0.9 < end.seconds < 3
    assert all(event.rate is None or event.rate < 1.3 * rate for event in end.events[3:])
    corpus.check(installed=1)


# TLS


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[Callable[[str], tuple[str, Path]]]:
    """Serves redirects over TLS, with a certificate that only its own file vouches for."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl here to make a certificate with")
    folder = tmp_path / "kawai"
    folder.mkdir()
    key, cert = folder / "key.pem", folder / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    make = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    subprocess.run([*make, "-keyout", key, "-out", cert], check=True, capture_output=True)
    servers: list[tuple[HTTPServer, threading.Thread]] = []

    def serve(to: str) -> tuple[str, Path]:
        class Redirects(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(302)
                self.send_header("Location", to)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_HEAD  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        server = HTTPServer(("127.0.0.1", 0), Redirects)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign] # a client that refuses us
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="tls-server")
        thread.start()
        servers.append((server, thread))
        return f"https://localhost:{server.server_port}/{FILE}", cert

    yield serve
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_bad_certificate_is_refused_at_once_and_explained(
    secure: Callable[[str], tuple[str, Path]], corpus: Corpus, waits: list[float]
) -> None:
    url, _ = secure(corpus.plain(model()))
    end = corpus.pull(url)
    assert (end.status, end.code, waits) == ("failed", "bad_certificate", [])
    assert "SSL_CERT_FILE" in corpus.told[-1]
    corpus.check(installed=0)


def test_https_to_http_is_refused(
    secure: Callable[[str], tuple[str, Path]], corpus: Corpus, hub: LocalHub
) -> None:
    url, cert = secure(corpus.plain(model()))
    end = corpus.pull(url, ssl_cert_file=cert)
    assert (end.status, end.code) == ("failed", "bad_redirect")
    assert hub.requests == []
    corpus.check(installed=0)


# Listings and contents


@pytest.mark.parametrize(
    "path",
    [
        "../../canary/models/tiny-Q4_0.gguf",
        "/etc/tiny-Q4_0.gguf",
        "a/../../../b-Q4_0.gguf",
        "x\\..\\y-Q4_0.gguf",
    ],
)
def test_a_listing_with_a_hostile_path_writes_nothing_outside(
    path: str, corpus: Corpus, hub: LocalHub
) -> None:
    corpus.publish(model())
    listing = json.dumps([{"type": "file", "path": path, "size": SIZE, "oid": "0" * 40}])
    hub.misbehave(Fault.status(200, body=listing, path="/tree/"))
    end = corpus.pull(f"{REPO}:Q4_0")
    assert end.status == "failed"
    assert FAILURES[str(end.code)].type in {"not_found", "invalid_request", "upstream", "integrity"}
    corpus.check(installed=0)


@pytest.mark.parametrize(
    "link",
    ['<{page}>; rel="next"', '<http://localhost:1/x>; rel="next"', '<http://[::1/x>; rel="next"'],
    ids=["itself", "elsewhere", "no address"],
)
def test_a_listing_that_leads_nowhere_ends(link: str, corpus: Corpus, hub: LocalHub) -> None:
    corpus.publish(model())

    def twist(ex: Exchange) -> Answer:
        return ex.answer().having("Link", link.format(page=f"{hub.endpoint}{ex.call.path}?{ex.call.query}"))

    hub.misbehave(Fault("link", twist, path="/tree/"))
    end = corpus.pull(f"{REPO}:Q4_0")
    assert end.code in {"bad_response", "bad_redirect"}
    assert end.seconds < CAP
    corpus.check(installed=0)


@pytest.mark.parametrize("body", ["", "{}", "[[", '[{"type":"file"}]', "<!doctype html><p>Sign in"])
def test_an_answer_that_is_no_listing_is_the_hubs_fault(body: str, corpus: Corpus, hub: LocalHub) -> None:
    corpus.publish(model())
    hub.misbehave(Fault.status(200, body=body, path="/tree/"))
    assert corpus.pull(f"{REPO}:Q4_0").code == "bad_response"
    corpus.check(installed=0)


@pytest.mark.parametrize("kind", ["hub", "plain"])
@pytest.mark.parametrize(
    "data",
    [b"", b"GGUF", tiny_gguf()[:-1], b"\0" * 5000],
    ids=["no bytes", "four bytes", "a byte short", "zeros"],
)
def test_a_file_that_is_no_sound_model_gets_no_final_name(
    data: bytes, kind: str, corpus: Corpus, hub: LocalHub
) -> None:
    source = corpus.serve(kind, data)
    corpus.good.clear()
    end = corpus.pull(source)
    assert end.code in {"malformed_gguf", NotAModel.code}
    corpus.check(installed=0)
    assert corpus.serve(kind, model()) == source
    assert corpus.pull(source).status == "downloaded"
    corpus.check(installed=1)
    assert hub.requests


# Through the program


class Seen(NamedTuple):
    fault: Fault
    exit_code: int
    code: str


@pytest.mark.parametrize(
    "seen",
    [
        Seen(Fault.flip(), 7, "digest_mismatch"),
        Seen(Fault.login_page(), 7, "not_a_model"),
        Seen(Fault.redirect_loop(server="cdn"), 6, "bad_redirect"),
        Seen(Fault.redirect("http://[::1/x", server="cdn"), 6, "bad_redirect"),
        Seen(Fault.redirect("http://[::1/x", server="hub"), 6, "bad_redirect"),
        Seen(header("X-Linked-Size", "\xb2"), 6, "bad_response"),
        Seen(header("X-Linked-Size", str(1 << 60)), 8, "no_space"),
    ],
    ids=lambda seen: f"{seen.fault.name} {seen.code}",
)
def test_the_program_ends_with_the_documented_code_and_tells_no_secret(
    seen: Seen, cli: Program, hub: LocalHub
) -> None:
    hub.add_token(SECRET)
    hub.add_file(REPO, FILE, model())
    hub.misbehave(seen.fault)
    ended = cli("models", "pull", hub.url(REPO, FILE), "--json", HF_TOKEN=SECRET)
    told = ended.events[-1]["error"] if ended.out else ended.error
    assert isinstance(told, dict)
    assert (ended.code, told["code"]) == (seen.exit_code, seen.code)
    assert SECRET not in ended.out + ended.err
    assert "Traceback" not in ended.err
    assert not [each for each in hub.requests if each.server == "cdn" and SECRET in repr(each)]
    hub.behave()
    again = cli("models", "pull", hub.url(REPO, FILE), "--json", HF_TOKEN=SECRET)
    assert (again.code, again.events[-1]["status"]) == (0, "downloaded")


def test_a_dry_run_of_an_absurd_size_is_answered(cli: Program, hub: LocalHub) -> None:
    hub.add_file(REPO, FILE, model())
    hub.misbehave(header("X-Linked-Size", str(10**30)))
    ended = cli("models", "pull", hub.url(REPO, FILE), "--dry-run", "--json")
    assert ended.code in {0, 6, 8}
    assert "Traceback" not in ended.err
