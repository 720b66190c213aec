"""The lists that make up the catalog: kawai's own, the user's files, and kept copies of subscribed ones.

An id belongs to the list that has it first, in that order; another list's entry of that id is left out, and
that is said. What was read is kept in one file, which holds as long as no list changes: thousands of entries
are then there in milliseconds.
"""

import os
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from kawai_tools import __version__
from kawai_tools.catalog.entries import Entry, Problem
from kawai_tools.catalog.kept import Keeper
from kawai_tools.errors import UNDECODABLE, HomeNotWritable, NoSpace
from kawai_tools.files import make_directory, read_if_there, write_atomically

OWN = "kawai"
SHIPPED = Path(__file__).parents[1] / "catalog.yaml"
_SUFFIXES = (".yaml", ".yml")
_SETTLED = 100_000_000
"""Nanoseconds after which a second change of a file surely has another time."""


class Lists:
    """The lists of one configuration. Safe to share between threads."""

    def __init__(
        self,
        *,
        folder: Path,
        data: Path,
        subscriptions: Sequence[str],
        endpoint: str,
        hosts: frozenset[str],
        remembers: bool = True,
    ) -> None:
        """``folder`` holds the user's files, ``data`` what is kept; ``hosts`` may be private ones.

        ``endpoint`` is the hub's address. With ``remembers`` false nothing is written.
        """
        self._remembers = remembers
        self.folder = folder
        self.subscriptions, self.endpoint, self.hosts = tuple(subscriptions), endpoint, hosts
        self.keeper = Keeper(data / "kept")
        self._cache = data / "parsed.json"
        self._known: tuple[str, Loaded] | None = None
        self.changes = 0
        """How often this process has changed a list."""

    def load(self) -> tuple[str, "Loaded"]:
        """All entries, and what tells them from those before any list changed."""
        files = self._files()
        key = repr(
            (__version__, SHIPPED, self.folder, self.subscriptions, self.endpoint, sorted(self.hosts), files)
        )
        known = self._known
        if known is None or known[0] != key:
            known = key, self._remembered(key) or self._read(key, files)
            self._known = known
        return known

    def _files(self) -> "tuple[_File, ...]":
        paths = [SHIPPED, *_in_folder(self.folder), *map(self.keeper.path, self.subscriptions)]
        return tuple(_File(str(path), _stamp(path)) for path in paths)

    def _remembered(self, key: str) -> "Loaded | None":
        try:
            cached = msgspec.json.decode(read_if_there(self._cache) or b"", type=_Cached)
        except (*UNDECODABLE, HomeNotWritable):
            return None
        return cached.loaded if cached.key == key else None

    def _read(self, key: str, files: "tuple[_File, ...]") -> "Loaded":
        from kawai_tools.catalog import merging  # noqa: PLC0415 - only where a list has changed

        loaded = merging.read_all(self, [Path(file.path) for file in files])
        now = time.time_ns()
        if self._remembers and all(abs(now - file.stamp[-1]) > _SETTLED for file in files if file.stamp):
            self._remember(_Cached(key, loaded))
        return loaded

    def _remember(self, cached: "_Cached") -> None:
        """Keep it, where that is possible: it only saves reading again."""
        try:
            make_directory(self._cache.parent)
            write_atomically(self._cache, msgspec.json.encode(cached), durable=False)
        except (HomeNotWritable, NoSpace):
            return


class Loaded(msgspec.Struct, frozen=True):
    """Every entry, in order, and what was wrong with the lists."""

    entries: list[Entry]
    problems: list[Problem]


class _Cached(msgspec.Struct, frozen=True):
    key: str
    loaded: Loaded


class _File(NamedTuple):
    """A file and what changes when it does (inode, size, times; ``None``: it is not there)."""

    path: str
    stamp: tuple[int, int, int, int] | None


def _stamp(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _in_folder(folder: Path) -> Iterator[Path]:
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - names are all that is wanted
    except OSError:
        return
    for name in names:
        if name.lower().endswith(_SUFFIXES) and not name.startswith("."):
            yield folder / name


def read_file(path: Path, most: int) -> bytes:
    """A regular file's first bytes, one more than ``most`` where it has more. Raises ``OSError``."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(0, "it is no file")
        return file.read(most + 1)
