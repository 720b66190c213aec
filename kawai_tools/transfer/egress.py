"""Where bytes may come from: which first addresses, which redirects, which resolved addresses.

A policy is a value that a test can make; the command line and the server each have theirs. A refused
first address is ``HostNotAllowed`` or ``Offline``, a refused redirect is ``BadRedirect``.
"""

import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

from kawai_tools.errors import BadRedirect, HostNotAllowed, InvalidSource, Offline, Unreachable
from kawai_tools.refs import without_user


class Origin(NamedTuple):
    """What a credential or a permission is bound to; the host in lower case, as DNS spells it."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """Host and, unless it is the scheme's own, port, as in a URL."""
        return self.bracketed if self.port == _PORTS[self.scheme] else f"{self.bracketed}:{self.port}"

    @property
    def bracketed(self) -> str:
        """The host, in brackets if it is an IPv6 address."""
        return f"[{self.host}]" if ":" in self.host else self.host


_PORTS = {"http": 80, "https": 443}


def origin_of(url: str) -> Origin:
    """Scheme, host and port of an http(s) URL. Raises ``InvalidSource``."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
        if not host.isascii():
            host = host.encode("idna").decode()
    except ValueError as error:
        raise InvalidSource(f"{without_user(url)} is not a valid URL: {error}") from None
    scheme = parts.scheme.lower()
    if scheme not in _PORTS or not host:
        raise InvalidSource(f"{url} is not an http or https address")
    return Origin(scheme, host.lower(), _PORTS[scheme] if port is None else port)


_PROTOCOLS = ipaddress.ip_network("192.0.0.0/24")
"""Special-purpose (RFC 6890), home of some clouds' metadata; older Pythons think parts of it global."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_IP = ipaddress.IPv4Address | ipaddress.IPv6Address


class Address(NamedTuple):
    """One address a name resolved to, as ``socket.connect`` wants it."""

    family: socket.AddressFamily
    sockaddr: tuple[str | int | bytes, ...]

    @property
    def ip(self) -> _IP:
        """The address, an IPv4 one out of its IPv6 wrapping (mapped, 6to4, NAT64)."""
        ip = ipaddress.ip_address(str(self.sockaddr[0]).split("%")[0])
        if isinstance(ip, ipaddress.IPv4Address):
            return ip
        if ip in _NAT64:
            return ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        return ip.ipv4_mapped or ip.sixtofour or ip

    @property
    def is_public(self) -> bool:
        """Whether anyone on the internet would reach the same machine by it."""
        ip = self.ip
        odd = ip.is_multicast or ip.is_reserved or getattr(ip, "is_site_local", False)
        return ip.is_global and not odd and ip not in _PROTOCOLS

    @property
    def is_near(self) -> bool:
        """Whether it is on this machine or an ordinary private network (link-local is neither)."""
        ip = self.ip
        odd = ip.is_link_local or ip.is_unspecified or ip.is_multicast or ip.is_reserved
        return ip.is_loopback or not (ip.is_global or odd)


def resolve(origin: Origin) -> list[Address]:
    """Every address of a host. Raises ``Unreachable``."""
    try:
        found = socket.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, OverflowError) as error:
        raise Unreachable(
            f"{origin.host} cannot be resolved: {error.args[-1] if error.args else error}",
            "check the name and the network connection",
        ) from error
    return list(dict.fromkeys(Address(family, tuple(sockaddr)) for family, _, _, _, sockaddr in found))


_LOCAL_NAME = re.compile(
    r"[^.:]+|.+\.(localhost|local|localdomain|internal|intranet|lan|home|corp|home\.arpa)"
)


def spelled(origin: Origin) -> Address | None:
    """The address that a host itself spells, this machine's for ``localhost``; ``None`` for other names."""
    host = "127.0.0.1" if re.fullmatch(r"(.+\.)?localhost", origin.host) else origin.host
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6  # noqa: PLR2004 - IPv4
    return Address(family, (host, origin.port))


def looks_near(origin: Origin) -> bool:
    """Whether a host, by its name alone, is on this machine or a private network."""
    address = spelled(origin)
    return address.is_near if address else _LOCAL_NAME.fullmatch(origin.host) is not None


