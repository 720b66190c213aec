"""Whether the server lives, and whether it can work: routes for supervisors, open to all."""

from typing import Literal

import msgspec

from kawai_tools import __version__
from kawai_tools.errors import ErrorType, KawaiError, Unavailable
from kawai_tools.workspace import Workspace

ALIVE = ("/healthz", "/v1/liveness")
READY = ("/readyz", "/v1/readiness")


class Health(msgspec.Struct, frozen=True):
    """The answer of a server that is well."""

    status: Literal["ok"] = "ok"
    version: str = __version__


def check_ready(workspace: Workspace) -> Health:
    """Whether the store can be read and the index opened. Raises ``Unavailable`` saying what is not."""
    try:
        workspace.models.check_ready()
    except KawaiError as error:
        if error.type is ErrorType.UNAVAILABLE:
            raise
        raise Unavailable(error.message, error.hint) from error
    return Health()
