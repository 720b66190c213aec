"""The lists that make up the catalog: kawai's own, the user's files, and kept copies of subscribed ones.

An id belongs to the list that has it first, in that order; another list's entry of that id is left out, and
that is said. What was read is kept in one file, which holds as long as no list changes: thousands of entries
are then there in milliseconds.
"""

import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from kawai_tools import __version__
from kawai_tools.catalog.entries import Entry, Problem
from kawai_tools.catalog.kept import Keeper
from kawai_tools.errors import UNDECODABLE, HomeNotWritable, NoSpace
from kawai_tools.files import Stamp, make_directory, read_if_there, stamp, write_atomically

OWN = "kawai"
SHIPPED = Path(__file__).parents[1] / "catalog.yaml"
_SUFFIXES = (".yaml", ".yml")
SETTLED = 100_000_000
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
        self._kept = [str(self.keeper.path(url)) for url in self.subscriptions]
        self._known: tuple[object, Loaded] | None = None

    def files(self) -> "tuple[_File, ...]":
        """The files that lists are in; another value as soon as one of them is another."""
        paths = (str(SHIPPED), *_in_folder(str(self.folder)), *self._kept)
        return tuple([_File(path, stamp(path)) for path in paths])

    def load(self, files: "tuple[_File, ...] | None" = None) -> "Loaded":
        """All entries; ``files`` are those that were looked at just now."""
        files = self.files() if files is None else files
        known = self._known
        if known is None or known[0] != files:
            key = repr((__version__, self.subscriptions, self.endpoint, sorted(self.hosts), files))
            known = files, self._remembered(key) or self._read(key, files)
            self._known = known
        return known[1]

    def _remembered(self, key: str) -> "Loaded | None":
        try:
            cached = _CACHED.decode(read_if_there(self._cache) or b"")
        except (*UNDECODABLE, HomeNotWritable, OSError):
            return None
        return cached.loaded if cached.key == key else None

    def _read(self, key: str, files: "tuple[_File, ...]") -> "Loaded":
        from kawai_tools.catalog import merging  # noqa: PLC0415 - only where a list has changed

        loaded = merging.read_all(self, [Path(file.path) for file in files])
        now = time.time_ns()
        unread = any(each.refused and each.line is None for each in loaded.problems)  # it may pass
        if (
            self._remembers
            and not unread
            and all(abs(now - file.stamp[-1]) > SETTLED for file in files if file.stamp)
        ):
            self._remember(_Cached(key, loaded))
        return loaded

    def _remember(self, cached: "_Cached") -> None:
        """Keep it, where that is possible: it only saves reading again."""
        if not self._cache.parent.parent.is_dir():
            return  # who only looks around makes no home
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


_CACHED = msgspec.json.Decoder(
    _Cached
)  # made as the module is: msgspec is not safe where threads are first to use a type


class _File(NamedTuple):
    """A file and what changes when it does (inode, size, times; ``None``: it is not there)."""

    path: str
    stamp: Stamp | None


def _in_folder(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)  # noqa: PTH208 - asked with every request
    except OSError:
        return []
    named = sorted(name for name in names if name.lower().endswith(_SUFFIXES) and name[0] != ".")
    return [f"{folder}/{name}" for name in named]


def read_file(path: Path, most: int) -> bytes:
    """A regular file's first bytes, one more than ``most`` where it has more. Raises ``OSError``."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(0, "it is no file")
    with os.fdopen(fd, "rb") as file:
        return file.read(most + 1)
