"""Crashes, rivals, bad disks and bad builds: the build that is used always works, and the next pull heals."""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import pytest

from kawai_tools.libs.layout import LibsLayout
from kawai_tools.libs.platforms import Processor
from kawai_tools.libs.probing import probe
from tests.bundles import asset_name, broken_bundle, host_platform, launcher_bundle
from tests.hub import LocalHub
from tests.program import KAWAI, Ended, Program, serving
from tests.test_faults import (
    MIB,
    SAVE_BYTES,
    fill,
    is_no_bug,
    kill_after,
    last_event,
    make_ext4,
    mount,
    mounted,
    run,
    served,
    settle,
    together,
)

OLD, NEW = "b100", "b101"
CANARY = "canary-d41f3a"

Content = dict[str, str]
"""What a build holds: by name, where a link leads, or mode and digest of a file."""

Extra = dict[str, bytes]
"""Files that an archive has beside the build; a name with ``llama-server`` in it can be run."""


class Build(NamedTuple):
    """A build on offer."""

    tag: str
    archive: Path
    content: Content


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build that works, to which others add."""
    return launcher_bundle(OLD, directory=tmp_path_factory.mktemp("plain"))


@pytest.fixture
def offer(plain: Path, hub: LocalHub, tmp_path: Path) -> Callable[..., Build]:
    """Releases a build that works, with other files in it."""
    return partial(_offer, plain, hub, tmp_path)


def _offer(
    plain: Path, hub: LocalHub, root: Path, tag: str, extra: Mapping[str, bytes] | None = None
) -> Build:
    folder = root / "offered" / os.urandom(4).hex()
    archive = folder / asset_name(tag, host_platform())
    folder.mkdir(parents=True)
    _repack(plain, archive, extra or {"about": tag.encode()})
    hub.add_release(tag, {archive.name: archive})
    with tarfile.open(archive) as tape:
        tape.extractall(folder / "whole", filter="data")
    (top,) = (folder / "whole").iterdir()
    return Build(tag, archive, content_of(top))


def _repack(source: Path, target: Path, extra: Mapping[str, bytes]) -> None:
    with tarfile.open(source) as old, tarfile.open(target, "w:gz") as new:
        top, *members = old.getmembers()
        new.addfile(top)
        for member in members:
            if Path(member.name).name not in extra:
                new.addfile(member, old.extractfile(member) if member.isfile() else None)
        for name, data in extra.items():
            added = tarfile.TarInfo(f"{top.name}/{name}")
            added.size, added.mode = len(data), 0o755 if "llama-server" in name else 0o644
            new.addfile(added, io.BytesIO(data))


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311 - the same for the same seed


def content_of(folder: Path) -> Content:
    return {
        path.name: f"-> {path.readlink()}"
        if path.is_symlink()
        else f"{path.stat().st_mode & 0o777:o} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path in folder.iterdir()
    }


@pytest.fixture
def libs(cli: Program, hub: LocalHub) -> Program:
    """The command line with the local hub as its release server too."""
    cli.environ["KAWAI_LIBS_API"] = hub.libs_api
    return cli


def layout_of(program: Program) -> LibsLayout:
    return LibsLayout(Path(program.environ["KAWAI_HOME"]))


def rows(program: Program) -> list[dict[str, object]]:
    ended = program("libs", "list", "--json")
    assert ended.code == 0, ended
    found: list[dict[str, object]] = json.loads(ended.out)
    return found


def installed(program: Program) -> dict[str, Content]:
    """What is in each build that kawai lists."""
    (platform,) = {each.parent.name for each in layout_of(program).root.glob("*/.kawai")} or {""}
    return {
        str(row["version"]): content_of(layout_of(program).bundle(platform, str(row["version"])))
        for row in rows(program)
    }


def active(program: Program) -> tuple[str, Path]:
    """What ``active.json`` itself says, without kawai: the version, and where it is."""
    current = json.loads(layout_of(program).active.read_text())["current"]
    return current["version"], layout_of(program).bundle(current["platform"], current["version"])


_PROBED: set[frozenset[tuple[str, str]]] = set()
"""What builds that passed a probe of this process hold."""


def assert_works(program: Program, *builds: Build) -> str:
    """The build that ``active.json`` names is one of these, whole, and passes its probe."""
    version, place = active(program)
    content = content_of(place)
    assert content in [each.content for each in builds if each.tag == version]
    same = frozenset(content.items())
    if same not in _PROBED:  # the same files do the same
        result = probe(place, Processor.CPU, time.sleep)
        assert result.ok, result.detail
        _PROBED.add(same)
    return version


def strays(program: Program) -> list[str]:
    """Whatever is in kawai's directory of builds and belongs to none."""
    layout = layout_of(program)
    known = {layout.active, layout.lock, layout.releases, layout.partials}
    found = [path for path in layout.root.iterdir() if path not in known and not path.is_dir()]
    found += layout.partials.iterdir()
    for folder in (path for path in layout.root.iterdir() if path.is_dir() and path != layout.partials):
        names = {path.stem for path in (folder / ".kawai").glob("b*.json")}
        found += [path for path in folder.iterdir() if path.name not in {".kawai", *names}]
        found += [path for path in (folder / ".kawai").iterdir() if path.stem not in names]
    return [path.relative_to(layout.root).as_posix() for path in found]


