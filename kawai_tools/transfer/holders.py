"""Which process has a thing, and whether it still lives: for where a lock may do nothing."""

import os
import re
import time
from pathlib import Path

from kawai_tools.files import read_if_there


def this_boot() -> str:
    """What tells this run of the machine from others: Linux's own name for it, else when it began."""
    name = read_if_there(Path("/proc/sys/kernel/random/boot_id"))
    return name.decode().strip() if name else f"{(time.time() - time.monotonic()) / 600:.0f}"


def this_process() -> str:
    """What tells this process from all others: machine run, number, and when it began."""
    return f"{this_boot()} {os.getpid()} {_began(os.getpid())}"


def _began(pid: int) -> str:
    """When a process began, in ticks (``proc(5)``, field 22 of ``stat``); nothing without ``/proc``."""
    data = read_if_there(Path(f"/proc/{pid}/stat"))
    return data.rpartition(b")")[2].split()[19].decode() if data else ""


def lives(holder: str | None) -> bool:
    """Whether a process that had the bytes may still write them; this one may, unless it let go."""
    found = re.fullmatch(r"(\S+) (\d{1,9}) (\d*)", holder or "")
    if found is None or found[1] != this_boot():
        return False
    try:
        os.kill(int(found[2]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _began(int(found[2])) == found[3]
