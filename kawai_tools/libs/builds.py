"""Which builds a release of llama.cpp offers, read off its asset names, and which one suits a machine.

Names are matched by pattern, since their version parts drift (``.github/workflows/release.yml`` of
llama.cpp): ``llama-TAG-bin-OS[-BACKEND[-VERSION]]-ARCH.EXT``, with ``cudart-llama-...`` companions.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from kawai_tools.errors import BuildNotFound
from kawai_tools.libs.platforms import Arch, Evidence, Machine, Os, Processor, Version, version_in
from kawai_tools.libs.release import Asset

_NAME = re.compile(
    r"llama-(?P<tag>b\d+)-bin-(?P<os>macos|ubuntu|linux|win)(?P<backend>(?:-[a-z0-9.]+)*)"
    r"-(?P<arch>x64|arm64|s390x)\.(?:tar\.gz|zip)"
)
_COMPANION = re.compile(
    r"cudart-llama-(?:b\d+-)?bin-(?P<os>ubuntu|linux|win)-cuda-(?P<version>[\d.]+)-(?P<arch>x64|arm64)\.(?:tar\.gz|zip)"
)
_OS = {"macos": Os.DARWIN, "ubuntu": Os.LINUX, "linux": Os.LINUX, "win": Os.WINDOWS}
_ARCH = {"x64": Arch.AMD64, "arm64": Arch.ARM64, "s390x": Arch.S390X}
_BACKENDS = {
    "cpu": Processor.CPU,
    "cuda": Processor.CUDA,
    "rocm": Processor.ROCM,
    "hip": Processor.ROCM,
    "vulkan": Processor.VULKAN,
    "sycl": Processor.SYCL,
    "openvino": Processor.OPENVINO,
}
_PREFERRED = (Processor.CUDA, Processor.ROCM, Processor.METAL, Processor.VULKAN, Processor.CPU)
"""What is taken unasked, best first; SYCL and OpenVINO builds want runtimes of their own."""

_CAPABILITIES = {11: Version(3, 5), 12: Version(5, 0), 13: Version(7, 5)}
"""The least compute capability that a CUDA toolkit of this major version compiles for (its release notes)."""


@dataclass(frozen=True)
class Build:
    """One build of a version; ``variant`` is the interface's version or flavour (``12.8``, ``fp16``)."""

    arch: Arch
    os: Os
    processor: Processor
    variant: str | None
    assets: tuple[Asset, ...]

    @property
    def version(self) -> Version | None:
        """The interface's version."""
        return version_in(self.variant or "")


@dataclass(frozen=True)
class Wish:
    """For which machine a build is wanted; ``None`` takes what this one is."""

    arch: Arch | None = None
    os: Os | None = None
    processor: Processor | None = None


@dataclass(frozen=True)
class Choice:
    """For which machine, and why for that processor."""

    arch: Arch
    os: Os
    processor: Processor
    reason: str
    build: Build | None = None

    def __str__(self) -> str:
        """As people read it: ``linux/amd64/cpu``."""
        return f"{self.os}/{self.arch}/{self.processor}"


def builds_in(assets: Iterable[Asset]) -> list[Build]:
    """Every build that kawai knows to place, each with its companions."""
    assets = list(assets)
    companions = [(match, asset) for asset in assets if (match := _COMPANION.fullmatch(asset.name))]
    found = []
    for asset in assets:
        match = _NAME.fullmatch(asset.name)
        placed = _place(match) if match else None
        if match is None or placed is None:
            continue
        arch, system, processor, variant = placed
        beside = [
            each
            for named, each in companions
            if processor is Processor.CUDA
            and (named["os"], named["version"], named["arch"]) == (match["os"], variant, match["arch"])
        ]
        found.append(Build(arch, system, processor, variant, (asset, *beside)))
    return found


def _place(match: "re.Match[str]") -> tuple[Arch, Os, Processor, str | None] | None:
    arch, system = _ARCH[match["arch"]], _OS[match["os"]]
    backend, _, variant = match["backend"].removeprefix("-").partition("-")
    if not backend:
        metal = system is Os.DARWIN and arch is Arch.ARM64
        return arch, system, Processor.METAL if metal else Processor.CPU, None
    processor = _BACKENDS.get(backend)
    if processor is None:
        return None
    return arch, system, processor, variant or None


