"""How well the memory that a model needs is told from its header alone.

A true build (``--bundle``, else ``KAWAI_TEST_BUNDLE``) loads the real model, and one of every architecture
that the estimate knows, written here, at three contexts each, as kawai loads them. One line for each: the
estimate, the resident memory of the process after loading, and their ratio. Words that are given choose
architectures. If one ratio is outside of 0.95 to 1.10 the exit code is 1.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from parts import ROOT, real_model

REAL = ((1024, 1), (4096, 1), (8192, 1), (4096, 4))


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("architectures", nargs="*")
    parser.add_argument("--bundle", type=Path, default=os.environ.get("KAWAI_TEST_BUNDLE"))
    given = parser.parse_args()
    if given.bundle is None:
        parser.error("name a true build of llama.cpp: --bundle, or KAWAI_TEST_BUNDLE")
    sys.path.insert(0, str(ROOT))
    from tests.fitting import MODELS, Job, loaded, lots, unpacked  # noqa: PLC0415 - not on the path before

    models = [each for each in MODELS if each.architecture in given.architectures or not given.architectures]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        build = unpacked(given.bundle, folder)
        real = [Job(f"SmolLM2 x{parallel}", real_model(), tokens, parallel) for tokens, parallel in REAL]
        found = loaded([real, *lots(models, build, folder)], build, folder)
    for each in sorted(found, key=lambda one: (one.name, one.context)):
        print(each)
    ratios = [each.ratio for each in found]
    print(f"{len(found)} loads: {min(ratios):.3f} to {max(ratios):.3f}")
    return int(not all(each.within for each in found))


if __name__ == "__main__":
    sys.exit(main())
