"""``/openapi.json``: every route, as the table of operations declares it (OpenAPI 3.1).

Schemas are those of the structs that requests are decoded into and payloads encoded from.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from kawai_tools import __version__
from kawai_tools.api.access import Access
from kawai_tools.api.decoding import BODILESS
from kawai_tools.api.health import ALIVE, READY, Health
from kawai_tools.api.inference import ROUTES
from kawai_tools.api.metrics import CONTENT_TYPE
from kawai_tools.api.metrics import PATH as METRICS
from kawai_tools.api.signin import ROUTES as SESSIONS
from kawai_tools.api.stats import PATH as STATS
from kawai_tools.api.stats import Stats
from kawai_tools.contract import Level, Nothing, Operation, Payload, Request, Route, Stream
from kawai_tools.errors import OUTCOMES, ErrorBody

DESCRIPTION = "/openapi.json"

_REF = "#/components/schemas/{name}"
_REFUSALS = sorted({status for outcome in OUTCOMES.values() for status in outcome.statuses} - {405, 414, 500})
"""What any route may be answered with: most of it is decided before a route is asked."""

Json = dict[str, Any]


def describe(operations: Iterable[Operation[Request]], access: Access) -> Json:
    """The description of these operations, and of the routes that every server has.

    ``access`` tells where a token is needed.
    """
    rows = [row for row in operations if row.path is not None]
    kinds: list[Any] = [ErrorBody, Health, Stats]
    described: list[Route[Any]] = [*rows, *SESSIONS]
    for row in described:
        kinds += [*_results(row), *(field.type for field in msgspec.structs.fields(row.request))]
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    schema_of = dict(zip(map(repr, kinds), schemas, strict=True))
    paths: dict[str, Json] = {}
    for row in described:
        paths.setdefault(row.path or "", {})[row.method.lower()] = _operation(row, schema_of, access)
    for path in (*ALIVE, *READY):
        answer = _content("application/json", schema_of[repr(Health)])
        health = _described(f"health{path.replace('/', '.')}", "Say whether it works", answer)
        paths[path] = {"get": {**health, "security": []}}
    stats = schema_of[repr(Stats)]
    for path, name, summary, answer in (
        (DESCRIPTION, "openapi", "Describe this API", _content("application/json", {"type": "object"})),
        (METRICS, "metrics", "Tell what was counted", _content(CONTENT_TYPE, {"type": "string"})),
        (STATS, "stats", "Tell what is done now and was lately", _content("application/json", stats)),
    ):
        paths[path] = {"get": {**_described(name, summary, answer), "security": _security(Level.USE, access)}}
    paths |= {path: {"post": _inference(path, access)} for path in ROUTES}
    return {
        "openapi": "3.1.0",
        "info": {"title": "kawai", "version": __version__, "license": {"name": "MIT", "identifier": "MIT"}},
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": {
                "Error": {
                    "description": "What is wrong, and what to do",
                    "content": _content("application/json", schema_of[repr(ErrorBody)]),
                }
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _inference(path: str, access: Access) -> Json:
    """A request that an engine answers: kawai reads two of its keys."""
    keys = {
        "model": {"type": "string", "minLength": 1},
        "keep_alive": {"anyOf": [{"type": "number", "minimum": 0}, {"const": -1}, {"type": "null"}]},
    }
    body = {"type": "object", "properties": keys, "required": ["model"]}
    answer = {
        **_content("application/json", {"type": "object"}),
        **_content("text/event-stream", {"type": "string"}),
    }
    name = f"inference{path.removeprefix('/v1').replace('/', '.')}"
    described = _described(name, "Ask a model, which is loaded if need be; llama.cpp answers", answer)
    described["requestBody"] = {"required": True, "content": _content("application/json", body)}
    return {**described, "security": _security(Level.USE, access)}


def _results(row: Route[Any]) -> list[Any]:
    if isinstance(row.result, Payload):
        return [row.result.type]
    if isinstance(row.result, Stream):
        return [row.result.event, *([row.result.payload] if row.result.payload else [])]
    return []


def _operation(row: Route[Any], schema_of: Mapping[str, Json], access: Access) -> Json:
    fields = {field.encode_name: field for field in msgspec.structs.fields(row.request)}
    parameters, keys = [], {}
    for name, field in fields.items():
        schema = schema_of[repr(field.type)]
        if name in row.path_fields:
            parameters.append({"name": name, "in": "path", "required": True, "schema": _in_path(schema)})
        elif row.method in BODILESS:
            parameters.append(
                {"name": name, "in": "query", "required": field.required, "schema": _plain(schema)}
            )
        else:
            keys[name] = schema
    described = _described(row.name, row.summary, _answers(row, schema_of), _status(row))
    described["security"] = _security(row.level, access)
    if parameters:
        described["parameters"] = parameters
    if row.method not in BODILESS:
        required = [name for name in keys if fields[name].required]
        body = {"type": "object", "properties": keys, "required": required, "additionalProperties": False}
        described["requestBody"] = {"required": bool(required), "content": _content("application/json", body)}
    return described


def _in_path(schema: Json) -> Json:
    """A part of a path is never empty."""
    return {**schema, "minLength": 1}


def _plain(schema: Json) -> Json:
    """A query parameter that may be left out is never null."""
    kinds = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    return kinds[0] if len(kinds) == 1 else schema


def _status(row: Route[Any]) -> int:
    if isinstance(row.result, Nothing):
        return 204
    return row.result.status if isinstance(row.result, Payload) else 200


def _answers(row: Route[Any], schema_of: Mapping[str, Json]) -> Json | None:
    if isinstance(row.result, Payload):
        return _content("application/json", schema_of[repr(row.result.type)])
    if isinstance(row.result, Nothing):
        return None
    frame: Json = {"type": "string", "contentMediaType": "application/json"}
    frame["contentSchema"] = {"$ref": _REF.format(name=row.result.event.__name__)}
    events = _content(
        "text/event-stream", {"type": "object", "required": ["data"], "properties": {"data": frame}}
    )
    if row.result.payload is None:
        return events
    return events | _content("application/json", schema_of[repr(row.result.payload)])


def _described(name: str, summary: str, content: Json | None, status: int = 200) -> Json:
    answers: Json = {str(each): {"$ref": "#/components/responses/Error"} for each in _REFUSALS}
    answers[str(status)] = {"description": summary, **({"content": content} if content else {})}
    if content and "text/event-stream" in content:
        answers["204"] = {"description": "There is nothing new to tell"}
    return {
        "operationId": re.sub(r"\W", "_", name),
        "summary": summary,
        "tags": [name.partition(".")[0]],
        "responses": dict(sorted(answers.items())),
    }


def _security(level: Level, access: Access) -> list[Json]:
    """A token, or with an empty alternative also none."""
    return [{"token": []}, *([{}] if not access.on or access.is_open(level) else [])]


def _content(media_type: str, schema: Json) -> Json:
    return {media_type: {"schema": schema}}
