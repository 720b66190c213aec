"""``catalog pull`` and ``POST /v1/catalog/pull/{model}``: entries to models, and what is told since."""

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kawai_tools.errors import HostNotAllowed
from kawai_tools.operations.catalog import CATALOG_PULL, CatalogPullRequest
from kawai_tools.transfer.pulls import Pull
from tests.hub import Fault, LocalHub
from tests.hub.messages import Answer, text_answer
from tests.program import Daemon, Ended, Program, Reply, serving
from tests.samples import tiny_gguf
from tests.test_models_pull import answered, await_status, installed, large, told
from tests.workspaces import Workspaces

HUB = "https://huggingface.co"
Json = dict[str, Any]
SHARDS = ("split-Q8_0-00001-of-00002.gguf", "split-Q8_0-00002-of-00002.gguf")
OTHER = "0" * 64
FACES = ("cli", "api")


def data_of(name: str) -> bytes:
    """The content of every file that is called so."""
    shard = {each: (number, 2) for number, each in enumerate(SHARDS)}.get(name)
    return tiny_gguf(name=name, projection="mmproj" in name, split=shard)


def digest_of(name: str) -> str:
    return sha256(data_of(name)).hexdigest()


def at_hub(repo: str, name: str) -> str:
    return f"{HUB}/me/{repo}/resolve/main/{name}"


def entry(id_: str, *urls: str, proj: str | None = None, **more: Any) -> Json:  # noqa: ANN401
    """An entry; ``pin`` is the digest of its first file."""
    files: Json = {"model": [{"url": url} for url in urls]}
    files |= {"proj": {"url": proj}} if proj else {}
    if pin := more.pop("pin", None):
        files["model"][0]["sha256"] = pin
    return {
        "id": id_,
        "category": "Text",
        "owned_by": "me",
        "model_family": id_,
        "files": files,
        "capabilities": {"endpoint": "chat"},
        **more,
    }


def catalog(*entries: Json) -> bytes:
    """A catalog file: JSON is YAML."""
    return json.dumps({"version": 1, "models": entries}, indent=1).encode()


def lists(program: Program, *entries: Json, name: str = "shop.yaml") -> None:
    """Put a list into the user's folder."""
    folder = Path(program.environ["KAWAI_HOME"]) / "catalogs"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(catalog(*entries))


class Shop(NamedTuple):
    """A hub, and both faces of one home that has a list of what is there."""

    hub: LocalHub
    cli: Program
    daemon: Daemon

    def post(self, id_: str, **body: Any) -> Reply:  # noqa: ANN401
        return self.daemon.ask("POST", f"/v1/catalog/pull/{id_}", body or None)

    def both(self, id_: str, *args: str, **body: Any) -> tuple[Ended, Reply]:  # noqa: ANN401
        return self.cli("catalog", "pull", id_, *args, "--json"), self.post(id_, **body)

    def pull(self, face: str, id_: str) -> list[Json]:
        """The events of a pull that did well."""
        if face == "cli":
            return answered(self.cli("catalog", "pull", id_, "--json"))
        reply = self.post(id_)
        assert reply.status == 200, reply.body
        assert reply.headers["content-type"] == "text/event-stream"
        return told(reply.events)

    def refusal(self, id_: str, *args: str, **body: Any) -> tuple[int, int, Json]:  # noqa: ANN401
        """Exit code, status and error of what is refused before anything begins, by both faces alike."""
        ended, reply = self.both(id_, *args, **body)
        assert ended.error == reply.error
        assert ended.out == ""
        return ended.code, reply.status, reply.error

    def failure(self, id_: str) -> tuple[int, Json]:
        """Exit code and error of a pull that fails on its way, by both faces alike."""
        ended, reply = self.both(id_)
        assert reply.status == 200
        ours, theirs = told(ended.events)[-1]["error"], told(reply.events)[-1]["error"]
        assert ours == theirs
        return ended.code, theirs

    def remove(self, *ids: str) -> None:
        """Make sure that these are not installed, nor partly."""
        for id_ in ids:
            assert self.daemon.ask("DELETE", f"/v1/models/{id_}").status in {204, 404}

    def row(self, id_: str) -> Json:
        rows = [each for each in self.daemon.ask("GET", "/v1/catalog").json if each["id"] == id_]
        (found,) = rows
        assert isinstance(found, dict)
        return found

    def ticks(self, id_: str) -> tuple[bool, bool]:
        """Whether it is downloaded and validated, as lists and show tell it."""
        row, shown = self.row(id_), self.daemon.ask("GET", f"/v1/catalog/{id_}").json
        told_twice = [(each["downloaded"], each["validated"]) for each in (row, shown)]
        assert told_twice[0] == told_twice[1]
        return told_twice[0]


GONE = {
    "gone-model": "gone-model.gguf",
    "gone-shard": SHARDS[1],
    "gone-proj": "mmproj-F16.gguf",
    "gone-repo": "gone-repo.gguf",
}


