"""Lists of the catalog: what may stand in a file, what is kept of it, and what both faces tell of it."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import kawai_tools
from kawai_tools.catalog.entries import Entry, Problem
from kawai_tools.catalog.reading import MOST_BYTES, Malformed, read_yaml
from kawai_tools.catalog.schema import Terms, read_catalog
from tests.hub import LocalHub
from tests.program import KAWAI, Daemon, Ended, Program, serving
from tests.samples import tiny_gguf

Json = dict[str, Any]
HUB = "https://huggingface.co"
ROOT = Path(kawai_tools.__path__[0]).parent
TERMS = Terms("mine.yaml", "mine.yaml", HUB, frozenset())
STRICT = TERMS._replace(strict=True)
ONE = """\
version: 1
models:
  - id: one
    category: Text
    owned_by: me
    model_family: Family
    files:
      model:
        - url: https://huggingface.co/me/one/resolve/main/one.gguf
    capabilities:
      endpoint: chat
"""
HERE = "§"
"""Marks, in what is tried, the line that must be told."""
LONGEST_MESSAGE = 5_000
"""An address may have 4,096 characters; nothing else is repeated in full."""


def read(text: str | bytes, terms: Terms = TERMS) -> tuple[list[Entry], list[Problem]]:
    return read_catalog(text.encode() if isinstance(text, str) else text, terms)


def refusal(text: str | bytes, terms: Terms = TERMS) -> Malformed:
    """Why it is refused."""
    with pytest.raises(Malformed) as caught:
        read(text, terms)
    assert len(caught.value.words) <= LONGEST_MESSAGE
    return caught.value


def marked(text: str) -> tuple[str, int]:
    """The text, and the line that is marked in it."""
    assert text.count(HERE) == 1
    return text.replace(HERE, ""), text[: text.index(HERE)].count("\n") + 1


def changed(old: str, new: str) -> str:
    """``ONE`` with something else in one place."""
    assert ONE.count(old) == 1, old
    return ONE.replace(old, new)


def with_file(lines: str) -> str:
    return changed("one.gguf\n", f"one.gguf\n          {lines}\n")


def with_keys(lines: str) -> str:
    return f"{ONE}    {lines}\n"


def url(address: str) -> str:
    return changed("url: https://huggingface.co/me/one/resolve/main/one.gguf", f"url: {HERE}{address}")


# the corpus: what is refused, in which line, and in which words

SYNTAX = {
    "aliases": (with_keys("a: &a 1").replace("&a 1", f"{HERE}&a 1"), r"anchors \(&a\) are not taken"),
    "alias alone": (with_keys(f"x: {HERE}*a"), r"aliases \(\*a\) are not taken"),
    "merge key": (with_keys(f"{HERE}<<: {{a: 1}}"), r"merge keys \(<<\) are not taken"),
    "merge key first": (f"{HERE}<<: {{a: 1}}\n{ONE}", r"merge keys \(<<\) are not taken"),
    "tag": (changed("id: one", f"id: {HERE}!!python/object/apply:os.system [true]"), r"tags \(.*\) are not"),
    "own tag": (with_keys(f"metadata: {HERE}!thing {{}}"), r"tags \(!thing\) are not taken"),
    "string tag": (changed("id: one", f"id: {HERE}!!str one"), "tags"),
    "duplicate key": (with_keys(f"{HERE}category: Other"), "the key 'category' is there twice"),
    "duplicate at the top": (f"{ONE}{HERE}version: 1\n", "the key 'version' is there twice"),
    "duplicate, once quoted": (with_keys(f'{HERE}"category": Other'), "the key 'category' is there twice"),
    "documents": (f"{ONE}{HERE}---\n{ONE}", "several documents"),
    "documents, the first empty": (f"---\n{HERE}---\n{ONE}", "several documents"),
    "a list as key": (with_keys(f"? {HERE}[a]\n    : 1"), "a key must be a plain text"),
    "a mapping as key": (with_keys(f"? {HERE}{{a: 1}}\n    : 1"), "a key must be a plain text"),
    "deep": (with_keys(f"x: {HERE}{'[' * 30}{']' * 30}"), "nested deeper than 12 times"),
    "not closed": (f"version: 1\nmodels: [\n  {{id: one\n{HERE}", "not valid YAML"),
    "tab": (f"{ONE}\n{HERE}\tx: 1\n", "not valid YAML: .*tab"),
    "html": (f"{HERE}<!DOCTYPE html>\n<html></html>", "a web page, not a catalog"),
    "html after blanks": (f"{HERE}<html><body>404", "a web page, not a catalog"),
    "empty": (HERE, "it is empty"),
    "only comments": (f"{HERE}# nothing\n# here\n", "it is empty"),
    "only a start": (f"---\n{HERE}", "a catalog is a mapping with version and models, not nothing"),
    "a word": (f"{HERE}hello\n", "a catalog is a mapping .*, not a text"),
    "a list": (f"# x\n{HERE}- a\n", "a catalog is a mapping .*, not a list"),
    "JSON error": ('{"error": "nope"' + HERE + "}", "it has no version"),
    "a NUL": (with_keys(f"x: {HERE}\0"), "not valid YAML: control characters"),
    "a NUL behind wide letters": (f"# {'日' * 100}\n{HERE}\0{chr(10) * 300}", "control characters"),
    "an escape": (with_keys(f"x: {HERE}\x1b[31m"), "not valid YAML: control characters"),
    "a half surrogate": (with_keys(f'x: {HERE}"\\ud800"'), "not valid YAML"),
}
TOP = {
    "no version": (changed("version: 1\n", HERE), "it has no version"),
    "no models": (f"{HERE}version: 1\n", "it has no models"),
    "version 2": (changed("version: 1", f"version: {HERE}2"), "version must be the number 1, not '2'"),
    "version 0": (changed("version: 1", f"version: {HERE}0"), "version must be the number 1, not '0'"),
    "version 01": (changed("version: 1", f"version: {HERE}01"), "version must be the number 1, not '01'"),
    "version 1.1": (
        changed("version: 1", f"version: {HERE}1.1"),
        r"version must be the number 1, not '1\.1'",
    ),
    "version true": (
        changed("version: 1", f"version: {HERE}true"),
        "version must be the number 1, not 'true'",
    ),
    "version date": (
        changed("version: 1", f"version: {HERE}2025-01-01"),
        "version must be the number 1, not '2025-01-01'",
    ),
    "version nothing": (
        changed("version: 1", f"version: {HERE}"),
        "version must be the number 1, not nothing",
    ),
    "version text": (changed("version: 1", f'version: {HERE}"1"'), "version must be the number 1, not "),
    "version list": (
        changed("version: 1", f"version: {HERE}[1]"),
        "version must be the number 1, not a list",
    ),
    "models a mapping": (f"version: 1\nmodels: {HERE}{{a: 1}}\n", "models must be a list, not a mapping"),
    "models a text": (f"version: 1\nmodels: {HERE}none\n", "models must be a list, not a text"),
    "models nothing": (f"version: 1\nmodels:{HERE}\n", "models must be a list, not nothing"),
    "an entry a text": (f"version: 1\nmodels:\n  - {HERE}one\n", "an entry must be a mapping, not a text"),
    "an entry nothing": (f"version: 1\nmodels: [{HERE}~]\n", "an entry must be a mapping, not nothing"),
}
WORDS = {
    "no": "true or false",
    "Yes": "true or false",
    "010": "a number",
    "12": "a number",
    "1.5": "a number",
    "0x1f": "a number",
    "1_000": "a number",
    "1:30": "a number",
    ".inf": "a number",
    "2025-01-01": "a date",
    "2025-01-01T00:00:00Z": "a date",
}
TYPES = {
    f"{key} {word}": (
        changed(old, f"{key}: {HERE}{word}"),
        f"{key} must be a text; {re.escape(word)} is read as {kind}: put it in quotes",
    )
    for key, old in {"id": "id: one", "category": "category: Text"}.items()
    for word, kind in WORDS.items()
} | {
    "no id": (changed("id: one\n    category", f"{HERE}category"), "id is missing"),
    "no category": (changed("    category: Text\n", "").replace("id:", f"{HERE}id:"), "category is missing"),
    "no files": (
        re.sub(r"    files:(.|\n)*?main/one.gguf\n", "", ONE).replace("id:", f"{HERE}id:"),
        "files is missing",
    ),
    "no url": (changed("url: https", f"{HERE}size: https"), r"url is missing in files\.model\[0\]"),
    "no endpoint": (changed("endpoint: chat", f"{HERE}images: true"), "endpoint is missing in capabilities"),
    "id nothing": (changed("id: one", f"id: {HERE}"), "id must be a text, not nothing"),
    "id a list": (changed("id: one", f"id: {HERE}[one]"), "id must be a text, not a list"),
    "category empty": (changed("Text", f'{HERE}""'), "category must be"),
    "category long": (changed("Text", f"{HERE}{'x' * 201}"), "category must be"),
    "files a list": (re.sub(r"files:\n.*\n.*\n", f"files: {HERE}[]\n", ONE), "files must be a mapping"),
    "model a mapping": (re.sub(r"model:\n.*\n", f"model: {HERE}{{}}\n", ONE), r"files\.model must be a list"),
    "model none": (re.sub(r"model:\n.*\n", f"model: {HERE}[]\n", ONE), r"files\.model must be"),
    "gated text": (with_keys(f'gated_model: {HERE}"no"'), "gated_model must be true or false"),
    "gated number": (with_keys(f"gated_model: {HERE}1"), "gated_model must be true or false, not .?1"),
    "page no address": (with_keys(f"web_page: {HERE}javascript:alert(1)"), "web_page must be a web address"),
    "page a file": (with_keys(f"web_page: {HERE}file:///etc/passwd"), "web_page must be a web address"),
    "size number": (with_file(f"size: {HERE}639"), r"size must be a text; 639 is read as a number"),
    "bytes text": (with_file(f'size_bytes: {HERE}"5"'), "size_bytes must be a whole number"),
    "bytes 0": (with_file(f"size_bytes: {HERE}0"), "size_bytes must be a whole number"),
    "bytes -1": (with_file(f"size_bytes: {HERE}-1"), "size_bytes must be a whole number"),
    "bytes 1.5": (with_file(f"size_bytes: {HERE}1.5"), "size_bytes must be a whole number"),
    "bytes 010": (with_file(f"size_bytes: {HERE}010"), "size_bytes must be a whole number, not .?010"),
    "bytes true": (with_file(f"size_bytes: {HERE}true"), "size_bytes must be a whole number"),
    "bytes huge": (with_file(f"size_bytes: {HERE}{10**17}"), "size_bytes must be a whole number"),
    "bytes huger": (with_file(f"size_bytes: {HERE}{10**40}"), "size_bytes must be a whole number"),
    "capabilities text": (re.sub(r"capabilities:\n.*\n", f"capabilities: {HERE}chat\n", ONE), "a mapping"),
    "endpoint unknown": (changed("chat", f"{HERE}Chat"), r"capabilities\.endpoint"),
    "ability text": (with_keys(f'  images: {HERE}"true"'), r"capabilities\.images must be true or false"),
    "metadata list": (with_keys(f"metadata: {HERE}[]"), "metadata must be a mapping"),
    "metadata nothing": (with_keys(f"metadata:{HERE}"), "metadata must be a mapping"),
    "description long": (with_keys(f"metadata: {{description: {HERE}{'x' * 4001}}}"), "description must be"),
    "collections mapping": (with_keys(f"metadata: {{collections: {HERE}{{a: b}}}}"), "collections must be"),
    "collections numbers": (with_keys(f"metadata: {{collections: [{HERE}1]}}"), "collections"),
    "collections date": (with_keys(f"metadata: {{collections: {HERE}2025-01-01}}"), "collections"),
    "collections 010": (with_keys(f"metadata: {{collections: {HERE}010}}"), "collections"),
    "created word": (with_keys(f"metadata: {{created: {HERE}soon}}"), "created must be a date"),
    "created true": (with_keys(f"metadata: {{created: {HERE}true}}"), "created must be a date"),
    "created 13th month": (with_keys(f"metadata: {{created: {HERE}2025-13-01}}"), "created must be a date"),
    "created half": (with_keys(f"metadata: {{created: {HERE}1.5}}"), "created must be a date"),
    "heat": (with_keys(f"config: {{temperature: {HERE}hot}}"), r"config\.temperature must be a number"),
    "much heat": (with_keys(f"config: {{temperature: {HERE}11}}"), r"config\.temperature must be"),
    "endless heat": (with_keys(f"config: {{temperature: {HERE}.nan}}"), r"config\.temperature must be"),
    "no context": (with_keys(f"config: {{context_length: {HERE}0}}"), r"config\.context_length must be"),
}
DIGEST = "0123456789abcdef" * 4
DIGESTS = {
    f"digest {name}": (with_file(f"sha256: {HERE}{given}"), "sha256 must be (64 hexadecimal digits|a text)")
    for name, given in {
        "short": DIGEST[:-1],
        "long": f"{DIGEST}0",
        "other letters": DIGEST.replace("f", "g"),
        "with a prefix": f"sha256:{DIGEST}",
        "with a blank": f"'{DIGEST} '",
        "with a line": f'"{DIGEST}\\n"',
        "empty": '""',
        "wide digits": "０" * 64,  # noqa: RUF001
        "number": "5",
        "list": "[a]",
    }.items()
}
IDS = {
    f"id {given!r}": (changed("id: one", f"id: {HERE}{json.dumps(given)}"), "can be no id|id must be a text")
    for given in (
        "",
        "..",
        "../up",
        "a/b",
        "/etc/passwd",
        "a\\b",
        ".hidden",
        "-x",
        "two words",
        "a\nb",
        "a\n",
        "a\0b",
        "a%2fb",
        "~",
        "é",
        "о",  # noqa: RUF001 - a look-alike
        "a\u202eb",
        "pull",
        "PULL",
        "update",
        "filter",
        "x" * 201,
    )
}
NO_ADDRESSES = (
    "file:///etc/passwd.gguf",
    "FILE:///etc/passwd.gguf",
    "file:x.gguf",
    "ftp://example.org/x.gguf",
    "'data:,x.gguf'",
    "javascript:x.gguf",
    "//example.org/x.gguf",
    "/etc/x.gguf",
    "../x.gguf",
    "~/x.gguf",
    "C:\\x.gguf",
    "https:/example.org/x.gguf",
    "https://",
    "https:///x.gguf",
    "https://[bad/x.gguf",
    "https://example.org:99999/x.gguf",
    "https://example.org/x.txt",
    "https://example.org/",
    "https://huggingface.co/me/one",
    "https://huggingface.co/me/one:Q8_0",
    "https://huggingface.co/datasets/me/one/resolve/main/x.gguf",
    "me/one:Q8_0",
    "me/one",
    "hf.co/me/one/resolve/main/one.gguf",
    "' https://example.org/x.gguf'",
    "https://user:secret@example.org/x.gguf",
    "https://secret@example.org/x.gguf",
    f"https://example.org/{'x' * 5000}.gguf",
)
TRAVERSALS = (
    "https://huggingface.co/me/one/resolve/main/../../x.gguf",
    "https://huggingface.co/me/one/resolve/main/%2e%2e/x.gguf",
    "https://huggingface.co/me/one/resolve/main/..%2f..%2fx.gguf",
    "https://huggingface.co/me/one/resolve/main/%2fetc%2fx.gguf",
    "https://huggingface.co/me/one/resolve/main//x.gguf",
    "https://huggingface.co/me/one/resolve/main/.x.gguf",
    "https://huggingface.co/me/one/resolve/main/-x.gguf",
    "https://huggingface.co/me/one/resolve/main/x%00.gguf",
    "https://huggingface.co/me/one/resolve/main/x%0a.gguf",
    "https://huggingface.co/me/one/resolve/main/x%5c..%5cy.gguf",
    "https://huggingface.co/me/one/resolve/..%2f../x.gguf",
    "https://huggingface.co/../one/resolve/main/x.gguf",
    "https://huggingface.co/me/%2e%2e/resolve/main/x.gguf",
    f"https://huggingface.co/me/one/resolve/main/{'a/' * 20}x.gguf",
    f"https://huggingface.co/me/one/resolve/main/{'x' * 250}.gguf",
    "https://example.org/a/..%2f..%2fx.gguf",
    "https://example.org/.gguf",
    "https://example.org/.x.gguf",
    "https://example.org/x%1b.gguf",
    "https://example.org/a%5cx.gguf",
)
PRIVATE = (
    "127.0.0.1",
    "127.0.0.1:11435",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0x7f.0.0.1",
    "017700000001",
    "0177.0.0.1",
    "127.0.0.01",
    "0",
    "0.0.0.0",  # noqa: S104
    "localhost",
    "LOCALHOST",
    "localhost.",
    "a.localhost",
    "printer",
    "nas.local",
    "nas.lan",
    "metadata.google.internal",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "192.0.0.192",
    "224.0.0.1",
    "255.255.255.255",
    "[::1]",
    "[::]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "[fe80::1]",
    "[fe80::1%25eth0]",
    "[fc00::1]",
    "１２７.0.0.1",  # noqa: RUF001
    "127。0。0。1",
    "ⓛocalhost",
    "%6cocalhost",
    "local%00host",
)
ADDRESSES = (
    {f"address {each[:60]}": (url(each), r"^(files.model.0..)?url") for each in NO_ADDRESSES}
    | {f"path {each[:80]}": (url(each), "^url") for each in TRAVERSALS}
    | {f"host {each}": (url(f"http://{each}/x.gguf"), "^url: .*") for each in PRIVATE}
    | {
        "projection as model": (
            changed("model:\n", f"model:\n        {HERE}")
            .replace("        -", "-")
            .replace("one.gguf", "mmproj.gguf"),
            "this is a projection",
        ),
        "two models": (
            with_file("")
            .replace("        - url", f"        {HERE}- url")
            .replace("          \n", "        - url: https://huggingface.co/me/one/resolve/main/two.gguf\n"),
            "model must be one file, or all shards of one, in order",
        ),
        "a shard alone": (
            changed("- url", f"{HERE}- url").replace("one.gguf", "one-00001-of-00002.gguf"),
            "model must be one file, or all shards of one, in order",
        ),
        "endless shards": (
            changed("- url", f"{HERE}- url").replace("one.gguf", "one-00001-of-99999.gguf"),
            "model must be one file, or all shards of one, in order",
        ),
        "a private projection": (
            changed(
                "    capabilities:",
                f"      proj:\n        url: {HERE}http://127.1/mmproj.gguf\n    capabilities:",
            ),
            "^url: ",
        ),
    }
)
CORPUS = SYNTAX | TOP | TYPES | DIGESTS | IDS | ADDRESSES


@pytest.mark.parametrize("name", CORPUS)
def test_what_a_catalog_may_not_have_is_refused_with_its_line(name: str) -> None:
    text, line = marked(CORPUS[name][0])
    refused = refusal(text)
    assert re.search(CORPUS[name][1], refused.words), refused.words
    assert refused.line == line, refused.words
    assert "secret" not in refused.words


@pytest.mark.parametrize("ends", ["\r\n", "\n\n"])
def test_lines_are_counted_whatever_ends_them(ends: str) -> None:
    text, line = marked(with_keys(f"gated_model: {HERE}maybe"))
    refused = refusal(text.replace("\n", ends))
    assert refused.line == (line if ends == "\r\n" else 2 * line - 1)


BYTES = {
    "invalid UTF-8": (ONE.encode() + b"\n# caf\xe9\n", 13, "it is not UTF-8"),
    "UTF-16": (ONE.encode("utf-16"), 1, "it is not UTF-8"),
    "half a letter": (ONE.encode() + b"# \xf0\x9f", 12, "it is not UTF-8"),
    "a coded surrogate": (ONE.encode() + b"# \xed\xa0\x80", 12, "it is not UTF-8"),
    "gzip": (b"\x1f\x8b\x08\x00", 1, "it is not UTF-8"),
    "html behind a BOM": (b"\xef\xbb\xbf\n <html>", 1, "a web page"),
    "too large": (ONE.encode() + b"#" * MOST_BYTES, None, "it is larger than 1,048,576 bytes"),
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_that_are_no_text_are_refused(name: str) -> None:
    data, line, words = BYTES[name]
    refused = refusal(data)
    assert (refused.line, words in refused.words) == (line, True), refused.words


@pytest.mark.parametrize(
    "text",
    [
        changed("version: 1", f"version: {'a' * 900_000}"),
        with_keys(f"x: &{'a' * 900_000} 1"),
        with_keys(f"x: *{'a' * 900_000}"),
        changed("chat", "a" * 900_000),
        changed("id: one", f"id: {'a' * 900_000}"),
        changed("Text", "9" * 900_000),
        url("a" * 900_000).replace(HERE, ""),
        with_keys(f"metadata: {{created: {'a' * 900_000}}}"),
        f"{ONE}? {'a' * 900_000}\n: 1\n? {'a' * 900_000}\n: 1\n",
    ],
    ids=["version", "anchor", "alias", "endpoint", "id", "category", "url", "created", "key"],
)
def test_a_message_repeats_no_more_than_a_person_reads(text: str) -> None:
    refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        ONE.encode(),
        b"\xef\xbb\xbf" + ONE.encode(),
        ONE.replace("\n", "\r\n").encode(),
        f"%YAML 1.1\n---\n{ONE}...\n".encode(),
        json.dumps(read_yaml(ONE.encode()).plain()).encode(),
        b"# a comment\n\n" + ONE.encode(),
        ONE.replace("Text", "'Text'").encode(),
    ],
    ids=["plain", "BOM", "CRLF", "directive", "JSON", "comment", "quotes"],
)
def test_ways_to_write_one_catalog(text: bytes) -> None:
    (found,), warnings = read(text)
    assert (found.row.id, found.row.category, warnings) == ("one", "Text", [])
    assert found.source == f"{HUB}/me/one/resolve/main/one.gguf"


def test_what_a_catalog_says_is_read() -> None:
    text = with_file(f"size: 1 KB\n          size_bytes: 1024\n          sha256: {DIGEST.upper()}") + (
        "    gated_model: yes\n    metadata:\n      created: 2025-05-03\n      collections: shelf\n"
        "      description: >-\n        Two\n        lines.\n      license: mit\n"
        "    config: {context_length: 4096, temperature: 1}\n"
    )
    (found,), warnings = read(text, STRICT)
    row, (file,) = found.row, found.row.files.model
    assert warnings == []
    assert (file.size, file.size_bytes, file.sha256) == ("1 KB", 1024, DIGEST)
    assert row.metadata.created == int(datetime(2025, 5, 3, tzinfo=UTC).timestamp())
    assert (row.metadata.collections, row.metadata.description) == (["shelf"], "Two lines.")
    assert (row.gated_model, row.config.context_length, row.config.temperature) == (True, 4096, 1.0)
    assert row.web_page == f"{HUB}/me/one"


def test_a_digest_without_letters_is_one_all_the_same() -> None:
    (found,), _ = read(with_file(f"sha256: {'0' * 64}"))
    assert found.row.files.model[0].sha256 == "0" * 64


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("2025-05-03", 1746230400),
        ("'2025-05-03'", 1746230400),
        ("2025-05-03T02:00:00+02:00", 1746230400),
        ("2025-05-03T00:00:00Z", 1746230400),
        ("2025-05-03 00:00:00", 1746230400),
        ("1746230400", 1746230400),
        ("", None),
        ("~", None),
        ("null", None),
    ],
)
def test_created_is_in_unix_seconds(given: str, seconds: int | None) -> None:
    (found,), _ = read(with_keys(f"metadata: {{created: {given}}}"))
    assert found.row.metadata.created == seconds


def test_what_is_not_known_may_be_null_as_in_the_payload() -> None:
    text = with_file("{size: null, size_bytes: null, sha256: null}").replace(
        "one.gguf\n          {", "one.gguf\n          "
    )
    text = text.replace("null, ", "null\n          ").replace("null}", "null\n      proj: null")
    (found,), warnings = read(f"{text}    architecture: null\n    gguf_arch: null\n", STRICT)
    assert (found.row.files.model[0].sha256, found.row.files.proj, warnings) == (None, None, [])


# unknown keys, and ids that are there already

UNKNOWN = {
    "at the top": f"{ONE}{HERE}extra: 1\n",
    "of an entry": with_keys(f"{HERE}extra: [1, {{a: b}}]"),
    "of files": changed("      model:", f"      {HERE}extra: 1\n      model:"),
    "of a file": with_file(f"{HERE}extra: 1"),
    "of capabilities": with_keys(f"  {HERE}extra: true"),
    "of metadata": with_keys(f"metadata:\n      {HERE}extra: 1"),
    "of config": with_keys(f"config:\n      {HERE}extra: 1"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_key_is_left_out_with_a_warning_and_refused_where_it_is_ours(name: str) -> None:
    text, line = marked(UNKNOWN[name])
    (found,), (warning,) = read(text)
    assert found.row == read(ONE)[0][0].row
    assert (warning.where, warning.line, warning.refused) == ("mine.yaml", line, False)
    assert warning.words == "'extra' is no key of a catalog, and is left out"
    refused = refusal(text, STRICT)
    assert (refused.line, refused.words) == (line, "'extra' is no key of a catalog")


HOSTILE_KEYS = (
    "x` - at `$.files",
    "` - at `$",
    "x`",
    "a\nb",
    "a\x1b[31mb",
    "",
    "$.id",
    "é\u202e",
    "a" * 900,
    "null",
)


@pytest.mark.parametrize("key", HOSTILE_KEYS)
def test_an_unknown_key_may_be_called_anything(key: str) -> None:
    entries, (warning,) = read(with_keys(f"{json.dumps(key)}: 1"))
    assert [each.row.id for each in entries] == ["one"]
    assert warning.line == 12
    assert "is no key of a catalog" in str(warning)
    assert len(str(warning)) < 200
    assert refusal(with_keys(f"{json.dumps(key)}: 1"), STRICT).line == 12


@pytest.mark.parametrize("again", ["one", "ONE"])
def test_an_id_is_there_once(again: str) -> None:
    second = ONE.partition("models:\n")[2].replace("id: one", f"id: {again}")
    refused = refusal(ONE + second)
    assert (refused.line, refused.words) == (12, f"the id {again} is there twice")


# fuzzing: whatever it is, it is read or it is Malformed

_WORDS = st.sampled_from(
    [
        "",
        "1",
        "one",
        "id",
        "version",
        "models",
        "files",
        "model",
        "url",
        "proj",
        "sha256",
        "size",
        "metadata",
        "created",
        "capabilities",
        "endpoint",
        "chat",
        "config",
        "null",
        "010",
        "2025-01-01",
        DIGEST,
        f"{HUB}/me/one/resolve/main/one.gguf",
        "http://127.0.0.1/x.gguf",
        "x` - at `$.files",
    ]
)
_LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _WORDS | st.text(max_size=20)
)
_TREES = st.recursive(
    _LEAVES,
    lambda part: st.lists(part, max_size=4) | st.dictionaries(_WORDS | st.text(max_size=8), part, max_size=4),
    max_leaves=12,
)
_PATHS = st.sampled_from(
    [
        "id",
        "category",
        "files",
        "files.model",
        "files.model.0",
        "files.model.0.url",
        "files.proj",
        "files.model.0.sha256",
        "capabilities",
        "metadata",
        "metadata.created",
        "metadata.collections",
        "config",
        "config.top_k",
        "extra",
        "web_page",
        "gated_model",
        "capabilities.endpoint",
        "files.extra",
    ]
)


def _answer(data: bytes) -> None:
    """Read, or refuse: a line in the file and a message of some lines at most."""
    try:
        entries, warnings = read_catalog(data, TERMS)
    except Malformed as refused:
        assert refused.line is None or 1 <= refused.line <= data.count(b"\n") + data.count(b"\r") + 2  # noqa: PT017
        assert len(refused.words) <= LONGEST_MESSAGE  # noqa: PT017
    else:
        assert all(each.row.id and each.row.files.model for each in entries)
        assert all(len(str(warning)) <= LONGEST_MESSAGE for warning in warnings)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
@example(b"? ")
@example(b"%YAML 9.9\n---\na: 1")
@example(b"--- |\n a\n...\n%TAG ! x\n---")
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    _answer(data)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(ONE)), st.integers(0, 12), st.text(max_size=6) | _WORDS)
def test_a_damaged_catalog_is_read_or_refused(at: int, cut: int, new: str) -> None:
    _answer((ONE[:at] + new + ONE[at + cut :]).encode("utf-8", "replace"))


@settings(max_examples=250, deadline=None)
@given(st.lists(st.tuples(_PATHS, _TREES), min_size=1, max_size=3))
@example([("extra", {"x` - at `$.files": 1})])
@example([("metadata.created", 10**17), ("metadata.collections", [1.5])])
def test_any_value_anywhere_is_read_or_refused(changes: list[tuple[str, object]]) -> None:
    tree = json.loads(json.dumps(read_yaml(ONE.encode()).plain()))
    for path, value in changes:
        with contextlib.suppress(AttributeError, IndexError, KeyError, TypeError):
            _put(tree["models"][0], path.split("."), value)
    _answer(json.dumps(tree, indent=1).encode())


def _put(at: Any, path: list[str], value: object) -> None:  # noqa: ANN401 - a piece of JSON
    *way, last = (int(part) if part.isdigit() else part for part in path)
    for part in way:
        at = at[part] if isinstance(part, int) else at.setdefault(part, {})
    at[last] = value


# what is meant to hurt, under limits

_LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))
from kawai_tools.catalog.reading import Malformed
from kawai_tools.catalog.schema import Terms, read_catalog
data = sys.stdin.buffer.read()
spent = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime)
resource.setrlimit(resource.RLIMIT_CPU, (spent + 6, spent + 6))
try:
    entries, warnings = read_catalog(data, Terms("n", "n", "https://huggingface.co", frozenset()))
    print("read", len(entries), len(warnings))
except Malformed as refused:
    print(refused.line, refused.words)
"""
_BOMB = "a: &a {x: 1}\n" + "".join(f"b{n}: &b{n} {{<<: [*a, *a]}}\n" for n in range(9))
_ENTRY = ONE.partition("models:\n")[2]


