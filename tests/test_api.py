"""The functions on arrays."""

import doctest
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

import dip_fast
import dip_fast.api
import dip_fast.inverse
from dip_fast.errors import UsageError
from dip_fast.tasks import Data, masks

pytestmark = pytest.mark.usefixtures("small")


def image(dtype: str, shape: tuple[int, ...] = (18, 21, 3)) -> np.ndarray:
    values = np.random.default_rng(0).uniform(0.1, 0.9, shape)
    if np.dtype(dtype).kind == "f":
        return values.astype(dtype)
    return (values * np.iinfo(dtype).max).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64"])
def test_dtype_and_shape_are_kept(dtype: str) -> None:
    noisy = image(dtype)
    before = noisy.copy()
    result = dip_fast.denoise(noisy, iterations=2, channel_axis=-1)
    assert result.dtype == noisy.dtype
    assert result.shape == noisy.shape
    np.testing.assert_array_equal(noisy, before)
    middle = np.float64(1 if noisy.dtype.kind == "f" else np.iinfo(dtype).max) / 2
    assert abs(result.mean() - middle) < 0.3 * middle  # it is in the image's range, not in [0, 1]


def test_range_of_a_float_image_is_kept() -> None:
    noisy = 1000 * image("float32") - 5000
    result = dip_fast.denoise(noisy, iterations=2, channel_axis=-1)
    # A network that corrects its input has no end of its range; hardly fitted, it may leave that of the image.
    span = np.ptp(noisy)
    assert noisy.min() - span / 2 < result.min()
    assert result.max() < noisy.max() + span / 2


def test_channel_axis_is_a_matter_of_layout() -> None:
    noisy = image("float32")
    last = dip_fast.denoise(noisy, iterations=2, channel_axis=-1)
    first = dip_fast.denoise(np.moveaxis(noisy, -1, 0), iterations=2, channel_axis=0)
    np.testing.assert_array_equal(np.moveaxis(first, 0, -1), last)


def test_gray_needs_no_channel_axis() -> None:
    noisy = image("uint8", (16, 30))
    gray = dip_fast.denoise(noisy, iterations=2)
    np.testing.assert_array_equal(gray, dip_fast.denoise(noisy[..., None], iterations=2, channel_axis=2)[..., 0])


def test_noise_is_measured_or_given() -> None:
    noisy = image("float32")

    def denoised(**options: object) -> np.ndarray:
        return dip_fast.denoise(noisy, iterations=2, channel_axis=-1, **options)

    np.testing.assert_array_equal(denoised(noise="auto"), denoised())
    np.testing.assert_array_equal(denoised(noise=25), denoised(noise="25"))
    np.testing.assert_array_equal(denoised(noise=np.float32(25)), denoised(noise=(np.float64((25 / 255) ** 2), 0)))
    assert (denoised(noise=25) != denoised(noise=5)).any()
    assert (denoised(noise="poisson") != denoised(noise=(0.001, 0.03))).any()


def test_callbacks_see_each_step_and_can_end_the_fit() -> None:
    steps = []

    def callback(fit: dip_fast.Fit) -> None:
        steps.append(fit.steps)
        if fit.steps == 3:
            fit.interrupt()

    dip_fast.denoise(image("uint8"), channel_axis=-1, callbacks=[callback])
    assert steps == [1, 2, 3]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_known_pixels_stay_and_unknown_ones_do_not_matter(dtype: str) -> None:
    whole = image(dtype)
    known = np.random.default_rng(1).random((18, 21)) < 0.6
    results = []
    for filling in (0, np.nan if np.dtype(dtype).kind == "f" else 7):
        holed = np.where(known[..., None], whole, filling).astype(dtype)
        results.append(dip_fast.inpaint(holed, known, preset="quick", iterations=2, channel_axis=-1))
    np.testing.assert_array_equal(results[0][known], whole[known])
    np.testing.assert_array_equal(results[0], results[1])
    drawn = dip_fast.inpaint(whole, known, preset="quick", iterations=2, composite=False, channel_axis=-1)
    assert (drawn[known] != whole[known]).mean() > 0.9
    np.testing.assert_array_equal(drawn[~known], results[0][~known])