def shelve(hub: LocalHub, repo: str, *names: str) -> list[str]:
    """Put files into a repository; their addresses."""
    for name in names:
        hub.add_file(f"me/{repo}", name, data_of(name))
    return [at_hub(repo, name) for name in names]


def stock(hub: LocalHub) -> list[Json]:
    """Fill the hub; the entries for what is there, and what is not."""
    split = shelve(hub, "split", *SHARDS)
    model, eyes = shelve(hub, "seeing", "seeing.gguf", "mmproj-F16.gguf")
    (lonely,) = shelve(hub, "gone-proj", "gone-proj.gguf")
    (first,) = shelve(hub, "gone-shard", SHARDS[0])
    shelve(hub, "gone-model", "README.md")
    shelve(hub, "gated", "gated.gguf")
    hub.gate("me/gated")
    plain = hub.add_plain("plain.gguf", data_of("plain.gguf"))
    swapped = hub.add_plain("swapped.gguf", data_of("swapped.gguf"))
    return [
        entry("Split", *split),
        entry("seeing", model, proj=eyes),
        entry("one", *shelve(hub, "one", "one.gguf")),
        entry("gated", at_hub("gated", "gated.gguf"), gated_model=True),
        entry("pinned", *shelve(hub, "pinned", "pinned.gguf"), pin=digest_of("pinned.gguf").upper()),
        entry("mispinned", *shelve(hub, "mispinned", "mispinned.gguf"), pin=OTHER),
        entry("plain", plain, pin=digest_of("plain.gguf")),
        entry("swapped", swapped, pin=OTHER),
        entry("gone-model", at_hub("gone-model", "gone-model.gguf")),
        entry("gone-repo", at_hub("gone-repo", "gone-repo.gguf")),
        entry("gone-shard", first, at_hub("gone-shard", SHARDS[1])),
        entry("gone-proj", lonely, proj=at_hub("gone-proj", "mmproj-F16.gguf")),
        entry("far", "http://models.example.com/files/far.gguf"),
    ]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """With a token that no gate knows, so that a repository that is not there is a 404, as on the hub."""
    root = tmp_path_factory.mktemp("shop")
    with LocalHub(root / "hub") as hub:
        hub.add_token("hf_shop")
        cli = Program(root, {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_shop"})
        lists(cli, *stock(hub))
        with serving(cli) as daemon:
            yield Shop(hub, cli, daemon)


@pytest.fixture(autouse=True)
def behaving(request: pytest.FixtureRequest) -> Iterator[None]:
    """The shared hub does again what it should, and forgets what it was asked."""
    yield
    if "shop" in request.fixturenames:
        shop: Shop = request.getfixturevalue("shop")
        shop.hub.behave()
        shop.hub.throttle = None
        shop.hub.clear_requests()


# What comes of an entry


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(
    ("id_", "files", "proj"),
    [
        ("Split", [f"me/split/{name}" for name in SHARDS], None),
        ("seeing", ["me/seeing/seeing.gguf"], "me/seeing/mmproj-F16.gguf"),
        ("pinned", ["me/pinned/pinned.gguf"], None),
        ("plain", ["127.0.0.1/plain/plain.gguf"], None),
    ],
)
def test_an_entry_is_pulled_with_all_its_files(
    shop: Shop, face: str, id_: str, files: list[str], proj: str | None
) -> None:
    model = Path(files[0]).name.removesuffix(".gguf").partition("-0000")[0]
    shop.remove(model)
    events = shop.pull(face, id_.swapcase())
    last = events[-1]
    assert events[0]["status"] == "resolving"
    assert (last["status"], last["id"], last["model_files"], last["proj_file"]) == (
        "downloaded",
        model,
        files,
        proj,
    )
    wanted = [*files, *([proj] if proj else [])]
    assert set(wanted) <= installed(shop.cli)
    for path in wanted:
        assert (shop.daemon.home / "models" / path).read_bytes() == data_of(Path(path).name)
    assert last["total"] == sum(len(data_of(Path(path).name)) for path in wanted)
    assert shop.ticks(id_) == (True, True)
    shown = shop.daemon.ask("GET", f"/v1/models/{model}").json
    assert [each["sha256"] for each in shown["files"]] == [digest_of(Path(each).name) for each in wanted]


def test_what_is_installed_exists_at_once_and_without_the_network(shop: Shop) -> None:
    for id_ in ("Split", "seeing", "pinned", "plain"):
        assert shop.pull("api", id_)[-1]["downloaded"]
    shop.hub.clear_requests()
    for id_ in ("Split", "seeing", "pinned", "plain"):
        assert [event["status"] for event in shop.pull("api", id_)] == ["resolving", "exists"]
        last = shop.pull("api", id_.upper())[-1]
        assert last["completed"] == last["total"] > 0
        assert shop.post(id_, dry_run=True).json["exists"] is True
    assert answered(shop.cli("catalog", "pull", "SEEING", "--offline", "--json"))[-1]["status"] == "exists"
    person = shop.cli("catalog", "pull", "seeing", "--offline")
    assert person.code == 0
    assert person.out.startswith("seeing is already here")
    assert shop.hub.requests == []


def test_what_is_not_here_cannot_be_pulled_offline(shop: Shop) -> None:
    shop.remove("one")
    ended = shop.cli("catalog", "pull", "one", "--offline", "--json")
    assert (ended.code, ended.error["code"]) == (9, "offline")
    assert shop.hub.requests == []


def test_a_dry_run_fetches_nothing_and_says_what_would_be(shop: Shop) -> None:
    shop.remove("seeing")
    ended, reply = shop.both("Seeing", "--dry-run", dry_run=True)
    assert (ended.code, ended.err, reply.status) == (0, "", 200)
    plan = reply.json
    ours = json.loads(ended.out)
    assert {**ours, "free": 0} == {**plan, "free": 0}
    assert sorted(plan) == ["exists", "files", "fit", "free", "id", "needed", "total"]
    assert (plan["id"], plan["exists"]) == ("seeing", False)
    assert [(file["url"], file["sha256"]) for file in plan["files"]] == [
        (at_hub("seeing", name), digest_of(name)) for name in ("seeing.gguf", "mmproj-F16.gguf")
    ]
    assert plan["needed"] == plan["total"] == sum(file["size"] for file in plan["files"])
    assert not any("seeing" in path for path in installed(shop.cli))
    assert shop.post("seeing", dry_run=True, force=True).json["exists"] is False
    assert shop.ticks("seeing") == (False, False)


def test_the_pin_stands_where_a_server_says_no_digest(shop: Shop) -> None:
    shop.remove("plain")
    (file,) = shop.post("plain", dry_run=True).json["files"]
    assert file["sha256"] == digest_of("plain.gguf")


# What is refused


@pytest.mark.parametrize(
    ("id_", "near"),
    [("SPLITT", "Split"), ("pined", "pinned"), ("qwen3-0.6b-q8", "Qwen3-0.6B-Q8_0"), ("zzzzzzzz", None)],
)
def test_a_near_miss_suggests(shop: Shop, id_: str, near: str | None) -> None:
    code, status, error = shop.refusal(id_)
    assert (code, status, error["code"]) == (3, 404, "entry_not_found")
    assert id_ in error["message"]
    assert (near or "kawai catalog list") in error["hint"]


@pytest.mark.parametrize("source", ["me/one", "me/one:Q8_0", at_hub("one", "one.gguf"), "hf.co/me/one:Q8_0"])
def test_a_source_is_answered_with_the_command_that_pulls_it(shop: Shop, source: str) -> None:
    ended = shop.cli("catalog", "pull", source, "--json")
    reply = shop.post(source.replace("%", "%25").replace("/", "%2F"))
    assert ended.error == reply.error
    assert f"kawai models pull {source}" in reply.error["hint"]
    assert (ended.code, reply.status) in {(2, 400), (3, 404)}
    shown = shop.cli("catalog", "show", source, "--json")
    assert f"kawai models pull {source}" in shown.error["hint"]
    assert shop.hub.requests == []


def test_an_id_of_the_catalog_is_answered_with_the_command_that_pulls_it(shop: Shop) -> None:
    ended = shop.cli("models", "pull", "SPLIT", "--json")
    reply = shop.daemon.ask("POST", "/v1/models/pull", {"model_url": "SPLIT"})
    assert ended.error == reply.error
    assert (ended.code, reply.status) == (2, 400)
    assert "kawai catalog pull Split" in reply.error["hint"]


def test_an_id_that_looks_like_a_file_is_one_of_the_catalog_all_the_same(cli: Program) -> None:
    lists(cli, entry("named.gguf", at_hub("one", "one.gguf")))
    ended = cli("models", "pull", "named.gguf", "--json")
    assert ended.code == 2
    assert "kawai catalog pull named.gguf" in ended.error["hint"]


def test_a_password_in_an_address_is_not_repeated(shop: Shop) -> None:
    address = "https://me:canary-pass@models.example.com/x.gguf"
    ended = shop.cli("catalog", "pull", address, "--json")
    reply = shop.post(address.replace("/", "%2F"))
    assert (ended.code, reply.status) == (2, 400)
    assert "canary-pass" not in ended.err + ended.out + reply.body.decode()


@pytest.mark.parametrize(
    "words",
    [
        "..",
        "%2e%2e",
        "..%2F..%2Fetc%2Fpasswd",
        "%2E",
        "one%2F..",
        "%2Fone",
        "one%2F",
        "a%2Fb%2Fc",
        "a/b/c",
        "one%00",
        "one%0d%0aX:%20y",
        "one%5C..",
        "%252e%252e",
        "-one",
        ".one",
        "me%2F.one",
        "x" * 201,
        "one%25",
    ],
)
def test_an_id_that_tries_to_be_a_path_is_refused(shop: Shop, words: str) -> None:
    for method, path in (("POST", "/v1/catalog/pull/"), ("GET", "/v1/catalog/")):
        reply = shop.daemon.ask(method, path + words)
        assert (reply.status, reply.error["code"]) == (400, "invalid_id"), method
    assert shop.hub.requests == []


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"force": True, "proj_url": "none"}, "proj_url"),
        ({"model": "seeing"}, "model"),
        ({"model_url": "me/one"}, "model_url"),
        ({"Force": True}, "Force"),
        ({"force": "yes"}, "force"),
        ({"connections": 0}, "connections"),
        ({"limit_rate": "fast"}, "fast"),
        ([], "object"),
    ],
)
def test_a_body_that_does_not_fit_is_refused_by_name(shop: Shop, body: object, named: str) -> None:
    reply = shop.daemon.ask("POST", "/v1/catalog/pull/one", body)
    assert (reply.status, reply.error["type"]) == (400, "invalid_request")
    assert named in reply.error["message"]
    assert shop.hub.requests == []


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/catalog/pull/one", "POST"),
        ("DELETE", "/v1/catalog/pull/one", "POST"),
        ("GET", "/v1/catalog/pull/no-such-entry", "POST"),
        ("GET", "/v1/catalog/update", "POST"),
        ("POST", "/v1/catalog", "GET, HEAD"),
        ("POST", "/v1/catalog/one", "GET, HEAD"),
        ("DELETE", "/v1/catalog/one", "GET, HEAD"),
        ("POST", "/v1/catalog/filter/Text", "GET, HEAD"),
    ],
)
def test_another_method_is_405(shop: Shop, method: str, path: str, allowed: str) -> None:
    reply = shop.daemon.ask(method, path)
    assert (reply.status, reply.error["code"]) == (405, "method_not_allowed")
    assert reply.headers["allow"] == allowed


