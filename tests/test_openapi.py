"""``/openapi.json`` held to reality: what it tells of is there, and what is there it tells of."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema_rs
import pytest
import schemathesis
from schemathesis.specs.openapi.definitions import OPENAPI_31

from kawai_tools import __version__
from kawai_tools.api.health import ALIVE, READY
from kawai_tools.api.inference import ROUTES as INFERENCE_ROUTES
from kawai_tools.api.signin import ROUTES as SESSIONS
from kawai_tools.contract import Nothing, Payload, Stream
from kawai_tools.operations.table import OPERATIONS
from tests.hub import LocalHub
from tests.program import Daemon, Program, Reply, serving
from tests.samples import tiny_gguf

Json = dict[str, Any]
REPO, MODEL = "me/tiny-GGUF", "Tiny-Q8_0"
JSON, EVENTS = "application/json", "text/event-stream"
ROWS = [row for row in OPERATIONS if row.path]
HEALTH = {("GET", path) for path in (*ALIVE, *READY)}
INFERENCE = {("POST", path) for path in INFERENCE_ROUTES}
EVERYTHING = {(row.method, row.path or "") for row in ROWS} | HEALTH | INFERENCE
EVERYTHING |= {("GET", "/openapi.json"), ("GET", "/metrics"), ("GET", "/v1/stats")}
EVERYTHING |= {(route.method, route.path or "") for route in SESSIONS}


class Served(NamedTuple):
    """A daemon with one model, offline or with a hub, and what it says of itself."""

    daemon: Daemon
    cli: Program
    hub: LocalHub
    description: Json

    def operation(self, method: str, path: str) -> Json:
        found: Json = self.description["paths"][path][method.lower()]
        return found

    def validator(self, schema: Json, *, closed: bool = False) -> jsonschema_rs.Draft202012Validator:
        """Of a schema of the description; ``closed``: each object has all of its keys and no others."""
        components = self.description["components"]
        if closed:
            components = {"schemas": {name: shut(each) for name, each in components["schemas"].items()}}
        whole = {**schema, "components": components}
        return jsonschema_rs.Draft202012Validator(whole, validate_formats=True)

    def check(self, method: str, path: str, reply: Reply, *, closed: bool = True) -> None:
        """That an answer is described: status, content type and every key of the body."""
        answers = self.operation(method, path)["responses"]
        assert str(reply.status) in answers, (method, path, reply)
        answer = answers[str(reply.status)]
        if "$ref" in answer:
            answer = self.description["components"]["responses"][answer["$ref"].rpartition("/")[2]]
        kind = reply.headers.get("content-type", "")
        assert list(answer.get("content", {""})).count(kind) == 1, (method, path, reply)
        if kind == JSON:
            self.validator(answer["content"][JSON]["schema"], closed=closed).validate(reply.json)


def shut(schema: Any) -> Any:  # noqa: ANN401 - any part of a schema
    """The same schema with every object that has declared keys closed, and all of them required if any is."""
    if isinstance(schema, list):
        return [shut(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: shut(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        found["additionalProperties"] = False
        if schema.get("required"):  # else it has only what is known, as a catalog entry's config
            found["required"] = sorted(schema["properties"])
    return found


def describe(daemon: Daemon, headers: Mapping[str, str] | None = None) -> Json:
    reply = daemon.ask("GET", "/openapi.json", headers=headers)
    assert (reply.status, reply.headers["content-type"]) == (200, JSON)
    found: Json = reply.json
    return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("openapi")
    with LocalHub(root / "hub") as hub:
        hub.add_file(REPO, f"{MODEL}.gguf", tiny_gguf())
        cli = Program(root, {"HF_ENDPOINT": hub.endpoint, "KAWAI_LIBS_API": hub.libs_api})
        assert cli("models", "pull", REPO).code == 0
        with serving(cli) as daemon:
            yield Served(daemon, cli, hub, describe(daemon))


# The description by itself


def test_it_is_openapi_3_1(served: Served) -> None:
    description = served.description
    assert description["openapi"].startswith("3.1.")
    assert description["info"]["version"] == __version__
    jsonschema_rs.Draft202012Validator(OPENAPI_31).validate(description)
    schemathesis.openapi.from_dict(description).validate()
    for schema in schemas(description):
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})


def schemas(part: object) -> Iterator[Json]:
    """Every schema of a description, those of components first or not."""
    if isinstance(part, list):
        for each in part:
            yield from schemas(each)
    elif isinstance(part, dict):
        for key, value in part.items():
            if key == "schema":
                yield value
            elif key == "schemas":
                yield from value.values()
            else:
                yield from schemas(value)


def references(part: object) -> Iterator[str]:
    """Every reference in a description."""
    if isinstance(part, list):
        for each in part:
            yield from references(each)
    elif isinstance(part, dict):
        yield from (value for key, value in part.items() if key == "$ref")
        for value in part.values():
            yield from references(value)


def test_its_references_and_ids_hold(served: Served) -> None:
    for reference in set(references(served.description)):
        found: Any = served.description
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
    ids = [each["operationId"] for path in served.description["paths"].values() for each in path.values()]
    assert len(ids) == len(set(ids)) == len(EVERYTHING)


def test_it_tells_of_every_route_and_of_no_other(served: Served) -> None:
    told = {
        (method.upper(), path) for path, methods in served.description["paths"].items() for method in methods
    }
    assert told == EVERYTHING
    for path, methods in served.description["paths"].items():
        where = re.sub(r"\{\w+\}", "x", path)
        allowed = set(served.daemon.ask("BREW", where).headers["allow"].split(", "))
        assert allowed - {"HEAD"} == {method.upper() for method in methods}, path


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_a_row_takes_is_told(served: Served, row: Any) -> None:  # noqa: ANN401 - rows of any request
    told = served.operation(row.method, row.path)
    parameters = {each["name"]: each for each in told.get("parameters", [])}
    in_path = {name: each for name, each in parameters.items() if each["in"] == "path"}
    assert set(in_path) == set(re.findall(r"\{(\w+)\}", row.path))
    assert all(each["required"] for each in in_path.values())
    rest = set(row.request.__struct_fields__) - set(in_path)
    required = {each for each in row.request.__struct_fields__ if each not in row.request.__struct_defaults__}
    assert told["summary"]
    if row.method in {"GET", "DELETE"}:
        assert set(parameters) == set(in_path) | rest
        assert "requestBody" not in told
        assert all(each["in"] in {"path", "query"} for each in parameters.values())
    else:
        assert set(parameters) == set(in_path)
        assert list(told["requestBody"]["content"]) == [JSON]
        body = told["requestBody"]["content"][JSON]["schema"]
        assert (set(body["properties"]), body["additionalProperties"]) == (rest, False)
        assert bool(body.get("required")) == told["requestBody"].get("required", False)
        assert set(body.get("required", [])) <= required


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_a_row_gives_is_told(served: Served, row: Any) -> None:  # noqa: ANN401 - as above
    answers = served.operation(row.method, row.path)["responses"]
    good = {status: each for status, each in answers.items() if status[0] == "2"}
    if isinstance(row.result, Nothing):
        assert set(good) == {"204"}
        assert "content" not in good["204"]
    elif isinstance(row.result, Payload):
        assert {status: set(each["content"]) for status, each in good.items()} == {
            str(row.result.status): {JSON}
        }
    else:
        assert isinstance(row.result, Stream)
        assert set(good["200"]["content"]) == {EVENTS, *([JSON] if row.result.payload else [])}
    assert "500" not in answers
    assert {"400", "401", "403", "404", "413", "415", "421", "503"} <= set(answers)


def test_who_may_is_told(served: Served) -> None:
    (name,) = served.description["components"]["securitySchemes"]
    assert served.description["components"]["securitySchemes"][name] == {"type": "http", "scheme": "bearer"}
    for method, path in EVERYTHING:
        wanted = served.operation(method, path).get("security", [])
        open_to_all = (method, path) in HEALTH
        assert ({name: []} in wanted) == (not open_to_all), (method, path)


BOUNDS: list[tuple[str, str, str, Json]] = [
    ("POST", "/v1/models/pull", "connections", {"minimum": 1, "maximum": 64}),
    ("POST", "/v1/libs/pull", "connections", {"minimum": 1, "maximum": 64}),
    ("POST", "/v1/catalog/pull/{model}", "limit_rate", {"minimum": 1}),
    ("POST", "/v1/libs/pull", "channel", {"enum": ["nightly", "stable"]}),
    ("POST", "/v1/libs/use", "processor", {"enum": ["cpu", "cuda"]}),
    ("GET", "/v1/catalog", "capability", {"enum": ["chat", "completion"]}),
    ("POST", "/v1/tokens", "role", {"enum": ["admin", "user"]}),
    ("POST", "/v1/tokens", "name", {"maxLength": 100}),
]


@pytest.mark.parametrize(
    ("method", "path", "field", "told"), BOUNDS, ids=lambda each: each if isinstance(each, str) else ""
)
def test_bounds_and_closed_sets_are_told(
    served: Served, method: str, path: str, field: str, told: Json
) -> None:
    """A client made from the description would else learn them from a 400."""
    operation = served.operation(method, path)
    if method == "GET":
        (schema,) = [each["schema"] for each in operation["parameters"] if each["name"] == field]
    else:
        schema = operation["requestBody"]["content"][JSON]["schema"]["properties"][field]
    kinds = [resolved(served, each) for each in schema.get("anyOf", [schema])]
    for key, value in told.items():
        found = [each[key] for each in kinds if key in each]
        assert found, f"{key} is not told: {schema}"
        assert found == [value] if key != "enum" else set(value) <= set(found[0])


def resolved(served: Served, schema: Json) -> Json:
    if "$ref" not in schema:
        return schema
    found: Json = served.description["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found


# What is really answered


def test_payloads_are_as_described(served: Served) -> None:
    daemon = served.daemon
    for method, path in sorted(EVERYTHING):
        if method == "GET" and "{" not in path:
            served.check(method, path, daemon.ask(method, path))
    (first, *_) = daemon.ask("GET", "/v1/catalog").json
    served.check("GET", "/v1/models/{model}", daemon.ask("GET", f"/v1/models/{MODEL}"))
    served.check("GET", "/v1/catalog/{model}", daemon.ask("GET", f"/v1/catalog/{first['id']}"))
    category = daemon.ask("GET", f"/v1/catalog/filter/{first['category']}")
    assert len(category.json) > 0
    served.check("GET", "/v1/catalog/filter/{filter}", category)
    for method, path in (("POST", "/v1/models/index"), ("POST", "/v1/catalog/update")):
        served.check(method, path, daemon.ask(method, path))


def test_plans_and_tokens_are_as_described(served: Served) -> None:
    body = {"model_url": REPO, "force": True, "dry_run": True}
    plan = served.daemon.ask("POST", "/v1/models/pull", body)
    assert plan.json["files"]
    served.check("POST", "/v1/models/pull", plan)
    for asked in ({}, {"name": "x", "role": "admin", "expires": "30d"}):
        made = served.daemon.ask("POST", "/v1/tokens", asked)
        served.check("POST", "/v1/tokens", made)
        listed = served.daemon.ask("GET", "/v1/tokens")
        assert listed.json
        served.check("GET", "/v1/tokens", listed)
        gone = served.daemon.ask("DELETE", f"/v1/tokens/{made.json['id']}")
        served.check("DELETE", "/v1/tokens/{id}", gone)


def test_the_events_of_streams_are_as_described(served: Served) -> None:
    """OpenAPI 3.1 has no word for the events of a stream; their schemas are among the components."""
    served.hub.add_file("me/bad-GGUF", "Bad-Q8_0.gguf", b"no model".ljust(5000))
    streams: dict[str, list[tuple[str, str, Json]]] = {
        "models.pull": [
            ("POST", "/v1/models/pull", {"model_url": REPO}),
            ("POST", "/v1/models/pull", {"model_url": REPO, "force": True}),
            ("POST", "/v1/models/pull", {"model_url": "me/bad-GGUF"}),
        ],
        "models.verify": [("POST", "/v1/models/verify", {})],
    }
    results = {row.name: row.result for row in ROWS}
    for name, asked in streams.items():
        result = results[name]
        assert isinstance(result, Stream)
        schema = {"$ref": f"#/components/schemas/{result.event.__name__}"}
        for method, path, body in asked:
            reply = served.daemon.ask(method, path, body)
            served.check(method, path, reply)
            assert reply.events
            for event in reply.events:
                served.validator(schema, closed=True).validate(event)
    pulls = served.daemon.ask("GET", "/v1/pulls")
    assert {row["status"] for row in pulls.json} >= {"exists", "failed"}
    served.check("GET", "/v1/pulls", pulls)
    followed = served.daemon.ask("GET", f"/v1/pulls/{pulls.json[0]['pull']}")
    served.check("GET", "/v1/pulls/{pull}", followed)
    for event in followed.events:
        served.validator({"$ref": "#/components/schemas/PullEvent"}).validate(event)
    done = {"Last-Event-ID": str(followed.events[-1]["seq"])}
    nothing = served.daemon.ask("GET", f"/v1/pulls/{pulls.json[0]['pull']}", headers=done)
    assert nothing.status == 204
    served.check("GET", "/v1/pulls/{pull}", nothing)


def test_the_schema_of_events_is_where_a_reader_looks(served: Served) -> None:
    for row in ROWS:
        if isinstance(row.result, Stream):
            answer = served.operation(row.method, row.path or "")["responses"]["200"]["content"][EVENTS]
            assert row.result.event.__name__ in json.dumps(answer), row.name


REFUSED: list[tuple[str, str, str, object, dict[str, str], int]] = [
    ("GET", "/v1/models/{model}", "/v1/models/nope", None, {}, 404),
    ("GET", "/v1/models/{model}", "/v1/models/..%2Fx", None, {}, 400),
    ("GET", "/v1/models", "/v1/models?x=1", None, {}, 400),
    ("DELETE", "/v1/pulls/{pull}", "/v1/pulls/nope", None, {}, 404),
    ("DELETE", "/v1/tokens/{id}", "/v1/tokens/nope", None, {}, 404),
    ("POST", "/v1/models/pull", "/v1/models/pull", {}, {}, 400),
    ("POST", "/v1/models/pull", "/v1/models/pull", b"{}", {"Content-Type": "text/plain"}, 415),
    ("POST", "/v1/models/pull", "/v1/models/pull", b" " * (1 << 20) + b"{}", {"Content-Type": JSON}, 413),
    ("GET", "/healthz", "/healthz", None, {"Host": "evil.example"}, 421),
    ("GET", "/healthz", "/healthz", None, {"Origin": "http://evil.example"}, 403),
    ("GET", "/healthz", "/healthz", None, {"X": "x" * 66_000}, 431),
    ("POST", "/v1/libs/rollback", "/v1/libs/rollback", None, {}, 409),
    ("DELETE", "/v1/libs/{version}", "/v1/libs/b1", None, {}, 404),
]


@pytest.mark.parametrize(("method", "path", "where", "body", "headers", "status"), REFUSED)
def test_refusals_are_as_described(
    served: Served, method: str, path: str, where: str, body: object, headers: dict[str, str], status: int
) -> None:
    reply = served.daemon.ask(method, where, body, headers)
    assert reply.status == status
    served.check(method, path, reply)


# schemathesis

CONFIG = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 503]

[checks.positive_data_acceptance]
enabled = false
"""
"""503 is what a kawai without network answers to what needs one. Words such as a model's id or a source
are any text to a schema and a 400 to kawai; what a schema can tell of them has a test of its own above."""


