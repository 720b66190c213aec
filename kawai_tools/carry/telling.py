"""How far an export or import is, as its events tell it."""

import time

from kawai_tools.events import CarryEvent, Progress, Status
from kawai_tools.transfer.pulls import Pull

_LEAST = 0.3
"""Seconds over which a rate says something."""


class Teller:
    """Counts the bytes of all files, and tells of them; also whether somebody asked to stop."""

    def __init__(self, pull: Pull, total: int) -> None:
        """Nothing is done of ``total`` bytes."""
        self._pull = pull
        self._total = total
        self._done = self._file_done = 0
        self._file: str | None = None
        self._file_total: int | None = None
        self._status = Status.RESOLVING
        self._began, self._moved = time.monotonic(), 0

    def begin(self, status: Status, file: str, size: int) -> None:
        """Tell of a file (or of a build, as one) that is worked on now."""
        if status is not self._status:
            self._began, self._moved = time.monotonic(), 0
        if (status, file) != (self._status, self._file):
            self._file_done = 0
        self._status, self._file, self._file_total = status, file, size
        self._tell()

    def moved(self, count: int) -> None:
        """Some more bytes were worked on. Raises ``Cancelled``."""
        self._pull.pause(0)
        self._moved += count
        self.passed(count)

    def passed(self, count: int) -> None:
        """Some more bytes need no work; or, below 0, some need it again."""
        self._done += count
        self._file_done += count
        self._tell()

    def say(self, status: Status) -> None:
        """Tell of a step that has no bytes to count."""
        self._pull.pause(0)
        self._pull.tell(Progress(status=status, completed=self._done, total=self._total))

    def _tell(self) -> None:
        took = time.monotonic() - self._began
        rate = int(self._moved / took) if took >= _LEAST and self._moved else None
        self._pull.tell(
            Progress(
                status=self._status,
                file=self._file,
                completed=self._done,
                total=self._total,
                file_completed=self._file_done,
                file_total=self._file_total,
                rate=rate,
                eta=(self._total - self._done) // rate if rate else None,
            )
        )


def event(
    progress: Progress, pull: str, seq: int, *, archive: str, total: int, models: list[str], libs: list[str]
) -> CarryEvent:
    """Show where an export or import stands; ``total`` is that of all its files."""
    done = progress.status in {Status.EXPORTED, Status.IMPORTED, Status.EXISTS}
    return CarryEvent(
        status=progress.status,
        file=progress.file,
        completed=total if done else progress.completed,
        total=total if done or progress.total is None else progress.total,
        rate=progress.rate,
        eta=progress.eta,
        error=progress.error,
        pull=pull,
        seq=seq,
        archive=archive,
        file_completed=progress.file_completed,
        file_total=progress.file_total,
        models=models,
        libs=libs,
    )
