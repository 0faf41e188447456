"""Time of what a step does besides the network: each part of the loop, by the functions that a step calls.

    python benchmarks/loop.py [--presets quick paper] [--size 512] [--threads 2] [--step]

Median and least of 25 calls after three, in milliseconds; what is not done at each step is given as its share of one.
With --step, whole steps as well, and the parts as a share of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace

import common
import torch

from dip_fast.device.memory import keep_memory
from dip_fast.fitting import Fit, Identity, Mask, prepare
from dip_fast.fitting.loop import KEEP_EVERY
from dip_fast.fitting.steps import FitSteps
from dip_fast.fitting.stopping import Variance
from dip_fast.presets import PRESETS
from dip_fast.runs import reporting

SNAPSHOT_EVERY = 100  # the default of dip-fast run
WARM_UP_CALLS = 3


def milliseconds(part: Callable[[], object], calls: int, every: int = 1) -> torch.Tensor:
    """Return median and least time of a part that is done once in so many steps."""
    seconds = common.seconds_of_calls(part, calls, WARM_UP_CALLS)
    return 1e3 / every * torch.tensor([statistics.median(seconds), min(seconds)])


def parts(fit: Fit, mask: Mask, calls: int) -> dict[str, torch.Tensor]:
    """Time each part of a step; the fit has made one, and cannot go on afterwards."""
    few = min(calls, 5)
    state = milliseconds(fit.state, few, KEEP_EVERY)
    objective, iterate = fit.objective, fit.iterate.clone()
    steps = FitSteps(fit.problem, replace(fit.options, stop="auto"), reads_are_free=True)
    steps.iterate.copy_(iterate)
    x, number = iterate.clone().requires_grad_(), torch.tensor(1)
    example = objective.example(number)
    gradients = [torch.full_like(parameter, 1e-6) for parameter in steps.adam.parameters]
    one, rate, yes = torch.tensor(1.0), torch.tensor(1e-6, dtype=torch.float64), torch.tensor(True)
    known = Variance(*(rate for _ in Variance._fields))

    def compare(loss: Callable[[], torch.Tensor]) -> None:
        term = loss()
        term.item()
        term.backward()
        x.grad = None

    def preview() -> bytes:
        return reporting.preview(common.to_image(iterate))

    measured = {
        "perturbation": milliseconds(lambda: objective.example(number), calls),
        "loss and its gradient": milliseconds(lambda: compare(lambda: objective.loss(x, example)), calls),
        "optimiser": milliseconds(lambda: steps.adam.update(gradients, one, rate, None), calls),
        "averages": milliseconds(lambda: steps.average_in(rate), calls),
        "stopping statistic": milliseconds(
            lambda: steps.variance.update(iterate, rate, (rate, rate), known, yes), calls
        ),
        "best averages": milliseconds(lambda: steps.best.copy_(steps.average), calls),
        f"state, 1 step in {KEEP_EVERY}": state,
        f"snapshot, 1 step in {SNAPSHOT_EVERY}": milliseconds(preview, few, SNAPSHOT_EVERY),
    }
    measured["sum"] = torch.stack([*measured.values()]).sum(0)
    measured["(loss of a mask)"] = milliseconds(lambda: compare(lambda: mask.data_term(x)), calls)
    measured["(PSNR, with a reference)"] = milliseconds(steps.error, calls)
    return measured


def main() -> None:
    parser = common.parser(__doc__)
    with_iterates = [name for name, preset in PRESETS.items() if preset.recipe.masking is None]
    parser.add_argument("--presets", nargs="+", choices=with_iterates, default=["quick", "paper"])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calls", type=int, default=25)
    parser.add_argument("--step", action="store_true")
    options = parser.parse_args()
    keep_memory()
    torch.set_num_threads(options.threads)
    size = options.size, options.size
    image = torch.rand(1, 3, *size)
    mask = Mask(image, torch.rand(1, 1, *size) < 0.5)

    columns = {}
    for name in options.presets:
        fit = prepare(Identity(image), PRESETS[name].recipe, reference=image)
        fit.step()
        whole = milliseconds(fit.step, min(options.calls, 3)) if options.step else None
        columns[name] = parts(fit, mask, options.calls)
        if whole is not None:
            columns[name]["whole step"] = whole
            columns[name]["sum, of it, %"] = 100 * columns[name]["sum"] / whole
    print(f"{options.size}x{options.size}, {options.threads} threads, torch {torch.__version__}; median and least, ms")
    print(f"{'':28}" + "".join(f"{name:>18}" for name in columns))
    for part in next(iter(columns.values())):
        print(f"{part:28}" + "".join("{:10.2f}{:8.2f}".format(*column[part].tolist()) for column in columns.values()))


if __name__ == "__main__":
    main()
