"""Files that kawai itself has left, and that nothing names any more.

Only what their names and places tell for sure: a GGUF file that no model has may be its user's own, and the
next ``models index`` makes a model of it.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from kawai_tools.catalog.kept import Keeper
from kawai_tools.catalog.lists import Lists
from kawai_tools.errors import InUse
from kawai_tools.files import Lock, left_behind
from kawai_tools.libs.bundles import Bundles
from kawai_tools.models.claims import Claim, claims, release_use
from kawai_tools.models.installing import can_finish
from kawai_tools.models.layout import Layout
from kawai_tools.models.store import Store
from kawai_tools.storage.finding import Find
from kawai_tools.storage.measuring import Freed, files_below
from kawai_tools.storage.partials import stray_locks

_MOST_DEPTH = 12
"""Folders that a model lies in, at most."""


def superseded(store: Store, bundles: Bundles, lists: Lists, freed: Freed) -> Iterator[Find]:
    """All of them."""
    notes = sorted(_folders_of_notes(str(store.layout.store)))
    yield from _cut_off(store, freed)
    yield from _asides(bundles, freed)
    yield from _copies(lists, freed)
    for folder in [*_state_folders(store.layout, bundles, lists.keeper), *notes]:
        for path in sorted(left_behind(folder)):
            yield _file(path, "a state file whose writer was killed", freed)
    yield from stray_locks(store, bundles)
    known = {entry.record.path for entry in store.index.all()}
    for folder in notes:
        yield from _locks(store.layout, folder, known)


def _state_folders(layout: Layout, bundles: Bundles, keeper: Keeper) -> list[Path]:
    libraries = bundles.layout.root
    places = [layout.data, layout.store, libraries, *sorted(libraries.glob("*/.kawai"))]
    return [*places, keeper.folder.parent, keeper.folder]


def _folders_of_notes(directory: str, depth: int = 0) -> Iterator[Path]:
    """The folders with provenance files and locks, following no link."""
    try:
        with os.scandir(directory) as entries:
            below = [each for each in entries if each.is_dir(follow_symlinks=False)]
    except OSError:
        return
    for each in below:
        if each.name == ".kawai":
            yield Path(each.path)
        elif each.name[0] != "." and depth < _MOST_DEPTH:
            yield from _folders_of_notes(each.path, depth + 1)


def _file(path: Path, reason: str, freed: Freed, remove: Callable[[], None] | None = None) -> Find:
    def take() -> None:
        (remove or path.unlink)()

    return Find(kind="superseded", path=path, size=freed.take([path]), reason=reason, remove=take)


def _cut_off(store: Store, freed: Freed) -> Iterator[Find]:
    """Files of models whose replacement or removal was cut off: whoever looks next goes on with it."""
    entries = store.index.all()
    for claim in claims(store.layout):
        if not can_finish(store.layout, claim):
            continue
        others = {
            file.path for each in entries if each.record.path != claim.path for file in each.record.files
        }
        paths = map(store.layout.file, sorted(_going(store, claim) - others))
        there = [path for path in paths if path.is_file() or path.is_symlink()]
        if claim.removing and not there:
            there = [store.layout.partial(claim.path) / "claim.json"]
        for path in there:
            what = "removal" if claim.removing else "replacement"
            reason = f"a file of {claim.id}, whose {what} was cut off"
            yield _file(path, reason, freed, partial(_finish, store, claim))


def _going(store: Store, claim: Claim) -> set[str]:
    """The files that are still to go."""
    if claim.installing is not None:
        return set(claim.dropping) - {file.path for file in claim.installing.files}
    entry = store.index.by_path(claim.path)
    return {file.path for file in entry.record.files} if entry else set()


def _finish(store: Store, claim: Claim) -> None:
    hold = store.hold(claim)
    if not hold.acquire():
        raise InUse(f"{claim.id} is being pulled or removed")
    try:
        store.finish(claim.path)
    finally:
        hold.release()


def _asides(bundles: Bundles, freed: Freed) -> Iterator[Find]:
    """Builds that were moved aside to be removed."""
    for path in bundles.left_aside():

        def remove(path: Path = path) -> None:
            bundles.settle(path)
            if path.exists():
                raise InUse(f"{path} is held")

        yield Find(
            kind="superseded",
            path=path,
            id=path.name.split(".")[1],
            size=freed.take(files_below(path)),
            reason="a build whose removal was cut off",
            remove=remove,
        )


def _copies(lists: Lists, freed: Freed) -> Iterator[Find]:
    """Kept copies of catalogs that no setting names any more."""
    keeper = lists.keeper
    wanted = {keeper.path(url) for url in lists.subscriptions}
    for path in sorted(keeper.folder.glob("*.json")):
        if path not in wanted:

            def remove(path: Path = path) -> None:
                with keeper.alone():
                    path.unlink()

            yield _file(path, "a copy of a catalog that is not subscribed to", freed, remove)


def _locks(layout: Layout, folder: Path, known: set[str]) -> Iterator[Find]:
    """Lock files of models that are not there."""
    prefix = f"{folder.parent.relative_to(layout.store)}/".removeprefix("./")
    for path in sorted(folder.glob("*.lock")):
        model, lock = f"{prefix}{path.stem}", Lock(path)
        if model in known or layout.provenance(model).exists() or not lock.is_free():
            continue
        if any(each.name.startswith(path.stem) for each in folder.parent.iterdir()):
            continue  # somebody has put it there, and nobody has looked yet

        def remove(model: str = model, lock: Lock = lock) -> None:
            if not lock.acquire():
                raise InUse(f"{model} is in use")
            release_use(layout, model, lock)

        yield _file(path, "the lock of a model that is not there", Freed(), remove)
