"""How to start a llama.cpp server for a model: by the active build, or embedded in a Python child.

An engine is a small object that says whether it is usable here and why not, and what command starts a server
for a model. The command comes from settings by an allow-list, the environment is built from nothing: the
server reads some 150 ``LLAMA_ARG_*`` variables. Its key goes through ``LLAMA_API_KEY``, never through argv.
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from kawai_tools.errors import InvalidRequest, NoEngine
from kawai_tools.libs import children
from kawai_tools.libs.bundle import BundleRecord
from kawai_tools.libs.bundles import Bundles

_IMPORTING = 30.0
"""Seconds that an import may take, from a slow disk."""

PROMPTS = 512
"""MiB of earlier prompts that an embedded server keeps beside its cache; by itself it would keep 8 GiB.

``llama-server`` does, which no estimate reckons with: older ones do not know ``--cache-ram``.
"""

Endpoint = Literal["chat", "completion", "embeddings", "rerank"]
WHOLE_TEXTS = frozenset(("embeddings", "rerank"))
"""Endpoints that compute a whole text in one go."""

_GET_ONE = "kawai libs pull gets a build of llama.cpp; pip install 'kawai-tools[embedded]' an embedded one"


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a server is to serve: files, the name it goes by, and how it is to run."""

    id: str
    weights: str
    projection: str | None
    endpoint: Endpoint
    context_length: int
    parallel: int
    gpu_layers: int | None
    threads: int | None
    sampling: dict[str, float] = {}

    @property
    def batch(self) -> int | None:
        """Tokens computed in one go: all of a text that is to become one vector; else as the engine likes."""
        return self.context_length if self.endpoint in WHOLE_TEXTS else None


@dataclass(frozen=True)
class Launch:
    """A command that starts a server; ``hold`` is a directory that is in use as long as it runs."""

    command: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    hold: Path | None = None


class Engine(Protocol):
    """One way to start a server."""

    @property
    def name(self) -> str:
        """What it is called in settings and in ``models ps``."""

    @property
    def most_parallel(self) -> int | None:
        """Requests that one of its servers can answer at a time; ``None``: as many as it is told."""

    @property
    def beside(self) -> int:
        """Bytes that its program takes beside what ``llama-server`` would, as measured with a small model."""

    def why_not(self) -> str | None:
        """Why it cannot be used here; ``None`` where it can."""

    def launch(self, wanted: Wanted, socket: Path, key: str) -> Launch:
        """What starts a server that listens on a UNIX socket and takes this key only."""


class LlamaServer:
    """The server of the active build."""

    name = "llama-server"
    most_parallel = None
    beside = 0

    def __init__(self, bundles: Bundles) -> None:
        """``bundles`` are the installed builds."""
        self._bundles = bundles

    def why_not(self) -> str | None:
        """No build is active."""
        return None if self._bundles.current() else "no build of llama.cpp is active"

    def launch(self, wanted: Wanted, socket: Path, key: str) -> Launch:
        """Its own flags."""
        record = self._bundles.current()
        if record is None:
            raise NoEngine("no build of llama.cpp is active", _GET_ONE)
        place = self._place(record)
        command = [str(place / "llama-server"), "--model", wanted.weights, "--host", str(socket)]
        command += ["--alias", wanted.id, "--no-webui", "--parallel", str(wanted.parallel)]
        command += ["--ctx-size", str(wanted.context_length * wanted.parallel)]
        if wanted.projection is not None:
            command += ["--mmproj", wanted.projection]
        if wanted.gpu_layers is not None:
            command += ["--n-gpu-layers", str(wanted.gpu_layers)]
        if wanted.threads is not None:
            command += ["--threads", str(wanted.threads)]
        if wanted.batch is not None:
            command += ["--batch-size", str(wanted.batch), "--ubatch-size", str(wanted.batch)]
        command += _MODES.get(wanted.endpoint, ())
        for name, value in wanted.sampling.items():
            if name in _SAMPLING:
                command += [_SAMPLING[name], str(int(value) if value == int(value) else value)]
        env = children.environment(os.environ, LLAMA_API_KEY=key)
        return Launch(tuple(command), env, place, hold=place)

    def _place(self, record: BundleRecord) -> Path:
        return self._bundles.layout.bundle(record.platform, record.version)


