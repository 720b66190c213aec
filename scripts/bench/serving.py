"""What a hardened server costs: the guard and authentication, idle connections, followers of a pull.

One run compares ``GET /v1/models`` with and without guard and authentication (asked by wrk, in turns), the
time of ``/healthz`` beside 500 idle connections, and a pull of 4 GiB over loopback, in memory where there is
room for it, with and without a hundred followers, and the memory they add. Exits with 1 if a bound is passed.
Needs wrk and nginx-light.
"""

import argparse
import contextlib
import http.client
import json
import os
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from catalog import free_port, rate, server
from parts import PYTHON, nginx, wait_for_port, write_gguf
from stores import make_store

SIZE = 4 << 30
KAWAI = str(Path(PYTHON).with_name("kawai"))
GUARDED = """
import os, sys
from kawai_tools.api.access import Access
from kawai_tools.api.app import build_app
from kawai_tools.api.guard import known_by
from kawai_tools.api.server import Calls, listen, serve
from kawai_tools.resolving import resolve
from kawai_tools.workspace import Workspace
port, guarded, token = int(sys.argv[1]), sys.argv[2] == "guarded", sys.argv[3]
workspace = Workspace(resolve({}, os.environ), serves=True)
access = Access(workspace.tokens, on=guarded, strict=True)
app = build_app(workspace, known_by([("127.0.0.1", port)]), access=access)
if not guarded:
    app._app._app = app._app._app._app  # the observer stays, the guard goes
serve(app, [listen("127.0.0.1", port)], Calls(lambda: None))
"""


def guard(env: dict[str, str], rounds: int, seconds: int, bound: float) -> bool:
    """The request rate of a list of ten models; whether guard and tokens cost no more than they may."""
    made = subprocess.run(
        [KAWAI, "tokens", "create"], env={**os.environ, **env}, check=True, capture_output=True, text=True
    )
    token = made.stdout.strip()
    ports = {"bare": free_port(), "guarded": free_port()}
    rates: dict[str, list[float]] = {name: [] for name in ports}
    with contextlib.ExitStack() as stack:
        urls = {
            name: stack.enter_context(server((PYTHON, "-c", GUARDED, str(port), name, token), port, env))
            for name, port in ports.items()
        }
        for name in [*urls] * (rounds + 1):
            rates[name].append(rate(f"{urls[name]}/v1/models", seconds, f"Authorization: Bearer {token}"))
    medians = {name: statistics.median(found[1:]) for name, found in rates.items()}
    cost = 1 - medians["guarded"] / medians["bare"]
    print(
        f"guard and tokens: {medians['guarded']:.0f} answers/s of {medians['bare']:.0f} bare, {cost:.1%} "
        f"less ({rounds} alternating rounds of {seconds} s; at most {bound:.0%})"
    )
    return cost <= bound


@contextmanager
def serving(env: dict[str, str]) -> Iterator[tuple[str, int]]:
    """``kawai serve``; its address and process id."""
    port = free_port()
    child = subprocess.Popen(
        [KAWAI, "serve", "--port", str(port)], env={**os.environ, **env}, stderr=subprocess.DEVNULL
    )
    try:
        wait_for_port(port)
        yield f"http://127.0.0.1:{port}", child.pid
    finally:
        child.terminate()
        child.wait()


def idle(env: dict[str, str], count: int, bound: float) -> bool:
    """The slowest of some health checks beside idle connections; whether it is within its bound."""
    with serving(env) as (url, _), contextlib.ExitStack() as stack:
        address = urlsplit(url)
        where = (address.hostname or "", address.port or 0)
        for _ in range(count):
            stack.enter_context(socket.create_connection(where))
        times = []
        for _ in range(20):
            begin = time.monotonic()
            connection = http.client.HTTPConnection(*where)
            connection.request("GET", "/healthz")
            assert connection.getresponse().status == http.client.OK
            connection.close()
            times.append(time.monotonic() - begin)
    print(f"/healthz beside {count} idle connections: {max(times):.3f} s at most (under {bound:g})")
    return max(times) < bound


