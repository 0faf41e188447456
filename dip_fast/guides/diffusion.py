"""Filling holes by diffusion."""

from __future__ import annotations

import cv2
import numpy as np

SWEEPS = 30  # at each size; on a finer size little is left to do


def fill(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fill unknown pixels with the smoothest continuation of the known ones.

    Parameters
    ----------
    image : ndarray
        float32, ``(H, W, C)``; unknown pixels may hold anything finite.
    known : ndarray
        bool, ``(H, W)``, with at least one True.

    Returns
    -------
    ndarray
        float32, of the image's shape; known pixels as they were.

    Notes
    -----
    Solves the Laplace equation in the holes, from the coarsest of a pyramid of sizes on: each size begins with the
    enlarged solution of the next smaller one and takes some sweeps of averaging the four neighbours (Jacobi).  Memory
    and time are those of a few filters, however large the holes are.
    """
    weight = known.astype(np.float32)[..., None]
    filled = _start(image * weight, weight)
    cross = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.float32) / 4
    for _ in range(SWEEPS):
        around = cv2.filter2D(filled, -1, cross, borderType=cv2.BORDER_REFLECT).reshape(image.shape)
        filled = np.where(known[..., None], image, around)
    return filled.astype(np.float32)


def _start(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Fill in from half the size, where a pixel is the mean of what is known of four."""
    height, width, channels = values.shape
    if min(height, width) == 1 or weight.all():
        total = max(float(weight.sum()), 1.0)
        mean = values.sum(axis=(0, 1)) / total
        return np.where(weight > 0, values, mean).astype(np.float32)
    pad = ((0, height % 2), (0, width % 2), (0, 0))
    coarse, count = (
        np.pad(array, pad).reshape(-(-height // 2), 2, -(-width // 2), 2, -1).sum(axis=(1, 3))
        for array in (values, weight)
    )
    coarse = fill((coarse / np.maximum(count, 1)).astype(np.float32), count[..., 0] > 0)
    enlarged = cv2.resize(coarse, (coarse.shape[1] * 2, coarse.shape[0] * 2), interpolation=cv2.INTER_LINEAR)
    enlarged = enlarged.reshape(coarse.shape[0] * 2, coarse.shape[1] * 2, channels)[:height, :width]
    return np.where(weight > 0, values, enlarged).astype(np.float32)
