"""Outdated and update: a hub whose revisions move, models that stay usable until the new one is proven."""

import contextlib
import json
import random
import shutil
import signal
import struct
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from kawai_tools.contract import NoRequest
from kawai_tools.events import ModelPullEvent, Status
from kawai_tools.libs.probing import MODEL as PROBE
from kawai_tools.models.claims import Use
from kawai_tools.models.upstream import OutdatedRow
from kawai_tools.operations.updates import MODELS_OUTDATED, MODELS_UPDATE, UpdateRequest
from kawai_tools.refs import parse_model
from kawai_tools.transfer.series import Series
from kawai_tools.workspace import Workspace
from tests.hub import Fault, LocalHub
from tests.inference import soon
from tests.program import Daemon, Program, serving
from tests.samples import entry, tiny_gguf
from tests.test_faults import big_gguf, final_files, kill_after, run, sha256, store_of
from tests.test_remote import Relay
from tests.workspaces import Workspaces, pull

MIB = 1 << 20


def outdated(workspace: Workspace) -> dict[str, OutdatedRow]:
    found = MODELS_OUTDATED.run(workspace, NoRequest())
    assert isinstance(found, list)
    return {row.id: row for row in found}


def update(workspace: Workspace, *models: str) -> list[ModelPullEvent]:
    """Update to the end; every event."""
    feed = MODELS_UPDATE.run(workspace, UpdateRequest(models=list(models) or None))
    assert isinstance(feed, Series)
    return [event for event in feed.follow() if isinstance(event, ModelPullEvent)]


def ends(events: list[ModelPullEvent]) -> dict[str, tuple[Status, str | None]]:
    final = {Status.DOWNLOADED, Status.EXISTS, Status.FAILED, Status.CANCELLED}
    return {
        event.id: (event.status, event.error.code if event.error else None)
        for event in events
        if event.status in final
    }


def asked(hub: LocalHub) -> list[tuple[str, int]]:
    """What the hub was asked of its API, and what it answered."""
    return [(each.path, each.status) for each in hub.requests if each.path.startswith("/api/")]


@pytest.fixture
def moved(hub: LocalHub, workspaces: Workspaces) -> Workspace:
    """A home with one model of each kind, after their repositories have moved."""
    workspace = workspaces()
    hub.add_file("o/two", "two-Q8_0.gguf", tiny_gguf(name="8"))
    first = hub.add_file("o/two", "two-Q4_0.gguf", tiny_gguf(name="4"))
    hub.add_file("o/still", "still.gguf", tiny_gguf(name="still"))
    hub.add_file("o/gone", "gone.gguf", tiny_gguf(name="gone"))
    hub.add_file("o/pinned", "pinned.gguf", tiny_gguf(name="pinned"))
    commit = hub.add_file("o/pinned", "README.md", b"1")
    hub.add_file("o/renamed", "renamed.gguf", tiny_gguf(name="renamed"))
    for number in range(2):
        hub.add_file("o/shards", f"s-0000{number + 1}-of-00002.gguf", tiny_gguf(split=(number, 2)))
    for source in ("o/two:Q8_0", "o/two:Q4_0", "o/still", "o/gone", "o/renamed", "o/shards"):
        pull(workspace, source)
    pull(workspace, hub.url("o/pinned", "pinned.gguf", commit))
    pull(workspace, hub.add_plain("files/plain.gguf", tiny_gguf(name="plain")))
    assert first
    hub.add_file("o/two", "two-Q8_0.gguf", tiny_gguf(name="8 anew"))
    hub.add_file("o/still", "README.md", b"a new commit, the same model")
    hub.make_private("o/gone")
    hub.add_file("o/pinned", "pinned.gguf", tiny_gguf(name="pinned anew"))
    hub.remove_file("o/renamed", "renamed.gguf")
    hub.add_file("o/shards", "s-00002-of-00002.gguf", tiny_gguf(split=(1, 2), extra={"padding": "x" * 100}))
    hub.clear_requests()
    return workspace


# outdated


