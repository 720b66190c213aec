"""Models that may go: those not used for a time, and as many more as room is wanted for."""

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from os.path import realpath
from pathlib import Path

from kawai_tools.files import free_space
from kawai_tools.models.claims import claims
from kawai_tools.models.records import Entry, last_used
from kawai_tools.models.store import Store
from kawai_tools.storage.finding import IN_USE, MEANWHILE, Find
from kawai_tools.storage.measuring import Freed

PROTECTED = "protected"
NOT_OURS = "not ours: its files are links to elsewhere"
_UNITS = ((60 * 24, "day"), (60, "hour"), (1, "minute"))
NOTHING = "its bytes are another's, too: no room would come back"


class Models:
    """The installed models, by last use, oldest first; each is chosen once."""

    def __init__(self, store: Store, freed: Freed, now: datetime) -> None:
        """``freed`` counts what goes; ages are those at ``now``."""
        self._store, self._freed, self._now = store, freed, now
        going = {claim.path for claim in claims(store.layout) if claim.removing}
        entries = [each for each in store.index.all() if each.present and each.record.path not in going]
        self._owners = Counter(file.path for each in entries for file in each.record.files)
        self._used = {each.record.path: last_used(store.layout.lock(each.record.path)) for each in entries}
        self._left = sorted(entries, key=lambda each: (self._since(each), each.record.id))

    def unused(self, time: timedelta) -> list[Find]:
        """Those that were last used, or installed where they never were, longer ago than that."""
        found = [each for each in self._left if self._now - self._since(each) > time]
        self._left = self._left[len(found) :]
        return [self._find(each) for each in found]

    def for_space(self, wanted: int, coming: int) -> Iterator[Find]:
        """As many as it takes until so many bytes are free; ``coming`` will be by what goes before."""
        free = free_space(self._store.layout.store) + coming
        while self._left and free < wanted:
            find = self._find(self._left.pop(0), for_space=True)
            free += 0 if find.kept else find.size
            yield find

    def _since(self, entry: Entry) -> datetime:
        return self._used[entry.record.path] or entry.record.installed_at

    def _find(self, entry: Entry, *, for_space: bool = False) -> Find:
        record, used = entry.record, self._used[entry.record.path]
        paths = [self._file(file.path) for file in record.files if self._owners[file.path] == 1]
        size = self._freed.of(paths)
        against = self._against(entry)
        if against is None and for_space and not size:
            against = NOTHING
        if against is None:
            self._freed.take(paths)
            self._owners.subtract(file.path for file in record.files)
        return Find(
            kind="model",
            path=self._file(record.weights[0].path),
            id=record.id,
            size=size,
            reason=against or self._why(entry),
            kept=against is not None,
            last_used=used,
            remove=lambda: self._remove(entry, used),
            for_space=for_space,
        )

    def _file(self, path: str) -> Path:
        return self._store.layout.file(path)

    def _against(self, entry: Entry) -> str | None:
        """Why a model is left alone."""
        record, layout = entry.record, self._store.layout
        if record.protected:
            return PROTECTED
        if any(_is_elsewhere(layout.store, self._file(file.path)) for file in record.files):
            return NOT_OURS
        free = self._store.use_lock(record.path).is_free() and self._store.pull_lock(record.path).is_free()
        return None if free else IN_USE

    def _why(self, entry: Entry) -> str:
        age = age_of(self._now - self._since(entry))
        used = self._used[entry.record.path] is not None
        words = f"unused for {age}" if used else f"never used in {age}"
        record = entry.record
        return words if record.url or record.sources else f"{words}, no source"

    def _remove(self, entry: Entry, used: datetime | None) -> str | None:
        def objection(known: Entry, used_now: datetime | None) -> str | None:
            if known.record.protected:
                return PROTECTED
            same = used_now == used and known.record.installed_at == entry.record.installed_at
            return None if same else MEANWHILE

        return self._store.remove_unless(entry.record, objection)


def _is_elsewhere(store: Path, file: Path) -> bool:
    """Whether a file is a link, or lies behind one: what is there is somebody else's."""
    inside = Path(realpath(store), file.relative_to(store))
    return file.is_symlink() or Path(realpath(file.parent)) != inside.parent


def age_of(time: timedelta) -> str:
    """A time in words: whole days, hours or minutes."""
    minutes = max(0, int(time.total_seconds())) // 60
    count, name = next(((minutes // each, name) for each, name in _UNITS if minutes >= each), (0, "minute"))
    return f"{count} {name}{'' if count == 1 else 's'}"
