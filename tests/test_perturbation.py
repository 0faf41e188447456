"""The noise added to the network input and the masks made of it: generator, distribution, and what they depend on."""

import math
from typing import Any

import pytest
import torch
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from dip_fast.ops import bernoulli, extension, perturb
from dip_fast.ops.perturbation import GROUP, perturb_reference, philox

needs_extension = pytest.mark.skipif(extension.load() is None, reason="there is no compiled extension")
# Less than a group, one and several; a fraction of a vector and of a group; enough for several threads.
SHAPES = [(1,), (0, 3), (GROUP - 1,), (GROUP,), (GROUP + 1,), (3, 5, 7), (1, 4, 65, 130), (2, 3, 150, 151)]
FAR = 2**31, 2**32 + 5, 2**63 - 1, -(2**63), -1


def noise(*shape, seed=0, step=1, device="cpu"):
    return perturb(torch.zeros(shape, device=device), 1.0, seed, step)


# The known answers that come with the generator's own library (Random123, kat_vectors).
@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_its_known_answers(counter, key, words):
    def parsed(text):
        return tuple(int(word, 16) for word in text.split())

    assert philox(parsed(counter), parsed(key)) == parsed(words)
    tensors = philox(tuple(torch.tensor([word]) for word in parsed(counter)), parsed(key))
    assert tuple(tensor.item() for tensor in tensors) == parsed(words)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_computes_the_definition(level, device, shape):
    z = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    got, wanted = perturb(z.to(device), 0.5, 7, 3).cpu(), perturb_reference(z, 0.5, 7, 3)
    assert got.shape == z.shape
    assert got.is_contiguous()
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", [0, *FAR])
@pytest.mark.parametrize("step", [0, *FAR])
def test_kernel_takes_all_bits_of_seed_and_step(level, device, seed, step):
    z = torch.zeros(GROUP)
    got, wanted = perturb(z.to(device), 1.0, seed, step).cpu(), perturb_reference(z, 1.0, seed, step)
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("dtype", "divisor"), [(torch.uint8, 2560), (torch.int8, 32)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_are_perturbed_as_their_quotients_are(level, device, shape, dtype, divisor):
    codes = torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    wanted = perturb_reference(codes, 0.5, 7, 3, divisor)
    quotient = (codes.float() / divisor).to(device)  # a GPU's own quotient is a product with the reciprocal
    got = perturb(codes.to(device), 0.5, 7, 3, divisor)
    assert torch.equal(got, perturb(quotient, 0.5, 7, 3))
    torch.testing.assert_close(got.cpu(), wanted, rtol=0, atol=1e-6)


def test_step_on_another_device_is_refused():
    with pytest.raises(ValueError, match="step must be on the device of z, cpu, got meta"):
        perturb(torch.zeros(4), 0.5, 7, torch.tensor(1, device="meta"))


@pytest.mark.parametrize("step", [0, 3, *FAR])
def test_counted_step_gives_the_same_noise(device, step):
    z = torch.rand(2, 5, 7, 30).to(device)
    counter = torch.tensor(step, device=device)
    assert torch.equal(torch.ops.dip_fast.perturb.counted(z, 0.5, 7, counter), perturb(z, 0.5, 7, step))
    assert torch.equal(perturb(z, 0.5, 7, counter), perturb(z, 0.5, 7, step))


@pytest.mark.gpu
def test_graph_counts_the_steps(gpu):
    z, counter = torch.rand(2, 5, 7, 30, device=gpu), torch.tensor(3, device=gpu)
    torch.ops.dip_fast.perturb.counted(z, 0.5, 7, counter)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        counter += 1
        got = torch.ops.dip_fast.perturb.counted(z, 0.5, 7, counter)
    for step in (4, 5):
        graph.replay()
        assert torch.equal(got, perturb(z, 0.5, 7, step))


@pytest.mark.gpu
def test_layout_decides_nothing(gpu):
    z = torch.rand(2, 5, 7, 30, device=gpu)
    last = perturb(z.contiguous(memory_format=torch.channels_last), 0.5, 7, 3)
    assert torch.equal(last, perturb(z, 0.5, 7, 3))


def test_kernel_is_as_exact_in_the_tails(level, device):
    """Worst seen over 10^7 values: 9.6e-7, at values of 4 and more."""
    z = torch.zeros(2**20)
    got, wanted = perturb(z.to(device), 1.0, 11, 13).cpu(), perturb_reference(z, 1.0, 11, 13)
    assert wanted.abs().max() > 4.5
    assert wanted.abs().min() < 1e-5
    torch.testing.assert_close(got, wanted, rtol=3e-7, atol=3e-7)


@needs_extension
def test_same_bits_from_every_instruction_set():
    module, before = extension.load(), extension.load().cpu_level()
    results = []
    try:
        for name in module.cpu_levels():
            module.select_cpu_level(name)
            results.append(noise(2, 3, 150, 151))
    finally:
        module.select_cpu_level(before)
    for result in results[1:]:
        assert torch.equal(result, results[0])


@needs_extension
@pytest.mark.parametrize("shape", [(1, 4, 200, 301), (5, 5, 7)], ids=str)
def test_same_bits_for_any_number_of_threads(level, shape):
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            results.append(noise(*shape))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert torch.equal(result, results[0])


def test_noise_at_a_place_does_not_depend_on_the_shape(device):
    long = noise(1000, device=device)
    for size in (1, 63, 64, 65, 500):
        assert torch.equal(noise(size, device=device), long[:size])
    z = torch.rand(6, 50, device=device)
    assert torch.equal(perturb(z.t(), 0.1, 1, 1), perturb(z.t().contiguous(), 0.1, 1, 1))
    assert torch.equal(noise(10, 100, device=device).flatten(), long)


def test_deviation_scales(device):
    z = torch.rand(500, device=device)
    assert torch.equal(perturb(z, 0.0, 1, 1), z)
    torch.testing.assert_close(perturb(z, 0.25, 1, 1), z + 0.25 * noise(500, seed=1, device=device))


# ---- distribution; seeds are fixed, so a bound (about 4 deviations of each statistic) holds always or never


def test_noise_is_normal():
    values = noise(2**20, seed=5).double()
    n = values.numel()
    assert abs(values.mean()) < 4 / math.sqrt(n)
    assert abs(values.square().mean() - 1) < 4 * math.sqrt(2 / n)
    assert abs(values.pow(3).mean()) < 4 * math.sqrt(15 / n)
    assert abs(values.pow(4).mean() - 3) < 4 * math.sqrt(96 / n)
    # Kolmogorov and Smirnov: 1.95 / sqrt(n) is passed by one sample in a thousand.
    uniform = torch.special.ndtr(values.sort().values)
    ranks = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum((uniform - ranks[:-1]).abs().max(), (uniform - ranks[1:]).abs().max())
    assert distance < 1.95 / math.sqrt(n)


def test_neighbours_are_uncorrelated():
    values = noise(2**18, seed=6).double()
    for lag in range(1, 2 * GROUP + 2):
        a, b = values[lag:], values[:-lag]
        assert abs((a * b).mean()) < 4.5 / math.sqrt(a.numel()), lag
        assert abs(((a * a - 1) * (b * b - 1)).mean()) < 4.5 * 2 / math.sqrt(a.numel()), lag


def test_each_step_and_each_seed_has_noise_of_its_own():
    draws = [noise(2**14, seed=seed, step=step) for seed, step in [(0, 0), (0, 1), (1, 0), (0, 2**32), (2**32, 0)]]
    draws += [noise(2**15)[2**14 :]]
    for i, a in enumerate(draws):
        for b in draws[:i]:
            assert abs((a * b).mean()) < 4.5 / math.sqrt(2**14)


# ---- masks


@pytest.mark.parametrize("keep", [0.01, 0.25, 0.5, 0.9])
def test_mask_keeps_its_share(device, keep):
    n = 2**18
    mask = bernoulli(torch.empty(n, device=device), keep, 3, 1)
    assert abs(mask.double().mean().item() - keep) < 4 * math.sqrt(keep * (1 - keep) / n)


@pytest.mark.parametrize("keep", [0.0, 1e-300, 1 - 2**-53, 1.0])
def test_mask_of_nothing_or_everything(device, keep):
    assert (bernoulli(torch.empty(2**12, device=device), keep, 3, 1) == (keep > 0.5)).all()


def test_mask_is_float32_whatever_it_is_like(device):
    wanted = (perturb(torch.zeros(2, 3, 5, 7, device=device), 1.0, 3, 4) < 0).float()
    assert set(wanted.unique().tolist()) == {0.0, 1.0}
    image = torch.full((2, 3, 5, 7), math.nan, device=device)
    images = [image, image.double().requires_grad_(), image.bfloat16(), torch.zeros_like(image, dtype=torch.uint8)]
    for like in [*images, image.contiguous(memory_format=torch.channels_last), image[:, :1].expand(2, 3, 5, 7)]:
        mask = bernoulli(like, 0.5, 3, 4)
        assert torch.equal(mask, wanted)
        assert (mask.dtype, mask.device, mask.requires_grad) == (torch.float32, like.device, False)
        assert mask.is_contiguous()


@pytest.mark.parametrize("step", [0, 3, *FAR])
def test_mask_of_a_step_in_a_tensor_is_the_same(device, step):
    like = torch.empty(2, 3, 40, 41, device=device)
    mask = bernoulli(like, 0.7, 3, step)
    assert torch.equal(bernoulli(like, 0.7, 3, step), mask)
    assert torch.equal(bernoulli(like, 0.7, 3, torch.tensor(step, device=device)), mask)
    for seed, other in ((4, step), (3, step ^ 1)):
        assert not torch.equal(bernoulli(like, 0.7, seed, other), mask)


def test_masks_of_steps_seeds_and_places_are_independent():
    n = 2**16
    masks = [bernoulli(torch.empty(2 * n), 0.3, seed, step) for seed, step in [(0, 0), (0, 1), (1, 0), (0, 2**32)]]
    masks = [half - 0.3 for mask in masks for half in mask.double().split(n)]
    for i, a in enumerate(masks):
        for b in [*masks[:i], *(masks[i].roll(lag) for lag in (1, 16, 64))]:
            assert abs((a * b).mean()) < 4.5 * 0.3 * 0.7 / math.sqrt(n)


@needs_extension
def test_mask_has_the_same_bits_for_any_number_of_threads(level):
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            results.append(bernoulli(torch.empty(1, 4, 200, 301), 0.5, 3, 1))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert torch.equal(result, results[0])


@pytest.mark.gpu
def test_graph_draws_a_mask_for_each_step(gpu):
    like, counter = torch.empty(2, 5, 7, 30, device=gpu), torch.tensor(3, device=gpu)
    bernoulli(like, 0.5, 7, counter)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        counter += 1
        got = bernoulli(like, 0.5, 7, counter)
    for step in (4, 5):
        graph.replay()
        assert torch.equal(got, bernoulli(like, 0.5, 7, step))


@pytest.mark.parametrize("keep", [-0.1, 1.5, math.nan])
def test_mask_refuses_what_is_no_probability(keep):
    with pytest.raises(ValueError, match=rf"keep must be a probability, in \[0, 1\], got {keep}"):
        bernoulli(torch.empty(3), keep, 0, 0)


# ---- registration


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(device, requires_grad):
    z = torch.rand(2, 3, 4, 5, device=device).requires_grad_(requires_grad)
    opcheck(torch.ops.dip_fast.perturb.default, (z, 0.1, 3, 4))
    if not requires_grad:
        opcheck(torch.ops.dip_fast.perturb.default, ((9 * z).to(torch.int8), 0.1, 3, 4, 2.0))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_of_a_step_in_a_tensor(device, requires_grad):
    z = torch.rand(2, 3, 4, 5, device=device).requires_grad_(requires_grad)
    opcheck(torch.ops.dip_fast.perturb.counted, (z, 0.1, 3, torch.tensor(4, device=device)))


@pytest.mark.parametrize("step", [0, 1, 2**31 + 5, 2**40 + 3, -5])
def test_step_in_a_tensor_is_the_same_step(step):
    z = torch.randint(0, 256, (1, 3, 17, 19), dtype=torch.uint8)
    expected = perturb_reference(z, 0.03, 12345678901234, step, 2560)
    assert torch.equal(perturb_reference(z, 0.03, 12345678901234, torch.tensor(step), 2560), expected)
    counted = perturb(z, 0.03, 12345678901234, torch.tensor(step), 2560)
    torch.testing.assert_close(counted, expected, rtol=0, atol=0.03e-6)


def test_step_in_a_tensor_is_not_read():
    z = torch.zeros(3, 4, device="meta")
    step = torch.zeros((), dtype=torch.int64, device="meta")
    assert perturb_reference(z, 0.1, 3, step).shape == perturb(z, 0.1, 3, step).shape == (3, 4)


class NoHostRead(TorchDispatchMode):
    """Refuses what brings a value of a tensor to the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[-1]
        assert name not in ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal"), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("function", [perturb, perturb_reference], ids=["kernel", "definition"])
def test_step_in_a_tensor_is_not_read_on_the_host(device, function):
    z, step = torch.zeros(100, device=device), torch.tensor(3, device=device)
    with NoHostRead():
        got = function(z, 0.5, 7, step)
        mask = bernoulli(z, 0.5, 7, step)
    assert torch.equal(got, function(z, 0.5, 7, 3))
    assert torch.equal(mask, bernoulli(z, 0.5, 7, 3))


def test_gradient_passes_through(device):
    z = torch.rand(3, 4, device=device).requires_grad_()
    weights = torch.rand(3, 4, device=device)
    (perturb(z, 0.1, 3, 4) * weights).sum().backward()
    assert torch.equal(z.grad, weights)
    (perturb(z, 0.1, 3, 4, 2.0) * weights).sum().backward()
    assert torch.equal(z.grad, 1.5 * weights)
    (perturb(z, 0.1, 3, torch.tensor(4, device=device), 2.0) * weights).sum().backward()
    assert torch.equal(z.grad, 2 * weights)


def test_other_dtypes_are_refused(device):
    for z in (torch.ones(3, dtype=torch.float64, device=device), torch.ones(3, dtype=torch.float64, device="meta")):
        with pytest.raises(TypeError, match="z must be of dtype float32, uint8 or int8, got"):
            perturb(z, 0.1, 0, 0)


def test_result_shares_no_memory_with_its_input(device):
    z = torch.zeros(100, device=device)
    perturb(z, 1.0, 0, 0)
    assert not z.any()
    assert perturb(z, 0.0, 0, 0).data_ptr() != z.data_ptr()
