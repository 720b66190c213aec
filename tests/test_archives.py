"""The unpacker against the corpus of archives, over a canary tree that nothing may touch."""

import gzip
import io
import itertools
import json
import os
import random
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kawai_tools.errors import BrokenArchive, HomeNotWritable, KawaiError, NoSpace, UnsafeArchive
from kawai_tools.libs.archives import unpack
from kawai_tools.libs.inflating import Limits
from tests.bundles import real_bundle

MEMORY_LIMIT = 256 << 20
SECONDS = 10  # of processor time that the worst archive may take; it takes about one
TWICE = Limits(kept=0)  # nothing is kept in memory between check and writing

Entry = tuple[tarfile.TarInfo, bytes]
Content = bytes | tuple[str, str]


def file(name: str, data: bytes = b"data", mode: int = 0o644, pax: dict[str, str] | None = None) -> Entry:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.pax_headers = len(data), mode, pax or {}
    return info, data


def special(name: str, kind: bytes, target: str = "", mode: int = 0o777) -> Entry:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, mode
    return info, b""


def link(name: str, target: str) -> Entry:
    return special(name, tarfile.SYMTYPE, target)


def hard(name: str, target: str) -> Entry:
    return special(name, tarfile.LNKTYPE, target)


def folder(name: str) -> Entry:
    return special(name, tarfile.DIRTYPE, mode=0o2777)


def plain_tar(*entries: Entry, kind: int = tarfile.PAX_FORMAT) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=kind) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return made.getvalue()


def tgz(*entries: Entry, kind: int = tarfile.PAX_FORMAT) -> bytes:
    return packed(plain_tar(*entries, kind=kind))


