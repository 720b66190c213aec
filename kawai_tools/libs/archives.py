"""Untrusted archives of llama.cpp builds, unpacked so that nothing is written anywhere else.

Every member of every archive is read to its end and checked before the first is written, through directory
descriptors, into a directory that was not there before. A large archive is inflated twice for that; what
a small one holds is kept in memory. ``tarfile`` and ``zipfile`` do neither:
``extractall`` could be made to write outside on 3.11.7, and checks a member after the one before is written.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kawai_tools import files
from kawai_tools.errors import BrokenArchive, NoSpace, UnsafeArchive
from kawai_tools.libs import tarballs, zips
from kawai_tools.libs.inflating import LIMITS, Limits, Meter, broken, quoted
from kawai_tools.libs.members import Kind, Member, Parts, Tree, merged

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_SYNCS = 4

Progress = Callable[[int, int], None]
Contents = Iterator[tuple[Member, Iterable[bytes | memoryview]]]


def _no_progress(_done: int, _total: int) -> None:
    """Tell nobody."""


def _no_pause() -> None:
    """Go on."""


def unpack(
    archives: Sequence[Path],
    destination: Path,
    *,
    names: Sequence[str] = (),
    limits: Limits = LIMITS,
    progress: Progress = _no_progress,
    pause: Callable[[], None] = _no_pause,
) -> None:
    """Unpack a build's archives into one new directory, durably; on any failure there is none.

    ``destination`` must not exist, its parent must. A tar.gz loses its one top folder, a zip is flat; which
    of the two it is its first bytes tell. ``names`` are what refusals call the archives, by default their
    files' own. What several archives have must be the same in all. ``progress`` is told how many of how many
    bytes are written; ``pause`` is called often, and what it raises ends it.
    Raises ``UnsafeArchive``, ``BrokenArchive``, ``NoSpace`` or ``HomeNotWritable``.
    """
    with contextlib.ExitStack() as stack:
        called = names or [path.name for path in archives]
        pairs = zip(archives, called, strict=True)
        opened = [stack.enter_context(_opened(path, name)) for path, name in pairs]
        meter = Meter(limits, pause)
        trees = [_listed(archive, meter, digest=len(opened) > 1) for archive in opened]
        whole = merged(trees, limits)
        free = files.free_space(destination.parent)
        if whole.size > free:
            raise NoSpace(
                f"{whole.size:,} bytes are needed for {destination}, and {free:,} are free",
                "free some space and try again; what was downloaded is kept",
            )
        with _new_directory(destination) as root:
            writer = _Writer(root, whole, progress)
            meter = Meter(limits, pause)
            for archive, tree in zip(opened, trees, strict=True):
                writer.write(archive, tree, meter)
            writer.sync(pause)


@dataclass(frozen=True)
class _Archive:
    name: str
    fd: int
    size: int

    def members(self, meter: Meter) -> Contents:
        """The members, read by who knows the kind of archive that it is."""
        magic = os.pread(self.fd, 4, 0)
        if magic[:2] == b"\x1f\x8b":
            return tarballs.members(self.fd, self.size, meter)
        if magic == b"PK\3\4":
            return zips.members(self.fd, self.size, meter)
        raise broken("it is neither a tar.gz nor a zip with members")


@contextlib.contextmanager
def _opened(path: Path, name: str) -> Iterator[_Archive]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield _Archive(name, fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _naming(archive: _Archive) -> Iterator[None]:
    """Begin refusals with the archive's name."""
    try:
        yield
    except (UnsafeArchive, BrokenArchive) as error:
        raise type(error)(f"{archive.name}: {error.message}", error.hint) from error


@contextlib.contextmanager
def _placing(last: Callable[[], str | None]) -> Iterator[None]:
    """Say of damage that names no member after which one it is."""
    try:
        yield
    except BrokenArchive as error:
        name = last()
        if name is None or quoted(name) in error.message:
            raise
        raise broken(f"{error.message}, in or after {quoted(name)}") from error


