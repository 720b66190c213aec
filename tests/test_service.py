"""``kawai service``: what is written for systemd and launchd, what they are asked, and what is said of it.

Neither runs where tests run: their programs are stood in for by scripts that note how they are called.
systemd's own ``systemd-analyze`` reads the unit where it is there.
"""

import json
import os
import plistlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kawai_tools.errors import NoServiceManager
from kawai_tools.service.launchd import LABEL, Launchd
from kawai_tools.service.manager import Service
from kawai_tools.settings import Settings
from tests.program import Program, serving

UNIT = ".config/systemd/user/kawai.service"
SYSTEMCTL = """\
echo "$@" >> "$KAWAI_TEST_CALLS"
case "$2" in
    show) printf 'UnitFileState=%s\\nActiveState=%s\\nMainPID=%s\\n' $(cat "$KAWAI_TEST_STATE") ;;
    enable) echo enabled active 4242 > "$KAWAI_TEST_STATE" ;;
    disable) echo disabled inactive 0 > "$KAWAI_TEST_STATE" ;;
esac
"""
Fake = Callable[..., Program]


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """The command line beside a program that stands in for a service manager's."""

    def made(name: str, script: str, **environ: str) -> Program:
        bin_ = tmp_path / "bin"
        bin_.mkdir()
        program = bin_ / name
        program.write_text(f"#!/bin/sh\n{script}")
        program.chmod(0o755)
        state = tmp_path / "state"
        state.write_text("disabled inactive 0\n")
        calls = {"KAWAI_TEST_CALLS": str(tmp_path / "calls"), "KAWAI_TEST_STATE": str(state)}
        return Program(tmp_path, {"PATH": f"{bin_}:/usr/bin:/bin", **calls, **environ})

    return made


def calls(program: Program) -> list[str]:
    """How the manager's program was called, questions left out."""
    path = program.home / "calls"
    said = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [line for line in said if line.split()[1] not in {"show", "show-environment"}]


def report(program: Program, command: str) -> dict[str, Any]:
    ended = program("service", command, "--json")
    assert (ended.code, ended.err) == (0, "")
    found: dict[str, Any] = json.loads(ended.out)
    assert list(found) == ["manager", "path", "installed", "enabled", "running", "pid", "done", "notes"]
    return found


def test_a_unit_is_written_started_told_of_and_removed(fake: Fake) -> None:
    kawai = fake("systemctl", SYSTEMCTL)
    unit = kawai.home / UNIT
    before = report(kawai, "status")
    assert (before["installed"], before["enabled"], before["running"], before["pid"]) == (
        False,
        False,
        False,
        None,
    )
    done = report(kawai, "install")
    assert calls(kawai) == ["--user daemon-reload", "--user enable --now kawai.service"]
    assert (done["manager"], done["path"], done["pid"]) == ("systemd", str(unit), 4242)
    assert done["done"] == [f"wrote {unit}", "it runs now, and from every login on"]
    assert any("enable-linger" in note for note in done["notes"])
    again = report(kawai, "install")
    assert again["done"] == [f"{unit} is as it should be", "it runs now, and from every login on"]
    assert report(kawai, "status")["running"] is True
    shown = kawai("service", "status").out
    assert "yes (pid 4242)" in shown
    calls(kawai)
    assert report(kawai, "uninstall")["done"] == [f"stopped it and removed {unit}"]
    assert calls(kawai) == ["--user disable --now kawai.service", "--user daemon-reload"]
    assert not unit.exists()
    assert report(kawai, "uninstall")["done"] == ["there was nothing to remove"]


def test_the_unit_says_how_it_is_run(fake: Fake) -> None:
    kawai = fake("systemctl", SYSTEMCTL)
    home = kawai.home / 'a "home" of 100 % $x'
    kawai.environ["KAWAI_HOME"] = str(home)
    assert report(kawai, "install")["installed"]
    lines = (kawai.home / UNIT).read_text().splitlines()
    command = next(line for line in lines if line.startswith("ExecStart="))
    quoted = str(home).replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    assert command.endswith(f'"serve" "--home" "{quoted}"')
    assert {
        "Type=notify",
        "KillMode=mixed",
        "TimeoutStopSec=45",
        "ExecReload=/bin/kill -HUP $MAINPID",
    } <= set(lines)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_itself_understands_the_unit(fake: Fake) -> None:
    kawai = fake("systemctl", SYSTEMCTL)
    assert report(kawai, "install")["installed"]
    command = ["systemd-analyze", "--user", "verify", "--recursive-errors=no", str(kawai.home / UNIT)]
    environ = {"PATH": os.environ["PATH"], "HOME": str(kawai.home), "XDG_RUNTIME_DIR": str(kawai.home)}
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=60)
    if "Failed to initialize manager" in ended.stderr:
        pytest.skip(f"systemd-analyze does not run here: {ended.stderr}")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_what_this_shell_sets_does_not_count_for_it_and_that_is_said(fake: Fake) -> None:
    kawai = fake("systemctl", SYSTEMCTL, HF_TOKEN="hf_secret", KAWAI_PORT="9999")
    found = report(kawai, "install")
    config, variables = kawai.home / "kawai/config.toml", kawai.home / "kawai/service.env"
    assert found["notes"][1:] == [
        f"KAWAI_PORT of this shell: the service does not have it; set it in {config}",
        f"HF_TOKEN of this shell: the service does not have it; put it into {variables}",
    ]
    unit = (kawai.home / UNIT).read_text()
    assert "hf_secret" not in unit + json.dumps(found)
    assert f"EnvironmentFile=-{kawai.home / 'kawai/service.env'}" in unit.splitlines()
    kawai.environ["KAWAI_HOME"] = str(kawai.home / "other")
    changed = report(kawai, "install")
    assert changed["done"][2] == (
        "it ran already, as it was: systemctl --user restart kawai.service makes the change count"
    )


