"""Sessions of browsers, the files of the admin page, and ``kawai ui``; the page itself is in test_page.py."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from kawai_tools.api.ports import user_of
from kawai_tools.api.sessions import CODE_LASTS, LASTS, MOST, MOST_CODES, MOST_EACH, Grant, Sessions
from kawai_tools.errors import InvalidCode, SessionExpired
from tests.program import Daemon, Program, Reply, serving

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)


class House:
    """A server that asks for tokens, and a token of each role."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.admin = self.make("--admin")
        self.user = self.make()

    def make(self, *words: str) -> dict[str, Any]:
        made: dict[str, Any] = json.loads(self.daemon.program("tokens", "create", "--json", *words).out)
        return made

    def begin(self, body: object, **headers: str) -> Reply:
        return self.daemon.ask("POST", "/v1/session", body, headers)

    def session(self, token: dict[str, Any]) -> dict[str, str]:
        """The headers of a browser that has signed in with a token."""
        return self.of(self.begin({"token": token["token"]}))

    def of(self, reply: Reply) -> dict[str, str]:
        assert reply.status == 204, reply
        headers = {"Cookie": reply.headers["set-cookie"].partition(";")[0]}
        told = self.daemon.ask("GET", "/v1/session", None, headers).json
        return {**headers, "X-Kawai-CSRF": told["csrf"]}

    def code(self, **headers: str) -> str:
        sent = headers or {"Authorization": f"Bearer {self.admin['token']}"}
        reply = self.daemon.ask("POST", "/v1/session/codes", None, sent)
        assert (reply.status, reply.headers["cache-control"]) == (201, "no-store"), reply
        assert set(reply.json) == {"code", "expires_at"}
        left = datetime.fromisoformat(reply.json["expires_at"]) - datetime.now(UTC)
        assert timedelta(seconds=50) < left <= timedelta(seconds=60)
        return str(reply.json["code"])


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with serving(Program(tmp_path_factory.mktemp("house")), "--auth") as daemon:
        yield House(daemon)


def test_a_token_begins_a_session(house: House) -> None:
    reply = house.begin({"token": house.admin["token"]})
    assert (reply.status, reply.body) == (204, b"")
    cookie, *attributes = reply.headers["set-cookie"].split("; ")
    assert re.fullmatch(r"kawai_session=[\w-]{43}", cookie)
    seconds = int(LASTS.total_seconds())
    assert set(attributes) == {"Path=/", f"Max-Age={seconds}", "HttpOnly", "SameSite=Strict"}
    told = house.daemon.ask("GET", "/v1/session", None, {"Cookie": f"other=1; {cookie}; more=2"}).json
    assert set(told) == {"role", "expires_at", "csrf"}
    assert (told["role"], len(told["csrf"])) == ("admin", 43)
    left = datetime.fromisoformat(told["expires_at"]) - datetime.now(UTC)
    assert LASTS - timedelta(seconds=30) < left <= LASTS


def test_a_page_that_came_encrypted_gets_a_cookie_that_is_only_sent_so(tmp_path: Path) -> None:
    with serving(Program(tmp_path), "--auth", "--allow-host", "kawai.example") as daemon:
        token = json.loads(daemon.program("tokens", "create", "--json").out)["token"]
        headers = {"Host": "kawai.example", "Origin": "https://kawai.example"}
        reply = daemon.ask("POST", "/v1/session", {"token": token}, headers)
        assert reply.headers["set-cookie"].endswith("; Secure")


def test_a_bearer_is_told_who_it_is(house: House) -> None:
    for token in (house.admin, house.user):
        headers = {"Authorization": f"Bearer {token['token']}"}
        told = house.daemon.ask("GET", "/v1/session", None, headers).json
        assert told == {"role": token["role"], "expires_at": None, "csrf": None}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"token": "kawai_" + "x" * 43}, "invalid_token"),
        ({"token": ""}, "invalid_token"),
        ({"token": "\ud800"}, "invalid_body"),
        ({"code": "x" * 32}, "invalid_code"),
        ({"code": ""}, "invalid_code"),
        ({}, "invalid_body"),
        ({"token": None}, "invalid_body"),
        ({"token": "a", "code": "b"}, "invalid_body"),
        ({"token": 1}, "invalid_body"),
        ({"token": "a", "role": "admin"}, "invalid_body"),
        ([], "invalid_body"),
    ],
)
def test_what_is_no_credential_begins_nothing(house: House, body: object, code: str) -> None:
    data = json.dumps(body).encode()
    reply = house.daemon.ask("POST", "/v1/session", data, {"Content-Type": "application/json"})
    assert (reply.status, reply.error["code"]) == (400 if code == "invalid_body" else 401, code)
    assert "set-cookie" not in reply.headers


