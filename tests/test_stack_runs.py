"""``dip-fast stack``: one network for the pictures of a file, a folder or a sequence."""

import html
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import pixels
from PIL import Image
from run_cases import ONE

import dip_fast
from dip_fast.runs.stack.survey import chunks, is_cut

SHORT = (*ONE, "--iterations", "4", "--quiet")
SIZES = {"PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm", "Channel": {"Name": ["dapi", "gfp"]}}


@pytest.fixture
def cells(place):
    """A synthetic recording of two stains, with noise: T 2, Z 3, C 2."""
    rows, columns = np.mgrid[:32, :32]
    moments = []
    for t in range(2):
        for z in range(3):
            spot = np.exp(-((rows - 10 - 2 * t) ** 2 + (columns - 12 - z) ** 2) / 30)
            moments.append(np.stack([800 + 2000 * spot, 800 + 300 * spot.T]))
    clean = np.stack(moments).reshape(2, 3, 2, 32, 32)
    return (clean + np.random.default_rng(0).normal(0, 40, clean.shape)).astype(np.uint16)


def frames(folder, count=4, shape=(24, 32)):
    """Noisy pictures of one scene, and the clean ones."""
    for kind in ("noisy", "clean"):
        (folder / kind).mkdir()
    for number in range(count):
        clean = pixels(*shape)
        noisy = np.clip(clean + np.random.default_rng(number).normal(0, 20, shape), 0, 255).astype(np.uint8)
        Image.fromarray(clean).save(folder / "clean" / f"frame_{number:04}.png")
        Image.fromarray(noisy).save(folder / "noisy" / f"frame_{number:04}.png")


def read(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted(Path(folder).glob("frame_*.png"))])


def record(folder="out"):
    return json.loads((Path(folder) / "run.json").read_text())


def test_a_recording_keeps_its_axes_and_names(dip, small, cells):
    tifffile.imwrite("cells.ome.tif", cells, ome=True, photometric="minisblack", metadata={"axes": "TZCYX", **SIZES})
    ended = dip("stack", "cells.ome.tif", "--out", "out", *SHORT)
    assert ended.code == 0, ended.err
    with tifffile.TiffFile("out/cells.ome.tif") as file:
        series, pixels = file.series[0], tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
        assert (series.axes, series.shape, series.dtype) == ("TZCYX", cells.shape, np.uint16)
        assert pixels["PhysicalSizeX"] == 0.25
        assert [channel["Name"] for channel in pixels["Channel"]] == ["dapi", "gfp"]
        restored = series.asarray()
    # It is what the function on arrays makes of all frames, with their channels together.
    together = cells.reshape(6, 2, 32, 32)
    wanted = dip_fast.denoise(together, channel_axis=1, frames_axis=0, iterations=4, device="cpu")
    np.testing.assert_array_equal(restored.reshape(together.shape), wanted)
    assert not list(Path("out").glob("chunk_*"))
    assert Path("out/contact_sheet.png").exists()


def test_a_hyperstack_stays_one(dip, small, place):
    planes = np.stack([pixels(24, 32, seed=n) for n in range(3)])
    tifffile.imwrite("z.tif", planes, imagej=True, resolution=(4, 4), metadata={"axes": "ZYX", "unit": "um"})
    assert dip("stack", "z.tif", "--out", "out", *SHORT).code == 0
    with tifffile.TiffFile("out/z.tif") as file:
        assert file.is_imagej
        assert file.imagej_metadata["unit"] == "um"
        assert (file.series[0].axes, file.series[0].shape) == ("ZYX", planes.shape)
        assert file.pages[0].resolution == (4, 4)
        assert (file.asarray() != planes).any()


def test_a_sequence_gives_files_of_the_same_names(dip, small, place):
    frames(place)
    ended = dip("stack", "noisy/frame_%04d.png", "--out", "out", "--reference", "clean", "--json", *SHORT)
    assert ended.code == 0, ended.err
    summary = json.loads(ended.out)
    assert summary["result"] == "out"
    assert summary["psnr"] > 10
    assert summary["psnr_input"] < 25
    assert summary["estimated_psnr"] is not None
    wanted = dip_fast.denoise(read("noisy"), frames_axis=0, iterations=4, device="cpu")
    np.testing.assert_array_equal(read("out"), wanted)


