"""``fit`` through the command line, the API, plans and the catalog, on machines that tests tell of."""

import contextlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kawai_tools.cli.verdict import told
from kawai_tools.errors import (
    Busy,
    DifferentVersion,
    FileNotOnHub,
    HostNotAllowed,
    InvalidRequest,
    KawaiError,
    MalformedGguf,
    ModelNotFound,
    NotAModel,
    Offline,
)
from kawai_tools.fit import Fit
from kawai_tools.libs.devices import gpus
from kawai_tools.libs.platforms import Processor
from kawai_tools.operations.fit import FIT, FitRequest
from kawai_tools.operations.models import MODELS_PULL, PullRequest
from kawai_tools.refs import parse_model
from kawai_tools.workspace import Workspace
from tests.hub import Fault, LocalHub
from tests.program import Daemon, Program, serving
from tests.samples import F32, Tensor, tiny_gguf
from tests.test_catalog_pull import at_hub, entry, lists
from tests.test_libs_platforms import ADA, NODES, Told, smi
from tests.test_run import terminal
from tests.workspaces import Workspaces, pull

REPO, NAME = "me/Tiny-GGUF", "Tiny-F32.gguf"
SOURCE, ID = REPO, "Tiny-F32"
GIB = 1 << 30
WIDTH = 64
SHAPE: dict[str, Any] = {
    "llama.block_count": 4,
    "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": 2 * WIDTH,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.vocab_size": 256,
}


def model(data: int = 1 << 20, **more: Any) -> bytes:  # noqa: ANN401
    """A model of four blocks, each with so many bytes of weights."""
    block = (WIDTH, data // 4 // WIDTH)
    tensors: list[Tensor] = [("token_embd.weight", (WIDTH, 256), F32), ("output_norm.weight", (WIDTH,), F32)]
    tensors += [(f"blk.{at}.ffn_up.weight", block, F32) for at in range(4)]
    return tiny_gguf(tensors=tensors, context_length=8192, extra={**SHAPE, **more})


class Box(Told):
    """A Linux machine with so much memory, and what nvidia-smi says of its GPUs' (``name, MiB``)."""

    def __init__(self, memory: int, *devices: str, files: dict[str, str] | None = None) -> None:
        super().__init__({"/proc/meminfo": f"MemTotal: {memory >> 10} kB\n", **(files or {})}, smi(ADA))
        self.devices = devices

    def run(self, *command: str) -> str | None:
        if "--query-gpu=name,memory.total" in command:
            return "".join(f"{each}\n" for each in self.devices) if self.devices else None
        return super().run(*command) if self.devices else None


def fit(workspace: Workspace, source: str, context: int | None = None) -> Fit:
    found = FIT.run(workspace, FitRequest(source, context))
    assert isinstance(found, Fit)
    return found


def fetched(hub: LocalHub) -> int:
    return sum(each.sent_bytes for each in hub.requests if each.server == "cdn")


# what is judged


def test_installed_and_elsewhere_are_judged_alike(workspaces: Workspaces, hub: LocalHub) -> None:
    hub.add_file(REPO, NAME, model())
    here = workspaces(system=Box(8 * GIB), memory_budget=4 * GIB)
    before = fit(here, SOURCE)
    assert (before.verdict, before.guess, before.context, before.parallel) == ("fits", False, 4096, 4)
    assert before.available == 4 * GIB
    assert fetched(hub) < 20_000
    pull(here, SOURCE)
    hub.clear_requests()
    for words in (ID, ID.upper(), f"me/{ID}", SOURCE, f"{SOURCE}:F32", hub.url(REPO, NAME)):
        assert fit(here, words) == before
    assert hub.requests == []
    assert fit(workspaces(system=Box(8 * GIB), memory_budget=4 * GIB, offline=True), ID) == before


def test_the_context_is_asked_for_configured_or_the_models(workspaces: Workspaces, hub: LocalHub) -> None:
    hub.add_file(REPO, NAME, model())
    here = workspaces(system=Box(8 * GIB))
    assert fit(here, SOURCE, 100).context == 100
    assert fit(here, SOURCE, 1 << 20).context == 8192
    assert fit(workspaces(context_length=1000), SOURCE).context == 1000
    own = {ID.casefold(): {"context_length": 2000, "parallel": 2}}
    found = fit(workspaces(context_length=1000, models=own), SOURCE)
    assert (found.context, found.parallel) == (2000, 2)


def test_a_projection_counts_as_it_would_be_pulled(workspaces: Workspaces, hub: LocalHub) -> None:
    hub.add_file(REPO, NAME, model())
    here = workspaces()
    assert fit(here, SOURCE).projection == 0
    hub.add_file(REPO, "mmproj-F16.gguf", tiny_gguf(projection=True, name="Eyes"))
    assert fit(here, SOURCE).projection
    assert fit(here, hub.url(REPO, NAME)).projection == 0


def test_shards_are_judged_as_one(workspaces: Workspaces, hub: LocalHub) -> None:
    parts = [tiny_gguf(split=(at, 2), tensors=[(f"blk.{at}.w", (32, 4096), F32)]) for at in range(2)]
    for at, part in enumerate(parts, 1):
        hub.add_file(REPO, f"Big-F32-{at:05}-of-00002.gguf", part)
    found = fit(workspaces(system=Box(8 * GIB, "A, 8192"), engine="llama-server"), SOURCE)
    assert found.weights >= 2 * 32 * 4096 * 4


def test_a_model_that_differs_from_the_installed_one_is_judged(workspaces: Workspaces, hub: LocalHub) -> None:
    """A pull would be refused for want of ``--force``; a question is answered."""
    url = hub.add_plain(f"a/{NAME}", model())
    here = workspaces()
    pull(here, url)
    other = url + "?version=2"
    hub.add_plain(f"a/{NAME}", model(2 << 20))
    with pytest.raises(DifferentVersion):
        MODELS_PULL.run(here, PullRequest(other))
    assert fit(here, other).weights > fit(here, url).weights


@pytest.mark.parametrize(
    "fault", [Fault.ignore_range(), Fault.no_ranges(), Fault.range_refused()], ids=lambda fault: fault.name
)
def test_without_ranges_it_is_a_guess(workspaces: Workspaces, hub: LocalHub, fault: Fault) -> None:
    hub.add_file(REPO, NAME, model(32 << 20))
    here = workspaces(memory_budget=2 * GIB)
    hub.misbehave(fault)
    found = fit(here, SOURCE)
    assert (found.guess, found.verdict, found.available) == (True, "fits", 2 * GIB)
    assert fetched(hub) < 8 << 20
    plan = MODELS_PULL.run(here, PullRequest(SOURCE, dry_run=True))
    assert getattr(plan, "fit", None) == found


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("nope", ModelNotFound),
        ("", InvalidRequest),
        ("acme/Nope-GGUF", FileNotOnHub),
        (f"{REPO}:Q9_9", KawaiError),
        ("http://user:secret@127.0.0.1/x.gguf", InvalidRequest),
        ("file:///etc/passwd", InvalidRequest),
        ("../../x.gguf", InvalidRequest),
        ("\x1b[31m", InvalidRequest),
    ],
)
def test_what_is_no_model_is_said(
    workspaces: Workspaces, hub: LocalHub, words: str, kind: type[KawaiError]
) -> None:
    hub.add_file(REPO, "readme.txt", b"no model here")
    hub.add_file("acme/Nope-GGUF", "readme.txt", b"no model here")
    with pytest.raises(kind) as raised:
        fit(workspaces(), words)
    assert "secret" not in str(raised.value)


