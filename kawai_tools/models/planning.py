"""Planning: which files a pull fetches, and what of them is already here.

A source that an installed model was pulled by is answered from the index; the network is not touched.
"""

from typing import Literal

from kawai_tools.errors import DifferentVersion, FileNotOnHub, KawaiError, NotAProjection
from kawai_tools.files import free_space
from kawai_tools.models.choosing import (
    File,
    place_of,
    says_projection,
    words_of,
)
from kawai_tools.models.layout import model_path
from kawai_tools.models.plan import Plan, PlanFile
from kawai_tools.models.records import Entry, FileRecord, Record
from kawai_tools.models.store import Store
from kawai_tools.refs import (
    HubFile,
    HubRepo,
    Source,
    is_projection_name,
    parse_source,
    quantization_of,
)
from kawai_tools.transfer.hub import Hub, RemoteFile
from kawai_tools.transfer.partials import Partial

NO_PROJECTION = "none"
PEEK = 1 << 16


class Planner:
    """Plans pulls of models."""

    def __init__(self, store: Store, hub: Hub, *, local_paths: bool) -> None:
        """``local_paths``: answer a path on this machine with what to do instead (never over HTTP)."""
        self.store = store
        self.hub = hub
        self.local_paths = local_paths

    def plan(self, source_words: str, proj_words: str | None, *, force: bool) -> Plan:
        """Plan the pull of a source.

        Raises ``InvalidRequest`` for words that make no sense, ``NotFound``, ``Conflict`` where the words
        leave a choice or something else is installed there, and what :class:`Hub` raises.
        """
        source = parse_source(source_words, self.hub.endpoint, local_paths=self.local_paths)
        projection = self._parse_projection(proj_words)
        if not force:
            entry = self._installed(source)
            if entry is not None:
                return self._plan_installed(entry, source, projection)
        weights, beside = self._choose(source)
        if projection is None and proj_words is None:
            projection = beside
        return self._plan_files(source, weights, projection, force=force)

    def _parse_projection(self, words: str | None) -> File | None:
        if words is None or words.lower() == NO_PROJECTION:
            return None
        source = parse_source(words, self.hub.endpoint, local_paths=self.local_paths)
        if isinstance(source, HubRepo):
            raise NotAProjection(
                f"{words} is a repository, not the URL of a projection", "give the file's URL"
            )
        return source

    # what is installed already

    def _installed(self, source: Source) -> Entry | None:
        """The installed model with this source whose files have the recorded sizes."""
        found = self.store.index.by_source(words_of(source))
        if isinstance(source, HubRepo) and source.quantization:
            found += [
                entry
                for entry in self.store.index.by_repository(source.owner, source.repo)
                if entry.record.url and quantization_of(entry.record.path) == source.quantization.upper()
            ]
        return next((entry for entry in found if entry.present and self._is_whole(entry)), None)

    def _is_whole(self, entry: Entry) -> bool:
        try:
            sizes = [self.store.layout.file(file.path).stat().st_size for file in entry.record.files]
        except FileNotFoundError:
            return False
        return sizes == [file.size for file in entry.record.files]

    def _plan_installed(self, entry: Entry, source: Source, projection: File | None) -> Plan:
        record = entry.record
        if projection is None or (record.projection and record.projection.url == url_of(projection)):
            return self._existing(record, source)
        remote = self._describe_projection(projection)
        kept = tuple(record.weights)
        path = place_of(projection)
        added = self._plan_file(remote, path, "projection", record)
        if added.installed is not None:
            return self._existing(record, source)
        return Plan(
            id=record.id,
            path=record.path,
            words=(words_of(source),),
            files=(added,),
            free=free_space(self.store.layout.store),
            force=False,
            before=record,
            kept=kept,
        )

    def _existing(self, record: Record, source: Source) -> Plan:
        return Plan(
            id=record.id,
            path=record.path,
            words=(words_of(source),),
            files=(),
            free=free_space(self.store.layout.store),
            force=False,
            before=record,
            exists=True,
            kept=tuple(record.files),
        )

    # what a source names

    def _choose(self, source: Source) -> tuple[list[File], File | None]:
        """The weights that a source means, in order, and the projection that belongs to them."""
        if isinstance(source, HubRepo):
            return self._choose_in(source)
        name = source.path if isinstance(source, HubFile) else source.file_name
        return [source.sibling(each) for each in shard_of(name).names()] if _is_split(name) else [
            source
        ], None

    def _choose_in(self, repo: HubRepo) -> tuple[list[File], File | None]:
        listed = [each for each in self.hub.files(repo) if _is_gguf(each)]
        models: dict[str, list[str]] = {}
        for each in listed:
            if not is_projection_name(each.path):
                models.setdefault(shard_of(each.path).stem, []).append(each.path)
        if not models:
            raise FileNotOnHub(
                f"the repository {repo.owner}/{repo.repo} has no GGUF files",
                "look for one whose name ends in -GGUF",
            )
        stem = _pick(repo, list(models))
        names = shard_of(models[stem][0]).names()
        projection = _pick_projection([each for each in listed if is_projection_name(each.path)])
        return [repo.file(name) for name in names], repo.file(projection) if projection else None

    # what the hub says of it

    def _plan_files(
        self, source: Source, weights: list[File], projection: File | None, *, force: bool
    ) -> Plan:
        path = model_path(place_of(weights[0]))
        before = self.store.index.by_path(path)
        record = before.record if before else None
        remotes = self._describe(weights)
        planned = [
            self._plan_file(remote, place_of(file), "weights", record)
            for file, remote in zip(weights, remotes, strict=True)
        ]
        if before is not None and before.present and not force:
            self._refuse_other_version(before, source, planned)
        kept: tuple[FileRecord, ...] = ()
        if projection is not None:
            remote = self._describe_projection(projection)
            planned.append(self._plan_file(remote, place_of(projection), "projection", record))
        elif record is not None and record.projection is not None:
            kept = (record.projection,)
        owner, stem = place_of(weights[0]).partition("/")[0], path.rpartition("/")[2]
        return Plan(
            id=self.store.name(owner, stem, path),
            path=path,
            words=tuple(dict.fromkeys([words_of(source), words_of(weights[0])])),
            files=tuple(planned),
            free=free_space(self.store.layout.store),
            force=force,
            before=record,
            exists=bool(before and before.present) and all(file.installed for file in planned),
            kept=kept,
        )

    def _describe(self, files: list[File]) -> list[RemoteFile]:
        first, *rest = files
        try:
            described = [self.hub.describe(first)]
        except FileNotOnHub as error:
            raise self._with_offer(first, error) from None
        commit = described[0].commit
        for file in rest:
            pinned = file
            if commit and isinstance(file, HubFile):
                pinned = HubFile(file.owner, file.repo, commit, file.path)
            remote = self.hub.describe(pinned)
            described.append(RemoteFile(url_of(file), *_rest(remote)))
        return described

    def _with_offer(self, file: File, error: KawaiError) -> KawaiError:
        """Name the files that a repository has, where one was asked for that it has not."""
        if not isinstance(file, HubFile):
            return error
        listed = self.hub.files(HubRepo(file.owner, file.repo, revision=file.revision))
        names = {each.path for each in listed if _is_gguf(each)}
        from difflib import get_close_matches  # noqa: PLC0415 - only where something was mistyped

        near = get_close_matches(file.path, names, n=1, cutoff=0.4)
        hint = f"did you mean {file.sibling(near[0]).url}" if near else error.hint
        return FileNotOnHub(error.message, hint)

    def _describe_projection(self, file: File) -> RemoteFile:
        remote = self.hub.describe(file)
        name = file.path if isinstance(file, HubFile) else file.file_name
        if is_projection_name(name):
            return remote
        with self.hub.outbound.request("GET", remote.fetch, {"Range": f"bytes=0-{PEEK - 1}"}) as answer:
            buffer = memoryview(bytearray(PEEK))
            count = 0
            while count < PEEK and (more := answer.read_some(buffer[count:])):
                count += more
        if not says_projection(bytes(buffer[:count])):
            raise NotAProjection(
                f"{remote.url} is not a projection",
                "one command pulls one model; the second URL can only be its mmproj file",
            )
        return remote

    def _plan_file(
        self, remote: RemoteFile, path: str, role: Literal["weights", "projection"], record: Record | None
    ) -> PlanFile:
        installed = next((file for file in record.files if file.path == path), None) if record else None
        if installed is not None and not self._is_same(installed, remote):
            installed = None
        directory = self.store.layout.partial(model_path(path) if record is None else record.path)
        partial = Partial(directory, path.rpartition("/")[2], remote)
        return PlanFile(remote, path, role, partial, installed)

    def _is_same(self, installed: FileRecord, remote: RemoteFile) -> bool:
        """Whether an installed file surely has the bytes that the server has now."""
        try:
            size = self.store.layout.file(installed.path).stat().st_size
        except FileNotFoundError:
            return False
        if not size == installed.size == remote.size:
            return False
        if remote.sha256 is not None:
            return installed.sha256 == remote.sha256
        return installed.url == remote.url and remote.etag is not None and installed.etag == remote.etag

    def _refuse_other_version(self, before: Entry, source: Source, planned: list[PlanFile]) -> None:
        same_source = words_of(source) in before.record.sources
        if same_source or all(file.installed for file in planned):
            return
        raise DifferentVersion(
            f"{before.record.id} is installed from {before.record.url or 'a file put there by hand'}, "
            "and what is asked for differs from it",
            "--force replaces it",
        )
