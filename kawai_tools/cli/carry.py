"""``kawai export`` and ``kawai import``: models and builds carried to a machine without network."""

import sys
from typing import TYPE_CHECKING, Annotated, cast

import typer

from kawai_tools.cli.completion import model_ids
from kawai_tools.cli.groups import LAZY, KawaiCommand
from kawai_tools.cli.invocation import Invocation, invocation
from kawai_tools.cli.output import is_terminal
from kawai_tools.cli.running import run
from kawai_tools.errors import UsageError
from kawai_tools.events import CarryEvent, Status

if TYPE_CHECKING:
    from kawai_tools.events import Event
    from kawai_tools.transfer.pulls import Feed

PIPE = "-"

export_app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
import_app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

EXPORT_EXAMPLES = """
Examples:

\b
kawai export models.tar --libs
kawai export qwen.tar Qwen3-8B-Q8_0
kawai export - Qwen3-8B-Q8_0 | ssh HOST kawai import -
"""


@export_app.command(cls=KawaiCommand, help=LAZY["export"], epilog=EXPORT_EXAMPLES)
def export(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file to write, or - for stdout.")],
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Only these; without any, all installed models.",
            autocompletion=model_ids,
            show_default=False,
        ),
    ] = None,
    libs: Annotated[bool, typer.Option("--libs", help="The installed llama.cpp builds, too.")] = False,
) -> None:
    """Write models, and with --libs builds, into one file. What was begun before is gone on with."""
    from kawai_tools.cli import text  # noqa: PLC0415 - help needs none
    from kawai_tools.operations.carry import EXPORT, ExportRequest  # noqa: PLC0415

    this = invocation(context)
    if file == PIPE:
        _check_pipe(this)
    this.keep_log()
    feed = cast("Feed[Event]", run(this, EXPORT, ExportRequest(file, models or [], libs)))
    piped = "what was written is of no use; run it again from the start"
    event = _follow(this, feed, piped if file == PIPE else _KEPT)
    what = " and ".join(filter(None, (_counted(event.models, "model"), _counted(event.libs, "build"))))
    if file == PIPE:
        this.output.note(f"exported {what} ({text.size(event.total)})")
    else:
        this.output.result(f"{file} has {what} ({text.size(event.total)})")


_KEPT = "what was written is kept, and running the same command again goes on from there"


def _check_pipe(this: Invocation) -> None:
    if this.output.json:
        raise UsageError("--json and the export cannot both go to stdout", "name a file, or leave out --json")
    if is_terminal(sys.stdout):
        raise UsageError(
            "an export is nothing to be shown on a terminal", "name a file, or pipe it to a command"
        )


def _counted(names: list[str], what: str) -> str:
    return f"{len(names)} {what}{'s' if len(names) > 1 else ''}" if names else ""


def _follow(this: Invocation, feed: "Feed[Event]", kept: str) -> CarryEvent:
    from kawai_tools.cli import following  # noqa: PLC0415 - help needs none

    last = None
    with following.stoppable() as stop:
        for last in following.follow(this, feed, stop):  # noqa: B007 - the last one is told of
            pass
    return cast("CarryEvent", following.ended_well(this, last, stop.exit_code, kept))


@import_app.command("import", cls=KawaiCommand, help=LAZY["import"])
def import_(
    context: typer.Context,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="What kawai export has written, or - for stdin.")
    ],
) -> None:
    """Install the models and builds of an export. What is here already is left as it is."""
    from kawai_tools.operations.carry import IMPORT, ImportRequest  # noqa: PLC0415 - help needs none

    this = invocation(context)
    if file == PIPE and is_terminal(sys.stdin):
        raise UsageError("there is no export on stdin", "name a file, or pipe one in")
    this.keep_log()
    event = _follow(this, cast("Feed[Event]", run(this, IMPORT, ImportRequest(file))), _ARRIVED)
    words = "is already here:" if event.status is Status.EXISTS else "is installed:"
    for model_id in event.models:
        entry = this.workspace.models.index.by_id(model_id)
        place = this.workspace.layout.file(entry.record.weights[0].path) if entry else "the store"
        this.output.result(f"{model_id} {words} {place}")
    if event.libs:
        _tell_builds(this, event)


_ARRIVED = "what has arrived is kept, and running the same command again goes on from there"


def _tell_builds(this: Invocation, event: CarryEvent) -> None:
    """Say which builds came, which is used, and what would use another one."""
    bundles = this.workspace.bundles
    current = bundles.current()
    for record in bundles.all():
        if record.version in event.libs:
            works = record.probe.ok or not bundles.is_here(record)
            fault = "" if works else f"; it does not work here: {record.probe.detail}"
            this.output.result(f"{record.version} ({record.processor}) is installed{fault}")
    this.output.result(f"active: {current.version if current else 'none'}")
    usable = [each for each in bundles.all() if each.version in event.libs and each.probe.ok]
    if usable and (current is None or current.version not in event.libs):
        this.output.note(f"kawai libs use {usable[0].version} switches to it")
