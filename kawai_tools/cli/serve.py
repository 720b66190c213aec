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
from kawai_tools.cli.groups import LAZY, LocalCommand
from kawai_tools.cli.invocation import Invocation, invocation
from kawai_tools.errors import AlreadyServing, InvalidRequest, KawaiError, UsageError
from kawai_tools.files import make_directory, write_atomically
from kawai_tools.remote.daemon import Daemon, find_daemon, serve_file, serve_lock

if TYPE_CHECKING:
    from kawai_tools.files import Lock
    from kawai_tools.settings import Settings
    from kawai_tools.tokens import Tokens

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

PATIENCE = 5.0
"""Seconds that running pulls get, at the end, to leave clean partials."""

_LOCK_PATIENCE = 1.0


@app.command(cls=LocalCommand, help=LAZY["serve"])
def serve(  # noqa: PLR0913, PLR0917 - one parameter for each thing that can be typed
    context: typer.Context,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="HOST", help="Address to listen on; beyond loopback with --auth and --allow-host."
        ),
    ] = None,
    port: Annotated[
        str | None,
        typer.Option(metavar="PORT", help="Port to listen on, 11435 where nothing else is configured."),
    ] = None,
    auth: Annotated[
        bool, typer.Option("--auth", help="Ask for tokens: changes need an admin's, reads are open.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Ask for tokens, also for reading.")] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name by which clients know this server; may be repeated."),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="auto, llama-server, xllamacpp or llama-cpp-python."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond this machine without asking for tokens.")
    ] = False,
) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    this = invocation(context)
    this.flag("host", host)
    this.flag("port", port)
    this.flag("engine", engine)
    if allow_host and not all(name.strip() for name in allow_host):
        raise UsageError("--allow-host must be a name by which clients ask for this server, not ''")
    this.flag("allow_hosts", ",".join(allow_host) if allow_host else None, "--allow-host")
    this.flags |= {
        name: True for name, on in (("auth", auth), ("strict", strict), ("insecure", insecure)) if on
    }
    settings = this.settings
    _check_binding(settings)
    with _only_one(settings.state_dir):
        _serve(this)


def _check_binding(settings: "Settings") -> None:
    """Refuse to be reached from other machines by anybody, or under a name that nobody has given."""
    if _is_loopback(settings.host):
        return
    if not (settings.auth or settings.strict or settings.insecure):
        raise InvalidRequest(
            f"kawai serve on {settings.host} could be used by everybody who reaches it",
            "add --auth to ask for tokens (or --insecure, if that is meant), or leave --host out",
        )
    if not settings.allow_hosts:
        raise InvalidRequest(
            f"kawai serve on {settings.host} needs to know by which name clients will ask for it",
            "add --allow-host NAME, as it stands in their URLs",
        )


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host.lower() == "localhost"


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
    from kawai_tools.api.access import Access  # noqa: PLC0415
    from kawai_tools.api.app import build_app  # noqa: PLC0415 - the command line starts without a server
    from kawai_tools.api.guard import known_by  # noqa: PLC0415
    from kawai_tools.api.observing import NAME as REQUESTS  # noqa: PLC0415
    from kawai_tools.api.observing import RequestLog  # noqa: PLC0415
    from kawai_tools.api.server import listen  # noqa: PLC0415
    from kawai_tools.api.server import serve as serve_on  # noqa: PLC0415
    from kawai_tools.cli import logs  # noqa: PLC0415
    from kawai_tools.workspace import Workspace  # noqa: PLC0415

    settings = this.settings
    logs.configure(settings.state_dir, verbose=this.output.verbose)
    workspace = Workspace(settings, serves=True)
    listener = listen(settings.host, settings.port)
    port = listener.getsockname()[1]
    daemon = Daemon(
        url=_url(_near(settings.host), port),
        pid=os.getpid(),
        key=secrets.token_urlsafe(32),
        version=__version__,
    )
    asks = settings.auth or settings.strict
    news = _first_admin(settings, workspace.tokens) if asks else None
    try:
        with _announced(this, daemon, _url(settings.host, port), news) as announce:
            names = known_by(port, settings.host, settings.allow_hosts, settings.allow_origins)
            access = Access(workspace.tokens, key=daemon.key, on=asks, strict=settings.strict)
            log = RequestLog(settings.state_dir / REQUESTS, verbose=this.output.verbose)
            app = build_app(workspace, names, access=access, log=log)
            serve_on(app, listener, on_ready=announce, on_stop=lambda: workspace.pulls.close(PATIENCE))
    finally:
        workspace.close()


def _tell_engine(this: Invocation, url: str) -> None:
    """Say what runs models here, or that nothing does."""
    from kawai_tools.runners.engines import choose, engines  # noqa: PLC0415

    try:
        chosen = choose(engines(this.workspace.bundles), this.settings.engine)
    except KawaiError as error:
        this.output.warn(f"warning: no model can be run: {error.message}")
        this.output.warn(f"hint: {error.hint}")
    else:
        this.output.note(f"OpenAI clients ask {url}/v1; models are run by {chosen.engine.name}")


def _first_admin(settings: "Settings", tokens: "Tokens") -> str | None:
    """Make the first admin's token where there is none at all, and say so.

    Raises what keeps tokens from being read or written.
    """
    from kawai_tools.tokens import write_secret  # noqa: PLC0415

    if tokens.all():
        return None
    path = serve_file(settings.state_dir).with_name("admin.token")
    tokens.create(
        role="admin", name="first admin", lifetime=None, deliver=lambda token: write_secret(path, token)
    )
    return f"made the first admin's token; it is in {path}"


def _near(host: str) -> str:
    """An address of this machine at which a server that listens on ``host`` is reached."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "::1"}.get(host, host)  # noqa: S104 - not bound here


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def _announced(this: Invocation, daemon: Daemon, url: str, news: str | None) -> Iterator[Callable[[], None]]:
    settings = this.settings
    path = serve_file(settings.state_dir)

    def announce() -> None:
        write_atomically(path, msgspec.json.encode(daemon), mode=0o600, durable=False)
        this.output.warn(f"kawai is serving on {url}")
        if news:
            this.output.warn(news)
        if settings.insecure and not (settings.auth or settings.strict):
            this.output.say("warning: --insecure: nobody is asked for a token, on whatever address")
        _tell_engine(this, daemon.url)

    path.unlink(missing_ok=True)
    try:
        yield announce
    finally:
        path.unlink(missing_ok=True)
