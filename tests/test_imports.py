"""What a command loads, seen in the process itself; and that loading a module does nothing else."""

import ast
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import kawai_tools
from tests.program import Program
from tests.samples import tiny_gguf

HEAVY = frozenset({"httpx", "starlette", "uvicorn", "gguf", "numpy", "asyncio", "pydantic", "rich"})
"""What neither help nor a list may load, by the architecture's rule 11."""
NETWORK = frozenset({"http.client", "ssl"})

_REPORT = """
import os, sys
leave = os._exit
def report(code):
    with open({report!r}, "w") as file:
        file.write("\\n".join(sys.modules))
    leave(code)
os._exit = report
sys.argv[0] = "kawai"
from importlib.metadata import entry_points
(entry,) = entry_points(group="console_scripts", name="kawai")
entry.load()()
"""
"""The installed entry point, which leaves by ``os._exit``: on its way out it writes down what is loaded."""


def _loaded(kawai: Program, *args: str, **environ: str) -> tuple[set[str], subprocess.CompletedProcess[str]]:
    """The modules loaded at the end of a command, and how it ended."""
    report = kawai.home / "modules"
    report.unlink(missing_ok=True)
    program = _REPORT.format(report=str(report))
    done = subprocess.run(
        [sys.executable, "-c", program, *args],
        env=kawai.environ | environ,
        capture_output=True,
        text=True,
        check=False,
    )
    return set(report.read_text().split("\n")), done


def _store(kawai: Program) -> None:
    for name in ("Tiny-Q8_0", "Other-Q4_0"):
        path = kawai.home / "kawai" / "models" / "acme" / "Tiny" / f"{name}.gguf"
        path.parent.mkdir(parents=True, exist_ok=True)
        tiny_gguf(path)
    assert kawai("models", "index").code == 0


@pytest.mark.parametrize("args", [(), ("--help",), ("--version",), ("models",), ("models", "list", "--help")])
def test_help_loads_nothing_heavy(kawai: Program, args: tuple[str, ...]) -> None:
    loaded, done = _loaded(kawai, *args)
    assert (done.returncode, done.stderr) == (0, "")
    assert loaded & (HEAVY | NETWORK | {"sqlite3"}) == set()
    assert "typer" in loaded


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_list_loads_nothing_heavy(kawai: Program, more: tuple[str, ...]) -> None:
    _store(kawai)
    loaded, done = _loaded(kawai, "models", "list", *more)
    assert "Tiny-Q8_0" in done.stdout
    assert (done.returncode, loaded & HEAVY) == (0, set())
    assert "sqlite3" in loaded


@pytest.mark.parametrize(
    "args",
    [
        ("models", "list"),
        ("models", "list", "--json"),
        ("models", "show", "Tiny-Q8_0"),
        ("models", "index"),
        ("models", "protect", "Tiny-Q8_0"),
        ("df",),
        ("prune", "--unused-for", "30d", "--yes"),
    ],
)
def test_what_needs_no_network_loads_none(kawai: Program, args: tuple[str, ...]) -> None:
    _store(kawai)
    loaded, done = _loaded(kawai, *args)
    assert (done.returncode, loaded & (HEAVY | NETWORK)) == (0, set())


@pytest.mark.parametrize("words", ["kawai ", "kawai models ", "kawai models show T"])
def test_completion_loads_nothing_heavy(kawai: Program, words: str) -> None:
    _store(kawai)
    program = [sys.executable, "-X", "importtime", "-m", "kawai_tools"]
    at = str(words.count(" "))
    environ = {"_KAWAI_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": at}
    done = subprocess.run(program, env=kawai.environ | environ, capture_output=True, text=True, check=False)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.stdout.strip()
    assert "typer" in loaded
    assert loaded & (HEAVY | NETWORK) == set()


PROGRAMS = ("serve_xllamacpp", "serve_llama_cpp")
"""Modules of ``runners/`` that are run in a child and never imported."""

MODULES = sorted(
    each.name
    for each in pkgutil.walk_packages(kawai_tools.__path__, "kawai_tools.")
    if not each.ispkg and not each.name.endswith(PROGRAMS)
)

_WATCH = """
import http.client, json, logging, os, signal, sqlite3, ssl, sys, threading
import certifi, msgspec, platformdirs, starlette.applications, typer, uvicorn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.putenv", "os.system", "os.fork", "os.posix_spawn"}
sys.dont_write_bytecode = True
seen = []

def hook(event, args):
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        seen.append(f"open {args[0]}")
    elif event.split(".")[0] in {"socket", "subprocess", "sqlite3"} or event in CHANGES:
        seen.append(event)

class Environment(dict):
    def __getitem__(self, key):
        seen.append(f"environ {key}")
        return super().__getitem__(key)
    def get(self, key, default=None):
        seen.append(f"environ {key}")
        return super().get(key, default)
    def __contains__(self, key):
        seen.append(f"environ {key}")
        return super().__contains__(key)

def watch(module):
    handlers = [signal.getsignal(number) for number in SIGNALS]
    os.environ = Environment(os.environ)
    sys.addaudithook(hook)
    __import__(module)
    found = [each for each in seen if not each.startswith("environ PYTHON")]
    found += ["a thread"] * (threading.active_count() != 1)
    found += ["a handler"] * (handlers != [signal.getsignal(number) for number in SIGNALS])
    return found + ["logging"] * bool(logging.getLogger().handlers)

for module in sys.argv[1:]:
    if os.fork() == 0:
        found = watch(module)
        os.write(1, (json.dumps([module, found]) + "\\n").encode())
        os._exit(0)
    _, status = os.wait()
    assert status == 0, module
"""
"""Each module in a fork of its own, over one copy of the libraries that are none of ours."""

_NOISY = """
import logging, os, threading
os.environ.get("KAWAI_HOME")
os.getenv("HOME")
open("made", "w").close()
os.mkdir("directory")
threading.Thread(target=threading.Event().wait, daemon=True).start()
logging.basicConfig()
"""


def test_importing_any_module_does_nothing(kawai: Program) -> None:
    noisy = kawai.home / "noisy.py"
    noisy.write_text(_NOISY)
    assert len(MODULES) > 40
    done = subprocess.run(
        [sys.executable, "-c", _WATCH, *MODULES, "noisy"],
        env=kawai.environ,
        cwd=kawai.home,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = dict(map(json.loads, done.stdout.splitlines()))
    assert {*found.pop("noisy")} == {
        "environ KAWAI_HOME",
        "environ HOME",
        "open made",
        "os.mkdir",
        "a thread",
        "logging",
    }
    assert found == {module: [] for module in MODULES}
    assert {each.name for each in kawai.home.iterdir()} == {"noisy.py", "made", "directory"}


def test_nothing_below_the_command_line_prints_or_leaves() -> None:
    root = Path(kawai_tools.__path__[0])
    for path in root.rglob("*.py"):
        if "cli" in path.relative_to(root).parts or path.stem in PROGRAMS:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in {"print", "sys.exit", "exit", "os._exit"}, path
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = (
                    [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                )
                assert not {name.split(".")[0] for name in names} & {"typer", "rich", "click"}, path
