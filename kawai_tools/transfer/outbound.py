"""The one way out over HTTP: redirects by hand, bound credentials, proxies, timeouts, egress policy.

Built on ``http.client`` because its ``readinto`` fills our buffer at the speed of the socket with almost
no CPU, and because a connection can be made to exactly the address that the policy has checked. Bodies
are asked for unencoded (``identity``): what is hashed is what was sent.
"""

import base64
import http.client
import ipaddress
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, urljoin, urlsplit

from kawai_tools.errors import BadCertificate, BadRedirect, Unreachable
from kawai_tools.transfer.egress import Egress, Hop, Origin, looks_near, origin_of, resolve
from kawai_tools.transfer.responses import NETWORK_ERRORS, REDIRECTS, Response, translate
from kawai_tools.transfer.wire import Cancelled, Connection, Pool, Timeouts

__all__ = ["REDIRECTS", "Cancelled", "Outbound", "Response", "Route", "Timeouts", "next_url"]

MAX_REDIRECTS = 10
_REFUSED_EARLY = (BrokenPipeError, ConnectionResetError)
"""What sending a body meets where the answer came before its end: that is to be read."""


@dataclass(frozen=True)
class Route:
    """How addresses are reached: proxies by scheme, hosts without one, certificates to trust."""

    proxies: Mapping[str, str] = field(default_factory=dict)
    no_proxy: tuple[str, ...] = ()
    cert_file: Path | None = None

    def proxy_for(self, origin: Origin) -> str | None:
        """The proxy's URL, or ``None`` for a direct connection."""
        direct = any(_is_named(name, origin.host) for name in self.no_proxy)
        return None if direct else self.proxies.get(origin.scheme)


def _is_named(name: str, host: str) -> bool:
    """Whether an entry of ``NO_PROXY`` means a host, as curl reads it: domains, addresses, networks, *."""
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(name.strip("[]"), strict=False)
    except ValueError:
        domain = name.removeprefix("*").removeprefix(".").partition(":")[0]
        return name == "*" or (domain != "" and (host == domain or host.endswith(f".{domain}")))


