"""Writes models and builds into one archive: hash what has no digest, then every byte, hashed once more."""

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kawai_tools import __version__
from kawai_tools.carry.checking import check
from kawai_tools.carry.items import BuildItem, Item, ItemFile, ModelItem, opened, reading
from kawai_tools.carry.manifest import MOST, PIPE, Manifest, encode
from kawai_tools.carry.moving import Mover
from kawai_tools.carry.tape import END, beginning, header, length, padding
from kawai_tools.carry.target import FileTarget, PipeTarget, Target, writing
from kawai_tools.carry.telling import Teller, event
from kawai_tools.errors import InvalidRequest, NotFound
from kawai_tools.events import CarryEvent, Progress, Status
from kawai_tools.libs.bundle import Pointer
from kawai_tools.libs.bundles import Bundles
from kawai_tools.models.store import Store
from kawai_tools.refs import ModelRef
from kawai_tools.transfer.pulls import Job, Pull


class Exporter:
    """Writes what is installed here into archives."""

    def __init__(self, store: Store, bundles: Bundles) -> None:
        """What there is to be carried."""
        self._store = store
        self._bundles = bundles

    def job(self, archive: str, refs: Sequence[ModelRef], *, libs: bool, pipe: int) -> Job:
        """The work of an export: all models where none is named; ``pipe`` is written to for ``-``.

        Raises ``ModelNotFound``, ``Ambiguous``, ``NotFound`` where there is nothing, or what keeps the file
        from being written.
        """
        models = self._models(refs)
        builds = [BuildItem(each, self._bundles) for each in self._bundles.all()] if libs else []
        if not models and not builds:
            raise NotFound(
                "there is nothing to export", "kawai models list and kawai libs list show what is installed"
            )
        target = PipeTarget(pipe) if archive == PIPE else FileTarget(Path(archive))
        work = _Export(archive, target, [*models, *builds], self._active() if libs else None)
        return Job(
            kind="export",
            target=archive if archive == PIPE else str(Path(archive).absolute()),
            same=(archive, tuple(work.models), tuple(work.libs)),
            lock=None,
            work=work.work,
            render=work.render,
        )

    def _models(self, refs: Sequence[ModelRef]) -> list[ModelItem]:
        self._store.recover()
        if refs:
            entries = [self._store.find(ref, gone=True) for ref in refs]
        else:
            entries = [entry for entry in self._store.index.all() if entry.present]
        if entries:
            self._store.require_mounted()
        records = {entry.record.path: entry.record for entry in entries}
        return [ModelItem(records[path], self._store) for path in sorted(records)]

    def _active(self) -> Pointer | None:
        record = self._bundles.current()
        return Pointer(record.platform, record.version) if record else None


class _Export:
    """One export being carried out."""

    def __init__(
        self, archive: str, target: FileTarget | PipeTarget, items: list[Item], active: Pointer | None
    ) -> None:
        self._archive, self._target, self._items, self._active = archive, target, items, active
        self.models = [each.name for each in items if isinstance(each, ModelItem)]
        self._drop_shared()
        self._total = sum(file.size for item in items for file in item.files)
        self.libs = [each.name for each in items if isinstance(each, BuildItem)]

    def render(self, progress: Progress, pull: str, seq: int) -> CarryEvent:
        """Show where it stands."""
        return event(
            progress, pull, seq, archive=self._archive, total=self._total, models=self.models, libs=self.libs
        )

    def work(self, pull: Pull) -> Status:
        """Do it, telling the progress."""
        self._look()
        with contextlib.ExitStack() as stack:
            target: Target = self._target
            if isinstance(self._target, FileTarget):
                target = stack.enter_context(self._target)
            mover = stack.enter_context(Mover())
            self._find_digests(mover, pull)
            manifest = self._manifest()
            start = beginning(encode(manifest))
            if len(start) > MOST:
                raise InvalidRequest("that is more than one export can hold", "export fewer models at a time")
            total = len(start) + len(END) + sum(length(file.size, file.path) for file in manifest.files)
            if not target.begin(start, total):
                self._write_all(target, mover, Teller(pull, manifest.total))
        return Status.EXPORTED

    def _drop_shared(self) -> None:
        """What several models share is carried once, with the first of them."""
        seen: set[str] = set()
        for item in self._items:
            item.files = [each for each in item.files if each.path not in seen]
            seen.update(each.path for each in item.files)

    def _look(self) -> None:
        """Make sure that every file is there before anything is written."""
        for item in self._items:
            for file in item.files:
                with opened(item, file):
                    pass

    def _find_digests(self, mover: Mover, pull: Pull) -> None:
        unknown = sum(file.size for item in self._items for file in item.files if file.sha256 is None)
        teller = Teller(pull, unknown)
        for item in self._items:
            if any(file.sha256 is None for file in item.files):
                with item.held():
                    item.files = [
                        file if file.sha256 else self._hashed(item, file, mover, teller)
                        for file in item.files
                    ]

    @staticmethod
    def _hashed(item: Item, file: ItemFile, mover: Mover, teller: Teller) -> ItemFile:
        teller.begin(Status.VERIFYING, *item.shown(file))
        digest = hashlib.sha256()
        with opened(item, file) as fd:
            if mover.move(digest, reading(item, file, fd, 0), file.size, teller.moved) != file.size:
                raise item.lacks(file, "became shorter while it was read")
        return replace(file, sha256=digest.hexdigest())

    def _manifest(self) -> Manifest:
        manifest = Manifest(
            version=__version__,
            files=[file.carried for item in self._items for file in item.files],
            models=[each.carried for each in self._items if isinstance(each, ModelItem)],
            builds=[each.carried for each in self._items if isinstance(each, BuildItem)],
            active=self._active,
        )
        check(manifest)  # what could not be imported is not exported
        return manifest

    def _write_all(self, target: Target, mover: Mover, teller: Teller) -> None:
        for item in self._items:
            if item.files:
                with item.held():
                    for file in item.files:
                        self._write(item, file, target, mover, teller)
        target.write(memoryview(END))
        target.finish()

    def _write(self, item: Item, file: ItemFile, target: Target, mover: Mover, teller: Teller) -> None:
        teller.begin(Status.WRITING, *item.shown(file))
        have = target.kept(header(file.path, file.size, file.mode), file.size)
        while self._copy(item, file, have, target, mover, teller) != file.sha256:
            if not have:
                target.discard()
                raise item.differs(file)
            teller.passed(-file.size)
            target.restart()
            have = 0
        target.write(memoryview(bytes(padding(file.size))))

    def _copy(
        self, item: Item, file: ItemFile, have: int, target: Target, mover: Mover, teller: Teller
    ) -> str:
        """Carry one file's bytes, of which ``have`` are there; the digest of them all."""
        digest = hashlib.sha256()
        mover.move(digest, target.read(have), have, teller.moved)
        left = file.size - have
        if left:
            with opened(item, file) as fd:
                read = reading(item, file, fd, have)
                with writing(self._archive):
                    count = mover.move(digest, read, left, teller.moved, target.write, target.syncs)
                if count != left:
                    raise item.lacks(file, "became shorter while it was read")
        return digest.hexdigest()
