"""The pool and its runners in this process: real children, real sockets, real locks.

What no real engine shows on demand (one that hangs, crashes, floods or will not end) is a few lines of
Python that speak just enough HTTP to be asked for their health.
"""

import asyncio
import functools
import gc
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ParamSpec, cast

import msgspec
import pytest

from kawai_tools.errors import (
    Busy,
    EngineFailed,
    InUse,
    InvalidRequest,
    KawaiError,
    NoEngine,
    NoRoom,
    ServerClosing,
)
from kawai_tools.files import Lock
from kawai_tools.journal import Journals
from kawai_tools.libs import children
from kawai_tools.libs.bundles import Bundles
from kawai_tools.libs.layout import LibsLayout
from kawai_tools.models.claims import Renaming, Use
from kawai_tools.models.layout import Layout
from kawai_tools.refs import parse_model
from kawai_tools.resolving import resolve
from kawai_tools.runners import pool as pool_module
from kawai_tools.runners import process as process_module
from kawai_tools.runners.asking import ask
from kawai_tools.runners.engines import Engine, Launch, LlamaServer, Wanted, choose, engines
from kawai_tools.runners.failures import BACK_OFF
from kawai_tools.runners.orders import Orders
from kawai_tools.runners.pool import PATIENCE, Pool
from kawai_tools.runners.process import START_PATIENCE, Place, Runner, Spawner, State, Target
from kawai_tools.runners.seats import Held, Order, Snapshot
from kawai_tools.runners.tuning import Run, Tuning
from kawai_tools.workspace import Workspace
from tests.inference import soon as comes
from tests.program import Program
from tests.samples import tiny_gguf
from tests.workspaces import Workspaces

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")

SERVER = r"""
import socket, sys, threading, time
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen(200)
while True:
    one, _ = listening.accept()
    one.recv(65536)
    one.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    one.close()
"""
SLOW = "import time; time.sleep(0.4)\n"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
HANGS = "import sys, time; print('initializing ...', flush=True); time.sleep(600)\n"
MUTE = r"""
import socket, sys, time
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen(200)
print("still loading", flush=True)
time.sleep(600)
"""
FAILS = "import sys; print('one\\ntwo\\nthree\\nerror: not enough memory', file=sys.stderr); sys.exit(3)\n"
FLOOD = r"""
import os, threading
def flood():
    while True: os.write(2, b"warning: again\n" * 1000)
threading.Thread(target=flood, daemon=True).start()
"""
HELPED = r"""
import subprocess, sys
code = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(600)"
helper = subprocess.Popen([sys.executable, "-I", "-S", "-c", code, sys.argv[1]], stdout=subprocess.PIPE)
helper.stdout.readline()
"""

P = ParamSpec("P")


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test in an event loop of its own, for at most half a minute."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 30))

    return run


class Script:
    """An engine whose server is a few lines of Python; ``args[1]`` is its socket."""

    name = "script"
    most_parallel: int | None = None
    beside = 0

    def __init__(self, text: str = SERVER, hold: Path | None = None) -> None:
        self.text, self.hold = text, hold
        self.launches = 0

    def why_not(self) -> str | None:
        return None

    def launch(self, wanted: Wanted, socket: Path, key: str) -> Launch:  # noqa: ARG002
        self.launches += 1
        command = (sys.executable, "-I", "-S", "-c", self.text, str(socket))
        return Launch(command, {"PATH": os.environ["PATH"]}, socket.parent, self.hold)


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class _Hasty(Runner):
    """A runner with little patience."""

    async def start(self, patience: float = 0.3) -> None:
        await super().start(patience)


class Bench:
    """Orders, pools and runners over one folder of sockets, and what they leave."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spawner = Spawner()
        self.journals = Journals()
        self.runners: dict[str, list[Runner]] = {}

    @asynccontextmanager
    async def pool(
        self,
        *,
        budget: int = 1 << 40,
        most: int = 3,
        queue: int = 512,
        clock: Callable[[], float] = time.monotonic,
        live: Callable[[int], int] | None = None,
    ) -> AsyncIterator[Pool]:
        made = Pool(budget=live or (lambda _: budget), most=most, queue=queue, clock=clock)
        try:
            yield made
        finally:
            await asyncio.wait_for(made.drain(0.0), 15)

    @property
    def place(self) -> Place:
        return Place(self.folder, self.spawner, self.journals)

    def runner(self, engine: Engine, name: str = "a", *, kind: type[Runner] = Runner) -> Runner:
        return kind(_wanted(name), engine, self.place, lambda: None)

    def order(
        self,
        name: str,
        engine: Engine | None = None,
        *,
        need: int = 100,
        keep_alive: float = 300.0,
        kind: type[Runner] = Runner,
    ) -> Order:
        chosen: Engine = engine or Script()

        def make(changed: Callable[[], None]) -> Runner:
            made = kind(_wanted(name), chosen, self.place, changed)
            self.runners.setdefault(name, []).append(made)
            return made

        return Order(name, need, keep_alive, 4, make, lambda: Use(self.layout, name, name))

    @property
    def layout(self) -> Layout:
        return Layout(self.folder, self.folder)

    def lock(self, name: str) -> Lock:
        return Lock(self.layout.lock(name))

    def is_free(self, name: str) -> bool:
        """Whether a pull could have the model."""
        lock = self.lock(name)
        taken = lock.acquire()
        lock.release()
        return taken

    def pid(self, name: str) -> int:
        """The child of the last runner of this name."""
        pid = self.runners[name][-1].pid
        assert pid is not None
        return pid

    def living(self) -> list[int]:
        """Processes that serve, or help to serve, from this folder."""
        found = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
        return [pid for pid in found if self._is_ours(pid)]

    def _is_ours(self, pid: int) -> bool:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False
        return state not in "ZX" and os.fsencode(self.folder) in command

    def sockets(self) -> list[str]:
        return [path.name for path in self.folder.glob("*.sock")]


def _wanted(name: str) -> Wanted:
    return Wanted(
        id=name,
        weights=f"{name}.gguf",
        projection=None,
        endpoint="chat",
        context_length=4096,
        parallel=4,
        gpu_layers=None,
        threads=None,
    )


@pytest.fixture
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A bench, on which nothing may be left."""
    made = Bench(tmp_path_factory.mktemp("r"))
    yield made
    gc.collect()  # what is not closed tells it now
    left = made.living()
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert left == []
    assert made.sockets() == []
    assert [name for name in made.runners if not made.is_free(name)] == []


def soon(seconds: float = 20.0) -> float:
    return time.monotonic() + seconds


async def use(pool: Pool, order: Order, *, keep_alive: float | None = None) -> Held:
    """Lease and let go."""
    async with pool.lease(order, soon(), keep_alive=keep_alive) as held:
        return held


async def until(pool: Pool, met: Callable[[Snapshot], bool], seconds: float = 10.0) -> Snapshot:
    """The first snapshot of which something is true."""
    shot = pool.snapshot()
    async with asyncio.timeout(seconds):
        while not met(shot):
            shot = await pool.changes(shot.revision)
    return shot


