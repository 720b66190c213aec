"""Repositories over real files: blobs, commits, branches and tags, with git's own object names."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from .messages import Blob, pointer_text

if TYPE_CHECKING:
    from collections.abc import Mapping

LFS_FROM = 1 << 20
FIRST_COMMIT = datetime(2024, 1, 1, tzinfo=UTC)

Gate = Literal["auto", "manual"]


def git_oid(kind: str, data: bytes) -> str:
    """Return git's name (SHA-1) of an object."""
    return hashlib.sha1(b"%s %d\0" % (kind.encode(), len(data)) + data, usedforsecurity=False).hexdigest()


@lru_cache(maxsize=1024)
def _sha256(path: Path, inode: int, size: int, mtime_ns: int) -> str:  # noqa: ARG001 -- the cache's key
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class BlobStore:
    """A directory of contents, each stored once under its SHA-256."""

    def __init__(self, root: Path) -> None:
        """Keep the contents in `root`, which is made."""
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, source: bytes | Path) -> Blob:
        """Store a content (a file is hard-linked if possible); `name` decides whether it is LFS."""
        if isinstance(source, Path):
            source = source.resolve()
            seen = source.stat()
            size, sha256 = seen.st_size, _sha256(source, seen.st_ino, seen.st_size, seen.st_mtime_ns)
        else:
            size, sha256 = len(source), hashlib.sha256(source).hexdigest()
        path = self._root / sha256
        if not path.exists():
            self._write(source, path)
        lfs = name.lower().endswith(".gguf") or size >= LFS_FROM
        return Blob(
            path, size, sha256, lfs, git_oid("blob", pointer_text(sha256, size) if lfs else path.read_bytes())
        )

    def _write(self, source: bytes | Path, path: Path) -> None:
        with tempfile.TemporaryDirectory(dir=self._root) as scratch:
            part = Path(scratch) / "blob"
            if isinstance(source, bytes):
                part.write_bytes(source)
            else:
                try:
                    os.link(source, part)
                except OSError:
                    shutil.copyfile(source, part)
            part.replace(path)


@dataclass(frozen=True)
class Entry:
    """A file of a commit: its content and the commit that last changed it."""

    blob: Blob
    changed_by: Commit | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Commit:
    """A snapshot of a repository's files."""

    sha: str
    title: str
    date: datetime
    files: Mapping[str, Entry]

    def changed(self, path: str) -> Commit:
        """Return the commit that last changed a file."""
        return self.files[path].changed_by or self


def tree_oid(files: Mapping[str, Entry], folder: str = "") -> str:
    """Return git's name of the tree that a folder (with its final `/`; "" is the root) holds."""
    rows: dict[str, tuple[str, str]] = {}
    for path, entry in files.items():
        if path.startswith(folder):
            name, slash, _ = path[len(folder) :].partition("/")
            oid = tree_oid(files, f"{folder}{name}/") if slash and name not in rows else entry.blob.oid
            rows.setdefault(name, ("40000" if slash else "100644", oid))
    # git sorts a folder as if its name ended in a slash
    order = sorted(rows, key=lambda name: name + "/" * (rows[name][0] == "40000"))
    return git_oid(
        "tree", b"".join(f"{rows[n][0]} {n}\0".encode() + bytes.fromhex(rows[n][1]) for n in order)
    )


class Repository:
    """A model repository: commits, and the branches and tags that name them."""

    def __init__(self, name: str) -> None:
        """Make an empty public repository `owner/name`."""
        self.name = name
        self.private = False
        self.gated: Gate | None = None
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.commits: dict[str, Commit] = {}
        self._lock = threading.Lock()

    def find(self, revision: str) -> Commit | None:
        """Return the commit that a branch, a tag or a full hash names."""
        return self.commits.get(self.branches.get(revision) or self.tags.get(revision) or revision)

    def commit(self, branch: str, path: str, blob: Blob | None) -> str:
        """Set (or with None remove) one file on a branch; a new branch starts from main."""
        with self._lock:
            parent = self.find(branch) or self.find("main")
            files = (
                {p: Entry(e.blob, e.changed_by or parent) for p, e in parent.files.items()} if parent else {}
            )
            if blob is None:
                del files[path]
            else:
                files[path] = Entry(blob)
            title = f"{'Delete' if blob is None else 'Upload'} {path}"
            commit = self._seal(files, title, parent)
            self.commits[commit.sha] = commit
            self.branches[branch] = commit.sha
            return commit.sha

    def _seal(self, files: dict[str, Entry], title: str, parent: Commit | None) -> Commit:
        date = FIRST_COMMIT + timedelta(seconds=len(self.commits))
        who = f"Local Hub <hub@localhost> {int(date.timestamp())} +0000"
        above = f"parent {parent.sha}\n" if parent else ""
        text = f"tree {tree_oid(files)}\n{above}author {who}\ncommitter {who}\n\n{title}\n"
        return Commit(git_oid("commit", text.encode()), title, date, MappingProxyType(files))


@dataclass
class Token:
    """What a token may do: gated repositories it was let into, private ones it may see."""

    accepts: set[str] = field(default_factory=set)
    sees: set[str] = field(default_factory=set)
