"""Which release is taken, and how the release server is asked, through the local hub as a mirror of it."""

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from kawai_tools.errors import BadResponse, KawaiError, Upstream, VersionNotFound
from kawai_tools.libs.bundle import Libs, LibsPlanPayload
from kawai_tools.operations.libs import (
    LIBS_AVAILABLE,
    LIBS_PULL,
    LIBS_SHOW,
    AvailableRequest,
    LibsPullRequest,
    LibsRequest,
)
from kawai_tools.workspace import Workspace
from tests.bundles import asset_name, companion_bundle, host_platform, launcher_bundle
from tests.hub import Fault, LocalHub
from tests.hub.exchange import Exchange
from tests.hub.messages import Answer, Request, Stream
from tests.program import Ended, Program, serving
from tests.samples import tiny_gguf
from tests.workspaces import Workspaces

HERE = host_platform()
CUDA = HERE.replace("-", "-cuda-12.8-")
SECRET = "ghp_canary0123456789"
LIST = "/repos/ggml-org/llama.cpp/releases"


def offer(hub: LocalHub, tag: str, *middles: str, **more: Any) -> None:  # noqa: ANN401 - as add_release has it
    """Release a few bytes for each of these platforms, by default for this machine."""
    hub.add_release(
        tag, {asset_name(tag, each): f"{tag} {each}".encode() for each in middles or (HERE,)}, **more
    )


def calls(hub: LocalHub) -> list[Request]:
    """What the API was asked."""
    return [each for each in hub.requests if each.path.startswith("/repos/")]


def rewritten(change: Callable[[bytes], bytes], path: str = "/repos/") -> Fault:
    """The API's answers with other bodies."""

    def twist(ex: Exchange) -> Answer:
        answer = ex.answer()
        body = b"".join(answer.body.pieces(lambda: 1 << 16))
        return replace(answer, body=Stream.of(change(body))) if answer.status == 200 else answer

    return Fault("rewritten", twist, server="hub", path=path)


def swapped(old: str, new: str) -> Callable[[bytes], bytes]:
    return lambda body: body.replace(old.encode(), new.encode())


@pytest.fixture
def libs(cli: Program, hub: LocalHub) -> Program:
    cli.environ["KAWAI_LIBS_API"] = hub.libs_api
    return cli


@pytest.fixture
def here(workspaces: Workspaces, hub: LocalHub) -> Workspace:
    """The core in this process, beside the command line's home."""
    return workspaces(libs_api=hub.libs_api)


def plan(workspace: Workspace, version: str | None = None, **more: Any) -> LibsPlanPayload:  # noqa: ANN401
    answer = LIBS_PULL.run(workspace, LibsPullRequest(version=version, dry_run=True, **more))
    assert isinstance(answer, LibsPlanPayload)
    return answer


def available(workspace: Workspace, version: str) -> object:
    return LIBS_AVAILABLE.run(workspace, AvailableRequest(version))


def show(workspace: Workspace) -> Libs:
    shown = LIBS_SHOW.run(workspace, LibsRequest())
    assert isinstance(shown, Libs)
    return shown


def planned(ended: Ended) -> tuple[str, list[str]]:
    """The version and the assets that would be fetched."""
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    return found["id"], [each["path"] for each in found["files"]]


def shown(ended: Ended) -> dict[str, Any]:
    assert ended.code == 0, ended.err
    found: dict[str, Any] = json.loads(ended.out)
    return found


@pytest.fixture
def nvidia(libs: Program, tmp_path: Path) -> Program:
    """The command line on a machine with an NVIDIA device, as far as nvidia-smi says."""
    folder = tmp_path / "tools"
    folder.mkdir()
    script = folder / "nvidia-smi"
    script.write_text(
        "#!/bin/sh\n"
        'case "$*" in *query*) echo "NVIDIA L4, 570.1, 8.9";; *) echo "CUDA Version: 12.8";; esac\n'
    )
    script.chmod(0o755)
    libs.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
    return libs


# Nightly


