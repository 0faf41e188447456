"""Fits on a GPU: as one graph or step by step, fused or plain, in each precision; and what is said when memory ends."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dip_fast.errors import UsageError
from dip_fast.fitting import Fit, fit, graphs, prepare
from dip_fast.fitting.degradations import Identity, Mask
from dip_fast.presets import PRESETS, FitOptions, Recipe

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]

SMALL = Recipe(
    "skip",
    {"down": 16, "up": 16, "scales": 3, "upsampling": "bilinear"},
    4,
    "uniform",
    FitOptions(iterations=120, consolidation=12),
)
PRECISIONS = ("fp32", "tf32", "bf16")


def clean(side=64):
    """Gray-blue waves and edges, ``(1, 3, side, side)``."""
    rows, columns = np.mgrid[:side, :side] / side
    planes = [0.5 + 0.3 * np.sin((7 + i) * rows) * np.cos(5 * columns - i) for i in range(3)]
    planes = np.stack(planes) + 0.2 * (np.hypot(rows - 0.4, columns - 0.6) < 0.25)
    return torch.tensor(planes[None], dtype=torch.float32).clamp(0, 1)


def noisy(seed=0, side=64):
    picture = clean(side)
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(seed))
    return (picture + 25 / 255 * noise).clamp(0, 1)


def same(one, other):
    for column in ("loss", "variance"):
        np.testing.assert_array_equal(one.history[column], other.history[column])
    np.testing.assert_array_equal(one.image, other.image)


def assert_start_alike(one, other):
    """Adam's first steps are the gradients' signs, so that a weight whose gradient is rounding may go either way."""
    np.testing.assert_allclose(one.history["loss"][0], other.history["loss"][0], rtol=1e-5)
    np.testing.assert_allclose(one.history["loss"], other.history["loss"], rtol=5e-3)


@pytest.fixture
def captures(monkeypatch):
    """The graphs that were captured."""
    real, made = graphs._capture, []

    def capture(step):
        made.append(real(step))
        return made[-1]

    monkeypatch.setattr(graphs, "_capture", capture)
    return made


@pytest.mark.parametrize("engine", ["fused", "plain"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_graph_gives_the_bits_of_single_steps(monkeypatch, captures, engine, precision):
    options = {"device": "cuda", "engine": engine, "precision": precision}
    captured = fit(Identity(noisy()), SMALL, **options)
    assert len(captures) == 2  # the steps, and those of the consolidation
    monkeypatch.setenv("DIP_FAST_GRAPH", "never")
    single = fit(Identity(noisy()), SMALL, **options)
    assert len(captures) == 2
    if engine == "fused":
        same(captured, single)
    else:  # cuDNN promises no order of its sums
        np.testing.assert_allclose(captured.history["loss"][:3], single.history["loss"][:3], rtol=0.01)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_same_seed_gives_the_same_bits(precision):
    known = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(1)) > 0.3
    for degradation in (Identity(noisy()), Mask(noisy(), known)):
        one, other = (fit(degradation, SMALL, device="cuda", engine="fused", precision=precision) for _ in range(2))
        same(one, other)


def test_callbacks_of_every_step_change_no_bit():
    """With one the host reads the device after each step, without after a quarter of a second."""
    seen = []
    unseen = fit(Identity(noisy()), SMALL, device="cuda", engine="fused")
    watched = fit(Identity(noisy()), SMALL, device="cuda", engine="fused", callbacks=[lambda f: seen.append(f.steps)])
    assert seen[: watched.steps] == list(range(1, watched.steps + 1))
    same(unseen, watched)


def test_state_goes_on_bit_for_bit():
    def prepared() -> Fit:
        return prepare(Identity(noisy()), SMALL, device="cuda", engine="fused")

    whole, first, second = prepared(), prepared(), prepared()
    for _ in range(70):
        whole.step()
    for _ in range(30):
        first.step()
    second.step()  # its graph is there before the state
    second.load_state(first.state())
    for _ in range(40):
        second.step()
    np.testing.assert_array_equal(second.history()["loss"], whole.history()["loss"])
    for name, tensor in whole.state().tensors.items():
        if name != "history":
            assert torch.equal(second.state().tensors[name], tensor), name


@pytest.mark.parametrize("upsampling", ["nearest", "bilinear"])
def test_fused_and_plain_fits_start_alike(upsampling):
    recipe = replace(SMALL, network_options={**SMALL.network_options, "upsampling": upsampling})
    recipe = replace(recipe, options=replace(SMALL.options, iterations=3))
    fused, plain = (
        fit(Identity(noisy()), recipe, device="cuda", engine=engine, precision="fp32") for engine in ("fused", "plain")
    )
    assert_start_alike(fused, plain)


def test_fit_on_a_gpu_starts_as_on_a_cpu():
    recipe = replace(SMALL, options=replace(SMALL.options, iterations=3))
    gpu = fit(Identity(noisy()), recipe, device="cuda", engine="fused", precision="fp32")
    cpu = fit(Identity(noisy()), recipe, device="cpu", engine="fused")
    assert_start_alike(gpu, cpu)


def test_precisions_restore_alike():
    """Single fits part, as any two ways of rounding do: by 0.05 dB here (on a CPU), so 0.02 for the mean of eight."""
    recipe = PRESETS["quick"].recipe
    recipe = replace(recipe, options=replace(recipe.options, iterations=300, stop="never"))
    target = clean(128)[0].permute(1, 2, 0).numpy()

    def psnr(seed: int, precision: str) -> float:
        image = fit(
            Identity(noisy(seed, 128)), recipe, seed=seed, device="cuda", engine="fused", precision=precision
        ).image
        return -10 * math.log10(((image - target) ** 2).mean())

    means = {precision: np.mean([psnr(seed, precision) for seed in range(8)]) for precision in PRECISIONS}
    assert means["tf32"] == pytest.approx(means["fp32"], abs=0.1)
    assert means["bf16"] == pytest.approx(means["fp32"], abs=0.1)


@pytest.mark.parametrize("engine", ["fused", "plain"])
def test_memory_that_ends_is_said_with_a_size_that_needs_less(engine):
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**28) / total)
    try:
        with pytest.raises(UsageError, match=r"a 1024x512 picture needs more memory .*; \d+x\d+ would need"):
            fit(Identity(torch.rand(1, 3, 512, 1024)), PRESETS["paper"].recipe, device="cuda", engine=engine)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    fit(Identity(noisy()), replace(SMALL, options=replace(SMALL.options, iterations=2)), device="cuda", engine=engine)


def test_benchmark_of_a_gpu(dip):
    engines = ("fused", "plain", "plain-channels-last")
    common = ("--device", "cuda", "--preset", "quick", "--sizes", "64", "--upsampling", "nearest", "--steps", "1")
    outcome = dip("bench", *common, "--engines", *engines, "--json")
    assert (outcome.code, outcome.err.count("left out")) == (0, 0)
    records = json.loads(outcome.out)
    assert [record["engine"] for record in records] == list(engines)
    for record in records:
        assert (record["device"], record["precision"], record["steps"]) == ("cuda", "tf32", 50)
        assert record["reserved_memory_bytes"] >= record["peak_memory_bytes"] > 1e6
    outcome = dip("bench", *common, "--profile", "--precision", "bf16", "--json")
    assert outcome.code == 0
    found = json.loads(outcome.out)
    (profile,) = found["profiles"]
    assert found["gpu"] == torch.cuda.get_device_name()
    assert {operator["name"].split()[0] for operator in profile["operators"]} >= {"norm_conv2d", "norm_upsample_conv2d"}
    assert profile["ceilings"]["flop_per_second"].keys() == set(PRECISIONS)
