"""Adoption and scan, from outside: trees as other tools lay them out, which nothing may change."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from kawai_tools.errors import ErrorBody, KawaiError, from_info
from kawai_tools.events import PullEvent, Status
from kawai_tools.models.gathering import folder_name
from kawai_tools.models.neighbours import FoundFile
from kawai_tools.models.taking import Mode
from kawai_tools.operations.adoption import MODELS_ADOPT, AdoptRequest
from kawai_tools.settings import Settings
from kawai_tools.transfer.pulls import Feed, Pulls
from kawai_tools.workspace import Workspace
from tests.program import KAWAI, Ended, Program
from tests.samples import tiny_gguf

GIB = 1 << 30
SIZE = len(tiny_gguf())


def facts(*roots: Path) -> dict[str, tuple[object, ...]]:
    """All that a tool could notice of its files: what they are, when they changed, and what is in them."""
    found: dict[str, tuple[object, ...]] = {}
    for root in roots:
        for path in sorted([root, *root.rglob("*")]):
            stat = path.lstat()
            content: object = None
            if path.is_symlink():
                content = path.readlink()
            elif path.is_file():
                content = sha256(path.read_bytes()).hexdigest() if stat.st_size < GIB else stat.st_blocks
            found[str(path)] = (
                stat.st_ino,
                stat.st_mode,
                stat.st_mtime_ns,
                stat.st_uid,
                stat.st_size,
                content,
            )
    return found


def digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def big(path: Path, size: int) -> Path:
    """A GGUF file of any size that takes no room; what follows its tensors is zeros."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tiny_gguf())
    os.truncate(path, size)
    return path


class Hub:
    """The cache of the hub's own tools, as ``huggingface_hub`` fills it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, repo: str, path: str, data: bytes, commit: str = "c" * 40) -> Path:
        """A file of a revision: a link to a blob that is named by its digest."""
        folder = self.root / f"models--{repo.replace('/', '--')}"
        blob = folder / "blobs" / digest(data)
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(commit)
        link = folder / "snapshots" / commit / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
        return link


class Ollama:
    """The directory of Ollama: manifests that name blobs."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, name: str, model: bytes, projector: bytes | None = None) -> Path:
        """A model, by host, namespace, model and tag; its blob."""
        layers = [self._layer("model", model), self._layer("template", b"{{ .Prompt }}")]
        layers += [self._layer("projector", projector)] if projector else []
        config = self._layer("config", b"{}")
        self.manifest(name, {"schemaVersion": 2, "config": config, "layers": layers})
        return self.blob(model)

    def blob(self, data: bytes) -> Path:
        return self.root / "blobs" / f"sha256-{digest(data)}"

    def _layer(self, kind: str, data: bytes) -> dict[str, object]:
        path = self.blob(data)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return {
            "mediaType": f"application/vnd.ollama.image.{kind}",
            "digest": f"sha256:{digest(data)}",
            "size": len(data),
        }

    def manifest(self, name: str, value: object) -> Path:
        path = self.root / "manifests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path


