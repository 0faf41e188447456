"""How well pictures are reconstructed from few views, beside filtered back-projection and deepinv's Deep Image Prior.

    python benchmarks/tomography.py --check
    python benchmarks/tomography.py --pictures phantom --views 60 --presets quick paper

``phantom`` is that of Shepp and Logan, ``camera`` a photograph, both of scikit-image, reduced to ``--size`` pixels;
what lies outside of the circle in the middle, which all rays see, is 0 and is not compared.  What is measured are the
sums along rays that ``skimage.transform.radon`` makes from ``--views`` directions, with Gaussian noise of ``--noise``
times their largest on them.

- ``dip_fast.fit`` fits `Rays`, the same sums in torch, and knows that the picture lies within 0 and 1.
- Filtered back-projection is ``skimage.transform.iradon`` with the filter that is best for the true picture.
- deepinv's Deep Image Prior is its own network and learning rate, fitted to the same rays in as many steps as take the
  seconds that ``dip_fast.fit`` took with the first preset.  It is left out where deepinv is missing:
  ``pip install --no-deps -r requirements/deepinv.txt``.

PSNR is in dB at data range 1.  ``--check`` exits with 1 and names the bars that are missed: at least 3 dB over filtered
back-projection, and at least what deepinv's reaches.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
import warnings
from dataclasses import asdict
from typing import Any

import common
import numpy as np
import torch
from figures import machine, measured_commit, typed
from torch import Tensor

import dip_fast
from dip_fast.figures import Measurement
from dip_fast.presets import PRESETS

Row = dict[str, Any]
GAIN = 3.0  # dB over filtered back-projection
FILTERS = ("ramp", "shepp-logan", "cosine", "hamming", "hann")
TIMED_STEPS = 3  # of deepinv's fit, after as many that are not timed
BACK_PROJECTION, DEEPINV = "filtered back-projection", "deepinv DIP"


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--pictures", nargs="+", choices=["phantom", "camera"], default=["phantom", "camera"])
    parser.add_argument("--size", type=int, default=128, help="in pixels")
    parser.add_argument("--views", type=int, default=30)
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation, as a part of the largest sum")
    presets = [name for name, preset in PRESETS.items() if preset.recipe.masking is None]
    parser.add_argument("--presets", nargs="+", choices=presets, default=["quick"])
    parser.add_argument("--iterations", type=int, help="the preset's unless given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--without-deepinv", action="store_true")
    parser.add_argument("--check", action="store_true", help="compare with the bars")
    parser.add_argument("--json", action="store_true", help="print the rows with their source in place of a table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [measure(picture, options) for picture in options.pictures]
    if options.json:
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        facts = (date, measured_commit(), machine(options.threads), typed("benchmarks/tomography.py", *sys.argv[1:]))
        common.print_json(asdict(Measurement("tomography", *facts, rows)))
    else:
        print(table(rows))
    if options.check:
        results = check(rows)
        for line, met in results:
            print(f"{'met' if met else 'MISSED'}: {line}", file=sys.stderr)
        sys.exit(0 if all(met for _, met in results) else 1)


# --- what is measured ---------------------------------------------------------------------------------------------


class Rays(torch.nn.Module):
    """Sums along rays, as ``skimage.transform.radon`` makes them: ``(1, 1, N, N)`` to ``(N, views)``.

    Parameters
    ----------
    size : int
        N: sides of the picture, in pixels.
    degrees : ndarray
        Directions.
    """

    places: Tensor

    def __init__(self, size: int, degrees: np.ndarray) -> None:
        super().__init__()
        angles = np.deg2rad(degrees)[:, None, None]
        rows, columns = np.mgrid[:size, :size] - size // 2  # scikit-image turns about this pixel
        turned = np.stack(
            (np.cos(angles) * columns + np.sin(angles) * rows, np.cos(angles) * rows - np.sin(angles) * columns), -1
        )
        # From pixels to what grid_sample reads with align_corners=True: -1 and 1 are the first and the last.
        places = 2 * (turned + size // 2) / (size - 1) - 1
        self.register_buffer("places", torch.from_numpy(places).float())

    def forward(self, x: Tensor) -> Tensor:
        """Turn the picture against each direction, and sum up its rows."""
        turned = torch.nn.functional.grid_sample(
            x.expand(len(self.places), -1, -1, -1), self.places, align_corners=True
        )
        return turned[:, 0].sum(1).T


def true_picture(name: str, size: int) -> np.ndarray:
    """Return a picture of scikit-image, float32 ``(N, N)`` in [0, 1], with zeros outside of the circle."""
    from skimage import data, transform

    image = data.shepp_logan_phantom() if name == "phantom" else data.camera() / 255
    small = transform.resize(image, (size, size), anti_aliasing=True)
    return np.where(circle(size), small, 0).clip(0, 1).astype(np.float32)


def circle(size: int) -> np.ndarray:
    """Mark the pixels that all rays see."""
    rows, columns = np.mgrid[:size, :size] - size // 2
    return np.asarray(rows**2 + columns**2 < (size // 2) ** 2)


def psnr(image: np.ndarray, truth: np.ndarray) -> float:
    """Compare an image with the true one, within the circle."""
    inside = circle(len(truth))
    return float(-10 * np.log10(np.square(np.clip(image, 0, 1) - truth)[inside].mean(dtype=np.float64)))


# --- measuring ----------------------------------------------------------------------------------------------------


def measure(picture: str, options: argparse.Namespace) -> Row:
    """Reconstruct a picture by all methods: a row."""
    from skimage.transform import radon

    truth = true_picture(picture, options.size)
    degrees = np.linspace(0, 180, options.views, endpoint=False)
    sums = radon(truth, theta=degrees)
    sums = sums + np.random.default_rng(options.seed).normal(0, options.noise * sums.max(), sums.shape)
    rays = Rays(options.size, degrees)
    row: Row = {"picture": picture, "size": options.size, "views": options.views, "noise": options.noise}
    row["presets"] = {preset: by_dip_fast(rays, sums, truth, preset, options) for preset in options.presets}
    row["others"] = {BACK_PROJECTION: back_projected(sums, truth, degrees)}
    if not options.without_deepinv and (deepinv := find_deepinv()) is not None:
        seconds = row["presets"][options.presets[0]]["seconds"]
        row["others"][DEEPINV] = by_deepinv(deepinv, rays, sums, truth, seconds, options)
    return row


def by_dip_fast(rays: Rays, sums: np.ndarray, truth: np.ndarray, preset: str, options: argparse.Namespace) -> Row:
    """Fit as a user does."""
    result = dip_fast.fit(
        rays, sums, shape=truth.shape, limits=(0, 1), preset=preset, iterations=options.iterations, seed=options.seed,
        device=options.device, noise=float(options.noise * sums.max()),
    )  # fmt: skip
    found = psnr(result.tensor[0, 0].numpy(), truth)
    return {"psnr": round(found, 3), "seconds": round(result.seconds, 2), "steps": result.steps}


def back_projected(sums: np.ndarray, truth: np.ndarray, degrees: np.ndarray) -> Row:
    """Project back with the filter that is best for the true picture."""
    from skimage.transform import iradon

    found = {name: psnr(iradon(sums, theta=degrees, filter_name=name), truth) for name in FILTERS}
    best = max(found, key=lambda name: found[name])
    return {"psnr": round(found[best], 3), "filter": best}


def find_deepinv() -> Any:
    """Import deepinv; None where it is missing, which is said."""
    import importlib

    from other_models import declare_torchvision_operators

    declare_torchvision_operators()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("deepinv")
    except (ImportError, RuntimeError) as error:  # the latter where torchvision does not go with torch
        print(f"deepinv is left out: {error}; pip install --no-deps -r requirements/deepinv.txt", file=sys.stderr)
        return None


def by_deepinv(
    deepinv: Any, rays: Rays, sums: np.ndarray, truth: np.ndarray, seconds: float, options: argparse.Namespace
) -> Row:
    """Fit deepinv's own network by its own loop, in as many steps as take so many seconds."""
    size, device = options.size, torch.device(options.device)
    rays = rays.to(device)
    # Its loss has the unit of y: sums become means along the rays, which are of the size of x.
    physics = deepinv.physics.Physics(A=lambda x, **_: rays(x)[None, None] / size)
    y = torch.from_numpy(sums).float().to(device)[None, None] / size

    def fitted(steps: int) -> tuple[Tensor, float]:
        torch.manual_seed(options.seed)
        network = deepinv.models.ConvDecoder(img_size=(1, size, size)).to(device)
        model = deepinv.models.DeepImagePrior(network, img_size=(256, 4, 4), iterations=steps)
        begin = time.perf_counter()
        x = model(y, physics).detach().cpu()  # which waits for a GPU
        return x, time.perf_counter() - begin

    fitted(TIMED_STEPS)
    step = fitted(TIMED_STEPS)[1] / TIMED_STEPS
    steps = max(1, round(seconds / step))
    x, taken = fitted(steps)
    return {"psnr": round(psnr(x[0, 0].numpy(), truth), 3), "seconds": round(taken, 2), "steps": steps}