def test_nightly_is_the_newest_that_has_a_build_for_the_machine(here: Workspace, hub: LocalHub) -> None:
    for tag in ("b1", "b2"):
        offer(hub, tag)
    offer(hub, "b3", "win-cpu-x64", "macos-arm64")
    hub.add_release("v1.0.0", {"nightly-tag.txt": b"b1\n"}, prerelease=False)
    hub.add_release("b4", {})
    assert plan(here).id == "b2"
    assert plan(here, os="windows", activate=False, processor="cpu", arch="amd64").id == "b3"


@pytest.mark.parametrize(
    "newest",
    [[HERE], [HERE, CUDA], [CUDA.replace("12.8", "13.4"), f"companion {CUDA.replace('12.8', '13.4')}"]],
    ids=["build is missing", "companion is missing", "build is for newer drivers"],
)
def test_a_release_is_passed_over_until_the_best_build_is_whole(
    nvidia: Program, hub: LocalHub, tmp_path: Path, newest: list[str]
) -> None:
    """Assets are uploaded one after another: what is not there yet will be."""
    companion = companion_bundle("b1", CUDA, directory=tmp_path)
    offer(hub, "b1", HERE, CUDA)
    hub.add_release("b1", {companion.name: companion})
    for each in newest:
        name = f"cudart-{asset_name('b2', each.removeprefix('companion '))}"
        hub.add_release("b2", {name if each.startswith("companion") else asset_name("b2", each): b"x"})
    version, files = planned(nvidia("libs", "pull", "--dry-run", "--json"))
    assert (version, files) == ("b1", [asset_name("b1", CUDA), companion.name])
    found = shown(nvidia("libs", "show", "--json"))
    assert (found["latest"], found["processor"]) == ("b1", "cuda")
    assert "NVIDIA L4" in found["reason"]


def test_an_asset_that_is_being_uploaded_is_not_there(here: Workspace, hub: LocalHub) -> None:
    offer(hub, "b1")
    offer(hub, "b2")

    def unfinished(body: bytes) -> bytes:
        releases = json.loads(body)
        releases[0]["assets"][0]["state"] = "starter"
        return json.dumps(releases).encode()

    hub.misbehave(rewritten(unfinished))
    assert plan(here).id == "b1"


def test_an_old_build_is_found_on_a_further_page_and_goes_on_being_told(
    here: Workspace, hub: LocalHub
) -> None:
    offer(hub, "b1")
    for number in range(2, 42):
        offer(hub, f"b{number}", "win-cpu-x64")
    assert plan(here).id == "b1"
    assert [each.query for each in calls(hub)] == ["per_page=30", "per_page=30&page=2"]
    told = show(here)
    assert (told.latest, told.latest_error) == ("b1", None)


def test_pages_are_not_turned_for_ever(here: Workspace, hub: LocalHub) -> None:
    for number in range(1, 200):
        hub.add_release(f"b{number}", {})
    with pytest.raises(KawaiError) as refused:
        plan(here)
    assert refused.value.exit_code == 3
    assert 1 < len(calls(hub)) < 7


@pytest.mark.parametrize(
    "link", ["{other}/repos/ggml-org/llama.cpp/releases?page=2", "file:///etc/passwd", "http://[", "?page=1"]
)
def test_a_next_page_is_of_the_same_server(here: Workspace, hub: LocalHub, link: str) -> None:
    other = hub.libs_api.replace("127.0.0.1", "localhost")
    hub.add_release("b1", {})
    header = f'<{link.format(other=other)}>; rel="next"'
    hub.misbehave(Fault("link", lambda ex: ex.answer().having("Link", header), path="/repos/"))
    with pytest.raises(KawaiError) as refused:
        plan(here)
    assert refused.value.exit_code in {3, 6}
    assert {each.headers["host"] for each in hub.requests} == {urlsplit(hub.libs_api).netloc}
    assert len(calls(hub)) < 7


@pytest.mark.parametrize("tag", ["v9.9.9", "../../../../escaped", "b2/../../../escaped", "b2\n", "B2", ""])
def test_only_builds_are_versions(libs: Program, hub: LocalHub, tag: str) -> None:
    offer(hub, "b1")
    hub.add_release("b2", {asset_name("b2", HERE): b"x"})
    hub.misbehave(rewritten(swapped('"tag_name": "b2"', f'"tag_name": {json.dumps(tag)}')))
    assert planned(libs("libs", "pull", "--dry-run", "--json"))[0] == "b1"


