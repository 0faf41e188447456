"""Objectives of one's own, written without touching the loop; degradations on a device, in windows, of other sizes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dip_fast
from dip_fast import ops
from dip_fast.errors import UsageError
from dip_fast.fitting import Example, Fit, Identity, Mask, Objective, Operator, deep_image_prior, fit, prepare
from dip_fast.fitting.reductions import total
from dip_fast.networks import network_input
from dip_fast.presets import FitOptions, Recipe
from dip_fast.runs import checkpoints

OPTIONS = FitOptions(iterations=100, learning_rate=0.01, stop="never", consolidation=10)
RECIPE = Recipe("skip", {"down": 8, "up": 8, "skip": 4, "scales": 2, "upsampling": "nearest"}, 4, "uniform", OPTIONS)


def noisy(height: int = 37, width: int = 45) -> Tensor:
    rows, columns = np.mgrid[:height, :width] / 40
    clean = np.stack([0.5 + 0.3 * np.sin(7 * rows + i) * np.cos(5 * columns) for i in range(3)])
    noise = np.random.default_rng(0).normal(0, 0.1, clean.shape)
    return torch.tensor(np.clip(clean + noise, 0, 1)[None], dtype=torch.float32)


class BlindSpot(Objective):
    """The network sees the picture with holes, and is compared with the samples in them (Noise2Self, Self2Self).

    Each sample of each channel is kept with a probability of 0.7, anew at each step; the mask goes along as input.
    """

    def __init__(self, y: Tensor, seed: int = 0) -> None:
        whole = network_input.joined(network_input.of_image(y), network_input.of_image(torch.ones_like(y)))
        super().__init__(whole, (y.shape[2], y.shape[3]), y.shape[1])
        self.y = y
        self.seed = seed

    def example(self, step: Tensor) -> Example:
        kept = ops.bernoulli(self.y, 0.7, self.seed, step)
        return Example(torch.cat((self.y * kept, kept), dim=1))

    def loss(self, x: Tensor, example: Example) -> Tensor:
        dropped = 1 - example.z[:, self.channels :]
        return total(((x - self.y) * dropped).square()) / total(dropped)


def made(engine: str, between: int | None = None, recipe: Recipe = RECIPE) -> Fit:
    return prepare(BlindSpot(noisy()), recipe, seed=1, engine=engine, steps_between_syncs=between)


@pytest.mark.parametrize("engine", ["fused", "plain"])
def test_blind_spot_learns_in_both_engines(engine: str) -> None:
    run = made(engine)
    run.run()
    losses = run.history()["loss"]
    assert run.steps == 100
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:3])
    assert len(set(losses)) == 100  # each step has a mask of its own


def test_engines_begin_alike() -> None:
    fused, plain = made("fused"), made("plain")
    for run in (fused, plain):
        run.step()
    np.testing.assert_allclose(fused.rows[0][1], plain.rows[0][1], rtol=1e-5)


def test_loss_and_input_see_the_same_mask() -> None:
    objective = BlindSpot(noisy())
    step = torch.tensor(5)
    example = objective.example(step)
    x = torch.rand(1, 3, 37, 45, generator=torch.Generator().manual_seed(2), requires_grad=True)
    objective.loss(x, example).backward()
    kept = example.z[:, 3:].bool()
    assert 0.65 < kept.float().mean() < 0.75
    assert not x.grad[kept].any()  # a sample that the network saw is never compared
    assert x.grad[~kept].all()
    assert torch.equal(example.z, objective.example(step).z)
    assert not torch.equal(example.z, objective.example(torch.tensor(6)).z)


@pytest.mark.parametrize("engine", ["fused", "plain"])
@pytest.mark.parametrize("between", [None, 7])
def test_resumed_bit_for_bit(engine: str, between: int | None, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made(engine)
    whole.run()
    expected = whole.result()

    first = made(engine, between)
    first.run([lambda run: run.interrupt() if run.steps == 37 else None])
    (tmp_path / "checkpoint").write_bytes(checkpoints.dump(first, "run"))
    second = made(engine, between)
    checkpoints.load(tmp_path / "checkpoint", second, "run")
    second.run()
    result = second.result()
    np.testing.assert_array_equal(result.image, expected.image)
    for name, values in expected.history.items():
        np.testing.assert_array_equal(result.history[name], values, err_msg=name)


def test_answer_of_an_image_input_is_exported_and_drawn_again(tmp_path) -> None:
    result = fit(BlindSpot(noisy()), replace(RECIPE, options=replace(OPTIONS, iterations=12)), seed=1)
    assert result.z.size == (40, 48)  # the network's, mirrored around the picture
    assert len(result.z.parts) == 2
    for suffix, trust in ((".onnx", False), (".pt", True), (".pt2", True)):
        path = dip_fast.export(result, tmp_path / f"model{suffix}")
        drawn = dip_fast.replay(path, trust=trust)
        assert np.abs(drawn - result.image).max() < 2e-5


def test_answer_is_drawn_from_the_fixed_input() -> None:
    run = made("plain", recipe=replace(RECIPE, options=replace(OPTIONS, iterations=3, consolidation=0)))
    run.run()
    result = run.result()
    with torch.no_grad():
        output = result.network(result.z.tensor())
    np.testing.assert_array_equal(result.image, output[0, :, 1:38, 1:46].permute(1, 2, 0).numpy())


# --- objectives and degradations on a device ----------------------------------------------------------------------


class Blur(nn.Module):
    """A module with a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.full((3, 1, 3, 3), 1 / 9))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.kernel, groups=3, padding=1)


