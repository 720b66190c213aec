"""So many at a time may ask servers elsewhere: what waits for them keeps a server's threads from others."""

import contextlib
import threading
from collections.abc import Iterator

from kawai_tools.errors import Busy


class Few:
    """Lets so many in at a time, and refuses more."""

    def __init__(self, most: int, what: str) -> None:
        """``what`` is being done by them, in words."""
        self._left, self._what = threading.BoundedSemaphore(most), what

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Be one of them. Raises ``Busy``."""
        if not self._left.acquire(blocking=False):
            error = Busy(f"{self._what} by several requests already", "try again in a moment")
            error.retry_after = 1
            raise error
        try:
            yield
        finally:
            self._left.release()
