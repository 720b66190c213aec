"""Crashes, rivals and bad disks: the store stays whole, and the next command heals."""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import pytest

from kawai_tools.refs import parse_model
from tests.hub import LocalHub
from tests.program import KAWAI, Daemon, Ended, Program, serving
from tests.samples import tiny_gguf
from tests.workspaces import Workspaces, pull

MIB = 1 << 20
SOURCE = "o/r"
SAVE_BYTES = 16 * MIB
"""So much may have been fetched since the partial's record was last written."""


def big_gguf(size: int, seed: int = 0) -> bytes:
    return tiny_gguf() + random.Random(seed).randbytes(size)  # noqa: S311 - the same for the same seed


def sha256(data: bytes | Path) -> str:
    return hashlib.sha256(data.read_bytes() if isinstance(data, Path) else data).hexdigest()


def store_of(program: Program) -> Path:
    return Path(program.environ["KAWAI_HOME"]) / "models"


def ids(program: Program) -> list[str]:
    ended = program("models", "list", "--json")
    assert (ended.code, ended.err) == (0, "")
    return [row["id"] for row in json.loads(ended.out)["data"]]


def final_files(store: Path) -> dict[str, str]:
    """The digest of every model file that is not a partial."""
    found = [path for path in store.rglob("*.gguf") if ".partial" not in path.parts]
    return {path.relative_to(store).as_posix(): sha256(path) for path in found}


def served(hub: LocalHub) -> int:
    """Bytes that the CDN has sent since the requests were last cleared."""
    return sum(request.sent_bytes for request in hub.requests if request.server == "cdn")


def settle(hub: LocalHub) -> None:
    """Wait until the CDN has noticed that nobody listens any more, and forget what it sent."""
    assert hub.wait_for(lambda asked: any((each.server, each.method) == ("cdn", "GET") for each in asked))
    hub.clear_requests()


