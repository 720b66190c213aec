"""Who may: decided from the level of a route and the ``Authorization`` header, before a body is read.

Authentication is off unless asked for, and then the header is ignored: OpenAI clients always send one.
``Bearer`` is that of RFC 6750; what a refused client is told in ``WWW-Authenticate`` too.
"""

import asyncio
import hmac
import re
from collections.abc import Iterable

from kawai_tools.contract import Level
from kawai_tools.errors import AdminRequired, InvalidToken, KawaiError, TokenRequired
from kawai_tools.tokens import Role, Tokens

_BEARER = re.compile(rb"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)
_HINT = "send Authorization: Bearer TOKEN; kawai tokens create makes one"


class Access:
    """What one server asks of its clients. Used in the event loop's thread only."""

    def __init__(self, tokens: Tokens, *, key: str = "", on: bool = False, strict: bool = False) -> None:
        """``key`` is what local commands send: an admin's token, as long as this server lives.

        With ``strict`` reads want a token, too.
        """
        self.on = on
        self._tokens = tokens
        self._key = key
        self._strict = strict

    def set(self, *, on: bool, strict: bool) -> None:
        """Ask for more, or less, from the next request on."""
        self.on, self._strict = on, strict

    def check(self, level: Level, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Raise a kind of ``NotAllowed`` unless these headers may do what has this level."""
        if not self.on:
            return
        sent = [value for name, value in headers if name == b"authorization"]
        if not sent:
            if self.is_open(level):
                return
            raise TokenRequired("a token is needed for this", _HINT)
        token = _BEARER.fullmatch(sent[0].strip()) if len(sent) == 1 else None
        if token is None:
            raise InvalidToken("the Authorization header is not one bearer token", _HINT)
        if level is not Level.HEALTH and self._role(token[1].decode("ascii")) != "admin":
            self._require_user(level)

    def is_open(self, level: Level) -> bool:
        """Whether nobody needs a token for what has this level, though authentication is on."""
        if level is Level.HEALTH:
            return True
        return level in {Level.READ, Level.CATALOG_PULL} and not self._strict

    def _role(self, token: str) -> Role:
        if self._key and hmac.compare_digest(token, self._key):
            return "admin"
        role = self._tokens.check(token)
        if self._tokens.take_news():
            asyncio.get_running_loop().run_in_executor(None, self._tokens.note_use)
        return role

    @staticmethod
    def _require_user(level: Level) -> None:
        if level is Level.ADMIN:
            raise AdminRequired("this needs an admin's token, and a user's was sent", "ask whoever runs this")


def challenge(error: KawaiError) -> dict[str, str]:
    """The header that goes with a 401 (RFC 6750, section 3)."""
    if error.status != 401:  # noqa: PLR2004 - Unauthorized
        return {}
    detail = "" if isinstance(error, TokenRequired) else ', error="invalid_token"'
    return {"WWW-Authenticate": f'Bearer realm="kawai"{detail}'}
