"""Downloads that were begun and that nobody works on: of models and of builds."""

import re
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from kawai_tools.errors import InUse
from kawai_tools.files import Lock
from kawai_tools.libs.bundles import Bundles
from kawai_tools.libs.staging import clear
from kawai_tools.models.claims import Claim, read_claim
from kawai_tools.models.installing import can_finish
from kawai_tools.models.layout import OPENING, PULLING, Layout
from kawai_tools.models.removing import GONE
from kawai_tools.models.store import Store
from kawai_tools.storage.finding import IN_USE, MEANWHILE, Find
from kawai_tools.storage.measuring import Freed, files_below

_KEY = r"[0-9a-f]{24}"
_LOCKS = {
    PULLING: "the lock of a pull that was killed",
    OPENING: "the lock of somebody who was killed while he opened a model's files",
}


def partials(store: Store, bundles: Bundles, freed: Freed) -> Iterator[Find]:
    """All of them. What waits to be installed is none, and what has another name in there is not ours."""
    for directory in _directories(store.layout.partials):
        claim = claim_of(store.layout, directory)
        if claim is None or not can_finish(store.layout, claim):
            yield _find(directory, claim.id if claim else None, freed, _of_model(store.layout, directory))
    for directory in _directories(bundles.layout.partials):
        yield _find(directory, _version(directory), freed, partial(_clear_build, directory))


def stray_locks(store: Store, bundles: Bundles) -> Iterator[Find]:
    """Locks of who was killed: of pulls where nothing is left to go on with, and of readers of models."""
    for root in (store.layout.partials, bundles.layout.partials):
        for path in sorted(root.glob("*")):
            if not re.fullmatch(_KEY, path.stem) or path.suffix not in _LOCKS:
                continue
            lock = Lock(path)
            if lock.is_free() and (path.suffix == OPENING or not path.with_suffix("").exists()):
                yield Find(
                    kind="superseded",
                    path=path,
                    size=0,
                    reason=_LOCKS[path.suffix],
                    remove=partial(_remove_lock, lock),
                )


def claim_of(layout: Layout, directory: Path) -> Claim | None:
    """What a directory of partial downloads belongs to, if it says, and is the one of that."""
    claim = read_claim(directory)
    return claim if claim is not None and layout.partial(claim.path) == directory else None


def _directories(root: Path) -> list[Path]:
    found = [each for each in root.glob("*") if re.fullmatch(_KEY, each.name)]
    return sorted(each for each in found if each.is_dir() and not each.is_symlink())


def _version(directory: Path) -> str | None:
    """The version of a build, by the names of its archives."""
    found = (re.search(r"-(b[0-9]+)-", path.name) for path in sorted(directory.glob("*")))
    return next((each[1] for each in found if each), None)


def _find(directory: Path, name: str | None, freed: Freed, remove: Callable[[], None]) -> Find:
    lock, written = Lock(directory.with_suffix(".lock")), _written(directory)
    moment = datetime.fromtimestamp(written // 10**9, UTC)
    if not lock.is_free():
        size = Freed().of(files_below(directory))
        return Find(
            kind="partial", path=directory, id=name, size=size, reason=IN_USE, kept=True, last_used=moment
        )

    def take() -> str | None:
        if not lock.acquire():
            raise InUse(f"{directory} is being pulled")
        try:
            if not directory.exists():
                return GONE
            if _written(directory) != written:
                return MEANWHILE
            remove()
        finally:
            lock.remove()
        return None

    return Find(
        kind="partial",
        path=directory,
        id=name,
        size=freed.take(files_below(directory)),
        reason=f"a download that was broken off on {moment:%Y-%m-%d}",
        last_used=moment,
        remove=take,
    )


def _written(directory: Path) -> int:
    """When something was last written there, in nanoseconds."""
    times = []
    for path in [directory, *files_below(directory)]:
        try:
            times.append(path.lstat().st_mtime_ns)
        except OSError:
            continue
    return max(times, default=0)


def _of_model(layout: Layout, directory: Path) -> Callable[[], None]:
    def remove() -> None:
        claim = claim_of(layout, directory)
        if claim is not None and can_finish(layout, claim):
            raise InUse(f"{claim.id} is about to be installed")
        if directory.exists():
            shutil.rmtree(directory)

    return remove


def _clear_build(directory: Path) -> None:
    clear(directory)
    if directory.exists():
        raise InUse(f"{directory} is being pulled")


def _remove_lock(lock: Lock) -> None:
    if not lock.acquire():
        raise InUse(f"{lock.path} is held")
    lock.remove()
