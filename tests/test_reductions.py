"""Sums: their value, their gradient, and that the number of threads does not show."""

import pytest
import torch

from dip_fast.fitting.reductions import ROW, mean_square, squared_errors, total

SIZES = [
    (1,),
    (ROW - 1,),
    (ROW,),
    (ROW + 1,),
    (1, 3, 17, 21),
    (1, 3, 512, 512),
    (1, 1, 40000, 33),
    (1, 1, 1, ROW**2 + 5),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_total_is_the_sum(size: tuple[int, ...]) -> None:
    x = torch.rand(size, generator=torch.Generator().manual_seed(0))
    assert total(x).shape == ()
    assert total(x).item() == pytest.approx(x.double().sum().item(), rel=1e-6)


@pytest.mark.parametrize("size", [(1,), (7,), (1, 3, 5, 9), (2, ROW)], ids=str)
def test_mean_square_and_its_derivatives(size: tuple[int, ...]) -> None:
    x, y = torch.rand((2, *size), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x.requires_grad_()
    assert mean_square(x, y).item() == pytest.approx(((x - y) ** 2).mean().item(), rel=1e-12)
    (grad,) = torch.autograd.grad(mean_square(x, y), x)
    torch.testing.assert_close(grad, 2 * (x.detach() - y) / x.numel())
    assert x.numel() > ROW or torch.autograd.gradgradcheck(mean_square, (x, y))


def test_one_pass_has_the_bits_of_three() -> None:
    x, y = torch.rand((2, 3, 50, 70), generator=torch.Generator().manual_seed(3))
    found = []
    for square_errors in (squared_errors, lambda x, y: (x - y).square()):
        leaf = x.clone().requires_grad_()
        errors = square_errors(leaf, y)
        found.append((errors, *torch.autograd.grad((errors * y).sum() / 7, leaf)))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_same_bits_for_any_number_of_threads(size: tuple[int, ...]) -> None:
    x, y = torch.rand((2, *size), generator=torch.Generator().manual_seed(2))
    x.requires_grad_()
    before = torch.get_num_threads()
    values, gradients = [], []
    try:
        for threads in (1, 2, 3, 4, 7):
            torch.set_num_threads(threads)
            values.append(mean_square(x, y))
            gradients += torch.autograd.grad(values[-1], x)
    finally:
        torch.set_num_threads(before)
    for value, gradient in zip(values, gradients, strict=True):
        assert torch.equal(value, values[0])
        assert torch.equal(gradient, gradients[0])
