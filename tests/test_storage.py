"""Disk space: what is told of it, and a store made to be pruned, with every kind of thing in it at once."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from kawai_tools.catalog.kept import Keeper, Kept, digest_of
from kawai_tools.contract import NoRequest
from kawai_tools.errors import InUse
from kawai_tools.events import Status, VerifyEvent
from kawai_tools.libs.bundle import BundleRecord, Probe
from kawai_tools.libs.platforms import Arch, Os, Processor
from kawai_tools.models.claims import Claim, write_claim
from kawai_tools.models.verifying import verify
from kawai_tools.operations.storage import DF, PRUNE, PruneRequest
from kawai_tools.refs import parse_model
from kawai_tools.settings import Settings
from kawai_tools.storage.finding import Pruned
from kawai_tools.storage.pruning import Wish
from kawai_tools.storage.usage import Usage
from kawai_tools.workspace import Workspace
from tests.hub import LocalHub
from tests.program import Daemon, Program
from tests.samples import F32, tiny_gguf
from tests.test_run import terminal

DAY = 86_400
MIB = 1 << 20
TEMPORARY = ".0123456789abcdef.partial"
NAMED, DROPPED = "https://lists.example.org/named.yaml", "https://lists.example.org/dropped.yaml"
USES = (("Old", 45), ("Late", 1), ("Guarded", 50), ("Busy", 46), ("Theirs", 47), ("Linked", 48))
PAIRS = (("Pair/PairOne", 44), ("Pair/PairTwo", 2), ("Both/BothOne", 43), ("Both/BothTwo", 42))


class House:
    """A home with one of everything."""

    def __init__(self, root: Path) -> None:
        self.root, self.home = root, root / "kawai"
        self.program = Program(root, {"KAWAI_CATALOGS": NAMED})
        self.outside = root / "outside"
        self.store = self.home / "models"

    @property
    def workspace(self) -> Workspace:
        """The core in this process, as a new one would see the home."""
        return Workspace(Settings(home=self.home, catalogs=(NAMED,)))

    # models

    def drop(self, path: str, **header: Any) -> Path:  # noqa: ANN401 - as tiny_gguf takes them
        file = self.store / path
        file.parent.mkdir(parents=True, exist_ok=True)
        tiny_gguf(file, **header)
        return file

    def lock(self, model: str) -> Path:
        return self.workspace.layout.lock(model)

    def used(self, model: str, days: float) -> None:
        """Note a use as a runner does: by the time of the lock file."""
        lock = self.lock(model)
        lock.touch()
        os.utime(lock, (time.time() - days * DAY,) * 2)

    # builds

    def build(self, version: str, size: int, **more: Any) -> BundleRecord:  # noqa: ANN401
        bundles, machine = self.workspace.bundles, self.workspace.machine
        record = BundleRecord(
            **{
                "version": version,
                "arch": machine.arch or Arch.AMD64,
                "os": machine.os or Os.LINUX,
                "processor": Processor.CPU,
                "variant": None,
                "size": size,
                "installed_at": datetime.now(UTC),
                "assets": [],
                "probe": Probe(ok=True, detail="it works"),
                **more,
            }
        )
        place = bundles.layout.bundle(record.platform, version)
        place.mkdir(parents=True)
        (place / "llama-server").write_bytes(bytes(size))
        (place / "libllama.so").symlink_to("llama-server")
        bundles.note(record)
        return record

    def place(self, version: str) -> Path:
        """The directory of a build for this machine."""
        (found,) = (each for each in self.home.glob(f"libraries/*/{version}") if "windows" not in str(each))
        return found

    # what there is

    def files(self) -> set[str]:
        """Every file and link of the home."""
        found = (path for path in self.home.rglob("*") if path.is_symlink() or not path.is_dir())
        return {str(path.relative_to(self.home)) for path in found}

    def facts(self) -> dict[str, object]:
        """All that could be another, directories and outside included."""
        found: dict[str, object] = {}
        for path in sorted(self.root.rglob("*")):
            stat = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else None
            found[str(path)] = stat.st_ino, stat.st_mode, stat.st_nlink, stat.st_mtime_ns, content
        return found

    def taken(self) -> int:
        """Bytes of all that is no note of kawai's own, one file with several names once."""
        inodes = {}
        for path in self.root.rglob("*"):
            stat = path.lstat()
            is_note = (path.parent.name, path.suffix) == (".kawai", ".json") or "index" in path.name
            if path.is_file() and not path.is_symlink() and not is_note:
                inodes[stat.st_ino] = min(stat.st_size, 512 * stat.st_blocks)
        return sum(inodes.values())

    def prune(self, **request: Any) -> dict[str, Pruned]:  # noqa: ANN401
        """What is told of each thing, by its kind and its id or path."""
        return self.named(PRUNE.run(self.workspace, PruneRequest(**request)))

    def named(self, rows: object) -> dict[str, Pruned]:
        assert isinstance(rows, list)
        found = {}
        for row in rows:
            name = row.id if row.id and row.kind != "superseded" else Path(row.path).relative_to(self.home)
            found[f"{row.kind} {name}"] = row
        assert len(found) == len(rows)
        return found


