"""The Hugging Face protocol: which bytes a reference names, and who may have them.

Sources: ``HEAD /{repo}/resolve/{revision}/{path}`` answers, before its redirect, with ``X-Repo-Commit``,
``X-Linked-Size`` and ``X-Linked-ETag`` (a large file's SHA-256); ``GET /api/models/{repo}/tree/{revision}``
lists files in pages joined by ``Link`` headers; ``X-Error-Code`` tells gated, missing and private apart
(huggingface_hub, ``file_download.py`` and ``utils/_http.py``).
"""

import re
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import quote

import msgspec

from kawai_tools.errors import (
    UNDECODABLE,
    BadRedirect,
    BadResponse,
    FileNotOnHub,
    HubTokenRequired,
    InvalidConfig,
    KawaiError,
    ModelGated,
    NotFound,
    RateLimited,
    RepoNotFound,
    RevisionNotFound,
    Unreachable,
)
from kawai_tools.files import read_if_there
from kawai_tools.refs import HUB, HubFile, HubRepo, PlainUrl, parse_source
from kawai_tools.settings import Settings
from kawai_tools.transfer.asking import Asker
from kawai_tools.transfer.egress import Origin, origin_of
from kawai_tools.transfer.outbound import Outbound, next_url
from kawai_tools.transfer.patience import ATTEMPTS, retry_after
from kawai_tools.transfer.remote_file import RemoteFile as RemoteFile  # noqa: PLC0414 - part of what a hub says
from kawai_tools.transfer.responses import REDIRECTS, Response

T = TypeVar("T")

MAX_PAGES = 200
MAX_MOVES = 5
HEADLESS = frozenset({403, 405, 501})
"""What servers say that answer no HEAD."""

