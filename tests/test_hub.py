"""The local hub speaks the hub's protocol to its own client, and misbehaves as it is told."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import signal
import socket
import subprocess
import threading
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import huggingface_hub
import pytest
from huggingface_hub import errors

from tests.hub import Fault, LocalHub
from tests.hub.catalogue import KINDS, parse_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPO, MODEL = "me/tiny", "tiny.Q4_0.gguf"
DATA = bytes(range(256)) * 400
SIZE = len(DATA)
README = b"# tiny\n"
CAP = 1 << 20


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub") as hub:
        hub.add_file(REPO, "README.md", README)
        hub.add_file(REPO, MODEL, DATA)
        yield hub


@pytest.fixture
def client(hub: LocalHub) -> huggingface_hub.HfApi:
    return huggingface_hub.HfApi(endpoint=hub.endpoint, token=False)


@pytest.fixture
def download(hub: LocalHub, tmp_path: Path) -> Callable[..., Path]:
    def fetch(path: str = MODEL, revision: str | None = None, token: str | None = None) -> Path:
        cache = tmp_path / f"cache-{len(hub.requests)}"
        return Path(
            huggingface_hub.hf_hub_download(
                REPO, path, revision=revision, token=token or False, endpoint=hub.endpoint, cache_dir=cache
            )
        )

    return fetch


class Reply(NamedTuple):
    """What a bare client saw; `broken` names the exception that ended the body."""

    status: int
    headers: dict[str, str]
    body: bytes
    broken: str


def ask(url: str, method: str = "GET", headers: dict[str, str] | None = None, *, timeout: float = 5) -> Reply:
    """Send one request without following redirects, and read at most `CAP` bytes."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    body, broken = b"", ""
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target, headers=headers or {})
        with connection.getresponse() as response:
            try:
                while len(body) < CAP and (piece := response.read1(1 << 16)):
                    body += piece
                if len(body) < CAP and response.length:
                    broken = "short"
            except (OSError, http.client.HTTPException) as error:
                broken = type(error).__name__
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, body, broken)
    except (OSError, http.client.HTTPException) as error:
        return Reply(0, {}, b"", type(error).__name__)
    finally:
        connection.close()


# The protocol


def test_huggingface_hub_downloads_byte_exact(hub: LocalHub, download: Callable[..., Path]) -> None:
    path = download()
    assert path.read_bytes() == DATA
    assert path.resolve().name == sha256(DATA).hexdigest()
    assert download("README.md").read_bytes() == README
    assert {r.server for r in hub.requests if r.sent_bytes == SIZE} == {"cdn"}


def test_tokens_reach_the_hub_and_never_the_cdn(hub: LocalHub, download: Callable[..., Path]) -> None:
    hub.gate(REPO)
    hub.add_token("hf_good", accepts={REPO})
    download(token="hf_good")
    seen = {r.server: r.headers.get("authorization") for r in hub.requests}
    assert seen == {"hub": "Bearer hf_good", "cdn": None}


def test_gated_and_private_repositories_refuse_as_the_hub_does(
    hub: LocalHub, download: Callable[..., Path], client: huggingface_hub.HfApi, tmp_path: Path
) -> None:
    hub.add_token("hf_other")
    hub.gate(REPO)
    assert client.model_info(REPO).gated == "manual"
    for token, status in ((False, 401), ("hf_other", 403)):
        with pytest.raises(errors.GatedRepoError) as refused:
            client.hf_hub_download(REPO, MODEL, token=token, cache_dir=tmp_path / "refused")
        assert refused.value.response.status_code == status
    hub.make_private(REPO)
    for token, status in ((False, 401), ("hf_other", 404)):
        with pytest.raises(errors.RepositoryNotFoundError) as missing:
            client.model_info(REPO, token=token)
        assert missing.value.response.status_code == status
    hub.add_token("hf_other", sees={REPO}, accepts={REPO})
    assert download(token="hf_other").read_bytes() == DATA
    hub.revoke_token("hf_other")
    with pytest.raises(errors.HfHubHTTPError, match="401") as invalid:
        client.model_info(REPO, token="hf_other")
    assert not isinstance(invalid.value, errors.RepositoryNotFoundError)


def test_missing_things_are_named(client: huggingface_hub.HfApi) -> None:
    with pytest.raises(errors.RepositoryNotFoundError):
        client.model_info("me/none")
    with pytest.raises(errors.RevisionNotFoundError):
        client.model_info(REPO, revision="none")
    with pytest.raises(errors.RemoteEntryNotFoundError):
        client.get_hf_file_metadata(url=f"{client.endpoint}/{REPO}/resolve/main/none.gguf")


