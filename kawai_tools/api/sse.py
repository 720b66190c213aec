"""Server-Sent Events: a feed told to one client, without a thread of its own.

A frame is ``data: {json}`` and an empty line, preceded by ``id: {seq}`` for clients that say they
understand event streams; there are no event names and no comments, since simple clients read ``data:``
only. Resuming is that of the HTML standard, section 9.2 (``Last-Event-ID``).
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress

import msgspec
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from kawai_tools.api.observing import seen
from kawai_tools.errors import InvalidRequest, KawaiError, TooMany
from kawai_tools.events import Message
from kawai_tools.transfer.pulls import Feed

HEARTBEAT = 10.0
"""Seconds of silence after which the last event is repeated."""

MOST_FOLLOWERS = 512

_MEDIA_TYPE = "text/event-stream"
_HEADERS = [
    (b"content-type", _MEDIA_TYPE.encode()),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold frames back
]
_END = {"type": "http.response.body", "body": b""}


def last_event_id(headers: Headers) -> int:
    """The number of the last event that the client has; 0 for none. Raises ``InvalidRequest``."""
    text = headers.get("last-event-id", "").strip()
    if text and not (text.isascii() and text.isdigit() and len(text) < 19):  # noqa: PLR2004 - 64 bits
        raise InvalidRequest(f"Last-Event-ID cannot be {text[:50]!r}", "send the id of the last event")
    return int(text or 0)


class Streams:
    """Every follower of this server. Used in the event loop's thread only."""

    def __init__(self, heartbeat: float = HEARTBEAT) -> None:
        """Begin with none; ``heartbeat`` is in seconds."""
        self.heartbeat = heartbeat
        self.closing = False
        self.followers: set[Follower] = set()

    def answer(self, feed: Feed[Message], headers: Headers) -> ASGIApp:
        """The stream of ``feed`` for a client, or 204 for one that already has its final event."""
        try:
            self.check_room()
        except TooMany:
            if feed.belongs_to_follower:
                feed.cancel()
            raise
        if feed.belongs_to_follower:  # it has just begun: nobody has seen any of it
            return Follower(self, feed, 0, with_ids=_wants_ids(headers))
        closed = feed.closed
        after = last_event_id(headers)
        last = max((seq for seq, _ in feed.events()), default=0)
        if after >= last and closed:
            return Response(status_code=204)
        # A number that this log has not reached is of another one, before a restart.
        return Follower(self, feed, after if after <= last else 0, with_ids=_wants_ids(headers))

    def check_room(self) -> None:
        """Raise ``TooMany`` where there are as many followers as are served at a time."""
        if len(self.followers) >= MOST_FOLLOWERS:
            raise TooMany(f"{MOST_FOLLOWERS} others are following already", "try again in a moment")

    def close(self) -> None:
        """End all streams, once each follower has what there is to tell."""
        self.closing = True
        for follower in self.followers:
            follower.end()


class Follower:
    """One client's place in a feed; an ASGI application.

    It reads the feed only when the client has taken what was sent before, so that one which stops
    reading costs no memory. When it leaves, work that belongs to it is cancelled; a Pull goes on. One whose
    token or session is no longer good is told nothing more: its stream ends, within a heartbeat.
    """

    def __init__(self, streams: Streams, feed: Feed[Message], after: int, *, with_ids: bool) -> None:
        """Tell ``feed`` from the event that follows number ``after``."""
        self._streams = streams
        self._feed = feed
        self._after = after
        self._with_ids = with_ids
        self._changed = asyncio.Event()
        self._woken = False
        self._gone = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Tell until the feed, the client or the server ends."""
        self._loop = asyncio.get_running_loop()
        self._streams.followers.add(self)
        unsubscribe = self._feed.subscribe(self._wake)
        listener = asyncio.create_task(self._listen(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            if scope["method"] != "HEAD":
                await self._tell(send, seen(scope).check)
            await send(_END)
        finally:
            listener.cancel()
            unsubscribe()
            self._streams.followers.discard(self)
            if self._feed.belongs_to_follower:
                self._feed.cancel()

    def end(self) -> None:
        """Tell what there is to tell, and no more; work that belongs to this follower is broken off first."""
        if self._feed.belongs_to_follower:
            self._feed.cancel()
        self._changed.set()

    def _wake(self) -> None:
        """Called by the feed, in its thread; many changes before the loop comes round are one wake-up."""
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):  # the loop has ended; the feed goes on without its follower
                self._loop.call_soon_threadsafe(self._changed.set)

    async def _listen(self, receive: Receive) -> None:
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        finally:
            self._gone = True
            self._changed.set()

    async def _tell(self, send: Send, check: Callable[[], None]) -> None:
        while not self._gone and _passes(check):
            self._changed.clear()
            self._woken = False
            closed = self._feed.closed  # asked first: what was published before the end is then seen
            entries = self._feed.events(self._after)
            if entries:
                await send(self._message(entries))
                self._after = entries[-1][0]
            elif closed or (self._streams.closing and not self._feed.belongs_to_follower):
                return
            else:
                await self._wait(send)

    async def _wait(self, send: Send) -> None:
        try:
            async with asyncio.timeout(self._streams.heartbeat):
                await self._changed.wait()
        except TimeoutError:
            if not self._feed.events(self._after):
                await send(self._message(self._feed.events()[-1:]))

    def _message(self, entries: Iterable[tuple[int, Message]]) -> dict[str, object]:
        frames = b"".join(self._frame(seq, event) for seq, event in entries)
        return {"type": "http.response.body", "body": frames, "more_body": True}

    def _frame(self, seq: int, event: Message) -> bytes:
        data = b"data: " + msgspec.json.encode(event) + b"\n\n"
        return b"id: %d\n%b" % (seq, data) if self._with_ids else data


def _passes(check: Callable[[], None]) -> bool:
    try:
        check()
    except KawaiError:
        return False
    return True


def _wants_ids(headers: Headers) -> bool:
    return any(_MEDIA_TYPE in value.lower() for value in headers.getlist("accept"))
