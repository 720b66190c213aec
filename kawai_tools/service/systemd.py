"""A user unit of systemd (``systemd.service(5)``, ``systemd.exec(5)``)."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from kawai_tools.service.manager import MARK, ServiceReport, insist, is_ours, remove, say, write

NAME = "kawai.service"
_HINT = f"journalctl --user -u {NAME} says more"
_LINGER = "it ends when you log out, unless loginctl enable-linger was run once"
_UNIT = """\
# {mark}
[Unit]
Description=kawai serves llama.cpp models

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
{environ}EnvironmentFile=-{variables}
Restart=on-failure
RestartSec=2
# answers under way get 30 s; the engines are ended by kawai itself
KillMode=mixed
TimeoutStopSec=45

[Install]
WantedBy=default.target
"""


class Systemd:
    """The user's systemd."""

    def __init__(self, config: Path, variables: Path) -> None:
        """``config`` is the user's directory of configuration, ``variables`` a file of variables."""
        self._path = config / "systemd" / "user" / NAME
        self._variables = variables

    def why_not(self) -> str | None:
        """There is none, or it does not answer this user."""
        if shutil.which("systemctl") is None:
            return "there is no systemd"
        said = say("systemctl", "--user", "show-environment")
        return f"systemd does not serve this user ({said.err or said.code})" if said.code else None

    def install(self, command: Sequence[str], environ: Mapping[str, str]) -> list[str]:
        """Write the unit and start it."""
        was_running = self.status().running
        unit = _UNIT.format(
            mark=MARK,
            environ="".join(f"Environment={_assigned(*each)}\n" for each in environ.items()),
            command=" ".join(map(_quoted, command)),
            variables=_escaped(os.path.normpath(self._variables)),
        )
        changed = write(self._path, os.fsencode(unit))
        insist("systemctl", "--user", "daemon-reload", hint=_HINT)
        insist("systemctl", "--user", "enable", "--now", NAME, hint=_HINT)
        done = [f"wrote {self._path}" if changed else f"{self._path} is as it should be"]
        done.append("it runs now, and from every login on")
        if was_running and changed:
            done.append(f"it ran already, as it was: systemctl --user restart {NAME} makes the change count")
        return done

    def uninstall(self) -> list[str]:
        """Stop it and remove the unit."""
        if not is_ours(self._path):
            return ["there was nothing to remove"]
        say("systemctl", "--user", "disable", "--now", NAME)
        remove(self._path)
        insist("systemctl", "--user", "daemon-reload", hint=_HINT)
        return [f"stopped it and removed {self._path}"]

    def status(self) -> ServiceReport:
        """What systemd says of the unit."""
        wanted = "LoadState,UnitFileState,ActiveState,MainPID"
        said = say("systemctl", "--user", "show", NAME, f"--property={wanted}")
        found = dict(line.split("=", 1) for line in said.out.splitlines() if "=" in line)
        pid = found.get("MainPID", "")
        running = found.get("ActiveState") in {"active", "reloading", "activating", "deactivating"}
        return ServiceReport(
            manager="systemd",
            path=os.fsencode(self._path).decode(errors="replace"),
            installed=self._path.exists(),
            enabled=found.get("UnitFileState") == "enabled",
            running=running,
            pid=int(pid) if pid.isdigit() and int(pid) and running else None,
            notes=[] if not self._path.exists() or _lingers() else [_LINGER],
        )


def _lingers() -> bool:
    """Whether the user's systemd runs also while nobody is logged in (``logind`` notes it so)."""
    import pwd  # noqa: PLC0415 - only here

    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return False
    return Path("/var/lib/systemd/linger", name).exists()


def _assigned(name: str, value: str) -> str:
    """A variable and its value (``systemd.exec(5)``, ``Environment=``); a dollar is one there."""
    return _quoted(f"{name}={value}", "$")


def _quoted(word: str, dollar: str = "$$") -> str:
    """A word of a command line (``systemd.service(5)``, command lines; ``systemd.syntax(7)``, quoting)."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("$", dollar)
    return f'"{_escaped(escaped)}"'


def _escaped(word: str) -> str:
    """Without specifiers, and on one line."""
    return word.replace("%", "%%").replace("\n", "\\n")
