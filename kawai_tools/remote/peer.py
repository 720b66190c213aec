"""Another kawai that is asked: how it is reached, and what it means when it does not answer as one."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from kawai_tools import __version__
from kawai_tools.errors import (
    UNDECODABLE,
    BodyTooLarge,
    ErrorBody,
    InvalidConfig,
    KawaiError,
    NoServer,
    NotAllowed,
    NotKawai,
    RemoteFault,
    Unavailable,
    Unreachable,
    UpstreamTimeout,
    VersionSkew,
    from_info,
)
from kawai_tools.remote.daemon import Daemon, find_daemon
from kawai_tools.transfer.egress import Egress, origin_of, spelled

if TYPE_CHECKING:
    from kawai_tools.settings import Settings
    from kawai_tools.transfer.outbound import Outbound, Response, Route

CONNECTING = 10.0
_GLANCE = 5.0
_MOST_TOKEN = 1 << 16
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_SKEWED = frozenset({"invalid_body", "invalid_request", "route_not_found", "method_not_allowed"})
"""What a kawai answers to one that can do more than it."""


_PROXY = "the proxy "
_BAD_GATEWAY = frozenset({502, 503, 504})
_BY_STATUS: Mapping[int, type[KawaiError]] = {
    401: NotAllowed,
    403: NotAllowed,
    408: UpstreamTimeout,
    413: BodyTooLarge,
    429: Unavailable,
}


class _Health(msgspec.Struct, frozen=True):
    status: str
    version: str


@dataclass(frozen=True)
class Peer:
    """A kawai at ``url``, and the token that it takes; ``home`` is where its daemon is at home, if here."""

    url: str
    token: str | None
    route: "Route"
    offline: bool = False
    home: Path | None = None

    @classmethod
    def of_daemon(cls, daemon: Daemon, state_dir: Path) -> "Peer":
        """The daemon of a home; no proxy stands between."""
        from kawai_tools.transfer.outbound import Route  # noqa: PLC0415 - only where something is asked

        return cls(daemon.url, daemon.key, Route(), home=state_dir)

    @classmethod
    def of_settings(cls, settings: "Settings") -> "Peer":
        """The one that ``--server`` names. Raises ``InvalidConfig`` for a token that cannot be had."""
        from kawai_tools.transfer.outbound import Route  # noqa: PLC0415
        from kawai_tools.transfer.ways import route_of  # noqa: PLC0415

        url, token = settings.server or "", _token_of(settings)
        route = Route(cert_file=settings.ssl_cert_file) if _is_here(url) else route_of(settings)
        return cls(url, token, route, offline=settings.offline)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        patience: float | None,
    ) -> "Response":
        """Its answer, whatever the status; ``patience`` are the seconds in which a word must come.

        Raises ``NoServer`` where the daemon of this home has gone, a kind of ``Upstream`` where another
        cannot be reached, ``Offline`` or ``NotKawai``.
        """
        sent = {"Connection": "close", **(headers or {})}  # each question is one of its own
        if body is not None:
            sent |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        try:
            answer = self._way(patience).request(method, self.url + path, sent, body=body, follow=False)
        except KawaiError as error:
            raise self.gone(error) from error
        if 300 <= answer.status < 400:  # noqa: PLR2004 - HTTP's redirects
            answer.close()
            to = (answer.header("Location") or "nowhere")[:200]
            raise NotKawai(f"{self.url} leads on to {to}", "give the address of the kawai itself")
        return answer

    def _way(self, patience: float | None) -> "Outbound":
        from kawai_tools.transfer.outbound import Outbound, Timeouts  # noqa: PLC0415

        origin = origin_of(self.url)
        offline = self.offline and not _is_here(self.url)
        stall = float("inf") if patience is None else patience
        return Outbound(
            Egress(offline=offline),
            agent=f"kawai/{__version__}",
            route=self.route,
            credentials={origin: f"Bearer {self.token}"} if self.token else {},
            timeouts=Timeouts(connect=min(CONNECTING, stall), stall=stall, floor=1),
        )

    def gone(self, error: KawaiError) -> KawaiError:
        """What to say where it cannot be reached, or breaks off; other errors are as they are."""
        if isinstance(error, UpstreamTimeout):
            return UpstreamTimeout(
                f"the kawai server at {self.url} has been silent for too long", "look into its log"
            )
        if not isinstance(error, Unreachable) or _PROXY in error.message:
            return error
        reason = error.message.partition(": ")[2] or error.message
        words = f"the kawai server at {self.url} cannot be reached: {reason}"
        if self.home is not None:
            return NoServer(words, "start one with kawai serve")
        return Unreachable(words, "is kawai serve running there, and is that its address (--server)?")

    def attaching(self, pull: str) -> str:
        """What follows a Pull of it again, in words."""
        where = "" if self.home is not None else f" --server {self.url}"
        return f"kawai pulls attach {pull}{where} follows it again"

    def has_ended(self) -> bool:
        """Whether it was the daemon of this home, and is no more."""
        return self.home is not None and find_daemon(self.home) is None

    # what it means

    def reported(self, status: int, data: bytes) -> KawaiError:
        """The error that an answer of 400 or more reports."""
        try:
            error = from_info(msgspec.json.decode(data, type=ErrorBody).error)
        except UNDECODABLE:
            return self._passed_on(status)
        if status == 401:  # noqa: PLR2004 - Unauthorized
            words = "give an admin's or a user's token of that server with --token-file FILE (KAWAI_TOKEN)"
            return _with_hint(error, words if self.home is None else error.info.hint)
        if error.info.code in _SKEWED and (version := self._version()) not in {None, __version__}:
            return _with_hint(error, f"{_hint(error)}that server is kawai {version}, this is {__version__}")
        return error

    def _passed_on(self, status: int) -> KawaiError:
        """What to say of an error in nobody's shape: often it is of what stands before the kawai."""
        if status in _BAD_GATEWAY:
            return Unreachable(
                f"what stands before the kawai server at {self.url} answers {status}",
                "it cannot reach that server, or did not wait for its answer",
            )
        kind = _BY_STATUS.get(status)
        if kind is None or self._version() is None:
            return self.misunderstood(f"answered {status} without saying why")
        return kind(f"what stands before the kawai server at {self.url} answers {status}", "ask who runs it")

    def misunderstood(self, what: str) -> KawaiError:
        """What to say of an answer that is none of this kawai's: it is no kawai, or another version."""
        version = self._version()
        if version is None:
            return NotKawai(
                f"what answers at {self.url} is not kawai: it {what}",
                "give the address that kawai serve prints",
            )
        if version == __version__:
            return RemoteFault(f"the kawai server at {self.url} {what}")
        return VersionSkew(
            f"the server at {self.url} is kawai {version}, this is {__version__}, and it {what}",
            "use the same version on both sides",
        )

    def _version(self) -> str | None:
        """Its version; ``None`` for what is no kawai."""
        try:
            with self.ask("GET", "/healthz", patience=_GLANCE) as answer:
                return msgspec.json.decode(answer.read(1 << 16), type=_Health).version[:40]
        except (KawaiError, *UNDECODABLE):
            return None


