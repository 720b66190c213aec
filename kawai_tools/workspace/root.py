"""The composition root: builds the nouns from Settings. It has no verbs of its own.

Each noun's module is imported when the noun is first asked for: a list needs no HTTP client.
"""

from functools import cached_property
from typing import TYPE_CHECKING

from kawai_tools.settings import Settings
from kawai_tools.workspace.outside import WAYS_OUT, Outside

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kawai_tools.carry.exporting import Exporter
    from kawai_tools.carry.importing import Importer
    from kawai_tools.catalog.catalog import Catalog
    from kawai_tools.catalog.lists import Lists
    from kawai_tools.catalog.subscriptions import Subscriptions
    from kawai_tools.doctor import Doctor
    from kawai_tools.journal import Journals
    from kawai_tools.libs.builds import Wish
    from kawai_tools.libs.bundles import Bundles
    from kawai_tools.libs.newest import Found, Newest
    from kawai_tools.libs.planning import LibsPlanner
    from kawai_tools.libs.platforms import Machine, System
    from kawai_tools.libs.pulling import LibsPuller
    from kawai_tools.libs.release import Answers, Channel
    from kawai_tools.models.adopting import Adopter
    from kawai_tools.models.layout import Layout
    from kawai_tools.models.neighbours import Neighbours
    from kawai_tools.models.planning import Planner
    from kawai_tools.models.pulling import Puller
    from kawai_tools.models.store import Store
    from kawai_tools.models.upstream import Comparison
    from kawai_tools.runners.engines import Engine
    from kawai_tools.runners.fitting import Fitting
    from kawai_tools.runners.memory import Budget
    from kawai_tools.runners.orders import Orders
    from kawai_tools.runners.pool import Pool
    from kawai_tools.runners.process import Place
    from kawai_tools.runners.room import Rooms
    from kawai_tools.runners.tuning import Tuning
    from kawai_tools.service.manager import Service
    from kawai_tools.storage.pruning import Pruner
    from kawai_tools.storage.usage import Disk
    from kawai_tools.tokens import Tokens
    from kawai_tools.transfer.fetching import Pace
    from kawai_tools.transfer.few import Few
    from kawai_tools.transfer.pulls import Pulls
    from kawai_tools.transfer.wire import Timeouts


