"""How much memory graphics processors have, as their drivers tell it.

NVIDIA's through ``nvidia-smi``, AMD's in ``/sys/class/drm/card*/device/mem_info_vram_total`` (the kernel's
``Documentation/gpu/amdgpu``). An Apple processor's GPU works in main memory, of which Metal lets it have
three quarters (``recommendedMaxWorkingSetSize``). Of Intel's nothing is told without a library of theirs.
"""

import re

from kawai_tools.fit import Gpu
from kawai_tools.libs.platforms import Processor, System

_MEBI = 1 << 20
_KEPT, _KEPT_PART = 512 * _MEBI, 20
"""Bytes that a screen and the driver keep: so many, or that part of all."""

_AMD = "0x1002"
_METAL = 3, 4


def gpus(system: System, processor: Processor, memory: int) -> tuple[Gpu, ...]:
    """The GPUs that a build for ``processor`` uses, with what models may take of each.

    ``memory`` are the bytes of main memory, which an Apple GPU shares.
    """
    if processor is Processor.METAL:
        part, of = _METAL
        return (Gpu("Apple GPU", memory * part // of),)
    found: list[Gpu] = []
    if processor in {Processor.CUDA, Processor.VULKAN}:
        found += _nvidia(system)
    if processor in {Processor.ROCM, Processor.VULKAN}:
        found += _amd(system)
    return tuple(Gpu(each.name, max(0, each.memory - _kept(each.memory))) for each in found)


def _kept(memory: int) -> int:
    """Bytes of so many that are nobody's to take."""
    return max(_KEPT, memory // _KEPT_PART)


def _nvidia(system: System) -> list[Gpu]:
    listed = system.run("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
    lines = [line.rpartition(",") for line in (listed or "").splitlines()]
    return [Gpu(name.strip(), int(size) * _MEBI) for name, _, size in lines if size.strip().isdecimal()]


def _amd(system: System) -> list[Gpu]:
    found = []
    for card in system.names("/sys/class/drm"):
        device = f"/sys/class/drm/{card}/device"
        if not re.fullmatch(r"card\d+", card) or (system.read(f"{device}/vendor") or "").strip() != _AMD:
            continue
        size = (system.read(f"{device}/mem_info_vram_total") or "").strip()
        if size.isdecimal():
            found.append(Gpu(f"AMD GPU ({card})", int(size)))
    return found
