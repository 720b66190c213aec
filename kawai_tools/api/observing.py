"""Looks at every request from outside: one line of the log for each, and what ``GET /metrics`` counts.

A line never holds what was sent or answered, nor paths or queries as they were typed: it names the route.
"""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kawai_tools.files import make_directory

if TYPE_CHECKING:
    from io import TextIOWrapper

NAME = "logs/requests.log"
SIZE, COPIES = 10 << 20, 3
_KEY = "kawai.seen"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
LEFT = 499
"""What is told of a request whose client left before its answer began (nginx's number for it)."""


@dataclass
class Seen:
    """What is known of one request; whoever answers it fills in what only they know."""

    method: str
    client: str | None
    began: float = field(default_factory=time.perf_counter)
    route: str | None = None
    status: int = 0
    sent: int = 0
    first: float | None = None
    error: str | None = None
    model: str | None = None
    stream: bool | None = None
    prompt_tokens: int | None = None
    tokens: int | None = None
    check: Callable[[], None] = lambda: None
    """Raises a kind of ``NotAllowed`` once its sender may no longer be told; for answers that go on."""

    def sending(self, piece: bytes) -> None:
        """Note a piece of the answer's body."""
        if self.first is None:
            self.first = time.perf_counter()
        self.sent += len(piece)


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of the log: ``bytes`` of the answer, ``seconds`` from a request's head to its first and last."""

    time: str
    method: str
    route: str | None
    status: int
    seconds: float
    bytes: int
    client: str | None
    error: str | None = None
    model: str | None = None
    stream: bool | None = None
    first: float | None = None
    prompt_tokens: int | None = None
    tokens: int | None = None


def seen(scope: Scope) -> Seen:
    """What is known of a request, to be filled in."""
    found: Seen = scope[_KEY]
    return found


class Observer:
    """ASGI middleware that watches what becomes of each request, and tells ``tell`` at its end."""

    def __init__(self, app: ASGIApp, tell: Callable[[Seen, float], None]) -> None:
        """``tell`` gets the request and the seconds that it took."""
        self._app = app
        self._tell = tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and look at its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client = scope.get("client")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        found = scope[_KEY] = Seen(method, client[0] if client else None)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                found.status = message["status"]
            elif body := message.get("body"):
                found.sending(body)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            self._tell(found, time.perf_counter() - found.began)


class RequestLog:
    """The log of requests: JSON lines in a file that is kept small, one a request."""

    def __init__(self, path: Path, say: Callable[[bytes], None] | None = None) -> None:
        """The file and its directory are made with the first line; ``say`` is told each line, too."""
        self._path, self._say = path, say
        self._handlers: list[logging.Handler] = []
        self._opened = False

    def write(self, found: Seen, seconds: float) -> None:
        """Add a line. Never raises: a full disk is no reason to answer nobody."""
        if not self._opened:
            self._open()
        data = msgspec.json.encode(_line(found, seconds))
        if self._say is not None:
            self._say(data + b"\n")
        record = logging.LogRecord("kawai.requests", logging.INFO, "", 0, data.decode(), None, None)
        for handler in self._handlers:
            handler.handle(record)

    def _open(self) -> None:
        self._opened = True
        try:
            make_directory(self._path.parent)
            self._handlers.append(_File(self._path, maxBytes=SIZE, backupCount=COPIES, delay=True))
        except Exception as error:  # noqa: BLE001 - see write
            logging.getLogger(__name__).warning("requests are not logged: %s", error)

    def close(self) -> None:
        """Close the file."""
        for handler in self._handlers:
            handler.close()


class _File(RotatingFileHandler):
    def _open(self) -> "TextIOWrapper":
        """Open the file without waiting for anybody, whatever it is."""
        return open(
            self.baseFilename,
            "a",
            encoding="utf-8",
            opener=lambda path, flags: os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600),
        )

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - as the base class
        """Say nothing: the line is lost, the request is not."""


def _line(found: Seen, seconds: float) -> Line:
    first = None if found.first is None else round(found.first - found.began, 4)
    return Line(
        time=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
        method=found.method,
        route=found.route,
        status=found.status or LEFT,
        seconds=round(seconds, 4),
        bytes=found.sent,
        client=found.client,
        error=found.error,
        model=found.model,
        stream=found.stream,
        first=first if found.stream else None,
        prompt_tokens=found.prompt_tokens,
        tokens=found.tokens,
    )
