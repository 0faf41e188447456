"""How well pictures are enlarged, deblurred, filled in and freed of JPEG artefacts, beside classical methods.

    python benchmarks/inverse.py --superres FOLDER --presets quick --check
    python benchmarks/inverse.py --deblur F16.png --halve --presets quick --check
    python benchmarks/inverse.py --jpeg House.png F16.png --presets quick --check
    python benchmarks/inverse.py --inpaint barbara.png --presets default best --check
    python benchmarks/inverse.py --scratches chelsea.png --presets quick default --check

- ``--superres``: a folder of pictures ``set5_2.png`` with their reduced copies ``set5_2_x4.png``, which are enlarged.
  Compared in brightness (Y of BT.601, from 16 to 235) without as many pixels at each edge as the scale; beside bicubic
  enlargement.
- ``--deblur``: clean pictures, blurred by a Gaussian of ``--blur`` pixels; what remains is where the kernel lies within
  the picture, with the noise ``numpy.random.default_rng(0).normal(0, sigma / 255)`` on it, clipped, in float32.  Beside
  Wiener's filter and Richardson-Lucy's of scikit-image on the mirrored picture, each at the parameter that is best for
  the clean picture.
- ``--jpeg``: clean pictures, compressed by Pillow at ``--quality`` with its own tables and halved colour; beside the
  decoded picture.
- ``--inpaint``: clean pictures that lack a part ``--missing`` of their pixels, those where
  ``numpy.random.default_rng(0).random`` is less; beside diffusion from the known pixels.
- ``--scratches``: clean pictures under straight lines of 1 to 3 pixels that cover a tenth of them; beside biharmonic
  inpainting by scikit-image.

`dip-fast run` restores each in a process of its own.  PSNR is in dB at data range 1, over all channels but for
``--superres``.  ``--check`` exits with 1 and names the bars that are missed; see `BARS`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
import tifffile
from figures import machine, measured_commit, typed
from inverse_cases import Case, chosen_cases

from dip_fast.figures import Measurement
from dip_fast.presets import PRESETS

Row = dict[str, Any]


@dataclass(frozen=True)
class Bar:
    """What a group of pictures has to become, in dB: better than the best of the classical methods by so much.

    Attributes
    ----------
    group : str
    least : float
    of_mean : bool
        Whether it is about the mean of the pictures.
    picture : str
        The one that it is about, with the PSNR itself; empty for all of the group.
    preset : str
        The one that it is about; empty for all.
    """

    group: str
    least: float
    of_mean: bool = False
    picture: str = ""
    preset: str = ""


BARS = (
    Bar("set5 x4", 1.2, of_mean=True),
    Bar("set14 x4", 0.8, of_mean=True),
    Bar("blur 1.6, sigma 2", 1.0),
    Bar("JPEG quality 10", 1.0),
    Bar("scratches", 1.0),
    Bar("50% missing", 31.5, picture="barbara", preset="default"),
    Bar("50% missing", 32.5, picture="barbara", preset="best"),
)
SECONDS, PIXELS = 360.0, 512 * 512  # of an enlargement, for so many pixels of the result


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--superres", type=Path, metavar="FOLDER", help="pictures NAME.png with NAME_xSCALE.png")
    parser.add_argument("--deblur", nargs="+", type=Path, default=[], metavar="PICTURE")
    parser.add_argument("--jpeg", nargs="+", type=Path, default=[], metavar="PICTURE")
    parser.add_argument("--inpaint", nargs="+", type=Path, default=[], metavar="PICTURE")
    parser.add_argument("--scratches", nargs="+", type=Path, default=[], metavar="PICTURE")
    parser.add_argument("--missing", type=float, default=0.5, help="part of the pixels that inpainting has to fill in")
    parser.add_argument("--halve", action="store_true", help="halve the pictures by averaging first, but for superres")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--blur", type=float, default=1.6, help="in pixels")
    parser.add_argument("--sigma", type=float, default=2.0, help="of the noise on what is blurred, of 255")
    parser.add_argument("--quality", type=int, default=10)
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=["quick"])
    parser.add_argument("--iterations", type=int, help="the preset's unless given")
    parser.add_argument("--stop", choices=["auto", "never"], help="the task's unless given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--check", action="store_true", help="compare with the bars")
    parser.add_argument("--json", action="store_true", help="print the rows with their source in place of a table")
    options = parser.parse_args()
    rows = [measure(case, options) for case in chosen_cases(options)]
    if not rows:
        parser.error("give pictures: --superres, --deblur, --jpeg, --inpaint or --scratches")
    if options.json:
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        facts = (date, measured_commit(), machine(options.threads), typed("benchmarks/inverse.py", *sys.argv[1:]))
        common.print_json(asdict(Measurement("inverse", *facts, rows)))
    else:
        print(table(rows))
    if options.check:
        results = check(rows)
        if not results:
            sys.exit("--check: no bar is about these pictures")
        for line, met in results:
            print(f"{'met' if met else 'MISSED'}: {line}", file=sys.stderr)
        sys.exit(0 if all(met for _, met in results) else 1)


# --- measuring ----------------------------------------------------------------------------------------------------


def measure(case: Case, options: argparse.Namespace) -> Row:
    """Restore a picture by all presets: a row."""
    height, width = case.clean.shape[:2]
    row: Row = {"group": case.group, "picture": case.picture, "width": width, "height": height}
    row["others"] = {name: round(case.psnr(image), 3) for name, image in case.others.items()}
    row["presets"] = {preset: by_dip_fast(case, preset, options) for preset in options.presets}
    return row


def by_dip_fast(case: Case, preset: str, options: argparse.Namespace) -> Row:
    """Restore as a user does, and compare the result with what the picture was."""
    image, summary = restored(case, preset, options)
    return {"psnr": round(case.psnr(image), 3), "seconds": summary["seconds"], "steps": summary["steps"]}


def restored(case: Case, preset: str, options: argparse.Namespace) -> tuple[np.ndarray, Row]:
    """Restore as a user does: the image, ``(H, W, C)``, and what is known of the run."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"damaged{case.suffix}"
        file.write_bytes(case.file)
        given = [*case.arguments]
        if case.mask is not None:
            place = Path(folder) / "mask.png"
            place.write_bytes(case.mask)
            given += ["--mask", str(place)]
        arguments = ["run", str(file), *given, "--out", str(Path(folder) / "run"), "--preset", preset]
        for name in ("iterations", "stop", "seed", "device", "threads", "tile"):
            if (value := vars(options).get(name)) is not None:
                arguments += [f"--{name}", str(value)]
        # -P: the package that this script imports, not one that lies in the working folder.
        command = [sys.executable, "-P", "-m", "dip_fast", *arguments, "--quiet", "--json"]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if ended.returncode:
            sys.exit(f"dip-fast run of {case.picture} with preset {preset} ended with exit code {ended.returncode}")
        summary = json.loads(ended.stdout)
        result = Path(summary["result"])
        image = tifffile.imread(result) if case.suffix == ".tif" else common.read_image(result)  # floats as they are
    return image.reshape(case.clean.shape), summary


