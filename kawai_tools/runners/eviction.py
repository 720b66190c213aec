"""Who leaves when someone must: pure, so that every case can be tried without a model.

Times are seconds of a monotonic clock, memory is bytes. A model that answers, loads or is pinned never
leaves; of the idle ones the least recently used leaves first, and no more leave than are needed.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple


class Seat(NamedTuple):
    """One model that is loaded, or on its way; ``expires_at`` is ``None`` for one that is pinned."""

    id: str
    memory: int
    leases: int
    moving: bool
    last_used: float
    expires_at: float | None
    leaving: bool = False

    @property
    def is_idle(self) -> bool:
        """Whether it could leave at once without anybody noticing."""
        return self.leases == 0 and not self.moving

    @property
    def may_leave(self) -> bool:
        """Whether it may be asked to."""
        return self.is_idle and self.expires_at is not None


class Room(StrEnum):
    """Whether there is room for another model."""

    NOW = "now"
    """Once those that are named have left."""

    LATER = "later"
    """When models that are busy now have become idle."""

    NEVER = "never"
    """Not even beside the pinned ones alone."""


class Verdict(NamedTuple):
    """What is to happen for another model: ``leaving`` are the ids of those that leave, in this order."""

    room: Room
    leaving: tuple[str, ...] = ()


def expired(seats: Iterable[Seat], now: float) -> list[str]:
    """The ids of idle models whose time is over."""
    return [seat.id for seat in seats if seat.may_leave and (seat.expires_at or 0.0) <= now]


def make_room(seats: Sequence[Seat], need: int, budget: int, most: int) -> Verdict:
    """Who leaves so that a model of ``need`` bytes fits a budget, and no more than ``most`` are there."""
    used, count = sum(seat.memory for seat in seats), len(seats)
    leaving: list[str] = []
    for seat in sorted((seat for seat in seats if seat.may_leave), key=lambda seat: seat.last_used):
        if _fits(used, count, need, budget, most):
            break
        leaving.append(seat.id)
        used, count = used - seat.memory, count - 1
    if _fits(used, count, need, budget, most):
        return Verdict(Room.NOW, _needed(seats, leaving, need, budget, most))
    staying = [seat for seat in seats if seat.expires_at is None and not seat.leaving]
    alone = _fits(sum(seat.memory for seat in staying), len(staying), need, budget, most)
    return Verdict(Room.LATER if alone else Room.NEVER)


def giving_way(seats: Sequence[Seat], need: int, budget: int, most: int) -> tuple[str, ...]:
    """Who takes no more so that a model which has waited too long finds room: the least busy ones first."""
    by_use = sorted(seats, key=lambda seat: (seat.leases, seat.last_used))
    as_idle = [seat._replace(leases=0, last_used=float(place)) for place, seat in enumerate(by_use)]
    return make_room(as_idle, need, budget, most).leaving


def _fits(used: int, count: int, need: int, budget: int, most: int) -> bool:
    return used + need <= budget and count + 1 <= most


def _needed(seats: Sequence[Seat], leaving: list[str], need: int, budget: int, most: int) -> tuple[str, ...]:
    """Of those that were to leave, the ones that must: a large one may do for all."""
    kept = list(leaving)
    for each in leaving:
        rest = [name for name in kept if name != each]
        staying = [seat for seat in seats if seat.id not in rest]
        if _fits(sum(seat.memory for seat in staying), len(staying), need, budget, most):
            kept = rest
    return tuple(kept)
