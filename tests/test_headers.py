"""Headers of files elsewhere, against the local hub: what is fetched for them, and what may be in the way."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kawai_tools.errors import HubTokenRequired, KawaiError, MalformedGguf, NotAModel, Unreachable
from kawai_tools.gguf import Header, read_header
from kawai_tools.refs import parse_source
from kawai_tools.transfer.headers import FIRST, Headers, Unread
from kawai_tools.transfer.hub import Hub
from kawai_tools.transfer.remote_file import RemoteFile
from tests.hub import Fault, LocalHub
from tests.samples import F32, FLOAT32, INT32, STRING, array, string, tiny_gguf
from tests.workspaces import QUICK, Workspaces

REPO, NAME = "acme/Words-GGUF", "Words-F32.gguf"
DATA = 8 << 20  # bytes of tensor data, of which next to nothing may be fetched


def words(count: int, seed: int, mean: float) -> bytes:
    """Strings that grow longer towards the end, as those of vocabularies do."""
    chance = random.Random(seed)  # noqa: S311 - the same file every time
    lengths = (max(1, int(chance.gammavariate(3, mean * (0.5 + at / count) / 3))) for at in range(count))
    return b"".join(string(b"x" * length) for length in lengths)


def written(count: int, *, merges: bool, template: int = 8000) -> bytes:
    """A model with so many tokens, and scores or merges."""
    extra = {"tokenizer.ggml.tokens": array(STRING, count, words(count, 1, 6.5))}
    if merges:
        extra["tokenizer.ggml.merges"] = array(STRING, count, words(count, 2, 9))
    else:
        extra["tokenizer.ggml.scores"] = array(FLOAT32, count, bytes(4 * count))
    extra["tokenizer.ggml.token_type"] = array(INT32, count, bytes(4 * count))
    blocks = [(f"blk.{at // 9}.part_{at % 9}.weight", (32,), F32) for at in range(300)]
    big = ("token_embd.weight", (32, DATA // 128), F32)
    return tiny_gguf(extra=extra, chat_template="x" * template, tensors=(big, *blocks))


FILES: dict[str, Callable[[], bytes]] = {
    "tiny": tiny_gguf,
    "bytes": lambda: written(300, merges=True),
    "small": lambda: written(2000, merges=True),
    "scores": lambda: written(200_000, merges=False),
    "merges": lambda: written(200_000, merges=True),
    "template": lambda: written(100, merges=False, template=300_000),
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, real_model: Path) -> Iterator[LocalHub]:
    """A hub with every file."""
    with LocalHub(tmp_path_factory.mktemp("shelf")) as hub:
        for name, make in FILES.items():
            hub.add_file(REPO, f"{name}.gguf", make())
        hub.add_file(REPO, "real.gguf", real_model)
        yield hub


def asking(made: Workspaces, hub: LocalHub, name: str, repo: str = REPO) -> tuple[Hub, RemoteFile]:
    """The way to a file, and what is known of it; nothing is counted yet."""
    way = made(timeouts=QUICK).hub
    source = parse_source(hub.url(repo, name), hub.endpoint)
    assert not hasattr(source, "quantization")
    file = way.describe(source)
    hub.clear_requests()
    return way, file


def fetched(hub: LocalHub) -> int:
    return sum(each.sent_bytes for each in hub.requests if each.server == "cdn")


@pytest.mark.parametrize("name", [*FILES, "real"])
def test_little_more_than_the_header_is_fetched(
    tmp_path: Path, shelf: LocalHub, real_model: Path, name: str
) -> None:
    made = Workspaces(tmp_path / "kawai", shelf.endpoint)
    way, file = asking(made, shelf, f"{name}.gguf")
    header = Headers(way).read(file, 20)
    path = real_model if name == "real" else tmp_path / "local.gguf"
    if name != "real":
        path.write_bytes(FILES[name]())
    assert header == read_header(path)
    assert fetched(shelf) <= max(FIRST, 1.2 * header.data_offset)
    ranges = [each for each in shelf.requests if each.server == "cdn"]
    assert len(ranges) <= 14
    assert len([each for each in shelf.requests if each.server == "hub"]) == 1, "the signed address is kept"
    made.close()


def test_a_pinned_file_is_read_once(workspaces: Workspaces, hub: LocalHub) -> None:
    hub.add_file(REPO, NAME, tiny_gguf())
    way, file = asking(workspaces, hub, NAME)
    headers = Headers(way)
    first = headers.read(file, 5)
    count = len(hub.requests)
    assert headers.read(file, 5) is first
    assert len(hub.requests) == count
    hub.add_file(REPO, NAME, tiny_gguf(name="Another"))
    assert headers.read(asking(workspaces, hub, NAME)[1], 5).name == "Another"


def test_a_plain_address_is_read_too(workspaces: Workspaces, hub: LocalHub) -> None:
    url = hub.add_plain("models/x.gguf", written(2000, merges=True))
    way = workspaces().hub
    source = parse_source(url)
    assert not hasattr(source, "quantization")
    assert Headers(way).read(way.describe(source), 5).tensor_count == 301


@pytest.mark.parametrize(
    "fault",
    [
        Fault.ignore_range(),
        Fault.no_ranges(),
        Fault.no_content_range(),
        Fault.range_refused(),
        Fault.shift_range(),
        Fault.shift_range(lie=True),
        Fault.gzip(server="cdn"),
        Fault.silent(2000, server="cdn"),
        Fault.etag('"other"', server="cdn", skip=2),
    ],
    ids=lambda fault: fault.name,
)
def test_what_gives_no_ranges_is_left_alone(workspaces: Workspaces, hub: LocalHub, fault: Fault) -> None:
    hub.add_file(REPO, NAME, written(20_000, merges=True))
    way, file = asking(workspaces, hub, NAME)
    hub.misbehave(fault)
    begin = time.monotonic()
    with pytest.raises((Unread, MalformedGguf, KawaiError)) as raised:
        Headers(way).read(file, 2)
    assert raised.type in {Unread, MalformedGguf} or fault.name == "silent"
    assert time.monotonic() - begin < 4
    way.outbound.close()
    hub.wait_for(bool)
    assert fetched(hub) < DATA / 2, "the connection is dropped, and not the file read"


def test_a_passing_failure_is_waited_out(workspaces: Workspaces, hub: LocalHub) -> None:
    hub.add_file(REPO, NAME, written(20_000, merges=True))
    way, file = asking(workspaces, hub, NAME)
    hub.misbehave(
        Fault.status(503, server="cdn", times=1),
        Fault.cut(0.5, server="cdn", times=1, skip=2),
        Fault.expire(server="cdn", times=1, skip=4),
        Fault.short_range(0.6, server="cdn", skip=5),
    )
    assert Headers(way).read(file, 20).tensor_count == 301


def test_a_server_that_keeps_failing_is_said(workspaces: Workspaces, hub: LocalHub) -> None:
    hub.add_file(REPO, NAME, written(20_000, merges=True))
    way, file = asking(workspaces, hub, NAME)
    hub.misbehave(Fault.status(500, server="cdn"))
    with pytest.raises(Unreachable, match="500"):
        Headers(way).read(file, 1)


def test_a_gate_that_closes_is_said(workspaces: Workspaces, hub: LocalHub) -> None:
    hub.add_file(REPO, NAME, tiny_gguf())
    way, file = asking(workspaces, hub, NAME)
    hub.gate(REPO)
    with pytest.raises(HubTokenRequired, match="gated"):
        Headers(way).read(file, 5)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"GGUF" + bytes(100), MalformedGguf),
        (b"<!doctype html><p>no", NotAModel),
        (tiny_gguf()[:200], MalformedGguf),
        (tiny_gguf()[:-8], MalformedGguf),
        (tiny_gguf(extra={"w": array(STRING, 1 << 40)}), MalformedGguf),
        (b"", MalformedGguf),
    ],
)
def test_a_broken_file_is_named(
    workspaces: Workspaces, hub: LocalHub, data: bytes, kind: type[KawaiError]
) -> None:
    hub.add_file(REPO, NAME, data)
    way, file = asking(workspaces, hub, NAME)
    with pytest.raises(kind, match=NAME):
        Headers(way).read(file, 5)


def test_a_header_beyond_the_limit_is_not_read(
    workspaces: Workspaces, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kawai_tools.transfer.headers.MOST", 1 << 20)
    hub.add_file(REPO, NAME, written(200_000, merges=True))
    way, file = asking(workspaces, hub, NAME)
    with pytest.raises(Unread, match="larger than is read from elsewhere"):
        Headers(way).read(file, 5)
    assert fetched(hub) <= 1 << 20


def test_many_small_steps_come_to_an_end(workspaces: Workspaces, hub: LocalHub) -> None:
    """Arrays that are stepped over, each just beyond what was fetched."""
    gaps = {f"gap{at}": array(FLOAT32, 200_000, bytes(800_000)) for at in range(100)}
    hub.add_file(REPO, NAME, tiny_gguf(extra=gaps))
    way, file = asking(workspaces, hub, NAME)
    with pytest.raises(Unread):
        Headers(way).read(file, 20)
    assert fetched(hub) < 4 << 20


def test_the_version_is_part_of_what_is_remembered(workspaces: Workspaces, hub: LocalHub) -> None:
    """A plain address without an ETag names no version, and is read anew."""
    url = hub.add_plain("x.gguf", tiny_gguf())
    hub.misbehave(Fault.no_etag())
    way = workspaces().hub
    source = parse_source(url)
    assert not hasattr(source, "quantization")
    headers, file = Headers(way), way.describe(source)
    assert isinstance(headers.read(file, 5), Header)
    hub.clear_requests()
    headers.read(file, 5)
    assert hub.requests
