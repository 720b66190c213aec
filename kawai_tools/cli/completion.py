"""What the shell offers after TAB."""

import contextlib
import re

import typer

from kawai_tools.cli.invocation import invocation

_PLAIN = r"[\w.+@:/,=-]+"
"""What a shell takes as it is: a name comes from strangers, and is pasted into a command line."""


def versions(context: typer.Context, incomplete: str) -> list[str]:
    """The installed builds whose version begins so; none where anything is amiss."""
    found: list[str] = []
    with contextlib.suppress(Exception):  # as below
        found = [record.version for record in invocation(context).workspace.bundles.all()]
    return [
        each for each in dict.fromkeys(found) if each.startswith(incomplete) and re.fullmatch(_PLAIN, each)
    ]


def entry_ids(context: typer.Context, incomplete: str) -> list[str]:
    """The ids of the catalog that begin so; none where anything is amiss."""
    found: list[str] = []
    with contextlib.suppress(Exception):  # as below
        found = invocation(context).workspace.catalog.ids()
    return [each for each in found if each.startswith(incomplete)]


def model_ids(context: typer.Context, incomplete: str) -> list[str]:
    """The installed models whose id begins so; none where anything is amiss."""
    found: list[str] = []
    with contextlib.suppress(Exception):  # a shell would show whatever went wrong as if it were a word
        found = invocation(context).workspace.models.ids()
    return [each for each in found if each.startswith(incomplete) and re.fullmatch(_PLAIN, each)]
