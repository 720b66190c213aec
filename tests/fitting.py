"""Loads models with a true llama-server as kawai does, and compares what it then holds with the estimate."""

import asyncio
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple, cast

from kawai_tools.errors import KawaiError
from kawai_tools.fit import Load, Need
from kawai_tools.fit import Model as FitModel
from kawai_tools.fit.families import ENCODERS, KNOWN
from kawai_tools.gguf import read_header
from kawai_tools.journal import Journals
from kawai_tools.models.traits import capabilities
from kawai_tools.runners.engines import Engine, LlamaServer, Wanted, engines
from kawai_tools.runners.process import Place, Runner, Spawner, resident
from tests.written_models import Model, written

if TYPE_CHECKING:
    from kawai_tools.libs.bundles import Bundles

LEAST, MOST = 0.95, 1.10
"""What an estimate may be of what is measured (issue: within 10 %, never more than 5 % below)."""

AT_A_TIME = 3

LONG, SHORT = (512, 2048, 8192), (512, 1024, 2048)
"""Contexts, of those that take whole texts in one go the short ones: their buffers grow by the square."""

ENCODING = ENCODERS | {"llama-embed", "t5encoder"}

MODELS = [
    *(Model(name) for name in sorted(KNOWN)),
    *(Model("llama", kind) for kind in ("Q4_0", "Q4_K", "Q6_K", "Q8_0", "IQ4_NL")),
    *(Model("gpt-oss", "MXFP4"), Model("qwen3moe", "Q4_K"), Model("gemma3", "Q4_0", tied=True)),
    *(Model("bert", "Q4_K"), Model("deepseek2", "Q4_K"), Model("mamba", "Q4_K")),
]
"""Every architecture whose needs are known, and some of them in types that are copied for the processor."""


class Loaded(NamedTuple):
    """A model that was loaded: the estimate, and the bytes that its process held."""

    name: str
    context: int
    need: Need
    held: int

    @property
    def ratio(self) -> float:
        """The estimate as part of what is held."""
        return self.need.total / self.held

    @property
    def within(self) -> bool:
        """Whether it is close enough."""
        return LEAST <= self.ratio <= MOST

    def __str__(self) -> str:
        """One line."""
        mark = "" if self.within else "  <- OUT OF BOUNDS"
        sizes = f"{self.need.total / 1e6:8.1f} of {self.held / 1e6:8.1f} MB"
        return f"{self.name:22} {self.context:6} tokens: {sizes}  {self.ratio:.3f}{mark}"


class Job(NamedTuple):
    """What is loaded, and how."""

    name: str
    weights: Path
    context: int
    parallel: int = 1
    projection: Path | None = None
    embedded: bool = False


def unpacked(archive: Path, folder: Path) -> Path:
    """The directory of a build."""
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="tar")
    return next(folder.glob("llama-*"))


def engine(job: Job, build: Path | None) -> Engine:
    """The embedded engine, or that of a build which is merely unpacked."""
    if job.embedded:
        return next(each for each in engines(cast("Bundles", None)) if each.name == "xllamacpp")
    assert build is not None
    record = SimpleNamespace(platform=None, version=None)
    layout = SimpleNamespace(bundle=lambda *_: build)
    return LlamaServer(cast("Bundles", SimpleNamespace(current=lambda: record, layout=layout)))


def estimate(job: Job) -> tuple[Need, Wanted]:
    """What a job needs, and what is started for it; the same figures in both."""
    header = read_header(job.weights)
    projection = read_header(job.projection) if job.projection else None
    endpoint = capabilities(header, projection).endpoint
    load = Load(
        context=job.context,
        parallel=job.parallel,
        embeds=endpoint in {"embeddings", "rerank"},
        beside=engine(job, Path()).beside,
    )
    size = job.projection.stat().st_size if job.projection else 0
    wanted = Wanted(
        id=job.name,
        weights=str(job.weights),
        projection=str(job.projection) if job.projection else None,
        endpoint=endpoint,
        context_length=job.context,
        parallel=job.parallel,
        gpu_layers=None,
        threads=1,  # two that wait for each other crawl where others work as well
        sampling={},
    )
    return FitModel([header], job.weights.stat().st_size, projection, size).need(load), wanted


async def load(job: Job, build: Path | None, folder: Path) -> Loaded:
    """Load one, look, and end it."""
    expected, wanted = estimate(job)
    runner = Runner(wanted, engine(job, build), Place(folder, Spawner(), Journals()), lambda: None)
    await runner.start(60)
    try:
        held = resident(runner.pid or 0)
        assert held, "the system does not say"
        return Loaded(job.name, job.context, expected, held)
    finally:
        await runner.stop(at_once=True)


def loaded(lots: Iterable[Sequence[Job]], build: Path | None, folder: Path) -> list[Loaded]:
    """Load models, some at a time and those of a lot one after the other; what is in ``folder`` goes then."""
    left, done, failed = iter(lots), list[Loaded](), list[str]()

    async def work() -> None:
        for lot in left:
            try:
                done.extend([await load(job, build, folder) for job in lot])
            except KawaiError as error:
                failed.append(f"{lot[0].name}: {error.message}")
            for path in {job.weights for job in lot if job.weights.parent == folder}:
                path.unlink()  # its pages with it

    async def works() -> None:
        await asyncio.gather(*(work() for _ in range(AT_A_TIME)))

    asyncio.run(works())
    assert not failed, "\n".join(failed)
    return done


def lots(models: Iterable[Model], build: Path, folder: Path) -> Iterator[list[Job]]:
    """A lot for each model that the build knows: it is written, and loaded at three contexts."""
    for model, path in written(models, build, folder):
        contexts = SHORT if model.architecture in ENCODING else LONG
        yield [Job(str(model), path, context) for context in contexts]