@contextlib.contextmanager
def held(path: Path, kind: int = fcntl.LOCK_SH) -> Iterator[None]:
    """Hold the lock of a file or directory, as another process does."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def killed_pid() -> int:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def add_models(house: House) -> None:
    house.outside.mkdir(parents=True)
    for name, _ in USES:
        file = house.drop(f"acme/{name}/{name}-Q8_0.gguf", name=name)
        if name in {"Theirs", "Linked"}:
            file.rename(house.outside / file.name)
            (file.symlink_to if name == "Theirs" else file.hardlink_to)(house.outside / file.name)
    for number in range(2):
        house.drop(f"acme/Set/Set-{number + 1:05}-of-00002.gguf", split=(number, 2))
    for name in ("Never", "New", "Repl"):
        house.drop(f"acme/{name}/{name}-Q8_0.gguf", name=name)
    os.utime(house.store / "acme/Never/Never-Q8_0.gguf", (time.time() - 100 * DAY,) * 2)
    for pair, _ in PAIRS:
        house.drop(f"acme/{pair}-Q8_0.gguf", name=pair)
        house.drop(f"acme/{Path(pair).parent}/mmproj-F16.gguf", projection=True)
    house.workspace.models.reindex()
    for name, days in (*((f"{name}/{name}", days) for name, days in USES), *PAIRS):
        house.used(f"acme/{name}-Q8_0", days)
    house.used("acme/Set/Set", 60)
    house.workspace.models.protect(parse_model("Guarded-Q8_0"), protected=True)


def add_downloads(house: House) -> None:
    layout, libraries = house.workspace.layout, house.workspace.bundles.layout
    for name in ("Begun", "Pulled"):
        directory = write_claim(layout, Claim(f"{name}-Q8_0", f"acme/{name}/{name}-Q8_0"))
        with (directory / f"{name}-Q8_0.gguf.abc.partial").open("wb") as file:
            file.write(bytes(100_000))
            file.truncate(MIB)  # what has not come yet
    (layout.partials / ("a" * 24)).mkdir()
    (layout.partials / ("a" * 24) / "x.partial").write_bytes(bytes(5000))
    for version in ("b7", "b8"):
        directory = libraries.partial("linux-amd64-cpu", version)
        directory.mkdir(parents=True)
        name = f"llama-{version}-bin-ubuntu-x64.tar.gz"
        (directory / f"{name}.json").write_text("{}")
        (directory / f"{name}.abc.partial").write_bytes(bytes(7000))
    for lock in (layout.pull_lock("acme/Pulled/Pulled-Q8_0"), libraries.pull_lock("linux-amd64-cpu", "b8")):
        lock.touch()


def add_builds(house: House) -> None:
    bundles = house.workspace.bundles
    builds = {version: house.build(version, 10_000) for version in ("b1", "b2", "b3", "b4")}
    house.build("b9", 20_000, os=Os.WINDOWS, arch=Arch.AMD64)
    bundles.use(builds["b2"])
    bundles.use(builds["b3"])
    aside = house.place("b1").with_name(".b0.removed.0123abcd")
    aside.mkdir()
    (aside / "llama-server").write_bytes(bytes(9000))


def add_left_behind(house: House) -> None:
    layout, pid = house.workspace.layout, killed_pid()
    keeper = Keeper(house.home / "catalogs" / "kept")
    for url in (NAMED, DROPPED):
        keeper.write(Kept(url, "entries: []", digest_of("entries: []"), None, None))
    for folder in (house.home, house.store, house.store / "acme/Late/.kawai", house.home / "catalogs"):
        (folder / f".{pid}{TEMPORARY}").write_bytes(bytes(300))
    (house.store / f".{os.getpid()}{TEMPORARY}").write_bytes(b"being written")
    gone = layout.lock("acme/Gone/Gone-Q8_0")
    gone.parent.mkdir(parents=True)
    for lock in (gone, layout.partials / f"{'b' * 24}.lock"):
        lock.touch()
    record = house.workspace.models.find(parse_model("Repl-Q8_0")).record
    house.drop("acme/Repl/before.gguf", name="before")
    write_claim(layout, Claim(record.id, record.path, record, {}, ["acme/Repl/before.gguf"]))


def add_strange(house: House) -> None:
    """What others put there, and what nobody can tell to be kawai's."""
    house.drop("acme/Dropped/Dropped-00001-of-00002.gguf", split=(0, 2))
    house.drop("acme/Dropped/Alone-Q8_0.gguf")
    house.lock("acme/Dropped/Alone-Q8_0").parent.mkdir()
    house.lock("acme/Dropped/Alone-Q8_0").touch()  # its provenance is lost, and nobody has looked yet
    for path in ("acme/Old/notes.txt", ".partial/README", ".partial/mine/x.gguf"):
        (house.store / path).parent.mkdir(exist_ok=True)
        (house.store / path).write_text("mine")
    for path in (".backup.d/x", "b5/llama-server", "notes.json"):
        file = house.place("b1").parent / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    (house.store / "elsewhere").symlink_to(house.outside)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """Everything at once, and who holds what is in use."""
    made = House(tmp_path)
    for add in (add_models, add_builds, add_downloads, add_left_behind, add_strange):
        add(made)
    layout, libraries = made.workspace.layout, made.workspace.bundles.layout
    with contextlib.ExitStack() as stack:
        for path, kind in (
            (made.lock("acme/Busy/Busy-Q8_0"), fcntl.LOCK_SH),
            (layout.pull_lock("acme/Pulled/Pulled-Q8_0"), fcntl.LOCK_EX),
            (libraries.pull_lock("linux-amd64-cpu", "b8"), fcntl.LOCK_EX),
            (made.place("b4"), fcntl.LOCK_SH),
        ):
            stack.enter_context(held(path, kind))
        yield made


# What is documented

