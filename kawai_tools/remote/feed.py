"""The events of a row that runs elsewhere, followed over dropped connections where it can be."""

from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from kawai_tools.errors import (
    UNDECODABLE,
    BadResponse,
    KawaiError,
    PullNotFound,
    Unavailable,
    Unreachable,
    UpstreamTimeout,
)
from kawai_tools.events import FINAL, Event, Message, PullEvent
from kawai_tools.transfer.patience import Patience

if TYPE_CHECKING:
    from kawai_tools.remote.peer import Peer
    from kawai_tools.transfer.responses import Response

EVENT_STREAM = "text/event-stream"
SILENCE = 60.0
"""Seconds without an event after which a stream counts as dropped: each is repeated every ten."""

_LONGEST = 1 << 24
_ERROR = 400
_ATTEMPTS = 9
_ANEW = "if it was started anew, pulling again goes on with what was fetched"
BROKEN = (Unreachable, UpstreamTimeout, BadResponse)
"""What a connection that drops is told by."""


class RemoteFeed:
    """The events of a row that runs elsewhere. Leaving it stops nothing there but what belongs to it."""

    def __init__(self, event: type[Message], peer: "Peer", answer: "Response") -> None:
        """Take over an answered request."""
        self._kinds = _kinds(event)
        self._answer = answer
        self._patience = Patience(attempts=_ATTEMPTS)
        self.peer = peer
        self.pull: PullEvent | None = None
        """The last event, where it is one of a Pull."""
        self.on_drop: Callable[[KawaiError], None] = lambda _: None
        """Told why a connection dropped, before another is made."""

    def follow(self) -> Iterator[Message | None]:
        """Yield events as they come until the end; ``None`` for one that was only repeated.

        A Pull is attached to again where the connection drops. Raises ``Unreachable`` where the other kawai
        does not come back, ``NoServer`` where it was the daemon of this home and has ended.
        """
        try:
            while (problem := (yield from self._until_broken())) is not None:
                self._answer.close()
                self._attach(problem)
        finally:
            self.close()

    def _until_broken(self) -> Generator[Message | None, None, KawaiError | None]:
        """The events of this connection; why it dropped, or ``None`` at the end of all."""
        try:
            yield from self._events()
        except BROKEN as error:
            if not self._is_over:
                return self.peer.gone(error)
        return None

    @property
    def _may_be_empty(self) -> bool:
        """Whether there may be nothing to tell: of one Pull there is always its end."""
        return not issubclass(self._kinds[-1], PullEvent)

    @property
    def _is_over(self) -> bool:
        """Whether nothing more can come."""
        return self.pull is not None and self.pull.status in FINAL

    def _events(self) -> Iterator[Message | None]:
        """What this connection brings. Raises one of ``BROKEN`` where it ends before its time."""
        seen: tuple[bytes, bytes] | None = None
        last: Message | None = None
        for number, data in _frames(self._answer):
            if (number, data) == seen:
                yield None
                continue
            seen, last = (number, data), self._decode(data)
            if isinstance(last, PullEvent):
                if self._has_told(last):
                    yield None
                    continue
                self.pull = last
            self._patience.progressed()
            yield last
            if self._is_over:
                return
        if last is None and self._may_be_empty:  # there was nothing to be done
            return
        if issubclass(self._kinds[-1], Event) and (not isinstance(last, Event) or last.status not in FINAL):
            raise Unreachable("it ended in the middle of its answer")

    def _has_told(self, event: PullEvent) -> bool:
        """Whether an event of a Pull came before, over an earlier connection."""
        return self.pull is not None and event.pull == self.pull.pull and event.seq <= self.pull.seq

    def _decode(self, data: bytes) -> Message:
        for kind in self._kinds:
            try:
                return msgspec.json.decode(data, type=kind)
            except UNDECODABLE:
                continue
        raise self.peer.misunderstood("sent an event that is not known here")

    def _attach(self, problem: KawaiError) -> None:
        """Follow the Pull over a new connection. Raises ``problem`` where it is none, or nothing helps."""
        if self.pull is None or self.peer.has_ended():
            raise problem
        self.on_drop(problem)
        while True:
            try:
                self._patience.failed(problem)
            except KawaiError as error:
                raise self._lost(error, self.pull) from error
            if self.peer.has_ended():  # its sockets end a moment before it does
                raise problem
            try:
                self._answer = self._asked(self.pull)
            except PullNotFound as error:
                raise Unreachable(
                    f"the kawai server at {self.peer.url} was started anew, and the pull ended with it",
                    "run the same command again; it goes on with what was fetched",
                ) from error
            except (*BROKEN, Unavailable) as error:
                problem = self.peer.gone(error)
            else:
                return

    def _asked(self, pull: PullEvent) -> "Response":
        headers = {"Accept": EVENT_STREAM, "Last-Event-ID": str(pull.seq)}
        path = f"/v1/pulls/{quote(pull.pull, safe='')}"
        answer = self.peer.ask("GET", path, None, headers, patience=SILENCE)
        if answer.status < _ERROR:
            return answer
        with answer:
            raise self.peer.reported(answer.status, answer.read())

    def _lost(self, error: KawaiError, pull: PullEvent) -> KawaiError:
        return Unreachable(error.message, f"once it is back, {self.peer.attaching(pull.pull)}; {_ANEW}")

    def close(self) -> None:
        """Hang up."""
        self._answer.close()


def _kinds(event: type[Message]) -> list[type[Message]]:
    """The declared event and what derives from it, the most particular first: each wants all its keys."""
    return [*(kind for child in event.__subclasses__() for kind in _kinds(child)), event]


def _frames(answer: "Response") -> Iterator[tuple[bytes, bytes]]:
    """Number and data of each frame; the servers asked here send one line of data a frame."""
    number = b""
    for line in _lines(answer):
        name, _, value = line.partition(b":")
        if name == b"id":
            number = value.strip()
        elif name == b"data":
            yield number, value.strip()


def _lines(answer: "Response") -> Iterator[bytes]:
    rest, buffer = b"", memoryview(bytearray(1 << 16))
    while count := answer.read_some(buffer):
        *lines, rest = (rest + bytes(buffer[:count])).split(b"\n")
        yield from lines
        if len(rest) > _LONGEST:
            raise BadResponse("it sends a line without an end")
