"""Bytes from here to there, hashed in a thread beside, and sent to the disk as they come.

Hashing and writing take about as long as each other, and both let go of the interpreter: side by side they
take the time of one. Bytes that were written are synced every few of them, in a third thread, so that the
disk has little left to do at the end.
"""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, Self

PIECE = 1 << 20
_BUFFERS = 4
_SYNC_EVERY = 4 << 20
_sync = getattr(os, "fdatasync", os.fsync)

Read = Callable[[memoryview], int]
Write = Callable[[memoryview], object]


class Digest(Protocol):
    """What is fed with bytes."""

    def update(self, data: memoryview, /) -> None:
        """Take some more."""


class Mover:
    """Two threads and a few buffers, for the files of one piece of work. A context manager."""

    def __init__(self) -> None:
        """Nothing is moved yet."""
        self._hashing = ThreadPoolExecutor(1, "hashing")
        self._syncing = ThreadPoolExecutor(1, "syncing")
        self._buffers = [memoryview(bytearray(PIECE)) for _ in range(_BUFFERS)]

    def __enter__(self) -> Self:
        """End the threads at the end."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the threads."""
        self._hashing.shutdown()
        self._syncing.shutdown()

    def move(
        self,
        digest: Digest,
        read: Read,
        size: int,
        tell: Callable[[int], None],
        write: Write | None = None,
        sync: int | None = None,
    ) -> int:
        """Read up to ``size`` bytes, feed the digest and write them; how many there were.

        ``tell`` is told of each piece; what it raises ends it. ``sync`` is the descriptor that is written to.
        """
        busy: deque[Future[None]] = deque()
        flush = _Flush(self._syncing, sync)
        done = turn = 0
        try:
            while done < size:
                if len(busy) == _BUFFERS:
                    busy.popleft().result()
                buffer = self._buffers[turn % _BUFFERS]
                count = read(buffer[: min(PIECE, size - done)])
                if not count:
                    break
                piece = buffer[:count]
                busy.append(self._hashing.submit(digest.update, piece))
                if write is not None:
                    write(piece)
                    flush.note(count)
                done, turn = done + count, turn + 1
                tell(count)
        finally:
            for each in busy:
                each.result()
            flush.settle()
        return done


class _Flush:
    """What is written is synced now and then; what a sync meets is met by whoever writes."""

    def __init__(self, pool: ThreadPoolExecutor, fd: int | None) -> None:
        self._pool, self._fd = pool, fd
        self._running: Future[None] | None = None
        self._since = 0

    def note(self, count: int) -> None:
        self._since += count
        if (
            self._fd is None
            or self._since < _SYNC_EVERY
            or not (self._running is None or self._running.done())
        ):
            return
        self.settle()
        self._running, self._since = self._pool.submit(_sync, self._fd), 0

    def settle(self) -> None:
        if self._running is not None:
            running, self._running = self._running, None
            running.result()


def reader(fd: int, start: int) -> Read:
    """Read an open file from a place on, leaving its position alone."""
    at = start

    def read(into: memoryview) -> int:
        nonlocal at
        count = os.preadv(fd, [into], at)
        at += count
        return count

    return read


def writer(fd: int, start: int) -> Write:
    """Write to an open file from a place on, leaving its position alone."""
    at = start

    def write(piece: memoryview) -> None:
        nonlocal at
        while piece:
            count = os.pwrite(fd, piece, at)
            at, piece = at + count, piece[count:]

    return write
