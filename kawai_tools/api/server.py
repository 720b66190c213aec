"""Runs the application on a socket until a signal ends it."""

import asyncio
import errno
import resource
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from kawai_tools.api.app import App
from kawai_tools.api.guard import HEAD_LIMIT
from kawai_tools.api.ports import holder_of
from kawai_tools.api.protocol import Protocol
from kawai_tools.errors import InvalidConfig, PortInUse

DESCRIPTORS = 4096
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


class Server(uvicorn.Server):
    """uvicorn, ended by a signal or :meth:`stop` without raising the signal again afterwards."""

    def __init__(
        self, app: App, *, on_ready: Callable[[], None], on_stop: Callable[[], None] = lambda: None
    ) -> None:
        """Prepare to serve ``app``.

        ``on_ready`` is called once connections are taken. ``on_stop`` is called in a thread when the server
        begins to end, and may block: streams still tell what it brings about.
        """
        super().__init__(_config(app))
        self._kawai = app
        self._on_ready = on_ready
        self._on_stop = on_stop
        self.signal: int | None = None

    def stop(self) -> None:
        """End soon. From any thread."""
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """Remember the signal; a second interrupt waits for nobody."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        self.signal = sig

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections, and say so."""
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, let streams come to their end, then the other requests."""
        for server in self.servers:
            server.close()
        await asyncio.to_thread(self._on_stop)
        self._kawai.close()
        await super().shutdown(sockets)


def serve(
    app: App,
    listener: socket.socket,
    *,
    on_ready: Callable[[], None],
    on_stop: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGINT or SIGTERM, see :class:`Server`."""
    _allow_descriptors()
    Server(app, on_ready=on_ready, on_stop=on_stop).run([listener])


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
