"""The run's folder, and what it lives through: interruptions, kills, losses gone wrong, full disks."""

import contextlib
import csv
import hashlib
import io
import json
import random
import shutil
from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_cases import ONE, SHORT, after, assert_same_run, read, record, texture, write

from dip_fast import pictures
from dip_fast.errors import DipFastError, UsageError
from dip_fast.pictures.metrics import psnr
from dip_fast.runs import run as runs

pytestmark = pytest.mark.usefixtures("place", "from_random_input")


# --- what the folder holds ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("name", "shape", "dtype", "result"),
    [
        ("gray.png", (16, 16), np.uint8, "result.png"),
        ("rgb.png", (17, 23, 3), np.uint8, "result.png"),
        ("rgba.png", (16, 19, 4), np.uint8, "result.png"),
        ("la.png", (18, 16, 2), np.uint8, "result.png"),
        ("gray16.png", (16, 17), np.uint16, "result.png"),
        ("rgb16.png", (17, 16, 3), np.uint16, "result.png"),
        ("rgb8.tif", (17, 16, 3), np.uint8, "result.tif"),
        ("rgb16.tif", (17, 16, 3), np.uint16, "result.tif"),
        ("float.tif", (17, 23), np.float32, "result.tif"),
    ],
)
def test_result_is_of_the_pictures_size_and_kind(dip, name, shape, dtype, result):
    samples = texture(*shape, dtype=dtype)
    write(name, samples)
    assert dip("run", name, *SHORT).code == 0
    folder = Path("runs", Path(name).stem)
    restored = read(folder / result)
    assert (restored.shape, restored.dtype) == (samples.shape, samples.dtype)
    colours = restored[..., :-1] if shape[-1] in (2, 4) else restored
    if shape[-1] in (2, 4):
        np.testing.assert_array_equal(restored[..., -1], samples[..., -1])
    assert record(folder)["summary"]["sha256"] == hashlib.sha256(colours.tobytes()).hexdigest()
    assert not np.array_equal(colours, samples[..., : colours.shape[-1]] if samples.ndim == 3 else samples)


@pytest.mark.usefixtures("small")
def test_folder_holds_all_that_was_promised(dip, noisy):
    assert dip("run", noisy, *SHORT, "--snapshot-every", "2", "--reference", noisy, "--seed", "7").code == 0
    folder = Path("runs/noisy")
    assert {str(path.relative_to(folder)) for path in folder.rglob("*")} == {
        "result.png", "contact_sheet.png", "history.csv", "history.svg", "run.json", "checkpoint.safetensors",
        "model.onnx", "report.html", "snapshots",
        "snapshots/iter_000002.png", "snapshots/iter_000004.png", "snapshots/iter_000006.png",
    }  # fmt: skip
    for name in ("contact_sheet.png", "snapshots/iter_000002.png"):
        with Image.open(folder / name) as image:
            image.load()
    with Image.open(folder / "snapshots/iter_000002.png") as image:
        assert image.size == (18, 16)
    with Image.open(folder / "contact_sheet.png") as image:
        assert image.width > 5 * 256  # input, result, difference, the classical method's picture, reference
        assert 3 * 256 < image.height < 3 * 300  # these, a window of each, three iterates
    rows = list(csv.DictReader(io.StringIO((folder / "history.csv").read_text())))
    assert list(rows[0]) == ["step", "loss", "learning_rate", "variance", "psnr"]
    assert [row["step"] for row in rows] == [str(step) for step in range(1, 7)]
    assert rows[0]["variance"] == ""  # there is none of one iterate
    assert all(float(row[key]) > 0 for row in rows[1:] for key in ("loss", "learning_rate", "variance", "psnr"))


