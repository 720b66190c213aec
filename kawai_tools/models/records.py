"""What the store keeps of a model: its provenance file, and the facts read from its header."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, overload

import msgspec

from kawai_tools.errors import UNDECODABLE, BrokenState
from kawai_tools.files import make_directory, write_atomically
from kawai_tools.gguf import Header, read_header
from kawai_tools.models.layout import Layout, model_path
from kawai_tools.models.model import ModelRow
from kawai_tools.refs import safe_path

LOCAL = "local"
"""The owner and family of a file that lies in no folder."""


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One file; ``mtime_ns`` is what it was when its digest was last found right (0: never)."""

    path: str
    size: int
    role: Literal["weights", "projection"]
    url: str | None = None
    etag: str | None = None
    sha256: str | None = None
    mtime_ns: int = 0


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The provenance file of a model: a promise that its files were whole when it was written.

    ``sources`` are the words that mean this model, so that asking again needs no network. ``protected`` is
    its user's word that pruning leaves it alone: whoever writes the record of a model that is installed
    keeps it.
    """

    id: str
    files: list[FileRecord]
    url: str | None = None
    commit: str | None = None
    sources: list[str] = []
    installed_at: datetime
    verified_at: datetime | None = None
    protected: bool = False
    format: int = 1

    @property
    def weights(self) -> list[FileRecord]:
        """The shards, in order."""
        return [file for file in self.files if file.role == "weights"]

    @property
    def projection(self) -> FileRecord | None:
        """The projection, if there is one."""
        return next((file for file in self.files if file.role == "projection"), None)

    @property
    def path(self) -> str:
        """What names the model inside the store."""
        return model_path(next(file.path for file in self.files if file.role == "weights"))

    @property
    def owner(self) -> str:
        """The first folder, or ``local``."""
        return owner_and_stem(self.path)[0]

    @property
    def family(self) -> str:
        """The second folder; the first where there is but one; ``local`` where there is none."""
        folders = self.path.split("/")[:-1]
        return [LOCAL, *folders][min(len(folders), 2)]

    @property
    def stem(self) -> str:
        """The file name without shard and suffix."""
        return owner_and_stem(self.path)[1]


_RECORD = msgspec.json.Decoder(
    Record
)  # made as the module is: msgspec is not safe where threads are first to use a type


def owner_and_stem(path: str) -> tuple[str, str]:
    """What ids are made of: the first folder of a model's path (``local`` if none), and its last part."""
    owner, slash, _ = path.partition("/")
    return owner if slash else LOCAL, path.rpartition("/")[2]


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the header of a model's first shard says, as far as a list shows it."""

    quantization: str | None
    context_length: int | None
    architecture: str | None

    @classmethod
    def of(cls, header: Header) -> "Facts":
        """Take the facts from a header."""
        return cls(
            quantization=header.quantization,
            context_length=header.context_length,
            architecture=header.architecture,
        )


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A model as the index holds it; ``present`` is false while its files are gone."""

    record: Record
    facts: Facts
    stamps: list[int]
    present: bool = True

    def row(self, last_used: datetime | None) -> ModelRow:
        """The model as a list shows it."""
        record = self.record
        return ModelRow(
            id=record.id,
            created=int(record.installed_at.timestamp()),
            owned_by=record.owner,
            model_family=record.family,
            size=sum(file.size for file in record.files),
            modified=record.installed_at,
            validated=self.validated,
            quantization=self.facts.quantization,
            context_length=self.facts.context_length,
            architecture=self.facts.architecture,
            projection=record.projection is not None,
            shards=len(record.weights),
            last_used=last_used,
            protected=record.protected,
        )

    @property
    def validated(self) -> bool:
        """Whether the last full hash matched, and no file was touched since."""
        record = self.record
        return record.verified_at is not None and all(
            file.mtime_ns == stamp for file, stamp in zip(record.files, self.stamps[1:], strict=True)
        )


def last_used(lock: Path) -> datetime | None:
    """When the model with this lock file was last used; ``None`` for never."""
    try:
        return moment_of(lock.stat())
    except OSError:
        return None


def moment_of(lock: os.stat_result) -> datetime | None:
    """When a model was last used, by its lock file."""
    return datetime.fromtimestamp(int(lock.st_mtime), UTC) if lock.st_mtime else None


def now() -> datetime:
    """The present second, as state files and payloads have it."""
    return datetime.now(UTC).replace(microsecond=0)


def decode_record(data: bytes, where: object) -> Record:
    """Read a provenance file. Raises ``BrokenState``."""
    try:
        record = _RECORD.decode(data)
    except UNDECODABLE as error:
        raise BrokenState(f"{where} cannot be read: {error}", "kawai models index writes it anew") from error
    record = msgspec.structs.replace(
        record, installed_at=_utc(record.installed_at), verified_at=_utc(record.verified_at)
    )
    if not record.weights or not all(safe_path(file.path) for file in record.files):
        raise BrokenState(f"{where} names no files of a store", "kawai models index writes it anew")
    return record


@overload
def _utc(time: datetime) -> datetime: ...
@overload
def _utc(time: datetime | None) -> datetime | None: ...
def _utc(time: datetime | None) -> datetime | None:
    """A time in UTC, also one that somebody wrote without a zone."""
    if time is None:
        return None
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def write_record(layout: Layout, record: Record) -> None:
    """Write a provenance file, durably."""
    where = layout.provenance(record.path)
    make_directory(where.parent)
    write_atomically(where, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def stamps_of(layout: Layout, record: Record) -> list[int]:
    """The stamp of the provenance and the mtimes of the files. Raises ``FileNotFoundError``."""
    files = [layout.file(file.path).stat().st_mtime_ns for file in record.files]
    return [record_stamp(layout.provenance(record.path).stat()), *files]


def record_stamp(stat: os.stat_result) -> int:
    """What tells one version of a provenance file from the next, also within one tick of the clock."""
    return stat.st_mtime_ns ^ stat.st_ino


def entry_of(layout: Layout, record: Record) -> Entry:
    """Read the header of an installed model. Raises ``MalformedGguf`` or ``FileNotFoundError``."""
    header = read_header(layout.file(record.weights[0].path))
    return Entry(record=record, facts=Facts.of(header), stamps=stamps_of(layout, record))
