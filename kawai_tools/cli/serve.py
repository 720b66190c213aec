"""``kawai serve``: the HTTP API on this machine, one daemon a home."""

import contextlib
import ipaddress
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from kawai_tools import __version__
from kawai_tools.cli.groups import LAZY, KawaiCommand
from kawai_tools.cli.invocation import Invocation, invocation
from kawai_tools.errors import AlreadyServing, InvalidRequest
from kawai_tools.files import make_directory, write_atomically
from kawai_tools.remote import Daemon, find_daemon, serve_file, serve_lock

if TYPE_CHECKING:
    from kawai_tools.files import Lock

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

PATIENCE = 5.0
"""Seconds that running pulls get, at the end, to leave clean partials."""

_LOCK_PATIENCE = 1.0


@app.command(cls=KawaiCommand, help=LAZY["serve"])
def serve(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(metavar="HOST", help="Loopback address to listen on.")] = None,
    port: Annotated[
        str | None,
        typer.Option(metavar="PORT", help="Port to listen on, 11435 where nothing else is configured."),
    ] = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    this = invocation(context)
    this.flag("host", host)
    this.flag("port", port)
    settings = this.settings
    _check_loopback(settings.host)
    with _only_one(settings.state_dir):
        _serve(this)


def _check_loopback(host: str) -> None:
    loopback = host.lower() == "localhost"
    with contextlib.suppress(ValueError):
        loopback = loopback or ipaddress.ip_address(host).is_loopback
    if not loopback:
        raise InvalidRequest(
            f"kawai serve cannot listen on {host}: it has no tokens yet, so it listens on loopback only",
            "leave --host out, or reach it through a tunnel such as ssh -L",
        )


@contextmanager
def _only_one(state_dir: Path) -> Iterator[None]:
    make_directory(serve_file(state_dir).parent, mode=0o700)
    lock = serve_lock(state_dir)
    if not _acquired(lock):
        daemon = find_daemon(state_dir)
        where = f" on {daemon.url} (pid {daemon.pid})" if daemon else ""
        raise AlreadyServing(f"another kawai serves this home{where}", "use that one, or another --home")
    try:
        yield
    finally:
        lock.release()


def _acquired(lock: "Lock") -> bool:
    """Whoever looks whether a daemon lives holds the lock for a moment: that is no daemon."""
    until = time.monotonic() + _LOCK_PATIENCE
    while not lock.acquire():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def _serve(this: Invocation) -> None:
    from kawai_tools.api.app import build_app  # noqa: PLC0415 - the command line starts without a server
    from kawai_tools.api.server import listen  # noqa: PLC0415
    from kawai_tools.api.server import serve as serve_on  # noqa: PLC0415
    from kawai_tools.cli import logs  # noqa: PLC0415
    from kawai_tools.workspace import Workspace  # noqa: PLC0415

    settings = this.settings
    logs.configure(settings.state_dir, verbose=this.output.verbose)
    workspace = Workspace(settings, serves=True)
    listener = listen(settings.host, settings.port)
    port = listener.getsockname()[1]
    with _announced(this, _url(settings.host, port)) as announce:
        app = build_app(workspace, host=settings.host, port=port)
        serve_on(app, listener, on_ready=announce, on_stop=lambda: workspace.pulls.close(PATIENCE))
    workspace.close()


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def _announced(this: Invocation, url: str) -> Iterator[Callable[[], None]]:
    path = serve_file(this.settings.state_dir)
    daemon = Daemon(url=url, pid=os.getpid(), key=secrets.token_urlsafe(32), version=__version__)

    def announce() -> None:
        write_atomically(path, msgspec.json.encode(daemon), mode=0o600, durable=False)
        this.output.warn(f"kawai is serving on {url}")

    path.unlink(missing_ok=True)
    try:
        yield announce
    finally:
        path.unlink(missing_ok=True)
