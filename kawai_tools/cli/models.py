"""``kawai models``: the installed models."""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, cast

import typer

from kawai_tools.cli import adoption, showing, updates
from kawai_tools.cli.completion import model_ids
from kawai_tools.cli.groups import LAZY, KawaiCommand, group
from kawai_tools.cli.invocation import invocation
from kawai_tools.cli.options import Connections, DryRun, Force, LimitRate
from kawai_tools.cli.running import ask, run, run_or_none
from kawai_tools.errors import OUTCOMES, ErrorType, InUse, KawaiError, UsageError

if TYPE_CHECKING:
    from kawai_tools.contract import Operation
    from kawai_tools.events import Event
    from kawai_tools.models.model import LoadedModel, ModelDetails, ModelList
    from kawai_tools.operations.models import ModelRequest
    from kawai_tools.remote.feed import RemoteFeed
    from kawai_tools.transfer.pulls import Feed

app = group(LAZY["models"])

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="An installed model, as models list names it.", autocompletion=model_ids
    ),
]
Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...", help="Installed models, as models list names them.", autocompletion=model_ids
    ),
]
PULL_EXAMPLES = """
Examples:

\b
kawai models pull unsloth/Qwen3-0.6B-GGUF:Q8_0
kawai models pull https://huggingface.co/OWNER/REPO/resolve/main/MODEL.gguf
kawai models pull ggml-org/gemma-3-4b-it-GGUF --proj none --dry-run
"""


@app.command("list", cls=KawaiCommand)
def list_(context: typer.Context) -> None:
    """List the installed models."""
    from kawai_tools.contract import NoRequest  # noqa: PLC0415 - help needs none
    from kawai_tools.operations.models import MODELS_LIST  # noqa: PLC0415 - help needs none

    this = invocation(context)
    models = cast("ModelList", run(this, MODELS_LIST, NoRequest()))
    if not models.data and not this.output.json:
        this.output.note("no models are installed yet; kawai models pull OWNER/REPO gets one")
        return
    this.output.payload(models, lambda found: showing.models(this.output, found))


@app.command(cls=KawaiCommand)
def show(
    context: typer.Context,
    model: Model,
    metadata: Annotated[
        bool, typer.Option("--metadata", help="Show all metadata of the model's file too.")
    ] = False,
) -> None:
    """Show what is known of an installed model."""
    from kawai_tools.operations.models import MODELS_SHOW, ModelRequest  # noqa: PLC0415

    this = invocation(context)
    details = cast("ModelDetails", run(this, MODELS_SHOW, ModelRequest(model)))
    this.output.payload(details, lambda found: showing.details(this.output, found, metadata=metadata))


@app.command(cls=KawaiCommand, epilog=PULL_EXAMPLES)
def pull(  # noqa: PLR0913, PLR0917 - one parameter for each thing that can be typed
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="OWNER/REPO, OWNER/REPO:QUANT, or the address of a GGUF file; any shard stands for its set.",
        ),
    ],
    proj_url: Annotated[
        str | None,
        typer.Argument(metavar="[PROJ_URL]", help="The projection that goes with it.", show_default=False),
    ] = None,
    proj: Annotated[
        str | None,
        typer.Option(metavar="URL|none", help="The projection, or none even where the repository has one."),
    ] = None,
    force: Force = False,
    dry_run: DryRun = False,
    limit_rate: LimitRate = None,
    connections: Connections = None,
) -> None:
    """Pull a model from a hub or an address. What was begun before is gone on with."""
    from kawai_tools.cli.following import end_pull  # noqa: PLC0415
    from kawai_tools.operations.models import MODELS_PULL, PullRequest  # noqa: PLC0415

    this = invocation(context)
    request = PullRequest(
        source,
        _projection(proj_url, proj),
        force=force,
        dry_run=dry_run,
        limit_rate=limit_rate,
        connections=connections,
    )
    this.keep_log()
    end_pull(this, run(this, MODELS_PULL, request))


def _projection(positional: str | None, option: str | None) -> str | None:
    if positional is not None and option is not None and positional != option:
        raise UsageError("two projections are named", "give it once, as the second argument or with --proj")
    return option if positional is None else positional


@app.command(cls=KawaiCommand)
def ps(context: typer.Context) -> None:
    """List the models that kawai serve has loaded."""
    from kawai_tools.contract import NoRequest  # noqa: PLC0415
    from kawai_tools.operations.models import MODELS_PS  # noqa: PLC0415

    this = invocation(context)
    without = "no kawai server runs on this home, so no model is loaded; kawai serve starts one"
    loaded = cast("list[LoadedModel]", run_or_none(this, MODELS_PS, NoRequest(), without))
    this.output.payload(loaded, lambda found: showing.loaded(this.output, found))