def packed(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


def header(kind: bytes, name: str = "b/x", size: int = 0, field: bytes | None = None) -> bytes:
    """One header block; ``field`` replaces that of the size, whatever it is."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = f"{size:011o}\0".encode() if field is None else field
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def long_gzip(size: int = 1 << 18) -> bytes:
    """A tar.gz of this size, by a long file name in the gzip header: it ends where a read ends."""
    data = tgz(file("b/llama-server"))
    name = b"n" * (size - len(data) - 1) + b"\0"
    return data[:3] + b"\x08" + data[4:10] + name + data[10:]


def extended(kind: bytes, data: bytes, member: Entry) -> bytes:
    """A tar.gz of an extension header with these bytes and a member."""
    return packed(header(kind, "ext", len(data)) + data + bytes(-len(data) % 512) + plain_tar(member))


def record(key: str, value: bytes) -> bytes:
    rest = b" " + key.encode() + b"=" + value + b"\n"
    size = len(rest) + 1
    while len(str(size)) + len(rest) != size:
        size = len(str(size)) + len(rest)
    return str(size).encode() + rest


def zipped(
    *entries: tuple[str, bytes], mode: int = stat.S_IFREG | 0o644, method: int = zipfile.ZIP_DEFLATED
) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in entries:
            info = zipfile.ZipInfo("placeholder")
            info.filename = name  # the constructor mends names
            info.external_attr, info.compress_type = mode << 16, method
            info.create_system = 3
            archive.writestr(info, data)
    return made.getvalue()


def patched(data: bytes, *patches: tuple[bytes, int, str, int]) -> bytes:
    """Numbers of zip headers replaced: (magic of the first header to change, offset, format, number)."""
    changed = bytearray(data)
    for magic, offset, code, number in patches:
        struct.pack_into(f"<{code}", changed, data.index(magic) + offset, number)
    return bytes(changed)


LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
ZIP = zipped(("llama-server", b"program" * 9), ("LICENSE", b"words"))


def overlapping(count: int = 200, kernel: int = 64 << 10) -> bytes:
    """David Fifield's construction: each member's data quotes the local header of the next and goes on."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    plain = bytes(kernel)
    whole = deflate.compress(plain) + deflate.flush()
    members = []
    for number in range(count):
        name = f"m{number:03}".encode()
        crc = zlib.crc32(plain)
        fields = struct.pack("<5H3L2H", 20, 0, 8, 0, 0, crc, len(whole), len(plain), len(name), 0)
        head = LOCAL + fields + name
        members.append((fields, name, len(head + whole)))
        plain, before = head + plain, whole
        whole = head + before
        if number < count - 1:  # a stored block that quotes the header, then what follows it
            whole = b"\0" + struct.pack("<HH", len(head), len(head) ^ 0xFFFF) + whole
    central = b"".join(
        CENTRAL + b"\x14\0" + fields + struct.pack("<3H2L", 0, 0, 0, 0, len(whole) - left) + name
        for fields, name, left in members
    )
    return whole + central + END + struct.pack("<4H2LH", 0, 0, count, count, len(central), len(whole), 0)


def spliced(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def gap_in_zip() -> bytes:
    """A byte after a member's deflate stream that counts as packed data."""
    data = zipped(("x", b"words" * 9))
    size = struct.unpack_from("<L", data, 18)[0] + 1
    at = data.index(CENTRAL)
    return patched(
        data[:at] + b"?" + data[at:], (LOCAL, 18, "L", size), (CENTRAL, 20, "L", size), (END, 16, "L", at + 1)
    )


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    """What is there, to be compared with what is there later."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        status = path.lstat()
        content: Content = b"" if path.is_dir() else path.name.encode()
        if path.is_symlink():
            content = ("link", str(path.readlink()))
        elif path.is_file():
            content = path.read_bytes()
        times = (status.st_mtime_ns, status.st_ino, status.st_nlink)
        found[str(path.relative_to(root))] = (status.st_mode, *times, content)
    return found


def contents(root: Path) -> dict[str, tuple[int, Content]]:
    """Each file's mode and bytes, or each link's target, below an unpacked build."""
    found: dict[str, tuple[int, Content]] = {}
    for path in root.rglob("*"):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            found[str(path.relative_to(root))] = (0, ("link", str(path.readlink())))
            assert path.resolve(strict=True).is_relative_to(root.resolve())
            assert path.resolve().is_file()
        elif stat.S_ISDIR(mode):
            assert mode & 0o7777 == 0o755
        else:
            assert stat.S_ISREG(mode)
            assert mode & 0o7777 in {0o644, 0o755}
            found[str(path.relative_to(root))] = (mode & 0o7777, path.read_bytes())
    return found


class Yard:
    """A place with archives, an empty staging directory, and a canary tree around it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.staging = root / "staging"
        self.destination = self.staging / "build"
        self.canary = root / "canary"
        self.staging.mkdir(parents=True)
        self.canary.mkdir()
        (self.canary / "secret").write_text("untouched")
        (self.canary / "secret").chmod(0o600)
        (self.canary / "link").symlink_to("secret")
        self._names = itertools.count()

    def put(self, data: bytes) -> Path:
        path = self.root / f"archive-{next(self._names)}"
        path.write_bytes(data)
        return path

    def unpack(self, *archives: bytes, limits: Limits | None = None) -> dict[str, tuple[int, Content]]:
        """Unpack; whatever happens, nothing but the destination may be different afterwards."""
        paths = [self.put(data) for data in archives]
        with self.guarded():
            unpack(paths, self.destination, limits=limits or Limits())
        return contents(self.destination)

    def guarded(self, *, leaves: bool | None = None) -> "Guard":
        return Guard(self, leaves=leaves)


class Guard:
    """Holds the yard to what it was; after an error, or where nothing is left, there is no destination."""

    def __init__(self, yard: Yard, *, leaves: bool | None = None) -> None:
        self.yard = yard
        self.leaves = leaves

    def _state(self) -> object:
        outside = {
            name: what[:1] if name in {".", "staging"} else what
            for name, what in tree(self.yard.root).items()
            if not name.startswith("staging/build")
        }
        return outside, len(list(Path("/dev/fd").iterdir()))

    def __enter__(self) -> None:
        self.before = self._state()

    def __exit__(self, kind: object, *_: object) -> None:
        assert self._state() == self.before
        leaves = kind is None if self.leaves is None else self.leaves
        assert os.path.lexists(self.yard.destination) is leaves


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(tmp_path / "yard")


SERVER = file("b/llama-server", b"program", 0o755)
REAL = file("b/libllama.so.0.6.0", b"library" * 100, 0o755)

# fmt: off
UNSAFE: dict[str, tuple[Callable[[], bytes], str]] = {
    "parent": (lambda: tgz(SERVER, file("../canary/secret")), "outside"),
    "parent in the middle": (lambda: tgz(SERVER, file("b/../../canary/secret")), "outside"),
    "parent at the end": (lambda: tgz(SERVER, file("b/x/..")), "outside"),
    "parent in a zip": (lambda: zipped(("../canary/secret", b"")), "outside"),
    "absolute": (lambda: tgz(SERVER, file("/tmp/kawai-escaped")), "absolute"),  # noqa: S108
    "absolute in a pax header": (lambda: tgz(SERVER, file("b/x", pax={"path": "/b/x"})), "absolute"),
    "absolute in a zip": (lambda: zipped(("/llama-server", b"")), "absolute"),
    "backslash": (lambda: tgz(SERVER, file("b\\..\\..\\secret")), "backslash"),
    "backslash in a zip": (lambda: zipped(("..\\secret", b"")), "backslash"),
    "drive letter": (lambda: zipped(("C:secret", b"")), "colon"),
    "symlink out, then through it": (
        lambda: tgz(link("b/up", "../../canary"), file("b/up/secret", b"gone")), "below"),
    "symlink out": (lambda: tgz(SERVER, link("b/up", "../../canary/secret")), "outside"),
    "symlink just above the top": (lambda: tgz(SERVER, link("b/up", "../b/llama-server")), "outside"),
    "absolute symlink": (lambda: tgz(SERVER, link("b/up", "/etc/passwd")), "absolute"),
    "symlink out in a pax header": (
        lambda: extended(b"x", record("linkpath", b"../../canary/secret"), link("b/up", "llama-server")),
        "outside"),
    "symlink out in a GNU header": (
        lambda: extended(b"K", b"../../canary/secret\0", link("b/up", "llama-server")), "outside"),
    "symlink to a directory": (lambda: tgz(file("b/d/x"), link("b/l", "d")), "no file"),
    "symlink to the top": (lambda: tgz(SERVER, link("b/l", ".")), "no file"),
    "symlink through a file": (lambda: tgz(SERVER, link("b/l", "llama-server/../llama-server")), "not in"),
    "symlink to a file with a slash": (lambda: tgz(SERVER, link("b/l", "llama-server/")), "not in"),
    "symlink with an empty target": (lambda: tgz(SERVER, link("b/l", "")), "empty"),
    "symlink with a backslash": (lambda: tgz(SERVER, link("b/l", "..\\x")), "backslash"),
    "symlink in place of a directory": (lambda: tgz(file("b/d/x"), link("b/d", "e")), "twice"),
    "file below a file": (lambda: tgz(file("b/d"), file("b/d/x")), "below"),
    "symlink in a circle": (lambda: tgz(SERVER, link("b/x", "y"), link("b/y", "x")), "circle"),
    "symlink to itself": (lambda: tgz(SERVER, link("b/x", "x")), "circle"),
    "a chain of many": (
        lambda: tgz(file("b/0"), *(link(f"b/{n}", f"{n - 1}") for n in range(1, 60))), "circle"),
    "dangling symlink": (lambda: tgz(SERVER, link("b/x", "nothing")), "no file"),
    "dangling by case": (lambda: tgz(SERVER, link("b/x", "LLAMA-server")), "no file"),
    "dangling through nothing": (lambda: tgz(SERVER, link("b/x", "no/../llama-server")), "not in"),
    "hard link out": (lambda: tgz(SERVER, hard("b/x", "../canary/secret")), "outside"),
    "hard link out below the top": (lambda: tgz(SERVER, hard("b/x", "b/../../canary/secret")), "outside"),
    "absolute hard link": (lambda: tgz(SERVER, hard("b/x", "/etc/passwd")), "absolute"),
    "hard link to another top": (lambda: tgz(SERVER, hard("b/x", "canary/secret")), "top folder"),
    "hard link to what comes later": (lambda: tgz(hard("b/x", "b/y"), file("b/y")), "no file before"),
    "hard link to nothing": (lambda: tgz(SERVER, hard("b/x", "b/y")), "no file before"),
    "hard link to itself": (lambda: tgz(SERVER, hard("b/x", "b/x")), "no file before"),
    "hard link to a symlink": (
        lambda: tgz(SERVER, link("b/l", "llama-server"), hard("b/x", "b/l")), "no file before"),
    "hard link to a directory": (lambda: tgz(SERVER, folder("b/d"), hard("b/x", "b/d")), "no file before"),
    "symlink, then file of its name": (
        lambda: tgz(SERVER, link("b/x", "llama-server"), file("b/x")), "twice"),
    "file, then symlink of its name": (
        lambda: tgz(SERVER, file("b/x"), link("b/x", "llama-server")), "twice"),
    "file, then directory of its name": (lambda: tgz(file("b/x"), folder("b/x/")), "twice"),
    "directory, then file of its name": (lambda: tgz(folder("b/x/"), file("b/x")), "twice"),
    "duplicate": (lambda: tgz(SERVER, SERVER), "twice"),
    "duplicate by a dot": (lambda: tgz(SERVER, file("b/./llama-server")), "twice"),
    "duplicate by case": (lambda: tgz(SERVER, file("b/LLAMA-Server")), "spelling"),
    "duplicate by case of a directory": (lambda: tgz(file("b/d/x"), file("b/D/y")), "spelling"),
    "duplicate by composition": (lambda: tgz(file("b/\u00e9"), file("b/e\u0301")), "spelling"),
    "duplicate in a zip": (lambda: zipped(("x", b"1"), ("X", b"2")), "spelling"),
    "character device": (lambda: tgz(SERVER, special("b/x", tarfile.CHRTYPE)), "character device"),
    "block device": (lambda: tgz(SERVER, special("b/x", tarfile.BLKTYPE)), "block device"),
    "FIFO": (lambda: tgz(SERVER, special("b/x", tarfile.FIFOTYPE)), "FIFO"),
    "unknown kind": (lambda: packed(header(b"9") + plain_tar(SERVER)), "unknown kind"),
    "sparse": (lambda: packed(header(b"S") + plain_tar(SERVER)), "sparse"),
    "sparse in a pax header": (lambda: extended(b"x", record("GNU.sparse.major", b"1"), SERVER), "sparse"),
    "file named as a directory": (
        lambda: extended(b"x", record("path", b"b/x/"), file("b/x")), "name of a directory"),
    "FIFO in a zip": (lambda: zipped(("x", b""), mode=stat.S_IFIFO | 0o644), "FIFO"),
    "socket in a zip": (lambda: zipped(("x", b""), mode=stat.S_IFSOCK | 0o644), "socket"),
    "symlink out in a zip": (
        lambda: zipped(("x", b"../../canary/secret"), mode=stat.S_IFLNK | 0o777), "outside"),
    "symlink named as a directory in a zip": (
        lambda: zipped(("x/", b"y"), mode=stat.S_IFLNK | 0o777), "name of a directory"),
    "endless symlink in a zip": (lambda: zipped(("x", b"y" * 2000), mode=stat.S_IFLNK | 0o777), "too long"),
    "NUL": (lambda: tgz(SERVER, file("b/x", pax={"path": "b/a\0b"})), "control"),
    "NUL in a GNU header": (lambda: extended(b"L", b"b/a\0b\0", SERVER), "control"),
    "no name in a zip": (lambda: zipped((".", b"")), "no name"),
    "NUL in a zip": (lambda: zipped(("a\0b", b"")), "control"),
    "NUL in a symlink of a zip": (lambda: zipped(("x", b"y\0"), mode=stat.S_IFLNK), "control"),
    "line feed": (lambda: tgz(SERVER, file("b/a\nb")), "control"),
    "escape": (lambda: tgz(SERVER, file("b/\x1b[31m")), "control"),
    "bidi": (lambda: tgz(SERVER, file("b/\u202efdp.exe")), "control"),
    "no UTF-8": (lambda: tgz(SERVER, file("b/\udcff"), kind=tarfile.GNU_FORMAT), "UTF-8"),
    "no UTF-8 in a pax header": (lambda: tgz(SERVER, file("b/\udcff")), "UTF-8"),
    "no UTF-8 in a zip": (lambda: zipped(("\u00e9", b"")).replace("\u00e9".encode(), b"\xe9\xe9"), "UTF-8"),
    "no UTF-8 in a symlink": (lambda: tgz(SERVER, link("b/l", "\udcff")), "UTF-8"),
    "64 KB name": (lambda: tgz(SERVER, file("b/" + "n" * 65000)), "1,024"),
    "64 KB name of GNU": (lambda: tgz(file("b/" + "n" * 65000), kind=tarfile.GNU_FORMAT), "1,024"),
    "64 KB name in a zip": (lambda: zipped(("n" * 65000, b"")), "1,024"),
    "64 KB symlink": (lambda: tgz(SERVER, link("b/l", "./" * 32000 + "llama-server")), "1,024"),
    "long part": (lambda: tgz(file("b/" + "é" * 128)), "255"),
    "deep": (lambda: tgz(file("b/" + "d/" * 16 + "x")), "deep"),
    "1 MB pax header": (lambda: extended(b"x", record("comment", bytes(1 << 20)), SERVER), "65,536"),
    "1 MB GNU header": (lambda: extended(b"L", b"n" * (1 << 20), SERVER), "65,536"),
    "pax header of 7 GiB": (lambda: packed(header(b"x", size=7 << 30) + plain_tar(SERVER)), "65,536"),
    "global name": (lambda: extended(b"g", record("path", b"b/x"), SERVER), "all members"),
    "file of 7 GiB": (lambda: packed(header(b"0", size=7 << 30) + plain_tar(SERVER)), "more than 4,294"),
    "file of 2^80 bytes": (
        lambda: packed(header(b"0", field=b"\x80" + b"\xff" * 11) + plain_tar(SERVER)), "more than 4,294"),
    "pax size of 8 GiB": (lambda: extended(b"x", record("size", b"8589934592"), SERVER), "more than 4,294"),
    "zip64": (lambda: patched(ZIP, (CENTRAL, 24, "L", (1 << 32) - 1)), "more than 4,294"),
    "zip64 in number": (
        lambda: patched(ZIP, (END, 8, "H", 65535), (END, 10, "H", 65535)), "more than 10,000"),
    "overlap": (overlapping, "shares"),
    "two zip members in one place": (
        lambda: zipped(("xx", b"1"), ("yy", b"1")).replace(b"yy", b"xx"), "twice"),
}

BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "neither"),
    "a web page": (lambda: b"<!doctype html>" * 99, "neither"),
    "an uncompressed tar": (lambda: plain_tar(SERVER), "neither"),
    "an xz": (lambda: b"\xfd7zXZ\0" * 99, "neither"),
    "gzip of nothing": (lambda: packed(b""), "cut short"),
    "gzip of text": (lambda: packed(b"text" * 999), "damaged"),
    "no member": (tgz, "no file"),
    "only a folder": (lambda: tgz(folder("b/")), "no file"),
    "zip without members": (zipped, "neither"),
    "zip that lists nothing": (
        lambda: ZIP[: ZIP.index(CENTRAL)] + END + struct.pack("<4H2LH", 0, 0, 0, 0, 0, ZIP.index(CENTRAL), 0),
        "no file"),
    "two top folders": (lambda: tgz(SERVER, file("c/x")), "top folder"),
    "file beside the top folder": (lambda: tgz(SERVER, file("x")), "top folder"),
    "file in place of the top folder": (lambda: tgz(file("b"), SERVER), "top folder"),
    "symlink in place of the top folder": (lambda: tgz(link("b", "../canary"), SERVER), "top folder"),
    "file without a name": (lambda: extended(b"x", record("path", b"."), file("b/x")), "top folder"),
    "gzip CRC": (lambda: tgz(SERVER)[:-8] + b"\0\0\0\0" + tgz(SERVER)[-4:], "incorrect data check"),
    "gzip length": (lambda: tgz(SERVER)[:-4] + b"\1\2\3\4", "incorrect length check"),
    "gzip of damaged deflate": (lambda: spliced(tgz(REAL), 60, b"\xff\xff\xff"), "damaged"),
    "garbage after gzip": (lambda: tgz(SERVER) + b"garbage", "followed"),
    "garbage after what was read at once": (lambda: long_gzip() + b"garbage", "followed"),
    "zeros after gzip": (lambda: tgz(SERVER) + bytes(512), "followed"),
    "a second gzip stream": (lambda: tgz(SERVER) + tgz(REAL), "followed"),
    "data after the end mark": (lambda: packed(plain_tar(SERVER) + plain_tar(REAL)), "end mark"),
    "zeros without end": (lambda: packed(plain_tar(SERVER) + bytes(2 << 20)), "end mark"),
    "no end mark": (lambda: packed(plain_tar(SERVER)[:1024]), "cut short"),
    "tar cut in a member": (lambda: packed(plain_tar(REAL)[:800]), "cut short"),
    "tar cut in a header": (lambda: packed(plain_tar(SERVER, REAL)[:1300]), "cut short"),
    "size too large": (lambda: packed(header(b"0", size=50000) + plain_tar(SERVER)[512:]), "cut short"),
    "size too small": (lambda: packed(header(b"0", size=0) + plain_tar(REAL)[512:]), "damaged"),
    "size no number": (lambda: packed(header(b"0", field=b"99999999999\0") + bytes(1024)), "damaged"),
    "negative size": (lambda: packed(header(b"0", field=b"\xff" * 12) + bytes(1024)), "damaged"),
    "size in Python's octal": (lambda: packed(header(b"0", field=b"0o000000001\0") + bytes(1024)), "damaged"),
    "directory with bytes": (
        lambda: packed(header(b"5", size=512) + bytes(512) + plain_tar(SERVER)), "bytes of its own"),
    "symlink with bytes": (
        lambda: packed(header(b"2", size=512) + bytes(512) + plain_tar(SERVER)), "bytes of its own"),
    "header checksum": (lambda: packed(spliced(plain_tar(SERVER), 0, b"c")), "damaged"),
    "second header's checksum": (
        lambda: packed(spliced(plain_tar(SERVER, REAL), 1024, b"c")), "header after 'b/llama-server'"),
    "no ustar": (lambda: packed(b"b/x".ljust(148, b"\0") + b"000521\0 0".ljust(1388, b"\0")), "damaged"),
    "pax record too long": (lambda: extended(b"x", b"99 path=b/x\n", SERVER), "damaged"),
    "pax record too short": (lambda: extended(b"x", b"3 path=b/x\n", SERVER), "damaged"),
    "pax record of no length": (lambda: extended(b"x", b"0 path=b/x\n", SERVER), "damaged"),
    "pax record without end": (lambda: extended(b"x", b"12 path=b/xyz", SERVER), "damaged"),
    "pax record of text": (lambda: extended(b"x", b"path=b/x\n", SERVER), "damaged"),
    "pax size no number": (lambda: extended(b"x", record("size", b"-1"), SERVER), "no number"),
    "pax size of 5,000 digits": (lambda: extended(b"x", record("size", b"9" * 5000), SERVER), "no number"),
    "pax header without member": (
        lambda: packed(
            plain_tar(SERVER)[:1024] + header(b"x", size=12) + b"12 path=b/x\n".ljust(1536, b"\0")),
        "within the headers"),
    "zip cut": (lambda: ZIP[:-30], "cut short"),
    "zip with garbage after": (lambda: ZIP + b"garbage", "followed"),
    "zip with garbage before": (lambda: LOCAL + b"garbage" + ZIP, "central directory"),
    "zip with comment": (lambda: patched(ZIP, (END, 20, "H", 1)) + b"c", "followed"),
    "zip on two disks": (lambda: patched(ZIP, (END, 4, "H", 1)), "central directory"),
    "zip entry of another kind": (lambda: ZIP.replace(CENTRAL, b"PK\1\3", 1), "central directory"),
    "zip entry beyond the directory": (lambda: patched(ZIP, (CENTRAL, 32, "H", 500)), "central directory"),
    "zip with fewer entries than it says": (
        lambda: patched(ZIP, (END, 8, "H", 3), (END, 10, "H", 3)), "central directory"),
    "zip with more entries than it says": (
        lambda: patched(ZIP, (END, 8, "H", 1), (END, 10, "H", 1)), "central directory"),
    "zip sizes in both headers": (
        lambda: patched(ZIP, (LOCAL, 22, "L", 5), (CENTRAL, 24, "L", 5)), "size or CRC"),
    "zip size too large": (
        lambda: patched(ZIP, (LOCAL, 22, "L", 99), (CENTRAL, 24, "L", 99)), "size or CRC"),
    "zip CRC in both headers": (
        lambda: patched(ZIP, (LOCAL, 14, "L", 5), (CENTRAL, 16, "L", 5)), "size or CRC"),
    "zip packed size too small": (
        lambda: patched(ZIP, (LOCAL, 18, "L", 5), (CENTRAL, 20, "L", 5)), "cut short"),
    "zip packed size too large": (gap_in_zip, "followed"),
    "zip headers that differ in size": (lambda: patched(ZIP, (LOCAL, 22, "L", 5)), "differ"),
    "zip headers that differ in name": (lambda: ZIP.replace(b"LICENSE", b"license", 1), "differ"),
    "zip headers that differ in method": (lambda: patched(ZIP, (LOCAL, 8, "H", 0)), "differ"),
    "zip member nowhere": (lambda: patched(ZIP, (CENTRAL, 42, "L", 1 << 30)), "cut short"),
    "zip member in the middle": (lambda: patched(ZIP, (CENTRAL, 42, "L", 7)), "differ|cut short"),
    "encrypted": (lambda: patched(ZIP, (LOCAL, 6, "H", 1), (CENTRAL, 8, "H", 1)), "encrypted"),
    "strongly encrypted": (
        lambda: patched(ZIP, (LOCAL, 6, "H", 0x41), (CENTRAL, 8, "H", 0x41)), "encrypted"),
    "masked headers": (
        lambda: patched(ZIP, (LOCAL, 6, "H", 0x2000), (CENTRAL, 8, "H", 0x2000)), "encrypted"),
    "bzip2 in a zip": (lambda: zipped(("x", b"words"), method=zipfile.ZIP_BZIP2), "unknown method 12"),
    "lzma in a zip": (lambda: zipped(("x", b"words"), method=zipfile.ZIP_LZMA), "packed|unknown method"),
    "stored of two sizes": (
        lambda: patched(zipped(("x", b"words"), method=0), (LOCAL, 22, "L", 4), (CENTRAL, 24, "L", 4)),
        "two sizes"),
    "zip directory with bytes": (lambda: zipped(("x/", b"words"), mode=0), "bytes of its own"),
    "zip of damaged deflate": (
        lambda: spliced(ZIP, 30 + len("llama-server"), b"\xff\xff\xff"), "damaged"),
}
# fmt: on


