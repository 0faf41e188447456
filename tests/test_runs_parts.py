"""A part first, a smaller copy, what it will take, and what is refused before anything is loaded or decoded."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from run_cases import ONE, record, texture

from dip_fast.device import devices
from dip_fast.errors import UsageError
from dip_fast.fitting.masked import MASKS_OF_SEVERAL, masks_of
from dip_fast.pictures import read_picture, reading
from dip_fast.presets import PRESETS
from dip_fast.runs import estimate
from dip_fast.runs.job import complete
from dip_fast.runs.parts import Part
from dip_fast.tasks import TASKS

pytestmark = pytest.mark.usefixtures("place", "from_random_input", "small")

SHORT = (*ONE, "-q", "--iterations", "3", "--snapshot-every", "0", "--export", "none")


def test_a_preview_is_the_part_of_the_picture_and_of_all_beside_it(dip, place):
    samples = texture(40, 60)
    Image.fromarray(samples).save("photo.png", dpi=(300, 300))
    mask = np.full((40, 60), 255, np.uint8)
    mask[10:14, 20:24] = 0
    Image.fromarray(mask).save("mask.png")
    Image.fromarray(samples).save("clean.png")
    words = ("run", "photo.png", "--mask", "mask.png", "--reference", "clean.png", "--preview", "16,5,24,20", *SHORT)
    assert dip(*words).code == 0
    with Image.open("runs/photo-preview/result.png") as file:
        result = np.asarray(file)
        assert file.info["dpi"] == pytest.approx((300, 300), abs=0.02)
    part, known = samples[5:25, 16:40], mask[5:25, 16:40] > 0
    np.testing.assert_array_equal(result[known], part[known])
    assert (result[~known] != part[~known]).any()
    assert record("runs/photo-preview")["inputs"]["picture"]["region"] == "16,5,24,20"
    # It goes on as the same part, and as no other.
    assert dip(*words, "--resume").code == 0
    ended = dip("run", "photo.png", "--mask", "mask.png", "--preview", "center", *SHORT, "--resume")
    assert (ended.code, "cannot resume" in ended.err) == (2, True)


def test_a_preview_takes_its_part_of_what_is_as_large_as_the_result(dip, place):
    samples = texture(40, 60)
    Image.fromarray(samples).save("photo.png")
    large = np.kron(samples, np.ones((2, 2), np.uint8))
    Image.fromarray(large).save("large.png")
    words = ("run", "photo.png", "--guide", "large.png", "--reference", "large.png", "--scale", "2", *SHORT)
    ended = dip(*words, "--preview", "16,5,24,20")
    assert ended.code == 0, ended.err
    Image.fromarray(samples[5:25, 16:40]).save("part.png")
    Image.fromarray(large[10:50, 32:80]).save("of_it.png")
    words = ("run", "part.png", "--guide", "of_it.png", "--reference", "of_it.png", "--scale", "2", *SHORT)
    assert dip(*words).code == 0
    (part, alone) = (record(folder)["summary"] for folder in ("runs/photo-preview", "runs/part"))
    assert part["sha256"] == alone["sha256"]
    assert part["psnr"] == alone["psnr"] is not None


def test_a_part_without_holes_or_without_known_pixels_is_refused(dip, place):
    Image.fromarray(texture(40, 60)).save("photo.png")
    mask = np.full((40, 60), 255, np.uint8)
    mask[20:, 20:] = 0
    Image.fromarray(mask).save("mask.png")
    for region, share in (("0,0,20,20", "all"), ("24,22,18,18", "none")):
        ended = dip("run", "photo.png", "--mask", "mask.png", "--preview", region, *SHORT)
        assert ended.code == 2
        assert f"{share} of the pixels in this part are known; choose another part" in ended.err


def test_a_reduced_picture_is_the_mean_of_its_pixels_and_larger_ones_alone_are(dip, place):
    samples = texture(40, 60, 3)
    tifffile.imwrite("photo.tif", samples, photometric="rgb", resolution=(300, 300), resolutionunit=2)
    whole = read_picture("photo.tif")
    assert Part(max_size=60).of(whole).size == (40, 60)
    half = Part(max_size=30).of(whole)
    mean = whole.image.reshape(20, 2, 30, 2, 3).mean((1, 3))
    np.testing.assert_allclose(half.image, mean, atol=1e-6)
    assert half.extras.geometry.actual == (150.0, 150.0)
    assert dip("run", "photo.tif", "--max-size", "30", *SHORT).code == 0
    assert tifffile.imread("runs/photo/result.tif").shape == (20, 30, 3)


def test_a_reduced_mask_is_known_where_all_of_it_is():
    mask = np.ones((40, 40), bool)
    mask[3, 3] = False
    reduced = Part(max_size=20).array(mask, (40, 40))
    assert (reduced.dtype, (~reduced).sum(), reduced[1, 1]) == (bool, 1, False)
    kernel = np.ones((5, 5))
    assert Part(max_size=20).array(kernel, (40, 40)) is kernel


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preview", "somewhere"], "--preview somewhere: name left, top, width and height in pixels"),
        (["--preview", "0,0,600,20"], "reaches over the edge of the picture of 18x16 pixels; name a smaller one"),
        (["--preview", "0,0,8,8"], "must have at least 16x16 pixels"),
        (["--max-size", "16"], "leaves 16x14 pixels, and a picture must have at least 16x16; give more"),
    ],
)
def test_parts_that_are_refused(dip, noisy, arguments, words):
    ended = dip("run", noisy, *ONE, *arguments)
    assert ended.code == 2
    assert words in ended.err
    assert not Path("runs").exists()


# --- before the fit ------------------------------------------------------------------------------------------------


def test_a_mistyped_name_is_found_before_torch_is_loaded(noisy):
    """In a process of its own, since torch is loaded here."""
    code = (
        "import sys\nfrom dip_fast.cli import main\n"
        "for name in ('missing.png', 'small.png', 'text.png', 'shot.nef'):\n"
        "    try:\n        main(['run', name])\n    except SystemExit as end:\n        print(name, end.code)\n"
        "print('torch' in sys.modules)\n"
    )
    Image.fromarray(texture(8, 8)).save("small.png")
    Path("text.png").write_text("no picture")
    Path("shot.nef").write_bytes(b"hello")
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    names = ("missing.png", "small.png", "text.png", "shot.nef")
    assert done.stdout.splitlines() == [*(f"{name} 2" for name in names), "False"]
    assert len(done.stderr.splitlines()) == 4


def test_a_12k_by_8k_float_picture_gets_its_answer_before_it_is_decoded(dip, place, monkeypatch):
    """Reported of others: minutes of loading, and then the machine is out of memory.

    The file is a hole but for its header, which says all that is asked for.
    """
    tifffile.memmap("large.tif", shape=(8000, 12000), dtype=np.float32).flush()
    monkeypatch.setattr(devices, "available_bytes", lambda device: 2 * 10**8)
    monkeypatch.setattr(reading, "_picture", lambda *_: pytest.fail("decoded"))
    for words in ((), ("--preset", "quick")):
        ended = dip("run", "large.tif", *ONE, *words)
        assert ended.code == 2
        (line,) = ended.err.splitlines()
        assert "a 12000x8000 picture needs about" in line
        assert "0.2 GB are free" in line


def test_the_answer_to_a_large_picture_comes_before_it_is_decoded(dip, monkeypatch):
    """12000x8000 floats took 27 s and 3 GB until a line said that the fit takes a quarter of an hour."""
    tifffile.memmap("large.tif", shape=(8000, 12000), dtype=np.float32).flush()
    monkeypatch.setattr(devices, "available_bytes", lambda device: 10**11)

    def stop(*_):
        raise UsageError("decoded")

    monkeypatch.setattr(reading, "_picture", stop)
    ended = dip("run", "large.tif", *ONE, "--preset", "fast")
    assert ended.code == 2
    *_, answer, last = ended.err.splitlines()
    assert answer.startswith("this may take")
    assert "decoded" in last


def test_what_a_run_takes_is_said_once(dip, noisy, monkeypatch):
    monkeypatch.setattr(estimate, "seconds", lambda job, size: 700.0)
    ended = dip("run", noisy, *[word for word in SHORT if word != "-q"])
    assert ended.code == 0
    assert ended.err.count("this may take 12 minutes") == 1


def test_time_memory_and_disk_are_said_where_they_are_much():
    job = complete({"preset": "default", "engine": "fused", "threads": 1})
    job = replace(job, device="cpu", engine="fused")
    assert estimate.lines(30.0, 10**8, 10**8) == []
    (line,) = estimate.lines(700.0, 3 * 10**9, 10**8)
    assert line.startswith("this may take 12 minutes on two cores as measured (dip-fast presets), 3.0 GB of memory;")
    (line,) = estimate.lines(3 * 3600.0, 0, 2 * 10**9)
    assert "3 hours" in line
    assert "2.0 GB on disk" in line
    assert estimate.seconds(replace(job, device="cuda"), (256, 256)) is None


def test_the_estimated_time_is_near_what_was_measured(monkeypatch):
    """With the presets as they are: 53 s for the example, 11.4 minutes for 15 megapixels, 50 s for quick."""
    monkeypatch.undo()
    for preset, size, measured in (
        ("default", (256, 256), 53.1),
        ("default", (3160, 4740), 684.0),
        ("quick", (256, 256), 50.2),
    ):
        job = replace(complete({"preset": preset, "threads": 1}), device="cpu", engine="fused")
        assert estimate.seconds(job, size) == pytest.approx(measured, rel=0.35), preset


def job_of(task, preset="quick", **options):
    asked = {"threads": 1, "preset": preset, "task": task, **options}
    given = [entry.name for entry in TASKS[task].inputs if entry.required]
    return replace(complete(asked, given), device="cpu", engine="fused")


def test_estimates_count_the_rounds(monkeypatch):
    """Eight rounds at 256x256, 3.7 s, were left out; what draws the answer has nothing to learn, 2.6 s less."""
    monkeypatch.undo()
    without, rounds = job_of("denoise"), job_of("deblur")
    assert 0.5 < estimate.seconds(rounds, (256, 256)) - estimate.seconds(without, (256, 256)) < 2
    short, shorter = replace(rounds, iterations=29), replace(without, iterations=29)  # too short for a round
    assert estimate.seconds(short, (256, 256)) == estimate.seconds(shorter, (256, 256))
    holes, noise = job_of("inpaint", "default"), job_of("denoise", "default")
    assert estimate.seconds(holes, (512, 512)) > estimate.seconds(noise, (512, 512)) + 3
    monkeypatch.setitem(PRESETS._entries, "default", PRESETS["default"].with_(rounds=0))
    fewer = estimate.seconds(noise, (512, 512)) - estimate.seconds(holes, (512, 512))
    assert fewer == pytest.approx(estimate.SECONDS_A_PIXEL * 512**2 * 48 / 64)  # 16 drawings in place of 64


def test_the_memory_that_is_said_of_a_large_picture_is_the_peak_of_its_run(monkeypatch):
    """A tile of the network, whatever the picture: 15 and 100 megapixels are within 1.3 of each other."""
    monkeypatch.undo()
    four, fifteen, hundred = (
        estimate.memory(job_of("denoise", "default"), 3, size) for size in ((1633, 2450), (3162, 4743), (8165, 12247))
    )
    assert fifteen == pytest.approx(2.05e9, rel=0.15)
    assert four < fifteen < hundred < 1.3 * fifteen


def test_estimates_of_a_larger_result_are_of_its_size():
    """They counted the pixels of the small picture: a sixteenth of the time, and of the memory."""
    same, larger = job_of("deblur"), job_of("superres", scale=4)
    assert estimate.seconds(larger, (64, 96)) == pytest.approx(estimate.seconds(same, (256, 384)))
    assert estimate.memory(larger, 3, (64, 96)) == estimate.memory(same, 3, (256, 384))


def test_huge_pictures_take_fewer_masks_and_less_time_is_announced() -> None:
    recipe, drawings = PRESETS["default"].recipe.with_(passes=64), TASKS["denoise"].drawings
    assert (drawings(recipe, {}, (8192, 4096)), drawings(recipe, {}, (8192, 4097))) == (64, MASKS_OF_SEVERAL)
    assert drawings(recipe.with_(passes=8), {}, (8192, 4097)) == 8
    assert masks_of(recipe.masking, (64, 64), pictures=2) == MASKS_OF_SEVERAL