BEGUN = "a download that was broken off on "
GOES: dict[str, dict[str, str]] = {
    "partials": {
        "partial Begun-Q8_0": BEGUN,
        f"partial models/.partial/{'a' * 24}": BEGUN,
        "partial b7": BEGUN,
        "superseded models/acme/Repl/before.gguf": "a file of Repl-Q8_0, whose replacement was cut off",
        "superseded libraries/PLATFORM/.b0.removed.0123abcd": "a build whose removal was cut off",
        "superseded catalogs/kept/COPY": "a copy of a catalog that is not subscribed to",
        "superseded TEMPORARY": "a state file whose writer was killed",
        "superseded models/TEMPORARY": "a state file whose writer was killed",
        "superseded catalogs/TEMPORARY": "a state file whose writer was killed",
        "superseded models/acme/Late/.kawai/TEMPORARY": "a state file whose writer was killed",
        f"superseded models/.partial/{'b' * 24}.lock": "the lock of a pull that was killed",
        "superseded models/acme/Gone/.kawai/Gone-Q8_0.lock": "the lock of a model that is not there",
    },
    "builds": dict.fromkeys(["build b1", "build b9"], "neither active nor the one before"),
    "unused_for": {
        "model Set": "unused for 60 days",
        "model Linked-Q8_0": "unused for 48 days",
        "model Old-Q8_0": "unused for 45 days",
        "model PairOne-Q8_0": "unused for 44 days",
        "model BothOne-Q8_0": "unused for 43 days",
        "model BothTwo-Q8_0": "unused for 42 days",
        "model Never-Q8_0": "never used in 100 days",
    },
}
STAYS = {
    "partials": {"partial Pulled-Q8_0": "in use", "partial b8": "in use"},
    "builds": {"build b4": "in use"},
    "unused_for": {
        "model Guarded-Q8_0": "protected",
        "model Busy-Q8_0": "in use",
        "model Theirs-Q8_0": "not ours: its files are links to elsewhere",
    },
}
GONE = {
    "partials": (
        *("models/.partial/BEGUN/", f"models/.partial/{'a' * 24}/", "libraries/.partial/B7/"),
        *("models/acme/Repl/before.gguf", "models/.partial/REPL/"),
        "libraries/PLATFORM/.b0.removed.0123abcd/",
        *("catalogs/kept/COPY", "TEMPORARY", "models/TEMPORARY", "catalogs/TEMPORARY"),
        *("models/acme/Late/.kawai/TEMPORARY", f"models/.partial/{'b' * 24}.lock", "models/acme/Gone/"),
    ),
    "builds": (
        *("libraries/PLATFORM/b1/", "libraries/PLATFORM/.kawai/b1.json"),
        *("libraries/windows-amd64-cpu/b9/", "libraries/windows-amd64-cpu/.kawai/b9.json"),
    ),
    "unused_for": (
        *("models/acme/Set/", "models/acme/Linked/", "models/acme/Both/", "models/acme/Never/"),
        *("models/acme/Old/Old-Q8_0.gguf", "models/acme/Old/.kawai/Old-Q8_0."),
        *("models/acme/Pair/PairOne-Q8_0.gguf", "models/acme/Pair/.kawai/PairOne-Q8_0."),
    ),
}
"""The beginnings of all that goes; what else is in a folder stays."""

MADE = {"index.lock", "libraries/.lock", "catalogs/update.lock", "models/acme/Repl/.kawai/Repl-Q8_0.lock"}
"""Locks that whoever changes something may make."""


def spelled(house: House, words: str) -> str:
    """The names of one home."""
    layout, libraries = house.workspace.layout, house.workspace.bundles.layout
    (temporary,) = (each.name for each in (house.home / "catalogs").glob(f".*{TEMPORARY}"))
    names = {
        "PLATFORM": house.place("b1").parent.name,
        "TEMPORARY": temporary,
        "COPY": Keeper(house.home).path(DROPPED).name,
        "BEGUN": layout.partial("acme/Begun/Begun-Q8_0").name,
        "REPL": layout.partial("acme/Repl/Repl-Q8_0").name,
        "B7": libraries.partial("linux-amd64-cpu", "b7").name,
    }
    for name, value in names.items():
        words = words.replace(name, value)
    return words


def expected(house: House, table: dict[str, dict[str, str]], kinds: tuple[str, ...]) -> dict[str, str]:
    return {spelled(house, name): why for kind in kinds for name, why in table[kind].items()}


def reasons(rows: dict[str, Pruned], *, kept: bool) -> dict[str, str]:
    """Why, without days of downloads and what is said of sources."""
    found = {name: row.reason.split(", no source")[0] for name, row in rows.items() if row.kept is kept}
    return {name: BEGUN if why.startswith(BEGUN) else why for name, why in found.items()}


REQUESTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "nothing named": ({}, ("partials", "builds")),
    "partials": ({"partials": True}, ("partials",)),
    "builds": ({"builds": True}, ("builds",)),
    "models": ({"unused_for": "30d"}, ("unused_for",)),
    "all": ({"unused_for": "30d", "partials": True, "builds": True}, ("partials", "builds", "unused_for")),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_just_what_is_documented_goes(house: House, name: str) -> None:
    request, kinds = REQUESTS[name]
    goes, stays = expected(house, GOES, kinds), expected(house, STAYS, kinds)
    beginnings = [spelled(house, each) for kind in kinds for each in GONE[kind]]
    facts, files, taken = house.facts(), house.files(), house.taken()
    note = house.store / spelled(house, ".partial/REPL/claim.json")
    claim = note.stat().st_size if "partials" in kinds else 0

    shown = house.prune(**request, dry_run=True)
    assert house.facts() == facts, "a dry run changes nothing"
    assert reasons(shown, kept=False) == goes
    assert reasons(shown, kept=True) == stays
    assert not any(row.removed for row in shown.values())

    done = house.prune(**request)
    assert {name for name, row in done.items() if row.removed} == set(goes)
    assert {name: row.size for name, row in done.items()} == {name: row.size for name, row in shown.items()}
    gone, left = files - house.files(), house.files() - files
    assert gone == {path for path in files if path.startswith(tuple(beginnings))}
    assert left <= MADE
    assert taken - house.taken() - claim == sum(row.size for row in done.values() if row.removed)

    again = house.prune(**request)
    assert reasons(again, kept=True) == stays
    assert not reasons(again, kept=False)
    assert [file.read_text() for file in sorted(house.home.rglob("notes.*"))] == ["mine", "mine"]
    assert sorted(path.name for path in house.outside.iterdir()) == ["Linked-Q8_0.gguf", "Theirs-Q8_0.gguf"]


