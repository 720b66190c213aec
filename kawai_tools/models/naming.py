"""Ids: given once, when a model is installed, and kept in its provenance file."""

import itertools
import re
from collections.abc import Iterable

from kawai_tools.refs import RESERVED

MAX_OWNER, MAX_STEM = 70, 120
"""Characters; both together, with a number behind them, are fewer than an id may have."""


def new_id(owner: str, stem: str, taken: set[str]) -> str:
    """The id of a new model: its stem, else ``owner/stem``, else ``owner/stem-2`` and so on.

    ``taken`` are the ids in use, case folded. Characters that no id may have become ``-``.
    """
    stem = _fit(stem)[:MAX_STEM]
    owner = "local" if owner.casefold() in RESERVED else _fit(owner)[:MAX_OWNER]
    numbered = (f"{owner}/{stem}-{number}" for number in itertools.count(2))
    for candidate in itertools.chain([stem, f"{owner}/{stem}"], numbered):
        folded = candidate.casefold()
        if folded not in taken and folded not in RESERVED:
            return candidate
    raise AssertionError  # the numbers do not end


def nearest(words: str, ids: Iterable[str], most: int = 1) -> list[str]:
    """The ids that come nearest to a mistyped one: as a whole, by a part of it, or by their beginning."""
    from difflib import get_close_matches  # noqa: PLC0415 - only where something was mistyped

    folded = {each.casefold(): each for each in ids}
    typed = words.casefold()
    name = typed.rpartition("/")[2]
    beginnings = {each.rpartition("/")[2][: len(name)]: each for each in folded}
    near = get_close_matches(typed, folded, n=most, cutoff=0.6)
    near = near or [each for each in folded if name in each][:most]
    near = near or [beginnings[each] for each in get_close_matches(name, beginnings, n=most, cutoff=0.6)]
    return [folded[each] for each in near]


def _fit(part: str) -> str:
    clean = re.sub(r"[\x00-\x1f\x7f-\x9f\\%/\ud800-\udfff]", "-", part).lstrip("-.")
    return clean or "model"
