"""The installed models, from outside: ids, look-up, the index and its healing, verification, removal."""

import contextlib
import fcntl
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kawai_tools.errors import Ambiguous, IndexUnavailable, KawaiError, ModelNotFound
from kawai_tools.models.store import Store
from kawai_tools.refs import parse_model
from kawai_tools.settings import Settings
from kawai_tools.workspace import Workspace
from tests.hub import LocalHub
from tests.program import KAWAI, Daemon, Ended, Program
from tests.samples import F32, tiny_gguf
from tests.workspaces import Workspaces, pull

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
OTHER = "Another name, so that the file is longer"


class Shelf:
    """A home whose store is filled by hand."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.home = Path(program.environ["KAWAI_HOME"])
        self.root = self.home / "models"
        self.index = self.home / "index.sqlite3"

    def drop(self, *paths: str, **header: Any) -> Path:  # noqa: ANN401 - as tiny_gguf takes them
        for path in paths:
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            tiny_gguf(self.root / path, **header)
        return self.root / paths[-1]

    def drop_set(self, stem: str, count: int, *, leave_out: int = 0) -> list[Path]:
        names = [f"{stem}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
        whole = [self.drop(name, split=(number, count)) for number, name in enumerate(names)]
        if leave_out:
            whole.pop(leave_out - 1).unlink()
        return whole

    @property
    def store(self) -> Store:
        """The store in this process, as a new one would see it."""
        return Workspace(Settings(home=self.home)).models

    def reindex(self) -> list[str]:
        self.store.reindex()
        return self.ids()

    def ids(self) -> list[str]:
        return [row.id for row in self.store.rows()]

    def by_path(self) -> dict[str, str]:
        return {entry.record.path: entry.record.id for entry in self.store.index.all() if entry.present}

    def show(self, name: str) -> Any:  # noqa: ANN401 - a payload
        return msgspec.to_builtins(self.store.show(parse_model(name)))

    def row(self, name: str) -> dict[str, Any]:
        (row,) = [row for row in self.store.rows() if row.id == name]
        found: dict[str, Any] = msgspec.to_builtins(row)
        return found

    def provenance(self, path: str) -> Path:
        return self.root / Path(path).parent / ".kawai" / f"{Path(path).name}.json"

    def provenance_ids(self) -> dict[str, str]:
        found = {}
        for path in self.root.rglob(".kawai/*.json"):
            name = (path.parent.parent / path.stem).relative_to(self.root)
            found[str(name)] = json.loads(path.read_bytes())["id"]
        return found

    def left(self) -> list[str]:
        """What is in the store, but for what every store has."""
        found = [str(path.relative_to(self.root)) for path in self.root.rglob("*")]
        return sorted(set(found) - {".kawai-store", ".partial"})


@pytest.fixture
def shelf(kawai: Program) -> Shelf:
    return Shelf(kawai)


@pytest.fixture(scope="module")
def pulled_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one model and its projection, pulled once; tests take copies."""
    home = tmp_path_factory.mktemp("pulled")
    with LocalHub(home / "hub") as hub:
        offer(hub)
        workspaces = Workspaces(home / "kawai", hub.endpoint)
        assert pull(workspaces(), "owner/repo-GGUF")[-1].status == "downloaded"
        workspaces.close()
    return home / "kawai"


def offer(hub: LocalHub) -> None:
    hub.add_file("owner/repo-GGUF", "x-Q8_0.gguf", tiny_gguf(file_type=7, chat_template=TEMPLATE))
    hub.add_file("owner/repo-GGUF", "mmproj-F16.gguf", tiny_gguf(projection=True))


@pytest.fixture
def pulled(cli: Program, hub: LocalHub, pulled_home: Path) -> Shelf:
    """One model with its projection, pulled from the hub."""
    offer(hub)
    shelf = Shelf(cli)
    shutil.copytree(pulled_home, shelf.home)
    return shelf


def flip(path: Path) -> None:
    """Change a bit as a failing disk does: neither size nor mtime tell."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@contextlib.contextmanager
def held(path: Path, kind: int = fcntl.LOCK_SH) -> Iterator[None]:
    """Hold a lock file as another process than kawai's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
        yield


