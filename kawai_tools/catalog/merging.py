"""Reads every list and puts them together; a broken one is left out, and the others stand."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kawai_tools.catalog.entries import Entry, Problem
from kawai_tools.catalog.lists import OWN, Loaded, read_file
from kawai_tools.catalog.reading import MOST_BYTES, Malformed
from kawai_tools.catalog.schema import Terms, read_catalog
from kawai_tools.transfer.egress import origin_of

if TYPE_CHECKING:
    from kawai_tools.catalog.lists import Lists

MOST_WARNINGS = 10
"""How many of one list are told; the rest is counted."""


def terms_of(lists: "Lists", url: str) -> Terms:
    """The terms of a subscribed catalog: its own host may be on a private network, as it is itself."""
    return Terms(url.partition("?")[0], url, lists.endpoint, _near(lists) | {origin_of(url).host})


def _near(lists: "Lists") -> frozenset[str]:
    """The hosts that may be private ones."""
    return lists.hosts | {origin_of(lists.endpoint).host}


def read_all(lists: "Lists", paths: list[Path]) -> Loaded:
    """The entries of all lists. ``paths`` are kawai's own, the user's, and those of kept copies."""
    entries: dict[str, Entry] = {}
    problems: list[Problem] = []
    own, *others = paths
    users = others[: len(others) - len(lists.subscriptions)]
    all_terms = [Terms(OWN, "kawai's own catalog", lists.endpoint, _near(lists), strict=True)]
    all_terms += [Terms(_shown(path.name), _shown(path), lists.endpoint, _near(lists)) for path in users]
    problems += _unreadable(lists.folder)
    for terms, path in zip(all_terms, [own, *users], strict=True):
        _add(terms, _from_disk(path, terms, problems), entries, problems)
    for url in lists.subscriptions:
        kept = lists.keeper.read(url)
        if kept is None:
            problems.append(
                Problem(
                    url,
                    None,
                    "not fetched yet; kawai catalog update does that",
                    refused=False,
                    fix="kawai catalog update",
                )
            )
        _add(terms_of(lists, url), kept.text.encode() if kept else None, entries, problems)
    return Loaded(list(entries.values()), problems)


def _shown(path: Path | str) -> str:
    """A path as text, whatever its bytes are."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _unreadable(folder: Path) -> list[Problem]:
    """What keeps the user's folder from being looked into; one that is not there is none."""
    try:
        os.listdir(folder)  # noqa: PTH208 - it is only tried
    except FileNotFoundError:
        return []
    except OSError as error:
        return [Problem(_shown(folder), None, f"it cannot be read: {error.strerror}", refused=True)]
    return []


def _from_disk(path: Path, terms: Terms, problems: list[Problem]) -> bytes | None:
    try:
        return read_file(path, MOST_BYTES)
    except OSError as error:
        problems.append(Problem(terms.where, None, f"it cannot be read: {error.strerror}", refused=True))
        return None


def _add(terms: Terms, data: bytes | None, entries: dict[str, Entry], problems: list[Problem]) -> None:
    """Add what a list has under ids that are free."""
    if data is None:
        return
    try:
        found, warnings = read_catalog(data, terms)
    except Malformed as error:
        problems.append(Problem(terms.where, error.line, error.words, refused=True))
        return
    for entry in found:
        taken = entries.setdefault(entry.row.id.casefold(), entry)
        if taken is not entry:
            words = f"{entry.row.id} is left out: {taken.row.catalog} has that id already"
            warnings.append(Problem(terms.where, None, words, refused=False))
    problems.extend(_few(terms, warnings))


def _few(terms: Terms, warnings: list[Problem]) -> Iterator[Problem]:
    yield from warnings[:MOST_WARNINGS]
    if len(warnings) > MOST_WARNINGS:
        words = f"and {len(warnings) - MOST_WARNINGS} more of such"
        yield Problem(terms.where, None, words, refused=False)
