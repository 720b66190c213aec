"""Subscribed catalogs: fetched when told to, replaced by good and newer copies, and by nothing else."""

import contextlib
import json
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kawai_tools.transfer.egress import origin_of
from tests.hub import Fault, LocalHub
from tests.hub.exchange import Exchange
from tests.hub.messages import Answer, PieceSize, Stream
from tests.program import KAWAI, Ended, Program, Reply, serving
from tests.samples import tiny_gguf
from tests.test_catalog_pull import Json, catalog, entry
from tests.test_models_pull import answered, installed, told
from tests.workspaces import Workspaces

FILE = "https://huggingface.co/me/it/resolve/main/it.gguf"
STANDS = "the copy that is held stays in use"

Break = Callable[[LocalHub, str], None]
"""Makes a server do wrong with what it has by this name."""


def listing(*ids: str) -> bytes:
    return catalog(*(entry(id_, FILE) for id_ in ids))


def put(hub: LocalHub, name: str, *ids: str) -> str:
    """Serve a catalog of these ids; its address."""
    return hub.add_plain(name, listing(*ids))


def subscribed(cli: Program, *urls: str, **more: str) -> Program:
    """The same home, subscribed to these."""
    return Program(cli.home, cli.environ | {"KAWAI_CATALOGS": ",".join(urls)} | more)


def updated(ended: Ended | Reply) -> list[Json]:
    """The rows of an update, held to the contract."""
    if isinstance(ended, Ended):
        assert ended.err == ""
        assert ended.out.endswith("\n")
        rows = json.loads(ended.out)
    else:
        assert ended.status == 200
        rows = ended.json
    for row in rows:
        assert sorted(row) == ["changed", "entries", "error", "url"]
        if row["error"] is not None:
            assert sorted(row["error"]) == ["code", "hint", "message", "type"]
            assert row["changed"] is False
    assert isinstance(rows, list)
    return rows


def update(cli: Program) -> list[Json]:
    """What an update says that does well."""
    ended = cli("catalog", "update", "--json")
    assert ended.code == 0, ended
    return updated(ended)


def offered(cli: Program, *args: str) -> set[str]:
    """The ids of all entries, but those that kawai ships."""
    ended = cli("catalog", "list", "--json", *args)
    assert ended.code == 0, ended
    return {row["id"] for row in json.loads(ended.out) if row["catalog"] != "kawai"}


def kept(cli: Program) -> list[Path]:
    return sorted((Path(cli.environ["KAWAI_HOME"]) / "catalogs/kept").glob("*"))


def header(name: str, value: str | None, path: str) -> Fault:
    return Fault(f"{name} {value}", lambda ex: ex.answer().having(name, value), path=path)


def conditions(hub: LocalHub) -> list[tuple[str | None, int]]:
    """What each request asked conditionally, and the status it got; then they are forgotten."""
    found = [(each.headers.get("if-none-match"), each.status) for each in hub.requests]
    hub.clear_requests()
    return found


# Fetched, and fetched again


def test_an_update_fetches_what_is_new_and_asks_conditionally(cli: Program, hub: LocalHub) -> None:
    url = put(hub, "list.yaml", "first", "second")
    cli = subscribed(cli, url)
    before = cli("catalog", "list", "--json")
    assert before.code == 0
    assert "kawai catalog update" in before.err
    assert hub.requests == []

    assert update(cli) == [{"url": url, "entries": 2, "changed": True, "error": None}]
    assert conditions(hub) == [(None, 200)]
    assert offered(cli) == {"first", "second"}

    assert update(cli) == [{"url": url, "entries": 2, "changed": False, "error": None}]
    ((etag, status),) = conditions(hub)
    assert (bool(etag), status) == (True, 304)

    put(hub, "list.yaml", "first", "third", "fourth")
    assert update(cli) == [{"url": url, "entries": 3, "changed": True, "error": None}]
    ((asked, status),) = conditions(hub)
    assert (asked, status) == (etag, 200)
    assert offered(cli) == {"first", "third", "fourth"}
    assert offered(cli, "--offline") == {"first", "third", "fourth"}
    assert cli("catalog", "list").err == ""
    assert hub.requests == [], "lists never touch the network"
    shown = json.loads(cli("catalog", "show", "THIRD", "--json").out)
    assert shown["catalog"] == url


def test_the_daemon_does_the_same(cli: Program, hub: LocalHub) -> None:
    url = put(hub, "list.yaml", "first")
    cli = subscribed(cli, url)
    with serving(cli) as daemon:
        reply = daemon.ask("POST", "/v1/catalog/update")
        assert updated(reply) == [{"url": url, "entries": 1, "changed": True, "error": None}]
        assert {row["id"] for row in daemon.ask("GET", "/v1/catalog").json} >= {"first"}
        put(hub, "list.yaml", "second")
        ours = update(cli)
        theirs = daemon.ask("POST", "/v1/catalog/update", {})
        assert (ours[0]["changed"], updated(theirs)[0]["changed"]) == (True, False)
        assert [status for _, status in conditions(hub)] == [200, 200, 304]
        assert daemon.ask("GET", "/v1/catalog/second").status == 200
        assert daemon.ask("GET", "/v1/catalog/first").status == 404
        refused = daemon.ask("POST", "/v1/catalog/update", {"url": url})
        assert (refused.status, refused.error["code"]) == (400, "invalid_body")
        hub.down()
        assert daemon.ask("GET", "/v1/catalog/second").status == 200


