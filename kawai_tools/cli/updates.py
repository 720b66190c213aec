"""``kawai outdated``, ``kawai models outdated`` and ``update``: what has a newer version, and taking it."""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, cast

import msgspec
import typer

from kawai_tools.cli.completion import model_ids
from kawai_tools.cli.groups import LAZY, KawaiCommand
from kawai_tools.cli.invocation import Invocation, invocation
from kawai_tools.cli.options import Connections, DryRun, LimitRate
from kawai_tools.cli.output import Output
from kawai_tools.cli.running import run
from kawai_tools.errors import EXIT_INTERRUPTED, UsageError, from_info

if TYPE_CHECKING:
    from kawai_tools.catalog.entries import CatalogUpdate
    from kawai_tools.events import Event
    from kawai_tools.failure import ErrorInfo
    from kawai_tools.libs.bundle import LibsNews
    from kawai_tools.models.updating import UpdatePlan
    from kawai_tools.models.upstream import OutdatedRow
    from kawai_tools.operations.updates import Outdated
    from kawai_tools.remote.feed import RemoteFeed
    from kawai_tools.transfer.pulls import Feed

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

UPDATE_EXAMPLES = """
Examples:

\b
kawai models outdated
kawai models update Qwen3-8B-Q8_0
kawai models update --all --dry-run
"""

_COMMIT = 8
_KEPT = "what was fetched is kept, and running the same command again goes on"


@app.command("outdated", cls=KawaiCommand, help=LAZY["outdated"])
def everything(context: typer.Context) -> None:
    """Ask the hub, the release server and the catalogs' servers. Changes nothing."""
    from kawai_tools.contract import NoRequest  # noqa: PLC0415 - help needs none
    from kawai_tools.operations.updates import OUTDATED  # noqa: PLC0415

    this = invocation(context)
    this.output.waiting("asking what there is now ...")
    found = cast("Outdated", run(this, OUTDATED, NoRequest()))
    this.output.payload(found, lambda shown: _everything(this.output, shown))
    _say_rest(this.output, found.models)
    if not found.libs.changed:
        this.output.note(_build_stands(found.libs))
    for catalog in found.catalogs:
        if catalog.error is not None:
            this.output.note(f"{catalog.url}: {catalog.error.message}")


def outdated(context: typer.Context) -> None:
    """Compare the models that came from a hub with what it holds now. Changes nothing."""
    from kawai_tools.contract import NoRequest  # noqa: PLC0415
    from kawai_tools.operations.updates import MODELS_OUTDATED  # noqa: PLC0415

    this = invocation(context)
    this.output.waiting("asking the hub ...")
    found = cast("list[OutdatedRow]", run(this, MODELS_OUTDATED, NoRequest()))
    this.output.payload(found, lambda rows: _table(this.output, rows))
    _say_rest(this.output, found)


def _everything(output: Output, found: "Outdated") -> str:
    parts = [_table(output, found.models), _build(found.libs), *map(_catalog, found.catalogs)]
    return "\n".join(part for part in parts if part)


def _build(libs: "LibsNews") -> str:
    if not libs.changed:
        return ""
    return f"llama.cpp {libs.current} is used, and {libs.latest} is there: kawai libs pull\n"


def _build_stands(libs: "LibsNews") -> str:
    """How the build that is used stands, where none is newer."""
    if libs.latest is None:
        return f"the newest build could not be learned: {libs.latest_error}"
    if libs.current is None:
        return f"no build of llama.cpp is installed; kawai libs pull gets {libs.latest}"
    if libs.current == libs.latest:
        return f"llama.cpp {libs.current} is the newest"
    return f"llama.cpp {libs.current} is used, and {libs.latest} is the newest that is offered"


def _catalog(catalog: "CatalogUpdate") -> str:
    from kawai_tools.cli.text import safe  # noqa: PLC0415

    return f"{safe(catalog.url)} has a newer catalog: kawai catalog update\n" if catalog.changed else ""


def _table(output: Output, rows: "list[OutdatedRow]") -> str:
    """The models that were replaced, and those of which that is not known; none, no table."""
    from kawai_tools.cli.text import Column  # noqa: PLC0415

    columns = (
        Column("MODEL", shrinks=True),
        Column("INSTALLED"),
        Column("AVAILABLE"),
        Column("SIZE", right=True),
    )
    shown = [(row.id, _short(row.installed.commit), *_available(row)) for row in rows if _is_shown(row)]
    return output.table(columns, shown) if shown else ""


def _is_shown(row: "OutdatedRow") -> bool:
    return row.changed or row.error is not None


def _available(row: "OutdatedRow") -> tuple[str, str]:
    """The commit that is there now, and the size of its files."""
    from kawai_tools.cli.text import size  # noqa: PLC0415

    if row.available is None:
        return "not known", "-"
    return _short(row.available.commit), size(row.available.size)


def _short(commit: str | None) -> str:
    return (commit or "-")[:_COMMIT]


def _say_rest(output: Output, rows: "list[OutdatedRow]") -> None:
    """What the table does not say: why something is not known, and how many there are."""
    if output.json:  # the rows have said it
        return
    for row in rows:
        if row.error is not None:
            output.error(_of(row.id, row.error))
    output.note(_summary(rows))
    if any(row.changed for row in rows):
        output.note("kawai models update --all takes what is there now")


def _of(model: str, error: "ErrorInfo") -> "ErrorInfo":
    """The error as people are told it: of which of several models."""
    return msgspec.structs.replace(error, message=f"{model}: {error.message}")