def test_outdated_tells_of_each_model_from_a_hub_with_one_question_a_repository(
    hub: LocalHub, moved: Workspace
) -> None:
    found = outdated(moved)
    assert {name: row.changed for name, row in found.items()} == {
        "two-Q8_0": True,
        "two-Q4_0": False,
        "still": False,
        "gone": False,
        "pinned": False,
        "renamed": False,
        "s": True,
    }
    new = tiny_gguf(name="8 anew")
    row = found["two-Q8_0"]
    assert row.available is not None
    assert row.installed.sha256 == sha256(tiny_gguf(name="8"))
    assert (row.available.sha256, row.available.size) == (sha256(new), len(new))
    assert row.installed.commit != row.available.commit
    assert found["two-Q4_0"].available is not None
    assert found["two-Q4_0"].available.commit == row.available.commit
    codes = {name: row.error.code for name, row in found.items() if row.error is not None}
    assert codes == {"gone": "hub_token_required", "renamed": "file_not_found"}
    repositories = [path.split("/")[4] for path, _ in asked(hub)]
    assert sorted(repositories) == ["gone", "renamed", "shards", "still", "two"]


def test_outdated_asks_again_conditionally(hub: LocalHub, moved: Workspace, workspaces: Workspaces) -> None:
    outdated(moved)
    hub.clear_requests()
    again = outdated(workspaces())
    assert again["two-Q8_0"].changed
    assert again["s"].changed
    assert sorted(status for _, status in asked(hub)) == [304, 304, 304, 304, 401]
    hub.add_file("o/still", "still.gguf", tiny_gguf(name="still anew"))
    assert outdated(workspaces())["still"].changed


@pytest.mark.parametrize("content", [b"", b"{", b'{"https://x": [1, 2]}', b"\xff\xfe"])
def test_broken_answers_are_as_good_as_none(content: bytes, moved: Workspace, workspaces: Workspaces) -> None:
    outdated(moved)
    moved.layout.revisions.write_bytes(content)
    assert outdated(workspaces())["two-Q8_0"].changed


