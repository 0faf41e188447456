"""Whole fits, each in a process of its own: seconds with start-up, PSNR in each precision, the same bits twice or not.

    python benchmarks/whole_fits.py --device cuda [--preset paper] [--size 512] [--precisions fp32 tf32 bf16] [--json]

The picture is examples/clean.png, enlarged or reduced to the size, with noise of sigma 25/255 drawn from the seed.  All
steps of the preset are made.  Seconds are those of the process, from its start to its end, Python and PyTorch included;
no file is written.  Single fits part, as any two ways of rounding do: compare means over some --seeds.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import common


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--iterations", type=int, help="the preset's unless given")
    parser.add_argument("--engines", nargs="+", choices=["fused", "plain"], default=["fused"])
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "tf32", "bf16"], default=["tf32"])
    parser.add_argument("--seeds", type=int, default=1, help="fits of each engine and precision")
    parser.add_argument(
        "--twice", action="store_true", help="make each fit twice, and say whether the bits are the same"
    )
    parser.add_argument("--json", action="store_true", help="print a list of records in place of a table")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the job of a process
    options = parser.parse_args()
    if options.one:
        from dip_fast.errors import DipFastError

        try:
            print(json.dumps(fitted(**json.loads(options.one))))
        except DipFastError as error:
            sys.exit(str(error))
        return
    records = []
    for engine, precision, seed in itertools.product(options.engines, options.precisions, range(options.seeds)):
        job = {
            "device": options.device,
            "preset": options.preset,
            "size": options.size,
            "iterations": options.iterations,
            "engine": engine,
            "precision": precision,
            "seed": seed,
        }
        runs = [in_a_process(job) for _ in range(1 + options.twice)]
        same = len({run["sha256"] for run in runs}) == 1 if options.twice else None
        records.append({**job, **runs[0], "same_bits": same})
        if not options.json:
            print_row(records[-1], head=len(records) == 1)
    if options.json:
        common.print_json(records)
    else:
        print_means(records)
    if any(record["same_bits"] is False for record in records):
        sys.exit("the same seed gave other bits")


def in_a_process(job: Mapping[str, Any]) -> dict[str, Any]:
    """Make a fit in a process of its own, and time the process."""
    started = time.perf_counter()
    found = common.in_own_process(__file__, job)
    return {"process_seconds": time.perf_counter() - started, **found}


def print_means(records: list[dict[str, Any]]) -> None:
    """Print the mean PSNR of each engine and precision."""
    for (engine, precision), fits in itertools.groupby(records, lambda fit: (fit["engine"], fit["precision"])):
        values = [fit["psnr"] for fit in fits]
        print(f"{engine} {precision}: mean PSNR {sum(values) / len(values):.3f} dB of {len(values)} fits")


def print_row(record: Mapping[str, Any], head: bool) -> None:
    """Print a fit as a line of the table."""
    if head:
        seconds = f"{'process s':>10} {'loop s':>8}"
        print(f"{'engine':6} {'in':4} {'seed':>4} {'steps':>5} {seconds} {'PSNR dB':>8} {'peak MB':>8} bits")
    same = {None: "-", True: "the same", False: "OTHERS"}[record["same_bits"]]
    print(
        f"{record['engine']:6} {record['precision']:4} {record['seed']:4} {record['steps']:5} "
        f"{record['process_seconds']:10.2f} {record['loop_seconds']:8.2f} {record['psnr']:8.3f} "
        f"{record['peak_memory_bytes'] / 1e6:8.0f} {same}",
        flush=True,
    )


def fitted(
    device: str, preset: str, size: int, iterations: int | None, engine: str, precision: str, seed: int
) -> dict[str, Any]:
    """Make a fit, in a process that has nothing else to do."""
    import torch

    from dip_fast.bench.meters import meter_for
    from dip_fast.fitting import fit

    clean = common.to_tensor(common.read_image(common.EXAMPLES / "clean.png"))
    clean = torch.nn.functional.interpolate(clean, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    noisy = (clean + 25 / 255 * noise).clamp(0, 1)
    recipe = common.recipe(preset, size=(size, size), iterations=iterations, stop="never")
    objective = common.denoising_objective(common.to_image(noisy), recipe, seed)
    result = fit(objective, recipe, seed=seed, device=device, engine=engine, precision=precision)

    target = common.to_image(clean)
    return {
        "steps": result.steps,
        "loop_seconds": result.seconds,
        "psnr": -10 * math.log10(float(((result.image - target) ** 2).mean())),
        "sha256": hashlib.sha256(result.image.tobytes()).hexdigest(),
        "peak_memory_bytes": meter_for(torch.device(device)).peaks()["peak_bytes"],
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
    }


if __name__ == "__main__":
    main()
