"""``kawai doctor``: what works, what does not, and what to do."""

from typing import TYPE_CHECKING, cast

import typer

from kawai_tools.cli import text
from kawai_tools.cli.groups import LAZY, KawaiCommand
from kawai_tools.cli.invocation import invocation
from kawai_tools.cli.running import run
from kawai_tools.errors import EXIT_FAILURE

if TYPE_CHECKING:
    from kawai_tools.doctor import Check

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(cls=KawaiCommand, help=LAZY["doctor"])
def doctor(context: typer.Context) -> None:
    """Look at everything; the exit code is 1 if anything fails."""
    from kawai_tools.contract import NoRequest  # noqa: PLC0415 - help needs none
    from kawai_tools.operations.doctor import DOCTOR  # noqa: PLC0415 - help needs none

    this = invocation(context)
    found = cast("list[Check]", run(this, DOCTOR, NoRequest()))
    this.output.payload(found, _shown)
    if any(each.status == "fail" for each in found):
        raise typer.Exit(EXIT_FAILURE)


def _shown(found: "list[Check]") -> str:
    width = max(len(each.check) for each in found)
    lines = []
    for each in found:
        lines.append(f"{each.status:<4}  {text.safe(each.check):<{width}}  {text.safe(each.detail)}\n")
        if each.fix and each.status != "ok":
            lines.append(f"{'':<4}  {'':<{width}}  to do: {text.safe(each.fix)}\n")
    return "".join(lines)
