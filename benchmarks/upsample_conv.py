"""Time the operator against PyTorch's own layers: interpolate -> pad -> conv2d, eager and under torch.compile.

The engines take turns, so that a change in the machine's speed meets them all, and the medians are compared.  Large
freed blocks are kept by the allocator on every side (or page faults would be most of what is measured): the script
starts itself again with the environment that this needs.  A multiply-add counts as two operations, and those of the
operator are a quarter of the layers'.  On a GPU cuDNN tries its algorithms, each engine is timed as a graph of many
calls, and the operator stands beside what bounds it there.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import common

if TYPE_CHECKING:
    from dip_fast.bench.meters import Meter

ALLOCATOR = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=68719476736"}
PASSES = ("forward", "forward+backward")
LEAST_RUNS = 5


def measure(
    functions: Mapping[str, Callable[[], object]], seconds: float, meter: Meter
) -> dict[str, tuple[float, float]]:
    """Time functions in turn; return the median of each and the spread of its middle half, in seconds."""
    from dip_fast.bench.meters import in_turn

    times = in_turn(functions, meter, runs=LEAST_RUNS, seconds=seconds)
    quartiles = {name: statistics.quantiles(values, n=4) for name, values in times.items()}
    return {name: (q[1], q[2] - q[0]) for name, q in quartiles.items()}


def records(options: argparse.Namespace, meter: Meter) -> Iterator[dict[str, Any]]:
    """Measure each pass of each engine, for each shape and mode."""
    import torch

    from dip_fast.bench import operator_passes, roofline

    device = torch.device(options.device)
    ceilings = roofline.measure_ceilings(meter, device) if options.device == "cuda" else None
    for channels, size, mode in itertools.product(options.channels, options.sizes, options.modes):
        kind = {"mode": mode, "padding_mode": options.padding_mode}
        if "compile" in options.engines:
            torch.compiler.reset()
        functions = operator_passes.passes(channels, size, kind, options.precision, device, options.engines)
        for which in options.passes:
            found = measure(functions[which], options.seconds, meter)
            for engine, (median, spread) in found.items():
                rates = {}
                if ceilings and engine == "fused":
                    function = functions[which][engine]
                    rates = roofline.rates_of_function(function, median, ceilings, options.precision, device)
                yield {
                    "height": size,
                    "width": size,
                    "channels": channels,
                    "mode": mode,
                    "pass": which,
                    "engine": engine,
                    "median_seconds": median,
                    "spread_seconds": spread,
                    "threads": torch.get_num_threads(),
                    "device": options.device,
                    "precision": options.precision,
                    **rates,
                }


def product_rates(options: argparse.Namespace, meter: Meter) -> dict[str, float]:
    """Compare the nine products' rate in each pass, transforms included, with that of a large torch.mm, in GFLOP/s."""
    import torch

    from dip_fast.ops import upsample_conv2d

    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    C, H = 128, 128
    x, weight, bias = torch.randn(1, C, H, H), torch.randn(C, C, 3, 3), torch.randn(C)
    grad = torch.randn(1, C, 2 * H, 2 * H)
    kind = "nearest", options.padding_mode
    backward = torch.ops.dip_fast.upsample_conv2d_backward
    times = measure(
        {
            "torch.mm": lambda: torch.mm(a, b),
            "forward": lambda: upsample_conv2d(x, weight, bias, mode=kind[0], padding_mode=kind[1]),
            "data gradient": lambda: backward(grad, x, weight, *kind, [True, False, False]),
            "weight gradient": lambda: backward(grad, x, weight, *kind, [False, True, True]),
        },
        4 * options.seconds,
        meter,
    )
    return {
        name: (2 * 2048**3 if name == "torch.mm" else 18 * C * C * H * H) / median / 1e9
        for name, (median, _) in times.items()
    }


def print_table(found: Iterator[dict[str, Any]], names: list[str]) -> None:
    """Print the records as they come, the engines of a pass side by side."""
    rows: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for record in found:
        key = record["channels"], record["height"], record["mode"], record["pass"]
        rows.setdefault(key, {})[record["engine"]] = record
        if len(rows) == 1 and len(rows[key]) == 1:
            heads = "".join(f" {f'{name} ms':>22} {'ratio':>6}" for name in names)
            print(f"{'channels':>8} {'input':>9} {'mode':8} {'pass':16}{heads}")
    for (channels, size, mode, which), engines in rows.items():
        shown = f"{channels:8} {f'{size}x{size}':>9} {mode:8} {which:16}"
        for name in names:
            median, spread = engines[name]["median_seconds"], engines[name]["spread_seconds"]
            ratio = median / engines["fused"]["median_seconds"] if "fused" in engines else math.nan
            shown += f" {f'{median * 1e3:.3f} ±{spread * 5e2:.3f}':>22} {ratio:5.2f}x"
        fused = engines.get("fused", {})
        if "share" in fused:
            shown += (
                f"  {fused['bytes_per_second'] / 1e9:.0f} GB/s, {fused['flop_per_second'] / 1e12:.1f} TFLOP/s, "
                f"{fused['share']:.1%} of the {fused['bound']} bound"
            )
        print(shown)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--json", action="store_true", help="print a list of records in place of a table")
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 32, 64, 128, 256], help="low-resolution inputs")
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--modes", nargs="+", default=["nearest", "bilinear"])
    parser.add_argument("--passes", nargs="+", default=list(PASSES), choices=PASSES)
    parser.add_argument("--engines", nargs="+", default=["fused", "plain", "compile"],
                        choices=["fused", "plain", "plain-channels-last", "compile"])  # fmt: skip
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16"], help="tf32 on a GPU unless given, else fp32")
    parser.add_argument("--padding-mode", default="reflect")
    parser.add_argument("--threads", type=int, help="the number of CPUs unless given")
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent on each line")
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)

    options.precision = options.precision or ("tf32" if options.device == "cuda" else "fp32")
    options.engines = list(dict.fromkeys(options.engines))

    import torch

    from dip_fast.bench.meters import cudnn_autotuning, meter_for
    from dip_fast.device import devices, precision
    from dip_fast.errors import UsageError
    from dip_fast.ops import extension

    try:
        device = devices.choose(options.device)
    except UsageError as error:
        parser.error(str(error))
    meter = meter_for(device)
    torch.manual_seed(0)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    with precision.products(options.precision, device), cudnn_autotuning():
        found = records(options, meter)
        if options.json:
            common.print_json(list(found))
            return
        module = extension.load()
        kernels = module.cpu_level() if module is not None else "absent"
        where = f"{torch.get_num_threads()} threads, kernels {kernels}"
        if options.device == "cuda":
            where = f"{torch.cuda.get_device_name()}, {options.precision}"
        print(f"torch {torch.__version__}, {where}, {options.padding_mode}")
        print_table(found, options.engines)
    if options.device == "cpu":
        rates = product_rates(options, meter)
        print("rates at 128 channels, 128x128, whole passes: "
              + ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items()))  # fmt: skip


if __name__ == "__main__":
    main()
