"""What tiles cost: pictures restored in tiles beside the same pictures restored in one piece.

    python benchmarks/tiles.py F16.png --tile 128 --check
    python benchmarks/tiles.py F16.png --tasks deblur jpeg --tile 128 256 --iterations 300

Each clean picture is damaged as in `inverse.py` (``superres`` reduces it by 2, ``inpaint`` covers a tenth of it by
lines), and restored by `dip-fast run`, in one piece and in tiles.

- PSNR in dB at data range 1, over all channels; and what is lost to that of one piece.
- Borders: the mean absolute difference of neighbours across the parts that tiles share, divided by that elsewhere, as
  a multiple of the same ratio of the result in one piece.  A seam has more than 1; where tiles are blended they are
  averaged, which smooths what each has drawn by itself, and that has less.  So has, or has more, a result with other
  detail than that of one piece, where tiles meet in texture: "of one piece" is that ratio of its result, as a multiple
  of that of the clean picture, and says how far it is a measure.

``--check`` exits with 1 where borders are off by more than 5%, or more than 0.05 dB are lost.
"""

from __future__ import annotations

import argparse
import os
import sys
from itertools import pairwise
from pathlib import Path

import common
import inverse
import numpy as np
from inverse_cases import Case, blurred, compressed, holed, reduction, unscratched

from dip_fast.pictures.raster import encode_png
from dip_fast.pictures.tiling import Grid, Span, lay

BLUR, SIGMA, QUALITY, SCALE = 1.6, 2.0, 10, 2
BORDERS, LOST = 0.05, 0.05
TASKS = ("deblur", "superres", "jpeg", "inpaint")


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("pictures", nargs="+", type=Path, help="clean ones")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--tile", nargs="+", type=int, default=[128], help="pixels a side")
    parser.add_argument("--halve", action="store_true", help="halve the pictures by averaging first")
    parser.add_argument("--preset", default="quick", help="one whose fit begins with a random input")
    parser.add_argument("--iterations", type=int, help="the preset's unless given")
    parser.add_argument("--stop", choices=["auto", "never"], help="the task's unless given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--check", action="store_true", help="compare with the bars")
    options = parser.parse_args()
    rows, missed = [], []
    for path in options.pictures:
        clean = common.read_image(path)
        clean = common.halved(clean) if options.halve else clean
        for task in options.tasks:
            case = damaged(path.stem, clean, task)
            whole, seconds = restored(case, "never", options)
            reached = case.psnr(whole)
            rows.append((case.picture, task, "one piece", f"{reached:.2f}", "", "", "", f"{seconds:.0f}"))
            print(*rows[-1], file=sys.stderr)
            for tile in options.tile:
                image, seconds = restored(case, str(tile), options)
                psnr, off = case.psnr(image), borders(image, case, tile) / borders(whole, case, tile)
                lost = reached - psnr
                of_clean = borders(whole, case, tile) / borders(case.clean, case, tile)
                figures = f"{psnr:.2f}", f"{lost:.2f}", f"{off:.3f}", f"{of_clean:.3f}", f"{seconds:.0f}"
                rows.append((case.picture, task, str(tile), *figures))
                print(*rows[-1], file=sys.stderr)
                if lost > LOST or abs(off - 1) > BORDERS:
                    missed.append(f"{case.picture}, {task}, {tile}")
    print(
        common.markdown(
            ("picture", "task", "tiles", "PSNR, dB", "lost, dB", "borders", "of one piece", "seconds"), rows
        )
    )
    for line in missed if options.check else ():
        print(f"MISSED: {line}", file=sys.stderr)
    sys.exit(1 if options.check and missed else 0)


def damaged(name: str, clean: np.ndarray, task: str) -> Case:
    """Damage a picture."""
    if task == "deblur":
        return blurred(name, clean, BLUR, SIGMA)
    if task == "jpeg":
        return compressed(name, clean, QUALITY)
    if task == "inpaint":
        known = unscratched(clean.shape[0], clean.shape[1])
        return holed("scratches", name, clean, known, "none", lambda picture, known: picture)
    height, width = (side // SCALE * SCALE for side in clean.shape[:2])
    small = np.rint(255 * reduction(clean[:height, :width], SCALE).clip(0, 1)).astype(np.uint8)
    arguments = ["--task", "superres", "--scale", str(SCALE)]
    return Case(f"x{SCALE}", name, encode_png(small), ".png", arguments, clean[:height, :width], {})


def restored(case: Case, tile: str, options: argparse.Namespace) -> tuple[np.ndarray, float]:
    """Restore a picture as a user does; return the result with the seconds of its fits."""
    image, summary = inverse.restored(case, options.preset, argparse.Namespace(**vars(options) | {"tile": tile}))
    return image, summary["seconds"]


def borders(image: np.ndarray, case: Case, tile: int) -> float:
    """Divide the mean difference of neighbours where tiles reach over each other by that elsewhere."""
    task, scale = case.arguments[1], SCALE if case.arguments[1] == "superres" else 1
    height, width = (side // scale for side in image.shape[:2])
    blocks = 1 if task != "jpeg" else 8 if image.shape[2] == 1 else 16
    tiling = lay((height, width), tile, Grid(blocks)).scaled(scale)
    at, elsewhere = [], []
    for axis, spans in enumerate((tiling.rows, tiling.columns)):
        across = np.abs(np.diff(image, axis=axis))
        shared = is_shared(spans)
        at.append(np.compress(shared, across, axis=axis).ravel())
        elsewhere.append(np.compress(~shared, across, axis=axis).ravel())
    across = np.concatenate(at)
    return float(across.mean() / np.concatenate(elsewhere).mean()) if across.size else 1.0


def is_shared(spans: tuple[Span, ...]) -> np.ndarray:
    """Find the pairs of neighbours along one side that lie in two tiles, or between two."""
    found = np.zeros(spans[-1][1] - 1, bool)
    for (_, end), (start, _) in pairwise(spans):
        found[start - 1 : end] = True
    return found


if __name__ == "__main__":
    main()
