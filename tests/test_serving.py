"""``kawai serve`` as something that is operated: what it logs and for whom, systemd's protocols, SIGHUP."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import pytest

from kawai_tools.events import LogLine
from kawai_tools.journal import MOST, Journal, Journals, line_of
from tests.hub import LocalHub
from tests.inference import MODEL, chat, soon
from tests.program import ESCAPES, KAWAI, Daemon, Program, serving
from tests.samples import tiny_gguf

KEYS = ["time", "level", "source", "message"]


def lines_of(daemon: Daemon, query: str = "") -> list[dict[str, str]]:
    found: list[dict[str, str]] = daemon.ask("GET", f"/v1/logs{query}").json
    return found


def messages(daemon: Daemon, query: str = "?lines=1000") -> list[str]:
    return [line["message"] for line in lines_of(daemon, query)]


# Whom it tells, and how


def test_without_a_terminal_it_logs_lines_of_json(kawai: Program) -> None:
    with kawai.start("serve", "--port", "0") as process:
        assert process.stderr
        assert process.stdout
        first = process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        lines = [json.loads(line) for line in (first + process.stderr.read()).splitlines()]
        assert process.stdout.read() == ""
    assert process.returncode == 0
    for line in lines:
        assert list(line) == KEYS
        assert line["level"] in {"debug", "info", "warning", "error"}
        assert datetime.fromisoformat(line["time"]).tzinfo
    said = [line["message"] for line in lines]
    assert said[0].startswith("kawai is serving on http://127.0.0.1:")
    assert said[-1] == "kawai has ended"
    kept = [json.loads(line) for line in (kawai.home / "kawai/logs/serve.log").read_text().splitlines()]
    assert kept == lines
    assert (kawai.home / "kawai/logs/serve.log").stat().st_mode & 0o077 == 0


def test_on_a_terminal_it_speaks_to_people(kawai: Program) -> None:
    ended = kawai.on_terminal(
        "serve", "--port", "0", seen="models are run by", then=lambda each: each.send_signal(signal.SIGINT)
    )
    lines = ended.plain.splitlines()
    assert ended.code == 0
    assert "kawai is serving on http://127.0.0.1:" in lines[0]
    assert not any("{" in line for line in lines)
    assert datetime.fromisoformat(lines[0][:19])


def test_quiet_leaves_warnings_and_verbose_adds_requests(kawai: Program) -> None:
    with kawai.start("serve", "--port", "0", "--quiet") as process:
        assert soon((kawai.home / "kawai/run/serve.json").exists)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=20) == ("", "")
    with serving(kawai, "--verbose") as daemon:
        daemon.ask("GET", "/v1/models")
        daemon.process.send_signal(signal.SIGTERM)
        _, said = daemon.process.communicate(timeout=20)
    assert '"route":"/v1/models"' in said


# GET /v1/logs


def test_a_log_is_told_over_http_and_on_the_command_line(kawai: Program) -> None:
    with serving(kawai) as daemon:
        rows = lines_of(daemon)
        assert all(list(row) == KEYS for row in rows)
        assert rows[0]["message"] == f"kawai is serving on {daemon.url}"
        assert lines_of(daemon, "?lines=1") == rows[-1:]
        assert lines_of(daemon, "?lines=0") == []
        for wrong in ("?lines=-1", "?lines=1001", "?lines=x", "?follow=maybe", "?tail=1"):
            assert daemon.ask("GET", f"/v1/logs{wrong}").status == 400
        assert daemon.ask("GET", "/v1/logs?model=nope").error["code"] == "model_not_found"
        assert json.loads(kawai("logs", "--json").out) == rows
        assert kawai("logs", "--lines", "1").out.endswith(f"{rows[-1]['message']}\n")
        assert kawai("logs", "nope").code == 3
        assert kawai("logs", "--lines", "1001").code == 2
    ended = kawai("logs", "--lines", "1", "--json")
    assert [row["message"] for row in json.loads(ended.out)] == ["kawai has ended"]
    assert ended.err == "no kawai server runs on this home; this is what the last one said\n"
    assert [kawai("logs", *more).code for more in (["nope"], ["--follow"])] == [9, 9]
    with serving(kawai) as daemon:
        assert messages(daemon)[:1] == [rows[0]["message"]]  # what was said before


def test_a_log_can_be_followed(kawai: Program) -> None:
    with serving(kawai) as daemon:
        follower = kawai.start("logs", "--follow", "--lines", "1", "--json")
        assert follower.stdout
        assert json.loads(follower.stdout.readline()) == lines_of(daemon, "?lines=1")[0]
        daemon.process.send_signal(signal.SIGHUP)
        line = json.loads(follower.stdout.readline())
        assert line["message"] == "the configuration was reread; changed: nothing"
        leaving = kawai.start("logs", "-f", "--lines", "0")
        assert soon(lambda: len(_followers(daemon)) >= 2)
        leaving.send_signal(signal.SIGINT)
        assert leaving.wait(10) == 130
        leaving.communicate()
        assert daemon.stop() == 0
        rest = follower.stdout.read()
        assert (follower.wait(10), "ending" in rest) == (0, True)
        follower.communicate()


def _followers(daemon: Daemon) -> list[str]:
    """Connections that are open, as the system tells (``proc(5)``, net/tcp)."""
    port = f":{urlsplit(daemon.url).port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[2] for row in rows if row[1].endswith(port) and row[3] == "01"]


def test_a_journal_keeps_the_last_lines_and_a_tail_begins_where_it_is_told() -> None:
    journal = Journal()
    journal.add(line_of("info", "x", str(number)) for number in range(MOST + 5))
    assert [line.message for line in journal.last(2)] == [str(MOST + 3), str(MOST + 4)]
    assert len(journal.last(MOST * 2)) == MOST
    tail = journal.tail(1)
    journal.add([line_of("info", "x", "new")])
    assert [line.message for _, line in tail.events()] == [str(MOST + 4), "new"]
    assert [line.message for _, line in tail.events(MOST + 5)] == ["new"]
    assert journal.tail(0).events() == []
    tail.cancel()
    assert (tail.closed, journal.closed) == (True, False)


def test_journals_of_models_that_nobody_has_heard_of_for_long_are_dropped() -> None:
    journals = Journals()
    first = journals.of("0")
    for number in range(1, 64):
        journals.of(str(number))
    assert journals.of("0") is first
    journals.of("new")
    assert journals.of("0") is first
    assert isinstance(line_of("info", "x", "y"), LogLine)


# SIGHUP


def test_sighup_rereads_the_configuration(kawai: Program) -> None:
    config = kawai.home / "kawai/config.toml"
    with serving(kawai, "--engine", "xllamacpp") as daemon:
        assert daemon.ask("GET", "/v1/models", headers={"Host": "box.lan"}).status == 421
        config.write_text(
            'allow_hosts = ["box.lan"]\nstrict = true\nhost = "127.0.0.2"\nengine = "llama-server"\n'
        )
        daemon.process.send_signal(signal.SIGHUP)
        assert soon(lambda: daemon.ask("GET", "/v1/models").status == 401)
        admin = {"Authorization": f"Bearer {(daemon.home / 'run/admin.token').read_text().strip()}"}
        assert daemon.ask("GET", "/v1/models", headers={"Host": "box.lan", **admin}).status == 200
        assert (
            "security" in daemon.ask("GET", "/openapi.json", headers=admin).json["paths"]["/v1/models"]["get"]
        )
        said = [line["message"] for line in daemon.ask("GET", "/v1/logs", headers=admin).json]
        assert "the configuration was reread; changed: host, strict, allow_hosts" in said  # a flag stands
        assert "host will count when the server is started anew" in said
        config.write_text("strict = maybe\n")
        daemon.process.send_signal(signal.SIGHUP)
        assert soon(lambda: "was not reread" in str(daemon.ask("GET", "/v1/logs", headers=admin).json))
        assert daemon.ask("GET", "/v1/models").status == 401
        config.unlink()
        daemon.process.send_signal(signal.SIGHUP)
        assert soon(lambda: daemon.ask("GET", "/v1/models").status == 200)
        assert daemon.ask("GET", "/v1/models", headers={"Host": "box.lan"}).status == 421


def test_a_reread_ends_followers_of_logs_and_writes_to_new_files(kawai: Program) -> None:
    config, log = kawai.home / "kawai/config.toml", kawai.home / "kawai/logs/serve.log"
    with serving(kawai) as daemon:
        with contextlib.closing(daemon.connect()) as connection:
            connection.request("GET", "/v1/logs?follow=true&lines=1")
            answer = connection.getresponse()
            assert answer.readline()
            log.rename(log.with_suffix(".old"))
            config.write_text("auth = true\n")
            daemon.process.send_signal(signal.SIGHUP)
            answer.read()  # it ends
        daemon.process.send_signal(signal.SIGHUP)
        assert soon(lambda: log.exists() and "reread" in log.read_text())
        assert daemon.ask("GET", "/v1/logs").status == 401


def test_connections_of_before_a_reread_are_closed(cli: Program, hub: LocalHub) -> None:
    hub.add_file("me/tiny-GGUF", "Tiny-Q8_0.gguf", tiny_gguf())
    with serving(cli) as daemon:
        counts = []
        for number in range(4):
            asked = {"model_url": "me/tiny-GGUF", "dry_run": True}
            assert daemon.ask("POST", "/v1/models/pull", asked).status == 200
            daemon.process.send_signal(signal.SIGHUP)
            assert soon(lambda: str(messages(daemon)).count("was reread") == number + 1)  # noqa: B023 - now
            counts.append(len(list(Path(f"/proc/{daemon.process.pid}/fd").iterdir())))
        assert counts[-1] <= counts[1] + 1


def test_a_request_that_is_being_planned_is_told_of_the_end(cli: Program, hub: LocalHub) -> None:
    hub.add_file("me/tiny-GGUF", "Tiny-Q8_0.gguf", tiny_gguf())
    with serving(cli) as daemon, socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        cli.environ["HF_ENDPOINT"] = url
        config = daemon.home / "config.toml"
        config.write_text('pull_hosts = ["127.0.0.1"]\n')
        daemon.process.send_signal(signal.SIGHUP)
        assert soon(lambda: "was reread" in str(messages(daemon)))
        with contextlib.closing(daemon.connect()) as connection:
            body = json.dumps({"model_url": f"{url}/x.gguf"}).encode()
            connection.request("POST", "/v1/models/pull", body, {"Content-Type": "application/json"})
            wire, _ = silent.accept()
            daemon.process.send_signal(signal.SIGTERM)
            answer = connection.getresponse()
            said = answer.read()
            assert (answer.status, said[:9]) == (503, b'{"error":')
            assert json.loads(said)["error"]["code"] == "server_closing"
            wire.close()


def test_a_reread_configuration_may_not_open_what_was_closed(kawai: Program) -> None:
    config = kawai.home / "kawai/config.toml"
    config.parent.mkdir()
    config.write_text('auth = true\nallow_hosts = ["box.lan"]\n')
    with serving(kawai, "--host", "0.0.0.0") as daemon:  # noqa: S104 - closed, as is tried here
        config.write_text('allow_hosts = ["box.lan"]\n')
        daemon.process.send_signal(signal.SIGHUP)
        assert daemon.process.stderr
        line = next(json.loads(each) for each in daemon.process.stderr if "not reread" in each)
        assert (line["level"], "could be used by everybody" in line["message"]) == ("error", True)
        assert daemon.ask("POST", "/v1/models/index").status == 401


def test_it_ends_with_its_terminal(kawai: Program) -> None:
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [*KAWAI, "serve", "--port", "0"],
        env=kawai.environ,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, _TIOCSCTTY, 0),  # noqa: PLW1509 - one system call
    )
    os.close(theirs)
    assert soon((kawai.home / "kawai/run/serve.json").exists)
    process.send_signal(signal.SIGHUP)  # somebody watches: it is read again
    shown = b""
    while b"was reread" not in shown:
        shown += os.read(ours, 4096)
    os.close(ours)
    assert process.wait(20) == 0
    assert not (kawai.home / "kawai/run/serve.json").exists()


_TIOCSCTTY = 0x540E if os.uname().sysname == "Linux" else 0x20007461


# What systemd does


class Started(NamedTuple):
    """A server that was started as systemd starts one, and what it has told its manager."""

    process: subprocess.Popen[str]
    port: int
    news: socket.socket

    def told(self) -> dict[str, str]:
        self.news.settimeout(20)
        return dict(line.split("=", 1) for line in self.news.recv(4096).decode().splitlines())


@contextlib.contextmanager
def as_a_service(
    kawai: Program, *args: str, address: str = "127.0.0.1", family: int = socket.AF_INET, kind: int = 1
) -> Iterator[Started]:
    """Descriptor 3 is the socket; ``LISTEN_PID`` is set by a shell that becomes kawai."""
    path = kawai.home / "n"
    news = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    news.bind(str(path))
    listener = socket.socket(family, kind)
    listener.bind((address, 0) if family != socket.AF_UNIX else str(kawai.home / "s"))
    if kind == socket.SOCK_STREAM:
        listener.listen()
    command = f'exec 3<&{listener.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
    process = subprocess.Popen(
        ["bash", "-c", command, "bash", *KAWAI, "serve", *args],
        env=kawai.environ | {"NOTIFY_SOCKET": str(path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=(listener.fileno(),),
    )
    port = listener.getsockname()[1] if family != socket.AF_UNIX else 0
    with listener, news, process:
        try:
            yield Started(process, port, news)
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=40)
            path.unlink()


def test_started_as_a_service_it_lets_a_stream_finish(kawai: Program, real_model: Path) -> None:
    store = kawai.home / "kawai/models/me"
    store.mkdir(parents=True)
    (store / f"{MODEL}.gguf").symlink_to(real_model)
    kawai.environ["KAWAI_THREADS"] = "1"  # two that wait for each other crawl where others work as well
    assert kawai("models", "index").code == 0
    with as_a_service(kawai, "--engine", "xllamacpp") as started:
        told = started.told()
        assert (told["READY"], told["STATUS"]) == ("1", f"serving on http://127.0.0.1:{started.port}")
        daemon = _asked(kawai, started.process, f"http://127.0.0.1:{started.port}")
        started.process.send_signal(signal.SIGHUP)
        assert int(started.told()["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        assert started.told()["READY"] == "1"
        with contextlib.closing(daemon.connect()) as connection:
            body = json.dumps(chat(stream=True, max_tokens=60, ignore_eos=True)).encode()
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            first = answer.readline()
            started.process.send_signal(signal.SIGTERM)
            assert started.told()["STOPPING"] == "1"
            rest = answer.read().decode()
        assert first.startswith(b"data: ")
        assert rest.rstrip().endswith("data: [DONE]")
        assert rest.count("data: ") >= 60
        assert started.process.wait(20) == 0
        environ = [
            path
            for path in Path("/proc").glob("[0-9]*/environ")
            if _has(path, b"NOTIFY_SOCKET=" + str(kawai.home / "n").encode())
        ]
        assert environ == []


def _has(path: Path, words: bytes) -> bool:
    try:
        return words in path.read_bytes()
    except OSError:
        return False


def _asked(kawai: Program, process: subprocess.Popen[str], url: str) -> Daemon:
    """The server, as other tests ask one."""
    daemon = Daemon.__new__(Daemon)
    daemon.program, daemon.process, daemon.url = kawai, process, url
    return daemon


@pytest.mark.parametrize(
    ("args", "family", "kind", "words"),
    [
        ((), socket.AF_INET, socket.SOCK_STREAM, "could be used by everybody who reaches it"),
        (("--auth",), socket.AF_INET, socket.SOCK_STREAM, "needs to know by which name"),
        ((), socket.AF_UNIX, socket.SOCK_STREAM, "it is no TCP socket"),
        ((), socket.AF_INET, socket.SOCK_DGRAM, "it is no TCP socket"),
    ],
)
def test_a_socket_that_is_handed_over_obeys_the_rules(
    kawai: Program, args: tuple[str, ...], family: int, kind: int, words: str
) -> None:
    with as_a_service(kawai, *args, address="0.0.0.0", family=family, kind=kind) as started:  # noqa: S104
        assert started.process.stderr
        assert words in started.process.stderr.read()
        assert started.process.wait(20) == 2


def test_what_is_handed_to_another_process_is_left_alone(kawai: Program) -> None:
    process = Program(kawai.home, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}).start("serve", "--port", "0")
    assert soon((kawai.home / "kawai/run/serve.json").exists)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="no systemd-socket-activate here")
def test_systemds_own_socket_activation_starts_it(kawai: Program) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    sets = [f"--setenv={name}={value}" for name, value in kawai.environ.items()]
    command = ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", *sets, *KAWAI, "serve"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        found: list[Any] = []

        def answered() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 10) as wire:
                wire.sendall(
                    b"GET /healthz HTTP/1.1\r\nHost: localhost:%d\r\nConnection: close\r\n\r\n" % port
                )
                found.append(wire.recv(4096))
            return bool(found and found[-1])

        assert soon(answered)
        assert found[-1].startswith(b"HTTP/1.1 200 ")
    finally:
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    assert f"kawai is serving on http://127.0.0.1:{port}" in ESCAPES.sub("", out.decode())


def test_a_stderr_that_nobody_reads_holds_nobody_up(kawai: Program) -> None:
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [*KAWAI, "serve", "--port", "0", "--verbose"],
        env=kawai.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=writing,
    )
    os.close(writing)
    assert soon((kawai.home / "kawai/run/serve.json").exists)
    told = json.loads((kawai.home / "kawai/run/serve.json").read_text())
    daemon = _asked(kawai, cast("Any", process), told["url"])
    with contextlib.closing(daemon.connect()) as connection:
        for _ in range(700):  # about twice what a pipe holds
            connection.request("GET", "/v1/models")
            assert connection.getresponse().read()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    os.close(reading)
