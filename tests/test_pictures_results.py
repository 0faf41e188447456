"""What the formats of results can hold, and that a result has the same bytes whenever it is written."""

import io
from dataclasses import replace

import numpy as np
import pytest
from picture_files import TALL, encode_picture, noise, tiff

from dip_fast.errors import UsageError
from dip_fast.pictures import encode_samples, read_picture
from dip_fast.pictures.kind import DTYPES, Kind


def saved(samples):
    file = io.BytesIO()
    np.save(file, samples)
    return file.getvalue()


def kind_of(dtype, channels=1, **facts):
    return Kind("picture", TALL[1], TALL[0], channels, dtype, (0.0, 1.0), **facts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 7])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_numpy_holds_any_samples_and_channels(dtype, channels, suffix):
    samples = noise(*TALL, channels) > 99 if dtype == "bool" else noise(*TALL, channels, dtype=np.dtype(dtype).type)
    data = encode_samples(samples, kind_of(dtype, channels), suffix=suffix)
    found = np.load(io.BytesIO(data))
    if suffix == ".npz":  # which was an .npy file under another name
        assert found.files == ["image"]
        found = found["image"]
    np.testing.assert_array_equal(found, samples.squeeze())
    assert found.dtype == dtype


def test_numpy_result_of_an_array_is_of_its_kind():
    for dtype in (np.int16, np.int32, np.float64):
        picture = read_picture(saved(noise(*TALL, dtype=dtype) - dtype(9)))
        assert (picture.kind.dtype, picture.kind.suffix) == (np.dtype(dtype).name, ".npy")


def test_integers_of_64_bits_are_narrowed():
    """They failed with a bare error of Python once the result was written."""
    for samples, dtype in (
        (noise(*TALL, dtype=np.uint32).astype(np.uint64), "uint32"),
        (noise(*TALL, dtype=np.int32).astype(np.int64) - 2**31, "int32"),
        (noise(*TALL, dtype=np.int32).astype(np.int64) * 2**20, "float64"),
    ):
        picture = read_picture(saved(samples))
        assert picture.kind.dtype == dtype
        assert f"converted to {dtype}" in picture.notes[-1]
        assert np.load(io.BytesIO(encode_picture(picture.image, picture))).dtype == dtype
    with pytest.raises(UsageError, match="too large for 64-bit float"):
        read_picture(saved(noise(*TALL, dtype=np.int64)))


@pytest.mark.parametrize(
    ("kind", "suffix", "words"),
    [
        (
            kind_of("uint8", 3, alpha="unassalpha"),
            ".jpg",
            r"JPEG cannot hold alpha: name the result .png, .tif or .pnm",
        ),
        (kind_of("uint8", 3, alpha="assocalpha"), ".png", r"cannot hold premultiplied alpha: name the result .tif"),
        (kind_of("uint8", 3, alpha="unassalpha"), ".npy", "NumPy cannot hold alpha"),
        (kind_of("float64", 5), ".png", r"cannot hold float64 samples: name the result .tif, .npy or .npz"),
        (kind_of("uint16", 3), ".mrc", "MRC cannot hold colour: name the result .png"),
    ],
)
def test_a_refusal_names_the_formats_that_can(kind, suffix, words):
    from dip_fast.pictures.writing import check_writable

    with pytest.raises(UsageError, match=words):
        check_writable(kind, suffix)


def test_nan_of_a_picture_without_a_mask_names_the_mask():
    samples = np.full(TALL, 0.5, np.float32)
    samples[3, 4] = np.nan
    with pytest.raises(UsageError, match="replace them with numbers, or fill them in with mask='nan'"):
        read_picture(tiff(samples))
    with pytest.raises(UsageError, match=r"replace them with numbers$"):
        read_picture(tiff(samples * np.nan), missing=True)


@pytest.mark.parametrize(("suffix", "library"), [(".fits", "astropy"), (".mrc", "mrcfile"), (".npz", "numpy")])
def test_a_result_has_the_same_bytes_at_another_time(suffix, library, monkeypatch):
    pytest.importorskip(library)
    import datetime

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + datetime.timedelta(days=1)

        @classmethod
        def utcnow(cls):
            return super().now() + datetime.timedelta(days=1)

    samples, kind = noise(*TALL, 1, dtype=np.float32), replace(kind_of("float32"), suffix=suffix)
    first = encode_samples(samples, kind)
    monkeypatch.setattr(datetime, "datetime", Later)
    if suffix == ".mrc":
        from mrcfile import mrcobject

        monkeypatch.setattr(mrcobject, "datetime", Later)
    assert encode_samples(samples, kind) == first