def _listed(archive: _Archive, meter: Meter, *, digest: bool) -> Tree:
    """Read an archive to its end, writing nothing, and check all it holds."""
    tree = Tree(meter.limits)
    last: str | None = None
    with _naming(archive), _placing(lambda: last):
        for member, content in archive.members(meter):
            last = member.name
            tree.add(member)
            hashed = hashlib.sha256()
            for piece in content:
                tree.keep(member, piece)
                if digest:
                    hashed.update(piece)
            if member.kind is Kind.FILE:
                tree.digests[member.path] = hashed.digest()
        tree.check_links()
        if not any(member.kind is Kind.FILE for member in tree.listed):
            raise broken("there is no file in it")
    return tree


@contextlib.contextmanager
def _new_directory(path: Path) -> Iterator[int]:
    """Make a directory and hand out its descriptor; remove it again unless all goes well."""
    with files.storage_errors(path):
        path.mkdir()
        try:
            fd = os.open(path, _DIRECTORY)
            try:
                os.fchmod(fd, 0o755)
                yield fd
            finally:
                os.close(fd)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise


class _Writer:
    """Writes checked members below a descriptor, each once."""

    def __init__(self, root: int, whole: Tree, progress: Progress) -> None:
        self._root = root
        self._whole = whole
        self._progress = progress
        self._total = whole.size
        self._done = 0
        self._written: set[Parts] = set()
        for path in whole.directories:
            with self._within(path[:-1]) as above:
                os.mkdir(path[-1], dir_fd=above)
            with self._within(path) as made:
                os.fchmod(made, 0o755)
        progress(0, self._total)

    @contextlib.contextmanager
    def _within(self, path: Parts) -> Iterator[int]:
        """A descriptor of the directory, reached step by step so that no link can lead elsewhere."""
        fd = os.dup(self._root)
        try:
            for name in path:
                below = os.open(name, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)

    def write(self, archive: _Archive, tree: Tree, meter: Meter) -> None:
        """Write what one archive holds and those before it did not."""
        count = 0
        with _naming(archive):
            for count, (member, content) in enumerate(archive.members(meter), start=1):
                if count > len(tree.listed) or tree.listed[count - 1] != member:
                    raise broken("it changed while it was read")
                if member.path not in self._written and member.kind is not Kind.DIRECTORY:
                    self._written.add(member.path)
                    self._write(member, content)
            if count != len(tree.listed):
                raise broken("it changed while it was read")

    def _write(self, member: Member, content: Iterable[bytes | memoryview]) -> None:
        name = member.path[-1]
        with self._within(member.path[:-1]) as above:
            if member.kind is Kind.SYMLINK:
                os.symlink(member.target, name, dir_fd=above)
            elif member.kind is Kind.HARDLINK:
                with self._within(member.source[:-1]) as there:
                    os.link(
                        member.source[-1], name, src_dir_fd=there, dst_dir_fd=above, follow_symlinks=False
                    )
            else:
                fd = os.open(name, _NEW_FILE, 0o600, dir_fd=above)
                with os.fdopen(fd, "wb") as file:
                    for piece in content:
                        file.write(piece)
                        self._done += len(piece)
                        self._progress(self._done, self._total)
                    os.fchmod(fd, 0o755 if member.executable else 0o644)

    def sync(self, pause: Callable[[], None]) -> None:
        """Make all of it durable: files, several at once since each waits for the disk, then directories."""
        paths = [path for path, member in self._whole.members.items() if member.kind is Kind.FILE]
        pool = ThreadPoolExecutor(_SYNCS)
        try:
            for _ in pool.map(self._sync, paths):
                pause()
        finally:
            pool.shutdown(cancel_futures=True)
        for path in [*reversed(self._whole.directories), ()]:
            with self._within(path) as directory:
                os.fsync(directory)

    def _sync(self, path: Parts) -> None:
        with self._within(path[:-1]) as above:
            fd = os.open(path[-1], _OLD_FILE, dir_fd=above)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
