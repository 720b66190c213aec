"""The installed models: list, look up, show, install, remove, reindex."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator

import msgspec

from kawai_tools.errors import (
    Ambiguous,
    HomeNotWritable,
    IndexUnavailable,
    MalformedGguf,
    ModelNotFound,
    NoSpace,
    StoreMissing,
)
from kawai_tools.files import Lock, make_directory, write_atomically
from kawai_tools.gguf import Header
from kawai_tools.models import installing
from kawai_tools.models.claims import Claim, Finishing, Hold, Renaming, Use, in_use, read_claim
from kawai_tools.models.headers import Headers
from kawai_tools.models.index import IdTaken, Index
from kawai_tools.models.layout import Layout
from kawai_tools.models.model import ModelDetails, ModelFile, ModelRow, Provenance, Setting
from kawai_tools.models.naming import nearest, new_id
from kawai_tools.models.records import Entry, Facts, Record, last_used, moment_of, owner_and_stem
from kawai_tools.models.removing import Objection, remove_model, remove_partial
from kawai_tools.models.scan import by_path, refresh
from kawai_tools.models.traits import capabilities, traits
from kawai_tools.refs import ModelRef

_SCAN_PATIENCE, _TICK = 120.0, 0.02
"""Seconds that another process gets to look at the whole store."""


class Store:
    """The models of one home. Safe to share between threads and with other processes."""

    def __init__(self, layout: Layout) -> None:
        """Nothing is opened yet."""
        self.layout = layout
        self.index = Index(layout.index, self._found)
        self._headers = Headers()
        self._scan_guard, self._scans = threading.RLock(), False

    # looking up

    def rows(self) -> list[ModelRow]:
        """Every model whose files are there, sorted by id."""
        self.recover()
        store, stat, rows = f"{self.layout.store}/", os.stat, []
        for lock, row in self.index.rows():  # thousands in no time
            try:
                used = moment_of(stat(store + lock))
            except OSError:
                used = None
            rows.append(row if used is None else msgspec.structs.replace(row, last_used=used))
        return rows

    def ids(self) -> list[str]:
        """Every id, sorted."""
        return [row.id for _, row in self.index.rows()]

    def find(self, ref: ModelRef, *, gone: bool = False) -> Entry:
        """The model that these words mean; ``gone`` finds one whose files have vanished, too.

        Raises ``ModelNotFound`` naming the nearest, or ``Ambiguous`` with the candidates.
        """
        self.recover()
        words = str(ref)
        exact = self.index.by_id(words)
        if exact is not None and (exact.present or gone):
            return exact
        near = self.index.by_owner_and_stem(words) if ref.owner else self.index.by_stem(words)
        found = [entry for entry in near if entry.present or gone]
        if len(found) > 1:
            names = ", ".join(sorted(entry.record.id for entry in found))
            raise Ambiguous(f"{ref} could be several models: {names}", "give one of these ids")
        if not found:
            raise ModelNotFound(f"there is no model {words!r}", self._suggestion(ref))
        return found[0]

    def _suggestion(self, ref: ModelRef) -> str:
        near = nearest(str(ref), self.ids())
        return f"did you mean {near[0]}" if near else "kawai models list shows what is installed"

    def show(self, ref: ModelRef) -> ModelDetails:
        """All that is known of a model."""
        entry = self.find(ref)
        record = entry.record
        header = self.header(record.id, record.weights[0].path)
        shards = [self.header(record.id, file.path) for file in record.weights[1:]]
        projection = self.header(record.id, record.projection.path) if record.projection else None
        return ModelDetails(
            **msgspec.structs.asdict(entry.row(last_used(self.layout.lock(record.path)))),
            files=[ModelFile(file.path, file.size, file.sha256, file.role) for file in record.files],
            provenance=Provenance(record.url, record.commit, record.verified_at),
            capabilities=capabilities(header, projection),
            parameters=header.parameters + sum(shard.parameters for shard in shards),
            has_projection=projection is not None,
            **traits(header)._asdict(),
            metadata=header.metadata,
            config={"context_length": Setting(header.context_length, "model")},
        )

    def header(self, model_id: str, path: str) -> Header:
        """The header of a file of an installed model. Raises ``ModelNotFound`` or ``MalformedGguf``."""
        try:
            return self._headers.read(self.layout.file(path))
        except (FileNotFoundError, NotADirectoryError):
            self.require_mounted()
            raise ModelNotFound(
                f"{model_id} is listed, but its file {path} is gone",
                f"pull it again, or run: kawai models rm {model_id}",
            ) from None
        except MalformedGguf as error:
            error.hint = f"the file was damaged; kawai models verify {model_id} says more"
            raise

    def check_ready(self) -> None:
        """Raise what keeps the store from being used."""
        if self.index.keys():
            self.require_mounted()

    def require_mounted(self) -> None:
        """Raise ``StoreMissing`` where the store is not the one that was used before."""
        if not self.layout.marker.exists():
            raise StoreMissing(
                f"{self.layout.store} is not the store that the index knows: its marker is missing",
                f"mount the disk that holds it; if it is gone for good, remove {self.layout.index}",
            )

    # changing

    def prepare(self) -> None:
        """Make the store if it is not there. Raises ``HomeNotWritable`` or ``StoreMissing``."""
        if not self.layout.marker.exists():
            if self.index.keys():
                self.require_mounted()
            make_directory(self.layout.store)
            write_atomically(self.layout.marker, b"This directory is a store of kawai.\n")

    def reindex(self) -> None:
        """Rebuild the index from what is on disk: ids are kept, nothing is hashed."""
        if not self.layout.marker.exists():
            if not self.layout.store.is_dir() and not self.index.keys():
                return
            self.prepare()
        installing.finish_all(self.layout, self.index)
        with self._scanning():
            while True:
                changed, gone = refresh(self.layout, by_path(self.index.all()))
                with contextlib.suppress(IdTaken):  # by a pull that ended just now: look again
                    if changed or gone:
                        self.index.put(changed, gone)
                    return

    def _found(self) -> list[Entry] | None:
        """What a new index begins with; nothing can be said of a store that is not mounted."""
        if not self.layout.marker.exists():
            return None
        with self._scanning():
            return refresh(self.layout, {})[0]

    @contextlib.contextmanager
    def _scanning(self) -> Iterator[None]:
        """Look at the store alone: two that give ids at the same time would give different ones."""
        lock = Lock(self.layout.scan_lock)
        with self._scan_guard:
            nested, self._scans = self._scans, True
            try:
                if not nested:
                    _await(lock)
                yield
            finally:
                self._scans = nested
                lock.release()

    def recover(self) -> None:
        """Carry on with installations that were cut off, as far as this user may."""
        with contextlib.suppress(HomeNotWritable, NoSpace):
            installing.finish_all(self.layout, self.index)

    def use_lock(self, path: str) -> Lock:
        """The lock of a model by what names it in the store; made as one of a model never used."""
        return Lock(self.layout.lock(path))

    def renaming(self, record: Record) -> Renaming:
        """What must be held while files of a model get their names."""
        return Renaming(self.layout, installing.touched(self.index, record))

    def carry_on(self, path: str, pause: Callable[[float], None]) -> None:
        """Finish what was cut off at one model, by who holds the lock of its pulls; ``pause`` is waited by.

        Raises ``InUse`` where it was being removed, and somebody uses it.
        """
        claim = read_claim(self.layout.partial(path))
        if claim is None or (claim.installing is None and not claim.removing):
            return
        held: Lock | Renaming = self.use_lock(path)
        if claim.installing is not None:
            held = self.renaming(claim.installing)
        while not held.acquire():
            if claim.installing is None:
                raise in_use(claim.id)
            pause(_TICK)
        try:
            self.finish(path)
        finally:
            held.release()

    def hold(self, claim: Claim) -> Hold | Finishing:
        """What must be held to carry on with what was cut off."""
        return installing.hold(self.layout, self.index, claim)

    def pull_lock(self, path: str) -> Lock:
        """The lock that one pull of a model holds."""
        return Lock(self.layout.pull_lock(path))

    def name(self, path: str) -> str:
        """The id of the model at a path: its own, or a new one."""
        entry = self.index.by_path(path)
        return entry.record.id if entry else new_id(*owner_and_stem(path), self.index.keys())

    def install(self, record: Record, sources: dict[str, str], facts: Facts | None = None) -> Entry:
        """The last step of a pull: verified files get their final names.

        ``sources`` are their names in the partial directory, by their paths in the store; ``facts`` what
        the header of its first shard was found to say, where that was read just now.
        """
        return installing.install(self.layout, self.index, record, sources, facts)

    def finish(self, path: str) -> None:
        """Carry on with the installation of one model, if it was cut off; nobody else may work on it."""
        installing.finish(self.layout, self.index, path)

    def amend(self, path: str, change: Callable[[Record], Record]) -> None:
        """Write a model's provenance, then its index entry, as they are now but for a change.

        Others that amend wait; whoever replaces the model's files must be kept off by its lock.
        Raises ``ModelNotFound`` where it was removed meanwhile.
        """
        with self._scanning():
            entry = self.index.by_path(path)
            if entry is None:
                raise ModelNotFound(f"{path} was removed in the meantime")
            record = change(entry.record)
            if record != entry.record:
                installing.enter(self.layout, self.index, record)

    def protect(self, ref: ModelRef, *, protected: bool) -> None:
        """Keep pruning off a model, or no more. Raises ``InUse`` while its files are being replaced."""
        record = self.find(ref).record
        use = Use(self.layout, record.path, record.id)
        use.acquire()
        try:
            self.amend(record.path, lambda now: msgspec.structs.replace(now, protected=protected))
        finally:
            use.release()

    def remove(self, ref: ModelRef) -> None:
        """Remove a model, or what was fetched of one. Raises ``InUse`` while it is loaded or pulled."""
        try:
            entry = self.find(ref, gone=True)
        except ModelNotFound:
            if not remove_partial(self.layout, ref):
                raise
            return
        self.require_mounted()
        self.remove_unless(entry.record)

    def remove_unless(self, record: Record, objection: Objection | None = None) -> str | None:
        """Remove a model, if nothing is said against it once nobody else can use it; what was said.

        Raises ``InUse`` while it is loaded or pulled.
        """
        with self._scanning():  # what is looked at meanwhile would be found half removed
            return remove_model(self.layout, self.index, record, objection)


def _await(lock: Lock) -> None:
    """Take a lock that others hold for a moment; where it cannot be made, nobody can change anything."""
    until = time.monotonic() + _SCAN_PATIENCE
    with contextlib.suppress(HomeNotWritable):
        while not lock.acquire():
            if time.monotonic() > until:
                raise IndexUnavailable(
                    "another kawai has been looking at the store for minutes", "wait for it, or end it"
                )
            time.sleep(_TICK)
