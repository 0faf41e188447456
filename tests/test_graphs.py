"""Steps that the host does not see: the same results for any number of them between two syncs, and no read inside."""

import contextlib
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from step_cases import (
    finished,
    make,
    same,
    tripped,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dip_fast.errors import UsageError
from dip_fast.fitting import graphs

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
        "get_rng_state": lambda device: "random state",
        "set_rng_state": lambda state, device: done.append(f"{state} put back"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    repeat = graphs.repeatable(step, [state], gpu)
    warm_up = ["side waits for main", "on side", *["step"] * graphs.WARMUP, "off side", "random state put back"]
    warm_up.append("main waits for side")
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
        """Write each result to where it was the first time."""
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