def finals(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Which models were done with, and how."""
    return [(each["id"], each["status"]) for each in events if each["status"] != "verifying"]


def untimed(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event | {"rate": None, "eta": None} for event in events]


class TestIds:
    def test_stem_then_owner_and_stem_then_numbers_in_path_order(self, shelf: Shelf) -> None:
        shelf.drop("b/r/x.gguf", "b/q/X.gguf", "a/r/x.gguf", "b/s/x.gguf", "x.gguf", "c/y.gguf")
        shelf.reindex()
        assert shelf.by_path() == {
            "a/r/x": "x",
            "b/q/X": "b/X",
            "b/r/x": "b/x-2",
            "b/s/x": "b/x-3",
            "c/y": "y",
            "x": "local/x",
        }
        assert shelf.provenance_ids() == shelf.by_path()

    def test_ids_are_kept_whatever_comes_goes_or_is_lost(self, shelf: Shelf) -> None:
        shelf.drop("m/r/x.gguf", "n/r/x.gguf")
        shelf.reindex()
        shelf.drop("a/r/x.gguf")
        shelf.reindex()
        known = {"m/r/x": "x", "n/r/x": "n/x", "a/r/x": "a/x"}
        assert shelf.by_path() == known
        shelf.index.unlink()
        assert shelf.reindex()
        assert shelf.by_path() == known
        shelf.store.remove(parse_model("x"))
        shelf.reindex()
        assert shelf.by_path() == {"n/r/x": "n/x", "a/r/x": "a/x"}

    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            ("ps.gguf", "local/ps"),
            ("a/r/PULL.gguf", "a/PULL"),
            ("verify/scan.gguf", "local/scan"),
            ("update/r/x.gguf", "x"),
            ("m.GGUF", "m"),
            ("two words.gguf", "two words"),
            ("a/per%cent.gguf", "per-cent"),
            ("a/b/c/d/deep.gguf", "deep"),
            ("q/é.gguf", "é"),
            ("o/" + "l" * 230 + ".gguf", "l" * 120),
        ],
    )
    def test_an_id_can_be_typed_and_is_no_route(self, shelf: Shelf, path: str, expected: str) -> None:
        shelf.drop(path)
        assert shelf.reindex() == [expected]
        assert shelf.show(expected)["files"][0]["path"] == path

    def test_an_id_that_nobody_can_have_is_replaced(self, shelf: Shelf) -> None:
        shelf.drop("a/r/x.gguf", "b/r/z.gguf")
        shelf.reindex()
        for bad in ("../../etc/passwd", "ps", "pull/x", "", "a/b/c", "n" * 201, "x\x1b[2J", "z"):
            where = shelf.provenance("a/r/x")
            where.write_text(json.dumps(json.loads(where.read_text()) | {"id": bad}))
            assert shelf.reindex() == ["x", "z"], bad
            assert shelf.provenance_ids() == {"a/r/x": "x", "b/r/z": "z"}

    @pytest.mark.parametrize(
        ("path", "owner", "family"),
        [
            ("x.gguf", "local", "local"),
            ("one/x.gguf", "one", "one"),
            ("one/two/x.gguf", "one", "two"),
            ("one/two/three/x.gguf", "one", "two"),
        ],
    )
    def test_owner_and_family_are_the_folders(self, shelf: Shelf, path: str, owner: str, family: str) -> None:
        shelf.drop(path)
        shelf.reindex()
        row = shelf.row("x")
        assert (row["owned_by"], row["model_family"]) == (owner, family)

    def test_two_owners_pulled_at_once_get_two_ids(self, cli: Program, hub: LocalHub) -> None:
        for owner in ("a", "b", "c", "d"):
            hub.add_file(f"{owner}/r", "same.gguf", tiny_gguf(name=owner))
        with ThreadPoolExecutor(4) as threads:
            ended = list(threads.map(lambda owner: cli("models", "pull", f"{owner}/r", "--json"), "abcd"))
        assert [each.code for each in ended] == [0] * 4
        shelf = Shelf(cli)
        ids = shelf.by_path()
        assert len(set(ids.values())) == 4
        assert set(ids.values()) <= {"same", "a/same", "b/same", "c/same", "d/same"}
        assert shelf.provenance_ids() == ids
        assert {each.events[-1]["id"] for each in ended} == set(ids.values())


class TestLookUp:
    @pytest.fixture
    def shelf(self, shelf: Shelf) -> Shelf:
        shelf.drop("a/r/x.gguf", "b/q/x.gguf", "b/r/x.gguf", "c/r/Yes.gguf")
        assert shelf.reindex() == ["b/x", "b/x-2", "x", "Yes"]
        return shelf

    @pytest.mark.parametrize(
        ("words", "found"),
        [
            ("x", "x"),
            ("X", "x"),
            ("b/x", "b/x"),
            ("B/X-2", "b/x-2"),
            ("A/x", "x"),
            ("yes", "Yes"),
            ("C/YES", "Yes"),
        ],
    )
    def test_an_exact_id_then_owner_and_stem_then_a_stem(self, shelf: Shelf, words: str, found: str) -> None:
        assert shelf.show(words)["id"] == found

    def test_a_stem_of_several_names_the_candidates(self, shelf: Shelf) -> None:
        shelf.store.remove(parse_model("x"))
        with pytest.raises(Ambiguous, match=r"b/x, b/x-2"):
            shelf.show("X")
        shelf.store.remove(parse_model("b/x"))
        assert shelf.show("x")["id"] == shelf.show("b/X")["id"] == "b/x-2"

    def test_it_is_answered_alike_from_terminal_and_over_http(self, cli: Program, daemon: Daemon) -> None:
        shelf = Shelf(cli)
        shelf.drop("b/q/x.gguf", "b/r/x.gguf", "ab/r/Llama-3.gguf")
        shelf.reindex()
        shelf.store.remove(parse_model("x"))
        shelf.drop("d/r/x.gguf")
        shelf.reindex()
        shelf.store.remove(parse_model("x"))
        shelf.drop("e/r/x.gguf")
        shelf.reindex()
        shelf.store.remove(parse_model("x"))
        shelf.drop("b/q/v.gguf", "d/q/v.gguf", "e/q/v.gguf")
        shelf.reindex()
        shelf.store.remove(parse_model("v"))
        for words, status, code, kind in (
            ("v", 409, 5, "ambiguous"),
            ("lama-3", 404, 3, "model_not_found"),
            ("ab/llama3", 404, 3, "model_not_found"),
            ("a\\b", 400, 2, "invalid_id"),
        ):
            ended, reply = (
                cli("models", "show", words, "--json"),
                daemon.ask("GET", f"/v1/models/{words.replace(chr(92), '%5C')}"),
            )
            assert (ended.code, ended.out, reply.status) == (code, "", status)
            assert ended.err.encode() == reply.body + b"\n"
            assert reply.error["code"] == kind
        assert "d/v, e/v" in cli("models", "show", "v").err
        assert "did you mean Llama-3\n" in cli("models", "show", "lama-3").err

    @pytest.mark.parametrize(
        ("typed", "nearest"),
        [
            ("smolm", "SmolLM2-135M-Instruct.Q4_1"),
            ("smollm", "SmolLM2-135M-Instruct.Q4_1"),
            ("smol-lm2", "SmolLM2-135M-Instruct.Q4_1"),
            ("Smollm-135m-instruct", "SmolLM2-135M-Instruct.Q4_1"),
            ("HuggingFaceTB/smolm", "SmolLM2-135M-Instruct.Q4_1"),
            ("qwen", "Qwen3-8B-Q8_0"),
            ("qwn3", "Qwen3-8B-Q8_0"),
            ("qwen-8b", "Qwen3-8B-Q8_0"),
            ("Qwen3-8B-Q4_0", "Qwen3-8B-Q8_0"),
            ("gema", "gemma-3-4b-it-Q4_K_M"),
            ("gemma3", "gemma-3-4b-it-Q4_K_M"),
        ],
    )
    def test_a_typo_suggests_the_nearest(self, shelf: Shelf, typed: str, nearest: str) -> None:
        shelf.drop(
            "q/r/Qwen3-8B-Q8_0.gguf", "s/r/SmolLM2-135M-Instruct.Q4_1.gguf", "g/r/gemma-3-4b-it-Q4_K_M.gguf"
        )
        shelf.reindex()
        with pytest.raises(ModelNotFound) as caught:
            shelf.show(typed)
        assert caught.value.hint == f"did you mean {nearest}"

    def test_what_is_like_nothing_suggests_nothing(self, shelf: Shelf) -> None:
        with pytest.raises(ModelNotFound) as caught:
            shelf.show("wholly-different")
        assert caught.value.hint == "kawai models list shows what is installed"


class TestDroppedIn:
    def test_a_split_set_is_one_model_and_only_when_it_is_whole(self, shelf: Shelf) -> None:
        shelf.drop_set("a/r/whole", 3)
        shelf.drop_set("a/r/lacks", 3, leave_out=2)
        assert shelf.reindex() == ["whole"]
        row, shown = shelf.row("whole"), shelf.show("whole")
        assert row["shards"] == 3
        assert [file["path"] for file in shown["files"]] == [
            f"a/r/whole-{number:05}-of-00003.gguf" for number in (1, 2, 3)
        ]
        assert row["size"] == sum(file["size"] for file in shown["files"])
        assert shown["parameters"] == 3 * 160
        shelf.drop("a/r/lacks-00002-of-00003.gguf", split=(1, 3))
        assert shelf.reindex() == ["lacks", "whole"]

    def test_a_shard_that_belongs_elsewhere_makes_no_set(self, shelf: Shelf) -> None:
        shelf.drop("a/mixed-00001-of-00002.gguf", split=(0, 2))
        shelf.drop("a/mixed-00002-of-00002.gguf", split=(2, 3))
        shelf.drop("a/alone.gguf", split=(0, 2))
        assert shelf.reindex() == []

    def test_what_is_no_model_is_not_listed(self, shelf: Shelf, tmp_path: Path) -> None:
        good = shelf.drop("a/good.gguf")
        (shelf.root / "a/page.gguf").write_bytes(b"<!doctype html><title>Sign in</title>")
        (shelf.root / "a/half.gguf").write_bytes(good.read_bytes()[:-1])
        (shelf.root / "a/empty.gguf").touch()
        (shelf.root / "a/folder.gguf").mkdir()
        os.mkfifo(shelf.root / "a/pipe.gguf")
        (shelf.root / "a/null.gguf").symlink_to("/dev/null")
        (shelf.root / "a/dangling.gguf").symlink_to(tmp_path / "nowhere")
        (shelf.root / "a/esc\x1b[2J.gguf").write_bytes(good.read_bytes())
        (shelf.root / "a/rtl\u202e.gguf").write_bytes(good.read_bytes())
        (shelf.root / "loop").symlink_to(shelf.root)
        assert shelf.reindex() == ["good"]
        (shelf.root / "a/half.gguf").write_bytes(good.read_bytes())
        assert shelf.reindex() == ["good", "half"]

    def test_one_projection_is_paired_with_all_of_its_folder_and_two_with_none(self, shelf: Shelf) -> None:
        shelf.drop("a/r/x-Q8_0.gguf", "a/r/x-Q4_0.gguf", "a/s/y.gguf", "b/r/z.gguf")
        shelf.drop("a/r/mmproj-F16.gguf", "b/r/mmproj-F16.gguf", "b/r/mmproj-Q8_0.gguf", projection=True)
        shelf.drop("b/r/unnamed.gguf", projection=True)
        assert shelf.reindex() == ["x-Q4_0", "x-Q8_0", "y", "z"]
        assert {name: shelf.row(name)["projection"] for name in shelf.ids()} == {
            "x-Q4_0": True,
            "x-Q8_0": True,
            "y": False,
            "z": False,
        }
        assert shelf.show("x-Q4_0")["files"][1] == {
            "path": "a/r/mmproj-F16.gguf",
            "size": (shelf.root / "a/r/mmproj-F16.gguf").stat().st_size,
            "sha256": None,
            "role": "projection",
        }
        shelf.store.remove(parse_model("x-Q4_0"))
        assert (shelf.root / "a/r/mmproj-F16.gguf").exists()
        shelf.store.remove(parse_model("x-Q8_0"))
        assert not (shelf.root / "a/r").exists()

    def test_a_projection_that_is_dropped_in_later_is_paired(self, shelf: Shelf) -> None:
        shelf.drop("a/r/x.gguf")
        shelf.reindex()
        shelf.drop("a/r/mmproj-F16.gguf", projection=True)
        assert shelf.reindex() == ["x"]
        assert shelf.row("x")["projection"]

    def test_one_that_is_replaced_by_another_stays_listed_under_its_id(self, shelf: Shelf) -> None:
        shelf.drop("a/r/x.gguf", "b/r/x.gguf")
        shelf.reindex()
        shelf.drop("b/r/x.gguf", name=OTHER, context_length=4096)
        assert shelf.reindex() == ["b/x", "x"]
        assert shelf.row("b/x")["context_length"] == 4096

    def test_one_that_is_replaced_by_another_of_its_size_is_read_again(self, shelf: Shelf) -> None:
        path = shelf.drop("a/r/x.gguf")
        before = path.stat()
        shelf.reindex()
        shelf.drop("a/r/x.gguf", context_length=256)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        shelf.reindex()
        assert shelf.row("x")["context_length"] == 256

    def test_nothing_is_hashed(self, shelf: Shelf) -> None:
        os.truncate(shelf.drop("a/r/huge.gguf"), 1 << 40)  # a day's hashing
        ended = shelf.program("models", "index")
        assert (ended.code, ended.out) == (0, "")
        assert shelf.row("huge")["size"] == 1 << 40
        assert shelf.show("huge")["files"][0]["sha256"] is None

    def test_their_provenance_names_no_source(self, shelf: Shelf) -> None:
        path = shelf.drop("a/r/x.gguf")
        os.utime(path, (1_700_000_000, 1_700_000_000))
        assert shelf.program("models", "index", "--json") == Ended(0, "")
        kept = json.loads(shelf.provenance("a/r/x").read_bytes())
        assert (kept["id"], kept["url"], kept["commit"], kept["sources"]) == ("x", None, None, [])
        assert shelf.row("x")["created"] == 1_700_000_000
        assert shelf.show("x")["provenance"] == {"url": None, "commit": None, "verified_at": None}

    def test_over_http(self, cli: Program, daemon: Daemon) -> None:
        shelf = Shelf(cli)
        shelf.drop("a/r/x.gguf")
        reply = daemon.ask("POST", "/v1/models/index")
        assert (reply.status, reply.body) == (204, b"")
        assert [row["id"] for row in daemon.ask("GET", "/v1/models").json["data"]] == ["x"]

    def test_a_model_whose_files_were_removed_is_not_listed_until_they_are_back(self, shelf: Shelf) -> None:
        shelf.drop("a/r/x.gguf", "b/r/x.gguf")
        shards = shelf.drop_set("c/r/s", 2)
        shelf.reindex()
        away = (shelf.root / "a/r/x.gguf").rename(shelf.home / "away")
        shard = shards[1].rename(shelf.home / "shard")
        assert shelf.reindex() == ["b/x"]
        with pytest.raises(ModelNotFound):
            shelf.show("s")
        assert shelf.show("x")["id"] == "b/x"
        away.rename(shelf.root / "a/r/x.gguf")
        shard.rename(shards[1])
        assert shelf.reindex() == ["b/x", "s", "x"]

    def test_a_thousand_are_listed_in_no_time(self, shelf: Shelf) -> None:
        shelf.drop("a/r/x.gguf")
        shelf.reindex()
        (entry,) = shelf.store.index.all()
        record = entry.record
        copies = [
            msgspec.structs.replace(record.files[0], path=f"o{number % 7}/r/m{number}.gguf")
            for number in range(999)
        ]
        shelf.store.index.put(
            msgspec.structs.replace(
                entry, record=msgspec.structs.replace(record, id=f"m{number}", files=[copy])
            )
            for number, copy in enumerate(copies)
        )
        assert len(shelf.ids()) == 1000
        listing = cpu_seconds(shelf.program, *KAWAI, "models", "list")
        assert listing < 3 * cpu_seconds(shelf.program, sys.executable, "-c", "import typer")


def cpu_seconds(program: Program, *command: str) -> float:
    """The least of some runs; unlike wall-clock time, it does not tell of what else the machine does."""

    def once() -> float:
        begin = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, env=program.environ, capture_output=True, check=True)
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        return end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime

    return min(once() for _ in range(4))


def cut(share: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        os.truncate(path, int(path.stat().st_size * share))

    return damage


def sql(*statements: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as db:
            for statement in statements:
                db.execute(statement)
            db.commit()

    return damage


def overwritten(begin: float, end: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        first, last = int(begin * len(data)), int(end * len(data))
        data[first:last] = b"\xa5" * (last - first)
        path.write_bytes(data)

    return damage


def journal(path: Path) -> None:
    path.with_name(path.name + "-journal").write_bytes(b"j" * 999)


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage" * 1000)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "removed": Path.unlink,
    "emptied": lambda path: os.truncate(path, 0),
    "one byte": lambda path: os.truncate(path, 1),
    "its head only": lambda path: os.truncate(path, 100),
    "half of it": cut(0.5),
    "all but its end": cut(0.95),
    "garbage": garbage,
    "a head of garbage": overwritten(0, 0.01),
    "a middle of garbage": overwritten(0.2, 0.7),
    "an end of garbage": overwritten(0.5, 1),
    "of no version": sql("PRAGMA user_version = 0"),
    "of a later version": sql(
        "PRAGMA user_version = 99",
        "CREATE TABLE z (id INTEGER PRIMARY KEY AUTOINCREMENT)",
        "CREATE VIEW v AS SELECT 1",
        "DROP TABLE source",
    ),
    "without its tables": sql("DROP TABLE model"),
    "with other columns": sql("ALTER TABLE model RENAME COLUMN entry TO row"),
    "with entries of nothing": sql("UPDATE model SET entry = x''"),
    "with entries that are no records": sql("UPDATE model SET entry = CAST('{\"id\": 7}' AS BLOB)"),
    "with entries that are text": sql("UPDATE model SET entry = CAST(entry AS TEXT)"),
    "with entries that are numbers": sql("UPDATE model SET entry = 7"),
    "with a stamp too many": sql(
        """UPDATE model SET entry =
        CAST(replace(CAST(entry AS TEXT), '"stamps":[', '"stamps":[1,') AS BLOB)"""
    ),
    "with a journal of garbage": journal,
}


@pytest.fixture(scope="module")
def full_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with enough models for an index of several pages."""
    full = Shelf(Program(tmp_path_factory.mktemp("full")))
    full.drop("a/r/x.gguf", "b/r/x.gguf", "y.gguf", *(f"c/r/m{number}.gguf" for number in range(20)))
    assert len(full.reindex()) == 23
    return full.home


class TestIndex:
    @pytest.fixture
    def shelf(self, shelf: Shelf, full_home: Path) -> Shelf:
        shutil.copytree(full_home, shelf.home)
        return shelf

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_it_is_a_cache_that_heals(self, shelf: Shelf, damage: str) -> None:
        known = shelf.by_path()
        for first in ("list", "show", "index", "rm"):
            DAMAGES[damage](shelf.index)
            if first == "list":
                assert sorted(shelf.ids()) == sorted(known.values())
            elif first == "show":
                assert shelf.show("b/x")["files"][0]["path"] == "b/r/x.gguf"
            elif first == "index":
                shelf.drop("d/new.gguf")
                shelf.reindex()
                known["d/new"] = "new"
            else:
                shelf.store.remove(parse_model("y"))
                del known["y"]
            assert shelf.by_path() == known, first

    @pytest.mark.parametrize("kind", ["directory", "dangling link"])
    def test_where_it_cannot_be_it_says_what_to_do(self, shelf: Shelf, kind: str, tmp_path: Path) -> None:
        shelf.index.unlink()
        if kind == "directory":
            shelf.index.mkdir()
        else:
            shelf.index.symlink_to(tmp_path / "no" / "such")
        ended = shelf.program("models", "list")
        assert (ended.code, ended.out) == (9, "")
        assert str(shelf.index) in ended.err
        assert "hint: " in ended.err
        with pytest.raises(IndexUnavailable):
            shelf.ids()

    def test_one_that_another_holds_for_long_is_waited_for(self, shelf: Shelf) -> None:
        with contextlib.closing(sqlite3.connect(shelf.index, isolation_level=None)) as db:
            db.execute("BEGIN EXCLUSIVE")
            with shelf.program.start("models", "list", "--json") as process:
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.7)
                db.execute("COMMIT")
                out, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (0, "")
        assert len(json.loads(out)["data"]) == 23

    def test_processes_that_look_at_once_agree(self, shelf: Shelf) -> None:
        known = shelf.by_path()
        for number in range(2):
            # what takes many provenance files to say, so that the processes meet in the middle
            shelf.drop(*(f"n{number}/r{each}/same.gguf" for each in range(30)))
            if number == 0:
                shelf.index.unlink()
            words = (("index",), ("list",), ("index",), ("show", "y"))
            with ThreadPoolExecutor(4) as threads:
                ended = list(threads.map(lambda args: shelf.program("models", *args), words))
            assert [(each.code, "Traceback" in each.err) for each in ended] == [(0, False)] * 4
            shelf.reindex()
            ids = shelf.by_path()
            assert known.items() <= ids.items(), "an id was given once"
            assert len(ids) == len(known) + 30
            assert Counter(ids.values()).most_common(1)[0][1] == 1
            assert shelf.provenance_ids() == ids, "the id that is listed is the one that is kept"
            known = ids
        shelf.index.unlink()
        shelf.reindex()
        assert shelf.by_path() == known

    def test_removals_and_indexing_at_once_leave_what_is_there(self, shelf: Shelf) -> None:
        gone = [f"m{number}" for number in range(5)]
        words = [("index",), *(("rm", name) for name in gone), ("index",), ("list",)]
        with ThreadPoolExecutor(6) as threads:
            ended = list(threads.map(lambda args: shelf.program("models", *args), words))
        assert [(each.code, each.err) for each in ended if each.code] == []
        shelf.reindex()
        assert shelf.provenance_ids() == shelf.by_path()
        assert not set(shelf.ids()) & set(gone)
        assert len(shelf.ids()) == 18
        assert not any(name in path for name in gone for path in shelf.left() if f"/{name}." in path)


