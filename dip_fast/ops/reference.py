"""The definition of the operators in plain PyTorch, and the check of the arguments of ``upsample_conv2d``.

It runs where the extension is absent; the tests compare the kernels with it, in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from dip_fast.ops.norm_conv import NormedInput

MODES = ("nearest", "bilinear")
PADDING_MODES = ("zeros", "reflect", "replicate")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def output_shape(
    input: Tensor, weight: Tensor, bias: Tensor | None, mode: str, padding_mode: str
) -> tuple[int, int, int, int]:
    """Check the arguments of ``upsample_conv2d`` and compute the shape of its output.

    No data is read and symbolic sizes stay symbolic, so the reference, the wrapper and the fake kernel share it.

    Parameters
    ----------
    input, weight, bias, mode, padding_mode
        As in `upsample_conv2d`.

    Returns
    -------
    tuple of int
        (N, K, 2H, 2W).

    Raises
    ------
    TypeError
        If an argument is not a tensor, or of a dtype that is not supported or not that of the input.
    ValueError
        If a shape, a device, `mode` or `padding_mode` does not fit.
    """
    for name, tensor in (("input", input), ("weight", weight), ("bias", bias)):
        if not (isinstance(tensor, Tensor) or (name == "bias" and tensor is None)):
            raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {padding_mode!r}")

    if input.dtype not in DTYPES:
        raise TypeError(f"input must be of dtype {', '.join(map(_dtype_name, DTYPES))}, got {_dtype_name(input.dtype)}")
    _check_same_kind("weight", weight, input)
    if bias is not None:
        _check_same_kind("bias", bias, input)

    if input.dim() != 4 or not all(size >= 1 for size in input.shape[1:]):
        raise ValueError(f"input must be (N, C, H, W) with C, H, W >= 1, got {tuple(input.shape)}")
    N, C, H, W = input.shape
    if weight.dim() != 4 or weight.shape[0] < 1 or weight.shape[1:] != (C, 3, 3):
        raise ValueError(f"weight must be (K, C, 3, 3) with K >= 1 and C={C}, got {tuple(weight.shape)}")
    K = weight.shape[0]
    if bias is not None and bias.shape != (K,):
        raise ValueError(f"bias must be (K,) with K={K}, got {tuple(bias.shape)}")
    return N, K, 2 * H, 2 * W


def upsample_conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, mode: str = "nearest", padding_mode: str = "zeros"
) -> Tensor:
    """Upsample by two, pad by one pixel and convolve with 3x3 taps, with PyTorch's layers one after the other.

    Parameters
    ----------
    input : Tensor, (N, C, H, W)
        The low-resolution input; N may be 0, the others are at least 1.
    weight : Tensor, (K, C, 3, 3)
        The taps, as in ``nn.Conv2d``.
    bias : Tensor, (K,), optional
        Added to each output channel.
    mode : {"nearest", "bilinear"}
        How to upsample; bilinear is that of ``align_corners=False``.
    padding_mode : {"zeros", "reflect", "replicate"}
        What surrounds the upsampled image.  It can always be reflected, as it is at least 2x2.

    Returns
    -------
    Tensor, (N, K, 2H, 2W)
        The convolved image.

    Raises
    ------
    TypeError, ValueError
        If `output_shape` refuses the arguments.
    """
    output_shape(input, weight, bias, mode, padding_mode)
    return layers(input, weight, bias, mode, padding_mode)


def layers(input: Tensor, weight: Tensor, bias: Tensor | None, mode: str, padding_mode: str) -> Tensor:
    """Compute `upsample_conv2d` of arguments that were checked."""
    x = F.interpolate(input, scale_factor=2, mode=mode, align_corners=False if mode == "bilinear" else None)
    if padding_mode == "zeros":  # the convolution pads with zeros itself and saves a copy
        return F.conv2d(x, weight, bias, padding=1)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode=padding_mode), weight, bias)  # (N, K, 2H, 2W)


def upsample_conv2d_backward(
    grad: Tensor, input: Tensor, weight: Tensor, mode: str, padding_mode: str, mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of `upsample_conv2d` from that of its output, layer by layer.

    They are written out, as autograd cannot be used inside an operator.

    Parameters
    ----------
    grad : Tensor, (N, K, 2H, 2W)
        The gradient of the output.
    input, weight, mode, padding_mode
        As in `upsample_conv2d`.
    mask : list of bool
        Which gradients are wanted: those of input, weight and bias.

    Returns
    -------
    tuple of Tensor
        The gradients of input, weight and bias; one that is not wanted has shape (0,).
    """
    _, _, H, W = output_shape(input, weight, None, mode, padding_mode)
    aten = torch.ops.aten
    align_corners = False if mode == "bilinear" else None
    x = F.interpolate(input, scale_factor=2, mode=mode, align_corners=align_corners)
    padding = [1, 1] if padding_mode == "zeros" else [0, 0]
    padded = x if padding_mode == "zeros" else F.pad(x, (1, 1, 1, 1), mode=padding_mode)
    to_x, to_weight, to_bias = aten.convolution_backward(
        grad, padded, weight, [weight.shape[0]], [1, 1], padding, [1, 1], False, [0, 0], 1, mask
    )
    to_input = to_x
    if mask[0]:
        if padding_mode == "reflect":
            to_x = aten.reflection_pad2d_backward(to_x, x, [1, 1, 1, 1])
        elif padding_mode == "replicate":
            to_x = aten.replication_pad2d_backward(to_x, x, [1, 1, 1, 1])
        if mode == "nearest":
            to_input = aten.upsample_nearest2d_backward(to_x, [H, W], input.shape, 2.0, 2.0)
        else:
            to_input = aten.upsample_bilinear2d_backward(to_x, [H, W], input.shape, False, 2.0, 2.0)
    gradients = (to_input, to_weight, to_bias)
    return tuple(g if wanted else input.new_empty(0) for g, wanted in zip(gradients, mask, strict=True))  # type: ignore[return-value]


