"""What a model needs, told from its header, and what that means for a machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kawai_tools.fit import Fit, Gpu, Load, Machine, guess, judge
from kawai_tools.fit import Model as FitModel
from kawai_tools.fit.families import KNOWN
from kawai_tools.gguf import Header
from tests.bundles import real_bundle
from tests.fitting import MODELS, Job, loaded, lots, unpacked
from tests.written_models import PROJECTED, Model, write_projection, written

MB, GB = 10**6, 10**9
LAYERS, WIDTH, HEADS, KV_HEADS = 32, 4096, 32, 8
BLOCK, OUTPUT = 120 * MB, 160 * MB
A_TOKEN = LAYERS * 2 * KV_HEADS * (WIDTH // HEADS) * 2
"""Bytes of cache that a token takes: keys and values of every layer, two bytes each."""

BASE = Header(
    version=3,
    big_endian=False,
    metadata={},
    tensor_count=291,
    parameters=8 * GB,
    data_offset=0,
    required_size=0,
    tensor_types={},
    main_type="Q6_K",
    file_size=0,
    block_sizes=dict.fromkeys(range(LAYERS), BLOCK),
    tensor_sizes={"token_embd.weight": OUTPUT, "output.weight": OUTPUT},
    tensor_bytes=LAYERS * BLOCK + 2 * OUTPUT,
    matrix_sizes={"Q6_K": LAYERS * BLOCK + OUTPUT},
    embedding_type="Q6_K",
    arrays={},
)
WEIGHTS = BASE.tensor_bytes


def header(architecture: str = "llama", /, *, arrays: Any = None, **more: Any) -> Header:  # noqa: ANN401
    """An 8B model, or what the words make of it; ``__`` in a key stands for a dot."""
    values: dict[str, Any] = {
        "context_length": 131072,
        "block_count": LAYERS,
        "embedding_length": WIDTH,
        "feed_forward_length": 14336,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
    }
    values |= {key.replace("__", "."): value for key, value in more.items()}
    metadata = {"general.architecture": architecture}
    metadata |= {f"{architecture}.{key}": value for key, value in values.items() if value is not None}
    listed = {f"{architecture}.{key}": value for key, value in (arrays or {}).items()}
    return msgspec.structs.replace(BASE, metadata=metadata, arrays=listed)


def kv(model: Header, /, **how: Any) -> int:  # noqa: ANN401
    """Bytes that the cache takes."""
    return FitModel([model]).need(Load(**({"context": 4096} | how))).kv


def judged(machine: Machine, model: Header | None = None, /, **how: Any) -> Fit:  # noqa: ANN401
    """The verdict on a model, by default the 8B one with 8192 tokens."""
    return judge(FitModel([model or header()]), Load(**({"context": 8192} | how)), machine)


# What a model needs


def test_a_cache_holds_keys_and_values_of_every_token() -> None:
    assert kv(header()) == 4096 * A_TOKEN
    assert kv(header(), parallel=4) == 4 * 4096 * A_TOKEN
    assert kv(header(), context=4097) == (4096 + 256) * A_TOKEN  # llama.cpp rounds up to 256
    assert kv(header(attention__key_length=256, attention__value_length=64)) == 4096 * A_TOKEN * 320 // 256
    assert kv(header(attention__head_count_kv=None)) == 4096 * A_TOKEN * HEADS // KV_HEADS


def test_a_cache_of_another_type_is_as_large_as_its_blocks() -> None:
    assert kv(header(), cache_type_k="q8_0", cache_type_v="q8_0") == 4096 * A_TOKEN * 34 // 64
    assert kv(header(), cache_type_k="f32") == 4096 * A_TOKEN * 3 // 2
    assert kv(header(), cache_type_k="what?") == 4096 * A_TOKEN  # not known: as by default


def test_layers_with_a_window_hold_that_and_a_batch() -> None:
    full, windowed = A_TOKEN // 2 * 4096, A_TOKEN // 2 * (1024 + 512)
    assert kv(header("gemma2", attention__sliding_window=1024)) == full + windowed
    assert kv(header("gemma2", attention__sliding_window=1024), parallel=2) == 2 * (full + windowed)
    listed = {"attention.sliding_window_pattern": (1,) * 31 + (0,)}
    assert (
        kv(header("gemma3", attention__sliding_window=1024, arrays=listed))
        == (4096 + 31 * 1536) * A_TOKEN // LAYERS
    )
    assert kv(header("gemma3")) == 4096 * A_TOKEN  # no window is named
    assert kv(header("phi3", attention__sliding_window=1024)) == 4096 * A_TOKEN  # llama.cpp minds none


def test_a_latent_is_kept_once() -> None:
    mla: dict[str, Any] = {
        "attention__head_count_kv": 1,
        "attention__key_length": 576,
        "attention__value_length": 512,
    }
    latent: dict[str, Any] = {"attention__key_length_mla": 192, "attention__value_length_mla": 128}
    assert kv(header("deepseek2", **mla, **latent)) == 4096 * LAYERS * 576 * 2
    assert kv(header("deepseek2", **mla)) == 4096 * LAYERS * (576 + 512) * 2  # files of old have none


def test_a_state_is_as_large_whatever_the_context() -> None:
    ssm: dict[str, Any] = {"ssm__inner_size": 8192, "ssm__state_size": 16, "ssm__conv_kernel": 4}
    state = LAYERS * (3 * 8192 + 16 * 8192) * 4
    assert kv(header("mamba", **ssm)) == kv(header("mamba", **ssm), context=65536) == state
    assert kv(header("mamba", **ssm), parallel=3) == 3 * state


def test_layers_without_heads_keep_a_state_instead() -> None:
    ssm: dict[str, Any] = {"ssm__inner_size": 8192, "ssm__state_size": 16, "ssm__conv_kernel": 4}
    heads = {"attention.head_count_kv": (0, 0, 0, KV_HEADS) * (LAYERS // 4)}
    attending = 4096 * A_TOKEN // 4
    assert kv(header("jamba", **ssm, arrays=heads)) == attending + LAYERS * 3 // 4 * 19 * 8192 * 4


def test_an_encoder_keeps_nothing() -> None:
    assert kv(header("bert"), embeds=True) == 0


def test_an_architecture_that_is_not_known_is_guessed_as_a_plain_one() -> None:
    known, unknown = (FitModel([header(name)]).need(Load(context=4096)) for name in ("llama", "llama9"))
    assert (known.guess, unknown.guess) == (False, True)
    assert msgspec.structs.replace(unknown, guess=False) == known


def test_copies_for_the_processor_count() -> None:
    quantized = msgspec.structs.replace(header(), matrix_sizes={"Q4_K": 3 * GB, "Q6_K": GB})
    assert FitModel([quantized]).need(Load(context=256)).weights == WEIGHTS + 3 * GB
    assert FitModel([quantized]).need(Load(context=256, processor="arm64")).weights == WEIGHTS + 4 * GB
    assert FitModel([quantized]).need(Load(context=256, processor="s390x")).weights == WEIGHTS
    tied = msgspec.structs.replace(
        quantized, tensor_sizes={"token_embd.weight": OUTPUT}, embedding_type="Q4_K"
    )
    assert FitModel([tied]).need(Load(context=256)).weights == WEIGHTS + 3 * GB + OUTPUT


def test_a_program_around_it_takes_more() -> None:
    served, embedded = (
        FitModel([header()]).need(Load(context=256, beside=bytes_)) for bytes_ in (0, 24 * MB)
    )
    assert embedded.compute - served.compute == embedded.total - served.total == 24 * MB


def test_shards_are_summed_and_those_not_read_are_what_their_files_are() -> None:
    first = header()
    first.metadata["split.count"] = 2
    load = Load(context=4096)
    assert FitModel([first, BASE]).need(load).weights == 2 * WEIGHTS
    assert FitModel([first], 9 * GB, None, 0).need(load).weights == 9 * GB
    assert FitModel([first]).need(load).weights == WEIGHTS


def test_a_vocabulary_and_a_projection_take_room() -> None:
    load = Load(context=4096)
    plain, spoken = (FitModel([header(vocab_size=count)]).need(load) for count in (1000, 256000))
    assert 40 * MB < spoken.compute - plain.compute < 60 * MB
    seeing = FitModel([header()], 0, None, 600 * MB).need(load)
    assert 600 * MB <= seeing.projection <= 620 * MB
    assert seeing.total == seeing.weights + seeing.kv + seeing.compute + seeing.projection
    assert seeing.scratch > 0


@pytest.mark.parametrize(
    "senseless",
    [
        {"block_count": 2**62, "embedding_length": 2**62, "attention__key_length": 2**63 - 1},
        {"block_count": None, "embedding_length": None, "attention__head_count": None},
        {"attention__head_count": 0, "attention__head_count_kv": 0},
        {"nextn_predict_layers": 99},
        {"attention__shared_kv_layers": 99},
        {"arrays": {"attention.head_count_kv": (-5, 3)}},
        {"arrays": {"attention.head_count_kv": (2**62,) * 1024}},
        {"arrays": {"attention.sliding_window_pattern": ()}, "attention__sliding_window": 2**40},
        {
            "attention__sliding_window_pattern": 0,
            "attention__sliding_window": 5,
            "full_attention_interval": 0,
        },
        {"context_length": 0, "num_loops": 2**40},
    ],
)
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "jamba", "qwen3next", "nanbeige", "nemotron_h"])
def test_senseless_numbers_make_an_answer_that_json_can_hold(
    architecture: str, senseless: dict[str, Any]
) -> None:
    machine = Machine(16 * GB, (Gpu("one", 8 * GB),))
    fit = judged(machine, header(architecture, **senseless))
    assert msgspec.json.decode(msgspec.json.encode(fit), type=Fit) == fit
    numbers = (fit.weights, fit.kv, fit.compute, fit.projection, fit.needed, fit.available)
    assert all(0 <= number < 2**53 for number in numbers)


# What fits


def test_what_fits_into_memory() -> None:
    fit = judged(Machine(16 * GB))
    assert (fit.verdict, fit.guess, fit.context, fit.layers, fit.layers_total) == (
        "fits",
        False,
        8192,
        None,
        32,
    )
    assert fit.needed == fit.weights + fit.kv + fit.compute + fit.projection <= fit.available == 16 * GB
    assert judged(Machine(fit.needed)).verdict == "fits"
    assert judged(Machine(fit.needed - 1)).verdict == "fits_context"


def test_a_context_is_no_longer_than_the_model_was_trained_for() -> None:
    fit = judged(Machine(64 * GB), header(context_length=2048))
    assert (fit.verdict, fit.context, fit.kv) == ("fits", 2048, 2048 * A_TOKEN)


@pytest.mark.parametrize("asked", [1000, 8192, 100_000])
def test_the_largest_context_is_found(asked: int) -> None:
    room = FitModel([header()]).need(Load(context=512)).total
    fit = judged(Machine(room + 100), context=asked)
    assert (fit.verdict, fit.context) == ("fits_context", 512)
    assert fit.needed == room
    assert judged(Machine(room + 256 * A_TOKEN + 256 * 72), context=asked).context == 768


def test_what_fits_with_no_context_does_not_fit() -> None:
    least = FitModel([header()]).need(Load(context=256)).total
    assert judged(Machine(least)).context == 256
    fit = judged(Machine(least - 1))
    assert (fit.verdict, fit.context, fit.available) == ("no", 8192, least - 1)
    assert fit.needed > fit.available


def test_a_gpu_that_holds_all_is_where_it_runs() -> None:
    fit = judged(Machine(GB, (Gpu("one", 24 * GB),)))
    assert (fit.verdict, fit.context, fit.layers, fit.layers_total) == ("fits", 8192, 32, 32)
    assert fit.needed <= fit.available == 24 * GB
    in_ram = judged(Machine(24 * GB))
    assert fit.compute > in_ram.compute  # buffers are taken there from the start


def test_layers_on_a_gpu_need_no_copies() -> None:
    quantized = msgspec.structs.replace(header(), matrix_sizes={"Q4_K": LAYERS * BLOCK})
    assert judged(Machine(GB, (Gpu("one", 24 * GB),)), quantized).weights == WEIGHTS
    assert judged(Machine(24 * GB), quantized).weights == WEIGHTS + LAYERS * BLOCK
    half = judged(Machine(24 * GB, (Gpu("one", 24 * GB),)), quantized, gpu_layers=16)
    assert half.weights == WEIGHTS + LAYERS * BLOCK // 2


def test_a_good_context_on_the_gpu_is_better_than_layers_in_memory() -> None:
    whole = judged(Machine(GB, (Gpu("one", 24 * GB),)), context=32768)
    least = whole.needed - (32768 - 4096) * A_TOKEN
    fit = judged(Machine(64 * GB, (Gpu("one", least),)), context=32768)
    assert (fit.verdict, fit.layers) == ("fits_context", 32)
    assert fit.context is not None
    assert 4096 <= fit.context < 32768
    assert fit.needed <= fit.available == least


def test_layers_go_to_memory_before_a_poor_context() -> None:
    gpu = Gpu("one", 3 * GB)
    fit = judged(Machine(64 * GB, (gpu,)))
    assert (fit.verdict, fit.context, fit.layers_total) == ("fits_layers", 8192, 32)
    assert fit.layers is not None
    a_layer = BLOCK + 8192 * A_TOKEN // LAYERS
    assert fit.layers == (3 * GB - OUTPUT - (fit.compute - judged(Machine(64 * GB)).compute)) // a_layer
    assert fit.needed <= fit.available == 67 * GB
    assert judged(Machine(64 * GB, (Gpu("one", 3 * GB + a_layer),))).layers == fit.layers + 1


def test_two_gpus_share_layers_and_have_buffers_each() -> None:
    one = judged(Machine(64 * GB, (Gpu("one", 12 * GB),)))
    two = judged(Machine(64 * GB, (Gpu("one", 6 * GB), Gpu("two", 6 * GB))))
    assert (one.verdict, two.verdict) == ("fits", "fits")
    assert (one.available, two.available) == (12 * GB, 12 * GB)
    assert two.compute > one.compute


def test_a_user_may_say_how_many_layers() -> None:
    machine = Machine(64 * GB, (Gpu("one", 24 * GB),))
    none, some, all_ = (judged(machine, gpu_layers=count) for count in (0, 10, 999))
    assert (none.verdict, none.layers, none.available) == ("fits", 0, 64 * GB)
    assert (some.verdict, some.layers, some.available) == ("fits_layers", 10, 88 * GB)
    assert (all_.verdict, all_.layers, all_.available) == ("fits", 32, 24 * GB)
    small = Machine(64 * GB, (Gpu("one", 2 * GB),))
    assert judged(small, gpu_layers=31).verdict == "no"  # it is not done with fewer than the user says


def test_unified_memory_is_counted_once() -> None:
    fit = judged(Machine(16 * GB, (Gpu("Metal", 12 * GB),), unified=True))
    assert (fit.verdict, fit.layers, fit.available) == ("fits", 32, 12 * GB)
    tight = judged(Machine(6 * GB, (Gpu("Metal", 4500 * MB),), unified=True))
    assert (tight.verdict, tight.available) == ("fits_layers", 6 * GB)
    assert tight.needed <= 6 * GB
    assert judged(Machine(4 * GB, (Gpu("Metal", 3 * GB),), unified=True)).verdict == "no"


def test_less_context_and_fewer_layers_when_nothing_else_helps() -> None:
    fit = judged(Machine(3 * GB, (Gpu("one", 3 * GB),)), context=65536, parallel=4)
    assert fit.verdict == "fits_context"
    assert fit.context is not None
    assert fit.layers is not None
    assert 256 <= fit.context < 4096
    assert 0 < fit.layers < LAYERS
    assert fit.needed <= fit.available == 6 * GB


@pytest.mark.parametrize(
    ("machine", "verdict"),
    [
        (Machine(16 * GB), "fits"),
        (Machine(8 * GB), "no"),
        (Machine(16 * GB, (Gpu("one", 16 * GB),)), "fits"),
        (Machine(8 * GB, (Gpu("one", 8 * GB),)), "fits_layers"),
        (Machine(8 * GB, (Gpu("Metal", 6 * GB),), unified=True), "no"),
    ],
)
def test_of_a_size_alone_a_guess_is_made(machine: Machine, verdict: str) -> None:
    fit = guess(8 * GB, machine, Load(context=4096, parallel=4))
    assert (fit.verdict, fit.guess, fit.context, fit.layers) == (verdict, True, None, None)
    assert (fit.kv, fit.parallel) == (130 * 2000 * 4 * 4096, 4)
    assert fit.needed == fit.weights + fit.kv + fit.compute
    assert (fit.needed <= fit.available) == (verdict != "no")


# Against what is loaded


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A true build, unpacked."""
    archive = real_bundle()
    if archive is None:
        pytest.skip("KAWAI_TEST_BUNDLE names no true build of llama.cpp")
    return unpacked(archive, tmp_path_factory.mktemp("build"))


