"""``kawai serve``: the HTTP API on this machine, one daemon a home."""

import logging
import os
import secrets
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from kawai_tools import __version__
from kawai_tools.cli.binding import Bound, check_binding, only_one
from kawai_tools.cli.groups import LAZY, LocalCommand
from kawai_tools.cli.invocation import Invocation, invocation
from kawai_tools.errors import KawaiError, UsageError
from kawai_tools.files import write_atomically
from kawai_tools.remote.daemon import Daemon, serve_file
from kawai_tools.settings import KEYS

if TYPE_CHECKING:
    from kawai_tools.api.app import App
    from kawai_tools.api.guard import Names
    from kawai_tools.api.systemd import Notifier
    from kawai_tools.settings import Settings
    from kawai_tools.tokens import Tokens
    from kawai_tools.workspace import Workspace

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

PATIENCE = 5.0
"""Seconds that running pulls get, at the end, to leave clean partials."""

_LOG = logging.getLogger(__name__)
_FIXED = frozenset({"home", "host", "port"})
"""Settings that a server keeps as long as it lives."""


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
    """Serve until SIGTERM or Ctrl-C. SIGHUP rereads config.toml."""
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
    from kawai_tools.api.systemd import Notifier, take_sockets  # noqa: PLC0415 - only a server needs them

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to read again
    handed = [Bound.of(each) for each in take_sockets(os.environ)]
    notifier = Notifier(os.environ)
    settings = this.settings
    check_binding([each.host for each in handed] or [settings.host], settings)
    with only_one(settings.state_dir):
        _Serving(this, handed, notifier).run()


class _Serving:
    """One server, from its first word to its last."""

    def __init__(self, this: Invocation, handed: list[Bound], notifier: "Notifier") -> None:
        """``handed`` are sockets that came from elsewhere; without any one is made."""
        from kawai_tools.api.access import Access  # noqa: PLC0415 - the command line starts without a server
        from kawai_tools.api.server import listen  # noqa: PLC0415
        from kawai_tools.cli import server_log  # noqa: PLC0415
        from kawai_tools.workspace import Workspace  # noqa: PLC0415

        self._this, self._notifier, settings = this, notifier, this.settings
        self._settings = settings
        self._workspace = Workspace(settings, serves=True)
        self._say = server_log.configure(settings.state_dir, this.output, self._workspace.journals.server)
        self._bound = handed or [Bound.of(listen(settings.host, settings.port), settings.host)]
        self._daemon = Daemon(
            url=self._bound[0].near_url,
            pid=os.getpid(),
            key=secrets.token_urlsafe(32),
            version=__version__,
        )
        self._access = Access(self._workspace.tokens, key=self._daemon.key)
        self._file = serve_file(settings.state_dir)

    def run(self) -> None:
        """Serve until a signal ends it."""
        from kawai_tools.api.server import Calls, serve  # noqa: PLC0415

        news = self._first_admin(self._settings)
        self._set_access(self._settings)
        app = self._build()
        calls = Calls(ready=lambda: self._announce(news), stop=self._stop, reread=lambda: self._reread(app))
        self._file.unlink(missing_ok=True)
        try:
            serve(app, [each.listener for each in self._bound], calls)
        finally:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            self._file.unlink(missing_ok=True)
            self._workspace.close()
        _LOG.info("kawai has ended")
        logging.shutdown()

    def _build(self) -> "App":
        from kawai_tools.api.app import build_app  # noqa: PLC0415
        from kawai_tools.api.observing import NAME as REQUESTS  # noqa: PLC0415
        from kawai_tools.api.observing import RequestLog  # noqa: PLC0415

        log = RequestLog(
            self._settings.state_dir / REQUESTS, self._say if self._this.output.verbose else None
        )
        return build_app(self._workspace, self._names(self._settings), access=self._access, log=log)

    def _names(self, settings: "Settings") -> "Names":
        from kawai_tools.api.guard import known_by  # noqa: PLC0415

        return known_by(
            [(each.host, each.port) for each in self._bound], settings.allow_hosts, settings.allow_origins
        )

    def _set_access(self, settings: "Settings") -> None:
        self._access.set(on=_asks(settings), strict=settings.strict)

    def _first_admin(self, settings: "Settings") -> str | None:
        """Make the first admin's token where tokens are asked for; what is to be told of it."""
        return _first_admin(settings, self._workspace.tokens) if _asks(settings) else None

    def _announce(self, news: str | None) -> None:
        """Say where the server is; to other commands, to people, and to whoever started it."""
        write_atomically(self._file, msgspec.json.encode(self._daemon), mode=0o600, durable=False)
        for each in self._bound:
            _LOG.info("kawai is serving on %s", each.url)
        if news:
            _LOG.info("%s", news)
        if self._settings.insecure and not self._access.on:
            _LOG.warning("--insecure: nobody is asked for a token, on whatever address")
        _LOG.info("its admin page is %s/ui/; kawai ui opens it", self._daemon.url)
        _tell_engine(self._workspace, self._daemon.url)
        self._notifier.ready(f"serving on {self._bound[0].url}")

    def _stop(self) -> None:
        _LOG.info("ending: answers under way get their time, pulls can be gone on with")
        self._notifier.stopping()
        self._workspace.pulls.close(PATIENCE)

    # reading the configuration again

    def _reread(self, app: "App") -> Callable[[], None]:
        """Read the configuration again, in a thread; what then makes it count, in the event loop.

        One that is wrong changes nothing.
        """
        from kawai_tools.cli import server_log  # noqa: PLC0415 - the command line starts without it
        from kawai_tools.renewing import renew, renewed  # noqa: PLC0415 - seldom

        self._notifier.reloading()
        try:
            settings = self._this.reread()
            check_binding([each.host for each in self._bound], settings)
            other = renewed(self._workspace, settings)
            news = self._first_admin(settings)
        except KawaiError as error:
            hint = f"; {error.hint}" if error.hint else ""
            _LOG.error("the configuration was not reread: %s%s", error.message, hint)
            return lambda: self._notifier.ready("serving with the configuration from before")

        def count() -> None:
            before, self._settings = self._settings, settings
            renew(self._workspace, other)
            app.rename(self._names(settings))
            self._set_access(settings)
            if (_asks(settings), settings.strict) != (_asks(before), before.strict):
                app.tighten()
            server_log.reopen()
            app.reopen_log()
            _tell_changes(before, settings)
            if news:
                _LOG.info("%s", news)
            self._notifier.ready(f"serving on {self._bound[0].url}")

        return count


def _asks(settings: "Settings") -> bool:
    return settings.auth or settings.strict


def _tell_changes(before: "Settings", after: "Settings") -> None:
    changed = [name for name in (*KEYS, "models") if getattr(before, name) != getattr(after, name)]
    _LOG.info("the configuration was reread; changed: %s", ", ".join(changed) or "nothing")
    if fixed := ", ".join(sorted(_FIXED.intersection(changed))):
        _LOG.warning("%s will count when the server is started anew", fixed)


def _tell_engine(workspace: "Workspace", url: str) -> None:
    """Say what runs models here, or that nothing does."""
    from kawai_tools.runners.engines import choose, engines  # noqa: PLC0415

    try:
        chosen = choose(engines(workspace.bundles), workspace.settings.engine)
    except KawaiError as error:
        _LOG.warning("no model can be run: %s; %s", error.message, error.hint)
    else:
        _LOG.info("OpenAI clients ask %s/v1; models are run by %s", url, chosen.engine.name)


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
