"""Where a build is put together before it gets its place; whose work it is its name tells."""

import shutil
from pathlib import Path

from kawai_tools.transfer.holders import lives, this_process

_STAGING = "unpacked"


def staging(directory: Path, work: str) -> Path:
    """A place of one's own below a build's partial directory; ``work`` tells two of one process apart."""
    return directory / f"{_STAGING}.{this_process().replace(' ', '.')}.{work}"


def clear(directory: Path) -> None:
    """Remove downloads and unpacked files, but not what a process that lives is working on."""
    for each in directory.glob(f"{_STAGING}.*"):
        if not lives(_holder_of(each)):
            shutil.rmtree(each, ignore_errors=True)
    if not any(directory.glob(f"{_STAGING}.*")):
        shutil.rmtree(directory, ignore_errors=True)


def _holder_of(place: Path) -> str:
    """The process that made a staging directory, by its name."""
    boot, pid, began, *_ = [*place.name.removeprefix(f"{_STAGING}.").split("."), "", "", ""]
    return f"{boot} {pid} {began}"
