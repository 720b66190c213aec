"""Planning: which files a pull fetches, and what of them is already here.

A source that an installed model was pulled by is answered from the index; the network is not touched.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import msgspec

from kawai_tools.errors import (
    DifferentVersion,
    DigestMismatch,
    FileNotOnHub,
    NotAModel,
    NotAProjection,
    NotFound,
)
from kawai_tools.files import free_space
from kawai_tools.models.choosing import (
    File,
    choose,
    gguf_files,
    name_of,
    place_of,
    says_projection,
    shards,
    words_of,
)
from kawai_tools.models.layout import Layout, model_path
from kawai_tools.models.plan import Plan, PlanFile
from kawai_tools.models.records import Entry, FileRecord, Record
from kawai_tools.models.store import Store
from kawai_tools.refs import (
    HubFile,
    HubRepo,
    Source,
    is_projection_name,
    parse_source,
    quantization_named,
    quantization_of,
)
from kawai_tools.transfer.asking import BUDGET
from kawai_tools.transfer.hub import Hub, RemoteFile
from kawai_tools.transfer.partials import Partial

NO_PROJECTION = "none"
PEEK = 1 << 16
"""Bytes of a file that are looked at to tell whether it is a projection; the keys that say so come first."""


class Planner:
    """Plans pulls of models."""

    def __init__(self, store: Store, hub: Hub, *, local_paths: bool) -> None:
        """``local_paths``: answer a path on this machine with what to do instead (never over HTTP)."""
        self._store = store
        self._hub = hub
        self._local_paths = local_paths

    def plan(
        self,
        source_words: str,
        proj_words: str | None,
        *,
        force: bool,
        pins: Mapping[str, str] | None = None,
    ) -> Plan:
        """Plan the pull of a source; ``proj_words`` may be ``"none"``.

        ``pins`` are the digests that files must have, by their addresses, whatever a hub says of them.
        Raises ``DigestMismatch`` where it says another, ``InvalidRequest`` for words that make no sense,
        ``NotFound``, ``Conflict`` where the words leave a choice or something else is installed there, and
        what :class:`Hub` raises.
        """
        source = self._parse(source_words)
        pinned = {_url_of(self._parse(url)): sha256 for url, sha256 in (pins or {}).items()}
        planning = _Planning(self._store, self._hub.within(BUDGET), source, pinned, force=force)
        if proj_words is None:
            return planning.plan(None, pair=True)
        if proj_words.lower() == NO_PROJECTION:
            return planning.plan(None, pair=False)
        projection = self._parse(proj_words)
        if isinstance(projection, HubRepo):
            raise NotAProjection(f"{proj_words} is a repository, not a projection", "give the file's URL")
        return planning.plan(projection, pair=False)

    def _parse(self, words: str) -> Source:
        return parse_source(words, self._hub.endpoint, local_paths=self._local_paths)


class _Planning:
    """One source being planned."""

    def __init__(
        self, store: Store, hub: Hub, source: Source, pins: Mapping[str, str], *, force: bool
    ) -> None:
        self.store, self.hub, self.source, self.pins, self.force = store, hub, source, pins, force
        self.record: Record | None
        self.words = words_of(source)
        self.path, self.record = "", None  # set once it is known which model is meant

    def plan(self, projection: File | None, *, pair: bool) -> Plan:
        """Plan; with ``pair`` the projection of a repository comes along, or one that is here stays."""
        self.store.recover()
        entry = None if self.force else installed_by(self.store, self.source)
        if entry is not None:
            self.path, self.record = entry.record.path, entry.record
            return self._plan_installed(entry.record, projection)
        if isinstance(self.source, HubRepo):
            weights, beside = choose(self.source, self.hub.files(self.source))
            projection = projection or (beside if pair else None)
        else:
            weights = shards(self.source)
        return self._plan_files(weights, projection, pair=pair)

    # what is installed already

    def _plan_installed(self, record: Record, projection: File | None) -> Plan:
        self._hold_installed(record)
        has = record.projection.url if record.projection else None
        files: tuple[PlanFile, ...] = ()
        if projection is not None and has != projection.url:
            remote = self._describe_projection(projection, None)
            files = (self._plan_file(remote, projection, "projection"),)
        kept = record.weights if files else record.files
        return self._made(files, tuple(kept), exists=not files)

    def _hold_installed(self, record: Record) -> None:
        """Refuse an installed file that is another than the pinned one."""
        for file in record.files:
            if self.pins.get(file.url or "", file.sha256) != file.sha256:
                raise DifferentVersion(
                    f"{record.id} is installed, and {file.path} is another version than the pinned one",
                    "--force replaces it",
                )

    # what a source names

    def _plan_files(self, weights: list[File], projection: File | None, *, pair: bool) -> Plan:
        self.path = model_path(place_of(weights[0]))
        before = self.store.index.by_path(self.path)
        self.record = record = before.record if before else None
        remotes = self._describe(weights)
        files = [
            self._plan_file(remote, file, "weights") for file, remote in zip(weights, remotes, strict=True)
        ]
        self._refuse_other_version(before, files)
        kept: tuple[FileRecord, ...] = ()
        if projection is not None:
            remote = self._describe_projection(projection, _pin(weights[0], remotes[0]))
            files.append(self._plan_file(remote, projection, "projection"))
        elif pair and record is not None and record.projection is not None:
            kept = (record.projection,)
        exists = bool(before and before.present) and all(file.installed for file in files)
        return self._made(tuple(files), kept, exists=exists)

    def _made(self, files: tuple[PlanFile, ...], kept: tuple[FileRecord, ...], *, exists: bool) -> Plan:
        first = next((file.remote.url for file in files if file.role == "weights"), self.words)
        return Plan(
            id=self.store.name(self.path),
            path=self.path,
            words=tuple(dict.fromkeys([self.words, first])),
            files=files,
            free=free_space(self.store.layout.store),
            force=self.force,
            before=self.record,
            exists=exists,
            kept=kept,
        )

    def _plan_file(self, remote: RemoteFile, file: File, role: Literal["weights", "projection"]) -> PlanFile:
        path = place_of(file)
        found = self._recorded(path)
        installed = (
            found if found and is_same(self.store.layout, found, remote, strictly=self.force) else None
        )
        if installed is not None and remote.sha256 is not None:  # another model may have it from elsewhere
            installed = msgspec.structs.replace(installed, url=remote.url)
        partial = Partial(self.store.layout.partial(self.path), path.rpartition("/")[2], remote)
        return PlanFile(remote, path, role, partial, installed)

    def _recorded(self, path: str) -> FileRecord | None:
        """What is known of an installed file: of this model, or of another one of the repository.

        Several quantizations share their projection.
        """
        owner, repo, *_ = path.split("/")
        records = [self.record] if self.record else []
        records += [entry.record for entry in self.store.index.by_repository(owner, repo)]
        return next((file for each in records for file in each.files if file.path == path), None)

    def _refuse_other_version(self, before: Entry | None, planned: list[PlanFile]) -> None:
        """Replace nothing unasked but what came from this same source, or what is broken anyway."""
        if before is None or not before.present or self.force or all(file.installed for file in planned):
            return
        record = before.record
        if self.words in record.sources or not is_whole(self.store, record):
            return
        if record.url is None and not all(file.sha256 for file in record.weights):
            raise DifferentVersion(
                f"{record.id} was put into the store by hand and may differ from what is asked for",
                f"kawai models verify {record.id} makes them comparable; --force replaces it",
            )
        raise DifferentVersion(
            f"{record.id} is installed from {record.url or 'a file put there by hand'}, "
            "and what is asked for differs from it",
            "--force replaces it",
        )

    # what the hub says of it

    def _describe(self, files: list[File]) -> list[RemoteFile]:
        """Size and digest of each file, all of one revision."""
        first, *rest = files
        if is_projection_name(name_of(first)):
            raise NotAModel(
                f"{first.url} is a projection, not a model",
                "pull the model, and name this file with --proj",
            )
        try:
            described = [self._held_to_pin(self._ask(first, None))]
        except FileNotOnHub as error:
            error.hint = self._offer(first) or error.hint
            raise
        pin = _pin(first, described[0])
        return described + [self._held_to_pin(self._ask(file, pin)) for file in rest]

    def _ask(self, file: File, pin: HubFile | None) -> RemoteFile:
        """What the hub says of a file, at the commit of another."""
        try:
            return replace(self.hub.describe(_at(file, pin)), url=file.url)
        except NotFound as error:
            error.url = file.url
            raise

    def _held_to_pin(self, remote: RemoteFile) -> RemoteFile:
        """The file with the digest that is pinned."""
        pinned = self.pins.get(remote.url, remote.sha256)
        if remote.sha256 not in {None, pinned}:
            raise DigestMismatch(
                f"{remote.url} has the digest {remote.sha256} now, and {pinned} is pinned",
                "the file was replaced since it was chosen; nothing is fetched",
            )
        return replace(remote, sha256=pinned)

    def _offer(self, missing: File) -> str | None:
        """The file of the repository that comes nearest to one that is not there."""
        if not isinstance(missing, HubFile):
            return None
        from difflib import get_close_matches  # noqa: PLC0415 - only where something was mistyped

        names = gguf_files(self.hub.files(HubRepo(missing.owner, missing.repo, revision=missing.revision)))
        near = get_close_matches(missing.path, names, n=1, cutoff=0.4)
        return f"did you mean {missing.sibling(near[0]).url}" if near else None

    def _describe_projection(self, file: File, pin: HubFile | None) -> RemoteFile:
        remote = self._held_to_pin(self._ask(file, pin))
        if not is_projection_name(name_of(file)) and not says_projection(self.hub.start_of(remote, PEEK)):
            raise NotAProjection(
                f"{file.url} is not a projection",
                "one command pulls one model; the second URL can only be its mmproj file",
            )
        return remote


def installed_by(store: Store, source: Source) -> Entry | None:
    """The installed model with this source whose files have the recorded sizes."""
    found = store.index.by_source(words_of(source))
    if isinstance(source, HubRepo) and source.quantization:
        wanted = quantization_named(source.quantization)
        beside = store.index.by_repository(source.owner, source.repo)
        found += [each for each in beside if each.record.url and quantization_of(each.record.path) == wanted]
    return next((entry for entry in found if entry.present and is_whole(store, entry.record)), None)


def is_whole(store: Store, record: Record) -> bool:
    """Whether the files of a model have the sizes that were recorded."""
    return all(size_of(store.layout, file) == file.size for file in record.files)


def _url_of(source: Source) -> str:
    return str(source) if isinstance(source, HubRepo) else source.url


def _pin(file: File, remote: RemoteFile) -> HubFile | None:
    """A file of the hub at the commit that it was found at."""
    if not isinstance(file, HubFile) or remote.commit is None:
        return None
    return HubFile(file.owner, file.repo, remote.commit, file.path)


def _at(file: File, pin: HubFile | None) -> File:
    """A file at the commit of another, if both are of one repository."""
    if pin and isinstance(file, HubFile) and (file.owner, file.repo) == (pin.owner, pin.repo):
        return pin.sibling(file.path)
    return file


def size_of(layout: Layout, file: FileRecord) -> int | None:
    """The size that an installed file has now; ``None`` where it is gone."""
    try:
        return layout.file(file.path).stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def is_same(layout: Layout, installed: FileRecord, remote: RemoteFile, *, strictly: bool) -> bool:
    """Whether an installed file surely has the bytes that the server has now.

    ``strictly`` also wants it untouched since its digest was last found right.
    """
    if not size_of(layout, installed) == installed.size == remote.size:
        return False
    if strictly and layout.file(installed.path).stat().st_mtime_ns != installed.mtime_ns:
        return False
    if remote.sha256 is not None:
        return installed.sha256 == remote.sha256
    return installed.url == remote.url and remote.etag is not None and installed.etag == remote.etag