def test_a_tag_that_is_a_path_leads_nowhere(libs: Program, hub: LocalHub, tmp_path: Path) -> None:
    bundle = launcher_bundle("b2", directory=tmp_path / "made")
    for prerelease in (True, False):
        hub.add_release("../../../escaped", {bundle.name: bundle}, prerelease=prerelease)
        channel = "nightly" if prerelease else "stable"
        assert libs("libs", "pull", "--json", "--channel", channel).code != 0
        assert [path for path in tmp_path.rglob("escaped*") if "hub" not in path.parts] == []


# Stable


@pytest.mark.parametrize("note", [b"b2\n", b"b2", b"  b2\r\n"])
def test_stable_is_the_build_that_the_newest_full_release_names(
    libs: Program, hub: LocalHub, note: bytes
) -> None:
    for tag in ("b1", "b2", "b3"):
        offer(hub, tag)
    hub.add_release("v1.2.0", {"nightly-tag.txt": note}, prerelease=False)
    assert planned(libs("libs", "pull", "--dry-run", "--json", "--channel", "stable"))[0] == "b2"
    hub.clear_requests()
    assert planned(libs("libs", "pull", "--dry-run", "--json", KAWAI_CHANNEL="stable"))[0] == "b2"
    assert {each.status for each in hub.requests} == {304}
    found = shown(libs("libs", "show", "--json", KAWAI_CHANNEL="stable"))
    assert (found["latest"], found["channel"], len(hub.requests)) == ("b2", "stable", 2)


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"b1\nb2\n",
        b"../../etc",
        b"<!doctype html><title>Sign in</title>",
        b"\xff\xfeb\x001\x00",
        b"b1" + b" " * 100_000,
        b"b12345678901234567890",
        b"v1.0.0",
        "b\u0661".encode(),
    ],
    ids=["empty", "two", "path", "page", "utf-16", "long", "large", "version", "digits"],
)
def test_a_note_that_names_no_build_is_the_server_s_fault(
    here: Workspace, hub: LocalHub, note: bytes
) -> None:
    offer(hub, "b1")
    hub.add_release("v1.2.0", {"nightly-tag.txt": note}, prerelease=False)
    with pytest.raises(BadResponse) as refused:
        plan(here, channel="stable")
    assert len(refused.value.message) < 200
    assert all("etc" not in each.path for each in hub.requests)
    hub.add_release("v1.2.1", {"nightly-tag.txt": b"b1"}, prerelease=False)
    assert plan(here, channel="stable").id == "b1"


def test_a_note_about_a_build_that_is_gone_is_not_found(here: Workspace, hub: LocalHub) -> None:
    hub.add_release("v1.2.0", {"nightly-tag.txt": b"b7"}, prerelease=False)
    with pytest.raises(VersionNotFound, match="b7"):
        plan(here, channel="stable")


def test_without_a_full_release_another_channel_is_named(here: Workspace, hub: LocalHub) -> None:
    offer(hub, "b1")
    with pytest.raises(VersionNotFound) as refused:
        plan(here, channel="stable")
    assert "--channel" in (refused.value.hint or "")


# One version


def test_an_exact_version_costs_one_call(libs: Program, hub: LocalHub) -> None:
    offer(hub, "b1")
    offer(hub, "b2")
    assert planned(libs("libs", "pull", "b1", "--dry-run", "--json"))[0] == "b1"
    assert [each.path for each in hub.requests] == [f"{LIST}/tags/b1"]
    missing = libs("libs", "pull", "b77", "--json")
    assert (missing.code, missing.error["code"]) == (3, "version_not_found")
    assert "b77" in missing.error["message"]


