"""How near the operators of a fused step come to what bounds them: the device's memory or its matrix products.

The ceilings are measured, in the same process: the bandwidth of a large copy, and the rate of ``torch.mm``.  An
operator must read each of its tensors once and write each result once, and make the multiplications of its form; it
takes at least as long as the slower of the two does at its ceiling, and its share is that time over its own.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from dip_fast.bench.meters import Meter, cudnn_autotuning, medians, step_seconds
from dip_fast.bench.operator_calls import Call, Recorder, calls_of_step
from dip_fast.bench.operator_passes import passes
from dip_fast.device.precision import PRECISIONS, products
from dip_fast.fitting import Fit
from dip_fast.ops import reference

MATRIX_SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices whose product is timed: larger ones are no faster
COPIED_BYTES = {"cpu": 2**26, "cuda": 2**30}  # far more than caches hold
# Products for each pixel of a 3x3 convolution of stride 1: Winograd's F(2x2) on a CPU, all nine taps on a GPU.
PRODUCTS_PER_3X3 = {"cpu": 16 / 4, "cuda": 9.0}
COMPARED_OPERATOR = 128, 256  # channels and side of the input of the operator that is compared with PyTorch's layers
WARM_UP_BATCHES = 2


@dataclass(frozen=True)
class Ceilings:
    """The measured limits of a device.

    Attributes
    ----------
    bytes_per_second : float
        The bandwidth of a copy, read and written.
    flop_per_second : dict of str to float
        The rate of ``torch.mm``, by precision.
    """

    bytes_per_second: float
    flop_per_second: dict[str, float]


def measure_ceilings(meter: Meter, device: torch.device) -> Ceilings:
    """Measure the bandwidth of a copy, and the rate of ``torch.mm`` in each precision that the device has."""
    source = torch.empty(COPIED_BYTES[device.type], dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    copied = medians({"copy": lambda: target.copy_(source)}, meter)["copy"]
    side = MATRIX_SIDE[device.type]
    rates = {}
    for precision in PRECISIONS if device.type == "cuda" else PRECISIONS[:1]:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        # Not zeros: with less to switch the GPU draws less power, and keeps a higher clock.
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        with products(precision, device):
            seconds = medians({"mm": partial(torch.mm, a, b, out=torch.empty_like(a))}, meter)["mm"]
        rates[precision] = 2 * side**3 / seconds
    return Ceilings(2 * source.nbytes / copied, rates)


def rates_of_calls(
    calls: Sequence[Call], seconds: float, ceilings: Ceilings, precision: str, device: torch.device
) -> dict[str, Any]:
    """Compare calls with the ceilings.

    Parameters
    ----------
    calls : sequence of Call
    seconds : float
        The time that all of them take, one after the other.
    ceilings : Ceilings
    precision : str
    device : device

    Returns
    -------
    dict
        ``seconds``; ``bytes`` and ``bytes_per_second``; ``flop`` and ``flop_per_second`` of the fused form;
        ``direct_flop_per_second``, the rate as if the convolution were computed directly; ``bound``, which of
        ``memory`` and ``matrix`` takes longer at its ceiling; ``bound_seconds``, that time; ``share``, it over
        ``seconds``.
    """
    times = {"memory": 0.0, "matrix": 0.0}
    moved, fused, direct, bound = 0, 0.0, 0.0, 0.0
    for call in calls:
        in_fused_form, directly = call.multiplications(PRODUCTS_PER_3X3[device.type])
        memory = call.nbytes / ceilings.bytes_per_second
        matrix = 2 * in_fused_form / ceilings.flop_per_second[precision]
        times["memory"] += memory
        times["matrix"] += matrix
        bound += max(memory, matrix)
        moved += call.nbytes
        fused += in_fused_form
        direct += directly
    return {
        "seconds": seconds,
        "bytes": moved,
        "bytes_per_second": moved / seconds,
        "flop": 2 * fused,
        "flop_per_second": 2 * fused / seconds,
        "direct_flop_per_second": 2 * direct / seconds,
        "bound": max(times, key=lambda name: times[name]),
        "bound_seconds": bound,
        "share": bound / seconds,
    }


def rates_of_function(
    function: Callable[[], object], seconds: float, ceilings: Ceilings, precision: str, device: torch.device
) -> dict[str, Any]:
    """Call a function that takes so many seconds, and compare its operators with the ceilings."""
    with Recorder() as recorder:
        function()
    return rates_of_calls(recorder.calls, seconds, ceilings, precision, device)


def profile(fit: Fit, steps: int, meter: Meter) -> dict[str, Any]:
    """Time the steps of a fused fit and each of its operators alone, and compare them with the device's ceilings.

    Parameters
    ----------
    fit : Fit
        It advances by ``steps + 2`` batches of steps.
    steps : int
        The number of batches of steps whose median is taken.
    meter : Meter

    Returns
    -------
    dict
        ``median_step_seconds``; ``ceilings``: ``bytes_per_second`` and ``flop_per_second`` by precision; ``operators``,
        most time first, each with ``name``, ``calls`` a step and, for one call, what `rates_of_calls` returns;
        ``operators_seconds``, the sum of their times; ``floor_seconds``, the sum of their bounds; ``share_of_floor``,
        the floor over the step; ``upsample_conv2d``, the records of `compare_operator`.
    """
    times = [step_seconds(fit, meter) for _ in range(WARM_UP_BATCHES + steps)]
    step = statistics.median(times[WARM_UP_BATCHES:])
    precision = fit.precision
    ceilings = measure_ceilings(meter, fit.device)
    operators = []
    with products(precision, fit.device):
        for call, count in calls_of_step(fit).items():
            seconds = medians({"call": call.with_random_values(fit.device)}, meter)["call"]
            rates = rates_of_calls([call], seconds, ceilings, precision, fit.device)
            operators.append({"name": call.name, "calls": count, **rates})
    operators.sort(key=lambda operator: -operator["calls"] * operator["seconds"])
    floor = sum(operator["calls"] * operator["bound_seconds"] for operator in operators)
    return {
        "median_step_seconds": step,
        "ceilings": asdict(ceilings),
        "operators": operators,
        "operators_seconds": sum(operator["calls"] * operator["seconds"] for operator in operators),
        "floor_seconds": floor,
        "share_of_floor": floor / step,
        "upsample_conv2d": compare_operator(fit.device, precision, ceilings, meter),
    }


def compare_operator(device: torch.device, precision: str, ceilings: Ceilings, meter: Meter) -> list[dict[str, Any]]:
    """Compare ``upsample_conv2d`` with PyTorch's layers and with the ceilings.

    Returns
    -------
    list of dict
        For each mode and pass ``mode``, ``pass``, ``channels``, ``size`` (the side of the input), what `rates_of_calls`
        returns for the operator, ``plain_seconds``, ``plain_channels_last_seconds``, and ``ratio`` of the faster of
        these two to the operator's time.
    """
    channels, size = COMPARED_OPERATOR
    records = []
    for mode in reference.MODES:
        functions = passes(channels, size, {"mode": mode, "padding_mode": "reflect"}, precision, device)
        with products(precision, device), cudnn_autotuning():
            for which, by_engine in functions.items():
                seconds = medians(by_engine, meter)
                plain, plain_channels_last = seconds["plain"], seconds["plain-channels-last"]
                records.append(
                    {
                        "mode": mode,
                        "pass": which,
                        "channels": channels,
                        "size": size,
                        **rates_of_function(by_engine["fused"], seconds["fused"], ceilings, precision, device),
                        "plain_seconds": plain,
                        "plain_channels_last_seconds": plain_channels_last,
                        "ratio": min(plain, plain_channels_last) / seconds["fused"],
                    }
                )
    return records
