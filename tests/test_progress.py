"""What is seen of a pull while it runs: plain lines for logs, bars on terminals, and tables that fit."""

import contextlib
import fcntl
import os
import re
import signal
import struct
import subprocess
import termios
import time

import pytest

from kawai_tools.cli.output import Output
from kawai_tools.cli.progress import INTERVAL, Lines, line, step
from kawai_tools.errors import ErrorInfo, ErrorType
from kawai_tools.events import ModelPullEvent, Status, VerifyEvent
from tests.hub import Fault, LocalHub
from tests.program import KAWAI, Ended, Program
from tests.samples import F32, tiny_gguf

NAME = "Tiny-Instruct-Q8_0.gguf"
MEGABYTE = tiny_gguf(tensors=[("token_embd.weight", (32, 8192), F32)])
SPLIT = [f"Big-Q8_0-{number:05}-of-00003.gguf" for number in (1, 2, 3)]


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _event(
    status: Status, completed: int = 0, file: str | None = f"acme/Tiny/{NAME}", **more: object
) -> ModelPullEvent:
    values: dict[str, object] = {
        "status": status,
        "id": "Tiny-Instruct-Q8_0",
        "file": file,
        "completed": completed,
        "total": 98_400_000,
        "file_completed": completed if file else None,
        "file_total": 98_400_000 if file else None,
        "rate": 20_100_000 if completed else None,
        "eta": 3 if completed else None,
        "model_files": [f"acme/Tiny/{NAME}"],
        "proj_file": None,
        "downloaded": False,
        "error": None,
        "pull": "p1",
        "seq": 1,
        **more,
    }
    return ModelPullEvent(**values)  # type: ignore[arg-type]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines(clock: Clock) -> Lines:
    return Lines(Output(), clock)


