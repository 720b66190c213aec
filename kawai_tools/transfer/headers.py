"""The header of a GGUF file elsewhere, read by range requests for hardly more than its own bytes.

How long a header is, nobody says beforehand. What is certain to come (eight bytes for each string of an
array that is left, and so on) is asked for; beyond that what is likely, from the strings seen so far, as far
as all that was fetched stays within a tenth more than what the header is known to have. Arrays of numbers
are stepped over unfetched.
"""

import time
from functools import partial

from kawai_tools.errors import BadResponse, KawaiError, MalformedGguf, NotAModel, Unreachable, UpstreamTimeout
from kawai_tools.gguf import Header, read_header_from, sniff
from kawai_tools.transfer.hub import Hub
from kawai_tools.transfer.patience import ATTEMPTS, Patience
from kawai_tools.transfer.remote_file import RemoteFile
from kawai_tools.transfer.responses import Response
from kawai_tools.transfer.sources import LEAST, Source, StartOver, TryAgain
from kawai_tools.transfer.wire import Cancelled

MOST = 64 << 20
"""Bytes that are fetched of one file at most; the largest vocabularies need some 20 MiB."""

FIRST, _LEAST = 4 << 10, 4 << 10
_STEP = 8 << 20  # bytes that one request asks for at most
_MOST_REQUESTS = 64
_SPARE, _SPARE_STEP = (
    10,
    32,
)  # parts of what is known, and of what was fetched, by which too much may be asked
_FEW = 16  # parts of what was fetched that are worth a request while that is little
_REMEMBERED = 128
_LONGEST = 1 << 18  # bytes of a header that is remembered


class Unread(Exception):
    """A header that cannot be had from where it is; ``reason`` follows the address in a message."""

    def __init__(self, reason: str) -> None:
        """As :class:`Unread` says."""
        super().__init__(reason)
        self.reason = reason


class Headers:
    """Reads headers of files elsewhere, and remembers those of files that never change. Safe to share."""

    def __init__(self, hub: Hub) -> None:
        """``hub`` is asked as it is for downloads."""
        self._hub = hub
        self._known: dict[tuple[str, str], Header] = {}

    def read(self, file: RemoteFile, seconds: float, attempts: int = ATTEMPTS) -> Header:
        """The header of a file, within so many seconds; a failure that may pass is met with more attempts.

        Raises ``Unread`` where the server gives no ranges, or the header is too large or too slow; else
        ``MalformedGguf``, ``NotAModel``, or what a refusal of the server means.
        """
        version = file.sha256 or file.commit or file.etag
        known = self._known.get((file.url, version)) if version else None
        if known is not None:
            return known
        header = self._read(RemoteBytes(self._hub, file, seconds, attempts))
        if version and header.kept < _LONGEST:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[file.url, version] = header
        return header

    @staticmethod
    def _read(there: "RemoteBytes") -> Header:
        try:
            return read_header_from(there)
        except (MalformedGguf, NotAModel) as error:
            raise type(error)(f"{there.file.url}: {error.message}", error.hint) from None
        except StartOver as error:
            raise Unread(f"it {error}") from None
        except BadResponse as error:
            raise Unread(error.message) from None


class RemoteBytes:
    """The bytes of a file elsewhere, as the reader of headers takes them.

    ``fetched`` and ``requests`` count what that has cost; connections are kept for the next request.
    """

    def __init__(self, hub: Hub, file: RemoteFile, seconds: float, attempts: int = ATTEMPTS) -> None:
        """Nothing is asked yet; within ``seconds`` from now all must be."""
        self.file, self.size = file, file.size
        self.fetched = self.requests = 0
        self._until, self._attempts = time.monotonic() + seconds, attempts
        self._source = Source(
            outbound=hub.outbound,
            file=file,
            check=sniff,
            refuse=partial(hub.refusal_of, file),
            cancelled=self._is_late,
            ranged=True,
        )

    def _is_late(self) -> bool:
        return time.monotonic() > self._until

    def read(self, offset: int, length: int, *, certain: int, likely: int) -> bytes:
        """What the reader needs, and as much of what it will need next as is sure enough.

        Raises ``Unread``, ``StartOver``, a kind of ``Upstream``, or what a refusal means.
        """
        end = min(self.size, offset + self._wanted(offset, length, certain, likely))
        if self.fetched + end - offset > MOST:
            raise Unread(f"its header is larger than is read from elsewhere ({MOST} bytes)")
        if self.requests >= _MOST_REQUESTS:
            raise Unread(f"its header would take more than {_MOST_REQUESTS} requests")
        data = bytearray()
        patience = Patience(self._until - time.monotonic(), attempts=self._attempts)
        problem: KawaiError | None = None
        while len(data) < length and offset + len(data) < self.size:
            try:
                self._fetch(data, offset + len(data), end)
            except (TryAgain, Unreachable, UpstreamTimeout) as failure:
                problem = self._wait(patience, failure)
            except Cancelled:
                raise problem or Unread("it takes too long to answer") from None
        return bytes(data)

    def _wanted(self, offset: int, length: int, certain: int, likely: int) -> int:
        """How many bytes to ask for."""
        sure = offset + certain
        spare = sure + sure // _SPARE - self.fetched
        least = max(LEAST, min(self.fetched // _FEW, _LEAST), self.fetched // _SPARE_STEP)
        step = max(min(likely + likely // _SPARE_STEP, spare), least if self.fetched else FIRST)
        return max(length, min(step, _STEP))

    def _fetch(self, data: bytearray, start: int, end: int) -> None:
        """Ask for a range, and add to ``data`` what comes of it."""
        self.requests += 1
        answer, given = self._source.open(start, end)
        with answer:
            if given > end:
                raise StartOver("gives the whole file where a part is asked for", ranged=False)
            buffer, done = memoryview(bytearray(given - start)), 0
            try:
                while done < len(buffer) and (more := answer.read_some(buffer[done:])):
                    done += more
            finally:
                self.fetched += done
                data += buffer[:done]
            self._end(answer, short=done < len(buffer))

    def _end(self, answer: Response, *, short: bool) -> None:
        """Hold a body to its length; one that says none is read to its end."""
        if short:
            raise Unreachable(f"{self.file.url} ends early", "try again later")
        self._source.refuse_surplus(answer)

    def _wait(self, patience: Patience, failure: TryAgain | KawaiError) -> KawaiError:
        """Wait before another request, or raise what was in the way; which is returned."""
        error, after = (failure.error, failure.after) if isinstance(failure, TryAgain) else (failure, None)
        self._source.forget()
        patience.failed(error, after)
        return error
