"""``kawai libs``: the installed builds of llama.cpp."""

from typing import TYPE_CHECKING, Annotated, cast

import typer

from kawai_tools.cli import text
from kawai_tools.cli.completion import versions
from kawai_tools.cli.groups import LAZY, KawaiCommand, group
from kawai_tools.cli.invocation import Invocation, invocation
from kawai_tools.cli.options import Connections, DryRun, LimitRate
from kawai_tools.cli.output import Output
from kawai_tools.cli.running import run
from kawai_tools.cli.text import Column, safe
from kawai_tools.events import Event, LibsPullEvent

if TYPE_CHECKING:
    from kawai_tools.libs.bundle import Available, BundleRow, Libs, LibsPlanPayload
    from kawai_tools.transfer.pulls import Feed

app = group(LAZY["libs"])

Version = Annotated[
    str,
    typer.Argument(metavar="VERSION", help="An installed version, such as b11434.", autocompletion=versions),
]
Offered = Annotated[
    str | None, typer.Argument(metavar="[VERSION]", help="A version such as b11434.", show_default=False)
]
ProcessorOption = Annotated[
    str | None,
    typer.Option("--processor", metavar="NAME", help="cpu, cuda, rocm, vulkan, metal, sycl or openvino."),
]
ArchOption = Annotated[str | None, typer.Option("--arch", metavar="NAME", help="amd64, arm64 or s390x.")]
OsOption = Annotated[str | None, typer.Option("--os", metavar="NAME", help="linux, darwin or windows.")]


@app.command(cls=KawaiCommand)
def show(context: typer.Context) -> None:
    """Show the machine, its newest build and the installed ones."""
    from kawai_tools.operations.libs import LIBS_SHOW, LibsRequest  # noqa: PLC0415 - help needs none

    this = invocation(context)
    libs = cast("Libs", run(this, LIBS_SHOW, LibsRequest()))
    this.output.payload(libs, lambda found: _shown(this.output, found))
    if libs.latest_error is not None:
        this.output.note(f"the newest build could not be learned: {libs.latest_error}")


@app.command("list", cls=KawaiCommand)
def list_(context: typer.Context) -> None:
    """List the installed builds."""
    from kawai_tools.operations.libs import LIBS_SHOW, LibsRequest  # noqa: PLC0415

    this = invocation(context)
    found = cast("Libs", run(this, LIBS_SHOW, LibsRequest(latest=False))).installed
    if not found:
        this.output.note("no builds are installed yet; kawai libs pull gets one")
    this.output.payload(found, lambda rows: _table(this.output, rows))


@app.command(cls=KawaiCommand)
def available(context: typer.Context, version: Offered = None) -> None:
    """List the builds that a version, or the newest one, offers."""
    from kawai_tools.operations.libs import LIBS_AVAILABLE, AvailableRequest  # noqa: PLC0415

    this = invocation(context)
    offered = cast("Available", run(this, LIBS_AVAILABLE, AvailableRequest(version)))
    this.output.payload(offered, lambda found: _offered(this.output, found))


@app.command(cls=KawaiCommand)
def pull(  # noqa: PLR0913, PLR0917 - one parameter for each thing that can be typed
    context: typer.Context,
    version: Offered = None,
    channel: Annotated[
        str | None, typer.Option(metavar="NAME", help="nightly (every build) or stable.")
    ] = None,
    processor: ProcessorOption = None,
    arch: ArchOption = None,
    system: OsOption = None,
    no_activate: Annotated[
        bool, typer.Option("--no-activate", help="Install it, but go on using the other.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Fetch and install it again.")] = False,
    allow_unverified: Annotated[
        bool,
        typer.Option(
            "--allow-unverified",
            help="Run a build that has no digest: nothing tells then whether it is what was published.",
        ),
    ] = False,
    dry_run: DryRun = False,
    limit_rate: LimitRate = None,
    connections: Connections = None,
) -> None:
    """Install a build of llama.cpp, try it, and use it. Without VERSION the newest for this machine."""
    from kawai_tools.cli.following import build_ending, follow_pull  # noqa: PLC0415
    from kawai_tools.operations.libs import LIBS_PULL, LibsPullRequest  # noqa: PLC0415

    this = invocation(context)
    request = LibsPullRequest(
        version=version,
        channel=channel,
        processor=processor,
        arch=arch,
        os=system,
        activate=not no_activate,
        force=force,
        allow_unverified=allow_unverified,
        dry_run=dry_run,
        limit_rate=limit_rate,
        connections=connections,
    )
    this.keep_log()
    answer = run(this, LIBS_PULL, request)
    if dry_run:
        this.output.payload(cast("LibsPlanPayload", answer), lambda plan: _planned(this.output, plan))
        return
    before: list[str | None] = []

    def told(event: Event) -> None:
        if isinstance(event, LibsPullEvent) and not before:
            before.append(event.current)
            _announce(this, event)

    last = follow_pull(this, cast("Feed[Event]", answer), told)
    if isinstance(last, LibsPullEvent):
        this.output.result(build_ending(last, before[0] if before else None))