@pytest.mark.parametrize("etag", [None, 'W/"weak"', "no quotes", '"caf\xe9"'])
def test_a_server_may_have_any_etag_or_none(cli: Program, hub: LocalHub, etag: str | None) -> None:
    cli = subscribed(cli, put(hub, "list.yaml", "first"))
    hub.misbehave(header("ETag", etag, "list.yaml"), header("Last-Modified", None, "list.yaml"))
    assert [row["changed"] for row in [*update(cli), *update(cli)]] == [True, False]
    put(hub, "list.yaml", "second")
    assert update(cli)[0]["changed"] is True
    assert offered(cli) == {"second"}


def test_another_etag_for_the_same_bytes_is_no_change(cli: Program, hub: LocalHub) -> None:
    cli = subscribed(cli, put(hub, "list.yaml", "first"))
    update(cli)
    hub.misbehave(
        Fault("new etag", lambda ex: ex.respond(ex.call.without("if-none-match")).having("ETag", '"other"'))
    )
    conditions(hub)
    assert [row["changed"] for row in [*update(cli), *update(cli)]] == [False, False]
    (_, first), (asked, second) = conditions(hub)
    assert (first, asked, second) == (200, '"other"', 200)


def test_what_people_see(cli: Program, hub: LocalHub) -> None:
    nothing = cli("catalog", "update")
    assert (nothing.code, nothing.out) == (0, "")
    assert "KAWAI_CATALOGS" in nothing.err
    assert json.loads(cli("catalog", "update", "--json").out) == []
    good, bad = put(hub, "good.yaml", "first"), hub.add_plain("bad.yaml", b"<!doctype html>")
    ended = subscribed(cli, good, bad)("catalog", "update")
    assert ended.code == 7
    assert ended.out.splitlines() == [f"{good}: new, 1 entry", f"{bad}: not updated, 0 entries"]
    assert ended.err.startswith(f"error: {bad}, line 1: it is a web page")
    assert STANDS not in ended.err, "there is none"
    assert subscribed(cli, good, bad)("catalog", "update").out.startswith(f"{good}: unchanged, 1 entry\n")


# What keeps the last good copy


def older(hub: LocalHub, name: str) -> None:
    hub.misbehave(header("Last-Modified", "Sun, 01 Jan 2023 00:00:00 GMT", name))
    put(hub, name, "from-before")


def replaced(hub: LocalHub, name: str) -> None:
    put(hub, name, f"old-{name.removesuffix('.yaml')}")


def served(data: bytes) -> Break:
    def serve(hub: LocalHub, name: str) -> None:
        hub.add_plain(name, data)

    return serve


def faulty(make: Callable[..., Fault], *args: Any, **more: Any) -> Break:  # noqa: ANN401 - passed on
    """A good and newer copy, by a server that goes wrong in this way."""

    def serve(hub: LocalHub, name: str) -> None:
        hub.add_plain(name, listing("new", name))
        hub.misbehave(make(*args, path=name, **more))

    return serve


BREAK: dict[str, tuple[str, Break]] = {
    "login": ("broken_catalog", faulty(Fault.login_page)),
    "html": ("broken_catalog", served(b"\n<html><body>moved</body></html>")),
    "garbage": ("broken_catalog", served(bytes(range(256)) * 8)),
    "empty": ("broken_catalog", served(b"")),
    "text": ("broken_catalog", served(b"Not found\n")),
    "schema": ("broken_catalog", served(b"version: 1\nmodels:\n  - id: x\n    category: y\n")),
    "version": ("broken_catalog", served(b"version: 2\nmodels: []\n")),
    "alias": ("broken_catalog", served(b"version: 1\nmodels: &a [*a]\n")),
    "deep": ("broken_catalog", served(b"[" * 100_000)),
    "path": ("broken_catalog", served(catalog(entry("../x", FILE)))),
    "scheme": ("broken_catalog", served(catalog(entry("x", "file:///etc/passwd.gguf")))),
    "private": ("broken_catalog", served(catalog(entry("x", "http://192.168.7.7/x.gguf")))),
    "meta": ("broken_catalog", served(catalog(entry("x", "http://169.254.169.254/x.gguf")))),
    "older": ("older_catalog", older),
    "replaced": ("older_catalog", replaced),
    "large": ("bad_response", served(listing("x").ljust((1 << 20) + 1))),
    "endless": ("bad_response", faulty(Fault.endless)),
    "pebibyte": ("bad_response", faulty(Fault.endless, chunked=False)),
    "gzip": ("bad_response", faulty(Fault.gzip)),
    "gone": ("file_not_found", faulty(Fault.status, 404)),
    "forbidden": ("bad_response", faulty(Fault.status, 403)),
    "partial": ("bad_response", faulty(Fault.status, 206)),
    "nothing": ("bad_response", faulty(Fault.status, 204)),
    "failing": ("unreachable", faulty(Fault.status, 500, {"Retry-After": "0"})),
    "circle": ("bad_redirect", faulty(Fault.redirect_loop)),
    "scheme-away": ("bad_redirect", faulty(Fault.redirect, "file:///etc/hostname")),
    "link-local": ("bad_redirect", faulty(Fault.redirect, "http://169.254.169.254/latest")),
    "odd": ("bad_redirect", faulty(Fault.redirect, "http://0x7f.1/list.yaml")),
}
EXITS = {
    "broken_catalog": 7,
    "older_catalog": 7,
    "bad_response": 6,
    "unreachable": 6,
    "bad_redirect": 6,
    "file_not_found": 3,
}


