"""Where tiles lie, the field that their inputs are cut from, and how what became of them is blended."""

import itertools

import numpy as np
import pytest

from dip_fast.networks import field
from dip_fast.pictures.tiling import OVERLAP, Box, Grid, Tiling, lay, weights


def shared(spans):
    """How far each tile reaches over the next one."""
    return [end - start for (_, end), (start, _) in itertools.pairwise(spans)]


@pytest.mark.parametrize("length", [40, 64, 65, 100, 333, 1000, 4097])
@pytest.mark.parametrize("side", [64, 100, 256, 1024])
@pytest.mark.parametrize("multiple", [1, 8, 16])
def test_tiles_cover_a_picture_and_begin_at_multiples(length, side, multiple):
    rows, columns = lay((length, length), side, Grid(multiple, rows_from_end=True))
    for spans in (tuple((length - b, length - a) for a, b in reversed(rows)), columns):
        assert (spans[0][0], spans[-1][1]) == (0, length)
        assert all(16 <= end - start <= side for start, end in spans)
        assert all(start % multiple == 0 for start, _ in spans)
        assert all(end % multiple == 0 for _, end in spans[:-1])
        assert set(shared(spans)) <= {min(OVERLAP, side // 4) // multiple * multiple}


def test_tiles_of_one_picture_are_about_as_large_as_each_other():
    assert lay((96, 128), 64) == Tiling(((0, 56), (40, 96)), ((0, 54), (38, 91), (75, 128)))


def test_the_weights_of_tiles_sum_to_one_and_reach_nothing_at_their_edges():
    tiling = lay((150, 90), 64)
    total = np.zeros((150, 90, 1))
    for n, own in enumerate(tiling.boxes):
        parts = (np.full((*box[2:], 1), float(box == own), np.float32) for box in tiling.boxes)
        weight = tiling.blend(parts)
        outside = np.ones((150, 90), bool)
        outside[own.place] = False
        assert not weight[outside].any()
        assert 0 < weight[own.place].max() <= 1
        if n == 0:
            assert weight[own.height - 1].max() < 0.01
        total += weight
    np.testing.assert_allclose(total, 1, atol=3e-7)


def test_neither_of_two_tiles_counts_for_more():
    np.testing.assert_allclose(weights(9) + weights(9)[::-1], 1, atol=1e-6)
    assert weights(2).tolist() == pytest.approx([0.1464466, 0.8535534])


def test_what_is_the_same_in_all_tiles_stays_as_it_is():
    picture = np.random.default_rng(0).random((150, 90, 3), np.float32)
    tiling = lay((150, 90), 64)
    np.testing.assert_array_equal(tiling.blend(picture[box.place] for box in tiling.boxes), picture)


@pytest.mark.parametrize("distribution", ["uniform", "gaussian", "meshgrid"])
def test_windows_of_one_field_agree(distribution):
    def window(start, size):
        return field.window(distribution, 3, start, size, (600, 500), seed=5).tensor()

    large = window((-20, 230), (300, 60))
    np.testing.assert_array_equal(window((240, 250), (40, 40)), large[..., 260:300, 20:60])
    assert large[..., 260:, :].std() > 0
    if distribution != "meshgrid":
        other = field.window(distribution, 3, (-20, 230), (300, 60), (600, 500), seed=6).tensor()
        assert (other != large).float().mean() > 0.9


def test_tiles_that_are_too_small_for_the_blocks_of_a_file_are_refused():
    with pytest.raises(ValueError, match=r"multiples of 32 must have 96 pixels a side at least"):
        lay((200, 200), 64, Grid(32))


def test_a_box_scales_with_the_result():
    assert Box(3, 4, 20, 30).scaled(2).place == (slice(6, 46), slice(8, 68))
