"""What a preset costs and reaches, and what averaging and consolidation are worth.

    python benchmarks/presets.py [PICTURE...] [--presets quick] [--sigmas 25] [--halve] [--missing 0.5] [--json]
    python benchmarks/presets.py --presets quick --timed paper hourglass decoder

Each picture, examples/clean.png by default, is taken as clean.  Gaussian noise of sigma/255 is added with
``numpy.random.default_rng(0)`` and clipped; with ``--missing`` a part of the pixels is removed instead
(``default_rng(1)``).  Columns, PSNR in dB: the damaged picture, the network with averaged weights, the average of the
iterates where steps draw iterates, and the result.  ``best`` is the step that the answer comes from.  Of the presets
after ``--timed`` only a few steps are made, for their time.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

from dip_fast.device.memory import keep_memory
from dip_fast.fitting import Fit, deep_image_prior, prepare
from dip_fast.fitting.degradations import Mask
from dip_fast.pictures.metrics import psnr
from dip_fast.presets import PRESETS

WARM_UP_STEPS = 2
COLUMNS = {
    "picture": "{}",
    "damage": "{}",
    "preset": "{}",
    "psnr_damaged": "{:.2f}",
    "psnr_weights": "{:.2f}",
    "psnr_average": "{:.2f}",
    "psnr_result": "{:.2f}",
    "best_step": "{}",
    "steps": "{}",
    "step_seconds": "{:.3f}",
    "fit_seconds": "{:.0f}",
}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("pictures", nargs="*", type=Path, default=[common.EXAMPLES / "clean.png"])
    parser.add_argument("--presets", nargs="*", choices=list(PRESETS), default=["quick"])
    parser.add_argument("--timed", nargs="*", choices=list(PRESETS), default=[], help="presets to time a few steps of")
    parser.add_argument("--timed-steps", type=int, default=10)
    parser.add_argument("--sigmas", nargs="+", type=float, default=[25.0])
    parser.add_argument("--halve", action="store_true", help="halve the pictures by area averaging first")
    parser.add_argument("--missing", type=float, help="part of the pixels to remove")
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="print a list of records in place of a table")
    options = parser.parse_args()
    keep_memory()
    torch.set_num_threads(options.threads)
    records = []
    for path in options.pictures:
        clean = common.read_image(path)
        if options.halve:
            clean = common.halved(clean)
        for sigma in options.sigmas if options.missing is None else [0.0]:
            damaged, known = damage(clean, sigma, options.missing)
            name = f"sigma {sigma:g}" if options.missing is None else f"{options.missing:.0%} missing"
            for preset in dict.fromkeys([*options.presets, *options.timed]):
                fit = prepared(damaged, known, preset, options)
                found = whole_fit(fit, clean) if preset in options.presets else timed_steps(fit, options.timed_steps)
                records.append(
                    {
                        "picture": path.stem,
                        "width": clean.shape[1],
                        "height": clean.shape[0],
                        "damage": name,
                        "preset": preset,
                        "psnr_damaged": psnr(damaged, clean),
                        **found,
                    }
                )
    if options.json:
        common.print_json(records)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; PSNR in dB\n")
    rows = [
        ["-" if record[name] is None else shown.format(record[name]) for name, shown in COLUMNS.items()]
        for record in records
    ]
    print(common.markdown([name.replace("_", " ") for name in COLUMNS], rows))


def damage(clean: np.ndarray, sigma: float, missing: float | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Add noise to an image, or remove a part of its pixels; return which are known then, ``(H, W)``."""
    if missing is None:
        noisy = clean + np.random.default_rng(0).normal(0, sigma / 255, clean.shape)
        return np.clip(noisy, 0, 1).astype(np.float32), None
    known = np.random.default_rng(1).random(clean.shape[:2]) >= missing
    return clean * known[..., None], known


def prepared(damaged: np.ndarray, known: np.ndarray | None, preset: str, options: argparse.Namespace) -> Fit:
    """Prepare a fit as the tasks do."""
    recipe = common.recipe(preset, size=damaged.shape[:2], iterations=options.iterations)
    if known is None:
        objective = common.denoising_objective(damaged, recipe, options.seed)
    elif recipe.masking is not None:
        raise SystemExit(f"--missing: the preset {preset} does not fill in")
    else:
        mask = Mask(common.to_tensor(damaged), torch.from_numpy(known)[None, None])
        objective = deep_image_prior(mask, recipe, seed=options.seed)
    return prepare(objective, recipe, seed=options.seed, engine=options.engine)


def whole_fit(fit: Fit, clean: np.ndarray) -> dict[str, Any]:
    """Fit to the end, and compare the averages with the result."""
    while not fit.stop_reason:
        fit.step()
    weights = psnr(common.to_image(fit.draw()), clean)
    average = psnr(common.to_image(common.averaged_image(fit)), clean) if fit.objective.draws_iterates else None
    loop_seconds = fit.seconds
    fit.run()
    result = fit.result()
    return {
        "psnr_weights": weights,
        "psnr_average": average,
        "psnr_result": psnr(result.image, clean),
        "best_step": result.best_step,
        "steps": result.steps,
        "step_seconds": loop_seconds / result.steps,
        "fit_seconds": result.seconds,
    }


def timed_steps(fit: Fit, calls: int) -> dict[str, Any]:
    """Time a few steps, and estimate the time of all, and of what follows them, from it."""
    step = statistics.median(common.seconds_of_calls(fit.step, calls, WARM_UP_STEPS))
    passes = fit.objective.passes
    drawing = statistics.median(common.seconds_of_calls(fit.draw, 2, 1)) if passes else 0.0
    steps = fit.options.iterations
    return {
        **dict.fromkeys(("psnr_weights", "psnr_average", "psnr_result", "best_step")),
        "steps": steps,
        "step_seconds": step,
        "fit_seconds": step * (steps + fit.consolidation_steps) + drawing * passes,
    }


if __name__ == "__main__":
    main()
