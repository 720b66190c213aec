"""Takes models and builds out of an archive, and holds each file to its digest.

What is here already is passed over. A model is installed as soon as its last file has arrived. Nothing of
a network is loaded, let alone asked.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from kawai_tools.carry.checking import check
from kawai_tools.carry.here import Here, build_is_here
from kawai_tools.carry.incoming_builds import IncomingBuild
from kawai_tools.carry.incoming_models import IncomingModel
from kawai_tools.carry.manifest import PIPE, Manifest
from kawai_tools.carry.moving import Mover
from kawai_tools.carry.source import Source
from kawai_tools.carry.tape import padding
from kawai_tools.carry.telling import Teller, event
from kawai_tools.errors import Integrity, NoSpace
from kawai_tools.events import CarryEvent, Progress, Status
from kawai_tools.files import free_space
from kawai_tools.libs.bundles import Bundles
from kawai_tools.libs.members import Tree
from kawai_tools.models.layout import model_path
from kawai_tools.models.store import Store
from kawai_tools.transfer.pulls import Job, Pull


class Importer:
    """Installs what archives hold."""

    def __init__(self, store: Store, bundles: Bundles) -> None:
        """Where it goes."""
        self._store = store
        self._bundles = bundles

    def job(self, archive: str, *, pipe: int) -> Job:
        """The work of an import; ``pipe`` is read for ``-``, and becomes the job's own.

        The manifest is read and checked, and of a file every header, before there is any work.
        Raises ``NotFound``, ``BrokenArchive`` or ``UnsafeArchive``.
        """
        source = Source(pipe) if archive == PIPE else Source.open(archive)
        try:
            with _naming(archive):
                manifest = source.manifest()
                trees = check(manifest)
                if source.seekable:
                    source.survey(manifest)
        except BaseException:
            source.close()
            raise
        work = _Import(archive, source, manifest, trees, self._store, self._bundles)
        return Job(
            kind="import", target=archive, same=object(), lock=None, work=work.work, render=work.render
        )


Incoming: TypeAlias = IncomingModel | IncomingBuild


@contextlib.contextmanager
def _naming(archive: str) -> Iterator[None]:
    """Begin what is said of an archive with its name."""
    try:
        yield
    except Integrity as error:
        where = "stdin" if archive == PIPE else archive
        raise type(error)(f"{where}: {error.message}", error.hint) from error


@dataclass
class _Import:
    """One import being carried out."""

    archive: str
    source: Source
    manifest: Manifest
    trees: dict[str, Tree]
    store: Store
    bundles: Bundles
    incoming: "list[Incoming]" = field(default_factory=list)
    takers: "dict[str, Incoming]" = field(default_factory=dict)
    """Who takes a file, by its path in the archive; what is here already is taken by nobody."""

    def __post_init__(self) -> None:
        self.files = {file.path: file for file in self.manifest.files}
        self.ids = {model_path(each.files[0].path): each.id for each in self.manifest.models}
        self.installed = False

    def render(self, progress: Progress, pull: str, seq: int) -> CarryEvent:
        """Show where it stands."""
        libs = [each.version for each in self.manifest.builds]
        return event(
            progress,
            pull,
            seq,
            archive=self.archive,
            total=self.manifest.total,
            models=list(self.ids.values()),
            libs=libs,
        )

    def work(self, pull: Pull) -> Status:
        """Do it, telling the progress."""
        with self.source, Mover() as mover, _naming(self.archive), contextlib.ExitStack() as stack:
            self.store.recover()
            total = self.manifest.total
            here = Here(self.store, self.files, mover, Teller(pull, total))
            self._plan(here)
            self._require_space()
            for each in self.incoming:
                stack.callback(each.close)
            if any(isinstance(each, IncomingModel) for each in self.incoming):
                self.store.prepare()
            self._take_all(_Work(here, mover, Teller(pull, total), pull))
            self.source.finish()
        return Status.IMPORTED if self.installed else Status.EXISTS

    def _plan(self, here: Here) -> None:
        """What is to be installed, and who takes which file. Raises ``DifferentVersion``."""
        for model in self.manifest.models:
            found = here.look(model)
            if here.is_whole(model, found):
                self._note(model_path(model.files[0].path))
            else:
                self.incoming.append(IncomingModel(model, found, self.files, self.store))
        for build in self.manifest.builds:
            if not build_is_here(self.bundles, build):
                active = self.manifest.active == build.pointer
                tree = self.trees[build.folder]
                self.incoming.append(IncomingBuild(build, tree, self.bundles, was_active=active))
        for each in self.incoming:
            for path in sorted(each.missing):
                if self.takers.setdefault(path, each) is each:
                    each.takes.add(path)

    def _require_space(self) -> None:
        needed = sum(each.needed for each in self.incoming)
        free = free_space(self.store.layout.data)
        if needed > free:
            raise NoSpace(
                f"the import needs {needed:,} more bytes of disk, and there are {free:,} free",
                "make room (kawai prune), or keep kawai's home on another disk (--home, KAWAI_HOME)",
            )

    def _take_all(self, work: "_Work") -> None:
        for each in self.incoming:
            if not each.missing:  # its files are here, and nobody has recorded them as it is
                self._install(each, work)
        for file in self.manifest.files:
            self.source.expect(file.path, file.size)
            taker = self.takers.get(file.path)
            if taker is not None:
                self._begin(taker, work)
            if taker is None or file.path not in taker.missing:
                self.source.skip(file.size)
                work.teller.passed(file.size)
            else:
                work.teller.begin(Status.READING, *taker.shown(file))
                taker.receive(file, self.source, work.mover, work.teller)
            self.source.skip(padding(file.size))
            if taker is not None and not taker.missing:
                self._install(taker, work)

    @staticmethod
    def _begin(taker: "Incoming", work: "_Work") -> None:
        if isinstance(taker, IncomingModel):
            taker.begin(work.pull, work.here)
        else:
            taker.begin(work.pull)

    def _install(self, taker: "Incoming", work: "_Work") -> None:
        """Install what is whole, unless somebody else has; then what waited for no more than its files."""
        if taker.done:
            return
        self._begin(taker, work)
        self.installed |= taker.install(work.pull, work.teller)
        taker.close()
        if isinstance(taker, IncomingModel):
            self._note(taker.path)
        for each in self.incoming:
            if not each.done and each.missing & taker.files:
                each.missing -= taker.files
                if not each.missing:
                    self._install(each, work)

    def _note(self, path: str) -> None:
        """Call a model what it is called here."""
        entry = self.store.index.by_path(path)
        if entry is not None:
            self.ids[path] = entry.record.id


class _Work(NamedTuple):
    """What it is done with."""

    here: Here
    mover: Mover
    teller: Teller
    pull: Pull
