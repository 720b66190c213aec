"""The rows of llama.cpp builds."""

from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, TypeVar

from msgspec import Meta

from kawai_tools.contract import Level, NoRequest, Nothing, Operation, Payload, Request, Stream
from kawai_tools.errors import InvalidRequest, KawaiError
from kawai_tools.events import Event, LibsPullEvent
from kawai_tools.libs.builds import Wish, guess
from kawai_tools.libs.bundle import Available, Libs, LibsPlanPayload
from kawai_tools.libs.platforms import Arch, Os, Processor
from kawai_tools.libs.release import Channel
from kawai_tools.operations.pace import Connections, Rate, check_connections, rate_of
from kawai_tools.operations.pulls import again
from kawai_tools.workspace import Workspace

if TYPE_CHECKING:
    from kawai_tools.transfer.pulls import Feed


def _words(kind: type[StrEnum]) -> Meta:
    """Tells programs the words of a kind; which may be written in any case."""
    return Meta(extra_json_schema={"enum": list(kind)})


ArchWord = Annotated[str, _words(Arch)]
OsWord = Annotated[str, _words(Os)]
ProcessorWord = Annotated[str, _words(Processor)]
ChannelWord = Annotated[str, _words(Channel)]


class LibsRequest(Request, frozen=True):
    """With ``latest`` false the release server is left alone, and the newest build is not told."""

    latest: bool = True


class LibsPullRequest(Request, frozen=True, kw_only=True):
    """What to install; without ``version`` the newest of the channel that has a build for the machine."""

    version: str | None = None
    channel: ChannelWord | None = None
    arch: ArchWord | None = None
    os: OsWord | None = None
    processor: ProcessorWord | None = None
    activate: bool = True
    force: bool = False
    allow_unverified: bool = False
    dry_run: bool = False
    limit_rate: Rate | None = None
    connections: Connections | None = None


class AvailableRequest(Request, frozen=True):
    """Without ``version``: the newest."""

    version: str | None = None


class UseRequest(Request, frozen=True):
    """``processor`` tells builds of one version apart."""

    version: str
    processor: ProcessorWord | None = None


class LibsRemoveRequest(UseRequest, frozen=True):
    """As for use; ``arch`` and ``os`` tell a build for another machine from this one's."""

    arch: ArchWord | None = None
    os: OsWord | None = None


E = TypeVar("E", bound=StrEnum)


def _one_of(kind: type[E], words: str | None, name: str) -> E | None:
    if words is None:
        return None
    try:
        return kind(words.lower())
    except ValueError:
        known = ", ".join(kind)
        raise InvalidRequest(f"there is no {name} {words[:40]!r}", f"choose one of {known}") from None


def _wish(workspace: Workspace, request: LibsPullRequest | None = None) -> Wish:
    settings = workspace.settings
    return Wish(
        _one_of(Arch, (request and request.arch) or settings.arch, "arch"),
        _one_of(Os, (request and request.os) or settings.os, "os"),
        _one_of(Processor, (request and request.processor) or settings.processor, "processor"),
    )


def _channel(workspace: Workspace, words: str | None = None) -> Channel:
    return _one_of(Channel, words or workspace.settings.channel, "channel") or Channel.NIGHTLY


def show_libs(workspace: Workspace, request: LibsRequest) -> Libs:
    """The machine and its builds, and the newest one as far as it can be learned."""
    wish, channel = _wish(workspace), _channel(workspace)
    bundles, problem = workspace.bundles, None
    known = workspace.newest.remembered(channel, wish)
    if request.latest:
        try:
            known = workspace.newest.latest(channel, wish)
        except KawaiError as error:
            problem = error.message
    machine = workspace.machine
    processor, reason = (known[1].processor, known[1].reason) if known else guess(machine, wish)
    current, previous = bundles.current(), bundles.previous()
    return Libs(
        arch=wish.arch or machine.arch,
        os=wish.os or machine.os,
        processor=processor,
        reason=reason,
        channel=channel,
        latest=None if problem or known is None else known[0].tag,
        latest_error=problem,
        current=current.version if current else None,
        previous=previous.version if previous else None,
        installed=[record.row(active=record == current) for record in bundles.all()],
    )


def _pull(workspace: Workspace, request: LibsPullRequest) -> "Feed[Event] | LibsPlanPayload":
    from kawai_tools.libs.planning import LibsWish  # noqa: PLC0415 - what only shows plans nothing

    check_connections(request.connections)
    rate = rate_of(request.limit_rate)
    plan = workspace.libs_planner.plan(
        LibsWish(
            version=request.version,
            channel=_channel(workspace, request.channel),
            machine=_wish(workspace, request),
            activate=request.activate,
            force=request.force,
            allow_unverified=request.allow_unverified,
        )
    )
    if request.dry_run:
        return plan.payload
    job = workspace.libs_puller.job(plan, connections=request.connections, limit_rate=rate)
    return workspace.pulls.start(replace(job, again=again(LIBS_PULL, request)))


def _available(workspace: Workspace, request: AvailableRequest) -> Available:
    return workspace.libs_planner.available(request.version, _channel(workspace), _wish(workspace))


def _use(workspace: Workspace, request: UseRequest) -> Libs:
    processor = _one_of(Processor, request.processor, "processor")
    workspace.bundles.use(workspace.bundles.find(request.version, processor))
    return show_libs(workspace, LibsRequest(latest=False))


def _rollback(workspace: Workspace, _: NoRequest) -> Libs:
    workspace.bundles.rollback()
    return show_libs(workspace, LibsRequest(latest=False))


def _remove(workspace: Workspace, request: LibsRemoveRequest) -> None:
    processor = _one_of(Processor, request.processor, "processor")
    arch, system = _one_of(Arch, request.arch, "arch"), _one_of(Os, request.os, "os")
    workspace.bundles.remove(workspace.bundles.find(request.version, processor, arch, system))


LIBS_SHOW = Operation(
    name="libs.show",
    method="GET",
    path="/v1/libs",
    request=LibsRequest,
    result=Payload(Libs),
    level=Level.READ,
    run=show_libs,
    waits=True,
    summary="Show this machine, the newest build for it and the installed ones",
)
LIBS_AVAILABLE = Operation(
    name="libs.available",
    method="GET",
    path="/v1/libs/available",
    request=AvailableRequest,
    result=Payload(Available),
    level=Level.READ,
    run=_available,
    waits=True,
    summary="List the builds that a version offers",
)
LIBS_PULL = Operation(
    name="libs.pull",
    method="POST",
    path="/v1/libs/pull",
    request=LibsPullRequest,
    result=Stream(LibsPullEvent, LibsPlanPayload, unless="dry_run"),
    level=Level.ADMIN,
    run=_pull,
    summary="Install a build of llama.cpp, try it, and use it",
)
LIBS_USE = Operation(
    name="libs.use",
    method="POST",
    path="/v1/libs/use",
    request=UseRequest,
    result=Payload(Libs),
    level=Level.ADMIN,
    run=_use,
    summary="Use another installed build",
)
LIBS_ROLLBACK = Operation(
    name="libs.rollback",
    method="POST",
    path="/v1/libs/rollback",
    request=NoRequest,
    result=Payload(Libs),
    level=Level.ADMIN,
    run=_rollback,
    summary="Use the build before this one again",
)
LIBS_REMOVE = Operation(
    name="libs.rm",
    method="DELETE",
    path="/v1/libs/{version}",
    request=LibsRemoveRequest,
    result=Nothing(),
    level=Level.ADMIN,
    run=_remove,
    summary="Remove an installed build",
)
