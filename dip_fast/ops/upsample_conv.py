"""The operator ``dip_fast::upsample_conv2d``: the function to call, its fake kernel and its gradients.

The kernels are compiled (csrc/); without them the same operators are defined here and run `dip_fast.ops.reference`.
The operator is linear in its input and in its weight, so its derivatives of any order are sums of itself and of
``dip_fast::upsample_conv2d_backward``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._library.autograd import Info, make_autograd_impl

from dip_fast.ops import extension, reference
from dip_fast.ops.norm_conv import empty_image
from dip_fast.ops.transforms import is_transformed

FORWARD = "dip_fast::upsample_conv2d"
BACKWARD = "dip_fast::upsample_conv2d_backward"
KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}  # of PyTorch's dispatcher, by device


def upsample_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mode: str = "nearest",
    padding_mode: str = "zeros",
) -> Tensor:
    """Upsample by two, pad by one pixel and convolve with 3x3 taps, in a quarter of the multiplications.

    Parameters
    ----------
    input : Tensor, (N, C, H, W)
        The low-resolution input; N may be 0, the others are at least 1.  Computed fast in float32, correctly in
        float64; bfloat16 and float16 are computed in float32.
    weight : Tensor, (K, C, 3, 3)
        The taps, as in ``nn.Conv2d``.
    bias : Tensor, (K,), optional
        Added to each output channel.
    mode : {"nearest", "bilinear"}
        How to upsample; bilinear is that of ``align_corners=False``.
    padding_mode : {"zeros", "reflect", "replicate"}
        What surrounds the upsampled image.

    Returns
    -------
    Tensor, (N, K, 2H, 2W)
        The convolved image, contiguous; on a GPU, channels last.

    Raises
    ------
    TypeError
        If a dtype does not fit.
    ValueError
        If a shape, `mode` or `padding_mode` does not fit.
    NotImplementedError
        If there is no kernel for the input's device.

    Notes
    -----
    The result is ``conv2d(pad(interpolate(input, scale_factor=2, mode=mode), (1, 1, 1, 1), padding_mode), weight,
    bias)`` up to rounding.  It does not depend on the number of threads.

    These layers themselves run under the transforms of ``torch.func``, with forward-mode derivatives, and while
    ``torch.onnx.export`` traces: all of them go by PyTorch's own rules there.  Autocast casts the arguments as it casts
    those of a convolution.

    Examples
    --------
    >>> y = upsample_conv2d(torch.ones(1, 2, 4, 4), torch.ones(3, 2, 3, 3), padding_mode="reflect")
    >>> y.shape
    torch.Size([1, 3, 8, 8])
    """
    device = input.device.type if isinstance(input, Tensor) else ""
    if device in KEYS and torch.is_autocast_enabled(device):
        return _autocast(input, weight, bias, mode, padding_mode)
    if not torch.jit.is_tracing():  # it warns of every comparison; the operator itself checks too
        reference.output_shape(input, weight, bias, mode, padding_mode)
    if is_transformed() or torch.onnx.is_in_onnx_export():
        return reference.layers(input, weight, bias, mode, padding_mode)
    return torch.ops.dip_fast.upsample_conv2d(input, weight, bias, mode, padding_mode)


def _autocast(input: Tensor, weight: Tensor, bias: Tensor | None, mode: str, padding_mode: str) -> Tensor:
    """Cast the arguments to autocast's dtype, as those of a convolution are, and call the operator outside of it."""
    device = input.device.type
    dtype = torch.get_autocast_dtype(device)

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor

    with torch.autocast(device, enabled=False):
        bias = None if bias is None else cast(bias)
        return upsample_conv2d(cast(input), cast(weight), bias, mode=mode, padding_mode=padding_mode)


def _fake(input: Tensor, weight: Tensor, bias: Tensor | None, mode: str, padding_mode: str) -> Tensor:
    return empty_image(input, reference.output_shape(input, weight, bias, mode, padding_mode))


