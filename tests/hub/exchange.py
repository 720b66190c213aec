"""What a fault is given to work on, and the words in which it is told when and where to strike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from .cdn import wanted_range

if TYPE_CHECKING:
    from collections.abc import Callable

    from .messages import Answer, Blob, Call, ServerName

Amount = int | float
"""A place in a body: an int counts bytes, a float is a share of its length."""


class Where(TypedDict, total=False):
    """When a fault strikes: which calls, after how many (`skip`) and how often (`times`, None: always)."""

    server: ServerName | None
    method: str | None
    path: str
    times: int | None
    skip: int


@dataclass(frozen=True)
class Exchange:
    """A call that a fault may bend, the answer it would get, and what else the fault may do."""

    call: Call
    respond: Callable[[Call], Answer]
    expire_urls: Callable[[], None]
    take_down: Callable[[float], None]

    def answer(self) -> Answer:
        """Return the answer as it would be."""
        return self.respond(self.call)


def place_in(at: Amount, answer: Answer) -> int:
    """Return the place in an answer's body as a count of bytes."""
    return at if isinstance(at, int) else int(at * (answer.body.length or 0))


def asked_range(ex: Exchange, blob: Blob) -> tuple[int, int]:
    """Return start and stop of the range that a call asks of a file."""
    return wanted_range(ex.call.headers["range"], blob.size) or (0, blob.size)
