"""Where an export is written: to a pipe, or beside the file that it becomes, so as to be gone on with."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, Self

from kawai_tools.carry.moving import PIECE, Read, reader, writer
from kawai_tools.errors import Conflict, InUse, NoSpace, NotFound, Unavailable
from kawai_tools.files import free_space, sync_directory

_OPEN = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_FULL = {errno.ENOSPC, errno.EDQUOT}
_AGAIN = "free some space and run the same command again: it goes on from there"


class Target(Protocol):
    """What takes an export, piece by piece and in order."""

    syncs: int | None
    """The descriptor that can be synced while it is written."""

    def begin(self, beginning: bytes, total: int) -> bool:
        """Take the manifest; whether that is all there is to do."""

    def kept(self, head: bytes, size: int) -> int:
        """Take the header of a file; how many of its bytes are there from an earlier time."""

    def read(self, size: int) -> Read:
        """Read those bytes."""

    def write(self, piece: memoryview) -> None:
        """Take the next bytes."""

    def restart(self) -> None:
        """Take the file's bytes again from its first."""

    def discard(self) -> None:
        """Keep nothing."""

    def finish(self) -> None:
        """That was all."""


@contextlib.contextmanager
def writing(path: str, again: str = _AGAIN) -> Iterator[None]:
    """Say of a disk that is full, or a file that cannot be written, what there is to do."""
    try:
        yield
    except BrokenPipeError as error:
        raise Unavailable("whoever read the export has gone", "run it again from the start") from error
    except OSError as error:
        if error.errno in _FULL:
            raise NoSpace(f"the disk that holds {path} is full", again) from error
        if error.errno == errno.EFBIG:
            raise NoSpace(
                f"{path} would be larger than a file may be there",
                "raise the limit (ulimit -f), use a disk that takes large files, or export fewer models",
            ) from error
        raise Unavailable(
            f"cannot write {path}: {error.strerror}", "name a file in a directory that you may write"
        ) from error


class PipeTarget:
    """A pipe, or whatever else takes bytes in order; nothing can be gone on with."""

    syncs: int | None = None

    def __init__(self, fd: int) -> None:
        """Write to an open descriptor, which stays its owner's."""
        self._fd = fd

    def begin(self, beginning: bytes, total: int) -> bool:  # noqa: ARG002 - as the other
        """Write the manifest."""
        self.write(memoryview(beginning))
        return False

    def kept(self, head: bytes, size: int) -> int:  # noqa: ARG002
        """Write the header; nothing is there."""
        self.write(memoryview(head))
        return 0

    def read(self, size: int) -> Read:  # noqa: ARG002
        """Nothing is there."""
        return lambda _: 0

    def write(self, piece: memoryview) -> None:
        """Write the next bytes."""
        with writing("the export", "free some space and run it again from the start"):
            while piece:
                piece = piece[os.write(self._fd, piece) :]

    def restart(self) -> None:
        """A pipe takes nothing back."""
        raise Unavailable("a pipe cannot be gone on with", "run it again from the start")

    def discard(self) -> None:
        """What is gone is gone."""

    def finish(self) -> None:
        """Nothing is left to do."""


