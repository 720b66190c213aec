"""The service of a home on this machine."""

import os
from pathlib import Path

from kawai_tools.service.launchd import Launchd
from kawai_tools.service.manager import Service
from kawai_tools.service.systemd import Systemd
from kawai_tools.settings import Settings


def service_of(settings: Settings) -> Service:
    """``kawai serve`` with these settings, of whichever manager this user has."""
    home = Path.home()
    config = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    config = config if config.is_absolute() else home / ".config"  # as the XDG specification says
    variables = settings.config_dir / "service.env"
    log = settings.state_dir / "logs" / "launchd.log"
    return Service(settings, [Systemd(config, variables), Launchd(home, log)], variables)