def _full(text: str, piece: Callable[[int], str], end: str = "") -> str:
    """As much of it as a file may have."""
    pieces = [text]
    size = len(text) + len(end)
    for number in range(MOST_BYTES):
        pieces.append(piece(number))
        size += len(pieces[-1])
        if size > MOST_BYTES - 1000:
            break
    return "".join([*pieces, end])


def _handles(ends: str) -> str:
    """Tag directives, of which libyaml compares each with all others."""
    return _full("", lambda number: f"%TAG !{number}! t{ends}", f"---{ends}{ONE}")


HEAVY: dict[str, tuple[Callable[[], str], str]] = {
    "brackets": (
        lambda: "[" * (MOST_BYTES - 1),
        r"1 (it is nested deeper|not valid YAML: exceeded maximum nesting)",
    ),
    "braces": (lambda: "{a: " * 200_000, r"1 (it is nested deeper|not valid YAML: exceeded maximum nesting)"),
    "indents": (lambda: "".join(f"{' ' * n}a:\n" for n in range(1000)), r"13 it is nested deeper"),
    "dashes": (lambda: "- " * 500_000, r"1 (it is nested deeper|not valid YAML: exceeded maximum nesting)"),
    "merge bomb": (lambda: _BOMB, r"1 anchors"),
    "laughs": (lambda: "a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n", r"1 anchors"),
    "flat list": (lambda: f"[{'a,' * 300_000}]", r"1 it has more than 250,000 parts"),
    "flat keys": (lambda: _full("", lambda n: f"k{n}: 1\n"), r"it has|is no key"),
    "unknown keys of an entry": (lambda: _full(ONE, lambda n: f"    k{n}: 1\n"), r"read 1 |it has more|."),
    "long word": (lambda: f"{ONE}    x: {'a' * 1_000_000}", r"read 1 1"),
    "long comment": (lambda: f"{ONE}#{'a' * 1_000_000}", r"read 1 0"),
    "long quotes": (lambda: ONE + '    x: "' + "\\u0061" * 170_000 + '"', r"read 1 1"),
    "handles": (lambda: _handles("\n"), r"."),
    "handles between other breaks": (lambda: f"#\r{_handles(chr(13))}", r"."),
    "open quotes": (lambda: _full(ONE, lambda _: '    "a\n'), r"not valid YAML"),
    "question marks": (lambda: "? " * 500_000, r"1 "),
    "colons": (lambda: url("https://h/" + ":" * 3000 + "//@" * 300 + ".gguf").replace(HERE, ""), r"url"),
    "many entries": (
        lambda: _full("version: 1\nmodels:\n", lambda n: _ENTRY.replace("id: one", f"id: one{n}")),
        r"read \d{4} 0",
    ),
    "many shards": (
        lambda: _full(
            "version: 1\nmodels:\n",
            lambda n: _ENTRY.replace("id: one", f"id: one{n}").replace("one.gguf", "o-00001-of-99999.gguf"),
        ),
        r"9 model must be one file",
    ),
    "digits": (lambda: changed("version: 1", f"version: {'1' * 1_000_000}"), r"1 version"),
    "sixties": (lambda: changed("Text", "1" + ":1" * 500_000), r"4 category"),
    "blanks": (lambda: "\n" * (MOST_BYTES - 1), r"1 it is empty"),
    "documents": (lambda: "---\n" * 200_000, r"2 it has several documents"),
}


