"""Folding: a fitted network at its input becomes a program of plain layers, batch norm gone.

Batch norm here normalises with the statistics of the one image that the network draws, or with frozen ones
(`dip_fast.networks.frozen`).  At the one input z they are constants, so each is an affine map of every channel,
``y = s x + t`` with ``s = weight / sqrt(variance + epsilon)`` and ``t = bias - s mean``, and can be moved into a
convolution:

    before it:  s (w * x + b) + t    = (s w) * x + (s b + t)
    after it:   w * (s x + t) + b    = (w s) * x + (b + sum over the taps of w t)

The second holds where the convolution does not pad, or pads with values of x itself: a zero beside ``s x + t`` is no
zero beside x.  There, and behind a maximum, the affine map stays as a layer of its own.  Upsampling and the average of
four pixels commute with it, as their weights sum to 1.

The statistics are those of the folded layers' own output, so that rounding does not add up along the network.

A network folds itself: its method ``fold(folder, z)`` computes it with a `Folder`, as ``forward`` does with tensors.
The folder computes each layer at z, writes it down, and places the affine maps.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dip_fast.programs.drawing import compute, upsample
from dip_fast.programs.program import INPUT, InputPart, Layer, Program

ALL = slice(None)


@dataclass(frozen=True, eq=False)
class Value:
    """An intermediate image: the output of a layer, and the affine map of it that is still to be placed.

    Attributes
    ----------
    name : str
        Name of the layer, or ``"z"``.
    tensor : Tensor
        ``(1, C, H, W)``, the layer's output.
    scale, shift : Tensor, optional
        ``(C,)``, float64: the value is ``scale * tensor + shift``.
    version : int
        How many affine maps had been moved into the layer when this was its output.
    """

    name: str
    tensor: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None
    version: int = 0


class Folder:
    """What a network folds itself with: it computes each layer at z and writes it down.

    Every method that adds a layer takes the value that it reads and the layer's name, which is new and consists of
    small letters, digits, ``_`` and ``.``, and returns the layer's value.  A value may be read more than once, but one
    that is read both before and after its batch norm must be named to `norm` as shared.

    Parameters
    ----------
    z : Tensor
        The network input, ``(1, C, H, W)``.

    Attributes
    ----------
    input : Value
        The network input.
    layers : dict of str to Layer
        By name, in the order of computation.
    arrays : dict of str to Tensor
        By name, see `Program`.
    """

    def __init__(self, z: Tensor) -> None:
        self.input = Value(INPUT, z)
        self.layers: dict[str, Layer] = {}
        self.arrays: dict[str, Tensor] = {}
        self._channels: dict[str, int] = {}
        self._readers: dict[str, int] = {}  # how many layers read an output
        self._versions: dict[str, int] = {}

    def layer(self, kind: str, name: str, *values: Value, **options: Any) -> Value:
        """Add a layer of any kind; an affine map that is still to be placed becomes a layer before it.

        Parameters
        ----------
        kind : str
            A key of `program.KINDS`, which lists the options.
        name : str
        *values : Value
            What it reads.
        **options
            See `program.KINDS`.
        """
        if name in self.layers:
            raise ValueError(f"two layers are called {name}; each layer must have a name of its own")
        placed = [self.place(value) for value in values]
        for value in placed:
            self._require_current(value, name)
            self._readers[value.name] = self._readers.get(value.name, 0) + 1
        layer = Layer(kind, name, tuple(value.name for value in placed), options)
        self.layers[name] = layer
        arrays = (self.arrays.get(f"{name}.weight"), self.arrays.get(f"{name}.bias"))
        tensor = compute(layer, [value.tensor for value in placed], *arrays)
        self._channels[name] = tensor.shape[1]
        return Value(name, tensor)

    def place(self, value: Value) -> Value:
        """Write down the affine map of a value as a layer."""
        if value.scale is None or value.shift is None:
            return value
        weight, bias = _per_channel(value.scale)[0].float(), _per_channel(value.shift)[0].float()
        name, number = f"{value.name}.norm", 1
        while name in self.layers:  # of another norm of the same value, or of this one for another reader
            number += 1
            name = f"{value.name}.norm{number}"
        self.arrays[f"{name}.weight"], self.arrays[f"{name}.bias"] = weight, bias
        return self.layer("affine", name, replace(value, scale=None, shift=None))

    def conv(self, value: Value, conv: nn.Conv2d, name: str, *, channels: slice = ALL, bias: bool = True) -> Value:
        """Add a convolution: square, dense, with stride 1 or 2 and the same padding on all sides.

        Parameters
        ----------
        value : Value
        conv : Conv2d
        name : str
        channels : slice
            Which of the convolution's input channels the value has; all by default.
        bias : bool
            Whether to add its bias.
        """
        _require_dense(conv, name)
        options = {"stride": conv.stride[0], "padding": int(conv.padding[0]), "padding_mode": conv.padding_mode}
        return self._convolve("conv", value, conv.weight[:, channels], conv.bias if bias else None, name, options)

    def upsample_conv(
        self, value: Value, conv: nn.Conv2d, name: str, *, mode: str, channels: slice = ALL, bias: bool = True
    ) -> Value:
        """Add the upsampling of a value to twice the height and width, and a convolution 3x3 with padding 1.

        Parameters
        ----------
        value : Value
        conv : Conv2d
        name : str
        mode : {"nearest", "bilinear"}
        channels, bias
            See `conv`.
        """
        _require_dense(conv, name)
        if (conv.kernel_size, conv.stride, conv.padding) != ((3, 3), (1, 1), (1, 1)):
            raise ValueError(f"{name}: the convolution of an upsampled image must be 3x3, with stride 1 and padding 1")
        options = {"mode": mode, "padding_mode": conv.padding_mode}
        weight = conv.weight[:, channels]
        return self._convolve("upsample_conv2d", value, weight, conv.bias if bias else None, name, options)

    def _convolve(
        self, kind: str, value: Value, weight: Tensor, bias: Tensor | None, name: str, options: dict[str, Any]
    ) -> Value:
        """Add a convolution of either kind, the affine map of its input moved into it where that is exact."""
        weight = weight.detach().double()
        bias = torch.zeros(weight.shape[0], dtype=torch.float64) if bias is None else bias.detach().double()
        pads = kind != "conv" or options["padding"] > 0
        if value.scale is not None and value.shift is not None and not (pads and options["padding_mode"] == "zeros"):
            bias = bias + torch.einsum("kcij,c->k", weight, value.shift)
            weight = weight * value.scale[:, None, None]
            value = replace(value, scale=None, shift=None)
        self.arrays[f"{name}.weight"], self.arrays[f"{name}.bias"] = weight.float(), bias.float()
        return self.layer(kind, name, value, **options)

    def transposed_conv(self, value: Value, conv: nn.ConvTranspose2d, name: str) -> Value:
        """Add a transposed convolution 4x4 with stride 2 and padding 1, which doubles the height and width."""
        _require_dense(conv, name)
        shape = conv.kernel_size, conv.stride, conv.padding, conv.output_padding
        if shape != ((4, 4), (2, 2), (1, 1), (0, 0)):
            raise ValueError(f"{name}: a transposed convolution must be 4x4, with stride 2 and padding 1")
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.arrays[f"{name}.weight"], self.arrays[f"{name}.bias"] = conv.weight.detach().float(), bias.float()
        return self.layer("conv_transpose", name, value)

    def norm(
        self,
        value: Value,
        norm: nn.BatchNorm2d,
        *,
        channels: slice = ALL,
        upsampled: str | None = None,
        shared: bool = False,
    ) -> Value:
        """Freeze a batch norm at the statistics of a value: the affine map goes into what came before, or what comes.

        Parameters
        ----------
        value : Value
        norm : BatchNorm2d
            One that keeps no running statistics, or is in ``eval`` mode and uses them.
        channels : slice
            Which of its channels the value has; all by default.
        upsampled : {"nearest", "bilinear"}, optional
            Takes the statistics of the value upsampled in this mode, for a norm that stands behind an upsampling: the
            weights of an upsampling sum to 1, so the affine map may come first.
        shared : bool
            Whether something else reads the value without this norm; then it is left as it is.
        """
        mean, variance = norm.running_mean, norm.running_var
        if not norm.affine or (mean is not None and norm.training):
            raise ValueError("a batch norm must have weight and bias, and use the image's statistics to be folded")
        self._require_current(value, "a batch norm")
        seen = self.place(value)
        if mean is None or variance is None:
            mean, variance = _statistics(seen.tensor if upsampled is None else upsample(seen.tensor, upsampled))
        else:
            mean, variance = mean[channels].double(), variance[channels].double()
        scale = norm.weight.detach()[channels].double() / torch.sqrt(variance + norm.eps)
        shift = norm.bias.detach()[channels].double() - scale * mean
        if shared or not self._can_absorb(seen.name, readers=0):
            return replace(seen, scale=scale, shift=shift)
        self._absorb(seen.name, scale, shift)
        tensor = seen.tensor * _per_channel(scale).float() + _per_channel(shift).float()
        return Value(seen.name, tensor, version=self._versions[seen.name])

    def _require_current(self, value: Value, reader: str) -> None:
        """Refuse a value whose layer has been changed since: a batch norm was moved into it."""
        if value.version != self._versions.get(value.name, 0):
            raise ValueError(
                f"{reader} reads {value.name} without a batch norm that was moved into it; "
                "fold that batch norm with shared=True"
            )

    def _can_absorb(self, name: str, readers: int) -> bool:
        """Whether an affine map of a layer's output can be moved into it: no other layer reads that output."""
        layer = self.layers.get(name)
        if layer is None or self._readers.get(name, 0) != readers:
            return False
        if layer.kind in ("average_pool", "add", "concat"):
            return all(self._can_absorb(part, readers=1) for part in layer.inputs)
        return layer.kind in ("conv", "conv_transpose", "upsample_conv2d")

    def _absorb(self, name: str, scale: Tensor, shift: Tensor) -> None:
        """Move an affine map into the layer before it."""
        layer = self.layers[name]
        self._versions[name] = self._versions.get(name, 0) + 1
        if layer.kind == "average_pool":
            self._absorb(layer.inputs[0], scale, shift)
        elif layer.kind == "add":
            self._absorb(layer.inputs[0], scale, shift)
            self._absorb(layer.inputs[1], scale, torch.zeros_like(shift))
        elif layer.kind == "concat":
            counts = [self._channels[part] for part in layer.inputs]
            for part, factor, summand in zip(layer.inputs, scale.split(counts), shift.split(counts), strict=True):
                self._absorb(part, factor, summand)
        else:
            weight, bias = self.arrays[f"{name}.weight"].double(), self.arrays[f"{name}.bias"].double()
            outputs_first = (-1, 1, 1, 1) if layer.kind != "conv_transpose" else (1, -1, 1, 1)
            self.arrays[f"{name}.weight"] = (weight * scale.view(outputs_first)).float()
            self.arrays[f"{name}.bias"] = (bias * scale + shift).float()