def held_to(jobs: Sequence[Sequence[Job]], build: Path | None, folder: Path) -> list[str]:
    """Load them; what was out of bounds."""
    found = loaded(jobs, build, folder)
    assert len(found) == sum(len(lot) for lot in jobs)
    return [str(each) for each in found if not each.within]


def test_the_real_model_needs_what_is_told(real_model: Path, build: Path, tmp_path: Path) -> None:
    jobs = [Job("SmolLM2", real_model, tokens) for tokens in (1024, 4096, 8192)]
    assert not held_to([jobs, [Job("SmolLM2", real_model, 2048, parallel=4)]], build, tmp_path)


def test_it_needs_what_is_told_embedded_too(real_model: Path, tmp_path: Path) -> None:
    jobs = [Job("SmolLM2", real_model, tokens, embedded=True) for tokens in (1024, 8192)]
    assert not held_to([jobs], None, tmp_path)


def test_a_projection_needs_what_is_told(build: Path, tmp_path: Path) -> None:
    ((_, weights),) = written([Model("llama")], build, tmp_path)
    projection = write_projection(tmp_path / "mmproj.gguf")
    assert projection.stat().st_size > 2 * PROJECTED[0] * PROJECTED[1] * PROJECTED[2] * 2
    assert not held_to([[Job("seeing", weights, 1024, projection=projection)]], build, tmp_path)


@pytest.mark.slow
def test_every_architecture_needs_what_is_told(build: Path, tmp_path: Path) -> None:
    assert {each.architecture for each in MODELS} == KNOWN
    found = loaded(lots(MODELS, build, tmp_path), build, tmp_path)
    assert len(found) == 3 * len(MODELS)
    assert [str(each) for each in found if not each.within] == []
