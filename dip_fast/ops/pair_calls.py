"""Runs one pair ``Upsample(x2) -> cat -> pad(1) -> Conv2d(3x3)`` in a rewritten graph, and notes which pairs ran."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format

from dip_fast.ops.transforms import is_transformed
from dip_fast.ops.upsample_conv import upsample_conv2d

# At exactly twice the size, nearest-exact takes the same pixels as nearest.
MODES = {"nearest": "nearest", "nearest-exact": "nearest", "bilinear": "bilinear"}

# Below so many pixels of the small images the layers are faster on a CPU.  Forward and backward, the operator takes 1.0
# to 1.8 times as long as they do at 8x8, 1.6 to 4 times at 4x4, and 0.3 to 0.8 times at 16x16 (16 to 512 channels).
# Beside a concatenation 16 channels take 0.9 to 1.2 times as long at any size, and 64 take 0.6 to 0.8.
# Measured on 2026-11-26 on one thread of an Intel Xeon (AVX-512), torch 2.13.0.
# 16 channels at 16x16 gain nothing inside of a model: what it saves is what the choice between the two takes.
MIN_PIXELS = 256
MIN_VALUES = 8192
MIN_CHANNELS_BESIDE_OTHERS = 32

# By the number of each pair that was called why it did not run as one operator, or "", while somebody asks for it.
ran: ContextVar[dict[int, str] | None] = ContextVar("ran", default=None)


def run_pair(
    x: Tensor,
    conv: nn.Conv2d | tuple[Tensor, Tensor | None, Any],
    mode: str,
    size: Any,
    padding_mode: str | None,
    upsample: nn.Module | None,
    pad: nn.Module | None,
    others: Sequence[Tensor] = (),
    position: int = 0,
    number: int | None = None,
) -> Tensor:
    """Upsample and convolve: as one operator if the input allows it, else one after the other.

    Parameters
    ----------
    x : Tensor
        The input of the upsampling.
    conv : nn.Conv2d, or tuple
        The convolution, or the weight, the bias and the padding of ``F.conv2d``.
    mode : str
        The mode of the interpolation, a key of `MODES`.
    size : int, sequence of int or None
        The size to interpolate to; None if the scale factor is 2.
    padding_mode : str or None
        The mode of the padding between the two; None if the convolution pads.
    upsample, pad : nn.Module or None
        The upsampling and the padding, where they are layers.
    others : sequence of Tensor
        What the upsampled image is concatenated with before it is convolved.
    position : int
        How many of them come before it.
    number : int, optional
        The number of the pair in `ran`.

    Returns
    -------
    Tensor, (N, K, 2H, 2W)
        The output of the convolution.
    """
    layer = conv if isinstance(conv, nn.Conv2d) else None
    weight, bias, padding = conv if not isinstance(conv, nn.Conv2d) else (conv.weight, conv.bias, 0)
    against = _against(x, size) or ("" if layer is not None and not others else _against_others(x, weight, others))
    if number is not None and not torch.compiler.is_compiling() and (reasons := ran.get()) is not None:
        reasons[number] = reasons.get(number, against) and against
    if not against:
        own_mode = "zeros" if layer is None else layer.padding_mode
        return _run(x, weight, bias, MODES[mode], padding_mode or own_mode, others, position)
    if upsample is not None:
        x = upsample(x)
    else:
        align_corners = False if mode == "bilinear" else None
        x = F.interpolate(x, size, None if size is not None else 2.0, mode, align_corners)
    if others:
        x = torch.cat([*others[:position], x, *others[position:]], 1)
    if pad is not None:
        x = pad(x)
    elif padding_mode is not None:
        x = _padded(x, padding_mode)
    return F.conv2d(x, weight, bias, padding=padding) if layer is None else layer(x)


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mode: str,
    padding_mode: str,
    others: Sequence[Tensor],
    position: int,
) -> Tensor:
    """Add the convolution of the upsampled channels, by the operator, to that of the others."""
    if not others:
        y = upsample_conv2d(x, weight, bias, mode=mode, padding_mode=padding_mode)
        # In the layout of a convolution's output, which the layers after it are fast in.
        return y.contiguous(memory_format=torch.channels_last) if _any_channels_last(x, weight) else y
    before = sum(other.shape[1] for other in others[:position])
    first, own, last = weight.split([before, x.shape[1], weight.shape[1] - before - x.shape[1]], 1)
    y = upsample_conv2d(x, own, bias, mode=mode, padding_mode=padding_mode)
    other = others[0] if len(others) == 1 else torch.cat(tuple(others), 1)
    taps = torch.cat((first, last), 1) if first.shape[1] and last.shape[1] else first if first.shape[1] else last
    if padding_mode == "zeros":
        rest = F.conv2d(other, taps, padding=1)
    else:
        rest = F.conv2d(_padded(other, padding_mode), taps)
    return rest.add_(y)  # in the layout of a convolution's output


def _padded(x: Tensor, padding_mode: str) -> Tensor:
    return F.pad(x, (1, 1, 1, 1), mode="constant" if padding_mode == "zeros" else padding_mode)


def _any_channels_last(*tensors: Tensor) -> bool:
    """Return whether a convolution of these writes channels last; `is_contiguous` ignores sides of one pixel."""
    found = [t for t in tensors if t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()]
    return any(torch.jit.is_tracing() or suggest_memory_format(t) == torch.channels_last for t in found)


def _against(x: Tensor, size: Any) -> str:
    """Return why the operator would not compute the same, or not be faster; "" if it would."""
    if x.dim() != 4 or is_transformed():
        return "its input is not of four dimensions" if x.dim() != 4 else "PyTorch has to see its own layers"
    if not _is_twice(x, size):
        return "its size is not twice that of its input"
    # What is compiled has to run for other sizes, too, and where it is traced no comparison is seen.
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if x.device.type == "cpu" and not tracing:
        pixels = x.shape[0] * x.shape[2] * x.shape[3]
        if pixels < MIN_PIXELS or pixels * x.shape[1] < MIN_VALUES:
            return "the image is too small to gain from it"
    return ""


def _against_others(x: Tensor, weight: Tensor, others: Sequence[Tensor]) -> str:
    """Do the same for shapes that were not known when the graph was traced."""
    if torch.jit.is_tracing():
        return "torch.jit.trace does not see its conditions"
    batch, channels, height, width = x.shape
    fits = (
        weight.shape[2:] == (3, 3)
        and all(t.dim() == 4 and t.dtype == x.dtype and t.shape[0] == batch for t in others)
        and all(t.shape[2] == 2 * height and t.shape[3] == 2 * width for t in others)
        and weight.shape[1] == channels + sum(t.shape[1] for t in others)
    )
    if not fits:
        return "the shapes or dtypes do not fit"
    if others and channels < MIN_CHANNELS_BESIDE_OTHERS and x.device.type == "cpu":
        return "it has too few channels to gain beside what it is concatenated with"
    return ""


def _is_twice(x: Tensor, size: Any) -> bool:
    if size is None:
        return True
    height, width = (size, size) if isinstance(size, int) else size
    return height == 2 * x.shape[2] and width == 2 * x.shape[3]