def table(rows: list[Row]) -> str:
    """Write the rows."""
    others = list(dict.fromkeys(name for row in rows for name in row["others"]))
    presets = list(rows[0]["presets"])

    def cell(found: Row | None) -> str:
        if found is None:
            return "-"
        extra = f" ({found['seconds']:.0f} s)" if "seconds" in found else f" ({found['filter']})"
        return f"{found['psnr']:.2f}{extra}"

    lines = [
        [
            f"{row['picture']} {row['size']}x{row['size']}, {row['views']} views",
            *(cell(row["others"].get(name)) for name in others),
            *(cell(row["presets"][name]) for name in presets),
        ]
        for row in rows
    ]
    return common.markdown(["picture", *others, *(f"`{name}`" for name in presets)], lines)


# --- bars ---------------------------------------------------------------------------------------------------------


def check(rows: list[Row]) -> list[tuple[str, bool]]:
    """Compare rows with the bars: a line each, and whether it is met."""
    results = []
    for row in rows:
        for preset, found in row["presets"].items():
            for name, least in ((BACK_PROJECTION, GAIN), (DEEPINV, 0.0)):
                if name in row["others"]:
                    gain = round(found["psnr"] - row["others"][name]["psnr"], 3)
                    line = f"{preset}, {row['picture']}: {gain:+.2f} dB over {name}, at least {least:g}"
                    results.append((line, gain >= least))
    return results


if __name__ == "__main__":
    main()
