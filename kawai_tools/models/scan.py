"""What is on disk: walks the store, and turns what it finds into index entries.

Nothing is hashed, and a header is only read where something is new or was touched. Files that somebody
dropped into the store become models: complete sets of shards, with the one projection of their folder.
"""

import os
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from kawai_tools.errors import BrokenState, Integrity
from kawai_tools.files import make_directory, write_atomically
from kawai_tools.gguf import read_header
from kawai_tools.models.layout import Layout, model_path
from kawai_tools.models.naming import new_id
from kawai_tools.models.records import Entry, Facts, FileRecord, Record, decode_record, entry_of
from kawai_tools.refs import is_projection_name, safe_path, shard_of

MAX_DEPTH = 12


@dataclass
class Found:
    """Size and mtime of every ``.gguf`` file and mtime of every provenance file, by path in the store."""

    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    records: dict[str, int] = field(default_factory=dict)


def walk(store: Path) -> Found:
    """Look at every folder of the store, following no link to a directory."""
    found = Found()
    _walk(str(store), "", found, 0)
    return found


def _walk(directory: str, prefix: str, found: Found, depth: int) -> None:
    try:
        entries = list(os.scandir(directory))
    except (PermissionError, FileNotFoundError):
        return
    for entry in entries:
        name = entry.name
        if name.endswith((".gguf", ".GGUF")) and name[0] != ".":
            if entry.is_file():
                stat = entry.stat()
                found.files[prefix + name] = (stat.st_size, stat.st_mtime_ns)
        elif name == ".kawai":
            _walk_records(entry.path, prefix, found)
        elif name[0] != "." and depth < MAX_DEPTH and entry.is_dir(follow_symlinks=False):
            _walk(entry.path, f"{prefix}{name}/", found, depth + 1)


def _walk_records(directory: str, prefix: str, found: Found) -> None:
    for entry in os.scandir(directory):
        if entry.name.endswith(".json") and entry.name[0] != ".":
            found.records[prefix + entry.name[: -len(".json")]] = entry.stat().st_mtime_ns


def refresh(layout: Layout, known: dict[str, Entry]) -> tuple[list[Entry], set[str]]:
    """Entries that are new or changed, and the paths of those that are gone."""
    found = walk(layout.store)
    changed: list[Entry] = []
    kept: dict[str, Entry] = {}
    for path, mtime in found.records.items():
        before = known.get(path)
        if before is not None and _is_unchanged(before, mtime, found):
            kept[path] = before
            continue
        entry = _read(layout, path, found)
        if entry is not None:
            kept[path] = entry
            changed.append(entry)
    owned = {file.path for entry in kept.values() for file in entry.record.files}
    loose = sorted(set(found.files) - owned)
    for record in _adopt(layout, loose, found, {entry.record.id.casefold() for entry in kept.values()}):
        entry = _written(layout, record)
        kept[record.path] = entry
        changed.append(entry)
    return changed, set(known) - set(kept)


def _is_unchanged(entry: Entry, mtime: int, found: Found) -> bool:
    files, stamps = entry.record.files, entry.stamps
    return (
        entry.present
        and stamps[0] == mtime
        and all(
            found.files.get(file.path) == (file.size, stamp)
            for file, stamp in zip(files, stamps[1:], strict=True)
        )
    )


def _read(layout: Layout, path: str, found: Found) -> Entry | None:
    """A model by its provenance file; one that is unreadable is left to be adopted anew."""
    where = layout.provenance(path)
    try:
        record = decode_record(where.read_bytes(), where)
    except (BrokenState, FileNotFoundError):
        return None
    if record.path != path:
        return None
    whole = all(found.files.get(file.path, (-1, 0))[0] == file.size for file in record.files)
    try:
        if whole:
            return entry_of(layout, record)
    except (Integrity, FileNotFoundError):
        pass
    nothing = Facts(quantization=None, context_length=None, architecture=None)
    return Entry(record=record, facts=nothing, stamps=[0] * (len(record.files) + 1), present=False)


def _adopt(layout: Layout, loose: list[str], found: Found, taken: set[str]) -> Iterator[Record]:
    """Records for the models that nobody recorded yet, in path order."""
    projections: dict[str, list[str]] = defaultdict(list)
    sets: dict[str, list[str]] = {}
    for path in loose:
        if not safe_path(path):
            continue
        kind = _kind(layout, path)
        if kind == "projection":
            projections[path.rpartition("/")[0]].append(path)
        elif kind == "weights":
            sets.setdefault(model_path(path), []).append(path)
    for name, paths in sorted(sets.items()):
        folder, _, stem = name.rpartition("/")
        if [path.rpartition("/")[2] for path in sorted(paths)] != shard_of(
            paths[0].rpartition("/")[2]
        ).names():
            continue
        beside = projections[folder] if len(projections[folder]) == 1 else []
        model_id = new_id(folder.partition("/")[0] or "local", stem, taken)
        taken.add(model_id.casefold())
        files = [_loose_file(path, found, projection=path in beside) for path in [*sorted(paths), *beside]]
        newest = max(found.files[file.path][1] for file in files)
        yield Record(
            id=model_id,
            files=files,
            installed_at=datetime.fromtimestamp(newest // 10**9, UTC),
        )


def _loose_file(path: str, found: Found, *, projection: bool) -> FileRecord:
    return FileRecord(path=path, size=found.files[path][0], role="projection" if projection else "weights")


def _kind(layout: Layout, path: str) -> str | None:
    try:
        header = read_header(layout.file(path))
    except (Integrity, OSError):
        return None
    return "projection" if header.is_projection or is_projection_name(path) else "weights"


def _written(layout: Layout, record: Record) -> Entry:
    write_record(layout, record)
    return entry_of(layout, record)


def write_record(layout: Layout, record: Record) -> None:
    """Write a provenance file, durably."""
    where = layout.provenance(record.path)
    make_directory(where.parent)
    write_atomically(where, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def by_path(entries: Collection[Entry]) -> dict[str, Entry]:
    """Entries by what names them in the store."""
    return {entry.record.path: entry for entry in entries}