BROKEN_FILES: dict[str, Callable[[bytes], bytes | None]] = {
    "removed": lambda _: None,
    "emptied": lambda _: b"",
    "cut": lambda data: data[: len(data) // 2],
    "cut by two bytes": lambda data: data[:-3],
    "zeros, as after a power failure": lambda data: bytes(len(data)),
    "garbage": lambda _: b"\xff\xfe\x00" * 100,
    "other JSON": lambda _: b"[]",
    "null": lambda _: b"null",
    "no files": lambda data: json.dumps(json.loads(data) | {"files": []}).encode(),
    "a path out of the store": lambda data: data.replace(b"owner/repo-GGUF/x", b"../../canary/x"),
    "the path of another": lambda data: data.replace(b"owner/repo-GGUF/x", b"owner/repo-GGUF/y"),
    "no time": lambda data: json.dumps(json.loads(data) | {"installed_at": "yesterday"}).encode(),
}


class TestProvenance:
    @pytest.mark.parametrize("how", BROKEN_FILES)
    def test_a_broken_one_is_written_anew_from_the_index(self, pulled: Shelf, how: str) -> None:
        where = pulled.provenance("owner/repo-GGUF/x-Q8_0")
        before, shown = json.loads(where.read_bytes()), pulled.show("x-Q8_0")
        data = BROKEN_FILES[how](where.read_bytes())
        where.unlink() if data is None else where.write_bytes(data)
        assert pulled.show("x-Q8_0") == shown, "a look needs no provenance file"
        assert pulled.reindex() == ["x-Q8_0"]
        assert json.loads(where.read_bytes()) == before
        assert pulled.show("x-Q8_0") == shown

    @pytest.mark.parametrize("how", BROKEN_FILES)
    def test_a_broken_one_without_an_index_loses_the_source_and_nothing_else(
        self, pulled: Shelf, how: str
    ) -> None:
        where = pulled.provenance("owner/repo-GGUF/x-Q8_0")
        data = BROKEN_FILES[how](where.read_bytes())
        where.unlink() if data is None else where.write_bytes(data)
        pulled.index.unlink()
        assert pulled.reindex() == ["x-Q8_0"]
        assert json.loads(where.read_bytes())["id"] == "x-Q8_0"
        row = pulled.row("x-Q8_0")
        assert (row["validated"], row["projection"]) == (False, True)

    @pytest.mark.parametrize("moment", ["2024-01-01T00:00:00", "2024-01-01T02:00:00+02:00"])
    @pytest.mark.parametrize("key", ["installed_at", "verified_at"])
    def test_times_are_utc_whatever_it_says(self, pulled: Shelf, key: str, moment: str) -> None:
        where = pulled.provenance("owner/repo-GGUF/x-Q8_0")
        where.write_text(json.dumps(json.loads(where.read_bytes()) | {key: moment}))
        pulled.reindex()
        for command in ("list", "show"):
            args = ["models", command, *(["x-Q8_0"] if command == "show" else [])]
            ended = pulled.program(*args)
            assert (ended.code, ended.err) == (0, "")
        shown = json.loads(pulled.program("models", "show", "x-Q8_0", "--json").out)
        assert shown["modified"].endswith("Z")
        assert shown["provenance"]["verified_at"].endswith("Z")

    def test_it_is_kept_when_the_index_is_lost(self, pulled: Shelf) -> None:
        shown = pulled.show("x-Q8_0")
        pulled.index.unlink()
        assert pulled.show("x-Q8_0") == shown
        assert shown["validated"]
        assert pulled.program("models", "pull", "owner/repo-GGUF", "--offline").code == 0


class TestStoreThatIsNotThere:
    @pytest.fixture(params=["missing", "empty"])
    def away(self, pulled: Shelf, request: pytest.FixtureRequest) -> Shelf:
        pulled.root.rename(pulled.home / "unmounted")
        if request.param == "empty":
            pulled.root.mkdir()
        return pulled

    @pytest.mark.parametrize(
        "args",
        [
            ("show", "x-Q8_0"),
            ("index",),
            ("rm", "x-Q8_0"),
            ("verify", "x-Q8_0"),
            ("verify",),
            ("pull", "owner/repo-GGUF", "--force"),
            ("pull", "owner/other"),
        ],
        ids=" ".join,
    )
    def test_it_is_said_and_nothing_is_lost_or_littered(
        self, away: Shelf, hub: LocalHub, args: tuple[str, ...]
    ) -> None:
        hub.add_file("owner/other", "z.gguf", tiny_gguf())
        before = away.root.exists()
        ended = away.program("models", *args)
        assert ended.code == 9, ended
        assert f"{away.root} is not the store that the index knows" in ended.err
        assert str(away.index) in ended.err, "it says what to do if the store is gone for good"
        assert away.root.exists() == before
        assert not before or not list(away.root.iterdir())
        if before:
            away.root.rmdir()
        (away.home / "unmounted").rename(away.root)
        assert away.ids() == ["x-Q8_0"]
        assert away.row("x-Q8_0")["validated"]

    def test_without_an_index_none_is_made_of_nothing(self, away: Shelf) -> None:
        away.index.unlink()
        assert away.ids() == []
        if away.root.exists():
            away.root.rmdir()
        (away.home / "unmounted").rename(away.root)
        assert away.ids() == ["x-Q8_0"]

    def test_one_that_is_gone_for_good_begins_anew_as_the_hint_says(self, away: Shelf) -> None:
        away.index.unlink()
        ended = away.program("models", "pull", "owner/repo-GGUF")
        assert ended.code == 0, ended
        assert away.ids() == ["x-Q8_0"]

    def test_the_daemon_says_so_and_lives(self, away: Shelf, daemon: Daemon) -> None:
        reply = daemon.ask("POST", "/v1/models/verify", {"model": "x-Q8_0"})
        assert (reply.status, reply.error["code"]) == (503, "store_missing")
        assert daemon.ask("GET", "/readyz").status == 503
        assert daemon.ask("GET", "/healthz").status == 200
        if away.root.exists():
            away.root.rmdir()
        (away.home / "unmounted").rename(away.root)
        assert daemon.ask("GET", "/readyz").status == 200


class TestPayloads:
    def test_list_and_show_are_the_contract_from_both_faces(self, pulled: Shelf, daemon: Daemon) -> None:
        listed, shown = daemon.ask("GET", "/v1/models"), daemon.ask("GET", "/v1/models/x-Q8_0")
        assert pulled.program("models", "list", "--json").out.encode() == listed.body + b"\n"
        assert pulled.program("models", "show", "X-q8_0", "--json").out.encode() == shown.body + b"\n"
        weights, projection = tiny_gguf(file_type=7, chat_template=TEMPLATE), tiny_gguf(projection=True)
        (row,) = listed.json["data"]
        assert listed.json.keys() == {"object", "data"}
        assert listed.json["object"] == "list"
        modified = row["modified"]
        assert modified.endswith("Z")
        created = int(datetime.fromisoformat(modified).timestamp())
        assert abs(time.time() - created) < 300
        expected = {
            "id": "x-Q8_0",
            "object": "model",
            "created": created,
            "owned_by": "owner",
            "model_family": "repo-GGUF",
            "size": len(weights) + len(projection),
            "modified": modified,
            "validated": True,
            "quantization": "Q8_0",
            "context_length": 128,
            "architecture": "llama",
            "projection": True,
            "shards": 1,
            "last_used": None,
            "protected": False,
        }
        assert list(row.items()) == list(expected.items())
        commit = shown.json["provenance"]["commit"]
        assert len(commit) == 40
        assert shown.json == expected | {
            "files": [
                {"path": f"owner/repo-GGUF/{name}", "size": len(data), "sha256": digest(data), "role": role}
                for name, data, role in (
                    ("x-Q8_0.gguf", weights, "weights"),
                    ("mmproj-F16.gguf", projection, "projection"),
                )
            ],
            "provenance": {
                "url": "https://huggingface.co/owner/repo-GGUF/resolve/main/x-Q8_0.gguf",
                "commit": commit,
                "verified_at": modified,
            },
            "capabilities": {
                "endpoint": "chat",
                "images": True,
                "audio": False,
                "streaming": True,
                "reasoning": False,
                "tooling": False,
                "embedding": False,
                "rerank": False,
            },
            "parameters": 32 * 4 + 32,
            "has_projection": True,
            "has_encoder": False,
            "has_decoder": True,
            "is_recurrent": False,
            "is_hybrid": False,
            "metadata": {
                "general.architecture": "llama",
                "general.type": "model",
                "general.name": "Tiny",
                "llama.context_length": 128,
                "general.file_type": 7,
                "tokenizer.chat_template": TEMPLATE,
            },
            "frees": len(weights) + len(projection),
            "config": {
                "context_length": {"value": 128, "source": "model"},
                "parallel": {"value": 4, "source": "default"},
                "gpu_layers": {"value": None, "source": "default"},
                "threads": {"value": None, "source": "default"},
                "keep_alive": {"value": 300, "source": "default"},
            },
        }

    def test_what_is_not_known_is_null(self, shelf: Shelf) -> None:
        shelf.drop("x.gguf", name=None, context_length=None, file_type=None)
        shelf.reindex()
        shown = json.loads(shelf.program("models", "show", "x", "--json").out)
        for key in ("context_length", "last_used"):
            assert shown[key] is None
        assert shown["provenance"] == {"url": None, "commit": None, "verified_at": None}
        assert shown["config"]["context_length"] == {"value": 4096, "source": "default"}
        ended = shelf.program("models", "list")
        assert ended.code == 0
        assert "None" not in ended.out + shelf.program("models", "show", "x").out

    def test_last_used_is_the_mtime_of_the_lock(self, pulled: Shelf) -> None:
        lock = pulled.provenance("owner/repo-GGUF/x-Q8_0").with_suffix(".lock")
        assert pulled.program("models", "verify").code == 0
        assert pulled.row("x-Q8_0")["last_used"] is None, "to be looked at is not to be used"
        with held(lock):
            os.utime(lock, (1_700_000_000.9, 1_700_000_000.9))
        assert pulled.row("x-Q8_0")["last_used"] == "2023-11-14T22:13:20Z"
        assert pulled.program("models", "pull", "owner/repo-GGUF", "--force").code == 0
        pulled.index.unlink()
        assert pulled.row("x-Q8_0")["last_used"] == "2023-11-14T22:13:20Z"

    def test_sorted_by_id(self, shelf: Shelf) -> None:
        shelf.drop("z/r/a.gguf", "y/r/B.gguf", "x/r/c.gguf", "w/r/D.gguf", "v/r/a.gguf")
        shelf.reindex()
        ids = [row["id"] for row in json.loads(shelf.program("models", "list", "--json").out)["data"]]
        assert ids == sorted(ids, key=str.casefold)
        assert len(ids) == 5

    def test_a_vocabulary_is_a_model(self, shelf: Shelf) -> None:
        shelf.drop("v/ggml-vocab.gguf", tensors=(), extra={"tokenizer.ggml.tokens": ["a", "b", "c"]})
        assert shelf.reindex() == ["ggml-vocab"]
        shown = shelf.show("ggml-vocab")
        assert shown["parameters"] == 0
        assert shown["metadata"]["tokenizer.ggml.tokens"] == {"type": "string", "length": 3}

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            ([1, 2, 3], {"type": "uint32", "length": 3}),
            ([1.5], {"type": "float32", "length": 1}),
            ([True, False], {"type": "bool", "length": 2}),
            (1 << 63, 1 << 63),
            (-5, -5),
            (0.5, 0.5),
            (float("inf"), None),
            (False, False),
            ("text", "text"),
        ],
    )
    def test_metadata_are_what_the_file_says(self, shelf: Shelf, value: Any, shown: object) -> None:  # noqa: ANN401
        shelf.drop("x.gguf", extra={"some.key": value})
        shelf.reindex()
        ended = shelf.program("models", "show", "x", "--json")
        found = json.loads(ended.out)["metadata"]["some.key"]
        assert (found, type(found)) == (shown, type(shown))

    def test_what_strangers_wrote_commands_no_terminal(self, shelf: Shelf) -> None:
        evil = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egpj.exe\r\n\x00"
        shelf.drop("x.gguf", architecture=f"ll{evil}", name=evil, extra={f"key{evil}": evil})
        shelf.reindex()
        ended = shelf.program("models", "show", "x", "--metadata")
        terminal = shelf.program.on_terminal("models", "show", "x", "--metadata")
        listed = shelf.program("models", "list")
        assert [ended.code, terminal.code, listed.code] == [0, 0, 0]
        for shown in (ended.out, terminal.plain, listed.out):
            assert not set(shown.replace("\n", "")) & set("\x1b\x07\x9b\u202e\r\x00")
        assert "\\x1b[2J" in ended.out
        assert shelf.show("x")["metadata"]["general.name"] == evil, "a program is given what is there"


