"""The table is whole: every row can be reached from both faces, and is described where people look."""

import re
from collections import Counter
from pathlib import Path

import pytest

from kawai_tools.contract import Level, Nothing, Operation, Payload, Request, Stream, Where
from kawai_tools.operations.table import OPERATIONS
from tests.program import Program

README = (Path(__file__).parents[1] / "README.md").read_text()
CONTRACT = {
    "models.list": ("GET", "/v1/models"),
    "models.show": ("GET", "/v1/models/{model}"),
    "models.ps": ("GET", "/v1/models/ps"),
    "models.index": ("POST", "/v1/models/index"),
    "models.pull": ("POST", "/v1/models/pull"),
    "models.rm": ("DELETE", "/v1/models/{model}"),
    "models.verify": ("POST", "/v1/models/verify"),
    "pulls.list": ("GET", "/v1/pulls"),
    "pulls.attach": ("GET", "/v1/pulls/{pull}"),
    "pulls.cancel": ("DELETE", "/v1/pulls/{pull}"),
    "catalog.list": ("GET", "/v1/catalog"),
    "catalog.filter": ("GET", "/v1/catalog/filter/{filter}"),
    "catalog.show": ("GET", "/v1/catalog/{model}"),
    "catalog.pull": ("POST", "/v1/catalog/pull/{model}"),
    "catalog.update": ("POST", "/v1/catalog/update"),
    "tokens.create": ("POST", "/v1/tokens"),
    "tokens.list": ("GET", "/v1/tokens"),
    "tokens.revoke": ("DELETE", "/v1/tokens/{id}"),
}
"""Rows that ``api.md`` names; ``load`` and ``unload`` come with the runners."""


def test_the_table_has_what_the_contract_names() -> None:
    table = {row.name: (row.method, row.path) for row in OPERATIONS}
    assert {name: table.get(name) for name in CONTRACT} == CONTRACT


def test_names_and_routes_are_unique() -> None:
    names = Counter(row.name for row in OPERATIONS)
    routes = Counter((row.method, row.path) for row in OPERATIONS if row.path)
    assert max(names.values()) == max(routes.values()) == 1


@pytest.mark.parametrize("row", OPERATIONS, ids=lambda row: row.name)
def test_a_row_is_whole(row: Operation[Request]) -> None:
    assert isinstance(row.level, Level)
    assert re.fullmatch(r"[a-z]+(\.[a-z]+)?", row.name)
    assert re.fullmatch(r"[A-Z].*[^.\s]", row.summary)
    assert isinstance(row.result, Payload | Nothing | Stream)
    assert set(row.path_fields) <= set(row.request.__struct_fields__)
    assert (row.path is None) == (row.where is Where.HERE)
    assert row.path is None or re.fullmatch(r"/v1(/[a-z]+|/\{[a-z]+\})+", row.path)


@pytest.mark.parametrize("row", OPERATIONS, ids=lambda row: row.name)
def test_who_may(row: Operation[Request]) -> None:
    """Contract, Authentication: reads are the GETs; what changes state or costs much is an admin's.

    ``fit`` reads a header from a hub that whoever asks may choose: as much as a question costs. ``doctor``
    tells of paths, and starts a build to try it.
    """
    others = {"catalog.pull": Level.CATALOG_PULL, "fit": Level.USE}.get(row.name, Level.ADMIN)
    reads = row.method == "GET" and not row.name.startswith(("tokens.", "logs", "fit", "doctor"))
    assert row.level is (Level.READ if reads else others)


def test_a_row_without_a_level_cannot_be_built() -> None:
    fields = {"name": "x.y", "method": "GET", "path": None, "request": Request, "result": Nothing()}
    with pytest.raises(TypeError, match="level"):
        Operation(**fields, run=lambda *_: None, summary="X")  # type: ignore[arg-type]


@pytest.mark.parametrize("row", [row for row in OPERATIONS if row.path], ids=lambda row: row.name)
def test_a_route_is_in_the_readme(row: Operation[Request]) -> None:
    ways = f"{row.method} {row.path}"
    assert f"`{ways}`" in README, f"README.md does not tell of {ways}"


@pytest.mark.parametrize("row", OPERATIONS, ids=lambda row: row.name)
def test_a_row_is_a_command_of_its_name(kawai: Program, row: Operation[Request]) -> None:
    words = OTHER_COMMANDS.get(row.name, row.name).split(".")
    ended = kawai(*words, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"Usage: kawai {' '.join(words)} ")


OTHER_COMMANDS = {"catalog.filter": "catalog.list"}
"""Rows that are an option of another row's command."""

NO_ROWS = {"libs.list"}
"""Commands that show a part of what another row gives."""


@pytest.mark.parametrize("noun", ["models", "pulls", "libs", "catalog", "tokens"])
def test_a_command_is_a_row_of_its_name(kawai: Program, noun: str) -> None:
    section = kawai(noun, "--help").out.partition("Commands:\n")[2].partition("\n\n")[0]
    commands = set(re.findall(r"^  (\w+) ", section, re.MULTILINE))
    assert {f"{noun}.{command}" for command in commands} - NO_ROWS == {
        row.name for row in OPERATIONS if row.name.startswith(f"{noun}.") and row.name not in OTHER_COMMANDS
    }