def test_colours_under_alpha_and_alpha_itself_are_left_alone(dip, small, place):
    Path("in").mkdir()
    for number in range(2):
        rgba = np.dstack([pixels(24, 32, 3, seed=number), np.full((24, 32), 255, np.uint8)])
        rgba[:6, :, 3], rgba[:6, :, :3] = 0, (255, 0, 255)
        Image.fromarray(rgba).save(f"in/{number}.png")
    assert dip("stack", "in", "--out", "out", *SHORT).code == 0
    for number in range(2):
        before, after = (np.asarray(Image.open(f"{folder}/{number}.png")) for folder in ("in", "out"))
        np.testing.assert_array_equal(after[:6], before[:6])
        np.testing.assert_array_equal(after[..., 3], before[..., 3])


class Interrupts:
    """Interrupt the fit of one chunk after a step, as Ctrl-C does."""

    def __init__(self, monkeypatch, chunk):
        from dip_fast.runs.stack import run

        self.begun = []
        start = run.start

        def starting(*arguments):
            fit = start(*arguments)
            self.begun.append(len(self.begun))
            if len(self.begun) == chunk + 1:
                advance = fit.advance
                fit.advance = lambda steps: (advance(min(steps, 3)), fit.interrupt())
            return fit

        monkeypatch.setattr(run, "start", starting)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("chunk", "damaged", "left"),
    [pytest.param(0, False, 2, marks=SLOW), (1, False, 1), pytest.param(1, True, 2, marks=SLOW)],
)
def test_a_stack_that_is_stopped_goes_on_with_the_same_bits(chunk, damaged, left, dip, small, place, monkeypatch):
    frames(place)
    arguments = ("stack", "noisy", "--chunk", "2", *SHORT)
    assert dip(*arguments, "--out", "whole").code == 0
    with monkeypatch.context() as patch:
        Interrupts(patch, chunk)
        stopped = dip(*arguments, "--out", "out")
    assert stopped.code == 130
    assert "--resume" in stopped.err
    assert Path("out/checkpoint.safetensors").exists()
    assert not list(Path("out").glob("frame_*"))
    if damaged:
        Path("out/chunk_0000.npy").write_bytes(b"x")
        Path("out/checkpoint.safetensors").unlink()
    with monkeypatch.context() as patch:
        counting = Interrupts(patch, -1)
        again = dip("stack", "noisy", "--out", "out", "--resume", "--quiet")
    assert again.code == 0, again.err
    assert len(counting.begun) == left  # what was done is not done once more
    np.testing.assert_array_equal(read("out"), read("whole"))
    assert record()["summary"]["sha256"] == record("whole")["summary"]["sha256"]
    assert [chunk["count"] for chunk in record()["chunks"]] == [2, 2]


def test_model_files_draw_each_frame_byte_for_byte(dip, small, place, monkeypatch):
    frames(place, 3)
    arguments = ("stack", "noisy", "--chunk", "2", "--export", "onnx", *SHORT)
    ended = dip(*arguments, "--out", "out", "--json")
    assert ended.code == 0, ended.err
    models = json.loads(ended.out)["models"]
    assert [Path(model["path"]).name for model in models] == [f"model_{n:04}.onnx" for n in (1, 2, 3)]
    for number, model in enumerate(models):
        name = f"frame_{number:04}.png"
        assert dip("replay", model["path"], "--out", name).code == 0
        assert Path(name).read_bytes() == Path("out", name).read_bytes()
    assert len({path.read_bytes() for path in Path("out").glob("*.png")}) == 4  # three frames, and the sheet
    assert "name one, as out/model_0001.onnx" in dip("replay", "out").err
    # Stopped in the second chunk, it goes on with the same bits, and the files of the first are not made again.
    with monkeypatch.context() as patch:
        Interrupts(patch, 1)
        assert dip(*arguments, "--out", "again").code == 130
    first = Path("again/model_0001.onnx").stat().st_mtime_ns
    resume = ("stack", "noisy", "--out", "again", "--resume", "--quiet")
    assert "cannot resume with --export none" in dip(*resume, "--export", "none").err
    assert dip(*resume).code == 0
    assert Path("again/model_0001.onnx").stat().st_mtime_ns == first
    np.testing.assert_array_equal(read("again"), read("out"))
    Path("noisy/frame_0002.png").unlink()
    assert dip("stack", "noisy", "--out", "out", "--overwrite", *SHORT).code == 0
    assert not list(Path("out").glob("*.onnx"))  # none of the earlier stack is left


