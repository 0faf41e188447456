"""Crops with holes to be guessed: the mask, how holes are filled, which views are drawn, and what they depend on."""

import itertools
import math

import pytest
import torch
from masking_cases import FAR, pictures, same

from dip_fast.ops import extension, masked_crop, masked_window, oriented, oriented_back
from dip_fast.ops.masking import masked_crop_reference, masked_window_reference
from dip_fast.ops.perturbation import LOW, philox

needs_extension = pytest.mark.skipif(extension.load() is None, reason="there is no compiled extension")


def words(block, seed, step):
    counter = (block & LOW, block >> 32 & LOW, step & LOW, step >> 32 & LOW)
    return philox(counter, (seed & LOW, seed >> 32 & LOW))


def placement(shape, side, margin, seed, step):
    """The view that a step draws: n, top, left, orientation."""
    w = words(2**63, seed, step)
    N, H, W = shape
    top, left = ((word * (length + 2 * margin - side + 1) >> 32) - margin for word, length in ((w[1], H), (w[2], W)))
    return w[0] * N >> 32, top, left, w[3] >> 29


def mirror(place, length):
    """Walk to the place, turning back at both ends."""
    at, direction = 0, 1
    for _ in range(abs(place) if length > 1 else 0):
        if not 0 <= at + direction < length:
            direction = -direction
        at += direction
    return at


# ---- kernels against the definition


# Sides of one sample, less than the reach of a hole's neighbours, a fraction of a vector, several bands of rows.
# shape, top, left, height, width
WINDOWS = [
    ((1, 1, 1, 1), 0, 0, 1, 1),
    ((1, 1, 1, 1), -3, 5, 4, 7),
    ((2, 3, 1, 9), -2, -4, 5, 30),
    ((1, 2, 9, 1), 4, 0, 40, 2),
    ((2, 2, 2, 3), -7, -8, 20, 21),
    ((3, 1, 17, 33), 2, 3, 11, 13),
    ((1, 3, 67, 70), 0, 0, 67, 70),
    ((2, 3, 40, 90), 13, 20, 27, 70),
    ((2, 3, 40, 90), -20, -37, 70, 150),
    ((1, 1, 12, 300), -1, 120, 3, 181),
    ((1, 1, 12, 9), 1000, -2000, 5, 6),
]


@pytest.mark.parametrize("block", [1, 2, 3, 7])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_kernel_computes_the_definition(level, device, window, block):
    shape, *place = window
    y = pictures(*shape)
    for orientation, keep in [(0, 0.8), (1, 0.5), (6, 0.1), (7, 0.8)]:
        rest = (shape[0] - 1, *place, orientation, keep, block, 7, 3)
        same(masked_window(y.to(device), *rest), masked_window_reference(y, *rest))


@pytest.mark.parametrize("orientation", range(8))
@pytest.mark.parametrize("block", [1, 4])
def test_kernel_turns_as_the_definition_does(level, device, orientation, block):
    y = pictures(1, 2, 70, 50)
    for place in [(3, 5, 66, 37), (-4, -5, 35, 60)]:
        rest = (0, *place, orientation, 0.7, block, 7, 3)
        same(masked_window(y.to(device), *rest), masked_window_reference(y, *rest))


@pytest.mark.parametrize(("side", "margin"), [(1, 0), (16, 0), (24, 7), (40, 12)])
@pytest.mark.parametrize("block", [1, 3])
def test_kernel_draws_the_crops_of_the_definition(level, device, side, margin, block):
    y = pictures(3, 2, 16, 30)
    for step in range(12):
        rest = (side, margin, 0.8, block, 7, step)
        same(masked_crop(y.to(device), *rest), masked_crop_reference(y, *rest))


@pytest.mark.parametrize("seed", [0, *FAR])
@pytest.mark.parametrize("step", [0, *FAR])
def test_kernel_takes_all_bits_of_seed_and_step(level, device, seed, step):
    y = pictures(2, 1, 9, 11)
    for block in (1, 2):
        rest = (8, 3, 0.6, block, seed, step)
        same(masked_crop(y.to(device), *rest), masked_crop_reference(y, *rest))


@needs_extension
@pytest.mark.parametrize("block", [1, 5])
def test_same_bits_from_every_instruction_set(block):
    module, before = extension.load(), extension.load().cpu_level()
    y, results = pictures(1, 3, 150, 151), []
    try:
        for name in module.cpu_levels():
            module.select_cpu_level(name)
            results.append(masked_crop(y, 133, 40, 0.7, block, 3, 1))
    finally:
        module.select_cpu_level(before)
    for result in results[1:]:
        same(result, results[0])


@needs_extension
@pytest.mark.parametrize("block", [1, 5])
def test_same_bits_for_any_number_of_threads(level, block):
    before = torch.get_num_threads()
    y, results = pictures(1, 3, 150, 151), []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            results.append(masked_crop(y, 133, 40, 0.7, block, 3, 1))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        same(result, results[0])


# ---- the definition, sample by sample


