"""Fetches the files of one plan, one after the other, and tells their progress as that of the whole."""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kawai_tools.errors import KawaiError, NoSpace
from kawai_tools.events import Progress, Status
from kawai_tools.transfer.downloads import Hooks, Limiter, download
from kawai_tools.transfer.hub import RemoteFile
from kawai_tools.transfer.outbound import Outbound
from kawai_tools.transfer.partials import Partial
from kawai_tools.transfer.pulls import Pull
from kawai_tools.transfer.responses import Response

RATE_WINDOW, RATE_LEAST = 5.0, 0.3
"""Seconds over which a rate is taken: at most, and at least for it to say something."""


@dataclass(frozen=True)
class Pace:
    """How fast: connections for one file, and bytes per second (``None``: as fast as it goes)."""

    connections: int
    limit_rate: int | None


@dataclass(frozen=True)
class Wanted:
    """One file to fetch; ``shown`` is what events call it. ``check`` and ``refuse`` are those of Hooks."""

    remote: RemoteFile
    shown: str
    partial: Partial
    check: Callable[[bytes], None]
    refuse: Callable[[Response], KawaiError]


class Fetcher:
    """The files of one plan on their way; ``total`` and ``done`` are bytes of all of them."""

    def __init__(self, outbound: Outbound, pull: Pull, pace: Pace, *, total: int, done: int = 0) -> None:
        """``done`` bytes are here already and need no fetching."""
        self._outbound = outbound
        self._pull = pull
        self._pace = pace
        self._total = total
        self._done = done
        self._samples: deque[tuple[float, int]] = deque()

    def fetch(self, wanted: Wanted) -> str:
        """Fetch one file to its partial, whole and verified; its SHA-256. Raises as ``download`` does."""
        size = wanted.remote.size
        self.tell(Status.DOWNLOADING, wanted, wanted.partial.have)
        hooks = Hooks(
            check=wanted.check,
            progress=lambda done: self.tell(Status.DOWNLOADING, wanted, done),
            hashing=lambda: self.tell(Status.VERIFYING, wanted, size),
            cancelled=self._pull.is_cancelled,
            pause=self._pull.pause,
            refuse=wanted.refuse,
        )
        limiter = Limiter(self._pace.limit_rate, self._pull.pause)
        digest = download(
            self._outbound, wanted.remote, wanted.partial, hooks, limiter, self._pace.connections
        )
        self._done += size
        return digest

    def tell(self, status: Status, wanted: Wanted | None = None, done: int = 0) -> None:
        """Publish where the plan stands: ``done`` bytes of the current file are here."""
        completed, now = self._done + done, time.monotonic()
        self._samples.append((now, completed))
        while len(self._samples) > 2 and now - self._samples[0][0] > RATE_WINDOW:  # noqa: PLR2004
            self._samples.popleft()
        begin, before = self._samples[0]
        rate = int((completed - before) / (now - begin)) if now - begin >= RATE_LEAST else 0
        moving = status is Status.DOWNLOADING and rate > 0
        self._pull.tell(
            Progress(
                status=status,
                file=wanted.shown if wanted else None,
                completed=completed,
                total=self._total,
                file_completed=done if wanted else None,
                file_total=wanted.remote.size if wanted else None,
                rate=rate if moving else None,
                eta=(self._total - completed) // rate if moving else None,
            )
        )


def claim_space(partials: Iterable[Partial]) -> None:
    """Claim the blocks of a whole plan before its first byte; give them back if they are too many.

    Raises ``NoSpace``.
    """
    missing = list(partials)
    try:
        for partial in missing:
            partial.take()
    except NoSpace:
        for partial in missing:
            if not partial.have:
                partial.discard()
        raise