def test_to_copies_and_moves_modules_too() -> None:
    blur, y = Blur(), noisy()
    degradation = Operator(blur, y, (37, 45))
    moved: Any = degradation.to("meta")
    assert (moved.target.device.type, moved.function.kernel.device.type) == ("meta", "meta")
    assert (degradation.target.device.type, blur.kernel.device.type) == ("cpu", "cpu")
    assert moved.function is not blur
    objective = deep_image_prior(Mask(y, y[:, :1] < 0.5), RECIPE)
    there: Any = objective.to("meta")
    assert {there.degradation.target.device.type, there.degradation.known.device.type} == {"meta"}
    assert there.example(torch.tensor(1, device="meta")).z.device.type == "meta"
    assert objective.degradation.target.device.type == "cpu"
    assert objective.example(torch.tensor(1)).z.device.type == "cpu"


def test_fit_leaves_the_callers_degradation_alone() -> None:
    degradation = Identity(noisy())
    before = vars(degradation).copy()
    run: Any = prepare(degradation, RECIPE)
    assert vars(degradation) == before
    assert run.objective.degradation is not degradation


@pytest.mark.parametrize("kind", ["identity", "mask"])
def test_window_is_the_degradation_of_a_part(kind: str) -> None:
    y = noisy()
    known = y[:, :1] < 0.6
    whole = Identity(y) if kind == "identity" else Mask(y, known, composite=False)
    part = whole.window(slice(4, 20), slice(7, 31))
    assert type(part) is type(whole)
    assert (part.size, part.channels, part.kept) == ((16, 24), 3, None)
    x = torch.rand(1, 3, 16, 24)
    squares = (x - y[..., 4:20, 7:31]).square()
    if kind == "mask":
        squares = squares[known[..., 4:20, 7:31].expand_as(squares)]
    assert part.data_term(x).item() == pytest.approx(squares.mean().item(), rel=1e-5)
    assert whole.size == (37, 45)


def test_degradation_without_windows_says_so() -> None:
    with pytest.raises(UsageError, match=r"Operator has no windows: .*; fit the whole picture, or override window\(\)"):
        Operator(Blur(), noisy(), (37, 45)).window(slice(0, 16), slice(0, 16))


def test_target_and_result_may_differ_in_size_and_channels() -> None:
    def gray_half(x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x.mean(1, keepdim=True), 2)

    degradation = Operator(gray_half, gray_half(noisy(36, 44)), (36, 44), channels=3)
    result = fit(degradation, replace(RECIPE, options=replace(OPTIONS, iterations=2, consolidation=0)))
    assert result.image.shape == (36, 44, 3)
