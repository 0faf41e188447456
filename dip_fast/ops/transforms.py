"""Whether PyTorch has to see its own layers where a fused operator would run."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Return whether a transform of ``torch.func`` or forward-mode differentiation is under way.

    The operators have no rules for them: without a warning, the derivatives of forward mode would be zero.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
