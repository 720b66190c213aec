"""Whether a model fits a machine, and if not as it is asked for, then how.

Where there is a GPU everything should be on it, else in RAM. What does not fit so is tried with less context,
then with some of its layers on the GPU and the others in RAM.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Literal

import msgspec

from kawai_tools.fit.loads import PAD, Load
from kawai_tools.fit.needs import MOST, PROCESS, Model, Need

Verdict = Literal["fits", "fits_context", "fits_layers", "no"]

GOOD_CONTEXT = 4096
"""Tokens that are enough to give up no layers for more of them; half of what is asked is, too."""

MOST_CONTEXT = 1 << 31
"""Tokens that nobody asks for more than."""

_A_TOKEN = 130
"""Where nothing but the size of a file is known: a token takes so many times its cube root, in bytes.

That is what Qwen3 0.6B takes (112 KiB, in 640 MB), and 1.7 and 1.4 times what Llama 3 8B and 70B do.
"""


class Gpu(msgspec.Struct, frozen=True):
    """A GPU, and the bytes that a model may take there."""

    name: str
    memory: int


class Machine(msgspec.Struct, frozen=True):
    """What models may take: bytes of RAM, and of GPUs. ``unified``: GPUs use that same RAM."""

    memory: int
    gpus: tuple[Gpu, ...] = ()
    unified: bool = False

    @property
    def beside(self) -> int:
        """Bytes of GPUs beside main memory."""
        return 0 if self.unified else sum(gpu.memory for gpu in self.gpus)


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict, with its numbers: bytes, and tokens of context of one request.

    ``context`` is the one with which it fits, or that was asked for if it does not; None if only the size
    is known. ``layers`` of ``layers_total`` (the file's ``block_count``) are on GPUs, the output with them;
    None where there is no GPU. ``needed`` is the sum with this context, ``available`` what there is for it.
    ``advice`` says what to do about a verdict that is not ``fits``.
    """

    verdict: Verdict
    guess: bool
    context: int | None
    layers: int | None
    layers_total: int | None
    weights: int
    kv: int
    compute: int
    projection: int
    needed: int
    available: int
    parallel: int
    advice: str | None = None


def judge(model: Model, load: Load, machine: Machine) -> Fit:
    """Say whether and how a model fits. ``load.context`` is bounded by what the model was trained for."""
    trained = model.header.context_length
    asked = min(load.context, trained or MOST_CONTEXT, MOST_CONTEXT)
    load = msgspec.structs.replace(load, context=max(1, asked))
    if machine.gpus and not model.facts.blocks:  # nobody knows what could be where
        return guess(model.size, machine, load)
    return _Judge(model, load, machine).verdict()


def needed(model: Model, load: Load, machine: Machine) -> int:
    """Bytes that a model takes as it is asked for, on GPUs and in RAM together, whether or not it fits."""
    return _Judge(model, load, machine).needed()


def guess(size: int, machine: Machine, load: Load) -> Fit:
    """Say so where nothing is known but the size on disk of all files."""
    gpu = _gpu_memory(machine) if load.gpu_layers != 0 else 0
    kv = min(MOST, _A_TOKEN * round(max(0, size) ** (1 / 3)) * load.cells * load.parallel)
    needed = min(MOST, size + kv + PROCESS)
    fast = gpu or machine.memory
    whole = machine.memory if machine.unified else gpu + machine.memory
    verdict: Verdict = "fits" if needed <= fast else "fits_layers" if needed <= whole else "no"
    return Fit(
        verdict=verdict,
        guess=True,
        context=None,
        layers=None,
        layers_total=None,
        weights=min(MOST, size),
        kv=min(MOST, kv),
        compute=PROCESS,
        projection=0,
        needed=needed,
        available=fast if verdict == "fits" else whole,
        parallel=load.parallel,
    )


def _gpu_memory(machine: Machine) -> int:
    """Bytes of all GPUs; of unified memory no more than there is."""
    memory = sum(gpu.memory for gpu in machine.gpus)
    return min(memory, machine.memory) if machine.unified else memory


