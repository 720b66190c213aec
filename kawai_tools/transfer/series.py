"""Several pulls, one after the other, told as one log."""

import threading
from collections.abc import Sequence

import msgspec

from kawai_tools.errors import ServerClosing
from kawai_tools.events import Event, Progress, PullEvent, Status
from kawai_tools.transfer.pulls import Feed, Job, Pull, Pulls

_GLANCE = 0.1


class Series(Feed[Event]):
    """Work that is done job by job; each ends in its own final event, numbered as the whole is.

    A job that fails keeps no other from being tried; where it ``belongs_to_follower``, one that leaves ends
    them all.
    """

    def __init__(self, pulls: Pulls, jobs: Sequence[Job], *, belongs_to_follower: bool = True) -> None:
        """Prepare; :meth:`start` begins."""
        super().__init__()
        self.belongs_to_follower = belongs_to_follower
        self._pulls = pulls
        self._jobs = jobs

    def start(self) -> "Series":
        """Begin in a thread of its own."""
        threading.Thread(target=self._run, name="series", daemon=True).start()
        return self

    def _run(self) -> None:
        try:
            for job in self._jobs:
                if self.is_cancelled():
                    break
                try:
                    self._pass_on(self._pulls.start(job))
                except ServerClosing as error:  # it is not begun
                    failed = Progress(status=Status.FAILED, error=error.info)
                    self._publish(job.render(failed, "", 0), keep=True)
        finally:
            self.close()

    def _pass_on(self, pull: Pull) -> None:
        told = None
        for event in pull.follow(heartbeat=_GLANCE):
            if self.is_cancelled():
                pull.cancel()
            if isinstance(event, PullEvent):
                now = (event.status, event.file)
                self._publish(event, keep=now != told)
                told = now

    def _publish(self, event: Event, *, keep: bool) -> None:
        self.publish(lambda seq: msgspec.structs.replace(event, seq=seq), keep=keep)
