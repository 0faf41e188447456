"""Large holes: an outline of them, and copies of known patches that are like it."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

import dip_fast
from dip_fast.fitting import Mask, patch_copies
from dip_fast.presets import PRESETS
from dip_fast.tasks.inpaint import INPAINT


def woven(height: int = 96, width: int = 128) -> Tensor:
    """Threads of two directions and three colours, which repeat."""
    rows, columns = np.mgrid[:height, :width]
    planes = [0.5 + 0.4 * np.where((rows // 4 + columns // 6 + i) % 3, np.sin(rows * 0.785), 1) for i in range(3)]
    return torch.tensor(np.stack(planes)[None], dtype=torch.float32).clamp(0, 1)


def holed(height: int = 96, width: int = 128, side: int = 26) -> Tensor:
    known = torch.ones(1, 1, height, width, dtype=torch.bool)
    known[..., 30 : 30 + side, 50 : 50 + side] = False
    return known


def outline(y: Tensor, count: int = 2) -> Tensor:
    return interpolate(avg_pool2d(y, 2**count), scale_factor=float(2**count))


def filled(y: Tensor, known: Tensor, first: Tensor, count: int = 2, seed: int = 0, stop: int | None = None) -> Tensor:
    work = patch_copies.fill(Mask(y, known), first, count, seed)
    passes, enough = 0, None
    while True:
        try:
            work.send(enough)
        except StopIteration as end:
            assert stop is not None or passes == sum(kind.number for kind in patch_copies.kinds_of_passes(known, count))
            return end.value
        passes += 1
        enough = 16 if passes == stop else None


def test_hole_in_a_texture_is_filled_with_the_texture() -> None:
    y, known = woven(), holed()
    first = outline(y)
    error = (filled(y, known, first) - y).abs()[~known.expand_as(y)].mean()
    assert error < 0.01 < 0.1 < (first - y).abs()[~known.expand_as(y)].mean()  # 0.0003 of 0.2


def test_nothing_depends_on_what_the_hole_held() -> None:
    y, known = woven(), holed()
    first = outline(y)
    hidden = torch.where(known, y, torch.full_like(y, 7.0))
    one = filled(hidden, known, first)
    assert torch.equal(one, filled(y, known, first))
    assert torch.equal(torch.where(known, one, y), torch.where(known, y, y))
    assert one.max() <= 1


def test_same_bits_for_any_number_of_threads_and_other_bits_for_another_seed() -> None:
    y, known = woven(), holed()
    noisy = y + 0.05 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    images = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        images.append(filled(noisy, known, outline(noisy)))
    torch.set_num_threads(2)
    assert torch.equal(*images)
    assert not torch.equal(images[0], filled(noisy, known, outline(noisy), seed=1))


@pytest.mark.parametrize("stop", [1, 4])
def test_brief_work_leaves_the_outline(stop: int) -> None:
    y, known = woven(), holed()
    first = outline(y)
    assert torch.equal(filled(y, known, first, stop=stop), torch.where(known, y, first))


def test_outline_remains_where_hardly_a_patch_is_known() -> None:
    y = woven(24, 24)
    known = torch.zeros(1, 1, 24, 24, dtype=torch.bool)
    known[..., :6] = True
    first = outline(y)
    assert torch.equal(filled(y, known, first), torch.where(known, y, first))


def test_pictures_of_all_sizes_are_filled() -> None:
    for height, width in ((61, 83), (50, 71)):
        y, known = woven(height, width), holed(height, width, 18)
        image = filled(y, known, outline(woven(100, 132))[..., :height, :width])
        assert torch.isfinite(image).all()
        assert torch.equal(torch.where(known, image, y), y)


def test_pictures_are_halved_until_no_hole_is_large() -> None:
    for side, count in ((16, 0), (17, 1), (32, 1), (40, 2), (60, 2)):
        assert patch_copies.halvings(holed(128, 160, side)) == count
    nothing = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    assert patch_copies.halvings(nothing) == 2  # but no further than to 16 pixels


def test_large_holes_are_outlined_and_filled(tmp_path) -> None:
    y, known = woven(), holed()
    networks, notes = [], []

    def look(fit) -> None:
        networks.append(fit.network)
        notes.append(fit.objective.notes)

    image, seen = y[0].permute(1, 2, 0).numpy(), known[0, 0].numpy()
    dip_fast.inpaint(image, seen, iterations=30, channel_axis=-1, callbacks=[look, lambda fit: fit.interrupt()])
    assert networks[0].doublings == 1
    assert any("copies of patches" in note for note in notes[0])
    preset = PRESETS["outline"].with_(iterations=60, network_options={"down": 8, "up": 8, "scales": 2})
    result = dip_fast.fit(Mask(y, known), preset)
    np.testing.assert_array_equal(result.image[seen], image[seen])
    errors = np.abs(result.image - image)[~seen]
    assert errors.mean() < 0.1  # 0.2 where copies are left out
    assert np.abs(dip_fast.replay(dip_fast.export(result, tmp_path / "model.onnx")) - result.image).max() < 2e-5


def test_size_of_the_outline_can_be_asked_for() -> None:
    recipe = PRESETS["outline"].recipe.with_(network_options={"doublings": 3})
    assert INPAINT.fitted_to(None, recipe) is recipe
