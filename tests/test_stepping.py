"""Steps that the host does not see: the same results for any number of them between two syncs, and no read inside.

What a GPU runs as a graph is run here by the CPU: steps with flags in place of branches, several between two syncs.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from step_cases import LENGTHS, OPTIONS, RECIPE, finished, make, quiet_at_step_83, same, target, tripped, whenever
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dip_fast.errors import DipFastError
from dip_fast.fitting import DeepImagePrior, Fit
from dip_fast.fitting.degradations import Identity, Mask
from dip_fast.fitting.steps import FurtherSteps
from dip_fast.runs import checkpoints

# --- any number of steps between two syncs ------------------------------------------------------------------------


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("engine", ["fused", "plain"])
def test_fit_to_the_end(length: int, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = finished(make(engine=engine))
    assert expected.stop_reason == "iterations"
    same(finished(make(engine=engine, between=length)), expected)


@pytest.mark.parametrize("length", LENGTHS)
def test_fit_that_stops_by_itself(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet_at_step_83(monkeypatch)
    expected = finished(make())
    assert (expected.steps, expected.best_step, expected.stop_reason) == (103, 83, "variance")  # amid the unseen ones
    same(finished(make(between=length)), expected)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("faults", [{61: math.nan}, {61: 100.0, 73: math.inf}, {1: math.nan, 100: math.nan}])
def test_losses_that_go_wrong(length: int, faults: dict[int, float], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = finished(tripped(faults))
    assert [event["step"] for event in expected.events] == list(faults)
    same(finished(tripped(faults, between=length)), expected)


def test_loss_that_stays_wrong_ends_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = make(target_=Identity(target() * math.nan), between=7)
    with pytest.raises(DipFastError, match="the loss became nan at step 1, as it did 8 times before"):
        fit.run([whenever])


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("at", [13, 50, 91])
def test_resumed_from_a_checkpoint(length: int, at: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = finished(make())
    first = make(between=length)

    def interrupt(fit: Fit) -> None:
        if fit.steps >= at:
            fit.interrupt()

    interrupt.every = at  # type: ignore[attr-defined]
    first.run([interrupt])
    assert first.steps == at
    (tmp_path / "checkpoint").write_bytes(checkpoints.dump(first, "run"))
    second = make(between=50 if length == 1 else 1)
    checkpoints.load(tmp_path / "checkpoint", second, "run")
    same(finished(second), expected)


def test_held_steps_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit that has stopped keeps its weights, moments, averages, numbers and iterate."""
    quiet_at_step_83(monkeypatch)
    fit, looking = make(between=50), make()
    for one in (fit, looking):
        while not one.stop_reason:
            one.advance(50 if one is fit else 1)
        assert (one.steps, one.stop_reason) == (103, "variance")
    *state, place = fit._steps.changed()
    assert place.item() == 50
    for tensor, value in zip(state, looking._steps.changed(), strict=False):
        np.testing.assert_array_equal(tensor.numpy(), value.numpy())


def test_callbacks_see_the_steps_they_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[int]] = {"each": [], "sevenths": [], "whenever": []}

    def callback(name: str, every: int | None) -> Callable[[Fit], None]:
        def look(fit: Fit) -> None:
            assert len(fit.rows) == fit.steps == fit.rows[-1][0]
            seen[name].append(fit.steps + fit.consolidated)

        if every is not None:
            look.every = every  # type: ignore[attr-defined]
        return look

    make(between=20).run([callback("whenever", 0)])
    assert seen["whenever"] == [20, 40, 50, 70, 90, 100, 120, 130, 137]
    make(between=20).run([callback("sevenths", 7)])
    assert {*range(7, 130, 7)} < {*seen["sevenths"]}
    assert len(seen["sevenths"]) < 25
    make(between=20).run([callback("each", None), whenever])
    assert seen["each"] == [*range(1, 138)]


def test_pace_is_what_fills_the_time() -> None:
    fit = make(between=1)
    fit._fixed_pace = None
    fit.count_time(0.1, 2)
    assert fit._pace == 5
    assert fit.steps_until_sync([whenever], 0, 130) == 5
    assert fit.steps_until_sync([whenever], 48, 130) == 2
    assert fit.steps_until_sync([whenever], 129, 130) == 1
    assert fit.steps_until_sync([whenever, lambda fit: None], 0, 130) == 1


# --- nothing is looked at -----------------------------------------------------------------------------------------


class NoLook(TorchDispatchMode):
    """Refuses what makes a value known to the host, or brings one from there."""

    LOOKS = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[-1]
        assert name not in self.LOOKS, name
        return func(*args, **(kwargs or {}))


def without_a_look_inside(monkeypatch: pytest.MonkeyPatch, steps: Any) -> None:
    original = steps.step

    def step() -> None:
        with NoLook():
            original()

    monkeypatch.setattr(steps, "step", step)


@pytest.mark.parametrize("engine", ["fused", "plain"])
@pytest.mark.parametrize("perturbed", [True, False])
def test_step_looks_at_no_value(engine: str, perturbed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RECIPE if perturbed else replace(RECIPE, options=replace(OPTIONS, perturbation=0.0))
    fit = make(recipe, engine=engine, between=5)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoLook():
        torch.ones(()).item()
    without_a_look_inside(monkeypatch, fit._steps)
    fit.advance(5)
    assert fit.steps == 5


@pytest.mark.parametrize("perturbation", [0.0, 0.03])
@pytest.mark.parametrize(
    ("network", "engine"),
    [("skip", "plain"), ("skip", "fused"), ("hourglass", "plain"), ("decoder", "plain"), ("decoder", "fused")],
)
def test_step_stays_on_its_device(
    network: str, engine: str, perturbation: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the one whose tensors have no values to look at, and do not mix with others."""

    def adam(*tensors: list[Tensor], lr: Tensor, found_inf: Tensor | None, **numbers: object) -> None:
        assert {tensor.device.type for group in tensors for tensor in group} | {lr.device.type} == {"meta"}
        assert lr.dtype == torch.float32
        if found_inf is not None:
            assert (found_inf.device.type, found_inf.dtype) == ("meta", torch.float32)

    monkeypatch.setattr(torch, "_fused_adam_", adam)  # which has no form on the meta device
    options = RECIPE.network_options if network == "skip" else {"depth": 2} if network == "decoder" else {}
    recipe = replace(
        RECIPE,
        network=network,
        network_options=options,
        in_channels=3,
        options=replace(OPTIONS, perturbation=perturbation),
    )
    on_cpu = make(recipe, engine=engine)
    degradation = Mask(target(), target()[:, :1] < 0.5)
    fit = Fit(
        on_cpu.network.to("meta"),
        DeepImagePrior(degradation, on_cpu.z, perturbation=perturbation),
        recipe.options,
        device="meta",
        reference=target(1),
        steps_between_syncs=1,
    )
    for steps in (fit._steps, FurtherSteps(fit.problem, fit._steps.parameters, OPTIONS)):
        assert {tensor.device.type for tensor in (*steps.changed(), steps.schedule)} == {"meta"}
        steps.step()
        with pytest.raises(RuntimeError, match="meta"):
            steps.row.item()
