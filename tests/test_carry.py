"""Models and builds carried from one home to another: whole, held to their digests, and nothing else."""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kawai_tools.carry.manifest import FORMAT
from kawai_tools.carry.source import Source
from kawai_tools.carry.tape import EXECUTABLE
from kawai_tools.errors import KawaiError, from_info
from kawai_tools.events import CarryEvent
from kawai_tools.models.verifying import verify
from kawai_tools.operations.carry import EXPORT, IMPORT, ExportRequest, ImportRequest
from kawai_tools.refs import parse_model
from kawai_tools.settings import Settings
from kawai_tools.transfer.pulls import Pull
from kawai_tools.workspace import Workspace
from tests.bundles import asset_name, host_platform, launcher_bundle
from tests.hub import LocalHub
from tests.inference import brief, soon
from tests.program import KAWAI, Program
from tests.samples import F32, tiny_gguf
from tests.workspaces import Workspaces, pull

SHARDS = 3
FILES = [
    *(f"models/owner/big-GGUF/big-{number:05}-of-00003.gguf" for number in range(1, SHARDS + 1)),
    "models/owner/repo-GGUF/x-Q4_0.gguf",
    "models/owner/repo-GGUF/mmproj-F16.gguf",
    "models/owner/repo-GGUF/x-Q8_0.gguf",
]
"""What the home of ``pulled`` holds, as it is carried: by model, what two of them share with the first."""

IDS = ["big", "x-Q4_0", "x-Q8_0"]
BIG = 24 << 20


@pytest.fixture(scope="module")
def pulled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with three models, pulled once: one of shards, and two that share a projection."""
    home = tmp_path_factory.mktemp("pulled")
    with LocalHub(home / "hub") as hub:
        for number in range(SHARDS):
            name = f"big-{number + 1:05}-of-{SHARDS:05}.gguf"
            hub.add_file("owner/big-GGUF", name, tiny_gguf(split=(number, SHARDS)))
        for quantization in ("Q4_0", "Q8_0"):
            hub.add_file("owner/repo-GGUF", f"x-{quantization}.gguf", tiny_gguf(name=quantization))
        hub.add_file("owner/repo-GGUF", "mmproj-F16.gguf", tiny_gguf(projection=True))
        workspaces = Workspaces(home / "kawai", hub.endpoint)
        for source in ("owner/big-GGUF", "owner/repo-GGUF:Q4_0", "owner/repo-GGUF:Q8_0"):
            assert pull(workspaces(), source)[-1].status == "downloaded"
        workspaces.close()
    return home / "kawai"


@pytest.fixture(scope="module")
def archive(pulled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of that home."""
    made = tmp_path_factory.mktemp("archive") / "export.tar"
    assert export(pulled, made).status == "exported"
    return made


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A home that does not exist yet."""
    return tmp_path / "other"


def space(home: Path) -> Workspace:
    return Workspace(Settings(home=home, offline=True))


def export(home: Path, archive: Path, *models: str, libs: bool = False) -> CarryEvent:
    return _ended(EXPORT.run(space(home), ExportRequest(str(archive), list(models), libs)))


def import_(home: Path, archive: Path) -> CarryEvent:
    return _ended(IMPORT.run(space(home), ImportRequest(str(archive))))


def _ended(feed: object) -> CarryEvent:
    """The last event; what failed is raised."""
    assert isinstance(feed, Pull)
    last = [event for event in feed.follow() if isinstance(event, CarryEvent)][-1]
    if last.error is not None:
        raise from_info(last.error)
    return last


def shown(home: Path) -> dict[str, dict[str, Any]]:
    """All that is known of each model, but for what is of the place and the hour."""
    store = space(home).models
    found = {row.id: msgspec.to_builtins(store.show(parse_model(row.id))) for row in store.rows()}
    for each in found.values():
        for key in ("created", "modified", "last_used"):
            del each[key]
        del each["provenance"]["verified_at"]
    return found


def tree(folder: Path) -> dict[str, bytes | str]:
    """What lies below a folder: bytes of files, targets of links; not locks and what is rebuilt."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_file() and path.suffix != ".lock" and "sqlite" not in name and "logs/" not in name:
            found[name] = path.read_bytes()
    return found


def drop(home: Path, path: str, **header: Any) -> Path:  # noqa: ANN401 - as tiny_gguf takes them
    place = home / "models" / path
    place.parent.mkdir(parents=True, exist_ok=True)
    tiny_gguf(place, **header)
    return place


