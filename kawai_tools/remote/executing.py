"""Carries out a row of the table on another kawai: it is given row and request, and knows none by name."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from kawai_tools.contract import Nothing, Operation, Request, Stream
from kawai_tools.errors import UNDECODABLE, KawaiError
from kawai_tools.remote.feed import EVENT_STREAM, RemoteFeed
from kawai_tools.remote.many import RemotePulls

if TYPE_CHECKING:
    from kawai_tools.remote.peer import Peer
    from kawai_tools.transfer.responses import Response

LOAD_PATIENCE = 3600.0
"""Seconds without a word of a model: it may have to be loaded, and to read a long prompt."""

_ERROR, _DONE = 400, 204
_PATIENCE = 60.0

R = TypeVar("R", bound=Request)
T = TypeVar("T")


def run(row: Operation[R], request: R, peer: "Peer") -> object:
    """The row's payload, ``None``, or a :class:`~kawai_tools.remote.feed.RemoteFeed`.

    Raises the error that the other kawai reports, and what :meth:`Peer.ask` raises.
    """
    answer = _answered(row, request, peer)
    is_empty = answer.status == _DONE and isinstance(row.result, Stream) and row.result.is_meant(request)
    if isinstance(row.result, Stream) and (is_empty or answer.headers.get_content_type() == EVENT_STREAM):
        if row.result.many:
            return RemotePulls(row.result.event, peer, answer, lambda: _answered(row, request, peer))
        return RemoteFeed(row.result.event, peer, answer)
    with answer:
        return _payload(row, peer, answer.status, _body(answer, peer))


def _send(row: Operation[R], request: R, peer: "Peer") -> "Response":
    fields: dict[str, object] = msgspec.to_builtins(request)
    given = {name: value for name, value in fields.items() if value is not None}
    path = _path(row, given)
    rest = {name: value for name, value in given.items() if name not in row.path_fields}
    headers = {"Accept": EVENT_STREAM if isinstance(row.result, Stream) else "application/json"}
    body = None
    if row.method in {"GET", "DELETE"}:
        path += f"?{urlencode(_query(rest))}" if rest else ""
    elif rest:
        body = msgspec.json.encode(rest)
    return peer.ask(row.method, path, body, headers, patience=row.patience)


def _answered(row: Operation[R], request: R, peer: "Peer") -> "Response":
    """An answer that is no error."""
    answer = _send(row, request, peer)
    if answer.status < _ERROR:
        return answer
    with answer:
        raise peer.reported(answer.status, _body(answer, peer))


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


def _body(answer: "Response", peer: "Peer") -> bytes:
    try:
        return answer.read()
    except KawaiError as error:
        raise peer.gone(error) from error


def _payload(row: Operation[R], peer: "Peer", status: int, data: bytes) -> object:
    result = row.result
    if isinstance(result, Nothing):
        if status != _DONE:
            raise peer.misunderstood(f"answered {status} where nothing is to be answered")
        return None
    kind: Any = result.payload if isinstance(result, Stream) else result.type
    try:
        return msgspec.json.decode(data, type=kind)
    except UNDECODABLE as error:
        raise peer.misunderstood(f"answered something else than was asked ({error})") from error


def post(peer: "Peer", path: str, kind: type[T], body: object = None) -> T:
    """Post a body, if there is one, to a route that is no row; its payload.

    Raises the error that the other kawai reports, and what :meth:`Peer.ask` raises.
    """
    sent = None if body is None else msgspec.json.encode(body)
    with contextlib.closing(peer.ask("POST", path, sent, patience=_PATIENCE)) as answer:
        data = _body(answer, peer)
        if answer.status >= _ERROR:
            raise peer.reported(answer.status, data)
    try:
        return msgspec.json.decode(data, type=kind)
    except UNDECODABLE as error:
        raise peer.misunderstood(f"answered something else than was asked ({error})") from error


def stream(peer: "Peer", path: str, body: bytes) -> Iterator[bytes]:
    """Post a body to a route that is no row; the answer as it comes, be it an error's.

    Raises what :meth:`Peer.ask` raises.
    """
    with contextlib.closing(peer.ask("POST", path, body, patience=LOAD_PATIENCE)) as answer:
        buffer = memoryview(bytearray(1 << 16))
        try:
            while count := answer.read_some(buffer):
                yield bytes(buffer[:count])
        except KawaiError as error:
            raise peer.gone(error) from error