def test_an_empty_body_is_none_whatever_its_type(shop: Shop) -> None:
    shop.pull("api", "one")
    reply = shop.daemon.ask("POST", "/v1/catalog/pull/one", b"", {"Content-Type": "text/plain"})
    assert reply.events[-1]["status"] == "exists"
    refused = shop.daemon.ask("POST", "/v1/catalog/pull/one", b"{}", {"Content-Type": "text/plain"})
    assert refused.status == 415


# Gone from the hub


@pytest.mark.parametrize("id_", GONE)
def test_an_entry_that_lacks_a_file_is_said_to_and_nothing_is_installed(shop: Shop, id_: str) -> None:
    before = installed(shop.cli)
    code, status, error = shop.refusal(id_)
    assert (code, status, error["code"]) == (6, 502, "entry_gone")
    assert at_hub(id_, GONE[id_]) in error["message"]
    assert installed(shop.cli) == before
    assert shop.ticks(id_) == (False, False)
    assert shop.refusal(id_, "--dry-run", dry_run=True)[:2] == (6, 502)


def test_only_the_file_that_is_gone_is_named(shop: Shop) -> None:
    message = shop.refusal("gone-shard")[2]["message"]
    assert at_hub("gone-shard", SHARDS[0]) not in message


def test_a_file_that_goes_while_it_is_pulled_is_a_502_too(shop: Shop) -> None:
    shop.remove("one")
    before = installed(shop.cli)
    shop.hub.misbehave(Fault.status(404, method="GET", path="one.gguf"))
    code, error = shop.failure("one")
    assert (code, error["type"]) == (6, "upstream")
    assert at_hub("one", "one.gguf") in error["message"]
    assert installed(shop.cli) == before
    shop.hub.behave()
    assert shop.pull("api", "one")[-1]["status"] == "downloaded"