@pytest.mark.parametrize("dtype", [">u2", ">f4", ">f8", "int64", ">i4", "int16", "uint32"])
def test_big_endian_and_integer_arrays_are_restored_like_their_plain_kin(dtype: str) -> None:
    plain = image("float32" if dtype == ">f4" else "float64" if dtype == ">f8" else "uint16")
    plain = plain if plain.dtype.kind == "f" else plain // 16  # of 12 bits, which int16 holds too
    known = np.random.default_rng(1).random((18, 21)) < 0.6
    for restore in (
        lambda noisy: dip_fast.denoise(noisy, iterations=2, channel_axis=-1),
        lambda noisy: dip_fast.inpaint(noisy, known, iterations=2, channel_axis=-1),
    ):
        restored = restore(plain.astype(dtype))
        assert restored.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(restored, restore(plain))


@pytest.mark.parametrize("mark", [-1, 2**31])
def test_unknown_pixels_of_integers_may_hold_anything(mark: int) -> None:
    """Many mark a hole with a number that no sample has."""
    whole, known = image("uint8"), np.random.default_rng(1).random((18, 21)) < 0.6
    filled = dip_fast.inpaint(np.where(known[..., None], whole, mark), known, iterations=2, channel_axis=-1)
    np.testing.assert_array_equal(filled, dip_fast.inpaint(whole, known, iterations=2, channel_axis=-1))


def test_a_mask_that_may_be_the_wrong_way_round_is_warned_of() -> None:
    """As that of skimage's functions is, which marks what is unknown."""
    whole, known = image("float32"), np.ones((18, 21), bool)
    known[3:6, 4:9] = False
    dip_fast.inpaint(whole, known, iterations=2, channel_axis=-1)  # a warning here is an error
    with pytest.warns(UserWarning, match=r"the mask leaves 96% of the picture to be drawn: if it marks .*, invert it"):
        dip_fast.inpaint(whole, ~known, iterations=2, channel_axis=-1)


@pytest.mark.parametrize("value", [1, 255, 0.5, 2**40])
def test_mask_of_two_numbers_is_one_of_truth_values(value: float) -> None:
    whole, known = image("float32"), np.random.default_rng(1).random((18, 21)) < 0.6
    np.testing.assert_array_equal(masks.known(known * value, Data(whole)), known)


def test_mask_of_grays_is_not_cut_at_a_guess() -> None:
    """All that was not 0 counted as known: nearly the whole of a mask that was saved as JPEG."""
    mask = np.where(np.random.default_rng(1).random((18, 21)) < 0.6, 254, 1).astype(np.uint8)
    with pytest.raises(UsageError, match=r"or one number other than 0, .*, got numbers from 1 to 254; cut it, as"):
        dip_fast.inpaint(image("float32"), mask, channel_axis=-1)
    with pytest.raises(UsageError, match="mask must hold truth values or numbers, got complex128"):
        dip_fast.inpaint(image("float32"), mask * 1j, channel_axis=-1)


