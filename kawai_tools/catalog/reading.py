"""Reads YAML of unknown origin: by its events, under limits, into plain values that know their lines.

PyYAML's loaders are never used: they compose by recursion (30,000 nested ``[`` crash the C one), resolve
aliases and merge keys (436 bytes keep a processor busy for seconds), and guess types that nobody wrote.
Plain words are read as YAML 1.1 reads them (yaml.org/type), so that what other programs would misread is
refused where a text is wanted.
"""

import re
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime
from typing import NamedTuple

import yaml

MOST_BYTES = 1 << 20
MOST_EVENTS = 250_000
DEEPEST = 12
"""Lists and mappings inside each other; an entry of a catalog needs seven."""

_HAS_C = hasattr(yaml, "CLoader")
_LOADER = yaml.CLoader if _HAS_C else yaml.Loader
_TAG = r"(?:^|[\n\r\x85\u2028\u2029])%TAG"
"""libyaml compares each of these directives with all others."""

_TRUE = frozenset({"true", "yes", "on"})
_LONGEST = 60


class Malformed(Exception):
    """What is wrong, and in which line (from 1; ``None``: in none of them)."""

    def __init__(self, words: str, line: int | None = None) -> None:
        """``words`` follow file and line in a message."""
        super().__init__(words)
        self.words = words
        self.line = line


class Unclear:
    """A plain word that some read as a number or a time, and others as a text: neither is meant surely."""


class Node(NamedTuple):
    """A value and the line it begins in; ``parts`` are those of a list or mapping, ``text`` as it is written.

    ``kind`` is what the value is, or what its plain word is read as.
    """

    line: int
    kind: str
    value: str | int | float | bool | Unclear | None = None
    text: str = ""
    parts: "list[Node] | dict[str, Node] | None" = None

    def plain(self) -> object:
        """The value without its lines."""
        if isinstance(self.parts, dict):
            return {key: part.plain() for key, part in self.parts.items()}
        return [part.plain() for part in self.parts] if self.parts is not None else self.value

    def at(self, path: str) -> "Node":
        """The part that a path like ``$.files.model[0].url`` names, or as far towards it as there is one."""
        node = self
        for key, number in re.findall(r"\.([\w-]+)|\[(\d+)\]", path):
            if isinstance(node.parts, dict) and key in node.parts:
                node = node.parts[key]
            elif isinstance(node.parts, list) and number and int(number) < len(node.parts):
                node = node.parts[int(number)]
            else:
                break
        return node


