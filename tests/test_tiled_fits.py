"""What the fits of tiles have in common, and what of a picture is theirs."""

import io
import itertools
from dataclasses import replace

import numpy as np
import pytest
from conftest import pixels
from PIL import Image

from dip_fast.pictures import jpeg, read_picture
from dip_fast.runs.job import complete, start
from dip_fast.runs.tiled import plan
from dip_fast.tasks import Data


def deblurring(image, tile, **asked):
    """The plan of a blurred picture, with its noise measured."""
    asked = {"task": "deblur", "tile": tile, "iterations": 3, "device": "cpu", **asked}
    data = Data(image, inputs={"kernel": np.ones((3, 3), np.float32) / 9})
    found = plan.lay_out(complete(asked, {"kernel"}), data)
    return replace(found, shared=plan.measured(found))


@pytest.mark.usefixtures("small")
def test_the_inputs_of_tiles_agree_where_these_overlap():
    found = deblurring(pixels(80, 100, 1, dtype=np.float32), 64)
    fits = [found.fit(box) for box in found.tiling.boxes]
    # Each input is larger than its tile by the same on both sides, which the network's strides ask for.
    codes = {}
    for fit, box in zip(fits, found.tiling.boxes, strict=True):
        z = fit.z.tensor().numpy()[0]
        top, left = ((side - length) // 2 for side, length in zip(z.shape[1:], box[2:], strict=True))
        for row, column in itertools.product(range(box.height), range(box.width)):
            here = z[:, top + row, left + column].tobytes()
            assert codes.setdefault((box.top + row, box.left + column), here) == here
    assert len(set(codes.values())) == 80 * 100


@pytest.mark.usefixtures("small")
def test_one_noise_and_one_stop_hold_for_all_tiles():
    image = pixels(80, 100, 1, dtype=np.float32)
    image[:, 60:] += np.random.default_rng(0).normal(0, 0.1, (80, 40, 1)).astype(np.float32)
    found = deblurring(image, 64, iterations=60, stop="auto")
    assert [probe[1] for probe in found.shared["probes"]] == [0, 0, 0]
    for probe, best in zip(found.shared["probes"], (9, 31, 17), strict=True):
        probe[1] = best
    found = replace(found, shared=plan.agreed(found.shared))
    fits = [found.fit(box) for box in found.tiling.boxes]
    assert {fit.options.iterations for fit in fits} == {17}
    assert {fit.options.stop for fit in fits} == {"never"}
    assert len({vars(fit.objective)["perturbation"] for fit in fits}) == 1
    alone = [start(found.job, replace(found.part(box), tile=None)) for box in found.tiling.boxes]
    assert len({vars(fit.objective)["perturbation"] for fit in alone}) > 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("subsampling", [0, 1, 2], ids=["444", "422", "420"])
def test_the_blocks_of_a_tile_of_a_jpeg_file_are_those_of_the_whole(orientation, subsampling):
    file, exif = io.BytesIO(), Image.Exif()
    exif[274] = orientation
    coloured = np.random.default_rng(0).integers(60, 190, (89, 150, 3), np.uint8)  # as colour of blocks is found least
    Image.fromarray(coloured).save(file, "JPEG", quality=92, subsampling=subsampling, exif=exif)
    picture = read_picture(file.getvalue())
    job = complete({"task": "jpeg", "tile": 64, "device": "cpu"})
    found = plan.lay_out(job, Data(picture.image, picture=picture))
    whole = found.task.degradation(found.data, {})
    components = jpeg.read_coding(file.getvalue()).components
    boxes = 0
    for box in found.tiling.boxes:
        degradation = found.task.degradation(found.part(box), {})
        boxes += vars(degradation)["codes"]
        for i, component in enumerate(components):
            stored = {entry.tobytes() for entry in component.low.transpose(0, 2, 1, 3).reshape(-1, 64)}
            low = vars(degradation)[f"low_{i}"].permute(0, 2, 1, 3).reshape(-1, 64).numpy()
            assert {entry.tobytes() for entry in low} <= stored
        # What the whole picture was decoded to lies as near to the boxes of its tiles as to those of the whole.
        assert float(degradation.distance(degradation.target)) <= float(whole.distance(whole.target)) + 1e-6
    assert boxes > vars(whole)["codes"]
    assert found.tiling.size == picture.size
