"""Times models of other libraries, fused against plain: a forward pass, and one with gradients.

    python benchmarks/others.py                    # all models, at the sizes of their tests
    python benchmarks/others.py --scale 4 "smp Unet" Real-ESRGAN

Plain and fused take turns, and each time is the shortest of its rounds: what other programs on the machine take is in
none of them.  The bar is that no fused model takes more than 1.05 times as long; the exit code is 1 if one does.  The
libraries are those of requirements/models.txt.
"""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import replace
from typing import Any

import common
import other_models
import torch
from torch import nn

import dip_fast

BAR = 1.05


def seconds(model: nn.Module, inputs: tuple[Any, ...], *, gradients: bool) -> float:
    """Time one pass."""
    torch.manual_seed(2)
    begin = time.perf_counter()
    with torch.set_grad_enabled(gradients):
        output = other_models.first_tensor(model(*inputs))
        if gradients:
            output.square().mean().backward()
    taken = time.perf_counter() - begin
    model.zero_grad()
    return taken


def measure(name: str, scale: int, budget: float) -> list[object]:
    """Time a model, and return the row of a table."""
    other = other_models.MODELS[name]
    batch, channels, *sides = other.size
    other = replace(other, size=(batch, channels, *(scale * side for side in sides)))
    model, inputs = other.make(), other.inputs()
    fused = dip_fast.fuse(model)
    ran = len(dip_fast.fusion_report(model, *inputs).replaced)
    row: list[object] = [name, "x".join(map(str, other.size)), ran]
    for gradients in (False, True):
        plain_seconds: list[float] = []
        fused_seconds: list[float] = []
        end = time.perf_counter() + budget
        while len(plain_seconds) < 4 or time.perf_counter() < end:
            plain_seconds.append(seconds(model, inputs, gradients=gradients))
            fused_seconds.append(seconds(fused, inputs, gradients=gradients))
        row += [f"{min(plain_seconds[1:]):.4f} s", round(min(fused_seconds[1:]) / min(plain_seconds[1:]), 3)]
    return row


def main() -> None:
    """Time the models that are named on the command line."""
    parser = common.parser(__doc__)
    parser.add_argument("models", nargs="*", help="names of models; all of them, if none is named")
    parser.add_argument("--scale", type=int, default=1, help="multiplies the sides of the inputs")
    parser.add_argument("--seconds", type=float, default=2.0, help="the least time for each of both passes of a model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="print the names of the models")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(other_models.MODELS))
        return
    torch.set_num_threads(arguments.threads)
    other_models.declare_torchvision_operators()
    rows = []
    with warnings.catch_warnings(action="ignore"):
        for name in arguments.models or other_models.MODELS:
            rows.append(measure(name, arguments.scale, arguments.seconds))
            print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    head = ("model", "input", "pairs", "plain", "fused, of plain", "plain with gradients", "fused, of plain")
    print(common.markdown(head, rows))
    slower = [row for row in rows if any(isinstance(each, float) and each > BAR for each in row)]
    print(f"{len(slower)} of {len(rows)} models take more than {BAR} times as long")
    sys.exit(1 if slower else 0)


if __name__ == "__main__":
    main()
