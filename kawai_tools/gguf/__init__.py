"""GGUF headers, read without trusting them and without loading what they list.

The layout, from ``docs/gguf.md`` of ggml and ``ggml/src/gguf.cpp`` of llama.cpp::

    file    "GGUF", version u32, tensors u64, entries u64, entry..., tensor..., padding, tensor data
    entry   key string, type u32, value
    string  length u64, bytes
    array   type u32, length u64, values
    tensor  name string, rank u32, dimensions u64..., type u32, offset u64 from the start of the data

Counts are held against the bytes that remain. A file is read with ``pread``: a mapping counts as
resident memory, and one that is truncated ends its reader with SIGBUS. One elsewhere is read by the same
reader, from a :class:`Source` that fetches what it is told to be next.
"""

from kawai_tools.gguf.cursor import MAX_HEADER as MAX_HEADER
from kawai_tools.gguf.cursor import MAX_STRINGS as MAX_STRINGS
from kawai_tools.gguf.cursor import MAX_TEXT as MAX_TEXT
from kawai_tools.gguf.cursor import Source as Source
from kawai_tools.gguf.formats import FILE_TYPES as FILE_TYPES
from kawai_tools.gguf.formats import GGML_TYPES as GGML_TYPES
from kawai_tools.gguf.formats import VALUE_TYPES as VALUE_TYPES
from kawai_tools.gguf.header import ArrayInfo as ArrayInfo
from kawai_tools.gguf.header import Header as Header
from kawai_tools.gguf.header import Value as Value
from kawai_tools.gguf.metadata import MAX_ENTRIES as MAX_ENTRIES
from kawai_tools.gguf.reading import read_header as read_header
from kawai_tools.gguf.reading import read_header_fd as read_header_fd
from kawai_tools.gguf.reading import read_header_from as read_header_from
from kawai_tools.gguf.reading import sniff as sniff
from kawai_tools.gguf.tensors import MAX_TENSORS as MAX_TENSORS
