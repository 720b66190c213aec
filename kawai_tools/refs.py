"""What a user types for a model or for a source, parsed once.

A *reference* names what is installed (:class:`ModelRef`); a *source* names what could be pulled
(:class:`HubFile`, :class:`HubRepo`, :class:`PlainUrl`). Nothing here asks the disk or the network.
File URLs of the hub are ``/{owner}/{repo}/resolve/{revision}/{path}``.
"""

import re
from typing import TypeAlias
from urllib.parse import quote, unquote, urlsplit

import msgspec

from kawai_tools.errors import InvalidId, InvalidSource, LocalPath, PageUrl

HUB = "https://huggingface.co"
"""Provenance is always written with this address, wherever ``HF_ENDPOINT`` has moved the hub to."""

HUB_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co", "www.hf.co"})
RESERVED = frozenset(
    [
        "ps",
        "pull",
        "index",
        "load",
        "unload",
        "verify",
        "filter",
        "update",
        "outdated",
        "protect",
        "unprotect",
        "adopt",
        "scan",
        "fit",
    ]
)
"""Words that are routes, and so never ids or owners."""

_SHARD = r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})"
_QUANT = r"(?:^|[-._/])((?:UD-)?(?:(?:I?Q|TQ)\d\w*|BF16|FP?16|FP?32|MXFP4\w*))(?=$|[-._/])"
_REPO_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_CONTROL = r"[\x00-\x1f\x7f-\x9f]"
_SURROGATE = r"[\ud800-\udfff]"
_USER = r"(.*?//[^/?#]*|([\w.-]+/)?[^/@]*:[^/@]*)@"
"""A user name before a host, perhaps with a password; patterns are compiled when first used."""

_SECTIONS = frozenset({"datasets", "spaces", "collections", "models", "docs", "blog", "papers", "settings"})
"""What stands in an owner's place in addresses of the hub that lead to no model."""

_MAX_ID = 200
_MAX_URL = 4096
_MAX_PATH = 800  # bytes of a path in the store; what stands before it has room below PATH_MAX
_MAX_PART = 240  # bytes of one name; a file system takes 255, and kawai puts suffixes behind it
_MAX_DEPTH = 10  # folders of a repository; deeper than the store is searched would be lost


class ModelRef(msgspec.Struct, frozen=True):
    """The user's words for an installed model: an id or a stem, perhaps with its owner."""

    owner: str | None
    name: str

    def __str__(self) -> str:
        """Return the words again."""
        return f"{self.owner}/{self.name}" if self.owner else self.name


class HubFile(msgspec.Struct, frozen=True):
    """One file of a revision of a repository of the hub."""

    owner: str
    repo: str
    revision: str
    path: str

    @property
    def url(self) -> str:
        """The canonical address: on the public hub, wherever the file is really fetched from."""
        return f"{HUB}{self.url_path}"

    @property
    def url_path(self) -> str:
        """The address below the hub's endpoint."""
        revision = quote(self.revision, safe="")
        return f"/{self.owner}/{self.repo}/resolve/{revision}/{quote(self.path)}"

    def sibling(self, path: str) -> "HubFile":
        """Another file of the same revision."""
        return HubFile(self.owner, self.repo, self.revision, path)


class HubRepo(msgspec.Struct, frozen=True):
    """A repository of the hub, perhaps with the quantization that is wanted."""

    owner: str
    repo: str
    quantization: str | None = None
    revision: str = "main"

    def __str__(self) -> str:
        """Return the words again."""
        return f"{self.owner}/{self.repo}" + (f":{self.quantization}" if self.quantization else "")

    def file(self, path: str) -> HubFile:
        """One file of the repository."""
        return HubFile(self.owner, self.repo, self.revision, path)


class PlainUrl(msgspec.Struct, frozen=True):
    """An http(s) address of a file that no hub describes."""

    url: str

    @property
    def host(self) -> str:
        """The host, without port; a name fit for a folder."""
        return re.sub(r"[^a-z0-9.-]", "-", (urlsplit(self.url).hostname or "").lower()).strip(".-") or "local"

    @property
    def file_name(self) -> str:
        """The last part of the path, decoded."""
        return unquote(urlsplit(self.url).path.rsplit("/", 1)[-1])

    def sibling(self, file_name: str) -> "PlainUrl":
        """Another file in the same folder."""
        parts = urlsplit(self.url)
        path = f"{parts.path.rsplit('/', 1)[0]}/{quote(file_name)}"
        return PlainUrl(parts._replace(path=path).geturl())


Source: TypeAlias = HubFile | HubRepo | PlainUrl


class Shard(msgspec.Struct, frozen=True):
    """A file name taken apart: ``number`` of ``count``, or 0 of 0 where it is no shard.

    ``suffix`` is ``.gguf`` as it is written there.
    """

    stem: str
    number: int = 0
    count: int = 0
    suffix: str = ".gguf"

    def names(self) -> list[str]:
        """The file names of the whole set, in order."""
        if not self.count:
            return [f"{self.stem}{self.suffix}"]
        numbers = range(1, self.count + 1)
        return [f"{self.stem}-{number:05}-of-{self.count:05}{self.suffix}" for number in numbers]


