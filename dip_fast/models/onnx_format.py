"""Programs as ONNX files: written with standard operators alone, and read back without running anything.

A file is accepted when its graph is, field by field, the one that `write` makes of the program that its metadata
name.  So no graph but our own ever reaches an engine, however a file was changed; and what is replayed is what any
other engine finds in the file.  Hence the rule: what `write` makes of a program never changes within one schema
version: schema 1 for a network input of 8-bit codes, schema 2 for any other, schema 3 for pictures that are neither
gray nor RGB and for known samples that differ between channels, schema 4 for pictures that are blended with another.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dip_fast import __version__, large
from dip_fast.errors import UsageError
from dip_fast.models.formats import SCHEMA
from dip_fast.models.onnx_fields import filled, split
from dip_fast.models.packing import Buffer, Text, as_text, parse_metadata
from dip_fast.programs.program import INPUT, Layer, Program, part_name

OPSET = 17
IR_VERSION = 8  # of the same year as the opset, so that every onnxruntime since 1.13 reads it
OUTPUT = "picture"
METADATA = "dip_fast"  # key of the JSON; the blobs follow as "dip_fast.<name>", in base64


# Nearest x2 and a convolution with three taps w, in one dimension, at the border between the pixels p-1 and p:
#   y[2p-1] = (w0 + w1) x[p-1] + w2 x[p]     y[2p] = w0 x[p-1] + (w1 + w2) x[p]
# So a convolution with 2x2 taps and four outputs for each one makes the four pixels around every corner, and
# DepthToSpace puts them where they belong, with a ring of one pixel too many: 16 products for four outputs where the
# layers themselves take 36.  The file holds the nine taps; engines make the sixteen when they load it.
# TAPS[a, t, i]: part of w[i] in tap t of output a.
TAPS = np.array([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]], np.float32)

_PADS = {"reflect": "reflect", "replicate": "edge"}
_INPUT_TYPES = {
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "uint16": TensorProto.UINT16,
    "float32": TensorProto.FLOAT,
}


class _Graph:
    """The nodes and initializers of a graph; each method adds some and returns the name of their value."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.large: dict[str, np.ndarray] = {}  # what initializers hold that are too large for protobuf

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, array: np.ndarray) -> str:
        if array.nbytes < large.LEAST:
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        else:
            data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
            self.initializers.append(TensorProto(dims=array.shape, data_type=data_type, name=name))
            self.large[name] = array
        return name

    def number(self, name: str, value: float) -> str:
        return self.constant(name, np.array(value, np.float32))

    def weights(self, name: str, array: np.ndarray) -> str:
        """Add an array, widened to float32 where it is stored in less."""
        self.constant(name, array)
        return self.node("Cast", [name], f"{name}/wide", to=TensorProto.FLOAT) if array.dtype != np.float32 else name

    def pad(self, value: str, output: str, padding: int, mode: str) -> str:
        amounts = np.array([0, 0, padding, padding] * 2)
        return self.node("Pad", [value, self.constant(f"{output}/amounts", amounts)], output, mode=_PADS[mode])


def write(program: Program, metadata: dict[str, Any] | None = None, blobs: dict[str, Text] | None = None) -> Buffer:
    """Write a program as an ONNX model.

    Parameters
    ----------
    program : Program
    metadata : dict, optional
        JSON that goes into the file, beside the schema version and the program's outline.
    blobs : dict of str to str, optional
        Further texts by name.

    Returns
    -------
    bytes
        The file: opset 17, one output ``picture``, float32 ``(H, W, C)`` in the picture's range; an input ``z``, and
        ``z.1`` and so on for further parts of the network input, that need not be fed, since the program's codes are
        their initializers.
    """
    graph, arrays = _graph(program)
    model = helper.make_model(
        graph,
        producer_name="dip-fast",
        producer_version=__version__,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    document = {"schema": program.schema, **(metadata or {}), "program": program.outline()}
    texts: dict[str, Text] = {METADATA: json.dumps(document, allow_nan=False)}
    texts |= {f"{METADATA}.{name}": text for name, text in (blobs or {}).items()}
    for key, text in texts.items():
        model.metadata_props.add(key=key, **({"value": text} if isinstance(text, str) else {}))
    return filled(model.SerializeToString(), arrays, {k: v for k, v in texts.items() if isinstance(v, memoryview)})


def _graph(program: Program) -> tuple[onnx.GraphProto, dict[str, np.ndarray]]:
    """Make the graph of a program, without its large arrays, and those by name."""
    graph, (channels, height, width) = _Graph(), program.shapes()[program.layers[-1].name]
    values = {INPUT: _input(graph, program)}
    if any(layer.kind == "upsample_conv2d" and layer.options["mode"] == "nearest" for layer in program.layers):
        graph.constant("upsampling/taps", TAPS)
        graph.constant("upsampling/ones", np.ones(4, np.float32))
        for part, pair in (("first", [1, 1]), ("last", [-1, -1]), ("axes", [2, 3])):
            graph.constant(f"upsampling/{part}", np.array(pair))
    if any(_resizes(layer) for layer in program.layers):
        graph.constant("upsampling/scales", np.array([1, 1, 2, 2], np.float32))
    for layer in program.layers:
        values[layer.name] = _layer(graph, layer, [values[name] for name in layer.inputs], program.arrays)
    _picture(graph, program, values[program.layers[-1].name], (height, width))
    made = helper.make_graph(
        graph.nodes,
        "dip-fast",
        [
            helper.make_tensor_value_info(part_name(i), _INPUT_TYPES[codes.dtype.name], codes.shape)
            for i, (codes, _) in enumerate(program.inputs)
        ],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [*program.size, channels])],
        graph.initializers,
    )
    return made, graph.large


