"""Carries out a plan: fetch, verify, unpack, probe, install, activate."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

from kawai_tools.errors import BrokenArchive, Conflict, KawaiError, NoSpace
from kawai_tools.events import LibsPullEvent, Progress, Status
from kawai_tools.files import free_space, make_directory
from kawai_tools.libs.archives import unpack
from kawai_tools.libs.bundle import AssetRecord, BundleRecord, Pointer, Probe
from kawai_tools.libs.bundles import Bundles, failed
from kawai_tools.libs.plan import LibsPlan
from kawai_tools.libs.platforms import Machine
from kawai_tools.libs.probing import probe
from kawai_tools.libs.staging import clear, staging
from kawai_tools.refs import PlainUrl
from kawai_tools.transfer.fetching import Fetcher, Pace, Wanted, claim_space
from kawai_tools.transfer.hub import refusal
from kawai_tools.transfer.outbound import Outbound
from kawai_tools.transfer.partials import Partial
from kawai_tools.transfer.pulls import Job, Pull
from kawai_tools.transfer.responses import Response

_MAGICS = (b"\x1f\x8b", b"PK")
_UNPACKED = 3
"""Times its archive that a build takes at most, as far as one can tell before unpacking it."""


class LibsPuller:
    """Carries out plans of builds."""

    def __init__(self, bundles: Bundles, outbound: Outbound, machine: Machine, pace: Pace) -> None:
        """``pace`` applies where a pull says nothing else."""
        self._bundles = bundles
        self._outbound = outbound
        self._machine = machine
        self._pace = pace

    def job(self, plan: LibsPlan, *, connections: int | None, limit_rate: int | None) -> Job:
        """The work of a plan. Raises ``NoSpace`` before anything is fetched."""
        layout = self._bundles.layout
        if not plan.exists:
            _require_space(plan, layout.root)
        pace = Pace(connections or self._pace.connections, limit_rate or self._pace.limit_rate)
        carry = _Carry(self._bundles, self._outbound, self._machine, plan, pace)
        return Job(
            kind="libs",
            target=f"{plan.version} ({plan.choice})",
            same=(plan.version, plan.platform, plan.force, plan.activate),
            lock=layout.pull_lock(plan.platform, plan.version),
            work=carry.work,
            render=carry.render,
        )


def _require_space(plan: LibsPlan, root: Path) -> None:
    free, needed = free_space(root), plan.needed + _UNPACKED * plan.total
    if needed > free:
        raise NoSpace(
            f"{plan.version} needs some {needed:,} bytes of disk to unpack, and {root} has {free:,} free",
            "make room (kawai prune), or keep kawai's home on another disk (--home, KAWAI_HOME)",
        )


class _Carry:
    """One plan being carried out."""

    def __init__(
        self, bundles: Bundles, outbound: Outbound, machine: Machine, plan: LibsPlan, pace: Pace
    ) -> None:
        self.bundles, self.outbound, self.machine = bundles, outbound, machine
        self.plan, self.pace = plan, pace

    def render(self, progress: Progress, pull: str, seq: int) -> LibsPullEvent:
        """Show where a pull stands, as the event of a build."""
        plan, current = self.plan, self.bundles.current()
        done = progress.status in {Status.DOWNLOADED, Status.EXISTS}
        return LibsPullEvent(
            status=progress.status,
            arch=plan.choice.arch,
            os=plan.choice.os,
            processor=plan.choice.processor,
            reason=plan.choice.reason,
            version=plan.version,
            channel=plan.channel,
            latest=plan.latest,
            current=current.version if current else None,
            file=progress.file,
            completed=plan.total if done else progress.completed,
            total=plan.total,
            rate=progress.rate,
            eta=progress.eta,
            error=progress.error,
            pull=pull,
            seq=seq,
        )

    def work(self, pull: Pull) -> Status:
        """Do it, telling the progress; the pull's lock is held, so what is here is looked at once more."""
        here = self._here()
        if here is not None:
            return self._use_what_is_here(here, pull)
        try:
            return self._fetch_and_install(pull)
        except FileNotFoundError as error:
            # only where locks do nothing: somebody else has installed it, and cleared what we were fetching
            if (here := self._here()) is not None:
                return self._use_what_is_here(here, pull)
            raise Conflict(
                f"{error.filename} was removed in the meantime", "run the same command again"
            ) from error

    def _use_what_is_here(self, here: BundleRecord, pull: Pull) -> Status:
        if self.plan.activate:
            self.bundles.use(here, pull.pause)
        clear(self._directory())  # what a kill between install and its end has left
        return Status.EXISTS

    def _directory(self) -> Path:
        return self.bundles.layout.partial(self.plan.platform, self.plan.version)

    def _fetch_and_install(self, pull: Pull) -> Status:
        directory = make_directory(self._directory())
        fetcher = Fetcher(self.outbound, pull, self.pace, total=self.plan.total)
        partials = [Partial(directory, each.name, each.file) for each in self.plan.files]
        try:
            claim_space(partials)
            digests = [self._fetch(fetcher, partial) for partial in partials]
            self._install(pull, fetcher, partials, digests)
        finally:
            for partial in partials:
                partial.close()
        return Status.DOWNLOADED

    def _here(self) -> BundleRecord | None:
        """The build, if it is here by now; with force only one that was installed since the plan was made."""
        plan = self.plan
        record = self.bundles.at(Pointer(plan.platform, plan.version))
        if record is None or (plan.force and record.installed_at < plan.made_at):
            return None
        wanted = {partial.file.sha256 for partial in plan.files}
        return record if wanted <= {None, *(asset.sha256 for asset in record.assets)} else None

    def _fetch(self, fetcher: Fetcher, partial: Partial) -> str:
        def refuse(answer: Response) -> KawaiError:
            return refusal(answer, PlainUrl(partial.file.url), has_token=False)

        return fetcher.fetch(Wanted(partial.file, partial.name, partial, _check_start, refuse))

    def _install(self, pull: Pull, fetcher: Fetcher, partials: list[Partial], digests: list[str]) -> None:
        staged = staging(self._directory(), pull.id)
        fetcher.tell(Status.UNPACKING)
        try:
            unpack(
                [partial.path for partial in partials],
                staged,
                names=[partial.name for partial in partials],
                pause=lambda: pull.pause(0),
            )
            result = self._probe(pull, fetcher, staged)
            before = self.bundles.at(Pointer(self.plan.platform, self.plan.version))
            if result.ok is False and before is not None and before.probe.ok:
                raise failed(self.plan.version, result)  # one that works is not replaced by one that does not
            fetcher.tell(Status.INSTALLING)
            size = sum(each.lstat().st_size for each in staged.iterdir())
            record = self._record(partials, digests, size, result)
            if self._here() is None:  # else a rival was quicker, where locks do nothing
                self.bundles.install(record, staged)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        clear(self._directory())
        if result.ok is False:
            raise failed(self.plan.version, result)
        if self.plan.activate:
            self.bundles.use(record, pull.pause)

    def _probe(self, pull: Pull, fetcher: Fetcher, staging: Path) -> Probe:
        choice = self.plan.choice
        if (choice.arch, choice.os) != (self.machine.arch, self.machine.os):
            return Probe(ok=None, detail=f"not tried: it is for {choice}")
        fetcher.tell(Status.PROBING)
        return probe(staging, choice.processor, pull.pause)

    def _record(self, partials: list[Partial], digests: list[str], size: int, result: Probe) -> BundleRecord:
        choice = self.plan.choice
        assets = [
            AssetRecord(each.name, each.file.size, each.file.url, digest, each.file.sha256 is not None)
            for each, digest in zip(partials, digests, strict=True)
        ]
        return BundleRecord(
            version=self.plan.version,
            arch=choice.arch,
            os=choice.os,
            processor=choice.processor,
            variant=choice.build.variant if choice.build else None,
            size=size,
            installed_at=datetime.now(UTC),
            assets=assets,
            probe=result,
        )


def _check_start(head: bytes) -> None:
    if not head.startswith(_MAGICS):
        raise BrokenArchive("what comes is neither a tar.gz nor a zip archive", "is it a login page?")
