"""Children of kawai where the kernel does not end them with it: a leader of their group does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kawai_tools.libs import children
from tests.inference import is_alive, soon

PARENT = """
import os, sys, time
from pathlib import Path
from kawai_tools.libs import children
sys.platform = "darwin"
child = children.start(["sh", "-c", "sleep 60 & sleep 60"], dict(os.environ), Path("/"), 2)
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")


def group(leader: int) -> list[int]:
    """The live processes of a group."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int((path / "stat").read_text().rpartition(") ")[2].split()[2]) == leader:
                found.append(int(path.name))
        except OSError:
            continue
    return [pid for pid in found if is_alive(pid)]


def test_all_of_them_end_with_a_parent_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        leader = int(parent.stdout.readline())
        assert soon(lambda: len(group(leader)) == 4)  # the leader, the shell, two that sleep
        parent.kill()
    assert soon(lambda: group(leader) == [], 2)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(("words", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", -9)])
def test_a_leader_ends_as_its_child_does(words: str, code: int) -> None:
    child = children.start(["sh", "-c", words], dict(os.environ), Path("/"), 2)
    assert children.reap(child) == code
    assert child.stdin
    assert child.stdin.closed


@pytest.mark.usefixtures("elsewhere")
def test_a_group_that_is_asked_to_end_does() -> None:
    child = children.start(["sleep", "60"], dict(os.environ), Path("/"), 2)
    assert soon(lambda: len(group(child.pid)) == 2)
    os.killpg(child.pid, signal.SIGTERM)
    assert children.reap(child) == -signal.SIGTERM


@pytest.mark.usefixtures("elsewhere")
def test_a_program_that_is_not_there_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    child = children.start(["/nowhere/llama-server"], dict(os.environ), Path("/"), 2)
    assert children.reap(child) == 1
    assert "/nowhere/llama-server: No such file" in capfd.readouterr().err
