"""What the pool holds and tells: orders, the seats that they take, and how all of it looks at a moment."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from kawai_tools.models.claims import Use
from kawai_tools.runners.changes import Changes
from kawai_tools.runners.eviction import Seat
from kawai_tools.runners.process import Runner, State

LONGEST = 10 * 365 * 86_400.0
"""Seconds: a longer time is no time that a calendar has."""


PIN = -1
"""The ``keep_alive`` of a model that stays."""


class ModelState(NamedTuple):
    """One line of a snapshot. ``expires_at`` of a model that failed is when it will be tried again.

    ``slots`` are the requests that it answers at a time.
    """

    id: str
    state: State
    engine: str
    slots: int
    free_slots: int
    leases: int
    waiting: int
    memory: int | None
    loaded_at: datetime | None
    expires_at: datetime | None
    context_length: int | None


class Snapshot(NamedTuple):
    """The pool at one moment; ``revision`` is another after every change."""

    revision: int
    models: tuple[ModelState, ...]
    memory_used: int
    memory_budget: int
    draining: bool


@dataclass(frozen=True)
class Order:
    """What is to be loaded: a runner that is made when its turn comes, and bytes that it will need.

    ``slots`` are the requests that it answers at a time.

    ``use`` makes what marks the model as in use. ``used`` notes that it was used just now; it may block.
    ``advice`` says what of the model would fit into so many bytes.
    """

    id: str
    need: int
    keep_alive: float
    slots: int
    make: Callable[[Callable[[], None]], Runner]
    use: Callable[[], Use]
    used: Callable[[], None] = lambda: None
    advice: Callable[[int], str] = lambda _: "kawai models ps shows what is loaded or pinned"


@dataclass
class TakenSeat:
    """A model that is loaded or on its way; ``was_asked``: a request has said how long it is to stay."""

    runner: Runner
    need: int
    keep_alive: float
    used_at: float
    loading: asyncio.Task[None]
    use: Use
    used: Callable[[], None]
    leases: int = 0
    abandoned: int = 0
    waiting: int = 0
    has_died: bool = False
    was_asked: bool = False
    noted_at: float = float("-inf")
    leaving: asyncio.Task[None] | None = None
    loaded_at: datetime | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def expires_at(self) -> float | None:
        """When it may go for want of use, by the pool's clock."""
        return None if self.keep_alive < 0 else self.used_at + self.keep_alive

    @property
    def memory(self) -> int:
        """Bytes that it counts for: what was reckoned with, or what it has taken, if that is more."""
        return max(self.need, self.runner.memory() or 0)

    @property
    def held(self) -> int:
        """Bytes that its engine really keeps from others: what it maps of a file can be read again."""
        return self.runner.private_memory() or 0

    @property
    def is_over(self) -> bool:
        """Whether its engine is gone and nobody is there who could still be told."""
        return self.runner.state is State.FAILED and self.loading.done() and self.leases == 0

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for an answer of it."""
        return self.leases > self.abandoned

    def seat(self, memory: int = 0) -> Seat:
        """What decides who leaves."""
        moving = self.leaving is not None or self.runner.state in {State.STARTING, State.DRAINING}
        leaving = self.leaving is not None or self.runner.state is State.DRAINING
        busy = self.leases + self.waiting
        return Seat(self.runner.wanted.id, memory, busy, moving, self.used_at, self.expires_at, leaving)

    def _left(self, now: float) -> float | None:
        """Seconds that it stays, if nobody asks it again."""
        if self.expires_at is None:
            return None
        return self.keep_alive if self.leases else self.expires_at - now

    def told(self, now: float) -> ModelState:
        """Its line of a snapshot."""
        wanted = self.runner.wanted
        return ModelState(
            id=wanted.id,
            state=self.runner.state,
            engine=self.runner.engine.name,
            slots=wanted.parallel,
            free_slots=max(0, wanted.parallel - self.leases),
            leases=self.leases,
            waiting=self.waiting,
            memory=self.runner.memory(),
            loaded_at=self.loaded_at,
            expires_at=wall_time(self._left(now)),
            context_length=wanted.context_length,
        )


def wall_time(seconds: float | None = 0.0) -> datetime | None:
    """The time of day in so many seconds, to the second."""
    if seconds is None:
        return None
    return (datetime.now(UTC) + timedelta(seconds=seconds)).replace(microsecond=0)


class Held:
    """A lease: one hold on a model that answers."""

    def __init__(self, seat: TakenSeat, changes: Changes) -> None:
        """It lasts until :meth:`end`; ``changes`` are told what it changes."""
        self.id, self.target = seat.runner.wanted.id, seat.runner.target
        self.slots = seat.runner.wanted.parallel
        self._seat, self._changes, self._is_abandoned = seat, changes, False
        seat.leases += 1

    @property
    def leases(self) -> int:
        """How many leases of the model there are now, this one included."""
        return self._seat.leases

    def abandon(self) -> None:
        """Say that nobody waits for what the engine does for it: neither does who ends the model."""
        if not self._is_abandoned:
            self._is_abandoned = True
            self._seat.abandoned += 1
            self._changes.note()

    def end(self) -> None:
        """Let go."""
        self._seat.leases -= 1
        self._seat.abandoned -= self._is_abandoned
