"""How much faster the fused engine makes networks of the original notebooks, which no preset has.

    python benchmarks/notebook_networks.py --check

``kate`` fills in text with skip branches of 128 channels; ``restoration`` pools; ``library`` has no skip branches, and
kernels of 5x5 pixels on its way down.  Forward and backward of one picture, plain and fused in turns in one process,
medians; what either needs besides, as the optimiser, is not in it.  ``--check`` exits with 1 if one of them is not
twice as fast.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from typing import Any

import common

LEAST = 2.0  # times as fast as plain
KATE: dict[str, Any] = {"in_channels": 32, "down": 128, "up": 128, "skip": 128, "upsampling": "nearest"}
LIBRARY = (16, 32, 64, 128, 128, 128)
NETWORKS: dict[str, dict[str, Any]] = {
    "kate": KATE,
    "restoration": KATE | {"downsampling": "average", "upsampling": "bilinear"},
    "library": {"in_channels": 1, "down": LIBRARY, "up": LIBRARY, "skip": 0, "kernel_down": 5, "upsampling": "nearest"},
}
ENGINES = ("plain", "fused")


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--size", type=int, default=512, help="sides of the picture, in pixels")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--check", action="store_true", help="compare with the bar")
    options = parser.parse_args()
    print("| network | plain | fused | |")
    print("|---|---|---|---|")
    ratios = {name: measured(name, options) for name in options.networks}
    missed = [name for name, ratio in ratios.items() if ratio < LEAST]
    if options.check and missed:
        sys.exit(f"less than {LEAST:g} times as fast: {', '.join(missed)}")


def measured(name: str, options: argparse.Namespace) -> float:
    """Print the row of a network, and return how many times as fast its fused form is."""
    import torch

    from dip_fast.networks import Skip
    from dip_fast.ops.workspace import Workspace

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    network = Skip(out_channels=3, **NETWORKS[name])
    size = network.input_size(options.size, options.size)
    z, y = torch.rand(1, NETWORKS[name]["in_channels"], *size), torch.rand(1, 3, *size)
    kept = Workspace()  # of the fused engine, as in a fit
    seconds: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for _ in range(options.turns):
        for engine in ENGINES:
            network.use(engine)
            for _ in range(2):  # the second is measured
                began = time.perf_counter()
                network.zero_grad()
                (network(z) - y).square().mean().backward()
                taken = time.perf_counter() - began
            seconds[engine].append(taken)
    del kept
    plain, fused = (statistics.median(seconds[engine]) for engine in ENGINES)
    print(f"| {name}, {size[0]}x{size[1]} | {plain:.3g} s | {fused:.3g} s | {plain / fused:.2f}x |", flush=True)
    return plain / fused


if __name__ == "__main__":
    main()
