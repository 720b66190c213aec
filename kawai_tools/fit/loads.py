"""How a model would be loaded, and what llama.cpp makes of that."""

from collections.abc import Mapping

import msgspec

PAD = 256
"""Contexts are rounded up to so many tokens (``llama_context``)."""

_BATCH, _PART = 2048, 512
"""Tokens that llama.cpp takes at a time, and computes in one go, where it is not told otherwise."""

REPACKED: Mapping[str, frozenset[str]] = {
    "x64": frozenset(("Q4_0", "Q4_K", "IQ4_NL", "MXFP4")),
    "arm64": frozenset(("Q4_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4", "Q8_0")),
}
"""Types whose matrices are copied into another order for the processor, by its architecture.

From ``ggml_repack_get_optimal_repack_type`` in ``ggml/src/ggml-cpu/repack.cpp``: x86 with AVX2 (with AVX-512
``Q2_K`` too), Arm with the dot product. The file's own pages stay mapped beside the copies.
"""

CACHE_TYPES: Mapping[str, tuple[int, int]] = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "q5_1": (32, 24),
    "q5_0": (32, 22),
    "q4_1": (32, 20),
    "q4_0": (32, 18),
    "iq4_nl": (32, 18),
}
"""What ``--cache-type-k`` takes: values in a block, and its bytes."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How a model would be loaded.

    ``context`` is of one request, in tokens; llama.cpp is given ``context * parallel``. ``gpu_layers`` is a
    user's word, None: as many as fit. ``embeds``: whole texts are computed in one go. ``processor`` is the
    architecture of the build (``x64``, ``arm64``). ``embedded``: the server runs inside a Python child.
    """

    context: int
    parallel: int = 1
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    gpu_layers: int | None = None
    embeds: bool = False
    processor: str = "x64"
    embedded: bool = False

    @property
    def cells(self) -> int:
        """Tokens that are kept for one request."""
        return padded(max(1, self.context))

    @property
    def part(self) -> int:
        """Tokens that are computed in one go."""
        whole = self.context if self.embeds else _PART
        return max(1, min(whole, self.cells * self.parallel))

    def windowed(self, window: int) -> int:
        """Tokens that are kept for one request by layers that see the last ``window`` only."""
        return padded(min(self.cells, window + self.part))

    @property
    def repacked(self) -> frozenset[str]:
        """Types of weights that the processor needs in another order."""
        return REPACKED.get(self.processor, frozenset())


def padded(tokens: int) -> int:
    """Round up to what llama.cpp rounds to."""
    return tokens + -tokens % PAD


def row(values: int, cache_type: str) -> int:
    """Bytes of so many values in a cache of this type; one that is not known counts as ``f16``."""
    block, size = CACHE_TYPES.get(cache_type.lower(), CACHE_TYPES["f16"])
    return -(-values // block) * size