@pytest.mark.slow
def test_what_is_meant_to_hurt_costs_seconds_and_megabytes_only() -> None:
    with ThreadPoolExecutor(2) as pool:
        outcomes = dict(zip(HEAVY, pool.map(_limited, HEAVY), strict=True))
    wrong = {
        name: outcome
        for name, outcome in outcomes.items()
        if outcome[0] != 0 or not re.search(HEAVY[name][1], outcome[1])
    }
    assert wrong == {}


def _limited(name: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED],
        input=HEAVY[name][0]().encode(),
        cwd=ROOT,
        capture_output=True,
        timeout=100,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr)[-300:].decode()


# lists beside each other, as both faces tell them


def entry(id_: str, **more: Any) -> Json:  # noqa: ANN401
    """An entry whose file is called as it is."""
    return {
        "id": id_,
        "category": "Text",
        "owned_by": "me",
        "model_family": f"{id_}-GGUF",
        "files": {"model": [{"url": f"{HUB}/me/shelf/resolve/main/{id_}.gguf"}]},
        "capabilities": {"endpoint": "chat"},
        **more,
    }


def listing(*entries: Json) -> bytes:
    """A catalog file: JSON is YAML."""
    return json.dumps({"version": 1, "models": entries}, indent=1).encode()


def folder_of(program: Program) -> Path:
    """The user's folder of lists."""
    folder = Path(program.environ["KAWAI_HOME"]) / "catalogs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def put(program: Program, name: str, *ids: str) -> Path:
    path = folder_of(program) / name
    path.write_bytes(listing(*map(entry, ids)))
    return path