def may_be_private(origin: Origin) -> bool:
    """Whether a host's name alone says that it is no public one, or is spelled so that nobody can tell."""
    address = spelled(origin)
    return not address.is_public if address else looks_near(origin) or _is_odd(origin.host)


def _is_odd(host: str) -> bool:
    """Whether a host is a number that only some resolvers read as an address, or no name at all."""
    if re.fullmatch(r"(0x[0-9a-f]*|\d+)(\.(0x[0-9a-f]*|\d+))*", host):
        return re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){3}", host) is None
    return re.fullmatch(r"[a-z0-9._-]+|[0-9a-f:.]+", host) is None


class Hop(NamedTuple):
    """The redirect that led somewhere: by which origin, and whether that is on a private network."""

    origin: Origin
    near: bool


@dataclass(frozen=True)
class Egress:
    """What may be fetched from where.

    ``hosts``: the only hosts a first address may name (``None``: any, the command line acts with its
    user's authority). ``trusted``: hosts that the configuration names; they may be private and plain, and
    redirect to other ports of their own. ``near``: the only others that may be private though nobody has
    typed their addresses (``None``: any, they were typed).
    """

    hosts: frozenset[str] | None = None
    trusted: frozenset[str] = frozenset()
    offline: bool = False
    near: frozenset[str] | None = None

    def check_first(self, origin: Origin) -> None:
        """Refuse an address that may not be asked at all."""
        if self.offline:
            raise Offline(
                f"{origin.authority} would have to be asked, and kawai is told to stay offline",
                "leave out --offline (KAWAI_OFFLINE)",
            )
        if self.hosts is not None and origin.host not in self.hosts | self.trusted:
            raise HostNotAllowed(
                f"this server does not fetch from {origin.host}",
                "its operator can add the host to pull_hosts (KAWAI_PULL_HOSTS)",
            )

    def check_redirect(self, before: Origin, url: str) -> None:
        """Refuse a redirect by its scheme or its spelling."""
        try:
            after = origin_of(url)
        except InvalidSource as error:
            raise BadRedirect(
                f"{before.authority} redirects to {url[:200]!r}, which is no web address"
            ) from error
        if self._is_own(before, after):
            return
        if after.host != before.host and _is_odd(after.host):
            raise BadRedirect(f"{before.authority} redirects to {after.host}, an oddly written address")
        if after.scheme == "http" and (self.hosts is not None or before.scheme == "https"):
            raise BadRedirect(f"{before.authority} redirects to {after.authority} without encryption")

    def check_addresses(self, via: Hop | None, after: Origin, found: list[Address]) -> None:
        """Refuse a redirect by what its host resolved to; ``via`` is ``None`` for a first address."""
        if via is None:
            self._check_untyped(after, all(each.is_public for each in found))
            return
        if self._is_own(via.origin, after):
            return
        near = via.near and self.hosts is None
        itself = near and via.origin.host == after.host
        refused = [each for each in found if not (each.is_public or itself or (near and each.is_near))]
        if refused or not found:
            shown = ", ".join(str(each.ip) for each in refused)
            raise BadRedirect(
                f"{via.origin.authority} redirects to {after.authority}, a private address ({shown})"
            )

    def _check_untyped(self, origin: Origin, public: bool) -> None:  # noqa: FBT001 - the one thing that counts
        """Refuse a private address that stands in a list, unless the configuration names its host."""
        if public or self.near is None or origin.host in self.near | self.trusted:
            return
        raise HostNotAllowed(
            f"{origin.host} is on a private network, and a list is no reason to go there",
            "add the host to pull_hosts (KAWAI_PULL_HOSTS) if it is meant",
        )

    def check_name(self, via: Hop | None, after: Origin) -> None:
        """Refuse a redirect to a name that a proxy will resolve, by what the name itself says."""
        address = spelled(after)
        if address is not None:
            self.check_addresses(via, after, [address])
        elif via is None:
            self._check_untyped(after, not looks_near(after))
        elif looks_near(after) and not self._is_own(via.origin, after):
            if self.hosts is None and via.near:
                return
            raise BadRedirect(f"{via.origin.authority} redirects to {after.authority}, a private name")

    def _is_own(self, before: Origin, after: Origin) -> bool:
        """Whether a configured host redirects within itself, not giving up encryption."""
        downgrade = (before.scheme, after.scheme) == ("https", "http")
        return before.host == after.host and before.host in self.trusted and not downgrade
