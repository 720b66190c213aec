"""Releases of llama.cpp, as GitHub's API lists them: which versions there are, and their assets.

Builds are tagged ``b<N>`` and published as pre-releases; ``releases/latest`` is a semantic version whose
only asset may be ``nightly-tag.txt``, one line naming a build (llama.cpp, ``.github/workflows/release.yml``).
The API (docs.github.com, "REST API endpoints for releases") gives each asset a ``digest``, answers 304 to
``If-None-Match`` without counting it, and allows 60 calls an hour to those without a token.
"""

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated

import msgspec

from kawai_tools.errors import (
    UNDECODABLE,
    BadResponse,
    InvalidConfig,
    InvalidRequest,
    InvalidSource,
    KawaiError,
    RateLimited,
    Unreachable,
    VersionNotFound,
)
from kawai_tools.libs.release import NIGHTLY_TAG, PAGE, Answers, Asset, Copy, Release, is_version
from kawai_tools.settings import Settings
from kawai_tools.transfer.asking import Asker
from kawai_tools.transfer.egress import Origin, origin_of
from kawai_tools.transfer.outbound import next_url
from kawai_tools.transfer.patience import LONGEST_WAIT, retry_after
from kawai_tools.transfer.responses import Response

MAX_PAGES = 4
_MAX_NOTE = 4096
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


def release_credentials(settings: Settings) -> dict[Origin, str]:
    """``GITHUB_TOKEN`` is for the release server that is configured, and for no other origin.

    Raises ``InvalidConfig`` for a token that cannot be one.
    """
    if settings.github_token is None:
        return {}
    if not re.fullmatch(r"[!-~]+", settings.github_token):
        raise InvalidConfig("GITHUB_TOKEN has characters that a token cannot have", "check the variable")
    return {origin_of(settings.libs_api): f"Bearer {settings.github_token}"}


class _ApiAsset(msgspec.Struct, frozen=True):
    name: str
    size: Annotated[int, msgspec.Meta(ge=0)]
    browser_download_url: str
    digest: str | None = None
    state: str = "uploaded"


class _ApiRelease(msgspec.Struct, frozen=True):
    tag_name: str
    assets: list[_ApiAsset]
    prerelease: bool = False
    draft: bool = False

    def told(self) -> Release:
        """What is kept of it; an asset that is still being uploaded is none yet."""
        assets = [
            Asset(each.name, each.size, _sha256(each.digest), each.browser_download_url)
            for each in self.assets
            if each.state == "uploaded"
        ]
        return Release(self.tag_name, self.prerelease, assets)


_Decoder = msgspec.json.Decoder[_ApiRelease] | msgspec.json.Decoder[list[_ApiRelease]]
# made as the module is: msgspec is not safe where threads are first to use a type
_ONE, _MANY = msgspec.json.Decoder(_ApiRelease), msgspec.json.Decoder(list[_ApiRelease])


def _is_web(url: str) -> bool:
    try:
        origin_of(url)
    except InvalidSource:
        return False
    return True


def _sha256(digest: str | None) -> str | None:
    found = _DIGEST.fullmatch((digest or "").lower())
    return found[1] if found else None


