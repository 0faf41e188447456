"""Blurs and reductions in size: what A does, kernels by name, file and array, a scene beyond the edges, baselines."""

import numpy as np
import pytest
import torch
from PIL import Image

from dip_fast.errors import UsageError
from dip_fast.fitting import Convolution, DeepImagePrior, Identity
from dip_fast.guides.bicubic import enlarge
from dip_fast.guides.wiener import deconvolve
from dip_fast.networks.network_input import draw
from dip_fast.pictures.metrics import psnr
from dip_fast.tasks import TASKS, Data, kernels
from dip_fast.tasks.task import as_target


def scene(height, width, channels=3, seed=0):
    """Noise with some structure: nothing that a kernel leaves as it is."""
    values = np.random.default_rng(seed).random((height, width, channels))
    return (0.5 * values + 0.25 * np.roll(values, 1, 0) + 0.25 * np.roll(values, 1, 1)).astype(np.float32)


@pytest.mark.parametrize("name", ["bicubic", "lanczos", "box"])
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_reduction_is_that_of_pillow_inside(name, scale):
    large = scene(scale * 20, scale * 24, channels=1)
    resample = Image.Resampling[name.upper()]
    small = np.array(Image.fromarray(large[..., 0]).resize((24, 20), resample))
    kernel = torch.from_numpy(kernels.reduction(name, scale))
    x = as_target(large)
    problem = Convolution(as_target(small[..., None]), kernel, scale)
    assert problem.size == (scale * 20, scale * 24)
    top, left = problem.border
    inner = problem.apply(torch.nn.functional.pad(x, (left, left, top, top)))[0, 0, 4:-4, 4:-4]
    np.testing.assert_allclose(inner, small[4:-4, 4:-4], atol=2e-5)


def test_blur_is_a_convolution_of_the_scene_and_reads_nothing_beyond_it():
    from skimage.filters import gaussian

    kernel = kernels.motion(7, 30)
    assert kernel.shape == (11, 11)
    wide = scene(40, 44)
    problem = Convolution(torch.zeros(1, 3, 30, 34), torch.from_numpy(kernel))
    assert problem.scene == (40, 44)
    blurred = problem.apply(as_target(wide))
    assert blurred.shape == problem.target.shape
    expected = sum(kernel[a, b] * wide[10 - a : 40 - a, 10 - b : 44 - b] for a in range(11) for b in range(11))
    np.testing.assert_allclose(blurred[0].permute(1, 2, 0), expected, atol=1e-6)

    problem = Convolution(torch.zeros(1, 3, 28, 32), torch.from_numpy(kernels.gaussian(1.6)))
    expected = gaussian(wide, 1.6, channel_axis=2)[6:-6, 6:-6]
    np.testing.assert_allclose(problem.apply(as_target(wide))[0].permute(1, 2, 0), expected, atol=1e-5)


@pytest.mark.parametrize(("shape", "stride"), [((1, 1), 1), ((2, 5), 1), ((3, 3), 2), ((5, 2), 4), ((9, 9), 3)])
def test_kernels_of_any_sides_have_a_scene(shape, stride):
    kernel = torch.from_numpy(np.random.default_rng(0).random(shape))
    problem = Convolution(torch.zeros(1, 1, 16, 20), kernel, stride)
    assert problem.apply(torch.rand(1, 1, *problem.scene)).shape == problem.target.shape
    assert problem.weight.sum() == pytest.approx(kernel.sum())


def test_motion_goes_where_it_is_said_to():
    across, up, slanted = kernels.motion(5, 0), kernels.motion(5, 90), kernels.motion(9, 45)
    np.testing.assert_allclose(across, up.T, atol=1e-7)
    assert across[across.shape[0] // 2].sum() == pytest.approx(1)
    assert slanted[1, -2] + slanted[2, -3] > slanted[1, 1] + slanted[2, 2]  # up on the right


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["gaussian:1.2", "motion:5,30"])
def test_blur_before_a_reduction_has_its_middle_in_that_of_a_block(name, scale):
    """Only reductions of a name, files and arrays were taken."""
    kernel = torch.from_numpy(kernels.of_reduction(name, scale))
    assert (kernel.shape[0] - scale) % 2 == 0
    problem = Convolution(torch.zeros(1, 1, 5, 6), kernel, scale)
    along = torch.arange(-problem.border[0], problem.scene[0] - problem.border[0], dtype=torch.float32)
    slope = along[None, None, :, None].expand(1, 1, *problem.scene)
    middles = torch.arange(5) * scale + (scale - 1) / 2
    torch.testing.assert_close(problem.apply(slope)[0, 0], middles[:, None].expand(5, 6), rtol=0, atol=1e-4)
    if scale == 1:
        np.testing.assert_array_equal(kernel, kernels.blur(name))


def test_iterates_and_the_answer_are_the_middle_of_the_scene():
    """The loss sees the border; nothing that a user gets does."""
    problem = Convolution(torch.rand(1, 1, 16, 18), torch.from_numpy(kernels.gaussian(1)))
    objective = DeepImagePrior(problem, draw("uniform", 2, (64, 64), seed=0))
    assert (objective.size, objective.step_size, objective.scene) == ((16, 18), (24, 26), (24, 26))
    picture = torch.rand(1, 1, 16, 18)
    drawing = objective.drawing(picture)
    x = torch.nn.functional.pad(picture, (4, 4, 4, 4), value=9.0)
    assert drawing.step_size == (24, 26)
    assert float(drawing.loss(x, drawing.example(torch.tensor(1)))) == 0
    torch.testing.assert_close(Identity(picture, border=(4, 4)).apply(x), picture)


