"""What is installed, what works, what does not, and what to do about it.

Each check looks at one thing and says ``ok``, ``warn`` or ``fail`` with what mends it; none changes
anything, and what one of them meets does not keep the others from being made.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import msgspec

from kawai_tools.catalog.catalog import Catalog
from kawai_tools.errors import KawaiError, NoEngine
from kawai_tools.files import existing_parent, free_space
from kawai_tools.libs.bundles import Bundles
from kawai_tools.libs.platforms import Arch, Machine, Processor
from kawai_tools.libs.probing import probe
from kawai_tools.models.store import Store
from kawai_tools.runners.engines import Embedded, choose, engines
from kawai_tools.settings import Settings
from kawai_tools.tokens import Tokens
from kawai_tools.transfer.asking import Asker
from kawai_tools.transfer.egress import origin_of
from kawai_tools.transfer.outbound import Outbound
from kawai_tools.transfer.responses import Response

PATIENCE = 5.0
"""Seconds that a server gets to answer."""

_PULL = "kawai libs pull gets one"
_LITTLE = 5_000_000_000
"""Bytes: with less free, a model of middling size does not fit."""

_NEEDED_SETS = ("avx2", "f16c", "fma")
"""Without these an x86-64 CPU runs the slowest code that a build has."""


class Check(msgspec.Struct, frozen=True):
    """One line of the report."""

    check: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    fix: str | None = None


class Doctor:
    """Looks at everything in turn."""

    def __init__(
        self,
        settings: Settings,
        machine: Machine,
        store: Store,
        bundles: Bundles,
        catalog: Catalog,
        tokens: Tokens,
        ways: Mapping[str, Callable[[], Outbound]],
    ) -> None:
        """Nothing is looked at yet. ``bundles`` are ones that looking does not change.

        ``ways`` are the ways out to the ``hub`` and the ``release server``.
        """
        self._settings = settings
        self._machine = machine
        self._store = store
        self._bundles = bundles
        self._catalog = catalog
        self._tokens = tokens
        self._ways = ways

    def report(self) -> list[Check]:
        """Every check."""
        checks: tuple[tuple[str, Callable[[], Iterator[Check]]], ...] = (
            ("platform", self._platform),
            ("home", self._home),
            ("store", self._models),
            ("builds", self._builds),
            ("engine", self._engine),
            ("catalog", self._entries),
            ("tokens", self._secrets),
            ("network", self._network),
        )
        return [check for name, look in checks for check in _guarded(name, look)]

    def _platform(self) -> Iterator[Check]:
        machine = self._machine
        if machine.os is None or machine.arch is None:
            yield Check(
                "platform", "fail", f"{machine.name}: llama.cpp is not built for it", "use another machine"
            )
        else:
            yield Check("platform", "ok", f"{machine.os}/{machine.arch}, {machine.libc or 'no glibc'}")
        slow = [each for each in _NEEDED_SETS if each not in machine.instruction_sets]
        sets = ", ".join(machine.instruction_sets) or "not known"
        if machine.arch is Arch.AMD64 and machine.instruction_sets and slow:
            yield Check(
                "cpu", "warn", f"{sets}; without {', '.join(slow)}", "expect little speed from this CPU"
            )
        else:
            yield Check("cpu", "ok", sets)
        for found in machine.found:
            if found.processor is Processor.CPU or (found.processor is Processor.METAL and not found.there):
                continue
            if found.broken:
                yield Check(
                    found.processor, "warn", found.detail, "install or mend its driver, or go on without"
                )
            else:
                yield Check(found.processor, "ok", found.detail)

    def _home(self) -> Iterator[Check]:
        for name, path in (("data", self._settings.data_dir), ("state", self._settings.state_dir)):
            yield _writable(f"{name} directory", path)
        yield from _private(self._settings.state_dir / "run")
        free = free_space(self._settings.data_dir)
        words = f"{free:,} bytes free for models and builds"
        if free < _LITTLE:
            yield Check("disk", "warn", words, "kawai models rm makes room, --home names another disk")
        else:
            yield Check("disk", "ok", words)

    def _models(self) -> Iterator[Check]:
        layout = self._store.layout
        if locked := _locked("store", layout.store):
            yield locked
            return
        if not layout.index.exists():  # made by whoever lists models, not by whoever looks
            found = layout.marker.exists() and any(layout.store.rglob("*.gguf"))
            words = "there are models, but no index of them" if found else f"no models yet in {layout.store}"
            yield Check("store", "warn" if found else "ok", words, "kawai models index" if found else None)
            return
        self._store.check_ready()
        rows = self._store.rows()
        bad = [row.id for row in rows if not row.validated]
        words = f"{len(rows)} models in {layout.store}"
        if bad:
            names = ", ".join(bad[:3]) + (" and others" if len(bad) > 3 else "")  # noqa: PLR2004 - a few do
            yield Check("store", "warn", f"{words}, not verified: {names}", "kawai models verify")
        else:
            yield Check("store", "ok", words)

    def _entries(self) -> Iterator[Check]:
        problems = self._catalog.problems()
        for problem in problems:
            status: Literal["warn", "fail"] = "fail" if problem.refused else "warn"
            yield Check("catalog", status, str(problem), problem.fix)
        if not any(problem.refused for problem in problems):
            yield Check("catalog", "ok", f"{len(self._catalog.ids())} models to choose from")

    def _secrets(self) -> Iterator[Check]:
        count = len(self._tokens.all())  # raises what is wrong with the file, which is then told
        words = (
            f"{count} token{'s' if count > 1 else ''}"
            if count
            else "none made yet; kawai tokens create makes one"
        )
        yield Check("tokens", "ok", words)

    def _builds(self) -> Iterator[Check]:
        root = self._bundles.layout.root
        locked = [check for path in (root, *root.glob("*/")) if (check := _locked("builds", path))]
        if locked:
            yield locked[0]
            return
        yield from self._active_build()
        current = self._bundles.current()
        known = self._bundles.all()
        for record in known:
            if record.probe.ok is False and record != current:
                remove = f"kawai libs rm {record.version}"
                yield Check(
                    f"build {record.version}", "warn", f"{record.platform}: {record.probe.detail}", remove
                )
        listed = {(record.platform, record.version) for record in known}
        for folder in sorted(root.glob("*-*-*/b[0-9]*/")):
            if (folder.parent.name, folder.name) not in listed:
                words = f"{folder} is there, but what it is cannot be read"
                yield Check(f"build {folder.name}", "warn", words, f"kawai libs pull {folder.name}")

    def _active_build(self) -> Iterator[Check]:
        """The active build, tried again: what worked once may have lost a library since."""
        pointers = self._bundles.active()
        current = self._bundles.at(pointers.current)
        if current is None:
            yield Check("active build", "warn", "no llama.cpp build is installed and active", _PULL)
            return
        place = self._bundles.layout.bundle(current.platform, current.version)
        result = probe(place, current.processor, time.sleep)
        words = f"{current.version} ({current.platform}): {result.detail}"
        if result.ok:
            yield Check("active build", "ok", words)
        else:
            before = self._bundles.at(pointers.previous)
            fix = "kawai libs rollback" if before else f"kawai libs pull {current.version} --force"
            yield Check("active build", "fail", words, fix)

    def _engine(self) -> Iterator[Check]:
        """What would run a model now; an embedded one is tried as far as it can be without a model."""
        known = engines(self._bundles)
        try:
            chosen = choose(known, self._settings.engine)
        except NoEngine as error:
            yield Check("engine", "warn", error.message, error.hint)
            return
        words = f"{chosen.engine.name}: {chosen.reason}"
        if isinstance(chosen.engine, Embedded) and (problem := chosen.engine.try_import()):
            fix = f"pip install --force-reinstall '{chosen.engine.requirement}'"
            yield Check("engine", "fail", f"{words}, but {problem}", fix)
        else:
            yield Check("engine", "ok", words)

    def _network(self) -> Iterator[Check]:
        if self._settings.offline:
            yield Check("network", "ok", "not asked: offline")
            return
        servers = {"hub": self._settings.hub_endpoint, "release server": self._settings.libs_api}
        with ThreadPoolExecutor(len(servers), "doctor") as threads:
            yield from threads.map(lambda server: _reached(self._ways[server[0]], *server), servers.items())


def _reached(way: Callable[[], Outbound], name: str, url: str) -> Check:
    def refuse(answer: Response) -> KawaiError:
        raise _Answered(answer.status)

    try:
        asker = Asker(way()).within(PATIENCE)
        asker.ask("HEAD", url + "/", lambda _: None, refuse, follow=False)
    except _Answered as answer:
        if answer.status >= 500:  # noqa: PLR2004 - the server's fault
            return Check(name, "warn", f"{url} fails with status {answer.status}", "try again later")
    except KawaiError as error:
        return Check(name, "fail", error.message, error.hint or "check the network connection")
    return Check(name, "ok", f"{origin_of(url).authority} answers")


def _writable(name: str, path: Path) -> Check:
    where = existing_parent(path)
    fix = "mend its mode, or name another with --home"
    if path.exists() and not path.is_dir():
        return Check(name, "fail", f"{path} is no directory", "move it away, or name another with --home")
    if any(each.exists() and not each.is_dir() for each in path.parents):
        return Check(name, "fail", f"{path} cannot be made: there is a file in its way", fix)
    if not os.access(where, os.W_OK | os.X_OK):
        return Check(name, "fail", f"{where} cannot be written", fix)
    return Check(name, "ok", str(path))


def _locked(name: str, path: Path) -> Check | None:
    """What to say of a directory that cannot be looked into."""
    if not path.is_dir() or os.access(path, os.R_OK | os.X_OK):
        return None
    return Check(name, "fail", f"{path} cannot be read", f"chmod u+rx {path}")


def _private(path: Path) -> Iterator[Check]:
    """What only its user may enter: sockets and keys are there."""
    try:
        mode = path.stat().st_mode & 0o777
    except OSError:
        return
    if mode & 0o077:
        yield Check("permissions", "fail", f"others may use {path} ({mode:o})", f"chmod go-rwx {path}")
    else:
        yield Check("permissions", "ok", f"{path} is private")


class _Answered(Exception):
    """A server that answers at all is there."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _guarded(name: str, look: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    try:
        yield from look()
    except KawaiError as error:
        yield Check(name, "fail", error.message, error.hint)
    except OSError as error:
        where = error.filename or "a file"
        yield Check(name, "fail", f"{where} cannot be used: {error.strerror}", "mend its mode or its disk")
