"""One network for several pictures: frames of a scene, planes of a stack, tiles."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_masked import NOISE, RECIPE, SIGMA, clean
from torch import Tensor

import dip_fast
from dip_fast.errors import UsageError
from dip_fast.fitting import (
    Fit,
    MaskedPrediction,
    NoiseModel,
    fit,
    masked_prediction,
    measure_noise,
    prepare,
    similar_patches,
)
from dip_fast.fitting.combining import combine
from dip_fast.fitting.finishing import Finishing
from dip_fast.fitting.masked import MASKS_OF_SEVERAL, ROUNDS_OF_SEVERAL
from dip_fast.pictures.layout import Layout
from dip_fast.presets import PRESETS
from dip_fast.runs import checkpoints
from dip_fast.runs.progress import steps_done, steps_in_all


def frames(count: int = 3, height: int = 37, width: int = 45, channels: int = 3) -> Tensor:
    """Draw one scene several times, each with noise of its own, ``(N, C, H, W)``."""
    scene = clean(height, width, channels).expand(count, -1, -1, -1)
    return scene + SIGMA * torch.randn(scene.shape, generator=torch.Generator().manual_seed(1))


def stack(dtype: str = "float32", shape: tuple[int, ...] = (3, 18, 21, 3)) -> np.ndarray:
    values = np.random.default_rng(0).uniform(0.1, 0.9, shape)
    return values.astype(dtype) if np.dtype(dtype).kind == "f" else (values * np.iinfo(dtype).max).astype(dtype)


def made(y: Tensor, recipe: dip_fast.Recipe = RECIPE, noise: NoiseModel = NOISE) -> MaskedPrediction:
    return masked_prediction(y, noise, recipe, seed=3)


def finished(objective: MaskedPrediction) -> Tensor:
    """Let an objective make its pictures with a network that smooths what it sees, and learns nothing."""

    def draw(z: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(z[:, : objective.channels], 3, 1, 1, count_include_pad=False)

    work = objective.finish(draw, objective.y)
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default preset with a network and a fit of milliseconds."""
    monkeypatch.setitem(PRESETS._entries, "default", replace(PRESETS["default"], recipe=RECIPE))


# --- steps ---------------------------------------------------------------------------------------------------------


def test_steps_see_squares_of_all_pictures() -> None:
    y = torch.arange(4.0)[:, None, None, None].expand(4, 1, 40, 40).contiguous() / 4
    objective = made(y)
    seen = [round(4 * objective.example(torch.tensor(step)).target.mean().item()) for step in range(1, 65)]
    assert sorted(set(seen)) == [0, 1, 2, 3]
    assert max(np.bincount(seen)) < 32


def test_what_describes_a_picture_describes_one() -> None:
    one, objective = made(frames(3)[:1]), made(frames(3))
    assert (objective.size, objective.channels, objective.pictures) == ((37, 45), 3, 3)
    assert objective.z.size == (37, 45)
    assert torch.equal(one.z.tensor(), objective.z.tensor())


# --- the noise -----------------------------------------------------------------------------------------------------


def test_noise_is_measured_on_all_pictures() -> None:
    c = clean(64, 64, 1)
    generator = torch.Generator().manual_seed(0)
    y = torch.cat([c + sigma * torch.randn(c.shape, generator=generator) for sigma in (0.05, 0.1, 0.1)])
    low, middle, high = measure_noise(y[:1]).deviation, measure_noise(y).deviation, measure_noise(y[1:]).deviation
    assert low < 0.06 < 0.07 < middle < 0.97 * high
    assert high == pytest.approx(0.1, rel=0.08)


def test_noise_of_a_picture_and_its_copies_is_one() -> None:
    y = frames(1, 64, 64)
    assert measure_noise(y.repeat(4, 1, 1, 1)).deviation == pytest.approx(measure_noise(y).deviation, rel=0.01)


# --- the pictures --------------------------------------------------------------------------------------------------


