"""What kawai adds to llama-server: speed of streams, processor time a token, first token, cold start.

kawai runs the ``llama-server`` of a true build (``--bundle``, else ``KAWAI_TEST_BUNDLE``) with a real model
of 98 MB. "Direct" is that very process, asked on its own UNIX socket; kawai, the router (llama-server's own
multi-model mode, with the same flags) and the httpx pass-through (Starlette, in front of the same socket) are
asked over TCP on loopback. Every answer has the same number of tokens. Rounds go through all in turns, begun
by another each time, and what is compared are medians of the ratios within a round; direct is in each round
twice, which gives the control: where that is far from 1, the machine was too busy for the others to mean
much. Exits with 1 if a bound is passed.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from catalog import free_port, server
from parts import (
    MODEL,
    OK,
    PATIENCE,
    PYTHON,
    SLOTS,
    Measure,
    Way,
    chat,
    children_of,
    processor_time,
    real_model,
    report,
    stocked,
)
from serving import serving

TICK = 0.01
PAIRED, SELDOM = ("direct", "kawai", "control"), 3
"""What every round asks; the others are asked in each third one."""

PLAIN = """
import sys
import httpx, uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
port, path, key = int(sys.argv[1]), sys.argv[2], sys.argv[3]
limits = httpx.Limits(max_keepalive_connections=0)  # llama-server closes what it promised to keep
client = httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=path, limits=limits), timeout=None)
async def passed(request: Request) -> StreamingResponse:
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    sent = client.build_request("POST", "http://localhost" + request.url.path, content=await request.body(),
                                headers=headers)
    answer = await client.send(sent, stream=True)
    async def pieces():
        try:
            async for piece in answer.aiter_raw():
                yield piece
        finally:
            await answer.aclose()
    return StreamingResponse(pieces(), answer.status_code, media_type=answer.headers["content-type"])
app = Starlette(routes=[Route("/v1/chat/completions", passed, methods=["POST"])])
uvicorn.run(app, port=port, loop="asyncio", http="h11", log_level="warning", access_log=False)
"""


# What is asked


class Engine(NamedTuple):
    """kawai's own child: how it was started, and how it is asked."""

    command: list[str]
    env: dict[str, str]
    cwd: str
    way: Way

    @classmethod
    def of(cls, pid: int) -> "Engine":
        """The one child of a kawai, looked at from the system."""
        (child,) = children_of(pid)
        proc = Path(f"/proc/{child}")
        command = (proc / "cmdline").read_text().split("\0")[:-1]
        env = dict(each.split("=", 1) for each in (proc / "environ").read_text().split("\0") if "=" in each)
        way = Way(command[command.index("--host") + 1], env["LLAMA_API_KEY"], child)
        return cls(command, env, str((proc / "cwd").readlink()), way)

    def but(self, **flags: str | None) -> list[str]:
        """The same command with other values of some flags; ``None``: without it."""
        command = list(self.command)
        for name, value in flags.items():
            at = command.index(f"--{name}")
            command[at : at + 2] = [f"--{name}", value] if value is not None else []
        return command

    @contextmanager
    def started(self, command: Sequence[str]) -> Iterator["subprocess.Popen[bytes]"]:
        """A server beside it, with the same surroundings."""
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, env=self.env, cwd=self.cwd, stdout=quiet, stderr=quiet) as child:
            try:
                yield child
            finally:
                child.terminate()


@contextmanager
def router(engine: Engine, models: Path) -> Iterator[Way]:
    """llama-server's own multi-model mode, with the same flags for its models."""
    port = free_port()
    command = engine.but(model=None, alias=None, host="127.0.0.1")
    way = Way(port, engine.way.key)
    with engine.started([*command, "--port", str(port), "--models-dir", str(models)]) as child:
        healthy(way, child)
        yield way


def healthy(way: Way, child: "subprocess.Popen[bytes]") -> None:
    """Wait until a server says that it is well."""
    until = time.monotonic() + PATIENCE
    while child.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError):
            if way.ask("GET", "/health").status == OK:
                return
        time.sleep(TICK)
    raise SystemExit(f"llama-server is not well; it ended with {child.poll()}")


