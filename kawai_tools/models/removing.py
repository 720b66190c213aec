"""Removal: of a model, also one whose files are already gone, and of what was fetched of one."""

import shutil
from collections.abc import Callable
from datetime import datetime

from kawai_tools.errors import Ambiguous
from kawai_tools.models.claims import Claim, Hold, claims, in_use
from kawai_tools.models.erasing import erase
from kawai_tools.models.index import Index
from kawai_tools.models.layout import Layout
from kawai_tools.models.records import Entry, Record, last_used, owner_and_stem
from kawai_tools.refs import ModelRef

Objection = Callable[[Entry, datetime | None], str | None]
"""What is said against removing a model, as it is and was last used now that nobody else can use it."""


def remove_model(
    layout: Layout, index: Index, record: Record, objection: Objection | None = None
) -> str | None:
    """Remove a model and what was fetched of it, or say why not. Raises ``InUse`` while others have it."""
    hold = Hold(layout, record.path)
    if not hold.acquire():
        raise in_use(record.id)
    try:
        if objection is not None:
            entry = index.by_path(record.path)
            said = objection(entry, last_used(layout.lock(record.path))) if entry else GONE
            if said is not None:
                return said
        erase(layout, index, record)
    finally:
        hold.release()
    return None


GONE = "somebody else has removed it"


def remove_partial(layout: Layout, ref: ModelRef) -> bool:
    """Remove what was fetched of a model that is not installed, if that is what the words mean."""
    found = _meant(layout, ref)
    if len(found) > 1:
        names = ", ".join(sorted(claim.path for claim in found))
        raise Ambiguous(
            f"{ref} could be several pulls that were begun: {names}", "pull one of them to its end"
        )
    for claim in found:
        hold = Hold(layout, claim.path)
        if not hold.acquire():
            raise in_use(claim.id)
        shutil.rmtree(layout.partial(claim.path), ignore_errors=True)
        hold.release()
    return bool(found)


def _meant(layout: Layout, ref: ModelRef) -> list[Claim]:
    words = str(ref).casefold()
    begun = list(claims(layout))
    for name in (lambda claim: claim.id, lambda claim: "/".join(owner_and_stem(claim.path)), _stem):
        found = [claim for claim in begun if name(claim).casefold() == words]
        if found:
            return found
    return []


def _stem(claim: Claim) -> str:
    return owner_and_stem(claim.path)[1]
