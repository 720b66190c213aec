"""A file on its way: its bytes so far, and a record of what they belong to and which are still missing.

The bytes are bound to URL, commit, ETag, size and digest; anything else than the very same starts over.
The record is a hint that may be lost with the power (never torn): a whole file is hashed at its end, and
one that was resumed and does not match is fetched once more from the start. Bytes that no digest will
judge are trusted after a restart of the machine only if they were synced.

Whoever fetches has the bytes under a name of its own, taken over by renaming, and never those of a process
that still lives: a lock saves fetching twice, but what is right does not depend on it.
"""

import contextlib
import os
from pathlib import Path

import msgspec

from kawai_tools.errors import UNDECODABLE
from kawai_tools.files import make_directory, read_if_there, reserve, storage_errors, write_atomically
from kawai_tools.transfer.holders import lives, this_boot, this_process
from kawai_tools.transfer.remote_file import RemoteFile

_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What the bytes belong to; ``left`` are the ranges still missing, ``verified`` the digest found.

    ``boot`` names the run of the machine in which they were written, ``None`` if they were synced; ``holder``
    the process that has them, ``None`` if it let go; ``bytes`` is their file, ``inode`` what it is known by
    if it was renamed since.
    """

    url: str
    commit: str | None
    etag: str | None
    size: int
    sha256: str | None
    left: list[tuple[int, int]]
    verified: str | None = None
    mtime_ns: int = 0
    boot: str | None = None
    holder: str | None = None
    bytes: str
    inode: int

    def belongs_to(self, file: RemoteFile) -> bool:
        """Whether the bytes are surely of this file: all the same, and a digest or strong ETag to tell."""
        same = (self.url, self.commit, self.size, self.sha256) == (
            file.url,
            file.commit,
            file.size,
            file.sha256,
        )
        if file.sha256 is None and (file.etag is None or self.boot not in {None, this_boot()}):
            return False
        return same and self.etag == file.etag

    def is_sound(self) -> bool:
        """Whether the ranges make sense; a record that was tampered with starts over."""
        ends = [0, *(edge for pair in self.left for edge in pair), self.size]
        return ends == sorted(ends)


_RECORD = msgspec.json.Decoder(
    Record
)  # made as the module is: msgspec is not safe where threads are first to use a type


class Partial:
    """The partial of one file: ``<name>.<token>.partial`` and its record ``<name>.json`` beside it."""

    def __init__(self, directory: Path, name: str, file: RemoteFile) -> None:
        """Read the record; nothing is opened or made yet."""
        self.name = name
        self.file = file
        self._directory = directory
        self._record_path = directory / f"{name}.json"
        self._fd: int | None = None
        self._holder: str | None = None
        self.verified: str | None = None
        self._forget()
        record = self._read()
        path = self._find(record) if record is not None else None
        if record is not None and path is not None:
            self.path = path
            self.resumed = True
            self._holder = record.holder
            self.left = list(record.left)
            self.verified = record.verified if record.mtime_ns == path.stat().st_mtime_ns else None

    def _forget(self) -> None:
        """Begin with nothing, under a name that nobody has."""
        self.path = self._directory / f"{self.name}.{os.urandom(6).hex()}.partial"
        self.left = [(0, self.file.size)] if self.file.size else []
        self.verified = None
        self.resumed = False

    def _read(self) -> Record | None:
        try:
            record = _RECORD.decode(read_if_there(self._record_path) or b"")
        except UNDECODABLE:
            return None
        return record if record.belongs_to(self.file) and record.is_sound() else None

    def _find(self, record: Record) -> Path | None:
        """The file that a record speaks of: by its name, or renamed just before its new holder was killed."""
        named = self._directory / Path(record.bytes).name
        if _size(named) == self.file.size:
            return named
        prefix, suffix = f"{self.name}.", ".partial"
        with contextlib.suppress(OSError):
            for each in sorted(self._directory.iterdir()):
                ours = each.name.startswith(prefix) and each.name.endswith(suffix)
                if ours and _size(each) == self.file.size and each.stat().st_ino == record.inode:
                    return each
        return None

    @property
    def have(self) -> int:
        """Bytes that are here."""
        return self.file.size - sum(end - start for start, end in self.left)

    @property
    def claimed(self) -> int:
        """Bytes of disk that the partial takes already."""
        with contextlib.suppress(OSError):
            return min(self.path.stat().st_blocks * 512, self.file.size)
        return 0

    def take(self) -> None:
        """Make the bytes one's own, or begin anew where somebody still has them; claim their blocks.

        Raises ``NoSpace`` or ``HomeNotWritable``.
        """
        if self._fd is not None:
            return
        make_directory(self._directory)
        with storage_errors(self.path):
            self._fd = self._take_over()
            if self._fd is None:
                self._forget()
                self._fd = os.open(self.path, _OPEN | os.O_CREAT | os.O_EXCL, 0o644)
            reserve(self._fd, self.file.size)
        if self.resumed:
            self.save(self.left, self.verified)

    def _take_over(self) -> int | None:
        if not self.resumed or lives(self._holder):
            return None
        mine = self._directory / f"{self.name}.{os.urandom(6).hex()}.partial"
        try:
            self.path.rename(mine)  # only one can
            self.path = mine
            return os.open(mine, _OPEN)
        except FileNotFoundError:
            return None

    @property
    def fd(self) -> int:
        """The open file, of full length; :meth:`take` makes it one's own first."""
        self.take()
        assert self._fd is not None  # noqa: S101 - take opened it
        return self._fd

    @property
    def is_intact(self) -> bool:
        """Whether the file of that name is still the one that was verified."""
        try:
            there, open_one = self.path.stat(), os.fstat(self.fd)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, open_one)

    def save(self, left: list[tuple[int, int]], verified: str | None = None, *, synced: bool = False) -> None:
        """Note which ranges are missing; durably once the file is whole and verified.

        ``synced`` says that :meth:`sync` was called since the last byte was written.
        """
        self.left, self.verified = left, verified
        self._note(this_process(), synced=synced)

    def _note(self, holder: str | None, *, synced: bool) -> None:
        file, stat = self.file, os.fstat(self.fd)
        record = Record(
            url=file.url,
            commit=file.commit,
            etag=file.etag,
            size=file.size,
            sha256=file.sha256,
            left=self.left,
            verified=self.verified,
            mtime_ns=stat.st_mtime_ns,
            boot=None if synced or self.verified else this_boot(),
            holder=holder,
            bytes=self.path.name,
            inode=stat.st_ino,
        )
        self._synced, self._noted = synced, True
        durable = self.verified is not None and holder is not None
        write_atomically(self._record_path, msgspec.json.encode(record), durable=durable)

    def restart(self) -> None:
        """Forget every byte; the claimed blocks stay claimed."""
        self._record_path.unlink(missing_ok=True)
        self.left = [(0, self.file.size)] if self.file.size else []
        self.verified = None
        self.resumed = self._noted = False

    def sync(self) -> None:
        """Make the bytes durable."""
        with storage_errors(self.path):
            os.fsync(self.fd)

    def discard(self) -> None:
        """Remove bytes and record."""
        self._noted = False
        self._record_path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let go of the file. What is noted of it stays, for whoever goes on; bytes without a note do not."""
        if self._fd is None:
            return
        with contextlib.suppress(FileNotFoundError):  # installed, or removed with its directory
            if self._noted and self.is_intact:
                self._note(None, synced=self._synced)
            elif not self._noted:
                self.path.unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = None

    _synced = _noted = False


def _size(path: Path) -> int | None:
    try:
        return path.lstat().st_size
    except OSError:
        return None
