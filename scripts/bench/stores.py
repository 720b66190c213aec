"""Stores of many tiny models for the benchmarks, made by hand and indexed by kawai itself."""

import os
import struct
from pathlib import Path

from parts import KAWAI, run

MODELS_PER_REPO = 10


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _header() -> bytes:
    """A whole small model: a few entries, and one tensor of zeros."""
    entries = [
        _string("general.architecture") + struct.pack("<I", 8) + _string("llama"),
        _string("general.name") + struct.pack("<I", 8) + _string("Tiny"),
        _string("llama.context_length") + struct.pack("<II", 4, 4096),
        _string("general.file_type") + struct.pack("<II", 4, 7),
    ]
    tensor = _string("token_embd.weight") + struct.pack("<IQIQ", 1, 32, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(entries)) + b"".join(entries) + tensor
    return head + bytes(-len(head) % 32) + bytes(128)


def make_store(home: Path, count: int) -> dict[str, str]:
    """Make a home with ``count`` models and its index; the environment that leads to it."""
    data = _header()
    for number in range(count):
        folder = home / "models" / f"owner{number % 97:02}" / f"Repo-{number // MODELS_PER_REPO:05}-GGUF"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"Model-{number:05}-Q8_0.gguf").write_bytes(data)
    os.sync()
    env = {"KAWAI_HOME": str(home)}
    run([*KAWAI, "models", "index"], env=env)
    return env
