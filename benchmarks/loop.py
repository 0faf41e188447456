"""Time of what a step does besides the network: each part of the loop, by the functions that `Fit.step` calls.

    python benchmarks/loop.py [--presets quick paper] [--size 512] [--threads 2] [--step]

Median and least of 25 calls after three, in milliseconds; what is not done at each step is given as its share of one.
With --step, whole steps as well, and the parts as a share of them.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from dip_fast.device.memory import keep_memory
from dip_fast.fitting import Fit, prepare
from dip_fast.fitting.degradations import Identity, Mask
from dip_fast.fitting.loop import KEEP_EVERY
from dip_fast.fitting.stopping import Variance
from dip_fast.ops import perturb
from dip_fast.presets import PRESETS
from dip_fast.runs import reporting

SNAPSHOT_EVERY = 100  # the default of dip-fast run


def milliseconds(part: Callable[[], object], calls: int = 25, each: int = 1) -> torch.Tensor:
    """Median and least time of a part that is done once in so many steps."""
    seconds = []
    for _ in range(calls + 3):
        begin = time.perf_counter()
        part()
        seconds.append(time.perf_counter() - begin)
    return 1e3 / each * torch.tensor([statistics.median(seconds[3:]), min(seconds[3:])])


def parts(fit: Fit, mask: Mask) -> dict[str, torch.Tensor]:
    """Time each part, of a fit that has made a step."""
    x = fit.iterate.clone().requires_grad_()
    steps = fit._steps
    gradients = [torch.full_like(parameter, 1e-6) for parameter in steps.adam.parameters]
    one, rate, takes = torch.tensor(1.0), torch.tensor(1e-6, dtype=torch.float64), torch.tensor(True)
    known = Variance(*(rate for _ in Variance._fields))

    def compare(degradation: Identity | Mask) -> None:
        term = degradation.data_term(x)
        term.item()
        term.backward()
        x.grad = None

    def preview() -> bytes:
        return reporting.preview(fit.iterate[0].permute(1, 2, 0).cpu().numpy())

    measured = {
        "perturbation": milliseconds(lambda: perturb(steps.codes, 0.03, 1, 2, steps.denominator)),
        "loss and its gradient": milliseconds(lambda: compare(fit.degradation)),
        "optimiser": milliseconds(lambda: steps.adam.update(gradients, one, rate, None)),
        "averages": milliseconds(lambda: steps.take_into_averages(rate)),
        "stopping statistic": milliseconds(
            lambda: steps.variance.update(fit.iterate, rate, (rate, rate), known, takes)
        ),
        "best averages": milliseconds(lambda: steps.best.copy_(steps.average)),
        f"state, 1 step in {KEEP_EVERY}": milliseconds(fit.state, 5, KEEP_EVERY),
        f"snapshot, 1 step in {SNAPSHOT_EVERY}": milliseconds(preview, 3, SNAPSHOT_EVERY),
    }
    measured["together"] = torch.stack([*measured.values()]).sum(0)
    measured["(loss of a mask)"] = milliseconds(lambda: compare(mask))
    measured["(PSNR, with a reference)"] = milliseconds(steps.error)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["quick", "paper"])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--step", action="store_true")
    options = parser.parse_args()
    keep_memory()
    torch.set_num_threads(options.threads)
    size = options.size, options.size
    picture = torch.rand(1, 3, *size)
    mask = Mask(picture, torch.rand(1, 1, *size) < 0.5)

    columns = {}
    for name in options.presets:
        fit = prepare(Identity(picture), PRESETS[name].recipe, reference=picture)
        fit.step()
        columns[name] = parts(fit, mask)
        if options.step:
            columns[name]["whole step"] = milliseconds(fit.step, 3)
            columns[name]["together, of it, %"] = 100 * columns[name]["together"] / columns[name]["whole step"]
    print(f"{options.size}x{options.size}, {options.threads} threads, torch {torch.__version__}; median and least, ms")
    print(f"{'':28}" + "".join(f"{name:>18}" for name in columns))
    for part in next(iter(columns.values())):
        print(f"{part:28}" + "".join("{:10.2f}{:8.2f}".format(*column[part].tolist()) for column in columns.values()))


if __name__ == "__main__":
    main()
