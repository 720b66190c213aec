"""Releases of llama.cpp as they are kept: what the release server answered last, on disk."""

import re
from datetime import datetime
from enum import StrEnum
from pathlib import Path

import msgspec

from kawai_tools.errors import UNDECODABLE, HomeNotWritable, NoSpace
from kawai_tools.files import make_directory, read_if_there, write_atomically

REPOSITORY = "ggml-org/llama.cpp"
PAGE = 30
MAX_COPIES = 24
NIGHTLY_TAG = "nightly-tag.txt"


class Channel(StrEnum):
    """Which builds are followed."""

    NIGHTLY = "nightly"
    STABLE = "stable"


class Asset(msgspec.Struct, frozen=True):
    """One file of a release; ``sha256`` is ``None`` where the API gives no digest."""

    name: str
    size: int
    sha256: str | None
    url: str


class Release(msgspec.Struct, frozen=True):
    """One version."""

    tag: str
    prerelease: bool
    assets: list[Asset]


def is_version(words: str) -> bool:
    """Whether this is a version of llama.cpp: ``b`` and a number. It becomes the name of a folder."""
    return re.fullmatch(r"b[0-9]{1,9}", words) is not None


class Copy(msgspec.Struct, frozen=True):
    """The last answer to one question."""

    etag: str | None
    asked_at: datetime
    releases: list[Release]
    next_url: str | None = None


class Copies(msgspec.Struct, frozen=True):
    """The content of ``releases.json``: answers by URL, and the build that each ``nightly-tag.txt`` names."""

    answers: dict[str, Copy] = {}
    notes: dict[str, str] = {}


_COPIES = msgspec.json.Decoder(
    Copies
)  # made as the module is: msgspec is not safe where threads are first to use a type


class Answers:
    """The last answers of one release server, in a file that may be lost."""

    def __init__(self, api: str, path: Path) -> None:
        """``api`` is the server's address without a slash at its end."""
        self.api = api
        self.base = f"{api}/repos/{REPOSITORY}/releases"
        self._path = path

    def remembered(self, channel: Channel) -> tuple[list[Release], datetime] | None:
        """What a channel held when last asked, newest first, and when that was; asks nobody."""
        copies = self.read()
        if channel is Channel.NIGHTLY:
            copy = copies.answers.get(f"{self.base}?per_page={PAGE}")
            return (copy.releases, copy.asked_at) if copy else None
        copy = copies.answers.get(f"{self.base}/latest")
        if copy is None:
            return None
        latest = copy.releases[0]
        note = next((asset for asset in latest.assets if asset.name == NIGHTLY_TAG), None)
        if note is None:
            return [latest], copy.asked_at
        tagged = copies.answers.get(f"{self.base}/tags/{copies.notes.get(note.url)}")
        return (tagged.releases, copy.asked_at) if tagged else None

    def read(self) -> Copies:
        """All of them; what cannot be read, or makes no sense, is not there."""
        try:
            copies = _COPIES.decode(read_if_there(self._path) or b"{}")
        except (*UNDECODABLE, HomeNotWritable):
            return Copies()
        sound = {
            url: copy
            for url, copy in copies.answers.items()
            if copy.asked_at.tzinfo is not None and copy.releases
        }
        return msgspec.structs.replace(copies, answers=sound)

    def keep(self, url: str, copy: Copy) -> None:
        """Keep one more, and the newest of the others."""
        copies = self.read()
        answers = {**copies.answers, url: copy}
        newest = sorted(answers, key=lambda each: answers[each].asked_at, reverse=True)[:MAX_COPIES]
        self.write(msgspec.structs.replace(copies, answers={each: answers[each] for each in newest}))

    def write(self, copies: Copies) -> None:
        """Keep the answers, where that is possible: they only save asking again."""
        try:
            make_directory(self._path.parent)
            write_atomically(self._path, msgspec.json.encode(copies), durable=False)
        except (HomeNotWritable, NoSpace):
            return
