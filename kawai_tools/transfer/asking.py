"""Patient questions: a small answer wanted from a server that may be slow, busy or down for a moment."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from kawai_tools.errors import KawaiError, RateLimited, Unreachable, UpstreamTimeout
from kawai_tools.transfer.egress import origin_of
from kawai_tools.transfer.outbound import Outbound
from kawai_tools.transfer.patience import ATTEMPTS, Patience, retry_after
from kawai_tools.transfer.responses import Response
from kawai_tools.transfer.wire import Cancelled

T = TypeVar("T")

BUDGET = 25.0
"""Seconds that the questions of one plan may take in all, waiting for a 429 included."""


class Asker:
    """Asks until it is answered, refused, or out of patience."""

    def __init__(
        self,
        outbound: Outbound,
        *,
        until: float | None = None,
        pause: Callable[[float], None] = time.sleep,
        attempts: int = ATTEMPTS,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """By ``until`` (monotonic) every question must be answered; else each has ``BUDGET`` seconds.

        A failure that may pass is met with so many ``attempts``. Where ``stop`` says so, or ``pause`` raises
        ``Cancelled``, a question ends with that.
        """
        self.outbound = outbound
        self.pause = pause
        self._until = until
        self._attempts = attempts
        self._stop = stop

    def within(self, seconds: float, attempts: int = ATTEMPTS) -> "Asker":
        """The same, for questions that may take this long in all."""
        until = time.monotonic() + seconds
        return Asker(self.outbound, until=until, pause=self.pause, attempts=attempts, stop=self._stop)

    def stoppable(self, stop: Callable[[], bool], pause: Callable[[float], None]) -> "Asker":
        """The same, for questions that somebody may break off."""
        return Asker(self.outbound, until=self._until, pause=pause, attempts=self._attempts, stop=stop)

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
        patience = Patience(until - time.monotonic(), self.pause, attempts=self._attempts)
        problem: KawaiError | None = None
        while True:
            wait = None
            try:
                with self.outbound.request(
                    method,
                    url,
                    headers,
                    follow=follow,
                    cancelled=lambda: time.monotonic() > until or self._stop(),
                ) as answer:
                    if answer.status < 400 or answer.status in accepted:  # noqa: PLR2004 - HTTP's errors
                        return use(answer)
                    wait = retry_after(answer)
                    problem = refuse(answer)
            except (Unreachable, UpstreamTimeout) as error:
                problem = error
            except Cancelled:
                if self._stop():
                    raise
                late = UpstreamTimeout(f"{origin_of(url).authority} takes too long to answer", "try again")
                raise problem or late from None
            if not _may_pass(problem):
                raise problem
            patience.failed(problem, wait)


def _may_pass(problem: KawaiError) -> bool:
    if isinstance(problem, RateLimited):
        return not problem.lasting
    return isinstance(problem, (Unreachable, UpstreamTimeout))


class Asked(threading.Thread, Generic[T]):
    """A question in a thread of its own: looking up a name may block for longer than anybody waits."""

    def __init__(self, question: Callable[[], T]) -> None:
        """It is asked at once."""
        super().__init__(name="ask", daemon=True)
        self._question = question
        self._answer: T | None = None
        self._problem: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Ask."""
        try:
            self._answer = self._question()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that asks
            self._problem = error

    def within(self, seconds: float) -> T | None:
        """The answer, or ``None`` if there is none in time. Raises what the question raises."""
        self.join(seconds)
        if self._problem is not None:
            raise self._problem
        return self._answer
