"""Child processes that end with kawai, know no secrets, and say why they ended.

Each is the leader of a process group of its own, so that whatever it starts is ended with it. On Linux
the kernel ends it when the thread that started it ends (``prctl(2)``, ``PR_SET_PDEATHSIG``).
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
    return subprocess.Popen(  # noqa: S603 - the program of an installed build
        [str(each) for each in command],
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        preexec_fn=_dies_with_parent(),  # noqa: PLW1509 - one system call, looked up beforehand
    )


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
    child.wait()


def ending(code: int) -> str:
    """How a child ended, in words: ``SIGILL`` or ``exit code 1``."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
