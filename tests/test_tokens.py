"""Tokens: made, shown once, listed, revoked and checked, by the command line and by a server beside it."""

import base64
import http.client
import json
import os
import random
import re
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from kawai_tools.files import Lock
from tests.program import KAWAI, Daemon, Ended, Program, Reply, serving

ROW = ["id", "name", "role", "created_at", "expires_at", "last_used"]
CREATED = [*ROW, "token"]
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
MAKER = """
import sys
from pathlib import Path
from kawai_tools.tokens import Tokens
tokens = Tokens(Path(sys.argv[1]))
for number in range(int(sys.argv[2])):
    kept, gone = (tokens.create(role="user", name=f"{sys.argv[3]} {number}", lifetime=None) for _ in "ab")
    tokens.revoke(gone.id)
    print(kept.id, gone.id, flush=True)
"""


def home(cli: Program) -> Path:
    return Path(cli.environ["KAWAI_HOME"])


def tokens_file(cli: Program) -> Path:
    return home(cli) / "tokens.json"


def create(cli: Program, *args: str) -> dict[str, Any]:
    ended = cli("tokens", "create", "--json", *args)
    assert (ended.code, ended.err) == (0, ""), ended
    made: dict[str, Any] = json.loads(ended.out)
    return made


def listed(cli: Program) -> list[dict[str, Any]]:
    ended = cli("tokens", "list", "--json")
    assert (ended.code, ended.err) == (0, ""), ended
    rows: list[dict[str, Any]] = json.loads(ended.out)
    return rows


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def rewrite(cli: Program, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change what the file says of the tokens, as if it had been written so."""
    path = tokens_file(cli)
    content = json.loads(path.read_text())
    change(content["tokens"])
    other = path.with_name("other")
    other.write_text(json.dumps(content))
    other.chmod(0o600)
    other.replace(path)


def refused(reply: Reply, code: str, status: int = 401) -> bool:
    assert (reply.status, reply.error["code"]) == (status, code), reply
    assert list(reply.error) == ["code", "type", "message", "hint"]
    assert ("www-authenticate" in reply.headers) == (status == 401)
    return True


def await_true(condition: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.02)


# The command line


def test_a_token_is_shown_once_and_kept_hashed(kawai: Program) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    made = create(kawai, "--name", "laptop", "--expires", "30d")
    assert list(made) == CREATED
    assert (made["name"], made["role"], made["last_used"]) == ("laptop", "user", None)
    assert MOMENT.fullmatch(made["created_at"])
    began, ends = (datetime.fromisoformat(made[key]) for key in ("created_at", "expires_at"))
    assert before <= began <= datetime.now(UTC)
    assert ends - began == timedelta(days=30)
    secret = made.pop("token")
    assert listed(kawai) == [made]
    assert list(made) == ROW
    text = tokens_file(kawai).read_text()
    assert secret not in text
    assert secret.removeprefix("kawai_") not in text
    assert sha256(secret.encode()).hexdigest() in text


def test_a_token_has_256_bits(kawai: Program) -> None:
    made = [create(kawai)["token"].removeprefix("kawai_") for _ in range(2)]
    assert {len(base64.urlsafe_b64decode(each + "=")) for each in made} == {32}
    assert made[0] != made[1]


def test_what_people_see(kawai: Program) -> None:
    none = kawai("tokens", "list")
    assert (none.code, none.out) == (0, "")
    assert "kawai tokens create" in none.err
    made = kawai("tokens", "create", "--admin")
    assert made.code == 0
    (token,) = made.out.splitlines()
    assert re.fullmatch(r"kawai_[A-Za-z0-9_-]{43}", token)
    assert "admin token" in made.err
    assert token not in made.err
    quiet = kawai("tokens", "create", "--name", "\u4e2d\u6587", "--expires", "90m", "--quiet")
    assert (quiet.code, quiet.err, len(quiet.out.splitlines())) == (0, "", 1)
    shown = kawai("tokens", "list")
    heading, first, second = shown.out.splitlines()
    assert heading.split() == ["ID", "NAME", "ROLE", "CREATED", "EXPIRES", "USED"]
    assert "never" in first
    assert "\u4e2d\u6587" in second
    assert token not in shown.out
    (first_id, _) = (row["id"] for row in listed(kawai))
    gone = kawai("tokens", "revoke", first_id)
    assert (gone.code, gone.out) == (0, "")
    assert first_id in gone.err
    assert first_id not in kawai("tokens", "list").out


def test_revoke_prints_nothing_with_json_and_only_once(kawai: Program) -> None:
    made = create(kawai)
    assert kawai("tokens", "revoke", made["id"], "--json") == Ended(0, "", "")
    again = kawai("tokens", "revoke", made["id"], "--json")
    assert (again.code, again.out, again.error["code"]) == (3, "", "token_not_found")
    assert listed(kawai) == []


@pytest.mark.parametrize("words", ["", " ", "x", "../x", "a" * 5000, "\x1b[31m", "\u202e"])
def test_what_is_no_id_is_not_found(kawai: Program, words: str) -> None:
    ended = kawai("tokens", "revoke", words, "--json")
    assert (ended.code, ended.error["code"]) == (3, "token_not_found")
    assert len(ended.err) < 500
    assert "\x1b" not in kawai("tokens", "revoke", words).err


def test_a_token_that_is_taken_for_its_id_is_not_repeated(kawai: Program) -> None:
    secret = create(kawai)["token"]
    ended = kawai("tokens", "revoke", secret)
    assert ended.code == 3
    assert secret[:24] not in ended.out + ended.err


@pytest.mark.parametrize("name", ["", "   ", "a" * 101, "two\nlines", "\x1b[31m", "nul\x7f", "\u202eabc"])
def test_a_name_that_makes_no_sense(kawai: Program, name: str) -> None:
    ended = kawai("tokens", "create", "--json", "--name", name)
    assert (ended.code, ended.out, ended.error["code"]) == (2, "", "invalid_request")
    assert not tokens_file(kawai).exists()


@pytest.mark.parametrize(
    "words",
    ["", "0d", "-1d", "30", "d", "1y", "1s", "1.5d", "1e3d", "30d30d", "99999999999w", "999999w", "\u0663d"],
)
def test_a_lifetime_that_makes_no_sense(kawai: Program, words: str) -> None:
    ended = kawai("tokens", "create", "--json", f"--expires={words}")
    assert (ended.code, ended.out, ended.error["code"]) == (2, "", "invalid_request")
    assert "30d" in ended.error["hint"]
    assert not tokens_file(kawai).exists()


@pytest.mark.parametrize(
    ("words", "lifetime"),
    [
        ("90m", timedelta(minutes=90)),
        ("12h", timedelta(hours=12)),
        ("4W", timedelta(weeks=4)),
        ("3650d", timedelta(days=3650)),
    ],
)
def test_lifetimes(kawai: Program, words: str, lifetime: timedelta) -> None:
    made = create(kawai, "--expires", words)
    ends, began = (datetime.fromisoformat(made[key]) for key in ("expires_at", "created_at"))
    assert ends - began == lifetime


@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o277])
def test_the_file_is_private_whatever_the_umask(kawai: Program, mask: int) -> None:
    home(kawai).mkdir()
    before = os.umask(mask)
    try:
        create(kawai)
    finally:
        os.umask(before)
    assert mode(tokens_file(kawai)) == 0o600


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o610, 0o602, 0o644])
def test_a_file_that_others_can_use_is_refused_with_what_mends_it(kawai: Program, bits: int) -> None:
    create(kawai)
    path = tokens_file(kawai)
    path.chmod(bits)
    before = path.read_bytes()
    for words in (("list",), ("create",), ("revoke", "x")):
        ended = kawai("tokens", *words)
        assert (ended.code, ended.out) == (9, "")
        assert f"chmod 600 {path}" in ended.err
    started = kawai("serve", "--port", "0", "--auth", "--json")
    assert (started.code, started.error["code"]) == (9, "exposed_secret")
    assert (path.read_bytes(), mode(path)) == (before, bits)
    path.chmod(0o600)
    assert len(listed(kawai)) == 1


def test_doctor_tells_of_a_file_that_others_can_read(kawai: Program) -> None:
    create(kawai)
    path = tokens_file(kawai)
    path.chmod(0o644)
    ended = kawai("doctor", "--json", "--offline")
    assert ended.code == 1
    bad = [each for each in json.loads(ended.out) if each["status"] == "fail"]
    assert [each["fix"] for each in bad if f"chmod 600 {path}" in each["fix"]], bad
    path.chmod(0o600)
    assert kawai("doctor", "--json", "--offline").code == 0
    path.write_text("garbage")
    assert str(path) in kawai("doctor", "--offline").out


BROKEN = {
    "empty": b"",
    "garbage": b"\x00\xff\xfe garbage",
    "cut": b'{"tokens":[{"id":"ab","na',
    "a list": b"[]",
    "null": b"null",
    "a row of nulls": b'{"tokens":[null]}',
    "deep": b"[" * 100_000,
    "a role of nobody": b'{"tokens":[{"id":"a","name":null,"role":"root","created_at":"2026-01-01T00:00:00Z",'
    b'"expires_at":null,"last_used":null,"sha256":"00"}],"format":1}',
    "UTF-16": '{"tokens":[]}'.encode("utf-16"),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_said_and_left_alone(kawai: Program, content: bytes) -> None:
    path = tokens_file(kawai)
    home(kawai).mkdir()
    path.write_bytes(content)
    path.chmod(0o600)
    for words in (("list",), ("create",), ("revoke", "x")):
        ended = kawai("tokens", *words, "--json")
        assert (ended.code, ended.error["code"]) == (7, "broken_state")
        assert str(path) in ended.error["message"]
        assert ended.error["hint"]
    assert kawai("serve", "--port", "0", "--auth").code == 7
    assert path.read_bytes() == content
    path.unlink()
    create(kawai)


ODD: dict[str, dict[str, object]] = {
    "a digest of other letters": {"sha256": "\u00e9" * 64},
    "an expiry without a zone": {"expires_at": "2030-01-01T00:00:00"},
    "an expiry long ago without a zone": {"expires_at": "1999-01-01T00:00:00"},
    "a revocation without a zone": {"revoked_at": "2026-01-01T00:00:00"},
    "a last use without a zone": {"last_used": "2026-01-01T00:00:00"},
    "a time of creation that is a number": {"created_at": 7},
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
def test_an_odd_row_is_no_bug(kawai: Program, odd: dict[str, object]) -> None:
    made = [create(kawai, "--admin") for _ in range(2)]
    with serving(kawai, "--auth") as daemon:
        rewrite(kawai, lambda rows: rows[0].update(odd))
        lock = Lock(home(kawai) / "tokens.lock")
        assert lock.acquire()  # so that no use is noted, which would mend the row
        replies = [daemon.ask("GET", "/v1/tokens", headers=bearer(each["token"])) for each in made]
        replies.append(daemon.ask("GET", "/v1/models", headers=bearer("kawai_wrong")))
        lock.release()
        assert {reply.status for reply in replies} <= {200, 401, 422}, [each.body for each in replies]
    for words in (("list",), ("create",), ("revoke", made[1]["id"])):
        ended = kawai("tokens", *words, "--json")
        assert ended.code in {0, 7}, ended


def test_a_directory_in_its_place_is_called_one(kawai: Program) -> None:
    tokens_file(kawai).mkdir(parents=True)
    for words in (("list",), ("create",)):
        ended = kawai("tokens", *words, "--json")
        assert ended.code in {7, 9}
        assert "chmod" not in (ended.error["hint"] or "")


def test_a_fifo_in_its_place_does_not_hang(kawai: Program) -> None:
    home(kawai).mkdir()
    os.mkfifo(tokens_file(kawai), 0o600)
    process = kawai.start("tokens", "list", "--json")
    try:
        _, err = process.communicate(timeout=5)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode in {7, 9}, err


def test_a_link_to_itself_in_its_place_is_no_bug(kawai: Program) -> None:
    home(kawai).mkdir()
    tokens_file(kawai).symlink_to(tokens_file(kawai))
    ended = kawai("tokens", "list", "--json")
    assert ended.code in {7, 9}, ended


def test_ten_thousand_revoked_tokens_do_not_keep_new_ones_from_being_made(kawai: Program) -> None:
    create(kawai)

    def fill(rows: list[dict[str, Any]]) -> None:
        long_ago = (datetime.now(UTC) - timedelta(days=100)).isoformat()
        recent = (datetime.now(UTC) - timedelta(days=1)).isoformat()
        first = rows.pop()
        rows += [
            {**first, "id": f"{n:012x}", "revoked_at": recent if n % 2 else long_ago} for n in range(10_000)
        ]

    rewrite(kawai, fill)
    ended = kawai("tokens", "create", "--json")
    assert ended.code == 0, ended
    assert len(listed(kawai)) == 1


def test_a_revoked_token_is_remembered_for_a_while(kawai: Program) -> None:
    old, new = create(kawai), create(kawai)
    for each in (old, new):
        assert kawai("tokens", "revoke", each["id"]).code == 0
    long_ago = (datetime.now(UTC) - timedelta(days=100)).isoformat()
    rewrite(kawai, lambda rows: rows[0].update(revoked_at=long_ago))
    create(kawai)
    with serving(kawai, "--auth") as daemon:
        assert refused(daemon.ask("GET", "/v1/models", headers=bearer(old["token"])), "invalid_token")
        assert refused(daemon.ask("GET", "/v1/models", headers=bearer(new["token"])), "token_revoked")


# What the disk does


@pytest.fixture
def unprivileged(kawai: Program) -> Iterator[Callable[..., Ended]]:
    """Kawai as somebody whom modes stop, also where tests run as root."""

    yield kawai.unprivileged
    home(kawai).chmod(0o755)
    for path in home(kawai).iterdir():
        path.chmod(0o755 if path.is_dir() else 0o600)


def test_a_home_that_cannot_be_written(kawai: Program, unprivileged: Callable[..., Ended]) -> None:
    made = create(kawai)
    before = tokens_file(kawai).read_bytes()
    home(kawai).chmod(0o555)
    assert [row["id"] for row in json.loads(unprivileged("tokens", "list", "--json").out)] == [made["id"]]
    for words in (("create",), ("revoke", made["id"])):
        ended = unprivileged("tokens", *words, "--json")
        assert (ended.code, ended.out, ended.error["code"]) == (9, "", "home_not_writable")
    assert tokens_file(kawai).read_bytes() == before


@pytest.mark.parametrize("of_home", [True, False])
def test_what_cannot_be_read(kawai: Program, unprivileged: Callable[..., Ended], *, of_home: bool) -> None:
    create(kawai)
    (home(kawai) if of_home else tokens_file(kawai)).chmod(0)
    expected = (2, "invalid_config") if of_home else (9, "home_not_writable")  # config.toml is read first
    for words in (("list",), ("create",), ("revoke", "x")):
        ended = unprivileged("tokens", *words, "--json")
        assert (ended.code, ended.error["code"]) == expected, ended


def makers(path: Path, rounds: int, number: int) -> list[subprocess.Popen[str]]:
    return [
        subprocess.Popen(
            [KAWAI[0], "-c", MAKER, str(path), str(rounds), str(n)], stdout=subprocess.PIPE, text=True
        )
        for n in range(number)
    ]


def test_eight_processes_lose_nothing(kawai: Program) -> None:
    processes = makers(tokens_file(kawai), 6, 8)
    lines = [line.split() for process in processes for line in process.communicate(timeout=60)[0].split("\n")]
    pairs = [line for line in lines if line]
    assert {process.returncode for process in processes} == {0}
    assert len(pairs) == 48
    assert {row["id"] for row in listed(kawai)} == {kept for kept, _ in pairs}
    written = json.loads(tokens_file(kawai).read_text())["tokens"]
    assert {row["id"] for row in written if row.get("revoked_at")} == {gone for _, gone in pairs}


def test_killed_while_creating_leaves_the_old_file_or_the_new(kawai: Program) -> None:
    chance = random.Random(7)  # noqa: S311 - a schedule, not a secret
    known: set[str] = set()
    for _ in range(12):
        (maker,) = makers(tokens_file(kawai), 1000, 1)
        assert maker.stdout
        said = [maker.stdout.readline().split()[0] for _ in range(2)]
        time.sleep(chance.random() / 50)
        maker.send_signal(signal.SIGKILL)
        rest = maker.communicate()[0].split("\n")[:-1]
        known |= {*said, *(line.split()[0] for line in rest if len(line.split()) == 2)}
        rows = json.loads(tokens_file(kawai).read_text())["tokens"]
        assert known <= {row["id"] for row in rows}
        assert mode(tokens_file(kawai)) == 0o600
    create(kawai)
    for path in home(kawai).iterdir():
        if path.name.endswith(".partial"):
            assert mode(path) == 0o600


# The routes


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, str]]:
    """A server that asks for tokens, and an admin's."""
    program = Program(tmp_path_factory.mktemp("tokens"))
    admin = create(program, "--admin")["token"]
    with serving(program, "--auth") as daemon:
        yield daemon, admin
    log = daemon.home / "logs" / "kawai.log"
    assert not log.exists(), log.read_text()


def test_the_routes_have_the_shapes_of_the_contract(served: tuple[Daemon, str]) -> None:
    daemon, admin = served
    wanted = {"name": "phone", "role": "admin", "expires": "30d"}
    made = daemon.ask("POST", "/v1/tokens", wanted, bearer(admin))
    assert made.status == 201
    assert made.headers["content-type"] == "application/json"
    assert list(made.json) == CREATED
    assert (made.json["name"], made.json["role"], made.json["last_used"]) == ("phone", "admin", None)
    shown = daemon.ask("GET", "/v1/tokens", headers=bearer(admin))
    assert shown.status == 200
    assert made.json["token"].encode() not in shown.body
    assert [list(row) for row in shown.json] == [ROW] * len(shown.json)
    assert shown.json[-1] == {key: made.json[key] for key in ROW}
    gone = daemon.ask("DELETE", f"/v1/tokens/{made.json['id']}", headers=bearer(admin))
    assert (gone.status, gone.body) == (204, b"")
    again = daemon.ask("DELETE", f"/v1/tokens/{made.json['id']}", headers=bearer(admin))
    assert refused(again, "token_not_found", 404)
    left = daemon.ask("GET", "/v1/tokens", headers=bearer(admin)).json
    assert [row["id"] for row in left] == [row["id"] for row in shown.json[:-1]]


@pytest.mark.parametrize("body", [None, {}, {"name": None, "expires": None}, {"role": "user"}])
def test_all_keys_may_be_left_out(served: tuple[Daemon, str], body: object) -> None:
    daemon, admin = served
    made = daemon.ask("POST", "/v1/tokens", body, bearer(admin))
    assert made.status == 201
    assert [made.json[key] for key in ("name", "role", "expires_at")] == [None, "user", None]


NONSENSE: tuple[object, ...] = (
    {"role": "root"},
    {"role": None},
    {"role": "Admin"},
    {"name": ""},
    {"name": "a" * 101},
    {"name": "a\nb"},
    {"name": 7},
    {"expires": 30},
    {"expires": "soon"},
    {"expires": "0d"},
    {"expires": ""},
    {"expires": "999999w"},
    {"admin": True},
    {"token": "kawai_mine"},
    {"id": "x"},
    {"expires_at": "2030-01-01T00:00:00Z"},
    [],
    "user",
    b'{"name":"\\ud800"}',
)


@pytest.mark.parametrize("body", NONSENSE, ids=str)
def test_bodies_that_make_no_sense(served: tuple[Daemon, str], body: object) -> None:
    daemon, admin = served
    before = (daemon.home / "tokens.json").read_text().count('"id"')
    headers = bearer(admin) | {"Content-Type": "application/json"}
    reply = daemon.ask("POST", "/v1/tokens", body, headers)
    assert reply.status == 400, reply
    assert reply.error["code"] in {"invalid_request", "invalid_body"}
    assert (daemon.home / "tokens.json").read_text().count('"id"') == before


@pytest.mark.parametrize("words", ["x", "%2e%2e", "%00", "a" * 5000, "%F0%9F%92%A9", "a%0d%0ab", "a%2Fb"])
def test_what_is_no_id_is_404(served: tuple[Daemon, str], words: str) -> None:
    daemon, admin = served
    reply = daemon.ask("DELETE", f"/v1/tokens/{words}", headers=bearer(admin))
    assert reply.status == 404
    assert len(reply.body) < 700


def test_a_token_in_the_place_of_an_id_is_not_repeated(served: tuple[Daemon, str]) -> None:
    daemon, admin = served
    reply = daemon.ask("DELETE", f"/v1/tokens/{admin}", headers=bearer(admin))
    assert reply.status == 404
    assert admin[:24].encode() not in reply.body


def test_the_command_line_counts_at_once_on_a_running_server(served: tuple[Daemon, str]) -> None:
    daemon, _ = served
    for role in ("--admin", "--name=user"):
        made = create(daemon.program, role)
        path = "/v1/tokens" if role == "--admin" else "/v1/models"
        assert daemon.ask("GET", path, headers=bearer(made["token"])).status == 200
        assert daemon.program("tokens", "revoke", made["id"]).code == 0
        assert refused(daemon.ask("GET", path, headers=bearer(made["token"])), "token_revoked")


def test_a_user_may_neither_see_nor_make_nor_revoke(served: tuple[Daemon, str]) -> None:
    daemon, _ = served
    user = create(daemon.program)
    for method, path in (
        ("GET", "/v1/tokens"),
        ("POST", "/v1/tokens"),
        ("DELETE", f"/v1/tokens/{user['id']}"),
    ):
        assert refused(daemon.ask(method, path, headers=bearer(user["token"])), "admin_required", 403)
        assert refused(daemon.ask(method, path), "token_required")
    assert daemon.ask("GET", "/v1/models", headers=bearer(user["token"])).status == 200


def test_each_refusal_has_its_code(served: tuple[Daemon, str]) -> None:
    daemon, _ = served
    made = create(daemon.program, "--expires", "90m")
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()

    def expire(rows: list[dict[str, Any]]) -> None:
        (mine,) = (row for row in rows if row["id"] == made["id"])
        mine["expires_at"] = past

    rewrite(daemon.program, expire)
    for value, code in (
        (made["token"], "token_expired"),
        (made["token"][:-1], "invalid_token"),
        (made["token"].swapcase(), "invalid_token"),
        ("kawai_" + "A" * 43, "invalid_token"),
        (sha256(made["token"].encode()).hexdigest(), "invalid_token"),
        (made["id"], "invalid_token"),
        ("a b", "invalid_token"),
        ("", "invalid_token"),
    ):
        reply = daemon.ask("GET", "/v1/models", headers=bearer(value))
        assert refused(reply, code)
        assert reply.headers["www-authenticate"].startswith("Bearer ")
        assert made["token"][:24] not in reply.body.decode()
    assert daemon.program("tokens", "revoke", made["id"]).code == 0
    assert refused(daemon.ask("GET", "/v1/models", headers=bearer(made["token"])), "token_revoked")


def test_an_expired_token_is_listed_as_such(kawai: Program) -> None:
    made = create(kawai, "--expires", "90m")
    past = "2001-01-01T00:00:00Z"
    rewrite(kawai, lambda rows: rows[0].update(expires_at=past))
    (row,) = listed(kawai)
    assert (row["id"], row["expires_at"]) == (made["id"], past)
    assert "expired" in kawai("tokens", "list").out


def test_the_clock_decides(kawai: Program) -> None:
    made = create(kawai, "--expires", "90m")
    soon = (datetime.now(UTC) + timedelta(seconds=1)).replace(microsecond=0)
    rewrite(kawai, lambda rows: rows[0].update(expires_at=soon.isoformat()))
    with serving(kawai, "--strict") as daemon:

        def is_over() -> bool:
            reply = daemon.ask("GET", "/v1/models", headers=bearer(made["token"]))
            return reply.status == 401 and refused(reply, "token_expired")

        await_true(is_over)
        assert datetime.now(UTC) >= soon


def test_the_last_use_is_told_at_once_and_written_down_soon(served: tuple[Daemon, str]) -> None:
    daemon, admin = served
    made = create(daemon.program, "--name", "used")
    before = datetime.now(UTC).replace(microsecond=0)
    assert daemon.ask("GET", "/v1/models", headers=bearer(made["token"])).status == 200
    rows = daemon.ask("GET", "/v1/tokens", headers=bearer(admin)).json
    (told,) = (row["last_used"] for row in rows if row["id"] == made["id"])
    assert MOMENT.fullmatch(told)
    assert before <= datetime.fromisoformat(told) <= datetime.now(UTC)

    def is_written() -> bool:
        (written,) = (row["last_used"] for row in listed(daemon.program) if row["id"] == made["id"])
        return bool(written == told)

    await_true(is_written)


def test_a_refused_use_is_no_use(served: tuple[Daemon, str]) -> None:
    daemon, admin = served
    made = create(daemon.program)
    assert daemon.program("tokens", "revoke", made["id"]).code == 0
    assert daemon.ask("GET", "/v1/models", headers=bearer(made["token"])).status == 401
    assert daemon.ask("GET", "/v1/tokens", headers=bearer(admin)).status == 200
    rows = json.loads((daemon.home / "tokens.json").read_text())["tokens"]
    (mine,) = (row for row in rows if row["id"] == made["id"])
    assert mine["last_used"] is None


def test_many_uses_write_the_file_rarely(kawai: Program) -> None:
    made = create(kawai)
    with serving(kawai, "--strict") as daemon:
        inodes = set()
        connection = daemon.connect()
        for _ in range(300):
            connection.request("GET", "/v1/models", headers=bearer(made["token"]))
            assert _finished(connection.getresponse()) == 200
            inodes.add((tokens_file(kawai).stat().st_ino, tokens_file(kawai).stat().st_mtime_ns))
        connection.close()
        await_true(lambda: listed(kawai)[0]["last_used"] is not None)
        assert len(inodes) <= 3


def _finished(answer: http.client.HTTPResponse) -> int:
    answer.read()
    return answer.status


def test_a_running_server_refuses_a_file_that_others_can_read(kawai: Program) -> None:
    made = create(kawai, "--admin")
    path = tokens_file(kawai)
    with serving(kawai, "--auth") as daemon:
        path.chmod(0o644)
        reply = daemon.ask("GET", "/v1/tokens", headers=bearer(made["token"]))
        assert (reply.status, reply.error["code"]) == (503, "exposed_secret")
        assert f"chmod 600 {path}" in reply.error["hint"]
        assert daemon.ask("GET", "/healthz").status == 200
        assert daemon.ask("POST", "/v1/models/index").status == 401
        path.chmod(0o600)
        assert daemon.ask("GET", "/v1/tokens", headers=bearer(made["token"])).status == 200


def test_a_running_server_says_that_the_file_is_broken_and_goes_on_when_it_is_not(kawai: Program) -> None:
    made = create(kawai, "--admin")
    path = tokens_file(kawai)
    good = path.read_bytes()
    with serving(kawai, "--auth") as daemon:
        for content in (b"", b"garbage"):
            path.write_bytes(content)
            reply = daemon.ask("GET", "/v1/tokens", headers=bearer(made["token"]))
            assert (reply.status, reply.error["code"]) == (422, "broken_state")
            assert daemon.ask("GET", "/v1/models").status == 200
        path.unlink()
        assert refused(daemon.ask("GET", "/v1/tokens", headers=bearer(made["token"])), "invalid_token")
        path.write_bytes(good)
        path.chmod(0o600)
        assert daemon.ask("GET", "/v1/tokens", headers=bearer(made["token"])).status == 200
    assert not (home(kawai) / "logs" / "kawai.log").exists()


def test_a_server_whose_home_cannot_be_written_still_checks(kawai: Program) -> None:
    made = create(kawai, "--admin")
    with serving(kawai, "--auth") as daemon:
        aside = home(kawai) / "tokens.lock"
        aside.unlink()
        aside.mkdir()  # what keeps it from being written, also where tests run as root
        assert daemon.ask("GET", "/v1/tokens", headers=bearer(made["token"])).status == 200
        reply = daemon.ask("POST", "/v1/tokens", {}, bearer(made["token"]))
        assert (reply.status, reply.error["code"]) == (503, "home_not_writable")
        aside.rmdir()
        assert daemon.ask("POST", "/v1/tokens", {}, bearer(made["token"])).status == 201
    assert not (home(kawai) / "logs" / "kawai.log").exists()


def test_a_token_is_kept_by_no_cache(kawai: Program) -> None:
    with serving(kawai) as daemon:
        assert daemon.ask("POST", "/v1/tokens", {}).headers["cache-control"] == "no-store"
        assert "cache-control" not in daemon.ask("GET", "/v1/tokens").headers


def test_tokens_that_expired_long_ago_are_forgotten(kawai: Program) -> None:
    for lifetime in ("1h", "1d"):
        create(kawai, "--expires", lifetime)
    long_ago = (datetime.now(UTC) - timedelta(days=100)).isoformat()
    rewrite(kawai, lambda rows: rows[0].update(expires_at=long_ago))
    made = create(kawai)
    rows = json.loads(kawai("tokens", "list", "--json").out)
    assert (len(rows), rows[-1]["id"]) == (2, made["id"])
