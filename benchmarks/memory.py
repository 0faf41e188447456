"""Peak memory, of a few steps of each preset and of whole runs of large pictures, against what `dip-fast run` says.

    python benchmarks/memory.py [--sizes 256 512] [--presets quick paper] [--json]
    python benchmarks/memory.py --megapixels 4 15 100 [--tile 512] [--width 4]

Each fit runs in a process of its own, as the command line runs it; the peak is the resident memory above that of the
process before the fit.  The time is the median of the steps after the first.

With ``--megapixels`` whole runs are made of synthetic RGB pictures with noise of sigma 25, with little to do for the
network: three steps, one mask and one step of consolidation of `default`; or with ``--tile`` one step of `quick`, which
deblurs in tiles.  ``--width`` makes the network thin, for pictures that would take hours: what the network takes then
is less, and what the picture takes is the same.  ``--without-patches`` leaves out the estimate from patches, most of
the time, whose memory does not grow with the picture.  The peak is that of the process, and holds pages of files that
the system could take back.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import common

from dip_fast.presets import PRESETS


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS))
    parser.add_argument("--steps", type=int, default=6, help="two or more")
    parser.add_argument("--megapixels", type=float, nargs="+", help="whole runs of such pictures, in place of steps")
    parser.add_argument("--tile", type=int, help="restore these in tiles of so many pixels a side")
    parser.add_argument("--width", type=int, help="channels of the network of these, the preset's unless given")
    parser.add_argument("--without-patches", action="store_true", help="leave out what takes most of the time")
    parser.add_argument("--json", action="store_true", help="print a list of records in place of a table")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the job of a process
    options = parser.parse_args()
    if options.one:
        job = json.loads(options.one)
        print(json.dumps(run(**job) if "picture" in job else measure(**job)))
        return
    if options.megapixels:
        whole_runs(options)
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


def whole_runs(options: argparse.Namespace) -> None:
    """Restore large pictures, each in a process of its own."""
    rows = []
    for megapixels in options.megapixels:
        with tempfile.TemporaryDirectory(dir=".") as folder:
            picture = Path(folder, "large.png")
            size = synthesise(picture, megapixels)
            begun = time.perf_counter()
            job = {"picture": str(picture), "tile": options.tile, "width": options.width}
            job |= {"patches": not options.without_patches}
            record = common.in_own_process(__file__, job)
            seconds = time.perf_counter() - begun
        announced = record["announced"] or ""
        rows.append((f"{size[1]}x{size[0]}", announced, f"{record['peak_bytes'] / 1e9:.2f}", f"{seconds:.0f}"))
        print(*rows[-1], file=sys.stderr)
    print(common.markdown(("picture", "announced, GB", "peak, GB", "seconds"), rows))


def synthesise(path: Path, megapixels: float) -> tuple[int, int]:
    """Write a noisy RGB picture of three to two; returns its height and width."""
    import numpy as np
    from PIL import Image

    height = round((megapixels * 1e6 / 1.5) ** 0.5)
    width = round(1.5 * height)
    picture, generator = Image.new("RGB", (width, height)), np.random.default_rng(0)
    for top in range(0, height, 64):
        rows, columns = np.mgrid[top : min(top + 64, height), :width] / 100
        waves = np.stack([np.sin(rows + i) * np.cos(columns - i) for i in range(3)], axis=2)
        band = 128 + 60 * waves + generator.normal(0, 25, waves.shape)
        picture.paste(Image.fromarray(np.rint(band).clip(0, 255).astype(np.uint8)), (0, top))
    picture.save(path, compress_level=1)
    return height, width


def run(picture: str, tile: int | None, width: int | None, *, patches: bool) -> dict[str, Any]:
    """Restore a picture in this process, as the command line does."""
    from dip_fast.cli import main
    from dip_fast.device import memory
    from dip_fast.fitting import similar_patches

    def left_out(y: Any, x: Any, noise: Any) -> Generator[None, int | None, Any]:
        yield from ()
        return x

    if not patches:
        similar_patches.estimate = left_out
    brief: dict[str, Any] = {"iterations": 3, "passes": 1} if tile is None else {"iterations": 1, "rounds": 0}
    brief |= {"consolidation": 1} | ({} if width is None else {"width": width})
    PRESETS.register("brief", PRESETS["default" if tile is None else "quick"].with_(**brief))
    options = ["--preset", "brief", "--out", f"{picture}-run", "--threads", "1"]
    options += [] if tile is None else ["--kernel", "gaussian:1.6", "--tile", str(tile)]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())):
        try:
            main(["run", picture, *options])
        except SystemExit as ended:
            if ended.code:
                raise SystemExit(said.getvalue()) from ended
    found = re.search(r"([\d.]+) GB of memory", said.getvalue())
    return {"announced": found and found[1], "peak_bytes": memory.peak_bytes()}


if __name__ == "__main__":
    main()
