"""Programs in PyTorch: layer by layer, and as one module without arguments that draws the picture."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dip_fast.programs.program import INPUT, Layer, Program


def compute(
    layer: Layer, inputs: list[Tensor], weight: Tensor | None, bias: Tensor | None, *, fused: bool = False
) -> Tensor:
    """Compute one layer.

    Parameters
    ----------
    layer : Layer
    inputs : list of Tensor
        ``(1, C, H, W)``.
    weight, bias : Tensor, optional
        As `Program` describes them.
    fused : bool
        Use the project's own operator where there is one for the layer.
    """
    kind, options, x = layer.kind, layer.options, inputs[0]
    if weight is not None and bias is not None:
        if kind == "conv":
            return _conv(x, weight, bias, options["stride"], options["padding"], options["padding_mode"])
        if kind == "conv_transpose":
            return F.conv_transpose2d(x, weight, bias, 2, 1)
        if kind == "affine":
            return x * weight + bias
        assert kind == "upsample_conv2d"
        if fused:
            how = options["mode"], options["padding_mode"]
            drawn: Tensor = torch.ops.dip_fast.upsample_conv2d(x, weight, bias, *how)
            return drawn
        return _conv(upsample(x, options["mode"]), weight, bias, 1, 1, options["padding_mode"])
    if kind == "upsample":
        return upsample(x, options["mode"])
    if kind == "average_pool":
        return F.avg_pool2d(x, 2)
    if kind == "max_pool":
        return F.max_pool2d(x, 2)
    if kind == "concat":
        return torch.cat(inputs, dim=1)
    if kind == "add":
        return inputs[0] + inputs[1]
    if kind == "leaky_relu":
        return F.leaky_relu(x, options["slope"]) if options["slope"] else F.relu(x)
    assert kind == "sigmoid"
    return torch.sigmoid(x)


def _conv(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, padding_mode: str) -> Tensor:
    if padding and padding_mode != "zeros":
        x, padding = F.pad(x, (padding,) * 4, padding_mode), 0
    return F.conv2d(x, weight, bias, stride, padding)


def upsample(x: Tensor, mode: str) -> Tensor:
    """Double the height and width, in a mode of `program.MODES`."""
    return F.interpolate(x, scale_factor=2.0, mode=mode, align_corners=False if mode == "bilinear" else None)


class Drawing(nn.Module):
    """A program as a module: called with nothing, it draws the picture, ``(H, W, C)``, float32, in its range.

    Parameters
    ----------
    program : Program
    fused : bool
        Use the project's own operators where there are some.

    Attributes
    ----------
    z : Tensor
        The codes, a buffer: set another one to draw another picture.
    """

    z: Tensor
    known_mask: Tensor
    known_samples: Tensor

    def __init__(self, program: Program, *, fused: bool = False) -> None:
        super().__init__()
        if fused:
            import dip_fast.ops  # noqa: F401  (registers the operators; here, since it loads or builds the extension)
        self.program = program
        self.fused = fused
        self.register_buffer("z", torch.from_numpy(program.codes.copy()))
        for name, array in program.arrays.items():
            self.register_buffer(_buffer(name), torch.from_numpy(array.copy()))
        if program.known is not None:
            mask, samples = program.known
            self.register_buffer("known_mask", torch.from_numpy(mask.copy()))
            # float32 holds every sample exactly; uint16 is a dtype that few operators of PyTorch know.
            self.register_buffer("known_samples", torch.from_numpy(samples.astype("float32")))

    def forward(self) -> Tensor:
        """Draw the picture."""
        program = self.program
        values = {INPUT: self.z.to(torch.float32) / program.denominator}
        last_use = {name: layer for layer in program.layers for name in layer.inputs}
        for layer in program.layers:
            weight, bias = (
                getattr(self, name).to(torch.float32) if name in self._buffers else None
                for name in (_buffer(f"{layer.name}.{part}") for part in ("weight", "bias"))
            )
            inputs = [values[name] for name in layer.inputs]
            values[layer.name] = compute(layer, inputs, weight, bias, fused=self.fused)
            for name in layer.inputs:
                if last_use[name] is layer:
                    values.pop(name, None)
        drawn = crop(values[program.layers[-1].name], *program.size)[0].permute(1, 2, 0)
        low, high = program.value_range
        picture = drawn * (high - low) + low
        if program.known is not None:
            picture = torch.where(self.known_mask, self.known_samples, picture)
        return picture.contiguous()


def _buffer(name: str) -> str:
    return name.replace(".", "_")


@torch.no_grad()
def draw(program: Program) -> np.ndarray:
    """Draw a program's picture with plain PyTorch on the CPU: float32 ndarray ``(H, W, C)``, in its range."""
    picture: np.ndarray = Drawing(program)().numpy()
    return picture


def crop(output: Tensor, height: int, width: int) -> Tensor:
    """Middle ``height x width`` of a network's output, ``(N, C, H, W) -> (N, C, height, width)``, as a view."""
    top, left = (output.shape[-2] - height) // 2, (output.shape[-1] - width) // 2
    return output[..., top : top + height, left : left + width]
