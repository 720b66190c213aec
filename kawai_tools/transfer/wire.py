"""Connections: to addresses that were checked, watched while they deliver, kept for the next request.

Everything here waits in short ticks, so that whoever cancels is heard also while a server is silent.
"""

import errno
import http.client
import io
import os
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from kawai_tools.transfer.cancelling import Cancelled as Cancelled  # noqa: PLC0414 - all that waits here raises it
from kawai_tools.transfer.egress import Address, Hop, Origin

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

HEAD_START = 0.25
"""Seconds after which the next address is tried too, as in RFC 8305."""

_SENDING = 60.0
"""Seconds in which a request must be sent at least."""

IDLE_SECONDS = 30.0
"""How long a connection is kept for another request."""


@dataclass(frozen=True)
class Timeouts:
    """Seconds: ``connect`` to any address; ``stall`` within which ``floor`` bytes must arrive."""

    connect: float = 10.0
    stall: float = 20.0
    floor: int = 2048
    tick: float = 0.25


class _Watched(io.RawIOBase):
    """A socket's incoming bytes, with the watchdog: too few bytes for too long is a timeout."""

    def __init__(
        self, raw: io.RawIOBase, sock: socket.socket, timeouts: Timeouts, cancelled: Callable[[], bool]
    ) -> None:
        super().__init__()
        self._raw = raw  # http.client's own view of the socket: keeps it open until we are closed
        self._sock = sock
        self._timeouts = timeouts
        self._cancelled = cancelled
        self._waited = 0.0
        self._received = 0

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()

    def readinto(self, buffer: "WriteableBuffer") -> int:
        while True:
            if self._cancelled():
                raise Cancelled
            begin = time.monotonic()
            try:
                count = self._sock.recv_into(buffer)
            except TimeoutError:
                count = None
            self._waited += time.monotonic() - begin
            self._received += count or 0
            if self._received >= self._timeouts.floor:
                self._received = 0
                self._waited = 0.0
            if count is not None and (count == 0 or self._waited < self._timeouts.stall):
                return int(count)
            if self._waited >= self._timeouts.stall:
                raise TimeoutError(f"less than {self._timeouts.floor} bytes in {self._timeouts.stall:g} s")


def connect(
    addresses: list[Address], timeouts: Timeouts, cancelled: Callable[[], bool]
) -> tuple[socket.socket, Address]:
    """Connect to the first address that answers; each has a head start before the next is tried too."""
    waiting, begun = list(addresses), dict[socket.socket, Address]()
    problem, next_at = OSError("it has no address"), 0.0
    until = time.monotonic() + timeouts.connect
    with selectors.DefaultSelector() as selector:
        try:
            while waiting or begun:
                if cancelled():
                    raise Cancelled
                now = time.monotonic()
                if now >= until:
                    raise TimeoutError(f"no connection in {timeouts.connect:g} s")
                try:
                    if waiting and (now >= next_at or not begun):
                        next_at = now + HEAD_START
                        address = waiting.pop(0)
                        sock = _begin(address)
                        begun[sock] = address
                        selector.register(sock, selectors.EVENT_WRITE)
                    for key, _ in selector.select(timeouts.tick if begun else 0):
                        sock = cast("socket.socket", key.fileobj)
                        selector.unregister(sock)
                        address = begun.pop(sock)
                        return _finish(sock), address
                except OSError as error:
                    problem = error
        finally:
            for each in begun:
                each.close()
    raise problem


def _begin(address: Address) -> socket.socket:
    """Begin to connect; that it has ended, well or not, is told by the socket becoming writable."""
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    sock.settimeout(0)
    code = sock.connect_ex(address.sockaddr)
    if code not in {0, errno.EINPROGRESS}:
        sock.close()
        raise OSError(code, os.strerror(code))
    return sock


def _finish(sock: socket.socket) -> socket.socket:
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        sock.close()
        raise OSError(code, os.strerror(code))
    return sock


