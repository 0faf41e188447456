"""How well pictures are denoised, beside non-local means and BM3D on the same noise.

    python benchmarks/denoising.py F16.png House.png --presets fast default best --bm3d-python PYTHON --check
    python benchmarks/denoising.py --skimage brick grass gravel chelsea --bm3d-python PYTHON --check
    python benchmarks/denoising.py F16.png --poisson 30 --bm3d-python PYTHON --check
    python benchmarks/denoising.py F16.png --flat --sigma 0 2 5 --check        # never worse than the input
    python benchmarks/denoising.py --pairs FOLDER --bm3d-python PYTHON --check # of a camera: NAME_real.*, NAME_mean.*

Each picture is taken as clean.  Its noise is ``numpy.random.default_rng(0).normal(0, sigma / 255)``, or that of
``default_rng(0).poisson(peak * clean) / peak``, clipped to [0, 1] in float32.  `dip-fast run` restores it from a float
TIFF file, in a process of its own, and measures the noise unless ``--noise`` names it; ``--noise true`` is the noise as
it is.

Beside it stand scikit-image's non-local means at the best of six strengths, and BM3D (CBM3D for colour) with the true
noise, for Poisson noise behind an Anscombe transform; of a camera's pairs, an exposure and the mean of many, at the
best of five deviations.  BM3D needs the package ``bm3d``, whose licence forbids commercial use: without it its column
is empty.

PSNR is in dB over all channels, at data range 1.  Seconds are those of the fit, without the start of Python;
``process_seconds``, in the JSON, are all of them.  "estimated" is the PSNR that `dip-fast` estimates without the clean
picture.  With ``--records`` a measurement is kept in a file, and not made again while the commit stays the same.
``--check`` exits with 1 and names the bars that are missed; see `BARS`.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import common
import figure_tables
import numpy as np
import tifffile
import yardsticks
from figures import machine, measured_commit, typed
from yardsticks import BM3D, CameraNoise, Noise

from dip_fast.figures import Measurement
from dip_fast.presets import PRESETS

TEXTURES = ("brick", "grass", "gravel", "chelsea")
DEVIATIONS = (0.5, 0.75, 1.0, 1.5, 2.0)  # that BM3D tries for a camera's noise, in units of the true one
EFFORTS = ("fast", "default", "best")  # the presets that have bars
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Case:
    """A clean picture, and the noise that it gets.

    Attributes
    ----------
    picture : str
        Its name.
    kind : {"picture", "texture", "flat", "camera"}
        Which bars it has.
    clean : ndarray
        float64, ``(H, W, C)``.
    noise : Noise
    exposure : ndarray, optional
        The picture with its noise, of the same shape, where a camera has made it.
    """

    picture: str
    kind: str
    clean: np.ndarray
    noise: Noise
    exposure: np.ndarray | None = None

    def noisy(self) -> np.ndarray:
        """Make the picture with its noise, float32."""
        return self.noise.on(self.clean) if self.exposure is None else self.exposure.astype(np.float32)

    def facts(self) -> Row:
        """Describe it."""
        height, width = self.clean.shape[:2]
        named = {"picture": self.picture, "kind": self.kind, "width": width, "height": height}
        return {**named, "noise": str(self.noise), **asdict(self.noise)}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("pictures", nargs="*", type=Path)
    parser.add_argument("--halve", action="store_true", help="halve the pictures by area averaging first")
    parser.add_argument("--skimage", nargs="+", choices=TEXTURES, default=[], help="of skimage.data, halved")
    parser.add_argument("--flat", action="store_true", help="a picture of one gray as well")
    parser.add_argument("--pairs", type=Path, metavar="FOLDER", help="NAME_real.* and NAME_mean.*, as they are")
    parser.add_argument("--sigma", nargs="+", type=float, help="of 255; 25 unless given, 0 with --poisson")
    parser.add_argument("--poisson", nargs="+", type=float, metavar="PEAK", help="mean counts at the value 1")
    parser.add_argument("--presets", nargs="*", choices=list(PRESETS), default=["default"])
    parser.add_argument("--iterations", type=int, help="the preset's unless given")
    parser.add_argument("--noise", default="auto", help="as of dip-fast run, or true")
    parser.add_argument("--seeds", type=int, default=1, help="fits of each preset")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--bm3d-python", help="the interpreter that has the package bm3d, unless it is this one")
    parser.add_argument("--records", type=Path, help="a file that keeps the measurements")
    parser.add_argument("--check", action="store_true", help="compare with the bars")
    parser.add_argument("--json", action="store_true", help="print the rows with their source in place of a table")
    options = parser.parse_args()
    cases = [*chosen_cases(options), *(camera_cases(options.pairs) if options.pairs else ())]
    if not cases:
        parser.error("name a picture, or give --skimage, --flat or --pairs")
    bm3d = yardsticks.find_bm3d(options.bm3d_python) if any(case.noise for case in cases) else None
    records = Records(options.records)
    rows = [measure(case, options, bm3d, records) for case in cases]
    if options.json:
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        facts = (date, measured_commit(), machine(options.threads), typed("benchmarks/denoising.py", *sys.argv[1:]))
        common.print_json(asdict(Measurement("denoising", *facts, rows)))
    else:
        print(figure_tables.denoising_table(rows))
    if options.check:
        results = check(rows)
        if not results:
            sys.exit("--check: no bar is about these pictures and presets")
        for line, met in results:
            print(f"{'met' if met else 'MISSED'}: {line}", file=sys.stderr)
        sys.exit(0 if all(met for _, met in results) else 1)


def chosen_cases(options: argparse.Namespace) -> Iterator[Case]:
    """Combine the pictures with the noise."""
    pictures: list[tuple[str, str, np.ndarray]] = []
    for path in options.pictures:
        clean = common.read_image(path).astype(np.float64)
        pictures.append((path.stem, "picture", common.halved(clean) if options.halve else clean))
    for name in options.skimage:
        import skimage.data

        image = getattr(skimage.data, name)() / 255
        pictures.append((name, "texture", common.halved(image.reshape(*image.shape[:2], -1))))
    if options.flat:
        pictures.append(("flat", "flat", np.full((256, 256, 3), 0.5)))
    sigmas = options.sigma or ([0.0] if options.poisson else [25.0])
    for peak in options.poisson or [None]:
        for sigma in sigmas:
            for picture, kind, clean in pictures:
                yield Case(picture, kind, clean, Noise(sigma, peak))


def camera_cases(folder: Path) -> Iterator[Case]:
    """Find the pairs of a folder: one exposure, and the mean of many, which is taken as clean."""
    for path in sorted(folder.glob("*_real.*")):
        name = path.stem.removesuffix("_real")
        noisy, clean = (common.read_image(each).astype(np.float64) for each in (path, path.with_stem(f"{name}_mean")))
        yield Case(name, "camera", clean, CameraNoise(255 * float(np.std(noisy - clean))), noisy)


# --- measuring ----------------------------------------------------------------------------------------------------


class Records:
    """Measurements by what they were made with, also in a file, a line each, if one is given."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        self.known = {json.dumps(entry["of"], sort_keys=True): entry["found"] for entry in map(json.loads, lines)}

    def get(self, of: Row, measured: Callable[[], Row]) -> Row:
        """Return what is known, or measure it."""
        name = json.dumps(of, sort_keys=True)
        if name not in self.known or "modified" in of.get("commit", ""):
            self.known[name] = found = measured()
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(json.dumps({"of": of, "found": found}) + "\n")
            print(f"{of['picture']}, {of['noise']}: {of['method']} {found['psnr']:.2f} dB", file=sys.stderr)
        return self.known[name]