@pytest.mark.usefixtures("small")
def test_record_holds_what_repeats_the_run(dip, noisy):
    mask = np.full((16, 18), 255, np.uint8)
    mask[:4] = 0
    write("mask.png", mask)
    arguments = (
        "--mask",
        "mask.png",
        "--preset",
        "quick",
        "--reference",
        noisy,
        "--seed",
        "7",
        "--upsampling",
        "bilinear",
    )
    assert dip("run", noisy, *SHORT, *arguments).code == 0
    held = record("runs/noisy")
    assert held["settings"] == {
        "task": "inpaint", "preset": "quick", "network": "skip", "upsampling": "bilinear", "iterations": 6,
        "stop": "auto", "seed": 7, "device": "cpu", "engine": "fused", "precision": "fp32", "threads": 1,
        "options": {"composite": True, "mask_white": "known"}, "snapshot_every": 100, "keep_metadata": False,
        "tile": "never",
    }  # fmt: skip
    assert held["recipe"]["network_options"]["upsampling"] == "bilinear"
    assert held["recipe"]["options"]["iterations"] == 6
    assert held["versions"].keys() == {"dip_fast", "torch", "numpy"}
    assert held["versions"]["torch"] == torch.__version__
    assert {"picture", "mask", "reference"} == held["inputs"].keys()
    assert held["inputs"]["picture"]["sha256"] == hashlib.sha256(read(noisy).astype(np.float32) / 255).hexdigest()
    assert held["status"] == "done"
    assert {"python", "platform", "started", "ended", "seconds_per_step"} <= held.keys()
    assert held["events"] == held["summary"]["problems"] == []


@pytest.mark.usefixtures("small")
def test_no_snapshots_are_written_when_none_are_wanted(dip, noisy):
    assert dip("run", noisy, *SHORT, "--snapshot-every", "0").code == 0
    assert not list(Path("runs/noisy/snapshots").iterdir())
    assert Path("runs/noisy/contact_sheet.png").exists()


@pytest.mark.usefixtures("small")
def test_a_single_step_is_a_run(dip, noisy):
    assert dip("run", noisy, *ONE, "--iterations", "1", "--snapshot-every", "1").code == 0
    assert len(Path("runs/noisy/history.csv").read_text().splitlines()) == 2


@pytest.mark.usefixtures("small")
def test_contact_sheet_shows_fourteen_iterates_of_many(dip, noisy):
    assert dip("run", noisy, *ONE, "--iterations", "40", "--snapshot-every", "1", "--quiet").code == 0
    with Image.open("runs/noisy/contact_sheet.png") as image:
        assert 6 * 256 < image.height < 6 * 300  # what is compared, a window of it, 14 tiles in rows of four


# --- same seed, same bits -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_same_seed_gives_the_same_bits_and_another_seed_others(dip, noisy):
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert dip("run", noisy, *SHORT, "--seed", seed, "-o", out).code == 0
    assert_same_run("a", "b")
    assert record("a")["summary"]["sha256"] != record("c")["summary"]["sha256"]


@pytest.mark.usefixtures("small")
def test_random_state_of_the_process_is_left_alone(dip, noisy):
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    before = (torch.get_rng_state(), str(np.random.get_state()), random.getstate())
    assert dip("run", noisy, *SHORT).code == 0
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (str(np.random.get_state()), random.getstate()) == before[1:]


# --- folders and disks --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_overwriting_replaces_the_run_and_keeps_what_is_the_users(dip, noisy):
    assert dip("run", noisy, *SHORT, "--snapshot-every", "1").code == 0
    Path("runs/noisy/notes.txt").write_text("mine")
    Path("runs/noisy/snapshots/iter_mine.png").write_text("mine")
    Path("runs/noisy/.dip-fast-0123.tmp").write_text("left by a killed run")
    write("other.tif", texture(16, 16))
    assert dip("run", "other.tif", *SHORT, "-o", "runs/noisy", "--overwrite", "--snapshot-every", "4").code == 0
    folder = Path("runs/noisy")
    assert {path.name for path in folder.iterdir()} == {
        "notes.txt", "result.tif", "report.html", "contact_sheet.png", "history.csv", "history.svg", "run.json",
        "checkpoint.safetensors", "snapshots", "model.onnx",
    }  # fmt: skip
    assert {path.name for path in (folder / "snapshots").iterdir()} == {"iter_000004.png", "iter_mine.png"}


