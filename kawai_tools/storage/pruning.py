"""Gives disk space back: what was begun or superseded, builds that nobody uses, models by last use.

First it is said what would go; what goes is looked at once more, with its locks held. What is used by then
is left alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from kawai_tools.catalog.lists import Lists
from kawai_tools.errors import HomeNotWritable, InUse, KawaiError
from kawai_tools.files import free_space, storage_errors
from kawai_tools.libs.bundle import BundleRecord, Pointer
from kawai_tools.libs.bundles import Bundles
from kawai_tools.models.records import last_used
from kawai_tools.models.removing import GONE
from kawai_tools.models.store import Store
from kawai_tools.storage.finding import IN_USE, MEANWHILE, Find, Pruned
from kawai_tools.storage.measuring import Freed, files_below
from kawai_tools.storage.partials import partials
from kawai_tools.storage.superseded import superseded
from kawai_tools.storage.unused import Models

ENOUGH = "no more room is wanted"


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What may go; without any of it partials and builds. ``keep_space`` are bytes that are to be free."""

    partials: bool = False
    builds: bool = False
    unused_for: timedelta | None = None
    keep_space: int | None = None

    @property
    def whole(self) -> "Wish":
        """The wish with what it means where it names nothing."""
        return Wish(partials=True, builds=True) if self == Wish() else self


def _now() -> datetime:
    return datetime.now(UTC)


class Pruner:
    """Finds what may go, and removes it."""

    def __init__(
        self, store: Store, bundles: Bundles, lists: Lists, clock: Callable[[], datetime] = _now
    ) -> None:
        """``bundles`` and ``lists`` are ones that looking does not change."""
        self._store, self._bundles, self._lists, self._clock = store, bundles, lists, clock

    def find(self, wish: Wish) -> list[Find]:
        """What would go, in that order, and what would but for a reason; nothing is changed.

        Raises ``StoreMissing``, or ``BrokenState`` where it cannot be told which build is used.
        """
        self._store.check_ready()
        wish, freed = wish.whole, Freed()
        found: list[Find] = []
        if wish.partials:
            found += partials(self._store, self._bundles, freed)
            found += superseded(self._store, self._bundles, self._lists, freed)
        if wish.builds:
            found += self._builds(freed)
        if wish.unused_for is not None or wish.keep_space is not None:
            models = Models(self._store, freed, self._clock())
            found += models.unused(wish.unused_for) if wish.unused_for is not None else []
            if wish.keep_space is not None:
                coming = sum(map(self._coming, found))
                found += models.for_space(wish.keep_space, coming)
        return found

    def _coming(self, find: Find) -> int:
        """Bytes that come back on the disk that holds the store."""
        try:
            same = find.path.lstat().st_dev == self._store.layout.store.stat().st_dev
        except OSError:
            return 0
        return find.size if same and not find.kept else 0

    def _builds(self, freed: Freed) -> Iterator[Find]:
        active = self._bundles.active()
        for record in self._bundles.all():
            if Pointer(record.platform, record.version) not in {active.current, active.previous}:
                yield self._build(record, freed)

    def _build(self, record: BundleRecord, freed: Freed) -> Find:
        path = self._bundles.layout.bundle(record.platform, record.version)
        kept = self._bundles.is_in_use(record)
        files = list(files_below(path))

        def remove() -> None:
            self._bundles.remove(record, spare_previous=True)

        return Find(
            kind="build",
            path=path,
            id=record.version,
            size=freed.of(files) if kept else freed.take(files),
            reason=IN_USE if kept else "neither active nor the one before",
            kept=kept,
            remove=remove,
        )

    def prune(self, wish: Wish, shown: Sequence[Pruned] | None = None) -> list[Pruned]:
        """Remove what may go: of what was ``shown`` if anything was, and as it was then.

        What becomes of each; one that fails does not keep the others. Raises as :meth:`find`.
        """
        found = self.find(wish)
        if shown is None:
            return [self._carry_out(find, wish) for find in found]
        rows = {row.place: row for row in shown}
        known = {find.row.place: find for find in found}
        return [self._as_shown(row, known.get(place), wish) for place, row in rows.items()]

    def _as_shown(self, row: Pruned, find: Find | None, wish: Wish) -> Pruned:
        if row.kept:
            return row
        if find is not None and (find.kept or find.last_used == row.last_used):
            return self._carry_out(find, wish)
        return msgspec.structs.replace(row, kept=True, reason=self._what_became(row))

    def _what_became(self, row: Pruned) -> str:
        """Why what was to go is to go no more."""
        path = Path(row.path)
        if not path.exists() and not path.is_symlink():
            return GONE
        entry = self._store.index.by_id(row.id) if row.kind == "model" and row.id else None
        if entry is not None and last_used(self._store.layout.lock(entry.record.path)) == row.last_used:
            return ENOUGH
        return MEANWHILE

    def _carry_out(self, find: Find, wish: Wish) -> Pruned:
        row = find.row
        if find.kept:
            return row
        if find.for_space and free_space(self._store.layout.store) >= (wish.keep_space or 0):
            return msgspec.structs.replace(row, kept=True, reason=ENOUGH)
        try:
            against = _removed(find)
        except InUse:
            against = IN_USE
        except KawaiError as error:
            return msgspec.structs.replace(row, error=error.info)
        if against is not None:
            return msgspec.structs.replace(row, kept=True, reason=against)
        return msgspec.structs.replace(row, removed=True)


def _removed(find: Find) -> str | None:
    """Remove it, or say why not. Raises ``InUse``, ``HomeNotWritable`` or ``NoSpace``."""
    try:
        with storage_errors(find.path):
            return find.remove()
    except FileNotFoundError:
        return GONE
    except OSError as error:
        raise HomeNotWritable(f"cannot remove {find.path}: {error.strerror}") from error
