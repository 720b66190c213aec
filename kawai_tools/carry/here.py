"""What of an export is here already, and what stands in its way."""

import hashlib
import os
import stat

from kawai_tools.carry.manifest import MODELS, CarriedBuild, CarriedFile, CarriedModel, CarriedPart
from kawai_tools.carry.moving import Mover, reader
from kawai_tools.carry.telling import Teller
from kawai_tools.errors import DifferentVersion, Unavailable
from kawai_tools.events import Status
from kawai_tools.libs.bundles import Bundles
from kawai_tools.models.layout import model_path
from kawai_tools.models.records import Entry, FileRecord
from kawai_tools.models.store import Store

Files = dict[str, CarriedFile]
"""The files of a manifest by their paths in the archive."""


class Here:
    """Compares what an export carries with what is installed."""

    def __init__(self, store: Store, files: Files, mover: Mover, teller: Teller) -> None:
        """Files whose digest nobody knows are hashed with ``mover``, and told to ``teller``."""
        self._store, self._files, self._mover, self._teller = store, files, mover, teller

    def entry(self, model: CarriedModel) -> Entry | None:
        """What is installed at a model's place."""
        return self._store.index.by_path(model_path(model.files[0].path))

    def is_whole(self, model: CarriedModel, found: dict[str, FileRecord]) -> bool:
        """Whether a model is installed with all that is carried of it, and as much is known of it.

        One that was put here by hand is none, where the export knows whence it is or what its digests are:
        it needs no bytes, but its provenance. It is left alone where it has more files than are carried.
        """
        entry = self.entry(model)
        if entry is None or not entry.present:
            return False
        known = {file.path: file for file in entry.record.files}
        paths = {part.path for part in model.files}
        if not (paths <= known.keys() and paths <= found.keys()):
            return False
        as_good = entry.record.url is not None or model.url is None
        return len(known) > len(paths) or (as_good and all(known[path].sha256 for path in paths))

    def look(self, model: CarriedModel) -> dict[str, FileRecord]:
        """The files of a model that are here. Raises ``DifferentVersion`` where others are in their place."""
        found = {}
        for part in model.files:
            if (record := self._file(part)) is not None:
                found[part.path] = record
        entry = self.entry(model)
        if entry is not None and not self.is_whole(model, found):
            more = {file.path for file in entry.record.files} - {part.path for part in model.files}
            if more:
                raise _different(entry.record.id, f"it has {', '.join(sorted(more))}")
        return found

    def _file(self, part: CarriedPart) -> FileRecord | None:
        """The record of a file that is here with the bytes that are carried."""
        place, wanted = self._store.layout.file(part.path), self._files[MODELS + part.path]
        try:
            status = place.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        known = self._known(part)
        same = stat.S_ISREG(status.st_mode) and status.st_size == wanted.size
        if same and known is not None and known.size == wanted.size and known.sha256 is not None:
            same, mtime = known.sha256 == wanted.sha256, known.mtime_ns
        elif same:
            same, mtime = self._digest(part.path, wanted.size) == wanted.sha256, status.st_mtime_ns
        if not same:
            entry = self._store.index.by_path(model_path(part.path))
            raise _different(entry.record.id if entry else None, f"{place} has other content")
        return FileRecord(
            path=part.path,
            size=wanted.size,
            role=part.role,
            url=part.url,
            etag=part.etag,
            sha256=wanted.sha256,
            mtime_ns=mtime,
        )

    def _known(self, part: CarriedPart) -> FileRecord | None:
        index = self._store.index
        entry = index.by_path(model_path(part.path))
        near = [entry] if entry else index.all() if part.role == "projection" else []
        return next((file for each in near for file in each.record.files if file.path == part.path), None)

    def _digest(self, path: str, size: int) -> str:
        self._teller.begin(Status.VERIFYING, path, size)
        digest = hashlib.sha256()
        place = self._store.layout.file(path)
        try:
            fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise Unavailable(
                f"cannot read {place}: {error.strerror}", "make it a file that can be read"
            ) from error
        try:
            self._mover.move(digest, reader(fd, 0), size, self._teller.moved)
        finally:
            os.close(fd)
        return digest.hexdigest()


def _different(model_id: str | None, why: str) -> DifferentVersion:
    if model_id is None:
        return DifferentVersion(f"what is here is not what the export has: {why}", "move it elsewhere first")
    return DifferentVersion(
        f"{model_id} is here, and is not what the export has: {why}",
        f"kawai models rm {model_id} makes room for it",
    )


def build_is_here(bundles: Bundles, build: CarriedBuild) -> bool:
    """Whether that very build is installed. Raises ``DifferentVersion`` for another of the same name."""
    record = bundles.at(build.pointer)
    if record is None:
        return False
    if {each.sha256 for each in record.assets} != {each.sha256 for each in build.assets}:
        raise DifferentVersion(
            f"{build.version} is here, and is not the one that the export has",
            f"kawai libs rm {build.version} --processor {build.processor} makes room for it",
        )
    return True