# Gated


@contextlib.contextmanager
def behind(hub: LocalHub, home: Path, token: str | None, *entries: Json) -> Iterator[Shop]:
    """Both faces of a home of its own."""
    cli = Program(home, {"HF_ENDPOINT": hub.endpoint} | ({"HF_TOKEN": token} if token else {}))
    lists(cli, *entries)
    with serving(cli) as daemon:
        yield Shop(hub, cli, daemon)


def hides(ex: Any) -> Answer:  # noqa: ANN401 - what a fault is given
    """Hide what a caller without a token may not see."""
    answer: Answer = ex.answer()
    return answer if "authorization" in ex.call.headers else text_answer(404, "Not found")


@pytest.fixture
def gated(hub: LocalHub) -> Json:
    shelve(hub, "gated", "gated.gguf")
    hub.gate("me/gated")
    hub.add_token("hf_right", accepts=["me/gated"])
    hub.add_token("hf_outsider")
    return entry("gated", at_hub("gated", "gated.gguf"), gated_model=True)


def test_a_gated_entry_without_a_token_names_page_and_variable(
    hub: LocalHub, tmp_path: Path, gated: Json
) -> None:
    with behind(hub, tmp_path, None, gated) as shop:
        for fault in (None, Fault("hides", hides, server="hub", path="/me/gated/")):
            hub.misbehave(*([fault] if fault else []))
            code, status, error = shop.refusal("gated")
            assert (code, status, error["code"]) == (5, 412, "hub_token_required")
            assert f"{HUB}/me/gated" in error["message"] + error["hint"]
            assert "HF_TOKEN" in error["hint"]
        assert installed(shop.cli) == set()