class Workspace(Outside):
    """The nouns of one home, made when first used.

    ``serves`` says whose authority is acted with: a server may fetch from configured hosts only, the
    command line from wherever its user says. ``timeouts`` are those of the network,
    ``system`` the machine that is looked at.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        serves: bool = False,
        timeouts: "Timeouts | None" = None,
        system: "System | None" = None,
    ) -> None:
        """Nothing is opened yet."""
        super().__init__(settings, serves=serves, timeouts=timeouts)
        self._system = system

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
    def catalog(self) -> "Catalog":
        """What could be installed."""
        from kawai_tools.catalog.catalog import Catalog

        return Catalog(self._lists, self.models)

    @cached_property
    def _lists(self) -> "Lists":
        return self._make_lists()

    def _make_lists(self, *, remembers: bool = True) -> "Lists":
        from kawai_tools.catalog.lists import Lists

        settings = self.settings
        return Lists(
            folder=settings.config_dir / "catalogs",
            data=settings.data_dir / "catalogs",
            subscriptions=settings.catalogs,
            endpoint=settings.hub_endpoint,
            hosts=frozenset(settings.pull_hosts),
            remembers=remembers,
        )

    @cached_property
    def subscriptions(self) -> "Subscriptions":
        """The catalogs that are fetched from elsewhere."""
        from kawai_tools.catalog.subscriptions import Subscriptions
        from kawai_tools.transfer.asking import Asker

        return Subscriptions(self._lists, Asker(self.catalog_outbound))

    @cached_property
    def planner(self) -> "Planner":
        """Plans pulls of models."""
        from kawai_tools.models.planning import Planner

        return Planner(self.models, self.hub, local_paths=not self.serves)

    @cached_property
    def puller(self) -> "Puller":
        """Carries out plans of models."""
        from kawai_tools.models.pulling import Puller

        return Puller(self.models, self.hub, self._pace)

    @cached_property
    def listed_planner(self) -> "Planner":
        """Plans pulls of catalog entries."""
        from kawai_tools.models.planning import Planner

        return Planner(self.models, self.listed_hub, local_paths=False)

    @cached_property
    def listed_puller(self) -> "Puller":
        """Carries out plans of catalog entries."""
        from kawai_tools.models.pulling import Puller

        return Puller(self.models, self.listed_hub, self._pace)

    @cached_property
    def neighbours(self) -> "Neighbours":
        """What other tools on this machine hold."""
        from kawai_tools.models.neighbours import Neighbours, places

        return Neighbours(self.models, places(self.settings))

    @cached_property
    def adopter(self) -> "Adopter":
        """Takes in files that are here already."""
        from kawai_tools.models.adopting import Adopter

        return Adopter(self.models, self.neighbours)

    @cached_property
    def comparing(self) -> "Few":
        """How many may look at once what the hub holds."""
        from kawai_tools.transfer.few import Few

        return Few(2, "the hub is being asked what is outdated")

    def comparison(self) -> "Comparison":
        """A look at what the hub holds now of what is installed."""
        from kawai_tools.models.upstream import Comparison
        from kawai_tools.transfer.revisions import Revisions

        return Comparison(Revisions(self.hub, self.layout.revisions), self.catalog.pins())

    @property
    def _pace(self) -> "Pace":
        from kawai_tools.transfer.fetching import Pace

        return Pace(self.settings.connections, self.settings.limit_rate)

    @cached_property
    def fitting(self) -> "Fitting":
        """Tells which models will run here."""
        from kawai_tools.runners.fitting import Fitting

        return Fitting(self.models, self._rooms, self.tuning)

    @cached_property
    def _rooms(self) -> "Rooms":
        from kawai_tools.libs.platforms import System
        from kawai_tools.runners.room import Rooms

        settings, system = self.settings, self._system or System()
        return Rooms(
            self.bundles, lambda: self.machine, system, engine=settings.engine, budget=settings.memory_budget
        )

    @cached_property
    def tuning(self) -> "Tuning":
        """How each model is to be run."""
        from kawai_tools.runners.tuning import Tuning

        return Tuning(self.settings, self.defaults)

    def defaults(self, model_id: str) -> "Mapping[str, int | float]":
        """What the catalog says of running an installed model."""
        entry = self.models.index.by_id(model_id)
        return self.catalog.config_of(entry.record.sources) if entry else {}

    @cached_property
    def orders(self) -> "Orders":
        """Makes orders for the pool."""
        from kawai_tools.files import stamp
        from kawai_tools.runners.orders import Orders

        def state() -> object:
            return self.models.index.revision(), stamp(self.bundles.layout.active)

        return Orders(self.models, self._engine, self.tuning.run, self._runners, self.fitting, state)

    @cached_property
    def _runners(self) -> "Place":
        from kawai_tools.runners import sockets
        from kawai_tools.runners.process import Place, Spawner

        return Place(sockets.directory(self.layout.run), Spawner(), self.journals)

    @cached_property
    def journals(self) -> "Journals":
        """What this process and its engines say."""
        from kawai_tools.journal import Journals

        return Journals()

    def _engine(self) -> "Engine":
        from kawai_tools.runners.engines import choose, engines

        return choose(engines(self.bundles), self.settings.engine).engine

    def budget(self) -> "Budget":
        """What models may take, by the settings."""
        from kawai_tools.runners.memory import Budget

        return Budget(self.settings.memory_budget, lambda: self._rooms.beside_memory)

    @cached_property
    def pool(self) -> "Pool":
        """The loaded models. Asked for in one event loop only."""
        from kawai_tools.runners.pool import Pool

        settings = self.settings
        return Pool(
            budget=self.budget(),
            most=settings.max_models,
            queue=settings.max_queue,
        )

    close_model: "Callable[[str], Callable[[], None]]" = staticmethod(lambda _: lambda: None)
    """Ends the use of a model by this process and allows no other, until what it returns is called.

    A server that has a pool sets it.
    """

    @cached_property
    def tokens(self) -> "Tokens":
        """Who may use a server of this home."""
        from kawai_tools.tokens import Tokens

        return Tokens(self.settings.data_dir / "tokens.json")

    @cached_property
    def machine(self) -> "Machine":
        """The machine that this runs on, looked at once."""
        from kawai_tools.libs.platforms import look

        return look(self._system)

    @cached_property
    def bundles(self) -> "Bundles":
        """The installed builds of llama.cpp."""
        from kawai_tools.libs.bundles import Bundles
        from kawai_tools.libs.layout import LibsLayout

        return Bundles(LibsLayout(self.settings.data_dir), lambda: self.machine)

    @cached_property
    def libs_planner(self) -> "LibsPlanner":
        """Plans pulls of builds."""
        from kawai_tools.libs.planning import LibsPlanner
        from kawai_tools.libs.releases import Releases
        from kawai_tools.transfer.asking import Asker

        return LibsPlanner(self.bundles, Releases(Asker(self.libs_outbound), self._answers), self.machine)

    @cached_property
    def _answers(self) -> "Answers":
        from kawai_tools.libs.release import Answers

        return Answers(self.settings.libs_api, self.bundles.layout.releases)

    @cached_property
    def newest(self) -> "Newest":
        """What to tell of the newest build."""
        from kawai_tools.libs.newest import Newest

        def ask(channel: "Channel", wish: "Wish", seconds: float) -> "Found":
            return self.libs_planner.newest(channel, wish, seconds)

        return Newest(self.machine, self._answers, ask)

    @cached_property
    def libs_puller(self) -> "LibsPuller":
        """Carries out plans of builds."""
        from kawai_tools.libs.pulling import LibsPuller

        return LibsPuller(self.bundles, self.libs_outbound, self.machine, self._pace)

    @cached_property
    def doctor(self) -> "Doctor":
        """Looks at everything."""
        from kawai_tools.catalog.catalog import Catalog
        from kawai_tools.doctor import Doctor

        ways = {"hub": lambda: self.outbound, "release server": lambda: self.libs_outbound}
        catalog = Catalog(self._make_lists(remembers=False), self.models)
        return Doctor(self.settings, self.machine, self.models, self._looked_at, catalog, self.tokens, ways)

    @cached_property
    def service(self) -> "Service":
        """``kawai serve`` of this home as a service of its user."""
        from kawai_tools.service.here import service_of

        return service_of(self.settings)

    @cached_property
    def disk(self) -> "Disk":
        """What is taken of the disk."""
        from kawai_tools.storage.usage import Disk

        return Disk(self.models, self._looked_at, self._make_lists(remembers=False))

    @cached_property
    def pruner(self) -> "Pruner":
        """Gives disk space back."""
        from kawai_tools.storage.pruning import Pruner

        return Pruner(self.models, self._looked_at, self._make_lists(remembers=False))

    @cached_property
    def _looked_at(self) -> "Bundles":
        """The installed builds, for whom looking must change nothing."""
        from kawai_tools.libs.bundles import Bundles

        return Bundles(self.bundles.layout, lambda: self.machine, recovers=False)

    @cached_property
    def exporter(self) -> "Exporter":
        """Writes what is installed into archives."""
        from kawai_tools.carry.exporting import Exporter

        return Exporter(self.models, self.bundles)

    @cached_property
    def importer(self) -> "Importer":
        """Installs what archives hold."""
        from kawai_tools.carry.importing import Importer

        return Importer(self.models, self.bundles)

    def alike(self, settings: Settings) -> "Workspace":
        """Another of this kind, with other settings."""
        return Workspace(settings, serves=self.serves, timeouts=self._timeouts, system=self._system)

    def warm(self) -> None:
        """Make every noun now, before threads could each make their own."""
        _ = self.pulls, self.models, self.planner, self.puller, self.libs_planner, self.libs_puller
        _ = self.catalog, self.subscriptions, self.tokens, self.listed_planner, self.listed_puller
        _ = self.orders, self.tuning, self.journals, self.fitting, self.headers, self.listed_headers
        _ = self.disk, self.comparing, self.doctor

    def close(self) -> None:
        """Let go of idle connections, and write down what is still to be."""
        if "tokens" in vars(self):
            self.tokens.close()
        for name in WAYS_OUT:
            if name in vars(self):
                getattr(self, name).close()