def test_samples_of_a_picture_enter_its_own_answer_and_that_of_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches are looked for in the next picture, and all that are found are estimated: two pictures off.

    The average along time reaches to the next one.
    """
    monkeypatch.setattr("dip_fast.fitting.masked.ROUNDS_OF_SEVERAL", 1)
    monkeypatch.setattr("dip_fast.fitting.similar_patches.NEIGHBOURS", 1)
    monkeypatch.setattr("dip_fast.fitting.along_time.NEIGHBOURS", 1)
    y = frames(6)
    changed = y.clone()
    changed[0] = 1 - changed[0]
    first, second = finished(made(y)), finished(made(changed))
    assert first.shape == y.shape
    assert torch.equal(first[4:], second[4:])
    assert (first[0] - second[0]).abs().min() > 0
    assert not torch.equal(first[1], second[1])


def test_answer_of_the_first_picture_is_that_of_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its masks are those that it has alone; a network that learns nothing makes the same of it."""
    monkeypatch.setattr("dip_fast.fitting.masked.ROUNDS_OF_SEVERAL", 1)
    monkeypatch.setattr("dip_fast.fitting.similar_patches.NEIGHBOURS", 0)
    monkeypatch.setattr("dip_fast.fitting.similar_patches.ALIKE_IN_STACKS", similar_patches.ALIKE)
    monkeypatch.setattr("dip_fast.fitting.along_time.NEIGHBOURS", 0)
    y = frames(3)
    objective, alone = made(y), made(y[:1])
    assert alone.learned == pytest.approx(3 * objective.learned)  # of the noise of more samples a network learns less
    alone.learned = objective.learned
    pictures = finished(objective)
    assert torch.equal(pictures[:1], finished(alone))
    assert objective.estimated_psnrs[0] == alone.estimated_psnr
    assert objective.estimated_psnr == pytest.approx(sum(objective.estimated_psnrs) / 3)
    assert len(set(objective.estimated_psnrs)) == 3
    for n in range(3):
        assert (y[n] - pictures[n]).std() < (y[n] - pictures[n - 1]).std()


def test_order_does_not_matter_where_nothing_is_drawn() -> None:
    recipe = replace(RECIPE, masking=replace(RECIPE.masking, keep=1.0))
    y = frames(3)
    forth, back = finished(made(y, recipe)), finished(made(y.flip(0), recipe))
    assert torch.equal(forth, back.flip(0))
    assert not torch.equal(forth[0], forth[1])


def test_each_picture_is_drawn_from_the_weights_that_the_steps_have_left(tmp_path: Path) -> None:
    fitting = prepare(made(frames(2)), RECIPE, seed=3)
    fitting.run()
    whole = fitting.result()
    first, second, again = (fitting.result(n).image for n in (0, 1, 0))
    np.testing.assert_array_equal(first, again)
    for drawn, other, image in ((first, second, whole.images[0]), (second, first, whole.images[1])):
        assert np.mean((drawn - image) ** 2) < np.mean((other - image) ** 2)
    with pytest.raises(UsageError, match="the result holds 2 pictures, and a model file draws one"):
        dip_fast.export(whole, tmp_path / "model.onnx")


def test_masks_of_several_pictures_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dip_fast.fitting.along_time.NEIGHBOURS", 0)
    y = frames(1).repeat(2, 1, 1, 1)
    pictures = finished(made(y))
    assert not torch.equal(pictures[0], pictures[1])


@pytest.mark.parametrize("masks", [4, 64])
def test_several_pictures_take_fewer_masks_each(masks: int) -> None:
    recipe = replace(RECIPE, masking=replace(RECIPE.masking, passes=masks))
    assert made(frames(1), recipe).passes == masks + 1
    patches_and_average = ROUNDS_OF_SEVERAL + 1
    assert made(frames(3), recipe).passes == 3 * (min(masks, MASKS_OF_SEVERAL) + patches_and_average)


def test_progress_ends_at_its_total() -> None:
    for count in (1, 3):
        run = prepare(made(frames(count)), RECIPE, seed=3)
        total = steps_in_all(run)
        shown: list[int] = []
        run.run([lambda run, shown=shown: shown.append(steps_done(run))])
        assert shown == list(range(1, total + 1))


# --- whole fits ----------------------------------------------------------------------------------------------------


def test_pictures_are_those_that_the_objective_made(monkeypatch: pytest.MonkeyPatch) -> None:
    combined = []

    def recording(y: Tensor, A: Tensor, noise: NoiseModel, learned: float) -> tuple[Tensor, Tensor, float, float]:
        combined.append(combine(y, A, noise, learned))
        return combined[-1]

    monkeypatch.setattr("dip_fast.fitting.masked.combine", recording)
    monkeypatch.setattr(MaskedPrediction, "_rounds", 0)
    monkeypatch.setattr(MaskedPrediction, "_averages_along_time", False)
    result = fit(made(frames(3)), RECIPE, seed=3)
    assert result.images.shape == (3, 37, 45, 3)
    for image, (x, _, _, psnr), estimated in zip(result.images, combined, result.estimated_psnrs, strict=True):
        np.testing.assert_array_equal(image, x[0].permute(1, 2, 0).numpy())
        assert estimated == psnr
    assert result.estimated_psnr == pytest.approx(np.mean(result.estimated_psnrs))
    assert result.image.shape == (37, 45, 3)


