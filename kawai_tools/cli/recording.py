"""Where what the core logs goes, tracebacks above all: ``logs/kawai.log``."""

import contextlib
import logging
import os
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path

from kawai_tools.errors import KawaiError
from kawai_tools.files import make_directory, storage_errors

NAME = "logs/kawai.log"


def keep_traceback(state_dir: Path, error: Exception, *, verbose: bool) -> tuple[str, str]:
    """Log what nobody expected; message and hint to show for it. With ``verbose`` it is shown as well."""
    path = state_dir / NAME
    words = "".join(traceback.format_exception(error))
    if verbose:
        sys.stderr.write(words)
    try:
        append(path, words)
    except (KawaiError, OSError):
        message = f"kawai failed in a way it should not, and {path} cannot be written"
        return message, "run it again with --verbose to see the traceback"
    message = f"kawai failed in a way it should not; the traceback is in {path}"
    return message, "please report it, with that traceback"


def append(path: Path, words: str) -> None:
    """Add an entry; the file is its user's alone, as it may quote what was typed."""
    make_directory(path.parent)
    entry = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} pid {os.getpid()}\n{words.rstrip()}\n"
    with storage_errors(path):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        with os.fdopen(fd, "ab") as file:
            file.write(entry.encode(errors="backslashreplace"))


class File(logging.Handler):
    """Appends what is no mere word."""

    def __init__(self, path: Path) -> None:
        """The file is made with the first entry."""
        super().__init__(logging.WARNING)
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Never raise: whoever logs must not fail because the log cannot be written."""
        with contextlib.suppress(KawaiError, OSError):
            append(self.path, self.format(record))


def configure(state_dir: Path, *, verbose: bool) -> None:
    """Send what the core logs to the file, and with ``verbose`` to stderr."""
    handlers: list[logging.Handler] = [File(state_dir / NAME)]
    if verbose:
        handlers.append(logging.StreamHandler())
    logging.basicConfig(handlers=handlers, format="%(levelname)s %(name)s: %(message)s", force=True)