def read_yaml(data: bytes) -> Node:
    """The one document that these bytes are. Raises ``Malformed``."""
    if len(data) > MOST_BYTES:
        raise Malformed(f"it is larger than {MOST_BYTES:,} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Malformed("it is not UTF-8", data.count(b"\n", 0, error.start) + 1) from None
    if re.match(r"\s*<[!?A-Za-z]", text):
        raise Malformed("it is a web page, not a catalog", 1)
    if directive := re.search(_TAG, text):
        raise Malformed("tag directives (%TAG) are not taken", text.count("\n", 0, directive.end()) + 1)
    resolver = yaml.resolver.Resolver()

    def kind_of(plain: str) -> str:
        tag: str = resolver.resolve(yaml.ScalarNode, plain, (True, False))  # type: ignore[no-untyped-call]
        return tag.rpartition(":")[2]

    try:
        return _Builder(kind_of).build(yaml.parse(text, Loader=_LOADER))
    except yaml.YAMLError as error:
        words = getattr(error, "problem", None) or getattr(error, "reason", None) or "it is not YAML"
        raise Malformed(f"not valid YAML: {words}", _line_of(error, text)) from None


def _line_of(error: yaml.YAMLError, text: str) -> int | None:
    """Where an error is: of what is never closed, where it begins."""
    if isinstance(error, yaml.reader.ReaderError):
        before = int(error.position)  # bytes, or characters where there is no libyaml
        return (text.encode()[:before].count(b"\n") if _HAS_C else text.count("\n", 0, before)) + 1
    begun, mark = getattr(error, "context_mark", None), getattr(error, "problem_mark", None)
    if begun and "end of stream" in str(getattr(error, "problem", "")):
        mark = begun
    return mark.line + 1 if mark else None


class _Builder:
    """Puts values together from events, without recursion."""

    def __init__(self, kind_of: Callable[[str], str]) -> None:
        """``kind_of`` says what YAML takes a plain word for."""
        self._kind_of = kind_of
        self._open: list[Node] = []
        self._root: Node | None = None
        self._key: str | None = None

    def build(self, events: Iterable[yaml.Event]) -> Node:
        """The document. Raises ``Malformed``."""
        for count, event in enumerate(events, 1):
            if count > MOST_EVENTS:
                raise Malformed(f"it has more than {MOST_EVENTS:,} parts", _line(event))
            self._take(event)
        if self._root is None:
            raise Malformed("it is empty", 1)
        return self._root

    def _take(self, event: yaml.Event) -> None:
        line = _line(event)
        if isinstance(event, yaml.ScalarEvent):
            self._refuse_features(event, line)
            self._scalar(event, line)
        elif isinstance(event, yaml.CollectionStartEvent):
            self._refuse_features(event, line)
            is_list = isinstance(event, yaml.SequenceStartEvent)
            self._begin(Node(line, "a list", parts=[]) if is_list else Node(line, "a mapping", parts={}))
        elif isinstance(event, yaml.CollectionEndEvent):
            self._open.pop()
        elif isinstance(event, yaml.AliasEvent):
            raise Malformed(
                f"aliases (*{(event.anchor or '')[:_LONGEST]}) are not taken; write the value out", line
            )
        elif isinstance(event, yaml.DocumentStartEvent) and self._root is not None:
            raise Malformed("it has several documents; a catalog is one", line)

    @staticmethod
    def _refuse_features(event: yaml.ScalarEvent | yaml.CollectionStartEvent, line: int) -> None:
        if event.anchor is not None:
            raise Malformed(f"anchors (&{event.anchor[:_LONGEST]}) are not taken", line)
        if event.tag is not None:
            raise Malformed(f"tags ({event.tag[:_LONGEST]}) are not taken", line)

    def _begin(self, node: Node) -> None:
        if len(self._open) >= DEEPEST:
            raise Malformed(f"it is nested deeper than {DEEPEST} times", node.line)
        if self._awaits_key():
            raise Malformed("a key must be a plain text", node.line)
        self._put(node)
        self._open.append(node)

    def _awaits_key(self) -> bool:
        return bool(self._open) and isinstance(self._open[-1].parts, dict) and self._key is None

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> None:
        if not self._awaits_key():
            self._put(self._read(event, line))
            return
        key = event.value
        if key == "<<" and event.implicit[0]:
            raise Malformed("merge keys (<<) are not taken", line)
        within = self._open[-1].parts
        if isinstance(within, dict) and key in within:
            raise Malformed(f"the key {key[:_LONGEST]!r} is there twice", line)
        self._key = key

    def _put(self, node: Node) -> None:
        if not self._open:
            self._root = node
            return
        parts = self._open[-1].parts
        if isinstance(parts, dict):
            parts[self._key or ""] = node
            self._key = None
        elif parts is not None:
            parts.append(node)

    def _read(self, event: yaml.ScalarEvent, line: int) -> Node:
        text = event.value
        if not event.implicit[0]:
            return Node(line, "a text", text, text)
        return _plain(line, self._kind_of(text), text)


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def _plain(line: int, kind: str, text: str) -> Node:
    """A plain word by what YAML 1.1 takes it for."""
    if kind == "str":
        return Node(line, "a text", text, text)
    if kind == "null":
        return Node(line, "nothing", None, text)
    if kind == "bool":
        return Node(line, "true or false", text.lower() in _TRUE, text)
    if kind == "int" and re.fullmatch(r"-?(0|[1-9][0-9]{0,17})", text):
        return Node(line, "a number", int(text), text)
    if kind == "float" and re.fullmatch(r"-?[0-9]{1,17}\.[0-9]{1,17}", text):
        return Node(line, "a number", float(text), text)
    words = {"timestamp": "a date", "int": "a number", "float": "a number"}.get(kind, "something else")
    return Node(line, words, Unclear(), text)


def unix_seconds(text: str) -> int | None:
    """A date or time (RFC 3339; UTC where it has no zone) as Unix seconds; ``None`` for anything else."""
    try:
        if len(text) == len("2025-05-03"):
            moment = datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC)
        else:
            moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