def _is_here(url: str) -> bool:
    """Whether an address is one of this machine alone: no proxy reaches it, and ``--offline`` may."""
    near = spelled(origin_of(url))
    return near is not None and near.ip.is_loopback


def _hint(error: KawaiError) -> str:
    return f"{error.info.hint}; " if error.info.hint else ""


def _with_hint(error: KawaiError, hint: str | None) -> KawaiError:
    return from_info(msgspec.structs.replace(error.info, hint=hint))


def _token_of(settings: "Settings") -> str | None:
    """The token: of the file that a flag names, else the variable's, else that of the file it names."""
    if settings.token_file is not None and (settings.source("token_file") == "flag" or not settings.token):
        return _checked(_read(settings.token_file), str(settings.token_file))
    return _checked(settings.token, "KAWAI_TOKEN") if settings.token else None


def _read(path: Path) -> str:
    """What a file holds; also a pipe, since a shell can make one of a command's output."""
    try:
        with path.open("rb") as file:
            words = file.read(_MOST_TOKEN + 1)
    except OSError as error:
        raise InvalidConfig(
            f"the token file {path} cannot be read: {error.strerror}", "kawai tokens create makes a token"
        ) from None
    return words.decode("ascii", "replace").strip() if len(words) <= _MOST_TOKEN else ""


def _checked(token: str, where: str) -> str:
    if not _TOKEN.fullmatch(token):
        raise InvalidConfig(f"{where} holds no token", "put a token there, and nothing else")
    return token
