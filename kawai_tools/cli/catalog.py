"""``kawai catalog``: choose a model from a list, and pull it."""

from typing import TYPE_CHECKING, Annotated, cast

import typer

from kawai_tools.cli import text
from kawai_tools.cli.completion import entry_ids
from kawai_tools.cli.groups import LAZY, KawaiCommand, group
from kawai_tools.cli.invocation import Invocation, invocation
from kawai_tools.cli.options import Connections, DryRun, Force, LimitRate
from kawai_tools.cli.output import Output
from kawai_tools.cli.running import run
from kawai_tools.cli.text import Column, safe
from kawai_tools.cli.verdict import short

if TYPE_CHECKING:
    from kawai_tools.catalog.entries import CatalogDetails, CatalogFile, CatalogRow, CatalogUpdate
    from kawai_tools.fit import Fit
    from kawai_tools.models.model import Capabilities

app = group(LAZY["catalog"])

Id = Annotated[
    str, typer.Argument(metavar="ID", help="A model, as catalog list names it.", autocompletion=entry_ids)
]
_DIGEST = 12
_FITS = {"fits": "yes", "fits_context": "less context", "fits_layers": "partly", "no": "no"}


@app.command("list", cls=KawaiCommand)
def list_(
    context: typer.Context,
    category: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this category, or those that begin so (embed).")
    ] = None,
    search: Annotated[
        str | None, typer.Option(metavar="WORDS", help="Only those whose id, family or description has them.")
    ] = None,
    capability: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="chat, images, audio, reasoning, tooling, embeddings, rerank, ..."),
    ] = None,
    downloaded: Annotated[
        bool | None,
        typer.Option("--downloaded/--not-downloaded", help="Only those that are installed, or are not."),
    ] = None,
    fit: Annotated[bool, typer.Option("--fit", help="Tell by its size whether each will run here.")] = False,
) -> None:
    """List the models that the catalog offers."""
    from kawai_tools.operations.catalog import CATALOG_LIST, CatalogRequest  # noqa: PLC0415 - help needs none

    this = invocation(context)
    request = CatalogRequest(
        category=category, search=search, capability=capability, downloaded=downloaded, fit=fit
    )
    rows = cast("list[CatalogRow]", run(this, CATALOG_LIST, request))
    if not rows and request != CatalogRequest(fit=fit):
        this.output.note("no model of the catalog is like that; kawai catalog list shows all")
    this.output.payload(rows, lambda found: _table(this.output, found) if found else "")
    _tell_problems(this)


def _tell_problems(this: Invocation) -> None:
    if this.is_remote:  # whoever runs that one is told there
        return
    for problem in this.workspace.catalog.problems():
        this.output.warn(f"{'left out: ' if problem.refused else ''}{problem}")


@app.command(cls=KawaiCommand)
def show(context: typer.Context, model: Id) -> None:
    """Show one model of the catalog, and whether there is room for it."""
    from kawai_tools.operations.catalog import CATALOG_SHOW, EntryRequest  # noqa: PLC0415

    this = invocation(context)
    details = cast("CatalogDetails", run(this, CATALOG_SHOW, EntryRequest(model)))
    this.output.payload(details, lambda found: _shown(this.output, found))


@app.command(cls=KawaiCommand)
def pull(
    context: typer.Context,
    model: Id,
    force: Force = False,
    dry_run: DryRun = False,
    limit_rate: LimitRate = None,
    connections: Connections = None,
) -> None:
    """Pull a model of the catalog. What was begun before is gone on with."""
    from kawai_tools.cli.following import end_pull  # noqa: PLC0415
    from kawai_tools.operations.catalog import CATALOG_PULL, CatalogPullRequest  # noqa: PLC0415

    this = invocation(context)
    request = CatalogPullRequest(
        model, force=force, dry_run=dry_run, limit_rate=limit_rate, connections=connections
    )
    this.keep_log()
    end_pull(this, run(this, CATALOG_PULL, request))


@app.command(cls=KawaiCommand)
def update(context: typer.Context) -> None:
    """Fetch the catalogs that are subscribed to. The exit code is that of the first failure."""
    from kawai_tools.contract import NoRequest  # noqa: PLC0415
    from kawai_tools.errors import from_info  # noqa: PLC0415
    from kawai_tools.operations.catalog import CATALOG_UPDATE  # noqa: PLC0415

    this = invocation(context)
    updates = cast("list[CatalogUpdate]", run(this, CATALOG_UPDATE, NoRequest()))
    if not updates:
        this.output.note("no catalogs are subscribed to; the setting catalogs (KAWAI_CATALOGS) names them")
    this.output.payload(updates, lambda found: "".join(map(_updated, found)))
    failed = [each.error for each in updates if each.error is not None]
    for error in () if this.output.json else failed:
        this.output.error(error)
    if failed:
        raise typer.Exit(from_info(failed[0]).exit_code)


