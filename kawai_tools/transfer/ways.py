"""Ways out as the settings say: what may be asked, through which proxies, with which credentials."""

from collections.abc import Mapping

from kawai_tools import __version__
from kawai_tools.settings import Settings
from kawai_tools.transfer.egress import Egress, Origin, origin_of
from kawai_tools.transfer.outbound import Outbound, Route
from kawai_tools.transfer.wire import Timeouts

PUBLIC_HOSTS = frozenset(
    {"huggingface.co", "hf.co", "cdn-lfs.huggingface.co", "api.github.com", "github.com"}
)
"""Where a server fetches from without being told: the public hub, and where llama.cpp is released."""


def route_of(settings: Settings) -> Route:
    """How addresses are reached."""
    proxies = {"http": settings.http_proxy, "https": settings.https_proxy}
    used = {scheme: url for scheme, url in proxies.items() if url}
    return Route(used, settings.no_proxy, settings.ssl_cert_file)


def way_out(
    settings: Settings,
    credentials: Mapping[Origin, str],
    timeouts: Timeouts | None,
    *,
    serves: bool,
    typed: bool = True,
) -> Outbound:
    """A way out.

    ``serves``: to configured hosts only, else to wherever its user says. With ``typed`` false nobody has
    typed the addresses, so that those on private networks are not asked.
    """
    named = {"hub_endpoint": settings.hub_endpoint, "libs_api": settings.libs_api}
    hosts = {key: origin_of(url).host for key, url in named.items()}
    moved = {host for key, host in hosts.items() if settings.source(key) != "default"}
    catalogs = {origin_of(url).host for url in settings.catalogs}
    return Outbound(
        Egress(
            hosts=PUBLIC_HOSTS.union(hosts.values(), settings.pull_hosts) if serves else None,
            trusted=frozenset(moved | catalogs),
            offline=settings.offline,
            near=None if typed else frozenset(settings.pull_hosts),
        ),
        agent=f"kawai/{__version__}",
        route=route_of(settings),
        credentials=credentials,
        timeouts=timeouts,
    )