def drop_big(home: Path, name: str = "Big-F32", size: int = BIG) -> Path:
    place = drop(home, f"acme/{name}/{name}.gguf", tensors=(("token_embd.weight", (size // 4,), F32),))
    data = bytearray(place.read_bytes())
    data[-size:] = random.Random(name).randbytes(size)  # noqa: S311 - the same bytes each time
    place.write_bytes(data)
    space(home).models.reindex()
    return place


def flip(path: Path, at: int) -> None:
    """Change a bit of a file, and not its time."""
    times, data = path.stat(), bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


# there and back


def test_what_is_carried_is_what_was_there(pulled: Path, archive: Path, other: Path, kawai: Program) -> None:
    with tarfile.open(archive) as tape:
        members = tape.getmembers()
        manifest = json.load(tape.extractfile("manifest.json"))  # type: ignore[arg-type]
        for member, file in zip(members[1:], manifest["files"], strict=True):
            data = tape.extractfile(member)
            assert data is not None
            digest = hashlib.sha256(data.read()).hexdigest()
            assert file == {"path": member.name, "size": member.size, "sha256": digest}
    assert [member.name for member in members] == ["manifest.json", *FILES]
    assert {(member.type, member.mode, member.mtime, member.uid) for member in members} == {
        (tarfile.REGTYPE, 0o644, 0, 0)
    }
    assert {"format", "version", "files"} <= manifest.keys()
    ended = kawai("--offline", "--home", str(other), "import", str(archive))
    assert (ended.code, ended.out.count(" is installed: ")) == (0, len(IDS))
    assert str(other / FILES[3]) in ended.out
    assert shown(other) == shown(pulled)
    assert {each["validated"] for each in shown(other).values()} == {True}
    for path in FILES:
        assert (other / path).read_bytes() == (pulled / path).read_bytes()
    verified = kawai("--home", str(other), "models", "verify", "--json")
    assert (verified.code, verified.out.count('"verified"')) == (0, len(IDS))


def test_again_nothing_is_done(archive: Path, other: Path) -> None:
    first = import_(other, archive)
    assert (first.status, first.models, first.libs) == ("imported", IDS, [])
    before = tree(other)
    again = import_(other, archive)
    assert (again.status, again.completed) == ("exists", again.total)
    assert tree(other) == before


def test_the_same_export_is_the_same_bytes(pulled: Path, archive: Path, tmp_path: Path) -> None:
    assert export(pulled, tmp_path / "again.tar").status == "exported"
    assert (tmp_path / "again.tar").read_bytes() == archive.read_bytes()


def test_a_source_that_was_pulled_there_needs_no_network_here(archive: Path, other: Path) -> None:
    import_(other, archive)
    workspaces = Workspaces(other, "http://127.0.0.1:9")
    assert pull(workspaces(offline=True), "owner/repo-GGUF:Q8_0")[-1].status == "exists"
    workspaces.close()


def test_through_a_pipe(pulled: Path, other: Path, kawai: Program) -> None:
    command = f'"$0" -m kawai_tools --home "{pulled}" export - x-Q8_0 | "$0" -m kawai_tools import - --json'
    environ = kawai.environ | {"KAWAI_HOME": str(other)}
    done = subprocess.run(
        ["sh", "-c", command, sys.executable], env=environ, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1])["status"] == "imported"
    assert "exported 1 model" in done.stderr
    assert list(shown(other)) == ["x-Q8_0"]
    assert shown(other)["x-Q8_0"]["projection"]


def test_what_makes_no_sense_is_refused(pulled: Path, kawai: Program) -> None:
    home = ("--home", str(pulled))
    for args in (("export", "-", "--json"), ("export",), ("import",)):
        ended = kawai(*home, *args)
        assert (ended.code, ended.out) == (2, "")
    assert kawai.on_terminal(*home, "export", "-").code == 2
    assert kawai.on_terminal(*home, "import", "-").code == 2


def test_no_module_of_a_network_is_loaded(pulled: Path, tmp_path: Path, kawai: Program) -> None:
    made = tmp_path / "export.tar"
    loaded = set()
    for args in (("--home", str(pulled), "export", str(made)), ("import", str(made))):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "kawai_tools", *args],
            env=kawai.environ,
            capture_output=True,
            text=True,
            check=True,
        )
        loaded |= {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "kawai_tools.carry.importing" in loaded
    assert loaded & {"socket", "_socket", "ssl", "http.client", "asyncio", "rich"} == set()


def test_a_model_without_digests_is_carried_and_stays_unverified(tmp_path: Path, other: Path) -> None:
    home = tmp_path / "home"
    drop(home, "acme/Tiny/Tiny-Q8_0.gguf")
    space(home).models.reindex()
    export(home, tmp_path / "export.tar")
    import_(other, tmp_path / "export.tar")
    (model,) = shown(other).values()
    assert (model["validated"], model["provenance"]["url"]) == (False, None)
    assert model["files"][0]["sha256"] == hashlib.sha256(tiny_gguf()).hexdigest()


def test_an_id_that_another_model_has_here(archive: Path, other: Path) -> None:
    drop(other, "acme/other/big.gguf")
    space(other).models.reindex()
    assert import_(other, archive).models == ["owner/big", "x-Q4_0", "x-Q8_0"]
    assert sorted(shown(other)) == ["big", "owner/big", "x-Q4_0", "x-Q8_0"]


def test_files_that_are_here_are_not_read_again(pulled: Path, archive: Path, other: Path) -> None:
    """Those that nobody has recorded are hashed; bytes of the archive that are not needed may be anything."""
    for path in FILES[3:5]:
        (other / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pulled / path, other / path)
    damaged = other.with_name("damaged.tar")
    shutil.copy(archive, damaged)
    with tarfile.open(damaged) as tape:
        flip(damaged, tape.getmember(FILES[3]).offset_data + 400)
    assert import_(other, damaged).status == "imported"
    assert shown(other) == shown(pulled)


# what stands in the way of an export


def test_an_export_over_something(pulled: Path, tmp_path: Path, kawai: Program) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "folder", "link", "/"):
        with pytest.raises(KawaiError) as caught:
            export(pulled, tmp_path / name)
        assert (caught.value.code, caught.value.exit_code) == ("conflict", 5)
    assert kawai("--home", str(pulled), "export", str(tmp_path / "file")).code == 5
    assert (tmp_path / "file").read_text() == "mine"
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".partial"]


