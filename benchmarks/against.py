"""Compare the time of a step with that of another version of the package, in turn.

    python benchmarks/against.py OTHER [--presets quick paper] [--size 256] [--rounds 40] [--seconds 0.5] [--threads 2]

OTHER is a folder that holds another version, as ``pip install --no-deps --target OTHER`` makes it.  Each version has a
process of its own with a fit of the same picture from the same seed.  In each round either makes as many steps as take
about so many seconds, and they take turns in being the first.  Printed are the medians of the times of a step, and the
median and the quartiles of the ratios of the rounds, this version to the other.
"""

import os
import statistics
import subprocess
import sys
from pathlib import Path

import common

# Names that every version so far has.
WORKER = """
import sys, time, torch
from dip_fast import PRESETS, Identity
from dip_fast.fitting import prepare
preset, size, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads)
picture = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
fit = prepare(Identity(picture), PRESETS[preset].recipe, seed=0)
for _ in range(3):
    fit.step()
for line in sys.stdin:
    begin = time.perf_counter()
    for _ in range(int(line)):
        fit.step()
    print((time.perf_counter() - begin) / int(line), flush=True)
"""


class Version:
    """A fit of one version, in a process of its own."""

    def __init__(self, folder: Path | None, preset: str, size: int, threads: int) -> None:
        environment = dict(os.environ)
        if folder is not None:
            environment["PYTHONPATH"] = str(folder.resolve())
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, preset, str(size), str(threads)],
            env=environment,
            cwd=Path(sys.executable).parent,  # not the checkout, whose package would be found first
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds(self, steps: int) -> float:
        """Make some steps and return the seconds that one took."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(steps, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("other", type=Path, metavar="OTHER")
    parser.add_argument("--presets", nargs="+", default=["quick", "paper"])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    for preset in options.presets:
        versions = [Version(folder, preset, options.size, options.threads) for folder in (None, options.other)]
        steps = max(1, round(options.seconds / versions[0].seconds(1)))
        pairs = []
        for i in range(options.rounds):
            times = {place: versions[place].seconds(steps) for place in ((0, 1) if i % 2 else (1, 0))}
            pairs.append((times[0], times[1]))
        for version in versions:
            version.close()
        mine, theirs = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
        ratios = sorted(a / b for a, b in pairs)
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        print(
            f"{preset} {options.size}x{options.size}: {mine:.1f} ms a step, the other {theirs:.1f}; "
            f"ratio {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})"
        )


if __name__ == "__main__":
    main()
