"""Builds of llama.cpp from outside: installed, tried, switched, rolled back and removed, by both faces."""

import contextlib
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, get_args

import pytest

from kawai_tools.operations.table import OPERATIONS
from tests.bundles import (
    How,
    asset_name,
    broken_bundle,
    companion_bundle,
    host_platform,
    launcher_bundle,
    real_bundle,
)
from tests.hub import Fault, LocalHub
from tests.program import KAWAI, Daemon, Ended, Program, serving

KEYS = {
    *("status", "arch", "os", "processor", "latest", "current", "file", "completed", "total", "rate"),
    *("eta", "error", "pull", "seq"),
}
"""Contract, Libs and Streams: what every event of a build has."""

FRESH = ["resolving", "downloading", "verifying", "unpacking", "probing", "installing", "downloaded"]
FOREIGN = [each for each in FRESH if each != "probing"]
PER_RUN = {"pull", "seq", "completed", "rate", "eta"}
WINDOWS, ARM_CUDA, WIN_CUDA = "win-cpu-x64", "ubuntu-cuda-13.4-arm64", "win-cuda-13.4-x64"
HERE = host_platform()

pytestmark = pytest.mark.skipif(
    HERE != "ubuntu-x64", reason=f"the expected names are those of linux/amd64, and this is {HERE}"
)


class Shelf:
    """Archives of builds, each made once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: dict[tuple[str, ...], Path] = {}

    def good(self, tag: str, platform: str | None = None) -> Path:
        return self._once(
            ("good", tag, platform or HERE),
            lambda: launcher_bundle(tag, platform, directory=self._directory),
        )

    def broken(self, tag: str, how: How) -> Path:
        folder = self._directory / how
        return self._once((how, tag), lambda: broken_bundle(tag, how=how, directory=folder))

    def companion(self, tag: str, platform: str) -> Path:
        return self._once(
            ("with", tag, platform), lambda: companion_bundle(tag, platform, directory=self._directory)
        )

    def _once(self, key: tuple[str, ...], make: Callable[[], Path]) -> Path:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def offer(hub: LocalHub, tag: str, archive: "Path | bytes", platform: str = HERE, **more: Any) -> None:  # noqa: ANN401
    hub.add_release(tag, {asset_name(tag, platform): archive}, **more)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"))


@pytest.fixture
def cli(tmp_path: Path, hub: LocalHub) -> Program:
    """The command line with an empty home and the local hub, for models and for builds."""
    return Program(tmp_path, {"HF_ENDPOINT": hub.endpoint, "KAWAI_LIBS_API": hub.libs_api})


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory, shelf: Shelf) -> Path:
    """A home in which b1 was installed and then b2; to be copied."""
    root = tmp_path_factory.mktemp("installed")
    with LocalHub(root / "hub") as hub:
        for tag in ("b1", "b2"):
            offer(hub, tag, shelf.good(tag))
        cli = Program(root, {"KAWAI_LIBS_API": hub.libs_api})
        for tag in ("b1", "b2"):
            ended = cli("libs", "pull", tag)
            assert ended.code == 0, ended
    libraries = root / "kawai" / "libraries"
    (libraries / "releases.json").unlink()
    return libraries


@pytest.fixture
def stocked(cli: Program, hub: LocalHub, shelf: Shelf, installed: Path) -> Program:
    """b2 is active, b1 was before, and the release server has b1, b2 and b3."""
    shutil.copytree(installed, libraries(cli), symlinks=True)
    for tag in ("b1", "b2", "b3"):
        offer(hub, tag, shelf.good(tag))
    return cli


@pytest.fixture(params=["launcher", "true"])
def archive(request: pytest.FixtureRequest, shelf: Shelf) -> Callable[[str], Path]:
    """An archive for a tag: the launcher's, or (under any tag) the true build's."""
    if request.param == "launcher":
        return shelf.good
    found = real_bundle()
    if found is None:
        pytest.skip("KAWAI_TEST_BUNDLE names no true build of llama.cpp")
    return lambda _: found


def libraries(cli: Program) -> Path:
    return Path(cli.environ["KAWAI_HOME"]) / "libraries"


def folder(cli: Program, tag: str, platform: str = "linux-amd64-cpu") -> Path:
    return libraries(cli) / platform / tag


def state(cli: Program) -> dict[str, Any]:
    """What ``libs show`` says without asking anybody."""
    ended = cli("libs", "show", "--json", "--offline")
    assert ended.code == 0, ended
    found: dict[str, Any] = told_by(ended)[0]
    return found


def versions(cli: Program) -> tuple[Any, Any]:
    """What is active, and what was before."""
    now = state(cli)
    return now["current"], now["previous"]


def changes(events: list[dict[str, Any]]) -> list[str]:
    """The statuses in their order, each once."""
    found = [each["status"] for each in events]
    return [each for place, each in enumerate(found) if place == 0 or found[place - 1] != each]


def told_by(ended: Ended) -> list[Any]:
    """What ``--json`` printed, line by line."""
    return list(ended.events)


def downloads(hub: LocalHub) -> list[str]:
    """The archives that were asked for, at either server."""
    return [each.path for each in hub.requests if "/assets/" in each.path or "/download/" in each.path]


def still_answers(cli: Program, tag: str) -> bool:
    """Whether a build still starts, from where it is installed."""
    done = subprocess.run(
        [folder(cli, tag) / "llama-server", "--version"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode == 0 and f"version: {tag[1:]}" in done.stdout + done.stderr


def leftovers(cli: Program) -> list[str]:
    """Whatever a pull that has ended should not leave: staging, locks, what was moved aside."""
    return sorted(
        str(path.relative_to(libraries(cli)))
        for path in libraries(cli).rglob("*")
        if path.name == "unpacked" or (path.name.endswith((".replaced", ".lock")) and path.name != ".lock")
    )


def processes_in(directory: Path) -> list[str]:
    """The commands of live processes that run out of a directory."""
    found = []
    for proc in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (proc / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            alive = (proc / "stat").read_text().rpartition(") ")[2][0] != "Z"
            if alive and str(directory) in words:
                found.append(words)
    return found


@contextlib.contextmanager
def running(directory: Path) -> Iterator[None]:
    """Another process holds a build's directory as a Runner does (contract, Beside a daemon)."""
    code = "import fcntl,os,sys; fd=os.open(sys.argv[1],os.O_RDONLY); fcntl.flock(fd,fcntl.LOCK_SH)"
    code += "; print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [KAWAI[0], "-c", code, directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        yield
        holder.stdin.close()


# The table

ROWS = {
    "libs.show": ("GET", "/v1/libs"),
    "libs.pull": ("POST", "/v1/libs/pull"),
    "libs.available": ("GET", "/v1/libs/available"),
    "libs.use": ("POST", "/v1/libs/use"),
    "libs.rollback": ("POST", "/v1/libs/rollback"),
    "libs.rm": ("DELETE", "/v1/libs/{version}"),
}
"""The rows of Libs in the contract."""