def test_a_hub_that_is_gone_is_said_of_each_model_and_not_waited_for_again_and_again(
    hub: LocalHub, moved: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kawai_tools.transfer.asking.BUDGET", 0.5)
    monkeypatch.setattr("kawai_tools.transfer.revisions.AT_ONCE", 1)
    hub.down()
    begin = time.monotonic()
    found = outdated(moved)
    assert time.monotonic() - begin < 2.0  # five repositories
    codes = {name: row.error.code for name, row in found.items() if row.error is not None}
    assert codes == dict.fromkeys(["two-Q8_0", "two-Q4_0", "still", "gone", "renamed", "s"], "unreachable")
    assert not found["pinned"].changed


@pytest.mark.parametrize(
    "body",
    ["<html>", "[]", '{"sha": "main"}', '{"sha": 1}', '{"siblings": []}'],
)
def test_an_answer_that_makes_no_sense_is_said(body: str, hub: LocalHub, workspaces: Workspaces) -> None:
    hub.add_file("o/r", "m.gguf", tiny_gguf())
    pull(workspaces(), "o/r")
    hub.misbehave(Fault.status(200, body=body, path="/api/"))
    error = outdated(workspaces())["m"].error
    assert error is not None
    assert error.code == "bad_response"


def test_offline_asks_nobody(hub: LocalHub, moved: Workspace, cli: Program) -> None:
    assert moved.layout.index.exists()
    for command in (["models", "outdated"], ["outdated"], ["models", "update", "--all"]):
        ended = cli("--offline", "--json", *command)
        assert ended.error["code"] == "offline", command
        assert ended.out == ""
    assert asked(hub) == []


# update


def test_update_takes_what_has_changed_and_leaves_the_rest(
    hub: LocalHub, moved: Workspace, workspaces: Workspaces
) -> None:
    before = {row.id: row for row in moved.models.rows()}
    hub.clear_requests()
    ended = ends(update(workspaces()))
    assert ended == {
        "two-Q8_0": (Status.DOWNLOADED, None),
        "two-Q4_0": (Status.EXISTS, None),
        "still": (Status.EXISTS, None),
        "gone": (Status.FAILED, "hub_token_required"),
        "pinned": (Status.EXISTS, None),
        "renamed": (Status.FAILED, "file_not_found"),
        "s": (Status.DOWNLOADED, None),
    }
    assert list(ended) == sorted(ended, key=str.casefold)
    fetched = [each.path for each in hub.requests if each.server == "cdn"]
    assert len(fetched) == 2  # of the shards only the one that has changed
    details = workspaces().models.show(parse_model("two-Q8_0"))
    assert details.metadata["general.name"] == "8 anew"
    assert details.files[0].sha256 == sha256(tiny_gguf(name="8 anew"))
    assert details.validated
    after = {row.id: row for row in workspaces().models.rows()}
    assert after.keys() == before.keys()
    shards = workspaces().models.show(parse_model("s"))
    assert [file.path[-18:] for file in shards.files] == [
        "s-00001-of-00002.gguf"[-18:],
        "s-00002-of-00002.gguf"[-18:],
    ]
    assert str(shards.provenance.url).endswith("s-00001-of-00002.gguf")
    rows = outdated(workspaces())
    assert not any(row.changed for row in rows.values())
    assert rows["s"].available is not None
    assert rows["s"].installed.commit == rows["s"].available.commit
    assert set(ends(update(workspaces(), "two-Q8_0", "s")).values()) == {(Status.EXISTS, None)}


def test_update_of_a_model_from_no_hub_is_refused_by_its_name_only(moved: Workspace) -> None:
    assert ends(update(moved, "plain")) == {"plain": (Status.FAILED, "no_upstream")}
    assert "plain" not in ends(update(moved))


def test_a_shared_projection_is_replaced_for_all_that_have_it(hub: LocalHub, workspaces: Workspaces) -> None:
    for name in ("a-Q8_0", "a-Q4_0"):
        hub.add_file("o/a", f"{name}.gguf", tiny_gguf(name=name))
    hub.add_file("o/a", "mmproj-F16.gguf", tiny_gguf(projection=True))
    for quantization in ("Q8_0", "Q4_0"):
        pull(workspaces(), f"o/a:{quantization}")
    hub.add_file("o/a", "mmproj-F16.gguf", tiny_gguf(projection=True, extra={"padding": "new"}))
    rows = outdated(workspaces())
    assert rows["a-Q8_0"].changed
    assert rows["a-Q4_0"].changed
    assert ends(update(workspaces(), "a-Q4_0")) == {"a-Q4_0": (Status.DOWNLOADED, None)}
    assert not any(row.changed for row in outdated(workspaces()).values())
    assert all(row.validated for row in workspaces().models.rows())


def test_what_the_catalog_pins_is_not_replaced(hub: LocalHub, workspaces: Workspaces) -> None:
    old, new = tiny_gguf(name="old"), tiny_gguf(name="new")
    hub.add_file("o/r", "m.gguf", old)
    url = "https://huggingface.co/o/r/resolve/main/m.gguf"
    folder = workspaces.home / "catalogs"
    folder.mkdir(parents=True)

    def pin(digest: str) -> None:
        (folder / "own.yaml").write_text(
            "version: 1\nmodels:\n"
            "  - id: m\n    category: Text\n    owned_by: o\n    model_family: r\n    files:\n      model:\n"
            f"        - url: {url}\n          sha256: {digest}\n"
            "    capabilities: {endpoint: chat}\n"
        )

    pin(sha256(old))
    pull(workspaces(), "o/r")
    hub.add_file("o/r", "m.gguf", new)
    assert not outdated(workspaces())["m"].changed
    assert ends(update(workspaces())) == {"m": (Status.EXISTS, None)}
    pin("0" * 64)
    assert outdated(workspaces())["m"].changed
    assert ends(update(workspaces())) == {"m": (Status.FAILED, "digest_mismatch")}
    pin(sha256(new))
    assert ends(update(workspaces())) == {"m": (Status.DOWNLOADED, None)}


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault.flip(path="/m.gguf"), "digest_mismatch"),
        (Fault.status(404, path="/m.gguf"), "file_not_found"),
    ],
    ids=["wrong bytes", "gone meanwhile"],
)
def test_a_failure_leaves_the_old_one_working(
    fault: Fault, code: str, hub: LocalHub, workspaces: Workspaces
) -> None:
    old, new = big_gguf(MIB, 1), big_gguf(MIB, 2)
    hub.add_file("o/r", "m.gguf", old)
    pull(workspaces(), "o/r")
    hub.add_file("o/r", "m.gguf", new)
    hub.misbehave(fault)
    assert ends(update(workspaces())) == {"m": (Status.FAILED, code)}
    assert final_files(workspaces.home / "models") == {"o/r/m.gguf": sha256(old)}
    assert workspaces().models.rows()[0].validated
    hub.behave()
    assert ends(update(workspaces())) == {"m": (Status.DOWNLOADED, None)}
    assert final_files(workspaces.home / "models") == {"o/r/m.gguf": sha256(new)}


