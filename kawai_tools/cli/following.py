"""Following a feed of events: one that this process owns to its end or to Ctrl-C, another's as it comes."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, cast

import typer

from kawai_tools.cli import showing
from kawai_tools.cli.invocation import Invocation
from kawai_tools.cli.progress import Renderer, renderer
from kawai_tools.errors import EXIT_INTERRUPTED, ErrorInfo, RemoteFault, from_info
from kawai_tools.events import FINAL, Event, LibsPullEvent, ModelPullEvent, PullEvent, Status
from kawai_tools.models.model import PlanPayload
from kawai_tools.transfer.pulls import Feed

if TYPE_CHECKING:
    from kawai_tools.remote.feed import RemoteFeed

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


def follow(
    this: Invocation, feed: "Feed[Event]", stop: Stop, told: Callable[[Event], None] = lambda _: None
) -> Iterator[Event]:
    """Show every event and yield the final ones; a signal cancels the work and awaits its end."""
    shown = renderer(this.output)
    try:
        for event in _until_stopped(feed, stop, shown):
            told(event)
            shown.show(event)
            if event.status in FINAL:
                yield event
    finally:
        shown.close()
        if not feed.closed:  # the reader of our output has left, or a second Ctrl-C
            feed.cancel()
            _await_end(feed)


def finals(this: Invocation, feed: "Feed[Event] | RemoteFeed", stop: Stop) -> Iterator[Event]:
    """Show every event, wherever the work is done, and yield the final ones."""
    return follow(this, feed, stop) if isinstance(feed, Feed) else watch(this, feed)


def watch(
    this: Invocation, feed: "RemoteFeed", told: Callable[[Event], None] = lambda _: None
) -> Iterator[Event]:
    """Show every event of what runs elsewhere, and yield the final ones; Ctrl-C ends the watching only."""
    shown = renderer(this.output)
    feed.on_drop = lambda error: this.output.note(f"{error.message}; trying again")
    try:
        for event in feed.follow():
            if not isinstance(event, Event):
                shown.tick()
                continue
            told(event)
            shown.show(event)
            if event.status in FINAL:
                yield event
    except KeyboardInterrupt:
        shown.close()
        if feed.pull is not None:
            this.output.note(f"the pull goes on; {feed.peer.attaching(feed.pull.pull)}")
        raise
    finally:
        shown.close()


def _until_stopped(feed: "Feed[Event]", stop: Stop, shown: Renderer) -> Iterator[Event]:
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


def _await_end(feed: "Feed[Event]") -> None:
    deadline = time.monotonic() + PATIENCE
    for _ in feed.follow(heartbeat=_GLANCE):
        if feed.closed or time.monotonic() > deadline:
            return


_KEPT = "what was fetched is kept, and running the same command again goes on from there"
_KEPT_THERE = "what was fetched is kept, and pulling it again goes on from there"


def follow_pull(
    this: Invocation, feed: "Feed[Event] | RemoteFeed", told: Callable[[Event], None] = lambda _: None
) -> Event:
    """Follow a pull to its good end, and give its last event; ``told`` sees each first.

    Leaves with an exit code where it was cancelled, and raises the error of one that failed.
    """
    last = None
    if not isinstance(feed, Feed):
        for last in watch(this, feed, told):  # noqa: B007 - the last one is told of
            pass
        return ended_well(this, last, kept=_KEPT_THERE)
    with stoppable() as stop:
        for last in follow(this, feed, stop, told):  # noqa: B007 - as above
            pass
    return ended_well(this, last, stop.exit_code)


def ended_well(
    this: Invocation, event: Event | None, exit_code: int = EXIT_INTERRUPTED, kept: str = _KEPT
) -> Event:
    """The last event of a pull that ended well; ``None`` is one that did not even get to say how it ended.

    Raises the error of one that failed, and leaves with ``exit_code`` for one that was cancelled.
    """
    if event is None or event.status is Status.CANCELLED:
        this.output.note(f"cancelled; {kept}")
        raise typer.Exit(exit_code)
    if isinstance(event, PullEvent) and event.error is not None:
        fail(this, event.error)
    if event.status is Status.FAILED:
        raise RemoteFault("it failed, and does not say why", "look into the server's log")
    return event


def end_pull(this: Invocation, answer: object) -> None:
    """Show the plan of a model's pull, or follow the pull to its end and say where the model is."""
    if isinstance(answer, PlanPayload):
        this.output.payload(answer, lambda plan: showing.plan(this.output, plan))
    else:
        tell_installed(this, follow_pull(this, cast("Feed[Event]", answer)))


def build_ending(event: LibsPullEvent, before: str | None = None) -> str:
    """How the pull of a build ended; ``before`` is what was active when it began."""
    version = event.version
    if event.current != version:
        return f"{version} is installed; active: {event.current or 'none'}"
    if before == version:
        return f"{version} is {'already ' if event.status is Status.EXISTS else ''}active"
    return f"active: {version}" + (f" (was {before})" if before else "")


def tell_installed(this: Invocation, event: Event) -> None:
    """Say where a model is, or which build is active."""
    if isinstance(event, ModelPullEvent):
        words = "is already here:" if event.status is Status.EXISTS else "is installed:"
        this.output.result(f"{event.id} {words} {_place(this, event)}")
    elif isinstance(event, LibsPullEvent):
        this.output.result(build_ending(event))


def _place(this: Invocation, event: ModelPullEvent) -> str:
    """Where a model is, as far as this machine knows."""
    if this.is_remote:
        return this.settings.server or ""
    return str(this.workspace.layout.file(event.model_files[0])) if event.model_files else "the store"


def fail(this: Invocation, error: ErrorInfo) -> None:
    """End with the error of an event; with ``--json`` the event has told it."""
    known = from_info(error)
    if this.output.json:
        raise typer.Exit(known.exit_code)
    raise known