class Releases:
    """Asks a release server, keeping its last answers."""

    def __init__(self, asker: Asker, answers: Answers) -> None:
        """``answers`` are kept for the next time, and say which server is asked."""
        self._asker = asker
        self._answers = answers
        self._base = answers.base

    def within(self, seconds: float) -> "Releases":
        """The same, for questions that may take this long in all."""
        return Releases(self._asker.within(seconds), self._answers)

    def newest(self) -> Iterator[list[Release]]:
        """Builds by page, newest first."""
        url: str | None = f"{self._base}?per_page={PAGE}"
        for _ in range(MAX_PAGES):
            if url is None:
                return
            copy = self._ask(url, _MANY)
            yield copy.releases
            url = copy.next_url

    def tagged(self, tag: str) -> Release:
        """One version. Raises ``VersionNotFound``, or ``InvalidRequest`` for what can be none."""
        if not is_version(tag):
            raise InvalidRequest(
                f"{tag[:40]!r} is no version of llama.cpp",
                "versions look like b11434; --channel follows the newest",
            )
        found = self._ask(f"{self._base}/tags/{tag}", _ONE).releases[0]
        if found.tag != tag:
            raise BadResponse(f"the release server answers with {found.tag[:40]!r} where {tag} was asked for")
        return found

    def check_way_to(self, asset: Asset) -> None:
        """Raise ``HostNotAllowed`` or ``Offline`` where an asset may not be fetched from."""
        if not _is_web(asset.url):
            raise BadResponse(f"the release server names no web address for {asset.name}: {asset.url[:80]!r}")
        self._asker.outbound.egress.check_first(origin_of(asset.url))

    def stable(self) -> Release:
        """The build that the newest full release stands for."""
        latest = self._ask(f"{self._base}/latest", _ONE).releases[0]
        note = next((asset for asset in latest.assets if asset.name == NIGHTLY_TAG), None)
        if note is not None:
            return self.tagged(self._noted(note))
        if not is_version(latest.tag):
            raise BadResponse(
                f"the stable release {latest.tag[:40]!r} names no build: it has no {NIGHTLY_TAG}"
            )
        return latest

    def _noted(self, note: Asset) -> str:
        """The build that a ``nightly-tag.txt`` names; such a file is asked for once."""
        known = self._answers.read().notes.get(note.url)
        if known is not None:
            return known
        text = self._asker.ask(
            "GET",
            note.url,
            lambda answer: answer.read(_MAX_NOTE),
            lambda answer: self._refusal(answer, note.url),
        )
        tag = text.decode("utf-8", "replace").strip()
        if not is_version(tag):
            raise BadResponse(f"{NIGHTLY_TAG} of the stable release names no build: {tag[:40]!r}")
        copies = self._answers.read()
        self._answers.write(msgspec.structs.replace(copies, notes={**copies.notes, note.url: tag}))
        return tag

    def _ask(self, url: str, wanted: _Decoder) -> Copy:
        known = self._answers.read().answers.get(url)
        headers = {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": "2022-11-28"}
        if known is not None and known.etag is not None:
            headers["If-None-Match"] = known.etag

        def use(answer: Response) -> Copy:
            now = datetime.now(UTC)
            if answer.status == 304 and known is not None:  # noqa: PLR2004 - Not Modified
                return msgspec.structs.replace(known, asked_at=now)
            return Copy(answer.header("ETag"), now, _decode(answer, wanted), self._next(url, answer))

        copy = self._asker.ask("GET", url, use, lambda answer: self._refusal(answer, url), headers=headers)
        if not copy.releases and wanted is _ONE:
            raise VersionNotFound("the release server has only a draft of it", "choose another version")
        self._answers.keep(url, copy)
        return copy

    def _next(self, url: str, answer: Response) -> str | None:
        link = re.search(r'<([^>]+)>;\s*rel="next"', answer.header("Link") or "")
        following = next_url(url, link[1]) if link else url
        return following if link and _is_web(following) and origin_of(following) == origin_of(url) else None

    def _refusal(self, answer: Response, url: str) -> KawaiError:
        """What an answer of 400 or more means."""
        host = origin_of(answer.url).authority
        if answer.status == 404:  # noqa: PLR2004 - Not Found
            tag = url.rpartition("/tags/")[2]
            if "/tags/" in url:
                return VersionNotFound(
                    f"there is no version {tag!r} of llama.cpp", "kawai libs available lists some"
                )
            return VersionNotFound(
                f"{host} has no such release", "choose the other --channel, or name a version"
            )
        spent = answer.header("X-RateLimit-Remaining") == "0"
        limited = spent or answer.header("Retry-After") is not None
        if answer.status == 429 or (answer.status == 403 and limited):  # noqa: PLR2004 - as GitHub says it
            return self._rate_limited(answer, host, spent=spent)
        if answer.status >= 500:  # noqa: PLR2004 - the server's fault
            return Unreachable(f"{host} fails with status {answer.status}", "try again later")
        if answer.status == 401:  # noqa: PLR2004 - Unauthorized
            has_token = origin_of(answer.url) in self._asker.outbound.credentials
            words = f"{host} refuses GITHUB_TOKEN" if has_token else f"{host} wants a token"
            return BadResponse(words, "check GITHUB_TOKEN, or unset it")
        return BadResponse(f"{host} answers with status {answer.status}")

    def _rate_limited(self, answer: Response, host: str, *, spent: bool) -> KawaiError:
        reset, wait = answer.header("X-RateLimit-Reset") or "", retry_after(answer)
        if wait is not None and not spent:  # the secondary limit
            reset = str(int(time.time() + wait))
        when = (
            f" until {datetime.fromtimestamp(int(reset), UTC):%H:%M:%S} UTC"
            if re.fullmatch(r"\d{1,11}", reset)
            else ""
        )
        has_token = origin_of(self._base) in self._asker.outbound.credentials
        hint = (
            "wait until then"
            if has_token
            else "set GITHUB_TOKEN to any GitHub token, which lifts the limit, or wait"
        )
        error = RateLimited(f"{host} limits the rate of requests{when}", hint)
        error.lasting = spent or (wait is not None and wait > LONGEST_WAIT)
        return error


def _decode(answer: Response, wanted: _Decoder) -> list[Release]:
    try:
        found = wanted.decode(answer.read())
    except UNDECODABLE as error:
        host = origin_of(answer.url).authority
        raise BadResponse(f"{host} answers with no releases: {error}", "check KAWAI_LIBS_API") from error
    if not isinstance(found, list):
        return [] if found.draft else [found.told()]
    return [each.told() for each in found if not each.draft and is_version(each.tag_name)]
