"""One Runner: a child that serves one model on a private UNIX socket, as a state machine.

``starting`` becomes ``ready`` or ``failed``, ``ready`` becomes ``draining`` and then ``stopped``; a child
that ends by itself makes it ``failed``. The child is the leader of a process group and dies with kawai.
Children are started from one long-lived thread: the kernel's signal comes when the *thread* that started
them ends.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import subprocess  # noqa: TC003 - read while the program runs
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import Literal, NamedTuple

from kawai_tools.errors import EngineFailed, InUse, KawaiError
from kawai_tools.files import Lock
from kawai_tools.journal import Journals
from kawai_tools.libs import children
from kawai_tools.runners import sockets
from kawai_tools.runners.engines import Engine, Launch, Wanted
from kawai_tools.runners.output import Output

START_PATIENCE = 600.0
"""Seconds that a model may take to load: large ones come from slow disks."""

STOP_PATIENCE = 2.0
FRESH = 0.05
"""Seconds for which what was read of memory is taken again."""

_TICK, _GLANCE = 0.01, 2.0
_HTTP_OK = b" 200 "
_LOG = logging.getLogger(__name__)


class State(StrEnum):
    """Where a Runner is."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class Target(NamedTuple):
    """How a ready server is reached; whoever is given one only passes it on."""

    socket: str
    key: str


def resident(pid: int | Literal["self"], *, private: bool = False) -> int | None:
    """Bytes of memory that a process has (``proc(5)``, ``statm``); ``None`` where the system does not say.

    ``private``: without what belongs to files or is shared.
    """
    try:
        _, pages, shared = map(int, Path(f"/proc/{pid}/statm").read_text().split()[:3])
    except (OSError, ValueError):
        return None
    return (pages - shared if private else pages) * os.sysconf("SC_PAGE_SIZE")


