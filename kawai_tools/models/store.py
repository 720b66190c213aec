"""The installed models: list, look up, show, install, remove, reindex."""

import os
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from kawai_tools.errors import Ambiguous, Integrity, InUse, MalformedGguf, ModelNotFound, StoreMissing
from kawai_tools.files import Lock, make_directory, move_into_place, read_if_there, write_atomically
from kawai_tools.gguf import Header, read_header
from kawai_tools.models.index import Index
from kawai_tools.models.layout import Layout
from kawai_tools.models.model import ModelDetails, ModelFile, ModelRow, Provenance, Setting
from kawai_tools.models.naming import new_id
from kawai_tools.models.records import Entry, Record, entry_of, stamps_of
from kawai_tools.models.scan import by_path, refresh, write_record
from kawai_tools.models.traits import capabilities, traits
from kawai_tools.refs import ModelRef


class Claim(msgspec.Struct, frozen=True):
    """What a directory of partial downloads belongs to; ``installing`` once all of it is verified."""

    id: str
    path: str
    installing: Record | None = None


class Store:
    """The models of one home. Safe to share between threads and with other processes."""

    def __init__(self, layout: Layout) -> None:
        """Nothing is opened yet."""
        self.layout = layout
        self.index = Index(layout.index, self._fill)

    # looking up

    def rows(self) -> list[ModelRow]:
        """Every model whose files are there, sorted by id."""
        return [entry.row(self.last_used(entry)) for entry in self.index.all() if entry.present]

    def ids(self) -> list[str]:
        """Every id, sorted."""
        return [entry.record.id for entry in self.index.all() if entry.present]

    def find(self, ref: ModelRef, *, gone: bool = False) -> Entry:
        """The model that these words mean; ``gone`` finds one whose files have vanished, too.

        Raises ``ModelNotFound`` naming the nearest, or ``Ambiguous`` with the candidates.
        """
        exact = self.index.by_id(str(ref))
        found = [exact] if exact else []
        found = [entry for entry in found if entry.present or gone] or [
            entry
            for entry in (
                self.index.by_owner_and_stem(str(ref)) if ref.owner else self.index.by_stem(ref.name)
            )
            if entry.present or gone
        ]
        if len(found) > 1:
            names = ", ".join(sorted(entry.record.id for entry in found))
            raise Ambiguous(f"{ref} could be several models: {names}", "give one of these ids")
        if not found:
            raise ModelNotFound(f"there is no model {str(ref)!r}", self._suggestion(ref))
        return found[0]

    def _suggestion(self, ref: ModelRef) -> str:
        from difflib import get_close_matches  # noqa: PLC0415 - only where something was mistyped

        ids = {name.casefold(): name for name in self.ids()}
        near = get_close_matches(str(ref).casefold(), ids, n=1, cutoff=0.5)
        if not near and ref.name:
            near = [each for each in ids if ref.name.casefold() in each][:1]
        return f"did you mean {ids[near[0]]}" if near else "kawai models list shows what is installed"

    def last_used(self, entry: Entry) -> datetime | None:
        """When the model was last used; ``None`` for never."""
        try:
            seconds = os.stat(self.layout.lock(entry.record.path)).st_mtime_ns // 10**9  # noqa: PTH116 - a hot path
        except OSError:
            return None
        return datetime.fromtimestamp(seconds, UTC) if seconds else None

    def show(self, ref: ModelRef) -> ModelDetails:
        """All that is known of a model."""
        entry = self.find(ref)
        record = entry.record
        header = self._header(entry, record.weights[0].path)
        shards = [self._header(entry, file.path) for file in record.weights[1:]]
        projection = self._header(entry, record.projection.path) if record.projection else None
        return ModelDetails(
            **msgspec.structs.asdict(entry.row(self.last_used(entry))),
            files=[ModelFile(file.path, file.size, file.sha256, file.role) for file in record.files],
            provenance=Provenance(record.url, record.commit, record.verified_at),
            capabilities=capabilities(header, projection),
            parameters=header.parameters + sum(shard.parameters for shard in shards),
            has_projection=projection is not None,
            **traits(header)._asdict(),
            metadata=header.metadata,
            config={"context_length": Setting(header.context_length, "model")},
        )

    def _header(self, entry: Entry, path: str) -> Header:
        try:
            return read_header(self.layout.file(path))
        except FileNotFoundError:
            raise ModelNotFound(
                f"{entry.record.id} is listed, but its file {path} is gone",
                f"pull it again, or run: kawai models rm {entry.record.id}",
            ) from None
        except MalformedGguf as error:
            error.hint = f"the file was damaged; kawai models verify {entry.record.id} says more"
            raise

    def check_ready(self) -> None:
        """Raise what keeps the store from being used."""
        self.index.ids()
        if self.index.path.exists() and self.layout.data.is_dir() and self.index.ids():
            self._require_mounted()

    # changing

    def prepare(self) -> None:
        """Make the store if it is not there. Raises ``HomeNotWritable`` or ``StoreMissing``."""
        if not self.layout.marker.exists():
            if self.index.all():
                self._require_mounted()
            make_directory(self.layout.store)
            write_atomically(self.layout.marker, b"This directory is a store of kawai.\n")

    def _require_mounted(self) -> None:
        if not self.layout.marker.exists():
            raise StoreMissing(
                f"{self.layout.store} is not the store that the index knows: its marker is missing",
                f"mount the disk that holds it; if it is gone for good, remove {self.layout.index}",
            )

    def reindex(self) -> None:
        """Rebuild the index from what is on disk: ids are kept, nothing is hashed."""
        known = by_path(self.index.all())
        if not self.layout.marker.exists():
            if known:
                self._require_mounted()
            if not self.layout.store.is_dir():
                return
            self.prepare()
        self._finish_interrupted()
        changed, gone = refresh(self.layout, known)
        if changed or gone:
            self.index.put(changed, gone)

    def _fill(self, index: Index) -> None:
        if self.layout.store.is_dir():
            changed, _ = refresh(self.layout, {})
            index.put(changed)

    def use_lock(self, path: str) -> Lock:
        """The lock of a model by what names it in the store; made as one of a model never used."""
        where = self.layout.lock(path)
        make_directory(where.parent)
        if not where.exists():
            where.touch()
            os.utime(where, (0, 0))
        return Lock(where)

    def name(self, owner: str, stem: str, path: str) -> str:
        """The id of the model at a path: its own, or a new one."""
        entry = self.index.by_path(path)
        return entry.record.id if entry else new_id(owner, stem, set(self.index.ids()))

    def install(self, record: Record) -> Entry:
        """The last step of a pull: verified files from the partial directory get their final names.

        What was decided is noted first, so that an interrupted step is finished later, not undone.
        """
        partial = self.layout.partial(record.path)
        claim = Claim(record.id, record.path, record)
        write_atomically(partial / "claim.json", msgspec.json.encode(claim))
        return self._carry_out(record, partial)

    def _carry_out(self, record: Record, partial: Path) -> Entry:
        for file in record.files:
            source = partial / f"{Path(file.path).name}.partial"
            if source.exists():
                move_into_place(source, self.layout.file(file.path))
        files = [
            msgspec.structs.replace(file, mtime_ns=self.layout.file(file.path).stat().st_mtime_ns)
            for file in record.files
        ]
        return self.record(msgspec.structs.replace(record, files=files), done=partial)

    def record(self, record: Record, *, done: Path | None = None) -> Entry:
        """Write a model's provenance, then its index entry, then drop the partial directory ``done``."""
        write_record(self.layout, record)
        before = self.index.by_path(record.path)
        try:
            entry = entry_of(self.layout, record)
        except Integrity:
            if before is None:
                raise
            stamps = stamps_of(self.layout, record)  # a header that was damaged since: what it said stands
            entry = msgspec.structs.replace(before, record=record, stamps=stamps)
        self.index.put([entry])
        if done is not None:
            shutil.rmtree(done, ignore_errors=True)
        return entry

    def _finish_interrupted(self) -> None:
        """Carry on with installations that were cut off in their last step."""
        for partial in self._partials():
            claim = read_claim(partial)
            if claim is None or claim.installing is None:
                continue
            lock = Lock(partial.with_suffix(".lock"))
            if lock.acquire():
                try:
                    if all(self._is_there(partial, file.path) for file in claim.installing.files):
                        self._carry_out(claim.installing, partial)
                finally:
                    lock.remove()

    def _is_there(self, partial: Path, path: str) -> bool:
        return (partial / f"{Path(path).name}.partial").exists() or self.layout.file(path).exists()

    def _partials(self) -> Iterable[Path]:
        root = self.layout.store / ".partial"
        return [each for each in sorted(root.iterdir()) if each.is_dir()] if root.is_dir() else []

    # removing

    def remove(self, ref: ModelRef) -> None:
        """Remove a model, or what was fetched of one. Raises ``InUse`` while it is loaded or pulled."""
        try:
            entry = self.find(ref, gone=True)
        except ModelNotFound:
            if not self._remove_partial(ref):
                raise
            return
        record = entry.record
        lock, pulling = (
            self.use_lock(record.path),
            Lock(self.layout.partial(record.path).with_suffix(".lock")),
        )
        try:
            if not pulling.acquire() or not lock.acquire():
                raise in_use(record.id)
            self._delete(record)
        finally:
            lock.release()
            pulling.remove()
        self._remove_empty(record.path)

    def _delete(self, record: Record) -> None:
        self.index.put([], gone=[record.path])
        shared = {
            file.path
            for other in self.index.by_repository(record.owner, record.family)
            for file in other.record.files
        }
        for file in record.files:
            if file.path not in shared:
                self.layout.file(file.path).unlink(missing_ok=True)
        self.layout.provenance(record.path).unlink(missing_ok=True)
        self.layout.lock(record.path).unlink(missing_ok=True)
        shutil.rmtree(self.layout.partial(record.path), ignore_errors=True)

    def _remove_partial(self, ref: ModelRef) -> bool:
        for partial in self._partials():
            claim = read_claim(partial)
            if claim is None or not _means(ref, claim):
                continue
            lock = Lock(partial.with_suffix(".lock"))
            if not lock.acquire():
                raise in_use(claim.id)
            shutil.rmtree(partial, ignore_errors=True)
            self.layout.lock(claim.path).unlink(missing_ok=True)
            lock.remove()
            self._remove_empty(claim.path)
            return True
        return False

    def _remove_empty(self, path: str) -> None:
        """Remove the folders of a model, as far up as they are empty."""
        directory = self.layout.file(path).parent
        for each in (directory / ".kawai", directory, *directory.parents):
            if each == self.layout.store or self.layout.store not in each.parents:
                return
            try:
                each.rmdir()
            except OSError:
                return


def in_use(model_id: str) -> InUse:
    """What to say of a model whose lock somebody holds."""
    return InUse(
        f"{model_id} is loaded, being pulled or being verified",
        "wait until that is done (kawai models ps, kawai pulls list)",
    )


def read_claim(partial: Path) -> Claim | None:
    """What a partial directory belongs to, if it says."""
    try:
        return msgspec.json.decode(read_if_there(partial / "claim.json") or b"", type=Claim)
    except msgspec.DecodeError:
        return None


def _means(ref: ModelRef, claim: Claim) -> bool:
    owner, _, rest = claim.path.partition("/")
    stem = (rest or owner).rpartition("/")[2].casefold()
    words = str(ref).casefold()
    return words in {claim.id.casefold(), stem, f"{owner.casefold()}/{stem}"}
