"""GGUF headers, read without trusting them and without loading what they list.

The layout, from ``docs/gguf.md`` of ggml and ``ggml/src/gguf.cpp`` of llama.cpp::

    file    "GGUF", version u32, tensors u64, entries u64, entry..., tensor..., padding, tensor data
    entry   key string, type u32, value
    string  length u64, bytes
    array   type u32, length u64, values
    tensor  name string, rank u32, dimensions u64..., type u32, offset u64 from the start of the data

Counts are held against the bytes that remain. The file is read with ``pread``: a mapping counts as
resident memory, and one that is truncated ends its reader with SIGBUS.
"""

import math
import os
import stat
import struct
from pathlib import Path
from typing import Any

import msgspec

from kawai_tools.errors import MalformedGguf, NotAModel

MAX_HEADER = 512 << 20  # bytes before the tensor data; the largest vocabularies need some 20 MiB
MAX_ENTRIES = 1 << 16
MAX_TENSORS = 1 << 17
MAX_STRINGS = 1 << 22  # in all arrays together; the largest vocabularies with their merges have 800,000
MAX_NAME = (1 << 16) - 1  # bytes of a key (the limit of the specification) or of a tensor's name
MAX_TEXT = 16 << 20  # bytes of all that is kept: keys, values and tensor names
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
MAX_SIZE = (1 << 63) - 1  # bytes or elements; llama.cpp counts both in int64
ALIGNMENTS = frozenset(1 << power for power in range(3, 21))  # 32 unless the file says otherwise
_WINDOW = 1 << 20

# fmt: off
VALUE_TYPES: dict[int, tuple[str, str]] = {
    0: ("uint8", "B"), 1: ("int8", "b"), 2: ("uint16", "H"), 3: ("int16", "h"), 4: ("uint32", "I"),
    5: ("int32", "i"), 6: ("float32", "f"), 7: ("bool", "B"), 8: ("string", ""), 9: ("array", ""),
    10: ("uint64", "Q"), 11: ("int64", "q"), 12: ("float64", "d"),
}
"""``gguf_type`` of ``ggml/include/gguf.h``: the name and the :mod:`struct` code of each."""

GGML_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8),
    28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}
"""``ggml_type`` of ``ggml/include/ggml.h``: name, elements and bytes of a block; the gaps were dropped."""

FILE_TYPES: dict[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0",
    37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}
"""``llama_ftype`` of ``include/llama.h`` without its prefix; the gaps were dropped."""
# fmt: on
_AGAIN = "the file is truncated or damaged: fetch it again"
_DAMAGED = "the file is damaged or was made by a faulty converter: fetch it again or from elsewhere"
_UPDATE = "it was made for a newer llama.cpp: update kawai, or choose another file"
_ANSWER = "perhaps a server's answer was saved instead of the file: fetch it again"
_NOT_MODELS: tuple[tuple[tuple[bytes, ...], str, str], ...] = (
    ((b"version https://git-lfs.github.com/spec/",), "a git-lfs pointer", "fetch the file it stands for"),
    ((b"<!doctype html", b"<html", b"<head"), "a web page", "use the address of the file itself"),
    ((b"{", b"["), "JSON", _ANSWER),
)


class ArrayInfo(msgspec.Struct, frozen=True):
    """What is kept of an array: the name of its elements' type, and how many there are."""

    type: str
    length: int


Value = bool | int | float | str | ArrayInfo


