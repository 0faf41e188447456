"""A guide for denoising: what another denoiser made of the same picture is mixed in, and a bad one does no harm."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
import torch
from conftest import pixels
from masked_cases import NOISE, RECIPE, SIGMA
from masked_cases import noisy as masked_noisy
from PIL import Image
from run_cases import SHORT, record
from torch import Tensor

import dip_fast
from dip_fast.errors import UsageError
from dip_fast.fitting import masked_prediction, pieces
from dip_fast.fitting.blur import blur
from dip_fast.fitting.guide import mix
from dip_fast.fitting.masked import NO_GUIDE
from dip_fast.models.packing import digest
from dip_fast.pictures import read_picture

TEXTURE = 0.03  # deviation, of independent samples: the best estimate of these is known


def psnr(image: Tensor, clean: Tensor) -> float:
    return -10 * float((image - clean).square().mean().log10())


def estimates(height: int = 96, width: int = 112) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Make a picture, its noisy samples, and two estimates whose errors are a tenth more than the least there is."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(height) / 3.0, torch.arange(width) / 4.0, indexing="ij")
    waves = torch.stack([0.5 + 0.3 * torch.sin(rows + columns / (c + 1)) for c in range(3)])[None]

    def random(deviation: float) -> Tensor:
        return deviation * torch.randn(waves.shape, generator=generator)

    clean = waves + random(TEXTURE)
    y = clean + random(SIGMA)
    share = TEXTURE**2 / (TEXTURE**2 + SIGMA**2)
    best, beyond = waves + share * (y - waves), (0.1 * share) ** 0.5 * SIGMA
    return clean, y, best + random(beyond), best + random(beyond)


def test_a_guide_that_is_as_good_makes_the_estimate_better_than_either() -> None:
    clean, y, z, guide = estimates()
    x, of_guide, mixed = mix(y, z, guide, NOISE)
    assert psnr(x, clean) > max(psnr(z, clean), psnr(guide, clean)) + 0.15
    assert of_guide == pytest.approx(psnr(guide, clean), abs=1.0)
    assert mixed == pytest.approx(psnr(x, clean), abs=1.0)
    assert mixed > of_guide


@pytest.mark.parametrize("guide", ["noisy", "blurred", "slightly blurred", "black"])
def test_a_guide_that_is_worse_does_no_harm(guide: str) -> None:
    """Noise that is left and structure that is lost cancel in the distance of a slightly blurred picture from y."""
    clean, y, z, good = estimates()
    guides = {"noisy": y, "blurred": blur(y, 4.0), "slightly blurred": blur(good, 1.0), "black": 0 * y}
    x, of_guide, _ = mix(y, z, guides[guide], NOISE)
    assert psnr(x, clean) > psnr(z, clean) - 0.05
    assert of_guide == pytest.approx(psnr(guides[guide], clean), abs=1.5)


def test_a_large_picture_is_mixed_in_pieces_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    _, y, z, guide = estimates(90, 80)
    whole, *figures = mix(y, z, guide, NOISE)
    monkeypatch.setattr(pieces, "LARGEST_WHOLE", 1)
    monkeypatch.setattr(pieces, "SIDE", 70)
    made, *in_pieces = mix(y, z, guide, NOISE)
    torch.testing.assert_close(made, whole, atol=1e-6, rtol=0)
    assert in_pieces == pytest.approx(figures)


def test_the_bits_of_a_mixture_depend_on_no_number_of_threads() -> None:
    _, y, z, guide = estimates(110, 120)
    threads, made = torch.get_num_threads(), []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            made.append(mix(y, z, guide, NOISE))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(made[0][0], made[1][0])
    assert made[0][1:] == made[1][1:]


def test_a_guide_says_nothing_where_noise_is_correlated() -> None:
    y = masked_noisy()
    objective = masked_prediction(y, NOISE, RECIPE, block=3, guides=y)
    assert NO_GUIDE in objective.notes
    assert objective.guides is None


def test_samples_that_were_set_aside_have_no_guide() -> None:
    y = masked_noisy()
    known = torch.ones(y.shape, dtype=torch.bool)
    known[0, :, 5, 7] = False
    z = y + 0.01
    wild = torch.where(known, y, 1e6)
    objective = masked_prediction(y, NOISE, RECIPE, known=known, guides=wild)
    mixed = objective._mixed(y, z, wild)
    assert torch.equal(mixed[~known], z[~known])
    assert not torch.equal(mixed, z)


# --- the command and the function ----------------------------------------------------------------------------------


@pytest.fixture
def pictures(place: object, small: object) -> tuple[np.ndarray, np.ndarray]:
    """A noisy picture and its guide, as files too: floats far from 0 to 1."""
    noisy = 1000 * pixels(20, 24, 3, dtype=np.float32) - 300
    guide = smoothed(noisy)
    for name, samples in (("noisy.tif", noisy), ("guide.tif", guide)):
        tifffile.imwrite(name, samples, photometric="rgb")
    return noisy, guide


def smoothed(image: np.ndarray) -> np.ndarray:
    return blur(torch.from_numpy(image).permute(2, 0, 1)[None].float(), 1.0)[0].permute(1, 2, 0).numpy()


GUIDED = ("run", "noisy.tif", "--task", "denoise", "--noise", "20", "--guide", "guide.tif")
OPTIONS = {"noise": 20, "iterations": 6, "channel_axis": -1}


def test_a_guide_from_a_file_gives_the_bits_of_one_from_an_array(dip, place, small):
    noisy = pixels(20, 24, 3)
    guide = smoothed(noisy).round().astype(np.uint8)
    for name, samples in (("noisy.tif", noisy), ("guide.tif", guide)):
        tifffile.imwrite(name, samples, photometric="rgb")
    assert dip(*GUIDED, "--out", "out", *SHORT).code == 0
    found = dip_fast.denoise(noisy, guide=guide, **OPTIONS, return_result=True)
    np.testing.assert_array_equal(found.image, tifffile.imread("out/result.tif"))
    summary = record("out")["summary"]
    assert (summary["guide_psnr"], summary["estimated_psnr"]) == (found.result.guide_psnr, found.estimated_psnr)
    assert (found.image != dip_fast.denoise(noisy, **OPTIONS)).any()


def test_a_guide_has_the_range_of_a_float_picture(dip, pictures):
    noisy, guide = pictures
    outcome = dip(*GUIDED, "--out", "out", "--threads", "1", "--iterations", "6")
    assert outcome.code == 0
    found = dip_fast.denoise(noisy, guide=guide, **OPTIONS, return_result=True).result
    of_guide = record("out")["summary"]["guide_psnr"]
    assert of_guide == pytest.approx(found.guide_psnr, abs=1e-3)
    assert f"of the guide alone {of_guide:.1f} dB".encode() in outcome.out
    unit = dip_fast.denoise(
        (noisy - noisy.min()) / np.ptp(noisy),
        guide=(guide - noisy.min()) / np.ptp(noisy),
        **OPTIONS,
        return_result=True,
    ).result
    assert unit.guide_psnr == pytest.approx(found.guide_psnr, abs=1e-3)


def test_a_part_of_a_picture_has_that_part_of_its_guide(dip, pictures):
    assert dip(*GUIDED, "--preview", "3,2,18,16", "--out", "out", *SHORT).code == 0
    guide = read_picture("guide.tif").in_range(read_picture("noisy.tif").kind)
    assert record("out")["inputs"]["guide"]["sha256"] == digest(np.ascontiguousarray(guide[2:18, 3:21]))


def test_a_run_with_another_guide_is_not_resumed(dip, pictures):
    assert dip(*GUIDED, "--out", "out", *SHORT).code == 0
    tifffile.imwrite("guide.tif", pictures[1] + 1, photometric="rgb")
    outcome = dip(*GUIDED, "--out", "out", "--resume", *SHORT)
    assert outcome.code == 2
    assert "cannot resume: guide and picture must be those that the run was started with" in outcome.err


def test_frames_have_a_guide_each(small):
    frames = pixels(3, 20, 24, dtype=np.float32)
    guides = frames[:, ::-1].copy()
    guides[1] = frames[1]
    options = {"noise": 20, "iterations": 3, "frames_axis": 0}
    with_guides, without = dip_fast.denoise(frames, guide=guides, **options), dip_fast.denoise(frames, **options)
    assert with_guides.shape == frames.shape
    assert all((with_guides[n] != without[n]).any() for n in range(3))


def test_a_guide_that_does_not_fit_is_refused(dip, pictures):
    noisy, guide = pictures
    for samples, got in ((guide[1:], "24x19 pixels with 3 channels"), (guide[..., 0], "24x20 pixels with 1 channel")):
        tifffile.imwrite("guide.tif", samples, photometric="rgb" if samples.ndim == 3 else "minisblack")
        outcome = dip(*GUIDED, "--out", "out", *SHORT)
        assert outcome.code == 2
        assert f"--guide must be 24x20 pixels with 3 channels as the picture is, got {got}" in outcome.err
        with pytest.raises(ValueError, match="guide must have the shape of the image"):
            dip_fast.denoise(noisy, guide=samples, channel_axis=-1)
    with pytest.raises(UsageError, match="guide must be finite"):
        dip_fast.denoise(noisy, guide=np.full_like(noisy, np.nan), channel_axis=-1)
    with pytest.raises(UsageError, match="guide needs a preset that hides samples; take one of fast, default, best"):
        dip_fast.denoise(noisy, guide=guide, preset="quick", channel_axis=-1)


def test_a_stack_of_files_takes_no_guide(dip, place):
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels(20, 24)).save(name)
    outcome = dip("stack", "a.png", "b.png", "--task", "denoise", "--guide", "a.png", "--out", "out")
    assert outcome.code == 2
    assert "a stack takes no --guide; in Python dip_fast.denoise" in outcome.err
