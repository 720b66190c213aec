"""What any failure is: its type, and by that the exit code and the HTTP statuses; how programs see it.

The failures themselves are in ``errors/``.
"""

import re
from enum import StrEnum
from typing import ClassVar, NamedTuple

import msgspec


class ErrorType(StrEnum):
    """The nine kinds of failure; the second word of every error."""

    INVALID_REQUEST = "invalid_request"
    NOT_FOUND = "not_found"
    NOT_ALLOWED = "not_allowed"
    CONFLICT = "conflict"
    UPSTREAM = "upstream"
    INTEGRITY = "integrity"
    NO_SPACE = "no_space"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


class Outcome(NamedTuple):
    """How one type of error leaves kawai: the process's exit code and the HTTP statuses it may use."""

    exit_code: int
    statuses: tuple[int, ...]


OUTCOMES: dict[ErrorType, Outcome] = {
    ErrorType.INVALID_REQUEST: Outcome(2, (400, 405, 408, 413, 414, 415, 421, 431)),
    ErrorType.NOT_FOUND: Outcome(3, (404,)),
    ErrorType.NOT_ALLOWED: Outcome(4, (401, 403)),
    ErrorType.CONFLICT: Outcome(5, (409, 412)),
    ErrorType.UPSTREAM: Outcome(6, (502, 504)),
    ErrorType.INTEGRITY: Outcome(7, (422,)),
    ErrorType.NO_SPACE: Outcome(8, (507,)),
    ErrorType.UNAVAILABLE: Outcome(9, (503, 429)),
    ErrorType.INTERNAL: Outcome(70, (500,)),
}
"""The one table from a type of error to exit code and statuses (the first is the usual one)."""

UNDECODABLE = (msgspec.DecodeError, ValueError, RecursionError)
"""What decoding JSON of unknown origin raises: also for bytes that are no UTF-8, and for absurd nesting."""

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130


class ErrorInfo(msgspec.Struct, frozen=True):
    """An error as it is shown to programs, over HTTP, in ``--json`` and inside a ``failed`` event."""

    code: str
    type: ErrorType
    message: str
    hint: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """The whole body of an error answer."""

    error: ErrorInfo


class KawaiError(Exception):
    """Base of all that kawai refuses or fails at."""

    code: ClassVar[str] = "error"
    type: ClassVar[ErrorType] = ErrorType.INTERNAL
    status: ClassVar[int] = 500

    def __init_subclass__(cls, *, code: str | None = None, status: int | None = None) -> None:
        """Name the code after the class unless it is given; inherit the status unless it is given."""
        cls.code = code or re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
        cls.status = status or cls.status

    def __init__(self, message: str, hint: str | None = None) -> None:
        """Say what happened to what, and what to do about it."""
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.reported: ErrorInfo | None = None
        self.retry_after: int | None = None
        """Seconds after which the same may go better, where that is known."""

    @property
    def exit_code(self) -> int:
        """The exit code of a process that ends with this error."""
        return OUTCOMES[self.type].exit_code

    @property
    def info(self) -> ErrorInfo:
        """The error as programs see it."""
        return self.reported or ErrorInfo(self.code, self.type, self.message, self.hint)
