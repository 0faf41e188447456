"""The operators of whole layers: registration with PyTorch, refused arguments, NaN, and numbers of threads."""

import pytest
import torch
from norm_conv_cases import (
    EPS,
    MEDIUM,
    PARTS,
    SLOPE,
    TOLERANCE,
    Layer,
    arguments,
    call,
    gradient,
    kinds,
    on,
    values_and_gradients,
)
from torch.library import opcheck

from dip_fast.ops import extension, norm_conv

pytestmark = pytest.mark.skipif(extension.load() is None, reason="there is no compiled extension")


# ---- registration


@pytest.mark.cpu_only  # the emulated GPU has a layout of its own
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "bare"])
@kinds
def test_opcheck(device, layer, whole, requires_grad):
    tensors = arguments(layer, (3, 2 * whole, 4, 4, 5), plain=() if whole else ("image",), bias=whole)
    tensors = on(device, tensors)
    tensors = {name: tensor.requires_grad_(requires_grad) for name, tensor in tensors.items()}
    images = [name + part for name in ("image", "skip")[: 1 + bool(layer.mode)] for part in PARTS]
    norm = ["norm_weight", "norm_bias"] if layer.mode else []
    positional = [tensors.get(name) for name in (*images, *norm, "weight", "bias")]
    operator = torch.ops.dip_fast.norm_upsample_conv2d if layer.mode else torch.ops.dip_fast.norm_conv2d
    opcheck(operator, (*positional, SLOPE, EPS, layer.mode or layer.stride, layer.padding_mode))


@pytest.mark.cpu_only  # the emulated GPU has a layout of its own
@kinds
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_meta_tensors(layer, dtype):
    tensors = arguments(layer, (3, 2, 4, 5, 6), dtype)
    metas = call(norm_conv, layer, {name: tensor.to("meta") for name, tensor in tensors.items()})
    for meta, real in zip(metas, call(norm_conv, layer, tensors), strict=True):
        assert (meta.shape, meta.dtype, meta.stride()) == (real.shape, real.dtype, real.stride())
        assert meta.is_meta


@kinds
def test_argument_on_another_device_is_refused(layer):
    """A meta tensor among them once chose the kernel that only allocates: the output was uninitialised memory."""
    tensors = arguments(layer, (3, 2, 4, 5, 6))
    for name in tensors:
        with pytest.raises(ValueError, match="must be on the device of the image"):
            call(norm_conv, layer, tensors | {name: tensors[name].to("meta")})


@kinds
def test_second_derivatives_are_refused(device, layer):
    tensors = {name: tensor.requires_grad_() for name, tensor in on(device, arguments(layer, MEDIUM)).items()}
    output, _ = call(norm_conv, layer, tensors)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        torch.autograd.grad(output.square().sum(), tensors["image"], create_graph=True)


# ---- errors

CONV, UP = Layer(), Layer(mode="nearest")


def ones(*size, dtype=torch.float64):
    return torch.ones(size, dtype=dtype)


