"""Child processes that end with kawai, know no secrets, and say why they ended.

Each is the leader of a process group of its own, so that whatever it starts is ended with it. On Linux
the kernel ends it when the thread that started it ends (``prctl(2)``, ``PR_SET_PDEATHSIG``). Elsewhere its
leader is a small program that starts it, and ends all of the group when a pipe to kawai closes.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PASSED = (
    *("PATH", "HOME", "TMPDIR", "TZ", "LANG", "LC_ALL", "LC_CTYPE", "XDG_RUNTIME_DIR", "LD_LIBRARY_PATH"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    *("HSA_OVERRIDE_GFX_VERSION", "GGML_VK_VISIBLE_DEVICES", "VK_ICD_FILENAMES", "VK_DRIVER_FILES"),
    *("ONEAPI_DEVICE_SELECTOR", "ZES_ENABLE_SYSMAN"),
)
"""All else stays out: llama-server reads some 150 ``LLAMA_ARG_*`` variables, and secrets are not for it."""


def environment(environ: Mapping[str, str], **more: str) -> dict[str, str]:
    """The variables that a child gets."""
    return {name: environ[name] for name in _PASSED if name in environ} | more


def start(
    command: Sequence[str | Path], env: Mapping[str, str], cwd: Path, output: int
) -> "subprocess.Popen[bytes]":
    """Start a child; stdout and stderr go to the descriptor ``output``. Raises ``OSError``."""
    by_kernel = sys.platform == "linux"
    leader = () if by_kernel else (sys.executable, "-I", "-S", "-c", _LEADER)
    return subprocess.Popen(  # noqa: S603 - the program of an installed build
        [*leader, *map(str, command)],
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL if by_kernel else subprocess.PIPE,
        stdout=output,
        stderr=output,
        start_new_session=True,
        preexec_fn=_dies_with_parent(),  # noqa: PLW1509 - one system call, looked up beforehand
    )


_LEADER = """
import os, signal, subprocess, sys, threading
try:
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
except OSError as error:
    sys.exit(f"{sys.argv[1]}: {error.strerror}")
def watch():
    os.read(0, 1)  # nothing is ever written: it returns when kawai has gone
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=watch, daemon=True).start()
signal.signal(signal.SIGTERM, lambda *_: None)  # the child has it, too
code = child.wait()
if code < 0:
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def _dies_with_parent() -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    import ctypes  # noqa: PLC0415 - only where something is started

    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def set_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it was killed before that took effect
            os.kill(os.getpid(), signal.SIGKILL)

    return set_signal


def kill(child: "subprocess.Popen[bytes]") -> None:
    """End a child and whatever it started, at once."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
        child.kill()
    reap(child)


def reap(child: "subprocess.Popen[bytes]") -> int:
    """Wait for a child that ends, and let go of what tied it to kawai; its exit code."""
    code = child.wait()
    if child.stdin is not None:
        child.stdin.close()
    return code


def ending(code: int) -> str:
    """How a child ended, in words: ``SIGILL`` or ``exit code 1``."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
