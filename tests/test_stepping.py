"""Steps that the host does not see: the same results for any number of them between two syncs, and no read inside.

What a GPU runs as a graph is run here by the CPU: steps with flags in place of branches, several between two syncs.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dip_fast.device import precision
from dip_fast.errors import DipFastError, UsageError
from dip_fast.fitting import DeepImagePrior, Fit, Objective, deep_image_prior, graphs, prepare
from dip_fast.fitting.adam import Adam
from dip_fast.fitting.degradations import Degradation, Identity, Mask
from dip_fast.fitting.flat import flatten, unflatten
from dip_fast.fitting.results import Result
from dip_fast.fitting.steps import ConsolidationSteps
from dip_fast.fitting.stopping import MovingVariance, Variance
from dip_fast.ops import perturbation
from dip_fast.presets import FitOptions, Recipe
from dip_fast.runs import checkpoints

OPTIONS = FitOptions(iterations=130, consolidation=7, warmup=20)
RECIPE = Recipe("skip", {"down": 4, "up": 4, "skip": 2, "scales": 2, "upsampling": "nearest"}, 2, "uniform", OPTIONS)
LENGTHS = [1, 7, 50]  # of the steps between two syncs


def target(seed: int = 0) -> Tensor:
    noise = torch.rand(1, 3, 17, 13, generator=torch.Generator().manual_seed(seed))
    return 0.2 * noise + torch.linspace(0.2, 0.6, 13)


class Tripped(DeepImagePrior):
    """Multiplies the losses of some steps, the first time that they are made, without a read on the host."""

    def arm(self, faults: dict[int, float]) -> None:
        self.at = torch.tensor(list(faults), dtype=torch.int64)
        self.factors = torch.tensor(list(faults.values()))
        self.armed = torch.ones(len(faults), dtype=torch.bool)

    def loss(self, x: Tensor, z: Tensor, step: Tensor) -> Tensor:
        trips = self.armed & (self.at == step)
        self.armed &= ~trips
        return super().loss(x, z, step) * torch.where(trips, self.factors, 1.0).prod()


def tripped(faults: dict[int, float], **options: Any) -> Fit:
    prior = deep_image_prior(Identity(target()), RECIPE, seed=3)
    objective = Tripped(prior.degradation, prior.z, perturbation=prior.perturbation, seed=prior.seed)
    objective.arm(faults)
    return make(target_=objective, **options)


def make(
    recipe: Recipe = RECIPE,
    target_: Degradation | Objective | None = None,
    engine: str = "auto",
    between: int | None = None,
) -> Fit:
    """Prepare a fit that makes so many steps between two syncs, as a GPU does."""
    return prepare(
        target_ or Identity(target()),
        recipe,
        seed=3,
        engine=engine,
        reference=target(1),
        steps_between_syncs=between,
    )


@pytest.fixture(autouse=True)
def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the step's number is a tensor or not: kernels round it as they like."""
    monkeypatch.setattr(perturbation, "perturb", perturbation.perturb_reference)


def quiet_at_step_83(monkeypatch: pytest.MonkeyPatch) -> None:
    """And quieter at the step after the last one, at which the fit is held."""
    original = MovingVariance.update

    def update(
        self: MovingVariance, iterate: Tensor, step: Tensor, weights: Any, known: Variance, takes: Tensor
    ) -> Any:
        after = original(self, iterate, step, weights, known, takes)
        value = torch.where(step == 104, 0.0, (step - 83).abs() + 1)
        better = value < known.best
        best, best_step = torch.where(better, value, known.best), torch.where(better, step, known.best_step)
        return Variance(after.variance, value, best, best_step)

    monkeypatch.setattr(MovingVariance, "update", update)


def whenever(fit: Fit) -> None:
    """Callback that wants to look at no step in particular."""


whenever.every = 0  # type: ignore[attr-defined]


