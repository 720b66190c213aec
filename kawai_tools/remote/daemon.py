"""The daemon of a home, found through ``run/serve.json``.

That file counts only while ``run/serve.lock`` is held and its process exists.
"""

from pathlib import Path

import msgspec

from kawai_tools.errors import UNDECODABLE
from kawai_tools.files import Lock, is_running, read_if_there


class Daemon(msgspec.Struct, frozen=True):
    """The content of ``run/serve.json``: where a daemon listens and the key that it takes."""

    url: str
    pid: int
    key: str
    version: str


def serve_file(state_dir: Path) -> Path:
    """Where a daemon says how to reach it."""
    return state_dir / "run" / "serve.json"


def serve_lock(state_dir: Path) -> Lock:
    """Held by the daemon of this home as long as it lives."""
    return Lock(state_dir / "run" / "serve.lock")


def find_daemon(state_dir: Path) -> Daemon | None:
    """The daemon that serves this home, or ``None``; what a dead one left behind does not count."""
    data = read_if_there(serve_file(state_dir))
    if data is None:
        return None
    try:
        daemon = msgspec.json.decode(data, type=Daemon)
    except UNDECODABLE:
        return None
    return daemon if is_running(daemon.pid) and _is_held(serve_lock(state_dir)) else None


def _is_held(lock: Lock) -> bool:
    if lock.acquire(shared=True):
        lock.release()
        return False
    return True
