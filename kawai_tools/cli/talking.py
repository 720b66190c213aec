"""Where a model answers, a kawai that serves or a pool of this process, and how its answer is shown.

Either way the main thread, where Ctrl-C arrives, waits for nothing that Ctrl-C could not interrupt.
"""

import contextlib
import threading
import time
import warnings
from collections.abc import Coroutine, Generator, Iterable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from signal import SIG_DFL, SIGHUP, SIGTERM, getsignal, signal
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec
import typer

from kawai_tools.errors import (
    UNDECODABLE,
    EngineFailed,
    ErrorBody,
    InvalidRequest,
    KawaiError,
    from_info,
)

if TYPE_CHECKING:
    from concurrent.futures import Future

    from kawai_tools.cli.invocation import Invocation
    from kawai_tools.cli.output import Output
    from kawai_tools.models.model import LoadedModel
    from kawai_tools.workspace import Workspace

T = TypeVar("T")

_CLIENT_ERRORS = range(400, 500)


# what an engine says


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Timings(msgspec.Struct, frozen=True):
    predicted_n: int | None = None
    predicted_per_second: float | None = None


class Event(msgspec.Struct, frozen=True):
    """One event of a streamed answer, of a chat or a completion: what is read of it."""

    choices: list[_Choice] = []
    timings: _Timings | None = None
    error: object = None

    @property
    def words(self) -> str:
        """The next words of the answer."""
        first = self.choices[0] if self.choices else _Choice()
        return (first.delta.content if first.delta else first.text) or ""

    @property
    def reasoning(self) -> str:
        """The next words of what the model thinks before it answers."""
        delta = self.choices[0].delta if self.choices else None
        return (delta.reasoning_content if delta else None) or ""


class _EngineError(msgspec.Struct, frozen=True):
    message: str
    code: int | str | None = None
    type: str | None = None


class _EngineErrorBody(msgspec.Struct, frozen=True):
    error: _EngineError


def events(pieces: Iterable[bytes]) -> Iterator[tuple[bytes, Event]]:
    """The events of a stream and their JSON, wherever its pieces are cut.

    Raises the error that is sent in the place of an event or of the stream, and ``EngineFailed`` for a stream
    that ends before its ``[DONE]``.
    """
    rest, other = b"", b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if not line.startswith(b"data:"):
                other += line
            elif data == b"[DONE]":
                return
            else:
                yield data, _event(data)
    raise _error_of((other + rest).strip())


def _event(data: bytes) -> Event:
    try:
        event = msgspec.json.decode(data, type=Event)
    except UNDECODABLE as error:
        raise EngineFailed("the engine sends what is no event", "ask again") from error
    if event.error is not None:
        raise _error_of(data)
    return event


def _error_of(data: bytes) -> KawaiError:
    """The error that a body reports: kawai's own, or an engine's."""
    with contextlib.suppress(*UNDECODABLE):
        return from_info(msgspec.json.decode(data, type=ErrorBody).error)
    try:
        error = msgspec.json.decode(data, type=_EngineErrorBody).error
    except UNDECODABLE:
        return EngineFailed("the engine broke off in the middle of its answer", "ask again")
    if error.code in _CLIENT_ERRORS or error.type == "invalid_request_error":
        is_long = error.type == "exceed_context_size_error" or error.code == "context_length_exceeded"
        return InvalidRequest(error.message, "a larger context_length has more room" if is_long else None)
    return EngineFailed(error.message)


# where a model answers


class Elsewhere:
    """A kawai that serves: the daemon of this home, or another."""

    def __init__(self, this: "Invocation", model_id: str) -> None:
        """It is looked for at each question: it may have been started anew."""
        self._this, self._id = this, model_id

    def is_loaded(self) -> bool:
        """Whether the model needs no loading."""
        from kawai_tools.cli.running import ask  # noqa: PLC0415 - only with a daemon
        from kawai_tools.contract import NoRequest  # noqa: PLC0415
        from kawai_tools.operations.models import MODELS_PS  # noqa: PLC0415

        rows = cast("list[LoadedModel]", ask(self._this, MODELS_PS, NoRequest()))
        return any(row.id == self._id and row.state == "ready" for row in rows)

    def load(self) -> None:
        """Have the model loaded."""
        from kawai_tools.cli.running import ask  # noqa: PLC0415 - only with a daemon
        from kawai_tools.operations.models import MODELS_LOAD, LoadRequest  # noqa: PLC0415

        ask(self._this, MODELS_LOAD, LoadRequest(self._id))

    def ask(self, path: str, body: bytes) -> Generator[bytes, None, None]:
        """Post a body to a route of inference; the answer as it comes."""
        from kawai_tools.remote.executing import stream  # noqa: PLC0415 - only with a daemon

        yield from stream(self._this.peer(), path, body)


