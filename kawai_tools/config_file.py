"""Reads ``config.toml``; what is wrong with it is said with file, line and key."""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kawai_tools.errors import InvalidConfig

_MEND = "mend or remove that line"
_LONGEST = 200


class Value(NamedTuple):
    """What stands in the file under a key; ``where`` begins every message about it."""

    value: object
    where: str


def read_config(path: Path) -> dict[str, Value]:
    """Every top-level key of the file; none where there is no file. Raises ``InvalidConfig``."""
    data = _read(path)
    if data is None:
        return {}
    text = _decode(path, data)
    import tomllib  # noqa: PLC0415 - only where there is a file

    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers and nesting beyond Python's limits
        raise InvalidConfig(_syntax_error(path, text, error), _MEND) from None
    return {name: Value(value, _where(path, _line_of(name, text), name)) for name, value in table.items()}


def _read(path: Path) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InvalidConfig(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidConfig(f"{path} is no file", "put the settings into a file of that name")
    with os.fdopen(fd, "rb") as file:
        return file.read()


def _decode(path: Path, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        line = before.count("\n") + 1
        words = f"{_where(path, line, _key_at(before.splitlines() or [''], line))}: not UTF-8"
        raise InvalidConfig(words, "save the file as UTF-8") from None


def _where(path: Path, line: int, key: str | None) -> str:
    return f"{path}, line {line}, key {key or '(none)'}"


def _syntax_error(path: Path, text: str, error: Exception) -> str:
    """What tomllib refuses, said of the key whose value it stands in. The value itself may be a secret."""
    at = re.search(r"\(at line (\d+), column \d+\)", str(error))
    lines = text.splitlines()
    line = int(at[1]) if at else len(lines)
    plain = re.sub(r"\s*\(at [^)]*\)", "", str(error))[:_LONGEST]
    return f"{_where(path, line, _key_at(lines, line))}: {plain}"


def _key_at(lines: list[str], line: int) -> str | None:
    """The last key that begins at or before a line."""
    for row in reversed(lines[:line]):
        if found := re.match(r"\s*\[*\s*([A-Za-z_][\w-]*)\s*(?=[=.:\]]|$)", row):
            return found[1]
    return None


def _line_of(name: str, text: str) -> int:
    """Where a top-level key or table begins; 1 where it is written in a way that is not looked for."""
    begins = rf"""\s*\[?\s*["']?{re.escape(name)}["']?\s*[.=\]]"""
    return next(_matching(begins, text), 1)


def _matching(pattern: str, text: str) -> Iterator[int]:
    return (number for number, row in enumerate(text.splitlines(), 1) if re.match(pattern, row))
