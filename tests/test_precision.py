"""Steps that the host does not see: the same results for any number of them between two syncs, and no read inside."""

import contextlib
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from step_cases import (
    OPTIONS,
    RECIPE,
    target,
)
from torch import Tensor

from dip_fast.device import precision
from dip_fast.errors import UsageError
from dip_fast.fitting import DeepImagePrior, Fit, prepare
from dip_fast.fitting.adam import Adam
from dip_fast.fitting.degradations import Identity
from dip_fast.fitting.flat import flatten, unflatten
from dip_fast.names import PRECISIONS
from dip_fast.networks import Decoder, Network, Skip
from dip_fast.ops import extension

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
    with pytest.raises(UsageError, match=r"^precision='bf16' is not for mps; leave it out$"):
        precision.require("bf16", torch.device("mps"))
    make_with("fp32")
    make_with("bf16")


def test_precision_of_a_cpu() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [precision.used(name, cpu) for name in PRECISIONS] == ["fp32", "fp32", "bf16"]
    assert [precision.used(name, gpu) for name in PRECISIONS] == list(PRECISIONS)


def make_with(name: str) -> Fit:
    return prepare(Identity(target()), RECIPE, precision=name)


@pytest.mark.parametrize(
    ("network", "engine", "asked", "said"),
    [
        (Skip, "fused", "fp32", ""),
        (Skip, "fused", "bf16", " with images in bf16"),
        (Skip, "fused", "bf16", " with images and products in bf16"),
        (Skip, "plain", "bf16", " in bf16"),
        (Decoder, "plain", "fp32", ""),
        (Decoder, "fused", "bf16", "bf16 changes nothing)"),
    ],
)
def test_what_bfloat16_changes_on_a_cpu_is_said(
    network: type[Network], engine: str, asked: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, rounds = extension.load(), "products" in said
    if rounds and (build is None or "avx512_bf16" not in build.cpu_levels()):
        pytest.skip("there are no such kernels")
    if build is not None:
        monkeypatch.setattr(build, "cpu_level", lambda: "avx512_bf16" if rounds else "portable")
    found = precision.describe(asked, torch.device("cpu"), network(8, 3).use(engine))
    assert found.endswith(said) if said else found == ""


@pytest.mark.parametrize("network", ["skip", "hourglass", "decoder"])
def test_fit_in_bfloat16_compares_in_float32(network: str) -> None:
    """With the plain engine; tests/test_stored_in_16_bits.py has the fused one."""
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
