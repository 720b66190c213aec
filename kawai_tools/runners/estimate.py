"""What a model that is to be loaded needs of main memory, and what of it would fit where that is too much."""

from dataclasses import dataclass

import msgspec

from kawai_tools.fit import Fit, Load, Machine, Model, in_ram, judge

LEAST = 256
"""Tokens below which a context is of no use."""


@dataclass(frozen=True)
class Estimate:
    """A model of this id, how it is to be loaded, and the machine."""

    id: str
    model: Model
    load: Load
    machine: Machine

    @property
    def need(self) -> int:
        """Bytes of main memory, once it is loaded."""
        return self._in_ram(self.load)

    def advice(self, room: int) -> str:
        """What of it would fit into so many bytes of main memory."""
        load, place = self.load, f'put it into config.toml, under [models."{self.id}"]'
        machine = msgspec.structs.replace(self.machine, memory=max(0, room))
        least = msgspec.structs.replace(load, context=min(LEAST, load.context), parallel=1)
        if self._judge(least, machine).verdict == "no":
            return (
                f"even with context_length = {least.context} and parallel = 1 it needs "
                f"{self._in_ram(least):,}; a smaller quantization may fit"
            )
        if load.gpu_layers:
            found = self._judge(msgspec.structs.replace(load, gpu_layers=None), machine)
            if found.verdict in {"fits", "fits_layers"} and found.layers:
                return f"gpu_layers = {found.layers} would fit; {place}"
        for parallel in range(load.parallel - 1, 0, -1):
            found = self._judge(msgspec.structs.replace(load, parallel=parallel), machine)
            if found.verdict in {"fits", "fits_layers"}:
                return f"parallel = {parallel} would fit; {place}"
        found = self._judge(msgspec.structs.replace(load, parallel=1), machine)
        return f"context_length = {found.context} with parallel = 1 would fit; {place}"

    def _in_ram(self, load: Load) -> int:
        return in_ram(self.model, load, self.machine)

    def _judge(self, load: Load, machine: Machine) -> Fit:
        return judge(self.model, load, machine)