def test_whatever_a_server_does_the_last_good_copy_stands(cli: Program, hub: LocalHub) -> None:
    names = {f"{kind}.yaml": kind for kind in BREAK}
    cli = subscribed(cli, *(put(hub, name, f"old-{kind}") for name, kind in names.items()))
    update(cli)
    for name, kind in names.items():
        put(hub, name, kind)
    assert all(row["changed"] for row in update(cli))
    for name, kind in names.items():
        BREAK[kind][1](hub, name)
    ended = cli("catalog", "update", "--json")
    rows = updated(ended)
    with serving(cli) as daemon:
        theirs = updated(daemon.ask("POST", "/v1/catalog/update"))
        assert {row["id"] for row in daemon.ask("GET", "/v1/catalog").json} >= set(BREAK)
    for kind, row, other in zip(BREAK, rows, theirs, strict=True):
        assert row["error"] is not None, kind
        assert (kind, row["error"]["code"]) == (kind, BREAK[kind][0])
        assert (row["entries"], row["changed"]) == (1, False), kind
        assert STANDS in row["error"]["hint"], kind
        assert other["error"]["code"] == row["error"]["code"], kind
    lines = {kind: row["error"]["message"] for kind, row in zip(BREAK, rows, strict=True)}
    assert "line 3" in lines["schema"]
    assert "192.168.7.7 may be on a private network" in lines["private"]
    assert ended.code == 7, "the first failure's"
    assert offered(cli) == set(BREAK)

    hub.behave()
    for name in names:
        put(hub, name, f"healed-{name}")
    assert [row["error"] for row in update(cli)] == [None] * len(BREAK)
    assert offered(cli) == {f"healed-{name}" for name in names}


@pytest.mark.parametrize("kind", ["gone", "failing", "circle", "html"])
def test_the_exit_code_is_the_first_failures(cli: Program, hub: LocalHub, kind: str) -> None:
    good, bad = put(hub, "good.yaml", "good"), put(hub, "bad.yaml", "bad")
    html = hub.add_plain("html.yaml", b"<html>")
    BREAK[kind][1](hub, "bad.yaml")
    cli = subscribed(cli, good, bad, html)
    ended = cli("catalog", "update", "--json")
    assert [row["error"] and row["error"]["code"] for row in updated(ended)] == [
        None,
        BREAK[kind][0],
        "broken_catalog",
    ]
    assert ended.code == EXITS[BREAK[kind][0]]
    assert offered(cli) == {"good"}


@pytest.mark.slow
def test_slow_and_silent_servers_are_waited_for_within_bounds(cli: Program, hub: LocalHub) -> None:
    faults = {
        "drip.yaml": ("upstream_timeout", Fault.drip(1.0, path="drip.yaml")),
        "mute.yaml": ("upstream_timeout", Fault.silent(path="mute.yaml")),
        "stuck.yaml": ("upstream_timeout", Fault.silent(0.5, path="stuck.yaml")),
        "cut.yaml": ("unreachable", Fault.cut(0.4, path="cut.yaml")),
        "busy.yaml": ("rate_limited", Fault.status(429, {"Retry-After": "86400"}, path="busy.yaml")),
    }
    urls = [put(hub, name, name) for name in faults]
    good = put(hub, "good.yaml", "good")
    with contextlib.closing(socket.socket()) as unheard:
        unheard.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{unheard.getsockname()[1]}/list.yaml"
        cli = subscribed(cli, *urls, refused, good)
        hub.misbehave(*(fault for _, fault in faults.values()))
        begun = time.monotonic()
        ended = cli("catalog", "update", "--json")
        assert time.monotonic() - begun < 40
    codes = [row["error"] and row["error"]["code"] for row in updated(ended)]
    assert codes == [*(code for code, _ in faults.values()), "unreachable", None]
    assert ended.code == 6
    assert offered(cli) == {"good"}


