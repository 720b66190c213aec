"""The HTTP face: a route for every row of the table, and for health."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, NamedTuple, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from kawai_tools import contract
from kawai_tools.api import pages
from kawai_tools.api.access import Access
from kawai_tools.api.decoding import decode
from kawai_tools.api.errors import HANDLERS, error_response, refusal
from kawai_tools.api.guard import Guard, Names, has_body
from kawai_tools.api.health import ALIVE, READY, Health, check_ready
from kawai_tools.api.inference import BODY_LIMIT, ROUTES, read
from kawai_tools.api.inference import Answer as Inference
from kawai_tools.api.metrics import CONTENT_TYPE, Metrics
from kawai_tools.api.metrics import PATH as METRICS
from kawai_tools.api.observing import Observer, RequestLog, Seen, seen
from kawai_tools.api.openapi import DESCRIPTION, describe
from kawai_tools.api.signin import Answer, SigningIn
from kawai_tools.api.sse import HEARTBEAT, Streams, last_event_id
from kawai_tools.api.stats import PATH as STATS
from kawai_tools.api.stats import Watch
from kawai_tools.contract import Level, Operation, Payload, Stream
from kawai_tools.errors import Busy, InvalidBody, KawaiError, MethodNotAllowed, ServerClosing
from kawai_tools.operations.table import OPERATIONS
from kawai_tools.refs import parse_model
from kawai_tools.runners.pool import PATIENCE
from kawai_tools.transfer.pulls import Feed
from kawai_tools.workspace import Workspace

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[ASGIApp]]


class Entrance(NamedTuple):
    """What answers one method of one path, and who may ask: there is no way in without a level."""

    level: Level
    handler: Handler


MOST_BODIES = 1 << 30
"""Bytes that the bodies of all requests to models may have together."""

_LARGE = 1 << 18
_PLANNERS = 16
_CREATED = 201
_WAITERS = 8
_OTHERS = 32


class App:
    """The ASGI application."""

    def __init__(
        self, app: ASGIApp, guard: Guard, streams: Streams, workspace: Workspace, log: RequestLog | None
    ) -> None:
        """Made by :func:`build_app`."""
        self._app = app
        self._guard = guard
        self._log = log
        self._streams = streams
        self._workspace = workspace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._app(scope, receive, send)

    def begin(self) -> None:
        """Let work in threads end what uses a model. In the event loop's thread, once it runs."""
        loop, pool = asyncio.get_running_loop(), self._workspace.pool

        def close_model(model_id: str) -> Callable[[], None]:
            asyncio.run_coroutine_threadsafe(pool.close(model_id), loop).result()
            return partial(_call_in, loop, partial(pool.reopen, model_id))

        self._workspace.close_model = close_model

    def rename(self, names: Names) -> None:
        """Be called otherwise, from the next request on."""
        self._guard.names = names

    def tighten(self) -> None:
        """End what is told to followers that were let in by other rules; Pulls, which are open, go on."""
        for follower in list(self._streams.followers):
            follower.end()

    def reopen_log(self) -> None:
        """Write to the log of requests that has its name now."""
        if self._log is not None:
            self._log.close()

    async def drain(self, patience: float) -> None:
        """Load nothing more, let answers come to their end within so many seconds, and end every engine."""
        await self._workspace.pool.drain(time.monotonic() + patience)

    def close(self) -> None:
        """End all streams, which would otherwise go on. In the event loop's thread only."""
        self._streams.close()

    def stop_logging(self) -> None:
        """Close the log of requests, after the last one."""
        if self._log is not None:
            self._log.close()


