"""Asks a runner: HTTP/1.1 over its UNIX socket, by hand: nothing else is fast enough for every token."""

import asyncio
import re
import socket
import time
from collections.abc import Awaitable, Callable
from typing import cast

import msgspec

from kawai_tools.errors import UNDECODABLE, EngineFailed
from kawai_tools.runners.process import Target

_HEAD, _KEPT = 1 << 16, 1 << 18
_IN_LINE, _TICK = 30.0, 0.005
_LINE = 64
"""Bytes that the size of a chunk may take."""

_PASSED = frozenset({b"content-type", b"cache-control"})
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?: |$)")
_LENGTH = re.compile(rb"\d{1,18}")
_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}")


_BREAKS = (OSError, EOFError, ValueError)
"""An engine that goes in the middle of its answer, or answers what is no HTTP."""


def _broken_off(*, begun: bool = True) -> EngineFailed:
    words = "broke off in the middle of its answer" if begun else "cannot be reached: it has gone"
    failed = EngineFailed(f"the engine {words}", "ask again")
    failed.died, failed.retry_safe = True, not begun
    return failed


def _take_chunks(buffer: bytearray) -> tuple[bytes, bool]:
    """Take whole chunks from the start of a buffer (RFC 9112, 7.1); what they hold, and whether all ended.

    Raises ``ValueError`` for what is no chunk.
    """
    found: list[bytes] = []
    at, ended = 0, False
    while (line := buffer.find(b"\r\n", at, at + _LINE)) >= 0:
        size = _hexadecimal(bytes(buffer[at:line].partition(b";")[0].rstrip(b" \t")))
        stop = line + 2 + size
        if ended := not size:
            break
        if len(buffer) < stop + 2:
            break
        if buffer[stop : stop + 2] != b"\r\n":
            raise ValueError("a chunk does not end where it says")
        found.append(bytes(buffer[line + 2 : stop]))
        at = stop + 2
    else:
        if len(buffer) - at > _LINE:
            raise ValueError("a chunk has no size")
    del buffer[:at]
    return found[0] if len(found) == 1 else b"".join(found), ended


def _hexadecimal(digits: bytes) -> int:
    if not _SIZE.fullmatch(digits):
        raise ValueError("the size of a chunk is no number")
    return int(digits, 16)


