"""What may be typed for a model or a source, and that nothing typed can do more than be refused."""

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kawai_tools.errors import InvalidId, InvalidRequest, InvalidSource, KawaiError, LocalPath, PageUrl
from kawai_tools.refs import (
    RESERVED,
    HubFile,
    HubRepo,
    ModelRef,
    PlainUrl,
    Shard,
    is_gguf_name,
    is_projection_name,
    parse_model,
    parse_source,
    quantization_named,
    quantization_of,
    safe_path,
    shard_of,
)
from tests.hub import LocalHub
from tests.program import Daemon, Ended, Program
from tests.samples import tiny_gguf

FILE = HubFile("acme", "Tiny-GGUF", "main", "Tiny-Q8_0.gguf")
NESTED = HubFile("acme", "Tiny-GGUF", "main", "Q8_0/Tiny Q8_0-00001-of-00002.gguf")
REPO = HubRepo("acme", "Tiny-GGUF")
QUANT = HubRepo("acme", "Tiny-GGUF", "Q8_0")
HUB = "https://huggingface.co/acme/Tiny-GGUF"
SECRET = "hunter2-SECRET"


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("acme/Tiny-GGUF", REPO),
        (" acme/Tiny-GGUF\n", REPO),
        ("acme/Tiny-GGUF:Q8_0", QUANT),
        ("acme/Tiny-GGUF:UD-Q4_K_XL", HubRepo("acme", "Tiny-GGUF", "UD-Q4_K_XL")),
        ("hf.co/acme/Tiny-GGUF", REPO),
        ("HF.co/acme/Tiny-GGUF:Q8_0", QUANT),
        ("https://hf.co/acme/Tiny-GGUF:Q8_0", QUANT),
        ("https://hf.co/acme/Tiny-GGUF/", REPO),
        ("huggingface.co/acme/Tiny-GGUF:Q8_0", QUANT),
        (f"{HUB}:Q8_0", QUANT),
        (f"{HUB}/resolve/main/Tiny-Q8_0.gguf", FILE),
        (f"{HUB}/blob/main/Tiny-Q8_0.gguf", FILE),
        (f"{HUB}/raw/main/Tiny-Q8_0.gguf", FILE),
        (f"{HUB}/resolve/main/Tiny-Q8_0.gguf?download=true", FILE),
        (f"{HUB}/blob/main/Tiny-Q8_0.gguf#top", FILE),
        ("http://www.huggingface.co/acme/Tiny-GGUF/resolve/main/Tiny-Q8_0.gguf", FILE),
        ("HTTPS://HuggingFace.co:443/acme/Tiny-GGUF/resolve/main/Tiny-Q8_0.gguf", FILE),
        ("https://huggingface.co./acme/Tiny-GGUF/resolve/main/Tiny-Q8_0.gguf", FILE),
        ("hf.co/acme/Tiny-GGUF/blob/main/Tiny-Q8_0.gguf", FILE),
        (f"{HUB}/resolve/main/Q8_0/Tiny%20Q8_0-00001-of-00002.gguf", NESTED),
        (f"{HUB}/resolve/v1.0/Tiny-Q8_0.GGUF", HubFile("acme", "Tiny-GGUF", "v1.0", "Tiny-Q8_0.GGUF")),
        (f"{HUB}/resolve/refs%2Fpr%2F7/a.gguf", HubFile("acme", "Tiny-GGUF", "refs/pr/7", "a.gguf")),
        (f"{HUB}/blob/refs/pr/7/x/a.gguf", HubFile("acme", "Tiny-GGUF", "refs/pr/7", "x/a.gguf")),
        (f"{HUB}/resolve/main/100%2525.gguf", HubFile("acme", "Tiny-GGUF", "main", "100%25.gguf")),
        (f"{HUB}/resolve/main/模型.gguf", HubFile("acme", "Tiny-GGUF", "main", "模型.gguf")),
        ("https://files.example.org/a/b.gguf", PlainUrl("https://files.example.org/a/b.gguf")),
        ("http://[::1]:8080/b.GGUF?sig=1#x", PlainUrl("http://[::1]:8080/b.GGUF?sig=1")),
        (
            "https://huggingface.co.example.org/a/b.gguf",
            PlainUrl("https://huggingface.co.example.org/a/b.gguf"),
        ),
    ],
)
def test_every_form_of_a_source(text: str, source: object) -> None:
    assert parse_source(text) == source
    assert parse_source(text, local_paths=True) == source