class Outbound:
    """Makes every request that leaves kawai. Safe to share between threads."""

    def __init__(
        self,
        egress: Egress,
        *,
        agent: str,
        route: Route | None = None,
        credentials: Mapping[Origin, str] | None = None,
        timeouts: Timeouts | None = None,
    ) -> None:
        """``credentials`` are ``Authorization`` values, each sent to its own origin and to no other."""
        self.egress = egress
        self.credentials = dict(credentials or {})
        self._agent = agent
        self._route = route or Route()
        self._timeouts = timeouts or Timeouts()
        self._pool = Pool()
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        body: bytes | None = None,
        follow: bool = True,
        via: Hop | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Response:
        """Send a request and follow its redirects unless told not to; one with a body follows none.

        ``via`` is the redirect that led to this URL earlier (``Response.via``): its rules apply then.
        Raises ``Offline``, ``HostNotAllowed``, ``BadRedirect``, a kind of ``Upstream`` or ``Cancelled``;
        a status, whatever it is, is the caller's to judge.
        """
        seen = {url}
        if via is None:
            self.egress.check_first(origin_of(url))
        for _ in range(MAX_REDIRECTS):
            response, near = self._send(method, url, headers or {}, body, via, cancelled)
            location = response.header("Location")
            if not follow or body is not None or response.status not in REDIRECTS or location is None:
                return response
            response.close()
            via = Hop(origin_of(url), near)
            url = next_url(url, location)
            self.egress.check_redirect(via.origin, url)
            if url in seen:
                raise BadRedirect(f"{via.origin.authority} redirects in a circle")
            seen.add(url)
        raise BadRedirect(f"more than {MAX_REDIRECTS} redirects, the last to {origin_of(url).authority}")

    def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        via: Hop | None,
        cancelled: Callable[[], bool],
    ) -> tuple[Response, bool]:
        """One hop: its answer, and whether the server that gave it is on a private network."""
        origin = origin_of(url)
        proxy = self._route.proxy_for(origin)
        target, sent = _target(url), self._headers(origin, headers)
        if proxy and origin.scheme == "http":
            target = f"http://{origin.authority}{target}"
            sent |= _proxy_authorization(proxy)
        for connection in self._connections(origin, via, proxy):
            reused = connection.sock is not None
            connection.cancelled = cancelled
            try:
                with suppress(*_REFUSED_EARLY) if body else nullcontext():
                    connection.request(method, target, body, sent)
                answer = connection.getresponse()
            except BaseException as error:
                connection.close()
                if reused and isinstance(error, (ConnectionError, http.client.BadStatusLine)):
                    continue  # it was closed while it waited for this request
                if isinstance(error, NETWORK_ERRORS):
                    down = proxy if proxy and connection.reached is None else None
                    raise translate(url, error, down) from error
                raise
            done = self._returner(via, connection)
            reached = connection.reached
            near = looks_near(origin) if proxy or reached is None else not reached.is_public
            return Response(url, answer, via, done, bodiless=method == "HEAD"), near
        raise Unreachable(f"{origin.authority} cannot be reached")

    def _headers(self, origin: Origin, headers: Mapping[str, str]) -> dict[str, str]:
        sent = {"Host": origin.authority, "User-Agent": self._agent, "Accept-Encoding": "identity", **headers}
        if origin in self.credentials:
            sent["Authorization"] = self.credentials[origin]
        return sent

    def _connections(self, origin: Origin, via: Hop | None, proxy: str | None) -> Iterator[Connection]:
        """Idle connections first, and at last a new one to an address that the policy has checked."""
        while (idle := self._pool.take(via, origin)) is not None:
            yield idle
        context = self._tls() if origin.scheme == "https" else None
        if proxy is None:
            found = resolve(origin)
            self.egress.check_addresses(via, origin, found)
            yield Connection(origin, found, context, self._timeouts)
            return
        self.egress.check_name(via, origin)
        connection = Connection(origin, resolve(origin_of(proxy)), context, self._timeouts)
        if origin.scheme == "https":
            connection.set_tunnel(origin.bracketed, origin.port, _proxy_authorization(proxy))
        yield connection

    def _returner(self, via: Hop | None, connection: Connection) -> Callable[[bool], None]:
        def done(reusable: bool) -> None:  # noqa: FBT001 - a callback's only word
            if reusable and connection.sock is not None:
                self._pool.keep(via, connection)
            else:
                connection.close()

        return done

    def _tls(self) -> ssl.SSLContext:
        with self._lock:
            if self._context is None:
                self._context = _tls_context(self._route.cert_file)
            return self._context

    def close(self) -> None:
        """End every idle connection."""
        self._pool.close()


_SAFE = "%/:=&?~#+!$,;'@()*[]"


def next_url(url: str, location: str) -> str:
    """The address that a ``Location`` header names, fit for a request line. Raises ``BadRedirect``."""
    try:
        return urljoin(url, quote(location.encode("latin-1", "replace"), safe=_SAFE))
    except ValueError:
        raise BadRedirect(
            f"{origin_of(url).authority} leads on to {location[:200]!r}, which is no address"
        ) from None


def _target(url: str) -> str:
    """Path and query as they stand in a request line; ASCII, whatever was typed."""
    parts = urlsplit(url)
    return quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=_SAFE)


def _proxy_authorization(proxy: str) -> dict[str, str]:
    parts = urlsplit(proxy)
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


def _tls_context(cert_file: Path | None) -> ssl.SSLContext:
    if cert_file is not None:
        try:
            return ssl.create_default_context(cafile=cert_file)
        except OSError as error:
            raise BadCertificate(f"SSL_CERT_FILE names {cert_file}, which cannot be used: {error}") from error
    context = ssl.create_default_context()
    import certifi  # noqa: PLC0415 - only where a TLS connection is made

    context.load_verify_locations(certifi.where())
    return context
