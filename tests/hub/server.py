"""The hub's own routes: files, listings, refs and pages, for those who may see them.

Header and error names are those that huggingface_hub reads (`utils/_http.py`, `file_download.py`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import html
import json
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from .cdn import disposition, file_answer
from .messages import Answer, Call, Stream, conditional, text_answer
from .repos import Commit, Entry, Repository, Token, tree_oid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .messages import Blob

Json = dict[str, object]
_TRUE = {"true", "1"}


class Refusal(Exception):
    """The hub will not serve this call; carries the answer that says so."""

    def __init__(
        self, status: int, code: str | None, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Build the answer with the hub's error headers."""
        super().__init__(message)
        answer = text_answer(
            status, json.dumps({"error": message}), "application/json", X_Error_Message=message
        )
        for name, value in (headers or {}).items():
            answer = answer.having(name, value)
        self.answer = answer.having("X-Error-Code", code)


class HubRoutes:
    """Answers the calls to the hub server."""

    def __init__(self, locate: Callable[[str, str, Blob], str]) -> None:
        """Serve `repos` to the bearers of `tokens`; `locate` gives a signed URL for a large file."""
        self.repos: dict[str, Repository] = {}
        self.tokens: dict[str, Token] = {}
        self.endpoint = ""
        self.page_size = 1000
        self._locate = locate

    def route(self, call: Call) -> Answer:
        """Answer one call to the hub server."""
        if call.method not in {"GET", "HEAD"}:
            return text_answer(405, "Method not allowed", Allow="GET, HEAD")
        try:
            return self._dispatch(call)
        except Refusal as refusal:
            return refusal.answer

    def _dispatch(self, call: Call) -> Answer:
        token = self._token(call)
        match call.segments:
            case ["api", *rest]:
                return conditional(call, self._api(call, token, rest))
            case [owner, name, "resolve" | "raw" | "blob" as verb, revision, *path] if path:
                return self._file(
                    call, self._visible(f"{owner}/{name}", token), token, verb, revision, "/".join(path)
                )
            case [owner, name]:
                return page(self._visible(f"{owner}/{name}", token).name)
        raise _no_page()

    def _api(self, call: Call, token: Token | None, segments: list[str]) -> Answer:
        match segments:
            case ["whoami-v2"] if token:
                return json_answer({"type": "user", "name": "local", "auth": {"type": "access_token"}})
            case ["whoami-v2"]:
                raise Refusal(401, None, "Invalid username or password.")
            case ["models", owner, name, *rest]:
                repo = self._visible(f"{owner}/{name}", token)
                match rest:
                    case [] | ["revision", _]:
                        commit = find(repo, rest[1] if rest else "main")
                        return model_info(repo, commit, blobs=call.params.get("blobs", "").lower() in _TRUE)
                    case ["refs"]:
                        return refs(repo)
                    case ["tree", revision, *path]:
                        return self._tree(call, find(repo, revision), "/".join(path))
        raise _no_page()

    def _token(self, call: Call) -> Token | None:
        header = call.headers.get("authorization")
        if header is None:
            return None
        scheme, _, value = header.partition(" ")
        if scheme.lower() != "bearer" or value not in self.tokens:
            raise Refusal(401, None, "Invalid credentials in Authorization header")
        return self.tokens[value]

    def _visible(self, name: str, token: Token | None) -> Repository:
        repo = self.repos.get(name)
        if repo and (not repo.private or (token and name in token.sees)):
            return repo
        if token:
            raise Refusal(404, "RepoNotFound", "Repository not found")
        raise Refusal(401, "RepoNotFound", "Invalid username or password.")

    def _file(
        self, call: Call, repo: Repository, token: Token | None, verb: str, revision: str, path: str
    ) -> Answer:
        commit = find(repo, revision)
        commit_header = {"X-Repo-Commit": commit.sha}
        if path not in commit.files:
            raise Refusal(404, "EntryNotFound", "Entry not found", commit_header)
        if verb == "blob":
            return page(f"{path} · {repo.name}")
        if repo.gated and not (token and repo.name in token.accepts):
            raise _gated(repo.name, known=token is not None)
        blob = commit.files[path].blob
        if verb == "raw" and blob.lfs:
            return Answer(
                200, {"Content-Type": "text/plain; charset=utf-8", **commit_header}, Stream.of(blob.pointer)
            )
        if blob.lfs:
            return self._redirect(repo, commit, path)
        return file_answer(
            call, blob, f'"{blob.oid}"', {**commit_header, **disposition(path.rpartition("/")[2])}
        )

    def _redirect(self, repo: Repository, commit: Commit, path: str) -> Answer:
        blob = commit.files[path].blob
        where = self._locate(repo.name, path, blob)
        etag = f'"{blob.sha256}"'
        answer = text_answer(
            302, f"Found. Redirecting to {where}", Location=where, ETag=etag, Accept_Ranges="bytes"
        )
        linked = {"X-Repo-Commit": commit.sha, "X-Linked-Size": str(blob.size), "X-Linked-ETag": etag}
        return Answer(302, {**answer.headers, **linked}, answer.body)

    def _tree(self, call: Call, commit: Commit, folder: str) -> Answer:
        params = call.params
        recursive, expand = (params.get(name, "").lower() in _TRUE for name in ("recursive", "expand"))
        rows = tree_rows(commit, folder.strip("/"), recursive=recursive, expand=expand)
        try:
            start = int(base64.urlsafe_b64decode(params.get("cursor", "MA==")))
            size = min(self.page_size, max(1, int(params.get("limit", self.page_size))))
        except (ValueError, binascii.Error) as error:
            raise Refusal(400, None, "Invalid cursor or limit") from error
        answer = json_answer(rows[start : start + size], {"X-Repo-Commit": commit.sha})
        if start + size >= len(rows):
            return answer
        cursor = base64.urlsafe_b64encode(str(start + size).encode()).decode()
        following = f"{self.endpoint}{call.path}?{urlencode({**params, 'cursor': cursor})}"
        return answer.having("Link", f'<{following}>; rel="next"')


