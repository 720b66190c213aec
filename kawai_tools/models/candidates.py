"""What lies at a path that somebody names: GGUF files and folders of them, looked at but never touched."""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kawai_tools.errors import IncompleteModel, InvalidRequest, MalformedGguf, NotAllowed, NotAModel, NotFound
from kawai_tools.gguf import Header, read_header_fd
from kawai_tools.models.caches import begins_as_gguf, digest_named, identity
from kawai_tools.models.scan import fits_name
from kawai_tools.refs import is_gguf_name, is_projection_name, shard_of

_KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a directory"}
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
_NAMED = "name a GGUF file, or a directory of them"


class Version(NamedTuple):
    """What is another once a file was replaced or changed."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Version":
        """Take it from what the system says of a file."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class Candidate(NamedTuple):
    """A whole GGUF file: ``path`` is how it was come by, ``real`` where it lies."""

    path: Path
    real: Path
    version: Version
    header: Header

    @property
    def is_projection(self) -> bool:
        """Whether it goes with a model and is none."""
        return self.header.is_projection or is_projection_name(self.path.name)

    @property
    def identity(self) -> tuple[int, int]:
        """What tells it from other files, whatever its names."""
        return self.version.device, self.version.inode

    @property
    def digest(self) -> str | None:
        """The SHA-256 that the tool which holds it says it has."""
        return digest_named(self.real)


@contextlib.contextmanager
def looking(path: Path) -> Iterator[None]:
    """Say of ``path`` what the system says where it cannot be read.

    Raises ``NotFound``, ``NotAllowed``, ``InvalidRequest`` for links that lead back to themselves, or
    ``IncompleteModel`` for a disk that fails.
    """
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}:
            raise NotFound(f"there is no file {shown(path)}", _NAMED) from error
        if error.errno in {errno.EACCES, errno.EPERM}:
            raise NotAllowed(f"{shown(path)} may not be read", "make it readable for this user") from error
        if error.errno == errno.ELOOP:
            raise InvalidRequest(
                f"{shown(path)} is a symbolic link that leads back to itself", _NAMED
            ) from error
        if error.errno in {errno.ENXIO, errno.ENODEV}:
            raise InvalidRequest(f"{shown(path)} is a device or a socket, not a file", _NAMED) from error
        raise IncompleteModel(
            f"{shown(path)} cannot be read: {error.strerror}", "the disk may be failing"
        ) from error


def shown(path: Path) -> str:
    """A path for a message, also one that is no text."""
    return os.fsencode(path).decode(errors="backslashreplace")


def resolved(path: Path) -> Path:
    """Where a path leads, without symbolic links. Raises as :func:`looking`."""
    with looking(path):
        return Path(os.path.realpath(path, strict=True))


def open_file(path: Path, real: Path) -> int:
    """Open the regular file at ``real``, never waiting for it. Raises as :func:`looking`."""
    with looking(path):
        _refuse_special(path, os.lstat(real).st_mode)  # before opening: a device may act on it
        fd = os.open(real, _FLAGS)
        try:
            _refuse_special(path, os.fstat(fd).st_mode)
        except InvalidRequest:
            os.close(fd)
            raise
        return fd


def _refuse_special(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "a device")
        raise InvalidRequest(f"{shown(path)} is {kind}, not a file", _NAMED)


def look(path: Path) -> Candidate:
    """Read the header of a file. Raises as :func:`looking`, ``MalformedGguf`` or ``NotAModel``."""
    real = resolved(path)
    fd = open_file(path, real)
    try:
        with looking(path):
            return Candidate(path, real, Version.of(os.fstat(fd)), read_header_fd(fd))
    except (MalformedGguf, NotAModel) as error:
        raise type(error)(f"{shown(path)}: {error.message}", error.hint) from None
    finally:
        os.close(fd)


def whole_set(file: Candidate) -> list[Candidate]:
    """All the shards that one stands for, in order; the file itself where it is none.

    Raises ``IncompleteModel`` where one is missing or not what its name says.
    """
    shard = shard_of(file.path.name)
    if not shard.count and (file.header.split_count or 1) > 1:
        raise IncompleteModel(
            f"{shown(file.path)} is one of {file.header.split_count} shards, and its name does not say which",
            "name a shard that is called like MODEL-00001-of-00003.gguf",
        )
    found = []
    for name in shard.names() if shard.count else [file.path.name]:
        try:
            each = file if name == file.path.name else look(file.path.with_name(name))
        except NotFound:
            raise IncompleteModel(
                f"{shown(file.path.with_name(name))} is missing, one of {shard.count} shards",
                "put all shards of a model into one directory",
            ) from None
        if each.is_projection or not fits_name(each.header, name):
            raise IncompleteModel(f"{shown(each.path)} is not the shard that its name says")
        found.append(each)
    return found


def files_below(top: Path, leave_out: tuple[int, int] | None) -> list[Path]:
    """What could be models in a directory and all below it, in path order; links are followed.

    ``leave_out`` is the identity of a directory that is passed over unless it is ``top`` itself.
    Raises as :func:`looking`, and ``InvalidRequest`` for a directory that leads back into itself.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    to_do: list[tuple[Path, tuple[tuple[int, int], ...]]] = [(top, ())]
    while to_do:
        folder, above = to_do.pop()
        with looking(folder):
            this = identity(folder.stat())
        if this in above:
            raise InvalidRequest(
                f"{shown(folder)} leads back into itself: it is a directory that it lies in",
                "name the files or directories that are meant",
            )
        if this in seen or (above and this == leave_out):
            continue
        seen.add(this)
        with looking(folder), os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda each: each.name, reverse=True):  # what is last is next
                _sort(entry, found, to_do, (*above, this))
    return sorted(found)


def _sort(
    entry: "os.DirEntry[str]",
    found: list[Path],
    to_do: list[tuple[Path, tuple[tuple[int, int], ...]]],
    above: tuple[tuple[int, int], ...],
) -> None:
    """A folder is to be done, what could be a model is found; what is hidden is nobody's business."""
    path = Path(entry.path)
    if entry.name[0] == ".":
        return
    with looking(path):
        if entry.is_dir():
            to_do.append((path, above))
        elif is_gguf_name(entry.name):
            found.extend([path] if path.exists() else [])  # a link to what was removed
        elif re.fullmatch(r"sha256-[0-9a-f]{64}", entry.name) and begins_as_gguf(path):
            found.append(path)
