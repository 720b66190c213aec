"""Who listens on a port, as far as this user may see it (Linux: ``proc(5)``, ``net/tcp`` and ``fd``)."""

import ipaddress
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_IP = ipaddress.IPv4Address | ipaddress.IPv6Address
_LISTENS = "0A"
_PROC = Path("/proc")


def holder_of(port: int, address: str) -> str | None:
    """Name and process id of the program that keeps an address from being bound; ``None`` if not known."""
    wanted = ipaddress.ip_address(address.partition("%")[0])
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


def _listening(port: int, wanted: _IP) -> Iterator[str]:
    """The inodes of the sockets that listen on a port, at an address or at all of them."""
    for name in ("tcp", "tcp6"):
        try:
            lines = (_PROC / "net" / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            where, _, number = words[1].partition(":")
            if words[3] == _LISTENS and int(number, 16) == port:
                held = _address(where)
                if held.is_unspecified or wanted.is_unspecified or held == wanted:
                    yield words[9]


def _address(words: str) -> _IP:
    """An address as the kernel writes it: 32-bit words in the machine's own byte order."""
    data = b"".join(int(words[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(words), 8))
    found = ipaddress.ip_address(data)
    return getattr(found, "ipv4_mapped", None) or found


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
