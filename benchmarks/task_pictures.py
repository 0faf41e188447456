"""Draws the pictures of the pages of tasks: a part of examples/clean.png damaged, restored and as it was.

    python benchmarks/task_pictures.py                   # all of them, into docs/tasks/
    python benchmarks/task_pictures.py deblur jpeg

From left to right stand the damaged picture, what a classical method makes of it, what `dip-fast run` does, and the
picture as it was; the PSNR of each is printed, for the text beside.  Nothing but the decoded picture stands for JPEG.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import common
import cv2
import inverse
import inverse_cases
import numpy as np
from inverse_cases import Case

PART = slice(64, 192)  # rows and columns that are shown
PARTS = {"inpaint-large": (slice(24, 232), slice(40, 248))}  # of others
ENLARGED = 2
GAP = 4  # white pixels between them
QUALITY = 92


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"from {', '.join(CASES)}; all by default")
    parser.add_argument("--out", type=Path, default=common.ROOT / "docs" / "tasks", metavar="FOLDER")
    parser.add_argument("--iterations", type=int, help="the preset's unless given")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    options = argparse.Namespace(stop=None, seed=0, device="cpu", **vars(options))
    if unknown := set(options.tasks) - set(CASES):
        parser.error(f"no picture is drawn of {', '.join(sorted(unknown))}; choose from {', '.join(CASES)}")
    clean = common.read_image(common.EXAMPLES / "clean.png")
    for task in options.tasks or CASES:
        case, damaged, preset = CASES[task](clean)
        image, _ = inverse.restored(case, preset, options)
        (method, classical), *_ = case.others.items()
        images = {"damaged": damaged} | ({} if classical is damaged else {method: classical}) | {preset: image}
        print(task, ", ".join(f"{name} {case.psnr(shown):.2f} dB" for name, shown in images.items()))
        images["as it was"] = case.clean
        cv2.imwrite(
            str(options.out / f"{task}.jpg"),
            strip([*images.values()], *PARTS.get(task, (PART, PART))),
            [cv2.IMWRITE_JPEG_QUALITY, QUALITY],
        )


def strip(images: list[np.ndarray], rows: slice, columns: slice) -> np.ndarray:
    """Place the same part of images side by side, each pixel as a square: blue, green, red, uint8."""
    parts = [np.rint(255 * image[rows, columns].clip(0, 1)).astype(np.uint8)[..., ::-1] for image in images]
    large = [part.repeat(ENLARGED, 0).repeat(ENLARGED, 1) for part in parts]
    gap = np.full((large[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([large[0], *(each for part in large[1:] for each in (gap, part))], axis=1)


def superres(clean: np.ndarray) -> tuple[Case, np.ndarray, str]:
    """Reduce it to a quarter as the task supposes."""
    with tempfile.TemporaryDirectory() as folder:
        large, small = (Path(folder) / name for name in ("clean.png", "clean_x4.png"))
        cv2.imwrite(str(large), np.rint(255 * clean).astype(np.uint8)[..., ::-1])
        reduced = inverse_cases.reduction(clean, 4)
        cv2.imwrite(str(small), np.rint(255 * reduced.clip(0, 1)).astype(np.uint8)[..., ::-1])
        case = inverse_cases.reduced(small, 4)
    return case, reduced.repeat(4, 0).repeat(4, 1), "quick"


def deblur(clean: np.ndarray) -> tuple[Case, np.ndarray, str]:
    """Blur it, with a little noise."""
    case = inverse_cases.blurred("clean", clean, 1.6, 2.0)
    return case, inverse_cases.decoded(case), "quick"


def jpeg(clean: np.ndarray) -> tuple[Case, np.ndarray, str]:
    """Compress it."""
    case = inverse_cases.compressed("clean", clean, 10)
    return case, case.others["decoded"], "quick"


def inpaint(clean: np.ndarray) -> tuple[Case, np.ndarray, str]:
    """Take four pixels of five away."""
    known = np.random.default_rng(0).random(clean.shape[:2]) >= 0.8
    case = inverse_cases.holed("80% missing", "clean", clean, known, "diffusion", inverse_cases.diffused)
    return case, inverse_cases.decoded(case), "default"


def inpaint_large(clean: np.ndarray) -> tuple[Case, np.ndarray, str]:
    """Mask the spoon."""
    known = np.full(clean.shape[:2], 1, np.uint8)
    corners = [(138, 150), (190, 140), (204, 160), (196, 208), (150, 216), (138, 190)]  # of its bowl and its shadow
    cv2.fillPoly(known, [np.array(corners)], 0)
    cv2.line(known, (178, 160), (206, 40), 0, 16)
    case = inverse_cases.holed("spoon", "clean", clean, known > 0, "diffusion", inverse_cases.diffused)
    return case, np.where(known[..., None] > 0, clean, 0.5), "outline"


CASES: dict[str, Callable[[np.ndarray], tuple[Case, np.ndarray, str]]] = {
    "superres": superres,
    "deblur": deblur,
    "jpeg": jpeg,
    "inpaint": inpaint,
    "inpaint-large": inpaint_large,
}

if __name__ == "__main__":
    main()