def test_new_files_wait_for_their_names_until_nobody_has_the_old_ones_still_to_open(
    hub: LocalHub, workspaces: Workspaces
) -> None:
    old, new = big_gguf(MIB, 1), big_gguf(MIB, 2)
    hub.add_file("o/r", "m.gguf", old)
    workspace = workspaces()
    pull(workspace, "o/r")
    hub.add_file("o/r", "m.gguf", new)
    reading = Use(workspace.layout, "o/r/m", "m")
    reading.acquire()
    feed = MODELS_UPDATE.run(workspaces(), UpdateRequest())
    assert isinstance(feed, Series)
    waits, last = 0, None
    for event in feed.follow():
        assert isinstance(event, ModelPullEvent)
        last = event.status
        if last is Status.WAITING:
            waits += 1
            assert final_files(workspaces.home / "models") == {"o/r/m.gguf": sha256(old)}
            reading.opened()  # it is still in use, as what is loaded is
    assert waits
    assert last is Status.DOWNLOADED
    assert final_files(workspaces.home / "models") == {"o/r/m.gguf": sha256(new)}
    reading.release()


# what people and scripts see


def test_the_commands_tell_what_has_changed_and_end_with_the_first_failure(
    moved: Workspace, cli: Program
) -> None:
    assert moved.layout.index.exists()
    shown = cli("models", "outdated")
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert (shown.code, len(lines), lines[0]) == (0, 5, "MODEL INSTALLED AVAILABLE SIZE")
    assert [line.split()[0] for line in lines[1:]] == ["gone", "renamed", "s", "two-Q8_0"]
    assert [line for line in lines if line.endswith("not known -")] == lines[1:3]
    assert "error: gone: " in shown.err
    assert "hint: set HF_TOKEN" in shown.err
    assert "error: renamed: o/renamed has no renamed.gguf" in shown.err
    assert shown.err.splitlines()[-2:] == [
        "2 of 7 models from a hub were replaced there, 2 could not be compared",
        "kawai models update --all takes what is there now",
    ]
    quiet = cli("models", "outdated", "--quiet")
    assert (quiet.code, quiet.out) == (0, shown.out)
    assert quiet.err.splitlines() == shown.err.splitlines()[:-2]
    as_json = json.loads(cli("models", "outdated", "--json").out)
    assert [row["id"] for row in as_json] == sorted([row["id"] for row in as_json], key=str.casefold)
    assert set(as_json[0]) == {"id", "installed", "available", "changed", "error"}

    before = final_files(store_of(cli))
    planned = cli("models", "update", "two-Q8_0", "still", "--dry-run", "--json")
    plans = json.loads(planned.out)
    assert [(plan["id"], plan["exists"], plan["error"]) for plan in plans] == [
        ("two-Q8_0", False, None),
        ("still", True, None),
    ]
    assert plans[0]["needed"] == plans[0]["total"] == len(tiny_gguf(name="8 anew"))
    dry = cli("models", "update", "gone", "renamed", "--dry-run")
    assert dry.code == 5
    assert [line for line in dry.err.splitlines() if line.startswith("error: ")] == [
        line for line in shown.err.splitlines() if line.startswith("error: ")
    ]
    assert final_files(store_of(cli)) == before

    one = cli("models", "update", "two-Q8_0")
    assert (one.code, one.out) == (0, "two-Q8_0 is updated\n")
    assert cli("models", "update", "two-Q8_0").out == "two-Q8_0 is as the hub has it\n"
    rest = cli("models", "update", "--all", "--json")
    assert rest.code == 5
    finals = {event["id"]: event["status"] for event in rest.events}
    assert finals["s"] == "downloaded"
    assert finals["gone"] == finals["renamed"] == "failed"
    for_people = cli("models", "update", "--all")
    assert (for_people.code, "error: gone: " in for_people.err) == (5, True)
    assert "error: renamed: o/renamed has no renamed.gguf" in for_people.err
    left = cli("models", "outdated")
    assert left.err.splitlines()[-1] == "5 of 7 models from a hub are as it has them, 2 could not be compared"