class TestRefused:
    @pytest.mark.parametrize("what", UNSAFE)
    def test_unsafe(self, what: str, yard: Yard) -> None:
        build, says = UNSAFE[what]
        with pytest.raises(UnsafeArchive, match=says) as caught:
            yard.unpack(build())
        self.check(caught.value)

    @pytest.mark.parametrize("what", BROKEN)
    def test_broken(self, what: str, yard: Yard) -> None:
        build, says = BROKEN[what]
        with pytest.raises(BrokenArchive, match=says) as caught:
            yard.unpack(build())
        self.check(caught.value)

    def check(self, error: KawaiError) -> None:
        assert error.message.startswith("archive-0: ")
        assert error.message.isprintable()
        assert len(error.message) < 400
        assert error.hint

    def test_nothing_is_written_before_all_is_checked(self, yard: Yard) -> None:
        good, bad = tgz(SERVER), tgz(REAL)[:-1]
        paths = [yard.put(good), yard.put(bad)]
        seen = []

        def look() -> None:
            seen.append(yard.destination.exists())

        with yard.guarded(leaves=False), pytest.raises(BrokenArchive, match="archive-1: "):
            unpack(paths, yard.destination, pause=look)
        assert seen
        assert not any(seen)


LIBRARIES = (
    folder("b/"),
    link("b/libllama.so", "libllama.so.0"),
    SERVER,
    link("b/libllama.so.0", "libllama.so.0.6.0"),
    REAL,
)


