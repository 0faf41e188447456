"""Muon: orthogonal directions, kept norms, Adam for the rest, steps that are skipped."""

import math

import pytest
import torch
from torch import Tensor

from dip_fast.fitting.adam import Adam
from dip_fast.fitting.muon import MOMENTUM, Muon
from dip_fast.fitting.steps import make_optimizer
from dip_fast.networks import build
from dip_fast.ops import extension
from dip_fast.presets import FitOptions

ONE, RATE = torch.tensor(1.0), torch.tensor(0.01, dtype=torch.float64)


def tensors(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(8, 6, 3, 3), (8,), (16, 6, 1, 1), (3, 8, 1, 1)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_matrices_move_along_orthogonal_directions() -> None:
    parameters, gradients = tensors(0), tensors(1)
    before = [p.clone() for p in parameters]
    Muon(parameters, [0, 2], 3.0).update(gradients, ONE, RATE, None)
    for i in (0, 2):
        rows, columns = before[i].shape[0], before[i][0].numel()
        kept = before[i] * math.sqrt(rows) / before[i].norm()
        direction = (kept - parameters[i]).view(rows, columns) / 0.03 / math.sqrt(max(1, rows / columns))
        values = torch.linalg.svdvals(direction)
        assert values.min() > 0.5
        assert values.max() < 1.4
        # the nearest orthogonal matrix shares the singular vectors
        u, _, v = torch.linalg.svd(gradients[i].view(rows, columns), full_matrices=False)
        cosine = (direction * (u @ v)).sum() / direction.norm() / (u @ v).norm()
        assert cosine > 0.98


def test_others_move_as_adam_moves_them() -> None:
    parameters, alone = tensors(0), tensors(0)
    Muon(parameters, [0, 2], 3.0).update(tensors(1), ONE, RATE, None)
    Adam(alone).update(tensors(1), ONE, RATE, None)
    for i in (1, 3):
        assert torch.equal(parameters[i], alone[i])


def test_momentum_is_nesterovs() -> None:
    parameters, first, second = tensors(0), tensors(1), tensors(2)
    muon = Muon(parameters, [0, 2], 3.0)
    muon.update(first, ONE, RATE, None)
    muon.update(second, ONE * 2, RATE, None)
    torch.testing.assert_close(muon._momenta[0], second[0] + MOMENTUM * first[0])


@pytest.mark.parametrize("value", [1.0, math.nan, math.inf])
def test_skipped_step_changes_nothing(value: float) -> None:
    parameters = tensors(0)
    muon = Muon(parameters, [0, 2], 3.0)
    muon.update(tensors(1), ONE, RATE, torch.tensor(0.0))
    before = [t.clone() for t in (*parameters, *muon.moments)]
    muon.update([g * value for g in tensors(2)], ONE, RATE, torch.tensor(1.0))
    for tensor, old in zip((*parameters, *muon.moments), before, strict=True):
        assert torch.equal(tensor, old)


def test_matrices_are_the_convolutions_that_a_norm_follows() -> None:
    network = build("skip", 6, 3, down=8, up=8, skip=4, scales=2)
    parameters = dict(network.named_parameters())
    muon = make_optimizer(network, parameters, FitOptions(1, optimizer="muon"))
    assert isinstance(muon, Muon)
    names = {name for i, name in enumerate(parameters) if i in muon._matrices}
    assert names == {name for name in parameters if name.endswith("conv.weight")}
    assert "head.weight" in parameters.keys() - names
    assert type(make_optimizer(network, parameters, FitOptions(1))) is Adam


def test_the_operator_takes_the_same_steps() -> None:
    plain, fused = tensors(0), tensors(0)
    one, other = (Muon(parameters, [0, 2], 3.0, fused=fuses) for parameters, fuses in ((plain, False), (fused, True)))
    assert other._fused
    for seed in (1, 2, 3):
        for muon in (one, other):
            muon.update(tensors(seed), ONE * seed, RATE, torch.tensor(0.0))
    for a, b in zip((*plain, *one.moments), (*fused, *other.moments), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    before = [t.clone() for t in (*fused, *other.moments)]
    other.update([g * math.nan for g in tensors(4)], ONE, RATE, torch.tensor(1.0))
    assert all(torch.equal(a, b) for a, b in zip((*fused, *other.moments), before, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"gradients": []}, ValueError, "momenta and gradients must be as many as weights, 1, got 1 and 0"),
        ({"turns": 0}, ValueError, "turns at least 1, got 3 and 0"),
        ({"coefficients": [1.0]}, ValueError, "coefficients must be three, .* got 1 and 2"),
        ({"gradients": [torch.zeros(4, 3, dtype=torch.float64)]}, TypeError, "must be of dtype float32, got Double"),
        ({"momenta": [torch.zeros(4, 2)]}, ValueError, r"of the shape of their weight, \[4, 3\], got \[4, 2\]"),
        ({"weights": [torch.zeros(3, 4).T]}, ValueError, "weights and momenta must be contiguous"),
    ],
)
def test_operator_refuses_what_is_no_step(change: dict, error: type[Exception], message: str) -> None:
    extension.load()
    weight = torch.ones(4, 3)
    arguments = {
        "weights": [weight],
        "momenta": [torch.zeros(4, 3)],
        "gradients": [torch.ones(4, 3)],
        "rate": torch.tensor(0.1),
        "skipped": None,
        "factor": 1.0,
        "momentum": 0.9,
        "coefficients": [3.4, -4.8, 2.0],
        "turns": 2,
    }
    with pytest.raises(error, match=message):
        torch.ops.dip_fast.muon_(*(arguments | change).values())
    assert torch.equal(weight, torch.ones(4, 3))  # nothing was done
