"""The catalog as a whole: list, filter, search, find, and what of it is installed."""

import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from kawai_tools.catalog.entries import (
    ABILITIES,
    ENDPOINTS,
    CatalogDetails,
    CatalogRow,
    Entry,
    Problem,
)
from kawai_tools.catalog.lists import SETTLED, Lists, Loaded
from kawai_tools.errors import EntryNotFound, InvalidRequest
from kawai_tools.files import free_space
from kawai_tools.models.naming import nearest
from kawai_tools.models.records import Entry as Installed
from kawai_tools.models.store import Store

CAPABILITIES = tuple(dict.fromkeys((*ENDPOINTS, *ABILITIES)))
_MOST_ANSWERS = 32
_FEW = 500
"""Entries that are encoded in no time."""


class Query(NamedTuple):
    """Which entries are wanted; ``None`` wants any."""

    category: str | None = None
    search: str | None = None
    capability: str | None = None
    downloaded: bool | None = None


class _Answers(NamedTuple):
    """What was answered in one state of lists and index."""

    state: object
    rows: dict[Query, list[CatalogRow]]
    encoded: dict[Query, msgspec.Raw]


class Catalog:
    """What could be installed. Safe to share between threads."""

    def __init__(self, lists: Lists, store: Store) -> None:
        """Nothing is read yet."""
        self._lists = lists
        self._store = store
        self._answers = _Answers(None, {}, {})

    def rows(self, query: Query) -> list[CatalogRow]:
        """The entries that fit, in the catalog's order. Raises ``InvalidRequest``."""
        self._store.recover()
        files = self._lists.files()
        state = (files, self._store.index.revision())
        known = self._answers
        if known.state != state:
            known = self._answers = _Answers(state, {}, {})
        found = known.rows.get(query)
        if found is None:
            if len(known.rows) >= _MOST_ANSWERS:
                known.rows.clear()
                known.encoded.clear()
            found = self._select(self._lists.load(files), query)
            if _is_settled(state[1]):
                known.rows[query] = found
        return found

    def at_hand(self, query: Query) -> msgspec.Raw | None:
        """The same as JSON, where it was answered before and no file has changed since."""
        known = self._answers
        if query not in known.rows or known.state != (self._lists.files(), self._store.index.revision()):
            return None
        encoded, found = known.encoded.get(query), known.rows.get(query)
        if encoded is None and found is not None and len(found) <= _FEW:
            encoded = known.encoded[query] = msgspec.Raw(msgspec.json.encode(found))
        return encoded

    def _select(self, loaded: Loaded, query: Query) -> list[CatalogRow]:
        entries: Sequence[Entry] = loaded.entries
        if query.category is not None:
            entries = _of_category(entries, query.category.casefold())
        if query.capability is not None:
            entries = _able(entries, query.capability.casefold())
        if query.search is not None:
            words = query.search.casefold().split()
            entries = [entry for entry in entries if all(word in _searched(entry.row) for word in words)]
        rows = self._told(entries)
        if query.downloaded is None:
            return rows
        return [row for row in rows if row.downloaded is query.downloaded]

    def _told(self, entries: Sequence[Entry]) -> list[CatalogRow]:
        """The entries as they are shown, with what is installed."""
        found = self._store.index.by_sources([entry.source for entry in entries])
        rows = []
        for entry in entries:
            installed = next((each for each in found.get(entry.source, ()) if _is_all(entry, each)), None)
            rows.append(
                entry.row
                if installed is None
                else msgspec.structs.replace(entry.row, downloaded=True, validated=installed.validated)
            )
        return rows

    def get(self, words: str) -> Entry | None:
        """The entry of this id, in whatever case."""
        folded = words.casefold()
        return next((each for each in self._lists.load().entries if each.row.id.casefold() == folded), None)

    def find(self, words: str) -> Entry:
        """The entry of this id, in whatever case. Raises ``EntryNotFound`` naming the nearest."""
        entry = self.get(words)
        if entry is not None:
            return entry
        near = nearest(words, self.ids(), most=3)
        hint = f"did you mean {' or '.join(near)}" if near else "kawai catalog list shows what there is"
        raise EntryNotFound(f"there is no catalog entry {words[:200]!r}", hint)

    def config_of(self, sources: Iterable[str]) -> dict[str, int | float]:
        """How the entry with one of these sources is best run: only what it says."""
        wanted = set(sources)
        found = next((each for each in self._lists.load().entries if each.source in wanted), None)
        return found.row.config.said if found else {}

    def details(self, entry: Entry, memory: int | None) -> CatalogDetails:
        """An entry, and whether there is room for it; ``memory`` is what the machine has."""
        self._store.recover()
        (row,) = self._told([entry])
        here = self._store.index.by_sources([entry.source]).get(entry.source)
        return CatalogDetails(
            **{name: getattr(row, name) for name in CatalogRow.__struct_fields__},
            needed=0 if row.downloaded else _needed(row, weights_here=bool(here)),
            free=free_space(self._store.layout.store),
            memory=memory,
        )

    def pins(self) -> dict[str, str]:
        """The digests that entries pin, by the addresses of their files."""
        files = (file for entry in self._lists.load().entries for file in entry.row.files.all)
        return {file.url: file.sha256 for file in files if file.sha256}

    def ids(self) -> list[str]:
        """The ids of all entries."""
        return [entry.row.id for entry in self._lists.load().entries]

    def problems(self) -> list[Problem]:
        """What is wrong with the lists."""
        return self._lists.load().problems


def _needed(row: CatalogRow, *, weights_here: bool) -> int | None:
    """Bytes that are still to be fetched, as far as that is known."""
    proj = row.files.proj
    return proj.about if weights_here and proj is not None else row.files.about


def _is_settled(revision: tuple[int, int, int, int] | None) -> bool:
    """Whether a further change of the index would surely be seen: one within the same tick might not be."""
    return revision is None or abs(time.time_ns() - revision[-1]) > SETTLED


def _is_all(entry: Entry, installed: Installed) -> bool:
    """Whether an installed model is all that the entry would install."""
    projection = installed.record.projection
    wanted = entry.proj_source
    return installed.present and (wanted is None or (projection is not None and projection.url == wanted))


def _of_category(entries: Iterable[Entry], wanted: str) -> list[Entry]:
    """Those of the category; where none is called so, those whose category begins so."""
    folded = [(entry.row.category.casefold(), entry) for entry in entries]
    equal = [entry for category, entry in folded if category == wanted]
    return equal or [entry for category, entry in folded if category.startswith(wanted)]


def _able(entries: Iterable[Entry], capability: str) -> list[Entry]:
    if capability not in CAPABILITIES:
        known = ", ".join(CAPABILITIES)
        raise InvalidRequest(f"there is no capability {capability[:40]!r}", f"choose one of {known}")
    return [
        entry
        for entry in entries
        if entry.row.capabilities.endpoint == capability
        or (capability in ABILITIES and getattr(entry.row.capabilities, capability))
    ]


def _searched(row: CatalogRow) -> str:
    return f"{row.id}\n{row.model_family}\n{row.metadata.description}".casefold()
