"""The calls of operators that a step makes, without their values: what they move, and what they multiply."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dip_fast.fitting import Fit


@dataclass(frozen=True)
class TensorSpec:
    """The shape, strides and dtype of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """The size of the tensor."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def random(self, device: torch.device) -> Tensor:
        """Make such a tensor: normal where it is an image, positive where it may be a variance."""
        tensor = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device)
        if not tensor.is_floating_point():
            return tensor.zero_()
        return tensor.normal_() if tensor.dim() == 4 else tensor.uniform_(0.5, 1.5)


def describe(value: Any) -> Any:
    """Replace a tensor by its `TensorSpec` and a list by a tuple; return anything else as it is."""
    if isinstance(value, Tensor):
        dense = torch.empty_like(value, device="meta")  # keeps the strides that a tensor without gaps can have
        return TensorSpec(tuple(dense.shape), dense.stride(), dense.dtype)
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Call:
    """A call of an operator, with a `TensorSpec` for each tensor."""

    operator: torch._ops.OpOverload
    arguments: tuple[Any, ...]
    results: tuple[Any, ...]

    @property
    def named(self) -> dict[str, Any]:
        """The arguments, by the names that the schema has for them."""
        return dict(zip((a.name for a in self.operator._schema.arguments), self.arguments, strict=False))

    @property
    def name(self) -> str:
        """The name of the operator, with the sizes of the largest image that it reads and of the weights."""
        named = self.named
        weight = named.pop("weight", None)
        images = [value for value in named.values() if isinstance(value, TensorSpec) and len(value.shape) == 4]
        shown = [max(images, key=lambda image: image.nbytes).shape[1:], *([] if weight is None else [weight.shape])]
        sizes = ["x".join(map(str, shape)) for shape in shown]
        return " ".join([self.operator.name().removeprefix("dip_fast::").split(".")[0], *sizes])

    @property
    def nbytes(self) -> int:
        """The bytes that must move: each tensor is read or written once."""
        return sum(value.nbytes for value in (*self.arguments, *self.results) if isinstance(value, TensorSpec))

    @property
    def result_bytes(self) -> int:
        """The bytes of the results alone."""
        return sum(value.nbytes for value in self.results if isinstance(value, TensorSpec))

    def multiplications(self, per_3x3: float) -> tuple[float, float]:
        """Count the multiplications of the fused form, and of the convolution computed directly.

        Forward, with C channels in (S of them beside the upsampled ones), K out, and per pixel written:

            1x1                   C K                         C K
            3x3                   `per_3x3` C K               9 C K
            3x3, stride 2         9 C K                       9 C K
            after upsampling      9/4 (C - S) K + 9 S K       9 C K        docs/notes/operator.md
            after nearest         the S channels as 3x3

        and as much again for each gradient that is asked for, of the image and of the weight.  (After upsampling the
        CUDA kernels make 4 in place of 9/4 forward, in float32 and of small images: docs/notes/cuda.md.)
        """
        named = self.named
        weight = named.get("weight")
        if weight is None:
            return 0.0, 0.0
        K, C, taps, _ = weight.shape
        backward = "grad" in named
        H, W = (named["grad"] if backward else self.results[0]).shape[2:]
        if "deep" in named or "upsample_conv2d" in self.operator.name():
            S = 0 if named.get("skip") is None else named["skip"].shape[1]
            form = 9 / 4 * (C - S) + S * (per_3x3 if named["mode"] == "nearest" else 9)
        else:
            form = C * (per_3x3 if (taps, named["stride"]) == (3, 1) else taps**2)
        passes = sum(named.get("mask", (True, True))[:2]) if backward else 1
        return passes * K * H * W * form, passes * K * H * W * C * taps**2

    def with_random_values(self, device: torch.device) -> Callable[[], object]:
        """Return a function that makes the call, on random tensors."""
        arguments = [value.random(device) if isinstance(value, TensorSpec) else value for value in self.arguments]
        return lambda: self.operator(*arguments)


class Recorder(TorchDispatchMode):
    """A mode that records the calls of dip_fast's operators, forward and backward, on any device.

    Attributes
    ----------
    calls : list of Call
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make a call and record it."""
        kwargs = kwargs or {}
        results = function(*args, **kwargs)
        if function.namespace == "dip_fast":
            rest = [kwargs.get(a.name, a.default_value) for a in function._schema.arguments[len(args) :]]
            arguments = tuple(map(describe, (*args, *rest)))
            several = results if isinstance(results, (tuple, list)) else (results,)
            self.calls.append(Call(function, arguments, tuple(map(describe, several))))
        return results


def calls_of_step(fit: Fit) -> Counter[Call]:
    """Count the operator calls of one forward and backward pass of a fit's network; the fit stays as it was."""
    z = fit.z.tensor(fit.device)
    if fit.device.type == "cuda":
        z = z.contiguous(memory_format=torch.channels_last)
    with Recorder() as recorder:
        output = fit.problem.draw(z)
        torch.autograd.grad(output, list(fit.network.parameters()), torch.ones_like(output))
    return Counter(recorder.calls)
