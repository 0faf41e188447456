"""Non-local means."""

from __future__ import annotations

import numpy as np


def non_local_means(image: np.ndarray, sigma: float) -> np.ndarray:
    """Denoise by averaging similar patches.

    Parameters
    ----------
    image : ndarray
        float32, ``(H, W, C)``, range [0, 1].
    sigma : float
        Standard deviation of the noise.

    Returns
    -------
    ndarray
        float32, of the image's shape.

    Notes
    -----
    The fast variant of scikit-image with patches of 5x5, a window of 13x13 and a cut-off of 0.6 sigma, as its own
    example for a known sigma has them.

    References
    ----------
    A. Buades, B. Coll, J.-M. Morel, "A non-local algorithm for image denoising", CVPR 2005,
    doi:10.1109/CVPR.2005.38.
    """
    from skimage.restoration import denoise_nl_means

    if sigma == 0:
        return image.copy()
    gray = image.shape[2] == 1  # scikit-image takes a channel axis of one for no axis
    filtered: np.ndarray = denoise_nl_means(
        image[..., 0] if gray else image,
        h=0.6 * sigma,
        sigma=sigma,
        fast_mode=True,
        patch_size=5,
        patch_distance=6,
        channel_axis=None if gray else 2,
    )
    return filtered.reshape(image.shape).astype(np.float32)
