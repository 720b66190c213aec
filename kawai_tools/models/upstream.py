"""Installed models against what their revisions hold upstream now."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from kawai_tools.errors import FileNotOnHub, KawaiError
from kawai_tools.failure import ErrorInfo
from kawai_tools.models.records import Entry, FileRecord, Record
from kawai_tools.models.store import Store
from kawai_tools.refs import HUB, HubFile, HubRepo, parse_source
from kawai_tools.transfer.revisions import Answer, Blob, Revisions

Pins = Mapping[str, str]
"""Digests that files must have whatever a hub says, by their addresses."""


class InstalledVersion(msgspec.Struct, frozen=True):
    """What is installed: the commit it was fetched at, and the digest of its weights (the first shard's)."""

    commit: str | None
    sha256: str | None


class AvailableVersion(msgspec.Struct, frozen=True):
    """What the revision names now; ``size`` is that of all files together, in bytes."""

    commit: str | None
    sha256: str | None
    size: int


class OutdatedRow(msgspec.Struct, frozen=True, kw_only=True):
    """One model that came from a hub; ``error`` says why what is available is not known."""

    id: str
    installed: InstalledVersion
    available: AvailableVersion | None
    changed: bool
    error: ErrorInfo | None


class Upstream(NamedTuple):
    """One file of a model, what of the hub it is, and the commit and content that are there now."""

    file: FileRecord
    source: HubFile
    commit: str | None
    now: Blob
    changed: bool


class Comparison:
    """Installed models, compared with one look at the hub."""

    def __init__(self, revisions: Revisions, pins: Pins) -> None:
        """Nothing is asked yet; ``pins`` hold for files that the catalog names by digest."""
        self._revisions, self._pins = revisions, pins
        self._answers: dict[HubRepo, Answer] = {}

    def look(self, records: Iterable[Record], stop: Callable[[], bool] = lambda: False) -> None:
        """Ask for every repository that these came from, once. Raises ``Offline``, or ``Cancelled``."""
        wanted: dict[HubRepo, set[str]] = {}
        for record in records:
            for _, source in hub_files(record):
                if not _is_commit(source.revision):
                    wanted.setdefault(_repo(source), set()).add(source.path)
        self._answers |= self._revisions.ask(
            {repo: wanted[repo] for repo in sorted(wanted, key=_order)}, stop
        )

    def files(self, record: Record) -> list[Upstream]:
        """The files of a model that came from a hub, each with what is there now.

        Raises what asking for it did, and ``FileNotOnHub`` for a file that is there no more.
        """
        return [self._compared(record, file, source) for file, source in hub_files(record)]

    def _compared(self, record: Record, file: FileRecord, source: HubFile) -> Upstream:
        if _is_commit(source.revision):
            return Upstream(file, source, source.revision, Blob(file.size, file.sha256), changed=False)
        answer = self._answers[_repo(source)]
        if isinstance(answer, KawaiError):
            raise answer
        now = answer.files.get(source.path)
        if now is None:
            raise FileNotOnHub(
                f"{source.owner}/{source.repo} has no {source.path} at revision {source.revision} any more",
                f"see {HUB}/{source.owner}/{source.repo}; what is installed stays",
            )
        pinned = self._pins.get(file.url or "")
        same = _is_same(file, now, moved=answer.commit != record.commit)
        return Upstream(file, source, answer.commit, now, changed=not same and pinned != file.sha256)

    def row(self, record: Record) -> OutdatedRow:
        """What is told of one model."""
        installed = InstalledVersion(record.commit, record.weights[0].sha256)
        try:
            found = self.files(record)
        except KawaiError as error:
            return OutdatedRow(
                id=record.id, installed=installed, available=None, changed=False, error=error.info
            )
        first, size = found[0], sum(each.now.size for each in found)
        return OutdatedRow(
            id=record.id,
            installed=installed,
            available=AvailableVersion(first.commit, first.now.sha256, size),
            changed=any(each.changed for each in found),
            error=None,
        )


def outdated(store: Store, comparison: Comparison) -> list[OutdatedRow]:
    """Every model that came from a hub, sorted by id, against what is there now. Raises ``Offline``."""
    store.recover()
    records = [entry.record for entry in from_hubs(store.index.all())]
    comparison.look(records)
    return [comparison.row(record) for record in records]


def from_hubs(entries: Sequence[Entry]) -> list[Entry]:
    """Those whose weights came from a hub."""
    return [entry for entry in entries if entry.present and is_from_hub(entry.record)]


def is_from_hub(record: Record) -> bool:
    """Whether all weights of a model came from a hub, so that there is a revision to ask for."""
    known = {file.path for file, _ in hub_files(record)}
    return all(file.path in known for file in record.weights)


def hub_files(record: Record) -> list[tuple[FileRecord, HubFile]]:
    """The files of a model that came from a hub, and what of it they are; the weights come first."""
    found = []
    for file in [*record.weights, *([record.projection] if record.projection else [])]:
        source = _source(file.url)
        if source is not None:
            found.append((file, source))
    return found


def _source(url: str | None) -> HubFile | None:
    try:
        source = parse_source(url) if url else None
    except KawaiError:
        return None
    return source if isinstance(source, HubFile) else None


def _repo(source: HubFile) -> HubRepo:
    return HubRepo(source.owner, source.repo, revision=source.revision)


def _order(repo: HubRepo) -> tuple[str, str, str]:
    return repo.owner, repo.repo, repo.revision


def _is_commit(revision: str) -> bool:
    """Whether a revision is a commit, which nothing can move."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def _is_same(file: FileRecord, now: Blob, *, moved: bool) -> bool:
    """Whether what is installed is what is there; where a digest is not known the commit tells."""
    if file.size != now.size:
        return False
    if file.sha256 is None or now.sha256 is None:
        return not moved
    return file.sha256 == now.sha256
