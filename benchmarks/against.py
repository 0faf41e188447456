"""Compare the time of a step with that of another version of the package: whole runs, in turn.

    python benchmarks/against.py OTHER [--presets quick paper] [--size 256] [--steps 40] [--rounds 5] [--threads 2]

OTHER is a folder that holds another version, as ``pip install --no-deps --target OTHER`` makes it.  Each measurement is
a ``dip-fast run`` in a process of its own, of the same picture with the same seed; the time is the one that its record
gives for the loop.  Printed are the medians, and the median of the ratios of the pairs, this version to the other.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import common
import cv2
import numpy as np


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("other", type=Path, metavar="OTHER")
    parser.add_argument("--presets", nargs="+", default=["quick", "paper"])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        picture = Path(name) / "picture.png"
        samples = np.random.default_rng(0).integers(0, 256, (options.size, options.size, 3))
        cv2.imwrite(str(picture), samples.astype(np.uint8))
        for preset in options.presets:
            pairs = []
            for _ in range(options.rounds):
                mine, theirs = (
                    step_time(picture, preset, options.steps, options.threads, other) for other in (None, options.other)
                )
                pairs.append((mine, theirs))
            mine, theirs = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
            ratio = statistics.median(a / b for a, b in pairs)
            what = f"{preset} {options.size}x{options.size}"
            print(f"{what}: {mine:.1f} ms a step, the other {theirs:.1f}, ratio {ratio:.3f}")


def step_time(picture: Path, preset: str, steps: int, threads: int, other: Path | None) -> float:
    """Run a fit in a process of its own and return its seconds a step."""
    environment = dict(os.environ)
    if other is not None:
        environment["PYTHONPATH"] = str(other.resolve())
    command = [
        *(sys.executable, "-m", "dip_fast", "run", str(picture), "--preset", preset, "--iterations", str(steps)),
        *("--stop", "never", "--threads", str(threads), "--snapshot-every", "0", "--export", "none", "--overwrite"),
        *("--out", str(picture.parent / "run"), "--json"),
    ]
    done = subprocess.run(command, env=environment, cwd=picture.parent, capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout)
    # The steps of the consolidation, a tenth of them, are in the time of both versions.
    return float(summary["seconds"]) / int(summary["steps"])


if __name__ == "__main__":
    main()
