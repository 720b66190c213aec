"""From a model and its settings to an order for the pool: what is started, and how much memory that needs.

The need is estimated before anything is loaded, from the header of the file (llama.cpp keeps the weights, a
KV cache of ``n_layer * n_ctx * (k + v)`` values of two bytes, and buffers for what it computes).
"""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kawai_tools.errors import EngineFailed
from kawai_tools.files import stamp
from kawai_tools.gguf import Header, read_header
from kawai_tools.models.claims import Use
from kawai_tools.models.records import Entry
from kawai_tools.models.store import Store
from kawai_tools.models.traits import capabilities
from kawai_tools.refs import ModelRef
from kawai_tools.runners.engines import Engine, Wanted
from kawai_tools.runners.process import Place, Runner
from kawai_tools.runners.seats import Order
from kawai_tools.runners.tuning import CONTEXT, PARALLEL, Run

REMEMBERED, _MOST = 10.0, 256
"""Seconds for which an order is remembered, and how many of them are."""

LEAST = 256
"""Tokens below which a context is of no use; advice is given in steps of as many."""

_BYTES = 2
_COMPUTE = 200 << 20
"""Bytes of buffers, about: they grow with the width of the model, not with its context."""


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
    state: Callable[[], object] = lambda: None
    _made: dict[ModelRef, _Made] = field(default_factory=dict)
    _headers: dict[Path, tuple[object, Header]] = field(default_factory=dict)

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

    def _header(self, path: Path) -> Header:
        """The header of a file, which is read again when the file is another."""
        key, known = stamp(path), self._headers.get(path)
        if known is None or known[0] != key:
            if len(self._headers) >= _MOST:
                self._headers.clear()
            known = self._headers[path] = (key, read_header(path))
        return known[1]

    def _make(self, entry: Entry) -> Order:
        layout, record = self.store.layout, entry.record
        header = self._header(layout.file(record.weights[0].path))
        if header.is_vocabulary:
            raise EngineFailed(f"{record.id} is a vocabulary without tensors, and cannot be loaded")
        run, engine = self.run(record.id), self.engine()
        wanted = self._wanted(entry, header, run, engine.most_parallel)
        need = Need.of(entry, header)
        return Order(
            id=record.id,
            need=need.at(wanted.context_length * wanted.parallel),
            keep_alive=run.keep_alive,
            slots=wanted.parallel,
            make=lambda changed: Runner(wanted, engine, self.place, changed),
            use=lambda: Use(layout, record.path, record.id),
            used=lambda: _touch(layout.lock(record.path)),
            advice=lambda room: _advice(need, wanted, room),
        )

    def _wanted(self, entry: Entry, header: Header, run: Run, most_parallel: int | None) -> Wanted:
        layout, record = self.store.layout, entry.record
        projection = layout.file(record.projection.path) if record.projection else None
        wish = run.context_length or CONTEXT
        return Wanted(
            id=record.id,
            weights=str(layout.file(record.weights[0].path)),
            projection=str(projection) if projection else None,
            endpoint=capabilities(header, self._header(projection) if projection else None).endpoint,
            context_length=min(wish, header.context_length or wish),
            parallel=min(run.parallel or PARALLEL, most_parallel or 1000),
            gpu_layers=run.gpu_layers,
            threads=run.threads,
            sampling=dict(run.sampling),
        )


def _touch(lock: Path) -> None:
    """Note that a model was used now: its lock file's time says so."""
    with contextlib.suppress(OSError):
        os.utime(lock)


class Need(NamedTuple):
    """Bytes that a model needs, about: whatever its context, and for each token of it."""

    fixed: int
    token: int

    @classmethod
    def of(cls, entry: Entry, header: Header) -> "Need":
        """Estimate it from the files and their header."""
        files = sum(file.size for file in entry.record.files)
        architecture = header.architecture or ""
        layers = header.number(f"{architecture}.block_count") or 0
        width = header.number(f"{architecture}.embedding_length") or 0
        heads = header.number(f"{architecture}.attention.head_count") or 1
        kv_heads = header.number(f"{architecture}.attention.head_count_kv") or heads
        head = width // heads
        key = header.number(f"{architecture}.attention.key_length") or head
        value = header.number(f"{architecture}.attention.value_length") or head
        return cls(files + _COMPUTE, layers * kv_heads * (key + value) * _BYTES)

    def at(self, context: int) -> int:
        """With so many tokens of context, those of all requests at a time together."""
        return self.fixed + self.token * context


def _advice(need: Need, wanted: Wanted, room: int) -> str:
    """What of a model would fit into so many bytes."""
    tokens = (room - need.fixed) // need.token if need.token else 0
    if tokens < LEAST:
        return (
            f"even with context_length = {LEAST} and parallel = 1 it needs {need.at(LEAST):,}; "
            "a smaller quantization may fit"
        )
    place = f'put it into config.toml, under [models."{wanted.id}"]'
    whole = min(tokens, wanted.context_length * wanted.parallel) // LEAST * LEAST
    if whole < wanted.context_length:
        return f"context_length = {whole} with parallel = 1 would fit; {place}"
    return f"parallel = {whole // wanted.context_length} would fit; {place}"
