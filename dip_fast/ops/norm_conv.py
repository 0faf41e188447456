"""Convolutions that apply the batch norm and the activation before them while they read their input.

``dip_fast::norm_conv2d`` and ``dip_fast::norm_upsample_conv2d`` read an image as the convolution before them wrote it,
with the mean and the variance of each channel, and normalise and activate each value where they use it:

    y = conv(lrelu(gamma (x - mean) / sqrt(variance + eps) + beta)),  and the mean and the variance of y

They return their own output without a norm, with its statistics, for the next one.  So no normalised, activated,
padded, upsampled or concatenated image is kept, and each convolution's output is written once.  The statistics are
tensors, so autograd carries the gradient of the batch norm through them (csrc/autograd.cpp).
`dip_fast.ops.reference` defines both operators.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dip_fast.ops import extension, norm_layers

CONV = "dip_fast::norm_conv2d"
CONV_BACKWARD = "dip_fast::norm_conv2d_backward"
UPSAMPLE = "dip_fast::norm_upsample_conv2d"
UPSAMPLE_BACKWARD = "dip_fast::norm_upsample_conv2d_backward"


class _Stored(threading.local):
    """The dtype of outputs that are told none, see `stored_as`: each thread has its own."""

    def __init__(self) -> None:
        self.dtype: torch.dtype | None = None


_stored = _Stored()  # no ContextVar, at which torch.compile breaks the graph


def stored() -> torch.dtype | None:
    """Return the dtype of `stored_as`."""
    return _stored.dtype


@contextmanager
def stored_as(dtype: torch.dtype | None) -> Iterator[None]:
    """Let `norm_conv2d` and `norm_upsample_conv2d` write images of a dtype, where they are not told one.

    Parameters
    ----------
    dtype : dtype or None
        None stands for the dtype of the image that is read.
    """
    before, _stored.dtype = _stored.dtype, dtype
    try:
        yield
    finally:
        _stored.dtype = before


class NormedInput(NamedTuple):
    """An image as a convolution left it, with the batch norm that its reader applies before the activation.

    Attributes
    ----------
    tensor : Tensor, (1, C, H, W)
        The image, float32 or float64; or bfloat16, with parameters in float32.
    statistics : Tensor, (2, C), optional
        Mean and biased variance of each channel, float64; None for an image that is read as it is, without norm and
        activation.
    weight, bias : Tensor, (C,), optional
        The affine parameters of the batch norm.
    """

    tensor: Tensor
    statistics: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None


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
    """Apply batch norm, LeakyReLU and a convolution, with stride 1 or 2, and compute the statistics of the output.

    Parameters
    ----------
    image : NormedInput
        The input with its batch norm.
    weight : Tensor, (K, C, 1, 1) or (K, C, 3, 3)
        The taps, as in ``nn.Conv2d``; for 3x3 taps the image is padded by one pixel.
    bias : Tensor, (K,), optional
        Added to each output channel.  A batch norm that follows subtracts it again, and needs none.
    slope : float
        Slope of the LeakyReLU for negative values.
    eps : float
        Added to the variance.
    stride : {1, 2}
        Stride of the convolution; 2 with 3x3 taps only.
    padding_mode : {"zeros", "reflect", "replicate"}
        What surrounds the activated image.
    dtype : dtype, optional
        Of the output: that of `stored_as` by default, or else of the image.  On a CPU one of float32 and bfloat16 may
        be read and the other written; all is computed in float32, but that factors of products are rounded to bfloat16
        where that is written, if the kernels in use are those of ``avx512_bf16``.

    Returns
    -------
    output : Tensor, (1, K, H, W), or half the size, rounded up
        The convolved image, without a norm.
    statistics : Tensor, (2, K)
        Mean and biased variance of each channel of the output, float64.

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape does not fit.
    NotImplementedError
        If there are no kernels for the device; in the backward pass, if second derivatives are requested.

    Notes
    -----
    Convolutions with 3x3 taps and stride 1 use Winograd's F(2x2, 3x3).  There are first derivatives only.

    References
    ----------
    A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, arXiv 1509.09308.
    """
    dtype = dtype or _stored.dtype
    result = torch.ops.dip_fast.norm_conv2d(*image, weight, bias, slope, eps, stride, padding_mode, dtype)
    norm_layers.note(result, image, None, None, weight, bias, stride, padding_mode, dtype, slope, eps)
    return result


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
    """Upsample `deep` by two, concatenate it after `skip`, and apply a batch norm and a convolution.

    Both images are read through their own batch norm and activation first.

    Parameters
    ----------
    deep : NormedInput, (1, C, H, W)
        The image that is upsampled.
    skip : NormedInput, (1, S, 2H, 2W), optional
        The image beside it, of few channels: its convolution is direct.
    norm_weight, norm_bias : Tensor, (S + C,)
        The affine parameters of the batch norm between concatenation and convolution.
    weight : Tensor, (K, S + C, 3, 3)
        The taps, as in ``nn.Conv2d``, for the channels of `skip` first.
    bias : Tensor, (K,), optional
        Added to each output channel.
    slope : float
        Slope of the LeakyReLU before upsampling and concatenation, for negative values.
    eps : float
        Added to the variances of all three batch norms.
    mode : {"nearest", "bilinear"}
        How to upsample; bilinear is that of ``align_corners=False``.
    padding_mode : {"zeros", "reflect", "replicate"}
        What surrounds the normalised image.
    dtype : dtype, optional
        Of the output, as in `norm_conv2d`.

    Returns
    -------
    output : Tensor, (1, K, 2H, 2W)
        The convolved image, without a norm.
    statistics : Tensor, (2, K)
        Mean and biased variance of each channel of the output, float64.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As in `norm_conv2d`.

    Notes
    -----
    The upsampled image is never stored, see `upsample_conv2d`; its statistics are computed from the small one.  There
    are first derivatives only.
    """
    dtype = dtype or _stored.dtype
    result = torch.ops.dip_fast.norm_upsample_conv2d(
        *deep, *(skip or (None,) * 4), norm_weight, norm_bias, weight, bias, slope, eps, mode, padding_mode, dtype
    )
    norm = (norm_weight, norm_bias)
    norm_layers.note(result, deep, skip, norm, weight, bias, mode, padding_mode, dtype, slope, eps)
    return result


def _statistics(like: Tensor, channels: int) -> Tensor:
    """Allocate the statistics of an image."""
    return like.new_empty((2, channels), dtype=torch.float64)


def empty_image(like: Tensor, size: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Allocate an image in the layout that the kernels of its device write: channels last on a GPU."""
    layout = torch.channels_last if like.is_cuda else torch.contiguous_format
    return torch.empty(tuple(size), dtype=dtype or like.dtype, device=like.device, memory_format=layout)


