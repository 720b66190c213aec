"""The local hub speaks GitHub's release protocol, and the builds that tests release are what they say."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from tests.bundles import (
    asset_name,
    broken_bundle,
    companion_bundle,
    host_platform,
    launcher_bundle,
    real_bundle,
)
from tests.hub import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.bundles import How
    from tests.hub import LocalHub

RELEASES = "/repos/ggml-org/llama.cpp/releases"
BUILD = "llama-b2-bin-ubuntu-x64.tar.gz"
DATA = bytes(range(256)) * 400
SIZE = len(DATA)
AGENT = {"User-Agent": "test"}


class Reply(NamedTuple):
    """What a bare client saw; `broken` names what ended the answer early."""

    status: int
    headers: dict[str, str]
    body: bytes
    broken: str = ""

    @property
    def json(self) -> Any:  # noqa: ANN401 -- whatever the route answers
        return json.loads(self.body)


def ask(url: str, method: str = "GET", timeout: float = 5, **headers: str) -> Reply:
    """Send one request and follow nothing; `_` in a header's name stands for `-`."""
    parts = urlsplit(url)
    sent = AGENT | {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(http.client.HTTPConnection(parts.netloc, timeout=timeout)) as connection:
        try:
            connection.request(
                method, f"{parts.path}?{parts.query}" if parts.query else parts.path, headers=sent
            )
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            return Reply(0, {}, b"", type(error).__name__)
        found = {name.lower(): value for name, value in response.getheaders()}
        try:
            return Reply(response.status, found, response.read())
        except http.client.IncompleteRead as error:
            return Reply(response.status, found, error.partial, "short")
        except OSError as error:
            return Reply(response.status, found, b"", type(error).__name__)


def api(hub: LocalHub, path: str = "", timeout: float = 5, **headers: str) -> Reply:
    return ask(f"{hub.libs_api}{RELEASES}{path}", timeout=timeout, **headers)


def tags(reply: Reply) -> list[str]:
    return [each["tag_name"] for each in reply.json]


def links(reply: Reply) -> dict[str, str]:
    rows = [each.split(">; rel=") for each in reply.headers.get("link", "").split(", ") if each]
    return {rel.strip('"'): url.removeprefix("<") for url, rel in rows}


def asset(hub: LocalHub, tag: str = "b2", name: str = BUILD) -> dict[str, Any]:
    found: dict[str, Any] = next(a for a in api(hub, f"/tags/{tag}").json["assets"] if a["name"] == name)
    return found


@pytest.fixture
def released(hub: LocalHub) -> LocalHub:
    """A hub with two builds, the newer with a file."""
    hub.add_release("b1", {})
    hub.add_release("b2", {BUILD: DATA})
    return hub


# The API


def test_a_release_is_described_as_github_does(released: LocalHub) -> None:
    release = api(released, "/tags/b2").json
    file = release.pop("assets")[0]
    assert (release["tag_name"], release["name"], release["prerelease"], release["draft"]) == (
        "b2",
        "b2",
        True,
        False,
    )
    assert release["html_url"] == f"{released.endpoint}/ggml-org/llama.cpp/releases/tag/b2"
    assert datetime.fromisoformat(release["published_at"]).tzinfo
    assert {"id", "created_at"} <= release.keys()
    assert (file["name"], file["size"], file["state"]) == (BUILD, SIZE, "uploaded")
    assert file["digest"] == f"sha256:{sha256(DATA).hexdigest()}"
    assert file["content_type"] == "application/gzip"
    assert file["browser_download_url"].endswith(f"/ggml-org/llama.cpp/releases/download/b2/{BUILD}")
    assert {"id", "created_at", "updated_at"} <= file.keys()


def test_releases_are_listed_newest_first_in_pages(hub: LocalHub) -> None:
    for number in range(7):
        hub.add_release(f"b{number}", {})
    hub.add_release("b9", {}, published=datetime(2025, 1, 1, tzinfo=UTC))
    page = api(hub, "?per_page=3")
    assert urlsplit(links(page)["last"]).query == "per_page=3&page=3"
    seen = [tags(page)]
    while following := links(page).get("next"):
        page = ask(following)
        seen.append(tags(page))
    assert seen == [["b6", "b5", "b4"], ["b3", "b2", "b1"], ["b0", "b9"]]
    assert links(page).keys() == {"prev", "first"}
    assert links(api(hub)) == {}
    assert api(hub, "?page=9").json == []


@pytest.mark.parametrize(("query", "count"), [("", 30), ("?per_page=200", 100), ("?per_page=x&page=-1", 30)])
def test_a_page_has_thirty_entries_and_at_most_a_hundred(hub: LocalHub, query: str, count: int) -> None:
    for number in range(101):
        hub.add_release(f"b{number}", {})
    assert len(api(hub, query).json) == count


def test_latest_is_the_newest_full_release(released: LocalHub) -> None:
    missing = api(released, "/latest")
    assert (missing.status, missing.json["message"]) == (404, "Not Found")
    for version in ("v0.5.0", "v0.6.0"):
        released.add_release(version, {"nightly-tag.txt": b"b2\n"}, prerelease=False)
    released.add_release("b3", {})
    latest = api(released, "/latest").json
    assert (latest["tag_name"], [each["name"] for each in latest["assets"]]) == (
        "v0.6.0",
        ["nightly-tag.txt"],
    )
    assert tags(api(released))[0] == "b3"
    # more assets leave it what it is
    released.add_release("v0.6.0", {"more.txt": b"x"})
    assert len(api(released, "/latest").json["assets"]) == 2


@pytest.mark.parametrize("path", ["/tags/b9", "/tags/b%2F2", "/none", "/tags/b1/x"])
def test_what_is_not_there_is_a_json_404(released: LocalHub, path: str) -> None:
    reply = api(released, path)
    assert (reply.status, reply.json["message"]) == (404, "Not Found")
    assert "x-ratelimit-remaining" in reply.headers
    assert ask(f"{released.libs_api}/repos/me/none/releases").status == 404


def test_a_removed_release_is_gone_with_its_files(released: LocalHub) -> None:
    url = asset(released)["browser_download_url"]
    released.remove_release("b2")
    assert api(released, "/tags/b2").status == ask(url).status == 404
    assert tags(api(released)) == ["b1"]


def test_digests_are_what_a_test_says(released: LocalHub) -> None:
    released.add_release("b2", {"old.zip": b"x"}, digests=False)
    assert asset(released, name="old.zip")["digest"] is None
    for digest in ("sha256:" + "0" * 64, None):
        released.set_digest("b2", BUILD, digest)
        assert asset(released)["digest"] == digest


def test_a_caller_without_a_user_agent_is_turned_away(released: LocalHub) -> None:
    assert ask(f"{released.libs_api}{RELEASES}", User_Agent="").status == 403


def test_what_has_not_changed_is_a_304(released: LocalHub) -> None:
    first = api(released)
    etag = first.headers["etag"]
    assert etag.startswith('W/"')
    for held in (etag, f'"other", {etag}', etag.removeprefix("W/")):
        again = api(released, If_None_Match=held)
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", etag)
    released.add_release("b2", {"more.zip": b"x"})
    assert api(released, If_None_Match=etag).status == 200
    assert api(released, "/none", If_None_Match="*").status == 404


# The limit


def test_calls_without_a_token_are_limited(released: LocalHub) -> None:
    etag = api(released).headers["etag"]
    released.rate_limit = 2
    for left in ("1", "0"):
        reply = api(released)
        assert (reply.status, reply.headers["x-ratelimit-remaining"]) == (200, left)
        if left == "1":
            unchanged = api(released, If_None_Match=etag)
            assert (unchanged.status, unchanged.headers["x-ratelimit-remaining"]) == (304, "1")
    refused = api(released, "/latest")
    assert (refused.status, refused.headers["x-ratelimit-remaining"], released.rate_limit) == (403, "0", 0)
    assert refused.json["message"].startswith("API rate limit exceeded for ")
    wait = int(refused.headers["x-ratelimit-reset"]) - datetime.now(UTC).timestamp()
    assert 3500 < wait <= 3600
    # files are no calls to the API
    url = f"{released.endpoint}/ggml-org/llama.cpp/releases/download/b2/{BUILD}"
    assert ask(url).status == 302
    released.rate_limit = None
    assert api(released).status == 200


def test_a_token_lifts_the_limit(released: LocalHub) -> None:
    released.rate_limit = 0
    released.add_token("ghp_good")
    for scheme in ("Bearer", "token"):
        reply = api(released, Authorization=f"{scheme} ghp_good")
        assert (reply.status, reply.headers["x-ratelimit-limit"]) == (200, "5000")
    wrong = api(released, Authorization="Bearer ghp_bad")
    assert (wrong.status, wrong.json["message"]) == (401, "Bad credentials")


def test_calls_at_once_cannot_share_the_last_one(released: LocalHub) -> None:
    for number in range(100):  # a long answer, so that the calls do overlap
        released.add_release(f"b{number}", {"a.zip": b"x", "b.zip": b"y"})
    released.rate_limit = 5
    with ThreadPoolExecutor(12) as threads:
        replies = list(threads.map(lambda _: api(released, "?per_page=100"), range(12)))
    assert sorted(reply.status for reply in replies) == [200] * 5 + [403] * 7


def test_a_call_that_a_fault_bends_counts_once(released: LocalHub) -> None:
    released.rate_limit = 5
    released.misbehave(Fault.silent(times=1), Fault.silent(times=1))
    assert api(released, timeout=0.2).broken == "TimeoutError"
    assert released.rate_limit == 4
    # GitHub's API never saw this one
    released.misbehave(Fault.status(429, {"Retry-After": "60"}, path="/releases"))
    limited = api(released)
    assert (limited.status, limited.headers["retry-after"], released.rate_limit) == (429, "60", 4)


# Files


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_file_is_redirected_to_a_signed_url_with_ranges(released: LocalHub, method: str) -> None:
    url = asset(released)["browser_download_url"]
    redirect = ask(url, method)
    assert redirect.status == 302
    location = redirect.headers["location"]
    assert location.startswith(released.cdn_endpoint)
    whole = ask(location)
    assert whole.body == DATA
    assert whole.headers["content-disposition"] == f"attachment; filename={BUILD}"
    # nobody may take the storage's tag for the digest
    assert sha256(DATA).hexdigest() not in whole.headers["etag"]
    part = ask(location, Range="bytes=100-199", If_Range=whole.headers["etag"])
    assert (part.status, part.body) == (206, DATA[100:200])
    released.expire_urls()
    assert ask(location).status == 403
    assert ask(ask(url).headers["location"]).body == DATA
    assert ask(url + "x", method).status == 404


def test_a_replaced_file_is_another_one(released: LocalHub) -> None:
    before = asset(released)
    old = ask(before["browser_download_url"]).headers["location"]
    etag = ask(old).headers["etag"]
    released.add_release("b2", {BUILD: DATA[::-1]})
    after = asset(released)
    assert (after["digest"], after["id"]) != (before["digest"], before["id"])
    assert after["digest"] == f"sha256:{sha256(DATA[::-1]).hexdigest()}"
    assert after["updated_at"] > before["updated_at"]
    new = ask(ask(after["browser_download_url"]).headers["location"])
    assert new.body == DATA[::-1]
    assert new.headers["etag"] != etag


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        (Fault.cut(0.4), lambda r: (r.broken, r.body) == ("short", DATA[: SIZE * 4 // 10])),
        (Fault.flip(50), lambda r: len(r.body) == SIZE and r.body[50] == DATA[50] ^ 0xFF),
        (Fault.login_page(), lambda r: r.status == 200 and r.body.startswith(b"<!doctype html>")),
        (Fault.status(503, server="cdn"), lambda r: r.status == 503),
        (Fault.silent(0.5), lambda r: r.broken == "TimeoutError"),
        (Fault.expire(path="/assets/"), lambda r: r.status == 403),
        (Fault.surplus(9), lambda r: len(r.body) == SIZE + 9),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else "",
)
def test_faults_strike_files_of_releases(
    released: LocalHub, fault: Fault, seen: Callable[[Reply], bool]
) -> None:
    url = asset(released)["browser_download_url"]
    released.misbehave(fault)
    reply = ask(ask(url).headers["location"], timeout=0.2 if fault.name == "silent" else 5)
    assert seen(reply), reply._replace(body=reply.body[:40])
    released.behave()
    assert ask(ask(url).headers["location"]).body == DATA


# The command line


def test_the_script_offers_releases(tmp_path: Path) -> None:
    (tmp_path / "built").mkdir()
    (tmp_path / "built" / BUILD).write_bytes(DATA)
    (tmp_path / "nightly-tag.txt").write_text("b2\n")
    arguments = ["--release", f"b2={tmp_path / 'built'}", "--release", f"v1={tmp_path / 'nightly-tag.txt'}"]
    command = ["scripts/hub", *arguments, "--latest", "v1"]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, text=True) as process:
        assert process.stdout
        lines = [process.stdout.readline().strip() for _ in range(3)]
        libs_api = lines[2].removeprefix("export KAWAI_LIBS_API=")
        listed = ask(f"{libs_api}{RELEASES}").json
        latest = ask(f"{libs_api}{RELEASES}/latest").json
        process.send_signal(signal.SIGTERM)
    assert {each["tag_name"]: [a["name"] for a in each["assets"]] for each in listed} == {
        "v1": ["nightly-tag.txt"],
        "b2": [BUILD],
    }
    assert latest["tag_name"] == "v1"


@pytest.mark.parametrize("arguments", [["--release", "b2"], ["--release", "b2=/none"], ["--latest", "v1"]])
def test_the_script_refuses_releases_that_make_no_sense(arguments: list[str]) -> None:
    root = Path(__file__).parent.parent
    done = subprocess.run(
        ["scripts/hub", *arguments], cwd=root, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 2
    assert arguments[0] in done.stderr.splitlines()[-1]


# The builds


def unpack(archive: Path, tag: str = "b11434") -> Path:
    """Unpack by the system's own program; the bundle's folder."""
    subprocess.run(["tar", "xzf", archive.name], cwd=archive.parent, check=True)
    return archive.parent / f"llama-{tag}"


def run(
    bundle: Path, *arguments: str, environ: Mapping[str, str] | None = None, timeout: float = 20
) -> subprocess.CompletedProcess[str]:
    """Run a bundle's server to its end, with nothing of this environment."""
    command = [str(bundle / "llama-server"), *arguments]
    return subprocess.run(
        command, env=environ or {}, capture_output=True, text=True, check=False, timeout=timeout
    )


class Unix(http.client.HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


@contextmanager
def serving(bundle: Path, model: Path, *arguments: str, **environ: str) -> Iterator[Callable[..., Reply]]:
    """A bundle's server on a UNIX socket, once it listens; what asks it."""
    path = bundle.parent / "s.sock"
    command = [str(bundle / "llama-server"), "--host", str(path), "-m", str(model), "-c", "256", *arguments]
    process = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    said = ""
    for line in process.stderr:
        said += line
        if "listening on" in line:
            break
    else:
        raise AssertionError(said)

    def request(target: str, body: object = None, **headers: str) -> Reply:
        with closing(Unix(path)) as connection:
            connection.request("POST" if body else "GET", target, json.dumps(body) if body else None, headers)
            response = connection.getresponse()
            return Reply(response.status, {}, response.read())

    try:
        yield request
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode == 0


@pytest.fixture(scope="session")
def probe_model() -> Path:
    """The tiny model that kawai tries builds with."""
    return Path(__file__).parent.parent / "kawai_tools" / "libs" / "probe.gguf"


def assert_serves(bundle: Path, model: Path) -> None:
    with serving(bundle, model, "--no-webui", LLAMA_API_KEY="secret") as request:
        assert request("/health").json == {"status": "ok"}
        prompt = {"prompt": "Hello", "max_tokens": 1}
        assert request("/v1/completions", prompt).status == 401
        answer = request("/v1/completions", prompt, Authorization="Bearer secret")
        assert answer.json["usage"]["completion_tokens"] == 1


def test_a_launcher_bundle_is_a_build_that_serves(tmp_path: Path, probe_model: Path) -> None:
    archive = launcher_bundle("b11434", directory=tmp_path)
    assert archive.name == asset_name("b11434", host_platform())
    bundle = unpack(archive)
    links = {path.name: str(path.readlink()) for path in bundle.iterdir() if path.is_symlink()}
    assert links == {"libllama.so": "libllama.so.0", "libllama.so.0": "libllama.so.0.6.0"}
    version = run(bundle, "--version")
    assert (version.returncode, version.stderr.splitlines()[0]) == (0, "version: 11434 (abc)")
    assert run(bundle, "--list-devices").stdout.startswith("Available devices:\n")
    assert_serves(bundle, probe_model)


def test_a_real_bundle_is_a_build_that_serves(tmp_path: Path, probe_model: Path) -> None:
    archive = real_bundle()
    if archive is None:
        pytest.skip("KAWAI_TEST_BUNDLE names no true build")
    (tmp_path / archive.name).symlink_to(archive)
    with tarfile.open(archive) as packed:
        (folder,) = {Path(name).parts[0] for name in packed.getnames()}
    bundle = unpack(tmp_path / archive.name, folder.removeprefix("llama-"))
    assert run(bundle, "--version").stderr.startswith("version: ")
    assert run(bundle, "--list-devices").returncode == 0
    assert_serves(bundle, probe_model)


def test_a_named_bundle_that_is_missing_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAWAI_TEST_BUNDLE", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="KAWAI_TEST_BUNDLE"):
        real_bundle()


def test_a_launcher_fails_as_the_true_server_does(tmp_path: Path) -> None:
    bundle = unpack(launcher_bundle("b7", directory=tmp_path), "b7")
    unknown = run(bundle, "--bogus")
    assert (unknown.returncode, unknown.stderr) == (1, "error: invalid argument: --bogus\n")
    # flags also come from the environment, which is why it must be clean
    for name, arguments, environ in (("a", ["-m", "/none"], {}), ("b", [], {"LLAMA_ARG_MODEL": "/none"})):
        missing = run(bundle, "--host", f"{tmp_path}/{name}.sock", *arguments, environ=environ)
        assert missing.returncode == 1
        assert "failed to load model, '/none'" in missing.stderr
        assert "Traceback" not in missing.stderr
    # who loses the links has lost the build
    (bundle / "libllama.so.0").unlink()
    assert run(bundle, "--version").returncode == 127


def test_the_same_build_has_the_same_digest(tmp_path: Path) -> None:
    made = {launcher_bundle("b1", directory=tmp_path / name).read_bytes() for name in ("a", "b")}
    other = launcher_bundle("b2", directory=tmp_path).read_bytes()
    assert len(made) == 1
    assert other not in made


def test_builds_for_other_platforms_have_their_names_and_shapes(tmp_path: Path) -> None:
    with tarfile.open(launcher_bundle("b1", "ubuntu-vulkan-x64", directory=tmp_path)) as packed:
        assert Path(str(packed.name)).name == "llama-b1-bin-ubuntu-vulkan-x64.tar.gz"
        assert {Path(name).parts[0] for name in packed.getnames()} == {"llama-b1"}
        assert packed.getmember("llama-b1/llama-server").mode == 0o755
    with zipfile.ZipFile(launcher_bundle("b1", "win-cpu-x64", directory=tmp_path)) as flat:
        assert {"LICENSE", "llama-server.exe"} <= set(flat.namelist())
        assert not any("/" in name for name in flat.namelist())
    with tarfile.open(companion_bundle("b1", "ubuntu-cuda-13.4-x64", directory=tmp_path)) as companion:
        assert {Path(name).parts[0] for name in companion.getnames()} == {
            "cudart-llama-b1-bin-ubuntu-cuda-13.4-x64"
        }
    windows = companion_bundle("b1", "win-cuda-13.4-x64", directory=tmp_path)
    assert windows.name == "cudart-llama-bin-win-cuda-13.4-x64.zip"


@pytest.fixture
def broken(tmp_path: Path) -> Callable[[How], Path]:
    """Makes and unpacks a broken build."""
    return lambda how: unpack(broken_bundle("b11434", how=how, directory=tmp_path / how))


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("sigill", -signal.SIGILL, ""),
        ("exits", 1, "error: failed to load backend"),
        ("missing_library", 127, "libggml-base.so.0: cannot open shared object file"),
    ],
)
def test_a_broken_build_fails_whatever_it_is_asked(
    broken: Callable[[How], Path], how: How, code: int, said: str
) -> None:
    if how == "missing_library" and os.uname().sysname != "Linux":
        pytest.skip("the loader's words and status are those of Linux")
    for question in ("--version", "--list-devices"):
        done = run(broken(how), question)
        assert done.returncode == code
        assert said in done.stderr


def test_a_build_with_a_broken_cpu_library_fails_only_when_it_loads(broken: Callable[[How], Path]) -> None:
    bundle = broken("sigill_on_load")
    assert run(bundle, "--version").returncode == run(bundle, "--list-devices").returncode == 0
    assert run(bundle, "-m", "/none").returncode == -signal.SIGILL


def test_a_build_for_another_machine_is_a_valid_file_that_cannot_be_executed(
    broken: Callable[[How], Path],
) -> None:
    bundle = broken("wrong_arch")
    assert (bundle / "llama-server").read_bytes()[:4] == b"\x7fELF"
    with pytest.raises(OSError, match="Exec format error"):
        run(bundle, "--version")


def test_a_build_without_a_server_has_the_rest(broken: Callable[[How], Path]) -> None:
    names = {path.name for path in broken("no_server").iterdir()}
    assert {"LICENSE", "libllama.so"} <= names
    assert "llama-server" not in names


@pytest.mark.parametrize(
    ("how", "says"), [("hangs", b"initializing ...\n"), ("floods", b"warning: again\n" * 99)]
)
def test_a_build_that_never_ends_has_to_be_killed(
    broken: Callable[[How], Path], how: How, says: bytes
) -> None:
    with subprocess.Popen([broken(how) / "llama-server"], stderr=subprocess.PIPE) as process:
        assert process.stderr
        try:
            assert process.stderr.read(len(says)) == says
            process.send_signal(signal.SIGTERM if how == "hangs" else 0)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.2)
        finally:
            process.kill()
