"""The table: all rows."""

from kawai_tools.contract import Operation, Request
from kawai_tools.operations import adoption, catalog, doctor, libs, models, pulls, tokens

OPERATIONS: tuple[Operation[Request], ...] = tuple(
    value
    for noun in (models, adoption, pulls, libs, catalog, tokens, doctor)
    for value in vars(noun).values()
    if isinstance(value, Operation)
)
