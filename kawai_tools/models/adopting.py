"""Adoption carried out: files are taken in beside the store, then installed as those of a pull are.

What another tool has is read and linked to, never moved or written. What was taken in of an adoption that
was broken off is removed: it costs nothing to take it again.
"""

import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from kawai_tools.errors import Conflict, DigestMismatch
from kawai_tools.events import ModelPullEvent, Progress, Status
from kawai_tools.models.adoption import Adoption, Piece
from kawai_tools.models.candidates import shown
from kawai_tools.models.claims import Claim, in_use, release_use, write_claim
from kawai_tools.models.gathering import Gatherer
from kawai_tools.models.neighbours import Neighbours, source_word
from kawai_tools.models.records import Entry, FileRecord, Record, now
from kawai_tools.models.store import Store
from kawai_tools.models.taking import Mode, Tell, hash_file, require_shareable, take
from kawai_tools.transfer.pulls import Job, Pull

_RATE_LEAST = 0.3
"""Seconds after which a rate says something."""


class Adopter:
    """Takes in GGUF files that are on this machine already."""

    def __init__(self, store: Store, neighbours: Neighbours) -> None:
        """``neighbours`` know what other tools call their files."""
        self._store = store
        self._gatherer = Gatherer(store, neighbours)

    def jobs(self, paths: Sequence[str], mode: Mode, model_id: str | None) -> list[Job]:
        """The work of adopting what lies at some paths, one job a model; nothing is changed yet.

        Raises what :class:`Gatherer` does, ``HomeNotWritable``, ``StoreMissing``, and ``InvalidRequest``
        where only links are wanted and none can be.
        """
        adoptions = self._gatherer.gather(paths, mode, model_id)
        new = [adoption for adoption in adoptions if adoption.twin is None]
        if new:
            self._store.prepare()
        for piece in (piece for each in new if mode is Mode.LINK for piece in each.pieces):
            require_shareable(piece.file, self._store.layout.store)
        return [self._job(adoption) for adoption in adoptions]

    def _job(self, adoption: Adoption) -> Job:
        carry = _Carry(self._store, adoption)
        return Job(
            kind="model",
            target=carry.id,
            same=tuple(piece.file.version for piece in adoption.pieces),
            lock=None if adoption.twin else self._store.layout.pull_lock(adoption.path),
            work=carry.work,
            render=carry.render,
        )


