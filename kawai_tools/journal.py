"""What a server and its engines say, kept for a while: numbered lines that many may follow.

A journal holds the last lines only, so that whoever says too much costs no memory.
"""

import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from kawai_tools.events import LogLine
from kawai_tools.transfer.pulls import Feed

MOST = 1000
"""Lines that a journal keeps."""

_MOST_MODELS = 64


def line_of(level: str, source: str, message: str, time: datetime | None = None) -> LogLine:
    """A line that is said now, to the millisecond."""
    at = time or datetime.now(UTC)
    return LogLine(
        time=at.replace(microsecond=at.microsecond // 1000 * 1000),
        level=level,
        source=source,
        message=message,
    )


class Journal(Feed[LogLine]):
    """The last lines of one log, numbered from 1. Safe to share between threads; it never ends."""

    def add(self, lines: Iterable[LogLine]) -> None:
        """Append lines, and wake followers once."""
        with self._changed:
            for line in lines:
                self._seq += 1
                self._kept.append((self._seq, line))
            del self._kept[:-MOST]
            self._wake_all()

    def last(self, count: int) -> list[LogLine]:
        """The last lines, oldest first."""
        kept = self.events()
        return [line for _, line in kept[max(0, len(kept) - count) :]]

    def tail(self, count: int) -> "Tail":
        """The last lines, and those that follow."""
        kept = self.events()
        return Tail(self, kept[-count - 1][0] if len(kept) > count else 0)


class Tail(Feed[LogLine]):
    """A journal as one follower sees it: from a certain number on, until the follower leaves."""

    def __init__(self, journal: Journal, after: int) -> None:
        """Begin behind the line of this number."""
        super().__init__()
        self._journal, self._after = journal, after

    def events(self, after: int = 0) -> list[tuple[int, LogLine]]:
        """What the follower still lacks."""
        return self._journal.events(max(after, self._after))

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Be woken by the journal."""
        return self._journal.subscribe(wake)

    def cancel(self) -> None:
        """End; the journal goes on."""
        self.closed = True


class Journals:
    """The journal of a server, and those of its models."""

    def __init__(self) -> None:
        """All are empty."""
        self.server = Journal()
        self._models: dict[str, Journal] = {}
        self._guard = threading.Lock()

    def of(self, model_id: str) -> Journal:
        """That of a model, over all times that it was loaded; the models heard of last are kept."""
        with self._guard:
            journal = self._models.pop(model_id, None) or Journal()
            self._models[model_id] = journal
            for oldest in list(self._models)[:-_MOST_MODELS]:
                del self._models[oldest]
            return journal
