"""Inference from outside: the real model behind a real daemon, asked as clients ask, well and badly."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest

from tests.bundles import asset_name, host_platform, launcher_bundle
from tests.hub import LocalHub
from tests.inference import (
    BROKEN,
    GENERATING,
    LONG,
    MODEL,
    PS_KEYS,
    REPO,
    ROUTES,
    SECRET_PROMPT,
    SECRETS,
    Home,
    Json,
    Unix,
    body_for,
    chat,
    children,
    engine,
    flow,
    hung_up,
    in_background,
    is_alive,
    left_until,
    load,
    logs_of,
    refused,
    row,
    rows,
    soon,
    started,
    stocked,
    streams,
    unload,
)
from tests.program import Daemon, Program, serving
from tests.samples import tiny_gguf


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, real_model: Path) -> Iterator[Home]:
    root = tmp_path_factory.mktemp("inference")
    with LocalHub(root / "hub") as hub:
        cli = stocked(root, hub, real_model)
        with serving(cli, "--engine", "xllamacpp") as daemon:
            yield Home(daemon, cli, hub)
            assert daemon.process.poll() is None
            pids = [each.pid for each in children(daemon.process.pid)]
        assert soon(lambda: not [pid for pid in pids if is_alive(pid)], 2)
        assert not list((daemon.home / "run").glob("*.sock"))
        assert "Traceback" not in logs_of(cli)


@pytest.fixture
def loaded(home: Home) -> Home:
    """The same, with the real model loaded and idle."""
    load(home.daemon)
    assert soon(lambda: not engine(home.daemon).is_busy)
    return home


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, real_model: Path) -> Iterator[Program]:
    """A home for daemons that are started in another way, or ended."""
    root = tmp_path_factory.mktemp("other")
    with LocalHub(root / "hub") as hub:
        yield stocked(root, hub, real_model, KAWAI_ENGINE="xllamacpp")


# Clients that mean well


def test_the_openai_client_lists_and_retrieves(home: Home) -> None:
    with home.client as client:
        assert [each.id for each in client.models.list()] == [MODEL, BROKEN]
        assert client.models.retrieve(MODEL).id == MODEL


def test_the_openai_client_chats(home: Home) -> None:
    with home.client as client:
        said = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Say hello"}], max_tokens=8
        )
    assert said.model == MODEL
    assert said.choices[0].message.content
    assert said.usage
    assert 0 < said.usage.completion_tokens <= 8


def test_the_openai_client_chats_in_a_stream(home: Home) -> None:
    with (
        home.client as client,
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Say hello"}], max_tokens=8, stream=True
        ) as stream,
    ):
        pieces = list(stream)
    assert {each.model for each in pieces} == {MODEL}
    assert "".join(each.choices[0].delta.content or "" for each in pieces if each.choices)
    assert [each.choices[0].finish_reason for each in pieces if each.choices][-1] in {"length", "stop"}


def test_the_openai_client_completes(home: Home) -> None:
    with home.client as client:
        asked: Json = {"model": MODEL, "prompt": "Once upon a", "max_tokens": 6, "temperature": 0}
        whole = client.completions.create(**asked)
        with client.completions.create(**asked, stream=True) as stream:
            pieces = list(stream)
    assert whole.model == MODEL
    assert whole.choices[0].text == "".join(each.choices[0].text for each in pieces if each.choices) != ""


def test_the_openai_client_is_told_by_the_engine_that_there_are_no_embeddings(home: Home) -> None:
    with home.client as client, pytest.raises(openai.APIStatusError) as caught:
        client.embeddings.create(model=MODEL, input="words", encoding_format="float")
    assert caught.value.status_code == 502
    assert caught.value.code == "engine_error"
    assert "embedding" in caught.value.message


def test_rerank_of_a_model_that_cannot_says_what_the_engine_says(home: Home) -> None:
    assert "rerank" in refused(home.post("/v1/rerank", body_for("/v1/rerank")), 502, "engine_error")


def test_what_the_engine_refuses_is_passed_on_as_it_is(home: Home) -> None:
    reply = home.post("/v1/chat/completions", {"model": MODEL})
    assert reply.status == 400
    assert "messages" in reply.error["message"]


def test_responses(home: Home) -> None:
    with home.client as client:
        said = client.responses.create(model=MODEL, input="Say hello", max_output_tokens=8)
        with client.responses.create(
            model=MODEL, input="Say hello", max_output_tokens=8, stream=True
        ) as stream:
            kinds = [each.type for each in stream]
    assert said.model == MODEL
    assert said.output_text
    assert "response.output_text.delta" in kinds
    assert kinds[-1] == "response.completed"


def test_messages(home: Home) -> None:
    said = home.post("/v1/messages", chat()).json
    assert (said["type"], said["role"], said["model"]) == ("message", "assistant", MODEL)
    assert said["content"][0]["text"]
    with flow(home.daemon, chat(stream=True), "/v1/messages") as opened:
        kinds = [each["type"] for each in opened.frames()]
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("name", [MODEL.lower(), f"huggingfacetb/{MODEL.upper()}"])
def test_the_answer_names_the_model_by_its_id_however_it_was_asked_for(
    home: Home, path: str, name: str
) -> None:
    reply = home.post(path, body_for(path, model=name))
    assert reply.status == 200, reply
    assert reply.json["model"] == MODEL


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_every_frame_names_the_model_by_its_id(home: Home, path: str) -> None:
    body = body_for(path, model=MODEL.lower(), stream=True)
    with flow(home.daemon, body, path) as opened:
        assert {each["model"] for each in opened.frames()} == {MODEL}


def test_a_stream_of_chat_is_framed_as_clients_expect(home: Home) -> None:
    reply = home.post(body=chat(stream=True))
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.body.endswith(b"data: [DONE]\n\n")
    assert all(line.startswith("data: ") for line in reply.body.decode().split("\n\n") if line)


@pytest.mark.slow
def test_frames_come_when_they_are_made(loaded: Home) -> None:
    """What is held back is held back every time; a busy machine stands still now and then."""

    def come_evenly() -> bool:
        begun = time.monotonic()
        times: list[float] = []
        with flow(loaded.daemon, chat(stream=True, max_tokens=80, ignore_eos=True)) as opened:
            times.extend(time.monotonic() - begun for _ in opened.frames())
        assert len(times) > 60
        gaps = [after - before for before, after in pairwise(times)]
        return max(times[0], *gaps) < times[-1] / 3

    assert any(come_evenly() for _ in range(3))


# What cannot be answered


@pytest.mark.parametrize("path", ROUTES)
def test_an_unknown_model_is_404_with_a_suggestion(home: Home, path: str) -> None:
    words = refused(
        home.post(path, body_for(path, model="SmolLM2-135M-Instruct.Q4_0")), 404, "model_not_found"
    )
    assert f"did you mean {MODEL}" in words


@pytest.mark.parametrize("name", ["../x", "a/b/c", "-x", "a\\b", "a%2fb", "x" * 201])
def test_what_can_be_no_id_is_refused(home: Home, name: str) -> None:
    assert refused(home.post(body=chat(model=name)), 400, "invalid_id")


BAD = {
    "no JSON": b"{",
    "an array": b"[]",
    "a string": b'"model"',
    "null": b"null",
    "nothing": b" ",
    "no model": b'{"messages":[]}',
    "model null": b'{"model":null}',
    "model a number": b'{"model":1}',
    "model empty": b'{"model":""}',
    "model an object": b'{"model":{"id":"x"}}',
    "not UTF-8": b'{"model":"\xff"}',
    "nested too deep": b'{"model":"x","a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("what", BAD)
def test_a_body_that_makes_no_sense_is_400(home: Home, what: str) -> None:
    headers = {"Content-Type": "application/json"}
    reply = home.daemon.ask("POST", "/v1/chat/completions", BAD[what], headers)
    assert refused(reply, 400, "invalid_body")


def test_no_body_at_all_is_400(home: Home) -> None:
    assert refused(home.daemon.ask("POST", "/v1/chat/completions"), 400, "invalid_body")


@pytest.mark.parametrize("path", ROUTES)
def test_more_than_64_mib_is_413_as_soon_as_it_is_announced(home: Home, path: str) -> None:
    address = urlsplit(home.daemon.url)
    head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((address.hostname or "", address.port or 0), 10) as wire:
        wire.sendall(f"{head}Content-Length: {(64 << 20) + 1}\r\n\r\n".encode())
        assert wire.recv(100).startswith(b"HTTP/1.1 413 ")


def test_more_than_a_mebibyte_is_taken(home: Home) -> None:
    reply = home.post(body=chat(max_tokens=1, padding="x" * (3 << 20)))
    assert reply.status == 200, reply.body[:300]


def test_the_guards_of_every_route_hold_here(home: Home) -> None:
    netloc = urlsplit(home.daemon.url).netloc
    data, kind = json.dumps(chat()).encode(), {"Content-Type": "application/json"}
    for path in ROUTES:
        foreign = kind | {"Origin": "http://evil.example"}
        assert refused(home.daemon.ask("POST", path, data, foreign), 403, "foreign_origin")
        assert refused(
            home.daemon.ask("POST", path, data, kind | {"Host": "evil.example"}), 421, "wrong_host"
        )
        plain = {"Content-Type": "text/plain"}
        assert refused(home.daemon.ask("POST", path, data, plain), 415, "unsupported_media_type")
        reply = home.daemon.ask("GET", path)
        assert refused(reply, 405, "method_not_allowed")
        assert reply.headers["allow"] == "POST"
        assert refused(home.daemon.ask("OPTIONS", path, headers={"Host": netloc}), 405, "method_not_allowed")


LINK = "http://127.0.0.1:9/x.png"
LINKS: dict[str, tuple[str, Json]] = {
    "sound": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": LINK}}]}]},
    ),
    "film": (
        "/v1/chat/completions",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "input_video", "input_video": {"url": "file:///etc/passwd"}}],
                }
            ]
        },
    ),
    "chat": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": LINK}}]}]},
    ),
    "chat, short": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": LINK}]}]},
    ),
    "chat, a file": (
        "/v1/chat/completions",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}],
                }
            ]
        },
    ),
    "chat, the second": (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "user", "content": "hello"},
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                        {"type": "text", "text": "what is it"},
                        {"type": "image_url", "image_url": {"detail": "low", "url": LINK}},
                    ],
                },
            ]
        },
    ),
    "chat, upper case": (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "HTTP://x/y"}}]}
            ]
        },
    ),
    "chat, in a tool's answer": (
        "/v1/chat/completions",
        {
            "messages": [
                {
                    "role": "tool",
                    "tool_call_id": "1",
                    "content": [{"type": "image_url", "image_url": {"url": LINK}}],
                }
            ]
        },
    ),
    "responses": (
        "/v1/responses",
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": LINK}]}]},
    ),
    "messages": (
        "/v1/messages",
        {
            "max_tokens": 4,
            "messages": [
                {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": LINK}}]}
            ],
        },
    ),
    "messages, in a tool's answer": (
        "/v1/messages",
        {
            "max_tokens": 4,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "1",
                            "content": [{"type": "image", "source": {"type": "url", "url": LINK}}],
                        }
                    ],
                }
            ],
        },
    ),
}


@pytest.mark.parametrize("what", LINKS)
def test_links_to_media_are_refused_before_the_engine_could_follow_them(home: Home, what: str) -> None:
    path, body = LINKS[what]
    assert "data:" in refused(home.post(path, {"model": MODEL} | body), 400, "invalid_body")


def test_media_themselves_reach_the_engine(home: Home) -> None:
    content = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    reply = home.post(body=chat(messages=[{"role": "user", "content": content}]))
    assert "image" in reply.error["message"]
    assert reply.error["code"] != "invalid_body"


def test_words_and_tools_that_speak_of_links_are_no_links(home: Home) -> None:
    tool = {"type": "object", "properties": {"image_url": {"type": "string"}}, "required": ["image_url"]}
    tools = [{"type": "function", "function": {"name": "look", "parameters": tool}}]
    assert home.post(body=chat(f"image_url {LINK}", tools=tools, max_tokens=1)).status == 200


def test_a_model_that_cannot_be_loaded_is_502_with_the_last_lines(home: Home) -> None:
    for _ in range(2):  # the second is told at once, without another try
        words = refused(home.post(body=chat(model=BROKEN)), 502, "engine_error")
        assert BROKEN in words
        assert re.search("fail|error|missing|not found", words.partition(": ")[2], re.IGNORECASE), words
    assert row(home.daemon, BROKEN)["state"] == "failed"
    ended = home.cli("models", "load", BROKEN, "--json")
    assert (ended.code, ended.error["code"]) == (6, "engine_error")
    unload(home.daemon, BROKEN)  # which forgets it


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models/load"])
def test_without_an_engine_it_is_503_and_two_ways_to_one(no_engine: Daemon, path: str) -> None:
    body = chat(model=BROKEN) if "chat" in path else {"model": BROKEN}
    words = refused(no_engine.ask("POST", path, body), 503, "no_engine")
    assert "kawai libs pull" in words
    assert "pip install 'kawai-tools[embedded]'" in words


def test_without_an_engine_load_exits_9(no_engine: Daemon) -> None:
    ended = no_engine.program("models", "load", BROKEN, "--json")
    assert (ended.code, ended.error["code"]) == (9, "no_engine")
    assert no_engine.ask("POST", "/v1/chat/completions", chat(model="nobody")).status == 404
    assert rows(no_engine) == []


@pytest.fixture(scope="module")
def no_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    root = tmp_path_factory.mktemp("no-engine")
    with LocalHub(root / "hub") as hub:
        hub.add_file("me/tiny-GGUF", f"{BROKEN}.gguf", tiny_gguf())
        cli = Program(root, {"HF_ENDPOINT": hub.endpoint})
        assert cli("models", "pull", "me/tiny-GGUF").code == 0
        with serving(cli, "--engine", "llama-server") as daemon:
            yield daemon


def test_a_model_that_does_not_fit_is_503_with_the_numbers(other: Program) -> None:
    program = Program(other.home, other.environ | {"KAWAI_MEMORY_BUDGET": "100M"})
    with serving(program) as daemon:
        reply = daemon.ask("POST", "/v1/chat/completions", chat())
        words = refused(reply, 503, "no_room")
        ended = program("models", "load", MODEL, "--json")
        assert children(daemon.process.pid) == []
    assert "context_length" in words
    assert len(re.findall(r"\d[\d,.]{2,}", words.replace(MODEL, ""))) >= 2
    assert "retry-after" not in reply.headers  # nothing would change
    assert (ended.code, ended.error["code"]) == (9, "no_room")


# What ps tells


def test_a_row_of_ps(loaded: Home) -> None:
    found = row(loaded.daemon)
    assert set(found) == PS_KEYS
    assert (found["owned_by"], found["model_family"]) == tuple(REPO.split("/"))
    assert (found["state"], found["engine"], found["active_streams"]) == ("ready", "xllamacpp", 0)
    assert found["size"] == 98_362_432
    assert 50_000_000 < found["memory"] < 2_000_000_000
    assert 0 < found["context_length"] <= 8192
    assert left_until(found["loaded_at"]) <= 1
    assert 290 < left_until(found["expires_at"]) <= 301


def test_the_command_line_shows_the_same(loaded: Home) -> None:
    ended = loaded.cli("models", "ps", "--json")
    assert ended.code == 0
    told = json.loads(ended.out)[0]
    assert told == row(loaded.daemon) | {key: told[key] for key in ("expires_at", "memory")}
    shown = loaded.cli("models", "ps")
    assert MODEL in shown.out
    assert "xllamacpp" in shown.out


def test_active_streams_rise_and_fall_and_the_end_moves(loaded: Home) -> None:
    before, begun = row(loaded.daemon)["expires_at"], time.monotonic()
    with flow(loaded.daemon) as first:
        while time.monotonic() < begun + 1.1:  # times are told in whole seconds
            started(first)
        assert streams(loaded.daemon) == 1
        with flow(loaded.daemon) as second:
            started(second)
            assert streams(loaded.daemon) == 2
        assert soon(lambda: streams(loaded.daemon) == 1, 2)
    assert soon(lambda: streams(loaded.daemon) == 0, 2)
    assert soon(lambda: row(loaded.daemon)["expires_at"] > before, 3)
    assert row(loaded.daemon)["loaded_at"] <= before


@pytest.mark.parametrize("seconds", [1000, 0.5e4, 100_000])
def test_keep_alive_moves_the_end(loaded: Home, seconds: float) -> None:
    assert loaded.post(body=chat(max_tokens=1, keep_alive=seconds)).status == 200
    assert seconds - 10 < left_until(row(loaded.daemon)["expires_at"]) <= seconds + 1


def test_keep_alive_null_is_none(loaded: Home) -> None:
    assert loaded.post(body=chat(max_tokens=1, keep_alive=None)).status == 200
    assert row(loaded.daemon)["expires_at"] is not None


def test_keep_alive_of_nothing_unloads(loaded: Home) -> None:
    child = engine(loaded.daemon)
    assert loaded.post(body=chat(max_tokens=1, keep_alive=0)).status == 200
    assert soon(lambda: rows(loaded.daemon) == [])
    assert soon(lambda: not child.is_alive, 5)


def test_a_second_is_a_second(loaded: Home) -> None:
    assert loaded.post(body=chat(max_tokens=1, keep_alive=1)).status == 200
    ended = time.monotonic()
    assert soon(lambda: rows(loaded.daemon) == [], 6)
    assert time.monotonic() - ended > 0.6


def test_minus_one_pins_until_another_time_is_given(loaded: Home) -> None:
    for _ in range(2):
        assert loaded.post(body=chat(max_tokens=1, keep_alive=-1)).status == 200
        assert row(loaded.daemon)["expires_at"] is None
    assert loaded.post(body=chat(max_tokens=1)).status == 200
    assert row(loaded.daemon)["expires_at"] is None
    assert loaded.post(body=chat(max_tokens=1, keep_alive=300)).status == 200
    assert row(loaded.daemon)["expires_at"] is not None


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("value", ["5m", "300", True, [], {}])
def test_a_keep_alive_that_is_no_number_is_400(home: Home, path: str, value: object) -> None:
    assert "keep_alive" in refused(home.post(path, body_for(path, keep_alive=value)), 400, "invalid_body")


@pytest.mark.parametrize("value", [1e300, 1e13, 10**30])
def test_a_keep_alive_beyond_all_time_harms_nobody(loaded: Home, value: float) -> None:
    try:
        assert loaded.post(body=chat(max_tokens=1, keep_alive=value)).status in {200, 400}
        reply = loaded.daemon.ask("GET", "/v1/models/ps")
        assert reply.status == 200, reply
    finally:
        assert loaded.post(body=chat(max_tokens=1, keep_alive=300)).status == 200


# Clients that leave, and engines that die


def test_a_client_that_leaves_a_stream_stops_the_engine(loaded: Home) -> None:
    child = engine(loaded.daemon)
    with flow(loaded.daemon) as opened:
        started(opened)
        assert child.is_busy
    assert soon(lambda: not child.is_busy, 1.0)
    assert soon(lambda: streams(loaded.daemon) == 0, 1.0)
    assert engine(loaded.daemon).pid == child.pid


def test_a_client_that_leaves_before_the_first_word_stops_the_engine(loaded: Home) -> None:
    child = engine(loaded.daemon)
    with hung_up(loaded.daemon, chat(stream=True, **LONG)):
        assert soon(lambda: streams(loaded.daemon) == 1, 5)
        assert soon(lambda: child.is_busy, 5)
    assert soon(lambda: not child.is_busy, 1.5)
    assert soon(lambda: streams(loaded.daemon) == 0, 1.0)


@pytest.mark.slow
def test_a_client_that_leaves_a_whole_answer_keeps_the_model_until_it_is_done(loaded: Home) -> None:
    child = engine(loaded.daemon)
    with hung_up(loaded.daemon, chat(max_tokens=100, ignore_eos=True)):
        assert soon(lambda: child.is_busy, 5)
    while child.is_busy:
        busy_before, active = child.is_busy, streams(loaded.daemon)
        assert active == 1 or not (busy_before and child.is_busy)
    assert soon(lambda: streams(loaded.daemon) == 0, 2)
    assert engine(loaded.daemon).pid == child.pid


def test_clients_that_leave_while_the_model_loads_wrong_nobody(home: Home) -> None:
    unload(home.daemon)
    with (
        hung_up(home.daemon, chat(stream=True, **LONG)),
        hung_up(home.daemon, chat(max_tokens=1)),
        hung_up(home.daemon, chat(stream=True, **LONG)),
    ):
        assert soon(lambda: rows(home.daemon), 5)
        waiting = in_background(home.post)
    assert waiting.result(60).status == 200
    assert soon(lambda: streams(home.daemon) == 0)
    assert soon(lambda: not engine(home.daemon).is_busy)


def test_an_engine_that_dies_mid_stream_ends_it_with_an_error_and_is_started_anew(loaded: Home) -> None:
    for _ in range(2):
        child = engine(loaded.daemon)
        with flow(loaded.daemon) as opened:
            started(opened)
            os.kill(child.pid, signal.SIGKILL)
            *_, last = opened.frames()
        assert list(last) == ["error"]
        assert list(last["error"]) == ["code", "type", "message", "hint"]
        assert (last["error"]["code"], last["error"]["type"]) == ("engine_error", "upstream")
        assert MODEL in last["error"]["message"]
        reply = loaded.post()
        assert reply.status == 200, reply
        assert engine(loaded.daemon).pid != child.pid
    assert streams(loaded.daemon) == 0


def test_the_openai_client_raises_what_ends_a_stream(loaded: Home) -> None:
    with (
        loaded.client as client,
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Go on"}], max_tokens=3000, stream=True
        ) as stream,
    ):
        next(iter(stream))
        os.kill(engine(loaded.daemon).pid, signal.SIGKILL)
        with pytest.raises(openai.APIError, match="engine"):
            list(stream)


def test_an_engine_that_dies_before_a_whole_answer_is_502(loaded: Home) -> None:
    child = engine(loaded.daemon)
    asked = in_background(lambda: loaded.post(body=chat(**LONG)))
    assert soon(lambda: child.is_busy, 5)
    os.kill(child.pid, signal.SIGKILL)
    assert MODEL in refused(asked.result(30), 502, "engine_error")
    assert loaded.post().status == 200


def test_an_engine_that_died_while_idle_is_no_longer_listed_and_started_anew(loaded: Home) -> None:
    child = engine(loaded.daemon)
    os.kill(child.pid, signal.SIGKILL)
    assert soon(lambda: rows(loaded.daemon) == [], 5)
    assert loaded.post().status == 200
    assert engine(loaded.daemon).pid != child.pid


def test_an_engine_that_hangs_costs_no_other_route(loaded: Home) -> None:
    child = engine(loaded.daemon)
    os.kill(child.pid, signal.SIGSTOP)
    try:
        asked = in_background(loaded.post)
        assert soon(lambda: streams(loaded.daemon) == 1, 5)
        assert loaded.daemon.ask("GET", "/v1/models").status == 200
        assert not asked.done()
    finally:
        os.kill(child.pid, signal.SIGCONT)
    assert asked.result(30).status == 200


# Loading and unloading


def test_load_and_unload_over_http(home: Home) -> None:
    unload(home.daemon)
    assert rows(home.daemon) == []
    unload(home.daemon)  # what is not loaded is unloaded already
    first = load(home.daemon, MODEL.lower())
    assert set(first) == PS_KEYS
    assert (first["id"], first["state"]) == (MODEL, "ready")
    child = engine(home.daemon)
    again = load(home.daemon)
    assert again["loaded_at"] == first["loaded_at"]
    assert engine(home.daemon).pid == child.pid
    unload(home.daemon, f"HuggingFaceTB/{MODEL}")
    assert rows(home.daemon) == []
    assert not child.is_alive


def test_load_and_unload_on_the_command_line(home: Home) -> None:
    ended = home.cli("models", "load", MODEL, "--json")
    assert (ended.code, ended.err) == (0, "")
    (told,) = ended.events
    assert set(told) == PS_KEYS
    assert told["id"] == MODEL
    shown = home.cli("models", "load", MODEL)
    assert MODEL in shown.out
    ended = home.cli("models", "unload", MODEL, "--json")
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    assert rows(home.daemon) == []
    ended = home.cli("models", "unload", MODEL)
    assert (ended.code, ended.out) == (0, "")


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_an_unknown_model_is_404_and_3(home: Home, verb: str) -> None:
    reply = home.daemon.ask("POST", f"/v1/models/{verb}", {"model": "nobody"})
    assert refused(reply, 404, "model_not_found")
    ended = home.cli("models", verb, "nobody", "--json")
    assert (ended.code, ended.error) == (3, reply.error)
    strange = home.daemon.ask("POST", f"/v1/models/{verb}", {"model": MODEL, "colour": 1})
    assert "colour" in refused(strange, 400, "invalid_body")
    assert refused(home.daemon.ask("POST", f"/v1/models/{verb}"), 400, "invalid_body")


def test_one_engine_for_twenty_who_ask_at_once(home: Home) -> None:
    unload(home.daemon)
    with ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(home.post, body=chat(max_tokens=1)) for _ in range(20)]
        assert soon(lambda: children(home.daemon.process.pid))
        assert {each.result().status for each in asked} == {200}
    assert len(children(home.daemon.process.pid)) == 1
    assert streams(home.daemon) == 0


def test_unload_waits_for_a_stream_and_who_asks_meanwhile_gets_a_new_engine(loaded: Home) -> None:
    child = engine(loaded.daemon)
    with flow(loaded.daemon, chat(stream=True, max_tokens=60, ignore_eos=True)) as opened:
        started(opened)
        unloading = in_background(lambda: loaded.daemon.ask("POST", "/v1/models/unload", {"model": MODEL}))
        assert soon(lambda: row(loaded.daemon)["state"] == "draining", 5)
        asked = in_background(loaded.post)
        *_, last = opened.frames()
    assert "error" not in last
    assert unloading.result(30).status == 204
    assert asked.result(30).status == 200
    assert not child.is_alive


@pytest.mark.slow
def test_unload_by_force_waits_ten_seconds_and_no_longer(loaded: Home) -> None:
    with flow(loaded.daemon) as opened:
        started(opened)
        begun = time.monotonic()
        ended = loaded.cli("models", "unload", MODEL, "--force")
        took = time.monotonic() - begun
        *_, last = opened.frames()
    assert ended.code == 0
    assert 9 < took < 13
    assert "error" in last or last["choices"][0]["finish_reason"] == "length"
    assert rows(loaded.daemon) == []


@pytest.mark.parametrize("force", [False, True])
def test_unloading_what_is_being_loaded_leaves_nobody_without_an_answer(home: Home, *, force: bool) -> None:
    unload(home.daemon)
    asked = in_background(home.post)
    assert soon(lambda: [each for each in rows(home.daemon) if each["state"] == "starting"], 5)
    reply = home.daemon.ask("POST", "/v1/models/unload", {"model": MODEL, "force": force})
    assert reply.status == 204, reply
    answer = asked.result(60)
    assert answer.status in {200, 503}, answer
    assert answer.headers["content-type"].startswith("application/json")
    assert soon(lambda: len(children(home.daemon.process.pid)) == len(rows(home.daemon)), 5)


def test_loading_what_is_being_loaded_and_unloaded_is_answered(home: Home) -> None:
    unload(home.daemon)
    loading = in_background(lambda: home.daemon.ask("POST", "/v1/models/load", {"model": MODEL}))
    assert soon(lambda: rows(home.daemon), 5)
    unload(home.daemon)
    assert loading.result(60).status in {200, 503}
    assert soon(lambda: len(children(home.daemon.process.pid)) == len(rows(home.daemon)), 5)


def test_many_requests_leak_no_descriptors(loaded: Home) -> None:
    folder = Path(f"/proc/{loaded.daemon.process.pid}/fd")
    loaded.post(body=chat(max_tokens=1))
    before = len(list(folder.iterdir()))
    for _ in range(10):
        loaded.post(body=chat(max_tokens=1))
        loaded.post(body=chat(max_tokens=1, stream=True))
        with flow(loaded.daemon) as opened:
            started(opened)
    assert soon(lambda: len(list(folder.iterdir())) <= before + 2, 5)


# Removing


@pytest.fixture
def second(home: Home, real_model: Path) -> Iterator[str]:
    """Another model that may be removed, loaded."""
    hub, name = home.hub, "Second-Q4_1"
    hub.add_file("me/second-GGUF", f"{name}.gguf", real_model)
    ended = home.cli("models", "pull", "me/second-GGUF")
    assert ended.code == 0, ended
    load(home.daemon, name)
    yield name
    home.daemon.ask("DELETE", f"/v1/models/{name}?force=true")


def test_a_loaded_model_is_not_removed(home: Home, second: str) -> None:
    reply = home.daemon.ask("DELETE", f"/v1/models/{second}")
    assert refused(reply, 409, "in_use")
    ended = home.cli("models", "rm", second, "--json")
    assert (ended.code, ended.error["code"]) == (5, "in_use")
    alone = Program(home.cli.home, home.cli.environ | {"KAWAI_OFFLINE": "1"})
    assert alone("models", "pull", "me/second-GGUF", "--force").code != 0
    assert home.post(body=chat(model=second, max_tokens=1)).status == 200


@pytest.mark.parametrize("face", ["api", "cli"])
def test_force_removes_a_loaded_model(home: Home, second: str, face: str) -> None:
    if face == "api":
        assert home.daemon.ask("DELETE", f"/v1/models/{second}?force=true").status == 204
    else:
        assert home.cli("models", "rm", second, "--force").code == 0
    assert second not in {each["id"] for each in rows(home.daemon)}
    assert home.daemon.ask("GET", f"/v1/models/{second}").status == 404
    assert refused(home.post(body=chat(model=second)), 404, "model_not_found")
    assert not (home.daemon.home / "models/me/second-GGUF" / f"{second}.gguf").exists()


@pytest.mark.slow
def test_force_lets_a_short_stream_end_before_it_removes(home: Home, second: str) -> None:
    with flow(home.daemon, chat(model=second, stream=True, max_tokens=40, ignore_eos=True)) as opened:
        started(opened)
        removing = in_background(lambda: home.daemon.ask("DELETE", f"/v1/models/{second}?force=true"))
        *_, last = opened.frames()
    assert "error" not in last
    assert removing.result(30).status == 204


def test_what_is_unloaded_may_be_removed(home: Home, second: str) -> None:
    unload(home.daemon, second)
    assert home.daemon.ask("DELETE", f"/v1/models/{second}").status == 204


# The end of the server


def test_a_sigkilled_server_leaves_no_engine(other: Program) -> None:
    with serving(other) as daemon:
        with flow(daemon) as opened:
            started(opened)
            child = engine(daemon)
            daemon.process.kill()
            daemon.process.communicate(timeout=10)
        assert soon(lambda: not child.is_alive, 2.0)
    with serving(other) as daemon:  # and nothing that the next one stumbles over
        assert daemon.ask("POST", "/v1/chat/completions", chat(max_tokens=1)).status == 200


def test_a_server_killed_while_it_loads_leaves_no_engine(other: Program) -> None:
    with serving(other) as daemon, hung_up(daemon, chat()):
        assert soon(lambda: children(daemon.process.pid), 10)
        found = children(daemon.process.pid)
        daemon.process.kill()
        daemon.process.communicate(timeout=10)
        assert soon(lambda: not [each for each in found if each.is_alive], 2.0)


@pytest.mark.slow
def test_sigterm_lets_a_stream_come_to_its_end(other: Program) -> None:
    with serving(other) as daemon:
        with flow(daemon, chat(stream=True, max_tokens=40, ignore_eos=True)) as opened:
            started(opened)
            child = engine(daemon)
            daemon.process.send_signal(signal.SIGTERM)
            frames = list(opened.frames())
        assert [each["choices"][0]["finish_reason"] for each in frames if each.get("choices")][-1] == "length"
        assert daemon.stop() == 0
        assert not child.is_alive
    assert not Path(child.environ["KAWAI_SOCKET"]).exists()


@pytest.mark.slow
def test_sigterm_lets_a_whole_answer_come_to_its_end(other: Program) -> None:
    with serving(other) as daemon:
        load(daemon)
        child = engine(daemon)
        body = chat(max_tokens=40, ignore_eos=True)
        asked = in_background(lambda: daemon.ask("POST", "/v1/chat/completions", body))
        assert soon(lambda: child.is_busy, 5)
        daemon.process.send_signal(signal.SIGTERM)
        answer = asked.result(60)
        assert answer.status == 200
        assert answer.json["usage"]["completion_tokens"] == 40
        assert daemon.stop() == 0


def test_sigterm_while_a_model_loads_answers_and_ends(other: Program) -> None:
    with serving(other) as daemon:
        asked = in_background(lambda: daemon.ask("POST", "/v1/chat/completions", chat()))
        assert soon(lambda: children(daemon.process.pid), 10)
        (child,) = children(daemon.process.pid)
        daemon.process.send_signal(signal.SIGTERM)
        answer = asked.result(30)
        assert answer.status in {200, 503}, answer
        assert answer.headers["content-type"].startswith("application/json")
        assert daemon.stop() == 0
        assert not child.is_alive
    assert "Traceback" not in logs_of(other)


# Who may


@pytest.mark.slow
def test_access_levels(other: Program) -> None:
    with serving(other, "--auth") as daemon:
        tokens = {
            role: other("tokens", "create", "--name", role, *args, "--json").events[0]["token"]
            for role, args in (("user", ()), ("admin", ("--admin",)))
        }
        headers: dict[str, dict[str, str]] = {
            role: {"Authorization": f"Bearer {token}"} for role, token in tokens.items()
        }
        for path in ROUTES:
            body = body_for(path, model="nobody")
            assert refused(daemon.ask("POST", path, body), 401, "token_required")
            assert daemon.ask("POST", path, body, {"Authorization": "Bearer none"}).status == 401
            assert daemon.ask("POST", path, body, headers["user"]).status == 404
            assert daemon.ask("POST", path, body, headers["admin"]).status == 404
        assert daemon.ask("POST", "/v1/chat/completions", chat(), headers["user"]).status == 200
        assert rows(daemon)[0]["id"] == MODEL
        for verb in ("load", "unload"):
            asked = f"/v1/models/{verb}"
            assert daemon.ask("POST", asked, {"model": MODEL}).status == 401
            assert daemon.ask("POST", asked, {"model": MODEL}, headers["user"]).status == 403
            assert daemon.ask("POST", asked, {"model": MODEL}, headers["admin"]).status in {200, 204}
        assert other("models", "load", MODEL).code == 0  # the local key


def test_secrets_and_prompts_stay_where_they_are(loaded: Home) -> None:
    assert loaded.post(body=chat(SECRET_PROMPT, max_tokens=1)).status == 200
    assert loaded.post(body=chat(SECRET_PROMPT, model=BROKEN)).status == 502
    child = engine(loaded.daemon)
    keys = [child.environ["LLAMA_API_KEY"], loaded.daemon.announced.key, *SECRETS.values()]
    assert len(keys[0]) >= 32
    for key in keys:
        assert key not in child.command
        assert key not in logs_of(loaded.cli)
    environ = "".join(child.environ.values())
    assert not [each for each in keys[1:] if each in environ]
    assert not [name for name in child.environ if name.startswith(("HF_", "GITHUB", "LLAMA_ARG"))]
    assert SECRET_PROMPT not in logs_of(loaded.cli) + child.command + environ


def test_each_start_has_a_key_of_its_own_and_only_it_opens_the_engine(loaded: Home) -> None:
    child = engine(loaded.daemon)
    where = Path(child.environ["KAWAI_SOCKET"])
    assert where.parent.stat().st_mode & 0o777 == 0o700
    with contextlib.closing(Unix(str(where))) as connection:
        connection.request("GET", "/slots")
        assert connection.getresponse().status == 401
    unload(loaded.daemon)
    assert not where.exists()
    load(loaded.daemon)
    assert engine(loaded.daemon).environ["LLAMA_API_KEY"] != child.environ["LLAMA_API_KEY"]


# With an installed build


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, real_model: Path) -> Iterator[Daemon]:
    """A daemon that has an installed build as its engine."""
    root = tmp_path_factory.mktemp("built")
    here = host_platform()
    with LocalHub(root / "hub") as hub:
        cli = stocked(root, hub, real_model, LLAMA_ARG_PORT="1", LLAMA_ARG_MODEL="/nowhere")
        hub.add_release("b7", {asset_name("b7", here): launcher_bundle("b7", directory=root)})
        ended = cli("libs", "pull", "b7")
        assert ended.code == 0, ended
        with serving(cli) as daemon:
            yield daemon
        assert "Traceback" not in logs_of(cli)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler to make a build with")
def test_an_installed_build_answers(built: Daemon) -> None:
    reply = built.ask("POST", "/v1/chat/completions", chat(model=MODEL.lower()))
    assert reply.status == 200, reply
    assert reply.json["model"] == MODEL
    with flow(built, chat(stream=True)) as opened:
        frames = list(opened.frames())
    assert {each["model"] for each in frames} == {MODEL}
    assert row(built)["engine"] == "llama-server"
    child = engine(built)
    assert child.environ["LLAMA_API_KEY"] not in child.command
    assert not [name for name in child.environ if name.startswith("LLAMA_ARG")]
    ended = built.program("libs", "rm", "b7", "--json")
    assert (ended.code, ended.error["type"]) == (5, "conflict")
    with flow(built) as opened:
        started(opened)
        os.kill(child.pid, signal.SIGKILL)
        *_, last = opened.frames()
    assert last["error"]["code"] == "engine_error"
    assert built.ask("POST", "/v1/chat/completions", chat()).status == 200
