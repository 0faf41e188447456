"""PSNR and SSIM, which measure how near an image is to its reference."""

from __future__ import annotations

import numpy as np


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Return the PSNR in dB over all channels, of ``(H, W, C)`` images clipped to the data range [0, 1].

    At most 144.5 dB, a mean error of 2**-24, the rounding of float32: JSON has no infinity for equal images.
    """
    from skimage.metrics import mean_squared_error  # here: it takes a second to import, and few runs have a reference

    return float(-10 * np.log10(max(mean_squared_error(reference, np.clip(image, 0, 1)), 2.0**-48)))


def ssim(image: np.ndarray, reference: np.ndarray) -> float:
    """Return the SSIM with a Gaussian window of sigma 1.5, of ``(H, W, C)`` images clipped to the data range [0, 1]."""
    from skimage.metrics import structural_similarity  # here, as above

    return float(
        structural_similarity(
            reference, np.clip(image, 0, 1), channel_axis=2, data_range=1, gaussian_weights=True, sigma=1.5
        )
    )