def told_error(ended: Ended) -> dict[str, str]:
    """The error object, wherever it was told."""
    told = ended.error if ended.err else last_event(ended)["error"]
    assert isinstance(told, dict), ended
    return told


def stopping_at(process: "subprocess.Popen[str]", status: str, share: float = 0) -> None:
    """Read a pull's events until it has this status, and this share of its bytes."""
    assert process.stdout
    for event in map(json.loads, process.stdout):
        if event["status"] == status and (event["completed"] or 0) >= share * (event["total"] or 0):
            return
    pytest.fail(f"the pull never got to {status}: {process.communicate()}")


# kill -9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "force"),
    [*((seed, False) for seed in range(3)), (3, True)],
    ids=lambda each: {True: "forced", False: "upgrade"}[each] if isinstance(each, bool) else str(each),
)
def test_an_upgrade_killed_at_ten_random_moments_leaves_an_active_build_that_works(
    seed: int,
    force: bool,  # noqa: FBT001
    hub: LocalHub,
    libs: Program,
    offer: Callable[..., Build],
    tmp_path: Path,
) -> None:
    """Forced, the active build itself is replaced, by another of its name."""
    old = offer(OLD)
    assert libs("libs", "pull", OLD).code == 0
    new = offer(OLD if force else NEW, {f"lib{n}.so": noise(200_000, seed * 100 + n) for n in range(12)})
    home, prepared = Path(libs.environ["KAWAI_HOME"]), tmp_path / "prepared"
    shutil.copytree(home, prepared, symlinks=True)
    pull = ("libs", "pull", new.tag, *(["--force"] if force else []))
    moments = random.Random(seed)  # noqa: S311 - the same for the same seed
    hub.throttle = 8 * MIB
    begin = time.monotonic()
    assert libs(*pull).code == 0
    lasts = time.monotonic() - begin
    for tenth in range(10):
        shutil.rmtree(home)
        shutil.copytree(prepared, home, symlinks=True)
        hub.throttle = 8 * MIB
        kill_after(libs.start(*pull), (tenth + moments.random()) / 10 * lasts)
        hub.throttle = None

        found = installed(libs)
        assert_works(libs, old, new)
        assert all(content in (old.content, new.content) for content in found.values())
        assert set(found) <= {OLD, new.tag}
        again = libs(*pull)
        assert again.code == 0, again.err
        version, place = active(libs)
        assert (version, content_of(place)) == (new.tag, new.content)
        assert not list(layout_of(libs).partials.iterdir())


CHANGES = {
    "upgrade": ("pull", NEW),
    "forced": ("pull", OLD, "--force"),
    "use": ("use", NEW),
    "rm": ("rm", NEW),
}
CALLS = (
    "rename",
    "fsync",
    "fchmod",
    "symlink,symlinkat",
    "unlink,unlinkat",
    "rmdir",
    "mkdir",
    "flock",
    "fallocate",
)
NONE_OF = {
    *(("use", call) for call in ("fchmod", "symlink,symlinkat", "rmdir", "mkdir", "fallocate")),
    *(("rm", call) for call in ("fchmod", "symlink,symlinkat", "fsync", "mkdir", "fallocate")),
    ("use", "unlink,unlinkat"),
}
"""A switch makes no such calls."""


