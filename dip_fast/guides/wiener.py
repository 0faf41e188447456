"""Wiener deconvolution."""

from __future__ import annotations

import numpy as np

LEAST_NOISE = 1 / 1020  # 8-bit rounding has the standard deviation 1/883


def deconvolve(image: np.ndarray, kernel: np.ndarray, sigma: float) -> np.ndarray:
    """Undo a blur by a linear filter that weighs the blur against the noise at each frequency.

    The variance of the picture is taken to fall as that of a random walk does, with the second differences
    (a Laplacian) all alike; what the picture itself has of them, without the noise, sets the balance.

    Parameters
    ----------
    image : ndarray
        float32, ``(H, W, C)``, range [0, 1].
    kernel : ndarray
        ``(h, w)``, of the sum 1.
    sigma : float
        Standard deviation of the noise.

    Returns
    -------
    ndarray
        float32, of the image's shape, clipped to [0, 1].

    References
    ----------
    F. Orieux, J.-F. Giovannelli, T. Rodet, "Bayesian estimation of regularization and point spread function parameters
    for Wiener-Hunt deconvolution", J. Opt. Soc. Am. A 27 (2010), doi:10.1364/JOSAA.27.001593.
    """
    from skimage.restoration import wiener

    sigma = max(sigma, LEAST_NOISE)
    inner = 4 * image[1:-1, 1:-1] - image[2:, 1:-1] - image[:-2, 1:-1] - image[1:-1, 2:] - image[1:-1, :-2]
    rough = max(float(np.square(inner).mean()) - 20 * sigma**2, sigma**2)  # noise has 16 + 4 of its variance there
    rows, columns = (2 * side for side in kernel.shape)  # mirrored, since the filter takes the edges for each other's
    wide = np.pad(image, ((rows, rows), (columns, columns), (0, 0)), mode="symmetric")
    planes = [wiener(plane, kernel, sigma**2 / rough, clip=False) for plane in np.moveaxis(wide, 2, 0)]
    return np.stack(planes, axis=2)[rows:-rows, columns:-columns].clip(0, 1).astype(np.float32)