def run(program: Program, *args: str, under: Sequence[str] = (), **environ: str) -> Ended:
    """Run ``kawai`` under another program that limits or traces it."""
    done = subprocess.run(
        [*under, *KAWAI, *args],
        env=program.environ | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def last_event(ended: Ended) -> dict[str, object]:
    return ended.events[-1]


def is_no_bug(ended: Ended) -> bool:
    """Whether a failure was foreseen: neither an internal error nor a traceback."""
    return ended.code != 70 and "Traceback" not in ended.err + ended.out


# kill -9


def kill_after(process: subprocess.Popen[str], seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.kill()
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_pull_killed_at_ten_random_moments_leaves_no_bad_file_and_the_next_succeeds(
    seed: int, hub: LocalHub, cli: Program, workspaces: Workspaces
) -> None:
    data = big_gguf(16 * MIB, seed)
    hub.add_file(SOURCE, "m.gguf", data)
    moments = random.Random(seed)  # noqa: S311 - the same for the same seed
    right = {"o/r/m.gguf": sha256(data)}
    hub.throttle = 24 * MIB
    begin = time.monotonic()
    assert cli("models", "pull", SOURCE).code == 0
    lasts = time.monotonic() - begin
    for tenth in range(10):
        workspaces().models.remove(parse_model("m"))
        hub.throttle = 24 * MIB
        process = cli.start("models", "pull", SOURCE)
        kill_after(process, (tenth + moments.random()) / 10 * lasts)

        files = final_files(store_of(cli))
        assert files in ({}, right)
        assert ids(cli) == (["m"] if files else [])

        hub.throttle = None
        (planned,) = json.loads(cli("models", "pull", SOURCE, "--dry-run", "--json").out)["files"]
        hub.clear_requests()
        again = cli("models", "pull", SOURCE)
        assert again.code == 0, again.err
        assert final_files(store_of(cli)) == right
        assert ids(cli) == ["m"]
        assert served(hub) <= len(data) - planned["have"] + MIB


def test_a_pull_killed_half_way_fetches_only_what_was_not_noted(hub: LocalHub, cli: Program) -> None:
    data = big_gguf(64 * MIB)
    hub.add_file(SOURCE, "m.gguf", data)
    hub.throttle = 64 * MIB
    process = cli.start("models", "pull", SOURCE, "--json", "--connections", "1")
    assert process.stdout
    done = next(
        event["completed"]
        for event in map(json.loads, process.stdout)
        if event["completed"] and event["completed"] > len(data) // 2
    )
    kill_after(process, 0)
    hub.throttle = None
    settle(hub)
    assert cli("models", "pull", SOURCE).code == 0
    assert served(hub) <= len(data) - done + SAVE_BYTES + MIB
    assert final_files(store_of(cli)) == {"o/r/m.gguf": sha256(data)}


CALLS = (
    "rename",
    "fsync",
    "fdatasync",
    "pwrite64",
    "write",
    "mkdir",
    "unlink,unlinkat",
    "rmdir",
    "fallocate",
    "flock",
)


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("replaces", [False, True], ids=["new", "replaced"])
def test_a_pull_killed_at_any_system_call_leaves_the_old_state_or_the_new(
    replaces: bool,  # noqa: FBT001
    call: str,
    strace: list[str],
    hub: LocalHub,
    cli: Program,
    workspaces: Workspaces,
) -> None:
    """The kill comes before the call; the loop ends when the pull makes no further one of them."""
    old, new = tiny_gguf(name="old"), tiny_gguf(name="new", extra={"padding": "x" * 5000})
    projection = tiny_gguf(projection=True)
    hub.add_file(SOURCE, "m.gguf", old if replaces else new)
    hub.add_file(SOURCE, "mmproj.gguf", projection)
    hub.add_file("o/other", "other.gguf", tiny_gguf(name="other"))
    pull(workspaces(), "o/other")
    if replaces:
        pull(workspaces(), SOURCE)
    hub.add_file(SOURCE, "m.gguf", new)
    home, prepared = workspaces.home, workspaces.home.with_name("prepared")
    home.rename(prepared)
    before = final_files(prepared / "models")
    whole = before | {"o/r/m.gguf": sha256(new), "o/r/mmproj.gguf": sha256(projection)}

    for number in count(1):
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(prepared, home)
        where = f"{call} {number}"
        inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]
        ended = run(cli, "models", "pull", SOURCE, "--force", under=[*strace, *inject])
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL, (where, ended)
        # under a final name: each file old or new and whole, even while nobody has looked yet
        for path, digest in final_files(home / "models").items():
            assert digest in {before.get(path), whole[path]}, where
        listed = [row.id for row in workspaces().models.rows()]
        files = final_files(home / "models")
        assert files in (before, whole), where
        assert listed == (["m", "other"] if "o/r/m.gguf" in files else ["other"]), where
        if "m" in listed:
            row = next(row for row in workspaces().models.rows() if row.id == "m")
            assert row.validated, where
        pull(workspaces(), SOURCE, force=True)
        assert final_files(home / "models") == whole, where
        for each in ("m", "other"):
            workspaces().models.remove(parse_model(each))
        left = [
            path for path in (home / "models").rglob("*") if path.name not in {".kawai-store", ".partial"}
        ]
        assert not left, where
    assert number > 1, f"a pull makes no {call}"
    assert final_files(home / "models") == whole


@pytest.mark.slow
@pytest.mark.parametrize("call", ["unlink,unlinkat", "rmdir", "fdatasync", "pwrite64", "flock"])
def test_a_removal_killed_at_any_system_call_can_be_repeated(
    call: str, strace: list[str], hub: LocalHub, cli: Program, workspaces: Workspaces
) -> None:
    hub.add_file(SOURCE, "m.gguf", tiny_gguf())
    hub.add_file(SOURCE, "mmproj.gguf", tiny_gguf(projection=True))
    pull(workspaces(), SOURCE)
    home, prepared = workspaces.home, workspaces.home.with_name("prepared")
    home.rename(prepared)
    for number in count(1):
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(prepared, home)
        inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]
        ended = run(cli, "models", "rm", "m", under=[*strace, *inject])
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL, ended
        assert set(final_files(home / "models")) <= {"o/r/m.gguf", "o/r/mmproj.gguf"}
        again = cli("models", "rm", "m")
        assert again.code in {0, 3}, again.err
        assert ids(cli) == []
        # the folder of a model that is no longer known may stay, empty but for its lock
        left = {path.suffix for path in (home / "models").rglob("*") if path.is_file()}
        assert left <= {"", ".lock"}, number
    assert number > 1


