"""``GET /metrics``: counts in the text format of Prometheus (its "Exposition formats", version 0.0.4).

What others count is read when it is asked for. Prometheus' own client is not used: variables of the
environment would make it write files (``PROMETHEUS_MULTIPROC_DIR``).
"""

import resource
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from kawai_tools import __version__
from kawai_tools.api.observing import LEFT, Seen
from kawai_tools.runners.process import State, resident
from kawai_tools.workspace import Workspace

PATH = "/metrics"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 300.0)
_EVENTS = {
    "loads": "Models that were loaded.",
    "failures": "Engines that did not load their model, or died.",
    "evictions": "Models that made way for others.",
    "expiries": "Models that were unloaded because nobody asked them any more.",
}

Labels = dict[str, str]


class Family(NamedTuple):
    """One metric: its samples differ by their labels; a sample of a histogram adds to the name."""

    name: str
    kind: str
    words: str
    samples: Iterable[tuple[str, Labels, float]]

    def text(self) -> Iterator[str]:
        """Its lines."""
        yield f"# HELP {self.name} {self.words}"
        yield f"# TYPE {self.name} {self.kind}"
        for suffix, labels, value in self.samples:
            given = ",".join(f'{key}="{_escaped(word)}"' for key, word in labels.items())
            yield f"{self.name}{suffix}{f'{{{given}}}' if given else ''} {value!r}"


class _Times:
    """How long requests of one route took."""

    def __init__(self) -> None:
        self.within = [0] * (len(_SECONDS) + 1)
        self.sum = 0.0

    def samples(self, route: str) -> Iterator[tuple[str, Labels, float]]:
        total = 0
        for bound, count in zip((*map(str, _SECONDS), "+Inf"), self.within, strict=True):
            total += count
            yield "_bucket", {"route": route, "le": bound}, total
        yield "_sum", {"route": route}, self.sum
        yield "_count", {"route": route}, total


class Metrics:
    """The counts of one server."""

    def __init__(self, workspace: Workspace) -> None:
        """Nothing is counted yet."""
        self._workspace = workspace
        self._began = time.time()
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._times: defaultdict[str, _Times] = defaultdict(_Times)
        self._tokens: Counter[tuple[str, str]] = Counter()

    def count(self, seen: Seen, seconds: float) -> None:
        """Count one request."""
        route = seen.route or "none"
        self._requests[seen.method, route, seen.status or LEFT] += 1
        times = self._times[route]
        times.within[bisect_left(_SECONDS, seconds)] += 1
        times.sum += seconds
        if seen.model is not None:
            self._tokens[seen.model, "prompt"] += seen.prompt_tokens or 0
            self._tokens[seen.model, "completion"] += seen.tokens or 0

    def text(self) -> bytes:
        """All of it. In the event loop's thread, which the pool belongs to."""
        families = (*self._of_requests(), *self._of_the_pool(), *self._of_pulls(), *self._of_the_process())
        return "".join(f"{line}\n" for family in families for line in family.text()).encode()

    def _of_requests(self) -> Iterator[Family]:
        yield Family(
            "kawai_http_requests_total",
            "counter",
            f"Requests by the status of their answer; {LEFT}: their client left before.",
            [
                ("", {"method": method, "route": route, "status": str(status)}, count)
                for (method, route, status), count in self._requests.items()
            ],
        )
        yield Family(
            "kawai_http_request_duration_seconds",
            "histogram",
            "Seconds from the head of a request to the end of its answer.",
            [sample for route, times in self._times.items() for sample in times.samples(route)],
        )
        yield Family(
            "kawai_tokens_total",
            "counter",
            "Tokens that engines read (prompt) and made (completion); of a broken-off stream its frames.",
            [("", {"model": model, "kind": kind}, count) for (model, kind), count in self._tokens.items()],
        )

    def _of_the_pool(self) -> Iterator[Family]:
        pool = self._workspace.pool
        now = pool.snapshot()
        for event, words in _EVENTS.items():
            yield _single(f"kawai_model_{event}_total", "counter", words, pool.events[event])
        yield Family(
            "kawai_active_streams",
            "gauge",
            "Requests that a model is answering.",
            [("", {"model": model.id}, model.leases) for model in now.models],
        )
        yield Family(
            "kawai_model_memory_bytes",
            "gauge",
            "Resident memory of a model's engine.",
            [("", {"model": model.id}, model.memory or 0) for model in now.models],
        )
        loaded = sum(model.state is not State.FAILED for model in now.models)
        yield _single("kawai_loaded_models", "gauge", "Models that have an engine.", loaded)
        yield _single("kawai_memory_used_bytes", "gauge", "What loaded models count for.", now.memory_used)
        yield _single("kawai_memory_budget_bytes", "gauge", "What all models may take.", now.memory_budget)

    def _of_pulls(self) -> Iterator[Family]:
        totals = self._workspace.pulls.totals()
        yield Family(
            "kawai_pulls_total",
            "counter",
            "Pulls that ended.",
            [("", {"kind": kind, "status": status}, n) for (kind, status), n in totals.ended.items()],
        )
        yield Family(
            "kawai_pulled_bytes_total",
            "counter",
            "Bytes that pulls fetched.",
            [("", {"kind": kind}, count) for kind, count in totals.fetched.items()],
        )
        yield _single("kawai_running_pulls", "gauge", "Pulls under way.", totals.running)

    def _of_the_process(self) -> Iterator[Family]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        yield Family("kawai_build_info", "gauge", "What answers.", [("", {"version": __version__}, 1)])
        yield _single("process_start_time_seconds", "gauge", "When it began, in Unix seconds.", self._began)
        yield _single(
            "process_cpu_seconds_total", "counter", "Its time of CPU.", used.ru_utime + used.ru_stime
        )
        if (memory := resident("self")) is not None:
            yield _single("process_resident_memory_bytes", "gauge", "Its resident memory.", memory)


def _single(name: str, kind: str, words: str, value: float) -> Family:
    return Family(name, kind, words, [("", {}, value)])


def _escaped(word: str) -> str:
    return word.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