def test_a_file_that_appears_meanwhile_is_not_written_over(pulled: Path, tmp_path: Path) -> None:
    job = space(pulled).exporter.job(str(tmp_path / "x.tar"), [], libs=False, pipe=-1)
    target = job.work.__self__._target  # type: ignore[attr-defined]
    begin = target.begin

    def appears(*args: Any) -> bool:  # noqa: ANN401
        (tmp_path / "x.tar").write_text("mine")
        return bool(begin(*args))

    target.begin = appears
    with pytest.raises(KawaiError) as caught:
        _ended(Pull(job).start())
    assert caught.value.code == "conflict"
    assert (tmp_path / "x.tar").read_text() == "mine"


@pytest.mark.parametrize(
    ("file", "models", "code"),
    [
        ("x.tar", ["nothing"], "model_not_found"),
        ("x.tar", ["../x"], "invalid_id"),
        ("no/folder/x.tar", [], "not_found"),
        ("f" * 250, [], "unavailable"),
    ],
)
def test_an_export_of_nothing_or_to_nowhere(
    pulled: Path, tmp_path: Path, file: str, models: list[str], code: str
) -> None:
    with pytest.raises(KawaiError) as caught:
        export(pulled, tmp_path / file, *models)
    assert caught.value.code == code
    assert not list(tmp_path.iterdir())


def test_an_empty_home_and_a_folder_that_cannot_be_written(
    kawai: Program, pulled: Path, tmp_path: Path
) -> None:
    ended = kawai("export", str(tmp_path / "x.tar"), "--libs")
    assert (ended.code, "there is nothing to export" in ended.err) == (3, True)
    (tmp_path / "locked").mkdir(mode=0o500)
    ended = kawai.unprivileged("--home", str(pulled), "export", str(tmp_path / "locked" / "x.tar"))
    assert (ended.code, "Permission denied" in ended.err) == (9, True)


@pytest.fixture
def copied(pulled: Path, tmp_path: Path) -> Path:
    """That home, to be spoiled."""
    return Path(shutil.copytree(pulled, tmp_path / "copied"))


@pytest.mark.parametrize("how", ["gone", "short", "altered"])
def test_a_model_that_is_damaged_is_not_exported(copied: Path, tmp_path: Path, how: str) -> None:
    place = copied / FILES[3]
    if how == "gone":
        place.unlink()
    elif how == "short":
        place.write_bytes(place.read_bytes()[:-1])
    else:
        flip(place, 200)
    with pytest.raises(KawaiError) as caught:
        export(copied, tmp_path / "x.tar")
    assert caught.value.exit_code == 7
    assert str(place) in caught.value.message
    assert how != "altered" or "kawai models verify x-Q4_0" in str(caught.value.hint)
    assert not list(tmp_path.glob("x.tar*"))


