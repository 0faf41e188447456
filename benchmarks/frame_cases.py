"""The frames of `frames.py`: how each is made, restored and measured, and its bars."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SEED = 7


@dataclass(frozen=True)
class Figure:
    """Something that was measured, and its bar.

    Attributes
    ----------
    text : str
        What it is, with its unit.
    value : float
        True and False are 1 and 0.
    least, most : float
        The bar.
    """

    text: str
    value: float
    least: float = -math.inf
    most: float = math.inf

    @property
    def is_met(self) -> bool:
        """Whether it is within the bar."""
        return self.least <= round(self.value, 4) <= self.most

    @property
    def bar(self) -> str:
        """The bar in words."""
        if self.least == self.most:
            return f"is {self.least:g}"
        words = [f"at least {self.least:g}"] if self.least > -math.inf else []
        return " and ".join(words + ([f"at most {self.most:g}"] if self.most < math.inf else []))


@dataclass(frozen=True)
class Bench:
    """How files are restored.

    Attributes
    ----------
    folder : Path
        For the files; empty.
    size : int
        Side of the frames in pixels.
    preset : str
    arguments : tuple of str
        More of ``dip-fast run``.
    """

    folder: Path
    size: int
    preset: str
    arguments: tuple[str, ...]

    def restored(self, path: Path, *, verb: str = "run") -> Path:
        """Restore a file as a user does, and return the file of the result."""
        out = path.with_name(f"{path.stem}-restored{path.suffix}")
        where = [str(out), "--only-result"] if verb == "run" else [str(out.with_suffix(""))]
        self.dip_fast(verb, str(path), "--preset", self.preset, "--quiet", *self.arguments, "--out", *where)
        return out if verb == "run" else out.with_suffix("") / path.name

    def dip_fast(self, *arguments: str) -> None:
        """Run a verb in a process of its own."""
        ended = subprocess.run(dip_fast(*arguments))
        if ended.returncode:
            sys.exit(f"dip-fast {arguments[0]} of {arguments[1]} ended with exit code {ended.returncode}")

    def restored_array(self, name: str, samples: np.ndarray, **options: Any) -> np.ndarray:
        """Restore an array from a TIFF file."""
        path = self.folder / f"{name}.tif"
        tifffile.imwrite(path, samples, photometric="minisblack", **options)
        result = tifffile.imread(self.restored(path))
        if samples.ndim == 3:  # the channels of a result are its last axis
            result = np.moveaxis(result, -1, 0)
        if result.shape != samples.shape or result.dtype != samples.dtype:
            sys.exit(f"{name}: {samples.shape} {samples.dtype} came back as {result.shape} {result.dtype}")
        return result


def dip_fast(*arguments: str) -> list[str]:
    """Make the command of a process."""
    # -P: the package that this script imports, not one that lies in the working folder.
    return [sys.executable, "-P", "-m", "dip_fast", *arguments]


def psnr(image: np.ndarray, clean: np.ndarray, span: float = 1.0) -> float:
    """Compute the PSNR of samples whose scene spans so much."""
    return -10 * math.log10(float(np.mean((image.astype(np.float64) - clean) ** 2)) / span**2)


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """Compute by how many percent the means of two images differ."""
    return 100 * abs(float(a.mean(dtype=np.float64)) / float(b.mean(dtype=np.float64)) - 1)


# --- scenes ---------------------------------------------------------------------------------------------------------


def landscape(height: int, width: int, seed: int = SEED) -> np.ndarray:
    """Draw hills with edges and some texture: float64, about 0.1 to 0.9."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    scene = 0.45 + 0.1 * np.sin(y / 19 + 1) + 0.1 * np.cos(x / 23)
    for _ in range(12):  # discs and half planes, as things have edges
        cy, cx, r = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(6, 22)
        scene += np.where((y - cy) ** 2 + (x - cx) ** 2 < r**2, rng.uniform(-0.25, 0.25), 0)
    scene += 0.05 * np.sin(x / 2.5 + y / 4) * (x > width / 2)  # half of it is textured
    low, high = scene.min(), scene.max()
    return 0.1 + 0.8 * (scene - low) / (high - low)


