"""Carries out a plan: reserves the disk, fetches, checks and installs."""

import os
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

import msgspec

from kawai_tools.errors import KawaiError, NoSpace, NotAModel
from kawai_tools.events import ModelPullEvent, Progress, Status
from kawai_tools.files import Lock, free_space, storage_errors, write_atomically
from kawai_tools.gguf import read_header_fd, sniff
from kawai_tools.models.planning import Plan, PlanFile, says_projection
from kawai_tools.models.records import FileRecord, Record, now
from kawai_tools.models.store import Claim, Store, in_use
from kawai_tools.refs import PlainUrl
from kawai_tools.transfer.downloads import Hooks, Limiter, download
from kawai_tools.transfer.hub import Hub, refusal
from kawai_tools.transfer.outbound import Response
from kawai_tools.transfer.partials import Partial
from kawai_tools.transfer.pulls import Job, Pull

RATE_WINDOW = 5.0


class Puller:
    """Carries out plans of models."""

    def __init__(self, store: Store, hub: Hub, *, connections: int, limit_rate: int | None) -> None:
        """``connections`` and ``limit_rate`` (bytes per second) apply where a pull says nothing else."""
        self.store = store
        self.hub = hub
        self.connections = connections
        self.limit_rate = limit_rate

    def job(self, plan: Plan, *, connections: int | None, limit_rate: int | None) -> Job:
        """The work of a plan. Raises ``NoSpace`` before anything is fetched."""
        if not plan.exists:
            require_space(self.store, plan)
        carry = _Carry(
            self.store, self.hub, plan, connections or self.connections, limit_rate or self.limit_rate
        )
        return Job(
            kind="model",
            target=plan.id,
            same=(plan.path, plan.force, plan.proj_file, tuple(file.remote for file in plan.files)),
            lock=None if plan.exists else self.store.layout.partial(plan.path).with_suffix(".lock"),
            work=carry.work,
            render=carry.render,
        )


def require_space(store: Store, plan: Plan) -> None:
    """Raise ``NoSpace`` where the disk would not hold what is still to come."""
    free = free_space(store.layout.store)
    if plan.needed > free:
        raise NoSpace(
            f"{plan.id} needs {plan.needed:,} more bytes of disk, and {store.layout.store} has {free:,} free",
            "remove a model (kawai models rm), or keep models on another disk (--home, KAWAI_HOME)",
        )


