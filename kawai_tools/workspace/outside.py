"""The ways out of a workspace: connections to elsewhere, each with the tokens that may go there."""

from functools import cached_property
from typing import TYPE_CHECKING

from kawai_tools.settings import Settings

if TYPE_CHECKING:
    from kawai_tools.transfer.egress import Origin
    from kawai_tools.transfer.headers import Headers
    from kawai_tools.transfer.hub import Hub
    from kawai_tools.transfer.outbound import Outbound
    from kawai_tools.transfer.wire import Timeouts

WAYS_OUT = ("outbound", "libs_outbound", "catalog_outbound", "listed_outbound")
"""Nouns that keep connections."""


class Outside:
    """What a workspace asks other machines with."""

    def __init__(self, settings: Settings, *, serves: bool, timeouts: "Timeouts | None") -> None:
        """Nothing is connected to yet."""
        self.settings = settings
        self.serves = serves
        self._timeouts = timeouts

    @cached_property
    def outbound(self) -> "Outbound":
        """The way out to hubs, with the hub's token."""
        from kawai_tools.transfer.hub import hub_credentials

        return self._way_out(hub_credentials(self.settings))

    @cached_property
    def libs_outbound(self) -> "Outbound":
        """The way out to release servers, with their token: a mirror may be both on one address."""
        from kawai_tools.libs.releases import release_credentials

        return self._way_out(release_credentials(self.settings))

    @cached_property
    def catalog_outbound(self) -> "Outbound":
        """The way out to subscribed catalogs, which get nobody's token."""
        return self._way_out({})

    def _way_out(self, credentials: "dict[Origin, str]", *, typed: bool = True) -> "Outbound":
        """A way out, with the authority of who serves; ``typed``: to where its user says."""
        from kawai_tools.transfer.ways import way_out

        return way_out(self.settings, credentials, self._timeouts, serves=self.serves, typed=typed)

    @cached_property
    def hub(self) -> "Hub":
        """The model hub."""
        from kawai_tools.transfer.hub import Hub

        return Hub(self.outbound, self.settings.hub_endpoint)

    @cached_property
    def listed_outbound(self) -> "Outbound":
        """The way out to files that a catalog names: nobody has typed their addresses."""
        from kawai_tools.transfer.hub import hub_credentials

        return self._way_out(hub_credentials(self.settings), typed=False)

    @cached_property
    def listed_hub(self) -> "Hub":
        """The hub, asked for files that a catalog names."""
        from kawai_tools.transfer.hub import Hub

        return Hub(self.listed_outbound, self.settings.hub_endpoint)

    @cached_property
    def headers(self) -> "Headers":
        """Headers of files that somebody names."""
        from kawai_tools.transfer.headers import Headers

        return Headers(self.hub)

    @cached_property
    def listed_headers(self) -> "Headers":
        """Headers of files that a catalog names."""
        from kawai_tools.transfer.headers import Headers

        return Headers(self.listed_hub)
