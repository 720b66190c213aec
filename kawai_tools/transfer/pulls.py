"""A Pull: work that outlives its viewers, told as a numbered log that many may follow.

A :class:`Feed` is such a log. A follower that comes late gets the changes of status and file it missed
and the latest progress; one that leaves stops nothing. A :class:`Pull` is a Feed with an owner thread, a
target that only one may work on at a time (also between processes, by a lock file), and an end.
"""

import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, Literal, NamedTuple, TypeVar

from kawai_tools.errors import ErrorInfo, Internal, KawaiError, PullNotFound, ServerClosing
from kawai_tools.events import FINAL, Again, Event, Message, Progress, PullEvent, Status
from kawai_tools.files import Lock
from kawai_tools.transfer.cancelling import Cancelled

PROGRESS_INTERVAL = 0.25
KEPT_FOR = 3600.0
"""Seconds for which a finished Pull can still be followed."""

_LOG = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)


class Feed(Generic[M]):
    """A numbered log of events. Safe to share between threads; a follower costs no thread."""

    belongs_to_follower = True
    """Whether the work stops when its follower leaves (``verify``); a Pull's does not."""

    def __init__(self) -> None:
        """Begin an empty log."""
        self._changed = threading.Condition()
        self._kept: list[tuple[int, M]] = []
        self._latest: tuple[int, M] | None = None
        self._seq = 0
        self._wakes: dict[object, Callable[[], None]] = {}
        self._cancel = threading.Event()
        self.closed = False

    def publish(self, make: Callable[[int], M], *, keep: bool) -> None:
        """Append ``make(seq)``; with ``keep=False`` it only stands until the next event."""
        with self._changed:
            self._seq += 1
            entry = (self._seq, make(self._seq))
            self._latest = None if keep else entry
            if keep:
                self._kept.append(entry)
            self._wake_all()

    def close(self) -> None:
        """Nothing will follow."""
        with self._changed:
            self.closed = True
            self._wake_all()

    def _wake_all(self) -> None:
        self._changed.notify_all()
        for key, wake in list(self._wakes.items()):
            try:
                wake()
            except Exception:  # noqa: BLE001 - the others are told
                _LOG.exception("a follower cannot be woken, and is left behind")
                del self._wakes[key]

    def events(self, after: int = 0) -> list[tuple[int, M]]:
        """What a follower that has seen ``after`` still lacks, in order, each with its number."""
        with self._changed:
            entries = [*self._kept, *([self._latest] if self._latest else [])]
            return [entry for entry in entries if entry[0] > after]

    def subscribe(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call ``wake`` (from any thread) at every change until the returned function is called."""
        with self._changed:
            key = object()
            self._wakes[key] = wake

        def unsubscribe() -> None:
            with self._changed:
                self._wakes.pop(key, None)

        return unsubscribe

    def follow(self, after: int = 0, heartbeat: float | None = None) -> Iterator[M | None]:
        """Yield events as they come until the end; ``None`` after every ``heartbeat`` seconds without one."""
        place = after
        while True:
            with self._changed:
                news = self._changed.wait_for(lambda: self.closed or self._seq > place, heartbeat)  # noqa: B023 - now
                closed, entries = self.closed, self.events(place)
            if not news:
                yield None
            for place, event in entries:  # noqa: B007 - the follower's place in the log
                yield event
            if closed:
                return

    def cancel(self) -> None:
        """Ask the work to stop; its end is told in the log."""
        self._cancel.set()

    def is_cancelled(self) -> bool:
        """Whether somebody asked the work to stop."""
        return self._cancel.is_set()

    def pause(self, seconds: float) -> None:
        """Wait, unless cancelled meanwhile. Raises ``Cancelled``."""
        if self._cancel.wait(seconds):
            raise Cancelled


@dataclass(frozen=True)
class Job:
    """What a Pull is to do; the noun that planned it says so.

    ``target`` names what it is about, ``same`` whether another request for the target wants the very
    same; ``lock`` (if any) is held while it works; ``work`` does it, telling its progress, and returns the
    final status; ``render`` makes the noun's event of a :class:`Progress`. ``again`` goes on with it once it
    has ended, where that may be told to anybody.
    """

    kind: Literal["model", "libs", "export", "import"]
    target: str
    same: object
    lock: Path | None
    work: Callable[["Pull"], Status]
    render: Callable[[Progress, str, int], Event]
    again: Again | None = None


class Pull(Feed[Event]):
    """One attempt to carry out a plan."""

    belongs_to_follower = False

    def __init__(self, job: Job) -> None:
        """Prepare; :meth:`start` begins."""
        super().__init__()
        self.id = secrets.token_hex(6)
        self.job = job
        self.started_at = datetime.now(UTC)
        self.ended: float | None = None
        self.last = Progress(status=Status.RESOLVING)
        self.fetched = 0
        self._had: int | None = None
        self._told = 0.0
        self._thread = threading.Thread(target=self._run, name=f"pull-{self.id}", daemon=True)

    def start(self) -> "Pull":
        """Begin in a thread of its own."""
        _LOG.info("pull %s of %s begins", self.id, self.job.target)
        self.tell(self.last)
        self._thread.start()
        return self

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end."""
        self._thread.join(timeout)

    def newest(self) -> PullEvent:
        """The last event of its log; there is one from the start."""
        return next(event for _, event in reversed(self.events()) if isinstance(event, PullEvent))

    def tell(self, progress: Progress) -> None:
        """Publish where the work stands: changes at once, mere progress at most four times a second."""
        before, now = self.last, time.monotonic()
        if progress.status is Status.DOWNLOADING:
            self._had = progress.completed if self._had is None else self._had
            self.fetched = max(self.fetched, progress.completed - self._had)
        change = progress.status != before.status or progress.file != before.file or not self._told
        if not change and now - self._told < PROGRESS_INTERVAL:
            return
        self.last, self._told = progress, now
        self.publish(lambda seq: self.job.render(progress, self.id, seq), keep=change)

    def _run(self) -> None:
        lock = Lock(self.job.lock) if self.job.lock else None
        error: ErrorInfo | None = None
        try:
            if lock is not None:
                self._take(lock)
            status = self.job.work(self)
        except Cancelled:
            status = Status.CANCELLED
        except KawaiError as known:
            status, error = Status.FAILED, known.info
        except Exception:  # noqa: BLE001 - told as a failure, and its traceback logged
            _LOG.exception("pull %s of %s failed", self.id, self.job.target)
            status, error = (
                Status.FAILED,
                Internal("kawai failed in a way it should not", "the log has the traceback").info,
            )
        finally:
            if lock is not None:
                lock.remove()
        self.ended = time.monotonic()
        words = f": {error.message}" if error else ""
        _LOG.info("pull %s of %s ends: %s%s", self.id, self.job.target, status, words)
        self.tell(_final(self.last, status, error))
        self.close()

    def _take(self, lock: Lock) -> None:
        while not lock.acquire():
            if self.last.status is not Status.WAITING:
                self.tell(Progress(status=Status.WAITING))
            self.pause(0.1)


def _final(last: Progress, status: Status, error: ErrorInfo | None) -> Progress:
    return Progress(
        status=status,
        file=last.file if error else None,
        file_completed=last.file_completed if error else None,
        file_total=last.file_total if error else None,
        completed=last.completed,
        total=last.total,
        error=error,
    )


class Totals(NamedTuple):
    """What all Pulls of a process came to: how many ended by kind and status, bytes by kind, how many run."""

    ended: Mapping[tuple[str, str], int]
    fetched: Mapping[str, int]
    running: int


@dataclass
class Pulls:
    """The Pulls of this process: those that run, and those that ended within the hour."""

    _past_ended: Counter[tuple[str, str]] = field(default_factory=Counter)
    _past_fetched: Counter[str] = field(default_factory=Counter)
    _all: dict[str, Pull] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _closing: bool = False

    def start(self, job: Job) -> Pull:
        """The Pull that already does just this, or a new one. Raises ``ServerClosing``."""
        with self._lock:
            if self._closing:
                raise ServerClosing("kawai is shutting down and takes no new pulls", "try again in a moment")
            self._forget()
            for pull in self._all.values():
                wanted = (pull.job.kind, pull.job.target, pull.job.same) == (job.kind, job.target, job.same)
                if wanted and pull.ended is None and not pull.is_cancelled():
                    return pull
            pull = Pull(job)
            self._all[pull.id] = pull
            return pull.start()

    def get(self, pull_id: str) -> Pull:
        """One Pull by its id. Raises ``PullNotFound``."""
        with self._lock:
            self._forget()
            if pull_id not in self._all:
                raise PullNotFound(
                    f"there is no pull {pull_id[:40]!r}", "kawai pulls list shows those of the last hour"
                )
            return self._all[pull_id]

    def list(self) -> list[Pull]:
        """All, newest first."""
        with self._lock:
            self._forget()
            return sorted(self._all.values(), key=lambda each: each.started_at, reverse=True)

    def totals(self) -> Totals:
        """What has been done so far, by those that are forgotten too."""
        with self._lock:
            ended, fetched, running = Counter(self._past_ended), Counter(self._past_fetched), 0
            for pull in self._all.values():
                fetched[pull.job.kind] += pull.fetched
                if (status := pull.last.status) in FINAL:
                    ended[pull.job.kind, status] += 1
                else:
                    running += 1
            return Totals(ended, fetched, running)

    def close(self, patience: float) -> None:
        """Cancel what runs, leaving resumable partials, and wait for it up to ``patience`` seconds."""
        with self._lock:
            self._closing = True
            running = list(self._all.values())
        _cancel(running, patience)

    def cancel(self, kind: str, target: str, patience: float) -> None:
        """Cancel the Pulls of one target, and wait for their end up to ``patience`` seconds."""
        with self._lock:
            meant = [
                pull for pull in self._all.values() if (pull.job.kind, pull.job.target) == (kind, target)
            ]
        _cancel(meant, patience)

    def _forget(self) -> None:
        now = time.monotonic()
        for pull in [pull for pull in self._all.values() if pull.ended and now - pull.ended > KEPT_FOR]:
            del self._all[pull.id]
            self._past_ended[pull.job.kind, pull.last.status] += 1
            self._past_fetched[pull.job.kind] += pull.fetched


def _cancel(pulls: Iterable[Pull], patience: float) -> None:
    running = [pull for pull in pulls if pull.ended is None]
    for pull in running:
        pull.cancel()
    until = time.monotonic() + patience
    for pull in running:
        pull.join(max(0.0, until - time.monotonic()))