def measure(case: Case, options: argparse.Namespace, bm3d: BM3D | None, records: Records) -> Row:
    """Restore a picture by all presets and yardsticks: a row."""
    noisy, facts = case.noisy(), case.facts()
    row: Row = {**facts, "noisy": averaged([quality(noisy, case.clean)]), "nlm": None, "bm3d": None, "presets": {}}
    yards = {"nlm": partial(by_non_local_means, case, noisy)} if case.noise else {}
    if case.noise and bm3d is not None:
        yards["bm3d"] = partial(by_bm3d, case, noisy, bm3d)
    row |= {name: averaged([records.get({**facts, "method": name}, by_yard)]) for name, by_yard in yards.items()}
    settings = {name: vars(options)[name] for name in ("iterations", "device", "threads")}
    settings |= {"option": options.noise, "commit": measured_commit() if options.records else ""}
    for preset in options.presets:
        fits = [
            records.get(
                {**facts, **settings, "method": preset, "seed": seed},
                partial(by_dip_fast, case, noisy, preset, seed, options),
            )
            for seed in range(options.seeds)
        ]
        row["presets"][preset] = averaged(fits)
    return row


def averaged(measurements: list[Row]) -> Row:
    """Average measurements, figure by figure, to three digits."""
    means = {name: common.mean([found[name] for found in measurements]) for name in measurements[0]}
    return {name: None if value is None else round(value, 3) for name, value in means.items()}


