"""What the shell offers after TAB."""

import contextlib
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec
import typer

from kawai_tools.cli.invocation import invocation

if TYPE_CHECKING:
    from kawai_tools.contract import Operation, Request
    from kawai_tools.workspace import Workspace

_PLAIN = r"[\w.+@:/,=-]+"
"""What a shell takes as it is: a name comes from strangers, and is pasted into a command line."""

_PATIENCE = 2.0
"""Seconds that another kawai gets: somebody waits at the prompt."""


def versions(context: typer.Context, incomplete: str) -> list[str]:
    """The installed builds whose version begins so; none where anything is amiss."""
    from kawai_tools.operations.libs import LIBS_SHOW, LibsRequest  # noqa: PLC0415 - only after TAB

    return _found(
        context,
        incomplete,
        lambda workspace: (record.version for record in workspace.bundles.all()),
        (LIBS_SHOW, LibsRequest(latest=False)),
        lambda libs: (row.version for row in libs.installed),
    )


def entry_ids(context: typer.Context, incomplete: str) -> list[str]:
    """The ids of the catalog that begin so; none where anything is amiss."""
    from kawai_tools.operations.catalog import CATALOG_LIST, CatalogRequest  # noqa: PLC0415

    return _found(
        context,
        incomplete,
        lambda workspace: workspace.catalog.ids(),
        (CATALOG_LIST, CatalogRequest()),
        lambda rows: (row.id for row in rows),
    )


def model_ids(context: typer.Context, incomplete: str) -> list[str]:
    """The installed models whose id begins so; none where anything is amiss."""
    from kawai_tools.contract import NoRequest  # noqa: PLC0415
    from kawai_tools.operations.models import MODELS_LIST  # noqa: PLC0415

    return _found(
        context,
        incomplete,
        lambda workspace: workspace.models.ids(),
        (MODELS_LIST, NoRequest()),
        lambda models: (row.id for row in models.data),
    )


def runnable_ids(context: typer.Context, incomplete: str) -> list[str]:
    """The installed models and the ids of the catalog that begin so; none where anything is amiss."""
    found = model_ids(context, incomplete) + entry_ids(context, incomplete)
    return list(dict.fromkeys(found))


def _found(
    context: typer.Context,
    incomplete: str,
    here: "Callable[[Workspace], Iterable[str]]",
    question: "tuple[Operation[Any], Request]",
    there: Callable[[Any], Iterable[str]],
) -> list[str]:
    """The names that begin so: of this machine, or of the kawai that is named."""
    found: list[str] = []
    with contextlib.suppress(Exception):  # a shell would show whatever went wrong as if it were a word
        this = invocation(context)
        if this.is_remote:
            from kawai_tools.cli.running import ask  # noqa: PLC0415 - most names are of this machine

            row, request = question
            found = list(there(ask(this, msgspec.structs.replace(row, patience=_PATIENCE), request)))
        else:
            found = list(here(this.workspace))
    return [
        each for each in dict.fromkeys(found) if each.startswith(incomplete) and re.fullmatch(_PLAIN, each)
    ]
