"""What went wrong elsewhere: with a server, with bytes, with the disk, for now, or in kawai itself."""

from kawai_tools.failure import ErrorType, KawaiError


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


class NotKawai(Upstream):
    """Something answers where a kawai was named, and it is none."""


class VersionSkew(Upstream):
    """A kawai of another version, which is not understood."""


class EntryGone(Upstream):
    """A file of a catalog entry that the hub no longer has."""


class EngineFailed(Upstream, code="engine_error"):
    """An engine that did not load its model, failed, or died."""

    retry_safe: bool = False
    """Whether nothing of what was asked had begun."""

    died: bool = False
    """Whether it went away instead of saying what failed."""


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


class BrokenCatalog(Integrity):
    """A catalog that is none, or has something in it that a catalog may not have."""


class OlderCatalog(Integrity):
    """An older copy of a catalog than the one that is held."""


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


class Passing(Unavailable):
    """What is over in a moment; nothing of what was asked has begun, so that asking again is safe."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        """It may go better in a second."""
        super().__init__(message, hint)
        self.retry_after = 1


class NoServer(Unavailable):
    """No kawai server runs on this home."""


class ServerClosing(Passing):
    """The server is shutting down."""


class TooMany(Passing):
    """More connections or followers than the server serves at a time."""


class Busy(Passing):
    """As many requests at a time as may."""


class Loading(Passing):
    """A model that was not ready in time, though it is on its way."""


class NoRoom(Unavailable):
    """A model that does not fit into memory; asking again is safe, and helps once something has changed."""


class NoEngine(Unavailable):
    """Nothing is installed that could run a model."""


class NoServiceManager(Unavailable):
    """Neither systemd nor launchd is there for this user."""


class ServiceFailed(Unavailable):
    """A service manager that does not do what it is asked for."""


class ExposedSecret(Unavailable):
    """A file of secrets that others may read."""


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
