"""Bearer tokens: 256 random bits, shown once, kept as SHA-256 with role, name, expiry and last use.

A digest without salt or stretching suffices for what nobody can guess. A revoked token is remembered for a
while, so that whoever still sends it is told why it fails.
"""

import contextlib
import hmac
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from kawai_tools.errors import (
    UNDECODABLE,
    BrokenState,
    ExposedSecret,
    HomeNotWritable,
    InvalidRequest,
    InvalidToken,
    NoSpace,
    TokenExpired,
    TokenNotFound,
    TokenRevoked,
    Unavailable,
)
from kawai_tools.files import Lock, clear_left_behind, make_directory, write_atomically
from kawai_tools.values import parse_duration

Role = Literal["user", "admin"]

PREFIX = "kawai_"
"""What makes a token recognisable to whoever finds one where it should not be."""

REMEMBERED = timedelta(days=90)
USE_NOTED = 60.0
"""Seconds to which the last use is known: a busy token is not written down with every request."""

GLANCE = 0.05
"""Seconds for which a token that was good still is, whatever another process does to it."""

MOST_TOKENS, MOST_NAME = 1_000, 100
LONGEST = timedelta(days=3653)
_ID = re.compile(r"[0-9a-f]{1,12}")
_LOCK_PATIENCE, _TICK = 10.0, 0.01