def times_called(program: Program, *args: str) -> dict[str, int]:
    """How often the thread that makes a call most often makes it; strace counts by thread."""
    log = program.home / "calls"
    trace = f"trace={','.join(CALLS)}"
    under = ["strace", "-f", "-qq", "-o", str(log), "-e", trace]
    ended = run(program, *args, under=under)
    assert ended.code == 0, ended
    # an interrupted call takes two lines, the second "<... resumed>"
    made = re.findall(r"^(\d+) +([a-z]\w*)\(", log.read_text(), re.MULTILINE)

    def most(call: str) -> int:
        callers = [caller for caller, name in made if name in call.split(",")]
        return max(map(callers.count, set(callers)), default=0)

    return {call: most(call) for call in CALLS}


class Stage(NamedTuple):
    """A home before a change, which is set anew for each call that the change is struck at."""

    program: Program
    args: Sequence[str]
    builds: Sequence[Build]
    prepared: Path
    calls: Mapping[str, int]

    def set(self) -> None:
        home = Path(self.program.environ["KAWAI_HOME"])
        shutil.rmtree(home)
        shutil.copytree(self.prepared, home, symlinks=True)


@pytest.fixture(scope="module")
def stages(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Stage]]:
    """The stage of a change; what installs its builds and counts its calls is done once for all of them."""
    with contextlib.ExitStack() as hubs:

        @cache
        def stage(change: str) -> Stage:
            root = tmp_path_factory.mktemp(change)
            hub = hubs.enter_context(LocalHub(root / "hub"))
            program = Program(root, {"HF_ENDPOINT": hub.endpoint, "KAWAI_LIBS_API": hub.libs_api})
            builds = [_offer(plain, hub, root, tag) for tag in (OLD, NEW)]
            for tag in (OLD,) if change == "upgrade" else (NEW, OLD):
                assert program("libs", "pull", tag).code == 0
            if change == "forced":
                builds.append(_offer(plain, hub, root, OLD, {"about": b"published anew"}))
            prepared = root / "prepared"
            shutil.copytree(program.environ["KAWAI_HOME"], prepared, symlinks=True)
            args = ("libs", *CHANGES[change])
            return Stage(program, args, builds, prepared, times_called(program, *args))

        yield stage


def spread(count: int, most: int = 3) -> list[int]:
    """At most so many of the calls 1 to ``count``, the first and the last among them."""
    if count <= most:
        return list(range(1, count + 1))
    return sorted({1 + round(step * (count - 1) / (most - 1)) for step in range(most)})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "call"),
    [(change, call) for change in CHANGES for call in CALLS if (change, call) not in NONE_OF],
)
def test_a_change_killed_at_any_system_call_leaves_the_old_build_or_the_new(
    change: str, call: str, strace: list[str], stages: Callable[[str], Stage]
) -> None:
    """The kill comes before the call. A file has been made, and is still empty, when its mode is set."""
    stage = stages(change)
    libs, args, builds = stage.program, stage.args, stage.builds
    wrong: list[str] = []
    killed = 0
    for number in spread(stage.calls[call]):
        where = f"{call} {number}"
        stage.set()
        inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}"]
        ended = run(libs, *args, under=[*strace, *inject])
        if ended.code != -signal.SIGKILL:
            # this time there were fewer calls, or it was the server's in the probe
            assert ended.code in {0, 7}, (where, ended)
            continue
        killed += 1
        found = installed(libs)
        assert all(content in [each.content for each in builds] for content in found.values()), where
        assert OLD in found, where
        assert_works(libs, *builds)
        again = libs(*args)
        assert again.code == (3 if change == "rm" and NEW not in found else 0), (where, again.err)
        version, place = active(libs)
        assert version == (OLD if change in {"forced", "rm"} else NEW), where
        wanted = [each.content for each in builds if each.tag == version]
        assert content_of(place) == wanted[-1], where
        if left := strays(libs):
            wrong.append(f"{where}: {', '.join(left)}")
    assert killed
    assert not wrong, "\n".join(["left behind for ever:", *wrong])


# whoever looks while a build is replaced


