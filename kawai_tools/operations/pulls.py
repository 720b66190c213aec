"""The rows of pulls, whatever they pull."""

import re
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

import msgspec

from kawai_tools.contract import Level, NoRequest, Nothing, Operation, Payload, Request, Stream, Where
from kawai_tools.errors import ErrorInfo
from kawai_tools.events import Again, Event, PullEvent, Status
from kawai_tools.workspace import Workspace

if TYPE_CHECKING:
    from kawai_tools.transfer.pulls import Feed, Pull

R = TypeVar("R", bound=Request)


class PullIdRequest(Request, frozen=True):
    """A row about one Pull."""

    pull: str


class PullRow(msgspec.Struct, frozen=True, kw_only=True):
    """One line of ``pulls list``; ``again`` is what goes on with it once it was cancelled or has failed."""

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
    again: Again | None = None


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
        again=pull.job.again,
    )


def again(row: Operation[R], request: R) -> Again | None:
    """What asks for a pull again; ``None`` where an address holds what is nobody's business."""
    fields: dict[str, str | int | float | bool | None] = msgspec.to_builtins(request)
    defaults = {each.encode_name: each.default for each in msgspec.structs.fields(row.request)}
    said = {name: value for name, value in fields.items() if value != defaults[name]}
    if any("://" in str(value) and re.search(r"//[^/]*@|\?", str(value)) for value in said.values()):
        return None
    path = row.path or ""
    for name in row.path_fields:
        path = path.replace(f"{{{name}}}", quote(str(said.pop(name)), safe=""))
    return Again(path, said)


def _attach(workspace: Workspace, request: PullIdRequest) -> "Feed[Event]":
    return workspace.pulls.get(request.pull)


def _cancel(workspace: Workspace, request: PullIdRequest) -> None:
    workspace.pulls.get(request.pull).cancel()


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
