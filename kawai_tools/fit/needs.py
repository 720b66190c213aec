"""The memory that a model needs once it is loaded, from its header alone.

What an idle ``llama-server`` holds was measured (``scripts/bench/fit.py``): the mapped file, the copies of
weights that the processor wants in another order, the whole cache (it is cleared when it is made), and the
process with its vocabulary and graphs. Buffers for computing are reserved but not touched before the first
prompt; they are ``scratch``.
"""

from collections.abc import Sequence

import msgspec

from kawai_tools.fit.families import ENCODERS, GRAPHS
from kawai_tools.fit.loads import Load, row
from kawai_tools.fit.shapes import Facts, shape
from kawai_tools.gguf import ArrayInfo, Header

MOST = (1 << 53) - 1
"""No sum is larger, whatever a file says: what reads JSON may keep numbers as doubles."""

PROCESS = 21_600_000
"""Bytes of the server and its libraries as far as they are used."""

_TOKEN, _MERGE, _RANKS = 180, 136, 2_000_000
"""Bytes of a token of the vocabulary (its text, its entry in two tables, its place in the server's list), of
a merge of byte pairs, and of the tables that such a vocabulary needs whatever its size."""

_NODE, _LEAST_NODES, _NODES_A_TENSOR = 860, 1024, 8
"""Bytes of a node of a graph, as made and as scheduled (``llama_context::graph_max_nodes``)."""

_CELL = 72
"""Bytes that are known of a token in the cache: its position, its requests."""

_PROJECTION_NODES = 8192
"""Of the graph of a projection (``clip_ctx::max_nodes``)."""

_FLOAT, _HALF = 4, 2


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that a loaded model takes. ``guess``: its architecture is not known.

    ``weights`` include the ``repacked`` copies, which layers on a GPU do not need. ``scratch`` is what the
    first long prompt adds, about; on a GPU it is taken from the start.
    """

    weights: int
    kv: int
    compute: int
    projection: int
    repacked: int
    scratch: int
    guess: bool

    @property
    def total(self) -> int:
        """After loading."""
        return min(MOST, self.weights + self.kv + self.compute + self.projection)


class Model:
    """A model as its header tells it, and what it needs at one context or another."""

    def __init__(
        self,
        headers: Sequence[Header],
        files: int = 0,
        projection: Header | None = None,
        projection_size: int = 0,
    ) -> None:
        """``headers`` are those of its shards, the first one at least.

        ``files`` are the bytes of all its weights on disk; 0: the headers tell.
        """
        self.header = headers[0]
        self.facts, self.shape = Facts(self.header), shape(self.header)
        whole = len(headers) >= (self.header.split_count or 1)
        self.weights = sum(each.tensor_bytes for each in headers) if whole or not files else files
        self._headers, self._projection, self._projection_size = headers, projection, projection_size

    @property
    def size(self) -> int:
        """Bytes of all its files, about."""
        return min(MOST, self.weights + self._projection_size)

    def need(self, load: Load) -> Need:
        """What it takes when it is loaded so."""
        repacked = self._repacked(load)
        return Need(
            weights=min(MOST, self.weights + repacked),
            kv=min(MOST, sum(self.caches(load))),
            compute=min(MOST, self._process(load)),
            projection=self._projection_size + _PROJECTION_NODES * _NODE if self._projection_size else 0,
            repacked=min(MOST, repacked),
            scratch=min(MOST, self._scratch(load)),
            guess=not self.shape.known,
        )

    def caches(self, load: Load) -> list[int]:
        """Bytes that each layer keeps, all requests together."""
        windowed = load.windowed(self.shape.window)
        return [
            (
                (windowed if layer.windowed else load.cells)
                * (row(layer.keys, load.cache_type_k) + row(layer.values, load.cache_type_v))
                + layer.state
            )
            * load.parallel
            for layer in self.shape.layers
        ]

    def blocks_from(self, first: int) -> int:
        """Bytes of the weights of the layers from this one on, and of the output."""
        size = sum(
            size for header in self._headers for block, size in header.block_sizes.items() if block >= first
        )
        known = sum(header.tensor_bytes for header in self._headers)
        if known < self.weights:
            # shards whose headers were not read: each layer counts as one of many of equal size
            return self.weights * (self.facts.blocks - first) // max(1, self.facts.blocks)
        names = ("output.weight", "output_norm.weight")
        return size + sum(header.tensor_sizes.get(name, 0) for header in self._headers for name in names)

    def _repacked(self, load: Load) -> int:
        """Bytes of copies; an embedding that is the output as well is multiplied by, too."""
        size = sum(header.matrix_sizes.get(kind, 0) for header in self._headers for kind in load.repacked)
        embedding = next((each for each in self._headers if each.embedding_type), self.header)
        tied = not any("output.weight" in header.tensor_sizes for header in self._headers)
        if tied and embedding.embedding_type in load.repacked and self.facts.architecture not in ENCODERS:
            size += embedding.tensor_sizes.get("token_embd.weight", 0)
        return size

    @property
    def tokens(self) -> int:
        """How many its vocabulary has."""
        return self._length("tokens") or self.facts.number("vocab_size")

    def _process(self, load: Load) -> int:
        merges = self._length("merges")
        tensors = sum(header.tensor_count for header in self._headers)
        a_token, a_tensor = GRAPHS.get(self.facts.architecture, (0, _NODES_A_TENSOR))
        nodes = max(_LEAST_NODES, load.part * a_token, tensors * a_tensor)
        cells = load.cells * load.parallel if any(layer.keys for layer in self.shape.layers) else 0
        return (
            PROCESS
            + load.beside
            + self.tokens * _TOKEN
            + (merges * _MERGE + _RANKS if merges else 0)
            + (nodes - _LEAST_NODES) * _NODE
            + cells * _CELL
        )

    def _scratch(self, load: Load) -> int:
        """About: a mask, what flows through the widest layer, and the logits that are wanted.

        The largest of what a layer needs at once was read off for each architecture ("compute buffer size").
        """
        facts = self.facts
        width, heads = facts.number("embedding_length"), facts.most("attention.head_count")
        attended = 2 * heads * facts.number("attention.key_length", width // heads if heads else 0)
        used = facts.most("expert_used_count")
        experts = used * (facts.most("expert_feed_forward_length") or facts.most("feed_forward_length"))
        inner = facts.number("ssm.inner_size") if any(layer.state for layer in self.shape.layers) else 0
        forward = max(facts.most("feed_forward_length"), experts, 2 * inner)
        outputs = load.part if load.embeds else load.parallel
        mask = _HALF * load.part * load.cells * (2 if self.shape.window else 1)
        return (
            mask
            + _FLOAT * load.part * (3 * width + attended + 3 * forward)
            + _FLOAT * outputs * self.tokens
            + self._looking()
        )

    def _looking(self) -> int:
        """What an image takes, of the size that the projection is made for."""
        if self._projection is None:
            return 0
        number = self._projection.number
        side = (number("clip.vision.image_size") or 0) // (number("clip.vision.patch_size") or 1)
        width = number("clip.vision.embedding_length") or 0
        forward = number("clip.vision.feed_forward_length") or 0
        return _FLOAT * side * side * (5 * width + forward)

    def _length(self, what: str) -> int:
        found = self.header.metadata.get(f"tokenizer.ggml.{what}")
        return found.length if isinstance(found, ArrayInfo) else 0
