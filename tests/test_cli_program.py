"""The command line as a program: help, options, usage errors, streams, colour, tracebacks."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kawai_tools import __version__
from tests.program import KAWAI, Ended, Program


def test_bare_and_groups_print_help(kawai: Program) -> None:
    for args in ((), ("models",), ("pulls",), ("config",)):
        ended = kawai(*args)
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.startswith("Usage: kawai")
        assert ended.out == kawai(*args, "--help").out


def test_version(kawai: Program) -> None:
    assert kawai("--version") == Ended(0, f"kawai {__version__}\n")


COMMANDS = (
    "models list",
    "models show",
    "models pull",
    "models ps",
    "models index",
    "models rm",
    "models verify",
    "models adopt",
    "models scan",
    "pulls list",
    "pulls attach",
    "pulls cancel",
    "config show",
    "config path",
    "serve",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_documents_every_option(kawai: Program, command: str) -> None:
    ended = kawai(*command.split(), "--help")
    assert ended.code == 0
    for option in ("--home DIR", "--json", "--quiet", "--verbose", "--offline"):
        assert f"  {option} " in ended.out
    for line in ended.out.splitlines():
        assert len(line) <= 80
        assert not re.fullmatch(r" {2}(--[a-z-]+( [A-Z|a-z]+)?|[A-Z_]+)", line), f"{line} says nothing"


@pytest.mark.parametrize(
    "args",
    [
        ("--json", "--home", "{home}", "config", "path"),
        ("config", "--json", "--home", "{home}", "path"),
        ("config", "path", "--json", "--home={home}"),
        ("--home", "elsewhere", "config", "path", "--home", "{home}", "--json"),
    ],
)
def test_global_options_at_every_level(kawai: Program, tmp_path: Path, args: tuple[str, ...]) -> None:
    home = tmp_path / "given"
    ended = kawai(*(arg.format(home=home) for arg in args))
    assert json.loads(ended.out) == str(home / "config.toml")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("modles",), "did you mean models?"),
        (("models", "lst"), "did you mean list?"),
        (("models", "list", "--jsn"), "--json"),
        (("models", "show"), "MODEL"),
        (("models", "list", "more"), "more"),
        (("models", "pull", "a/b", "--connections", "many"), "many"),
        (("models", "pull", "a/b", "one", "--proj", "two"), "two projections"),
        (("serve", "--port", "70000"), "0 to 65535"),
        (("--home", "", "models", "list"), "--home"),
        (("models", "load"), "MODEL"),
    ],
)
def test_usage_errors_are_2(kawai: Program, args: tuple[str, ...], words: str) -> None:
    ended = kawai(*args)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: ")
    assert words in ended.err
    as_json = kawai(*args, "--json")
    assert (as_json.code, as_json.out, as_json.error["code"]) == (2, "", "usage")
    assert not as_json.error["message"].endswith(".")


def test_a_closed_pipe_is_no_error(kawai: Program) -> None:
    for args in (("config", "show"), ("--help",), ("config", "show", "--json"), ("--version",)):
        with kawai.start(*args) as process:
            assert process.stdout
            assert process.stderr
            process.stdout.close()
            assert (process.stderr.read(), process.wait()) == ("", 0), args


def test_a_full_disk_behind_stdout_is_said(kawai: Program) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    with full.open("w") as stdout:
        done = subprocess.run(
            [*KAWAI, "config", "show"], env=kawai.environ, stdout=stdout, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (1, b"error: cannot write the output: No space left on device\n")


def test_closed_descriptors(kawai: Program) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m kawai_tools config show >&- 2>&-"], env=kawai.environ, check=False
    )
    assert done.returncode == 0


def test_what_nobody_expected_goes_to_the_log(kawai: Program) -> None:
    program = [sys.executable, "-c", _BREAK, "models", "list"]
    ended = subprocess.run(program, env=kawai.environ, capture_output=True, text=True, check=False)
    log = kawai.home / "kawai" / "logs" / "kawai.log"
    assert ended.returncode == 70
    assert f"the traceback is in {log}" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "ZeroDivisionError" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600
    verbose = subprocess.run(
        [*program, "--verbose"], env=kawai.environ, capture_output=True, text=True, check=False
    )
    assert "ZeroDivisionError" in verbose.stderr
    as_json = subprocess.run(
        [*program, "--json"], env=kawai.environ, capture_output=True, text=True, check=False
    )
    assert Ended(70, "", as_json.stderr).error["code"] == "internal"
    log.unlink()
    log.mkdir()
    hopeless = subprocess.run(program, env=kawai.environ, capture_output=True, text=True, check=False)
    assert (hopeless.returncode, "--verbose" in hopeless.stderr) == (70, True)


_BREAK = """
from kawai_tools.cli import app, models
models.run = lambda *_: 1 / 0
app.main()
"""


def test_elsewhere_it_says_so(kawai: Program) -> None:
    loaded = "import sys; from kawai_tools.cli.app import main; import kawai_tools.cli.groups"
    done = subprocess.run(
        [sys.executable, "-c", f"{loaded}; sys.platform = 'win32'; main()", "models", "list"],
        env=kawai.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 9
    assert done.stderr == "error: kawai runs on Linux and macOS, not on win32\n"


def test_colour_is_for_terminals(kawai: Program) -> None:
    wrong = ("models", "show", "../x")
    assert "\x1b" in kawai.on_terminal(*wrong).out
    assert "\x1b" not in kawai(*wrong).err
    kawai.environ["NO_COLOR"] = "1"
    assert "\x1b" not in kawai.on_terminal(*wrong).out
