"""The operator similar_patches: its kernels against its definition, registration, refusals."""

import pytest
import torch
from torch.library import opcheck

from dip_fast.ops import similar_patches
from dip_fast.ops.patches import UNIT, band, similar_patches_reference

TABLE = torch.linspace(0.002, 0.02, 7, dtype=torch.float64)  # of means from 0.2 to 0.8
DEFAULTS = {"n": 0, "first": 0, "rows": 2, "alike": 6, "neighbours": 0, "reach": 4, "near": 0}
DEFAULTS |= {"variance": TABLE, "low": 0.2, "high": 0.8}


def images(*shape):
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(shape, generator=generator)
    return [clean + s * torch.randn(shape, generator=generator) for s in (0.1, 0.03)]


# A single patch's width, ragged vectors, one channel to many, the middle and the end of a stack, a few of the rows.
CASES = {
    "one channel": ((1, 1, 20, 23), {"rows": 6, "alike": 24, "reach": 13}),
    "colour": ((1, 3, 20, 26), {"rows": 6, "alike": 24, "reach": 13}),
    "a row": ((1, 3, 41, 26), {"first": 4, "rows": 1}),
    "a column": ((1, 4, 31, 5), {"first": 1, "rows": 5, "alike": 5, "reach": 13}),
    "many channels": ((1, 9, 11, 14), {"rows": 3, "alike": 3, "reach": 2}),
    "ends of patches are not ends of the picture": ((1, 2, 16, 19), {"rows": 4}),
    "stack": ((5, 2, 14, 17), {"n": 2, "rows": 3, "alike": 40, "neighbours": 2, "reach": 13, "near": 6}),
    "end of a stack": ((3, 1, 14, 17), {"n": 2, "first": 1, "rows": 3, "alike": 9, "neighbours": 1, "near": 4}),
}


@pytest.mark.parametrize("case", CASES)
def test_kernel_computes_the_definition(level, device, case):
    shape, asked = CASES[case]
    y, x = images(*shape)
    options = DEFAULTS | asked
    there = options | {"variance": TABLE.to(device)}
    sums, count = (part.cpu() for part in similar_patches(y.to(device), x.to(device), **there))
    expected, number = similar_patches_reference(y, x, **options)
    assert torch.equal(count, number)
    assert number.sum() == 25 * options["alike"] * options["rows"] * ((shape[3] - 5) // 3 + 1)
    assert float((sums - expected).abs().max()) * UNIT < 40 * 1e-9


def test_sums_are_those_of_whole_rows(level):
    """However rows are divided among calls, and threads: whole numbers add up to the same."""
    y, x = images(3, 2, 29, 17)
    options = DEFAULTS | {"n": 1, "neighbours": 1, "near": 2}
    whole = similar_patches(y, x, **options | {"rows": 9})
    sums, count = torch.zeros_like(whole[0]), torch.zeros_like(whole[1])
    for first, rows in ((0, 2), (2, 4), (6, 3)):
        pictures, lines = band(y.shape, 1, first, rows, 1, 4)
        parts = similar_patches(y, x, **options | {"first": first, "rows": rows})
        sums[pictures, :, lines] += parts[0]
        count[pictures, lines] += parts[1]
    assert torch.equal(sums, whole[0])
    assert torch.equal(count, whole[1])


def test_layout_decides_nothing(level):
    y, x = images(1, 3, 14, 20)
    expected = similar_patches(y, x, **DEFAULTS)
    last = [image.contiguous(memory_format=torch.channels_last) for image in (y, x)]
    for got, wanted in zip(similar_patches(*last, **DEFAULTS), expected, strict=True):
        assert torch.equal(got, wanted)


def test_opcheck(device):
    y, x = (image.to(device) for image in images(2, 2, 11, 14))
    options = DEFAULTS | {"neighbours": 1, "near": 2, "variance": TABLE.to(device)}
    opcheck(torch.ops.dip_fast.similar_patches.default, (y, x, *options.values()))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 2}, "n must be one of the 2 pictures, counted from 0, got 2"),
        ({"first": 3}, r"rows 3 \.\. 3 \+ 2 of groups must lie in 0 \.\. 4"),
        ({"rows": 0}, r"rows 0 \.\. 0 \+ 0 of groups must lie in 0 \.\. 4"),
        ({"near": 5}, "neighbours must be at least 0, and 0 <= near <= reach <= 64, got 0, 5 and 4"),
        ({"alike": 1}, r"alike must be in 2 \.\. 25, got 1"),
        ({"alike": 26}, r"alike must be in 2 \.\. 25, got 26"),
        ({"variance": TABLE[:1]}, "variance must be a table of two values or more"),
        ({"high": 0.1}, "from low to a larger high"),
    ],
)
def test_refusals(wrong, message):
    for where in ("cpu", "meta"):
        options = {name: value.to(where) if name == "variance" else value for name, value in (DEFAULTS | wrong).items()}
        y = torch.zeros(2, 3, 14, 17, device=where)
        with pytest.raises(ValueError, match=message):
            similar_patches(y, y, **options)


def test_other_tensors_are_refused():
    y = torch.zeros(2, 3, 14, 17)
    for images, message in (
        ((y.double(), y), "y must be of dtype float32"),
        ((y, y.half()), "x must be of dtype float32"),
    ):
        with pytest.raises(TypeError, match=message):
            similar_patches(*images, **DEFAULTS)
    with pytest.raises(TypeError, match="variance must be of dtype float64"):
        similar_patches(y, y, **DEFAULTS | {"variance": TABLE.float()})
    with pytest.raises(ValueError, match="x must be of the shape of y"):
        similar_patches(y, y[:1], **DEFAULTS)
    with pytest.raises(ValueError, match=r"y must be \(N, C, H, W\) with N, C >= 1 and H, W >= 5"):
        similar_patches(y[..., :4], y[..., :4], **DEFAULTS)
