"""How much memory models may take on this machine, by what would run them."""

from collections.abc import Callable

from kawai_tools.errors import NoEngine
from kawai_tools.fit import Gpu
from kawai_tools.fit import Machine as Room
from kawai_tools.libs import builds
from kawai_tools.libs.bundles import Bundles
from kawai_tools.libs.devices import gpus
from kawai_tools.libs.platforms import Arch, Machine, Os, Processor, System
from kawai_tools.runners.engines import Engine, LlamaServer, choose, engines
from kawai_tools.runners.memory import reserve, total


class Rooms:
    """Tells the room of a machine: what it has, not what happens to be free now. Safe to share."""

    def __init__(
        self,
        bundles: Bundles,
        machine: Callable[[], Machine],
        system: System,
        *,
        engine: str,
        budget: int | None,
    ) -> None:
        """``engine`` and ``budget`` are what the settings say of how models run, and of their memory."""
        self._bundles = bundles
        self._machine = machine
        self._wish = engine
        self._budget = budget
        self._system = system
        self._looked_for: Processor | None = None
        self._gpus: tuple[Gpu, ...] = ()
        self.beside_memory = 0
        """Bytes of GPUs beside main memory, as far as was looked yet."""

    def room(self) -> Room:
        """Bytes of memory, and the GPUs that the build that would run uses."""
        processor, memory = self.processor(), self._memory()
        if processor is not self._looked_for or not self._gpus:  # a driver may come later
            self._looked_for, self._gpus = processor, gpus(self._system, processor, memory)
        most = max(0, memory - reserve(memory)) if self._budget is None else self._budget
        found = Room(most, self._gpus, unified=processor is Processor.METAL)
        self.beside_memory = found.beside
        return found

    def arch(self) -> str:
        """The architecture of this machine, as builds are named by it and ``Load`` knows it."""
        return {Arch.AMD64: "x64", Arch.ARM64: "arm64"}.get(self._machine().arch or Arch.S390X, "")

    def _memory(self) -> int:
        known = self._machine().memory
        return total() if known is None else known

    def beside(self) -> int:
        """Bytes that the program of the engine takes beside llama.cpp."""
        engine = self.engine()
        return engine.beside if engine else 0

    def engine(self) -> Engine | None:
        """What would run a model; ``None`` where nothing is installed that could, and none is wished for."""
        known = engines(self._bundles)
        try:
            return choose(known, self._wish).engine
        except NoEngine:
            return next((each for each in known if each.name == self._wish), None)

    def processor(self) -> Processor:
        """What computes: as the active build or the embedded engine does, else as the build to get would."""
        machine, engine = self._machine(), self.engine()
        if engine is None or isinstance(engine, LlamaServer):
            record = self._bundles.current()
            return record.processor if record else builds.guess(machine, builds.Wish())[0]
        is_apple = (machine.os, machine.arch) == (Os.DARWIN, Arch.ARM64)
        return Processor.METAL if is_apple else Processor.CPU  # as the wheels are built
