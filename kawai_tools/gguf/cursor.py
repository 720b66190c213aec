"""A position in a GGUF header that only moves forward, over bytes that are on disk or elsewhere."""

import os
import struct
from typing import Any, Protocol

from kawai_tools.errors import MalformedGguf

MAX_HEADER = 512 << 20  # bytes before the tensor data; the largest vocabularies need some 20 MiB
MAX_STRINGS = 1 << 22  # in all arrays together; the largest vocabularies with their merges have 800,000
MAX_TEXT = 16 << 20  # bytes of all that is kept: keys, values and tensor names
MAX_NAME = (1 << 16) - 1  # bytes of a key (the limit of the specification) or of a tensor's name
AGAIN = "the file is truncated or damaged: fetch it again"
DAMAGED = "the file is damaged or was made by a faulty converter: fetch it again or from elsewhere"
_WINDOW = 1 << 20
_STRING = 16  # bytes that a string of an array likely takes, before any was seen


class Source(Protocol):
    """Where the bytes of a header come from."""

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        ...

    def read(self, offset: int, length: int, *, certain: int, likely: int) -> bytes:
        """Return ``length`` bytes or more from ``offset`` on; fewer only where the file has become shorter.

        What may help to ask for no more than is needed: from ``offset`` on the header has ``certain`` bytes
        at least, and of these and those after them the first ``likely`` will probably be asked for next.
        """
        ...


class OpenFile:
    """The first ``size`` bytes of an open regular file, whose position is neither used nor moved."""

    def __init__(self, fd: int, size: int) -> None:
        """``size`` is in bytes; the descriptor stays its owner's."""
        self._fd, self.size = fd, size

    def read(self, offset: int, length: int, *, certain: int, likely: int) -> bytes:  # noqa: ARG002  # is near
        """Return a window of the file; raises OSError."""
        return os.pread(self._fd, min(max(length, _WINDOW), self.size - offset), offset)


class Cursor:
    """A position in a file that only moves forward, over one window of its bytes.

    ``rest`` is the least that comes after what is being read; ``likely`` what of it is probably next.
    Whoever reads keeps both up to date; a file on disk does without.
    """

    def __init__(self, source: Source) -> None:
        """Stand at the start of ``source``."""
        self.size, self.position, self.order = source.size, 0, "<"
        self.rest, self.likely = 0, 0
        self._source, self._window, self._start = source, b"", 0
        self._text_left, self._strings_left = MAX_TEXT, MAX_STRINGS

    def claim(self, count: int, most: int, least_size: int, what: str) -> None:
        """Refuse a count beyond its limit, or of more things than the rest of the file could hold."""
        if count > most:
            raise MalformedGguf(f"it claims {count} {what}; at most {most} are read", DAMAGED)
        self.require(count * least_size)

    def require(self, length: int) -> None:
        """Refuse to go beyond the end of the file, or of what a header may be."""
        end, most = self.position + length, min(self.size, MAX_HEADER)
        if end > most:
            raise MalformedGguf(f"its header ends at byte {end} or later, beyond byte {most}", AGAIN)

    def start(self, length: int) -> bytes:
        """The first bytes of the file, at most ``length``, without moving on."""
        buffer, offset = self.take(max(0, min(length, self.size, MAX_HEADER)))
        self.position = 0
        return buffer[offset : offset + length]

    def take(self, length: int) -> tuple[bytes, int]:
        """Move on by ``length`` bytes; return a buffer, and where in it they begin."""
        offset = self.position - self._start
        if offset + length > len(self._window):
            self.require(length)
            self._window = self._source.read(
                self.position, length, certain=length + self.rest, likely=max(length, self.likely)
            )
            self._start, offset = self.position, 0
            if len(self._window) < length:
                raise MalformedGguf("the file became shorter while it was read", AGAIN)
        self.position += length
        return self._window, offset

    def unpack(self, layout: str) -> tuple[Any, ...]:
        """Return the next values, by :mod:`struct` codes, in the byte order of the file."""
        layout = self.order + layout
        return struct.unpack_from(layout, *self.take(struct.calcsize(layout)))

    def text(self, most: int) -> str:
        """Return the next string, of at most ``most`` bytes."""
        (length,) = self.unpack("Q")
        self.claim(length, min(most, self._text_left), 1, "bytes in a string")
        self._text_left -= length
        buffer, offset = self.take(length)
        return buffer[offset : offset + length].decode("utf-8", "replace")

    def skip(self, length: int) -> None:
        """Step over bytes without reading them."""
        self.require(length)
        self.position += length

    def skip_strings(self, count: int) -> None:
        """Step over strings without making them: where nearly all the time goes."""
        self.claim(count, self._strings_left, 8, "strings in arrays")
        self._strings_left -= count
        unpack = struct.Struct(self.order + "Q").unpack_from
        begin, total, after = self.position, count, self.rest
        while count:
            seen = total - count
            self.rest = after + 8 * (count - 1)
            self.likely = count * (self.position - begin) // seen if seen else count * _STRING
            buffer, offset = self.take(8)
            try:
                for left in range(count, 0, -1):  # noqa: B007  # counts what a full window leaves over
                    offset += unpack(buffer, offset)[0] + 8
                count = 0
            except (struct.error, OverflowError):
                count = left  # the next string starts beyond this window
            self.skip(self._start + offset - self.position)
        self.rest, self.likely = after, 0


def shown(text: str) -> str:
    """Quote a foreign string for a message: short, and with nothing in it that acts on a terminal."""
    return repr(text[:80])
