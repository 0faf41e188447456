"""Folding: a fitted network at its input becomes a program of plain layers, batch norm gone.

Batch norm here normalises with the statistics of the one image that the network draws.  At the one input z they are
constants, so each is an affine map of every channel, ``y = s x + t`` with ``s = weight / sqrt(variance + epsilon)``
and ``t = bias - s mean``, and can be moved into a convolution:

    before it:  s (w * x + b) + t    = (s w) * x + (s b + t)
    after it:   w * (s x + t) + b    = (w s) * x + (b + sum over the taps of w t)

The second holds where the convolution does not pad, or pads with values of x itself: a zero beside ``s x + t`` is no
zero beside x.  There, and behind a maximum, the affine map stays as a layer of its own.  Upsampling and the average of
four pixels commute with it, as their weights sum to 1.

The statistics are those of the folded layers' own output, so that rounding does not add up along the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dip_fast.networks import Decoder, Hourglass, Skip
from dip_fast.networks.decoder import Layer as DecoderLayer
from dip_fast.networks.hourglass import NEGATIVE_SLOPE
from dip_fast.networks.layers import Block
from dip_fast.networks.network_input import NetworkInput
from dip_fast.networks.skip import Scale
from dip_fast.programs.drawing import compute
from dip_fast.programs.program import INPUT, Layer, Program


@dataclass
class _Value:
    """An intermediate image: what the layer ``name`` draws, and the affine map of it that is still to be placed."""

    name: str
    tensor: Tensor  # (1, C, H, W)
    scale: Tensor | None = None  # (C,), float64
    shift: Tensor | None = None

    def actual(self) -> Tensor:
        """With the affine map."""
        if self.scale is None or self.shift is None:
            return self.tensor
        return self.tensor * _per_channel(self.scale) + _per_channel(self.shift)


class _Folder:
    """Walks along a network at z: computes each layer and writes it down."""

    def __init__(self, z: Tensor) -> None:
        self.z = z
        self.layers: dict[str, Layer] = {}
        self.arrays: dict[str, Tensor] = {}

    def layer(self, kind: str, name: str, *values: _Value, **options: Any) -> _Value:
        """Add a layer; an affine map that is still to be placed becomes a layer before it."""
        placed = [self.place(value) for value in values]
        layer = Layer(kind, name, tuple(value.name for value in placed), options)
        self.layers[name] = layer
        arrays = (self.arrays.get(f"{name}.weight"), self.arrays.get(f"{name}.bias"))
        return _Value(name, compute(layer, [value.tensor for value in placed], *arrays))

    def place(self, value: _Value) -> _Value:
        """Write down the affine map of a value as a layer."""
        if value.scale is None or value.shift is None:
            return value
        name = f"{value.name}.norm"
        self.arrays[f"{name}.weight"] = _per_channel(value.scale)[0].float()
        self.arrays[f"{name}.bias"] = _per_channel(value.shift)[0].float()
        return self.layer("affine", name, _Value(value.name, value.tensor))

    def conv(self, value: _Value, conv: nn.Conv2d, name: str) -> _Value:
        """Add a convolution of a network's own."""
        options = {"stride": conv.stride[0], "padding": int(conv.padding[0]), "padding_mode": conv.padding_mode}
        return self.weighted("conv", value, conv.weight, conv.bias, name, **options)

    def weighted(
        self, kind: str, value: _Value, weight: Tensor, bias: Tensor | None, name: str, **options: Any
    ) -> _Value:
        """Add a convolution of some kind, the affine map of its input moved into it where that is exact."""
        weight = weight.detach().double()
        bias = torch.zeros(weight.shape[0], dtype=torch.float64) if bias is None else bias.detach().double()
        pads = kind != "conv" or options["padding"] > 0
        if value.scale is not None and value.shift is not None and not (pads and options["padding_mode"] == "zeros"):
            bias = bias + torch.einsum("kcij,c->k", weight, value.shift)
            weight = weight * value.scale[:, None, None]
            value = _Value(value.name, value.tensor)
        self.arrays[f"{name}.weight"], self.arrays[f"{name}.bias"] = weight.float(), bias.float()
        return self.layer(kind, name, value, **options)

    def transposed(self, value: _Value, conv: nn.ConvTranspose2d, name: str) -> _Value:
        """Add a transposed convolution; no network has one behind a batch norm whose map is not placed."""
        assert conv.bias is not None
        self.arrays[f"{name}.weight"], self.arrays[f"{name}.bias"] = conv.weight.detach(), conv.bias.detach()
        return self.layer("conv_transpose", name, value)

    def norm(self, value: _Value, norm: nn.BatchNorm2d) -> _Value:
        """Freeze a batch norm's statistics and move it into what came before, or leave it to what comes."""
        mean, variance = _statistics(value.tensor)
        scale = norm.weight.detach().double() / torch.sqrt(variance + norm.eps)
        shift = norm.bias.detach().double() - scale * mean
        if self.takes(value.name):
            self.absorb(value.name, scale, shift)
            return _Value(value.name, value.tensor * _per_channel(scale).float() + _per_channel(shift).float())
        return _Value(value.name, value.tensor, scale, shift)

    def takes(self, name: str) -> bool:
        """Whether an affine map of a layer's output can be moved into it.

        Each such layer has no other reader: a network's convolutions are read by what follows in their block alone.
        """
        layer = self.layers.get(name)
        if layer is None:
            return False
        if layer.kind in ("average_pool", "add", "concat"):
            return all(self.takes(given) for given in layer.inputs)
        return layer.kind in ("conv", "conv_transpose", "upsample_conv2d")

    def absorb(self, name: str, scale: Tensor, shift: Tensor) -> None:
        """Move an affine map into the layer before it."""
        layer = self.layers[name]
        if layer.kind == "average_pool":
            self.absorb(layer.inputs[0], scale, shift)
        elif layer.kind == "add":
            self.absorb(layer.inputs[0], scale, shift)
            self.absorb(layer.inputs[1], scale, torch.zeros_like(shift))
        elif layer.kind == "concat":
            counts = [self.arrays[f"{given}.bias"].numel() for given in layer.inputs]
            for given, part, own in zip(layer.inputs, scale.split(counts), shift.split(counts), strict=True):
                self.absorb(given, part, own)
        else:
            weight, bias = self.arrays[f"{name}.weight"].double(), self.arrays[f"{name}.bias"].double()
            outputs_first = (-1, 1, 1, 1) if layer.kind != "conv_transpose" else (1, -1, 1, 1)
            self.arrays[f"{name}.weight"] = (weight * scale.view(outputs_first)).float()
            self.arrays[f"{name}.bias"] = (bias * scale + shift).float()

    def block(self, value: _Value, block: Block, name: str) -> _Value:
        """Convolution, pooling if any, batch norm, activation."""
        if isinstance(block.conv, nn.ConvTranspose2d):
            value = self.transposed(value, block.conv, f"{name}.conv")
        else:
            value = self.conv(value, block.conv, f"{name}.conv")
        return self.finish(value, block, name)

    def finish(self, value: _Value, block: Block, name: str) -> _Value:
        """Do what follows the convolution."""
        if block.pool is not None:
            kind = "average_pool" if isinstance(block.pool, nn.AvgPool2d) else "max_pool"
            value = self.layer(kind, f"{name}.pool", value)
        value = self.norm(value, block.norm)
        if isinstance(block.activation, nn.Sigmoid):
            return self.layer("sigmoid", f"{name}.sigmoid", value)
        assert isinstance(block.activation, nn.LeakyReLU)
        return self.layer("leaky_relu", f"{name}.relu", value, slope=float(block.activation.negative_slope))

    # --- the networks

    def skip(self, network: Skip) -> _Value:
        """See `networks.Skip`."""
        drawn = self.scale(_Value(INPUT, self.z), network.scale, "scale")
        return self.layer("sigmoid", "sigmoid", self.conv(drawn, network.head, "head"))

    def scale(self, x: _Value, scale: Scale, name: str) -> _Value:
        """One scale of it, with the next one inside."""
        deep = self.block(self.block(x, scale.reduce, f"{name}.reduce"), scale.deepen, f"{name}.deepen")
        if scale.inner is not None:
            deep = self.scale(deep, scale.inner, f"{name}.inner")
        skip = None if scale.skip is None else self.block(x, scale.skip, f"{name}.skip")
        join = self.join_apart if scale.merge.conv.kernel_size[0] == 3 else self.join
        merged = self.finish(join(scale, skip, deep, name), scale.merge, f"{name}.merge")
        return merged if scale.mix is None else self.block(merged, scale.mix, f"{name}.mix")

    def join(self, scale: Scale, skip: _Value | None, deep: _Value, name: str) -> _Value:
        """Upsample, concatenate, normalise and convolve."""
        assert isinstance(scale.merge.conv, nn.Conv2d)
        joined = self.layer("upsample", f"{name}.upsample", deep, mode=scale.upsample.mode)
        if skip is not None:
            joined = self.layer("concat", f"{name}.concat", skip, joined)
        return self.conv(self.norm(joined, scale.norm), scale.merge.conv, f"{name}.merge.conv")

    def join_apart(self, scale: Scale, skip: _Value | None, deep: _Value, name: str) -> _Value:
        """Do the same with a convolution for each part, ``conv(cat(s, u)) = conv_s(s) + conv_u(u)``.

        The one of the upsampled part is then the operator that needs less work.
        """
        conv, norm, n = scale.merge.conv, scale.norm, scale.skip_channels
        upsampled = nn.functional.interpolate(
            deep.tensor, scale_factor=2.0, mode=scale.upsample.mode,
            align_corners=False if scale.upsample.mode == "bilinear" else None,
        )  # fmt: skip
        name = f"{name}.merge"
        options = {"mode": scale.upsample.mode, "padding_mode": conv.padding_mode}
        deep = _normalised(deep, _statistics(upsampled), norm, slice(n, None))
        drawn = self.weighted("upsample_conv2d", deep, conv.weight[:, n:], conv.bias, f"{name}.deep", **options)
        if skip is None:
            return drawn
        skip = _normalised(skip, _statistics(skip.tensor), norm, slice(n))
        around: dict[str, Any] = {"stride": 1, "padding": 1, "padding_mode": conv.padding_mode}
        beside = self.weighted("conv", skip, conv.weight[:, :n], None, f"{name}.skip", **around)
        return self.layer("add", f"{name}.add", drawn, beside)

    def hourglass(self, network: Hourglass) -> _Value:
        """See `networks.Hourglass`."""
        x, encoded = _Value(INPUT, self.z), []
        for i, stage in enumerate(network.encode):
            assert isinstance(stage, Block)
            x = self.block(x, stage, f"encode.{i}")
            encoded.append(x)
        stages = zip(network.decode, network.skip, network.norm, encoded[4:0:-1], strict=True)
        for i, (decode, skip, norm, same_size) in enumerate(stages):
            assert isinstance(decode, nn.ConvTranspose2d)
            assert isinstance(skip, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            parts = self.transposed(x, decode, f"decode.{i}"), self.conv(same_size, skip, f"skip.{i}")
            joined = self.norm(self.layer("concat", f"concat.{i}", *parts), norm)
            x = self.layer("leaky_relu", f"relu.{i}", joined, slope=NEGATIVE_SLOPE)
        return self.block(self.block(x, network.widen, "widen"), network.head, "head")

    def decoder(self, network: Decoder) -> _Value:
        """See `networks.Decoder`."""
        x = _Value(INPUT, self.z)
        for i, layer in enumerate(network.layers):
            assert isinstance(layer, DecoderLayer)
            conv, name = layer.conv, f"layers.{i}"
            if isinstance(layer.upsample, nn.Upsample):
                options = {"mode": "nearest", "padding_mode": "zeros"}
                x = self.weighted("upsample_conv2d", x, conv.weight, conv.bias, f"{name}.conv", **options)
            else:
                x = self.conv(x, conv, f"{name}.conv")
            x = self.norm(self.layer("leaky_relu", f"{name}.relu", x, slope=0.0), layer.norm)
        return self.conv(x, network.head, "head")


@torch.no_grad()
def fold(
    network: nn.Module,
    z: NetworkInput,
    size: tuple[int, int],
    value_range: tuple[float, float] = (0.0, 1.0),
    known: tuple[np.ndarray, np.ndarray] | None = None,
) -> Program:
    """Fold a fitted network at its input.

    Parameters
    ----------
    network : Network
        One of this package's; it is left as it is.
    z : NetworkInput
    size : tuple of int
        Height and width of the picture, the middle of what the network draws.
    value_range : tuple of float
        What 0 and 1 stand for in the picture.
    known : tuple of ndarray, optional
        Pixels that are not drawn: bool ``(H, W, 1)`` and samples ``(H, W, C)``.

    Returns
    -------
    Program

    Raises
    ------
    TypeError
        For a network of another kind.
    """
    folder = _Folder(z.tensor())
    walks: dict[type[nn.Module], Any] = {Skip: folder.skip, Hourglass: folder.hourglass, Decoder: folder.decoder}
    if type(network) not in walks:
        raise TypeError(f"network must be one of skip, hourglass, decoder, got {type(network).__name__}")
    drawn = walks[type(network)](_on_cpu(network))
    folder.place(drawn)
    program = Program(
        layers=tuple(folder.layers.values()),
        arrays={name: array.float().contiguous().numpy() for name, array in folder.arrays.items()},
        codes=z.codes.cpu().numpy(),
        denominator=z.denominator,
        size=size,
        value_range=value_range,
        known=known,
    )
    program.check()
    return program


def _on_cpu(network: nn.Module) -> nn.Module:
    """Give the network itself, or a copy of it where it is elsewhere."""
    if all(parameter.device.type == "cpu" for parameter in network.parameters()):
        return network
    import copy

    return copy.deepcopy(network).cpu()


def _normalised(value: _Value, statistics: tuple[Tensor, Tensor], norm: nn.BatchNorm2d, part: slice) -> _Value:
    """Affine map of some channels of a batch norm, to be placed."""
    mean, variance = statistics
    scale = norm.weight.detach()[part].double() / torch.sqrt(variance + norm.eps)
    return _Value(value.name, value.tensor, scale, norm.bias.detach()[part].double() - scale * mean)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel, in float64, one channel at a time for the memory's sake."""
    pairs = [torch.var_mean(channel.double(), correction=0) for channel in x[0]]
    return torch.stack([mean for _, mean in pairs]), torch.stack([variance for variance, _ in pairs])


def _per_channel(values: Tensor) -> Tensor:
    return values[None, :, None, None]
