"""How a command runs a row of the table: here, or in the daemon of this home."""

from typing import TYPE_CHECKING, TypeVar

from kawai_tools.errors import NoServer

if TYPE_CHECKING:
    from kawai_tools.cli.invocation import Invocation
    from kawai_tools.contract import Operation, Request

R = TypeVar("R", bound="Request")


def run(this: "Invocation", row: "Operation[R]", request: R) -> object:
    """Carry out a row; give its payload, ``None``, or a feed of events.

    Raises what the row raises, and ``NoServer`` where it needs one.
    """
    from kawai_tools.contract import Where  # noqa: PLC0415 - help runs no row

    return ask(this, row, request) if row.where is Where.SERVER else row.run(this.workspace, request)


def ask(this: "Invocation", row: "Operation[R]", request: R) -> object:
    """Have the daemon of this home carry out a row. Raises ``NoServer`` where there is none."""
    from kawai_tools import remote  # noqa: PLC0415 - most rows run here

    daemon = remote.find_daemon(this.settings.state_dir)
    if daemon is None:
        raise NoServer("no kawai server runs on this home", "start one with kawai serve")
    return remote.run(row, request, daemon)


def run_or_none(this: "Invocation", row: "Operation[R]", request: R, without: str) -> object:
    """As :func:`run`; where no daemon runs an empty list, and ``without`` on stderr."""
    try:
        return run(this, row, request)
    except NoServer:
        this.output.warn(without)
        return []