def test_a_gated_entry_without_a_page_is_not_said_to_have_one(cli: Program, hub: LocalHub) -> None:
    lists(cli, entry("paged", f"{hub.cdn_endpoint}/files/nowhere.gguf", gated_model=True))
    ended = cli("catalog", "pull", "paged", "--json")
    assert ended.code in {5, 6}
    assert "None" not in ended.err


def test_a_gated_entry_with_the_right_token_is_pulled(hub: LocalHub, tmp_path: Path, gated: Json) -> None:
    hub.misbehave(Fault("hides", hides, server="hub", path="/me/gated/"))
    with behind(hub, tmp_path, "hf_right", gated) as shop:
        for face in FACES:
            shop.remove("gated")
            assert shop.pull(face, "gated")[-1]["status"] == "downloaded"
    assert all("authorization" not in each.headers for each in hub.requests if each.server == "cdn")


@pytest.mark.parametrize("token", ["hf_wrong", "hf_outsider"])
def test_a_gated_entry_with_a_wrong_token_is_refused(
    hub: LocalHub, tmp_path: Path, gated: Json, token: str
) -> None:
    with behind(hub, tmp_path, token, gated) as shop:
        code, status, error = shop.refusal("gated")
        assert (code, status, error["code"]) == (4, 403, "model_gated")
        assert f"{HUB}/me/gated" in error["message"]
        assert token not in json.dumps(error)
        assert installed(shop.cli) == set()


# Pinned digests


def test_a_hub_that_says_another_digest_than_the_pinned_one_is_not_fetched_from(shop: Shop) -> None:
    before = installed(shop.cli)
    for more in ({}, {"force": True}, {"dry_run": True}):
        args = [f"--{name.replace('_', '-')}" for name in more]
        code, status, error = shop.refusal("mispinned", *args, **more)
        assert (code, status, error["code"]) == (7, 422, "digest_mismatch")
        assert OTHER in error["message"]
        assert at_hub("mispinned", "mispinned.gguf") in error["message"]
    assert installed(shop.cli) == before
    assert not [each for each in shop.hub.requests if each.server == "cdn"]


def test_bytes_that_differ_from_the_pin_get_no_final_name(shop: Shop) -> None:
    before = installed(shop.cli)
    code, error = shop.failure("swapped")
    assert (code, error["code"]) == (7, "digest_mismatch")
    assert shop.ticks("swapped") == (False, False)
    assert installed(shop.cli) == before
    assert shop.daemon.ask("GET", "/v1/models/swapped").status == 404


def test_a_pin_put_right_is_all_that_a_failed_pull_needs(hub: LocalHub, tmp_path: Path) -> None:
    url = hub.add_plain("late.gguf", data_of("late.gguf"))
    with behind(hub, tmp_path, None, entry("late", url, pin=OTHER)) as shop:
        assert shop.failure("late")[0] == 7
        lists(shop.cli, entry("late", url, pin=digest_of("late.gguf")))
        assert shop.pull("api", "late")[-1]["status"] == "downloaded"
        hub.add_plain("late.gguf", large("newer", 4))
        assert shop.pull("cli", "late")[-1]["status"] == "exists"
        code, error = shop.cli("catalog", "pull", "late", "--force", "--json"), shop.post("late", force=True)
        assert code.code == 7
        assert error.events[-1]["error"]["code"] == "digest_mismatch"
        assert (shop.daemon.home / "models/127.0.0.1/late/late.gguf").read_bytes() == data_of("late.gguf")
        assert shop.cli("models", "verify", "late").code == 0


@pytest.mark.parametrize("part", ["model", "shard", "proj"])
def test_every_file_is_held_to_its_pin(hub: LocalHub, tmp_path: Path, part: str) -> None:
    urls = shelve(hub, "set", *SHARDS)
    (eyes,) = shelve(hub, "set", "mmproj-F16.gguf")
    wrong = entry("set", *urls, proj=eyes)
    files = wrong["files"]
    pinned = {"model": files["model"][0], "shard": files["model"][1], "proj": files["proj"]}[part]
    pinned["sha256"] = OTHER
    with behind(hub, tmp_path, None, wrong) as shop:
        code, status, error = shop.refusal("set")
        assert (code, status, error["code"]) == (7, 422, "digest_mismatch")
        assert pinned["url"] in error["message"]
        assert installed(shop.cli) == set()


