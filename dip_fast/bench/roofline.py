"""How near the operators of a fused step come to what bounds them: the device's memory or its matrix products.

The ceilings are measured, in the same process: the bandwidth of a large copy, and the rate of ``torch.mm``.  An
operator must read each of its tensors once and write each result once, and make the multiplications of its form; it
takes at least as long as the slower of the two does at its ceiling, and its share is that time over its own.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dip_fast.bench.meters import Meter, medians
from dip_fast.device.precision import PRECISIONS, drawing, products
from dip_fast.fitting.loop import Fit
from dip_fast.ops import reference

SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices whose product gives the rate: from here on it grows no more
COPIED = {"cpu": 2**26, "cuda": 2**30}  # bytes that are copied: far more than caches hold
# Products for each pixel of a 3x3 convolution of stride 1: Winograd's F(2x2) on a CPU, all nine taps on a GPU.
OF_3X3 = {"cpu": 16 / 4, "cuda": 9.0}
OPERATOR = 128, 256  # channels and side of the input of the operator that is compared with PyTorch's layers


@dataclass(frozen=True)
class Ceilings:
    """What the device was measured to do.

    Attributes
    ----------
    bytes_per_second : float
        Of a copy, read and written.
    flop_per_second : dict of str to float
        Of ``torch.mm``, by precision.
    """

    bytes_per_second: float
    flop_per_second: dict[str, float]


@contextmanager
def trying_algorithms() -> Iterator[None]:
    """Let cuDNN try its algorithms for each shape and keep to the fastest, as who fits one shape would."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def ceilings(meter: Meter, device: torch.device) -> Ceilings:
    """Measure the bandwidth of a copy, and the rate of ``torch.mm`` in each precision that the device has."""
    source = torch.empty(COPIED[device.type], dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    copied = medians({"copy": lambda: target.copy_(source)}, meter)["copy"]
    side = SIDE[device.type]
    rates = {}
    for precision in PRECISIONS if device.type == "cuda" else PRECISIONS[:1]:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        # Not zeros: with less to switch the GPU draws less power, and keeps a higher clock.
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        with products(precision, device):
            seconds = medians({"mm": partial(torch.mm, a, b, out=torch.empty_like(a))}, meter)["mm"]
        rates[precision] = 2 * side**3 / seconds
    return Ceilings(2 * source.nbytes / copied, rates)


# --- the operators of a step --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Like:
    """What there is to know of a tensor but its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @staticmethod
    def of(value: Any) -> Any:
        """Describe a tensor; anything else stands for itself, lists as tuples."""
        if isinstance(value, Tensor):
            kept = torch.empty_like(value, device="meta")  # of its strides what a tensor without gaps can have
            return Like(tuple(kept.shape), kept.stride(), kept.dtype)
        return tuple(value) if isinstance(value, list) else value

    @property
    def nbytes(self) -> int:
        """Size of the tensor."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def draw(self, device: torch.device) -> Tensor:
        """Make one: normal where it is an image, positive where it may be a variance."""
        tensor = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device)
        if not tensor.is_floating_point():
            return tensor.zero_()
        return tensor.normal_() if tensor.dim() == 4 else tensor.uniform_(0.5, 1.5)


@dataclass(frozen=True)
class Call:
    """A call of an operator, apart from the values."""

    operator: torch._ops.OpOverload
    arguments: tuple[Any, ...]
    results: tuple[Any, ...]

    @property
    def named(self) -> dict[str, Any]:
        """Arguments by the names that the schema gives them."""
        return dict(zip((a.name for a in self.operator._schema.arguments), self.arguments, strict=False))

    @property
    def name(self) -> str:
        """Name of the operator, and the sizes of the largest image that it reads and of the weights."""
        given = self.named
        weight = given.pop("weight", None)
        images = [value for value in given.values() if isinstance(value, Like) and len(value.shape) == 4]
        shown = [max(images, key=lambda image: image.nbytes).shape[1:], *([] if weight is None else [weight.shape])]
        sizes = ["x".join(map(str, shape)) for shape in shown]
        return " ".join([self.operator.name().removeprefix("dip_fast::").split(".")[0], *sizes])

    @property
    def nbytes(self) -> int:
        """Bytes that must move: each tensor read or written once."""
        return sum(value.nbytes for value in (*self.arguments, *self.results) if isinstance(value, Like))

    def multiplications(self, of_3x3: float) -> tuple[float, float]:
        """Count the multiplications in the form of the design, and of the convolution itself.

        Forward, with C channels in (S of them beside the upsampled ones), K out, and per pixel written:

            1x1                   C K                         C K
            3x3                   `of_3x3` C K                9 C K
            3x3, stride 2         9 C K                       9 C K
            after upsampling      9/4 (C - S) K + 9 S K       9 C K        docs/notes/operator.md

        and as much again for each gradient that is wanted, of the image and of the weight.  (After upsampling the CUDA
        kernels make 4 in place of 9/4 forward, in float32 and of small images: docs/notes/cuda.md.)
        """
        given = self.named
        weight = given.get("weight")
        if weight is None:
            return 0.0, 0.0
        K, C, taps, _ = weight.shape
        backward = "grad" in given
        H, W = (given["grad"] if backward else self.results[0]).shape[2:]
        if "deep" in given or "upsample_conv2d" in self.operator.name():
            S = 0 if given.get("skip") is None else given["skip"].shape[1]
            form = 9 / 4 * (C - S) + 9 * S
        else:
            form = C * (of_3x3 if (taps, given["stride"]) == (3, 1) else taps**2)
        passes = sum(given.get("mask", (True, True))[:2]) if backward else 1
        return passes * K * H * W * form, passes * K * H * W * C * taps**2

    def prepared(self, device: torch.device) -> Callable[[], object]:
        """Make the call, with values of its own."""
        arguments = [value.draw(device) if isinstance(value, Like) else value for value in self.arguments]
        return lambda: self.operator(*arguments)


