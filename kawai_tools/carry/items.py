"""What is exported: models and builds, their files, and what keeps others from changing them meanwhile."""

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from kawai_tools.carry.manifest import LIBRARIES, MODELS, CarriedBuild, CarriedFile, CarriedModel, CarriedPart
from kawai_tools.carry.moving import Read, reader
from kawai_tools.carry.tape import EXECUTABLE, PLAIN
from kawai_tools.errors import (
    BrokenState,
    DigestMismatch,
    IncompleteModel,
    InUse,
    KawaiError,
)
from kawai_tools.libs.bundle import BundleRecord
from kawai_tools.libs.bundles import Bundles
from kawai_tools.models.claims import Use
from kawai_tools.models.neighbours import is_local
from kawai_tools.models.records import Record
from kawai_tools.models.store import Store


@dataclass(frozen=True)
class ItemFile:
    """One file on its way: where it lies, and what it is in the archive. ``sha256`` may have to be found."""

    place: Path
    path: str
    size: int
    sha256: str | None
    mode: int = PLAIN

    @property
    def carried(self) -> CarriedFile:
        """The file as the manifest has it."""
        return CarriedFile(self.path, self.size, self.sha256 or "")


class ModelItem:
    """A model that is exported."""

    def __init__(self, record: Record, store: Store) -> None:
        """Its files are those of its provenance; none is looked at yet."""
        self._store, self.record = store, record
        self.name = record.id
        self.files = [
            ItemFile(store.layout.file(file.path), MODELS + file.path, file.size, file.sha256)
            for file in record.files
        ]

    def shown(self, file: ItemFile) -> tuple[str, int]:
        """What is told of a file that is worked on."""
        return file.path.removeprefix(MODELS), file.size

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep others from replacing the files; where nobody can write, nobody does. Raises ``InUse``."""
        use = Use(self._store.layout, self.record.path, self.record.id)
        use.acquire()
        try:
            yield
        finally:
            use.release()

    def lacks(self, file: ItemFile, why: str) -> KawaiError:
        """What to say of a file that is not as it was."""
        self._store.require_mounted()
        again = (
            f"kawai models pull --force {self.record.url}"
            if self.record.url
            else "put a good copy in its place"
        )
        return IncompleteModel(f"{file.place} of {self.name} {why}", again)

    def differs(self, file: ItemFile) -> KawaiError:
        """What to say of bytes that are not what was installed."""
        return DigestMismatch(
            f"{file.place} is not what was installed: its SHA-256 differs",
            f"kawai models verify {self.name} says more",
        )

    @property
    def carried(self) -> CarriedModel:
        """The model as the manifest has it."""
        record = self.record
        return CarriedModel(
            id=record.id,
            files=[CarriedPart(each.path, each.role, each.url, each.etag) for each in record.files],
            url=record.url,
            commit=record.commit,
            sources=[word for word in record.sources if not is_local(word)],
            verified=record.verified_at is not None,
        )


class BuildItem:
    """A build that is exported."""

    def __init__(self, record: BundleRecord, bundles: Bundles) -> None:
        """List its files. Raises ``BrokenState`` where they are gone."""
        self.record = record
        self.name = record.version
        self._place = bundles.layout.bundle(record.platform, record.version)
        self._folder = f"{LIBRARIES}{record.platform}/{record.version}"
        self.links: dict[str, str] = {}
        self.files: list[ItemFile] = []
        try:
            self._list(self._place, "")
        except OSError as error:
            raise BrokenState(f"{self._place} cannot be read: {error.strerror}", self._again) from error

    def _list(self, folder: Path, prefix: str) -> None:
        for path in sorted(folder.iterdir()):
            name, found = prefix + path.name, path.lstat()
            if stat.S_ISLNK(found.st_mode):
                self.links[name] = str(path.readlink())
            elif stat.S_ISDIR(found.st_mode):
                self._list(path, f"{name}/")
            else:
                mode = EXECUTABLE if found.st_mode & 0o111 else PLAIN
                self.files.append(ItemFile(path, f"{self._folder}/{name}", found.st_size, None, mode))

    def shown(self, file: ItemFile) -> tuple[str, int]:  # noqa: ARG002 - as the other
        """A build is told of as one."""
        return self._folder, sum(each.size for each in self.files)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep others from replacing or removing it. Raises ``InUse``, or ``BrokenState`` if it is gone."""
        try:
            fd = os.open(self._place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise BrokenState(f"{self._place} cannot be read: {error.strerror}", self._again) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise InUse(
                f"{self.name} is being replaced or removed", "try again when that has ended"
            ) from None
        finally:
            os.close(fd)

    def lacks(self, file: ItemFile, why: str) -> KawaiError:
        """What to say of a file that is not as it was."""
        return BrokenState(f"{file.place} of {self.name} {why}", self._again)

    def differs(self, file: ItemFile) -> KawaiError:
        """What to say of bytes that changed while they were read."""
        return DigestMismatch(f"{file.place} changed while it was read", "run the same command again")

    @property
    def _again(self) -> str:
        return f"kawai libs pull --force {self.name} gets it anew"

    @property
    def carried(self) -> CarriedBuild:
        """The build as the manifest has it."""
        record, start = self.record, len(self._folder) + 1
        return CarriedBuild(
            version=record.version,
            arch=record.arch,
            os=record.os,
            processor=record.processor,
            variant=record.variant,
            assets=record.assets,
            executables=[each.path[start:] for each in self.files if each.mode == EXECUTABLE],
            links=self.links,
        )


Item: TypeAlias = ModelItem | BuildItem


@contextlib.contextmanager
def opened(item: Item, file: ItemFile) -> Iterator[int]:
    """A file, as large as it should be."""
    try:
        fd = os.open(file.place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise item.lacks(file, "is gone") from error
    except OSError as error:
        raise item.lacks(file, f"cannot be read: {error.strerror}") from error
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise item.lacks(file, "is no file")
        if found.st_size != file.size:
            raise item.lacks(file, f"has {found.st_size:,} bytes and should have {file.size:,}")
        yield fd
    finally:
        os.close(fd)


def reading(item: Item, file: ItemFile, fd: int, start: int) -> Read:
    """Read a file; what a failing disk says is said of the file."""
    read = reader(fd, start)

    def carefully(into: memoryview) -> int:
        try:
            return read(into)
        except OSError as error:
            raise item.lacks(file, f"cannot be read: {error.strerror}") from error

    return carefully
