"""Sessions of browsers, and the codes that begin one: kept in memory, and gone when the server ends.

A session stands for the token that it was begun with: revoked or expired, it ends, too. One that was begun
with a code stands for the token that asked for the code, if any did. Only digests of cookies and codes are
kept.
"""

import secrets
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import NamedTuple, TypeVar

from kawai_tools.api.clocks import passing
from kawai_tools.errors import InvalidCode, SessionExpired
from kawai_tools.tokens import Role, digest_of, now

T = TypeVar("T")

LASTS = timedelta(hours=12)
CODE_LASTS = 60.0
"""Seconds for which a code is good."""

MOST, MOST_CODES = 1000, 100
"""As many are kept; the oldest make way."""

MOST_EACH = 50
"""As many of them may be of one token; its oldest make way, so that it ends no session of another."""


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


class _Kept(NamedTuple):
    """What is known of a code: until when it is good, what it grants, and to which user only, if any."""

    end: float
    grant: Grant
    user: int | None


class Sessions:
    """The sessions of one server. Used in the event loop's thread only."""

    def __init__(self, clock: Callable[[], datetime] = now, passing: Callable[[], float] = passing) -> None:
        """There are none yet. Codes are timed by ``passing``, sessions by the time of day, as tokens."""
        self._clock, self._passing = clock, passing
        self._sessions: dict[str, Session] = {}
        self._codes: dict[str, _Kept] = {}

    def begin(self, grant: Grant) -> tuple[str, Session]:
        """Begin a session: the value of its cookie, which nobody is told again, and the session."""
        cookie, end = secrets.token_urlsafe(32), self._clock() + LASTS
        expires_at = end if grant.expires_at is None else min(end, grant.expires_at)
        self._make_room(grant.token)
        session = Session(grant.role, expires_at, grant.token, secrets.token_urlsafe(32))
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

    def give_code(self, grant: Grant, user: int | None = None) -> Code:
        """Make a code that begins one session with this grant, soon; where one is given, for this user."""
        code = secrets.token_urlsafe(24)
        _drop_oldest(self._codes, self._codes, MOST_CODES)
        self._codes[digest_of(code)] = _Kept(self._passing() + CODE_LASTS, grant, user)
        return Code(code, self._clock() + timedelta(seconds=CODE_LASTS))

    def has_user(self, code: str) -> bool:
        """Whether a code is for one user only."""
        kept = self._codes.get(digest_of(code))
        return kept is not None and kept.user is not None

    def take_code(self, code: str, user: int | None = None) -> Grant:
        """What a code grants to a user; it is no longer good then. Raises ``InvalidCode``.

        Who is not the one that it is for does not use it up. Root may be: it can have what it likes, and is
        who connects for a browser outside of a virtual machine (WSL).
        """
        digest = digest_of(code)
        kept = self._codes.get(digest)
        if kept is None or kept.end <= self._passing():
            self._codes.pop(digest, None)
            raise InvalidCode(
                "this code to sign in with is not good, or no longer", "kawai ui makes another, good for 60 s"
            )
        if kept.user is not None and user not in {kept.user, 0}:
            raise InvalidCode(
                "this code to sign in with is for another user of this machine",
                "kawai ui --no-browser makes one for whoever has it",
            )
        del self._codes[digest]
        return kept.grant

    def _make_room(self, token: str | None) -> None:
        """Let one more session begin: those that are over make way first, then others of this token."""
        moment = self._clock()
        self._sessions = {key: each for key, each in self._sessions.items() if each.expires_at > moment}
        if token is not None:
            same = [key for key, each in self._sessions.items() if each.token == token]
            _drop_oldest(self._sessions, same, MOST_EACH)
        _drop_oldest(self._sessions, self._sessions, MOST)


def _drop_oldest(kept: dict[str, T], keys: Iterable[str], most: int) -> None:
    """Make room for one more of these, of which ``most`` may be kept; the oldest come first."""
    among = list(keys)
    for key in among[: max(0, len(among) - most + 1)]:
        del kept[key]
