"""Updates beside each other, beside crashes, and beside a hub that means harm: no model is half of each."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from subprocess import Popen

import pytest

from kawai_tools.errors import Busy
from kawai_tools.events import FINAL, ModelPullEvent, Status
from kawai_tools.models.claims import Use
from kawai_tools.operations.updates import MODELS_UPDATE, UpdateRequest
from kawai_tools.refs import parse_model
from kawai_tools.transfer.series import Series
from tests.hub import Fault, LocalHub
from tests.hub.exchange import Exchange
from tests.hub.messages import Answer
from tests.inference import soon
from tests.program import Daemon, Program, serving
from tests.samples import tiny_gguf
from tests.test_faults import final_files, sha256
from tests.test_updates import ends, outdated, update
from tests.workspaces import Workspaces, pull

HALF = """
import os, signal, sys
from pathlib import Path
from kawai_tools.models import installing
from tests.test_updates import update
from tests.workspaces import Workspaces
real, count = installing.move_into_place, 0
def move(source, target):
    global count
    count += 1
    if count == 2:
        print("half", flush=True)
        sys.stdin.readline()
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
installing.move_into_place = move
update(Workspaces(Path(sys.argv[1]), sys.argv[2])())
"""
"""Updates, and stands still when one of two shards has its name; a line kills it."""


def shards(hub: LocalHub, word: str) -> dict[str, str]:
    """Put both shards of one version there; their digests by their paths in the store."""
    made = {}
    for number in range(2):
        name = f"s-0000{number + 1}-of-00002.gguf"
        data = tiny_gguf(split=(number, 2), extra={"padding": word})
        hub.add_file("o/r", name, data)
        made[f"o/r/{name}"] = sha256(data)
    return made


def test_whoever_waits_for_an_update_that_is_killed_half_way_finishes_it_first(
    hub: LocalHub, workspaces: Workspaces
) -> None:
    old = shards(hub, "old")
    pull(workspaces(), "o/r")
    new = shards(hub, "new")
    command = [sys.executable, "-c", HALF, str(workspaces.home), hub.endpoint]
    with Popen(
        command, stdin=-1, stdout=-1, text=True, env=os.environ | {"PYTHONPATH": str(Path.cwd())}
    ) as other:
        assert other.stdout
        assert other.stdin
        assert other.stdout.readline() == "half\n"
        assert final_files(workspaces.home / "models") not in (old, new)
        loading = Use(workspaces().layout, "o/r/s", "s")
        assert not loading.try_acquire()
        feed = MODELS_UPDATE.run(workspaces(), UpdateRequest())
        assert isinstance(feed, Series)
        events = feed.follow()
        waiting = next(event for event in events if event is not None and event.status is Status.WAITING)
        assert isinstance(waiting, ModelPullEvent)
        hub.misbehave(Fault.status(404, path="gguf"))
        other.stdin.write("\n")
        other.stdin.flush()
        last = [event for event in events if event is not None][-1]
    assert other.returncode == -signal.SIGKILL
    assert last.status is Status.EXISTS
    assert final_files(workspaces.home / "models") == new
    assert workspaces().models.rows()[0].validated
    assert loading.try_acquire()
    loading.release()


def test_a_projection_that_another_update_has_replaced_meanwhile_is_known_as_it_is(
    hub: LocalHub, workspaces: Workspaces
) -> None:
    for name in ("a", "b"):
        hub.add_file("o/r", f"{name}-Q8_0.gguf", tiny_gguf(name=name))
    hub.add_file("o/r", "mmproj-F16.gguf", tiny_gguf(projection=True))
    for name in ("a", "b"):
        pull(workspaces(), hub.url("o/r", f"{name}-Q8_0.gguf"), hub.url("o/r", "mmproj-F16.gguf"))
    weights = tiny_gguf(name="b anew", extra={"padding": "x" * 500_000})
    hub.add_file("o/r", "b-Q8_0.gguf", weights)
    hub.throttle = 500_000
    feed = MODELS_UPDATE.run(workspaces(), UpdateRequest(models=["b-Q8_0"]))
    assert isinstance(feed, Series)
    events = feed.follow()
    assert any(event.status is Status.DOWNLOADING for event in events if event is not None)
    projection = tiny_gguf(projection=True, extra={"padding": "new"})
    hub.add_file("o/r", "mmproj-F16.gguf", projection)
    hub.throttle = None
    assert ends(update(workspaces(), "a-Q8_0")) == {"a-Q8_0": (Status.DOWNLOADED, None)}
    assert [event.status for event in events if event is not None][-1] is Status.DOWNLOADED
    for name in ("a-Q8_0", "b-Q8_0"):
        files = workspaces().models.show(parse_model(name)).files
        assert [file.sha256 for file in files if file.role == "projection"] == [sha256(projection)], name
    workspaces().models.reindex()
    assert [row.id for row in workspaces().models.rows()] == ["a-Q8_0", "b-Q8_0"]
    assert not any(row.changed for row in outdated(workspaces()).values())


def test_a_projection_that_a_pinned_model_has_too_is_left_alone(
    hub: LocalHub, workspaces: Workspaces
) -> None:
    for name in ("a", "b"):
        hub.add_file("o/r", f"{name}-Q8_0.gguf", tiny_gguf(name=name))
    commit = hub.add_file("o/r", "mmproj-F16.gguf", tiny_gguf(projection=True))
    for name, revision in (("a", "main"), ("b", commit)):
        urls = [hub.url("o/r", file, revision) for file in (f"{name}-Q8_0.gguf", "mmproj-F16.gguf")]
        pull(workspaces(), *urls)
    before = final_files(workspaces.home / "models")
    hub.add_file("o/r", "mmproj-F16.gguf", tiny_gguf(projection=True, extra={"padding": "new"}))
    assert ends(update(workspaces())) == {
        "a-Q8_0": (Status.FAILED, "different_version"),
        "b-Q8_0": (Status.EXISTS, None),
    }
    assert final_files(workspaces.home / "models") == before


def test_each_model_has_an_end_where_the_server_closes(hub: LocalHub, workspaces: Workspaces) -> None:
    for name in "abc":
        hub.add_file(f"o/{name}", f"{name}.gguf", tiny_gguf(name=name))
        pull(workspaces(), f"o/{name}")
        hub.add_file(f"o/{name}", f"{name}.gguf", tiny_gguf(name=f"{name} anew", extra={"x": "x" * 500_000}))
    hub.throttle = 100_000
    workspace = workspaces()
    feed = MODELS_UPDATE.run(workspace, UpdateRequest())
    assert isinstance(feed, Series)
    ended: list[tuple[str, Status, str | None]] = []
    for event in feed.follow():
        assert isinstance(event, ModelPullEvent)
        if event.status is Status.DOWNLOADING and not ended:
            threading.Thread(target=workspace.pulls.close, args=(10,)).start()
        if event.status in FINAL:
            ended.append((event.id, event.status, event.error.code if event.error else None))
    assert ended == [
        ("a", Status.CANCELLED, None),
        ("b", Status.FAILED, "server_closing"),
        ("c", Status.FAILED, "server_closing"),
    ]


# a hub that means harm


@pytest.mark.parametrize("size", ["1" + "0" * 400, "9223372036854775808", "-1"])
def test_a_size_that_no_file_can_have_is_said_of_one_model(
    size: str, hub: LocalHub, cli: Program, workspaces: Workspaces
) -> None:
    for name in "ab":
        hub.add_file(f"o/{name}", f"{name}.gguf", tiny_gguf(name=name))
        pull(workspaces(), f"o/{name}")
    body = f'{{"sha": "{"a" * 40}", "siblings": [{{"rfilename": "a.gguf", "size": {size}}}]}}'
    hub.misbehave(Fault.status(200, body=body, path="/api/models/o/a/"))
    told = cli("models", "outdated", "--json")
    assert told.code == 0
    assert {row["id"]: row["error"] and row["error"]["code"] for row in json.loads(told.out)} == {
        "a": "bad_response",
        "b": None,
    }
    assert cli("models", "update", "--all", "--dry-run").code == 6


def test_what_is_kept_of_an_answer_is_what_was_asked_for(hub: LocalHub, workspaces: Workspaces) -> None:
    hub.add_file("o/r", "m.gguf", tiny_gguf())
    for number in range(300):
        hub.add_file("o/r", f"other-{number}.gguf", b"x")
    pull(workspaces(), hub.url("o/r", "m.gguf"))
    assert not outdated(workspaces())["m"].changed
    assert workspaces().layout.revisions.stat().st_size < 1000
    hub.add_file("o/r", "n.gguf", tiny_gguf(name="n"))
    pull(workspaces(), hub.url("o/r", "n.gguf"))
    assert {name: row.error for name, row in outdated(workspaces()).items()} == {"m": None, "n": None}


def test_few_ask_at_a_time(hub: LocalHub, workspaces: Workspaces) -> None:
    hub.add_file("o/r", "m.gguf", tiny_gguf())
    here = workspaces()
    pull(here, "o/r")
    with here.comparing.one(), here.comparing.one(), pytest.raises(Busy):
        outdated(here)
    assert not outdated(here)["m"].changed


@pytest.mark.parametrize("command", [["models", "outdated"], ["models", "update", "--all"]])
def test_ctrl_c_is_heard_while_the_hub_is_silent(
    command: list[str], hub: LocalHub, cli: Program, workspaces: Workspaces
) -> None:
    hub.add_file("o/r", "m.gguf", tiny_gguf())
    pull(workspaces(), "o/r")
    hub.clear_requests()
    arrived = threading.Event()

    def late(ex: Exchange) -> Answer:
        arrived.set()
        return ex.respond(ex.call).delivered(delay=30)

    hub.misbehave(Fault("late", late, path="/api/"))
    process = cli.start(*command)
    assert arrived.wait(20)
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    process.communicate(timeout=20)
    assert (process.returncode, time.monotonic() - begin < 4) == (130, True)


def test_an_update_that_somebody_cancels_is_interrupted(hub: LocalHub, cli: Program) -> None:
    hub.add_file("o/r", "m.gguf", tiny_gguf())
    assert cli("models", "pull", "o/r").code == 0
    hub.add_file("o/r", "m.gguf", tiny_gguf(extra={"x": "x" * 500_000}))
    hub.throttle = 50_000
    with serving(cli) as daemon:
        far = Program(cli.home / "far", {"KAWAI_SERVER": daemon.url})
        process = far.start("models", "update", "m")
        assert soon(lambda: _pulls(daemon))
        (running,) = _pulls(daemon)
        assert daemon.ask("DELETE", f"/v1/pulls/{running}").status == 204
        _, said = process.communicate(timeout=20)
        assert process.returncode == 130
        assert "m was cancelled" in said


def _pulls(daemon: Daemon) -> list[str]:
    return [row["pull"] for row in daemon.ask("GET", "/v1/pulls").json]


def test_nothing_to_update_elsewhere_is_no_failure(cli: Program) -> None:
    with serving(cli) as daemon:
        ended = cli("models", "update", "--all", KAWAI_SERVER=daemon.url)
        assert cli("models", "verify", KAWAI_SERVER=daemon.url).code == 0
    assert (ended.code, ended.out) == (0, "")
    assert "no installed model came from a hub" in ended.err