@pytest.mark.parametrize("call", ["rename", "rmdir"])
def test_the_active_build_is_seen_while_it_is_replaced(
    call: str, strace: list[str], libs: Program, offer: Callable[..., Build]
) -> None:
    """Each rename (each removal of a directory) takes long, and meanwhile others look."""
    offer(OLD)
    assert libs("libs", "pull", OLD).code == 0
    delayed = ["-e", f"trace={call}", "-e", f"inject={call}:delay_exit=700000"]
    command = [*strace, *delayed, *KAWAI, "libs", "pull", OLD, "--force", "--json"]
    with subprocess.Popen(
        command, env=libs.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as pull:
        stopping_at(pull, "installing" if call == "rename" else "probing")
        seen = set()
        while pull.poll() is None:
            ended = libs("libs", "list", "--json")
            seen.add((ended.code, ended.err))
            if ended.code == 0:
                seen.add((0, " ".join(f"{row['version']} {row['active']}" for row in json.loads(ended.out))))
        assert pull.wait() == 0
    assert seen == {(0, ""), (0, f"{OLD} True")}


# a build that is worse than the one it replaces


@pytest.mark.parametrize("args", [("--force",), (), ("--no-activate",)], ids=" ".join)
@pytest.mark.parametrize("how", ["sigill", "exits"])
def test_a_build_published_anew_that_does_not_work_does_not_replace_the_active_one(
    how: str, args: tuple[str, ...], hub: LocalHub, libs: Program, offer: Callable[..., Build], tmp_path: Path
) -> None:
    old = offer(OLD)
    assert libs("libs", "pull", OLD).code == 0
    bad = broken_bundle(OLD, how="sigill" if how == "sigill" else "exits", directory=tmp_path / "bad")
    hub.add_release(OLD, {bad.name: bad})
    ended = libs("libs", "pull", OLD, *args, "--json")
    assert (ended.code, told_error(ended)["code"]) == (7, "probe_failed"), ended
    assert_works(libs, old)
    (row,) = rows(libs)
    assert row["active"] is True


# orphans


SPY = """#!{python} -I
import http.server, json, os, socketserver, subprocess, sys, time
with open({log!r}, "a") as log:
    log.write(json.dumps([sys.argv, dict(os.environ)]) + "\\n")
mode = {mode!r}
def hang():
    time.sleep(60)
if "--version" in sys.argv:
    if mode == "version":
        hang()
    sys.stderr.write("version: 1 (abc)\\n")
    if mode == "daemonizes":
        subprocess.Popen([sys.executable, "-I", "-c", "import time; time.sleep(20)"], start_new_session=True)
    sys.exit()
if "--list-devices" in sys.argv:
    print("Available devices:\\n  (none)")
    sys.exit()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if mode == "health":
            hang()
        self.answer(503 if mode == "loading" else 200, b'{{"status": "ok"}}')
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))  # left unread, it would reset the connection
        if mode == "completion":
            hang()
        if mode == "drips":
            self.send_response(200)
            self.end_headers()
            for _ in range(300):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.2)
        self.answer(200, b'{{"content": "a"}}')
    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def address_string(self):
        return ""
class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
Server(sys.argv[sys.argv.index("--host") + 1], Handler).serve_forever()
"""
"""A server that notes how it was started, and stops answering where its mode says."""


@pytest.fixture
def spying(offer: Callable[..., Build], tmp_path: Path) -> Callable[[str], Path]:
    """Releases the newer build with such a server; the file in which it notes its starts."""

    def make(mode: str) -> Path:
        log = tmp_path / "starts"
        text = SPY.format(python=sys.executable, log=str(log), mode=mode)
        offer(NEW, {"llama-server": text.encode()})
        return log

    return make


@pytest.fixture
def alive(libs: Program) -> Iterator[Callable[[], list[int]]]:
    """The processes that run from a build of this home, zombies apart; those left over are ended."""

    def find() -> list[int]:
        return [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit() and ours(each)]

    def ours(process: Path) -> bool:
        with contextlib.suppress(OSError):
            dead = process.joinpath("stat").read_text().rpartition(")")[2].split()[0] == "Z"
            return not dead and process.joinpath("cwd").readlink().is_relative_to(layout_of(libs).root)
        return False

    yield find
    for pid in find():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_until(met: Callable[[], object], seconds: float = 10) -> bool:
    """Look again and again: nothing tells when a process of others begins or ends."""
    until = time.monotonic() + seconds
    while not met():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def is_in(mode: str, log: Path) -> bool:
    """Whether the server has been started in the way in which it will hang."""
    starts = log.read_text().splitlines() if log.exists() else []
    return any(("--version" if mode == "version" else "--model") in start for start in starts)


@pytest.mark.parametrize("through", ["command", "daemon"])
@pytest.mark.parametrize("mode", ["version", "loading", "completion"])
def test_no_server_outlives_a_kawai_that_is_killed_during_the_probe(
    mode: str,
    through: str,
    libs: Program,
    spying: Callable[[str], Path],
    alive: Callable[[], list[int]],
) -> None:
    log = spying(mode)
    with contextlib.ExitStack() as stack:
        if through == "command":
            process = libs.start("libs", "pull", NEW)
            stack.callback(process.communicate)
            stack.callback(process.kill)
        else:
            daemon = stack.enter_context(serving(libs))
            process = daemon.process
            connection = stack.enter_context(contextlib.closing(daemon.connect()))
            body = json.dumps({"version": NEW})
            connection.request("POST", "/v1/libs/pull", body, {"Content-Type": "application/json"})
        assert wait_until(lambda: is_in(mode, log))
        assert alive()
        process.kill()
        process.wait()
        assert wait_until(lambda: not alive(), 2)
    assert rows(libs) == []


def test_no_server_outlives_a_kawai_that_is_killed_just_as_it_starts_one(
    strace: list[str], libs: Program, spying: Callable[[str], Path], alive: Callable[[], list[int]]
) -> None:
    """The child has not yet asked the kernel to be ended with its parent when that is killed."""
    spying("version")
    delayed = ["-e", "trace=prctl", "-e", "inject=prctl:delay_enter=1000000"]
    with subprocess.Popen(
        [*strace, *delayed, *KAWAI, "libs", "pull", NEW, "--json"],
        env=libs.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as tracer:
        stopping_at(tracer, "probing")
        children = Path(f"/proc/{tracer.pid}/task/{tracer.pid}/children")
        assert wait_until(children.read_text)
        (kawai,) = map(int, children.read_text().split())
        born = Path(f"/proc/{kawai}/task")
        assert wait_until(lambda: any(each.joinpath("children").read_text() for each in born.iterdir()))
        os.kill(kawai, signal.SIGKILL)
        # two seconds, and the one for which it was held back
        gone = wait_until(lambda: not alive(), 3)
        for pid in alive():
            os.kill(pid, signal.SIGKILL)
        tracer.communicate(timeout=20)
    assert gone
    assert rows(libs) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("mode", ["version", "loading", "health", "completion", "drips"])
def test_a_signal_during_the_probe_ends_it_and_the_server_within_a_second(
    mode: str,
    number: int,
    hub: LocalHub,
    libs: Program,
    offer: Callable[..., Build],
    spying: Callable[[str], Path],
    alive: Callable[[], list[int]],
) -> None:
    old = offer(OLD)
    assert libs("libs", "pull", OLD).code == 0
    log = spying(mode)
    with together(libs, "libs", "pull", NEW, "--json", times=1) as (process,):
        assert wait_until(lambda: is_in(mode, log))
        if mode in {"health", "completion", "drips"}:
            # the server that has noted its start is about to be asked
            assert wait_until(lambda: bool(list(Path(libs.home).glob("tmp/kawai-*/p.sock"))) or alive())
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
        process.send_signal(number)
        begin = time.monotonic()
        out, err = process.communicate(timeout=40)
        took = time.monotonic() - begin
    assert not alive()
    assert took < 1
    assert process.returncode == 128 + number
    assert last_event(Ended(process.returncode, out, err))["status"] == "cancelled"
    assert_works(libs, old)
    assert set(installed(libs)) == {OLD}
    hub.clear_requests()
    new = offer(NEW)
    assert libs("libs", "pull", NEW).code == 0
    assert_works(libs, new)
    assert strays(libs) == []


def test_a_server_that_leaves_a_process_behind_does_not_hold_up_the_probe(
    libs: Program, spying: Callable[[str], Path], alive: Callable[[], list[int]]
) -> None:
    """It is in a session of its own, and keeps the pipe open into which the server spoke."""
    spying("daemonizes")
    begin = time.monotonic()
    with together(libs, "libs", "pull", NEW, times=1) as (process,):
        out, err = process.communicate(timeout=15)
    assert process.returncode == 0, (out, err)
    assert time.monotonic() - begin < 8
    assert alive()


# secrets


SECRETS = {
    name: f"{CANARY}-{name}"
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "LLAMA_API_KEY", "LLAMA_ARG_ALIAS", "OPENAI_API_KEY")
}
SECRETS["GITHUB_TOKEN"] = CANARY
SECRETS["HTTPS_PROXY"] = f"http://user:{CANARY}@127.0.0.1:9"
SECRETS["KAWAI_HUB_TOKEN_HOSTS"] = f"{CANARY}.example"


@pytest.mark.parametrize("through", ["command", "daemon"])
def test_a_server_that_is_probed_learns_no_secret(
    through: str, hub: LocalHub, libs: Program, spying: Callable[[str], Path]
) -> None:
    log = spying("works")
    hub.add_token(CANARY)
    libs.environ |= SECRETS
    if through == "command":
        ended = libs("libs", "pull", NEW, "--json")
        assert ended.code == 0, ended
        said = ended.out + ended.err
    else:
        with serving(libs) as daemon:
            answer = daemon.ask("POST", "/v1/libs/pull", {"version": NEW})
            assert answer.events[-1]["status"] == "downloaded"
            said = answer.body.decode()
    starts = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(starts) == 3
    assert CANARY not in log.read_text()
    names = {name for _, environ in starts for name in environ}
    assert not [name for name in names if name.startswith(("KAWAI_", "HF_", "GITHUB_", "LLAMA_ARG_"))]
    # the key that guards the server from others on this machine is not where they could read it
    (key,) = (environ["LLAMA_API_KEY"] for _, environ in starts if "LLAMA_API_KEY" in environ)
    assert not any(key in word for argv, _ in starts for word in argv)
    assert CANARY not in said
    home = Path(libs.environ["KAWAI_HOME"])
    assert not [path for path in home.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]


def test_a_driver_tool_that_is_asked_what_there_is_learns_no_secret(
    hub: LocalHub, libs: Program, tmp_path: Path
) -> None:
    tools, log = tmp_path / "tools", tmp_path / "learnt"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(f"#!/bin/sh\nenv >> {log}\nexit 1\n")
    (tools / "nvidia-smi").chmod(0o755)
    hub.add_token(CANARY)
    libs.environ |= SECRETS | {"PATH": f"{tools}:{libs.environ['PATH']}"}
    assert libs("libs", "show").code == 0
    assert "PATH=" in log.read_text()
    assert CANARY not in log.read_text()


# several at once


@pytest.mark.slow
@pytest.mark.parametrize("times", [2, 8])
@pytest.mark.parametrize("force", [False, True], ids=["", "forced"])
def test_installs_at_once_fetch_a_build_once(
    times: int,
    force: bool,  # noqa: FBT001
    hub: LocalHub,
    libs: Program,
    offer: Callable[..., Build],
) -> None:
    old = offer(OLD)
    assert libs("libs", "pull", OLD).code == 0
    new = offer(NEW, {"padding": noise(2 * MIB)})
    hub.clear_requests()
    hub.throttle = 2 * MIB
    args = ("libs", "pull", NEW, *(["--force"] if force else []), "--json")
    outcomes = []
    with together(libs, *args, times=times) as processes:
        for process in processes:
            ended = Ended(*(out := process.communicate(timeout=40)) and (process.returncode, *out))
            assert (ended.code, ended.err) == (0, ""), ended
            outcomes.append(last_event(ended)["status"])
            assert last_event(ended)["current"] == NEW
    assert outcomes.count("downloaded") == 1
    assert outcomes.count("exists") == times - 1
    assert served(hub) <= new.archive.stat().st_size + MIB
    assert installed(libs) == {OLD: old.content, NEW: new.content}
    assert_works(libs, new)
    assert strays(libs) == []


def test_a_build_that_is_being_pulled_cannot_be_removed_under_the_pull(
    hub: LocalHub, libs: Program, offer: Callable[..., Build]
) -> None:
    offer(NEW)
    old = offer(OLD)
    assert libs("libs", "pull", NEW).code == 0
    assert libs("libs", "pull", OLD).code == 0
    new = offer(NEW, {"padding": noise(2 * MIB)})
    hub.throttle = 2 * MIB
    with together(libs, "libs", "pull", NEW, "--force", "--json", times=1) as (process,):
        stopping_at(process, "downloading", 0.2)
        removed = libs("libs", "rm", NEW, "--json")
        out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, ""), out
    assert (removed.code, removed.error["code"]) == (5, "in_use")
    assert installed(libs) == {OLD: old.content, NEW: new.content}
    assert_works(libs, new)


