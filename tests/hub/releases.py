"""The hub as a mirror of api.github.com: releases, their assets with digests, and the limit on calls.

Fields, headers and refusals are those of GitHub's REST API, version 2022-11-28 (docs.github.com/rest:
"Releases", "Rate limits for the REST API", "Best practices for using the REST API").
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from .messages import Answer, Blob, Call, Stream, conditional, text_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Container

LLAMA_CPP = "ggml-org/llama.cpp"
FIRST_RELEASE = datetime(2026, 11, 1, tzinfo=UTC)
_DOCS = "https://docs.github.com/rest"
_HOUR = 3600
_ANONYMOUS, _KNOWN = 60, 5000
_KINDS = {".gz": "application/gzip", ".zip": "application/zip", ".txt": "text/plain"}

Json = dict[str, object]


@dataclass
class Asset:
    """A file of a release; `digest` is what the API says of it, true or not."""

    id: int
    name: str
    blob: Blob
    digest: str | None
    uploaded: datetime


@dataclass
class Release:
    """A tag's release."""

    id: int
    tag: str
    published: datetime
    prerelease: bool = True
    assets: dict[str, Asset] = field(default_factory=dict)


class Releases:
    """What has been released, by repository and tag."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._ids = count(1)
        self._repos: dict[str, dict[str, Release]] = {}

    def put(self, repo: str, tag: str, *, prerelease: bool | None, published: datetime | None) -> Release:
        """Make a release, by default a pre-release newer than the last one made; None keeps what is."""
        known = self._repos.setdefault(repo, {})
        if tag not in known:
            number = next(self._ids)
            known[tag] = Release(number, tag, FIRST_RELEASE + timedelta(hours=number))
        release = known[tag]
        release.prerelease = release.prerelease if prerelease is None else prerelease
        release.published = release.published if published is None else published
        return release

    def add_asset(self, release: Release, name: str, blob: Blob, *, digest: bool) -> None:
        """Put a file on a release; one of its name is replaced and gets a new id, as on GitHub."""
        number = next(self._ids)
        stated = f"sha256:{blob.sha256}" if digest else None
        # an upload changes its own times, not the release's
        uploaded = release.published + timedelta(seconds=number)
        release.assets[name] = Asset(number, name, blob, stated, uploaded)

    def remove(self, repo: str, tag: str) -> None:
        """Remove a release with its assets; the repository stays."""
        del self._repos[repo][tag]

    def find(self, repo: str, tag: str) -> Release:
        """Return the release of a tag; raises LookupError."""
        return self._repos[repo][tag]

    def newest_first(self, repo: str) -> list[Release]:
        """List a repository's releases; raises LookupError where there is no such repository."""
        return sorted(self._repos[repo].values(), key=lambda each: (each.published, each.id), reverse=True)


