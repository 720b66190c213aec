"""The rows of models."""

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from kawai_tools.contract import Level, NoRequest, Nothing, Operation, Payload, Request, Stream, Where
from kawai_tools.errors import InUse, InvalidSource, LocalPath
from kawai_tools.events import Event, ModelPullEvent, VerifyEvent
from kawai_tools.models.model import LoadedModel, ModelDetails, ModelList, PlanPayload
from kawai_tools.operations.pace import Connections, Rate, check_connections, rate_of
from kawai_tools.operations.pulls import again
from kawai_tools.refs import parse_model
from kawai_tools.workspace import Workspace

if TYPE_CHECKING:
    from kawai_tools.transfer.pulls import Feed

FORCE_PATIENCE = 10.0
"""Seconds that what uses a model gets to end before it is removed by force."""


class ModelRequest(Request, frozen=True):
    """A row about one installed model."""

    model: str


class LoadRequest(Request, frozen=True):
    """``force`` loads it anew where it is loaded, so that a build that was switched to counts."""

    model: str
    force: bool = False


class RemoveRequest(Request, frozen=True):
    """``force`` ends what uses the model first."""

    model: str
    force: bool = False


class PullRequest(Request, frozen=True):
    """What to pull. ``proj_url`` may be ``"none"``; ``limit_rate`` is bytes per second or ``"20M"``."""

    model_url: str
    proj_url: str | None = None
    force: bool = False
    dry_run: bool = False
    limit_rate: Rate | None = None
    connections: Connections | None = None


class VerifyRequest(Request, frozen=True):
    """Without ``model``: all."""

    model: str | None = None


def _list(workspace: Workspace, _: NoRequest) -> ModelList:
    return ModelList(data=workspace.models.rows())


def _show(workspace: Workspace, request: ModelRequest) -> ModelDetails:
    details = workspace.models.show(parse_model(request.model))
    settings = workspace.tuning.shown(details.id, details.context_length)
    return msgspec.structs.replace(details, config=settings, frees=workspace.disk.freed_by(details))


async def _ps(workspace: Workspace, _: NoRequest) -> list[LoadedModel]:
    from kawai_tools.runners.telling import loaded_rows  # noqa: PLC0415

    return await loaded_rows(workspace.models, workspace.pool.snapshot().models)


async def _load(workspace: Workspace, request: LoadRequest) -> LoadedModel:
    import asyncio  # noqa: PLC0415 - only a server loads

    from kawai_tools.runners.pool import PATIENCE  # noqa: PLC0415
    from kawai_tools.runners.telling import loaded_rows  # noqa: PLC0415

    order = await asyncio.to_thread(workspace.orders.make, parse_model(request.model))
    if request.force:
        await workspace.pool.unload(order.id, force=True)
    state = await workspace.pool.load(order, time.monotonic() + PATIENCE)
    (row,) = await loaded_rows(workspace.models, (state,))
    return row


async def _unload(workspace: Workspace, request: RemoveRequest) -> None:
    import asyncio  # noqa: PLC0415

    ref = parse_model(request.model)
    loaded = {model.id.casefold(): model.id for model in workspace.pool.snapshot().models}
    model_id = loaded.get(str(ref).casefold())  # also one that was removed by hand
    if model_id is None:
        model_id = (await asyncio.to_thread(workspace.models.find, ref)).record.id
    await workspace.pool.unload(model_id, force=request.force)


def _index(workspace: Workspace, _: NoRequest) -> None:
    workspace.models.reindex()


def _pull(workspace: Workspace, request: PullRequest) -> "Feed[Event] | PlanPayload":
    begun = time.monotonic()
    check_connections(request.connections)
    rate = rate_of(request.limit_rate)
    try:
        plan = workspace.planner.plan(request.model_url, request.proj_url, force=request.force)
    except (InvalidSource, LocalPath) as error:
        if (entry := workspace.catalog.get(request.model_url)) is not None:
            error.hint = f"it is an id of the catalog: kawai catalog pull {entry.row.id}"
        raise
    if request.dry_run:
        from kawai_tools.operations.fit import fit_of_plan  # noqa: PLC0415

        return msgspec.structs.replace(plan.payload, fit=fit_of_plan(workspace, plan, begun, listed=False))
    job = workspace.puller.job(plan, connections=request.connections, limit_rate=rate)
    return workspace.pulls.start(replace(job, again=again(MODELS_PULL, request)))


