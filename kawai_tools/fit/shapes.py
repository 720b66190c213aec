"""What each layer of a model keeps for its context, from the header alone."""

from typing import NamedTuple

from kawai_tools.fit.families import (
    BOTH,
    DELTA,
    ENCODERS,
    HEADLESS,
    INDEXED,
    INTERVALS,
    KNOWN,
    ONE_THING,
    POOLED,
    RECURRENT,
    RWKV,
    SHARING,
    UNGROUPED,
    WINDOWED_LAYERS,
    WINDOWS,
)
from kawai_tools.gguf import Header

MOST_LAYERS = 512
"""``LLAMA_MAX_LAYERS``."""

_FLOAT = 4
"""Bytes of a value of a recurrent state."""


class Layer(NamedTuple):
    """Values of keys and of values for each token, whether of the last tokens only, and bytes a request."""

    keys: int
    values: int
    windowed: bool = False
    state: int = 0


class Shape(NamedTuple):
    """What the layers keep, of how many tokens those with a window do, and whether that is known."""

    layers: tuple[Layer, ...]
    window: int
    known: bool


class Facts:
    """The numbers of a header by the part of their key that follows the architecture.

    They come from files of strangers: whatever is missing or senseless counts as nothing.
    """

    def __init__(self, header: Header) -> None:
        """Nothing is read yet."""
        self.header = header
        self.architecture = header.architecture or ""
        blocks = min(self.number("block_count"), MOST_LAYERS)
        self.blocks = max(0, blocks - self.number("nextn_predict_layers"))
        """Without those that only predict further tokens."""

    def number(self, key: str, default: int = 0) -> int:
        """One number."""
        value = self.header.number(f"{self.architecture}.{key}")
        return default if value is None else value

    def each(self, key: str) -> tuple[int, ...] | None:
        """One for each layer, whether the file gives one for all or a list."""
        listed = self.header.numbers(f"{self.architecture}.{key}")
        if listed is None:
            value = self.header.number(f"{self.architecture}.{key}")
            return None if value is None else (value,) * self.blocks
        return tuple(max(0, value) for value in listed[: self.blocks]) + (0,) * (self.blocks - len(listed))

    def most(self, key: str) -> int:
        """The largest of them."""
        return max(self.each(key) or (), default=0)