def rows_of(ended: Ended) -> list[Json]:
    """The rows of a list that has nothing else to say."""
    assert (ended.code, ended.err) == (0, "")
    return told(ended)


def told(ended: Ended) -> list[Json]:
    assert ended.code == 0, ended.err
    rows = json.loads(ended.out)
    assert isinstance(rows, list)
    return rows


def ids_of(ended: Ended) -> list[str]:
    """The ids beside the shipped ones."""
    return [row["id"] for row in told(ended) if row["catalog"] != "kawai"]


def _special(folder: Path) -> dict[str, str]:
    """Things in the folder that are no files, and what is said of each."""
    (folder / "directory.yaml").mkdir()
    os.mkfifo(folder / "fifo.yaml")
    (folder / "dangling.yaml").symlink_to("nowhere")
    (folder / "circle.yml").symlink_to("circle.yml")
    (folder / "zero.yaml").symlink_to("/dev/zero")
    return {
        "directory.yaml": ": it cannot be read: it is no file",
        "fifo.yaml": ": it cannot be read: it is no file",
        "dangling.yaml": ": it cannot be read: No such file or directory",
        "circle.yml": ": it cannot be read: Too many levels of symbolic links",
        "zero.yaml": ": it cannot be read: it is no file",
    }


BROKEN = {
    "alias.yaml": ("version: 1\nmodels: *a\n", ", line 2: aliases (*a) are not taken; write the value out"),
    "empty.yaml": ("", ", line 1: it is empty"),
    "page.yml": ("<html>", ", line 1: it is a web page, not a catalog"),
    "number.yaml": (
        changed("id: one", "id: 010"),
        ", line 3: id must be a text; 010 is read as a number: put it in quotes",
    ),
    "UPPER.YAML": ("- a\n", ", line 1: a catalog is a mapping with version and models, not a list"),
    "esc\x1b[31m\n.yaml": ("a: [", ", line 2: not valid YAML: did not find expected node content"),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, dict[str, str]]:
    """A home with one good list among many broken ones; what is to be said of each."""
    program = Program(tmp_path_factory.mktemp("broken"), {"KAWAI_OFFLINE": "1"})
    folder = folder_of(program)
    for name, (text, _) in BROKEN.items():
        (folder / name).write_text(text)
    expected = {name: words for name, (_, words) in BROKEN.items()} | _special(folder)
    (folder / "large.yaml").write_bytes(b"#" * (MOST_BYTES + 1))
    expected["large.yaml"] = ": it is larger than 1,048,576 bytes"
    put(program, "good.yaml", "good-one")
    put(program, ".hidden.yaml", "hidden-one")
    put(program, "other.txt", "other-one")
    return program, {
        f"{folder}/{name}".replace("\x1b", "\\x1b").replace("\n", "\\n"): words
        for name, words in expected.items()
    }


