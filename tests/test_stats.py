"""``GET /v1/stats``: what is counted, into which ten seconds, and what becomes of it when clocks jump."""

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kawai_tools.api import stats as stats_module
from kawai_tools.api.clocks import passing
from kawai_tools.api.history import MOST, STEP, History, StatsStep
from kawai_tools.runners import process as process_module
from kawai_tools.runners.engines import Launch, Wanted
from tests.inference import soon
from tests.test_runners_attacks import CHUNKED, WHOLE, Parrot, Served, served
from tests.workspaces import Workspaces

Json = dict[str, Any]
YEARS = 10 * 365 * 86_400.0
BEGAN = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)


class Clocks:
    """Both clocks, which go when they are told to."""

    def __init__(self) -> None:
        self.now, self.ahead = 5000.0, BEGAN.timestamp() + 0.9 - 5000.0

    def clock(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now + self.ahead

    def history(self) -> History:
        return History(self.clock, self.wall)


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def counts(history: History, name: str) -> list[Any]:
    return [getattr(each, name) for each in history.told()]


def in_order(told: list[StatsStep]) -> bool:
    """Whether each step begins where the one before ends."""
    return all(later.time - earlier.time == timedelta(seconds=STEP) for earlier, later in pairwise(told))


def test_the_clock_goes_on_while_the_machine_sleeps() -> None:
    if sys.platform != "linux":
        pytest.skip("/proc/uptime is Linux's")
    (uptime, _) = Path("/proc/uptime").read_text().split()
    assert abs(passing() - float(uptime)) < 5


# Steps


def test_what_is_counted_is_of_the_step_in_which_it_happens(clocks: Clocks) -> None:
    history = clocks.history()
    history.ended()
    clocks.now += 9.99
    history.ended()
    clocks.now += 0.01
    history.ended()
    clocks.now += 35
    assert counts(history, "requests") == [2, 1, 0, 0, 0]
    assert [each.time for each in history.told()] == [BEGAN + timedelta(seconds=10 * n) for n in range(5)]


def test_what_begins_is_averaged_over_what_began(clocks: Clocks) -> None:
    history = clocks.history()
    history.begun(0.1)
    history.begun(0.2004)
    clocks.now += 10
    history.ended()
    clocks.now += 10
    history.begun(0)
    assert counts(history, "ttft_ms") == [150, None, 0]


def test_memory_is_that_of_the_end_of_a_step_and_stays_until_it_changes(clocks: Clocks) -> None:
    history = clocks.history()
    history.changed(100, 1, 0)
    history.changed(300, 2, 1)
    clocks.now += 30
    history.changed(200, 2, 3)
    assert counts(history, "memory") == [300, 300, 300, 200]
    assert counts(history, "loads") == [2, 0, 0, 0]
    assert counts(history, "evictions") == [1, 0, 0, 2]


def test_an_hour_is_kept(clocks: Clocks) -> None:
    history = clocks.history()
    for number in range(2 * MOST):
        history.made(number)
        clocks.now += STEP
    told = history.told()
    assert [each.tokens for each in told] == [*range(MOST + 1, 2 * MOST), 0]
    assert told[-1].time == BEGAN + timedelta(seconds=STEP * 2 * MOST)
    assert in_order(told)


def test_what_was_counted_too_much_is_taken_back_and_no_step_has_fewer_than_none(clocks: Clocks) -> None:
    history = clocks.history()
    history.made(7)
    clocks.now += 20
    history.made(2)
    history.made(-5)
    assert counts(history, "tokens") == [4, 0, 0]
    history.made(3)
    history.made(-1)
    assert counts(history, "tokens") == [4, 0, 2]
    history.made(-100)  # more than there was: it has left with the hour
    assert counts(history, "tokens") == [0, 0, 0]


# Clocks that jump


def test_a_step_has_the_same_time_whenever_it_is_asked_for(clocks: Clocks) -> None:
    history = clocks.history()
    for _ in range(200):
        clocks.now += 0.37
        clocks.ahead += 0.001  # as a clock that is being corrected
        assert history.told()[0].time == BEGAN


@pytest.mark.parametrize("jump", [YEARS, -YEARS, 3600.0, -3600.0])
def test_a_clock_that_is_set_moves_all_steps_and_keeps_their_order(clocks: Clocks, jump: float) -> None:
    history = clocks.history()
    for _ in range(5):
        history.made(1)
        clocks.now += STEP
    clocks.ahead += jump
    told = history.told()
    assert [each.tokens for each in told] == [1, 1, 1, 1, 1, 0]
    assert in_order(told)
    assert told[0].time == BEGAN + timedelta(seconds=jump)


def test_ten_years_of_silence_are_an_hour_of_nothing(clocks: Clocks) -> None:
    history = clocks.history()
    history.changed(70, 1, 0)
    history.made(1)
    clocks.now += YEARS
    history.made(1)
    told = history.told()
    assert [each.tokens for each in told] == [0] * (MOST - 1) + [1]
    assert {each.memory for each in told} == {70}
    assert in_order(told)
    clocks.now -= YEARS  # no clock of this kind does
    history.made(1)
    assert in_order(history.told())
    assert counts(history, "tokens")[-1] == 2


def test_no_time_makes_more_steps_than_are_kept(clocks: Clocks) -> None:
    history = clocks.history()
    clocks.now += 1e15  # as many steps as could never be made
    clocks.ahead -= 1e15
    assert len(history.told()) == MOST


# The server


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Workspaces(tmp_path_factory.mktemp("s") / "kawai", "http://127.0.0.1:9")
    with pytest.MonkeyPatch.context() as patch, contextlib.closing(made):
        patch.setattr(process_module, "_GLANCE", 0.2)
        with served(made, Parrot(IDLE="1")) as up:
            yield up


def stats(up: Served) -> Json:
    reply = up.ask("GET", "/v1/stats")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    found: Json = reply.json
    assert all(each["time"].endswith("Z") and len(each["time"]) == 20 for each in found["history"])
    return found


def total(up: Served, name: str) -> int:
    found = [each[name] for each in stats(up)["history"]]
    assert min(found) >= 0
    return sum(found)


def counted(up: Served, name: str, **labels: str) -> float:
    """What the metrics say, over all models."""
    text = up.ask("GET", "/metrics").body.decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def made(up: Served) -> int:
    """Tokens by the history, which the metrics agree with."""
    tokens = total(up, "tokens")
    assert tokens == counted(up, "kawai_tokens_total", kind="completion")
    return tokens


def chunk(text: str) -> str:
    return f"{len(text):x}\r\n{text}\r\n"


def frames(count: int, last: str = "") -> list[str | float]:
    """A streamed answer of an engine, a frame a piece, with pauses so that they come one by one."""
    words = ['data: {"choices":[{"delta":{"content":"a"}}]}\n\n'] * count
    pieces = [part for each in words for part in (chunk(each), 0.01)]
    return [CHUNKED, *pieces, chunk(last) if last else "", "0\r\n\r\n"]


def whole(body: str, status: str = "200 OK") -> str:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head + body


TOLD = 'data: {"timings":{"prompt_n":3,"predicted_n":4}}\n\ndata: [DONE]\n\n'


def test_all_of_it_is_told(workspaces: Workspaces) -> None:
    with served(workspaces, memory_budget=1 << 30) as up:
        found = stats(up)
        assert list(found) == ["memory_used", "memory_budget", "draining", "models", "history"]
        (step,) = found.pop("history")
        assert found == {"memory_used": 0, "memory_budget": 1 << 30, "draining": False, "models": []}
        keys = ("requests", "ttft_ms", "tokens", "memory", "loads", "evictions")
        assert list(step) == ["time", *keys]
        assert [step[key] for key in keys] == [0, None, 0, 0, 0, 0]
        assert abs(datetime.fromisoformat(step["time"]) - datetime.now(UTC)) < timedelta(seconds=30)
        assert up.ask("GET", "/v1/stats?steps=1").status == up.ask("GET", "/metrics?steps=1").status == 200
        assert up.ask("POST", "/v1/stats", {}).status == 405


def test_only_requests_to_installed_models_are_counted(talker: Served) -> None:
    before = total(talker, "requests")
    for path in ("/healthz", "/metrics", "/v1/stats", "/v1/models", "/nowhere"):
        talker.ask("GET", path)
    assert talker.ask("POST", "/v1/chat/completions", {"model": "nope"}).status == 404
    assert talker.ask("POST", "/v1/chat/completions", b"{").status == 400
    assert total(talker, "requests") == before
    assert talker.hear(WHOLE).status == 200
    assert talker.hear("garbage\r\n\r\n").status == 502
    assert talker.hear(whole('{"error":{"message":"no"}}', "400 Bad Request")).status == 400
    assert talker.hear(*frames(2), stream=True).status == 200
    assert soon(lambda: total(talker, "requests") == before + 4)


@pytest.mark.parametrize(
    ("say", "stream", "tokens"),
    [
        (frames(9, TOLD), True, 4),
        (frames(1, TOLD), True, 4),
        (frames(5), True, 5),
        ([CHUNKED, chunk("data: {}\n\n"), chunk("data: {}\n\n")], True, 2),
        ([whole('{"usage":{"prompt_tokens":2,"completion_tokens":6}}')], False, 6),
        ([whole("{}")], False, 0),
        ([whole('{"error":{"message":"no"}}', "400 Bad Request")], True, 0),
        ([whole('{"error":{"message":"no"}}', "500 Oh")], True, 0),
    ],
    ids=["fewer", "more", "as they came", "broken off", "whole", "whole, untold", "refused", "failed"],
)
def test_tokens_are_those_that_the_metrics_count(
    talker: Served, say: list[str | float], tokens: int, *, stream: bool
) -> None:
    before, requests = made(talker), total(talker, "requests")
    talker.hear(*say, stream=stream)
    assert soon(lambda: total(talker, "requests") == requests + 1)
    assert made(talker) - before == tokens


def test_tokens_are_counted_as_they_pass_and_a_client_that_leaves_has_had_its_own(talker: Served) -> None:
    before, requests = made(talker), total(talker, "requests")
    say = [CHUNKED, chunk("data: a\n\n"), 0.05, chunk("data: b\n\n"), 20.0]
    with contextlib.closing(talker.connect()) as connection:
        body = json.dumps({"model": "a", "stream": True, "say": say})
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        assert connection.getresponse().status == 200
        assert soon(lambda: total(talker, "tokens") == before + 2)
        assert total(talker, "requests") == requests
    assert soon(lambda: total(talker, "requests") == requests + 1)
    assert made(talker) == before + 2


def test_the_time_to_the_first_piece_is_that_of_streams(workspaces: Workspaces) -> None:
    with served(workspaces) as up:
        up.ask("POST", "/v1/models/load", {"model": "a"})
        up.hear(0.3, WHOLE)
        up.hear(0.3, whole('{"error":{"message":"no"}}', "400 Bad Request"), stream=True)
        assert {each["ttft_ms"] for each in stats(up)["history"]} == {None}
        up.hear(0.3, *frames(2), 0.5, stream=True)
        (found,) = {each["ttft_ms"] for each in stats(up)["history"]} - {None}
        assert 300 <= found < 800


def test_loaded_models_have_their_slots_told_and_failed_ones_are_none(
    workspaces: Workspaces, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with served(workspaces) as up:
        assert up.ask("POST", "/v1/models/load", {"model": "b"}).status == 200
        slots = stats(up)["models"][0]["slots"]
        assert slots >= 1
        with contextlib.closing(up.connect()) as connection:
            body = json.dumps({"model": "a", "stream": True, "say": [CHUNKED, chunk("data: a\n\n"), 20.0]})
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            assert connection.getresponse().status == 200
            found = stats(up)
            assert found["models"] == [
                {"id": "a", "slots": slots, "free_slots": slots - 1},
                {"id": "b", "slots": slots, "free_slots": slots},
            ]
            assert found["memory_used"] == found["history"][-1]["memory"] > 0
    home = tmp_path_factory.mktemp("f") / "kawai"
    others = Workspaces(home, workspaces.hub_endpoint)
    with contextlib.closing(others), served(others, Dead()) as up:
        assert up.ask("POST", "/v1/models/load", {"model": "a"}).status == 502
        assert [each["state"] for each in up.ask("GET", "/v1/models/ps").json] == ["failed"]
        assert stats(up)["models"] == []


class Dead(Parrot):
    """An engine that ends at once."""

    def launch(self, wanted: Wanted, socket: Path, key: str) -> Launch:
        return replace(super().launch(wanted, socket, key), command=("false",))


def test_what_the_pool_does_is_known_without_being_asked_for(
    workspaces: Workspaces, clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats_module, "History", clocks.history)
    with served(workspaces, max_models=1) as up:
        assert up.hear(WHOLE).status == 200
        assert soon(lambda: counted(up, "kawai_http_requests_total", method="POST"))  # its end was noted
        clocks.now += 20
        assert up.ask("POST", "/v1/models/load", {"model": "b"}).status == 200
        clocks.now += 10
        assert up.ask("POST", "/v1/models/unload", {"model": "b"}).status == 204
        clocks.now += 10
        found = stats(up)["history"]
        assert [each["loads"] for each in found] == [1, 0, 1, 0, 0]
        assert [each["evictions"] for each in found] == [0, 0, 1, 0, 0]
        memory = [each["memory"] for each in found]
        assert memory[0] == memory[1] > 0
        assert memory[2] > 0
        assert memory[3:] == [0, 0]
        assert [each["requests"] for each in found] == [1, 0, 0, 0, 0]


def test_a_clock_that_jumps_hurts_no_server(
    workspaces: Workspaces, clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats_module, "History", clocks.history)
    with served(workspaces) as up:
        for now, ahead in ((YEARS, 0.0), (0.0, YEARS), (0.0, -2 * YEARS), (5.0, YEARS)):
            up.hear(*frames(2), stream=True)
            clocks.now += now
            clocks.ahead += ahead
            times = [datetime.fromisoformat(each["time"]) for each in stats(up)["history"]]
            assert len(times) == MOST
            assert {later - earlier for earlier, later in pairwise(times)} == {timedelta(seconds=STEP)}
        assert total(up, "tokens") == 6  # two have left with the hour


def test_a_server_that_ends_says_so(workspaces: Workspaces) -> None:
    with (
        served(workspaces) as up,
        contextlib.closing(up.connect()) as stream,
        contextlib.closing(up.connect()) as page,
    ):
        body = json.dumps({"model": "a", "stream": True, "say": [CHUNKED, chunk("data: a\n\n"), 2.0, *END]})
        stream.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        assert stream.getresponse().status == 200

        def is_draining() -> bool:
            page.request("GET", "/v1/stats")
            found: bool = json.loads(page.getresponse().read())["draining"]
            return found

        assert not is_draining()
        up.server.stop()
        assert soon(is_draining)


END = [chunk("data: b\n\n"), "0\r\n\r\n"]