def test_a_verify_killed_while_it_notes_the_result_changes_nothing(
    strace: list[str], hub: LocalHub, cli: Program
) -> None:
    hub.add_file(SOURCE, "m.gguf", tiny_gguf())
    assert cli("models", "pull", SOURCE).code == 0
    (store_of(cli) / "o/r/m.gguf").touch()
    for number in count(1):
        inject = ["-e", "trace=rename", "-e", f"inject=rename:signal=KILL:when={number}"]
        ended = run(cli, "models", "verify", under=[*strace, *inject])
        if ended.code == 0:
            break
        assert ids(cli) == ["m"]
    assert number > 1
    assert cli("models", "verify").code == 0


# several processes at once


@contextlib.contextmanager
def together(program: Program, *args: str, times: int = 8) -> Iterator[list[subprocess.Popen[str]]]:
    """The same command several times at once; what hangs is ended with the test."""
    processes = [program.start(*args) for _ in range(times)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("round_", range(2))
def test_eight_pulls_of_one_model_fetch_it_once(round_: int, hub: LocalHub, cli: Program) -> None:
    data = big_gguf(8 * MIB, round_)
    hub.add_file(SOURCE, "m.gguf", data)
    hub.throttle = 8 * MIB
    outcomes = []
    with together(cli, "models", "pull", SOURCE, "--json") as processes:
        for process in processes:
            out, err = process.communicate(timeout=30)
            outcomes.append(last_event(Ended(process.returncode, out, err))["status"])
            assert (process.returncode, err) == (0, "")
    assert outcomes.count("downloaded") == 1
    assert outcomes.count("exists") == 7
    assert served(hub) <= len(data) + 2 * MIB
    assert final_files(store_of(cli)) == {"o/r/m.gguf": sha256(data)}
    assert not list((store_of(cli) / ".partial").iterdir())


@pytest.fixture
def lockless(cli: Program, tmp_path: Path) -> Program:
    """The command line on a file system whose locks lock nothing."""
    patched = tmp_path / "patched"
    patched.mkdir()
    (patched / "sitecustomize.py").write_text("import fcntl\nfcntl.flock = lambda *_: None\n")
    return Program(cli.home, cli.environ | {"PYTHONPATH": str(patched)})


@pytest.mark.slow
@pytest.mark.parametrize("round_", range(2))
def test_eight_pulls_at_once_are_right_even_where_locks_do_nothing(
    round_: int, hub: LocalHub, lockless: Program
) -> None:
    data = big_gguf(8 * MIB, round_)
    hub.add_file(SOURCE, "m.gguf", data)
    hub.throttle = 8 * MIB
    final = store_of(lockless) / "o/r/m.gguf"
    seen, until = set(), time.monotonic() + 20
    with together(lockless, "models", "pull", SOURCE, "--json") as processes:
        for process in processes:
            while process.poll() is None:
                assert time.monotonic() < until, "a pull hangs"
                if final.exists():
                    seen.add(sha256(final))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.05)
        ended = [Ended(process.returncode, *process.communicate()) for process in processes]
    assert seen <= {sha256(data)}
    assert final_files(store_of(lockless)) == {"o/r/m.gguf": sha256(data)}
    assert all(is_no_bug(each) for each in ended), [last_event(each)["error"] for each in ended]
    assert {each.code for each in ended} == {0}
    assert ids(lockless) == ["m"]