def shard_of(file_name: str) -> Shard:
    """Take a ``.gguf`` file name (or path) apart; the stem keeps its folders."""
    cut = len(file_name) - (len(".gguf") if is_gguf_name(file_name) else 0)
    stem, suffix = file_name[:cut], file_name[cut:]
    match = re.fullmatch(_SHARD, stem, re.ASCII | re.DOTALL) if "-of-" in stem else None
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]):
        return Shard(stem, suffix=suffix)
    return Shard(match["stem"], int(match["number"]), int(match["count"]), suffix)


def is_gguf_name(file_name: str) -> bool:
    """Whether a file name ends in ``.gguf``, in whatever case."""
    return file_name[-5:].lower() == ".gguf"


def quantization_of(file_name: str) -> str | None:
    """The quantization that a file name ends with or names last (``Q4_K_M``, ``UD-Q4_K_XL``, ``BF16``)."""
    found = re.findall(_QUANT, shard_of(file_name).stem, re.IGNORECASE)
    return quantization_named(found[-1]) if found else None


def quantization_named(words: str) -> str:
    """A quantization as it is compared: upper case, ``FP16`` being ``F16``."""
    return re.sub(r"^FP(16|32)$", r"F\1", words.upper())


def is_projection_name(file_name: str) -> bool:
    """Whether a file name says that it is a projection (``mmproj-F16.gguf``, ``X.mmproj-Q8_0.gguf``)."""
    return re.search(r"(^|[-._])mmproj([-._]|$)", file_name.rsplit("/", 1)[-1], re.IGNORECASE) is not None


def parse_model(text: str) -> ModelRef:
    """Parse an id as it stands in a path or an argument, decoded once. Raises ``InvalidId``."""
    parts = text.split("/")
    if len(text) > _MAX_ID:
        raise InvalidId(f"an id has at most {_MAX_ID} characters, not {len(text)}")
    reason = _id_fault(text, parts)
    if reason:
        raise InvalidId(
            f"{without_user(text)!r} is not a model's id: {reason}", "kawai models list shows the ids"
        )
    return ModelRef(parts[0] if len(parts) > 1 else None, parts[-1])


def _id_fault(text: str, parts: list[str]) -> str | None:
    faults = {
        "it is empty": not text,
        "it has more than one slash": len(parts) > 2,  # noqa: PLR2004 - owner and name
        "it has an empty part": "" in parts,
        "a part of it is . or ..": any(part in {".", ".."} for part in parts),
        "it has a control character": re.search(_CONTROL, text) is not None,
        "it has a backslash": "\\" in text,
        "it has a percent sign": "%" in text,
        "a part of it begins with - or .": any(part[:1] in {"-", "."} for part in parts),
        "it is not valid Unicode": re.search(_SURROGATE, text) is not None,
    }
    return next((reason for reason, holds in faults.items() if holds), None)


def parse_source(text: str, endpoint: str = HUB, *, local_paths: bool = False) -> Source:
    """Parse what may be pulled; ``endpoint`` is where ``HF_ENDPOINT`` has moved the hub to.

    ``local_paths`` lets a path on this machine be answered with what to do instead (never over HTTP).
    Raises ``InvalidSource``, ``PageUrl`` or ``LocalPath``.
    """
    text = text.strip()
    if local_paths and _looks_local(text):
        raise LocalPath(
            f"{text[:200]} is a file on this machine, not a source to pull from",
            "kawai models adopt takes it in",
        )
    if re.match(_USER, text):  # not repeated: it may be a password
        raise InvalidSource("a source may not carry a user name or password", "set HF_TOKEN for the hub")
    if not text or len(text) > _MAX_URL or re.search(r"[\x00-\x20\x7f\\\ud800-\udfff]", text):
        raise InvalidSource(f"{text[:80]!r} is not a source that could be pulled", _EXAMPLES)
    if re.match(r"https?://", text, re.IGNORECASE):
        return _parse_url(text, endpoint)
    head, _, rest = text.partition("/")
    if head.lower() in HUB_HOSTS and rest:
        return _parse_hub(rest, shorthand=True)
    if "://" in text or text.lower().startswith("file:"):
        raise InvalidSource(f"{text} is neither http nor https", _EXAMPLES)
    return _parse_repo(text)


_EXAMPLES = (
    "give a file's URL (https://huggingface.co/OWNER/REPO/resolve/main/FILE.gguf), OWNER/REPO:QUANT "
    "(Qwen/Qwen3-8B-GGUF:Q8_0) or OWNER/REPO"
)


def _looks_local(text: str) -> bool:
    if re.match(r"(/|\./|\.\./|~|file:|[A-Za-z]:[/\\])", text, re.IGNORECASE):
        return True
    return is_gguf_name(text) and "://" not in text and text.count("/") < 2  # noqa: PLR2004 - owner, repo, file


