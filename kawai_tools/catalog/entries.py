"""What kawai says of an entry of a catalog: payloads, frozen.

``size`` is the source's own text, ``size_bytes`` the exact size where it is known; ``created`` is in Unix
seconds; what is not known is ``None``.
"""

import msgspec

from kawai_tools.errors import ErrorInfo
from kawai_tools.fit import Fit
from kawai_tools.models.model import Capabilities
from kawai_tools.values import parse_size

ENDPOINTS = ("chat", "completion", "embeddings", "rerank")
ABILITIES = ("images", "audio", "streaming", "reasoning", "tooling", "embedding", "rerank")


class CatalogFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of an entry; ``sha256`` is pinned: nothing else is installed under this entry's name."""

    url: str
    size: str | None
    size_bytes: int | None
    sha256: str | None

    @property
    def about(self) -> int | None:
        """Bytes, exactly or as the source's own text says."""
        if self.size_bytes is not None or self.size is None:
            return self.size_bytes
        try:
            return parse_size(self.size)
        except ValueError:
            return None


class CatalogFiles(msgspec.Struct, frozen=True, kw_only=True):
    """The files of an entry: one, or all shards in order; and the projection."""

    model: list[CatalogFile]
    proj: CatalogFile | None

    @property
    def all(self) -> list[CatalogFile]:
        """Weights, then projection."""
        return [*self.model, *([self.proj] if self.proj else [])]

    @property
    def about(self) -> int | None:
        """Bytes of all; ``None`` where one of them is not known."""
        sizes = [file.about for file in self.all]
        return None if None in sizes else sum(size for size in sizes if size)


class CatalogMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What helps to choose."""

    created: int | None
    collections: list[str]
    description: str
    license: str | None


class CatalogConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the entry's model is best run: only what the entry says."""

    context_length: int | None = None
    gpu_layers: int | None = None
    parallel: int | None = None
    threads: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None

    @property
    def said(self) -> dict[str, int | float]:
        """The values by name."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: value for name, value in values.items() if value is not None}


class CatalogRow(msgspec.Struct, frozen=True, kw_only=True):
    """One entry as lists show it; ``catalog`` names the list that it is from.

    ``downloaded``: all its files are installed; ``validated``: and their last full hash was right. ``fit`` is
    told of a single entry only.
    """

    id: str
    category: str
    owned_by: str
    model_family: str
    web_page: str | None
    gated_model: bool
    architecture: str | None
    gguf_arch: str | None
    files: CatalogFiles
    capabilities: Capabilities
    metadata: CatalogMetadata
    config: CatalogConfig
    catalog: str
    downloaded: bool = False
    validated: bool = False
    fit: Fit | None = None


class CatalogDetails(CatalogRow, frozen=True, kw_only=True):
    """One entry and this machine: bytes ``needed`` on disk and ``free`` there, and bytes of ``memory``.

    ``needed`` is ``None`` where a size is not known; it is exact where all ``size_bytes`` are.
    """

    needed: int | None
    free: int
    memory: int | None


class CatalogUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one subscription: how many entries are held now, and whether they are new ones."""

    url: str
    entries: int
    changed: bool
    error: ErrorInfo | None


class Entry(msgspec.Struct, frozen=True):
    """An entry with what installed models are found by: the sources of weights and projection."""

    row: CatalogRow
    source: str
    proj_source: str | None


class Problem(msgspec.Struct, frozen=True):
    """What is wrong with a catalog, and where; ``refused`` is one that was left out for it."""

    where: str
    line: int | None
    words: str
    refused: bool
    fix: str = "mend it, or take it out of the catalogs"

    def __str__(self) -> str:
        """Where, and what."""
        return f"{self.where}{f', line {self.line}' if self.line else ''}: {self.words}"
