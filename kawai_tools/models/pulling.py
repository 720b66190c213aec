"""Carries out a plan: reserves the disk, fetches, checks and installs."""

import contextlib
import errno
import functools
import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec

from kawai_tools.errors import Conflict, IncompleteModel, KawaiError, ModelNotFound, NoSpace, NotAModel
from kawai_tools.events import ModelPullEvent, Progress, Status
from kawai_tools.files import free_space, storage_errors
from kawai_tools.gguf import Header, read_header_fd, sniff
from kawai_tools.models.choosing import says_projection
from kawai_tools.models.claims import Claim, in_use, release_use, write_claim
from kawai_tools.models.plan import Plan, PlanFile
from kawai_tools.models.planning import is_same
from kawai_tools.models.records import Facts, FileRecord, Record, now
from kawai_tools.models.store import Store
from kawai_tools.transfer.fetching import Fetcher, Pace, Wanted, claim_space
from kawai_tools.transfer.hub import Hub
from kawai_tools.transfer.partials import Partial
from kawai_tools.transfer.pulls import Job, Pull

_AGAIN = "run the same command again"
_TICK = 0.05


class Puller:
    """Carries out plans of models."""

    def __init__(self, store: Store, hub: Hub, pace: Pace) -> None:
        """``pace`` applies where a pull says nothing else."""
        self.store = store
        self.hub = hub
        self.pace = pace

    def job(self, plan: Plan, *, connections: int | None, limit_rate: int | None) -> Job:
        """The work of a plan. Raises ``NoSpace``, ``HomeNotWritable`` or ``StoreMissing`` beforehand."""
        if not plan.exists:
            self.store.prepare()
            require_space(self.store, plan)
        carry = Carry(self.store, self.hub, plan, self.pace_of(connections, limit_rate))
        return Job(
            kind="model",
            target=plan.id,
            same=(plan.path, plan.force, plan.proj_file, tuple(file.remote for file in plan.files)),
            lock=None if plan.exists else self.store.layout.pull_lock(plan.path),
            work=carry.work,
            render=carry.render,
        )

    def pace_of(self, connections: int | None, limit_rate: int | None) -> Pace:
        """The pace of one pull: what it says, else what is set."""
        return Pace(connections or self.pace.connections, limit_rate or self.pace.limit_rate)


def require_space(store: Store, plan: Plan) -> None:
    """Raise ``NoSpace`` where the disk would not hold what is still to come."""
    free = free_space(store.layout.store)
    if plan.needed > free:
        raise NoSpace(
            f"{plan.id} needs {plan.needed:,} more bytes of disk, and {store.layout.store} has {free:,} free",
            "make room (kawai prune), or keep models on another disk (--home, KAWAI_HOME)",
        )