def test_listings_are_paged(hub: LocalHub, client: huggingface_hub.HfApi) -> None:
    hub.page_size = 3
    for number in range(7):
        hub.add_file(REPO, f"shards/part-{number}.gguf", bytes([number]) * 10)
    files = [item for item in client.list_repo_tree(REPO, recursive=True) if hasattr(item, "blob_id")]
    assert [file.path for file in files][:2] == ["README.md", "shards/part-0.gguf"]
    assert len(files) == 9
    large = next(file for file in files if file.path == MODEL)
    assert large.lfs is not None
    assert (large.size, large.lfs.sha256, large.lfs.size) == (SIZE, sha256(DATA).hexdigest(), SIZE)
    assert len([r for r in hub.requests if "/tree/" in r.path]) == 4
    assert [item.path for item in client.list_repo_tree(REPO)] == ["README.md", "shards", MODEL]
    inside = list(client.list_repo_tree(REPO, "shards", expand=True))
    assert len(inside) == 7
    assert inside[0].last_commit.title == "Upload shards/part-0.gguf"


def test_commits_tags_and_branches_coexist(
    hub: LocalHub, client: huggingface_hub.HfApi, download: Callable[..., Path]
) -> None:
    old = hub.tag(REPO, "v1")
    new = hub.add_file(REPO, MODEL, DATA + b"new")
    hub.add_file(REPO, MODEL, b"draft", revision="next/try")
    last = hub.remove_file(REPO, MODEL)
    wanted = {old: DATA, "v1": DATA, new: DATA + b"new", "next/try": b"draft"}
    assert {revision: download(revision=revision).read_bytes() for revision in wanted} == wanted
    refs = client.list_repo_refs(REPO)
    assert {ref.name: ref.target_commit for ref in refs.branches}["main"] == last
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": old}
    info = client.model_info(REPO, revision=old, files_metadata=True)
    assert info.sha == old
    assert [(file.rfilename, file.size) for file in info.siblings] == [("README.md", 7), (MODEL, SIZE)]


def test_blobs_and_trees_have_the_names_git_gives_them(hub: LocalHub, tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, check=True, cwd=work, text=True
        ).stdout

    work = tmp_path / "work"
    (work / "a" / "b").mkdir(parents=True)
    for name in ("a/b.txt", "a/b/c.txt", "a/b0"):
        (work / name).write_text(name)
        hub.add_file("me/git", name, work / name)
    git("init", "--quiet")
    git("add", ".")
    rows = json.loads(ask(f"{hub.endpoint}/api/models/me/git/tree/main?recursive=1").body)
    assert {row["path"]: row["oid"] for row in rows} == {
        "a": git("write-tree", "--prefix=a/").strip(),
        "a/b": git("write-tree", "--prefix=a/b/").strip(),
        **{name: git("hash-object", name).strip() for name in ("a/b.txt", "a/b/c.txt", "a/b0")},
    }


def test_a_head_names_size_digest_and_commit(hub: LocalHub) -> None:
    head = ask(hub.url(REPO, MODEL), "HEAD")
    assert head.status == 302
    assert head.headers["x-linked-size"] == str(SIZE)
    assert head.headers["x-linked-etag"] == f'"{sha256(DATA).hexdigest()}"'
    assert len(head.headers["x-repo-commit"]) == 40
    raw = ask(f"{hub.endpoint}/{REPO}/raw/main/{MODEL}").body.decode()
    assert f"oid sha256:{sha256(DATA).hexdigest()}\nsize {SIZE}\n" in raw
    for page in (f"{REPO}/blob/main/{MODEL}", REPO):
        assert ask(f"{hub.endpoint}/{page}").headers["content-type"].startswith("text/html")


def test_signed_urls_expire(hub: LocalHub) -> None:
    location = ask(hub.url(REPO, MODEL)).headers["location"]
    assert ask(location).body == DATA
    assert ask(location[:-1] + ("0" if location[-1] != "0" else "1")).status == 403
    hub.expire_urls()
    assert ask(location).status == 403
    hub.url_lifetime = -1
    assert ask(ask(hub.url(REPO, MODEL)).headers["location"]).status == 403