@contextlib.contextmanager
def held(path: Path, kind: int) -> Iterator[None]:
    """Hold a lock as another process than kawai's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
        yield


def test_a_model_in_use_is_carried_and_one_that_is_replaced_is_not(copied: Path, tmp_path: Path) -> None:
    lock = copied / "models/owner/big-GGUF/.kawai/big.lock"
    with held(lock, fcntl.LOCK_SH):
        assert export(copied, tmp_path / "x.tar").status == "exported"
    with held(lock, fcntl.LOCK_EX), pytest.raises(KawaiError) as caught:
        export(copied, tmp_path / "y.tar", "big")
    assert caught.value.code == "in_use"


def test_two_exports_to_one_file(pulled: Path, archive: Path, tmp_path: Path) -> None:
    with held(tmp_path / "x.tar.partial", fcntl.LOCK_EX), pytest.raises(KawaiError) as caught:
        export(pulled, tmp_path / "x.tar")
    assert caught.value.code == "in_use"
    running = [
        subprocess.Popen(
            [*KAWAI, "--home", str(pulled), "export", str(tmp_path / "x.tar")], stderr=subprocess.DEVNULL
        )
        for _ in range(2)
    ]
    codes = sorted(each.wait() for each in running)
    assert codes in ([0, 0], [0, 5])
    assert (tmp_path / "x.tar").read_bytes() == archive.read_bytes()
    assert not (tmp_path / "x.tar.partial").exists()


# exports that are gone on with


def test_an_export_goes_on_where_it_was_cut_off(copied: Path, archive: Path, tmp_path: Path) -> None:
    """What is there is not read from the store again: there it may be anything by now."""
    whole = archive.read_bytes()
    with tarfile.open(archive) as tape:
        cut = tape.getmember(FILES[3]).offset_data + 100
    (tmp_path / "x.tar.partial").write_bytes(whole[:cut])
    for path in FILES[:3]:
        flip(copied / path, -1)
    flip(copied / FILES[3], 5)
    assert export(copied, tmp_path / "x.tar").status == "exported"
    assert (tmp_path / "x.tar").read_bytes() == whole


@pytest.mark.parametrize("at", [700, 3000, 5000, -2000])
def test_a_partial_that_was_altered_is_mended(pulled: Path, archive: Path, tmp_path: Path, at: int) -> None:
    partial = tmp_path / "x.tar.partial"
    shutil.copy(archive, partial)
    partial.write_bytes(partial.read_bytes() + b"more than there should be" * 1000)
    flip(partial, at % archive.stat().st_size)
    assert export(pulled, tmp_path / "x.tar").status == "exported"
    assert (tmp_path / "x.tar").read_bytes() == archive.read_bytes()


def test_a_partial_of_something_else_starts_over(pulled: Path, archive: Path, tmp_path: Path) -> None:
    (tmp_path / "x.tar.partial").write_bytes(random.Random(1).randbytes(50_000))  # noqa: S311
    assert export(pulled, tmp_path / "x.tar").status == "exported"
    assert (tmp_path / "x.tar").read_bytes() == archive.read_bytes()


def test_a_finish_that_was_cut_off(pulled: Path, archive: Path, tmp_path: Path) -> None:
    made = tmp_path / "x.tar"
    shutil.copy(archive, made)
    os.link(made, tmp_path / "x.tar.partial")
    with pytest.raises(KawaiError) as caught:
        export(pulled, made, "big")
    assert caught.value.code == "conflict"
    assert made.read_bytes() == archive.read_bytes()
    os.link(made, tmp_path / "x.tar.partial")
    assert export(pulled, made).status == "exported"
    assert [path.name for path in tmp_path.glob("x.tar*")] == ["x.tar"]


def test_an_export_that_is_cancelled_leaves_what_it_has(tmp_path: Path) -> None:
    home, made = tmp_path / "home", tmp_path / "x.tar"
    place = drop_big(home)
    (_,) = [*space(home).models.rows()]
    workspace = space(home)
    record = workspace.models.find(parse_model("Big-F32")).record
    digest = hashlib.sha256(place.read_bytes()).hexdigest()
    files = [msgspec.structs.replace(record.files[0], sha256=digest)]
    workspace.models.amend(record.path, lambda known: msgspec.structs.replace(known, files=files))
    cancelled = Pull(workspace.exporter.job(str(made), [], libs=False, pipe=-1))
    cancelled.cancel()
    assert _ended(cancelled.start()).status == "cancelled"
    had = (tmp_path / "x.tar.partial").stat().st_size
    assert 1 << 20 <= had < BIG
    assert not made.exists()
    assert export(home, made).status == "exported"


def test_a_limit_on_the_size_of_files(pulled: Path, archive: Path, tmp_path: Path, kawai: Program) -> None:
    made = tmp_path / "x.tar"
    script = f'ulimit -f 12; exec "{sys.executable}" -m kawai_tools --home "{pulled}" export "{made}" --json'
    done = subprocess.run(
        ["sh", "-c", script], env=kawai.environ, capture_output=True, text=True, check=False
    )
    assert (done.returncode, json.loads(done.stdout.splitlines()[-1])["error"]["code"]) == (8, "no_space")
    assert (tmp_path / "x.tar.partial").stat().st_size > 1000
    assert export(pulled, made).status == "exported"
    assert made.read_bytes() == archive.read_bytes()


# exports that are not what they should be


Files = list[tuple[tarfile.TarInfo, bytes]]


def _members(archive: Path) -> Files:
    with tarfile.open(archive) as tape:
        return [(each, tape.extractfile(each).read()) for each in tape.getmembers()]  # type: ignore[union-attr]


def _packed(members: Files) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT) as tape:
        for member, content in members:
            tape.addfile(member, io.BytesIO(content))
    return data.getvalue()


def _member(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[Any, Any]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, len(content)
    return member, content


def _manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Files], bytes]:
    """Change the manifest, and nothing else."""

    def alter(members: Files) -> bytes:
        manifest = json.loads(members[0][1])
        change(manifest)
        return _packed([_member("manifest.json", json.dumps(manifest).encode()), *members[1:]])

    return alter


def _moved(path: str) -> Callable[[Files], bytes]:
    """Call the last model's file otherwise, everywhere."""

    def alter(members: Files) -> bytes:
        manifest = json.loads(members[0][1])
        manifest["files"][-1]["path"] = f"models/{path}"
        manifest["models"][-1]["files"][0]["path"] = path
        last = _member(f"models/{path}", members[-1][1])
        return _packed([_member("manifest.json", json.dumps(manifest).encode()), *members[1:-1], last])

    return alter


def _instead(data: bytes, number: int = -1) -> Callable[[Files], bytes]:
    """Put other bytes in the place of a file, with a manifest that says so."""

    def alter(members: Files) -> bytes:
        manifest = json.loads(members[0][1])
        digest = hashlib.sha256(data).hexdigest()
        manifest["files"][number] |= {"size": len(data), "sha256": digest}
        name = manifest["files"][number]["path"]
        members[number + 1 if number >= 0 else number] = _member(name, data)
        # this model alone: those before it would be whole, and so be installed
        manifest["models"] = [each for each in manifest["models"] if name[7:] in str(each["files"])]
        carried = {f"models/{part['path']}" for each in manifest["models"] for part in each["files"]}
        manifest["files"] = [each for each in manifest["files"] if each["path"] in carried]
        kept = [each for each in members[1:] if each[0].name in carried]
        return _packed([_member("manifest.json", json.dumps(manifest).encode()), *kept])

    return alter


def _with(*more: tuple[Any, Any], at: int = 3) -> Callable[[Files], bytes]:
    return lambda members: _packed([*members[:at], *more, *members[at:]])


def _raw(change: Callable[[bytes], bytes]) -> Callable[[Files], bytes]:
    return lambda members: change(_packed(members))


def _renamed(name: str, number: int = 3) -> Callable[[Files], bytes]:
    def alter(members: Files) -> bytes:
        members[number][0].name = name
        return _packed(members)

    return alter


def _only(data: bytes) -> Callable[[Files], bytes]:
    return lambda members: _packed([_member("manifest.json", data), *members[1:]])


