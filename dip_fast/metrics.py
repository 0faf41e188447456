"""How near a picture comes to its ground truth."""

from __future__ import annotations

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """PSNR in dB over all channels, of ``(H, W, C)`` images clipped to the data range [0, 1]."""
    return float(peak_signal_noise_ratio(reference, np.clip(image, 0, 1), data_range=1))


def ssim(image: np.ndarray, reference: np.ndarray) -> float:
    """SSIM with a Gaussian window of sigma 1.5, of ``(H, W, C)`` images clipped to the data range [0, 1]."""
    return float(
        structural_similarity(
            reference, np.clip(image, 0, 1), channel_axis=2, data_range=1, gaussian_weights=True, sigma=1.5
        )
    )
