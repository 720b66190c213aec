"""How each model is to be run: settings of its own, general ones, what the catalog says, the model itself.

Each value knows its source, which ``models show`` tells.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from kawai_tools.models.model import Setting
from kawai_tools.settings import PER_MODEL, Settings
from kawai_tools.settings import Source as From
from kawai_tools.values import SAMPLING

Defaults = Callable[[str], Mapping[str, int | float]]
"""What the catalog says of a model, by its id."""

CONTEXT, PARALLEL = 4096, 4
"""Tokens of context and requests at a time, where nothing else is said."""

_MOST_PARALLEL = 1000

_BUILT_IN: Mapping[str, int] = {"context_length": CONTEXT, "parallel": PARALLEL}


class Run(NamedTuple):
    """How a model is to be run; ``None``: as the engine does by itself."""

    context_length: int | None = None
    parallel: int | None = None
    gpu_layers: int | None = None
    threads: int | None = None
    keep_alive: float = 300.0
    sampling: Mapping[str, float] = {}

    def tokens(self, trained: int | None) -> int:
        """Tokens of context that each request gets of a model that was trained for so many."""
        wish = self.context_length or CONTEXT
        return min(wish, trained or wish)

    def requests(self, most: int | None) -> int:
        """Requests at a time, by an engine that can answer so many."""
        return min(self.parallel or PARALLEL, most or _MOST_PARALLEL)


class Tuning:
    """The runtime settings of every model."""

    def __init__(self, settings: Settings, defaults: Defaults) -> None:
        """Nothing is asked yet."""
        self._settings = settings
        self._defaults = defaults

    def run(self, model_id: str, defaults: Mapping[str, int | float] | None = None) -> Run:
        """How a model is to be run; ``defaults`` is what the catalog says of one that is not installed."""
        effective = self._effective(model_id, defaults)
        found = {name: value for name, (value, _) in effective.items() if value is not None}
        sampling = {name: float(value) for name, value in found.items() if name in SAMPLING}
        return Run(
            context_length=_whole(found.get("context_length")),
            parallel=_whole(found.get("parallel")),
            gpu_layers=_whole(found.get("gpu_layers")),
            threads=_whole(found.get("threads")),
            keep_alive=float(found.get("keep_alive", 300)),
            sampling=sampling,
        )

    def shown(self, model_id: str, most_context: int | None) -> dict[str, Setting]:
        """The same, each with its source."""
        effective = self._effective(model_id)
        context, _ = effective["context_length"]
        if context is not None and most_context is not None and context > most_context:
            effective["context_length"] = (most_context, "model")
        return {name: Setting(value, source) for name, (value, source) in effective.items()}

    def _effective(
        self, model_id: str, defaults: Mapping[str, int | float] | None = None
    ) -> "dict[str, tuple[int | float | None, str]]":
        own = self._settings.models.get(model_id.casefold(), {})
        catalog = self._defaults(model_id) if defaults is None else defaults
        found: dict[str, tuple[int | float | None, str]] = {}
        for name in PER_MODEL:
            general, source = getattr(self._settings, name), self._settings.source(name)
            if name in own:
                found[name] = (own[name], _place(model_id))
            elif source is not From.DEFAULT:
                found[name] = (general, source)
            elif name in catalog:
                found[name] = (catalog[name], "catalog")
            else:
                found[name] = (_BUILT_IN.get(name, general), From.DEFAULT)
        for name in SAMPLING:
            if name in own:
                found[name] = (own[name], _place(model_id))
            elif name in catalog:
                found[name] = (catalog[name], "catalog")
        return found


def _place(model_id: str) -> str:
    """Where a model's own settings stand."""
    return f'{From.FILE} [models."{model_id}"]'


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