def find(repo: Repository, revision: str) -> Commit:
    """Return the commit a revision names, or refuse as the hub does."""
    if commit := repo.find(revision):
        return commit
    raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {quote(revision)}")


def _no_page() -> Refusal:
    return Refusal(404, None, "Sorry, we can't find the page you are looking for.")


def _gated(name: str, *, known: bool) -> Refusal:
    if known:
        hint = f"you are not in the authorized list. Visit https://huggingface.co/{name} to ask for access."
        return Refusal(403, "GatedRepo", f"Access to model {name} is restricted and {hint}")
    hint = "You must have access to it and be authenticated to access it. Please log in."
    return Refusal(401, "GatedRepo", f"Access to model {name} is restricted. {hint}")


def json_answer(value: object, headers: Mapping[str, str] | None = None) -> Answer:
    """Return a value as JSON."""
    text = json.dumps(value)
    answer = text_answer(200, text, "application/json")
    etag = f'W/"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
    return Answer(200, {**answer.headers, "ETag": etag, **(headers or {})}, answer.body)


def page(title: str) -> Answer:
    """Return a web page of the hub: HTML, whatever was meant to be fetched."""
    shown = html.escape(title)
    return text_answer(200, f"<!doctype html><title>{shown}</title><h1>{shown}</h1>\n", "text/html")


def model_info(repo: Repository, commit: Commit, *, blobs: bool) -> Answer:
    """Describe a repository at a commit; with `blobs` each file comes with size and digests."""
    siblings: list[Json] = []
    for path, entry in sorted(commit.files.items()):
        row: Json = {"rfilename": path}
        if blobs:
            row |= {"size": entry.blob.size, "blobId": entry.blob.oid}
            if entry.blob.lfs:
                size = len(entry.blob.pointer)
                row["lfs"] = {"sha256": entry.blob.sha256, "size": entry.blob.size, "pointerSize": size}
        siblings.append(row)
    info: Json = {
        "id": repo.name,
        "modelId": repo.name,
        "author": repo.name.partition("/")[0],
        "sha": commit.sha,
    }
    info |= {"private": repo.private, "gated": repo.gated or False, "disabled": False, "tags": ["gguf"]}
    info |= {"lastModified": _moment(commit), "downloads": 0, "likes": 0, "siblings": siblings}
    return json_answer(info, {"X-Repo-Commit": commit.sha})


def refs(repo: Repository) -> Answer:
    """List branches and tags."""

    def rows(named: dict[str, str], kind: str) -> list[Json]:
        return [
            {"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": sha} for n, sha in sorted(named.items())
        ]

    found = {"branches": rows(repo.branches, "heads"), "tags": rows(repo.tags, "tags"), "converts": []}
    return json_answer({**found, "pullRequests": []})


def tree_rows(commit: Commit, folder: str, *, recursive: bool, expand: bool) -> list[Json]:
    """List a folder ("" is the root) of a commit by path; with `expand` each row has its last commit."""
    top = f"{folder}/" if folder else ""
    inside = {path: entry for path, entry in commit.files.items() if path.startswith(top)}
    if folder and not inside:
        raise Refusal(404, "EntryNotFound", f"{folder} does not exist on revision {commit.sha}")
    rows: dict[str, Json] = {}
    for path, entry in inside.items():
        parts = path[len(top) :].split("/")
        for depth in range(1, len(parts)):
            parent = top + "/".join(parts[:depth])
            oid = tree_oid(commit.files, f"{parent}/")
            rows[parent] = {"type": "directory", "oid": oid, "size": 0, "path": parent}
        rows[path] = _file_row(path, entry)
    shown = [row for path, row in sorted(rows.items()) if recursive or "/" not in path[len(top) :]]
    return (
        [{**row, "lastCommit": _last_commit(commit, str(row["path"]))} for row in shown] if expand else shown
    )


def _file_row(path: str, entry: Entry) -> Json:
    blob = entry.blob
    row: Json = {"type": "file", "oid": blob.oid, "size": blob.size, "path": path}
    if blob.lfs:
        row["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": len(blob.pointer)}
    return row


def _last_commit(commit: Commit, path: str) -> Json:
    files = [p for p in commit.files if p == path or p.startswith(f"{path}/")]
    last = max((commit.changed(p) for p in files), key=lambda changed: changed.date)
    return {"id": last.sha, "title": last.title, "date": _moment(last)}


def _moment(commit: Commit) -> str:
    return commit.date.strftime("%Y-%m-%dT%H:%M:%S.000Z")