class TestUnpacked:
    @pytest.mark.parametrize("limits", [Limits(), TWICE], ids=["kept", "read twice"])
    @pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_a_build_with_its_chains_of_links_and_exec_bits(
        self, yard: Yard, kind: int, limits: Limits
    ) -> None:
        assert yard.unpack(tgz(*LIBRARIES, kind=kind), limits=limits) == {
            "libllama.so": (0, ("link", "libllama.so.0")),
            "libllama.so.0": (0, ("link", "libllama.so.0.6.0")),
            "libllama.so.0.6.0": (0o755, REAL[1]),
            "llama-server": (0o755, SERVER[1]),
        }

    @pytest.mark.parametrize("limits", [Limits(), TWICE], ids=["kept", "read twice"])
    @pytest.mark.parametrize("umask", [0, 0o077, 0o777])
    def test_modes_are_forced_whatever_the_umask(self, yard: Yard, umask: int, limits: Limits) -> None:
        entries = (
            file("b/plain", mode=0o6666), file("b/d/tool", mode=0o4711), folder("b/e/"),
            file("b/none", mode=0), hard("b/same", "b/d/tool"), link("b/d/up", "../plain"),
        )  # fmt: skip
        archive = yard.put(tgz(*entries))
        before = os.umask(umask)
        try:
            with yard.guarded():
                unpack([archive], yard.destination, limits=limits)
        finally:
            os.umask(before)
        found = contents(yard.destination)
        assert {name: mode for name, (mode, _) in found.items()} == {
            "plain": 0o644, "d/tool": 0o755, "none": 0o644, "same": 0o755, "d/up": 0
        }  # fmt: skip
        assert yard.destination.stat().st_mode & 0o7777 == 0o755
        assert (yard.destination / "same").samefile(yard.destination / "d" / "tool")

    @pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_long_names(self, yard: Yard, kind: int) -> None:
        long = "/".join(["d" * 50] * 3)
        found = yard.unpack(tgz(file(f"b/{long}/x"), kind=kind))
        assert found == {f"{long}/x": (0o644, b"data")}

    def test_names_with_dots_and_a_global_comment(self, yard: Yard) -> None:
        data = plain_tar(folder("./"), file("./b//./x"), file("b/é ü"), file("b/..."), file("b/-rf"))
        comment = record("comment", b"commit")
        archive = packed(header(b"g", "pax", len(comment)) + comment.ljust(512, b"\0") + data)
        assert set(yard.unpack(archive)) == {"x", "é ü", "...", "-rf"}

    def test_an_archive_as_tar_makes_it(self, yard: Yard, tmp_path: Path) -> None:
        made = tmp_path / "made"
        (made / "b" / "deep").mkdir(parents=True)
        (made / "b" / "tool").write_bytes(os.urandom(3 << 20))
        (made / "b" / "tool").chmod(0o755)
        (made / "b" / "deep" / "same").hardlink_to(made / "b" / "tool")
        (made / "b" / ("long" * 50)).symlink_to("tool")
        subprocess.run(["tar", "czf", "made.tgz", "b"], cwd=made, check=True)
        assert yard.unpack((made / "made.tgz").read_bytes(), limits=TWICE) == contents(made / "b")

    @pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    @pytest.mark.parametrize("limits", [Limits(), TWICE], ids=["kept", "read twice"])
    def test_a_flat_zip(self, yard: Yard, method: int, limits: Limits) -> None:
        data = os.urandom(3 << 20) + bytes(1 << 20)
        held = {f"held-{more}": bytes((1 << 20) + more) for more in (1, 10, 100)}  # back by zlib at its end
        members = {"llama-server.exe": data, "d/e/empty": b"", **held}
        found = yard.unpack(zipped(*members.items(), method=method), limits=limits)
        assert found == {name: (0o644, data) for name, data in members.items()}

    def test_a_zip_with_links_folders_exec_bits_and_descriptors(self, yard: Yard, tmp_path: Path) -> None:
        class Pipe(io.RawIOBase):
            """Cannot be sought, so zipfile leaves sizes and CRCs to descriptors."""

            def writable(self) -> bool:
                return True

            def write(self, data: bytes) -> int:  # type: ignore[override]
                with (tmp_path / "piped").open("ab") as piped:
                    return piped.write(data)

        with zipfile.ZipFile(Pipe(), "w", zipfile.ZIP_DEFLATED) as archive:
            for name, mode, data in (
                ("lib.so", stat.S_IFLNK | 0o777, b"lib.so.0"),
                ("lib.so.0", stat.S_IFREG | 0o4711, b"library"),
                ("d/", stat.S_IFDIR | 0o700, b""),
                ("plain", 0, b"words"),
            ):
                info = zipfile.ZipInfo(name)
                info.external_attr = mode << 16
                archive.writestr(info, data)
        found = yard.unpack((tmp_path / "piped").read_bytes())
        lib = {"lib.so": (0, ("link", "lib.so.0")), "lib.so.0": (0o755, b"library")}
        assert found == {**lib, "plain": (0o644, b"words")}
        assert (yard.destination / "d").is_dir()

    def test_the_true_build(self, yard: Yard, tmp_path: Path) -> None:
        bundle = real_bundle()
        if bundle is None:
            pytest.skip("KAWAI_TEST_BUNDLE names no true build")
        theirs = tmp_path / "theirs"
        theirs.mkdir()
        subprocess.run(["tar", "xzf", bundle, "-C", theirs, "--strip-components=1"], check=True)
        assert yard.unpack(bundle.read_bytes()) == contents(theirs)

    def test_every_file_and_directory_is_synced(self, yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
        synced: set[int] = set()
        sync = os.fsync

        def spy(fd: int) -> None:
            synced.add(os.fstat(fd).st_ino)
            sync(fd)

        monkeypatch.setattr(os, "fsync", spy)
        yard.unpack(tgz(*LIBRARIES, file("b/d/e/x"), folder("b/f")))
        everything = [yard.destination, *yard.destination.rglob("*")]
        assert synced == {path.stat().st_ino for path in everything if not path.is_symlink()}

    @pytest.mark.parametrize("limits", [Limits(), TWICE], ids=["kept", "read twice"])
    def test_progress_grows_to_the_total(self, yard: Yard, limits: Limits) -> None:
        seen: list[tuple[int, int]] = []
        archive = yard.put(tgz(SERVER, file("b/big", os.urandom(5 << 20)), hard("b/x", "b/big")))
        unpack([archive], yard.destination, limits=limits, progress=lambda *now: seen.append(now))
        total = (5 << 20) + len(SERVER[1])
        assert seen[0] == (0, total)
        assert seen[-1] == (total, total)
        assert len(seen) > 5
        assert seen == sorted(set(seen))


class TestSeveral:
    BUILD = tgz(SERVER, file("b/same", b"both"), file("b/d/x"), link("b/l", "same"))

    @pytest.mark.parametrize("limits", [Limits(), TWICE], ids=["kept", "read twice"])
    def test_what_both_have_alike_is_written_once(self, yard: Yard, limits: Limits) -> None:
        companion = tgz(
            file("cudart/cudart.so", b"cuda"), hard("cudart/c", "cudart/cudart.so"), folder("cudart/d"),
            file("cudart/same", b"both"), link("cudart/l", "same"),
        )  # fmt: skip
        found = yard.unpack(self.BUILD, companion, limits=limits)
        assert set(found) == {"llama-server", "same", "d/x", "l", "cudart.so", "c"}
        assert found["same"] == (0o644, b"both")

    def test_a_tar_gz_and_a_zip(self, yard: Yard) -> None:
        assert set(yard.unpack(tgz(SERVER), zipped(("cudart.dll", b"")))) == {"llama-server", "cudart.dll"}

    @pytest.mark.parametrize(
        "entries",
        [
            (file("c/same", b"else"),),
            (file("c/same", b"both more"),),
            (file("c/x"), link("c/same", "x")),
            (file("c/same/x"),),
            (file("c/l", b"both"),),
            (file("c/l/x"),),
            (file("c/llama-server"), link("c/l", "llama-server")),
            (file("c/d"),),
            (file("c/x", b"else"), hard("c/same", "c/x")),
        ],
        ids=lambda entries: " ".join(info.name for info, _ in entries),
    )
    def test_what_differs_is_refused(self, yard: Yard, entries: Sequence[Entry]) -> None:
        with pytest.raises(BrokenArchive, match="not the same"):
            yard.unpack(self.BUILD, tgz(*entries))

    def test_what_differs_in_spelling_is_refused(self, yard: Yard) -> None:
        with pytest.raises(UnsafeArchive, match="spelling"):
            yard.unpack(self.BUILD, tgz(file("c/SAME", b"both")))

    def test_a_link_into_the_other_archive_is_refused(self, yard: Yard) -> None:
        with pytest.raises(UnsafeArchive, match="no file in the archive"):
            yard.unpack(self.BUILD, tgz(file("c/x"), link("c/out", "same")))

    def test_limits_hold_for_all_together(self, yard: Yard) -> None:
        data = zipped(("a", bytes(600)))
        assert yard.unpack(data, limits=Limits(total=600))
        with pytest.raises(UnsafeArchive, match="archive-1: it unpacks to more than 1,199 bytes"):
            Yard(yard.root / "other").unpack(data, data, limits=Limits(total=1199))


class TestLimits:
    @pytest.mark.parametrize("build", [tgz, lambda *all_: zipped(*((i.name, data) for i, data in all_))])
    def test_members(self, yard: Yard, build: Callable[..., bytes]) -> None:
        entries = [file(f"b/{number}") for number in range(20)]
        with pytest.raises(UnsafeArchive, match="more than 19 members"):
            yard.unpack(build(*entries), limits=Limits(members=19))
        assert len(yard.unpack(build(*entries), limits=Limits(members=21))) == 20

    def test_directories_that_are_only_implied(self, yard: Yard) -> None:
        entries = [file(f"b/{number}/a/b/c/x") for number in range(20)]
        with pytest.raises(UnsafeArchive, match="more than 60 directories"):
            yard.unpack(tgz(*entries), limits=Limits(members=60))

    def test_headers_that_are_no_members(self, yard: Yard) -> None:
        with pytest.raises(UnsafeArchive, match="more than 50 members"):
            yard.unpack(packed(header(b"g") * 100 + plain_tar(SERVER)), limits=Limits(members=50))

    def test_bytes_that_are_in_no_member(self, yard: Yard) -> None:
        comment = record("comment", b"c" * 50000)
        ballast = header(b"g", size=len(comment)) + comment + bytes(-len(comment) % 512)
        with pytest.raises(UnsafeArchive, match="more than 1,000,000 bytes"):
            yard.unpack(packed(ballast * 50 + plain_tar(SERVER)), limits=Limits(total=1_000_000))

    def test_a_bomb_is_refused_by_what_it_says_before_it_is_inflated(self, yard: Yard) -> None:
        pauses = 0

        def pause() -> None:
            nonlocal pauses
            pauses += 1

        archive = yard.put(packed(header(b"0", size=7 << 30) + bytes(64 << 20)))
        with pytest.raises(UnsafeArchive, match="more than"):
            unpack([archive], yard.destination, pause=pause)
        assert pauses < 5


class Stop(Exception):
    """What ``pause`` raises."""


class TestFailing:
    @pytest.mark.parametrize("limits", [Limits(), TWICE], ids=["kept", "read twice"])
    def test_pause_ends_it_at_any_moment(self, yard: Yard, limits: Limits) -> None:
        archive = yard.put(tgz(*LIBRARIES, file("b/d/x"), hard("b/h", "b/d/x")))
        for moment in itertools.count():
            calls = itertools.count()

            def pause(calls: Iterator[int] = calls, moment: int = moment) -> None:
                if next(calls) == moment:
                    raise Stop

            before = Guard(yard)
            before.__enter__()
            try:
                unpack([archive], yard.destination, limits=limits, pause=pause)
            except Stop:
                before.__exit__(Stop)
                continue
            before.__exit__(None)
            break
        assert moment > (9 if limits.kept else 17)

    @pytest.mark.parametrize("what", ["directory", "file", "symlink", "dangling symlink"])
    def test_a_destination_that_is_there_stays(self, yard: Yard, what: str) -> None:
        place = yard.destination
        if what == "directory":
            place.mkdir()
            (place / "old").write_text("old")
        elif what == "file":
            place.write_text("old")
        else:
            place.symlink_to(yard.canary / ("nothing" if what == "dangling symlink" else "."))
        archive = yard.put(tgz(SERVER))
        before = tree(yard.root)
        with pytest.raises(HomeNotWritable, match="File exists"):
            unpack([archive], place)
        assert tree(yard.root) == before

    def test_a_parent_that_is_a_file(self, yard: Yard) -> None:
        yard.destination = yard.canary / "secret" / "build"
        with pytest.raises(HomeNotWritable, match="Not a directory"):
            yard.unpack(tgz(SERVER))

    @pytest.mark.parametrize("limits", [Limits(), TWICE], ids=["kept", "read twice"])
    @pytest.mark.parametrize(
        ("options", "says"), [("size=1m", "bytes are needed"), ("nr_inodes=4", "is full")]
    )
    def test_a_full_disk(self, yard: Yard, options: str, says: str, limits: Limits) -> None:
        if sys.platform != "linux" or os.geteuid() != 0:
            pytest.skip("only root on Linux can mount a small disk")
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", yard.staging], check=False, capture_output=True
        )
        if mounted.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode()}")
        try:
            with pytest.raises(NoSpace, match=says) as caught:
                yard.unpack(tgz(*LIBRARIES, file("b/big", bytes(2 << 20))), limits=limits)
            assert caught.value.hint
        finally:
            subprocess.run(["umount", yard.staging], check=True)

    @pytest.mark.parametrize(
        "later",
        [(SERVER, link("b/l", "../../canary")), (SERVER,), (SERVER, REAL, link("b/l", "../../canary"))],
        ids=["other", "fewer", "more"],
    )
    def test_an_archive_that_changes_between_check_and_writing(
        self, yard: Yard, later: Sequence[Entry]
    ) -> None:
        archive = yard.put(gzip.compress(plain_tar(SERVER, REAL), 0))
        other = gzip.compress(plain_tar(*later), 0)
        assert len(other) == archive.stat().st_size  # so that not even its size tells

        def swap(done: int, _total: int) -> None:
            if not done:
                archive.write_bytes(other)

        with pytest.raises(BrokenArchive, match="changed while it was read"):
            unpack([archive], yard.destination, limits=TWICE, progress=swap)
        assert not yard.destination.exists()

    def test_an_archive_that_shrinks_while_it_is_written(self, yard: Yard) -> None:
        archive = yard.put(zipped(("big", os.urandom(4 << 20)), method=zipfile.ZIP_STORED))

        def cut(done: int, _total: int) -> None:
            if done:
                os.truncate(archive, 2 << 20)

        with pytest.raises(BrokenArchive, match="cut short"):
            unpack([archive], yard.destination, limits=TWICE, progress=cut)
        assert not yard.destination.exists()

    @pytest.mark.parametrize("limits", [Limits(), TWICE], ids=["kept", "read twice"])
    @pytest.mark.parametrize("member", ["llama-server", "d/x", "d"])
    def test_a_link_planted_while_it_writes_is_not_followed(
        self, yard: Yard, member: str, limits: Limits
    ) -> None:
        def plant(done: int, _total: int) -> None:
            if not done:
                place = yard.destination / member
                if place.is_dir():
                    place.rmdir()
                place.symlink_to(yard.canary / ("." if member == "d" else "secret"))

        archive = yard.put(tgz(SERVER, file("b/d/x")))
        with yard.guarded(leaves=False), pytest.raises(HomeNotWritable):
            unpack([archive], yard.destination, limits=limits, progress=plant)

    def test_killed_in_the_middle_the_next_run_succeeds(self, yard: Yard) -> None:
        archive = yard.put(tgz(SERVER, file("b/big", os.urandom(4 << 20)), REAL))
        child = """
import os, signal, sys
from pathlib import Path
from kawai_tools.libs.archives import unpack
kill = lambda done, total: done > total // 2 and os.kill(os.getpid(), signal.SIGKILL)
unpack([Path(sys.argv[1])], Path(sys.argv[2]), progress=kill)
"""
        with yard.guarded():
            ended = subprocess.run([sys.executable, "-c", child, archive, yard.destination], check=False)
            assert ended.returncode == -signal.SIGKILL
        shutil.rmtree(yard.destination)
        unpack([archive], yard.destination)
        assert len(contents(yard.destination)) == 3


