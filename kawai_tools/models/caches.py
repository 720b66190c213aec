"""What the directories of other tools hold, by their own names and manifests; nothing is hashed or changed.

::

    Hugging Face   models--OWNER--REPO/snapshots/COMMIT/PATH.gguf   mostly links to ../../blobs/DIGEST
    Ollama         manifests/HOST/NAMESPACE/MODEL/TAG               JSON, naming blobs/sha256-DIGEST
    LM Studio      models/PUBLISHER/REPO/FILE.gguf

From huggingface_hub's ``file_download.py`` and Ollama's ``types/model/name.go`` and ``manifest/manifest.go``.
What cannot be read, or makes no sense, is passed over: it is not ours to mend.
"""

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from kawai_tools.errors import UNDECODABLE
from kawai_tools.refs import is_gguf_name

MAGIC = b"GGUF"
MAX_MANIFEST = 1 << 20
"""Bytes; a manifest is some hundred."""

_MAX_POINTER = 4096
_REPO_DEPTH, _TAG_DEPTH, _FILE_DEPTH = 10, 4, 3
"""Levels of names below a snapshot, below Ollama's manifests, and below LM Studio's models."""

_NO_ATIME = getattr(os, "O_NOATIME", 0)
_LAYERS = {"application/vnd.ollama.image.model": False, "application/vnd.ollama.image.projector": True}
"""The layers that are GGUF files, and whether they are projections."""


class Held(NamedTuple):
    """A file that a tool holds: ``path`` is how it is best named, ``identity`` its device and inode.

    ``name`` is what the tool calls it, ``sha256`` what the tool says of it; ``goes_with`` is the digest of
    the projection that belongs to it, where the tool says so.
    """

    tool: str
    path: Path
    name: str
    size: int
    sha256: str | None
    identity: tuple[int, int]
    goes_with: str | None = None


class _Layer(msgspec.Struct, frozen=True):
    mediaType: str  # noqa: N815 - as Ollama spells it
    digest: str
    size: int


class _Manifest(msgspec.Struct, frozen=True):
    layers: list[_Layer]


_MANIFEST = msgspec.json.Decoder(_Manifest)


def identity(status: os.stat_result) -> tuple[int, int]:
    """What tells one file from another, whatever its names."""
    return status.st_dev, status.st_ino


def digest_named(path: Path) -> str | None:
    """The SHA-256 that the name of a blob promises; ``None`` for anything else."""
    found = re.fullmatch(r"(?:sha256-)?([0-9a-f]{64})", path.name)
    return found[1] if found and path.parent.name == "blobs" else None


def begins_as_gguf(path: Path | str) -> bool:
    """Whether a regular file begins with the magic of GGUF; it is not waited for and keeps its atime."""
    return _read(path, len(MAGIC)) == MAGIC


def hub_cache(root: Path) -> Iterator[Held]:
    """What the cache of the Hugging Face hub holds, each file once, whatever revisions have it."""
    seen = set()
    for repo in _entries(root):
        if not repo.name.startswith("models--"):
            continue
        name = repo.name.removeprefix("models--").replace("--", "/", 1)
        for commit in _entries(f"{repo.path}/snapshots"):
            for inside, path in _files(commit.path, _REPO_DEPTH):
                found = _status(path) if is_gguf_name(inside) else None
                if found is not None and identity(found) not in seen:
                    seen.add(identity(found))
                    digest = digest_named(Path(os.path.realpath(path)))
                    yield Held(
                        "huggingface", Path(path), f"{name}/{inside}", found.st_size, digest, identity(found)
                    )


def ollama(root: Path) -> Iterator[Held]:
    """What Ollama holds: a file for each name of it, and projections under the names of their models."""
    for inside, path in _files(str(root / "manifests"), _TAG_DEPTH, follow=True):
        if inside.count("/") == _TAG_DEPTH - 1:
            yield from _layers(root / "blobs", path, _ollama_name(*inside.split("/")))