def test_what_is_installed_with_another_digest_is_replaced_by_force_only(
    hub: LocalHub, tmp_path: Path
) -> None:
    url = at_hub("moving", "moving.gguf")
    hub.add_file("me/moving", "moving.gguf", data_of("old.gguf"))
    with behind(hub, tmp_path, None, entry("moving", url, pin=digest_of("new.gguf"))) as shop:
        assert answered(shop.cli("models", "pull", url, "--json"))[-1]["status"] == "downloaded"
        hub.clear_requests()
        code, status, error = shop.refusal("moving")
        assert (code, status, error["code"]) == (5, 409, "different_version")
        assert "--force" in error["hint"]
        assert hub.requests == []
        assert shop.refusal("moving", "--force", force=True)[2]["code"] == "digest_mismatch"
        hub.add_file("me/moving", "moving.gguf", data_of("new.gguf"))
        forced = shop.cli("catalog", "pull", "moving", "--force", "--json")
        assert answered(forced)[-1]["status"] == "downloaded"
        assert shop.pull("api", "moving")[-1]["status"] == "exists"
        assert (shop.daemon.home / "models/me/moving/moving.gguf").read_bytes() == data_of("new.gguf")


def test_a_pin_holds_whichever_way_the_address_is_written(hub: LocalHub, tmp_path: Path) -> None:
    shelve(hub, "spelled", "spelled.gguf")
    urls = [
        hub.url("me/spelled", "spelled.gguf"),
        at_hub("spelled", "spelled.gguf").replace("resolve", "blob"),
        "https://hf.co/me/spelled/resolve/main/spelled.gguf?download=true",
    ]
    entries = [entry(f"way-{number}", url, pin=OTHER) for number, url in enumerate(urls)]
    with behind(hub, tmp_path, None, *entries) as shop:
        for each in entries:
            assert shop.post(each["id"]).error["code"] == "digest_mismatch", each["files"]


# What is told of it


def test_ticks_follow_what_is_on_the_disk(shop: Shop) -> None:
    shop.remove("one")
    path = shop.daemon.home / "models/me/one/one.gguf"
    assert shop.ticks("one") == (False, False)
    shop.pull("cli", "one")
    assert shop.ticks("one") == (True, True)

    stat, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert shop.cli("models", "verify", "one").code == 7
    assert shop.ticks("one") == (True, False)
    ours = json.loads(shop.cli("catalog", "show", "one", "--json").out)
    assert (ours["downloaded"], ours["validated"]) == (True, False)
    assert answered(shop.cli("catalog", "pull", "one", "--force", "--json"))[-1]["status"] == "downloaded"
    assert shop.ticks("one") == (True, True)

    assert shop.cli("models", "rm", "one").code == 0
    assert shop.ticks("one") == (False, False)
    here = {row["id"] for row in shop.daemon.ask("GET", "/v1/catalog?downloaded=true").json}
    missing = {row["id"] for row in shop.daemon.ask("GET", "/v1/catalog?downloaded=false").json}
    assert "one" in missing - here
    shop.pull("api", "one")
    path.unlink()
    assert shop.daemon.ask("POST", "/v1/models/index").status == 204
    assert shop.ticks("one") == (False, False)
    assert shop.pull("cli", "one")[-1]["status"] == "downloaded"


def test_the_command_line_tells_the_same_as_the_daemon(shop: Shop) -> None:
    shop.pull("api", "one")
    assert (
        shop.cli("catalog", "list", "--json").out
        == shop.daemon.ask("GET", "/v1/catalog").body.decode() + "\n"
    )
    table = shop.cli("catalog", "list").out
    (line,) = [each for each in table.splitlines() if each.startswith("one ")]
    assert "✓" in line


def test_only_the_address_makes_a_tick(hub: LocalHub, tmp_path: Path) -> None:
    (url,) = shelve(hub, "true", "same.gguf")
    decoy = hub.add_plain("same.gguf", data_of("decoy"))
    (model,) = shelve(hub, "true", "seeing.gguf")
    (eyes,) = shelve(hub, "true", "mmproj-F16.gguf")
    with behind(hub, tmp_path, None, entry("same", url), entry("seeing", model, proj=eyes)) as shop:
        assert answered(shop.cli("models", "pull", decoy, "--json"))[-1]["id"] == "same"
        assert shop.ticks("same") == (False, False)
        assert shop.pull("api", "same")[-1]["id"] == "true/same" or shop.ticks("same")[0]
        assert shop.ticks("same") == (True, True)

        assert answered(shop.cli("models", "pull", model, "--json"))[-1]["id"] == "seeing"
        assert shop.ticks("seeing") == (False, False), "its projection is missing"
        hub.clear_requests()
        last = shop.pull("api", "seeing")[-1]
        assert (last["status"], last["proj_file"]) == ("downloaded", "me/true/mmproj-F16.gguf")
        assert {Path(each.path).name for each in hub.requests if each.server == "cdn"} == {"mmproj-F16.gguf"}
        assert shop.ticks("seeing") == (True, True)