def _input(graph: _Graph, program: Program) -> str:
    """Add the network input, and return the name of its value."""
    values = []
    for i, (codes, denominator) in enumerate(program.inputs):
        name = graph.constant(part_name(i), codes)
        if codes.dtype != np.float32:
            # Not DequantizeLinear, which multiplies with a rounded reciprocal: the quotient is correctly rounded.
            floats = graph.node("Cast", [name], f"{name}/float", to=TensorProto.FLOAT)
            name = graph.node("Div", [floats, graph.number(f"{name}/denominator", denominator)], f"{name}/value")
        values.append(name)
    return graph.node("Concat", values, f"{INPUT}/parts", axis=1) if len(values) > 1 else values[0]


def _picture(graph: _Graph, program: Program, drawn: str, size: tuple[int, int]) -> None:
    """Add the way from the last layer's output, of some size, to the picture: middle, range, blend, known pixels."""
    (height, width), (rows, columns) = size, program.size
    if (rows, columns) != (height, width):
        top, left = (height - rows) // 2, (width - columns) // 2
        ends = [
            graph.constant("crop/starts", np.array([top, left])),
            graph.constant("crop/ends", np.array([top + rows, left + columns])),
            graph.constant("crop/axes", np.array([2, 3])),
        ]
        drawn = graph.node("Slice", [drawn, *ends], "crop")
    drawn = graph.node("Transpose", [drawn], "channels_last", perm=[0, 2, 3, 1])
    steps = []
    low, high = program.value_range
    if high - low != 1:
        steps.append(("Mul", graph.number("range/width", high - low)))
    if low != 0:
        steps.append(("Add", graph.number("range/low", low)))
    for operator, constant in steps:
        drawn = graph.node(operator, [drawn, constant], f"range/{operator.lower()}")
    last = OUTPUT if program.known is None and program.blend is None else "drawn"
    drawn = graph.node("Squeeze", [drawn, graph.constant("channels_last/batch", np.array([0]))], last)
    if program.blend is not None:
        samples, strength = program.blend
        base = _samples(graph, "blend.samples", samples)
        change = graph.node("Sub", [drawn, base], "blend/change")
        change = graph.node("Mul", [change, graph.number("blend/strength", strength)], "blend/part")
        drawn = graph.node("Add", [base, change], OUTPUT if program.known is None else "blend/picture")
    if program.known is not None:
        mask, samples = program.known
        kept = _samples(graph, "known.samples", samples)
        graph.node("Where", [graph.constant("known.mask", mask), kept, drawn], OUTPUT)


def _samples(graph: _Graph, name: str, samples: np.ndarray) -> str:
    """Add samples of a picture, as floats."""
    stored = graph.constant(name, samples)
    return (
        stored if samples.dtype == np.float32 else graph.node("Cast", [stored], f"{name}/float", to=TensorProto.FLOAT)
    )


def _resizes(layer: Layer) -> bool:
    return layer.kind == "upsample" or (layer.kind == "upsample_conv2d" and layer.options["mode"] == "bilinear")


