"""Inference: a request is passed to the engine that has its model, and the answer back, frame by frame.

Nothing of an answer is buffered or read: the engine is given kawai's id as its alias, so that nothing needs
rewriting. A fresh connection serves each request, since llama-server promises to keep connections and then
closes them. A client that leaves a streamed answer stops the engine by the connection's end; one that leaves
another keeps its lease until the engine has really done, because it works on to the end.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

import msgspec
from starlette.types import Receive, Scope, Send

from kawai_tools.api.errors import error_response
from kawai_tools.api.history import History
from kawai_tools.api.observing import Seen, seen
from kawai_tools.api.protocol import DIRECT, Direct
from kawai_tools.api.tally import Tally
from kawai_tools.errors import UNDECODABLE, EngineFailed, ErrorBody, InvalidBody, KawaiError
from kawai_tools.runners.asking import Upstream, ask, busy_slots
from kawai_tools.runners.seats import PIN, Held

BODY_LIMIT = 64 << 20
ROUTES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/responses",
    "/v1/messages",
)
_OK, _SERVER_ERROR = 200, 500


class Asked(NamedTuple):
    """What kawai reads of a request; ``parts`` are the JSON of its keys, as it was given."""

    model: str
    keep_alive: float | None
    stream: bool
    parts: dict[str, msgspec.Raw]
    given: bytes

    def body(self, model_id: str) -> bytes:
        """What the engine gets: what was given, without what is kawai's, and with the model's own name."""
        if self.model == model_id and self.keep_alive is None:
            return self.given
        return msgspec.json.encode({**self.parts, "model": model_id})


_PARTS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANY = msgspec.json.Decoder()


def read(body: bytes) -> Asked:
    """Take a body apart, no deeper than it must be: it may be large. Raises ``InvalidBody``."""
    if not body.strip():
        raise _no_model()
    try:
        parts = _PARTS.decode(body)
        model, keep_alive, stream = (
            _ANY.decode(parts[name]) if name in parts else None for name in ("model", "keep_alive", "stream")
        )
        _refuse_links(body)
    except msgspec.ValidationError:
        raise InvalidBody("the body must be a JSON object") from None
    except UNDECODABLE as error:
        raise InvalidBody(f"the body is not valid JSON: {error}") from None
    if not isinstance(model, str) or not model:
        raise _no_model()
    if not _is_time(keep_alive):
        raise InvalidBody("keep_alive is a number of seconds, or -1 to keep the model")
    parts.pop("keep_alive", None)
    return Asked(model, keep_alive, stream is True, parts, body)


def _no_model() -> InvalidBody:
    return InvalidBody("the body names no model", 'add "model", as GET /v1/models lists them')


def _is_time(value: object) -> bool:
    """Whether it is a number of seconds, -1, or nothing."""
    if value is None or isinstance(value, bool):
        return value is None
    return isinstance(value, int | float) and (value >= 0 or value == PIN)


def _refuse_links(body: bytes) -> None:
    """Refuse addresses of media: the engine would fetch them itself, from wherever they lead.

    Only what could name one is looked into. Raises ``InvalidBody``.
    """
    if not _MAY_LINK.search(body):
        return
    if max(map(body.count, (b",", b"[", b"{"))) > _MOST_PARTS:
        raise InvalidBody(f"a request with media may have at most {_MOST_PARTS:,} parts", "send less of them")
    pending: list[object] = [_ANY.decode(body)]
    while pending:
        found = pending.pop()
        if isinstance(found, list):
            pending.extend(found)
        elif isinstance(found, dict):
            _refuse_source(found)
            for key, inner in found.items():
                link = inner.get("url") if isinstance(inner, dict) else inner
                if key in _MEDIA and isinstance(link, str) and not link.startswith("data:"):
                    raise InvalidBody(f"{key} must be a data: URL", "send the media itself, base64-encoded")
                if key in _INPUTS and isinstance(inner, dict) and any(map(_is_link, inner.values())):
                    raise InvalidBody(f"{key} must be the media, or a data: URL", "send it base64-encoded")
            pending.extend(found.values())


def _is_link(value: object) -> bool:
    """Whether a value leads elsewhere; base64 has no colon."""
    return isinstance(value, str) and _SCHEME.match(value) is not None


def _refuse_source(part: dict[object, object]) -> None:
    """Refuse a link in the form of ``/v1/messages``: ``{"source": {"type": "url", "url": ...}}``."""
    source = part.get("source")
    link = source.get("url") if isinstance(source, dict) else None
    is_link = isinstance(source, dict) and (link is not None or source.get("type") == "url")
    if is_link and not (isinstance(link, str) and link.startswith("data:")):
        raise InvalidBody(
            "source must be the media itself, or a data: URL", "send the media itself, base64-encoded"
        )


_MEDIA = frozenset({"image_url", "video_url", "audio_url", "file_url"})
_INPUTS = frozenset({"input_audio", "input_video", "input_image", "input_file"})
_MAY_LINK = re.compile(
    rb'"(?:(?:image|video|audio|file)_url|input_(?:audio|video|image|file)|source)"\s*:|\\u00[5-7]'
)
"""A key that means media, or a letter of a key written in another way, as no encoder does."""

_SCHEME = re.compile(r"\s*(?!data:)[A-Za-z][A-Za-z0-9+.-]*:")
_MOST_PARTS = 50_000


class Answer:
    """What an engine answers to one request; an ASGI application."""

    def __init__(
        self, asked: Asked, lease: Callable[[], AbstractAsyncContextManager[Held]], history: History
    ) -> None:
        """``lease`` holds the model for as long as the answer takes; ``history`` is told what it makes."""
        self._asked = asked
        self._lease = lease
        self._tally = Tally()
        self._held: Held | None = None
        self._history, self._counted = history, 0
        self._has_begun = self._has_left = self._has_length = self._flows = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait for the model, ask it, and pass on what it says."""
        work = asyncio.create_task(self._carry(scope, send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
            self._has_left = leaving.done() and not work.done()
            if self._has_left and (self._asked.stream or self._held is None):
                work.cancel()  # which hangs up, and so stops the engine
            elif self._has_left and self._held is not None:
                self._held.abandon()
            with contextlib.suppress(asyncio.CancelledError):
                await work
        except KawaiError as error:
            if not self._has_left:
                await self._fail(scope, receive, send, error)
        finally:
            leaving.cancel()
            work.cancel()
            self._note(seen(scope))

    def _note(self, request: Seen) -> None:
        request.stream = self._asked.stream
        request.prompt_tokens, request.tokens = self._tally.counts(stream=self._flows)
        self._history.made(request.tokens - self._counted)

    async def _carry(self, scope: Scope, send: Send) -> None:
        try:
            await self._ask(scope, send)
        except EngineFailed as error:
            if not (error.died and error.retry_safe):
                raise
            await self._ask(scope, send)  # it died while it had nothing to do: it is loaded anew

    async def _ask(self, scope: Scope, send: Send) -> None:
        async with self._lease() as held:
            upstream = await ask(held.target, scope["path"], scope["query_string"], self._asked.body(held.id))
            self._held = held
            try:
                await upstream.read_head()
                await self._forward(upstream, scope, send)
            except asyncio.CancelledError:
                upstream.close()
                held.abandon()
                await _until_idle(held)
                raise
            finally:
                upstream.close()

    async def _forward(self, upstream: Upstream, scope: Scope, send: Send) -> None:
        if upstream.status >= _SERVER_ERROR:
            said = _message(await upstream.body())
            failed = EngineFailed(
                said or f"the engine failed with status {upstream.status}", _HINTS.get(scope["path"])
            )
            failed.retry_safe = False
            raise failed
        await upstream.begun()  # until then it can still be told what fails
        await send({"type": "http.response.start", "status": upstream.status, "headers": upstream.headers})
        self._has_begun, self._has_length = True, upstream.length is not None
        direct: Direct = scope["extensions"][DIRECT]["response"]
        request = seen(scope)
        self._flows = self._asked.stream and upstream.status == _OK

        def pass_on(piece: bytes) -> bool:
            frames = self._tally.take(piece)
            if self._has_left:  # it goes on to its end all the same: the lease is kept until then
                return True
            request.sending(piece)
            if self._flows:
                self._count(request, frames)
            return direct.write(piece)

        await upstream.pour(pass_on, direct.drain)
        if not self._has_left:
            await send({"type": "http.response.body", "body": b""})

    def _count(self, request: Seen, frames: int) -> None:
        """Tell what flows as it does: a frame is a token, until the engine tells its own figure."""
        if not self._counted:
            self._history.begun(time.perf_counter() - request.began)
        self._counted += frames
        self._history.made(frames)

    async def _fail(self, scope: Scope, receive: Receive, send: Send, error: KawaiError) -> None:
        """Answer with an error, or end a stream with one. Another answer that has begun is left incomplete.

        The server then closes its connection, so that no client takes it for whole.
        """
        seen(scope).error = error.code
        if not self._has_begun:
            await error_response(error)(scope, receive, send)
        elif self._asked.stream and not self._has_length:
            await send({"type": "http.response.body", "body": _frame(scope["path"], error, self._tally)})


_HINTS = {
    "/v1/embeddings": "kawai catalog list --capability embedding shows models that make embeddings",
    "/v1/rerank": "kawai catalog list --capability rerank shows models that rank",
}
"""Who fails here has often asked a model that cannot."""


def _frame(path: str, error: KawaiError, before: Tally) -> bytes:
    """The last frame of a stream that breaks off, where it may have broken off inside another."""
    name, body = b"", msgspec.json.encode(ErrorBody(error.info))
    if path in _NAMED:
        name, body = b"event: error\n", b'{"type":"error",' + body.removeprefix(b"{")
    return (b"" if before.is_between_frames else b"\n\n") + name + b"data: " + body + b"\n\n"


_NAMED = frozenset({"/v1/responses", "/v1/messages"})
"""Where the events of a stream have names."""


async def _until_idle(held: Held) -> None:
    """Wait until an engine has let go of an answer that nobody wants: it reads a long prompt to its end.

    One that says nothing for so long hangs, and is waited for no longer.
    """
    pause = _GLANCE
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER):
            while True:
                busy = await busy_slots(held.target)
                if busy is None or busy < min(held.leases, held.slots):
                    return
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONG_GLANCE)


_GLANCE, _LONG_GLANCE, _LINGER = 0.01, 0.25, 300.0


def _message(said: bytes) -> str | None:
    """The words of an engine's error."""
    try:
        found = msgspec.json.decode(said)
        return str(found["error"]["message"])[:1000]
    except (ValueError, KeyError, TypeError):
        return None


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
