"""``kawai --help`` and ``kawai models list`` into a pipe, against ``import typer`` in the same environment.

The runs of all alternate, so that what else the machine does hits them alike; the medians are compared.
Exits with 1 if a ratio is over its bound.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from parts import PYTHON, ROOT, run
from stores import make_store

BASE = (PYTHON, "-c", "import typer")


def main() -> None:
    """Measure all, and print a ratio for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--help-bound", type=float, default=1.5)
    parser.add_argument("--thousand-bound", type=float, default=1.5)
    parser.add_argument("--ten-thousand-bound", type=float, default=2.5)
    given = parser.parse_args()
    kawai = str(Path(PYTHON).with_name("kawai"))
    with tempfile.TemporaryDirectory(prefix="kawai-bench-") as name:
        small = make_store(Path(name) / "small", 1_000)
        large = make_store(Path(name) / "large", 10_000)
        cases: dict[str, tuple[list[str], dict[str, str], float]] = {
            "kawai --help": ([kawai, "--help"], small, given.help_bound),
            "models list of 1,000": ([kawai, "models", "list"], small, given.thousand_bound),
            "models list of 10,000": ([kawai, "models", "list"], large, given.ten_thousand_bound),
        }
        times: dict[str, list[float]] = {each: [] for each in ("import typer", *cases)}
        for _ in range(given.runs):
            times["import typer"].append(run(BASE).wall)
            for case, (command, env, _) in cases.items():
                times[case].append(run(command, env=env).wall)
    base = statistics.median(times["import typer"])
    print(f"import typer: median {base * 1e3:.0f} ms of {given.runs} alternating runs in {ROOT.name}")
    over = False
    for case, (*_, bound) in cases.items():
        ratio = statistics.median(times[case]) / base
        over |= ratio > bound
        print(f"{case}: {statistics.median(times[case]) * 1e3:.0f} ms = {ratio:.2f} (at most {bound:g})")
    sys.exit(over)


if __name__ == "__main__":
    main()
