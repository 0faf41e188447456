"""Pictures as people have them, made here from a seed, restored by `dip-fast`, and measured against bars.

    python benchmarks/frames.py --check
    python benchmarks/frames.py stars page --size 256 --preset default --check
    python benchmarks/frames.py large                    # time and memory of 12000x8000 floats, until the first answer
    python benchmarks/frames.py --list

Three frames that people would recognise: stars in FITS, two channels of cells in an OME-TIFF stack, a scanned page at
300 dpi in PNG.  The others are what users of other programs have reported: a pixel at 65535 in a dark frame, a lamp in
a linear picture, a half in the shade, channels of very different brightness, edges of an odd size, a flat picture, a
picture that is large.  Each is written to a file, restored by ``dip-fast run`` (the stack by ``dip-fast stack``) in a
process of its own, and read again by the format's own library.

PSNR is in dB at data range 1, in units of the scene's own range.  ``--check`` exits with 1 and names the bars that are
missed.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import common
from frame_cases import CASES, Bench, Figure


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("cases", nargs="*", help="which; all but large unless given")
    parser.add_argument("--size", type=int, default=128, help="side of the frames in pixels")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--iterations", type=int, help="the preset's unless given")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--list", action="store_true", help="list the cases")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a bar is missed")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON in place of a table")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name}: {case.__doc__}" for name, case in CASES.items()))
        return
    if unknown := [name for name in options.cases if name not in CASES]:
        parser.error(f"there is no case {unknown[0]}; see --list")
    arguments = ["--threads", str(options.threads)]
    if options.iterations is not None:
        arguments += ["--iterations", str(options.iterations)]
    figures: list[tuple[str, Figure]] = []
    for name in options.cases or [name for name in CASES if name != "large"]:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder), options.size, options.preset, tuple(arguments))
            for figure in CASES[name](bench):
                figures.append((name, figure))
                print(f"{name}: {figure.text}: {figure.value:.4g}", file=sys.stderr)
    if options.json:
        common.print_json([{"case": name, **asdict(figure), "met": figure.is_met} for name, figure in figures])
    else:
        rows = [(name, figure.text, f"{figure.value:.4g}", figure.bar) for name, figure in figures]
        print(common.markdown(("frame", "figure", "measured", "bar"), rows))
    missed = [
        f"{name}: {figure.text}: {figure.value:.4g}, {figure.bar}" for name, figure in figures if not figure.is_met
    ]
    if options.check:
        for line in missed:
            print(f"MISSED: {line}", file=sys.stderr)
        sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
