"""A model on its way in: its files arrive in its partial directory; once all are whole it is installed."""

import contextlib
import hashlib
import time
from pathlib import Path

from kawai_tools.carry.here import Files, Here
from kawai_tools.carry.manifest import MODELS, CarriedFile, CarriedModel, CarriedPart
from kawai_tools.carry.moving import Mover, reader, writer
from kawai_tools.carry.source import Source
from kawai_tools.carry.telling import Teller
from kawai_tools.errors import BrokenArchive, DigestMismatch, KawaiError, NoSpace, NotAModel
from kawai_tools.events import Progress, Status
from kawai_tools.files import Lock, storage_errors
from kawai_tools.gguf import read_header_fd
from kawai_tools.libs.inflating import quoted
from kawai_tools.models.claims import Claim, in_use, release_use, write_claim
from kawai_tools.models.layout import model_path
from kawai_tools.models.naming import new_id
from kawai_tools.models.records import Facts, FileRecord, Record, now, owner_and_stem
from kawai_tools.models.scan import fits_name
from kawai_tools.models.store import Store
from kawai_tools.transfer.partials import Partial
from kawai_tools.transfer.pulls import Pull
from kawai_tools.transfer.remote_file import RemoteFile

_NOTED_EVERY = 1.0
"""Seconds between two notes of how far a file is: what a kill may cost."""

_TICK = 0.1


