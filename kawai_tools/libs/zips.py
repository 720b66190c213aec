"""Members of a flat zip, told by its central directory and held to their local headers.

Written from section 4.3 of PKWARE's APPNOTE.TXT, without what no build needs: comments, several disks, zip64
(what wants it is over the limits), encryption, methods other than stored and deflated. The standard
library's reader reads bytes that belong to several members once for each.
"""

import os
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from kawai_tools.libs.inflating import RAW, Meter, broken, inflated, quoted, stored, unsafe
from kawai_tools.libs.members import Kind, Member, parts

_END = struct.Struct("<4s4H2LH")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_DESCRIPTOR = 1 << 3  # the local header leaves CRC and sizes to a descriptor after the data
_FLAGS = 0x0800 | _DESCRIPTOR | 0x0006  # UTF-8, and how hard the compressor tried
_STORED, _DEFLATED = 0, 8
_KINDS = {0: Kind.FILE, stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.SYMLINK}


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of the central directory; ``start`` is that of its local header."""

    raw: bytes
    name: str
    mode: int
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    start: int


def members(fd: int, size: int, meter: Meter) -> Iterator[tuple[Member, Iterator[bytes]]]:
    """Each member with its bytes, which are held to size and CRC when read to their end.

    ``size`` is the file's. Raises ``BrokenArchive`` and ``UnsafeArchive``.
    """
    start, count = _directory(fd, size, meter)
    entries = sorted(_entries(fd, start, size - _END.size, count, meter), key=lambda entry: entry.start)
    ends = [entry.start for entry in entries[1:]] + [start]
    for entry, end in zip(entries, ends, strict=False):  # none has one end
        begin = _data(fd, entry)
        if begin + entry.packed > end:
            raise unsafe(entry.name, "shares its bytes with another member")
        kind = _kind(entry)
        path = parts(entry.name, meter.limits)
        if not path:
            raise unsafe(entry.name, "has no name")
        content = _content(fd, entry, begin, meter)
        target = ""
        if kind is Kind.SYMLINK:
            if entry.size > meter.limits.name:
                raise unsafe(entry.name, "is a symbolic link with a target that is too long")
            target = b"".join(content).decode(errors="surrogateescape")
        length = entry.size if kind is Kind.FILE else 0
        yield Member(entry.name, path, kind, length, bool(entry.mode & 0o111), target), content


def _exactly(fd: int, size: int, start: int) -> bytes:
    data = os.pread(fd, size, start)
    if len(data) < size:
        raise broken("it is cut short")
    return data


def _directory(fd: int, size: int, meter: Meter) -> tuple[int, int]:
    """Where the central directory starts, and how many entries it has."""
    data = os.pread(fd, _END.size, max(size - _END.size, 0))
    if len(data) < _END.size or data[:4] != b"PK\5\6":
        raise broken("it is cut short, or followed by bytes that do not belong to it")
    _, disk, first_disk, here, count, length, start, comment = _END.unpack(data)
    meter.expect_members(count)
    if disk or first_disk or here != count or comment or start + length != size - _END.size:
        raise broken("its central directory is damaged")
    return start, count


def _entries(fd: int, at: int, end: int, count: int, meter: Meter) -> Iterator[_Entry]:
    """The entries of the central directory, which they must fill exactly."""
    expected = 0
    for _ in range(count):
        meter.member()
        if at + _CENTRAL.size > end:
            raise broken("its central directory has fewer entries than it says")
        magic, _, _, flags, method, _, _, crc, packed, size, *lengths, _, _, attributes, start = (
            _CENTRAL.unpack(_exactly(fd, _CENTRAL.size, at))
        )
        raw = _exactly(fd, lengths[0], at + _CENTRAL.size)
        at += _CENTRAL.size + sum(lengths)
        if magic != b"PK\1\2" or at > end:
            raise broken("its central directory is damaged")
        name = raw.decode(errors="surrogateescape")
        entry = _Entry(raw, name, attributes >> 16, flags, method, crc, packed, size, start)
        _check(entry)
        expected += size
        meter.expect(expected)
        yield entry
    if at != end:
        raise broken("its central directory has more entries than it says")


def _check(entry: _Entry) -> None:
    if entry.flags & ~_FLAGS:
        raise broken(f"{quoted(entry.name)} is encrypted, or packed in a way that no build needs")
    if entry.method not in {_STORED, _DEFLATED}:
        raise broken(f"{quoted(entry.name)} is compressed by the unknown method {entry.method}")
    if entry.method == _STORED and entry.packed != entry.size:
        raise broken(f"{quoted(entry.name)} has two sizes")


def _kind(entry: _Entry) -> Kind:
    kind = _KINDS.get(stat.S_IFMT(entry.mode))
    if kind is None:
        raise unsafe(entry.name, "is a device, a FIFO or a socket")
    if entry.name.endswith("/"):
        if stat.S_IFMT(entry.mode) not in {0, stat.S_IFDIR}:
            raise unsafe(entry.name, f"is a {kind} with the name of a directory")
        kind = Kind.DIRECTORY
    if kind is Kind.DIRECTORY and entry.size:
        raise broken(f"{quoted(entry.name)} is a directory with bytes of its own")
    return kind


def _data(fd: int, entry: _Entry) -> int:
    """Where the entry's bytes start; its local header must say what the central directory says."""
    data = _exactly(fd, _LOCAL.size, entry.start)
    magic, _, flags, method, _, _, crc, packed, size, length, extra = _LOCAL.unpack(data)
    raw = _exactly(fd, length, entry.start + _LOCAL.size)
    same = (magic, raw, flags, method) == (b"PK\3\4", entry.raw, entry.flags, entry.method)
    if not entry.flags & _DESCRIPTOR:
        same &= (crc, packed, size) == (entry.crc, entry.packed, entry.size)
    if not same:
        raise broken(f"{quoted(entry.name)} has two headers that differ")
    return entry.start + _LOCAL.size + int(length) + int(extra)


def _content(fd: int, entry: _Entry, begin: int, meter: Meter) -> Iterator[bytes]:
    end = begin + entry.packed
    packed = entry.method == _DEFLATED
    pieces = inflated(fd, begin, end, RAW, meter) if packed else stored(fd, begin, end, meter)
    size = crc = 0
    for piece in pieces:
        size += len(piece)
        if size > entry.size:
            break
        crc = zlib.crc32(piece, crc)
        yield piece
    if size != entry.size or crc != entry.crc:
        raise broken(f"{quoted(entry.name)} is not of the size or CRC that it says")
