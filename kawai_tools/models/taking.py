"""How the bytes of a file that is not ours come into the store: shared on disk, or copied; hashed either way.

A reflink shares blocks that are copied once either side writes (``FICLONE``, ioctl_ficlonerange(2)); a hard
link is another name of the same file. Neither changes what a tool sees of its own file.
"""

import errno
import fcntl
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from kawai_tools.errors import Conflict, InvalidRequest, NoSpace
from kawai_tools.files import free_space, reserve, storage_errors
from kawai_tools.models.candidates import Candidate, Version, looking, open_file, shown

BUFFER = 1 << 20
_FICLONE = 0x40049409
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_COPIES = "--copy takes a copy of its bytes"
_ABROAD = "it is on another file system than the store"

Tell = Callable[[int], None]
"""Is told of the bytes that are done; raises to break off."""


class Mode(StrEnum):
    """How bytes may come: whatever is cheapest, only shared on disk, or as bytes of the store's own."""

    ANY = "any"
    LINK = "link"
    COPY = "copy"


def take(file: Candidate, target: Path, mode: Mode, *, known: str | None, needed: int, tell: Tell) -> str:
    """Bring a file to ``target``, which is new, durably; its SHA-256, ``known`` where it was hashed before.

    ``needed`` are the bytes of disk that it, and what comes after it, would take if copied.
    Raises ``InvalidRequest`` where it can only be copied and may not be, ``NoSpace``, ``HomeNotWritable``,
    ``Conflict`` where it is changed meanwhile, and as :func:`~kawai_tools.models.candidates.looking`.
    """
    with _opened(file) as source:
        reason = _share(file, source, target, mode)
        if reason is None:
            digest = known or _hash_shared(file, target, tell)
            _sync(target)
        elif mode is Mode.LINK:
            raise cannot_link(file, reason)
        else:
            _require_room(file, needed, target.parent)
            digest = _copy(file, source, target, tell)
        return digest


def hash_file(file: Candidate, tell: Tell) -> str:
    """The SHA-256 of a file. Raises as :func:`take`."""
    with _opened(file) as source:
        return _hash(file, source, tell)


def require_shareable(file: Candidate, folder: Path) -> None:
    """Refuse beforehand what surely can only be copied into ``folder``. Raises ``InvalidRequest``."""
    if file.version.device == folder.stat().st_dev:
        return
    with _opened(file) as source:  # subvolumes of one disk look like several, and share all the same
        try:
            probe = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except (OSError, AttributeError):
            raise cannot_link(file, _ABROAD) from None
        try:
            if _clone(source, probe) is not None:
                raise cannot_link(file, _ABROAD)
        finally:
            os.close(probe)


def cannot_link(file: Candidate, reason: str) -> InvalidRequest:
    """What to say of a file that can only be copied."""
    return InvalidRequest(f"{shown(file.path)} cannot be linked into the store: {reason}", _COPIES)


@contextmanager
def _opened(file: Candidate) -> Iterator[int]:
    """The file that was looked at, open; it must be as it was then, also at the end."""
    fd = open_file(file.path, file.real)
    try:
        _require_unchanged(file, os.fstat(fd))
        yield fd
        _require_unchanged(file, os.fstat(fd))
    finally:
        os.close(fd)


def _require_unchanged(file: Candidate, status: os.stat_result) -> None:
    if Version.of(status) != file.version:
        raise changed(file)


def changed(file: Candidate) -> Conflict:
    """What to say of a file that its owner works on."""
    return Conflict(
        f"{shown(file.path)} changed while it was read", "wait for the tool that writes it, then try again"
    )


def _share(file: Candidate, source: int, target: Path, mode: Mode) -> str | None:
    """Share the bytes on disk, as far as the mode allows it; why not, where that cannot be.

    Who asks for a link gets one before a reflink; else what no other tool can write to comes first.
    """
    ways = {Mode.ANY: (_reflink, _link), Mode.LINK: (_link, _reflink), Mode.COPY: (_reflink,)}[mode]
    reasons = []
    for way in ways:
        reason = way(file, source, target)
        if reason is None:
            return None
        reasons.append(reason)
    return reasons[0]


def _link(file: Candidate, source: int, target: Path) -> str | None:
    try:
        os.link(file.real, target)
    except FileNotFoundError:
        raise changed(file) from None
    except OSError as error:
        return _ABROAD if error.errno == errno.EXDEV else error.strerror or "the file system cannot"
    if not os.path.samestat(os.lstat(target), os.fstat(source)):  # another was put in its place just now
        raise changed(file)
    return None


def _reflink(_: Candidate, source: int, target: Path) -> str | None:
    if sys.platform != "linux":
        return "there are no reflinks"
    with storage_errors(target):
        fd = os.open(target, _NEW, 0o644)
    try:
        reason = _clone(source, fd)
    finally:
        os.close(fd)
    if reason is not None:
        target.unlink()
    return reason


def _clone(source: int, target: int) -> str | None:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        return error.strerror or "the file system cannot"
    return None


def _hash_shared(file: Candidate, target: Path, tell: Tell) -> str:
    """Hash what has come, by its own name: no other bytes are promised."""
    with storage_errors(target):
        fd = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return _hash(file, fd, tell)
    finally:
        os.close(fd)


def _hash(file: Candidate, fd: int, tell: Tell) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(file, fd, tell):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(file: Candidate, fd: int, tell: Tell) -> Iterator[memoryview]:
    """The bytes of a file, through one buffer; raises where they are not as many as there were."""
    buffer, done = memoryview(bytearray(BUFFER)), 0
    while True:
        with looking(file.path):
            count = os.preadv(fd, [buffer], done)
        if not count:
            break
        yield buffer[:count]
        done += count
        tell(done)
    if done != file.version.size:
        raise changed(file)


def _require_room(file: Candidate, needed: int, folder: Path) -> None:
    free = free_space(folder)
    if needed > free:
        raise NoSpace(
            f"a copy of {shown(file.path)} needs {needed:,} bytes of disk, and the store has {free:,} free",
            "make room (kawai prune), or keep models on the disk that holds the file (--home)",
        )


def _copy(file: Candidate, source: int, target: Path, tell: Tell) -> str:
    """Copy and hash in one pass; the blocks are claimed before the first byte."""
    digest = hashlib.sha256()
    with storage_errors(target):
        fd = os.open(target, _NEW, 0o644)
        try:
            reserve(fd, file.version.size)
            for piece in _pieces(file, source, tell):
                digest.update(piece)
                _write(fd, piece)
            os.fsync(fd)
        finally:
            os.close(fd)
    return digest.hexdigest()


def _write(fd: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(fd, piece) :]


def _sync(target: Path) -> None:
    """Make the bytes durable: those of a file that another tool has just written may not be yet."""
    with storage_errors(target):
        fd = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
