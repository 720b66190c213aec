"""What a server did within the last hour, in steps of ten seconds.

Nothing ticks: a step is made when something is counted or asked for, and those in which nothing happened
with it. Steps are of a clock that only goes forward; what time of day they had is reckoned when they are
told, so that they stay in order whatever becomes of the other clock.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import msgspec

from kawai_tools.api.clocks import passing

STEP = 10.0
"""Seconds of a step."""

MOST = 360
"""Steps that are kept."""

_LONG = timedelta(seconds=STEP)
_SET = STEP / 2
"""Seconds: a clock that is so far from where it was going was set, and is followed."""


class StatsStep(msgspec.Struct, frozen=True):
    """Ten seconds, from ``time`` on.

    ``requests`` to models that ended, and milliseconds (``ttft_ms``) that streamed answers which began took
    to begin, on average; ``tokens`` made; bytes of ``memory`` that loaded models counted for at the end.
    """

    time: datetime
    requests: int
    ttft_ms: int | None
    tokens: int
    memory: int
    loads: int
    evictions: int


@dataclass(slots=True)
class _Counts:
    """A step while it is counted; ``waited``: seconds that ``begun`` answers took to begin, together."""

    memory: int = 0
    requests: int = 0
    begun: int = 0
    waited: float = 0.0
    tokens: int = 0
    loads: int = 0
    evictions: int = 0


class History:
    """The steps of one server. Used in the event loop's thread only."""

    def __init__(self, clock: Callable[[], float] = passing, wall: Callable[[], float] = time.time) -> None:
        """The first step begins; ``wall`` tells Unix seconds."""
        self._clock, self._wall = clock, wall
        self._steps = deque([_Counts()], MOST)
        self._end = clock() + STEP
        self._ahead = wall() - clock()
        self._loads = self._evictions = 0

    def ended(self) -> None:
        """A request to a model has ended."""
        self._now().requests += 1

    def begun(self, seconds: float) -> None:
        """A streamed answer has begun, so many seconds after the head of its request."""
        step = self._now()
        step.begun += 1
        step.waited += seconds

    def made(self, tokens: int) -> None:
        """Tokens were made; fewer than none take back what was counted before by guess."""
        step = self._now()
        step.tokens += tokens
        if step.tokens < 0:
            self._take_back()

    def _take_back(self) -> None:
        """Let no step have fewer tokens than none: what it has not is taken from the one before."""
        owed = 0
        for step in reversed(self._steps):
            step.tokens -= owed
            owed = max(0, -step.tokens)
            step.tokens += owed
            if not owed:
                return

    def changed(self, memory: int, loads: int, evictions: int) -> None:
        """Models count for so much memory from now on; loads and evictions are all since the beginning."""
        step = self._now()
        step.memory = memory
        step.loads += loads - self._loads
        step.evictions += evictions - self._evictions
        self._loads, self._evictions = loads, evictions

    def told(self) -> list[StatsStep]:
        """All steps, the oldest first; the last is under way."""
        self._now()
        first = self._began() - _LONG * (len(self._steps) - 1)
        return [
            StatsStep(
                time=first + _LONG * place,
                requests=each.requests,
                ttft_ms=round(1000 * each.waited / each.begun) if each.begun else None,
                tokens=each.tokens,
                memory=each.memory,
                loads=each.loads,
                evictions=each.evictions,
            )
            for place, each in enumerate(self._steps)
        ]

    def _now(self) -> _Counts:
        """The step under way."""
        late = self._clock() - self._end
        if late >= 0:
            passed = int(late // STEP) + 1
            memory = self._steps[-1].memory
            self._steps.extend(_Counts(memory) for _ in range(min(passed, MOST)))
            self._end += passed * STEP
        return self._steps[-1]

    def _began(self) -> datetime:
        """When the step under way began, to the second.

        The clocks are compared anew only where one was set: else the same step would have one time now and
        the next second's when it is asked for again.
        """
        ahead = self._wall() - self._clock()
        if abs(ahead - self._ahead) > _SET:
            self._ahead = ahead
        return datetime.fromtimestamp((self._end - STEP + self._ahead) // 1, UTC)
