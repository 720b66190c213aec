"""Progress bars for a terminal; rich is imported when the first one is drawn."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from kawai_tools.cli import text
from kawai_tools.cli.output import Output, terminal_size
from kawai_tools.cli.progress import WAITING, Silent, step
from kawai_tools.events import FINAL, CarryEvent, Event, ModelPullEvent, PullEvent, Status

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_ALL = "all files"
_MARGIN = 3
"""Columns left free behind a bar: the terminal writes ``^C`` there, which must not begin another line."""


def _width() -> int:
    return max(2 * _MARGIN, terminal_size(sys.stderr).columns - _MARGIN)


class _Layout(NamedTuple):
    """How many columns the texts beside a bar take; ``exact`` amounts are bytes, others a percentage."""

    name: int
    amount: int
    note: int
    exact: bool


def _layout(width: int) -> _Layout:
    """What there is room for beside a bar that is still one."""
    if width >= 70:  # noqa: PLR2004 - name, bar, both sizes, rate and time
        return _Layout(26, 19, 18, exact=True)
    if width >= 50:  # noqa: PLR2004 - name, bar, percentage, rate and time
        return _Layout(18, 5, 18, exact=False)
    return _Layout(12, 5, 10, exact=False)


def _short(name: str, width: int) -> str:
    """A file's name in a few columns; which shard it is can still be told."""
    stem, dash, number = name.partition("-of-")
    tail = f"{stem[-6:]}{dash}{number}" if dash else ""
    if not tail or len(tail) + 3 > width:
        return text.shrunk(name, width) if not dash else text.shrunk(f"{stem[-6:]} {stem}", width)
    return text.shrunk(stem[:-6], width - len(tail)) + tail


def _has_several_files(event: PullEvent) -> bool:
    if isinstance(event, ModelPullEvent):
        return len(event.model_files) + bool(event.proj_file) > 1
    return isinstance(event, CarryEvent) and event.file_total not in {None, event.total}


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
            self._output.note(WAITING)
        elif event.status in FINAL:
            self._finish(event)
        else:
            self._draw(event)

    def _draw(self, event: Event) -> None:
        now = step(event)
        times = [text.rate(now.rate), text.duration(now.eta)]
        if isinstance(event, PullEvent) and _has_several_files(event):
            self._row(_ALL, event.completed, event.total or 0, [])
        if now.file and now.total:
            if now.file != self._current:
                self._complete()
            self._current = now.file
            self._row(now.file, now.completed, now.total, times if any(times) else [event.status])
        elif self._current is not None:
            done = self._rows[self._current]
            self._row(self._current, done.total, done.total, [event.status])
        if self._progress is not None:
            self._progress.console.width = _width()
            self._progress.refresh()

    def _row(self, name: str, completed: int, total: int, notes: Sequence[str]) -> None:
        progress, layout = self._progress or self._begin(), _layout(_width())
        exact, share = f"{text.size(completed)} / {text.size(total)}", f"{100 * completed // max(total, 1)} %"
        words = " ".join(notes).strip()
        if len(words) > layout.note:
            words = notes[-1]
        shown: dict[str, Any] = {
            "description": _short(name, layout.name).ljust(layout.name),
            "amount": (exact if layout.exact else share).rjust(layout.amount),
            "note": words.ljust(layout.note),
        }
        if name in self._rows:
            task = self._rows[name].task
            progress.update(task, completed=completed, total=total, **shown)
        else:
            task = progress.add_task(completed=completed, total=total, **shown)
            self._make_room(progress)
        self._rows[name] = _Row(task, total)

    def _make_room(self, progress: "Progress") -> None:
        """Hide the files that were done first where more rows would not fit the terminal."""
        room = max(2, terminal_size(sys.stderr).lines - 3)
        done = [row for name, row in self._rows.items() if name != _ALL]
        for row in done[: max(0, len(self._rows) + 1 - room)]:
            progress.update(row.task, visible=False)

    def _complete(self) -> None:
        for name in [self._current] if self._current else []:
            self._row(name, self._rows[name].total, self._rows[name].total, ["done"])

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
