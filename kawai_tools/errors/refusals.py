"""What whoever asks has to change: the request, its name for a thing, its rights, or the state it meets."""

from kawai_tools.failure import ErrorType, KawaiError


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


class LocalOnly(InvalidRequest):
    """What works on this machine only, where another kawai is named."""


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

    url: str = ""
    """The address of what is missing, where it has one."""


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


class EntryNotFound(NotFound):
    """No catalog has an entry of this id."""


class TokenNotFound(NotFound):
    """No token has this id."""


class RouteNotFound(NotFound):
    """No such path."""


class NotAllowed(KawaiError):
    """Known, and refused."""

    type = ErrorType.NOT_ALLOWED
    status = 403


class TokenRequired(NotAllowed, status=401):
    """A token of this server is needed, and none was sent."""


class InvalidToken(NotAllowed, status=401):
    """What was sent is no token of this server."""


class TokenExpired(NotAllowed, status=401):
    """A token whose time is over."""


class TokenRevoked(NotAllowed, status=401):
    """A token that was made useless."""


class InvalidCode(NotAllowed, status=401):
    """A code to sign in with that is none, was used before, or came too late."""


class SessionExpired(NotAllowed, status=401):
    """A session that is over, or that this server does not know."""


class CsrfRequired(NotAllowed):
    """A request that changes something by a session's cookie alone."""


class AdminRequired(NotAllowed):
    """A user's token where an admin's is needed."""


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


class NoUpstream(Conflict):
    """A model that came from no hub, which no hub can replace."""


class AlreadyServing(Conflict):
    """Another server runs on this home."""


class PortInUse(Conflict):
    """Another program listens there."""


class HubTokenRequired(Conflict, status=412):
    """The hub wants a token and none is set."""
