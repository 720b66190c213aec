"""The rows of what is carried to machines without network."""

from typing import TYPE_CHECKING

from msgspec import field

from kawai_tools.contract import Level, Operation, Request, Stream, Where
from kawai_tools.errors import UsageError
from kawai_tools.events import CarryEvent, Event
from kawai_tools.refs import parse_model
from kawai_tools.workspace import Workspace

if TYPE_CHECKING:
    from kawai_tools.transfer.pulls import Feed

_STDIN, _STDOUT = 0, 1


class ExportRequest(Request, frozen=True):
    """Without ``models``: all; ``libs`` adds the installed builds. ``file`` may be ``-`` for stdout."""

    file: str
    models: list[str] = field(default_factory=list)
    libs: bool = False


class ImportRequest(Request, frozen=True):
    """``file`` may be ``-`` for stdin."""

    file: str


def _export(workspace: Workspace, request: ExportRequest) -> "Feed[Event]":
    _require_name(request.file)
    refs = [parse_model(each) for each in request.models]
    job = workspace.exporter.job(request.file, refs, libs=request.libs, pipe=_STDOUT)
    return workspace.pulls.start(job)


def _require_name(file: str) -> None:
    if not file:
        raise UsageError("'' names no file", "name one, or - for a pipe")


def _import(workspace: Workspace, request: ImportRequest) -> "Feed[Event]":
    _require_name(request.file)
    return workspace.pulls.start(workspace.importer.job(request.file, pipe=_STDIN))


EXPORT = Operation(
    name="export",
    method="POST",
    path=None,
    request=ExportRequest,
    result=Stream(CarryEvent),
    level=Level.ADMIN,
    run=_export,
    where=Where.HERE,
    summary="Write models and builds into one file, for a machine without network",
)
IMPORT = Operation(
    name="import",
    method="POST",
    path=None,
    request=ImportRequest,
    result=Stream(CarryEvent),
    level=Level.ADMIN,
    run=_import,
    where=Where.HERE,
    summary="Install the models and builds of an export",
)
