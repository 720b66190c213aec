"""Members of a tar.gz with one top folder, which is taken off their names.

Written for ustar headers with the extensions of GNU (long names) and POSIX (pax), as in ``tar(5)`` of
libarchive. The standard library's reader takes a damaged header for the end of the archive and reads an
extension header of any size into memory.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from kawai_tools.libs.inflating import GZIP, PIECE, Limits, Meter, broken, inflated, quoted, unsafe
from kawai_tools.libs.members import Kind, Member, Parts, parts

_BLOCK = 512
_MAX_REST = 1 << 20  # zeros after the end mark, which fill up a record; tar's records have 10 KiB
_KINDS = {b"0": Kind.FILE, b"\0": Kind.FILE, b"1": Kind.HARDLINK, b"2": Kind.SYMLINK, b"5": Kind.DIRECTORY}
_FORBIDDEN = {b"3": "a character device", b"4": "a block device", b"6": "a FIFO", b"S": "a sparse file"}
_LONG = {b"L": "path", b"K": "linkpath"}
_OURS = {"path", "linkpath", "size"}
_RECORD = re.compile(rb"([0-9]{1,7}) ([^=\n]+)=")
_SIZE = re.compile(r"[0-9]{1,18}")


class _Header(NamedTuple):
    kind: bytes
    name: str
    link: str
    size: int
    executable: bool


class _Stream:
    """The inflated tar, read piece by piece."""

    def __init__(self, fd: int, size: int, meter: Meter) -> None:
        self._pieces = inflated(fd, 0, size, GZIP, meter)
        self._ready = memoryview(b"")

    def some(self, most: int) -> memoryview:
        """At least one byte and at most ``most``; none at the end."""
        if not self._ready:
            self._ready = memoryview(next(self._pieces, b""))
        some, self._ready = self._ready[:most], self._ready[most:]
        return some

    def exactly(self, size: int) -> Iterator[memoryview]:
        """The next ``size`` bytes. Raises ``BrokenArchive`` where there are fewer."""
        while size:
            some = self.some(size)
            if not some:
                raise broken("its tar data is cut short")
            size -= len(some)
            yield some

    def padded(self, size: int) -> Iterator[memoryview]:
        """The next ``size`` bytes; what fills up the last block is skipped."""
        yield from self.exactly(size)
        for _ in self.exactly(-size % _BLOCK):
            pass


def members(fd: int, size: int, meter: Meter) -> Iterator[tuple[Member, Iterator[memoryview]]]:
    """Each member with its bytes, which may be left unread; the top folder itself is left out.

    ``size`` is the file's. Raises ``BrokenArchive`` and ``UnsafeArchive``.
    """
    stream = _Stream(fd, size, meter)
    top = ""
    said: dict[str, str] = {}
    last = "the beginning"
    while any(block := b"".join(stream.exactly(_BLOCK))):
        meter.member()
        header = _parse(block, last)
        if header.kind in b"LKxg":
            said |= _extension(header, stream, meter.limits)
            continue
        header = _extended(header, said)
        said, last = {}, quoted(header.name)
        meter.expect(header.size)
        path = parts(header.name, meter.limits)
        content = stream.padded(header.size)
        if member := _member(header, path, meter.limits, top):
            yield member, content
        top = path[0] if path else top
        for _ in content:
            pass
    if said:
        raise broken(f"it ends within the headers after {last}")
    rest = 0
    while piece := bytes(stream.some(PIECE)):
        rest += len(piece)
        if piece.strip(b"\0") or rest > _MAX_REST:
            raise broken(f"its end mark after {last} is followed by more")


def _parse(block: bytes, last: str) -> _Header:
    """Read one header block. Raises ``BrokenArchive``."""
    try:
        fields = (_number(block[148:156]), _number(block[124:136]), _number(block[100:108]))
    except ValueError:
        fields = (-1, 0, 0)
    if block[257:262] != b"ustar" or fields[0] != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise broken(f"the header after {last} is damaged")
    name = _text(block[:100])
    if block[262:263] == b"\0" and block[345:346] != b"\0":  # GNU keeps other things there
        name = f"{_text(block[345:500])}/{name}"
    return _Header(block[156:157], name, _text(block[157:257]), fields[1], bool(fields[2] & 0o111))


def _number(field: bytes) -> int:
    """Octal digits, or the base-256 number of GNU."""
    if field[0] == 0x80:  # noqa: PLR2004  # the mark of a base-256 number that is not negative
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0") or b"0"
    if not re.fullmatch(rb"[0-7]+", digits):
        raise ValueError(field)
    return int(digits, 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="surrogateescape")


def _extension(header: _Header, stream: _Stream, limits: Limits) -> dict[str, str]:
    """What an extension header says of the next member."""
    if header.size > limits.header:
        raise unsafe(header.name, f"is an extension header of more than {limits.header:,} bytes")
    data = b"".join(stream.padded(header.size))
    if header.kind in _LONG:
        return {_LONG[header.kind]: data.removesuffix(b"\0").decode(errors="surrogateescape")}
    said = _records(data, header.name)
    if any(key.startswith("GNU.sparse.") for key in said):
        raise unsafe(header.name, "describes a sparse file")
    said = {key: value for key, value in said.items() if key in _OURS}
    if header.kind == b"g" and said:
        raise unsafe(header.name, "gives one name or size to all members")
    return said


def _records(data: bytes, name: str) -> dict[str, str]:
    """The records of a pax header: ``length key=value`` and a line feed, the length that of all this."""
    said = {}
    at = 0
    while at < len(data):
        found = _RECORD.match(data, at)
        end = at + int(found[1]) if found else 0
        if found is None or end > len(data) or end <= found.end() or data[end - 1 : end] != b"\n":
            raise broken(f"the extension header {quoted(name)} is damaged")
        said[found[2].decode(errors="surrogateescape")] = data[found.end() : end - 1].decode(
            errors="surrogateescape"
        )
        at = end
    return said


def _extended(header: _Header, said: dict[str, str]) -> _Header:
    """The header with what the extension headers before it say in its place."""
    size = said.get("size")
    if size is not None and not _SIZE.fullmatch(size):
        raise broken(f"the size of {quoted(header.name)} is no number")
    return header._replace(
        name=said.get("path", header.name),
        link=said.get("linkpath", header.link),
        size=header.size if size is None else int(size),
    )


def _member(header: _Header, path: Parts, limits: Limits, top: str) -> Member | None:
    """The member, without the top folder; ``None`` for the top folder itself."""
    kind = _KINDS.get(header.kind)
    if kind is None:
        raise unsafe(header.name, f"is {_FORBIDDEN.get(header.kind, 'of an unknown kind')}")
    if kind is not Kind.FILE and header.size:
        raise broken(f"{quoted(header.name)} is a {kind} with bytes of its own")
    if kind is Kind.FILE and header.name.endswith("/"):
        raise unsafe(header.name, "is a file with the name of a directory")
    if not path and kind is Kind.DIRECTORY:  # "./"
        return None
    if not path or path[0] != (top or path[0]) or (len(path) == 1 and kind is not Kind.DIRECTORY):
        raise broken(f"{quoted(header.name)} is not in the one top folder of the archive")
    if len(path) == 1:
        return None
    member = Member(header.name, path[1:], kind, header.size, executable=header.executable)
    if kind is Kind.SYMLINK:
        return Member(header.name, path[1:], kind, target=header.link)
    if kind is Kind.HARDLINK:
        source = parts(header.link, limits)
        if source[:1] != path[:1]:
            raise unsafe(header.name, "is a hard link out of the archive's top folder")
        return Member(header.name, path[1:], kind, source=source[1:])
    return member