class _Judge:
    """One model on one machine."""

    def __init__(self, model: Model, load: Load, machine: Machine) -> None:
        """``load`` is as it is asked for."""
        self._model, self._load, self._machine = model, load, machine
        self._blocks = model.facts.blocks
        self._gpu = _gpu_memory(machine) if load.gpu_layers != 0 else 0
        wished = self._blocks if load.gpu_layers is None else min(load.gpu_layers, self._blocks)
        self._wished = wished if self._gpu else 0
        """Layers that are to be on GPUs, if they fit: all of them, or as many as the user says."""
        self._needs: dict[int, Need] = {}

    def verdict(self) -> Fit:
        """Try one way after the other."""
        asked = self._load.context
        if self._fits(asked, self._wished):
            return self._fit(
                "fits" if self._wished in {0, self._blocks} else "fits_layers", asked, self._wished
            )
        as_wished = self._largest(lambda context: self._fits(context, self._wished))
        if as_wished >= min(GOOD_CONTEXT, asked / 2):
            return self._fit("fits_context", as_wished, self._wished)
        layers = self._layers(asked)
        if self._fits(asked, layers):
            return self._fit("fits_layers" if layers else "fits", asked, layers)
        if as_wished:
            return self._fit("fits_context", as_wished, self._wished)
        somehow = self._largest(lambda context: self._fits(context, self._layers(context)))
        if somehow:
            return self._fit("fits_context", somehow, self._layers(somehow))
        return self._fit("no", asked, self._layers(asked))

    def needed(self) -> int:
        """Bytes with the context that is asked for, and as many layers on GPUs as fit."""
        return sum(self._parts(self._load.context, self._layers(self._load.context)))

    def _need(self, context: int) -> Need:
        if context not in self._needs:
            self._needs[context] = self._model.need(msgspec.structs.replace(self._load, context=context))
        return self._needs[context]

    def _fits(self, context: int, layers: int) -> bool:
        """Whether it does with so many layers on GPUs: each part where it is to be."""
        on_gpus, in_ram = self._parts(context, layers)
        if self._machine.unified:
            return on_gpus <= self._gpu and on_gpus + in_ram <= self._machine.memory
        return on_gpus <= self._gpu and in_ram <= self._machine.memory

    def _layers(self, context: int) -> int:
        """As many layers as fit on GPUs; a user's word that they are so many stands."""
        if self._load.gpu_layers is not None:
            return self._wished
        counts = range(1, self._wished + 1)
        return bisect_right(counts, self._gpu, key=lambda count: self._parts(context, count)[0])

    def _parts(self, context: int, layers: int) -> tuple[int, int]:
        """Bytes on GPUs and in RAM with so many layers, the last ones, on GPUs.

        Each GPU has buffers of its own. What is wholly on GPUs counts as wholly there, though the process
        and the embedding stay in RAM.
        """
        need = self._need(context)
        if not layers:
            return 0, need.total
        buffers = need.scratch * len(self._machine.gpus)
        if layers >= self._blocks:
            return need.total - need.repacked + buffers, 0
        first = self._blocks - layers
        load = msgspec.structs.replace(self._load, context=context)
        moved = self._model.blocks_from(first) + need.projection
        moved += sum(self._model.caches(load)[first : self._blocks])
        left = need.total - self._spared(need, layers) - moved
        return moved + buffers, max(0, left)

    def _spared(self, need: Need, layers: int) -> int:
        """Bytes of copies that layers on GPUs do without."""
        return need.repacked * layers // self._blocks if layers else 0

    def _largest(self, fits: Callable[[int], bool]) -> int:
        """The largest context below the one asked for that fits, in steps; 0: there is none."""
        steps = range(PAD, self._load.context, PAD)
        return PAD * bisect_left(steps, 1, key=lambda context: not fits(context))

    def _fit(self, verdict: Verdict, context: int, layers: int) -> Fit:
        need = self._need(context)
        buffers = need.scratch * len(self._machine.gpus) if layers else 0
        weights, compute = need.weights - self._spared(need, layers), min(MOST, need.compute + buffers)
        whole = verdict == "fits" or (verdict == "fits_context" and layers in {0, self._blocks})
        available = self._gpu if whole and layers else self._machine.memory
        if not self._machine.unified and not whole:
            available += self._gpu
        if verdict == "no" and not self._machine.unified:
            on_gpus, _ = self._parts(context, layers)
            available = self._gpu if on_gpus > self._gpu else on_gpus + self._machine.memory
        return Fit(
            verdict=verdict,
            guess=need.guess,
            context=context,
            layers=layers if self._machine.gpus else None,
            layers_total=self._blocks or None,
            weights=weights,
            kv=need.kv,
            compute=compute,
            projection=need.projection,
            needed=min(MOST, weights + need.kv + compute + need.projection),
            available=min(MOST, available),
            parallel=self._load.parallel,
        )
