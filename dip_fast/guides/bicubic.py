"""Bicubic interpolation."""

from __future__ import annotations

import numpy as np
from PIL import Image


def enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    """Enlarge by bicubic interpolation (Keys, a = -1/2), as Pillow and MATLAB do.

    Parameters
    ----------
    image : ndarray
        float32, ``(H, W, C)``, range [0, 1].
    scale : int
        How many times the sides become larger.

    Returns
    -------
    ndarray
        float32, ``(scale H, scale W, C)``, clipped to [0, 1].
    """
    size = scale * image.shape[1], scale * image.shape[0]
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(image, 2, 0)]
    enlarged = [np.asarray(plane.resize(size, Image.Resampling.BICUBIC)) for plane in planes]
    return np.stack(enlarged, axis=2).clip(0, 1)