def test_a_model_of_a_frame_has_what_was_set_aside(dip, small, place):
    Path("in").mkdir()
    for number in range(2):
        rgba = np.dstack([pixels(24, 32, 3, seed=number), np.full((24, 32), 255, np.uint8)])
        rgba[:6, :, 3], rgba[:6, :, :3] = 0, (255, 0, 255)
        Image.fromarray(rgba).save(f"in/{number}.png")
    assert dip("stack", "in", "--out", "out", "--export", "onnx", *SHORT).code == 0
    for number in range(2):
        drawn, after = dip_fast.replay(f"out/model_{number + 1:04}.onnx"), np.asarray(Image.open(f"out/{number}.png"))
        np.testing.assert_array_equal(drawn, after)
        assert (after[:6] == (255, 0, 255, 0)).all()


def test_a_frame_whose_model_fails_is_as_the_fit_has_made_it(dip, small, place, monkeypatch):
    frames(place, 2)
    assert dip("stack", "noisy", "--out", "plain", *SHORT).code == 0
    monkeypatch.setattr("dip_fast.models.onnx_engine.draw", lambda *_, **__: 1 / 0)
    ended = dip("stack", "noisy", "--out", "out", "--export", "onnx", *SHORT)
    assert ended.code == 1
    assert "frame_0000.png has no model file: unexpected ZeroDivisionError" in ended.err
    np.testing.assert_array_equal(read("out"), read("plain"))


