"""Functions on arrays and files that undo what happened to a picture: a reduction in size, a blur, compression.

`guided` also draws from another picture of the same scene.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dip_fast.api import fitted, restore
from dip_fast.device.modes import fresh_state
from dip_fast.errors import UsageError
from dip_fast.fitting import Fit
from dip_fast.fitting.results import Restored, Result
from dip_fast.pictures import read_picture
from dip_fast.pictures.layout import Layout
from dip_fast.presets import Preset, Recipe
from dip_fast.runs.job import complete
from dip_fast.runs.tiled.plan import decided
from dip_fast.tasks import Data


def superres(
    image: np.ndarray,
    scale: int = 2,
    *,
    kernel: np.ndarray | str = "bicubic",
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
    """Enlarge an image that was reduced in size, with a network that is fitted to it alone.

    Parameters
    ----------
    image : ndarray
        As in `denoise`.
    scale : int
        How many times larger the sides of the result are, from 2 to 8.
    kernel : ndarray or str
        How the image was reduced.  ``"bicubic"``, ``"lanczos"`` or ``"box"``: the function that the program widened by
        the scale.  Otherwise the blur, in pixels of the result, before each so many were left out: as in `deblur`, with
        its middle in that of the block that a pixel of the image stands for.
    preset : str, Preset or Recipe, optional
        As in `inpaint`.
    stop : {"auto", "never"}, optional
        As in `denoise`; ``"never"`` by default.
    iterations, tile, seed, device, engine, precision, channel_axis, callbacks, progress, return_result
        As in `denoise`.

    Returns
    -------
    ndarray
        A new array, ``scale`` times as high and as wide, of the image's dtype, in the image's range.

    Raises
    ------
    ValueError
        As in `denoise`, and for another scale or a kernel that is not as above.
    TypeError
        For an image of another dtype.

    Notes
    -----
    Minimises ``||(k * f(z))[::s, ::s] - image||^2`` over the weights of a network f at a fixed random z.  The network
    also draws a border of what lies beyond the edges, which the kernel reaches; see `dip_fast.fitting.Convolution`.

    References
    ----------
    D. Ulyanov, A. Vedaldi, V. Lempitsky, "Deep Image Prior", arXiv 1711.10925.

    Examples
    --------
    >>> import numpy as np
    >>> import dip_fast
    >>> ramp = np.tile(np.linspace(0, 1, 32), (24, 1))
    >>> dip_fast.superres(ramp, 2, iterations=3).shape
    (48, 64)
    """
    return restore(
        "superres",
        image,
        {"kernel": kernel if isinstance(kernel, str) else np.asarray(kernel)},
        Layout(channel_axis),
        callbacks,
        scale=scale,
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


def deblur(
    image: np.ndarray,
    kernel: np.ndarray | str,
    *,
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
    """Undo a known blur with a network that is fitted to the image alone.

    Parameters
    ----------
    image : ndarray
        As in `denoise`; it may be noisy.
    kernel : ndarray or str
        What the blur made of a single bright point, ``(h, w)``, with the point in its middle; it is divided by its sum.
        Or ``"gaussian:1.6"``, of a standard deviation in pixels; or ``"motion:15,30"``, a move by a length in pixels in
        a direction in degrees, counter-clockwise from the right.
    preset : str, Preset or Recipe, optional
        As in `inpaint`.
    iterations, stop, tile, seed, device, engine, precision, channel_axis, callbacks, progress, return_result
        As in `denoise`.

    Returns
    -------
    ndarray
        A new array of the image's shape and dtype, in the image's range.

    Raises
    ------
    ValueError
        As in `denoise`, and for a kernel that is not as above.
    TypeError
        For an image of another dtype.

    Notes
    -----
    Minimises ``||k * f(z) - image||^2`` over the weights of a network f at a fixed random z.  The image is a window of
    a larger scene, which the network draws: no guess of what lies beyond the edges comes in.

    References
    ----------
    D. Ulyanov, A. Vedaldi, V. Lempitsky, "Deep Image Prior", arXiv 1711.10925.

    Examples
    --------
    >>> import numpy as np
    >>> import dip_fast
    >>> ramp = np.tile(np.linspace(0, 1, 32), (24, 1))
    >>> dip_fast.deblur(ramp, "gaussian:1.6", iterations=3).shape
    (24, 32)
    """
    return restore(
        "deblur",
        image,
        {"kernel": kernel if isinstance(kernel, str) else np.asarray(kernel)},
        Layout(channel_axis),
        callbacks,
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


def guided(
    image: np.ndarray,
    guide: np.ndarray,
    scale: int = 1,
    *,
    kernel: np.ndarray | str | None = None,
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
    """Restore or enlarge an image with a network that draws it from another image of the same scene.

    Parameters
    ----------
    image : ndarray
        As in `denoise`: a picture taken without flash, a depth map, colours of fewer pixels.
    guide : ndarray
        What has the edges that the image lacks, such as the picture taken with flash: ``(H, W)``, or of three
        dimensions with any number of channels, on ``channel_axis`` where that is given and last where it is not.
        Finite numbers of any range, pixel on pixel with the result.
    scale : int
        How many times larger than the image the guide and the result are, from 1 to 16.
    kernel : ndarray or str, optional
        How the image was reduced, as in `superres`, bicubic by default; at a scale of 1 how it was blurred, as in
        `deblur`, not at all by default.
    preset : str, Preset or Recipe, optional
        As in `inpaint`; its learning rate, its steps and its perturbation are those of the task.
    stop : {"auto", "never"}, optional
        As in `denoise`; ``"never"`` by default where the scale is more than 1.
    iterations, tile, seed, device, engine, precision, channel_axis, callbacks, progress, return_result
        As in `denoise`.

    Returns
    -------
    ndarray
        A new array of the guide's height and width, with the channels, the dtype and the range of the image.

    Raises
    ------
    ValueError
        As in `denoise`, and for another scale or a guide that is not as above.
    TypeError
        For an image of another dtype.

    Notes
    -----
    Minimises ``||A(f(guide)) - image||^2`` over the weights of a network f, with A the reduction or blur.

    References
    ----------
    D. Ulyanov, A. Vedaldi, V. Lempitsky, "Deep Image Prior", arXiv 1711.10925.

    Examples
    --------
    >>> import numpy as np
    >>> import dip_fast
    >>> photo = np.tile(np.linspace(0, 1, 64), (48, 1))
    >>> depth = photo[::2, ::2].round(1)
    >>> dip_fast.guided(depth, photo, 2, iterations=3).shape
    (48, 64)
    """
    guide = np.asarray(guide)
    if channel_axis is not None and guide.ndim == 3:
        guide = np.moveaxis(guide, channel_axis, -1)
    inputs: dict[str, np.ndarray | str] = {"guide": guide}
    if kernel is not None:
        inputs["kernel"] = kernel if isinstance(kernel, str) else np.asarray(kernel)
    return restore(
        "guided",
        image,
        inputs,
        Layout(channel_axis),
        callbacks,
        scale=scale,
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


@fresh_state()
def dejpeg(
    file: str | os.PathLike[str] | bytes,
    *,
    preset: str | Preset | Recipe | None = None,
    iterations: int | None = None,
    stop: str | None = None,
    tile: int | str = "auto",
    seed: int = 0,
    device: str = "auto",
    engine: str = "auto",
    precision: str = "tf32",
    callbacks: Sequence[Callable[[Fit], None]] = (),
    progress: bool = False,
    return_result: bool = False,
) -> np.ndarray | Any:
    """Remove the artefacts of JPEG compression with a network that is fitted to the file alone.

    Parameters
    ----------
    file : str, os.PathLike or bytes
        A JPEG file, or its content: what was rounded, and how far, is not in the decoded array.
    preset : str, Preset or Recipe, optional
        As in `inpaint`.
    stop : {"auto", "never"}, optional
        As in `denoise`; ``"never"`` by default.
    iterations, tile, seed, device, engine, precision, callbacks, progress, return_result
        As in `denoise`.

    Returns
    -------
    ndarray
        uint8, ``(H, W, 3)``, or ``(H, W)`` of a gray file; upright, as its EXIF orientation asks.

    Raises
    ------
    UsageError
        For a file that cannot be read or is no ordinary JPEG file, and as in `denoise`.

    Notes
    -----
    The quantised coefficient k of a step q stands for the box from (k - 1/2) q to (k + 1/2) q.  Minimises
    ``||D f(z) - P(D f(z))||^2 + w TV(f(z))`` over the weights of a network f at a fixed random z, with D the block-wise
    cosine transform of brightness and reduced colour, P the projection onto the boxes, and the total variation TV with
    a small weight w.

    References
    ----------
    D. Ulyanov, A. Vedaldi, V. Lempitsky, "Deep Image Prior", arXiv 1711.10925.
    """
    if not isinstance(file, str | os.PathLike | bytes):
        raise UsageError(
            f"file must be a JPEG file or its content, got {type(file).__name__}, which does not say what was rounded"
        )
    asked = {"preset": preset, "iterations": iterations, "stop": stop, "tile": tile, "seed": seed}
    asked |= {"device": device, "engine": engine, "precision": precision}
    picture = read_picture(file, name="the file" if isinstance(file, bytes) else None)
    job = decided(complete({"task": "jpeg", **asked}), picture.channels, picture.size)
    data = Data(picture.image, picture=picture)
    result = fitted(job, data, callbacks, progress=progress, return_result=return_result)
    samples = picture.kind.to_samples(result.image)
    image = samples[..., 0] if picture.channels == 1 else samples
    return Restored(image, picture.image, result) if isinstance(result, Result) and return_result else image
