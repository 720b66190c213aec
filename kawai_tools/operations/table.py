"""The table: all rows."""

from kawai_tools.contract import Operation, Request
from kawai_tools.operations import (
    adoption,
    carry,
    catalog,
    doctor,
    fit,
    libs,
    logs,
    models,
    pulls,
    service,
    storage,
    tokens,
    updates,
)

OPERATIONS: tuple[Operation[Request], ...] = tuple(
    value
    for noun in (
        models,
        updates,
        adoption,
        pulls,
        libs,
        catalog,
        tokens,
        logs,
        carry,
        storage,
        fit,
        doctor,
        service,
    )
    for value in vars(noun).values()
    if isinstance(value, Operation)
)
"""The table: a row's name is its command."""
