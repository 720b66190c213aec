"""How long unpacking a build takes, synced: kawai's unpacker against ``tar xzf`` and ``sync -f``.

Run with the project's Python; the tar.gz is named as argument or in ``KAWAI_TEST_BUNDLE``. The two take
turns, each into a new directory below ``--folder`` (by default where temporary files go; not a tmpfs, where
syncing costs nothing). One line: best and median seconds of each, and the ratio of the best ones. Above
``--most`` (2.0) the exit code is 1.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from parts import run

from kawai_tools.libs.archives import unpack

TAR = 'mkdir "$2" && tar xzf "$1" -C "$2" && sync -f "$2"'


def seconds(bundle: Path, destination: Path) -> float:
    """Time one run of kawai's unpacker."""
    started = time.perf_counter()
    unpack([bundle], destination)
    return time.perf_counter() - started


def main() -> int:
    """Measure one bundle."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", nargs="?", default=os.environ.get("KAWAI_TEST_BUNDLE"))
    parser.add_argument("--runs", type=int, default=25)
    parser.add_argument("--folder", help="where to unpack")
    parser.add_argument("--most", type=float, default=2.0, help="the highest ratio to end with exit code 0")
    options = parser.parse_args()
    if not options.bundle:
        parser.error("name a bundle, or set KAWAI_TEST_BUNDLE")
    bundle = Path(options.bundle).resolve()
    ours, theirs = [], []
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            theirs.append(run(["sh", "-c", TAR, "sh", str(bundle), f"{folder}/tar"]).wall)
            ours.append(seconds(bundle, Path(folder) / "kawai"))
    ratio = min(ours) / min(theirs)
    print(
        f"{bundle.name}: {bundle.stat().st_size / 1e6:.1f} MB; "
        f"kawai {min(ours):.3f} s best, {statistics.median(ours):.3f} s median; "
        f"tar and sync {min(theirs):.3f} s best, {statistics.median(theirs):.3f} s median; ratio {ratio:.2f}"
    )
    return 0 if ratio <= options.most else 1


if __name__ == "__main__":
    sys.exit(main())
