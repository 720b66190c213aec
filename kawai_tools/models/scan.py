"""What is on disk: walks the store, and turns what it finds into index entries.

Nothing is hashed, and a header is only read where something is new or was touched. Files that somebody
dropped into the store become models: complete sets of shards, with the one projection of their folder.
"""

import contextlib
import os
from collections import defaultdict
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from itertools import chain
from typing import Literal

import msgspec

from kawai_tools.errors import BrokenState, Integrity, InvalidId
from kawai_tools.gguf import Header, read_header
from kawai_tools.models.claims import claims
from kawai_tools.models.layout import Layout, model_path
from kawai_tools.models.naming import new_id
from kawai_tools.models.records import (
    Entry,
    Facts,
    FileRecord,
    Record,
    decode_record,
    entry_of,
    owner_and_stem,
    record_stamp,
    write_record,
)
from kawai_tools.refs import RESERVED, is_gguf_name, is_projection_name, parse_model, safe_path, shard_of

MAX_DEPTH = 12


class Found:
    """Size and mtime of every ``.gguf`` file and stamp of every provenance file, by path in the store."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.files: dict[str, tuple[int, int]] = {}
        self.records: dict[str, int] = {}

    def has(self, file: FileRecord) -> bool:
        """Whether a file is there, as large as it should be."""
        return file.path in self.files and self.files[file.path][0] == file.size


def walk(store: str) -> Found:
    """Look at every folder of the store, following no link to a directory."""
    found = Found()
    _walk(store, "", found, 0)
    return found


def _walk(directory: str, prefix: str, found: Found, depth: int) -> None:
    for entry in _entries(directory):
        name = entry.name
        if name == ".kawai":
            _walk_records(entry.path, prefix, found)
        elif name[0] == ".":
            continue
        elif is_gguf_name(name) and entry.is_file():
            with contextlib.suppress(OSError):  # removed just now
                stat = entry.stat()
                found.files[prefix + name] = (stat.st_size, stat.st_mtime_ns)
        elif depth < MAX_DEPTH and entry.is_dir(follow_symlinks=False):
            _walk(entry.path, f"{prefix}{name}/", found, depth + 1)


def _walk_records(directory: str, prefix: str, found: Found) -> None:
    for entry in _entries(directory):
        if entry.name.endswith(".json") and entry.name[0] != ".":
            with contextlib.suppress(OSError):
                found.records[prefix + entry.name[: -len(".json")]] = record_stamp(entry.stat())


def _entries(directory: str) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError:  # removed just now, no directory, or not for us
        return []


def refresh(layout: Layout, known: dict[str, Entry]) -> tuple[list[Entry], set[str]]:
    """Entries that are new or changed, and the paths of those that are gone."""
    found = walk(str(layout.store))
    kept = {
        path: entry
        for path, entry in known.items()
        if path in found.records and _is_unchanged(entry, found.records[path], found)
    }
    if len(kept) == len(found.records) and sum(len(each.record.files) for each in kept.values()) == len(
        found.files
    ):
        return [], set(known) - set(kept)  # every file is accounted for
    changed = dict(_Changes(layout, known, kept, found).find())
    return list(changed.values()), set(known) - set(kept) - set(changed)


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


class _Changes:
    """What is new or was touched since ``known``; ``kept`` is what was not."""

    def __init__(self, layout: Layout, known: dict[str, Entry], kept: dict[str, Entry], found: Found) -> None:
        self.layout, self.known, self.found = layout, known, found
        self.owned = {file.path for entry in kept.values() for file in entry.record.files}
        self.taken = {entry.record.id.casefold() for entry in kept.values()}
        self.records = {path: entry.record for path, entry in kept.items()}

    def find(self) -> Iterator[tuple[str, Entry]]:
        """Entries by what names them in the store, in the order in which ids are given."""
        for path in sorted(self.found.records.keys() - self.records.keys(), key=self._order):
            entry = self._read(path)
            if entry is not None:
                yield path, self._take(entry)
        restored = [self.known[path].record for path in self._restorable()]
        for record in chain(restored, self._adopt()):  # only what is not restored is adopted
            entry = self._record_anew(record)
            if entry is not None:
                yield record.path, self._take(entry)

    def _record_anew(self, record: Record) -> Entry | None:
        """Record a model; not one whose files somebody takes away just now."""
        write_record(self.layout, record)
        try:
            return entry_of(self.layout, record)
        except (Integrity, FileNotFoundError):
            self.layout.provenance(record.path).unlink(missing_ok=True)
            return None

    def _order(self, path: str) -> tuple[bool, str]:
        """Path order; but what had its id before keeps it."""
        return path not in self.known, path

    def _take(self, entry: Entry) -> Entry:
        """Count an entry as known; one whose id another has, or nobody can have, gets a new one."""
        record = entry.record
        if record.path in self.records:
            self.taken.discard(self.records[record.path].id.casefold())
        if record.id.casefold() in self.taken or not _is_id(record.id):
            record = msgspec.structs.replace(record, id=new_id(record.owner, record.stem, self.taken))
            write_record(self.layout, record)
            entry = msgspec.structs.replace(entry, record=record)
        self.taken.add(record.id.casefold())
        self.records[record.path] = record
        self.owned.update(file.path for file in record.files)
        return entry

    def _read(self, path: str) -> Entry | None:
        """A model by its provenance file; one that is unreadable is left to be written anew."""
        where = self.layout.provenance(path)
        try:
            record = decode_record(where.read_bytes(), where)
        except (BrokenState, OSError):
            return None
        if record.path != path:
            return None
        record = self._as_it_is_now(record)
        if all(map(self.found.has, record.files)):
            with contextlib.suppress(Integrity, OSError):
                return entry_of(self.layout, record)
        nothing = Facts(quantization=None, context_length=None, architecture=None)
        return Entry(record=record, facts=nothing, stamps=[0] * (len(record.files) + 1), present=False)

    def _as_it_is_now(self, record: Record) -> Record:
        """A model that was put there by hand may be replaced by hand: it keeps its id, nothing else."""
        sizes = {file.path: self.found.files[file.path][0] for file in record.files if self._is_there(file)}
        if record.url is not None or not all(map(self._is_there, record.weights)):
            return record
        files = [
            file
            if file.size == sizes[file.path]
            else msgspec.structs.replace(file, size=sizes[file.path], sha256=None, mtime_ns=0)
            for file in record.files
            if file.path in sizes
        ]
        if files == record.files:
            return record
        new = msgspec.structs.replace(record, files=files, verified_at=None)
        write_record(self.layout, new)
        return new

    def _is_there(self, file: FileRecord) -> bool:
        return file.path in self.found.files

    def _restorable(self) -> list[str]:
        """Models whose provenance file is gone or unreadable, and whose files are just as they were."""
        return [
            path
            for path, entry in self.known.items()
            if path not in self.records
            and all(
                self.found.files.get(file.path) == (file.size, stamp)
                for file, stamp in zip(entry.record.files, entry.stamps[1:], strict=True)
            )
        ]

    def _adopt(self) -> Iterator[Record]:
        """Records for the models that nobody recorded yet, in path order."""
        projections: dict[str, list[str]] = defaultdict(list)
        sets: dict[str, list[str]] = defaultdict(list)
        for path in sorted(self.found.files.keys() - self.owned):
            kind = self._kind(path)
            if kind == "projection":
                projections[path.rpartition("/")[0]].append(path)
            elif kind == "weights":
                sets[model_path(path)].append(path)
        begun = {claim.path for claim in claims(self.layout) if claim.installing is not None}
        for name in sorted(sets, key=self._order):
            whole = _whole_set(sets[name])
            if not whole or name in self.records or name in begun or self._is_recorded(name):
                continue
            yield self._record(name, whole, _only(projections[name.rpartition("/")[0]]))
        for path, record in list(self.records.items()):
            beside = _only(projections[path.rpartition("/")[0]])
            if beside and record.url is None and record.projection is None:
                yield msgspec.structs.replace(
                    record, files=[*record.files, *self._file_records(beside, "projection")]
                )

    def _is_recorded(self, path: str) -> bool:
        """Whether somebody has installed that model since the store was walked."""
        return path not in self.found.records and self.layout.provenance(path).exists()

    def _record(self, path: str, weights: list[str], beside: list[str]) -> Record:
        files = [*self._file_records(weights, "weights"), *self._file_records(beside, "projection")]
        newest = max(self.found.files[file.path][1] for file in files)
        before = self.known.get(path)
        return Record(
            id=before.record.id if before else new_id(*owner_and_stem(path), self.taken),
            files=files,
            installed_at=datetime.fromtimestamp(max(0, newest) // 10**9, UTC),
            protected=before is not None and before.record.protected,
        )

    def _file_records(self, paths: list[str], role: Literal["weights", "projection"]) -> list[FileRecord]:
        return [FileRecord(path=each, size=self.found.files[each][0], role=role) for each in paths]

    def _kind(self, path: str) -> str | None:
        if not safe_path(path):
            return None
        try:
            header = read_header(self.layout.file(path))
        except (Integrity, OSError):
            return None
        if header.is_projection or is_projection_name(path):
            return "projection"
        return "weights" if fits_name(header, path) else None


def fits_name(header: Header, path: str) -> bool:
    """Whether a file is the shard that its name says, as far as it knows (from llama.cpp's gguf-split)."""
    if header.split_count is None or header.split_no is None:
        return True
    shard = shard_of(path)
    return (header.split_no + 1, header.split_count) == (shard.number or 1, shard.count or 1)


def _only(paths: list[str]) -> list[str]:
    return paths if len(paths) == 1 else []


def _whole_set(paths: list[str]) -> list[str]:
    """The paths that are one file or a complete set of shards; the first such, where there are several."""
    for path in paths:
        folder, slash, name = path.rpartition("/")
        wanted = [f"{folder}{slash}{each}" for each in shard_of(name).names()]
        if set(wanted) <= set(paths):
            return wanted
    return []


def _is_id(name: str) -> bool:
    try:
        ref = parse_model(name)
    except InvalidId:
        return False
    return not {name.casefold(), (ref.owner or "").casefold()} & RESERVED


def by_path(entries: Collection[Entry]) -> dict[str, Entry]:
    """Entries by what names them in the store."""
    return {entry.record.path: entry for entry in entries}
