"""The core in this process: for faults that must be timed, and states that no command makes."""

from pathlib import Path
from typing import Any

from kawai_tools.events import ModelPullEvent
from kawai_tools.libs.platforms import System
from kawai_tools.operations.models import MODELS_PULL, PullRequest
from kawai_tools.settings import Settings, Source
from kawai_tools.transfer.pulls import Pull
from kawai_tools.transfer.wire import Timeouts
from kawai_tools.workspace import Workspace

QUICK = Timeouts(connect=2.0, stall=1.0, tick=0.05)
"""Patience for tests in which a server falls silent."""


class Workspaces:
    """Makes workspaces on one home; as many processes would, they share nothing but the disk."""

    def __init__(self, home: Path, hub_endpoint: str) -> None:
        self.home = home
        self.hub_endpoint = hub_endpoint
        self._made: list[Workspace] = []

    def __call__(
        self,
        *,
        serves: bool = False,
        timeouts: Timeouts = QUICK,
        system: System | None = None,
        **settings: Any,  # noqa: ANN401
    ) -> Workspace:
        values = {"home": self.home, "hub_endpoint": self.hub_endpoint, "hub_home": self.home, **settings}
        sources = dict.fromkeys(values, Source.ENVIRONMENT)
        made = Workspace(Settings(**values, sources=sources), serves=serves, timeouts=timeouts, system=system)
        self._made.append(made)
        return made

    def close(self) -> None:
        """Cancel what still runs, and close all."""
        for each in self._made:
            each.pulls.close(10)
            each.close()


def pull(workspace: Workspace, source: str, proj_url: str | None = None, **more: Any) -> list[ModelPullEvent]:  # noqa: ANN401
    """Pull to the end; every event."""
    answer = MODELS_PULL.run(workspace, PullRequest(source, proj_url, **more))
    assert isinstance(answer, Pull)
    return [event for event in answer.follow() if isinstance(event, ModelPullEvent)]