def _announce(this: Invocation, event: LibsPullEvent) -> None:
    """For which machine and why, which version and where from."""
    this.output.note(f"{event.os}/{event.arch}/{event.processor} ({event.reason})")
    if event.channel is not None:
        this.output.note(f"{event.version} is the newest of the channel {event.channel}")


@app.command(cls=KawaiCommand)
def use(context: typer.Context, version: Version, processor: ProcessorOption = None) -> None:
    """Use another installed build. Models that are loaded stay on theirs."""
    from kawai_tools.operations.libs import LIBS_USE, UseRequest  # noqa: PLC0415

    this = invocation(context)
    before = _current(this)
    _switched(this, before, cast("Libs", run(this, LIBS_USE, UseRequest(version, processor))))


@app.command(cls=KawaiCommand)
def rollback(context: typer.Context) -> None:
    """Use the build before this one again."""
    from kawai_tools.contract import NoRequest  # noqa: PLC0415
    from kawai_tools.operations.libs import LIBS_ROLLBACK  # noqa: PLC0415

    this = invocation(context)
    before = _current(this)
    _switched(this, before, cast("Libs", run(this, LIBS_ROLLBACK, NoRequest())))


def _current(this: Invocation) -> str | None:
    """What is active, for people to be told of; ``--json`` needs no such question."""
    from kawai_tools.operations.libs import LIBS_SHOW, LibsRequest  # noqa: PLC0415

    return None if this.output.json else cast("Libs", run(this, LIBS_SHOW, LibsRequest(latest=False))).current


def _switched(this: Invocation, before: str | None, libs: "Libs") -> None:
    now = libs.current
    words = (
        f"{now} is already active"
        if now == before
        else f"active: {now}" + (f" (was {before})" if before else "")
    )
    this.output.payload(libs, lambda _: f"{words}\n")


@app.command(cls=KawaiCommand)
def rm(
    context: typer.Context,
    version: Version,
    processor: ProcessorOption = None,
    arch: ArchOption = None,
    system: OsOption = None,
) -> None:
    """Remove an installed build, before one for another machine this one's. Does not ask."""
    from kawai_tools.operations.libs import LIBS_REMOVE, LibsRemoveRequest  # noqa: PLC0415

    this = invocation(context)
    run(this, LIBS_REMOVE, LibsRemoveRequest(version, processor, arch, system))
    this.output.note(f"removed {version}")


# what people see


def _shown(output: Output, libs: "Libs") -> str:
    pairs = [
        ("Machine", f"{libs.os or '?'}/{libs.arch or '?'}/{libs.processor} ({libs.reason})"),
        ("Newest", f"{libs.latest or 'not known'} ({libs.channel})"),
        ("Active", libs.current or "none; kawai libs pull gets one"),
        ("Before", libs.previous or "-"),
    ]
    facts = text.facts([(name, safe(value)) for name, value in pairs])
    return facts + (f"\n{_table(output, libs.installed)}" if libs.installed else "")


def _table(output: Output, rows: "list[BundleRow]") -> str:
    columns = (
        Column("VERSION"),
        Column("PLATFORM"),
        Column("SIZE", right=True),
        Column("INSTALLED"),
        Column("ACTIVE"),
        Column("PROBE", shrinks=True),
    )
    cells = [
        (
            row.version,
            f"{row.os}/{row.arch}/{row.processor}",
            text.size(row.size),
            output.ago(row.installed_at),
            "yes" if row.active else "-",
            {True: "ok", False: "failed", None: "not tried"}[row.probe.ok],
        )
        for row in rows
    ]
    return output.table(columns, cells) if cells else ""


def _offered(output: Output, found: "Available") -> str:
    columns = (
        Column("PLATFORM"),
        Column("VARIANT"),
        Column("SIZE", right=True),
        Column("HERE"),
        Column("FILES", shrinks=True),
    )
    cells = [
        (
            f"{build.os}/{build.arch}/{build.processor}",
            build.variant or "-",
            text.size(sum(asset.size for asset in build.assets)),
            "chosen" if build.chosen else "-",
            ", ".join(asset.name for asset in build.assets),
        )
        for build in found.builds
    ]
    return f"{safe(found.version)}\n" + output.table(columns, cells)


def _planned(output: Output, plan: "LibsPlanPayload") -> str:
    if plan.exists:
        return f"{safe(plan.id)} is already installed; nothing would be fetched\n"
    columns = (Column("FILE", shrinks=True), Column("SIZE", right=True), Column("HERE", right=True))
    rows = [
        (each.path, text.size(each.size), text.size(each.have) if each.have else "-") for each in plan.files
    ]
    pairs = [("Version", safe(plan.id)), ("Needed", text.size(plan.needed)), ("Free", text.size(plan.free))]
    return output.table(columns, rows) + "\n" + text.facts(pairs)
