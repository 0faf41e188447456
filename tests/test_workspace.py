"""Memory of the operators' images: kept while a workspace exists, cut and merged, and returned afterwards."""

import gc
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dip_fast.networks import Skip
from dip_fast.ops import NormedInput, extension, norm_conv2d
from dip_fast.ops.workspace import Workspace

module = extension.load()
pytestmark = pytest.mark.skipif(module is None, reason="there is no compiled extension")

MIB = 1 << 20  # the size from which on a block has a segment of its own; smaller ones share segments of 8 MiB


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Check that no memory is kept before a test, by earlier ones, nor after it."""
    gc.collect()
    assert module.workspace_bytes() == 0
    yield
    gc.collect()
    assert module.workspace_bytes() == 0


def image(mebibytes, value=1.0):
    """Allocate a block of so many MiB: an output with the same value everywhere."""
    output, _ = norm_conv2d(NormedInput(torch.ones(1, 1, 512, 512)), torch.full((mebibytes, 1, 1, 1), value))
    return output


def requests():
    """Count the requests to the system so far."""
    return module.workspace_blocks()


@pytest.mark.parametrize("upsampling", ["nearest", "bilinear"])
def test_steps_request_no_more_memory_while_a_workspace_exists(upsampling):
    torch.manual_seed(0)
    network = Skip(4, 3, down=16, up=16, scales=3, upsampling=upsampling).use("fused")
    z = torch.rand(1, 4, 160, 144)  # the images of the first scale take more than 1 MiB, those of others less

    def blocks_of_a_step():
        before = requests()
        network(z).square().sum().backward()
        return requests() - before

    unheld = [blocks_of_a_step() for _ in range(2)]
    assert min(unheld) > 0
    holder = Workspace()
    held = [blocks_of_a_step() for _ in range(5)]
    assert held[0] > 0
    assert held[2:] == [0, 0, 0]
    assert module.workspace_bytes() > 0
    del holder


def test_two_holders():
    first, second = Workspace(), Workspace()
    image(3)
    kept = module.workspace_bytes()
    assert kept >= 3 * MIB
    del first
    assert module.workspace_bytes() == kept
    del second
    assert module.workspace_bytes() == 0


def test_tensors_outlive_the_holder():
    holder = Workspace()
    whole, cut = image(6), image(3)
    del whole
    part = image(2, 7.0)  # it takes the place of `whole`, the rest of which is free
    del holder
    assert module.workspace_bytes() == 6 * MIB + 3 * MIB
    assert (part == 7).all()
    assert (cut == 1).all()
    del cut
    assert module.workspace_bytes() == 6 * MIB
    del part
    assert module.workspace_bytes() == 0


def test_blocks_are_cut_to_size():
    holder = Workspace()
    whole = image(6)
    begin = whole.data_ptr()
    del whole
    before = requests()
    parts = [image(size, value) for size, value in ((1, 1.0), (2, 2.0), (3, 3.0))]
    assert [part.data_ptr() - begin for part in parts] == [0, MIB, 3 * MIB]
    assert requests() == before
    assert all((part == value).all() for part, value in zip(parts, (1, 2, 3), strict=True))
    image(1)  # nothing of the block is free
    assert requests() == before + 1
    del holder


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_blocks_are_merged_in_any_order(order):
    holder = Workspace()
    begin = image(6).data_ptr()
    parts = [image(size) for size in (1, 2, 3)]
    for index in order:
        parts[index] = None
    before = requests()
    assert image(6).data_ptr() == begin
    assert requests() == before
    del holder


def test_takes_the_smallest_block_that_is_large_enough():
    holder = Workspace()
    blocks = [image(size) for size in (5, 3, 4)]
    places = {block.numel() * 4 // MIB: block.data_ptr() for block in blocks}
    del blocks
    assert image(4).data_ptr() == places[4]
    held = image(2)
    assert held.data_ptr() == places[3]
    del holder


def test_blocks_that_are_too_small_are_returned_before_the_system_is_asked_for_more():
    holder = Workspace()
    image(2)
    others = module.workspace_bytes() - 2 * MIB
    held = image(5)
    assert module.workspace_bytes() == held.numel() * 4 + others
    del held, holder


def test_threads_that_allocate_and_free_at_once():
    """Each thread runs forward and backward passes, and has a workspace now and then."""
    torch.manual_seed(0)
    z = torch.rand(1, 4, 96, 64)
    networks = [Skip(4, 3, down=8, up=8, scales=2).use("fused") for _ in range(4)]

    def gradients(network):
        return torch.autograd.grad(network(z).square().sum(), [network.head.weight, network.scale.skip.conv.weight])

    wanted = [gradients(network) for network in networks]

    def work(index):
        same = True
        for step in range(20):
            holder = Workspace() if step % 3 else None
            same &= all(map(torch.equal, gradients(networks[index]), wanted[index]))
            del holder
        return same

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
