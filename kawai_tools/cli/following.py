"""Following a feed of events that this process owns, to its end or to Ctrl-C."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import typer

from kawai_tools.cli.invocation import Invocation
from kawai_tools.cli.progress import Renderer, renderer
from kawai_tools.errors import EXIT_INTERRUPTED, ErrorInfo, from_info
from kawai_tools.events import FINAL, Event, ModelPullEvent, PullEvent, Status

if TYPE_CHECKING:
    from kawai_tools.transfer.pulls import Feed

PATIENCE = 5.0
"""Seconds that cancelled work is given to leave a clean partial."""

_GLANCE = 0.25


class Stop:
    """Whether somebody asked this process to stop, and by which signal."""

    def __init__(self) -> None:
        """Nobody has."""
        self.signal: int | None = None

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that ended for a signal."""
        return 128 + (self.signal or signal.SIGINT)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Note the first Ctrl-C or SIGTERM instead of dying of it; the second interrupts at once."""
    stop = Stop()

    def note(number: int, _: FrameType | None) -> None:
        if stop.signal is not None:
            raise KeyboardInterrupt
        stop.signal = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow(this: Invocation, feed: "Feed", stop: Stop) -> Iterator[Event]:
    """Show every event and yield the final ones; a signal cancels the work and awaits its end."""
    shown = renderer(this.output)
    try:
        for event in _until_stopped(feed, stop, shown):
            shown.show(event)
            if event.status in FINAL:
                yield event
    finally:
        shown.close()
        if not feed.closed:  # the reader of our output has left, or a second Ctrl-C
            feed.cancel()
            _await_end(feed)


def _until_stopped(feed: "Feed", stop: Stop, shown: Renderer) -> Iterator[Event]:
    deadline: float | None = None
    for event in feed.follow(heartbeat=_GLANCE):
        if stop.signal is not None and deadline is None:
            feed.cancel()
            deadline = time.monotonic() + PATIENCE
        if event is not None:
            yield event
        elif deadline is not None and time.monotonic() > deadline:
            return
        else:
            shown.tick()


def _await_end(feed: "Feed") -> None:
    deadline = time.monotonic() + PATIENCE
    for _ in feed.follow(heartbeat=_GLANCE):
        if feed.closed or time.monotonic() > deadline:
            return


_KEPT = "what was fetched is kept, and running the same command again goes on from there"


def tell_end(
    this: Invocation, event: Event | None, exit_code: int = EXIT_INTERRUPTED, kept: str = _KEPT
) -> None:
    """Say how a pull ended; ``None`` where it did not even get to say so itself.

    Raises the error of one that failed, and leaves with ``exit_code`` for one that was cancelled.
    """
    if event is None or event.status is Status.CANCELLED:
        this.output.note(f"cancelled; {kept}")
        raise typer.Exit(exit_code)
    if isinstance(event, PullEvent) and event.error is not None:
        fail(this, event.error)
    if isinstance(event, ModelPullEvent):
        path = this.workspace.layout.file(event.model_files[0]) if event.model_files else "the store"
        words = "is already here:" if event.status is Status.EXISTS else "is installed:"
        this.output.result(f"{event.id} {words} {path}")


def fail(this: Invocation, error: ErrorInfo) -> None:
    """End with the error of an event; with ``--json`` the event has told it."""
    known = from_info(error)
    if this.output.json:
        raise typer.Exit(known.exit_code)
    raise known
