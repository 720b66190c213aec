"""Bytes out of an archive, a piece at a time, never more than is allowed.

Whoever reads an archive reads it through here: memory stays at a few pieces whatever the archive says, and
each piece is counted before it is handed on.
"""

import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kawai_tools.errors import BrokenArchive, UnsafeArchive

PIECE = 1 << 20
_WINDOW = 1 << 18

GZIP = 16 + zlib.MAX_WBITS
"""Deflate in a gzip wrapper, whose CRC and length zlib holds the bytes to."""
RAW = -zlib.MAX_WBITS
"""Deflate without a wrapper, as zip files hold it."""


@dataclass(frozen=True)
class Limits:
    """The most that the archives of one build may hold together; true builds stay far below.

    ``members`` counts directories and headers too; ``total`` is inflated bytes, ``name`` the bytes of a
    path, ``depth`` its parts, ``header`` the bytes of one extension header. What unpacks to at most ``kept``
    bytes stays in memory between its check and its writing.
    """

    members: int = 10_000
    total: int = 4 << 30
    name: int = 1024
    depth: int = 16
    header: int = 64 << 10
    kept: int = 32 << 20


LIMITS = Limits()


def quoted(name: str) -> str:
    """A name of unknown origin as it may be shown: escaped, in quotes, and short."""
    return repr(name) if len(name) <= 80 else f"{name[:60]!r}... ({len(name):,} characters)"  # noqa: PLR2004


def unsafe(name: str, why: str) -> UnsafeArchive:
    """The refusal of a member that could reach outside or is more than a build needs."""
    return UnsafeArchive(f"{quoted(name)} {why}", "do not use this archive; choose another version or source")


def broken(what: str) -> BrokenArchive:
    """The refusal of an archive that is damaged."""
    return BrokenArchive(what, "fetch it again; if that does not help, choose another version")


class Meter:
    """What was read so far of all archives, held to the limits; ``pause`` may raise to end it all."""

    def __init__(self, limits: Limits, pause: Callable[[], None]) -> None:
        """Start at nothing."""
        self.limits = limits
        self._pause = pause
        self._members = 0
        self._total = 0

    def member(self) -> None:
        """Count one more header. Raises ``UnsafeArchive``."""
        self._pause()
        self._members += 1
        self.expect_members(0)

    def expect_members(self, count: int) -> None:
        """Refuse now what ``count`` more members would exceed. Raises ``UnsafeArchive``."""
        if self._members + count > self.limits.members:
            raise UnsafeArchive(
                f"it has more than {self.limits.members:,} members", "no build of llama.cpp has as many"
            )

    def spend(self, size: int) -> None:
        """Count inflated bytes. Raises ``UnsafeArchive``."""
        self._pause()
        self._total += size
        self.expect(0)

    def expect(self, size: int) -> None:
        """Refuse now what ``size`` more bytes would exceed. Raises ``UnsafeArchive``."""
        if self._total + size > self.limits.total:
            raise UnsafeArchive(
                f"it unpacks to more than {self.limits.total:,} bytes", "no build of llama.cpp is as large"
            )


def stored(fd: int, start: int, end: int, meter: Meter) -> Iterator[bytes]:
    """The bytes from ``start`` to ``end`` of a file. Raises ``BrokenArchive`` where it ends before."""
    while start < end:
        piece = os.pread(fd, min(PIECE, end - start), start)
        if not piece:
            raise broken("it is cut short")
        start += len(piece)
        meter.spend(len(piece))
        yield piece


def inflated(fd: int, start: int, end: int, wrapper: int, meter: Meter) -> Iterator[bytes]:
    """Inflate what lies from ``start`` to ``end``: exactly one stream, nothing after it.

    Raises ``BrokenArchive`` where the stream is damaged, or shorter or longer than that.
    """
    inflater = zlib.decompressobj(wrapper)
    more = False  # a full piece: zlib may hold back bytes although it has taken all its input
    while not inflater.eof:
        data = inflater.unconsumed_tail
        if not data and not more:
            data = os.pread(fd, min(_WINDOW, end - start), start)
            start += len(data)
            if not data:
                raise broken("it is cut short")
        try:
            piece = inflater.decompress(data, PIECE)
        except zlib.error as error:
            raise broken(f"its compressed data is damaged ({error})") from error
        more = len(piece) == PIECE
        if piece:
            meter.spend(len(piece))
            yield piece
    if inflater.unused_data or start < end:
        raise broken("its compressed data is followed by bytes that do not belong to it")
