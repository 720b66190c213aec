"""What pruning finds: a thing that may go, why, and how; or why it is left alone."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec

from kawai_tools.errors import ErrorInfo

Kind = Literal["partial", "superseded", "build", "model"]

IN_USE = "in use"
MEANWHILE = "it was used meanwhile"


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at; ``size`` are the bytes of disk that come back with it.

    ``path`` is that of a model's first file, else of a file or directory. ``kept`` says that it is left
    alone, for the ``reason`` given; ``error`` why it could not be removed. ``last_used`` is when a model was
    last used, or a download last written; ``None`` for never, and for what nobody uses.
    """

    kind: Kind
    path: str
    id: str | None
    size: int
    reason: str
    removed: bool = False
    kept: bool = False
    last_used: datetime | None = None
    error: ErrorInfo | None = None

    @property
    def place(self) -> tuple[str, str]:
        """What tells it from others."""
        return self.kind, self.path


@dataclass(frozen=True, kw_only=True)
class Find:
    """A thing, as it was when it was looked at.

    ``remove`` takes it away, once nobody else can use it, and says why not where it is another by then;
    it raises ``InUse``, and what a disk answers. With ``for_space`` it goes only while room is wanted.
    """

    kind: Kind
    path: Path
    id: str | None = None
    size: int
    reason: str
    kept: bool = False
    last_used: datetime | None = None
    remove: Callable[[], str | None] = lambda: None
    for_space: bool = False

    @property
    def row(self) -> Pruned:
        """The thing as it is told of."""
        return Pruned(
            kind=self.kind,
            path=str(self.path),
            id=self.id,
            size=self.size,
            reason=self.reason,
            kept=self.kept,
            last_used=self.last_used,
        )
