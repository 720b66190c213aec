"""Models that failed, to load or again and again while they answered: they rest before the next try."""

import asyncio
from collections.abc import Callable, Iterator
from math import ceil
from typing import NamedTuple

from kawai_tools.errors import EngineFailed, KawaiError
from kawai_tools.runners.process import Runner, State
from kawai_tools.runners.seats import ModelState, wall_time

BACK_OFF = (1.0, 5.0, 30.0)
"""Seconds for which a model rests after it failed once, twice, and more often, one time after the other."""


class Failure(NamedTuple):
    """What a model failed by, how often in a row, and until when it rests (seconds of the pool's clock)."""

    times: int
    until: float
    error: EngineFailed
    engine: str


class Failures:
    """What each model failed by since it last worked."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Nothing has failed yet."""
        self._clock = clock
        self._found: dict[str, Failure] = {}

    def did_not_load(self, model_id: str, error: EngineFailed, engine: str) -> None:
        """Remember it; the model rests."""
        self._remember(model_id, error, engine, rest=BACK_OFF)

    def died(self, model_id: str, error: EngineFailed, engine: str) -> None:
        """Remember it; the model is loaded anew at once for the first time, and rests if it goes on so."""
        self._remember(model_id, error, engine, rest=(0.0, *BACK_OFF))

    def worked(self, model_id: str) -> None:
        """Forget what was."""
        self._found.pop(model_id, None)

    def refuse(self, model_id: str) -> None:
        """Raise again what a model failed by, while it rests."""
        failed = self._found.get(model_id)
        rest = failed.until - self._clock() if failed is not None else 0.0
        if failed is not None and rest > 0:
            again = f"it is tried again in {ceil(rest)} s"
            error = EngineFailed(failed.error.message, f"{again}; {failed.error.hint or 'kawai doctor'}")
            error.retry_after, error.retry_safe = ceil(rest), True
            raise error

    def resting(self) -> Iterator[tuple[str, Failure]]:
        """The models that are not tried now."""
        now = self._clock()
        return ((name, each) for name, each in self._found.items() if now < each.until)

    def _remember(self, model_id: str, error: EngineFailed, engine: str, rest: tuple[float, ...]) -> None:
        before = self._found.get(model_id)
        times = before.times + 1 if before else 1
        wait = rest[min(times, len(rest)) - 1]
        self._found[model_id] = Failure(times, self._clock() + wait, error, engine)


def resting(model_id: str, failure: Failure, now: float) -> ModelState:
    """The line of a model that rests."""
    return ModelState(
        id=model_id,
        state=State.FAILED,
        engine=failure.engine,
        slots=0,
        free_slots=0,
        leases=0,
        waiting=0,
        memory=None,
        loaded_at=None,
        expires_at=wall_time(failure.until - now),
        context_length=None,
    )


def seen(load: asyncio.Task[None]) -> None:
    """Whoever waits for a load is told what it failed by; where nobody does any more, that is no bug."""
    if not load.cancelled() and (error := load.exception()) is not None and not isinstance(error, KawaiError):
        raise error


def death(runner: Runner, error: EngineFailed) -> EngineFailed:
    """What to say where an engine ended while it answered; ``error`` is how the one who asked it noticed."""
    said = runner.last_words()
    words = f"the engine {runner.problem} while it answered as {runner.wanted.id}"
    told = EngineFailed(f"{words}: {said}" if said else words, error.hint)
    told.died, told.retry_safe = True, error.retry_safe
    return told
