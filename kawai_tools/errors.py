"""Everything kawai refuses or fails at, as one tree.

An error knows its stable ``code``, its ``message`` (what happened to what), an optional ``hint``
(what to do) and its type; it knows nothing of terminals or HTTP beyond the table below.
``cli/app.py`` and ``api/errors.py`` each translate the base class once.

::

    KawaiError
    ├── InvalidRequest      the request makes no sense
    │   ├── InvalidId
    │   ├── InvalidSource
    │   ├── LocalPath
    │   ├── PageUrl
    │   ├── NotAProjection
    │   ├── InvalidBody
    │   ├── InvalidConfig
    │   ├── UsageError
    │   ├── MethodNotAllowed
    │   ├── RequestTimeout
    │   ├── BodyTooLarge
    │   ├── HeadTooLarge
    │   ├── NotJson
    │   └── WrongHost
    ├── NotFound            no such thing
    │   ├── ModelNotFound
    │   ├── PullNotFound
    │   ├── RepoNotFound
    │   ├── RevisionNotFound
    │   ├── FileNotOnHub
    │   ├── QuantizationNotFound
    │   ├── VersionNotFound
    │   ├── BuildNotFound
    │   └── RouteNotFound
    ├── NotAllowed          known, and refused
    │   ├── ForeignOrigin
    │   ├── HostNotAllowed
    │   └── ModelGated
    ├── Conflict            not in the present state
    │   ├── Ambiguous
    │   ├── AmbiguousFile
    │   ├── InUse
    │   ├── DifferentVersion
    │   ├── AlreadyServing
    │   ├── PortInUse
    │   └── HubTokenRequired
    ├── Upstream            hub, release server or engine failed
    │   ├── Unreachable
    │   ├── UpstreamTimeout
    │   ├── RateLimited
    │   ├── BadRedirect
    │   ├── BadCertificate
    │   └── BadResponse
    ├── Integrity           bytes that are not what they should be
    │   ├── DigestMismatch
    │   ├── MalformedGguf
    │   ├── NotAModel
    │   ├── IncompleteModel
    │   ├── UnsafeArchive
    │   ├── BrokenArchive
    │   ├── NoDigest
    │   ├── ProbeFailed
    │   └── BrokenState
    ├── NoSpace             the disk would not hold it
    ├── Unavailable         not now
    │   ├── Offline
    │   ├── NoServer
    │   ├── ServerClosing
    │   ├── HomeNotWritable
    │   ├── StoreMissing
    │   ├── IndexUnavailable
    │   └── UnsupportedPlatform
    └── Internal            a bug in kawai
        └── RemoteFault
"""

from kawai_tools.failure import (
    EXIT_FAILURE as EXIT_FAILURE,
)
from kawai_tools.failure import (
    EXIT_INTERRUPTED as EXIT_INTERRUPTED,
)
from kawai_tools.failure import OUTCOMES as OUTCOMES
from kawai_tools.failure import UNDECODABLE as UNDECODABLE
from kawai_tools.failure import ErrorBody as ErrorBody
from kawai_tools.failure import ErrorInfo as ErrorInfo
from kawai_tools.failure import ErrorType as ErrorType
from kawai_tools.failure import KawaiError as KawaiError


class InvalidRequest(KawaiError):
    """The request makes no sense."""

    type = ErrorType.INVALID_REQUEST
    status = 400


class InvalidId(InvalidRequest):
    """An id that is no id, or tries to be a path."""


class InvalidSource(InvalidRequest):
    """Words that name nothing that could be pulled."""


class LocalPath(InvalidRequest):
    """A path on this machine where a source is wanted."""


class PageUrl(InvalidRequest):
    """A page of the hub where a file is wanted."""


class NotAProjection(InvalidRequest):
    """A second URL that is not a projection."""


class InvalidBody(InvalidRequest):
    """A request body that does not fit its row."""


class InvalidConfig(InvalidRequest):
    """Config.toml, a variable or a flag that cannot be read."""


class UsageError(InvalidRequest, code="usage"):
    """A command line that makes no sense."""


class MethodNotAllowed(InvalidRequest, status=405):
    """The path exists, the method does not."""


class RequestTimeout(InvalidRequest, status=408):
    """A request that was not sent to its end in time."""


class BodyTooLarge(InvalidRequest, status=413):
    """More bytes than this route takes."""


class HeadTooLarge(InvalidRequest, status=431):
    """A request line and headers of more bytes than are taken."""


class NotJson(InvalidRequest, code="unsupported_media_type", status=415):
    """A body that is not application/json."""


class WrongHost(InvalidRequest, status=421):
    """A Host that does not name this server."""


class NotFound(KawaiError):
    """No such thing."""

    type = ErrorType.NOT_FOUND
    status = 404


class ModelNotFound(NotFound):
    """No installed model answers to these words."""


class PullNotFound(NotFound):
    """No running or recent pull has this id."""


