"""The definition of the operators: which arguments it accepts, and its written-out gradients against autograd."""

from __future__ import annotations

import itertools
import re

import pytest
import torch

from dip_fast.ops import reference

KINDS = list(itertools.product(reference.MODES, reference.PADDING_MODES))


@pytest.mark.parametrize("dtype", reference.DTYPES)
@pytest.mark.parametrize(("mode", "padding_mode"), KINDS)
def test_shape_is_that_of_the_output(mode: str, padding_mode: str, dtype: torch.dtype) -> None:
    for N, H, W in [(0, 3, 4), (1, 1, 1), (3, 1, 5)]:
        x, weight = torch.ones(N, 2, H, W, dtype=dtype), torch.ones(6, 2, 3, 3, dtype=dtype)
        output = reference.upsample_conv2d(x, weight, None, mode, padding_mode)
        assert output.shape == reference.output_shape(x, weight, None, mode, padding_mode) == (N, 6, 2 * H, 2 * W)


@pytest.mark.parametrize("N", [0, 2])
@pytest.mark.parametrize(("mode", "padding_mode"), KINDS)
def test_gradients_are_those_of_autograd(mode: str, padding_mode: str, N: int) -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(*shape, dtype=torch.float64) for shape in ((N, 3, 1, 4), (5, 3, 3, 3), (5,))]
    x, weight, _ = leaves
    output = reference.upsample_conv2d(*(leaf.requires_grad_() for leaf in leaves), mode, padding_mode)
    grad = torch.randn_like(output)
    wanted = torch.autograd.grad(output, leaves, grad)
    for mask in itertools.product((True, False), repeat=3):
        with torch.no_grad():
            got = reference.upsample_conv2d_backward(grad, x, weight, mode, padding_mode, list(mask))
        for each, of_autograd, chosen in zip(got, wanted, mask, strict=True):
            torch.testing.assert_close(each, of_autograd if chosen else x.new_empty(0))


X, WEIGHT, BIAS = torch.ones(1, 2, 3, 4), torch.ones(5, 2, 3, 3), torch.ones(5)
REFUSED = {
    "list": (([1], WEIGHT, BIAS), TypeError, "input must be a Tensor, got list"),
    "bias": ((X, WEIGHT, 0), TypeError, "bias must be a Tensor, got int"),
    "integers": (
        (X.long(), WEIGHT, BIAS),
        TypeError,
        "input must be of dtype float32, float64, bfloat16, float16, got",
    ),
    "dtype": ((X, WEIGHT, BIAS.double()), TypeError, "bias must have the dtype of input, float32, got float64"),
    "device": ((X, WEIGHT.to("meta"), BIAS), ValueError, "weight must be on the device of input, cpu, got meta"),
    "image": ((X[0], WEIGHT, BIAS), ValueError, "input must be (N, C, H, W) with C, H, W >= 1, got (2, 3, 4)"),
    "empty": ((X[:, :, :0], WEIGHT, BIAS), ValueError, "with C, H, W >= 1, got (1, 2, 0, 4)"),
    "channels": ((X, WEIGHT[:, :1], BIAS), ValueError, "(K, C, 3, 3) with K >= 1 and C=2, got (5, 1, 3, 3)"),
    "taps": ((X, WEIGHT[..., :1], BIAS), ValueError, "(K, C, 3, 3) with K >= 1 and C=2, got (5, 2, 3, 1)"),
    "no output": ((X, WEIGHT[:0], None), ValueError, "(K, C, 3, 3) with K >= 1 and C=2, got (0, 2, 3, 3)"),
    "bias length": ((X, WEIGHT, BIAS[:4]), ValueError, "bias must be (K,) with K=5, got (4,)"),
    "mode": ((X, WEIGHT, BIAS, "cubic"), ValueError, "mode must be one of nearest, bilinear, got 'cubic'"),
    "padding": (
        (X, WEIGHT, BIAS, "nearest", "circular"),
        ValueError,
        "padding_mode must be one of zeros, reflect, replicate, got 'circular'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    arguments, error, message = REFUSED[name]
    with pytest.raises(error, match=re.escape(message)):
        reference.upsample_conv2d(*arguments)  # type: ignore[arg-type]
