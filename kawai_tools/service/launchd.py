"""A user agent of launchd (``launchd.plist(5)``, ``launchctl(1)``)."""

import os
import plistlib
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from kawai_tools.service.manager import MARK, ServiceReport, insist, is_ours, remove, say, write

LABEL = "tools.kawai.serve"


class Launchd:
    """The user's launchd."""

    def __init__(self, home: Path, log: Path, platform: str = sys.platform) -> None:
        """``home`` is the user's, ``log`` where what the service says goes."""
        self._path = home / "Library" / "LaunchAgents" / f"{LABEL}.plist"
        self._log, self._platform = log, platform
        self._domain = f"gui/{os.getuid()}"

    def why_not(self) -> str | None:
        """It is no macOS."""
        if self._platform != "darwin" or shutil.which("launchctl") is None:
            return "there is no launchd"
        return None

    def install(self, command: Sequence[str], environ: Mapping[str, str]) -> list[str]:
        """Write the agent and start it."""
        agent = {
            "Label": LABEL,
            "ProgramArguments": list(command),
            "EnvironmentVariables": dict(environ),
            "RunAtLoad": True,
            "KeepAlive": {"SuccessfulExit": False},
            "ExitTimeOut": 45,
            "ProcessType": "Interactive",
            "StandardErrorPath": str(self._log),
            "Comment": MARK,
        }
        changed = write(self._path, plistlib.dumps(agent))
        if changed or not self.status().enabled:
            say("launchctl", "bootout", f"{self._domain}/{LABEL}")
            hint = f"{self._log} says more"
            insist("launchctl", "bootstrap", self._domain, str(self._path), hint=hint)
        wrote = f"wrote {self._path}" if changed else f"{self._path} is as it should be"
        return [wrote, "it runs now, and from every login on"]

    def uninstall(self) -> list[str]:
        """Stop it and remove the agent."""
        if not is_ours(self._path):
            return ["there was nothing to remove"]
        say("launchctl", "bootout", f"{self._domain}/{LABEL}")
        remove(self._path)
        return [f"stopped it and removed {self._path}"]

    def status(self) -> ServiceReport:
        """What launchd says of the agent."""
        said = say("launchctl", "print", f"{self._domain}/{LABEL}")
        pid = re.search(r"^\s*pid = (\d+)$", said.out, re.MULTILINE)
        return ServiceReport(
            manager="launchd",
            path=str(self._path),
            installed=self._path.exists(),
            enabled=said.code == 0,
            running=pid is not None,
            pid=int(pid[1]) if pid else None,
        )