def _check_devices(image: Tensor, *others: Tensor | None) -> None:
    """Refuse arguments on several devices, whichever of them PyTorch has chosen the kernel by."""
    for other in others:
        if other is not None and other.device != image.device:
            raise ValueError(f"all arguments must be on the device of the image, {image.device}, got {other.device}")


def _empty_like(image: Tensor) -> Tensor:
    return empty_image(image, image.shape) if image.dim() == 4 else torch.empty_like(image)


def _fake_conv(
    input: Tensor,
    statistics: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    slope: float,
    eps: float,
    stride: int,
    padding_mode: str,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    _check_devices(input, statistics, norm_weight, norm_bias, weight, bias)
    K = weight.shape[0]
    size = (-(-side // stride) for side in input.shape[2:])
    return empty_image(input, (1, K, *size), dtype), _statistics(input, K)


def _wanted(like: Tensor, shape: Any, wanted: bool) -> Tensor:
    """Allocate a gradient, empty if it is not wanted."""
    return like.new_empty(shape if wanted else (0,))


def _fake_conv_backward(
    grad: Tensor,
    grad_statistics: Tensor,
    output: Tensor,
    output_statistics: Tensor,
    input: Tensor,
    statistics: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight: Tensor,
    slope: float,
    eps: float,
    stride: int,
    padding_mode: str,
    mask: list[bool],
) -> tuple[Tensor, ...]:
    _check_devices(input, grad, grad_statistics, output, output_statistics, statistics, norm_weight, norm_bias, weight)
    norm_gradients = [
        torch.empty_like(t) if t is not None and mask[0] else input.new_empty(0)
        for t in (statistics, norm_weight, norm_bias)
    ]
    return (
        empty_image(input, input.shape) if mask[0] else input.new_empty(0),
        *norm_gradients,
        _wanted(weight, weight.shape, mask[1]),
        _wanted(weight, weight.shape[:1], mask[2]),
    )


def _fake_upsample(
    deep: Tensor,
    deep_statistics: Tensor | None,
    deep_weight: Tensor | None,
    deep_bias: Tensor | None,
    skip: Tensor | None,
    skip_statistics: Tensor | None,
    skip_weight: Tensor | None,
    skip_bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    slope: float,
    eps: float,
    mode: str,
    padding_mode: str,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    _check_devices(deep, deep_statistics, deep_weight, deep_bias, skip, skip_statistics, skip_weight, skip_bias)
    _check_devices(deep, norm_weight, norm_bias, weight, bias)
    K = weight.shape[0]
    return empty_image(deep, (1, K, 2 * deep.shape[2], 2 * deep.shape[3]), dtype), _statistics(deep, K)


def _fake_upsample_backward(
    grad: Tensor,
    grad_statistics: Tensor,
    output: Tensor,
    output_statistics: Tensor,
    deep: Tensor,
    deep_statistics: Tensor | None,
    deep_weight: Tensor | None,
    deep_bias: Tensor | None,
    skip: Tensor | None,
    skip_statistics: Tensor | None,
    skip_weight: Tensor | None,
    skip_bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    slope: float,
    eps: float,
    mode: str,
    padding_mode: str,
    with_bias: bool,
) -> list[Tensor]:
    tensors = (
        deep, deep_statistics, deep_weight, deep_bias, skip, skip_statistics, skip_weight, skip_bias, norm_weight,
        norm_bias,
    )  # fmt: skip
    _check_devices(deep, grad, grad_statistics, output, output_statistics, weight, *tensors)
    like = [deep.new_empty(0) if tensor is None else _empty_like(tensor) for tensor in tensors]
    return [*like, torch.empty_like(weight), _wanted(weight, weight.shape[:1], with_bias)]


if extension.load() is not None:  # without it the plain engine runs, as there is nothing that these would save
    torch.library.register_fake(CONV, _fake_conv)
    torch.library.register_fake(CONV_BACKWARD, _fake_conv_backward)
    torch.library.register_fake(UPSAMPLE, _fake_upsample)
    torch.library.register_fake(UPSAMPLE_BACKWARD, _fake_upsample_backward)
