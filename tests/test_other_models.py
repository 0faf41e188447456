"""Models of other libraries, fused: they equal the plain ones, and the report says what ran.

The libraries are not among those of the tests: `make test-models` installs requirements/models.txt and runs this.
"""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dip_fast

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import other_models

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def made(name: str) -> tuple[other_models.OtherModel, nn.Module, tuple[Any, ...]]:
    other = other_models.MODELS[name]
    other_models.declare_torchvision_operators()
    with warnings.catch_warnings(action="ignore"):
        pytest.importorskip(other.library.partition(".")[0])
        return other, other.make(), other.inputs()


def run(model: nn.Module, inputs: tuple[Any, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output and the gradient of the parameters; a model may draw random numbers."""
    torch.manual_seed(2)
    floats = (
        each.to(dtype) if isinstance(each, torch.Tensor) and each.is_floating_point() else each for each in inputs
    )
    model = model.to(dtype)
    output = other_models.first_tensor(model(*floats))
    parameters = [each for each in model.parameters() if each.requires_grad]
    gradients = torch.autograd.grad(output.square().mean(), parameters, allow_unused=True)
    return output.detach(), torch.cat([each.flatten() for each in gradients if each is not None])


@pytest.mark.parametrize("name", other_models.MODELS)
def test_fused_model_of_another_library(name: str, fused_calls: list[tuple[str, str]]) -> None:
    other, model, inputs = made(name)
    fused = dip_fast.fuse(copy.deepcopy(model))
    # In float32 an activation that is a rounding error away from zero gives other gradients.
    dtypes = [(torch.float32, 1e-5), (torch.float64, 1e-12)]
    for dtype, tolerance in dtypes[: 1 + other.in_float64]:
        expected, expected_gradient = run(model, inputs, dtype)
        assert not fused_calls
        got, gradient = run(fused, inputs, dtype)
        assert len(fused_calls) == other.pairs
        torch.testing.assert_close(got, expected, atol=tolerance * expected.abs().max().item(), rtol=tolerance)
        fused_calls.clear()
    gradient_tolerance = 1e-12 if other.in_float64 else 1e-4
    torch.testing.assert_close(
        gradient, expected_gradient, atol=gradient_tolerance * expected_gradient.abs().max().item(), rtol=1e-4
    )
    assert len(dip_fast.fusion_report(fused.float(), *inputs).replaced) == other.pairs
