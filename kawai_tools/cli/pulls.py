"""``kawai pulls``: the pulls of a kawai that serves."""

from typing import TYPE_CHECKING, Annotated, cast

import typer

from kawai_tools.cli import showing
from kawai_tools.cli.groups import LAZY, KawaiCommand, group
from kawai_tools.cli.invocation import invocation
from kawai_tools.cli.running import run, run_or_none

if TYPE_CHECKING:
    from kawai_tools.operations.pulls import PullRow
    from kawai_tools.remote.feed import RemoteFeed

app = group(LAZY["pulls"])

PullId = Annotated[str, typer.Argument(metavar="PULL", help="A pull, as pulls list names it.")]


@app.command("list", cls=KawaiCommand)
def list_(context: typer.Context) -> None:
    """List the pulls that run, and those of the last hour."""
    from kawai_tools.contract import NoRequest  # noqa: PLC0415 - help needs none
    from kawai_tools.operations.pulls import PULLS_LIST  # noqa: PLC0415 - help needs none

    this = invocation(context)
    without = "no kawai server runs on this home, so it pulls nothing; kawai serve starts one"
    rows = cast("list[PullRow]", run_or_none(this, PULLS_LIST, NoRequest(), without))
    this.output.payload(rows, lambda found: showing.pulls(this.output, found))


@app.command(cls=KawaiCommand)
def attach(context: typer.Context, pull: PullId) -> None:
    """Follow a pull to its end. Ctrl-C leaves it running."""
    from kawai_tools.cli.following import follow_pull, tell_installed  # noqa: PLC0415
    from kawai_tools.operations.pulls import PULLS_ATTACH, PullIdRequest  # noqa: PLC0415

    this = invocation(context)
    tell_installed(this, follow_pull(this, cast("RemoteFeed", run(this, PULLS_ATTACH, PullIdRequest(pull)))))


@app.command(cls=KawaiCommand)
def cancel(context: typer.Context, pull: PullId) -> None:
    """Cancel a pull. What was fetched is kept, and another pull of the same goes on from there."""
    from kawai_tools.operations.pulls import PULLS_CANCEL, PullIdRequest  # noqa: PLC0415

    this = invocation(context)
    run(this, PULLS_CANCEL, PullIdRequest(pull))
    this.output.note(f"asked {pull} to stop; what was fetched is kept")
