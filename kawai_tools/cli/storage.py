"""``kawai df`` and ``kawai prune``: disk space, taken and given back."""

import sys
from typing import TYPE_CHECKING, Annotated, cast

import msgspec
import typer

from kawai_tools.cli import text
from kawai_tools.cli.groups import LAZY, KawaiCommand, LocalCommand
from kawai_tools.cli.invocation import Invocation, invocation
from kawai_tools.cli.output import is_terminal
from kawai_tools.cli.running import run
from kawai_tools.errors import UsageError, from_info

if TYPE_CHECKING:
    from kawai_tools.storage.finding import Pruned
    from kawai_tools.storage.usage import Usage

df_app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
prune_app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

PRUNE_HELP = """
Without any of the first four options: --partials and --builds, never a model. Left alone is what is in use,
what kawai models protect names, and what is not kawai's own: files that are links, files that no model has.
What goes is shown first, with the bytes that come back; a terminal is asked, without one --yes is needed.

Examples:

\b
kawai prune --dry-run
kawai prune --unused-for 30d
kawai prune --partials --builds --keep-space 50G --yes
"""


@df_app.command(cls=KawaiCommand, help=LAZY["df"])
def df(context: typer.Context) -> None:
    """Caches are the index, answers of hub and release server, copies of catalogs; logs are not counted."""
    from kawai_tools.contract import NoRequest  # noqa: PLC0415 - help needs none
    from kawai_tools.operations.storage import DF  # noqa: PLC0415 - help needs none

    this = invocation(context)
    this.output.payload(cast("Usage", run(this, DF, NoRequest())), _usage)


def _usage(usage: "Usage") -> str:
    named = {
        "Models": usage.models,
        "Partial downloads": usage.partials,
        "Builds": usage.builds,
        "Caches": usage.caches,
        "Free": usage.free,
        "Disk": usage.total,
    }
    width = max(len(text.size(count)) for count in named.values())
    return text.facts([(name, f"{text.size(count):>{width}}") for name, count in named.items()])


@prune_app.command(cls=LocalCommand, help=LAZY["prune"], epilog=PRUNE_HELP)
def prune(
    context: typer.Context,
    unused_for: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Models last used longer ago, or installed where they never were: "
            "minutes (90m), hours (12h), days (30d) or weeks (4w).",
        ),
    ] = None,
    keep_space: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Then models by last use, oldest first, until the disk has so much free: "
            "50G (K, M, G or T; bytes without).",
        ),
    ] = None,
    partials: Annotated[
        bool,
        typer.Option("--partials", help="Downloads that nobody works on, and files that were superseded."),
    ] = False,
    builds: Annotated[
        bool, typer.Option("--builds", help="Builds that are neither active nor the one before.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it without asking.")] = False,
) -> None:
    """Say what would go, and remove it."""
    from kawai_tools.operations.storage import PRUNE, PruneRequest  # noqa: PLC0415

    this = invocation(context)
    request = PruneRequest(
        unused_for=unused_for, keep_space=keep_space, partials=partials, builds=builds, dry_run=True
    )
    found = cast("list[Pruned]", run(this, PRUNE, request))
    going = [row for row in found if not row.kept]
    if dry_run or not going:
        this.output.payload(found, lambda rows: _table(this, rows))
        _tell_shortage(this, keep_space, sum(row.size for row in going))
        return
    if not this.output.json:
        this.output.payload(found, lambda rows: _table(this, rows))
    if not yes:
        _consent(this, found)
    done = cast(
        "list[Pruned]", run(this, PRUNE, msgspec.structs.replace(request, dry_run=False, shown=found))
    )
    _tell(this, done, going)
    _tell_shortage(this, keep_space, 0)
    raise typer.Exit(next((from_info(row.error).exit_code for row in done if row.error), 0))


def _table(this: Invocation, rows: "list[Pruned]") -> str:
    """What goes, why and how much comes back; then what is left alone."""
    from kawai_tools.cli.text import Column  # noqa: PLC0415

    going = [row for row in rows if not row.kept]
    if not rows:
        this.output.note("there is nothing to remove")
        return ""
    columns = (
        Column("KIND"),
        Column("NAME", shrinks=True),
        Column("SIZE", right=True),
        Column("REASON", shrinks=True, keeps_start=True),
    )
    cells = [
        (
            row.kind,
            _name(this, row),
            text.size(row.size),
            f"left alone: {row.reason}" if row.kept else row.reason,
        )
        for row in rows
    ]
    total = f"{_counted(going)} to remove"
    total += f"; {text.size(sum(row.size for row in going))} come back\n" if going else "\n"
    return this.output.table(columns, cells) + total


def _name(this: Invocation, row: "Pruned") -> str:
    """An id, else a path below kawai's data."""
    return row.id or row.path.removeprefix(f"{this.settings.data_dir}/")


def _counted(rows: "list[Pruned]") -> str:
    return "1 thing" if len(rows) == 1 else f"{len(rows)} things" if rows else "nothing"


def _consent(this: Invocation, found: "list[Pruned]") -> None:
    """Go on if the user says so, who has seen what would go. Raises ``UsageError`` where nobody can."""
    if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        raise UsageError(
            "nobody can be asked here whether to remove it", "add --yes, or see with --dry-run what would go"
        )
    going = [row for row in found if not row.kept]
    if this.output.json:  # stdout is for the result
        for line in _table(this, found).splitlines():
            this.output.say(line)
    size = text.size(sum(row.size for row in going))
    this.output.say(f"Remove {_counted(going)}, {size}? [y/N]")
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        this.output.note("nothing was removed")
        raise typer.Exit(1)


def _tell(this: Invocation, done: "list[Pruned]", going: "list[Pruned]") -> None:
    """What became of what was to go."""
    if this.output.json:
        this.output.line(done)
        return
    were = {row.place for row in going}
    for row in done:
        if row.error is not None:
            this.output.error(row.error)
        elif not row.removed and row.place in were:
            this.output.warn(f"left alone: {row.kind} {_name(this, row)}: {row.reason}")
    removed = [row for row in done if row.removed]
    this.output.result(
        f"removed {_counted(removed)}; {text.size(sum(row.size for row in removed))} came back"
    )


def _tell_shortage(this: Invocation, keep_space: str | None, coming: int) -> None:
    """Say where less will be free, or is, than was asked for."""
    if keep_space is None:
        return
    from kawai_tools.files import free_space  # noqa: PLC0415
    from kawai_tools.values import parse_size  # noqa: PLC0415

    free = free_space(this.workspace.layout.store) + coming
    wanted = parse_size(keep_space)
    if free < wanted:
        words = "would have" if coming else "has"
        this.output.warn(
            f"the disk {words} {text.size(free)} free, less than {text.size(wanted)}: no other model may go"
        )