def _layer(graph: _Graph, layer: Layer, inputs: list[str], arrays: dict[str, np.ndarray]) -> str:
    """Add a layer, and return the name of its output, which is the layer's."""
    name, kind, options = layer.name, layer.kind, layer.options
    weight, bias = (
        graph.weights(f"{name}.{part}", arrays[f"{name}.{part}"]) if f"{name}.{part}" in arrays else ""
        for part in ("weight", "bias")
    )
    x = inputs[0]
    if kind == "conv":
        padding = options["padding"]
        if padding and options["padding_mode"] != "zeros":
            x, padding = graph.pad(x, f"{name}/pad", padding, options["padding_mode"]), 0
        kernel = arrays[f"{name}.weight"].shape[2:]
        strides = [options["stride"]] * 2
        return graph.node("Conv", [x, weight, bias], name, kernel_shape=kernel, strides=strides, pads=[padding] * 4)
    if kind == "conv_transpose":
        return graph.node("ConvTranspose", [x, weight, bias], name, kernel_shape=[4, 4], strides=[2, 2], pads=[1] * 4)
    if kind == "upsample_conv2d" and options["mode"] == "nearest":
        channels = arrays[f"{name}.weight"].shape[1]
        return _upsample_conv(graph, name, x, weight, bias, options["padding_mode"], channels)
    if kind == "upsample_conv2d":
        x, padding = _upsampled(graph, f"{name}/upsample", x, "bilinear"), 1
        if options["padding_mode"] != "zeros":
            x, padding = graph.pad(x, f"{name}/pad", 1, options["padding_mode"]), 0
        return graph.node("Conv", [x, weight, bias], name, kernel_shape=[3, 3], pads=[padding] * 4)
    if kind == "upsample":
        return _upsampled(graph, name, x, options["mode"])
    if kind == "average_pool":
        return graph.node("AveragePool", [x], name, kernel_shape=[2, 2], strides=[2, 2])
    if kind == "max_pool":
        return graph.node("MaxPool", [x], name, kernel_shape=[2, 2], strides=[2, 2])
    if kind == "affine":
        return graph.node("Add", [graph.node("Mul", [x, weight], f"{name}/scaled"), bias], name)
    if kind == "concat":
        return graph.node("Concat", inputs, name, axis=1)
    if kind == "add":
        return graph.node("Add", inputs, name)
    if kind == "leaky_relu":
        slope = options["slope"]
        return graph.node("LeakyRelu", [x], name, alpha=slope) if slope else graph.node("Relu", [x], name)
    if kind == "elu":
        return graph.node("Elu", [x], name, alpha=1.0)
    if kind == "swish":
        return graph.node("Mul", [x, graph.node("Sigmoid", [x], f"{name}/sigmoid")], name)
    return graph.node("Sigmoid", [x], name)


def _upsample_conv(graph: _Graph, name: str, x: str, weight: str, bias: str, padding_mode: str, channels: int) -> str:
    """Add nearest x2 and a convolution 3x3 as a convolution 2x2; see `TAPS`."""
    taps = graph.node("Einsum", [weight, *["upsampling/taps"] * 2], f"{name}/taps", equation="kcij,ati,buj->kabctu")
    shape = graph.constant(f"{name}/shape", np.array([-1, channels, 2, 2]))
    kernel = graph.node("Reshape", [taps, shape], f"{name}/kernel")
    biases = graph.node("Einsum", [bias, "upsampling/ones"], f"{name}/biases", equation="k,a->ka")
    flat = graph.node("Reshape", [biases, graph.constant(f"{name}/flat", np.array([-1]))], f"{name}/bias")
    padding = 1
    if padding_mode != "zeros":
        # Reflected or replicated, the upsampled image goes on as its outermost pixel, which is that of x.
        x, padding = graph.pad(x, f"{name}/pad", 1, "replicate"), 0
    corners = graph.node("Conv", [x, kernel, flat], f"{name}/corners", kernel_shape=[2, 2], pads=[padding] * 4)
    ringed = graph.node("DepthToSpace", [corners], f"{name}/ringed", blocksize=2, mode="CRD")
    return graph.node("Slice", [ringed, "upsampling/first", "upsampling/last", "upsampling/axes"], name)


