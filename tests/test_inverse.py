"""The functions on arrays that enlarge and deblur, and holes that are NaN; tests/test_jpeg.py has `dejpeg`."""

import numpy as np
import pytest

import dip_fast
from dip_fast.fitting import Fit
from dip_fast.runs.job import complete
from dip_fast.tasks.kernels import gaussian

pytestmark = pytest.mark.usefixtures("small")


def image(dtype, shape=(18, 21, 3)):
    values = np.random.default_rng(0).uniform(0.1, 0.9, shape)
    return values.astype(dtype) if np.dtype(dtype).kind == "f" else (values * np.iinfo(dtype).max).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_enlarged_array_has_its_axes_dtype_and_range(dtype):
    small = image(dtype)
    large = dip_fast.superres(np.moveaxis(small, -1, 0), 2, iterations=2, channel_axis=0)
    assert (large.shape, large.dtype) == ((3, 36, 42), small.dtype)
    assert abs(float(large.mean()) - float(small.mean())) < 0.3 * float(small.mean())
    assert dip_fast.superres(small[..., 0], 3, kernel=np.ones((3, 3)), iterations=2).shape == (54, 63)


def test_kernel_by_name_is_the_kernel():
    blurred = image("uint8")
    by_name = dip_fast.deblur(blurred, "gaussian:1.2", iterations=2, channel_axis=-1)
    by_weights = dip_fast.deblur(blurred, 7 * gaussian(1.2), iterations=2, channel_axis=-1)
    assert (by_name.shape, by_name.dtype) == (blurred.shape, blurred.dtype)
    np.testing.assert_array_equal(by_name, by_weights)


def test_callbacks_see_iterates_of_the_results_size():
    sizes = []

    def callback(fit: Fit) -> None:
        sizes.append(tuple(fit.iterate.shape))
        if fit.steps == 2:
            fit.interrupt()

    dip_fast.deblur(image("uint8"), "motion:5,30", channel_axis=-1, callbacks=[callback])
    assert sizes == [(1, 3, 18, 21)] * 2


def test_numbers_of_numpy_are_numbers():
    small = image("uint8")[..., 0]
    found = dip_fast.superres(small, np.int64(2), iterations=np.int32(2), seed=np.uint8(1))
    np.testing.assert_array_equal(found, dip_fast.superres(small, 2, iterations=2, seed=1))
    guide = small > 100
    assert dip_fast.guided(small, guide, iterations=2).shape == small.shape
    by_list = dip_fast.denoise(small, noise=[0.01, 0.02], preset="fast", iterations=2)
    np.testing.assert_array_equal(by_list, dip_fast.denoise(small, noise=(0.01, 0.02), preset="fast", iterations=2))


def test_steps_of_superresolution_are_not_stopped_early():
    assert complete({"task": "superres"}).stop == complete({"task": "jpeg"}).stop == "never"
    assert complete({"task": "superres", "stop": "auto"}).stop == "auto"
    assert complete({"task": "deblur"}, ["kernel"]).stop == complete({"preset": "quick"}).stop == "auto"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dip_fast.superres(image("uint8"), 9, channel_axis=-1), "scale=9 must be from 2 to 8"),
        (lambda: dip_fast.superres(image("uint8"), callbacks=print, channel_axis=-1), "callbacks must be a list of"),
        (lambda: dip_fast.dejpeg(image("uint8")), "file must be a JPEG file or its content, got ndarray"),
        (lambda: dip_fast.dejpeg(b"text"), "cannot read the file: it is not a PNG"),
        (
            lambda: dip_fast.guided(image("uint8"), np.ones((18, 21)), channel_axis=-1),
            "guide is the same at all places",
        ),
        (lambda: dip_fast.inpaint(image("uint8"), np.full((18, 21), np.nan), channel_axis=-1), "mask must be finite"),
        (lambda: dip_fast.superres(image("uint8"), 2.5, channel_axis=-1), "scale must be int, got 2.5"),
        (
            lambda: dip_fast.superres(image("uint8"), kernel="cubic", channel_axis=-1),
            "must be bicubic, lanczos, box, gaussian:1",
        ),
        (lambda: dip_fast.deblur(image("uint8"), "motion:3", channel_axis=-1), "must be gaussian:DEVIATION or motion:"),
        (lambda: dip_fast.deblur(image("uint8"), np.ones((40, 40)), channel_axis=-1), "not be larger than the result"),
        (
            lambda: dip_fast.deblur(image("uint8"), "gaussian:1", preset="fast", channel_axis=-1),
            "deblur needs a preset that fits from random input; take one of quick, paper, hourglass, decoder",
        ),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_holes_may_be_nan():
    whole, known = image("float32"), np.random.default_rng(1).random((18, 21)) < 0.8
    holed = np.where(known[..., None], whole, np.nan).astype(np.float32)
    holed[3, 4], known[3, 4] = (0.5, np.inf, 0.5), False
    filled = dip_fast.inpaint(holed, iterations=2, channel_axis=-1)
    np.testing.assert_array_equal(filled, dip_fast.inpaint(whole, known, iterations=2, channel_axis=-1))
    np.testing.assert_array_equal(filled, dip_fast.inpaint(holed, "nan", iterations=2, channel_axis=-1))
    missing = int((~np.isfinite(holed).all(2) & (np.arange(21) > 0)).sum())
    wrong = np.tile(np.arange(21) > 0, (18, 1))
    with pytest.raises(
        ValueError, match=f"{missing} pixels that mask has as known are NaN or infinite; give mask='nan'"
    ):
        dip_fast.inpaint(holed, wrong, iterations=2, channel_axis=-1)
    for mask in (None, np.ones((18, 21))):
        with pytest.raises(ValueError, match="mask leaves nothing to fill in: all pixels are known; mark some"):
            dip_fast.inpaint(whole, mask, iterations=2, channel_axis=-1)