MIRROR = "http://127.0.0.1:8080/hub"


@pytest.mark.parametrize(
    ("text", "source"),
    [
        (f"{MIRROR}/acme/Tiny-GGUF/resolve/main/Tiny-Q8_0.gguf?download=true#x", FILE),
        (f"{MIRROR}/acme/Tiny-GGUF/blob/main/Tiny-Q8_0.gguf", FILE),
        (f"{MIRROR}/acme/Tiny-GGUF:Q8_0", QUANT),
        (f"{HUB}/resolve/main/Tiny-Q8_0.gguf", FILE),
        ("http://127.0.0.1:8080/other/x.gguf", PlainUrl("http://127.0.0.1:8080/other/x.gguf")),
        ("http://127.0.0.1:80801/hub/x.gguf", InvalidSource),
        ("http://127.0.0.1:808/hub/x.gguf", PlainUrl("http://127.0.0.1:808/hub/x.gguf")),
    ],
)
def test_a_moved_hub_is_the_hub(text: str, source: object) -> None:
    if source is InvalidSource:
        with pytest.raises(InvalidSource):
            parse_source(text, MIRROR)
    else:
        assert parse_source(text, MIRROR) == source


def test_provenance_names_the_public_hub_and_comes_back() -> None:
    hostile = HubFile("acme", "Tiny", "refs/pr/7", "a b/100%25 #1?模型.gguf")
    assert hostile.url.startswith("https://huggingface.co/acme/Tiny/resolve/refs%2Fpr%2F7/a%20b/100%2525")
    assert parse_source(hostile.url) == hostile
    assert hostile.sibling("c.gguf").url.endswith("/refs%2Fpr%2F7/c.gguf")
    assert (str(QUANT), str(REPO), QUANT.file("x.gguf").path) == (
        "acme/Tiny-GGUF:Q8_0",
        "acme/Tiny-GGUF",
        "x.gguf",
    )


def test_a_plain_url_knows_host_name_and_neighbours() -> None:
    found = PlainUrl("http://Files.Example.org:8080/a/b%20c-00001-of-00002.gguf?sig=1")
    assert (found.host, found.file_name) == ("files.example.org", "b c-00001-of-00002.gguf")
    assert found.sibling("b c-00002-of-00002.gguf").url == (
        "http://Files.Example.org:8080/a/b%20c-00002-of-00002.gguf?sig=1"
    )
    for url in ("http://[fe80::1]/x.gguf", "http://../x.gguf", "http://.../x.gguf"):
        with contextlib.suppress(KawaiError):
            parsed = parse_source(url)
            assert isinstance(parsed, PlainUrl)
            assert safe_path(parsed.host)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (HUB, PageUrl, "acme/Tiny-GGUF:QUANT"),
        (f"{HUB}/tree/main", PageUrl, f"{HUB}/resolve/main/FILE.gguf"),
        (f"{HUB}/resolve/main", PageUrl, "a page"),
        (f"{HUB}/discussions/1/x.gguf", PageUrl, "a page"),
        ("https://huggingface.co/", PageUrl, "OWNER/REPO"),
        ("https://huggingface.co/acme", PageUrl, "OWNER/REPO"),
        ("https://huggingface.co/docs/hub/index", PageUrl, "page"),
        (f"{HUB}/resolve/main/README.md", InvalidSource, "README.md is not a .gguf file"),
        ("https://files.example.org/model.bin", InvalidSource, "does not name a .gguf file"),
        ("https://files.example.org/.gguf", InvalidSource, "does not name a .gguf file"),
        ("https://files.example.org:99999/x.gguf", InvalidSource, "not a valid URL"),
        ("https://[::1/x.gguf", InvalidSource, "not a valid URL"),
        ("https:///x.gguf", InvalidSource, "no host"),
        ("ftp://files.example.org/x.gguf", InvalidSource, "neither http nor https"),
        ("s3://bucket/x.gguf", InvalidSource, "neither http nor https"),
        ("file:///etc/passwd", InvalidSource, "neither http nor https"),
        ("Tiny-Q8_0", InvalidSource, "kawai models list"),
        ("acme/Tiny/x.gguf", InvalidSource, "https://huggingface.co/acme/Tiny/resolve/main/x.gguf"),
        ("acme/Tiny/x", InvalidSource, "OWNER/REPO"),
        ("acme/Tiny:", InvalidSource, "Q4_K_M"),
        ("acme/Tiny:Q8_0:Q4_0", InvalidSource, "is not a quantization"),
        ("acme/Tiny: Q8_0", InvalidSource, "not a source"),
        ("", InvalidSource, "OWNER/REPO"),
        (f"https://files.example.org/{'x' * 5000}.gguf", InvalidSource, "not a source"),
    ],
)
def test_a_wrong_source_is_met_with_what_to_do(text: str, error: type[KawaiError], words: str) -> None:
    with pytest.raises(error) as raised:
        parse_source(text)
    assert words in f"{raised.value.message} {raised.value.hint}"
    assert type(raised.value) is error
    assert raised.value.exit_code == 2
    assert len(raised.value.message) < 5000


