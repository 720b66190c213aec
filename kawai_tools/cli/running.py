"""How a command runs a row of the table: here, in the daemon of this home, or on another kawai."""

from typing import TYPE_CHECKING, TypeVar

from kawai_tools.errors import LocalOnly, NoServer

if TYPE_CHECKING:
    from kawai_tools.cli.invocation import Invocation
    from kawai_tools.contract import Operation, Request

R = TypeVar("R", bound="Request")


def run(this: "Invocation", row: "Operation[R]", request: R) -> object:
    """Carry out a row; give its payload, ``None``, or a feed of events.

    Raises what the row raises, ``NoServer`` where it needs one, and ``LocalOnly`` for a row without a route
    that is wanted of another kawai.
    """
    from kawai_tools.contract import Where  # noqa: PLC0415 - help runs no row

    if this.is_remote:
        if row.path is None:
            require_here(this, row.name.replace(".", " "))
        return _ask_there(this, row, request)
    return ask(this, row, request) if row.where is Where.SERVER else row.run(this.workspace, request)


def _ask_there(this: "Invocation", row: "Operation[R]", request: R) -> object:
    """As :func:`ask`; whoever leaves before a pull is told of hears that it may begin all the same."""
    from kawai_tools.contract import Stream  # noqa: PLC0415
    from kawai_tools.events import PullEvent  # noqa: PLC0415

    try:
        return ask(this, row, request)
    except KeyboardInterrupt:
        if isinstance(row.result, Stream) and issubclass(row.result.event, PullEvent):
            this.output.note(f"it may begin there; kawai pulls list --server {this.settings.server} shows it")
        raise


def ask(this: "Invocation", row: "Operation[R]", request: R) -> object:
    """Have a kawai that serves carry out a row. Raises ``NoServer`` where there is none."""
    from kawai_tools.remote import executing  # noqa: PLC0415 - most rows run here

    return executing.run(row, request, this.peer())


def require_here(this: "Invocation", command: str) -> None:
    """Raise ``LocalOnly`` where another kawai is named, for what nobody can do for another machine."""
    if this.is_remote:
        raise LocalOnly(
            f"kawai {command} works on this machine only, and another kawai is named",
            "leave out --server (KAWAI_SERVER)",
        )


def run_or_none(this: "Invocation", row: "Operation[R]", request: R, without: str) -> object:
    """As :func:`run`; where no daemon runs here an empty list, and ``without`` on stderr."""
    try:
        return run(this, row, request)
    except NoServer:
        if this.is_remote:
            raise
        this.output.warn(without)
        return []