@pytest.mark.parametrize(
    "version", ["latest", "../latest", "b1/../../latest", "b1?x=y", "b1#x", "b", "v1.0", "b 1", "b\u0661"]
)
@pytest.mark.parametrize("way", ["pull", "available"])
def test_what_is_no_version_is_not_asked_for(here: Workspace, hub: LocalHub, version: str, way: str) -> None:
    offer(hub, "b1", prerelease=False)
    ask = {"pull": plan, "available": available}[way]
    with pytest.raises(KawaiError) as refused:
        ask(here, version)
    assert refused.value.exit_code == 2
    assert hub.requests == []


def test_a_server_that_answers_with_another_version_is_not_followed(here: Workspace, hub: LocalHub) -> None:
    offer(hub, "b1")
    hub.misbehave(rewritten(swapped('"tag_name": "b1"', '"tag_name": "b2"')))
    with pytest.raises(Upstream):
        plan(here, "b1")


@pytest.mark.parametrize("args", [["b1"], ["--channel", "stable"]])
def test_a_draft_is_no_release(libs: Program, hub: LocalHub, args: list[str]) -> None:
    offer(hub, "b1", prerelease=False)
    hub.misbehave(rewritten(swapped('"draft": false', '"draft": true')))
    ended = libs("libs", "pull", "--json", *args)
    assert ended.code in {3, 6}, ended.err
    again = shown(libs("libs", "show", "--json", KAWAI_CHANNEL="stable"))
    assert again["latest"] is None
    assert again["latest_error"]


def test_available_lists_what_a_version_offers(libs: Program, hub: LocalHub) -> None:
    offer(hub, "b1", HERE, "win-cuda-12.4-x64", "win-opencl-adreno-arm64")
    offer(hub, "b2", "macos-arm64")
    found = shown(libs("libs", "available", "b1", "--json"))
    assert [(each["os"], each["variant"], each["chosen"]) for each in found["builds"]] == [
        (os.uname().sysname.lower(), None, True),
        ("windows", "12.4", False),
    ]
    assert found["builds"][0]["assets"] == [{"name": asset_name("b1", HERE), "size": len(f"b1 {HERE}")}]
    assert shown(libs("libs", "available", "--json"))["version"] == "b1"


# What was answered before


def test_what_has_not_changed_costs_none_of_the_calls_that_are_allowed(libs: Program, hub: LocalHub) -> None:
    offer(hub, "b1")
    hub.rate_limit = 2
    for status in (200, 304, 304):
        assert planned(libs("libs", "pull", "--dry-run", "--json"))[0] == "b1"
        assert [each.status for each in hub.requests] == [status]
        hub.clear_requests()
    assert hub.rate_limit == 1
    offer(hub, "b2")
    assert planned(libs("libs", "pull", "--dry-run", "--json"))[0] == "b2"


def test_only_showing_answers_from_the_ten_minute_copy(libs: Program, hub: LocalHub) -> None:
    offer(hub, "b1")
    assert shown(libs("libs", "show", "--json"))["latest"] == "b1"
    offer(hub, "b2")
    hub.clear_requests()
    assert shown(libs("libs", "show", "--json"))["latest"] == "b1"
    with serving(libs) as daemon:
        assert daemon.ask("GET", "/v1/libs").json["latest"] == "b1"
        assert hub.requests == []
        assert daemon.ask("POST", "/v1/libs/pull", {"dry_run": True}).json["id"] == "b2"
        assert daemon.ask("GET", "/v1/libs").json["latest"] == "b2"
    assert [each.status for each in hub.requests] == [200]


@pytest.mark.parametrize(("age", "latest"), [(9, "b1"), (11, "b2"), (60 * 24 * 400, "b2"), (-60, "b2")])
def test_a_copy_is_believed_for_ten_minutes(here: Workspace, hub: LocalHub, age: int, latest: str) -> None:
    offer(hub, "b1")
    assert show(here).latest == "b1"
    cache = here.bundles.layout.releases
    kept = json.loads(cache.read_bytes())
    for answer in kept["answers"].values():
        answer["asked_at"] = (datetime.now(UTC) - timedelta(minutes=age)).isoformat()
    cache.write_text(json.dumps(kept))
    offer(hub, "b2")
    assert show(here).latest == latest


