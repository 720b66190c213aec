"""``kawai models adopt`` and ``scan``: what is on this machine already."""

from typing import TYPE_CHECKING, Annotated, cast

import typer

from kawai_tools.cli.invocation import Invocation, invocation
from kawai_tools.cli.running import run

if TYPE_CHECKING:
    from kawai_tools.events import Event
    from kawai_tools.models.neighbours import FoundFile
    from kawai_tools.transfer.pulls import Feed

ADOPT_EXAMPLES = """
Examples:

\b
kawai models scan
kawai models adopt ~/Downloads/MODEL.gguf
kawai models adopt ~/.lmstudio/models/PUBLISHER/REPO --link
kawai models adopt MODEL.gguf mmproj-MODEL.gguf --id my-model
"""


def adopt(
    context: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="GGUF files with their mmproj, or directories of them; any shard stands for its set.",
            show_default=False,
        ),
    ],
    link: Annotated[
        bool, typer.Option("--link", help="Only link (or share on disk); never copy. Costs no space.")
    ] = False,
    copy: Annotated[bool, typer.Option("--copy", help="Copy, so that no other tool can change it.")] = False,
    model_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="What to call the model.", show_default=False)
    ] = None,
) -> None:
    """Take in GGUF files that are on this machine already. They stay as and where they are."""
    from kawai_tools.cli import following  # noqa: PLC0415 - help follows nothing
    from kawai_tools.operations.adoption import MODELS_ADOPT, AdoptRequest  # noqa: PLC0415

    this = invocation(context)
    this.keep_log()
    request = AdoptRequest(paths, link=link, copy=copy, id=model_id)
    feed = cast("Feed[Event]", run(this, MODELS_ADOPT, request))
    with following.stoppable() as stop:
        codes = [_ended(this, event) for event in following.follow(this, feed, stop)]
    if stop.signal:
        this.output.note("cancelled; nothing is left of what was not done")
        raise typer.Exit(stop.exit_code)
    raise typer.Exit(next((code for code in codes if code), 0))


def _ended(this: Invocation, event: "Event") -> int:
    """Say how the adoption of one model ended; the exit code it asks for."""
    from kawai_tools.cli.following import tell_installed  # noqa: PLC0415
    from kawai_tools.errors import from_info  # noqa: PLC0415
    from kawai_tools.events import PullEvent, Status  # noqa: PLC0415

    if isinstance(event, PullEvent) and event.error is not None:
        if not this.output.json:
            this.output.error(event.error)
        return from_info(event.error).exit_code
    if event.status is not Status.CANCELLED:
        tell_installed(this, event)
    return 0


def scan(context: typer.Context) -> None:
    """List the GGUF files that Hugging Face, LM Studio and Ollama hold here. Hashes nothing."""
    from kawai_tools.contract import NoRequest  # noqa: PLC0415
    from kawai_tools.operations.adoption import MODELS_SCAN  # noqa: PLC0415

    this = invocation(context)
    found = cast("list[FoundFile]", run(this, MODELS_SCAN, NoRequest()))
    if not found and not this.output.json:
        looked = ", ".join(str(place.directory) for place in this.workspace.neighbours.places)
        this.output.note(f"no other tool holds GGUF files here; looked in {looked}")
        return
    this.output.payload(found, lambda rows: _table(this, rows))


def _table(this: Invocation, found: "list[FoundFile]") -> str:
    from kawai_tools.cli.text import Column, size  # noqa: PLC0415

    columns = (
        Column("NAME", shrinks=True),
        Column("TOOL"),
        Column("SIZE", right=True),
        Column("ADOPTED"),
        Column("PATH"),
    )
    rows = [(row.name, row.tool, size(row.size), "yes" if row.adopted else "-", row.path) for row in found]
    return this.output.table(columns, rows)
