"""The single sink: results go to stdout, all else to stderr.

``--json`` prints the bytes that HTTP would send, ``--quiet`` leaves results and errors only. What is
shown to people has passed :func:`~kawai_tools.cli.text.safe`. Colour is for terminals, without ``NO_COLOR``.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import IO, TypeVar

import msgspec

from kawai_tools.cli import text
from kawai_tools.errors import ErrorBody, ErrorInfo

T = TypeVar("T")

_LINES = 24
_RED, _CYAN, _PLAIN = "\x1b[1;31m", "\x1b[36m", "\x1b[0m"


class OutputFailed(Exception):
    """Stdout or stderr cannot be written, and not because its reader has left."""


class Output:
    """Where a command's words go."""

    def __init__(self) -> None:
        """As if no option were given."""
        self.json = False
        self.quiet = False
        self.verbose = False
        self.now = datetime.now(UTC)

    def payload(self, value: T, render: Callable[[T], str]) -> None:
        """A result: its JSON, or what ``render`` makes of it for people."""
        if self.json:
            self.line(value)
        else:
            _write(sys.stdout, render(value).encode(errors="backslashreplace"))

    def line(self, value: object) -> None:
        """A result as one line of JSON, sent at once."""
        _write(sys.stdout, msgspec.json.encode(value) + b"\n")

    def stream(self, words: str) -> None:
        """A piece of a result, as it comes; what a model says must not command a terminal."""
        shown = text.harmless(words) if is_terminal(sys.stdout) else words
        _write(sys.stdout, shown.encode(errors="backslashreplace"))

    def result(self, words: str) -> None:
        """A result for people; with ``--json`` the payload has said it."""
        if not self.json:
            _write(sys.stdout, f"{text.safe(words)}\n".encode(errors="backslashreplace"))

    def waiting(self, words: str) -> None:
        """What is waited for, where somebody watches."""
        if is_terminal(sys.stderr):
            self.note(words)

    def note(self, words: str) -> None:
        """A word beside the result, for people."""
        if not self.json:
            self.warn(words)

    def warn(self, words: str) -> None:
        """A word beside the result that is wanted also with ``--json``."""
        if not self.quiet:
            self.say(words)

    def say(self, words: str) -> None:
        """One line on stderr, whatever the options."""
        _write(sys.stderr, f"{text.safe(words)}\n".encode(errors="backslashreplace"))

    def error(self, info: ErrorInfo) -> None:
        """An error: one line of JSON, or message and hint."""
        if self.json:
            _write(sys.stderr, msgspec.json.encode(ErrorBody(info)) + b"\n")
            return
        self._labelled("error", _RED, info.message)
        if info.hint:
            self._labelled("hint", _CYAN, info.hint)

    def _labelled(self, label: str, colour: str, words: str) -> None:
        start = f"{colour}{label}:{_PLAIN}" if coloured(sys.stderr) else f"{label}:"
        _write(sys.stderr, f"{start} {text.safe(words)}\n".encode(errors="backslashreplace"))

    def table(self, columns: Sequence[text.Column], rows: Sequence[Sequence[str]]) -> str:
        """A table, fitted to stdout if that is a terminal; piped it is never cut."""
        return text.table(
            columns, rows, terminal_size(sys.stdout).columns if is_terminal(sys.stdout) else None
        )

    def wrapped(self, words: str) -> str:
        """Plain words as lines that a terminal need not break; piped they are one."""
        if not is_terminal(sys.stdout):
            return text.safe(words)
        import textwrap  # noqa: PLC0415 - only for people

        return textwrap.fill(text.safe(words), terminal_size(sys.stdout).columns)

    def ago(self, time: datetime | None) -> str:
        """How long ago that was."""
        return text.ago(time, self.now)


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether somebody watches."""
    return stream is not None and not stream.closed and stream.isatty()


def coloured(stream: IO[str] | None, environ: Mapping[str, str] | None = None) -> bool:
    """Whether colour is wanted there."""
    variables = os.environ if environ is None else environ
    return is_terminal(stream) and not variables.get("NO_COLOR") and variables.get("TERM") != "dumb"


def terminal_size(stream: IO[str]) -> os.terminal_size:
    """Columns and lines of the terminal that a stream writes to."""
    usual = (text.WIDTH, _LINES)
    try:
        found = os.get_terminal_size(stream.fileno())
    except OSError:
        return os.terminal_size(usual)
    return os.terminal_size((found.columns or usual[0], found.lines or usual[1]))


def _write(stream: IO[str] | None, data: bytes) -> None:
    if stream is None:  # started with a closed descriptor: nobody wants to know
        return
    try:
        stream.flush()
        stream.buffer.write(data)  # type: ignore[attr-defined] # a real stream has one
        stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputFailed(f"cannot write the output: {error.strerror}") from error


def close_quietly() -> None:
    """Send what is left; a reader that has gone must not make the interpreter complain at its end."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
