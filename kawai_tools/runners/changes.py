"""Changes that others wait for: a number that is another after each, who is woken by it, and who is told."""

import asyncio
from collections.abc import Callable


class Changes:
    """Used in one event loop's thread only."""

    def __init__(self) -> None:
        """Nothing has changed yet."""
        self.revision = 0
        self._watchers: list[asyncio.Future[None]] = []
        self._listeners: list[Callable[[], None]] = []

    def note(self) -> None:
        """Something has changed."""
        self.revision += 1
        for tell in self._listeners:
            tell()
        watchers, self._watchers = self._watchers, []
        for each in watchers:
            if not each.done():
                each.set_result(None)

    def listen(self, tell: Callable[[], None]) -> None:
        """Have ``tell`` called at every change from now on: it must be quick, and change nothing."""
        self._listeners.append(tell)

    async def until(self, met: Callable[[], bool]) -> None:
        """Wait until something is so: it is looked at now, and after each change."""
        while not met():
            change = asyncio.get_running_loop().create_future()
            self._watchers.append(change)
            await change

    async def next(self, after: int) -> None:
        """Wait until the revision is not ``after``."""
        await self.until(lambda: self.revision != after)