def _parse_repo(text: str) -> HubRepo:
    name, _, quantization = text.partition(":")
    parts = name.split("/")
    if len(parts) > 2 and is_gguf_name(text) and all(map(_is_repo_part, parts[:2])):  # noqa: PLR2004
        owner, repo, *path = parts
        url = HubFile(owner, repo, "main", "/".join(path)).url
        raise InvalidSource(f"{text} is not a source by itself", f"did you mean {url}")
    if len(parts) == 1:
        raise InvalidSource(
            f"{text!r} names no repository",
            f"{_EXAMPLES}; kawai models list shows what is installed",
        )
    if len(parts) != 2 or not all(map(_is_repo_part, parts)):  # noqa: PLR2004 - owner and repo
        raise InvalidSource(f"{text!r} is not OWNER/REPO or OWNER/REPO:QUANT", _EXAMPLES)
    if ":" in text and not re.fullmatch(r"[\w.-]{1,40}", quantization, re.ASCII):
        raise InvalidSource(f"{quantization!r} is not a quantization", "one such as Q4_K_M, Q8_0 or BF16")
    return HubRepo(parts[0], parts[1], quantization or None)


def _is_repo_part(part: str) -> bool:
    return re.fullmatch(_REPO_PART, part, re.ASCII) is not None and ".." not in part


def without_user(url: str) -> str:
    """An address as it may be repeated in a message: what stands before ``@`` may be a password."""
    return re.sub(r"//[^/?#]*@", "//", url)


def _parse_url(text: str, endpoint: str) -> Source:
    try:
        parts = urlsplit(text)
        host, _port = (parts.hostname or "").lower().rstrip("."), parts.port
    except ValueError as error:
        raise InvalidSource(f"{text} is not a valid URL: {error}") from None
    if not host:
        raise InvalidSource(f"{text} names no host")
    if text.lower().startswith(endpoint.lower() + "/"):
        return _parse_hub(
            text[len(endpoint) + 1 :].split("?", maxsplit=1)[0].split("#", maxsplit=1)[0], endpoint=endpoint
        )
    if host in HUB_HOSTS:
        return _parse_hub(parts.path.lstrip("/"), shorthand=host.endswith("hf.co"))
    url = parts._replace(fragment="").geturl()
    name = PlainUrl(url).file_name
    if not is_gguf_name(name) or "/" in name or _path_fault(name):
        raise InvalidSource(f"{text} does not name a .gguf file", _EXAMPLES)
    return PlainUrl(url)


def _parse_hub(path: str, *, shorthand: bool = False, endpoint: str = HUB) -> Source:
    """Parse what follows the hub's address; ``shorthand`` allows a bare repository (``hf.co/OWNER/REPO``)."""
    parts = [unquote(part) for part in path.strip("/").split("/")]
    if len(parts) == 2 and (shorthand or ":" in parts[1]):  # noqa: PLR2004 - owner and repo
        return _parse_repo("/".join(parts))
    is_repo = len(parts) > 1 and parts[0] not in _SECTIONS and all(map(_is_repo_part, parts[:2]))
    if is_repo and len(parts) >= 5 and parts[2] in {"resolve", "blob", "raw"}:  # noqa: PLR2004 - a file
        return _hub_file(parts)
    if is_repo:
        base = f"{endpoint}/{parts[0]}/{parts[1]}"
        raise PageUrl(
            f"{endpoint}/{'/'.join(parts)} is a page, not a file",
            f"open the page's Files tab and give {base}/resolve/main/FILE.gguf, or say "
            f"{parts[0]}/{parts[1]}:QUANT to take a quantization of it",
        )
    raise PageUrl(f"{endpoint}/{path} is a page, not a file of a model's repository", _EXAMPLES)


def _hub_file(parts: list[str]) -> HubFile:
    owner, repo, _, revision, *rest = parts
    if revision == "refs" and len(rest) > 2 and rest[0] in {"pr", "convert"}:  # noqa: PLR2004 - refs/pr/N
        revision, rest = "/".join([revision, *rest[:2]]), rest[2:]
    path = "/".join(rest)
    if _path_fault(path) or _path_fault(revision):
        raise InvalidSource(f"{path!r} is not a path of a file")
    if not is_gguf_name(path):
        raise InvalidSource(f"{path} is not a .gguf file", _EXAMPLES)
    return HubFile(owner, repo, revision, path)


def _path_fault(path: str) -> bool:
    parts = path.split("/")
    if len(parts) > _MAX_DEPTH or len(path.encode("utf-8", "replace")) > _MAX_PATH:
        return True
    return any(
        not part
        or part[0] in ".-"
        or "\\" in part
        or len(part.encode("utf-8", "replace")) > _MAX_PART
        or not part.isprintable()
        for part in parts
    )


def safe_path(path: str) -> bool:
    """Whether a path that a hub lists may become one in the store."""
    return not _path_fault(path)
