"""``kawai models adopt --link`` of 1 GiB against hashing that file with ``hashlib`` plus ``import typer``.

Prints the ratio. The runs alternate and the medians are compared; the file is in memory and synced, so that
no disk is measured. Exits with 1 if the ratio is over its bound.
"""

import argparse
import os
import shutil
import statistics
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

from parts import KAWAI, PYTHON, Measure, report, run

_HASH = (
    "import hashlib, sys; f = open(sys.argv[1], 'rb'); print(hashlib.file_digest(f, 'sha256').hexdigest())"
)


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def make_file(path: Path, size: int) -> None:
    """A whole GGUF file: a small header, and one tensor of numbers that do not repeat."""
    entry = _string("general.architecture") + struct.pack("<I", 8) + _string("llama")
    tensor = _string("token_embd.weight") + struct.pack("<IQIQ", 1, size // 4, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + entry + tensor
    piece = os.urandom(1 << 20)
    with path.open("wb") as file:
        file.write(head + bytes(-len(head) % 32))
        for _ in range(size >> 20):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def measure(folder: Path, runs: int, size: int, bound: float) -> Iterator[Measure]:
    """Adopt and hash in turn."""
    path, home = folder / "model.gguf", folder / "home"
    make_file(path, size)
    adopts, hashes, typer = [], [], []
    for _ in range(runs):
        typer.append(run([PYTHON, "-c", "import typer"]).wall)
        hashes.append(run([PYTHON, "-c", _HASH, str(path)]).wall)
        words = ["models", "adopt", "--link", str(path)]
        adopts.append(run([*KAWAI, *words], env={"KAWAI_HOME": str(home)}).wall)
        shutil.rmtree(home)
    adopt, against = statistics.median(adopts), statistics.median(hashes) + statistics.median(typer)
    beside = f"{adopt:.2f} s and {against:.2f} s, medians of {runs} alternating runs"
    yield Measure("adopt --link / (hashing + import typer)", adopt / against, bound, beside=beside)


def main() -> None:
    """Measure in one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--mib", type=int, default=1024, help="size of the file")
    parser.add_argument("--bound", type=float, default=1.1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kawai-bench-") as name:
        report(measure(Path(name), given.runs, given.mib << 20, given.bound))


if __name__ == "__main__":
    main()