def test_the_table_has_the_rows_of_libs_and_no_others() -> None:
    found = {row.name: (row.method, row.path) for row in OPERATIONS if row.name.startswith("libs.")}
    assert found == ROWS


def test_commands_are_rows_and_a_list_of_what_is_shown(kawai: Program) -> None:
    section = kawai("libs", "--help").out.partition("Commands:\n")[2].partition("\n\n")[0]
    commands = {line.split()[0] for line in section.splitlines() if line.startswith("  ")}
    assert commands == {*(name.partition(".")[2] for name in ROWS), "list"}


# One story, two faces


@pytest.mark.slow
def test_both_faces_tell_the_same(
    cli: Program, hub: LocalHub, archive: Callable[[str], Path], tmp_path: Path
) -> None:
    other = Program(tmp_path / "other", cli.environ | {"KAWAI_HOME": str(tmp_path / "other" / "kawai")})
    offer(hub, "b11400", archive("b11400"))
    with serving(other) as daemon:
        for tag, before in (("b11400", None), ("b11434", "b11400")):
            offer(hub, tag, archive(tag))
            typed = cli("libs", "pull", "--json")
            sent = daemon.ask("POST", "/v1/libs/pull")
            assert (typed.code, typed.err, sent.status) == (0, "", 200)
            for events in (told_by(typed), sent.events):
                is_a_whole_pull(events, tag, before)
            assert told(told_by(typed)) == told(sent.events)
    with serving(cli) as daemon:
        same(daemon, "GET", "/v1/libs", cli("libs", "show", "--json"))
        assert daemon.ask("GET", "/v1/libs").json["installed"] == told_by(cli("libs", "list", "--json"))[0]
        same(daemon, "GET", "/v1/libs/available", cli("libs", "available", "--json"))
        same(
            daemon,
            "GET",
            "/v1/libs/available?version=b11400",
            cli("libs", "available", "b11400", "--json"),
        )
        chosen = cli("libs", "use", "b11400", "--json")
        same(daemon, "POST", "/v1/libs/use", chosen, {"version": "b11400"})
        back = cli("libs", "rollback", "--json")
        assert daemon.ask("POST", "/v1/libs/rollback").json["current"] == "b11400"
        same(daemon, "POST", "/v1/libs/rollback", back)
        assert versions(cli) == ("b11434", "b11400")
        assert daemon.ask("DELETE", "/v1/libs/b11434").status == 409
        gone = daemon.ask("DELETE", "/v1/libs/b11400")
        assert (gone.status, gone.body) == (204, b"")
        assert not folder(cli, "b11400").exists()
        assert versions(cli) == ("b11434", None)
        assert daemon.ask("DELETE", "/v1/libs/b11400").status == 404


def is_a_whole_pull(events: list[dict[str, Any]], tag: str, before: str | None) -> None:
    """Contract, Streams: every key in every event, statuses in order, one final, ``current`` as of then."""
    assert changes(events) == FRESH
    assert [each["status"] for each in events].count("downloaded") == 1
    for event in events:
        assert event.keys() >= KEYS
        assert (event["os"], event["arch"], event["processor"]) == ("linux", "amd64", "cpu")
        assert (event["latest"], event["error"]) == (tag, None)
        assert event["current"] == (tag if event["status"] == "downloaded" else before)
        assert 0 <= event["completed"] <= event["total"]
    numbers = [each["seq"] for each in events]
    assert numbers == sorted(set(numbers))
    assert numbers[0] == 1
    assert len({each["pull"] for each in events}) == 1
    assert events[-1]["completed"] == events[-1]["total"] > 0
    during = [each for each in events if each["status"] == "downloading"]
    assert {each["file"] for each in during} == {asset_name(tag, HERE)}


