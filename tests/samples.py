"""Tiny GGUF files, valid and broken, byte by byte: no part of the reader they are meant to try is used.

``tiny_gguf`` makes a whole valid file in some 12 microseconds; the same arguments give the same bytes.
``BROKEN`` is the shelf of files that must be refused; ``NOT_GGUF`` of things that are no GGUF at all.
Pieces (``string``, ``entry``, ``tensor``, ``gguf``) are for tests that need a file of their own.
"""

import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)
F32, F16, Q4_0, Q8_0, Q4_K = 0, 1, 2, 8, 12
BLOCKS = {F32: (1, 4), F16: (1, 2), Q4_0: (32, 18), Q8_0: (32, 34), Q4_K: (256, 144)}
Q4_K_M = 15  # a general.file_type

CODES = {
    UINT8: "B",
    INT8: "b",
    UINT16: "H",
    INT16: "h",
    UINT32: "I",
    INT32: "i",
    FLOAT32: "f",
    BOOL: "?",
    UINT64: "Q",
    INT64: "q",
    FLOAT64: "d",
}


class Typed(NamedTuple):
    """A value whose GGUF type is given, with its bytes as they stand in the file."""

    kind: int
    payload: bytes


Plain = bool | int | float | str
Entry = Plain | Sequence[Plain] | Typed
Tensor = tuple[str, tuple[int, ...], int]

TENSORS: tuple[Tensor, ...] = (("token_embd.weight", (32, 4), F32), ("output_norm.weight", (32,), F32))


def string(text: str | bytes, order: str = "<") -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack(f"{order}Q", len(data)) + data


def typed(value: Entry, order: str = "<") -> Typed:
    """Choose a type as converters do: u32 for whole numbers if they fit, f32 for fractions."""
    if isinstance(value, Typed):
        return value
    if isinstance(value, bool):
        return Typed(BOOL, bytes([value]))
    if isinstance(value, int):
        kind = UINT32 if 0 <= value < 1 << 32 else UINT64 if value > 0 else INT64
        return Typed(kind, struct.pack(order + CODES[kind], value))
    if isinstance(value, float):
        return Typed(FLOAT32, struct.pack(f"{order}f", value))
    if isinstance(value, str):
        return Typed(STRING, string(value, order))
    items = [typed(item, order) for item in value]
    kind = items[0].kind if items else STRING
    return array(kind, len(items), b"".join(item.payload for item in items), order)


def array(kind: int, length: int, payload: bytes = b"", order: str = "<") -> Typed:
    """Make an array that claims ``length`` elements, whatever it holds."""
    return Typed(ARRAY, struct.pack(f"{order}IQ", kind, length) + payload)


def entry(key: str | bytes, value: Entry, order: str = "<") -> bytes:
    kind, payload = typed(value, order)
    return string(key, order) + struct.pack(f"{order}I", kind) + payload


def tensor(
    name: str | bytes, dimensions: Sequence[int] = (32,), kind: int = F32, offset: int = 0, order: str = "<"
) -> bytes:
    rank = len(dimensions)
    return string(name, order) + struct.pack(f"{order}I{rank}QIQ", rank, *dimensions, kind, offset)


def gguf(  # noqa: PLR0913  # each field of the header can be made to lie
    entries: Iterable[bytes] = (),
    tensors: Iterable[bytes] = (),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    entry_count: int | None = None,
    tensor_count: int | None = None,
    alignment: int = 32,
    data: bytes = b"",
    order: str = "<",
) -> bytes:
    """Join the parts of a file; the counts are true unless given."""
    entries, tensors = list(entries), list(tensors)
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(entries) if entry_count is None else entry_count,
    )
    header = magic + struct.pack(f"{order}IQQ", version, *counts) + b"".join(entries) + b"".join(tensors)
    return header + bytes(-len(header) % alignment) + data if data else header


