"""What a model is and can do, derived from its metadata and chat template; the model is never run.

Architectures are named as in llama.cpp (``src/llama-arch.cpp``: ``llm_arch_is_recurrent``,
``llm_arch_is_hybrid``); pooling types as in ``llama.h`` (``LLAMA_POOLING_TYPE_*``).
"""

from typing import Literal, NamedTuple

from kawai_tools.gguf import Header
from kawai_tools.models.model import Capabilities

_RECURRENT = frozenset(["mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"])
_HYBRID = frozenset(
    [
        "jamba",
        "falcon-h1",
        "plamo2",
        "granitehybrid",
        "lfm2",
        "lfm2moe",
        "nemotron_h",
        "nemotron_h_moe",
        "qwen3next",
        "qwen35",
        "qwen35moe",
        "kimi-linear",
    ]
)
_ENCODER_ONLY = frozenset(
    [
        "bert",
        "modern-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "neo-bert",
        "jina-bert-v2",
        "jina-bert-v3",
        "eurobert",
        "t5encoder",
        "gemma-embedding",
    ]
)
_ENCODER_DECODER = frozenset({"t5"})
_POOLING_NONE, _POOLING_RANK = 0, 4
_REASONING = ("<think>", "enable_thinking", "reasoning_content", "<|channel|>", "[THINK]")
_TOOLS = ("tool_call", "tools is defined", "if tools", "available_tools", "[TOOL_CALLS]")


class Traits(NamedTuple):
    """How a model is built."""

    has_encoder: bool
    has_decoder: bool
    is_recurrent: bool
    is_hybrid: bool


def traits(header: Header) -> Traits:
    """How the model with this header is built."""
    architecture = header.architecture or ""
    return Traits(
        has_encoder=architecture in _ENCODER_ONLY | _ENCODER_DECODER,
        has_decoder=architecture not in _ENCODER_ONLY,
        is_recurrent=architecture in _RECURRENT,
        is_hybrid=architecture in _HYBRID,
    )


def capabilities(header: Header, projection: Header | None) -> Capabilities:
    """What the model with these headers can be asked."""
    endpoint = _endpoint(header)
    template = header.chat_template or "" if endpoint == "chat" else ""
    generates = endpoint in {"chat", "completion"}
    seen = projection.metadata if projection is not None else {}
    audio = bool(seen.get("clip.has_audio_encoder", False))
    return Capabilities(
        endpoint=endpoint,
        images=bool(seen.get("clip.has_vision_encoder", projection is not None and not audio)),
        audio=audio,
        streaming=generates,
        reasoning=any(word in template for word in _REASONING),
        tooling=any(word in template for word in _TOOLS),
        embedding=endpoint == "embeddings",
        rerank=endpoint == "rerank",
    )


def _endpoint(header: Header) -> Literal["chat", "completion", "embeddings", "rerank"]:
    pooling = header.number(f"{header.architecture}.pooling_type")
    if pooling == _POOLING_RANK:
        return "rerank"
    if header.architecture in _ENCODER_ONLY or pooling not in {None, _POOLING_NONE}:
        return "embeddings"
    return "chat" if header.chat_template else "completion"