def _set(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest.update({key: value})


def _file(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest["files"][0].update({key: value})


def _model(key: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest["models"][0].update({key: value})


BUILD: dict[str, object] = {"version": "b1", "arch": "amd64", "os": "linux", "processor": "cpu"}
SERVER = _member("libraries/linux-amd64-cpu/b1/llama-server", b"#!/bin/sh\n")


def _build(name: str = "llama-server", **more: object) -> Callable[[Files], bytes]:
    """Add a build of one file."""

    def alter(members: Files) -> bytes:
        manifest, content = json.loads(members[0][1]), b"#!/bin/sh\n"
        path = f"libraries/linux-amd64-cpu/{more.get('version', 'b1')}/{name}"
        digest = hashlib.sha256(content).hexdigest()
        manifest["files"].append({"path": path, "size": len(content), "sha256": digest})
        manifest["builds"].append(BUILD | more)
        head = _member("manifest.json", json.dumps(manifest).encode())
        return _packed([head, *members[1:], _member(path, content)])

    return alter


ZEROS = "0" * 64
SAME = ("digest_mismatch",)
ALTERED: dict[str, Callable[[Files], bytes]] = {
    "nothing": lambda _: b"",
    "no archive": lambda _: b"GGUF" * 1000,
    "half a header": _raw(lambda data: data[:300]),
    "cut in the manifest": _raw(lambda data: data[:900]),
    "cut in a file": _raw(lambda data: data[:-12_000]),
    "cut before the end mark": _raw(lambda data: data.rstrip(b"\0") + bytes(600)),
    "more behind the end": _raw(lambda data: data + b"x"),
    "no manifest first": lambda members: _packed([*members[1:], members[0]]),
    "a manifest that is a link": lambda members: _packed(
        [_member("manifest.json", kind=tarfile.SYMTYPE, link="/etc/passwd"), *members[1:]]
    ),
    "not JSON": _only(b"{"),
    "not UTF-8": _only(b'{"format":1,"version":"\xff"}'),
    "deep JSON": _only(b"[" * 200_000),
    "JSON that is deep inside": _only(b'{"format":1,"version":"1","x":' + b"[" * 200_000),
    "a huge manifest": _raw(lambda data: _header("manifest.json", 1 << 40) + data[512:]),
    "a newer format": _manifest(_set("format", FORMAT + 1)),
    "no format": _manifest(_set("format", 0)),
    "no files": _manifest(_set("files", [])),
    "a member renamed": _renamed("models/owner/big-GGUF/other.gguf"),
    "a member called up": _renamed("../../outside.gguf"),
    "a member called by an absolute path": _renamed("/tmp/outside.gguf"),  # noqa: S108 - nothing goes there
    "a member twice": lambda members: _packed([*members[:3], members[2], *members[3:]]),
    "a member more": _with(_member("models/acme/more.gguf", tiny_gguf())),
    "a member more at the end": _with(_member("models/acme/more.gguf", tiny_gguf()), at=99),
    "a member less": lambda members: _packed([*members[:3], *members[4:]]),
    "a symbolic link": lambda members: _packed(
        [*members[:3], _member(members[3][0].name, members[3][1], tarfile.SYMTYPE, "/etc"), *members[4:]]
    ),
    "a device": _with(_member("models/owner/null", kind=tarfile.CHRTYPE)),
    "a folder": _with(_member("models/owner", kind=tarfile.DIRTYPE)),
    "a long name": _with(_member("models/" + "l" * 5000 + ".gguf", b"x")),
    "a header that is damaged": _raw(lambda data: data[:2560].replace(b"ustar", b"USTAR") + data[2560:]),
    "a size that lies": _manifest(_file("size", 7)),
    "a huge size": _manifest(_file("size", 1 << 49)),
    "an absurd size": _manifest(_file("size", 1 << 70)),
    "a size below zero": _manifest(_file("size", -1)),
    "a digest that lies": _manifest(_file("sha256", ZEROS)),
    "no digest": _manifest(_file("sha256", "")),
    "a file up": _moved("../outside.gguf"),
    "a file by an absolute path": _moved("/outside.gguf"),
    "a file among notes": _moved("owner/.kawai/x.gguf"),
    "a file among partials": _moved(".partial/x.gguf"),
    "a file that is no model": _moved("owner/repo-GGUF/x.json"),
    "a file below a file": _moved(f"{FILES[3].removeprefix('models/')}/x.gguf"),
    "a file that differs in case": _moved(FILES[3].removeprefix("models/").replace("x-Q4", "X-q4")),
    "a file of nobody": _manifest(lambda manifest: manifest["models"].pop()),
    "a file that is not there": _manifest(lambda manifest: manifest["files"].pop()),
    "a shard missing": _manifest(lambda manifest: manifest["models"][0]["files"].pop()),
    "a projection as a model": _manifest(
        lambda manifest: manifest["models"].append(
            {"id": "p", "files": [{"path": "owner/repo-GGUF/mmproj-F16.gguf", "role": "weights"}]}
        )
    ),
    "no weights": _manifest(_model("files", [])),
    "an id that is a path": _manifest(_model("id", "../../x")),
    "an id that is a route": _manifest(_model("id", "ps")),
    "an id that commands a terminal": _manifest(_model("id", "x\x1b[2J")),
    "a model twice": _manifest(lambda manifest: manifest["models"].append(manifest["models"][0])),
    "a web page as a model": _instead(b"<!DOCTYPE html><html>" * 100),
    "a model that is cut short": _instead(tiny_gguf(name="Q8_0")[:-9]),
    "a projection for a model": _instead(tiny_gguf(projection=True)),
    "another shard than it is called": _instead(tiny_gguf(split=(2, SHARDS)), 1),
    "a build with a file up": _build("../../../outside"),
    "a build with a file by another spelling": _build("./llama-server"),
    "a build with a link up": _build(links={"out": "../../.."}),
    "a build with a link to a path": _build(links={"out": "/etc/passwd"}),
    "a build with a link to nothing": _build(links={"libx.so": "libx.so.0"}),
    "a build with a link in the place of a file": _build(links={"llama-server": "llama-server"}),
    "a build of no version": _build(version="../b1"),
    "a build of no platform": _build(os="../linux"),
}
"""What must be refused, by what was done to a good export."""


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.fixture(scope="module")
def members(archive: Path) -> Callable[[], Files]:
    """The members of the good export, to be changed."""
    return lambda: _members(archive)


@pytest.mark.parametrize("what", ALTERED)
def test_an_altered_export_installs_nothing(
    members: Callable[[], Files], tmp_path: Path, other: Path, what: str
) -> None:
    (tmp_path / "canary").mkdir()
    (tmp_path / "canary" / "outside.gguf").write_text("alive")
    made = tmp_path / "x.tar"
    made.write_bytes(ALTERED[what](members()))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(KawaiError) as caught:
        import_(other, made)
    assert caught.value.exit_code == 7, caught.value
    assert caught.value.message.startswith(str(made))
    assert what != "a newer format" or "upgrade kawai" in str(caught.value.hint)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if other not in path.parents}
    assert {path: when for path, when in after.items() if path not in {other, tmp_path}} == before
    assert [path for path in other.rglob("*") if path.suffix == ".gguf"] == []
    assert shown(other) == {}


@pytest.mark.parametrize(
    ("head", "read", "words"),
    [
        (lambda: _header("manifest.json", 1 << 40), Source.manifest, "has more than"),
        (
            lambda: _long_name(1 << 40),
            lambda source: source.expect("models/x.gguf", 1),
            "longer than any path",
        ),
    ],
)
def test_a_header_that_claims_too_much_is_not_followed(
    head: Callable[[], bytes], read: Callable[[Source], object], words: str
) -> None:
    reading, writing = os.pipe()
    os.write(writing, head())
    os.close(writing)
    with Source(reading) as source, pytest.raises(KawaiError, match=words):
        read(source)


def _long_name(size: int) -> bytes:
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, size
    return member.tobuf(tarfile.GNU_FORMAT)


def test_files_may_come_in_any_order(members: Callable[[], Files], tmp_path: Path, other: Path) -> None:
    """A model whose projection comes with another one waits for it."""
    head, *files = members()
    manifest = json.loads(head[1])
    order = [5, 2, 0, 3, 4, 1]
    manifest["files"] = [manifest["files"][at] for at in order]
    data = _packed([_member("manifest.json", json.dumps(manifest).encode()), *(files[at] for at in order)])
    (tmp_path / "x.tar").write_bytes(data)
    assert import_(other, tmp_path / "x.tar").status == "imported"
    assert {path: (other / path).read_bytes() for path in FILES} == {
        member.name: content for member, content in files
    }
    assert {each["validated"] for each in shown(other).values()} == {True}
    assert not list(other.glob("models/.partial/*"))


def test_a_model_put_here_by_hand_gets_its_provenance(pulled: Path, archive: Path, other: Path) -> None:
    (other / FILES[0]).parent.mkdir(parents=True)
    for path in FILES[:3]:
        shutil.copy(pulled / path, other / path)
    store = space(other).models
    store.reindex()
    for _ in range(2):  # the first time nobody had promised a digest
        assert [event.status for event in verify(store, None).follow() if event][-1] == "verified"
    assert store.show(parse_model("big")).provenance.url is None
    assert import_(other, archive).status == "imported"
    assert shown(other) == shown(pulled)


def test_an_export_packed_by_another_tar_is_taken(
    members: Callable[[], Files], tmp_path: Path, other: Path
) -> None:
    (tmp_path / "x.tar").write_bytes(_packed(members()) + bytes(10240))
    assert import_(other, tmp_path / "x.tar").status == "imported"


def test_a_flipped_byte_keeps_what_was_whole_before_it(
    archive: Path, tmp_path: Path, other: Path, kawai: Program
) -> None:
    damaged = tmp_path / "damaged.tar"
    shutil.copy(archive, damaged)
    with tarfile.open(damaged) as tape:
        flip(damaged, tape.getmember(FILES[-1]).offset_data + 400)
    ended = kawai("--home", str(other), "import", str(damaged), "--json")
    assert (ended.code, ended.events[-1]["status"]) == (7, "failed")
    assert ended.events[-1]["error"]["code"] == "digest_mismatch"  # type: ignore[index]
    assert list(shown(other)) == ["big", "x-Q4_0"]
    assert import_(other, archive).status == "imported"
    assert list(shown(other)) == IDS


@pytest.mark.parametrize(("name", "code"), [("nothing", "not_found"), (".", "broken_archive")])
def test_what_is_no_file(tmp_path: Path, other: Path, name: str, code: str) -> None:
    with pytest.raises(KawaiError) as caught:
        import_(other, tmp_path / name)
    assert caught.value.code == code


# what stands in the way of an import


@pytest.mark.parametrize("recorded", [True, False])
def test_another_model_at_the_same_place(archive: Path, other: Path, recorded: bool) -> None:  # noqa: FBT001
    drop(other, "owner/repo-GGUF/x-Q8_0.gguf", name="Another")
    if recorded:
        space(other).models.reindex()
    before = tree(other)
    with pytest.raises(KawaiError) as caught:
        import_(other, archive)
    assert (caught.value.code, caught.value.exit_code) == ("different_version", 5)
    assert ("kawai models rm x-Q8_0" in str(caught.value.hint)) == recorded
    assert tree(other) == before


def test_a_model_that_is_loaded_or_pulled(archive: Path, other: Path) -> None:
    with (
        held(other / "models/owner/big-GGUF/.kawai/big.lock", fcntl.LOCK_SH),
        pytest.raises(KawaiError) as caught,
    ):
        import_(other, archive)
    assert caught.value.code == "in_use"
    assert import_(other, archive).status == "imported"


def test_a_disk_that_is_too_small(archive: Path, other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kawai_tools.carry.importing.free_space", lambda _: 1000)
    with pytest.raises(KawaiError) as caught:
        import_(other, archive)
    assert caught.value.code == "no_space"
    assert not other.exists()


def test_two_imports_at_once(archive: Path, other: Path) -> None:
    running = [
        subprocess.Popen([*KAWAI, "--home", str(other), "import", str(archive)], stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    for each in running:
        assert (each.communicate()[1], each.returncode)[1] in {0, 5}
    assert import_(other, archive).status in {"exists", "imported"}
    assert list(shown(other)) == IDS


# imports that are gone on with


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a model that takes a moment."""
    folder = tmp_path_factory.mktemp("big")
    drop_big(folder / "home")
    assert export(folder / "home", folder / "x.tar").status == "exported"
    return folder / "x.tar"


HALF, PIECE = BIG // 2, 1 << 16


def _stopped_half_way(kawai: Program, big: Path) -> None:
    """Import half of an export from a pipe that says no more, then Ctrl-C."""
    process = subprocess.Popen(
        [*KAWAI, "import", "-"], env=kawai.environ, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    whole, sent = big.read_bytes(), HALF
    with process:
        assert process.stdin
        assert process.stderr
        process.stdin.write(whole[:sent])
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(BrokenPipeError):
            while sent < len(whole) - PIECE:  # at its leisure: it hears of the signal between two pieces
                process.stdin.write(whole[sent : sent + PIECE])
                process.stdin.flush()
                sent += PIECE
                time.sleep(0.02)
        said = process.stderr.read().decode()
    assert (process.returncode, "running the same command again goes on" in said) == (130, True), said


def test_an_import_goes_on_where_it_was_stopped(kawai: Program, big: Path, tmp_path: Path) -> None:
    """What has arrived is not read again: there it may be anything by now."""
    home = Path(kawai.environ["KAWAI_HOME"])
    whole = big.read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[:HALF])
    with cut.open("rb") as file:
        ended = subprocess.run(
            ["sh", "-c", f'cat | "{sys.executable}" -m kawai_tools import - --json'],
            env=kawai.environ,
            stdin=file,
            capture_output=True,
            check=False,
        )
    assert (ended.returncode, b"broken_archive" in ended.stdout) == (7, True)
    assert shown(home) == {}
    damaged = tmp_path / "damaged.tar"
    damaged.write_bytes(whole)
    flip(damaged, HALF // 2)
    assert import_(home, damaged).status == "imported"
    assert list(shown(home)) == ["Big-F32"]


def test_what_arrived_and_was_altered_since_arrives_again(kawai: Program, big: Path) -> None:
    home = Path(kawai.environ["KAWAI_HOME"])
    _stopped_half_way(kawai, big)
    (partial,) = home.glob("models/.partial/*/*.partial")
    flip(partial, 3_000_000)
    assert import_(home, big).status == "imported"
    assert space(home).models.rows()[0].id == "Big-F32"


def test_killed_at_any_moment(kawai: Program, big: Path, tmp_path: Path) -> None:
    home, there, made = Path(kawai.environ["KAWAI_HOME"]), big.parent / "home", tmp_path / "x.tar"
    moments = random.Random(2)  # noqa: S311 - the same moments each time
    for command, done in (
        (["--home", str(there), "export", str(made)], made.exists),
        (["--home", str(home), "import", str(big)], lambda: bool(shown(home))),
    ):
        for _ in range(4):
            process = subprocess.Popen(
                [*KAWAI, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            time.sleep(moments.uniform(0.15, 0.4))
            process.kill()
            process.wait()
            if done():
                break
    if not made.exists():
        assert export(there, made).status == "exported"
    assert made.read_bytes() == big.read_bytes()
    assert import_(home, big).status in {"imported", "exists"}
    assert list(shown(home)) == ["Big-F32"]
    assert not list(home.glob("models/.partial/*/*"))


def test_a_kill_before_anything_was_noted_leaves_no_blocks_behind(kawai: Program, big: Path) -> None:
    home, data = Path(kawai.environ["KAWAI_HOME"]), big.read_bytes()
    for _ in range(2):
        with subprocess.Popen(
            [*KAWAI, "--home", str(home), "import", "-"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdin
            process.stdin.write(data[: len(data) // 2])
            process.stdin.flush()
            assert soon(lambda: list(home.glob("models/.partial/*/*.json")) != [])
            assert soon(lambda: _are_written(home))
            process.kill()
    assert len([each for each in home.glob("models/.partial/*/*.partial") if each.stat().st_size > 4096]) == 1
    assert import_(home, big).status == "imported"


def _are_written(home: Path) -> bool:
    return any(each.stat().st_size > 4096 for each in home.glob("models/.partial/*/*.partial"))


# builds


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two builds, the older one active, and one for another machine."""
    folder = tmp_path_factory.mktemp("built")
    with LocalHub(folder / "hub") as hub:
        for tag in ("b1", "b2"):
            packed = launcher_bundle(tag, directory=folder / "shelf")
            hub.add_release(tag, {asset_name(tag, host_platform()): packed})
        foreign = launcher_bundle("b3", "ubuntu-arm64", directory=folder / "shelf")
        hub.add_release("b3", {asset_name("b3", "ubuntu-arm64"): foreign})
        program = Program(folder, {"KAWAI_LIBS_API": hub.libs_api})
        assert program("libs", "pull", "b1").code == 0
        assert program("libs", "pull", "b2", "--no-activate").code == 0
        assert program("libs", "pull", "b3", "--arch", "arm64", "--no-activate").code == 0
    home = folder / "kawai"
    assert export(home, folder / "x.tar", libs=True).libs == ["b3", "b2", "b1"]
    return home


pytestmark_builds = pytest.mark.skipif(host_platform() != "ubuntu-x64", reason="builds of linux/amd64")


@pytestmark_builds
def test_builds_are_carried_tried_and_used(built: Path, other: Path, kawai: Program) -> None:
    ended = kawai("--offline", "--home", str(other), "import", str(built.parent / "x.tar"))
    assert (ended.code, ended.out.splitlines()[-1]) == (0, "active: b1")
    for version, platform in (
        ("b1", "linux-amd64-cpu"),
        ("b2", "linux-amd64-cpu"),
        ("b3", "linux-arm64-cpu"),
    ):
        there, here = (home / "libraries" / platform / version for home in (built, other))
        assert tree(here) == tree(there)
        assert stat.S_IMODE((here / "llama-server").stat().st_mode) == EXECUTABLE
    bundles = space(other).bundles
    assert {each.version: each.probe.ok for each in bundles.all()} == {"b1": True, "b2": True, "b3": None}
    known = {each.version: (each.assets, each.size) for each in space(built).bundles.all()}
    assert {each.version: (each.assets, each.size) for each in bundles.all()} == known
    assert import_(other, built.parent / "x.tar").status == "exists"
    assert not list((other / "libraries" / ".partial").glob("*"))


@pytestmark_builds
def test_a_build_in_use_is_carried_and_the_active_one_stays(built: Path, tmp_path: Path, other: Path) -> None:
    shutil.copytree(built / "libraries", other / "libraries", symlinks=True)
    space(other).bundles.use(space(other).bundles.find("b2", None))
    space(other).bundles.remove(space(other).bundles.find("b1", None))
    place = built / "libraries/linux-amd64-cpu/b1"
    fd = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        assert export(built, tmp_path / "y.tar", libs=True).status == "exported"
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(KawaiError) as caught:
            export(built, tmp_path / "z.tar", libs=True)
        assert caught.value.code == "in_use"
    finally:
        os.close(fd)
    assert import_(other, tmp_path / "y.tar").status == "imported"
    current = space(other).bundles.current()
    assert current is not None
    assert current.version == "b2"
    assert {each.version for each in space(other).bundles.all()} == {"b1", "b2", "b3"}


def test_a_build_that_does_not_work_here_is_installed_and_not_used(
    members: Callable[[], Files], tmp_path: Path, other: Path, kawai: Program
) -> None:
    if host_platform() != "ubuntu-x64":
        pytest.skip("the build is one for linux/amd64")
    pointer = {"platform": "linux-amd64-cpu", "version": "b1"}
    made = tmp_path / "x.tar"
    data = _build(executables=["llama-server"])(members())
    made.write_bytes(data)
    with tarfile.open(made) as tape:
        manifest = json.loads(tape.extractfile("manifest.json").read())  # type: ignore[union-attr]
    manifest["active"] = pointer
    files = _members(made)
    made.write_bytes(_packed([_member("manifest.json", json.dumps(manifest).encode()), *files[1:]]))
    ended = kawai("--home", str(other), "import", str(made))
    assert (ended.code, "it does not work here" in ended.out, "active: none" in ended.out) == (0, True, True)
    assert space(other).bundles.current() is None
    assert list(shown(other)) == IDS


@pytestmark_builds
def test_an_altered_build_leaves_nothing(built: Path, tmp_path: Path, other: Path) -> None:
    damaged = tmp_path / "x.tar"
    shutil.copy(built.parent / "x.tar", damaged)
    with tarfile.open(damaged) as tape:
        flip(damaged, next(each for each in tape if each.name.endswith("llama-server")).offset_data)
    with pytest.raises(KawaiError) as caught:
        import_(other, damaged)
    assert caught.value.code == "digest_mismatch"
    assert space(other).bundles.all() == []
    assert not list((other / "libraries").glob("*/*"))


@pytest.mark.slow
def test_the_real_model_is_carried_and_answers(real_model: Path, tmp_path: Path) -> None:
    there, here = Program(tmp_path / "there"), Program(tmp_path / "here", {"KAWAI_ENGINE": "xllamacpp"})
    folder = Path(there.environ["KAWAI_HOME"]) / "models/local/Real-GGUF"
    folder.mkdir(parents=True)
    here.home.mkdir()
    (folder / real_model.name).symlink_to(real_model)
    assert there("models", "index").code == 0
    assert there("export", str(tmp_path / "x.tar")).code == 0
    assert here("--offline", "import", str(tmp_path / "x.tar")).code == 0
    brief(here, real_model.stem)
    answer = here("--offline", "run", real_model.stem, "Hi")
    assert (answer.code, bool(answer.out.strip())) == (0, True), answer
