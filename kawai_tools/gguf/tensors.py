"""The list of tensors in a GGUF header: how many of which type, and what they take."""

import math
import re
import struct

from kawai_tools.errors import MalformedGguf
from kawai_tools.gguf.cursor import DAMAGED, MAX_HEADER, MAX_NAME, Cursor, shown
from kawai_tools.gguf.formats import GGML_TYPES

MAX_TENSORS = 1 << 17
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
MAX_SIZE = (1 << 63) - 1  # bytes or elements; llama.cpp counts both in int64
LEAST_TENSOR = struct.calcsize("<QIIQ")
UPDATE = "it was made for a newer llama.cpp: update kawai, or choose another file"
_TENSOR = 64  # bytes that an entry likely takes, before any was seen
_MAX_OTHERS = 256  # tensors outside of the blocks whose size is kept; a language model has some ten
_MAX_KEPT_NAME = 128
_BLOCK = re.compile(r"blk\.([0-9]{1,4})\.")  # LLAMA_MAX_LAYERS of llama.cpp is 512
_EMBEDDING = "token_embd.weight"
_LOOKED_UP = frozenset({_EMBEDDING, "position_embd.weight", "token_types.weight"})
_MATRIX, _EXPERTS = 2, 3


class Tensors:
    """What is kept of the tensors; sizes are bytes, without what aligns them."""

    def __init__(self) -> None:
        """Begin with none."""
        self.counts: dict[str, int] = {}
        self.elements: dict[str, int] = {}
        self.blocks: dict[int, int] = {}
        self.others: dict[str, int] = {}
        self.matrices: dict[str, int] = {}
        self.embedding: str | None = None
        self.size = 0
        self.end = 0

    def add(self, name: str, kind: str, rank: int, elements: int, size: int) -> None:
        """Count one tensor."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.elements[kind] = self.elements.get(kind, 0) + elements
        self.size += size
        if name == _EMBEDDING:
            self.embedding = kind
        if name not in _LOOKED_UP and (rank == _MATRIX or (rank == _EXPERTS and "_exps." in name)):
            self.matrices[kind] = self.matrices.get(kind, 0) + size
        block = _BLOCK.match(name)
        if block:
            number = int(block[1])
            self.blocks[number] = self.blocks.get(number, 0) + size
        elif len(self.others) < _MAX_OTHERS and len(name) <= _MAX_KEPT_NAME:
            self.others[name] = size


def read_tensors(cursor: Cursor, count: int, alignment: int) -> Tensors:
    """Read the list, and with it the header, to its end."""
    tensors = Tensors()
    names: set[str] = set()
    begin = cursor.position
    for number in range(count):
        left = count - number
        cursor.rest = (left - 1) * LEAST_TENSOR
        cursor.likely = left * (cursor.position - begin) // number if number else left * _TENSOR
        name = cursor.text(MAX_NAME)
        if name in names:
            raise MalformedGguf(f"the tensor {shown(name)} is there twice", DAMAGED)
        names.add(name)
        kind, rank, elements, size, offset = _read_tensor(cursor, name, alignment)
        tensors.add(name, kind, rank, elements, size)
        tensors.end = max(tensors.end, offset + size)
    if max(tensors.end, sum(tensors.elements.values())) > MAX_SIZE - MAX_HEADER:
        raise MalformedGguf("its tensors together are larger than any file", DAMAGED)
    return tensors


def _read_tensor(cursor: Cursor, name: str, alignment: int) -> tuple[str, int, int, int, int]:
    """Return the ggml type of one tensor, its rank, elements and size, and where in the data it begins."""
    (rank,) = cursor.unpack("I")
    cursor.claim(rank, MAX_DIMENSIONS, 8, f"dimensions of {shown(name)}")
    *dimensions, number, offset = cursor.unpack(f"{rank}QIQ")
    if number not in GGML_TYPES:
        raise MalformedGguf(f"the tensor {shown(name)} has the unknown type {number}", UPDATE)
    kind, block, block_size = GGML_TYPES[number]
    length = math.prod(dimensions)
    if not 0 < length <= MAX_SIZE or math.prod(dimensions[:1]) % block:  # a row is whole blocks
        raise MalformedGguf(f"the tensor {shown(name)} has the dimensions {dimensions} in {kind}", DAMAGED)
    if offset % alignment:
        raise MalformedGguf(f"the tensor {shown(name)} is not aligned to {alignment}: {offset}", DAMAGED)
    return kind, rank, length, length // block * block_size, offset
