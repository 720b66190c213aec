"""What of the pool is told to programs."""

import asyncio
from collections.abc import Sequence

from kawai_tools.errors import ModelNotFound
from kawai_tools.models.model import LoadedModel
from kawai_tools.models.records import Entry
from kawai_tools.models.store import Store
from kawai_tools.refs import parse_model
from kawai_tools.runners.seats import ModelState


async def loaded_rows(store: Store, models: Sequence[ModelState]) -> list[LoadedModel]:
    """The rows of ``models ps``, sorted by id."""
    return await asyncio.to_thread(_rows, store, sorted(models))


def _rows(store: Store, models: Sequence[ModelState]) -> list[LoadedModel]:
    return [_row(_entry(store, model.id), model) for model in models]


def _entry(store: Store, model_id: str) -> Entry | None:
    try:
        return store.find(parse_model(model_id), gone=True)
    except ModelNotFound:  # removed by hand while it is loaded
        return None


def _row(entry: Entry | None, model: ModelState) -> LoadedModel:
    row = entry.row(None) if entry else None
    return LoadedModel(
        id=model.id,
        owned_by=row.owned_by if row else "local",
        model_family=row.model_family if row else model.id,
        size=row.size if row else 0,
        expires_at=model.expires_at,
        active_streams=model.leases,
        state=model.state,
        engine=model.engine,
        loaded_at=model.loaded_at,
        context_length=model.context_length,
        memory=model.memory,
    )
