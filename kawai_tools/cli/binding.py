"""Where a server may listen, and that one home has one server."""

import contextlib
import ipaddress
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kawai_tools.errors import AlreadyServing, InvalidRequest
from kawai_tools.files import Lock, make_directory
from kawai_tools.remote.daemon import find_daemon, serve_file, serve_lock

if TYPE_CHECKING:
    from kawai_tools.settings import Settings

_LOCK_PATIENCE = 1.0
_ALL = {"0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "::1"}  # noqa: S104 - not bound here
"""Addresses that stand for all, and by which a server that listens there is reached from this machine."""


class Bound(NamedTuple):
    """A socket that listens, and how it is reached."""

    listener: socket.socket
    host: str
    port: int

    @classmethod
    def of(cls, listener: socket.socket, host: str | None = None) -> "Bound":
        """Of a socket, by the host that was asked for, else the address that it has."""
        address, port = listener.getsockname()[:2]
        return cls(listener, address if host is None else host, port)

    @property
    def url(self) -> str:
        """Its address as it was asked for."""
        return _url(self.host, self.port)

    @property
    def near_url(self) -> str:
        """An address by which this machine reaches it."""
        return _url(_ALL.get(self.host, self.host), self.port)


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_binding(hosts: Iterable[str], settings: "Settings") -> None:
    """Refuse to be reached from other machines by anybody, or under a name that nobody has given.

    Raises ``InvalidRequest``.
    """
    for host in hosts:
        if _is_loopback(host):
            continue
        if not (settings.auth or settings.strict or settings.insecure):
            raise InvalidRequest(
                f"kawai serve on {host} could be used by everybody who reaches it",
                "add --auth to ask for tokens (or --insecure, if that is meant), or leave --host out",
            )
        if not settings.allow_hosts:
            raise InvalidRequest(
                f"kawai serve on {host} needs to know by which name clients will ask for it",
                "add --allow-host NAME, as it stands in their URLs",
            )


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host.lower() == "localhost"


@contextmanager
def only_one(state_dir: Path) -> Iterator[None]:
    """Be the server of this home. Raises ``AlreadyServing``."""
    make_directory(serve_file(state_dir).parent, mode=0o700)
    lock = serve_lock(state_dir)
    if not _acquired(lock):
        daemon = find_daemon(state_dir)
        where = f" on {daemon.url} (pid {daemon.pid})" if daemon else ""
        raise AlreadyServing(f"another kawai serves this home{where}", "use that one, or another --home")
    try:
        yield
    finally:
        lock.release()


def _acquired(lock: Lock) -> bool:
    """Whoever looks whether a daemon lives holds the lock for a moment: that is no daemon."""
    until = time.monotonic() + _LOCK_PATIENCE
    while not lock.acquire():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True
