"""Headers of files of the store, read again when the file is another."""

from pathlib import Path

from kawai_tools.files import stamp
from kawai_tools.gguf import Header, read_header

_MOST, _LONGEST = 128, 1 << 18
"""Headers that are remembered, and bytes that one may take for that."""


class Headers:
    """Remembers the last headers that were read. Safe to share between threads."""

    def __init__(self) -> None:
        """Nothing is read yet."""
        self._known: dict[Path, tuple[object, Header]] = {}

    def read(self, path: Path) -> Header:
        """The header of a file. Raises ``MalformedGguf``, ``NotAModel`` or ``OSError``."""
        key, known = stamp(path), self._known.get(path)
        if known is None or known[0] != key:
            known = (key, read_header(path))
            if known[1].kept < _LONGEST:
                if len(self._known) >= _MOST:
                    self._known.clear()
                self._known[path] = known
        return known[1]
