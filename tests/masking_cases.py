"""Pictures and comparisons for the tests of the masking operators."""

import torch

FAR = 2**31, 2**32 + 5, 2**63 - 1, -(2**63), -1


def pictures(*shape, device="cpu"):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(device)


def same(got, wanted):
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == torch.float32
        assert a.is_contiguous()
        a = a.cpu()
        assert a.shape == b.shape
        assert torch.equal(a, b), f"{(a != b).sum()} of {a.numel()} differ, the first at {(a != b).nonzero()[0]}"
