"""What other tools on this machine already hold, and whether it has been adopted."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from kawai_tools.models.caches import READERS, Held, identity, lmstudio_homes
from kawai_tools.models.layout import Layout
from kawai_tools.models.records import Entry
from kawai_tools.models.store import Store
from kawai_tools.settings import Settings

_OLLAMA_SERVICE = ("/usr/share/ollama/.ollama/models", "/var/lib/ollama/.ollama/models", "/var/lib/ollama")
"""Where Ollama keeps its models if it runs as a service of Linux distributions."""


_LOCAL = "file:"


class FoundFile(msgspec.Struct, frozen=True, kw_only=True):
    """A GGUF file of another tool: ``path`` is what adopt takes, ``name`` what the tool calls it.

    ``size`` is in bytes; ``sha256`` is what the tool says of it, ``None`` where it says nothing.
    """

    path: str
    tool: str
    name: str
    size: int
    sha256: str | None
    adopted: bool


class Place(NamedTuple):
    """Where a tool may keep its files."""

    tool: str
    directory: Path


def places(settings: Settings) -> list[Place]:
    """Where to look: where the settings say, else where each tool keeps its files by itself."""
    home = Path.home()
    hub = settings.hub_cache or settings.hub_home.expanduser() / "hub"
    ollama = [home / ".ollama" / "models", *map(Path, _OLLAMA_SERVICE)]
    ollama = [settings.ollama_models] if settings.ollama_models else ollama
    studio = [settings.lmstudio_home] if settings.lmstudio_home else lmstudio_homes(home)
    return [
        Place("huggingface", hub),
        *(Place("lmstudio", each) for each in studio),
        *(Place("ollama", each) for each in ollama),
    ]


class Neighbours:
    """The other tools of this machine."""

    def __init__(self, store: Store, found_in: list[Place]) -> None:
        """Nothing is looked at yet."""
        self._store = store
        self.places = found_in

    def rows(self) -> list[FoundFile]:
        """What they hold, sorted by tool and name; nothing is hashed, and nothing changed."""
        installed = _Installed(self._store.layout, self._store.index.all())
        rows = {
            (held.tool, held.name, str(held.path)): FoundFile(
                path=str(held.path),
                tool=held.tool,
                name=held.name,
                size=held.size,
                sha256=held.sha256,
                adopted=installed.has(held),
            )
            for held in self._held(self.places)
            if _can_be_told(held)
        }
        return [rows[key] for key in sorted(rows)]

    def known(self, real: Path) -> Held | None:
        """What a tool says of the file that lies there; ``None`` where none holds it."""
        around = [place for place in self.places if _real(place.directory) in real.parents]
        return next((held for held in self._held(around) if _real(held.path) == real), None)

    @staticmethod
    def _held(found_in: Iterable[Place]) -> Iterator[Held]:
        for place in found_in:
            yield from READERS[place.tool](place.directory)


class _Installed:
    """The files of installed models, asked without hashing."""

    def __init__(self, layout: Layout, entries: list[Entry]) -> None:
        self._layout = layout
        self._paths: dict[int, list[str]] = defaultdict(list)
        self._digests: set[str] = set()
        self._words: set[tuple[str, int]] = set()
        for record in (entry.record for entry in entries if entry.present):
            for file in record.files:
                self._paths[file.size].append(file.path)
                self._digests.update([file.sha256] if file.sha256 else [])
                self._words.update((word, file.size) for word in record.sources)

    def has(self, held: Held) -> bool:
        """Whether that file is one of them, has the digest of one, or is what one was copied from."""
        return (
            held.sha256 in self._digests
            or (source_word(Path(os.path.realpath(held.path))), held.size) in self._words
            or any(self._is(path, held) for path in self._paths[held.size])
        )

    def _is(self, path: str, held: Held) -> bool:
        try:
            return identity(self._layout.file(path).stat()) == held.identity
        except OSError:
            return False


def source_word(real: Path) -> str:
    """The word by which a record remembers the file that it was taken from."""
    return f"{_LOCAL}{os.fsencode(real).decode(errors='backslashreplace')}"


def is_local(word: str) -> bool:
    """Whether a word of a record means a file of this machine."""
    return word.startswith(_LOCAL)


def _can_be_told(held: Held) -> bool:
    """Whether path and name are text: JSON has no words for others."""
    return not any("\ud800" <= char <= "\udfff" for char in f"{held.path}{held.name}")


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
