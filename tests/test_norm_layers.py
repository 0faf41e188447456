"""All layers of a network as one call: the same bits as one by one, and what must stay as it was."""

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor

from dip_fast.networks.skip import Skip
from dip_fast.ops.norm_conv import stored_as

OPTIONS = {
    "nearest": {"upsampling": "nearest"},
    "bilinear": {"upsampling": "bilinear"},
    "mixed": {"upsampling": ["nearest", "bilinear"], "skip": [0, 4], "padding_mode": "zeros"},
    "corrects": {"upsampling": "nearest", "corrects": True, "skip": 16, "kernel_skip": 3},
    "without 1x1": {"upsampling": "bilinear", "conv1x1": False, "padding_mode": "replicate"},
}


def make(**options: object) -> Skip:
    """Make a small network with parameters away from their first values, in its fused form."""
    torch.manual_seed(0)
    network = Skip(5, 3, **{"down": 12, "up": 12, "scales": 2, "skip": 4, **options}).use("fused")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def z_of(dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.rand(1, 5, 32, 24, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def drawn_and_gradients(network: Skip, z: Tensor) -> list[Tensor]:
    """Draw; return the image and the gradients of z and of all parameters."""
    z = z.clone().requires_grad_()
    drawn = network(z)
    return [drawn.detach(), *torch.autograd.grad((drawn * drawn).sum(), [z, *network.parameters()])]


def one_by_one(network: Skip) -> Skip:
    """The same network, whose layers are called one by one."""
    network._at_once = None
    return network


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", OPTIONS)
def test_all_layers_at_once_are_those_one_by_one(case: str, dtype: torch.dtype) -> None:
    stored = dtype if dtype == torch.bfloat16 else None
    of_z = torch.float32 if stored else dtype
    network, other = make(**OPTIONS[case]).to(of_z), one_by_one(make(**OPTIONS[case]).to(of_z))
    with stored_as(stored):
        for seed in (0, 1, 2):  # the first call notes the layers
            found, expected = (drawn_and_gradients(each, z_of(of_z, seed)) for each in (network, other))
            if case == "corrects":  # the gradient of z has three summands, which are added in another order
                torch.testing.assert_close(found.pop(1), expected.pop(1))
            assert_same(found, expected)
        with torch.no_grad():
            assert torch.equal(network(z_of(of_z)), other(z_of(of_z)))
    assert network._at_once is not None
    assert network._at_once._programs


def test_calls_for_other_dtypes_are_noted_apart() -> None:
    network, other = make(), one_by_one(make())
    for stored in (None, torch.bfloat16, None, torch.bfloat16):
        with stored_as(stored):
            assert_same(drawn_and_gradients(network, z_of()), drawn_and_gradients(other, z_of()))


def test_frozen_parameters_have_no_gradient_and_the_others_theirs() -> None:
    network, other = make(), one_by_one(make())
    for each in (network, other):
        each.scale.reduce.requires_grad_(False)
        each.scale.mix.conv.weight.requires_grad_(False)
    network(z_of())
    network(z_of()).sum().backward()
    other(z_of()).sum().backward()
    for (name, a), b in zip(network.named_parameters(), other.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None) == (not a.requires_grad), name
        assert a.grad is None or torch.equal(a.grad, b.grad), name


def test_weights_that_are_given_in_a_call_are_used() -> None:
    network, other = make(), one_by_one(make())
    network(z_of())
    for seed in (3, 4):
        torch.manual_seed(seed)
        weights = {name: p + 0.1 * torch.randn_like(p) for name, p in network.named_parameters()}
        found, expected = (torch.func.functional_call(each, weights, (z_of(),)) for each in (network, other))
        assert torch.equal(found, expected)
        of_given = (torch.autograd.grad(drawn.sum(), list(weights.values())) for drawn in (found, expected))
        assert_same(*map(list, of_given))
    assert not torch.equal(network(z_of()), found)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: pickle.load(io.BytesIO(pickle.dumps(network)))])
