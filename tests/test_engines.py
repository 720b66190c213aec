"""Every engine with the real model: what is promised of all of them, asked by the client of OpenAI."""

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

import kawai_tools.libs
from tests.bundles import real_bundle
from tests.hub import LocalHub
from tests.inference import (
    LONG,
    MODEL,
    Home,
    Json,
    chat,
    children,
    engine,
    flow,
    is_alive,
    load,
    logs_of,
    row,
    rows,
    soon,
    started,
    stocked,
    streams,
    unload,
)
from tests.program import Program, serving
from tests.samples import entry

pytestmark = pytest.mark.slow
VECTORS = "Vectors-F32"
MEAN = 1
"""``LLAMA_POOLING_TYPE_MEAN`` of ``llama.h``."""


def vectors_model() -> bytes:
    """The model that builds are tried on, told to make one vector of a text (``llama.pooling_type``)."""
    data = (Path(kawai_tools.libs.__path__[0]) / "probe.gguf").read_bytes()
    more = entry("llama.pooling_type", MEAN)
    more += entry("test.padding", " " * (-(len(more) + len(entry("test.padding", ""))) % 32))
    assert len(more) % 32 == 0  # what follows stays aligned
    count = int.from_bytes(data[16:24], "little") + 2
    return data[:16] + count.to_bytes(8, "little") + more + data[24:]


def test_the_model_of_vectors_is_one(kawai: Program) -> None:
    place = kawai.home / "kawai" / "models" / f"{VECTORS}.gguf"
    place.parent.mkdir(parents=True)
    place.write_bytes(vectors_model())
    assert kawai("models", "index").code == 0
    shown = json.loads(kawai("models", "show", VECTORS, "--json").out)
    assert (shown["capabilities"]["endpoint"], shown["context_length"]) == ("embeddings", 128)


def _prepare(name: str, cli: Program, hub: LocalHub) -> None:
    """Make an engine usable, or skip and say why it is not."""
    if name == "llama-cpp-python" and find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed: it compiles for ten minutes; .ci/run installs it")
    if name == "llama-server":
        bundle = real_bundle()
        if bundle is None:
            pytest.skip("KAWAI_TEST_BUNDLE names no true build of llama.cpp")
        hub.add_release("b11434", {bundle.name: bundle})
        ended = cli("libs", "pull", "b11434", "--processor", "cpu")
        assert ended.code == 0, ended


@pytest.fixture(scope="module", params=["llama-server", "xllamacpp", "llama-cpp-python"])
def home(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, real_model: Path
) -> Iterator[Home]:
    root = tmp_path_factory.mktemp("engine")
    with LocalHub(root / "hub") as hub:
        cli = stocked(root, hub, real_model)
        _prepare(request.param, cli, hub)
        config = cli.home / "kawai" / "config.toml"
        config.write_text(f'[models."{MODEL}"]\ncontext_length = 2048\nparallel = 2\ntemperature = 0.0\n')
        (cli.home / "kawai" / "models" / f"{VECTORS}.gguf").write_bytes(vectors_model())
        assert cli("models", "index").code == 0
        with serving(cli, "--engine", request.param) as daemon:
            yield Home(daemon, cli, hub)
            load(daemon)
            pids = [each.pid for each in children(daemon.process.pid)]
            os.kill(daemon.process.pid, signal.SIGKILL)
            assert pids
            assert soon(lambda: not [pid for pid in pids if is_alive(pid)], 2)
        assert "Traceback" not in logs_of(cli)
        shutil.rmtree(cli.home / "kawai" / "libraries", ignore_errors=True)


def test_the_openai_client_lists_chats_and_embeds(home: Home) -> None:
    with home.client as client:
        assert {each.id for each in client.models.list()} >= {MODEL, VECTORS}
        words = [{"role": "user", "content": "Name three colours"}]
        asked: Json = {"model": MODEL.lower(), "messages": words, "max_tokens": 12, "temperature": 0}
        whole = client.chat.completions.create(**asked)
        assert whole.model == MODEL
        assert whole.usage
        assert whole.usage.completion_tokens > 1
        with client.chat.completions.create(**asked, stream=True) as stream:
            chunks = list(stream)
        assert {each.model for each in chunks} == {MODEL}
        said = "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)
        assert said == whole.choices[0].message.content
        assert len(chunks) > 4
        made = client.embeddings.create(model=VECTORS, input=["a b", "b a c"], encoding_format="float")
        assert [len(each.embedding) for each in made.data] == [32, 32]
        assert made.data[0].embedding != made.data[1].embedding
        with pytest.raises(openai.InternalServerError) as caught:
            client.embeddings.create(model=MODEL, input="words")
        assert (caught.value.status_code, caught.value.code) == (502, "engine_error")
        assert "embedding" in caught.value.message


