"""What is adopted as one model, and how it compares with what is installed already."""

from dataclasses import dataclass
from typing import Literal

from kawai_tools.errors import Conflict, DifferentVersion
from kawai_tools.models.candidates import Candidate
from kawai_tools.models.layout import Layout, model_path
from kawai_tools.models.records import Entry, FileRecord
from kawai_tools.models.store import Store
from kawai_tools.models.taking import Mode

_OTHER_NAME = "--id NAME takes it in under another name"


@dataclass(frozen=True)
class Piece:
    """One file of an adoption, and where it goes, relative to the store."""

    file: Candidate
    path: str
    role: Literal["weights", "projection"]

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return self.file.version.size


@dataclass(frozen=True)
class Adoption:
    """What is adopted as one model: shards in order, then the projection.

    ``wanted`` is the id that was asked for, ``twin`` the installed model that has these very files.
    """

    pieces: tuple[Piece, ...]
    mode: Mode
    wanted: str | None = None
    twin: Entry | None = None

    @property
    def path(self) -> str:
        """What names the model in the store."""
        return model_path(self.pieces[0].path)

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(piece.size for piece in self.pieces)

    @property
    def weights(self) -> list[str]:
        """Where the shards go, in order."""
        return [piece.path for piece in self.pieces if piece.role == "weights"]

    @property
    def projection(self) -> str | None:
        """Where the projection goes, if there is one."""
        return next((piece.path for piece in self.pieces if piece.role == "projection"), None)

    def alike(self, entry: Entry) -> list[tuple[FileRecord, Piece]]:
        """Which files of an installed model could be these, by their sizes; none where it is surely another.

        A projection that was not asked for makes no difference.
        """
        record = entry.record
        files = [*record.weights, *([record.projection] if record.projection and self.projection else [])]
        same = [(file.role, file.size) for file in files] == [(each.role, each.size) for each in self.pieces]
        return list(zip(files, self.pieces, strict=True)) if same and entry.present else []

    def shares_files(self, layout: Layout, entry: Entry) -> bool:
        """Whether an installed model has these very files, by whatever names."""
        pairs = self.alike(entry)
        return bool(pairs) and all(_is_same_file(layout, file, piece) for file, piece in pairs)

    def matches(self, entry: Entry, digests: dict[str, str]) -> bool:
        """Whether an installed model has the same bytes; ``digests`` are those of the pieces, by paths."""
        pairs = self.alike(entry)
        return bool(pairs) and all(file.sha256 == digests[piece.path] for file, piece in pairs)

    def refuse_taken(self, store: Store, digests: dict[str, str]) -> None:
        """Refuse to replace something else, or to take its id. Raises ``Conflict`` or ``DifferentVersion``.

        Without digests, what could be the same is let pass: a hash will tell.
        """
        other = store.index.by_id(self.wanted) if self.wanted else None
        if other is not None and other.record.path != self.path and (digests or not self.alike(other)):
            raise Conflict(f"another model has the id {other.record.id}", "choose another --id")
        there = store.index.by_path(self.path)
        if there is not None and there.present and (digests or not self.alike(there)):
            raise DifferentVersion(
                f"{there.record.id} is installed as {self.path}, and what is to be adopted differs from it",
                f"{_OTHER_NAME}; kawai models rm {there.record.id} removes what is there",
            )
        found = [piece.path for piece in self.pieces if store.layout.file(piece.path).exists()]
        if there is None and found:
            raise Conflict(
                f"{found[0]} lies in the store already, and belongs to no model",
                f"kawai models index may make one of it; {_OTHER_NAME}",
            )


def _is_same_file(layout: Layout, file: FileRecord, piece: Piece) -> bool:
    try:
        status = layout.file(file.path).stat()
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == piece.file.identity