def schemathesis_run(daemon: Daemon, folder: Path, *args: str) -> str:
    """The report of a run with the default checks; failures make it fail."""
    (folder / "schemathesis.toml").write_text(CONFIG)
    command = (
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{daemon.url}/openapi.json"),
        *("--max-examples", "20", "--seed", "1", "--no-color", "--request-timeout", "10", *args),
    )
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    done = subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True], ids=["auth off", "strict"])
def test_schemathesis_finds_nothing(tmp_path: Path, *, strict: bool) -> None:
    with LocalHub(tmp_path / "hub") as hub:
        hub.add_file(REPO, f"{MODEL}.gguf", tiny_gguf())
        cli = Program(tmp_path, {"HF_ENDPOINT": hub.endpoint})
        assert cli("models", "pull", REPO).code == 0
    token = cli("tokens", "create", "--admin", "--json").events[0]["token"]
    cli.environ["KAWAI_OFFLINE"] = "1"
    folder = tmp_path / "schemathesis"
    folder.mkdir()
    with serving(cli, *(["--strict"] if strict else [])) as daemon:
        bearer = ["--header", f"Authorization: Bearer {token}"] if strict else []
        report = schemathesis_run(daemon, folder, *bearer)
        assert f"Tested: {len(EVERYTHING) - 1}" in report  # all but the description itself
        assert daemon.process.poll() is None
        if strict:
            assert daemon.ask("GET", "/openapi.json").status == 401
            assert describe(daemon, {"Authorization": f"Bearer {token}"})["paths"]
    log = daemon.home / "logs" / "kawai.log"
    assert not log.exists() or "Traceback" not in log.read_text()
