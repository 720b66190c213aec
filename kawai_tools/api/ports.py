"""Who listens on a port, and who connects from one (Linux: ``proc(5)``, ``net/tcp`` and ``fd``)."""

import ipaddress
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_IP = ipaddress.IPv4Address | ipaddress.IPv6Address
_LISTENS, _CONNECTED = "0A", "01"
_PROC = Path("/proc")


def holder_of(port: int, address: str) -> str | None:
    """Name and process id of the program that keeps an address from being bound; ``None`` if not known."""
    wanted = _plain(address)
    inodes = {f"socket:[{inode}]" for inode in _listening(port, wanted)}
    if not inodes:
        return None
    for process in _PROC.glob("[0-9]*"):
        if any(link in inodes for link in _links(process)):
            try:
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
            except OSError:
                return None
    return None


def user_of(client: tuple[str, int], server: tuple[str, int]) -> int | None:
    """The id of the user who has this connection from ``client`` to ``server``; ``None`` if not from here.

    One port may have connections of several users to several servers, and some that are over count as root's.
    """
    here, there = _plain(client[0]), (_plain(server[0]), server[1])
    found = (each for each in _sockets(client[1]) if each.state == _CONNECTED)
    return next((each.user for each in found if (each.address, each.peer) == (here, there)), None)


def _listening(port: int, wanted: _IP) -> Iterator[str]:
    """The inodes of the sockets that listen on a port, at an address or at all of them."""
    for each in _sockets(port):
        is_meant = each.address.is_unspecified or wanted.is_unspecified or each.address == wanted
        if each.state == _LISTENS and is_meant:
            yield each.inode


class _Socket(NamedTuple):
    """One end of a connection, or what waits for some, on this side of it."""

    address: _IP
    peer: tuple[_IP, int]
    state: str
    user: int
    inode: str


def _sockets(port: int) -> Iterator[_Socket]:
    """All that have this port here."""
    for name in ("tcp", "tcp6"):
        try:
            lines = (_PROC / "net" / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            here, there = _end(words[1]), _end(words[2])
            if here[1] == port:
                yield _Socket(here[0], there, words[3], int(words[7]), words[9])


def _plain(address: str) -> _IP:
    found = ipaddress.ip_address(address.partition("%")[0])
    return getattr(found, "ipv4_mapped", None) or found


def _end(text: str) -> tuple[_IP, int]:
    """An address, as the kernel writes it in 32-bit words of the machine's own byte order, and a port."""
    words, _, number = text.partition(":")
    data = b"".join(int(words[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(words), 8))
    found = ipaddress.ip_address(data)
    return getattr(found, "ipv4_mapped", None) or found, int(number, 16)


def _links(process: Path) -> Iterator[str]:
    """What a process has open; nothing of one that is another user's, or has ended."""
    try:
        names = os.listdir(process / "fd")  # noqa: PTH208 - names are all that is wanted
    except OSError:
        return
    for name in names:
        try:
            yield os.readlink(process / "fd" / name)  # noqa: PTH115 - the text, whatever it names
        except OSError:
            continue
