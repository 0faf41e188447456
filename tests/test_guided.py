"""The task that restores a picture with the edges of another one, which the network reads."""

import numpy as np
import pytest
from conftest import pixels
from PIL import Image
from run_cases import SHORT, record

import dip_fast
from dip_fast.errors import UsageError
from dip_fast.guides.guided_filter import guided_filter
from dip_fast.models.model import open_model
from dip_fast.pictures.metrics import psnr
from dip_fast.runs.job import complete
from dip_fast.tasks import TASKS, Data

pytestmark = pytest.mark.usefixtures("place", "small")


def test_network_of_a_run_reads_the_guide_itself(dip):
    """The file's input is the guide in 16 bits, mirrored around where the network reads more than the picture."""
    Image.fromarray(pixels(20, 24)).save("dark.png")
    flash = pixels(20, 24, 3, seed=1)
    Image.fromarray(flash).save("flash.png")
    assert dip("run", "dark.png", "--guide", "flash.png", "--out", "out", *SHORT).code == 0
    program = open_model("out").program
    assert program is not None
    (part,) = program.inputs
    assert (part.codes.dtype, part.denominator) == (np.uint16, 65535)
    height, width = part.codes.shape[2:]
    top, left = (height - 20) // 2, (width - 24) // 2
    np.testing.assert_array_equal(
        part.codes[0, :, top : top + 20, left : left + 24].transpose(1, 2, 0), 257 * flash.astype(np.uint16)
    )
    with Image.open("out/result.png") as result:
        assert (result.size, result.mode) == ((24, 20), "L")
    options = record("out")["recipe"]["options"]
    assert (options["perturbation"], options["learning_rate"], options["iterations"]) == (0.0, 0.05, 6)


def test_what_a_user_asks_for_counts_more_than_the_recipe_of_the_task():
    job = complete({"task": "guided", "iterations": 900, "stop": "never"}, ["guide"])
    assert (job.recipe((64, 64)).options.iterations, job.stop) == (900, "never")
    job = complete({"task": "guided"}, ["guide"])
    assert (job.recipe((64, 64)).options.iterations, job.stop) == (600, "auto")
    assert complete({"task": "guided", "scale": 2}, ["guide"]).stop == "never"


def test_guide_brings_edges_that_the_picture_lacks():
    """A sixth of the steps that a run makes, and a network of milliseconds."""
    photo = np.zeros((64, 64))
    for top, left, *sides in np.random.default_rng(0).integers((0, 0, 5, 5), (60, 60, 20, 20), (12, 4)):
        photo[top : top + sides[0], left : left + sides[1]] = (photo[top, left] + 0.5) % 1.25
    truth = 0.7 - 0.5 * photo + 0.1 * np.linspace(0, 1, 64)
    small = truth.reshape(16, 4, 16, 4).mean((1, 3))
    large = dip_fast.guided(small, photo, 4, kernel="box", iterations=100)
    alone = dip_fast.superres(small, 4, kernel="box", iterations=100)
    assert psnr(large, truth) > psnr(alone, truth) + 3


def test_guide_has_any_range_and_any_number_of_channels():
    image = pixels(18, 21, 3)
    guide = pixels(36, 42, 5, dtype=np.float64)
    found = dip_fast.guided(image, guide, 2, iterations=2, channel_axis=-1)
    assert (found.shape, found.dtype) == ((36, 42, 3), np.uint8)
    turned, wide = np.moveaxis(image, 2, 0), np.moveaxis(3e4 * guide - 7, 2, 0)
    assert dip_fast.guided(turned, wide, 2, iterations=2, channel_axis=0).shape == (3, 36, 42)


@pytest.mark.parametrize(
    ("shape", "scale", "message"),
    [
        ((36, 42), 1, "guide must be 21x18 pixels, 1 times the picture, got 42x36; give scale=2"),
        ((18, 21), 2, "guide must be 42x36 pixels, 2 times the picture, got 21x18; give scale=1"),
        ((36, 41), 2, "guide must be 42x36 pixels, 2 times the picture, got 41x36; align and resize it first"),
        ((18, 21, 3, 1), 1, r"guide must be numbers \(H, W\) or \(H, W, C\), got \(18, 21, 3, 1\) of float32"),
        ((18, 21), 17, "scale=17 must be from 1 to 16"),
    ],
)
def test_guide_that_does_not_fit_is_refused(shape, scale, message):
    with pytest.raises(UsageError, match=message):
        dip_fast.guided(pixels(18, 21), np.zeros(shape, np.float32), scale)


def test_guide_must_be_finite_and_presets_of_noise_are_refused():
    guide = np.zeros((18, 21))
    guide[3, 4] = np.nan
    with pytest.raises(UsageError, match="guide must be finite"):
        dip_fast.guided(pixels(18, 21), guide)
    with pytest.raises(UsageError, match="guided needs a preset that fits from random input"):
        dip_fast.guided(pixels(18, 21), pixels(18, 21), preset="default")


def test_guided_pictures_are_compared_with_the_guided_filter():
    guide = pixels(40, 36, 3, dtype=np.float32)
    clean = (0.2 + 0.5 * guide[..., :1] - 0.1 * guide[..., 1:2]).astype(np.float32)
    noisy = (clean + np.random.default_rng(0).normal(0, 0.05, clean.shape)).astype(np.float32)
    filtered = guided_filter(noisy, guide)
    assert (filtered.shape, filtered.dtype) == (clean.shape, np.float32)
    assert psnr(filtered, clean) > psnr(noisy, clean) + 8
    baseline = TASKS["guided"].baseline(Data(noisy[::2, ::2], {"guide": guide}), {"scale": 2})
    assert baseline.name == "guided filter"
    assert baseline.image.shape == clean.shape
