"""What kawai says of an installed model: payloads, frozen.

Sizes are bytes, times aware UTC datetimes, ``created`` Unix seconds; what is not known is ``None``.
"""

from datetime import datetime
from typing import Literal

import msgspec

from kawai_tools.fit import Fit
from kawai_tools.gguf import ArrayInfo


class ModelRow(msgspec.Struct, frozen=True, kw_only=True):
    """One line of ``models list``; an OpenAI client reads ``id``, ``object``, ``created``, ``owned_by``.

    ``protected`` has a default so that a kawai which does not know it yet is understood.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    model_family: str
    size: int
    modified: datetime
    validated: bool
    quantization: str | None
    context_length: int | None
    architecture: str | None
    projection: bool
    shards: int
    last_used: datetime | None
    protected: bool = False


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """All installed models, sorted by id."""

    object: Literal["list"] = "list"
    data: list[ModelRow]


class ModelFile(msgspec.Struct, frozen=True):
    """One file of a model; ``path`` is relative to the store."""

    path: str
    size: int
    sha256: str | None
    role: Literal["weights", "projection"]


class Provenance(msgspec.Struct, frozen=True):
    """Where a model came from (``None``: put into the store by hand) and when it was last verified."""

    url: str | None
    commit: str | None
    verified_at: datetime | None


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a model can be asked, derived from its metadata and chat template."""

    endpoint: Literal["chat", "completion", "embeddings", "rerank"]
    images: bool
    audio: bool
    streaming: bool
    reasoning: bool
    tooling: bool
    embedding: bool
    rerank: bool


class Setting(msgspec.Struct, frozen=True):
    """One effective runtime setting and where its value comes from."""

    value: int | float | bool | str | None
    source: str


class ModelDetails(ModelRow, frozen=True, kw_only=True):
    """All that ``models show`` knows; the model is never loaded for it.

    ``frees`` are the bytes of disk that removing it gives back: none of what other models or programs have.
    """

    files: list[ModelFile]
    provenance: Provenance
    capabilities: Capabilities
    parameters: int | None
    has_projection: bool
    has_encoder: bool
    has_decoder: bool
    is_recurrent: bool
    is_hybrid: bool
    metadata: dict[str, bool | int | float | str | ArrayInfo]
    config: dict[str, Setting]
    frees: int | None = None


class PlannedFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file that a pull would fetch; ``have`` bytes of it are here already."""

    url: str
    path: str
    size: int
    sha256: str | None
    have: int


class PlanPayload(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to ``dry_run``: ``needed`` bytes of disk are still to be claimed, ``free`` there are.

    ``fit`` tells whether the model will run; ``None`` where nothing can be said of it.
    """

    id: str
    exists: bool
    files: list[PlannedFile]
    total: int
    needed: int
    free: int
    fit: Fit | None = None


class LoadedModel(msgspec.Struct, frozen=True, kw_only=True):
    """One line of ``models ps``: a model that a runner holds in memory."""

    id: str
    owned_by: str
    model_family: str
    size: int
    expires_at: datetime | None
    active_streams: int
    state: str
    engine: str
    loaded_at: datetime | None
    context_length: int | None
    memory: int | None
