"""Every operation once: what the command line and the API can be asked to do.

A row's function joins the nouns that the workspace holds; it knows neither terminal nor HTTP.
"""

from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from kawai_tools.contract import Level, Nothing, Operation, Payload, Request, Stream, Where
from kawai_tools.errors import ErrorInfo, InUse, InvalidBody
from kawai_tools.events import ModelPullEvent, PullEvent, Status, VerifyEvent
from kawai_tools.models.model import LoadedModel, ModelDetails, ModelList, PlanPayload
from kawai_tools.refs import parse_model
from kawai_tools.settings import parse_rate
from kawai_tools.workspace import Workspace

if TYPE_CHECKING:
    from kawai_tools.transfer.pulls import Feed, Pull

FORCE_PATIENCE = 10.0
"""Seconds that what uses a model gets to end before it is removed by force."""


class NoRequest(Request, frozen=True):
    """A row that takes nothing."""


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
    limit_rate: int | str | None = None
    connections: int | None = None


class VerifyRequest(Request, frozen=True):
    """Without ``model``: all."""

    model: str | None = None


class PullIdRequest(Request, frozen=True):
    """A row about one Pull."""

    pull: str


class PullRow(msgspec.Struct, frozen=True, kw_only=True):
    """One line of ``pulls list``."""

    pull: str
    kind: str
    target: str
    status: Status
    completed: int
    total: int | None
    rate: int | None
    eta: int | None
    started_at: datetime
    error: ErrorInfo | None


def _list(workspace: Workspace, _: NoRequest) -> ModelList:
    return ModelList(data=workspace.models.rows())


def _show(workspace: Workspace, request: ModelRequest) -> ModelDetails:
    return workspace.models.show(parse_model(request.model))


def _ps(_: Workspace, __: NoRequest) -> list[LoadedModel]:
    return []


def _index(workspace: Workspace, _: NoRequest) -> None:
    workspace.models.reindex()


def _pull(workspace: Workspace, request: PullRequest) -> "Feed | PlanPayload":
    if request.connections is not None and not 1 <= request.connections <= 64:  # noqa: PLR2004
        raise InvalidBody("connections must be a whole number from 1 to 64")
    rate = _rate(request.limit_rate)
    plan = workspace.planner.plan(request.model_url, request.proj_url, force=request.force)
    if request.dry_run:
        return plan.payload
    job = workspace.puller.job(plan, connections=request.connections, limit_rate=rate)
    return workspace.pulls.start(job)


def _rate(value: int | str | None) -> int | None:
    if value is None:
        return None
    try:
        return parse_rate(str(value))
    except ValueError as error:
        raise InvalidBody(f"limit_rate must be {error}, not {value!r}") from None


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


def _pulls(workspace: Workspace, _: NoRequest) -> list[PullRow]:
    return [_pull_row(pull) for pull in workspace.pulls.list()]


def _pull_row(pull: "Pull") -> PullRow:
    last = pull.newest()
    return PullRow(
        pull=pull.id,
        kind=pull.job.kind,
        target=pull.job.target,
        status=last.status,
        completed=last.completed,
        total=last.total,
        rate=last.rate,
        eta=last.eta,
        started_at=pull.started_at,
        error=last.error,
    )


def _attach(workspace: Workspace, request: PullIdRequest) -> "Feed":
    return workspace.pulls.get(request.pull)


def _cancel(workspace: Workspace, request: PullIdRequest) -> None:
    workspace.pulls.get(request.pull).cancel()


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
PULLS_LIST = Operation(
    name="pulls.list",
    method="GET",
    path="/v1/pulls",
    request=NoRequest,
    result=Payload(list[PullRow]),
    level=Level.READ,
    run=_pulls,
    where=Where.SERVER,
    summary="List the pulls that run, and those of the last hour",
)
PULLS_ATTACH = Operation(
    name="pulls.attach",
    method="GET",
    path="/v1/pulls/{pull}",
    request=PullIdRequest,
    result=Stream(PullEvent),
    level=Level.READ,
    run=_attach,
    where=Where.SERVER,
    summary="Follow a pull",
)
PULLS_CANCEL = Operation(
    name="pulls.cancel",
    method="DELETE",
    path="/v1/pulls/{pull}",
    request=PullIdRequest,
    result=Nothing(),
    level=Level.ADMIN,
    run=_cancel,
    where=Where.SERVER,
    summary="Cancel a pull; what was fetched stays, resumable",
)

OPERATIONS: tuple[Operation[Request], ...] = tuple(
    value for value in list(vars().values()) if isinstance(value, Operation)
)
"""The table."""