@pytest.mark.usefixtures("small")
def test_overwriting_an_empty_folder_is_allowed(dip, noisy):
    Path("out").mkdir()
    assert dip("run", noisy, *SHORT, "-o", "out", "--overwrite").code == 0


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("fresh", [True, False], ids=["overwrite", "resume"])
def test_folder_is_of_one_run_at_a_time(dip, noisy, monkeypatch, fresh):
    def open_it():
        second = runs.Folder(Path("runs/noisy"), print)
        with contextlib.closing(second), pytest.raises(UsageError, match="another run is at work in runs/noisy"):
            second.open(None, fresh=fresh)

    after(monkeypatch, lambda fit: fit.steps == 3, open_it)
    assert dip("run", noisy, *SHORT, "--snapshot-every", "1").code == 0
    assert record("runs/noisy")["status"] == "done"
    assert len(list(Path("runs/noisy/snapshots").iterdir())) == 6
    assert dip("run", noisy, *SHORT, "--overwrite").code == 0  # it is free again


@pytest.mark.usefixtures("small")
def test_folder_deleted_during_the_run_does_not_lose_the_result(dip, noisy, monkeypatch):
    after(monkeypatch, lambda fit: fit.steps == 3, lambda: shutil.rmtree("runs/noisy"))
    restored = dip("run", noisy, *SHORT, "--json")
    assert restored.code == 1
    summary = json.loads(restored.out)
    assert Path(summary["result"]).parent == Path.cwd()
    assert read(Path(summary["result"])).shape == (16, 18)
    assert len(restored.err.splitlines()) == 1
    assert summary["result"] in restored.err


def refuse(monkeypatch, wrong):
    """Let files of some paths not be written, as on a full disk."""

    def refusing(original, path_of):
        def write(*arguments):
            if wrong(path := Path(path_of(arguments))):
                raise DipFastError(f"cannot write {path}: No space left on device; make room there")
            original(*arguments)

        return write

    for name, place in (("write_atomically", 0), ("write_in", 3)):
        writing = refusing(getattr(pictures, name), itemgetter(place))
        monkeypatch.setattr(f"dip_fast.runs.folder.{name}", writing)


@pytest.mark.usefixtures("small")
def test_disk_full_during_the_run_does_not_lose_the_result(dip, noisy, monkeypatch):
    refuse(monkeypatch, lambda path: "runs" in path.parts and path.name != "run.json")
    restored = dip("run", noisy, *ONE, "--iterations", "6")
    assert restored.code == 1
    (result,) = Path.cwd().glob("dip-fast-*-result.png")
    assert str(result) in restored.err
    assert "Traceback" not in restored.err
    held = record("runs/noisy")
    assert held["summary"]["result"] == str(result)
    assert any("checkpoint" in problem for problem in held["summary"]["problems"])
    refuse(monkeypatch, lambda path: False)
    assert dip("run", noisy, *SHORT, "--resume").code == 0  # there is room again
    assert Path("runs/noisy/result.png").read_bytes() == result.read_bytes()


