"""The row of logs."""

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from kawai_tools.contract import Level, Operation, Request, Stream, Where
from kawai_tools.events import LogLine
from kawai_tools.refs import parse_model
from kawai_tools.workspace import Workspace

if TYPE_CHECKING:
    from kawai_tools.journal import Journal
    from kawai_tools.transfer.pulls import Feed

LINES = 100


class LogsRequest(Request, frozen=True):
    """Without ``model`` what the server says; the last ``lines``, with ``follow`` those to come, too."""

    model: str | None = None
    lines: Annotated[int, Meta(ge=0, le=1000)] = LINES
    follow: bool = False


def _logs(workspace: Workspace, request: LogsRequest) -> "Feed[LogLine] | list[LogLine]":
    journal = _journal(workspace, request.model)
    return journal.tail(request.lines) if request.follow else journal.last(request.lines)


def _journal(workspace: Workspace, model: str | None) -> "Journal":
    """What the server says, or the engine of a model."""
    if model is None:
        return workspace.journals.server
    return workspace.journals.of(workspace.models.find(parse_model(model)).record.id)


LOGS = Operation(
    name="logs",
    method="GET",
    path="/v1/logs",
    request=LogsRequest,
    result=Stream(LogLine, list[LogLine], when="follow"),
    level=Level.ADMIN,
    run=_logs,
    where=Where.SERVER,
    summary="Show what the server says, or the engine of a model",
)
