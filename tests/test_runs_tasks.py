"""Runs of tasks that undo something known: the result, reference, replay, resume; and what a mask may be."""

import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from conftest import pixels
from PIL import Image
from run_cases import SHORT, assert_same_run, read, record, signal_after

pytestmark = pytest.mark.usefixtures("place", "small")

TASKS = {
    "inpaint": ("small.png", "--mask", "hole.png", "--mask-white", "hole"),
    "superres": ("small.png", "--task", "superres", "--scale", "3", "--kernel", "lanczos"),
    "deblur": ("small.png", "--kernel", "gaussian:1.2"),
    "jpeg": ("small.jpg", "--task", "jpeg"),
    "guided": ("small.png", "--guide", "large.png", "--scale", "3"),
    "denoise": ("small.png", "--task", "denoise", "--noise", "9", "--guide", "small.jpg"),
}
INPUTS: dict[str, set[str]] = {
    "inpaint": {"mask"},
    "superres": {"kernel"},
    "deblur": {"kernel"},
    "jpeg": set(),
    "guided": {"guide"},
    "denoise": {"guide"},
}

HOLE = np.zeros((20, 24), bool)
HOLE[4:8, 5:9] = True


@pytest.fixture(autouse=True)
def photographs(place):
    """A colour picture as PNG and as JPEG, and one three times larger."""
    large = pixels(3 * 20, 3 * 24, 3)
    Image.fromarray(large).save("large.png")
    Image.fromarray(large).resize((24, 20), Image.Resampling.LANCZOS).save("small.png")
    Image.open("small.png").save("small.jpg", quality=10)
    Image.fromarray(HOLE).save("hole.png")


def run(dip, *arguments, code=0):
    outcome = dip("run", *arguments, *SHORT)
    assert outcome.code == code, outcome.err
    return outcome


@pytest.mark.parametrize("task", TASKS)
def test_result_is_replayed_and_compared_with_reference_and_baseline(dip, task, device):
    reference = "large.png" if task in ("superres", "guided") else "small.png"
    run(dip, *TASKS[task], "--reference", reference, "--out", "out", "--device", device)
    found = record("out")
    with Image.open("out/result.png") as result, Image.open(reference) as clean:
        assert (result.size, result.mode) == (clean.size, clean.mode)
        written = np.asarray(result)
    assert found["settings"]["task"] == task
    assert found["settings"]["device"] == device.type
    assert found["summary"]["psnr"] > 5
    assert found["summary"]["baseline"]["psnr"] > 15
    assert found["inputs"].keys() - {"picture", "reference"} == INPUTS[task]
    assert dip("replay", "out/model.onnx", "--out", "again.png").code == 0
    with Image.open("again.png") as again:
        np.testing.assert_array_equal(np.asarray(again), written)


@pytest.mark.parametrize("task", TASKS)
def test_interrupted_run_goes_on_bit_for_bit(dip, task, device, monkeypatch):
    arguments = (*TASKS[task], "--device", device)
    run(dip, *arguments, "--out", "whole")
    with monkeypatch.context() as patch:
        patch.setattr(
            "dip_fast.fitting.loop.MAX_STEPS_BETWEEN_SYNCS", 3
        )  # a GPU would make all steps before the host looks
        signal_after(patch, lambda fit: fit.steps == 3, signal.SIGTERM)
        run(dip, *arguments, "--out", "parts", code=130)
    run(dip, *arguments, "--out", "parts", "--resume")
    assert_same_run("whole", "parts")


def test_run_with_another_kernel_is_not_resumed(dip):
    run(dip, *TASKS["deblur"], "--out", "out")
    outcome = run(dip, "small.png", "--kernel", "gaussian:1.3", "--out", "out", "--resume", code=2)
    assert "cannot resume: kernel and picture must be those that the run was started with" in outcome.err


def test_alpha_grows_with_the_picture(dip):
    alpha = np.full((20, 24), 255, np.uint8)
    alpha[:, 12:] = 0
    Image.fromarray(np.dstack([np.asarray(Image.open("small.png")), alpha])).save("cut.png")
    run(dip, "cut.png", "--task", "superres", "--out", "out")
    found = np.asarray(Image.open("out/result.png"))
    assert found.shape == (40, 48, 4)
    assert (found[:, :22, 3] == 255).all()
    assert (found[:, 26:, 3] == 0).all()


def test_scale_out_of_reach_is_refused(dip):
    outcome = run(dip, "small.png", "--task", "superres", "--scale", "9", code=2)
    assert outcome.err == "dip-fast: --scale 9 must be from 2 to 8\n"


# --- inpainting: what says which pixels are missing ---------------------------------------------------------------


def holed(kind):
    """Write a picture with a hole and what names it; the arguments of its run."""
    picture = np.array(Image.open("small.png"))
    if kind in ("known", "hole"):
        Image.fromarray(np.where((kind == "hole") == HOLE, 255, 0).astype(np.uint8)).save("mask.png")
        return "small.png", "--mask", "mask.png", "--mask-white", kind
    if kind == "layer":
        layer = np.zeros((20, 24, 4), np.uint8)
        layer[HOLE] = (200, 30, 30, 128)
        Image.fromarray(layer).save("layer.png")
        return "small.png", "--mask", "layer.png"
    if kind == "alpha":
        Image.fromarray(np.dstack([picture, np.where(HOLE, 100, 255).astype(np.uint8)])).save("cut.png")
        return "cut.png", "--mask", "alpha"
    if kind == "colour":
        picture[HOLE] = (255, 0, 255)
        Image.fromarray(picture).save("keyed.png")
        return "keyed.png", "--mask", "#FF00ff"
    samples = picture.astype(np.float32) / 255
    samples[HOLE, 1] = np.nan
    tifffile.imwrite("missing.tif", samples, photometric="rgb")
    return "missing.tif", "--mask", "nan"