class TokenRow(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown of a token."""

    id: str
    name: str | None
    role: Role
    created_at: datetime
    expires_at: datetime | None
    last_used: datetime | None


class NewToken(TokenRow, frozen=True, kw_only=True):
    """A token that was made just now: the only time it is shown."""

    token: str


_Moment = Annotated[datetime, Meta(tz=True)]


class _Stored(TokenRow, frozen=True, kw_only=True):
    created_at: _Moment
    expires_at: _Moment | None
    last_used: _Moment | None
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    revoked_at: _Moment | None = None

    @property
    def ended_at(self) -> datetime | None:
        """When it was revoked, or expires."""
        return self.revoked_at or self.expires_at

    @property
    def is_good(self) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > now())

    def row(self) -> TokenRow:
        """What is shown of it."""
        return TokenRow(**{name: getattr(self, name) for name in TokenRow.__struct_fields__})


class _File(msgspec.Struct, frozen=True):
    tokens: list[_Stored] = []
    format: Literal[1] = 1


_FILE = msgspec.json.Decoder(_File)  # made as the module is: msgspec is not safe where threads are first


class Tokens:
    """The tokens of one home. Safe to share between threads and with other processes."""

    def __init__(self, path: Path) -> None:
        """Nothing is read yet."""
        self.path = path
        self._lock = Lock(path.with_suffix(".lock"))
        self._guard = threading.Lock()
        self._known: tuple[object, _File] = (None, _File())
        self._looked_at = 0.0
        self._used: dict[str, datetime] = {}
        self._notes: dict[str, float] = {}
        self._has_news = False

    def create(
        self,
        *,
        role: Role,
        name: str | None,
        lifetime: timedelta | None,
        deliver: Callable[[str], None] = lambda _: None,
    ) -> NewToken:
        """Make a token; it counts once ``deliver`` has put it where its holder finds it.

        Raises ``InvalidRequest`` for a name that makes no sense.
        """
        if name is not None and (not name.strip() or len(name) > MOST_NAME or not name.isprintable()):
            raise InvalidRequest(f"a token's name is one line of at most {MOST_NAME} characters")
        token, made = PREFIX + secrets.token_urlsafe(32), now()
        stored = _Stored(
            id=secrets.token_hex(6),
            name=name,
            role=role,
            created_at=made,
            expires_at=made + lifetime if lifetime is not None else None,
            last_used=None,
            sha256=digest_of(token),
        )

        def add(file: _File) -> list[_Stored]:
            if sum(each.is_good for each in file.tokens) >= MOST_TOKENS:
                raise InvalidRequest(f"there are {MOST_TOKENS:,} tokens", "revoke some: kawai tokens list")
            deliver(token)
            return [*file.tokens, stored]

        self._change(add)
        return NewToken(**msgspec.structs.asdict(stored.row()), token=token)

    def all(self) -> list[TokenRow]:
        """All that were not revoked, oldest first."""
        return [self._row(each) for each in self._read().tokens if each.revoked_at is None]

    def _row(self, stored: "_Stored") -> TokenRow:
        """What is shown of one, its last use as far as it is known here."""
        used = max(filter(None, (stored.last_used, self._used.get(stored.id))), default=None)
        return msgspec.structs.replace(stored.row(), last_used=used)

    def revoke(self, token_id: str) -> None:
        """Make a token useless from now on. Raises ``TokenNotFound``."""

        def mark(file: _File) -> list[_Stored]:
            meant = [each for each in file.tokens if each.id == token_id and each.revoked_at is None]
            if not meant:
                shown = repr(token_id) if _ID.fullmatch(token_id) else "of this id"  # it may be a token
                raise TokenNotFound(f"there is no token {shown}", "kawai tokens list shows the ids")
            revoked = msgspec.structs.replace(meant[0], revoked_at=now())
            return [revoked if each.id == token_id else each for each in file.tokens]

        self._change(mark)

    def check(self, token: str) -> TokenRow:
        """What is known of a token. Raises ``InvalidToken``, ``TokenExpired`` or ``TokenRevoked``.

        Notes its use, to the minute.
        """
        return self.check_digest(digest_of(token))

    def check_digest(self, digest: str) -> TokenRow:
        """The same for one of which only :func:`digest_of` is kept."""
        found = _found(self._seen(), digest) or _found(self._read(), digest)
        if found is None:
            raise InvalidToken("this is no token of this server", "kawai tokens create makes one")
        if found.revoked_at is not None:
            raise TokenRevoked(f"the token {found.id} was revoked", "ask for another one")
        moment = now()
        if found.expires_at is not None and found.expires_at <= moment:
            raise TokenExpired(f"the token {found.id} has expired", "ask for another one")
        self._used[found.id] = moment
        if time.monotonic() >= self._notes.get(found.id, 0.0):
            self._notes[found.id] = time.monotonic() + USE_NOTED
            self._has_news = True
        return found.row()

    def take_news(self) -> bool:
        """Whether :meth:`note_use` has something to write down; asked once, it is somebody's business."""
        news, self._has_news = self._has_news, False
        return news

    def note_use(self) -> None:
        """Write down when tokens were last used, where that is possible: it is only told to people."""
        used = dict(self._used)

        def note(file: _File) -> list[_Stored]:
            return [
                msgspec.structs.replace(each, last_used=used[each.id]) if each.id in used else each
                for each in file.tokens
            ]

        with contextlib.suppress(Unavailable, NoSpace, BrokenState, OSError):
            self._change(note)

    def close(self) -> None:
        """Write down what is known of the last uses."""
        if self._used:
            self.note_use()

    def _change(self, change: Callable[["_File"], list["_Stored"]]) -> None:
        """Replace the file, alone."""
        with self._guard:
            make_directory(self.path.parent)
            self._await_lock()
            try:
                clear_left_behind(self.path.parent)
                kept = change(_pruned(self._read()))
                data = msgspec.json.format(msgspec.json.encode(_File(kept)), indent=2) + b"\n"
                write_atomically(self.path, data, mode=0o600)
            finally:
                self._looked_at = 0.0
                self._lock.release()

    def _await_lock(self) -> None:
        until = time.monotonic() + _LOCK_PATIENCE
        while not self._lock.acquire():
            if time.monotonic() > until:
                raise Unavailable(f"another kawai has been holding {self._lock.path}", "try again")
            time.sleep(_TICK)

    def _seen(self) -> _File:
        """What the file said just now: looking at it with every request would keep busy servers waiting."""
        return self._known[1] if time.monotonic() - self._looked_at < GLANCE else self._read()

    def _read(self) -> _File:
        """What the file says now; read anew where it is another one."""
        self._looked_at = 0.0
        try:
            stamp = _stamp(os.stat(self.path))  # noqa: PTH116 - asked with every request
            known = self._known
            if known[0] != stamp:
                known = self._known = _load(self.path)
            self._looked_at = time.monotonic()
        except (FileNotFoundError, NotADirectoryError):
            return _File()
        except OSError as error:
            raise HomeNotWritable(
                f"cannot read {self.path}: {error.strerror}", "make it a file that this user can read"
            ) from error
        return known[1]


def _found(file: _File, digest: str) -> _Stored | None:
    """The token with this digest; all are compared, so that how long it takes tells nothing."""
    found = None
    for each in file.tokens:
        if hmac.compare_digest(each.sha256, digest):
            found = each
    return found


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _load(path: Path) -> tuple[object, _File]:
    """The file, unless others may read it too. Raises ``ExposedSecret``, ``BrokenState`` or ``OSError``."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise BrokenState(f"{path} is no file", "move it away, and make new tokens")
    with os.fdopen(fd, "rb") as file:
        if found.st_mode & 0o077:
            raise ExposedSecret(
                f"others may read {path}, so its tokens are secret no more",
                f"chmod 600 {path}, and make new tokens if anybody has read it",
            )
        try:
            return _stamp(found), _FILE.decode(file.read())
        except UNDECODABLE as error:
            raise BrokenState(
                f"{path} cannot be read: {error}", "restore it, or remove it and make new tokens"
            ) from error


def _pruned(file: _File) -> _File:
    """Without tokens that were revoked or have expired long ago, or before many others."""
    ended = sorted(each.ended_at for each in file.tokens if not each.is_good and each.ended_at)
    since = max([now() - REMEMBERED, *ended[-MOST_TOKENS:][:1]])
    return _File([each for each in file.tokens if each.is_good or (each.ended_at or since) >= since])


def now() -> datetime:
    """The present second."""
    return datetime.now(UTC).replace(microsecond=0)


def parse_lifetime(text: str) -> timedelta:
    """``30d``, ``12h``, ``90m``, ``4w``. Raises ``InvalidRequest``."""
    with contextlib.suppress(ValueError):
        if (lifetime := parse_duration(text)) <= LONGEST:
            return lifetime
    raise InvalidRequest(
        f"expires cannot be {text[:40]!r}", "give minutes, hours, days or weeks: 90m, 12h, 30d, 4w"
    )


def write_secret(path: Path, token: str) -> None:
    """Write a token to a file that only its user can read."""
    make_directory(path.parent, mode=0o700)
    write_atomically(path, f"{token}\n".encode(), mode=0o600)


def digest_of(token: str) -> str:
    """What is kept of a token: its SHA-256, in hexadecimal digits."""
    return sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
