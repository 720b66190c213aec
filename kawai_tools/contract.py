"""The shape of a row of the table of operations.

One row says all that both faces need: how it is reached over HTTP, what it takes and gives, who may, where
it runs, and the function that carries it out on a workspace. ``operations/`` holds the rows.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Generic, TypeVar

import msgspec

from kawai_tools.events import Message
from kawai_tools.workspace import Workspace


class Level(StrEnum):
    """Who may, once authentication is on."""

    HEALTH = "health"
    OPEN = "open"
    READ = "read"
    CATALOG_PULL = "catalog_pull"
    USE = "use"
    ADMIN = "admin"


class Where(StrEnum):
    """Where a row runs when the command line asks: in its own process, in the daemon, or never remotely."""

    ANY = "any"
    SERVER = "server"
    HERE = "here"


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of what a row takes: path parameters, query parameters and body keys are its fields."""


class NoRequest(Request, frozen=True):
    """What a row takes that takes nothing."""


class Payload(msgspec.Struct, frozen=True):
    """A row that answers with one JSON value of this type, and with this status."""

    type: Any
    status: int = 200


class Nothing(msgspec.Struct, frozen=True):
    """A row that answers with nothing (204)."""


class Stream(msgspec.Struct, frozen=True):
    """A row that answers with events, or as its request says with a payload of the type ``payload``.

    What its function returns is a :class:`~kawai_tools.transfer.pulls.Feed`, or that payload: where
    ``unless`` is a field of the request that is set, or ``when`` one that is not. ``many``: it tells of
    several pulls, one after the other, and does what is still to be done when it is asked again.
    """

    event: type[Message]
    payload: Any = None
    unless: str | None = None
    when: str | None = None
    many: bool = False

    def is_meant(self, request: "Request") -> bool:
        """Whether a request asks for events."""
        if self.when is not None:
            return bool(getattr(request, self.when))
        return self.unless is None or not getattr(request, self.unless)


R = TypeVar("R", bound=Request)


class Route(msgspec.Struct, Generic[R], frozen=True, kw_only=True):
    """How something is asked over HTTP.

    ``path`` is ``None`` for a row without a route. Fields of ``request`` named in ``path`` come from
    there; for ``GET`` and ``DELETE`` the others are query parameters, else keys of the JSON body.
    """

    name: str
    method: str
    path: str | None
    request: type[R]
    result: Payload | Nothing | Stream
    level: Level
    summary: str

    @property
    def path_fields(self) -> tuple[str, ...]:
        """The fields that come from the path."""
        return tuple(part[1:-1] for part in (self.path or "").split("/") if part.startswith("{"))


class Operation(Route[R], Generic[R], frozen=True, kw_only=True):
    """One thing kawai can be asked to do, and how.

    ``waits`` says that it may wait for a server elsewhere. ``at_hand`` gives the payload at once where it
    is in memory and small, and ``None`` where ``run`` must be asked; it asks the file system for no more
    than times and sizes, so that a server needs no thread for it. ``patience`` are the seconds that
    another kawai may take for a word; ``None``: as long as it takes.
    """

    run: Callable[[Workspace, R], object]
    where: Where = Where.ANY
    waits: bool = False
    patience: float | None = 60.0
    at_hand: Callable[[Workspace, R], object | None] | None = None
