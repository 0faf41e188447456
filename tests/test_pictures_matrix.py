"""Forty kinds of files: read, restored in three steps, written, and read again by another library.

What was read has to be what the library that is asked first finds, and what was written what another one finds.
"""

import io
from dataclasses import dataclass

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from picture_files import COLOURS, ICC, palette_picture, pillow, png
from PIL import Image

from dip_fast.pictures import encode_samples, read_picture
from dip_fast.runs.job import complete, start
from dip_fast.tasks import Data

SIZE = (20, 24)  # height, width
FULL = {"uint8": 255, "uint16": 65535}


def scene(*channels, dtype="uint8", seed=3):
    """A smooth picture with some noise, over most of the range of its dtype."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] / 24
    values = np.stack(
        [0.5 + 0.3 * np.sin(5 * rows + i) * np.cos(4 * columns) for i in range(channels[0] if channels else 1)]
    )
    values = np.clip(np.moveaxis(values, 0, 2) + rng.normal(0, 0.03, (*SIZE, len(values))), 0, 1)
    values = values if channels else values[..., 0]
    return values.astype(dtype) if dtype not in FULL else (values * FULL[dtype]).round().astype(dtype)


def tiff(samples, **options):
    file = io.BytesIO()
    colour = samples.ndim == 3 and (options.get("planarconfig") == "separate" or samples.shape[-1] in (3, 4))
    tifffile.imwrite(file, samples, **{"photometric": "rgb" if colour else "minisblack", "metadata": None, **options})
    return file.getvalue()


@dataclass(frozen=True)
class File:
    """A kind of file.

    Attributes
    ----------
    make : callable
        Returns its content.
    samples : ndarray
        What it holds, upright: ``(H, W)`` or ``(H, W, C)``, alpha last.
    suffix : str
        Of the result.
    dpi : tuple of float, optional
        Across and down.
    profile : bool
        Whether it has a colour profile.
    within : int
        How far a lossy format may be off.
    library : str
        That of an extra, if any.
    """

    make: object
    samples: np.ndarray
    suffix: str = ".png"
    dpi: object = None
    profile: bool = False
    within: float = 0
    library: str = ""


GRAY, RGB, RGBA, LA = scene(), scene(3), scene(4), scene(2)
GRAY16, RGB16, RGBA16 = (scene(*c, dtype="uint16") for c in ((), (3,), (4,)))
BRIGHT, WHITE = GRAY > 128, np.uint8(255)
GRAYF, RGBF = scene(dtype="float32"), scene(3, dtype="float32")


def of_tiff(samples, dpi=None, profile=False, **options):
    if dpi:
        options |= {"resolution": dpi, "resolutionunit": 2}
    if profile:
        options["iccprofile"] = ICC
    return File(lambda: tiff(samples, **options), samples, ".tif", dpi, profile)


def planar(samples, **options):
    return File(lambda: tiff(np.moveaxis(samples, 2, 0), planarconfig="separate", **options), samples, ".tif")


def with_orientation(number):
    stored = {3: lambda a: a[::-1, ::-1], 6: lambda a: np.rot90(a), 8: lambda a: np.rot90(a, -1)}[number](RGB)
    exif = Image.Exif()
    exif[274] = number
    return np.ascontiguousarray(stored), exif.tobytes()


def palette():
    return COLOURS[np.asarray(palette_picture(COLOURS))]


def saved(array, compressed=False):
    file = io.BytesIO()
    if compressed:
        np.savez_compressed(file, array)
    else:
        np.save(file, array)
    return file.getvalue()


def fits_file(array):
    from astropy.io import fits

    header = fits.Header({"OBJECT": "M 42", "CRVAL1": 83.8, "CRPIX1": 10.5})
    file = io.BytesIO()
    fits.PrimaryHDU(array[::-1], header).writeto(file)  # rows from below
    return file.getvalue()


def mrc_file(array):
    import mrcfile

    with mrcfile.mrcinterpreter.MrcInterpreter() as file:
        file._iostream = target = io.BytesIO()
        file._create_default_attributes()
        file.set_data(array)
        file.voxel_size = 1.06
        file.flush()
        return target.getvalue()


def cv2_file(suffix, samples):
    stored = samples if samples.ndim == 2 else cv2.cvtColor(samples, cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(suffix, stored)[1])


MATRIX = {
    "png 8 gray": File(lambda: pillow(GRAY, "PNG", dpi=(300, 300)), GRAY, dpi=(300, 300)),
    "png 8 rgb profile": File(lambda: pillow(RGB, "PNG", icc_profile=ICC), RGB, profile=True),
    "png 8 rgba": File(lambda: pillow(RGBA, "PNG"), RGBA),
    "png 8 gray alpha": File(lambda: pillow(LA, "PNG"), LA),
    "png 16 gray": File(lambda: bytes(imagecodecs.png_encode(GRAY16)), GRAY16),
    "png 16 rgb": File(lambda: bytes(imagecodecs.png_encode(RGB16)), RGB16),
    "png 16 rgba": File(lambda: bytes(imagecodecs.png_encode(RGBA16)), RGBA16),
    "png 1 bit": File(lambda: png(SIZE, 1, 0, [row.tobytes() for row in np.packbits(BRIGHT, axis=1)]), BRIGHT * WHITE),
    "png palette": File(lambda: pillow(palette_picture(COLOURS), "PNG"), palette()),
    "jpeg": File(lambda: pillow(RGB, "JPEG", quality=98, dpi=(72, 72)), RGB, dpi=(72, 72), within=24),
    "jpeg turned": File(
        lambda: pillow(with_orientation(6)[0], "JPEG", quality=98, exif=with_orientation(6)[1]), RGB, within=24
    ),
    "webp": File(lambda: pillow(RGB, "WEBP", lossless=True), RGB),
    "bmp": File(lambda: pillow(RGB, "BMP", dpi=(300, 300)), RGB, dpi=(300, 300)),
    "gif": File(lambda: pillow(palette_picture(COLOURS), "GIF"), palette()),
    "avif": File(lambda: bytes(imagecodecs.avif_encode(RGB, level=100)), RGB),
    "jpeg xl": File(lambda: bytes(imagecodecs.jpegxl_encode(RGB, lossless=True)), RGB),
    "jpeg xl 16 alpha": File(lambda: bytes(imagecodecs.jpegxl_encode(RGBA16, lossless=True)), RGBA16),
    "jpeg xl float": File(lambda: bytes(imagecodecs.jpegxl_encode(RGBF, lossless=True)), RGBF, ".tif"),
    "jpeg 2000 16": File(lambda: bytes(imagecodecs.jpeg2k_encode(RGB16, reversible=True, level=0)), RGB16),
    "pgm": File(lambda: cv2_file(".pgm", GRAY), GRAY, ".pnm"),
    "ppm 16": File(lambda: cv2_file(".ppm", RGB16), RGB16, ".pnm"),
    "pfm": File(lambda: cv2_file(".pfm", RGBF), RGBF, ".pfm"),
    "npy float": File(lambda: saved(RGBF), RGBF, ".npy"),
    "npz 16": File(lambda: saved(GRAY16, compressed=True), GRAY16, ".npy"),
    "tiff 8 gray": of_tiff(GRAY, dpi=(300, 300)),
    "tiff 8 rgb profile": of_tiff(RGB, profile=True),
    "tiff 16 big-endian": of_tiff(RGB16, byteorder=">"),
    "tiff float": of_tiff(GRAYF),
    "tiff bigtiff": of_tiff(GRAY16, bigtiff=True),
    "tiff planar": planar(RGB),
    "tiff planar 16 lzw": planar(RGB16, compression="lzw"),
    "tiff tiles zlib": of_tiff(RGB16, tile=(16, 16), compression="zlib", predictor=True),
    "tiff strips zstd": of_tiff(RGB, rowsperstrip=7, compression="zstd"),
    "tiff packbits": of_tiff(GRAY, compression="packbits"),
    "tiff straight alpha": of_tiff(RGBA, extrasamples=["unassalpha"]),
    "tiff premultiplied alpha": of_tiff(RGBA16, extrasamples=["assocalpha"]),
    "tiff turned": File(lambda: tiff(with_orientation(8)[0], extratags=[(274, "H", 1, 8, True)]), RGB, ".tif"),
    "tiff white is zero": File(lambda: tiff(255 - GRAY, photometric="miniswhite"), GRAY, ".tif"),
    "fits 16": File(lambda: fits_file(GRAY16), GRAY16, ".fits", library="astropy"),
    "fits float": File(lambda: fits_file(GRAYF), GRAYF, ".fits", library="astropy"),
    "mrc": File(lambda: mrc_file(GRAYF), GRAYF, ".mrc", library="mrcfile"),
}


def found(data, suffix):
    """Read a result by a library that did not write it: samples, dots an inch, profile."""
    if suffix == ".png":
        samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        with Image.open(io.BytesIO(data)) as file:
            if file.mode == "LA":  # OpenCV makes colour of it
                samples = np.asarray(file)
            elif samples.ndim == 3:
                samples = samples[..., [2, 1, 0, 3][: samples.shape[2]]]
            return samples, file.info.get("dpi"), file.info.get("icc_profile")
    if suffix == ".tif":
        samples, dpi, profile = tifffile.imread(io.BytesIO(data)), None, None
        if samples.dtype == np.uint8:  # Pillow knows no others
            with Image.open(io.BytesIO(data)) as file:
                dpi, profile = file.info.get("dpi"), file.info.get("icc_profile")
        if samples.ndim == 2 or samples.shape[2] == 3:  # of others, OpenCV changes the alpha
            other = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(other if other.ndim == 2 else other[..., ::-1], samples)
        return samples, dpi, profile
    if suffix in (".pnm", ".pfm"):
        samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        return samples if samples.ndim == 2 else samples[..., ::-1], None, None
    if suffix == ".npy":
        return np.load(io.BytesIO(data)), None, None
    if suffix == ".fits":
        from astropy.io import fits

        with fits.open(io.BytesIO(data)) as file:
            assert (file[0].header["OBJECT"], file[0].header["CRVAL1"], file[0].header["CRPIX1"]) == (
                "M 42",
                83.8,
                10.5,
            )
            samples = file[0].data[::-1]
            return samples.astype(samples.dtype.newbyteorder("=")), None, None
    import mrcfile

    with mrcfile.mrcinterpreter.MrcInterpreter(io.BytesIO(data)) as file:
        assert float(file.voxel_size.x) == pytest.approx(1.06, rel=1e-5)
        return np.asarray(file.data), None, None


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", MATRIX)
def test_read_restored_written_and_read_again(kind):
    case = MATRIX[kind]
    if case.library:
        pytest.importorskip(case.library)
    picture = read_picture(case.make())
    alpha = () if picture.extras.alpha is None else (picture.extras.alpha,)
    read = np.dstack([picture.kind.to_samples(picture.image), *alpha])
    wanted = case.samples.reshape(*case.samples.shape[:2], -1)
    assert (picture.kind.dtype, picture.kind.suffix, read.shape) == (wanted.dtype.name, case.suffix, wanted.shape)
    assert np.abs(read.astype(float) - wanted).max() <= max(case.within, 1e-6 * (wanted.dtype.kind == "f"))

    fit = start(complete({"preset": "quick", "iterations": 3, "threads": 1}), Data(picture.image, picture=picture))
    fit.run()
    samples = picture.kind.to_samples(fit.result().image)
    written = encode_samples(samples, picture.kind, picture.extras)
    again, dpi, profile = found(written, picture.kind.suffix)
    again = again.reshape(*wanted.shape[:2], -1)
    assert again.dtype == samples.dtype
    np.testing.assert_array_equal(again, np.dstack([samples, *alpha]))
    assert (profile == ICC) == case.profile
    if case.dpi is not None:
        assert tuple(float(number) for number in dpi) == pytest.approx(case.dpi, abs=0.02)


def test_there_are_forty_kinds():
    assert len(MATRIX) >= 40