def activated(image: NormedInput, slope: float, eps: float) -> Tensor:
    """Normalise an image with its statistics and activate it; one without statistics stays as it is.

    An image of bfloat16 becomes one of float32.
    """
    tensor = image.tensor.to(torch.promote_types(image.tensor.dtype, torch.float32))
    if image.statistics is None or image.weight is None or image.bias is None:
        return tensor
    mean, variance = image.statistics.to(tensor.dtype)
    scale = image.weight * torch.rsqrt(variance + eps)
    return F.leaky_relu((tensor - mean[:, None, None]) * scale[:, None, None] + image.bias[:, None, None], slope)


def statistics(image: Tensor) -> Tensor:
    """Compute mean and biased variance of each channel of ``(1, C, H, W)``: ``(2, C)``, float64."""
    variance, mean = torch.var_mean(image.double(), (0, 2, 3), correction=0)
    return torch.stack((mean, variance))


def norm_conv2d(
    image: NormedInput,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    slope: float = 0.0,
    eps: float = 1e-5,
    stride: int = 1,
    padding_mode: str = "zeros",
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Define `dip_fast.ops.norm_conv.norm_conv2d`; its parameters are described there."""
    x = activated(image, slope, eps)
    if weight.shape[-1] == 3:
        x = _padded(x, padding_mode)
    output = F.conv2d(x, weight, bias, stride)
    return output.to(dtype or image.tensor.dtype), statistics(output)


def norm_upsample_conv2d(
    deep: NormedInput,
    skip: NormedInput | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    slope: float = 0.0,
    eps: float = 1e-5,
    mode: str = "nearest",
    padding_mode: str = "zeros",
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Define `dip_fast.ops.norm_conv.norm_upsample_conv2d`; its parameters are described there."""
    align_corners = False if mode == "bilinear" else None
    x = F.interpolate(activated(deep, slope, eps), scale_factor=2, mode=mode, align_corners=align_corners)
    if skip is not None:
        x = torch.cat((activated(skip, slope, eps), x), dim=1)
    x = F.batch_norm(x, None, None, norm_weight, norm_bias, training=True, eps=eps)
    output = F.conv2d(_padded(x, padding_mode), weight, bias)
    return output.to(dtype or deep.tensor.dtype), statistics(output)


def _padded(x: Tensor, padding_mode: str) -> Tensor:
    return F.pad(x, (1, 1, 1, 1), "constant" if padding_mode == "zeros" else padding_mode)


def _check_same_kind(name: str, tensor: Tensor, input: Tensor) -> None:
    """Check that a parameter has the dtype and the device of the input."""
    if tensor.dtype != input.dtype:
        raise TypeError(
            f"{name} must have the dtype of input, {_dtype_name(input.dtype)}, got {_dtype_name(tensor.dtype)}"
        )
    if tensor.device != input.device:
        raise ValueError(f"{name} must be on the device of input, {input.device}, got {tensor.device}")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
