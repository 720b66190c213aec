"""The tar that an export is: 512-byte headers, each with its bytes behind it, and two blocks of zeros.

Written as GNU tar writes it (long names in a member of their own, large sizes in base 256), so that any
``tar`` lists and unpacks it. Headers are read one at a time and held to what the manifest says: nothing
of an archive decides where bytes go. ``tarfile`` in Python's library only makes and takes apart headers.
"""

import tarfile
from typing import NamedTuple

from kawai_tools.carry.manifest import NAME
from kawai_tools.errors import BrokenArchive

BLOCK = 512
END = bytes(2 * BLOCK)
MOST_NAME = 8192
"""Bytes of a long name, far more than any path that is taken."""

PLAIN, EXECUTABLE = 0o644, 0o755


def header(name: str, size: int, mode: int = PLAIN) -> bytes:
    """The blocks that precede a file."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, mode
    return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def padding(size: int) -> int:
    """Bytes that fill up the last block of a file."""
    return -size % BLOCK


def beginning(manifest: bytes) -> bytes:
    """What an export begins with: the manifest, as its first member."""
    return header(NAME, len(manifest)) + manifest + bytes(padding(len(manifest)))


def length(size: int, name: str) -> int:
    """Bytes that a file takes in the archive."""
    return len(header(name, size)) + size + padding(size)


class Head(NamedTuple):
    """What a header says; ``long`` is that the next one's name is in its bytes."""

    name: str
    size: int
    regular: bool
    long: bool


def parse(block: bytes) -> Head | None:
    """Take a header apart; ``None`` for a block of zeros. Raises ``BrokenArchive``."""
    if not any(block):
        return None
    try:
        member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise BrokenArchive(
            f"a header in it is damaged ({error})", "copy it again, or export it again"
        ) from error
    return Head(
        member.name,
        member.size,
        member.type in tarfile.REGULAR_TYPES,
        member.type == tarfile.GNUTYPE_LONGNAME,
    )