def build_app(
    workspace: Workspace,
    names: Names,
    *,
    access: Access | None = None,
    operations: Sequence[Operation[contract.Request]] = OPERATIONS,
    heartbeat: float = HEARTBEAT,
    log: RequestLog | None = None,
) -> App:
    """The application that carries out ``operations`` on ``workspace``.

    ``names`` are what it is called (see :func:`~kawai_tools.api.guard.known_by`), ``access`` says who may
    (``None``: everybody), ``heartbeat`` is the seconds of silence after which a stream repeats its last,
    ``log`` is where requests are told.
    """
    workspace.warm()
    access = access or Access(workspace.tokens)
    face = _Face(workspace, Streams(heartbeat))
    paths: dict[str, dict[str, Entrance]] = {
        path: {"GET": Entrance(Level.HEALTH, face.alive)} for path in ALIVE
    }
    paths |= {path: {"GET": Entrance(Level.HEALTH, face.ready)} for path in READY}
    paths[DESCRIPTION] = {"GET": Entrance(Level.USE, _description(operations, access))}
    paths[METRICS] = {"GET": Entrance(Level.USE, face.tell_metrics)}
    paths[STATS] = {"GET": Entrance(Level.USE, face.tell_stats)}
    paths |= {path: {"POST": Entrance(Level.USE, face.infer)} for path in ROUTES}
    paths |= {path: {"GET": Entrance(Level.OPEN, each)} for path, each in _pages(access).items()}
    for route, answer in SigningIn(access).routes:
        paths.setdefault(route.path or "", {})[route.method] = Entrance(route.level, _signing(route, answer))
    for row in operations:
        if row.path is not None:
            paths.setdefault(row.path, {})[row.method] = Entrance(row.level, partial(face.run, row))
    routes = [_route(path, paths[path], access) for path in sorted(paths, key=_precedence)]
    app = Starlette(routes=routes, exception_handlers=dict(HANDLERS))
    app.router.redirect_slashes = False
    guard = Guard(
        app,
        names,
        counts_credentials=lambda: not access.on,
        limits=dict.fromkeys(ROUTES, BODY_LIMIT),
        linked=pages.BARE,
    )

    def tell(found: Seen, seconds: float) -> None:
        face.metrics.count(found, seconds)
        face.watch.count(found)
        if log is not None:
            log.write(found, seconds)

    return App(Observer(guard, tell), guard, face.streams, workspace, log)


