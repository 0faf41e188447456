"""The three floors under a fused step on a CPU: its multiplications, its traffic, and what it costs without either.

Each is measured in the same process.  The multiplications run at the rate of the micro-kernel itself, whose operands
stay in the first-level cache; the traffic at the bandwidth of a copy as large as the step's images, so of the memory or
the cache that these live in; what is left is the time of the same step with one channel.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import torch

from dip_fast.bench.configurations import CHANNELS
from dip_fast.bench.meters import Meter, in_turn, medians
from dip_fast.bench.operator_calls import calls_of_step
from dip_fast.bench.roofline import PRODUCTS_PER_3X3
from dip_fast.device.precision import is_stored_alone
from dip_fast.fitting import Fit
from dip_fast.ops import extension
from dip_fast.presets import Recipe

TILES = 20_000  # whose products are timed on each thread: 20 ms at 100 GFLOP/s
IDLE_SIZE = 64  # pixels: the least that five scales read


def idle_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe with one channel in place of many: as many operators, with next to nothing to do."""
    skip = min(1, recipe.network_options.get("skip", 1))
    narrow = recipe.with_(width=1, network_options={"skip": skip})
    return replace(narrow, in_channels=min(recipe.in_channels, CHANNELS))


def measure(fit: Fit, idle: Fit, steps: int, meter: Meter) -> dict[str, Any]:
    """Time the steps of a fit and its floors.

    Parameters
    ----------
    fit : Fit
        It advances by ``steps + 3`` steps.
    idle : Fit
        Of the recipe that `idle_recipe` makes, on a small picture; it advances by as many.
    steps : int
        The number of steps whose median is taken.
    meter : Meter

    Returns
    -------
    dict
        ``median_step_seconds``.  ``products``: ``flop`` of the fused form, forward and for both gradients,
        ``flop_per_second`` of the micro-kernel, and ``seconds``.  ``traffic``: ``bytes``, each tensor read or written
        once, ``bytes_per_second`` of a copy of ``image_bytes``, and ``seconds``.  ``dispatch``: ``operators`` of
        dip_fast, ``seconds`` of a step with one channel, and ``share`` of the step.  ``share_of_floor``: the larger of
        the first two over the step.
    """
    calls = calls_of_step(fit)
    flop = 2 * sum(count * call.multiplications(PRODUCTS_PER_3X3["cpu"])[0] for call, count in calls.items())
    nbytes = sum(count * call.nbytes for call, count in calls.items())
    images = sum(count * call.result_bytes for call, count in calls.items() if "grad" not in call.named)
    bandwidth = copy_bandwidth(images, meter)

    interface = extension.load()
    assert interface is not None  # the fit is fused

    in_16_bits = is_stored_alone(fit.precision, fit.device, fit.network) and fit.network.stores_images()

    def multiply() -> int:
        with fit.at_work():
            return interface.multiply(TILES, in_16_bits=in_16_bits)

    times = in_turn({"step": fit.step, "idle": idle.step, "products": multiply}, meter, runs=steps)
    step, dispatch, once = (statistics.median(times[name]) for name in ("step", "idle", "products"))
    rate = 2 * multiply() / once
    products, traffic = flop / rate, nbytes / bandwidth
    return {
        "median_step_seconds": step,
        "products": {"flop": flop, "flop_per_second": rate, "seconds": products},
        "traffic": {
            "bytes": nbytes, "image_bytes": images, "bytes_per_second": bandwidth, "seconds": traffic
        },
        "dispatch": {"operators": sum(calls.values()), "seconds": dispatch, "share": dispatch / step},
        "share_of_floor": max(products, traffic) / step,
    }  # fmt: skip


def copy_bandwidth(nbytes: int, meter: Meter) -> float:
    """Measure the bandwidth of a copy, read and written, whose source and target have so many bytes together."""
    source = torch.ones(max(1, nbytes // 2), dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * source.nbytes / medians({"copy": lambda: target.copy_(source)}, meter)["copy"]