@pytest.mark.usefixtures("small")
def test_result_goes_to_the_temporary_folder_where_nothing_else_can_be_written(dip, noisy, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    refuse(monkeypatch, lambda path: path.name != "run.json" and path.parent != tmp_path / "tmp")
    restored = dip("run", noisy, *SHORT, "--json")
    assert restored.code == 1
    assert Path(json.loads(restored.out)["result"]).parent == tmp_path / "tmp"


@pytest.mark.usefixtures("small")
def test_run_without_any_place_for_its_result_fails(dip, noisy, monkeypatch):
    refuse(monkeypatch, lambda path: path.name != "run.json")
    restored = dip("run", noisy, *SHORT)
    assert restored.code == 1
    assert "the result is lost" in restored.err


@pytest.mark.usefixtures("small")
def test_unwritable_record_is_told_at_the_start(dip, noisy, monkeypatch):
    refuse(monkeypatch, lambda path: path.name == "run.json")
    monkeypatch.setattr(runs.Fit, "advance", lambda self, steps: pytest.fail("the fit was started"))
    assert dip("run", noisy, *SHORT).code == 2


@pytest.mark.usefixtures("small")
def test_disk_that_is_full_already_is_told_at_the_start(dip, noisy, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    refused = dip("run", noisy, *SHORT)
    assert refused.code == 2
    assert "make room" in refused.err
    assert not Path("runs").exists()


@pytest.mark.usefixtures("small")
def test_room_asked_for_covers_what_a_run_writes(dip, noisy, monkeypatch):
    asked = []
    monkeypatch.setattr(runs.Folder, "check_room", lambda self, needed: asked.append(needed))
    assert dip("run", noisy, *ONE, "--iterations", "60", "--snapshot-every", "1", "--quiet").code == 0
    written = sum(path.stat().st_size for path in Path("runs/noisy").rglob("*"))
    assert written < asked[0] < 100 * written


# --- inpainting ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_known_pixels_are_the_inputs_own(dip, dtype):
    samples, mask = texture(17, 20, 3, dtype=dtype), np.full((17, 20), 255, np.uint8)
    mask[3:9, 4:12] = 0
    write("holed.png", samples)
    write("mask.png", mask)
    assert dip("run", "holed.png", *SHORT, "--mask", "mask.png").code == 0
    restored, known = read(Path("runs/holed/result.png")), mask > 0
    np.testing.assert_array_equal(restored[known], samples[known])
    assert not np.array_equal(restored[~known], samples[~known])
    assert dip("run", "holed.png", *SHORT, "--mask", "mask.png", "--no-composite", "-o", "plain").code == 0
    assert not np.array_equal(read(Path("plain/result.png"))[known], samples[known])


def scene(size=48):
    """Smooth colours with two shapes on them; what a picture is to these networks."""
    rows, columns = np.mgrid[:size, :size] / size
    image = np.stack([0.2 + 0.6 * rows, 0.7 - 0.4 * columns, 0.3 + 0.4 * rows * columns], axis=2)
    image[(rows - 0.4) ** 2 + (columns - 0.6) ** 2 < 0.05] = (0.9, 0.3, 0.2)
    image[(rows > 0.6) & (columns < 0.4)] = (0.1, 0.4, 0.8)
    return image


def test_denoising_gains_decibels(dip):
    clean = scene()
    noise = np.random.default_rng(0).normal(0, 25 / 255, clean.shape)
    write("clean.png", np.rint(clean * 255).astype(np.uint8))
    write("noisy.png", np.rint(np.clip(clean + noise, 0, 1) * 255).astype(np.uint8))
    restored = dip("run", "noisy.png", *ONE, "--iterations", "200", "--reference", "clean.png", "--json")
    summary = json.loads(restored.out)
    assert summary["psnr"] > summary["psnr_input"] + 5
    assert summary["ssim"] > summary["ssim_input"] + 0.2
    assert summary["psnr"] == pytest.approx(
        psnr(read(Path(summary["result"])) / 255, read(Path("clean.png")) / 255), abs=0.05
    )


def test_inpainting_fills_the_hole(dip):
    clean = np.rint(scene() * 255).astype(np.uint8)
    mask = np.where(np.random.default_rng(0).random((48, 48)) < 0.5, 255, 0).astype(np.uint8)
    hole = mask == 0
    holed = np.where(hole[..., None], np.uint8(0), clean)
    for name, samples in (("clean.png", clean), ("mask.png", mask), ("holed.png", holed)):
        write(name, samples)
    arguments = ("--mask", "mask.png", "--reference", "clean.png", "--json")
    restored = dip("run", "holed.png", *ONE, "--iterations", "200", *arguments)
    result = read(Path(json.loads(restored.out)["result"]))
    mse = np.mean((result[hole] / 255 - clean[hole] / 255) ** 2)
    assert -10 * np.log10(mse) > 22