class IncomingModel:
    """One model; ``missing`` are the paths in the archive of what is still to come.

    It ``takes`` those that no other one takes before it: what several share comes once.
    """

    def __init__(self, model: CarriedModel, found: dict[str, FileRecord], files: Files, store: Store) -> None:
        """``found`` are the files that are here already."""
        self.model, self.path = model, model_path(model.files[0].path)
        self._found, self._files, self._store = found, files, store
        self._partials: dict[str, Partial] = {}
        self._held = contextlib.ExitStack()
        self._here: Here | None = None
        self._received: dict[str, Partial] = {}
        self._facts: dict[str, Facts] = {}
        self.begun = self.done = False
        self.takes: set[str] = set()
        self.files = {MODELS + part.path for part in model.files}
        self.missing = {MODELS + part.path for part in model.files if part.path not in found}

    def begin(self, pull: Pull, here: Here) -> None:
        """Have the model for oneself, look again what is here by now, and claim the disk.

        Raises ``InUse``, ``NoSpace`` or ``DifferentVersion``.
        """
        if self.begun:
            return
        self.begun = True
        layout = self._store.layout
        pulling, using = Lock(layout.pull_lock(self.path)), self._store.use_lock(self.path)
        while not pulling.acquire():
            pull.tell(Progress(status=Status.WAITING))
            pull.pause(_TICK)
        self._held.callback(pulling.remove)
        if not using.acquire():
            raise in_use(self.model.id)
        self._held.callback(release_use, layout, self.path, using)
        self._store.finish(self.path)
        self._found, self._here = here.look(self.model), here
        came = {MODELS + path for path in self._found}
        self.missing -= came
        if self.missing:
            self._claim(write_claim(layout, Claim(self._id(), self.path)))

    def _claim(self, directory: Path) -> None:
        for part in self.model.files:
            path = MODELS + part.path
            if path in self.missing & self.takes:
                self._partials[path] = Partial(directory, *self._remote(path))
        partials = list(self._partials.values())
        for each in partials:
            self._held.callback(each.close)
        try:
            for each in partials:
                each.take()
                each.save(each.left, each.verified)  # claimed blocks of which nothing is noted would be lost
        except NoSpace:
            for each in partials:
                if not each.have:
                    each.discard()
            raise

    def receive(self, file: CarriedFile, source: Source, mover: Mover, teller: Teller) -> None:
        """Take the bytes of a file, whole and right. Raises ``DigestMismatch`` and whatever else is wrong."""
        partial = self._partials[file.path]
        if partial.verified == file.sha256 and partial.is_intact:
            source.skip(file.size)
            teller.passed(file.size)
        else:
            have = _beginning_of(partial)
            while self._arrive(partial, have, source, mover, teller) != file.sha256:
                partial.restart()
                if not (have and source.seekable):
                    partial.discard()
                    raise _wrong(file)
                source.back(file.size)
                teller.passed(-file.size)
                have = 0
            self._accept(partial, file)
        self._received[file.path] = partial
        self.missing.discard(file.path)

    def shown(self, file: CarriedFile) -> tuple[str, int]:
        """What is told of a file that is worked on."""
        return file.path.removeprefix(MODELS), file.size

    @property
    def needed(self) -> int:
        """Bytes of disk that are still to be claimed; what has arrived before takes some already."""
        partial = self._store.layout.partial(self.path)
        return sum(
            self._files[path].size - Partial(partial, *self._remote(path)).claimed
            for path in self.missing & self.takes
        )

    def _remote(self, path: str) -> tuple[str, RemoteFile]:
        """A file as it is noted while it is not whole: by its digest, whichever archive it comes from."""
        file = self._files[path]
        url = f"export:{file.sha256}"
        return file.sha256[:32], RemoteFile(url, url, file.size, file.sha256, commit=None, etag=None)

    @staticmethod
    def _arrive(partial: Partial, have: int, source: Source, mover: Mover, teller: Teller) -> str:
        """Take one file's bytes, of which ``have`` are here; the digest of them all."""
        digest, size, at, noted = hashlib.sha256(), partial.file.size, have, time.monotonic()

        def arrived(count: int) -> None:
            nonlocal at, noted
            at += count
            if time.monotonic() - noted > _NOTED_EVERY:
                partial.save([(at, size)] if at < size else [])
                noted = time.monotonic()
            teller.moved(count)

        with storage_errors(partial.path):
            mover.move(digest, reader(partial.fd, 0), have, teller.moved)
            source.skip(have)
            try:
                mover.move(digest, source.read, size - have, arrived, writer(partial.fd, have), partial.fd)
            finally:
                partial.save([(at, size)] if at < size else [])
        if at < size:
            raise BrokenArchive("it is cut short", "copy it again, or export it again")
        return digest.hexdigest()

    def _accept(self, partial: Partial, file: CarriedFile) -> None:
        """Look at the header, as a pull does, then note durably that the file is right."""
        part = next(each for each in self.model.files if MODELS + each.path == file.path)
        try:
            with storage_errors(partial.path):
                header = read_header_fd(partial.fd, file.size)
            if header.is_projection != (part.role == "projection"):
                raise NotAModel(f"it is no {_KIND[part.role]}", "export it again")
            if part.role == "weights" and not fits_name(header, part.path):
                raise NotAModel("it is another shard than it is called", "export it again")
            self._facts[part.path] = Facts.of(header)
        except KawaiError as error:
            partial.discard()
            raise type(error)(f"{quoted(part.path)} in it: {error.message}", error.hint) from error
        partial.sync()
        partial.save([], file.sha256, synced=True)

    def install(self, pull: Pull, teller: Teller) -> bool:
        """Give all files their names; false where another kawai has done so."""
        self.done = True
        pull.pause(0)
        if self._here is not None and self._here.is_whole(self.model, self._found):
            return False
        teller.say(Status.INSTALLING)
        moment = now()
        record = Record(
            id=self._id(),
            files=[self._record(part) for part in self.model.files],
            url=self.model.url,
            commit=self.model.commit,
            sources=self.model.sources,
            installed_at=moment,
            verified_at=moment if self.model.verified else None,
        )
        names = {path.removeprefix(MODELS): each.path.name for path, each in self._received.items()}
        self._store.install(record, names, self._facts.get(record.files[0].path))
        return True

    def _record(self, part: CarriedPart) -> FileRecord:
        """A file as it is noted: its time is that of the file that was just written, or found right."""
        file = self._files[MODELS + part.path]
        known = self._found.get(part.path)
        return FileRecord(
            path=part.path,
            size=file.size,
            role=part.role,
            url=part.url,
            etag=part.etag,
            sha256=file.sha256,
            mtime_ns=known.mtime_ns if known else 0,
        )

    def _id(self) -> str:
        """The id that it has here, else the one that it had there, else a new one."""
        entry, taken = self._store.index.by_path(self.path), self._store.index.keys()
        if entry is not None:
            return entry.record.id
        free = self.model.id.casefold() not in taken
        return self.model.id if free else new_id(*owner_and_stem(self.path), taken)

    def close(self) -> None:
        """Let go; what has arrived stays."""
        self._held.close()


_KIND = {"weights": "model", "projection": "projection"}


def _beginning_of(partial: Partial) -> int:
    """How many bytes from the first on are here; a partial with other gaps starts over."""
    if not partial.resumed:
        return 0
    if not partial.left:
        return partial.file.size
    (start, end), *more = partial.left
    if more or end != partial.file.size:
        partial.restart()
        return 0
    return start


def _wrong(file: CarriedFile) -> DigestMismatch:
    return DigestMismatch(
        f"{quoted(file.path)} in it is not what its manifest says: its SHA-256 differs",
        "copy it again, or export it again",
    )
