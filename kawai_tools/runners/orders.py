"""From a model and its settings to an order for the pool: what is started, and how much memory that needs.

The need is estimated before anything is loaded, as ``kawai fit`` does.
"""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kawai_tools.errors import EngineFailed
from kawai_tools.gguf import Header
from kawai_tools.models.claims import Use
from kawai_tools.models.records import Entry
from kawai_tools.models.store import Store
from kawai_tools.models.traits import capabilities
from kawai_tools.refs import ModelRef
from kawai_tools.runners.engines import Engine, Wanted
from kawai_tools.runners.fitting import Fitting
from kawai_tools.runners.process import Place, Runner
from kawai_tools.runners.seats import Order
from kawai_tools.runners.tuning import Run

REMEMBERED, _MOST = 10.0, 256
"""Seconds for which an order is remembered, and how many of them are."""


class _Made(NamedTuple):
    """An order, when it was made, and of what."""

    order: Order
    at: float
    state: object


@dataclass(frozen=True)
class Orders:
    """Makes orders, and remembers them for a moment.

    ``state`` is another when an order might be: it looks at times and sizes of files only.
    """

    store: Store
    engine: Callable[[], Engine]
    run: Callable[[str], Run]
    place: Place
    fitting: Fitting
    state: Callable[[], object] = lambda: None
    _made: dict[ModelRef, _Made] = field(default_factory=dict)

    def at_hand(self, ref: ModelRef) -> Order | None:
        """The order of a moment ago, if nothing has changed since; for an event loop."""
        made = self._made.get(ref)
        if made is None or time.monotonic() - made.at > REMEMBERED or made.state != self.state():
            return None
        return made.order

    def make(self, ref: ModelRef) -> Order:
        """The order for one installed model. Reads files: not for an event loop.

        Raises ``ModelNotFound``, ``Ambiguous``, ``NoEngine``, or ``EngineFailed`` for what no engine loads.
        """
        state = self.state()
        order = self._make(self.store.find(ref))
        if len(self._made) >= _MOST:
            self._made.clear()
        self._made[ref] = _Made(order, time.monotonic(), state)
        return order

    def _make(self, entry: Entry) -> Order:
        layout, record = self.store.layout, entry.record
        header = self.store.header(record.id, record.weights[0].path)
        if header.is_vocabulary:
            raise EngineFailed(f"{record.id} is a vocabulary without tensors, and cannot be loaded")
        run, engine = self.run(record.id), self.engine()
        wanted = self._wanted(entry, header, run, engine.most_parallel)
        estimate = self.fitting.estimate(record, wanted)
        return Order(
            id=record.id,
            need=estimate.need,
            keep_alive=run.keep_alive,
            slots=wanted.parallel,
            make=lambda changed: Runner(wanted, engine, self.place, changed),
            use=lambda: Use(layout, record.path, record.id),
            used=lambda: _touch(layout.lock(record.path)),
            advice=estimate.advice,
        )

    def _wanted(self, entry: Entry, header: Header, run: Run, most_parallel: int | None) -> Wanted:
        layout, record = self.store.layout, entry.record
        projection = self.store.header(record.id, record.projection.path) if record.projection else None
        return Wanted(
            id=record.id,
            weights=str(layout.file(record.weights[0].path)),
            projection=str(layout.file(record.projection.path)) if record.projection else None,
            endpoint=capabilities(header, projection).endpoint,
            context_length=run.tokens(header.context_length),
            parallel=run.requests(most_parallel),
            gpu_layers=run.gpu_layers,
            threads=run.threads,
            sampling=dict(run.sampling),
        )


def _touch(lock: Path) -> None:
    """Note that a model was used now: its lock file's time says so."""
    with contextlib.suppress(OSError):
        os.utime(lock)
