"""``models pull`` and ``POST /v1/models/pull``: what may be named, what is answered, what is left behind."""

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kawai_tools.errors import OUTCOMES, ErrorType
from kawai_tools.transfer.asking import Asker
from kawai_tools.transfer.hub import Hub
from tests.hub import Fault, LocalHub
from tests.program import ESCAPES, Daemon, Ended, Program, Reply, serving
from tests.samples import F32, Tensor, tiny_gguf
from tests.workspaces import Workspaces, pull

HUB = "https://huggingface.co"
KEYS = [
    "status",
    "file",
    "completed",
    "total",
    "rate",
    "eta",
    "error",
    "pull",
    "seq",
    "id",
    "file_completed",
    "file_total",
    "model_files",
    "proj_file",
    "downloaded",
]
ENDS = {"downloaded", "exists", "failed", "cancelled"}
NOWHERE = Fault.status(503, {"Retry-After": "0"})


def model(name: str, **more: Any) -> bytes:  # noqa: ANN401 - passed on
    return tiny_gguf(name=name, **more)


def large(name: str, kilobytes: int) -> bytes:
    tensors: tuple[Tensor, ...] = (("token_embd.weight", (256, kilobytes), F32),)
    return model(name, tensors=tensors)


def projection(name: str = "mmproj") -> bytes:
    return tiny_gguf(name=name, projection=True)


def installed(program: Program) -> set[str]:
    """Every file of the store with a final name."""
    store = Path(program.environ["KAWAI_HOME"]) / "models"
    found = [each.relative_to(store) for each in store.rglob("*") if each.is_file()]
    return {str(each) for each in found if not any(part.startswith(".") for part in each.parts)}


def ids(program: Program) -> list[str]:
    return [row["id"] for row in json.loads(program("models", "list", "--json").out)["data"]]


def answered(ended: Ended) -> list[dict[str, Any]]:
    """The events of a pull that did well, held to the contract of a stream."""
    assert (ended.code, ended.err) == (0, "")
    return told(ended.events)


