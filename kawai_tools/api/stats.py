"""``GET /v1/stats``: what the server does now, and did within the last hour, for pages that show it.

A page asks again and again: the answer is made of what is in memory, and being asked is not counted.
"""

import msgspec

from kawai_tools.api.history import History, StatsStep
from kawai_tools.api.observing import Seen
from kawai_tools.runners.pool import Pool
from kawai_tools.runners.process import State

PATH = "/v1/stats"


class StatsModel(msgspec.Struct, frozen=True):
    """A model that has an engine; ``slots`` are the requests that it answers at a time."""

    id: str
    slots: int
    free_slots: int


class Stats(msgspec.Struct, frozen=True):
    """The answer: bytes that loaded models count for, and what all may take; steps, the oldest first."""

    memory_used: int
    memory_budget: int
    draining: bool
    models: list[StatsModel]
    history: list[StatsStep]


class Watch:
    """Keeps the history of one server. Used in the event loop's thread only, once that runs."""

    def __init__(self, pool: Pool) -> None:
        """The history begins; ``pool`` tells what changes in it."""
        self._pool = pool
        self.history = History()
        pool.listen(self._look)

    def count(self, found: Seen) -> None:
        """Count a request that has ended, if it named a model that is installed."""
        if found.model is not None:
            self.history.ended()

    def told(self) -> Stats:
        """All of it."""
        now = self._pool.snapshot()
        self._note(now.memory_used)
        loaded = sorted(each for each in now.models if each.state is not State.FAILED)
        return Stats(
            memory_used=now.memory_used,
            memory_budget=now.memory_budget,
            draining=now.draining,
            models=[StatsModel(each.id, each.slots, each.free_slots) for each in loaded],
            history=self.history.told(),
        )

    def _look(self) -> None:
        self._note(self._pool.memory_used)

    def _note(self, memory: int) -> None:
        events = self._pool.events
        self.history.changed(memory, events["loads"], events["evictions"])