def test_a_broken_file_is_an_error_but_not_of_a_plan(workspaces: Workspaces, hub: LocalHub) -> None:
    hub.add_file(REPO, NAME, b"GGUF" + bytes(5000))
    here = workspaces()
    with pytest.raises(MalformedGguf, match=NAME):
        fit(here, SOURCE)
    plan = MODELS_PULL.run(here, PullRequest(SOURCE, dry_run=True))
    assert getattr(plan, "fit", 0) is None


@pytest.mark.parametrize(
    ("data", "words"), [(tiny_gguf(projection=True), "a projection"), (tiny_gguf(tensors=()), "a vocabulary")]
)
def test_what_no_engine_loads_is_said(workspaces: Workspaces, hub: LocalHub, data: bytes, words: str) -> None:
    hub.add_file(REPO, NAME, data)
    here = workspaces()
    with pytest.raises(NotAModel, match=words):
        fit(here, SOURCE)
    plan = MODELS_PULL.run(here, PullRequest(SOURCE, dry_run=True))
    assert getattr(plan, "fit", 0) is None


def test_a_plan_guesses_where_the_server_fails(workspaces: Workspaces, hub: LocalHub) -> None:
    hub.add_file(REPO, NAME, model())
    hub.misbehave(Fault.status(404, server="cdn"))
    found = getattr(MODELS_PULL.run(workspaces(), PullRequest(SOURCE, dry_run=True)), "fit", None)
    assert isinstance(found, Fit)
    assert found.guess