class Header(msgspec.Struct, frozen=True):
    """What a GGUF file says of itself. Sizes and offsets are bytes.

    ``metadata`` is in the order of the file, its strings as they are (U+FFFD where they are no UTF-8):
    whoever shows them escapes them. ``required_size`` is the least size of a file that holds all tensors;
    ``tensor_types`` counts them by ggml type; ``main_type`` is the type that holds the most parameters.
    """

    version: int
    big_endian: bool
    metadata: dict[str, Value]
    tensor_count: int
    parameters: int
    data_offset: int
    required_size: int
    tensor_types: dict[str, int]
    main_type: str | None
    file_size: int

    @property
    def architecture(self) -> str | None:
        """``llama``, ``qwen3``, ``clip``...; None in the second and later shards."""
        return self.text("general.architecture")

    @property
    def name(self) -> str | None:
        """The name its makers gave it."""
        return self.text("general.name")

    @property
    def context_length(self) -> int | None:
        """The context in tokens that the model was trained for."""
        return self.number(f"{self.architecture}.context_length")

    @property
    def is_projection(self) -> bool:
        """Whether this is the image or audio encoder that goes with a model, and no model itself."""
        return self.architecture == "clip" or self.text("general.type") == "mmproj"

    @property
    def is_vocabulary(self) -> bool:
        """Whether there are no tensors; the first shard of a split model may hold metadata only."""
        return self.tensor_count == 0 and (self.split_count or 1) == 1

    @property
    def quantization(self) -> str | None:
        """``Q4_K_M``, ``F16``...: what the file says, else the type of most parameters."""
        if self.is_vocabulary:
            return None
        file_type = self.number("general.file_type")
        return self.main_type if file_type is None else FILE_TYPES.get(file_type, self.main_type)

    @property
    def split_count(self) -> int | None:
        """How many shards the model is split into."""
        return self.number("split.count")

    @property
    def split_no(self) -> int | None:
        """Which of the shards this is, from 0."""
        return self.number("split.no")

    @property
    def chat_template(self) -> str | None:
        """A Jinja program of unknown origin: text to store and compare, never to render."""
        return self.text("tokenizer.chat_template")

    def text(self, key: str) -> str | None:
        """Return the string under ``key``; None if there is none or it is something else."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        """Return the natural number under ``key``; None if there is none or it is something else."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read the header of the complete file at ``path``.

    Raises MalformedGguf or NotAModel, naming the file, and OSError if it cannot be read.
    """
    path = Path(path)
    try:
        # Before opening: a device may act on being opened, a socket cannot be. After: it may be another.
        _refuse_special(path.stat().st_mode)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with os.fdopen(fd, "rb", buffering=0):
            return read_header_fd(fd)
    except (MalformedGguf, NotAModel) as error:
        raise type(error)(f"{_shown(path.name)}: {error.message}", error.hint) from None


def read_header_fd(fd: int, size: int | None = None, *, complete: bool = True) -> Header:
    """Read the header of an open regular file; its position is neither used nor moved.

    ``size`` is how many bytes from its start are there, by default all. With ``complete`` false, as while
    the file arrives, the tensors may end beyond them. The header may not.
    Raises MalformedGguf, NotAModel, or OSError.
    """
    status = os.fstat(fd)
    _refuse_special(status.st_mode)
    cursor = _Cursor(fd, status.st_size if size is None else size)
    sniff(os.pread(fd, max(0, min(cursor.size, 1024)), 0))
    version = _read_version(cursor)
    tensor_count, entry_count = cursor.unpack("QQ")
    cursor.claim(entry_count, MAX_ENTRIES, struct.calcsize("<QIB"), "metadata entries")
    cursor.claim(tensor_count, MAX_TENSORS, struct.calcsize("<QIIQ"), "tensors")
    metadata = _read_metadata(cursor, entry_count)
    alignment = _alignment(metadata)
    types, elements, data_size = _read_tensors(cursor, tensor_count, alignment)
    data_offset = cursor.position + -cursor.position % alignment
    required = data_offset + data_size if tensor_count else cursor.position
    if complete and required > cursor.size:
        raise MalformedGguf(f"{required - cursor.size} of the {required} bytes it needs are missing", _AGAIN)
    main_type = max(elements, key=elements.__getitem__, default=None)
    big, parameters = cursor.order == ">", sum(elements.values())
    return Header(
        version, big, metadata, tensor_count, parameters, data_offset, required, types, main_type, cursor.size
    )


def sniff(first_bytes: bytes) -> None:
    """Return if a file that starts with these bytes (4 at least, 1 KiB to be sure) may be GGUF.

    Raises NotAModel for a web page, a git-lfs pointer and other text, else MalformedGguf.
    """
    if first_bytes.startswith(b"GGUF"):
        return
    if b"GGUF".startswith(first_bytes):
        raise MalformedGguf(f"only {len(first_bytes)} bytes long", _AGAIN)
    start = first_bytes.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginnings, what, hint in _NOT_MODELS:
        if start.startswith(beginnings):
            raise NotAModel(f"{what}, not a model", hint)
    if first_bytes.isascii() and "".join(first_bytes.decode().split()).isprintable():
        raise NotAModel("text, not a model", _ANSWER)
    raise MalformedGguf("not a GGUF file", "kawai manages models in the GGUF format of llama.cpp")


class _Cursor:
    """A position in a file that only moves forward, over one window of its bytes."""

    def __init__(self, fd: int, size: int) -> None:
        self.size, self.position, self.order = size, 0, "<"
        self._fd, self._window, self._start = fd, b"", 0
        self._text_left, self._strings_left = MAX_TEXT, MAX_STRINGS

    def claim(self, count: int, most: int, least_size: int, what: str) -> None:
        """Refuse a count beyond its limit, or of more things than the rest of the file could hold."""
        if count > most:
            raise MalformedGguf(f"it claims {count} {what}; at most {most} are read", _DAMAGED)
        self.require(count * least_size)

    def require(self, length: int) -> None:
        """Refuse to go beyond the end of the file, or of what a header may be."""
        end, most = self.position + length, min(self.size, MAX_HEADER)
        if end > most:
            raise MalformedGguf(f"its header ends at byte {end} or later, beyond byte {most}", _AGAIN)

    def take(self, length: int) -> tuple[bytes, int]:
        """Move on by ``length`` bytes; return a buffer, and where in it they begin."""
        offset = self.position - self._start
        if offset + length > len(self._window):
            self.require(length)
            wanted = min(max(length, _WINDOW), self.size - self.position)
            self._window = os.pread(self._fd, wanted, self.position)
            self._start, offset = self.position, 0
            if len(self._window) < length:
                raise MalformedGguf("the file became shorter while it was read", _AGAIN)
        self.position += length
        return self._window, offset

    def unpack(self, layout: str) -> tuple[Any, ...]:
        """Return the next values, by :mod:`struct` codes, in the byte order of the file."""
        layout = self.order + layout
        return struct.unpack_from(layout, *self.take(struct.calcsize(layout)))

    def text(self, most: int) -> str:
        """Return the next string, of at most ``most`` bytes."""
        (length,) = self.unpack("Q")
        self.claim(length, min(most, self._text_left), 1, "bytes in a string")
        self._text_left -= length
        buffer, offset = self.take(length)
        return buffer[offset : offset + length].decode("utf-8", "replace")

    def skip(self, length: int) -> None:
        """Step over bytes without reading them."""
        self.require(length)
        self.position += length

    def skip_strings(self, count: int) -> None:
        """Step over strings without making them: where nearly all the time goes."""
        self.claim(count, self._strings_left, 8, "strings in arrays")
        self._strings_left -= count
        unpack = struct.Struct(self.order + "Q").unpack_from
        while count:
            buffer, offset = self.take(8)
            try:
                for left in range(count, 0, -1):  # noqa: B007  # counts what a full window leaves over
                    offset += unpack(buffer, offset)[0] + 8
                count = 0
            except (struct.error, OverflowError):
                count = left  # the next string starts beyond this window
            self.skip(self._start + offset - self.position)


def _read_version(cursor: _Cursor) -> int:
    """Check the version, and set the byte order of the cursor."""
    _, version = cursor.unpack("4sI")
    if version and version & 0xFFFF == 0:  # as llama.cpp tells; big endian came with version 3
        version, cursor.order = int.from_bytes(version.to_bytes(4, "little"), "big"), ">"
    if version not in ((2, 3) if cursor.order == "<" else (3,)):
        hint = _UPDATE if version > 3 else "convert it again with a current llama.cpp"  # noqa: PLR2004
        raise MalformedGguf(f"GGUF version {version} is not supported: 2 and 3 are", hint)
    return int(version)


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for _ in range(count):
        key = cursor.text(MAX_NAME)
        if key in metadata:
            raise MalformedGguf(f"the key {_shown(key)} is there twice", _DAMAGED)
        metadata[key] = _read_value(cursor, key)
    # Shards after the first carry nothing but split.* (tools/gguf-split of llama.cpp).
    architecture = metadata.get("general.architecture", "shard" if metadata.get("split.no") else "")
    if not isinstance(architecture, str) or not architecture:
        raise MalformedGguf("it does not say its architecture (general.architecture)", _DAMAGED)
    return metadata


def _read_value(cursor: _Cursor, key: str) -> Value:
    kind, code = VALUE_TYPES.get(cursor.unpack("I")[0], ("unknown", ""))
    if kind == "string":
        return cursor.text(MAX_TEXT)
    if kind == "array":
        return _skip_array(cursor, key)
    if kind == "unknown":
        raise MalformedGguf(f"{_shown(key)} has a value of unknown type", _DAMAGED)
    value: int | float = cursor.unpack(code)[0]
    if kind == "bool" and value > 1:
        raise MalformedGguf(f"{_shown(key)} is a bool of value {value}", _DAMAGED)
    return bool(value) if kind == "bool" else value


def _skip_array(cursor: _Cursor, key: str) -> ArrayInfo:
    number, length = cursor.unpack("IQ")
    kind, code = VALUE_TYPES.get(number, ("unknown", ""))
    if kind in {"array", "unknown"}:  # no model nests arrays, and llama.cpp refuses them
        raise MalformedGguf(f"{_shown(key)} is an array of {kind} values", _DAMAGED)
    if kind == "string":
        cursor.skip_strings(length)
    else:
        cursor.skip(length * struct.calcsize(f"<{code}"))
    return ArrayInfo(kind, length)


def _alignment(metadata: dict[str, Value]) -> int:
    value = metadata.get("general.alignment", 32)
    if isinstance(value, int) and value in ALIGNMENTS:
        return value
    raise MalformedGguf(f"general.alignment is {_shown(str(value))}: no power of two it can be", _DAMAGED)


def _read_tensors(cursor: _Cursor, count: int, alignment: int) -> tuple[dict[str, int], dict[str, int], int]:
    """Return tensors and elements by ggml type, and the size of the tensor data."""
    counts: dict[str, int] = {}
    elements: dict[str, int] = {}
    size = 0
    names: set[str] = set()
    for _ in range(count):
        name = cursor.text(MAX_NAME)
        if name in names:
            raise MalformedGguf(f"the tensor {_shown(name)} is there twice", _DAMAGED)
        names.add(name)
        kind, length, end = _read_tensor(cursor, name, alignment)
        counts[kind] = counts.get(kind, 0) + 1
        elements[kind] = elements.get(kind, 0) + length
        size = max(size, end)
    if max(size, sum(elements.values())) > MAX_SIZE - MAX_HEADER:
        raise MalformedGguf("its tensors together are larger than any file", _DAMAGED)
    return counts, elements, size


def _read_tensor(cursor: _Cursor, name: str, alignment: int) -> tuple[str, int, int]:
    """Return the ggml type of one tensor, its number of elements, and where in the data it ends."""
    (rank,) = cursor.unpack("I")
    cursor.claim(rank, MAX_DIMENSIONS, 8, f"dimensions of {_shown(name)}")
    *dimensions, number, offset = cursor.unpack(f"{rank}QIQ")
    if number not in GGML_TYPES:
        raise MalformedGguf(f"the tensor {_shown(name)} has the unknown type {number}", _UPDATE)
    kind, block, block_size = GGML_TYPES[number]
    length = math.prod(dimensions)
    if not 0 < length <= MAX_SIZE or math.prod(dimensions[:1]) % block:  # a row is whole blocks
        raise MalformedGguf(f"the tensor {_shown(name)} has the dimensions {dimensions} in {kind}", _DAMAGED)
    if offset % alignment:
        raise MalformedGguf(f"the tensor {_shown(name)} is not aligned to {alignment}: {offset}", _DAMAGED)
    return kind, length, offset + length // block * block_size


def _refuse_special(mode: int) -> None:
    """Refuse what is no regular file: it may block, never end, or act on being read."""
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    if not stat.S_ISREG(mode):
        raise MalformedGguf(f"{kinds.get(stat.S_IFMT(mode), 'a device')}, not a file", "name a GGUF file")


def _shown(text: str) -> str:
    """Quote a foreign string for a message: short, and with nothing in it that acts on a terminal."""
    return repr(text[:80])
