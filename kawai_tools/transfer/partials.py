"""A file on its way: its bytes so far, and a record of what they belong to and which are still missing.

The bytes are bound to URL, commit, ETag, size and digest; anything else than the very same starts over.
The record is a hint that may be lost with the power (never torn): a whole file is hashed at its end, and
one that was resumed and does not match is fetched once more from the start. Bytes that no digest will
judge are trusted after a restart of the machine only if they were synced.
"""

import contextlib
import os
import time
from pathlib import Path

import msgspec

from kawai_tools.files import make_directory, read_if_there, reserve, storage_errors, write_atomically
from kawai_tools.transfer.hub import RemoteFile


class Record(msgspec.Struct, frozen=True):
    """What the bytes belong to; ``left`` are the ranges still missing, ``verified`` the digest found.

    ``boot`` names the run of the machine in which they were written, ``None`` if they were synced.
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


def this_boot() -> str:
    """What tells this run of the machine from others: Linux's own name for it, else when it began."""
    name = read_if_there(Path("/proc/sys/kernel/random/boot_id"))
    return name.decode().strip() if name else f"{(time.time() - time.monotonic()) / 600:.0f}"


class Partial:
    """The partial of one file: ``<name>.partial`` and its record beside it."""

    def __init__(self, directory: Path, name: str, file: RemoteFile) -> None:
        """Read the record; nothing is opened or made yet."""
        self.path = directory / f"{name}.partial"
        self.file = file
        self._record_path = directory / f"{name}.json"
        record = self._read()
        self.left = [(0, file.size)] if file.size else []
        self.verified: str | None = None
        self.resumed = record is not None
        self._fd: int | None = None
        if record is not None:
            self.left = list(record.left)
            self.verified = record.verified if record.mtime_ns == self.path.stat().st_mtime_ns else None

    def _read(self) -> Record | None:
        data = read_if_there(self._record_path)
        try:
            record = msgspec.json.decode(data or b"", type=Record)
        except msgspec.DecodeError:
            return None
        size = self.path.stat().st_size if self.path.is_file() else -1
        usable = record.belongs_to(self.file) and record.is_sound() and size == self.file.size
        return record if usable else None

    @property
    def have(self) -> int:
        """Bytes that are here."""
        return self.file.size - sum(end - start for start, end in self.left)

    @property
    def claimed(self) -> int:
        """Bytes of disk that the partial takes already."""
        with contextlib.suppress(FileNotFoundError):
            return min(self.path.stat().st_blocks * 512, self.file.size)
        return 0

    @property
    def fd(self) -> int:
        """The open file, of full length, its blocks claimed. Raises ``NoSpace``."""
        if self._fd is None:
            make_directory(self.path.parent)
            with storage_errors(self.path):
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                self._fd = os.open(self.path, flags, 0o644)
                if not self.resumed:
                    os.ftruncate(self._fd, 0)
                reserve(self._fd, self.file.size)
        return self._fd

    def save(self, left: list[tuple[int, int]], verified: str | None = None, *, synced: bool = False) -> None:
        """Note which ranges are missing; durably once the file is whole and verified.

        ``synced`` says that :meth:`sync` was called since the last byte was written.
        """
        self.left, self.verified = left, verified
        file, stat = self.file, os.fstat(self.fd)
        record = Record(
            url=file.url,
            commit=file.commit,
            etag=file.etag,
            size=file.size,
            sha256=file.sha256,
            left=left,
            verified=verified,
            mtime_ns=stat.st_mtime_ns,
            boot=None if synced or verified else this_boot(),
        )
        write_atomically(self._record_path, msgspec.json.encode(record), durable=verified is not None)

    def restart(self) -> None:
        """Forget every byte; the claimed blocks stay claimed."""
        self._record_path.unlink(missing_ok=True)
        self.left = [(0, self.file.size)] if self.file.size else []
        self.verified = None
        self.resumed = False

    def sync(self) -> None:
        """Make the bytes durable."""
        with storage_errors(self.path):
            os.fsync(self.fd)

    def discard(self) -> None:
        """Remove bytes and record."""
        self.close()
        self._record_path.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file; its bytes stay."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