class Meter:
    """Counts the calls without a token against a limit; None is no limit."""

    def __init__(self) -> None:
        """Start an hour without a limit."""
        self.left: int | None = None
        self._began = time.time()

    def headers(self, *, known: bool, cost: int) -> dict[str, str]:
        """Return the headers that tell a caller where he stands after a call of this cost."""
        limit = _KNOWN if known else max(_ANONYMOUS, self.left or 0)
        left = limit if known or self.left is None else self.left
        remaining = max(0, left - cost)
        return {
            "X-RateLimit-Limit": str(limit),
            "X-RateLimit-Remaining": str(remaining),
            "X-RateLimit-Used": str(limit - remaining),
            "X-RateLimit-Reset": str(self.reset),
            "X-RateLimit-Resource": "core",
        }

    @property
    def reset(self) -> int:
        """When the hour ends, in UTC epoch seconds."""
        return int(self._began) + _HOUR * (1 + int(time.time() - self._began) // _HOUR)

    def spend(self) -> None:
        """Count one call."""
        if self.left is not None:
            self.left = max(0, self.left - 1)


class ReleaseRoutes:
    """Answers the calls that are about releases; any others it leaves alone."""

    def __init__(self, tokens: Container[str], locate: Callable[[str, Asset], str]) -> None:
        """Lift the limit for `tokens`; `locate` gives a signed URL for an asset of a repository."""
        self.releases = Releases()
        self.meter = Meter()
        self.endpoint = ""
        self.lock = threading.RLock()
        self._tokens = tokens
        self._locate = locate

    def route(self, call: Call) -> Answer | None:
        """Answer one call to the hub server, or return None where it is none of ours.

        Changes nothing, since a fault may ask several times for the answer to one call: see `settle`.
        """
        match call.segments:
            case ["repos", owner, name, "releases", *rest]:
                return self._api(call, f"{owner}/{name}", rest)
            case [owner, name, "releases", "download", tag, file]:
                return self._download(call, f"{owner}/{name}", tag, file)
        return None

    def settle(self, call: Call, answer: Answer) -> None:
        """Count a call that the API has answered, and not by 304."""
        metered = answer.header("X-RateLimit-Remaining") is not None
        if metered and answer.status != 304 and not self._known(call):
            self.meter.spend()

    def _known(self, call: Call) -> bool:
        return _token(call) in self._tokens

    def _api(self, call: Call, repo: str, rest: list[str]) -> Answer:
        known = self._known(call)
        if not call.headers.get("user-agent"):
            return text_answer(403, "Request forbidden by administrative rules: it has no User-Agent header.")
        if call.headers.get("authorization") and not known:
            return self._metered(call, _message(401, "Bad credentials", ""))
        if not known and self.meter.left == 0:
            return self._metered(call, _limited())
        if call.method not in {"GET", "HEAD"}:
            return self._metered(call, _missing())
        try:
            answer = self._found(call, repo, rest)
        except LookupError:
            answer = _missing()
        return self._metered(call, conditional(call, answer))

    def _metered(self, call: Call, answer: Answer) -> Answer:
        known = self._known(call)
        cost = 0 if answer.status == 304 else 1
        common = {"X-GitHub-Media-Type": "github.v3; format=json", "Vary": "Accept, Authorization"}
        headers = {**answer.headers, **common, **self.meter.headers(known=known, cost=cost)}
        return Answer(answer.status, headers, answer.body)

    def _found(self, call: Call, repo: str, rest: list[str]) -> Answer:
        match rest:
            case []:
                return self._page(call, repo)
            case ["latest"]:
                stable = [each for each in self.releases.newest_first(repo) if not each.prerelease]
                return _json(self._shown(repo, stable[0]))
            case ["tags", tag]:
                return _json(self._shown(repo, self.releases.find(repo, tag)))
        raise LookupError(call.path)

    def _page(self, call: Call, repo: str) -> Answer:
        shown = self.releases.newest_first(repo)
        size = min(100, _positive(call.params.get("per_page"), 30))
        at, last = _positive(call.params.get("page"), 1), max(1, -(-len(shown) // size))
        answer = _json([self._shown(repo, each) for each in shown[(at - 1) * size : at * size]])
        pages: dict[str, int] = {}
        if at > 1:
            pages["prev"] = min(at - 1, last)
        if at < last:
            pages |= {"next": at + 1, "last": last}
        if at > 1:
            pages["first"] = 1
        link = ", ".join(f'<{self._page_url(call, page)}>; rel="{rel}"' for rel, page in pages.items())
        return answer.having("Link", link or None)

    def _page_url(self, call: Call, page: int) -> str:
        return f"{self.endpoint}{call.path}?{urlencode({**call.params, 'page': page})}"

    def _shown(self, repo: str, release: Release) -> Json:
        url = f"{self.endpoint}/repos/{repo}/releases/{release.id}"
        tag = quote(release.tag, safe="")
        return {
            "url": url,
            "assets_url": f"{url}/assets",
            "html_url": f"{self.endpoint}/{repo}/releases/tag/{tag}",
            "id": release.id,
            "tag_name": release.tag,
            "target_commitish": "master",
            "name": release.tag,
            "draft": False,
            "prerelease": release.prerelease,
            "created_at": _moment(release.published),
            "published_at": _moment(release.published),
            "assets": [self._shown_asset(repo, tag, each) for each in release.assets.values()],
            "body": "",
        }

    def _shown_asset(self, repo: str, tag: str, asset: Asset) -> Json:
        name = quote(asset.name, safe="")
        return {
            "url": f"{self.endpoint}/repos/{repo}/releases/assets/{asset.id}",
            "id": asset.id,
            "name": asset.name,
            "label": "",
            "content_type": _kind(asset.name),
            "state": "uploaded",
            "size": asset.blob.size,
            "digest": asset.digest,
            "download_count": 0,
            "created_at": _moment(asset.uploaded),
            "updated_at": _moment(asset.uploaded),
            "browser_download_url": f"{self.endpoint}/{repo}/releases/download/{tag}/{name}",
        }

    def _download(self, call: Call, repo: str, tag: str, name: str) -> Answer:
        try:
            asset = self.releases.find(repo, tag).assets[name]
        except LookupError:
            return text_answer(404, "Not Found")
        if call.method not in {"GET", "HEAD"}:
            return text_answer(404, "Not Found")
        answer = text_answer(302, "", "text/html", Location=self._locate(repo, asset))
        return answer.having("Cache-Control", "no-cache")


def _token(call: Call) -> str:
    scheme, _, value = call.headers.get("authorization", "").partition(" ")
    return value if scheme.lower() in {"bearer", "token"} else ""


def _json(value: object) -> Answer:
    body = json.dumps(value).encode()
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "Cache-Control": "public, max-age=60, s-maxage=60",
        "ETag": f'W/"{hashlib.sha256(body).hexdigest()}"',
    }
    return Answer(200, headers, Stream.of(body))


def _message(status: int, message: str, docs: str) -> Answer:
    told = {"message": message, "documentation_url": f"{_DOCS}{docs}", "status": str(status)}
    return text_answer(status, json.dumps(told), "application/json")


def _missing() -> Answer:
    return _message(404, "Not Found", "/releases/releases")


def _limited() -> Answer:
    better = "Authenticated requests get a higher rate limit. Check out the documentation for more details."
    docs = "/overview/resources-in-the-rest-api#rate-limiting"
    return _message(403, f"API rate limit exceeded for 127.0.0.1. (But here's the good news: {better})", docs)


def _positive(text: str | None, default: int) -> int:
    return int(text) if text and text.isdecimal() and int(text) > 0 else default


def _kind(name: str) -> str:
    return next((kind for end, kind in _KINDS.items() if name.endswith(end)), "application/octet-stream")


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