def same(mine: Result, theirs: Result) -> None:
    """Compare all bits."""
    np.testing.assert_array_equal(mine.image, theirs.image)
    for name, values in theirs.history.items():
        np.testing.assert_array_equal(mine.history[name], values, err_msg=name)
    for a, b in zip(mine.network.parameters(), theirs.network.parameters(), strict=True):
        assert torch.equal(a, b)
    for name in ("steps", "best_step", "stop_reason", "events"):
        assert getattr(mine, name) == getattr(theirs, name), name


def finished(fit: Fit) -> Result:
    fit.run([whenever])
    return fit.result()


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
    (tmp_path / "checkpoint").write_bytes(checkpoints.dump(first))
    second = make(between=50 if length == 1 else 1)
    checkpoints.load(tmp_path / "checkpoint", second)
    same(finished(second), expected)


def test_held_steps_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a fit that has stopped: weights, moments, averages, numbers, iterate."""
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
            seen[name].append(fit.steps + fit.consolidation_steps)

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
    fit._count_time(0.1, 2)
    assert fit._pace == 5
    assert fit._steps_until_sync([whenever], 0, 130) == 5
    assert fit._steps_until_sync([whenever], 48, 130) == 2
    assert fit._steps_until_sync([whenever], 129, 130) == 1
    assert fit._steps_until_sync([whenever, lambda fit: None], 0, 130) == 1


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
    for steps in (fit._steps, ConsolidationSteps(fit.problem, fit._steps.averages())):
        assert {tensor.device.type for tensor in (*steps.changed(), steps.schedule)} == {"meta"}
        steps.step()
        with pytest.raises(RuntimeError, match="meta"):
            steps.row.item()


# --- graphs -------------------------------------------------------------------------------------------------------


def pretend(monkeypatch: pytest.MonkeyPatch, capture: Callable[[Any], Any]) -> list[str]:
    """Let steps be captured, on the CPU; give the list of what was done."""
    done: list[str] = []
    original = graphs.repeatable

    def warm_up(step: Callable[[], None], device: torch.device) -> None:
        done.append("warm-up")
        for _ in range(graphs.WARMUP):
            step()

    def captured(step: Callable[[], None]) -> Callable[[], None]:
        done.append("capture")
        return capture(step)

    monkeypatch.setattr(graphs, "_warm_up", warm_up)
    monkeypatch.setattr(graphs, "_capture", captured)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: done.append("stream"))
    monkeypatch.setattr(graphs, "repeatable", lambda step, state, device: original(step, state, torch.device("cuda")))
    return done


def test_capture_follows_a_warm_up_on_another_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    state = torch.zeros(3)

    def step() -> None:
        done.append("step")
        state.add_(1)

    @contextlib.contextmanager
    def on(place: Any) -> Any:
        done.append(f"on {place.name}")
        yield
        done.append(f"off {place.name}")

    def stream(name: str) -> Any:
        return SimpleNamespace(name=name, wait_stream=lambda other: done.append(f"{name} waits for {other.name}"))

    main, gpu = stream("main"), torch.device("cuda")
    graph = SimpleNamespace(name="graph", replay=lambda: done.append("replay"))
    for name, value in {
        "current_stream": lambda device: main,
        "Stream": lambda device: stream("side"),
        "stream": on,
        "CUDAGraph": lambda: graph,
        "graph": on,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: contextlib.nullcontext())
    repeat = graphs.repeatable(step, [state], gpu)
    warm_up = ["side waits for main", "on side", *["step"] * graphs.WARMUP, "off side", "main waits for side"]
    assert done == [*warm_up, "on graph", "step", "off graph"]
    assert (state == 1).all()  # by the capture, which does nothing on a GPU
    repeat()
    assert done[-1] == "replay"


def test_warm_up_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = finished(make())
    done = pretend(monkeypatch, lambda step: step)
    fit = make(between=7)
    same(finished(fit), expected)
    assert done == ["warm-up", "capture"] * 2  # the fit, and its consolidation
    assert fit._steps._make_one is None  # the memory of its graph was there for the other one's


class Recorded(TorchDispatchMode):
    """A graph: the operators of a step with their tensors and what else the host gave them, to be done once more."""

    def __init__(self, steps: Any) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        before = [tensor.clone() for tensor in steps.changed()]
        with self:
            steps.step()
        with torch.no_grad():  # a capture computes nothing
            for tensor, value in zip(steps.changed(), before, strict=True):
                tensor.copy_(value)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, made))
        return made

    @torch.no_grad()
    def replay(self) -> None:
        """Give each result its place of the first time."""
        for func, args, kwargs, made in self.calls:
            for new, old in zip(tree_leaves(func(*args, **kwargs)), tree_leaves(made), strict=True):
                if isinstance(new, Tensor) and new.data_ptr() != old.data_ptr():
                    old.copy_(new)


@pytest.mark.parametrize("engine", ["fused", "plain"])
@pytest.mark.parametrize("faults", [{}, {61: 100.0, 73: math.inf}])
def test_recorded_step_is_every_step(engine: str, faults: dict[int, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the host has a say in would be that of the first step for ever."""

    expected = finished(tripped(faults, engine=engine))
    pretend(monkeypatch, lambda step: Recorded(step.__self__).replay)
    same(finished(tripped(faults, engine=engine, between=7)), expected)


