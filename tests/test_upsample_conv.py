"""The operator against its definition in float64: values, gradients, registration, errors, threads."""

import itertools
import math
import os
import subprocess
import sys

import pytest
import torch
from torch.library import opcheck

from dip_fast.device.precision import products
from dip_fast.ops import extension, reference, upsample_conv2d

KINDS = list(itertools.product(reference.MODES, reference.PADDING_MODES))
MASKS = list(itertools.product([False, True], repeat=3))
kinds = pytest.mark.parametrize(("mode", "padding_mode"), KINDS)
needs_extension = pytest.mark.skipif(extension.load() is None, reason="there is no compiled extension")

# N, C, K, H, W: tiles of 4, 6 and 12 rows, panels of 8, 16 and 32 sites, blocks of 64 sites, bands of 32 rows, each
# one less, equal and one more somewhere; one pixel wide and high.
SHAPES = [
    (1, 1, 1, 1, 1),
    (0, 3, 2, 4, 4),
    (2, 3, 5, 1, 9),
    (1, 5, 7, 7, 1),
    (3, 2, 4, 2, 2),
    (1, 17, 13, 8, 8),
    (1, 16, 12, 5, 15),
    (1, 15, 25, 3, 33),
    (1, 129, 6, 4, 4),
    (1, 4, 65, 33, 17),
    (1, 3, 8, 65, 31),
    (1, 2, 3, 34, 130),
    (1, 2, 128, 4, 330),  # bilinear: two strips of columns, the second narrower
    (1, 2, 9, 68, 504),  # an output of more than 4 MB
]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6}  # norm-relative; worst seen 9e-15 and 7e-7
TOLERANCE_CUDA = {torch.float64: 1e-10, torch.float32: 1e-5}  # sums in another order


def arguments(shape, dtype=torch.float64, seed=0):
    N, C, K, H, W = shape
    generator = torch.Generator().manual_seed(seed)
    sizes = (N, C, H, W), (K, C, 3, 3), (K,), (N, K, 2 * H, 2 * W)
    return [torch.randn(size, dtype=dtype, generator=generator) for size in sizes]


def on(device, tensors):
    """The same tensors on a device, the images laid out as they are there."""
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


@kinds
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_the_definition(level, device, shape, dtype, mode, padding_mode):
    data = arguments(shape, dtype)
    got = values_and_gradients(fused(mode, padding_mode), *on(device, data))
    wanted = values_and_gradients(plain(mode, padding_mode), *(t.double() for t in data))
    assert_close(got, wanted, (TOLERANCE_CUDA if device.type == "cuda" else TOLERANCE)[dtype])


def test_any_shape_strides_and_dtype():
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies
    channels, sides = st.integers(1, 20), st.integers(1, 40)

    @hypothesis.settings(deadline=None, max_examples=60, derandomize=True)
    @hypothesis.given(
        shape=st.tuples(st.integers(0, 2), channels, channels, sides, sides),
        kind=st.sampled_from(KINDS),
        dtype=st.sampled_from([torch.float32, torch.float64]),
        order=st.permutations(range(4)),
        step=st.integers(1, 2),
        seed=st.integers(0, 5),
    )
    def check(shape, kind, dtype, order, step, seed):
        def strided(tensor):  # the same values: axes stored in another order, and with gaps
            stored = tensor.permute(order).contiguous().repeat_interleave(step, dim=-1)[..., ::step]
            return stored.permute([order.index(axis) for axis in range(4)])

        input, weight, bias, grad = arguments(shape, dtype, seed)
        got = values_and_gradients(fused(*kind), strided(input), strided(weight), bias, strided(grad))
        wanted = values_and_gradients(plain(*kind), *(t.double() for t in (input, weight, bias, grad)))
        assert_close(got, wanted, TOLERANCE[dtype])

    check()


@kinds
def test_gradcheck(device, mode, padding_mode):
    leaves = [t.requires_grad_() for t in on(device, arguments((2, 3, 4, 3, 2))[:3])]
    assert torch.autograd.gradcheck(fused(mode, padding_mode), leaves)
    assert torch.autograd.gradgradcheck(fused(mode, padding_mode), leaves)


@kinds
def test_adjoints(device, mode, padding_mode):
    """<A x, g> = <x, A* g> and <B w, g> = <w, B* g>: the operator is linear in its input and in its weight."""
    input, weight, bias, grad = on(device, arguments((2, 9, 10, 12, 11)))
    output, grad_input, grad_weight, _ = values_and_gradients(
        fused(mode, padding_mode), input, weight, torch.zeros_like(bias), grad
    )
    product = (output * grad).sum()
    torch.testing.assert_close((input * grad_input).sum(), product)
    torch.testing.assert_close((weight * grad_weight).sum(), product)


