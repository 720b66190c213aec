"""``kawai config``: the settings and where they come from."""

from typing import Any

import msgspec
import typer

from kawai_tools.cli import text
from kawai_tools.cli.groups import LAZY, LocalCommand, group
from kawai_tools.cli.invocation import invocation
from kawai_tools.cli.output import Output
from kawai_tools.cli.text import Column
from kawai_tools.settings import KEYS, Settings

app = group(LAZY["config"])


class SettingRow(msgspec.Struct, frozen=True):
    """One line of ``config show``; secrets are masked."""

    key: str
    value: Any
    source: str
    variable: str
    description: str


def rows(settings: Settings) -> list[SettingRow]:
    """Every setting, in the order of the table of settings."""
    return [
        SettingRow(name, settings.shown(name), settings.source(name), key.variables[0], key.description)
        for name, key in KEYS.items()
    ]


@app.command(cls=LocalCommand)
def show(context: typer.Context) -> None:
    """Show every setting and where it comes from. With --verbose also what each is for."""
    this = invocation(context)
    this.output.payload(rows(this.settings), lambda found: _shown(this.output, found))


@app.command(cls=LocalCommand)
def path(context: typer.Context) -> None:
    """Print the path of the configuration file. It need not exist."""
    this = invocation(context)
    this.output.payload(str(this.places.config_file), lambda found: f"{text.safe(found)}\n")


def _shown(output: Output, found: list[SettingRow]) -> str:
    columns = (Column("KEY"), Column("VALUE", shrinks=True), Column("SOURCE"))
    more = (Column("VARIABLE"), Column("DESCRIPTION"))
    cells = [(row.key, _value(row.value), row.source) for row in found]
    if not output.verbose:
        return output.table(columns, cells)
    wide = [(*cell, row.variable, row.description) for cell, row in zip(cells, found, strict=True)]
    return output.table((*columns, *more), wide)


def _value(value: object) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
