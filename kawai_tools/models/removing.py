"""Removal: of a model, also one whose files are already gone, and of what was fetched of one."""

import shutil

from kawai_tools.errors import Ambiguous
from kawai_tools.files import storage_errors
from kawai_tools.models.claims import Claim, Hold, claims, in_use
from kawai_tools.models.index import Index
from kawai_tools.models.installing import unlink_unless_shared
from kawai_tools.models.layout import Layout
from kawai_tools.models.records import Record, owner_and_stem
from kawai_tools.refs import ModelRef


def remove_model(layout: Layout, index: Index, record: Record) -> None:
    """Remove a model and what was fetched of it. Raises ``InUse`` while it is loaded or pulled.

    The index forgets it last, so that a removal that was cut off can be repeated.
    """
    hold = Hold(layout, record.path)
    if not hold.acquire():
        raise in_use(record.id)
    try:
        with storage_errors(layout.store):
            unlink_unless_shared(layout, index, record, [file.path for file in record.files])
            layout.provenance(record.path).unlink(missing_ok=True)
            shutil.rmtree(layout.partial(record.path), ignore_errors=True)
        index.put([], gone=[record.path])
    finally:
        hold.release()


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