@pytest.mark.parametrize("words", ["address", "blob", "repository", "quantization"])
def test_what_models_pull_fetched_from_there_is_a_tick(hub: LocalHub, tmp_path: Path, words: str) -> None:
    (url,) = shelve(hub, "quant", "quant-Q8_0.gguf")
    source = {
        "address": url,
        "blob": url.replace("resolve", "blob"),
        "repository": "me/quant",
        "quantization": "me/quant:q8_0",
    }[words]
    with behind(hub, tmp_path, None, entry("quant", url)) as shop:
        assert answered(shop.cli("models", "pull", source, "--json"))[-1]["status"] == "downloaded"
        assert shop.ticks("quant") == (True, True)
        hub.down()
        assert shop.pull("api", "quant")[-1]["status"] == "exists"


# One pull at a time, and one that is cut off


def test_two_requests_for_one_entry_follow_the_same_pull(hub: LocalHub, tmp_path: Path) -> None:
    hub.add_file("me/slow", "slow.gguf", large("slow", 500))
    with behind(hub, tmp_path, None, entry("Slow", at_hub("slow", "slow.gguf"))) as shop:
        hub.throttle = 150_000
        with contextlib.closing(shop.daemon.connect()) as first:
            first.request("POST", "/v1/catalog/pull/slow")
            answer = first.getresponse()
            threading.Timer(0.5, setattr, (hub, "throttle", None)).start()
            second = told(shop.post("SLOW").events)
            one = told(Reply(answer.status, {}, answer.read()).events)
        assert (one[0]["pull"], one[-1]) == (second[0]["pull"], second[-1])
        assert one[-1]["status"] == "downloaded"
        pulls = shop.daemon.ask("GET", "/v1/pulls").json
        assert [(each["kind"], each["target"], each["status"]) for each in pulls] == [
            ("model", "slow", "downloaded")
        ]
    fetches = {each.path for each in hub.requests if each.server == "cdn" and each.method == "GET"}
    assert len(fetches) == 1


def test_a_pull_that_is_killed_goes_on_from_there(cli: Program, hub: LocalHub) -> None:
    data = large("slow", 500)
    hub.add_file("me/slow", "slow.gguf", data)
    lists(cli, entry("slow", at_hub("slow", "slow.gguf"), pin=sha256(data).hexdigest()))
    hub.throttle = 150_000
    with cli.start("catalog", "pull", "slow", "--json") as process:
        await_status(process, "downloading")
        process.send_signal(signal.SIGKILL)
    assert installed(cli) == set()
    assert not json.loads(cli("catalog", "show", "slow", "--json").out)["downloaded"]
    hub.throttle = None
    last = answered(cli("catalog", "pull", "slow", "--json"))[-1]
    assert (last["status"], last["completed"]) == ("downloaded", len(data))
    assert installed(cli) == {"me/slow/slow.gguf"}
    sent = sum(each.sent_bytes for each in hub.requests if each.server == "cdn")
    assert sent < 1.6 * len(data)


def test_an_interrupted_pull_says_that_it_can_go_on(cli: Program, hub: LocalHub) -> None:
    hub.add_file("me/slow", "slow.gguf", large("slow", 500))
    lists(cli, entry("slow", at_hub("slow", "slow.gguf")))
    hub.throttle = 150_000
    with cli.start("catalog", "pull", "slow", "--json") as process:
        begun = await_status(process, "downloading")
        process.send_signal(signal.SIGINT)
        assert process.stdout
        events = told([*begun, *map(json.loads, process.stdout)])
    assert (process.returncode, events[-1]["status"]) == (130, "cancelled")


# Other hubs and hosts


def test_the_hub_may_move(hub: LocalHub, tmp_path: Path) -> None:
    (one,) = shelve(hub, "one", "one.gguf")
    with LocalHub(tmp_path / "second") as second:
        (two,) = shelve(second, "two", "two.gguf")
        with behind(hub, tmp_path / "home", None, entry("one", one), entry("two", two)) as shop:
            assert shop.pull("api", "one")[-1]["status"] == "downloaded"
        moved = Program(tmp_path / "home", {"HF_ENDPOINT": second.endpoint})
        hub.clear_requests()
        rows = {row["id"]: row for row in json.loads(moved("catalog", "list", "--json").out)}
        assert (rows["one"]["downloaded"], rows["two"]["downloaded"]) == (True, False)
        assert answered(moved("catalog", "pull", "one", "--json"))[-1]["status"] == "exists"
        assert answered(moved("catalog", "pull", "two", "--json"))[-1]["status"] == "downloaded"
        shown = json.loads(moved("models", "show", "two", "--json").out)
        assert shown["provenance"]["url"] == two
        assert hub.requests == []


