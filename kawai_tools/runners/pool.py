"""The pool: one runner a model, however many ask; room is made, leases are counted, time runs out.

It knows nothing of HTTP. Everything happens in one event loop, and changes happen in whoever owns them: a
load is a task of the pool's, so that a caller who leaves while a model loads wrongs nobody.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from kawai_tools.errors import EngineFailed, KawaiError, Loading, ServerClosing
from kawai_tools.models.claims import Use
from kawai_tools.runners.changes import Changes
from kawai_tools.runners.eviction import Room, Seat, expired, giving_way, make_room
from kawai_tools.runners.failures import Failures, death, resting, seen
from kawai_tools.runners.process import START_PATIENCE, Runner, State
from kawai_tools.runners.refusing import busy, no_room, too_late
from kawai_tools.runners.seats import LONGEST, Held, ModelState, Order, Snapshot, TakenSeat, wall_time

F = TypeVar("F", bound=asyncio.Future[None])

PATIENCE = START_PATIENCE + 60
"""Seconds that who asks for a model waits for it: it may load for so long, and had to find room before."""

QUEUE = 512
"""Requests for one model that the pool holds at a time, where nothing else is said."""

FAIR = 5.0
"""Seconds that a model waits for room before others take no more requests, so that it gets its turn."""

_FORCE_PATIENCE, _MOMENT = 10.0, 0.02
_LOG = logging.getLogger(__name__)
_SELDOM = 1.0
"""Seconds between two notes on disk that a model was used."""


class Pool:
    """The runners of one server. Used in the event loop's thread only.

    ``events`` count what happened: ``loads``, ``evictions``, ``expiries``, ``failures``.
    """

    def __init__(
        self,
        *,
        budget: Callable[[int], int],
        most: int,
        queue: int = QUEUE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``budget`` says how many bytes all models may take, given how many their engines keep now."""
        self._budget, self._most, self._queue, self._clock = budget, most, queue, clock
        self.events: Counter[str] = Counter()
        self._seats: dict[str, TakenSeat] = {}
        self._failures = Failures(clock)
        self._asking: Counter[str] = Counter()
        self._closed: Counter[str] = Counter()
        self._making_way: dict[str, tuple[str, ...]] = {}
        self._changes = Changes()
        self._draining = False
        self._reaper: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._next: float | None = None
        self._own: set[asyncio.Future[None]] = set()

    def set_limits(self, budget: Callable[[int], int], most: int, queue: int) -> None:
        """Allow more, or less, from now on; who is loaded stays until its time or others' need."""
        self._budget, self._most, self._queue = budget, most, queue
        self._changes.note()

    # what callers do

    @asynccontextmanager
    async def lease(
        self, order: Order, deadline: float, *, keep_alive: float | None = None
    ) -> AsyncIterator[Held]:
        """Hold a model that answers, loading it if need be; ``deadline`` is of this pool's clock.

        Raises ``NoRoom``, ``Busy``, ``Loading``, ``EngineFailed`` or ``ServerClosing``. What the caller
        raises as an ``EngineFailed`` that ``died`` counts against the model.
        """
        with self._in_queue(order):
            seat = await self._seated(order, deadline)
            if keep_alive is not None:
                seat.keep_alive, seat.was_asked = min(keep_alive, LONGEST), True
            elif not seat.was_asked:  # what is set may have changed since it was loaded
                seat.keep_alive = min(order.keep_alive, LONGEST)
            self._changes.note()
            held = Held(seat, self._changes)
            try:
                yield held
            except EngineFailed as error:
                raise (await self._death(seat, error) if error.died else error) from None
            else:
                self._failures.worked(order.id)
            finally:
                held.end()
                self._let_go(seat)

    def _let_go(self, seat: TakenSeat) -> None:
        seat.used_at = self._clock()
        if seat.used_at >= seat.noted_at + _SELDOM:
            seat.noted_at = seat.used_at
            self._keep(asyncio.get_running_loop().run_in_executor(None, seat.used))
        self._changes.note()
        end = seat.expires_at
        if seat.is_over or (end is not None and (self._next is None or end < self._next)):
            self._wake.set()

    async def load(self, order: Order, deadline: float) -> ModelState:
        """Load a model, if it is not loaded."""
        async with self.lease(order, deadline):
            seat = self._seats[order.id]
            seat.keep_alive, seat.was_asked = min(order.keep_alive, LONGEST), False
        return seat.told(self._clock())

    async def unload(self, model_id: str, *, force: bool = False) -> bool:
        """Unload a model once nobody uses it; with ``force`` after ten seconds. Whether it was there."""
        self._failures.worked(model_id)
        seat = self._seats.get(model_id)
        if seat is None:
            return False
        await seat.runner.drain()
        await asyncio.wait({self._keep(asyncio.create_task(self._unload(seat, force=force)))})
        return True

    async def _unload(self, seat: TakenSeat, *, force: bool) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FORCE_PATIENCE if force else None):
                await self._changes.until(lambda: not seat.is_wanted)
        await asyncio.wait({self._leave(seat)})

    async def close(self, model_id: str) -> None:
        """Take nothing for a model any more, and unload it by force. :meth:`reopen` takes it back."""
        self._closed[model_id] += 1
        await self.unload(model_id, force=True)

    def reopen(self, model_id: str) -> None:
        """Take requests for a model again."""
        self._closed[model_id] -= 1
        if not self._closed[model_id]:
            del self._closed[model_id]

    async def drain(self, deadline: float) -> None:
        """Take nothing more, let streams come to their end until the deadline, then end everything."""
        self._draining = True
        self._changes.note()
        if self._reaper is not None:
            self._reaper.cancel()
        for seat in list(self._seats.values()):
            await seat.runner.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, deadline - self._clock())):
                await self._changes.until(lambda: not any(seat.is_wanted for seat in self._seats.values()))
        if leaving := {self._leave(seat) for seat in self._seats.values()}:
            await asyncio.wait(leaving)

    def snapshot(self) -> Snapshot:
        """What is loaded now, and what has failed and rests."""
        now = self._clock()
        loaded = tuple(seat.told(now) for seat in self._seats.values())
        failed = tuple(
            resting(name, each, now) for name, each in self._failures.resting() if name not in self._seats
        )
        return Snapshot(
            self._changes.revision, loaded + failed, self.memory_used, self._allowed(), self._draining
        )

    @property
    def memory_used(self) -> int:
        """Bytes that loaded models count for."""
        return sum(seat.memory for seat in self._seats.values())

    def listen(self, tell: Callable[[], None]) -> None:
        """Have ``tell`` called at every change: of what is loaded, who uses it, or what ``events`` count."""
        self._changes.listen(tell)

    async def changes(self, after: int) -> Snapshot:
        """The next snapshot whose revision is not ``after``."""
        await self._changes.next(after)
        return self.snapshot()

    # how a model gets its seat

    @contextlib.contextmanager
    def _in_queue(self, order: Order) -> Iterator[None]:
        model_id = order.id
        if self._asking[model_id] >= order.slots + self._queue:
            raise busy(order, self._asking[model_id])
        self._asking[model_id] += 1
        try:
            yield
        finally:
            self._asking[model_id] -= 1
            if not self._asking[model_id]:
                del self._asking[model_id]

    async def _seated(self, order: Order, deadline: float) -> TakenSeat:
        while True:
            self._refuse_late()
            if order.id in self._closed:
                raise Loading(f"{order.id} is being removed", "try again in a moment")
            if self._makes_way(order.id):
                await self._within(
                    deadline, self._changes.until(lambda: not self._makes_way(order.id)), order.id
                )
                continue
            seat = self._seats.get(order.id) or await self._begin(order, deadline)
            if seat.leaving is not None or seat.runner.state is State.DRAINING:
                await self._within(deadline, seat.gone.wait(), order.id)
                continue
            if not seat.loading.done():
                await self._loaded(seat, deadline)
            if seat.runner.state is State.READY and seat.leaving is None:
                return seat
            if seat.runner.state is State.FAILED:  # it died meanwhile: load it anew
                self._leave(seat)

    async def _loaded(self, seat: TakenSeat, deadline: float) -> None:
        """Wait for a load that others may be waiting for as well; what became of it is raised."""
        seat.waiting += 1
        try:
            await self._within(deadline, asyncio.wait({seat.loading}), seat.runner.wanted.id)
        finally:
            seat.waiting -= 1
            self._stir()
        if not seat.loading.cancelled():
            seat.loading.result()

    async def _begin(self, order: Order, deadline: float) -> TakenSeat:
        """Make room, and begin to load. Deciding and taking the seat is one step: nobody comes between."""
        patience = self._clock() + FAIR
        try:
            while True:
                self._refuse_late()
                if (known := self._seats.get(order.id)) is not None:
                    return known
                self._failures.refuse(order.id)
                verdict = make_room(*self._room_for(order.need))
                if verdict.room is Room.NEVER:
                    raise no_room(order, self._seats.values(), self._allowed(), self._most)
                if verdict.room is Room.NOW:
                    if (taken := self._take_seat(order, verdict.leaving)) is not None:
                        return taken
                    await self._within(deadline, asyncio.sleep(_MOMENT), order.id)
                    continue  # files of the model are just getting their names
                await self._until_changed(order, deadline, patience)
        finally:
            if self._making_way.pop(order.id, ()):
                self._changes.note()

    async def _until_changed(self, order: Order, deadline: float, patience: float) -> None:
        """Wait for a change; who has waited for so long already gets somebody to make way."""
        now, before = self._clock(), self._changes.revision
        if now >= patience:
            self._making_way[order.id] = giving_way(*self._room_for(order.need))
        changed = self._changes.next(before)
        if now >= patience or deadline <= patience:
            await self._within(deadline, changed, order.id)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience - now):
                await changed

    def _makes_way(self, model_id: str) -> bool:
        return any(model_id in leaving for leaving in self._making_way.values())

    def _refuse_late(self) -> None:
        if self._draining:
            raise ServerClosing("kawai is shutting down and loads no models", "try again in a moment")

    def _take_seat(self, order: Order, leaving: Sequence[str]) -> TakenSeat | None:
        use = order.use()
        if not use.try_acquire():
            return None
        runner = order.make(self._stir)
        before = {self._leave(self._seats[each]) for each in leaving}
        self.events["evictions"] += len(before)
        for each in leaving:
            _LOG.info("%s makes room for %s", each, order.id)
        loading = asyncio.create_task(self._load(order.id, runner, use, before))
        loading.add_done_callback(seen)
        keep_alive = min(order.keep_alive, LONGEST)
        seat = TakenSeat(runner, order.need, keep_alive, self._clock(), loading, use, order.used)
        self._seats[order.id] = seat
        self._changes.note()
        if self._reaper is None:
            self._reaper = asyncio.create_task(self._reap())
        return seat

    async def _load(self, model_id: str, runner: Runner, use: Use, before: set[asyncio.Task[None]]) -> None:
        """Start the child, once those have gone that make way for it."""
        try:
            if before:
                await asyncio.wait(before)
            await runner.start()
            use.opened()
        except BaseException as error:
            seat = self._seats.get(model_id)
            if seat is not None and seat.runner is runner:
                del self._seats[model_id]
                seat.gone.set()
            use.release()
            if isinstance(error, EngineFailed):
                self.events["failures"] += 1
                self._failures.did_not_load(model_id, error, runner.engine.name)
            self._changes.note()
            raise
        self.events["loads"] += 1
        self._seats[model_id].loaded_at = wall_time()
        self._changes.note()

    async def _death(self, seat: TakenSeat, error: EngineFailed) -> KawaiError:
        """Find out whether the engine is gone, so that the next request loads it anew; what became of it."""
        runner = seat.runner
        if self._draining:
            return ServerClosing("kawai is shutting down and has ended this answer", "ask again in a moment")
        if seat.leaving is not None:
            return EngineFailed(f"{runner.wanted.id} was unloaded while it answered", "ask again")
        await runner.look()
        if runner.pid is not None:
            return error
        told = death(runner, error)
        if not seat.has_died:  # many may have been asking it
            seat.has_died = True
            self.events["failures"] += 1
            self._failures.died(runner.wanted.id, told, runner.engine.name)
        return told

    def _room_for(self, need: int) -> tuple[list[Seat], int, int, int]:
        seats = [each.seat(each.memory) for each in self._seats.values()]
        return seats, need, self._allowed(), self._most

    def _allowed(self) -> int:
        """Bytes that all models may count for: what engines keep now comes back when they go."""
        return self._budget(sum(seat.held for seat in self._seats.values()))

    async def _within(self, deadline: float, work: Awaitable[object], model_id: str) -> None:
        try:
            async with asyncio.timeout(max(0.0, deadline - self._clock())):
                await work
        except TimeoutError:
            raise too_late(model_id, self._seats.get(model_id)) from None

    # how it leaves

    def _leave(self, seat: TakenSeat) -> asyncio.Task[None]:
        """End a model; whoever asked for it may go, the work is the pool's."""
        if seat.leaving is None:
            seat.leaving = self._keep(asyncio.create_task(self._end(seat)))
            self._changes.note()
        return seat.leaving

    async def _end(self, seat: TakenSeat) -> None:
        model_id = seat.runner.wanted.id
        if not seat.loading.done():
            seat.loading.cancel()
            await asyncio.wait({seat.loading})
        await seat.runner.drain()
        await seat.runner.stop(at_once=seat.leases > 0)
        if self._seats.get(model_id) is seat:
            del self._seats[model_id]
            seat.use.release()
        seat.gone.set()
        self._changes.note()

    async def _reap(self) -> None:
        """Unload what has expired, when it does: nothing happens in between."""
        while True:
            self._wake.clear()
            now = self._clock()
            seats = list(self._seats.values())
            over = set(expired([seat.seat() for seat in seats], now))
            for seat in seats:
                if seat.is_over or seat.runner.wanted.id in over:
                    self.events["expiries"] += not seat.is_over
                    if seat.leaving is None:
                        _LOG.info("nobody has asked %s for its time", seat.runner.wanted.id)
                    self._leave(seat)
            times = [each.expires_at for each in seats if each.seat().may_leave and each.expires_at]
            self._next = min(times, default=None)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if self._next is None else max(0.01, self._next - now)):
                    await self._wake.wait()

    def _stir(self) -> None:
        """Something has changed that may end a seat."""
        self._wake.set()
        self._changes.note()

    def _keep(self, work: F) -> F:
        """Hold on to work that nobody may be waiting for."""
        self._own.add(work)
        work.add_done_callback(self._own.discard)
        return work
