from datetime import UTC, datetime, timedelta

import pytest

from kawai_tools.cli import text
from kawai_tools.cli.text import Column

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (None, "-"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (98_362_432, "98.4 MB"),
        (999_949_999, "999.9 MB"),
        (999_950_000, "1.0 GB"),
        (4_700_000_000, "4.7 GB"),
        (2 * 10**18, "2.0 EB"),
    ],
)
def test_sizes_are_decimal(count: int | None, words: str) -> None:
    assert text.size(count) == words


def test_rates_durations_and_parameters() -> None:
    assert (text.rate(20_100_000), text.rate(None)) == ("20.1 MB/s", "")
    assert [text.duration(each) for each in (None, 0, 65, 3723, -1)] == [
        "",
        "0:00",
        "1:05",
        "1:02:03",
        "0:00",
    ]
    counts = (None, 999, 134_515_008, 8_030_261_248, 999_600_000)
    assert [text.parameters(each) for each in counts] == ["-", "999", "135M", "8.03B", "1B"]


@pytest.mark.parametrize(
    ("past", "words"),
    [
        (timedelta(seconds=-9), "just now"),
        (timedelta(seconds=59), "just now"),
        (timedelta(seconds=60), "1 minute ago"),
        (timedelta(hours=5), "5 hours ago"),
        (timedelta(days=3), "3 days ago"),
        (timedelta(days=13), "1 week ago"),
        (timedelta(days=59), "1 month ago"),
        (timedelta(days=800), "2 years ago"),
    ],
)
def test_times_are_relative(past: timedelta, words: str) -> None:
    assert text.ago(NOW - past, NOW) == words


def test_never_is_a_dash() -> None:
    assert text.ago(None, NOW) == text.moment(None) == "-"
    assert text.moment(NOW) == "2026-11-01 12:00:00 UTC"


def test_nothing_commands_the_terminal() -> None:
    hostile = "a\x1b[2Jb\u202ec\nd\r\te\x7f\u2028\u200bf\x9b\U000e0001"
    assert text.safe(hostile) == r"a\x1b[2Jb\u202ec\nd\r\te\x7f\u2028\u200bf\x9b\U000e0001"
    assert text.safe("Qwen3 8B 模型 é") == "Qwen3 8B 模型 é"
    shown = text.table([Column("ID"), Column("SIZE", right=True)], [(hostile, "1")], None)
    assert shown.count("\n") == 2
    assert "\x1b" not in shown


def test_tables_line_up() -> None:
    columns = [Column("ID"), Column("SIZE", right=True), Column("USED")]
    rows = [("a", "1 B", "-"), ("模型", "10.0 MB", "3 days ago"), ("e\u0301", "5 B", "-")]
    assert text.table(columns, rows, None).splitlines() == [
        "ID       SIZE  USED",
        "a         1 B  -",
        "模型  10.0 MB  3 days ago",
        "e\u0301         5 B  -",
    ]


def test_only_the_column_that_may_gives_way() -> None:
    columns = [Column("ID", shrinks=True), Column("NOTE")]
    rows = [("SmolLM2-135M-Instruct.Q4_1", "n" * 20), ("short", "-")]
    shown = text.table(columns, rows, 40)
    assert [len(line) <= 40 for line in shown.splitlines()] == [True] * 3
    assert "SmolLM2-1…uct.Q4_1" in shown
    assert "SmolLM2-135M-Instruct.Q4_1" in text.table(columns, rows, None)
    assert "n" * 20 in text.table(columns, rows, 20)


@pytest.mark.parametrize("width", range(3, 30))
def test_shrinking_never_exceeds(width: int) -> None:
    for words in ("SmolLM2-135M-Instruct.Q4_1", "模型" * 12, "a模" * 9):
        assert text.shown_width(text.shrunk(words, width)) <= width
