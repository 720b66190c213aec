"""Carries out a row of the table on another kawai over HTTP: the daemon of the same home.

It is given a row and a request and knows no row by name. ``run/serve.json`` tells where the daemon is;
it counts only while ``run/serve.lock`` is held and its process exists.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from kawai_tools.contract import Nothing, Operation, Request, Stream
from kawai_tools.errors import (
    UNDECODABLE,
    ErrorBody,
    KawaiError,
    NoServer,
    RemoteFault,
    UpstreamTimeout,
    from_info,
)
from kawai_tools.events import FINAL, Event
from kawai_tools.files import Lock, is_running, read_if_there

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

LOAD_PATIENCE = 3600.0
"""Seconds without a word of a model: it may have to be loaded, and to read a long prompt."""

R = TypeVar("R", bound=Request)


class Daemon(msgspec.Struct, frozen=True):
    """The content of ``run/serve.json``: where a daemon listens and the key that it takes."""

    url: str
    pid: int
    key: str
    version: str


def serve_file(state_dir: Path) -> Path:
    """Where a daemon says how to reach it."""
    return state_dir / "run" / "serve.json"


def serve_lock(state_dir: Path) -> Lock:
    """Held by the daemon of this home as long as it lives."""
    return Lock(state_dir / "run" / "serve.lock")


def find_daemon(state_dir: Path) -> Daemon | None:
    """The daemon that serves this home, or ``None``; what a dead one left behind does not count."""
    data = read_if_there(serve_file(state_dir))
    if data is None:
        return None
    try:
        daemon = msgspec.json.decode(data, type=Daemon)
    except UNDECODABLE:
        return None
    return daemon if is_running(daemon.pid) and _is_held(serve_lock(state_dir)) else None


def _is_held(lock: Lock) -> bool:
    if lock.acquire(shared=True):
        lock.release()
        return False
    return True


def run(row: Operation[R], request: R, daemon: Daemon) -> object:
    """The row's payload, ``None``, or a :class:`RemoteFeed`.

    Raises the error that the other kawai reports, or ``NoServer`` where it cannot be reached.
    """
    from http.client import HTTPException  # noqa: PLC0415 - only where something is asked

    try:
        connection, response = _send(row, request, daemon)
        return _result(row, connection, response)
    except (OSError, HTTPException) as error:
        raise _gone(daemon.url, error) from error


def _send(row: Operation[R], request: R, daemon: Daemon) -> "tuple[HTTPConnection, HTTPResponse]":
    from http.client import HTTPConnection  # noqa: PLC0415

    fields: dict[str, object] = msgspec.to_builtins(request)
    given = {name: value for name, value in fields.items() if value is not None}
    path = _path(row, given)
    rest = {name: value for name, value in given.items() if name not in row.path_fields}
    headers = {"Accept": "text/event-stream" if isinstance(row.result, Stream) else "application/json"}
    headers["Authorization"] = f"Bearer {daemon.key}"
    body = None
    if row.method in {"GET", "DELETE"}:
        path += f"?{urlencode(_query(rest))}" if rest else ""
    elif rest:
        body = msgspec.json.encode(rest)
        headers["Content-Type"] = "application/json"
    address = urlsplit(daemon.url)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=row.patience)
    connection.request(row.method, path, body, headers)
    return connection, connection.getresponse()


def _path(row: Operation[R], given: Mapping[str, object]) -> str:
    path = row.path
    if path is None:
        raise ValueError(f"{row.name} has no route")
    for name in row.path_fields:
        path = path.replace(f"{{{name}}}", quote(str(given[name]), safe=""))
    return path


def _query(fields: Mapping[str, object]) -> dict[str, str]:
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in fields.items()
    }


def _result(row: Operation[R], connection: "HTTPConnection", response: "HTTPResponse") -> object:
    if response.status >= 400:  # noqa: PLR2004 - HTTP's own line between answers and errors
        raise _reported(response.status, response.read())
    result = row.result
    if isinstance(result, Stream):
        if response.headers.get_content_type() == "text/event-stream":
            return RemoteFeed(result.event, connection, response)
        return _decode(response.read(), result.dry_run)
    data = response.read()
    connection.close()
    return None if isinstance(result, Nothing) else _decode(data, result.type)


def _decode(data: bytes, kind: Any) -> object:  # noqa: ANN401 - whatever the row declares
    try:
        return msgspec.json.decode(data, type=kind)
    except UNDECODABLE as error:
        raise RemoteFault(f"the kawai server answered something else than was asked: {error}") from error


def _reported(status: int, data: bytes) -> KawaiError:
    try:
        return from_info(msgspec.json.decode(data, type=ErrorBody).error)
    except UNDECODABLE:
        return RemoteFault(f"the kawai server answered {status} without saying why")


def _gone(url: str, error: Exception) -> KawaiError:
    if isinstance(error, TimeoutError):
        return UpstreamTimeout(f"the kawai server at {url} has been silent for too long", "look into its log")
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return NoServer(f"the kawai server at {url} cannot be reached: {reason}", "start one with kawai serve")


def stream(daemon: Daemon, path: str, body: bytes) -> Iterator[bytes]:
    """Post a body to a route that is no row; the answer as it comes, be it an error's.

    Raises ``NoServer`` where the other kawai cannot be reached.
    """
    from http.client import HTTPConnection, HTTPException  # noqa: PLC0415

    address = urlsplit(daemon.url)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=LOAD_PATIENCE)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {daemon.key}"}
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before it was all sent
            connection.request("POST", path, body, headers)
        with connection.getresponse() as response:
            while piece := response.read1(1 << 16):
                yield piece
    except (OSError, HTTPException) as error:
        raise _gone(daemon.url, error) from error
    finally:
        connection.close()


class RemoteFeed:
    """The events of a row that runs elsewhere. Leaving it stops nothing there."""

    def __init__(self, event: type[Event], connection: "HTTPConnection", response: "HTTPResponse") -> None:
        """Take over an answered request."""
        self._kinds = _kinds(event)
        self._connection = connection
        self._response = response

    def follow(self) -> Iterator[Event | None]:
        """Yield events as they come until the end; ``None`` for one that was only repeated.

        Raises ``NoServer`` where the stream breaks off before a final event.
        """
        from http.client import HTTPException  # noqa: PLC0415

        last: Event | None = None
        try:
            for data in _data(self._response):
                event = self._decode(data)
                yield None if event == last else event
                last = event
        except (OSError, HTTPException) as error:
            raise _gone(self._connection.host, error) from error
        finally:
            self.close()
        if last is None or last.status not in FINAL:
            raise NoServer("the kawai server ended in the middle of its answer", "ask again")

    def _decode(self, data: bytes) -> Event:
        for kind in self._kinds:
            try:
                return msgspec.json.decode(data, type=kind)
            except UNDECODABLE:
                continue
        raise RemoteFault("the kawai server sent an event that is none")

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


def _kinds(event: type[Event]) -> list[type[Event]]:
    """The declared event and what derives from it, the most particular first: each wants all its keys."""
    return [*(kind for child in event.__subclasses__() for kind in _kinds(child)), event]


def _data(response: "HTTPResponse") -> Iterator[bytes]:
    """The data of each frame; the servers asked here send one line of it a frame."""
    while line := response.readline():
        if line.startswith(b"data:"):
            yield line.removeprefix(b"data:").strip()
