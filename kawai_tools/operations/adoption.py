"""The rows of what is on this machine already: adopted, or still other tools' own."""

from typing import TYPE_CHECKING

from kawai_tools.contract import Level, NoRequest, Operation, Payload, Request, Stream, Where
from kawai_tools.errors import UsageError
from kawai_tools.events import Event, ModelPullEvent
from kawai_tools.models.neighbours import FoundFile
from kawai_tools.workspace import Workspace

if TYPE_CHECKING:
    from kawai_tools.transfer.pulls import Feed


class AdoptRequest(Request, frozen=True):
    """What to adopt: files or directories. ``link`` forbids copies, ``copy`` files that are shared."""

    paths: list[str]
    link: bool = False
    copy: bool = False
    id: str | None = None


def _adopt(workspace: Workspace, request: AdoptRequest) -> "Feed[Event]":
    from kawai_tools.models.taking import Mode  # noqa: PLC0415 - a scan takes nothing

    if not all(request.paths):
        raise UsageError("'' names no file", "name a GGUF file, or a directory of them")
    if request.link and request.copy:
        raise UsageError("--link and --copy exclude each other", "give one of them, or neither")
    mode = Mode.LINK if request.link else Mode.COPY if request.copy else Mode.ANY
    jobs = workspace.adopter.jobs(request.paths, mode, request.id)
    if len(jobs) == 1:
        return workspace.pulls.start(jobs[0])
    from kawai_tools.transfer.series import Series  # noqa: PLC0415 - most adopt one

    return Series(workspace.pulls, jobs).start()


def _scan(workspace: Workspace, _: NoRequest) -> list[FoundFile]:
    return workspace.neighbours.rows()


MODELS_ADOPT = Operation(
    name="models.adopt",
    method="POST",
    path=None,
    request=AdoptRequest,
    result=Stream(ModelPullEvent),
    level=Level.ADMIN,
    run=_adopt,
    where=Where.HERE,
    summary="Take in GGUF files that are on this machine already",
)
MODELS_SCAN = Operation(
    name="models.scan",
    method="GET",
    path=None,
    request=NoRequest,
    result=Payload(list[FoundFile]),
    level=Level.READ,
    run=_scan,
    where=Where.HERE,
    summary="List the GGUF files that other tools on this machine hold",
)
