"""The two faces are one core: ``--json`` prints the bytes that HTTP answers, and exits as the status says."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import pytest

from kawai_tools.errors import OUTCOMES, ErrorType
from tests.hub import Fault, LocalHub
from tests.program import Daemon, Program, serving
from tests.samples import tiny_gguf

TIMED = frozenset({"rate", "eta", "seq", "pull"})
"""What may differ: it is of one attempt, not of the work."""


class Faces(NamedTuple):
    """The command line and a daemon, on one home."""

    hub: LocalHub
    cli: Program
    daemon: Daemon


def stock(hub: LocalHub) -> None:
    for owner in ("me", "you"):
        hub.add_file(f"{owner}/twin-GGUF", "Twin-Q8_0.gguf", tiny_gguf(name=owner))
    hub.add_file(
        "me/tiny-GGUF", "Tiny-Q4_0.gguf", tiny_gguf(chat_template="{{ x }}", extra={"a.b": "\u00fc\u202e"})
    )
    for number in (0, 1, 2):
        path = f"Split-Q8_0-0000{number + 1}-of-00003.gguf"
        hub.add_file("me/split-GGUF", path, tiny_gguf(split=(number, 3)))
    hub.add_file("me/eyes-GGUF", "Eyes-Q8_0.gguf", tiny_gguf())
    hub.add_file("me/eyes-GGUF", "mmproj-F16.gguf", tiny_gguf(projection=True))
    hub.add_file("me/many-GGUF", "Many-Q5_0.gguf", tiny_gguf())
    hub.add_file("me/many-GGUF", "Many-Q8_0.gguf", tiny_gguf())
    hub.add_file("me/page-GGUF", "Page-Q8_0.gguf", b"<!doctype html><title>Sign in</title>".ljust(2000))
    hub.add_file("me/gated-GGUF", "Gated-Q8_0.gguf", tiny_gguf())
    hub.gate("me/gated-GGUF")


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faces]:
    root = tmp_path_factory.mktemp("agreement")
    with LocalHub(root / "hub") as hub:
        stock(hub)
        cli = Program(root, {"HF_ENDPOINT": hub.endpoint})
        for repo in ("me/twin-GGUF", "you/twin-GGUF", "me/tiny-GGUF", "me/split-GGUF", "me/eyes-GGUF"):
            assert cli("models", "pull", repo).code == 0
        with serving(cli) as daemon:
            yield Faces(hub, cli, daemon)


Payload = tuple[tuple[str, ...], str]
PAYLOADS: list[Payload] = [
    (("models", "list"), "/v1/models"),
    (("models", "ps"), "/v1/models/ps"),
    *(
        (("models", "show", name), f"/v1/models/{quote(name, safe='')}")
        for name in ("Twin-Q8_0", "you/Twin-Q8_0", "tiny-q4_0", "me/Split-Q8_0", "Eyes-Q8_0")
    ),
]


@pytest.mark.parametrize(("args", "path"), PAYLOADS, ids=str)
def test_payloads_agree_byte_for_byte(faces: Faces, args: tuple[str, ...], path: str) -> None:
    ended, reply = faces.cli(*args, "--json"), faces.daemon.ask("GET", path)
    assert (ended.code, ended.err, reply.status) == (0, "", 200)
    assert ended.out.encode() == reply.body + b"\n"


def test_pulls_agree_byte_for_byte(faces: Faces) -> None:
    for source in ("me/tiny-GGUF", "me/page-GGUF"):
        assert faces.daemon.ask("POST", "/v1/models/pull", {"model_url": source}).status == 200
    ended, reply = faces.cli("pulls", "list", "--json"), faces.daemon.ask("GET", "/v1/pulls")
    assert [row["status"] for row in reply.json[:2]] == ["failed", "exists"]
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.encode() == reply.body + b"\n"


def _query(path: str, **fields: str) -> str:
    return f"{path}?{urlencode(fields)}"


Wrong = tuple[tuple[str, ...], str, str, object, int]
PULL = "/v1/models/pull"
PAGE = "https://huggingface.co/me/tiny-GGUF"
WRONG: list[Wrong] = [
    (("models", "show", "nope"), "GET", "/v1/models/nope", None, 404),
    (("models", "show", "Tiny-Q4"), "GET", "/v1/models/Tiny-Q4", None, 404),
    (("models", "show", "../x"), "GET", "/v1/models/..%2Fx", None, 400),
    (("models", "show", "a/b/c"), "GET", "/v1/models/a/b/c", None, 400),
    (("models", "show", "a%2Fb"), "GET", "/v1/models/a%252Fb", None, 400),
    (("models", "show", "a" * 300), "GET", "/v1/models/" + "a" * 300, None, 400),
    (("models", "show", "\u0422iny-Q4_0\u202e"), "GET", "/v1/models/%D0%A2iny-Q4_0%E2%80%AE", None, 404),
    (("models", "rm", "nope"), "DELETE", "/v1/models/nope", None, 404),
    (("models", "rm", "nope", "--force"), "DELETE", _query("/v1/models/nope", force="true"), None, 404),
    (("models", "rm", ".x"), "DELETE", "/v1/models/.x", None, 400),
    (("models", "verify", "nope"), "POST", "/v1/models/verify", {"model": "nope"}, 404),
    (("models", "verify", "-x"), "POST", "/v1/models/verify", {"model": "-x"}, 400),
    (("models", "pull", "me/many-GGUF"), "POST", PULL, {"model_url": "me/many-GGUF"}, 409),
    (("models", "pull", "me/many-GGUF:Q2_K"), "POST", PULL, {"model_url": "me/many-GGUF:Q2_K"}, 404),
    (("models", "pull", "me/gated-GGUF"), "POST", PULL, {"model_url": "me/gated-GGUF"}, 412),
    (("models", "pull", PAGE), "POST", PULL, {"model_url": PAGE}, 400),
    (("models", "pull", "nonsense"), "POST", PULL, {"model_url": "nonsense"}, 400),
    (("models", "pull", "ftp://x/y.gguf"), "POST", PULL, {"model_url": "ftp://x/y.gguf"}, 400),
    (
        ("models", "pull", "me/many-GGUF:Q8_0", "--connections", "99"),
        "POST",
        PULL,
        {"model_url": "me/many-GGUF:Q8_0", "connections": 99},
        400,
    ),
    (
        ("models", "pull", "me/many-GGUF:Q8_0", "--limit-rate", "fast"),
        "POST",
        PULL,
        {"model_url": "me/many-GGUF:Q8_0", "limit_rate": "fast"},
        400,
    ),
    (("pulls", "attach", "nope"), "GET", "/v1/pulls/nope", None, 404),
    (("pulls", "cancel", "nope"), "DELETE", "/v1/pulls/nope", None, 404),
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: " ".join(wrong[0])[:60])
def test_errors_agree_byte_for_byte_and_in_their_codes(faces: Faces, wrong: Wrong) -> None:
    (noun, verb, *rest), method, path, body, status = wrong
    ended = faces.cli(noun, verb, "--json", *(("--", *rest) if rest[0].startswith("-") else rest))
    reply = faces.daemon.ask(method, path, body)
    assert reply.status == status
    assert ended.out == ""
    assert ended.err.encode() == reply.body + b"\n"
    assert ended.code == OUTCOMES[ErrorType(reply.error["type"])].exit_code


def test_an_ambiguous_name_is_one_on_both(faces: Faces) -> None:
    """Two models of one stem and one owner, neither of which has the words as its id."""
    for repo in ("me/again-GGUF", "me/oncemore-GGUF"):
        faces.hub.add_file(repo, "Twin-Q8_0.gguf", tiny_gguf(name=repo))
        assert faces.cli("models", "pull", repo).code == 0
    listed = [row["id"] for row in faces.daemon.ask("GET", "/v1/models").json["data"]]
    assert faces.cli("models", "rm", "Twin-Q8_0").code == 0
    ended, reply = (
        faces.cli("models", "show", "Twin-Q8_0", "--json"),
        faces.daemon.ask("GET", "/v1/models/Twin-Q8_0"),
    )
    assert (ended.code, ended.out, reply.status, reply.error["code"]) == (5, "", 409, "ambiguous")
    assert ended.err.encode() == reply.body + b"\n"
    candidates = reply.error["message"].partition(": ")[2].split(", ")
    assert candidates == [each for each in listed if "/Twin-Q8_0" in each]
    assert len(candidates) == 3


def _untimed(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what is of one attempt, and without mere progress."""
    kept: list[dict[str, Any]] = []
    for event in events:
        event = {name: value for name, value in event.items() if name not in TIMED}  # noqa: PLW2901
        mere = kept and (kept[-1]["status"], kept[-1]["file"]) == (event["status"], event["file"])
        kept.extend([] if mere else [event])
    return kept