def test_pulls_of_different_versions_at_once_all_end_well(libs: Program, offer: Callable[..., Build]) -> None:
    builds = [offer(f"b{number}") for number in (100, 101, 102)]
    processes = [libs.start("libs", "pull", build.tag) for build in builds]
    ended = [Ended(process.wait(30), *process.communicate()) for process in processes]
    assert [each.code for each in ended] == [0, 0, 0], ended
    assert installed(libs) == {build.tag: build.content for build in builds}
    assert_works(libs, *builds)
    assert strays(libs) == []


@pytest.fixture
def lockless(libs: Program, tmp_path: Path) -> Program:
    """The command line on a file system whose locks lock nothing."""
    patched = tmp_path / "patched"
    patched.mkdir()
    (patched / "sitecustomize.py").write_text("import fcntl\nfcntl.flock = lambda *_: None\n")
    return Program(libs.home, libs.environ | {"PYTHONPATH": str(patched)})


@pytest.mark.slow
@pytest.mark.parametrize("times", [2, 8])
@pytest.mark.parametrize("round_", range(3))
def test_installs_at_once_are_right_even_where_locks_do_nothing(
    round_: int, times: int, hub: LocalHub, lockless: Program, offer: Callable[..., Build]
) -> None:
    old = offer(OLD)
    assert lockless("libs", "pull", OLD).code == 0
    new = offer(NEW, {f"padding{n}": noise(MIB // 8, 100 * round_ + n) for n in range(16)})
    hub.throttle = 4 * MIB
    with together(lockless, "libs", "pull", NEW, "--json", times=times) as processes:
        while any(process.poll() is None for process in processes):
            version, place = active(lockless)
            assert content_of(place) == (old if version == OLD else new).content
        ended = [Ended(process.returncode, *process.communicate()) for process in processes]
    assert all(is_no_bug(each) for each in ended), [last_event(each)["error"] for each in ended]
    assert installed(lockless) == {OLD: old.content, NEW: new.content}
    assert_works(lockless, new)
    assert {each.code for each in ended} == {0}, [last_event(each)["error"] for each in ended]


# bad disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk))
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture
def cramped(libs: Program, small_disk: Path) -> Program:
    """The command line with its home on the small disk."""
    return Program(small_disk, libs.environ | {"KAWAI_HOME": str(small_disk / "kawai")})


def test_a_build_that_the_disk_would_not_hold_is_refused_before_the_first_byte(
    hub: LocalHub, cramped: Program, offer: Callable[..., Build]
) -> None:
    old = offer(OLD)
    assert cramped("libs", "pull", OLD).code == 0
    offer(NEW, {"padding": noise(24 * MIB)})
    hub.clear_requests()
    ended = cramped("libs", "pull", NEW, "--json")
    assert (ended.code, ended.error["code"]) == (8, "no_space"), ended
    with serving(cramped) as daemon:
        answer = daemon.ask("POST", "/v1/libs/pull", {"version": NEW})
    assert (answer.status, answer.error["code"]) == (507, "no_space")
    assert served(hub) == 0
    assert_works(cramped, old)


@pytest.mark.parametrize("padding", ["noise", "zeros"])
def test_a_disk_that_others_fill_meanwhile_leaves_the_old_build_and_a_partial_to_go_on_with(
    padding: str, hub: LocalHub, cramped: Program, small_disk: Path, offer: Callable[..., Build]
) -> None:
    """The archive's blocks are claimed before the first byte, so it is what is unpacked that has no room."""
    old = offer(OLD)
    assert cramped("libs", "pull", OLD).code == 0
    data = noise(4 * MIB) + (bytes(70 * MIB) if padding == "zeros" else b"")
    new = offer(NEW, {"padding": data})
    size = new.archive.stat().st_size
    hub.clear_requests()
    hub.throttle = 4 * MIB
    with together(cramped, "libs", "pull", NEW, "--json", times=1) as (process,):
        stopping_at(process, "downloading", 0.2)
        filler = fill(small_disk) if padding == "noise" else None
        if filler is not None:
            # notes of the download may still be written
            os.truncate(filler, filler.stat().st_size - MIB)
        ended = Ended(*(out := process.communicate(timeout=30)) and (process.returncode, *out))
    assert ended.code == 8, ended
    error = told_error(ended)
    assert error["code"] == "no_space"
    assert str(small_disk) in error["message"]
    assert_works(cramped, old)
    assert set(installed(cramped)) == {OLD}
    if filler is not None:
        filler.unlink()
        hub.throttle = None
        assert cramped("libs", "pull", NEW).code == 0
        assert_works(cramped, new)
        assert served(hub) <= size + MIB // 4
        assert strays(cramped) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "call"),
    [
        (c, f)
        for c in ("upgrade", "forced", "use")
        for f in ("rename", "fsync", "mkdir", "symlink,symlinkat")
        if (c, f) not in NONE_OF
    ],
)
def test_a_disk_that_is_full_at_any_system_call_is_said_and_the_active_build_works(
    change: str, call: str, strace: list[str], stages: Callable[[str], Stage]
) -> None:
    stage = stages(change)
    libs, args, builds = stage.program, stage.args, stage.builds
    codes, wrong = [], []
    for number in spread(stage.calls[call]):
        stage.set()
        inject = ["-e", f"trace={call}", "-e", f"inject={call}:error=ENOSPC:when={number}"]
        ended = run(libs, *args, "--json", under=[*strace, *inject])
        where = (call, number, ended)
        # what only saves asking again may be left unwritten
        assert ended.code in {0, 8}, where
        if ended.code == 8:
            assert told_error(ended)["code"] == "no_space", where
        codes.append(ended.code)
        assert OLD in installed(libs), where
        assert_works(libs, *builds)
        again = libs(*args)
        assert again.code == 0, (where, again)
        if left := strays(libs):
            wrong.append(f"{call} {number}: {', '.join(left)}")
    assert 8 in codes
    assert not wrong, "\n".join(["left behind for ever:", *wrong])


def test_a_build_that_was_reported_active_outlives_a_power_failure(
    libs: Program, offer: Callable[..., Build], tmp_path: Path
) -> None:
    new = offer(NEW, {"padding": noise(MIB)})
    image, copy = tmp_path / "image", tmp_path / "copy"
    make_ext4(image)
    api = {"KAWAI_LIBS_API": libs.environ["KAWAI_LIBS_API"]}
    with mounted(image, tmp_path / "before") as program:
        assert program("libs", "pull", NEW, **api).code == 0
        # shows that what is not synced is lost
        (program.home / "later").write_bytes(b"later")
        shutil.copyfile(image, copy)
    with mounted(copy, tmp_path / "after") as program:
        later = program.home / "later"
        assert not later.exists() or later.read_bytes() != b"later"
        assert_works(program, new)
        assert installed(program) == {NEW: new.content}


# the daemon


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_libs_pull_of_a_daemon_that_was_ended_is_gone_on_with_by_the_next(
    number: int, hub: LocalHub, libs: Program, offer: Callable[..., Build]
) -> None:
    old = offer(OLD)
    assert libs("libs", "pull", OLD).code == 0
    new = offer(NEW, {"padding": noise(32 * MIB)})
    hub.throttle = 24 * MIB
    with serving(libs) as daemon, contextlib.closing(daemon.connect()) as connection:
        body = json.dumps({"version": NEW, "connections": 1})
        connection.request("POST", "/v1/libs/pull", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        frames = (json.loads(line[6:]) for line in answer if line.startswith(b"data: "))
        done = next(event["completed"] for event in frames if event["completed"] > 20 * MIB)
        daemon.process.send_signal(number)
        if number == signal.SIGTERM:
            assert list(frames)[-1]["status"] == "cancelled"
        daemon.process.wait(10)
    assert_works(libs, old)
    hub.throttle = None
    settle(hub)
    with serving(libs) as daemon:
        events = daemon.ask("POST", "/v1/libs/pull", {"version": NEW}).events
        assert (events[-1]["status"], events[-1]["current"]) == ("downloaded", NEW)
    slack = MIB if number == signal.SIGTERM else SAVE_BYTES
    assert served(hub) <= new.archive.stat().st_size - done + slack
    assert installed(libs) == {OLD: old.content, NEW: new.content}
    assert_works(libs, new)
    assert strays(libs) == []


# a build that runs


@pytest.mark.parametrize("args", [("pull", OLD, "--force"), ("rm", NEW)], ids=" ".join)
def test_a_build_that_runs_is_neither_replaced_nor_removed(
    args: tuple[str, ...], libs: Program, offer: Callable[..., Build]
) -> None:
    builds = [offer(NEW), offer(OLD)]
    for build in builds:
        assert libs("libs", "pull", build.tag).code == 0
    version = next(each for each in args if each.startswith("b"))
    place = active(libs)[1].with_name(version)
    fd = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        ended = libs("libs", *args, "--json")
        assert (ended.code, told_error(ended)["code"]) == (5, "in_use"), ended
    finally:
        os.close(fd)
    assert installed(libs) == {build.tag: build.content for build in builds}
    assert libs("libs", *args).code == 0
