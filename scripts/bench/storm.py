"""kawai under load: a storm over more models than there is room for, and the list of models beside streams.

The storm: 200 short chats at once, over three models (one real file under three ids) with room for two. None
may be lost, all must be over in time, and there must be fewer loads than a naive LRU would make of the same
order of arrival. Loads are what ``/metrics`` counts; where there is no such route, the children seen.

The list: ``GET /v1/models`` while eight streams run through kawai and it pulls a file of 1 GiB over loopback
(again and again, in memory where there is room), asked in turns with a bare Starlette route under uvicorn,
which encodes the same list in a process of its own beside all this. Exits with 1 if a bound is passed.
Needs nginx-light.
"""

import argparse
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import socket
import statistics
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from catalog import free_port, server
from parts import (
    MODEL,
    OK,
    PYTHON,
    SLOTS,
    Measure,
    Way,
    chat,
    children_of,
    nginx,
    report,
    stocked,
    write_gguf,
)
from serving import serving

SIZE = 1 << 30
LISTED = "/v1/models"
GLANCE = 0.02
BARE = """
import os, sys
import msgspec, uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from kawai_tools.models.model import ModelList
from kawai_tools.resolving import resolve
from kawai_tools.workspace import Workspace
ROWS = Workspace(resolve({}, os.environ)).models.rows()
async def listed(request: Request) -> Response:
    return Response(msgspec.json.encode(ModelList(data=ROWS)), media_type="application/json")
app = Starlette(routes=[Route("/v1/models", listed)])
uvicorn.run(app, port=int(sys.argv[1]), loop="asyncio", http="h11", log_level="warning", access_log=False)
"""


# The storm


def naive_loads(asked: Iterable[str], room: int) -> int:
    """The loads that an LRU makes which serves one request after the other, as they came."""
    loaded: OrderedDict[str, None] = OrderedDict()
    loads = 0
    for model in asked:
        if model not in loaded:
            loads += 1
            loaded[model] = None
            if len(loaded) > room:
                loaded.popitem(last=False)
        loaded.move_to_end(model)
    return loads


class Sightings:
    """The children that a process has had, seen often enough that none comes and goes unseen."""

    def __init__(self, pid: int) -> None:
        """``pid`` is the parent."""
        self._pid = pid
        self._seen: set[int] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._over.wait(GLANCE):
            self._seen.update(children_of(self._pid))

    def __enter__(self) -> Self:
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join()

    @property
    def count(self) -> int:
        """How many."""
        return len(self._seen)


def counted_loads(kawai: Way) -> int | None:
    """What kawai's metrics say of loads; ``None`` where there are none."""
    answer = kawai.ask("GET", "/metrics")
    found = re.findall(rb"^kawai_model_loads_total(?:\{[^}]*\})? (\d+)", answer.data, re.MULTILINE)
    return sum(map(int, found)) if answer.status == OK and found else None


def storm(given: argparse.Namespace, work: Path) -> Iterator[Measure]:
    """So many chats at once."""
    models = [f"{MODEL}-{letter}" for letter in "abc"]
    bundle = given.bundle if given.engine == "llama-server" else None
    env = stocked(work / "storm", bundle, models, given.threads) | {"KAWAI_MAX_MODELS": str(given.room)}
    order = random.Random(7).choices(models, k=given.chats)  # noqa: S311 - the same order every time
    with serving(env) as (url, pid):
        kawai = Way(urlsplit(url).port or 0, pid=pid)
        begin = time.monotonic()
        with Sightings(pid) as sightings:
            answers = kawai.chat([chat(4, model=model) for model in order], given.limit)
        taken = time.monotonic() - begin
        loads = counted_loads(kawai)
        own = kawai.ask("GET", "/healthz").status
    lost = [
        answer
        for answer in answers
        if answer.last is None or answer.status != OK or b"[DONE]" not in answer.data
    ]
    what = f"storm of {given.chats} over {len(models)} models, room for {given.room} ({given.engine})"
    said = f"the first: {bytes(lost[0].data[-300:])!r}" if lost else "all came to their end"
    yield Measure(f"{what}, lost", len(lost), 0, beside=said)
    ends = sorted(answer.last - begin for answer in answers if answer.last is not None)
    median = f"half of them within {statistics.median(ends):.1f} s" if ends else "none ended"
    yield Measure(
        f"{what}, time", taken, given.limit, " s", beside=f"{median}; healthy afterwards: {own == OK}"
    )
    naive = naive_loads(order, given.room)
    how = f"children seen: {sightings.count}" + ("" if loads is None else f", metrics say {loads}")
    made = sightings.count if loads is None else loads
    yield Measure(f"{what}, loads", made, naive - 1, beside=f"naive LRU {naive}; {how}")


# The list beside streams and a pull


def stream_for_ever(kawai: Way) -> None:
    """Keep eight streams going, each of which begins anew when all have ended."""
    while True:
        for answer in kawai.chat([chat(64)] * SLOTS):
            assert answer.tokens


@contextmanager
def streams(kawai: Way) -> Iterator[None]:
    """Eight streams for a while, in a process of their own."""
    child = multiprocessing.get_context("fork").Process(target=stream_for_ever, args=(kawai,))
    child.start()
    try:
        yield
        if not child.is_alive():
            raise SystemExit("the streams have ended")
    finally:
        child.terminate()
        child.join()