def test_sizes_are_what_comes_back(house: House) -> None:
    rows = house.prune(unused_for="30d", partials=True, dry_run=True)
    length = {path.name: path.stat().st_size for path in house.store.rglob("*.gguf")}
    model, projection = length["BothOne-Q8_0.gguf"], length["mmproj-F16.gguf"]
    assert rows["model Linked-Q8_0"].size == 0, "another program has it"
    assert rows["model PairOne-Q8_0"].size == length["PairOne-Q8_0.gguf"], "PairTwo has the projection, too"
    assert (rows["model BothOne-Q8_0"].size, rows["model BothTwo-Q8_0"].size) == (model, model + projection)
    assert 100_000 <= rows["partial Begun-Q8_0"].size < 200_000, "what has not come takes no room"


def test_what_is_told_of_each_thing(house: House) -> None:
    place = house.place("b1")
    ended = house.program("prune", "--unused-for", "30d", "--builds", "--yes", "--json")
    assert (ended.code, ended.err) == (0, "")
    rows = {row["id"]: row for row in json.loads(ended.out)}
    assert {tuple(row) for row in rows.values()} == {
        ("kind", "path", "id", "size", "reason", "removed", "kept", "last_used", "error")
    }
    assert rows["b1"] == {
        "kind": "build",
        "path": str(place),
        "id": "b1",
        "size": 10_000,
        "reason": "neither active nor the one before",
        "removed": True,
        "kept": False,
        "last_used": None,
        "error": None,
    }
    old, busy, never = rows["Old-Q8_0"], rows["Busy-Q8_0"], rows["Never-Q8_0"]
    assert old["path"] == str(house.store / "acme/Old/Old-Q8_0.gguf")
    assert (old["removed"], busy["removed"], busy["kept"]) == (True, False, True)
    assert old["reason"] == "unused for 45 days, no source"
    assert datetime.fromisoformat(old["last_used"]) < datetime.now(UTC)
    assert never["last_used"] is None


# Asking


def test_without_a_terminal_it_needs_a_yes(house: House) -> None:
    facts = house.facts()
    ended, dry = (house.program("prune", "--unused-for", "30d", *more) for more in ((), ("--dry-run",)))
    assert (ended.code, dry.code) == (2, 0)
    assert ended.out == dry.out != ""
    assert ended.err.startswith("error: nobody can be asked here")
    assert "--yes" in ended.err
    as_json = house.program("prune", "--json")
    assert (as_json.code, as_json.out, as_json.error["code"]) == (2, "", "usage")
    assert house.facts() == facts


@pytest.mark.parametrize(
    ("option", "words"),
    [("--unused-for", "soon"), ("--unused-for", "0d"), ("--unused-for", "-1d"), ("--keep-space", "much")],
)
def test_a_time_or_size_that_is_none(kawai: Program, option: str, words: str) -> None:
    ended = kawai("prune", option, words, "--yes", "--json")
    assert (ended.code, ended.error["code"]) == (2, "usage")
    assert ended.error["message"].startswith(f"{option} must be a")
    assert not (kawai.home / "kawai").exists()


def test_nothing_to_do_is_said(kawai: Program) -> None:
    for more in (("--yes",), ()):
        ended = kawai("prune", "--unused-for", "1d", "--partials", "--builds", *more)
        assert (ended.code, ended.out, ended.err) == (0, "", "there is nothing to remove\n")
        ended = kawai("prune", "--json", *more)
        assert (ended.code, ended.out, ended.err) == (0, "[]\n", "")
    assert not (kawai.home / "kawai").exists()


@pytest.mark.parametrize("answer", ["\n", "n\n", "\x04"])
def test_a_no_changes_nothing(house: House, answer: str) -> None:
    facts = house.facts()
    with terminal(house.program, "prune", "--unused-for", "30d") as screen:
        screen.await_shown("[y/N]")
        screen.type(answer)
        assert screen.end() == 1
    assert "nothing was removed" in screen.shown
    assert house.facts() == facts


def test_what_a_person_sees(house: House) -> None:
    with terminal(house.program, "prune", "--builds", "--unused-for", "30d") as screen:
        screen.await_shown("[y/N]")
        asked, screen.shown = screen.shown, ""
        screen.type("y\n")
        assert screen.end() == 0
    lines = asked.splitlines()
    assert lines[0].split() == ["KIND", "NAME", "SIZE", "REASON"]
    assert max(map(len, lines)) <= 80
    words = [" ".join(line.split()) for line in lines]
    assert "build b9 20.0 kB neither active nor the one before" in words
    size = (house.store / "acme/Guarded/Guarded-Q8_0.gguf").stat().st_size
    assert f"model Guarded-Q8_0 {size} B left alone: protected" in words
    assert sum(line.endswith("unused for 45 days, no source") for line in lines) == 1
    assert sum(line.endswith("never used in 100 days, no source") for line in lines) == 1
    assert lines[-2].startswith("9 things to remove; ")
    assert lines[-1].startswith("Remove 9 things, ")
    assert screen.shown.splitlines()[-1].startswith("removed 9 things; ")