@pytest.mark.parametrize("kind", ["known", "hole", "layer", "alpha", "colour", "nan"])
def test_hole_is_found_filled_and_counted(dip, kind):
    arguments = holed(kind)
    outcome = dip("run", *arguments, "--out", "out", *SHORT[:-1])  # not quiet
    assert outcome.code == 0, outcome.err
    assert "filling in 16 pixels (3.3%)" in outcome.err.splitlines()
    name = "result.tif" if kind == "nan" else "result.png"
    found = read(Path("out", name))
    before = np.array(Image.open("small.png"))
    known = found[~HOLE][:, :3]
    np.testing.assert_array_equal(np.rint(255 * known) if kind == "nan" else known, before[~HOLE])
    assert np.isfinite(found).all()
    assert (found[HOLE][:, :3] != before[HOLE]).any()
    if kind == "alpha":  # what was filled in is there to be seen
        assert (found[..., 3] == 255).all()
    assert dip("replay", "out/model.onnx", "--out", f"again{name[6:]}").code == 0


def test_hole_in_a_picture_of_16_bits_has_a_colour(dip):
    import imagecodecs

    picture = np.full((20, 24, 3), 20000, np.uint16)
    picture[HOLE] = (0, 65535, 0)
    Path("deep.png").write_bytes(imagecodecs.png_encode(picture))
    outcome = dip("run", "deep.png", "--mask", "#00ff00", *SHORT[:-1])
    assert "filling in 16 pixels (3.3%)" in outcome.err.splitlines()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("white.png", "--mask leaves nothing to fill in: all pixels are known; mark some"),
        ("#012345", "--mask leaves nothing to fill in: all pixels are known; mark some"),
        ("nan", "--mask leaves nothing to fill in: all pixels are known; mark some"),
        ("alpha", "--mask alpha: the picture has no alpha; name a file instead"),
        ("#0123", "cannot read #0123: there is no such file"),
    ],
)
def test_mask_without_a_hole_is_refused(dip, mask, message):
    Image.fromarray(np.full((20, 24), 255, np.uint8)).save("white.png")
    outcome = run(dip, "small.png", "--mask", mask, code=2)
    assert message in outcome.err


@pytest.mark.parametrize("kind", ["alpha", "colour", "nan"])
def test_what_white_means_is_about_a_file(dip, kind):
    """It was ignored where the picture itself says what is missing."""
    outcome = run(dip, *holed(kind), "--mask-white", "hole", code=2)
    assert "--mask-white hole says what white means in a file, and --mask " in outcome.err


def test_missing_samples_must_be_in_the_hole(dip):
    picture, *_ = holed("nan")
    mask = np.full((20, 24), 255, np.uint8)
    mask[5, 6] = 0
    Image.fromarray(mask).save("mask.png")
    outcome = run(dip, picture, "--mask", "mask.png", code=2)
    assert outcome.err == "dip-fast: 15 pixels that --mask has as known are NaN or infinite; give --mask nan\n"
    assert "are NaN or infinite" in run(dip, picture, code=2).err  # no other task knows what to do with them


# --- two damages at once ------------------------------------------------------------------------------------------


def damaged_twice(kind):
    """Write a clean picture of smooth shapes and what two damages leave of it; the arguments of its run."""
    rows, columns = np.mgrid[:40, :48] / 48
    planes = [0.5 + 0.35 * np.sin(7 * rows + i) * np.cos(5 * columns - i) for i in range(3)]
    clean = np.stack(planes, axis=2).astype(np.float32)
    Image.fromarray(np.rint(255 * clean).astype(np.uint8)).save("clean.png")
    left, arguments = clean, []
    if kind == "holed":
        known = np.random.default_rng(1).random(clean.shape[:2]) < 0.6
        known[12:18, 20:26] = False
        Image.fromarray(np.where(known, 255, 0).astype(np.uint8)).save("mask.png")
        left, arguments = np.where(known[..., None], clean, 0), ["--mask", "mask.png", "--no-composite"]
    if kind == "small":
        left = clean.reshape(20, 2, 24, 2, 3).mean((1, 3))
        arguments = ["--task", "superres", "--kernel", "box", "--stop", "auto"]
    if kind == "blurred":
        left = cv2.GaussianBlur(clean, (0, 0), 1.5, borderType=cv2.BORDER_REFLECT)
        arguments = ["--kernel", "gaussian:1.5"]
    noisy = left + np.random.default_rng(0).normal(0, 0.08, left.shape)
    Image.fromarray(np.rint(255 * noisy.clip(0, 1)).astype(np.uint8)).save("damaged.png")
    return ["damaged.png", *arguments, "--reference", "clean.png", "--out", "out"]


@pytest.mark.parametrize("kind", ["holed", "small", "blurred"])
def test_picture_that_is_noisy_too_is_restored(dip, kind):
    """Noise of 22 dB: what the network draws has none of it, in the holes and between them."""
    arguments = damaged_twice(kind)
    outcome = dip("run", *arguments, "--threads", "1", "--iterations", "100", "--snapshot-every", "0")
    assert outcome.code == 0, outcome.err
    found = record("out")["summary"]
    assert found["psnr"] > 26
    assert dip("replay", "out/model.onnx", "--verify").code == 0


def test_known_pixels_that_are_noisy_are_kept_unless_the_network_shall_draw_them(dip):
    arguments = damaged_twice("holed")
    arguments.remove("--no-composite")
    run(dip, *arguments)
    mask = np.asarray(Image.open("mask.png")) > 0
    result, before = np.asarray(Image.open("out/result.png")), np.asarray(Image.open("damaged.png"))
    np.testing.assert_array_equal(result[mask], before[mask])
