"""Sends one answer down one connection, well or in the manner a fault wants."""

from __future__ import annotations

import socket
import struct
import time
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING

from .messages import BEFORE_HEAD, Answer, Span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PIECE = 1 << 16
_SPLICE = 1 << 22
_TICKS = 20  # a throttled body is sent in this many pieces a second
_BODILESS = {204, 304}


class GoneError(OSError):
    """The client hung up, or the server is being stopped."""


class Delivery:
    """One answer on its way; `sent` counts body bytes, without chunk framing."""

    def __init__(self, wire: socket.socket, answer: Answer, rate: Callable[[], int | None]) -> None:
        """Prepare to send `answer` over `wire` at `rate()` bytes a second."""
        self.sent = 0
        self.status = 0
        self._wire = wire
        self._answer = answer
        self._manner = answer.manner
        self._rate = rate
        self._due = 0.0

    def send(self, *, head_only: bool, ending: Callable[[int], None]) -> bool:
        """Send the answer; return whether the connection may carry another.

        `ending` is called with the final count of body bytes just before the last byte leaves, so that a
        client that has seen the whole answer also finds it recorded. Raises OSError where the client is gone.
        """
        manner = self._manner
        time.sleep(manner.delay)
        if manner.limit == BEFORE_HEAD:
            self._stop_short()
            return False
        bodiless = head_only or self._answer.status in _BODILESS
        length = 0 if bodiless else self._answer.body.length
        self.status = self._answer.status
        at_once = not manner.pause and self._rate() is None
        if manner.limit is None and length is not None and length <= (_PIECE if at_once else 0):
            ending(length)  # before the head, which is all that some clients read of a refusal
        self._wire.sendall(self._head())
        if bodiless:
            return manner.framing != "close"
        self._due = time.monotonic()
        self._send_body(length if manner.limit is None else None, ending)
        if manner.limit is not None:
            self._stop_short()
            return False
        if manner.framing == "chunked":
            ending(self.sent)
            self._wire.sendall(b"0\r\n\r\n")
        return manner.framing == "chunked" or (
            manner.framing == "length" and manner.claim in {None, self.sent}
        )

    def _head(self) -> bytes:
        answer, manner = self._answer, self._manner
        headers = {"Date": formatdate(usegmt=True), "Server": "kawai-local-hub", **answer.headers}
        if manner.framing == "chunked":
            headers["Transfer-Encoding"] = "chunked"
        elif manner.framing == "close":
            headers["Connection"] = "close"
        elif answer.status not in _BODILESS:
            headers["Content-Length"] = str(manner.claim if manner.claim is not None else answer.body.length)
        try:
            reason = HTTPStatus(answer.status).phrase
        except ValueError:
            reason = "Unknown"
        lines = [
            f"HTTP/1.1 {answer.status} {reason}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def _send_body(self, length: int | None, ending: Callable[[int], None]) -> None:
        body, limit, chunked = self._answer.body, self._manner.limit, self._manner.framing == "chunked"
        if isinstance(body, Span) and not chunked and not self._manner.pause:
            # the last piece goes the slow way, which announces the end
            self._splice(body, max(0, body.length - _PIECE if limit is None else min(limit, body.length)))
            body = Span(body.path, body.start + self.sent, body.stop)
        for whole in self._pieces_until(limit, body.pieces(self._size)):
            self._wait_turn()
            if not chunked and self.sent + len(whole) == length:
                ending(length)
            self._wire.sendall(b"%x\r\n%b\r\n" % (len(whole), whole) if chunked else whole)
            self.sent += len(whole)

    def _pieces_until(self, limit: int | None, pieces: Iterator[bytes]) -> Iterator[bytes]:
        if limit is not None and self.sent >= limit:
            return
        for piece in pieces:
            yield piece if limit is None else piece[: limit - self.sent]
            if limit is not None and self.sent >= limit:
                return

    def _splice(self, body: Span, count: int) -> None:
        """Send the first `count` bytes without copying them, as long as nothing slows the answer."""
        with body.path.open("rb") as file:
            while self.sent < count and self._rate() is None:
                try:
                    self._wire.sendfile(file, body.start + self.sent, min(_SPLICE, count - self.sent))
                finally:
                    self.sent = max(self.sent, file.tell() - body.start)

    def _size(self) -> int:
        if self._manner.pause:
            return max(1, min(_PIECE, self._manner.pause_after - self.sent))
        rate = self._rate()
        return _PIECE if rate is None else max(1, min(_PIECE, rate // _TICKS))

    def _wait_turn(self) -> None:
        if self._manner.pause and self.sent >= self._manner.pause_after:
            self._wait(self._manner.pause)
        elif (rate := self._rate()) is not None:
            # paced by the clock, so that late wake-ups do not add up
            now = time.monotonic()
            self._due = max(self._due, now - 1 / _TICKS) + self._size() / rate
            if self._due > now:
                self._wait(self._due - now)

    def _wait(self, seconds: float | None) -> None:
        """Wait, but no longer than the client stays (None: until it leaves)."""
        self._wire.settimeout(seconds)
        try:
            while self._wire.recv(_PIECE):
                pass  # a pipelined request, which a slow answer is allowed to lose
            raise GoneError
        except TimeoutError:
            return
        finally:
            self._wire.settimeout(None)

    def _stop_short(self) -> None:
        manner = self._manner
        if manner.silent_at is not None and manner.silent_at == manner.limit:
            self._wait(None)
        if manner.reset:
            self._wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
