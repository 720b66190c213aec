"""What kawai takes of the disk, by what it is for."""

import os

import msgspec

from kawai_tools.catalog.lists import Lists
from kawai_tools.files import existing_parent
from kawai_tools.libs.bundles import Bundles
from kawai_tools.models.model import ModelDetails
from kawai_tools.models.store import Store
from kawai_tools.storage.measuring import Freed, files_below, taken


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes. ``free`` and ``total`` are of the disk that holds the store.

    ``models`` are the lengths of the files of installed models, one that several have once; ``partials`` what
    is claimed by downloads of models and builds, ``builds`` what builds take; ``caches`` the index, the last
    answers of hub and release server, and the copies of catalogs. Logs count nowhere.
    """

    models: int
    partials: int
    builds: int
    caches: int
    free: int
    total: int


class Disk:
    """The disk under one home."""

    def __init__(self, store: Store, bundles: Bundles, lists: Lists) -> None:
        """Nothing is looked at yet."""
        self._store, self._bundles, self._lists = store, bundles, lists

    def freed_by(self, model: ModelDetails) -> int:
        """Bytes that come back when an installed model is removed: files that others have stay.

        What an update of it has fetched so far goes, too.
        """
        records = [each.record for each in self._store.index.all()]
        others = {file.path for each in records if each.id != model.id for file in each.files}
        layout = self._store.layout
        gone = [layout.file(file.path) for file in model.files if file.path not in others]
        fetched = [layout.partial(each.path) for each in records if each.id == model.id]
        return Freed().of([*gone, *(path for folder in fetched for path in files_below(folder))])

    def usage(self) -> Usage:
        """How much there is of what; no file of a model is looked at."""
        layout, libraries = self._store.layout, self._bundles.layout
        stats = os.statvfs(existing_parent(layout.store))
        builds = [each for each in libraries.root.glob("*/*") if each.parent != libraries.partials]
        index = layout.index.parent.glob(f"{layout.index.name}*")
        return Usage(
            models=sum(self._store.index.files().values()),
            partials=taken([layout.partials, libraries.partials]),
            builds=taken(builds),
            caches=taken([*index, layout.revisions, libraries.releases, self._lists.keeper.folder.parent]),
            free=stats.f_bavail * stats.f_frsize,
            total=stats.f_blocks * stats.f_frsize,
        )