FIRST_BYTE = {"Range": "bytes=0-0"}
_SIZE = re.compile(r"[0-9]{1,19}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Lfs(msgspec.Struct, frozen=True):
    """The large-file part of a listing entry; ``oid`` is the SHA-256."""

    oid: str
    size: int


class Listed(msgspec.Struct, frozen=True):
    """One entry of a listing."""

    type: str
    path: str
    size: int = 0
    lfs: Lfs | None = None


_LISTING = msgspec.json.Decoder(
    list[Listed]
)  # made as the module is: msgspec is not safe where threads are first to use a type


def hub_credentials(settings: Settings) -> dict[Origin, str]:
    """Which ``Authorization`` goes to which origin.

    ``HF_TOKEN`` is for the hub that is configured; the token file is for the public hub, and for hosts
    that ``hub_token_hosts`` names. Raises ``InvalidConfig`` for a token that cannot be one.
    """
    endpoint = origin_of(settings.hub_endpoint)
    token = settings.hub_token
    if token is None and (endpoint == origin_of(HUB) or endpoint.host in settings.hub_token_hosts):
        token = (read_if_there(settings.hub_home / "token") or b"").decode("utf-8", "replace").strip()
    if not token:
        return {}
    if not re.fullmatch(r"[!-~]+", token):
        raise InvalidConfig(
            "the hub token has characters that a token cannot have", "check HF_TOKEN or its file"
        )
    return {endpoint: f"Bearer {token}"}


class Hub:
    """Asks a hub, or any web server, what a source is."""

    def __init__(self, outbound: Outbound, endpoint: str, asker: Asker | None = None) -> None:
        """``endpoint`` is the hub's address without a slash at its end."""
        self.outbound = outbound
        self.endpoint = endpoint
        self._origin = origin_of(endpoint)
        self._asker = asker or Asker(outbound)

    def within(self, seconds: float, attempts: int = ATTEMPTS) -> "Hub":
        """The same hub, for questions that may take this long in all."""
        return Hub(self.outbound, self.endpoint, self._asker.within(seconds, attempts))

    def stoppable(self, stop: Callable[[], bool], pause: Callable[[float], None]) -> "Hub":
        """The same hub, for questions that somebody may break off: they raise ``Cancelled`` then."""
        return Hub(self.outbound, self.endpoint, self._asker.stoppable(stop, pause))

    def require_allowed(self) -> None:
        """Raise ``Offline`` or ``HostNotAllowed`` where the hub may not be asked at all."""
        self.outbound.egress.check_first(self._origin)

    def describe(self, source: HubFile | PlainUrl) -> RemoteFile:
        """Size, digest and pinned address of one file.

        Raises what :func:`refusal` does, or a kind of ``Upstream``.
        """
        if isinstance(source, PlainUrl):
            return self._describe_url(source)
        url = self.endpoint + source.url_path
        for _ in range(MAX_MOVES):
            found = self.ask("HEAD", url, source, lambda answer: self._described(source, answer))
            if isinstance(found, RemoteFile):
                return found
            url = next_url(url, found)
            self.outbound.egress.check_redirect(self._origin, url)
            if origin_of(url) != self._origin:
                raise BadResponse(f"{self._origin.authority} gives no size for {source.path}")
        raise BadRedirect(f"{self._origin.authority} redirects {source.path} more than {MAX_MOVES} times")

    def _described(self, source: HubFile, answer: Response) -> RemoteFile | str:
        """What an answer says of a file, or where a renamed repository's file has moved to."""
        linked = answer.header("X-Linked-Size")
        if answer.status in REDIRECTS and linked is None:
            return answer.header("Location") or ""
        size = linked or answer.header("Content-Length")
        if size is None or not _SIZE.fullmatch(size):
            raise BadResponse(f"{self._origin.authority} does not say how large {source.path} is")
        etag = (answer.header("X-Linked-ETag") or "").strip('"').lower()
        commit = answer.header("X-Repo-Commit")
        pinned = HubFile(source.owner, source.repo, commit or source.revision, source.path)
        return RemoteFile(
            url=source.url,
            fetch=self.endpoint + pinned.url_path,
            size=int(size),
            sha256=etag if _SHA256.fullmatch(etag) else None,
            commit=commit,
            etag=None if commit else answer.strong_etag,
        )

    def _describe_url(self, source: PlainUrl) -> RemoteFile:
        """Ask for the head; where a server gives none, or no length, for the first byte."""

        def whole(answer: Response) -> RemoteFile | None:
            length = answer.header("Content-Length")
            return None if answer.status in HEADLESS or length is None else _plain(source, answer, length)

        def first(answer: Response) -> RemoteFile:
            _, _, total = (answer.header("Content-Range") or "").rpartition("/")
            partial = answer.status == 206  # noqa: PLR2004 - Partial Content
            return _plain(source, answer, total if partial else answer.header("Content-Length"))

        url = source.url
        return self.ask("HEAD", url, source, whole) or self.ask("GET", url, source, first, FIRST_BYTE)

    def files(self, repo: HubRepo) -> list[Listed]:
        """Every file of a revision, sorted by path."""
        revision = quote(repo.revision, safe="")
        url = f"{self.endpoint}/api/models/{repo.owner}/{repo.repo}/tree/{revision}?recursive=true"
        found: list[Listed] = []
        for _ in range(MAX_PAGES):
            listed, link = self.ask("GET", url, repo, _page)
            found += listed
            if link is None:
                return sorted((each for each in found if each.type == "file"), key=lambda each: each.path)
            url = next_url(url, link)
            if origin_of(url) != self._origin:
                raise BadResponse(f"{self._origin.authority} continues its listing elsewhere")
        raise BadResponse(f"{self._origin.authority} lists {repo} on more than {MAX_PAGES} pages")

    def start_of(self, file: RemoteFile, count: int) -> bytes:
        """The first ``count`` bytes of a file, or all that it has. Raises a kind of ``Upstream``."""

        def read(answer: Response) -> bytes:
            buffer, done = memoryview(bytearray(count)), 0
            while done < count and (more := answer.read_some(buffer[done:])):
                done += more
            return bytes(buffer[:done])

        return self.ask("GET", file.fetch, PlainUrl(file.url), read, {"Range": f"bytes=0-{count - 1}"})

    def refusal_of(self, file: RemoteFile, answer: Response) -> KawaiError:
        """What an answer of 400 or more to a request for the file's bytes means."""
        # what a redirect leads to is no hub: its 403 says nothing of gates and tokens
        source = PlainUrl(file.url) if answer.via else parse_source(file.url)
        problem = refusal(answer, source, has_token=origin_of(answer.url) in self.outbound.credentials)
        if isinstance(problem, NotFound):
            problem.url = file.url
        return problem

    def ask(
        self,
        method: str,
        url: str,
        source: HubFile | HubRepo | PlainUrl,
        use: Callable[[Response], T],
        headers: dict[str, str] | None = None,
    ) -> T:
        """Ask patiently and return what ``use`` makes of the answer; one that refuses is raised."""

        def refuse(answer: Response) -> KawaiError:
            return refusal(answer, source, has_token=origin_of(url) in self.outbound.credentials)

        plain = isinstance(source, PlainUrl)
        return self._asker.ask(
            method,
            url,
            use,
            refuse,
            headers=headers,
            follow=not isinstance(source, HubFile),  # its redirect is the answer
            accepted=HEADLESS if plain and method == "HEAD" else frozenset(),
        )


def _plain(source: PlainUrl, answer: Response, size: str | None) -> RemoteFile:
    if size is None or not _SIZE.fullmatch(size):
        raise BadResponse(
            f"{source.host} does not say how large {source.file_name} is", "fetch it by other means"
        )
    return RemoteFile(source.url, source.url, int(size), None, None, answer.strong_etag)


def _page(answer: Response) -> tuple[list[Listed], str | None]:
    """The entries of a page of a listing, and where the next page is."""
    try:
        listed = _LISTING.decode(answer.read())
    except UNDECODABLE as error:
        raise BadResponse(f"{origin_of(answer.url).authority} answers with no listing: {error}") from error
    link = re.search(r'<([^>]+)>;\s*rel="next"', answer.header("Link") or "")
    return listed, link[1] if link else None


def refusal(answer: Response, source: HubFile | HubRepo | PlainUrl, *, has_token: bool) -> KawaiError:
    """What an answer of 400 or more means, as an error that says what to do."""
    host = origin_of(answer.url).authority
    if answer.status == 429:  # noqa: PLR2004 - Too Many Requests
        wait = retry_after(answer)
        asked = f" and asks to wait {wait:g} s" if wait is not None else ""
        return RateLimited(f"{host} limits the rate of requests{asked}", "try again later, or set HF_TOKEN")
    if answer.status >= 500:  # noqa: PLR2004 - the server's fault
        return Unreachable(f"{host} fails with status {answer.status}", "try again later")
    if isinstance(source, PlainUrl):
        return _plain_refusal(answer.status, source)
    page = f"{HUB}/{source.owner}/{source.repo}"
    code = answer.header("X-Error-Code") or ""
    if answer.status in {401, 403}:
        return _credential_refusal(page, code, has_token=has_token)
    if answer.status == 404:  # noqa: PLR2004 - Not Found
        return _missing(source, code, page)
    return BadResponse(f"{host} answers with status {answer.status} for {page}")


def _credential_refusal(page: str, code: str, *, has_token: bool) -> KawaiError:
    if has_token:
        return ModelGated(
            f"the hub refuses HF_TOKEN for {page}",
            f"open {page} with the token's account, accept its terms or ask for access, and check the token",
        )
    what = "is gated" if code == "GatedRepo" else "is private, gated or does not exist"
    return HubTokenRequired(
        f"{page} {what}, and no hub token is set",
        f"set HF_TOKEN to a token that may read it; {page} says who may",
    )


def _missing(source: HubFile | HubRepo, code: str, page: str) -> KawaiError:
    if code == "RepoNotFound" or (isinstance(source, HubRepo) and code != "RevisionNotFound"):
        return RepoNotFound(f"the hub has no repository {source.owner}/{source.repo}", "check its spelling")
    if code == "RevisionNotFound" or isinstance(source, HubRepo):
        return RevisionNotFound(f"{page} has no revision {source.revision!r}", f"see {page}/tree/main")
    return FileNotOnHub(
        f"{page} has no file {source.path} at revision {source.revision}",
        f"see {page}/tree/{source.revision}",
    )


def _plain_refusal(status: int, source: PlainUrl) -> KawaiError:
    if status in {404, 410}:
        return FileNotOnHub(f"{source.url} is not there (status {status})")
    if status in {401, 403}:
        return BadResponse(f"{source.host} refuses to give {source.file_name} (status {status})")
    return BadResponse(f"{source.url} answers with status {status}")