class _Wire(asyncio.Protocol):
    """What comes over a connection, until it is taken; no more than so much is kept."""

    def __init__(self) -> None:
        self.buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._has_ended = self._is_paused = False
        self._sink: Callable[[], bool] | None = None
        self._problem: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self._sink is not None and self._pass_on():
            return
        if len(self.buffer) > _KEPT:
            self._pause()
        self._wake()

    def _pass_on(self) -> bool:
        """Let the sink take what has come; whether it will take more without anybody's help."""
        try:
            if self._sink is not None and self._sink():
                return True
        except Exception as error:  # noqa: BLE001 - raised again where it is waited for
            self._problem = error
        self._sink = None
        self._pause()
        return False

    def _pause(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
            self._is_paused = True

    def eof_received(self) -> None:
        self._has_ended = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - as the base class
        self.eof_received()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def drained_by(self, sink: Callable[[], bool]) -> None:
        """Let ``sink`` take what comes when it comes, until it returns false. Raises what it raises.

        It is called by the event loop itself: a task that is woken for each piece costs as much again.
        Raises ``EOFError`` where nothing comes any more.
        """
        if not sink():
            return
        self._sink = sink
        while self._sink is not None:
            await self._wait()
            if self._problem is not None:
                raise self._problem
            if self._has_ended and self._sink is not None:
                raise EOFError

    async def more(self) -> None:
        """Wait for more than there is. Raises ``EOFError`` where nothing comes any more."""
        before = len(self.buffer)
        await self._wait()
        if len(self.buffer) == before:
            raise EOFError

    async def _wait(self) -> None:
        if self._has_ended:
            raise EOFError
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def send(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def _at_once() -> None:
    """Room where there always is some."""


class Upstream:
    """One request to an engine, and its answer."""

    def __init__(self, wire: _Wire) -> None:
        """Made by :func:`ask`."""
        self._wire = wire
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._left: int | None = None
        self._chunked = False

    async def read_head(self) -> None:
        """Wait for the answer's head. Raises ``EngineFailed``."""
        try:
            await self._read_head()
        except _BREAKS as error:
            raise _broken_off() from error

    async def _read_head(self) -> None:
        buffer = self._wire.buffer
        while not 200 <= self.status < 300 and not 400 <= self.status < 600:  # noqa: PLR2004 - HTTP's classes
            while (end := buffer.find(b"\r\n\r\n")) < 0:
                if len(buffer) > _HEAD:
                    raise ValueError("the head does not end")
                await self._wire.more()
            head = bytes(buffer[:end])
            del buffer[: end + 4]
            self._take_head(head)

    def _take_head(self, head: bytes) -> None:
        """What of an answer's head matters. Raises ``ValueError`` for what is no answer to a ``POST``."""
        first, *lines = head.split(b"\r\n")
        found = _STATUS.match(first)
        if found is None or found[1][:1] in b"036789" or found[1] == b"101":
            raise ValueError(f"no status for an answer: {first[:40]!r}")
        self.status = int(found[1])
        self.headers = []
        for line in lines:
            name, _, value = line.partition(b":")
            self._take_header(name.lower(), value.strip())
        if self._chunked and self._left is not None:
            raise ValueError("a body has either a length or chunks")
        if self._left is not None:
            self.headers.append((b"content-length", str(self._left).encode()))

    def _take_header(self, name: bytes, value: bytes) -> None:
        if name == b"transfer-encoding":
            if value.lower() != b"chunked":
                raise ValueError("a coding of the transfer that nobody asked for")
            self._chunked = True
        elif name == b"content-length":
            if self._left is not None or not _LENGTH.fullmatch(value):
                raise ValueError("no length for a body")
            self._left = int(value)
        elif not name or name.strip() != name or not value.isascii() or not value.decode().isprintable():
            raise ValueError("no header")
        elif name in _PASSED:
            self.headers.append((name, value))

    async def body(self) -> bytes:
        """All of the body. Raises ``EngineFailed`` where it breaks off."""
        found = bytearray()

        def keep(piece: bytes) -> bool:
            found.extend(piece)
            return True

        await self.pour(keep)
        return bytes(found)

    @property
    def length(self) -> int | None:
        """Bytes of the body that are still to come, where that is known."""
        return self._left

    async def begun(self) -> None:
        """Wait until some of the body is here, or none is to come. Raises ``EngineFailed``."""
        try:
            while not self._wire.buffer and (self._chunked or self._left):
                await self._wire.more()
        except _BREAKS as error:
            raise _broken_off() from error

    async def pour(
        self, sink: Callable[[bytes], bool], room: Callable[[], Awaitable[None]] = _at_once
    ) -> None:
        """Give the body to ``sink`` as it comes; whole chunks, those together that came together.

        Where ``sink`` returns false, it is given no more until ``room`` has been awaited, and the engine is
        made to wait. Raises ``EngineFailed`` where the body breaks off.
        """
        take, ended = _take_chunks if self._chunked else self._take, False

        def flow() -> bool:
            nonlocal ended
            piece, ended = take(self._wire.buffer)
            has_room = sink(piece) if piece else True
            return has_room and not ended

        try:
            while not ended:
                await self._wire.drained_by(flow)
                if not ended:
                    await room()
        except EOFError as error:
            if self._chunked or self._left is not None:
                raise _broken_off() from error
        except _BREAKS as error:
            raise _broken_off() from error

    def _take(self, buffer: bytearray) -> tuple[bytes, bool]:
        """What has come of a body that is no chunks, and whether that was the end."""
        piece = bytes(buffer if self._left is None else buffer[: self._left])
        del buffer[: len(piece)]
        if self._left is None:
            return piece, False
        self._left -= len(piece)
        return piece, not self._left

    def close(self) -> None:
        """Hang up."""
        self._wire.close()


async def _connect(path: str) -> _Wire:
    """Connect, once there is a place among those that wait to be accepted. Raises ``OSError``.

    Linux answers a full line with ``EAGAIN`` (``connect(2)``), which asyncio takes for a connection.
    """
    wire = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        wire.settimeout(0)
        until = time.monotonic() + _IN_LINE
        while True:
            try:
                wire.connect(path)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(_TICK)
        _, made = await asyncio.get_running_loop().create_unix_connection(_Wire, sock=wire)
    except BaseException:
        wire.close()
        raise
    return made


async def busy_slots(target: Target) -> int | None:
    """How many requests an engine works on (llama-server's ``GET /slots``); ``None`` if it does not tell."""
    try:
        upstream = await ask(target, "/slots", b"", method="GET")
        try:
            await upstream.read_head()
            said = await upstream.body()
        finally:
            upstream.close()
        slots = _SLOTS.decode(said) if upstream.status == _OK else None
    except (EngineFailed, *UNDECODABLE):
        return None
    return None if slots is None else sum(slot.is_processing for slot in slots)


class _Slot(msgspec.Struct):
    is_processing: bool


_SLOTS = msgspec.json.Decoder(list[_Slot])
_OK = 200


async def ask(
    target: Target, path: str, query: bytes, body: bytes = b"", *, method: str = "POST"
) -> Upstream:
    """Send a request to an engine. Raises ``EngineFailed``."""
    try:
        wire = await _connect(target.socket)
    except _BREAKS as error:
        raise _broken_off(begun=False) from error
    where = path + (f"?{query.decode('latin-1')}" if query else "")
    head = (
        f"{method} {where} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Authorization: Bearer {target.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    wire.send(head.encode("latin-1") + body)
    return Upstream(wire)