def test_one_model_is_one(hub: LocalHub, workspaces: Workspaces, cli: Program) -> None:
    hub.add_file("o/r", "m.gguf", tiny_gguf())
    pull(workspaces(), "o/r")
    assert cli("models", "outdated").err == "1 of 1 model from a hub is as it has it\n"
    hub.add_file("o/r", "m.gguf", tiny_gguf(name="anew"))
    assert cli("models", "outdated").err.startswith("1 of 1 model from a hub was replaced there\n")
    using = Use(workspaces().layout, "o/r/m", "m")
    using.acquire()
    using.opened()
    updated = cli("models", "update", "m")
    assert (updated.code, updated.out) == (0, "m is updated\n")
    assert "m is loaded as it was; kawai models unload m lets go of it\n" in updated.err
    hub.add_file("o/r", "m.gguf", tiny_gguf(name="yet another"))
    using.release()
    updated = cli("models", "update", "--all")
    assert "1 of 1 model was updated\n" in updated.err
    assert "is loaded" not in updated.err
    hub.make_private("o/r")
    assert cli("models", "outdated").err.endswith("1 of 1 model from a hub could not be compared\n")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["m", "--all"], 2),
        (["nope"], 3),
        (["../x"], 2),
        (["m", "--connections", "0"], 2),
        (["m", "--limit-rate", "fast"], 2),
    ],
)
def test_commands_that_make_no_sense(
    arguments: list[str], code: int, hub: LocalHub, workspaces: Workspaces, cli: Program
) -> None:
    hub.add_file("o/r", "m.gguf", tiny_gguf())
    pull(workspaces(), "o/r")
    ended = cli("models", "update", *arguments)
    assert (ended.code, ended.out) == (code, "")
    assert ended.err.startswith("error: ")


def test_outdated_tells_of_builds_and_catalogs_too(hub: LocalHub, cli: Program) -> None:
    hub.add_file("o/r", "m.gguf", tiny_gguf())
    catalog = (
        "version: 1\nmodels:\n  - id: x\n    category: Text\n    owned_by: o\n    model_family: r\n"
        "    files: {model: [{url: https://huggingface.co/o/r/resolve/main/m.gguf}]}\n"
        "    capabilities: {endpoint: chat}\n    metadata: {description: one}\n"
    )
    url = hub.add_plain("list.yaml", catalog.encode())
    config = Path(cli.environ["KAWAI_HOME"]) / "config.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(f'catalogs = ["{url}"]\n')
    cli.environ["KAWAI_LIBS_API"] = hub.libs_api
    empty = json.loads(cli("outdated", "--json").out)
    assert empty["models"] == []
    assert empty["libs"]["changed"] is False
    assert [(row["url"], row["changed"], row["error"]) for row in empty["catalogs"]] == [(url, True, None)]
    assert cli("catalog", "update").code == 0
    hub.add_plain("list.yaml", catalog.replace("one", "two").encode())
    found = json.loads(cli("outdated", "--json").out)
    assert [row["changed"] for row in found["catalogs"]] == [True]
    again = json.loads(cli("outdated", "--json").out)  # looking has taken nothing
    assert again == found
    assert json.loads(cli("catalog", "update", "--json").out)[0]["changed"] is True
    assert json.loads(cli("outdated", "--json").out)["catalogs"][0]["changed"] is False


# through a server