def test_a_daemon_fetches_from_no_host_that_it_was_not_told_of(shop: Shop) -> None:
    for body in ({}, {"dry_run": True}, {"force": True}):
        reply = shop.post("far", **body)
        assert (reply.status, reply.error["code"]) == (403, "host_not_allowed")
        assert "models.example.com" in reply.error["message"]
        assert "KAWAI_PULL_HOSTS" in reply.error["hint"]
    assert not any("far" in path for path in installed(shop.cli))


def test_a_daemon_fetches_from_a_host_that_pull_hosts_names(hub: LocalHub, tmp_path: Path) -> None:
    """The host is reached through a proxy: the hub's CDN, which is told what it stands for."""
    site = "http://models.example.com"
    hub.add_plain("far.gguf", data_of("far.gguf"))
    hub.misbehave(
        Fault(
            "proxy",
            lambda ex: ex.respond(replace(ex.call, path=ex.call.path.removeprefix(site))),
            server="cdn",
            path=site,
        )
    )
    environ = {"HF_ENDPOINT": hub.endpoint, "http_proxy": hub.cdn_endpoint, "NO_PROXY": "127.0.0.1"}
    cli = Program(tmp_path, environ | {"KAWAI_PULL_HOSTS": "Models.Example.com"})
    lists(cli, entry("far", f"{site}/files/far.gguf", pin=digest_of("far.gguf")))
    with serving(cli) as daemon:
        shop = Shop(hub, cli, daemon)
        assert shop.pull("api", "far")[-1]["status"] == "downloaded"
        assert shop.pull("cli", "far")[-1]["status"] == "exists"
        assert shop.ticks("far") == (True, True)
    assert installed(cli) == {"models.example.com/far/far.gguf"}


def test_a_private_host_is_none_for_a_catalog_unless_pull_hosts_names_it(
    hub: LocalHub, tmp_path: Path
) -> None:
    port = hub.cdn_endpoint.rpartition(":")[2]
    hub.add_plain("near.gguf", data_of("near.gguf"))
    cli = Program(tmp_path, {"HF_ENDPOINT": hub.endpoint})
    lists(cli, entry("near", f"http://localhost:{port}/files/near.gguf"))
    ended = cli("catalog", "pull", "near", "--json")
    assert (ended.code, ended.error["code"]) == (3, "entry_not_found")
    listed = cli("catalog", "list")
    assert listed.code == 0
    assert "shop.yaml" in listed.err
    assert "KAWAI_PULL_HOSTS" in listed.err
    allowed = Program(tmp_path, cli.environ | {"KAWAI_PULL_HOSTS": "localhost"})
    with serving(allowed) as daemon:
        shop = Shop(hub, allowed, daemon)
        for face in FACES:
            shop.remove("near")
            assert shop.pull(face, "near")[-1]["status"] == "downloaded"


def test_a_catalog_that_goes_away_leaves_its_models(
    workspaces: Workspaces, cli: Program, hub: LocalHub
) -> None:
    (url,) = shelve(hub, "one", "one.gguf")
    lists(cli, entry("one", url))
    workspace = workspaces(serves=True)
    feed = CATALOG_PULL.run(workspace, CatalogPullRequest("ONE"))
    assert isinstance(feed, Pull)
    assert [event.status for event in feed.follow() if event][-1] == "downloaded"
    (workspaces.home / "catalogs/shop.yaml").unlink()
    assert "one" not in workspace.catalog.ids()
    assert [row.id for row in workspace.models.rows()] == ["one"]


def test_a_name_that_leads_to_a_private_address_is_no_way_in(
    workspaces: Workspaces, cli: Program, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list is not typed: what it names must be public, whatever its names look like."""
    hub.add_plain("inner.gguf", data_of("inner.gguf"))
    port = hub.cdn_endpoint.rpartition(":")[2]
    lists(cli, entry("inner", f"http://intranet.example.com:{port}/files/inner.gguf"))
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *args, **more: resolve(
            "127.0.0.1" if host == "intranet.example.com" else host, *args, **more
        ),
    )
    hub.clear_requests()
    with pytest.raises(HostNotAllowed, match="private network"):
        CATALOG_PULL.run(workspaces(), CatalogPullRequest("inner"))
    assert not hub.requests
    meant = workspaces(pull_hosts=("intranet.example.com",))
    feed = CATALOG_PULL.run(meant, CatalogPullRequest("inner"))
    assert isinstance(feed, Pull)
    assert [event.status for event in feed.follow() if event][-1] == "downloaded"
