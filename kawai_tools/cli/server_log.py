"""What a server says: for people on a terminal, else lines of JSON; to ``logs/serve.log``; to its journal."""

import contextlib
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from queue import Full, Queue
from typing import TYPE_CHECKING

import msgspec

from kawai_tools.cli import recording, text
from kawai_tools.cli.output import Output, coloured, is_terminal
from kawai_tools.errors import UNDECODABLE, KawaiError
from kawai_tools.events import LogLine
from kawai_tools.files import make_directory

if TYPE_CHECKING:
    from kawai_tools.journal import Journal

NAME = "logs/serve.log"
SIZE, COPIES = 4 << 20, 2
"""Bytes of the server's log, and how many full ones are kept beside it."""

_OURS = "kawai_tools"
_COLOURS = {"error": "\x1b[1;31m", "warning": "\x1b[33m"}
_LEVELS = {"CRITICAL": "error", "ERROR": "error", "WARNING": "warning", "INFO": "info", "DEBUG": "debug"}
_READ = 1 << 20
_MOST_WAITING, _FLUSH_PATIENCE, _TICK = 1000, 1.0, 0.005


def configure(state_dir: Path, output: Output, journal: "Journal") -> Callable[[bytes], None]:
    """Send what a server says to stderr, its file and its journal, which begins with the end of the file.

    What it returns says whole lines on stderr only.
    """
    path = state_dir / NAME
    journal.add(read_last(path, _READ))
    stderr = _stderr(output)
    handlers: list[logging.Handler] = [recording.File(state_dir / recording.NAME), _Journal(journal), stderr]
    with contextlib.suppress(KawaiError):  # a full disk is no reason to serve nobody
        make_directory(path.parent)
        handlers.append(_Lines(path, maxBytes=SIZE, backupCount=COPIES, delay=True))
    logging.basicConfig(handlers=handlers, level=logging.WARNING, force=True)
    logging.getLogger(_OURS).setLevel(logging.DEBUG if output.verbose else logging.INFO)
    return stderr.say


def reopen() -> None:
    """Write to the file that has the log's name now: another may have been moved away."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, RotatingFileHandler):
            handler.close()


def read_last(path: Path, most: int) -> list[LogLine]:
    """The last lines of a log of lines, as far as they are whole; none where there is none."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            file.seek(max(0, path.stat().st_size - most))
            found = file.read(most).split(b"\n")
    except OSError:
        return []
    lines = []
    for each in found:
        with contextlib.suppress(*UNDECODABLE):
            lines.append(msgspec.json.decode(each, type=LogLine))
    return lines


def _line(record: logging.LogRecord) -> LogLine:
    """What was logged as a line; one of kawai's own says which part of it speaks."""
    words = record.getMessage()
    if record.exc_info and record.exc_info[1] is not None:
        words += "\n" + "".join(traceback.format_exception(record.exc_info[1])).rstrip()
    at = datetime.fromtimestamp(record.created, UTC)
    at = at.replace(microsecond=at.microsecond // 1000 * 1000)
    source = "kawai" if record.name.partition(".")[0] == _OURS else record.name
    return LogLine(time=at, level=_LEVELS.get(record.levelname, "info"), source=source, message=words)


class _Journal(logging.Handler):
    def __init__(self, journal: "Journal") -> None:
        super().__init__()
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        """Pass it on."""
        self._journal.add([_line(record)])


class _Lines(RotatingFileHandler):
    """A file of JSON lines that is kept small, its user's alone."""

    def _open(self):  # type: ignore[no-untyped-def] # noqa: ANN202 - as the base class
        return open(
            self.baseFilename,
            "a",
            encoding="utf-8",
            errors="backslashreplace",
            opener=lambda path, flags: os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600),
        )

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        return msgspec.json.encode(_line(record)).decode()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - as the base class
        """Say nothing: the line is lost, the server is not."""


def _stderr(output: Output) -> "_Stderr":
    for_people = is_terminal(sys.stderr) and not output.json
    return _Stderr(logging.WARNING if output.quiet else logging.NOTSET, for_people=for_people)


class _Stderr(logging.Handler):
    """For people on a terminal, lines of JSON elsewhere; by a thread, since nobody may be reading."""

    def __init__(self, level: int, *, for_people: bool) -> None:
        super().__init__(level)
        self._for_people = for_people
        self._lines: Queue[bytes] = Queue(_MOST_WAITING)
        threading.Thread(target=self._write_all, name="stderr", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Say a line of the log."""
        line = _line(record)
        self.say(shown(line, colour=coloured(sys.stderr)).encode() if self._for_people else _json(line))

    def say(self, words: bytes) -> None:
        """Say whole lines, without waiting: what nobody reads is in a file all the same."""
        with contextlib.suppress(Full):
            self._lines.put_nowait(words)

    def _write_all(self) -> None:
        while True:
            self._write(self._lines.get())
            self._lines.task_done()

    @staticmethod
    def _write(words: bytes) -> None:
        """Write past Python's buffer, whose lock would keep the process from ending while nobody reads."""
        with contextlib.suppress(OSError, ValueError, AttributeError):  # a terminal that has gone, or none
            fd = sys.stderr.fileno()
            while words:
                words = words[os.write(fd, words) :]

    def flush(self) -> None:
        """Wait for what was said, for a moment."""
        until = time.monotonic() + _FLUSH_PATIENCE
        while self._lines.unfinished_tasks and time.monotonic() < until:
            time.sleep(_TICK)


def _json(line: LogLine) -> bytes:
    return msgspec.json.encode(line) + b"\n"


def shown(line: LogLine, *, colour: bool = False) -> str:
    """A line for people: when, what kind if it is no mere word, and what was said."""
    label = "" if line.level == "info" else f"{line.level}: "
    if label and colour and line.level in _COLOURS:
        label = f"{_COLOURS[line.level]}{line.level}:\x1b[0m "
    source = "" if line.source == "kawai" else f"{text.safe(line.source)}: "
    return f"{line.time.astimezone():%Y-%m-%d %H:%M:%S} {label}{source}{text.harmless(line.message)}\n"