@pytest.mark.parametrize(
    ("block", "seed", "step"), [(1, 0, 0), (1, -3, 2**40 + 1), (2, 0, 5), (3, 2**35, -1), (20, 1, 1)]
)
@pytest.mark.parametrize("shape", [(2, 3, 9, 14), (1, 2, 1, 5), (1, 1, 3, 2)], ids=str)
def test_mask_is_made_of_the_words_of_its_places(device, shape, block, seed, step):
    _, C, H, W = shape
    n = shape[0] - 1
    z, target = masked_window(pictures(*shape, device=device), n, 0, 0, H, W, 0, 0.6, block, seed, step)
    i, j = (word * block >> 32 for word in words(2**63 + 1, seed, step)[:2])
    for c, row, column in itertools.product(range(C), range(H), range(W)):
        index = ((n * C + c) * H + row) * W + column
        if block > 1:
            R, S = (H + block - 1) // block + 1, (W + block - 1) // block + 1
            index = (n * R + (row + i) // block) * S + (column + j) // block
        word = words(index // 64 * 16 + index % 16, seed, step)[index // 16 % 4]
        assert z[0, C + c, row, column] == (word < 0.6 * 2**32)
    assert torch.equal(target[0].cpu(), pictures(*shape)[n])


@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize("shape", [(1, 2, 9, 14), (1, 1, 1, 5), (1, 1, 3, 2), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("keep", [0.1, 0.8])
def test_holes_hold_the_mean_around_them(device, shape, block, keep):
    _, C, H, W = shape
    y = pictures(*shape)
    z = masked_window(y.to(device), 0, 0, 0, H, W, 0, keep, block, 3, 4)[0][0].cpu()
    reach = range(-block, block + 1)
    for c, row, column in itertools.product(range(C), range(H), range(W)):
        expected = y[0, c, row, column].item()
        if z[C + c, row, column] == 0:
            around = [(mirror(row + i, H), mirror(column + j, W)) for i in reach for j in reach]
            kept = [y[0, c, i, j].item() for i, j in around if z[C + c, i, j]]
            expected = math.fsum(kept) / len(kept) if kept else 0.5
        assert abs(z[c, row, column].item() - expected) < 2e-7


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("shape", [(2, 2, 13, 17), (1, 1, 1, 6), (1, 1, 2, 1)], ids=str)
def test_windows_are_cut_from_the_mirrored_whole(level, device, shape, block):
    _, _, H, W = shape
    n, y = shape[0] - 1, pictures(*shape, device=device)
    whole = masked_window(y, n, 0, 0, H, W, 0, 0.5, block, 3, 4)
    for top, left, height, width in [(0, 0, 1, 1), (-9, -20, 40, 60), (5, -3, 9, 7), (-1, 4, 3, 30), (70, -70, 4, 5)]:
        rows = [mirror(top + i, H) for i in range(height)]
        columns = [mirror(left + j, W) for j in range(width)]
        wanted = [part[:, :, rows][:, :, :, columns].cpu() for part in whole]
        same(masked_window(y, n, top, left, height, width, 0, 0.5, block, 3, 4), wanted)
        for orientation in range(1, 8):
            got = masked_window(y, n, top, left, height, width, orientation, 0.5, block, 3, 4)
            same(got, [oriented(part, orientation).contiguous() for part in wanted])


@pytest.mark.parametrize("block", [1, 4])
def test_a_dropped_sample_is_nowhere_to_be_seen(level, device, block):
    """Not in its own place, not in a neighbour's mean, and not in a mirror image of itself."""
    y = pictures(1, 3, 23, 29)
    kept = masked_window(y.to(device), 0, 0, 0, 23, 29, 0, 0.7, block, 3, 4)[0][:, 3:].cpu() == 1
    assert 0.5 < kept.float().mean() < 0.9
    for other in (math.nan, math.inf, -1e30):
        changed = torch.where(kept, y, other)
        for window in [(-15, -20, 60, 70), (2, 3, 20, 20)]:
            (z, target), (same_z, _) = (
                masked_window(of.to(device), 0, *window, 3, 0.7, block, 3, 4) for of in (y, changed)
            )
            assert torch.equal(z, same_z)
            assert torch.isfinite(target).all()
        assert torch.equal(*(masked_crop(of.to(device), 30, 9, 0.7, block, 3, 4)[0] for of in (y, changed)))


@pytest.mark.parametrize("block", [1, 4])
def test_kept_samples_are_shown_as_they_are(device, block):
    z, target = masked_crop(pictures(2, 3, 40, 50, device=device), 48, 9, 0.7, block, 3, 4)
    kept = z[:, 3:] == 1
    assert torch.equal(z[:, :3][kept], target[kept])
    assert not (z[:, :3] == target)[~kept].any()
    if block > 1:
        assert (kept == kept[:, :1]).all()  # all channels alike


# ---- orientations


def test_orientations_are_eight_and_have_inverses():
    image = torch.arange(2 * 3 * 4).view(2, 3, 4)
    seen = set()
    for orientation in range(8):
        turned = oriented(image, orientation)
        assert turned.shape == ((2, 4, 3) if orientation & 4 else (2, 3, 4))
        assert torch.equal(oriented_back(turned, orientation), image)
        assert torch.equal(oriented(oriented_back(turned, orientation), orientation), turned)
        seen.add(tuple(turned.flatten().tolist()) + turned.shape)
    assert len(seen) == 8
    assert torch.equal(oriented(image, 1)[:, 0], image[:, -1])
    assert torch.equal(oriented(image, 2)[:, :, 0], image[:, :, -1])
    assert oriented(image, 4)[0, 3, 1] == image[0, 1, 3]
    assert oriented(image, 5)[0, 0, 1] == image[0, 1, 3]  # transposed first, then rows reversed


# ---- distribution; seeds are fixed, so a bound (about 4 deviations of each statistic) holds always or never


@pytest.mark.parametrize("keep", [0.01, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("block", [1, 3])
def test_mask_keeps_its_share(device, keep, block):
    y = torch.zeros(1, 3, 300, 400, device=device)
    z, _ = masked_window(y, 0, 0, 0, 300, 400, 0, keep, block, 3, 1)
    independent = 3 * 300 * 400 if block == 1 else 300 * 400 / block**2
    assert abs(z[:, 3:].double().mean().item() - keep) < 4 * math.sqrt(keep * (1 - keep) / independent)


@pytest.mark.parametrize("keep", [0, 2**-60, 1 - 2**-33, 1])
@pytest.mark.parametrize("block", [1, 2])
def test_mask_of_nothing_or_everything(level, device, keep, block):
    y = pictures(1, 1, 60, 70, device=device)
    z, target = masked_window(y, 0, 0, 0, 60, 70, 0, keep, block, 3, 1)
    assert (z[:, 1] == (keep > 0.5)).all()
    assert torch.equal(z[:, :1], target if keep > 0.5 else torch.full_like(target, 0.5))


def test_masks_of_steps_seeds_channels_and_places_are_independent():
    y = torch.zeros(1, 2, 128, 256)
    draws = [(0, 0), (0, 1), (1, 0), (0, 2**32), (2**32, 0)]
    masks = [masked_window(y, 0, 0, 0, 128, 256, 0, 0.3, 1, *draw)[0][0, 2:] for draw in draws]
    flat = [mask.flatten().double() - 0.3 for of_draw in masks for mask in of_draw]
    for i, a in enumerate(flat):
        for b in [*flat[:i], *(flat[i].roll(lag) for lag in (1, 16, 64, 256))]:
            assert abs((a * b).mean()) < 4.5 * 0.3 * 0.7 / math.sqrt(a.numel())


def test_squares_are_displaced_from_step_to_step():
    """Whether two neighbouring columns can differ depends on the step: each pair does in one of four."""
    y = torch.zeros(1, 1, 8, 64)
    borders = torch.zeros(63)
    for step in range(400):
        mask = masked_window(y, 0, 0, 0, 8, 64, 0, 0.5, 4, 3, step)[0][0, 1]
        borders += (mask[:, 1:] != mask[:, :-1]).any(dim=0)
    expected = 400 / 4 * (1 - 0.5**2.75)  # 8 rows see two or three squares
    assert (borders / expected - 1).abs().max() < 0.4


def test_crops_are_the_windows_of_their_placement(device):
    y = pictures(3, 2, 20, 33, device=device)
    for step in range(30):
        view = placement((3, 20, 33), 18, 6, 11, step)
        n, top, left, orientation = view
        wanted = masked_window(y, n, top, left, 18, 18, orientation, 0.8, 2, 11, step)
        same(masked_crop(y, 18, 6, 0.8, 2, 11, step), [part.cpu() for part in wanted])


def test_crops_reach_every_sample_in_every_orientation(device):
    """Numbers in place of samples show where each comes from."""
    y = torch.arange(2 * 6 * 8.0, device=device).view(2, 1, 6, 8)
    seen, middles, orientations = torch.zeros(2, 6, 8), set(), set()
    for step in range(1200):
        target = masked_crop(y, 7, 3, 0.5, 1, 5, step)[1][0, 0].cpu()
        seen.view(-1)[target.long().flatten().unique()] += 1
        middles.add(target[3, 3].item())
        # The steps from a sample to its neighbours tell the orientation.
        orientations.add(((target[3, 4] - target[3, 3]).item(), (target[4, 3] - target[3, 3]).item()))
    assert middles == set(range(2 * 6 * 8))  # with this margin the middle of a crop can be anywhere
    assert orientations == {(a, b) for a in (1, -1) for b in (8, -8)} | {(b, a) for a in (1, -1) for b in (8, -8)}
    assert (seen[:, ::5, ::7] / (1200 / 2 * 16 / 48) - 1).abs().max() < 0.25  # 4 x 4 of 6 x 8 crops have that corner


def test_without_margin_crops_stay_inside(device):
    y = torch.arange(12 * 15.0, device=device).view(1, 1, 12, 15)
    for step in range(200):
        target = masked_crop(y, 11, 0, 0.5, 1, 5, step)[1]
        assert target.unique().numel() == 121
