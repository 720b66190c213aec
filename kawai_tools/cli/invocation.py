"""One run of the command line: its global options, and what they lead to, made when first used."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from kawai_tools.cli.output import Output
from kawai_tools.errors import NoServer, UsageError
from kawai_tools.resolving import resolve
from kawai_tools.settings import KEYS, Settings

if TYPE_CHECKING:
    from kawai_tools.remote.peer import Peer
    from kawai_tools.workspace import Workspace


class Invocation:
    """What was typed, and the workspace it is about."""

    def __init__(self, args: Sequence[str]) -> None:
        """Nothing is read yet."""
        self.args = args
        self.environ: Mapping[str, str] = os.environ
        self.flags: dict[str, object] = {}
        self.output = Output()

    def flag(self, name: str, words: str | None, shown: str | None = None) -> None:
        """Take a setting from its flag, which is called as the setting unless it is ``shown`` otherwise.

        Raises ``UsageError``.
        """
        if words is None:
            return
        try:
            self.flags[name] = KEYS[name].parse(words)
        except ValueError as error:
            flag = shown or f"--{name.replace('_', '-')}"
            told = "its value" if "@" in words else repr(words)  # an address may hold a password
            raise UsageError(f"{flag} must be {error}, not {told}") from None

    @cached_property
    def settings(self) -> Settings:
        """Every setting. Raises ``InvalidConfig``."""
        return resolve(self.flags, self.environ)

    def reread(self) -> Settings:
        """Every setting as it would be now. Raises ``InvalidConfig``."""
        return resolve(self.flags, self.environ)

    @cached_property
    def places(self) -> Settings:
        """Settings that know the directories only: to be had also where ``config.toml`` is broken."""
        home = self.flags.get("home") or self.environ.get("KAWAI_HOME") or None
        with contextlib.suppress(RuntimeError, OSError):  # ~ of nobody; a working directory that is gone
            return Settings(home=Path(str(home)).expanduser().absolute() if home else None)
        return Settings(home=None)

    @cached_property
    def workspace(self) -> "Workspace":
        """The workspace on this machine."""
        from kawai_tools.workspace import Workspace  # noqa: PLC0415 - help needs none

        return Workspace(self.settings)

    @property
    def is_remote(self) -> bool:
        """Whether another kawai is named, on which all is to be carried out; asked before flags are taken."""
        return bool(self.flags.get("server") or self.environ.get("KAWAI_SERVER"))

    def peer(self) -> "Peer":
        """The kawai that is asked: the one that is named, else the daemon of this home.

        Raises ``NoServer`` where there is none, and ``InvalidConfig`` for a token that cannot be had.
        """
        from kawai_tools.remote.daemon import find_daemon  # noqa: PLC0415 - most commands ask nobody
        from kawai_tools.remote.peer import Peer  # noqa: PLC0415

        if self.is_remote:
            return Peer.of_settings(self.settings)
        daemon = find_daemon(self.settings.state_dir)
        if daemon is None:
            raise NoServer("no kawai server runs on this home", "start one with kawai serve")
        return Peer.of_daemon(daemon, self.settings.state_dir)

    def serves(self) -> bool:
        """Whether there is a kawai to ask."""
        from kawai_tools.remote.daemon import find_daemon  # noqa: PLC0415

        return self.is_remote or find_daemon(self.settings.state_dir) is not None

    def keep_log(self) -> None:
        """Send what the core logs to its file: only work that runs in threads logs."""
        from kawai_tools.cli import recording  # noqa: PLC0415

        recording.configure(self.settings.state_dir, verbose=self.output.verbose)


def invocation(context: typer.Context) -> Invocation:
    """The run that a command belongs to."""
    found = context.find_root().obj
    if not isinstance(found, Invocation):
        raise TypeError("a command was run outside of kawai_tools.cli.app.run")
    return found
