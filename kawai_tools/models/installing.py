"""The last step of a pull: verified files get their final names, then provenance, then the index.

What was decided is noted first, so that a step that was cut off is finished later, not undone: whoever looks
into the store next does so.
"""

import contextlib
import shutil
from pathlib import Path

import msgspec

from kawai_tools.errors import IncompleteModel, Integrity
from kawai_tools.files import move_into_place
from kawai_tools.models import erasing
from kawai_tools.models.claims import Claim, Finishing, Hold, claims, read_claim, write_claim
from kawai_tools.models.index import IdTaken, Index
from kawai_tools.models.layout import Layout
from kawai_tools.models.naming import new_id
from kawai_tools.models.records import Entry, Facts, Record, entry_of, owner_and_stem, stamps_of, write_record
from kawai_tools.refs import safe_path


def install(
    layout: Layout, index: Index, record: Record, sources: dict[str, str], facts: Facts | None = None
) -> Entry:
    """Install what a pull has fetched into the partial directory of ``record``; both locks are held.

    ``sources`` are the names that what was fetched has there, by the paths it gets in the store; ``facts``
    what its header was found to say (``None``: it is read).
    """
    before = index.by_path(record.path)
    if before is not None:
        record = msgspec.structs.replace(record, protected=before.record.protected)
    stays = {file.path for file in record.files}
    dropping = [file.path for file in before.record.files if file.path not in stays] if before else []
    claim = Claim(record.id, record.path, record, sources, dropping)
    write_claim(layout, claim)
    return _carry_out(layout, index, claim, record, facts)


def finish(layout: Layout, index: Index, path: str) -> None:
    """Carry on with an installation or removal that was cut off; see :func:`hold` for who may."""
    claim = read_claim(layout.partial(path))
    if claim is None:
        return
    if claim.removing:
        erasing.carry_on(layout, index, path)
    elif claim.installing is not None and can_finish(layout, claim):
        try:
            _carry_out(layout, index, claim, claim.installing)
        except Integrity:  # damaged since it was verified: it will be fetched again
            write_claim(layout, Claim(claim.id, claim.path))


def can_finish(layout: Layout, claim: Claim) -> bool:
    """Whether what is noted was cut off, and can be carried on with."""
    record = claim.installing
    if record is None:
        return claim.removing
    return all(_is_there(layout, claim, file.path) for file in record.files)


def finish_all(layout: Layout, index: Index) -> None:
    """Carry on with all that was cut off; what somebody works on is left to them."""
    for claim in claims(layout):
        if claim.installing is None and not claim.removing:
            continue
        held = hold(layout, index, claim)
        if held.acquire():
            try:
                finish(layout, index, claim.path)
            finally:
                held.release()


def hold(layout: Layout, index: Index, claim: Claim) -> Hold | Finishing:
    """What must be held to carry on: a removal needs the model for itself, an installation only its names."""
    if claim.installing is None:
        return Hold(layout, claim.path)
    return Finishing(layout, claim.path, touched(index, claim.installing))


def _is_there(layout: Layout, claim: Claim, path: str) -> bool:
    source = claim.sources.get(path)
    return layout.file(path).exists() or (source is not None and _partial(layout, claim, source).exists())


def _partial(layout: Layout, claim: Claim, source: str) -> Path:
    return layout.partial(claim.path) / Path(source).name


def _carry_out(
    layout: Layout, index: Index, claim: Claim, record: Record, facts: Facts | None = None
) -> Entry:
    for path, name in claim.sources.items():
        source = _partial(layout, claim, name)
        if source.exists() and safe_path(path):
            move_into_place(source, layout.file(path))
    try:
        files = [
            msgspec.structs.replace(file, mtime_ns=file.mtime_ns or layout.file(file.path).stat().st_mtime_ns)
            for file in record.files
        ]
    except FileNotFoundError as error:  # one that was here already and needed no fetching
        raise IncompleteModel(
            f"{error.filename} was removed in the meantime", "run the same command again"
        ) from error
    entry = enter(layout, index, msgspec.structs.replace(record, files=files), facts)
    if (projection := entry.record.projection) is not None and projection.path in claim.sources:
        _tell_sharers(layout, index, entry.record)
    if claim.dropping:
        erasing.unlink_unless_shared(layout, index, entry.record, claim.dropping)
    shutil.rmtree(layout.partial(claim.path), ignore_errors=True)
    return entry


def enter(layout: Layout, index: Index, record: Record, facts: Facts | None = None) -> Entry:
    """Write a model's provenance, then its index entry; under a new id if its own was taken meanwhile."""
    while True:
        write_record(layout, record)
        try:
            entry = _entry(layout, index, record, facts)
            index.put([entry])
        except IdTaken:
            record = msgspec.structs.replace(record, id=new_id(*owner_and_stem(record.path), index.keys()))
        else:
            return entry


def _entry(layout: Layout, index: Index, record: Record, facts: Facts | None) -> Entry:
    if facts is not None:
        return Entry(record=record, facts=facts, stamps=stamps_of(layout, record))
    try:
        return entry_of(layout, record)
    except Integrity:
        before = index.by_path(record.path)
        if before is None:
            raise
        stamps = stamps_of(layout, record)  # a header that was damaged since: what it said stands
        return msgspec.structs.replace(before, record=record, stamps=stamps)


def _tell_sharers(layout: Layout, index: Index, record: Record) -> None:
    """Note a projection that was replaced with the other models that have it, too."""
    new = record.projection
    if new is None:
        return
    for other in sharers(index, record):
        files = [
            msgspec.structs.replace(new, url=file.url) if file.path == new.path else file
            for file in other.record.files
        ]
        if files != other.record.files:
            with contextlib.suppress(Integrity, FileNotFoundError):  # it lacks more than that
                enter(layout, index, msgspec.structs.replace(other.record, files=files))


def touched(index: Index, record: Record) -> list[str]:
    """What names the models whose files get other content when this one is installed."""
    return [record.path, *(other.record.path for other in sharers(index, record))]


def sharers(index: Index, record: Record) -> list[Entry]:
    """The other models that have the projection of this one."""
    projection = record.projection
    if projection is None:
        return []
    return [
        other
        for other in index.all()
        if other.record.path != record.path and projection.path in {file.path for file in other.record.files}
    ]