def test_a_server_updates_what_it_has_loaded_and_goes_on_answering(hub: LocalHub, cli: Program) -> None:
    old, new = speaking("the old one"), speaking("the new one")
    hub.add_file("o/r", "m.gguf", old)
    assert cli("models", "pull", "o/r").code == 0
    with serving(cli, "--engine", "xllamacpp") as daemon:
        asked = {"model": "m", "prompt": "a", "max_tokens": 3}
        assert daemon.ask("POST", "/v1/completions", asked).status == 200
        pid = daemon.ask("GET", "/v1/models/ps").json[0]["loaded_at"]
        hub.add_file("o/r", "m.gguf", new)
        events = daemon.ask("POST", "/v1/models/update", {"models": ["m"]}).events
        assert events[-1]["status"] == "downloaded"
        assert daemon.ask("GET", "/v1/models/m").json["metadata"]["general.name"] == "the new one"
        assert daemon.ask("POST", "/v1/completions", asked).status == 200
        assert daemon.ask("GET", "/v1/models/ps").json[0]["loaded_at"] == pid
        assert daemon.ask("POST", "/v1/models/verify", {"model": "m"}).events[-1]["status"] == "verified"
        assert daemon.ask("POST", "/v1/models/unload", {"model": "m"}).status == 204
        assert daemon.ask("POST", "/v1/completions", asked).status == 200
        there = {**cli.environ, "KAWAI_SERVER": daemon.url}
        assert cli("models", "update", "m", **there).out == "m is as the hub has it\n"
        for body, status in (({"models": []}, 400), ({"models": ["nope"]}, 404), ({"model": "m"}, 400)):
            assert daemon.ask("POST", "/v1/models/update", body).status == status
        remote = cli("models", "outdated", "--json", **there)
        assert remote.out == cli("models", "outdated", "--json").out


def speaking(name: str, size: int = 0) -> bytes:
    """A model that answers, larger by about so many bytes; names have eleven letters."""
    data = PROBE.read_bytes().replace(b"kawai probe", name.encode())
    (count,) = struct.unpack_from("<Q", data, 16)
    padding = random.Random(name).randbytes(size // 2).hex()  # noqa: S311 - the same for the same name
    short = -len(entry("padding", padding)) % 32  # tensors stay aligned
    more = entry("padding", padding + "x" * short)
    return data[:16] + struct.pack("<Q", count + 1) + more + data[24:]


# faults


@pytest.mark.slow
def test_a_kill_at_fifty_random_moments_leaves_a_model_that_verifies_and_answers(
    hub: LocalHub, cli: Program, workspaces: Workspaces
) -> None:
    """What is there afterwards is the old file or the new one, and an engine has answered with either."""
    files = {name: speaking(name, 6 * MIB) for name in ("the old one", "the new one")}
    known = {sha256(data): name for name, data in files.items()}
    moments = random.Random(8)  # noqa: S311 - the same each time
    hub.throttle = 24 * MIB
    hub.add_file("o/r", "m.gguf", files["the new one"])
    assert cli("models", "pull", "o/r").code == 0
    assert_answers(cli)
    hub.add_file("o/r", "m.gguf", files["the old one"])
    begin = time.monotonic()
    assert cli("models", "update", "--all").code == 0
    lasts, now = time.monotonic() - begin, "the old one"
    assert_answers(cli)
    killed = 0
    for _ in range(50):
        wanted = next(name for name in files if name != now)
        hub.add_file("o/r", "m.gguf", files[wanted])
        process = cli.start("models", "update", "m")
        kill_after(process, moments.uniform(0.1, 1.0) * lasts)
        killed += process.returncode < 0
        assert set(final_files(store_of(cli)).values()) <= set(known)
        (row,) = workspaces().models.rows()  # an installation that was cut off goes on when somebody looks
        assert row.validated
        (digest,) = final_files(store_of(cli)).values()
        there = known[digest]
        assert workspaces().models.show(parse_model("m")).metadata["general.name"] == there
        assert workspaces().models.show(parse_model("m")).files[0].sha256 == digest
        now = there
    assert killed > 10
    assert cli("models", "verify", "m").code == 0
    assert ends(update(workspaces())) in ({"m": (Status.DOWNLOADED, None)}, {"m": (Status.EXISTS, None)})
    assert list((store_of(cli) / ".partial").iterdir()) == []


def assert_answers(cli: Program) -> None:
    assert cli("models", "verify", "m").code == 0
    told = cli("run", "m", "a", "--engine", "xllamacpp", KAWAI_CONTEXT_LENGTH="64")
    assert told.code == 0, told.err


@pytest.mark.slow
@pytest.mark.parametrize("call", ["rename", "unlink,unlinkat", "write"])
def test_an_update_of_what_is_loaded_killed_at_any_system_call_is_gone_on_with(
    call: str, strace: list[str], hub: LocalHub, cli: Program, workspaces: Workspaces
) -> None:
    """Two shards change: whoever opens files by their names never meets one old and one new."""
    home, prepared = workspaces.home, workspaces.home.with_name("prepared")
    sets = []
    for name in ("old", "new"):
        shards = [tiny_gguf(split=(number, 2), extra={"padding": name}) for number in range(2)]
        sets.append({f"o/r/m-0000{at + 1}-of-00002.gguf": sha256(data) for at, data in enumerate(shards)})
        for at, data in enumerate(shards):
            hub.add_file("o/r", f"m-0000{at + 1}-of-00002.gguf", data)
        if name == "old":
            pull(workspaces(), "o/r")
    home.rename(prepared)
    for number in count(1):
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(prepared, home)
        loaded = Use(workspaces().layout, "o/r/m", "m")
        loaded.acquire()
        loaded.opened()
        inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]
        ended = run(cli, "models", "update", "m", under=[*strace, *inject])
        if ended.code == 0:
            loaded.release()
            break
        assert ended.code == -signal.SIGKILL, (number, ended)
        another = Use(workspaces().layout, "o/r/m", "m")
        half = not another.try_acquire()
        assert half or final_files(home / "models") in sets, number
        another.release()
        assert [row.validated for row in workspaces().models.rows()] == [True], number
        assert final_files(home / "models") in sets, number
        assert another.try_acquire(), number
        another.release()
        loaded.release()
        assert ends(update(workspaces()))["m"][1] is None
        assert final_files(home / "models") == sets[1], number