def test_a_passing_trouble_is_waited_out(cli: Program, hub: LocalHub) -> None:
    cli = subscribed(cli, put(hub, "list.yaml", "first"))
    hub.misbehave(Fault.status(503, {"Retry-After": "0"}, path="list.yaml", times=2))
    assert update(cli)[0]["changed"] is True


def test_headers_that_make_no_sense_are_no_bug(cli: Program, hub: LocalHub) -> None:
    dates = [
        "yesterday",
        "",
        "Mon, 32 Foo 2024 99:99:99 GMT",
        "Mon, 01 Jan 0001 00:00:00 +2359",
        "Fri, 31 Dec 9999 23:59:59 -2359",
        "Mon, 01 Jan 2024 00:00:00 +9999",
        "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
        "Mon, 99999999999999 Jan 2024 00:00:00 GMT",
        "Mon, 01 Jan 2024 00:00:00 +99999999999999",
    ]
    names = [f"date-{number}.yaml" for number in range(len(dates))]
    urls = [put(hub, name, name) for name in names]
    cli = subscribed(cli, *urls)
    hub.misbehave(*(header("Last-Modified", date, name) for date, name in zip(dates, names, strict=True)))
    for _ in range(2):
        ended = cli("catalog", "update", "--json")
        assert ended.code == 0, ended
        assert [row["error"] for row in updated(ended)] == [None] * len(dates)
        for name in names:
            put(hub, name, f"newer-{name}")
        hub.misbehave(*(header("ETag", None, name) for name in names))


def test_a_copy_from_before_is_older_whatever_came_between(cli: Program, hub: LocalHub) -> None:
    cli = subscribed(cli, put(hub, "list.yaml", "one"))
    update(cli)
    for id_ in ("two", "three"):
        put(hub, "list.yaml", id_)
        update(cli)
    for id_ in ("one", "two"):
        put(hub, "list.yaml", id_)
        ended = cli("catalog", "update", "--json")
        (row,) = updated(ended)
        assert (ended.code, row["error"]["code"], row["entries"]) == (7, "older_catalog", 1)
        (path,) = kept(cli)
        assert str(path) in row["error"]["hint"]
    assert offered(cli) == {"three"}
    hub.misbehave(header("Last-Modified", "Tue, 02 Jan 2024 00:00:00 GMT", "list.yaml"))
    assert update(cli)[0]["changed"] is True
    assert offered(cli) == {"two"}, "its server says that it is newer"


def test_an_older_copy_is_taken_once_the_held_one_is_removed(cli: Program, hub: LocalHub) -> None:
    cli = subscribed(cli, put(hub, "list.yaml", "one"))
    update(cli)
    older(hub, "list.yaml")
    assert cli("catalog", "update", "--json").code == 7
    (path,) = kept(cli)
    path.unlink()
    assert update(cli)[0]["changed"] is True
    assert offered(cli) == {"from-before"}


# Redirects


def test_a_redirect_to_another_port_of_the_same_host_is_followed(cli: Program, hub: LocalHub) -> None:
    target = put(hub, "target.yaml", "moved")
    hub.misbehave(Fault.redirect(target, server="hub", path="/moved.yaml"))
    cli = subscribed(cli, f"{hub.endpoint}/moved.yaml")
    assert update(cli)[0]["entries"] == 1
    with serving(cli) as daemon:
        (row,) = updated(daemon.ask("POST", "/v1/catalog/update"))
        assert (row["error"], row["changed"]) == (None, False)


def test_a_daemon_follows_no_redirect_to_another_private_host(cli: Program, hub: LocalHub) -> None:
    target = put(hub, "target.yaml", "moved").replace("127.0.0.1", "localhost")
    hub.misbehave(Fault.redirect(target, server="hub", path="/moved.yaml"))
    cli = subscribed(cli, f"{hub.endpoint}/moved.yaml")
    with serving(cli) as daemon:
        (row,) = updated(daemon.ask("POST", "/v1/catalog/update"))
    assert (row["error"]["code"], row["entries"]) == ("bad_redirect", 0)
    assert not [each for each in hub.requests if each.server == "cdn"]


# Not the network


def test_offline_an_update_asks_nobody(cli: Program, hub: LocalHub) -> None:
    cli = subscribed(cli, put(hub, "list.yaml", "first"), put(hub, "other.yaml", "second"))
    update(cli)
    hub.clear_requests()
    ended = cli("catalog", "update", "--offline", "--json")
    rows = updated(ended)
    assert ended.code == 9
    assert [(row["error"]["code"], row["entries"]) for row in rows] == [("offline", 1)] * 2
    assert offered(cli, "--offline") == {"first", "second"}
    assert hub.requests == []


