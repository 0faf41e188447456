"""JPEG: the boxes of the coefficients that a file stands for, and how far a picture is from them."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import dip_fast
from dip_fast.errors import UsageError
from dip_fast.fitting.patch_prior import PatchPrior, nearest
from dip_fast.fitting.quantisation import dct, total_variation, turned_back
from dip_fast.fitting.start import deep_image_prior
from dip_fast.pictures import read_picture
from dip_fast.pictures.jpeg import read_coding
from dip_fast.pictures.upright import UPRIGHT
from dip_fast.presets import PRESETS
from dip_fast.tasks import TASKS, Data
from dip_fast.tasks.task import as_target


def clean(height=64, width=80, channels=3):
    """Smooth colours with edges, in uint8."""
    rows, columns = np.mgrid[:height, :width] / 12
    planes = [0.5 + 0.3 * np.sin(rows + i) * np.cos(0.7 * columns) + 0.1 * (columns > 3) for i in range(channels)]
    return (np.stack(planes, 2) * 255).astype(np.uint8)


def encoded(samples, **options):
    file = io.BytesIO()
    Image.fromarray(samples.squeeze()).save(file, "JPEG", **options)
    return file.getvalue()


def problem(data):
    """The degradation of a file, and its decoded picture."""
    picture = read_picture(data)
    return TASKS["jpeg"].degradation(Data(picture.image, picture=picture), {}), as_target(picture.image)


def distance(found, x):
    """Root of the mean squared distance to the boxes, in levels of 255."""
    return 255 * (float(found.distance(x)) / found.codes) ** 0.5


@pytest.mark.parametrize("quality", [10, 50, 90])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_original_and_decoded_picture_are_in_the_boxes(quality, subsampling):
    samples = clean()
    found, decoded = problem(encoded(samples, quality=quality, subsampling=subsampling))
    x = as_target(samples.astype(np.float32) / 255)
    moved = (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    error = 255 * float((x - decoded).square().mean()) ** 0.5
    assert distance(found, x) < 0.12 < error  # what encoders and decoders round on their way
    assert distance(found, decoded) < 0.12
    assert distance(found, moved) > 0.5


def test_turn_to_the_data_leads_into_the_boxes():
    found, decoded = problem(encoded(clean(), quality=10))
    away = decoded + 0.1 * torch.randn(decoded.shape, generator=torch.Generator().manual_seed(0))
    near = nearest(found, away, 1e-3)
    assert distance(found, away) > 0.9
    assert distance(found, near) < 0.1
    assert (near - away).square().mean() < (decoded - away).square().mean()
    recipe = PRESETS["quick"].recipe
    assert isinstance(deep_image_prior(found, recipe), PatchPrior)  # JPEG files have the turns


def test_boxes_of_gray_and_of_progressive_files():
    samples = clean(channels=1)
    found, _ = problem(encoded(samples, quality=20, progressive=True))
    assert distance(found, as_target(samples.astype(np.float32) / 255)) < 0.05


def test_sides_that_are_no_multiples_of_a_block():
    samples = clean(61, 75)
    found, decoded = problem(encoded(samples, quality=30))
    x = as_target(samples.astype(np.float32) / 255)
    error = 255 * float((x - decoded).square().mean()) ** 0.5
    assert distance(found, x) < error / 5  # nobody knows what the encoder put beyond the edges
    x.requires_grad_()
    found.data_term(0.5 * x).backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_files_are(orientation):
    stored = np.random.default_rng(0).random((3, 4, 2)).astype(np.float32)
    upright = torch.from_numpy(UPRIGHT[orientation](stored).copy()).permute(2, 0, 1)
    np.testing.assert_array_equal(turned_back(upright, orientation).permute(1, 2, 0), stored)


def test_a_turned_file_has_the_boxes_of_the_turned_picture():
    exif = Image.Exif()
    exif[274] = 6
    samples = clean()
    found, decoded = problem(encoded(samples, quality=10, exif=exif))
    assert decoded.shape[2:] == (80, 64)
    assert distance(found, decoded) < 0.12
    assert distance(found, decoded.flip(-1)) > 0.5


def test_quieter_of_two_pictures_in_the_boxes_is_preferred():
    found, decoded = problem(encoded(clean(), quality=10))
    flatter = 0.5 + 0.999 * (decoded - 0.5)
    assert distance(found, flatter) < 0.2
    assert found.data_term(flatter) < found.data_term(decoded)
    ramp = torch.linspace(0, 1, 11).expand(1, 3, 5, 11)
    assert float(total_variation(ramp)) == pytest.approx(0.1 * 3**0.5, rel=1e-3)


def test_dct_is_orthonormal_and_keeps_means():
    plane = torch.rand(16, 24)
    blocks = dct(plane)
    assert blocks.shape == (2, 8, 3, 8)
    torch.testing.assert_close(blocks.square().sum(), plane.square().sum())
    torch.testing.assert_close(blocks[0, 0, 1, 0], plane[:8, 8:16].mean() * 8)


def test_only_a_jpeg_file_says_how_it_was_compressed(dip, place):
    Image.fromarray(clean()).save("photo.png")
    outcome = dip("run", "photo.png", "--task", "jpeg")
    assert outcome.code == 2
    assert "--task jpeg needs a JPEG file, which says how it was compressed, and photo.png is none" in outcome.err
    (place / "photo.jpg").write_bytes(encoded(clean(), quality=50))
    for cut in (("--preview", "8,8,32,32"), ("--max-size", "32")):
        outcome = dip("run", "photo.jpg", "--task", "jpeg", *cut)
        assert (outcome.code, "has no blocks; leave --preview and --max-size out" in outcome.err) == (2, True)
    with pytest.raises(UsageError, match="cannot read the file: it is not a PNG"):
        dip_fast.dejpeg(b"no picture")
    plain = encoded(clean(), keep_rgb=True)
    with pytest.raises(UsageError, match="its components are not brightness and colour"):
        read_coding(plain)
    with pytest.raises(UsageError, match="it is no JPEG file"):
        read_coding(b"no picture")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("channels", [1, 3])
def test_array_has_the_form_of_the_decoded_one(channels):
    data = encoded(clean(24, 32, channels), quality=10)
    restored = dip_fast.dejpeg(data, iterations=2)
    with Image.open(io.BytesIO(data)) as file:
        decoded = np.asarray(file)
    assert (restored.shape, restored.dtype) == (decoded.shape, decoded.dtype)