def _fake_backward(
    grad: Tensor, input: Tensor, weight: Tensor, mode: str, padding_mode: str, mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    reference.output_shape(input, weight, None, mode, padding_mode)
    nothing = input.new_empty(0)
    return (
        empty_image(input, input.shape) if mask[0] else nothing,
        weight.new_empty(weight.shape if mask[1] else (0,)),
        weight.new_empty(weight.shape[:1] if mask[2] else (0,)),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, _, ctx.mode, ctx.padding_mode = inputs
    if not ctx.needs_input_grad[1]:  # only the shape of the input is needed, not its memory
        input = input.new_empty(()).expand(input.shape)
    ctx.save_for_backward(input, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    mask = list(ctx.needs_input_grad[:3])
    gradients = torch.ops.dip_fast.upsample_conv2d_backward(grad, *ctx.saved_tensors, ctx.mode, ctx.padding_mode, mask)
    return (*(g if wanted else None for g, wanted in zip(gradients, mask, strict=True)), None, None)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad, input, weight, ctx.mode, ctx.padding_mode, ctx.mask = inputs
    ctx.save_for_backward(grad, input, weight)


def _second_backward(ctx: Any, for_input: Tensor, for_weight: Tensor, for_bias: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the three gradients: g -> A(w)* g, B(x)* g and the sum of g, with y = A(w) x = B(x) w."""
    grad, input, weight = ctx.saved_tensors
    kind = ctx.mode, ctx.padding_mode
    forward, backward = torch.ops.dip_fast.upsample_conv2d, torch.ops.dip_fast.upsample_conv2d_backward
    to_grad = to_input = to_weight = None
    if ctx.needs_input_grad[0]:
        to_grad = torch.zeros_like(grad)
        if ctx.mask[0]:
            to_grad = to_grad + forward(for_input, weight, None, *kind)
        if ctx.mask[1]:
            to_grad = to_grad + forward(input, for_weight, None, *kind)
        if ctx.mask[2]:
            to_grad = to_grad + for_bias[:, None, None]
    if ctx.needs_input_grad[1] and ctx.mask[1]:
        to_input = backward(grad, input, for_weight, *kind, [True, False, False])[0]
    if ctx.needs_input_grad[2] and ctx.mask[0]:
        to_weight = backward(grad, for_input, weight, *kind, [False, True, False])[1]
    return to_grad, to_input, to_weight, None, None, None


def _register_derivatives(
    name: str, backward: Callable[..., Any], save: Callable[..., Any], layers: Callable[..., Any]
) -> None:
    """Register the backward pass of an operator, and its layers for forward mode and for the transforms.

    There `torch.library.register_autograd` drops the tangents without a word, or raises an error.  It registers what
    `make_autograd_impl` returns.
    """
    operator = name.partition("::")[2]
    backward_only = make_autograd_impl(getattr(torch.ops.dip_fast, operator).default, Info(backward, save))

    def differentiable(keys: Any, *args: Any) -> Any:
        return layers(*args) if is_transformed() else backward_only(keys, *args)

    _library.impl(operator, differentiable, "Autograd", with_keyset=True)


def _define() -> None:
    """Define the operators in Python, through the reference, with the schemas of csrc/schema.cpp."""
    torch.library.define(FORWARD, "(Tensor input, Tensor weight, Tensor? bias, str mode, str padding_mode) -> Tensor")
    torch.library.define(
        BACKWARD,
        "(Tensor grad, Tensor input, Tensor weight, str mode, str padding_mode, bool[3] mask)"
        " -> (Tensor, Tensor, Tensor)",
    )
    torch.library.impl(FORWARD, "default", reference.upsample_conv2d)
    torch.library.impl(BACKWARD, "default", reference.upsample_conv2d_backward)


if extension.load() is None:
    _define()
torch.library.register_fake(FORWARD, _fake)
torch.library.register_fake(BACKWARD, _fake_backward)
_library = torch.library.Library("dip_fast", "FRAGMENT")  # its registrations last as long as it does
_register_derivatives(FORWARD, _backward, _save, reference.upsample_conv2d)
_register_derivatives(BACKWARD, _second_backward, _save_backward, reference.upsample_conv2d_backward)
for key in KEYS.values():
    _library.impl("upsample_conv2d", _autocast, key)