SOURCES: dict[str, tuple[dict[str, object], tuple[str, ...], int]] = {
    "one file": ({"model_url": "me/tiny-GGUF"}, ("me/tiny-GGUF",), 0),
    "a projection": ({"model_url": "me/eyes-GGUF"}, ("me/eyes-GGUF",), 0),
    "no projection": (
        {"model_url": "me/eyes-GGUF", "proj_url": "none"},
        ("me/eyes-GGUF", "--proj", "none"),
        0,
    ),
    "shards": ({"model_url": "me/split-GGUF"}, ("me/split-GGUF",), 0),
    "no model": ({"model_url": "me/page-GGUF"}, ("me/page-GGUF",), 7),
}


@pytest.fixture
def apart(hub: LocalHub, cli: Program, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faces]:
    """The command line and a daemon, each on a home of its own, so that both pull."""
    stock(hub)
    with serving(Program(tmp_path_factory.mktemp("served"), {"HF_ENDPOINT": hub.endpoint})) as daemon:
        yield Faces(hub, cli, daemon)


@pytest.mark.parametrize("name", SOURCES)
def test_pull_events_agree_field_by_field(apart: Faces, name: str) -> None:
    body, args, code = SOURCES[name]
    for again in ("downloaded", "exists"):
        ended, reply = apart.cli("models", "pull", *args, "--json"), apart.daemon.ask("POST", PULL, body)
        assert (ended.code, ended.err, reply.status) == (code, "", 200)
        assert _untimed(ended.events) == _untimed(reply.events)
        assert list(ended.events[0]) == list(reply.events[0])
        assert ended.events[-1]["status"] == ("failed" if code else again)