SMALL = {"tar.gz": tgz(*LIBRARIES, hard("b/h", "b/llama-server"), kind=tarfile.GNU_FORMAT), "zip": ZIP}


UNPACK_ALL = """
import json, pathlib, resource, shutil, sys, time
from kawai_tools.errors import BrokenArchive, UnsafeArchive
from kawai_tools.libs.archives import unpack
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
answers = {}
for path in pathlib.Path(sys.argv[2]).iterdir():
    started = time.process_time()
    destination = pathlib.Path(sys.argv[3])
    try:
        unpack([path], destination)
        code = "unpacked"
        for each in destination.rglob("*"):
            real = each.resolve(strict=True)
            assert real.is_relative_to(destination) and (real.is_file() or each.is_dir()), (path, each)
            assert each.is_symlink() or each.stat().st_mode & 0o7777 in {0o644, 0o755}, (path, each)
        shutil.rmtree(destination)
    except (BrokenArchive, UnsafeArchive) as error:
        code = error.code
    assert not destination.exists(), path
    answers[path.name] = [code, time.process_time() - started]
print(json.dumps(answers))
"""


def capped(folder: Path, destination: Path) -> dict[str, tuple[str, float]]:
    """Unpack all archives in a child that may not have more memory; what became of each, and seconds."""
    child = [sys.executable, "-c", UNPACK_ALL, str(MEMORY_LIMIT), str(folder), str(destination)]
    ended = subprocess.run(child, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    answers: dict[str, tuple[str, float]] = json.loads(ended.stdout)
    return answers


def mutated(data: bytes, chance: random.Random) -> bytes:
    """One to four small changes, where something is rather than in the zeros between; a tar's sums mended."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        changed += bytes(max(0, 8 - len(changed)))
        at = chance.choice([at for at in chance.choices(range(len(changed)), k=20) if changed[at]] or [0])
        match chance.randrange(5):
            case 0:
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                changed[at] = chance.choice(b"\0/.\\0123456789xgLK\xff")
            case 2:
                changed[at : at + chance.randint(1, 600)] = b""
            case 3:
                changed[at:at] = changed[chance.randrange(len(changed)) :][: chance.randint(1, 600)]
            case _:
                changed[at : at + 4] = struct.pack(
                    "<L", chance.choice([0, 1, 1 << 16, 1 << 31, (1 << 32) - 1])
                )
    if chance.random() < 0.7 and changed[257:262] == b"ustar":
        for start in range(0, len(changed) - 511, 512):
            if changed[start + 257 : start + 262] == b"ustar":
                changed[start + 148 : start + 156] = b" " * 8
                changed[start + 148 : start + 156] = f"{sum(changed[start : start + 512]):06o}\0 ".encode()
    return bytes(changed)


def squeezed(pieces: Iterable[bytes]) -> bytes:
    """A gzip of more than one wants to hold."""
    deflate = zlib.compressobj(1, zlib.DEFLATED, 31)
    return b"".join([*(deflate.compress(piece) for piece in pieces), deflate.flush()])


def ballast() -> Iterator[bytes]:
    """Small files with ten times 60 KB between each and the next that nobody wants."""
    comment = record("comment", b"c" * 60_000)
    between = header(b"g", size=len(comment)) + comment + bytes(-len(comment) % 512)
    for number in range(600):
        yield header(b"0", f"b/{number}", 1) + b"x".ljust(512, b"\0") + between * 10
    yield bytes(1024)


ZEROS = bytes(1 << 20)
BOMBS: dict[str, Callable[[], bytes]] = {
    "zeros": lambda: squeezed([header(b"0", size=400 << 20), *[ZEROS] * 400, b"no header".ljust(512, b"!")]),
    "ballast": lambda: squeezed(ballast()),
    "members": lambda: squeezed(header(b"0", f"b/{number}") for number in range(20_000)),
    "folders": lambda: squeezed(header(b"0", f"b/{number}" + "/d" * 13 + "/x") for number in range(2000)),
    "zip": lambda: zipped(*((str(number), b"") for number in range(20_000))),
    "tail": lambda: squeezed([header(b"0"), *[ZEROS] * 1000]),
    "headers": lambda: squeezed([header(b"g")] * 100_000),
}


class TestDamaged:
    @pytest.mark.parametrize("kind", SMALL)
    def test_every_truncation_is_noticed(self, kind: str, yard: Yard) -> None:
        path = yard.put(b"")
        before = tree(yard.canary), len(list(Path("/dev/fd").iterdir()))
        for size in range(len(SMALL[kind])):
            path.write_bytes(SMALL[kind][:size])
            with pytest.raises(BrokenArchive):
                unpack([path], yard.destination)
            assert not yard.destination.exists()
        assert (tree(yard.canary), len(list(Path("/dev/fd").iterdir()))) == before
        path.write_bytes(SMALL[kind])
        unpack([path], yard.destination)

    @pytest.mark.slow
    def test_mutations_under_a_memory_cap(self, yard: Yard, tmp_path: Path) -> None:
        chance = random.Random(20261125)  # noqa: S311  # the same mutations every time
        plain = plain_tar(*LIBRARIES, hard("b/h", "b/llama-server"), file("b/" + "n" * 120))
        folder = tmp_path / "mutations"
        folder.mkdir()
        for number in range(1500):
            source = [plain, SMALL["tar.gz"], ZIP][number % 3]
            data = mutated(source, chance)
            (folder / str(number)).write_bytes(packed(data) if source is plain else data)
        with yard.guarded(leaves=False):
            answers = capped(folder, yard.destination).values()
        assert {code for code, _ in answers} == {"unsafe_archive", "broken_archive", "unpacked"}

    @pytest.mark.slow
    @pytest.mark.parametrize("what", BOMBS)
    def test_bombs_under_a_memory_cap(self, what: str, yard: Yard, tmp_path: Path) -> None:
        folder = tmp_path / "bombs"
        folder.mkdir()
        (folder / what).write_bytes(BOMBS[what]())
        with yard.guarded(leaves=False):
            ((code, took),) = capped(folder, yard.destination).values()
        assert code == {"ballast": "unpacked", "zeros": "broken_archive", "tail": "broken_archive"}.get(
            what, "unsafe_archive"
        )
        assert took < SECONDS


NAMES = st.sampled_from(
    [
        "x",
        "X",
        "y",
        "d",
        "d/x",
        "d/y",
        "d/e/x",
        ".",
        "..",
        "../x",
        "d/../x",
        "",
        "d/",
        "x/",
        "x/z",
        "y/z",
    ]
)
TARGETS = st.sampled_from(
    [
        "x",
        "y",
        "d",
        "d/x",
        "../x",
        "../y",
        "./x",
        "d/../y",
        "..",
        ".",
        "../../canary/secret",
        "/etc/passwd",
        "e/x",
    ]
)
KINDS = st.sampled_from([tarfile.REGTYPE] * 3 + [tarfile.SYMTYPE] * 3 + [tarfile.LNKTYPE, tarfile.DIRTYPE])


def entry(kind: bytes, name: str, target: str, mode: int) -> Entry:
    if kind == tarfile.REGTYPE:
        return file(f"b/{name}", name.encode(), mode)
    return special(f"b/{name}", kind, f"b/{target}" if kind == tarfile.LNKTYPE else target, mode)


class TestAnyTree:
    @pytest.mark.slow
    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        entries=st.lists(st.builds(entry, KINDS, NAMES, TARGETS, st.integers(0, 0o7777)), max_size=6),
        kept=st.sampled_from([0, 1 << 20]),
    )
    def test_is_refused_or_unpacked_as_tar_would(self, entries: list[Entry], kept: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            yard = Yard(Path(folder) / "yard")
            try:
                found = yard.unpack(tgz(SERVER, *entries), limits=Limits(kept=kept))
            except (UnsafeArchive, BrokenArchive):
                return
            theirs = Path(folder) / "theirs"
            theirs.mkdir()
            archive = next(yard.root.glob("archive-*"))
            subprocess.run(["tar", "xzf", archive, "-C", theirs, "--strip-components=1"], check=True)
            for path in [theirs, *theirs.rglob("*")]:
                if not path.is_symlink():
                    executable = path.is_dir() or path.stat().st_mode & 0o111
                    path.chmod(0o755 if executable else 0o644)
            assert found == contents(theirs)
