"""Models of every architecture that llama.cpp knows, written with the ``gguf`` package.

Their weights are zeros in a sparse file, so that they cost no time to write; llama.cpp maps and reads them
like any other. Which tensors there are, and their dimensions, the build itself says (``wanted_tensors.py``).
"""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np

Value = bool | int | float | str | Sequence[bool] | Sequence[int]
Metadata = dict[str, Value]
Tensors = dict[str, list[int]]

TOKENS, CONTEXT = 3072, 32768
LAYERS, WIDTH, HEADS, KV_HEADS, FORWARD = 8, 512, 8, 4, 1024
HEAD = WIDTH // HEADS

MLA = {"bailingmoe3", "deepseek2", "deepseek32", "dots3note", "glm-dsa", "glm5-next", "hy_v4", "kimi-k3"}
MLA |= {"kimi-linear", "mistral4"}
_LISTED = {
    "bailingmoe3",
    "glm5-next",
    "granitehybrid",
    "kimi-k3",
    "jamba",
    "kimi-linear",
    "lfm2",
    "lfm2moe",
    "nemotron_h",
}
_LISTED |= {"nemotron_h_moe", "plamo2"}
_PATTERNED = {
    "cohere2moe",
    "dots3note",
    "granite_swa",
    "maple",
    "mimo2",
    "muse-glimmer",
    "spark2_5",
    "step35",
}
_DENSE = {"apertus", "arcee", "arwkv7", "baichuan", "bitnet", "bloom", "chatglm", "codeshell", "cogvlm"}
_DENSE |= {"cohere2", "command-r", "deci", "ernie4_5", "eurobert", "exaone", "exaone4", "falcon", "falcon-h1"}
_DENSE |= {"gemma", "gemma-embedding", "gemma2", "gemma3", "gemma3n", "gemma4", "glm4", "gpt2", "gptneox"}
_DENSE |= {"granite", "granite_swa", "granitehybrid", "hrm_text", "hunyuan-dense", "hunyuan_vl", "internlm2"}
_DENSE |= {"bert", "jais", "jais2", "jamba", "jina-bert-v2", "jina-bert-v3", "lfm2", "llama", "llama-embed"}
_DENSE |= {"maincoder", "mamba", "mamba2", "minicpm", "minicpm3", "mistral3", "modern-bert", "mpt"}
_DENSE |= {"muse-glimmer", "nanbeige", "nemotron", "nemotron_h", "neo-bert", "nomic-bert", "olmo", "olmo2"}
_DENSE |= {"openelm", "orion", "paddleocr", "pangu-embedded", "phi2", "phi3", "plamo", "plamo2", "plamo3"}
_DENSE |= {"qwen", "qwen2", "qwen2vl", "qwen3", "qwen35", "qwen3tts", "qwen3vl", "refact", "rwkv6"}
_DENSE |= {"rwkv6qwen2", "rwkv7", "seed_oss", "smollm3", "spark2_5", "stablelm", "starcoder", "starcoder2"}
_DENSE |= {"t5", "t5encoder", "talkie", "xverse"}
_ALL_HEADS = {"bert", "bloom", "dots1", "gpt2", "gptneox", "jais", "jina-bert-v2", "jina-bert-v3", "minicpm3"}
_ALL_HEADS |= {"modern-bert", "mpt", "neo-bert", "nomic-bert", "nomic-bert-moe", "olmoe", "qwen", "rwkv6"}
_ALL_HEADS |= {"rwkv6qwen2", "t5", "t5encoder"}
_ENCODERS = {"bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert"}
_ENCODERS |= {"nomic-bert", "nomic-bert-moe"}
_WHOLE = (".bias", "compressor_ape", "norm", "position_embd", "shortconv", "ssm_", "time_mix", "token_types")
_DELTA = {"qwen35", "qwen35moe", "qwen3next"}


class Model(NamedTuple):
    """A model to write: ``kind`` is the type of its matrices, ``tied`` its embedding the output as well."""

    architecture: str
    kind: str = "F16"
    tied: bool = False

    def __str__(self) -> str:
        """What its file is called."""
        kind = "" if self.kind == "F16" else f"-{self.kind}"
        return f"{self.architecture}{kind}{'-tied' if self.tied else ''}"


