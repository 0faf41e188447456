"""What a preset costs and reaches, and what averaging and consolidation are worth.

    python benchmarks/presets.py PICTURE... [--presets quick] [--sigmas 25] [--halve] [--missing 0.5] [--iterations N]

Each picture is taken as clean.  Gaussian noise of sigma/255 is added with ``numpy.random.default_rng(0)`` and clipped;
with ``--missing`` a part of the pixels is taken away instead (``default_rng(1)``).  Columns, PSNR in dB: the damaged
picture, the network with averaged weights, the average of the iterates' pictures, and the result, which is the former
network fitted to the latter picture.  ``best`` is the step the answer comes from.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

from dip_fast.device.memory import keep_memory
from dip_fast.fitting import prepare
from dip_fast.fitting.degradations import Identity, Mask
from dip_fast.pictures import picture as pictures
from dip_fast.pictures.metrics import psnr
from dip_fast.presets import PRESETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=["quick"])
    parser.add_argument("--sigmas", nargs="+", type=float, default=[25.0])
    parser.add_argument("--halve", action="store_true", help="halve the pictures by area averaging first")
    parser.add_argument("--missing", type=float, help="part of the pixels to take away")
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    keep_memory()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("| picture | damage | preset | damaged | weights | pictures | result | best | steps | seconds |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for path in options.pictures:
        clean = pictures.read_picture(path).image
        if options.halve:
            size = (clean.shape[1] // 2, clean.shape[0] // 2)
            clean = cv2.resize(clean, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], -1)
        for sigma in options.sigmas if options.missing is None else [0.0]:
            for preset in options.presets:
                row = measure(clean, sigma, preset, options)
                damage = f"sigma {sigma:g}" if options.missing is None else f"{options.missing:.0%} missing"
                print(f"| {path.stem} | {damage} | {preset} | {row} |", flush=True)


def measure(clean: np.ndarray, sigma: float, preset: str, options: argparse.Namespace) -> str:
    recipe = PRESETS[preset].recipe
    if options.iterations:
        recipe = replace(recipe, options=replace(recipe.options, iterations=options.iterations))
    noisy = clean + np.random.default_rng(0).normal(0, sigma / 255, clean.shape)
    damaged = np.clip(noisy, 0, 1).astype(np.float32)
    degradation = Identity(tensor(damaged))
    if options.missing is not None:
        known = np.random.default_rng(1).random(clean.shape[:2]) >= options.missing
        damaged = damaged * known[..., None]
        degradation = Mask(tensor(damaged), torch.from_numpy(known)[None, None])
    run = prepare(degradation, recipe, seed=options.seed, engine=options.engine)
    while not run.stop_reason:
        run.step()
    weights = psnr(image(run.draw()), clean)
    averaged = psnr(image(degradation.composite(run._averaged()[-1])), clean)
    run.run()
    result = run.result()
    figures = (psnr(damaged, clean), weights, averaged, psnr(result.image, clean))
    return " | ".join(
        [*(f"{figure:.2f}" for figure in figures), f"{result.best_step} | {result.steps} | {result.seconds:.0f}"]
    )


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))[None]


def image(batch: torch.Tensor) -> np.ndarray:
    return batch[0].permute(1, 2, 0).numpy()


if __name__ == "__main__":
    main()