class Part(Protocol):
    """Some channels of a network input."""

    @property
    def codes(self) -> Tensor:
        """``(1, C, H, W)``, uint8, int8, uint16 or float32."""

    @property
    def denominator(self) -> int:
        """What the codes are divided by."""


class NetworkInput(Protocol):
    """A network input, see `dip_fast.networks.NetworkInput`."""

    @property
    def parts(self) -> Sequence[Part]:
        """Its parts, along the channels."""

    def tensor(self) -> Tensor:
        """Return its values, ``(1, C, H, W)``, float32."""


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
    network : Module
        Any network with a method ``fold(folder, z)``, which returns the value of its image; it is left as it is.
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
        For a network without that method.
    ValueError
        For a network that no program describes.
    """
    if not callable(getattr(network, "fold", None)):
        raise TypeError(f"network must have a method fold(folder, z) to be folded; {type(network).__name__} has none")
    own: Any = _on_cpu(network)
    folder = Folder(_corner(own, z) if is_frozen(own) else z.tensor())
    drawn = folder.place(own.fold(folder, folder.input))
    if [*folder.layers][-1:] != [drawn.name]:
        raise ValueError(f"{type(network).__name__}.fold must return the value of the last layer, got {drawn.name}")
    program = Program(
        layers=tuple(folder.layers.values()),
        arrays={name: array.float().contiguous().numpy() for name, array in folder.arrays.items()},
        inputs=tuple(InputPart(part.codes.cpu().numpy(), part.denominator) for part in z.parts),
        size=size,
        value_range=value_range,
        known=known,
    )
    program.check()
    return program


def _on_cpu(network: nn.Module) -> nn.Module:
    """Return the network itself, or a copy of it where it is on another device."""
    if all(parameter.device.type == "cpu" for parameter in network.parameters()):
        return network
    return copy.deepcopy(network).cpu()


def is_frozen(network: nn.Module) -> bool:
    """Whether no batch norm of a network asks for the statistics of its image."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    return bool(norms) and all(norm.running_mean is not None for norm in norms)


def _corner(network: Any, z: NetworkInput) -> Tensor:
    """Return the smallest corner of z that a network reads, where what it draws is of no interest."""
    height, width = network.input_size(1, 1)
    codes = [part.codes[..., :height, :width].to(torch.float32) / part.denominator for part in z.parts]
    return torch.cat(codes, dim=1)


def _require_dense(conv: nn.Conv2d | nn.ConvTranspose2d, name: str) -> None:
    """Refuse a convolution that a layer of a program cannot describe."""
    sides = (conv.kernel_size, conv.stride, conv.padding)
    if not all(isinstance(side, tuple) and side[0] == side[1] for side in sides):
        raise ValueError(f"{name}: a convolution must be square, with the same padding on all sides, to be folded")
    if conv.groups != 1 or conv.dilation != (1, 1):
        raise ValueError(f"{name}: a convolution must have groups=1 and dilation=1 to be folded")


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel, in float64, one channel at a time for the memory's sake."""
    pairs = [torch.var_mean(channel.double(), correction=0) for channel in x[0]]
    return torch.stack([mean for _, mean in pairs]), torch.stack([variance for variance, _ in pairs])


def _per_channel(values: Tensor) -> Tensor:
    return values[None, :, None, None]