def written(models: Iterable[Model], build: Path, folder: Path) -> Iterator[tuple[Model, Path]]:
    """Write each; those that the build refuses are left out. Whoever takes one may remove it."""
    files = {str(folder / f"{model}.meta"): model for model in models}
    for file, model in files.items():
        _write(model, Path(file), {})
    for file, tensors in _wanted(build, list(files)):
        target = folder / f"{files[file]}.gguf"
        _write(files[file], target, tensors)
        yield files[file], target


def _wanted(build: Path, files: list[str]) -> Iterator[tuple[str, Tensors]]:
    """What each wants; one child after the other, for what is left when one dies."""
    program = str(Path(__file__).with_name("wanted_tensors.py"))
    while files:
        command = [sys.executable, program, str(build), *files]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        answers = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith('["')]
        yield from ((file, tensors) for file, tensors in answers if tensors)
        files = files[len(answers) + 1 :]


def _write(model: Model, target: Path, tensors: Tensors) -> None:
    architecture = model.architecture
    writer = gguf.GGUFWriter(target, architecture)
    if tensors or architecture in _ENCODERS:  # which want the number of token types, a part of it
        _vocabulary(writer)
    else:
        writer.add_tokenizer_model("no_vocab")
    for key, value in metadata(architecture).items():
        _add(writer, f"{architecture}.{key}", value)
    for key in ("alpha_n", "alpha_p", "beta", "eps"):
        writer.add_float32(f"xielu.{key}", 1.0)
    for name, dimensions in tensors.items():
        if not (model.tied and name == "output.weight"):
            _add_tensor(writer, name, _shape(dimensions), gguf.GGMLQuantizationType[model.kind])
    _finish(writer, target)


def _finish(writer: gguf.GGUFWriter, target: Path) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    size = sum(info.nbytes + -info.nbytes % 32 for each in writer.tensors for info in each.values())
    with target.open("r+b") as file:
        file.truncate(target.stat().st_size + -target.stat().st_size % 32 + size)


def _add_tensor(
    writer: gguf.GGUFWriter, name: str, shape: list[int], kind: gguf.GGMLQuantizationType
) -> None:
    """As converters do: what is multiplied by is of the kind that is asked for, the rest whole."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if len(shape) == 1 or any(word in name for word in _WHOLE) or shape[-1] % block:
        kind, block, size = gguf.GGMLQuantizationType.F32, 1, 4
    row = [*shape[:-1], shape[-1] // block * size]
    writer.add_tensor_info(name, row, np.dtype(np.uint8), math.prod(row), raw_dtype=kind)


def _shape(dimensions: list[int]) -> list[int]:
    """Dimensions as numpy has them, without those of one at the end."""
    while len(dimensions) > 1 and dimensions[-1] == 1:
        dimensions = dimensions[:-1]
    return dimensions[::-1]


def _add(writer: gguf.GGUFWriter, key: str, value: Value) -> None:
    kinds: dict[type, Callable[..., Any]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    kinds[type(value)](key, value)


def _vocabulary(writer: gguf.GGUFWriter) -> None:
    """One of SentencePiece's kind: no architecture minds."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    tokens += [f"t{number}" for number in range(TOKENS - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(number) for number in range(TOKENS)])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (TOKENS - 259)])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_token_type_count(2)


def metadata(architecture: str) -> Metadata:
    """What a model says of itself: what any of them needs, and what this one needs otherwise."""
    found = _everybody(architecture) | _attention(architecture) | _states(architecture)
    if architecture not in _DENSE:
        found |= _experts()
    return found | _own(architecture)


