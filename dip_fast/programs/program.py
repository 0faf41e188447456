"""The folded network as data: a list of layers, their arrays and the network input.  Needs numpy alone.

A program draws one picture.  Every model file is written from one, and the ONNX file carries its outline, so that it
can be read back.  `Program.check` is what stands between a file from anywhere and the machine's memory: it knows the
shape of every value before anything is computed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dip_fast import large
from dip_fast.programs.blend import Blend

MODES = ("nearest", "bilinear")
PADDING_MODES = ("zeros", "reflect", "replicate")
INPUT = "z"
# Names that model files give to other things than layers; those with a "/" in them cannot be a layer's name.
RESERVED = ("picture", "drawn", "crop", "channels_last", "known.mask", "known.samples", "blend.samples")
NAME = re.compile(r"[a-z][a-z0-9_.]{1,200}")  # two characters at least: "z" is the input
MAX_LAYERS = 10_000
MAX_CHANNELS = 256  # of a picture
MAX_PARTS = 64  # of the network input
MAX_SIDE = 2**20  # of anything; products of three such sides fit 64 bits eight times over

# By kind: number of inputs (None: two or more), options with what they may be, and whether it has weight and bias.
KINDS: dict[str, tuple[int | None, dict[str, Any], bool]] = {
    "conv": (1, {"stride": (1, 2), "padding": range(17), "padding_mode": PADDING_MODES}, True),
    "conv_transpose": (1, {}, True),  # 4x4, stride 2, padding 1: doubles the sides
    "upsample_conv2d": (1, {"mode": MODES, "padding_mode": PADDING_MODES}, True),  # 3x3, padding 1
    "upsample": (1, {"mode": MODES}, False),
    "average_pool": (1, {}, False),  # 2x2
    "max_pool": (1, {}, False),
    "affine": (1, {}, True),  # a factor and a summand for each channel
    "concat": (None, {}, False),
    "add": (2, {}, False),
    "leaky_relu": (1, {"slope": float}, False),
    "elu": (1, {}, False),
    "swish": (1, {}, False),  # x sigmoid(x)
    "sigmoid": (1, {}, False),
}

Shape = tuple[int, int, int]  # channels, height, width


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes
    ----------
    kind : str
        A key of `KINDS`.
    name : str
        Names the layer and its output; its arrays are ``<name>.weight`` and ``<name>.bias``.
    inputs : tuple of str
        Names of earlier layers, or ``"z"``.
    options : dict
        One value for each option that `KINDS` lists.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    options: dict[str, Any]


class InputPart(NamedTuple):
    """Some channels of the network input, ``codes / denominator``.

    Attributes
    ----------
    codes : ndarray
        ``(1, C, h, w)``, uint8, int8, uint16 or float32.
    denominator : int
        1 for float32.
    """

    codes: np.ndarray
    denominator: int

    @property
    def is_float(self) -> bool:
        """Whether the codes are the values themselves."""
        return self.codes.dtype == np.float32


def part_name(index: int) -> str:
    """Name of a part of the network input: ``z``, ``z.1``, ``z.2`` ..."""
    return f"{INPUT}.{index}" if index else INPUT


@dataclass(frozen=True, eq=False)
class Program:
    """A folded network with its input: it draws one picture.

    Attributes
    ----------
    layers : tuple of Layer
        In the order of computation; the last one draws the image.
    arrays : dict of str to ndarray
        float32, or float16 for storage (computed in float32).  Weights of ``conv`` are ``(out, in, k, k)``, of
        ``conv_transpose`` ``(in, out, 4, 4)``, of ``affine`` ``(channels, 1, 1)``; a bias is ``(out,)``, that of
        ``affine`` has the shape of its weight.
    inputs : tuple of InputPart
        The network input z is their concatenation along the channels.
    size : tuple of int
        Height and width of the picture: the middle of what the last layer draws.
    value_range : tuple of float
        What 0 and 1 of the drawn image stand for in the picture.
    known : tuple of ndarray, optional
        Where samples are taken from the picture that was restored, bool ``(H, W, 1)`` or ``(H, W, C)``, and its samples
        ``(H, W, C)``, uint8, uint16 or float32.
    blend : Blend, optional
        What the drawn picture is blended with; known samples are put in afterwards.
    """

    layers: tuple[Layer, ...]
    arrays: dict[str, np.ndarray]
    inputs: tuple[InputPart, ...]
    size: tuple[int, int]
    value_range: tuple[float, float]
    known: tuple[np.ndarray, np.ndarray] | None = None
    blend: Blend | None = None

    @property
    def schema(self) -> int:
        """Schema version of the files that can hold the program.

        1 where z is one part in 8 bits, otherwise 2; 3 where there are neither one channel nor three, or known samples
        differ between channels; 4 where it is blended.
        """
        if self.blend is not None:
            return 4
        if self.channels not in (1, 3) or (self.known is not None and self.known[0].shape[2] > 1):
            return 3
        return 1 if self._is_simple else 2

    @property
    def _is_simple(self) -> bool:
        """Whether z is one part in 8 bits."""
        return len(self.inputs) == 1 and self.inputs[0].codes.dtype.itemsize == 1

    def outline(self) -> dict[str, Any]:
        """All but the arrays, as JSON holds it."""
        layers = [
            {"kind": layer.kind, "name": layer.name, "inputs": list(layer.inputs), **layer.options}
            for layer in self.layers
        ]
        denominators = [part.denominator for part in self.inputs]
        return {
            "layers": layers,
            **({"denominator": denominators[0]} if self._is_simple else {"denominators": denominators}),
            "size": list(self.size),
            "value_range": list(self.value_range),
            **({} if self.blend is None else {"strength": self.blend.strength}),
        }

    @classmethod
    def of(cls, outline: dict[str, Any], arrays: dict[str, np.ndarray]) -> Program:
        """Build a program from its outline and its arrays, and check it.

        Parameters
        ----------
        outline : dict
            What `outline` returned, or anything at all.
        arrays : dict of str to ndarray
            Those of the program, ``z``, ``z.1`` and so on for the parts of the network input, ``known.mask``,
            ``known.samples`` and ``blend.samples``.

        Raises
        ------
        ValueError
            If this is no program.  What has not even the types of an outline raises a KeyError, a TypeError or an
            AttributeError.
        """
        layers = []
        for entry in outline["layers"]:
            options = dict(entry)
            layers.append(Layer(options.pop("kind"), options.pop("name"), tuple(options.pop("inputs")), options))
        rest = dict(arrays)
        denominators = outline["denominators"] if "denominators" in outline else [outline["denominator"]]
        _require(
            isinstance(denominators, list) and len(denominators) <= MAX_PARTS,
            f"the denominators of z must be a list of at most {MAX_PARTS}",
        )
        inputs = tuple(InputPart(rest.pop(part_name(i)), denominator) for i, denominator in enumerate(denominators))
        mask, samples = rest.pop("known.mask", None), rest.pop("known.samples", None)
        _require((mask is None) == (samples is None), "known pixels need both a mask and samples")
        blended = rest.pop("blend.samples", None)
        _require((blended is None) == ("strength" not in outline), "a blend needs both samples and a strength")
        height, width = outline["size"]
        low, high = outline["value_range"]
        program = cls(
            layers=tuple(layers),
            arrays=rest,
            inputs=inputs,
            size=(height, width),
            value_range=(low, high),
            known=None if mask is None or samples is None else (mask, samples),
            blend=None if blended is None else Blend(blended, outline["strength"]),
        )
        program.check()
        own = "denominator" if program._is_simple else "denominators"
        _require(
            {"denominator", "denominators"} & outline.keys() == {own}, "the denominators of z are of another schema"
        )
        return program

    @property
    def channels(self) -> int:
        """Channels of the picture."""
        return self.shapes()[self.layers[-1].name][0]

    @property
    def needed_bytes(self) -> int:
        """Most memory that the values alive at once take, in float32, twice over for what an engine copies."""
        shapes = self.shapes()
        last_use = {name: i for i, layer in enumerate(self.layers) for name in layer.inputs}
        alive = {INPUT}
        most = 2 * _pixels(shapes[INPUT])  # the parts of z and their concatenation
        for i, layer in enumerate(self.layers):
            alive.add(layer.name)
            # Doubling the sides goes through an array of four times the output, or copies of it.
            aside = 2 * _pixels(shapes[layer.name]) if layer.kind in ("conv_transpose", "upsample_conv2d") else 0
            most = max(most, aside + sum(_pixels(shapes[name]) for name in alive))
            alive -= {name for name in alive if last_use.get(name, len(self.layers)) <= i}
        stored = sum(part.codes.nbytes for part in self.inputs)
        return 8 * most + 4 * sum(array.size for array in self.arrays.values()) + stored

    def check(self) -> None:
        """Raise a ValueError where anything does not fit anything else."""
        self._check_picture()
        shapes = self.shapes()
        self._check_arrays()
        channels, height, width = shapes[self.layers[-1].name]
        _require(0 < channels <= MAX_CHANNELS, f"a picture has 1 to {MAX_CHANNELS} channels")
        _require(self.size[0] <= height and self.size[1] <= width, "the picture must lie in what is drawn")
        if self.known is not None:
            mask, samples = self.known
            _require(
                mask.dtype == bool and mask.shape in ((*self.size, 1), (*self.size, channels)),
                "known.mask must be as the picture is",
            )
            self._check_samples("known.samples", samples)
        if self.blend is not None:
            self._check_samples("blend.samples", self.blend.samples)
            strength = self.blend.strength
            _require(isinstance(strength, float) and 0 <= strength < 1, "the strength must be a float in [0, 1)")

    def _check_samples(self, name: str, samples: np.ndarray) -> None:
        """Check that samples are those of a picture as this one is."""
        _require(samples.shape == (*self.size, self.channels), f"{name} must be as the picture is")
        _require(samples.dtype in (np.uint8, np.uint16, np.float32), f"{name} must be a picture's")
        _require(bool(np.isfinite(samples).all()), f"{name} must be finite")

    def _check_picture(self) -> None:
        """Check the size and the range of the picture."""
        low, high = self.value_range
        _require(all(_is_int(side) and side > 0 for side in self.size), "the size must be positive")
        for bound in (low, high):
            _require(
                isinstance(bound, float) and abs(bound) <= float(np.finfo(np.float32).max),
                "the value range must be two finite floats",
            )
        _require(low < high, "the value range must not be empty")

    def _check_arrays(self) -> None:
        """Check that the arrays hold finite floats, that layers use all of them, and that z is finite."""
        for codes, _ in self.inputs:
            _require(all(bool(np.isfinite(part).all()) for part in large.parts(codes)), "z must be finite")
        for array in self.arrays.values():
            _require(array.dtype in (np.float32, np.float16), "arrays must be of 16- or 32-bit floats")
            _require(bool(np.isfinite(array).all()), "arrays must be finite")
        used = {name for layer in self.layers if KINDS[layer.kind][2] for name in array_names(layer)}
        _require(used == self.arrays.keys(), "the arrays must be those that layers use")
        # A layer's output must not be called like an array: both are values of one graph.
        _require(not used & {layer.name for layer in self.layers}, "a layer is named as an array is")

    def shapes(self) -> dict[str, Shape]:
        """Shape of every value by its name, without computing any."""
        _require(0 < len(self.layers) <= MAX_LAYERS, f"a program must have 1 to {MAX_LAYERS} layers")
        shapes: dict[str, Shape] = {INPUT: self._input_shape()}
        taken = {*RESERVED, *(part_name(i) for i in range(len(self.inputs)))}
        for layer in self.layers:
            _check_layer(layer)
            _require(layer.name not in shapes, f"{layer.name} is there twice")
            _require(layer.name not in taken, f"{layer.name} is a name that model files use for something else")
            _require(all(name in shapes for name in layer.inputs), f"{layer.name}: an input is computed later or never")
            arrays = [self.arrays.get(name) for name in array_names(layer)] if KINDS[layer.kind][2] else []
            _require(all(array is not None for array in arrays), f"{layer.name}: weight and bias must be there")
            shape = _shape(layer, [shapes[name] for name in layer.inputs], *(a.shape for a in arrays if a is not None))
            _require(all(0 < side <= MAX_SIDE for side in shape), f"{layer.name}: the output is empty or huge")
            shapes[layer.name] = shape
        return shapes

    def _input_shape(self) -> Shape:
        """Shape of z; raises where its parts are none, or do not fit each other."""
        _require(0 < len(self.inputs) <= MAX_PARTS, f"z must have 1 to {MAX_PARTS} parts")
        for codes, denominator in self.inputs:
            _require(codes.ndim == 4 and codes.shape[0] == 1 and codes.size > 0, "z must be (1, C, h, w)")
            _require(codes.dtype in (np.uint8, np.int8, np.uint16, np.float32), "z must hold 8 or 16 bits or float32")
            _require(_is_int(denominator) and 0 < denominator < 2**24, "the denominator of z must be positive")
            _require(codes.dtype != np.float32 or denominator == 1, "the denominator of float32 values must be 1")
        (height, width), *others = [part.codes.shape[2:] for part in self.inputs]
        _require(all(size == (height, width) for size in others), "the parts of z must be of one size")
        shape = sum(part.codes.shape[1] for part in self.inputs), height, width
        _require(all(side <= MAX_SIDE for side in shape), "z is huge")
        return shape


def array_names(layer: Layer) -> tuple[str, str]:
    """Names of a layer's weight and bias, for the kinds that have them."""
    return f"{layer.name}.weight", f"{layer.name}.bias"