_MODES: dict[str, Sequence[str]] = {"embeddings": ("--embeddings",), "rerank": ("--reranking",)}


_SAMPLING = {
    "temperature": "--temp",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "min_p": "--min-p",
    "repeat_penalty": "--repeat-penalty",
    "presence_penalty": "--presence-penalty",
    "frequency_penalty": "--frequency-penalty",
}


class Embedded:
    """llama.cpp inside a Python child: the module of ``runners/`` that serves with it, and what it needs."""

    def __init__(
        self,
        name: str,
        packages: Sequence[str],
        extra: str,
        module: str,
        *,
        beside: int,
        most_parallel: int | None = None,
    ) -> None:
        """``packages`` are what must be installed, by the extra of this name."""
        self.name, self.most_parallel, self.beside = name, most_parallel, beside
        self._packages, self._extra, self._module = packages, extra, module

    def why_not(self) -> str | None:
        """A package of its is not installed."""
        missing = next((each for each in self._packages if find_spec(each) is None), None)
        return f"{missing} is not installed: pip install '{self.requirement}'" if missing else None

    @property
    def requirement(self) -> str:
        """What pip installs for it."""
        return f"kawai-tools[{self._extra}]"

    def try_import(self) -> str | None:
        """Why its packages cannot be imported, found out in a child; ``None`` where it can."""
        command = (sys.executable, "-P", "-c", f"import {', '.join(self._packages)}")
        env = children.environment(os.environ)
        try:
            ended = subprocess.run(  # noqa: S603 - this Python
                command, env=env, capture_output=True, timeout=_IMPORTING, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"it does not start: {error}"
        if not ended.returncode:
            return None
        said = ended.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][:200]
        return f"it does not start ({children.ending(ended.returncode)}){f': {said}' if said else ''}"

    def launch(self, wanted: Wanted, socket: Path, key: str) -> Launch:
        """Our own module in a child; what is wanted goes through its environment, as the key does."""
        env = children.environment(
            os.environ,
            LLAMA_API_KEY=key,
            KAWAI_WANTED=msgspec.json.encode(wanted).decode(),
            KAWAI_SOCKET=str(socket),
        )
        module = f"kawai_tools.runners.{self._module}"
        root = str(Path(__file__).parents[2])
        command = (sys.executable, "-P", "-c", _RUN, root, module)
        return Launch(command, env, socket.parent)


_RUN = (
    "import sys, runpy; sys.path.insert(0, sys.argv[1]); runpy.run_module(sys.argv[2], run_name='__main__')"
)
"""Finds kawai wherever it is imported from, also out of a checkout."""


def engines(bundles: Bundles) -> list[Engine]:
    """Every engine, the one that is preferred first."""
    return [
        LlamaServer(bundles),
        Embedded("xllamacpp", ("xllamacpp",), "embedded", "serve_xllamacpp", beside=24_000_000),
        Embedded(
            "llama-cpp-python",
            _LLAMA_CPP_PYTHON,
            "llama-cpp-python",
            "serve_llama_cpp",
            beside=57_000_000,
            most_parallel=1,
        ),
    ]


_LLAMA_CPP_PYTHON = ("llama_cpp", "fastapi", "sse_starlette", "starlette_context", "pydantic_settings")
"""The package, and what its server needs (its extra ``server``)."""

AUTO = "auto"


@dataclass(frozen=True)
class Chosen:
    """An engine, and why it."""

    engine: Engine
    reason: str


def choose(known: Sequence[Engine], wish: str) -> Chosen:
    """The engine that is wished for, or the first that is usable. Raises ``NoEngine``, ``InvalidRequest``."""
    if wish != AUTO:
        named = next((each for each in known if each.name == wish), None)
        if named is None:
            names = ", ".join([AUTO, *(each.name for each in known)])
            raise InvalidRequest(f"there is no engine {wish[:40]!r}", f"choose one of {names}")
        if reason := named.why_not():
            raise NoEngine(f"the engine {wish} cannot be used: {reason}", _GET_ONE)
        return Chosen(named, "it is asked for")
    reasons: list[str] = []
    for each in known:
        reason = each.why_not()
        if reason is None:
            return Chosen(each, "; ".join(reasons) or "a build of llama.cpp is active")
        reasons.append(reason)
    raise NoEngine("there is nothing that could run a model: " + "; ".join(reasons), _GET_ONE)
