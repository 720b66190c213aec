"""Runs the application on a socket until a signal ends it."""

import asyncio
import errno
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from types import FrameType
from typing import Any, NamedTuple

import uvicorn
from uvicorn.server import ServerState

from kawai_tools.api.app import App
from kawai_tools.api.guard import HEAD_LIMIT
from kawai_tools.api.ports import holder_of
from kawai_tools.api.protocol import Protocol
from kawai_tools.errors import InvalidConfig, PortInUse

DESCRIPTORS = 4096
STREAMS_GRACE = 30.0
"""Seconds that answers get to come to their end when the server does."""

GRACE = 3
"""Seconds that requests in flight get when the server ends."""


def listen(host: str, port: int) -> socket.socket:
    """Listen on ``host``; port 0 takes any free one (``getsockname()[1]`` tells which).

    Raises ``PortInUse``, or ``InvalidConfig`` where this machine cannot listen there.
    """
    try:
        family, kind, protocol, _, address = _resolve(host, port)
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise _cannot_listen(host, port, error) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise _cannot_listen(host, port, error, str(address[0])) from error
    return listener


def _resolve(host: str, port: int) -> tuple[int, int, int, str, tuple[object, ...]]:
    """The address to bind: of a name with several the IPv4 one, as for the default host."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return min(found, key=lambda each: each[0] != socket.AF_INET)


def _cannot_listen(
    host: str, port: int, error: OSError | UnicodeError, address: str = ""
) -> PortInUse | InvalidConfig:
    if isinstance(error, UnicodeError):
        return InvalidConfig(f"cannot listen on {host}: it is no name of a host", "choose --host and --port")
    if error.errno == errno.EADDRINUSE:
        return PortInUse(
            f"port {port} on {host} is in use by {holder_of(port, address) or 'another program'}",
            f"stop it, or choose another port: kawai serve --port {port + 1 if port < 65535 else 0}",  # noqa: PLR2004
        )
    return InvalidConfig(
        f"cannot listen on {host}, port {port}: {error.strerror}", "choose --host and --port"
    )


class _State(ServerState):
    """uvicorn's state of a server, with a Date that is made when it is asked for: nothing ticks."""

    _second, _headers = 0, list[tuple[bytes, bytes]]()

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """What every answer has."""
        second = int(time.time())
        if second != self._second:
            self._second, self._headers = second, [(b"date", formatdate(second, usegmt=True).encode())]
        return self._headers

    @default_headers.setter
    def default_headers(self, _: object) -> None:
        pass


def _nothing() -> None:
    pass


class Calls(NamedTuple):
    """Whom a server calls: ``ready`` once connections are taken.

    ``stop`` in a thread when the server begins to end; it may block: streams still tell what it brings about.
    ``reread`` in a thread at SIGHUP, and what that returns in the event loop.
    """

    ready: Callable[[], None]
    stop: Callable[[], None] = _nothing
    reread: Callable[[], Callable[[], None]] = lambda: _nothing


class Server(uvicorn.Server):
    """uvicorn, ended by a signal or :meth:`stop` without raising the signal again afterwards."""

    def __init__(self, app: App, calls: "Calls") -> None:
        """Prepare to serve ``app``."""
        super().__init__(_config(app))
        self.server_state = _State()
        self._forced = asyncio.Event()
        self._ending: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._kawai = app
        self._calls = calls
        self._rereading: asyncio.Task[None] | None = None
        self._wants_reread = False
        self._watched = _is_watched()
        self.signal: int | None = None

    def stop(self) -> None:
        """End soon. From any thread."""
        self.should_exit = True
        self._wake()

    def _wake(self) -> None:
        if self._ending is not None:
            loop, ending = self._ending
            loop.call_soon_threadsafe(ending.set)

    async def main_loop(self) -> None:
        """Wait for the end; an idle server computes nothing."""
        ending = asyncio.Event()
        self._ending = asyncio.get_running_loop(), ending
        while not self.should_exit:
            await ending.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Remember the signal; a second interrupt waits for nobody."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        if self.force_exit and self._ending is not None:
            self._ending[0].call_soon_threadsafe(self._forced.set)
        self.should_exit = True
        self.signal = sig
        self._wake()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections, and say so."""
        await super().startup(sockets)
        self._kawai.begin()
        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hang_up)
        self._calls.ready()

    def _hang_up(self) -> None:
        """Read the configuration again; but end with the terminal that the server was started on."""
        if self._watched and not _is_watched():
            self.handle_exit(signal.SIGHUP, None)
            return
        self._wants_reread = True
        if not self.should_exit and (self._rereading is None or self._rereading.done()):
            self._rereading = asyncio.create_task(self._reread())

    async def _reread(self) -> None:
        """Once for all that was asked before it begins."""
        while self._wants_reread and not self.should_exit:
            self._wants_reread = False
            (await asyncio.to_thread(self._calls.reread))()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, let streams come to their end, then the other requests."""
        for server in self.servers:
            server.close()
        draining = asyncio.gather(asyncio.to_thread(self._calls.stop), self._kawai.drain(STREAMS_GRACE))
        forced = asyncio.create_task(self._forced.wait())
        either: set[asyncio.Future[Any]] = {draining, forced}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            await self._kawai.drain(0.0)
        forced.cancel()
        self._kawai.close()
        await super().shutdown(sockets)
        self._kawai.stop_logging()


def serve(app: App, listeners: list[socket.socket], calls: Calls) -> None:
    """Serve until SIGINT or SIGTERM, see :class:`Server`."""
    _allow_descriptors()
    Server(app, calls).run(listeners)


def _is_watched() -> bool:
    """Whether there is a terminal on stderr, and its other side is still there."""
    return sys.stderr is not None and os.isatty(2)


def _allow_descriptors() -> None:
    """Make room for every connection that is served at a time, as far as this user may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _config(app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="asyncio",  # uvloop slows downloads that are followed: its writes hold the GIL
        http=Protocol,  # on h11: httptools takes a missing or doubled Host
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE,
        h11_max_incomplete_event_size=HEAD_LIMIT,
    )