def by_non_local_means(case: Case, noisy: np.ndarray) -> Row:
    """Measure non-local means."""
    return quality(yardsticks.non_local_means(noisy, case.clean, case.noise), case.clean)


def by_bm3d(case: Case, noisy: np.ndarray, bm3d: BM3D) -> Row:
    """Measure BM3D, at the best of some deviations where the noise is that of a camera."""
    factors = DEVIATIONS if case.kind == "camera" else (1.0,)
    found = [bm3d(noisy, replace(case.noise, sigma=factor * case.noise.sigma)) for factor in factors]
    return max(({**quality(image, case.clean), "seconds": seconds} for image, seconds in found), key=itemgetter("psnr"))


def by_dip_fast(case: Case, noisy: np.ndarray, preset: str, seed: int, options: argparse.Namespace) -> Row:
    """Restore as a user does, and compare the result with the clean picture."""
    noise = options.noise
    if noise == "true":
        noise = case.noise.option if case.noise else "auto"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "noisy.tif"
        kind = "minisblack" if noisy.shape[2] == 1 else "rgb"
        tifffile.imwrite(file, noisy[..., 0] if noisy.shape[2] == 1 else noisy, photometric=kind)
        arguments = ["run", str(file), "--out", str(Path(folder) / "run"), "--preset", preset, "--seed", str(seed)]
        arguments += ["--noise", noise, "--device", options.device, "--threads", str(options.threads)]
        if options.iterations is not None:
            arguments += ["--iterations", str(options.iterations)]
        started = time.perf_counter()
        # -P: the package that this script imports, not one that lies in the working folder.
        command = [sys.executable, "-P", "-m", "dip_fast", *arguments, "--quiet", "--json"]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - started
        if ended.returncode:
            sys.exit(f"dip-fast run of {case.picture} with preset {preset} ended with exit code {ended.returncode}")
        summary = json.loads(ended.stdout)
        image = tifffile.imread(summary["result"]).reshape(noisy.shape)
    found = quality(image, case.clean)
    estimated = summary["estimated_psnr"]
    return {
        **found,
        "seconds": summary["seconds"],
        "process_seconds": seconds,
        "estimated_psnr": estimated,
        "estimated_error": None if estimated is None else estimated - found["psnr"],
        "levels": 255 * float(np.abs(image - noisy).mean()),
    }


def quality(image: np.ndarray, clean: np.ndarray) -> Row:
    """Compare an image with the clean one."""
    from dip_fast.pictures.metrics import psnr, ssim

    image = np.clip(image.astype(np.float64), 0, 1)
    return {"psnr": psnr(image, clean), "ssim": ssim(image, clean)}


