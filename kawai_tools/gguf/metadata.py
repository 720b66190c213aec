"""The key-values of a GGUF header."""

import struct

from kawai_tools.errors import MalformedGguf
from kawai_tools.gguf.cursor import DAMAGED, MAX_NAME, MAX_TEXT, Cursor, shown
from kawai_tools.gguf.formats import VALUE_TYPES
from kawai_tools.gguf.header import MAX_NUMBERS, ArrayInfo, Value

MAX_ENTRIES = 1 << 16
LEAST_ENTRY = struct.calcsize("<QIB")
ALIGNMENTS = frozenset(1 << power for power in range(3, 21))  # 32 unless the file says otherwise
_MAX_ARRAYS = 256  # of which the numbers are kept
_NUMBERS = frozenset(number for number, (_, code) in VALUE_TYPES.items() if code and code not in "fd")


def read_metadata(cursor: Cursor, count: int) -> tuple[dict[str, Value], dict[str, tuple[int, ...]]]:
    """Return the values by key, and the numbers of the short arrays of integers and bools."""
    metadata: dict[str, Value] = {}
    arrays: dict[str, tuple[int, ...]] = {}
    for _ in range(count):
        cursor.rest -= LEAST_ENTRY
        key = cursor.text(MAX_NAME)
        if key in metadata:
            raise MalformedGguf(f"the key {shown(key)} is there twice", DAMAGED)
        metadata[key] = _read_value(cursor, key, arrays)
    # Shards after the first carry nothing but split.* (tools/gguf-split of llama.cpp).
    architecture = metadata.get("general.architecture", "shard" if metadata.get("split.no") else "")
    if not isinstance(architecture, str) or not architecture:
        raise MalformedGguf("it does not say its architecture (general.architecture)", DAMAGED)
    return metadata, arrays


def alignment(metadata: dict[str, Value]) -> int:
    """To how many bytes the tensor data is aligned."""
    value = metadata.get("general.alignment", 32)
    if isinstance(value, int) and value in ALIGNMENTS:
        return value
    raise MalformedGguf(f"general.alignment is {shown(str(value))}: no power of two it can be", DAMAGED)


def _read_value(cursor: Cursor, key: str, arrays: dict[str, tuple[int, ...]]) -> Value:
    kind, code = VALUE_TYPES.get(cursor.unpack("I")[0], ("unknown", ""))
    if kind == "string":
        return cursor.text(MAX_TEXT)
    if kind == "array":
        return _read_array(cursor, key, arrays)
    if kind == "unknown":
        raise MalformedGguf(f"{shown(key)} has a value of unknown type", DAMAGED)
    value: int | float = cursor.unpack(code)[0]
    if kind == "bool" and value > 1:
        raise MalformedGguf(f"{shown(key)} is a bool of value {value}", DAMAGED)
    return bool(value) if kind == "bool" else value


def _read_array(cursor: Cursor, key: str, arrays: dict[str, tuple[int, ...]]) -> ArrayInfo:
    """Step over an array, keeping the numbers of a short one: what layers differ in is told so."""
    number, length = cursor.unpack("IQ")
    kind, code = VALUE_TYPES.get(number, ("unknown", ""))
    if kind in {"array", "unknown"}:  # no model nests arrays, and llama.cpp refuses them
        raise MalformedGguf(f"{shown(key)} is an array of {kind} values", DAMAGED)
    if kind == "string":
        cursor.skip_strings(length)
    elif length <= MAX_NUMBERS and number in _NUMBERS and len(arrays) < _MAX_ARRAYS:
        arrays[key] = cursor.unpack(f"{length}{code}")
    else:
        cursor.skip(length * struct.calcsize(f"<{code}"))
    return ArrayInfo(kind, length)
