"""The rows of the catalog."""

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from kawai_tools.catalog.catalog import CAPABILITIES, Query
from kawai_tools.catalog.entries import CatalogDetails, CatalogRow, CatalogUpdate
from kawai_tools.contract import Level, NoRequest, Operation, Payload, Request, Stream
from kawai_tools.errors import EntryNotFound, InvalidId
from kawai_tools.events import Event, ModelPullEvent
from kawai_tools.models.model import PlanPayload
from kawai_tools.operations.pace import Connections, Rate, check_connections, rate_of
from kawai_tools.operations.pulls import again
from kawai_tools.refs import parse_model
from kawai_tools.workspace import Workspace

if TYPE_CHECKING:
    from kawai_tools.catalog.entries import Entry
    from kawai_tools.transfer.pulls import Feed


class CatalogRequest(Request, frozen=True, kw_only=True):
    """Which entries: all conditions that are given must hold. ``fit`` tells by size whether each fits."""

    category: str | None = None
    search: str | None = None
    capability: Annotated[str, Meta(extra_json_schema={"enum": list(CAPABILITIES)})] | None = None
    downloaded: bool | None = None
    fit: bool = False


class FilterRequest(Request, frozen=True):
    """A category, or how one begins."""

    filter: str


class EntryRequest(Request, frozen=True):
    """A row about one entry."""

    model: str


class CatalogPullRequest(Request, frozen=True):
    """Which entry to pull; ``limit_rate`` is bytes per second or ``"20M"``."""

    model: str
    force: bool = False
    dry_run: bool = False
    limit_rate: Rate | None = None
    connections: Connections | None = None


def _query(request: CatalogRequest | FilterRequest) -> Query:
    if isinstance(request, FilterRequest):
        return Query(category=request.filter)
    return Query(request.category, request.search, request.capability, request.downloaded)


def _rows(workspace: Workspace, request: CatalogRequest | FilterRequest) -> list[CatalogRow]:
    rows = workspace.catalog.rows(_query(request))
    if isinstance(request, FilterRequest) or not request.fit:
        return rows
    from kawai_tools.operations.fit import fit_of_row  # noqa: PLC0415 - most lists tell of no fit

    return [msgspec.structs.replace(row, fit=fit_of_row(workspace, row)) for row in rows]


def _rows_at_hand(workspace: Workspace, request: CatalogRequest | FilterRequest) -> object | None:
    if isinstance(request, CatalogRequest) and request.fit:
        return None
    return workspace.catalog.at_hand(_query(request))


def _show(workspace: Workspace, request: EntryRequest) -> CatalogDetails:
    from kawai_tools.operations.fit import fit_of_entry  # noqa: PLC0415 - a list tells of no fit

    entry = _find(workspace, request.model)
    details = workspace.catalog.details(entry, workspace.machine.memory)
    return msgspec.structs.replace(details, fit=fit_of_entry(workspace, entry, details))


def _find(workspace: Workspace, words: str) -> "Entry":
    """The entry that is meant; a source is answered with the command that pulls it."""
    try:
        parse_model(words)
        return workspace.catalog.find(words)
    except (InvalidId, EntryNotFound) as error:
        from kawai_tools.catalog.meaning import names_source  # noqa: PLC0415 - most words are ids

        if names_source(words, workspace.settings.hub_endpoint):
            error.hint = f"that is no id of the catalog, but a source: kawai models pull {words}"
        elif isinstance(error, InvalidId):
            error.hint = "kawai catalog list shows the ids"
        raise


def _pull(workspace: Workspace, request: CatalogPullRequest) -> "Feed[Event] | PlanPayload":
    from kawai_tools.catalog.planning import job_of, plan_entry  # noqa: PLC0415 - a list plans nothing

    begun = time.monotonic()
    check_connections(request.connections)
    rate = rate_of(request.limit_rate)
    entry = _find(workspace, request.model)
    has_token = bool(workspace.listed_outbound.credentials)
    plan = plan_entry(workspace.listed_planner, entry, force=request.force, has_token=has_token)
    if request.dry_run:
        from kawai_tools.operations.fit import fit_of_plan  # noqa: PLC0415

        return msgspec.structs.replace(plan.payload, fit=fit_of_plan(workspace, plan, begun, listed=True))
    job = workspace.listed_puller.job(plan, connections=request.connections, limit_rate=rate)
    job = job_of(entry, job, has_token=has_token)
    return workspace.pulls.start(replace(job, again=again(CATALOG_PULL, request)))


def _update(workspace: Workspace, _: NoRequest) -> list[CatalogUpdate]:
    return workspace.subscriptions.update()


CATALOG_LIST = Operation(
    name="catalog.list",
    method="GET",
    path="/v1/catalog",
    request=CatalogRequest,
    result=Payload(list[CatalogRow]),
    level=Level.READ,
    run=_rows,
    at_hand=_rows_at_hand,
    summary="List the models that the catalog offers",
)
CATALOG_FILTER = Operation(
    name="catalog.filter",
    method="GET",
    path="/v1/catalog/filter/{filter}",
    request=FilterRequest,
    result=Payload(list[CatalogRow]),
    level=Level.READ,
    run=_rows,
    at_hand=_rows_at_hand,
    summary="List the models of one category",
)
CATALOG_SHOW = Operation(
    name="catalog.show",
    method="GET",
    path="/v1/catalog/{model}",
    request=EntryRequest,
    result=Payload(CatalogDetails),
    level=Level.READ,
    run=_show,
    waits=True,
    summary="Show one model of the catalog, and whether there is room for it",
)
CATALOG_PULL = Operation(
    name="catalog.pull",
    method="POST",
    path="/v1/catalog/pull/{model}",
    request=CatalogPullRequest,
    result=Stream(ModelPullEvent, PlanPayload, unless="dry_run"),
    level=Level.CATALOG_PULL,
    run=_pull,
    summary="Pull a model of the catalog",
)
CATALOG_UPDATE = Operation(
    name="catalog.update",
    method="POST",
    path="/v1/catalog/update",
    request=NoRequest,
    result=Payload(list[CatalogUpdate]),
    level=Level.ADMIN,
    run=_update,
    waits=True,
    summary="Fetch the catalogs that are subscribed to",
)
