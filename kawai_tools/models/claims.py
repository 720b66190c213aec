"""Who works on a model: what partial downloads belong to, and the locks that keep others off."""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from kawai_tools.errors import UNDECODABLE, HomeNotWritable, InUse
from kawai_tools.files import Lock, existing_parent, make_directory, read_if_there, write_atomically
from kawai_tools.models.layout import Layout
from kawai_tools.models.records import Record


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


def share_use(model_id: str, lock: Lock) -> None:
    """Keep others from replacing a model's files; where nobody can write, nobody does. Raises ``InUse``."""
    try:
        if not lock.acquire(shared=True):
            raise in_use(model_id)
    except HomeNotWritable:
        if os.access(existing_parent(lock.path.parent), os.W_OK):
            raise


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


def in_use(model_id: str) -> InUse:
    """What to say of a model whose lock somebody holds."""
    error = InUse(
        f"{model_id} is loaded, being pulled or being verified",
        "wait until that is done (kawai models ps, kawai pulls list)",
    )
    error.target = model_id
    return error