def test_a_unit_that_kawai_did_not_write_is_left_alone(fake: Fake) -> None:
    kawai = fake("systemctl", SYSTEMCTL)
    unit = kawai.home / UNIT
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    for command in ("install", "uninstall"):
        ended = kawai("service", command, "--json")
        assert (ended.code, ended.error["code"]) == (5, "conflict")
        assert unit.read_text() == "[Service]\nExecStart=/bin/true\n"
    assert calls(kawai) == []


def test_directories_that_this_shell_has_moved_are_those_of_the_service(fake: Fake) -> None:
    kawai = fake("systemctl", SYSTEMCTL, XDG_CONFIG_HOME="rel", XDG_DATA_HOME="/data/100 %/$x")
    del kawai.environ["KAWAI_HOME"]
    assert report(kawai, "install")["installed"]
    lines = (kawai.home / UNIT).read_text().splitlines()
    assert 'Environment="XDG_DATA_HOME=/data/100 %%/$x"' in lines
    assert next(line for line in lines if line.startswith("ExecStart=")).endswith('"serve"')


def test_beside_a_server_that_is_no_service_it_is_refused(fake: Fake) -> None:
    kawai = fake("systemctl", SYSTEMCTL)
    with serving(kawai):
        ended = kawai("service", "install", "--json")
    assert (ended.code, ended.error["code"]) == (5, "already_serving")
    assert not (kawai.home / UNIT).exists()


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo no bus >&2; exit 1", "systemd does not serve this user (no bus)"),
        (SYSTEMCTL + '[ "$2" = enable ] && { echo job failed >&2; exit 1; }; exit 0', "job failed"),
    ],
)
def test_a_manager_that_fails_is_9(fake: Fake, script: str, why: str) -> None:
    ended = fake("systemctl", script)("service", "install", "--json")
    assert (ended.code, why in ended.error["message"]) == (9, True)
    assert ended.error["code"] in {"no_service_manager", "service_failed"}


def test_without_any_manager_it_says_what_to_run(kawai: Program) -> None:
    kawai.environ["PATH"] = "/nowhere"
    for command in ("install", "uninstall", "status"):
        ended = kawai("service", command)
        assert (ended.code, ended.out) == (9, "")
        assert "there is no systemd; there is no launchd" in ended.err
        assert f"serve --home {kawai.home / 'kawai'}" in ended.err


LAUNCHCTL = """\
echo "$@" >> "$KAWAI_TEST_CALLS"
[ "$1" = print ] && { [ -e "$KAWAI_TEST_STATE" ] && printf '\\tpid = 4711\\n' || exit 113; }
[ "$1" = bootstrap ] && touch "$KAWAI_TEST_STATE"
[ "$1" = bootout ] && rm -f "$KAWAI_TEST_STATE"
exit 0
"""


def test_an_agent_is_written_for_launchd(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    kawai = fake("launchctl", LAUNCHCTL)
    (kawai.home / "state").unlink()
    for name, value in kawai.environ.items():
        monkeypatch.setenv(name, value)
    home, log = kawai.home, kawai.home / "logs" / "launchd.log"
    with pytest.raises(NoServiceManager):
        Service(Settings(home=home), [Launchd(home, log, "linux")], home / "v").status()
    service = Service(Settings(home=home), [Launchd(home, log, "darwin")], home / "v")
    assert service.status().installed is False
    done = service.install()
    assert (done.manager, done.running, done.pid) == ("launchd", True, 4711)
    with Path(done.path).open("rb") as file:
        agent = plistlib.load(file)
    assert Path(done.path) == home / "Library/LaunchAgents" / f"{LABEL}.plist"
    assert agent["ProgramArguments"][-3:] == ["serve", "--home", str(home)]
    assert (agent["RunAtLoad"], agent["KeepAlive"]) == (True, {"SuccessfulExit": False})
    assert f"bootstrap gui/{os.getuid()} {done.path}" in (home / "calls").read_text()
    assert service.install().done[0] == f"{done.path} is as it should be"
    assert (home / "calls").read_text().count("bootstrap") == 1
    service.uninstall()
    assert not Path(done.path).exists()
    assert service.status().running is False