def _layers(blobs: Path, manifest: str, name: str) -> Iterator[Held]:
    whole = [layer for layer in _read_manifest(manifest) if layer.mediaType in _LAYERS]
    digests = {layer.digest: digest for layer in whole if (digest := _digest(layer.digest)) is not None}
    beside = [digests[each.digest] for each in whole if _LAYERS[each.mediaType] and each.digest in digests]
    for layer in whole:
        if layer.digest not in digests:
            continue
        digest = digests[layer.digest]
        path = blobs / f"sha256-{digest}"
        found = _status(path)
        if found is not None and found.st_size == layer.size and begins_as_gguf(path):
            partner = beside[0] if len(beside) == 1 and not _LAYERS[layer.mediaType] else None
            yield Held("ollama", path, name, layer.size, digest, identity(found), partner)


def _digest(words: str) -> str | None:
    found = re.fullmatch(r"sha256[:-]([0-9a-f]{64})", words)
    return found[1] if found else None


def _read_manifest(path: str) -> list[_Layer]:
    data = _read(path, MAX_MANIFEST + 1)
    with contextlib.suppress(*UNDECODABLE):
        if data is not None and len(data) <= MAX_MANIFEST:
            return _MANIFEST.decode(data).layers
    return []


def _ollama_name(host: str, namespace: str, model: str, tag: str) -> str:
    """A model as Ollama shows it: without what is there by default."""
    if host != "registry.ollama.ai":
        return f"{host}/{namespace}/{model}:{tag}"
    return f"{model}:{tag}" if namespace == "library" else f"{namespace}/{model}:{tag}"


def lmstudio(root: Path) -> Iterator[Held]:
    """What LM Studio holds; a publisher's folder may be a link to another disk."""
    for inside, path in _files(str(root / "models"), _FILE_DEPTH, follow=True):
        if inside.count("/") == _FILE_DEPTH - 1 and is_gguf_name(inside):
            found = _status(path)
            if found is not None:
                name = inside[: -len(".gguf")]
                yield Held("lmstudio", Path(path), name, found.st_size, None, identity(found))


def lmstudio_homes(home: Path) -> list[Path]:
    """Where LM Studio of this user keeps its files, now and formerly."""
    pointer = (_read(home / ".lmstudio-home-pointer", _MAX_POINTER) or b"").strip()
    named = [Path(os.fsdecode(pointer))] if pointer.startswith(b"/") and b"\0" not in pointer else []
    return [*(named or [home / ".lmstudio"]), home / ".cache" / "lm-studio"]


READERS: Mapping[str, Callable[[Path], Iterator[Held]]] = {
    "huggingface": hub_cache,
    "lmstudio": lmstudio,
    "ollama": ollama,
}
"""What reads the directory of each tool."""


def _files(folder: str, depth: int, *, follow: bool = False) -> Iterator[tuple[str, str]]:
    """What lies at most ``depth`` names below a folder and is no folder: its path from there, and its path.

    The fixed depth is why a loop of links cannot matter.
    """
    for entry in _entries(folder):
        if _is_folder(entry, follow=follow):
            if depth > 1:
                for inside, path in _files(entry.path, depth - 1, follow=follow):
                    yield f"{entry.name}/{inside}", path
        else:
            yield entry.name, entry.path


def _is_folder(entry: "os.DirEntry[str]", *, follow: bool) -> bool:
    with contextlib.suppress(OSError):  # a link that leads to itself
        return entry.is_dir(follow_symlinks=follow)
    return False


def _entries(folder: Path | str) -> list["os.DirEntry[str]"]:
    """What a folder has to show, in order of names; nothing where it cannot be read."""
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        return sorted((each for each in found if each.name[0] != "."), key=lambda each: each.name)
    return []


def _status(path: Path | str) -> os.stat_result | None:
    """What the system says of a regular file; ``None`` for anything else."""
    with contextlib.suppress(OSError):
        found = os.stat(path)  # noqa: PTH116 - most paths are no Path
        return found if stat.S_ISREG(found.st_mode) else None
    return None


def _read(path: Path | str, most: int) -> bytes | None:
    """The first ``most`` bytes of a regular file; ``None`` for anything else. Never waits."""
    if _status(path) is None:  # before opening: a device may act on it
        return None
    with contextlib.suppress(OSError):
        fd = _open(path)
        try:
            return os.read(fd, most) if stat.S_ISREG(os.fstat(fd).st_mode) else None
        finally:
            os.close(fd)
    return None


def _open(path: Path | str) -> int:
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    with contextlib.suppress(PermissionError):  # only its owner may leave no trace
        return os.open(path, flags | _NO_ATIME)
    return os.open(path, flags)
