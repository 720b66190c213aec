"""``kawai run``: from nothing to an answer, with and without a daemon, piped and on a terminal."""

import contextlib
import fcntl
import json
import os
import select
import shlex
import shutil
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kawai_tools.cli.output import Output
from kawai_tools.cli.run import Talk
from kawai_tools.cli.talking import Elsewhere
from kawai_tools.errors import EngineFailed, InvalidRequest, KawaiError
from tests.bundles import asset_name, host_platform, launcher_bundle
from tests.hub import LocalHub
from tests.inference import children, rows, soon
from tests.program import ESCAPES, KAWAI, Daemon, Ended, Program, serving
from tests.samples import tiny_gguf
from tests.test_catalog_pull import at_hub, entry, lists

REPO, MODEL = "me/smol-GGUF", "SmolLM2-135M-Instruct.Q4_1"
SHORT, LONG = "Hi", "What is the capital of France?"
"""What this small model answers in ten words and, going round in circles, in thousands: at temperature 0."""

QUICK = {"KAWAI_THREADS": "1", "KAWAI_ENGINE": "xllamacpp"}
SURE = entry("Smol", at_hub("smol-GGUF", f"{MODEL}.gguf"), config={"temperature": 0})
"""An entry of the catalog by which the same words get the same answer."""


class Shop(NamedTuple):
    """A home with the real model, and the hub that it came from."""

    cli: Program
    hub: LocalHub


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, real_model: Path) -> Iterator[Shop]:
    root = tmp_path_factory.mktemp("run")
    with LocalHub(root / "hub") as hub:
        hub.add_file(REPO, f"{MODEL}.gguf", real_model)
        hub.add_file("me/tiny-GGUF", "Tiny-Q8_0.gguf", tiny_gguf())
        cli = Program(root, {"HF_ENDPOINT": hub.endpoint, "KAWAI_LIBS_API": hub.libs_api} | QUICK)
        lists(cli, SURE)
        for repo in (REPO, "me/tiny-GGUF"):
            assert cli("models", "pull", repo).code == 0
        yield Shop(cli, hub)
    log = root / "kawai" / "logs" / "kawai.log"
    assert not log.exists() or "Traceback" not in log.read_text()


@pytest.fixture
def installed(shop: Shop) -> Iterator[Program]:
    """The command line where the model is; no engine may be left when a test ends."""
    for path in sockets(shop.cli):  # of runs that were killed
        path.unlink()
    yield shop.cli
    assert soon(lambda: engines_of(shop.cli) == [], 5)


