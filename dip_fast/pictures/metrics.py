"""PSNR and SSIM, which measure how near an image is to its reference."""

from __future__ import annotations

import numpy as np

from dip_fast import large

REACH = 5  # pixels of the window of SSIM on each side of its middle


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Return the PSNR in dB over all channels, of ``(H, W, C)`` images clipped to the data range [0, 1].

    At most 144.5 dB, a mean error of 2**-24, the rounding of float32: JSON has no infinity for equal images.
    """
    from skimage.metrics import mean_squared_error  # here: it takes a second to import, and few runs have a reference

    error = 0.0
    for rows in large.bands(image.shape):
        part = mean_squared_error(reference[rows], np.clip(image[rows], 0, 1))
        error += float(part) * ((rows.stop - rows.start) / len(image))
    return float(-10 * np.log10(max(error, 2.0**-48)))


def ssim(image: np.ndarray, reference: np.ndarray) -> float:
    """Return the SSIM with a Gaussian window of sigma 1.5, of ``(H, W, C)`` images clipped to the data range [0, 1]."""
    from skimage.metrics import structural_similarity  # here, as above

    total, inner = np.zeros(image.shape[2]), (image.shape[0] - 2 * REACH) * (image.shape[1] - 2 * REACH)
    for rows in large.bands(image.shape):
        seen = slice(max(rows.start - REACH, 0), rows.stop + REACH)
        _, found = structural_similarity(
            reference[seen],
            np.clip(image[seen], 0, 1),
            channel_axis=2,
            data_range=1,
            gaussian_weights=True,
            sigma=1.5,
            full=True,
        )
        first, last = max(rows.start, REACH), min(rows.stop, len(image) - REACH)  # as scikit-image, without the edges
        part = found[first - seen.start : max(last - seen.start, 0), REACH:-REACH]
        total += part.sum((0, 1), dtype=np.float64)
    return float(total.mean() / inner)
