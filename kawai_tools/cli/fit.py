"""``kawai fit``: whether a model will run here, before it is pulled."""

from typing import TYPE_CHECKING, Annotated, cast

import typer

from kawai_tools.cli.completion import runnable_ids
from kawai_tools.cli.groups import LAZY, KawaiCommand
from kawai_tools.cli.invocation import invocation
from kawai_tools.cli.running import run

if TYPE_CHECKING:
    from kawai_tools.fit import Fit

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

EXAMPLES = """
Examples:

\b
kawai fit unsloth/Qwen3-8B-GGUF:Q8_0
kawai fit Qwen3-0.6B-Q8_0 --context 32768
"""


@app.command(cls=KawaiCommand, help=LAZY["fit"], epilog=EXAMPLES)
def fit(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE|MODEL",
            help="An installed model, else one of the catalog, else a source.",
            autocompletion=runnable_ids,
        ),
    ],
    tokens: Annotated[
        int | None,
        typer.Option(
            "--context", metavar="N", min=1, max=1 << 31, help="Tokens of context, where not as configured."
        ),
    ] = None,
) -> None:
    """Say whether a model will run; that it will not is an answer too, and the exit code is 0."""
    from kawai_tools.cli import verdict  # noqa: PLC0415 - help needs none
    from kawai_tools.operations.fit import FIT, FitRequest  # noqa: PLC0415

    this = invocation(context)
    found = cast("Fit", run(this, FIT, FitRequest(source, tokens)))
    this.output.payload(found, verdict.told)
    if (
        tokens is not None
        and found.context is not None
        and found.context < tokens
        and found.verdict == "fits"
    ):
        this.output.note(
            f"the model has no more than {found.context} tokens of context, which is what was judged"
        )
