"""The pool's refusals, in words. Each means that nothing of the request was begun: asking again is safe."""

from collections.abc import Iterable

from kawai_tools.errors import Busy, KawaiError, Loading, NoRoom
from kawai_tools.runners.process import State
from kawai_tools.runners.seats import Order, TakenSeat


def busy(order: Order, asking: int) -> Busy:
    """As many requests as may are waiting for one model."""
    return Busy(
        f"{order.id} has {asking} requests, which is as many as may wait",
        "try again soon; max_queue (KAWAI_MAX_QUEUE) lets more wait",
    )


def no_room(order: Order, seats: Iterable[TakenSeat], budget: int, most: int) -> NoRoom:
    """A model that would not fit though all left that may."""
    pinned = sum(seat.memory for seat in seats if seat.keep_alive < 0)
    held = f", of which {pinned:,} are pinned" if pinned else ""
    return NoRoom(
        f"{order.id} needs about {order.need:,} bytes of memory, and models may take "
        f"{budget:,} here{held}, {most} models at a time",
        order.advice(budget - pinned)
        if order.need > budget - pinned
        else "all places are pinned: kawai models ps shows by which, kawai models unload frees one",
    )


def too_late(model_id: str, seat: TakenSeat | None) -> KawaiError:
    """A deadline passed before the model was ready."""
    if seat is None:
        error = NoRoom(f"{model_id} found no room in time: others are busy", "try again soon")
        error.retry_after = 1
        return error
    if seat.runner.state is State.DRAINING:
        return Loading(f"{model_id} is being unloaded, once what it answers has ended", "try again soon")
    return Loading(f"{model_id} is not ready yet", "try again soon")
