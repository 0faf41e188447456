"""Functions on arrays, in the manner of scikit-image."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dip_fast.device.modes import fresh_state
from dip_fast.errors import Argument, UsageError
from dip_fast.fitting import Fit, Result
from dip_fast.fitting.callbacks import shown
from dip_fast.fitting.results import Restored
from dip_fast.pictures.layout import Layout
from dip_fast.pictures.ranges import filled, find
from dip_fast.pictures.samples import as_samples, from_unit, to_unit
from dip_fast.presets import Preset, Recipe
from dip_fast.runs.job import Job, complete, settled, start
from dip_fast.runs.tiled import plan
from dip_fast.runs.tiled.plan import decided
from dip_fast.tasks import TASKS, Data
from dip_fast.tasks.inpaint import doubts


def denoise(
    image: np.ndarray,
    *,
    noise: str | float | tuple[float, float] = "auto",
    guide: np.ndarray | None = None,
    preset: str | Preset | Recipe | None = None,
    iterations: int | None = None,
    stop: str | None = None,
    tile: int | str = "auto",
    seed: int = 0,
    device: str = "auto",
    engine: str = "auto",
    precision: str = "tf32",
    channel_axis: int | None = None,
    frames_axis: int | None = None,
    callbacks: Sequence[Callable[[Fit], None]] = (),
    progress: bool = False,
    return_result: bool = False,
) -> np.ndarray | Any:
    """Denoise an image with a network that is fitted to it alone.

    Parameters
    ----------
    image : ndarray
        ``(H, W)``, or with ``channel_axis`` ``(H, W, C)`` in any order; at least 16x16.  Floats of 16, 32 or 64 bits,
        integers or truth values, in any byte order (see Notes).
    noise : {"auto", "poisson"} or float or tuple of float
        What is known of the noise, whose samples must not depend on each other.  ``"auto"`` measures it in the image,
        and ``"poisson"`` measures a variance that is proportional to the true value.  A number is the standard
        deviation, in 1/255 of the image's range; ``(a, b)`` stands for a variance of ``a + b x`` at the true value x,
        in units of the range.
    guide : ndarray, optional
        What another denoiser made of the same image, of its shape and in its range: it is mixed into the answer as far
        as it is worth, see `dip_fast.fitting.guide.mix`.
    preset : str, Preset or Recipe, optional
        A name of ``dip_fast.presets.PRESETS``, or what `with_` makes of one; ``"default"`` by default.
    iterations : int, optional
        Most steps; the preset's by default.
    stop : {"auto", "never"}, optional
        Whether the moving variance of the iterates may end the fit and choose the answer; the preset's by default.
        Only presets whose fit begins with a random input have iterates.
    tile : int or {"auto", "never"}
        Side in pixels, 64 at least, of tiles with a network each that an image is restored in, and blended, where the
        fit begins with a random input; ``"auto"`` does so, in the largest tiles that fit, where memory is too small for
        the whole, which ``"never"`` refuses.  There is no ``return_result`` of tiles.
    seed : int
        The same seed gives the same bits, on the same machine with the same number of threads.
    device : {"auto", "cpu", "cuda"}
        ``auto`` is the GPU where there is a usable one.
    engine : {"auto", "fused", "plain"}
        How the network is computed; ``auto`` is fused where the network has a fused form.  The two differ in rounding
        only.
    precision : {"tf32", "fp32", "bf16"}
        Precision of the products on a GPU; ``bf16`` also halves the memory of the network's images.  A CPU computes in
        float32; in the fused engine ``bf16`` halves the memory of images there too, and rounds the factors of products
        where the CPU multiplies these faster (AVX-512 with BF16), with sums in float32.
    channel_axis : int, optional
        Axis of the channels; None for a gray image.
    frames_axis : int, optional
        Axis of several images of one kind and size, such as the frames of a scene, the planes of a stack or tiles: one
        network is fitted to all of them, and restores each from its own samples.  The preset must be one of the masked
        objective, as the default is.
    callbacks : sequence of callable
        Called with the `Fit` after each step, or less often, see `Fit.run`; ``fit.interrupt()`` ends it, with the best
        answer so far.
    progress : bool
        Whether to show a bar, on a terminal or in a notebook.
    return_result : bool
        Whether to return a `Restored`: the array as its ``image``, with what is known of it.

    Returns
    -------
    ndarray, or Restored
        A new array of the image's shape and dtype, in the image's range; integers are rounded and clipped.

    Raises
    ------
    ValueError
        For an image of another shape or too small, or with NaN or infinite values.  As a `UsageError`: for an unknown
        preset, engine or precision, for one of these or a device that is not available here, for noise that is none of
        the above, and for an image that is too large for the memory.
    TypeError
        For an image of another dtype.

    Notes
    -----
    The presets ``fast``, ``default`` and ``best`` hide samples of the image and train an untrained network to predict
    them.  The mean of its predictions is combined with the noisy samples by their errors, and the network is fitted to
    draw the combination (`dip_fast.fitting.MaskedPrediction`).  The others minimise ``||f(z) - image||^2`` over the
    weights of a network f at a fixed random z, and take the averaged network as the answer.

    The network computes with values from 0 to 1, which stand for: 0 and 255 in uint8; 0 and the smallest ``2**k - 1``
    that is needed, 255 at least, in other integers, of which none is negative, and which fill an eighth of it; 0 and 1
    in a float image within these that reaches 0.25; and its minimum and maximum otherwise.
    The range of the image is the distance of these two.
    But for 8-bit images, samples so far outside the range of the others that these would be left less than an eighth of
    it, such as hot pixels and lamps, do not count, and are returned as they are; and where a channel has less than a
    sixteenth of the range of all, each channel has its own.  A constant channel is returned as it is.

    References
    ----------
    J. Batson, L. Royer, "Noise2Self", arXiv 1901.11365.

    D. Ulyanov, A. Vedaldi, V. Lempitsky, "Deep Image Prior", arXiv 1711.10925.

    Examples
    --------
    >>> import numpy as np
    >>> import dip_fast
    >>> noisy = np.random.default_rng(0).normal(0.5, 0.1, (32, 32)).clip(0, 1)
    >>> dip_fast.denoise(noisy, noise=25, iterations=3).shape
    (32, 32)
    """
    layout, inputs = Layout(channel_axis, frames_axis), {}
    if guide is not None:
        if np.shape(guide) != np.shape(image):
            raise ValueError(f"guide must have the shape of the image, {np.shape(image)}, got {np.shape(guide)}")
        inputs["guide"] = layout.channels_last(guide)
    return restore(
        "denoise",
        image,
        inputs,
        layout,
        callbacks,
        noise=_as_option(noise),
        preset=preset,
        iterations=iterations,
        stop=stop,
        tile=tile,
        seed=seed,
        device=device,
        engine=engine,
        precision=precision,
        progress=progress,
        return_result=return_result,
    )


def inpaint(
    image: np.ndarray,
    mask: np.ndarray | str | None = None,
    *,
    composite: bool = True,
    preset: str | Preset | Recipe | None = None,
    iterations: int | None = None,
    stop: str | None = None,
    tile: int | str = "auto",
    seed: int = 0,
    device: str = "auto",
    engine: str = "auto",
    precision: str = "tf32",
    channel_axis: int | None = None,
    callbacks: Sequence[Callable[[Fit], None]] = (),
    progress: bool = False,
    return_result: bool = False,
) -> np.ndarray | Any:
    """Fill in the unknown pixels of an image with a network that is fitted to the known ones alone.

    Parameters
    ----------
    image : ndarray
        As in `denoise`; unknown pixels may hold anything, NaN included.
    mask : ndarray or "nan", optional
        ``(H, W)``, True where the image is known, as white is in the mask of ``dip-fast run``; or of two numbers, of
        which 0 stands for unknown.  A mask of more, as a photograph of one has, is to be cut first: ``mask >= 128``.
        ``skimage.restoration.inpaint_biharmonic`` marks the unknown pixels instead: pass ``~mask`` of such a one.
        Without a mask, or with ``"nan"``, pixels with a NaN or an infinite value are the unknown ones.
    composite : bool
        Keep the known pixels as they are; otherwise the network draws them too.
    preset : str, Preset or Recipe, optional
        As in `denoise`.  By default ``"default"`` where no hole is large, which learns from known pixels that it hides
        how they are filled, and ``"outline"`` where one is, which fills it with copies of known patches.  Where the
        known pixels are not kept, ``"quick"`` on a CPU and ``"paper"`` on a GPU.
    iterations, stop, tile, seed, device, engine, precision, channel_axis, callbacks, progress, return_result
        As in `denoise`.

    Returns
    -------
    ndarray
        A new array of the image's shape and dtype, in the image's range.

    Raises
    ------
    ValueError
        As in `denoise`, and for a mask of another shape, without a known pixel, or without an unknown one.
    TypeError
        For an image of another dtype.

    Warns
    -----
    UserWarning
        If the mask leaves more than half of the image unknown, as one that marks the unknown pixels does.

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
    if mask is None or (isinstance(mask, str) and mask == "nan"):
        mask = "nan"
    else:
        mask = np.asarray(mask)
        for doubt in doubts(mask.astype(bool)):
            warnings.warn(doubt, stacklevel=2)
    return restore(
        "inpaint",
        image,
        {"mask": mask},
        Layout(channel_axis),
        callbacks,
        composite=composite,
        preset=preset,
        iterations=iterations,
        stop=stop,
        tile=tile,
        seed=seed,
        device=device,
        engine=engine,
        precision=precision,
        progress=progress,
        return_result=return_result,
    )