def test_a_catalog_server_gets_nobodys_token(cli: Program, hub: LocalHub) -> None:
    """Not even one on the very address that the tokens are for."""
    for token in ("hf_canary", "gh_canary"):
        hub.add_token(token, accepts=["me/lists"])
    hub.add_file("me/lists", "list.yaml", listing("at-hub"))
    hub.misbehave(Fault.redirect(put(hub, "target.yaml", "target"), server="hub", path="/moved.yaml"))
    urls = [
        hub.url("me/lists", "list.yaml"),
        f"{hub.endpoint}/moved.yaml",
        put(hub, "plain.yaml", "plain"),
        hub.add_plain("broken.yaml", b"<html>"),
    ]
    secrets = {"HF_TOKEN": "hf_canary", "GITHUB_TOKEN": "gh_canary", "KAWAI_LIBS_API": hub.libs_api}
    cli = subscribed(cli, *urls, **secrets)
    ended = cli("catalog", "update", "--json")
    with serving(cli) as daemon:
        reply = daemon.ask("POST", "/v1/catalog/update")
    assert [row["entries"] for row in updated(ended)] == [1, 1, 1, 0]
    assert [row["entries"] for row in updated(reply)] == [1, 1, 1, 0]
    assert len(hub.requests) >= 10
    said = ended.out + reply.body.decode() + repr([each.headers for each in hub.requests])
    assert "canary" not in said
    assert not any({"authorization", "cookie"} & each.headers.keys() for each in hub.requests)
    assert not any("canary" in path.read_text() for path in kept(cli))


# Which entries a subscription may have


def test_an_entry_on_the_private_host_of_its_own_catalog_is_allowed(cli: Program, hub: LocalHub) -> None:
    """The hub is elsewhere, so that nothing but the subscription speaks for 127.0.0.1."""
    data = tiny_gguf(name="near")
    url = hub.add_plain("list.yaml", catalog(entry("near", hub.add_plain("near.gguf", data))))
    own = subscribed(cli, url, HF_ENDPOINT="https://hub.example.com")
    assert update(own)[0]["entries"] == 1
    with serving(own) as daemon:
        last = told(daemon.ask("POST", "/v1/catalog/pull/NEAR").events)[-1]
        assert last["status"] == "downloaded"
    assert answered(own("catalog", "pull", "near", "--json"))[-1]["status"] == "exists"
    assert installed(own) == {"127.0.0.1/near/near.gguf"}


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.2", "[::1]", "10.1.2.3", "nas", "printer.local", "0x7f.1"]
)
def test_an_entry_on_another_private_host_is_refused(cli: Program, hub: LocalHub, host: str) -> None:
    own = subscribed(
        cli,
        hub.add_plain("list.yaml", catalog(entry("near", f"http://{host}/near.gguf"))),
        HF_ENDPOINT="https://hub.example.com",
    )
    ended = own("catalog", "update", "--json")
    (row,) = updated(ended)
    assert (ended.code, row["error"]["code"]) == (7, "broken_catalog")
    assert "private network" in row["error"]["message"]
    assert "KAWAI_PULL_HOSTS" in row["error"]["message"]
    assert offered(own) == set()


def test_a_copy_that_other_settings_refuse_is_said_to_be_and_heals(cli: Program, hub: LocalHub) -> None:
    url = hub.add_plain("list.yaml", catalog(entry("near", "http://nas/near.gguf")))
    trusting = subscribed(cli, url, KAWAI_PULL_HOSTS="nas")
    assert update(trusting)[0]["entries"] == 1
    wary = subscribed(cli, url)
    assert offered(wary) == set()
    ended = wary("catalog", "update", "--json")
    (row,) = updated(ended)
    assert row["entries"] == 0
    assert row["error"] is not None, "an unchanged copy that cannot be used is no success"
    assert ended.code == 7
    assert offered(trusting) == {"near"}


# The kept copies


def test_what_is_subscribed_to_no_more_vanishes(cli: Program, hub: LocalHub) -> None:
    one, two = put(hub, "one.yaml", "one"), put(hub, "two.yaml", "two")
    update(subscribed(cli, one, two))
    assert offered(subscribed(cli, one, two)) == {"one", "two"}
    assert offered(subscribed(cli, two)) == {"two"}
    assert offered(cli) == set()
    assert len(kept(cli)) == 2
    update(subscribed(cli, two))
    assert len(kept(cli)) == 1
    assert offered(subscribed(cli, one, two)) == {"two"}


def test_one_broken_subscription_leaves_the_other_alone(cli: Program, hub: LocalHub) -> None:
    cli = subscribed(cli, put(hub, "one.yaml", "one"), put(hub, "two.yaml", "two"))
    update(cli)
    hub.add_plain("one.yaml", b"version: 1\nmodels: no\n")
    put(hub, "two.yaml", "two", "three")
    ended = cli("catalog", "update", "--json")
    first, second = updated(ended)
    assert (ended.code, first["error"]["code"], first["entries"]) == (7, "broken_catalog", 1)
    assert "line 2" in first["error"]["message"]
    assert second == {"url": second["url"], "entries": 2, "changed": True, "error": None}
    assert offered(cli) == {"one", "two", "three"}


