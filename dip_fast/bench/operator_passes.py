"""The upsampling convolution and PyTorch's layers for the same function, ready to be timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dip_fast.ops import reference

PASSES = ("forward", "forward+backward")
ENGINES = ("fused", "plain", "plain-channels-last", "compile")
Function = Callable[[], object]


def passes(
    channels: int,
    size: int,
    options: Mapping[str, str],
    precision: str,
    device: torch.device,
    engines: Sequence[str] = ("fused", "plain", "plain-channels-last"),
) -> dict[str, dict[str, Function]]:
    """Make functions that compute the passes of the operator and of PyTorch's layers, on random tensors.

    Parameters
    ----------
    channels : int
        The channels of input and output.
    size : int
        The side of the square input, in pixels.
    options : mapping
        ``mode`` and ``padding_mode`` of the operator.
    precision : {"fp32", "tf32", "bf16"}
    device : device
    engines : sequence of str
        Names of `ENGINES`: the operator, interpolate, pad and conv2d in two layouts, and these under torch.compile.

    Returns
    -------
    dict of str to dict of str to callable
        By pass, one of `PASSES`, and engine.
    """
    from dip_fast.ops import upsample_conv2d  # here, since it loads or builds the extension

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return reference.upsample_conv2d(x, weight, bias, **options)

    def fused(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return upsample_conv2d(x, weight, bias, **options)

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    shapes = (1, channels, size, size), (channels, channels, 3, 3), (channels,), (1, channels, 2 * size, 2 * size)
    x, weight, bias, grad = (torch.randn(shape, device=device).to(dtype) for shape in shapes)
    # The operator's images are channels_last on a GPU, its weights contiguous, as a module's.
    fused_layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    functions: dict[str, tuple[Callable[..., Tensor], torch.memory_format]] = {
        "fused": (fused, fused_layout),
        "plain": (plain, torch.contiguous_format),
        "plain-channels-last": (plain, torch.channels_last),
        "compile": (torch.compile(plain) if "compile" in engines else plain, torch.contiguous_format),
    }
    made: dict[str, dict[str, Function]] = {which: {} for which in PASSES}
    for name in engines:
        function, layout = functions[name]
        inputs = [
            x.clone(memory_format=layout),
            weight.clone(memory_format=torch.contiguous_format if name == "fused" else layout),
            bias.clone(),
        ]
        pair = _forward_and_backward(function, inputs, grad.clone(memory_format=layout))
        made["forward"][name], made["forward+backward"][name] = pair
    return made


def _forward_and_backward(
    function: Callable[..., Any], inputs: list[Tensor], grad: Tensor
) -> tuple[Function, Function]:
    """Make the forward pass, and the forward pass followed by the gradients of all inputs."""
    for tensor in inputs:
        tensor.requires_grad_()

    def forward() -> object:
        with torch.no_grad():
            return function(*inputs)

    def forward_and_backward() -> object:
        return torch.autograd.grad(function(*inputs), inputs, grad)

    return forward, forward_and_backward