def sockets(program: Program) -> list[Path]:
    """What engines of a home were reached by."""
    return list((Path(program.environ["KAWAI_HOME"]) / "run").glob("*.sock"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, real_model: Path) -> Iterator[Daemon]:
    root = tmp_path_factory.mktemp("run-daemon")
    with LocalHub(root / "hub") as hub:
        hub.add_file(REPO, f"{MODEL}.gguf", real_model)
        cli = Program(root, {"HF_ENDPOINT": hub.endpoint} | QUICK)
        lists(cli, SURE)
        assert cli("models", "pull", REPO).code == 0
        with serving(cli) as daemon:
            yield daemon


@pytest.fixture
def bare(shop: Shop, tmp_path: Path) -> Program:
    """The command line with nothing installed, and the hub that has the model."""
    return Program(
        tmp_path, {**shop.cli.environ, "HOME": str(tmp_path), "KAWAI_HOME": str(tmp_path / "kawai")}
    )


def engines_of(program: Program) -> list[int]:
    """Live engines that serve out of a home."""
    found = []
    for proc in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if program.environ["KAWAI_HOME"].encode() + b"/run/" in (proc / "environ").read_bytes():
                found.append(int(proc.name))
    return found


def piped(program: Program, *args: str, words: str = "") -> Ended:
    """Run with words on stdin, which is no terminal."""
    done = subprocess.run(
        [*KAWAI, *args],
        env=program.environ,
        input=words,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def at_another_home(program: Program, root: Path) -> Program:
    """The same models, in a home of their own."""
    for name in ("models", "catalogs"):
        shutil.copytree(Path(program.environ["KAWAI_HOME"]) / name, root / "kawai" / name)
    return Program(root, program.environ | {"KAWAI_HOME": str(root / "kawai")})


class Terminal:
    """A program on a terminal on which one can type."""

    def __init__(self, program: Program, *args: str, stdout: int | None = None) -> None:
        self._screen, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        environ = {"TERM": "xterm-256color"} | program.environ
        self.process = subprocess.Popen(
            [*KAWAI, *args],
            env=environ,
            stdin=theirs,
            stdout=theirs if stdout is None else stdout,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.shown = ""

    def type(self, words: str) -> None:
        self.type_bytes(words.encode())

    def type_bytes(self, words: bytes) -> None:
        os.write(self._screen, words)

    def read(self, until: float) -> bool:
        """Take what is shown next; whether anything was before the time was over."""
        if not select.select([self._screen], [], [], max(0.0, until - time.monotonic()))[0]:
            return False
        try:
            piece = os.read(self._screen, 1 << 16)
        except OSError:  # Linux: EIO where the other side has gone
            return False
        self.shown += ESCAPES.sub("", piece.decode(errors="replace")).replace("\r\n", "\n")
        return bool(piece)

    def await_shown(self, words: str, count: int = 1, within: float = 60) -> None:
        until = time.monotonic() + within
        while self.shown.count(words) < count:
            assert self.read(until), self.shown

    def end(self, within: float = 20) -> int:
        until = time.monotonic() + within
        while self.read(until):
            pass
        return self.process.wait(max(0.1, until - time.monotonic()))

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._screen)


@contextlib.contextmanager
def terminal(program: Program, *args: str, stdout: int | None = None) -> Iterator[Terminal]:
    opened = Terminal(program, *args, stdout=stdout)
    try:
        yield opened
    finally:
        opened.close()


@contextlib.contextmanager
def answering(program: Program, *args: str) -> Iterator["subprocess.Popen[str]"]:
    """A command whose first words have come."""
    with program.start(*args) as process:
        assert process.stdout
        try:
            assert process.stdout.read(1)
            yield process
        finally:
            process.kill()


# Without a daemon


def test_a_prompt_is_answered_on_stdout(installed: Program) -> None:
    ended = installed("run", MODEL, SHORT)
    assert ended.code == 0, ended
    assert len(ended.out.strip()) > 1
    assert ended.out.endswith("\n")
    assert ended.err == ""
    assert (sockets(installed), engines_of(installed)) == ([], [])
    assert not (Path(installed.environ["KAWAI_HOME"]) / "run" / "serve.json").exists()


@pytest.mark.parametrize("name", [MODEL.lower(), f"me/{MODEL}"])
def test_any_name_of_the_model_will_do(installed: Program, name: str) -> None:
    ended = installed("run", name, SHORT)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.strip()


def test_a_prompt_comes_from_a_pipe(installed: Program) -> None:
    ended = piped(installed, "run", MODEL, words=f"{SHORT}\n")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.strip()
    assert "> " not in ended.out[:2]


def test_verbose_tells_how_fast_it_was(installed: Program) -> None:
    ended = installed("run", MODEL, SHORT, "--verbose")
    assert ended.code == 0, ended
    assert ended.out.strip()
    assert "loaded in " in ended.err
    assert "tokens, " in ended.err
    assert "a second" in ended.err


def test_words_come_as_they_are_made(installed: Program) -> None:
    with answering(installed, "run", MODEL, LONG) as process:
        first = time.monotonic()
        assert process.poll() is None
        assert process.stdout
        assert process.stdout.read(100)
        assert time.monotonic() - first > 0.1


def test_ctrl_c_ends_an_answer(installed: Program) -> None:
    with answering(installed, "run", MODEL, LONG) as process:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=8)
        assert process.returncode == 130
        assert "Traceback" not in err
    assert (sockets(installed), engines_of(installed)) == ([], [])


def test_a_reader_that_leaves_ends_it(installed: Program) -> None:
    with answering(installed, "run", MODEL, LONG) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.wait(8) == 0
        assert process.stderr.read() == ""
    assert sockets(installed) == []


def test_a_killed_run_leaves_no_engine(installed: Program) -> None:
    with answering(installed, "run", MODEL, LONG) as process:
        found = children(process.pid)
        assert len(found) == 1
        process.kill()
        assert soon(lambda: not found[0].is_alive, 2)
    assert installed("run", MODEL, SHORT).code == 0


def test_a_model_that_is_talked_to_is_not_removed(installed: Program) -> None:
    with answering(installed, "run", MODEL, LONG):
        ended = installed("models", "rm", MODEL, "--json")
        assert (ended.code, ended.error["code"]) == (5, "in_use")


def test_a_model_that_cannot_be_loaded_is_6(installed: Program) -> None:
    ended = installed("run", "Tiny-Q8_0", SHORT, "--json")
    assert (ended.code, ended.error["code"], ended.out) == (6, "engine_error", "")


@pytest.mark.parametrize("verbose", [(), ("--verbose",)])
def test_an_engine_that_dies_while_it_answers_is_6(installed: Program, verbose: tuple[str, ...]) -> None:
    with answering(installed, "run", MODEL, LONG, *verbose) as process:
        (child,) = children(process.pid)
        os.kill(child.pid, signal.SIGKILL)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 6
    assert err.splitlines()[-2].startswith("error: the engine ")
    assert "Traceback" not in err


def test_sigterm_ends_an_answer_and_its_engine(installed: Program) -> None:
    with answering(installed, "run", MODEL, LONG) as process:
        process.terminate()
        _, err = process.communicate(timeout=8)
    assert (process.returncode, err) == (143, "")
    assert (sockets(installed), engines_of(installed)) == ([], [])


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_reader_that_has_enough_is_no_error(installed: Program, more: tuple[str, ...]) -> None:
    with answering(installed, "run", MODEL, LONG, *more) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.read(10)
        process.stdout.close()
        assert (process.wait(8), process.stderr.read()) == (0, "")
    assert (sockets(installed), engines_of(installed)) == ([], [])


# What is asked


@pytest.mark.parametrize("words", ["", "\n", " \n\t\n"])
def test_an_empty_stdin_is_2(installed: Program, words: str) -> None:
    ended = piped(installed, "run", MODEL, "--json", words=words)
    assert (ended.code, ended.error["code"], ended.out) == (2, "usage", "")
    assert "prompt is empty" in ended.error["message"]


def test_a_closed_stdin_is_an_empty_prompt(installed: Program) -> None:
    command = f"exec {shlex.join(KAWAI)} run {MODEL} --json <&-"
    done = subprocess.run(["sh", "-c", command], env=installed.environ, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"prompt is empty" in done.stderr


@pytest.mark.parametrize("prompt", ["", "  ", "\n"])
def test_an_empty_prompt_is_2(installed: Program, prompt: str) -> None:
    ended = piped(installed, "run", MODEL, prompt, "--json", words=SHORT)
    assert (ended.code, ended.error["code"], ended.out) == (2, "usage", "")
    assert "prompt is empty" in ended.error["message"]


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@pytest.mark.parametrize("way", ["piped", "typed"])
def test_a_prompt_that_is_no_text_is_2(installed: Program, locale: str, way: str) -> None:
    words = b"Gr\xfc\xdfe"
    done = subprocess.run(
        [*KAWAI, "run", MODEL, *([words] if way == "typed" else [])],
        env=installed.environ | {"LC_ALL": locale},
        input=words if way == "piped" else b"",
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"error: the prompt is not UTF-8")


@pytest.mark.slow
def test_a_prompt_of_many_megabytes_is_refused(installed: Program, server: Daemon) -> None:
    for program in (installed, server.program):
        ended = piped(program, "run", MODEL, "--json", words="word " * 300_000)
        assert (ended.code, ended.error["type"], ended.out) == (2, "invalid_request", "")
        assert "context" in ended.error["message"]
    ended = piped(server.program, "run", MODEL, "--json", words="word " * 14_000_000)
    assert (ended.code, ended.error["code"]) == (2, "body_too_large")


# As JSON


def test_json_is_the_events_of_the_engine(installed: Program, server: Daemon) -> None:
    for program in (installed, server.program):
        ended = program("run", MODEL, SHORT, "--json")
        assert (ended.code, ended.err) == (0, "")
        assert all(event["object"] == "chat.completion.chunk" for event in ended.events)
        assert all(event["model"] == MODEL for event in ended.events)
        pieces = [choice["delta"].get("content") or "" for e in ended.events for choice in _choices(e)]
        assert "".join(pieces) == program("run", MODEL, SHORT).out.rstrip("\n")


def _choices(event: dict[str, Any]) -> list[Any]:
    found: list[Any] = event["choices"]
    return found


def test_json_comes_as_it_is_made(installed: Program) -> None:
    with answering(installed, "run", MODEL, LONG, "--json") as process:
        assert process.stdout
        assert json.loads("{" + process.stdout.readline())["choices"]
        assert process.poll() is None


def test_json_ends_with_the_error_on_stderr(installed: Program) -> None:
    with answering(installed, "run", MODEL, LONG, "--json") as process:
        (child,) = children(process.pid)
        os.kill(child.pid, signal.SIGKILL)
        out, err = process.communicate(timeout=10)
    assert process.returncode == 6
    assert json.loads(err)["error"]["code"] == "engine_error"
    assert '"error"' not in out


# On a terminal


@pytest.mark.slow
def test_a_conversation_ends_with_ctrl_d(installed: Program) -> None:
    with terminal(installed, "run", MODEL) as opened:
        opened.await_shown("> ")
        opened.type(f"{SHORT}\n")
        opened.await_shown("> ", 2)
        opened.type("\n")
        opened.await_shown("> ", 3)
        opened.type("Thanks\n")
        opened.await_shown("> ", 4)
        opened.type("\x04")
        assert opened.end() == 0
    answer = opened.shown.partition(f"{SHORT}\n")[2].partition("> ")[0]
    assert answer.strip()
    assert "Traceback" not in opened.shown


@pytest.mark.parametrize("word", ["/bye", "/exit"])
def test_a_conversation_ends_with_a_word(installed: Program, word: str) -> None:
    with terminal(installed, "run", MODEL) as opened:
        opened.await_shown("> ")
        opened.type(f"{word}\n")
        assert opened.end() == 0


def test_ctrl_c_ends_a_conversation_that_waits_for_words(installed: Program) -> None:
    with terminal(installed, "run", MODEL) as opened:
        opened.await_shown("> ")
        opened.process.send_signal(signal.SIGINT)
        assert opened.end(8) == 130
    assert "Traceback" not in opened.shown


def test_ctrl_c_is_typed_where_words_are_awaited(installed: Program) -> None:
    with terminal(installed, "run", MODEL) as opened:
        opened.await_shown("> ")
        opened.type(f"{SHORT}\n")
        opened.await_shown("> ", 2)
        opened.process.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert opened.end(8) == 130
        assert time.monotonic() - began < 5
    assert (sockets(installed), engines_of(installed)) == ([], [])


def test_ctrl_c_while_it_loads(installed: Program) -> None:
    with terminal(installed, "run", MODEL, LONG) as opened:
        opened.await_shown("loading")
        opened.process.send_signal(signal.SIGINT)
        assert opened.end(8) == 130
    assert "Traceback" not in opened.shown
    assert "Warning" not in opened.shown


@pytest.mark.slow
def test_a_conversation_goes_on_after_an_answer_that_fails(installed: Program) -> None:
    with terminal(installed, "run", MODEL) as opened:
        opened.await_shown("> ")
        (child,) = children(opened.process.pid)
        opened.type(f"{LONG}\n")
        opened.await_shown("femme")
        os.kill(child.pid, signal.SIGKILL)
        opened.await_shown("error: the engine ")
        opened.await_shown("> ", 2)
        opened.type(f"{SHORT}\n")
        opened.await_shown("> ", 3)
        opened.type("/bye\n")
        assert opened.end() == 0
    assert opened.shown.count("error: ") == 1


def test_words_that_are_no_text_do_not_end_a_conversation(installed: Program) -> None:
    program = Program(installed.home, installed.environ | {"LC_ALL": "C.UTF-8"})
    with terminal(program, "run", MODEL) as opened:
        opened.await_shown("> ")
        opened.type_bytes(b"Gr\xfc\xdfe\n")
        opened.await_shown("error: the prompt is not UTF-8")
        opened.await_shown("> ", 2)
        opened.type("/bye\n")
        assert opened.end() == 0


def test_the_prompt_of_a_conversation_is_no_result(installed: Program, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with out.open("wb") as file, terminal(installed, "run", MODEL, stdout=file.fileno()) as opened:
        opened.await_shown("> ")
        opened.type(f"{SHORT}\n")
        opened.await_shown("> ", 2)
        opened.type("\x04")
        assert opened.end() == 0
    assert out.read_text().strip()
    assert "> " not in out.read_text()


def test_ctrl_c_while_it_answers_on_a_terminal(installed: Program) -> None:
    with terminal(installed, "run", MODEL, LONG) as opened:
        opened.await_shown("femme")
        opened.process.send_signal(signal.SIGINT)
        assert opened.end(8) == 130
    assert "Traceback" not in opened.shown


def test_an_answer_is_shown_on_a_terminal(installed: Program) -> None:
    ended = installed.on_terminal("run", MODEL, SHORT)
    assert ended.code == 0
    assert ended.plain.strip()
    assert "> " not in ended.plain


# With a daemon


def test_the_daemon_answers_and_keeps_the_model(server: Daemon) -> None:
    ended = server.program("run", MODEL, SHORT)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.strip()
    (found,) = rows(server)
    assert (found["id"], found["state"]) == (MODEL, "ready")
    (child,) = children(server.process.pid)
    assert piped(server.program, "run", MODEL, words=SHORT).code == 0
    assert [each.pid for each in children(server.process.pid)] == [child.pid]


def test_verbose_tells_how_fast_the_daemon_was(server: Daemon) -> None:
    assert server.program("models", "unload", MODEL).code == 0
    for told in ("loaded in ", f"{MODEL} was loaded already"):
        ended = server.program("run", MODEL, SHORT, "--verbose")
        assert ended.code == 0, ended
        assert ended.err.startswith(told)
        assert "tokens, " in ended.err
        assert "a second" in ended.err


def test_a_daemon_that_asks_for_tokens_takes_the_key_of_its_home(shop: Shop, tmp_path: Path) -> None:
    program = at_another_home(shop.cli, tmp_path)
    with serving(program, "--auth", "--strict") as daemon:
        ended = program("run", MODEL, SHORT)
        assert ended.code == 0, ended
        assert len(children(daemon.process.pid)) == 1


def test_an_engine_that_is_insisted_on_is_not_the_daemons(server: Daemon) -> None:
    assert server.program("models", "unload", MODEL).code == 0
    assert server.program("run", MODEL, SHORT, "--engine", "xllamacpp").code == 0
    assert rows(server) == []


def test_ctrl_c_in_a_conversation_ends_the_answer_and_not_the_conversation(
    installed: Program, server: Daemon
) -> None:
    def talk(program: Program) -> None:
        with terminal(program, "run", MODEL) as opened:
            opened.await_shown("> ")
            (child,) = children((server if program is server.program else opened).process.pid)
            opened.type(f"{LONG}\n")
            opened.await_shown("femme")
            opened.process.send_signal(signal.SIGINT)
            opened.await_shown("stopped")
            opened.await_shown("> ", 2)
            assert soon(lambda: not child.is_busy, 2)
            opened.type("/help\n")
            opened.await_shown("/bye or")
            opened.type(f"{SHORT}\n")
            opened.await_shown("> ", 4)
            opened.type("/bye\n")
            assert opened.end(8) == 0

    talk(installed)
    talk(server.program)
    assert soon(lambda: rows(server)[0]["active_streams"] == 0, 2)


def test_ctrl_c_ends_an_answer_of_the_daemon_and_stops_its_engine(server: Daemon) -> None:
    with answering(server.program, "run", MODEL, LONG) as process:
        (child,) = children(server.process.pid)
        assert child.is_busy
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=8)
        assert process.returncode == 130
        assert "Traceback" not in err
    assert soon(lambda: not child.is_busy, 2)
    assert soon(lambda: rows(server)[0]["active_streams"] == 0, 2)


def test_an_engine_of_the_daemon_that_dies_is_6(server: Daemon) -> None:
    with answering(server.program, "run", MODEL, LONG) as process:
        (child,) = children(server.process.pid)
        os.kill(child.pid, signal.SIGKILL)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 6
    assert err.startswith("error: ")
    assert server.program("run", MODEL, SHORT).code == 0


def test_a_daemon_that_dies_is_told(server: Daemon, tmp_path: Path) -> None:
    program = at_another_home(server.program, tmp_path)
    with serving(program) as daemon, answering(program, "run", MODEL, LONG) as process:
        daemon.process.kill()
        _, err = process.communicate(timeout=10)
    assert process.returncode in {6, 9}
    assert err.startswith("error: ")


@pytest.mark.slow
def test_a_conversation_with_the_daemon(server: Daemon) -> None:
    with terminal(server.program, "run", MODEL) as opened:
        opened.await_shown("> ")
        opened.type(f"{SHORT}\n")
        opened.await_shown("> ", 2)
        opened.type("\x04")
        assert opened.end() == 0


# What an engine says


class Recorded(Elsewhere):
    """A place where what is answered is known beforehand."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = iter(answers)
        self.asked: list[dict[str, Any]] = []

    def is_loaded(self) -> bool:
        return True

    def load(self) -> None:
        raise AssertionError

    def ask(self, path: str, body: bytes) -> Generator[bytes, None, None]:
        self.asked.append({"path": path, **json.loads(body)})
        yield next(self._answers)


def said(*deltas: dict[str, str], finish: str = "stop") -> bytes:
    """A streamed answer of a chat."""
    choices = [*({"delta": delta} for delta in deltas), {"delta": {}, "finish_reason": finish}]
    frames = [json.dumps({"choices": [choice]}) for choice in choices]
    return "".join(f"data: {frame}\n\n" for frame in [*frames, "[DONE]"]).encode()


def talk(place: Recorded, *, verbose: bool = False, chats: bool = True) -> Talk:
    output = Output()
    output.verbose = verbose
    return Talk(output, place, "m", chats=chats)


def test_reasoning_is_told_with_verbose_only(capsys: pytest.CaptureFixture[str]) -> None:
    thought = ({"reasoning_content": "First\nThe"}, {"reasoning_content": "n"}, {"content": "Yes"})
    talk(Recorded(said(*thought))).answer("Is it?")
    assert capsys.readouterr() == ("Yes\n", "")
    talk(Recorded(said(*thought)), verbose=True).answer("Is it?")
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[:2]) == ("Yes\n", ["First", "Then"])
    assert "3 tokens, " in err


@pytest.mark.parametrize("options", [{}, {"verbose": True}])
def test_an_answer_of_reasoning_only_is_not_lost(
    capsys: pytest.CaptureFixture[str], options: dict[str, bool]
) -> None:
    talk(Recorded(said({"reasoning_content": "Hm"})), **options).answer("Is it?")
    out, err = capsys.readouterr()
    assert out == "Hm\n"
    assert "thought" in err


@pytest.mark.parametrize(("finish", "told"), [("length", "cut off"), ("stop", "answers nothing")])
def test_an_odd_end_is_told(capsys: pytest.CaptureFixture[str], finish: str, told: str) -> None:
    talk(Recorded(said(finish=finish))).answer("Go on")
    assert told in capsys.readouterr().err


def test_what_failed_is_not_remembered() -> None:
    gone = said({"content": "Well"}).replace(b"[DONE]", b'{"error":{"code":500,"message":"gone"}}')
    place = Recorded(said({"content": "A"}), gone, said({"content": "C"}))
    talking = talk(place)
    talking.answer("one")
    with pytest.raises(EngineFailed, match="gone"):
        talking.answer("two")
    talking.answer("three")
    assert [each["content"] for each in place.asked[2]["messages"]] == ["one", "A", "three"]


def test_a_model_without_a_chat_goes_on_with_the_words(capsys: pytest.CaptureFixture[str]) -> None:
    place = Recorded(b'data: {"choices":[{"text":" end"}]}\r\n\r\n: ping\r\n\r\ndata: [DONE]\r\n\r\n')
    talk(place, chats=False).answer("The")
    assert place.asked == [{"path": "/v1/completions", "model": "m", "stream": True, "prompt": "The"}]
    assert capsys.readouterr().out == " end\n"


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (
            b'{"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}',
            InvalidRequest,
            "too long",
        ),
        (b'{"error":{"code":503,"message":"busy","type":"unavailable_error"}}', EngineFailed, "busy"),
        (
            b'{"error":{"code":"no_room","type":"unavailable","message":"full","hint":null}}',
            KawaiError,
            "full",
        ),
        (b'data: {"choices":[{"delta":{"content":"A"}}]}\n\n', EngineFailed, "broke off"),
        (b"data: 7\n\n", EngineFailed, "no event"),
        (b"data: {\n\n", EngineFailed, "no event"),
        (b"<html>", EngineFailed, "broke off"),
        (b"", EngineFailed, "broke off"),
    ],
)
def test_what_is_no_answer_is_an_error(answer: bytes, kind: type[KawaiError], message: str) -> None:
    with pytest.raises(kind, match=message):
        talk(Recorded(answer)).answer("Hi")


# What is missing


@pytest.mark.parametrize("args", [(), ("--yes",)])
def test_an_unknown_model_is_3(installed: Program, args: tuple[str, ...]) -> None:
    ended = installed("run", "SmolLM2-135M-Instruct.Q4_0", SHORT, *args, "--json")
    assert (ended.code, ended.error["code"], ended.out) == (3, "model_not_found", "")
    assert MODEL in ended.error["hint"]


@pytest.mark.parametrize("name", ["../x", "-"])
def test_what_is_no_name_is_2(installed: Program, name: str) -> None:
    assert installed("run", "--json", "--", name, SHORT).code == 2


def test_a_missing_engine_is_9_and_two_ways_to_one(installed: Program) -> None:
    ended = piped(installed, "run", MODEL, SHORT, "--engine", "llama-server", "--json")
    assert (ended.code, ended.error["code"], ended.out) == (9, "no_engine", "")
    assert "kawai libs pull" in ended.error["hint"]
    assert "pip install 'kawai-tools[embedded]'" in ended.error["hint"]


def test_an_engine_that_there_is_not_is_2(installed: Program) -> None:
    ended = piped(installed, "run", MODEL, SHORT, "--engine", "warp", "--json")
    assert ended.code == 2
    assert "xllamacpp" in ended.error["message"]


@pytest.mark.parametrize("source", [REPO, f"{REPO}:Q4_1", f"{REPO.replace('GGUF', 'none')}"])
def test_nothing_is_fetched_unasked(bare: Program, shop: Shop, source: str) -> None:
    shop.hub.clear_requests()
    ended = piped(bare, "run", source, words="y\ny\n")
    assert ended.code == 3
    assert ended.err.startswith("error: ")
    assert "--yes" in ended.err
    assert shop.hub.requests == []
    assert not list(bare.home.rglob("*.gguf"))


def test_a_missing_model_of_the_catalog_is_not_fetched_unasked(bare: Program, shop: Shop) -> None:
    lists(bare, SURE)
    shop.hub.clear_requests()
    ended = piped(bare, "run", "Smol", SHORT)
    assert (ended.code, ended.out) == (3, "")
    assert "--yes" in ended.err
    assert shop.hub.requests == []


@pytest.mark.slow
@pytest.mark.parametrize("words", ["Smol", REPO])
def test_yes_fetches_the_model_and_it_answers(bare: Program, words: str) -> None:
    lists(bare, SURE)
    ended = piped(bare, "run", words, SHORT, "--yes")
    assert ended.code == 0, ended
    assert ended.out.strip()
    assert "%" not in ended.out
    assert MODEL not in ended.out
    assert bare("models", "show", MODEL).code == 0
    assert engines_of(bare) == []


@pytest.mark.slow
def test_on_a_terminal_it_asks_first(bare: Program) -> None:
    lists(bare, SURE)
    with terminal(bare, "run", REPO, SHORT) as opened:
        opened.await_shown("[y/N]")
        opened.type("n\n")
        assert opened.end() == 1
    assert not list(bare.home.rglob("*.gguf"))
    with terminal(bare, "run", REPO, SHORT) as opened:
        opened.await_shown("[y/N]")
        opened.process.send_signal(signal.SIGINT)
        assert opened.end() == 130
    with terminal(bare, "run", REPO, SHORT) as opened:
        opened.await_shown("[y/N]")
        opened.type("y\n")
        assert opened.end(60) == 0, opened.shown
    assert bare("models", "show", MODEL).code == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler to make a build with")
def test_yes_fetches_engine_and_model(bare: Program, shop: Shop, tmp_path: Path) -> None:
    lists(bare, SURE)
    build = launcher_bundle("b9", directory=tmp_path)
    shop.hub.add_release("b9", {asset_name("b9", host_platform()): build})
    bare.environ["KAWAI_ENGINE"] = "auto"
    ended = piped(bare, "run", REPO, SHORT, "--yes", "--engine", "llama-server")
    assert ended.code == 0, ended
    assert ended.out.strip()
    assert bare("libs", "show", "--json").events[0]["current"] == "b9"
    again = piped(bare, "run", MODEL, SHORT, "--verbose")
    assert again.code == 0, again
