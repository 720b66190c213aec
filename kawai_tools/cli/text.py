"""Words for people: sizes, times, tables, and nothing that could command a terminal.

Pure functions of their arguments. Tables are plain strings: one of 10,000 rows must cost next to nothing.
"""

import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import NamedTuple

WIDTH = 80
"""Columns that a table fits where the terminal does not say how many it has."""

_HUGE = 10**18
_UNITS = (
    (10**3, 1, "B"),
    (999_950, 10**3, "kB"),  # from here on it would be shown as 1000.0
    (999_950_000, 10**6, "MB"),
    (999_950_000_000, 10**9, "GB"),
    (999_950_000_000_000, 10**12, "TB"),
    (999_950_000_000_000_000, 10**15, "PB"),
)
_SCALES = ("", "K", "M", "B", "T")
_AGES = ((365, "year"), (30, "month"), (7, "week"), (1, "day"))
_SHORT_AGES = ((3600, "hour"), (60, "minute"))
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_NARROWEST = 12
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Column(NamedTuple):
    """How one column of a table is set; the one that ``shrinks`` gives way on a narrow terminal.

    It loses its middle, or its end where the start is what counts.
    """

    title: str
    right: bool = False
    shrinks: bool = False
    keeps_start: bool = False


def safe(text: str) -> str:
    """The text with control, bidi and other invisible characters written out: names come from strangers."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def harmless(text: str) -> str:
    """The text as it is, but for what could command a terminal or turn its lines round: words of a model."""
    return "".join(_escaped(char) if _commands(char) else char for char in text)


def _commands(char: str) -> bool:
    category = unicodedata.category(char)
    return (category == "Cc" and char not in "\n\t") or char in _TURNING


_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""What sets the direction of what follows (Unicode's annex 9); joiners are part of words and of emoji."""


def _escaped(char: str) -> str:
    code = ord(char)
    if char in _NAMED:
        return _NAMED[char]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"  # noqa: PLR2004


def size(count: int | None) -> str:
    """Bytes as ``98.4 MB``, decimal."""
    if count is None:
        return "-"
    for end, scale, unit in _UNITS:
        if count < end:
            return f"{count / scale:.1f} {unit}" if scale > 1 else f"{count} {unit}"
    return f"{count / _HUGE:.1f} EB"


def rate(count: int | None) -> str:
    """Bytes per second as ``20.1 MB/s``."""
    return "" if count is None else f"{size(count)}/s"


def parameters(count: int | None) -> str:
    """A number of parameters as ``135M`` or ``8.03B``."""
    if count is None:
        return "-"
    value, scale = float(count), 0
    while value >= 999.5 and scale < len(_SCALES) - 1:  # noqa: PLR2004 - would be shown as 1e+03
        value, scale = value / 1000, scale + 1
    return f"{value:.3g}{_SCALES[scale]}"


def duration(seconds: int | None) -> str:
    """Seconds as ``0:03`` or ``1:02:03``."""
    if seconds is None:
        return ""
    minutes, rest = divmod(max(0, seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def ago(time: datetime | None, now: datetime) -> str:
    """A time as ``3 days ago``; ``-`` where there is none."""
    if time is None:
        return "-"
    past = now - time
    if past.days > 0:
        return _days(past.days)
    for length, name in _SHORT_AGES:
        if past.days == 0 and past.seconds >= length:
            return _counted(past.seconds // length, name)
    return "just now"


@cache
def _days(days: int) -> str:
    length, name = next(each for each in _AGES if days >= each[0])
    return _counted(days // length, name)


def _counted(count: int, name: str) -> str:
    return f"{count} {name}{'s' if count > 1 else ''} ago"


def moment(time: datetime | None) -> str:
    """A time to the second, in UTC."""
    return "-" if time is None else time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def day(seconds: int) -> str:
    """Unix seconds as a day, in UTC."""
    return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%d")


def shown_width(text: str) -> int:
    """Columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    import unicodedata  # noqa: PLC0415 - only where a name is not plain ASCII

    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(bool(unicodedata.combining(char)) for char in text)


def shrunk(text: str, width: int) -> str:
    """The text with its middle left out where it is wider than ``width``."""
    if shown_width(text) <= width:
        return text
    head, tail = width // 2, (width - 1) // 2
    while shown_width(text[:head]) + shown_width(text[len(text) - tail :]) >= width and head + tail > 1:
        head, tail = (head - 1, tail) if head >= tail else (head, tail - 1)
    return f"{text[:head]}…{text[len(text) - tail :]}"


def clipped(text: str, width: int) -> str:
    """The text, its end left out where it is longer than ``width`` characters."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> str:
    """Rows under titles, in columns two spaces apart, made to fit ``width`` (``None``: as wide as it is)."""
    cells = [_safe_all(column) for column in zip([each.title for each in columns], *rows, strict=True)]
    if width is None and all("".join(column).isascii() for column in cells):
        return _plain_table(columns, cells)
    widths = [max(map(shown_width, column)) for column in cells]
    if width is not None:
        _fit(columns, cells, widths, width)
    lines = map("  ".join, zip(*map(_padded, columns, cells, widths), strict=True))
    return "".join([f"{line.rstrip()}\n" for line in lines])


def _plain_table(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> str:
    """A table of ASCII, as wide as it is: thousands of rows in no time."""
    widths = [max(map(len, column)) for column in cells]
    widths[-1] = widths[-1] if columns[-1].right else 0  # nothing is behind it
    aligned = zip(columns, widths, strict=True)
    form = "  ".join([f"%{'' if column.right else '-'}{width}s" for column, width in aligned])
    return "\n".join([*map(form.__mod__, zip(*cells, strict=True)), ""])


def _safe_all(cells: Sequence[str]) -> Sequence[str]:
    return cells if "".join(cells).isprintable() else [safe(cell) for cell in cells]


def _fit(columns: Sequence[Column], cells: list[Sequence[str]], widths: list[int], width: int) -> None:
    over = sum(widths) + 2 * (len(widths) - 1) - width
    for at, column in enumerate(columns):
        if column.shrinks and over > 0:
            less = max(_NARROWEST, widths[at] - over)
            over -= widths[at] - less
            widths[at] = less
            shorten = clipped if column.keeps_start else shrunk
            cells[at] = [shorten(cell, less) for cell in cells[at]]


def _padded(column: Column, cells: Sequence[str], width: int) -> list[str]:
    gaps = [" " * (width - shown_width(cell)) for cell in cells]
    return [gap + cell if column.right else cell + gap for cell, gap in zip(cells, gaps, strict=True)]


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and values, one pair a line, the values in one column."""
    width = max((shown_width(name) for name, _ in pairs), default=0)
    return "".join(
        f"{name}{' ' * (width - shown_width(name))}  {value}".rstrip() + "\n" for name, value in pairs
    )
