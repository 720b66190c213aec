"""``kawai service``: kawai serve as a service of its user."""

from typing import TYPE_CHECKING, cast

import typer

from kawai_tools.cli import text
from kawai_tools.cli.groups import LAZY, KawaiCommand, group
from kawai_tools.cli.invocation import Invocation, invocation
from kawai_tools.cli.running import require_here, run
from kawai_tools.errors import AlreadyServing

if TYPE_CHECKING:
    from kawai_tools.contract import NoRequest, Operation
    from kawai_tools.service.manager import ServiceReport

app = group(LAZY["service"])


@app.command(cls=KawaiCommand)
def install(context: typer.Context) -> None:
    """Have kawai serve run by itself: now, and from every login on."""
    from kawai_tools.operations.service import SERVICE_INSTALL  # noqa: PLC0415 - help needs none

    this = invocation(context)
    require_here(this, "service install")
    _require_not_served(this)
    _carry_out(this, SERVICE_INSTALL)


def _require_not_served(this: Invocation) -> None:
    """Refuse beside a server that was started otherwise: the service would fail, and go on trying."""
    from kawai_tools.contract import NoRequest  # noqa: PLC0415
    from kawai_tools.operations.service import SERVICE_STATUS  # noqa: PLC0415
    from kawai_tools.remote.daemon import find_daemon  # noqa: PLC0415

    found = cast("ServiceReport", run(this, SERVICE_STATUS, NoRequest()))
    daemon = find_daemon(this.settings.state_dir)
    if daemon is not None and not found.running:
        raise AlreadyServing(
            f"kawai serve runs already, and as no service (pid {daemon.pid})", "end it first"
        )


@app.command(cls=KawaiCommand)
def uninstall(context: typer.Context) -> None:
    """Stop the service and remove what install wrote. Models, builds and settings stay."""
    from kawai_tools.operations.service import SERVICE_UNINSTALL  # noqa: PLC0415

    _carry_out(invocation(context), SERVICE_UNINSTALL)


@app.command(cls=KawaiCommand)
def status(context: typer.Context) -> None:
    """Say whether the service is installed, and whether it runs."""
    from kawai_tools.operations.service import SERVICE_STATUS  # noqa: PLC0415

    _carry_out(invocation(context), SERVICE_STATUS)


def _carry_out(this: Invocation, row: "Operation[NoRequest]") -> None:
    from kawai_tools.contract import NoRequest  # noqa: PLC0415

    found = cast("ServiceReport", run(this, row, NoRequest()))
    this.output.payload(found, _shown)
    for note in found.notes:
        this.output.note(note)


def _shown(found: "ServiceReport") -> str:
    if found.done:
        return "".join(f"{text.safe(each)}\n" for each in found.done)
    state = f"yes (pid {found.pid})" if found.pid else "yes" if found.running else "no"
    facts = [
        ("Manager", found.manager),
        ("Installed", text.safe(found.path) if found.installed else "no; kawai service install does it"),
        ("At login", "yes" if found.enabled else "no"),
        ("Running", state),
    ]
    return text.facts(facts)
