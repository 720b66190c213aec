"""One renderer per medium for the one stream of events: JSON lines, plain lines, bars, or none."""

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from kawai_tools.cli import text
from kawai_tools.cli.output import Output, coloured, terminal_width
from kawai_tools.events import FINAL, Event, ModelPullEvent, PullEvent, Status, VerifyEvent

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

INTERVAL = 5.0
"""Seconds between two plain lines while nothing but the numbers change."""

_WAITING = "another kawai is pulling this; waiting"
_SILENT = FINAL | {Status.WAITING}
_NAME_WIDTH, _AMOUNT_WIDTH, _NOTE_WIDTH = 26, 19, 18
_MARGIN = 3
"""Columns left free behind a bar: the terminal writes ``^C`` there, which must not begin another line."""


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
    if isinstance(event, VerifyEvent):  # its numbers are of the whole model
        file = event.id if event.file else None
        return Step(event.id, file, event.completed, event.total, event.rate, event.eta)
    if isinstance(event, PullEvent):
        name = event.id if isinstance(event, ModelPullEvent) else event.pull
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
    return Bars(output) if coloured(sys.stderr, {}) and _moves_cursor() else Lines(output)


def _moves_cursor() -> bool:
    return os.environ.get("TERM") not in {None, "", "dumb"}


def _width() -> int:
    return max(2 * _MARGIN, terminal_width(sys.stderr) - _MARGIN)


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
        if event.status is Status.WAITING:
            self._output.note(_WAITING)
        self._last = None if event.status in _SILENT else event
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


class Bars(Silent):
    """A bar for each file; rich is imported when the first one is drawn."""

    def __init__(self, output: Output) -> None:
        """Draw on stderr, from the first event that tells of a file."""
        self._output = output
        self._progress: Progress | None = None
        self._rows: dict[str, _Row] = {}
        self._current: str | None = None

    def show(self, event: Event) -> None:
        """Draw the event."""
        if event.status is Status.WAITING:
            self._output.note(_WAITING)
        elif event.status in FINAL:
            self._finish(event)
        else:
            self._draw(event)

    def _draw(self, event: Event) -> None:
        now = step(event)
        speed = f"{text.rate(now.rate)} {text.duration(now.eta)}".strip()
        if now.file and now.total:
            if now.file != self._current:
                self._complete()
            self._current = now.file
            self._row(now.file, now.completed, now.total, speed or event.status)
        elif self._current is not None:
            done = self._rows[self._current]
            self._row(self._current, done.total, done.total, event.status)
        if isinstance(event, ModelPullEvent) and len(event.model_files) + bool(event.proj_file) > 1:
            self._row("all files", event.completed, event.total or 0, "")
        if self._progress is not None:
            self._progress.console.width = _width()
            self._progress.refresh()

    def _row(self, name: str, completed: int, total: int, note: str) -> None:
        progress = self._progress or self._begin()
        amount = f"{text.size(completed)} / {text.size(total)}".rjust(_AMOUNT_WIDTH)
        note = note.ljust(_NOTE_WIDTH)
        if name in self._rows:
            task = self._rows[name].task
            progress.update(task, completed=completed, total=total, amount=amount, note=note)
        else:
            shown = text.shrunk(name, _NAME_WIDTH)
            task = progress.add_task(shown, completed=completed, total=total, amount=amount, note=note)
        self._rows[name] = _Row(task, total)

    def _complete(self) -> None:
        for name in [self._current] if self._current else []:
            self._row(name, self._rows[name].total, self._rows[name].total, "done")

    def _begin(self) -> "Progress":
        from rich.console import Console  # noqa: PLC0415 - only where a bar is drawn
        from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[amount]}", markup=False),
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True, highlight=False, width=_width()),
            auto_refresh=False,
            expand=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._progress.start()
        return self._progress

    def _finish(self, event: Event) -> None:
        if event.status not in {Status.FAILED, Status.CANCELLED}:
            self._complete()
        self.close()

    def close(self) -> None:
        """Leave the last state on the screen."""
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._rows, self._current = None, {}, None


class _Row(NamedTuple):
    task: "TaskID"
    total: int
