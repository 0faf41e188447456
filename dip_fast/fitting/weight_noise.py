"""Noise on the weights, as the original program intends with ``param_noise``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def shaken(parameters: Mapping[str, Tensor], part: float, seed: int, step: Tensor) -> dict[str, Tensor]:
    """Add fresh normal noise to the weights of convolutions; gradients reach the parameters as they are.

    Parameters
    ----------
    parameters : mapping of str to Tensor
        By name.
    part : float
        Standard deviation of the noise, as a part of that of each tensor.
    seed : int
    step : Tensor
        0-dim int64; seed, step and the place among the parameters give the noise.
    """
    from dip_fast.ops import perturbation  # here, since it loads or builds the extension

    shaken = {}
    for number, (name, weight) in enumerate(parameters.items(), start=1):
        if weight.dim() == 4:
            noise = perturbation.perturb(torch.zeros_like(weight, requires_grad=False), 1.0, seed + number, step)
            shaken[name] = weight + part * weight.detach().std(correction=0) * noise
    return shaken