class Here:
    """A pool of this process, whose event loop has a thread of its own."""

    def __init__(self, workspace: "Workspace", model_id: str) -> None:
        """Nothing is loaded yet. Raises what hinders making an order."""
        import asyncio  # noqa: PLC0415 - only without a daemon

        from kawai_tools.refs import parse_model  # noqa: PLC0415

        self._order = workspace.orders.make(parse_model(model_id))
        self._pool = workspace.pool
        warnings.filterwarnings(
            "ignore", "coroutine .* was never awaited"
        )  # Ctrl-C before it was handed over
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="pool", daemon=True).start()

    def is_loaded(self) -> bool:
        """Not before the first ``load``, which comes once."""
        return False

    def load(self) -> None:
        """Load the model."""
        from kawai_tools.runners.pool import PATIENCE  # noqa: PLC0415 - it imports asyncio

        self._begin(self._pool.load(self._order, time.monotonic() + PATIENCE)).result()

    def ask(self, path: str, body: bytes) -> Generator[bytes, None, None]:
        """Post a body to the engine, which is loaded anew if it has died; the answer as it comes."""
        pieces: SimpleQueue[bytes | None] = SimpleQueue()
        work = self._begin(self._answer(path, body, pieces))
        work.add_done_callback(lambda _: pieces.put(None))
        try:
            while (piece := pieces.get()) is not None:
                yield piece
            work.result()
        finally:
            work.cancel()

    async def _answer(self, path: str, body: bytes, pieces: "SimpleQueue[bytes | None]") -> None:
        from kawai_tools.runners.asking import ask  # noqa: PLC0415 - it imports asyncio
        from kawai_tools.runners.pool import PATIENCE  # noqa: PLC0415

        async with self._pool.lease(self._order, time.monotonic() + PATIENCE) as held:
            upstream = await ask(held.target, path, b"", body)
            try:
                await upstream.read_head()

                def put(piece: bytes) -> bool:
                    pieces.put(piece)
                    return True

                await upstream.pour(put)
            finally:
                upstream.close()

    def close(self) -> None:
        """End the engine."""
        self._begin(self._end()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _end(self) -> None:
        await self._pool.drain(0.0)
        await self._loop.shutdown_default_executor()  # it writes down when the model was used

    def _begin(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        import asyncio  # noqa: PLC0415 - only without a daemon

        return asyncio.run_coroutine_threadsafe(work, self._loop)


@contextmanager
def answering(this: "Invocation", model_id: str, *, alone: bool) -> Iterator[Elsewhere | Here]:
    """Where a model answers: a kawai that serves, if there is one and this is not to be ``alone``."""
    if not alone and this.serves():
        yield Elsewhere(this, model_id)
        return
    with _ending_well():
        here = Here(this.workspace, model_id)
        try:
            yield here
        finally:
            here.close()


@contextmanager
def _ending_well() -> Iterator[None]:
    """Have what ends a process by default end it as Ctrl-C does: its engine is to end first."""

    def leave(number: int, _: FrameType | None) -> None:
        raise typer.Exit(128 + number)

    numbers = [each for each in (SIGTERM, SIGHUP) if getsignal(each) is SIG_DFL]
    for number in numbers:
        signal(number, leave)
    try:
        yield
    finally:
        for number in numbers:
            signal(number, SIG_DFL)


# what is shown


class Shown:
    """One answer, shown as it comes."""

    def __init__(self, output: "Output") -> None:
        """Nothing has come yet."""
        self._output = output
        self.words, self._reasoning, self._thought = "", "", ""
        self._last = "\n"
        self._begin, self._count = 0.0, 0
        self._finish: str | None = None
        self._timings: _Timings | None = None

    def take(self, data: bytes, event: Event) -> None:
        """Show what has come."""
        if event.choices:
            self._finish = event.choices[0].finish_reason or self._finish
        self._timings = event.timings or self._timings
        if event.words or event.reasoning:
            self._begin = self._begin or time.monotonic()
            self._count += 1
        if self._output.json:
            self._output.line(msgspec.Raw(data))
        else:
            self._show(event)
        self.words += event.words

    def _show(self, event: Event) -> None:
        self._reasoning += event.reasoning
        if self._output.verbose:
            self._think(event.reasoning, whole=bool(event.words))
        if event.words:
            self._stream(event.words)

    def _think(self, words: str, *, whole: bool) -> None:
        """Tell what the model thinks, in whole lines."""
        *lines, self._thought = (self._thought + words).split("\n")
        if whole and self._thought:
            lines.append(self._thought)
            self._thought = ""
        for line in lines:
            self._output.say(line)

    def end(self) -> None:
        """Show what is known once all has come."""
        if not self._output.json:
            self._tell_oddities()
        self.break_off()
        if self._output.verbose:
            self._tell_speed()

    def break_off(self) -> None:
        """Have what is shown next begin a line of its own."""
        if not self._output.json and not self._last.endswith("\n"):
            self._stream("\n")

    def _stream(self, words: str) -> None:
        self._output.stream(words)
        self._last = words

    def _tell_oddities(self) -> None:
        if not self.words and self._reasoning:
            self._output.warn("the model has thought and not answered; this is what it thought")
            self._stream(self._reasoning)
        elif not self.words:
            self._output.warn("the model answers nothing")
        if self._finish == "length":
            self.break_off()
            self._output.warn("the answer is cut off at its greatest length")

    def _tell_speed(self) -> None:
        count, rate = self._count, self._count / max(1e-3, time.monotonic() - self._begin)
        if self._timings is not None:
            count, rate = self._timings.predicted_n or count, self._timings.predicted_per_second or rate
        self._output.say(f"{count} tokens, {rate:.1f} a second")