def _told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_one_line_at_each_change_and_every_five_seconds(
    lines: Lines, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    assert INTERVAL == 5
    lines.show(_event(Status.RESOLVING, file=None))
    lines.show(_event(Status.DOWNLOADING))
    for _ in range(19):  # 4.75 seconds of an event every quarter of a second
        clock.now += 0.25
        lines.show(_event(Status.DOWNLOADING, 1_000_000))
        lines.tick()
    assert _told(capsys) == [
        "resolving Tiny-Instruct-Q8_0",
        f"downloading {NAME}: 0 B of 98.4 MB (0 %)",
    ]
    clock.now += 0.25
    lines.show(_event(Status.DOWNLOADING, 49_200_000))
    lines.show(_event(Status.DOWNLOADING, 49_300_000))
    assert _told(capsys) == [f"downloading {NAME}: 49.2 MB of 98.4 MB (50 %), 20.1 MB/s, 0:03 left"]
    lines.show(_event(Status.VERIFYING, 98_400_000, rate=None, eta=None))
    assert _told(capsys) == [f"verifying {NAME}: 98.4 MB of 98.4 MB (100 %)"]
    clock.now += 4.9
    lines.show(_event(Status.VERIFYING, 98_400_000, rate=None, eta=None))
    assert _told(capsys) == []


def test_a_silent_source_does_not_silence_the_log(
    lines: Lines, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    lines.tick()
    lines.show(_event(Status.DOWNLOADING, 1_000_000))
    (first,) = _told(capsys)
    for _ in range(3):
        clock.now += 4.99
        lines.tick()
        clock.now += 0.01
        lines.tick()
        lines.tick()
    assert _told(capsys) == [first] * 3


def test_waiting_for_another_process_is_told_and_repeated(
    lines: Lines, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    lines.show(_event(Status.WAITING, file=None))
    (first,) = _told(capsys)
    assert "another kawai" in first
    lines.tick()
    assert _told(capsys) == []
    clock.now += 5
    lines.tick()
    assert len(_told(capsys)) == 1


@pytest.mark.parametrize("status", [Status.DOWNLOADED, Status.EXISTS, Status.FAILED, Status.CANCELLED])
def test_the_end_is_told_by_whoever_asked(
    lines: Lines, clock: Clock, capsys: pytest.CaptureFixture[str], status: Status
) -> None:
    lines.show(_event(Status.DOWNLOADING, 1))
    lines.show(_event(status, error=ErrorInfo("unreachable", ErrorType.UPSTREAM, "gone", None)))
    clock.now += 60
    lines.tick()
    assert len(_told(capsys)) == 1


def test_the_next_file_is_a_change(lines: Lines, capsys: pytest.CaptureFixture[str]) -> None:
    for name in SPLIT:
        lines.show(_event(Status.DOWNLOADING, 1_000_000, f"acme/Big/{name}"))
    assert [each.split(":")[0] for each in _told(capsys)] == [f"downloading {name}" for name in SPLIT]


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    output = Output()
    output.quiet = True
    Lines(output, clock).show(_event(Status.DOWNLOADING, 1))
    assert _told(capsys) == []


def test_a_name_from_a_stranger_commands_no_terminal() -> None:
    hostile = _event(Status.DOWNLOADING, 1, "acme/Tiny/a\x1b[2Jb\nc.gguf")
    assert step(hostile).file == r"a\x1b[2Jb\nc.gguf"
    assert "\n" not in line(hostile)


def test_a_verification_is_a_line_too() -> None:
    event = VerifyEvent(
        status=Status.VERIFYING,
        id="Tiny",
        file="acme/Tiny/Tiny.gguf",
        completed=1_000_000,
        total=4_000_000,
        rate=1_000_000,
        eta=3,
        files=[],
        error=None,
    )
    assert line(event) == "verifying Tiny: 1.0 MB of 4.0 MB (25 %), 1.0 MB/s, 0:03 left"


# On real terminals and pipes


@pytest.fixture
def slow(hub: LocalHub) -> LocalHub:
    """A hub whose megabyte takes about a second."""
    hub.add_file("acme/Tiny", NAME, MEGABYTE)
    for number, name in enumerate(SPLIT):
        shard = tiny_gguf(tensors=[(f"t{number}", (32, 1024), F32)], split=(number, len(SPLIT)))
        hub.add_file("acme/Big", name, shard)
    hub.add_file("acme/Big", "mmproj-F16.gguf", tiny_gguf(projection=True))
    hub.throttle = 1_000_000
    return hub


def _terminal(program: Program, *args: str, columns: int = 80, rows: int = 24) -> Ended:
    """As ``Program.on_terminal``, of another size."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environ = {"TERM": "xterm-256color"} | program.environ
    process = subprocess.Popen(
        [*KAWAI, *args], env=environ, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    shown = b""
    with contextlib.closing(os.fdopen(ours, "rb", buffering=0)), process, contextlib.suppress(OSError):
        while piece := os.read(ours, 1 << 16):  # Linux: EIO where the other side has gone
            shown += piece
    return Ended(process.returncode, shown.decode(errors="replace").replace("\r\n", "\n"))


def _frames(ended: Ended) -> list[str]:
    """Every line as it was drawn, also those drawn over."""
    return [each.rstrip() for each in re.split(r"[\r\n]+", ended.plain) if each.strip()]


PULL = ("models", "pull", "acme/Tiny", "--connections", "1")


def test_a_bar_with_size_rate_and_eta_then_verifying_then_one_line(cli: Program, slow: LocalHub) -> None:
    ended = cli.on_terminal(*PULL)
    assert ended.code == 0
    *bars, last = _frames(ended)
    moving = [
        each for each in bars if re.search(rf"^{NAME} .*━.* 1\.0 MB .*\d B/s \d:\d\d", each.replace("k", ""))
    ]
    assert len(moving) >= 2
    assert re.search(r"\d+\.\d kB / 1\.0 MB", moving[0])
    assert any(each.startswith(NAME) and each.endswith("verifying") for each in bars)
    assert last == f"Tiny-Instruct-Q8_0 is installed: {cli.home}/kawai/models/acme/Tiny/{NAME}"
    assert all(len(each) <= 80 for each in bars)
    assert ended.out.count("\x1b[?25l") == ended.out.count("\x1b[?25h") == 1
    assert slow.requests


def test_forty_columns_are_enough_for_a_bar_and_numbers(cli: Program, slow: LocalHub) -> None:
    ended = _terminal(cli, *PULL, columns=40)
    assert slow.requests
    *bars, _ = [each for each in _frames(ended) if "is installed" not in each] + [""]
    assert ended.code == 0
    assert all(len(each) <= 40 for each in bars)
    moving = [each for each in bars if "%" in each or re.search(r"\d+\.\d [kM]B", each)]
    assert moving
    for each in moving:
        assert not re.search(r"\d+\.\d …|\d…|[kM]B…|\d/…", each), f"a number is cut: {each}"
    assert any("━" in each for each in bars)


def test_twelve_columns_break_nothing(cli: Program, hub: LocalHub) -> None:
    hub.add_file("acme/Tiny", NAME, MEGABYTE)
    ended = _terminal(cli, *PULL, columns=12, rows=3)
    assert ended.code == 0
    assert "Traceback" not in ended.plain


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_terminal_that_cannot_move_gets_lines(cli: Program, slow: LocalHub, term: str) -> None:
    cli.environ["TERM"] = term
    ended = cli.on_terminal(*PULL)
    assert (ended.code, ended.plain) == (0, ended.out)
    assert "\r" not in ended.out
    assert f"downloading {NAME}" in ended.out
    assert "━" not in ended.out
    assert slow.requests


def test_no_color_leaves_the_bar_without_colour(cli: Program, slow: LocalHub) -> None:
    cli.environ["NO_COLOR"] = "1"
    ended = cli.on_terminal(*PULL)
    assert ended.code == 0
    assert "━" in ended.out
    assert not re.search(r"\x1b\[[0-9;]*m", ended.out)
    assert slow.requests


def test_each_file_of_a_set_can_be_told_from_the_others(cli: Program, slow: LocalHub) -> None:
    ended = cli.on_terminal("models", "pull", "acme/Big")
    assert ended.code == 0
    assert slow.requests
    *_, last = _frames(ended)
    assert last.startswith("Big-Q8_0 is installed: ")
    final = ended.plain[ended.plain.rindex("all files") :].splitlines()[:-1]
    names = [each.split()[0] for each in final]
    assert len(names) == 5
    assert len(set(names)) == 5, names
    assert all(each.rstrip().endswith("done") for each in final[1:])
    assert "mmproj-F16.gguf" in names
    total = re.findall(r"all files .*?([\d.]+ kB) / ([\d.]+ kB)", ended.plain)
    assert total[-1][0] == total[-1][1]
    assert total[0][0] != total[-1][0]


@pytest.mark.slow
def test_the_file_that_is_worked_on_is_seen_however_many_there_are(cli: Program, hub: LocalHub) -> None:
    names = [f"B-Q8_0-{number:05}-of-00030.gguf" for number in range(1, 31)]
    for number, name in enumerate(names):
        hub.add_file("acme/Many", name, tiny_gguf(tensors=[(f"t{number}", (32,), F32)], split=(number, 30)))
    ended = _terminal(cli, "models", "pull", "acme/Many", rows=10)
    assert ended.code == 0
    drawn = [each for each in _frames(ended) if each.startswith(names[20])]
    assert any(not each.endswith("done") for each in drawn)


def test_ctrl_c_is_heard_at_once_and_the_next_pull_goes_on(cli: Program, slow: LocalHub) -> None:
    slow.throttle = 100_000
    interrupted: list[float] = []

    def interrupt(process: subprocess.Popen[bytes]) -> None:
        interrupted.append(time.monotonic())
        os.kill(process.pid, signal.SIGINT)

    stopped = cli.on_terminal(*PULL, seen="kB /", then=interrupt)
    assert stopped.code == 130
    assert time.monotonic() - interrupted[0] < 2
    assert stopped.out.rindex("\x1b[?25h") > stopped.out.rindex("\x1b[?25l")
    assert "goes on from there" in "".join(_frames(stopped)[-2:])
    slow.throttle = None
    resumed = cli.on_terminal(*PULL)
    assert resumed.code == 0
    assert not re.search(rf"{NAME} .* 0 B / 1.0 MB", resumed.plain)


def test_a_failure_gives_the_cursor_back_and_says_why(cli: Program, slow: LocalHub) -> None:
    slow.misbehave(Fault.flip(0.5))
    ended = cli.on_terminal(*PULL)
    assert ended.code == 7
    assert ended.out.count("\x1b[?25l") == ended.out.count("\x1b[?25h")
    assert any(each.startswith("error: ") for each in _frames(ended)[-3:])


def test_json_on_a_terminal_is_json(cli: Program, hub: LocalHub) -> None:
    hub.add_file("acme/Tiny", NAME, MEGABYTE)
    ended = cli.on_terminal("--json", *PULL)
    assert ended.events[-1]["status"] == "downloaded"
    assert "\x1b" not in ended.out


def test_quiet_on_a_terminal_leaves_the_result(cli: Program, hub: LocalHub) -> None:
    hub.add_file("acme/Tiny", NAME, MEGABYTE)
    (only,) = cli.on_terminal("--quiet", *PULL).out.splitlines()
    assert only.startswith("Tiny-Instruct-Q8_0 is installed: ")


def test_a_pipe_gets_lines_on_stderr_and_the_result_on_stdout(cli: Program, slow: LocalHub) -> None:
    ended = cli(*PULL)
    assert slow.requests
    assert ended.out == f"Tiny-Instruct-Q8_0 is installed: {cli.home}/kawai/models/acme/Tiny/{NAME}\n"
    said = ended.err.splitlines()
    assert [each.split()[0] for each in said] == ["resolving", "downloading", "verifying", "installing"]
    assert "\x1b" not in ended.err + ended.out
    assert "\r" not in ended.err


@pytest.mark.slow
def test_a_log_gets_a_line_every_five_seconds(cli: Program, slow: LocalHub) -> None:
    slow.throttle = 150_000
    ended = cli(*PULL)
    moving = [each for each in ended.err.splitlines() if each.startswith(f"downloading {NAME}: ")]
    assert len(moving) == 2
    assert re.search(r"\(\d\d %\), 1\d\d\.\d kB/s, 0:0\d left", moving[1])


LONG = "Qwen3-Coder-480B-A35B-Instruct-with-a-name-that-does-not-end-Q8_0"


@pytest.fixture
def listed(kawai: Program) -> Program:
    """Models whose every column is as wide as a file can make it."""
    folder = kawai.home / "kawai" / "models" / "acme" / "Wide"
    folder.mkdir(parents=True)
    tiny_gguf(folder / "Tiny-Q8_0.gguf")
    tiny_gguf(folder / f"{LONG}.gguf", context_length=10_485_760, file_type=None)
    tiny_gguf(folder / ("模型" * 20 + ".gguf"), context_length=None)
    assert kawai("models", "index").code == 0
    return kawai


def test_a_list_fits_eighty_columns_on_a_terminal(listed: Program) -> None:
    ended = listed.on_terminal("models", "list")
    title, *rows = ended.plain.splitlines()
    assert title.split() == ["ID", "SIZE", "QUANT", "CONTEXT", "MODIFIED", "USED"]
    assert len(rows) == 3
    for each in (title, *rows):
        assert _width(each) <= 80, each
    assert any("…" in each for each in rows)


def test_a_quantization_from_a_stranger_does_not_break_the_table(listed: Program) -> None:
    folder = listed.home / "kawai" / "models" / "acme" / "Wide"
    tiny_gguf(folder / f"x-Q4_{'K' * 60}.gguf", file_type=None, context_length=(1 << 64) - 1)
    assert listed("models", "index").code == 0
    for each in listed.on_terminal("models", "list").plain.splitlines():
        assert _width(each) <= 80, each


def test_a_piped_list_is_whole_and_plain(listed: Program) -> None:
    ended = listed("models", "list")
    assert (ended.code, ended.err) == (0, "")
    assert LONG in ended.out
    assert "模型" * 20 in ended.out
    assert "…" not in ended.out
    assert "\x1b" not in ended.out
    rows = ended.out.splitlines()
    assert len({row.index(column) for row, column in zip(rows[:1], ["QUANT"], strict=True)}) == 1
    narrow = listed("models", "list", COLUMNS="40")
    assert narrow.out == ended.out


@pytest.mark.parametrize("args", [("show", "Tiny-Q8_0"), ("show", LONG)])
def test_other_tables_fit_too(listed: Program, args: tuple[str, ...]) -> None:
    shown = listed.on_terminal("models", *args).plain
    for each in shown.splitlines():
        assert _width(each) <= 80 or LONG in each, each


def test_an_empty_list_is_a_word_beside_it(kawai: Program) -> None:
    ended = kawai("models", "list")
    assert (ended.code, ended.out) == (0, "")
    assert "kawai models pull" in ended.err
    assert kawai("models", "list", "--json").out == '{"object":"list","data":[]}\n'
    assert kawai("models", "list", "--quiet") == Ended(0, "", "")


def _width(text: str) -> int:
    return len(text) + len(re.findall(r"[\u2e80-\uffdc]", text))