_PROBES = {"TCP_KEEPIDLE": 30, "TCP_KEEPALIVE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


def _watch_for_death(sock: socket.socket) -> None:
    """Have the kernel notice within a minute that the other machine is gone: some answers take their time."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PROBES.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _handshake(tls: ssl.SSLSocket, timeouts: Timeouts, cancelled: Callable[[], bool]) -> None:
    until = time.monotonic() + timeouts.connect
    while True:
        try:
            tls.do_handshake()
        except TimeoutError:
            if cancelled():
                raise Cancelled from None
            if time.monotonic() >= until:
                raise
        else:
            return


class Connection(http.client.HTTPConnection):
    """A connection to an address that was already checked, with TLS for the name that was asked for."""

    def __init__(
        self, origin: Origin, addresses: list[Address], context: ssl.SSLContext | None, timeouts: Timeouts
    ) -> None:
        """Prepare; the first request connects."""
        super().__init__(origin.host, origin.port)
        self.origin = origin
        self.addresses = addresses
        self.context = context
        self.timeouts = timeouts
        self.reached: Address | None = None
        self.cancelled: Callable[[], bool] = lambda: False
        self.response_class = self._watch  # type: ignore[assignment] # called as the class would be

    def connect(self) -> None:
        """Connect; then the proxy's tunnel and TLS, where there are any."""
        self.sock, self.reached = connect(self.addresses, self.timeouts, self.cancelled)
        self.sock.settimeout(self.timeouts.tick)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _watch_for_death(self.sock)
        if self._tunnel_host:  # type: ignore[attr-defined] # http.client's own, set by set_tunnel
            self._tunnel()  # type: ignore[attr-defined]
        if self.context is not None:
            self.sock = self.context.wrap_socket(
                self.sock, server_hostname=self.origin.host, do_handshake_on_connect=False
            )
            _handshake(self.sock, self.timeouts, self.cancelled)

    def send(self, data: Any) -> None:  # noqa: ANN401 - as the base class
        """Send all of it, however long the other side takes to read; with TLS in records of its own."""
        if self.sock is None:
            self.connect()
        stall = self.timeouts.stall
        self.sock.settimeout(None if stall == float("inf") else max(stall, _SENDING))
        try:
            super().send(data)
        finally:
            if self.sock is not None:
                self.sock.settimeout(self.timeouts.tick)

    def _watch(self, sock: socket.socket, *_: object, method: str | None = None) -> http.client.HTTPResponse:
        """An answer that http.client reads through the watchdog."""
        answer = http.client.HTTPResponse(sock, method=method)
        raw = answer.fp.detach()
        answer.fp = io.BufferedReader(_Watched(raw, sock, self.timeouts, self.cancelled), 1 << 16)
        return answer


class Pool:
    """Connections that wait for another request, by what they are good for. Safe to share."""

    def __init__(self) -> None:
        """Begin empty."""
        self._idle: dict[tuple[Hop | None, Origin], list[tuple[float, Connection]]] = {}
        self._lock = threading.Lock()

    def take(self, via: Hop | None, origin: Origin) -> Connection | None:
        """A connection to an origin that was reached in the same way."""
        self._drop(time.monotonic() - IDLE_SECONDS)
        with self._lock:
            idle = self._idle.get((via, origin))
            return idle.pop()[1] if idle else None

    def keep(self, via: Hop | None, connection: Connection) -> None:
        """Keep a connection whose last answer was read to its end."""
        self._drop(time.monotonic() - IDLE_SECONDS)
        with self._lock:
            self._idle.setdefault((via, connection.origin), []).append((time.monotonic(), connection))

    def close(self) -> None:
        """End them all."""
        self._drop(float("inf"))

    def _drop(self, before: float) -> None:
        """End those that have been idle since before a moment."""
        with self._lock:
            old = [each for group in self._idle.values() for each in group if each[0] < before]
            kept = {key: [each for each in group if each[0] >= before] for key, group in self._idle.items()}
            self._idle = {key: group for key, group in kept.items() if group}
        for _, connection in old:
            connection.close()
