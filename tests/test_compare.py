"""``dip-fast compare``: one picture, several presets and seeds, one table and one sheet."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from cli_cases import ONE
from conftest import pixels
from PIL import Image

from dip_fast.errors import DipFastError

SHORT = (*ONE, "--iterations", "3")


@pytest.fixture
def picture(place):
    clean = pixels(24, 32, 3)
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 20, clean.shape), 0, 255).astype(np.uint8)
    Image.fromarray(clean).save("clean.png")
    Image.fromarray(noisy).save("photo.png")
    return "photo.png"


def test_presets_and_seeds_have_a_row_each(dip, small, picture):
    ended = dip("compare", picture, "--presets", "fast,quick", "--reference", "clean.png", *SHORT)
    assert ended.code == 0, ended.err
    lines = ended.out.decode().splitlines()
    assert lines[0].split()[:3] == ["PSNR", "dB", "SSIM"]
    assert [line.split()[0] for line in lines[1:3]] == ["fast", "quick"]
    folder = Path("runs/photo-compared")
    rows = json.loads((folder / "comparison.json").read_text())
    assert [row["name"] for row in rows] == ["fast", "quick"]
    assert all(Path(row["result"]).exists() and row["psnr"] > 5 and row["removed"] > 0 for row in rows)
    with (folder / "comparison.csv").open() as file:
        assert [row["preset"] for row in csv.DictReader(file)] == ["fast", "quick"]
    with Image.open(folder / "comparison.png") as sheet:
        assert sheet.width > 4 * 192  # the input, both results and the reference


def test_what_is_done_is_taken_as_it_is(dip, small, picture):
    first = dip("compare", picture, "--seeds", "0,1", "--out", "out", "--presets", "fast", *SHORT)
    assert first.code == 0, first.err
    before = Path("out/fast-seed-1/run.json").read_bytes()
    again = dip("compare", picture, "--seeds", "1,2", "--out", "out", "--presets", "fast", "--json", *SHORT)
    assert again.code == 0, again.err
    assert [row["seed"] for row in json.loads(again.out)] == [1, 2]
    assert Path("out/fast-seed-1/run.json").read_bytes() == before
    other = dip("compare", picture, "--seeds", "1", "--out", "out", "--presets", "fast", *ONE, "--iterations", "4")
    assert other.code == 2
    assert "cannot resume with --iterations 4" in other.err


def test_what_cannot_be_compared_is_refused_before_the_first_fit(dip, picture):
    Path("mine").mkdir()
    Path("mine/comparison.csv").write_text("mine")
    for options, word in (
        ((), "name what to compare: --presets or --seeds"),
        (("--presets", "fast,slow"), "'slow' is not one of"),
        (("--presets", "quick,default", "--task", "superres", "--stop", "auto"), "--stop auto"),
        (("--seeds", "0", "--out", "mine"), "holds no comparison"),
    ):
        ended = dip("compare", picture, *options)
        assert ended.code == 2, ended.err
        assert word in ended.err
    assert Path("mine/comparison.csv").read_text() == "mine"
    assert not Path("runs").exists()


def test_a_wrong_reference_leaves_no_folder(dip, picture):
    """An empty comparison was left of it."""
    Image.fromarray(pixels(20, 20, 3)).save("small.png")
    ended = dip("compare", picture, "--presets", "fast", "--reference", "small.png")
    assert ended.code == 2
    assert "the reference small.png is 20x20 and the picture 32x24" in ended.err
    assert not Path("runs").exists()


def test_a_full_disk_at_the_start_has_no_runs_anywhere(dip, picture, monkeypatch):
    """It said that the runs were in the folder, which was empty."""

    def full(path, data):
        raise DipFastError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr("dip_fast.runs.compare.write_atomically", full)
    ended = dip("compare", picture, "--presets", "fast", "--out", "out", *SHORT)
    assert (ended.code, ended.out) == (1, b"")
    assert ended.err.splitlines()[-1] == "dip-fast: cannot write out/comparison.json: No space left on device"


def test_another_picture_of_the_same_name_never_replaces_a_comparison(dip, small, picture):
    """With another preset, its table and sheet took the place of the first one's."""
    assert dip("compare", picture, "--presets", "fast", *SHORT).code == 0
    before = {path: path.read_bytes() for path in Path("runs/photo-compared").glob("comparison.*")}
    Path("other").mkdir()
    Image.fromarray(pixels(24, 32, 3, seed=5)).save("other/photo.png")
    ended = dip("compare", "other/photo.png", "--presets", "quick", *SHORT)
    assert ended.code == 2
    assert "runs/photo-compared holds the comparison of another picture; choose another --out" in ended.err
    assert {path: path.read_bytes() for path in before} == before
    assert not Path("runs/photo-compared/quick").exists()
