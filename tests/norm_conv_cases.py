"""Layers, arguments and errors that the tests of the operators of whole layers share."""

from dataclasses import dataclass, replace

import pytest
import torch

from dip_fast.ops import NormedInput, reference

SLOPE, EPS = 0.2, 0.1  # eps so large that it counts, and that one pixel, whose variance is zero, is no special case
PARTS = ("", "_statistics", "_weight", "_bias")  # of a NormedInput


@dataclass(frozen=True)
class Layer:
    """A layer: one of the operators with its options; `mode` is that of the upsampling, if the layer has one."""

    taps: int = 3
    stride: int = 1
    mode: str = ""
    padding_mode: str = "zeros"

    def __str__(self):
        return f"{self.mode or f'{self.taps}x{self.taps}'}-stride{self.stride}-{self.padding_mode}"

    def output_size(self, H, W):
        return (2 * H, 2 * W) if self.mode else (-(-H // self.stride), -(-W // self.stride))


KINDS = [Layer(taps=1), Layer(), Layer(stride=2), Layer(mode="nearest"), Layer(mode="bilinear")]
PADDED = [replace(kind, padding_mode=mode) for kind in KINDS[1:] for mode in reference.PADDING_MODES]
REFLECTED = [replace(kind, padding_mode="reflect") for kind in KINDS]
kinds = pytest.mark.parametrize("layer", REFLECTED, ids=str)

MEDIUM = (9, 3, 10, 11, 12)
TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6}  # worst seen 1.3e-14 and 1.6e-6
# Direct convolutions of long sums, in another order; `test_rounds_as_well_as_pytorch` is the narrow one.
TOLERANCE_CUDA = {torch.float64: 1e-10, torch.float32: 1e-5}


def arguments(layer, shape, dtype=torch.float64, seed=0, *, plain=(), bias=True):
    """Draw tensors by name; the images named in `plain` have no statistics, and those without channels are left out."""
    C, S, K, H, W = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(size, dtype=dtype, generator=generator)

    def positive(*size):
        return 0.5 + torch.rand(size, dtype=dtype, generator=generator)

    tensors = {}
    images = {"image": (C, H, W), "skip": (S if layer.mode else 0, 2 * H, 2 * W)}
    for name, (channels, *sides) in images.items():
        if channels == 0:
            continue
        tensors[name] = normal(1, channels, *sides)
        if name not in plain:  # the operator does not check that they are the image's own
            statistics = torch.stack((0.3 * normal(channels), positive(channels))).double()
            parts = statistics, positive(channels), 0.3 * normal(channels)
            tensors |= {name + part: tensor for part, tensor in zip(PARTS[1:], parts, strict=True)}
    if layer.mode:
        C += S
        tensors |= {"norm_weight": positive(C), "norm_bias": 0.3 * normal(C)}
    tensors["weight"] = normal(K, C, layer.taps, layer.taps) / (layer.taps * C**0.5)
    if bias:
        tensors["bias"] = normal(K)
    return tensors


def on(device, tensors):
    """Copy tensors to a device, images in the layout of its kernels."""
    layout = torch.channels_last if device.type == "cuda" else torch.preserve_format
    return {
        name: tensor.to(device, memory_format=layout if name in ("image", "skip") else torch.preserve_format)
        for name, tensor in tensors.items()
    }


def gradient(layer, shape, seed=0):
    """Draw the weights of the output in the loss."""
    _, _, K, H, W = shape
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn((1, K, *layer.output_size(H, W)), dtype=torch.float64, generator=generator)


def call(module, layer, tensors, **changes):
    """Compute output and statistics, by the operators or by their definition."""
    image, skip = (NormedInput(*(tensors.get(name + part) for part in PARTS)) for name in ("image", "skip"))
    convolution = tensors["weight"], tensors.get("bias")
    options = {"slope": SLOPE, "eps": EPS, "padding_mode": layer.padding_mode, **changes}
    if not layer.mode:
        return module.norm_conv2d(image, *convolution, **({"stride": layer.stride} | options))
    norm = tensors["norm_weight"], tensors["norm_bias"]
    skip = None if skip.tensor is None else skip
    return module.norm_upsample_conv2d(image, skip, *norm, *convolution, **({"mode": layer.mode} | options))


# The loss is computed in float64, so that only the operators round.


def both(output, statistics, grad):
    """Weigh the output after a batch norm, and the output itself, without which no bias would have a gradient."""
    mean, variance = statistics[:, :, None, None]
    output = output.double()
    return (grad * ((output - mean) * torch.rsqrt(variance + EPS) + output)).sum()


def values_and_gradients(module, layer, tensors, grad, loss=both, wanted=None):
    """Compute output, statistics, and the gradients of all tensors or of those wanted, by name."""
    wanted = tensors if wanted is None else wanted
    leaves = {name: tensor.detach().requires_grad_(name in wanted) for name, tensor in tensors.items()}
    output, statistics = call(module, layer, leaves)
    gradients = torch.autograd.grad(loss(output, statistics, grad), [leaves[name] for name in wanted])
    named = {f"gradient of {name}": tensor for name, tensor in zip(wanted, gradients, strict=True)}
    return {"output": output.detach(), "statistics": statistics.detach(), **named}


def errors(got, wanted):
    """Compute the relative errors in the norm, by name.

    Gradients of all but images and weights are sums over pixels, in which much cancels: their errors are relative to
    the largest value that such a sum of the image's gradient can have.
    """
    assert got.keys() == wanted.keys()
    result = {}
    for name, tensor in wanted.items():
        assert got[name].shape == tensor.shape, name
        scale = tensor.norm()
        if name.startswith("gradient") and tensor.dim() < 4:
            image = wanted["gradient of skip" if "skip" in name else "gradient of image"]
            scale = image.norm() * image[0, 0].numel() ** 0.5
        result[name] = ((got[name].cpu().double() - tensor).norm() / scale.clamp_min(1)).item()
    return result


def assert_close(got, wanted, tolerance):
    found = errors(got, wanted)
    worst = max(found, key=found.get)
    assert found[worst] <= tolerance, f"{worst} is off by {found[worst]:.1e}"


def to_double(tensors):
    return {name: tensor.double() for name, tensor in tensors.items()}


def tolerance(device, dtype):
    return (TOLERANCE_CUDA if device.type == "cuda" else TOLERANCE)[dtype]