# The layer, changes of its arguments for the shape (3, 2, 4, 5, 6), and the error.
BAD = {
    "two images": (CONV, dict(image=ones(2, 3, 5, 6)), ValueError, r"input must be \(1, C, H, W\)"),
    "three axes": (CONV, dict(image=ones(3, 5, 6)), ValueError, r"input must be \(1, C, H, W\)"),
    "no rows": (CONV, dict(image=ones(1, 3, 0, 6)), ValueError, r"input must be .* >= 1, got \[1, 3, 0, 6\]"),
    "halves": (CONV, dict(image=ones(1, 3, 5, 6, dtype=torch.float16)), TypeError, "input must be of dtype float32 or"),
    "integers": (CONV, dict(image=ones(1, 3, 5, 6, dtype=torch.int64)), TypeError, "input must be of dtype float32 or"),
    "sparse": (CONV, dict(image=ones(1, 3, 5, 6).to_sparse()), NotImplementedError, "Sparse"),
    "channels": (CONV, dict(weight=ones(4, 2, 3, 3)), ValueError, r"weight must be \(K, C, 1, 1\) or .* with C=3, got"),
    "taps": (CONV, dict(weight=ones(4, 3, 5, 5)), ValueError, r"weight must be .*, got \[4, 3, 5, 5\]"),
    "oblong taps": (CONV, dict(weight=ones(4, 3, 3, 1)), ValueError, "weight must be"),
    "no outputs": (CONV, dict(weight=ones(0, 3, 3, 3), bias=None), ValueError, "weight must be"),
    "mixed weight": (CONV, dict(weight=ones(4, 3, 3, 3).float()), TypeError, "weight must be of dtype"),
    "bias": (CONV, dict(bias=ones(3)), ValueError, r"bias must be of shape \[4\]"),
    "mixed bias": (CONV, dict(bias=ones(4).float()), TypeError, "bias must be of dtype"),
    "half a norm": (CONV, dict(image_bias=None), ValueError, "input must come with its statistics"),
    "statistics": (CONV, dict(image_statistics=ones(3, 2)), ValueError, r"statistics must be of shape \[2, 3\]"),
    "short statistics": (CONV, dict(image_statistics=ones(2, 3).float()), TypeError, "statistics must be of dtype"),
    "norm weight": (CONV, dict(image_weight=ones(4)), ValueError, "norm_weight must be of shape"),
    "norm bias": (CONV, dict(image_bias=ones(3).float()), TypeError, "norm_bias must be of dtype"),
    "stride": (CONV, dict(stride=3), ValueError, "stride must be 1, or 2 with 3x3 taps, got 3"),
    "stride of one tap": (CONV, dict(weight=ones(4, 3, 1, 1), stride=2), ValueError, "stride must be 1, or 2 with 3x3"),
    "padding": (CONV, dict(padding_mode="circular"), ValueError, "padding_mode must be zeros, .* got 'circular'"),
    "nothing to reflect": (
        CONV,
        dict(image=ones(1, 3, 1, 6), padding_mode="reflect"),
        ValueError,
        "padding_mode reflect needs an input of 2x2 or more, got 1x6",
    ),
    "two deep images": (UP, dict(image=ones(2, 3, 5, 6)), ValueError, r"deep must be \(1, C, H, W\)"),
    "two skip images": (UP, dict(skip=ones(2, 2, 10, 12)), ValueError, r"skip must be \(1, C, H, W\)"),
    "size of skip": (UP, dict(skip=ones(1, 2, 5, 6)), ValueError, r"skip must be of shape \[1, 2, 10, 12\]"),
    "mixed images": (
        UP,
        dict(skip=ones(1, 2, 10, 12).float(), skip_statistics=None, skip_weight=None, skip_bias=None),
        TypeError,
        "skip must be of dtype",
    ),
    "half a skip norm": (UP, dict(skip_weight=None), ValueError, "skip must come with its statistics"),
    "norm between": (
        UP,
        dict(norm_weight=ones(3)),
        ValueError,
        r"norm_weight must be of shape \[5\], got \[3\]",
    ),
    "mixed norm": (UP, dict(norm_bias=ones(5).float()), TypeError, "norm_bias must be of dtype"),
    "joint channels": (
        UP,
        dict(weight=ones(4, 3, 3, 3)),
        ValueError,
        r"weight must be of shape \[4, 5, 3, 3\]",
    ),
    "joint taps": (UP, dict(weight=ones(4, 5, 1, 1)), ValueError, "weight must be of shape"),
    "joint bias": (UP, dict(bias=ones(3)), ValueError, r"bias must be of shape \[4\]"),
    "joint halves": (UP, dict(image=ones(1, 3, 5, 6).half()), TypeError, "deep must be of dtype float32 or"),
    "mode": (UP, dict(mode="cubic"), ValueError, "mode must be nearest or bilinear, got 'cubic'"),
    "joint padding": (UP, dict(padding_mode="circular"), ValueError, "padding_mode must be .* got 'circular'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(device, name):
    layer, changes, error, message = BAD[name]
    tensors = arguments(layer, (3, 2, 4, 5, 6))
    options = {name: changes[name] for name in changes if name not in tensors}
    tensors |= {n: t for n, t in changes.items() if n in tensors}
    tensors = {n: t if t is None else t.to(device) for n, t in tensors.items()}
    if device.type == "cuda" and error is TypeError:
        message = "must be of dtype"  # a GPU supports more dtypes: bfloat16 with parameters of float32
    with pytest.raises(error, match=message):
        call(norm_conv, layer, tensors, **options)


@kinds
def test_nan_reaches_the_statistics(device, layer):
    tensors = on(device, arguments(layer, MEDIUM))
    tensors["image"][0, 1, 2, 3] = torch.nan
    _, statistics = call(norm_conv, layer, tensors)
    assert statistics.isnan().all()


# ---- threads


# A round, many bands, several threads to each; bilinear in two strips.
@pytest.mark.parametrize("shape", [(20, 4, 70, 40, 36), (8, 3, 7, 71, 33), (2, 4, 128, 6, 330)], ids=str)
@kinds
def test_same_bits_for_any_number_of_threads(layer, shape):
    tensors, grad = arguments(layer, shape, torch.float32), gradient(layer, shape)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(values_and_gradients(norm_conv, layer, tensors, grad))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        for name, tensor in result.items():
            assert torch.equal(tensor, results[0][name]), name