def tiny_gguf(  # noqa: PLR0913  # one argument for each thing a test may want to differ
    path: str | os.PathLike[str] | None = None,
    *,
    architecture: str = "llama",
    name: str | None = "Tiny",
    context_length: int | None = 128,
    file_type: int | None = 0,
    tensors: Sequence[Tensor] = TENSORS,
    split: tuple[int, int] | None = None,
    chat_template: str | None = None,
    projection: bool = False,
    extra: Mapping[str, Entry] | None = None,
    version: int = 3,
    order: str = "<",
) -> bytes:
    """Make a valid GGUF file, and write it to ``path`` if there is one.

    ``split`` is (number from 0, count); like llama.cpp's own, shards after the first carry nothing else.
    ``extra`` comes last and replaces what is there. The tensors hold zeros.
    """
    metadata: dict[str, Entry | None] = {}
    if not (split and split[0]):
        architecture = "clip" if projection else architecture
        metadata = {
            "general.architecture": architecture,
            "general.type": "mmproj" if projection else "model",
            "general.name": name,
            f"{architecture}.context_length": None if projection else context_length,
            "general.file_type": file_type,
            "tokenizer.chat_template": chat_template,
        }
    if split:
        for key, number in zip(("split.no", "split.count"), split, strict=True):
            metadata[key] = Typed(UINT16, struct.pack(f"{order}H", number))
    metadata |= extra or {}
    entries = [entry(key, value, order) for key, value in metadata.items() if value is not None]
    alignment = metadata.get("general.alignment")
    alignment = alignment if isinstance(alignment, int) else 32
    infos, size = _lay_out(tensors, alignment, order)
    whole = gguf(entries, infos, version=version, alignment=alignment, data=bytes(size), order=order)
    if path is not None:
        Path(path).write_bytes(whole)
    return whole


def _lay_out(tensors: Sequence[Tensor], alignment: int, order: str) -> tuple[list[bytes], int]:
    infos: list[bytes] = []
    end = 0
    for name, dimensions, kind in tensors:
        start = end + -end % alignment
        infos.append(tensor(name, dimensions, kind, start, order))
        size = 1
        for dimension in dimensions:
            size *= dimension
        block, block_size = BLOCKS[kind]
        end = start + size // block * block_size
    return infos, end


ARCHITECTURE = entry("general.architecture", "llama")
DATA = bytes(128)  # of one tensor of 32 F32


def _entries(*entries: bytes) -> Callable[[], bytes]:
    return partial(gguf, (ARCHITECTURE, *entries), (tensor("a"),), data=DATA)


def _value(value: Typed) -> Callable[[], bytes]:
    return _entries(entry("key", value))


def _tensors(*tensors: bytes, data: bytes = DATA) -> Callable[[], bytes]:
    return partial(gguf, (ARCHITECTURE,), tensors, data=data)


def _header(version: int = 3, *, order: str = "<", magic: bytes = b"GGUF") -> Callable[[], bytes]:
    return partial(
        gguf, (ARCHITECTURE,), (tensor("a"),), data=DATA, version=version, order=order, magic=magic
    )


def _counts(*, tensors: int = 0, entries: int = 0) -> Callable[[], bytes]:
    return partial(gguf, (ARCHITECTURE,), tensor_count=tensors, entry_count=entries, data=bytes(1 << 16))


def _strings(count: int) -> bytes:
    return _value(array(STRING, count, bytes(8 * count)))()


def _text(length: int) -> bytes:
    return _value(Typed(STRING, string(bytes(length))))()


def _long(count: int) -> bytes:
    return struct.pack("<Q", count)