def damaged(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        kept = json.loads(data)
        for answer in kept["answers"].values():
            change(answer)
        return json.dumps(kept).encode()

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda data: data[:-40],
        lambda _: b"\xff\xfe",
        lambda _: b'{"answers": {"\xff": 1}}',
        lambda _: b"[]",
        lambda _: b'{"answers": []}',
        lambda _: b'{"x":' + b"[" * 100_000,
        damaged(lambda answer: answer.update(releases=[])),
        damaged(lambda answer: answer.update(asked_at="2026-01-01T00:00:00")),
        damaged(lambda answer: answer.update(asked_at=None)),
        damaged(lambda answer: answer.update(next_url="file:///etc/passwd")),
    ],
    ids=[
        "empty",
        "torn",
        "no text",
        "no utf-8",
        "list",
        "other",
        "deep",
        "no releases",
        "no zone",
        "no time",
        "odd link",
    ],
)
@pytest.mark.parametrize("channel", ["nightly", "stable"])
def test_a_damaged_copy_only_costs_asking_again(
    workspaces: Workspaces, hub: LocalHub, damage: Callable[[bytes], bytes], channel: str
) -> None:
    here = workspaces(libs_api=hub.libs_api, channel=channel)
    offer(hub, "b1")
    hub.add_release("v1.0.0", {"nightly-tag.txt": b"b1"}, prerelease=False)
    assert plan(here).id == "b1"
    cache = here.bundles.layout.releases
    hurt = damage(cache.read_bytes())
    cache.write_bytes(hurt)
    told = show(here)
    assert (told.latest, told.latest_error) == ("b1", None)
    cache.write_bytes(hurt)
    assert plan(here).id == "b1"
    assert plan(here, "b1").id == "b1"


def test_a_copy_that_cannot_be_kept_only_costs_asking_again(libs: Program, hub: LocalHub) -> None:
    offer(hub, "b1")
    cache = Path(libs.environ["KAWAI_HOME"], "libraries", "releases.json")
    (cache / "x").mkdir(parents=True)
    assert shown(libs("libs", "show", "--json"))["latest"] == "b1"
    assert planned(libs("libs", "pull", "--dry-run", "--json"))[0] == "b1"


def test_a_copy_of_one_server_is_not_another_s(libs: Program, hub: LocalHub, tmp_path: Path) -> None:
    offer(hub, "b1")
    assert shown(libs("libs", "show", "--json"))["latest"] == "b1"
    with LocalHub(tmp_path / "mirror") as mirror:
        offer(mirror, "b2")
        found = shown(libs("libs", "show", "--json", KAWAI_LIBS_API=f"{mirror.libs_api}/"))
        assert found["latest"] == "b2"
        assert [(each.path, each.status) for each in mirror.requests] == [(LIST, 200)]


# GITHUB_TOKEN


