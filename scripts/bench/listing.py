"""``kawai --help`` and ``models list``, here and of a server, against ``import typer`` in one environment.

The runs of all alternate, so that what else the machine does hits them alike; the medians are compared.
Exits with 1 if a ratio is over its bound.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
from pathlib import Path

from parts import PYTHON, ROOT, run
from serving import serving
from stores import make_store

BASE = (PYTHON, "-c", "import typer")


def main() -> None:
    """Measure all, and print a ratio for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--help-bound", type=float, default=1.5)
    parser.add_argument("--thousand-bound", type=float, default=1.5)
    parser.add_argument("--ten-thousand-bound", type=float, default=2.5)
    parser.add_argument("--remote-bound", type=float, default=4.0)
    given = parser.parse_args()
    kawai = str(Path(PYTHON).with_name("kawai"))
    with tempfile.TemporaryDirectory(prefix="kawai-bench-") as name, contextlib.ExitStack() as stack:
        small = make_store(Path(name) / "small", 1_000)
        large = make_store(Path(name) / "large", 10_000)
        url, _ = stack.enter_context(serving(small))
        there = [kawai, "models", "list", "--server", url]
        cases: dict[str, tuple[list[str], dict[str, str], float]] = {
            "kawai --help": ([kawai, "--help"], small, given.help_bound),
            "models list of 1,000": ([kawai, "models", "list"], small, given.thousand_bound),
            "models list of 10,000": ([kawai, "models", "list"], large, given.ten_thousand_bound),
            "models list --server of 1,000": (there, {"KAWAI_HOME": name}, given.remote_bound),
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
