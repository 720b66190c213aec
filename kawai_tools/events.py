"""Progress events: frozen, raw integers, one shape a kind of work.

Sizes are bytes, rates bytes per second, ETAs seconds. A key whose value is not known is ``None``.
``seq`` counts from 1 within one stream. Formatting is the business of whoever shows them.
"""

from datetime import datetime
from enum import StrEnum

import msgspec

from kawai_tools.errors import ErrorInfo


class Status(StrEnum):
    """Where a piece of work stands; the last seven end it."""

    RESOLVING = "resolving"
    WAITING = "waiting"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    UNPACKING = "unpacking"
    PROBING = "probing"
    INSTALLING = "installing"
    READING = "reading"
    WRITING = "writing"
    DOWNLOADED = "downloaded"
    EXISTS = "exists"
    VERIFIED = "verified"
    EXPORTED = "exported"
    IMPORTED = "imported"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL = frozenset(
    {
        Status.DOWNLOADED,
        Status.EXISTS,
        Status.VERIFIED,
        Status.EXPORTED,
        Status.IMPORTED,
        Status.FAILED,
        Status.CANCELLED,
    }
)
"""A stream of one piece of work has exactly one event with such a status: its last."""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """What a Pull knows of itself, whatever it pulls; each noun renders it as its own event."""

    status: Status
    file: str | None = None
    completed: int = 0
    total: int | None = None
    file_completed: int | None = None
    file_total: int | None = None
    rate: int | None = None
    eta: int | None = None
    error: ErrorInfo | None = None


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream may carry."""


class LogLine(Message, frozen=True, kw_only=True):
    """One line of a log: ``source`` is who says it, ``level`` one of debug, info, warning and error."""

    time: datetime
    level: str
    source: str
    message: str


class Event(Message, frozen=True, kw_only=True):
    """What every event has, whatever the work."""

    status: Status


class Again(msgspec.Struct, frozen=True):
    """How a Pull is asked for again over HTTP: a ``POST`` of this body to this path."""

    path: str
    body: dict[str, str | int | float | bool | None]


class PullEvent(Event, frozen=True, kw_only=True):
    """One step of any Pull: ``pull`` is the Pull's id, ``seq`` the event's number in its log."""

    file: str | None
    completed: int
    total: int | None
    rate: int | None
    eta: int | None
    error: ErrorInfo | None
    pull: str
    seq: int


class ModelPullEvent(PullEvent, frozen=True, kw_only=True):
    """One step of the pull of a model; paths are relative to the store."""

    id: str
    file_completed: int | None
    file_total: int | None
    model_files: list[str]
    proj_file: str | None
    downloaded: bool


class LibsPullEvent(PullEvent, frozen=True, kw_only=True):
    """One step of the pull of a build; ``current`` is the version that is active.

    ``reason`` says why this processor, ``channel`` is ``None`` where the version was named.
    """

    arch: str
    os: str
    processor: str
    reason: str
    version: str
    channel: str | None
    latest: str | None
    current: str | None


class CarryEvent(PullEvent, frozen=True, kw_only=True):
    """One step of an export or import; ``archive`` is its file as it was given, ``-`` for a pipe.

    ``models`` are ids and ``libs`` versions of all that it carries.
    """

    archive: str
    file_completed: int | None
    file_total: int | None
    models: list[str]
    libs: list[str]


class FileCheck(msgspec.Struct, frozen=True):
    """One verified file: ``expected`` is ``None`` where no digest was known beforehand."""

    path: str
    ok: bool
    sha256: str | None
    expected: str | None


class VerifyEvent(Event, frozen=True, kw_only=True):
    """One step of the verification of a model."""

    id: str
    file: str | None
    completed: int
    total: int
    rate: int | None
    eta: int | None
    files: list[FileCheck]
    error: ErrorInfo | None