def _summary(rows: "list[OutdatedRow]") -> str:
    """How many were replaced, else how many were not; and of how many that is not known."""
    if not rows:
        return "no installed model came from a hub"
    changed, failed = sum(row.changed for row in rows), sum(row.error is not None for row in rows)
    whole = f"of {len(rows)} {'model' if len(rows) == 1 else 'models'} from a hub"
    if failed == len(rows):
        return f"{failed} {whole} could not be compared"
    current = len(rows) - changed - failed
    if changed:
        words = f"{changed} {whole} {'was' if changed == 1 else 'were'} replaced there"
    else:
        words = f"{current} {whole} {'is as it has it' if current == 1 else 'are as it has them'}"
    return f"{words}, {failed} could not be compared" if failed else words


def update(
    context: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...", help="Only these.", autocompletion=model_ids, show_default=False
        ),
    ] = None,
    everyone: Annotated[bool, typer.Option("--all", help="All models that came from a hub.")] = False,
    dry_run: DryRun = False,
    limit_rate: LimitRate = None,
    connections: Connections = None,
) -> None:
    """Take what the hub has now. The old files work until the new ones are verified and take their place.

    A model that is loaded goes on with what it has loaded until it is unloaded. The exit code is that of the
    first failure.
    """
    from kawai_tools.operations.updates import MODELS_UPDATE, UpdateRequest  # noqa: PLC0415

    if bool(models) == everyone:
        raise UsageError(
            "name models, or give --all" if not models else "name models or give --all, not both",
            "kawai models outdated shows which have changed",
        )
    this = invocation(context)
    this.keep_log()
    request = UpdateRequest(
        models=models or None, dry_run=dry_run, limit_rate=limit_rate, connections=connections
    )
    answer = run(this, MODELS_UPDATE, request)
    if isinstance(answer, list):
        raise typer.Exit(_show_plans(this, answer))
    _follow(this, cast("Feed[Event] | RemoteFeed", answer), tells_all=not everyone)


def _show_plans(this: Invocation, plans: "list[UpdatePlan]") -> int:
    """Show what would be done; the exit code of the first that could not be."""
    this.output.payload(plans, lambda found: _plans(this.output, found))
    codes = []
    for plan in plans:
        if plan.error is not None:
            codes.append(from_info(plan.error).exit_code)
            if not this.output.json:
                this.output.error(_of(plan.id, plan.error))
    return next(iter(codes), 0)


def _plans(output: Output, plans: "list[UpdatePlan]") -> str:
    from kawai_tools.cli import showing  # noqa: PLC0415

    changing = [plan for plan in plans if not plan.exists]
    if not changing:
        return "" if any(plan.error for plan in plans) else "nothing has changed; nothing would be fetched\n"
    return "\n".join(showing.plan(output, plan) for plan in changing)


def _follow(this: Invocation, feed: "Feed[Event] | RemoteFeed", *, tells_all: bool) -> None:
    from kawai_tools.cli import following  # noqa: PLC0415 - help follows nothing

    with following.stoppable() if not this.is_remote else nullcontext(following.Stop()) as stop:
        ended = [(event, _ended(this, event, tells_all)) for event in following.finals(this, feed, stop)]
    if stop.signal:
        this.output.note(f"cancelled; {_KEPT}")
        raise typer.Exit(stop.exit_code)
    if not ended:
        this.output.note("no installed model came from a hub")
    elif not tells_all:
        updated = sum(event.status == "downloaded" for event, _ in ended)
        failed = sum(bool(code) for _, code in ended)
        rest = f", {failed} could not be" if failed else ""
        what = f"{len(ended)} {'model was' if len(ended) == 1 else 'models were'}"
        this.output.note(f"{updated} of {what} updated{rest}")
    _say_loaded(this, [event for event, _ in ended])
    raise typer.Exit(next((code for _, code in ended if code), 0))


def _ended(this: Invocation, event: "Event", tells_all: bool) -> int:
    """Say how the update of one model ended; the exit code it asks for."""
    from kawai_tools.events import ModelPullEvent, Status  # noqa: PLC0415

    if not isinstance(event, ModelPullEvent):
        return 0
    if event.error is not None:
        this.output.result(f"{event.id} could not be updated")
        if not this.output.json:
            this.output.error(_of(event.id, event.error))
        return from_info(event.error).exit_code
    if event.status is Status.CANCELLED:
        this.output.note(f"{event.id} was cancelled; {_KEPT}")
        return EXIT_INTERRUPTED
    if event.status is Status.DOWNLOADED:
        this.output.result(f"{event.id} is updated")
    elif event.status is Status.EXISTS and tells_all:
        this.output.result(f"{event.id} is as the hub has it")
    return 0


def _say_loaded(this: Invocation, ended: "list[Event]") -> None:
    """Say which of the updated models somebody has loaded as they were; of this machine that is known."""
    from kawai_tools.events import ModelPullEvent, Status  # noqa: PLC0415

    if this.is_remote:
        return
    models = this.workspace.models
    for event in ended:
        if not isinstance(event, ModelPullEvent) or event.status is not Status.DOWNLOADED:
            continue
        entry = models.index.by_id(event.id)
        if entry is not None and not models.use_lock(entry.record.path).is_free():
            this.output.note(f"{event.id} is loaded as it was; kawai models unload {event.id} lets go of it")
