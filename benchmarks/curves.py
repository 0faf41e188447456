"""Whether the fused engine fits as the plain one does: curves of PSNR from the same seed, for some hundred steps.

    python benchmarks/curves.py [PICTURE --reference CLEAN] [--preset paper] [--upsampling bilinear] [--plot curves.png]

Fitting is chaotic: the last bit of anything decides on which path the iterates go, and after a dozen steps no two ways
of rounding are together any more.  So there are other fits of the plain engine, with each value of z moved by its last
bit, up or down: the fused engine may lie as far from the plain one as these do.  First the distances of the iterates
while they part, relative, in the norm; then the curves, which are means over the last steps of the iterates' PSNR in
dB.  Where their largest distances fall is chance: --others 3 tells more than one.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dip_fast.bench import benchmarking
from dip_fast.device.memory import keep_memory
from dip_fast.fitting import Fit, prepare
from dip_fast.fitting.degradations import Identity
from dip_fast.pictures import picture as pictures
from dip_fast.presets import PRESETS

EXAMPLES = Path(__file__).parents[1] / "examples"
PARTING = (1, 2, 3, 5, 10, 20)  # steps at which the iterates are compared
EVERY = 20  # steps between the lines of the table


def move_last_bits(fit: Fit, seed: int) -> None:
    z = fit.z.tensor()
    up = torch.rand(z.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    moved = torch.nextafter(z, torch.where(up, torch.inf, -torch.inf))
    fit._steps.codes, fit._steps.denominator = moved, 1.0


def run(fit: Fit, steps: int, window: int) -> tuple[np.ndarray, list[torch.Tensor]]:
    """Smoothed PSNR, from the step on that ends the first window, and the iterates of the steps of PARTING."""
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


def tensor(path: Path) -> torch.Tensor:
    return torch.from_numpy(pictures.read_picture(path).image).permute(2, 0, 1)[None].contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", type=Path, default=EXAMPLES / "noisy.png")
    parser.add_argument("--reference", type=Path, default=EXAMPLES / "clean.png")
    parser.add_argument("--preset", choices=["quick", "paper"], default="quick")
    parser.add_argument("--upsampling", choices=["nearest", "bilinear"], help="that of the preset unless given")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--window", type=int, default=20, help="steps that are averaged")
    parser.add_argument("--others", type=int, default=1, help="plain fits with other last bits of z")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--plot", type=Path, metavar="PNG")
    options = parser.parse_args()
    if not 1 <= options.window <= options.steps:
        parser.error("--window must be between 1 and --steps")
    torch.set_num_threads(options.threads)
    keep_memory()

    recipe = PRESETS[options.preset].recipe
    upsampling = options.upsampling or recipe.network_options["upsampling"]
    recipe = replace(
        recipe,
        network_options={**recipe.network_options, "upsampling": upsampling},
        options=replace(recipe.options, iterations=options.steps, stop="never"),
    )
    noisy, clean = tensor(options.picture), tensor(options.reference)
    height, width = noisy.shape[-2:]
    facts = {**benchmarking.machine(), "threads": options.threads, "device": "cpu", "preset": options.preset}
    print(f"{options.picture.name}, {width}x{height}, {upsampling}, seed {options.seed}")
    print(benchmarking.machine_line(facts))

    curves, iterates = {}, {}
    for name in ("fused", "plain", *(f"plain, bits {i + 1}" for i in range(options.others))):
        engine, _, bits = name.partition(", bits ")
        fit = prepare(Identity(noisy), recipe, seed=options.seed, engine=engine, reference=clean)
        if bits:
            move_last_bits(fit, int(bits))
        curves[name], iterates[name] = run(fit, options.steps, options.window)
    others = [name for name in curves if name != "plain"]

    print(f"\n{'step':>5}" + "".join(f"{name:>15}" for name in others) + "   distance of the iterate from plain's")
    for i, step in enumerate(PARTING[: len(iterates["plain"])]):
        plain = iterates["plain"][i]
        distances = [((iterates[name][i] - plain).norm() / plain.norm()).item() for name in others]
        print(f"{step:5}" + "".join(f"{distance:15.1e}" for distance in distances))
    print(f"\n{'step':>5}" + "".join(f"{name:>15}" for name in curves) + "   PSNR, dB")
    for step in range(-(-options.window // EVERY) * EVERY, options.steps + 1, EVERY):
        print(f"{step:5}" + "".join(f"{values[step - options.window]:15.2f}" for values in curves.values()))
    print("\nlargest distance of the curve from plain's, dB")
    for name in others:
        print(f"{name:>15} {np.abs(curves[name] - curves['plain']).max():.2f}")
    if options.plot:
        title = f"preset {options.preset}, {upsampling}, seed {options.seed}, threads: {options.threads}"
        plot(curves, options.window, title, options.plot)


if __name__ == "__main__":
    main()
