"""Verification: hash every file of a model and compare with what was promised."""

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Iterator

import msgspec

from kawai_tools.errors import (
    DigestMismatch,
    HomeNotWritable,
    IncompleteModel,
    Internal,
    KawaiError,
    ModelNotFound,
    Unavailable,
)
from kawai_tools.events import Event, FileCheck, Status, VerifyEvent
from kawai_tools.models.claims import Use
from kawai_tools.models.records import Entry, FileRecord, Record, now
from kawai_tools.models.store import Store
from kawai_tools.refs import ModelRef
from kawai_tools.transfer.outbound import Cancelled
from kawai_tools.transfer.pulls import PROGRESS_INTERVAL, Feed

BUFFER = 1 << 20


def verify(store: Store, ref: ModelRef | None) -> Feed[Event]:
    """Verify one model, or all in id order; each ends in its own ``verified`` or ``failed``.

    Raises ``ModelNotFound`` or ``Ambiguous`` before anything begins.
    """
    entries = [store.find(ref)] if ref else [entry for entry in store.index.all() if entry.present]
    if entries:
        store.require_mounted()
    feed = Feed[Event]()

    def run() -> None:
        try:
            for entry in entries:
                if ref is not None or store.index.by_path(entry.record.path) is not None:
                    _Verification(store, entry, feed).run()
        except Cancelled:
            pass
        finally:
            feed.close()

    threading.Thread(target=run, name="verify", daemon=True).start()
    return feed


class _Verification:
    """One model being verified."""

    def __init__(self, store: Store, entry: Entry, feed: Feed[Event]) -> None:
        self.store, self.record, self.feed = store, entry.record, feed
        self.total = sum(file.size for file in self.record.files)
        self.done = 0
        self.checks: list[FileCheck] = []
        self.begin = self.told = time.monotonic()

    def run(self) -> None:
        """Hash and compare; a bad file does not keep the others from being looked at."""
        use = Use(self.store.layout, self.record.path, self.record.id)
        try:
            use.acquire()
            self._require_still_there()
            hashed = [self._check(file) for file in self.record.files]
            problem = self._problem()
            self._remember(hashed, right=problem is None)
            self._tell(Status.FAILED if problem else Status.VERIFIED, error=problem)
        except KawaiError as error:
            self._tell(Status.FAILED, error=error)
        except OSError as error:
            what = IncompleteModel(f"{self.record.id} cannot be read: {error}", "the disk may be failing")
            self._tell(Status.FAILED, error=what)
        except Cancelled:
            self._tell(Status.FAILED, error=Unavailable("the verification was broken off", "run it again"))
            raise
        except Exception:
            self._tell(Status.FAILED, error=Internal("kawai failed in a way it should not"))
            raise
        finally:
            use.release()

    def _require_still_there(self) -> None:
        """What was removed while this waited is no damage."""
        if self.store.index.by_path(self.record.path) is None:
            raise ModelNotFound(f"{self.record.id} was removed in the meantime")

    def _check(self, file: FileRecord) -> FileRecord:
        self._tell(Status.VERIFYING, file=file.path)
        path = self.store.layout.file(file.path)
        digest = hashlib.sha256()
        try:
            mtime = path.stat().st_mtime_ns
            for chunk in _chunks(path):
                self.feed.pause(0)
                digest.update(chunk)
                self.done += len(chunk)
                if time.monotonic() - self.told > PROGRESS_INTERVAL:
                    self._tell(Status.VERIFYING, file=file.path, keep=False)
        except (FileNotFoundError, NotADirectoryError):
            self.store.require_mounted()
            self.checks.append(FileCheck(file.path, ok=False, sha256=None, expected=file.sha256))
            return file
        found = digest.hexdigest()
        ok = file.sha256 in {None, found}
        self.checks.append(FileCheck(file.path, ok=ok, sha256=found, expected=file.sha256))
        known = file.sha256 or found
        return msgspec.structs.replace(file, sha256=known, mtime_ns=mtime if ok and file.sha256 else 0)

    def _problem(self) -> KawaiError | None:
        missing = [check.path for check in self.checks if check.sha256 is None]
        wrong = [check.path for check in self.checks if check.sha256 and not check.ok]
        again = (
            f"kawai models pull --force {self.record.url}"
            if self.record.url
            else "put a good copy in its place"
        )
        if missing:
            return IncompleteModel(f"{self.record.id} lacks {', '.join(missing)}", again)
        if wrong:
            return DigestMismatch(f"{', '.join(wrong)} is not what was installed: its SHA-256 differs", again)
        return None

    def _remember(self, files: list[FileRecord], *, right: bool) -> None:
        """Note the result: when all was right, and digests that nobody had promised, for the next time."""
        compared = right and all(file.sha256 for file in self.record.files)
        at = now() if compared else (self.record.verified_at if right else None)

        def change(known: Record) -> Record:
            if known.files != self.record.files:  # replaced before it was kept from being so
                return known
            return msgspec.structs.replace(known, files=files, verified_at=at)

        if change(self.record) != self.record and not any(check.sha256 is None for check in self.checks):
            with contextlib.suppress(HomeNotWritable):  # what was found holds all the same
                self.store.amend(self.record.path, change)

    def _tell(
        self, status: Status, *, file: str | None = None, error: KawaiError | None = None, keep: bool = True
    ) -> None:
        self.told = time.monotonic()
        rate = int(self.done / max(self.told - self.begin, 0.001)) if self.done else None
        event = VerifyEvent(
            status=status,
            id=self.record.id,
            file=file,
            completed=self.done,
            total=self.total,
            rate=rate,
            eta=(self.total - self.done) // rate if rate else None,
            files=list(self.checks),
            error=error.info if error else None,
        )
        self.feed.publish(lambda _: event, keep=keep)


def _chunks(path: os.PathLike[str]) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(BUFFER))
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - raw reads into one buffer
        while count := file.readinto(buffer):
            yield buffer[:count]