def _call_in(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    loop.call_soon_threadsafe(call)


def _description(operations: Sequence[Operation[contract.Request]], access: Access) -> Handler:
    """The description of the API, made anew where other tokens are asked for."""
    known: dict[tuple[bool, bool], Response] = {}

    async def give(_: Request) -> ASGIApp:
        asked = access.on, access.is_open(Level.READ)
        if asked not in known:
            known[asked] = _answer(describe(operations, access))
        return known[asked]

    return give


def _signing(route: contract.Route[Any], answer: Answer) -> Handler:
    async def give(request: Request) -> ASGIApp:
        asked = decode(route, {}, request.scope["query_string"], await _body(request))
        found = await answer(asked, request)
        answered = found if isinstance(found, Response) else _answer(found, _status(route))
        answered.headers["Cache-Control"] = "no-store"
        return answered

    return give


def _pages(access: Access) -> dict[str, Handler]:
    """What gives the admin page."""
    pages.warm()

    async def index(request: Request) -> ASGIApp:
        return pages.index(access.seen(request.scope["headers"]))

    async def file(request: Request) -> ASGIApp:
        return pages.give(request.path_params["file"], request.headers)

    async def lead(_: Request) -> ASGIApp:
        return pages.lead()

    return {pages.PAGE: index, pages.FILES: file, pages.BARE: lead}


def _precedence(path: str) -> tuple[bool, int]:
    """Fixed paths first, then those with the longest fixed beginning."""
    return "{" in path, -len(path.partition("{")[0])


def _route(path: str, entrances: Mapping[str, Entrance], access: Access) -> Route:
    route = Route(
        re.sub(r"\{(model|filter|file)\}", r"{\1:path}", path),
        _Resource(path, entrances, access),
    )
    # Starlette's own pattern lets a path end in a line feed, and a parameter not contain one.
    route.path_regex = re.compile(route.path_regex.pattern.removesuffix("$") + r"\Z", re.DOTALL)
    return route


class _Resource:
    """One path and what answers its methods. It alone answers for the path, so that others are 405."""

    def __init__(self, path: str, entrances: Mapping[str, Entrance], access: Access) -> None:
        self._path = path
        self._entrances = entrances
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self._answer(scope, receive)
        await answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> ASGIApp:
        found = seen(scope)
        found.route = self._path
        entrance = self._entrances.get("GET" if scope["method"] == "HEAD" else scope["method"])
        if entrance is None:
            return self._refuse(scope["method"])
        found.check = partial(self._access.check, entrance.level, scope["method"], scope["headers"])
        try:
            found.check()
        except KawaiError as error:
            found.error = error.code
            return refusal(error) if has_body(scope) else error_response(error)
        return await entrance.handler(Request(scope, receive))

    def _refuse(self, method: str) -> ASGIApp:
        allowed = ", ".join(
            sorted(self._entrances.keys() | ({"HEAD"} if "GET" in self._entrances else set()))
        )
        error = MethodNotAllowed(f"{self._path} does not take {method[:20]}", f"it takes {allowed}")
        return error_response(error, {"allow": allowed})


class _Face:
    """Runs rows for requests, in threads: what may wait for other servers apart from all else."""

    def __init__(self, workspace: Workspace, streams: Streams) -> None:
        self._workspace = workspace
        self.streams = streams
        self._bodies = 0
        self.metrics = Metrics(workspace)
        self.watch = Watch(workspace.pool)
        self._planners = ThreadPoolExecutor(_PLANNERS, "api-plan")
        self._waiters = ThreadPoolExecutor(_WAITERS, "api-wait")
        self._others = ThreadPoolExecutor(_OTHERS, "api")
        self._ready = ThreadPoolExecutor(1, "api-ready")

    async def run(self, row: Operation[contract.Request], request: Request) -> ASGIApp:
        """Carry out a row; its payload, nothing, or its events are the answer."""
        body = await _body(request)
        asked = decode(row, request.path_params, request.scope["query_string"], body)
        if row.at_hand is not None and (known := row.at_hand(self._workspace, asked)) is not None:
            return _answer(known)
        if iscoroutinefunction(row.run):
            return _answer(await row.run(self._workspace, asked), _status(row))
        if not isinstance(row.result, Stream):
            pool = self._waiters if row.waits else self._others
            status = _status(row)
            return await self._in_thread(pool, lambda: _answer(row.run(self._workspace, asked), status))
        last_event_id(request.headers)  # refused, if it must be, before anything is begun
        if row.result.is_meant(asked):
            self.streams.check_room()
        result = await self._in_thread(self._planners, lambda: row.run(self._workspace, asked))
        if isinstance(result, Feed):
            return self.streams.answer(result, request.headers)
        return _answer(result)

    async def infer(self, request: Request) -> ASGIApp:
        """Pass a request on to the engine that has its model."""
        size = _announced(request)
        if self._bodies + size > MOST_BODIES:
            raise Busy("the requests that are being answered are too large together", "try again soon")
        self._bodies += size
        try:
            return _Ending(await self._inference(request), partial(self._give_back, size))
        except BaseException:
            self._give_back(size)
            raise

    def _give_back(self, size: int) -> None:
        self._bodies -= size

    async def _inference(self, request: Request) -> ASGIApp:
        body = await _body(request)
        asked = read(body) if len(body) < _LARGE else await self._in_thread(self._others, partial(read, body))
        ref, orders = parse_model(asked.model), self._workspace.orders
        order = orders.at_hand(ref)
        if order is None:
            order = await self._in_thread(self._others, lambda: orders.make(ref))
        pool = self._workspace.pool
        seen(request.scope).model = order.id
        return Inference(
            asked,
            lambda: pool.lease(order, time.monotonic() + PATIENCE, keep_alive=asked.keep_alive),
            self.watch.history,
        )

    async def tell_metrics(self, _: Request) -> ASGIApp:
        """Answer with the counts."""
        return Response(self.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def tell_stats(self, _: Request) -> ASGIApp:
        """Answer with what the server does and did lately."""
        return _answer(self.watch.told())

    async def alive(self, _: Request) -> ASGIApp:
        """Answer that the server lives."""
        return _answer(Health())

    async def ready(self, _: Request) -> ASGIApp:
        """Answer that the server can work, or what keeps it from it."""
        return await self._in_thread(self._ready, lambda: _answer(check_ready(self._workspace)))

    async def _in_thread(self, pool: ThreadPoolExecutor, call: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, call)
        except asyncio.CancelledError:
            if not self.streams.closing:
                raise
            raise ServerClosing("kawai is shutting down", "try again in a moment") from None


def _status(row: contract.Route[Any]) -> int:
    return row.result.status if isinstance(row.result, Payload) else 204


class _Ending:
    """An answer, and what is to be done once it has been given."""

    def __init__(self, answer: ASGIApp, end: Callable[[], None]) -> None:
        self._answer, self._end = answer, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._answer(scope, receive, send)
        finally:
            self._end()


def _announced(request: Request) -> int:
    """Bytes that a body may have, before it is read."""
    length = request.headers.get("content-length")
    return int(length) if length is not None else BODY_LIMIT if has_body(request.scope) else 0


async def _body(request: Request) -> bytes:
    try:
        return await request.body()
    except ClientDisconnect:
        raise InvalidBody("the body ends early") from None


def _answer(payload: object, status: int = 200) -> Response:
    """The payload in the bytes that ``--json`` prints too; ``None`` is 204."""
    if payload is None:
        return Response(status_code=204)
    headers = {"Cache-Control": "no-store"} if status == _CREATED else None  # it is shown this once
    return Response(msgspec.json.encode(payload), status, headers, "application/json")