def test_a_server_asks_the_hosts_that_it_may(workspaces: Workspaces, hub: LocalHub) -> None:
    url = hub.add_plain("x.gguf", model()).replace("127.0.0.1", "localhost")
    with pytest.raises(HostNotAllowed):
        fit(workspaces(serves=True), url)
    assert fit(workspaces(serves=True, pull_hosts=("localhost",)), url).verdict == "fits"
    with pytest.raises(Offline):
        fit(workspaces(offline=True), SOURCE)


# the machine


def room(made: Workspaces, system: Told, **settings: Any) -> Any:  # noqa: ANN401
    return made(system=system, **settings).fitting.room()


def test_memory_is_what_there_is_less_a_reserve(workspaces: Workspaces) -> None:
    assert room(workspaces, Box(100 * GIB)).memory == 90 * GIB
    assert room(workspaces, Box(4 * GIB)).memory == 3 * GIB
    assert room(workspaces, Box(512 << 20)).memory == 0
    capped = Box(100 * GIB, files={"/sys/fs/cgroup/memory.max": f"{20 * GIB}\n"})
    assert room(workspaces, capped).memory == 18 * GIB
    assert room(workspaces, capped, memory_budget=5 * GIB).memory == 5 * GIB


def test_gpus_count_where_what_runs_uses_them(workspaces: Workspaces) -> None:
    box = Box(64 * GIB, "NVIDIA GeForce RTX 4090, 24564", "Odd, name, 8192")
    found = room(workspaces, box, engine="llama-server").gpus  # no build yet: the one that would be got
    assert [each.name for each in found] == ["NVIDIA GeForce RTX 4090", "Odd, name"]
    assert 0.9 * (24564 << 20) < found[0].memory < 24564 << 20
    assert room(workspaces, box, engine="xllamacpp").gpus == ()
    assert room(workspaces, Box(64 * GIB), engine="llama-server").gpus == ()


def test_gpus_of_every_kind() -> None:
    card = "/sys/class/drm/card1/device"
    amd = {f"{card}/vendor": "0x1002\n", f"{card}/mem_info_vram_total": f"{16 * GIB}\n"}
    intel = {"/sys/class/drm/card0/device/vendor": "0x8086\n", "/sys/class/drm/card1-DP-1/x": ""}
    both = Box(64 * GIB, "A, 8192", files=NODES | amd | intel)
    names = {each: [gpu.name for gpu in gpus(both, each, 64 * GIB)] for each in Processor}
    assert names == {
        Processor.CPU: [],
        Processor.CUDA: ["A"],
        Processor.ROCM: ["AMD GPU (card1)"],
        Processor.VULKAN: ["A", "AMD GPU (card1)"],
        Processor.METAL: ["Apple GPU"],
        Processor.SYCL: [],
        Processor.OPENVINO: [],
    }
    (apple,) = gpus(both, Processor.METAL, 64 * GIB)
    assert apple.memory == 48 * GIB
    broken = Box(64 * GIB, "[N/A]", "", "A, none", files={f"{card}/vendor": "0x1002\n"})
    assert gpus(broken, Processor.VULKAN, 64 * GIB) == ()


def test_an_apple_machine_shares_its_memory(workspaces: Workspaces) -> None:
    class Apple(Told):
        def run(self, *command: str) -> str | None:
            return f"{32 * GIB}\n" if command[0] == "sysctl" else None

    found = room(workspaces, Apple(uname=("Darwin", "arm64")))
    assert (found.unified, found.gpus[0].memory) == (True, 24 * GIB)


WIDE = {"llama.attention.key_length": 128, "llama.attention.value_length": 128}


@pytest.mark.parametrize(
    ("budget", "gpu", "verdict", "words"),
    [
        (GIB, None, "fits", "fits\n"),
        (80 << 20, None, "fits_context", "fits with [0-9]+ context\n"),
        (8 << 20, None, "no", "does not fit\n"),
        (GIB, 1024, "fits", "fits\n"),
        (GIB, 560, "fits_layers", "fits with [1-3] of 4 layers on the GPU\n"),
    ],
)
def test_the_verdict_follows_the_machine(
    workspaces: Workspaces, hub: LocalHub, budget: int, gpu: int | None, verdict: str, words: str
) -> None:
    """``gpu`` is what nvidia-smi says, in MiB: 512 of it are left to others."""
    hub.add_file(REPO, NAME, model(8 << 20, **WIDE))
    box = Box(8 * GIB, *([f"A, {gpu}"] if gpu else []))
    found = fit(workspaces(system=box, memory_budget=budget, engine="llama-server"), SOURCE)
    assert (found.verdict, found.guess) == (verdict, False)
    assert re.match(words, told(found))
    assert (found.layers is None) == (gpu is None)
    assert found.needed == found.weights + found.kv + found.compute + found.projection
    if gpu:
        none = fit(workspaces(system=box, memory_budget=budget, engine="llama-server", gpu_layers=0), SOURCE)
        assert none.available == budget