class Recorder(TorchDispatchMode):
    """While entered, keeps what operators of dip_fast are called with, forward and backward, on any device."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Take a call down and make it."""
        kwargs = kwargs or {}
        results = function(*args, **kwargs)
        if function.namespace == "dip_fast":
            rest = [kwargs.get(a.name, a.default_value) for a in function._schema.arguments[len(args) :]]
            given = tuple(map(Like.of, (*args, *rest)))
            many = results if isinstance(results, (tuple, list)) else (results,)
            self.calls.append(Call(function, given, tuple(map(Like.of, many))))
        return results


def record(fit: Fit) -> Counter[Call]:
    """Count the calls of the operators that a pass of the fit's network makes, forward and backward."""
    z = fit.z.tensor(fit.device)
    if fit.device.type == "cuda":
        z = z.contiguous(memory_format=torch.channels_last)
    if fit.precision == "bf16":
        z = z.bfloat16()
    with Recorder() as recorder:
        with drawing(fit.precision, fit.device):
            output = fit.network(z)
        torch.autograd.grad(output, list(fit.network.parameters()), torch.ones_like(output))
    return Counter(recorder.calls)


def judged(
    calls: Sequence[Call], seconds: float, ceiling: Ceilings, precision: str, device: torch.device
) -> dict[str, Any]:
    """Say how near calls that take so long together come to what bounds them."""
    times = {"memory": 0.0, "matrix": 0.0}
    moved, form, direct, bound = 0, 0.0, 0.0, 0.0
    for call in calls:
        in_form, directly = call.multiplications(OF_3X3[device.type])
        memory = call.nbytes / ceiling.bytes_per_second
        matrix = 2 * in_form / ceiling.flop_per_second[precision]
        times["memory"] += memory
        times["matrix"] += matrix
        bound += max(memory, matrix)
        moved += call.nbytes
        form += in_form
        direct += directly
    return {
        "seconds": seconds,
        "bytes": moved,
        "bytes_per_second": moved / seconds,
        "flop": 2 * form,
        "flop_per_second": 2 * form / seconds,
        "direct_flop_per_second": 2 * direct / seconds,
        "bound": max(times, key=lambda name: times[name]),
        "bound_seconds": bound,
        "share": bound / seconds,
    }


def step_seconds(fit: Fit, meter: Meter) -> float:
    """Time a step, as the mean of a batch that the fit makes as it does in a run."""

    def batch() -> None:
        end = fit.steps + meter.batch
        while fit.steps < end and not fit.events:
            fit.advance(end - fit.steps)

    return meter.seconds(batch) / meter.batch


def bound(
    function: Callable[[], object], seconds: float, ceiling: Ceilings, precision: str, device: torch.device
) -> dict[str, Any]:
    """Say how near a function that takes so long comes to what bounds the operators that it calls."""
    with Recorder() as recorder:
        function()
    return judged(recorder.calls, seconds, ceiling, precision, device)


