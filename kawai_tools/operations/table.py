"""The table: all rows."""

from kawai_tools.contract import Operation, Request
from kawai_tools.operations import carry, catalog, doctor, libs, models, pulls, tokens

OPERATIONS: tuple[Operation[Request], ...] = tuple(
    value
    for noun in (models, pulls, libs, catalog, tokens, doctor, carry)
    for value in vars(noun).values()
    if isinstance(value, Operation)
)
