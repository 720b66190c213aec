"""A catalog of 2,000 entries: the list into a pipe against ``import typer``, and a filtered list over HTTP.

The peer of the second is a bare Starlette route under uvicorn that filters the same entries in a list and
encodes them with the same encoder. Both are asked by wrk on eight connections, in turns; the medians are
compared. Exits with 1 if a ratio is over (or under) its bound. Needs wrk (apt-get install wrk).
"""

import argparse
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from parts import PYTHON, ROOT, run, wait_for_port

ENTRIES, FILES = 2_000, 2
CATEGORIES: tuple[str, ...] = ("Embedding", "Rerank", "Text-Generation", "Image-Text-to-Text", "Any-to-Any")
CATEGORIES += ("Audio-Text-to-Text", "Code", "Translation", "Summarization", "Speech")
FILTERED = "/v1/catalog?category=Embedding"
BARE = """
import sys
from pathlib import Path
import msgspec, uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from kawai_tools.resolving import resolve
from kawai_tools.workspace import Workspace
from kawai_tools.catalog.catalog import Query
import os
ROWS = Workspace(resolve({}, os.environ)).catalog.rows(Query())
async def listed(request: Request) -> Response:
    wanted = request.query_params["category"]
    found = [row for row in ROWS if row.category == wanted]
    return Response(msgspec.json.encode(found), media_type="application/json")
app = Starlette(routes=[Route("/v1/catalog", listed)])
uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False)
"""


def entry(number: int) -> str:
    """One entry, as large as those of the shipped catalog."""
    name, owner = f"Model-{number:04}-8B-Instruct", f"owner-{number % 50}"
    page = f"https://huggingface.co/{owner}/{name}-GGUF"
    return f"""
- id: {name}-Q8_0
  category: {CATEGORIES[number % len(CATEGORIES)]}
  owned_by: {owner}
  model_family: {name}-GGUF
  architecture: Dense
  gguf_arch: qwen3
  web_page: {page}
  gated_model: false
  files: {{model: [{{url: {page}/resolve/main/{name}-Q8_0.gguf, size: 8.71 GB}}]}}
  capabilities: {{endpoint: chat, streaming: true, reasoning: true}}
  metadata:
    created: 2025-05-03
    description: A general assistant that reasons, number {number} of many; wants ten gigabytes of memory.
    license: apache-2.0"""


def make_home(home: Path) -> dict[str, str]:
    """A home whose catalog has that many entries beside the shipped ones; the environment that names it."""
    folder = home / "catalogs"
    folder.mkdir(parents=True)
    each = ENTRIES // FILES
    for file in range(FILES):
        entries = "".join(entry(number) for number in range(file * each, (file + 1) * each))
        (folder / f"part-{file}.yaml").write_text(f"version: 1\nmodels:{entries}\n")
    return {"KAWAI_HOME": str(home)}


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def server(command: Sequence[str], port: int, env: dict[str, str]) -> Iterator[str]:
    """A server for a while; its address."""
    child = subprocess.Popen(command, env={**os.environ, **env}, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait()


def rate(url: str, seconds: int, *headers: str) -> float:
    """Answers a second on eight connections."""
    more = [word for header in headers for word in ("-H", header)]
    done = subprocess.run(
        ["wrk", "-t1", "-c8", f"-d{seconds}s", *more, url], check=True, capture_output=True, text=True
    )
    if "Non-2xx" in done.stdout:
        raise SystemExit(done.stdout)
    found = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    assert found
    return float(found[1])


def listing(kawai: str, env: dict[str, str], runs: int, bound: float) -> bool:
    """The list into a pipe; whether it is within its bound."""
    run((kawai, "catalog", "list"), env=env)
    base: list[float] = []
    listed: list[float] = []
    for _ in range(runs):
        base.append(run((PYTHON, "-c", "import typer")).wall)
        listed.append(run((kawai, "catalog", "list"), env=env).wall)
    ratio = statistics.median(listed) / statistics.median(base)
    print(
        f"catalog list of {ENTRIES:,}: {statistics.median(listed) * 1e3:.0f} ms, {ratio:.2f} of import typer "
        f"({statistics.median(base) * 1e3:.0f} ms, {runs} alternating runs; at most {bound:g})"
    )
    return ratio <= bound


def filtering(kawai: str, env: dict[str, str], rounds: int, seconds: int, bound: float) -> bool:
    """The filtered list over HTTP; whether it is within its bound."""
    port, other = free_port(), free_port()
    rates: dict[str, list[float]] = {"kawai": [], "bare": []}
    with (
        server((kawai, "serve", "--port", str(port)), port, env) as ours,
        server((PYTHON, "-c", BARE, str(other)), other, env) as bare,
    ):
        for url in (ours, bare):
            rate(url + FILTERED, 1)
        for _ in range(rounds):
            rates["kawai"].append(rate(ours + FILTERED, seconds))
            rates["bare"].append(rate(bare + FILTERED, seconds))
    medians = {name: statistics.median(found) for name, found in rates.items()}
    ratio = medians["kawai"] / medians["bare"]
    print(
        f"filtered list over HTTP: {medians['kawai']:.0f} answers/s = {ratio:.2f} of a bare route "
        f"({medians['bare']:.0f}/s, {rounds} alternating rounds of {seconds} s; at least {bound:g})"
    )
    return ratio >= bound


def main() -> None:
    """Measure both, and print a ratio for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--list-bound", type=float, default=2.0)
    parser.add_argument("--rate-bound", type=float, default=0.8)
    given = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is needed: apt-get install wrk")
    kawai = str(Path(PYTHON).with_name("kawai"))
    with tempfile.TemporaryDirectory(prefix="kawai-bench-") as name:
        env = make_home(Path(name) / "home")
        within = [
            listing(kawai, env, given.runs, given.list_bound),
            filtering(kawai, env, given.rounds, given.seconds, given.rate_bound),
        ]
    sys.exit(not all(within))


if __name__ == "__main__":
    main()