def test_results_that_were_not_all_written_are_written_again(dip, small, place, monkeypatch):
    """Killed between two files: nothing is fitted once more."""
    from dip_fast.runs.stack.record import StackFolder

    frames(place, 2)
    stream = StackFolder.stream

    def killed(self, name):
        if name == "frame_0001.png":
            raise KeyboardInterrupt
        return stream(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(StackFolder, "stream", killed)
        assert dip("stack", "noisy", "--out", "out", *SHORT).code == 130
    assert len(read("out")) == 1
    counting = Interrupts(monkeypatch, -1)
    assert dip("stack", "noisy", "--out", "out", "--resume", "--quiet").code == 0
    assert counting.begun == []
    assert len(read("out")) == 2


def test_nothing_is_lost_or_done_twice(dip, small, place):
    frames(place)
    arguments = ("stack", "noisy", "--out", "out", *SHORT)
    assert dip(*arguments).code == 0
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert "replace with --overwrite" in dip(*arguments).err
    assert "nothing is left to resume" in dip(*arguments[:4], "--resume").err
    for options, words in (
        (("--resume", "--chunk", "2"), "cannot resume with --chunk 2"),
        (("--resume", "--seed", "4"), "cannot resume with --seed 4"),
        (("--resume", "--overwrite"), "exclude each other"),
    ):
        ended = dip(*arguments[:4], *options)
        assert ended.code == 2
        assert words in ended.err
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == before
    Path("noisy/frame_0003.png").unlink()
    assert "the pictures and the reference must be those" in dip(*arguments[:4], "--resume").err
    assert dip(*arguments, "--overwrite").code == 0
    assert len(read("out")) == 3  # none of the earlier stack is left among them


def test_files_of_the_users_own_are_never_replaced(dip, small, place):
    frames(place, 2)
    refused = dip("stack", "noisy", "--out", "noisy", *SHORT)
    assert refused.code == 2
    assert "noisy exists, and is not a run's folder" in refused.err
    assert dip("stack", "noisy", "--out", "out", *SHORT).code == 0
    assert "is the folder that is read" in dip("stack", "out", "--out", "out", "--overwrite", *SHORT).err
    Image.fromarray(pixels(24, 32)).save("contact_sheet.png")
    both = "contact_sheet.png", "clean/frame_0000.png"
    assert "a picture is named contact_sheet.png" in dip("stack", *both, "--out", "new").err
    Path("more").mkdir()
    for name in ("report.png", "frame_0000.png"):
        Image.fromarray(pixels(24, 32)).save(f"more/{name}")
    Path("out/report.png").write_bytes(b"mine")
    assert "is no result of this stack" in dip("stack", "more", "--out", "out", "--overwrite", *SHORT).err
    assert Path("out/report.png").read_bytes() == b"mine"


def test_what_knows_one_picture_only_is_refused(dip, place):
    frames(place, 2)
    for options, word in (
        (("--preset", "paper"), "--preset paper learns from one picture"),
        (("--mask", "mask.png"), "--task inpaint is done picture by picture"),
        (("--task", "superres", "--scale", "2"), "--task superres is done"),
    ):
        ended = dip("stack", "noisy", "--out", "out", *options)
        assert ended.code == 2
        assert word in ended.err
        assert "dip-fast batch" in ended.err
    assert not Path("out").exists()


def test_another_scene_begins_with_another_network(dip, small, place):
    Path("in").mkdir()
    for number in range(4):
        scene = pixels(48, 48, seed=number) // (1 if number < 2 else 8)
        Image.fromarray(scene).save(f"in/{number}.png")
    ended = dip("stack", "in", "--out", "out", *SHORT[:-1])
    assert ended.code == 0, ended.err
    assert "another scene begins with picture 3" in ended.err
    found = [(chunk["first"], chunk["count"], chunk["why"]) for chunk in record()["chunks"]]
    assert found == [(0, 2, "start"), (2, 2, "scene")]


def test_chunks_end_at_cuts_and_are_even():
    assert chunks(10, (), 10) == [(0, 10)]
    assert chunks(10, (), 4) == [(0, 3), (3, 3), (6, 4)]
    assert chunks(7, (3,), 3) == [(0, 3), (3, 2), (5, 2)]


def test_noise_alone_is_no_cut():
    rng = np.random.default_rng(0)
    assert not any(is_cut(rng.normal(size=16), rng.normal(size=16)) for _ in range(200))


def test_a_mistyped_name_is_found_before_torch_is_loaded(place):
    import subprocess
    import sys

    code = "import sys; from dip_fast.cli import main\ntry: main(['stack', 'nothing.tif', '--out', 'out'])\n"
    code += "finally: print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "there is no such file" in ended.stderr
    assert ended.stdout == "False\n"


def test_a_stack_has_a_report_that_can_be_written_again(dip, small, place):
    """There was none, and ``dip-fast report`` refused its folder."""
    frames(place, count=5)
    assert dip("stack", "noisy", "--out", "-o", "--chunk", "3", "--reference", "clean", *SHORT).code == 0
    written = Path("-o/report.html").read_text()
    for words in ("frame_0000.png", "frame_0002.png", "frame_0004.png", "pictures 1 to 2", "Against the reference"):
        assert words in written
    assert "frame_0001.png" not in written
    assert "Iterates" not in written
    again, resume, rewrite = (shlex.split(html.unescape(text)) for text in re.findall("<code>(.*)</code>", written))
    assert dip(*again[1:], "--quiet").code == 0
    assert record("-o")["summary"]["sha256"] == record("./-o-again")["summary"]["sha256"]
    assert "nothing is left" in dip(*resume[1:]).err
    Path("-o/report.html").unlink()
    assert dip(*rewrite[1:]).code == 0
    assert Path("-o/report.html").read_text() == written
    assert dip("report", ".").code == 0
    assert "is the folder of a stack, and holds no other answers" in dip("pick", "./-o").err
    assert Path("index.html").read_text().count("<img") == 2
    Path("noisy").rename("elsewhere")
    assert "--inputs" in dip("report", "./-o").err
    assert dip("report", "./-o", "--inputs", "elsewhere").code == 0
    Path("moved").mkdir()
    Path("elsewhere").rename("moved/noisy")
    Path("clean").rename("moved/clean")
    assert dip("report", "./-o", "--inputs", "moved").code == 0
    other = np.asarray(Image.open("moved/clean/frame_0000.png"))
    Image.fromarray(other).save("moved/noisy/frame_0000.png")
    assert "not what this stack was read from" in dip("report", "./-o", "--inputs", "moved").err


def test_a_report_of_a_stack_of_noise_is_small(place):
    """Three pictures of what no file compresses have room in it."""
    from dip_fast.runs import report, views
    from dip_fast.runs.stack.report import small

    noise = np.random.default_rng(0).random((700, 1000, 3), np.float32)
    looked = small(views.collect(noise, noise[::-1], reference=noise[:, ::-1]))
    facts = {"title": "", "lead": [], "problems": [], "curves": [], "best_step": None, "commands": [], "tables": []}
    assert len(report.fitted([(name, looked) for name in "abc"], **facts)) <= report.MAX_BYTES
