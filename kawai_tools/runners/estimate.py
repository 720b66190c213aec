"""What a model that is to be loaded needs, and what of it would fit where that is too much."""

from bisect import bisect_left
from dataclasses import dataclass

import msgspec

from kawai_tools.fit import Fit, Load, Machine, Model, judge, needed

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
    def fit(self) -> Fit:
        """The verdict, with what to do about it."""
        found = judge(self.model, self.load, self.machine)
        if found.verdict == "fits" or found.guess:
            return found
        if found.verdict == "fits_layers":
            advice = "the other layers run on the CPU, which is slower; a smaller quantization may fit whole"
        else:
            advice = self._advice(self.machine)
        return msgspec.structs.replace(found, advice=advice)

    @property
    def need(self) -> int:
        """Bytes of memory, of GPUs too, once it is loaded."""
        return needed(self.model, self.load, self.machine)

    def advice(self, room: int) -> str:
        """What of it would fit into so many bytes, those of GPUs among them."""
        memory = max(0, room - self.machine.beside)
        return self._advice(msgspec.structs.replace(self.machine, memory=memory))

    def _advice(self, machine: Machine) -> str:
        load, place = self.load, f'put it into config.toml, under [models."{self.id}"]'
        least = msgspec.structs.replace(load, context=min(LEAST, load.context), parallel=1)
        if self._judge(least, machine).verdict == "no":
            return (
                f"even with context_length = {least.context} and parallel = 1 it needs "
                f"{needed(self.model, least, self.machine):,}; a smaller quantization may fit"
            )
        if load.gpu_layers:
            found = self._judge(msgspec.structs.replace(load, gpu_layers=None), machine)
            if found.verdict in {"fits", "fits_layers"} and found.layers:
                return f"gpu_layers = {found.layers} would fit; {place}"
        if parallel := self._parallel(machine):
            return f"parallel = {parallel} would fit; {place}"
        found = self._judge(msgspec.structs.replace(load, parallel=1), machine)
        return f"context_length = {found.context} with parallel = 1 would fit; {place}"

    def _parallel(self, machine: Machine) -> int:
        """As many requests at a time as would fit, fewer than are to be; 0: not even one."""

        def too_many(parallel: int) -> bool:
            found = self._judge(msgspec.structs.replace(self.load, parallel=parallel), machine)
            return found.verdict not in {"fits", "fits_layers"}

        return bisect_left(range(1, self.load.parallel), 1, key=too_many)

    def _judge(self, load: Load, machine: Machine) -> Fit:
        return judge(self.model, load, machine)
