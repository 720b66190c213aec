"""How much memory models may take: what is free, less a reserve (``/proc/meminfo``, ``memory.max``)."""

import os
import re
from pathlib import Path

RESERVE, SHARE = 1 << 30, 10
"""Bytes that are left to others: so many, or that part of all."""


def budget(used: int, wanted: int | None) -> int:
    """Bytes that all models together may take, given what they take now; ``wanted`` is the user's word."""
    if wanted is not None:
        return wanted
    total, free = _total(), _free()
    return max(0, min(total, free + used) - max(RESERVE, total // SHARE))


def _total() -> int:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    allowed = _text("/sys/fs/cgroup/memory.max").strip()
    return min(total, int(allowed)) if allowed.isdecimal() else total


def _free() -> int:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _text("/proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else _total()


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
