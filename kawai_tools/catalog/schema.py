"""What a catalog file may contain; the rest is refused, with the line of the offence.

A file is ``version: 1`` and ``models``, a list of entries. Keys that are not known are refused in kawai's
own file, and left out with a warning in others: a later kawai may know them.
"""

import re
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from kawai_tools.catalog.entries import (
    ENDPOINTS,
    CatalogConfig,
    CatalogFile,
    CatalogFiles,
    CatalogMetadata,
    CatalogRow,
    Entry,
    Problem,
)
from kawai_tools.catalog.reading import Malformed, Node, read_yaml, unix_seconds
from kawai_tools.errors import KawaiError
from kawai_tools.models.choosing import File, name_of, shards, words_of
from kawai_tools.models.model import Capabilities
from kawai_tools.refs import HUB, RESERVED, HubFile, HubRepo, is_projection_name, parse_source, shard_of
from kawai_tools.transfer.egress import may_be_private, origin_of

VERSION = 1
MOST_ENTRIES = 10_000
_EARLIEST, _LATEST = -62_135_596_800, 253_402_300_799
"""Unix seconds of the years 1 to 9999."""

Short = Annotated[str, Meta(min_length=1, max_length=200)]
Address = Annotated[str, Meta(pattern=r"^https?://[^\s]+\Z", max_length=4096)]
Count = Annotated[int, Meta(ge=1, le=2**40)]
Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]


class _File(msgspec.Struct):
    url: Annotated[str, Meta(min_length=1, max_length=4096)]
    size: Short | None = None
    size_bytes: Annotated[int, Meta(ge=1, le=2**53)] | None = None
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{64}\Z")] | None = None


class _Files(msgspec.Struct):
    model: Annotated[list[_File], Meta(min_length=1, max_length=1000)]
    proj: _File | None = None


class _Capabilities(msgspec.Struct):
    endpoint: Literal["chat", "completion", "embeddings", "rerank"]
    images: bool = False
    audio: bool = False
    streaming: bool = False
    reasoning: bool = False
    tooling: bool = False
    embedding: bool = False
    rerank: bool = False


class _Metadata(msgspec.Struct):
    created: int | None = None
    collections: list[Short] | Short | None = None
    description: Annotated[str, Meta(max_length=4000)] = ""
    license: Short | None = None


class _Config(msgspec.Struct):
    context_length: Count | None = None
    gpu_layers: Annotated[int, Meta(ge=-1, le=10_000)] | None = None
    parallel: Annotated[int, Meta(ge=1, le=1000)] | None = None
    threads: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=10)] | None = None
    top_k: Annotated[int, Meta(ge=0, le=10**6)] | None = None
    top_p: Share | None = None
    min_p: Share | None = None
    repeat_penalty: Annotated[float, Meta(ge=0, le=10)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None


class _Entry(msgspec.Struct):
    id: Annotated[str, Meta(min_length=1, max_length=200)]
    category: Short
    owned_by: Short
    model_family: Short
    files: _Files
    capabilities: _Capabilities
    architecture: Short | None = None
    gguf_arch: Short | None = None
    web_page: Address | None = None
    gated_model: bool = False
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)
    config: _Config = msgspec.field(default_factory=_Config)


_KNOWN = msgspec.json.Decoder(_Entry)
"""Never used: by making it, all is known of the type before threads convert to it, which msgspec needs."""


class Terms(NamedTuple):
    """On which terms a catalog is read.

    ``name`` is what the catalog is called, ``where`` what messages call it; ``endpoint`` is the hub's
    address; ``hosts`` may be private ones; ``strict`` refuses unknown keys.
    """

    name: str
    where: str
    endpoint: str
    hosts: frozenset[str]
    strict: bool = False


