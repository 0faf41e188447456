"""Peak memory of a few steps of each preset, against the estimate that `dip-fast run` makes, and the time of a step.

    python benchmarks/memory.py [--sizes 256 512] [--presets quick paper]

Each fit runs in a process of its own, as the command line runs it; the peak is the resident memory above that of the
process before the fit.  The time is the median of five steps, after one.
"""

import argparse
import statistics
import subprocess
import sys
import time


def measure(preset: str, size: int, engine: str) -> None:
    import torch

    from dip_fast.device import devices, memory
    from dip_fast.device.memory import keep_memory
    from dip_fast.fitting import prepare
    from dip_fast.fitting.degradations import Identity
    from dip_fast.presets import PRESETS

    keep_memory()
    recipe = PRESETS[preset].recipe
    estimate = devices.needed_bytes(recipe, 3, (size, size), engine)
    before = memory.peak_bytes()
    fit = prepare(Identity(torch.rand(1, 3, size, size)), recipe, engine=engine)
    seconds = []
    for _ in range(6):
        begin = time.perf_counter()
        fit.step()
        seconds.append(time.perf_counter() - begin)
    step = statistics.median(seconds[1:])
    peak = memory.peak_bytes() - before
    print(
        f"{preset:10} {engine:6} {size:5}x{size:<5} {estimate / 1e6:10.0f} {peak / 1e6:10.0f} {estimate / peak:8.2f} "
        f"{step:8.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--presets", nargs="+", default=["quick", "paper", "hourglass", "decoder"])
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(options.one[0], int(options.one[1]), options.one[2])
        return
    print(f"{'preset':10} {'engine':6} {'size':>11} {'estimate MB':>10} {'peak MB':>10} {'ratio':>8} {'step s':>8}")
    for preset in options.presets:
        for engine in ("plain",) if preset == "hourglass" else ("plain", "fused"):
            for size in options.sizes:
                subprocess.run([sys.executable, __file__, "--one", preset, str(size), engine], check=True)


if __name__ == "__main__":
    main()
