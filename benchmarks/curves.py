"""Compare how the fused and the plain engine fit: curves of PSNR from the same seed, for some hundred steps.

    python benchmarks/curves.py [PICTURE --reference CLEAN] [--preset paper] [--upsampling bilinear] [--plot curves.png]

Fitting is chaotic: the last bit of anything decides on which path the iterates go, and after a dozen steps no two ways
of rounding are together any more.  So there are other fits of the plain engine, with each value of z moved by its last
bit, up or down: the fused engine may lie as far from the plain one as these do.  First the distances of the iterates
while they part, relative, in the norm; then the curves, which are means over the last steps of the iterates' PSNR in
dB.  Where their largest distances fall is chance: --others 3 tells more than one.
"""

from __future__ import annotations

from pathlib import Path

import common
import numpy as np
import torch

from dip_fast.bench.machine import machine, machine_line
from dip_fast.device.memory import keep_memory
from dip_fast.fitting import DeepImagePrior, Fit, Identity, deep_image_prior, prepare
from dip_fast.networks import NetworkInput, Part
from dip_fast.presets import Recipe

PARTING = (1, 2, 3, 5, 10, 20)  # steps at which the iterates are compared
EVERY = 20  # steps between the lines of the table


def build(noisy: torch.Tensor, clean: torch.Tensor, recipe: Recipe, seed: int, engine: str, bits: int | None) -> Fit:
    """Prepare a fit, with the last bits of z moved by a number of the stream `bits`, or as they are."""
    objective = deep_image_prior(Identity(noisy), recipe, seed=seed)
    if bits is not None:
        z = with_other_last_bits(objective.z, bits)
        objective = DeepImagePrior(Identity(noisy), z, perturbation=objective.perturbation, seed=objective.seed)
    return prepare(objective, recipe, seed=seed, engine=engine, reference=clean)


def with_other_last_bits(z: NetworkInput, seed: int) -> NetworkInput:
    """Move each value of z by its last bit, up or down."""
    values = z.tensor()
    up = torch.rand(values.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    return NetworkInput((Part(torch.nextafter(values, torch.where(up, torch.inf, -torch.inf))),))


def run(fit: Fit, steps: int, window: int) -> tuple[np.ndarray, list[torch.Tensor]]:
    """Make the steps; return the smoothed PSNR, from the end of the first window on, and the iterates of PARTING."""
    iterates = []
    for step in range(1, steps + 1):
        fit.step()
        if step in PARTING:
            iterates.append(fit.iterate.clone())
    return np.convolve(fit.history()["psnr"], np.full(window, 1 / window), "valid"), iterates


def plot(curves: dict[str, np.ndarray], window: int, title: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, values in curves.items():
        style = "-" if name in ("fused", "plain") else "--"
        axes.plot(range(window, window + len(values)), values, style, label=name, linewidth=1.2)
    axes.set_xlabel("step")
    axes.set_ylabel(f"PSNR, mean of {window} steps, dB")
    axes.grid(alpha=0.3)
    axes.legend()
    axes.set_title(title, fontsize="medium")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("picture", nargs="?", type=Path, default=common.EXAMPLES / "noisy.png")
    parser.add_argument("--reference", type=Path, default=common.EXAMPLES / "clean.png")
    parser.add_argument("--preset", choices=["quick", "paper"], default="quick")
    parser.add_argument("--upsampling", choices=["nearest", "bilinear"], help="that of the preset unless given")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--window", type=int, default=20, help="steps that are averaged")
    parser.add_argument("--others", type=int, default=1, help="plain fits with other last bits of z")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--plot", type=Path, metavar="PNG")
    parser.add_argument("--json", action="store_true", help="print the largest distances in place of tables")
    options = parser.parse_args()
    if not 1 <= options.window <= options.steps:
        parser.error("--window must be between 1 and --steps")
    torch.set_num_threads(options.threads)
    keep_memory()

    recipe = common.recipe(options.preset, iterations=options.steps, stop="never", upsampling=options.upsampling)
    upsampling = recipe.network_options["upsampling"]
    noisy, clean = (common.to_tensor(common.read_image(path)) for path in (options.picture, options.reference))

    curves, iterates = {}, {}
    for name in ("fused", "plain", *(f"plain, bits {i + 1}" for i in range(options.others))):
        engine, _, bits = name.partition(", bits ")
        fit = build(noisy, clean, recipe, options.seed, engine, int(bits) if bits else None)
        curves[name], iterates[name] = run(fit, options.steps, options.window)
    distances = {
        name: float(np.abs(curve - curves["plain"]).max()) for name, curve in curves.items() if name != "plain"
    }
    if options.plot:
        title = f"preset {options.preset}, {upsampling}, seed {options.seed}, threads: {options.threads}"
        plot(curves, options.window, title, options.plot)
    if options.json:
        common.print_json([{"fit": name, "largest_distance_db": distance} for name, distance in distances.items()])
        return
    facts = {**machine(), "threads": options.threads, "device": "cpu", "preset": options.preset}
    height, width = noisy.shape[-2:]
    print(f"{options.picture.name}, {width}x{height}, {upsampling}, seed {options.seed}\n{machine_line(facts)}")
    print_parting(iterates)
    print_curves(curves, options.steps, options.window)
    print("\nlargest distance of the curve from plain's, dB")
    for name, distance in distances.items():
        print(f"{name:>15} {distance:.2f}")


def print_parting(iterates: dict[str, list[torch.Tensor]]) -> None:
    """Print how far the iterates are from those of the plain engine, in the first steps."""
    others = [name for name in iterates if name != "plain"]
    print(f"\n{'step':>5}" + "".join(f"{name:>15}" for name in others) + "   distance of the iterate from plain's")
    for i, step in enumerate(PARTING[: len(iterates["plain"])]):
        plain = iterates["plain"][i]
        distances = [((iterates[name][i] - plain).norm() / plain.norm()).item() for name in others]
        print(f"{step:5}" + "".join(f"{distance:15.1e}" for distance in distances))


def print_curves(curves: dict[str, np.ndarray], steps: int, window: int) -> None:
    """Print the smoothed PSNR of each fit."""
    print(f"\n{'step':>5}" + "".join(f"{name:>15}" for name in curves) + "   PSNR, dB")
    for step in range(-(-window // EVERY) * EVERY, steps + 1, EVERY):
        print(f"{step:5}" + "".join(f"{values[step - window]:15.2f}" for values in curves.values()))


if __name__ == "__main__":
    main()
