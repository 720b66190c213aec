"""One renderer per medium for the one stream of events: JSON lines, plain lines, bars, or none."""

import os
import sys
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from kawai_tools.cli import text
from kawai_tools.cli.output import Output, coloured
from kawai_tools.events import (
    FINAL,
    CarryEvent,
    Event,
    LibsPullEvent,
    ModelPullEvent,
    PullEvent,
    Status,
    VerifyEvent,
)

INTERVAL = 5.0
"""Seconds between two plain lines while nothing but the numbers change."""

WAITING = "another kawai is pulling this; waiting"


class Step(NamedTuple):
    """What there is to show of an event; ``file`` is ``None`` while no file is worked on."""

    name: str
    file: str | None
    completed: int
    total: int | None
    rate: int | None
    eta: int | None


def step(event: Event) -> Step:
    """The current file of a pull; of what has no files of its own, the whole."""
    if isinstance(event, ModelPullEvent) and event.file_total is not None:
        done, total = event.file_completed or 0, event.file_total
        return Step(event.id, _base(event.file), done, total, event.rate, event.eta)
    if isinstance(event, CarryEvent) and event.file_total is not None:
        done, total = event.file_completed or 0, event.file_total
        return Step(event.archive, _base(event.file), done, total, event.rate, event.eta)
    if isinstance(event, VerifyEvent):  # its numbers are of the whole model
        file = event.id if event.file else None
        return Step(event.id, file, event.completed, event.total, event.rate, event.eta)
    if isinstance(event, PullEvent):
        name = event.id if isinstance(event, ModelPullEvent) else event.pull
        name = event.version if isinstance(event, LibsPullEvent) else name
        name = event.archive if isinstance(event, CarryEvent) else name
        return Step(name, _base(event.file), event.completed, event.total, event.rate, event.eta)
    return Step("", None, 0, None, None, None)


def _base(path: str | None) -> str | None:
    return path and text.safe(path.rsplit("/", 1)[-1])


class Renderer(Protocol):
    """Shows events as they come."""

    def show(self, event: Event) -> None:
        """Show one event."""

    def tick(self) -> None:
        """Nothing happened for a moment."""

    def close(self) -> None:
        """Leave the terminal as it was found."""


def renderer(output: Output) -> Renderer:
    """The renderer for these options and this stderr."""
    if output.json:
        return JsonLines(output)
    if output.quiet:
        return Silent()
    if not (coloured(sys.stderr, {}) and _moves_cursor()):
        return Lines(output)
    from kawai_tools.cli.bars import Bars  # noqa: PLC0415 - only on a terminal

    return Bars(output)


def _moves_cursor() -> bool:
    return os.environ.get("TERM") not in {None, "", "dumb"}


class Silent:
    """Shows nothing."""

    def show(self, event: Event) -> None:
        """Nothing."""

    def tick(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class JsonLines(Silent):
    """Each event as HTTP sends it, one a line."""

    def __init__(self, output: Output) -> None:
        """Write to the output's stdout."""
        self._output = output

    def show(self, event: Event) -> None:
        """Print the event."""
        self._output.line(event)


class Lines(Silent):
    """A plain line at each change, and every five seconds between them: for logs and pipes."""

    def __init__(self, output: Output, clock: Callable[[], float] = time.monotonic) -> None:
        """Write to the output's stderr."""
        self._output = output
        self._clock = clock
        self._last: Event | None = None
        self._told: tuple[Status, str | None] | None = None
        self._told_at = 0.0

    def show(self, event: Event) -> None:
        """Print the event if it changes something or is due."""
        self._last = None if event.status in FINAL else event
        if self._last is not None and ((event.status, step(event).file) != self._told or self._is_due()):
            self._tell(event)

    def tick(self) -> None:
        """Repeat the last line if it is due: a log shows that kawai is still at it."""
        if self._last is not None and self._is_due():
            self._tell(self._last)

    def _is_due(self) -> bool:
        return self._clock() - self._told_at >= INTERVAL

    def _tell(self, event: Event) -> None:
        self._told, self._told_at = (event.status, step(event).file), self._clock()
        self._output.note(line(event))


def line(event: Event) -> str:
    """One event in one line."""
    if event.status is Status.WAITING:
        return WAITING
    now = step(event)
    parts = []
    if now.total and now.file:
        share = 100 * now.completed // now.total
        parts.append(f"{text.size(now.completed)} of {text.size(now.total)} ({share} %)")
    if now.rate:
        parts.append(text.rate(now.rate))
    if now.eta is not None:
        parts.append(f"{text.duration(now.eta)} left")
    return f"{event.status} {now.file or now.name}" + (f": {', '.join(parts)}" if parts else "")