def test_broken_lists_leave_the_others_standing_and_are_named(broken: tuple[Program, dict[str, str]]) -> None:
    program, expected = broken
    for more in ((), ("--json",)):
        ended = program("catalog", "list", *more)
        assert ended.code == 0
        assert sorted(ended.err.splitlines()) == sorted(
            f"left out: {at}{words}" for at, words in expected.items()
        )
        assert "good-one" in ended.out
        assert "hidden-one" not in ended.out
    assert ids_of(ended) == ["good-one"]
    assert len(told(ended)) == 17
    quiet = program("--quiet", "catalog", "list", "--json")
    assert (quiet.out, quiet.err) == (ended.out, "")


def test_the_doctor_names_broken_lists(broken: tuple[Program, dict[str, str]]) -> None:
    program, expected = broken
    ended = program("doctor", "--json")
    assert (ended.code, ended.err) == (1, "")
    checks = [each for each in told(ended._replace(code=0)) if each["check"] == "catalog"]
    details = [each["detail"].replace("\x1b", "\\x1b").replace("\n", "\\n") for each in checks]
    assert sorted(details) == sorted(at + words for at, words in expected.items())
    assert {each["status"] for each in checks} == {"fail"}
    assert all(each["fix"] for each in checks)
    shown = program("doctor").out
    assert "id must be a text; 010 is read as a number" in shown
    assert "\x1b" not in shown


def test_the_daemon_answers_beside_broken_lists(broken: tuple[Program, dict[str, str]]) -> None:
    program, _ = broken
    with serving(program) as daemon:
        assert len(daemon.ask("GET", "/v1/catalog").json) == 17
        assert daemon.ask("GET", "/v1/catalog/good-one").json["catalog"] == "good.yaml"
        assert daemon.ask("GET", "/v1/catalog/one").status == 404
        before = _descriptors(daemon)
        for number in range(5):
            put(program, "good.yaml", "good-one", f"more-{number}")
            assert daemon.ask("GET", f"/v1/catalog/more-{number}").status == 200
        assert _descriptors(daemon) <= before
        put(program, "good.yaml", "good-one")


def _descriptors(daemon: Daemon) -> int:
    """How many files it has open, sockets apart."""
    folder = Path(f"/proc/{daemon.process.pid}/fd")
    if not folder.is_dir():
        pytest.skip("no /proc here to count open files in")
    found = 0
    for each in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += not os.readlink(each).startswith("socket:")  # noqa: PTH115 - it is no path
    return found


@pytest.mark.parametrize("data", [listing(entry("odd-one")), b"a: ["], ids=["good", "broken"])
def test_a_file_whose_name_is_no_utf8_is_one_like_others(kawai: Program, data: bytes) -> None:
    try:
        Path(os.fsdecode(os.fsencode(folder_of(kawai)) + b"/\xff.yaml")).write_bytes(data)
    except OSError as error:
        pytest.skip(f"this file system has no such names: {error}")
    for command in (("catalog", "list"), ("catalog", "list", "--json"), ("--offline", "doctor", "--json")):
        ended = kawai(*command)
        assert ended.code in {0, 1}, ended.err
        assert "Qwen3-0.6B-Q8_0" in ended.out or "doctor" in command
    with serving(kawai) as daemon:
        assert len(daemon.ask("GET", "/v1/catalog").json) == (17 if b"odd" in data else 16)


def test_a_list_that_may_not_be_read_is_said_to_be(kawai: Program) -> None:
    path = put(kawai, "shut.yaml", "shut-one")
    path.chmod(0)
    if os.access(
        path, os.R_OK
    ):  # root reads whatever it wants: a link that leads round in a circle it cannot
        path.unlink()
        path.symlink_to(path)
    ended = kawai("catalog", "list", "--json")
    assert re.fullmatch(rf"left out: {path}: it cannot be read: [A-Z][a-z ]+\n", ended.err)
    assert ids_of(ended) == []
    path.unlink()
    put(kawai, "shut.yaml", "shut-one")
    assert ids_of(kawai("catalog", "list", "--json")) == ["shut-one"]


def test_an_id_belongs_to_the_list_that_has_it_first(kawai: Program) -> None:
    put(kawai, "b.yaml", "second", "FIRST", "Qwen3-0.6b-q8_0")
    put(kawai, "a.yaml", "first", "zulu")
    ended = kawai("catalog", "list", "--json")
    rows = told(ended)
    assert [(row["id"], row["catalog"]) for row in rows[16:]] == [
        ("first", "a.yaml"),
        ("zulu", "a.yaml"),
        ("second", "b.yaml"),
    ]
    assert {row["catalog"] for row in rows[:16]} == {"kawai"}
    where = folder_of(kawai) / "b.yaml"
    assert ended.err.splitlines() == [
        f"{where}: FIRST is left out: a.yaml has that id already",
        f"{where}: Qwen3-0.6b-q8_0 is left out: kawai has that id already",
    ]
    checks = [
        each for each in json.loads(kawai("--offline", "doctor", "--json").out) if each["check"] == "catalog"
    ]
    assert [each["status"] for each in checks] == ["warn", "warn", "ok"]
    assert checks[-1]["detail"] == "19 models to choose from"


def test_many_warnings_of_one_list_are_counted(kawai: Program) -> None:
    (folder_of(kawai) / "new.yaml").write_bytes(
        listing({**entry("new-one"), **{f"k{n}": n for n in range(25)}})
    )
    ended = kawai("catalog", "list", "--json")
    assert ids_of(ended) == ["new-one"]
    lines = ended.err.splitlines()
    assert len(lines) == 11
    assert "'k0' is no key of a catalog, and is left out" in lines[0]
    assert lines[-1].endswith("new.yaml: and 15 more of such")


def test_what_a_stranger_wrote_is_shown_harmlessly(kawai: Program) -> None:
    evil = "a\x1b[2Jb\u202ec\nd\0"
    metadata = {"description": evil, "license": evil, "collections": [evil]}
    more: Json = {"architecture": evil, "gguf_arch": evil, "metadata": metadata}
    more["capabilities"] = {"endpoint": "chat"}
    row = entry("evil-one", **more) | {"category": evil, "owned_by": evil, "model_family": evil}
    row["files"]["model"][0]["size"] = evil
    (folder_of(kawai) / "evil.yaml").write_bytes(listing(row))
    for ended in (kawai("catalog", "list"), kawai("catalog", "show", "evil-one")):
        assert (ended.code, ended.err) == (0, "")
        assert "evil-one" in ended.out
        assert re.search(r"[\x00-\x09\x0b-\x1f\u202e]", ended.out) is None
    assert kawai.on_terminal("catalog", "show", "evil-one").out.count("\x1b[2J") == 0


@pytest.mark.parametrize("created", [10**17, -(10**17), 10**11 * 3, "0001-01-01T00:00:00+23:59"])
def test_a_day_that_no_calendar_has_is_no_bug(kawai: Program, created: int | str) -> None:
    (folder_of(kawai) / "old.yaml").write_bytes(listing(entry("old-one", metadata={"created": created})))
    ended = kawai("catalog", "show", "old-one")
    assert ended.code in {0, 3}, ended.err
    assert "should not" not in ended.err


# what is kept of lists that were read


def kept_of(program: Program) -> Path:
    return Path(program.environ["KAWAI_HOME"]) / "catalogs" / "parsed.json"


