"""What ``kawai serve`` costs while nobody asks: memory and processor, before a model was loaded and after.

Exits with 1 if a fresh one takes more than its bounds; what it takes once a model has been loaded, used and
unloaded is printed beside.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from parts import MODEL, Measure, Way, chat, children_of, processor_time, report, stocked
from serving import resident, serving

MB = 1e6
CPU = 1.0
"""Milliseconds of processor a second that are none: two ticks of ``/proc/PID/stat`` in 20 s."""


class Rest(NamedTuple):
    """Seconds of processor in a while, and bytes of memory."""

    cpu: float
    memory: int


def rest(pid: int, seconds: float) -> Rest:
    """Leave a process alone for a while."""
    time.sleep(1)  # what it was asked before has its consequences
    cpu = processor_time(pid)
    time.sleep(seconds)
    return Rest(processor_time(pid) - cpu, resident(pid))


def told(rest: Rest) -> str:
    """Both figures."""
    return f"{rest.memory / MB:.1f} MB, {rest.cpu * 1e3:.2f} ms of CPU"


def measures(given: argparse.Namespace, work: Path) -> Iterator[Measure]:
    """Nothing loaded, loaded and not asked, unloaded again."""
    env = stocked(work / "home", given.bundle, [MODEL], threads=1)
    with serving(env) as (url, pid):
        kawai = Way(urlsplit(url).port or 0, pid=pid)
        fresh = rest(pid, given.seconds)
        for answer in kawai.chat([chat(16)] * 8):
            assert answer.tokens
        loaded = rest(pid, given.seconds)
        assert kawai.ask("POST", "/v1/models/unload", {"model": MODEL}).status == 204  # noqa: PLR2004
        assert not children_of(pid)
        again = rest(pid, given.seconds)
    later = f"with an idle model {told(loaded)}; once it is unloaded {told(again)}"
    yield Measure("kawai serve, resident", fresh.memory / MB, 70, " MB", beside=later)
    what = f"kawai serve, CPU a second, over {given.seconds:g} s"
    yield Measure(what, fresh.cpu * 1e3 / given.seconds, CPU, " ms")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=os.environ.get("KAWAI_TEST_BUNDLE"))
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--quick", action="store_true", help="a shorter while")
    given = parser.parse_args()
    if given.quick:
        given.seconds = 3
    with tempfile.TemporaryDirectory(prefix="kawai-bench-") as name:
        report(measures(given, Path(name)))


if __name__ == "__main__":
    main()
