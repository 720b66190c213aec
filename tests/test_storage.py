"""Disk space: what is told of it, and a store made to be pruned, with every kind of thing in it at once."""

import contextlib
import fcntl
import json
import os
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kawai_tools.catalog.kept import Keeper, Kept, digest_of
from kawai_tools.libs.bundle import BundleRecord, Probe
from kawai_tools.libs.platforms import Arch, Os, Processor
from kawai_tools.models.claims import Claim, write_claim
from kawai_tools.operations.storage import PRUNE, PruneRequest
from kawai_tools.refs import parse_model
from kawai_tools.settings import Settings
from kawai_tools.storage.finding import Pruned
from kawai_tools.workspace import Workspace
from tests.program import Program
from tests.samples import tiny_gguf

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
        "model Set": "not used for 60 days",
        "model Linked-Q8_0": "not used for 48 days",
        "model Old-Q8_0": "not used for 45 days",
        "model PairOne-Q8_0": "not used for 44 days",
        "model BothOne-Q8_0": "not used for 43 days",
        "model BothTwo-Q8_0": "not used for 42 days",
        "model Never-Q8_0": "never used, installed 100 days ago",
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
    found = {
        name: row.reason.split("; it has no source")[0] for name, row in rows.items() if row.kept is kept
    }
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
    assert old["reason"] == "not used for 45 days; it has no source to be pulled from again"
    assert datetime.fromisoformat(old["last_used"]) < datetime.now(UTC)
    assert never["last_used"] is None