# --- bars ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """What presets have to reach on some pictures.

    Attributes
    ----------
    text : str
        What it asks for.
    rows : callable
        Whether it is about a row.
    presets : tuple of str
    value : callable
        Computes what is compared, of a row and what a preset reaches; None if it was not measured.
    least : float
        The least value of each picture, or of their mean.
    of_mean : bool
        Whether it is about the mean of the pictures with the same noise.
    """

    text: str
    rows: Callable[[Row], bool]
    presets: tuple[str, ...]
    value: Callable[[Row, Row], float | None]
    least: float
    of_mean: bool = False


def over(yardstick: str) -> Callable[[Row, Row], float | None]:
    """Make a function that computes by how many dB a preset is better than a yardstick."""
    return lambda row, found: None if row[yardstick] is None else found["psnr"] - row[yardstick]["psnr"]


def of(*kinds: str, sigmas: tuple[float, ...]) -> Callable[[Row], bool]:
    """Make a function that chooses rows by the kind of picture and Gaussian noise."""
    return lambda row: row["kind"] in kinds and row["peak"] is None and row["sigma"] in sigmas


def estimate(row: Row, found: Row) -> float | None:
    """Compute how far off the estimated PSNR is, with a minus."""
    return None if found["estimated_error"] is None else -abs(found["estimated_error"])


def of_camera(row: Row) -> bool:
    """Find whether a row is of a camera's picture."""
    return bool(row["kind"] == "camera")


LITTLE = of("picture", "texture", "flat", sigmas=(2, 5))
CLEAN = of("picture", "texture", "flat", sigmas=(0,))
FLAT = of("flat", sigmas=(0,))
BARS = (
    Bar("mean at least BM3D's", of("picture", sigmas=(25,)), ("default",), over("bm3d"), 0.0, of_mean=True),
    Bar("at most 0.2 dB below BM3D", of("picture", sigmas=(25,)), ("default",), over("bm3d"), -0.2),
    Bar("mean 0.4 dB above BM3D's", of("picture", sigmas=(25,)), ("best",), over("bm3d"), 0.4, of_mean=True),
    Bar("at least BM3D", of("picture", sigmas=(25,)), ("best",), over("bm3d"), 0.0),
    Bar("mean at least BM3D's", of("picture", sigmas=(10, 50)), ("best",), over("bm3d"), 0.0, of_mean=True),
    Bar("better than non-local means", of("picture", sigmas=(25,)), ("fast",), over("nlm"), 0.001),
    Bar("at most 0.1 dB below BM3D", of("texture", sigmas=(25,)), ("default", "best"), over("bm3d"), -0.1),
    Bar("mean 0.5 dB above BM3D's", lambda row: row["peak"], ("default", "best"), over("bm3d"), 0.5, of_mean=True),
    Bar("mean 1.5 dB above the input's", of_camera, ("default", "best"), over("noisy"), 1.5, of_mean=True),
    Bar("mean at least BM3D's", of_camera, ("default", "best"), over("bm3d"), 0.0, of_mean=True),
    Bar("estimated within 0.3 dB", of("picture", "texture", sigmas=(10, 25, 50)), EFFORTS, estimate, -0.3),
    Bar("0.3 dB better than the input", LITTLE, EFFORTS, over("noisy"), 0.3),
    Bar("within one level of itself", CLEAN, EFFORTS, lambda _, found: -found["levels"], -1.0),
    Bar(
        "in 10 seconds",
        lambda row: row["kind"] == "flat" and row["noise"] == "no noise",
        EFFORTS,
        lambda _, found: -found["seconds"],
        -10.0,
    ),
)


def check(rows: list[Row]) -> list[tuple[str, bool]]:
    """Compare rows with the bars that are about them: a line each, and whether it is met."""
    results = []
    for bar in BARS:
        about = [row for row in rows if bar.rows(row)]
        for noise, preset in itertools.product(dict.fromkeys(row["noise"] for row in about), bar.presets):
            values = {
                row["picture"]: bar.value(row, row["presets"][preset])
                for row in about
                if row["noise"] == noise and preset in row["presets"]
            }
            if values:
                line, met = compare(bar, {"mean": common.mean([*values.values()])} if bar.of_mean else values)
                results.append((f"{preset}, {noise}: {line}", met))
    return results


def compare(bar: Bar, values: Mapping[str, float | None]) -> tuple[str, bool]:
    """Compare values with a bar; name those that miss it."""
    missed = {name: value for name, value in values.items() if value is None or round(value, 3) < bar.least}
    shown = ", ".join(
        f"{name} {'not measured' if value is None else f'{value:+.2f}'}" for name, value in missed.items()
    )
    return f"{bar.text}; {shown}" if missed else bar.text, not missed


if __name__ == "__main__":
    main()
