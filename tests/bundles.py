"""llama.cpp builds in the shape of its releases, made while tests run: some work, some do not start.

A good one's ``llama-server`` is ``launcher.py``: the C++ server of the package ``xllamacpp``. As the true one
does, it loads libraries from beside itself, by the links that the archive has to bring along: where those are
lost, it does not start. A broken one's is a small C program, and so needs no Python to fail.
"""

import gzip
import io
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal

BUILT = 1_790_000_000  # one time for all members: the same build gives the same bytes, and so the same digest
LIBRARY = "libllama.so"
LAUNCHER = Path(__file__).with_name("launcher.py")

How = Literal[
    "sigill", "sigill_on_load", "missing_library", "wrong_arch", "no_server", "exits", "hangs", "floods"
]
"""What is wrong with a build; ``broken_bundle`` says what each means."""


def real_bundle() -> Path | None:
    """The archive of a true build that ``KAWAI_TEST_BUNDLE`` names, or None where it names none."""
    named = os.environ.get("KAWAI_TEST_BUNDLE")
    if not named:
        return None
    if not (path := Path(named)).is_file():
        raise FileNotFoundError(f"KAWAI_TEST_BUNDLE={named}: there is no such file")
    return path


def host_platform() -> str:
    """The middle of the name of the CPU build for this machine, such as ``ubuntu-x64``."""
    arch = {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return f"{'macos' if sys.platform == 'darwin' else 'ubuntu'}-{arch}"


def asset_name(tag: str, platform_name: str) -> str:
    """The name under which llama.cpp releases a build (facts.md, "llama.cpp releases")."""
    return f"llama-{tag}-bin-{platform_name}.{'zip' if platform_name.startswith('win-') else 'tar.gz'}"


def launcher_bundle(tag: str, platform_name: str | None = None, *, directory: Path) -> Path:
    """A build that works on this machine, whatever platform (None: this one) its name tells; the archive.

    A ``win-`` build is a flat zip with ``llama-server.exe``, which is good for being fetched only.
    """
    return _archive(tag, platform_name, directory, _launcher)


def broken_bundle(tag: str, platform_name: str | None = None, *, how: How, directory: Path) -> Path:
    """A build that is released like any other and does not work; the archive.

    ``sigill`` dies by SIGILL whatever it is asked; ``sigill_on_load`` answers ``--version`` and
    ``--list-devices`` and dies so when it initialises the CPU; ``missing_library`` is linked against
    ``libggml-base.so.0``, which is left out; ``wrong_arch`` is an ELF file of another machine; ``no_server``
    has none; ``exits`` says why and exits by 1; ``hangs`` says one line, ignores SIGTERM and never ends;
    ``floods`` writes to stderr without end.
    """
    return _archive(tag, platform_name, directory, _BREAKAGES[how])


def companion_bundle(tag: str, platform_name: str, *, directory: Path) -> Path:
    """The CUDA runtime that goes with a build: ``cudart-llama-...``, with its own name as the top folder."""
    windows = platform_name.startswith("win-")
    # the companions of Windows builds have no tag in their names
    stem = f"cudart-llama-bin-{platform_name}" if windows else f"cudart-llama-{tag}-bin-{platform_name}"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, stem)
        folder.mkdir()
        _library(folder, "libcudart.so", "libcudart.so.13.4", "int cudart;")
        return _pack(folder, directory / f"{stem}.{'zip' if windows else 'tar.gz'}")


def _archive(tag: str, platform_name: str | None, directory: Path, fill: Callable[[str, Path], None]) -> Path:
    name = asset_name(tag, platform_name or host_platform())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, f"llama-{tag}")
        folder.mkdir()
        (folder / "LICENSE").write_text("MIT License\n\nCopyright (c) 2023-2026 The ggml authors\n")
        fill(tag, folder)
        server = folder / "llama-server"
        if name.endswith(".zip") and server.exists():
            server.rename(server.with_suffix(".exe"))
        return _pack(folder, directory / name)