def assert_rounds_as_well(kind, device, factor, dtype=torch.float32, floor=1e-8):
    """Compare the errors of the operator and of the layers by the medians of their norms over some seeds."""
    errors = {"fused": [], "plain": []}
    for seed in range(5):
        data = [t.to(dtype) for t in arguments((1, 128, 128, 16, 16), torch.float32, seed)]
        wanted = values_and_gradients(plain(*kind), *(t.double() for t in data))
        for name, function in (("fused", fused), ("plain", plain)):
            got = values_and_gradients(function(*kind), *on(device, data))
            errors[name].append([relative_error(a, b) for a, b in zip(got, wanted, strict=True)])
    medians = {name: torch.tensor(rows).median(0).values for name, rows in errors.items()}
    assert (medians["fused"] <= factor * medians["plain"] + floor).all(), medians


@needs_extension
@kinds
def test_rounds_as_well_as_pytorch(device, mode, padding_mode):
    assert_rounds_as_well((mode, padding_mode), device, 1.5)


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "factor"), [("tf32", 2.0), ("bf16", 3.0)])
@kinds
def test_rounds_as_well_as_cudnn(gpu, mode, padding_mode, precision, factor):
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with products(precision, gpu):
        assert_rounds_as_well((mode, padding_mode), gpu, factor, dtype, floor=2**-23)


def rounded(tensor, precision):
    """The factors of products on tensor cores."""
    if precision == "bf16":
        return tensor.bfloat16().double()
    bits = tensor.float().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).double()


def plain_with_rounded_factors(kind, precision, input, weight, grad):
    """The layers in float64, with factors, and in bf16 results, rounded as tensor cores have them."""

    def straight_through(tensor):
        return tensor + (rounded(tensor.detach(), precision) - tensor.detach())

    leaves = [t.double().requires_grad_() for t in (input, weight)]
    mode, padding_mode = kind
    upsampled = torch.nn.functional.interpolate(leaves[0], scale_factor=2, mode=mode)
    pad_mode = "constant" if padding_mode == "zeros" else padding_mode
    padded = torch.nn.functional.pad(upsampled, (1, 1, 1, 1), pad_mode)
    output = torch.nn.functional.conv2d(straight_through(padded), straight_through(leaves[1]))
    gradients = torch.autograd.grad(output, leaves, rounded(grad, precision))
    return [t.to(input.dtype) for t in (output.detach(), *gradients)]