def parses(program: Program, **environ: str) -> tuple[bool, Ended]:
    """Whether a list had to read YAML, and the list."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *KAWAI[1:], "catalog", "list", "--json"],
        env=program.environ | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = done.stderr.splitlines()
    loaded = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert "msgspec" in loaded
    said = "".join(f"{line}\n" for line in lines if not line.startswith("import time:"))
    return "yaml" in loaded, Ended(done.returncode, done.stdout, said)


def settle(program: Program, **environ: str) -> Ended:
    """List until that costs no reading: what was written just now is not kept yet."""
    for _ in range(20):
        read_yaml_again, ended = parses(program, **environ)
        if not read_yaml_again:
            return ended
    raise AssertionError("lists that do not change are read again and again")


def test_lists_that_have_not_changed_are_not_read_again(kawai: Program) -> None:
    put(kawai, "mine.yaml", "my-one")
    first = kawai("catalog", "list", "--json")
    settled = settle(kawai)
    assert (settled, ids_of(settled)) == (first, ["my-one"])
    for command in (("catalog", "show", "my-one"), ("catalog", "list", "--category", "text")):
        assert kawai(*command).code == 0
    (folder_of(kawai) / "broken.yaml").write_text("a: [")
    again = kawai("catalog", "list", "--json")
    assert "broken.yaml, line 2" in again.err
    assert settle(kawai) == again


def test_any_change_of_a_list_is_seen_at_once(kawai: Program) -> None:
    mine = put(kawai, "mine.yaml", "my-one")

    def seen() -> list[str]:
        read_again, ended = parses(kawai)
        assert read_again
        found = ids_of(ended)
        settle(kawai)
        return found

    assert seen() == ["my-one"]
    put(kawai, "other.yaml", "other-one")
    assert seen() == ["my-one", "other-one"]
    put(kawai, "mine.yaml", "my-one", "my-two")
    assert seen() == ["my-one", "my-two", "other-one"]
    (folder_of(kawai) / "other.yaml").rename(folder_of(kawai) / "a.yaml")
    assert seen() == ["other-one", "my-one", "my-two"]
    (folder_of(kawai) / "a.yaml").unlink()
    assert seen() == ["my-one", "my-two"]
    before = mine.stat()
    mine.write_bytes(mine.read_bytes().replace(b"my-two", b"my-six"))
    os.utime(mine, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert seen() == ["my-one", "my-six"]
    new = mine.with_name("new")
    new.write_bytes(mine.read_bytes().replace(b"my-six", b"my-ten"))
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.replace(mine)
    assert seen() == ["my-one", "my-ten"]


def test_what_is_kept_holds_for_the_settings_it_was_read_with(kawai: Program) -> None:
    path = folder_of(kawai) / "lan.yaml"
    path.write_bytes(listing(entry("lan-one", files={"model": [{"url": "http://nas.lan/x.gguf"}]})))
    allowed = {"KAWAI_PULL_HOSTS": "nas.lan"}
    assert "url: nas.lan may be on a private network" in settle(kawai).err
    assert ids_of(settle(kawai, **allowed)) == ["lan-one"]
    assert ids_of(parses(kawai)[1]) == []
    assert ids_of(parses(kawai, HF_ENDPOINT="http://nas.lan")[1]) == []
    assert ids_of(parses(kawai, HF_ENDPOINT="http://nas.lan:1")[1]) == ["lan-one"]


def test_what_is_kept_holds_from_one_process_to_the_next_whatever_the_settings(kawai: Program) -> None:
    many = {"KAWAI_PULL_HOSTS": ",".join(f"h{number}.example.org" for number in range(8))}
    put(kawai, "mine.yaml", "my-one")
    settled = [parses(kawai, **many, PYTHONHASHSEED=str(seed)) for seed in (1, 1, 2, 3)]
    assert [read_again for read_again, _ in settled[2:]] == [False, False]


def _nothing(kept: Path) -> None:
    kept.write_bytes(b"")


def _garbage(kept: Path) -> None:
    kept.write_bytes(b"\xff" * 1000)


def _cut(kept: Path) -> None:
    kept.write_bytes(kept.read_bytes()[:-100])


def _other_json(kept: Path) -> None:
    kept.write_bytes(b'{"key": 1, "loaded": []}')


def _wrong_types(kept: Path) -> None:
    kept.write_bytes(kept.read_bytes().replace(b'"created":', b'"created":"x","c":'))


def _nested(kept: Path) -> None:
    kept.write_bytes(b"[" * 200_000)


def _folder(kept: Path) -> None:
    kept.unlink()
    kept.mkdir()


def _circle(kept: Path) -> None:
    kept.unlink()
    kept.symlink_to(kept.name)


def _dangling(kept: Path) -> None:
    kept.unlink()
    kept.symlink_to("nowhere")


DAMAGES = (_nothing, _garbage, _cut, _other_json, _wrong_types, _nested, _circle, _dangling, _folder)


def test_whatever_is_done_to_what_is_kept_it_heals(kawai: Program) -> None:
    put(kawai, "mine.yaml", "my-one")
    good = settle(kawai)
    for damage in DAMAGES:
        damage(kept_of(kawai))
        assert kawai("catalog", "list", "--json") == good, damage
        if damage in {_garbage, _circle}:
            assert settle(kawai) == good, damage


def test_a_home_that_cannot_be_written_lists_all_the_same(kawai: Program) -> None:
    put(kawai, "mine.yaml", "my-one")
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", mount, kawai.environ["KAWAI_HOME"]]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip("nothing can be mounted read-only here")
    for _ in range(2):
        done = subprocess.run(
            [*command, *KAWAI, "catalog", "list", "--json"],
            env=kawai.environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert [each["id"] for each in json.loads(done.stdout)[16:]] == ["my-one"]
        assert (done.returncode, done.stderr) == (0, "")
    assert not kept_of(kawai).exists()


def test_a_home_that_cannot_be_made_lists_all_the_same(kawai: Program) -> None:
    (kawai.home / "file").write_text("")
    for home in (kawai.home / "file", kawai.home / "file" / "kawai"):
        ended = kawai("catalog", "list", "--json", KAWAI_HOME=str(home))
        assert (ended.code, len(told(ended)) if ended.code == 0 else ended.err) == (0, 16)


def test_looking_does_not_make_a_home(kawai: Program) -> None:
    assert _offered(kawai, "kawai catalog pull Qwen3-8") == ["Qwen3-8B-Q8_0"]
    assert kawai("--offline", "doctor", "--json").out
    assert not (kawai.home / "kawai").exists()


# completion


def _offered(kawai: Program, words: str) -> list[str]:
    """What bash is offered at the end of a command line; nothing may be on stderr."""
    ended = kawai(
        _KAWAI_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(len(words.split(" ")) - 1)
    )
    assert (ended.code, ended.err) == (0, "")
    return ended.out.split()


def test_ids_of_the_catalog_are_offered(kawai: Program) -> None:
    put(kawai, "mine.yaml", "my-one")
    (folder_of(kawai) / "broken.yaml").write_text("a: [")
    assert sorted(_offered(kawai, "kawai catalog pull ")) == sorted([*(row.id for row in FACTS), "my-one"])
    assert sorted(_offered(kawai, "kawai catalog show Qwen3-0")) == ["Qwen3-0.6B-Q8_0"]
    assert _offered(kawai, "kawai catalog pull my") == ["my-one"]
    assert _offered(kawai, "kawai catalog pull nothing") == []
    assert _offered(kawai, "kawai catalog pull my-one ") == []
    assert set(_offered(kawai, "kawai catalog ")) == {"list", "show", "pull", "update"}
    assert {"--category", "--search", "--capability", "--downloaded"} <= set(
        _offered(kawai, "kawai catalog list --")
    )


# kawai's own catalog


class Fact(NamedTuple):
    """What is known of a shipped entry; its file is called as it is."""

    id: str
    category: str
    owner: str
    family: str
    architecture: str
    gguf_arch: str
    endpoint: str
    abilities: str
    created: str
    size: str
    proj: str = ""
    proj_size: str = ""


FACTS = [
    Fact(*line.split())
    for line in """\