def sightings(root: Path, *ended: Ended) -> list[object]:
    """Where the secret is to be seen."""
    files = [path for path in root.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    return [*files, *(each for each in ended if SECRET in each.out + each.err)]


def test_the_token_is_shown_to_the_release_server_and_nobody_else(
    libs: Program, hub: LocalHub, tmp_path: Path
) -> None:
    """The mirror gives its files from another name of the same machine, and these from a CDN."""
    bundle = launcher_bundle("b1", directory=tmp_path / "made")
    hub.add_release("b1", {bundle.name: bundle})
    hub.add_release("v1.0.0", {"nightly-tag.txt": b"b1"}, prerelease=False)
    hub.add_token(SECRET)
    elsewhere = hub.endpoint.replace("127.0.0.1", "localhost")
    hub.misbehave(rewritten(swapped(f"{hub.endpoint}/ggml-org", f"{elsewhere}/ggml-org")))
    libs.environ |= {"GITHUB_TOKEN": SECRET, "KAWAI_CHANNEL": "stable"}
    pulled = libs("libs", "pull", "--verbose")
    assert pulled.code == 0, pulled.err
    sent: dict[str, set[str | None]] = {}
    for each in hub.requests:
        sent.setdefault(each.headers["host"], set()).add(each.headers.get("authorization"))
    assert sent == {
        urlsplit(hub.endpoint).netloc: {f"Bearer {SECRET}"},
        urlsplit(elsewhere).netloc: {None},
        urlsplit(hub.cdn_endpoint).netloc: {None},
    }
    told = [
        pulled,
        libs("config", "show", "--json"),
        libs("libs", "show", "--json"),
        libs("doctor", "--json"),
    ]
    assert sightings(libs.home, *told) == []


def test_a_mirror_of_both_gets_each_token_for_its_own_questions(libs: Program, hub: LocalHub) -> None:
    """As where one repository manager stands for the model hub and for the release server."""
    offer(hub, "b1")
    hub.add_file("me/gated", "gated.gguf", tiny_gguf())
    hub.gate("me/gated")
    hub.add_token("hf_canary", accepts={"me/gated"})
    hub.add_token(SECRET)
    libs.environ |= {"HF_TOKEN": "hf_canary", "GITHUB_TOKEN": SECRET}
    assert planned(libs("libs", "pull", "--dry-run", "--json"))[0] == "b1"
    assert {each.headers.get("authorization") for each in hub.requests} == {f"Bearer {SECRET}"}
    hub.clear_requests()
    ended = libs("models", "pull", "me/gated", "--json")
    asked = {each.headers.get("authorization") for each in hub.requests if each.server == "hub"}
    assert (ended.code, asked) == (0, {"Bearer hf_canary"})


def test_the_token_lifts_the_limit(libs: Program, hub: LocalHub) -> None:
    offer(hub, "b1")
    hub.add_token(SECRET)
    hub.rate_limit = 0
    assert planned(libs("libs", "pull", "--dry-run", "--json", GITHUB_TOKEN=SECRET))[0] == "b1"


@pytest.mark.parametrize(
    ("token", "code", "kind"), [(f"{SECRET}\u00e9 x", 2, "invalid_config"), (SECRET, 6, "bad_response")]
)
def test_a_token_that_is_refused_is_named_by_its_variable(
    libs: Program, hub: LocalHub, token: str, code: int, kind: str
) -> None:
    offer(hub, "b1")
    ended = libs("libs", "pull", "--json", GITHUB_TOKEN=token)
    assert (ended.code, ended.error["code"]) == (code, kind)
    assert "GITHUB_TOKEN" in ended.error["message"]
    assert sightings(libs.home, ended) == []
    assert len(hub.requests) == (code == 6)


# Limits on the rate

SOON = int(datetime.now(UTC).timestamp()) + 1800


@pytest.mark.parametrize(
    ("status", "headers", "when"),
    [
        (
            403,
            {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(SOON)},
            f"{datetime.fromtimestamp(SOON, UTC):%H:%M:%S}",
        ),
        (
            429,
            {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(SOON)},
            f"{datetime.fromtimestamp(SOON, UTC):%H:%M:%S}",
        ),
        (403, {"X-RateLimit-Remaining": "0"}, ""),
        (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "9" * 11}, ""),
        (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "soon"}, ""),
        # a secondary limit (docs.github.com, "Rate limits for the REST API")
        (403, {"X-RateLimit-Remaining": "9", "Retry-After": "900"}, ""),
        (429, {"X-RateLimit-Remaining": "9", "Retry-After": "900"}, ""),
    ],
    ids=["403", "429", "no reset", "far reset", "odd reset", "secondary 403", "secondary 429"],
)
def test_a_limit_on_the_rate_is_explained_at_once(
    libs: Program, hub: LocalHub, status: int, headers: dict[str, str], when: str
) -> None:
    offer(hub, "b1")
    hub.misbehave(Fault.status(status, headers, path="/repos/"))
    began = time.monotonic()
    ended = libs("libs", "pull", "--json")
    took = time.monotonic() - began
    assert (ended.code, ended.error["code"], ended.error["type"]) == (6, "rate_limited", "upstream")
    assert when in ended.error["message"]
    assert "GITHUB_TOKEN" in ended.error["hint"]
    assert took < 4
    assert len(hub.requests) == 1