@pytest.mark.parametrize(
    ("asked", "status", "content", "body"),
    [
        ("bytes=0-9", 206, f"bytes 0-9/{SIZE}", DATA[:10]),
        ("bytes=100-", 206, f"bytes 100-{SIZE - 1}/{SIZE}", DATA[100:]),
        ("bytes=-5", 206, f"bytes {SIZE - 5}-{SIZE - 1}/{SIZE}", DATA[-5:]),
        ("bytes=10-99999999", 206, f"bytes 10-{SIZE - 1}/{SIZE}", DATA[10:]),
        (f"bytes={SIZE}-", 416, f"bytes */{SIZE}", None),
        ("bytes=9-3", 200, None, DATA),
        ("bytes=0-1,4-5", 200, None, DATA),
    ],
)
def test_ranges(hub: LocalHub, asked: str, status: int, content: str | None, body: bytes | None) -> None:
    reply = ask(hub.add_plain("dir/m.gguf", DATA), headers={"Range": asked})
    assert (reply.status, reply.headers.get("content-range")) == (status, content)
    assert body is None or reply.body == body


def test_if_range_guards_a_resume(hub: LocalHub) -> None:
    url = hub.add_plain("m.gguf", DATA)
    etag = ask(url, "HEAD").headers["etag"]
    resume = {"Range": "bytes=5-", "If-Range": etag}
    assert ask(url, headers=resume).status == 206
    assert ask(url, headers={"If-None-Match": etag}).status == 304
    hub.add_plain("m.gguf", DATA[::-1])
    assert ask(url, headers=resume).body == DATA[::-1]


def test_connections_are_kept_and_requests_recorded(hub: LocalHub) -> None:
    connection = http.client.HTTPConnection(urlsplit(hub.endpoint).netloc, timeout=5)
    for method in ("GET", "HEAD", "POST", "GET"):
        connection.request(method, f"/{REPO}/resolve/main/README.md?x=1")
        connection.getresponse().read()
        wire = connection.sock
    assert connection.sock is wire
    connection.close()
    seen = [(r.method, r.query, r.status, r.sent_bytes) for r in hub.requests]
    refused = ("POST", "x=1", 405, len("Method not allowed"))
    assert seen == [("GET", "x=1", 200, 7), ("HEAD", "x=1", 200, 0), refused, ("GET", "x=1", 200, 7)]
    hub.clear_requests()
    assert hub.requests == []


def test_who_reads_only_the_head_of_a_refusal_finds_it_recorded(hub: LocalHub) -> None:
    where = urlsplit(hub.endpoint)
    for count in range(1, 101):
        with socket.create_connection((where.hostname, where.port), 5) as connection:
            connection.sendall(f"POST /{REPO}/resolve/main/README.md HTTP/1.1\r\n\r\n".encode())
            assert connection.recv(12) == b"HTTP/1.1 405"
            assert len(hub.requests) == count


def test_a_file_is_served_from_disk(hub: LocalHub, tmp_path: Path, download: Callable[..., Path]) -> None:
    source = tmp_path / "big.bin"
    source.write_bytes(os.urandom(9 << 20))
    hub.add_file(REPO, "big.bin", source)
    assert download("big.bin").read_bytes() == source.read_bytes()
    hub.throttle = 200 << 20
    assert download("big.bin").read_bytes() == source.read_bytes()


# Misbehaviour

PART = {"Range": "bytes=100-999"}


