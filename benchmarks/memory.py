"""Peak memory of a few steps of each preset, against the estimate that `dip-fast run` makes, and the time of a step.

    python benchmarks/memory.py [--sizes 256 512] [--presets quick paper] [--json]

Each fit runs in a process of its own, as the command line runs it; the peak is the resident memory above that of the
process before the fit.  The time is the median of the steps after the first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from typing import Any

import common

from dip_fast.presets import PRESETS


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS))
    parser.add_argument("--steps", type=int, default=6, help="two or more")
    parser.add_argument("--json", action="store_true", help="print a list of records in place of a table")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the job of a process
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(**json.loads(options.one))))
        return
    if options.steps < 2:
        parser.error("--steps must be 2 or more: the first is not timed")
    records = []
    if not options.json:
        print(f"{'preset':10} {'engine':6} {'size':>11} {'estimate MB':>11} {'peak MB':>8} {'ratio':>6} {'step s':>8}")
    for preset, engine, size in itertools.product(options.presets, ("plain", "fused"), options.sizes):
        if preset == "hourglass" and engine == "fused":
            continue  # no block of it has a fused form
        job = {"preset": preset, "engine": engine, "size": size}
        record = {**job, **common.in_own_process(__file__, {**job, "steps": options.steps})}
        records.append(record)
        if not options.json:
            estimate, peak = record["estimated_bytes"], record["peak_bytes"]
            print(
                f"{preset:10} {engine:6} {size:5}x{size:<5} {estimate / 1e6:11.0f} {peak / 1e6:8.0f} "
                f"{estimate / peak:6.2f} {record['step_seconds']:8.3f}",
                flush=True,
            )
    if options.json:
        common.print_json(records)


def measure(preset: str, engine: str, size: int, steps: int) -> dict[str, Any]:
    """Make some steps in this process."""
    import numpy as np

    from dip_fast.device import devices, memory
    from dip_fast.fitting import prepare

    memory.keep_memory()
    recipe = PRESETS[preset].recipe
    estimate = devices.needed_bytes(recipe, 3, (size, size), engine)
    before = memory.peak_bytes()
    noise = np.random.default_rng(0).random((size, size, 3), np.float32)
    fit = prepare(common.denoising_objective(noise, recipe, 0), recipe, engine=engine)
    seconds = common.seconds_of_calls(fit.step, steps - 1, warm_up=1)
    return {
        "estimated_bytes": estimate,
        "peak_bytes": memory.peak_bytes() - before,
        "step_seconds": statistics.median(seconds),
    }


if __name__ == "__main__":
    main()
