"""A build on its way in: put together aside, tried where it is for this machine, then given its place."""

import contextlib
import hashlib
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

from kawai_tools.carry.manifest import CarriedBuild, CarriedFile
from kawai_tools.carry.moving import Mover, writer
from kawai_tools.carry.source import Source
from kawai_tools.carry.tape import EXECUTABLE, PLAIN
from kawai_tools.carry.telling import Teller
from kawai_tools.errors import BrokenArchive, DigestMismatch
from kawai_tools.events import Progress, Status
from kawai_tools.files import Lock, make_directory, storage_errors, sync_directory
from kawai_tools.libs.bundle import BundleRecord, Probe
from kawai_tools.libs.bundles import Bundles
from kawai_tools.libs.inflating import quoted
from kawai_tools.libs.members import Kind, Tree
from kawai_tools.libs.probing import probe
from kawai_tools.libs.staging import clear, staging
from kawai_tools.transfer.pulls import Pull

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TICK = 0.1
_AGAIN = "copy it again, or export it again"


class IncomingBuild:
    """One build; ``missing`` are the paths in the archive of what is still to come."""

    def __init__(self, build: CarriedBuild, tree: Tree, bundles: Bundles, *, was_active: bool) -> None:
        """``tree`` is what was checked of it; ``was_active`` that it was in use where it came from."""
        self.build, self._tree, self._bundles, self._was_active = build, tree, bundles, was_active
        self._members = {build.folder + each.name: each for each in tree.listed if each.kind is Kind.FILE}
        self._held = contextlib.ExitStack()
        self._staging = Path()
        self.begun = self.done = False
        self.takes: set[str] = set()
        self.files = frozenset(self._members)
        self.missing = set(self._members)

    @property
    def needed(self) -> int:
        """Bytes of disk that it takes."""
        return self._tree.size

    def begin(self, pull: Pull) -> None:
        """Have the build for oneself, and make where it is put together; a half one of before is removed."""
        if self.begun:
            return
        self.begun = True
        layout, build = self._bundles.layout, self.build
        lock = Lock(layout.pull_lock(build.platform, build.version))
        while not lock.acquire():
            pull.tell(Progress(status=Status.WAITING))
            pull.pause(_TICK)
        self._held.callback(lock.remove)
        if self._bundles.at(build.pointer) is not None:  # another kawai was quicker
            self.missing = set()
            return
        directory = layout.partial(build.platform, build.version)
        clear(directory)
        self._held.callback(clear, make_directory(directory))
        self._staging = staging(directory, pull.id)
        make_directory(self._staging)
        self._held.callback(shutil.rmtree, self._staging, ignore_errors=True)
        for path in self._tree.directories:
            make_directory(self._staging.joinpath(*path))

    def receive(self, file: CarriedFile, source: Source, mover: Mover, teller: Teller) -> None:
        """Take one file, whole and right. Raises ``DigestMismatch`` or ``BrokenArchive``."""
        member, digest = self._members[file.path], hashlib.sha256()
        place = self._staging.joinpath(*member.path)
        with storage_errors(place):
            fd = os.open(place, _NEW, 0o600)
            try:
                count = mover.move(digest, source.read, file.size, teller.moved, writer(fd, 0), fd)
                os.fchmod(fd, EXECUTABLE if member.executable else PLAIN)
                os.fsync(fd)
            finally:
                os.close(fd)
        if count != file.size:
            raise BrokenArchive("it is cut short", _AGAIN)
        if digest.hexdigest() != file.sha256:
            raise DigestMismatch(
                f"{quoted(file.path)} in it is not what its manifest says: its SHA-256 differs", _AGAIN
            )
        self.missing.discard(file.path)

    def shown(self, _: CarriedFile) -> tuple[str, int]:
        """A build is told of as one."""
        return self.build.folder.rstrip("/"), self._tree.size

    def install(self, pull: Pull, teller: Teller) -> bool:
        """Make its links, try it, and give it its place; false where another kawai has done so.

        It is used if it was where it came from, and if none is used here.
        """
        self.done = True
        if self._bundles.at(self.build.pointer) is not None:
            return False
        with storage_errors(self._staging):
            for member in self._tree.listed:
                if member.kind is Kind.SYMLINK:
                    self._staging.joinpath(*member.path).symlink_to(member.target)
            for path in [*reversed(self._tree.directories), ()]:
                sync_directory(self._staging.joinpath(*path))
        record = self._record(
            Probe(ok=None, detail=f"not tried: it is for {self.build.os}/{self.build.arch}")
        )
        if self._bundles.is_here(record):
            teller.say(Status.PROBING)
            record = self._record(probe(self._staging, self.build.processor, pull.pause))
        teller.say(Status.INSTALLING)
        self._bundles.install(record, self._staging)
        if self._was_active and record.probe.ok and self._bundles.current() is None:
            self._bundles.use(record, pull.pause)
        return True

    def _record(self, result: Probe) -> BundleRecord:
        build = self.build
        return BundleRecord(
            version=build.version,
            arch=build.arch,
            os=build.os,
            processor=build.processor,
            variant=build.variant,
            size=sum(each.lstat().st_size for each in self._staging.iterdir()),
            installed_at=datetime.now(UTC),
            assets=build.assets,
            probe=result,
        )

    def close(self) -> None:
        """Let go; what is not installed goes with it."""
        self._held.close()
