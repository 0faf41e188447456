"""Formulas by which ``torch.utils.flop_counter`` counts the operators: as it counts the layers that they stand for.

So a model has one number, fused or not; the multiplications that a fused operator saves are not taken off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula

from dip_fast.ops import extension
from dip_fast.ops.norm_conv import CONV, CONV_BACKWARD, UPSAMPLE, UPSAMPLE_BACKWARD
from dip_fast.ops.upsample_conv import BACKWARD, FORWARD

Shape = Sequence[int]


def _convolution(weight: Shape, output: Shape) -> int:
    """Count a multiplication and an addition for each tap of each value of the output."""
    batch, channels, height, width = output
    inputs, *taps = weight[1:]
    return 2 * batch * channels * height * width * inputs * taps[0] * taps[1]


def _upsample_conv2d(input: Shape, weight: Shape, *rest: Any, out_shape: Shape, **options: Any) -> int:
    return _convolution(weight, out_shape)


def _upsample_conv2d_backward(
    grad: Shape, input: Shape, weight: Shape, mode: str, padding_mode: str, mask: Sequence[bool], **options: Any
) -> int:
    return (mask[0] + mask[1]) * _convolution(weight, grad)


def _norm_conv2d(
    input: Shape, statistics: Any, norm_weight: Any, norm_bias: Any, weight: Shape, *rest: Any, out_shape: Any, **_: Any
) -> int:
    return _convolution(weight, out_shape[0])


def _norm_conv2d_backward(grad: Shape, *rest: Any, **options: Any) -> int:
    weight, mask = rest[7], rest[12]
    return (mask[0] + mask[1]) * _convolution(weight, grad)


def _norm_upsample_conv2d(*arguments: Any, out_shape: Any, **options: Any) -> int:
    return _convolution(arguments[10], out_shape[0])


def _norm_upsample_conv2d_backward(grad: Shape, *rest: Any, **options: Any) -> int:
    return 2 * _convolution(rest[13], grad)


FORMULAS: dict[str, Any] = {FORWARD: _upsample_conv2d, BACKWARD: _upsample_conv2d_backward}
if extension.load() is not None:
    FORMULAS |= {
        CONV: _norm_conv2d,
        CONV_BACKWARD: _norm_conv2d_backward,
        UPSAMPLE: _norm_upsample_conv2d,
        UPSAMPLE_BACKWARD: _norm_upsample_conv2d_backward,
    }
for name, formula in FORMULAS.items():
    operator = getattr(torch.ops.dip_fast, name.removeprefix("dip_fast::"))
    if operator not in flop_registry:
        register_flop_formula(operator)(formula)
