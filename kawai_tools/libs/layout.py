"""Every path of installed builds.

::

    libraries/<os>-<arch>-<processor>/<version>/              a build, never edited in place
    libraries/<os>-<arch>-<processor>/.kawai/<version>.json   what it is, whence, how its probe went
    libraries/.partial/<key>/                                 resumable downloads and what is being unpacked
    libraries/active.json                                     which one is used, and the one before it
    libraries/releases.json                                   the last answers of the release server
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LibsLayout:
    """Where things are below the directory that holds kawai's data."""

    data: Path

    @property
    def root(self) -> Path:
        """The directory of all builds."""
        return self.data / "libraries"

    @property
    def active(self) -> Path:
        """Which build is used."""
        return self.root / "active.json"

    @property
    def lock(self) -> Path:
        """Held while ``active.json`` changes."""
        return self.root / ".lock"

    @property
    def releases(self) -> Path:
        """The last answers of the release server."""
        return self.root / "releases.json"

    def bundle(self, platform: str, version: str) -> Path:
        """The directory of a build."""
        return self.root / _name(platform) / _name(version)

    def record(self, platform: str, version: str) -> Path:
        """What is known of a build."""
        return self.root / _name(platform) / ".kawai" / f"{_name(version)}.json"

    @property
    def partials(self) -> Path:
        """Where all resumable downloads are."""
        return self.root / ".partial"

    def partial(self, platform: str, version: str) -> Path:
        """The directory of a build's resumable downloads, and of what is unpacked of it."""
        return self.partials / hashlib.sha256(f"{platform}/{version}".encode()).hexdigest()[:24]

    def pull_lock(self, platform: str, version: str) -> Path:
        """The lock file that one pull of a build holds; gone with its holder."""
        return self.partial(platform, version).with_suffix(".lock")


def _name(part: str) -> str:
    """One name of a path; whatever is none was not checked by whoever asks."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", part):
        raise ValueError(f"{part[:40]!r} is no name of a folder")
    return part
