"""A plan: which archives a pull of a build fetches, and what of them is already here."""

from dataclasses import dataclass
from datetime import datetime

from kawai_tools.libs.builds import Choice
from kawai_tools.libs.bundle import BundleRecord, LibsPlanPayload, PlannedAsset
from kawai_tools.libs.release import Channel
from kawai_tools.transfer.partials import Partial


@dataclass(frozen=True)
class LibsPlan:
    """What a pull will do. ``installed`` is that very build where it is here already."""

    version: str
    choice: Choice
    channel: Channel | None
    latest: str | None
    files: tuple[Partial, ...]
    installed: BundleRecord | None
    activate: bool
    force: bool
    free: int
    made_at: datetime

    @property
    def platform(self) -> str:
        """The folder of builds of this kind."""
        return f"{self.choice.os}-{self.choice.arch}-{self.choice.processor}"

    @property
    def exists(self) -> bool:
        """Whether nothing needs to be fetched."""
        return self.installed is not None

    @property
    def total(self) -> int:
        """Bytes of all archives."""
        return sum(partial.file.size for partial in self.files)

    @property
    def needed(self) -> int:
        """Bytes of disk that archives still claim; what they unpack to comes on top."""
        return 0 if self.exists else sum(partial.file.size - partial.claimed for partial in self.files)

    @property
    def payload(self) -> LibsPlanPayload:
        """The plan as ``dry_run`` shows it."""
        files = [
            PlannedAsset(
                url=partial.file.url,
                path=partial.name,
                size=partial.file.size,
                sha256=partial.file.sha256,
                have=partial.file.size if self.exists else partial.have,
            )
            for partial in self.files
        ]
        return LibsPlanPayload(
            id=self.version,
            exists=self.exists,
            files=files,
            total=self.total,
            needed=self.needed,
            free=self.free,
        )
