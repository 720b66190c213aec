"""The rows of models."""

from typing import TYPE_CHECKING

from kawai_tools.contract import Level, NoRequest, Nothing, Operation, Payload, Request, Stream, Where
from kawai_tools.errors import InUse, InvalidSource, LocalPath
from kawai_tools.events import ModelPullEvent, VerifyEvent
from kawai_tools.models.model import LoadedModel, ModelDetails, ModelList, PlanPayload
from kawai_tools.operations.pace import Connections, Rate, check_connections, rate_of
from kawai_tools.refs import parse_model
from kawai_tools.workspace import Workspace

if TYPE_CHECKING:
    from kawai_tools.transfer.pulls import Feed

FORCE_PATIENCE = 10.0
"""Seconds that what uses a model gets to end before it is removed by force."""


class ModelRequest(Request, frozen=True):
    """A row about one installed model."""

    model: str


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
    return workspace.models.show(parse_model(request.model))


def _ps(_: Workspace, __: NoRequest) -> list[LoadedModel]:
    return []


def _index(workspace: Workspace, _: NoRequest) -> None:
    workspace.models.reindex()


def _pull(workspace: Workspace, request: PullRequest) -> "Feed | PlanPayload":
    check_connections(request.connections)
    rate = rate_of(request.limit_rate)
    try:
        plan = workspace.planner.plan(request.model_url, request.proj_url, force=request.force)
    except (InvalidSource, LocalPath) as error:
        if (entry := workspace.catalog.get(request.model_url)) is not None:
            error.hint = f"it is an id of the catalog: kawai catalog pull {entry.row.id}"
        raise
    if request.dry_run:
        return plan.payload
    job = workspace.puller.job(plan, connections=request.connections, limit_rate=rate)
    return workspace.pulls.start(job)


def _remove(workspace: Workspace, request: RemoveRequest) -> None:
    ref = parse_model(request.model)
    try:
        workspace.models.remove(ref)
    except InUse as error:
        if not request.force:
            raise
        workspace.pulls.cancel("model", error.target, FORCE_PATIENCE)
        workspace.models.remove(ref)


def _verify(workspace: Workspace, request: VerifyRequest) -> "Feed":
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
    result=Stream(ModelPullEvent, dry_run=PlanPayload),
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