@pytest.mark.skipif("DIP_FAST_EMULATED" not in os.environ, reason="for the CUDA kernels on the CPU")
@pytest.mark.parametrize(("precision", "factor"), [("tf32", 2.0), ("bf16", 3.0)])
@kinds
def test_emulated_tensor_cores_round_as_well_as_the_layers(monkeypatch, mode, padding_mode, precision, factor):
    """Worst seen: 1.66 and 2.32 for the output, to the nearest; 1.00 and 1.43 for gradients."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    kind, errors = (mode, padding_mode), {"fused": [], "plain": []}
    for seed in range(2):
        input, weight, bias, grad = arguments((1, 64, 64, 16, 16), torch.float32, seed)
        data = [t.to(torch.bfloat16 if precision == "bf16" else torch.float32) for t in (input, weight, bias * 0, grad)]
        wanted = values_and_gradients(plain(*kind), *(t.double() for t in data))[:3]
        got = {
            "fused": values_and_gradients(fused(*kind), *data)[:3],
            "plain": plain_with_rounded_factors(kind, precision, data[0], data[1], data[3]),
        }
        for name, results in got.items():
            errors[name].append([relative_error(a, b) for a, b in zip(results, wanted, strict=True)])
    means = {name: torch.tensor(rows).mean(0) for name, rows in errors.items()}
    assert (means["fused"] <= factor * means["plain"]).all(), means


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@kinds
def test_same_bits_from_call_to_call_and_from_a_graph(gpu, from_a_graph, mode, padding_mode, precision):
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    data = on(gpu, [t.to(dtype) for t in arguments((1, 33, 40, 31, 45), torch.float32)])

    def function():
        return values_and_gradients(fused(mode, padding_mode), *data)

    with products(precision, gpu):
        first = function()
        again, captured = from_a_graph(function)
    for a, b, c in zip(first, again, captured, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@kinds
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_spreads_no_further_than_in_pytorch(device, mode, padding_mode, value):
    for row, column in itertools.product((0, 1, 6, 11), (0, 1, 5, 8)):
        input, weight, bias, _ = on(device, arguments((1, 3, 4, 12, 9), torch.float32))
        input[0, 1, row, column] = value
        finite = fused(mode, padding_mode)(input, weight, bias).isfinite()
        assert (finite | ~plain(mode, padding_mode)(input, weight, bias).isfinite()).all(), (row, column)


# ---- registration


@pytest.mark.cpu_only  # what is emulated lays images out as a GPU does
@kinds
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_forward(device, mode, padding_mode, requires_grad):
    input, weight, bias, _ = (t.requires_grad_(requires_grad) for t in on(device, arguments((2, 3, 4, 3, 2))))
    for b in (bias, None):
        opcheck(torch.ops.dip_fast.upsample_conv2d, (input, weight, b, mode, padding_mode))


@pytest.mark.cpu_only  # what is emulated lays images out as a GPU does
@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_backward(device, mask, requires_grad):
    input, weight, _, grad = (t.requires_grad_(requires_grad) for t in on(device, arguments((2, 3, 4, 3, 2))))
    operator = torch.ops.dip_fast.upsample_conv2d_backward
    opcheck(operator, (grad, input, weight, "bilinear", "reflect", list(mask)))


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_computes_only_the_gradients_wanted(device, mask):
    input, weight, bias, grad = on(device, arguments((2, 3, 4, 5, 6)))
    wanted = values_and_gradients(plain("nearest", "zeros"), input, weight, bias, grad)[1:]
    got = torch.ops.dip_fast.upsample_conv2d_backward(grad, input, weight, "nearest", "zeros", list(mask))
    for chosen, a, b in zip(mask, got, wanted, strict=True):
        if chosen:
            torch.testing.assert_close(a, b)
        else:
            assert a.shape == (0,)


@pytest.mark.filterwarnings("ignore")
def test_compiles_without_a_graph_break():
    leaves = [t.requires_grad_() for t in arguments((2, 3, 4, 5, 6))[:3]]
    function = fused("bilinear", "reflect")
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*leaves), function(*leaves))
    got = torch.autograd.grad(compiled(*leaves).sum(), leaves)
    torch.testing.assert_close(got, torch.autograd.grad(function(*leaves).sum(), leaves))


def test_exports():
    class Model(torch.nn.Module):
        def forward(self, x, w, b):
            return upsample_conv2d(x, w, b, mode="bilinear", padding_mode="zeros")

    data = tuple(arguments((1, 3, 4, 5, 6))[:3])
    program = torch.export.export(Model(), data)
    assert "dip_fast.upsample_conv2d" in str(program.graph)
    torch.testing.assert_close(program.module()(*data), Model()(*data))


@pytest.mark.cpu_only
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_computed_in_float32_on_a_cpu(dtype):
    data = [t.to(dtype) for t in arguments((1, 8, 8, 6, 6))]
    got = values_and_gradients(fused("nearest", "zeros"), *data)
    wanted = values_and_gradients(fused("nearest", "zeros"), *(t.float() for t in data))
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b.to(dtype))


def test_autocast_gives_bfloat16_as_a_convolution_does():
    input, weight, bias, _ = arguments((1, 8, 8, 6, 6), torch.float32)
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = upsample_conv2d(input, weight, bias)
    output.float().sum().backward()
    assert output.dtype == torch.bfloat16
    assert weight.grad.dtype == torch.float32


# ---- errors

BAD = {
    "input of three axes": (dict(input=torch.ones(3, 4, 4)), ValueError, r"input must be \(N, C, H, W\)"),
    "empty height": (dict(input=torch.ones(1, 3, 0, 4)), ValueError, r"input must be .* >= 1, got"),
    "wrong channels": (dict(weight=torch.ones(2, 4, 3, 3)), ValueError, r"weight must be \(K, C, 3, 3\).*C=3"),
    "wrong taps": (dict(weight=torch.ones(2, 3, 5, 5)), ValueError, r"weight must be \(K, C, 3, 3\)"),
    "wrong bias": (dict(bias=torch.ones(3)), ValueError, r"bias must be \(K,\) with K=2"),
    "mode": (dict(mode="cubic"), ValueError, "mode must be .*cubic"),
    "padding mode": (dict(padding_mode="circular"), ValueError, "padding_mode must be .*circular"),
    "integers": (dict(input=torch.ones(1, 3, 4, 4, dtype=torch.int64)), TypeError, "input must be of dtype"),
    "mixed dtypes": (dict(weight=torch.ones(2, 3, 3, 3).double()), TypeError, "weight must have the dtype of input"),
    "mixed bias": (dict(bias=torch.ones(2).double()), TypeError, "bias must have the dtype of input"),
}


@pytest.mark.parametrize("direct", [False, True], ids=["wrapper", "operator"])
@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(device, case, direct):
    changes, error, message = BAD[case]
    good = dict(input=torch.ones(1, 3, 4, 4), weight=torch.ones(2, 3, 3, 3), bias=None, mode="nearest")
    given = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in (good | changes).items()}
    call = torch.ops.dip_fast.upsample_conv2d if direct else upsample_conv2d
    with pytest.raises(error, match=message):
        call(**(dict(padding_mode="zeros") | given))


def test_bad_gradient(device):
    input, weight, _, grad = on(device, arguments((1, 3, 2, 4, 4)))
    with pytest.raises((ValueError, RuntimeError), match="grad"):
        torch.ops.dip_fast.upsample_conv2d_backward(grad[..., 1:], input, weight, "nearest", "zeros", [True] * 3)


@needs_extension
def test_meta_tensors_work_and_other_devices_are_refused():
    input, weight = torch.ones(1, 3, 4, 4, device="meta"), torch.ones(2, 3, 3, 3, device="meta")
    assert upsample_conv2d(input, weight).shape == (1, 2, 8, 8)
    with pytest.raises(NotImplementedError):
        torch.ops.dip_fast.upsample_conv2d(torch.ones(1, 3, 4, 4).to_sparse(), weight, None, "nearest", "zeros")


# ---- threads and instruction sets


@needs_extension
@pytest.mark.parametrize(
    "shape", [(1, 20, 70, 40, 36), (1, 8, 7, 70, 33), (2, 33, 9, 9, 50), (1, 2, 9, 68, 504)], ids=str
)
@kinds
def test_bit_identical_for_any_number_of_threads(level, mode, padding_mode, shape):
    data = arguments(shape, torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 4, 1):
            torch.set_num_threads(threads)
            results.append(values_and_gradients(fused(mode, padding_mode), *data))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        for a, b in zip(results[0], result, strict=True):
            assert torch.equal(a, b)


@needs_extension
def test_loops_are_parallel():
    assert extension.load().build_information()["parallel"]


@needs_extension
def test_selecting_kernels():
    module = extension.load()
    assert module.cpu_levels()[0] == "portable"
    with pytest.raises(ValueError, match="must be portable, avx2 or avx512, got sse9"):
        module.select_cpu_level("sse9")
    if "avx512" not in module.cpu_levels():
        with pytest.raises(ValueError, match="cannot run avx512"):
            module.select_cpu_level("avx512")


@needs_extension
@pytest.mark.parametrize(("value", "expected"), [("portable", "portable"), ("sse9", "must be portable")])
def test_environment_forces_kernels(value, expected):
    code = "from dip_fast.ops import extension; print(extension.load().cpu_level())"
    result = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"DIP_FAST_CPU": value}, capture_output=True, text=True
    )
    assert expected in (result.stdout if value == expected else result.stderr)
    assert (result.returncode == 0) == (value == expected)


MEASURE_SCRATCH = """
import ctypes
import sys
from pathlib import Path
import torch
from dip_fast.ops import upsample_conv2d

