"""Crops with holes: their step in a tensor, registration, refusals."""

import math

import pytest
import torch
from masking_cases import FAR, pictures, same
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from dip_fast.ops import masked_crop, masked_window
from dip_fast.ops.masking import masked_crop_reference, masked_window_reference


@pytest.mark.parametrize("step", [0, 3, *FAR])
def test_step_in_a_tensor_is_the_same_step(device, step):
    y = pictures(2, 1, 9, 11, device=device)
    counter = torch.tensor(step, device=device)
    for function in (masked_crop, masked_crop_reference):
        expected = function(y, 8, 3, 0.6, 2, 5, step)
        for got, wanted in zip(function(y, 8, 3, 0.6, 2, 5, counter), expected, strict=True):
            assert torch.equal(got, wanted)
    for function in (masked_window, masked_window_reference):
        expected = function(y, 1, -3, -3, 14, 15, 5, 0.6, 2, 5, step)
        for got, wanted in zip(function(y, 1, -3, -3, 14, 15, 5, 0.6, 2, 5, counter), expected, strict=True):
            assert torch.equal(got, wanted)


class NoHostRead(TorchDispatchMode):
    """Refuses what brings a value of a tensor to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[-1]
        assert name not in ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal"), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("function", [masked_crop, masked_crop_reference], ids=["kernel", "definition"])
@pytest.mark.parametrize("block", [1, 2])
def test_step_in_a_tensor_is_not_read_on_the_host(device, function, block):
    y, step = pictures(2, 1, 9, 11, device=device), torch.tensor(3, device=device)
    with NoHostRead():
        function(y, 8, 3, 0.6, block, 5, step)


def test_shapes_need_no_data():
    y, step = torch.empty(2, 3, 20, 30, device="meta"), torch.empty((), dtype=torch.int64, device="meta")
    for crop in (masked_crop, masked_crop_reference):
        z, target = crop(y, 16, 2, 0.5, 2, 0, step)
        assert (z.shape, target.shape) == ((1, 6, 16, 16), (1, 3, 16, 16))
    for window in (masked_window, masked_window_reference):
        z, target = window(y, 1, 0, 0, 5, 9, 4, 0.5, 2, 0, step)
        assert (z.shape, target.shape) == ((1, 6, 9, 5), (1, 3, 9, 5))


@pytest.mark.gpu
def test_graph_draws_a_crop_for_each_step(gpu):
    y, counter = pictures(2, 3, 40, 50, device=gpu), torch.tensor(3, device=gpu)
    masked_crop(y, 24, 5, 0.8, 2, 7, counter)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        counter += 1
        got = masked_crop(y, 24, 5, 0.8, 2, 7, counter)
    for step in (4, 5):
        graph.replay()
        same(got, [part.cpu() for part in masked_crop(y, 24, 5, 0.8, 2, 7, step)])


@pytest.mark.parametrize("block", [1, 3])
def test_opcheck(device, block):
    y, step = pictures(2, 3, 7, 9, device=device), torch.tensor(4, device=device)
    opcheck(torch.ops.dip_fast.masked_crop.default, (y, 5, 2, 0.7, block, 3, step))
    opcheck(torch.ops.dip_fast.masked_window.default, (y, 1, -2, 3, 6, 11, 6, 0.7, block, 3, step))


def test_layout_decides_nothing(device):
    y = pictures(2, 3, 20, 30)
    wanted = masked_crop(y, 16, 2, 0.7, 2, 3, 4)
    for like in (y.contiguous(memory_format=torch.channels_last), pictures(2, 3, 20, 60).copy_(y.repeat(1, 1, 1, 2))):
        same(masked_crop(like[..., :30].to(device), 16, 2, 0.7, 2, 3, 4), wanted)


def test_outputs_share_no_memory_with_the_picture(device):
    y = pictures(1, 1, 8, 8, device=device)
    before = y.clone()
    for part in masked_window(y, 0, 0, 0, 8, 8, 0, 1.0, 1, 0, 0):
        part.zero_()
    assert torch.equal(y, before)


CROP_DEFAULTS = {"side": 8, "margin": 0, "keep": 0.5, "block": 1, "seed": 0, "step": 0}
WINDOW_DEFAULTS = {"n": 0, "top": 0, "left": 0, "height": 4, "width": 4, "orientation": 0}
WINDOW_DEFAULTS |= {"keep": 0.5, "block": 1, "seed": 0, "step": 0}
WRONG = [
    (masked_crop, {"side": 0}, r"side must be in 1 \.\. 20, which pictures of 20x30 have with a margin of 0, got 0"),
    (
        masked_crop,
        {"side": 25, "margin": 2},
        r"side must be in 1 \.\. 24, .* got 25: crop less, or allow a wider",
    ),
    (masked_crop, {"margin": -1}, r"margin must be in 0 \.\. 2\*\*30, got -1"),
    *(
        (function, {"keep": keep}, rf"keep must be a probability, in \[0, 1\], got {keep}")
        for function in (masked_crop, masked_window)
        for keep in (-0.1, 1.5, math.nan)
    ),
    *(
        (function, {"block": block}, rf"block must be a number of pixels in 1 \.\. 64, got {block}")
        for function in (masked_crop, masked_window)
        for block in (0, 65)
    ),
    (masked_window, {"n": 2}, "n must be one of the 2 pictures, counted from 0, got 2"),
    (masked_window, {"n": -1}, "n must be one of the 2 pictures, counted from 0, got -1"),
    (masked_window, {"top": 2**31}, r"top and left must be in -2\*\*30 \.\. 2\*\*30, got 2147483648 and 0"),
    (masked_window, {"left": -(2**40)}, r"top and left must be in -2\*\*30 \.\. 2\*\*30, got 0 and -1099511627776"),
    (masked_window, {"height": 0}, r"height and width must be in 1 \.\. 2\*\*30, got 0 and 4"),
    (masked_window, {"orientation": 8}, r"orientation must be in 0 \.\. 7, got 8"),
]


@pytest.mark.parametrize(
    ("function", "wrong", "message"), WRONG, ids=lambda value: getattr(value, "__name__", str(value)[:40])
)
def test_refusals(device, function, wrong, message):
    defaults = CROP_DEFAULTS if function is masked_crop else WINDOW_DEFAULTS
    for where in (device, "meta"):
        with pytest.raises(ValueError, match=message):
            function(torch.zeros(2, 3, 20, 30, device=where), **(defaults | wrong))


@pytest.mark.parametrize(("function", "defaults"), [(masked_crop, CROP_DEFAULTS), (masked_window, WINDOW_DEFAULTS)])
def test_other_tensors_are_refused(device, function, defaults):
    for where in (device, torch.device("meta")):
        y = torch.zeros(2, 3, 20, 30, device=where)
        with pytest.raises(TypeError, match=r"y must be of dtype float32, got"):
            function(y.double(), **defaults)
        for shape in [(3, 20, 30), (1, 0, 20, 30), (0, 1, 20, 30)]:
            with pytest.raises(ValueError, match=r"y must be \(N, C, H, W\) with N, C, H, W >= 1, got [\[(]"):
                function(torch.zeros(shape, device=where), **defaults)
        with pytest.raises(TypeError, match=r"step must be a tensor of one int64, got 1 of"):
            function(y, **(defaults | {"step": torch.tensor(1.0, device=where)}))
    with pytest.raises(ValueError, match="step must be on the device of y, meta, got cpu"):
        function(y, **(defaults | {"step": torch.tensor(1)}))
