"""Planning: which version and which of its assets a pull fetches, for which machine, and why.

The release server is always asked (conditionally, so that an unchanged answer costs nothing).
"""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from kawai_tools.errors import (
    BuildNotFound,
    InvalidRequest,
    KawaiError,
    NoDigest,
    UnsupportedPlatform,
    VersionNotFound,
)
from kawai_tools.files import free_space
from kawai_tools.libs.builds import Choice, Wish, builds_in, choose
from kawai_tools.libs.bundle import Available, BundleRecord, OfferedAsset, OfferedBuild
from kawai_tools.libs.bundles import Bundles
from kawai_tools.libs.newest import pick
from kawai_tools.libs.plan import LibsPlan
from kawai_tools.libs.platforms import Machine
from kawai_tools.libs.release import Asset, Channel, Release
from kawai_tools.libs.releases import Releases
from kawai_tools.transfer.asking import BUDGET
from kawai_tools.transfer.hub import RemoteFile
from kawai_tools.transfer.partials import Partial

_FEW = 5


@dataclass(frozen=True)
class LibsWish:
    """What is asked for; ``version`` of ``None`` is the newest of the channel."""

    version: str | None
    channel: Channel
    machine: Wish
    activate: bool = True
    force: bool = False
    allow_unverified: bool = False


class LibsPlanner:
    """Plans pulls of builds, and tells what is on offer."""

    def __init__(self, bundles: Bundles, releases: Releases, machine: Machine) -> None:
        """``machine`` is the one that builds are chosen for where a wish says nothing else."""
        self._bundles = bundles
        self._releases = releases
        self._machine = machine

    def plan(self, wish: LibsWish) -> LibsPlan:
        """Plan a pull. Raises ``NotFound``, ``NoDigest``, ``InvalidRequest`` or a kind of ``Upstream``."""
        releases = self._releases.within(BUDGET)
        release, choice = self._choose(releases, wish)
        self._check_activation(wish, choice)
        assets = choice.build.assets if choice.build else ()
        self._check_digests(assets, wish)
        for asset in assets:
            releases.check_way_to(asset)
        layout, platform = self._bundles.layout, f"{choice.os}-{choice.arch}-{choice.processor}"
        directory = layout.partial(platform, release.tag)
        return LibsPlan(
            version=release.tag,
            choice=choice,
            channel=None if wish.version else wish.channel,
            latest=release.tag if wish.version is None else None,
            files=tuple(Partial(directory, asset.name, _remote(asset)) for asset in assets),
            installed=None if wish.force else self._installed(release.tag, choice, assets),
            activate=wish.activate,
            force=wish.force,
            free=free_space(layout.root),
            made_at=datetime.now(UTC),
        )

    def _choose(self, releases: Releases, wish: LibsWish) -> tuple[Release, Choice]:
        if wish.version is not None:
            release = self._tagged(releases, wish.version)
            return release, choose(builds_in(release.assets), self._machine, wish.machine)
        if wish.channel is Channel.STABLE:
            release = releases.stable()
            return release, choose(builds_in(release.assets), self._machine, wish.machine)
        return pick(releases.newest(), self._machine, wish.machine)

    @staticmethod
    def _tagged(releases: Releases, version: str) -> Release:
        """One version. Raises ``VersionNotFound`` naming those there are."""
        try:
            return releases.tagged(version)
        except VersionNotFound as error:
            with contextlib.suppress(KawaiError):
                newest = [release.tag for release in next(releases.newest(), [])[:_FEW]]
                error.hint = f"the newest are {', '.join(newest)}" if newest else error.hint
            raise

    def _check_activation(self, wish: LibsWish, choice: Choice) -> None:
        here = (choice.arch, choice.os) == (self._machine.arch, self._machine.os)
        if wish.activate and not here:
            raise InvalidRequest(
                f"a build for {choice} cannot be used on {self._machine.name}",
                "add --no-activate to fetch it all the same",
            )
        if wish.activate and self._machine.os is None:
            raise UnsupportedPlatform(f"kawai runs no llama.cpp on {self._machine.name}")

    @staticmethod
    def _check_digests(assets: Iterable[Asset], wish: LibsWish) -> None:
        bare = [asset.name for asset in assets if asset.sha256 is None]
        if bare and not wish.allow_unverified:
            raise NoDigest(
                f"the release server gives no digest for {', '.join(bare)}",
                "--allow-unverified runs it without knowing whether it is what llama.cpp published",
            )

    def _installed(self, version: str, choice: Choice, assets: Iterable[Asset]) -> BundleRecord | None:
        """That very build, if it is here: made of the same archives."""
        digests = {asset.sha256 for asset in assets}
        for record in self._bundles.all():
            same = (record.version, record.os, record.arch, record.processor) == (
                version,
                choice.os,
                choice.arch,
                choice.processor,
            )
            if same and (None in digests or digests == {asset.sha256 for asset in record.assets}):
                return record
        return None

    # what is on offer

    def available(self, version: str | None, channel: Channel, machine: Wish) -> Available:
        """Every build that a version offers. Raises ``VersionNotFound`` or a kind of ``Upstream``."""
        releases = self._releases.within(BUDGET)
        wish = LibsWish(version=version, channel=channel, machine=machine)
        release = self._tagged(releases, version) if version is not None else self._choose(releases, wish)[0]
        builds = builds_in(release.assets)
        try:
            chosen = choose(builds, self._machine, machine).build
        except BuildNotFound:
            chosen = None
        offered = [
            OfferedBuild(
                arch=build.arch,
                os=build.os,
                processor=build.processor,
                variant=build.variant,
                assets=[OfferedAsset(asset.name, asset.size) for asset in build.assets],
                chosen=build == chosen,
            )
            for build in builds
        ]
        return Available(version=release.tag, builds=offered)

    def newest(self, channel: Channel, wish: Wish, seconds: float) -> tuple[Release, Choice]:
        """The newest build for a machine, asked for within some seconds. Raises as :meth:`plan` does."""
        wanted = LibsWish(version=None, channel=channel, machine=wish)
        return self._choose(self._releases.within(seconds), wanted)


def _remote(asset: Asset) -> RemoteFile:
    return RemoteFile(asset.url, asset.url, asset.size, asset.sha256, None, None)