def status(name):
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return 1024 * int(line.split()[1])

mode, mask, size, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(threads)
x, w = torch.randn(1, 128, size, size), torch.randn(128, 128, 3, 3)
g = torch.randn(1, 128, 2 * size, 2 * size)

def run(x, w, g):
    if mask == "":
        return [upsample_conv2d(x, w, mode=mode, padding_mode="reflect")]
    return torch.ops.dip_fast.upsample_conv2d_backward(g, x, w, mode, "reflect", [c == "1" for c in mask])

run(x[:, :4, :8, :8].clone(), w[:4, :4].clone(), g[:, :4, :16, :16].clone())  # what is there once and for all
ctypes.CDLL(None).malloc_trim(0)  # nothing freed before is taken again unseen
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
before = status("VmRSS")
returned = sum(t.nbytes for t in run(x, w, g))
print((status("VmHWM") - before - returned) / threads)
"""


@needs_extension
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be started again")
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("mask", ["", "100", "011"], ids=["forward", "data", "weight"])
@pytest.mark.parametrize(("size", "threads"), [(64, 1), (200, 2)])
def test_scratch_stays_below_two_megabytes_a_thread(mode, mask, size, threads):
    command = [sys.executable, "-c", MEASURE_SCRATCH, mode, mask, str(size), str(threads)]
    assert float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) < 2e6