class Spawner:
    """The thread that starts children, and waits for nothing."""

    def __init__(self) -> None:
        """It begins with the first child."""
        self._thread = ThreadPoolExecutor(1, "spawner")

    async def start(self, launch: Launch, output: int) -> "subprocess.Popen[bytes]":
        """Start a child; what it says goes to ``output``. Raises ``OSError``."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: children.start(launch.command, launch.env, launch.cwd, output)
        )


class Place(NamedTuple):
    """Where runners live: the folder of their sockets, the thread that starts them, what they say."""

    folder: Path
    spawner: Spawner
    journals: Journals


class Runner:
    """One child for one model. Used in the event loop's thread only."""

    def __init__(self, wanted: Wanted, engine: Engine, place: Place, changed: Callable[[], None]) -> None:
        """Nothing is started yet; ``changed`` is called at every step."""
        self.wanted, self.engine = wanted, engine
        self.state = State.STARTING
        self.problem: str | None = None
        self._spawner, self._changed = place.spawner, changed
        self._socket = sockets.new(place.folder)
        self._key = secrets.token_urlsafe(32)
        hidden = {str(self._socket): "its socket", self._key: "its key"}
        self._output = Output(place.journals.of(wanted.id), engine.name, hidden)
        self._began = time.monotonic()
        self._looked = float("-inf")
        self._memory: tuple[int | None, int | None] = (None, None)
        self._child: subprocess.Popen[bytes] | None = None
        self._ended = asyncio.Event()
        self._hold: Lock | None = None
        self._waiting: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def target(self) -> Target:
        """Where it answers."""
        return Target(str(self._socket), self._key)

    @property
    def pid(self) -> int | None:
        """The child's process id, while there is one."""
        return self._child.pid if self._child is not None and not self._ended.is_set() else None

    def memory(self) -> int | None:
        """Bytes that the child has in memory of its own and of its file; ``None`` where that is not known."""
        return self._looked_up()[0]

    def private_memory(self) -> int | None:
        """Those of them that are no part of a file."""
        return self._looked_up()[1]

    def _looked_up(self) -> tuple[int | None, int | None]:
        """Both, as of a moment ago: whoever waits for room asks at every change."""
        now = time.monotonic()
        if now - self._looked > FRESH:
            known = self.pid is not None
            self._looked = now
            self._memory = (
                (resident(self.pid or 0), resident(self.pid or 0, private=True)) if known else (None, None)
            )
        return self._memory

    def last_words(self) -> str:
        """What the child said last, for an error message."""
        return self._output.last_words()

    # its life

    async def start(self, patience: float = START_PATIENCE) -> None:
        """Start the child and wait until it answers. Raises ``EngineFailed``."""
        _LOG.info("loading %s with %s", self.wanted.id, self.engine.name)
        try:
            await self._start(patience)
        except BaseException as error:
            if isinstance(error, KawaiError):
                _LOG.error("%s", error.message)
            await self._finish(State.FAILED)
            raise
        _LOG.info("loaded %s in %.1f s", self.wanted.id, time.monotonic() - self._began)
        self._become(State.READY)

    async def _start(self, patience: float) -> None:
        loop = asyncio.get_running_loop()  # an engine may read files to find out
        launch = await loop.run_in_executor(None, self.engine.launch, self.wanted, self._socket, self._key)
        self._socket.unlink(missing_ok=True)  # a stale one makes the bind fail
        self._hold_directory(launch)
        await self._spawn(launch)
        until = time.monotonic() + patience
        while not await self._is_healthy():
            if self._ended.is_set():
                raise self._explained(f"{self.engine.name} ended while it loaded {self.wanted.id}")
            if time.monotonic() > until:
                raise self._explained(f"{self.engine.name} did not load {self.wanted.id} in {patience:g} s")
            await asyncio.sleep(_TICK)
        if self._ended.is_set():
            raise self._explained(f"{self.engine.name} ended as soon as it had loaded {self.wanted.id}")

    async def _spawn(self, launch: Launch) -> None:
        """Start the child. One that is started though nobody waits any more is ours all the same."""
        reading, writing = os.pipe()
        starting = asyncio.ensure_future(self._spawner.start(launch, writing))
        try:
            await _to_its_end(starting)
        finally:
            os.close(writing)
            if starting.exception() is None:
                self._child = starting.result()
                self._waiting = asyncio.create_task(self._wait(self._child))
                pipe = os.fdopen(reading, "rb", buffering=0)
                self._reading = asyncio.create_task(self._output.read(pipe))
            else:
                os.close(reading)
        problem = starting.exception()
        if isinstance(problem, OSError):
            raise EngineFailed(
                f"{self.engine.name} cannot be started: {problem.strerror}", "kawai doctor says more"
            ) from problem
        starting.result()

    def _hold_directory(self, launch: Launch) -> None:
        if launch.hold is None:
            return
        hold = Lock(launch.hold)
        if not hold.acquire(shared=True):
            raise InUse(f"the build in {launch.hold.name} is being removed or replaced", "try again")
        self._hold = hold

    async def _wait(self, child: "subprocess.Popen[bytes]") -> None:
        """Notice the child's end, and end what it has left behind; the child itself where the loop ends."""
        try:
            await _ended(child)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)  # not yet reaped, so the group is still its own
            children.reap(child)
            self._ended.set()
        if self.state in {State.READY, State.STARTING}:
            self.problem = f"{self.engine.name} ended with {children.ending(child.returncode)}"
            _LOG.error("%s: %s: %s", self.wanted.id, self.problem, self.last_words() or "it said nothing")
            self._become(State.FAILED)
        self._release()

    async def _is_healthy(self) -> bool:
        try:
            async with asyncio.timeout(_GLANCE):
                reader, writer = await asyncio.open_unix_connection(str(self._socket))
                try:
                    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    return _HTTP_OK in await reader.readline()
                finally:
                    writer.close()
        except (OSError, TimeoutError, ValueError):  # ValueError: a line that does not end
            return False

    def _explained(self, words: str) -> EngineFailed:
        child = self._child
        code = child.poll() if child is not None else None
        how = f" ({children.ending(code)})" if code is not None else ""
        said = self.last_words()
        failed = EngineFailed(
            f"{words}{how}{f': {said}' if said else ''}",
            f"kawai models verify {self.wanted.id} looks at its files, kawai doctor at the engine",
        )
        failed.retry_safe = True
        return failed

    async def drain(self) -> None:
        """Take no more."""
        if self.state is State.READY:
            self._become(State.DRAINING)

    async def look(self) -> None:
        """See whether the child has ended: its sockets end a moment before it does."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GLANCE):
                await self._ended.wait()

    async def stop(self, *, at_once: bool = False) -> None:
        """End the child, politely and then not; whoever waits for it is not left behind.

        One that is still answering would not listen: ``at_once`` spares the politeness.
        """
        await self._finish(State.STOPPED, patience=0.0 if at_once else STOP_PATIENCE)

    async def _finish(self, state: State, patience: float = 0.0) -> None:
        if self.state in {State.STARTING, State.READY}:
            self._become(State.DRAINING)
        child = self._child
        if child is not None and not self._ended.is_set():
            if patience:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.pid, signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(patience):
                        await self._ended.wait()
            if not self._ended.is_set():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.pid, signal.SIGKILL)
                await self._ended.wait()
        self._release()
        if self.state is not State.FAILED:
            self.state = state
            _LOG.info("unloaded %s", self.wanted.id)
        self._changed()

    def _release(self) -> None:
        self._socket.unlink(missing_ok=True)
        if self._hold is not None:
            self._hold.release()
            self._hold = None

    def _become(self, state: State) -> None:
        self.state = state
        self._changed()


async def _to_its_end(work: "asyncio.Future[subprocess.Popen[bytes]]") -> None:
    """Wait for what cannot be broken off; a cancellation waits with it."""
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


async def _ended(child: "subprocess.Popen[bytes]") -> None:
    """Wait for a child without a thread where the system can (``pidfd_open(2)``)."""
    loop = asyncio.get_running_loop()
    try:
        fd = os.pidfd_open(child.pid)
    except (OSError, AttributeError):
        await loop.run_in_executor(None, child.wait)
        return
    gone = loop.create_future()
    loop.add_reader(fd, lambda: None if gone.done() else gone.set_result(None))
    try:
        await gone
    finally:
        loop.remove_reader(fd)
        os.close(fd)