def test_nobody_is_nobody(house: House) -> None:
    for method in ("GET", "DELETE"):
        reply = house.daemon.ask(method, "/v1/session")
        assert (reply.status, reply.error["code"]) == (401, "token_required")
    assert house.daemon.ask("POST", "/v1/session/codes").status == 401


def test_a_code_signs_in_once(house: House) -> None:
    code = house.code()
    headers = house.of(house.begin({"code": code}))
    assert house.daemon.ask("GET", "/v1/session", None, headers).json["role"] == "admin"
    assert house.begin({"code": code}).error["code"] == "invalid_code"
    assert house.of(house.begin({"code": house.code(**headers)}))  # a session makes them, too


def test_a_user_makes_no_codes(house: House) -> None:
    for headers in ({"Authorization": f"Bearer {house.user['token']}"}, house.session(house.user)):
        reply = house.daemon.ask("POST", "/v1/session/codes", None, headers)
        assert (reply.status, reply.error["code"]) == (403, "admin_required")


def test_a_cookie_alone_changes_nothing(house: House) -> None:
    headers = house.session(house.admin)
    cookie, csrf = headers["Cookie"], headers["X-Kawai-CSRF"]
    for sent in ({}, {"X-Kawai-CSRF": "x"}, {"X-Kawai-CSRF": csrf[:-1]}, {"X-Kawai-CSRF": csrf.swapcase()}):
        for method, path in (
            ("POST", "/v1/models/index"),
            ("DELETE", "/v1/session"),
            ("DELETE", "/v1/pulls/x"),
        ):
            reply = house.daemon.ask(method, path, None, {"Cookie": cookie, **sent})
            assert (reply.status, reply.error["code"]) == (403, "csrf_required"), (method, path)
    other = house.session(house.admin)["X-Kawai-CSRF"]
    assert (
        house.daemon.ask("POST", "/v1/models/index", None, {**headers, "X-Kawai-CSRF": other}).status == 403
    )
    assert house.daemon.ask("GET", "/v1/tokens", None, {"Cookie": cookie}).status == 200
    assert house.daemon.ask("POST", "/v1/models/index", None, headers).status == 204
    foreign = {**headers, "Origin": "http://evil.example"}
    assert house.daemon.ask("POST", "/v1/models/index", None, foreign).error["code"] == "foreign_origin"
    bearer = {"Authorization": f"Bearer {house.admin['token']}", "Cookie": cookie}
    assert house.daemon.ask("POST", "/v1/models/index", None, bearer).status == 204


def test_a_users_session_is_a_users(house: House) -> None:
    headers = house.session(house.user)
    assert house.daemon.ask("GET", "/v1/session", None, headers).json["role"] == "user"
    assert house.daemon.ask("GET", "/v1/stats", None, headers).status == 200
    for method, path in (("GET", "/v1/tokens"), ("POST", "/v1/models/index"), ("GET", "/v1/logs")):
        reply = house.daemon.ask(method, path, None, headers)
        assert (reply.status, reply.error["code"]) == (403, "admin_required")


def test_a_session_ends(house: House) -> None:
    headers = house.session(house.admin)
    reply = house.daemon.ask("DELETE", "/v1/session", None, headers)
    assert reply.status == 204
    assert reply.headers["set-cookie"].startswith("kawai_session=; Path=/; Max-Age=0;")
    for method, path in (("GET", "/v1/session"), ("DELETE", "/v1/session"), ("GET", "/v1/models")):
        again = house.daemon.ask(method, path, None, headers)
        assert (again.status, again.error["code"]) == (401, "session_expired")
    assert house.daemon.ask("GET", "/healthz", None, headers).status == 200
    assert house.daemon.ask("GET", "/ui/", None, headers).status == 200


