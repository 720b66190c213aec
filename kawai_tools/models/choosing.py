"""What a source names: which files of a repository, where they go, and by which words they are remembered."""

import re
from typing import TYPE_CHECKING

from kawai_tools.errors import AmbiguousFile, FileNotOnHub, QuantizationNotFound
from kawai_tools.refs import (
    HubFile,
    HubRepo,
    PlainUrl,
    Source,
    is_gguf_name,
    is_projection_name,
    quantization_named,
    quantization_of,
    safe_path,
    shard_of,
)

if TYPE_CHECKING:
    from kawai_tools.transfer.hub import Listed

DEFAULT_QUANTIZATION = "Q4_K_M"

File = HubFile | PlainUrl


def name_of(file: File) -> str:
    """The name of a file, or its path in its repository."""
    return file.path if isinstance(file, HubFile) else file.file_name


def shards(file: File) -> list[File]:
    """The whole set that a shard belongs to, in order; a file that is no shard by itself."""
    shard = shard_of(name_of(file))
    return [file.sibling(name) for name in shard.names()] if shard.count else [file]


def words_of(source: Source) -> str:
    """What a source is remembered by: any shard of a set is the first, a quantization as it is compared."""
    if not isinstance(source, HubRepo):
        return shards(source)[0].url
    quantization = f":{quantization_named(source.quantization)}" if source.quantization else ""
    return f"{source.owner}/{source.repo}{quantization}"


def place_of(file: File) -> str:
    """Where a file goes, relative to the store."""
    if isinstance(file, HubFile):
        return f"{file.owner}/{file.repo}/{file.path}"
    return f"{file.host}/{shard_of(file.file_name).stem}/{file.file_name}"


def gguf_files(listed: "list[Listed]") -> list[str]:
    """The paths of a listing that may be fetched."""
    return [each.path for each in listed if is_gguf_name(each.path) and safe_path(each.path)]


def choose(repo: HubRepo, listed: "list[Listed]") -> tuple[list[File], File | None]:
    """The weights that are meant of a repository, in order, and the projection that belongs to them.

    Raises ``FileNotOnHub``, ``QuantizationNotFound`` or ``AmbiguousFile``.
    """
    paths = gguf_files(listed)
    models: dict[str, str] = {}
    for path in paths:
        if not is_projection_name(path):
            models.setdefault(shard_of(path).stem, path)
    if not models:
        raise FileNotOnHub(
            f"the repository {repo.owner}/{repo.repo} has no GGUF files",
            "look for one whose name ends in -GGUF",
        )
    projection = _pick_projection([path for path in paths if is_projection_name(path)])
    return shards(repo.file(_pick(repo, list(models.values())))), repo.file(
        projection
    ) if projection else None


def _pick(repo: HubRepo, paths: list[str]) -> str:
    """The one model of a repository that is meant: by quantization, the only one, or Q4_K_M."""
    if repo.quantization is None and len(paths) == 1:
        return paths[0]
    wanted = quantization_named(repo.quantization or DEFAULT_QUANTIZATION)
    matching = [path for path in paths if quantization_of(path) == wanted]
    if len(matching) == 1:
        return matching[0]
    offered = ", ".join(sorted({quantization_of(path) or shard_of(path).stem for path in paths}))
    if len(matching) > 1:
        urls = ", ".join(repo.file(path).url for path in matching)
        raise AmbiguousFile(f"{repo} could be several files", f"give one's URL: {urls}")
    if repo.quantization is None:
        raise AmbiguousFile(f"{repo} has several models: {offered}", f"choose one: {repo}:QUANT")
    raise QuantizationNotFound(f"{repo.owner}/{repo.repo} has no {wanted}", f"it has {offered}")


def _pick_projection(paths: list[str]) -> str | None:
    """The projection to pair: F16 before BF16 before others, because every backend runs it."""
    order = {"F16": 0, "BF16": 1, "Q8_0": 2}
    return min(paths, key=lambda path: (order.get(quantization_of(path) or "", 3), path), default=None)


def says_projection(head: bytes) -> bool:
    """Whether the start of a GGUF file says that it is a projection (``clip``, or type ``mmproj``)."""
    for key, value in ((rb"general\.architecture", b"clip"), (rb"general\.type", b"mmproj")):
        found = re.search(key + rb"\x08\x00\x00\x00(.{8})", head, re.DOTALL)
        if found and int.from_bytes(found[1], "little") == len(value) and head.startswith(value, found.end()):
            return True
    return False
