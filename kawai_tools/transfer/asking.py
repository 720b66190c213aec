"""Patient questions: a small answer wanted from a server that may be slow, busy or down for a moment."""

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from kawai_tools.errors import KawaiError, RateLimited, Unreachable, UpstreamTimeout
from kawai_tools.transfer.egress import origin_of
from kawai_tools.transfer.outbound import Outbound
from kawai_tools.transfer.patience import Patience, retry_after
from kawai_tools.transfer.responses import Response
from kawai_tools.transfer.wire import Cancelled

T = TypeVar("T")

BUDGET = 25.0
"""Seconds that the questions of one plan may take in all, waiting for a 429 included."""


class Asker:
    """Asks until it is answered, refused, or out of patience."""

    def __init__(
        self, outbound: Outbound, *, until: float | None = None, pause: Callable[[float], None] = time.sleep
    ) -> None:
        """By ``until`` (monotonic) every question must be answered; else each has ``BUDGET`` seconds."""
        self.outbound = outbound
        self.pause = pause
        self._until = until

    def within(self, seconds: float) -> "Asker":
        """The same, for questions that may take this long in all."""
        return Asker(self.outbound, until=time.monotonic() + seconds, pause=self.pause)

    def ask(
        self,
        method: str,
        url: str,
        use: Callable[[Response], T],
        refuse: Callable[[Response], KawaiError],
        *,
        headers: Mapping[str, str] | None = None,
        follow: bool = True,
        accepted: frozenset[int] = frozenset(),
    ) -> T:
        """What ``use`` makes of the answer; ``refuse`` says what one of 400 or more means, and is raised.

        ``accepted`` are such statuses that ``use`` takes all the same. Whatever may pass (429, 5xx, a
        broken connection) is asked again first. Raises a kind of ``Upstream`` when patience ends.
        """
        until = self._until or time.monotonic() + BUDGET
        patience = Patience(until - time.monotonic(), self.pause)
        problem: KawaiError | None = None
        while True:
            wait = None
            try:
                with self.outbound.request(
                    method, url, headers, follow=follow, cancelled=lambda: time.monotonic() > until
                ) as answer:
                    if answer.status < 400 or answer.status in accepted:  # noqa: PLR2004 - HTTP's errors
                        return use(answer)
                    wait = retry_after(answer)
                    problem = refuse(answer)
            except (Unreachable, UpstreamTimeout) as error:
                problem = error
            except Cancelled:
                late = UpstreamTimeout(f"{origin_of(url).authority} takes too long to answer", "try again")
                raise problem or late from None
            if not _may_pass(problem):
                raise problem
            patience.failed(problem, wait)


def _may_pass(problem: KawaiError) -> bool:
    if isinstance(problem, RateLimited):
        return not problem.lasting
    return isinstance(problem, (Unreachable, UpstreamTimeout))
