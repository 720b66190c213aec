"""What ``GET /v1/models/outdated`` takes over 200 repositories of a hub that is far away.

The hub answers each question after 0.1 s. The measure is the slowest of 200 bare requests (``http.client``,
kept alive, as many at a time as kawai makes, in the same run) times the rounds that so many at a time need.
kawai is asked anew and again, when answers are conditional. Exits with 1 if a bound is passed.
"""

import argparse
import http.client
import queue
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from parts import ROOT, Measure, report

sys.path.insert(0, str(ROOT))

from kawai_tools.transfer.revisions import AT_ONCE
from tests.hub import Fault, LocalHub
from tests.program import Daemon, Program, serving
from tests.samples import tiny_gguf
from tests.workspaces import Workspaces, pull

REPOSITORIES, LATENCY, BOUND = 200, 0.1, 1.5


def slowest(endpoint: str) -> float:
    """Seconds of the slowest of as many bare requests."""
    left: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(REPOSITORIES):
        left.put(number)
    times: list[float] = []

    def ask() -> None:
        connection = http.client.HTTPConnection(urlsplit(endpoint).netloc)
        while True:
            try:
                number = left.get_nowait()
            except queue.Empty:
                return
            begin = time.monotonic()
            connection.request("GET", f"/api/models/o/r{number}/revision/main?blobs=true")
            connection.getresponse().read()
            times.append(time.monotonic() - begin)

    threads = [threading.Thread(target=ask) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(times)


def measured(daemon: Daemon) -> float:
    """Seconds until all is told."""
    begin = time.monotonic()
    rows = daemon.ask("GET", "/v1/models/outdated").json
    taken = time.monotonic() - begin
    changed = sum(row["changed"] for row in rows)
    if (len(rows), changed) != (REPOSITORIES, REPOSITORIES // 2):
        sys.exit(f"{len(rows)} models, {changed} changed: that is not what is there")
    return taken


def measures(rounds: int) -> Iterator[Measure]:
    """The store, then the figures."""
    with tempfile.TemporaryDirectory() as name, LocalHub(Path(name) / "hub") as hub:
        home = Path(name)
        workspaces = Workspaces(home / "kawai", hub.endpoint)
        for number in range(REPOSITORIES):
            hub.add_file(f"o/r{number}", f"m{number}.gguf", tiny_gguf(name=str(number)))
            pull(workspaces(), f"o/r{number}")
            if number % 2:
                hub.add_file(f"o/r{number}", f"m{number}.gguf", tiny_gguf(name=f"{number} anew"))
        workspaces.close()
        hub.misbehave(Fault.delay(LATENCY))
        with serving(Program(home, {"HF_ENDPOINT": hub.endpoint})) as daemon:
            bare, first, again = [], [], []
            for _ in range(rounds):
                (home / "kawai" / "revisions.json").unlink(missing_ok=True)
                bare.append(slowest(hub.endpoint) * REPOSITORIES / AT_ONCE)
                first.append(measured(daemon))
                again.append(measured(daemon))
        for what, times in (("asked anew", first), ("asked conditionally", again)):
            ratio = statistics.median(time / measure for time, measure in zip(times, bare, strict=True))
            beside = f"{statistics.median(times):.3f} s, the measure {statistics.median(bare):.3f} s"
            yield Measure(f"200 repositories, {what}", ratio, BOUND, beside=beside)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    report(measures(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