def test_ps_tells_the_truth(home: Home) -> None:
    load(home.daemon)
    before = row(home.daemon)
    doctor = home.cli("doctor", KAWAI_ENGINE=before["engine"]).out
    assert re.search(rf"^ok +engine +{before['engine']}: ", doctor, re.MULTILINE), doctor
    assert (before["state"], before["active_streams"], before["context_length"]) == ("ready", 0, 2048)
    assert before["memory"] > 90_000_000
    shown = json.loads(home.cli("models", "show", MODEL, "--json").out)["config"]
    assert shown["context_length"] == {"value": 2048, "source": f'config.toml [models."{MODEL}"]'}
    assert shown["threads"]["source"] == "environment"
    with flow(home.daemon) as opened:
        started(opened)
        assert row(home.daemon)["active_streams"] == 1
    assert soon(lambda: streams(home.daemon) == 0, 2)
    pid = engine_of(home, MODEL)
    unload(home.daemon)
    assert MODEL not in {each["id"] for each in rows(home.daemon)}
    assert not is_alive(pid)


def engine_of(home: Home, model: str) -> int:
    """The process id of a model's engine."""
    found = [
        each.pid
        for each in children(home.daemon.process.pid)
        if model in each.command or f'"id":"{model}"' in each.environ.get("KAWAI_WANTED", "")
    ]
    assert len(found) == 1
    return found[0]


def test_who_leaves_a_stream_stops_the_engine(home: Home) -> None:
    load(home.daemon)
    pid = engine_of(home, MODEL)
    with flow(home.daemon, chat(stream=True, **LONG)) as opened:
        started(opened)
    assert soon(lambda: streams(home.daemon) == 0, 1)
    before = _ticks(pid)
    assert not soon(lambda: _ticks(pid) - before > 10, 0.4), "it goes on computing"


def _ticks(pid: int) -> int:
    """Hundredths of seconds that a process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[11]) + int(fields[12])


def test_two_streams_at_once_both_come_to_their_end(home: Home) -> None:
    asked = chat("Go on", stream=True, max_tokens=24, logit_bias={}) | {"temperature": 0}
    with ThreadPoolExecutor(2) as both:
        replies = list(both.map(lambda _: home.post(body=asked), range(2)))
    assert [reply.status for reply in replies] == [200, 200]
    first, second = (
        [json.loads(line[6:]) for line in reply.body.decode().splitlines() if line.startswith("data: {")]
        for reply in replies
    )
    said = [
        "".join(each["choices"][0]["delta"].get("content") or "" for each in frames if each["choices"])
        for frames in (first, second)
    ]
    # what is cached of the first changes roundings of the second, so that at last a word may be another
    assert said[0][:20] == said[1][:20]
    assert all(map(str.strip, said))
    ids = [{frame["id"] for frame in frames} for frames in (first, second)]
    assert [len(each) for each in ids] == [1, 1]
    assert ids[0] != ids[1]
    assert {frames[-1]["choices"][0]["finish_reason"] for frames in (first, second)} <= {"length", "stop"}


def test_a_text_goes_on_for_more_than_sixteen_tokens(home: Home) -> None:
    body: Json = {"model": MODEL, "prompt": "Once upon a time", "stream": True}
    with flow(home.daemon, body, "/v1/completions") as opened:
        said = [each["choices"][0] for each in islice(opened.frames(), 20)]
    assert sum(bool(each["text"]) for each in said) > 16
    assert not any(each.get("finish_reason") for each in said)


def test_a_death_in_a_stream_is_told_and_the_next_request_is_answered(home: Home) -> None:
    load(home.daemon)
    with flow(home.daemon) as opened:
        started(opened)
        os.kill(engine_of(home, MODEL), signal.SIGKILL)
        *_, last = opened.frames()
    assert last["error"]["code"] == "engine_error"
    assert "SIGKILL" in last["error"]["message"]
    assert home.post(body=chat()).status == 200


def test_metrics_are_what_prometheus_reads(home: Home) -> None:
    def counted() -> dict[tuple[str, str], float]:
        text = home.daemon.ask("GET", "/metrics").body.decode()
        return {
            (sample.name, sample.labels.get("kind", "")): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.labels.get("model", MODEL) == MODEL
        }

    assert soon(lambda: not streams(home.daemon))  # what others have left is counted when it ends
    before = counted()
    assert home.post(body=chat()).status == 200
    after = counted()
    made = ("kawai_tokens_total", "completion")
    assert after[made] - before.get(made, 0) == 8
    assert after["kawai_model_loads_total", ""] >= 1
    assert home.post(body=chat(stream=True)).status == 200
    assert 8 <= counted()[made] - after[made] <= 12
    lines = (home.daemon.home / "logs" / "requests.log").read_text().splitlines()
    told = [each for line in lines if (each := json.loads(line)).get("model") == MODEL][-2:]
    assert [(each["route"], each["status"]) for each in told] == [("/v1/chat/completions", 200)] * 2
    assert [each["stream"] for each in told] == [False, True]
    assert told[0]["tokens"] == 8
    assert 0 < told[1]["first"] <= told[1]["seconds"]


def test_the_engine_of_another_is_not_taken(home: Home) -> None:
    """The environment of an engine is made from nothing, and its key is in no command line."""
    load(home.daemon, VECTORS)
    unload(home.daemon)
    child = engine(home.daemon)
    assert child.environ["LLAMA_API_KEY"] not in child.command
    assert not {name for name in child.environ if "TOKEN" in name or name.startswith("LLAMA_ARG")}