def test_a_session_ends_with_its_token(house: House) -> None:
    token = house.make("--admin")
    by_token = house.session(token)
    bearer = {"Authorization": f"Bearer {token['token']}"}
    by_code = house.of(house.begin({"code": house.code(**bearer)}))
    assert house.daemon.ask("DELETE", f"/v1/tokens/{token['id']}", None, by_token).status == 204
    for headers in (by_token, by_code):
        reply = house.daemon.ask("GET", "/v1/session", None, headers)
        assert (reply.status, reply.error["code"]) == (401, "token_revoked")


def test_a_session_may_what_its_token_may_now(house: House) -> None:
    token = house.make("--admin")
    headers = house.session(token)
    path = house.daemon.home / "tokens.json"
    content = json.loads(path.read_text())
    for row in content["tokens"]:
        row["role"] = "user" if row["id"] == token["id"] else row["role"]
    path.write_text(json.dumps(content))
    while house.daemon.ask("GET", "/v1/session", None, headers).json["role"] != "user":
        pass
    assert house.daemon.ask("GET", "/v1/tokens", None, headers).error["code"] == "admin_required"


def test_who_signs_in_again_leaves_no_session_behind(house: House) -> None:
    before = house.session(house.user)
    reply = house.begin({"token": house.admin["token"]}, Cookie=before["Cookie"])
    assert house.of(reply)
    told = house.daemon.ask("GET", "/v1/session", None, before)
    assert (told.status, told.error["code"]) == (401, "session_expired")
    assert house.begin({"token": "no"}, Cookie=house.of(reply)["Cookie"]).status == 401
    assert house.of(reply)  # a sign-in that fails ends nothing


def test_what_is_followed_ends_with_who_may_follow_it(house: House) -> None:
    token = house.make("--admin")
    revoked, left, stays = house.session(token), house.session(house.admin), house.session(house.admin)
    with contextlib.ExitStack() as stack:
        answers = []
        for headers in (revoked, left, stays):
            wire = stack.enter_context(contextlib.closing(house.daemon.connect(timeout=30)))
            wire.request("GET", "/v1/logs?follow=true", headers=headers)
            answers.append(wire.getresponse())
            assert answers[-1].readline().startswith(b"data: ")
        assert house.daemon.ask("DELETE", f"/v1/tokens/{token['id']}", None, stays).status == 204
        assert house.daemon.ask("DELETE", "/v1/session", None, left).status == 204
        for answer in answers[:2]:
            answer.read()  # within a heartbeat there is no more
        assert answers[2].readline() == b"\n"
        assert answers[2].readline().startswith(b"data: ")


def test_a_link_of_another_site_may_lead_to_who_is_signed_in(house: House) -> None:
    """A browser sends no cookie there, and does with what the page asks then."""

    def seen(**headers: str) -> str:
        page = house.daemon.ask("GET", "/ui/", None, headers).body.decode()
        (word,) = re.findall('data-session="(.*?)"', page)
        assert ('rel="preload"' in page) == (word in {"open", "admin", "user"})
        return str(word)

    linked = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    cookie = house.session(house.user)["Cookie"]
    assert seen(**linked) == "unknown"
    assert seen(**linked, Cookie=cookie) == "user"
    assert seen() == "none"


ELSEWHERE = """
import http.client, json, os, sys
host, code = sys.argv[1:]
"localhost".encode("idna")  # what is yet to be imported could not be read
os.setuid(65534)
wire = http.client.HTTPConnection(host, timeout=20)
wire.request("POST", "/v1/session", json.dumps({"code": code}), {"Content-Type": "application/json"})
print(wire.getresponse().read().decode())
"""


def test_a_code_for_one_user_is_of_no_use_to_another(house: House) -> None:
    """It stands on the command line of a browser, which everybody may read."""
    if os.geteuid() or sys.platform != "linux":
        pytest.skip("another user is needed: only root can be one, and Linux tells")
    bearer = {"Authorization": f"Bearer {house.admin['token']}"}
    for body, code in (({"same_user": True}, "invalid_code"), ({"same_user": False}, None)):
        made = house.daemon.ask("POST", "/v1/session/codes", body, bearer).json["code"]
        words = [sys.executable, "-c", ELSEWHERE, urlsplit(house.daemon.url).netloc, made]
        ended = subprocess.run(words, capture_output=True, text=True, check=True)
        if code is None:
            assert ended.stdout.strip() == ""
        else:
            assert json.loads(ended.stdout)["error"]["code"] == code
            assert house.of(house.begin({"code": made}))  # whoever tries does not use it up


