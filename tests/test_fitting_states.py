"""The loop and its parts: input, degradations, averages, stopping, states, trouble."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fit_cases import OPTIONS, TINY, quiet_at_step_8, target, tiny
from torch import Tensor

from dip_fast.errors import DipFastError
from dip_fast.fitting import DeepImagePrior, Fit, fit, prepare
from dip_fast.fitting.degradations import Degradation, Identity, Mask, Operator
from dip_fast.fitting.loop import KEEP_EVERY
from dip_fast.fitting.stopping import MovingVariance
from dip_fast.networks import Network, network_input

# --- the loop's own parts -----------------------------------------------------------------------------------------


class Scaled(Network):
    """z times a weight: each value is a function of one value, so that all sums are the loop's own."""

    multiple = 2

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.nn.Parameter(torch.rand(1, channels, height, width, generator=generator))

    def forward(self, z: Tensor) -> Tensor:
        return z * self.weight


def scaled(degradation: Degradation, **options: object) -> Fit:
    height, width = degradation.size
    z = network_input.draw("uniform", 3, (height + height % 2, width + width % 2), seed=0)
    network = Scaled(*z.codes.shape[1:])
    objective = DeepImagePrior(degradation, z, perturbation=1 / 30, seed=9)
    return Fit(network, objective, replace(OPTIONS, **options), reference=target(height, width))  # type: ignore[arg-type]


@pytest.mark.parametrize(("height", "width"), [(512, 512), (333, 451)])
@pytest.mark.parametrize("kind", ["identity", "mask", "operator"])
def test_no_bit_of_the_loop_depends_on_the_number_of_threads(kind: str, height: int, width: int) -> None:
    y = target(height, width)
    degradation = {
        "identity": lambda: Identity(y),
        "mask": lambda: Mask(y, y[:, :1] < 0.7),
        "operator": lambda: Operator(lambda x: x[..., ::2], y[..., ::2], size=(height, width)),
    }[kind]()
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(scaled(degradation, iterations=3, averaging=0.9))
            runs[-1].run()
    finally:
        torch.set_num_threads(before)
    assert np.ptp(runs[0].history()["loss"]) > 0
    for run in runs[1:]:
        for name, values in run.history().items():
            np.testing.assert_array_equal(values, runs[0].history()[name], err_msg=name)
        for name, tensor in run.state().tensors.items():
            np.testing.assert_array_equal(tensor, runs[0].state().tensors[name], err_msg=name)
        assert torch.equal(run.draw(), runs[0].draw())


def test_best_averages_are_kept_in_the_same_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MovingVariance, "update", quiet_at_step_8)
    run = scaled(Identity(target()))
    places = set()
    for step in range(1, 13):
        run.step()
        places.add(run._steps.best.data_ptr())
        if step <= 8:
            kept = run._steps.average.clone()
        assert torch.equal(run._steps.best, kept)
    assert len(places) == 1
    assert places != {run._steps.average.data_ptr()}


def test_fit_that_does_not_stop_by_itself_keeps_no_best_averages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MovingVariance, "update", quiet_at_step_8)
    run = scaled(Identity(target()), stop="never")
    run.run()
    assert run._steps.best.numel() == 0
    assert not any(name.startswith("best") for name in run.state().tensors)
    assert run.result().best_step == 20


# --- states and trouble ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 7, 19])
def test_state_continues_bit_for_bit(at: int) -> None:
    whole = prepare(Identity(target()), TINY, seed=3)
    whole.run()
    expected = whole.result()

    first = prepare(Identity(target()), TINY, seed=3)
    for _ in range(at):
        first.step()
    second = prepare(Identity(target()), TINY, seed=3)
    second.load_state(first.state())
    second.run()
    result = second.result()
    np.testing.assert_array_equal(result.image, expected.image)
    for name in ("loss", "learning_rate", "variance"):
        np.testing.assert_array_equal(result.history[name], expected.history[name])
    for mine, theirs in zip(result.network.parameters(), expected.network.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_state_is_a_copy() -> None:
    run = prepare(Identity(target()), TINY)
    run.step()
    state = run.state()
    before = {name: tensor.clone() for name, tensor in state.tensors.items()}
    run.step()
    for name, tensor in state.tensors.items():
        np.testing.assert_array_equal(tensor.numpy(), before[name].numpy(), err_msg=name)


def test_interrupted_consolidation_is_made_anew() -> None:
    expected = fit(Identity(target()), TINY)
    run = prepare(Identity(target()), TINY)
    run.run([lambda one: one.interrupt() if one.consolidated == 1 else None])
    state, interrupted = run.state(), run.result()
    assert interrupted.stop_reason == "interrupted"
    again = prepare(Identity(target()), TINY)
    again.load_state(state)
    again.run()
    np.testing.assert_array_equal(again.result().image, expected.image)


class Faulty(Identity):
    """Gives a wrong loss at some calls."""

    def __init__(self, y: Tensor, faults: dict[int, float]) -> None:
        super().__init__(y)
        self.faults = faults
        self.calls = 0

    def data_term(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().data_term(x) * self.faults.get(self.calls, 1.0)


@pytest.mark.parametrize(
    ("factor", "fault"), [(math.nan, "the loss became nan"), (100.0, "the loss jumped"), (math.inf, "became inf")]
)
def test_wrong_loss_falls_back_to_the_last_good_state_at_half_the_rate(factor: float, fault: str) -> None:
    recipe = tiny(iterations=KEEP_EVERY + 20, consolidation=0)
    result = fit(Faulty(target(), {KEEP_EVERY + 11: factor}), recipe)
    (event,) = result.events
    assert fault in event["fault"]
    assert (event["step"], event["back_to_step"]) == (KEEP_EVERY + 11, KEEP_EVERY)
    rates = result.history["learning_rate"]
    np.testing.assert_allclose(rates, [0.01] * KEEP_EVERY + [0.005] * 20)
    np.testing.assert_array_equal(result.history["step"], np.arange(1, KEEP_EVERY + 21))
    assert np.isfinite(result.image).all()
    # The history up to the good state is that of a fit without the fault.
    clean = fit(Identity(target()), recipe)
    np.testing.assert_array_equal(result.history["loss"][:KEEP_EVERY], clean.history["loss"][:KEEP_EVERY])


def test_loss_that_stays_wrong_ends_the_fit() -> None:
    with pytest.raises(DipFastError, match="the loss became nan at step 1, as it did 8 times before"):
        fit(Faulty(target(), dict.fromkeys(range(3, 1000), math.nan)), TINY)


def test_infinite_weights_under_a_finite_loss_are_caught() -> None:
    class Overflowing(Identity):
        def data_term(self, x: Tensor) -> Tensor:
            term = super().data_term(x)
            if not getattr(self, "done", False) and len(run.rows) == KEEP_EVERY - 1:
                self.done = True
                return term + 0 * torch.sqrt(x - x.detach()).sum()  # value 0, gradient NaN
            return term

    degradation: Degradation = Overflowing(target())
    run = prepare(degradation, tiny(iterations=KEEP_EVERY + 5, consolidation=0))
    run.run()
    assert [event["fault"] for event in run.events] == ["the weights became infinite"]
    assert np.isfinite(run.result().image).all()