def _flip_inside(path: Path) -> None:
    """Leave JSON that is whole, around a catalog that is not."""
    copy = json.loads(path.read_text())
    path.write_text(json.dumps({**copy, "text": copy["text"].replace('"version"', '"vorsion"')}))


def _swap_inside(path: Path) -> None:
    copy = json.loads(path.read_text())
    path.write_text(json.dumps({**copy, "text": copy["text"].replace("first", "fierst")}))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "removed": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "garbage": lambda path: path.write_bytes(b"\xff\x00" * 500),
    "other JSON": lambda path: path.write_text('{"url": 7}'),
    "null": lambda path: path.write_text("null"),
    "broken inside": _flip_inside,
    "changed inside": _swap_inside,
    "its folder removed": lambda path: shutil.rmtree(path.parent),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_copy_heals(cli: Program, hub: LocalHub, damage: str) -> None:
    cli = subscribed(cli, put(hub, "list.yaml", "first"))
    update(cli)
    assert offered(cli) == {"first"}
    (path,) = kept(cli)
    DAMAGE[damage](path)
    listed = cli("catalog", "list", "--json")
    assert listed.code == 0
    assert "Traceback" not in listed.err
    assert update(cli)[0]["entries"] == 1
    assert offered(cli) == {"first"}
    assert cli("catalog", "list").err == ""


def test_a_folder_among_the_copies_is_no_bug(cli: Program, hub: LocalHub) -> None:
    cli = subscribed(cli, put(hub, "list.yaml", "first"))
    update(cli)
    (kept(cli)[0].parent / "stray.json").mkdir()
    ended = cli("catalog", "update", "--json")
    assert ended.code in {0, 9}, ended
    assert offered(cli) == {"first"}


def test_what_a_killed_writer_left_is_cleared(cli: Program, hub: LocalHub) -> None:
    cli = subscribed(cli, put(hub, "list.yaml", "first"))
    update(cli)
    left = kept(cli)[0].parent / ".999999999.0123456789abcdef.partial"
    left.write_bytes(b"half")
    update(cli)
    assert not left.exists()


def test_a_home_that_cannot_be_written_is_said_to_be(cli: Program, hub: LocalHub) -> None:
    cli = subscribed(cli, put(hub, "list.yaml", "first"))
    update(cli)
    (path,) = kept(cli)
    put(hub, "list.yaml", "second")
    for spoil in (_as_file, _as_folders):
        spoil(path)
        ended = cli("catalog", "update", "--json")
        (row,) = updated(ended)
        assert (ended.code, row["error"]["code"], row["changed"]) == (9, "home_not_writable", False)
        assert str(path.parent) in row["error"]["message"]
        assert cli("catalog", "list", "--json").code == 0


def _as_file(path: Path) -> None:
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("in the way")


def _as_folders(path: Path) -> None:
    path.parent.unlink()
    (path / "full").mkdir(parents=True)


def test_a_read_only_home_is_said_to_be_and_lists_all_the_same(cli: Program, hub: LocalHub) -> None:
    cli = subscribed(cli, put(hub, "list.yaml", "first"), put(hub, "gone.yaml", "gone"))
    update(cli)
    put(hub, "list.yaml", "second")
    fewer = subscribed(cli, cli.environ["KAWAI_CATALOGS"].partition(",")[0])
    ended = _read_only(fewer, "catalog", "update", "--json")
    assert ended.code == 9, ended
    (row,) = updated(ended)
    assert row["error"]["code"] == "home_not_writable"
    assert STANDS in row["error"]["hint"]
    listed = _read_only(fewer, "catalog", "list", "--json")
    assert (listed.code, listed.err) == (0, "")
    assert "first" in listed.out
    assert offered(fewer) == {"first"}


def _read_only(program: Program, *args: str) -> Ended:
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", mount, program.environ["KAWAI_HOME"]]
    try:
        tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare here, so nothing can be mounted read-only")
    if tried.returncode:
        pytest.skip(f"nothing can be mounted read-only here: {tried.stderr}")
    done = subprocess.run(
        [*command, *KAWAI, *args], env=program.environ, capture_output=True, text=True, check=False
    )
    return Ended(done.returncode, done.stdout, done.stderr)


# Cut off, and at once


