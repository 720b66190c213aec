"""The local hub as tests hold it: two servers, their files, and what they were asked."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Self

from .cdn import Cdn, Signer
from .exchange import Exchange
from .misbehaviour import Misbehaviour
from .releases import LLAMA_CPP, Asset, ReleaseRoutes
from .repos import BlobStore, Gate, Repository, Token
from .server import HubRoutes
from .site import RequestLog, Site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime
    from pathlib import Path

    from .faults import Fault
    from .messages import Answer, Blob, Call, Request, ServerName
    from .site import Route


class LocalHub:
    """A Hugging Face hub, GitHub's release API and their CDN on loopback, over real files.

    It misbehaves on demand, in all of them.

    Settings that may change at any time: `throttle`, the CDN's speed in bytes per second and connection;
    `url_lifetime`, the seconds for which a signed URL is good; `page_size`, the entries on a listing's page.
    """

    def __init__(self, root: Path, *, page_size: int = 1000, throttle: int | None = None) -> None:
        """Keep the files under `root`, which is made; nothing listens yet."""
        self.throttle = throttle
        self.url_lifetime = 3600.0
        self._blobs = BlobStore(root / "blobs")
        self._signer = Signer()
        self._cdn = Cdn(self._signer)
        self._hub = HubRoutes(self._locate)
        self._hub.page_size = page_size
        self._releases = ReleaseRoutes(self._hub.tokens, self._locate_asset)
        self._faults = Misbehaviour()
        self._log = RequestLog()
        routes: dict[ServerName, tuple[Route, Callable[[], int | None]]] = {
            "hub": (lambda call: self._releases.route(call) or self._hub.route(call), lambda: None),
            "cdn": (self._cdn.route, lambda: self.throttle),
        }
        self._sites = {
            name: Site(name, partial(self._respond, route), self._log, rate)
            for name, (route, rate) in routes.items()
        }

    # Life

    def start(self, port: int = 0, cdn_port: int = 0) -> Self:
        """Listen on these ports of 127.0.0.1; 0 lets the system choose."""
        self._sites["hub"].start(port)
        self._sites["cdn"].start(cdn_port)
        self._hub.endpoint = self._releases.endpoint = self.endpoint
        return self

    def stop(self) -> None:
        """Break every connection, also one that hangs, and wait for the threads that served them."""
        for site in self._sites.values():
            site.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        """The hub's URL: what `HF_ENDPOINT` is to be."""
        return self._sites["hub"].url

    @property
    def libs_api(self) -> str:
        """The release API's URL: what `KAWAI_LIBS_API` is to be."""
        return self.endpoint

    @property
    def cdn_endpoint(self) -> str:
        """The CDN's URL."""
        return self._sites["cdn"].url

    @property
    def page_size(self) -> int:
        """The number of entries on a page of a listing."""
        return self._hub.page_size

    @page_size.setter
    def page_size(self, entries: int) -> None:
        self._hub.page_size = entries

    # Files

    def add_file(self, repo: str, path: str, source: bytes | Path, revision: str = "main") -> str:
        """Put data or a file (linked or copied) on a branch, which is made if need be; return the commit."""
        return self._repo(repo).commit(revision, path, self._blobs.add(path, source))

    def remove_file(self, repo: str, path: str, revision: str = "main") -> str:
        """Remove a file by a new commit, which is returned; older commits keep it."""
        return self._hub.repos[repo].commit(revision, path, None)

    def tag(self, repo: str, name: str, revision: str = "main") -> str:
        """Tag what a revision names; return that commit."""
        found = self._hub.repos[repo].find(revision)
        if found is None:
            raise LookupError(f"{repo} has no revision {revision}")
        self._hub.repos[repo].tags[name] = found.sha
        return found.sha

    def add_plain(self, path: str, source: bytes | Path) -> str:
        """Serve a file, or a new content, at a URL without hub semantics; return the URL."""
        return self.cdn_endpoint + self._cdn.add_plain(path, self._blobs.add(path, source))

    def remove_plain(self, path: str) -> None:
        """Stop serving a plain file."""
        del self._cdn.plain[path]

    def url(self, repo: str, path: str, revision: str = "main") -> str:
        """Return a file's `resolve` URL."""
        return f"{self.endpoint}/{repo}/resolve/{revision}/{path}"

    # Releases

    def add_release(
        self,
        tag: str,
        assets: Mapping[str, bytes | Path],
        *,
        prerelease: bool | None = None,
        published: datetime | None = None,
        digests: bool = True,
        repo: str = LLAMA_CPP,
    ) -> None:
        """Release files under a tag, or add to a release and replace what it has by that name.

        By default a new release is a pre-release and newer than those before, and a known one stays what it
        is. Without `digests` the API says `null` for these assets.
        """
        with self._releases.lock:
            known = self._releases.releases
            release = known.put(repo, tag, prerelease=prerelease, published=published)
            for name, source in assets.items():
                known.add_asset(release, name, self._blobs.add(name, source), digest=digests)

    def remove_release(self, tag: str, *, repo: str = LLAMA_CPP) -> None:
        """Remove a release: its tag and its assets are not found any more."""
        with self._releases.lock:
            self._releases.releases.remove(repo, tag)

    def set_digest(self, tag: str, asset: str, digest: str | None, *, repo: str = LLAMA_CPP) -> None:
        """Say this of an asset (`sha256:...`, or anything else), whatever its content is."""
        with self._releases.lock:
            self._releases.releases.find(repo, tag).assets[asset].digest = digest

    @property
    def rate_limit(self) -> int | None:
        """The calls to the release API that are left this hour without a token; None: as many as you like.

        A 304 costs nothing; a token that `add_token` made known lifts the limit.
        """
        return self._releases.meter.left

    @rate_limit.setter
    def rate_limit(self, calls: int | None) -> None:
        with self._releases.lock:
            self._releases.meter.left = calls

    # Rights

    def gate(self, repo: str, mode: Gate = "manual") -> None:
        """Ask for an accepted licence before files are served; listings stay open, as on the hub."""
        self._repo(repo).gated = mode

    def make_private(self, repo: str) -> None:
        """Hide a repository from all tokens that may not see it."""
        self._repo(repo).private = True

    def add_token(self, token: str, *, accepts: Iterable[str] = (), sees: Iterable[str] = ()) -> None:
        """Make a token valid, and let it into these gated and private repositories, beside earlier ones."""
        known = self._hub.tokens.setdefault(token, Token())
        known.accepts.update(accepts)
        known.sees.update(sees)

    def revoke_token(self, token: str) -> None:
        """Make a token invalid."""
        del self._hub.tokens[token]

    # What happened

    @property
    def requests(self) -> list[Request]:
        """The requests whose answers have ended or were cut, in that order."""
        return self._log.requests()

    def clear_requests(self) -> None:
        """Forget the requests so far."""
        self._log.clear()

    def wait_for(self, met: Callable[[list[Request]], bool], seconds: float = 10.0) -> bool:
        """Wait until the ended requests meet a condition; return whether they did in time."""
        return self._log.wait_for(met, seconds)

    # Misbehaviour

    def misbehave(self, *faults: Fault) -> None:
        """Make faults active; where several strike one call, the later bends what the earlier left."""
        self._faults.add(*faults)

    def behave(self) -> None:
        """Drop all faults; servers that are down stay so."""
        self._faults.clear()

    def expire_urls(self) -> None:
        """Make every URL signed until now fail with 403."""
        self._signer.revoke()

    def down(self, server: ServerName | None = None, seconds: float | None = None) -> None:
        """Refuse connections to one server or both, for a while or until `up`, and break those there are."""
        for site in self._chosen(server):
            site.down(seconds)

    def up(self, server: ServerName | None = None) -> None:
        """Listen again, on the same ports."""
        for site in self._chosen(server):
            site.up()

    def _chosen(self, server: ServerName | None) -> list[Site]:
        return list(self._sites.values()) if server is None else [self._sites[server]]

    def _repo(self, name: str) -> Repository:
        if name.count("/") != 1:
            raise ValueError(f"{name!r} is not owner/name")
        return self._hub.repos.setdefault(name, Repository(name))

    def _locate(self, repo: str, path: str, blob: Blob) -> str:
        return self.cdn_endpoint + self._signer.sign(self._cdn.publish(repo, path, blob), self.url_lifetime)

    def _locate_asset(self, repo: str, asset: Asset) -> str:
        path = self._cdn.publish_asset(repo, asset.id, asset.name, asset.blob)
        return self.cdn_endpoint + self._signer.sign(path, self.url_lifetime)

    def _respond(self, route: Route, call: Call) -> Answer:
        # held from the look at the limit to the count, so that calls at once cannot share the last one
        with self._releases.lock:
            for fault in self._faults.striking(call, route(call)):
                route = partial(self._bend, fault, route)
            answer = route(call)
            self._releases.settle(call, answer)
        return answer

    def _bend(self, fault: Fault, route: Route, call: Call) -> Answer:
        return fault.twist(Exchange(call, route, self.expire_urls, self._sites[call.server].down))
