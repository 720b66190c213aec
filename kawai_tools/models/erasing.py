"""A model's files, provenance and index entry removed, in steps that can be repeated until they are done.

What was decided is noted first, so that a removal that was cut off is finished later: whoever looks into the
store next does so. A disk that is full takes no note, and must not keep anybody from making room on it.
"""

import contextlib
import shutil

from kawai_tools.errors import HomeNotWritable, KawaiError, NoSpace
from kawai_tools.files import storage_errors
from kawai_tools.models.claims import Claim, read_claim, write_claim
from kawai_tools.models.index import Index
from kawai_tools.models.layout import Layout
from kawai_tools.models.records import Record


def erase(layout: Layout, index: Index, record: Record) -> None:
    """Remove a model and what was fetched of it; both its locks are held. Raises ``HomeNotWritable``.

    One that fails is no removal that was cut off: it is for whoever asked for it to try again.
    """
    before = read_claim(layout.partial(record.path))
    with contextlib.suppress(HomeNotWritable, NoSpace):
        write_claim(layout, Claim(record.id, record.path, removing=True))
    try:
        carry_on(layout, index, record.path)
    except (KawaiError, OSError):
        _take_back(layout, record, before)
        raise


def _take_back(layout: Layout, record: Record, before: Claim | None) -> None:
    """Note what was noted before."""
    directory = layout.partial(record.path)
    with contextlib.suppress(HomeNotWritable, NoSpace, OSError):
        if before is not None:
            write_claim(layout, before)
        else:
            (directory / "claim.json").unlink(missing_ok=True)
            directory.rmdir()


def carry_on(layout: Layout, index: Index, path: str) -> None:
    """Do what is left of the removal of the model at ``path``. The index forgets it before the note goes."""
    entry = index.by_path(path)
    with storage_errors(layout.store):
        if entry is not None:
            unlink_unless_shared(layout, index, entry.record, [file.path for file in entry.record.files])
        layout.provenance(path).unlink(missing_ok=True)
        index.put([], gone=[path])
        shutil.rmtree(layout.partial(path), ignore_errors=True)
        layout.opening_lock(path).unlink(missing_ok=True)  # of somebody who was killed: nobody has it open


def unlink_unless_shared(layout: Layout, index: Index, record: Record, paths: list[str]) -> None:
    """Remove files of a model that no other one has."""
    owned = {
        file.path for other in index.all() if other.record.path != record.path for file in other.record.files
    }
    for path in paths:
        if path not in owned:
            layout.file(path).unlink(missing_ok=True)
