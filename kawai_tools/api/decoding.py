"""From path, query and body to the request of a row, strictly."""

from collections.abc import Collection, Mapping
from functools import cache
from typing import TypeVar, get_args
from urllib.parse import parse_qsl

import msgspec

from kawai_tools.contract import Request, Route
from kawai_tools.errors import InvalidBody, InvalidRequest

BODILESS = frozenset({"GET", "DELETE"})
"""Methods whose rows take query parameters; the others take a JSON body."""

_MOST_PARAMETERS = 100

R = TypeVar("R", bound=Request)


def decode(row: Route[R], path: Mapping[str, str], query: bytes, body: bytes) -> R:
    """What a row or another route is asked. Raises ``InvalidBody`` or ``InvalidRequest``."""
    takes = _takes(row.request, row.path_fields)
    if row.method in BODILESS and body:
        raise InvalidBody(f"{row.method} {row.path} takes no body", "put what is asked into the query")
    parameters = _parameters(query, takes if row.method in BODILESS else ())
    _refuse_null(row.request, parameters)
    given = parameters if row.method in BODILESS else _keys(body, takes)
    try:
        return msgspec.convert({**given, **path}, row.request, strict=row.method not in BODILESS)
    except msgspec.ValidationError as error:
        kind = InvalidRequest if row.method in BODILESS else InvalidBody
        raise kind(f"{row.name} cannot be asked this: {error}", _hint(takes)) from None


@cache
def _takes(request: type[Request], path_fields: tuple[str, ...]) -> list[str]:
    names = {field.encode_name for field in msgspec.structs.fields(request)}
    return sorted(names.difference(path_fields))


def _refuse_null(request: type[Request], parameters: Mapping[str, str]) -> None:
    """Refuse a word that msgspec would take for nothing at all."""
    bare = [name for name, value in parameters.items() if value == "null" and _is_flag(request, name)]
    if bare:
        raise InvalidRequest(f"{_listed(bare)} is true or false", "leave it out where it does not matter")


@cache
def _is_flag(request: type[Request], name: str) -> bool:
    kind = next(field.type for field in msgspec.structs.fields(request) if field.encode_name == name)
    return kind is bool or bool in get_args(kind)


def _parameters(query: bytes, takes: Collection[str]) -> dict[str, str]:
    try:
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=_MOST_PARAMETERS)
    except ValueError as error:
        raise InvalidRequest(f"the query cannot be read: {error}") from None
    unknown = dict.fromkeys(name for name, _ in pairs if name not in takes)
    if unknown:
        raise InvalidRequest(f"unknown query parameter: {_listed(unknown)}", _hint(takes))
    parameters = dict(pairs)
    if len(parameters) < len(pairs):
        raise InvalidRequest("a query parameter may be given only once")
    return parameters


def _keys(body: bytes, takes: Collection[str]) -> dict[str, object]:
    if not body:
        return {}
    try:
        value: object = msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:  # msgspec raises UnicodeDecodeError as it is
        raise InvalidBody(f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidBody("the body must be a JSON object", _hint(takes))
    unknown = [name for name in value if name not in takes]
    if unknown:
        raise InvalidBody(f"unknown key in the body: {_listed(unknown)}", _hint(takes))
    return value


def _listed(names: Collection[str]) -> str:
    return ", ".join(repr(name[:50]) for name in list(names)[:10])


def _hint(takes: Collection[str]) -> str:
    return f"it takes {', '.join(takes)}" if takes else "it takes none"
