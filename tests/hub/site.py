"""One HTTP/1.1 server on loopback: accepts, parses, asks for the answer, delivers it, records it."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING

from .delivery import Delivery
from .messages import Answer, Call, Request, ServerName

if TYPE_CHECKING:
    from socketserver import BaseServer

Route = Callable[[Call], Answer]
_LOOPBACK = "127.0.0.1"
_BODY_CAP = 1 << 20


class RequestLog:
    """What was asked and how it was answered, in the order of the answers' ends."""

    def __init__(self) -> None:
        """Start empty."""
        self._ended: dict[object, Request] = {}
        self._changed = threading.Condition()

    def close(self, ticket: object, request: Request) -> None:
        """Record an answer's end; a second record for a ticket replaces the first."""
        with self._changed:
            self._ended[ticket] = request
            self._changed.notify_all()

    def requests(self) -> list[Request]:
        """Return what was recorded."""
        with self._changed:
            return list(self._ended.values())

    def clear(self) -> None:
        """Forget what was recorded."""
        with self._changed:
            self._ended.clear()

    def wait_for(self, met: Callable[[list[Request]], bool], seconds: float) -> bool:
        """Wait until the recorded requests meet a condition; return whether they did."""
        with self._changed:
            return self._changed.wait_for(lambda: met(list(self._ended.values())), seconds)


class Site:
    """A server on one port, which it keeps from start to stop, also while it is down."""

    def __init__(
        self, name: ServerName, route: Route, log: RequestLog, rate: Callable[[], int | None]
    ) -> None:
        """Answer calls by `route`, at most `rate()` bytes a second on each connection."""
        self.name: ServerName = name
        self.route = route
        self.log = log
        self.rate = rate
        self.port = 0
        self._lock = threading.RLock()
        self._listener: socket.socket | None = None
        self._wake: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self._clients: dict[socket.socket, threading.Thread] = {}
        self._timer: threading.Timer | None = None

    @property
    def url(self) -> str:
        """The server's base URL, without a final slash."""
        return f"http://{_LOOPBACK}:{self.port}"

    def start(self, port: int = 0) -> None:
        """Take a port (0: any) and listen."""
        self._reserve(port)
        self.up()

    def up(self) -> None:
        """Listen, if not listening already."""
        with self._lock:
            if self._timer:
                self._timer.cancel()
            if self._acceptor or not self._listener:
                return
            self._listener.listen(128)
            wake, self._wake = socket.socketpair()
            self._acceptor = threading.Thread(
                target=self._accept, args=(self._listener, wake), name=f"{self.name}-accept", daemon=True
            )
            self._acceptor.start()

    def down(self, seconds: float | None = None) -> None:
        """Refuse connections (for a while, or until `up`) and break those there are."""
        with self._lock:
            self._close()
            self._reserve(self.port)
            if seconds is not None:
                self._timer = threading.Timer(seconds, self.up)
                self._timer.daemon = True
                self._timer.start()

    def stop(self) -> None:
        """Give up the port, break every connection and wait for their threads."""
        with self._lock:
            if self._timer:
                self._timer.cancel()
            threads = self._close()
        for thread in threads - {threading.current_thread()}:
            thread.join(5)

    def _reserve(self, port: int) -> None:
        # A socket that is bound and does not listen keeps the port and refuses connections.
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_LOOPBACK, port))
        self.port = listener.getsockname()[1]
        self._listener = listener

    def _close(self) -> set[threading.Thread]:
        if self._acceptor and self._wake:
            self._wake.close()
            self._acceptor.join()
            self._acceptor = None
        if self._listener:
            self._listener.close()
            self._listener = None
        clients = dict(self._clients)
        for client in clients:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        return set(clients.values())

    def _accept(self, listener: socket.socket, wake: socket.socket) -> None:
        with selectors.DefaultSelector() as selector, wake:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(wake, selectors.EVENT_READ)
            while all(key.fileobj is not wake for key, _ in selector.select()):
                client, address = listener.accept()
                thread = threading.Thread(
                    target=self._serve, args=(client, address), name=f"{self.name}-client", daemon=True
                )
                self._clients[client] = thread
                thread.start()

    def _serve(self, client: socket.socket, address: tuple[str, int]) -> None:
        try:
            with suppress(OSError):
                _Connection(client, address, self)
        finally:
            del self._clients[client]
            client.close()


class _Connection(BaseHTTPRequestHandler):
    """One connection, which may carry several requests."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, client: socket.socket, address: tuple[str, int], site: Site) -> None:
        self._site = site
        # the base class keeps its server only for its subclasses
        server: BaseServer = None  # type: ignore[assignment]
        super().__init__(client, address, server)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's name
        """Say nothing."""

    def _answer(self) -> None:
        call = self._call()
        self.rfile.read(min(int(self.headers.get("Content-Length") or 0), _BODY_CAP))
        answer = self._site.route(call)
        delivery = Delivery(self.connection, answer, self._site.rate)
        ticket = object()
        announced = -1

        def record(sent: int) -> None:
            nonlocal announced
            if sent != announced:
                announced = sent
                seen = (call.server, call.method, call.path, call.query, call.headers)
                self._site.log.close(ticket, Request(*seen, status=delivery.status, sent_bytes=sent))

        keep = False
        try:
            keep = delivery.send(head_only=self.command == "HEAD", ending=record)
        finally:
            if answer.manner.then:
                answer.manner.then()
            record(delivery.sent)
            self.close_connection = self.close_connection or not keep

    def _call(self) -> Call:
        path, _, query = self.path.partition("?")
        headers: dict[str, str] = {}
        for name, value in self.headers.items():
            known = headers.get(name.lower())
            headers[name.lower()] = value if known is None else f"{known}, {value}"
        return Call(self._site.name, self.command, path, query, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _answer  # noqa: N815 -- http.server
