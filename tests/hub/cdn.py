"""The CDN: signed URLs that expire, plain files, and bytes by range."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlencode

from .messages import Answer, Blob, Call, Span, text_answer

if TYPE_CHECKING:
    from collections.abc import Mapping

_RANGE = re.compile(r"bytes=(\d*)-(\d*)\Z")
_DENIED = "<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>{}</Message></Error>"


class Signer:
    """Signs CDN paths for a while, and can revoke every signature it gave."""

    def __init__(self) -> None:
        """Make a signer with a key of its own."""
        self._key = secrets.token_bytes(32)

    def sign(self, path: str, lifetime: float) -> str:
        """Return the path with a query that is good for `lifetime` seconds."""
        expires = str(int(time.time() + lifetime))
        return f"{path}?{urlencode({'Expires': expires, 'Signature': self._mac(path, expires)})}"

    def objection(self, call: Call) -> str | None:
        """Return why a call may not pass, or None where its signature is good."""
        expires, signature = call.params.get("Expires", ""), call.params.get("Signature", "")
        if not hmac.compare_digest(signature.encode(), self._mac(call.path, expires).encode()):
            return "Invalid signature"
        return None if time.time() < int(expires) else "Request has expired"

    def revoke(self) -> None:
        """Make every URL signed until now fail."""
        self._key = secrets.token_bytes(32)

    def _mac(self, path: str, expires: str) -> str:
        return hmac.new(self._key, f"{path}\n{expires}".encode(), hashlib.sha256).hexdigest()


class Cdn:
    """Routes of the CDN server: `/lfs/...` and `/assets/...` by signed URL and `/files/...` for everyone."""

    def __init__(self, signer: Signer) -> None:
        """Serve what is put into `large`, `assets` and `plain`."""
        self.large: dict[str, Blob] = {}
        self.assets: dict[str, Blob] = {}
        self.plain: dict[str, Blob] = {}
        self._signer = signer

    def publish(self, repo: str, path: str, blob: Blob) -> str:
        """Make a large file reachable; return its path, which contains the file's name."""
        where = f"/lfs/{repo}/{blob.sha256}/{path}"
        self.large[where] = blob
        return quote(where)

    def publish_asset(self, repo: str, number: int, name: str, blob: Blob) -> str:
        """Make a release's asset reachable; return its path, which contains the file's name."""
        where = f"/assets/{repo}/{number}/{name}"
        self.assets[where] = blob
        return quote(where)

    def add_plain(self, path: str, blob: Blob) -> str:
        """Make a file reachable by everyone; return its path."""
        self.plain[path] = blob
        return quote(f"/files/{path}")

    def route(self, call: Call) -> Answer:
        """Answer one call to the CDN server."""
        if call.method not in {"GET", "HEAD"}:
            return text_answer(405, "Method not allowed", Allow="GET, HEAD")
        path = unquote(call.path)
        if path.startswith("/files/") and (blob := self.plain.get(path.removeprefix("/files/"))):
            # not the SHA-256: an ordinary file server's tag says nothing about the content
            return file_answer(call, blob, f'"{blob.sha256[:16]}-{blob.size:x}"')
        if path.startswith(("/lfs/", "/assets/")):
            if problem := self._signer.objection(call):
                return text_answer(403, _DENIED.format(problem), "application/xml")
            if blob := self.large.get(path):
                name = path.rpartition("/")[2]
                return file_answer(call, blob, f'"{blob.sha256}"', disposition(name))
            if blob := self.assets.get(path):
                # GitHub's storage has tags of its own, which say nothing about the content
                attached = {"Content-Disposition": f"attachment; filename={path.rpartition('/')[2]}"}
                return file_answer(call, blob, f'"0x8D{blob.oid[:12].upper()}"', attached)
        return text_answer(404, "Not found")


def disposition(name: str) -> dict[str, str]:
    """Return the header by which the hub names a file."""
    plain = name.encode("ascii", "replace").decode().replace('"', "_")
    return {"Content-Disposition": f"inline; filename*=UTF-8''{quote(name)}; filename=\"{plain}\";"}


def wanted_range(header: str, size: int) -> tuple[int, int] | None:
    """Return start and stop of a single byte range, None where the header is to be ignored (RFC 9110, 14.2).

    A range that cannot be satisfied comes back empty.
    """
    found = _RANGE.match(header.strip())
    if not found or found[0] == "bytes=-":
        return None
    first, last = found[1], found[2]
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    start = int(first)
    return start, max(start, min(size, int(last) + 1 if last else size))


def file_answer(call: Call, blob: Blob, etag: str, more: Mapping[str, str] | None = None) -> Answer:
    """Serve a file, whole or the single range asked for, honouring If-None-Match and If-Range."""
    headers = {
        "Content-Type": "application/octet-stream",
        "Accept-Ranges": "bytes",
        "ETag": etag,
        "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT",
        **(more or {}),
    }
    if etag in re.split(r"\s*,\s*", call.headers.get("if-none-match", "")):
        return Answer(304, headers)
    asked = wanted_range(call.headers.get("range", ""), blob.size) if call.method == "GET" else None
    if asked is None or call.headers.get("if-range", etag) != etag:
        return Answer(200, headers, Span(blob.path, 0, blob.size), blob)
    start, stop = asked
    if start >= stop:
        return unsatisfiable(headers, blob)
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{blob.size}"
    return Answer(206, headers, Span(blob.path, start, stop), blob)


def unsatisfiable(headers: Mapping[str, str], blob: Blob) -> Answer:
    """Return the 416 that states the file's size."""
    answer = text_answer(416, "Range not satisfiable", Content_Range=f"bytes */{blob.size}")
    return answer.having("ETag", headers.get("ETag"))
