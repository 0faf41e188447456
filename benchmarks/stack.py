"""What one network for several frames costs and reaches, against a fit of each frame.

    python benchmarks/stack.py [PICTURE] [--frames 16] [--alone 16] [--pan 0] [--size 0] [--sigma 25]
        [--preset default] [--json]

The picture, examples/clean.png by default, is taken as clean.  Each frame shows it with noise of its own, of
sigma/255, drawn with ``numpy.random.default_rng(seed)`` and clipped.  With ``--pan`` the frames are windows, each so
many pixels to the right of the one before, and as much narrower than the picture as all of that takes; with
``--size`` they are squares of that side, from the middle.
``dip_fast.denoise`` restores all frames with one network, and then as many as ``--alone`` says by themselves.  Printed
are the PSNR of each in dB, the seconds for all frames over the median of those for one, and the flicker: the mean
difference of neighbouring frames, in 1/255, where the clean ones differ by less than 1/255.  The goals: 16 frames take
at most twice the time of one, and none lies more than 0.1 dB below its own single-frame answer; 32 frames that move
take at most three times as long as one, with a mean PSNR and half the flicker of frame by frame.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

import dip_fast
from dip_fast.device.memory import keep_memory
from dip_fast.ops import extension
from dip_fast.pictures.metrics import psnr


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("picture", nargs="?", type=Path, default=common.EXAMPLES / "clean.png")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--alone", type=int, help="frames to restore by themselves too, all by default")
    parser.add_argument("--pan", type=int, default=0, help="pixels from a frame to the next")
    parser.add_argument("--size", type=int, default=0, help="side of the frames, as large as they can be by default")
    parser.add_argument("--sigma", type=float, default=25.0)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--iterations", type=int, help="the preset's unless given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="print an object in place of a table")
    options = parser.parse_args()
    keep_memory()
    torch.set_num_threads(options.threads)
    clean = scene(common.read_image(options.picture), options.frames, options.pan, options.size)
    noise = np.random.default_rng(options.seed).normal(0, options.sigma / 255, clean.shape)
    noisy = np.clip(clean + noise, 0, 1).astype(np.float32)
    extension.load()  # now, as it may have to be built

    together, seconds = restored(noisy, options, frames_axis=0)
    alone = [restored(frame, options) for frame in noisy[: options.alone]]
    rows = [
        {
            "frame": n,
            "psnr_noisy": psnr(noisy[n], clean[n]),
            "psnr": psnr(together[n], clean[n]),
            "psnr_alone": psnr(alone[n][0], clean[n]) if n < len(alone) else None,
        }
        for n in range(len(clean))
    ]
    images = {"noisy": noisy, "restored": together, "alone": np.stack([image for image, _ in alone])}
    found: dict[str, Any] = {
        "frames": rows,
        "size": f"{clean.shape[2]}x{clean.shape[1]}",
        "preset": options.preset,
        "seconds": seconds,
        "seconds_alone": statistics.median(each for _, each in alone),
        "mean_gain": statistics.fmean(gains(rows)),
        "least_gain": min(gains(rows)),
        "flicker": {name: flicker(each, clean) for name, each in images.items()},
    }
    if options.json:
        common.print_json(found)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; PSNR in dB\n")
    table = [["-" if value is None else f"{value:.2f}" for value in list(row.values())[1:]] for row in rows]
    print(common.markdown(["frame", "noisy", "restored", "alone"], [[n, *cells] for n, cells in enumerate(table)]))
    one, mean, least = (found[name] for name in ("seconds_alone", "mean_gain", "least_gain"))
    print(f"\n{options.preset}, {len(clean)} frames of {found['size']}: {seconds:.1f} s, one alone {one:.1f} s,")
    print(f"ratio {seconds / one:.2f}; a frame gains {mean:+.2f} dB over its answer alone, at least {least:+.2f} dB")
    shown = [f"{name} {value:.2f}" for name, value in found["flicker"].items() if value is not None]
    print(f"flicker, in 1/255: {', '.join(shown) or 'no pixels of neighbouring frames agree'}")


def scene(picture: np.ndarray, frames: int, pan: int, size: int = 0) -> np.ndarray:
    """Cut the frames out of a picture: windows ``(N, H, W, C)`` that move to the right."""
    if size:
        height, width = min(size, picture.shape[0]), min(size + pan * (frames - 1), picture.shape[1])
        top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
        picture = picture[top : top + height, left : left + width]
    width = picture.shape[1] - pan * (frames - 1)
    if min(frames, width) < 1:
        sys.exit(f"{frames} frames that move by {pan} pixels do not fit a picture of {picture.shape[1]}")
    return np.stack([picture[:, pan * n : pan * n + width] for n in range(frames)])


def restored(noisy: np.ndarray, options: argparse.Namespace, **layout: Any) -> tuple[np.ndarray, float]:
    """Restore an image or frames, and measure the seconds."""
    begin = time.perf_counter()
    image = dip_fast.denoise(
        noisy,
        preset=options.preset,
        iterations=options.iterations,
        seed=options.seed,
        device=options.device,
        channel_axis=-1,
        **layout,
    )
    return image, time.perf_counter() - begin


def flicker(images: np.ndarray, clean: np.ndarray) -> float | None:
    """Compute the mean difference of neighbouring frames, in 1/255, where the clean ones agree; None where none do."""
    agree = np.abs(np.diff(clean[: len(images)], axis=0)) < 1 / 255
    differences = np.abs(np.diff(images, axis=0))[agree]
    return float(255 * differences.mean()) if differences.size else None


def gains(rows: list[dict[str, Any]]) -> list[float]:
    """Compute what frames gain over their own answers, in dB."""
    return [row["psnr"] - row["psnr_alone"] for row in rows if row["psnr_alone"] is not None]


if __name__ == "__main__":
    main()
