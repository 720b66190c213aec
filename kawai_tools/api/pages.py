"""``/ui/``: the files of the admin page, as they are in the package; it uses the public API only.

What a page may do is in its Content Security Policy (CSP level 3, Trusted Types): scripts, styles and
connections of this server, and no text that becomes markup.
"""

import re
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from starlette.responses import Response

import kawai_tools
from kawai_tools.errors import RouteNotFound

BARE, PAGE, FILES = "/ui", "/ui/", "/ui/{file}"

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
_INDEX = "index.html"
_NOBODY = b'data-session="none"'
_MODELS = re.compile(rb"\n *<link rel=\"preload\" [^>]*>")
"""What has a browser ask for the models before the scripts are there: for who may see them."""


class _File(NamedTuple):
    body: bytes
    media_type: str
    etag: str


@cache
def _files() -> dict[str, _File]:
    """Every file by its path below ``ui/``; read once."""
    folder = Path(kawai_tools.__file__).parent / "ui"
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in _TYPES and path.is_file():
            body = path.read_bytes()
            etag = f'"{sha256(body).hexdigest()[:32]}"'
            found[path.relative_to(folder).as_posix()] = _File(body, _TYPES[path.suffix], etag)
    return found


def warm() -> None:
    """Read all files, before requests would wait for that."""
    _files()


def index(session: str) -> Response:
    """The page; ``session`` tells its scripts who looks (:meth:`~kawai_tools.api.access.Access.seen`)."""
    file = _files()[_INDEX]
    body = file.body
    if session in {"none", "unknown"}:
        body = _MODELS.sub(b"", body)
    body = body.replace(_NOBODY, f'data-session="{session}"'.encode())
    return Response(body, headers={**_HEADERS, "Cache-Control": "no-store"}, media_type=file.media_type)


def give(name: str, sent: Mapping[str, str]) -> Response:
    """One file of it, or 304 where the browser has it. Raises ``RouteNotFound``."""
    file = _files().get(name)
    if file is None or name == _INDEX:
        raise RouteNotFound(f"there is nothing at {PAGE}{name[:200]}")
    headers = {**_HEADERS, "Cache-Control": "no-cache", "ETag": file.etag}
    if file.etag in (each.strip() for each in sent.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    return Response(file.body, headers=headers, media_type=file.media_type)


def lead() -> Response:
    """To the page, from where people look for it; a proxy in front may have it below another path."""
    return Response(status_code=307, headers={**_HEADERS, "Location": PAGE.removeprefix("/")})