class Studio:
    """The directory of LM Studio."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, path: str, data: bytes) -> Path:
        file = self.root / "models" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return file


class Trees(NamedTuple):
    """All three tools of one user."""

    hub: Hub
    ollama: Ollama
    studio: Studio

    @property
    def roots(self) -> tuple[Path, ...]:
        return self.hub.root, self.ollama.root, self.studio.root


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    """One model of each tool, different from each other."""
    home = tmp_path
    made = Trees(
        Hub(home / ".cache/huggingface/hub"), Ollama(home / ".ollama/models"), Studio(home / ".lmstudio")
    )
    made.hub.add("acme/Tiny-GGUF", "Tiny-Q8_0.gguf", tiny_gguf(name="of the hub", file_type=7))
    made.ollama.add("registry.ollama.ai/library/llama3.2/1b", tiny_gguf(name="of Ollama"))
    made.studio.add("acme/Small-GGUF/Small-F32.gguf", tiny_gguf(name="of LM Studio"))
    return made


def adopt(kawai: Program, *args: str | Path) -> Ended:
    return kawai("models", "adopt", *map(str, args), "--json")


def workspace(kawai: Program) -> Workspace:
    """The core in this process, on the same home and beside the same tools."""
    home = Path(kawai.environ["HOME"])
    return Workspace(
        Settings(
            home=Path(kawai.environ["KAWAI_HOME"]),
            hub_home=home / ".cache/huggingface",
            ollama_models=home / ".ollama/models",
            lmstudio_home=home / ".lmstudio",
        )
    )


def adopt_here(kawai: Program, *paths: Path | str, model_id: str | None = None, copy: bool = False) -> Ended:
    """As :func:`adopt`, in this process: no program is started; the code is that of the last event."""
    request = AdoptRequest([str(path) for path in paths], copy=copy, link=not copy, id=model_id)
    try:
        feed = MODELS_ADOPT.run(workspace(kawai), request)
    except KawaiError as error:
        return Ended(error.exit_code, "", msgspec.json.encode(ErrorBody(error.info)).decode())
    assert isinstance(feed, Feed)
    events = [event for event in feed.follow() if isinstance(event, PullEvent)]
    error_of_last = events[-1].error
    code = from_info(error_of_last).exit_code if error_of_last else 0
    return Ended(code, "\n".join(msgspec.json.encode(event).decode() for event in events))


def scan_here(kawai: Program) -> list[FoundFile]:
    return workspace(kawai).neighbours.rows()


def scan(kawai: Program) -> list[dict[str, Any]]:
    ended = kawai("models", "scan", "--json")
    assert (ended.code, ended.err) == (0, "")
    rows: list[dict[str, Any]] = json.loads(ended.out)
    return rows


def finals(ended: Ended) -> list[tuple[object, object]]:
    return [(e["id"], e["status"]) for e in ended.events if e["status"] in FINALS]


FINALS = {"downloaded", "exists", "failed", "cancelled"}


def store(kawai: Program) -> Path:
    return Path(kawai.environ["KAWAI_HOME"]) / "models"


def left(kawai: Program) -> list[str]:
    """What is in the store, but for what every store has."""
    found = {str(path.relative_to(store(kawai))) for path in store(kawai).rglob("*")}
    return sorted(found - {".kawai-store", ".partial"})


def of_model(name: str, *files: str) -> list[str]:
    """What an adopted model leaves in the store."""
    inside = [".kawai", f".kawai/{name}.json", f".kawai/{name}.lock", *files]
    return sorted(["local", f"local/{name}", *(f"local/{name}/{each}" for each in inside)])


def provenance(kawai: Program, name: str) -> Any:  # noqa: ANN401 - JSON
    return json.loads((store(kawai) / f"local/{name}/.kawai/{name}.json").read_text())


class TestScan:
    def test_what_each_tool_holds(self, kawai: Program, trees: Trees) -> None:
        before = facts(*trees.roots)
        hub, ollama, studio = (
            tiny_gguf(name="of the hub", file_type=7),
            tiny_gguf(name="of Ollama"),
            trees.studio,
        )
        link = trees.hub.root / "models--acme--Tiny-GGUF/snapshots" / ("c" * 40) / "Tiny-Q8_0.gguf"
        blob, file = trees.ollama.blob(ollama), studio.root / "models/acme/Small-GGUF/Small-F32.gguf"
        expected = [
            ("huggingface", "acme/Tiny-GGUF/Tiny-Q8_0.gguf", link, digest(hub)),
            ("lmstudio", "acme/Small-GGUF/Small-F32", file, None),
            ("ollama", "llama3.2:1b", blob, digest(ollama)),
        ]
        rows = scan(kawai)
        assert rows == [
            {
                "path": str(path),
                "tool": tool,
                "name": name,
                "size": path.stat().st_size,
                "sha256": sha,
                "adopted": False,
            }
            for tool, name, path, sha in expected
        ]
        assert list(rows[0]) == ["path", "tool", "name", "size", "sha256", "adopted"]
        assert facts(*trees.roots) == before
        assert not Path(kawai.environ["KAWAI_HOME"]).exists(), "a question makes no home"

    def test_for_people(self, kawai: Program, trees: Trees) -> None:
        kawai("models", "adopt", str(trees.studio.root))
        ended = kawai("models", "scan")
        assert [line.split()[:5] for line in ended.out.splitlines()][2:] == [
            ["acme/Small-GGUF/Small-F32", "lmstudio", "992", "B", "yes"],
            ["llama3.2:1b", "ollama", "992", "B", "-"],
        ]
        for root in trees.roots:
            shutil.rmtree(root)
        nothing = kawai("models", "scan")
        assert (nothing.code, nothing.out) == (0, "")
        assert str(trees.studio.root) in nothing.err
        assert scan(kawai) == []

    def test_the_hub_has_each_file_once_whatever_revisions_have_it(
        self, kawai: Program, trees: Trees
    ) -> None:
        data = tiny_gguf(name="of the hub", file_type=7)
        trees.hub.add("acme/Tiny-GGUF", "Tiny-Q8_0.gguf", data, commit="d" * 40)
        trees.hub.add("acme/Tiny-GGUF", "deep/er/Other.gguf", tiny_gguf(name="deep"))
        trees.hub.add("gpt2", "gpt2.gguf", tiny_gguf(name="no owner"))
        plain = trees.hub.root / "models--acme--Plain/snapshots" / ("e" * 40) / "plain.gguf"
        plain.parent.mkdir(parents=True)
        plain.write_bytes(tiny_gguf(name="where there are no links"))
        gone = trees.hub.add("acme/Gone", "gone.gguf", tiny_gguf(name="gone"))
        gone.resolve().unlink()
        blobs = trees.hub.root / "models--acme--Tiny-GGUF/blobs"
        (blobs / ("a" * 64 + ".incomplete")).write_bytes(data)
        rows = {row.name: row.sha256 for row in scan_here(kawai) if row.tool == "huggingface"}
        assert rows == {
            "acme/Plain/plain.gguf": None,
            "acme/Tiny-GGUF/Tiny-Q8_0.gguf": digest(data),
            "acme/Tiny-GGUF/deep/er/Other.gguf": digest(tiny_gguf(name="deep")),
            "gpt2/gpt2.gguf": digest(tiny_gguf(name="no owner")),
        }

    def test_ollama_names_and_what_is_whole(self, kawai: Program, trees: Trees) -> None:
        ollama = trees.ollama
        data = tiny_gguf(name="of Ollama")
        ollama.add("registry.ollama.ai/library/llama3.2/latest", data)
        ollama.add("registry.ollama.ai/me/own/q8", tiny_gguf(name="own"))
        ollama.add("hf.co/acme/Tiny-GGUF/Q8_0", tiny_gguf(name="hub"))
        ollama.add("registry.ollama.ai/library/llava/7b", tiny_gguf(name="sees"), tiny_gguf(projection=True))
        ollama.add("registry.ollama.ai/library/safe/1b", b"these are no tensors of GGUF")
        half = ollama.add("registry.ollama.ai/library/half/1b", tiny_gguf(name="half"))
        half.write_bytes(half.read_bytes()[:-1])
        rows = [(row.name, row.sha256) for row in scan_here(kawai) if row.tool == "ollama"]
        assert sorted(rows) == sorted(
            [
                ("hf.co/acme/Tiny-GGUF:Q8_0", digest(tiny_gguf(name="hub"))),
                ("llama3.2:1b", digest(data)),
                ("llama3.2:latest", digest(data)),
                ("llava:7b", digest(tiny_gguf(name="sees"))),
                ("llava:7b", digest(tiny_gguf(projection=True))),
                ("me/own:q8", digest(tiny_gguf(name="own"))),
            ]
        )

    def test_what_makes_no_sense_is_passed_over(self, kawai: Program, trees: Trees) -> None:
        layer = {"mediaType": "application/vnd.ollama.image.model", "size": 3, "digest": "sha256:../../../x"}
        for number, bad in enumerate(
            [
                "",
                "no JSON",
                "[]",
                {"layers": 7},
                {"layers": [layer]},
                {"layers": [{}]},
            ]
        ):
            trees.ollama.manifest(f"registry.ollama.ai/library/bad/{number}", bad)
        good = (trees.ollama.root / "manifests/registry.ollama.ai/library/llama3.2/1b").read_text()
        trees.ollama.manifest("registry.ollama.ai/library/large/1b", good + " " * (1 << 20))
        trees.ollama.manifest("registry.ollama.ai/library/bad/deep/er/x", good)
        os.mkfifo(trees.ollama.root / "manifests/registry.ollama.ai/library/bad/fifo")
        folder = trees.studio.root / "models/acme/Odd"
        (folder / "folder.gguf").mkdir(parents=True)
        os.mkfifo(folder / "fifo.gguf")
        (folder / "gone.gguf").symlink_to("nowhere.gguf")
        (folder / "loop.gguf").symlink_to("loop.gguf")
        (folder.parent / "loop").symlink_to(folder.parent)
        (folder / "notes.txt").write_text("no model")
        (folder / os.fsdecode(b"\xff.gguf")).write_bytes(tiny_gguf())
        closed = trees.hub.root / "models--closed--Repo"
        closed.mkdir(mode=0)
        ended = kawai.unprivileged("models", "scan", "--json")
        assert (ended.code, ended.err, len(json.loads(ended.out))) == (0, "", 3)

    def test_settings_say_where_else_to_look(self, kawai: Program, trees: Trees, tmp_path: Path) -> None:
        elsewhere = tmp_path / "elsewhere"
        for number, root in enumerate(trees.roots):
            shutil.move(root, elsewhere / str(number))
        assert scan(kawai) == []
        kawai.environ |= {
            "HF_HUB_CACHE": str(elsewhere / "0"),
            "OLLAMA_MODELS": str(elsewhere / "1"),
            "KAWAI_LMSTUDIO_HOME": str(elsewhere / "2"),
        }
        assert [row["tool"] for row in scan(kawai)] == ["huggingface", "lmstudio", "ollama"]

    def test_lm_studio_may_point_elsewhere_and_link_publishers(
        self, kawai: Program, trees: Trees, tmp_path: Path
    ) -> None:
        disk = tmp_path / "disk"
        shutil.move(trees.studio.root / "models/acme", disk / "acme")
        (trees.studio.root / "models/acme").symlink_to(disk / "acme")
        assert [row["name"] for row in scan(kawai) if row["tool"] == "lmstudio"] == [
            "acme/Small-GGUF/Small-F32"
        ]
        shutil.move(trees.studio.root, tmp_path / "moved")
        (tmp_path / ".lmstudio-home-pointer").write_text(f"{tmp_path / 'moved'}\n")
        Studio(tmp_path / ".cache/lm-studio").add("old/Repo/Old.gguf", tiny_gguf(name="old"))
        assert [row["name"] for row in scan(kawai) if row["tool"] == "lmstudio"] == [
            "acme/Small-GGUF/Small-F32",
            "old/Repo/Old",
        ]

    def test_nothing_is_hashed(self, kawai: Program, trees: Trees) -> None:
        big(trees.studio.root / "models/acme/Huge/huge.gguf", 200 * GIB)
        begin = time.monotonic()
        assert 200 * GIB in [row["size"] for row in scan(kawai)]
        assert time.monotonic() - begin < 20, "hashing would take many minutes"

    @pytest.mark.usefixtures("trees")
    def test_adopted_is_told_however_it_was_done(self, kawai: Program) -> None:
        def adopted() -> list[bool]:
            return [row.adopted for row in scan_here(kawai)]

        hub, studio, ollama = (row.path for row in scan_here(kawai))
        assert adopt_here(kawai, studio, copy=True).code == 0
        assert adopted() == [False, True, False]
        copied = store(kawai) / "local/hub/hub.gguf"  # of the very digest that the hub's cache names
        copied.parent.mkdir(parents=True)
        shutil.copy(hub, copied)
        workspace(kawai).models.reindex()
        assert not adopted()[0], "nobody knows what is in it"
        assert kawai("models", "verify", "hub").code == 0
        assert adopt_here(kawai, ollama).code == 0
        assert adopted() == [True, True, True]
        (store(kawai) / "local/Small-F32/.kawai/Small-F32.json").unlink()
        (store(kawai) / "local/Small-F32/Small-F32.gguf").unlink()
        workspace(kawai).models.reindex()
        assert not adopted()[1]
        os.link(studio, store(kawai) / "local/linked-by-hand.gguf")
        workspace(kawai).models.reindex()
        assert adopted()[1]
        assert kawai("models", "rm", "llama3.2-1b").code == 0
        assert adopted() == [True, True, False]


class TestAdopt:
    @pytest.mark.parametrize("how", ["--link", "--copy", None])
    def test_every_foreign_file_stays_as_it_is(self, kawai: Program, trees: Trees, how: str | None) -> None:
        before, rows = facts(*trees.roots), scan(kawai)
        ended = adopt(kawai, *(row["path"] for row in rows), *([how] if how else []))
        names = ["Tiny-Q8_0", "Small-F32", "llama3.2-1b"]
        assert (ended.code, ended.err) == (0, "")
        assert finals(ended) == [(name, "downloaded") for name in names]
        for row, name in zip(rows, names, strict=True):
            ours = store(kawai) / f"local/{name}/{name}.gguf"
            assert ours.read_bytes() == Path(row["path"]).read_bytes()
            assert how is None or ours.samefile(row["path"]) == (how == "--link")
        assert facts(*trees.roots) == before
        assert all(row["adopted"] for row in scan(kawai))
        listed = json.loads(kawai("models", "list", "--json").out)["data"]
        assert {(row["id"], row["validated"], row["owned_by"]) for row in listed} == {
            (name, True, "local") for name in names
        }

    def test_foreign_files_outlive_what_was_adopted(self, kawai: Program, trees: Trees) -> None:
        before = facts(*trees.roots)
        adopt(kawai, trees.studio.root, "--link")
        assert kawai("models", "verify").code == 0
        assert kawai("models", "rm", "Small-F32").code == 0
        assert (left(kawai), facts(*trees.roots)) == ([], before)

    def test_events_are_those_of_a_pull(self, kawai: Program, tmp_path: Path) -> None:
        tiny_gguf(tmp_path / "x.gguf")
        events: Any = adopt(kawai, tmp_path / "x.gguf").events
        assert [event["status"] for event in events] == ["resolving", "verifying", "installing", "downloaded"]
        assert [event["seq"] for event in events] == [1, 2, 3, 4]
        assert events[-1] == {
            "status": "downloaded",
            "file": None,
            "completed": SIZE,
            "total": SIZE,
            "rate": None,
            "eta": None,
            "error": None,
            "pull": events[0]["pull"],
            "seq": 4,
            "id": "x",
            "file_completed": None,
            "file_total": None,
            "model_files": ["local/x/x.gguf"],
            "proj_file": None,
            "downloaded": True,
        }
        assert all(event.keys() == events[-1].keys() for event in events)
        assert (events[1]["file"], events[1]["file_total"]) == ("local/x/x.gguf", SIZE)

    def test_for_people(self, kawai: Program, tmp_path: Path) -> None:
        tiny_gguf(tmp_path / "x.gguf")
        where = store(kawai) / "local/x/x.gguf"
        words = ("models", "adopt", str(tmp_path / "x.gguf"))
        first, second = kawai(*words), kawai(*words, "--quiet")
        assert (first.code, first.out) == (0, f"x is installed: {where}\n")
        assert second == Ended(0, f"x is already here: {where}\n", "")
        (tmp_path / "bad.gguf").write_text("<html>")
        bad = kawai("models", "adopt", str(tmp_path / "bad.gguf"))
        assert (bad.code, bad.out) == (7, "")
        assert bad.err.startswith(f"error: {tmp_path / 'bad.gguf'}: a web page")

    def test_the_record_says_all_that_is_known(self, kawai: Program, tmp_path: Path) -> None:
        tiny_gguf(tmp_path / "x.gguf")
        adopt(kawai, tmp_path / "x.gguf", "--id", "mine")
        record = provenance(kawai, "mine")
        ours = store(kawai) / "local/mine/mine.gguf"
        assert (record["id"], record["url"], record["commit"]) == ("mine", None, None)
        assert record["sources"] == [f"file:{tmp_path / 'x.gguf'}"]
        (file,) = record["files"]
        assert (file["sha256"], file["mtime_ns"]) == (digest(tiny_gguf()), ours.stat().st_mtime_ns)
        (store(kawai).parent / "index.sqlite3").unlink()
        assert kawai("models", "index").code == 0
        assert json.loads(kawai("models", "list", "--json").out)["data"][0]["validated"]

    def test_the_real_model(self, kawai: Program, real_model: Path, tmp_path: Path) -> None:
        link = tmp_path / "Smol.gguf"
        link.symlink_to(real_model)
        ended = adopt(kawai, link)
        assert finals(ended) == [("Smol", "downloaded")]
        shown = json.loads(kawai("models", "show", "Smol", "--json").out)
        assert shown["size"] == real_model.stat().st_size
        assert not (store(kawai) / "local/Smol/Smol.gguf").is_symlink()


class TestNames:
    @pytest.mark.parametrize(
        ("words", "name"),
        [
            ("Qwen3-8B-Q8_0", "Qwen3-8B-Q8_0"),
            ("../../etc/passwd", "etc-passwd"),
            ("a\x1b[2J\u202eb", "a-[2J-b"),
            ("x-00001-of-00002", "x"),
            ("x-00001-of-00002-00001-of-00002", "x"),
            ("..", "model"),
            ("", "model"),
            (" two words ", "two words"),
            ("\u00e9" * 200, "\u00e9" * 90),
            ("\ud83e", "model"),
        ],
    )
    def test_any_words_can_name_a_folder(self, words: str, name: str) -> None:
        assert folder_name(words) == name

    def test_a_file_is_called_as_it_was_typed(self, kawai: Program, tmp_path: Path) -> None:
        tiny_gguf(tmp_path / "real.gguf", name="Own name")
        (tmp_path / "typed.gguf").symlink_to("real.gguf")
        assert finals(adopt_here(kawai, tmp_path / "typed.gguf")) == [("typed", "downloaded")]

    def test_a_file_without_a_name_says_its_own(self, kawai: Program, tmp_path: Path) -> None:
        tiny_gguf(tmp_path / "blob", name="Own/name: 7B")
        tiny_gguf(tmp_path / "other", name=None)
        assert finals(adopt_here(kawai, tmp_path / "blob")) == [("Own-name- 7B", "downloaded")]
        assert finals(adopt_here(kawai, tmp_path / "other")) == [("other", "downloaded")]

    @pytest.mark.usefixtures("trees")
    def test_a_blob_of_the_hub_is_called_as_there(self, kawai: Program) -> None:
        blob = Path(scan_here(kawai)[0].path).resolve()
        assert finals(adopt_here(kawai, blob)) == [("Tiny-Q8_0", "downloaded")]

    def test_an_id_that_was_asked_for(self, kawai: Program, tmp_path: Path) -> None:
        one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
        tiny_gguf(one)
        tiny_gguf(two, name="Another, and longer")
        assert finals(adopt_here(kawai, one, model_id="mine")) == [("mine", "downloaded")]
        for words, code, exit_code in (
            ("MINE", "conflict", 5),
            ("local/mine", "different_version", 5),
            ("a/b", "invalid_id", 2),
            ("../x", "invalid_id", 2),
            ("scan", "invalid_id", 2),
            ("x-00001-of-00002", "invalid_id", 2),
            ("x ", "invalid_id", 2),
            ("y" * 150, "invalid_id", 2),
        ):
            ended = adopt_here(kawai, two, model_id=words)
            assert (ended.code, ended.error["code"]) == (exit_code, code), words
        assert left(kawai) == of_model("mine", "mine.gguf")
        both = adopt_here(kawai, one, two, model_id="both")
        assert (both.code, both.error["code"]) == (2, "usage")

    def test_one_name_for_two_models(self, kawai: Program, tmp_path: Path) -> None:
        for folder, name in (("a", "Tiny"), ("b", "Tine"), ("c", "longer than that")):
            (tmp_path / folder).mkdir()
            tiny_gguf(tmp_path / folder / "x.gguf", name=name)
        assert finals(adopt_here(kawai, tmp_path / "a/x.gguf")) == [("x", "downloaded")]
        same_size = adopt_here(kawai, tmp_path / "b/x.gguf")
        last: Any = same_size.events[-1]
        assert (same_size.code, last["error"]["code"]) == (5, "different_version")
        assert "--id" in last["error"]["hint"]
        other = adopt_here(kawai, tmp_path / "c/x.gguf")
        assert (other.code, other.error["code"]) == (5, "different_version")
        assert left(kawai) == of_model("x", "x.gguf")
        assert (store(kawai) / "local/x/x.gguf").read_bytes() == tiny_gguf()
        assert finals(adopt_here(kawai, tmp_path / "c/x.gguf", model_id="y")) == [("y", "downloaded")]


class TestExists:
    def test_the_same_file_or_the_same_bytes(self, kawai: Program, tmp_path: Path) -> None:
        tiny_gguf(tmp_path / "x.gguf")
        tiny_gguf(tmp_path / "again.gguf")
        assert finals(adopt_here(kawai, tmp_path / "x.gguf", copy=True)) == [("x", "downloaded")]
        before = left(kawai)
        for path in (tmp_path / "x.gguf", tmp_path / "again.gguf", store(kawai) / "local/x/x.gguf"):
            ended = adopt_here(kawai, path)
            last: Any = ended.events[-1]
            assert (ended.code, finals(ended)) == (0, [("x", "exists")])
            assert (last["model_files"], last["downloaded"]) == (["local/x/x.gguf"], True)
        assert left(kawai) == before

    def test_a_linked_file_is_known_without_hashing(self, kawai: Program, tmp_path: Path) -> None:
        tiny_gguf(tmp_path / "x.gguf")
        adopt_here(kawai, tmp_path / "x.gguf")
        statuses = [event["status"] for event in adopt_here(kawai, tmp_path / "x.gguf").events]
        assert statuses == ["resolving", "exists"]

    def test_what_lies_in_the_store_and_is_not_listed(self, kawai: Program, tmp_path: Path) -> None:
        tiny_gguf(tmp_path / "y.gguf", name="y")
        adopt_here(kawai, tmp_path / "y.gguf")
        dropped = store(kawai) / "a/x.gguf"
        dropped.parent.mkdir()
        tiny_gguf(dropped)
        ended = adopt_here(kawai, dropped)
        assert (ended.code, ended.error["code"]) == (5, "conflict")
        assert "kawai models index" in ended.error["hint"]
        (store(kawai) / "local/z").mkdir()
        tiny_gguf(store(kawai) / "local/z/z.gguf")
        ended = adopt_here(kawai, tmp_path / "y.gguf", model_id="z")
        assert ended.code == 0, "it is there already, as y"
        tiny_gguf(tmp_path / "z.gguf", name="another z")
        assert adopt_here(kawai, tmp_path / "z.gguf").error["code"] == "conflict"

    def test_also_while_it_is_in_use(self, kawai: Program, tmp_path: Path) -> None:
        tiny_gguf(tmp_path / "x.gguf")
        adopt_here(kawai, tmp_path / "x.gguf", copy=True)
        lock = workspace(kawai).models.use_lock("local/x/x")
        assert lock.acquire(shared=True)
        assert finals(adopt_here(kawai, tmp_path / "x.gguf", copy=True)) == [("x", "exists")]
        lock.release()

    def test_two_at_once(self, kawai: Program, tmp_path: Path) -> None:
        big(tmp_path / "x.gguf", 32 << 20)
        words = ("models", "adopt", str(tmp_path / "x.gguf"), "--copy", "--json")
        both = [kawai.start(*words) for _ in range(2)]
        ended = [Ended(each.wait(60), *each.communicate()) for each in both]
        assert [each.code for each in ended] == [0, 0]
        assert sorted(str(each.events[-1]["status"]) for each in ended) == ["downloaded", "exists"]
        assert left(kawai) == of_model("x", "x.gguf")


def make_shards(folder: Path, stem: str = "s", count: int = 3) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
    for number, path in enumerate(paths):
        tiny_gguf(path, split=(number, count))
    return paths


class TestSets:
    def test_any_shard_stands_for_its_set(self, kawai: Program, tmp_path: Path) -> None:
        shards = make_shards(tmp_path / "set")
        before = facts(tmp_path / "set")
        ended = adopt_here(kawai, shards[1], shards[2], model_id="whole")
        names = [f"whole-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
        assert finals(ended) == [("whole", "downloaded")]
        assert left(kawai) == of_model("whole", *names)
        assert all((store(kawai) / "local/whole" / n).samefile(s) for n, s in zip(names, shards, strict=True))
        assert facts(tmp_path / "set") == before
        assert kawai("models", "verify").code == 0

    def test_shards_that_are_links_to_blobs(self, kawai: Program, trees: Trees) -> None:
        links = [
            trees.hub.add("acme/Set", f"q/s-0000{n + 1}-of-00002.gguf", tiny_gguf(split=(n, 2)))
            for n in (0, 1)
        ]
        assert finals(adopt_here(kawai, links[1].resolve())) == [("s", "downloaded")]
        assert [row.adopted for row in scan_here(kawai) if "Set" in row.name] == [True, True]

    @pytest.mark.parametrize("directory", [True, False])
    def test_a_set_that_lacks_one(self, kawai: Program, tmp_path: Path, directory: bool) -> None:  # noqa: FBT001
        shards = make_shards(tmp_path / "set")
        shards[1].unlink()
        ended = adopt_here(kawai, tmp_path / "set" if directory else shards[0])
        assert (ended.code, ended.error["code"]) == (7, "incomplete_model")
        assert str(shards[1]) in ended.error["message"]
        assert not store(kawai).exists()

    def test_shards_that_are_not_what_they_say(self, kawai: Program, tmp_path: Path) -> None:
        shards = make_shards(tmp_path / "set")
        shutil.copy(shards[0], shards[1])
        shutil.copy(shards[0], tmp_path / "lone.gguf")
        for path, words in ((shards[0], "not the shard"), (tmp_path / "lone.gguf", "does not say which")):
            ended = adopt_here(kawai, path)
            assert (ended.code, ended.error["code"]) == (7, "incomplete_model")
            assert words in ended.error["message"]

    def test_a_projection_goes_with_the_one_model(self, kawai: Program, tmp_path: Path) -> None:
        model, projection, other = tmp_path / "x.gguf", tmp_path / "mmproj-F16.gguf", tmp_path / "o.gguf"
        tiny_gguf(model)
        tiny_gguf(other, name="Another model")
        tiny_gguf(projection, projection=True)
        ended = adopt_here(kawai, projection, model)
        last: Any = ended.events[-1]
        assert (last["id"], last["proj_file"]) == ("x", "local/x/mmproj-x.gguf")
        assert left(kawai) == of_model("x", "mmproj-x.gguf", "x.gguf")
        assert (
            finals(adopt_here(kawai, model))
            == finals(adopt_here(kawai, model, projection))
            == [("x", "exists")]
        )
        alone = adopt_here(kawai, projection)
        assert (alone.code, alone.error["code"]) == (7, "not_a_model")
        many = adopt_here(kawai, model, other, projection)
        assert (many.code, many.error["code"]) == (2, "invalid_request")

    def test_a_directory_with_its_only_projections(self, kawai: Program, tmp_path: Path) -> None:
        top = tmp_path / "top"
        for folder, projections in (("one", 1), ("two", 2), ("none", 0)):
            (top / folder).mkdir(parents=True)
            tiny_gguf(top / folder / f"{folder}.gguf", name=folder)
            for number in range(projections):
                tiny_gguf(top / folder / f"mmproj-{number}.gguf", projection=True, name=f"{folder}{number}")
        (top / "one/.hidden.gguf").write_text("hidden")
        (top / "one/half.gguf.part").write_text("half")
        (top / "linked").symlink_to(top / "one")
        before = facts(top)
        ended = adopt_here(kawai, top)
        assert finals(ended) == [("one", "downloaded"), ("none", "downloaded"), ("two", "downloaded")]
        found = {e["id"]: e["proj_file"] for e in ended.events if e["status"] == "downloaded"}
        assert found == {"none": None, "one": "local/one/mmproj-one.gguf", "two": None}
        assert [event["seq"] for event in ended.events] == list(range(1, len(ended.events) + 1))
        assert facts(top) == before
        (tmp_path / "only").mkdir()
        tiny_gguf(tmp_path / "only/mmproj.gguf", projection=True)
        assert adopt_here(kawai, tmp_path / "only").error["code"] == "not_a_model"

    def test_whole_trees_of_tools(self, kawai: Program, trees: Trees) -> None:
        sees, eye = tiny_gguf(name="sees"), tiny_gguf(projection=True)
        trees.ollama.add("registry.ollama.ai/library/llava/7b", sees, eye)
        before = facts(*trees.roots)
        ended = adopt_here(kawai, *trees.roots)
        assert sorted(finals(ended)) == sorted(
            (name, "downloaded") for name in ("Tiny-Q8_0", "llama3.2-1b", "llava-7b", "Small-F32")
        )
        found = {e["id"]: e["proj_file"] for e in ended.events if e["status"] == "downloaded"}
        assert found["llava-7b"] == "local/llava-7b/mmproj-llava-7b.gguf"
        assert found["llama3.2-1b"] is None
        assert facts(*trees.roots) == before
        home = Path(kawai.environ["KAWAI_HOME"]).parent
        assert {status for _, status in finals(adopt_here(kawai, home / ".ollama"))} == {"exists"}

    def test_a_directory_that_holds_the_store_too(self, kawai: Program, tmp_path: Path) -> None:
        one, deep = tmp_path / "one", tmp_path / "one" / "/".join("d" * 600)
        deep.mkdir(parents=True)
        tiny_gguf(deep / "x.gguf")
        (store(kawai) / "a").mkdir(parents=True)
        tiny_gguf(store(kawai) / "a/dropped.gguf", name="not listed yet")
        assert finals(adopt_here(kawai, tmp_path)) == [("x", "downloaded")]
        assert finals(adopt_here(kawai, one)) == [("x", "exists")]

    def test_one_that_fails_keeps_no_other_from_being_tried(self, kawai: Program, tmp_path: Path) -> None:
        for folder, name in (("a", "Tiny"), ("b", "Tine"), ("c", "Tony")):
            (tmp_path / folder).mkdir()
            tiny_gguf(tmp_path / folder / ("y.gguf" if folder == "c" else "x.gguf"), name=name)
        ended = adopt(kawai, *(tmp_path / folder for folder in "abc"))
        assert finals(ended) == [("x", "downloaded"), ("x", "failed"), ("y", "downloaded")]
        assert (ended.code, ended.err) == (5, "")
        people = kawai("models", "adopt", *(str(tmp_path / folder) for folder in "abc"))
        assert [line.partition(":")[0] for line in people.out.splitlines()] == [
            "x is already here",
            "y is already here",
        ]
        assert people.code == 5


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def _loop_of_links(path: Path) -> None:
    path.symlink_to(path.name)


def _loop_of_directories(path: Path) -> None:
    (path / "deep").mkdir(parents=True)
    tiny_gguf(path / "good.gguf")
    (path / "deep/up").symlink_to(path)


def _loop_within(path: Path) -> None:
    path.mkdir()
    tiny_gguf(path / "good.gguf")
    (path / "x").symlink_to("x")


def _fifo_within(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / "x.gguf")


def _bad_within(path: Path) -> None:
    path.mkdir()
    tiny_gguf(path / "good.gguf")
    (path / "x.gguf").write_bytes(b"GGUF cut short")


def _nothing(_: Path) -> None:
    pass


def _empty(path: Path) -> None:
    path.mkdir()


def _unreadable(path: Path) -> None:
    tiny_gguf(path)
    path.chmod(0)


def _cut(path: Path) -> None:
    path.write_bytes(tiny_gguf()[:-1])


class TestRefusals:
    @pytest.mark.parametrize(
        ("make", "exit_code", "code"),
        [
            (_fifo, 2, "invalid_request"),
            (_socket, 2, "invalid_request"),
            (_loop_of_links, 2, "invalid_request"),
            (_loop_of_directories, 2, "invalid_request"),
            (_loop_within, 2, "invalid_request"),
            (_fifo_within, 2, "invalid_request"),
            (_bad_within, 7, "malformed_gguf"),
            (_empty, 3, "not_found"),
            (_nothing, 3, "not_found"),
            (_unreadable, 4, "not_allowed"),
            (_cut, 7, "malformed_gguf"),
            (lambda path: path.write_bytes(b""), 7, "malformed_gguf"),
            (lambda path: path.write_text("<!doctype html>"), 7, "not_a_model"),
            (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1"), 7, "not_a_model"),
        ],
    )
    def test_what_cannot_be_adopted(
        self, kawai: Program, tmp_path: Path, make: Callable[[Path], object], exit_code: int, code: str
    ) -> None:
        make(tmp_path / "p.gguf")
        tiny_gguf(tmp_path / "fine.gguf")
        words = [str(tmp_path / "fine.gguf"), str(tmp_path / "p.gguf")]
        ended = kawai.unprivileged("models", "adopt", *words, "--json")
        assert (ended.code, ended.out, ended.error["code"]) == (exit_code, "", code)
        assert "p.gguf" in ended.error["message"]
        assert not store(kawai).exists(), "nothing is adopted where something is refused"

    def test_a_device(self, kawai: Program) -> None:
        ended = adopt(kawai, "/dev/zero")
        assert (ended.code, ended.error["message"]) == (2, "/dev/zero is a device, not a file")

    def test_a_name_that_is_no_text(self, kawai: Program, tmp_path: Path) -> None:
        path = tmp_path / os.fsdecode(b"\xff.gguf")
        tiny_gguf(path)
        assert finals(adopt(kawai, path)) == [("model", "downloaded")]
        ended = adopt(kawai, tmp_path / os.fsdecode(b"\xfe.gguf"))
        assert (ended.code, "\\xfe.gguf" in ended.error["message"]) == (3, True)

    def test_both_ways_at_once(self, kawai: Program, tmp_path: Path) -> None:
        tiny_gguf(tmp_path / "x.gguf")
        ended = adopt(kawai, tmp_path / "x.gguf", "--link", "--copy")
        assert (ended.code, ended.error["code"]) == (2, "usage")

    @pytest.mark.parametrize("tool", ["hub", "ollama"])
    def test_a_blob_that_is_not_what_its_name_says(self, kawai: Program, trees: Trees, tool: str) -> None:
        row = scan(kawai)[0 if tool == "hub" else 2]
        data = bytearray(Path(row["path"]).read_bytes())
        data[-1] ^= 1
        Path(row["path"]).resolve().write_bytes(data)
        before = facts(*trees.roots)
        for how in ("--link", "--copy"):
            ended = adopt(kawai, row["path"], how)
            last: Any = ended.events[-1]
            assert (ended.code, last["error"]["code"]) == (7, "digest_mismatch")
            assert (left(kawai), facts(*trees.roots)) == ([], before)

    def test_a_copy_that_would_not_fit(self, kawai: Program, tmp_path: Path) -> None:
        big(tmp_path / "x.gguf", shutil.disk_usage(tmp_path).free + GIB)
        ended = adopt(kawai, tmp_path / "x.gguf", "--copy")
        last: Any = ended.events[-1]
        assert (ended.code, last["error"]["code"]) == (8, "no_space")
        assert left(kawai) == []

    def test_one_in_use(self, kawai: Program, tmp_path: Path) -> None:
        tiny_gguf(tmp_path / "x.gguf")
        lock = Workspace(Settings(home=Path(kawai.environ["KAWAI_HOME"]))).models.use_lock("local/x/x")
        assert lock.acquire()
        ended = adopt(kawai, tmp_path / "x.gguf")
        last: Any = ended.events[-1]
        assert (ended.code, last["error"]["code"]) == (5, "in_use")
        lock.release()
        assert adopt(kawai, tmp_path / "x.gguf").code == 0


def other_disk(tmp_path: Path) -> Path:
    """A directory on another file system than the test's."""
    found = Path("/dev/shm")  # noqa: S108 - another disk is what it is for
    if not found.is_dir() or found.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system in /dev/shm")
    return found / f"kawai-{os.getpid()}-{tmp_path.name}"