def test_fit_without_a_graph_says_why(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(step: Callable[[], None]) -> Callable[[], None]:
        step()  # a capture that failed may leave anything
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    expected = finished(make())
    done = pretend(monkeypatch, refuse)
    same(finished(make(between=7)), expected)
    assert done == ["warm-up", "capture", "stream"] * 2
    (line, _) = caplog.messages
    assert line.endswith("one CUDA graph (operation not permitted when stream is capturing); each is made from Python")


def test_graph_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    done = pretend(monkeypatch, lambda step: step)
    monkeypatch.setenv("DIP_FAST_GRAPH", "never")
    make().step()
    assert not done
    monkeypatch.setenv("DIP_FAST_GRAPH", "always")
    with pytest.raises(UsageError, match="DIP_FAST_GRAPH must be auto or never, got 'always'"):
        make().step()


def test_out_of_memory_names_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = make()

    def exhausted() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate ...\nlines")

    monkeypatch.setattr(fit._steps, "step", exhausted)
    with pytest.raises(UsageError, match=r"a 13x17 picture needs more memory .*; 9x12 would need half") as caught:
        fit.run()
    assert "\n" not in str(caught.value)


# --- the parts ----------------------------------------------------------------------------------------------------


def test_tensors_in_one_piece_of_memory() -> None:
    like = [torch.rand(3, 5), torch.rand(()), torch.rand(64), torch.rand(1, 2, 9)]
    memory, tensors = flatten(like)
    for i, (tensor, one) in enumerate(zip(tensors, like, strict=True)):
        assert tensor.shape == one.shape
        assert tensor.data_ptr() % 64 == memory.data_ptr() % 64
        tensor.fill_(i + 1)
    for i, tensor in enumerate(unflatten(memory, like)):
        assert (tensor == i + 1).all()
    assert memory.sum() == 15 + 2 + 3 * 64 + 4 * 18


def test_adam_is_that_of_pytorch() -> None:
    generator = torch.Generator().manual_seed(1)
    start = [torch.rand(5, 3, generator=generator), torch.rand(70, generator=generator)]
    mine, theirs = [value.clone() for value in start], [value.clone().requires_grad_() for value in start]
    ours, reference = Adam(mine), torch.optim.Adam(theirs, fused=True)
    for step in range(1, 8):
        gradients = [torch.randn(value.shape, generator=generator) for value in start]
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient.clone()
        reference.param_groups[0]["lr"] = 0.01 / step
        reference.step()
        number, rate = torch.tensor(float(step)), torch.tensor(0.01 / step, dtype=torch.float64)
        before = [value.clone() for value in (*mine, *ours.moments)]
        ours.update([gradient * math.nan for gradient in gradients], number, rate, torch.tensor(1.0))
        assert all(torch.equal(a, b) for a, b in zip((*mine, *ours.moments), before, strict=True))
        ours.update(gradients, number, rate, torch.tensor(0.0))
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


# --- precision ----------------------------------------------------------------------------------------------------


def flags() -> list[Any]:
    return [
        torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        torch.backends.cudnn.rnn.fp32_precision,  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.fp32_precision,
    ]


@pytest.mark.parametrize(("name", "conv"), [("fp32", ("none", "ieee")), ("tf32", ("tf32",)), ("bf16", ("tf32",))])
@pytest.mark.parametrize("said", ["nothing", "the old way", "the new way"])
def test_products_are_as_they_were_afterwards(name: str, conv: tuple[str, ...], said: str) -> None:
    gpu = torch.device("cuda")
    before = flags()
    try:
        if said == "the old way":
            torch.backends.cudnn.allow_tf32 = False
        elif said == "the new way":
            torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
        inside = flags()
        with contextlib.suppress(ZeroDivisionError), precision.products(name, gpu):
            assert flags()[0] in conv
            assert (flags()[2] == "tf32") == (name != "fp32")
            raise ZeroDivisionError
        after = flags()
        assert [value.replace("ieee", "none") for value in after] == [v.replace("ieee", "none") for v in inside]
        with precision.products(name, torch.device("cpu")):
            assert flags() == after
    finally:
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.conv.fp32_precision = before[0]  # type: ignore[attr-defined]
        torch.backends.cudnn.rnn.fp32_precision = before[1]  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.fp32_precision = before[2]


def test_precision_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(ValueError, match="precision must be one of fp32, tf32, bf16, got 'fp16'"):
        make_with("fp16")
    with pytest.raises(UsageError, match="precision='bf16' needs a GPU, and this is cpu"):
        make_with("bf16")
    make_with("fp32")


def make_with(name: str) -> Fit:
    return prepare(Identity(target()), RECIPE, precision=name)


@pytest.mark.parametrize("network", ["skip", "hourglass", "decoder"])
def test_fit_in_bfloat16_compares_in_float32(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, whose plain layers can do the same."""
    monkeypatch.setattr("dip_fast.fitting.start.require", lambda name, device: None)
    recipe = replace(
        RECIPE,
        network=network,
        network_options=RECIPE.network_options if network == "skip" else {},
        in_channels=3,
        options=replace(OPTIONS, iterations=10, perturbation=0.03),
    )
    losses = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        read: list[torch.dtype] = []
        degradation = Seen(target())
        fit = prepare(degradation, recipe, engine="plain", precision=name)
        fit.network.register_forward_pre_hook(lambda module, inputs, read=read: read.append(inputs[0].dtype))
        fit.run()
        losses[name] = fit.rows[0][1]
        assert read == [dtype] * 11  # with a step of the consolidation
        assert isinstance(fit.objective, DeepImagePrior)
        assert isinstance(fit.objective.degradation, Seen)
        assert fit.objective.degradation.dtypes == {torch.float32}
        coarse = (fit.iterate.bfloat16() == fit.iterate).double().mean()
        assert coarse < 0.1 or network == "decoder"  # whose last layer is a convolution
        read.clear()
        assert fit.draw().dtype == torch.float32
        assert read == [torch.float32]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03)
    assert losses["bf16"] != losses["fp32"]


class Seen(Identity):
    """Remembers in what the images come that it compares."""

    def __init__(self, y: Tensor) -> None:
        super().__init__(y)
        self.dtypes: set[torch.dtype] = set()

    def data_term(self, x: Tensor) -> Tensor:
        self.dtypes.add(x.dtype)
        return super().data_term(x)