def _upsampled(graph: _Graph, name: str, x: str, mode: str) -> str:
    how: dict[str, str] = (
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        if mode == "nearest"
        else {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    )
    return graph.node("Resize", [x, "", "upsampling/scales"], name, **how)


def read(data: Buffer) -> tuple[Program, dict[str, Any], dict[str, Text]]:
    """Read a model file; nothing of it is executed.

    Parameters
    ----------
    data : bytes
        The file's content, from anywhere.

    Returns
    -------
    program : Program
        Checked: every shape fits.
    metadata : dict
        Still to be checked by whoever uses it.
    blobs : dict of str to str

    Raises
    ------
    UsageError
        If the file is damaged, not an ONNX model, not one of ours, or of a later schema version.
    """
    try:
        small, fields = split(data)
        model = onnx.load_model_from_string(bytes(small))
        texts: dict[str, Text] = {entry.key: entry.value for entry in model.metadata_props}
        for entry, aside in zip(model.metadata_props, fields.texts, strict=False):
            texts |= {} if aside is None else {entry.key: memoryview(aside)}
    except Exception as error:  # protobuf's own kind, which differs between its implementations
        raise UsageError("it is damaged, or no ONNX model; get an intact copy") from error
    if not all(isinstance(text, Text) for entry in texts.items() for text in entry):  # bytes where it is no UTF-8
        raise UsageError("its metadata are damaged; get an intact copy")
    if METADATA not in texts:
        raise UsageError("it is no model that dip-fast wrote; open it with what made it")
    try:
        document = parse_metadata(as_text(texts[METADATA]))
        schema, outline = document["schema"], document.get("program")
        if type(schema) is not int or schema < 1:
            raise ValueError(f"schema {schema!r}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError("its metadata are damaged; get an intact copy") from error
    if schema > SCHEMA:
        raise UsageError(
            f"it is of schema version {schema} and this dip-fast ({__version__}) reads up to {SCHEMA}; update dip-fast"
        )
    tensors = model.graph.initializer
    if any(tensor.data_location == TensorProto.EXTERNAL or tensor.external_data for tensor in tensors):
        raise UsageError("it keeps data in other files, which dip-fast never writes; get the original file")
    fed = {entry.name for entry in model.graph.input}
    if fed and fed.isdisjoint(tensor.name for tensor in tensors):
        raise UsageError("its network input must be fed, so other engines draw it; replay the file it was made of")
    try:
        contents = fields.arrays or [None] * len(tensors)
        arrays = {tensor.name: _array(tensor, content) for tensor, content in zip(tensors, contents, strict=True)}
        own = {name: array for name, array in arrays.items() if "/" not in name}  # the others are the graph's constants
        program = Program.of(outline, own)
        if program.schema != schema:
            raise ValueError(f"schema {schema} for a program of {program.schema}")
        expected, _ = _graph(program)
    except Exception as error:
        raise UsageError("it is damaged or was changed: it holds no program; get an intact copy") from error
    imports = [(entry.domain, entry.version) for entry in model.opset_import]
    whole = model.graph == expected and imports == [("", OPSET)] and model.ir_version == IR_VERSION
    if not whole or model.functions or model.training_info:
        raise UsageError(
            "its graph is not the one that dip-fast writes: it is damaged or was changed; get the original file, "
            "or run this one in onnxruntime itself"
        )
    blobs = {key.removeprefix(f"{METADATA}."): text for key, text in texts.items() if key.startswith(f"{METADATA}.")}
    return program, document, blobs


_DTYPES: dict[int, type[np.generic]] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.UINT8: np.uint8,
    TensorProto.INT8: np.int8,
    TensorProto.UINT16: np.uint16,
    TensorProto.BOOL: np.bool_,
    TensorProto.INT64: np.int64,
}


def _array(tensor: onnx.TensorProto, aside: Buffer | None) -> np.ndarray:
    """Read a tensor whose content is as long as its shape says; nothing else is ever allocated."""
    content = tensor.raw_data if aside is None else aside
    if tensor.data_type not in _DTYPES or any(side < 0 for side in tensor.dims):
        raise ValueError(f"tensor {tensor.name!r}")
    dtype = np.dtype(_DTYPES[tensor.data_type])
    count = 1
    for side in tensor.dims:
        count *= side
    if count * dtype.itemsize != len(content):
        raise ValueError(f"tensor {tensor.name!r} is cut short")
    if dtype == np.bool_ and any(part.max() > 1 for part in large.parts(np.frombuffer(content, np.uint8))):
        raise ValueError(f"tensor {tensor.name!r} is not of truth values")
    return np.frombuffer(content, dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(tensor.dims)