def test_a_failure_inside_a_stream_agrees(apart: Faces) -> None:
    apart.hub.misbehave(Fault.flip(0.9, server="cdn"))
    ended = apart.cli("models", "pull", "me/tiny-GGUF", "--json")
    reply = apart.daemon.ask("POST", PULL, {"model_url": "me/tiny-GGUF"})
    assert (ended.code, ended.err) == (7, "")
    assert _untimed(ended.events) == _untimed(reply.events)
    assert reply.events[-1]["error"]["code"] == "digest_mismatch"


@pytest.mark.parametrize("source", ["me/tiny-GGUF", "me/eyes-GGUF", "me/split-GGUF", "me/many-GGUF:Q5_0"])
def test_plans_agree_byte_for_byte(faces: Faces, source: str) -> None:
    """Apart from the free space, which others change meanwhile."""
    ended = faces.cli("models", "pull", source, "--dry-run", "--json")
    reply = faces.daemon.ask("POST", PULL, {"model_url": source, "dry_run": True})
    assert (ended.code, ended.err, reply.status) == (0, "", 200)
    assert reply.headers["content-type"] == "application/json"
    assert list(reply.json) == ["id", "exists", "files", "total", "needed", "free", "fit"]
    free = rb'"free":\d+'
    assert re.sub(free, b"", ended.out.encode()) == re.sub(free, b"", reply.body) + b"\n"
    assert reply.json["exists"] == (source != "me/many-GGUF:Q5_0")


def test_verifications_agree(hub: LocalHub, cli: Program, daemon: Daemon) -> None:
    stock(hub)
    for repo in ("me/eyes-GGUF", "me/split-GGUF", "me/tiny-GGUF", "me/twin-GGUF"):
        assert cli("models", "pull", repo).code == 0
    bad = daemon.home / "models" / "me" / "tiny-GGUF" / "Tiny-Q4_0.gguf"
    bad.write_bytes(bad.read_bytes()[:-1] + b"x")
    (daemon.home / "models" / "me" / "split-GGUF" / "Split-Q8_0-00002-of-00003.gguf").unlink()
    for model, code, ends in (("Eyes-Q8_0", 0, ["verified"]), ("Tiny-Q4_0", 7, ["failed"]), (None, 7, None)):
        ended = cli("models", "verify", *([model] if model else []), "--json")
        reply = daemon.ask("POST", "/v1/models/verify", {"model": model} if model else None)
        assert (ended.code, ended.err, reply.status) == (code, "", 200)
        assert _untimed(ended.events) == _untimed(reply.events)
        finals = [event for event in reply.events if event["status"] in {"verified", "failed"}]
        assert ends is None or [event["status"] for event in finals] == ends
        assert [event["id"] for event in finals] == sorted(event["id"] for event in finals)
        assert finals[-1] == reply.events[-1]


def test_what_answers_204_prints_nothing(hub: LocalHub, cli: Program, daemon: Daemon) -> None:
    stock(hub)
    assert cli("models", "pull", "me/tiny-GGUF", "--quiet").code == 0
    assert cli("models", "index", "--json") == (0, "", "")
    assert daemon.ask("POST", "/v1/models/index").body == b""
    assert cli("models", "rm", "Tiny-Q4_0", "--json") == (0, "", "")
    assert daemon.ask("GET", "/v1/models").json == {"object": "list", "data": []}