class _Carry:
    """One plan being carried out."""

    def __init__(self, store: Store, hub: Hub, plan: Plan, connections: int, limit_rate: int | None) -> None:
        self.store, self.hub, self.plan = store, hub, plan
        self.connections, self.limit_rate = connections, limit_rate
        self.finished = sum(file.size for file in plan.kept)
        self.samples: deque[tuple[float, int]] = deque()
        self.status = Status.RESOLVING

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
        """Do it, telling the progress; the pull's lock is held."""
        if self.plan.exists:
            self._remember_words()
            return Status.EXISTS
        self.store.prepare()
        if self._done_meanwhile():
            return Status.EXISTS
        lock = self.store.use_lock(self.plan.path)
        if not lock.acquire():
            raise in_use(self.plan.id)
        try:
            records = self._fetch_all(pull)
            self._tell(pull, Status.INSTALLING, None, 0)
            self.store.install(self._record(records))
        finally:
            self._let_go(lock)
        return Status.DOWNLOADED

    def _let_go(self, lock: Lock) -> None:
        if self.store.layout.provenance(self.plan.path).exists():
            lock.release()
        else:
            lock.remove()

    def _done_meanwhile(self) -> bool:
        """Whether another process has just installed what is asked for."""
        if self.plan.force and self.plan.before is not None:
            return False
        entry = self.store.index.by_path(self.plan.path)
        if entry is None or not entry.present or entry.record == self.plan.before:
            return False
        there = {(file.path, file.size, file.sha256) for file in entry.record.files}
        return all(
            (file.path, file.remote.size, file.remote.sha256) in there
            or (file.remote.sha256 is None and (file.path, file.remote.size) in {each[:2] for each in there})
            for file in self.plan.files
        )

    def _remember_words(self) -> None:
        """Note that these words mean this model, so that the next time needs no network."""
        record = self.plan.before
        words = [each for each in self.plan.words if record is not None and each not in record.sources]
        if record is not None and words and record.url is not None:
            entry = self.store.index.by_path(record.path)
            if entry is not None and entry.record == record:
                self.store.record(msgspec.structs.replace(record, sources=[*record.sources, *words]))

    def _fetch_all(self, pull: Pull) -> list[FileRecord]:
        claim = Claim(self.plan.id, self.plan.path)
        directory = self.store.layout.partial(self.plan.path)
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(directory / "claim.json", msgspec.json.encode(claim))
        # others may have fetched some of it since the plan was made
        files = [
            file
            if file.installed
            else replace(file, partial=Partial(directory, Path(file.path).name, file.remote))
            for file in self.plan.files
        ]
        try:
            for file in files:
                if not file.installed and file.partial.verified is None:
                    _ = file.partial.fd  # claims the blocks of the whole plan before the first byte
            return [self._fetch(pull, file) for file in files]
        finally:
            for file in files:
                file.partial.close()

    def _fetch(self, pull: Pull, file: PlanFile) -> FileRecord:
        if file.installed is not None:
            self.finished += file.remote.size
            return file.installed
        self._tell(pull, Status.DOWNLOADING, file, file.partial.have)
        limiter = Limiter(self.limit_rate, pull.pause)
        digest = download(
            self.hub.outbound, file.remote, file.partial, self._hooks(pull, file), limiter, self.connections
        )
        self._check_header(file)
        self.finished += file.remote.size
        remote = file.remote
        return FileRecord(
            path=file.path, size=remote.size, role=file.role, url=remote.url, etag=remote.etag, sha256=digest
        )

    def _hooks(self, pull: Pull, file: PlanFile) -> Hooks:
        def refuse(answer: Response) -> KawaiError:
            source = self.plan_source(file)
            return refusal(answer, source, has_token=bool(self.hub.outbound.credentials))

        return Hooks(
            check=lambda head: check_head(head, file),
            progress=lambda done: self._tell(pull, Status.DOWNLOADING, file, done),
            hashing=lambda: self._tell(pull, Status.VERIFYING, file, file.remote.size),
            cancelled=pull.is_cancelled,
            pause=pull.pause,
            refuse=refuse,
        )

    def plan_source(self, file: PlanFile) -> PlainUrl:
        """The file's address, for messages."""
        return PlainUrl(file.remote.url)

    def _check_header(self, file: PlanFile) -> None:
        """Refuse a file that is no sound GGUF, or not of the kind that was asked for."""
        fd = file.partial.fd
        try:
            with storage_errors(file.partial.path):
                header = read_header_fd(fd, os.fstat(fd).st_size)
            if header.is_projection != (file.role == "projection"):
                raise _wrong_kind(file)
        except KawaiError:
            file.partial.discard()
            raise

    def _tell(self, pull: Pull, status: Status, file: PlanFile | None, done: int) -> None:
        completed = self.finished + done
        moment = time.monotonic()
        self.samples.append((moment, completed))
        while len(self.samples) > 2 and moment - self.samples[0][0] > RATE_WINDOW:  # noqa: PLR2004
            self.samples.popleft()
        begin, before = self.samples[0]
        rate = int((completed - before) / (moment - begin)) if moment > begin else None
        moving = status is Status.DOWNLOADING and rate is not None and rate > 0
        pull.tell(
            Progress(
                status=status,
                file=file.path if file else None,
                completed=completed,
                total=self.plan.total,
                file_completed=done if file else None,
                file_total=file.remote.size if file else None,
                rate=rate if moving else None,
                eta=(self.plan.total - completed) // rate if moving and rate else None,
            )
        )

    def _record(self, files: list[FileRecord]) -> Record:
        plan, before = self.plan, self.plan.before
        everything = [*files, *plan.kept]
        ordered = sorted(everything, key=lambda file: file.role == "projection")
        first = next((file for file in plan.files if file.role == "weights"), None)
        earlier = before.sources if before is not None and not plan.force else []
        words = dict.fromkeys([*earlier, *plan.words])
        return Record(
            id=self.store.name(*_owner_and_stem(plan.path), plan.path),
            files=ordered,
            url=first.remote.url if first else (before.url if before else None),
            commit=first.remote.commit if first else (before.commit if before else None),
            sources=list(words),
            installed_at=now(),
            verified_at=now() if all(file.sha256 for file in ordered) else None,
        )


def _owner_and_stem(path: str) -> tuple[str, str]:
    return path.partition("/")[0], path.rpartition("/")[2]


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