def test_json_on_a_terminal_asks_beside_the_result(house: House, tmp_path: Path) -> None:
    with (
        (tmp_path / "out").open("wb") as out,
        terminal(house.program, "prune", "--builds", "--json", stdout=out.fileno()) as screen,
    ):
        screen.await_shown("[y/N]")
        screen.type("y\n")
        assert screen.end() == 0
    assert "neither active nor the one before" in screen.shown
    rows = json.loads((tmp_path / "out").read_bytes())
    assert {row["id"]: row["removed"] for row in rows} == {"b1": True, "b4": False, "b9": True}


# What becomes used meanwhile


def test_what_is_used_after_it_was_shown_stays_and_that_is_said(house: House) -> None:
    layout = house.workspace.layout
    with (
        terminal(house.program, "prune", "--unused-for", "30d", "--partials", "--builds") as screen,
        contextlib.ExitStack() as stack,
    ):
        screen.await_shown("[y/N]")
        house.used("acme/Old/Old-Q8_0", 0)
        stack.enter_context(held(house.lock("acme/Set/Set")))
        stack.enter_context(held(house.place("b1")))
        house.workspace.models.protect(parse_model("Linked-Q8_0"), protected=True)
        (layout.partial("acme/Begun/Begun-Q8_0") / "more.partial").write_bytes(b"more")
        os.utime(layout.partial("acme/Begun/Begun-Q8_0") / "more.partial", (time.time() + 5,) * 2)
        house.workspace.models.remove(parse_model("Never-Q8_0"))
        house.place("b1").with_name("b6").mkdir()  # what has come since is not shown, and stays
        house.build("b66", 5)
        screen.shown = ""
        screen.type("y\n")
        assert screen.end() == 0
    said = {line for line in screen.shown.splitlines() if line.startswith("left alone")}
    assert said == {
        "left alone: model Old-Q8_0: it was used meanwhile",
        "left alone: model Set: in use",
        "left alone: build b1: in use",
        "left alone: model Linked-Q8_0: protected",
        "left alone: partial Begun-Q8_0: it was used meanwhile",
        "left alone: model Never-Q8_0: somebody else has removed it",
        "left alone: superseded models/acme/Repl/before.gguf: somebody else has removed it",
    }
    assert {"Old-Q8_0", "Set", "Linked-Q8_0"} <= set(house.workspace.models.ids())
    assert house.place("b1").is_dir()
    assert house.place("b66").is_dir()
    assert (layout.partial("acme/Begun/Begun-Q8_0") / "more.partial").exists()
    assert not (house.store / "acme/Both").exists(), "the rest went on"