def _check_layer(layer: Layer) -> None:
    """Check what a layer says of itself: kind, name, options, and how many inputs it has."""
    _require(isinstance(layer.kind, str) and layer.kind in KINDS, "the kind of a layer must be one of KINDS")
    count, options, _ = KINDS[layer.kind]
    named = isinstance(layer.name, str) and NAME.fullmatch(layer.name) is not None
    _require(named, "the name of a layer must begin with a small letter, and have 2 to 201 of a-z, 0-9, _ and .")
    reads_enough = len(layer.inputs) == count if count else len(layer.inputs) > 1
    _require(reads_enough, f"{layer.name}: {layer.kind} must read {count or 'two or more'} values")
    _require(
        layer.options.keys() == options.keys(), f"{layer.name}: the options must be {', '.join(options) or 'none'}"
    )
    for option, allowed in options.items():
        value = layer.options[option]
        if allowed is float:
            _require(isinstance(value, float) and abs(value) <= 1, f"{layer.name}: {option} must be a float in [-1, 1]")
        else:
            is_allowed = type(value) in (int, str) and value in allowed
            _require(
                is_allowed, f"{layer.name}: {option} must be one of {', '.join(str(choice) for choice in allowed)}"
            )


def _shape(layer: Layer, inputs: list[Shape], weight: tuple[int, ...] = (), bias: tuple[int, ...] = ()) -> Shape:
    """Shape of a layer's output; raises where the arrays or the inputs do not fit."""
    (channels, height, width), kind = inputs[0], layer.kind

    def fits(expected: tuple[int, ...], out: int) -> None:
        _require(
            weight == expected and bias == (out,),
            f"{layer.name}: weight or bias do not have the shape that the input asks for",
        )

    if kind == "conv":
        _require(len(weight) == 4 and weight[0] > 0, f"{layer.name}: the weight must be of 4 dimensions")
        kernel, stride, padding = weight[2], layer.options["stride"], layer.options["padding"]
        fits((weight[0], channels, kernel, kernel), weight[0])
        _require(padding <= kernel // 2, f"{layer.name}: padding must be at most half the kernel")
        if layer.options["padding_mode"] == "reflect":
            _require(padding < min(height, width), f"{layer.name}: the input is too small to be reflected")
        sides = [(side + 2 * padding - kernel) // stride + 1 for side in (height, width)]
        return weight[0], sides[0], sides[1]
    if kind == "conv_transpose":
        _require(len(weight) == 4 and weight[1] > 0, f"{layer.name}: the weight must be of 4 dimensions")
        fits((channels, weight[1], 4, 4), weight[1])
        return weight[1], 2 * height, 2 * width
    if kind == "upsample_conv2d":
        _require(len(weight) == 4 and weight[0] > 0, f"{layer.name}: the weight must be of 4 dimensions")
        fits((weight[0], channels, 3, 3), weight[0])
        return weight[0], 2 * height, 2 * width
    if kind == "upsample":
        return channels, 2 * height, 2 * width
    if kind in ("average_pool", "max_pool"):
        return channels, height // 2, width // 2
    if kind == "affine":
        _require(
            weight == bias == (channels, 1, 1),
            f"{layer.name}: weight or bias do not have the shape that the input asks for",
        )
    elif kind == "concat":
        _require(all(shape[1:] == (height, width) for shape in inputs), f"{layer.name}: the inputs must be of one size")
        return sum(shape[0] for shape in inputs), height, width
    elif kind == "add":
        _require(inputs[0] == inputs[1], f"{layer.name}: the inputs must be of one size")
    return channels, height, width


def _pixels(shape: Shape) -> int:
    return shape[0] * shape[1] * shape[2]


def _is_int(value: object) -> bool:
    return type(value) is int


def _require(holds: bool, text: str) -> None:
    if not holds:
        raise ValueError(text)