def with_noise(clean: np.ndarray, deviation: float, seed: int = SEED) -> np.ndarray:
    """Add Gaussian noise."""
    return clean + np.random.default_rng(seed).normal(0, deviation, clean.shape)


# --- three frames ---------------------------------------------------------------------------------------------------

APERTURE = 7  # pixels: the radius within which a star's light is summed; 8 deviations of its image lie outside
SKY = 1000.0


def stars(bench: Bench) -> Iterator[Figure]:
    """Stars over a sky in 16-bit FITS: their light, the noise of the sky, and the header."""
    from astropy.io import fits

    side, gain, reading = bench.size, 1.5, 8.0
    rng = np.random.default_rng(SEED)
    y, x = np.mgrid[:side, :side].astype(np.float64)
    sky = SKY + 40 * (x + y) / side
    places = [(i, j) for i in range(16, side - 15, 32) for j in range(16, side - 15, 32)]
    centres = [(i + rng.uniform(-4, 4), j + rng.uniform(-4, 4)) for i, j in places]
    light = np.geomspace(3e3, 1.2e6, len(centres))  # the brightest reaches the end of 16 bits nearly
    rng.shuffle(light)
    clean = sky.copy()
    for (cy, cx), sum_ in zip(centres, light, strict=True):
        clean += sum_ / (2 * np.pi * 1.8**2) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * 1.8**2))
    noisy = np.clip(np.rint(rng.poisson(clean * gain) / gain + rng.normal(0, reading, clean.shape)), 0, 65535)
    path = bench.folder / "stars.fits"
    cards = {"OBJECT": "M 67", "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 31.5, "CRPIX2": 12.0}
    fits.PrimaryHDU(noisy.astype(np.uint16), fits.Header(cards)).writeto(path)
    with fits.open(bench.restored(path)) as file:
        header, stored = file[0].header, file[0].data
    result = stored.astype(np.float64)
    near = [(y - cy) ** 2 + (x - cx) ** 2 < APERTURE**2 for cy, cx in centres]
    true, seen, found = ([float((image - sky)[place].sum()) for place in near] for image in (clean, noisy, result))
    blur = [math.sqrt(float((clean / gain + reading**2)[place].sum())) for place in near]  # of a sum, by the noise
    bright = [n for n, sum_ in enumerate(true) if sum_ > 300 * blur[n]]
    off = [100 * abs(found[n] / true[n] - 1) for n in bright]
    yield Figure(f"largest error of the light of {len(bright)} bright stars, %", max(off, default=0), most=1)
    yield Figure(
        f"mean error of the light of all {len(true)} stars, times that of the noisy frame",
        float(np.mean(np.abs(np.subtract(found, true)))) / float(np.mean(np.abs(np.subtract(seen, true)))),
        most=1,
    )
    dark = np.abs(clean - sky) < 1
    yield Figure("noise of the sky, dB less", psnr(result[dark], clean[dark]) - psnr(noisy[dark], clean[dark]), least=8)
    yield Figure("brightness of the sky, % off", apart(result[dark], clean[dark]), most=0.1)
    yield Figure("cards of the header that came back", sum(header[key] == card for key, card in cards.items()), 5, 5)
    yield Figure("dtype is kept", float(stored.dtype == np.uint16), 1, 1)


def cells(bench: Bench) -> Iterator[Figure]:
    """Nuclei and membranes, 16 bits, in an OME-TIFF stack of three planes: both channels, axes and pixel size."""
    side, planes = bench.size, 3
    rng = np.random.default_rng(SEED)
    z, y, x = np.mgrid[:planes, :side, :side].astype(np.float64)
    nuclei, walls = np.full(z.shape, 4.0), np.full(z.shape, 2.0)
    for _ in range(side // 10):
        cy, cx, r = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(6, 10)
        distance = np.sqrt((y - cy) ** 2 + (x - cx) ** 2 + 9 * (z - 1) ** 2)
        nuclei += rng.uniform(30, 80) / (1 + np.exp((distance - r) * 1.5))
        walls += 12 * np.exp(-((distance - 1.6 * r) ** 2) / 4)
    clean = np.stack([nuclei, walls], axis=1)  # ZCYX, in photons
    gain, dark = 12.0, 100.0
    samples = np.rint(dark + gain * rng.poisson(clean) + rng.normal(0, 6, clean.shape))
    noisy = np.clip(samples, 0, 65535).astype(np.uint16)
    path = bench.folder / "cells.ome.tif"
    sizes = {"PhysicalSizeX": 0.1625, "PhysicalSizeY": 0.1625, "PhysicalSizeZ": 0.5}
    names = {"Channel": {"Name": ["DAPI", "WGA"]}}
    tifffile.imwrite(path, noisy, photometric="minisblack", metadata={"axes": "ZCYX", **sizes, **names})
    with tifffile.TiffFile(bench.restored(path, verb="stack")) as file:
        series, xml = file.series[0], file.ome_metadata or ""
        result, axes = series.asarray(), series.axes
    kept = [f'{name}="{size}"' in xml for name, size in sizes.items()]
    yield Figure("axes and dtype are kept", float((axes, result.dtype) == ("ZCYX", noisy.dtype)), 1, 1)
    yield Figure("pixel sizes that are kept", sum(kept), 3, 3)
    yield Figure("names of two channels that are kept", sum(f'Name="{name}"' in xml for name in ("DAPI", "WGA")), 2, 2)
    truth = dark + gain * clean
    for n, name in enumerate(("nuclei", "walls")):
        before, after = (psnr(image[:, n], truth[:, n]) for image in (noisy, result))
        yield Figure(f"{name}: PSNR gained, dB", after - before, least=5)
        yield Figure(f"{name}: brightness, % off", apart(result[:, n], truth[:, n]), most=0.5)


def page(bench: Bench) -> Iterator[Figure]:
    """A scanned page of text at 300 dpi, 8 bits: resolution, noise, and the contrast of the letters."""
    side = bench.size
    sheet = Image.new("L", (2 * side, 2 * side), 232)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=56)
    lines = ["The quick brown", "fox jumps over", "the lazy dog and", "packs five dozen", "jugs of red wine"]
    lines = [f"{line}   {line.upper()}" for line in lines * (1 + side // 180)]
    for n, line in enumerate(lines):
        pen.text((14, 10 + 72 * n), line, fill=38, font=font)
    drawn = sheet.filter(ImageFilter.GaussianBlur(1.4)).resize((side, side), Image.Resampling.BOX)  # as a lens does
    clean = np.asarray(drawn, np.float64) + np.linspace(-6, 6, side)  # the lamp is at the right
    noisy = np.clip(np.rint(with_noise(clean, 14)), 0, 255).astype(np.uint8)
    path = bench.folder / "page.png"
    Image.fromarray(noisy).save(path, dpi=(300, 300))
    with Image.open(bench.restored(path)) as file:
        result, dpi = np.asarray(file).astype(np.float64), file.info.get("dpi", (0, 0))
    yield Figure("resolution, dpi", round(float(dpi[0]), 1), 300, 300)
    yield Figure("PSNR gained, dB", psnr(result, clean) - psnr(noisy, clean), least=6)
    steep = np.hypot(*np.gradient(clean)) > 30
    slope = [np.hypot(*np.gradient(image))[steep].mean() for image in (result, clean)]
    yield Figure("steepness of the edges of the letters, times the clean page's", slope[0] / slope[1], 0.95, 1.05)
    ink, paper = clean < 80, clean > 220
    contrast = [image[paper].mean() - image[ink].mean() for image in (result, clean)]
    yield Figure("contrast of ink and paper, times the clean page's", contrast[0] / contrast[1], 0.97, 1.03)


# --- what was reported of other programs ----------------------------------------------------------------------------


def hot(bench: Bench) -> Iterator[Figure]:
    """A dark linear frame of 16 bits with one pixel at 65535, beside the same frame without it."""
    clean = 300 + 600 * landscape(bench.size, bench.size)
    frame = np.rint(with_noise(clean, 20)).astype(np.uint16)
    changed, (i, j) = frame.copy(), (bench.size // 3, bench.size // 2 + 5)
    changed[i, j] = 65535
    without, result = bench.restored_array("frame", frame), bench.restored_array("hot", changed)
    yield Figure("the hot pixel", float(result[i, j]), 65535, 65535)
    rest = np.ones(frame.shape, bool)
    rest[i, j] = False
    half = bench.size // 2
    quarters = [np.s_[a : a + half, b : b + half] for a in (0, half) for b in (0, half)]
    off = max(apart(result[q][rest[q]], clean[q][rest[q]]) for q in quarters)
    yield Figure("largest error of the mean of a quadrant, %", off, most=0.5)
    lost = psnr(without[rest], clean[rest]) - psnr(result[rest], clean[rest])
    yield Figure("PSNR lost to the hot pixel, dB", lost, most=0.5)
    yield Figure("PSNR gained, dB", psnr(result[rest], clean[rest]) - psnr(frame[rest], clean[rest]), least=5)


def patch(bench: Bench) -> Iterator[Figure]:
    """A patch at 40 in a linear float picture of 0 to 1, beside the same picture without it."""
    clean = landscape(bench.size, bench.size)
    frame = with_noise(clean, 0.05).astype(np.float32)
    side = bench.size // 11
    place = np.s_[2 * side : 3 * side, 4 * side : 5 * side]
    changed, rest = frame.copy(), np.ones(frame.shape, bool)
    changed[place], rest[place] = 40 + 20 * (frame[place] - clean[place]), False
    without, result = bench.restored_array("scene", frame), bench.restored_array("lamp", changed)
    yield Figure("brightness of the patch, % off", 100 * abs(float(result[place].mean()) / 40 - 1), most=1)
    lost = psnr(without[rest], clean[rest]) - psnr(result[rest], clean[rest])
    yield Figure("PSNR of the scene lost to the patch, dB", lost, most=0.3)
    yield Figure("brightness of the scene, % off", apart(result[rest], clean[rest]), most=0.5)


def shade(bench: Bench) -> Iterator[Figure]:
    """A left half that is three stops darker, with the noise of its photons, beside each half alone."""
    half = bench.size // 2
    scene = landscape(bench.size, half)
    clean = np.hstack([scene / 8, scene[::-1]])
    noisy = (np.random.default_rng(SEED).poisson(clean * 800) / 800).astype(np.float32)
    result = bench.restored_array("both", noisy)
    for name, part in (("dark", np.s_[:, :half]), ("bright", np.s_[:, half:])):
        alone = bench.restored_array(name, np.ascontiguousarray(noisy[part]))
        lost = psnr(alone, clean[part]) - psnr(result[part], clean[part])
        yield Figure(f"{name} half: PSNR lost to the other, dB", lost, most=0.3)
        yield Figure(f"{name} half: brightness, % off", apart(result[part], clean[part]), most=0.5)


def channels(bench: Bench) -> Iterator[Figure]:
    """22 channels with a factor of 1000 between them, one of them dead."""
    number, dead = 22, 5
    scene = np.stack([landscape(bench.size, bench.size, n % 4) for n in range(number)])
    factors = np.geomspace(1, 1000, number)[:, None, None]
    clean = factors * scene
    noisy = (clean + factors * np.random.default_rng(SEED).normal(0, 0.05, clean.shape)).astype(np.float32)
    noisy[dead] = 7
    planes = {"planarconfig": "separate", "metadata": None}
    result = bench.restored_array("channels", noisy, **planes)
    yield Figure("the dead channel is as it was", float((result[dead] == 7).all()), 1, 1)
    living = [n for n in range(number) if n != dead]
    gains = [psnr(result[n], clean[n]) - psnr(noisy[n], clean[n]) for n in living]
    yield Figure("PSNR gained by the worst channel, dB", min(gains), least=5)
    worst = max(apart(result[n], clean[n]) for n in living)
    yield Figure("brightness of the worst channel, % off", worst, most=0.5)


def odd(bench: Bench) -> Iterator[Figure]:
    """A 16-bit picture of odd sides: its outer pixels are as good as those inside."""
    height, width = bench.size + 3, bench.size - 11
    # The same everywhere, so that its outer pixels are no easier: waves, and as much to the edge as inside.
    y, x = np.mgrid[:height, :width]
    scene = 0.5 + 0.2 * np.sin(x / 3.1 + y / 7) + 0.15 * np.cos(y / 3.7 - x / 9)
    clean = 10_000 + 40_000 * scene
    # So little noise that its own mean over the outer 8 pixels is 0.05% of the picture's.
    noisy = np.rint(with_noise(clean, 1000)).clip(0, 65535).astype(np.uint16)
    error = bench.restored_array("odd", noisy) - clean
    inside = np.zeros(noisy.shape, bool)
    inside[32:-32, 32:-32] = True
    for width in (8, 32):
        outer = np.ones(noisy.shape, bool)
        outer[width:-width, width:-width] = False
        yield Figure(
            f"bias of the outer {width} pixels, % of the mean", 100 * abs(error[outer].mean()) / 30_000, most=0.2
        )
        ratio = float(np.sqrt((error[outer] ** 2).mean() / (error[inside] ** 2).mean()))
        yield Figure(f"error of the outer {width} pixels, times that inside", ratio, most=1.25)


def flat(bench: Bench) -> Iterator[Figure]:
    """A picture of one gray, 8 bits."""
    path = bench.folder / "flat.png"
    Image.fromarray(np.full((bench.size, bench.size), 77, np.uint8)).save(path)
    begin = time.perf_counter()
    result = np.asarray(Image.open(bench.restored(path))).astype(int)
    yield Figure("seconds, with the start of Python", time.perf_counter() - begin, most=20)
    yield Figure("levels from what it was", float(np.abs(result - 77).max()), most=1)


def large(bench: Bench) -> Iterator[Figure]:
    """12000x8000 floats: time and memory until the answer, which says what the fit takes, or that it is too much."""
    path = bench.folder / "large.tif"
    picture = tifffile.memmap(path, shape=(8000, 12000), dtype=np.float32)
    rng = np.random.default_rng(SEED)
    for rows in np.split(picture, 16):
        rows[:] = rng.random(rows.shape, np.float32)
    picture.flush()
    del picture
    for preset in (bench.preset, "quick"):
        begin = time.perf_counter()
        command = dip_fast("run", str(path), "--out", str(bench.folder / preset), "--preset", preset)
        with subprocess.Popen([*command, *bench.arguments], stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            line = next((line for line in process.stderr if "may take" in line or "needs about" in line), "")
            seconds, memory = time.perf_counter() - begin, _peak(process.pid)
            process.kill()
        print(f"large, {preset}: {line.strip() or 'no answer'}", file=sys.stderr)
        yield Figure(f"{preset}: seconds to the answer", seconds if line else math.inf, most=10)
        yield Figure(f"{preset}: peak memory, GB", memory / 1e9, most=2)


def _peak(process: int) -> float:
    """Read the most memory that a process has had, in bytes, also once it has ended and waits."""
    status = Path(f"/proc/{process}/status").read_text()
    found = [line.split() for line in status.splitlines() if line.startswith("VmHWM")]
    if found:
        return 1024 * float(found[0][1])
    import resource

    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    return 1024 * float(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


CASES: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    case.__name__: case for case in (stars, cells, page, hot, patch, shade, channels, odd, flat, large)
}
