"""State on disk, written one way: whole, synced, then renamed into place.

The only module that writes state files. A reader sees the old file or the new one, also after a crash or
a power failure. Locks are ``flock`` locks: the kernel drops them when a process ends, however it ends.
"""

import contextlib
import errno
import fcntl
import os
import re
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from kawai_tools.errors import HomeNotWritable, NoSpace

_SAFELY = os.O_CLOEXEC | os.O_NOFOLLOW
_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
_DENIED |= {errno.ELOOP, errno.EIO}


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what a full or unwritable disk answers into ``NoSpace`` and ``HomeNotWritable``."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise full_disk(path) from error
        if error.errno == errno.EFBIG:
            raise NoSpace(
                f"{path} would be larger than a file may be here",
                "raise the limit (ulimit -f), or keep models on another disk (--home, KAWAI_HOME)",
            ) from error
        if error.errno in _DENIED:
            raise HomeNotWritable(
                f"cannot write {path}: {error.strerror}",
                "make the directory writable, or name another one with --home or KAWAI_HOME",
            ) from error
        raise


def full_disk(path: Path) -> NoSpace:
    """What to say where a file could not be written for want of room."""
    return NoSpace(
        f"the disk that holds {path} is full ({free_space(path):,} bytes free)",
        "free some space and try again; what was downloaded is kept",
    )


def make_directory(path: Path, mode: int = 0o755) -> Path:
    """Make a directory and its parents; one that is there already keeps its mode."""
    with storage_errors(path):
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    return path


def sync_directory(path: Path) -> None:
    """Make renames and removals in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomically(path: Path, data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Replace a file's content, or leave the old one: temporary name, write, sync, rename, sync.

    ``durable=False`` skips the syncs, for hints that may be lost with the power but never be torn.
    Raises ``NoSpace`` or ``HomeNotWritable``.
    """
    # the name itself may be of full length; whose it is tells clear_left_behind
    temporary = path.with_name(f".{os.getpid()}.{os.urandom(8).hex()}.partial")
    with storage_errors(path):
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with os.fdopen(fd, "wb") as file:
                if not mode & 0o077:
                    os.fchmod(fd, mode)  # what is private is so under any umask
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(fd)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            sync_directory(path.parent)


def clear_left_behind(folder: Path) -> None:
    """Remove what writers of state files that were killed have left in a folder."""
    for left in left_behind(folder):
        left.unlink(missing_ok=True)


def left_behind(folder: Path) -> list[Path]:
    """What writers of state files that were killed have left in a folder."""
    return [each for each in folder.glob(".*.partial") if _was_left(each.name)]


def _was_left(name: str) -> bool:
    found = re.fullmatch(r"\.([0-9]{1,9})\.[0-9a-f]{16}\.partial", name)
    return found is not None and not is_running(int(found[1]))


def is_running(pid: int) -> bool:
    """Whether there is a process of this id, whoever it belongs to."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def move_into_place(source: Path, target: Path) -> None:
    """Give a synced file its final name, durably; parents are made."""
    make_directory(target.parent)
    with storage_errors(target):
        source.replace(target)
        sync_directory(target.parent)
        sync_directory(source.parent)


Stamp = tuple[int, int, int, int]


def stamp(path: Path | str) -> Stamp | None:
    """What is another after every change of a file, by a clock that ticks; ``None`` where there is none.

    Never opens it.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 - asked for often
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def read_if_there(path: Path) -> bytes | None:
    """The file's content, or ``None`` where there is no such file. Raises ``HomeNotWritable``."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise _unreadable(path, error.strerror or "not permitted") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _unreadable(path, "it is no file")
    with os.fdopen(fd, "rb") as file:
        return file.read()


def _unreadable(path: Path, reason: str) -> HomeNotWritable:
    return HomeNotWritable(
        f"cannot read {path}: {reason}",
        "make it a file that can be read, or name another directory with --home or KAWAI_HOME",
    )


def existing_parent(path: Path) -> Path:
    """The nearest directory at or above ``path`` that exists."""
    while not path.is_dir():
        path = path.parent
    return path


def free_space(path: Path) -> int:
    """Bytes that this user may still write on the disk that holds, or would hold, ``path``."""
    stats = os.statvfs(existing_parent(path))
    return stats.f_bavail * stats.f_frsize


def reserve(fd: int, size: int) -> None:
    """Make a file ``size`` bytes long and, where the file system can, claim the blocks now."""
    allocate = getattr(os, "posix_fallocate", None)
    if allocate is None or size == 0:
        os.ftruncate(fd, size)
        return
    try:
        allocate(fd, 0, size)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
            raise
        os.ftruncate(fd, size)


def flock_is_free(fd: int) -> bool:
    """Whether nobody else holds the lock of an open file; it is let go of when the file is closed."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class Lock:
    """A lock file, held shared or exclusively until closed; never waits.

    The file stays, unless its holder removes it with :meth:`remove`: then whoever opened the removed one
    notices and takes the new one instead. It is made with an mtime of 0, which holders may use to tell when
    they last did; locking leaves it alone.
    """

    def __init__(self, path: Path) -> None:
        """Name the lock; nothing is opened yet."""
        self.path = path
        self._fd: int | None = None
        self._guard = threading.Lock()

    def acquire(self, *, shared: bool = False) -> bool:
        """Take the lock if nobody holds it in a way that forbids that; say whether it was taken."""
        with self._guard, storage_errors(self.path):
            while self._fd is None:
                fd = self._open(shared=shared)
                try:
                    fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(fd)
                    return False
                if _same_file(fd, self.path):
                    self._fd = fd
                else:
                    os.close(fd)
            return True

    def is_free(self) -> bool:
        """Whether it could be taken, for oneself; nothing is made, and a holder of a moment counts as one."""
        try:
            fd = os.open(self.path, os.O_RDONLY | _SAFELY)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        try:
            return flock_is_free(fd)
        finally:
            os.close(fd)

    def _open(self, *, shared: bool) -> int:
        """Open the file, made if need be; shared also where it may only be read."""
        while True:
            try:
                return os.open(self.path, (os.O_RDONLY if shared else os.O_RDWR) | _SAFELY)
            except FileNotFoundError:
                make_directory(self.path.parent)
            with contextlib.suppress(FileExistsError, FileNotFoundError):  # another was quicker: look again
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFELY, 0o644)
                os.utime(fd, (0, 0))
                return fd

    def release(self) -> None:
        """Let go; a lock that is not held is left alone."""
        with self._guard:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def remove(self) -> None:
        """Remove the file of a lock that is held, then let go."""
        if self._fd is not None:
            self.path.unlink(missing_ok=True)
        self.release()

    def retire(self) -> None:
        """Let go; the last who held it shared removes its file."""
        with self._guard:
            if self._fd is not None:
                with contextlib.suppress(OSError):  # others hold it, or nobody can write
                    fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self.path.unlink(missing_ok=True)
                os.close(self._fd)
                self._fd = None


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