def digest(data: bytes) -> str:
    return sha256(data).hexdigest()


NONE = dict.fromkeys(("images", "audio", "streaming", "reasoning", "tooling", "embedding", "rerank"), False)
GENERATES = NONE | {"streaming": True}


class TestCapabilities:
    @pytest.mark.parametrize(
        ("header", "endpoint", "more"),
        [
            ({}, "completion", GENERATES),
            ({"chat_template": ""}, "completion", GENERATES),
            ({"chat_template": TEMPLATE}, "chat", GENERATES),
            ({"chat_template": "{% if enable_thinking %}<think>"}, "chat", GENERATES | {"reasoning": True}),
            ({"chat_template": "{% if tools %}<tool_call>"}, "chat", GENERATES | {"tooling": True}),
            ({"architecture": "bert"}, "embeddings", NONE | {"embedding": True}),
            (
                {
                    "architecture": "qwen3",
                    "chat_template": "<think>{% if tools %}",
                    "extra": {"qwen3.pooling_type": 3},
                },
                "embeddings",
                NONE | {"embedding": True},
            ),
            ({"architecture": "bert", "extra": {"bert.pooling_type": 4}}, "rerank", NONE | {"rerank": True}),
            (
                {"architecture": "qwen3", "extra": {"qwen3.pooling_type": 4}},
                "rerank",
                NONE | {"rerank": True},
            ),
            ({"architecture": "llama", "extra": {"llama.pooling_type": 0}}, "completion", GENERATES),
        ],
    )
    def test_what_a_model_can_be_asked(
        self, shelf: Shelf, header: dict[str, Any], endpoint: str, more: dict[str, bool]
    ) -> None:
        shelf.drop("x.gguf", **header)
        shelf.reindex()
        assert shelf.show("x")["capabilities"] == {"endpoint": endpoint} | more

    @pytest.mark.parametrize(
        ("says", "images", "audio"),
        [
            ({}, True, False),
            ({"clip.has_vision_encoder": True}, True, False),
            ({"clip.has_audio_encoder": True}, False, True),
            ({"clip.has_vision_encoder": True, "clip.has_audio_encoder": True}, True, True),
        ],
    )
    def test_what_a_projection_adds(
        self,
        shelf: Shelf,
        says: dict[str, bool],
        images: bool,  # noqa: FBT001
        audio: bool,  # noqa: FBT001
    ) -> None:
        shelf.drop("a/x.gguf", chat_template=TEMPLATE)
        shelf.drop("a/mmproj.gguf", projection=True, extra=says)
        shelf.reindex()
        found = shelf.show("x")["capabilities"]
        assert (found["images"], found["audio"]) == (images, audio)

    @pytest.mark.parametrize(
        ("architecture", "true"),
        [
            ("llama", {"has_decoder"}),
            ("bert", {"has_encoder"}),
            ("t5", {"has_encoder", "has_decoder"}),
            ("t5encoder", {"has_encoder"}),
            ("mamba", {"has_decoder", "is_recurrent"}),
            ("rwkv7", {"has_decoder", "is_recurrent"}),
            ("jamba", {"has_decoder", "is_hybrid"}),
        ],
    )
    def test_how_a_model_is_built(self, shelf: Shelf, architecture: str, true: set[str]) -> None:
        shelf.drop("x.gguf", architecture=architecture)
        shelf.reindex()
        shown = shelf.show("x")
        traits = ("has_encoder", "has_decoder", "is_recurrent", "is_hybrid")
        assert {trait for trait in traits if shown[trait]} == true