@pytest.fixture
def abroad(tmp_path: Path) -> Iterator[Path]:
    folder = other_disk(tmp_path)
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


class TestDisks:
    def test_across_file_systems_only_a_copy_is_possible(self, kawai: Program, abroad: Path) -> None:
        tiny_gguf(abroad / "x.gguf")
        before = facts(abroad)
        refused = adopt(kawai, abroad / "x.gguf", "--link")
        assert (refused.code, refused.error["code"]) == (2, "invalid_request")
        assert "another file system" in refused.error["message"]
        assert "--copy" in refused.error["hint"]
        assert left(kawai) == []
        assert finals(adopt(kawai, abroad / "x.gguf")) == [("x", "downloaded")]
        assert finals(adopt(kawai, abroad / "x.gguf", "--copy")) == [("x", "exists")]
        assert facts(abroad) == before

    def test_a_disk_that_fills_up_leaves_nothing(self, kawai: Program, tmp_path: Path) -> None:
        size = 8 << 20
        big(tmp_path / "x.gguf", size)
        limited = f'ulimit -f {size // 2048}; exec "$0" "$@"'  # blocks of 1 KiB: half of the file
        words = [*KAWAI, "models", "adopt", str(tmp_path / "x.gguf"), "--copy", "--json"]
        done = subprocess.run(
            ["bash", "-c", limited, *words],
            env=kawai.environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 8, done
        assert left(kawai) == []
        assert adopt(kawai, tmp_path / "x.gguf", "--copy").code == 0


class TestWays:
    """How bytes come, where the file system must be made to refuse or to share."""

    @pytest.mark.parametrize("copy", [True, False])
    def test_a_reflink_is_hashed_and_no_other_name(
        self,
        kawai: Program,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        copy: bool,  # noqa: FBT001
    ) -> None:
        def clone(target: int, request: int, source: int) -> int:
            assert request == 0x40049409, "FICLONE of linux/fs.h"
            return os.sendfile(target, source, 0, os.fstat(source).st_size)

        tiny_gguf(tmp_path / "x.gguf")
        monkeypatch.setattr("fcntl.ioctl", clone)
        monkeypatch.setattr("os.link", _refuse)
        assert finals(adopt_here(kawai, tmp_path / "x.gguf", copy=copy)) == [("x", "downloaded")]
        assert (tmp_path / "x.gguf").stat().st_nlink == 1
        assert provenance(kawai, "x")["files"][0]["sha256"] == digest(tiny_gguf())

    def test_where_links_are_refused(
        self, kawai: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As Linux refuses them of files that one may not write (fs.protected_hardlinks)."""
        tiny_gguf(tmp_path / "x.gguf")
        monkeypatch.setattr("os.link", _refuse)
        monkeypatch.setattr("fcntl.ioctl", _refuse)
        ended = adopt_here(kawai, tmp_path / "x.gguf")
        last: Any = ended.events[-1]
        assert (ended.code, last["error"]["code"]) == (2, "invalid_request")
        assert (last["error"]["hint"], left(kawai)) == ("--copy takes a copy of its bytes", [])
        (job,) = workspace(kawai).adopter.jobs([str(tmp_path / "x.gguf")], Mode.ANY, None)
        pull = Pulls().start(job)
        pull.join(30)
        assert pull.newest().status is Status.DOWNLOADED
        assert (tmp_path / "x.gguf").stat().st_nlink == 1

    def test_room_for_all_is_looked_for_before_the_first(
        self, kawai: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shards = make_shards(tmp_path)
        least = sum(path.stat().st_size for path in shards) - 1
        monkeypatch.setattr("kawai_tools.models.taking.free_space", lambda _: least)
        ended = adopt_here(kawai, shards[0], copy=True)
        last: Any = ended.events[-1]
        assert (ended.code, last["error"]["code"], left(kawai)) == (8, "no_space", [])
        assert f"{least + 1:,}" in last["error"]["message"]

    def test_what_a_killed_one_left_is_cleared_first(
        self, kawai: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, link, seen = tiny_path(tmp_path / "x.gguf"), os.link, []
        partial = workspace(kawai).layout.partial("local/x/x")
        partial.mkdir(parents=True)
        (partial / "x.gguf.old.partial").write_bytes(b"half")

        def watch(source: Path, target: Path) -> None:
            seen.append(sorted(each.name for each in partial.iterdir()))
            link(source, target)

        monkeypatch.setattr("os.link", watch)
        assert finals(adopt_here(kawai, path)) == [("x", "downloaded")]
        assert seen == [["claim.json"]]

    def test_what_is_no_file_is_not_even_opened(
        self, kawai: Program, trees: Trees, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """To open a device may be to make it act."""
        odd = [tmp_path / "x.gguf", trees.ollama.root / "manifests/registry.ollama.ai/library/bad/fifo"]
        odd[1].parent.mkdir()
        opened: list[str] = []
        real = os.open

        def watch(path: Any, *args: Any, **more: Any) -> int:  # noqa: ANN401 - as os.open
            opened.append(str(path))
            return real(path, *args, **more)

        for path in odd:
            os.mkfifo(path)
        monkeypatch.setattr("os.open", watch)
        assert adopt_here(kawai, odd[0]).code == 2
        assert len(scan_here(kawai)) == 3
        assert opened
        assert not {str(path) for path in odd} & set(opened)

    def test_another_file_in_its_place(
        self, kawai: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, link = tiny_path(tmp_path / "x.gguf"), os.link

        def swap(source: Path, target: Path) -> None:
            tiny_path(tmp_path / "new").replace(source)
            link(source, target)

        monkeypatch.setattr("os.link", swap)
        ended = adopt_here(kawai, path)
        last: Any = ended.events[-1]
        assert (ended.code, last["error"]["code"], left(kawai)) == (5, "conflict", [])


def tiny_path(path: Path) -> Path:
    tiny_gguf(path)
    return path


def _refuse(*_: object, **__: object) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


class TestInterruption:
    """A file of 2 GiB takes seconds to hash, and no room."""

    @staticmethod
    def _begun(process: subprocess.Popen[str]) -> None:
        assert process.stdout
        for line in process.stdout:
            if json.loads(line)["completed"]:
                return
        raise AssertionError("it was over before it could be broken off")

    @pytest.mark.parametrize("how", ["--link", "--copy"])
    def test_ctrl_c_leaves_nothing(self, kawai: Program, tmp_path: Path, how: str) -> None:
        path = big(tmp_path / "x.gguf", 2 * GIB)
        before = facts(path)
        with kawai.start("models", "adopt", str(path), how, "--json") as process:
            self._begun(process)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        assert (process.returncode, err) == (130, "")
        assert json.loads(out.splitlines()[-1])["status"] == "cancelled"
        assert (left(kawai), facts(path)) == ([], before)

    def test_one_of_several(self, kawai: Program, tmp_path: Path) -> None:
        big(tmp_path / "d/a.gguf", 2 * GIB)
        tiny_gguf(tmp_path / "d/b.gguf", name="not begun")
        with kawai.start("models", "adopt", str(tmp_path / "d"), "--json") as process:
            self._begun(process)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=30)
        assert process.returncode == 130
        assert json.loads(out.splitlines()[-1])["id"] == "a"
        assert left(kawai) == []

    def test_kill_leaves_nothing_that_counts(self, kawai: Program, tmp_path: Path) -> None:
        path = big(tmp_path / "x.gguf", 2 * GIB)
        with kawai.start("models", "adopt", str(path), "--copy", "--json") as process:
            self._begun(process)
            process.kill()
        assert json.loads(kawai("models", "list", "--json").out)["data"] == []
        assert not list(store(kawai).rglob("*.gguf"))
        assert any(store(kawai).rglob("*.partial"))
        tiny_gguf(path)
        assert finals(adopt(kawai, path)) == [("x", "downloaded")]
        assert left(kawai) == of_model("x", "x.gguf")

    @pytest.mark.parametrize("how", ["--link", "--copy"])
    def test_a_file_that_changes_meanwhile(self, kawai: Program, tmp_path: Path, how: str) -> None:
        path = big(tmp_path / "x.gguf", 512 << 20)
        with kawai.start("models", "adopt", str(path), how, "--json") as process:
            self._begun(process)
            with path.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                file.write(b"1")
            out, _ = process.communicate(timeout=60)
        error = json.loads(out.splitlines()[-1])["error"]
        assert (process.returncode, error["code"]) == (5, "conflict")
        assert "changed while it was read" in error["message"]
        assert left(kawai) == []
