"""``/v1/session``: a browser signs in with a token or a code, is told who it is, and signs out.

A code goes to a browser on its command line, which every user of a machine may read: so it can be asked for
that it is good for whoever asked for it only.

The cookie is ``HttpOnly`` and ``SameSite=Strict`` (RFC 6265bis), so that no script reads it and no page of
another site has it sent.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any

import msgspec
from starlette.requests import Request as Asking
from starlette.responses import Response

from kawai_tools.api.access import COOKIE, Access, cookie_of
from kawai_tools.api.ports import user_of
from kawai_tools.api.sessions import Grant
from kawai_tools.contract import Level, NoRequest, Nothing, Payload, Request, Route
from kawai_tools.errors import InvalidBody
from kawai_tools.tokens import Role, now

SESSION, CODES = "/v1/session", "/v1/session/codes"


class SignIn(Request, frozen=True):
    """What begins a session: one of the two."""

    token: str | None = None
    code: str | None = None


class CodeRequest(Request, frozen=True):
    """With ``same_user`` the code is good for processes of the user who asks, on the server's machine only.

    That is known on Linux; elsewhere it is not looked at.
    """

    same_user: bool = False


class SignedIn(msgspec.Struct, frozen=True):
    """Who asks; ``csrf`` is ``None`` for whoever needs none, ``expires_at`` where it is for ever."""

    role: Role
    expires_at: datetime | None
    csrf: str | None


class NewCode(msgspec.Struct, frozen=True):
    """A code that begins one session, until then."""

    code: str
    expires_at: datetime


Answer = Callable[[Any, Asking], Awaitable[object]]


class SigningIn:
    """What answers for sessions."""

    def __init__(self, access: Access) -> None:
        """``access`` holds them."""
        self._access = access

    @property
    def routes(self) -> list[tuple[Route[Any], Answer]]:
        """The routes, and what answers each: a payload or a response."""
        return [(BEGIN, self._begin), (TELL, self._tell), (END, self._end), (GIVE_CODE, self._give_code)]

    async def _begin(self, asked: SignIn, request: Asking) -> Response:
        if (asked.token is None) == (asked.code is None):
            raise InvalidBody("the body needs either token or code")
        grant, before = await self._grant(asked, request), cookie_of(request.headers.raw)
        if before is not None:
            self._access.sessions.end(before)  # nobody has its cookie any more
        cookie, session = self._access.sessions.begin(grant)
        return _setting(cookie, int((session.expires_at - now()).total_seconds()), request.headers)

    async def _grant(self, asked: SignIn, request: Asking) -> Grant:
        if asked.token is not None:
            return self._access.grant(asked.token.strip())
        code, sessions = asked.code or "", self._access.sessions
        user = await _user(request) if sessions.has_user(code) else None
        return sessions.take_code(code, user)

    async def _tell(self, _: NoRequest, request: Asking) -> SignedIn:
        who = self._access.who(request.headers.raw)
        return SignedIn(who.role, who.expires_at, who.csrf)

    async def _end(self, _: NoRequest, request: Asking) -> Response:
        cookie = cookie_of(request.headers.raw)
        if cookie is not None:
            self._access.sessions.end(cookie)
        return _setting("", 0, request.headers)

    async def _give_code(self, asked: CodeRequest, request: Asking) -> NewCode:
        user = await _user(request) if asked.same_user else None
        grant = self._access.who(request.headers.raw).grant  # as it is now: tokens may be asked for since
        made = self._access.sessions.give_code(grant, user)
        return NewCode(made.code, made.expires_at)


async def _user(request: Asking) -> int | None:
    """The id of the user who asks, where that is somebody on this machine."""
    client, server = request.scope["client"], request.scope["server"]
    return None if client is None else await asyncio.to_thread(user_of, tuple(client), tuple(server))


def _setting(value: str, seconds: int, sent: Mapping[str, str]) -> Response:
    """Nothing but a cookie; where the page came encrypted it is only sent so, too."""
    secure = "; Secure" if sent.get("origin", "").lower().startswith("https:") else ""
    cookie = f"{COOKIE}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"
    return Response(status_code=204, headers={"Set-Cookie": cookie, "Cache-Control": "no-store"})


BEGIN = Route(
    name="session.begin",
    method="POST",
    path=SESSION,
    request=SignIn,
    result=Nothing(),
    level=Level.OPEN,
    summary="Sign in with a token or a code: the answer sets a session's cookie",
)
TELL = Route(
    name="session.tell",
    method="GET",
    path=SESSION,
    request=NoRequest,
    result=Payload(SignedIn),
    level=Level.USE,
    summary="Tell who asks, and what a session must send to change something",
)
END = Route(
    name="session.end",
    method="DELETE",
    path=SESSION,
    request=NoRequest,
    result=Nothing(),
    level=Level.USE,
    summary="Sign out",
)
GIVE_CODE = Route(
    name="session.give_code",
    method="POST",
    path=CODES,
    request=CodeRequest,
    result=Payload(NewCode, 201),
    level=Level.ADMIN,
    summary="Make a code that signs in once, within 60 s",
)
ROUTES: tuple[Route[Any], ...] = (BEGIN, TELL, END, GIVE_CODE)