def test_a_spent_limit_fails_a_pull_and_leaves_a_show_without_the_newest(
    libs: Program, hub: LocalHub
) -> None:
    offer(hub, "b1")
    hub.rate_limit = 0
    with serving(libs) as daemon:
        refused = daemon.ask("POST", "/v1/libs/pull")
        assert (refused.status, refused.error["code"]) == (502, "rate_limited")
        assert re.search(r"until \d\d:\d\d:\d\d UTC", refused.error["message"])
        found = daemon.ask("GET", "/v1/libs")
        assert (found.status, found.json["latest"]) == (200, None)
        assert "limits the rate" in found.json["latest_error"]
    told = libs("libs", "show")
    assert told.code == 0
    assert "limits the rate" in told.err


# A server that is not there, or not what it should be


def drip(**where: Any) -> Fault:  # noqa: ANN401 - as faults have it
    return Fault("drip", lambda ex: ex.answer().delivered(pause=0.5), **where)


@pytest.mark.slow
@pytest.mark.parametrize(("failure", "face"), [("silent", "cli"), ("drip", "daemon"), ("down", "cli")])
def test_what_is_installed_is_shown_within_five_seconds(
    libs: Program, hub: LocalHub, failure: str, face: str
) -> None:
    offer(hub, "b1")
    faults = {"silent": Fault.silent(path="/repos/"), "drip": drip(path="/repos/")}
    with serving(libs) as daemon:
        if failure == "down":
            hub.down()
        else:
            hub.misbehave(faults[failure])
        began = time.monotonic()
        found = shown(libs("libs", "show", "--json")) if face == "cli" else daemon.ask("GET", "/v1/libs").json
        took = time.monotonic() - began
    assert took < 5
    assert (found["latest"], found["installed"]) == (None, [])
    assert urlsplit(hub.libs_api).netloc in found["latest_error"]