def test_one_picture_of_a_fit_has_no_others() -> None:
    assert fit(made(frames(1)), RECIPE, seed=3).images is None


def test_steps_for_all_frames_are_as_good_as_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many steps for six frames as for one; without consolidation, which has hardly a step here."""
    options, masking = replace(RECIPE.options, iterations=150), replace(RECIPE.masking, passes=32)
    recipe = replace(RECIPE, options=options, masking=masking)
    y, c = frames(6, 64, 64), clean(64, 64)

    def psnr(x: Tensor) -> float:
        return -10 * float((x - c[0]).square().mean().log10())

    images = fit(made(y, recipe), recipe, seed=3).images
    together = [psnr(torch.from_numpy(image).permute(2, 0, 1)) for image in images]
    single: list[Tensor] = []
    monkeypatch.setattr(Finishing, "_consolidate", lambda self, fit, picture, *more: single.append(picture[0]))
    for n in range(3):
        prepare(made(y[n : n + 1], recipe), recipe, seed=3).run()
    alone = [psnr(x) for x in single]
    assert len(alone) == 3
    assert min(together) > 20 + 6  # dB; the noisy pictures have 20
    assert np.mean(together[:3]) > np.mean(alone) - 0.15, (together, alone)


@pytest.mark.parametrize("engine", ["fused", "plain"])
@pytest.mark.parametrize("stop", ["step 17", "pass 20", "pass 30"])
def test_resumed_bit_for_bit(engine: str, stop: str, tmp_path: Path) -> None:
    y = frames(3)
    expected = fit(made(y), RECIPE, seed=3, engine=engine)
    kind, number = stop.split()

    def interrupt(run: Fit) -> None:
        if {"step": run.steps, "pass": run.passes}[kind] >= int(number):
            run.interrupt()

    first = prepare(made(y), RECIPE, seed=3, engine=engine)
    first.run([interrupt])
    assert first.interrupted
    (tmp_path / "checkpoint").write_bytes(checkpoints.dump(first, "run"))
    second = prepare(made(y), RECIPE, seed=3, engine=engine)
    checkpoints.load(tmp_path / "checkpoint", second, "run")
    second.run()
    result = second.result()
    np.testing.assert_array_equal(result.images, expected.images)
    np.testing.assert_array_equal(result.image, expected.image)
    assert result.estimated_psnrs == expected.estimated_psnrs


def test_interrupted_fit_draws_each_picture_from_its_own_input() -> None:
    y = frames(3)
    run = prepare(made(y), RECIPE, seed=3)
    run.run([lambda run: run.interrupt() if run.steps == 20 else None])
    result = run.result()
    assert result.images.shape == (3, 37, 45, 3)
    np.testing.assert_array_equal(result.images[0], result.image)
    for n in range(3):
        errors = [float(np.square(result.images[n] - other.permute(1, 2, 0).numpy()).mean()) for other in y]
        assert int(np.argmin(errors)) == n


def test_same_bits_for_any_number_of_threads() -> None:
    images = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        images.append(fit(made(frames(3, 40, 60)), RECIPE, seed=3, engine="fused").images)
    torch.set_num_threads(1)
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])


# --- arrays --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64"])
def test_dtype_and_shape_are_kept(dtype: str) -> None:
    noisy = stack(dtype)
    before = noisy.copy()
    result = dip_fast.denoise(noisy, iterations=2, channel_axis=-1, frames_axis=0)
    assert (result.dtype, result.shape) == (noisy.dtype, noisy.shape)
    np.testing.assert_array_equal(noisy, before)
    middle = np.float64(1 if noisy.dtype.kind == "f" else np.iinfo(dtype).max) / 2
    assert all(abs(frame.mean(dtype=np.float64) - middle) < 0.3 * middle for frame in result)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_one_frame_is_the_plain_call(dtype: str) -> None:
    noisy = stack(dtype, (1, 18, 21, 3))
    plain = dip_fast.denoise(noisy[0], iterations=12, channel_axis=-1)
    np.testing.assert_array_equal(dip_fast.denoise(noisy, iterations=12, channel_axis=-1, frames_axis=0)[0], plain)


@pytest.mark.usefixtures("tiny")
def test_axes_are_a_matter_of_layout() -> None:
    noisy = stack()
    expected = dip_fast.denoise(noisy, iterations=2, channel_axis=3, frames_axis=0)
    moved = np.moveaxis(noisy, (0, 3), (-1, 0))  # (C, H, W, N)
    found = dip_fast.denoise(moved, iterations=2, channel_axis=0, frames_axis=-1)
    np.testing.assert_array_equal(np.moveaxis(found, (-1, 0), (0, 3)), expected)
    gray = dip_fast.denoise(noisy[..., 0], iterations=2, frames_axis=0)
    np.testing.assert_array_equal(
        dip_fast.denoise(noisy[..., :1], iterations=2, channel_axis=-1, frames_axis=0)[..., 0], gray
    )
    np.testing.assert_array_equal(dip_fast.denoise(list(noisy[..., 0]), iterations=2, frames_axis=0), gray)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 2, 0, 3), (3, 1, 2, 0), (1, 0, 3, 2), (2, 3, 1, 0)])
@pytest.mark.parametrize("negative", [False, True])
def test_layout_finds_the_axes_and_puts_them_back(order: tuple[int, ...], negative: bool) -> None:
    samples = stack()
    given = samples.transpose(order)
    frames_axis, channel_axis = (order.index(axis) - (4 if negative else 0) for axis in (0, 3))
    rows_first = order.index(1) < order.index(2)
    layout = Layout(channel_axis, frames_axis)
    found = layout.channels_last(given)
    np.testing.assert_array_equal(found if rows_first else found.swapaxes(1, 2), samples)
    np.testing.assert_array_equal(layout.as_given(found), given)


@pytest.mark.usefixtures("tiny")
def test_frames_have_one_range() -> None:
    noisy = stack(shape=(2, 18, 21))
    noisy[1] *= 0.1  # a range of its own would begin at its minimum
    seen: list[Fit] = []
    dip_fast.denoise(noisy * 1000, iterations=1, frames_axis=0, callbacks=[seen.append])
    assert isinstance(seen[0].objective, MaskedPrediction)
    low, high = noisy.min(), noisy.max()
    np.testing.assert_allclose(seen[0].objective.y[:, 0], (noisy - low) / (high - low), atol=1e-5)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: dip_fast.denoise(stack(), frames_axis=0),
            ValueError,
            r"must be three-dimensional with frames_axis, got \(3, 18, 21, 3\); set channel_axis for a colour image",
        ),
        (
            lambda: dip_fast.denoise(stack()[0], frames_axis=0, channel_axis=-1),
            ValueError,
            r"must be four-dimensional with frames_axis and channel_axis, got \(18, 21, 3\)",
        ),
        (lambda: dip_fast.denoise(stack(), frames_axis=4, channel_axis=3), ValueError, "frames_axis must.* 4, got 4"),
        (lambda: dip_fast.denoise(stack(), frames_axis=0, channel_axis=-5), ValueError, "channel_axis must.* got -5"),
        (lambda: dip_fast.denoise(stack(), frames_axis=-1, channel_axis=3), ValueError, "must differ, got -1 and 3"),
        (lambda: dip_fast.denoise(stack()[:0], frames_axis=0, channel_axis=3), ValueError, r"got none in \(0, 18"),
        (lambda: dip_fast.denoise(stack(), frames_axis=1, channel_axis=3), ValueError, r"16x16, got \(3, 21\)"),
        (
            lambda: dip_fast.denoise([stack()[0], stack()[0][:17]], frames_axis=0, channel_axis=3),
            ValueError,
            r"frames of one size, got \(18, 21, 3\) and \(17, 21, 3\)",
        ),
        (
            lambda: dip_fast.denoise(stack().astype("complex64"), frames_axis=0, channel_axis=3),
            TypeError,
            "got complex64",
        ),
        (
            lambda: dip_fast.denoise(stack(), frames_axis=0, channel_axis=3, preset="quick"),
            dip_fast.UsageError,
            "preset='quick' learns from one picture; for several take one of .*default",
        ),
        (
            lambda: dip_fast.inpaint(stack(), np.ones((18, 21)), frames_axis=0, channel_axis=3),  # type: ignore[call-arg]
            TypeError,
            "unexpected keyword argument 'frames_axis'",
        ),
    ],
)
def test_wrong_arguments_are_refused(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        call()  # type: ignore[operator]
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("tiny")
def test_example_on_the_page_runs() -> None:
    text = (Path(__file__).parents[1] / "docs" / "stacks.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"frames": stack(), "planes": stack(shape=(2, 18, 21)), "dip_fast": dip_fast}
    exec(compile("".join(blocks), "docs/stacks.md", "exec"), names)
    assert names["restored"].shape == (2, 18, 21)
    assert names["result"].images.shape == (3, 18, 21, 3)
    assert names["result"].estimated_psnr == pytest.approx(np.mean(names["result"].estimated_psnrs))
