"""How many bytes of disk files take, and how many come back when they go.

A file takes as much as it is long, and less where it has holes: no more than its blocks. What is shared by
reflinks counts in full, since the file system says no more (``stat(2)``, ``st_blocks``).
"""

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

_BLOCK = 512
"""Bytes in which ``st_blocks`` counts."""


def files_below(place: Path) -> Iterator[Path]:
    """Every file in a directory and below it, following no link; or the one file that is there."""
    if not place.is_dir() or place.is_symlink():
        yield place
        return
    for folder, _, names in os.walk(place):
        for name in names:
            yield Path(folder, name)


def taken(places: Iterable[Path]) -> int:
    """Bytes of disk that all files there take, one with several names once."""
    found = {}
    for place in places:
        for path in files_below(place):
            known = _looked_at(path)
            if known is not None:
                found[known.st_dev, known.st_ino] = _size(known)
    return sum(found.values())


class Freed:
    """What comes back of one removal after the other.

    A file that has more names, in the store or with another program, gives nothing back before its last name
    goes; a symbolic link gives nothing back at all.
    """

    def __init__(self) -> None:
        """Nothing has gone yet."""
        self._names: Counter[tuple[int, int]] = Counter()

    def of(self, paths: Iterable[Path]) -> int:
        """Bytes that would come back if these went next."""
        return self._count(paths, Counter(self._names))

    def take(self, paths: Iterable[Path]) -> int:
        """Bytes that come back as these go."""
        return self._count(paths, self._names)

    @staticmethod
    def _count(paths: Iterable[Path], names: Counter[tuple[int, int]]) -> int:
        size = 0
        for path in paths:
            found = _looked_at(path)
            if found is not None:
                key = found.st_dev, found.st_ino
                names[key] += 1
                size += _size(found) if names[key] == found.st_nlink else 0
        return size


def _size(found: os.stat_result) -> int:
    return min(found.st_size, found.st_blocks * _BLOCK)


def _looked_at(path: Path) -> os.stat_result | None:
    """What the file system says of a plain file."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None
