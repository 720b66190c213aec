"""Which faults are active, which strike a call, and the answer they leave of it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .faults import Fault
    from .messages import Answer, Call


class Misbehaviour:
    """The active faults and how often each has struck."""

    def __init__(self) -> None:
        """Start with none."""
        self._active: list[_Active] = []
        self._lock = threading.Lock()

    def add(self, *faults: Fault) -> None:
        """Make faults active, after those that are."""
        with self._lock:
            self._active.extend(_Active(fault) for fault in faults)

    def clear(self) -> None:
        """Drop all."""
        with self._lock:
            self._active.clear()

    def striking(self, call: Call, answer: Answer) -> list[Fault]:
        """Return the faults that strike this call now, and count them as struck."""
        with self._lock:
            return [active.fault for active in self._active if active.strikes(call, answer)]


@dataclass
class _Active:
    fault: Fault
    seen: int = 0

    def strikes(self, call: Call, answer: Answer) -> bool:
        if not self.fault.matches(call, answer):
            return False
        self.seen += 1
        struck = self.seen - self.fault.skip
        return struck > 0 and (self.fault.times is None or struck <= self.fault.times)