@pytest.mark.slow
def test_a_resolver_that_does_not_answer_holds_nothing_up(
    workspaces: Workspaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resolver cannot be made to hang on demand, so this one is ours; that of glibc takes 10 s and more."""
    over = threading.Event()
    real = socket.getaddrinfo

    def hanging(host: str, *args: Any, **more: Any) -> Any:  # noqa: ANN401 - as the real one
        if host == "releases.example":
            over.wait(10)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return real(host, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    here = workspaces(libs_api="https://releases.example")
    began = time.monotonic()
    told = show(here)
    took = time.monotonic() - began
    over.set()
    assert told.latest is None
    assert "releases.example" in (told.latest_error or "")
    assert took < 5


@pytest.mark.slow
def test_a_server_that_is_down_is_asked_again_before_a_pull_fails(libs: Program, hub: LocalHub) -> None:
    hub.down()
    began = time.monotonic()
    ended = libs("libs", "pull", "--json")
    assert (ended.code, ended.error["code"]) == (6, "unreachable")
    assert urlsplit(hub.libs_api).netloc in ended.error["message"]
    assert 3 < time.monotonic() - began < 30


def test_a_server_that_fails_for_a_moment_is_asked_again(here: Workspace, hub: LocalHub) -> None:
    offer(hub, "b1")
    hub.misbehave(
        Fault.status(503, path="/repos/", times=1), Fault.status(429, {"Retry-After": "0"}, times=1)
    )
    assert plan(here).id == "b1"
    assert [each.status for each in hub.requests][-1] == 200


PAGE = b"<!doctype html><title>Sign in</title>"


@pytest.mark.parametrize(
    "body",
    [
        PAGE,
        b"",
        b"{}",
        b"null",
        b"[1]",
        b'{"message": "hello"}',
        b'[{"tag_name": 5, "assets": []}]',
        b'[{"tag_name": "b1", "assets": [{"name": "x", "size": "1", "browser_download_url": "x"}]}]',
        b'[{"x":' + b"[" * 100_000,
        b'[{"tag_name": "\xff"',
        b"[" + b" " * 100,
    ],
)
@pytest.mark.parametrize("version", [None, "b1"])
def test_what_is_no_list_of_releases_is_the_server_s_fault(
    here: Workspace, hub: LocalHub, body: bytes, version: str | None
) -> None:
    hub.add_release("b1", {})
    hub.misbehave(rewritten(lambda _: body))
    with pytest.raises(BadResponse) as refused:
        plan(here, version)
    assert urlsplit(hub.libs_api).netloc in refused.value.message
    assert refused.value.hint == "check KAWAI_LIBS_API"
    assert show(here).latest is None


def test_a_login_page_is_told_without_a_traceback(libs: Program, hub: LocalHub) -> None:
    hub.misbehave(Fault.status(200, {"Content-Type": "text/html"}, PAGE.decode()))
    ended = libs("libs", "pull", "--json")
    assert (ended.code, ended.error["code"], ended.error["hint"]) == (
        6,
        "bad_response",
        "check KAWAI_LIBS_API",
    )


@pytest.mark.parametrize("size", ["-1", str(1 << 62), str(1 << 70)])
def test_a_size_that_makes_no_sense_is_no_crash(libs: Program, hub: LocalHub, size: str) -> None:
    offer(hub, "b1")
    hub.misbehave(rewritten(swapped(f'"size": {len(f"b1 {HERE}")}', f'"size": {size}')))
    assert libs("libs", "pull", "--json").code in {6, 7, 8}


def test_offline_asks_nobody(libs: Program, hub: LocalHub) -> None:
    offer(hub, "b1")
    found = shown(libs("libs", "show", "--json", "--offline"))
    assert found["latest"] is None
    assert "offline" in found["latest_error"]
    for args in (["pull"], ["pull", "b1"], ["available"]):
        ended = libs("libs", *args, "--json", "--offline")
        assert (ended.code, ended.error["code"]) == (9, "offline")
    assert hub.requests == []
    assert shown(libs("libs", "show", "--json"))["latest"] == "b1"
    assert shown(libs("libs", "show", "--json", "--offline"))["latest"] == "b1"


# Where files come from


def test_the_daemon_fetches_builds_from_its_hosts_only(libs: Program, hub: LocalHub, tmp_path: Path) -> None:
    bundle = launcher_bundle("b1", directory=tmp_path / "made")
    hub.add_release("b1", {bundle.name: bundle})
    elsewhere = hub.endpoint.replace("127.0.0.1", "localhost")
    hub.misbehave(rewritten(swapped(f"{hub.endpoint}/ggml-org", f"{elsewhere}/ggml-org")))
    with serving(libs) as daemon:
        for body in ({"dry_run": True}, {}):
            reply = daemon.ask("POST", "/v1/libs/pull", body)
            assert (reply.status, reply.error["code"]) == (403, "host_not_allowed"), reply.body[-500:]
            assert "pull_hosts" in reply.error["hint"]
    assert {each.headers["host"] for each in hub.requests} == {urlsplit(hub.endpoint).netloc}
    libs.environ["KAWAI_PULL_HOSTS"] = "localhost"
    with serving(libs) as daemon:
        last = daemon.ask("POST", "/v1/libs/pull", {}).events[-1]
        # its redirect to the CDN is plain, and localhost is no server that the configuration names
        assert last["error"]["code"] == "bad_redirect"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "x", "", "http://["])
def test_a_file_at_no_web_address_is_the_server_s_fault(libs: Program, hub: LocalHub, url: str) -> None:
    offer(hub, "b1")
    address = f"{hub.endpoint}/ggml-org/llama.cpp/releases/download/b1/{asset_name('b1', HERE)}"
    hub.misbehave(rewritten(swapped(f'"{address}"', json.dumps(url))))
    ended = libs("libs", "pull", "--json")
    error: Any = ended.events[-1]["error"] if ended.out else ended.error
    assert (ended.code, error["type"]) == (6, "upstream"), error


@pytest.mark.parametrize("target", ["file:///etc/passwd", "http://169.254.169.254/x"])
def test_a_redirect_of_the_release_server_is_judged(here: Workspace, hub: LocalHub, target: str) -> None:
    hub.misbehave(Fault.redirect(target, path="/repos/"))
    with pytest.raises(KawaiError) as refused:
        plan(here)
    assert (refused.value.code, refused.value.exit_code) == ("bad_redirect", 6)
