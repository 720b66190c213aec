"""The rows of disk space."""

from kawai_tools.contract import Level, NoRequest, Operation, Payload, Request, Where
from kawai_tools.errors import UsageError
from kawai_tools.storage.finding import Pruned
from kawai_tools.storage.usage import Usage
from kawai_tools.values import parse_duration, parse_size
from kawai_tools.workspace import Workspace


class PruneRequest(Request, frozen=True, kw_only=True):
    """What may go; without any of the first four partials and builds.

    ``unused_for`` is a time such as ``"30d"``, ``keep_space`` a size such as ``"50G"``. With ``shown``, an
    earlier answer to ``dry_run``, only what would go there goes, and only as it was then.
    """

    unused_for: str | None = None
    keep_space: str | None = None
    partials: bool = False
    builds: bool = False
    dry_run: bool = False
    shown: list[Pruned] | None = None


def _usage(workspace: Workspace, _: NoRequest) -> Usage:
    return workspace.disk.usage()


def _prune(workspace: Workspace, request: PruneRequest) -> list[Pruned]:
    from kawai_tools.storage.pruning import Wish  # noqa: PLC0415 - what is taken is told without

    try:
        unused = None if request.unused_for is None else parse_duration(request.unused_for)
    except ValueError as error:
        raise UsageError(f"--unused-for must be {error}, not {request.unused_for!r}") from None
    try:
        space = None if request.keep_space is None else parse_size(request.keep_space)
    except ValueError as error:
        raise UsageError(f"--keep-space must be {error}, not {request.keep_space!r}") from None
    wish = Wish(partials=request.partials, builds=request.builds, unused_for=unused, keep_space=space)
    if request.dry_run:
        return [find.row for find in workspace.pruner.find(wish)]
    return workspace.pruner.prune(wish, request.shown)


DF = Operation(
    name="df",
    method="GET",
    path="/v1/storage",
    request=NoRequest,
    result=Payload(Usage),
    level=Level.READ,
    run=_usage,
    summary="Tell what is taken of the disk, and what is free",
)
PRUNE = Operation(
    name="prune",
    method="POST",
    path=None,
    request=PruneRequest,
    result=Payload(list[Pruned]),
    level=Level.ADMIN,
    run=_prune,
    where=Where.HERE,
    summary="Give disk space back",
)
