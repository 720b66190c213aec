"""Everything kawai refuses or fails at, as one tree.

An error knows its stable ``code``, its ``message`` (what happened to what), an optional ``hint``
(what to do) and its type; it knows nothing of terminals or HTTP beyond the table in ``failure.py``.
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
    │   ├── LocalOnly
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
    │   ├── EntryNotFound
    │   ├── TokenNotFound
    │   └── RouteNotFound
    ├── NotAllowed          known, and refused
    │   ├── TokenRequired
    │   ├── InvalidToken
    │   ├── TokenExpired
    │   ├── TokenRevoked
    │   ├── InvalidCode
    │   ├── SessionExpired
    │   ├── CsrfRequired
    │   ├── AdminRequired
    │   ├── ForeignOrigin
    │   ├── HostNotAllowed
    │   └── ModelGated
    ├── Conflict            not in the present state
    │   ├── Ambiguous
    │   ├── AmbiguousFile
    │   ├── InUse
    │   ├── DifferentVersion
    │   ├── NoUpstream
    │   ├── AlreadyServing
    │   ├── PortInUse
    │   └── HubTokenRequired
    ├── Upstream            hub, release server or engine failed
    │   ├── Unreachable
    │   ├── UpstreamTimeout
    │   ├── RateLimited
    │   ├── BadRedirect
    │   ├── BadCertificate
    │   ├── BadResponse
    │   ├── NotKawai
    │   ├── VersionSkew
    │   ├── EntryGone
    │   └── EngineFailed
    ├── Integrity           bytes that are not what they should be
    │   ├── DigestMismatch
    │   ├── MalformedGguf
    │   ├── NotAModel
    │   ├── IncompleteModel
    │   ├── UnsafeArchive
    │   ├── BrokenArchive
    │   ├── NoDigest
    │   ├── ProbeFailed
    │   ├── BrokenState
    │   ├── BrokenCatalog
    │   └── OlderCatalog
    ├── NoSpace             the disk would not hold it
    ├── Unavailable         not now
    │   ├── Offline
    │   ├── Passing
    │   │   ├── ServerClosing
    │   │   ├── TooMany
    │   │   ├── Busy
    │   │   └── Loading
    │   ├── NoServer
    │   ├── NoRoom
    │   ├── NoEngine
    │   ├── NoServiceManager
    │   ├── ServiceFailed
    │   ├── ExposedSecret
    │   ├── HomeNotWritable
    │   ├── StoreMissing
    │   ├── IndexUnavailable
    │   └── UnsupportedPlatform
    └── Internal            a bug in kawai
        └── RemoteFault
"""

from kawai_tools.errors.refusals import *
from kawai_tools.errors.troubles import *
from kawai_tools.failure import EXIT_FAILURE as EXIT_FAILURE
from kawai_tools.failure import EXIT_INTERRUPTED as EXIT_INTERRUPTED
from kawai_tools.failure import OUTCOMES as OUTCOMES
from kawai_tools.failure import UNDECODABLE as UNDECODABLE
from kawai_tools.failure import ErrorBody as ErrorBody
from kawai_tools.failure import ErrorInfo as ErrorInfo
from kawai_tools.failure import ErrorType as ErrorType
from kawai_tools.failure import KawaiError as KawaiError


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
