"""The operator ``upsample_conv2d``: registration with PyTorch, refused arguments, threads, instruction sets, memory."""

import itertools
import os
import subprocess
import sys

import pytest
import torch
from torch.library import opcheck
from upsample_conv_cases import (
    arguments,
    fused,
    kinds,
    needs_extension,
    on,
    plain,
    values_and_gradients,
)

from dip_fast.ops import extension, upsample_conv2d

MASKS = list(itertools.product([False, True], repeat=3))


# ---- registration


@pytest.mark.cpu_only  # the emulated GPU has a layout of its own
@kinds
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_forward(device, mode, padding_mode, requires_grad):
    input, weight, bias, _ = (t.requires_grad_(requires_grad) for t in on(device, arguments((2, 3, 4, 3, 2))))
    for b in (bias, None):
        opcheck(torch.ops.dip_fast.upsample_conv2d, (input, weight, b, mode, padding_mode))


@pytest.mark.cpu_only  # the emulated GPU has a layout of its own
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
    with pytest.raises(ValueError, match="must be portable, avx2, avx512 or avx512_bf16, got sse9"):
        module.select_cpu_level("sse9")
    if "avx512" not in module.cpu_levels():
        with pytest.raises(ValueError, match="cannot run avx512"):
            module.select_cpu_level("avx512")


@needs_extension
@pytest.mark.parametrize(("value", "expected"), [("portable", "portable"), ("sse9", "must be portable")])
def test_environment_forces_kernels(value, expected):
    code = "from dip_fast.ops import extension; print(extension.load().cpu_level())"
    result = subprocess.run(
        [sys.executable, "-P", "-c", code], env=os.environ | {"DIP_FAST_CPU": value}, capture_output=True, text=True
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

run(x[:, :4, :8, :8].clone(), w[:4, :4].clone(), g[:, :4, :16, :16].clone())  # memory that is allocated once
ctypes.CDLL(None).malloc_trim(0)  # memory freed before must not be used again unseen
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = status("VmRSS")
returned = sum(t.nbytes for t in run(x, w, g))
print((status("VmHWM") - before - returned) / threads)
"""


@needs_extension
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of memory cannot be reset")
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("mask", ["", "100", "011"], ids=["forward", "data", "weight"])
@pytest.mark.parametrize(("size", "threads"), [(64, 1), (200, 2)])
def test_scratch_stays_below_two_megabytes_a_thread(mode, mask, size, threads):
    command = [sys.executable, "-P", "-c", MEASURE_SCRATCH, mode, mask, str(size), str(threads)]
    assert float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) < 2e6