def told(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The changes that events tell, without what differs from run to run."""
    plain = [{key: value for key, value in each.items() if key not in PER_RUN} for each in events]
    return [each for place, each in enumerate(plain) if place == 0 or plain[place - 1] != each]


def same(daemon: Daemon, method: str, path: str, typed: Ended, body: object = None) -> None:
    """Contract, Commands: ``--json`` prints the HTTP payload, the same bytes and a newline."""
    sent = daemon.ask(method, path, body)
    assert (sent.status, typed.code) == (200, 0), (sent, typed)
    assert sent.body.decode() + "\n" == typed.out


def test_what_is_shown_after_a_switch_is_what_is_shown(stocked: Program) -> None:
    """Contract: ``use`` and ``rollback`` answer with the ``GET /v1/libs`` object."""
    shown = told_by(stocked("libs", "show", "--json"))[0]
    assert shown["latest"] == "b3"
    switched = told_by(stocked("libs", "use", "b2", "--json"))[0]
    assert switched == shown


def test_a_true_build_is_unpacked_as_tar_does(
    cli: Program, hub: LocalHub, archive: Callable[[str], Path], tmp_path: Path
) -> None:
    offer(hub, "b11434", archive("b11434"))
    assert cli("libs", "pull").code == 0
    subprocess.run(
        ["tar", "xzf", archive("b11434"), "-C", tmp_path, "--strip-components=1", "--one-top-level=by-tar"],
        check=True,
    )
    listed = tree(folder(cli, "b11434"))
    assert listed == tree(tmp_path / "by-tar")
    assert any(kind == "link" for kind, *_ in listed.values())


def tree(directory: Path) -> dict[str, tuple[str, str | int, bytes]]:
    found: dict[str, tuple[str, str | int, bytes]] = {}
    for path in directory.rglob("*"):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = ("link", str(path.readlink()), b"")
        elif path.is_file():
            found[name] = ("file", stat.S_IMODE(path.stat().st_mode), path.read_bytes())
        else:
            found[name] = ("folder", stat.S_IMODE(path.stat().st_mode), b"")
    return found


# What a user sees


def test_what_a_user_sees_in_a_pipe(stocked: Program, hub: LocalHub) -> None:
    ended = stocked("libs", "pull")
    assert (ended.code, ended.out) == (0, "active: b3 (was b2)\n")
    lines = ended.err.splitlines()
    assert lines[0] == "linux/amd64/cpu (no NVIDIA, ROCm or Vulkan device found)"
    assert lines[1].startswith("b3 ")
    assert "nightly" in lines[1]
    assert [word for word in ("downloading", "probing") if word not in ended.err] == []
    assert "\x1b" not in ended.err
    hub.clear_requests()
    again = stocked("libs", "pull")
    assert (again.code, again.out) == (0, "b3 is already active\n")
    assert downloads(hub) == []


def test_what_a_user_sees_on_a_terminal(stocked: Program) -> None:
    seen = stocked.on_terminal("libs", "pull").plain
    wanted = ("linux/amd64/cpu (no NVIDIA", "b3 ", "nightly", "probing", "active: b3 (was b2)")
    assert [words for words in wanted if words not in seen] == []
    assert "Traceback" not in seen
    again = stocked.on_terminal("libs", "pull").plain
    assert "b3 is already active" in again
    assert "downloading" not in again


def test_the_first_build_was_nothing_before(cli: Program, hub: LocalHub, shelf: Shelf) -> None:
    offer(hub, "b1", shelf.good("b1"))
    assert cli("libs", "pull").out == "active: b1\n"


def test_quiet_says_the_result_only(stocked: Program) -> None:
    ended = stocked("libs", "pull", "--quiet")
    assert (ended.code, ended.out, ended.err) == (0, "active: b3 (was b2)\n", "")


def test_shown_and_listed_for_people(stocked: Program) -> None:
    shown = stocked("libs", "show").out
    assert [word for word in ("linux/amd64/cpu", "b3 (nightly)", "b2", "b1", "ok") if word not in shown] == []
    listed = stocked("libs", "list")
    rows = [line.split() for line in listed.out.splitlines()]
    assert [row[0] for row in rows] == ["VERSION", "b2", "b1"]
    assert ["yes" in row for row in rows[1:]] == [True, False]
    assert "b3" in stocked("libs", "available").out


def test_nothing_installed_is_said(cli: Program) -> None:
    ended = cli("libs", "list")
    assert (ended.code, ended.out) == (0, "")
    assert "kawai libs pull" in ended.err
    assert cli("libs", "list", "--json").out == "[]\n"


def test_versions_of_installed_builds_are_completed(stocked: Program) -> None:
    for command in ("use", "rm"):
        words = f"kawai libs {command} b"
        offered = stocked(_KAWAI_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD="3")
        assert (offered.out.split(), offered.err) == (["b2", "b1"], "")


# Which version, and the release server


def test_the_newest_is_the_newest_that_has_a_build_for_this_machine(
    cli: Program, hub: LocalHub, shelf: Shelf
) -> None:
    offer(hub, "b1", shelf.good("b1"))
    offer(hub, "b2", shelf.good("b1"), "ubuntu-arm64")
    hub.add_release("b3", {})
    assert told_by(cli("libs", "pull", "--json"))[-1]["current"] == "b1"
    assert told_by(cli("libs", "show", "--json"))[0]["latest"] == "b1"


def test_the_stable_channel_follows_the_note(stocked: Program, hub: LocalHub) -> None:
    hub.add_release("v1.0.0", {"nightly-tag.txt": b"b1\n"}, prerelease=False)
    ended = stocked("libs", "pull", "--channel", "stable")
    assert (ended.code, ended.out) == (0, "active: b1 (was b2)\n")
    assert "stable" in ended.err
    assert state(stocked)["current"] == "b1"


def test_a_pull_always_asks_and_pays_nothing_for_the_same_answer(stocked: Program, hub: LocalHub) -> None:
    assert stocked("libs", "pull", "--dry-run").code == 0
    hub.clear_requests()
    assert stocked("libs", "pull", "--dry-run").code == 0
    assert [each.status for each in hub.requests] == [304]
    hub.clear_requests()
    assert told_by(stocked("libs", "show", "--json"))[0]["latest"] == "b3"
    assert hub.requests == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", [Fault.silent(), Fault.status(503), None], ids=["silent", "503", "down"])
def test_a_dead_release_server_does_not_keep_from_seeing_what_is_installed(
    stocked: Program, hub: LocalHub, fault: Fault | None
) -> None:
    if fault is None:
        hub.down()
    else:
        hub.misbehave(fault)
    begin = time.monotonic()
    ended = stocked("libs", "show", "--json")
    assert time.monotonic() - begin < 5 + 1.5  # what starting Python takes on a busy machine
    (found,) = told_by(ended)
    assert (ended.code, found["latest"], found["current"], len(found["installed"])) == (0, None, "b2", 2)
    assert found["latest_error"]
    people = stocked("libs", "show", "--offline")
    assert people.code == 0
    assert "not known" in people.out
    assert "could not be learned" in people.err


def test_a_spent_rate_limit_names_the_variable_and_when(
    stocked: Program, hub: LocalHub, daemon: Daemon
) -> None:
    hub.rate_limit = 0
    ended = stocked("libs", "pull", "--json")
    sent = daemon.ask("POST", "/v1/libs/pull")
    assert (ended.code, sent.status) == (6, 502)
    assert ended.error == sent.error
    assert (ended.error["code"], "GITHUB_TOKEN" in ended.error["hint"]) == ("rate_limited", True)
    assert "UTC" in ended.error["message"]
    hub.add_token("ghp_known")
    assert stocked("libs", "pull", "--dry-run", GITHUB_TOKEN="ghp_known").code == 0
    assert not [each for each in hub.requests if each.server == "cdn" and "authorization" in each.headers]


def test_the_release_servers_token_stays_with_it(stocked: Program, hub: LocalHub) -> None:
    hub.add_token("ghp_known")
    assert stocked("libs", "pull", GITHUB_TOKEN="ghp_known").code == 0
    asked = {each.server: "authorization" in each.headers for each in hub.requests}
    assert asked == {"hub": True, "cdn": False}
    kept = [path for path in Path(stocked.environ["KAWAI_HOME"]).rglob("*") if path.is_file()]
    assert not [path for path in kept if b"ghp_known" in path.read_bytes()]


def test_outdated_says_how_the_build_stands(
    stocked: Program, cli: Program, hub: LocalHub, tmp_path: Path
) -> None:
    told = stocked("outdated", "--quiet")
    assert (told.out, told.err) == ("llama.cpp b2 is used, and b3 is there: kawai libs pull\n", "")
    hub.remove_release("b3")
    (libraries(cli) / "releases.json").unlink()  # an answer holds for a while
    told = stocked("outdated")
    assert (told.code, told.out) == (0, "")
    assert told.err.splitlines() == ["no installed model came from a hub", "llama.cpp b2 is the newest"]
    bare = Program(tmp_path, cli.environ | {"KAWAI_HOME": str(tmp_path / "bare")})
    words = "no build of llama.cpp is installed; kawai libs pull gets b2"
    assert bare("outdated").err.splitlines()[-1] == words
    hub.remove_release("b2")
    (libraries(cli) / "releases.json").unlink()
    told = stocked("outdated")
    assert told.err.splitlines()[-1] == "llama.cpp b2 is used, and b1 is the newest that is offered"


# Bad input


@pytest.fixture(scope="module")
def court(tmp_path_factory: pytest.TempPathFactory, shelf: Shelf) -> Iterator[tuple[Program, Daemon]]:
    """A home without builds, a daemon on it, and a release server with builds for here and elsewhere."""
    root = tmp_path_factory.mktemp("court")
    with LocalHub(root / "hub") as hub:
        offer(hub, "b1", shelf.good("b1"))
        offer(hub, "b1", b"PK\x03\x04", WINDOWS)
        cli = Program(root, {"HF_ENDPOINT": hub.endpoint, "KAWAI_LIBS_API": hub.libs_api})
        with serving(cli) as daemon:
            yield cli, daemon


@pytest.mark.parametrize(
    ("typed", "body", "status", "code", "words"),
    [
        (["b9"], {"version": "b9"}, 404, "version_not_found", ["b9", "b1"]),
        (["latest"], {"version": "latest"}, 400, "invalid_request", ["latest", "b11434"]),
        (["../b1"], {"version": "../b1"}, 400, "invalid_request", ["../b1"]),
        (["--arch", "s390x"], {"arch": "s390x"}, 404, "build_not_found", ["s390x", "linux/amd64/cpu"]),
        (
            ["--processor", "cuda"],
            {"processor": "cuda"},
            404,
            "build_not_found",
            ["linux/amd64/cuda", "linux/amd64/cpu"],
        ),
        (["--processor", "gpu"], {"processor": "gpu"}, 400, "invalid_request", ["gpu", "vulkan"]),
        (["--os", "beos"], {"os": "beos"}, 400, "invalid_request", ["beos", "darwin"]),
        (["--channel", "x"], {"channel": "x"}, 400, "invalid_request", ["nightly", "stable"]),
        (["--os", "windows"], {"os": "windows"}, 400, "invalid_request", ["windows", "--no-activate"]),
        (["--channel", "stable"], {"channel": "stable"}, 404, "version_not_found", ["--channel"]),
        (["--limit-rate", "x"], {"limit_rate": "x"}, 400, "invalid_body", ["20M"]),
        (["--connections", "0"], {"connections": 0}, 400, "invalid_body", ["64"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_pull_that_makes_no_sense(
    court: tuple[Program, Daemon],
    typed: list[str],
    body: dict[str, object],
    status: int,
    code: str,
    words: list[str],
) -> None:
    cli, daemon = court
    ended, sent = cli("libs", "pull", *typed, "--json"), daemon.ask("POST", "/v1/libs/pull", body)
    assert (sent.status, ended.code, ended.out) == (status, {400: 2, 404: 3}[status], "")
    assert ended.error == sent.error
    assert ended.error["code"] == code
    whole = f"{ended.error['message']} {ended.error['hint']}"
    assert [word for word in words if word not in whole] == []
    assert not folder(cli, "b1").exists()


@pytest.mark.parametrize(
    ("typed", "method", "path", "body", "status"),
    [
        (["use", "b9"], "POST", "/v1/libs/use", {"version": "b9"}, 404),
        (["rm", "b9"], "DELETE", "/v1/libs/b9", None, 404),
        (["rollback"], "POST", "/v1/libs/rollback", None, 409),
        (["available", "b9"], "GET", "/v1/libs/available?version=b9", None, 404),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_not_there(
    court: tuple[Program, Daemon],
    typed: list[str],
    method: str,
    path: str,
    body: object,
    status: int,
) -> None:
    cli, daemon = court
    ended, sent = cli("libs", *typed, "--json"), daemon.ask(method, path, body)
    assert (sent.status, ended.code) == (status, {404: 3, 409: 5}[status])
    assert ended.error == sent.error
    assert ended.error["hint"]


@pytest.mark.parametrize(
    ("body", "named"), [({"vresion": "b1"}, "vresion"), ({"activate": "no"}, "activate"), ([], "object")]
)
def test_a_body_that_does_not_fit(court: tuple[Program, Daemon], body: object, named: str) -> None:
    sent = court[1].ask("POST", "/v1/libs/pull", body)
    assert (sent.status, named in sent.error["message"]) == (400, True)


@pytest.mark.parametrize("digest", [None, "md5:d41d8cd98f00b204e9800998ecf8427e"])
def test_without_a_digest_nothing_is_fetched(
    stocked: Program, hub: LocalHub, daemon: Daemon, digest: str | None
) -> None:
    hub.set_digest("b3", asset_name("b3", HERE), digest)
    hub.clear_requests()
    ended, sent = stocked("libs", "pull", "--json"), daemon.ask("POST", "/v1/libs/pull")
    assert (ended.code, sent.status, ended.error) == (7, 422, sent.error)
    assert (ended.error["code"], "--allow-unverified" in ended.error["hint"]) == ("no_digest", True)
    assert asset_name("b3", HERE) in ended.error["message"]
    assert downloads(hub) == []
    allowed = stocked("libs", "pull", "--allow-unverified")
    assert (allowed.code, allowed.out) == (0, "active: b3 (was b2)\n")
    assert stocked("libs", "pull", "--allow-unverified").out == "b3 is already active\n"


def test_allow_unverified_does_not_allow_a_wrong_digest(stocked: Program, hub: LocalHub) -> None:
    hub.set_digest("b3", asset_name("b3", HERE), f"sha256:{'0' * 64}")
    ended = stocked("libs", "pull", "--allow-unverified", "--json")
    assert (ended.code, told_by(ended)[-1]["error"]["code"]) == (7, "digest_mismatch")
    assert changes(told_by(ended))[-1] == "failed"
    assert "unpacking" not in changes(told_by(ended))
    assert told_by(ended)[-1]["current"] == "b2"
    assert (versions(stocked), folder(stocked, "b3").exists()) == (("b2", "b1"), False)
    hub.set_digest("b3", asset_name("b3", HERE), None)
    good = stocked("libs", "pull", "--allow-unverified")
    assert (good.code, good.out) == (0, "active: b3 (was b2)\n")


def tar(*members: tuple[str, bytes | str]) -> bytes:
    """A tar.gz of files (bytes) and links (text)."""
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                packed.addfile(member)
            else:
                member.size = len(content)
                packed.addfile(member, BytesIO(content))
    return buffer.getvalue()


GOOD = tar(("llama-b3/llama-server", b"x" * 50_000), ("llama-b3/LICENSE", os.urandom(50_000)))


@pytest.mark.parametrize(
    ("data", "code", "named"),
    [
        (tar(("llama-b3/../../canary", b"x")), "unsafe_archive", "canary"),
        (tar(("/canary", b"x")), "unsafe_archive", "/canary"),
        (tar(("llama-b3/out", "../../.."), ("llama-b3/out/canary", b"x")), "unsafe_archive", "out"),
        (GOOD[:40_000], "broken_archive", "LICENSE"),
        (b"<!doctype html><title>Sign in</title>" * 400, "broken_archive", "archive"),
    ],
    ids=["up", "absolute", "link", "cut", "page"],
)
def test_an_archive_that_cannot_be_trusted(
    stocked: Program, hub: LocalHub, tmp_path: Path, data: bytes, code: str, named: str
) -> None:
    offer(hub, "b3", data)
    ended = stocked("libs", "pull", "--json")
    last = told_by(ended)[-1]
    assert (ended.code, last["status"], last["error"]["code"]) == (7, "failed", code)
    assert named in last["error"]["message"]
    assert ".partial" not in last["error"]["message"]  # the name of the archive, not of kawai's own file
    assert (last["current"], versions(stocked)) == ("b2", ("b2", "b1"))
    assert not list(tmp_path.rglob("canary"))
    assert not folder(stocked, "b3").exists()
    assert leftovers(stocked) == []


def test_after_a_bad_archive_a_good_one_installs(stocked: Program, hub: LocalHub, shelf: Shelf) -> None:
    offer(hub, "b3", GOOD[:40_000])
    assert stocked("libs", "pull").code == 7
    offer(hub, "b3", shelf.good("b3"))
    ended = stocked("libs", "pull")
    assert (ended.code, ended.out) == (0, "active: b3 (was b2)\n")


# Builds that do not work

CAUSES: dict[How, str] = {
    "sigill": "SIGILL",
    "sigill_on_load": "SIGILL",
    "missing_library": "libggml-base.so.0",
    "wrong_arch": "another kind of machine",
    "no_server": "no llama-server",
    "exits": "failed to load backend",
    "hangs": "does not end",
    "floods": "does not end",
}


def test_every_way_to_be_broken_is_tried() -> None:
    assert set(CAUSES) == set(get_args(How))


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(how, marks=pytest.mark.slow if how in {"hangs", "floods"} else ())
        for how in get_args(How)
    ],
)
def test_a_build_that_does_not_work_is_kept_and_not_used(
    stocked: Program, hub: LocalHub, shelf: Shelf, how: How
) -> None:
    offer(hub, "b3", shelf.broken("b3", how))
    ended = stocked("libs", "pull", "--json")
    last = told_by(ended)[-1]
    assert (ended.code, last["status"], last["error"]["code"]) == (7, "failed", "probe_failed")
    assert CAUSES[how] in last["error"]["message"]
    assert "Traceback" not in last["error"]["message"]
    assert last["current"] == "b2"
    now = state(stocked)
    assert (now["current"], now["previous"]) == ("b2", "b1")
    rows = {row["version"]: row for row in now["installed"]}
    assert (rows["b3"]["active"], rows["b3"]["probe"]["ok"]) == (False, False)
    assert CAUSES[how] in rows["b3"]["probe"]["detail"]
    assert still_answers(stocked, "b2")
    assert processes_in(libraries(stocked)) == []
    assert leftovers(stocked) == []


@pytest.mark.parametrize("how", ["sigill", "no_server"])
def test_a_build_that_does_not_work_is_refused_later_too(
    stocked: Program, hub: LocalHub, shelf: Shelf, daemon: Daemon, how: How
) -> None:
    offer(hub, "b3", shelf.broken("b3", how))
    assert stocked("libs", "pull").code == 7
    assert "failed" in stocked("libs", "list").out
    used, sent = stocked("libs", "use", "b3", "--json"), daemon.ask("POST", "/v1/libs/use", {"version": "b3"})
    assert (used.code, sent.status, used.error) == (7, 422, sent.error)
    assert CAUSES[how] in used.error["message"]
    again = daemon.ask("POST", "/v1/libs/pull")
    assert (again.status, again.events[-1]["error"]["code"]) == (200, "probe_failed")
    assert versions(stocked) == ("b2", "b1")
    assert stocked("libs", "rm", "b3").code == 0
    assert [row["version"] for row in state(stocked)["installed"]] == ["b2", "b1"]


@pytest.mark.parametrize("force", [True, False])
def test_an_active_build_is_not_replaced_by_one_that_does_not_work(
    stocked: Program, hub: LocalHub, shelf: Shelf, *, force: bool
) -> None:
    """Issue 3: the bundle is kept inactive, the old one untouched, and active.json names one that passes."""
    offer(hub, "b2", shelf.broken("b2", "sigill"))  # released again under the same name
    ended = stocked("libs", "pull", "b2", *(["--force"] if force else []))
    assert ended.code == 7
    assert "SIGILL" in ended.err
    now = state(stocked)
    assert now["current"] == "b2"
    assert next(row for row in now["installed"] if row["active"])["probe"]["ok"] is True
    assert still_answers(stocked, "b2")


def test_what_an_older_build_is_replaced_by_does_not_reach_rollback(
    stocked: Program, hub: LocalHub, shelf: Shelf
) -> None:
    offer(hub, "b1", shelf.broken("b1", "sigill"))
    assert stocked("libs", "pull", "b1", "--force", "--no-activate").code == 7
    assert stocked("libs", "rollback").code in {0, 7}
    assert still_answers(stocked, str(versions(stocked)[0]))


def test_ctrl_c_while_a_build_is_tried_leaves_nothing_running(
    stocked: Program, hub: LocalHub, shelf: Shelf
) -> None:
    offer(hub, "b3", shelf.broken("b3", "hangs"))
    begin = time.monotonic()
    seen = stocked.on_terminal(
        "libs", "pull", seen="probing", then=lambda process: process.send_signal(signal.SIGINT)
    )
    assert seen.code == 130
    assert time.monotonic() - begin < 10  # the probe alone would wait 20
    assert "cancelled" in seen.plain
    assert processes_in(libraries(stocked)) == []
    assert (leftovers(stocked), folder(stocked, "b3").exists()) == ([], False)
    assert versions(stocked) == ("b2", "b1")


# use, rollback, rm


def test_use_and_rollback_for_people(stocked: Program) -> None:
    assert stocked("libs", "use", "b1").out == "active: b1 (was b2)\n"
    assert stocked("libs", "rollback").out == "active: b2 (was b1)\n"
    assert stocked("libs", "rollback").out == "active: b1 (was b2)\n"


def test_using_the_active_one_keeps_the_one_before(stocked: Program) -> None:
    ended = stocked("libs", "use", "b2")
    assert ended.code == 0
    assert "was b1" not in ended.out  # it was b2
    assert versions(stocked) == ("b2", "b1")


def test_without_a_build_before_there_is_no_rollback(stocked: Program, daemon: Daemon) -> None:
    assert stocked("libs", "rm", "b1").code == 0
    ended, sent = stocked("libs", "rollback", "--json"), daemon.ask("POST", "/v1/libs/rollback")
    assert (ended.code, sent.status, ended.error) == (5, 409, sent.error)
    assert ended.error["type"] == "conflict"
    assert versions(stocked) == ("b2", None)


def test_the_active_build_is_not_removed(stocked: Program, daemon: Daemon) -> None:
    ended, sent = stocked("libs", "rm", "b2", "--json"), daemon.ask("DELETE", "/v1/libs/b2")
    assert (ended.code, sent.status, ended.error) == (5, 409, sent.error)
    assert still_answers(stocked, "b2")


def test_a_build_that_runs_is_kept_while_others_are_used(stocked: Program, daemon: Daemon) -> None:
    with running(folder(stocked, "b1")):
        ended, sent = stocked("libs", "rm", "b1", "--json"), daemon.ask("DELETE", "/v1/libs/b1")
        assert (ended.code, sent.status, ended.error) == (5, 409, sent.error)
        assert ended.error["code"] == "in_use"
        assert stocked("libs", "rollback").out == "active: b1 (was b2)\n"
        assert stocked("libs", "use", "b2").out == "active: b2 (was b1)\n"
        forced = stocked("libs", "pull", "b1", "--force", "--no-activate", "--json")
        assert (forced.code, told_by(forced)[-1]["error"]["code"]) == (5, "in_use")
        assert still_answers(stocked, "b1")
    assert stocked("libs", "rm", "b1").code == 0
    assert not folder(stocked, "b1").exists()


def test_looking_while_another_kawai_replaces_or_removes_a_build(stocked: Program) -> None:
    """What is being removed is moved aside first, and held meanwhile."""
    aside = folder(stocked, ".b0.replaced")
    aside.mkdir()
    fd = os.open(aside, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        ended = stocked("libs", "list")
        assert (ended.code, ended.err) == (0, "")
        assert aside.exists()
    finally:
        os.close(fd)
    assert stocked("libs", "list").code == 0
    assert not aside.exists()


def test_a_replacement_that_was_cut_off_is_put_back(stocked: Program) -> None:
    folder(stocked, "b2").rename(folder(stocked, ".b2.replaced"))
    assert versions(stocked) == ("b2", "b1")
    assert still_answers(stocked, "b2")


def test_removing_what_is_being_pulled_does_not_break_the_pull(stocked: Program, hub: LocalHub) -> None:
    hub.throttle = 2000
    with stocked.start("libs", "pull", "b1", "--force", "--no-activate", "--json") as pull:
        assert pull.stdout
        for line in pull.stdout:
            if '"downloading"' in line:
                break
        removed = stocked("libs", "rm", "b1", "--json")
        hub.throttle = None
        out, err = pull.communicate(timeout=60)
    assert removed.code in {0, 5}, removed
    assert '"internal"' not in out, out
    assert err == ""


# Several processors, other platforms


@pytest.fixture
def two_kinds(stocked: Program) -> Program:
    """b1 is installed for the CPU and for Vulkan."""
    here, there = folder(stocked, "b1"), folder(stocked, "b1", "linux-amd64-vulkan")
    shutil.copytree(here, there, symlinks=True)
    record = here.parent / ".kawai" / "b1.json"
    copy = there.parent / ".kawai" / "b1.json"
    copy.parent.mkdir()
    copy.write_text(record.read_text().replace('"processor": "cpu"', '"processor": "vulkan"'))
    return stocked


def test_a_version_for_several_processors_wants_one_named(two_kinds: Program, daemon: Daemon) -> None:
    used, sent = (
        two_kinds("libs", "use", "b1", "--json"),
        daemon.ask("POST", "/v1/libs/use", {"version": "b1"}),
    )
    assert (used.code, sent.status, used.error) == (5, 409, sent.error)
    assert {"cpu", "vulkan", "--processor"} <= set(
        f"{used.error['message']} {used.error['hint']}".replace(",", "").split()
    )
    assert daemon.ask("DELETE", "/v1/libs/b1").status == 409
    assert daemon.ask("POST", "/v1/libs/use", {"version": "b1", "processor": "vulkan"}).status == 200
    active = next(row for row in state(two_kinds)["installed"] if row["active"])
    assert (active["version"], active["processor"]) == ("b1", "vulkan")
    assert daemon.ask("DELETE", "/v1/libs/b1?processor=vulkan").status == 409
    assert two_kinds("libs", "rm", "b1", "--processor", "cpu").code == 0
    assert two_kinds("libs", "rm", "b1", "--processor", "cuda").code == 3


@pytest.fixture
def elsewhere(stocked: Program, hub: LocalHub, shelf: Shelf) -> Program:
    """b3 is there for Windows and, with companions, for CUDA on other machines."""
    hub.add_release("b3", {asset_name("b3", WINDOWS): shelf.good("b3", WINDOWS)})
    for platform in (ARM_CUDA, WIN_CUDA):
        companion = shelf.companion("b3", platform)
        hub.add_release(
            "b3", {asset_name("b3", platform): shelf.good("b3", platform), companion.name: companion}
        )
    return stocked


@pytest.mark.parametrize(
    ("wish", "place", "files"),
    [
        ({"os": "windows"}, "windows-amd64-cpu", ["llama-server.exe"]),
        (
            {"os": "windows", "processor": "cuda"},
            "windows-amd64-cuda",
            ["llama-server.exe", "libcudart.so.13.4"],
        ),
        (
            {"arch": "arm64", "processor": "cuda"},
            "linux-arm64-cuda",
            ["llama-server", "libcudart.so", "libcudart.so.0", "libcudart.so.13.4"],
        ),
    ],
    ids=["windows", "windows-cuda", "arm64-cuda"],
)
def test_a_build_for_another_machine_is_fetched_and_never_tried(
    elsewhere: Program, wish: dict[str, str], place: str, files: list[str]
) -> None:
    flags = [word for name, value in wish.items() for word in (f"--{name}", value)]
    ended = elsewhere("libs", "pull", "--no-activate", *flags, "--json")
    assert (ended.code, told_by(ended)[-1]["current"]) == (0, "b2")
    assert [each for each in changes(told_by(ended)) if each not in FOREIGN] == []
    assert {"verifying", "unpacking"} <= set(changes(told_by(ended)))
    where = folder(elsewhere, "b3", place)
    assert [name for name in files if not (where / name).exists()] == []
    row = state(elsewhere)["installed"][0]
    assert (row["version"], row["os"], row["active"], row["probe"]["ok"]) == (
        "b3",
        place.partition("-")[0],
        False,
        None,
    )
    assert "not tried" in elsewhere("libs", "list").out
    used = elsewhere("libs", "use", "b3")
    assert used.code != 0
    assert versions(elsewhere) == ("b2", "b1")
    assert elsewhere("libs", "rm", "b3").code == 0


def test_a_build_that_cannot_be_used_here_stays_not_tried(elsewhere: Program) -> None:
    assert elsewhere("libs", "pull", "--no-activate", "--os", "windows").code == 0
    used = elsewhere("libs", "use", "b3", "--json")
    assert used.code in {2, 5, 7}
    assert "windows" in used.error["message"]
    row = state(elsewhere)["installed"][0]
    assert (row["os"], row["probe"]["ok"]) == ("windows", None)


def test_the_same_version_for_two_machines_can_be_told_apart(elsewhere: Program) -> None:
    """One of them can only be used on the other machine: this one's is meant."""
    assert elsewhere("libs", "pull", "--no-activate").code == 0
    assert elsewhere("libs", "pull", "--no-activate", "--os", "windows").code == 0
    assert elsewhere("libs", "use", "b3").out == "active: b3 (was b2)\n"
    with serving(elsewhere) as daemon:
        assert daemon.ask("DELETE", "/v1/libs/b3").status == 409
        assert daemon.ask("DELETE", "/v1/libs/b3?os=amiga").status == 400
        assert daemon.ask("DELETE", "/v1/libs/b3?os=windows&arch=arm64").status == 404
        assert daemon.ask("DELETE", "/v1/libs/b3?os=windows&arch=amd64").status == 204
    assert versions(elsewhere) == ("b3", "b2")
    assert elsewhere("libs", "pull", "b3", "--no-activate", "--os", "windows").code == 0
    assert elsewhere("libs", "use", "b2").code == 0
    assert elsewhere("libs", "rm", "b3", "--os", "windows").err == "removed b3\n"
    assert elsewhere("libs", "use", "b3").out == "active: b3 (was b2)\n"


def test_companions_that_are_lacking_a_digest_are_not_unpacked(elsewhere: Program, hub: LocalHub) -> None:
    companion = f"cudart-llama-b3-bin-{ARM_CUDA}.tar.gz"
    hub.set_digest("b3", companion, None)
    wish = ["--arch", "arm64", "--processor", "cuda", "--no-activate"]
    ended = elsewhere("libs", "pull", *wish, "--json")
    assert (ended.code, companion in ended.error["message"]) == (7, True)


@pytest.mark.usefixtures("elsewhere")
def test_what_is_on_offer_has_one_chosen(daemon: Daemon) -> None:
    found = daemon.ask("GET", "/v1/libs/available").json
    assert found["version"] == "b3"
    builds = {(each["os"], each["arch"], each["processor"]): each for each in found["builds"]}
    assert [key for key, each in builds.items() if each["chosen"]] == [("linux", "amd64", "cpu")]
    cuda = builds["linux", "arm64", "cuda"]
    assert cuda["variant"] == "13.4"
    assert [asset["name"].split("-")[0] for asset in cuda["assets"]] == ["llama", "cudart"]
    assert all(asset["size"] > 0 for asset in cuda["assets"])


# Options of a pull


def test_a_dry_run_fetches_nothing(stocked: Program, hub: LocalHub, daemon: Daemon) -> None:
    typed, sent = (
        stocked("libs", "pull", "--dry-run", "--json"),
        daemon.ask("POST", "/v1/libs/pull", {"dry_run": True}),
    )
    assert (typed.code, sent.status, sent.headers["content-type"]) == (0, 200, "application/json")
    plan = told_by(typed)[0]
    assert {**plan, "free": 0} == {**sent.json, "free": 0}
    assert (plan["id"], plan["exists"]) == ("b3", False)
    (file,) = plan["files"]
    assert file.keys() == {"url", "path", "size", "sha256", "have"}
    assert (plan["total"], file["have"], len(file["sha256"])) == (file["size"], 0, 64)
    assert downloads(hub) == []
    assert not folder(stocked, "b3").exists()
    assert "b2 is already installed" in stocked("libs", "pull", "b2", "--dry-run").out
    assert asset_name("b3", HERE) in stocked("libs", "pull", "--dry-run").out


def test_no_activate_installs_and_keeps_the_other(stocked: Program) -> None:
    ended = stocked("libs", "pull", "--no-activate")
    assert (ended.code, ended.out) == (0, "b3 is installed; active: b2\n")
    row = state(stocked)["installed"][0]
    assert (row["version"], row["active"], row["probe"]["ok"]) == ("b3", False, True)
    assert stocked("libs", "pull").out == "active: b3 (was b2)\n"


def test_force_fetches_again(stocked: Program, hub: LocalHub) -> None:
    before = state(stocked)["installed"][0]["installed_at"]
    hub.clear_requests()
    ended = stocked("libs", "pull", "b2", "--force", "--json")
    assert (ended.code, changes(told_by(ended))) == (0, FRESH)
    assert downloads(hub)
    assert (versions(stocked), state(stocked)["installed"][0]["installed_at"] > before) == (
        ("b2", "b1"),
        True,
    )
    assert leftovers(stocked) == []


def test_a_rate_is_kept_to(stocked: Program, shelf: Shelf) -> None:
    size = shelf.good("b3").stat().st_size
    begin = time.monotonic()
    ended = stocked("libs", "pull", "--limit-rate", str(size), "--no-activate")
    assert ended.code == 0
    assert time.monotonic() - begin > 0.8


def test_ctrl_c_leaves_a_partial_that_the_next_one_goes_on_from(
    stocked: Program, hub: LocalHub, shelf: Shelf
) -> None:
    size = shelf.good("b3").stat().st_size
    hub.throttle = size // 4
    with stocked.start("libs", "pull", "--json") as pull:
        assert pull.stdout
        for line in pull.stdout:
            if '"downloading"' in line and '"completed":0,' not in line:
                break
        pull.send_signal(signal.SIGINT)
        out, err = pull.communicate(timeout=30)
    assert (pull.returncode, '"cancelled"' in out) == (130, True)
    assert "Traceback" not in err
    assert (versions(stocked), folder(stocked, "b3").exists()) == (("b2", "b1"), False)
    hub.throttle = None
    hub.clear_requests()
    plan = told_by(stocked("libs", "pull", "--dry-run", "--json"))[0]
    assert 0 < plan["files"][0]["have"] < size
    ended = stocked("libs", "pull")
    assert (ended.code, ended.out) == (0, "active: b3 (was b2)\n")
    assert sum(each.sent_bytes for each in hub.requests if each.server == "cdn") < size


# Pulls of the daemon


def test_pulls_show_a_build_and_it_can_be_followed_and_cancelled(
    stocked: Program, hub: LocalHub, daemon: Daemon, shelf: Shelf
) -> None:
    hub.throttle = shelf.good("b3").stat().st_size // 8
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(daemon.ask, "POST", "/v1/libs/pull")
        assert hub.wait_for(lambda asked: any(each.path.endswith("/releases") for each in asked))
        row = awaited(lambda: told_by(stocked("pulls", "list", "--json"))[0])[0]
        assert (row["kind"], row["status"] in FRESH, row["total"] > 0) == ("libs", True, True)
        assert "b3" in row["target"]
        shown = stocked("pulls", "list").out
        assert "b3" in shown
        attached = pool.submit(stocked, "pulls", "attach", row["pull"], "--json")
        assert awaited(lambda: [each for each in hub.requests if each.server == "hub"])
        assert stocked("pulls", "cancel", row["pull"]).code == 0
        ended, events = attached.result(), first.result().events
    assert (ended.code, told_by(ended)[-1]["status"], events[-1]["status"]) == (130, "cancelled", "cancelled")
    assert all(each.keys() >= KEYS for each in told_by(ended))
    assert told_by(ended)[-1] == events[-1]
    assert versions(stocked) == ("b2", "b1")
    hub.throttle = None
    done = daemon.ask("POST", "/v1/libs/pull").events[-1]
    assert (done["status"], done["current"]) == ("downloaded", "b3")
    again = stocked("pulls", "attach", done["pull"])
    assert (again.code, "b3" in again.out) == (0, True)


def awaited(look: Callable[[], list[Any]], seconds: float = 10.0) -> list[Any]:
    """Ask until there is something: each question is a process or a lock of its own, so none spins."""
    until = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < until
    return found


# Several at once


def test_two_installs_at_once_are_one(stocked: Program, hub: LocalHub, shelf: Shelf) -> None:
    size = shelf.good("b3").stat().st_size
    hub.throttle = size // 2
    with ThreadPoolExecutor(3) as pool:
        ended = list(pool.map(lambda _: stocked("libs", "pull", "--json"), range(3)))
    assert [each.code for each in ended] == [0, 0, 0]
    finals = sorted(told_by(each)[-1]["status"] for each in ended)
    assert finals == ["downloaded", "exists", "exists"]
    assert {told_by(each)[-1]["current"] for each in ended} == {"b3"}
    assert any("waiting" in changes(told_by(each)) for each in ended)
    sent = sum(each.sent_bytes for each in hub.requests if each.server == "cdn")
    assert sent < 1.5 * size
    assert (versions(stocked), leftovers(stocked)) == (("b3", "b2"), [])


def test_two_requests_at_once_are_one(stocked: Program, hub: LocalHub, daemon: Daemon) -> None:
    with ThreadPoolExecutor(2) as pool:
        sent = list(pool.map(lambda _: daemon.ask("POST", "/v1/libs/pull"), range(2)))
    assert [each.status for each in sent] == [200, 200]
    assert {each.events[-1]["current"] for each in sent} == {"b3"}
    assert {each.events[-1]["status"] for each in sent} <= {"downloaded", "exists"}
    assert len([path for path in downloads(hub) if "/download/" in path]) == 1
    assert versions(stocked) == ("b3", "b2")


def test_a_command_waits_for_the_daemons_pull(stocked: Program, hub: LocalHub, daemon: Daemon) -> None:
    hub.throttle = 4000
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(daemon.ask, "POST", "/v1/libs/pull")
        awaited(lambda: daemon.ask("GET", "/v1/pulls").json)
        with stocked.start("libs", "pull") as waiting:
            assert waiting.stderr
            seen = ""
            for line in waiting.stderr:
                seen += line
                if "another kawai" in line:
                    hub.throttle = None
                    daemon.ask("DELETE", f"/v1/pulls/{daemon.ask('GET', '/v1/pulls').json[0]['pull']}")
                    break
            out, err = waiting.communicate(timeout=60)
        assert sent.result().events[-1]["status"] == "cancelled"
    # contract, Commands: if the owner is cancelled, a process that waited goes on with the pull itself
    assert (waiting.returncode, out) == (0, "active: b3 (was b2)\n"), seen + err


# Damage


@pytest.mark.parametrize("damage", [b"", b"{", b"\x00\xff garbage", b"[]", b'{"current":{"platform":1}}'])
def test_a_damaged_pointer_is_told_of_and_mended(stocked: Program, damage: bytes) -> None:
    """Reliability, Storage: heals or says exactly what to do."""
    active = libraries(stocked) / "active.json"
    active.write_bytes(damage)
    listed = stocked("libs", "list")
    assert [word for word in ("b1", "b2") if word not in listed.out + listed.err] == [], listed
    assert "Traceback" not in listed.err
    if listed.code:
        assert "kawai libs use" in listed.err
    assert stocked("libs", "use", "b1").code == 0
    assert versions(stocked)[0] == "b1"


@pytest.mark.parametrize("damage", [b"", b"{"])
def test_a_damaged_pointer_is_mended_by_a_pull(stocked: Program, damage: bytes) -> None:
    (libraries(stocked) / "active.json").write_bytes(damage)
    assert stocked("libs", "pull").out == "active: b3\n"
    assert versions(stocked)[0] == "b3"


@pytest.mark.parametrize("place", ["active.json", "linux-amd64-cpu/.kawai/b2.json", "releases.json"])
def test_a_directory_where_a_state_file_should_be(stocked: Program, place: str) -> None:
    path = libraries(stocked) / place
    path.unlink(missing_ok=True)
    path.mkdir()
    ended = stocked("libs", "show")
    assert ended.code != 70, ended.err
    assert "Traceback" not in ended.err
    assert ended.code == 0 or str(path) in ended.err


def test_without_the_pointer_nothing_is_active_until_one_is_used(stocked: Program) -> None:
    (libraries(stocked) / "active.json").unlink()
    assert versions(stocked) == (None, None)
    assert stocked("libs", "use", "b2").out == "active: b2\n"


@pytest.mark.parametrize("damage", [b"", b"{", None])
def test_a_damaged_record_is_mended_by_a_pull(stocked: Program, damage: bytes | None) -> None:
    record = folder(stocked, "b2").parent / ".kawai" / "b2.json"
    if damage is None:
        record.unlink()
    else:
        record.write_bytes(damage)
    assert versions(stocked) == (None, "b1")
    ended = stocked("libs", "pull", "b2")
    assert (ended.code, ended.out) == (0, "active: b2\n")
    assert (still_answers(stocked, "b2"), leftovers(stocked)) == (True, [])


def test_a_damaged_copy_of_the_release_servers_answers_is_asked_anew(stocked: Program) -> None:
    assert stocked("libs", "show").code == 0
    (libraries(stocked) / "releases.json").write_bytes(b"\x00{")
    assert told_by(stocked("libs", "show", "--json"))[0]["latest"] == "b3"


def test_a_build_whose_directory_is_gone_is_not_active(stocked: Program) -> None:
    shutil.rmtree(folder(stocked, "b2"))
    assert versions(stocked) == (None, "b1")
    assert stocked("libs", "rollback").out == "active: b1\n"
    assert stocked("libs", "pull", "b2").out == "active: b2 (was b1)\n"


def test_a_release_that_answers_nonsense(stocked: Program, hub: LocalHub) -> None:
    hub.misbehave(Fault.status(200, body="<html>", path="/releases"))
    ended = stocked("libs", "pull", "--json")
    assert (ended.code, ended.error["code"], "KAWAI_LIBS_API" in ended.error["hint"]) == (
        6,
        "bad_response",
        True,
    )


def test_an_archive_that_is_gone_from_the_server(stocked: Program, hub: LocalHub) -> None:
    hub.misbehave(Fault.status(404, path="/download/"))
    ended = stocked("libs", "pull", "--json")
    last = told_by(ended)[-1]
    assert (last["status"], ended.code in {3, 6}) == ("failed", True)
    assert asset_name("b3", HERE) in last["error"]["message"]


def test_offline_opens_no_connection(stocked: Program, hub: LocalHub) -> None:
    ended = stocked("libs", "pull", "--offline", "--json")
    assert (ended.code, ended.error["code"], hub.requests) == (9, "offline", [])
    assert stocked("libs", "use", "b1", "--offline").code == 0