class _Carry:
    """One adoption being carried out; ``twin`` is the installed model that it turns out to be."""

    def __init__(self, store: Store, adoption: Adoption) -> None:
        self.store, self.adoption, self.twin = store, adoption, adoption.twin
        self.id = self.twin.record.id if self.twin else self._new_id()
        self.digests: dict[str, str] = {}
        self.done, self.began = 0, time.monotonic()

    def _new_id(self) -> str:
        return self.adoption.wanted or self.store.name(self.adoption.path)

    def render(self, progress: Progress, pull: str, seq: int) -> ModelPullEvent:
        """Show where it stands, as the event of a model; of a twin, the twin's files."""
        weights, projection = self.adoption.weights, self.adoption.projection
        if self.twin is not None:
            beside = self.twin.record.projection
            weights = [file.path for file in self.twin.record.weights]
            projection = beside.path if beside else None
        return ModelPullEvent(
            status=progress.status,
            id=self.id,
            file=progress.file,
            completed=progress.completed,
            total=self.adoption.total,
            file_completed=progress.file_completed,
            file_total=progress.file_total,
            rate=progress.rate,
            eta=progress.eta,
            model_files=weights,
            proj_file=projection,
            downloaded=progress.status in {Status.DOWNLOADED, Status.EXISTS},
            error=progress.error,
            pull=pull,
            seq=seq,
        )

    def work(self, pull: Pull) -> Status:
        """Do it; the pull's lock is held. What is here already needs no more: also while it is in use."""
        if self.twin is not None or self._is_here(pull):
            return Status.EXISTS
        lock = self.store.use_lock(self.adoption.path)
        if not lock.acquire():
            raise in_use(self.id)
        try:
            self.store.finish(self.adoption.path)
            return Status.EXISTS if self._is_here(pull) else self._take_in(pull)
        except FileNotFoundError as error:  # only where locks do nothing: somebody cleared what was taken in
            raise Conflict(
                f"{error.filename} was removed in the meantime", "run the same command again"
            ) from error
        finally:
            release_use(self.store.layout, self.adoption.path, lock)

    def _is_here(self, pull: Pull) -> bool:
        """Whether an installed model is just this; hashes only where one is as large.

        Raises ``Conflict`` or ``DifferentVersion`` where another is in the way.
        """
        near = [entry for entry in self.store.index.all() if self.adoption.alike(entry)]
        found = [entry for entry in near if self.adoption.shares_files(self.store.layout, entry)]
        if near and not found:
            self._hash_all(pull)
            found = [entry for entry in near if self.adoption.matches(entry, self.digests)]
        for entry in found:
            self._be(entry)
            return True
        self.adoption.refuse_taken(self.store, self.digests)
        return False

    def _hash_all(self, pull: Pull) -> None:
        if not self.digests:
            found = {}
            for piece in self.adoption.pieces:
                found[piece.path] = hash_file(piece.file, self._teller(pull, piece))
                _check(piece, found[piece.path])
                self.done += piece.size
            self.digests, self.done, self.began = found, 0, time.monotonic()

    def _be(self, twin: Entry) -> None:
        self.twin, self.id = twin, twin.record.id

    def _take_in(self, pull: Pull) -> Status:
        directory = self._prepare()
        names = {piece.path: f"{Path(piece.path).name}.{pull.id}.partial" for piece in self.adoption.pieces}
        try:
            files = [self._take(pull, piece, directory / names[piece.path]) for piece in self.adoption.pieces]
            self._tell(pull, Status.INSTALLING)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        entry = self.store.install(self._record(files), names)
        self.id = entry.record.id
        return Status.DOWNLOADED

    def _prepare(self) -> Path:
        """The directory that files are taken into, without what one that was killed has left there."""
        shutil.rmtree(self.store.layout.partial(self.adoption.path), ignore_errors=True)
        return write_claim(self.store.layout, Claim(self.id, self.adoption.path))

    def _take(self, pull: Pull, piece: Piece, target: Path) -> FileRecord:
        digest = take(
            piece.file,
            target,
            self.adoption.mode,
            known=self.digests.get(piece.path),
            needed=self.adoption.total - self.done,
            tell=self._teller(pull, piece),
        )
        _check(piece, digest)
        self.done += piece.size
        mtime = target.stat().st_mtime_ns
        return FileRecord(path=piece.path, size=piece.size, role=piece.role, sha256=digest, mtime_ns=mtime)

    def _record(self, files: list[FileRecord]) -> Record:
        words = [source_word(piece.file.real) for piece in self.adoption.pieces]
        return Record(id=self._new_id(), files=files, sources=words, installed_at=now(), verified_at=now())

    def _teller(self, pull: Pull, piece: Piece) -> Tell:
        tell = partial(self._tell, pull, Status.VERIFYING, piece)
        tell(0)
        return tell

    def _tell(self, pull: Pull, status: Status, piece: Piece | None = None, done: int = 0) -> None:
        """Publish where it stands. Raises ``Cancelled``."""
        pull.pause(0)
        completed, seconds = self.done + done, time.monotonic() - self.began
        rate = int(completed / seconds) if piece and seconds >= _RATE_LEAST else 0
        pull.tell(
            Progress(
                status=status,
                file=piece.path if piece else None,
                completed=completed,
                total=self.adoption.total,
                file_completed=done if piece else None,
                file_total=piece.size if piece else None,
                rate=rate or None,
                eta=(self.adoption.total - completed) // rate if rate else None,
            )
        )


def _check(piece: Piece, digest: str) -> None:
    promised = piece.file.digest
    if promised not in {None, digest}:
        raise DigestMismatch(
            f"{shown(piece.file.path)} is not what its tool fetched: its SHA-256 is {digest}, not {promised}",
            "have that tool fetch it again; nothing was adopted",
        )