def choose(builds: Iterable[Build], machine: Machine, wish: Wish) -> Choice:
    """The build that suits, and why. Raises ``BuildNotFound`` naming what is on offer."""
    builds = list(builds)
    arch, system = wish.arch or machine.arch, wish.os or machine.os
    fitting = [build for build in builds if (build.arch, build.os) == (arch, system)]
    if arch is None or system is None or not fitting:
        raise BuildNotFound(
            f"there is no build for {f'{system}/{arch}' if system and arch else machine.name}",
            f"there are builds for {_offer(builds)}",
        )
    here = (arch, system) == (machine.arch, machine.os)
    if wish.processor is not None:
        return _wished(fitting, machine if here else None, arch, system, wish.processor)
    if not here:
        return _wished(fitting, None, arch, system, _plain(arch, system))
    passed = _half_there(machine)
    for processor in _PREFERRED:
        evidence = machine.evidence(processor)
        if not evidence.there:
            continue
        build, why = suited([each for each in fitting if each.processor is processor], evidence)
        if build is not None:
            return Choice(
                arch, system, processor, "; ".join([*passed, _why(machine, evidence, passed)]), build
            )
        passed.append(why)
    raise BuildNotFound(
        f"no build for {system}/{arch} suits this machine: {'; '.join(passed)}", _offer(builds)
    )


def _why(machine: Machine, evidence: Evidence, passed: list[str]) -> str:
    if evidence.processor is not Processor.CPU:
        return evidence.detail
    if machine.os is Os.DARWIN:
        return machine.evidence(Processor.METAL).detail
    return "so the CPU" if passed else "no NVIDIA, ROCm or Vulkan device found"


def _wished(
    fitting: list[Build], machine: Machine | None, arch: Arch, system: Os, processor: Processor
) -> Choice:
    """The build for a processor that somebody asked for, whether or not it is seen to be there."""
    offered = [each for each in fitting if each.processor is processor]
    if not offered:
        raise BuildNotFound(
            f"there is no build for {system}/{arch}/{processor}", f"there is {_offer(fitting)}"
        )
    evidence = machine.evidence(processor) if machine else None
    build, why = suited(offered, evidence) if evidence and evidence.there else (None, "")
    if build is None:
        build = min(offered, key=lambda each: (each.version or Version(0), each.variant or ""))
    found = f"; {why or evidence.detail}" if evidence else ""
    return Choice(arch, system, processor, f"asked for{found}", build)


def suited(offered: list[Build], evidence: Evidence) -> tuple[Build | None, str]:
    """The newest build that a device can run, or why there is none."""
    processor = evidence.processor
    if not offered:
        return None, f"{evidence.detail}, but there is no {processor} build for it"
    newest_first = sorted(
        offered, key=lambda each: (each.version or Version(0), each.variant or ""), reverse=True
    )
    if processor is Processor.CUDA:
        fits = [each for each in newest_first if _cuda_fits(each, evidence)]
    elif processor is Processor.ROCM:
        fits = [each for each in newest_first if _rocm_fits(each, evidence)]
    else:
        fits = newest_first
    if fits:
        return fits[0], evidence.detail
    variants = ", ".join(each.variant or "?" for each in newest_first)
    return None, f"{evidence.detail}, which none of the {processor} builds suits ({variants})"


def _cuda_fits(build: Build, evidence: Evidence) -> bool:
    """A driver runs builds up to its own version; much of llama.cpp's CUDA code is compiled by it."""
    wanted, least = build.version, _CAPABILITIES.get((build.version or Version(0)).major, Version(7, 5))
    whole = len(build.assets) > 1  # else its libraries are still coming
    if not whole or wanted is None or evidence.version is None or evidence.compute is None:
        return False
    return wanted <= evidence.version and evidence.compute >= least


def _rocm_fits(build: Build, evidence: Evidence) -> bool:
    """The build uses the libraries of an installed ROCm of the same major version."""
    wanted, installed = build.version, evidence.version
    if installed is None:
        return False
    return wanted is None or (wanted.major == installed.major and wanted <= installed)


def _offer(builds: Iterable[Build]) -> str:
    return ", ".join(sorted({f"{each.os}/{each.arch}/{each.processor}" for each in builds})) or "nothing"


def _half_there(machine: Machine) -> list[str]:
    """What there is of better processors that cannot be used as it is."""
    return [each.detail for each in machine.found if each.broken]


def rank(choice: Choice) -> int:
    """How good a choice is; the least is the best."""
    return _PREFERRED.index(choice.processor) if choice.processor in _PREFERRED else 0


def guess(machine: Machine, wish: Wish) -> tuple[Processor, str]:
    """The processor that a build would be chosen for, and why, where no builds are known."""
    if wish.processor is not None:
        return wish.processor, "asked for"
    arch, system = wish.arch or machine.arch, wish.os or machine.os
    if (arch, system) != (machine.arch, machine.os):
        return _plain(arch, system), "asked for"
    found = next(machine.evidence(each) for each in _PREFERRED if machine.evidence(each).there)
    passed = _half_there(machine)
    return found.processor, "; ".join([*passed, _why(machine, found, passed)])


def _plain(arch: Arch | None, system: Os | None) -> Processor:
    """What every machine of this kind has."""
    return Processor.METAL if (arch, system) == (Arch.ARM64, Os.DARWIN) else Processor.CPU