class Carry:
    """One plan being carried out."""

    def __init__(self, store: Store, hub: Hub, plan: Plan, pace: Pace) -> None:
        """Nothing is done yet."""
        self.store, self.hub, self.plan, self.pace = store, hub, plan, pace
        self._facts: dict[str, Facts] = {}

    def render(self, progress: Progress, pull: str, seq: int) -> ModelPullEvent:
        """Show where a pull stands, as the event of a model."""
        plan = self.plan
        done = progress.status in {Status.DOWNLOADED, Status.EXISTS}
        return ModelPullEvent(
            status=progress.status,
            id=plan.id,
            file=progress.file,
            completed=plan.total if done else progress.completed,
            total=plan.total,
            file_completed=progress.file_completed,
            file_total=progress.file_total,
            rate=progress.rate,
            eta=progress.eta,
            model_files=plan.model_files,
            proj_file=plan.proj_file,
            downloaded=done,
            error=progress.error,
            pull=pull,
            seq=seq,
        )

    def work(self, pull: Pull) -> Status:
        """Do it, telling the progress; the pull's lock is held, so what is here is looked at once more."""
        if self.plan.exists:
            self._remember_words()
            return Status.EXISTS
        lock = self.store.use_lock(self.plan.path)
        if not lock.acquire():
            raise in_use(self.plan.id)
        try:
            self.store.finish(self.plan.path)
            return Status.EXISTS if self._is_done_meanwhile() else self.fetch_and_install(pull)
        except FileNotFoundError as error:
            # only where locks do nothing: somebody else has installed it, and cleared what we were fetching
            if self._is_done_meanwhile():
                return Status.EXISTS
            raise Conflict(f"{error.filename} was removed in the meantime", _AGAIN) from error
        finally:
            release_use(self.store.layout, self.plan.path, lock)

    def _remember_words(self) -> None:
        """Note that these words mean this model, so that the next time needs no network."""
        record = self.plan.before
        words = [each for each in self.plan.words if record is not None and each not in record.sources]
        if record is not None and words and record.url is not None:
            sources = [*record.sources, *words]

            def change(known: Record) -> Record:
                return msgspec.structs.replace(known, sources=sources) if known == record else known

            with contextlib.suppress(ModelNotFound):  # removed since the plan was made
                self.store.amend(record.path, change)

    def _is_done_meanwhile(self) -> bool:
        """Whether another process has just installed what is asked for."""
        entry = self.store.index.by_path(self.plan.path)
        there = {file.path: file for file in entry.record.files} if entry and entry.present else {}
        gone = [file.path for file in self.plan.kept if file.path not in there]
        if gone:
            raise Conflict(f"{', '.join(gone)} was removed in the meantime", _AGAIN)
        return entry is not None and all(
            file.path in there
            and is_same(self.store.layout, there[file.path], file.remote, strictly=self.plan.force)
            for file in self.plan.files
        )

    def fetch_and_install(self, pull: Pull) -> Status:
        """Fetch beside what is here, then give it the names; the pull's lock is held."""
        directory = write_claim(self.store.layout, Claim(self.plan.id, self.plan.path))
        files = [self._as_it_is_now(file, directory) for file in self.plan.files]
        here = sum(file.size for file in self.plan.kept)
        here += sum(file.remote.size for file in files if file.installed)
        fetcher = Fetcher(self.hub.outbound, pull, self.pace, total=self.plan.total, done=here)
        try:
            claim_space(file.partial for file in files if not file.installed)
            records = [file.installed or self._fetch(fetcher, file) for file in files]
            fetcher.tell(Status.INSTALLING)
            record = self._record(records)
            with self._renaming(record, pull, fetcher):
                sources, facts = _sources(files), self._facts.get(record.files[0].path)
                entry = self.store.install(self._as_others_left_it(record, sources), sources, facts)
            self.plan = replace(self.plan, id=entry.record.id)
        finally:
            for file in files:
                file.partial.close()
        return Status.DOWNLOADED

    def _as_others_left_it(self, record: Record, fetched: Collection[str]) -> Record:
        """The record with what is known now of files that were not fetched: others may have replaced them."""
        owner, repo, *_ = self.plan.path.split("/")
        beside = self.store.index.by_repository(owner, repo)
        now = {file.path: file for entry in beside for file in entry.record.files}
        files = [
            file if file.path in fetched else msgspec.structs.replace(now.get(file.path, file), url=file.url)
            for file in record.files
        ]
        return msgspec.structs.replace(record, files=files)

    @contextlib.contextmanager
    def _renaming(self, record: Record, pull: Pull, fetcher: Fetcher) -> Iterator[None]:
        """Wait until nobody has the files still to open that get newer content under their names."""
        renaming = self.store.renaming(record)
        if not renaming.acquire():
            fetcher.tell(Status.WAITING)
            while not renaming.acquire():
                pull.pause(_TICK)
            fetcher.tell(Status.INSTALLING)
        try:
            yield
        finally:
            renaming.release()

    def _as_it_is_now(self, file: PlanFile, directory: Path) -> PlanFile:
        """What others have fetched or removed since the plan was made counts."""
        known, force = file.installed, self.plan.force
        if known is not None and is_same(self.store.layout, known, file.remote, strictly=force):
            return file
        partial = Partial(directory, Path(file.path).name, file.remote)
        return replace(file, partial=partial, installed=None)

    def _fetch(self, fetcher: Fetcher, file: PlanFile) -> FileRecord:
        remote = file.remote
        refuse = functools.partial(self.hub.refusal_of, remote)
        digest = fetcher.fetch(
            Wanted(remote, file.path, file.partial, lambda head: check_head(head, file), refuse)
        )
        self._check_header(file)
        return FileRecord(
            path=file.path, size=remote.size, role=file.role, url=remote.url, etag=remote.etag, sha256=digest
        )

    def _check_header(self, file: PlanFile) -> None:
        """Refuse a file that is no sound GGUF, or not of the kind that was asked for."""
        fd = file.partial.fd
        try:
            with storage_errors(file.partial.path):
                header = read_header_fd(fd, os.fstat(fd).st_size)
            if header.is_projection != (file.role == "projection"):
                raise _wrong_kind(file)
            self._check_shard(file, header)
            self._facts[file.path] = Facts.of(header)
        except KawaiError:
            file.partial.discard()
            raise

    def _check_shard(self, file: PlanFile, header: Header) -> None:
        count = header.split_count or 1
        if file.role == "weights" and count != len(self.plan.model_files):
            raise IncompleteModel(
                f"{file.remote.url} is one of {count} shards, and its name does not say where the others are",
                "give the URL of a shard that is named like MODEL-00001-of-00003.gguf",
            )

    def _record(self, files: list[FileRecord]) -> Record:
        plan, before = self.plan, self.plan.before
        ordered = sorted([*files, *plan.kept], key=lambda file: (file.role == "projection", file.path))
        first = next((file for file in plan.files if file.role == "weights"), None)
        earlier = before.sources if before is not None and not plan.force else []
        return Record(
            id=self.store.name(plan.path),
            files=ordered,
            url=ordered[0].url if first else (before.url if before else None),
            commit=first.remote.commit if first else (before.commit if before else None),
            sources=list(dict.fromkeys([*earlier, *plan.words])),
            installed_at=now(),
            verified_at=now() if all(file.sha256 for file in ordered) else None,
        )


def _sources(files: list[PlanFile]) -> dict[str, str]:
    """The names that fetched files have in the partial directory, by their paths in the store."""
    fetched = [file for file in files if not file.installed]
    for file in fetched:
        if not file.partial.is_intact:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(file.partial.path))
    return {file.path: file.partial.path.name for file in fetched}


def check_head(head: bytes, file: PlanFile) -> None:
    """Refuse a download by its first bytes: not GGUF at all, or a projection where a model is wanted."""
    try:
        sniff(head)
    except KawaiError as error:
        error.hint = error.hint or f"{file.remote.url} does not lead to a GGUF file"
        raise
    if file.role == "weights" and says_projection(head):
        raise _wrong_kind(file)


def _wrong_kind(file: PlanFile) -> NotAModel:
    if file.role == "weights":
        return NotAModel(
            f"{file.remote.url} is a projection, not a model", "pull the model, and name this one with --proj"
        )
    return NotAModel(f"{file.remote.url} is a model, not a projection")
