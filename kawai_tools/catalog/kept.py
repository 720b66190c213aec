"""The last good copy of each subscribed catalog, with what tells whether the server has another."""

import contextlib
import time
from collections.abc import Collection, Iterator
from datetime import datetime
from pathlib import Path

import msgspec

from kawai_tools.errors import UNDECODABLE, HomeNotWritable
from kawai_tools.files import Lock, clear_left_behind, make_directory, read_if_there, write_atomically

MOST_REPLACED = 50
_PATIENCE, _TICK = 2.0, 0.01


class Kept(msgspec.Struct, frozen=True):
    """A copy as it was fetched, with the digest of its text. ``modified`` is the server's ``Last-Modified``.

    ``replaced`` are the digests of the copies before it, newest first: one of them is an older copy.
    """

    url: str
    text: str
    sha256: str
    etag: str | None
    modified: datetime | None
    replaced: list[str] = []


_KEPT = msgspec.json.Decoder(
    Kept
)  # made as the module is: msgspec is not safe where threads are first to use a type


class Keeper:
    """The folder of kept copies."""

    def __init__(self, folder: Path) -> None:
        """Nothing is read yet."""
        self.folder = folder

    def path(self, url: str) -> Path:
        """Where the copy of a subscription is."""
        return self.folder / f"{digest_of(url)[:24]}.json"

    def read(self, url: str) -> Kept | None:
        """The copy of a subscription; ``None`` where there is none that can be read."""
        try:
            kept = _KEPT.decode(read_if_there(self.path(url)) or b"")
        except (*UNDECODABLE, HomeNotWritable, OSError):
            return None
        return kept if kept.url == url and digest_of(kept.text) == kept.sha256 else None

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Change a copy while no other process does; who waits too long goes on."""
        lock = Lock(self.folder.with_name("update.lock"))
        until = time.monotonic() + _PATIENCE
        while not lock.acquire() and time.monotonic() < until:
            time.sleep(_TICK)
        try:
            yield
        finally:
            lock.release()

    def write(self, kept: Kept) -> None:
        """Keep a copy instead of the one before. Raises ``HomeNotWritable`` or ``NoSpace``."""
        make_directory(self.folder)
        write_atomically(self.path(kept.url), msgspec.json.encode(kept))

    def tidy(self, urls: Collection[str]) -> None:
        """Remove the copies of what is subscribed to no more, and what killed writers have left.

        That only saves room: what cannot be removed stays.
        """
        wanted = {self.path(url) for url in urls}
        with contextlib.suppress(OSError):
            clear_left_behind(self.folder)
            clear_left_behind(self.folder.parent)
        for path in self.folder.glob("*.json"):
            if path not in wanted:
                with contextlib.suppress(OSError):
                    path.unlink()


def digest_of(text: str) -> str:
    """SHA-256 of a copy's text."""
    import hashlib  # noqa: PLC0415 - only where something is subscribed to

    return hashlib.sha256(text.encode()).hexdigest()
