"""Sums: their value, their gradient, and that the number of threads does not show."""

import pytest
import torch

from dip_fast.fitting.reductions import ROW, mean_square, total

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
    x = torch.rand(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    assert mean_square(x).item() == pytest.approx((x**2).mean().item(), rel=1e-12)
    (grad,) = torch.autograd.grad(mean_square(x), x)
    torch.testing.assert_close(grad, 2 * x.detach() / x.numel())
    assert x.numel() > ROW or torch.autograd.gradgradcheck(mean_square, x)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_same_bits_for_any_number_of_threads(size: tuple[int, ...]) -> None:
    x = torch.rand(size, generator=torch.Generator().manual_seed(2)).requires_grad_()
    before = torch.get_num_threads()
    values, gradients = [], []
    try:
        for threads in (1, 2, 3, 4, 7):
            torch.set_num_threads(threads)
            values.append(mean_square(x))
            gradients += torch.autograd.grad(values[-1], x)
    finally:
        torch.set_num_threads(before)
    for value, gradient in zip(values, gradients, strict=True):
        assert torch.equal(value, values[0])
        assert torch.equal(gradient, gradients[0])