CHANGES: dict[str, tuple[str, Callable[[House], object], str]] = {
    "used": ("model Old-Q8_0", lambda house: house.used("acme/Old/Old-Q8_0", 1), "it was used meanwhile"),
    "protected": (
        "model Old-Q8_0",
        lambda house: house.workspace.models.protect(parse_model("Old-Q8_0"), protected=True),
        "protected",
    ),
    "removed": (
        "model Old-Q8_0",
        lambda house: house.workspace.models.remove(parse_model("Old-Q8_0")),
        "somebody else has removed it",
    ),
    "written": (
        "partial Begun-Q8_0",
        lambda house: (house.workspace.layout.partial("acme/Begun/Begun-Q8_0") / "new").touch(),
        "it was used meanwhile",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_is_looked_at_once_more_with_its_locks_held(house: House, change: str) -> None:
    """Between looking and removing, in one run."""
    name, do, why = CHANGES[change]
    wish = Wish(partials=True, unused_for=timedelta(days=30))
    (find,) = (each for each in house.workspace.pruner.find(wish) if each.id == name.split()[1])
    do(house)
    assert find.remove() == why


def test_a_build_that_was_switched_to_meanwhile_stays(house: House) -> None:
    finds = {each.id: each for each in house.workspace.pruner.find(Wish(builds=True))}
    (b1,) = (each for each in house.workspace.bundles.all() if each.version == "b1")
    for before in (False, True):
        house.workspace.bundles.use(b1)
        if before:
            house.workspace.bundles.rollback()
        with pytest.raises(InUse):
            finds["b1"].remove()
        assert house.place("b1").is_dir()


def test_the_active_build_stays_where_its_replacement_was_cut_off(house: House) -> None:
    place = house.place("b3")
    place.rename(place.with_name(".b3.replaced.0123abcd"))
    done = house.prune(partials=True, builds=True)
    assert not any("b3" in name for name in done)
    current = house.workspace.bundles.current()  # whoever looks next puts it back
    assert current is not None
    assert (current.version, (place / "llama-server").stat().st_size) == ("b3", 10_000)


def test_a_download_that_is_gone_on_with_stays(house: House) -> None:
    layout = house.workspace.layout
    (find,) = (each for each in house.workspace.pruner.find(Wish(partials=True)) if each.id == "Begun-Q8_0")
    lock = layout.pull_lock("acme/Begun/Begun-Q8_0")
    lock.touch()
    with held(lock, fcntl.LOCK_EX), pytest.raises(InUse):
        find.remove()
    assert layout.partial("acme/Begun/Begun-Q8_0").is_dir()


def test_two_at_once_do_no_harm(house: House) -> None:
    goes = expected(house, GOES, ("partials", "builds", "unused_for"))
    request = {"unused_for": "30d", "partials": True, "builds": True}
    with ThreadPoolExecutor(3) as pool:
        runs = list(pool.map(lambda _: house.prune(**request), range(3)))
    assert [row.error for rows in runs for row in rows.values() if row.error] == []
    removed = [name for rows in runs for name, row in rows.items() if row.removed]
    # the second may find the lock of what the first has just removed, and take that away, too
    assert set(goes) <= set(removed)
    assert all(name.endswith(".lock") for name in set(removed) - set(goes))
    assert reasons(house.prune(**request), kept=False) == {}


# What fails, and what is cut off


def test_one_that_cannot_be_removed_does_not_keep_the_others(house: House) -> None:
    folder = house.store / "acme/Old"
    folder.chmod(0o555)
    try:
        ended = house.program.unprivileged("prune", "--unused-for", "30d", "--yes", "--json")
    finally:
        folder.chmod(0o755)
    rows = {row["id"]: row for row in json.loads(ended.out)}
    assert ended.code == 9
    assert rows["Old-Q8_0"]["error"]["code"] == "home_not_writable"
    assert (rows["Old-Q8_0"]["removed"], rows["Old-Q8_0"]["kept"]) == (False, False)
    assert rows["Set"]["removed"]
    assert rows["BothTwo-Q8_0"]["removed"]
    ended = house.program("prune", "--unused-for", "30d", "--yes")
    assert (ended.code, ended.out.splitlines()[-1]) == (0, "removed 1 thing; 960 B came back")


def small(root: Path) -> House:
    """A home of little, all of which may go but one model."""
    house = House(root)
    for number in range(2):
        house.drop(f"acme/Set/Set-{number + 1:05}-of-00002.gguf", split=(number, 2))
    house.drop("acme/Set/mmproj-F16.gguf", projection=True)
    house.drop("acme/Late/Late-Q8_0.gguf")
    house.workspace.models.reindex()
    house.used("acme/Set/Set", 60)
    house.used("acme/Late/Late-Q8_0", 1)
    house.build("b1", 1000)
    directory = write_claim(house.workspace.layout, Claim("Begun", "acme/Begun/Begun"))
    (directory / "Begun.gguf.abc.partial").write_bytes(bytes(1000))
    return house


STEPS = {"os.remove", "os.rmdir", "os.rename", "os.mkdir", "sqlite3.connect", "shutil.rmtree"}


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do some work in a process of its own that is killed before its n-th step; whether it was."""
    with warnings.catch_warnings():  # the child starts no threads, and takes no lock of those that there are
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        done = count(1)

        def hook(event: str, _: object) -> None:
            if event in STEPS and next(done) == step:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("looks", [False, True], ids=["pruned again", "looked at"])
def test_a_kill_at_any_step_is_made_good(tmp_path: Path, looks: bool) -> None:  # noqa: FBT001
    request = {"unused_for": "30d", "partials": True, "builds": True}
    before = small(tmp_path / "whole")
    names = before.files()
    before.prune(**request)
    after = before.files() - MADE
    assert {path for path in after if path.startswith("models/acme")} == {
        path for path in names if path.startswith("models/acme/Late")
    }
    for step in count(1):
        house = small(tmp_path / str(step))
        was_killed = killed_at(step, lambda house=house: house.prune(**request))  # type: ignore[misc]
        if looks:
            rows = house.workspace.models.rows()  # whoever looks goes on with what was begun
            for row in rows:
                details = house.workspace.models.show(parse_model(row.id))
                assert all((house.store / file.path).exists() for file in details.files), step
        rows_after = house.prune(**request)
        assert [row.error for row in rows_after.values() if row.error] == []
        assert house.files() - MADE == after, step
        assert [row.id for row in house.workspace.models.rows()] == ["Late-Q8_0"]
        if not was_killed:
            assert step > 15
            return


def test_a_removal_that_was_cut_off_shows_as_such(tmp_path: Path) -> None:
    house = small(tmp_path)
    store = house.workspace.models
    record = store.find(parse_model("Set")).record
    write_claim(store.layout, Claim(record.id, record.path, removing=True))
    (house.store / record.files[0].path).unlink()
    facts = house.facts()
    found = house.prune(partials=True, unused_for="30d", dry_run=True)
    assert house.facts() == facts
    names = {name for name, row in found.items() if row.reason == "a file of Set, whose removal was cut off"}
    assert names == {
        f"superseded models/acme/Set/{name}" for name in ("Set-00002-of-00002.gguf", "mmproj-F16.gguf")
    }
    assert "model Set" not in found
    done = house.prune(partials=True)
    assert all(done[name].removed for name in names)
    assert not (house.store / "acme/Set").exists()


def test_a_pull_that_was_killed_leaves_nothing_that_stays(cli: Program, hub: LocalHub) -> None:
    """A real one; and one that goes on meanwhile is left alone."""
    big = tiny_gguf(tensors=(("token_embd.weight", (1024, MIB // 4096 * 8), F32),))
    for name in ("killed", "going"):
        hub.add_file(f"me/{name}-GGUF", f"{name}-F32.gguf", big)
    for name in ("killed", "going"):
        process = cli.start("models", "pull", f"me/{name}-GGUF", "--limit-rate", "1M", "--json")
        assert process.stdout
        assert any(json.loads(line)["completed"] for line in process.stdout)
        if name == "killed":
            process.kill()
            process.communicate()
    ended = cli("prune", "--yes", "--json")
    rows = {(row["kind"], row["id"] or Path(row["path"]).name): row for row in json.loads(ended.out)}
    assert ended.code == 0
    assert rows.keys() == {
        ("partial", "killed-F32"),
        ("partial", "going-F32"),
        ("superseded", "killed-F32.lock"),
    }
    going = rows["partial", "going-F32"]
    assert (going["removed"], going["reason"]) == (False, "in use")
    assert rows["partial", "killed-F32"]["removed"]
    process.kill()
    process.communicate()
    assert cli("prune", "--yes").code == 0
    store = cli.home / "kawai" / "models"
    left = {str(path.relative_to(store)) for path in store.rglob("*")} - {".kawai-store", ".partial"}
    assert left == set()


def test_nothing_goes_where_it_cannot_be_told_what_is_used(house: House) -> None:
    (house.home / "libraries" / "active.json").write_text("{")
    facts = house.facts()
    ended = house.program("prune", "--yes", "--json")
    assert (ended.code, ended.out, ended.error["code"]) == (7, "", "broken_state")
    (house.store / ".kawai-store").rename(house.root / "marker")
    ended = house.program("prune", "--unused-for", "1d", "--yes", "--json")
    assert (ended.code, ended.out, ended.error["code"]) == (9, "", "store_missing")
    (house.root / "marker").rename(house.store / ".kawai-store")
    assert set(house.facts()) == set(facts)


# Room


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk of its own")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", place], check=False)
    if done.returncode:
        pytest.skip("this machine cannot mount a tmpfs")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def cramped(disk: Path) -> House:
    """Five models of some 8 MiB each, the first used longest ago, the second protected; little else."""
    house = House(disk)
    for number in range(5):
        path = house.drop(f"acme/M{number}/M{number}-F32.gguf", name=f"M{number}")
        with path.open("ab") as file:
            file.write(bytes(8 * MIB))
    house.workspace.models.reindex()
    for number in range(5):
        house.used(f"acme/M{number}/M{number}-F32", 50 - number)
    house.workspace.models.protect(parse_model("M1-F32"), protected=True)
    return house


def free(place: Path) -> int:
    stats = os.statvfs(place)
    return stats.f_bavail * stats.f_frsize


def test_as_much_room_as_is_wanted_and_no_more(cramped: House) -> None:
    wanted = free(cramped.home) + 9 * MIB
    facts = cramped.facts()
    shown = cramped.prune(keep_space=str(wanted), dry_run=True)
    assert cramped.facts() == facts
    assert [(row.id, row.kept, row.reason) for row in shown.values()] == [
        ("M0-F32", False, "unused for 50 days, no source"),
        ("M1-F32", True, "protected"),
        ("M2-F32", False, "unused for 48 days, no source"),
    ]
    done = cramped.prune(keep_space=str(wanted))
    assert [row.id for row in done.values() if row.removed] == ["M0-F32", "M2-F32"]
    assert wanted <= free(cramped.home) < wanted + 8 * MIB
    assert cramped.prune(keep_space=str(wanted)) == {}


def test_what_else_goes_makes_room_first(cramped: House) -> None:
    directory = write_claim(cramped.workspace.layout, Claim("Begun", "acme/Begun/Begun"))
    (directory / "Begun.gguf.abc.partial").write_bytes(bytes(7 * MIB))
    wanted = str(free(cramped.home) + 6 * MIB)
    assert cramped.prune(keep_space=wanted, partials=True, dry_run=True).keys() == {"partial Begun"}
    assert cramped.prune(keep_space=wanted, dry_run=True).keys() == {"model M0-F32"}
    both = cramped.prune(keep_space=wanted, unused_for="49d", dry_run=True)
    assert list(both) == ["model M0-F32", "model M1-F32"], "the first of them is enough"


def test_more_room_than_was_reckoned_with_spares_the_next(cramped: House) -> None:
    directory = write_claim(cramped.workspace.layout, Claim("M0-F32", "acme/M0/M0-F32"))
    (directory / "M0-F32.gguf.abc.partial").write_bytes(bytes(7 * MIB))  # goes with the model
    done = cramped.prune(keep_space=str(free(cramped.home) + 12 * MIB))
    assert {row.id: (row.removed, row.reason) for row in done.values() if row.id != "M1-F32"} == {
        "M0-F32": (True, "unused for 50 days, no source"),
        "M2-F32": (False, "no more room is wanted"),
    }


def test_room_that_came_meanwhile_spares_what_was_shown(cramped: House) -> None:
    filler = cramped.root / "filler"
    filler.write_bytes(bytes(8 * MIB))
    wanted = str(free(cramped.home) + 6 * MIB)
    shown = cramped.prune(keep_space=wanted, dry_run=True)
    filler.unlink()
    (row,) = cramped.prune(keep_space=wanted, shown=list(shown.values())).values()
    assert (row.id, row.removed, row.kept, row.reason) == ("M0-F32", False, True, "no more room is wanted")


def test_room_that_cannot_be_made_is_said(cramped: House) -> None:
    ended = cramped.program("prune", "--keep-space", "60G", "--yes", "--json")
    assert ended.code == 0
    assert [row["id"] for row in json.loads(ended.out) if row["removed"]] == [
        f"M{n}-F32" for n in (0, 2, 3, 4)
    ]
    assert ended.err.startswith("the disk has ")
    assert ended.err.endswith("free, less than 60.0 GB: no other model may go\n")


def test_a_full_disk_can_be_made_room_on(cramped: House) -> None:
    with (cramped.root / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(MIB)):
            pass
    assert free(cramped.home) == 0
    ended = cramped.program("prune", "--unused-for", "50d", "--yes", "--json")
    assert (ended.code, [row["removed"] for row in json.loads(ended.out)]) == (0, [True])
    assert free(cramped.home) > 7 * MIB


def test_what_is_taken_is_told(house: House) -> None:
    partials = house.store / ".partial", house.home / "libraries" / ".partial"

    def below(*places: Path) -> int:
        found = [path for place in places for path in [place, *place.rglob("*")]]
        return sum(
            min(path.stat().st_size, 512 * path.stat().st_blocks)
            for path in found
            if path.is_file() and not path.is_symlink()
        )

    usage = DF.run(house.workspace, NoRequest())
    assert isinstance(usage, Usage)
    stats = os.statvfs(house.store)
    models = {file.path: file.size for row in house.workspace.models.index.all() for file in row.record.files}
    assert usage.models == sum(models.values())
    assert usage.partials == below(*partials)
    assert usage.builds == sum(below(path) for path in house.home.glob("libraries/*-*-cpu"))
    caches = [*house.home.glob("index.sqlite3*"), house.home / "catalogs"]
    assert usage.caches == below(*caches)
    assert usage.total == stats.f_blocks * stats.f_frsize
    assert 0 <= usage.free <= usage.total
    assert json.loads(house.program("df", "--json").out).keys() == set(Usage.__struct_fields__)
    lines = house.program("df").out.splitlines()
    assert [line[:17].rstrip() for line in lines] == [
        *("Models", "Partial downloads", "Builds", "Caches", "Free", "Disk")
    ]


# Protection


def protected(house: House, name: str) -> bool:
    """As a list and a closer look tell."""
    (row,) = (row for row in house.workspace.models.rows() if row.id == name)
    assert house.workspace.models.show(parse_model(name)).protected is row.protected
    return row.protected


def test_protection_outlives_the_index_and_ends_when_told(tmp_path: Path) -> None:
    house = small(tmp_path)
    assert house.program("models", "protect", "late-q8_0").code == 0
    assert protected(house, "Late-Q8_0")
    assert "Protected  yes" in house.program("models", "show", "Late-Q8_0").out
    house.workspace.models.reindex()
    assert protected(house, "Late-Q8_0")
    (house.home / "index.sqlite3").unlink()
    assert protected(house, "Late-Q8_0")
    house.drop("acme/Late/Late-Q8_0.gguf", name="another, put there by hand")
    house.workspace.models.reindex()
    assert protected(house, "Late-Q8_0")
    (house.store / "acme/Late/.kawai/Late-Q8_0.json").write_text("{")
    house.workspace.models.reindex()
    assert protected(house, "Late-Q8_0")
    (house.store / "acme/Late/.kawai/Late-Q8_0.json").write_text("{")
    house.drop("acme/Late/Late-Q8_0.gguf", name="yet another one")
    house.workspace.models.reindex()
    assert protected(house, "Late-Q8_0")
    assert house.program("models", "unprotect", "Late-Q8_0").code == 0
    assert not protected(house, "Late-Q8_0")


def test_several_are_protected_at_once_and_one_that_is_not_there_does_not_keep_the_others(
    tmp_path: Path,
) -> None:
    house = small(tmp_path)
    house.drop("acme/Other/Other-Q8_0.gguf")
    house.workspace.models.reindex()
    ended = house.program("models", "protect", "../x", "nope", "Other-Q8_0", "Late-Q8_0", "late-q8_0")
    assert ended.code == 2, "that of the first failure"
    assert (protected(house, "Late-Q8_0"), protected(house, "Other-Q8_0")) == (True, True)
    assert ended.err.count("error: ") == 2
    assert "kawai prune leaves Other-Q8_0 alone from now on" in ended.err
    ended = house.program("models", "unprotect", "nope", "Late-Q8_0", "--json")
    assert (ended.code, ended.out, ended.error["code"]) == (3, "", "model_not_found")
    assert (protected(house, "Late-Q8_0"), protected(house, "Other-Q8_0")) == (False, True)


def test_protection_over_http(daemon: Daemon) -> None:
    house = House(daemon.program.home)
    house.drop("acme/Late/Late-Q8_0.gguf")
    house.workspace.models.reindex()
    for word, said in (("protect", True), ("protect", True), ("unprotect", False)):
        reply = daemon.ask("POST", f"/v1/models/{word}", {"model": "Late-Q8_0"})
        assert (reply.status, reply.body) == (204, b"")
        assert daemon.ask("GET", "/v1/models").json["data"][0]["protected"] is said


def test_a_model_that_is_pulled_anew_stays_protected(cli: Program, hub: LocalHub) -> None:
    house = House(cli.home)
    hub.add_file("me/tiny-GGUF", "Tiny-Q8_0.gguf", tiny_gguf())
    assert cli("models", "pull", "me/tiny-GGUF").code == 0
    house.workspace.models.protect(parse_model("Tiny-Q8_0"), protected=True)
    hub.add_file("me/tiny-GGUF", "Tiny-Q8_0.gguf", tiny_gguf(name="another one"))
    assert cli("models", "pull", "me/tiny-GGUF", "--force").code == 0
    assert protected(house, "Tiny-Q8_0")
    assert cli("models", "pull", "me/tiny-GGUF:Q8_0").code == 0, "new words for it are noted"
    assert protected(house, "Tiny-Q8_0")
    assert cli("models", "verify", "Tiny-Q8_0").code == 0
    assert protected(house, "Tiny-Q8_0")
    assert cli("models", "rm", "Tiny-Q8_0").code == 0, "that is its user's own word"


def test_protection_that_comes_while_a_model_is_verified_stays(tmp_path: Path) -> None:
    house = small(tmp_path)
    with (house.store / "acme/Late/Late-Q8_0.gguf").open("ab") as file:
        file.truncate(64 * MIB)
    house.workspace.models.reindex()
    feed = verify(house.workspace.models, parse_model("Late-Q8_0"))
    for event in feed.follow():
        if isinstance(event, VerifyEvent) and event.status is Status.VERIFYING and not event.completed:
            house.workspace.models.protect(parse_model("Late-Q8_0"), protected=True)
    assert protected(house, "Late-Q8_0")
    details = house.workspace.models.show(parse_model("Late-Q8_0"))
    assert details.files[0].sha256, "what was found is noted, too"


def test_a_model_whose_files_are_being_replaced_is_not_protected(tmp_path: Path) -> None:
    house = small(tmp_path)
    with held(house.lock("acme/Late/Late-Q8_0"), fcntl.LOCK_EX), pytest.raises(InUse):
        house.workspace.models.protect(parse_model("Late-Q8_0"), protected=True)
    with held(house.lock("acme/Late/Late-Q8_0")):
        house.workspace.models.protect(parse_model("Late-Q8_0"), protected=True)
    assert protected(house, "Late-Q8_0")
