"""The index: what the disk says, in SQLite, so that lists and look-ups need not read it all again.

A cache: losing it loses nothing, and one that is damaged or of another version is made anew. It uses a
rollback journal, not a write-ahead log, because that is safe on network file systems that lock.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from kawai_tools.errors import UNDECODABLE, IndexUnavailable, KawaiError
from kawai_tools.files import Stamp, full_disk, make_directory, stamp, storage_errors
from kawai_tools.models.layout import lock_path
from kawai_tools.models.model import ModelRow
from kawai_tools.models.records import Entry

VERSION = 5
BUSY_SECONDS = 10.0
_AT_ONCE = 500
"""Values in one query; SQLite before 3.32 takes 999."""

_DAMAGED = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
"""What SQLite says of a file that is no database, a broken one, or one with other tables."""

_SCHEMA = (
    """CREATE TABLE model (
        key TEXT PRIMARY KEY,        -- the id, case folded
        path TEXT NOT NULL UNIQUE,   -- what names it in the store
        stem TEXT NOT NULL,          -- case folded
        owner_stem TEXT NOT NULL,    -- case folded
        entry BLOB NOT NULL
    ) WITHOUT ROWID""",
    "CREATE INDEX model_stem ON model (stem)",
    "CREATE INDEX model_owner_stem ON model (owner_stem)",
    "CREATE TABLE source (words TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY (words, key)) WITHOUT ROWID",
    # what a list shows of the models whose files are there: few pages to read
    "CREATE TABLE shown (key TEXT PRIMARY KEY, lock TEXT NOT NULL, row BLOB NOT NULL) WITHOUT ROWID",
    f"PRAGMA user_version = {VERSION}",
)

# made as the module is: msgspec is not safe where threads are first to use a type
_ENTRIES, _ROWS = msgspec.json.Decoder(list[Entry]), msgspec.json.Decoder(list[ModelRow])

T = TypeVar("T")


class _File(msgspec.Struct, frozen=True):
    path: str
    size: int


class _Files(msgspec.Struct, frozen=True):
    files: list[_File]


class _Entry(msgspec.Struct, frozen=True):
    """As much of an entry as tells how large its files are: to read all of it would take much longer."""

    record: _Files


_FILES = msgspec.json.Decoder(list[_Entry])


class IdTaken(Exception):
    """Another model has got this id meanwhile."""


class Index:
    """One SQLite file; every method opens it for itself, so threads and processes may share."""

    def __init__(self, path: Path, rebuild: Callable[[], list[Entry] | None]) -> None:
        """``rebuild`` says what is on disk, or ``None`` where there is no store to look at."""
        self.path = path
        self._rebuild = rebuild

    def all(self) -> list[Entry]:
        """Every model, sorted by id."""

        def read(db: sqlite3.Connection) -> list[Entry]:
            return _entries(_blobs(db, "SELECT entry FROM model ORDER BY key"))

        return self._use(read)

    def rows(self) -> list[tuple[str, ModelRow]]:
        """What a list shows of every model whose files are there, sorted by id, each after its lock file."""

        def read(db: sqlite3.Connection) -> list[tuple[str, ModelRow]]:
            found = db.execute("SELECT lock, row FROM shown ORDER BY key").fetchall()
            locks, rows = zip(*found, strict=True) if found else ((), ())
            return list(zip(locks, _decoded(rows, _ROWS) if rows else [], strict=True))

        return self._use(read)

    def files(self) -> dict[str, int]:
        """The size of every file of the models whose files are there, by its path in the store."""

        def read(db: sqlite3.Connection) -> dict[str, int]:
            blobs = _blobs(db, "SELECT entry FROM model JOIN shown USING (key)")
            entries = _decoded(blobs, _FILES) if blobs else []
            return {file.path: file.size for entry in entries for file in entry.record.files}

        return self._use(read)

    def keys(self) -> set[str]:
        """The ids, case folded."""
        return self._use(lambda db: {row[0] for row in db.execute("SELECT key FROM model")})

    def by_id(self, name: str) -> Entry | None:
        """The model that has just this id."""
        return next(iter(self._where("key = ?", name.casefold())), None)

    def by_path(self, path: str) -> Entry | None:
        """The model whose files have this path in the store."""
        return next(iter(self._where("path = ?", path)), None)

    def by_owner_and_stem(self, name: str) -> list[Entry]:
        """The models of one owner with one file stem (from several repositories)."""
        return self._where("owner_stem = ?", name.casefold())

    def by_stem(self, name: str) -> list[Entry]:
        """The models with one file stem."""
        return self._where("stem = ?", name.casefold())

    def by_source(self, words: str) -> list[Entry]:
        """The models that were pulled by these words."""
        return self._where("key IN (SELECT key FROM source WHERE words = ?)", words)

    def by_sources(self, words: Sequence[str]) -> dict[str, list[Entry]]:
        """The models that were pulled by any of many words, by these."""

        def read(db: sqlite3.Connection) -> dict[str, list[Entry]]:
            found: list[tuple[str, bytes]] = []
            for at in range(0, len(words), _AT_ONCE):
                some = words[at : at + _AT_ONCE]
                marks = ", ".join("?" * len(some))
                query = f"SELECT words, entry FROM source JOIN model USING (key) WHERE words IN ({marks})"  # noqa: S608 - only marks
                found += db.execute(query, some).fetchall()
            by_words: dict[str, list[Entry]] = {}
            for (name, _), entry in zip(found, _entries([blob for _, blob in found]), strict=True):
                by_words.setdefault(name, []).append(entry)
            return by_words

        return self._use(read)

    def revision(self) -> Stamp | None:
        """What is another after every change, by a clock that ticks; ``None`` where there is no index.

        Never opens the file: closing it would drop SQLite's locks (sqlite.org/howtocorrupt.html, 2.2).
        """
        return stamp(self.path)

    def by_repository(self, owner: str, repo: str) -> list[Entry]:
        """The models in one repository's folder."""
        return self._where("path >= ? AND path < ?", f"{owner}/{repo}/", f"{owner}/{repo}0")

    def _where(self, condition: str, *values: str) -> list[Entry]:
        query = f"SELECT entry FROM model WHERE {condition} ORDER BY key"  # noqa: S608 - our own words
        return self._use(lambda db: _entries(_blobs(db, query, values)))

    def put(self, entries: Iterable[Entry], gone: Iterable[str] = ()) -> None:
        """Add or replace models, and forget those at the paths ``gone``, in one step. Raises ``IdTaken``."""
        entries = list(entries)
        paths = [*gone, *(entry.record.path for entry in entries)]

        def write(db: sqlite3.Connection) -> None:
            db.execute("BEGIN IMMEDIATE")
            for path in paths:
                _forget(db, path)
            for entry in entries:
                _insert(db, entry)
            db.execute("COMMIT")

        self._use(write)

    def _use(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do some work; an index that turns out to be damaged is made anew first."""
        with storage_errors(self.path):
            try:
                return self._try(work)
            except (sqlite3.Error, *UNDECODABLE) as error:
                if not _says_damaged(error):
                    raise self._unavailable(error) from error
            self._discard()
            try:
                return self._try(work)
            except (sqlite3.Error, *UNDECODABLE) as error:
                raise self._unavailable(error) from error

    def _try(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with contextlib.closing(self._open()) as db:
            try:
                return work(db)
            except sqlite3.IntegrityError as error:
                raise IdTaken from error

    def _open(self) -> sqlite3.Connection:
        """The index of this version, made and filled if need be; an empty one where there is no store."""
        if self.path.exists():
            db = _connect(self.path)
            if _is_current(db):
                return db
            db.close()
        # Looked at before anything is locked: where two do so, the first to have done makes the index.
        entries = self._rebuild()
        if entries is not None:
            make_directory(self.path.parent)
        db = _connect(self.path if entries is not None else ":memory:")
        try:
            db.execute("BEGIN IMMEDIATE")
            if not _is_current(db):
                _make(db, entries or [])
            db.execute("COMMIT")
        except BaseException:
            db.close()  # before anybody removes the file: its journal would take another's with it
            raise
        return db

    def _discard(self) -> None:
        for suffix in ("", "-journal", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def _unavailable(self, error: Exception) -> KawaiError:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
            return full_disk(self.path)
        return IndexUnavailable(
            f"the index {self.path} cannot be used: {error}",
            "put kawai's home on a disk that can be written and can lock files (--home, KAWAI_HOME)"
            + ("; removing the index loses nothing" if self.path.exists() else ""),
        )


def _connect(path: Path | str) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)


def _is_current(db: sqlite3.Connection) -> bool:
    try:
        return bool(db.execute("PRAGMA user_version").fetchone()[0] == VERSION)
    except sqlite3.Error:
        db.close()
        raise


def _blobs(db: sqlite3.Connection, query: str, values: Sequence[str] = ()) -> list[bytes]:
    return [row[0] for row in db.execute(query, values)]


def _entries(blobs: Sequence[bytes]) -> list[Entry]:
    return _decoded(blobs, _ENTRIES) if blobs else []


def _decoded(blobs: Sequence[bytes], kind: msgspec.json.Decoder[list[T]]) -> list[T]:
    """JSON values, decoded at once. Raises ``DecodeError`` for what was not written by us."""
    try:
        found = kind.decode(b"[" + b",".join(blobs) + b"]")
    except TypeError as error:
        raise msgspec.DecodeError("an entry is no blob") from error
    if len(found) != len(blobs):
        raise msgspec.DecodeError("an entry is no single value")
    return found


def _says_damaged(error: Exception) -> bool:
    if not isinstance(error, sqlite3.Error):
        return True
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _DAMAGED


def _make(db: sqlite3.Connection, entries: list[Entry]) -> None:
    ours = "type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    for kind, name in db.execute(f"SELECT type, name FROM sqlite_master WHERE {ours}").fetchall():  # noqa: S608
        db.execute(f'DROP {kind} IF EXISTS "{name}"')
    for statement in _SCHEMA:
        db.execute(statement)
    for entry in entries:
        _insert(db, entry)


def _forget(db: sqlite3.Connection, path: str) -> None:
    db.execute("DELETE FROM shown WHERE key IN (SELECT key FROM model WHERE path = ?)", (path,))
    db.execute("DELETE FROM source WHERE key IN (SELECT key FROM model WHERE path = ?)", (path,))
    db.execute("DELETE FROM model WHERE path = ?", (path,))


def _insert(db: sqlite3.Connection, entry: Entry) -> None:
    record = entry.record
    key, stem = record.id.casefold(), record.stem.casefold()
    row = (key, record.path, stem, f"{record.owner.casefold()}/{stem}", msgspec.json.encode(entry))
    db.execute("INSERT INTO model VALUES (?, ?, ?, ?, ?)", row)
    if entry.present:
        shown = (key, lock_path(record.path), msgspec.json.encode(entry.row(None)))
        db.execute("INSERT INTO shown VALUES (?, ?, ?)", shown)
    db.executemany("INSERT OR REPLACE INTO source VALUES (?, ?)", [(words, key) for words in record.sources])