@pytest.mark.slow
def test_an_update_that_is_killed_leaves_the_old_copy_or_the_new(cli: Program, hub: LocalHub) -> None:
    cli = subscribed(cli, put(hub, "list.yaml", "round-0"))
    begun = time.monotonic()
    update(cli)
    lasts = time.monotonic() - begun
    moments, most = random.Random(4), 8  # noqa: S311 - the same for the same seed
    old = {"round-0"}
    for number in range(1, most + 1):
        new = {f"round-{number}", *(f"of-{number}-{each}" for each in range(300))}
        put(hub, "list.yaml", *new)
        process = cli.start("catalog", "update")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait((0.5 + 0.5 * (number - 1 + moments.random()) / most) * lasts)
        process.kill()
        process.communicate()
        assert offered(cli) in (old, new)
        update(cli)
        old = offered(cli)
        assert old == new
    assert len(kept(cli)) == 1


def test_many_updates_at_once_do_each_other_no_harm(cli: Program, hub: LocalHub) -> None:
    names = [f"list-{number}.yaml" for number in range(4)]
    cli = subscribed(cli, *(put(hub, name, f"old-{name}") for name in names))
    update(cli)
    for name in names:
        put(hub, name, f"new-{name}")
    with serving(cli) as daemon, ThreadPoolExecutor(8) as pool:
        processes = [cli.start("catalog", "update", "--json") for _ in range(2)]
        replies = list(pool.map(lambda _: daemon.ask("POST", "/v1/catalog/update"), range(8)))
        ended = [Ended(0, *process.communicate()) for process in processes]
        assert [process.returncode for process in processes] == [0, 0]
        assert {row["id"] for row in daemon.ask("GET", "/v1/catalog").json} >= {
            f"new-{name}" for name in names
        }
    answers: list[Ended | Reply] = [*replies, *ended]
    for each in answers:
        assert [(row["entries"], row["error"]) for row in updated(each)] == [(1, None)] * 4
    assert len(kept(cli)) == 4


# Addresses that are none


@pytest.mark.parametrize("url", ["http://[bad/list.yaml", "http://a]b/list.yaml"])
def test_an_address_that_is_none_is_no_bug(kawai: Program, url: str) -> None:
    kawai = subscribed(kawai, url)
    for command in ("list", "update"):
        ended = kawai("catalog", command, "--offline", "--json")
        assert ended.code in {2, 9}, ended


# At once, at the limits, and by other settings

MOST_BYTES = 1 << 20

COLD = """
import os, sys, threading
from kawai_tools.catalog.schema import Terms, read_catalog

sys.setswitchinterval(1e-6)
data = open(sys.argv[1], "rb").read()
terms = Terms("list", "list", "https://huggingface.co", frozenset())


def read_at_once():
    start = threading.Barrier(8)
    threads = [threading.Thread(target=lambda: (start.wait(), read_catalog(data, terms))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(0)


ends = []
for _ in range(60):
    child = os.fork()
    if not child:
        read_at_once()
    ends.append(os.waitpid(child, 0)[1])
print(sorted(set(ends)))
"""