@app.command(cls=KawaiCommand)
def load(context: typer.Context, model: Model) -> None:
    """Load a model into kawai serve, so that the first question to it needs not wait."""
    from kawai_tools.operations.models import MODELS_LOAD, LoadRequest  # noqa: PLC0415

    this = invocation(context)
    this.output.waiting(f"loading {model} ...")
    loaded = cast("LoadedModel", run(this, MODELS_LOAD, LoadRequest(model)))
    this.output.payload(loaded, lambda found: showing.loaded(this.output, [found]))


@app.command(cls=KawaiCommand)
def unload(
    context: typer.Context,
    model: Model,
    force: Annotated[
        bool, typer.Option("--force", help="Wait ten seconds at most for answers under way.")
    ] = False,
) -> None:
    """Unload a model from kawai serve, once nobody uses it."""
    from kawai_tools.operations.models import MODELS_UNLOAD, RemoveRequest  # noqa: PLC0415

    this = invocation(context)
    this.output.waiting(f"unloading {model}, once what it answers has ended ...")
    try:
        run(this, MODELS_UNLOAD, RemoveRequest(model, force))
    except KeyboardInterrupt:
        this.output.note("kawai serve goes on unloading it; --force waits for answers ten seconds at most")
        raise
    this.output.note(f"unloaded {model}")


@app.command(cls=KawaiCommand)
def index(context: typer.Context) -> None:
    """Rebuild the index from what is on disk. Finds models that were put there by hand."""
    from kawai_tools.contract import NoRequest  # noqa: PLC0415
    from kawai_tools.operations.models import MODELS_INDEX  # noqa: PLC0415

    this = invocation(context)
    run(this, MODELS_INDEX, NoRequest())
    this.output.note("the index is up to date; kawai models list shows it")


@app.command(cls=KawaiCommand)
def rm(
    context: typer.Context,
    model: Model,
    force: Annotated[bool, typer.Option("--force", help="End what uses the model first.")] = False,
) -> None:
    """Remove an installed or partly pulled model, also a protected one. Does not ask."""
    from kawai_tools.operations.models import MODELS_REMOVE, RemoveRequest  # noqa: PLC0415

    this = invocation(context)
    request = RemoveRequest(model, force)
    try:
        run(this, MODELS_REMOVE, request)
    except InUse:
        if not force or this.is_remote:
            raise
        ask(this, MODELS_REMOVE, request)  # what uses it can only be ended by its owner
    this.output.note(f"removed {model}")


@app.command(cls=KawaiCommand)
def protect(context: typer.Context, models: Models) -> None:
    """Keep kawai prune off models, for good. models rm removes them all the same."""
    from kawai_tools.operations.models import MODELS_PROTECT  # noqa: PLC0415

    _each(context, models, MODELS_PROTECT, "kawai prune leaves {} alone from now on")


@app.command(cls=KawaiCommand)
def unprotect(context: typer.Context, models: Models) -> None:
    """Let kawai prune take models again."""
    from kawai_tools.operations.models import MODELS_UNPROTECT  # noqa: PLC0415

    _each(context, models, MODELS_UNPROTECT, "{} is protected no more")


def _each(context: typer.Context, models: list[str], row: "Operation[ModelRequest]", done: str) -> None:
    """Carry out a row for one model after the other; the exit code is that of the first that failed."""
    from kawai_tools.operations.models import ModelRequest  # noqa: PLC0415

    this, codes = invocation(context), []
    for model in dict.fromkeys(models):
        try:
            run(this, row, ModelRequest(model))
        except KawaiError as error:
            this.output.error(error.info)
            codes.append(error.exit_code)
        else:
            this.output.note(done.format(model))
    raise typer.Exit(next(iter(codes), 0))


@app.command(cls=KawaiCommand)
def verify(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]", help="Only this one.", autocompletion=model_ids, show_default=False
        ),
    ] = None,
) -> None:
    """Hash the files of one model, or of all, and compare. The exit code is 7 if any is not as it was."""
    from kawai_tools.cli import following  # noqa: PLC0415
    from kawai_tools.operations.models import MODELS_VERIFY, VerifyRequest  # noqa: PLC0415

    this = invocation(context)
    this.keep_log()
    feed = cast("Feed[Event] | RemoteFeed", run(this, MODELS_VERIFY, VerifyRequest(model)))
    with following.stoppable() if not this.is_remote else nullcontext(following.Stop()) as stop:
        codes = [
            showing.verified(this.output, event)
            for event in following.finals(this, feed, stop)
            if stop.signal is None
        ]
    failed = next((code for code in codes if code), 0)
    if failed and model is None:
        failed = OUTCOMES[ErrorType.INTEGRITY].exit_code
    raise typer.Exit(stop.exit_code if stop.signal else failed)


app.command(cls=KawaiCommand)(updates.outdated)
app.command(cls=KawaiCommand, epilog=updates.UPDATE_EXAMPLES)(updates.update)
app.command(cls=KawaiCommand, epilog=adoption.ADOPT_EXAMPLES)(adoption.adopt)
app.command(cls=KawaiCommand)(adoption.scan)
