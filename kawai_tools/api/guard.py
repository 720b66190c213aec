"""What every request must pass before anything else looks at it, on every route.

A web page somewhere else can make a browser send requests to this server. It cannot choose their Host
(unless its own name is made to resolve here), cannot send ``application/json`` without asking first, and
cannot hide where it is from: in ``Origin``, or where a browser leaves that out (an image, say), in
``Sec-Fetch-Site`` (Fetch Metadata). So these are checked.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kawai_tools.api.errors import refusal
from kawai_tools.errors import (
    BodyTooLarge,
    ForeignOrigin,
    HeadTooLarge,
    InvalidRequest,
    KawaiError,
    NotJson,
    WrongHost,
)

BODY_LIMIT = 1 << 20
"""Bytes that a body may have."""

HEAD_LIMIT = 64 * 1024
"""Bytes that request line and headers may have."""

HTTP_PORT = 80
_ELSEWHERE = frozenset({b"cross-site", b"same-site"})
_ORIGINS = "its operator can add their origin to allow_origins (KAWAI_ALLOW_ORIGINS)"
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_ALL = ("0.0.0.0", "[::]")  # noqa: S104 - not bound here
_ONCE = frozenset({b"host", b"authorization", b"content-type", b"content-length"})
_TWICE = _ONCE - {b"authorization"}
_READ = _ONCE | {
    b"sec-fetch-site",
    b"sec-fetch-mode",
    b"origin",
    b"transfer-encoding",
    b"access-control-request-method",
}


class Names(NamedTuple):
    """What a server is called: every ``Host`` that names it, and the origins of its own pages.

    ``others`` are origins elsewhere whose pages may ask as well.
    """

    hosts: frozenset[bytes]
    origins: frozenset[bytes]
    others: frozenset[bytes]


def known_by(
    places: Iterable[tuple[str, int]], names: Iterable[str] = (), others: Iterable[str] = ()
) -> Names:
    """What a server at these addresses and ports is called, in lower case: these, loopback, its given names.

    A given name also counts without the port, and its pages may come encrypted, since a proxy in front may
    listen on another port. An address that stands for all is no name.
    """
    given = [_bracketed(name) for name in names]
    hosts = set(given)
    for address, port in places:
        own = _bracketed(address)
        fixed = (*_LOOPBACK, *(() if own in _ALL else (own,)))
        bare = [name for name in given if not re.search(r"[^:]:\d+$|\]:\d+$", name)]
        hosts |= {f"{name}:{port}" for name in (*fixed, *bare)}
        if port == HTTP_PORT:
            hosts.update(fixed)
    origins = {f"http://{host}" for host in hosts} | {f"https://{name}" for name in given}
    return Names(_lower(hosts), _lower(origins), _lower(others))


def _bracketed(name: str) -> str:
    return f"[{name}]" if name.count(":") > 1 and name[0] != "[" else name


def _lower(words: Iterable[str]) -> frozenset[bytes]:
    return frozenset(word.lower().encode() for word in words)


class Guard:
    """ASGI middleware that refuses wrong hosts, foreign origins, doubtful framing and wrong bodies."""

    def __init__(
        self,
        app: ASGIApp,
        names: Names,
        *,
        counts_credentials: Callable[[], bool] = lambda: True,
        limits: Mapping[str, int] | None = None,
        linked: str = "",
    ) -> None:
        """Guard ``app``, which is called by ``names``.

        Pages of other origins that may ask are told so (the Fetch standard's CORS protocol). With
        ``counts_credentials`` giving false somebody else refuses two ``Authorization`` headers. ``limits``
        are the bytes that bodies for certain paths may have, where that is not ``BODY_LIMIT``. Links of other
        sites may lead to ``linked`` and below it, and nowhere else: what is asked for there can be work.
        """
        self._app = app
        self.names = names
        """What it is called; another value counts from the next request on."""
        self._counts_credentials = counts_credentials
        self._limits = limits or {}
        self._linked = linked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            _check_size(scope)
            headers = _read(scope["headers"], _ONCE if self._counts_credentials() else _TWICE)
            self._check_sender(headers, scope["path"])
            origin = headers.get(b"origin", b"").lower()
            if origin in self.names.others:
                send = _permitting(origin, send)
                if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                    await Response(status_code=204, headers=_PERMISSION)(scope, receive, send)
                    return
            limit = self._limits.get(scope["path"], BODY_LIMIT)
            body = _check_body(headers, receive, limit)
        except KawaiError as error:
            await refusal(error)(scope, receive, send)
        else:
            await self._app(scope, body, send)

    def _check_sender(self, headers: dict[bytes, bytes], path: str) -> None:
        host = headers.get(b"host", b"").lower()
        if host not in self.names.hosts:
            raise WrongHost(
                f"this server is not called {_shown(host)}" if host else "the request names no host",
                "use the address that kawai serve printed",
            )
        origin = headers.get(b"origin")
        is_elsewhere = headers.get(b"sec-fetch-site") in _ELSEWHERE
        if origin is None and is_elsewhere and not self._follows_link(headers, path):
            raise ForeignOrigin("pages of other sites may not use this server", _ORIGINS)
        if origin is not None and origin.lower() not in self.names.origins | self.names.others:
            raise ForeignOrigin(
                f"pages of {_shown(origin)} may not use this server",
                _ORIGINS,
            )

    def _follows_link(self, headers: dict[bytes, bytes], path: str) -> bool:
        is_linked = self._linked and (path == self._linked or path.startswith(f"{self._linked}/"))
        return bool(is_linked) and headers.get(b"sec-fetch-mode") == b"navigate"


def _check_body(headers: dict[bytes, bytes], receive: Receive, limit: int) -> Receive:
    length = headers.get(b"content-length", b"0")
    chunked = b"transfer-encoding" in headers
    if chunked and b"content-length" in headers:
        raise InvalidRequest("a body has either Content-Length or Transfer-Encoding")
    if not length.isdigit() or len(length) > 18:  # noqa: PLR2004 - fits 64 bits
        raise InvalidRequest(f"Content-Length cannot be {_shown(length)}")
    if int(length) > limit:
        raise _too_large(limit)
    is_json = _is_json(headers.get(b"content-type", b""))
    if not is_json and int(length):
        raise _not_json()
    return _counted(receive, limit, is_json=is_json) if chunked or int(length) else receive


def _counted(receive: Receive, limit: int, *, is_json: bool) -> Receive:
    """Raise when what arrives is too much, or not JSON; once, so that the rest can be thrown away."""
    received, refused = 0, False

    async def counted() -> Message:
        nonlocal received, refused
        message = await receive()
        received += len(message.get("body", b""))
        if refused or (received <= limit and (is_json or not received)):
            return message
        refused = True
        raise _too_large(limit) if received > limit else _not_json()

    return counted


def _too_large(limit: int) -> KawaiError:
    return BodyTooLarge(f"a body may have at most {limit} bytes")


def _check_size(scope: Scope) -> None:
    """Count a head that came whole; one that does not is stopped by the protocol."""
    headers = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    if headers + len(scope["raw_path"]) + len(scope["query_string"]) > HEAD_LIMIT:
        raise HeadTooLarge("the head of a request may have at most 64 KiB")


def has_body(scope: Scope) -> bool:
    """Whether a request announces a body."""
    headers = dict(scope["headers"])
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


_PERMISSION = {
    "access-control-allow-methods": "GET, POST, DELETE",
    "access-control-allow-headers": "authorization, content-type, last-event-id",
    "access-control-max-age": "600",
}
"""What tells a browser how pages of an origin may ask."""


def _permitting(origin: bytes, send: Send) -> Send:
    """Let pages of an origin read the answer."""

    async def permitted(message: Message) -> None:
        if message["type"] == "http.response.start":
            more = [
                (b"access-control-allow-origin", origin),
                (b"access-control-expose-headers", b"www-authenticate, retry-after"),
                (b"vary", b"Origin"),
            ]
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        await send(message)

    return permitted


def _read(headers: Iterable[tuple[bytes, bytes]], once: frozenset[bytes]) -> dict[bytes, bytes]:
    """The headers that matter here; of several origins all count, and no two are this server's."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _READ:
            if name in once and name in found:
                raise InvalidRequest(f"the header {name.decode()} may be given only once")
            found[name] = value if name not in found else found[name] + b", " + value
    return found


def _is_json(content_type: bytes) -> bool:
    return content_type.partition(b";")[0].strip().lower() == b"application/json"


def _not_json() -> KawaiError:
    return NotJson("a body must be JSON", "send it with the header Content-Type: application/json")


def _shown(value: bytes) -> str:
    return repr(value[:100].decode("latin-1"))
