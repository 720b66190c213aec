"""Updates: what was replaced upstream is fetched beside the old files, which work until it has their names.

Whoever has a model loaded keeps what it has opened; the kernel drops that with the last who has it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec

from kawai_tools.errors import (
    Conflict,
    DifferentVersion,
    DigestMismatch,
    KawaiError,
    ModelNotFound,
    NoUpstream,
)
from kawai_tools.events import Status
from kawai_tools.failure import ErrorInfo
from kawai_tools.files import free_space
from kawai_tools.fit import Fit
from kawai_tools.models.installing import sharers
from kawai_tools.models.model import PlanPayload
from kawai_tools.models.plan import Plan, PlanFile
from kawai_tools.models.planning import size_of
from kawai_tools.models.pulling import Carry, Puller, require_space
from kawai_tools.models.records import Entry, Record
from kawai_tools.models.upstream import Comparison, Pins, Upstream, hub_files, is_from_hub
from kawai_tools.refs import HubFile
from kawai_tools.transfer.fetching import Pace
from kawai_tools.transfer.partials import Partial
from kawai_tools.transfer.pulls import Job, Pull
from kawai_tools.transfer.remote_file import RemoteFile


class UpdatePlan(PlanPayload, frozen=True, kw_only=True):
    """What an update of one model would do; ``exists``: it is as its revision names it, or not known.

    ``error`` says why that is not known, or cannot be done.
    """

    error: ErrorInfo | None


class _Once:
    """What the first that works does for all; one that fails leaves it to the next."""

    def __init__(self, work: Callable[[Callable[[], bool]], None]) -> None:
        self._work, self._done = work, False

    def __call__(self, stop: Callable[[], bool]) -> None:
        if not self._done:
            self._work(stop)
            self._done = True


class Updater:
    """Plans and carries out updates of installed models."""

    def __init__(self, puller: Puller, comparison: Comparison, pins: Pins, pace: Pace) -> None:
        """``comparison`` is asked for what is there now; ``pins`` are digests that the catalog names."""
        self._puller, self._comparison, self._pins, self._pace = puller, comparison, pins, pace
        self._store = puller.store

    def jobs(self, entries: Sequence[Entry]) -> list[Job]:
        """The work for each model, in their order; the first that works asks the hub for all of them."""
        records = [entry.record for entry in entries if is_from_hub(entry.record)]
        look = _Once(lambda stop: self._comparison.look(records, stop))
        return [self._job(entry.record, look) for entry in entries]

    def plans(self, entries: Sequence[Entry], foresee: Callable[[Plan], Fit | None]) -> list[UpdatePlan]:
        """What would be done for each, and whether it would run as ``foresee`` tells. Raises ``Offline``."""
        self._comparison.look(entry.record for entry in entries if is_from_hub(entry.record))
        return [self._planned(entry.record, foresee) for entry in entries]

    def _planned(self, record: Record, foresee: Callable[[Plan], Fit | None]) -> UpdatePlan:
        plan, error = self._standing(record), None
        try:
            plan = self._plan(record)
            require_space(self._store, plan)
        except KawaiError as problem:
            error = problem.info
        fit = None if plan.exists else foresee(plan)
        return UpdatePlan(**msgspec.structs.asdict(plan.payload) | {"fit": fit}, error=error)

    def _job(self, record: Record, look: "_Once") -> Job:
        carry = Carry(self._store, self._puller.hub, self._standing(record), self._pace)

        def work(pull: Pull) -> Status:
            self._store.carry_on(record.path, pull.pause)
            look(pull.is_cancelled)
            entry = self._store.index.by_path(record.path)
            if entry is None or not entry.present:
                raise ModelNotFound(f"{record.id} was removed in the meantime")
            carry.plan = self._plan(entry.record)
            if carry.plan.exists:
                return Status.EXISTS
            self._store.prepare()
            require_space(self._store, carry.plan)
            try:
                return carry.fetch_and_install(pull)
            except FileNotFoundError as error:
                raise Conflict(
                    f"{error.filename} was removed in the meantime", "run the same command again"
                ) from error

        return Job(
            kind="model",
            target=record.id,
            same=("update", record.path),
            lock=self._store.layout.pull_lock(record.path),
            work=work,
            render=carry.render,
        )

    def _standing(self, record: Record) -> Plan:
        """The plan that changes nothing."""
        return Plan(
            id=record.id,
            path=record.path,
            words=tuple(record.sources),
            files=(),
            free=free_space(self._store.layout.store),
            force=False,
            before=record,
            exists=True,
            kept=tuple(record.files),
        )

    def _plan(self, record: Record) -> Plan:
        """What has to be fetched. Raises ``NoUpstream``, ``DigestMismatch``, or why the hub cannot say."""
        if not is_from_hub(record):
            raise NoUpstream(
                f"{record.id} came from no hub, so nobody can say whether there is another version",
                "kawai models pull SOURCE --force replaces it",
            )
        found = self._comparison.files(record)
        if not any(each.changed for each in found):
            return self._standing(record)
        fetched = [each for each in found if self._is_to_be_fetched(each)]
        self._spare_others(record, fetched)
        files = tuple(self._plan_file(record, each) for each in fetched)
        known = {file.path for file in files}
        kept = tuple(file for file in record.files if file.path not in known)
        return replace(self._standing(record), files=files, kept=kept, exists=False)

    def _spare_others(self, record: Record, fetched: Sequence[Upstream]) -> None:
        """Refuse to replace a projection that another model has from another revision."""
        revisions = {each.source.revision for each in fetched if each.file.role == "projection"}
        if not revisions:
            return
        for other in sharers(self._store.index, record):
            for _, source in hub_files(other.record)[:1]:
                if source.revision not in revisions:
                    raise DifferentVersion(
                        f"{record.id} shares its projection with {other.record.id}, which is from "
                        f"the revision {source.revision}",
                        f"remove one of the two (kawai models rm {other.record.id}) to update the other",
                    )

    def _plan_file(self, record: Record, upstream: Upstream) -> PlanFile:
        file, source, now = upstream.file, upstream.source, upstream.now
        pinned = self._pins.get(file.url or "")
        if upstream.changed and pinned not in {None, now.sha256}:
            raise DigestMismatch(
                f"{file.url} has the digest {now.sha256} now, and {pinned} is pinned by the catalog",
                "what is installed stays; kawai catalog update may know a newer digest",
            )
        at = HubFile(source.owner, source.repo, upstream.commit or source.revision, source.path)
        remote = RemoteFile(
            url=source.url,
            fetch=self._puller.hub.endpoint + at.url_path,
            size=now.size,
            sha256=now.sha256,
            commit=upstream.commit,
            etag=None,
        )
        partial = Partial(self._store.layout.partial(record.path), file.path.rpartition("/")[2], remote)
        return PlanFile(remote, file.path, file.role, partial, None)

    def _is_to_be_fetched(self, upstream: Upstream) -> bool:
        """Also what has not changed, where it is not as it was."""
        return upstream.changed or size_of(self._store.layout, upstream.file) != upstream.file.size