def shape(header: Header) -> Shape:
    """Tell what a model keeps."""
    facts = Facts(header)
    known = facts.architecture in KNOWN
    if facts.architecture in ENCODERS:
        return Shape((), 0, known)
    window, windowed = _windows(facts)
    heads, idle = _heads(facts), _idle(facts)
    states, state = _states(facts, heads), _state(facts)
    layers = []
    for number in range(_keeping(facts)):
        if idle[number]:
            layers.append(Layer(0, 0))
            continue
        keys, values = _lengths(facts, heads[number], windowed=windowed[number])
        if states[number] and facts.architecture not in BOTH:
            keys = values = 0
        index = _index(facts, number) if keys and not windowed[number] else (0, 0)
        own = state if states[number] else 0
        layers.append(Layer(keys + index[0], values + index[1], windowed[number], own))
    loops = facts.number("num_loops", 1) if facts.architecture == "nanbeige" else 1
    loops = max(1, min(loops, MOST_LAYERS // max(1, len(layers))))
    return Shape(tuple(layers) * loops, window, known)


def _keeping(facts: Facts) -> int:
    """How many layers keep anything: the rest use what these do."""
    first = SHARING.get(facts.architecture, facts.blocks)
    return max(0, min(first, facts.blocks - facts.number("attention.shared_kv_layers")))


def _heads(facts: Facts) -> tuple[int, ...]:
    """Heads of keys and values, by layer."""
    found = facts.each("attention.head_count_kv") or facts.each("attention.head_count")
    return found or (0,) * facts.blocks


def _lengths(facts: Facts, heads: int, *, windowed: bool) -> tuple[int, int]:
    """Values that one layer keeps of a token; of MLA the latent alone (``hparams.is_mla``)."""
    attention = facts.most("attention.head_count")
    head = facts.number("embedding_length") // attention if attention else 0
    lengths = []
    for name in ("key", "value"):
        length = facts.number(f"attention.{name}_length", head)
        own = facts.number(f"attention.{name}_length_swa", length)
        lengths.append((own if windowed else length) * heads)
    latent = facts.number("attention.key_length_mla") and facts.number("attention.value_length_mla")
    return (lengths[0], 0) if latent else (lengths[0], lengths[1])


def _windows(facts: Facts) -> tuple[int, tuple[bool, ...]]:
    """The tokens of a window, and which layers have one."""
    none = (0, (False,) * facts.blocks)
    rule = WINDOWS.get(facts.architecture)
    if rule is None or facts.blocks != WINDOWED_LAYERS.get(facts.architecture, facts.blocks):
        return none
    size = facts.number("attention.sliding_window", rule.size)
    if not size:
        return none
    listed = facts.header.numbers(f"{facts.architecture}.attention.sliding_window_pattern")
    if listed is not None:
        pattern = [bool(value) for value in listed[: facts.blocks]]
        pattern += [False] * (facts.blocks - len(pattern))
    else:
        period = facts.number("attention.sliding_window_pattern", rule.period)
        sees_all = 0 if rule.dense_first else period - 1
        pattern = [period < 2 or layer % period != sees_all for layer in range(facts.blocks)]  # noqa: PLR2004
    return rule.size if rule.fixed else size, tuple(pattern)


def _idle(facts: Facts) -> tuple[bool, ...]:
    """Which layers keep nothing, since they only feed forward."""
    forward = facts.each("feed_forward_length") if facts.architecture in ONE_THING else None
    return tuple(bool(length) for length in forward) if forward else (False,) * facts.blocks


def _states(facts: Facts, heads: tuple[int, ...]) -> tuple[bool, ...]:
    """Which layers keep a state."""
    kind, blocks = facts.architecture, facts.blocks
    if kind in RECURRENT or kind in BOTH:
        return (True,) * blocks
    if kind in HEADLESS:
        return tuple(not count for count in heads)
    if kind in INTERVALS:
        listed = facts.each("attention.recurrent_layers")
        if listed is not None:
            return tuple(bool(value) for value in listed)
        every = facts.number("full_attention_interval", INTERVALS[kind]) or 1
        return tuple((layer + 1) % every != 0 for layer in range(blocks))
    return (False,) * blocks


def _state(facts: Facts) -> int:
    """Bytes of the state of one layer for one request (``llama_hparams::n_embd_r`` and ``n_embd_s``)."""
    kind, width = facts.architecture, facts.number("embedding_length")
    heads, convolved = facts.most("attention.head_count"), max(0, facts.number("ssm.conv_kernel") - 1)
    if kind in RWKV:
        values = width * (facts.number("token_shift_count", 2) + facts.number("wkv.head_size"))
    elif kind in {"lfm2", "lfm2moe"}:
        values = width * max(0, facts.number("shortconv.l_cache") - 1)
    elif kind in DELTA:
        head = facts.number("kda.head_dim")
        values = head * heads * (3 * convolved + head)
    elif kind == "minimax-01":
        head = facts.number("attention.key_length", width // heads if heads else 0)
        values = head * head * heads
    else:
        inner, size = facts.number("ssm.inner_size"), facts.number("ssm.state_size")
        groups = 0 if kind in UNGROUPED else facts.number("ssm.group_count")
        values = convolved * (inner + 2 * groups * size) + size * inner
    return values * _FLOAT


def _index(facts: Facts, layer: int) -> tuple[int, int]:
    """Values that the indexer of a layer keeps (``llama_kv_cache_dsa``, ``llama_kv_cache_msa``)."""
    length = facts.number("attention.indexer.key_length")
    if facts.architecture not in INDEXED or not facts.number("attention.indexer.top_k"):
        return 0, 0
    if facts.architecture == "minimax-m3":
        dense = facts.number("leading_dense_block_count")
        return (length, _lengths(facts, 1, windowed=False)[1]) if layer >= dense else (0, 0)
    kinds = facts.each("attention.indexer.types")
    rows = POOLED.get(facts.architecture, 1)
    return (0, 0) if kinds is not None and not kinds[layer] else (rows * length, 0)
