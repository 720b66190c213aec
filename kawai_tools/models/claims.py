"""Who works on a model: what partial downloads belong to, and the locks that keep others off."""

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from kawai_tools.errors import UNDECODABLE, HomeNotWritable, InUse
from kawai_tools.files import Lock, existing_parent, make_directory, read_if_there, write_atomically
from kawai_tools.models.layout import Layout
from kawai_tools.models.records import Record

_PATIENCE, _TICK = 10.0, 0.02
"""Seconds that giving files their names may take, on a slow disk."""


class Claim(msgspec.Struct, frozen=True):
    """What a directory of partial downloads belongs to.

    Once all of it is verified ``installing`` is what the model will be, ``sources`` are the names that its
    new files have there, by their paths in the store, and ``dropping`` the files that are no part of it any
    more. With ``removing`` the model is being removed.
    """

    id: str
    path: str
    installing: Record | None = None
    sources: dict[str, str] = {}
    dropping: list[str] = []
    removing: bool = False


_CLAIM = msgspec.json.Decoder(
    Claim
)  # made as the module is: msgspec is not safe where threads are first to use a type


def write_claim(layout: Layout, claim: Claim) -> Path:
    """Say what the partial directory of a model is for, durably; the directory, made if need be."""
    directory = make_directory(layout.partial(claim.path))
    write_atomically(directory / "claim.json", msgspec.json.encode(claim))
    return directory


def read_claim(partial: Path) -> Claim | None:
    """What a partial directory belongs to, if it says."""
    try:
        return _CLAIM.decode(read_if_there(partial / "claim.json") or b"")
    except UNDECODABLE:
        return None


def claims(layout: Layout) -> Iterator[Claim]:
    """What all partial directories belong to; one that does not say, or lies elsewhere, is left out."""
    try:
        names = sorted(each.name for each in layout.partials.iterdir() if not each.suffix)
    except OSError:
        return
    for name in names:
        claim = read_claim(layout.partials / name)
        if claim is not None and layout.partial(claim.path).name == name:
            yield claim


class Hold:
    """One model for oneself: neither pulled nor used by anybody else. A context manager that never waits."""

    def __init__(self, layout: Layout, path: str) -> None:
        """Name the model by what names it in the store."""
        self._pulling, self._using = Lock(layout.pull_lock(path)), Lock(layout.lock(path))
        self._layout, self._path = layout, path

    def acquire(self) -> bool:
        """Take both locks, or none; say whether they were taken."""
        if self._pulling.acquire():
            if self._using.acquire():
                return True
            self._pulling.remove()
        return False

    def release(self) -> None:
        """Let go. The lock file of a model that is not installed goes with it."""
        release_use(self._layout, self._path, self._using)
        self._pulling.remove()


class Use:
    """One model in use by somebody who opens its files by their names.

    Two locks, held shared: one as long as the model is in use, which keeps it from being removed; the other
    as long as files are still to be opened, since one name after the other may get a newer file. Whoever has
    all of them open keeps what was opened, whatever has its name.
    """

    def __init__(self, layout: Layout, path: str, model_id: str) -> None:
        """Name the model by what names it in the store; ``model_id`` is for messages."""
        self._using, self._opening = Lock(layout.lock(path)), Lock(layout.opening_lock(path))
        self._layout, self._path, self._id = layout, path, model_id

    def acquire(self) -> None:
        """Take both, waiting where files are just getting their names. Raises ``InUse``."""
        until = time.monotonic() + _PATIENCE
        while not self.try_acquire():
            if time.monotonic() > until:
                raise in_use(self._id)
            time.sleep(_TICK)

    def try_acquire(self) -> bool:
        """Take both, or none where files are just getting their names: that takes a moment.

        Where nobody can write, nobody replaces anything. Raises ``InUse``.
        """
        if not _share(self._using):
            raise _taken(self._id)
        may_open = False
        try:
            may_open = _share(self._opening) and not self._is_half_done
        finally:
            if not may_open:
                self.release()
        return may_open

    @property
    def _is_half_done(self) -> bool:
        """Whether whoever was to replace or remove files was cut off, and nobody has gone on yet."""
        claim = read_claim(self._layout.partial(self._path))
        return claim is not None and (claim.installing is not None or claim.removing)

    def opened(self) -> None:
        """All files are open: others may get their names."""
        self._opening.retire()

    def release(self) -> None:
        """Let go."""
        self._opening.retire()
        release_use(self._layout, self._path, self._using)


class Renaming:
    """The right to give newer files the names of a model's: nobody has those still to open. Never waits."""

    def __init__(self, layout: Layout, paths: Iterable[str]) -> None:
        """Name the models by what names them in the store."""
        self._locks = [Lock(layout.opening_lock(path)) for path in sorted(set(paths))]

    def acquire(self) -> bool:
        """Take the right for all of them, or for none; say whether it was taken."""
        if all(lock.acquire() for lock in self._locks):
            return True
        self.release()
        return False

    def release(self) -> None:
        """Let go."""
        for lock in self._locks:
            lock.remove()


class Finishing:
    """The right to carry on with an installation: nobody pulls it, or has what it replaces still to open."""

    def __init__(self, layout: Layout, path: str, touched: Iterable[str]) -> None:
        """Name the model, and all whose files get other content with it."""
        self._pulling, self._renaming = Lock(layout.pull_lock(path)), Renaming(layout, touched)

    def acquire(self) -> bool:
        """Take it, without waiting; say whether it was taken."""
        if self._pulling.acquire():
            if self._renaming.acquire():
                return True
            self._pulling.remove()
        return False

    def release(self) -> None:
        """Let go."""
        self._renaming.release()
        self._pulling.remove()


def _share(lock: Lock) -> bool:
    try:
        return lock.acquire(shared=True)
    except HomeNotWritable:
        if os.access(existing_parent(lock.path.parent), os.W_OK):
            raise
        return True


def release_use(layout: Layout, path: str, lock: Lock) -> None:
    """Let go of a model; the lock file of one that is not installed is removed, with folders left empty."""
    if layout.provenance(path).exists():
        lock.release()
    else:
        lock.remove()
        remove_empty(layout, path)


def remove_empty(layout: Layout, path: str) -> None:
    """Remove the folders of a model, as far up as they are empty."""
    folder = layout.file(path).parent
    notes = folder / ".kawai"
    if notes.is_dir() and all(each.name.endswith(".partial") for each in notes.iterdir()):
        for each in notes.iterdir():  # what a crash left of a state file that was being written
            each.unlink(missing_ok=True)
    for each in (notes, folder, *folder.parents):
        if each == layout.store or layout.store not in each.parents:
            return
        try:
            each.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return


def _taken(model_id: str) -> InUse:
    """What to say to who wants to use a model that somebody has for himself."""
    error = InUse(f"{model_id} is being pulled or removed", "try again when that has ended")
    error.target = model_id
    return error


def in_use(model_id: str) -> InUse:
    """What to say of a model whose lock somebody holds."""
    error = InUse(
        f"{model_id} is loaded, being pulled or being verified",
        "wait until that is done (kawai models ps, kawai pulls list)",
    )
    error.target = model_id
    return error
