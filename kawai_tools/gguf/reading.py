"""A whole header, from a file or from elsewhere."""

import os
import stat
from pathlib import Path

from kawai_tools.errors import MalformedGguf, NotAModel
from kawai_tools.gguf.cursor import AGAIN, Cursor, OpenFile, Source, shown
from kawai_tools.gguf.header import Header
from kawai_tools.gguf.metadata import LEAST_ENTRY, MAX_ENTRIES, alignment, read_metadata
from kawai_tools.gguf.tensors import LEAST_TENSOR, MAX_TENSORS, UPDATE, read_tensors

_ANSWER = "perhaps a server's answer was saved instead of the file: fetch it again"
_NOT_MODELS: tuple[tuple[tuple[bytes, ...], str, str], ...] = (
    ((b"version https://git-lfs.github.com/spec/",), "a git-lfs pointer", "fetch the file it stands for"),
    ((b"<!doctype html", b"<html", b"<head"), "a web page", "use the address of the file itself"),
    ((b"{", b"["), "JSON", _ANSWER),
)


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
        raise type(error)(f"{shown(path.name)}: {error.message}", error.hint) from None


def read_header_fd(fd: int, size: int | None = None, *, complete: bool = True) -> Header:
    """Read the header of an open regular file; its position is neither used nor moved.

    ``size`` is how many bytes from its start are there, by default all. With ``complete`` false, as while
    the file arrives, the tensors may end beyond them. The header may not.
    Raises MalformedGguf, NotAModel, or OSError.
    """
    status = os.fstat(fd)
    _refuse_special(status.st_mode)
    source = OpenFile(fd, status.st_size if size is None else size)
    return read_header_from(source, complete=complete)


def read_header_from(source: Source, *, complete: bool = True) -> Header:
    """Read the header of ``source``, as :func:`read_header_fd` does; raises what its ``read`` does, too."""
    cursor = Cursor(source)
    sniff(cursor.start(1024))
    version = _read_version(cursor)
    tensor_count, entry_count = cursor.unpack("QQ")
    cursor.claim(entry_count, MAX_ENTRIES, LEAST_ENTRY, "metadata entries")
    cursor.claim(tensor_count, MAX_TENSORS, LEAST_TENSOR, "tensors")
    cursor.rest = entry_count * LEAST_ENTRY + tensor_count * LEAST_TENSOR
    metadata, arrays = read_metadata(cursor, entry_count)
    aligned = alignment(metadata)
    tensors = read_tensors(cursor, tensor_count, aligned)
    data_offset = cursor.position + -cursor.position % aligned
    required = data_offset + tensors.end if tensor_count else cursor.position
    if complete and required > cursor.size:
        raise MalformedGguf(f"{required - cursor.size} of the {required} bytes it needs are missing", AGAIN)
    return Header(
        version=version,
        big_endian=cursor.order == ">",
        metadata=metadata,
        tensor_count=tensor_count,
        parameters=sum(tensors.elements.values()),
        data_offset=data_offset,
        required_size=required,
        tensor_types=tensors.counts,
        main_type=max(tensors.elements, key=tensors.elements.__getitem__, default=None),
        file_size=cursor.size,
        block_sizes=tensors.blocks,
        tensor_sizes=tensors.others,
        tensor_bytes=tensors.size,
        matrix_sizes=tensors.matrices,
        embedding_type=tensors.embedding,
        arrays=arrays,
    )


def sniff(first_bytes: bytes) -> None:
    """Return if a file that starts with these bytes (4 at least, 1 KiB to be sure) may be GGUF.

    Raises NotAModel for a web page, a git-lfs pointer and other text, else MalformedGguf.
    """
    if first_bytes.startswith(b"GGUF"):
        return
    if b"GGUF".startswith(first_bytes):
        raise MalformedGguf(f"only {len(first_bytes)} bytes long", AGAIN)
    start = first_bytes.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginnings, what, hint in _NOT_MODELS:
        if start.startswith(beginnings):
            raise NotAModel(f"{what}, not a model", hint)
    if first_bytes.isascii() and "".join(first_bytes.decode().split()).isprintable():
        raise NotAModel("text, not a model", _ANSWER)
    raise MalformedGguf("not a GGUF file", "kawai manages models in the GGUF format of llama.cpp")


def _read_version(cursor: Cursor) -> int:
    """Check the version, and set the byte order of the cursor."""
    _, version = cursor.unpack("4sI")
    if version and version & 0xFFFF == 0:  # as llama.cpp tells; big endian came with version 3
        version, cursor.order = int.from_bytes(version.to_bytes(4, "little"), "big"), ">"
    if version not in ((2, 3) if cursor.order == "<" else (3,)):
        hint = UPDATE if version > 3 else "convert it again with a current llama.cpp"  # noqa: PLR2004
        raise MalformedGguf(f"GGUF version {version} is not supported: 2 and 3 are", hint)
    return int(version)


def _refuse_special(mode: int) -> None:
    """Refuse what is no regular file: it may block, never end, or act on being read."""
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    if not stat.S_ISREG(mode):
        raise MalformedGguf(f"{kinds.get(stat.S_IFMT(mode), 'a device')}, not a file", "name a GGUF file")
