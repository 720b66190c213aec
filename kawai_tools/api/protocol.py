"""HTTP/1.1 under deadlines and limits: what uvicorn leaves to the client, and answers in words of its own.

A head must be complete within 15 s of its first byte (an idle connection is closed without a word), a body
may not pause for 15 s, and a head is at most 64 KiB; whatever h11 refuses is answered with an error of the
one shape. A connection that was refused is still read for a moment, since closing it at once makes the
kernel reset it, and clients that are still sending then lose the answer.
"""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable
from typing import Any

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol

from kawai_tools.api.errors import LINGER
from kawai_tools.errors import ErrorBody, HeadTooLarge, InvalidRequest, KawaiError, RequestTimeout, TooMany

PATIENCE = 15.0
"""Seconds for a whole head, and between two pieces of a body."""

UNREAD = 60.0
"""Seconds for which a client may leave unread what it is sent."""

MOST_CONNECTIONS = 1_000
"""At a time; those that say nothing are closed after ``PATIENCE``."""

_TOO_LARGE = 431


DIRECT = "kawai.direct"
"""The extension of an ASGI scope by which a body that has begun is sent without a coroutine a piece."""


class Direct:
    """Sends more of the body of one answer that has begun."""

    def __init__(self, protocol: "Protocol") -> None:
        """Of the request that was just read."""
        self._protocol = protocol
        self._cycle = protocol.cycle

    def write(self, body: bytes) -> bool:
        """Send a piece now; whether the client reads fast enough for another."""
        protocol = self._protocol
        if not self._cycle.disconnected:
            protocol.transport.write(protocol.conn.send(event=h11.Data(data=body)))
        return not protocol.flow.write_paused or self._cycle.disconnected

    async def drain(self) -> None:
        """Wait until it does."""
        await self._protocol.flow.drain()


class Protocol(H11Protocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as the base class
        """As uvicorn makes it."""
        super().__init__(*args, **kwargs)
        self.logger = logging.getLogger(__name__)
        self.logger.setLevel(logging.ERROR)  # what clients get wrong is their business
        self._deadline: asyncio.TimerHandle | None = None
        self._begun = self._refused = False
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as the base class
        """Wait for a head."""
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            self._refuse(TooMany("too many connections", "close some, or try again in a moment"))
        else:
            self._await(self._head_is_late)

    def pause_writing(self) -> None:
        """Begin to count: a client that reads nothing must not keep its connection for ever."""
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        self._read_again()
        super().resume_writing()

    def _read_again(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing."""
        self._await(None)
        self._read_again()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, unless the connection was refused."""
        if not self._refused:
            super().data_received(data)

    def handle_events(self) -> None:
        """Handle what has come, and wait for what has not."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:  # its application begins when this returns
            self.scope["extensions"] = {DIRECT: {"response": Direct(self)}}
        if self._refused or self.transport.is_closing():
            return
        state = self.conn.their_state
        if state is h11.IDLE and self.conn.trailing_data[0]:
            if not self._begun:
                self._begun = True
                self._await(self._head_is_late)
        elif state is h11.SEND_BODY:
            self._begun = False
            self._await(self._body_is_late)
        else:
            self._begun = False
            self._await(None)

    def _await(self, handler: Callable[[], None] | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(PATIENCE, handler) if handler else None

    def _head_is_late(self) -> None:
        if self._begun:
            self._refuse(RequestTimeout(f"the head of the request did not come within {PATIENCE:g} s"))
        elif not self.transport.is_closing():
            self.transport.close()

    def _body_is_late(self) -> None:
        if self.flow.read_paused:  # it is not the client that is slow
            self._await(self._body_is_late)
            return
        self._refuse(RequestTimeout(f"the body of the request paused for {PATIENCE:g} s"))
        self.cycle.disconnected = True
        self.cycle.message_event.set()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the base class's words say less
        """Answer what h11 refuses; it is being handled just now."""
        problem = sys.exc_info()[1]
        if getattr(problem, "error_status_hint", 400) == _TOO_LARGE:
            self._refuse(HeadTooLarge("the head of a request may have at most 64 KiB"))
        else:
            reason = str(problem).partition(":")[0]  # what follows repeats what was sent, tokens included
            self._refuse(InvalidRequest(f"this is not HTTP as it should be: {reason}"))

    def _refuse(self, error: KawaiError) -> None:
        """Answer, and close the connection once the client had a moment to read that."""
        self._refused = True
        self._await(None)
        if self.transport.is_closing():
            return
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.close()  # in the middle of another answer
            return
        body = msgspec.json.encode(ErrorBody(error.info))
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        answer = h11.Response(status_code=error.status, headers=headers, reason=b"")
        events = (answer, h11.Data(data=body), h11.EndOfMessage())
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        if self.transport.can_write_eof():
            with contextlib.suppress(OSError):  # it has gone already
                self.transport.write_eof()
        self.loop.call_later(LINGER, self.transport.close)
