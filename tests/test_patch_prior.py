"""Patches and data in turns, after fits from z: the equation of a turn, what turns give, the network of the answer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import dip_fast
from dip_fast.fitting import Convolution, Fit, prepare
from dip_fast.fitting.measurement import Measurement
from dip_fast.fitting.patch_prior import PatchPrior, in_turns, nearest
from dip_fast.fitting.results import psnr
from dip_fast.networks import crop
from dip_fast.pictures import read_picture
from dip_fast.presets import PRESETS
from dip_fast.tasks import TASKS
from dip_fast.tasks.kernels import gaussian
from dip_fast.tasks.task import Data

RECIPE = PRESETS["quick"].with_(width=8, iterations=100, rounds=2).recipe
KERNEL = torch.from_numpy(gaussian(1.2))


def scene() -> Tensor:
    """A part of a photograph, 40x48."""
    photo = np.asarray(Image.open(Path(__file__).parents[1] / "examples" / "clean.png").convert("RGB"))
    return torch.from_numpy(photo[100:140, 100:148] / np.float32(255)).permute(2, 0, 1)[None]


def blurred(stride: int = 1, sigma: float = 0.004) -> Convolution:
    border = (KERNEL.shape[0] - 1) // 2
    problem = Convolution(torch.zeros(1, 3, (40 - 2 * border) // stride, (48 - 2 * border) // stride), KERNEL, stride)
    y = problem.apply(scene()[..., : problem.scene[0], : problem.scene[1]])
    return Convolution(y + sigma * torch.randn(y.shape, generator=torch.Generator().manual_seed(0)), KERNEL, stride)


def made(seed: int = 1) -> Fit:
    from dip_fast.fitting.start import deep_image_prior

    return prepare(deep_image_prior(blurred(), RECIPE, seed=seed), RECIPE, seed=seed, engine="fused")


def run_through(work) -> Tensor:
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize("stride", [1, 2])
def test_turn_to_the_data_solves_its_equation(stride: int) -> None:
    """``(A' A + w) x = A' y + w v``, by a matrix in float64."""
    degradation, weight = blurred(stride), 0.3
    v = torch.rand(1, 3, *degradation.scene, generator=torch.Generator().manual_seed(2))
    x = nearest(degradation, v, weight)
    pixels = v[0, 0].numel()
    points = torch.eye(pixels).view(pixels, 1, *degradation.scene).expand(-1, 3, -1, -1)
    A = torch.cat([degradation.apply(point) for point in points.split(64)])[:, 0].flatten(1).T.double()
    for channel in range(3):
        y, near = (image[0, channel].flatten().double() for image in (degradation.target, v))
        exact = torch.linalg.solve(A.T @ A + weight * torch.eye(pixels), A.T @ y + weight * near)
        assert (x[0, channel].flatten() - exact).abs().max() < 1e-4  # after 15 steps; 2e-5 seen


def test_turns_bring_back_what_a_blur_took() -> None:
    degradation = blurred()
    clean = scene()[..., : degradation.scene[0], : degradation.scene[1]]
    smooth = torch.nn.functional.pad(degradation.target, (degradation.border[0],) * 4, mode="replicate")
    restored = run_through(in_turns(degradation, smooth, 4))
    before, after = (psnr(float((crop(image - clean, 30, 38)).square().mean())) for image in (smooth, restored))
    assert after > before + 2


def test_answer_is_one_network_at_one_input(tmp_path) -> None:
    fit = made()
    assert isinstance(fit.objective, PatchPrior)
    fit.run()
    result = fit.result()
    assert [part.codes.dtype for part in result.z.parts] == [torch.uint16, torch.uint8]
    assert result.image.shape == (*blurred().size, 3)
    for suffix, trust in ((".onnx", False), (".pt", True), (".pt2", True)):
        drawn = dip_fast.replay(dip_fast.export(result, tmp_path / f"model{suffix}"), trust=trust)
        assert np.abs(drawn - result.image).max() < 2e-5


def test_network_of_the_answer_draws_what_the_turns_end_with() -> None:
    fit = made()
    fit.run()
    made_of = run_through(fit.objective.finish(lambda z: z, fit.averages()["picture"]))
    assert psnr(float((fit.draw() - made_of.clamp(0, 1)).square().mean())) > 90  # dB; its steps alone reach 38


def test_interrupted_turns_have_the_answer_of_the_fit_and_are_made_anew() -> None:
    whole = made()
    whole.run()
    fit = made()
    fit.run([lambda fit: fit.interrupt() if fit.passes == 1 else None])
    state = fit.state()
    assert fit.result().stop_reason == "interrupted"
    again = made()
    again.load_state(state)
    again.run()
    np.testing.assert_array_equal(again.result().image, whole.result().image)


def test_objective_may_be_fitted_twice() -> None:
    objective = made().objective
    images = []
    for _ in range(2):
        fit = prepare(objective, RECIPE, seed=1, engine="fused")
        fit.run()
        images.append(fit.result().image)
    np.testing.assert_array_equal(*images)


def test_same_bits_for_any_number_of_threads() -> None:
    images = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        fit = made()
        fit.run()
        images.append(fit.result().image)
    np.testing.assert_array_equal(*images)


# --- anybody's physics --------------------------------------------------------------------------------------------


def sums(x: Tensor) -> Tensor:
    """Sums of x over squares of 2x2 pixels and over its rows, in units of their own."""
    squares = 40 * torch.nn.functional.avg_pool2d(x, 2).flatten()
    return torch.cat((squares, x.sum(3).flatten()))


def test_turn_to_measured_sums_solves_its_equation() -> None:
    """In units of the physics, here twice those of the network and one above."""
    x = 1 + 2 * scene()[:, :1, :16, :16]
    degradation, weight = Measurement(sums, sums(x), shape=(1, 16, 16), limits=(1, 3)), 20.0
    v = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    A = torch.stack([degradation.apply(e.view(1, 1, 16, 16)) - degradation.apply(0 * v) for e in torch.eye(256)], 1)
    y = (degradation.y - degradation.apply(0 * v)).double()
    exact = torch.linalg.solve(
        A.T.double() @ A.double() + weight * torch.eye(256), A.T.double() @ y + weight * v.flatten()
    )
    assert (nearest(degradation, v, weight).flatten() - exact).abs().max() < 1e-3  # 2e-4 seen


def test_turns_bring_back_what_sums_do_not_tell() -> None:
    clean = scene()[:, :, :40, :40]
    degradation = Measurement(sums, sums(clean), shape=(3, 40, 40), limits=(0, 1))
    smooth = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(clean, 2), scale_factor=2, mode="bilinear")
    restored = run_through(in_turns(degradation, smooth, 4))
    before, after = (psnr(float((image - clean).square().mean())) for image in (smooth, restored))
    assert after > before + 1


def test_fit_of_a_physics_has_turns_where_squares_are_compared() -> None:
    y = sums(scene()[:, :, :40, :40])
    taken = PRESETS["quick"].with_(width=8, iterations=60)

    def passes(**options: object) -> int:
        seen: list[int] = []
        dip_fast.fit(sums, y, shape=(3, 40, 40), callbacks=[lambda fit: seen.append(fit.passes)], **options)
        return max(seen)

    assert passes(preset=taken) > 0
    assert passes(preset=taken, loss="absolute") == 0
    assert passes(iterations=60, network=torch.nn.Conv2d(32, 3, 1)) == 0


def test_short_fits_have_no_rounds() -> None:
    """So that a first look is one: a round takes as long as some thirty steps."""
    short = PRESETS["quick"].with_(iterations=29).recipe
    from dip_fast.fitting.start import deep_image_prior

    assert not isinstance(deep_image_prior(blurred(), short), PatchPrior)


@pytest.mark.parametrize(
    ("name", "options", "preset", "inputs"),
    [
        ("denoise", {}, "quick", {}),
        ("denoise", {}, "default", {}),
        ("deblur", {}, "quick", {"kernel": KERNEL.numpy()}),
        ("superres", {"scale": 2}, "quick", {}),
        ("jpeg", {}, "quick", {}),
        ("guided", {"scale": 1}, "quick", {"guide": np.zeros((40, 48, 1), np.float32)}),
        ("guided", {"scale": 2}, "quick", {"guide": np.zeros((80, 96, 1), np.float32)}),
        ("inpaint", {}, "quick", {"mask": np.eye(40, 48) < 1}),
        ("inpaint", {}, "default", {"mask": np.eye(40, 48) < 1}),
        ("inpaint", {"composite": False}, "quick", {"mask": np.eye(40, 48) < 1}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tasks_say_whether_rounds_follow(tmp_path, name, options, preset, inputs) -> None:
    """So that what a run takes can be foretold without its picture."""
    Image.fromarray((scene()[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(tmp_path / "photo.jpg")
    picture = read_picture(tmp_path / "photo.jpg")
    task, recipe = TASKS[name], PRESETS[preset].with_(width=8).recipe
    options = task.complete(options)
    objective = task.objective(Data(picture.image, inputs, picture), options, recipe, 1)
    assert (getattr(objective, "rounds", 0) > 0) == task.has_rounds(recipe, options)
