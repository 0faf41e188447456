"""Damaged pictures of benchmarks/inverse.py, and what classical methods make of them."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import common
import numpy as np
import tifffile
from PIL import Image

LUMA = np.array([65.481, 128.553, 24.966]) / 255
BALANCES = np.logspace(-5, 0, 21)  # of Wiener's filter
SCRATCHED = 0.1  # of the pixels
ROUNDS = (2, 5, 10, 20, 40, 80, 160)  # of Richardson and Lucy's


@dataclass(frozen=True, eq=False)
class Case:
    """A damaged picture, what it was, and what it is compared with.

    Attributes
    ----------
    group : str
        Of the pictures that share a bar.
    picture : str
        Its name.
    file : bytes
        The damaged picture's.
    suffix : str
        Of the file.
    arguments : list of str
        Of ``dip-fast run``.
    clean : ndarray
        ``(H, W, C)``, in [0, 1].
    others : dict of str to ndarray
        What classical methods make of it.
    edge : int
        Pixels at each edge that are left out of the comparison in brightness; 0 for all pixels and channels.
    mask : bytes, optional
        The file of a mask.
    """

    group: str
    picture: str
    file: bytes
    suffix: str
    arguments: list[str]
    clean: np.ndarray
    others: dict[str, np.ndarray]
    edge: int = 0
    mask: bytes | None = None

    def psnr(self, image: np.ndarray) -> float:
        """Compare an image with what the picture was."""
        from dip_fast.pictures.metrics import psnr

        image, clean = np.clip(image, 0, 1), self.clean
        if self.edge:
            inner = slice(self.edge, -self.edge)
            image, clean = (brightness(values)[inner, inner] for values in (image, clean))
        return psnr(image, clean)


def chosen_cases(options: argparse.Namespace) -> Iterator[Case]:
    """Damage the pictures."""
    if options.superres is not None:
        for small in sorted(options.superres.glob(f"*_x{options.scale}.png")):
            yield reduced(small, options.scale)
    for path in options.deblur:
        yield blurred(path.stem, clean_picture(path, options), options.blur, options.sigma)
    for path in options.jpeg:
        yield compressed(path.stem, clean_picture(path, options), options.quality)
    for path in options.inpaint:
        clean = clean_picture(path, options)
        known = np.random.default_rng(0).random(clean.shape[:2]) >= options.missing
        yield holed(f"{options.missing:.0%} missing", path.stem, clean, known, "diffusion", diffused)
    for path in options.scratches:
        clean = clean_picture(path, options)
        yield holed(
            "scratches", path.stem, clean, unscratched(clean.shape[0], clean.shape[1]), "biharmonic", biharmonic
        )


def clean_picture(path: Path, options: argparse.Namespace) -> np.ndarray:
    """Read a clean picture."""
    clean = common.read_image(path)
    return common.halved(clean) if options.halve else clean


def reduced(small: Path, scale: int) -> Case:
    """Make the case of a reduced picture; what its large one has beyond a multiple of the scale is left out."""
    from dip_fast.guides.bicubic import enlarge

    name = small.stem.removesuffix(f"_x{scale}")
    image, large = common.read_image(small), common.read_image(small.with_name(f"{name}.png"))
    height, width = (scale * side for side in image.shape[:2])
    arguments = ["--task", "superres", "--scale", str(scale)]
    others = {"bicubic": enlarge(image, scale)}
    group = f"{name.partition('_')[0]} x{scale}"
    return Case(group, name, small.read_bytes(), ".png", arguments, large[:height, :width], others, edge=scale)


def reduction(clean: np.ndarray, scale: int) -> np.ndarray:
    """Reduce a picture by the task's own kernel, continued as in a mirror."""
    import torch

    from dip_fast.fitting import Convolution
    from dip_fast.tasks.kernels import of_reduction
    from dip_fast.tasks.task import as_target

    height, width = (side // scale for side in clean.shape[:2])
    small = as_target(np.zeros((height, width, clean.shape[2]), np.float32))
    problem = Convolution(small, torch.from_numpy(of_reduction("bicubic", scale)), scale)
    rows, columns = problem.border
    wide = np.pad(clean, ((rows, rows), (columns, columns), (0, 0)), mode="symmetric").astype(np.float32)
    found: np.ndarray = problem.apply(as_target(wide))[0].permute(1, 2, 0).numpy()
    return found


def decoded(case: Case) -> np.ndarray:
    """Read the damaged picture of a case, of the size of its result."""
    if case.suffix == ".tif":
        return tifffile.imread(io.BytesIO(case.file)).reshape(case.clean.shape)
    with Image.open(io.BytesIO(case.file)) as picture:
        return np.asarray(picture, np.float32).reshape(case.clean.shape) / 255


def blurred(name: str, clean: np.ndarray, deviation: float, sigma: float) -> Case:
    """Blur a picture, of which the part remains that no edge has touched, and add noise."""
    import torch

    from dip_fast.fitting import Convolution
    from dip_fast.tasks.kernels import gaussian
    from dip_fast.tasks.task import as_target

    kernel = gaussian(deviation)
    reach = kernel.shape[0] // 2
    inner = clean[reach:-reach, reach:-reach]
    problem = Convolution(as_target(inner), torch.from_numpy(kernel))
    picture = problem.apply(as_target(clean))[0].permute(1, 2, 0).numpy()
    picture = picture + np.random.default_rng(0).normal(0, sigma / 255, inner.shape)
    picture = picture.clip(0, 1).astype(np.float32)
    file = io.BytesIO()
    gray = picture.shape[2] == 1
    tifffile.imwrite(file, picture[..., 0] if gray else picture, photometric="minisblack" if gray else "rgb")
    arguments = ["--task", "deblur", "--kernel", f"gaussian:{deviation:g}"]
    others = {"Wiener": wiener(picture, kernel, inner), "Richardson-Lucy": richardson_lucy(picture, kernel, inner)}
    return Case(f"blur {deviation:g}, sigma {sigma:g}", name, file.getvalue(), ".tif", arguments, inner, others)


def compressed(name: str, clean: np.ndarray, quality: int) -> Case:
    """Compress a picture."""
    file = io.BytesIO()
    Image.fromarray(np.rint(255 * clean).astype(np.uint8).squeeze()).save(file, "JPEG", quality=quality)
    case = Case(f"JPEG quality {quality}", name, file.getvalue(), ".jpg", ["--task", "jpeg"], clean, {})
    return replace(case, others={"decoded": decoded(case)})


def holed(
    group: str,
    name: str,
    clean: np.ndarray,
    known: np.ndarray,
    method: str,
    fill: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Case:
    """Blank the pixels that are not known, and fill them in by a classical method."""
    from dip_fast.pictures import raster

    picture = np.where(known[..., None], clean, 0).astype(np.float32)
    file, mask = (
        raster.encode_png(np.rint(255 * picture).astype(np.uint8)),
        raster.encode_png(255 * known[..., None].astype(np.uint8)),
    )
    others = {method: fill(picture, known)}
    return Case(group, name, file, ".png", ["--task", "inpaint"], clean, others, mask=mask)


def unscratched(height: int, width: int) -> np.ndarray:
    """Draw lines over a picture until a tenth of it is covered: bool, True where it is not."""
    import cv2

    drawn, numbers = np.zeros((height, width), np.uint8), np.random.default_rng(0)
    while drawn.mean() < SCRATCHED:
        first, last = ([int(numbers.integers(side)) for side in (width, height)] for _ in range(2))
        cv2.line(drawn, first, last, color=(1,), thickness=int(numbers.integers(1, 4)))
    return drawn == 0


def diffused(picture: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fill in by diffusion from the known pixels."""
    from dip_fast.guides.diffusion import fill

    return fill(picture, known)


def biharmonic(picture: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fill in by scikit-image's biharmonic equation."""
    from skimage.restoration import inpaint_biharmonic

    return inpaint_biharmonic(picture, ~known, channel_axis=-1)


def wiener(picture: np.ndarray, kernel: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Filter by Wiener's filter of scikit-image, at the balance that is best for the clean picture."""
    from skimage import restoration

    return best(picture, kernel, clean, [partial(restoration.wiener, balance=b, clip=False) for b in BALANCES])


def richardson_lucy(picture: np.ndarray, kernel: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Restore by Richardson and Lucy's method of scikit-image, with the rounds that are best for the clean picture."""
    from skimage import restoration

    return best(picture, kernel, clean, [partial(restoration.richardson_lucy, num_iter=n) for n in ROUNDS])


def best(
    picture: np.ndarray, kernel: np.ndarray, clean: np.ndarray, methods: list[Callable[..., np.ndarray]]
) -> np.ndarray:
    """Choose the method that gives the least error, each on the picture continued as in a mirror."""
    rim = 2 * max(kernel.shape)
    wide = np.pad(picture.astype(np.float64), ((rim, rim), (rim, rim), (0, 0)), mode="symmetric")
    found = [
        np.stack([method(plane, kernel) for plane in np.moveaxis(wide, 2, 0)], axis=2)[rim:-rim, rim:-rim].clip(0, 1)
        for method in methods
    ]
    return min(found, key=lambda image: float(np.square(image - clean).mean()))


def brightness(image: np.ndarray) -> np.ndarray:
    """Convert to Y of BT.601, ``(H, W)``, in [16, 235] / 255."""
    return 16 / 255 + image @ (LUMA if image.shape[2] == 3 else np.array([219 / 255]))