def read_catalog(data: bytes, terms: Terms) -> tuple[list[Entry], list[Problem]]:
    """The entries of a catalog, and warnings. Raises ``Malformed``."""
    root = read_yaml(data)
    if not isinstance(root.parts, dict):
        raise Malformed(f"a catalog is a mapping with version and models, not {root.kind}", root.line)
    warnings: list[Problem] = []
    for key, node in root.parts.items():
        if key not in {"version", "models"}:
            _unknown(terms, node.line, key, warnings)
    version, models = root.parts.get("version"), root.parts.get("models")
    if version is None or models is None:
        raise Malformed(f"it has no {'version' if version is None else 'models'}", root.line)
    if type(version.value) is not int or version.value != VERSION:
        given = repr(version.text[:40]) if version.text else version.kind
        raise Malformed(f"version must be the number {VERSION}, not {given}", version.line)
    if not isinstance(models.parts, list):
        raise Malformed(f"models must be a list, not {models.kind}", models.line)
    if len(models.parts) > MOST_ENTRIES:
        raise Malformed(f"it has more than {MOST_ENTRIES:,} models", models.parts[MOST_ENTRIES].line)
    entries: dict[str, Entry] = {}
    for node in models.parts:
        entry = _entry(node, terms, warnings)
        key = entry.row.id.casefold()
        if key in entries:
            raise Malformed(f"the id {entry.row.id} is there twice", node.at("$.id").line)
        entries[key] = entry
    return list(entries.values()), warnings


def _unknown(terms: Terms, line: int, key: str, warnings: list[Problem]) -> None:
    words = f"{key[:60]!r} is no key of a catalog"
    if terms.strict:
        raise Malformed(words, line)
    warnings.append(Problem(terms.where, line, f"{words}, and is left out", refused=False))


def _entry(node: Node, terms: Terms, warnings: list[Problem]) -> Entry:
    given = _converted(node, terms, warnings)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", given.id) or given.id.lower() in RESERVED:
        raise Malformed(
            f"{given.id[:60]!r} can be no id: letters, digits and . _ + - only, and no word of kawai's own",
            node.at("$.id").line,
        )
    sources = [
        _source(file.url, node.at(f"$.files.model[{at}].url"), terms)
        for at, file in enumerate(given.files.model)
    ]
    if [each.url for each in sources] != [each.url for each in shards(sources[0])]:
        raise Malformed(
            "model must be one file, or all shards of one, in order", node.at("$.files.model").line
        )
    if is_projection_name(name_of(sources[0])):
        raise Malformed("this is a projection, which belongs under proj", node.at("$.files.model").line)
    proj = given.files.proj
    proj_source = _source(proj.url, node.at("$.files.proj.url"), terms) if proj else None
    return Entry(
        _row(given, sources[0], terms.name), words_of(sources[0]), proj_source.url if proj_source else None
    )


def _source(url: str, node: Node, terms: Terms) -> File:
    """Where a file is, if it may be fetched from there."""
    if re.search(r"\s", url):
        raise Malformed("url has a blank in it", node.line)
    try:
        source = parse_source(url, terms.endpoint)
        if isinstance(source, HubRepo) or not url.lower().startswith(("http://", "https://")):
            raise Malformed("url must be the address of a GGUF file", node.line)
        origin = origin_of(source.url)
    except KawaiError as error:
        raise Malformed(f"url: {error.message}", node.line) from None
    if not isinstance(source, HubFile) and origin.host not in terms.hosts and may_be_private(origin):
        raise Malformed(
            f"url: {origin.host} may be on a private network; pull_hosts (KAWAI_PULL_HOSTS) can allow it",
            node.line,
        )
    if not shard_of(name_of(source)).stem:
        raise Malformed("url names no file", node.line)
    return source


def _row(given: _Entry, source: File, catalog: str) -> CatalogRow:
    page = f"{HUB}/{source.owner}/{source.repo}" if isinstance(source, HubFile) else None
    metadata, proj = given.metadata, given.files.proj
    collections = metadata.collections or []
    return CatalogRow(
        id=given.id,
        category=given.category,
        owned_by=given.owned_by,
        model_family=given.model_family,
        web_page=given.web_page or page,
        gated_model=given.gated_model,
        architecture=given.architecture,
        gguf_arch=given.gguf_arch,
        files=CatalogFiles(
            model=[_file(file) for file in given.files.model], proj=_file(proj) if proj else None
        ),
        capabilities=Capabilities(**msgspec.structs.asdict(given.capabilities)),
        metadata=CatalogMetadata(
            created=metadata.created,
            collections=[collections] if isinstance(collections, str) else collections,
            description=" ".join(metadata.description.split()),
            license=metadata.license,
        ),
        config=CatalogConfig(**msgspec.structs.asdict(given.config)),
        catalog=catalog,
    )


def _file(given: _File) -> CatalogFile:
    sha256 = given.sha256.lower() if given.sha256 else None
    return CatalogFile(url=given.url, size=given.size, size_bytes=given.size_bytes, sha256=sha256)