def test_copy_has_weights_and_hooks_of_its_own(copied: object) -> None:
    network = make()
    before = network(z_of()).detach()
    other = copied(network)  # type: ignore[operator]
    with torch.no_grad():
        other.head.weight.mul_(2)
    assert torch.equal(network(z_of()), before)
    assert not torch.equal(other(z_of()), before)
    seen: list[object] = []
    other.scale.mix.register_forward_hook(lambda *_: seen.append(1))
    network(z_of())
    assert not seen
    other(z_of())
    assert seen


def test_hooks_of_blocks_are_called() -> None:
    network = make()
    before = network(z_of())
    seen: list[int] = []
    handle = network.scale.deepen.register_forward_hook(lambda *_: seen.append(1))
    assert torch.equal(network(z_of()), before)
    assert seen == [1]
    handle.remove()
    assert torch.equal(network(z_of()), before)
    assert seen == [1]


class Between(Skip):
    """With an image that is changed between two layers."""

    def _draw(self, z: Tensor) -> Tensor:
        return super()._draw(z + 1)


class Behind(Skip):
    """With something behind the last layer."""

    def _draw(self, z: Tensor) -> Tensor:
        return 2 * super()._draw(z)


class Part(Skip):
    """With a part of what the last layer drew, in its memory."""

    def _draw(self, z: Tensor) -> Tensor:
        return super()._draw(z)[:, :2]


@pytest.mark.parametrize("kind", [Between, Behind, Part])
def test_layers_that_are_not_all_that_is_computed_are_not_noted(kind: type[Skip]) -> None:
    torch.manual_seed(0)
    network = kind(5, 3, down=12, up=12, scales=2).use("fused")
    first = network(z_of())
    assert torch.equal(network(z_of()), first)
    assert network(z_of()).shape[1] == (2 if kind is Part else 3)


def test_graph_is_gone_through_again_only_if_it_was_retained() -> None:
    network, z = make(), z_of()
    network(z)
    loss, parameters = network(z).sum(), list(network.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    second = torch.autograd.grad(loss, parameters)
    assert_same(list(first), list(second))
    with pytest.raises(RuntimeError, match="retain_graph"):
        torch.autograd.grad(loss, parameters)


def test_second_derivatives_are_refused() -> None:
    network, z = make(), z_of()
    network(z)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        torch.autograd.grad(network(z).sum(), list(network.parameters()), create_graph=True)


def test_weights_that_changed_before_the_way_back_are_noticed() -> None:
    network, z = make(), z_of()
    network(z)
    loss = network(z).sum()
    with torch.no_grad():
        network.scale.deepen.conv.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


ROW = [0, 0, -1, -1, -1, -1, -1, -1, -1, 0, -1, 1, 0, -1]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        ROW[:-1],
        [*ROW, 0],
        *([*ROW[:at], value, *ROW[at + 1 :]] for at, value in
          ((1, 1), (1, -1), (2, 0), (3, 7), (4, 5), (9, 1), (9, -1), (10, 3), (12, 3), (12, -1), (13, 3))),
        [1, *ROW[1:]],
        [1, *ROW[1:7], 0, 0, 0, -1, 2, 0, -1],
    ],
)  # fmt: skip
def test_programs_that_name_what_is_not_there_are_refused(rows: list[int]) -> None:
    z, weight = torch.rand(1, 2, 4, 4), torch.rand(3, 2, 3, 3)
    with pytest.raises(ValueError, match="program"):
        torch.ops.dip_fast.norm_layers(z, [weight], rows, [0.2, 1e-5])
    assert torch.ops.dip_fast.norm_layers(z, [weight], ROW, [0.2, 1e-5]).shape == (1, 3, 4, 4)


def test_layer_that_nothing_reads_is_left_out_on_the_way_back() -> None:
    weights = [torch.rand(3, 2, 3, 3, requires_grad=True), torch.rand(4, 2, 3, 3, requires_grad=True)]
    z, second = torch.rand(1, 2, 4, 4), [*ROW[:9], 1, *ROW[10:]]
    drawn = torch.ops.dip_fast.norm_layers(z, weights, ROW + second, [0.2, 1e-5] * 2)
    unread, read = torch.autograd.grad(drawn.square().sum(), weights)
    alone = torch.ops.dip_fast.norm_layers(z, weights[1:], ROW, [0.2, 1e-5])
    assert torch.equal(read, torch.autograd.grad(alone.square().sum(), weights[1])[0])
    assert not unread.any()