class TestVerify:
    def test_every_event_has_its_shape_from_both_faces(self, pulled: Shelf, daemon: Daemon) -> None:
        weights, projection = tiny_gguf(file_type=7, chat_template=TEMPLATE), tiny_gguf(projection=True)
        total = len(weights) + len(projection)
        checks: list[dict[str, object]] = [
            {"path": f"owner/repo-GGUF/{name}", "ok": True, "sha256": digest(data), "expected": digest(data)}
            for name, data in (("x-Q8_0.gguf", weights), ("mmproj-F16.gguf", projection))
        ]
        ended = pulled.program("models", "verify", "x-q8_0", "--json")
        reply = daemon.ask("POST", "/v1/models/verify", {"model": "X-Q8_0"})
        assert (ended.code, ended.err, reply.status) == (0, "", 200)
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert untimed(reply.events) == untimed(ended.events)
        steps: tuple[tuple[str, object, int, list[dict[str, object]]], ...] = (
            ("verifying", checks[0]["path"], 0, []),
            ("verifying", checks[1]["path"], len(weights), checks[:1]),
            ("verified", None, total, checks),
        )
        assert untimed(ended.events) == [
            {
                "status": status,
                "id": "x-Q8_0",
                "file": file,
                "completed": completed,
                "total": total,
                "rate": None,
                "eta": None,
                "files": files,
                "error": None,
            }
            for status, file, completed, files in steps
        ]
        assert all(isinstance(event["rate"], int | None) for event in reply.events)

    def test_a_flipped_bit_is_found_and_named(self, pulled: Shelf, daemon: Daemon) -> None:
        bad = pulled.root / "owner/repo-GGUF/mmproj-F16.gguf"
        assert pulled.row("x-Q8_0")["validated"]
        flip(bad)
        pulled.reindex()
        assert pulled.row("x-Q8_0")["validated"], "an index hashes nothing"
        ended = pulled.program("models", "verify", "x-Q8_0")
        assert (ended.code, ended.out) == (7, "x-Q8_0 failed\n")
        assert "owner/repo-GGUF/mmproj-F16.gguf" in ended.err
        assert "hint: kawai models pull --force https://huggingface.co/" in ended.err
        assert "Traceback" not in ended.err
        assert not pulled.row("x-Q8_0")["validated"]
        assert pulled.show("x-Q8_0")["provenance"]["verified_at"] is None
        last = daemon.ask("POST", "/v1/models/verify", {"model": "x-Q8_0"}).events[-1]
        assert (last["status"], last["error"]["code"]) == ("failed", "digest_mismatch")
        assert [check["ok"] for check in last["files"]] == [True, False]
        assert last["files"][1]["sha256"] == digest(bad.read_bytes())
        assert last["files"][1]["expected"] == digest(tiny_gguf(projection=True))
        flip(bad)
        assert pulled.program("models", "verify", "x-Q8_0").code == 0
        assert pulled.row("x-Q8_0")["validated"]

    def test_what_it_finds_outlives_the_index(self, pulled: Shelf) -> None:
        flip(pulled.root / "owner/repo-GGUF/x-Q8_0.gguf")
        assert pulled.program("models", "verify").code == 7
        pulled.index.unlink()
        assert not pulled.row("x-Q8_0")["validated"]
        assert pulled.program("models", "pull", "owner/repo-GGUF", "--force").code == 0
        assert pulled.row("x-Q8_0")["validated"]
        assert pulled.program("models", "verify").code == 0

    @pytest.mark.parametrize("place", ["header", "magic", "end"])
    def test_a_damaged_file_of_another_size_or_header_is_told_not_thrown(
        self, pulled: Shelf, place: str
    ) -> None:
        path = pulled.root / "owner/repo-GGUF/x-Q8_0.gguf"
        data = bytearray(path.read_bytes())
        if place == "end":
            del data[-10:]
        else:
            data[0 if place == "magic" else 30] ^= 0xFF
        path.write_bytes(data)
        ended = pulled.program("models", "verify", "--json")
        assert (ended.code, ended.err) == (7, "")
        last: Any = ended.events[-1]
        assert last["status"] == "failed"
        assert [check["ok"] for check in last["files"]] == [False, True]
        pulled.reindex()
        assert all(not row.validated for row in pulled.store.rows())

    def test_a_touched_file_is_not_validated_until_it_is_hashed(self, pulled: Shelf) -> None:
        os.utime(pulled.root / "owner/repo-GGUF/x-Q8_0.gguf")
        pulled.reindex()
        assert not pulled.row("x-Q8_0")["validated"]
        assert pulled.program("models", "verify", "x-Q8_0").code == 0
        assert pulled.row("x-Q8_0")["validated"]

    def test_a_missing_file_is_named(self, shelf: Shelf) -> None:
        missing = shelf.drop_set("a/s", 3)[1]
        shelf.reindex()
        missing.unlink()
        ended = shelf.program("models", "verify", "s", "--json")
        last: Any = ended.events[-1]
        assert (ended.code, last["status"], last["error"]["code"]) == (7, "failed", "incomplete_model")
        assert "a/s-00002-of-00003.gguf" in last["error"]["message"]
        assert [(check["ok"], check["sha256"] is None) for check in last["files"]] == [
            (True, False),
            (False, True),
            (True, False),
        ]

    def test_one_that_was_dropped_in_is_held_to_its_first_hash(self, shelf: Shelf) -> None:
        path = shelf.drop("a/x.gguf")
        shelf.reindex()
        first = shelf.program("models", "verify", "x", "--json")
        last: Any = first.events[-1]
        (check,) = last["files"]
        assert check == {"path": "a/x.gguf", "ok": True, "sha256": digest(tiny_gguf()), "expected": None}
        assert not shelf.row("x")["validated"], "nobody said what it should be"
        assert shelf.program("models", "verify", "x").code == 0
        assert shelf.row("x")["validated"]
        flip(path)
        assert shelf.program("models", "verify", "x").code == 7
        assert not shelf.row("x")["validated"]

    @pytest.fixture
    def four(self, shelf: Shelf) -> Shelf:
        shelf.drop("z/r/a.gguf", "y/r/B.gguf", "x/r/c.gguf", "w/r/D.gguf")
        assert shelf.reindex() == ["a", "B", "c", "D"]
        assert shelf.program("models", "verify").code == 0
        return shelf

    def test_all_are_looked_at_in_id_order_though_some_fail(self, four: Shelf) -> None:
        flip(four.root / "y/r/B.gguf")
        (four.root / "x/r/c.gguf").unlink()
        ended = four.program("models", "verify", "--json")
        assert (ended.code, ended.err) == (7, "")
        assert finals(ended.events) == [
            ("a", "verified"),
            ("B", "failed"),
            ("c", "failed"),
            ("D", "verified"),
        ]
        order = [str(event["id"]) for event in ended.events]
        assert order == sorted(order, key=["a", "B", "c", "D"].index)

    def test_all_are_told_of_to_people_too(self, four: Shelf) -> None:
        flip(four.root / "y/r/B.gguf")
        flip(four.root / "w/r/D.gguf")
        ended = four.program("models", "verify")
        assert ended.code == 7
        assert ended.out.splitlines() == ["a verified", "B failed", "c verified", "D failed"]
        assert "y/r/B.gguf" in ended.err
        assert "w/r/D.gguf" in ended.err

    def test_one_in_use_elsewhere_does_not_hide_that_another_is_bad(self, four: Shelf) -> None:
        flip(four.root / "x/r/c.gguf")
        with held(four.provenance("z/r/a").with_suffix(".lock"), fcntl.LOCK_EX):
            ended = four.program("models", "verify", "--json")
        assert finals(ended.events) == [
            ("a", "failed"),
            ("B", "verified"),
            ("c", "failed"),
            ("D", "verified"),
        ]
        first: Any = ended.events[0]
        assert first["error"]["code"] == "in_use"
        assert ended.code == 7

    def test_all_over_http(self, cli: Program, daemon: Daemon) -> None:
        shelf = Shelf(cli)
        assert daemon.ask("POST", "/v1/models/verify").events == []
        shelf.drop("a/x.gguf", "b/y.gguf", "c/z.gguf")
        shelf.reindex()
        (shelf.root / "b/y.gguf").unlink()
        reply = daemon.ask("POST", "/v1/models/verify")
        assert reply.status == 200
        assert finals(reply.events) == [("x", "verified"), ("y", "failed"), ("z", "verified")]

    def test_what_can_be_refused_is_refused_before_the_stream(self, cli: Program, daemon: Daemon) -> None:
        for body, status, code in (
            ({"model": "none"}, 404, "model_not_found"),
            ({"model": "../x"}, 400, "invalid_id"),
            ({"modle": "x"}, 400, "invalid_body"),
            ({"model": 7}, 400, "invalid_body"),
        ):
            reply = daemon.ask("POST", "/v1/models/verify", body)
            assert (reply.status, reply.error["code"]) == (status, code)
        ended = cli("models", "verify", "none", "--json")
        assert (ended.code, ended.out, ended.error["code"]) == (3, "", "model_not_found")

    def test_one_that_is_used_can_be_verified(self, shelf: Shelf) -> None:
        shelf.drop("a/x.gguf")
        shelf.reindex()
        with held(shelf.provenance("a/x").with_suffix(".lock")):
            assert shelf.program("models", "verify", "x") == Ended(
                0, "x verified\n", "verifying x: 0 B of 960 B (0 %)\n"
            )

    def test_a_lock_that_cannot_be_made_is_a_failure_that_is_told(
        self, cli: Program, daemon: Daemon, tmp_path: Path
    ) -> None:
        shelf = Shelf(cli)
        shelf.drop("a/x.gguf", "b/y.gguf")
        shelf.reindex()
        shelf.provenance("a/x").with_suffix(".lock").symlink_to(tmp_path / "nowhere" / "x")
        ended = cli("models", "verify", "--json")
        assert "Traceback" not in ended.err
        assert finals(ended.events) == [("x", "failed"), ("y", "verified")]
        assert ended.code != 0
        reply = daemon.ask("POST", "/v1/models/verify", {"model": "x"})
        assert finals(reply.events) == [("x", "failed")]