def test_what_runs_embedded_has_no_gpu(workspaces: Workspaces, hub: LocalHub) -> None:
    hub.add_file(REPO, NAME, model())
    assert fit(workspaces(system=Box(8 * GIB, "A, 8192"), engine="xllamacpp"), SOURCE).layers is None


# both faces


class Faces:
    """A command line and a daemon on one home."""

    def __init__(self, cli: Program, daemon: Daemon, hub: LocalHub) -> None:
        self.cli, self.daemon, self.hub = cli, daemon, hub


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faces]:
    root = tmp_path_factory.mktemp("faces")
    with LocalHub(root / "hub") as hub:
        hub.add_file(REPO, NAME, model())
        cli = Program(root, {"HF_ENDPOINT": hub.endpoint, "KAWAI_MEMORY_BUDGET": "2GB"})
        file = {"url": at_hub("Tiny-GGUF", NAME), "size_bytes": len(model())}
        lists(cli, entry("Listed-F32", files={"model": [file]}))
        with serving(cli) as daemon:
            yield Faces(cli, daemon, hub)


@pytest.mark.parametrize("words", [SOURCE, "Listed-F32", "nope", "acme/None-GGUF"])
def test_both_faces_say_the_same(faces: Faces, words: str) -> None:
    here = faces.cli("fit", words, "--context", "512", "--json")
    there = faces.daemon.ask("GET", f"/v1/fit?source={words}&context=512")
    said = here.out if here.code == 0 else here.err
    assert said.encode() == there.body + b"\n"
    far = faces.cli("fit", words, "--context", "512", "--json", "--server", faces.daemon.url)
    assert (far.code, far.out, far.err) == (here.code, here.out, here.err)
    if there.status == 200:
        assert list(there.json)[:5] == ["verdict", "guess", "context", "layers", "layers_total"]


@pytest.mark.parametrize(
    "query", ["", "?source=x&context=0", "?source=x&context=-1", "?source=x&context=many", "?source=x&y=1"]
)
def test_a_question_that_makes_no_sense_is_refused(faces: Faces, query: str) -> None:
    assert faces.daemon.ask("GET", f"/v1/fit{query}").status == 400


def test_people_are_told_the_verdict_first(faces: Faces) -> None:
    ended = faces.cli("fit", SOURCE)
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0] == "fits"
    assert [line.split("  ")[0] for line in lines[2:]] == [
        "Weights",
        "Context memory",
        "Compute",
        "Needed",
        "Available",
    ]
    assert lines[-1].endswith("2.0 GB")
    assert max(map(len, lines)) <= 80
    assert faces.cli("fit", SOURCE, "--context", "0").code == 2


def test_a_plan_and_an_entry_tell_it(faces: Faces) -> None:
    expected = json.loads(faces.cli("fit", SOURCE, "--json").out)
    plan = faces.cli("models", "pull", SOURCE, "--dry-run", "--json")
    assert json.loads(plan.out)["fit"] == expected
    listed = faces.cli("catalog", "pull", "Listed-F32", "--dry-run", "--json")
    assert json.loads(listed.out)["fit"] == expected
    reply = faces.daemon.ask("GET", "/v1/catalog/Listed-F32").json
    assert reply["fit"] == expected
    row = next(each for each in faces.daemon.ask("GET", "/v1/catalog").json if each["id"] == "Listed-F32")
    assert row["fit"] is None
    for words in (("models", "pull", SOURCE, "--dry-run"), ("catalog", "show", "Listed-F32")):
        assert "Memory" in (out := faces.cli(*words).out)
        assert "fits (needs " in out
    with terminal(faces.cli, "run", SOURCE) as opened:
        opened.await_shown("fits (needs")
        opened.await_shown("Pull it? [y/N]")
        opened.type("n\n")
        assert opened.end() == 1


def test_an_entry_is_shown_without_its_hub(faces: Faces) -> None:
    offline = json.loads(faces.cli("catalog", "show", "Listed-F32", "--offline", "--json").out)
    assert offline["fit"]["guess"]
    faces.hub.misbehave(Fault.silent(server="hub"))
    begin = time.monotonic()
    shown = json.loads(faces.cli("catalog", "show", "Listed-F32", "--json").out)
    assert time.monotonic() - begin < 6
    assert shown["fit"] == offline["fit"]
    faces.hub.behave()
    faces.hub.down()
    begin = time.monotonic()
    shown = json.loads(faces.cli("catalog", "show", "Listed-F32", "--json").out)
    assert time.monotonic() - begin < 6
    assert shown["fit"] == offline["fit"]
    faces.hub.up()


