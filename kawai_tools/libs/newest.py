"""The newest build for a machine: from what was answered lately, or asked for within seconds."""

import contextlib
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

from kawai_tools.errors import BuildNotFound, KawaiError, UpstreamTimeout, VersionNotFound
from kawai_tools.libs.builds import Choice, Wish, builds_in, choose, rank
from kawai_tools.libs.platforms import Machine
from kawai_tools.libs.release import Answers, Channel, Release
from kawai_tools.transfer.asking import Asked

FRESH = timedelta(minutes=10)
"""How old an answer may be that is shown without asking."""

PATIENCE, _SPARE = 3.5, 0.3
"""Seconds that showing what is installed waits for a release server."""

Found = tuple[Release, Choice]


def pick(pages: Iterable[list[Release]], machine: Machine, wish: Wish) -> Found:
    """The newest build for the best processor; one whose assets are still coming is passed over.

    Raises ``BuildNotFound`` or ``VersionNotFound``.
    """
    problem: KawaiError | None = None
    for page in pages:
        offers: list[Found] = []
        for release in page:
            try:
                offers.append((release, choose(builds_in(release.assets), machine, wish)))
            except BuildNotFound as error:
                problem = problem or error
        if offers:
            return min(offers, key=lambda offer: rank(offer[1]))
    raise problem or VersionNotFound("the release server lists no builds of llama.cpp")


class Newest:
    """What to tell of the newest build, without keeping anybody waiting."""

    def __init__(
        self, machine: Machine, answers: Answers, ask: Callable[[Channel, Wish, float], Found]
    ) -> None:
        """``ask`` asks the release server, within seconds."""
        self._machine = machine
        self._answers = answers
        self._ask = ask

    def latest(self, channel: Channel, wish: Wish) -> Found:
        """From answers of the last ten minutes, or asked within seconds.

        Raises a kind of ``Upstream``, ``Offline`` or ``NotFound``.
        """
        known = self._answers.remembered(channel)
        if known is not None and timedelta(0) <= datetime.now(UTC) - known[1] < FRESH:
            with contextlib.suppress(BuildNotFound, VersionNotFound):  # it may be on a further page
                return pick([known[0]], self._machine, wish)
        found = Asked(lambda: self._ask(channel, wish, PATIENCE)).within(PATIENCE + _SPARE)
        if found is None:
            raise UpstreamTimeout(f"{self._answers.api} is not found in time", "check the network connection")
        return found

    def remembered(self, channel: Channel, wish: Wish) -> Found | None:
        """As far as old answers tell; asks nobody."""
        known = self._answers.remembered(channel)
        try:
            return pick([known[0]], self._machine, wish) if known else None
        except (BuildNotFound, VersionNotFound):
            return None
