"""What a large picture loses as it is estimated in pieces and drawn in tiles, against all of it at once.

    python benchmarks/pieces.py CLEAN.png [--crop 2048] [--sigma 25] [--preset default] [--iterations 300] [--check]

The clean picture, or a square from its middle, gets noise of sigma/255, drawn with ``numpy.random.default_rng(seed)``
and rounded to 8 bits, and is restored by `dip-fast run` twice: as pictures of more than a megapixel are, and as if
that limit did not exist.  A smaller picture shows the same with ``--limit``, the pixels from which on one is large.
Printed are the PSNR in dB at data range 1 of both, the seconds, and the peak of the processes' memory.  ``--check``
exits with 1 where more than 0.05 dB are lost.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
import numpy as np
from PIL import Image

LOST = 0.05
# The limit has to be another one before it is imported from there.
PROGRAM = """
import sys
from dip_fast.fitting import pieces
pieces.LARGEST_WHOLE = int(sys.argv.pop(1))
from dip_fast.cli import main
from dip_fast.device import memory
try:
    main(sys.argv[1:])
finally:
    print(memory.peak_bytes())
"""


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--crop", type=int, help="side of the square")
    parser.add_argument("--sigma", type=float, default=25.0)
    parser.add_argument("--limit", type=int, default=2**20, help="pixels of the largest picture that is drawn at once")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--iterations", type=int, help="the preset's unless given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--check", action="store_true", help="compare with the bar")
    options = parser.parse_args()
    clean = common.read_image(options.picture)
    if options.crop:
        top, left = (max(side - options.crop, 0) // 2 for side in clean.shape[:2])
        clean = clean[top : top + options.crop, left : left + options.crop]
    noise = np.random.default_rng(options.seed).normal(0, options.sigma / 255, clean.shape)
    noisy = np.rint(255 * (clean + noise).clip(0, 1)).astype(np.uint8)
    rows, reached = [], []
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(noisy.squeeze()).save(Path(folder, "noisy.png"))
        for name, limit in (("in pieces", options.limit), ("at once", 2**60)):
            psnr, seconds, peak = restored(Path(folder), name, limit, clean, options)
            reached.append(psnr)
            rows.append((name, f"{psnr:.3f}", f"{seconds:.0f}", f"{peak / 1e9:.2f}"))
            print(*rows[-1], file=sys.stderr)
    print(f"{options.picture.stem} {clean.shape[1]}x{clean.shape[0]}, sigma {options.sigma:g}, {options.preset}\n")
    print(common.markdown(("", "PSNR, dB", "seconds", "peak, GB"), rows))
    lost = reached[1] - reached[0]
    print(f"\nlost: {lost:.3f} dB")
    sys.exit(1 if options.check and lost > LOST else 0)


def restored(
    folder: Path, name: str, limit: int, clean: np.ndarray, options: argparse.Namespace
) -> tuple[float, float, int]:
    """Restore the picture in a process of its own; returns PSNR, seconds and bytes."""
    out = folder / f"{name}.png"
    arguments = ["run", str(folder / "noisy.png"), "--out", str(out), "--only-result", "--quiet"]
    arguments += ["--preset", options.preset, "--seed", str(options.seed), "--threads", str(options.threads)]
    arguments += ["--iterations", str(options.iterations)] if options.iterations else []
    begun = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(limit), *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    seconds = time.perf_counter() - begun
    image = common.read_image(out)
    return float(-10 * np.log10(np.mean((image - clean) ** 2))), seconds, int(ended.stdout.split()[-1])


if __name__ == "__main__":
    main()
