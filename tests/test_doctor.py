"""``kawai doctor``: each thing that may be amiss is told of, with what mends it, and nothing is changed."""

import json
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bundles import asset_name, broken_bundle, host_platform, launcher_bundle
from tests.hub import Fault, LocalHub
from tests.inference import children, in_background, soon
from tests.program import Ended, Program, serving
from tests.samples import tiny_gguf

HERE = host_platform()


@pytest.fixture
def cli(tmp_path: Path, hub: LocalHub) -> Program:
    """The command line with an empty home and the local hub, for models and for builds."""
    return Program(tmp_path, {"HF_ENDPOINT": hub.endpoint, "KAWAI_LIBS_API": hub.libs_api})


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a model, and a build that is active; to be copied."""
    root = tmp_path_factory.mktemp("installed")
    with LocalHub(root / "hub") as hub:
        hub.add_release("b1", {asset_name("b1", HERE): launcher_bundle("b1", directory=root / "shelf")})
        hub.add_file("me/tiny-GGUF", "Tiny-Q8_0.gguf", tiny_gguf())
        cli = Program(root, {"HF_ENDPOINT": hub.endpoint, "KAWAI_LIBS_API": hub.libs_api})
        for words in (("libs", "pull", "b1"), ("models", "pull", "me/tiny-GGUF")):
            ended = cli(*words)
            assert ended.code == 0, ended
    return root / "kawai"


@pytest.fixture
def stocked(cli: Program, installed: Path) -> Program:
    shutil.copytree(installed, home(cli), symlinks=True)
    return cli


def home(cli: Program) -> Path:
    return Path(cli.environ["KAWAI_HOME"])


def report(ended: Ended) -> dict[str, dict[str, Any]]:
    """The checks by name; their shape, and the exit code that goes with them, are the contract's."""
    assert ended.err == "", ended.err
    found: list[dict[str, Any]] = json.loads(ended.out)
    checks: dict[str, dict[str, Any]] = {}
    for each in found:
        assert list(each) == ["check", "status", "detail", "fix"]
        assert each["status"] in {"ok", "warn", "fail"}
        assert each["detail"]
        assert "Traceback" not in each["detail"]
        assert each["status"] == "ok" or each["fix"], f"{each} does not say what to do"
        assert each["check"] not in checks, f"{each['check']} is told twice"
        checks[each["check"]] = each
    assert ended.code == int(any(each["status"] == "fail" for each in found))
    return checks


def amiss(cli: Program, *args: str, **environ: str) -> dict[str, tuple[str, str]]:
    """Status and words of each check that is not ok."""
    checks = report(cli("doctor", "--json", *args, **environ))
    return {
        name: (each["status"], f"{each['detail']} | {each['fix']}")
        for name, each in checks.items()
        if each["status"] != "ok"
    }


