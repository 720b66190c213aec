"""Whether a model will run here: its headers, how it is to be run, and the room that there is.

A model that is installed is judged by its files, one that is not by headers that are read where they are;
where that cannot be done, by the sizes of its files, and then the verdict is a guess.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from kawai_tools import fit
from kawai_tools.errors import Integrity, KawaiError, NotAModel
from kawai_tools.fit import Fit, Load
from kawai_tools.gguf import Header
from kawai_tools.models.plan import Plan
from kawai_tools.models.records import FileRecord, Record
from kawai_tools.models.store import Store
from kawai_tools.models.traits import capabilities
from kawai_tools.runners.engines import WHOLE_TEXTS, Wanted
from kawai_tools.runners.estimate import Estimate
from kawai_tools.runners.room import Rooms
from kawai_tools.runners.tuning import Tuning
from kawai_tools.transfer.few import Few
from kawai_tools.transfer.headers import Headers, Unread
from kawai_tools.transfer.patience import ATTEMPTS
from kawai_tools.transfer.remote_file import RemoteFile

SECONDS = 15.0
"""What reading the headers of one model elsewhere may take."""

_FEW = 3  # attempts, where a guess will do
_AT_ONCE = 4

Defaults = Mapping[str, int | float]


@dataclass(frozen=True)
class Piece:
    """One file of a model: its size, and how its header is read (raises ``Unread`` or a ``KawaiError``)."""

    size: int
    header: Callable[[], Header]


@dataclass(frozen=True)
class Pieces:
    """The files of a model: the shards in order, and the projection. ``id`` is what it is called here."""

    id: str
    weights: Sequence[Piece]
    projection: Piece | None

    @property
    def size(self) -> int:
        """Bytes of all."""
        return sum(each.size for each in self.weights) + (self.projection.size if self.projection else 0)


class Fitting:
    """Judges models. Safe to share between threads."""

    def __init__(self, store: Store, rooms: Rooms, tuning: Tuning) -> None:
        """Nothing is looked at yet."""
        self._store = store
        self._rooms = rooms
        self._tuning = tuning
        self.elsewhere_at_once = Few(_AT_ONCE, "models elsewhere are being judged")

    def installed(self, record: Record, context: int | None = None) -> Fit:
        """Judge a model by its files; ``context`` is the tokens of each request, where not as configured.

        Raises ``MalformedGguf``, ``NotAModel``, or ``ModelNotFound`` where a file is gone.
        """
        here = partial(self._here, record.id)
        projection = here(record.projection) if record.projection else None
        return self._judge(Pieces(record.id, [here(each) for each in record.weights], projection), context)

    def planned(
        self, plan: Plan, headers: Headers, defaults: Defaults, seconds: float, context: int | None = None
    ) -> Fit:
        """Judge what a pull would install. Raises what :class:`Headers` does, but for ``Unread``."""
        return self._judge(self._pieces(plan, headers, seconds, ATTEMPTS), context, defaults)

    def foreseen(self, plan: Plan, headers: Headers, defaults: Defaults, seconds: float) -> Fit | None:
        """The same where nothing may fail for it: a guess where a server fails, ``None`` of broken files."""
        pieces = self._pieces(plan, headers, seconds, _FEW)
        try:
            return self._judge(pieces, None, defaults)
        except Integrity:
            return None
        except KawaiError:
            return self.guess(pieces.id, pieces.size, None, defaults)

    def elsewhere(self, pieces: Pieces, defaults: Defaults) -> Fit:
        """Judge files wherever they are. Raises what reading them does, but for ``Unread``."""
        return self._judge(pieces, None, defaults)

    def room(self) -> fit.Machine:
        """The memory that models may take here."""
        return self._rooms.room()

    def guess(self, model_id: str, size: int, context: int | None, defaults: Defaults | None) -> Fit:
        """Judge by nothing but bytes on disk."""
        return fit.guess(
            size, self._rooms.room(), self._load(model_id, None, context, defaults, embeds=False)
        )

    def estimate(self, record: Record, wanted: Wanted) -> Estimate:
        """What an installed model needs to be loaded so. Raises ``MalformedGguf`` or ``ModelNotFound``."""
        projection = record.projection
        model = fit.Model(
            [self._store.header(record.id, each.path) for each in record.weights],
            sum(each.size for each in record.weights),
            self._store.header(record.id, projection.path) if projection else None,
            projection.size if projection else 0,
        )
        load = Load(
            context=wanted.context_length,
            parallel=wanted.parallel,
            gpu_layers=wanted.gpu_layers,
            embeds=wanted.batch is not None,
            processor=self._rooms.arch(),
            beside=self._rooms.beside(),
        )
        return Estimate(record.id, model, load, self._rooms.room())

    # the files

    def _here(self, model_id: str, file: FileRecord) -> Piece:
        return Piece(file.size, lambda: self._store.header(model_id, file.path))

    def _pieces(self, plan: Plan, headers: Headers, seconds: float, attempts: int) -> Pieces:
        left, here = remaining(seconds), partial(self._here, plan.id)
        weights = [here(each) for each in plan.kept if each.role == "weights"]
        projections = [here(each) for each in plan.kept if each.role == "projection"]
        for file in plan.files:
            of_role = weights if file.role == "weights" else projections
            of_role.append(
                here(file.installed)
                if file.installed
                else there(headers, file.remote, left, attempts=attempts)
            )
        return Pieces(plan.id, weights, projections[-1] if projections else None)

    # the verdict

    def _judge(self, pieces: Pieces, context: int | None, defaults: Defaults | None = None) -> Fit:
        first = pieces.weights[0]
        try:
            header = first.header()
            projection = pieces.projection.header() if pieces.projection else None
        except Unread:
            return self.guess(pieces.id, pieces.size, context, defaults)
        _require_model(pieces.id, header)
        others = _read_as_can_be(pieces.weights[1:])
        model = fit.Model(
            [header, *others],
            sum(each.size for each in pieces.weights),
            projection,
            pieces.projection.size if pieces.projection else 0,
        )
        embeds = capabilities(header, projection).endpoint in WHOLE_TEXTS
        load = self._load(pieces.id, header.context_length, context, defaults, embeds=embeds)
        return Estimate(pieces.id, model, load, self._rooms.room()).fit

    def _load(
        self,
        model_id: str,
        trained: int | None,
        context: int | None,
        defaults: Defaults | None,
        *,
        embeds: bool,
    ) -> Load:
        """How it would be loaded: as the pool does."""
        run, engine = self._tuning.run(model_id, defaults), self._rooms.engine()
        if context is not None:
            run = run._replace(context_length=context)
        return Load(
            context=run.tokens(trained),
            parallel=run.requests(engine.most_parallel if engine else None),
            gpu_layers=run.gpu_layers,
            embeds=embeds,
            processor=self._rooms.arch(),
            beside=engine.beside if engine else 0,
        )


def _require_model(model_id: str, header: Header) -> None:
    """Refuse what no engine loads by itself."""
    if header.is_projection:
        raise NotAModel(f"{model_id} is a projection, not a model", "name the model that it goes with")
    if header.is_vocabulary:
        raise NotAModel(f"{model_id} is a vocabulary without tensors, and cannot be loaded")


def remaining(seconds: float) -> Callable[[], float]:
    """Tells what is left of so many seconds from now."""
    until = time.monotonic() + seconds
    return lambda: until - time.monotonic()


def there(
    headers: Headers, file: RemoteFile, left: Callable[[], float], *, attempts: int = ATTEMPTS
) -> Piece:
    """A file elsewhere, whose header is read within what is ``left``."""
    return Piece(file.size, lambda: headers.read(file, left(), attempts))


def _read_as_can_be(pieces: Iterable[Piece]) -> list[Header]:
    """The headers of further shards, which tell how large each layer is; none from the first that fails."""
    found = []
    for piece in pieces:
        try:
            found.append(piece.header())
        except (Unread, KawaiError):
            break
    return found
