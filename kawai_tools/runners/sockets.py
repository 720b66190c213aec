"""Where runners listen: UNIX sockets in a directory of this user's alone, named after who made them.

The path of a socket has room for some hundred bytes (``unix(7)``, 104 on macOS), so a home deep in the file
system gets a directory beside other temporary ones. A process that is killed leaves sockets behind; the next
one that starts removes those whose maker is gone.
"""

import contextlib
import hashlib
import os
import re
import stat
import tempfile
from itertools import count
from pathlib import Path

from kawai_tools.errors import HomeNotWritable
from kawai_tools.files import is_running, make_directory

LONGEST = 100
"""Bytes that the path of a socket may have."""

_NAME = re.compile(r"(\d+)-\d+\.sock")
_numbers = count(1)


def directory(wanted: Path) -> Path:
    """``wanted``, or a stand-in for it where paths in it would be too long; made, and swept.

    Raises ``HomeNotWritable`` where that belongs to somebody else.
    """
    place = wanted if _fits(wanted) else _stand_in(wanted)
    make_directory(place, mode=0o700)
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise HomeNotWritable(f"{place} belongs to somebody else", "remove it")
    if found.st_mode & 0o077:
        place.chmod(0o700)
    _sweep(place)
    return place


def new(place: Path) -> Path:
    """The path of a socket that there never was in this process."""
    return place / f"{os.getpid()}-{next(_numbers)}.sock"


def _fits(place: Path) -> bool:
    return len(os.fsencode(place / "4194304-999999.sock")) <= LONGEST


def _stand_in(wanted: Path) -> Path:
    key = hashlib.sha256(os.fsencode(wanted)).hexdigest()[:16]
    name = f"kawai-{os.getuid()}-{key}"
    place = Path(tempfile.gettempdir()) / name
    return place if _fits(place) else Path("/tmp") / name  # noqa: S108 - looked at before it is used


def _sweep(place: Path) -> None:
    for path in place.glob("*.sock"):
        made = _NAME.fullmatch(path.name)
        if made is None or not is_running(int(made[1])):
            with contextlib.suppress(OSError):
                path.unlink()