@pytest.mark.parametrize("kind", ["datasets", "spaces"])
def test_a_dataset_is_not_mistaken_for_an_owner(kind: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse_source(f"https://huggingface.co/{kind}/acme/corpus/resolve/main/x.gguf")
    assert f"{kind}/acme:QUANT" not in (raised.value.hint or "")
    assert f"/{kind}/acme/resolve" not in (raised.value.hint or "")


@pytest.mark.parametrize(
    "url",
    [
        f"https://me:{SECRET}@files.example.org/x.gguf",
        f"https://{SECRET}@huggingface.co/acme/Tiny/resolve/main/x.gguf",
        f"https://me:{SECRET}@files.example.org:99999/x.gguf",
        f"https://me:{SECRET}@[::1/x.gguf",
        f"https://me:{SECRET}@/x.gguf",
        f"ftp://me:{SECRET}@files.example.org/x.gguf",
        f"https://me:{SECRET} @files.example.org/x.gguf",
        f"hf.co/me:{SECRET}@files.example.org/x.gguf",
    ],
)
def test_a_password_in_a_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse_source(url)
    assert SECRET not in f"{raised.value.message} {raised.value.hint}"


@pytest.mark.parametrize(
    "path",
    [
        "../x.gguf",
        "a/../../x.gguf",
        "%2e%2e/x.gguf",
        "..%2f..%2fx.gguf",
        "%2fetc%2fx.gguf",
        "a//x.gguf",
        "a%2F%2Fx.gguf",
        "./x.gguf",
        ".kawai/x.gguf",
        ".partial%2Fx.gguf",
        "-x.gguf",
        "a%5Cx.gguf",
        "x%00.gguf",
        "x%0A.gguf",
        "x%1b[2J.gguf",
        "x%E2%80%AE.gguf",
        "x%C2%85.gguf",
        "x%E2%80%8B.gguf",
        ".gguf",
        "x" * 241 + ".gguf",
        "é" * 121 + ".gguf",
        "/".join("d" * 11) + "/x.gguf",
        "/".join(["d" * 200] * 5) + "/x.gguf",
    ],
)
def test_a_path_of_the_hub_stays_in_its_folder(path: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_source(f"{HUB}/resolve/main/{path}")
    if "%" not in path:
        assert not safe_path(path)


@pytest.mark.parametrize("revision", ["..", "%2e%2e", "..%2f..", "a%0d%0ab", "-x", "a%5Cb", "a%00"])
def test_a_revision_is_no_path_out(revision: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_source(f"{HUB}/resolve/{revision}/x.gguf")


@pytest.mark.parametrize("name", ["..%2fx", "a%5Cb", "%2e%2e", "a%00b", "x%0ay", "-a", ".a", "a%E2%80%AEb"])
def test_a_plain_file_name_is_one_plain_name(name: str) -> None:
    with pytest.raises(InvalidSource):
        parse_source(f"https://files.example.org/{name}.gguf")


@pytest.mark.parametrize(
    "text",
    [
        *("../b", "a/..", "a/.b", "-a/b", "a/-b", "a/b..c", "a/", "/b", "a%2fb/c", "a/b?x", "a/b#x", "ä/b"),
        *("a\u2215b/c", "\u0430cme/b"),
        *("a/ b", "a\\b/c", "a\x00/b", "a/b\x1b[2J", "a/b\u202e", "a/b\udc80", "a/" + "b" * 97),
    ],
)
def test_a_repository_is_two_plain_words(text: str) -> None:
    with pytest.raises(InvalidSource):
        parse_source(text)


@pytest.mark.parametrize(
    "text",
    [
        "/data/x.gguf",
        "./x",
        "../x.gguf",
        "~/models/x.gguf",
        "file:///x.gguf",
        "FILE:/x",
        "C:\\models\\x.gguf",
        "d:/x.gguf",
        "x.gguf",
        "models/X.GGUF",
    ],
)
def test_a_local_path_is_told_what_to_do_instead_but_never_over_http(text: str) -> None:
    with pytest.raises(LocalPath, match="on this machine") as raised:
        parse_source(text, local_paths=True)
    assert "kawai models adopt" in (raised.value.hint or "")
    source = _parsed(lambda: parse_source(text))
    assert source is None or isinstance(source, HubRepo)


def test_a_local_path_over_http_is_an_ordinary_mistake(
    cli: Program, daemon: Daemon, real_model: Path
) -> None:
    ended = cli("--json", "models", "pull", str(real_model))
    assert (ended.code, ended.error["code"]) == (2, "local_path")
    answer = daemon.ask("POST", "/v1/models/pull", {"model_url": str(real_model)})
    assert (answer.status, answer.error["code"]) == (400, "invalid_source")
    missing = daemon.ask("POST", "/v1/models/pull", {"model_url": "/no/such/thing.gguf"})
    assert {**missing.error, "message": ""} == {**answer.error, "message": ""}


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("Qwen3-8B-Q8_0", ModelRef(None, "Qwen3-8B-Q8_0")),
        ("Qwen/Qwen3-8B", ModelRef("Qwen", "Qwen3-8B")),
        ("模型 é", ModelRef(None, "模型 é")),
        ("x" * 200, ModelRef(None, "x" * 200)),
        ("a..b", ModelRef(None, "a..b")),
    ],
)
def test_ids(text: str, ref: ModelRef) -> None:
    assert parse_model(text) == ref
    assert str(ref) == text


PATHS = [
    "",
    ".",
    "..",
    "../x",
    "x/..",
    "a/b/c",
    "/a",
    "a/",
    "a//b",
    "-x",
    "a/-x",
    ".x",
    "a/.x",
    "a\\b",
    "a%2fb",
    "%",
    "%2e%2e",
    "a\x00",
    "a\nb",
    "a\r\nX: y",
    "a\x7f",
    "a\x9b2J",
    "a\udc80",
    "x" * 201,
    "x" * 10_240,
]


@pytest.mark.parametrize("text", PATHS)
def test_ids_that_try_to_be_paths(text: str) -> None:
    with pytest.raises(InvalidId) as raised:
        parse_model(text)
    assert (raised.value.exit_code, raised.value.status, raised.value.code) == (2, 400, "invalid_id")
    assert len(raised.value.message) < 300


def test_ids_that_try_to_be_paths_from_outside(cli: Program, daemon: Daemon) -> None:
    hostile = ["../x", "a/b/c", "a\\b", "a%2fb", ".x", "a\x9b2J", "a\nb", "x" * 201, "a//b", "a/.."]
    for text in hostile:
        over_http = daemon.ask("GET", f"/v1/models/{quote(text, safe='')}")
        assert (over_http.status, over_http.error["code"]) == (400, "invalid_id"), text
        assert daemon.ask("DELETE", f"/v1/models/{quote(text, safe='')}").status == 400
        assert b"\x9b" not in over_http.body
    ended = cli("--json", "models", "rm", "--", "../../etc")
    assert (ended.code, ended.error["code"]) == (2, "invalid_id")
    assert cli("models", "show", "--", "-x").code == 2
    assert daemon.ask("GET", "/v1/models/%2E%2E").status in {400, 404}


def test_decoded_once(daemon: Daemon) -> None:
    assert daemon.ask("GET", "/v1/models/a%252fb").error["code"] == "invalid_id"
    assert daemon.ask("GET", "/v1/models/a%2fb").error["code"] == "model_not_found"
    assert daemon.ask("GET", "/v1/models/a/b").error["code"] == "model_not_found"


@pytest.mark.parametrize("word", sorted(RESERVED))
def test_reserved_words_are_never_ids_or_owners(hub: LocalHub, cli: Program, word: str) -> None:
    store = cli.home / "kawai" / "models"
    for path in (f"acme/Tiny/{word}.gguf", f"{word}/Tiny/Tiny.gguf", f"acme/Other/{word}.GGUF"):
        tiny_gguf(_made(store / path))
    assert cli("models", "index").code == 0
    ids = [row["id"] for row in _list(cli)]
    assert len(ids) == 3
    for each in ids:
        assert word not in each.lower().split("/")[:1], ids
    assert not hub.requests


def test_the_contract_names_the_reserved_words() -> None:
    words = "ps pull index load unload verify filter update outdated protect unprotect adopt scan fit"
    assert set(words.split()) == RESERVED


@pytest.mark.parametrize(
    ("name", "shard"),
    [
        ("x-00001-of-00003.gguf", Shard("x", 1, 3)),
        ("a/x-00003-of-00003.GGUF", Shard("a/x", 3, 3, ".GGUF")),
        ("x-00001-of-00001.gguf", Shard("x", 1, 1)),
        ("x-00000-of-00003.gguf", Shard("x-00000-of-00003")),
        ("x-00004-of-00003.gguf", Shard("x-00004-of-00003")),
        ("x-1-of-3.gguf", Shard("x-1-of-3")),
        ("-00001-of-00003.gguf", Shard("-00001-of-00003")),
        ("x-0000\u0661-of-00003.gguf", Shard("x-0000\u0661-of-00003")),
        ("x-00001-of-00003", Shard("x", 1, 3, "")),
        ("x.gguf", Shard("x")),
    ],
)
def test_shards(name: str, shard: Shard) -> None:
    assert shard_of(name) == shard
    names = shard.names()
    assert len(names) == max(1, shard.count)
    assert name in names


@pytest.mark.parametrize(
    ("name", "quantization"),
    [
        ("Qwen3-8B-Q8_0.gguf", "Q8_0"),
        ("qwen3-8b-q4_k_m-00001-of-00002.gguf", "Q4_K_M"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("gemma-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("x-IQ2_XXS.gguf", "IQ2_XXS"),
        ("x-TQ1_0.gguf", "TQ1_0"),
        ("gpt-oss-20b-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("BF16/x-00001-of-00002.gguf", "BF16"),
        ("x-fp16.gguf", "F16"),
        ("Q4_0/x-Q8_0.gguf", "Q8_0"),
        ("Qwen3-8B.gguf", None),
        ("IQuest-Coder.gguf", None),
        ("", None),
    ],
)
def test_quantizations_of_names(name: str, quantization: str | None) -> None:
    assert quantization_of(name) == quantization
    assert quantization is None or quantization_named(quantization.lower()) == quantization


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("mmproj-F16.gguf", True),
        ("a/MMPROJ.gguf", True),
        ("x.mmproj-Q8_0.gguf", True),
        ("mmproj/model.gguf", False),
        ("my-mmprojector.gguf", False),
        ("model.gguf", False),
    ],
)
def test_projections_by_name(name: str, is_one: bool) -> None:  # noqa: FBT001 - what the name says
    assert is_projection_name(name) is is_one


BYTES = st.binary(max_size=60).map(lambda data: data.decode(errors="surrogateescape"))
WORDS = """https:// http: huggingface.co hf.co / // .. . %2e %2f %00 @ : :: [ ] a acme Tiny resolve blob
refs pr main .gguf x.gguf ? # -00001-of-00002 \\ ~ file: C: Q8_0 é \u202e \u210d \u0130 \udc80 \u0663
999999999 http://127.0.0.1:8080/hub https://example.org/"""
PIECES = st.lists(st.sampled_from([*WORDS.split(), " ", "\n"]), max_size=14).map("".join)
TYPED = st.one_of(st.text(max_size=80), BYTES, PIECES)


def _parsed(parse: Callable[[], object]) -> object:
    """What came of it; ``None`` where it was refused as input is. Anything else goes through."""
    refused: list[KawaiError] = []
    try:
        return parse()
    except KawaiError as error:
        refused.append(error)
    assert [each.exit_code for each in refused] == [2]
    return None


@given(TYPED)
@example("https://a.example/x.gguf\udc80")
@settings(max_examples=500, deadline=None)
def test_any_id_is_parsed_or_refused(text: str) -> None:
    ref = _parsed(lambda: parse_model(text))
    if isinstance(ref, ModelRef):
        assert str(ref) == text
        assert str(ref).encode()
        for part in (ref.name, ref.owner or "x"):
            assert part == PurePosixPath(part).name
            assert not re.search(r"[\x00-\x1f\x7f-\x9f\\%]", part)


@given(TYPED, st.booleans(), st.sampled_from(["https://huggingface.co", MIRROR]))
@example("https://exa\udc80mple.org/x.gguf", False, MIRROR)  # noqa: FBT003 - as @given gives it
@example("https://example.org/x.gguf?\udc80", False, MIRROR)  # noqa: FBT003
@settings(max_examples=1500, deadline=None)
def test_any_source_is_parsed_or_refused(text: str, local_paths: bool, endpoint: str) -> None:  # noqa: FBT001
    source = _parsed(lambda: parse_source(text, endpoint, local_paths=local_paths))
    if isinstance(source, HubFile):
        assert safe_path(source.path)
        assert is_gguf_name(source.path)
        assert parse_source(source.url) == source
        assert re.fullmatch(r"[\x21-\x7e]+", source.url)
    elif isinstance(source, HubRepo):
        assert re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", str(source), re.ASCII)
    elif isinstance(source, PlainUrl):
        assert source.url.encode()
        assert urlsplit(source.url).scheme in {"http", "https"}
        assert safe_path(source.host)
        assert safe_path(source.file_name)
        assert parse_source(source.url, endpoint) == source


@pytest.mark.parametrize("words", ["https://exa\\200mple.org/x.gguf", "https://127.0.0.1:1/x.gguf?\\200"])
def test_bytes_that_are_no_text_are_refused_as_input(cli: Program, words: str) -> None:
    wrapped = f"kawai --json models pull \"$(printf '{words}')\""
    ended = _shell(cli, wrapped)
    assert (ended.code, ended.error["code"]) == (2, "invalid_source")


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_names_are_taken_apart_whatever_they_hold(name: str) -> None:
    shard = shard_of(name)
    assert (name in shard.names()) or not shard.count
    quantization_of(name)
    is_projection_name(name)
    safe_path(name)


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _list(cli: Program) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(cli("models", "list", "--json").out)["data"]
    return found


def _shell(cli: Program, script: str) -> Ended:
    """Arguments that Python would not pass on as they are."""
    kawai = f'kawai() {{ {sys.executable} -m kawai_tools "$@"; }}; {script}'
    done = subprocess.run(["sh", "-c", kawai], env=cli.environ, capture_output=True, text=True, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)