class RepoNotFound(NotFound):
    """The hub has no such repository."""


class RevisionNotFound(NotFound):
    """The repository has no such branch, tag or commit."""


class FileNotOnHub(NotFound, code="file_not_found"):
    """The repository or server has no such file."""


class QuantizationNotFound(NotFound):
    """The repository lacks this quantization."""


class VersionNotFound(NotFound):
    """No such version of llama.cpp is offered, or installed."""


class BuildNotFound(NotFound):
    """A version without a build for this platform."""


class RouteNotFound(NotFound):
    """No such path."""


class NotAllowed(KawaiError):
    """Known, and refused."""

    type = ErrorType.NOT_ALLOWED
    status = 403


class ForeignOrigin(NotAllowed):
    """A web page of somewhere else."""


class HostNotAllowed(NotAllowed):
    """A host this server may not fetch from."""


class ModelGated(NotAllowed):
    """The hub refuses the hub token."""


class Conflict(KawaiError):
    """Not in the present state."""

    type = ErrorType.CONFLICT
    status = 409


class Ambiguous(Conflict):
    """Several things answer to these words."""


class AmbiguousFile(Conflict):
    """A repository with several files and no word which."""


class InUse(Conflict):
    """Loaded, being pulled, or being removed."""

    target: str = ""
    """What is in use, where that is known."""


class DifferentVersion(Conflict):
    """What is installed is not what is asked for."""


class AlreadyServing(Conflict):
    """Another server runs on this home."""


class PortInUse(Conflict):
    """Another program listens there."""


class HubTokenRequired(Conflict, status=412):
    """The hub wants a token and none is set."""


class Upstream(KawaiError):
    """Hub, release server or engine failed."""

    type = ErrorType.UPSTREAM
    status = 502


class Unreachable(Upstream):
    """Refused, cut off or broken, again and again."""


class UpstreamTimeout(Upstream, status=504):
    """It answered too slowly, or fell silent."""


class RateLimited(Upstream):
    """429, and waiting did not help."""

    lasting: bool = False
    """Whether it is known to last longer than anybody waits."""


class BadRedirect(Upstream):
    """A redirect that loops, leaves http(s) or is refused."""


class BadCertificate(Upstream):
    """TLS that cannot be trusted."""


class BadResponse(Upstream):
    """An answer that breaks its protocol."""


class Integrity(KawaiError):
    """Bytes that are not what they should be."""

    type = ErrorType.INTEGRITY
    status = 422


class DigestMismatch(Integrity):
    """SHA-256 or size differ from what was promised."""


class MalformedGguf(Integrity):
    """Not a GGUF file, or a broken one."""


class NotAModel(Integrity):
    """A web page, a pointer or a projection instead of a model."""


class IncompleteModel(Integrity):
    """A set of shards or files with one missing."""


class UnsafeArchive(Integrity):
    """An archive with a member that could reach outside, or that is more than any build needs."""


class BrokenArchive(Integrity):
    """An archive that is cut short, damaged, or not the kind that a build comes in."""


class NoDigest(Integrity):
    """A release whose asset has no digest to hold it to."""


class ProbeFailed(Integrity):
    """A build that does not start or does not work on this machine."""


class BrokenState(Integrity):
    """A state file that cannot be trusted."""


class NoSpace(KawaiError):
    """The disk would not hold it."""

    type = ErrorType.NO_SPACE
    status = 507


class Unavailable(KawaiError):
    """Not now."""

    type = ErrorType.UNAVAILABLE
    status = 503


class Offline(Unavailable):
    """The network is needed and --offline forbids it."""


class NoServer(Unavailable):
    """No kawai server runs on this home."""


class ServerClosing(Unavailable):
    """The server is shutting down."""


class HomeNotWritable(Unavailable):
    """The directory for kawai's files cannot be written."""


class StoreMissing(Unavailable):
    """The store's directory is not there (an unmounted disk?)."""


class IndexUnavailable(Unavailable):
    """The index cannot be used where it is."""


class UnsupportedPlatform(Unavailable):
    """Kawai does not run on this operating system."""


class Internal(KawaiError):
    """A bug in kawai."""

    type = ErrorType.INTERNAL
    status = 500


class RemoteFault(Internal):
    """A bug in the kawai that was asked."""


def tree(root: type[KawaiError] = KawaiError) -> list[type[KawaiError]]:
    """Every class of error from ``root`` down, parents before children, in order of definition."""
    return [root, *(each for child in root.__subclasses__() for each in tree(child))]


def from_info(info: ErrorInfo) -> KawaiError:
    """The error another kawai reported; one with a code this version does not know keeps its type."""
    by_code = {each.code: each for each in tree()}
    known = by_code.get(info.code)
    if known is None or known.type is not info.type:
        known = next(each for each in KawaiError.__subclasses__() if each.type is info.type)
    error = known(info.message, info.hint)
    error.reported = info
    return error