class FileTarget:
    """``FILE.partial``, one's own while it is written, and ``FILE`` once it is whole. A context manager."""

    def __init__(self, path: Path) -> None:
        """Nothing is opened yet. Raises ``Conflict`` or ``NotFound`` where it could not be."""
        if not path.name:  # the folder that one is in, or the root
            raise taken(path)
        self.path, self.partial = path, path.with_name(f"{path.name}.partial")
        self.syncs: int | None = None
        self._fd, self._size, self._at, self._begin = -1, 0, 0, 0
        with writing(str(path)):
            if os.path.lexists(path) and not self._twice():
                raise taken(path)
        if not path.parent.is_dir():
            raise NotFound(f"there is no directory {path.parent}", "make it first, or name another one")

    def _twice(self) -> bool:
        """Whether the file and its partial are one: a finish that was cut off."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(self.path.lstat(), self.partial.lstat())
        return False

    def __enter__(self) -> Self:
        """Open the partial and make it one's own. Raises ``InUse``, ``Conflict`` or ``Unavailable``."""
        with writing(str(self.partial)):
            self._fd = os.open(self.partial, _OPEN, 0o644)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._close()
                raise InUse(f"another kawai is writing {self.path}", "wait until that is done") from None
            except OSError:  # no locks on that disk: as good as it gets
                pass
            self._size = os.fstat(self._fd).st_size
            if not self._is_ours():
                self._close()
                raise taken(self.path if os.path.lexists(self.path) else self.partial)
            if os.path.lexists(self.path) and not self._twice():
                if not self._size:
                    self.partial.unlink()
                self._close()
                raise taken(self.path)
            self.syncs = self._fd
        return self

    def _is_ours(self) -> bool:
        """Whether the partial is still what was opened: another kawai may have finished it just now."""
        with contextlib.suppress(FileNotFoundError):
            there, found = self.partial.lstat(), os.fstat(self._fd)
            return os.path.samestat(there, found) and self.partial.is_file()
        return False

    def __exit__(self, *_: object) -> None:
        """Let go; what was written stays."""
        if self._is_ours() and not os.fstat(self._fd).st_size:
            self.partial.unlink()
        self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def begin(self, beginning: bytes, total: int) -> bool:
        """Go on with a partial that begins so, or begin anew. Raises ``NoSpace``."""
        same = self._size >= len(beginning) and _starts(self._fd, beginning)
        if self._twice():
            self.partial.unlink()
            if not same:
                raise taken(self.path)
            return True
        if not same:
            with writing(str(self.partial)):
                os.ftruncate(self._fd, 0)
            self._size = 0
        self._require_space(total - self._size)
        self._at = 0
        if not same:
            self.write(memoryview(beginning))
        self._at = len(beginning)
        return False

    def _require_space(self, needed: int) -> None:
        free = free_space(self.path.parent)
        if needed > free:
            raise NoSpace(
                f"{self.path} needs {needed:,} more bytes of disk, and there are {free:,} free",
                "free some space, export fewer models, or name a file on another disk",
            )

    def kept(self, head: bytes, size: int) -> int:
        """Write the header of a file, unless it is there; how many of its bytes there are."""
        if self._size - self._at < len(head) or os.pread(self._fd, len(head), self._at) != head:
            self.write(memoryview(head))
            self._begin = self._at
            return 0
        self._at += len(head)
        self._begin = self._at
        return max(0, min(self._size - self._at, size))

    def read(self, size: int) -> Read:
        """Read that many bytes that are there, and go on behind them."""
        self._at += size
        return reader(self._fd, self._begin)

    def write(self, piece: memoryview) -> None:
        """Write the next bytes."""
        with writing(str(self.partial)):
            writer(self._fd, self._at)(piece)
        self._at += len(piece)
        self._size = max(self._size, self._at)

    def restart(self) -> None:
        """Write the file's bytes again: those that were there are not what they should be."""
        self._at = self._begin

    def discard(self) -> None:
        """Remove what was written."""
        self.partial.unlink(missing_ok=True)

    def finish(self) -> None:
        """Give the file its name, durably, and never in the place of another. Raises ``Conflict``."""
        with writing(str(self.path)):
            os.ftruncate(self._fd, self._at)
            os.fsync(self._fd)
            try:
                os.link(self.partial, self.path)
                self.partial.unlink()
            except FileExistsError:
                raise taken(self.path) from None
            except OSError:  # a disk without hard links
                if os.path.lexists(self.path):
                    raise taken(self.path) from None
                self.partial.rename(self.path)
            sync_directory(self.path.parent)


def taken(path: Path) -> Conflict:
    """What to say of a file that is there: it is never written over."""
    if path.is_dir():
        return Conflict(f"{path} is a directory", "name a file in it")
    if path.exists() and not path.is_file():
        return Conflict(f"{path} is there and no plain file", "name another one, or - for a pipe")
    return Conflict(f"{path} is there already", "name another file, or remove this one first")


def _starts(fd: int, beginning: bytes) -> bool:
    for at in range(0, len(beginning), PIECE):
        piece = beginning[at : at + PIECE]
        if os.pread(fd, len(piece), at) != piece:
            return False
    return True