def test_only_the_connection_that_asks_tells_whose_it_is() -> None:
    """Others from the same port may be another user's, and those that are over count as root's."""
    if sys.platform != "linux":
        pytest.skip("Linux tells")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.connect(server.getsockname())
        host, port = server.getsockname()
        assert user_of(client.getsockname(), (host, port)) == os.geteuid()
        assert user_of(client.getsockname(), (f"::ffff:{host}", port)) == os.geteuid()
        assert user_of(client.getsockname(), (host, port - 1)) is None
        assert user_of(client.getsockname(), ("127.0.0.2", port)) is None
        assert user_of((host, port), (host, port)) is None


def test_a_session_lasts_no_longer_than_its_token(house: House) -> None:
    reply = house.begin({"token": house.make("--expires", "90m")["token"]})
    (age,) = re.findall(r"Max-Age=(\d+)", reply.headers["set-cookie"])
    assert 5300 < int(age) <= 5400


def test_what_was_begun_unasked_ends_when_tokens_are_asked_for(tmp_path: Path) -> None:
    program = Program(tmp_path)
    with serving(program) as daemon:
        assert daemon.ask("GET", "/v1/session").json == {"role": "admin", "expires_at": None, "csrf": None}
        assert daemon.ask("GET", "/v1/session", None, {"Cookie": "kawai_session=x"}).status == 200
        code = daemon.ask("POST", "/v1/session/codes").json["code"]
        begun = daemon.ask(
            "POST", "/v1/session", {"code": daemon.ask("POST", "/v1/session/codes").json["code"]}
        )
        (daemon.home / "config.toml").write_text("auth = true\n")
        daemon.process.send_signal(signal.SIGHUP)
        while daemon.ask("GET", "/v1/session").status == 200:
            pass
        assert daemon.ask("POST", "/v1/session", {"code": code}).error["code"] == "invalid_code"
        cookie = begun.headers["set-cookie"].partition(";")[0]
        reply = daemon.ask("GET", "/v1/session", None, {"Cookie": cookie})
        assert reply.error["code"] == "session_expired"