class Pulls(threading.Thread):
    """The same pull, again and again; ``under_way`` while bytes come."""

    def __init__(self, kawai: Way, source: str) -> None:
        """``source`` is the file's address."""
        super().__init__()
        self._kawai, self._source = kawai, source
        self.under_way = threading.Event()
        self.over = threading.Event()
        self.count = 0

    def run(self) -> None:
        """Pull and remove."""
        while not self.over.is_set():
            self._pull()
            self.count += 1
            assert self._kawai.ask("DELETE", f"{LISTED}/Big").status == 204  # noqa: PLR2004 - no content

    def _pull(self) -> None:
        body = json.dumps({"model_url": self._source}).encode()
        said = b""
        with self._kawai.connect() as client:
            client.sendall(self._kawai.request(body, path="/v1/models/pull"))
            while data := client.recv(1 << 16):
                said = (said + data)[-4096:]
                if b'"status":"downloading"' in data:
                    self.under_way.set()
                if b'"status":"installing"' in data or b'"status":"downloaded"' in data:
                    self.under_way.clear()
        self.under_way.clear()
        assert b'"status":"downloaded"' in said, said


class Kept:
    """A connection that is kept, for one request again and again."""

    def __init__(self, port: int) -> None:
        """Connect."""
        self._client = socket.create_connection(("127.0.0.1", port), 60)
        self._client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = f"GET {LISTED} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()

    def timed(self) -> float:
        """Seconds of one answer."""
        begin = time.monotonic()
        self._client.sendall(self._request)
        data = b""
        while not _is_whole(data):
            piece = self._client.recv(1 << 16)
            assert piece, data
            data += piece
        assert data.startswith(b"HTTP/1.1 200"), data
        return time.monotonic() - begin


def _is_whole(data: bytes) -> bool:
    head, end, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    return bool(end and length and len(body) >= int(length[1]))


def sampled(ways: dict[str, Kept], pulls: Pulls, count: int, limit: float) -> dict[str, list[float]]:
    """Seconds of so many answers of each, in turns, all of them while bytes of a pull came."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    names, until = [*ways], time.monotonic() + limit
    while min(map(len, times.values())) < count:
        if time.monotonic() > until or not pulls.is_alive():
            raise SystemExit(f"{min(map(len, times.values()))} samples in {limit:g} s: too few pulls")
        if not pulls.under_way.wait(0.1):
            continue
        names = [*reversed(names)]
        found = {name: ways[name].timed() for name in names}
        if pulls.under_way.is_set():
            for name, seconds in found.items():
                times[name].append(seconds)
        time.sleep(0.002)
    return times


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share of all is."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def listing(given: argparse.Namespace, work: Path) -> Iterator[Measure]:
    """The 99th percentile of the list of models, against the bare route."""
    folder = work / "files"
    folder.mkdir()
    write_gguf(folder / "Big.gguf", SIZE)
    env = stocked(work / "list", given.bundle, [MODEL], given.threads) | {"KAWAI_PULL_HOSTS": "127.0.0.1"}
    port = free_port()
    with ExitStack() as stack:
        source = stack.enter_context(nginx(folder, work))
        url, pid = stack.enter_context(serving(env))
        stack.enter_context(server((PYTHON, "-c", BARE, str(port)), port, env))
        kawai = Way(urlsplit(url).port or 0, pid=pid)
        _ = kawai.chat([chat(1)])[0].tokens
        ways = {"kawai": Kept(int(kawai.where)), "bare": Kept(port)}
        quiet = {name: percentile([way.timed() for _ in range(300)], 0.99) for name, way in ways.items()}
        stack.enter_context(streams(kawai))
        pulls = Pulls(kawai, f"{source}/Big.gguf")
        pulls.start()
        try:
            times = sampled(ways, pulls, given.samples, given.limit)
        finally:
            pulls.over.set()
            pulls.join()
    tail = {name: percentile(found, 0.99) for name, found in times.items()}
    beside = ", ".join(
        f"{name} p99 {tail[name] * 1e3:.1f} ms, median {statistics.median(times[name]) * 1e3:.1f}, "
        f"p99 when all is quiet {quiet[name] * 1e3:.1f}"
        for name in ways
    )
    beside += f" ({given.samples} answers of each beside {SLOTS} streams and {pulls.count} pulls of 1 GiB)"
    yield Measure(f"GET {LISTED}, p99 of a bare route's", tail["kawai"] / tail["bare"], 2.0, beside=beside)


def measures(given: argparse.Namespace, work: Path) -> Iterator[Measure]:
    """Both."""
    if "storm" in given.only:
        yield from storm(given, work)
    if "list" in given.only:
        yield from listing(given, work)


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=os.environ.get("KAWAI_TEST_BUNDLE"))
    parser.add_argument(
        "--engine", choices=("llama-server", "xllamacpp"), default="llama-server", help="of the storm"
    )
    parser.add_argument("--chats", type=int, default=200)
    parser.add_argument("--room", type=int, default=2)
    parser.add_argument("--limit", type=float, default=180.0, help="seconds")
    parser.add_argument("--samples", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=1, help="of the engine")
    parser.add_argument("--only", nargs="+", choices=("storm", "list"), default=("storm", "list"))
    parser.add_argument("--quick", action="store_true", help="fewer samples, to see that it works")
    given = parser.parse_args()
    if not given.bundle:
        parser.error("name a bundle, or set KAWAI_TEST_BUNDLE")
    if given.quick:
        given.samples = 200
    shared = Path("/dev/shm")  # noqa: S108 - the speed of a disk wobbles more than what is measured
    roomy = shared.is_dir() and shutil.disk_usage(shared).free > 3 * SIZE
    with tempfile.TemporaryDirectory(prefix="kawai-bench-", dir=shared if roomy else None) as name:
        Path(name).chmod(0o755)  # nginx reads there as somebody else
        report(measures(given, Path(name)))


if __name__ == "__main__":
    main()
