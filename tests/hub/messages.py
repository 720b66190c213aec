"""The vocabulary of the local hub: what was asked, what is answered, and how the answer travels."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Self, TypedDict, Unpack
from urllib.parse import parse_qs, unquote

if TYPE_CHECKING:
    from pathlib import Path

ServerName = Literal["hub", "cdn"]
Framing = Literal["length", "chunked", "close"]
PieceSize = Callable[[], int]

BEFORE_HEAD = -1
"""A `Manner.cut_at` or `Manner.silent_at` that strikes before the status line is sent."""


@dataclass(frozen=True)
class Call:
    """One request as it arrived; `path` and `query` are as sent, header names are lower case."""

    server: ServerName
    method: str
    path: str
    query: str
    headers: Mapping[str, str]

    @property
    def segments(self) -> list[str]:
        """The path's segments, each decoded on its own, so that `%2F` stays inside its segment."""
        return [unquote(part) for part in self.path.split("/")[1:]]

    @property
    def params(self) -> dict[str, str]:
        """The query's parameters; of a repeated one, the last."""
        return {name: values[-1] for name, values in parse_qs(self.query).items()}

    def without(self, *names: str) -> Call:
        """Return the same call without the headers of these lower-case names."""
        return replace(self, headers={k: v for k, v in self.headers.items() if k not in names})

    def having(self, name: str, value: str) -> Call:
        """Return the same call with the header of this lower-case name set."""
        return replace(self, headers={**self.headers, name: value})


@dataclass(frozen=True)
class Request:
    """One answered request as `LocalHub.requests` lists it; status 0 means that no head was sent."""

    server: ServerName
    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    status: int
    sent_bytes: int


@dataclass(frozen=True)
class Blob:
    """A stored file's content, with its identities."""

    path: Path
    size: int
    sha256: str
    lfs: bool
    oid: str

    @property
    def pointer(self) -> bytes:
        """The Git LFS pointer text that stands for the content in git."""
        return pointer_text(self.sha256, self.size)


def pointer_text(sha256: str, size: int) -> bytes:
    """Return the Git LFS pointer file (its specification, version 1) for a content."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


@dataclass(frozen=True)
class Span:
    """A body: the bytes `start` to `stop` (exclusive) of a file."""

    path: Path
    start: int
    stop: int

    @property
    def length(self) -> int:
        """The number of bytes."""
        return self.stop - self.start

    def pieces(self, size: PieceSize) -> Iterator[bytes]:
        """Read the span in pieces of at most `size()` bytes, asked anew for each."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            while (left := self.stop - file.tell()) > 0:
                yield file.read(min(size(), left))


@dataclass(frozen=True)
class Stream:
    """A body made up while it is sent; `length` is None where it is endless or not known before."""

    make: Callable[[PieceSize], Iterator[bytes]]
    length: int | None = None

    def pieces(self, size: PieceSize) -> Iterator[bytes]:
        """Make the body in pieces of about `size()` bytes."""
        return self.make(size)

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Return the body that is this data."""

        def make(size: PieceSize) -> Iterator[bytes]:
            at = 0
            while at < len(data):
                piece = data[at : at + size()]
                at += len(piece)
                yield piece

        return cls(make, len(data))


class Ways(TypedDict, total=False):
    """The fields of `Manner`, for `Answer.delivered`."""

    framing: Framing
    delay: float
    claim: int | None
    cut_at: int | None
    reset: bool
    silent_at: int | None
    pause: float
    pause_after: int
    then: Callable[[], None] | None


@dataclass(frozen=True)
class Manner:
    """How an answer travels: as it should, or as a fault wants it.

    The head comes `delay` seconds late. `claim` is the Content-Length to state instead of the true one.
    At `cut_at` body bytes the connection is closed (`reset`: by RST); at `silent_at` nothing more comes.
    From `pause_after` on, each byte is preceded by `pause` seconds. `then` is called when the answer has
    ended.
    """

    framing: Framing = "length"
    delay: float = 0.0
    claim: int | None = None
    cut_at: int | None = None
    reset: bool = False
    silent_at: int | None = None
    pause: float = 0.0
    pause_after: int = 0
    then: Callable[[], None] | None = None

    @property
    def limit(self) -> int | None:
        """The count of body bytes after which the answer stops short, if it does."""
        stops = [at for at in (self.cut_at, self.silent_at) if at is not None]
        return min(stops) if stops else None


@dataclass(frozen=True)
class Answer:
    """A response; `blob` is the file whose bytes (all or some) it carries, if it does."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Span | Stream = field(default_factory=lambda: Stream.of(b""))
    blob: Blob | None = None
    manner: Manner = field(default_factory=Manner)

    def header(self, name: str) -> str | None:
        """Return the header of this name, whatever its case."""
        return next((v for k, v in self.headers.items() if k.lower() == name.lower()), None)

    def having(self, name: str, value: str | None) -> Answer:
        """Return the same answer with this header set, or with None removed."""
        kept = {k: v for k, v in self.headers.items() if k.lower() != name.lower()}
        return replace(self, headers=kept if value is None else {**kept, name: value})

    def delivered(self, **ways: Unpack[Ways]) -> Answer:
        """Return the same answer travelling in another manner."""
        return replace(self, manner=replace(self.manner, **ways))


def text_answer(status: int, text: str, kind: str = "text/plain", **headers: str) -> Answer:
    """Return an answer that is a text; `_` in the names of further headers stands for `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = Stream.of(text.encode())
    return Answer(status, {"Content-Type": f"{kind}; charset=utf-8", **named}, body)


def conditional(call: Call, answer: Answer) -> Answer:
    """Answer 304 where the caller has it already; weak and strong tags count as equal (RFC 9110, 13.1.2)."""
    etag = answer.header("ETag")
    held = re.split(r"\s*,\s*", call.headers.get("if-none-match", "").strip())
    if etag is None or etag.removeprefix("W/") not in {each.removeprefix("W/") for each in held}:
        return answer
    return Answer(304, {k: v for k, v in answer.headers.items() if k != "Content-Type"})