def test_lists_may_be_read_for_the_first_time_by_many_threads(tmp_path: Path) -> None:
    """An update does so; each child is a process that has read none before."""
    path = tmp_path / "list.yaml"
    path.write_bytes(listing("first"))
    done = subprocess.run(
        [sys.executable, "-c", COLD, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("[0]\n", "")


def test_a_slow_update_does_not_undo_a_quick_one(cli: Program, hub: LocalHub) -> None:
    cli = subscribed(cli, put(hub, "list.yaml", "one"))
    update(cli)
    put(hub, "list.yaml", "two")
    asked, go_on = threading.Event(), threading.Event()

    def hold(ex: Exchange) -> Answer:
        answer = ex.answer()
        assert answer.blob
        data = answer.blob.path.read_bytes()

        def pieces(_: PieceSize) -> Iterator[bytes]:
            asked.set()
            go_on.wait(20)
            yield data

        return replace(answer, body=Stream(pieces, len(data)))

    hub.misbehave(Fault("held", hold, wants="body", path="list.yaml", times=1))
    with cli.start("catalog", "update", "--json") as slow:
        assert asked.wait(20)
        put(hub, "list.yaml", "three")
        assert update(cli)[0]["changed"] is True
        assert offered(cli) == {"three"}
        go_on.set()
        slow.communicate(timeout=30)
    assert offered(cli) == {"three"}, "the copy that came first is the older one"


def test_a_catalog_may_be_as_large_as_the_limit(cli: Program, hub: LocalHub) -> None:
    cli = subscribed(cli, hub.add_plain("list.yaml", listing("first").ljust(MOST_BYTES)))
    assert update(cli)[0]["entries"] == 1
    hub.add_plain("list.yaml", listing("second").ljust(MOST_BYTES + 1))
    ended = cli("catalog", "update", "--json")
    (row,) = updated(ended)
    assert (ended.code, row["error"]["code"]) == (6, "bad_response")
    assert offered(cli) == {"first"}


@pytest.mark.parametrize("status", [304, 206, 203])
def test_an_answer_without_a_question_is_no_copy(cli: Program, hub: LocalHub, status: int) -> None:
    """Nothing is held, so nothing can be unmodified, and nothing was asked for by range."""
    cli = subscribed(cli, put(hub, "list.yaml", "first"))
    hub.misbehave(Fault.status(status, path="list.yaml"))
    ended = cli("catalog", "update", "--json")
    (row,) = updated(ended)
    assert (ended.code, row["error"]["code"], row["entries"]) == (6, "bad_response", 0)
    assert offered(cli) == set()


def test_the_configuration_file_subscribes_too(cli: Program, hub: LocalHub) -> None:
    one, two = put(hub, "one.yaml", "one"), put(hub, "two.yaml", "two")
    home = Path(cli.environ["KAWAI_HOME"])
    home.mkdir()
    (home / "config.toml").write_text(f'catalogs = ["{one}", "{two}"]\n')
    assert [row["url"] for row in update(cli)] == [one, two]
    assert offered(cli) == {"one", "two"}
    assert offered(subscribed(cli, two)) == {"two"}, "the variable wins"


@pytest.mark.parametrize(
    "url",
    ["ftp://lists.example.com/a.yaml", "file:///etc/a.yaml", "lists.example.com", "https://me:pw@x.example/a",
     "https://x.example/a#b", "http://x.example:99999/a", "http://x.example:port/a"],
)  # fmt: skip
def test_what_is_no_address_is_said_to_be_none(kawai: Program, url: str) -> None:
    for args in (("list",), ("update",)):
        ended = subscribed(kawai, url)("catalog", *args, "--json", "--offline")
        assert (ended.code, ended.error["code"]) == (2, "invalid_config"), ended
        assert "KAWAI_CATALOGS" in ended.error["message"]
        assert "me:pw" not in ended.err, "a password is no word for a message"


def test_an_address_that_is_written_twice_is_asked_once(cli: Program, hub: LocalHub) -> None:
    url = put(hub, "list.yaml", "first")
    rows = update(subscribed(cli, url, url))
    assert [row["url"] for row in rows] == [url]
    assert len(conditions(hub)) == 1


def test_more_subscriptions_than_are_asked_at_once_keep_their_order(cli: Program, hub: LocalHub) -> None:
    urls = [put(hub, f"list-{number}.yaml", f"of-{number}") for number in range(20)]
    cli = subscribed(cli, *reversed(urls))
    assert [row["url"] for row in update(cli)] == list(reversed(urls))
    listed = json.loads(cli("catalog", "list", "--json").out)
    ours = [row["id"] for row in listed if row["catalog"] != "kawai"]
    assert ours == [f"of-{number}" for number in reversed(range(20))]


def test_a_folder_in_the_place_of_a_copy_is_said_to_be(cli: Program, hub: LocalHub) -> None:
    cli = subscribed(cli, put(hub, "list.yaml", "first"))
    update(cli)
    (path,) = kept(cli)
    path.unlink()
    path.mkdir()
    listed = cli("catalog", "list", "--json")
    assert listed.code == 0
    ended = cli("catalog", "update", "--json")
    (row,) = updated(ended)
    assert (ended.code, row["error"]["code"]) == (9, "home_not_writable")
    assert str(path) in row["error"]["message"]
    path.rmdir()
    assert update(cli)[0]["changed"] is True


def test_marks_and_line_ends_make_no_other_copy(cli: Program, hub: LocalHub) -> None:
    data = listing("first")
    cli = subscribed(cli, hub.add_plain("list.yaml", data))
    update(cli)
    hub.add_plain("list.yaml", b"\xef\xbb\xbf" + data)
    assert update(cli)[0]["changed"] is False
    hub.add_plain("list.yaml", data.replace(b"\n", b"\r\n"))
    assert update(cli)[0]["entries"] == 1
    assert offered(cli) == {"first"}


def test_a_daemon_follows_what_another_process_fetched(cli: Program, hub: LocalHub) -> None:
    cli = subscribed(cli, put(hub, "list.yaml", "first"))
    with serving(cli) as daemon:
        assert daemon.ask("GET", "/v1/catalog/first").status == 404
        update(cli)
        assert daemon.ask("GET", "/v1/catalog/first").status == 200
        put(hub, "list.yaml", "second")
        update(cli)
        assert daemon.ask("GET", "/v1/catalog/first").status == 404
        assert daemon.ask("GET", "/v1/catalog/second").status == 200
        for path in kept(cli):
            path.unlink()
        assert daemon.ask("GET", "/v1/catalog/second").status == 404


@pytest.mark.parametrize("host", ["lists.example.org.", "LISTS.example.org", "lists.m\u00fcnchen.example"])
def test_a_daemon_may_ask_for_its_own_subscription_however_it_is_spelled(
    workspaces: Workspaces, host: str
) -> None:
    url = f"https://{host}/list.yaml"
    egress = workspaces(serves=True, catalogs=(url,)).catalog_outbound.egress
    egress.check_first(origin_of(url))
