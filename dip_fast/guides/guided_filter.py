"""The guided filter."""

from __future__ import annotations

import cv2
import numpy as np

RADIUS = 8  # this and the next as the authors have them for flash and no-flash pictures
EPSILON = 0.02**2


def guided_filter(image: np.ndarray, guide: np.ndarray) -> np.ndarray:
    """Smooth an image, but keep the edges that a guide has: in each window the result is affine in the guide.

    Parameters
    ----------
    image : ndarray
        float32, ``(H, W, C)``, range [0, 1].
    guide : ndarray
        float32, ``(H, W, G)``, range [0, 1].

    Returns
    -------
    ndarray
        float32, of the image's shape, clipped to [0, 1].

    References
    ----------
    K. He, J. Sun, X. Tang, "Guided Image Filtering", IEEE TPAMI 35 (2013), doi:10.1109/TPAMI.2012.213.
    """

    def mean(values: np.ndarray) -> np.ndarray:
        side = 2 * RADIUS + 1
        planes = [cv2.blur(plane, (side, side), borderType=cv2.BORDER_REFLECT) for plane in np.moveaxis(values, 2, 0)]
        return np.stack(planes, axis=2)

    x, z = image.astype(np.float64), guide.astype(np.float64)
    pixels, channels = z.shape[:2], z.shape[2]
    mean_x, mean_z = mean(x), mean(z)
    square = (z[..., :, None] * z[..., None, :]).reshape(*pixels, -1)  # (H, W, G * G)
    product = (z[..., :, None] * x[..., None, :]).reshape(*pixels, -1)  # (H, W, G * C)
    variance = mean(square).reshape(*pixels, channels, channels) - mean_z[..., :, None] * mean_z[..., None, :]
    covariance = mean(product).reshape(*pixels, channels, -1) - mean_z[..., :, None] * mean_x[..., None, :]
    slope = np.linalg.solve(variance + EPSILON * np.eye(channels), covariance)  # (H, W, G, C)
    offset = mean_x - np.einsum("hwg,hwgc->hwc", mean_z, slope)
    slope = mean(slope.reshape(*pixels, -1)).reshape(slope.shape)
    filtered: np.ndarray = np.einsum("hwg,hwgc->hwc", z, slope) + mean(offset)
    return filtered.clip(0, 1).astype(np.float32)
