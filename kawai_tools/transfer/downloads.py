"""One file to disk: ranges in order over one preallocated file, hashed while they arrive, resumable.

One connection begins. Where it delivers less than a fast local network would, more are opened, each
taking the lowest range that is missing, so that the finished prefix grows and a thread of its own hashes
it meanwhile. Whatever goes wrong with a connection is retried; whatever makes it doubtful that all bytes
are of one version starts the file over; the digest decides at the end.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from kawai_tools.errors import (
    BadResponse,
    DigestMismatch,
    Integrity,
    KawaiError,
    Unreachable,
    UpstreamTimeout,
)
from kawai_tools.files import storage_errors
from kawai_tools.transfer.hub import RemoteFile
from kawai_tools.transfer.outbound import Outbound
from kawai_tools.transfer.partials import Partial
from kawai_tools.transfer.patience import Patience
from kawai_tools.transfer.ranges import Ranges, Segment
from kawai_tools.transfer.responses import Response
from kawai_tools.transfer.sources import Source, StartOver, TryAgain
from kawai_tools.transfer.wire import Cancelled

BUFFER = 1 << 20
FAST = 100_000_000
"""Bytes per second above which one connection is enough: more would only compete for the processor."""

SAVE_BYTES, SAVE_SECONDS = 16 << 20, 0.5
PROGRESS_BYTES = 1 << 16
RESTARTS = 5


class Limiter:
    """Shares a number of bytes per second among threads."""

    def __init__(self, rate: int | None, pause: Callable[[float], None]) -> None:
        """``rate`` of ``None`` limits nothing; ``pause`` waits, and may raise to give up."""
        self.rate = rate
        self._pause = pause
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    @property
    def step(self) -> int:
        """How many bytes to read at once, so that the rate is even."""
        return BUFFER if self.rate is None else max(256, min(BUFFER, self.rate // 10))

    def spend(self, count: int) -> None:
        """Wait until ``count`` bytes are within the rate."""
        if self.rate is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + count / self.rate
            wait = self._free_at - now
        self._pause(wait)


@dataclass(frozen=True)
class Hooks:
    """What a download asks of its owner.

    ``check`` sees the first bytes and raises if they are no such file; ``progress`` is told the number of
    bytes that are here, ``hashing`` when only the digest is awaited; ``pause`` waits or raises
    ``Cancelled``; ``refuse`` says what an answer of 400 or more from the file's own address means.
    """

    check: Callable[[bytes], None]
    progress: Callable[[int], None]
    hashing: Callable[[], None]
    cancelled: Callable[[], bool]
    pause: Callable[[float], None]
    refuse: Callable[[Response], KawaiError]


def download(
    outbound: Outbound, file: RemoteFile, partial: Partial, hooks: Hooks, limiter: Limiter, connections: int
) -> str:
    """Fetch what is missing of a file and return its SHA-256; the partial is whole, verified and synced.

    Raises ``DigestMismatch`` (the partial is discarded), whatever ``hooks.check`` raises, ``NoSpace``, a
    kind of ``Upstream``, or ``Cancelled``; then what was fetched of the file stays and can be resumed.
    """
    if partial.verified is not None:
        return partial.verified
    ranged = file.sha256 is not None or file.etag is not None
    for attempt in range(RESTARTS + 1):
        was_resumed = partial.resumed
        source = Source(outbound, file, hooks.check, hooks.refuse, hooks.cancelled, ranged=ranged)
        try:
            digest = _Attempt(source, partial, hooks, limiter, connections).run()
        except StartOver as doubt:
            partial.restart()
            # the second time all comes in one answer, which cannot be of two versions
            ranged = ranged and doubt.ranged and not attempt
            if attempt == RESTARTS:
                raise BadResponse(f"{file.url} {doubt}, again and again", "try again later") from doubt
            hooks.pause(0.2 * attempt)
            continue
        except Integrity:
            if not partial.have:
                partial.discard()
            raise
        if file.sha256 in {None, digest}:
            partial.save([], digest)
            return digest
        partial.restart()
        if not was_resumed:
            break
    partial.discard()
    raise DigestMismatch(
        f"{file.url} has SHA-256 {digest} where {file.sha256} was promised",
        "the bytes were damaged on the way or the source is not what it says; nothing was installed",
    )


class _Attempt:
    """One go at what is missing."""

    def __init__(
        self, source: Source, partial: Partial, hooks: Hooks, limiter: Limiter, connections: int
    ) -> None:
        self.source, self.partial, self.hooks, self.limiter = source, partial, hooks, limiter
        self.file, self.ranged = source.file, source.ranged
        self.connections = connections if self.ranged else 1
        if not self.ranged and partial.have:
            partial.restart()
        source.cancelled = self._is_stopped
        self.fd = partial.fd
        self.ranges = Ranges(self.file.size, partial.left)
        self.error: BaseException | None = None
        self.stopped = False
        self.digest: str | None = None
        self._workers: list[threading.Thread] = []
        self._saved_at = time.monotonic()
        self._saved_bytes = self.ranges.done()
        self._saving = threading.Lock()

    def run(self) -> str:
        """Fetch, hash, sync. The record is saved however this ends."""
        hasher = threading.Thread(target=self._guarded, args=(self._hash,), daemon=True)
        hasher.start()
        try:
            self._supervise()
            self.hooks.hashing()
            self.partial.sync()
            while hasher.is_alive():
                hasher.join(0.1)
                self.hooks.pause(0)
            self._raise_error()
        finally:
            self.stopped = True
            self.ranges.wake()
            for thread in [*self._workers, hasher]:
                thread.join()
            if self.digest is None:
                self._save(synced=True)
        assert self.digest is not None  # noqa: S101 - the hasher ended without an error
        return self.digest

    def _supervise(self) -> None:
        """Start connections as they are worth it, and tell progress, until all bytes are here."""
        samples = [(time.monotonic(), self.ranges.done())]
        self._start_worker()
        while not self.ranges.complete():
            self.ranges.wait(0.1)
            self._raise_error()
            self.hooks.pause(0)
            done = self.ranges.done()
            self.hooks.progress(done)
            samples = [*samples[-4:], (time.monotonic(), done)]
            if len(self._workers) == 1 and self._is_slow(samples):
                extra = min(self.connections, self.ranges.blocks_left()) - 1
                for _ in range(extra):
                    self._start_worker()
        self.hooks.progress(self.file.size)

    def _is_slow(self, samples: list[tuple[float, int]]) -> bool:
        (begin, before), (end, after) = samples[0], samples[-1]
        if len(samples) < 3 or after == before:  # noqa: PLR2004 - too early to say
            return False
        enough = FAST if self.limiter.rate is None else min(FAST, 0.9 * self.limiter.rate)
        return (after - before) / (end - begin) < enough

    def _start_worker(self) -> None:
        worker = threading.Thread(target=self._guarded, args=(self._work,), daemon=True)
        self._workers.append(worker)
        worker.start()

    def _guarded(self, part: Callable[[], None]) -> None:
        try:
            part()
        except BaseException as error:  # noqa: BLE001 - carried to the thread that waits, and raised there
            self.error = self.error or error
            self.stopped = True
            self.ranges.wake()

    def _raise_error(self) -> None:
        if self.error is not None:
            raise self.error

    def _is_stopped(self) -> bool:
        return self.stopped or self.hooks.cancelled()

    def _work(self) -> None:
        """Fetch one missing range after another; a connection that fails for good leaves it to the others."""
        patience = Patience(pause=self._pause)
        buffer = memoryview(bytearray(BUFFER))
        while not self._is_stopped():
            segment = self.ranges.take()
            if segment is None:
                if self.ranges.nothing_left_to_take(self._is_stopped):
                    return
                continue
            try:
                self._fetch(segment, buffer, patience)
            except (TryAgain, Unreachable, UpstreamTimeout, BadResponse) as failure:
                self.ranges.give_back(segment)
                if not self._goes_on(failure, segment, patience):
                    return
            except BaseException:
                self.ranges.give_back(segment)
                raise

    def _goes_on(self, failure: TryAgain | KawaiError, segment: Segment, patience: Patience) -> bool:
        """Wait before another request; or say that the other connections will do, or raise."""
        error, after = (failure.error, failure.after) if isinstance(failure, TryAgain) else (failure, None)
        if not self.ranged and segment.position:
            raise StartOver("cannot be resumed", ranged=False) from error
        self.source.forget()
        try:
            patience.failed(error, after)
        except KawaiError:
            if self.ranges.others_work():
                return False
            raise
        return True

    def _pause(self, seconds: float) -> None:
        for _ in range(max(1, round(seconds / 0.1))):
            if self._is_stopped():
                raise Cancelled
            self.hooks.pause(min(seconds, 0.1))

    def _fetch(self, segment: Segment, buffer: memoryview, patience: Patience) -> None:
        """Read one answer into one segment, which grows while the next block is free."""
        limit = segment.end if len(self._workers) > 1 else self.ranges.run_end(segment)
        answer, end = self.source.open(segment.position, limit)
        with answer:
            if end > limit and not self.ranges.take_all(segment):  # the whole file
                raise StartOver("ignores ranges", ranged=False)
            limit, fresh = end, 0
            while not self._is_stopped():
                if segment.position == limit or (
                    segment.position == segment.end and not self.ranges.extend(segment, limit)
                ):
                    break
                step = min(min(segment.end, limit) - segment.position, self.limiter.step)
                count = answer.read_some(buffer[:step])
                if count == 0:
                    raise Unreachable(f"{self.file.url} ends {limit - segment.position} bytes early")
                if segment.position == 0:
                    count = self._check_start(answer, buffer, count, step)
                if answer.length is None and segment.position + count == limit:
                    self._refuse_surplus(answer)
                self._store(segment, buffer[:count])
                fresh += count
                if fresh >= PROGRESS_BYTES:
                    patience.progressed()
                self.limiter.spend(count)
            self.ranges.give_back(segment)

    def _refuse_surplus(self, answer: Response) -> None:
        """Start over if more follows what should be the end: what came before may be as wrong."""
        try:
            self.source.refuse_surplus(answer)
        except BadResponse as error:
            raise StartOver("sends more bytes than were promised", ranged=False) from error

    def _check_start(self, answer: Response, buffer: memoryview, count: int, step: int) -> int:
        """Look at the first bytes; a few more are awaited where the first are too few to tell."""
        while count < min(step, 64) and (more := answer.read_some(buffer[count:step])):
            count += more
        self.hooks.check(bytes(buffer[: min(count, 1024)]))
        return count

    def _store(self, segment: Segment, data: memoryview) -> None:
        with storage_errors(self.partial.path):
            written = 0
            while written < len(data):
                written += os.pwrite(self.fd, data[written:], segment.position + written)
        done = self.ranges.advance(segment, len(data))
        now = time.monotonic()
        if done - self._saved_bytes < SAVE_BYTES and now - self._saved_at < SAVE_SECONDS:
            return
        if self._saving.acquire(blocking=False):
            try:
                self._saved_bytes, self._saved_at = done, now
                self._save()
            finally:
                self._saving.release()

    def _save(self, *, synced: bool = False) -> None:
        """Note what is missing, unless the bytes are bound to no version that could be asked for again."""
        if not self.ranged and self.file.sha256 is None:
            return
        if synced and self.file.sha256 is None:
            self.partial.sync()
        self.partial.save(self.ranges.missing(), synced=synced)

    def _hash(self) -> None:
        """Hash the finished prefix as it grows."""
        digest, buffer, position = hashlib.sha256(), memoryview(bytearray(BUFFER)), 0
        while position < self.file.size:
            ready = self.ranges.wait_for_prefix(position, self._is_stopped)
            if ready <= position or self._is_stopped():
                return
            while position < ready and not self._is_stopped():
                count = os.preadv(self.fd, [buffer[: min(BUFFER, ready - position)]], position)
                digest.update(buffer[:count])
                position += count
        if not self._is_stopped():
            self.digest = digest.hexdigest()