def _remove(workspace: Workspace, request: RemoveRequest) -> None:
    ref = parse_model(request.model)
    try:
        workspace.models.remove(ref)
    except InUse as error:
        if not request.force:
            raise
        workspace.pulls.cancel("model", error.target, FORCE_PATIENCE)
        reopen = workspace.close_model(error.target)
        try:
            workspace.models.remove(ref)
        finally:
            reopen()


def _protect(workspace: Workspace, request: ModelRequest) -> None:
    workspace.models.protect(parse_model(request.model), protected=True)


def _unprotect(workspace: Workspace, request: ModelRequest) -> None:
    workspace.models.protect(parse_model(request.model), protected=False)


def _verify(workspace: Workspace, request: VerifyRequest) -> "Feed[Event]":
    from kawai_tools.models.verifying import verify  # noqa: PLC0415 - a list verifies nothing

    return verify(workspace.models, None if request.model is None else parse_model(request.model))


MODELS_LIST = Operation(
    name="models.list",
    method="GET",
    path="/v1/models",
    request=NoRequest,
    result=Payload(ModelList),
    level=Level.READ,
    run=_list,
    summary="List the installed models",
)
MODELS_SHOW = Operation(
    name="models.show",
    method="GET",
    path="/v1/models/{model}",
    request=ModelRequest,
    result=Payload(ModelDetails),
    level=Level.READ,
    run=_show,
    summary="Show what is known of an installed model",
)
MODELS_PS = Operation(
    name="models.ps",
    method="GET",
    path="/v1/models/ps",
    request=NoRequest,
    result=Payload(list[LoadedModel]),
    level=Level.READ,
    run=_ps,
    where=Where.SERVER,
    summary="List the models that are loaded",
)
MODELS_LOAD = Operation(
    name="models.load",
    method="POST",
    path="/v1/models/load",
    request=LoadRequest,
    result=Payload(LoadedModel),
    level=Level.ADMIN,
    run=_load,
    where=Where.SERVER,
    patience=None,
    summary="Load a model, if it is not loaded",
)
MODELS_UNLOAD = Operation(
    name="models.unload",
    method="POST",
    path="/v1/models/unload",
    request=RemoveRequest,
    result=Nothing(),
    level=Level.ADMIN,
    run=_unload,
    where=Where.SERVER,
    patience=None,
    summary="Unload a model once nobody uses it",
)
MODELS_INDEX = Operation(
    name="models.index",
    method="POST",
    path="/v1/models/index",
    request=NoRequest,
    result=Nothing(),
    level=Level.ADMIN,
    run=_index,
    summary="Rebuild the index from what is on disk",
)
MODELS_PULL = Operation(
    name="models.pull",
    method="POST",
    path="/v1/models/pull",
    request=PullRequest,
    result=Stream(ModelPullEvent, PlanPayload, unless="dry_run"),
    level=Level.ADMIN,
    run=_pull,
    summary="Pull a model from a hub or a URL",
)
MODELS_REMOVE = Operation(
    name="models.rm",
    method="DELETE",
    path="/v1/models/{model}",
    request=RemoveRequest,
    result=Nothing(),
    level=Level.ADMIN,
    run=_remove,
    summary="Remove an installed or partly pulled model",
)
MODELS_PROTECT = Operation(
    name="models.protect",
    method="POST",
    path="/v1/models/protect",
    request=ModelRequest,
    result=Nothing(),
    level=Level.ADMIN,
    run=_protect,
    summary="Keep kawai prune off a model",
)
MODELS_UNPROTECT = Operation(
    name="models.unprotect",
    method="POST",
    path="/v1/models/unprotect",
    request=ModelRequest,
    result=Nothing(),
    level=Level.ADMIN,
    run=_unprotect,
    summary="Let kawai prune take a model again",
)
MODELS_VERIFY = Operation(
    name="models.verify",
    method="POST",
    path="/v1/models/verify",
    request=VerifyRequest,
    result=Stream(VerifyEvent),
    level=Level.ADMIN,
    run=_verify,
    summary="Hash the files of one model, or of all, and compare",
)