def read_only(shelf: Shelf, *args: str) -> Ended:
    """Run where the home is on a read-only mount."""
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", mount, str(shelf.home), *KAWAI, *args]
    done = subprocess.run(command, env=shelf.program.environ, capture_output=True, text=True, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


class TestReadOnly:
    @pytest.fixture
    def shelf(self, shelf: Shelf) -> Shelf:
        shelf.drop("a/x.gguf")
        shelf.reindex()
        try:
            ended = read_only(shelf, "--version")
        except FileNotFoundError:
            pytest.skip("no unshare here, so nothing can be mounted read-only")
        if ended.code:
            pytest.skip(f"nothing can be mounted read-only here: {ended.err}")
        return shelf

    def test_what_only_reads_works(self, shelf: Shelf) -> None:
        for args in (("list",), ("show", "x"), ("index",)):
            assert read_only(shelf, "models", *args).code == 0, args

    def test_what_would_write_names_the_directory(self, shelf: Shelf) -> None:
        ended = read_only(shelf, "models", "rm", "x", "--json")
        assert (ended.code, ended.error["code"]) == (9, "home_not_writable")
        assert str(shelf.root) in ended.error["message"]
        assert shelf.ids() == ["x"]
        shelf.drop("a/new.gguf")
        ended = read_only(shelf, "models", "index", "--json")
        assert (ended.code, ended.error["code"]) == (9, "home_not_writable")

    @pytest.mark.parametrize("used", [False, True])
    def test_a_verification_says_how_it_ended(self, shelf: Shelf, used: bool) -> None:  # noqa: FBT001
        if used:
            assert shelf.program("models", "verify").code == 0
        ended = read_only(shelf, "models", "verify", "--json")
        assert ended.err == ""
        ((name, status),) = finals(ended.events)
        assert (name, ended.code) == ("x", 0 if status == "verified" else 9)


class TestRemove:
    def test_nothing_is_left(self, pulled: Shelf, daemon: Daemon) -> None:
        (pulled.root / "owner/repo-GGUF/README.md").write_text("the user's own")
        assert pulled.program("models", "rm", "X-Q8_0") == Ended(0, "", "removed X-Q8_0\n")
        assert pulled.left() == ["owner", "owner/repo-GGUF", "owner/repo-GGUF/README.md"]
        assert pulled.ids() == pulled.reindex() == []
        again = pulled.program("models", "rm", "x-Q8_0", "--json")
        assert (again.code, again.error["code"]) == (3, "model_not_found")
        pulled.drop("owner/repo-GGUF/z.gguf")
        pulled.reindex()
        reply = daemon.ask("DELETE", "/v1/models/z")
        assert (reply.status, reply.body) == (204, b"")
        assert daemon.ask("DELETE", "/v1/models/z").status == 404
        assert pulled.left() == ["owner", "owner/repo-GGUF", "owner/repo-GGUF/README.md"]

    @pytest.mark.parametrize("indexed", [False, True])
    @pytest.mark.parametrize("gone", ["weights", "provenance", "folder"])
    def test_one_whose_files_are_already_gone(self, pulled: Shelf, gone: str, indexed: bool) -> None:  # noqa: FBT001
        folder = pulled.root / "owner/repo-GGUF"
        if gone == "weights":
            (folder / "x-Q8_0.gguf").unlink()
        elif gone == "provenance":
            pulled.provenance("owner/repo-GGUF/x-Q8_0").unlink()
        else:
            folder.rename(pulled.home / "elsewhere")
            folder.parent.rmdir()
        if indexed:
            pulled.reindex()
            assert pulled.ids() == ([] if gone != "provenance" else ["x-Q8_0"])
        ended = pulled.program("models", "rm", "x-Q8_0")
        if gone == "folder" and indexed:
            assert ended.code in {0, 3}, "nothing is known of it any more"
        else:
            assert ended.code == 0, ended
        assert pulled.left() == []
        assert pulled.reindex() == []

    @pytest.mark.parametrize("kind", [fcntl.LOCK_SH, fcntl.LOCK_EX], ids=["loaded", "pulled"])
    def test_one_in_use_stays(self, pulled: Shelf, hub: LocalHub, daemon: Daemon, kind: int) -> None:
        hub.add_file("owner/repo-GGUF", "x-Q8_0.gguf", tiny_gguf(file_type=7, name=OTHER))
        lock = pulled.provenance("owner/repo-GGUF/x-Q8_0").with_suffix(".lock")
        with held(lock, kind):
            before = pulled.left()
            ended = pulled.program("models", "rm", "x-Q8_0", "--json")
            reply = daemon.ask("DELETE", "/v1/models/x-Q8_0")
            forced = pulled.program("models", "pull", "owner/repo-GGUF", "--force", "--json")
        assert (ended.code, ended.error["code"]) == (5, "in_use")
        assert (reply.status, reply.body + b"\n") == (409, ended.err.encode())
        assert "x-Q8_0" in ended.error["message"]
        assert pulled.left() == before
        assert (forced.code, forced.events[-1]["status"]) == (5, "failed")
        assert pulled.program("models", "verify").code == 0
        assert pulled.program("models", "rm", "x-Q8_0").code == 0, "a lock is free when its holder has gone"

    def test_the_lock_of_a_user_that_was_killed_is_free(self, shelf: Shelf) -> None:
        shelf.drop("a/x.gguf")
        shelf.reindex()
        lock = shelf.provenance("a/x").with_suffix(".lock")
        lock.touch()
        hold = (
            "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_SH); "
            "print('held', flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", hold, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as holder:
            assert holder.stdout
            assert holder.stdout.readline() == b"held\n"
            assert shelf.program("models", "rm", "x").code == 5
            holder.kill()
            holder.wait()
        assert shelf.program("models", "rm", "x").code == 0

    def test_a_partial(self, cli: Program, hub: LocalHub) -> None:
        shelf = Shelf(cli)
        big = tiny_gguf(tensors=[("token_embd.weight", (1 << 20,), F32)])
        hub.add_file("o/r", "big.gguf", big)
        hub.throttle = 400_000
        with cli.start("models", "pull", "o/r", "--json") as process:
            assert process.stdout
            for line in process.stdout:
                if json.loads(line)["completed"]:
                    break
            running = cli("models", "rm", "BIG", "--json")
            process.kill()
        assert (running.code, running.error["code"]) == (5, "in_use")
        assert shelf.ids() == []
        assert [path.name for path in shelf.root.rglob("*.gguf")] == []
        assert sum(1 for path in shelf.root.rglob("*") if path.is_file()) > 1, "something was fetched"
        assert cli("models", "rm", "o/big") == Ended(0, "", "removed o/big\n")
        assert [path for path in shelf.left() if not path.endswith(".lock")] == []
        assert cli("models", "rm", "big").code == 3
        hub.throttle = None
        ended = cli("models", "pull", "o/r", "--json")
        assert (ended.code, ended.events[-1]["status"]) == (0, "downloaded")

    def test_ids_that_try_to_be_paths_remove_nothing(self, shelf: Shelf) -> None:
        canary = shelf.home / "canary.gguf"
        shelf.drop("a/x.gguf", "../canary.gguf")
        shelf.reindex()
        for words in ("../canary", "a/../x", "a%2Fx", ""):
            ended = shelf.program("models", "rm", words, "--json")
            assert (ended.code, ended.error["code"]) == (2, "invalid_id"), words
        assert canary.exists()
        assert shelf.ids() == ["x"]

    def test_one_that_was_cut_off_can_be_repeated(self, pulled: Shelf) -> None:
        """The files are gone, what tells of them is not: the order in which a removal works."""
        for path in (pulled.root / "owner/repo-GGUF").glob("*.gguf"):
            path.unlink()
        assert pulled.program("models", "rm", "x-Q8_0").code == 0
        assert pulled.left() == []

    def test_everything_it_refuses_is_one_of_ours(self, shelf: Shelf) -> None:
        with pytest.raises(KawaiError):
            shelf.store.remove(parse_model("nothing"))
        assert not shelf.home.exists(), "a question makes no home"


_TRIES = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0)
try:
    db.execute("BEGIN IMMEDIATE")
except sqlite3.OperationalError as error:
    sys.exit(str(error))
"""


def test_asking_for_the_revision_lets_go_of_no_lock(workspaces: Workspaces, hub: LocalHub) -> None:
    """POSIX drops a process's locks on a file with any descriptor of it that is closed."""
    hub.add_file("me/one", "one.gguf", tiny_gguf())
    workspace = workspaces()
    pull(workspace, "me/one")
    index = workspace.models.index
    with contextlib.closing(sqlite3.connect(index.path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        before = index.revision()
        done = subprocess.run(
            [sys.executable, "-c", _TRIES, str(index.path)], capture_output=True, text=True, check=False
        )
        assert "locked" in done.stderr
        db.execute("PRAGMA user_version = 9999")
        db.execute("COMMIT")
    assert index.revision() != before