def _everybody(architecture: str) -> Metadata:
    return {
        "vocab_size": TOKENS,
        "context_length": CONTEXT,
        "embedding_length": WIDTH,
        "features_length": WIDTH,
        "block_count": LAYERS,
        "leading_dense_block_count": 1,
        "feed_forward_length": FORWARD,
        "use_parallel_residual": False,
        "logit_scale": 1.0,
        "residual_scale": 3.5,
        "rope.freq_base": 10000.0,
        "rope.dimension_sections": [8, 12, 12, 0] if architecture == "bailingmoe3" else [HEAD // 4] * 4,
    }


def _attention(architecture: str) -> Metadata:
    found: Metadata = {
        "attention.head_count": HEADS,
        "attention.head_count_kv": HEADS if architecture in _ALL_HEADS else KV_HEADS,
        "attention.max_alibi_bias": 8.0,
        "attention.clamp_kqv": 1.0,
        "attention.layer_norm_epsilon": 1e-5,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.group_norm_epsilon": 1e-5,
        "attention.group_norm_groups": 8,
        "attention.relative_buckets_count": 8,
        "attention.q_lora_rank": 256 if architecture == "minicpm3" else 512,
        "attention.kv_lora_rank": 256 if architecture == "minicpm3" else 512,
        "attention.sliding_window": 512,
        "attention.indexer.head_count": KV_HEADS if architecture == "minimax-m3" else 64,
        "attention.indexer.key_length": 64 if architecture == "minimax-m3" else 128,
        "attention.indexer.top_k": 2048,
        "attention.indexer.block_size": 4,
        "attention.indexer.local_blocks": 1,
    }
    if architecture in MLA:
        found |= {"attention.head_count_kv": 1, "rope.dimension_count": 64}
        found |= {"attention.key_length": 576, "attention.value_length": 512}
        found |= {"attention.key_length_mla": 192, "attention.value_length_mla": 128}
    if architecture in _LISTED:
        # every third layer attends; of one head where what is kept is the latent
        heads = [0 if layer % 3 else 1 if architecture in MLA else KV_HEADS for layer in range(LAYERS)]
        only_these = architecture.startswith("nemotron_h")
        found["attention.head_count_kv"] = heads
        found["attention.head_count"] = [HEADS if count or not only_these else 0 for count in heads]
    if architecture in _PATTERNED:
        found["attention.sliding_window_pattern"] = [bool(layer % 2) for layer in range(LAYERS)]
    return found


def _states(architecture: str) -> Metadata:
    first = architecture in {"jamba", "mamba"}
    return {
        "full_attention_interval": 4,
        "ssm.inner_size": WIDTH if architecture in _DELTA else 2 * WIDTH,
        "ssm.conv_kernel": 4,
        "ssm.state_size": 16 if first else 128,
        "ssm.time_step_rank": 32 if first else 4 if architecture in _DELTA else HEADS,
        "ssm.group_count": 0 if architecture == "plamo2" else 2,
        "kda.head_dim": 64,
        "kda.safe_gate": True,
        "kda.gate_lower_bound": -5.0,
        "wkv.head_size": HEAD,
        "token_shift_count": 2 if architecture in {"rwkv6", "rwkv7"} else 1,
        "time_mix_extra_dim": 64,
        "time_decay_extra_dim": 128,
        "attention.decay_lora_rank": 64,
        "attention.iclr_lora_rank": 64,
        "attention.value_residual_mix_lora_rank": 64,
        "attention.gate_lora_rank": 64,
        "rescale_every_n_layers": 6,
        "shortconv.l_cache": 3,
    }


def _experts() -> Metadata:
    return {
        "expert_feed_forward_length": FORWARD // 2,
        "expert_shared_feed_forward_length": FORWARD // 2,
        "expert_chunk_feed_forward_length": FORWARD // 4,
        "expert_latent_length": FORWARD // 2,
        "expert_count": 4,
        "expert_used_count": 2,
        "expert_shared_count": 1,
        "expert_gating_func": 2,
        "expert_group_scale": 1.0,
        "experts_per_group": 1,
        "interleave_moe_layer_step": 2,
        "moe_every_n_layers": 2,
    }


def _own(architecture: str) -> Metadata:
    """What one architecture needs and others do not, or otherwise."""
    lists: dict[str, Metadata] = {
        "dots3note": {
            "attention.indexer.types": [1 - layer % 2 for layer in range(LAYERS)],
            "attention.kv_lora_rank_swa": 512,
            "attention.key_length_swa": 576,
            "attention.value_length_swa": 512,
            "attention.key_length_mla_swa": 192,
            "attention.value_length_mla_swa": 128,
            "rope.freq_base_swa": 10000.0,
        },
        "gemma3n": {"block_count": 22, "altup.num_inputs": 4, "embedding_length": 256},
        "gemma4": {
            "attention.key_length": 128,
            "attention.value_length": 128,
            "attention.key_length_swa": 64,
            "attention.value_length_swa": 64,
            "attention.shared_kv_layers": 4,
            "attention.sliding_window_pattern": [bool((layer + 1) % 4) for layer in range(LAYERS)],
            "embedding_length_per_layer_input": 64,
            "rope.dimension_count_swa": 64,
            "rope.freq_base_swa": 10000.0,
        },
        "glm5-next": {
            "attention.head_count": HEADS,
            "attention.key_length": 512,
            "rope.dimension_count": 0,
            "attention.indexer.kpool": 4,
            "hyper_connection.count": 4,
            "hyper_connection.epsilon": 1e-6,
            "hyper_connection.sinkhorn_iterations": 2,
        },
        "kimi-k3": {
            "attn_res.block_size": 12,
            "activation.situ_beta": 4.0,
            "activation.situ_linear_beta": 25.0,
        },
        "hrm_text": {"block_count": 6, "hrm.layers_per_stack": 1, "hrm.h_cycles": 2, "hrm.l_cycles": 2},
        "hy_v4": {
            "attention.indexer.types": [1 - layer % 2 for layer in range(LAYERS)],
            "hyper_connection.count": 4,
            "hyper_connection.epsilon": 1e-6,
            "hyper_connection.magnitude": 2.0,
            "swiglu_clamp_exp": 10.0,
            "expert_weights_scale": 1.0,
            "expert_weights_norm": True,
        },
        "maple": {"swiglu_clamp_exp": 7.0},
        "minicpm3": {"attention.key_length": 96, "attention.value_length": 64, "rope.dimension_count": 32},
        "t5": {"decoder_start_token_id": 0, "decoder_block_count": LAYERS},
    }
    found = lists.get(architecture, {})
    if architecture in _ENCODERS:
        found = found | {"pooling_type": 1, "attention.causal": False}
    if architecture.startswith("nemotron_h"):
        # of three layers one attends, one keeps a state, one feeds forward
        found = found | {"feed_forward_length": [FORWARD if layer % 3 == 2 else 0 for layer in range(LAYERS)]}
    return found


PROJECTED = (24, 256, 1024, 336, 14)
"""Of a projection: layers, width, feed-forward length, side of an image and of a patch."""


def write_projection(target: Path) -> Path:
    """Write an image encoder of LLaVA's kind (``clip``) for the models above."""
    layers, width, forward, image, patch = PROJECTED
    writer = gguf.GGUFWriter(target, "clip")
    writer.add_bool("clip.has_vision_encoder", val=True)
    writer.add_bool("clip.use_gelu", val=True)
    writer.add_string("clip.projector_type", "mlp")
    sizes = {"image_size": image, "patch_size": patch, "embedding_length": width, "block_count": layers}
    sizes |= {"feed_forward_length": forward, "projection_dim": WIDTH, "attention.head_count": width // HEAD}
    for key, value in sizes.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    for key in ("image_mean", "image_std"):
        writer.add_array(f"clip.vision.{key}", [0.5] * 3)
    shapes = {"v.class_embd": [width], "v.patch_embd.weight": [width, 3, patch, patch]}
    shapes["v.position_embd.weight"] = [(image // patch) ** 2 + 1, width]
    shapes |= {f"v.{name}.{part}": [width] for name in ("pre_ln", "post_ln") for part in ("weight", "bias")}
    for layer in range(layers):
        matrices = {name: [width, width] for name in ("attn_q", "attn_k", "attn_v", "attn_out")}
        matrices |= {"ffn_up": [forward, width], "ffn_down": [width, forward]}
        matrices |= {"ln1": [width], "ln2": [width]}
        for name, shape in matrices.items():
            shapes |= {f"v.blk.{layer}.{name}.weight": shape, f"v.blk.{layer}.{name}.bias": shape[:1]}
    for name, shape in {"mm.0": [WIDTH, width], "mm.2": [WIDTH, WIDTH]}.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name, shape in shapes.items():
        _add_tensor(writer, name, shape, gguf.GGMLQuantizationType.F16)
    _finish(writer, target)
    return target
