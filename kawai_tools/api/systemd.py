"""What systemd hands to a service, and what it wants to hear from it.

Sockets come as descriptors from 3 on (``sd_listen_fds(3)``: ``LISTEN_PID``, ``LISTEN_FDS``), news go as
datagrams to ``NOTIFY_SOCKET`` (``sd_notify(3)``). Both are plain protocols that need no library.
"""

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

from kawai_tools.errors import InvalidConfig

_FIRST = 3
_LISTEN = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def take_sockets(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """The sockets that were handed over to this process, which listen; none where there are none.

    The variables that tell of them are removed, and no child inherits the descriptors. Raises
    ``InvalidConfig`` for what is no listening TCP socket.
    """
    told = [environ.pop(name, "") for name in _LISTEN]
    if told[0] != str(os.getpid()):
        return []
    count = int(told[1]) if told[1].isascii() and told[1].isdigit() and len(told[1]) < 4 else 0  # noqa: PLR2004
    return [_taken(fd) for fd in range(_FIRST, _FIRST + count)]


def _taken(fd: int) -> socket.socket:
    try:
        os.set_inheritable(fd, False)  # noqa: FBT003 - as it is
        taken = socket.socket(fileno=fd)
    except OSError as error:
        raise _unfit(fd, f"it is no socket ({error.strerror})") from error
    if taken.family not in {socket.AF_INET, socket.AF_INET6} or taken.type != socket.SOCK_STREAM:
        raise _unfit(fd, "it is no TCP socket")
    if not taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise _unfit(fd, "it does not listen")
    taken.settimeout(0)
    return taken


def _unfit(fd: int, why: str) -> InvalidConfig:
    return InvalidConfig(
        f"kawai cannot serve on descriptor {fd}, which was handed over: {why}",
        "use ListenStream=ADDRESS:PORT and Accept=no in the socket unit",
    )


class Notifier:
    """Tells the service manager how the server is, where one listens."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        """The variable that names the manager's socket is removed: children have nothing to say to it."""
        name = environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name

    def ready(self, status: str) -> None:
        """Connections are taken."""
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """The configuration is being read again; :meth:`ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """No more connections are taken."""
        self._send("STOPPING=1\nSTATUS=letting answers come to their end")

    def _send(self, words: str) -> None:
        """Never raise: a manager that does not listen any more is no reason to fail."""
        if self._address:
            with (
                contextlib.suppress(OSError),
                socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
            ):
                sender.settimeout(1)
                sender.sendto(words.encode(), self._address)