def test_a_connection_to_a_server_that_drops_loses_no_model(
    hub: LocalHub, cli: Program, relay: Relay, tmp_path: Path
) -> None:
    for name in "abc":
        hub.add_file(f"o/{name}", f"{name}.gguf", big_gguf(MIB, 1))
        assert cli("models", "pull", f"o/{name}").code == 0
        hub.add_file(f"o/{name}", f"{name}.gguf", big_gguf(MIB, 2))
    hub.throttle = 2 * MIB
    relay.drops_at = [900, 700]
    far = Program(tmp_path / "far", {"KAWAI_SERVER": relay.url})
    ended = far("models", "update", "--all", "--json")
    assert (ended.code, ended.err) == (0, "")
    finals = [event["id"] for event in ended.events if event["status"] in {"downloaded", "exists"}]
    assert finals == ["a", "b", "c"]
    assert len(relay.heads) == 3
    assert set(final_files(store_of(cli)).values()) == {sha256(big_gguf(MIB, 2))}


@pytest.fixture
def relay(daemon: Daemon) -> Iterator[Relay]:
    relay = Relay(daemon.url)
    yield relay
    relay.close()


def test_an_update_whose_follower_leaves_goes_on(hub: LocalHub, cli: Program, daemon: Daemon) -> None:
    for name in "ab":
        hub.add_file(f"o/{name}", f"{name}.gguf", big_gguf(MIB, 1))
        assert cli("models", "pull", f"o/{name}").code == 0
        hub.add_file(f"o/{name}", f"{name}.gguf", big_gguf(MIB, 2))
    hub.throttle = 4 * MIB
    with contextlib.closing(daemon.connect()) as connection:
        connection.request("POST", "/v1/models/update")
        assert connection.getresponse().readline()
    right = {"o/a/a.gguf": sha256(big_gguf(MIB, 2)), "o/b/b.gguf": sha256(big_gguf(MIB, 2))}
    assert soon(lambda: final_files(store_of(cli)) == right, 20)
