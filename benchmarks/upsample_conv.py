"""Time the operator against PyTorch's own layers: interpolate -> pad -> conv2d, eager and under torch.compile.

The engines take turns, so that a change in the machine's speed meets them all, and the medians are compared.  Large
freed blocks are kept by the allocator on every side (or page faults would be most of what is measured): the script
starts itself again with the environment that this needs.  A multiply-add counts as two operations, and those of the
operator are a quarter of the layers'.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import time
import warnings

ALLOCATOR = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=68719476736"}
PASSES = ("forward", "forward+backward")


def measure(functions, seconds):
    """Give each function's median time, in seconds, and the spread of its middle half, from runs in turn."""
    times = {name: [] for name in functions}
    for function in functions.values():
        function()
        function()
    start = time.perf_counter()
    while len(times[next(iter(times))]) < 5 or time.perf_counter() - start < seconds:
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - begin)
    quartiles = {name: statistics.quantiles(values, n=4) for name, values in times.items()}
    return {name: (q[1], q[2] - q[0]) for name, q in quartiles.items()}


def call(torch, function, leaves, grad):
    """Make the function that is timed: one pass of `function`."""
    if grad is None:

        def run():
            with torch.no_grad():
                function(*leaves)
    else:

        def run():
            torch.autograd.grad(function(*leaves), leaves, grad)

    return run


def records(torch, options):
    from dip_fast.ops import reference, upsample_conv2d

    for channels, size, mode in itertools.product(options.channels, options.sizes, options.modes):
        kind = dict(mode=mode, padding_mode=options.padding_mode)

        def plain(input, weight, bias, kind=kind):
            return reference.upsample_conv2d(input, weight, bias, **kind)

        def fused(input, weight, bias, kind=kind):
            return upsample_conv2d(input, weight, bias, **kind)

        engines = {"fused": fused, "plain": plain}
        if "compile" in options.engines:
            torch.compiler.reset()
            engines["compile"] = torch.compile(plain)
        shapes = (1, channels, size, size), (channels, channels, 3, 3), (channels,)
        leaves = [torch.randn(shape, requires_grad=True) for shape in shapes]
        for which in options.passes:
            grad = torch.randn(1, channels, 2 * size, 2 * size) if which == "forward+backward" else None
            functions = {name: call(torch, f, leaves, grad) for name, f in engines.items() if name in options.engines}
            for engine, (median, spread) in measure(functions, options.seconds).items():
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
                }


def products(torch, options):
    """Compare the nine products' rate in each pass, transforms included, with that of a large torch.mm."""
    from dip_fast.ops import upsample_conv2d

    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    C, H = 128, 128
    input, weight, bias = torch.randn(1, C, H, H), torch.randn(C, C, 3, 3), torch.randn(C)
    grad = torch.randn(1, C, 2 * H, 2 * H)
    kind = "nearest", options.padding_mode
    backward = torch.ops.dip_fast.upsample_conv2d_backward
    times = measure(
        {
            "torch.mm": lambda: torch.mm(a, b),
            "forward": lambda: upsample_conv2d(input, weight, bias, mode=kind[0], padding_mode=kind[1]),
            "data gradient": lambda: backward(grad, input, weight, *kind, [True, False, False]),
            "weight gradient": lambda: backward(grad, input, weight, *kind, [False, True, True]),
        },
        4 * options.seconds,
    )
    return {
        name: (2 * 2048**3 if name == "torch.mm" else 18 * C * C * H * H) / median / 1e9
        for name, (median, _) in times.items()
    }


def print_table(found):
    rows = {}
    for record in found:
        key = record["channels"], record["height"], record["mode"], record["pass"]
        rows.setdefault(key, {})[record["engine"]] = record["median_seconds"], record["spread_seconds"]
        if len(rows) == 1 and len(rows[key]) == 1:
            print(f"{'channels':>8} {'input':>9} {'mode':8} {'pass':16} {'fused ms':>15} {'plain ms':>15} {'ratio':>6}"
                  f" {'compile ms':>11} {'ratio':>6}")  # fmt: skip
    for (channels, size, mode, which), engines in rows.items():
        shown = f"{channels:8} {f'{size}x{size}':>9} {mode:8} {which:16}"
        for name in ("fused", "plain"):
            if name in engines:
                median, spread = engines[name]
                shown += f" {median * 1e3:8.2f} ±{spread * 5e2:5.2f}"
        for name in ("plain", "compile"):
            if name in engines and "fused" in engines:
                ratio = engines[name][0] / engines["fused"][0]
                shown += f" {ratio:5.2f}x" if name == "plain" else f" {engines[name][0] * 1e3:11.2f} {ratio:5.2f}x"
        print(shown)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print a list of records in place of a table")
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 32, 64, 128, 256], help="low-resolution inputs")
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--modes", nargs="+", default=["nearest", "bilinear"])
    parser.add_argument("--passes", nargs="+", default=list(PASSES), choices=PASSES)
    parser.add_argument("--engines", nargs="+", default=["fused", "plain", "compile"])
    parser.add_argument("--padding-mode", default="reflect")
    parser.add_argument("--threads", type=int, help="the number of CPUs unless given")
    parser.add_argument("--seconds", type=float, default=1.0, help="time spent on each line")
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)

    import torch

    from dip_fast.ops import extension

    torch.manual_seed(0)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    found = records(torch, options)
    if options.json:
        json.dump(list(found), sys.stdout, indent=1)
        print()
        return
    module = extension.load()
    kernels = module.cpu_level() if module is not None else "absent"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, kernels {kernels}, {options.padding_mode}")
    print_table(found)
    rates = products(torch, options)
    print("rates at 128 channels, 128x128, whole passes: "
          + ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items()))  # fmt: skip


if __name__ == "__main__":
    main()