def test_installed_it_is_read_from_disk(faces: Faces) -> None:
    assert faces.cli("catalog", "pull", "Listed-F32").code == 0
    faces.hub.clear_requests()
    shown = json.loads(faces.cli("catalog", "show", "Listed-F32", "--json").out)
    assert shown["downloaded"]
    assert not shown["fit"]["guess"]
    assert json.loads(faces.cli("fit", "Listed-F32", "--json").out) == shown["fit"]
    plan = json.loads(faces.cli("catalog", "pull", "Listed-F32", "--dry-run", "--json").out)
    assert (plan["exists"], plan["fit"]) == (True, shown["fit"])
    assert faces.hub.requests == []


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1024, 4096, 8192])
def test_what_is_told_is_what_a_loaded_model_takes(tokens: int, cli: Program, real_model: Path) -> None:
    """By the embedded engine; a true build is held to it in test_fit.py."""
    store = Path(cli.environ["KAWAI_HOME"]) / "models"
    store.mkdir(parents=True)
    (store / "real.gguf").symlink_to(real_model)
    cli.environ["KAWAI_CONTEXT_LENGTH"] = str(tokens)
    assert cli("models", "index").code == 0
    with serving(cli, "--engine", "xllamacpp") as daemon:
        loaded = daemon.ask("POST", "/v1/models/load", {"model": "real"}).json
        told = daemon.ask("GET", "/v1/fit?source=real").json
    assert (told["context"], told["parallel"]) == (tokens, 4)
    assert 0.95 <= told["needed"] / loaded["memory"] <= 1.1


def test_more_context_than_there_is_is_said(hub: LocalHub, cli: Program) -> None:
    hub.add_file(REPO, NAME, model())
    assert cli("models", "pull", SOURCE).code == 0
    asked = cli("fit", ID, "--context", "9000")
    assert (asked.code, asked.out.splitlines()[0]) == (0, "fits")
    assert "8192 tokens of context, which is what was judged" in asked.err
    assert cli("fit", ID, "--context", str((1 << 31) + 1)).code == 2
    assert cli("fit", ID, "--context", "8192").err == ""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("https://huggingface.co/acme/smol-GGUF", "page_url"),
        ("ftp://x/y.gguf", "invalid_source"),
        ("./foo.gguf", "local_path"),
        ("acme/smol-GGUF:", "invalid_source"),
        ("nosuch", "model_not_found"),
    ],
)
def test_what_was_to_be_a_source_is_refused_as_one(words: str, code: str, kawai: Program) -> None:
    assert kawai("fit", words, "--json").error["code"] == code
    if code == "model_not_found":
        assert "OWNER/REPO:QUANT" in kawai("fit", words, "--json").error["hint"]


def test_advice_is_what_a_load_would_be_told(workspaces: Workspaces, hub: LocalHub) -> None:
    hub.add_file(REPO, NAME, model(8 << 20, **WIDE))
    pull(workspaces(), SOURCE)
    for budget, words in (
        (110 << 20, "parallel = "),
        (70 << 20, "context_length = "),
        (8 << 20, "even with"),
    ):
        here = workspaces(memory_budget=budget, engine="xllamacpp")
        advice = fit(here, ID).advice
        assert advice is not None
        assert words in advice
        assert advice == here.orders.make(parse_model(ID)).advice(budget)


def test_a_gpu_that_is_too_small_for_one_layer_leaves_all_in_memory(
    workspaces: Workspaces, hub: LocalHub
) -> None:
    hub.add_file(REPO, NAME, model(8 << 20, **WIDE))
    box = Box(8 * GIB, "A, 513")
    found = fit(workspaces(system=box, memory_budget=GIB, engine="llama-server"), SOURCE)
    assert (found.verdict, found.layers, found.available) == ("fits", 0, GIB)
    here = workspaces(system=box, memory_budget=GIB, engine="llama-server", gpu_layers=99)
    forced = fit(here, SOURCE)
    assert forced.verdict == "no"
    assert forced.needed > forced.available


def test_few_at_a_time_may_ask_elsewhere(workspaces: Workspaces, hub: LocalHub) -> None:
    hub.add_file(REPO, NAME, model())
    here = workspaces()
    with contextlib.ExitStack() as held:
        for _ in range(4):
            held.enter_context(here.fitting.elsewhere_at_once.one())
        with pytest.raises(Busy):
            fit(here, SOURCE)
    assert fit(here, SOURCE).verdict == "fits"
