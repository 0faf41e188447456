"""The sheet of labelled images."""

import numpy as np
import pytest

from dip_fast.runs.contact_sheet import contact_sheet


def test_tiles_stand_in_rows_on_white():
    flat = [np.full((40, 40, 1), value) for value in (0.2, 0.4, 0.6)]
    sheet = contact_sheet(flat, ["", "", ""], columns=2, tile=40)
    height, width = 40 + 24 + 8, 40 + 8
    assert (sheet.shape, sheet.dtype) == ((2 * height + 8, 2 * width + 8, 3), np.uint8)
    for index, value in enumerate((51, 102, 153)):
        top, left = 8 + index // 2 * height, 8 + index % 2 * width
        assert (sheet[top : top + 40, left : left + 40] == value).all()
        sheet[top : top + 40, left : left + 40] = 255
    assert (sheet == 255).all()


def test_small_images_are_enlarged_by_whole_pixels_and_large_ones_averaged():
    checks = np.indices((10, 10)).sum(axis=0)[..., None] % 2.0
    sheet = contact_sheet([checks], [""], tile=35)  # three times, not three and a half
    inside = sheet[8 + 2 : 8 + 32, 8 + 2 : 8 + 32]
    np.testing.assert_array_equal(inside[..., 0], 255 * checks[..., 0].repeat(3, axis=0).repeat(3, axis=1))
    large = np.indices((80, 40)).sum(axis=0)[..., None].repeat(3, axis=2) % 2.0
    sheet = contact_sheet([large], [""], tile=40)
    assert (sheet[8:48, 18:38] == 128).all()


def test_colours_stay_in_rgb_order_and_values_are_clipped():
    image = np.full((16, 16, 3), [2.0, 0.0, -1.0])
    assert contact_sheet([image], [""], tile=16)[16, 16].tolist() == [255, 0, 0]


@pytest.mark.parametrize("label", ["input", "a label far longer than its tile is wide, so set smaller"])
def test_labels_are_drawn_below_their_tile(label):
    sheet = contact_sheet([np.ones((64, 64, 1))], [label], tile=64)
    dark = np.argwhere(sheet.min(axis=2) < 128)
    assert len(dark) > 0 or len(label) > 20  # tiny letters are drawn in gray
    drawn = np.argwhere(sheet.min(axis=2) < 255)
    assert drawn[:, 0].min() >= 8 + 64
    assert drawn[:, 1].max() <= 8 + 64 + 2


def test_labels_must_match():
    with pytest.raises(ValueError, match="1 images and 0 labels"):
        contact_sheet([np.ones((16, 16, 1))], [])
    with pytest.raises(ValueError, match="0 images"):
        contact_sheet([], [])
