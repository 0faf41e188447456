"""The operators' own threads: results have the same bits, and the process is as before afterwards."""

import subprocess
import sys
import threading

import pytest
import torch

from dip_fast.fitting import prepare
from dip_fast.fitting.degradations import Identity
from dip_fast.networks import Skip
from dip_fast.ops import NormedInput, extension, norm_conv2d, perturb
from dip_fast.ops.workspace import own_threads
from dip_fast.presets import PRESETS

pytestmark = pytest.mark.skipif(extension.load() is None, reason="there is no compiled extension")


@pytest.fixture
def threads():
    """Set the number of PyTorch's threads for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def outputs_and_gradients(seed=0):
    """Compute layers with several items of work each, whose sums are added in a fixed order."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 20, 70, 66, generator=generator).requires_grad_()
    results = []
    for kernel, stride in ((1, 1), (3, 1), (3, 2)):
        weight = torch.randn(24, 20, kernel, kernel, generator=generator).requires_grad_()
        output, statistics = norm_conv2d(NormedInput(x), weight, stride=stride)
        loss = (output * output.detach()).sum() + statistics.sum()
        results += [output.detach(), statistics.detach(), *torch.autograd.grad(loss, (x, weight))]
    return [*results, perturb(x.detach(), 0.1, seed, 1)]


def test_same_bits_on_own_threads(threads):
    expected = outputs_and_gradients()
    for count in (1, 2, 3, 5):
        threads(count)
        for _ in range(5):  # threads arrive in another order each time
            with own_threads():
                results = outputs_and_gradients()
            assert all(map(torch.equal, results, expected))


def test_several_threads_of_the_program_call_operators(threads):
    """One of them gets the pool, the others compute alone."""
    threads(2)
    expected = [outputs_and_gradients(seed) for seed in range(3)]
    results = [[] for _ in expected]

    def work(seed):
        torch.set_num_threads(2)  # OpenMP keeps the number for each thread
        with own_threads():
            for _ in range(10):
                results[seed].append(outputs_and_gradients(seed))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for mine, wanted in zip(results, expected, strict=True):
        assert len(mine) == 10
        for result in mine:
            assert all(map(torch.equal, result, wanted))


def test_number_of_threads_is_restored(threads):
    threads(3)
    with own_threads():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    with pytest.raises(ZeroDivisionError), own_threads():
        raise ZeroDivisionError
    assert torch.get_num_threads() == 3


def test_threads_work_after_an_error_in_an_operator(threads):
    threads(2)
    with own_threads(), pytest.raises(ValueError, match="stride"):
        norm_conv2d(NormedInput(torch.rand(1, 2, 4, 4)), torch.rand(2, 2, 3, 3), stride=3)
    assert torch.get_num_threads() == 2
    test_same_bits_on_own_threads(threads)


def test_child_of_fork_has_threads_too():
    script = """
import os, torch
from dip_fast.ops import perturb
from dip_fast.ops.workspace import own_threads
torch.set_num_threads(2)
z = torch.zeros(1, 8, 256, 256)
with own_threads():
    expected = perturb(z, 1.0, 1, 2)
    child = os.fork()
    same = torch.equal(perturb(z, 1.0, 1, 2), expected)
if child == 0:
    os._exit(0 if same else 1)
assert same and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-P", "-c", script], check=True, timeout=60)


@pytest.mark.parametrize(
    ("options", "expected"), [({"kernel_up": 3}, 1), ({"kernel_up": (5, 3)}, 2)], ids=["wholly fused", "partly"]
)
def test_fit_uses_own_threads_if_no_block_is_plain(threads, monkeypatch, options, expected):
    """A plain convolution on one thread would cost more time than the pool saves."""
    threads(2)
    recipe = PRESETS["quick"].recipe
    network = {"down": 4, "up": 4, "skip": 2, "scales": 2, **options}
    fit = prepare(Identity(torch.rand(1, 3, 8, 8)), type(recipe)("skip", network, 2, "uniform", recipe.options))
    seen = []
    forward = Skip.forward

    def spy(self, z):
        seen.append(torch.get_num_threads())
        return forward(self, z)

    monkeypatch.setattr(Skip, "forward", spy)
    fit.step()
    fit.draw()
    assert seen == [expected] * 2
    assert torch.get_num_threads() == 2
