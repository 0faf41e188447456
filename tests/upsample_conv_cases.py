"""Modes, arguments and errors that the tests of ``upsample_conv2d`` share."""

import itertools

import pytest
import torch

from dip_fast.ops import extension, reference, upsample_conv2d

KINDS = list(itertools.product(reference.MODES, reference.PADDING_MODES))
kinds = pytest.mark.parametrize(("mode", "padding_mode"), KINDS)
needs_extension = pytest.mark.skipif(extension.load() is None, reason="there is no compiled extension")


def arguments(shape, dtype=torch.float64, seed=0):
    N, C, K, H, W = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = (N, C, H, W), (K, C, 3, 3), (K,), (N, K, 2 * H, 2 * W)
    return [torch.randn(size, dtype=dtype, generator=generator) for size in sizes]


def on(device, tensors):
    """Copy tensors to a device, images in the layout of its kernels."""
    layout = torch.channels_last if device.type == "cuda" else torch.preserve_format
    return [
        tensor.to(device, memory_format=layout if tensor.dim() == 4 else torch.preserve_format) for tensor in tensors
    ]


def values_and_gradients(function, input, weight, bias, grad):
    leaves = [t.detach().requires_grad_() for t in (input, weight, bias)]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def fused(mode, padding_mode):
    return lambda x, w, b: upsample_conv2d(x, w, b, mode=mode, padding_mode=padding_mode)


def plain(mode, padding_mode):
    return lambda x, w, b: reference.upsample_conv2d(x, w, b, mode, padding_mode)


def relative_error(got, wanted):
    return ((got.cpu().double() - wanted).norm() / wanted.norm().clamp_min(1e-30)).item()


def assert_close(got, wanted, tolerance):
    for name, a, b in zip(("output", "grad_input", "grad_weight", "grad_bias"), got, wanted, strict=True):
        assert a.shape == b.shape, name
        assert relative_error(a, b) <= tolerance, f"{name}, worst at {(a.cpu().double() - b).abs().argmax().item()}"