# strict types, with the line of the offence


def _converted(node: Node, terms: Terms, warnings: list[Problem]) -> _Entry:
    if not isinstance(node.parts, dict):
        raise Malformed(f"an entry must be a mapping, not {node.kind}", node.line)
    _read_created(node)
    _read_digests(node)
    _drop_unknown(node, _Entry, terms, warnings)
    try:
        return msgspec.convert(node.plain(), _Entry)
    except msgspec.ValidationError as error:
        words, _, path = str(error).rpartition(" - at `")
        if not words:
            words, path = path, ""
        raise _offence(words, path.rstrip("`"), node.at(path.rstrip("`"))) from None


_INNER: dict[type[msgspec.Struct], dict[str, type[msgspec.Struct]]] = {
    _Files: {"model": _File, "proj": _File},
    _Entry: {"files": _Files, "capabilities": _Capabilities, "metadata": _Metadata, "config": _Config},
}


def _drop_unknown(node: Node, kind: type[msgspec.Struct], terms: Terms, warnings: list[Problem]) -> None:
    """Leave out the keys that a mapping of this kind does not have, or refuse them."""
    if isinstance(node.parts, list):
        for part in node.parts:
            _drop_unknown(part, kind, terms, warnings)
    if not isinstance(node.parts, dict):
        return
    known = set(kind.__struct_fields__)
    for key in [key for key in node.parts if key not in known]:
        _unknown(terms, node.parts.pop(key).line, key, warnings)
    for key, inner in _INNER.get(kind, {}).items():
        if key in node.parts:
            _drop_unknown(node.parts[key], inner, terms, warnings)


def _read_created(entry: Node) -> None:
    """Make Unix seconds of ``metadata.created``, which may be a date or time, with quotes or without."""
    metadata = entry.at("$.metadata")
    given = metadata.parts.get("created") if isinstance(metadata.parts, dict) else None
    if given is None or not isinstance(metadata.parts, dict) or given.kind == "nothing":
        return
    seconds = given.value if type(given.value) is int else unix_seconds(given.text)
    if seconds is None or not _EARLIEST <= seconds <= _LATEST:
        raise Malformed(
            f"created must be a date such as 2025-05-03, not {given.text[:40] or given.kind!r}", given.line
        )
    metadata.parts["created"] = given._replace(value=seconds)


def _read_digests(entry: Node) -> None:
    """Take digests as they are written: one without letters is no number."""
    model = entry.at("$.files.model").parts
    for file in [*(model if isinstance(model, list) else ()), entry.at("$.files.proj")]:
        if (
            isinstance(file.parts, dict)
            and (given := file.parts.get("sha256"))
            and given.text
            and given.value is not None
        ):
            file.parts["sha256"] = given._replace(value=given.text)


_WANTED = {"str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false"}
_WANTED |= {"object": "a mapping", "array": "a list", "null": "nothing"}
_PATTERNS = {"sha256": "64 hexadecimal digits", "web_page": "a web address"}


def _offence(words: str, path: str, node: Node) -> Malformed:
    """What msgspec says of a value, in the words of someone who writes a catalog."""
    name = path.removeprefix("$").removeprefix(".")
    missing = re.search(r"missing required field `(.*)`", words)
    if missing:
        return Malformed(f"{missing[1]} is missing{f' in {name}' if name else ''}", node.line)
    expected = re.match(r"Expected `([^`]*)`(.*)", words)
    if expected is None:
        choices = f"; it is one of {', '.join(ENDPOINTS)}" if name.endswith("endpoint") else ""
        return Malformed(f"{name}: {words[:1].lower()}{words[1:100]}{choices}", node.line)
    kinds = [_WANTED.get(each.strip(), each.strip()) for each in expected[1].split("|")]
    wanted = " or ".join(kind for kind in kinds if kind != "nothing")
    if "regex" in expected[2]:
        wanted = _PATTERNS.get(name.rpartition(".")[2], wanted)
    elif not expected[2].startswith(","):
        wanted += expected[2]
    elif "a text" in kinds and node.text:
        return Malformed(
            f"{name} must be a text; {node.text[:40]} is read as {node.kind}: put it in quotes", node.line
        )
    given = repr(node.text[:60]) if node.text or node.kind == "a text" else node.kind
    return Malformed(f"{name} must be {wanted}, not {given}", node.line)