async def reaches(met: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for something that tells nobody."""
    async with asyncio.timeout(seconds):
        while not met():  # noqa: ASYNC110 - a process that ends tells nobody
            await asyncio.sleep(0.01)


async def ends(work: "asyncio.Task[Any]", seconds: float = 10.0) -> BaseException | None:
    """How a task ends that nobody cancels."""
    done, _ = await asyncio.wait({work}, timeout=seconds)
    assert done, "it never ends"
    assert not work.cancelled(), "it was told that it is cancelled, and nobody did that"
    return work.exception()


def ids(shot: Snapshot) -> set[str]:
    return {model.id for model in shot.models}


def states(shot: Snapshot) -> dict[str, State]:
    return {model.id: model.state for model in shot.models}


# one server a model


@in_loop
async def test_a_hundred_leases_start_one_server(bench: Bench) -> None:
    engine = Script(SLOW + SERVER)
    async with bench.pool() as pool:
        order = bench.order("a", engine)
        found = await asyncio.gather(*(use(pool, order) for _ in range(100)), return_exceptions=True)
        refused = [each for each in found if isinstance(each, BaseException)]
        assert (len(refused), refused[:1]) == (0, [])
        assert len({each.target for each in found if isinstance(each, Held)}) == 1
        assert engine.launches == 1
        assert pool.snapshot().models[0].leases == 0


@in_loop
async def test_leases_are_counted(bench: Bench) -> None:
    async with bench.pool() as pool, AsyncExitStack() as stack:
        for count in (1, 2, 3):
            await stack.enter_async_context(pool.lease(bench.order("a"), soon()))
            assert pool.snapshot().models[0].leases == count
        await stack.aclose()
        assert pool.snapshot().models[0].leases == 0


@in_loop
async def test_a_lease_is_given_back_by_one_who_fails(bench: Bench) -> None:
    async with bench.pool() as pool:
        with pytest.raises(RuntimeError):
            async with pool.lease(bench.order("a"), soon()):
                raise RuntimeError
        assert pool.snapshot().models[0].leases == 0


@in_loop
async def test_a_caller_who_leaves_while_a_model_loads_wrongs_nobody(bench: Bench) -> None:
    engine = Script(SLOW + SERVER)
    async with bench.pool() as pool:
        order = bench.order("a", engine)
        leaving = asyncio.create_task(use(pool, order))
        staying = asyncio.create_task(use(pool, order))
        await until(pool, lambda shot: any(model.waiting == 2 for model in shot.models) or bool(shot.models))
        leaving.cancel()
        assert await ends(staying) is None
        assert engine.launches == 1
        assert [(each.leases, each.waiting) for each in pool.snapshot().models] == [(0, 0)]


@in_loop
async def test_the_only_caller_may_leave_while_a_model_loads(bench: Bench) -> None:
    engine = Script(SLOW + SERVER)
    async with bench.pool() as pool:
        order = bench.order("a", engine)
        leaving = asyncio.create_task(use(pool, order))
        await until(pool, lambda shot: bool(shot.models))
        leaving.cancel()
        await asyncio.wait({leaving})
        await use(pool, order)
        assert engine.launches == 1


@in_loop
async def test_a_queue_has_an_end(bench: Bench) -> None:
    async with bench.pool(queue=16) as pool:
        order = bench.order("a", Script(HANGS), kind=_Hasty)
        callers = [asyncio.create_task(use(pool, order)) for _ in range(30)]
        others = asyncio.create_task(use(pool, bench.order("b")))
        await asyncio.wait({*callers, others})
        kinds = [type(each.exception()) for each in callers]
        assert (kinds.count(Busy), kinds.count(EngineFailed)) == (10, 20)
        assert others.exception() is None


@in_loop
async def test_who_listens_hears_of_what_nobody_waits_for(bench: Bench) -> None:
    heard: list[tuple[int, int]] = []
    async with bench.pool() as pool:
        pool.listen(lambda: heard.append((pool.events["loads"], pool.memory_used)))
        leaving = asyncio.create_task(use(pool, bench.order("a", Script(SLOW + SERVER), need=1 << 40)))
        await until(pool, lambda shot: bool(shot.models))
        assert heard[-1] == (0, 1 << 40)
        leaving.cancel()
        await asyncio.wait({leaving})
        await until(pool, lambda shot: shot.models[0].loaded_at is not None)
        assert heard[-1] == (1, 1 << 40)
        await pool.unload("a")
        assert heard[-1] == (1, 0)


@in_loop
async def test_the_queue_of_a_model_that_leaves_has_an_end_too(bench: Bench) -> None:
    async with bench.pool(queue=17) as pool, AsyncExitStack() as stack:
        order = bench.order("a")
        await stack.enter_async_context(pool.lease(order, soon()))
        unloading = asyncio.create_task(pool.unload("a"))
        await until(pool, lambda shot: states(shot) == {"a": State.DRAINING})
        callers = [asyncio.create_task(use(pool, order)) for _ in range(30)]
        done, waiting = await asyncio.wait(callers, timeout=0.3)
        await stack.aclose()
        await unloading
        if waiting:
            await asyncio.wait(waiting)
        assert [type(each.exception()) for each in done] == [Busy] * 10


@pytest.mark.slow
@in_loop
async def test_many_requests_over_three_models_with_room_for_two_are_all_served(bench: Bench) -> None:
    made = {name: Script() for name in "abc"}

    async def request(name: str) -> None:
        async with pool.lease(bench.order(name, made[name]), soon()):
            await asyncio.sleep(0.005)  # the answer

    async with bench.pool(most=2) as pool:
        work = [asyncio.create_task(request("abc"[number % 3])) for number in range(200)]
        await asyncio.wait(work)
        refused = [str(error) for each in work if (error := each.exception()) is not None]
        assert (len(refused), refused[:1]) == (0, [])
        assert sum(engine.launches for engine in made.values()) <= 6


# who leaves


@in_loop
async def test_the_least_recently_used_leaves(bench: Bench) -> None:
    async with bench.pool(most=2) as pool:
        for name in ("a", "b", "a", "c"):
            await use(pool, bench.order(name))
        assert ids(pool.snapshot()) == {"a", "c"}
        assert len(bench.living()) == 2


@in_loop
async def test_memory_is_kept_to(bench: Bench) -> None:
    # the children's own memory counts where it is more than was reckoned with
    async with bench.pool(budget=250 << 20, most=9) as pool:
        for name in ("a", "b", "c"):
            await use(pool, bench.order(name, need=100 << 20))
        shot = pool.snapshot()
        assert ids(shot) == {"b", "c"}
        assert (shot.memory_used, shot.memory_budget) == (200 << 20, 250 << 20)


@in_loop
async def test_two_loads_never_count_on_the_same_room(bench: Bench) -> None:
    free = 300 << 20
    async with bench.pool(live=lambda kept: free + kept) as pool:
        first = asyncio.create_task(use(pool, bench.order("a", Script(SLOW + SERVER), need=200 << 20)))
        await until(pool, lambda shot: bool(shot.models))
        second = asyncio.create_task(use(pool, bench.order("b", need=200 << 20)))
        await asyncio.wait({second}, timeout=0.1)
        assert ids(pool.snapshot()) == {"a"}
        assert (await ends(first), await ends(second)) == (None, None)
        assert ids(pool.snapshot()) == {"b"}


@in_loop
async def test_a_load_that_hangs_is_told_as_the_engines_failure(bench: Bench) -> None:
    async with bench.pool() as pool:
        with pytest.raises(EngineFailed, match=r"did not load a in 0\.3 s") as caught:
            async with pool.lease(bench.order("a", Script(HANGS), kind=_Hasty), soon(PATIENCE)):
                pass
        assert caught.value.retry_safe
    assert START_PATIENCE < PATIENCE


@in_loop
async def test_a_model_that_never_fits_moves_nobody(bench: Bench) -> None:
    async with bench.pool(budget=250 << 20) as pool:
        await use(pool, bench.order("a", need=100 << 20))
        with pytest.raises(NoRoom) as caught:
            await use(pool, bench.order("b", need=300 << 20))
        assert (caught.value.code, caught.value.status) == ("no_room", 503)
        assert f"{300 << 20:,}" in caught.value.message
        assert f"{250 << 20:,}" in caught.value.message
        assert caught.value.hint
        assert ids(pool.snapshot()) == {"a"}
        assert "b" not in bench.runners


@in_loop
async def test_a_model_with_a_lease_is_not_evicted(bench: Bench) -> None:
    async with bench.pool(most=1) as pool:
        async with pool.lease(bench.order("a"), soon()):
            pid = bench.pid("a")
            with pytest.raises(NoRoom):
                async with pool.lease(bench.order("b"), soon(0.3)):
                    pass
            assert states(pool.snapshot()) == {"a": State.READY}
            assert bench.pid("a") == pid
        await use(pool, bench.order("b"))
        assert ids(pool.snapshot()) == {"b"}


@in_loop
async def test_who_waits_for_room_gets_it_when_a_lease_ends(bench: Bench) -> None:
    async with bench.pool(most=1) as pool, AsyncExitStack() as stack:
        await stack.enter_async_context(pool.lease(bench.order("a"), soon()))
        waiting = asyncio.create_task(use(pool, bench.order("b")))
        await asyncio.wait({waiting}, timeout=0.1)
        assert not waiting.done()
        await stack.aclose()
        assert await ends(waiting) is None


@in_loop
async def test_who_waits_long_for_room_gets_a_turn_though_others_never_pause(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "FAIR", 0.3)

    async def keep_busy(name: str) -> None:
        while not waiting.done():
            async with pool.lease(bench.order(name), soon()):
                await asyncio.sleep(0.05)  # the answer

    async with bench.pool(most=2) as pool:
        for name in "ab":
            await use(pool, bench.order(name))
        waiting = asyncio.create_task(use(pool, bench.order("c")))
        busy = [asyncio.create_task(keep_busy(name)) for name in "ab" for _ in range(3)]
        assert await ends(waiting, 5) is None
        await asyncio.wait(busy)
        assert [error for each in busy if (error := each.exception())] == []


@in_loop
async def test_a_deadline_holds_behind_one_who_waits_for_room(bench: Bench) -> None:
    async with bench.pool(most=1) as pool, pool.lease(bench.order("a"), soon()):
        patient = asyncio.create_task(use(pool, bench.order("b")))
        await asyncio.wait({patient}, timeout=0.1)
        hasty = asyncio.create_task(_lease_by(pool, bench.order("c"), soon(0.2)))
        done, _ = await asyncio.wait({hasty}, timeout=3)
        for each in (patient, hasty):
            each.cancel()
        await asyncio.wait({patient, hasty})
        assert done == {hasty}
        assert isinstance(hasty.exception(), NoRoom)


async def _lease_by(pool: Pool, order: Order, deadline: float) -> None:
    async with pool.lease(order, deadline):
        pass


@in_loop
async def test_who_waits_for_room_holds_up_nobody_that_has_a_seat(bench: Bench) -> None:
    async with bench.pool(most=2) as pool, AsyncExitStack() as stack:
        for name in ("a", "b"):
            await stack.enter_async_context(pool.lease(bench.order(name), soon()))
        waiting = asyncio.create_task(use(pool, bench.order("c")))
        await asyncio.wait({waiting}, timeout=0.1)
        await asyncio.wait_for(use(pool, bench.order("a")), 2)
        await stack.aclose()
        assert await ends(waiting) is None


@in_loop
async def test_who_is_leased_while_another_makes_way_stays(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "STOP_PATIENCE", 0.5)
    big = 200 << 20
    async with bench.pool(budget=big, most=9) as pool:
        await use(pool, bench.order("deaf", Script(DEAF + SERVER), need=big // 2))
        await use(pool, bench.order("next", need=big // 2))
        large = asyncio.create_task(use(pool, bench.order("large", need=big)))
        await until(pool, lambda shot: states(shot)["deaf"] is not State.READY)
        async with pool.lease(bench.order("next"), soon()):
            pid = bench.pid("next")
            await asyncio.wait({large}, timeout=1.0)
            assert pid in bench.living()
            assert states(pool.snapshot()).get("next") is State.READY
        assert await ends(large) is None


@in_loop
async def test_who_is_leased_while_another_expires_stays(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "STOP_PATIENCE", 0.5)
    clock = Clock()
    async with bench.pool(clock=clock) as pool:
        await _use_by(pool, bench.order("deaf", Script(DEAF + SERVER), keep_alive=10), clock)
        await _use_by(pool, bench.order("next", keep_alive=10), clock)
        clock.now += 11
        async with pool.lease(bench.order("wake"), clock() + 20):  # a change, so that time is looked at
            pass
        await until(pool, lambda shot: states(shot)["deaf"] is not State.READY)
        async with pool.lease(bench.order("next"), clock() + 20):
            pid = bench.pid("next")
            await until(pool, lambda shot: "deaf" not in ids(shot))
            await asyncio.sleep(0.2)  # nothing is to happen
            assert pid in bench.living()


async def _use_by(pool: Pool, order: Order, clock: Clock) -> None:
    async with pool.lease(order, clock() + 20):
        pass


@in_loop
async def test_models_that_expire_go_on_expiring_after_one_was_unloaded_meanwhile(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "STOP_PATIENCE", 0.5)
    clock = Clock()
    async with bench.pool(clock=clock) as pool:
        await _use_by(pool, bench.order("deaf", Script(DEAF + SERVER), keep_alive=10), clock)
        await _use_by(pool, bench.order("next", keep_alive=10), clock)
        clock.now += 11
        await _use_by(pool, bench.order("wake"), clock)
        await until(pool, lambda shot: states(shot)["deaf"] is not State.READY)
        await pool.unload("next")
        await until(pool, lambda shot: ids(shot) == {"wake"})
        await _lease_short(pool, bench.order("late"), clock)
        await until(pool, lambda shot: ids(shot) == {"wake"}, 3)


async def _lease_short(pool: Pool, order: Order, clock: Clock) -> None:
    async with pool.lease(order, clock() + 20, keep_alive=0):
        pass


@in_loop
async def test_who_makes_room_may_leave(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "STOP_PATIENCE", 0.3)
    async with bench.pool(most=1) as pool:
        await use(pool, bench.order("deaf", Script(DEAF + SERVER)))
        leaving = asyncio.create_task(use(pool, bench.order("b")))
        await until(pool, lambda shot: states(shot).get("deaf") is not State.READY)
        again = asyncio.create_task(use(pool, bench.order("deaf", Script())))
        await asyncio.sleep(0.05)  # both wait now
        leaving.cancel()
        await asyncio.wait({leaving})
        assert await ends(again, 5) is None
        assert states(pool.snapshot()) == {"deaf": State.READY}


@in_loop
async def test_an_eviction_that_was_begun_is_carried_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "STOP_PATIENCE", 0.3)
    async with bench.pool(most=1) as pool:
        await use(pool, bench.order("deaf", Script(DEAF + SERVER)))
        leaving = asyncio.create_task(use(pool, bench.order("b")))
        await until(pool, lambda shot: states(shot).get("deaf") is not State.READY)
        leaving.cancel()
        await asyncio.wait({leaving})
        await until(pool, lambda shot: "deaf" not in ids(shot), 3)
        assert bench.living() == []


# time


@in_loop
async def test_an_idle_model_leaves_when_its_time_is_over(bench: Bench) -> None:
    async with bench.pool() as pool:
        await use(pool, bench.order("a", keep_alive=0.3))
        begin = time.monotonic()
        assert ids(pool.snapshot()) == {"a"}
        await until(pool, lambda shot: not shot.models)
        assert 0.2 < time.monotonic() - begin < 2
        assert bench.living() == []
        assert bench.is_free("a")


@in_loop
async def test_use_begins_the_time_anew(bench: Bench) -> None:
    async with bench.pool() as pool:
        order = bench.order("a", keep_alive=0.4)
        begin = time.monotonic()
        while time.monotonic() - begin < 1.0:
            await use(pool, order)
            await asyncio.sleep(0.1)
        assert len(bench.runners["a"]) == 1


@in_loop
async def test_a_lease_outlives_the_time(bench: Bench) -> None:
    async with bench.pool() as pool:
        async with pool.lease(bench.order("a"), soon(), keep_alive=0):
            pid = bench.pid("a")
            await asyncio.sleep(0.3)  # nothing is to happen
            assert pid in bench.living()
        await until(pool, lambda shot: not shot.models)


@in_loop
async def test_expiry_is_shown_by_the_clock_that_only_goes_forward(bench: Bench) -> None:
    clock = Clock()
    async with bench.pool(clock=clock) as pool:
        await _use_by(pool, bench.order("a", keep_alive=300), clock)
        assert _left(pool) == pytest.approx(300, abs=2)
        clock.now += 100
        assert _left(pool) == pytest.approx(200, abs=2)
        await _use_by(pool, bench.order("a", keep_alive=300), clock)
        assert _left(pool) == pytest.approx(300, abs=2)


def _left(pool: Pool) -> float:
    at = pool.snapshot().models[0].expires_at
    assert at is not None
    assert at.tzinfo is UTC
    return (at - datetime.now(UTC)) / timedelta(seconds=1)


@in_loop
async def test_a_pinned_model_stays(bench: Bench) -> None:
    clock = Clock()
    async with bench.pool(most=2, clock=clock) as pool:
        async with pool.lease(bench.order("a"), clock() + 20, keep_alive=-1):
            pass
        assert pool.snapshot().models[0].expires_at is None
        clock.now += 1e6
        for name in ("b", "c"):
            await _use_by(pool, bench.order(name), clock)
        assert ids(pool.snapshot()) == {"a", "c"}


@in_loop
async def test_beside_pinned_models_alone_there_is_no_waiting(bench: Bench) -> None:
    async with bench.pool(most=1) as pool:
        await use(pool, bench.order("a"), keep_alive=-1)
        with pytest.raises(NoRoom):
            await asyncio.wait_for(use(pool, bench.order("b")), 1)
        await pool.unload("a")
        await use(pool, bench.order("b"))


@pytest.mark.parametrize("seconds", [1e10, 1e12, 1e15, 1e300])
@in_loop
async def test_a_time_beyond_all_calendars_can_be_told(bench: Bench, seconds: float) -> None:
    async with bench.pool() as pool:
        await use(pool, bench.order("a"), keep_alive=seconds)
        assert pool.snapshot().models[0].id == "a"
        await use(pool, bench.order("a"), keep_alive=1)


@in_loop
async def test_a_load_that_takes_longer_than_the_time_costs_nothing_meanwhile(bench: Bench) -> None:
    asked = 0

    def clock() -> float:
        nonlocal asked
        asked += 1
        return time.monotonic()

    async with bench.pool(clock=clock) as pool:
        loading = asyncio.create_task(use(pool, bench.order("a", Script(SLOW * 2 + SERVER), keep_alive=0)))
        assert await ends(loading) is None
        assert asked < 40


# failures


@in_loop
async def test_a_load_that_fails_tells_the_last_words_and_is_not_tried_again_at_once(bench: Bench) -> None:
    clock, engine = Clock(), Script(FAILS)
    async with bench.pool(clock=clock) as pool:
        order = bench.order("a", engine)
        with pytest.raises(EngineFailed) as caught:
            await _use_by(pool, order, clock)
        assert (caught.value.code, caught.value.status) == ("engine_error", 502)
        assert "not enough memory" in caught.value.message
        assert "exit code 3" in caught.value.message
        for launches, wait in enumerate((*BACK_OFF, BACK_OFF[-1]), 1):
            for moment in (0.0, wait * 0.9):
                clock.now += moment
                with pytest.raises(EngineFailed, match="not enough memory"):
                    await _use_by(pool, order, clock)
                assert engine.launches == launches
            clock.now += wait * 0.2
            with pytest.raises(EngineFailed, match="not enough memory"):
                await _use_by(pool, order, clock)
            assert engine.launches == launches + 1
        (told,) = pool.snapshot().models
        assert (told.state, told.engine, told.memory, told.loaded_at) == (State.FAILED, "script", None, None)
        assert told.expires_at is not None
        clock.now += BACK_OFF[-1] * 1.1
        assert pool.snapshot().models == ()


@in_loop
async def test_a_load_that_succeeds_forgets_the_failures(bench: Bench) -> None:
    clock, engine = Clock(), Script(FAILS)
    async with bench.pool(clock=clock) as pool:
        order = bench.order("a", engine)
        for text in (FAILS, SERVER, FAILS, SERVER):
            engine.text = text
            await pool.unload("a")
            using = asyncio.create_task(_use_by(pool, order, clock))
            error = await ends(using)
            assert isinstance(error, EngineFailed) == (text == FAILS), error
            clock.now += BACK_OFF[0] * 1.1
        assert engine.launches == 4


@in_loop
async def test_an_error_that_is_told_again_and_again_does_not_grow(bench: Bench) -> None:
    async with bench.pool() as pool:
        order = bench.order("a", Script(FAILS))
        for _ in range(50):
            with pytest.raises(EngineFailed) as caught:
                await use(pool, order)
        assert len(caught.traceback) < 30


@in_loop
async def test_everybody_who_waits_is_told_of_a_failure(bench: Bench) -> None:
    engine = Script(SLOW + FAILS)
    async with bench.pool() as pool:
        order = bench.order("a", engine)
        callers = [asyncio.create_task(use(pool, order)) for _ in range(20)]
        await asyncio.wait(callers)
        assert {type(each.exception()) for each in callers} == {EngineFailed}
        assert engine.launches == 1


@in_loop
async def test_a_failure_makes_room_for_who_waits(bench: Bench) -> None:
    async with bench.pool(most=1) as pool:
        failing = asyncio.create_task(use(pool, bench.order("a", Script(SLOW + FAILS))))
        await until(pool, lambda shot: bool(shot.models))
        await use(pool, bench.order("b"))
        assert isinstance(await ends(failing), EngineFailed)


@pytest.mark.parametrize(("text", "words"), [(HANGS, "initializing"), (MUTE, "still loading")])
@in_loop
async def test_an_engine_that_hangs_while_it_loads_is_ended(bench: Bench, text: str, words: str) -> None:
    runner = bench.runner(Script(text))
    with pytest.raises(EngineFailed, match=words) as caught:
        await runner.start(patience=0.4)
    assert "0.4 s" in caught.value.message
    assert runner.state is State.FAILED
    assert (runner.pid, bench.living()) == (None, [])


@in_loop
async def test_an_engine_that_hangs_and_ignores_sigterm_is_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "STOP_PATIENCE", 0.3)
    with pytest.raises(EngineFailed):
        await bench.runner(Script(DEAF + HANGS)).start(patience=0.4)
    assert bench.living() == []


@in_loop
async def test_an_engine_that_cannot_be_started_is_told(bench: Bench) -> None:
    class Missing(Script):
        def launch(self, wanted: Wanted, socket: Path, key: str) -> Launch:  # noqa: ARG002
            return Launch(("/nowhere/llama-server",), {}, socket.parent)

    before = _descriptors()
    async with bench.pool() as pool:
        with pytest.raises(EngineFailed, match="No such file"):
            await use(pool, bench.order("a", Missing()))
        assert states(pool.snapshot()) == {"a": State.FAILED}
    assert _descriptors() == before


@in_loop
async def test_an_engine_that_crashes_while_ready_leaves_by_itself(bench: Bench) -> None:
    async with bench.pool() as pool:
        await use(pool, bench.order("a"))
        os.kill(bench.pid("a"), signal.SIGKILL)
        await until(pool, lambda shot: not shot.models)
        assert "SIGKILL" in (bench.runners["a"][0].problem or "")
        assert bench.is_free("a")
        assert bench.sockets() == []
        await use(pool, bench.order("a"))
        assert len(bench.runners["a"]) == 2


@in_loop
async def test_an_engine_that_crashes_under_a_lease_is_replaced_for_the_next(bench: Bench) -> None:
    async with bench.pool() as pool:
        async with pool.lease(bench.order("a"), soon()) as held:
            os.kill(bench.pid("a"), signal.SIGSEGV)
            await until(pool, lambda shot: State.FAILED in states(shot).values() or not shot.models)
            async with pool.lease(bench.order("a"), soon()) as other:
                assert other.target != held.target
                assert pool.snapshot().models[0].leases == 1
        assert [(each.state, each.leases) for each in pool.snapshot().models] == [(State.READY, 0)]


def _gone() -> EngineFailed:
    error = EngineFailed("the engine broke off")
    error.died = True
    return error


@in_loop
async def test_a_model_that_dies_again_and_again_rests(bench: Bench) -> None:
    clock = Clock()

    async def crash() -> None:
        async with pool.lease(bench.order("a"), clock() + 20):
            os.kill(bench.pid("a"), signal.SIGKILL)
            raise _gone()

    async with bench.pool(clock=clock) as pool:
        for _ in range(2):  # the first death is forgiven at once
            with pytest.raises(EngineFailed, match="SIGKILL"):
                await crash()
            await until(pool, lambda shot: State.READY not in states(shot).values())
        assert len(bench.runners["a"]) == 2
        with pytest.raises(EngineFailed, match="SIGKILL"):
            await _use_by(pool, bench.order("a"), clock)
        assert (len(bench.runners["a"]), states(pool.snapshot())) == (2, {"a": State.FAILED})
        clock.now += BACK_OFF[0] * 1.1
        await _use_by(pool, bench.order("a"), clock)  # an answer that ends well forgets it all
        with pytest.raises(EngineFailed, match="SIGKILL"):
            await crash()
        await until(pool, lambda shot: not shot.models)
        await _use_by(pool, bench.order("a"), clock)


@in_loop
async def test_a_death_under_many_leases_counts_once(bench: Bench) -> None:
    async def crash() -> None:
        async with pool.lease(bench.order("a"), soon()):
            pid = bench.pid("a")
            if await together.wait() == 0:
                os.kill(pid, signal.SIGKILL)
            raise _gone()

    async with bench.pool() as pool:
        together = asyncio.Barrier(8)
        work = [asyncio.create_task(crash()) for _ in range(8)]
        await asyncio.wait(work)
        assert pool.events["failures"] == 1
        await use(pool, bench.order("a"))
        assert pool.events["loads"] == 2


@pytest.mark.slow
@in_loop
async def test_an_engine_that_floods_its_output_stays_usable(bench: Bench) -> None:
    async with bench.pool() as pool:
        await use(pool, bench.order("a", Script(FLOOD + SERVER)))
        await asyncio.sleep(0.5)  # it floods
        runner = bench.runners["a"][0]
        begin = time.monotonic()
        await use(pool, bench.order("a"))
        assert time.monotonic() - begin < 1
        assert runner.last_words().startswith("warning: again")
        assert len(runner.last_words()) < 1000
        assert len(runner._output._tail) <= 64 * 1024


@in_loop
async def test_an_engine_that_ignores_sigterm_is_ended(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "STOP_PATIENCE", 0.3)
    async with bench.pool() as pool:
        await use(pool, bench.order("a", Script(DEAF + SERVER)))
        begin = time.monotonic()
        assert await pool.unload("a")
        assert 0.25 < time.monotonic() - begin < 2
        assert bench.living() == []


@pytest.mark.parametrize("how", ["unload", "crash"])
@in_loop
async def test_what_an_engine_started_ends_with_it(bench: Bench, how: str) -> None:
    async with bench.pool() as pool:
        await use(pool, bench.order("a", Script(HELPED + SERVER)))
        assert len(bench.living()) == 2
        if how == "unload":
            await pool.unload("a")
        else:
            os.kill(bench.pid("a"), signal.SIGKILL)
            await until(pool, lambda shot: not shot.models)
        await reaches(lambda: bench.living() == [], 3)


# unloading


@in_loop
async def test_what_is_not_loaded_cannot_be_unloaded(bench: Bench) -> None:
    async with bench.pool() as pool:
        assert not await pool.unload("a")


@in_loop
async def test_unloading_waits_for_a_lease_and_new_callers_for_it(bench: Bench) -> None:
    async with bench.pool() as pool, AsyncExitStack() as stack:
        await stack.enter_async_context(pool.lease(bench.order("a"), soon()))
        unloading = asyncio.create_task(pool.unload("a"))
        await until(pool, lambda shot: states(shot) == {"a": State.DRAINING})
        pid = bench.pid("a")
        newcomer = asyncio.create_task(use(pool, bench.order("a")))
        await asyncio.wait({unloading, newcomer}, timeout=0.3)
        assert not unloading.done()
        assert not newcomer.done()
        assert bench.living() == [pid]
        await stack.aclose()
        assert await unloading
        assert await ends(newcomer) is None
        assert bench.pid("a") != pid


@in_loop
async def test_unloading_by_force_waits_for_a_while(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pool_module._FORCE_PATIENCE == 10
    monkeypatch.setattr(pool_module, "_FORCE_PATIENCE", 0.4)
    async with bench.pool() as pool:
        async with pool.lease(bench.order("a"), soon()):
            begin = time.monotonic()
            assert await pool.unload("a", force=True)
            assert 0.35 < time.monotonic() - begin < 2
            assert bench.living() == []
        assert pool.snapshot().models == ()


@in_loop
async def test_unloading_by_force_waits_no_longer_than_it_must(bench: Bench) -> None:
    async with bench.pool() as pool, AsyncExitStack() as stack:
        await stack.enter_async_context(pool.lease(bench.order("a"), soon()))
        unloading = asyncio.create_task(pool.unload("a", force=True))
        await asyncio.wait({unloading}, timeout=0.1)
        await stack.aclose()
        assert await asyncio.wait_for(unloading, 2)


@in_loop
async def test_many_may_unload_one_model(bench: Bench) -> None:
    async with bench.pool() as pool:
        await use(pool, bench.order("a"))
        assert all(await asyncio.gather(*(pool.unload("a") for _ in range(5))))
        assert pool.snapshot().models == ()


@in_loop
async def test_who_unloads_may_leave(bench: Bench) -> None:
    async with bench.pool() as pool:
        async with pool.lease(bench.order("a"), soon()):
            unloading = asyncio.create_task(pool.unload("a"))
            await until(pool, lambda shot: states(shot) == {"a": State.DRAINING})
            unloading.cancel()
            await asyncio.wait({unloading})
        await asyncio.wait_for(use(pool, bench.order("a")), 3)


@pytest.mark.parametrize("force", [False, True])
@in_loop
async def test_who_waits_for_a_model_is_not_wronged_by_its_unloading(bench: Bench, *, force: bool) -> None:
    async with bench.pool() as pool:
        waiting = asyncio.create_task(use(pool, bench.order("a", Script(SLOW + SERVER))))
        await until(pool, lambda shot: states(shot) == {"a": State.STARTING})
        await pool.unload("a", force=force)
        error = await ends(waiting)
        assert error is None or isinstance(error, KawaiError)


@in_loop
async def test_loading_and_unloading_at_random_leaves_nothing(bench: Bench) -> None:
    async def churn(pool: Pool, name: str) -> None:
        for turn in range(8):
            await use(pool, bench.order(name), keep_alive=(0, 300, 0.01)[turn % 3])
            if turn % 2:
                await pool.unload(name)

    async with bench.pool(most=2) as pool:
        work = [asyncio.create_task(churn(pool, name)) for name in "abcab"]
        for each in work:
            error = await ends(each, 20)
            assert error is None, error
        assert len(bench.living()) == len(pool.snapshot().models) <= 2


# the end


@in_loop
async def test_drain_lets_a_lease_come_to_its_end(bench: Bench) -> None:
    async with bench.pool() as pool, AsyncExitStack() as stack:
        await stack.enter_async_context(pool.lease(bench.order("a"), soon()))
        await use(pool, bench.order("b"))
        draining = asyncio.create_task(pool.drain(soon(10)))
        await until(pool, lambda shot: shot.draining)
        for name in ("a", "b", "c"):
            with pytest.raises(ServerClosing):
                await use(pool, bench.order(name))
        await asyncio.wait({draining}, timeout=0.2)
        assert not draining.done()
        assert bench.pid("a") in bench.living()
        await stack.aclose()
        await asyncio.wait_for(draining, 3)
        assert pool.snapshot().models == ()
        assert bench.living() == []


@in_loop
async def test_drain_ends_what_is_left_at_its_deadline(bench: Bench) -> None:
    async with bench.pool() as pool, pool.lease(bench.order("a"), soon()):
        begin = time.monotonic()
        await pool.drain(soon(0.4))
        assert 0.35 < time.monotonic() - begin < 2
        assert bench.living() == []


@in_loop
async def test_drain_tells_who_waits_for_a_load(bench: Bench) -> None:
    async with bench.pool() as pool:
        waiting = asyncio.create_task(use(pool, bench.order("a", Script(HANGS))))
        await until(pool, lambda shot: states(shot) == {"a": State.STARTING})
        await asyncio.wait_for(pool.drain(soon(0.2)), 5)
        assert isinstance(await ends(waiting), ServerClosing)


@in_loop
async def test_drain_tells_who_waits_for_room_and_nothing_begins_after_it(bench: Bench) -> None:
    async with bench.pool(most=1) as pool:
        async with pool.lease(bench.order("a"), soon()):
            waiting = [asyncio.create_task(use(pool, bench.order(name))) for name in ("b", "c")]
            await asyncio.wait(waiting, timeout=0.1)
            await pool.drain(soon(0.2))
        errors = [await ends(each) for each in waiting]
        assert [type(each) for each in errors] == [ServerClosing, ServerClosing]
        assert bench.living() == []
        assert bench.runners.keys() == {"a"}


@in_loop
async def test_an_empty_pool_drains_at_once(bench: Bench) -> None:
    async with bench.pool() as pool:
        await asyncio.wait_for(pool.drain(soon(10)), 1)
        await asyncio.wait_for(pool.drain(soon(10)), 1)
        assert pool.snapshot().draining


# what is told


@in_loop
async def test_every_change_has_a_revision(bench: Bench) -> None:
    async with bench.pool() as pool:
        before = pool.snapshot()
        changed = asyncio.create_task(pool.changes(before.revision))
        await asyncio.wait({changed}, timeout=0.1)
        assert not changed.done()
        using = asyncio.create_task(use(pool, bench.order("a", Script(SLOW + SERVER))))
        shot = await asyncio.wait_for(changed, 2)
        assert states(shot) == {"a": State.STARTING}
        assert shot.revision > before.revision
        assert (await asyncio.wait_for(pool.changes(before.revision), 1)).revision >= shot.revision
        seen = [shot]
        while not using.done() or seen[-1].models[0].leases:
            seen.append(await asyncio.wait_for(pool.changes(seen[-1].revision), 5))
        revisions = [each.revision for each in seen]
        assert revisions == sorted(set(revisions))
        assert State.READY in {each.models[0].state for each in seen}
        last = pool.snapshot().revision
        assert pool.snapshot().revision == last


@in_loop
async def test_a_load_tells_what_was_loaded(bench: Bench) -> None:
    async with bench.pool() as pool:
        state = await pool.load(bench.order("a", keep_alive=60), soon())
        assert (state.id, state.state, state.engine) == ("a", State.READY, "script")
        assert (state.free_slots, state.leases, state.waiting, state.context_length) == (4, 0, 0, 4096)
        assert state.memory is not None
        assert state.memory > 1 << 20
        assert state.expires_at is not None
        assert abs(state.expires_at - datetime.now(UTC) - timedelta(seconds=60)) < timedelta(seconds=3)
        assert state.loaded_at is not None
        assert abs(state.loaded_at - datetime.now(UTC)) < timedelta(seconds=5)
        assert await pool.load(bench.order("a", keep_alive=60), soon())
        assert len(bench.runners["a"]) == 1


# locks, sockets, descriptors


@in_loop
async def test_a_model_is_marked_as_in_use_while_it_is_loaded(bench: Bench) -> None:
    async with bench.pool() as pool:
        await use(pool, bench.order("a"))
        assert not bench.is_free("a")
        others = bench.lock("a")
        assert others.acquire(shared=True)
        others.release()
        await pool.unload("a")
        assert bench.is_free("a")


@in_loop
async def test_a_model_is_marked_as_in_use_while_it_loads_and_not_after_a_failure(bench: Bench) -> None:
    async with bench.pool() as pool:
        failing = asyncio.create_task(use(pool, bench.order("a", Script(SLOW + FAILS))))
        await until(pool, lambda shot: bool(shot.models))
        assert not bench.is_free("a")
        assert isinstance(await ends(failing), EngineFailed)
        assert bench.is_free("a")


@in_loop
async def test_a_model_that_is_being_pulled_is_not_loaded_and_nobody_makes_way_for_it(bench: Bench) -> None:
    async with bench.pool(most=1) as pool:
        await use(pool, bench.order("a"))
        pulling = bench.lock("b")
        assert pulling.acquire()
        with pytest.raises(InUse):
            await use(pool, bench.order("b"))
        pulling.release()
        assert "b" not in bench.runners
        assert ids(pool.snapshot()) == {"a"}
        await use(pool, bench.order("b"))


@in_loop
async def test_newer_files_may_get_the_names_of_a_loaded_models_but_not_of_one_that_loads(
    bench: Bench,
) -> None:
    renaming = Renaming(bench.layout, ["a"])
    async with bench.pool() as pool:
        loading = asyncio.create_task(use(pool, bench.order("a", Script(SLOW + SERVER))))
        await until(pool, lambda shot: bool(shot.models))
        assert not renaming.acquire()
        await loading
        assert renaming.acquire()
        await use(pool, bench.order("a"))  # it is loaded: nothing of it is opened any more
        waiting = asyncio.create_task(use(pool, bench.order("b", Script())))
        await waiting
        await pool.unload("a")
        again = asyncio.create_task(use(pool, bench.order("a")))
        await asyncio.sleep(0.2)
        assert not again.done()
        assert len(bench.runners["a"]) == 1
        renaming.release()
        await again
        assert len(bench.runners["a"]) == 2
    assert list(bench.layout.partials.iterdir()) == []


@in_loop
async def test_a_runner_holds_its_build(bench: Bench, tmp_path: Path) -> None:
    runner = bench.runner(Script(hold=tmp_path))
    await runner.start()
    assert not _is_free(tmp_path)
    await runner.stop()
    assert _is_free(tmp_path)
    other = bench.runner(Script(hold=tmp_path))
    await other.start()
    os.kill(other.pid or 0, signal.SIGKILL)
    await reaches(lambda: _is_free(tmp_path), 3)
    await other.stop()
    failing = bench.runner(Script(FAILS, hold=tmp_path))
    with pytest.raises(EngineFailed):
        await failing.start()
    assert _is_free(tmp_path)


@in_loop
async def test_a_build_that_is_being_removed_is_not_started(bench: Bench, tmp_path: Path) -> None:
    removing = os.open(tmp_path, os.O_RDONLY)
    try:
        _flock(removing)
        runner = bench.runner(Script(hold=tmp_path))
        try:
            with pytest.raises(KawaiError):
                await runner.start()
        finally:
            await runner.stop()
    finally:
        os.close(removing)


def _flock(fd: int) -> None:
    import fcntl  # noqa: PLC0415

    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_free(folder: Path) -> bool:
    """Whether a directory could be locked for its removal."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        _flock(fd)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


@in_loop
async def test_a_stale_socket_is_no_obstacle(bench: Bench) -> None:
    import socket  # noqa: PLC0415

    runner = bench.runner(Script())
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(runner.target.socket)
    await asyncio.wait_for(runner.start(patience=5), 10)
    assert runner.state is State.READY
    await runner.stop()


@in_loop
async def test_a_socket_is_for_this_user_only_and_keys_are_new(bench: Bench) -> None:
    first, second = bench.runner(Script()), bench.runner(Script())
    assert first.target.key != second.target.key
    assert len(first.target.key) >= 32
    assert first.target.socket != second.target.socket
    assert first.target.key not in repr(first)


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@in_loop
async def test_no_descriptor_is_left(bench: Bench) -> None:
    async with bench.pool() as pool:
        await use(pool, bench.order("a"))
        await pool.unload("a")
        before = _descriptors()
        for text in (SERVER, SERVER, FAILS):
            with suppress(EngineFailed):
                await use(pool, bench.order(text[-5:].strip(" ()\n"), Script(text)))
            for model in pool.snapshot().models:
                await pool.unload(model.id)
        await reaches(lambda: _descriptors() <= before, 2)


class _AtOnce(Spawner):
    """Starts children without a thread, so that what happens between two steps is always the same."""

    async def start(self, launch: Launch, output: int) -> Any:  # noqa: ANN401
        return children.start(launch.command, launch.env, launch.cwd, output)


@pytest.mark.parametrize("steps", range(8))
@in_loop
async def test_a_start_may_be_cancelled_at_every_step(bench: Bench, steps: int) -> None:
    bench.spawner = _AtOnce()
    runner = bench.runner(Script())
    before = _descriptors()
    starting = asyncio.create_task(runner.start())
    for _ in range(steps):
        await asyncio.sleep(0)
    starting.cancel()
    done, _ = await asyncio.wait({starting}, timeout=7)
    left = bench.living()
    assert (left, bool(done)) == ([], True)
    await reaches(lambda: _descriptors() <= before, 2)


def test_a_loop_that_is_broken_off_while_a_child_starts_ends_the_child(bench: Bench) -> None:
    async def broken() -> None:
        runner = bench.runner(Script(HANGS))
        starting = asyncio.create_task(runner.start())
        assert await asyncio.to_thread(comes, lambda: runner.pid)
        assert not starting.done()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(broken())
    assert bench.living() == []


@in_loop
async def test_a_start_may_be_cancelled_while_its_thread_starts_the_child(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, original = asyncio.Event(), children.start
    loop = asyncio.get_running_loop()

    def slowly(*args: Any) -> Any:  # noqa: ANN401
        loop.call_soon_threadsafe(begun.set)
        time.sleep(0.2)
        return original(*args)

    monkeypatch.setattr(children, "start", slowly)
    before = _descriptors()
    async with bench.pool() as pool:
        waiting = asyncio.create_task(use(pool, bench.order("a")))
        await begun.wait()
        unloading = asyncio.create_task(pool.unload("a"))
        waiting.cancel()  # who waited on would have it loaded anew
        await asyncio.wait({waiting, unloading})
        bench.spawner._thread.shutdown(wait=True)
        assert pool.snapshot().models == ()
        await reaches(lambda: bench.living() == [], 2)
    await reaches(lambda: _descriptors() <= before, 2)


# how a server is started

SECRETS = {
    "LLAMA_ARG_CTX_SIZE": "64",
    "LLAMA_API_KEY": "canary-llama",
    "HF_TOKEN": "canary-hub",
    "GITHUB_TOKEN": "canary-github",
    "KAWAI_HUB_TOKEN": "canary-kawai",
    "HTTPS_PROXY": "http://canary:canary@proxy.example.org:3128",
    "PYTHONPATH": "/canary",
    "LD_PRELOAD": "",
}
SAMPLING = {
    "temperature": "--temp",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "min_p": "--min-p",
    "repeat_penalty": "--repeat-penalty",
    "presence_penalty": "--presence-penalty",
    "frequency_penalty": "--frequency-penalty",
}


def _bundles(tmp_path: Path, *, active: bool = True) -> Bundles:
    """Builds, of which one is active."""
    record = SimpleNamespace(platform="linux-amd64-cpu", version="b11434")
    made = SimpleNamespace(current=lambda: record if active else None, layout=LibsLayout(tmp_path))
    return cast("Bundles", made)


def _flags(command: tuple[str, ...]) -> dict[str, str | None]:
    """A command's flags and their values."""
    found: dict[str, str | None] = {}
    for each in command[1:]:
        if each.startswith("--"):
            name, found[each] = each, None
        else:
            assert found[name] is None
            found[name] = each
    return found


def test_the_servers_command_has_what_it_must_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    launch = LlamaServer(_bundles(tmp_path)).launch(_wanted("a"), tmp_path / "a.sock", "canary-key")
    place = tmp_path / "libraries" / "linux-amd64-cpu" / "b11434"
    assert launch.command[0] == str(place / "llama-server")
    assert (launch.cwd, launch.hold) == (place, place)
    assert _flags(launch.command) == {
        "--model": "a.gguf",
        "--host": str(tmp_path / "a.sock"),
        "--alias": "a",
        "--no-webui": None,
        "--parallel": "4",
        "--ctx-size": str(4 * 4096),
    }
    assert launch.env["LLAMA_API_KEY"] == "canary-key"
    assert not any(name.startswith("LLAMA_ARG") for name in launch.env)
    told = " ".join(f"{name}={value}" for name, value in launch.env.items() if name != "LLAMA_API_KEY")
    assert "canary" not in told + " ".join(launch.command)


def test_every_setting_has_its_flag(tmp_path: Path) -> None:
    import msgspec  # noqa: PLC0415

    sampling = dict.fromkeys(SAMPLING, 0.5) | {"top_k": 40.0, "unheard_of": 1.0}
    wanted = msgspec.structs.replace(
        _wanted("a"), projection="p.gguf", gpu_layers=0, threads=3, sampling=sampling, context_length=100
    )
    launch = LlamaServer(_bundles(tmp_path)).launch(wanted, tmp_path / "a.sock", "key")
    flags = _flags(launch.command)
    assert (
        flags.items()
        >= {
            "--mmproj": "p.gguf",
            "--n-gpu-layers": "0",
            "--threads": "3",
            "--ctx-size": "400",
            "--top-k": "40",
        }.items()
    )
    assert {flags[flag] for name, flag in SAMPLING.items() if name != "top_k"} == {"0.5"}
    assert "unheard" not in " ".join(launch.command)


@pytest.mark.parametrize("value", [1, 40, 123_456, 1_000_000])
def test_a_whole_number_stays_one(tmp_path: Path, value: int) -> None:
    import msgspec  # noqa: PLC0415

    wanted = msgspec.structs.replace(_wanted("a"), sampling={"top_k": float(value)})
    launch = LlamaServer(_bundles(tmp_path)).launch(wanted, tmp_path / "a.sock", "key")
    assert _flags(launch.command)["--top-k"] == str(value)


def test_the_first_engine_that_is_usable_is_chosen_and_why(tmp_path: Path) -> None:
    with_build = engines(_bundles(tmp_path))
    assert [each.name for each in with_build] == ["llama-server", "xllamacpp", "llama-cpp-python"]
    chosen = choose(with_build, "auto")
    assert (chosen.engine.name, chosen.reason) == ("llama-server", "a build of llama.cpp is active")
    chosen = choose(engines(_bundles(tmp_path, active=False)), "auto")
    assert chosen.engine.name == "xllamacpp"
    assert "no build of llama.cpp is active" in chosen.reason


def test_an_engine_that_is_asked_for_is_taken_or_refused(tmp_path: Path) -> None:
    known = engines(_bundles(tmp_path, active=False))
    assert choose(known, "xllamacpp").engine.name == "xllamacpp"
    with pytest.raises(NoEngine, match=r"no build of llama\.cpp is active") as caught:
        choose(known, "llama-server")
    assert "kawai libs pull" in (caught.value.hint or "")
    assert "pip install" in (caught.value.hint or "")
    with pytest.raises(InvalidRequest, match="no engine 'vllm'") as refused:
        choose(known, "vllm")
    assert "llama-server" in (refused.value.hint or "")


def test_without_any_engine_two_commands_that_give_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(NoEngine) as caught:
        choose(engines(_bundles(tmp_path, active=False))[:1], "auto")
    assert (caught.value.code, caught.value.status) == ("no_engine", 503)
    assert "kawai libs pull" in (caught.value.hint or "")
    assert "pip install" in (caught.value.hint or "")


# settings and orders


def _tuning(
    tmp_path: Path, text: str = "", environ: dict[str, str] | None = None, **catalog: float
) -> Tuning:
    (tmp_path / "config.toml").write_text(text)
    settings = resolve({}, {"KAWAI_HOME": str(tmp_path)} | (environ or {}))
    return Tuning(settings, lambda _: catalog)


OWN = """
parallel = 2
[models."tiny-Q8_0"]
context_length = 64
gpu_layers = 0
keep_alive = -1
top_k = 20
"""


def test_a_models_own_settings_win_over_general_ones_and_those_over_the_catalog(tmp_path: Path) -> None:
    tuning = _tuning(
        tmp_path,
        OWN,
        {"KAWAI_THREADS": "3"},
        context_length=32,
        parallel=8,
        threads=7,
        temperature=0.6,
        top_k=40,
    )
    assert tuning.run("Tiny-Q8_0") == Run(64, 2, 0, 3, -1.0, {"temperature": 0.6, "top_k": 20})
    assert tuning.run("other") == Run(32, 2, None, 3, 300.0, {"temperature": 0.6, "top_k": 40})
    shown = tuning.shown("Tiny-Q8_0", 4096)
    assert {name: (row.value, row.source.split(" ")[0]) for name, row in shown.items()} == {
        "context_length": (64, "config.toml"),
        "parallel": (2, "config.toml"),
        "gpu_layers": (0, "config.toml"),
        "threads": (3, "environment"),
        "keep_alive": (-1, "config.toml"),
        "temperature": (0.6, "catalog"),
        "top_k": (20, "config.toml"),
    }
    assert "Tiny-Q8_0" in shown["context_length"].source


def test_where_nothing_is_said_defaults_are_told_as_such(tmp_path: Path) -> None:
    shown = _tuning(tmp_path).shown("a", None)
    assert {row.source for row in shown.values()} == {"default"}
    assert (shown["context_length"].value, shown["parallel"].value) == (4096, 4)
    assert (shown["gpu_layers"].value, shown["threads"].value, shown["keep_alive"].value) == (None, None, 300)


def test_a_model_bounds_its_context(tmp_path: Path) -> None:
    shown = _tuning(tmp_path, "context_length = 9000").shown("a", 128)
    assert (shown["context_length"].value, shown["context_length"].source) == (128, "model")


def test_models_show_tells_each_setting_and_its_source(cli: Program) -> None:
    home = Path(cli.environ["KAWAI_HOME"])
    (home / "models").mkdir(parents=True)
    tiny_gguf(home / "models" / "tiny-Q8_0.gguf")
    (home / "config.toml").write_text(OWN)
    assert cli("models", "index").code == 0
    shown = cli("models", "show", "tiny-Q8_0", "--json", KAWAI_THREADS="3")
    assert shown.code == 0, shown.err
    (found,) = shown.events
    config = cast("dict[str, dict[str, Any]]", found["config"])
    assert config["context_length"]["value"] == 64
    assert config["context_length"]["source"].startswith("config.toml")
    assert config["parallel"] == {"value": 2, "source": "config.toml"}
    assert config["threads"] == {"value": 3, "source": "environment"}


@pytest.fixture
def workspace(workspaces: Workspaces) -> Workspace:
    """A home with three tiny models."""
    store = workspaces.home / "models"
    store.mkdir(parents=True)
    tiny_gguf(store / "small.gguf", context_length=128)
    tiny_gguf(store / "silent.gguf", context_length=None)
    tiny_gguf(store / "vocabulary.gguf", tensors=())
    made = workspaces(engine="xllamacpp")
    made.models.reindex()
    return made


def _ordered(workspace: Workspace, name: str, **run: Any) -> tuple[Order, Wanted]:  # noqa: ANN401
    orders = workspace.orders
    changed = Orders(orders.store, orders.engine, lambda _: Run(**run), orders.place, orders.fitting)
    order = changed.make(parse_model(name))
    return order, order.make(lambda: None).wanted


def test_an_order_has_the_models_own_id_and_context(workspace: Workspace) -> None:
    order, wanted = _ordered(workspace, "SMALL", keep_alive=7.0)
    assert (order.id, order.keep_alive, wanted.id) == ("small", 7.0, "small")
    assert (wanted.context_length, wanted.parallel, wanted.endpoint) == (128, 4, "completion")
    assert wanted.weights == str(workspace.layout.store / "small.gguf")
    assert _ordered(workspace, "small", context_length=64)[1].context_length == 64
    assert _ordered(workspace, "small", context_length=640)[1].context_length == 128


def test_a_context_that_is_asked_for_is_given_where_the_model_names_none(workspace: Workspace) -> None:
    shown = workspace.tuning.shown("silent", None)["context_length"].value
    assert _ordered(workspace, "silent")[1].context_length == shown == 4096
    assert _ordered(workspace, "silent", context_length=8192)[1].context_length == 8192


def test_a_vocabulary_is_not_ordered(workspace: Workspace) -> None:
    with pytest.raises(EngineFailed, match="vocabulary"):
        workspace.orders.make(parse_model("vocabulary"))


def test_an_order_needs_what_fit_tells(workspace: Workspace, real_model: Path) -> None:
    (workspace.layout.store / "real.gguf").write_bytes(real_model.read_bytes())
    workspace.models.reindex()
    small, large = (
        _ordered(workspace, "real", context_length=tokens, parallel=2)[0].need for tokens in (4096, 8192)
    )
    # 30 layers, 3 heads of 64 for keys and for values, two bytes each, and 72 that tell of a token
    assert large - small == 2 * 4096 * (30 * 3 * 128 * 2 + 72)
    record = workspace.models.find(parse_model("real")).record
    told = workspace.fitting.installed(record)
    assert _ordered(workspace, "real")[0].need == told.needed
    assert (told.context, told.parallel) == (4096, 4)


@pytest.mark.parametrize(
    ("room", "words"),
    [
        (500 * 1000**2, "parallel = 3 would fit"),
        (300 * 1000**2, "parallel = 1 would fit"),
        (220 * 1000**2, "context_length = 2560 with parallel = 1 would fit"),
        (120 * 1000**2, "even with context_length = 256 and parallel = 1 it needs 1"),
    ],
)
def test_what_would_fit_is_said(room: int, words: str, workspace: Workspace, real_model: Path) -> None:
    (workspace.layout.store / "real.gguf").write_bytes(real_model.read_bytes())
    workspace.models.reindex()
    assert words in _ordered(workspace, "real", context_length=4096, parallel=4)[0].advice(room)


# the real engine


@pytest.fixture
def real(workspaces: Workspaces, real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A home with the real model; its name is short, as the path of a socket must be."""
    workspaces.home = tmp_path_factory.mktemp("h")
    store = workspaces.home / "models"
    store.mkdir(parents=True)
    (store / "real.gguf").write_bytes(real_model.read_bytes())
    made = workspaces(engine="xllamacpp")
    made.models.reindex()
    return made


@pytest.mark.slow
def test_the_real_engine_answers_to_its_key_and_is_told_nothing_else(
    real: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    asyncio.run(asyncio.wait_for(_answers(real), 60))
    assert list(real.layout.run.glob("*.sock")) == []
    assert real.models.use_lock("real").acquire()


async def _answers(real: Workspace) -> None:
    order, pool = real.orders.make(parse_model("REAL")), real.pool
    try:
        async with pool.lease(order, soon(30)) as held:
            status, said = await _asked(held.target)
            assert (status, b'"model":"real"' in said.replace(b" ", b"")) == (200, True)
            status, _ = await _asked(held.target._replace(key="wrong"))
            assert status == 401
            (state,) = pool.snapshot().models
            assert (state.engine, state.state, state.leases) == ("xllamacpp", State.READY, 1)
            assert state.memory is not None
            assert 50 << 20 < state.memory < order.need + (200 << 20)
            pid = pool._seats["real"].runner.pid
            environ, command = _told_to(pid or 0)
            assert b"canary" not in environ + command
            assert b"LLAMA_ARG" not in environ
            assert held.target.key.encode() not in command
            assert not real.models.use_lock("real").acquire()
            with pytest.raises(InUse):
                real.models.remove(parse_model("real"))
        assert await pool.unload("real")
        with pytest.raises(ProcessLookupError):
            os.kill(pid or 0, 0)
    finally:
        await pool.drain(0.0)


def _told_to(pid: int) -> tuple[bytes, bytes]:
    """Environment and command line of a process."""
    return Path(f"/proc/{pid}/environ").read_bytes(), Path(f"/proc/{pid}/cmdline").read_bytes()


async def _asked(target: Target) -> tuple[int, bytes]:
    upstream = await ask(target, "/v1/completions", b"", b'{"prompt":"One, two,","max_tokens":4}')
    try:
        await upstream.read_head()
        return upstream.status, await upstream.body()
    finally:
        upstream.close()


@pytest.mark.slow
def test_use_is_remembered(real: Workspace) -> None:
    async def once() -> None:
        try:
            await use(real.pool, real.orders.make(parse_model("real")))
        finally:
            await real.pool.drain(0.0)

    assert real.models.rows()[0].last_used is None
    asyncio.run(asyncio.wait_for(once(), 60))
    used = real.models.rows()[0].last_used
    assert used is not None
    assert abs(datetime.now(UTC) - used) < timedelta(seconds=30)


@pytest.mark.slow
def test_what_is_no_model_fails_with_the_engines_words(workspace: Workspace) -> None:
    async def fails() -> None:
        try:
            with pytest.raises(EngineFailed) as caught:
                await use(workspace.pool, workspace.orders.make(parse_model("small")))
            assert "small" in caught.value.message
            assert "exit code 1" in caught.value.message
            assert "canary" not in caught.value.message
        finally:
            await workspace.pool.drain(0.0)

    asyncio.run(asyncio.wait_for(fails(), 60))
    assert list(workspace.layout.run.glob("*.sock")) == []


# what a snapshot and a start must not get wrong


@in_loop
async def test_a_model_that_answers_for_long_has_its_whole_time_before_it(bench: Bench) -> None:
    clock = Clock()
    async with bench.pool(clock=clock) as pool, pool.lease(bench.order("a", keep_alive=300), clock() + 60):
        clock.now += 1000
        (model,) = pool.snapshot().models
        assert model.expires_at is not None
        assert abs(model.expires_at - datetime.now(UTC) - timedelta(seconds=300)) < timedelta(seconds=5)


@in_loop
async def test_what_an_engine_maps_of_files_is_not_kept_from_others(bench: Bench) -> None:
    kept: list[int] = []

    def live(bytes_kept: int) -> int:
        kept.append(bytes_kept)
        return 1 << 40

    async with bench.pool(live=live) as pool:
        await use(pool, bench.order("a"))
        await asyncio.sleep(process_module.FRESH * 2)
        (model,) = pool.snapshot().models
        assert model.memory is not None
        assert 0 < kept[-1] < model.memory - (1 << 20)


@in_loop
async def test_an_engine_that_has_ended_is_never_ready(bench: Bench) -> None:
    class Late(Runner):
        async def _is_healthy(self) -> bool:
            await self._ended.wait()
            return True

    runner = bench.runner(Script(FAILS), kind=Late)
    with pytest.raises(EngineFailed, match="ended as soon as it had loaded"):
        await runner.start()
    assert runner.state is State.FAILED


def test_a_text_that_becomes_one_vector_is_computed_in_one_go(tmp_path: Path) -> None:
    def command(endpoint: str) -> tuple[str, ...]:
        wanted = msgspec.structs.replace(_wanted("a"), endpoint=endpoint)
        return LlamaServer(_bundles(tmp_path)).launch(wanted, tmp_path / "a.sock", "key").command

    for endpoint in ("embeddings", "rerank"):
        words = command(endpoint)
        assert words[words.index("--ubatch-size") + 1] == words[words.index("--batch-size") + 1] == "4096"
    assert "--ubatch-size" not in command("chat")


@in_loop
async def test_what_is_set_anew_counts_for_what_is_loaded(bench: Bench) -> None:
    async with bench.pool() as pool:
        for set_to, asked, left in ((77, None, 77), (5, None, 5), (5, 50, 50), (9, None, 50)):
            order = bench.order("a", keep_alive=set_to)
            async with pool.lease(order, time.monotonic() + 20, keep_alive=asked):
                pass
            (state,) = pool.snapshot().models
            assert state.expires_at
            assert left - 4 < (state.expires_at - datetime.now(UTC)).total_seconds() <= left
        pool.set_limits(lambda _: 1000, 1, 10)
        await use(pool, bench.order("b"))
        assert [state.id for state in pool.snapshot().models] == ["b"]
