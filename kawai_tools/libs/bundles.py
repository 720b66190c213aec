"""The installed builds: list, install, switch, roll back, remove.

Versions lie side by side and are never edited in place. Which one is used is one small file, replaced
whole, so that at any moment it names a build that passed its probe. Use is a kernel lock (``flock``) on a
build's directory: whoever runs it holds it shared, whoever removes or replaces it exclusively.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from kawai_tools.errors import (
    UNDECODABLE,
    BrokenState,
    Conflict,
    HomeNotWritable,
    InUse,
    InvalidRequest,
    ProbeFailed,
    VersionNotFound,
)
from kawai_tools.files import (
    Lock,
    clear_left_behind,
    flock_is_free,
    make_directory,
    read_if_there,
    storage_errors,
    sync_directory,
    write_atomically,
)
from kawai_tools.libs.bundle import Active, BundleRecord, Pointer, Probe
from kawai_tools.libs.layout import LibsLayout
from kawai_tools.libs.platforms import Arch, Machine, Os, Processor, look

_PATIENCE, _GLANCE, _TICK = 10.0, 0.3, 0.02
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_REPLACED, _REMOVED = "replaced", "removed"
_ASIDE = re.compile(rf"\.(b[0-9]+)\.({_REPLACED}|{_REMOVED})(\.[0-9a-f]+)?")


# made as the module is: msgspec is not safe where threads are first to use a type
_RECORD, _ACTIVE = msgspec.json.Decoder(BundleRecord), msgspec.json.Decoder(Active)


class Bundles:
    """The builds of one home. Safe to share between threads and with other processes."""

    def __init__(
        self, layout: LibsLayout, machine: Callable[[], Machine] = look, *, recovers: bool = True
    ) -> None:
        """``machine`` tells which builds run here; with ``recovers`` false looking changes nothing."""
        self.layout = layout
        self._machine = machine
        self._recovers = recovers

    # looking up

    def all(self) -> list[BundleRecord]:
        """Every installed build, newest version first."""
        self._recover()
        found = [record for path in self.layout.root.glob("*/.kawai/*.json") if (record := self._read(path))]
        return sorted(found, key=lambda each: (_number(each.version), each.platform), reverse=True)

    def _read(self, path: Path) -> BundleRecord | None:
        """A build by its state file, if both are whole and belong together."""
        try:
            record = _RECORD.decode(read_if_there(path) or b"")
        except (*UNDECODABLE, HomeNotWritable):
            return None
        here = (record.platform, record.version) == (path.parent.parent.name, path.stem)
        return record if here and self.layout.bundle(record.platform, record.version).is_dir() else None

    def at(self, pointer: Pointer | None) -> BundleRecord | None:
        """The build that a pointer names, if it is installed."""
        if pointer is None or not re.fullmatch(
            r"[a-z0-9-]+/b[0-9]+", f"{pointer.platform}/{pointer.version}"
        ):
            return None
        self._recover()
        return self._read(self.layout.record(pointer.platform, pointer.version))

    def active(self) -> Active:
        """Which build is used, and the one before; one that is gone is none. Raises ``BrokenState``."""
        known = self._pointers()
        return Active(*(each if self.at(each) else None for each in (known.current, known.previous)))

    def current(self) -> BundleRecord | None:
        """The build that is used; none also where ``active.json`` cannot be read."""
        return self.at(self._pointers_or_none().current)

    def previous(self) -> BundleRecord | None:
        """The build that was used before it."""
        return self.at(self._pointers_or_none().previous)

    def _pointers(self) -> Active:
        data = read_if_there(self.layout.active)
        try:
            return _ACTIVE.decode(data) if data is not None else Active()
        except UNDECODABLE as error:
            raise BrokenState(f"{self.layout.active} cannot be read: {error}", self._anew()) from error

    def _anew(self) -> str:
        """What writes the pointer file anew."""
        good = next((each.version for each in self.all() if each.probe.ok and self.is_here(each)), None)
        return f"kawai libs use {good} writes it anew" if good else "kawai libs pull writes it anew"

    def is_here(self, record: BundleRecord) -> bool:
        """Whether a build is one for this machine."""
        machine = self._machine()
        return (record.arch, record.os) == (machine.arch, machine.os)

    def find(
        self,
        version: str,
        processor: Processor | None,
        arch: Arch | None = None,
        system: Os | None = None,
    ) -> BundleRecord:
        """The build of a version. Raises ``VersionNotFound``, or ``Conflict`` where several are meant."""
        installed = self.all()
        found = [
            each
            for each in installed
            if each.version == version
            and processor in {None, each.processor}
            and arch in {None, each.arch}
            and system in {None, each.os}
        ]
        found = [each for each in found if self.is_here(each)] or found  # before one for another machine
        if not found:
            there = ", ".join(f"{each.version} ({each.processor})" for each in installed) or "none"
            what = f"{version} for {processor}" if processor else version
            raise VersionNotFound(
                f"{what} is not installed", f"installed: {there}; kawai libs pull {version} gets it"
            )
        if len(found) > 1:
            names = ", ".join(each.processor for each in found)
            raise Conflict(f"{version} is installed for {names}", "name one with --processor")
        return found[0]

    # changing

    def install(self, record: BundleRecord, staging: Path) -> None:
        """Give an unpacked, synced build its place; one of the same version there is replaced.

        Raises ``InUse`` where that one runs.
        """
        place = self.layout.bundle(record.platform, record.version)
        make_directory(place.parent)
        with storage_errors(place), self._alone(place, record.version):
            aside = _aside(place)
            while True:
                with contextlib.suppress(FileNotFoundError):
                    place.rename(aside)
                try:
                    staging.rename(place)
                    break
                except OSError as error:  # only where locks do nothing: a rival was quicker
                    if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                        raise
                    shutil.rmtree(aside, ignore_errors=True)
            sync_directory(place.parent)
            self.note(record)
            shutil.rmtree(aside, ignore_errors=True)

    def note(self, record: BundleRecord) -> None:
        """Write what is known of a build; not while anybody switches, who clears what writers have left."""
        where = self.layout.record(record.platform, record.version)
        make_directory(where.parent)
        with self._switching():
            write_atomically(where, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")

    def use(self, record: BundleRecord, pause: Callable[[float], None] = time.sleep) -> None:
        """Make a build the one that is used. Raises ``ProbeFailed`` for one that does not work here."""
        self.require_working(record, pause)
        with self._switching() as known:
            now = Pointer(record.platform, record.version)
            if known.current != now:
                self._point(Active(now, known.current if self.at(known.current) else None))

    def require_working(self, record: BundleRecord, pause: Callable[[float], None] = time.sleep) -> None:
        """Try a build again whose last probe was not good. Raises ``ProbeFailed``, or ``InvalidRequest``."""
        if not self.is_here(record):
            raise InvalidRequest(
                f"{record.version} is a build for {record.os}/{record.arch}, not for {self._machine().name}",
                "kawai libs list shows which are for this machine",
            )
        if record.probe.ok:
            return
        from kawai_tools.libs.probing import probe  # noqa: PLC0415 - lists try nothing

        result = probe(self.layout.bundle(record.platform, record.version), record.processor, pause)
        self.note(msgspec.structs.replace(record, probe=result))
        if not result.ok:
            raise failed(record.version, result)

    def rollback(self) -> None:
        """Use the build before this one. Raises ``Conflict`` where there is none."""
        before = self.previous()
        if before is None:
            raise Conflict("there is no build to go back to", "kawai libs list shows the installed ones")
        self.require_working(before)
        with self._switching() as known:
            if self.at(known.previous) is None:
                raise Conflict("there is no build to go back to any more", "kawai libs list shows the others")
            self._point(Active(known.previous, known.current if self.at(known.current) else None))

    def is_in_use(self, record: BundleRecord) -> bool:
        """Whether a build runs or is pulled at this moment."""
        pulls = Lock(self.layout.pull_lock(record.platform, record.version))
        try:
            fd = os.open(self.layout.bundle(record.platform, record.version), _FOLDER)
        except OSError:
            return not pulls.is_free()
        try:
            return not (flock_is_free(fd) and pulls.is_free())
        finally:
            os.close(fd)

    def remove(self, record: BundleRecord, *, spare_previous: bool = False) -> None:
        """Remove a build. Raises ``InUse`` for the active one, or one that runs.

        With ``spare_previous`` also for the one before the active one.
        """
        place = self.layout.bundle(record.platform, record.version)
        with (
            self._switching() as known,
            self._not_pulled(record),
            storage_errors(place),
            self._alone(place, record.version),
        ):
            gone = Pointer(record.platform, record.version)
            if known.current == gone:
                raise InUse(f"{record.version} is the active build", "kawai libs use another one first")
            if known.previous == gone and spare_previous:
                raise InUse(f"{record.version} is the build before the active one")
            if known.previous == gone:
                self._point(Active(known.current, None))
            aside = _aside(place, _REMOVED)
            place.rename(aside)
            self.layout.record(record.platform, record.version).unlink(missing_ok=True)
            shutil.rmtree(aside, ignore_errors=True)
            shutil.rmtree(self.layout.partial(record.platform, record.version), ignore_errors=True)

    def _point(self, active: Active) -> None:
        write_atomically(self.layout.active, msgspec.json.encode(active) + b"\n")

    @contextlib.contextmanager
    def _switching(self) -> Iterator[Active]:
        """The pointers, for oneself."""
        make_directory(self.layout.root)
        lock = Lock(self.layout.lock)
        until = time.monotonic() + _PATIENCE
        while not lock.acquire():
            if time.monotonic() > until:
                raise InUse("another kawai is switching builds", "try again in a moment")
            time.sleep(_TICK)
        try:
            for folder in (self.layout.root, *self.layout.root.glob("*/.kawai")):
                clear_left_behind(folder)
            yield self._pointers_or_none()
        finally:
            lock.release()

    def _pointers_or_none(self) -> Active:
        """A pointer file that cannot be read is written anew by whoever switches."""
        with contextlib.suppress(BrokenState, HomeNotWritable):
            return self._pointers()
        return Active()

    @contextlib.contextmanager
    def _not_pulled(self, record: BundleRecord) -> Iterator[None]:
        """Hold the lock of a build's pulls."""
        lock = Lock(self.layout.pull_lock(record.platform, record.version))
        until = time.monotonic() + _GLANCE  # whoever looks for what was left holds it for a moment
        while not lock.acquire():
            if time.monotonic() < until:
                time.sleep(_TICK)
                continue
            raise InUse(f"{record.version} is being pulled", "kawai pulls list shows it; wait, or cancel it")
        try:
            yield
        finally:
            lock.remove()

    @staticmethod
    @contextlib.contextmanager
    def _alone(place: Path, version: str) -> Iterator[None]:
        """Hold a build's directory exclusively, if there is one."""
        try:
            fd = os.open(place, _FOLDER)
        except FileNotFoundError:
            yield
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise InUse(f"{version} is running", "unload its models first (kawai models ps)") from None
        try:
            yield
        finally:
            os.close(fd)

    def _recover(self) -> None:
        """Put back what was moved aside by a replacement that was cut off; drop what is left of others."""
        if not self._recovers:
            return
        for left in self.layout.partials.glob("*.lock"):
            lock = Lock(left)
            with contextlib.suppress(HomeNotWritable):
                if lock.acquire():  # its holder was killed
                    lock.remove()
        for aside in self._asides():
            with contextlib.suppress(OSError, InUse):
                self.settle(aside)

    def left_aside(self) -> list[Path]:
        """What was moved aside to be removed, and is still there; not what is to be put back."""
        return [each for each in self._asides() if not self._goes_back(each)]

    def _asides(self) -> list[Path]:
        return [each for each in sorted(self.layout.root.glob("*/.b*.*")) if _ASIDE.fullmatch(each.name)]

    def _goes_back(self, aside: Path) -> bool:
        version, purpose = _taken_apart(aside)
        place = aside.with_name(version)
        record = self.layout.record(place.parent.name, version)
        return not purpose.startswith(_REMOVED) and record.exists() and not place.exists()

    def settle(self, aside: Path) -> None:
        """Go on with what a build was moved aside for. Raises ``InUse`` or ``OSError``."""
        version, purpose = _taken_apart(aside)
        place = aside.with_name(version)
        with self._alone(aside, version):
            if self._goes_back(aside):
                aside.rename(place)
                return
            if purpose.startswith(_REMOVED) and not place.exists():  # a removal that was cut off goes on
                self.layout.record(place.parent.name, version).unlink(missing_ok=True)
            shutil.rmtree(aside, ignore_errors=True)


def failed(version: str, result: Probe) -> ProbeFailed:
    """What to say of a build that was tried and does not work."""
    return ProbeFailed(f"{version} does not work here: {result.detail}", "the build before it stays in use")


def _aside(place: Path, purpose: str = _REPLACED) -> Path:
    """Where a build goes before it is removed; the name is nobody else's."""
    return place.with_name(f".{place.name}.{purpose}.{os.urandom(4).hex()}")


def _taken_apart(aside: Path) -> tuple[str, str]:
    """Version and purpose of what was moved aside."""
    version, _, purpose = aside.name.removeprefix(".").partition(".")
    return version, purpose


def _number(version: str) -> int:
    digits = version.removeprefix("b")
    return int(digits) if digits.isdigit() else 0