BROKEN: dict[str, Callable[[], bytes]] = {
    "no bytes": bytes,
    "three bytes": lambda: b"GGU",
    "four bytes": lambda: b"GGUF",
    "23 bytes": lambda: gguf()[:23],
    "wrong magic": _header(magic=b"GGML"),
    "magic turned round": _header(magic=b"FUGG"),
    "binary noise": lambda: bytes(range(256)) * 4,
    "version 0": _header(0),
    "version 1": _header(1),
    "version 4": _header(4),
    "version 99": _header(99),
    "version 2^32-1": _header(0xFFFF_FFFF),
    "big endian version 2": _header(2, order=">"),
    "big endian counts in a little endian file": lambda: _header()()[:8] + _header(order=">")()[8:],
    "no entries": lambda: gguf((), (tensor("a"),), data=DATA),
    "2^63 entries": _counts(entries=1 << 63),
    "2^63 tensors": _counts(tensors=1 << 63, entries=1),
    "2^64-1 of both": _counts(tensors=(1 << 64) - 1, entries=(1 << 64) - 1),
    "a million entries": _counts(entries=1_000_000),
    "more entries than bytes": _counts(entries=60_000),
    "more tensors than bytes": _counts(tensors=100_000, entries=1),
    "key of 2^64-1 bytes": _entries(_long((1 << 64) - 1) + b"key"),
    "key of 2^63 bytes": _entries(_long(1 << 63) + b"key"),
    "key of 65,536 bytes": _entries(entry(b"k" * 65_536, True)),  # noqa: FBT003
    "key past the end": lambda: gguf((ARCHITECTURE, _long(1000) + b"key"), data=bytes(100)),
    "unknown value type": _value(Typed(13, bytes(8))),
    "value type 2^32-1": _value(Typed(0xFFFF_FFFF, bytes(8))),
    "string past the end": _value(Typed(STRING, _long(1 << 20) + b"short")),
    "string of 2^64-1 bytes": _value(Typed(STRING, _long((1 << 64) - 1))),
    "string of 17 MiB": partial(_text, 17 << 20),
    "a bool of 2": _value(Typed(BOOL, b"\2")),
    "array of 2^40 bytes": _value(array(UINT8, 1 << 40)),
    "array of 2^64-1 numbers": _value(array(FLOAT64, (1 << 64) - 1)),
    "array of 2^40 strings": _value(array(STRING, 1 << 40)),
    "a billion strings": _value(array(STRING, 1_000_000_000, bytes(1 << 16))),
    "five million strings that are there": partial(_strings, 5_000_000),
    "array of strings, the last past the end": _value(array(STRING, 2, string("a") + _long(1 << 40))),
    "array of strings, one of 2^64-1 bytes": _value(array(STRING, 3, string("a") + _long((1 << 64) - 1))),
    "array of strings, lengths that wrap round": _value(
        array(STRING, 9, string("a") + _long((1 << 64) - 17))
    ),
    "array of unknown type": _value(array(77, 1, bytes(64))),
    "array in an array": _value(array(ARRAY, 1, array(UINT8, 1, b"\0").payload)),
    "arrays in arrays, 10,000 deep": _value(array(ARRAY, 1, array(ARRAY, 1).payload * 10_000)),
    "duplicate keys": _entries(entry("key", 1), entry("key", 2)),
    "duplicate architecture": _entries(ARCHITECTURE),
    "alignment 0": _entries(entry("general.alignment", 0)),
    "alignment 1": _entries(entry("general.alignment", 1)),
    "alignment 33": _entries(entry("general.alignment", 33)),
    "alignment 2^31": _entries(entry("general.alignment", 1 << 31)),
    "alignment -32": _entries(entry("general.alignment", -32)),
    "alignment 32.0": _entries(entry("general.alignment", 32.0)),
    "alignment of text": _entries(entry("general.alignment", "32" * 1000)),
    "alignment of an array": _entries(entry("general.alignment", [32])),
    "no architecture": lambda: gguf((entry("general.name", "x"),), (tensor("a"),), data=DATA),
    "empty architecture": lambda: gguf((entry("general.architecture", ""),), (tensor("a"),), data=DATA),
    "architecture of number": lambda: gguf((entry("general.architecture", 7),), (tensor("a"),), data=DATA),
    "no architecture in the first shard": lambda: gguf((entry("split.no", 0),), (tensor("a"),), data=DATA),
    "a dimension of 0": _tensors(tensor("a", (32, 0))),
    "a negative dimension": _tensors(tensor("a", ((1 << 64) - 32,))),
    "dimensions that overflow": _tensors(tensor("a", (1 << 32, 1 << 32))),
    "dimensions that overflow to 32": _tensors(tensor("a", ((1 << 59) + 1, 32))),
    "5 dimensions": _tensors(tensor("a", (2, 2, 2, 2, 2))),
    "2^32-1 dimensions": _tensors(string("a") + struct.pack("<I", 0xFFFF_FFFF)),
    "a row that is no whole block": _tensors(tensor("a", (33,), Q4_0)),
    "a tensor type that was dropped": _tensors(tensor("a", (32,), 4)),
    "an unknown tensor type": _tensors(tensor("a", (32,), 1000)),
    "an odd offset": _tensors(tensor("a", (8,), F32, 16)),
    "a tensor past the end": _tensors(tensor("a", (64,))),
    "a tensor one byte past the end": _tensors(tensor("a"), data=DATA[:-1]),
    "a tensor that starts past the end": _tensors(tensor("a", (1,), F32, 1 << 40)),
    "an offset of 2^64-32": _tensors(tensor("a", (1,), F32, (1 << 64) - 32)),
    "tensors without data": lambda: gguf((ARCHITECTURE,), (tensor("a"),)),
    "duplicate tensors": _tensors(tensor("a"), tensor("a")),
    "tensors that together overflow": _tensors(tensor("a", (1 << 62,)), tensor("b", (1 << 62,))),
    "a tensor name of 2^64-1 bytes": _tensors(_long((1 << 64) - 1)),
    "a tensor name of 65,536 bytes": _tensors(tensor(b"n" * 65_536)),
}
"""What must be refused as ``malformed_gguf``, by what is wrong with it."""

NOT_GGUF: dict[str, bytes] = {
    "web page": b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>",
    "web page after blanks": b"\xef\xbb\xbf \r\n\t<HTML lang=en>" + "日本語".encode(),
    "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:"
    + b"0" * 64
    + b"\nsize 98362432\n",
    "JSON": b'{"error":"Repository not found"}',
    "XML": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "text": b"Entry not found\n",
}
"""What must be refused as ``not_a_model``."""
