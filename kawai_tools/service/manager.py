"""What a service manager is asked for, and which one there is."""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import msgspec

from kawai_tools.errors import Conflict, NoServiceManager, ServiceFailed
from kawai_tools.files import make_directory, read_if_there, storage_errors, write_atomically
from kawai_tools.settings import KEYS, Settings, Source

MARK = "written by kawai service install"
"""Stands in every file that kawai writes for a service manager: another is not ours to replace."""

_PATIENCE = 120.0
_XDG = ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")


class ServiceReport(msgspec.Struct, frozen=True, kw_only=True):
    """How the service stands; ``done`` is what was done just now, ``notes`` what is worth knowing."""

    manager: Literal["systemd", "launchd"]
    path: str
    installed: bool
    enabled: bool
    running: bool
    pid: int | None
    done: list[str] = []
    notes: list[str] = []


class Manager(Protocol):
    """A service manager of the user."""

    def why_not(self) -> str | None:
        """Why it cannot be used here; ``None`` where it can."""

    def install(self, command: Sequence[str], environ: Mapping[str, str]) -> list[str]:
        """Have the command run from now on, with these variables; what was done."""

    def uninstall(self) -> list[str]:
        """Have it run no more; what was done."""

    def status(self) -> ServiceReport:
        """How it stands."""


class Said(NamedTuple):
    """How a manager's own program ended."""

    code: int
    out: str
    err: str


def say(*command: str) -> Said:
    """Run a manager's program. Raises ``ServiceFailed`` where it does not end, or cannot be started."""
    try:
        ended = subprocess.run(  # noqa: S603 - systemctl or launchctl
            command, capture_output=True, text=True, errors="replace", timeout=_PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServiceFailed(f"{' '.join(command)} failed: {error}") from error
    return Said(ended.returncode, ended.stdout, ended.stderr.strip())


def insist(*command: str, hint: str) -> None:
    """Run a manager's program to a good end. Raises ``ServiceFailed``."""
    said = say(*command)
    if said.code:
        words = said.err or f"exit code {said.code}"
        raise ServiceFailed(f"{' '.join(command)} failed: {words}", hint)


def write(path: Path, data: bytes) -> bool:
    """Write a manager's file; whether it is another than before. Raises ``Conflict`` for one not ours."""
    before = read_if_there(path)
    if before is not None and MARK.encode() not in before:
        raise Conflict(f"{path} is there, and kawai did not write it", "move it away, or use it as it is")
    if before == data:
        return False
    make_directory(path.parent)
    write_atomically(path, data)
    return True


def is_ours(path: Path) -> bool:
    """Whether there is a manager's file of kawai. Raises ``Conflict`` for one that is not ours."""
    before = read_if_there(path)
    if before is not None and MARK.encode() not in before:
        raise Conflict(f"{path} was not written by kawai", "remove it yourself, if that is meant")
    return before is not None


def remove(path: Path) -> None:
    """Remove a manager's file."""
    with storage_errors(path):
        path.unlink(missing_ok=True)


class Service:
    """``kawai serve`` of one home as a service."""

    def __init__(self, settings: Settings, managers: Sequence[Manager], variables: Path) -> None:
        """``managers`` are those that could be here, the likeliest first.

        ``variables`` is a file of variables for the service: for secrets, which stand in no ``config.toml``.
        """
        self._settings, self._managers, self._variables = settings, managers, variables

    def install(self) -> ServiceReport:
        """Have it run from now on, and at every login.

        Raises ``NoServiceManager``, ``ServiceFailed``, or ``Conflict`` where another's file is in the way.
        """
        manager = self._manager()
        done = manager.install(self.command(), self._places())
        found = manager.status()
        notes = [*found.notes, *self._left_behind(found.manager)]
        return msgspec.structs.replace(found, done=done, notes=notes)

    def uninstall(self) -> ServiceReport:
        """Have it run no more. Models, builds and settings stay."""
        manager = self._manager()
        done = manager.uninstall()
        return msgspec.structs.replace(manager.status(), done=done, notes=[])

    def status(self) -> ServiceReport:
        """How it stands."""
        return self._manager().status()

    def _manager(self) -> Manager:
        reasons = []
        for manager in self._managers:
            reason = manager.why_not()
            if reason is None:
                return manager
            reasons.append(reason)
        raise NoServiceManager(
            f"no service manager could run kawai here: {'; '.join(reasons)}",
            f"run it yourself, as it is or from what starts programs here: {shlex.join(self.command())}",
        )

    def command(self) -> list[str]:
        """What is run: this kawai, on this home."""
        program = Path(sys.executable).with_name("kawai")
        start = [str(program)] if os.access(program, os.X_OK) else [sys.executable, "-P", "-m", "kawai_tools"]
        home = self._settings.home
        return [*start, "serve", *(["--home", os.path.normpath(home)] if home else [])]

    def _places(self) -> dict[str, str]:
        """Variables by which this shell has moved kawai's directories, where no home does."""
        if self._settings.home is not None:
            return {}
        return {name: os.environ[name] for name in _XDG if os.environ.get(name)}

    def _left_behind(self, manager: str) -> list[str]:
        """What is set by variables of this shell, which a service does not have."""
        settable: list[str] = []
        others: list[str] = []
        for name, key in KEYS.items():
            if self._settings.source(name) == Source.ENVIRONMENT and name != "home":
                found = next(each for each in key.variables if os.environ.get(each))
                (settable if key.in_file else others).append(found)
        words = "{} of this shell: the service does not have it; {}"
        notes = [words.format(each, f"set it in {self._settings.config_file}") for each in settable]
        if manager == "systemd":
            return notes + [words.format(each, f"put it into {self._variables}") for each in others]
        return notes + [words.format(each, "launchctl setenv gives it one") for each in others]
