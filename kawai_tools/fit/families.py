"""What llama.cpp keeps for each architecture it knows: which of them have windows, states, shared layers.

Facts of ``src/models/*.cpp`` (``load_arch_hparams``) and ``llama_model::create_memory`` in
``src/llama-model.cpp`` of llama.cpp b11434. An architecture that is not named here is estimated as a plain
one, and the estimate is called a guess.
"""

from typing import NamedTuple

# fmt: off
PLAIN = frozenset((
    "apertus", "arcee", "arctic", "baichuan", "bailingmoe", "bailingmoe2", "bitnet", "bloom", "chatglm",
    "codeshell", "cogvlm", "command-r", "dbrx", "deci", "deepseek", "deepseek2", "dots1", "ernie4_5",
    "ernie4_5-moe", "exaone", "falcon", "gemma", "glm4", "glm4moe", "gpt2", "gptneox", "granite",
    "granitemoe", "grok", "grovemoe", "hrm_text", "hunyuan-dense", "hunyuan-moe", "hunyuan_vl", "hy_v3",
    "internlm2", "jais", "jais2", "llama", "llama-embed", "maincoder", "minicpm", "minicpm3", "minimax-m2",
    "mistral3", "mistral4", "mpt", "nanbeige", "nemotron", "olmo", "olmoe", "openelm", "orion", "paddleocr",
    "pangu-embedded", "phi2", "phi3", "phimoe", "plamo", "qwen", "qwen2", "qwen2moe", "qwen2vl", "qwen3",
    "qwen3moe", "qwen3tts", "qwen3vl", "qwen3vlmoe", "refact", "seed_oss", "smollm3", "stablelm",
    "starcoder", "starcoder2", "t5", "t5encoder", "talkie", "xverse",
))
"""Every layer keeps keys and values of every token (or their latent, where the file gives MLA lengths)."""

ENCODERS = frozenset((
    "bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert",
    "nomic-bert", "nomic-bert-moe",
))
"""They keep nothing from one text to the next."""

RECURRENT = frozenset(("arwkv7", "mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7"))
"""Every layer keeps a state for each request, whatever its length."""

HEADLESS = frozenset((
    "bailingmoe3", "glm5-next", "granitehybrid", "jamba", "kimi-k3", "kimi-linear", "lfm2", "lfm2moe",
    "nemotron_h", "nemotron_h_moe", "plamo2",
))
"""Layers without heads of keys keep a state instead."""

ONE_THING = frozenset(("nemotron_h", "nemotron_h_moe"))
"""Layers that feed forward do nothing else, and keep nothing."""

RWKV = frozenset(("arwkv7", "rwkv6", "rwkv6qwen2", "rwkv7"))
DELTA = frozenset(("bailingmoe3", "glm5-next", "kimi-k3", "kimi-linear"))
"""Those with states of other shapes than Mamba's: of RWKV, and of Kimi's delta attention."""

UNGROUPED = frozenset(("jamba", "mamba"))
"""The first Mamba knows no groups."""

INTERVALS = {"minimax-01": 8, "qwen35": 4, "qwen35moe": 4, "qwen3next": 4}
"""All but every so many-th layer keep a state instead, unless ``attention.recurrent_layers`` names them."""

BOTH = frozenset(("falcon-h1",))
"""Every layer keeps keys, values and a state."""

INDEXED = frozenset(("deepseek32", "dots3note", "glm-dsa", "glm5-next", "hy_v4", "minimax-m3"))
"""Sparse attention: layers keep the keys of an indexer, too."""


class Window(NamedTuple):
    """Which layers see the last tokens only.

    Of every ``period`` layers the last one (or the first one: ``dense_first``) sees all; 0: the file lists
    them. ``size``: tokens where the file does not say; ``fixed``: even where it does. Without a size there
    is no window.
    """

    period: int
    dense_first: bool = False
    size: int = 0
    fixed: bool = False


WINDOWS = {
    "afmoe": Window(4), "cohere2": Window(4), "cohere2moe": Window(4, dense_first=True),
    "dots3note": Window(0), "exaone-moe": Window(4, size=128), "exaone4": Window(4),
    "gemma2": Window(2, size=4096),
    "gemma3": Window(6), "gemma3n": Window(5), "gemma4": Window(0), "gpt-oss": Window(2),
    "granite_swa": Window(0), "laguna": Window(4, dense_first=True), "lfm2": Window(1),
    "llama4": Window(4, size=8192, fixed=True), "maple": Window(0), "mellum": Window(4), "mimo2": Window(0),
    "muse-glimmer": Window(4), "olmo2": Window(4), "plamo3": Window(8),
    "smallthinker": Window(4, dense_first=True, size=4096, fixed=True), "spark2_5": Window(0),
    "step35": Window(0),
}

WINDOWED_LAYERS = {"exaone4": 64}
"""Of these only the model with so many layers has windows."""

SHARING = {"gemma3n": 20}
"""Layers from this one on use what earlier ones keep; elsewhere ``attention.shared_kv_layers`` counts."""

POOLED = {"glm5-next": 3}
"""Rows that an indexer which pools keeps of a token (``indexer_kpool_row``)."""

GRAPHS = {
    **dict.fromkeys((
        "bailingmoe3", "deepseek4", "hy_v4", "kimi-linear", "minimax-01", "minimax-m3", "nanbeige", "qwen35",
        "qwen35moe", "qwen3next", "qwen4exp",
    ), (40, 32)),
    "glm5-next": (160, 64), "hrm_text": (80, 64), "kimi-k3": (160, 64),
}
"""Nodes of the graph for each token of a batch, and for each tensor (``llama_context::graph_max_nodes``)."""
# fmt: on

_UNPROVEN = frozenset(("rwkv6qwen2",))
"""The build that the estimates are held to does not load what tests write for it."""

KNOWN = (
    PLAIN | ENCODERS | RECURRENT | HEADLESS | BOTH | INDEXED | INTERVALS.keys() | WINDOWS.keys()
) - _UNPROVEN
"""Every architecture whose needs are known: each was written, loaded and measured (``tests/test_fit.py``)."""
