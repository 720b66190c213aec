"""Several pulls, one after the other, that run elsewhere: asked for again where the connection drops."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from kawai_tools.errors import KawaiError, Unavailable
from kawai_tools.events import FINAL, Message, ModelPullEvent, PullEvent
from kawai_tools.remote.feed import BROKEN, RemoteFeed

if TYPE_CHECKING:
    from kawai_tools.remote.peer import Peer
    from kawai_tools.transfer.responses import Response


class RemotePulls(RemoteFeed):
    """The events of a row that pulls one thing after the other.

    The same request does what is still to be done; what has ended here before is not told again.
    """

    def __init__(
        self, event: type[Message], peer: "Peer", answer: "Response", again: Callable[[], "Response"]
    ) -> None:
        """Take over an answered request; ``again`` sends it once more."""
        super().__init__(event, peer, answer)
        self._again = again
        self._ended: set[str] = set()

    @property
    def _may_be_empty(self) -> bool:
        """There may be nothing to pull."""
        return True

    @property
    def _is_over(self) -> bool:
        """Only the server knows which is the last."""
        return False

    def _has_told(self, event: PullEvent) -> bool:
        name = event.id if isinstance(event, ModelPullEvent) else event.pull
        if name in self._ended:
            return True
        if event.status in FINAL:
            self._ended.add(name)
        return False

    def _attach(self, problem: KawaiError) -> None:
        """Send the request again. Raises ``problem`` where nothing helps."""
        if self.peer.has_ended():
            raise problem
        self.on_drop(problem)
        while True:
            self._patience.failed(problem)
            try:
                self._answer = self._again()
            except (*BROKEN, Unavailable) as error:
                problem = self.peer.gone(error)
            else:
                return