def told(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events, held to what every stream of a pull has."""
    for event in events:
        assert sorted(event) == sorted(KEYS)
        assert event["downloaded"] == (event["status"] in {"downloaded", "exists"})
        assert (event["error"] is not None) == (event["status"] == "failed")
        assert 0 <= event["completed"] <= event["total"]
        assert (event["file_completed"] is None) == (event["file_total"] is None)
    numbers = [event["seq"] for event in events]
    assert numbers[0] == 1
    assert numbers == sorted(set(numbers))
    assert len({(event["pull"], event["id"]) for event in events}) == 1
    assert [event["status"] in ENDS for event in events] == [False] * (len(events) - 1) + [True]
    amounts = [event["completed"] for event in events]
    assert amounts == sorted(amounts)
    return events


def statuses(events: list[dict[str, Any]]) -> list[tuple[str, str | None]]:
    """Each status and file once, in order."""
    seen = [(event["status"], event["file"]) for event in events]
    return [each for place, each in enumerate(seen) if place == 0 or seen[place - 1] != each]


# What may be named, and what may not: one hub, one home, both faces


class Site(NamedTuple):
    """A hub with a shelf of repositories, and both faces of one home."""

    hub: LocalHub
    cli: Program
    daemon: Daemon

    def both(self, source: str, proj: str | None = None, **body: Any) -> tuple[Ended, Reply]:  # noqa: ANN401
        """Ask the same of both faces."""
        args = ["--dry-run"] if body.get("dry_run") else []
        args += [] if proj is None else ["--proj", proj]
        ended = self.cli("models", "pull", source, *args, "--json")
        asked = {"model_url": source, **body} | ({} if proj is None else {"proj_url": proj})
        return ended, self.daemon.ask("POST", "/v1/models/pull", asked)


SHARDS = [f"q4/big-Q4_0-0000{number}-of-00003.gguf" for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home = tmp_path_factory.mktemp("shelf")
    with LocalHub(home / "hub") as hub:
        hub.add_file("me/only", "only.Q8_0.gguf", model("only"))
        hub.add_file("me/only", "README.md", b"# only")
        for quantization in ("Q4_K_M", "Q8_0", "F16"):
            hub.add_file("me/many", f"many.{quantization}.gguf", model(quantization))
        hub.add_file("me/choice", "choice-Q5_0.gguf", model("Q5_0"))
        hub.add_file("me/choice", "choice-Q8_0.gguf", model("Q8_0"))
        hub.add_file("me/twice", "a-Q8_0.gguf", model("a"))
        hub.add_file("me/twice", "b-Q8_0.gguf", model("b"))
        for number, name in enumerate(SHARDS):
            hub.add_file("me/split", name, model("big", split=(number, 3)))
        hub.add_file("me/seeing", "seeing-Q8_0.gguf", model("seeing"))
        for quantization in ("BF16", "F16", "Q8_0"):
            hub.add_file("me/seeing", f"mmproj-{quantization}.gguf", projection(quantization))
        hub.add_file("me/disguised", "eye.gguf", projection())
        hub.add_file("me/disguised", "mmproj-no.gguf", model("no"))
        hub.add_file("me/empty", "README.md", b"# empty")
        hub.add_file("me/ways", "dir/way.gguf", model("draft"), revision="refs/pr/1")
        hub.add_file("me/gated", "gated.gguf", model("gated"))
        hub.add_file("me/private", "private.gguf", model("private"))
        hub.add_file("me/lone", "lone-00002-of-00002.gguf", model("lone", split=(1, 2)))
        hub.add_plain("plain.gguf", model("plain"))
        hub.add_plain("page.gguf", b"<!DOCTYPE html><title>Sign in</title>" + bytes(2000))
        hub.gate("me/gated")
        hub.make_private("me/private")
        cli = Program(home, {"HF_ENDPOINT": hub.endpoint})
        with serving(cli) as daemon:
            yield Site(hub, cli, daemon)


@pytest.fixture
def site(shelf: Site) -> Iterator[Site]:
    yield shelf
    shelf.hub.behave()
    assert installed(shelf.cli) == set()


SOURCES = [
    ("{hub}/me/many/resolve/main/many.Q8_0.gguf", ["me/many/resolve/main/many.Q8_0.gguf"]),
    ("{hub}/me/many/blob/main/many.Q8_0.gguf", ["me/many/resolve/main/many.Q8_0.gguf"]),
    ("{hub}/me/many/raw/main/many.Q8_0.gguf", ["me/many/resolve/main/many.Q8_0.gguf"]),
    ("{hub}/me/many/resolve/main/many.Q8_0.gguf?download=true#x", ["me/many/resolve/main/many.Q8_0.gguf"]),
    (f"{HUB}/me/many/resolve/main/many.Q8_0.gguf?download=true", ["me/many/resolve/main/many.Q8_0.gguf"]),
    (f"{HUB}/me/many/blob/main/many.Q8_0.gguf", ["me/many/resolve/main/many.Q8_0.gguf"]),
    ("http://huggingface.co/me/many/blob/main/many.Q8_0.gguf", ["me/many/resolve/main/many.Q8_0.gguf"]),
    ("HTTPS://HuggingFace.co/me/many/blob/main/many.Q8_0.gguf", ["me/many/resolve/main/many.Q8_0.gguf"]),
    ("hf.co/me/many/resolve/main/many.Q8_0.gguf", ["me/many/resolve/main/many.Q8_0.gguf"]),
    ("https://hf.co/me/many/blob/main/many.Q8_0.gguf", ["me/many/resolve/main/many.Q8_0.gguf"]),
    ("huggingface.co/me/many/blob/main/many.Q8_0.gguf", ["me/many/resolve/main/many.Q8_0.gguf"]),
    ("hf.co/me/many:Q8_0", ["me/many/resolve/main/many.Q8_0.gguf"]),
    ("https://huggingface.co/me/many:Q8_0", ["me/many/resolve/main/many.Q8_0.gguf"]),
    ("hf.co/me/many", ["me/many/resolve/main/many.Q4_K_M.gguf"]),
    ("me/many:q8_0", ["me/many/resolve/main/many.Q8_0.gguf"]),
    ("me/many:FP16", ["me/many/resolve/main/many.F16.gguf"]),
    ("me/many", ["me/many/resolve/main/many.Q4_K_M.gguf"]),
    ("me/only", ["me/only/resolve/main/only.Q8_0.gguf"]),
    ("  me/only \n", ["me/only/resolve/main/only.Q8_0.gguf"]),
    ("me/split:Q4_0", [f"me/split/resolve/main/{name}" for name in SHARDS]),
    ("me/split", [f"me/split/resolve/main/{name}" for name in SHARDS]),
    *[
        (f"{{hub}}/me/split/{verb}/main/{name}", [f"me/split/resolve/main/{name}" for name in SHARDS])
        for verb, name in zip(("resolve", "blob", "resolve"), SHARDS, strict=True)
    ],
    ("me/seeing", [f"me/seeing/resolve/main/{name}.gguf" for name in ("seeing-Q8_0", "mmproj-F16")]),
    ("{hub}/me/seeing/resolve/main/seeing-Q8_0.gguf", ["me/seeing/resolve/main/seeing-Q8_0.gguf"]),
    ("{hub}/me/ways/resolve/refs/pr/1/dir/way.gguf", ["me/ways/resolve/refs%2Fpr%2F1/dir/way.gguf"]),
    ("{hub}/me/ways/resolve/refs%2Fpr%2F1/dir/way.gguf", ["me/ways/resolve/refs%2Fpr%2F1/dir/way.gguf"]),
    ("{cdn}/files/plain.gguf", ["{cdn}/files/plain.gguf"]),
    ("{cdn}/files/plain.gguf?x=1#y", ["{cdn}/files/plain.gguf?x=1"]),
]


@pytest.mark.parametrize(("source", "urls"), SOURCES)
def test_every_form_of_a_source_is_understood(site: Site, source: str, urls: list[str]) -> None:
    names = {"hub": site.hub.endpoint, "cdn": site.hub.cdn_endpoint}
    reply = site.daemon.ask("POST", "/v1/models/pull", {"model_url": source.format(**names), "dry_run": True})
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    plan = reply.json
    assert list(plan) == ["id", "exists", "files", "total", "needed", "free", "fit"]
    assert plan["exists"] is False
    assert [file["url"] for file in plan["files"]] == [
        url.format(**names) if "{cdn}" in url else f"{HUB}/{url}" for url in urls
    ]
    for file in plan["files"]:
        assert list(file) == ["url", "path", "size", "sha256", "have"]
        assert file["have"] == 0
        assert (file["sha256"] is None) == (file["url"].startswith(site.hub.cdn_endpoint))
    assert plan["total"] == plan["needed"] == sum(file["size"] for file in plan["files"])
    assert plan["free"] > plan["needed"]


@pytest.mark.parametrize(
    "source", ["me/seeing", "{hub}/me/split/blob/main/" + SHARDS[1], "{cdn}/files/plain.gguf"]
)
def test_both_faces_plan_alike(site: Site, source: str) -> None:
    ended, reply = site.both(source.format(hub=site.hub.endpoint, cdn=site.hub.cdn_endpoint), dry_run=True)
    assert (ended.code, ended.err, reply.status) == (0, "", 200)
    free = re.compile(rb'"free":\d+,')
    assert free.sub(b"", ended.out.encode()) == free.sub(b"", reply.body) + b"\n"


class Bad(NamedTuple):
    """What is asked, and how it is refused; ``words`` are all in message or hint."""

    source: str
    status: int
    exit: int
    code: str
    words: tuple[str, ...]
    proj: str | None = None
    fault: Fault | None = None


MANY = "{hub}/me/many/resolve/main/many.Q8_0.gguf"
BUSY = Fault.status(429, {"Retry-After": "0"}, path="/many")
REFUSED = {
    "missing quantization": Bad(
        "me/many:Q2_K", 404, 3, "quantization_not_found", ("Q2_K", "F16, Q4_K_M, Q8_0")
    ),
    "no Q4_K_M": Bad("me/choice", 409, 5, "ambiguous_file", ("Q5_0", "Q8_0", "me/choice:")),
    "one quantization twice": Bad(
        "me/twice:Q8_0", 409, 5, "ambiguous_file", (f"{HUB}/me/twice/resolve/main/a-Q8_0.gguf", "b-Q8_0.gguf")
    ),
    "no GGUF at all": Bad("me/empty", 404, 3, "file_not_found", ("me/empty", "no GGUF")),
    "mistyped file": Bad(
        "{hub}/me/many/resolve/main/many.Q8_O.gguf",
        404,
        3,
        "file_not_found",
        (f"did you mean {HUB}/me/many/resolve/main/many.Q8_0.gguf",),
    ),
    "missing revision": Bad("{hub}/me/many/resolve/v9/many.Q8_0.gguf", 404, 3, "revision_not_found", ("v9",)),
    "missing shard": Bad(
        "{hub}/me/lone/resolve/main/lone-00002-of-00002.gguf",
        404,
        3,
        "file_not_found",
        ("lone-00001-of-00002.gguf",),
    ),
    "missing plain file": Bad("{cdn}/files/none.gguf", 404, 3, "file_not_found", ("{cdn}/files/none.gguf",)),
    "page of a repository": Bad(
        "{hub}/me/many", 400, 2, "page_url", ("me/many/resolve/main/FILE.gguf", "me/many:QUANT")
    ),
    "page of a listing": Bad(
        f"{HUB}/me/many/tree/main", 400, 2, "page_url", ("me/many/resolve/main/FILE.gguf",)
    ),
    "page elsewhere": Bad("{cdn}/files/", 400, 2, "invalid_source", (".gguf",)),
    "not a GGUF by name": Bad(
        "{hub}/me/only/resolve/main/README.md", 400, 2, "invalid_source", ("README.md",)
    ),
    "path without a URL": Bad(
        "me/many/many.Q8_0.gguf",
        400,
        2,
        "invalid_source",
        (f"did you mean {HUB}/me/many/resolve/main/many.Q8_0.gguf",),
    ),
    "other scheme": Bad(
        "ftp://example.org/x.gguf", 400, 2, "invalid_source", ("ftp://example.org/x.gguf", "http")
    ),
    "no repository": Bad("many", 400, 2, "invalid_source", ("many", "OWNER/REPO")),
    "nothing": Bad(" ", 400, 2, "invalid_source", ("OWNER/REPO",)),
    "no quantization after the colon": Bad("me/many:", 400, 2, "invalid_source", ("quantization",)),
    "a way out of the store": Bad(
        "{hub}/me/many/resolve/main/..%2f..%2fx.gguf", 400, 2, "invalid_source", ("x.gguf",)
    ),
    "credentials in it": Bad(
        "http://me:sesame@example.org/x.gguf", 400, 2, "invalid_source", ("user name or password",)
    ),
    "credentials in a broken one": Bad(
        "http://me:sesame@example.org:port/x.gguf", 400, 2, "invalid_source", ()
    ),
    "gated": Bad(
        "{hub}/me/gated/resolve/main/gated.gguf",
        412,
        5,
        "hub_token_required",
        ("set HF_TOKEN", f"{HUB}/me/gated"),
    ),
    "private": Bad("me/private", 412, 5, "hub_token_required", ("set HF_TOKEN", f"{HUB}/me/private")),
    "limited rate": Bad(MANY, 502, 6, "rate_limited", ("limits the rate", "later"), fault=BUSY),
    "limited rate of listing": Bad("me/many", 502, 6, "rate_limited", ("limits the rate",), fault=BUSY),
    "failing hub": Bad(MANY, 502, 6, "unreachable", ("503",), fault=NOWHERE),
    "no listing": Bad(
        "me/many", 502, 6, "bad_response", ("listing",), fault=Fault.status(200, body="<html>", path="/tree/")
    ),
    "redirect in a circle": Bad(
        MANY, 502, 6, "bad_redirect", ("redirects",), fault=Fault.redirect_loop(server="hub")
    ),
    "redirect to a file": Bad(
        MANY,
        502,
        6,
        "bad_redirect",
        ("file:",),
        fault=Fault.redirect("file:///etc/hostname", server="hub", method="GET"),
    ),
    "no space": Bad(
        "{hub}/me/only/resolve/main/only.Q8_0.gguf",
        507,
        8,
        "no_space",
        ("9,007,199,254,740,992", "only.Q8_0", "free"),
        fault=Fault.status(200, {"X-Linked-Size": str(1 << 53), "X-Repo-Commit": "0" * 40}, method="HEAD"),
    ),
    "projection by name": Bad(
        "{hub}/me/seeing/resolve/main/mmproj-F16.gguf", 422, 7, "not_a_model", ("projection", "--proj")
    ),
    "projection by content": Bad(
        "{hub}/me/disguised/resolve/main/eye.gguf", 422, 7, "not_a_model", ("projection", "--proj")
    ),
    "web page": Bad("{cdn}/files/page.gguf", 422, 7, "not_a_model", ("web page",)),
    "web page of a portal": Bad(
        MANY, 422, 7, "not_a_model", ("web page",), fault=Fault.login_page(method="GET")
    ),
    "pointer": Bad(MANY, 422, 7, "not_a_model", ("pointer",), fault=Fault.pointer(method="GET")),
    "wrong digest": Bad(MANY, 422, 7, "digest_mismatch", ("SHA-256",), fault=Fault.flip(0.9)),
    "second model": Bad("me/only", 400, 2, "not_a_projection", ("many.Q8_0.gguf", "mmproj"), proj=MANY),
    "second model, plain": Bad(
        "me/only", 400, 2, "not_a_projection", ("plain.gguf",), proj="{cdn}/files/plain.gguf"
    ),
    "projection of a repository": Bad(
        "me/only", 400, 2, "not_a_projection", ("me/seeing",), proj="me/seeing"
    ),
    "model under the name of a projection": Bad(
        "me/only",
        422,
        7,
        "not_a_model",
        ("not a projection",),
        proj="{hub}/me/disguised/resolve/main/mmproj-no.gguf",
    ),
    "missing projection": Bad(
        "me/only",
        404,
        3,
        "file_not_found",
        ("mmproj-none.gguf",),
        proj="{hub}/me/seeing/resolve/main/mmproj-none.gguf",
    ),
}


@pytest.mark.parametrize("bad", REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_alike_by_both_faces(site: Site, bad: Bad) -> None:
    names = {"hub": site.hub.endpoint, "cdn": site.hub.cdn_endpoint}
    if bad.fault is not None:
        site.hub.misbehave(bad.fault)
    ended, reply = site.both(bad.source.format(**names), bad.proj and bad.proj.format(**names))
    streamed = reply.status == 200
    error = told(reply.events)[-1]["error"] if streamed else reply.error
    shown = told(ended.events)[-1]["error"] if streamed else ended.error
    free = re.compile(r"[\d,]+ free")
    assert shown | {"message": free.sub("", shown["message"])} == error | {
        "message": free.sub("", error["message"])
    }
    assert (ended.code, error["code"]) == (bad.exit, bad.code)
    assert reply.status == (200 if streamed else bad.status)
    assert bad.status in OUTCOMES[ErrorType(error["type"])].statuses
    assert not streamed or ended.err == ""
    assert set(error) == {"code", "type", "message", "hint"}
    said = f"{error['message']} {error['hint']}"
    for word in bad.words:
        assert word.format(**names) in said
    assert "sesame" not in said
    assert not error["message"].endswith(".")


LATER = ["connections 0", "limit_rate 0", "limit_rate soon"]


@pytest.mark.parametrize("wish", LATER)
@pytest.mark.parametrize("dry", [False, True])
def test_a_wish_that_makes_no_sense_is_refused_before_the_hub_is_asked(
    site: Site, wish: str, *, dry: bool
) -> None:
    key, value = wish.split()
    site.hub.clear_requests()
    number = int(value) if value.lstrip("-").isdigit() else value
    reply = site.daemon.ask("POST", "/v1/models/pull", {"model_url": "me/many", key: number, "dry_run": dry})
    assert (reply.status, reply.error["type"]) == (400, "invalid_request")
    assert key in reply.error["message"]
    args = (
        "models",
        "pull",
        "me/many",
        f"--{key.replace('_', '-')}={value}",
        *(["--dry-run"] if dry else []),
    )
    assert site.cli(*args, "--json").code == 2
    assert site.hub.requests == []


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "model_url"),
        ({"model_url": 7}, "model_url"),
        ({"model_url": "me/only", "quant": "Q8_0"}, "quant"),
        ({"model_url": "me/only", "force": "yes"}, "force"),
    ],
)
def test_a_body_that_makes_no_sense_is_400_and_names_the_key(
    site: Site, body: dict[str, object], word: str
) -> None:
    reply = site.daemon.ask("POST", "/v1/models/pull", body)
    assert (reply.status, reply.error["code"]) == (400, "invalid_body")
    assert word in reply.error["message"]


@pytest.mark.parametrize(
    "path", ["/etc/hostname", "./tiny.gguf", "../x.gguf", "~/x.gguf", "tiny.gguf", "file:///x.gguf"]
)
def test_a_local_path_is_answered_with_what_to_do_but_never_over_http(site: Site, path: str) -> None:
    for args in ((path,), ("me/only", path))[: 2 if path.startswith("..") else 1]:
        ended = site.cli("models", "pull", *args, "--json")
        assert (ended.code, ended.error["code"]) == (2, "local_path")
        assert path in ended.error["message"]
        assert "kawai models adopt" in ended.error["hint"]
    for body in ({"model_url": path}, {"model_url": "me/only", "proj_url": path}):
        reply = site.daemon.ask("POST", "/v1/models/pull", body)
        assert (reply.status, reply.error["code"]) == (400, "invalid_source")
        assert "index" not in str(reply.error)


def test_get_on_pull_is_405_and_no_model(site: Site) -> None:
    reply = site.daemon.ask("GET", "/v1/models/pull")
    assert (reply.status, reply.headers["allow"]) == (405, "POST")


def test_errors_for_people_say_what_and_what_to_do(site: Site) -> None:
    ended = site.cli("models", "pull", "me/choice")
    assert (ended.code, ended.out) == (5, "")
    error, hint = ended.err.splitlines()
    assert error.startswith("error: me/choice has several models")
    assert hint.startswith("hint: ")


@pytest.mark.slow
def test_a_hub_that_is_down_is_said_within_the_budget(site: Site) -> None:
    site.hub.down("hub")
    try:
        with site.cli.start("models", "pull", "me/only", "--json") as process:
            reply = site.daemon.ask("POST", "/v1/models/pull", {"model_url": "me/only"})
            out, err = process.communicate(timeout=40)
    finally:
        site.hub.up("hub")
    assert (process.returncode, out) == (6, "")
    assert Ended(6, out, err).error == reply.error
    assert (reply.status, reply.error["code"]) == (502, "unreachable")
    assert site.hub.endpoint.removeprefix("http://") in reply.error["message"]


def test_offline_asks_nobody(site: Site) -> None:
    site.hub.clear_requests()
    for source in (
        "me/only",
        f"{site.hub.endpoint}/me/only/resolve/main/only.Q8_0.gguf",
        f"{site.hub.cdn_endpoint}/files/plain.gguf",
    ):
        ended = site.cli("models", "pull", source, "--offline", "--json")
        assert (ended.code, ended.error["code"]) == (9, "offline")
        assert "--offline" in ended.error["hint"]
    assert site.hub.requests == []


@pytest.mark.parametrize("standing", ["invalid", "of somebody else"])
def test_a_refused_hub_token_is_403_and_names_the_page(cli: Program, hub: LocalHub, standing: str) -> None:
    for repo in ("me/gated", "me/private"):
        hub.add_file(repo, "x.gguf", model("x"))
    hub.gate("me/gated")
    hub.make_private("me/private")
    cli.environ["HF_TOKEN"] = "hf_canary"
    if standing == "of somebody else":
        hub.add_token("hf_canary")
    wanted = ["me/gated"] if standing == "of somebody else" else ["me/gated", "me/private"]
    with serving(cli) as daemon:
        for repo in wanted:
            url = hub.url(repo, "x.gguf")
            ended = cli("models", "pull", url, "--json")
            reply = daemon.ask("POST", "/v1/models/pull", {"model_url": url})
            assert (reply.status, reply.error["code"], ended.code) == (403, "model_gated", 4)
            assert ended.error == reply.error
            assert f"{HUB}/{repo}" in reply.error["message"]
            assert "hf_canary" not in str(reply.error)
        hub.add_token("hf_canary", accepts={"me/gated"}, sees={"me/private"})
        for repo in wanted:
            assert daemon.ask("POST", "/v1/models/pull", {"model_url": repo}).events[-1]["downloaded"]


def test_a_429_is_waited_out_but_not_for_a_day(workspaces: Workspaces, hub: LocalHub) -> None:
    hub.add_file("me/only", "only.gguf", model("only"))
    hub.misbehave(Fault.status(429, {"Retry-After": "86400"}, times=2, method="HEAD"))
    workspace = workspaces()
    waits: list[float] = []
    asker = Asker(workspace.outbound, pause=waits.append)
    vars(workspace)["hub"] = Hub(workspace.outbound, hub.endpoint, asker)
    assert pull(workspace, hub.url("me/only", "only.gguf"))[-1].status == "downloaded"
    assert len(waits) == 2
    assert all(1 <= wait <= 10 for wait in waits)


# Events


def test_a_pull_tells_every_step_once_and_in_order(cli: Program, daemon: Daemon, hub: LocalHub) -> None:
    for number in (1, 2):
        name = f"big-Q8_0-0000{number}-of-00002.gguf"
        hub.add_file("me/big", name, model("big", split=(number - 1, 2)))
    hub.add_file("me/big", "mmproj-F16.gguf", projection())
    reply = daemon.ask("POST", "/v1/models/pull", {"model_url": "me/big"})
    assert (reply.status, reply.headers["content-type"]) == (200, "text/event-stream")
    over_http = told(reply.events)
    cli("models", "rm", "big-Q8_0")
    in_shell = answered(cli("models", "pull", "me/big:Q8_0", "--json"))
    for events in (over_http, in_shell):
        paths = [
            f"me/big/{name}" for name in ("big-Q8_0-00001-of-00002.gguf", "big-Q8_0-00002-of-00002.gguf")
        ]
        expected: list[tuple[str, str | None]] = [("resolving", None)]
        for path in (*paths, "me/big/mmproj-F16.gguf"):
            expected += [("downloading", path), ("verifying", path)]
        assert statuses(events) == [*expected, ("installing", None), ("downloaded", None)]
        last = events[-1]
        assert last["id"] == "big-Q8_0"
        assert (last["model_files"], last["proj_file"]) == (paths, "me/big/mmproj-F16.gguf")
        assert (
            last["completed"]
            == last["total"]
            == sum((daemon.home / "models" / path).stat().st_size for path in (*paths, last["proj_file"]))
        )
        assert last["error"] is last["rate"] is last["eta"] is None
        for event in events:
            assert (event["model_files"], event["proj_file"]) == (paths, last["proj_file"])
            assert event["total"] == last["total"]
            if event["file"]:
                assert 0 <= event["file_completed"] <= event["file_total"]
                assert event["file_total"] == (daemon.home / "models" / event["file"]).stat().st_size
    assert [list(event) for event in over_http] == [list(event) for event in over_http[:1]] * len(over_http)
    assert list(over_http[0]) == list(in_shell[0])


def test_progress_tells_rate_and_time_left_in_whole_numbers(cli: Program, hub: LocalHub) -> None:
    hub.add_file("me/slow", "slow.gguf", large("slow", 600))
    hub.throttle = 500_000
    events = answered(cli("models", "pull", "me/slow", "--json", "--connections", "1"))
    rates = [event["rate"] for event in events if event["rate"] is not None]
    assert rates
    assert all(type(rate) is int and 100_000 < rate < 2_000_000 for rate in rates)
    assert all(type(event["eta"]) is int for event in events if event["rate"])
    begin = [event for event in events if event["status"] == "downloading"]
    assert 3 <= len(begin) <= 12, "progress is told at most four times a second"


@pytest.mark.parametrize(
    "source", ["{hub}/me/many/resolve/main/many.Q8_0.gguf", "me/many:Q8_0", "{cdn}/files/plain.gguf"]
)
def test_exists_is_told_without_the_network(cli: Program, daemon: Daemon, hub: LocalHub, source: str) -> None:
    hub.add_file("me/many", "many.Q8_0.gguf", model("many"))
    hub.add_plain("plain.gguf", model("plain"))
    source = source.format(hub=hub.endpoint, cdn=hub.cdn_endpoint)
    first = answered(cli("models", "pull", source, "--json"))[-1]
    hub.down()
    again = answered(cli("models", "pull", source, "--json", "--offline"))
    reply = told(daemon.ask("POST", "/v1/models/pull", {"model_url": source}).events)
    for events in (again, reply):
        assert statuses(events) == [("resolving", None), ("exists", None)]
        last = events[-1]
        kept = ("id", "total", "completed", "model_files", "proj_file", "downloaded")
        assert {key: last[key] for key in kept} == {key: first[key] for key in kept}
    plan = json.loads(cli("models", "pull", source, "--dry-run", "--json").out)
    assert (plan["exists"], plan["needed"], plan["total"]) == (True, 0, first["total"])
    assert [file["have"] for file in plan["files"]] == [first["total"]]
    shown = cli("models", "pull", source)
    path = daemon.home / "models" / first["model_files"][0]
    assert (shown.code, shown.out) == (0, f"{first['id']} is already here: {path}\n")
    assert (
        cli("models", "pull", source, "--dry-run").out
        == f"{first['id']} is already here; nothing would be fetched\n"
    )


def test_a_file_cut_on_disk_is_no_longer_what_was_asked_for(cli: Program, hub: LocalHub) -> None:
    hub.add_file("me/only", "only.gguf", model("only"))
    answered(cli("models", "pull", "me/only", "--json"))
    (path,) = (Path(cli.environ["KAWAI_HOME"]) / "models").rglob("only.gguf")
    path.write_bytes(path.read_bytes()[:-1])
    assert answered(cli("models", "pull", "me/only", "--json"))[-1]["status"] == "downloaded"
    assert path.read_bytes() == model("only")


def test_provenance_keeps_the_canonical_url(cli: Program, hub: LocalHub) -> None:
    commit = hub.add_file("me/only", "only.gguf", model("only"))
    answered(cli("models", "pull", hub.url("me/only", "only.gguf").replace("resolve", "blob"), "--json"))
    shown = json.loads(cli("models", "show", "only", "--json").out)
    assert shown["provenance"]["url"] == f"{HUB}/me/only/resolve/main/only.gguf"
    assert shown["provenance"]["commit"] == commit
    assert shown["files"][0]["sha256"] == sha256(model("only")).hexdigest()
    assert (shown["owned_by"], shown["model_family"], shown["validated"]) == ("me", "only", True)
    for source in (f"{HUB}/me/only/resolve/main/only.gguf", "hf.co/me/only/blob/main/only.gguf"):
        assert answered(cli("models", "pull", source, "--json", "--offline"))[-1]["status"] == "exists"


def test_a_renamed_repository_is_followed(cli: Program, hub: LocalHub) -> None:
    hub.add_file("me/new", "x.gguf", model("x"))
    hub.misbehave(Fault.redirect(hub.url("me/new", "x.gguf"), 307, server="hub", path="/me/old/"))
    last = answered(cli("models", "pull", hub.url("me/old", "x.gguf"), "--json"))[-1]
    assert (last["status"], last["model_files"]) == ("downloaded", ["me/old/x.gguf"])


# Projections


@pytest.fixture
def seeing(hub: LocalHub) -> LocalHub:
    for quantization in ("Q4_0", "Q8_0"):
        hub.add_file("me/seeing", f"seeing-{quantization}.gguf", model(quantization))
    hub.add_file("me/seeing", "mmproj-F16.gguf", projection())
    return hub


def fetched(hub: LocalHub) -> list[str]:
    """The names of the files whose bytes were asked of the CDN."""
    return [
        each.path.rsplit("/", 1)[-1] for each in hub.requests if (each.server, each.method) == ("cdn", "GET")
    ]


def test_a_shared_projection_is_fetched_once_and_stays_while_it_is_used(
    cli: Program, seeing: LocalHub
) -> None:
    for quantization in ("Q4_0", "Q8_0"):
        last = answered(cli("models", "pull", f"me/seeing:{quantization}", "--json"))[-1]
        assert last["proj_file"] == "me/seeing/mmproj-F16.gguf"
        assert last["completed"] == last["total"]
    assert sorted(fetched(seeing)) == ["mmproj-F16.gguf", "seeing-Q4_0.gguf", "seeing-Q8_0.gguf"]
    assert ids(cli) == ["seeing-Q4_0", "seeing-Q8_0"]
    assert cli("models", "rm", "seeing-Q4_0").code == 0
    assert installed(cli) == {"me/seeing/mmproj-F16.gguf", "me/seeing/seeing-Q8_0.gguf"}
    assert cli("models", "verify", "seeing-Q8_0").code == 0
    assert cli("models", "rm", "seeing-Q8_0").code == 0
    assert installed(cli) == set()


@pytest.mark.parametrize("none", ["none", "NONE"])
def test_no_projection_if_none_is_wanted(cli: Program, daemon: Daemon, seeing: LocalHub, none: str) -> None:
    last = answered(cli("models", "pull", "me/seeing:Q8_0", "--proj", none, "--json"))[-1]
    assert last["proj_file"] is None
    body = {"model_url": "me/seeing:Q4_0", "proj_url": none}
    assert daemon.ask("POST", "/v1/models/pull", body).events[-1]["proj_file"] is None
    assert sorted(fetched(seeing)) == ["seeing-Q4_0.gguf", "seeing-Q8_0.gguf"]


def test_a_projection_new_to_an_installed_model_is_fetched_alone(
    cli: Program, daemon: Daemon, seeing: LocalHub
) -> None:
    url, proj = seeing.url("me/seeing", "seeing-Q8_0.gguf"), seeing.url("me/seeing", "mmproj-F16.gguf")
    before = answered(cli("models", "pull", url, "--json"))[-1]
    assert before["proj_file"] is None
    seeing.clear_requests()
    plan = json.loads(cli("models", "pull", url, proj, "--dry-run", "--json").out)
    assert [(file["path"], file["have"] == file["size"]) for file in plan["files"]] == [
        ("me/seeing/seeing-Q8_0.gguf", True),
        ("me/seeing/mmproj-F16.gguf", False),
    ]
    assert plan["needed"] == len(projection())
    reply = daemon.ask("POST", "/v1/models/pull", {"model_url": url, "proj_url": proj})
    last = told(reply.events)[-1]
    assert (last["status"], last["proj_file"]) == ("downloaded", "me/seeing/mmproj-F16.gguf")
    assert (last["id"], last["model_files"]) == (before["id"], before["model_files"])
    assert last["total"] == last["completed"] == before["total"] + len(projection())
    assert not [each for each in seeing.requests if "seeing-Q8_0" in each.path]
    seeing.down()
    for args in ((url, proj), (url, "--proj", proj), (url,)):
        assert answered(cli("models", "pull", *args, "--json"))[-1]["status"] == "exists"
    shown = json.loads(cli("models", "show", "seeing-Q8_0", "--json").out)
    assert [file["role"] for file in shown["files"]] == ["weights", "projection"]
    assert (shown["has_projection"], shown["provenance"]["url"]) == (
        True,
        f"{HUB}/me/seeing/resolve/main/seeing-Q8_0.gguf",
    )


def test_a_projection_of_another_place_and_name_is_taken_by_its_content(cli: Program, hub: LocalHub) -> None:
    hub.add_file("me/only", "only.gguf", model("only"))
    eye = hub.add_plain("eye.gguf", projection())
    last = answered(cli("models", "pull", "me/only", "--proj", eye, "--json"))[-1]
    assert last["status"] == "downloaded"
    assert (last["proj_file"] or "").endswith("eye.gguf")
    assert ids(cli) == ["only"]
    assert cli("models", "index").code == 0
    assert ids(cli) == ["only"]


# Changed at the source, or damaged here


def test_force_asks_again_and_replaces_what_has_changed(cli: Program, hub: LocalHub) -> None:
    old = hub.add_file("me/seeing", "seeing.gguf", model("old"))
    hub.add_file("me/seeing", "mmproj.gguf", projection())
    answered(cli("models", "pull", "me/seeing", "--json"))
    hub.clear_requests()
    assert answered(cli("models", "pull", "me/seeing", "--force", "--json"))[-1]["status"] == "exists"
    assert hub.requests
    assert fetched(hub) == []
    new = hub.add_file("me/seeing", "seeing.gguf", model("new", context_length=4096))
    assert new != old
    assert answered(cli("models", "pull", "me/seeing", "--json"))[-1]["status"] == "exists"
    last = answered(cli("models", "pull", "me/seeing", "--force", "--json"))[-1]
    assert (last["status"], last["id"]) == ("downloaded", "seeing")
    assert fetched(hub) == ["seeing.gguf"]
    shown = json.loads(cli("models", "show", "seeing", "--json").out)
    assert (shown["provenance"]["commit"], shown["context_length"]) == (new, 4096)


@pytest.mark.parametrize("plain", [False, True], ids=["hub", "plain URL"])
def test_force_repairs_what_verify_found_damaged(cli: Program, hub: LocalHub, *, plain: bool) -> None:
    hub.add_file("me/only", "only.gguf", model("only"))
    url = hub.add_plain("only.gguf", model("only")) if plain else hub.url("me/only", "only.gguf")
    answered(cli("models", "pull", url, "--json"))
    (path,) = (Path(cli.environ["KAWAI_HOME"]) / "models").rglob("only.gguf")
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    broken = cli("models", "verify", "only")
    assert broken.code == 7
    command = broken.err[broken.err.index("kawai models pull") :].splitlines()[0].split()[1:]
    assert answered(cli(*command, "--json"))[-1]["status"] == "downloaded"
    assert path.read_bytes() == model("only")
    assert cli("models", "verify", "only").code == 0


def test_another_version_is_replaced_by_force_only(cli: Program, daemon: Daemon, hub: LocalHub) -> None:
    hub.add_file("me/only", "only.gguf", model("one"))
    hub.tag("me/only", "v1")
    hub.add_file("me/only", "only.gguf", model("two, and longer"))
    url = hub.url("me/only", "only.gguf", "v1")
    answered(cli("models", "pull", url, "--json"))
    main = hub.url("me/only", "only.gguf")
    ended = cli("models", "pull", main, "--json")
    reply = daemon.ask("POST", "/v1/models/pull", {"model_url": main})
    assert (ended.code, reply.status, reply.error["code"]) == (5, 409, "different_version")
    assert ended.error == reply.error
    assert "--force" in reply.error["hint"]
    assert (daemon.home / "models/me/only/only.gguf").read_bytes() == model("one")
    assert answered(cli("models", "pull", main, "--force", "--json"))[-1]["status"] == "downloaded"
    assert (daemon.home / "models/me/only/only.gguf").read_bytes() == model("two, and longer")
    assert cli("models", "pull", url, "--json").error["code"] == "different_version"


def test_the_same_bytes_under_another_revision_exist(cli: Program, hub: LocalHub) -> None:
    hub.add_file("me/only", "only.gguf", model("one"))
    hub.tag("me/only", "v1")
    answered(cli("models", "pull", "me/only", "--json"))
    url = hub.url("me/only", "only.gguf", "v1")
    assert answered(cli("models", "pull", url, "--json"))[-1]["status"] == "exists"
    hub.down()
    assert answered(cli("models", "pull", url, "--json"))[-1]["status"] == "exists"


# One pull at a time


def slow(hub: LocalHub, kilobytes: int = 500) -> bytes:
    """A repository whose one file takes some seconds, until the hub hurries."""
    data = large("slow", kilobytes)
    hub.add_file("me/slow", "slow.gguf", data)
    hub.throttle = 150_000
    return data


def await_status(process: subprocess.Popen[str], status: str) -> list[dict[str, Any]]:
    """The events of a running pull up to this status."""
    events = []
    assert process.stdout
    for line in process.stdout:
        events.append(json.loads(line))
        if events[-1]["status"] == status and (status != "downloading" or events[-1]["file_completed"]):
            return events
    raise AssertionError(f"no {status} in {events}")


def rest(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    assert process.stdout
    return [json.loads(line) for line in process.stdout]


def test_a_second_request_follows_the_first(daemon: Daemon, hub: LocalHub) -> None:
    slow(hub)
    with contextlib.closing(daemon.connect()) as first:
        first.request(
            "POST",
            "/v1/models/pull",
            json.dumps({"model_url": "me/slow"}),
            {"Content-Type": "application/json"},
        )
        answer = first.getresponse()
        threading.Timer(0.5, setattr, (hub, "throttle", None)).start()
        second = daemon.ask("POST", "/v1/models/pull", {"model_url": hub.url("me/slow", "slow.gguf")})
        one = told(Reply(answer.status, {}, answer.read()).events)
    two = told(second.events)
    assert one[0]["pull"] == two[0]["pull"]
    assert one[-1] == two[-1]
    assert one[-1]["status"] == "downloaded"
    assert fetched(hub) == ["slow.gguf"]
    assert len(daemon.ask("GET", "/v1/pulls").json) == 1


def test_two_wishes_for_one_target_take_turns(daemon: Daemon, hub: LocalHub) -> None:
    """Another request that is not the very same waits its turn, and says so."""
    slow(hub)
    with contextlib.closing(daemon.connect()) as first:
        body = json.dumps({"model_url": "me/slow"})
        first.request("POST", "/v1/models/pull", body, {"Content-Type": "application/json"})
        answer = first.getresponse()
        threading.Timer(0.5, setattr, (hub, "throttle", None)).start()
        forced = told(daemon.ask("POST", "/v1/models/pull", {"model_url": "me/slow", "force": True}).events)
        one = told(Reply(answer.status, {}, answer.read()).events)
    assert (one[-1]["status"], forced[-1]["status"]) == ("downloaded", "exists")
    assert ("waiting", None) in statuses(forced)
    assert fetched(hub) == ["slow.gguf"]


def test_a_second_process_waits_and_then_finds_it_done(cli: Program, hub: LocalHub) -> None:
    data = slow(hub)
    with contextlib.ExitStack() as running:
        owner = running.enter_context(cli.start("models", "pull", "me/slow", "--json"))
        begun = await_status(owner, "downloading")
        url = hub.url("me/slow", "slow.gguf")
        other = running.enter_context(cli.start("models", "pull", url, "--json"))
        person = running.enter_context(cli.start("models", "pull", "me/slow"))
        waiting = await_status(other, "waiting")
        assert person.stderr
        seen = person.stderr.readline()
        while seen and "another kawai" not in seen:
            seen = person.stderr.readline()
        hub.throttle = None
        ended = [*begun, *rest(owner)]
        found = [*waiting, *rest(other)]
        out, err = person.communicate(timeout=30)
    assert (owner.returncode, other.returncode, person.returncode) == (0, 0, 0)
    assert "waiting" in seen
    assert told(ended)[-1]["status"] == "downloaded"
    assert statuses(told(found)) == [("resolving", None), ("waiting", None), ("exists", None)]
    assert out.startswith("slow is already here: ")
    assert err == ""
    assert fetched(hub) == ["slow.gguf"]
    assert found[-1]["completed"] == found[-1]["total"] == len(data)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_who_waited_for_an_owner_that_ends_goes_on_itself(
    cli: Program, hub: LocalHub, number: signal.Signals
) -> None:
    data = slow(hub)
    with cli.start("models", "pull", "me/slow", "--json") as owner:
        await_status(owner, "downloading")
        with cli.start("models", "pull", "me/slow", "--json") as other:
            begun = await_status(other, "waiting")
            owner.send_signal(number)
            last = rest(owner)[-1:]
            hub.throttle = None
            events = told([*begun, *rest(other)])
    assert other.returncode == 0
    assert statuses(events) == [
        ("resolving", None),
        ("waiting", None),
        ("downloading", "me/slow/slow.gguf"),
        ("verifying", "me/slow/slow.gguf"),
        ("installing", None),
        ("downloaded", None),
    ]
    if number == signal.SIGINT:
        assert (owner.returncode, last[0]["status"]) == (130, "cancelled")
        sent = sum(each.sent_bytes for each in hub.requests if each.server == "cdn")
        assert sent < 1.5 * len(data), "what the owner had is gone on from"
    assert ids(cli) == ["slow"]
    assert cli("models", "verify").code == 0


# Interrupted


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_pull_leaves_a_partial_and_goes_on_next_time(
    cli: Program, hub: LocalHub, number: signal.Signals, code: int
) -> None:
    data = slow(hub)
    with cli.start("models", "pull", "me/slow", "--json") as process:
        begun = await_status(process, "downloading")
        process.send_signal(number)
        events = told([*begun, *rest(process)])
        assert process.stderr
        assert process.stderr.read() == ""
    assert (process.returncode, events[-1]["status"]) == (code, "cancelled")
    assert installed(cli) == set()
    assert ids(cli) == []
    plan = json.loads(cli("models", "pull", "me/slow", "--dry-run", "--json").out)
    have = plan["files"][0]["have"]
    assert 0 < have < len(data)
    hub.throttle = None
    hub.clear_requests()
    again = answered(cli("models", "pull", "me/slow", "--json"))
    assert next(each for each in again if each["status"] == "downloading")["file_completed"] >= have
    (request,) = [each for each in hub.requests if each.server == "cdn"]
    assert request.sent_bytes == len(data) - have
    assert again[-1]["status"] == "downloaded"
    assert cli("models", "verify", "slow").code == 0


def test_an_interrupted_pull_says_so_in_a_pipe(cli: Program, hub: LocalHub) -> None:
    slow(hub)
    with cli.start("models", "pull", "me/slow") as process:
        assert process.stderr
        lines = iter(process.stderr.readline, "")
        assert any(line.startswith("downloading slow.gguf") for line in lines)
        before = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert time.monotonic() - before < 3
    assert err.splitlines()[-1].startswith("cancelled; what was fetched is kept")


def test_an_interrupted_pull_says_so_on_a_terminal(cli: Program, hub: LocalHub) -> None:
    slow(hub)
    ended = cli.on_terminal(
        "models", "pull", "me/slow", seen="slow.gguf", then=lambda process: process.send_signal(signal.SIGINT)
    )
    assert ended.code == 130
    assert "cancelled; what was fetched is kept" in ended.plain.splitlines()[-1]
    assert "Traceback" not in ended.plain
    assert ended.out.rfind("\x1b[?25h") > ended.out.rfind("\x1b[?25l"), "the cursor is shown again"


def test_an_interrupt_is_heard_while_the_hub_is_silent(cli: Program, hub: LocalHub) -> None:
    slow(hub)
    hub.misbehave(Fault.silent(1000, server="cdn"))
    with cli.start("models", "pull", "me/slow") as process:
        assert process.stderr
        lines = iter(process.stderr.readline, "")
        assert any(line.startswith("downloading slow.gguf") for line in lines)
        before = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 130
    assert time.monotonic() - before < 3


def test_an_interrupt_while_waiting_leaves_the_owner_alone(cli: Program, hub: LocalHub) -> None:
    slow(hub)
    with cli.start("models", "pull", "me/slow", "--json") as owner:
        begun = await_status(owner, "downloading")
        with cli.start("models", "pull", "me/slow", "--json") as other:
            await_status(other, "waiting")
            other.send_signal(signal.SIGINT)
            assert rest(other)[-1]["status"] == "cancelled"
        hub.throttle = None
        assert told([*begun, *rest(owner)])[-1]["status"] == "downloaded"
    assert (owner.returncode, other.returncode) == (0, 130)


# Speed


@pytest.mark.parametrize("flag", ["--limit-rate=200K", "--limit-rate=200000"])
def test_limit_rate_is_kept(cli: Program, hub: LocalHub, flag: str) -> None:
    hub.add_file("me/slow", "slow.gguf", large("slow", 200))
    with cli.start("models", "pull", "me/slow", flag, "--json") as process:
        begun = await_status(process, "downloading")
        since, had = time.monotonic(), begun[-1]["file_completed"]
        events = told([*begun, *rest(process)])
        took = time.monotonic() - since
    assert events[-1]["status"] == "downloaded"
    assert took > 0.8 * (events[-1]["total"] - had) / 200_000


@pytest.mark.slow
def test_connections_are_at_most_as_many_as_wanted(cli: Program, hub: LocalHub) -> None:
    hub.add_file("me/huge", "huge.gguf", large("huge", 40_000))
    hub.throttle = 25_000_000
    for wanted in (1, 3):
        hub.clear_requests()
        flags = ("--force", f"--connections={wanted}", "--json")
        assert answered(cli("models", "pull", "me/huge", *flags))[-1]["status"] == "downloaded"
        asked = len(fetched(hub))
        assert asked == 1 if wanted == 1 else asked > 1
        cli("models", "rm", "huge")


# What people see


def test_quiet_leaves_the_result(cli: Program, hub: LocalHub) -> None:
    hub.add_file("me/only", "only.gguf", model("only"))
    ended = cli("models", "pull", "me/only", "--quiet")
    path = Path(cli.environ["KAWAI_HOME"]) / "models/me/only/only.gguf"
    assert ended == Ended(0, f"only is installed: {path}\n", "")
    assert cli("models", "pull", "me/only", "--quiet").out == f"only is already here: {path}\n"
    wrong = cli("models", "pull", "me/only:Q2_K", "--quiet")
    assert (wrong.code, wrong.out, wrong.err.startswith("error: ")) == (3, "", True)


def test_a_pipe_gets_plain_lines(cli: Program, hub: LocalHub) -> None:
    hub.add_file("me/slow", "slow.gguf", large("slow", 500))
    hub.throttle = 400_000
    cli.environ |= {"TERM": "xterm-256color", "FORCE_COLOR": "1"}
    ended = cli("models", "pull", "me/slow", "--connections", "1")
    assert ended.code == 0
    assert ended.out.startswith("slow is installed: ")
    assert len(ended.out.splitlines()) == 1
    assert ESCAPES.search(ended.out + ended.err) is None
    assert "\r" not in ended.out + ended.err
    words = [line.split(":")[0] for line in ended.err.splitlines()]
    assert words == [
        "resolving slow",
        "downloading slow.gguf",
        "verifying slow.gguf",
        "installing slow",
    ], "a line at each change, and none between them within five seconds"


def test_a_terminal_gets_a_bar_for_each_file(cli: Program, hub: LocalHub) -> None:
    name = "a-model-with-quite-a-long-name-indeed"
    for number in (1, 2):
        data = model("long", split=(number - 1, 2)) if number == 2 else large("long", 300)
        data = (
            tiny_gguf(name="long", split=(0, 2), tensors=(("t", (256, 300), F32),)) if number == 1 else data
        )
        hub.add_file("me/long", f"{name}.Q8_0-0000{number}-of-00002.gguf", data)
    hub.throttle = 400_000
    ended = cli.on_terminal("models", "pull", "me/long")
    assert ended.code == 0
    drawn = [line.strip() for line in ended.plain.replace("\r", "\n").splitlines() if line.strip()]
    assert all(len(line) <= 80 for line in drawn if "is installed" not in line)
    bars = [line for line in drawn if "all files" not in line and " / " in line]
    assert any("/s" in line for line in bars), "rate"
    assert any("verifying" in line for line in bars)
    assert any("all files" in line for line in drawn)
    whole = f"{Path(cli.environ['KAWAI_HOME'])}/models/me/long/{name}.Q8_0-00001-of-00002.gguf"
    assert f"{name}.Q8_0 is installed: {whole}" in ended.plain.replace("\n", "")


def test_a_dumb_terminal_gets_plain_lines(cli: Program, hub: LocalHub) -> None:
    hub.add_file("me/only", "only.gguf", model("only"))
    cli.environ["TERM"] = "dumb"
    ended = cli.on_terminal("models", "pull", "me/only")
    assert ended.code == 0
    assert "\x1b" not in ended.out
    assert "downloading only.gguf" in ended.out


def test_a_plan_for_people_is_a_table(cli: Program, hub: LocalHub) -> None:
    hub.add_file("me/seeing", "seeing.gguf", model("seeing"))
    hub.add_file("me/seeing", "mmproj.gguf", projection())
    ended = cli("models", "pull", "me/seeing", "--dry-run")
    assert (ended.code, ended.err) == (0, "")
    assert "me/seeing/seeing.gguf" in ended.out
    assert "me/seeing/mmproj.gguf" in ended.out
    assert re.search(r"^Memory +fits \(needs ", ended.out, re.MULTILINE)
    assert installed(cli) == set()
    assert sorted(fetched(hub)) == ["mmproj.gguf", "seeing.gguf"], "their headers, once each"


@pytest.mark.slow
def test_the_real_model_is_pulled_whole(cli: Program, hub: LocalHub, real_model: Path) -> None:
    hub.add_file("me/smol", real_model.name, real_model)
    last = answered(cli("models", "pull", "me/smol", "--json"))[-1]
    assert last["total"] == last["completed"] == real_model.stat().st_size
    assert cli("models", "verify", last["id"]).code == 0