def profile(fit: Fit, steps: int, meter: Meter) -> dict[str, Any]:
    """Measure the steps of a fused fit and each of its operators alone, against the ceilings of the device.

    Parameters
    ----------
    fit : Fit
        Goes on by ``steps + 2`` batches of steps.
    steps : int
        Batches of steps whose median is given.
    meter : Meter

    Returns
    -------
    dict
        ``median_step_seconds``; ``ceilings``: ``bytes_per_second`` and ``flop_per_second`` by precision; ``operators``,
        most time first, each with ``name``, ``calls`` a step and, of one call, what `judged` gives;
        ``operators_seconds``, the sum of their times; ``floor_seconds``, that of their bounds; ``share_of_floor``, this
        over the step; ``upsample_conv2d``, what `compare` gives.
    """
    taken = [step_seconds(fit, meter) for _ in range(2 + steps)]
    step = statistics.median(taken[2:])
    precision = fit.precision
    ceiling = ceilings(meter, fit.device)
    operators = []
    with products(precision, fit.device):
        for call, count in record(fit).items():
            seconds = medians({"call": call.prepared(fit.device)}, meter)["call"]
            found = judged([call], seconds, ceiling, precision, fit.device)
            operators.append({"name": call.name, "calls": count, **found})
    operators.sort(key=lambda operator: -operator["calls"] * operator["seconds"])
    floor = sum(operator["calls"] * operator["bound_seconds"] for operator in operators)
    return {
        "median_step_seconds": step,
        "ceilings": {"bytes_per_second": ceiling.bytes_per_second, "flop_per_second": ceiling.flop_per_second},
        "operators": operators,
        "operators_seconds": sum(operator["calls"] * operator["seconds"] for operator in operators),
        "floor_seconds": floor,
        "share_of_floor": floor / step,
        "upsample_conv2d": compare(fit.device, precision, ceiling, meter),
    }


# --- one operator against PyTorch's layers ------------------------------------------------------------------------


def compare(device: torch.device, precision: str, ceiling: Ceilings, meter: Meter) -> list[dict[str, Any]]:
    """Compare ``upsample_conv2d`` with interpolate, pad and conv2d, of `OPERATOR`'s size, forward and both passes.

    Returns
    -------
    list of dict
        For each mode and pass ``mode``, ``pass``, ``channels``, ``size`` (the side of the input), what `judged` gives
        for the operator, ``plain_seconds``, ``plain_channels_last_seconds``, and ``ratio`` of the faster of these two
        to the operator's.
    """
    channels, size = OPERATOR
    records = []
    for mode in reference.MODES:
        both = passes(channels, size, {"mode": mode, "padding_mode": "reflect"}, precision, device)
        with products(precision, device), trying_algorithms():
            for name, functions in both.items():
                times = medians(functions, meter)
                plain, last = times["plain"], times["plain-channels-last"]
                records.append(
                    {
                        "mode": mode,
                        "pass": name,
                        "channels": channels,
                        "size": size,
                        **bound(functions["fused"], times["fused"], ceiling, precision, device),
                        "plain_seconds": plain,
                        "plain_channels_last_seconds": last,
                        "ratio": min(plain, last) / times["fused"],
                    }
                )
    return records


def passes(
    channels: int,
    size: int,
    kind: Mapping[str, str],
    precision: str,
    device: torch.device,
    names: Sequence[str] = ("fused", "plain", "plain-channels-last"),
) -> dict[str, dict[str, Callable[[], object]]]:
    """Make the passes of the operator and of PyTorch's layers, by pass and engine, with values of their own.

    The engines are those of the names; a fourth is ``compile``, the layers under torch.compile.
    """
    from dip_fast.ops import upsample_conv2d  # here, since it loads or builds the extension

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return reference.upsample_conv2d(x, weight, bias, **kind)

    def fused(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return upsample_conv2d(x, weight, bias, **kind)

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    shapes = (1, channels, size, size), (channels, channels, 3, 3), (channels,), (1, channels, 2 * size, 2 * size)
    tensors = [torch.randn(shape, device=device).to(dtype) for shape in shapes]
    # The operator's images are channels_last on a GPU, its weights as a module has them.
    own = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    engines = {
        "fused": (fused, own),
        "plain": (plain, torch.contiguous_format),
        "plain-channels-last": (plain, torch.channels_last),
        "compile": (torch.compile(plain) if "compile" in names else plain, torch.contiguous_format),
    }
    made: dict[str, dict[str, Callable[[], object]]] = {"forward": {}, "forward+backward": {}}
    for name in names:
        function, layout = engines[name]
        x, weight, bias, grad = tensors
        leaves = [
            x.clone(memory_format=layout),
            weight.clone(memory_format=torch.contiguous_format if name == "fused" else layout),
            bias.clone(),
        ]
        grad = grad.clone(memory_format=layout)
        for leaf in leaves:
            leaf.requires_grad_()

        def forward(function: Any = function, leaves: list[Tensor] = leaves) -> object:
            with torch.no_grad():
                return function(*leaves)

        def backward(function: Any = function, leaves: list[Tensor] = leaves, grad: Tensor = grad) -> object:
            return torch.autograd.grad(function(*leaves), leaves, grad)

        made["forward"][name], made["forward+backward"][name] = forward, backward
    return made