def _as_option(noise: str | float | tuple[float, float]) -> str:
    """Write the noise as the option of the task has it."""
    if isinstance(noise, str):
        return noise
    try:
        return ",".join(repr(float(number)) for number in np.ravel(noise))
    except (TypeError, ValueError):
        return repr(noise)  # which the task refuses


@fresh_state()
def restore(
    task_name: str,
    image: np.ndarray,
    inputs: Mapping[str, np.ndarray | str],
    layout: Layout,
    callbacks: Sequence[Callable[[Fit], None]],
    *,
    progress: bool = False,
    return_result: bool = False,
    **asked: Any,
) -> np.ndarray | Restored:
    """Restore an array as the command line restores a file: the same checks, the same job, the same fit."""
    job = complete({"task": task_name, **asked}, inputs)
    task = TASKS[job.task]
    channels_last = layout.channels_last(image)
    raw = Data(channels_last)
    data = replace(raw, inputs={name: task.read(name, source, raw, job.options) for name, source in inputs.items()})
    job = settled(job, {"task": task_name, **asked}, inputs, data)
    known = task.known(data)
    given = channels_last
    if known is not None:  # what is unknown may be NaN, or hold values that would widen the range
        mean = channels_last[known].mean(dtype=np.float64)
        given = np.where(known[..., None], channels_last, mean).astype(channels_last.dtype)
    given = as_samples(given)
    if not np.isfinite(given).all():
        raise ValueError(f"image must be finite, got {int((~np.isfinite(given)).sum())} NaN or infinite values")
    found = find(given, None if known is None else ~known, outliers="outliers" in task.aside)
    unit = to_unit(given, found.limits)
    if found.outliers is not None:
        unit = filled(unit, found.outliers)
    estimates = {entry.name for entry in task.inputs if entry.is_estimate} & data.inputs.keys()
    scaled = {name: to_unit(as_samples(data.inputs[name]), found.limits) for name in estimates}
    data = replace(data, image=unit, inputs={**data.inputs, **scaled}, aside=found.outliers)
    job = decided(job, unit.shape[-1], (unit.shape[-3], unit.shape[-2]))
    result = fitted(job, data, callbacks, progress=progress, return_result=return_result)
    images = result.image if result.images is None else result.images
    images = images.reshape(*channels_last.shape[:-3], *result.image.shape)
    samples = from_unit(images, found.limits_of_result, given.dtype)
    for kept in (None if result.kept is None else result.kept[0], found.outliers):
        if kept is not None:
            # The values themselves: a float image passes through another range on its way.
            samples = np.where(kept, channels_last, samples)
    restored = layout.as_given(samples.astype(channels_last.dtype, copy=False))
    return Restored(restored, data.image, result) if isinstance(result, Result) and return_result else restored


def fitted(
    job: Job,
    data: Data,
    callbacks: Sequence[Callable[[Fit], None]],
    *,
    progress: bool = False,
    return_result: bool = False,
) -> Result | plan.Blended:
    """Fit a network as a job says, whose tiles are decided on, or one to each of these."""
    if job.tile != "never":
        if return_result:
            raise UsageError(
                "{}: the tiles of {} have a network each; leave it out, or pass tile='never'",
                *(Argument("return_result", True), Argument("tile", job.tile)),
            )
        return plan.restored(job, data, callbacks, progress=progress)
    run = start(job, data)
    with shown(run, callbacks, progress) as called:
        run.run(called)
    return run.result()