def test_mask_goes_with_channels_first() -> None:
    whole, known = image("float32"), np.random.default_rng(1).random((18, 21)) < 0.6
    last = dip_fast.inpaint(whole, known, iterations=2, channel_axis=-1)
    first = dip_fast.inpaint(np.moveaxis(whole, -1, 0), known, iterations=2, channel_axis=0)
    np.testing.assert_array_equal(np.moveaxis(first, 0, -1), last)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: dip_fast.denoise(image("uint8")),
            ValueError,
            r"must be \(H, W\), got \(18, 21, 3\); set",
        ),
        (lambda: dip_fast.denoise(np.ones((16, 16), complex)), TypeError, "got complex128; convert it"),
        (lambda: dip_fast.denoise(np.ones((16, 16), np.longdouble)), TypeError, "got float128; convert it"),
        (lambda: dip_fast.denoise(np.zeros((15, 40))), ValueError, r"at least 16x16, got \(15, 40\)"),
        (lambda: dip_fast.denoise(np.full((16, 16), np.inf)), ValueError, "got 256 NaN or infinite values"),
        (lambda: dip_fast.denoise(np.zeros((16, 16)), preset="bset"), ValueError, "one of fast, .*got 'bset'"),
        (lambda: dip_fast.denoise(np.zeros((16, 16)), iterations=0), ValueError, "at least 1, got 0"),
        (lambda: dip_fast.denoise(np.zeros((16, 16)), stop="soon"), ValueError, "one of auto, never, got 'soon'"),  # type: ignore[arg-type]
        (
            lambda: dip_fast.denoise(np.zeros((16, 16)), noise="loud"),
            ValueError,
            "noise must be auto, .*got loud",
        ),
        (lambda: dip_fast.denoise(np.zeros((16, 16)), noise=-1), ValueError, "noise must be .*; got -1"),
        (
            lambda: dip_fast.denoise(np.zeros((16, 16)), noise=(1, 2, 3)),
            ValueError,
            "noise must be .*got 1.0,2.0,3.0",
        ),
        (lambda: dip_fast.inpaint(np.zeros((16, 16)), np.ones((16, 17))), ValueError, r"mask must be \(16, 16\)"),
        (lambda: dip_fast.inpaint(np.zeros((16, 16)), np.zeros((16, 16))), ValueError, "at least one known pixel"),
    ],
)
def test_wrong_arguments_are_refused(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()  # type: ignore[operator]


def test_examples_in_the_docstrings_run() -> None:
    for module in (dip_fast.api, dip_fast.inverse):
        outcome = doctest.testmod(module)
        assert outcome.attempted > 5
        assert outcome.failed == 0


def test_every_public_name_is_there() -> None:
    assert all(getattr(dip_fast, name) is not None for name in dip_fast.__all__)
    assert set(dip_fast.__all__) <= set(dir(dip_fast))
    with pytest.raises(AttributeError, match="no attribute 'restore'"):
        _ = dip_fast.restore


def imported(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    return set(
        subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )


def test_import_of_the_package_loads_neither_torch_nor_numpy() -> None:
    assert not {"torch", "numpy", "PIL", "cv2"} & imported("import dip_fast")


def test_loop_and_functions_need_no_picture_libraries() -> None:
    loaded = imported("import dip_fast.api, dip_fast.networks, dip_fast.ops")
    assert not {"PIL", "cv2", "tifffile", "imagecodecs", "skimage", "matplotlib", "safetensors", "psutil"} & loaded


def test_nothing_slow_is_imported_before_the_first_step() -> None:
    """Each of these takes half a second to a second of CPU, and a run of a small picture has few."""
    loaded = imported(
        "import dip_fast.runs.run, torch; from dip_fast import presets; from dip_fast.device import devices; "
        "from dip_fast.fitting import prepare; from dip_fast.fitting.degradations import Identity; "
        "recipe = presets.PRESETS['quick'].recipe; devices.needed_bytes(recipe, 3, (32, 32), 'fused'); "
        "prepare(Identity(torch.rand(1, 3, 32, 32)), recipe).step()"
    )
    assert not {"torch._dynamo", "sympy", "scipy.stats", "skimage.metrics", "matplotlib.figure"} & loaded


@pytest.mark.parametrize(
    "function",
    [
        dip_fast.denoise,
        lambda noisy, **options: dip_fast.inpaint(noisy, np.indices((18, 21)).sum(0) % 3 > 0, **options),
        lambda noisy, **options: dip_fast.superres(noisy, 2, kernel="gaussian:1.2", **options),
    ],
    ids=["denoise", "inpaint", "superres"],
)
def test_preset_may_be_what_was_made_of_one_as_in_fit(function: Callable[..., np.ndarray]) -> None:
    """These took names alone."""
    by_name = function(image("uint8"), channel_axis=-1, preset="quick", iterations=2)
    preset = dip_fast.PRESETS["quick"].with_(iterations=2)
    for given in (preset, preset.recipe):
        np.testing.assert_array_equal(function(image("uint8"), channel_axis=-1, preset=given), by_name)


def test_preset_that_is_none_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match="preset must be a name, a Preset or a Recipe, got int"):
        dip_fast.denoise(image("uint8"), channel_axis=-1, preset=3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"^preset learns from one picture; for several take one of fast, "):
        dip_fast.denoise(np.ones((2, 16, 16)), frames_axis=0, preset=dip_fast.PRESETS["quick"])
    with pytest.raises(UsageError, match="preset must be a name, which the batch's processes and records know"):
        dip_fast.batch("in", "out", preset=dip_fast.PRESETS["quick"])