@contextmanager
def pass_through(engine: Engine) -> Iterator[Way]:
    """The plain one, in front of the same engine."""
    port = free_port()
    command = (PYTHON, "-c", PLAIN, str(port), str(engine.way.where), engine.way.key)
    with server(command, port, {}):
        (pid,) = [each for each in children_of(os.getpid()) if str(port) in _words(each)]
        yield Way(port, pid=pid)


def _words(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


@contextmanager
def router_if_any(engine: Engine, models: Path) -> Iterator[dict[str, Way]]:
    """The router as one more way, once it has its model; none, and a word, where it does not work."""
    with ExitStack() as stack:
        try:
            way = stack.enter_context(router(engine, models))
            _ = way.chat([chat(1)])[0].tokens
        except (SystemExit, OSError) as error:
            print(f"the router of this build does not work here, so it is left out: {error}")
            yield {}
            return
        yield {"router": way}


# Measuring


class Leg(NamedTuple):
    """Some streams to their end: seconds of wall clock and of processor, tokens of all."""

    wall: float
    cpu: float
    tokens: int


def leg(way: Way, streams: int, tokens: int) -> Leg:
    """So many streams at the same time, of so many tokens each."""
    cpu = processor_time(way.pid) if way.pid else 0.0
    begin = time.monotonic()
    answers = way.chat([chat(tokens)] * streams)
    wall = time.monotonic() - begin
    cpu = processor_time(way.pid) - cpu if way.pid else 0.0
    made = sum(answer.tokens for answer in answers)
    assert made == streams * tokens, f"{made} tokens instead of {streams} times {tokens}"
    return Leg(wall, cpu, made)


def turns(names: Sequence[str], rounds: int) -> Iterator[Sequence[str]]:
    """The names in turns, begun by another each time."""
    for number in range(rounds):
        at = number % len(names)
        yield [*names[at:], *names[:at]]


def streaming(
    ways: Mapping[str, Way], streams: int, tokens: int, rounds: int, bounds: tuple[float, float]
) -> Iterator[Measure]:
    """Tokens a second against direct, and microseconds of processor time a token; ``bounds`` are theirs."""
    for way in ways.values():
        leg(way, streams, tokens)
    legs: list[dict[str, Leg]] = []
    for number, names in enumerate(turns([*ways], rounds)):
        some = [name for name in names if name in PAIRED or number % SELDOM == 0]
        legs.append({name: leg(ways[name], streams, tokens) for name in some})
    ratios = {name: _ratios(legs, name) for name in ways}
    told = f"half of the rounds {_middle(ratios['kawai'])}; "
    told += f"control {statistics.median(ratios['control']):.3f}, {_middle(ratios['control'])}; "
    told += ", ".join(f"{name} {statistics.median(ratios[name]):.3f}" for name in ways if name not in PAIRED)
    base = statistics.median(each["direct"].tokens / each["direct"].wall for each in legs)
    what = f"{streams} stream{'s' if streams > 1 else ''}"
    beside = f"{told}; direct {base:.1f} tokens/s ({rounds} rounds of {tokens} tokens)"
    speed = statistics.median(ratios["kawai"])
    yield Measure(f"{what}, tokens/s of direct", speed, bounds[0], least=True, beside=beside)
    cpu = {name: _processor(legs, name) for name in ("kawai", "httpx")}
    yield Measure(
        f"{what}, CPU a token", cpu["kawai"], bounds[1], " us", beside=f"httpx {cpu['httpx']:.0f} us"
    )


def _ratios(legs: Sequence[Mapping[str, Leg]], name: str) -> list[float]:
    """Speeds against the mean of both directs in the same round; the control's against the other one."""
    bases = ("direct",) if name in {"direct", "control"} else ("direct", "control")
    return [
        statistics.fmean(each[base].wall for base in bases) / each[name].wall for each in legs if name in each
    ]


def _middle(ratios: Sequence[float]) -> str:
    low, _, high = statistics.quantiles(ratios, n=4)
    return f"{low:.3f} to {high:.3f}"


def _processor(legs: Sequence[Mapping[str, Leg]], name: str) -> float:
    """Microseconds of processor time a token, over all rounds."""
    found = [each[name] for each in legs if name in each]
    return sum(each.cpu for each in found) / sum(each.tokens for each in found) * 1e6


def first_tokens(ways: Mapping[str, Way], requests: int, most: float) -> Iterator[Measure]:
    """Milliseconds from the request to the first word, more than direct."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for names in turns([*ways], requests):
        for name in names:
            begin = time.monotonic()
            (answer,) = ways[name].chat([chat(1)])
            assert answer.first is not None, bytes(answer.data)
            times[name].append((answer.first - begin) * 1e3)
    more = {
        name: statistics.median(mine - base for mine, base in zip(found, times["direct"], strict=True))
        for name, found in times.items()
    }
    told = ", ".join(
        f"{name} {value:+.2f}" for name, value in more.items() if name not in {"kawai", "direct"}
    )
    beside = f"direct {statistics.median(times['direct']):.1f} ms; {told} ({requests} rounds)"
    yield Measure("first token, more than direct", more["kawai"], most, " ms", beside=beside)


def cold_starts(kawai: Way, engine: Engine, work: Path, rounds: int, most: float) -> Iterator[Measure]:
    """Seconds to the first answer of a model that is not loaded, more than of a bare server."""
    times: dict[str, list[float]] = {"kawai": [], "bare": []}
    for names in turns([*times], rounds):
        for name in names:
            unload(kawai)
            begin = time.monotonic()
            if name == "kawai":
                _ = kawai.chat([chat(1)])[0].tokens
                times[name].append(time.monotonic() - begin)
                continue
            way = Way(str(work / "bare.sock"), engine.way.key)
            Path(str(way.where)).unlink(missing_ok=True)
            with engine.started(engine.but(host=str(way.where))) as child:
                healthy(way, child)
                _ = way.chat([chat(1)])[0].tokens
                times[name].append(time.monotonic() - begin)
    medians = {name: statistics.median(found) for name, found in times.items()}
    beside = f"bare {medians['bare']:.3f} s ({rounds} alternating rounds)"
    yield Measure("cold start, more than bare", medians["kawai"] - medians["bare"], most, " s", beside=beside)


def unload(kawai: Way) -> None:
    """Unload the model, whether it is loaded or not."""
    answer = kawai.ask("POST", "/v1/models/unload", {"model": MODEL})
    assert answer.status == 204, bytes(answer.data)  # noqa: PLR2004 - no content


def measures(given: argparse.Namespace, work: Path) -> Iterator[Measure]:
    """All of them."""
    env = stocked(work / "home", given.bundle, [MODEL], given.threads)
    models = work / "router"
    models.mkdir()
    (models / f"{MODEL}.gguf").symlink_to(real_model())
    with serving(env) as (url, pid):
        kawai = Way(urlsplit(url).port or 0, pid=pid)
        _ = kawai.chat([chat(1)])[0].tokens
        engine = Engine.of(pid)
        print(f"{' '.join(engine.but(model='...', host='...'))}; direct: UNIX socket, the others: TCP")
        ways = {"direct": engine.way._replace(pid=0), "kawai": kawai, "control": engine.way._replace(pid=0)}
        with router_if_any(engine, models) as more, pass_through(engine) as plain:
            ways |= {**more, "httpx": plain}
            yield from streaming(ways, 1, given.tokens, given.rounds, (0.97, 350))
            yield from streaming(ways, SLOTS, given.tokens // 2, given.rounds, (0.95, 150))
            yield from first_tokens(ways, given.requests, 8.0)
        yield from cold_starts(kawai, engine, work, given.starts, 0.25)


def main() -> None:
    """Measure all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=os.environ.get("KAWAI_TEST_BUNDLE"))
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--starts", type=int, default=7)
    parser.add_argument(
        "--threads", type=int, default=1, help="of the engine: two crawl where anything else runs"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds, to see that it works")
    given = parser.parse_args()
    if not given.bundle:
        parser.error("name a bundle, or set KAWAI_TEST_BUNDLE")
    if given.quick:
        given.rounds, given.requests, given.starts = 3, 20, 2
    with tempfile.TemporaryDirectory(prefix="kawai-bench-") as name:
        report(measures(given, Path(name)))


if __name__ == "__main__":
    main()