def test_without_locks_a_second_pull_spoils_nothing_that_the_first_has_verified(
    strace: list[str], hub: LocalHub, lockless: Program
) -> None:
    """The first pauses between the last byte and the final name; meanwhile the second begins anew."""
    data = big_gguf(4 * MIB)
    hub.add_file(SOURCE, "m.gguf", data)
    final = store_of(lockless) / "o/r/m.gguf"
    delayed = ["-e", "trace=fsync", "-e", "inject=fsync:delay_exit=1000000:when=3"]
    with subprocess.Popen(
        [*strace, *delayed, *KAWAI, "models", "pull", SOURCE, "--json"],
        env=lockless.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as first:
        assert first.stdout
        assert any('"verifying"' in line for line in first.stdout)
        hub.throttle = 2 * MIB
        with together(lockless, "models", "pull", SOURCE, "--json", times=1) as (second,):
            first.stdout.read()
            assert first.wait(30) == 0
            seen = {sha256(final)} if final.exists() else set()
            hub.throttle = None
            out, err = second.communicate(timeout=20)
    assert seen <= {sha256(data)}
    assert final_files(store_of(lockless)) == {"o/r/m.gguf": sha256(data)}
    assert is_no_bug(Ended(second.returncode, out, err)), (out, err)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_eight_processes_that_do_everything_at_once_agree_in_the_end(
    seed: int, hub: LocalHub, cli: Program
) -> None:
    names = ("a", "b", "c")
    for name in names:
        hub.add_file(f"o/{name}", f"{name}.gguf", big_gguf(MIB, ord(name)))
    chance = random.Random(seed)  # noqa: S311 - the same for the same seed
    actions: list[tuple[str, ...]] = [("models", "list"), ("models", "index"), ("models", "verify")]
    actions += [("models", verb, name) for verb in ("rm", "verify", "show") for name in names]
    actions += 3 * [("models", "pull", f"o/{name}") for name in names]
    waiting = [chance.choice(actions) for _ in range(64)]
    running: list[tuple[tuple[str, ...], subprocess.Popen[str]]] = []
    while waiting or running:
        while waiting and len(running) < 8:
            args = waiting.pop()
            running.append((args, cli.start(*args, "--json")))
        args, process = running.pop(0)
        out, err = process.communicate(timeout=60)
        ended = Ended(process.returncode, out, err)
        assert is_no_bug(ended), (args, ended)
        # not there, or somebody else works on it
        if args == ("models", "verify"):  # 7 if any failed, whatever kept it from being looked at
            failures = {event["error"]["code"] for event in ended.events if event["error"]}  # type: ignore[index]
            assert failures <= {"in_use", "model_not_found"}, (args, ended)
            assert ended.code == (7 if failures else 0), (args, ended)
        else:
            assert ended.code in {0, 3, 5}, (args, ended)
    listed = cli("models", "list", "--json")
    assert cli("models", "index").code == 0
    assert cli("models", "list", "--json") == listed
    assert set(final_files(store_of(cli))) == {f"o/{name}/{name}.gguf" for name in ids(cli)}
    assert cli("models", "verify").code == 0
    for name in names:
        assert cli("models", "pull", f"o/{name}").code == 0
    assert ids(cli) == list(names)
    assert not list((store_of(cli) / ".partial").iterdir())


# bad disks


def mount(*args: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk of its own")
    done = subprocess.run(["mount", *args], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this machine cannot mount: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk))
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture
def cramped(hub: LocalHub, small_disk: Path) -> Program:
    """The command line with its home on the small disk."""
    return Program(small_disk, {"HF_ENDPOINT": hub.endpoint})


def fill(disk: Path) -> Path:
    """Leave not one free block."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(MIB)):
            pass
    return filler


def test_what_the_disk_would_not_hold_is_refused_before_the_first_byte(
    hub: LocalHub, cramped: Program
) -> None:
    hub.add_file(SOURCE, "m-00001-of-00002.gguf", tiny_gguf(split=(0, 2)) + bytes(40 * MIB))
    hub.add_file(SOURCE, "m-00002-of-00002.gguf", tiny_gguf(split=(1, 2)) + bytes(40 * MIB))
    url = hub.url(SOURCE, "m-00001-of-00002.gguf")
    ended = cramped("models", "pull", url, "--json")
    assert ended.code == 8, ended
    assert ended.error["code"] == "no_space"
    needed, free = (int(each.replace(",", "")) for each in re.findall(r"\d[\d,]{6,}", ended.error["message"]))
    assert needed > 80 * MIB > 64 * MIB >= free
    with serving(cramped) as daemon:
        answer = daemon.ask("POST", "/v1/models/pull", {"model_url": url})
    assert (answer.status, answer.error["code"]) == (507, "no_space")
    assert served(hub) == 0
    assert final_files(store_of(cramped)) == {}


def test_a_disk_that_others_fill_meanwhile_leaves_a_partial_that_is_gone_on_with(
    hub: LocalHub, cramped: Program, small_disk: Path
) -> None:
    data = big_gguf(40 * MIB)
    hub.add_file(SOURCE, "m.gguf", data)
    hub.throttle = 8 * MIB
    with together(cramped, "models", "pull", SOURCE, "--json", "--connections", "1", times=1) as (process,):
        assert process.stdout
        done = next(
            event["completed"] for event in map(json.loads, process.stdout) if event["completed"] > 12 * MIB
        )
        filler = fill(small_disk)
        out, err = process.communicate(timeout=20)
    failed = last_event(Ended(process.returncode, out, err))
    assert (process.returncode, failed["status"], err) == (8, "failed", "")
    assert isinstance(failed["error"], dict)
    assert failed["error"]["code"] == "no_space"
    assert str(small_disk) in failed["error"]["message"]
    assert ids(cramped) == []

    filler.unlink()
    hub.throttle = None
    hub.clear_requests()
    assert cramped("models", "pull", SOURCE).code == 0
    assert served(hub) <= len(data) - done + SAVE_BYTES
    assert final_files(store_of(cramped)) == {"o/r/m.gguf": sha256(data)}
    assert not list((store_of(cramped) / ".partial").iterdir())


@pytest.mark.parametrize("command", ["pull", "index", "verify", "rm", "list", "serve"])
def test_every_command_says_that_the_disk_is_full(
    command: str, hub: LocalHub, cramped: Program, small_disk: Path
) -> None:
    hub.add_file(SOURCE, "m.gguf", tiny_gguf())
    hub.add_file("o/other", "other.gguf", tiny_gguf())
    assert cramped("models", "pull", SOURCE).code == 0
    tiny_gguf(store_of(cramped) / "dropped.gguf")
    (store_of(cramped) / "o/r/m.gguf").touch()
    filler = fill(small_disk)
    args = {
        "pull": ("models", "pull", "o/other"),
        "index": ("models", "index"),
        "verify": ("models", "verify", "m"),
        "rm": ("models", "rm", "m"),
        "list": ("models", "list"),
        "serve": ("serve", "--port", "0"),
    }[command]
    ended = cramped(*args, "--json")
    assert is_no_bug(ended), ended
    if command == "list":
        assert ended.code == 0
    else:
        told = ended.error if ended.err else last_event(ended)["error"]
        assert isinstance(told, dict)
        assert (ended.code, told["code"]) == (8, "no_space"), told
        assert str(small_disk) in told["message"]
    filler.unlink()
    assert ids(cramped) in (["m"], [])
    assert cramped("models", "index").code == 0
    assert cramped("models", "verify").code == 0
    assert not [path for path in store_of(cramped).rglob("*.partial") if path.is_file()]


def test_a_full_disk_can_be_relieved_by_removing_a_model(
    hub: LocalHub, cramped: Program, small_disk: Path
) -> None:
    hub.add_file(SOURCE, "m.gguf", big_gguf(4 * MIB))
    assert cramped("models", "pull", SOURCE).code == 0
    fill(small_disk)
    removed = cramped("models", "rm", "m", "--json")
    assert removed == Ended(0, "", ""), removed
    assert ids(cramped) == []


def test_a_read_only_home_can_be_read_and_every_change_is_refused_naming_it(
    hub: LocalHub, cramped: Program, small_disk: Path
) -> None:
    hub.add_file(SOURCE, "m.gguf", tiny_gguf())
    hub.add_file("o/other", "other.gguf", tiny_gguf())
    assert cramped("models", "pull", SOURCE).code == 0
    listed, shown = cramped("models", "list", "--json"), cramped("models", "show", "m", "--json")
    mount("-o", "remount,ro", str(small_disk))

    assert cramped("models", "list", "--json") == listed
    assert cramped("models", "show", "m", "--json") == shown
    assert last_event(cramped("models", "pull", SOURCE, "--json"))["status"] == "exists"
    assert cramped("models", "index", "--json") == Ended(0, "", "")
    for args in (("models", "pull", "o/other"), ("models", "rm", "m"), ("serve", "--port", "0")):
        ended = cramped(*args, "--json")
        told = ended.error if ended.err else last_event(ended)["error"]
        assert isinstance(told, dict)
        assert (ended.code, told["code"]) == (9, "home_not_writable"), (args, ended)
        assert str(small_disk) in told["message"]


def test_a_model_on_a_read_only_disk_can_be_verified(
    hub: LocalHub, cramped: Program, small_disk: Path
) -> None:
    hub.add_file(SOURCE, "m.gguf", tiny_gguf())
    assert cramped("models", "pull", SOURCE).code == 0
    mount("-o", "remount,ro", str(small_disk))
    (event,) = cramped("models", "verify", "m", "--json").events[-1:]
    assert (event["status"], event["error"]) == ("verified", None)


@pytest.mark.parametrize("args", ["pull o/r", "index", "list", "verify"])
@pytest.mark.parametrize("kind", ["file", "below a file", "device"])
def test_a_home_that_cannot_be_is_named(
    args: str, kind: str, hub: LocalHub, cli: Program, tmp_path: Path
) -> None:
    hub.add_file(SOURCE, "m.gguf", tiny_gguf())
    occupied = tmp_path / "occupied"
    occupied.write_text("mine")
    home = {
        "file": occupied,
        "below a file": occupied / "kawai",
        "device": Path("/dev/null"),
    }[kind]
    ended = cli("models", *args.split(), "--json", KAWAI_HOME=str(home))
    assert is_no_bug(ended), ended
    if "pull" in args:
        told = ended.error if ended.err else last_event(ended)["error"]
        assert isinstance(told, dict)
        assert (ended.code, told["code"]) == (9, "home_not_writable")
        assert str(home) in told["message"]
    assert occupied.read_text() == "mine"


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit (util-linux) is not here")
@pytest.mark.parametrize("limit", [12, 14, 16, 18, 20, 24])
def test_too_few_descriptors_are_no_bug_and_leave_no_damage(limit: int, hub: LocalHub, cli: Program) -> None:
    data = tiny_gguf()
    hub.add_file(SOURCE, "m.gguf", data)
    few = ["prlimit", f"--nofile={limit}"]
    for args in (("pull", SOURCE), ("list",), ("index",), ("verify",), ("rm", "m")):
        ended = run(cli, "models", *args, under=few)
        assert is_no_bug(ended), (args, ended)
        assert ended.code in {0, 3, 9}, (args, ended)
    assert cli("models", "pull", SOURCE).code == 0
    assert final_files(store_of(cli)) == {"o/r/m.gguf": sha256(data)}


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit (util-linux) is not here")
def test_a_daemon_without_free_descriptors_answers_again_once_there_are_some(cli: Program) -> None:
    with serving(cli) as daemon:
        assert daemon.ask("GET", "/healthz").status == 200
        subprocess.run(["prlimit", "--pid", str(daemon.process.pid), "--nofile=32"], check=True)
        held = [daemon.connect(5) for _ in range(40)]
        for connection in held:
            connection.connect()
        for connection in held:
            connection.close()
        assert daemon.ask("GET", "/healthz").status == 200
        assert daemon.ask("GET", "/v1/models").status == 200


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit (util-linux) is not here")
def test_a_file_larger_than_this_user_may_write_is_refused_and_can_be_pulled_later(
    hub: LocalHub, cli: Program
) -> None:
    data = big_gguf(4 * MIB)
    hub.add_file(SOURCE, "m.gguf", data)
    ended = run(cli, "models", "pull", SOURCE, "--json", under=["prlimit", f"--fsize={MIB}"])
    told = ended.error if ended.err else last_event(ended)["error"]
    assert isinstance(told, dict)
    assert is_no_bug(ended), told
    assert ended.code in {8, 9}
    assert str(store_of(cli)) in told["message"]
    assert ids(cli) == []
    assert cli("models", "pull", SOURCE).code == 0
    assert final_files(store_of(cli)) == {"o/r/m.gguf": sha256(data)}


# the daemon


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_pull_of_a_daemon_that_was_ended_is_gone_on_with_by_the_next(
    number: int, hub: LocalHub, cli: Program
) -> None:
    data = big_gguf(40 * MIB)
    hub.add_file(SOURCE, "m.gguf", data)
    hub.throttle = 20 * MIB
    with serving(cli) as daemon, contextlib.closing(daemon.connect()) as connection:
        body = json.dumps({"model_url": SOURCE, "connections": 1})
        connection.request("POST", "/v1/models/pull", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        frames = (json.loads(line[6:]) for line in answer if line.startswith(b"data: "))
        done = next(event["completed"] for event in frames if event["completed"] > 20 * MIB)
        daemon.process.send_signal(number)
        if number == signal.SIGTERM:
            assert list(frames)[-1]["status"] == "cancelled"
        code = daemon.process.wait(10)
        assert code == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    assert cli("pulls", "list", "--json").out == "[]\n"
    assert ids(cli) == []
    hub.throttle = None
    settle(hub)
    with serving(cli) as daemon:
        events = daemon.ask("POST", "/v1/models/pull", {"model_url": SOURCE}).events
        assert events[-1]["status"] == "downloaded"
        assert daemon.ask("GET", "/v1/models/m").json["validated"] is True
    slack = MIB if number == signal.SIGTERM else SAVE_BYTES
    assert served(hub) <= len(data) - done + slack
    assert final_files(store_of(cli)) == {"o/r/m.gguf": sha256(data)}


@pytest.fixture
def stocked(hub: LocalHub, daemon: Daemon) -> Daemon:
    """A daemon with one model."""
    hub.add_file(SOURCE, "m.gguf", tiny_gguf())
    hub.add_file("o/other", "other.gguf", tiny_gguf(name="other"))
    assert daemon.ask("POST", "/v1/models/pull", {"model_url": SOURCE}).events[-1]["status"] == "downloaded"
    assert daemon.ask("GET", "/readyz").status == 200
    return daemon


@pytest.mark.parametrize("empty", [True, False], ids=["mount point stays", "path is gone"])
def test_a_daemon_whose_store_vanishes_says_so_and_recovers(empty: bool, stocked: Daemon) -> None:  # noqa: FBT001
    store = stocked.home / "models"
    away = store.with_name("away")
    store.rename(away)
    if empty:
        store.mkdir()
    asked = {
        "readyz": stocked.ask("GET", "/readyz"),
        "readiness": stocked.ask("GET", "/v1/readiness"),
        "show": stocked.ask("GET", "/v1/models/m"),
        "index": stocked.ask("POST", "/v1/models/index"),
        "rm": stocked.ask("DELETE", "/v1/models/m"),
        "pull": stocked.ask("POST", "/v1/models/pull", {"model_url": "o/other"}),
    }
    wrong = {name: (a.status, a.body) for name, a in asked.items() if a.status != 503}
    assert not wrong
    assert {reply.error["code"] for reply in asked.values()} == {"store_missing"}
    assert stocked.ask("GET", "/healthz").status == 200
    verified = stocked.ask("POST", "/v1/models/verify", {"model": "m"})
    assert "store_missing" in verified.body.decode()
    # nothing was put where the disk is to be mounted
    assert not store.exists() or not list(store.iterdir())
    if store.exists():
        store.rmdir()
    away.rename(store)
    assert stocked.ask("GET", "/readyz").status == 200
    assert stocked.ask("GET", "/v1/models/m").json["validated"] is True
    assert stocked.ask("POST", "/v1/models/verify", {}).events[-1]["status"] == "verified"
    assert (
        stocked.ask("POST", "/v1/models/pull", {"model_url": "o/other"}).events[-1]["status"] == "downloaded"
    )
    assert [row["id"] for row in stocked.ask("GET", "/v1/models").json["data"]] == ["m", "other"]


def test_a_daemon_whose_disk_is_unmounted_and_mounted_again(
    hub: LocalHub, cli: Program, tmp_path: Path
) -> None:
    store, image = store_of(cli), tmp_path / "image"
    hub.add_file(SOURCE, "m.gguf", tiny_gguf())
    store.mkdir(parents=True)
    make_ext4(image)
    mount("-o", "loop", str(image), str(store))
    try:
        with serving(cli) as daemon:
            events = daemon.ask("POST", "/v1/models/pull", {"model_url": SOURCE}).events
            assert events[-1]["status"] == "downloaded"
            # works only if the daemon holds nothing of the disk open
            subprocess.run(["umount", store], check=True)
            assert daemon.ask("GET", "/readyz").error["code"] == "store_missing"
            mount("-o", "loop", str(image), str(store))
            assert daemon.ask("GET", "/readyz").status == 200
            assert daemon.ask("GET", "/v1/models/m").status == 200
    finally:
        subprocess.run(["umount", "--lazy", store], check=False, capture_output=True)


# power


def make_ext4(image: Path) -> None:
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed (Debian: apt-get install e2fsprogs)")
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)


@contextlib.contextmanager
def mounted(image: Path, where: Path) -> Iterator[Program]:
    """A disk that writes nothing by itself for ten minutes, and the command line on it."""
    where.mkdir()
    mount("-o", "loop,commit=600", str(image), str(where))
    try:
        yield Program(where)
    finally:
        subprocess.run(["umount", "--lazy", where], check=True)


def test_a_model_that_was_reported_installed_outlives_a_power_failure(hub: LocalHub, tmp_path: Path) -> None:
    data = big_gguf(4 * MIB)
    hub.add_file(SOURCE, "m.gguf", data)
    hub.add_file(SOURCE, "mmproj.gguf", tiny_gguf(projection=True))
    image, copy = tmp_path / "image", tmp_path / "copy"
    make_ext4(image)
    with mounted(image, tmp_path / "before") as program:
        assert program("models", "pull", SOURCE, HF_ENDPOINT=hub.endpoint).code == 0
        # shows that what is not synced is lost
        (program.home / "later").write_bytes(data)
        shutil.copyfile(image, copy)
    with mounted(copy, tmp_path / "after") as program:
        later = program.home / "later"
        assert not later.exists() or later.read_bytes() != data
        assert sha256(store_of(program) / "o/r/m.gguf") == sha256(data)
        assert ids(program) == ["m"]
        assert program("models", "verify").code == 0


@pytest.mark.slow
def test_a_power_failure_at_any_moment_leaves_no_bad_file_under_a_final_name(
    hub: LocalHub, tmp_path: Path
) -> None:
    data = big_gguf(6 * MIB)
    hub.add_file(SOURCE, "m.gguf", data)
    hub.throttle = 12 * MIB
    image = tmp_path / "image"
    make_ext4(image)
    copies: list[Path] = []
    with mounted(image, tmp_path / "before") as program:
        program.environ["HF_ENDPOINT"] = hub.endpoint
        process = program.start("models", "pull", SOURCE)
        while process.poll() is None:
            copies.append(tmp_path / f"copy{len(copies)}")
            subprocess.run(["cp", "--sparse=always", image, copies[-1]], check=True)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        assert process.wait() == 0
        process.communicate()
    assert len(copies) > 2
    hub.throttle = None
    for number, copy in enumerate(copies):
        with mounted(copy, tmp_path / f"after{number}") as program:
            program.environ["HF_ENDPOINT"] = hub.endpoint
            assert set(final_files(store_of(program)).values()) <= {sha256(data)}
            assert program("models", "pull", SOURCE).code == 0
            assert final_files(store_of(program)) == {"o/r/m.gguf": sha256(data)}
            assert ids(program) == ["m"]
