"""A small recipe of the masked objective, and a picture that it learns."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from dip_fast.fitting import NoiseModel
from dip_fast.presets import FitOptions, Masking, Recipe

SIGMA = 0.1
NOISE = NoiseModel(SIGMA**2)
RECIPE = Recipe(
    "skip",
    {"down": 8, "up": 8, "skip": 4, "scales": 2, "kernel_skip": 3, "upsampling": "nearest", "corrects": True},
    6,
    "uniform",
    FitOptions(
        iterations=40, learning_rate=0.02, warmup=5, decay="cosine", averaging=0.0, stop="never", consolidation=4
    ),
    Masking(crop=32, margin=8, passes=9),
)

# The same with a network that corrects nothing, and has to learn to draw the answer.
LEARNING = replace(RECIPE, network_options=RECIPE.network_options | {"corrects": False})


def clean(height: int = 37, width: int = 45, channels: int = 3) -> Tensor:
    rows, columns = np.mgrid[:height, :width] / 40
    waves = [0.5 + 0.3 * np.sin(7 * rows + i) * np.cos(5 * columns) for i in range(channels)]
    return torch.tensor(np.stack(waves)[None], dtype=torch.float32)


def noisy(height: int = 37, width: int = 45, channels: int = 3) -> Tensor:
    c = clean(height, width, channels)
    return c + SIGMA * torch.randn(c.shape, generator=torch.Generator().manual_seed(0))
