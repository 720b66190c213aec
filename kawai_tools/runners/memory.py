"""How much memory models may take: what is free, less a reserve (``/proc/meminfo``, ``memory.max``)."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from kawai_tools.runners.process import FRESH

RESERVE, SHARE = 1 << 30, 10
"""Bytes that are left to others: so many, or that part of all."""


class Budget:
    """Bytes that all models together may take."""

    def __init__(self, wanted: int | None, beside: Callable[[], int] = lambda: 0) -> None:
        """``wanted`` is the user's word; else what is free is looked at, and known for a moment.

        ``beside`` are the bytes of GPUs, which models may take as well.
        """
        self._wanted, self._beside = wanted, beside
        self._looked, self._free, self._total = float("-inf"), 0, 0

    def __call__(self, kept: int) -> int:
        """Of a machine of which models keep so many bytes now."""
        if self._wanted is not None:
            return self._wanted + self._beside()
        now = time.monotonic()
        if now - self._looked > FRESH:
            self._looked, self._free, self._total = now, _free(), total()
        return max(0, min(self._total, self._free + kept) - reserve(self._total)) + self._beside()


def reserve(memory: int) -> int:
    """Bytes of so many that are left to others."""
    return max(RESERVE, memory // SHARE)


def total() -> int:
    """Bytes of main memory that processes here may use."""
    built_in = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    allowed = _text("/sys/fs/cgroup/memory.max").strip()
    return min(built_in, int(allowed)) if allowed.isdecimal() else built_in


def _free() -> int:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _text("/proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else total()


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
