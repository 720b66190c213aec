"""Which bytes of a file are here, which are being fetched, and which nobody has taken yet."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

BLOCK = 16 << 20
"""Bytes that a connection takes at a time: the lowest that are missing, so that the prefix grows."""


@dataclass(eq=False)
class Segment:
    """A range that one connection fetches; ``position`` is the next byte it lacks."""

    position: int
    end: int


class Ranges:
    """The bytes of one file. Safe to share between threads."""

    def __init__(self, size: int, missing: list[tuple[int, int]]) -> None:
        """``missing`` are disjoint ranges in order."""
        self.size = size
        self._free = list(missing)
        self._active: set[Segment] = set()
        self._changed = threading.Condition()

    def take(self) -> Segment | None:
        """A block, or less, of the lowest range that nobody has."""
        with self._changed:
            if not self._free:
                return None
            start, end = self._free.pop(0)
            cut = min(end, start + BLOCK)
            if cut < end:
                self._free.insert(0, (cut, end))
            segment = Segment(start, cut)
            self._active.add(segment)
            return segment

    def run_end(self, segment: Segment) -> int:
        """Where the free bytes that follow a segment end."""
        with self._changed:
            return self._free[0][1] if self._free and self._free[0][0] == segment.end else segment.end

    def extend(self, segment: Segment, limit: int) -> bool:
        """Let a segment go on into the next block, if that is free and within ``limit``."""
        with self._changed:
            for index, (start, end) in enumerate(self._free):
                if start == segment.end and start < limit:
                    cut = min(end, start + BLOCK, limit)
                    self._free[index : index + 1] = [(cut, end)] if cut < end else []
                    segment.end = cut
                    return True
            return False

    def take_all(self, segment: Segment) -> bool:
        """Let a segment that begins the file have all of it; false if another connection works too."""
        with self._changed:
            if segment.position or len(self._active) > 1:
                return False
            self._free = []
            segment.end = self.size
            return True

    def advance(self, segment: Segment, count: int) -> int:
        """Count bytes of a segment as stored; returns how many of the file are here."""
        with self._changed:
            segment.position += count
            self._changed.notify_all()
            return self.size - self._missing_count()

    def give_back(self, segment: Segment) -> None:
        """Let go of a segment; what it lacks is free again."""
        with self._changed:
            self._active.discard(segment)
            if segment.position < segment.end:
                self._free = _joined([*self._free, (segment.position, segment.end)])
            self._changed.notify_all()

    def others_work(self) -> bool:
        """Whether any connection is fetching."""
        with self._changed:
            return bool(self._active)

    def nothing_left_to_take(self, stopped: Callable[[], bool]) -> bool:
        """Wait until a range is free again (false), or none ever will be (true)."""
        with self._changed:
            self._changed.wait_for(lambda: self._free or not self._active or stopped(), 1.0)
            return not self._free and not self._active

    def missing(self) -> list[tuple[int, int]]:
        """The ranges that are not here, in order."""
        with self._changed:
            lacking = [(each.position, each.end) for each in self._active if each.position < each.end]
            return _joined([*self._free, *lacking])

    def _missing_count(self) -> int:
        return sum(end - start for start, end in self._free) + sum(
            each.end - each.position for each in self._active
        )

    def done(self) -> int:
        """How many bytes are here."""
        with self._changed:
            return self.size - self._missing_count()

    def blocks_left(self) -> int:
        """How many connections could find work."""
        with self._changed:
            return -(-self._missing_count() // BLOCK)

    def complete(self) -> bool:
        """Whether every byte is here."""
        with self._changed:
            return not self._missing_count()

    def prefix(self) -> int:
        """How many bytes from the start are here without a gap."""
        starts = [start for start, _ in self._free] + [each.position for each in self._active]
        return min(starts, default=self.size)

    def wait(self, seconds: float) -> None:
        """Wait a moment, or until all is here."""
        with self._changed:
            self._changed.wait_for(lambda: not self._missing_count(), seconds)

    def wait_for_prefix(self, beyond: int, stopped: Callable[[], bool]) -> int:
        """Wait until the prefix passes ``beyond``, and return it; or less, if stopped."""
        with self._changed:
            while self.prefix() <= beyond and not stopped():
                self._changed.wait(0.2)
            return self.prefix()

    def wake(self) -> None:
        """Let everyone who waits look again."""
        with self._changed:
            self._changed.notify_all()


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Disjoint ranges in order, neighbours as one."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        begin = joined.pop()[0] if joined and joined[-1][1] == start else start
        joined.append((begin, end))
    return joined
