"""Functions on arrays, in the manner of scikit-image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from dip_fast import presets
from dip_fast.device import devices
from dip_fast.fitting.degradations import Degradation, Identity, Mask
from dip_fast.fitting.loop import Fit, fit
from dip_fast.pictures.samples import from_unit, to_unit, value_range

SMALLEST_SIDE = 16


def denoise(
    image: np.ndarray,
    *,
    preset: str | None = None,
    iterations: int | None = None,
    stop: Literal["auto", "never"] | None = None,
    seed: int = 0,
    device: str = "auto",
    engine: str = "auto",
    precision: str = "tf32",
    channel_axis: int | None = None,
    callbacks: Sequence[Callable[[Fit], None]] = (),
) -> np.ndarray:
    """Denoise an image with a network that is fitted to it alone.

    Parameters
    ----------
    image : ndarray
        ``(H, W)``, or with ``channel_axis`` ``(H, W, C)`` in any order; at least 16x16.  uint8, uint16, float16,
        float32 or float64, of any range (see Notes).
    preset : str, optional
        A name of ``dip_fast.presets.PRESETS``; ``"quick"`` on a CPU and ``"paper"`` on a GPU by default.
    iterations : int, optional
        Most steps; the preset's by default.
    stop : {"auto", "never"}, optional
        Whether the moving variance of the iterates may end the fit and choose the answer; the preset's by default.
    seed : int
        Same seed, same bits, on the same machine with the same number of threads.
    device : {"auto", "cpu", "cuda"}
    engine : {"auto", "fused", "plain"}
        How the network is computed; ``auto`` is fused where that can be had.  The two differ in rounding only.
    precision : {"tf32", "fp32", "bf16"}
        Of the products on a GPU; ``bf16`` also halves the memory of the network's images.  A CPU computes in float32.
    channel_axis : int, optional
        Axis of the channels; None for a gray image.
    callbacks : sequence of callable
        Called with the `Fit` after each step, or less often, see `Fit.run`; ``fit.interrupt()`` ends it, with the best
        answer so far.

    Returns
    -------
    ndarray
        A new array of the image's shape and dtype, in the image's range; integers are rounded and clipped.

    Raises
    ------
    ValueError
        For an image of another shape or too small, or with NaN or infinite values; for an unknown preset, engine or
        precision; for one of these or a device that cannot be had (`UsageError`).
    TypeError
        For an image of another dtype.

    Notes
    -----
    Minimises ``||f(z) - image||^2`` over the weights of an untrained network f at a fixed random z and takes the
    averaged network as the answer.  The network draws values from 0 to 1, which stand for: 0 and 255 in uint8; 0 and
    the largest ``2**k - 1`` needed in uint16; 0 and 1 in a float image within these that reaches 0.25, and its
    minimum and maximum otherwise.

    References
    ----------
    D. Ulyanov, A. Vedaldi, V. Lempitsky, "Deep Image Prior", arXiv 1711.10925.

    Examples
    --------
    >>> import numpy as np
    >>> import dip_fast
    >>> noisy = np.random.default_rng(0).normal(0.5, 0.1, (32, 32)).clip(0, 1)
    >>> dip_fast.denoise(noisy, iterations=3).shape
    (32, 32)
    """
    target, restore = _target(image, channel_axis)
    return restore(_fit(Identity(target), preset, iterations, stop, seed, device, engine, precision, callbacks))


def inpaint(
    image: np.ndarray,
    mask: np.ndarray,
    *,
    composite: bool = True,
    preset: str | None = None,
    iterations: int | None = None,
    stop: Literal["auto", "never"] | None = None,
    seed: int = 0,
    device: str = "auto",
    engine: str = "auto",
    precision: str = "tf32",
    channel_axis: int | None = None,
    callbacks: Sequence[Callable[[Fit], None]] = (),
) -> np.ndarray:
    """Fill in the unknown pixels of an image with a network that is fitted to the known ones alone.

    Parameters
    ----------
    image : ndarray
        As in `denoise`; unknown pixels may hold anything, NaN included.
    mask : ndarray
        ``(H, W)``, True (or not zero) where the image is known, as white is in the mask of ``dip-fast run``.
        ``skimage.restoration.inpaint_biharmonic`` marks the unknown pixels instead: pass ``~mask`` of such a one.
    composite : bool
        Keep the known pixels as they are; otherwise the network draws them too.
    preset, iterations, stop, seed, device, engine, precision, channel_axis, callbacks
        As in `denoise`.

    Returns
    -------
    ndarray
        A new array of the image's shape and dtype, in the image's range.

    Raises
    ------
    ValueError
        As in `denoise`, and for a mask of another shape or without a known pixel.
    TypeError
        For an image of another dtype.

    References
    ----------
    D. Ulyanov, A. Vedaldi, V. Lempitsky, "Deep Image Prior", arXiv 1711.10925.

    Examples
    --------
    >>> import numpy as np
    >>> import dip_fast
    >>> ramp = np.tile(np.linspace(0, 1, 32), (32, 1))
    >>> known = np.ones((32, 32), bool)
    >>> known[10:14, 10:14] = False
    >>> filled = dip_fast.inpaint(ramp, known, iterations=3)
    >>> bool((filled[known] == ramp[known]).all())
    True
    """
    image = np.asarray(image)
    known = np.asarray(mask).astype(bool)
    shape = image.shape if channel_axis is None else np.moveaxis(image, channel_axis, -1).shape[:-1]
    if known.shape != shape:
        raise ValueError(f"mask must be {shape} as the image is, got {known.shape}")
    if not known.any():
        raise ValueError("mask must hold at least one known pixel, got none")
    spread = known if channel_axis is None else np.expand_dims(known, channel_axis)
    target, restore = _target(image, channel_axis, known=np.broadcast_to(spread, image.shape))
    degradation = Mask(target, torch.from_numpy(known)[None, None], composite=composite)
    result = restore(_fit(degradation, preset, iterations, stop, seed, device, engine, precision, callbacks))
    # The values themselves, since a float image passes through another range on its way.
    return np.where(spread, image, result) if composite else result


def _target(
    image: np.ndarray, channel_axis: int | None, known: np.ndarray | None = None
) -> tuple[torch.Tensor, Callable[[np.ndarray], np.ndarray]]:
    """Image as a target ``(1, C, H, W)`` in [0, 1], and the way back from ``(H, W, C)``."""
    image = np.asarray(image)
    if image.dtype not in (np.uint8, np.uint16, np.float16, np.float32, np.float64):
        raise TypeError(f"image must be uint8, uint16, float16, float32 or float64, got {image.dtype}")
    if image.ndim != (2 if channel_axis is None else 3):
        wanted = "(H, W)" if channel_axis is None else "three-dimensional with channel_axis"
        raise ValueError(f"image must be {wanted}, got {image.shape}; say channel_axis for a colour image")
    values = image if known is None else np.where(known, image, image[known].mean(dtype=np.float64)).astype(image.dtype)
    if not np.isfinite(values).all():
        raise ValueError(f"image must be finite, got {int((~np.isfinite(values)).sum())} NaN or infinite values")
    channels_last = values[..., None] if channel_axis is None else np.moveaxis(values, channel_axis, -1)
    if min(channels_last.shape[:2]) < SMALLEST_SIDE:
        raise ValueError(f"image must be at least {SMALLEST_SIDE}x{SMALLEST_SIDE}, got {channels_last.shape[:2]}")
    limits = value_range(values)

    def restore(result: np.ndarray) -> np.ndarray:
        samples = from_unit(result, limits, image.dtype)
        return samples[..., 0] if channel_axis is None else np.moveaxis(samples, -1, channel_axis)

    unit = to_unit(channels_last, limits)
    return torch.from_numpy(np.ascontiguousarray(unit.transpose(2, 0, 1)))[None], restore


def _fit(
    degradation: Degradation,
    preset: str | None,
    iterations: int | None,
    stop: Literal["auto", "never"] | None,
    seed: int,
    device: str,
    engine: str,
    precision: str,
    callbacks: Sequence[Callable[[Fit], None]],
) -> np.ndarray:
    """Fit a preset, changed as asked, and give the image ``(H, W, C)``."""
    where = devices.choose(device)
    name = presets.default(None, where.type) if preset is None else preset
    if name not in presets.PRESETS:
        raise ValueError(f"preset must be one of {', '.join(presets.PRESETS)}, got {name!r}")
    if iterations is not None and iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if stop not in ("auto", "never", None):
        raise ValueError(f"stop must be auto or never, got {stop!r}")
    recipe = presets.PRESETS[name].recipe
    options = recipe.options
    if stop is not None:
        options = replace(options, stop=stop)
    if iterations is not None:
        options = replace(options, iterations=iterations)
    changed = replace(recipe, options=options)
    return fit(
        degradation, changed, seed=seed, device=where, engine=engine, precision=precision, callbacks=callbacks
    ).image
