"""``kawai libs``: the probe against the same starts done bare, and ``libs show`` against ``import typer``.

The probe is that of a true build, named as argument or in ``KAWAI_TEST_BUNDLE``; bare is to run
``llama-server --version`` and ``--list-devices``, and to start it with the tiny model, wait for ``/health``
and get one token, without kawai. ``show`` runs as a process of its own: from an answer of the release server
that is younger than ten minutes, asking the local hub, and asking a server that accepts and never answers.
The runs of all alternate, so that what else the machine does hits them alike; of the probe the best are
compared, of ``show`` the medians. Exits with 1 if something is over its bound.
"""

import argparse
import compileall
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from parts import KAWAI, PYTHON, ROOT, run

sys.path.insert(0, str(ROOT))  # the local hub is the tests' own

from kawai_tools.libs.archives import unpack
from kawai_tools.libs.platforms import Processor
from kawai_tools.libs.probing import MODEL, probe
from tests.bundles import asset_name, host_platform
from tests.hub import LocalHub

VERSION = "b11434"
TICK = 0.01


def probed(directory: Path) -> float:
    """Seconds that kawai's probe takes."""
    begin = time.monotonic()
    result = probe(directory, Processor.CPU, time.sleep)
    if not result.ok:
        raise SystemExit(f"the build does not pass its probe: {result.detail}")
    return time.monotonic() - begin


def bare(directory: Path) -> float:
    """Seconds that the same starts take without kawai."""
    begin = time.monotonic()
    server = str(directory / "llama-server")
    for flag in ("--version", "--list-devices"):
        subprocess.run([server, flag], check=True, capture_output=True)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/p.sock"  # llama-server knows a path of a socket by its end
        flags = ["--ctx-size", "64", "--parallel", "1", "--no-webui", "--no-warmup"]
        command = [server, "--model", str(MODEL), "--host", path, *flags]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
            while asked(path, "GET", "/health") != 200:  # noqa: PLR2004 - OK
                if child.poll() is not None:
                    raise SystemExit(f"{server} ended with {child.returncode}")
                time.sleep(TICK)
            if asked(path, "POST", "/completion", {"prompt": "a", "n_predict": 1}) != 200:  # noqa: PLR2004
                raise SystemExit(f"{server} makes no token")
            child.kill()
    return time.monotonic() - begin


def asked(path: str, method: str, target: str, body: object = None) -> int:
    """The status of an answer over a UNIX socket, 0 for none."""
    with closing(http.client.HTTPConnection("localhost")) as connection:
        try:
            connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.sock.connect(path)
            headers = {"Content-Type": "application/json"}
            connection.request(method, target, json.dumps(body) if body else None, headers)
            answer = connection.getresponse()
            answer.read()
        except OSError:
            return 0
        return answer.status


@contextmanager
def silence() -> Iterator[str]:
    """A server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def compare(
    name: str, ours: list[float], base: list[float], bound: float, pick: Callable[..., float]
) -> bool:
    """Print one comparison; whether it is over its bound."""
    ratio = pick(ours) / pick(base)
    print(
        f"{name}: {min(ours) * 1e3:.0f} ms best, {statistics.median(ours) * 1e3:.0f} ms median; against "
        f"{min(base) * 1e3:.0f} best, {statistics.median(base) * 1e3:.0f} median; "
        f"ratio {ratio:.2f} (at most {bound:g})"
    )
    return ratio > bound


def probing(bundle: Path, runs: int, bound: float) -> bool:
    """Compare the probe with bare starts."""
    with tempfile.TemporaryDirectory(prefix="kawai-bench-") as folder:
        unpack([bundle], directory := Path(folder) / "build")
        ours, theirs = [], []
        for _ in range(runs):
            theirs.append(bare(directory))
            ours.append(probed(directory))
    return compare(f"probe of {bundle.name}", ours, theirs, bound, min)


def showing(bundle: Path, runs: int, bounds: tuple[float, float, float]) -> bool:
    """Compare ``libs show`` with ``import typer``."""
    show = [*KAWAI, "libs", "show", "--json"]
    with (
        tempfile.TemporaryDirectory(prefix="kawai-bench-") as name,
        LocalHub(Path(name) / "hub") as hub,
        silence() as dead,
    ):
        hub.add_release(VERSION, {asset_name(VERSION, host_platform()): bundle})
        env = {"KAWAI_HOME": f"{name}/kawai", "KAWAI_LIBS_API": hub.libs_api}
        cache = Path(name, "kawai", "libraries", "releases.json")
        run([*KAWAI, "libs", "pull"], env=env)
        run(show, env=env)
        typer, cached, asking = [], [], []
        for _ in range(runs):
            typer.append(run([PYTHON, "-c", "import typer"]).wall)
            cached.append(run(show, env=env).wall)
            cache.unlink()
            asking.append(run(show, env=env).wall)
        hub.clear_requests()
        run(show, env=env)
        if hub.requests:
            raise SystemExit("show asked, though the last answer was young")
        cache.unlink()
        blocked = run(show, env={**env, "KAWAI_LIBS_API": dead}).wall
    over = compare("libs show from the last answer", cached, typer, bounds[0], statistics.median)
    over |= compare("libs show asking the local hub", asking, typer, bounds[1], statistics.median)
    print(f"libs show of a server that never answers: {blocked:.2f} s (at most {bounds[2]:g})")
    return over or blocked > bounds[2]


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", nargs="?", default=os.environ.get("KAWAI_TEST_BUNDLE"))
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--probe-bound", type=float, default=1.5)
    parser.add_argument("--cached-bound", type=float, default=1.5)
    parser.add_argument("--asking-bound", type=float, default=4.0)
    parser.add_argument("--blocked-bound", type=float, default=5.0, help="seconds")
    given = parser.parse_args()
    if not given.bundle:
        parser.error("name a bundle, or set KAWAI_TEST_BUNDLE")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    compileall.compile_dir(ROOT / "kawai_tools", quiet=1)
    bundle = Path(given.bundle).resolve()
    over = probing(bundle, given.runs, given.probe_bound)
    over |= showing(bundle, given.runs, (given.cached_bound, given.asking_bound, given.blocked_bound))
    sys.exit(over)


if __name__ == "__main__":
    main()