def _pack(folder: Path, archive: Path) -> Path:
    """Pack a folder: a tar.gz with it on top, or a flat zip."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    files = sorted(folder.iterdir())
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in files:
                # Windows builds have no links
                packed.writestr(zipfile.ZipInfo(path.name, (2026, 11, 1, 0, 0, 0)), path.read_bytes())
        return archive
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.GNU_FORMAT) as tape:
        for path in (folder, *files):
            tape.add(path, path.relative_to(folder.parent), recursive=False, filter=_anonymous)
    archive.write_bytes(gzip.compress(plain.getvalue(), 6, mtime=BUILT))
    return archive


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mtime = BUILT
    return member


def _compile(source: str, target: Path, *flags: str) -> None:
    target.write_bytes(_compiled(source, flags))
    target.chmod(0o755)


@cache
def _compiled(source: str, flags: tuple[str, ...]) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch, "made")
        command = ["cc", "-x", "c", "-", "-o", str(target), *flags]
        subprocess.run(command, input=source.encode(), check=True, capture_output=True)
        return target.read_bytes()


def _library(folder: Path, link: str, real: str, source: str) -> None:
    """Put a library into the folder as releases have it: ``link -> link.0 -> real``."""
    _compile(source, folder / real, "-shared", "-fPIC", f"-Wl,-soname,{link}.0")
    (folder / f"{link}.0").symlink_to(real)
    (folder / link).symlink_to(f"{link}.0")


def _number(tag: str) -> int:
    found = re.fullmatch(r"b(\d+)", tag)
    return int(found[1]) if found else 0


_LIBRARY = """
#include <signal.h>
int llama_build_number(void) {{ return {number}; }}
int llama_backend_init(void) {{ return {init}; }}
"""


def _launcher(tag: str, folder: Path, *, init: str = "0") -> None:
    _library(folder, LIBRARY, f"{LIBRARY}.0.6.0", _LIBRARY.format(number=_number(tag), init=init))
    (folder / "ggml-rpc-server").write_text("#!/bin/sh\nexit 1\n")
    (folder / "llama-server").write_text(f"#!{sys.executable} -I\n{LAUNCHER.read_text()}")
    for name in ("ggml-rpc-server", "llama-server"):
        (folder / name).chmod(0o755)


def _server(source: str) -> Callable[[str, Path], None]:
    """A build whose server is this C program."""

    def fill(_: str, folder: Path) -> None:
        _compile(source, folder / "llama-server")

    return fill


def _missing_library(_: str, folder: Path) -> None:
    base = "libggml-base.so"
    _library(folder, base, f"{base}.0.26.0", "int ggml_version(void) { return 26; }")
    source = "int ggml_version(void); int main(void) { return ggml_version(); }"
    _compile(source, folder / "llama-server", f"-L{folder}", "-lggml-base", "-Wl,-rpath,$ORIGIN")
    for path in folder.glob(f"{base}*"):
        path.unlink()


def _wrong_arch(_: str, folder: Path) -> None:
    server = folder / "llama-server"
    _compile("int main(void) { return 0; }", server)
    head = bytearray(server.read_bytes())
    # e_machine (elf.h): 62 is x86-64, 183 is AArch64
    head[18:20] = (183 if platform.machine() == "x86_64" else 62).to_bytes(2, "little")
    server.write_bytes(head)


def _no_server(tag: str, folder: Path) -> None:
    _launcher(tag, folder)
    (folder / "llama-server").unlink()


_BREAKAGES: dict[How, Callable[[str, Path], None]] = {
    "sigill": _server("#include <signal.h>\nint main(void) { return raise(SIGILL); }"),
    "sigill_on_load": lambda tag, folder: _launcher(tag, folder, init="raise(SIGILL)"),
    "missing_library": _missing_library,
    "wrong_arch": _wrong_arch,
    "no_server": _no_server,
    "exits": _server(
        '#include <stdio.h>\nint main(void) { fputs("error: failed to load backend\\n", stderr); return 1; }'
    ),
    "hangs": _server(
        "#include <signal.h>\n#include <unistd.h>\n"
        'int main(void) { signal(SIGTERM, SIG_IGN); write(2, "initializing ...\\n", 17); for (;;) pause(); }'
    ),
    "floods": _server('#include <stdio.h>\nint main(void) { for (;;) fputs("warning: again\\n", stderr); }'),
}
