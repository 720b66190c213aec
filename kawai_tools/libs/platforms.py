"""What this machine is: architecture, operating system, processors, each with the evidence for it.

Evidence is read from where drivers leave it: ``nvidia-smi``, ``/sys/class/kfd`` and ``/opt/rocm`` (ROCm),
Vulkan's ICD files and device nodes, ``/proc/cpuinfo``, the C library's own version. Everything is looked
at through :class:`System`, so that a test can be any machine.
"""

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from kawai_tools.libs.children import environment

PATIENCE = 5.0
"""Seconds that a driver's own tool may take to answer."""

_ARCHES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64", "s390x": "s390x"}
_SETS = ("sse4_2", "avx", "f16c", "fma", "avx2", "bmi2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
_ICD_FOLDERS = ("/usr/share/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/etc/vulkan/icd.d")
_SOFTWARE = ("lvp", "llvmpipe", "swiftshader", "vk_swiftshader")
"""ICDs that draw on the CPU: no device."""

_LOADERS = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib")


class Arch(StrEnum):
    """Processor architectures that llama.cpp is built for."""

    AMD64 = "amd64"
    ARM64 = "arm64"
    S390X = "s390x"


class Os(StrEnum):
    """Operating systems that llama.cpp is built for."""

    LINUX = "linux"
    DARWIN = "darwin"
    WINDOWS = "windows"


class Processor(StrEnum):
    """What computes, by the name of the interface that a build uses."""

    CPU = "cpu"
    CUDA = "cuda"
    ROCM = "rocm"
    VULKAN = "vulkan"
    METAL = "metal"
    SYCL = "sycl"
    OPENVINO = "openvino"


class Version(NamedTuple):
    """A version of an interface, as drivers and builds name it (``12.8``)."""

    major: int
    minor: int = 0

    def __str__(self) -> str:
        """As it is written."""
        return f"{self.major}.{self.minor}"


def version_in(text: str) -> Version | None:
    """The first version that a text names."""
    found = re.search(r"([0-9]{1,6})(?:\.([0-9]{1,6}))?", text)
    return Version(int(found[1]), int(found[2] or 0)) if found else None


class Evidence(NamedTuple):
    """What was found of one processor: whether a device is there, and the words for it.

    ``version`` is what the driver supports at most (CUDA) or what is installed (ROCm); ``compute`` the
    lowest compute capability of the NVIDIA devices; ``broken`` a device whose driver does not answer.
    """

    processor: Processor
    there: bool
    detail: str
    version: Version | None = None
    compute: Version | None = None
    broken: bool = False


@dataclass(frozen=True)
class Machine:
    """What this machine is. ``arch`` and ``os`` are ``None`` where llama.cpp is built for no such."""

    arch: Arch | None
    os: Os | None
    name: str
    instruction_sets: tuple[str, ...]
    libc: str
    found: tuple[Evidence, ...]
    memory: int | None = None
    """Bytes of main memory that processes here may use; ``None`` where that is not known."""

    def evidence(self, processor: Processor) -> Evidence:
        """What was found of one processor."""
        return next(each for each in self.found if each.processor is processor)


class System:
    """The machine that this process runs on, as it answers questions."""

    def uname(self) -> tuple[str, str]:
        """Name of the system (``Linux``) and of the machine (``x86_64``)."""
        names = os.uname()
        return names.sysname, names.machine

    def read(self, path: str) -> str | None:
        """The text of a file, or ``None``."""
        try:
            return Path(path).read_text("utf-8", "replace")
        except OSError:
            return None

    def names(self, folder: str) -> list[str]:
        """The names in a folder, sorted; none where there is no such folder."""
        try:
            return sorted(each.name for each in Path(folder).iterdir())
        except OSError:
            return []

    def run(self, *command: str) -> str | None:
        """What a program prints, or ``None`` where it is not there, fails or takes too long."""
        program = shutil.which(command[0])
        if program is None:
            return None
        try:
            done = subprocess.run(  # noqa: S603 - a driver's own tool, by its fixed name
                [program, *command[1:]],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=PATIENCE,
                check=False,
                env=environment(os.environ),
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    def libc(self) -> str:
        """Name and version of the C library, ``""`` where that is not known."""
        return " ".join(platform.libc_ver()).strip()


def look(system: System | None = None) -> Machine:
    """What the machine is. Nothing is loaded into this process for it."""
    system = system or System()
    sysname, machine = system.uname()
    arch = _ARCHES.get(machine.lower())
    operating = {"Linux": Os.LINUX, "Darwin": Os.DARWIN}.get(sysname)
    return Machine(
        arch=Arch(arch) if arch else None,
        os=operating,
        name=f"{sysname} {machine}",
        instruction_sets=_instruction_sets(system),
        libc=system.libc(),
        found=tuple(_evidence(system, operating, arch)),
        memory=_memory(system, operating),
    )


def _memory(system: System, operating: Os | None) -> int | None:
    """What is built in, or as much of it as the control group allows (cgroup v2, ``memory.max``)."""
    if operating is Os.DARWIN:
        size = (system.run("sysctl", "-n", "hw.memsize") or "").strip()
        return int(size) if size.isdecimal() else None
    total = re.search(r"^MemTotal:\s+(\d{1,15}) kB", system.read("/proc/meminfo") or "", re.MULTILINE)
    if total is None:
        return None
    allowed = (system.read("/sys/fs/cgroup/memory.max") or "").strip()
    built_in = int(total[1]) * 1024
    return min(built_in, int(allowed)) if allowed.isdecimal() else built_in


def _instruction_sets(system: System) -> tuple[str, ...]:
    lines = (system.read("/proc/cpuinfo") or "").splitlines()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    words = set(flags.partition(":")[2].split())
    return tuple(each for each in (*_SETS, "asimd", "sve", "i8mm") if each in words)


def _evidence(system: System, operating: Os | None, arch: str | None) -> Iterable[Evidence]:
    yield Evidence(Processor.CPU, there=True, detail="always there")
    if operating is Os.DARWIN:
        metal = arch == "arm64"
        words = "Apple silicon" if metal else "builds for Intel Macs have no Metal"
        yield Evidence(Processor.METAL, metal, words)
        others = (Processor.CUDA, Processor.ROCM, Processor.VULKAN, Processor.SYCL, Processor.OPENVINO)
        yield from (Evidence(each, there=False, detail="not on macOS") for each in others)
        return
    yield Evidence(Processor.METAL, there=False, detail="on macOS only")
    yield _cuda(system)
    yield _rocm(system)
    yield _vulkan(system)
    yield from _intel(system)


def _cuda(system: System) -> Evidence:
    query = "--query-gpu=name,driver_version,compute_cap"
    listed = system.run("nvidia-smi", query, "--format=csv,noheader")
    devices = [[word.strip() for word in line.split(",")] for line in (listed or "").splitlines() if line]
    if listed is None or any(len(device) != 3 for device in devices):  # noqa: PLR2004 - as asked
        if system.read("/proc/driver/nvidia/version") is None:
            return Evidence(Processor.CUDA, there=False, detail="no NVIDIA device found")
        words = "the NVIDIA driver does not answer (nvidia-smi)"
        return Evidence(Processor.CUDA, there=False, detail=words, broken=True)
    if not devices:
        return Evidence(Processor.CUDA, there=False, detail="no NVIDIA device found")
    header = re.search(r"CUDA(?: UMD)? Version:\s*([\d.]+)", system.run("nvidia-smi") or "")
    newest = version_in(header[1]) if header else None
    lowest = min((found for device in devices if (found := version_in(device[2]))), default=None)
    shown = [f"{name} (compute capability {version_in(able) or 'unknown'})" for name, _, able in devices]
    words = f"{', '.join(dict.fromkeys(shown))}, driver {devices[0][1]} for CUDA {newest or 'unknown'}"
    return Evidence(Processor.CUDA, there=True, detail=words, version=newest, compute=lowest)


def _rocm(system: System) -> Evidence:
    nodes = "/sys/class/kfd/kfd/topology/nodes"
    targets = []
    for node in system.names(nodes):
        found = re.search(r"gfx_target_version\s+(\d+)", system.read(f"{nodes}/{node}/properties") or "")
        if found and int(found[1]):
            number = int(found[1])
            targets.append(f"gfx{number // 10000}{number // 100 % 100:x}{number % 100:x}")
    if not targets:
        return Evidence(Processor.ROCM, there=False, detail="no ROCm device found")
    installed = next(
        (
            text
            for each in ("", *_rocm_folders(system))
            if (text := system.read(f"/opt/rocm{each}/.info/version"))
        ),
        "",
    )
    version = version_in(installed)
    words = f"{', '.join(dict.fromkeys(targets))}, ROCm {version or 'not installed'}"
    return Evidence(Processor.ROCM, there=True, detail=words, version=version)


def _rocm_folders(system: System) -> list[str]:
    names = [name for name in system.names("/opt") if name.startswith("rocm-")]
    newest_first = sorted(names, key=lambda name: version_in(name) or Version(0), reverse=True)
    return [name.removeprefix("rocm") for name in newest_first]


def _vulkan(system: System) -> Evidence:
    drivers = [f"{folder}/{name}" for folder in _ICD_FOLDERS for name in system.names(folder)]
    real = [path for path in drivers if not path.rpartition("/")[2].startswith(_SOFTWARE)]
    nodes = [name for name in system.names("/dev/dri") if name.startswith("renderD")]
    nodes += [name for name in system.names("/dev") if re.fullmatch(r"nvidia\d+", name)]
    if not real or not nodes:
        return Evidence(Processor.VULKAN, there=False, detail="no Vulkan device found")
    if not _has_loader(system):
        words = "a Vulkan driver, but no loader (libvulkan.so.1)"
        return Evidence(Processor.VULKAN, there=False, detail=words, broken=True)
    names = ", ".join(dict.fromkeys(_library_of(system, path) for path in real))
    return Evidence(Processor.VULKAN, there=True, detail=f"Vulkan driver {names}")


def _library_of(system: System, path: str) -> str:
    """The driver that an ICD file names (its ``library_path``), else the file's own name."""
    try:
        library = json.loads(system.read(path) or "")["ICD"]["library_path"]
    except (ValueError, KeyError, TypeError):
        library = path
    return str(library).rpartition("/")[2]


def _has_loader(system: System) -> bool:
    folders = [
        *_LOADERS,
        *(f"{each}/{name}" for each in _LOADERS for name in system.names(each) if "-linux-" in name),
    ]
    return any("libvulkan.so.1" in system.names(folder) for folder in folders)


def _intel(system: System) -> Iterable[Evidence]:
    """An Intel GPU or NPU; builds for these are taken only when asked for."""
    cards = [name for name in system.names("/sys/class/drm") if re.fullmatch(r"card\d+", name)]
    vendors = [system.read(f"/sys/class/drm/{card}/device/vendor") or "" for card in cards]
    gpu = any(vendor.strip() == "0x8086" for vendor in vendors)
    npu = bool(system.names("/sys/class/accel"))
    yield Evidence(Processor.SYCL, gpu, "Intel GPU" if gpu else "no Intel GPU found")
    words = " and ".join(name for name, there in (("Intel GPU", gpu), ("NPU", npu)) if there)
    yield Evidence(Processor.OPENVINO, gpu or npu, words or "no Intel GPU or NPU found")
