"""An export being read, from its first byte to its last; of a file what is not needed is passed over."""

import os
import stat
from types import TracebackType
from typing import Self

from kawai_tools.carry.manifest import MOST, NAME, Manifest, decode
from kawai_tools.carry.tape import BLOCK, END, MOST_NAME, Head, padding, parse
from kawai_tools.errors import BrokenArchive, NotFound, Unavailable
from kawai_tools.libs.inflating import quoted

_PIECE = 1 << 20
_MOST_REST = 1 << 20
"""Bytes of zeros that may follow the end: ``tar`` fills up its records."""

_AGAIN = "copy it again, or export it again"


class Source:
    """The bytes of an export. Closed by its owner."""

    def __init__(self, fd: int) -> None:
        """Read an open descriptor from where it stands; it becomes one's own."""
        self._fd = fd
        found = os.fstat(fd)
        self.seekable = stat.S_ISREG(found.st_mode)
        self._left = found.st_size - os.lseek(fd, 0, os.SEEK_CUR) if self.seekable else 0
        self._spare = memoryview(bytearray(_PIECE if not self.seekable else BLOCK))

    @classmethod
    def open(cls, path: str) -> "Source":
        """Open a file or pipe. Raises ``NotFound``, ``BrokenArchive`` or ``Unavailable``."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"there is no file {path}", "kawai export FILE makes one") from None
        except OSError as error:
            raise Unavailable(
                f"cannot read {path}: {error.strerror}", "make it a file that can be read"
            ) from error
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.close(fd)
            raise BrokenArchive(
                f"{path} is a directory, not an export", "name the file that kawai export made"
            )
        return cls(fd)

    def close(self) -> None:
        """Let go of the descriptor."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        """Close it at the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    # bytes

    def read(self, into: memoryview) -> int:
        """Fill a buffer as far as bytes come; 0 at the end. Raises ``BrokenArchive`` for a failing disk."""
        try:
            count = os.readv(self._fd, [into])
        except OSError as error:
            raise BrokenArchive(f"it cannot be read: {error.strerror}", _AGAIN) from error
        self._left -= count
        return count

    def exactly(self, size: int) -> bytes:
        """The next bytes, all of them. Raises ``BrokenArchive`` where there are fewer."""
        if self.seekable and size > self._left:
            raise _short()
        data = bytearray(size)
        view = memoryview(data)
        while view:
            count = self.read(view[:_PIECE])
            if not count:
                raise _short()
            view = view[count:]
        return bytes(data)

    def skip(self, size: int) -> None:
        """Pass over bytes. Raises ``BrokenArchive`` where there are fewer."""
        if self.seekable:
            if size > self._left:
                raise _short()
            os.lseek(self._fd, size, os.SEEK_CUR)
            self._left -= size
            return
        while size:
            count = self.read(self._spare[: min(size, len(self._spare))])
            if not count:
                raise _short()
            size -= count

    def back(self, size: int) -> None:
        """Go back by so many bytes, where that can be."""
        os.lseek(self._fd, -size, os.SEEK_CUR)
        self._left += size

    # members

    def manifest(self) -> Manifest:
        """What comes first; what it says is not checked yet. Raises ``BrokenArchive``."""
        block = bytearray(BLOCK)
        count = 0
        while count < BLOCK and (more := self.read(memoryview(block)[count:])):
            count += more
        try:
            found = parse(bytes(block)) if count == BLOCK else None
        except BrokenArchive:
            found = None
        if found is None or found.name != NAME or not found.regular:
            raise BrokenArchive(f"it is no export: it does not begin with a {NAME}", "kawai export makes one")
        if found.size > MOST:
            raise BrokenArchive(f"its {NAME} has more than {MOST:,} bytes", _AGAIN)
        data = self.exactly(found.size)
        self.skip(padding(found.size))
        return decode(data)

    def expect(self, name: str, size: int) -> None:
        """Read the header of the file that is to come now. Raises ``BrokenArchive``."""
        found = self._header()
        if found is None:
            raise BrokenArchive(f"it ends before {quoted(name)}", _AGAIN)
        if (found.name, found.size, found.regular) != (name, size, True):
            what = "is no plain file" if found.name == name and not found.regular else "is in its place"
            what = f"has {found.size:,} bytes" if (found.name, found.regular) == (name, True) else what
            raise BrokenArchive(
                f"{quoted(name)} with {size:,} bytes should come, and {quoted(found.name)} {what}", _AGAIN
            )

    def _header(self) -> Head | None:
        found = parse(self.exactly(BLOCK))
        if found is None or not found.long:
            return found
        if found.size > MOST_NAME:
            raise BrokenArchive("a name in it is longer than any path", _AGAIN)
        name = self.exactly(found.size).partition(b"\0")[0].decode(errors="surrogateescape")
        self.skip(padding(found.size))
        found = parse(self.exactly(BLOCK))
        return found and found._replace(name=name, regular=found.regular and not found.long)

    def finish(self) -> None:
        """Make sure that nothing follows. Raises ``BrokenArchive``."""
        if any(self.exactly(len(END))):
            raise BrokenArchive(f"there is more in it than its {NAME} says", _AGAIN)
        rest = 0
        while count := self.read(self._spare):
            rest += count
            if rest > _MOST_REST or any(self._spare[:count]):
                raise BrokenArchive("its end is followed by more", _AGAIN)

    def survey(self, manifest: Manifest) -> None:
        """Look at every header of a file before any byte is used, and come back. Raises ``BrokenArchive``."""
        here = os.lseek(self._fd, 0, os.SEEK_CUR)
        for file in manifest.files:
            self.expect(file.path, file.size)
            self.skip(file.size + padding(file.size))
        self.finish()
        self.back(os.lseek(self._fd, 0, os.SEEK_CUR) - here)


def _short() -> BrokenArchive:
    return BrokenArchive("it is cut short", _AGAIN)
