"""``kawai logs``: what a server says, or the engine of one of its models."""

from typing import TYPE_CHECKING, Annotated, cast

import typer

from kawai_tools.cli import server_log
from kawai_tools.cli.completion import model_ids
from kawai_tools.cli.groups import LAZY, KawaiCommand
from kawai_tools.cli.invocation import Invocation, invocation
from kawai_tools.cli.running import run
from kawai_tools.errors import NoServer

if TYPE_CHECKING:
    from kawai_tools.events import LogLine
    from kawai_tools.remote.feed import RemoteFeed

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

_READ = 1 << 20


@app.command(cls=KawaiCommand, help=LAZY["logs"])
def logs(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="What the engine of this model says.",
            autocompletion=model_ids,
            show_default=False,
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option(metavar="N", min=0, max=1000, help="The last lines, so many.")] = 100,
) -> None:
    """Show the last lines of a log."""
    from kawai_tools.operations.logs import LOGS, LogsRequest  # noqa: PLC0415 - help needs none

    this = invocation(context)
    try:
        answer = run(this, LOGS, LogsRequest(model, lines, follow))
    except NoServer:
        if this.is_remote or model is not None or follow:
            raise
        answer = _last_said(this, lines)
    if follow:
        for line in cast("RemoteFeed", answer).follow():
            if line is not None:
                _show(this, cast("LogLine", line))
        return
    found = cast("list[LogLine]", answer)
    if not found:
        this.output.note("nothing has been said yet" + (f" by {model}" if model else ""))
    this.output.payload(found, lambda rows: "".join(map(server_log.shown, rows)))


def _show(this: Invocation, line: "LogLine") -> None:
    if this.output.json:
        this.output.line(line)
    else:
        this.output.stream(server_log.shown(line))


def _last_said(this: Invocation, lines: int) -> "list[LogLine]":
    """What the last server of this home said: it may have ended for a reason that is told there."""
    this.output.warn("no kawai server runs on this home; this is what the last one said")
    found = server_log.read_last(this.settings.state_dir / server_log.NAME, _READ)
    return found[max(0, len(found) - lines) :]