# --- kernels from files and arrays --------------------------------------------------------------------------------


def test_kernel_comes_from_a_picture_a_table_or_an_array(place):
    values = np.array([[0, 1, 0], [1, 4, 2], [0, 1, 0]])
    np.save("kernel.npy", values)
    np.savetxt("kernel.txt", values)
    np.savetxt("kernel.csv", values, delimiter=",")
    Image.fromarray(values.astype(np.uint8)).save("kernel.png")
    Image.fromarray(np.dstack([values.astype(np.uint8)] * 3)).save("colour.png")
    expected = (values / 9).astype(np.float32)
    for source in ("kernel.npy", "kernel.txt", "kernel.csv", "kernel.png", "colour.png"):
        np.testing.assert_array_equal(kernels.blur(place / source), expected, err_msg=source)
    np.testing.assert_array_equal(kernels.blur(values), expected)
    np.testing.assert_array_equal(kernels.of_reduction(values, 2), expected)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gaussian:", "kernel must be gaussian:DEVIATION or motion:LENGTH,DEGREES"),
        ("gaussian:0", "more than 0 and at most 200 pixels"),
        ("gaussian:1e9", "more than 0 and at most 200 pixels"),
        ("gaussian:nan", "more than 0 and at most 200 pixels"),
        ("motion:15", "such as gaussian:1.6 or motion:15,30; got motion:15"),
        ("bicubic", "kernel must be gaussian:1.6, motion:15,30 or a file; cannot read bicubic: No such file"),
        ("empty", "the kernel empty is neither a picture nor an .npy file nor a table of numbers"),
        ("words", "the kernel words is neither a picture nor an .npy file nor a table of numbers"),
        (np.zeros((3, 3)), "kernel must hold finite numbers with a sum above 0"),
        (np.full((3, 3), np.nan), "kernel must hold finite numbers"),
        (np.ones(3), r"kernel must be numbers (h, w), got (3,) of float64"),
        (np.ones((3, 3), complex), r"kernel must be numbers (h, w), got (3, 3) of complex128"),
    ],
)
def test_kernel_that_is_none(place, source, message):
    (place / "empty").touch()
    (place / "words").write_text("no numbers")
    with pytest.raises(UsageError) as caught:
        kernels.blur(source)
    assert message in str(caught.value)


def test_kernel_of_a_reduction_that_is_none_names_all_there_are():
    with pytest.raises(UsageError, match=r"must be bicubic, lanczos, box, gaussian:1\.6, motion:15,30 or a file; "):
        kernels.of_reduction("bicubik", 2)
    with pytest.raises(UsageError, match="more than 0 and at most 200 pixels"):
        kernels.of_reduction("gaussian:0", 2)


def test_kernel_larger_than_the_picture_is_refused():
    small = Data(np.zeros((16, 18, 3), np.float32))
    with pytest.raises(
        UsageError, match="must not be larger than the result, 18x16 pixels, got 17x17; give a narrower one"
    ):
        TASKS["deblur"].read("kernel", "gaussian:2", small, {})
    assert TASKS["superres"].read("kernel", "lanczos", small, {"scale": 2}).shape == (12, 12)


# --- what the results are compared with ---------------------------------------------------------------------------


def smooth(height=64, width=80, channels=3):
    rows, columns = np.mgrid[:height, :width] / 10
    planes = [0.5 + 0.3 * np.sin(4 * rows + i) * np.cos(3 * columns) for i in range(channels)]
    return np.stack(planes, axis=2).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 3])
def test_deblurring_is_compared_with_a_filter_that_deblurs(channels):
    clean = smooth(channels=channels)
    kernel = kernels.gaussian(1.6)
    blurred = Convolution(torch.zeros(1, channels, 52, 68), torch.from_numpy(kernel)).apply(as_target(clean))
    noise = np.random.default_rng(0).normal(0, 2 / 255, (52, 68, channels))
    y = (blurred[0].permute(1, 2, 0).numpy() + noise).astype(np.float32)
    baseline = TASKS["deblur"].baseline(Data(y, {"kernel": kernel}), {}).image
    assert (baseline.shape, baseline.dtype) == (y.shape, np.float32)
    assert psnr(baseline, clean[6:-6, 6:-6]) > psnr(y, clean[6:-6, 6:-6]) + 3
    assert np.isfinite(deconvolve(np.full((20, 20, 1), 0.5, np.float32), kernel, 0.0)).all()


def test_superresolution_is_compared_with_bicubic_enlargement():
    image = smooth(20, 24)
    baseline = TASKS["superres"].baseline(Data(image), {"scale": 3}).image
    assert (baseline.shape, baseline.dtype) == ((60, 72, 3), np.float32)
    np.testing.assert_allclose(enlarge(np.full((16, 16, 1), 0.25, np.float32), 2), 0.25, atol=1e-6)
