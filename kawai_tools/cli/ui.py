"""``kawai ui``: the admin page of a running server, in a browser, signed in."""

import os
import sys
import webbrowser
from datetime import datetime
from typing import Annotated

import msgspec
import typer

from kawai_tools.cli.groups import LAZY, KawaiCommand
from kawai_tools.cli.invocation import Invocation, invocation
from kawai_tools.errors import NotAllowed

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

_DISPLAYS = ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME")
"""Any of these tells that a window can be opened; without one browsers for terminals would be started."""


class _Code(msgspec.Struct, frozen=True):
    code: str
    expires_at: datetime


class _Page(msgspec.Struct, frozen=True):
    """Where the page is; ``expires_at`` is until when the address signs in, ``None`` where it does not."""

    url: str
    expires_at: datetime | None


@app.command(cls=KawaiCommand, help=LAZY["ui"])
def ui(
    context: typer.Context,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the address.")] = False,
) -> None:
    """Open the admin page of the running kawai serve; the address signs in once, within 60 s."""
    this = invocation(context)
    shows = not no_browser and _has_display()
    page = _page(this, same_user=shows)
    this.output.payload(page, lambda found: f"{found.url}\n")
    if not no_browser and not (shows and _opens(page.url)):
        this.output.note("no browser could be opened here: open this address yourself")


def _page(this: Invocation, *, same_user: bool) -> _Page:
    """The address of the page, with a code where the server gives one. Raises ``NoServer``.

    What is given to a browser stands in the list of processes: then the code is for the ``same_user`` only.
    """
    from kawai_tools.remote import executing  # noqa: PLC0415 - help needs none

    peer = this.peer()
    address = f"{peer.url.rstrip('/')}/ui/"
    try:
        made = executing.post(peer, "/v1/session/codes", _Code, {"same_user": same_user})
    except NotAllowed as error:
        this.output.warn(f"{error.message}: the page will ask for a token")
        return _Page(address, None)
    return _Page(f"{address}#code={made.code}", made.expires_at)


def _has_display() -> bool:
    return sys.platform == "darwin" or any(os.environ.get(name) for name in _DISPLAYS)


def _opens(url: str) -> bool:
    try:
        return webbrowser.open(url)
    except (webbrowser.Error, OSError):
        return False
