"""Sessions of browsers, and the codes that begin one: kept in memory, and gone when the server ends.

A session stands for the token that it was begun with: revoked or expired, it ends, too. One that was begun
with a code stands for the token that asked for the code, if any did. Only digests of cookies and codes are
kept.
"""

import secrets
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import NamedTuple

from kawai_tools.errors import InvalidCode, SessionExpired
from kawai_tools.tokens import Role, digest_of, now

LASTS = timedelta(hours=12)
CODE_LASTS = 60.0
"""Seconds for which a code is good."""

MOST, MOST_CODES = 1000, 100
"""As many are kept; the oldest make way."""


class Grant(NamedTuple):
    """What somebody may, until when (``None``: for ever), and the digest of the token that says so."""

    role: Role
    expires_at: datetime | None = None
    token: str | None = None


class Session(NamedTuple):
    """One browser that is signed in; ``csrf`` is what a request that writes by its cookie must also send."""

    role: Role
    expires_at: datetime
    token: str | None
    csrf: str


class Code(NamedTuple):
    """A code as it is given out, and when it is no longer good."""

    code: str
    expires_at: datetime


class Sessions:
    """The sessions of one server. Used in the event loop's thread only."""

    def __init__(
        self, clock: Callable[[], datetime] = now, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """There are none yet. Codes are timed by ``monotonic``, sessions by the time of day, as tokens."""
        self._clock, self._monotonic = clock, monotonic
        self._sessions: dict[str, Session] = {}
        self._codes: dict[str, tuple[float, Grant]] = {}

    def begin(self, grant: Grant) -> tuple[str, Session]:
        """Begin a session: the value of its cookie, which nobody is told again, and the session."""
        cookie, end = secrets.token_urlsafe(32), self._clock() + LASTS
        expires_at = end if grant.expires_at is None else min(end, grant.expires_at)
        session = Session(grant.role, expires_at, grant.token, secrets.token_urlsafe(32))
        _make_room(self._sessions, MOST)
        self._sessions[digest_of(cookie)] = session
        return cookie, session

    def find(self, cookie: str) -> Session:
        """The session of a cookie. Raises ``SessionExpired``."""
        digest = digest_of(cookie)
        session = self._sessions.get(digest)
        if session is None or session.expires_at <= self._clock():
            self._sessions.pop(digest, None)
            raise SessionExpired("this session is over", "sign in again: kawai ui opens the page signed in")
        return session

    def end(self, cookie: str) -> None:
        """End a session, if there is one."""
        self._sessions.pop(digest_of(cookie), None)

    def end_all(self) -> None:
        """End every session, and make every code useless."""
        self._sessions.clear()
        self._codes.clear()

    def give_code(self, grant: Grant) -> Code:
        """Make a code that begins one session with this grant, soon."""
        code = secrets.token_urlsafe(24)
        _make_room(self._codes, MOST_CODES)
        self._codes[digest_of(code)] = self._monotonic() + CODE_LASTS, grant
        return Code(code, self._clock() + timedelta(seconds=CODE_LASTS))

    def take_code(self, code: str) -> Grant:
        """What a code grants; it is no longer good then. Raises ``InvalidCode``."""
        end, grant = self._codes.pop(digest_of(code), (0.0, None))
        if grant is None or end <= self._monotonic():
            raise InvalidCode(
                "this code to sign in with is not good, or no longer", "kawai ui makes another, good for 60 s"
            )
        return grant


def _make_room(
    kept: dict[str, object] | dict[str, Session] | dict[str, tuple[float, Grant]], most: int
) -> None:
    while len(kept) >= most:
        del kept[next(iter(kept))]
