"""Bodies that are not what was asked for."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .messages import PieceSize


def zeros(size: PieceSize) -> Iterator[bytes]:
    """Make zeros for ever."""
    while True:
        yield bytes(size())


def chain(*parts: Iterable[bytes]) -> Iterator[bytes]:
    """Send one body after the other."""
    for part in parts:
        yield from part


def flipped(pieces: Iterator[bytes], place: int) -> Iterator[bytes]:
    """Invert the byte at a place, which may be outside."""
    for piece in pieces:
        if 0 <= place < len(piece):
            yield piece[:place] + bytes([piece[place] ^ 0xFF]) + piece[place + 1 :]
        else:
            yield piece
        place -= len(piece)


def gzipped(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Compress a body while it is sent."""
    packer = zlib.compressobj(wbits=31)
    yield from filter(None, map(packer.compress, pieces))
    yield packer.flush()
