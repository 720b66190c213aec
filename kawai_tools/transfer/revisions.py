"""What revisions of repositories hold now: one question for each, many at a time, asked conditionally.

``GET /api/models/{repo}/revision/{revision}?blobs=true`` answers with ``sha``, the commit, and ``siblings``,
each with ``rfilename``, ``size`` and, for a large file, ``lfs.sha256`` (huggingface_hub, ``hf_api.py``,
``model_info`` with ``files_metadata``). Its weak ``ETag`` is good for ``If-None-Match`` (RFC 9110, 13.1.2).
"""

import re
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import msgspec

from kawai_tools.errors import (
    UNDECODABLE,
    BadResponse,
    HomeNotWritable,
    KawaiError,
    NoSpace,
    Offline,
    RateLimited,
    Unreachable,
    UpstreamTimeout,
)
from kawai_tools.files import make_directory, read_if_there, write_atomically
from kawai_tools.refs import HubRepo
from kawai_tools.transfer.cancelling import Cancelled
from kawai_tools.transfer.hub import Hub
from kawai_tools.transfer.responses import Response

AT_ONCE = 16
"""Questions under way at a time."""

_KEPT = 2000
"""Answers that are kept to be asked for conditionally."""

_MOST_BYTES, _MOST_SIZE, _TICK = 8 << 20, (1 << 63) - 1, 0.1
_COMMIT, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")


class Blob(msgspec.Struct, frozen=True, array_like=True):
    """A file of a revision; ``sha256`` is ``None`` for one that is no large file."""

    size: int
    sha256: str | None


class Revision(msgspec.Struct, frozen=True, array_like=True):
    """What a branch or tag names: a commit, and of the files there those that were asked for."""

    commit: str
    files: dict[str, Blob]


class _Copy(msgspec.Struct, frozen=True, array_like=True):
    """The last answer to one question, as far as it was about these paths."""

    etag: str
    revision: Revision
    paths: list[str]


class _Lfs(msgspec.Struct, frozen=True):
    sha256: str


class _Sibling(msgspec.Struct, frozen=True):
    rfilename: str
    size: int | None = None
    lfs: _Lfs | None = None


class _Info(msgspec.Struct, frozen=True):
    sha: str
    siblings: list[_Sibling] = []


# made as the module is: msgspec is not safe where threads are first to use a type
_INFO, _COPIES = msgspec.json.Decoder(_Info), msgspec.json.Decoder(dict[str, _Copy])

Answer = Revision | KawaiError
"""What a revision holds, or why that is not known."""


class Revisions:
    """Asks a hub what revisions hold; answers are kept in a file that may be lost."""

    def __init__(self, hub: Hub, path: Path) -> None:
        """``path`` is the file of kept answers."""
        self._hub = hub
        self._path = path

    def ask(
        self, wanted: Mapping[HubRepo, Collection[str]], stop: Callable[[], bool] = lambda: False
    ) -> dict[HubRepo, Answer]:
        """Ask what these paths are in each repository, some at a time. Raises ``Offline``, or ``Cancelled``.

        Once the hub has answered nobody for as long as one question is given, no more are asked.
        """
        if not wanted:
            return {}
        copies, stopped = self._read(), threading.Event()

        def stops() -> bool:
            return stopped.is_set() or stop()

        asking = _Asking(self._hub.stoppable(stops, lambda seconds: _pause(seconds, stops)), copies)
        with ThreadPoolExecutor(min(AT_ONCE, len(wanted)), "revision") as pool:
            try:
                found = dict(zip(wanted, pool.map(asking.one, wanted, wanted.values()), strict=True))
            except BaseException:
                stopped.set()  # nobody waits for the others
                raise
        if asking.fresh:
            self._write({**copies, **asking.fresh}, first=asking.fresh)
        return found

    def _read(self) -> dict[str, _Copy]:
        try:
            return _COPIES.decode(read_if_there(self._path) or b"{}")
        except (*UNDECODABLE, HomeNotWritable):
            return {}

    def _write(self, copies: dict[str, _Copy], first: Iterable[str]) -> None:
        """Keep answers, the newest before others, where that is possible: they only save asking again."""
        kept = list(dict.fromkeys([*first, *copies]))[:_KEPT]
        try:
            make_directory(self._path.parent)
            write_atomically(
                self._path, msgspec.json.encode({key: copies[key] for key in kept}), durable=False
            )
        except (HomeNotWritable, NoSpace):
            return


class _Asking:
    """Questions that belong together; several threads ask them."""

    def __init__(self, hub: Hub, copies: dict[str, _Copy]) -> None:
        self.fresh: dict[str, _Copy] = {}
        self._hub, self._copies = hub, copies
        self._guard = threading.Lock()
        self._answered, self._down = float("-inf"), None  # type: float, KawaiError | None

    def one(self, repo: HubRepo, paths: Collection[str]) -> Answer:
        began = time.monotonic()
        if self._down is not None:
            return self._down
        try:
            found = self._ask(repo, paths)
        except Offline:
            raise
        except (Unreachable, UpstreamTimeout, RateLimited) as error:
            with self._guard:
                if self._answered < began:
                    self._down = error
            return error
        except KawaiError as error:
            self._answered = time.monotonic()
            return error
        self._answered = time.monotonic()
        return found

    def _ask(self, repo: HubRepo, paths: Collection[str]) -> Revision:
        revision = quote(repo.revision, safe="")
        url = f"{self._hub.endpoint}/api/models/{repo.owner}/{repo.repo}/revision/{revision}?blobs=true"
        copy = self._copies.get(url)
        if copy is not None and not set(paths) <= set(copy.paths):
            copy = None

        def use(answer: Response) -> Revision:
            if answer.status == 304 and copy is not None:  # noqa: PLR2004 - Not Modified
                return copy.revision
            body = answer.read(_MOST_BYTES)
            with self._guard:  # one at a time: an answer takes many times its size while it is read
                found = _revision(body, repo, paths)
                if etag := answer.header("ETag"):
                    self.fresh[url] = _Copy(etag, found, sorted(paths))
            return found

        return self._hub.ask("GET", url, repo, use, {"If-None-Match": copy.etag} if copy else None)


def _pause(seconds: float, stops: Callable[[], bool]) -> None:
    """Wait, unless somebody breaks it off. Raises ``Cancelled``."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if stops():
            raise Cancelled
        time.sleep(min(left, _TICK))


def _revision(body: bytes, repo: HubRepo, paths: Collection[str]) -> Revision:
    """What an answer says of these paths of a revision. Raises ``BadResponse``."""
    try:
        info = _INFO.decode(body)
    except UNDECODABLE as error:
        raise BadResponse(f"the hub does not say what {repo} holds: {error}") from error
    if not _COMMIT.fullmatch(info.sha):
        raise BadResponse(f"the hub names no commit for {repo}")
    files = {
        each.rfilename: Blob(each.size, _digest(each))
        for each in info.siblings
        if each.rfilename in paths and each.size is not None
    }
    if any(not 0 <= blob.size <= _MOST_SIZE for blob in files.values()):
        raise BadResponse(f"the hub names a size for {repo} that no file can have")
    return Revision(info.sha, files)


def _digest(sibling: _Sibling) -> str | None:
    digest = sibling.lfs.sha256.lower() if sibling.lfs else ""
    return digest if _SHA256.fullmatch(digest) else None
