"""What a machine is, and which build suits it: evidence as drivers leave it, asset names as released."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from kawai_tools.errors import BuildNotFound
from kawai_tools.libs.builds import Build, Choice, Wish, builds_in, choose
from kawai_tools.libs.platforms import Arch, Evidence, Os, Processor, System, look
from kawai_tools.libs.release import Asset
from tests.bundles import asset_name, host_platform
from tests.hub import LocalHub
from tests.program import Program, serving

CPU, CUDA, ROCM, VULKAN = Processor.CPU, Processor.CUDA, Processor.ROCM, Processor.VULKAN
METAL, SYCL, OPENVINO = Processor.METAL, Processor.SYCL, Processor.OPENVINO


class Told(System):
    """A machine that no test could be run on otherwise: it answers what it was told."""

    def __init__(
        self,
        files: Mapping[str, str] | None = None,
        nvidia: tuple[str | None, str | None] = (None, None),
        uname: tuple[str, str] = ("Linux", "x86_64"),
    ) -> None:
        """``nvidia`` is what nvidia-smi prints when it is queried, and when it is asked nothing."""
        self.files = dict(files or {})
        self.nvidia = nvidia
        self.called = uname

    def uname(self) -> tuple[str, str]:
        return self.called

    def read(self, path: str) -> str | None:
        return self.files.get(path)

    def names(self, folder: str) -> list[str]:
        below = [path.removeprefix(f"{folder}/") for path in self.files if path.startswith(f"{folder}/")]
        return sorted({path.partition("/")[0] for path in below})

    def run(self, *command: str) -> str | None:
        queried, banner = self.nvidia
        return None if command[0] != "nvidia-smi" else queried if len(command) > 1 else banner

    def libc(self) -> str:
        return "glibc 2.39"


def smi(*devices: str, cuda: str = "13.4", label: str = "CUDA Version") -> tuple[str, str]:
    """What nvidia-smi says of devices (``name, driver, capability``)."""
    header = f"| NVIDIA-SMI 610.43.02    Driver Version: 610.43.02     {label}: {cuda}     |"
    return "".join(f"{each}\n" for each in devices), f"Wed Nov  4 2026\n+-----+\n{header}\n+-----+\n"


ADA = "NVIDIA GeForce RTX 4090, 610.43.02, 8.9"
PASCAL = "NVIDIA GeForce GTX 1080, 610.43.02, 6.1"
KEPLER = "Tesla K40c, 470.256.02, 3.5"
LOADER = {"/usr/lib/x86_64-linux-gnu/libvulkan.so.1": ""}
NODE = {"/dev/dri/card0": "", "/dev/dri/renderD128": ""}
ICDS = "/usr/share/vulkan/icd.d"
RADEON = {f"{ICDS}/radeon_icd.x86_64.json": '{"ICD": {"library_path": "/usr/lib/libvulkan_radeon.so"}}'}
SOFTWARE = {f"{ICDS}/lvp_icd.x86_64.json": '{"ICD": {"library_path": "libvulkan_lvp.so"}}'}
MESA = RADEON | SOFTWARE | NODE | LOADER
KFD = "/sys/class/kfd/kfd/topology/nodes"
NODES = {
    f"{KFD}/0/properties": "cpu_cores_count 16\ngfx_target_version 0\n",
    f"{KFD}/1/properties": "cpu_cores_count 0\ngfx_target_version 110000\n",
}
LOADED = {"/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  610.43.02\n"}

UBUNTU = ["x64", "arm64", "s390x", "vulkan-x64", "vulkan-arm64", "cuda-12.8-x64", "cuda-13.4-x64"]
UBUNTU += ["cuda-13.4-arm64", "rocm-7.2-x64", "openvino-2026.0-x64", "sycl-fp16-x64", "sycl-fp32-x64"]
WINDOWS = ["cpu-x64", "cpu-arm64", "vulkan-x64", "cuda-12.4-x64", "cuda-13.4-x64", "cuda-13.4-arm64"]
WINDOWS += ["rocm-7.2-x64", "sycl-x64", "openvino-2026.0-x64", "opencl-adreno-arm64"]
RELEASE = [
    *(f"llama-b11434-bin-macos-{each}.tar.gz" for each in ("arm64", "x64")),
    *(f"llama-b11434-bin-ubuntu-{each}.tar.gz" for each in UBUNTU),
    *(f"cudart-llama-b11434-bin-ubuntu-{each}.tar.gz" for each in UBUNTU if "cuda" in each),
    *(f"llama-b11434-bin-win-{each}.zip" for each in WINDOWS),
    *(f"cudart-llama-bin-win-{each}.zip" for each in WINDOWS if "cuda" in each),
    "llama-b11434-xcframework.zip",
]
"""As facts.md lists a release."""


def builds(*names: str) -> list[Build]:
    return builds_in(Asset(name, 1, None, f"https://example.org/{name}") for name in names or RELEASE)


def ubuntu(*backends: str) -> list[Build]:
    """Builds for x64, the plain one among them."""
    return builds(*(f"llama-b9-bin-ubuntu-{each}x64.tar.gz" for each in ("", *(f"{b}-" for b in backends))))


def chosen(system: System, offered: list[Build] | None = None, wish: Wish | None = None) -> Choice:
    return choose(offered if offered is not None else builds(), look(system), wish or Wish())


def evidence(system: System, processor: Processor) -> Evidence:
    return look(system).evidence(processor)


# CUDA


@pytest.mark.parametrize(
    ("nvidia", "variant"),
    [
        (smi(ADA), "13.4"),
        (smi(ADA, cuda="14.0"), "13.4"),
        (smi(ADA, cuda="13.3"), "12.8"),
        (smi(ADA, cuda="12.8"), "12.8"),
        (smi(PASCAL), "12.8"),
        (smi(ADA, PASCAL), "12.8"),
        (smi(PASCAL, ADA), "12.8"),
        (smi("NVIDIA GB10, 610.43.02, 12.1"), "13.4"),
        # from driver 610 on the header has another word (github.com/unslothai/unsloth/issues/5812)
        (smi(ADA, label="CUDA UMD Version"), "13.4"),
    ],
    ids=[
        "newest",
        "newer driver",
        "older driver",
        "exact",
        "old",
        "mixed",
        "mixed back",
        "two digits",
        "umd",
    ],
)
def test_cuda_takes_the_newest_build_that_driver_and_devices_can_run(
    nvidia: tuple[str, str], variant: str
) -> None:
    choice = chosen(Told(nvidia=nvidia))
    assert choice.build
    assert (choice.processor, choice.build.variant) == (CUDA, variant), choice.reason
    assert [asset.name for asset in choice.build.assets] == [
        f"llama-b11434-bin-ubuntu-cuda-{variant}-x64.tar.gz",
        f"cudart-llama-b11434-bin-ubuntu-cuda-{variant}-x64.tar.gz",
    ]
    assert nvidia[0].split(",", 1)[0] in choice.reason
    assert "610.43.02" in choice.reason


@pytest.mark.parametrize(
    ("nvidia", "words"),
    [
        (smi(KEPLER, cuda="11.4"), ["Tesla K40c", "470.256.02", "11.4", "3.5", "13.4, 12.8"]),
        (smi(KEPLER), ["Tesla K40c", "3.5", "13.4, 12.8"]),
        (smi(ADA, cuda="12.4"), ["RTX 4090", "12.4", "13.4, 12.8"]),
        (smi(ADA, cuda="N/A"), ["RTX 4090", "unknown"]),
        (smi("Orin (nvgpu), N/A, [N/A]"), ["Orin", "unknown"]),
        ((smi(ADA)[0], None), ["RTX 4090", "unknown"]),
        ((smi(ADA)[0], "\x00 CUDA Version: . |"), ["RTX 4090", "unknown"]),
    ],
)
@pytest.mark.parametrize("beside", [CPU, VULKAN])
def test_what_cuda_cannot_run_is_passed_over_and_said(
    nvidia: tuple[str, str | None], words: list[str], beside: Processor
) -> None:
    choice = chosen(Told(MESA if beside is VULKAN else {}, nvidia))
    assert choice.processor is beside
    for each in [*words, "libvulkan_radeon.so" if beside is VULKAN else "CPU"]:
        assert each in choice.reason
    assert "no NVIDIA" not in choice.reason


@pytest.mark.parametrize(
    "queried",
    [None, "", "\n\n", "No devices were found\n", "<html>, <body>\n", "a, b, c, d\n", ",\n", "\x00,\x00\n"],
)
def test_an_nvidia_smi_that_tells_of_no_device_is_no_evidence(queried: str | None) -> None:
    choice = chosen(Told(nvidia=(queried, smi()[1])))
    assert (choice.processor, choice.reason) == (CPU, "no NVIDIA, ROCm or Vulkan device found")


def test_a_loaded_driver_that_does_not_answer_is_said_to_be_there() -> None:
    system = Told(LOADED)
    assert not evidence(system, CUDA).there
    choice = chosen(system)
    assert choice.processor is CPU
    assert "nvidia-smi" in choice.reason
    assert "no NVIDIA" not in choice.reason


def test_a_capability_is_told_of_the_device_that_has_it() -> None:
    detail = evidence(Told(nvidia=smi(ADA, PASCAL)), CUDA).detail
    assert "4090 (compute capability 6.1)" not in detail
    assert "1080" in detail


def test_a_version_of_absurd_length_is_no_reason_to_fail() -> None:
    absurd = f"llama-b9-bin-ubuntu-cuda-{'9' * 5000}-x64.tar.gz"
    whole = ("llama-b9-bin-ubuntu-cuda-13.4-x64.tar.gz", "cudart-llama-b9-bin-ubuntu-cuda-13.4-x64.tar.gz")
    offered = builds(absurd, *whole)
    choice = chosen(Told(nvidia=smi(ADA)), offered)
    assert choice.build
    assert choice.build.variant == "13.4"


# ROCm


@pytest.mark.parametrize(
    ("installed", "offered", "variant"),
    [
        ("7.2.0-1", ["rocm-7.2"], "7.2"),
        ("7.14.0", ["rocm-7.2"], "7.2"),
        ("10.0.0-8", ["rocm-7.2", "rocm-10.0"], "10.0"),
        ("7.2.1", ["rocm-7.2", "rocm-10.0"], "7.2"),
        ("7.1.0", ["rocm-7.2"], None),
        ("10.0.0", ["rocm-7.2"], None),
        ("6.4.1", ["rocm-7.2", "rocm-10.0"], None),
        ("", ["rocm-7.2"], None),
        ("not a version", ["rocm-7.2"], None),
        ("7.2.0", [], None),
        ("7.2.0", ["hip-radeon"], "radeon"),
    ],
)
def test_rocm_takes_a_build_for_the_installed_version(
    installed: str, offered: list[str], variant: str | None
) -> None:
    files = NODES | ({"/opt/rocm/.info/version": f"{installed}\n"} if installed else {})
    choice = chosen(Told(files), ubuntu(*offered))
    assert choice.build
    assert (choice.processor, choice.build.variant) == (ROCM if variant else CPU, variant), choice.reason
    assert "gfx1100" in choice.reason
    for each in offered:
        assert variant or each.removeprefix("rocm-") in choice.reason


@pytest.mark.parametrize(
    ("number", "name"),
    [(90010, "gfx90a"), (90402, "gfx942"), (100300, "gfx1030"), (110000, "gfx1100"), (120001, "gfx1201")],
)
def test_an_amd_device_is_named_as_llvm_does(number: int, name: str) -> None:
    found = evidence(Told({f"{KFD}/1/properties": f"simd_count 96\ngfx_target_version {number}\n"}), ROCM)
    assert found.there
    assert name in found.detail.split(", ")


def test_the_newest_rocm_counts_where_several_are_installed() -> None:
    several = {f"/opt/rocm-{each}/.info/version": f"{each}\n" for each in ("6.4.0", "7.2.0", "10.0.0")}
    assert str(evidence(Told(NODES | several), ROCM).version) == "10.0"


def test_a_processor_without_a_gpu_in_kfd_is_no_rocm_device() -> None:
    files = {f"{KFD}/0/properties": NODES[f"{KFD}/0/properties"], "/opt/rocm/.info/version": "7.2.0"}
    assert not evidence(Told(files), ROCM).there


# Vulkan

NVIDIA_ICD = {"/etc/vulkan/icd.d/nvidia_icd.json": '{"ICD": {"library_path": "libGLX_nvidia.so.0"}}'}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (MESA, "libvulkan_radeon.so"),
        (NVIDIA_ICD | {"/dev/nvidia0": "", "/usr/lib64/libvulkan.so.1": ""}, "libGLX_nvidia.so.0"),
        ({f"{ICDS}/intel_icd.json": "{"} | NODE | LOADER, "intel_icd.json"),
        ({f"{ICDS}/intel_icd.json": "[]"} | NODE | LOADER, "intel_icd.json"),
        ({f"{ICDS}/intel_icd.json": '{"ICD": {"library_path": 5}}'} | NODE | LOADER, "5"),
    ],
    ids=["radeon", "nvidia", "broken file", "not an object", "not a path"],
)
def test_vulkan_is_its_driver_a_device_and_the_loader(files: dict[str, str], words: str) -> None:
    choice = chosen(Told(files))
    assert choice.processor is VULKAN
    assert words in choice.reason


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (SOFTWARE | NODE | LOADER, "no NVIDIA, ROCm or Vulkan device found"),
        (RADEON | LOADER, "no NVIDIA, ROCm or Vulkan device found"),
        (RADEON | LOADER | {"/dev/dri/card0": "", "/dev/nvidiactl": ""}, "no NVIDIA, ROCm or Vulkan device"),
        (NODE | LOADER, "no NVIDIA, ROCm or Vulkan device found"),
        (RADEON | NODE, "libvulkan.so.1"),
    ],
    ids=["software only", "no device", "no render node", "no driver", "no loader"],
)
def test_vulkan_is_not_taken_where_a_part_of_it_is_missing(files: dict[str, str], words: str) -> None:
    choice = chosen(Told(files))
    assert choice.processor is CPU
    assert words in choice.reason


# Other machines


@pytest.mark.parametrize(
    ("uname", "expected", "reason"),
    [
        (("Linux", "x86_64"), (Os.LINUX, Arch.AMD64, CPU), "no NVIDIA, ROCm or Vulkan device found"),
        (("Linux", "aarch64"), (Os.LINUX, Arch.ARM64, CPU), "no NVIDIA, ROCm or Vulkan device found"),
        (("Linux", "s390x"), (Os.LINUX, Arch.S390X, CPU), "no NVIDIA, ROCm or Vulkan device found"),
        (("Darwin", "arm64"), (Os.DARWIN, Arch.ARM64, METAL), "Apple silicon"),
        (("Darwin", "x86_64"), (Os.DARWIN, Arch.AMD64, CPU), "Metal"),
    ],
)
def test_every_machine_has_its_build_and_a_reason(
    uname: tuple[str, str], expected: tuple[Os, Arch, Processor], reason: str
) -> None:
    choice = chosen(Told(uname=uname))
    assert (choice.os, choice.arch, choice.processor) == expected
    assert reason in choice.reason
    assert choice.build
    assert (choice.build.os, choice.build.arch, choice.build.processor) == expected


def test_a_mac_is_asked_for_no_other_drivers() -> None:
    system = Told(MESA | NODES, smi(ADA), ("Darwin", "arm64"))
    assert chosen(system).processor is METAL
    assert [each.processor for each in look(system).found if each.there] == [CPU, METAL]


@pytest.mark.parametrize("uname", [("Linux", "riscv64"), ("Linux", "armv7l"), ("FreeBSD", "amd64")])
def test_a_machine_without_builds_is_named_beside_what_there_is(uname: tuple[str, str]) -> None:
    with pytest.raises(BuildNotFound) as refused:
        chosen(Told(uname=uname))
    error = refused.value
    assert (uname[1] if uname[0] == "Linux" else uname[0]) in error.message
    assert "amd64/amd64" not in error.message
    assert "linux/amd64/cuda" in (error.hint or "")
    assert {each.processor for each in look(Told(uname=uname)).found} == set(Processor)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"/sys/class/drm/card1/device/vendor": "0x8086\n"}, {SYCL: "Intel GPU", OPENVINO: "Intel GPU"}),
        ({"/sys/class/accel/accel0": ""}, {OPENVINO: "NPU"}),
        ({"/sys/class/drm/card0/device/vendor": "0x1002\n"}, {}),
        ({"/sys/class/drm/card0-DP-1/device/vendor": "0x8086\n"}, {}),
    ],
)
def test_builds_for_intel_are_evident_and_taken_only_when_asked_for(
    files: dict[str, str], found: dict[Processor, str]
) -> None:
    system = Told(files)
    assert chosen(system).processor is CPU
    for processor in (SYCL, OPENVINO):
        seen = evidence(system, processor)
        assert (seen.there, found.get(processor, "no Intel")) == (
            processor in found,
            seen.detail[:9].rstrip(),
        )
        asked = chosen(system, wish=Wish(processor=processor))
        assert asked.processor is processor
        assert asked.reason == f"asked for; {seen.detail}"


@pytest.mark.parametrize(
    ("cpuinfo", "sets"),
    [
        (
            "processor\t: 0\nflags\t\t: fpu avx2 avx f16c xavx512f sse4_2 fma\n",
            ("sse4_2", "avx", "f16c", "fma", "avx2"),
        ),
        ("processor\t: 0\nFeatures\t: fp asimd sve i8mm\n", ("asimd", "sve", "i8mm")),
        ("flags\n", ()),
        (None, ()),
    ],
)
def test_instruction_sets_are_whole_words_of_cpuinfo(cpuinfo: str | None, sets: tuple[str, ...]) -> None:
    machine = look(Told({} if cpuinfo is None else {"/proc/cpuinfo": cpuinfo}))
    assert (machine.instruction_sets, machine.libc) == (sets, "glibc 2.39")


def test_this_machine_is_looked_at_for_real() -> None:
    machine = look()
    assert machine.os is not None
    assert machine.arch is not None
    assert os.uname().machine in machine.name
    assert [each.processor for each in machine.found if each.processor is CPU] == [CPU]
    assert {each.processor for each in machine.found} == set(Processor)
    assert all(each.detail for each in machine.found)
    assert machine.libc == System().libc()


# nvidia-smi as a real program


def program(folder: Path, script: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder at the head of PATH, for drivers' tools."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.mark.parametrize("script", ["exec sleep 60", "sleep 60 & echo $! > {child}; wait"])
def test_a_driver_s_tool_that_hangs_is_ended_and_told(
    tools: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr("kawai_tools.libs.platforms.PATIENCE", 0.3)
    pid, child = tools / "pid", tools / "child"
    program(tools, f"echo $$ > {pid}\n{script.format(child=child)}")
    began = time.monotonic()
    try:
        found = look().evidence(CUDA)
        assert time.monotonic() - began < 5
        assert not found.there
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)
    finally:
        with contextlib.suppress(OSError):
            os.kill(int(child.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("script", ["exit 9", "printf '\\377\\376, \\200\\n'", f"echo '{ADA}'; exit 1"])
def test_a_driver_s_tool_that_fails_is_no_device(tools: Path, script: str) -> None:
    program(tools, script)
    assert not look().evidence(CUDA).there


def test_a_driver_s_tool_is_believed(tools: Path) -> None:
    queried, banner = smi(ADA)
    program(tools, f"case \"$*\" in *query*) printf '{queried}';; *) printf '{banner}';; esac")
    found = look().evidence(CUDA)
    assert found.there
    assert [str(found.version), str(found.compute)] == ["13.4", "8.9"]


# Builds by the names of assets


def test_a_release_is_read_as_it_is() -> None:
    read = [(each.os, each.arch, each.processor, each.variant, len(each.assets)) for each in builds()]
    linux, windows = Os.LINUX, Os.WINDOWS
    x64, arm64 = Arch.AMD64, Arch.ARM64
    assert read == [
        (Os.DARWIN, arm64, METAL, None, 1),
        (Os.DARWIN, x64, CPU, None, 1),
        (linux, x64, CPU, None, 1),
        (linux, arm64, CPU, None, 1),
        (linux, Arch.S390X, CPU, None, 1),
        (linux, x64, VULKAN, None, 1),
        (linux, arm64, VULKAN, None, 1),
        (linux, x64, CUDA, "12.8", 2),
        (linux, x64, CUDA, "13.4", 2),
        (linux, arm64, CUDA, "13.4", 2),
        (linux, x64, ROCM, "7.2", 1),
        (linux, x64, OPENVINO, "2026.0", 1),
        (linux, x64, SYCL, "fp16", 1),
        (linux, x64, SYCL, "fp32", 1),
        (windows, x64, CPU, None, 1),
        (windows, arm64, CPU, None, 1),
        (windows, x64, VULKAN, None, 1),
        (windows, x64, CUDA, "12.4", 2),
        (windows, x64, CUDA, "13.4", 2),
        (windows, arm64, CUDA, "13.4", 2),
        (windows, x64, ROCM, "7.2", 1),
        (windows, x64, SYCL, None, 1),
        (windows, x64, OPENVINO, "2026.0", 1),
    ]


def test_a_companion_goes_with_its_own_system_version_and_architecture() -> None:
    for each in builds():
        if each.processor is CUDA:
            main, companion = (asset.name for asset in each.assets)
            assert main.partition("-bin-")[2] == companion.partition("-bin-")[2]


@pytest.mark.parametrize(
    ("name", "processor", "variant"),
    [
        ("llama-b9-bin-ubuntu-cuda-13.1-x64.tar.gz", CUDA, "13.1"),
        ("llama-b9-bin-ubuntu-cuda-13.3-x64.tar.gz", CUDA, "13.3"),
        ("llama-b9-bin-ubuntu-rocm-10.0-x64.tar.gz", ROCM, "10.0"),
        ("llama-b9-bin-win-hip-radeon-x64.zip", ROCM, "radeon"),
        ("llama-b9-bin-win-cuda-14-x64.zip", CUDA, "14"),
        ("llama-b123456-bin-linux-vulkan-x64.tar.gz", VULKAN, None),
    ],
)
def test_names_may_drift(name: str, processor: Processor, variant: str | None) -> None:
    assert [(each.processor, each.variant) for each in builds(name)] == [(processor, variant)]


@pytest.mark.parametrize(
    "name",
    [
        "llama-b9-xcframework.zip",
        "llama-b9-bin-win-opencl-adreno-arm64.zip",
        "llama-b9-bin-310p-openEuler-x86.tar.gz",
        "llama-b9-bin-ubuntu-x64.tar.gz.asc",
        "llama-b9-bin-ubuntu-x64.tar.xz",
        "llama-b9-bin-ubuntu-riscv64.tar.gz",
        "../llama-b9-bin-ubuntu-x64.tar.gz",
        "llama-b9-bin-ubuntu-../x-x64.tar.gz",
        "llama-b9-bin-ubuntu-x64.tar.gz\n",
        "cudart-llama-bin-win-cuda-13.4-x64.zip",
        "nightly-tag.txt",
        "",
    ],
)
def test_what_is_no_build_is_left_alone(name: str) -> None:
    assert builds(name) == []


# What somebody asks for


@pytest.mark.parametrize(
    ("wish", "names", "reason"),
    [
        (Wish(processor=CUDA), ["cuda-12.8", "cudart-llama-b11434"], "asked for; no NVIDIA device found"),
        (Wish(processor=VULKAN), ["vulkan"], "asked for; no Vulkan device found"),
        (Wish(os=Os.WINDOWS), ["win-cpu-x64"], "asked for"),
        (Wish(os=Os.WINDOWS, processor=CUDA), ["win-cuda-12.4", "cudart-llama-bin-win-cuda-12.4"], "asked"),
        (Wish(os=Os.DARWIN, arch=Arch.ARM64), ["macos-arm64"], "asked for"),
        (Wish(arch=Arch.S390X), ["ubuntu-s390x"], "asked for"),
    ],
)
def test_what_is_asked_for_is_taken_whatever_is_there(wish: Wish, names: list[str], reason: str) -> None:
    choice = chosen(Told(), wish=wish)
    assert choice.reason.startswith(reason)
    assert choice.build
    for name, asset in zip(names, choice.build.assets, strict=True):
        assert name in asset.name


def test_a_build_that_is_asked_for_still_suits_the_device_there() -> None:
    choice = chosen(Told(nvidia=smi(ADA, cuda="13.4")), wish=Wish(processor=CUDA))
    assert choice.build
    assert choice.build.variant == "13.4"


def test_what_no_build_is_for_is_refused_with_what_there_is() -> None:
    with pytest.raises(BuildNotFound) as refused:
        chosen(Told(), wish=Wish(arch=Arch.S390X, processor=CUDA))
    assert refused.value.message == "there is no build for linux/s390x/cuda"
    assert refused.value.hint == "there is linux/s390x/cpu"


# By flag, variable and file


@pytest.fixture
def offered(cli: Program, hub: LocalHub) -> Program:
    cli.environ["KAWAI_LIBS_API"] = hub.libs_api
    middles = [host_platform(), host_platform().replace("-", "-vulkan-"), "ubuntu-s390x", "win-cpu-x64"]
    hub.add_release("b9", {asset_name("b9", each): each.encode() for each in middles})
    return cli


def planned(cli: Program, *args: str, **environ: str) -> str:
    """The middle of the name of the asset that would be fetched."""
    ended = cli("libs", "pull", "--dry-run", "--json", *args, **environ)
    assert ended.code == 0, ended.err
    (file,) = json.loads(ended.out)["files"]
    return str(file["path"]).removeprefix("llama-b9-bin-").partition(".")[0]


def test_a_flag_beats_a_variable_and_a_variable_the_file(offered: Program) -> None:
    vulkan = host_platform().replace("-", "-vulkan-")
    home = Path(offered.environ["KAWAI_HOME"])
    home.mkdir()
    (home / "config.toml").write_text('processor = "vulkan"\n')
    assert planned(offered) == vulkan
    assert planned(offered, KAWAI_PROCESSOR="cpu") == host_platform()
    assert planned(offered, "--processor", "vulkan", KAWAI_PROCESSOR="cpu") == vulkan
    assert planned(offered, "--no-activate", KAWAI_PROCESSOR="cpu", KAWAI_OS="windows") == "win-cpu-x64"
    assert planned(offered, "--no-activate", "--processor", "CPU", KAWAI_ARCH="s390x") == "ubuntu-s390x"
    shown = json.loads(offered("libs", "show", "--json", KAWAI_ARCH="s390x", KAWAI_PROCESSOR="cpu").out)
    assert (shown["arch"], shown["processor"], shown["reason"]) == ("s390x", "cpu", "asked for")


@pytest.mark.parametrize(
    ("args", "environ"),
    [
        (["--processor", "quantum"], {}),
        (["--arch", "i386"], {}),
        (["--os", "beos"], {}),
        (["--channel", "weekly"], {}),
        ([], {"KAWAI_PROCESSOR": "quantum"}),
        ([], {"KAWAI_ARCH": "../x"}),
        ([], {"KAWAI_OS": "beos"}),
    ],
)
def test_a_platform_that_does_not_exist_is_refused_with_those_that_do(
    offered: Program, hub: LocalHub, args: list[str], environ: dict[str, str]
) -> None:
    ended = offered("libs", "pull", "--json", *args, **environ)
    assert ended.code == 2, ended.err
    assert [*args, *environ.values()][-1] in ended.error["message"]
    known = {"weekly": "nightly", "quantum": "openvino", "beos": "windows"}
    assert known.get([*args, *environ.values()][-1], "s390x") in ended.error["hint"]
    assert hub.requests == []


def test_another_machine_s_build_is_fetched_only_without_activation(offered: Program) -> None:
    ended = offered("libs", "pull", "--json", "--os", "windows")
    assert ended.code == 2
    assert "--no-activate" in ended.error["hint"]
    with serving(offered) as daemon:
        assert daemon.ask("POST", "/v1/libs/pull", {"os": "windows"}).status == 400
        body = {"os": "windows", "activate": False, "dry_run": True}
        reply = daemon.ask("POST", "/v1/libs/pull", body)
        assert [file["path"] for file in reply.json["files"]] == ["llama-b9-bin-win-cpu-x64.zip"]
        missing = daemon.ask(
            "POST", "/v1/libs/pull", {"arch": "s390x", "processor": "cuda", "activate": False}
        )
        assert (missing.status, missing.error["code"]) == (404, "build_not_found")
        assert "linux/s390x/cpu" in missing.error["hint"]


def test_a_wished_machine_has_its_own_processor_where_nothing_can_be_asked(offered: Program) -> None:
    shown = offered("libs", "show", "--json", "--offline", KAWAI_OS="darwin", KAWAI_ARCH="arm64")
    assert json.loads(shown.out)["processor"] == "metal"
