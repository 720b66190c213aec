"""The real program in a process of its own: how every test of the command line starts it, and its edges."""

import contextlib
import fcntl
import json
import os
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from kawai_tools import __version__

KAWAI = (sys.executable, "-m", "kawai_tools")
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Ended(NamedTuple):
    """How a process ended; on a terminal all is in ``out``."""

    code: int
    out: str
    err: str = ""

    @property
    def plain(self) -> str:
        """What a terminal showed, without the escapes."""
        return ESCAPES.sub("", self.out)

    @property
    def events(self) -> list[dict[str, object]]:
        """Stdout as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> dict[str, str]:
        """The one error object on stderr."""
        (line,) = self.err.splitlines()
        found: dict[str, str] = json.loads(line)["error"]
        return found


class Program:
    """``kawai`` with a home of its own and nothing of this environment but the path."""

    def __init__(self, home: Path, environ: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.environ = {"PATH": os.environ["PATH"], "HOME": str(home), "KAWAI_HOME": str(home / "kawai")}
        self.environ |= environ or {}

    def __call__(self, *args: str, **environ: str) -> Ended:
        """Run to the end, with pipes."""
        done = subprocess.run(
            [*KAWAI, *args],
            env=self.environ | environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Start, with pipes."""
        return subprocess.Popen(
            [*KAWAI, *args],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def on_terminal(
        self, *args: str, seen: str = "", then: Callable[[subprocess.Popen[bytes]], None] | None = None
    ) -> Ended:
        """Run on a terminal of 80 columns; call ``then`` once ``seen`` has been shown."""
        ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        environ = {"TERM": "xterm-256color"} | self.environ
        process = subprocess.Popen(
            [*KAWAI, *args], env=environ, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        shown = ""
        with contextlib.closing(os.fdopen(ours, "rb", buffering=0)) as screen, process:
            for piece in iter(lambda: _read(screen.fileno()), b""):
                shown += piece.decode(errors="replace")
                if then is not None and seen in shown:
                    then(process)
                    then = None
        return Ended(process.returncode, shown.replace("\r\n", "\n"))


def _read(screen: int) -> bytes:
    with contextlib.suppress(OSError):  # Linux: EIO where the other side has gone
        return os.read(screen, 1 << 16)
    return b""


@pytest.fixture
def kawai(tmp_path: Path) -> Program:
    return Program(tmp_path)


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
        (("models", "load", "x"), "load"),
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
