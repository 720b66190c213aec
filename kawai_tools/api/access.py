"""Who may: decided from the level of a route and what is sent as a credential, before a body is read.

A credential is the ``Authorization`` header, or where there is none the cookie of a browser's session.
Authentication is off unless asked for, and then both are ignored: OpenAI clients always send the first.
``Bearer`` is that of RFC 6750; what a refused client is told in ``WWW-Authenticate`` too.
"""

import asyncio
import hmac
import re
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from kawai_tools.api.sessions import Grant, Sessions
from kawai_tools.contract import Level
from kawai_tools.errors import (
    AdminRequired,
    CsrfRequired,
    InvalidToken,
    KawaiError,
    NotAllowed,
    TokenRequired,
)
from kawai_tools.tokens import Role, TokenRow, Tokens, digest_of

COOKIE = "kawai_session"
_CSRF = b"x-kawai-csrf"
_BEARER = re.compile(rb"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)
_HINT = "send Authorization: Bearer TOKEN; kawai tokens create makes one"
_READING = frozenset({"GET", "HEAD"})
_ALWAYS = frozenset({Level.HEALTH, Level.OPEN})

Headers = Sequence[tuple[bytes, bytes]]


class Who(NamedTuple):
    """Whoever asks. ``token`` is the digest of their token, ``csrf`` that of their session, if any."""

    role: Role
    expires_at: datetime | None = None
    token: str | None = None
    csrf: str | None = None

    @property
    def grant(self) -> Grant:
        """What they may pass on."""
        return Grant(self.role, self.expires_at, self.token)


_ANYBODY = Who("admin")
"""Who asks where nobody is asked who they are."""


class Access:
    """What one server asks of its clients. Used in the event loop's thread only."""

    def __init__(self, tokens: Tokens, *, key: str = "", on: bool = False, strict: bool = False) -> None:
        """``key`` is what local commands send: an admin's token, as long as this server lives.

        With ``strict`` reads want a token, too.
        """
        self.on = on
        self.sessions = Sessions()
        self._tokens = tokens
        self._key = key
        self._strict = strict

    def set(self, *, on: bool, strict: bool) -> None:
        """Ask for more, or less, from the next request on; what was begun unasked counts no more."""
        if on and not self.on:
            self.sessions.end_all()
        self.on, self._strict = on, strict

    def check(self, level: Level, method: str, headers: Headers) -> None:
        """Raise a kind of ``NotAllowed`` unless these headers may do what has this level."""
        if not self.on:
            return
        if level in _ALWAYS:
            _bearer(headers)
            return
        who = self._who(headers)
        if who is None:
            if self.is_open(level):
                return
            raise TokenRequired("a token is needed for this", _HINT)
        if who.csrf is not None and method not in _READING:
            _check_csrf(who.csrf, headers)
        if level is Level.ADMIN and who.role != "admin":
            raise AdminRequired("this needs an admin's token, and a user's was sent", "ask whoever runs this")

    def is_open(self, level: Level) -> bool:
        """Whether nobody needs a token for what has this level, though authentication is on."""
        return level in _ALWAYS or (level in {Level.READ, Level.CATALOG_PULL} and not self._strict)

    def who(self, headers: Headers) -> Who:
        """Whoever sends these headers. Raises ``TokenRequired`` and what tells of bad credentials."""
        found = self._who(headers) if self.on else _ANYBODY
        if found is None:
            raise TokenRequired("nobody is signed in", _HINT)
        return found

    def seen(self, headers: Headers) -> str:
        """Whoever looks at the page, in a word: ``admin``, ``user``, ``none``, or ``open`` to anybody.

        ``unknown`` is who follows a link of another site: a cookie with ``SameSite=Strict`` is not sent
        there, and is with what the page itself asks (RFC 6265bis, section 5.2; Fetch Metadata).
        """
        if not self.on:
            return "open"
        if (b"sec-fetch-site", b"cross-site") in headers and cookie_of(headers) is None:
            return "unknown"
        try:
            return self.who(headers).role
        except NotAllowed:
            return "none"

    def grant(self, token: str) -> Grant:
        """What the holder of a token may. Raises what tells of a bad one."""
        return self._of_token(token).grant

    def _who(self, headers: Headers) -> Who | None:
        token = _bearer(headers)
        if token is not None:
            return self._of_token(token)
        cookie = cookie_of(headers)
        if cookie is None:
            return None
        session = self.sessions.find(cookie)
        role = session.role
        if session.token is not None:
            role = self._noted(self._tokens.check_digest(session.token)).role
        return Who(role, session.expires_at, session.token, session.csrf)

    def _of_token(self, token: str) -> Who:
        if self._key and hmac.compare_digest(token.encode(), self._key.encode()):
            return Who("admin")
        row = self._noted(self._tokens.check(token))
        return Who(row.role, row.expires_at, digest_of(token))

    def _noted(self, row: TokenRow) -> TokenRow:
        if self._tokens.take_news():
            asyncio.get_running_loop().run_in_executor(None, self._tokens.note_use)
        return row


def _bearer(headers: Headers) -> str | None:
    """The token that is sent. Raises ``InvalidToken`` for a header that holds none, or for several."""
    sent = [value for name, value in headers if name == b"authorization"]
    if not sent:
        return None
    token = _BEARER.fullmatch(sent[0].strip()) if len(sent) == 1 else None
    if token is None:
        raise InvalidToken("the Authorization header is not one bearer token", _HINT)
    return token[1].decode("ascii")


def cookie_of(headers: Headers) -> str | None:
    """The cookie of a session, if one is sent (RFC 6265, section 4.2)."""
    for name, value in headers:
        if name == b"cookie":
            for pair in value.decode("latin-1").split(";"):
                key, _, content = pair.strip().partition("=")
                if key == COOKIE:
                    return content
    return None


def _check_csrf(expected: str, headers: Headers) -> None:
    """A page of somewhere else can make a browser send a cookie, but no header of its own."""
    sent = next((value for name, value in headers if name == _CSRF), b"")
    if not hmac.compare_digest(sent, expected.encode()):
        raise CsrfRequired(
            "a request that changes something needs the header X-Kawai-CSRF, besides the session's cookie",
            "GET /v1/session tells its value",
        )


def challenge(error: KawaiError) -> dict[str, str]:
    """The header that goes with a 401 (RFC 6750, section 3)."""
    if error.status != 401:  # noqa: PLR2004 - Unauthorized
        return {}
    detail = "" if isinstance(error, TokenRequired) else ', error="invalid_token"'
    return {"WWW-Authenticate": f'Bearer realm="kawai"{detail}'}