# what people see


def _table(output: Output, rows: "list[CatalogRow]") -> str:
    tells = any(row.fit for row in rows)
    columns = (
        Column("ID"),
        Column("CATEGORY", shrinks=True, keeps_start=True),
        Column("SIZE", right=True),
        Column("HERE"),
        *((Column("FITS"),) if tells else ()),
        Column("CAPABILITIES", shrinks=True, keeps_start=True),
    )
    shown = [
        (
            row.id,
            row.category,
            text.size(row.files.about),
            "✓" if row.downloaded else "",
            *((_fits(row.fit),) if tells else ()),
            _capabilities(row.capabilities),
        )
        for row in rows
    ]
    return output.table(columns, shown)


def _fits(found: "Fit | None") -> str:
    return "?" if found is None else _FITS[found.verdict]


def _capabilities(can: "Capabilities", *, streaming: bool = False) -> str:
    """What the model can be asked; that a chat streams goes without saying in a table."""
    named = ("images", "audio", *(("streaming",) if streaming else ()), "reasoning", "tooling")
    return ", ".join([can.endpoint, *(name for name in named if getattr(can, name))])


def _shown(output: Output, model: "CatalogDetails") -> str:
    metadata = model.metadata
    created = "-" if metadata.created is None else text.day(metadata.created)
    kind = ", ".join(filter(None, (model.gguf_arch, model.architecture)))
    facts = [
        ("Model", model.id),
        ("Category", model.category),
        ("By", f"{model.owned_by} ({model.model_family})"),
        ("Architecture", kind or "-"),
        ("Capabilities", _capabilities(model.capabilities, streaming=True)),
        (
            "License",
            f"{metadata.license or '-'}{', gated: the hub asks for a token' if model.gated_model else ''}",
        ),
        ("Created", created),
        ("Web page", model.web_page or "-"),
        *((("Collections", ", ".join(metadata.collections)),) if metadata.collections else ()),
        *((("Settings", _config(model)),) if _config(model) else ()),
        ("Catalog", model.catalog),
        ("Installed", _installed(model)),
    ]
    room = [
        ("Total", text.size(model.files.about)),
        ("Disk", _room(model.needed, model.free)),
        ("Memory", short(model.fit)),
    ]
    parts = [
        f"{output.wrapped(metadata.description)}\n" if metadata.description else "",
        text.facts([(name, safe(value)) for name, value in facts]),
        _files(output, model),
        text.facts(room),
        f"kawai catalog pull {model.id}\n",
    ]
    return "\n".join(part for part in parts if part)


def _config(model: "CatalogDetails") -> str:
    return ", ".join(f"{name} {value}" for name, value in model.config.said.items())


def _installed(model: "CatalogDetails") -> str:
    return ("yes, verified" if model.validated else "yes") if model.downloaded else "no"


def _room(wanted: int | None, free: int) -> str:
    """Whether so many bytes go onto the disk."""
    if wanted is None:
        return f"not known ({text.size(free)} free)"
    if wanted == 0:
        return f"nothing more is needed ({text.size(free)} free)"
    verdict = "fits" if wanted <= free else "does not fit"
    return f"{verdict}: {text.size(wanted)} of {text.size(free)} free"


def _files(output: Output, model: "CatalogDetails") -> str:
    columns = (Column("FILE", shrinks=True), Column("SIZE", right=True), Column("SHA256"), Column("ROLE"))
    files = [(file, "weights") for file in model.files.model]
    files += [(model.files.proj, "projection")] if model.files.proj else []
    return output.table(columns, [_file(file, role) for file, role in files])


def _file(file: "CatalogFile", role: str) -> tuple[str, str, str, str]:
    digest = (file.sha256 or "-")[:_DIGEST]
    return (file.url.rpartition("/")[2], text.size(file.about), digest, role)


def _updated(update: "CatalogUpdate") -> str:
    news = "not updated" if update.error else "new" if update.changed else "unchanged"
    return f"{safe(update.url)}: {news}, {update.entries} entr{'y' if update.entries == 1 else 'ies'}\n"