Qwen3-Omni-30B-A3B-Instruct-Q8_0 Any-to-Any ggml-org Qwen3-Omni-30B-A3B-Instruct-GGUF MoE qwen3vlmoe chat images,audio,streaming,reasoning 2026-04-12 32.5_GB mmproj-Qwen3-Omni-30B-A3B-Instruct-Q8_0 1.33_GB
Qwen2-Audio-7B.Q8_0 Audio-Text-to-Text mradermacher Qwen2-Audio-7B-GGUF Dense qwen2 chat audio,streaming 2025-06-04 8.25_GB Qwen2-Audio-7B.mmproj-Q8_0 695_MB
embeddinggemma-300m-qat-Q8_0 Embedding ggml-org embeddinggemma-300m-qat-q8_0-GGUF Dense gemma-embedding embeddings embedding 2025-09-01 329_MB
Qwen3-Embedding-0.6B-Q8_0 Embedding Qwen Qwen3-Embedding-0.6B-GGUF Dense qwen3 embeddings embedding 2025-07-14 639_MB
Qwen3.5-0.8B-Q8_0 Image-Text-to-Text unsloth Qwen3.5-0.8B-GGUF Hybrid qwen35 chat images,streaming,reasoning,tooling 2026-03-02 812_MB mmproj-F16 205_MB
LFM2.5-VL-1.6B-Q8_0 Image-Text-to-Text unsloth LFM2.5-VL-1.6B-GGUF Hybrid lfm2 chat images,streaming 2025-07-11 1.25_GB mmproj-F16 854_MB
Ministral-3-14B-Instruct-2512-Q4_0 Image-Text-to-Text unsloth Ministral-3-14B-Instruct-2512-GGUF Dense mistral3 chat streaming,tooling 2025-12-02 7.81_GB mmproj-F16 878_MB
gemma-4-26B-A4B-it-UD-Q4_K_M Image-Text-to-Text unsloth gemma-4-26B-A4B-it-GGUF MoE gemma4 chat images,streaming,reasoning 2026-04-06 16.9_GB mmproj-F16 1.19_GB
Qwen3.6-35B-A3B-UD-Q4_K_M Image-Text-to-Text unsloth Qwen3.6-35B-A3B-GGUF Hybrid qwen35moe chat images,streaming,reasoning,tooling 2026-04-16 22.1_GB mmproj-F16 899_MB
bge-reranker-v2-m3-Q8_0 Rerank gpustack bge-reranker-v2-m3-GGUF Dense bert rerank rerank 2024-09-09 636_MB
qwen3-reranker-0.6b-q8_0 Rerank ggml-org Qwen3-Reranker-0.6B-Q8_0-GGUF Dense bert rerank rerank 2025-10-03 636_MB
Qwen3-0.6B-Q8_0 Text-Generation unsloth Qwen3-0.6B-GGUF Dense qwen3 chat streaming,reasoning 2025-05-03 639_MB
LFM2-700M-Q8_0 Text-Generation unsloth LFM2-700M-GGUF Hybrid lfm2 chat streaming 2025-07-11 792_MB
rnj-1-instruct-Q6_K Text-Generation unsloth rnj-1-instruct-GGUF Dense gemma3 chat streaming,reasoning,tooling 2025-12-16 6.4_GB
Qwen3-8B-Q8_0 Text-Generation Qwen Qwen3-8B-GGUF Dense qwen3 chat streaming,reasoning,tooling 2025-05-03 8.71_GB
gpt-oss-20b-Q8_0 Text-Generation unsloth gpt-oss-20b-GGUF MoE gpt-oss chat streaming,reasoning,tooling 2025-08-08 12.1_GB
""".splitlines()  # noqa: E501 - a table
]
ABILITIES = ("images", "audio", "streaming", "reasoning", "tooling", "embedding", "rerank")


def _expected(fact: Fact) -> Json:
    """The row of a shipped entry, as far as it is a fact."""
    base = f"{HUB}/{fact.owner}/{fact.family}"

    def file(name: str, size: str) -> Json:
        return {"url": f"{base}/resolve/main/{name}.gguf", "size": size.replace("_", " ")}

    return {
        "id": fact.id,
        "category": fact.category,
        "owned_by": fact.owner,
        "model_family": fact.family,
        "web_page": base,
        "gated_model": False,
        "architecture": fact.architecture,
        "gguf_arch": fact.gguf_arch,
        "files": {
            "model": [file(fact.id, fact.size)],
            "proj": file(fact.proj, fact.proj_size) if fact.proj else None,
        },
        "capabilities": {"endpoint": fact.endpoint}
        | {each: each in fact.abilities.split(",") for each in ABILITIES},
        "created": int(datetime.fromisoformat(f"{fact.created}T00:00:00Z").timestamp()),
        "downloaded": False,
        "validated": False,
    }


def _facts_of(row: Json) -> Json:
    """The same part of a row that is listed."""
    files = [*row["files"]["model"], *([row["files"]["proj"]] if row["files"]["proj"] else [])]
    model = [{key: file[key] for key in ("url", "size")} for file in files]
    return {key: row[key] for key in _expected(FACTS[0]) if key not in {"files", "created"}} | {
        "files": {
            "model": model[: len(row["files"]["model"])],
            "proj": model[-1] if row["files"]["proj"] else None,
        },
        "created": row["metadata"]["created"],
    }


def test_the_shipped_catalog_is_what_the_facts_say(kawai: Program) -> None:
    rows = rows_of(kawai("catalog", "list", "--json"))
    assert [_facts_of(row) for row in rows] == [_expected(fact) for fact in FACTS]
    assert len({row["metadata"]["description"] for row in rows}) == 16


def test_the_shipped_catalog_has_nothing_to_be_warned_of() -> None:
    entries, warnings = read((ROOT / "catalog.yaml").read_bytes(), STRICT)
    assert (len(entries), warnings) == (16, [])
    for each in entries:
        description = each.row.metadata.description
        assert re.fullmatch(r"[A-Z][^\n<>*`]{20,300}\.", description), description
        assert len(re.findall(r"[.!?](?= |$)", description)) in {1, 2}, description
        assert each.row.metadata.license


def test_the_shipped_catalog_reads_well(kawai: Program) -> None:
    lines = kawai("catalog", "list").out.splitlines()
    assert lines[0].split() == ["ID", "CATEGORY", "SIZE", "HERE", "CAPABILITIES"]
    assert [line.split()[0] for line in lines[1:]] == [fact.id for fact in FACTS]
    assert lines[1].split(maxsplit=1)[1].split("  ")[0] == "Any-to-Any"
    assert "33.8 GB" in lines[1]
    shown = kawai("catalog", "show", "qwen3-OMNI-30b-a3b-instruct-q8_0").out
    for words in (
        "Understands text, images and sound",
        "mmproj-Qwen3-Omni-30B-A3B-Instruct-Q8_0.gguf",
        "33.8 GB",
        "2026-04-12",
        "apache-2.0",
        "kawai catalog pull Qwen3-Omni-30B-A3B-Instruct-Q8_0",
    ):
        assert words in shown
    assert re.search(r"Disk +(fits|does not fit): 33\.8 GB of ", shown)
    assert re.search(r"Memory +(a guess: )?(fits|does not fit)", shown)


@pytest.mark.slow
def test_the_wheel_has_the_catalog_and_the_page(kawai: Program, tmp_path: Path) -> None:
    built = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--no-deps",
            "--no-build-isolation",
            "-q",
            "-w",
            tmp_path,
            ROOT,
        ],
        env=kawai.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("kawai_tools/catalog.yaml") == (ROOT / "catalog.yaml").read_bytes()
        page = {path for path in (ROOT / "kawai_tools" / "ui").rglob("*") if path.is_file()}
        assert {ROOT / name for name in archive.namelist() if name.startswith("kawai_tools/ui/")} == page
        archive.extractall(tmp_path / "unpacked")
    where = subprocess.run(
        [sys.executable, "-c", "import kawai_tools; print(kawai_tools.__file__)"],
        env=kawai.environ | {"PYTHONPATH": str(tmp_path / "unpacked")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(tmp_path / "unpacked")
    kawai.environ["PYTHONPATH"] = str(tmp_path / "unpacked")
    done = subprocess.run(
        [*KAWAI, "catalog", "list", "--json"],
        env=kawai.environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    rows = rows_of(Ended(done.returncode, done.stdout, done.stderr))
    assert [row["id"] for row in rows] == [fact.id for fact in FACTS]


# filters, search and show, by both faces


class Faces(NamedTuple):
    """One home by its command line and its daemon; ``have-one`` is installed."""

    cli: Program
    daemon: Daemon

    def both(self, **query: str) -> list[Json]:
        """The rows that fit, which both tell with the same bytes."""
        args = [f"--{key}={value}" for key, value in query.items() if key != "downloaded"]
        if "downloaded" in query:
            args.append("--downloaded" if query["downloaded"] == "true" else "--not-downloaded")
        ended = self.cli("catalog", "list", "--json", *args)
        reply = self.daemon.ask("GET", f"/v1/catalog?{urlencode(query)}")
        assert (ended.code, ended.err.count("\n"), reply.status) == (
            0,
            int(reply.json == []),
            200,
        ) or not ended.err
        assert ended.out.encode() == reply.body + b"\n"
        return told(ended)


OURS = (
    entry("have-one", category="Chat", capabilities={"endpoint": "completion", "reasoning": True}),
    entry("want-one", category="Chatter", metadata={"description": "Speaks ÄTHIOPISCH fluently."}),
    entry(
        "dual-one",
        category="chat",
        capabilities={"endpoint": "embeddings", "embedding": True, "rerank": True},
    ),
)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faces]:
    root = tmp_path_factory.mktemp("faces")
    with LocalHub(root / "hub") as hub:
        hub.add_file("me/shelf", "have-one.gguf", tiny_gguf())
        cli = Program(root, {"HF_ENDPOINT": hub.endpoint})
        (folder_of(cli) / "ours.yaml").write_bytes(listing(*OURS))
        assert cli("catalog", "pull", "have-one").code == 0
        with serving(cli) as daemon:
            yield Faces(cli, daemon)


SHIPPED = [fact.id for fact in FACTS]
EVERY = [*SHIPPED, *(each["id"] for each in OURS)]


def _of(category: str) -> list[str]:
    return [fact.id for fact in FACTS if fact.category == category]


def _able(ability: str) -> list[str]:
    return [fact.id for fact in FACTS if ability in (fact.endpoint, *fact.abilities.split(","))]


QUERIES: list[tuple[dict[str, str], list[str]]] = [
    ({}, EVERY),
    ({"category": "Embedding"}, _of("Embedding")),
    ({"category": "embed"}, _of("Embedding")),
    ({"category": "EMBEDDING"}, _of("Embedding")),
    ({"category": "chat"}, ["have-one", "dual-one"]),
    ({"category": "CHATT"}, ["want-one"]),
    ({"category": "cha"}, ["have-one", "want-one", "dual-one"]),
    ({"category": "text"}, _of("Text-Generation")),
    ({"category": "Text-to-Text"}, []),
    ({"category": "nothing"}, []),
    ({"category": "a"}, [*_of("Any-to-Any"), *_of("Audio-Text-to-Text")]),
    ({"capability": "chat"}, [*_able("chat"), "want-one"]),
    ({"capability": "completion"}, ["have-one"]),
    ({"capability": "Embeddings"}, [*_able("embeddings"), "dual-one"]),
    ({"capability": "embedding"}, [*_able("embedding"), "dual-one"]),
    ({"capability": "audio"}, _able("audio")),
    ({"capability": "rerank"}, [*_able("rerank"), "dual-one"]),
    ({"capability": "REASONING"}, [*_able("reasoning"), "have-one"]),
    ({"search": "qwen3-8b q8"}, ["Qwen3-8B-Q8_0"]),
    ({"search": "äthiopisch"}, ["want-one"]),
    ({"search": "have-one-gguf"}, ["have-one"]),
    ({"search": "SPEAKS fluently want"}, ["want-one"]),
    ({"search": "no such words"}, []),
    ({"search": "%"}, []),
    ({"downloaded": "true"}, ["have-one"]),
    ({"downloaded": "false"}, [each for each in EVERY if each != "have-one"]),
    ({"downloaded": "true", "category": "embed"}, []),
    (
        {"category": "image", "capability": "tooling", "search": "qwen"},
        ["Qwen3.5-0.8B-Q8_0", "Qwen3.6-35B-A3B-UD-Q4_K_M"],
    ),
]


@pytest.mark.parametrize(("query", "ids"), QUERIES, ids=[str(query) for query, _ in QUERIES])
def test_both_faces_list_the_same(faces: Faces, query: dict[str, str], ids: list[str]) -> None:
    assert [row["id"] for row in faces.both(**query)] == ids
    if list(query) == ["category"]:
        reply = faces.daemon.ask("GET", f"/v1/catalog/filter/{query['category']}")
        assert (reply.status, [row["id"] for row in reply.json]) == (200, ids)


def test_a_row_has_every_key(faces: Faces) -> None:
    file = {"url", "size", "size_bytes", "sha256"}
    keys = {
        "id",
        "category",
        "owned_by",
        "model_family",
        "web_page",
        "gated_model",
        "architecture",
        "gguf_arch",
    }
    keys |= {"files", "capabilities", "metadata", "downloaded", "validated"}
    rows = faces.daemon.ask("GET", "/v1/catalog").json
    for row in [*rows, faces.daemon.ask("GET", "/v1/catalog/want-one").json]:
        assert keys <= set(row)
        assert set(row["files"]) == {"model", "proj"}
        assert all(
            set(each) == file
            for each in [*row["files"]["model"], row["files"]["proj"] or dict.fromkeys(file)]
        )
        assert set(row["capabilities"]) == {"endpoint", *ABILITIES}
        assert set(row["metadata"]) == {"created", "collections", "description", "license"}
        assert isinstance(row["metadata"]["created"], int | None)
    ticked = [(row["id"], row["downloaded"], row["validated"]) for row in rows if row["downloaded"]]
    assert ticked == [("have-one", True, True)]


def test_an_unknown_capability_is_refused_with_those_there_are(faces: Faces) -> None:
    ended = faces.cli("catalog", "list", "--capability", "flying", "--json")
    reply = faces.daemon.ask("GET", "/v1/catalog?capability=flying")
    assert (ended.code, ended.out, reply.status) == (2, "", 400)
    assert ended.error == reply.error
    assert ended.error["code"] == "invalid_request"
    assert all(each in ended.error["hint"] for each in ("chat", "embeddings", *ABILITIES))


@pytest.mark.parametrize("query", ["downloaded=perhaps", "downloaded=", "category=a&category=b", "nothing=1"])
def test_a_query_that_makes_no_sense_is_refused(faces: Faces, query: str) -> None:
    reply = faces.daemon.ask("GET", f"/v1/catalog?{query}")
    assert (reply.status, reply.error["type"]) == (400, "invalid_request")


@pytest.mark.parametrize("id_", ["qwen3-8b-q8_0", "QWEN3-8B-Q8_0", "HAVE-one"])
def test_an_entry_is_shown_whatever_the_case(faces: Faces, id_: str) -> None:
    ended = faces.cli("catalog", "show", id_, "--json")
    reply = faces.daemon.ask("GET", f"/v1/catalog/{id_}")
    assert (ended.code, ended.err, reply.status) == (0, "", 200)
    shown, answered = json.loads(ended.out), reply.json
    assert shown["id"].casefold() == id_.casefold()
    assert shown.pop("free") > 0 < answered.pop("free")
    assert shown == answered
    assert shown["needed"] == (0 if shown["downloaded"] else 8_710_000_000)


@pytest.mark.parametrize(
    ("id_", "near"),
    [
        ("Qwen3-8B-Q8", "Qwen3-8B-Q8_0"),
        ("have-on", "have-one"),
        ("zzzzzzzz", "kawai catalog list"),
        ("filters", "kawai"),
    ],
)
def test_an_id_that_no_list_has_is_not_found(faces: Faces, id_: str, near: str) -> None:
    ended = faces.cli("catalog", "show", id_, "--json")
    reply = faces.daemon.ask("GET", f"/v1/catalog/{id_}")
    assert (ended.code, reply.status) == (3, 404)
    assert ended.error == reply.error
    assert (ended.error["code"], id_ in ended.error["message"]) == ("entry_not_found", True)
    assert near in ended.error["hint"]


def test_a_list_that_fits_nothing_says_so_to_people_only(faces: Faces) -> None:
    ended = faces.cli("catalog", "list", "--category", "nothing")
    assert (ended.code, ended.out) == (0, "")
    assert ended.err == "no model of the catalog is like that; kawai catalog list shows all\n"
    assert faces.cli("catalog", "list", "--category", "nothing", "--json") == Ended(0, "[]\n", "")


# scripts/refresh-catalog

REFRESHED = """\
# What we have.
version: 1
models:
  - id: plain  # the first
    category: Text
    owned_by: me
    model_family: shelf
    files:
      model:
        # where it is
        - url: https://huggingface.co/me/shelf/resolve/main/plain.gguf
          size: 1 KB  # about
    capabilities: {endpoint: chat}
  - id: split
    category: Text
    owned_by: me
    model_family: shelf
    files:
      model:
        - url: https://huggingface.co/me/shelf/resolve/main/split-00001-of-00002.gguf
          size_bytes: 5  # once
          sha256: 0000000000000000000000000000000000000000000000000000000000000000
        - size: 1 KB
          url: https://huggingface.co/me/shelf/resolve/main/split-00002-of-00002.gguf
      proj:
        url: https://huggingface.co/me/shelf/resolve/main/mmproj.gguf
    capabilities: {endpoint: chat}
