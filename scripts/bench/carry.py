"""How long the real model takes to be exported and imported, against ``cp`` and hashing with ``hashlib``.

Run with the project's Python. In each round the same bytes are copied by ``cp`` and hashed by a Python of its
own, exported into a file that was not there, and imported into an empty home; the rounds take turns. Whole
processes are timed, from start to end, and kawai's bytes are synced to the disk, which ``cp`` does not do:
so the share of kawai's start (``kawai --version``) is told, and what ``cp``, ``sync`` and hashing take
together. Whole processes are compared first. The last two figures compare the work: kawai's time
without its start, which is the same however large a model is, with the time of ``cp`` and of hashing without
that of a bare Python. Above ``--most`` (1.3) in these the exit code is 1.
"""

import argparse
import os
import shutil
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

from parts import KAWAI, PYTHON, Measure, real_model, report, run

HASH = "import hashlib, sys; hashlib.file_digest(open(sys.argv[1], 'rb'), 'sha256').hexdigest()"


def one_round(source: Path, work: Path, env: dict[str, str], times: dict[str, list[float]]) -> None:
    """Do each once, and note how long it took."""
    copy, archive, other = work / "copy.gguf", work / "export.tar", work / "other"
    peers = {
        "cp": ["cp", str(source), str(copy)],
        "sync": ["sync", str(copy)],
        "hashing": [PYTHON, "-c", HASH, str(copy)],
        "python": [PYTHON, "-c", "import hashlib"],
    }
    for name, command in peers.items():
        times[name].append(run(command).wall)
    copy.unlink()
    times["start"].append(run([*KAWAI, "--version"], env=env).wall)
    times["export"].append(run([*KAWAI, "export", str(archive)], env=env).wall)
    os.sync()
    offline = [*KAWAI, "--offline", "--home", str(other), "import", str(archive)]
    times["import"].append(run(offline, env=env).wall)
    shutil.rmtree(other)
    archive.unlink()


def main() -> None:
    """Measure some rounds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", help="where to work; not a tmpfs, where syncing costs nothing")
    parser.add_argument("--most", type=float, default=1.3, help="the highest ratio to end with exit code 0")
    options = parser.parse_args()
    times: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        work = Path(folder)
        source = work / "home" / "models" / "local" / "Real-GGUF" / real_model().name
        source.parent.mkdir(parents=True)
        shutil.copyfile(real_model(), source)
        env = {"KAWAI_HOME": str(work / "home")}
        run([*KAWAI, "models", "index"], env=env)
        run([*KAWAI, "models", "verify"], env=env)
        run([*KAWAI, "models", "verify"], env=env)  # the first time nobody had promised a digest
        for _ in range(options.rounds):
            one_round(source, work, env, times)
    for name, each in times.items():
        print(f"{name}: best {min(each):.3f} s, median {statistics.median(each):.3f} s")
    best = {name: min(each) for name, each in times.items()}
    whole, synced = best["cp"] + best["hashing"], best["cp"] + best["sync"] + best["hashing"]
    for name in ("export", "import"):
        print(f"{name}, whole process: {best[name] / whole:.2f} x; {best[name] / synced:.2f} x with sync")
    report(_measures(best, options.most))


def _measures(best: dict[str, float], most: float) -> list[Measure]:
    start, bare = best["start"], best["cp"] + best["hashing"] - best["python"]
    found = []
    for name in ("export", "import"):
        share = f"start-up is {100 * start / best[name]:.0f} % of {best[name]:.3f} s"
        found.append(Measure(f"{name}, its work", (best[name] - start) / bare, most, " x", beside=share))
    return found


if __name__ == "__main__":
    main()