@pytest.mark.parametrize(
    ("fault", "request_headers", "seen"),
    [
        (Fault.status(503), {}, lambda r: r.status == 503),
        (Fault.status(429, {"Retry-After": "86400"}), {}, lambda r: r.headers["retry-after"] == "86400"),
        (Fault.cut(0.4), {}, lambda r: r.broken == "short" and r.body == DATA[: SIZE * 4 // 10]),
        (Fault.cut(0), {}, lambda r: r.broken == "short" and r.headers["content-length"] == str(SIZE)),
        (Fault.cut(1000, reset=True), {}, lambda r: r.broken == "ConnectionResetError"),
        (Fault.cut(10), PART, lambda r: (r.status, r.body) == (206, DATA[100:110])),
        (
            Fault.truncate(500),
            {},
            lambda r: "content-length" not in r.headers and (r.body, r.broken) == (DATA[:500], ""),
        ),
        (Fault.ignore_range(), PART, lambda r: (r.status, r.body) == (200, DATA)),
        (Fault.no_ranges(), PART, lambda r: r.status == 200 and "accept-ranges" not in r.headers),
        (Fault.no_accept_ranges(), PART, lambda r: r.status == 206 and "accept-ranges" not in r.headers),
        (
            Fault.shift_range(-7),
            PART,
            lambda r: r.body == DATA[93:993] and r.headers["content-range"] == f"bytes 93-992/{SIZE}",
        ),
        (
            Fault.shift_range(lie=True),
            PART,
            lambda r: r.body == DATA[101:1001] and r.headers["content-range"] == f"bytes 100-999/{SIZE}",
        ),
        (Fault.short_range(300), PART, lambda r: (r.body, r.broken) == (DATA[100:400], "")),
        (Fault.no_content_range(), PART, lambda r: r.status == 206 and "content-range" not in r.headers),
        (Fault.range_refused(), PART, lambda r: r.headers["content-range"] == f"bytes */{SIZE}"),
        (
            Fault.surplus(9),
            {},
            lambda r: (len(r.body), r.headers["content-length"]) == (SIZE + 9, f"{SIZE + 9}"),
        ),
        (
            Fault.surplus(9, "chunked"),
            {},
            lambda r: len(r.body) == SIZE + 9 and "content-length" not in r.headers,
        ),
        (
            Fault.surplus(9, "close"),
            {},
            lambda r: len(r.body) == SIZE + 9 and "content-length" not in r.headers,
        ),
        (Fault.surplus(9, "length"), {}, lambda r: r.headers["content-length"] == str(SIZE)),
        (Fault.etag('"new"'), {}, lambda r: r.headers["etag"] == '"new"'),
        (Fault.etag('"new"'), {**PART, "If-Range": '"old"'}, lambda r: r.status == 200),
        (Fault.etag('"new"'), {**PART, "If-Range": '"new"'}, lambda r: r.status == 206),
        (Fault.weak_etag(), PART, lambda r: r.status == 206 and r.headers["etag"].startswith("W/")),
        (Fault.no_etag(), {}, lambda r: "etag" not in r.headers),
        (
            Fault.flip(50),
            {},
            lambda r: len(r.body) == SIZE and [i for i, b in enumerate(DATA) if r.body[i] != b] == [50],
        ),
        (Fault.flip(150), PART, lambda r: r.body[50] == DATA[150] ^ 0xFF),
        (Fault.login_page(), PART, lambda r: r.status == 200 and r.body.startswith(b"<!doctype html>")),
        (Fault.pointer(), {}, lambda r: sha256(DATA).hexdigest() in r.body.decode()),
        (Fault.endless(), {}, lambda r: len(r.body) >= 1 << 20 and "content-length" not in r.headers),
        (Fault.endless(chunked=False), {}, lambda r: int(r.headers["content-length"]) >= 1 << 50),
        (Fault.drip(60, after=3), {}, lambda r: (r.body, r.broken) == (DATA[:3], "TimeoutError")),
        (Fault.drip(0.001, after=SIZE - 3), {}, lambda r: (r.body, r.broken) == (DATA, "")),
        (Fault.silent(), {}, lambda r: (r.status, r.broken) == (0, "TimeoutError")),
        (Fault.silent(0.5), {}, lambda r: (r.body, r.broken) == (DATA[: SIZE // 2], "TimeoutError")),
        (
            Fault.gzip(),
            {},
            lambda r: r.headers["content-encoding"] == "gzip" and gzip.decompress(r.body) == DATA,
        ),
        (Fault.redirect("file:///x"), {}, lambda r: (r.status, r.headers["location"]) == (302, "file:///x")),
        (Fault.redirect_loop(), {}, lambda r: r.headers["location"] == "/files/m.gguf"),
        (Fault.disposition("x=../y"), {}, lambda r: r.headers["content-disposition"] == "x=../y"),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else "",
)
def test_faults_at_the_socket(
    hub: LocalHub, fault: Fault, request_headers: dict[str, str], seen: Callable[[Reply], bool]
) -> None:
    url = hub.add_plain("m.gguf", DATA)
    hub.misbehave(fault)
    quiet = fault.name in {"silent", "drip"}
    reply = ask(url, headers=request_headers, timeout=0.2 if quiet else 5)
    assert seen(reply), reply._replace(body=reply.body[:40])
    assert hub.wait_for(lambda requests: len(requests) == 1)
    assert hub.requests[0].status == reply.status
    hub.behave()
    assert ask(url).body == DATA


def test_faults_choose_what_they_strike(hub: LocalHub) -> None:
    url = hub.add_plain("m.gguf", DATA)
    hub.misbehave(Fault.status(500, server="hub", path="README", times=1), Fault.head_refused(server="cdn"))
    hub.misbehave(Fault.etag('"later"', skip=2), Fault.cut(10, times=1))
    assert [ask(hub.url(REPO, "README.md")).status for _ in range(2)] == [500, 200]
    assert ask(url, "HEAD").status == 405
    replies = [ask(url) for _ in range(3)]
    assert [len(reply.body) for reply in replies][1:] == [SIZE, SIZE]
    assert [reply.headers["etag"] == '"later"' for reply in replies][-2:] == [True, True]


def test_the_client_survives_a_cut_and_a_login_page_does_not_pass(
    hub: LocalHub, download: Callable[..., Path]
) -> None:
    hub.misbehave(Fault.cut(0.4, server="cdn", times=1))
    assert download().read_bytes() == DATA
    assert [r.sent_bytes for r in hub.requests if r.server == "cdn"] == [SIZE * 4 // 10, SIZE]
    hub.misbehave(Fault.login_page(server="cdn"))
    with pytest.raises(OSError, match="Consistency check failed"):
        download()


def test_signed_urls_expire_in_mid_file(hub: LocalHub) -> None:
    hub.misbehave(Fault.expire(100, server="cdn", times=1))
    location = ask(hub.url(REPO, MODEL)).headers["location"]
    assert ask(location).body == DATA[:100]
    assert ask(location, headers={"Range": "bytes=100-"}).status == 403
    fresh = ask(hub.url(REPO, MODEL)).headers["location"]
    assert ask(fresh, headers={"Range": "bytes=100-"}).body == DATA[100:]
    hub.misbehave(Fault.expire(skip=1))
    assert [ask(fresh).status for _ in range(2)] == [200, 403]


def test_a_redirect_keeps_what_the_hub_said_of_the_file(hub: LocalHub) -> None:
    hub.misbehave(Fault.redirect("http://2130706433:1/x", server="hub"))
    head = ask(hub.url(REPO, MODEL), "HEAD")
    assert head.headers["location"] == "http://2130706433:1/x"
    assert head.headers["x-linked-size"] == str(SIZE)


def test_servers_go_down_and_come_back_on_their_ports(hub: LocalHub) -> None:
    url = hub.add_plain("m.gguf", DATA)
    hub.down()
    assert {ask(url).broken, ask(hub.endpoint).broken} == {"ConnectionRefusedError"}
    hub.up("cdn")
    assert ask(url).body == DATA
    assert ask(hub.endpoint).broken == "ConnectionRefusedError"
    hub.misbehave(Fault.refuse(60, times=1))
    assert ask(url).broken in {"ConnectionResetError", "RemoteDisconnected"}
    assert hub.wait_for(lambda requests: requests[-1].status == 0)
    assert ask(url).broken == "ConnectionRefusedError"
    hub.up()
    assert ask(url).body == DATA


def test_stop_ends_answers_that_hang(tmp_path: Path) -> None:
    before = threading.active_count()
    hub = LocalHub(tmp_path).start()
    url = hub.add_plain("m.gguf", DATA)
    hub.misbehave(Fault.silent(path="m.gguf", times=1), Fault.drip(600))
    sockets = [http.client.HTTPConnection(urlsplit(url).netloc, timeout=5) for _ in range(3)]
    for connection in sockets:
        connection.request("GET", "/files/m.gguf")
    hub.stop()
    assert {ask(url).broken} == {"ConnectionRefusedError"}
    assert threading.active_count() <= before  # others' may have ended meanwhile
    for connection in sockets:
        connection.close()


# The command line


@pytest.mark.parametrize("name", KINDS)
def test_every_named_fault_can_be_made(name: str) -> None:
    assert parse_fault(f"{name}*2").times == 2


@pytest.mark.parametrize("text", ["", "none", "cut:x", "gzip:1", "cut:40%*", "status:"])
def test_a_fault_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_fault(text)


def test_the_script_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    (tmp_path / MODEL).write_bytes(DATA)
    ready = tmp_path / "ready"
    added = f"{REPO}={tmp_path / MODEL}"
    script = ["scripts/hub", "--add", added, "--ready-file", str(ready), "--misbehave", "cut:10*1"]
    root = Path(__file__).parent.parent
    with subprocess.Popen(script, stdout=subprocess.PIPE, cwd=root) as process:
        assert process.stdout is not None
        endpoint = process.stdout.readline().decode().strip()
        assert f"HF_ENDPOINT={endpoint}" in process.stdout.readline().decode()
        location = ask(f"{endpoint}/{REPO}/resolve/main/{MODEL}").headers["location"]
        assert [len(ask(location).body) for _ in range(2)] == [10, SIZE]
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
    assert process.returncode == 0
    assert ready.read_text().strip() == endpoint
