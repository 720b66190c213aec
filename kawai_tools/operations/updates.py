"""The rows that keep what is installed current."""

import time
from typing import TYPE_CHECKING

import msgspec

from kawai_tools.catalog.entries import CatalogUpdate
from kawai_tools.contract import Level, NoRequest, Operation, Payload, Request, Stream
from kawai_tools.errors import InvalidBody
from kawai_tools.events import Event, ModelPullEvent
from kawai_tools.libs.bundle import LibsNews
from kawai_tools.models.updating import UpdatePlan
from kawai_tools.models.upstream import OutdatedRow, from_hubs, outdated
from kawai_tools.operations.libs import LibsRequest, show_libs
from kawai_tools.operations.pace import Connections, Rate, check_connections, rate_of
from kawai_tools.refs import parse_model
from kawai_tools.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kawai_tools.models.records import Entry
    from kawai_tools.transfer.pulls import Feed


class UpdateRequest(Request, frozen=True, kw_only=True):
    """Which models are to be updated; ``None``: all that came from a hub."""

    models: list[str] | None = None
    dry_run: bool = False
    limit_rate: Rate | None = None
    connections: Connections | None = None


class Outdated(msgspec.Struct, frozen=True, kw_only=True):
    """All that may be replaced by something newer."""

    models: list[OutdatedRow]
    libs: LibsNews
    catalogs: list[CatalogUpdate]


def _models(workspace: Workspace, _: NoRequest) -> list[OutdatedRow]:
    with workspace.comparing.one():
        return outdated(workspace.models, workspace.comparison())


def _outdated(workspace: Workspace, request: NoRequest) -> Outdated:
    return Outdated(
        models=_models(workspace, request),
        libs=LibsNews.of(show_libs(workspace, LibsRequest())),
        catalogs=workspace.subscriptions.check(),
    )


def _update(workspace: Workspace, request: UpdateRequest) -> "Feed[Event] | list[UpdatePlan]":
    from kawai_tools.models.updating import Updater  # noqa: PLC0415 - what only shows updates nothing
    from kawai_tools.operations.fit import fit_of_plan  # noqa: PLC0415
    from kawai_tools.transfer.series import Series  # noqa: PLC0415

    begun = time.monotonic()
    check_connections(request.connections)
    pace = workspace.puller.pace_of(request.connections, rate_of(request.limit_rate))
    updater = Updater(workspace.puller, workspace.comparison(), workspace.catalog.pins(), pace)
    entries = _meant(workspace, request.models)
    if from_hubs(entries):
        workspace.hub.require_allowed()
    if request.dry_run:
        return updater.plans(entries, lambda plan: fit_of_plan(workspace, plan, begun, listed=False))
    return Series(workspace.pulls, updater.jobs(entries), belongs_to_follower=False).start()


def _meant(workspace: Workspace, words: list[str] | None) -> "Sequence[Entry]":
    if words is None:
        workspace.models.recover()
        return from_hubs(workspace.models.index.all())
    if not words:
        raise InvalidBody("models names none", "name at least one, or leave it out to update all")
    found = [workspace.models.find(parse_model(each)) for each in words]
    return list({entry.record.path: entry for entry in found}.values())


MODELS_OUTDATED = Operation(
    name="models.outdated",
    method="GET",
    path="/v1/models/outdated",
    request=NoRequest,
    result=Payload(list[OutdatedRow]),
    level=Level.READ,
    run=_models,
    waits=True,
    patience=None,
    summary="Compare the models that came from a hub with what it holds now",
)
MODELS_UPDATE = Operation(
    name="models.update",
    method="POST",
    path="/v1/models/update",
    request=UpdateRequest,
    result=Stream(ModelPullEvent, list[UpdatePlan], unless="dry_run", many=True),
    level=Level.ADMIN,
    run=_update,
    waits=True,
    patience=None,
    summary="Replace models by what their revisions name now",
)
OUTDATED = Operation(
    name="outdated",
    method="GET",
    path="/v1/outdated",
    request=NoRequest,
    result=Payload(Outdated),
    level=Level.READ,
    run=_outdated,
    waits=True,
    patience=None,
    summary="Tell what has a newer version: models, llama.cpp, catalogs",
)
