"""How often and how long a failing server is asked again."""

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from kawai_tools.errors import KawaiError

if TYPE_CHECKING:
    from kawai_tools.transfer.responses import Response

LONGEST_WAIT = 6.0
"""Seconds: what is waited at most, whatever ``Retry-After`` asks."""

ATTEMPTS = 5
"""How often something is tried in a row before it counts as failed."""


class Patience:
    """Retries of one purpose: at least four in a row without progress, within a budget of seconds."""

    def __init__(
        self, budget: float = 30.0, pause: Callable[[float], None] = time.sleep, *, attempts: int = ATTEMPTS
    ) -> None:
        """``pause`` waits; it may raise to give up."""
        self._attempts = attempts
        self._budget = budget
        self._pause = pause
        self._failures = 0
        self._since = time.monotonic()

    def progressed(self) -> None:
        """Something arrived: forget the failures."""
        self._failures = 0

    def failed(self, error: KawaiError, retry_after: float | None = None) -> None:
        """Wait before the next attempt, or raise ``error`` when that was enough."""
        if self._failures == 0:
            self._since = time.monotonic()
        self._failures += 1
        left = self._budget - (time.monotonic() - self._since)
        if self._failures >= self._attempts or left <= 0:
            raise error
        wait = 0.4 * 2 ** (self._failures - 1) if retry_after is None else retry_after
        self._pause(min(wait, LONGEST_WAIT, left))


def retry_after(answer: "Response") -> float | None:
    """The seconds that a server asks to wait, if it does so in seconds."""
    value = answer.header("Retry-After") or ""
    return float(value) if re.fullmatch(r"\d{1,9}", value) else None
