"""The fused operators; importing this loads or builds the extension and registers them with PyTorch."""

from dip_fast.ops import flops  # noqa: F401  (registers the formulas)
from dip_fast.ops.masking import masked_crop, masked_window, oriented, oriented_back
from dip_fast.ops.norm_conv import NormedInput, norm_conv2d, norm_upsample_conv2d
from dip_fast.ops.patches import similar_patches
from dip_fast.ops.perturbation import bernoulli, perturb
from dip_fast.ops.upsample_conv import upsample_conv2d

__all__ = [
    "NormedInput",
    "bernoulli",
    "masked_crop",
    "masked_window",
    "norm_conv2d",
    "norm_upsample_conv2d",
    "oriented",
    "oriented_back",
    "perturb",
    "similar_patches",
    "upsample_conv2d",
]
