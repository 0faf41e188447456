"""Programs in PyTorch: layer by layer, and as one module without arguments that draws the picture."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dip_fast.programs import tiles
from dip_fast.programs.program import INPUT, Layer, Program, array_names, part_name


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
    if kind == "elu":
        return F.elu(x)
    if kind == "swish":
        return F.silu(x)
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
        The codes of the network input, a buffer: set others to draw another picture.  Those of its further parts are
        ``z_1``, ``z_2`` and so on.
    """

    z: Tensor
    known_mask: Tensor
    known_samples: Tensor
    blend_samples: Tensor

    def __init__(self, program: Program, *, fused: bool = False) -> None:
        super().__init__()
        if fused:
            import dip_fast.ops  # noqa: F401  (registers the operators; here, since it loads or builds the extension)
        self.program = program
        self.fused = fused
        self._names: dict[str, str] = {}  # of the buffers, by those of the program's arrays
        for i, part in enumerate(program.inputs):
            self._add(part_name(i), part.codes)
        for name, array in program.arrays.items():
            self._add(name, array)
        if program.known is not None:
            mask, samples = program.known
            self._add("known.mask", mask)
            # float32 holds every sample exactly; uint16 is a dtype that few operators of PyTorch know.
            self._add("known.samples", samples.astype("float32"))
        if program.blend is not None:
            self._add("blend.samples", program.blend.samples.astype("float32"))

    def _add(self, name: str, array: np.ndarray) -> None:
        """Register an array as a buffer, whose name has no dots."""
        buffer = name.replace(".", "_")
        while buffer in self._buffers:  # "a.b" and "a_b" are two names of a program
            buffer += "_"
        self._names[name] = buffer
        self.register_buffer(buffer, torch.from_numpy(array.copy()))

    def _array(self, name: str) -> Tensor | None:
        return getattr(self, self._names[name]) if name in self._names else None

    def network_input(self) -> Tensor:
        """Compute the network input: its parts, divided by their denominators, concatenated along the channels."""
        values = []
        for i, part in enumerate(self.program.inputs):
            codes = getattr(self, self._names[part_name(i)])
            values.append(codes if part.is_float else codes.to(torch.float32) / part.denominator)
        return torch.cat(values, dim=1) if len(values) > 1 else values[0]

    def forward(self) -> Tensor:
        """Draw the picture."""
        program = self.program
        values = {INPUT: self.network_input()}
        last_use = {name: layer for layer in program.layers for name in layer.inputs}
        for layer in program.layers:
            arrays = (self._array(name) for name in array_names(layer))
            weight, bias = (None if array is None else array.to(torch.float32) for array in arrays)
            inputs = [values[name] for name in layer.inputs]
            values[layer.name] = compute(layer, inputs, weight, bias, fused=self.fused)
            for name in layer.inputs:
                if last_use[name] is layer:
                    values.pop(name, None)
        drawn = crop(values[program.layers[-1].name], *program.size)[0].permute(1, 2, 0)
        low, high = program.value_range
        picture = drawn * (high - low) + low
        if program.blend is not None:
            picture = self.blend_samples + program.blend.strength * (picture - self.blend_samples)
        if program.known is not None:
            picture = torch.where(self.known_mask, self.known_samples, picture)
        return picture.contiguous()


@torch.no_grad()
def draw(program: Program) -> np.ndarray:
    """Draw a program's picture with plain PyTorch on the CPU: float32 ndarray ``(H, W, C)``, in its range."""

    def draw_part(part: Program) -> np.ndarray:
        drawn: np.ndarray = Drawing(part)().numpy()
        return drawn

    return tiles.draw(program, draw_part)


def crop(output: Tensor, height: int, width: int) -> Tensor:
    """Middle ``height x width`` of a network's output, ``(N, C, H, W) -> (N, C, height, width)``, as a view."""
    top, left = (output.shape[-2] - height) // 2, (output.shape[-1] - width) // 2
    return output[..., top : top + height, left : left + width]
