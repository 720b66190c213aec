"""The row that tells whether a model will run here, and how plans and entries are told the same."""

import time
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from kawai_tools.contract import Level, Operation, Payload, Request
from kawai_tools.errors import Integrity, KawaiError
from kawai_tools.fit import Fit
from kawai_tools.workspace import Workspace

if TYPE_CHECKING:
    from kawai_tools.catalog.entries import CatalogDetails, CatalogRow, Entry
    from kawai_tools.models.plan import Plan

GLANCE, _SPARE = 3.0, 0.3
"""Seconds that showing an entry waits for a hub."""

_LEAST = 1.0

Tokens = Annotated[int, Meta(ge=1, le=1 << 31)]


class FitRequest(Request, frozen=True):
    """An installed model, else one of the catalog, else a source; ``context`` in tokens of each request."""

    source: str
    context: Tokens | None = None


def _fit(workspace: Workspace, request: FitRequest) -> Fit:
    from kawai_tools.catalog.entries import Entry  # noqa: PLC0415 - help needs none of it
    from kawai_tools.catalog.meaning import meant  # noqa: PLC0415
    from kawai_tools.catalog.planning import plan_entry  # noqa: PLC0415
    from kawai_tools.models.records import Record  # noqa: PLC0415
    from kawai_tools.runners.fitting import SECONDS  # noqa: PLC0415

    endpoint, context = workspace.settings.hub_endpoint, request.context
    found = meant(
        request.source, workspace.models, workspace.catalog, endpoint, local_paths=not workspace.serves
    )
    if isinstance(found, Record):
        return workspace.fitting.installed(found, context)
    with workspace.fitting.elsewhere_at_once.one():
        if isinstance(found, Entry):
            has_token = bool(workspace.listed_outbound.credentials)
            plan = plan_entry(workspace.listed_planner, found, force=True, has_token=has_token)
            headers, defaults = workspace.listed_headers, found.row.config.said
        else:
            plan = workspace.planner.plan(request.source, None, force=True)
            headers, defaults = workspace.headers, workspace.catalog.config_of(plan.words)
        return workspace.fitting.planned(plan, headers, defaults, SECONDS, context)


def fit_of_plan(workspace: Workspace, plan: "Plan", begun: float, *, listed: bool) -> Fit | None:
    """What a dry run tells of a plan; ``begun`` (monotonic) is when it was asked for."""
    from kawai_tools.runners.fitting import SECONDS  # noqa: PLC0415
    from kawai_tools.transfer.asking import BUDGET  # noqa: PLC0415

    headers = workspace.listed_headers if listed else workspace.headers
    seconds = max(_LEAST, min(SECONDS, BUDGET - (time.monotonic() - begun)))
    return workspace.fitting.foreseen(plan, headers, workspace.catalog.config_of(plan.words), seconds)


def fit_of_entry(workspace: Workspace, entry: "Entry", shown: "CatalogDetails") -> Fit | None:
    """What is shown of an entry, without keeping anybody waiting for a hub: a guess, if it must be."""
    from kawai_tools.transfer.asking import Asked  # noqa: PLC0415

    try:
        here = workspace.models.index.by_source(entry.source) if shown.downloaded else []
        if found := next((each.record for each in here if each.present), None):
            return workspace.fitting.installed(found)
        answer = Asked(lambda: _asked(workspace, shown)).within(GLANCE + _SPARE)
    except Integrity:
        return None
    except KawaiError:
        answer = None
    return fit_of_row(workspace, shown) if answer is None else answer


def fit_of_row(workspace: Workspace, row: "CatalogRow") -> Fit | None:
    """A guess by the size of an entry, which costs nothing; ``None`` where that is not known."""
    size = row.files.about
    return None if size is None else workspace.fitting.guess(row.id, size, None, row.config.said)


def _asked(workspace: Workspace, shown: "CatalogDetails") -> Fit:
    """Judge an entry by what its files say of themselves."""
    from kawai_tools.catalog.planning import remote_of  # noqa: PLC0415
    from kawai_tools.runners.fitting import Pieces, remaining, there  # noqa: PLC0415

    left, files = remaining(GLANCE), shown.files
    hub, headers = workspace.listed_hub.within(GLANCE, attempts=1), workspace.listed_headers
    weights = [there(headers, remote_of(file, hub), left, attempts=1) for file in files.model]
    projection = there(headers, remote_of(files.proj, hub), left, attempts=1) if files.proj else None
    return workspace.fitting.elsewhere(Pieces(shown.id, weights, projection), shown.config.said)


FIT = Operation(
    name="fit",
    method="GET",
    path="/v1/fit",
    request=FitRequest,
    result=Payload(Fit),
    level=Level.USE,
    run=_fit,
    waits=True,
    summary="Say whether a model will run on this machine, before it is pulled",
)
