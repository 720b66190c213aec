"""Headers of files of the store, read again when the file is another."""

from pathlib import Path

from kawai_tools.files import stamp
from kawai_tools.gguf import Header, read_header

_MOST = 128


class Headers:
    """Remembers the last headers that were read. Safe to share between threads."""

    def __init__(self) -> None:
        """Nothing is read yet."""
        self._known: dict[Path, tuple[object, Header]] = {}

    def read(self, path: Path) -> Header:
        """The header of a file. Raises ``MalformedGguf``, ``NotAModel`` or ``OSError``."""
        key, known = stamp(path), self._known.get(path)
        if known is None or known[0] != key:
            if len(self._known) >= _MOST:
                self._known.clear()
            known = self._known[path] = (key, read_header(path))
        return known[1]
