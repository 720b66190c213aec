"""The clock by which something is no longer good, or no longer of the last hour."""

import sys
import time

_KIND = {"linux": "CLOCK_BOOTTIME", "darwin": "CLOCK_MONOTONIC"}.get(sys.platform, "")
_NUMBER: int | None = getattr(time, _KIND, None)


def passing() -> float:
    """Seconds of a clock that only goes forward, and goes on while the machine sleeps.

    ``time.monotonic`` stands still then on Linux (clock_gettime(2)) and on macOS, where it reads
    ``mach_absolute_time``.
    """
    return time.monotonic() if _NUMBER is None else time.clock_gettime(_NUMBER)
