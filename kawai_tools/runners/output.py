"""What a child says: its lines go to the journal of its model, and the end of it into error messages."""

import asyncio
import io  # noqa: TC003 - read while the program runs
import re

from kawai_tools.events import LogLine
from kawai_tools.journal import MOST, Journal, line_of

_TAIL, _TOLD, _LONGEST = 64 * 1024, 3, 2000
_MARK = re.compile(r"[\d.]+ ([A-Z]) ")
"""How llama.cpp begins a line: the time, and E for an error, W for a warning, I for a word beside."""

_LEVELS = {"E": "error", "W": "warning", "D": "debug"}


class Output(asyncio.Protocol):
    """The output of one child. Used in the event loop's thread only."""

    def __init__(self, journal: Journal, source: str, hidden: dict[str, str]) -> None:
        """``hidden`` are words that are no business of readers, and what stands for them."""
        self._journal, self._source, self._hidden = journal, source, hidden
        self._tail, self._rest = bytearray(), b""

    async def read(self, pipe: "io.FileIO") -> None:
        """Take what comes through a pipe, until it closes."""
        await asyncio.get_running_loop().connect_read_pipe(lambda: self, pipe)

    def data_received(self, data: bytes) -> None:
        """Keep the end of it, and tell its lines; of too many at once the last ones."""
        self._tail += data
        del self._tail[:-_TAIL]
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-_TAIL:]
        if lines:
            self._journal.add(map(self._line, lines[-MOST:]))

    def connection_lost(self, _: Exception | None) -> None:
        """Tell the last line, which may have no end."""
        if self._rest:
            self._journal.add([self._line(self._rest)])
            self._rest = b""

    def _line(self, data: bytes) -> LogLine:
        words = self._readable(data)[:_LONGEST]
        mark = _MARK.match(words)
        level = _LEVELS.get(mark[1], "info") if mark else "info"
        return line_of(level, self._source, words[mark.end() :] if mark else words)

    def _readable(self, data: bytes | bytearray) -> str:
        words = data.decode("utf-8", "replace").rstrip("\r")
        for hidden, shown in self._hidden.items():
            words = words.replace(hidden, shown)
        return words

    def last_words(self) -> str:
        """What was said last: the errors first of all, where llama.cpp marks them as such."""
        lines = [line.strip() for line in self._readable(self._tail).splitlines() if line.strip()]
        errors = [_MARK.sub("", line) for line in lines if (mark := _MARK.match(line)) and mark[1] == "E"]
        told = errors[:_TOLD] or [line for line in lines if not _MARK.match(line)][-_TOLD:]
        return "; ".join(line[:200] for line in told)
