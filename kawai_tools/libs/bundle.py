"""What kawai says of builds: payloads and state files, frozen. Sizes are bytes, times aware UTC datetimes."""

from datetime import datetime

import msgspec

from kawai_tools.libs.platforms import Arch, Os, Processor


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """How the probe of a build went; ``ok`` is ``None`` for one that was not tried (another machine's)."""

    ok: bool | None
    detail: str
    devices: list[str] = []
    at: datetime | None = None


class BundleRow(msgspec.Struct, frozen=True, kw_only=True):
    """One installed build."""

    version: str
    arch: Arch
    os: Os
    processor: Processor
    size: int
    installed_at: datetime
    active: bool
    probe: Probe


class Libs(msgspec.Struct, frozen=True, kw_only=True):
    """A machine and its builds; ``latest`` is ``None``, with ``latest_error``, where it is not known."""

    arch: Arch | None
    os: Os | None
    processor: Processor
    reason: str
    channel: str
    latest: str | None
    latest_error: str | None
    current: str | None
    previous: str | None
    installed: list[BundleRow]


class LibsNews(msgspec.Struct, frozen=True, kw_only=True):
    """The build that is used and the newest one; ``changed``: the newest is newer."""

    processor: Processor
    channel: str
    current: str | None
    latest: str | None
    latest_error: str | None
    changed: bool

    @classmethod
    def of(cls, libs: Libs) -> "LibsNews":
        """What of a machine and its builds is news."""
        return cls(
            processor=libs.processor,
            channel=libs.channel,
            current=libs.current,
            latest=libs.latest,
            latest_error=libs.latest_error,
            changed=_number(libs.latest) > _number(libs.current) > 0,
        )


def _number(version: str | None) -> int:
    """What orders versions (``b11434``); 0 for what is none."""
    digits = (version or "").removeprefix("b")
    return int(digits) if digits.isdecimal() else 0


class OfferedAsset(msgspec.Struct, frozen=True):
    """One file of a build on offer."""

    name: str
    size: int


class OfferedBuild(msgspec.Struct, frozen=True, kw_only=True):
    """One build on offer; ``chosen`` is the one that a pull would take here."""

    arch: Arch
    os: Os
    processor: Processor
    variant: str | None
    assets: list[OfferedAsset]
    chosen: bool


class Available(msgspec.Struct, frozen=True, kw_only=True):
    """What a version offers."""

    version: str
    builds: list[OfferedBuild]


class PlannedAsset(msgspec.Struct, frozen=True, kw_only=True):
    """One file that a pull would fetch; ``have`` bytes of it are here already."""

    url: str
    path: str
    size: int
    sha256: str | None
    have: int


class LibsPlanPayload(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``dry_run``; ``id`` is the version, ``needed`` bytes of disk are still to be claimed."""

    id: str
    exists: bool
    files: list[PlannedAsset]
    total: int
    needed: int
    free: int


class AssetRecord(msgspec.Struct, frozen=True):
    """One archive of a build; ``sha256`` is what it had, ``verified`` whether that was promised."""

    name: str
    size: int
    url: str
    sha256: str
    verified: bool


class BundleRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The state file of a build."""

    version: str
    arch: Arch
    os: Os
    processor: Processor
    variant: str | None
    size: int
    installed_at: datetime
    assets: list[AssetRecord]
    probe: Probe
    format: int = 1

    @property
    def platform(self) -> str:
        """The folder of builds of this kind."""
        return f"{self.os}-{self.arch}-{self.processor}"

    def row(self, *, active: bool) -> BundleRow:
        """The build as it is shown."""
        return BundleRow(
            version=self.version,
            arch=self.arch,
            os=self.os,
            processor=self.processor,
            size=self.size,
            installed_at=self.installed_at,
            active=active,
            probe=self.probe,
        )


class Pointer(msgspec.Struct, frozen=True):
    """Names an installed build."""

    platform: str
    version: str


class Active(msgspec.Struct, frozen=True):
    """The content of ``active.json``."""

    current: Pointer | None = None
    previous: Pointer | None = None
