"""How fast a pull may be, as requests say it: the same for every noun that is pulled."""

from typing import Annotated

from msgspec import Meta

from kawai_tools.errors import InvalidBody
from kawai_tools.values import parse_rate

MOST_CONNECTIONS = 64

Connections = Annotated[int, Meta(extra_json_schema={"minimum": 1, "maximum": MOST_CONNECTIONS})]
Rate = Annotated[int, Meta(extra_json_schema={"minimum": 1})] | str
"""What requests take; the bounds are told to programs here, and held by the functions below."""


def check_connections(value: int | None) -> None:
    """Raise ``InvalidBody`` for a number of connections that makes no sense."""
    if value is not None and not 1 <= value <= MOST_CONNECTIONS:
        raise InvalidBody(f"connections must be a whole number from 1 to {MOST_CONNECTIONS}")


def rate_of(value: int | str | None) -> int | None:
    """Bytes per second from a number, or from words like ``20M``. Raises ``InvalidBody``."""
    if value is None:
        return None
    try:
        return parse_rate(str(value))
    except ValueError as error:
        raise InvalidBody(f"limit_rate must be {error}, not {value!r}") from None
