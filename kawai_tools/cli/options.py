"""Options that every pull takes, whatever it pulls."""

from typing import Annotated

import typer

Force = Annotated[bool, typer.Option("--force", help="Ask the hub again and replace what has changed.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be fetched.")]
LimitRate = Annotated[str | None, typer.Option(metavar="RATE", help="Bytes per second at most, such as 20M.")]
Connections = Annotated[int | None, typer.Option(metavar="N", help="Connections at most, from 1 to 64.")]
