"""A plan: exactly which files a pull fetches, where they go, and what of them is already here."""

from dataclasses import dataclass
from typing import Literal

from kawai_tools.models.model import PlannedFile, PlanPayload
from kawai_tools.models.records import FileRecord, Record
from kawai_tools.transfer.hub import RemoteFile
from kawai_tools.transfer.partials import Partial


@dataclass(frozen=True)
class PlanFile:
    """One file of a plan; ``installed`` is its record where it is here and need not be fetched."""

    remote: RemoteFile
    path: str
    role: Literal["weights", "projection"]
    partial: Partial
    installed: FileRecord | None

    @property
    def have(self) -> int:
        """Bytes that are here already."""
        return self.remote.size if self.installed else self.partial.have

    @property
    def needed(self) -> int:
        """Bytes of disk that are still to be claimed."""
        return 0 if self.installed else self.remote.size - self.partial.claimed


@dataclass(frozen=True)
class Plan:
    """What a pull will do.

    ``words`` are what the model will be remembered by, ``before`` is the installed model, if there is one
    at this place, and ``kept`` what stays of it without the server being asked.
    """

    id: str
    path: str
    words: tuple[str, ...]
    files: tuple[PlanFile, ...]
    free: int
    force: bool
    before: Record | None = None
    exists: bool = False
    kept: tuple[FileRecord, ...] = ()

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(file.remote.size for file in self.files) + sum(file.size for file in self.kept)

    @property
    def needed(self) -> int:
        """Bytes of disk that are still to be claimed."""
        return sum(file.needed for file in self.files)

    @property
    def model_files(self) -> list[str]:
        """The paths of the weights, in order."""
        kept = [file.path for file in self.kept if file.role == "weights"]
        return kept + [file.path for file in self.files if file.role == "weights"]

    @property
    def proj_file(self) -> str | None:
        """The path of the projection."""
        files: list[FileRecord | PlanFile] = [*self.kept, *self.files]
        return next((file.path for file in files if file.role == "projection"), None)

    @property
    def payload(self) -> PlanPayload:
        """The plan as ``dry_run`` shows it."""
        kept = [
            PlannedFile(
                url=file.url or "", path=file.path, size=file.size, sha256=file.sha256, have=file.size
            )
            for file in self.kept
        ]
        planned = [
            PlannedFile(
                url=file.remote.url,
                path=file.path,
                size=file.remote.size,
                sha256=file.remote.sha256,
                have=file.have,
            )
            for file in self.files
        ]
        return PlanPayload(
            id=self.id,
            exists=self.exists,
            files=kept + planned,
            total=self.total,
            needed=self.needed,
            free=self.free,
        )