def table(rows: list[Row]) -> str:
    """Write the rows, and the mean of each group of several."""
    others = list(dict.fromkeys(name for row in rows for name in row["others"]))
    presets = list(rows[0]["presets"])

    def cells(name: str, group: list[Row]) -> list[str]:
        of_others = [common.mean([row["others"].get(other) for row in group]) for other in others]
        of_presets = [
            f"{common.mean([row['presets'][preset]['psnr'] for row in group]):.2f} "
            f"({common.mean([row['presets'][preset]['seconds'] for row in group]):.0f} s)"
            for preset in presets
        ]
        return [name, *("-" if value is None else f"{value:.2f}" for value in of_others), *of_presets]

    lines = []
    for group in dict.fromkeys(row["group"] for row in rows):
        members = [row for row in rows if row["group"] == group]
        lines += [cells(f"{row['picture']} {row['width']}x{row['height']}, {group}", [row]) for row in members]
        if len(members) > 1:
            lines.append(cells(f"**mean**, {group}", members))
    return common.markdown(["picture", *others, *(f"`{preset}`" for preset in presets)], lines)


# --- bars ---------------------------------------------------------------------------------------------------------


def check(rows: list[Row]) -> list[tuple[str, bool]]:
    """Compare rows with the bars that are about them: a line each, and whether it is met."""
    results = []
    for bar in BARS:
        about = [row for row in rows if row["group"] == bar.group]
        for preset in about[0]["presets"] if about else ():
            if bar.preset not in ("", preset):
                continue
            if bar.picture:
                reached = {row["picture"]: row["presets"][preset]["psnr"] for row in about}
                if bar.picture in reached:
                    line = f"{preset}, {bar.group}: {bar.picture} {reached[bar.picture]:.2f}, at least {bar.least:g} dB"
                    results.append((line, reached[bar.picture] >= bar.least))
                continue
            gains = {row["picture"]: row["presets"][preset]["psnr"] - max(row["others"].values()) for row in about}
            if bar.of_mean:
                gains = {"mean": sum(gains.values()) / len(gains)}
            shown = ", ".join(f"{name} {gain:+.2f}" for name, gain in gains.items())
            met = all(round(gain, 3) >= bar.least for gain in gains.values())
            results.append((f"{preset}, {bar.group}: {bar.least:g} dB better than the best other; {shown}", met))
    for row in rows:
        for preset, found in row["presets"].items():
            if "bicubic" in row["others"] and row["width"] * row["height"] == PIXELS:
                text = f"{preset}, {row['picture']}: in {SECONDS:.0f} seconds; {found['seconds']:.0f}"
                results.append((text, found["seconds"] <= SECONDS))
    return results


if __name__ == "__main__":
    main()
