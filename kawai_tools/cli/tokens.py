"""``kawai tokens``: who may use a server that asks for tokens."""

from typing import TYPE_CHECKING, Annotated, cast

import typer

from kawai_tools.cli import text
from kawai_tools.cli.groups import LAZY, KawaiCommand, group
from kawai_tools.cli.invocation import invocation
from kawai_tools.cli.output import Output
from kawai_tools.cli.running import run
from kawai_tools.cli.text import Column

if TYPE_CHECKING:
    from kawai_tools.tokens import NewToken, TokenRow

app = group(LAZY["tokens"])


@app.command(cls=KawaiCommand)
def create(
    context: typer.Context,
    admin: Annotated[
        bool, typer.Option("--admin", help="May change things too: pull, remove, load, make tokens.")
    ] = False,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Whom or what it is for.")] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long it is good for: 90m, 12h, 30d, 4w.")
    ] = None,
) -> None:
    """Make a token and print it, this once. Nobody can show it again."""
    from kawai_tools.operations.tokens import TOKENS_CREATE, TokenCreateRequest  # noqa: PLC0415

    this = invocation(context)
    request = TokenCreateRequest(name=name, role="admin" if admin else "user", expires=expires)
    made = cast("NewToken", run(this, TOKENS_CREATE, request))
    until = f"until {text.moment(made.expires_at)}" if made.expires_at else "until it is revoked"
    this.output.note(f"{made.role} token {made.id}, good {until}; it is shown only now:")
    this.output.payload(made, lambda found: f"{found.token}\n")


@app.command("list", cls=KawaiCommand)
def list_(context: typer.Context) -> None:
    """List the tokens. What they are is known to their holders only."""
    from kawai_tools.contract import NoRequest  # noqa: PLC0415
    from kawai_tools.operations.tokens import TOKENS_LIST  # noqa: PLC0415

    this = invocation(context)
    found = cast("list[TokenRow]", run(this, TOKENS_LIST, NoRequest()))
    if not found:
        this.output.note("there are no tokens; kawai tokens create makes one")
    this.output.payload(found, lambda rows: _table(this.output, rows) if rows else "")


@app.command(cls=KawaiCommand)
def revoke(
    context: typer.Context,
    token: Annotated[str, typer.Argument(metavar="ID", help="A token's id, as tokens list shows it.")],
) -> None:
    """Make a token useless from now on. Does not ask."""
    from kawai_tools.operations.tokens import TOKENS_REVOKE, TokenIdRequest  # noqa: PLC0415

    this = invocation(context)
    run(this, TOKENS_REVOKE, TokenIdRequest(token))
    this.output.note(f"revoked {token}")


def _table(output: Output, rows: "list[TokenRow]") -> str:
    columns = (
        Column("ID"),
        Column("NAME", shrinks=True),
        Column("ROLE"),
        Column("CREATED"),
        Column("EXPIRES"),
        Column("USED"),
    )
    shown = [
        (
            row.id,
            row.name or "-",
            row.role,
            output.ago(row.created_at),
            _expiry(output, row),
            output.ago(row.last_used),
        )
        for row in rows
    ]
    return output.table(columns, shown)


def _expiry(output: Output, row: "TokenRow") -> str:
    if row.expires_at is None:
        return "never"
    return "expired" if row.expires_at <= output.now else f"{row.expires_at:%Y-%m-%d %H:%M}"