"""
STOCK = ("plain.gguf", "split-00001-of-00002.gguf", "split-00002-of-00002.gguf", "mmproj.gguf")


@pytest.fixture
def shelf(cli: Program, hub: LocalHub) -> Path:
    """A catalog whose files are all at the hub."""
    for name in STOCK:
        hub.add_file("me/shelf", name, tiny_gguf(name=name))
    path = cli.home / "mine.yaml"
    path.write_text(REFRESHED)
    return path


def refresh(cli: Program, path: Path, *args: str) -> Ended:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "refresh-catalog", path, *args],
        env=cli.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return Ended(done.returncode, done.stdout, done.stderr)


def pinned(text: str) -> Mapping[str, tuple[int | None, str | None]]:
    entries, warnings = read(text, STRICT)
    assert warnings == []
    files = [file for each in entries for file in each.row.files.all]
    return {file.url.rpartition("/")[2]: (file.size_bytes, file.sha256) for file in files}


def true_pins() -> dict[str, tuple[int, str]]:
    made = {name: tiny_gguf(name=name) for name in STOCK}
    return {name: (len(data), sha256(data).hexdigest()) for name, data in made.items()}


def test_refreshing_fills_sizes_and_digests_once(cli: Program, shelf: Path) -> None:
    checked = refresh(cli, shelf, "--check")
    assert (checked.code, shelf.read_text()) == (1, REFRESHED)
    done = refresh(cli, shelf)
    assert done.code == 0
    assert done.out.rpartition("\n4 files")[0] == checked.out.rpartition("\n4 files")[0]
    assert "+          size_bytes: " in done.out
    text = shelf.read_text()
    assert pinned(text) == true_pins()
    for again in ((), ("--check",)):
        ended = refresh(cli, shelf, *again)
        assert (ended.code, ended.out) == (0, "4 files asked for, 0 of them amiss, nothing changed\n")
    assert shelf.read_text() == text


def test_refreshing_changes_nothing_else(cli: Program, shelf: Path) -> None:
    refresh(cli, shelf)
    kept = [line for line in shelf.read_text().splitlines() if not re.match(r" +(size_bytes|sha256): ", line)]
    assert kept == [line for line in REFRESHED.splitlines() if not re.match(r" +(size_bytes|sha256): ", line)]
    assert len(re.findall("#.*$", shelf.read_text(), re.MULTILINE)) == REFRESHED.count("#")


def test_a_file_that_is_gone_is_named_and_the_others_are_filled(
    cli: Program, hub: LocalHub, shelf: Path
) -> None:
    hub.remove_file("me/shelf", STOCK[2])
    for args in ((), (), ("--check",)):
        done = refresh(cli, shelf, *args)
        assert done.code == 1
        assert f"file_not_found: {HUB}/me/shelf/resolve/main/{STOCK[2]}: " in done.out
        assert "4 files asked for, 1 of them amiss" in done.out
    assert pinned(shelf.read_text()) == true_pins() | {STOCK[2]: (None, None)}


def test_the_last_line_may_have_no_end(cli: Program, shelf: Path) -> None:
    moved = "    capabilities: {endpoint: chat}\n"
    text = REFRESHED.replace(moved, "").replace("    files:", f"{moved}    files:")
    shelf.write_text(text.rstrip("\n"))
    assert refresh(cli, shelf).code == 0
    assert pinned(shelf.read_text()) == true_pins()


def test_keys_that_stand_in_one_line_are_said_to_be_in_the_way(cli: Program, shelf: Path) -> None:
    shelf.write_bytes(listing(entry("plain")))
    lines = REFRESHED.replace("- url: https", "- {url: https", 1).replace("plain.gguf\n", "plain.gguf}\n")
    shelf.write_text(lines.replace("          size: 1 KB  # about\n", ""))
    done = refresh(cli, shelf)
    assert done.code == 1
    assert "line 11: write " in done.out
    assert pinned(shelf.read_text())[STOCK[3]] == true_pins()[STOCK[3]]


def test_keys_may_be_quoted(cli: Program, shelf: Path) -> None:
    shelf.write_text(REFRESHED.replace("- url:", "- 'url':"))
    assert refresh(cli, shelf).code in {0, 1}


def test_a_catalog_that_is_none_is_not_refreshed(cli: Program, shelf: Path) -> None:
    text = REFRESHED.replace("category: Text", "category: no", 1)
    shelf.write_text(text)
    done = refresh(cli, shelf)
    assert (done.code, shelf.read_text()) == (1, text)
    assert done.out.startswith(f"{shelf}, line 5: category must be a text")


def test_a_category_may_have_a_slash(kawai: Program) -> None:
    (folder_of(kawai) / "slash.yaml").write_bytes(listing(entry("slashed", category="Odd/Text")))
    with serving(kawai) as daemon:
        found = daemon.ask("GET", "/v1/catalog/filter/odd%2F").json
        assert [row["id"] for row in found] == ["slashed"]
        assert daemon.ask("GET", "/v1/catalog/filter/a%2Fb").json == []
