"""What a member of an archive may be: bytes under a name that stays inside, or a link to such bytes."""

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from kawai_tools.libs.inflating import Limits, broken, quoted, unsafe

Parts = tuple[str, ...]
"""A path below the destination, taken apart."""

_MAX_PART = 255  # bytes of a name in one directory (NAME_MAX)
_MAX_CHAIN = 8  # links from one to the next; a library needs two


class Kind(StrEnum):
    """The four kinds there are; all others are refused by whoever reads the archive."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symbolic link"
    HARDLINK = "hard link"


@dataclass(frozen=True, slots=True)
class Member:
    """One entry: ``name`` as the archive has it, ``path`` where it goes.

    ``target`` is the text of a symbolic link, ``source`` the path of what a hard link repeats.
    """

    name: str
    path: Parts
    kind: Kind
    size: int = 0
    executable: bool = False
    target: str = ""
    source: Parts = ()


def parts(name: str, limits: Limits) -> Parts:
    """Take a member's name apart; ``.`` and empty parts say nothing and go. Raises ``UnsafeArchive``."""
    _check_text(name, name, limits)
    path = tuple(part for part in name.split("/") if part not in {"", "."})
    if ".." in path:
        raise unsafe(name, "would be written outside the build's directory")
    if len(path) > limits.depth:
        raise unsafe(name, f"lies more than {limits.depth} directories deep")
    if any(len(part.encode()) > _MAX_PART for part in path):
        raise unsafe(name, f"has a part of more than {_MAX_PART} bytes in its name")
    return path


def _check_text(text: str, name: str, limits: Limits) -> None:
    """Refuse a name or target that no system would read in the same way as we do."""
    if not text:
        raise unsafe(name, "has an empty name or target")
    if not text.isprintable():  # controls, NUL, bidi marks, and the surrogates of what is no UTF-8
        raise unsafe(name, "has control characters, or bytes that are no UTF-8, in its name or target")
    if len(text.encode()) > limits.name:
        raise unsafe(name, f"has a name or target of more than {limits.name:,} bytes")
    if text.startswith("/") or "\\" in text or ":" in text:
        raise unsafe(name, "has an absolute path, a backslash or a colon in its name or target")


def _folded(path: Parts) -> str:
    """One text for all spellings that a file system may take for the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", "/".join(path)).casefold())


class Tree:
    """All members of one archive, or of several, and the directories that they imply."""

    def __init__(self, limits: Limits) -> None:
        """Start empty."""
        self.limits = limits
        self.members: dict[Parts, Member] = {}
        self.listed: list[Member] = []
        self.digests: dict[Parts, bytes] = {}
        self.kept: dict[Parts, list[bytes]] | None = {}
        self._room = limits.kept
        self._spelled: dict[str, Parts] = {}

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(member.size for member in self.members.values())

    @property
    def directories(self) -> list[Parts]:
        """All directories, parents first."""
        return sorted((path for path, each in self.members.items() if each.kind is Kind.DIRECTORY), key=len)

    def add(self, member: Member) -> None:
        """Take one more member; hard links must name a file that is there. Raises ``UnsafeArchive``."""
        self._claim(member)
        self.listed.append(member)
        if not (self._same_directory(member) or self.members.setdefault(member.path, member) is member):
            raise unsafe(member.name, "is there twice")
        if member.kind is Kind.SYMLINK:
            _check_text(member.target, member.name, self.limits)
        if member.kind is Kind.HARDLINK and self._kind(member.source) is not Kind.FILE:
            raise unsafe(member.name, "is a hard link to what is no file before it in the archive")

    def keep(self, member: Member, piece: bytes | memoryview) -> None:
        """Keep a piece of a member, or nothing any more once it is too much."""
        self._room -= len(piece)
        if self._room < 0:
            self.kept = None
        if self.kept is not None:
            self.kept.setdefault(member.path, []).append(bytes(piece))  # a view would keep all around it

    def contents(self) -> Iterator[tuple[Member, Iterable[bytes | memoryview]]]:
        """The members as they were added, with what was kept of them."""
        kept = self.kept or {}
        return ((member, kept.get(member.path, ())) for member in self.listed)

    def _same_directory(self, member: Member) -> bool:
        return self._kind(member.path) is member.kind is Kind.DIRECTORY

    def _claim(self, member: Member) -> None:
        """Refuse a name that is taken by another spelling, or that lies below what is no directory."""
        for depth in range(1, len(member.path) + 1):
            path = member.path[:depth]
            spelled = self._spelled.setdefault(_folded(path), path)
            if spelled != path:
                raise unsafe(member.name, f"differs from {quoted('/'.join(spelled))} only in its spelling")
            if depth < len(member.path):
                above = self.members.setdefault(path, Member("/".join(path), path, Kind.DIRECTORY))
                if above.kind is not Kind.DIRECTORY:
                    raise unsafe(member.name, f"lies below {quoted(above.name)}, which is a {above.kind}")
        if len(self.members) > self.limits.members:
            raise unsafe(
                member.name, f"is one too many: there are more than {self.limits.members:,} directories"
            )

    def _kind(self, path: Parts) -> Kind | None:
        member = self.members.get(path)
        return None if member is None else member.kind

    def check_links(self) -> None:
        """Make sure that every symbolic link ends, link by link, at a file. Raises ``UnsafeArchive``."""
        for link in self.members.values():
            at = link
            for _ in range(_MAX_CHAIN):
                if at.kind is not Kind.SYMLINK:
                    break
                at = self._follow(at, link)
            else:
                raise unsafe(
                    link.name, "is a symbolic link that leads in a circle or through too many others"
                )

    def _follow(self, at: Member, link: Member) -> Member:
        """One step, as the kernel goes it: through directories that are there, never above the top."""
        here = list(at.path[:-1])
        for part in at.target.split("/"):
            if here and self._kind(tuple(here)) is not Kind.DIRECTORY:
                raise unsafe(link.name, "is a symbolic link to something that is not in the archive")
            if part == "..":
                if not here:
                    raise unsafe(link.name, "is a symbolic link that leads outside the build's directory")
                here.pop()
            elif part not in {"", "."}:
                here.append(part)
        found = self.members.get(tuple(here))
        if found is None or found.kind is Kind.DIRECTORY:
            raise unsafe(link.name, "is a symbolic link to something that is no file in the archive")
        return found

    def content(self, member: Member) -> tuple[object, ...]:
        """What two members of one name must have in common to be the same."""
        if member.kind is Kind.HARDLINK:
            return self.content(self.members[member.source])
        return member.kind, member.size, member.target, self.digests.get(member.path, b"")


def merged(trees: Iterable[Tree], limits: Limits) -> Tree:
    """One tree of several, whose digests are known: what more than one has must be the same.

    Raises ``BrokenArchive`` where it is not, and ``UnsafeArchive`` where only the spelling differs.
    """
    whole = Tree(limits)
    for tree in trees:
        for path, member in tree.members.items():
            earlier = whole.members.get(path)
            if earlier is None:
                whole.add(member)
                whole.digests[path] = tree.digests.get(path, b"")
            elif whole.content(earlier) != tree.content(member):
                raise broken(f"{quoted(member.name)} is in two of the archives, and not the same")
    return whole
