"""``kawai models index`` of unchanged models against ``find -printf`` of the same tree plus ``import typer``.

Prints the ratio at 10,000 models and the cost per model at 100, 1,000 and 10,000. The runs alternate and
the medians are compared. Exits with 1 if the ratio is over its bound.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from parts import PYTHON, run
from stores import make_store

COUNTS = (100, 1_000, 10_000)
FACTS = "%p %s %T@ %i\\n"


def median(times: Sequence[float]) -> float:
    """The median, in milliseconds."""
    return statistics.median(times) * 1e3


def main() -> None:
    """Measure all sizes in one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--bound", type=float, default=2.0)
    given = parser.parse_args()
    kawai = str(Path(PYTHON).with_name("kawai"))
    typer: list[float] = []
    finds: dict[int, list[float]] = {count: [] for count in COUNTS}
    indexes: dict[int, list[float]] = {count: [] for count in COUNTS}
    with tempfile.TemporaryDirectory(prefix="kawai-bench-") as name:
        homes = {count: Path(name) / str(count) for count in COUNTS}
        envs = {count: make_store(home, count) for count, home in homes.items()}
        for _ in range(given.runs):
            typer.append(run([PYTHON, "-c", "import typer"]).wall)
            for count in COUNTS:
                finds[count].append(run(["find", str(homes[count] / "models"), "-printf", FACTS]).wall)
                indexes[count].append(run([kawai, "models", "index"], env=envs[count]).wall)
    base = median(typer)
    print(f"import typer: median {base:.0f} ms of {given.runs} alternating runs")
    for count in COUNTS:
        each = (median(indexes[count]) - base) * 1e3 / count
        print(f"{count:,} models: index {median(indexes[count]):.0f} ms, {each:.0f} us a model over typer")
    against = median(finds[COUNTS[-1]]) + base
    ratio = median(indexes[COUNTS[-1]]) / against
    print(
        f"index = {ratio:.2f} of find -printf plus import typer, {against:.0f} ms (at most {given.bound:g})"
    )
    sys.exit(ratio > given.bound)


if __name__ == "__main__":
    main()