def resident(pid: int) -> int:
    """Bytes of memory that a process has in use."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024


def follow(url: str, pull: str, count: int, ended: list[int]) -> None:
    """Follow a pull by so many connections in one thread; the bytes that came on each."""
    address = urlsplit(url)
    head = f"GET /v1/pulls/{pull} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n\r\n"
    with selectors.DefaultSelector() as selector:
        for _ in range(count):
            client = socket.create_connection((address.hostname or "", address.port or 0))
            client.sendall(head.encode())
            selector.register(client, selectors.EVENT_READ, [0])
        while selector.get_map():
            for key, _ in selector.select():
                assert isinstance(key.fileobj, socket.socket)
                data = key.fileobj.recv(1 << 16)
                key.data[0] += len(data)
                if not data:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
                    ended.append(key.data[0])


def pulled(env: dict[str, str], source: str, followers: int) -> tuple[float, int]:
    """Pull with so many followers beside the one that asked: seconds, and the memory in use near the end."""
    with serving(env) as (url, pid):
        address = urlsplit(url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port)
        body = json.dumps({"model_url": source})
        begin = time.monotonic()
        connection.request("POST", "/v1/models/pull", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        pull, most = "", 0
        done: list[int] = []
        following: threading.Thread | None = None
        for line in answer:
            if not line.startswith(b"data:"):
                continue
            event = json.loads(line[5:])
            if not pull:
                pull = event["pull"]
                following = threading.Thread(target=follow, args=(url, pull, followers, done))
                following.start()
            most = max(most, resident(pid))
        taken = time.monotonic() - begin
        assert event["status"] == "downloaded", event
        assert following is not None
        following.join()
        assert len(done) == followers
        connection.request("DELETE", "/v1/models/Big")
        assert connection.getresponse().status == http.client.NO_CONTENT
    return taken, most


def followers(env: dict[str, str], work: Path, rounds: int, count: int, bounds: Sequence[float]) -> bool:
    """A pull with and without followers; whether time and memory are within their bounds."""
    folder = work / "files"
    folder.mkdir()
    write_gguf(folder / "Big.gguf", SIZE)
    times: dict[int, list[float]] = {0: [], count: []}
    memory: dict[int, list[int]] = {0: [], count: []}
    with nginx(folder, work) as url:
        env = {**env, "KAWAI_PULL_HOSTS": "127.0.0.1"}
        for number in [0, count] * rounds:
            taken, most = pulled(env, f"{url}/Big.gguf", number)
            times[number].append(taken)
            memory[number].append(most)
    slower = statistics.median(times[count]) / statistics.median(times[0]) - 1
    more = (statistics.median(memory[count]) - statistics.median(memory[0])) / 1e6
    what = f"{count} followers of a pull of {SIZE >> 30} GiB"
    print(
        f"{what}: {slower:+.1%} of {statistics.median(times[0]):.2f} s, {more:+.1f} MB "
        f"({rounds} alternating rounds; at most {bounds[0]:.0%} and {bounds[1]:g} MB)"
    )
    return slower <= bounds[0] and more <= bounds[1]


def main() -> None:
    """Measure all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    given = parser.parse_args()
    shared = Path("/dev/shm")  # noqa: S108 - the speed of a disk wobbles more than what is measured
    roomy = shared.is_dir() and shutil.disk_usage(shared).free > 3 * SIZE
    with tempfile.TemporaryDirectory(prefix="kawai-bench-", dir=shared if roomy else None) as name:
        work = Path(name)
        work.chmod(0o755)
        env = make_store(work / "home", 10)
        within = [
            guard(env, given.rounds, given.seconds, 0.10),
            idle(env, 500, 1.0),
            followers(env, work, given.rounds, 100, (0.05, 30.0)),
        ]
    sys.exit(not all(within))


if __name__ == "__main__":
    main()
