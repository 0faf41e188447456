"""Another answer of a run that is over: an earlier step, a blend with the input, and the way back."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from run_cases import ONE, read, record, signal_after, texture, write

from dip_fast.models.model import open_model
from dip_fast.programs import tiles
from dip_fast.runs import states

pytestmark = pytest.mark.usefixtures("place", "small")
RUN = (*ONE, "--quiet", "--iterations", "45", "--snapshot-every", "20")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tmp_path_factory.mktemp("made") / "run"


@pytest.fixture
def run(dip, noisy, from_random_input, made):
    """A run from a random input of 45 steps, with states of 10, 20, 30 and 40; it is made once, and copied."""
    folder = Path("runs/noisy")
    if not made.exists():
        assert dip("run", "noisy.png", *RUN).code == 0
        shutil.copytree(folder, made)
    else:
        shutil.copytree(made, folder)
    return folder


def files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def assert_draws(folder, dip):
    """The model of the folder draws its result byte for byte."""
    assert dip("replay", str(folder / "model.onnx"), "-o", "again.png", "--overwrite").code == 0
    np.testing.assert_array_equal(read(Path("again.png")), read(folder / "result.png"))
    outcome = dip("replay", str(folder / "model.onnx"), "--verify", "--json")
    assert json.loads(outcome.out)["verdict"] == "same"


def test_blend_lies_between_the_input_and_the_answer_and_is_replayed(dip, noisy, run):
    answer, given = open_model(run).draw(), read(Path(noisy)).astype(np.float32).reshape(16, 18, -1)
    assert dip("pick", str(run), "--strength", "0.7").code == 0
    wanted = given + np.float32(0.7) * (answer - given)
    np.testing.assert_array_equal(read(run / "result.png"), np.rint(wanted).clip(0, 255).astype(np.uint8).squeeze())
    assert open_model(run).metadata["schema"] == 4
    assert_draws(run, dip)
    assert record(run)["summary"]["strength"] == 0.7
    assert "70% of the way" in (run / "report.html").read_text()


def test_earlier_step_is_that_of_a_run_that_ends_there(dip, noisy, run):
    first = files(run)
    assert dip("pick", str(run), "--step", "40").code == 0
    assert record(run)["summary"]["best_step"] == 40
    assert files(run)["result.png"] != first["result.png"]
    assert_draws(run, dip)
    assert dip("run", noisy, *ONE, "--quiet", "--iterations", "40", "--stop", "never", "--out", "short").code == 0
    assert files(run)["result.png"] == files("short")["result.png"]


def test_first_answer_comes_back(dip, run):
    first, summary = files(run), record(run)["summary"]
    for options in (("--step", "10", "--strength", "0.5"), ("--step", "45", "--strength", "1")):
        assert dip("pick", str(run), *options).code == 0
    for name in ("result.png", "checkpoint.safetensors", "history.csv"):
        assert files(run)[name] == first[name]
    again = record(run)
    assert again["first"] == summary
    assert again["summary"]["sha256"] == summary["sha256"]
    assert open_model(run).metadata["schema"] < 4


def test_choices_are_listed(dip, run):
    found = json.loads(dip("pick", str(run), "--json").out)
    assert found == {"step": 45, "strength": 1.0, "first": 45, "steps": [10, 20, 30, 40, 45], "why": "", "no_blend": ""}
    assert b"45 (the first answer)" in dip("pick", str(run)).out


@pytest.mark.parametrize("name", ["result.png", "model.onnx"])
def test_what_was_changed_by_hand_is_not_replaced(dip, run, name):
    if name == "result.png":
        write(str(run / name), texture(16, 18))
    else:
        (run / name).write_bytes(b"mine")
    before = files(run)
    outcome = dip("pick", str(run), "--strength", "0.5")
    assert outcome.code == 2
    assert f"{name} is not as" in outcome.err
    assert files(run) == before
    ended = dip("pick", str(run), "--strength", "0.5", "--overwrite")
    assert ended.code == (0 if name == "result.png" else 2)  # a model that is not the run's draws no answer of it


def test_pick_that_was_killed_is_made_once_more(dip, run):
    """Its files were there before its record was, and looked as if somebody had changed them."""
    before = (run / "run.json").read_bytes()
    assert dip("pick", str(run), "--strength", "0.5").code == 0
    picked = files(run)["result.png"]
    (run / "run.json").write_bytes(before)
    assert dip("pick", str(run), "--strength", "0.5").code == 2
    assert dip("pick", str(run), "--strength", "0.5", "--overwrite").code == 0
    assert files(run)["result.png"] == picked
    assert_draws(run, dip)


def test_step_that_was_not_kept_is_refused(dip, run):
    outcome = dip("pick", str(run), "--step", "15")
    assert outcome.code == 2
    assert "there are 10, 20, 30, 40, 45" in outcome.err


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "snapshots/state_000020.safetensors"])
def test_damaged_states_are_refused(dip, run, name):
    data = bytearray((run / name).read_bytes())
    data[-5] ^= 1
    (run / name).write_bytes(bytes(data))
    before = files(run)
    outcome = dip("pick", str(run), "--step", "20")
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert "damaged" in outcome.err
    assert files(run) == before


def test_masked_fit_has_no_earlier_steps_but_a_strength(dip, noisy):
    assert dip("run", noisy, *ONE, "--quiet", "--iterations", "12", "--preset", "default", "--noise", "25").code == 0
    run = Path("runs/noisy")
    assert not list(run.glob("snapshots/state_*"))
    outcome = dip("pick", str(run), "--step", "10")
    assert outcome.code == 2
    assert "hidden samples" in outcome.err
    assert dip("pick", str(run), "--strength", "0.4").code == 0
    assert record(run)["summary"]["estimated_psnr"] is None
    assert_draws(run, dip)
    estimated = record(run)["first"]["estimated_psnr"]
    assert dip("pick", str(run), "--strength", "1").code == 0
    assert record(run)["summary"]["estimated_psnr"] == estimated


@pytest.mark.parametrize(
    ("options", "reason"),
    [(("--task", "superres"), "another size"), (("--mask", "mask.png", "--preset", "quick"), "holds nothing")],
    ids=["superres", "inpaint"],
)
def test_input_that_cannot_be_blended_is_refused(dip, noisy, from_random_input, options, reason):
    write("mask.png", np.where(np.arange(18) < 4, 0, 255).astype(np.uint8)[None].repeat(16, axis=0))
    assert dip("run", noisy, *ONE, "--quiet", "--iterations", "3", *options).code == 0
    outcome = dip("pick", "runs/noisy", "--strength", "0.5")
    assert outcome.code == 2
    assert reason in outcome.err
    listed = dip("pick", "runs/noisy").out.decode()
    assert "strength: 1 alone" in listed
    assert reason in listed


def test_fit_that_goes_on_says_that_a_picked_answer_gives_way(dip, noisy, run):
    first = files(run)["result.png"]
    assert dip("pick", str(run), "--step", "20", "--strength", "0.5").code == 0
    again = ("run", noisy, *ONE, "--iterations", "45", "--snapshot-every", "20", "--resume")
    picked = files(run)["result.png"]
    assert "nothing is left" in dip(*again).err
    assert files(run)["result.png"] == picked
    (run / "model.onnx").unlink()
    outcome = dip(*again)
    assert outcome.code == 0
    assert "dip-fast pick ... --step 20 --strength 0.5 makes it again" in outcome.err
    assert files(run)["result.png"] == first
    assert_draws(run, dip)


def test_files_of_export_are_named_that_draw_the_answer_before(dip, run):
    assert dip("export", str(run), "--format", "onnx", "--fp16").code == 0
    before = files(run)["model-fp16.onnx"]
    outcome = dip("pick", str(run), "--strength", "0.5")
    assert outcome.code == 0
    assert "model-fp16.onnx stays as it is" in outcome.err
    assert "model.onnx stays" not in outcome.err
    assert files(run)["model-fp16.onnx"] == before


def test_samples_that_were_set_aside_stay_as_they_were(dip, from_random_input):
    image = np.random.default_rng(0).normal(0.5, 0.05, (16, 18)).astype(np.float32)
    image[3, 4] = 4e4
    tifffile.imwrite("hot.tif", image)
    assert dip("run", "hot.tif", *ONE, "--quiet", "--iterations", "12").code == 0
    assert dip("pick", "runs/hot", "--strength", "0.5").code == 0
    result = tifffile.imread("runs/hot/result.tif")
    assert result[3, 4] == image[3, 4]
    assert dip("replay", "runs/hot/model.onnx", "-o", "again.tif").code == 0
    np.testing.assert_array_equal(tifffile.imread("again.tif"), result)


def test_states_are_few_and_evenly_spaced_however_long_a_fit_is():
    for step in range(1, 20_000, 7):
        every = states.spacing(step)
        assert step // every <= states.MOST
        assert every == states.FIRST or step // every >= states.MOST // 2


def test_states_of_a_long_fit_are_thinned_and_a_new_run_begins_without(dip, noisy, from_random_input):
    assert dip("run", noisy, *ONE, "--quiet", "--iterations", "105").code == 0
    assert [path.name for path in sorted(Path("runs/noisy/snapshots").glob("state_*"))] == [
        f"state_{step:06}.safetensors" for step in (20, 40, 60, 80, 100)
    ]
    again = ("--iterations", "12", "--overwrite")
    assert dip("run", noisy, *ONE, "--quiet", *again).code == 0
    assert [path.name for path in Path("runs/noisy/snapshots").glob("state_*")] == ["state_000010.safetensors"]


def test_fit_that_was_stopped_has_its_answer_back(dip, noisy, from_random_input, monkeypatch):
    signal_after(monkeypatch, lambda fit: fit.steps == 25)
    assert dip("run", noisy, *RUN).code == 130
    first = files("runs/noisy")["result.png"]
    for step in ("10", "25"):
        assert dip("pick", "runs/noisy", "--step", step).code == 0
    assert files("runs/noisy")["result.png"] == first


def test_picture_that_has_moved_is_named(dip, noisy, run):
    Path("elsewhere").mkdir()
    shutil.move(noisy, "elsewhere")
    outcome = dip("pick", str(run), "--strength", "0.5")
    assert outcome.code == 2
    assert "--inputs" in outcome.err
    assert dip("pick", str(run), "--strength", "0.5", "--inputs", "elsewhere").code == 0


def test_blend_goes_into_every_format(dip, run):
    assert dip("pick", str(run), "--strength", "0.5").code == 0
    for name, file in (("torchscript", "model.pt"), ("pt2", "model.pt2")):
        assert dip("export", str(run), "--format", name).code == 0
        assert dip("replay", str(run / file), "--trust", "-o", f"{name}.png").code == 0
        np.testing.assert_array_equal(read(Path(f"{name}.png")), read(run / "result.png"))


def test_blend_of_a_picture_in_tiles_is_that_of_the_whole(dip, run, monkeypatch):
    assert dip("pick", str(run), "--strength", "0.5").code == 0
    whole = open_model(run).draw()
    size = open_model(run).program.inputs[0].codes.shape[2:]
    box = tuple(slice(0, side) for side in size)
    monkeypatch.setattr(tiles, "tiles", lambda program: [tiles.Tile(box, box)] * 2)
    np.testing.assert_array_equal(open_model(run).draw(), whole)


def test_blend_of_sixteen_bits_keeps_them(dip, from_random_input):
    write("deep.png", texture(16, 18, 3, dtype=np.uint16))
    assert dip("run", "deep.png", *ONE, "--quiet", "--iterations", "4").code == 0
    before, given = open_model("runs/deep").draw(), read(Path("deep.png")).astype(np.float32)
    assert dip("pick", "runs/deep", "--strength", "0.25").code == 0
    wanted = np.rint(given + np.float32(0.25) * (before - given)).clip(0, 65535)
    np.testing.assert_array_equal(read(Path("runs/deep/result.png")), wanted)
