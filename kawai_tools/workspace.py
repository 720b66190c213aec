"""The composition root: builds the nouns from Settings. It has no verbs of its own.

Each noun's module is imported when the noun is first asked for: a list needs no HTTP client.
"""

from functools import cached_property
from typing import TYPE_CHECKING

from kawai_tools.settings import Settings

if TYPE_CHECKING:
    from kawai_tools.models.layout import Layout
    from kawai_tools.models.planning import Planner
    from kawai_tools.models.pulling import Puller
    from kawai_tools.models.store import Store
    from kawai_tools.transfer.hub import Hub
    from kawai_tools.transfer.outbound import Outbound
    from kawai_tools.transfer.pulls import Pulls
    from kawai_tools.transfer.wire import Timeouts


class Workspace:
    """The nouns of one home, made when first used.

    ``serves`` says whose authority is acted with: a server may fetch from configured hosts only, the
    command line from wherever its user says. ``timeouts`` are those of the network.
    """

    def __init__(
        self, settings: Settings, *, serves: bool = False, timeouts: "Timeouts | None" = None
    ) -> None:
        """Nothing is opened yet."""
        self.settings = settings
        self.serves = serves
        self._timeouts = timeouts

    @cached_property
    def pulls(self) -> "Pulls":
        """The pulls of this process."""
        from kawai_tools.transfer.pulls import Pulls

        return Pulls()

    @cached_property
    def layout(self) -> "Layout":
        """Where everything is."""
        from kawai_tools.models.layout import Layout

        return Layout(self.settings.data_dir, self.settings.state_dir)

    @cached_property
    def models(self) -> "Store":
        """The installed models."""
        from kawai_tools.models.store import Store

        return Store(self.layout)

    @cached_property
    def outbound(self) -> "Outbound":
        """The way out, with the egress policy of who serves."""
        from urllib.parse import urlsplit

        from kawai_tools import __version__
        from kawai_tools.transfer.egress import Egress
        from kawai_tools.transfer.hub import hub_credentials
        from kawai_tools.transfer.outbound import Outbound, Route

        settings = self.settings
        hub = urlsplit(settings.hub_endpoint).hostname or ""
        public = frozenset({"huggingface.co", "hf.co", "cdn-lfs.huggingface.co", *settings.pull_hosts})
        moved = settings.source("hub_endpoint") != "default"
        proxies = {"http": settings.http_proxy, "https": settings.https_proxy}
        return Outbound(
            Egress(
                hosts=public | {hub} if self.serves else None,
                trusted=frozenset({hub}) if moved else frozenset(),
                offline=settings.offline,
            ),
            agent=f"kawai/{__version__}",
            route=Route(
                {scheme: url for scheme, url in proxies.items() if url},
                settings.no_proxy,
                settings.ssl_cert_file,
            ),
            credentials=hub_credentials(settings),
            timeouts=self._timeouts,
        )

    @cached_property
    def hub(self) -> "Hub":
        """The model hub."""
        from kawai_tools.transfer.hub import Hub

        return Hub(self.outbound, self.settings.hub_endpoint)

    @cached_property
    def planner(self) -> "Planner":
        """Plans pulls of models."""
        from kawai_tools.models.planning import Planner

        return Planner(self.models, self.hub, local_paths=not self.serves)

    @cached_property
    def puller(self) -> "Puller":
        """Carries out plans of models."""
        from kawai_tools.models.pulling import Puller

        return Puller(
            self.models,
            self.hub,
            connections=self.settings.connections,
            limit_rate=self.settings.limit_rate,
        )

    def warm(self) -> None:
        """Make every noun now, before threads could each make their own."""
        _ = self.pulls, self.models, self.planner, self.puller

    def close(self) -> None:
        """Let go of idle connections."""
        if "outbound" in vars(self):
            self.outbound.close()
