"""Pull against curl, hashlib and aria2c, all in one run, over loopback from nginx.

Prints: wall clock against the slower of curl and hashing (plus the measured fsync), CPU seconds against
curl plus hashing, growth of resident memory with the file's size, throughput under a cap per connection
against ``aria2c -x8``, and the share of bytes fetched again after a SIGKILL half-way.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from parts import KAWAI, PYTHON, ROOT, Cost, best, nginx, run, write_gguf

HASH = (
    "import hashlib,sys\n"
    "d=hashlib.sha256();b=memoryview(bytearray(1<<20))\n"
    "with open(sys.argv[1],'rb',buffering=0) as f:\n"
    "    while n:=f.readinto(b): d.update(b[:n])\n"
    "print(d.hexdigest())"
)
FSYNC = "import os,sys;f=os.open(sys.argv[1],os.O_RDONLY);os.fsync(f)"


def pull(url: str, home: Path, *options: str) -> Cost:
    """One pull into an empty home."""
    shutil.rmtree(home, ignore_errors=True)
    return run([*KAWAI, "--json", "--home", str(home), "models", "pull", url, *options])


def plain(folder: Path, work: Path, size: int, rounds: int) -> None:
    """Uncapped: wall clock, CPU and memory."""
    target = work / "curl.out"
    curls, hashes, syncs, pulls = [], [], [], []
    with nginx(folder, work) as url:
        for _ in range(rounds):
            target.unlink(missing_ok=True)
            curls.append(run(["curl", "-sS", "-o", str(target), f"{url}/big.gguf"]))
            syncs.append(run([PYTHON, "-c", FSYNC, str(target)]))
            hashes.append(run([PYTHON, "-c", HASH, str(target)]))
            pulls.append(pull(f"{url}/big.gguf", work / "home"))
        small = pull(f"{url}/small.gguf", work / "home")
    curl, digest, sync, mine = best(curls), best(hashes), best(syncs), best(pulls)
    slower = max(curl.wall, digest.wall) + sync.wall
    print(f"size {size >> 20} MiB: curl {curl.wall:.2f} s, hash {digest.wall:.2f} s, fsync {sync.wall:.2f} s")
    print(f"pull {mine.wall:.2f} s = {mine.wall / slower:.2f} of the slower plus fsync (at most 1.4)")
    cpu = curl.cpu + digest.cpu
    print(
        f"CPU {mine.cpu:.2f} s against {cpu:.2f} s = {mine.cpu / cpu:.2f} of curl plus hashing (at most 1.6)"
    )
    grown = (mine.memory - small.memory) / 1e6
    print(f"resident {mine.memory / 1e6:.0f} MB, {grown:.0f} MB more than for a file of 1 MiB (at most 40)")


def capped(folder: Path, work: Path, size: int) -> None:
    """20 MB/s for each connection, against aria2c -x8."""
    with nginx(folder, work, limit="20m") as url:
        options = ["--allow-overwrite=true", "-q", "-d", str(work), "-o", "aria.out"]
        aria = run(["aria2c", "-x8", "-s8", *options, f"{url}/big.gguf"])
        mine = pull(f"{url}/big.gguf", work / "home")
    print(
        f"capped: aria2c -x8 -s8 {size / aria.wall / 1e6:.0f} MB/s, pull {size / mine.wall / 1e6:.0f} MB/s"
        f" = {aria.wall / mine.wall:.2f} (at least 0.9)"
    )


def killed(folder: Path, work: Path, size: int) -> None:
    """SIGKILL half-way: how much the next pull fetches."""
    home = work / "home"
    shutil.rmtree(home, ignore_errors=True)
    with nginx(folder, work) as url:
        command = [*KAWAI, "--json", "--home", str(home), "models", "pull", f"{url}/big.gguf"]
        child = subprocess.Popen([*command, "--limit-rate", "200M"], cwd=ROOT, stdout=subprocess.PIPE)
        assert child.stdout is not None
        for line in child.stdout:
            if json.loads(line)["completed"] >= size // 2:
                break
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        again = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    first = next(
        event for event in map(json.loads, again.stdout.splitlines()) if event["status"] == "downloading"
    )
    fetched = (size - first["completed"]) / size
    print(f"after SIGKILL at a half: {fetched:.0%} fetched by the next pull (at most 55 %)")
    found = hashlib.file_digest(next(home.rglob("big.gguf")).open("rb"), "sha256").digest()
    assert found == hashlib.file_digest((folder / "big.gguf").open("rb"), "sha256").digest()


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kawai-bench-") as name:
        work, folder = Path(name), Path(name) / "www"
        folder.mkdir()
        write_gguf(folder / "big.gguf", given.mib << 20)
        write_gguf(folder / "small.gguf", 1 << 20)
        size = (folder / "big.gguf").stat().st_size
        plain(folder, work, size, given.rounds)
        capped(folder, work, size)
        killed(folder, work, size)


if __name__ == "__main__":
    main()