def snapshot(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every path with mode, time of change and content."""
    found = {}
    for path in [directory, *directory.rglob("*")]:
        state = path.lstat()
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path)] = (state.st_mode, state.st_mtime_ns, data)
    return found


def test_all_is_well(stocked: Program, hub: LocalHub) -> None:
    checks = report(stocked("doctor", "--json"))
    assert [each for each in checks.values() if each["status"] != "ok"] == []
    assert {"platform", "cpu", "cuda", "rocm", "vulkan", "disk", "store"} <= checks.keys()
    assert "linux/amd64" in checks["platform"]["detail"]
    assert "b1" in checks["active build"]["detail"]
    assert hub.endpoint.removeprefix("http://") in checks["release server"]["detail"]
    assert {each.method for each in hub.requests} == {"HEAD"}


def test_what_people_see(stocked: Program) -> None:
    well = stocked("doctor")
    assert (well.code, well.err) == (0, "")
    assert {line.split()[0] for line in well.out.splitlines()} == {"ok"}
    (home(stocked) / "models").rename(home(stocked) / "elsewhere")
    ill = stocked("doctor")
    assert (ill.code, ill.err) == (1, "")
    lines = ill.out.splitlines()
    place = next(place for place, line in enumerate(lines) if line.startswith("fail"))
    assert "to do: " in lines[place + 1]
    assert "\x1b" not in ill.out


def test_an_empty_home_is_warned_of_and_not_failed(cli: Program) -> None:
    assert {name: status for name, (status, _) in amiss(cli).items()} == {"active build": "warn"}
    assert "kawai libs pull" in amiss(cli)["active build"][1]
    assert not home(cli).exists()


@pytest.mark.parametrize("offline", [True, False])
def test_nothing_is_written(stocked: Program, *, offline: bool) -> None:
    aside = home(stocked) / "libraries" / host_folder() / ".b0.replaced"
    aside.mkdir()  # what a removal that was cut off leaves
    before = snapshot(home(stocked))
    assert stocked("doctor", *(["--offline"] if offline else [])).code == 0
    assert snapshot(home(stocked)) == before


def host_folder() -> str:
    return {"ubuntu-x64": "linux-amd64-cpu", "ubuntu-arm64": "linux-arm64-cpu"}.get(HERE, HERE)


def test_nothing_is_written_while_the_index_is_missing(stocked: Program) -> None:
    for path in home(stocked).rglob("index*"):
        if path.is_file():
            path.unlink()
    before = snapshot(home(stocked))
    report(stocked("doctor", "--json", "--offline"))
    assert snapshot(home(stocked)) == before


def test_offline_asks_nobody(stocked: Program, hub: LocalHub) -> None:
    checks = report(stocked("doctor", "--json", "--offline"))
    assert not {"hub", "release server"} & checks.keys()
    assert "offline" in checks["network"]["detail"]
    assert hub.requests == []


# The network


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hub", "release server"])
def test_a_server_that_refuses_is_a_failure(stocked: Program, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variable = {"hub": "HF_ENDPOINT", "release server": "KAWAI_LIBS_API"}[name]
    found = amiss(stocked, **{variable: f"http://127.0.0.1:{port}"})
    assert {key: status for key, (status, _) in found.items()} == {name: "fail"}
    assert f"127.0.0.1:{port}" in found[name][1]


def test_a_server_that_fails_is_not_well(stocked: Program, hub: LocalHub) -> None:
    hub.misbehave(Fault.status(503))
    found = amiss(stocked)
    assert found.keys() == {"hub", "release server"}
    assert all("503" in words for _, words in found.values())


@pytest.mark.slow
def test_a_server_that_is_silent_does_not_block(stocked: Program, hub: LocalHub) -> None:
    hub.misbehave(Fault.silent())
    begin = time.monotonic()
    assert amiss(stocked).keys() == {"hub", "release server"}
    assert time.monotonic() - begin < 13  # five seconds for each server


@pytest.mark.parametrize("status", [401, 404, 403])
def test_a_server_that_answers_at_all_is_there(stocked: Program, hub: LocalHub, status: int) -> None:
    hub.misbehave(Fault.status(status))
    assert amiss(stocked) == {}


@pytest.mark.parametrize(
    ("variable", "value"), [("GITHUB_TOKEN", "no token"), ("HF_TOKEN", "no\u00ebl token")]
)
def test_a_token_that_is_none_is_told_of_beside_the_rest(stocked: Program, variable: str, value: str) -> None:
    ended = stocked("doctor", "--json", **{variable: value})
    checks = report(ended)
    assert checks["store"]["status"] == "ok"
    told = [f"{each['detail']} {each['fix']}" for each in checks.values() if each["status"] == "fail"]
    assert any(variable in words for words in told), checks
    assert value not in ended.out


# Builds


def test_an_active_build_that_has_lost_a_library_is_a_failure(stocked: Program) -> None:
    """Contract, Commands: what works and what does not, today; the probe of its installation is history."""
    (home(stocked) / "libraries" / host_folder() / "b1" / "libllama.so.0").unlink()
    found = amiss(stocked, "--offline")
    assert found["active build"][0] == "fail"
    assert "libllama.so" in found["active build"][1]


def test_an_active_build_without_its_server_is_a_failure(stocked: Program) -> None:
    (home(stocked) / "libraries" / host_folder() / "b1" / "llama-server").unlink()
    found = amiss(stocked, "--offline")
    assert found["active build"][0] == "fail"
    assert "llama-server" in found["active build"][1]


def test_an_active_build_whose_directory_is_gone(stocked: Program) -> None:
    shutil.rmtree(home(stocked) / "libraries" / host_folder() / "b1")
    found = amiss(stocked, "--offline")
    assert found["active build"][0] in {"warn", "fail"}
    assert "kawai libs" in found["active build"][1]


def test_an_active_build_that_fails_its_probe_is_a_failure(stocked: Program) -> None:
    (home(stocked) / "libraries" / host_folder() / "b1" / "llama-server").write_text("#!/bin/false\n")
    found = amiss(stocked, "--offline")
    assert found["active build"][0] == "fail"
    assert "kawai libs" in found["active build"][1]
    assert "rollback" not in found["active build"][1]  # there is nothing to go back to


def test_an_idle_build_that_does_not_work_is_warned_of(
    stocked: Program, hub: LocalHub, tmp_path: Path
) -> None:
    hub.add_release("b2", {asset_name("b2", HERE): broken_bundle("b2", how="sigill", directory=tmp_path)})
    assert stocked("libs", "pull").code == 7
    found = amiss(stocked, "--offline")
    assert {key: status for key, (status, _) in found.items()} == {"build b2": "warn"}
    assert "SIGILL" in found["build b2"][1]
    assert "kawai libs rm b2" in found["build b2"][1]


@pytest.mark.parametrize("damage", [b"", b"{", b"\x00\xff", b'{"current":1}'])
def test_a_damaged_pointer_is_a_failure_that_names_what_mends_it(stocked: Program, damage: bytes) -> None:
    path = home(stocked) / "libraries" / "active.json"
    path.write_bytes(damage)
    ((status, words),) = amiss(stocked, "--offline").values()
    assert status == "fail"
    assert str(path) in words
    assert "kawai libs use b1" in words  # reliability, Storage: says exactly what to do
    assert stocked("libs", "use", "b1").code == 0
    assert amiss(stocked, "--offline") == {}


def test_a_damaged_record_is_told_of(stocked: Program) -> None:
    (home(stocked) / "libraries" / host_folder() / ".kawai" / "b1.json").write_bytes(b"{")
    found = amiss(stocked, "--offline")
    assert any("b1" in words and "kawai libs" in words for _, words in found.values()), found


@pytest.mark.parametrize("place", ["libraries/active.json", "libraries", "models", "run", "state"])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_whatever_is_in_the_way_is_no_bug_of_kawai(stocked: Program, place: str, kind: str) -> None:
    path = home(stocked) / place
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "file":
        path.write_bytes(b"x")
    else:
        path.mkdir()
    checks = report(stocked("doctor", "--json", "--offline"))
    assert {"platform", "disk", "network"} <= checks.keys()


# Models, disk, permissions


def test_a_store_that_is_gone_is_a_failure(stocked: Program) -> None:
    (home(stocked) / "models").rename(home(stocked) / "elsewhere")
    found = amiss(stocked, "--offline")
    assert found["store"][0] == "fail"
    assert str(home(stocked) / "models") in found["store"][1]


def test_a_model_that_was_never_verified_is_warned_of(stocked: Program) -> None:
    tiny_gguf(home(stocked) / "models" / "Dropped-Q4_0.gguf")
    assert stocked("models", "index").code == 0
    found = amiss(stocked, "--offline")
    assert found["store"][0] == "warn"
    assert "Dropped-Q4_0" in found["store"][1]
    assert "Tiny-Q8_0" not in found["store"][1]
    assert "kawai models verify" in found["store"][1]


def test_a_home_that_is_a_file_is_a_failure(cli: Program, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    found = amiss(cli, "--offline", "--home", str(file))
    assert {status for name, (status, _) in found.items() if name.endswith("directory")} == {"fail"}
    below = amiss(cli, "--offline", "--home", str(file / "below"))
    assert {status for name, (status, _) in below.items() if name.endswith("directory")} == {"fail"}


@pytest.fixture
def unprivileged(cli: Program) -> Iterator[Callable[..., Ended]]:
    """Kawai as somebody whom modes stop, also where tests run as root."""

    home(cli).mkdir()
    yield cli.unprivileged
    for path in [home(cli), *home(cli).iterdir()]:
        path.chmod(0o755)


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
def test_a_home_that_cannot_be_written_is_a_failure(cli: Program, unprivileged: Callable[..., Ended]) -> None:
    well = report(unprivileged("doctor", "--json", "--offline"))
    assert well["data directory"]["status"] == well["state directory"]["status"] == "ok"
    home(cli).chmod(0o555)
    ill = report(unprivileged("doctor", "--json", "--offline"))
    assert ill["data directory"]["status"] == ill["state directory"]["status"] == "fail"
    assert str(home(cli)) in ill["data directory"]["detail"]


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
@pytest.mark.parametrize("place", ["libraries", "models", "libraries/linux-amd64-cpu"])
def test_a_directory_that_cannot_be_read_is_told_of(
    cli: Program, unprivileged: Callable[..., Ended], place: str
) -> None:
    path = home(cli) / place
    path.mkdir(parents=True)
    path.chmod(0)
    try:
        checks = report(unprivileged("doctor", "--json", "--offline"))
    finally:
        path.chmod(0o755)
    assert any(each["status"] != "ok" and str(path) in each["detail"] for each in checks.values()), checks


@pytest.mark.parametrize(
    ("mode", "status"), [(0o700, "ok"), (0o750, "fail"), (0o755, "fail"), (0o707, "fail")]
)
def test_run_is_for_its_user_only(stocked: Program, mode: int, status: str) -> None:
    run = home(stocked) / "run"
    run.mkdir(exist_ok=True)
    run.chmod(mode)
    checks = report(stocked("doctor", "--json", "--offline"))
    assert checks["permissions"]["status"] == status
    if status == "fail":
        assert f"chmod go-rwx {run}" in checks["permissions"]["fix"]


def test_a_server_beside_it_changes_nothing(stocked: Program) -> None:
    with serving(stocked):
        assert amiss(stocked) == {}


# A server asked about itself


def settled(text: str) -> str:
    """Without what is another at every look."""
    return re.sub(r"[\d,]+ (bytes free)|(answered in) [\d.]+ s", r"\1\2", text)


@pytest.fixture
def far(tmp_path: Path) -> Program:
    """The command line somewhere else."""
    return Program(tmp_path / "far", {"KAWAI_ENGINE": "llama-cpp-python", "KAWAI_OFFLINE": "true"})


def test_a_server_says_of_itself_what_is_said_where_it_runs(stocked: Program, far: Program) -> None:
    with serving(stocked) as daemon:
        before = snapshot(home(stocked) / "models"), snapshot(home(stocked) / "libraries")
        reply = daemon.ask("GET", "/v1/doctor")
        assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
        here, there = stocked("doctor", "--json"), far("doctor", "--json", "--server", daemon.url)
        assert settled(reply.body.decode()) + "\n" == settled(here.out) == settled(there.out)
        assert (here.code, there.code, there.err) == (0, 0, "")
        assert {each["status"] for each in report(there).values()} == {"ok"}
        assert settled(far("doctor", "--server", daemon.url).out) == settled(stocked("doctor").out)
        assert (snapshot(home(stocked) / "models"), snapshot(home(stocked) / "libraries")) == before
    assert not home(far).exists()


def test_what_fails_there_is_a_failure_here(stocked: Program, far: Program) -> None:
    with serving(stocked) as daemon:
        (home(stocked) / "libraries" / host_folder() / "b1" / "llama-server").unlink()
        (home(stocked) / "run").chmod(0o755)
        found = amiss(far, "--server", daemon.url)
        assert {name: status for name, (status, _) in found.items()} == {
            "active build": "fail",
            "permissions": "fail",
        }
        assert far("doctor", "--server", daemon.url).code == 1
        (home(stocked) / "run").chmod(0o700)


def test_a_server_that_has_reread_its_configuration_looks_by_the_new_one(
    stocked: Program, hub: LocalHub
) -> None:
    with serving(stocked) as daemon:
        assert daemon.ask("GET", "/v1/doctor").status == 200
        asked = len(hub.requests)
        (home(stocked) / "config.toml").write_text("offline = true\n")
        daemon.process.send_signal(signal.SIGHUP)
        assert soon(lambda: "was reread" in daemon.ask("GET", "/v1/logs").body.decode())
        names = {each["check"] for each in daemon.ask("GET", "/v1/doctor").json}
        assert names & {"hub", "release server", "network"} == {"network"}
        assert len(hub.requests) == asked


def test_a_server_that_ends_does_not_wait_for_a_build_that_hangs(stocked: Program) -> None:
    server = home(stocked) / "libraries" / host_folder() / "b1" / "llama-server"
    server.unlink()
    server.write_text("#!/bin/sh\nexec sleep 600\n")
    server.chmod(0o755)
    with serving(stocked) as daemon:
        asked = in_background(lambda: daemon.ask("GET", "/v1/doctor"))
        assert soon(lambda: "sleep 600" in {each.command.strip() for each in children(daemon.process.pid)})
        begin = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - begin < 8
        reply = asked.result(5)
        assert (reply.status, reply.error["code"]) == (503, "server_closing")