class Clock:
    """The time of day and that of codes, set by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wall(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def passing(self) -> float:
        return self.seconds


def test_time_ends_sessions_and_codes() -> None:
    clock = Clock()
    sessions = Sessions(clock.wall, clock.passing)
    late, soon = sessions.give_code(Grant("admin")).code, sessions.give_code(Grant("admin")).code
    clock.seconds = CODE_LASTS - 0.001
    assert sessions.take_code(soon) == Grant("admin")
    clock.seconds = CODE_LASTS
    with pytest.raises(InvalidCode):
        sessions.take_code(late)
    cookie, session = sessions.begin(Grant("user"))
    clock.seconds += LASTS.total_seconds() - 1
    assert sessions.find(cookie) == session
    clock.seconds += 1
    with pytest.raises(SessionExpired):
        sessions.find(cookie)


def test_a_token_ends_no_sessions_of_another() -> None:
    clock = Clock()
    sessions = Sessions(clock.wall, clock.passing)
    other, _ = sessions.begin(Grant("admin", None, "other"))
    cookies = [sessions.begin(Grant("user", None, "one"))[0] for _ in range(MOST + 1)]
    assert sessions.find(other)
    assert all(sessions.find(cookie) for cookie in cookies[-MOST_EACH:])
    with pytest.raises(SessionExpired):
        sessions.find(cookies[-MOST_EACH - 1])


def test_no_more_are_kept_than_there_is_room_for() -> None:
    sessions = Sessions()
    first, _ = sessions.begin(Grant("user"))
    cookies = [sessions.begin(Grant("user"))[0] for _ in range(MOST)]
    with pytest.raises(SessionExpired):
        sessions.find(first)
    assert all(sessions.find(cookie) for cookie in cookies)
    code = sessions.give_code(Grant("user")).code
    others = [sessions.give_code(Grant("user")).code for _ in range(MOST_CODES)]
    with pytest.raises(InvalidCode):
        sessions.take_code(code)
    assert all(sessions.take_code(other) for other in others)


# the files of the page


def test_the_page_is_open_and_may_do_what_its_policy_says(house: House) -> None:
    for path in ("/ui/", "/ui/app.js", "/ui/style.css", "/ui/vendor/preact.js", "/ui/icon.svg"):
        reply = house.daemon.ask("GET", path)
        assert reply.status == 200, path
        assert reply.headers["content-security-policy"] == POLICY
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["cross-origin-resource-policy"] == "same-origin"
    lead = house.daemon.ask("GET", "/ui")
    assert (lead.status, lead.headers["location"]) == (307, "ui/")


def test_a_file_that_a_browser_has_is_not_sent_again(house: House) -> None:
    first = house.daemon.ask("GET", "/ui/app.js")
    again = house.daemon.ask("GET", "/ui/app.js", None, {"If-None-Match": f'"x", {first.headers["etag"]}'})
    assert (again.status, again.body) == (304, b"")
    assert house.daemon.ask("GET", "/ui/app.js", None, {"If-None-Match": '"x"'}).status == 200


@pytest.mark.parametrize(
    "name", ["x.js", "../pages.py", "%2e%2e/api/pages.py", "index.html", "vendor", "views/"]
)
def test_nothing_else_is_there(house: House, name: str) -> None:
    reply = house.daemon.ask("GET", f"/ui/{name}")
    assert (reply.status, reply.error["code"]) == (404, "route_not_found")


def test_the_page_knows_at_once_who_looks(house: House) -> None:
    def seen(**headers: str) -> tuple[str, bool]:
        reply = house.daemon.ask("GET", "/ui/", None, headers)
        assert reply.headers["cache-control"] == "no-store"
        (who,) = re.findall(r'data-session="(\w+)"', reply.body.decode())
        return who, "../v1/models" in reply.body.decode()

    assert seen() == ("none", False)
    assert seen(Cookie="kawai_session=x") == ("none", False)
    assert seen(**house.session(house.user)) == ("user", True)
    assert seen(**house.session(house.admin)) == ("admin", True)


# kawai ui


def opened(program: Program, *words: str) -> tuple[str, str]:
    """What ``kawai ui`` prints, and what it has a browser open."""
    seen, browser = program.home / "opened", program.home / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {seen}\n')
    browser.chmod(0o755)
    ended = program("ui", *words, BROWSER=str(browser))
    assert ended.code == 0, ended
    return ended.out, seen.read_text() if seen.exists() else ""


def test_kawai_ui_opens_the_page_signed_in(tmp_path: Path) -> None:
    program = Program(tmp_path)
    with serving(program, "--auth") as daemon:
        out, url = opened(program)
        assert out == f"{url}\n"
        address, code = url.split("#code=")
        assert address == f"{daemon.url}/ui/"
        assert daemon.ask("POST", "/v1/session", {"code": code}).status == 204
        told = json.loads(program("ui", "--json", "--no-browser").out)
        assert set(told) == {"url", "expires_at"}
        assert daemon.ask("POST", "/v1/session", {"code": told["url"].split("#code=")[1]}).status == 204
        silent = program("ui", BROWSER="", DISPLAY="", WAYLAND_DISPLAY="")
        assert silent.code == 0
        assert "open this address yourself" in silent.err


def test_kawai_ui_of_another_kawai_needs_its_admins_token(tmp_path: Path) -> None:
    there, here = Program(tmp_path / "there"), Program(tmp_path / "here")
    with serving(there, "--auth") as daemon:
        for role, signs_in in (("--admin", True), (None, False)):
            token = json.loads(there("tokens", "create", "--json", *filter(None, [role])).out)["token"]
            ended = here("ui", "--no-browser", "--server", daemon.url, KAWAI_TOKEN=token)
            assert (ended.code, "#code=" in ended.out) == (0, signs_in), ended
            assert token not in ended.out + ended.err


def test_kawai_ui_without_a_server_says_so(tmp_path: Path) -> None:
    ended = Program(tmp_path)("ui", "--no-browser", "--json")
    assert (ended.code, ended.error["code"], ended.out) == (9, "no_server", "")
    assert "kawai serve" in ended.error["hint"]
