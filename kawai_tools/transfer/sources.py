"""Asks a server for ranges of one file, and holds its answers to what was asked and promised."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from kawai_tools.errors import BadResponse, KawaiError, RateLimited, Unreachable, UpstreamTimeout
from kawai_tools.transfer.egress import Hop
from kawai_tools.transfer.hub import RemoteFile
from kawai_tools.transfer.outbound import Outbound
from kawai_tools.transfer.patience import retry_after
from kawai_tools.transfer.responses import REDIRECTS, Response

LEAST = 1024
"""Bytes below which an answer that is shorter than asked counts as a failure: a file would take for ever."""


class StartOver(Exception):
    """The bytes so far may not belong together; ``ranged`` says whether ranges may be tried again."""

    def __init__(self, reason: str, *, ranged: bool) -> None:
        """``reason`` follows the address in a message."""
        super().__init__(reason)
        self.ranged = ranged


class TryAgain(Exception):
    """A failure that another request may mend, perhaps after some seconds."""

    def __init__(self, error: KawaiError, after: float | None) -> None:
        """``error`` is what to raise when patience ends."""
        super().__init__(error.message)
        self.error = error
        self.after = after


@dataclass
class Source:
    """One file as its server gives it.

    ``check`` sees the first bytes and raises if they are no such file; ``refuse`` says what an answer of
    400 or more means. With ``ranged=False`` only the whole file is asked for. Threads may share it.
    """

    outbound: Outbound
    file: RemoteFile
    check: Callable[[bytes], None]
    refuse: Callable[[Response], KawaiError]
    cancelled: Callable[[], bool]
    ranged: bool
    _moved: tuple[str, Hop | None] | None = None
    _etag: str | None = None

    def open(self, start: int, end: int) -> tuple[Response, int]:
        """Ask for a range, which an answer of the whole file may contain; the answer, and where it ends.

        It may end before the range does: some servers give only so much at a time.
        Raises ``StartOver``, ``TryAgain`` or a kind of ``KawaiError``.
        """
        headers = {}
        if self.ranged:
            headers["Range"] = f"bytes={start}-{end - 1}"
            if self.file.etag is not None:
                headers["If-Range"] = self.file.etag
        answer = self._open_moved(headers) or self._open_own(headers)
        try:
            given = self._check(answer, start)
        except BaseException:
            answer.close()
            raise
        return answer, min(given, end) if answer.status == 206 else given  # noqa: PLR2004 - Partial Content

    def forget(self) -> None:
        """Begin at the file's own address again."""
        self._moved = None

    def _open_moved(self, headers: dict[str, str]) -> Response | None:
        """Ask where the file's own address redirected to last, while that is good."""
        known = self._moved
        if known is None:
            return None
        answer = self.outbound.request("GET", known[0], headers, via=known[1], cancelled=self.cancelled)
        if answer.status < 400:  # noqa: PLR2004 - where HTTP's errors begin
            return answer
        answer.close()  # a signed address that has expired, most likely: ask for a new one
        self.forget()
        return None

    def _open_own(self, headers: dict[str, str]) -> Response:
        answer = self.outbound.request("GET", self.file.fetch, headers, cancelled=self.cancelled)
        if answer.status < 400:  # noqa: PLR2004
            if answer.via is not None:
                self._moved = (answer.url, answer.via)
            return answer
        answer.close()
        if answer.status == 416 and self.ranged:  # noqa: PLR2004 - Range Not Satisfiable
            raise StartOver("has no such range", ranged=False)
        problem = self.refuse(answer)
        passing = isinstance(problem, (RateLimited, Unreachable, UpstreamTimeout))
        if passing or answer.via is not None:  # a new signed address may be good
            raise TryAgain(problem, retry_after(answer))
        raise problem

    def _check(self, answer: Response, start: int) -> int:
        """Hold an answer to what was asked: which bytes, of which version, in which encoding; its end."""
        encoding = (answer.header("Content-Encoding") or "identity").lower()
        if encoding != "identity":
            raise BadResponse(f"{self.file.url} comes {encoding}-encoded though that was not asked for")
        if answer.status in REDIRECTS:
            raise BadResponse(f"{self.file.url} redirects to nowhere")
        if answer.status == 206 and self.ranged:  # noqa: PLR2004 - Partial Content
            self._check_version(answer)
            return self._check_range(answer, start)
        if answer.status != 200:  # noqa: PLR2004 - OK
            raise BadResponse(f"{self.file.url} answers with status {answer.status}")
        if answer.length not in {None, self.file.size}:
            self._refuse_length(answer)
        self._check_version(answer)
        if start:
            raise StartOver("ignores ranges", ranged=False)
        return self.file.size

    def _check_version(self, answer: Response) -> None:
        """Where ranges are put together, all must be of one version; without a digest this is the proof."""
        etag = answer.strong_etag
        if not self.ranged:
            return
        if self.file.sha256 is None:
            if etag != self.file.etag:
                raise StartOver("changes while it is fetched", ranged=False)
        elif etag is not None:
            self._etag = self._etag or etag
            if self._etag != etag:
                raise StartOver("changes while it is fetched", ranged=True)

    def _check_range(self, answer: Response, start: int) -> int:
        number = r"([0-9]{1,19})"
        form = rf"bytes {number}-{number}/([0-9]{{1,19}}|\*)"
        given = re.fullmatch(form, answer.header("Content-Range") or "")
        if given is None or int(given[1]) != start or given[3] not in {"*", str(self.file.size)}:
            raise StartOver("answers with another range than asked for", ranged=False)
        count = int(given[2]) + 1 - start
        if answer.length not in {None, count}:
            raise BadResponse(f"{self.file.url} sends {answer.length} bytes as a range of {count}")
        if count < min(LEAST, self.file.size - start):
            raise TryAgain(BadResponse(f"{self.file.url} gives only {max(count, 0)} bytes at a time"), None)
        return min(start + count, self.file.size)

    def _refuse_length(self, answer: Response) -> None:
        """Say what is wrong with an answer of another length: perhaps it is a page, not the file."""
        buffer = memoryview(bytearray(1024))
        self.check(bytes(buffer[: answer.read_some(buffer)]))
        raise BadResponse(f"{self.file.url} has {answer.length} bytes where {self.file.size} were promised")

    def refuse_surplus(self, answer: Response) -> None:
        """Raise if more follows what should be the end of an answer that named no length."""
        spare = memoryview(bytearray(1))
        try:
            more = answer.length is None and answer.read_some(spare)
        except (Unreachable, UpstreamTimeout):
            return  # all that was asked for came before
        if more:
            raise BadResponse(f"{self.file.url} sends more bytes than were promised")
