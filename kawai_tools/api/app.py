"""The HTTP face: a route for every row of the table, and for health."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from kawai_tools import contract
from kawai_tools.api.decoding import decode
from kawai_tools.api.errors import HANDLERS, error_response
from kawai_tools.api.guard import Guard, own_hosts
from kawai_tools.api.health import ALIVE, READY, Health, check_ready
from kawai_tools.api.sse import HEARTBEAT, Streams, last_event_id
from kawai_tools.contract import Operation, Stream
from kawai_tools.errors import InvalidBody, MethodNotAllowed
from kawai_tools.operations.table import OPERATIONS
from kawai_tools.transfer.pulls import Feed
from kawai_tools.workspace import Workspace

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[ASGIApp]]
"""What answers one method of one path."""

_PLANNERS = 16
_OTHERS = 32


class App:
    """The ASGI application."""

    def __init__(self, app: ASGIApp, streams: Streams) -> None:
        """Made by :func:`build_app`."""
        self._app = app
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._app(scope, receive, send)

    def close(self) -> None:
        """End all streams, which would otherwise go on. In the event loop's thread only."""
        self._streams.close()


def build_app(
    workspace: Workspace,
    *,
    port: int,
    host: str = "127.0.0.1",
    hosts: Iterable[str] = (),
    operations: Sequence[Operation[contract.Request]] = OPERATIONS,
    heartbeat: float = HEARTBEAT,
) -> App:
    """The application that carries out ``operations`` on ``workspace``.

    It answers requests for loopback and ``host`` at ``port``, the ones that are really listened on, and for
    ``hosts``, the names by which others may know it. ``heartbeat`` is the silence in seconds after which a
    stream repeats its last event.
    """
    workspace.warm()
    face = _Face(workspace, Streams(heartbeat))
    paths: dict[str, dict[str, Handler]] = {path: {"GET": face.alive} for path in ALIVE}
    paths |= {path: {"GET": face.ready} for path in READY}
    for row in operations:
        if row.path is not None:
            paths.setdefault(row.path, {})[row.method] = partial(face.run, row)
    routes = [_route(path, paths[path]) for path in sorted(paths, key=_precedence)]
    app = Starlette(routes=routes, exception_handlers=dict(HANDLERS))
    app.router.redirect_slashes = False
    return App(Guard(app, own_hosts(hosts, host, port)), face.streams)


def _precedence(path: str) -> tuple[bool, int]:
    """Fixed paths first, then those with the longest fixed beginning."""
    return "{" in path, -len(path.partition("{")[0])


def _route(path: str, handlers: Mapping[str, Handler]) -> Route:
    route = Route(path.replace("{model}", "{model:path}"), _Resource(path, handlers))
    # Starlette's own pattern lets a path end in a line feed, and a parameter not contain one.
    route.path_regex = re.compile(route.path_regex.pattern.removesuffix("$") + r"\Z", re.DOTALL)
    return route


class _Resource:
    """One path and what answers its methods. It alone answers for the path, so that others are 405."""

    def __init__(self, path: str, handlers: Mapping[str, Handler]) -> None:
        self._path = path
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._handlers.get("GET" if scope["method"] == "HEAD" else scope["method"])
        answer = await handler(Request(scope, receive)) if handler else self._refuse(scope["method"])
        await answer(scope, receive, send)

    def _refuse(self, method: str) -> ASGIApp:
        allowed = ", ".join(sorted(self._handlers.keys() | ({"HEAD"} if "GET" in self._handlers else set())))
        error = MethodNotAllowed(f"{self._path} does not take {method[:20]}", f"it takes {allowed}")
        return error_response(error, {"allow": allowed})


class _Face:
    """Runs rows for requests, in threads: planning, which may wait for a hub, apart from all else."""

    def __init__(self, workspace: Workspace, streams: Streams) -> None:
        self._workspace = workspace
        self.streams = streams
        self._planners = ThreadPoolExecutor(_PLANNERS, "api-plan")
        self._others = ThreadPoolExecutor(_OTHERS, "api")

    async def run(self, row: Operation[contract.Request], request: Request) -> ASGIApp:
        """Carry out a row; its payload, nothing, or its events are the answer."""
        body = await _body(request)
        asked = decode(row, request.path_params, request.scope["query_string"], body)
        if row.at_hand is not None and (known := row.at_hand(self._workspace, asked)) is not None:
            return _answer(known)
        if not isinstance(row.result, Stream):
            return await self._in_thread(self._others, lambda: _answer(row.run(self._workspace, asked)))
        last_event_id(request.headers)  # refused, if it must be, before anything is begun
        result = await self._in_thread(self._planners, lambda: row.run(self._workspace, asked))
        if isinstance(result, Feed):
            return self.streams.answer(result, request.headers)
        return _answer(result)

    async def alive(self, _: Request) -> ASGIApp:
        """Answer that the server lives."""
        return _answer(Health())

    async def ready(self, _: Request) -> ASGIApp:
        """Answer that the server can work, or what keeps it from it."""
        return await self._in_thread(self._others, lambda: _answer(check_ready(self._workspace)))

    @staticmethod
    async def _in_thread(pool: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, call)


async def _body(request: Request) -> bytes:
    try:
        return await request.body()
    except ClientDisconnect:
        raise InvalidBody("the body ends early") from None


def _answer(payload: object) -> Response:
    """The payload in the bytes that ``--json`` prints too; ``None`` is 204."""
    if payload is None:
        return Response(status_code=204)
    return Response(msgspec.json.encode(payload), media_type="application/json")
