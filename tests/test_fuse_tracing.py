"""Code that a graph would not repeat, as it does more than compute, runs as before fusion."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from fuse_models import SuperResolutionTail, VaeUpsample, check, conv, picture
from torch import Tensor, nn

import dip_fast

pytestmark = pytest.mark.usefixtures("fixed_seed")


class Awkward(nn.Module):
    """One interpolation and one convolution, around something that torch.fx would get wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()
        self.seen = 0
        self.kept: list[Tensor] = []
        self.register_buffer("counter", torch.zeros(()))

    def pair(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2))


class BranchesOnValues(Awkward):
    def forward(self, x: Tensor) -> Tensor:
        return self.pair(x + 1 if x.sum() > 0 else x)


class Counts(Awkward):
    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.pair(x)


class Keeps(Awkward):
    def forward(self, x: Tensor) -> Tensor:
        self.kept.append(x)
        return self.pair(x)


class AddsNoise(Awkward):
    def forward(self, x: Tensor) -> Tensor:
        return self.pair(x + torch.randn(1, 4, 1, 1))


class DropsAtRandom(Awkward):
    def forward(self, x: Tensor) -> Tensor:
        return x if random.random() < 0.0 else self.pair(x)


class WithoutGradients(Awkward):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.pair(x)
        return self.conv(x)


class Listed(Awkward):
    def forward(self, x: list[Tensor]) -> Tensor:
        return self.pair(torch.cat(x))


@pytest.mark.parametrize("kind", [BranchesOnValues, Counts, Keeps, AddsNoise, DropsAtRandom, WithoutGradients])
def test_code_that_does_more_than_compute_runs_as_before(
    kind: type[Awkward], fused_calls: list[tuple[str, str]]
) -> None:
    model = kind()
    fused = dip_fast.fuse(model)
    assert "its code cannot be traced: its code" in str(dip_fast.fusion_report(model))
    assert model.seen == fused.seen == len(model.kept) == len(fused.kept) == 0
    x = picture()
    torch.manual_seed(1)
    wanted = model(x)
    torch.manual_seed(1)
    torch.testing.assert_close(fused(x), wanted, atol=0, rtol=0)
    assert (fused.seen, len(fused.kept), len(fused_calls)) == (model.seen, len(model.kept), 0)


def test_type_of_an_argument_is_that_of_the_call(fused_calls: list[tuple[str, str]]) -> None:
    """torch.fx traced the way of no tensor: a fused FlexibleUNet of MONAI left out its skip connections."""

    class Checks(Awkward):
        def forward(self, x: Tensor, skip: Tensor | None = None, size: int | tuple[int, int] = 0) -> Tensor:
            if torch.jit.isinstance(skip, Tensor):
                x = x + skip
            if isinstance(size, tuple):
                size = size[0]
            return self.pair(x) * size

    model = Checks()
    fused = dip_fast.fuse(model)
    x = picture()
    for args in [(x,), (x, x), (x, None, 2), (x, x, (2, 3))]:
        torch.testing.assert_close(fused(*args), model(*args), atol=1e-5, rtol=1e-5)
    assert len(fused_calls) == 4


def test_type_of_what_is_computed_is_not_guessed(fused_calls: list[tuple[str, str]]) -> None:
    class Checks(Awkward):
        def forward(self, x: Tensor) -> Tensor:
            x = x + 1
            return self.pair(x) if isinstance(x, Tensor) else x

    model = Checks()
    check(model, picture(), fused_calls, 0)
    assert "its code branches on the type of what it computes" in str(dip_fast.fusion_report(model))


def test_torchs_generator_is_left_to_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """To put its state back after a trace would undo what they have drawn meanwhile."""
    monkeypatch.setattr(torch.random, "set_rng_state", lambda state: pytest.fail("the state was set"))
    monkeypatch.setattr(torch, "set_rng_state", lambda state: pytest.fail("the state was set"))
    model, before = nn.Sequential(AddsNoise(), VaeUpsample()), torch.get_rng_state()
    dip_fast.fuse(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_untraceable_module_around_a_traceable_one(fused_calls: list[tuple[str, str]]) -> None:
    class Around(BranchesOnValues):
        def __init__(self) -> None:
            super().__init__()
            self.inner = VaeUpsample()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(super().forward(x))

    check(Around(), picture(), fused_calls, 1)


def test_list_of_tensors_runs_plain(fused_calls: list[tuple[str, str]]) -> None:
    model = Listed()
    x = [picture(), picture()]
    torch.testing.assert_close(dip_fast.fuse(model)(x), model(x))
    assert fused_calls == []


def test_updates_of_a_buffer_happen_at_each_run(fused_calls: list[tuple[str, str]]) -> None:
    class CountsInBuffer(Awkward):
        def forward(self, x: Tensor) -> Tensor:
            self.counter.add_(1)
            return self.pair(x) * self.counter

    fused = dip_fast.fuse(CountsInBuffer())
    assert fused.counter == 0
    fused(picture())
    fused(picture())
    assert (fused.counter.item(), len(fused_calls)) == (2, 2)


def test_in_place_changes_are_kept_in_order(fused_calls: list[tuple[str, str]]) -> None:
    class ChangesInput(Awkward):
        def forward(self, x: Tensor) -> Tensor:
            x = x * 1
            up = F.interpolate(x, scale_factor=2)
            x.add_(1)
            return self.conv(up) + F.interpolate(x, scale_factor=2)

    class ChangesUpsampled(Awkward):
        def forward(self, x: Tensor) -> Tensor:
            up = F.interpolate(x, scale_factor=2)
            other = F.relu(up, inplace=True)
            return self.conv(up) + other

    for kind in (ChangesInput, ChangesUpsampled):
        model = kind()
        check(model, picture(), fused_calls, 0)
        assert "may change in place what the convolution reads" in str(dip_fast.fusion_report(model))


def test_code_that_is_no_python_is_named(fused_calls: list[tuple[str, str]]) -> None:
    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        scripted = torch.jit.script(nn.Sequential(nn.Upsample(scale_factor=2), conv()))
    model = nn.Sequential(scripted, conv())
    torch.testing.assert_close(dip_fast.fuse(model)(picture()).shape, (2, 4, 10, 12))
    assert "0.0: it is TorchScript, which cannot be traced" in str(dip_fast.fusion_report(model))
    replaced = VaeUpsample()
    replaced.forward = lambda x: x  # type: ignore[method-assign]
    assert "the model itself: its forward was replaced" in str(dip_fast.fusion_report(replaced))


def test_model_that_torch_fx_has_traced_already(fused_calls: list[tuple[str, str]]) -> None:
    check(torch.fx.symbolic_trace(SuperResolutionTail()), picture(), fused_calls, 2)
    traced = torch.fx.symbolic_trace(dip_fast.fuse(SuperResolutionTail()))
    check(traced, picture(), fused_calls, 2)


def test_autocast(fused_calls: list[tuple[str, str]]) -> None:
    model = nn.Sequential(nn.Upsample(scale_factor=2), conv())
    fused = dip_fast.fuse(model)
    x = picture()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, wanted = fused(x), model(x)
    assert got.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(got, wanted, atol=3e-2, rtol=3e-2)
