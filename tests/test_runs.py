"""The run's folder, and what it lives through: interruptions, kills, losses gone wrong, full disks."""

import contextlib
import csv
import hashlib
import io
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors import safe_open

from dip_fast import pictures
from dip_fast.errors import DipFastError, UsageError
from dip_fast.fitting import degradations
from dip_fast.fitting.loop import KEEP_EVERY
from dip_fast.pictures.metrics import psnr
from dip_fast.runs import checkpoints
from dip_fast.runs import run as runs
from dip_fast.runs.progress import Progress

pytestmark = pytest.mark.usefixtures("place")

ONE = ("--threads", "1")
SHORT = (*ONE, "--iterations", "6", "--quiet")


def texture(*shape, dtype=np.uint8):
    """Independent samples over the whole range of the dtype; floats in [0, 1)."""
    rng = np.random.default_rng(len(shape))
    return (
        rng.random(shape, dtype) if np.dtype(dtype).kind == "f" else rng.integers(0, np.iinfo(dtype).max, shape, dtype)
    )


def write(path, samples):
    """Write a PNG or a TIFF file."""
    if path.endswith(".png") and samples.dtype == np.uint8:
        Image.fromarray(samples).save(path)
    elif path.endswith(".png"):
        import imagecodecs

        Path(path).write_bytes(imagecodecs.png_encode(samples))
    else:
        tifffile.imwrite(path, samples, photometric="rgb" if samples.ndim == 3 else "minisblack")


def read(path):
    """Read a file's samples, whatever their kind."""
    import imagecodecs

    return tifffile.imread(path) if path.suffix == ".tif" else imagecodecs.png_decode(path.read_bytes())


def record(folder):
    return json.loads((Path(folder) / "run.json").read_text())


def answer(folder):
    """All tensors of the checkpoint, and the numbers but for the clock's."""
    with safe_open(Path(folder) / "checkpoint.safetensors", framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        numbers = {key: json.loads(value) for key, value in file.metadata().items() if key in checkpoints.WHICH}
    for state in numbers.values():
        del state["seconds"]
    return tensors, dict(sorted(numbers.items()))


def assert_same_run(one, other):
    """Same bits in the result, the history, the snapshots and the weights."""
    for name in ("result.png", "history.csv", *(p.relative_to(one) for p in Path(one).glob("snapshots/*.png"))):
        assert (Path(one) / name).read_bytes() == (Path(other) / name).read_bytes(), name
    (tensors, numbers), (others, other_numbers) = answer(one), answer(other)
    assert tensors.keys() == others.keys()
    for name in tensors:
        np.testing.assert_array_equal(tensors[name], others[name], err_msg=name)
    assert str(numbers) == str(other_numbers)  # as text, in which NaN equals NaN


def after(monkeypatch, condition, action):
    """Do something in a run after the first step for which a condition holds."""
    original, done = Progress.__call__, []

    def call(self, fit):
        original(self, fit)
        if not done and condition(fit):
            done.append(fit.steps)
            action()

    monkeypatch.setattr(Progress, "__call__", call)


def signal_after(monkeypatch, condition, number=signal.SIGINT):
    after(monkeypatch, condition, lambda: os.kill(os.getpid(), number))


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
        "result.png", "contact_sheet.png", "history.csv", "history.png", "run.json", "checkpoint.safetensors",
        "model.onnx", "snapshots",
        "snapshots/iter_000002.png", "snapshots/iter_000004.png", "snapshots/iter_000006.png",
    }  # fmt: skip
    for name in ("history.png", "contact_sheet.png", "snapshots/iter_000002.png"):
        with Image.open(folder / name) as image:
            image.load()
    with Image.open(folder / "snapshots/iter_000002.png") as image:
        assert image.size == (18, 16)
    with Image.open(folder / "contact_sheet.png") as image:  # input, three iterates; result, reference
        assert image.width > 4 * 256
        assert image.height > 2 * 256
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
    arguments = ("--mask", "mask.png", "--reference", noisy, "--seed", "7", "--upsampling", "bilinear")
    assert dip("run", noisy, *SHORT, *arguments).code == 0
    held = record("runs/noisy")
    assert held["settings"] == {
        "task": "inpaint", "preset": "quick", "network": "skip", "upsampling": "bilinear", "iterations": 6,
        "stop": "auto", "seed": 7, "device": "cpu", "engine": "fused", "precision": "fp32", "threads": 1,
        "options": {"composite": True}, "snapshot_every": 100, "keep_metadata": False,
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
        assert 4 * 256 < image.height < 5 * 300  # 16 tiles in rows of four


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


# --- interrupted and resumed --------------------------------------------------------------------------------------

SIXTY = (*ONE, "--iterations", "60", "--snapshot-every", "7")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_interrupted_run_writes_its_best_and_says_how_to_go_on(dip, noisy, monkeypatch, number):
    signal_after(monkeypatch, lambda fit: fit.steps == 5, number)
    stopped = dip("run", noisy, *SIXTY)
    assert stopped.code == 130
    assert "after step 5" in stopped.err
    assert "--resume" in stopped.err
    held = record("runs/noisy")
    assert (held["status"], held["summary"]["stop_reason"]) == ("interrupted", "interrupted")
    assert held["summary"]["steps"] == 5
    assert read(Path("runs/noisy/result.png")).shape == (16, 18)
    assert len(Path("runs/noisy/history.csv").read_text().splitlines()) == 6
    assert answer("runs/noisy")[1]["now"]["steps"] == 5
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "moments",
    [
        [lambda fit: fit.steps == 1],
        [lambda fit: fit.steps == 5],
        [lambda fit: fit.steps == 60],
        [lambda fit: fit.consolidation_steps == 3],
        [lambda fit: fit.consolidation_steps == 6],
        [lambda fit: fit.steps == 4, lambda fit: fit.steps == 9],
        [lambda fit: fit.steps == 7, lambda fit: fit.consolidation_steps == 2],
        [lambda fit: fit.consolidation_steps == 2, lambda fit: fit.consolidation_steps == 5],
    ],
    ids=["step1", "step5", "last", "consolidation", "end", "twice", "twice-consolidation", "consolidation-twice"],
)
def test_resumed_run_equals_one_that_never_stopped(dip, noisy, monkeypatch, moments):
    assert dip("run", noisy, *SIXTY, "--quiet", "-o", "whole").code == 0
    for i, moment in enumerate(moments):
        with monkeypatch.context() as patch:
            signal_after(patch, moment)
            assert dip("run", noisy, *SIXTY, "--quiet", "-o", "parts", *(["--resume"] if i else [])).code == 130
    assert dip("run", noisy, *SIXTY, "--quiet", "-o", "parts", "--resume").code == 0
    assert_same_run("whole", "parts")
    assert record("parts")["summary"]["sha256"] == record("whole")["summary"]["sha256"]
    assert record("parts")["started"] <= record("parts")["ended"]


@pytest.mark.usefixtures("small")
def test_resumed_run_stops_by_itself_where_the_whole_one_did(dip, noisy, monkeypatch):
    arguments = ("run", noisy, *ONE, "--iterations", "150", "--quiet", "--reference", noisy)
    assert dip(*arguments, "-o", "whole").code == 0
    with monkeypatch.context() as patch:
        signal_after(patch, lambda fit: fit.steps == 117)
        assert dip(*arguments, "-o", "parts").code == 130
    assert dip(*arguments, "-o", "parts", "--resume").code == 0
    assert record("whole")["summary"]["best_step"] > 100
    assert_same_run("whole", "parts")


@pytest.mark.usefixtures("small")
def test_interrupted_inpainting_goes_on(dip, noisy, monkeypatch):
    mask = np.full((16, 18), 255, np.uint8)
    mask[5:9, 5:9] = 0
    write("mask.png", mask)
    arguments = ("run", noisy, *SIXTY, "--quiet", "--mask", "mask.png")
    assert dip(*arguments, "-o", "whole").code == 0
    with monkeypatch.context() as patch:
        signal_after(patch, lambda fit: fit.steps == 6)
        assert dip(*arguments, "-o", "parts").code == 130
    assert dip(*arguments, "-o", "parts", "--resume").code == 0
    assert_same_run("whole", "parts")


@pytest.mark.usefixtures("small")
def test_second_signal_ends_the_run_at_once_and_it_can_be_resumed(dip, noisy, monkeypatch):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    assert dip("run", noisy, *SIXTY, "--quiet", "-o", "whole").code == 0
    with monkeypatch.context() as patch:
        after(patch, lambda fit: fit.steps == 5, twice)
        stopped = dip("run", noisy, *SIXTY, "-o", "parts")
    assert stopped.code == 130
    assert "stopped by the user" in stopped.err
    assert not Path("parts/result.png").exists()
    assert dip("run", noisy, *SIXTY, "-o", "parts", "--resume").code == 0
    assert_same_run("whole", "parts")


@pytest.mark.usefixtures("small")
def test_signal_before_the_first_step_leaves_no_result(dip, noisy, monkeypatch):
    opened = runs.Folder.open

    def interrupted(*arguments, **options):
        opened(*arguments, **options)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(runs.Folder, "open", interrupted)
    assert dip("run", noisy, *SIXTY).code == 130
    assert not Path("runs/noisy/result.png").exists()


@pytest.mark.usefixtures("small")
def test_signal_while_the_result_is_written_does_not_lose_it(dip, noisy, monkeypatch):
    finish = runs.finish

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return finish(*arguments)

    monkeypatch.setattr(runs, "finish", interrupted)
    assert dip("run", noisy, *SIXTY).code == 130
    assert Path("runs/noisy/contact_sheet.png").exists()


@pytest.mark.usefixtures("small")
def test_resuming_a_finished_run_says_so(dip, noisy):
    assert dip("run", noisy, *SHORT).code == 0
    before = {path: path.stat().st_mtime_ns for path in Path("runs/noisy").rglob("*")}
    again = dip("run", noisy, *ONE, "--resume", "--json")
    assert again.code == 0
    assert "this run is done" in again.err
    assert json.loads(again.out) == record("runs/noisy")["summary"]
    assert {path: path.stat().st_mtime_ns for path in Path("runs/noisy").rglob("*")} == before


@pytest.mark.usefixtures("small")
def test_finished_run_that_lost_its_result_makes_it_again(dip, noisy):
    assert dip("run", noisy, *SHORT).code == 0
    result = Path("runs/noisy/result.png").read_bytes()
    Path("runs/noisy/result.png").unlink()
    shutil.move("runs/noisy", "moved")
    assert dip("run", noisy, *SHORT, "--resume", "-o", "moved").code == 0
    assert Path("moved/result.png").read_bytes() == result


@pytest.mark.usefixtures("small")
def test_killed_run_leaves_a_checkpoint_to_go_on_from(dip, noisy, monkeypatch):
    monkeypatch.setattr("dip_fast.runs.recorder.SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    arguments = ("run", noisy, *SIXTY, "--quiet")
    started = time.monotonic()
    assert dip(*arguments, "-o", "whole").code == 0
    seconds, moments, reached = time.monotonic() - started, random.Random(0), []
    for i in range(6):
        out = Path(f"killed{i}")
        if not (child := os.fork()):  # importing takes longer than running
            try:
                dip(*arguments, "-o", out)
            finally:
                os._exit(0)
        while not (out / "run.json").exists():
            time.sleep(0.001)
        time.sleep(moments.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        reached += [answer(out)[1]["now"]["steps"]] if (out / "checkpoint.safetensors").exists() else [0]
        assert dip(*arguments, "-o", out, "--resume").code == 0
        assert_same_run("whole", out)
        assert not list(out.rglob("*.tmp"))
    assert any(0 < steps < 60 for steps in reached), reached


# --- losses gone wrong --------------------------------------------------------------------------------------------


def spoil(monkeypatch, calls, factor=float("nan")):
    """Multiply the loss of some steps, counted from 1, those gone wrong included."""
    original, count = degradations.Identity.data_term, iter(range(1, 10**6))
    monkeypatch.setattr(
        degradations.Identity,
        "data_term",
        lambda self, x: original(self, x) * (factor if next(count) in calls else 1.0),
        raising=False,
    )


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("at", "back_to"), [(1, 0), (4, 0), (KEEP_EVERY + 3, KEEP_EVERY)])
def test_loss_that_becomes_nan_falls_back_at_half_the_learning_rate(dip, noisy, monkeypatch, at, back_to):
    spoil(monkeypatch, {at})
    restored = dip("run", noisy, *ONE, "--iterations", "60", "--snapshot-every", "1")
    assert restored.code == 0
    assert f"at step {at}: back to step {back_to}, learning rate times 0.5" in restored.err
    held = record("runs/noisy")
    (event,) = held["events"]
    assert (event["step"], event["back_to_step"], event["learning_rate_factor"]) == (at, back_to, 0.5)
    assert "nan" in event["fault"]
    rows = list(csv.DictReader(io.StringIO(Path("runs/noisy/history.csv").read_text())))
    assert [int(row["step"]) for row in rows] == list(range(1, 61))
    assert held["summary"]["steps"] == 60
    assert len(list(Path("runs/noisy/snapshots").iterdir())) == 60


@pytest.mark.usefixtures("small")
def test_loss_that_jumps_falls_back(dip, noisy, monkeypatch):
    spoil(monkeypatch, {9}, factor=1000.0)
    assert dip("run", noisy, *ONE, "--iterations", "12", "--quiet").code == 0
    (event,) = record("runs/noisy")["events"]
    assert "jumped" in event["fault"]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("fault", [KEEP_EVERY + 2, KEEP_EVERY + 5], ids=["before", "after"])
def test_fallback_and_interruption_give_the_same_bits(dip, noisy, monkeypatch, fault):
    arguments = ("run", noisy, *ONE, "--iterations", "60", "--quiet", "--snapshot-every", "0")
    with monkeypatch.context() as patch:
        spoil(patch, {fault})
        assert dip(*arguments, "-o", "whole").code == 0
    with monkeypatch.context() as patch:
        spoil(patch, {fault})
        signal_after(patch, lambda fit: fit.steps == KEEP_EVERY + 3)
        assert dip(*arguments, "-o", "parts").code == 130
        assert dip(*arguments, "-o", "parts", "--resume").code == 0
    assert_same_run("whole", "parts")
    assert record("parts")["events"] == record("whole")["events"] != []


@pytest.mark.usefixtures("small")
def test_loss_that_is_wrong_again_and_again_fails_in_one_line(dip, noisy, monkeypatch):
    spoil(monkeypatch, range(3, 10**6))
    failed = dip("run", noisy, *ONE, "--iterations", "12", "--quiet")
    assert failed.code == 1
    assert len(failed.err.splitlines()) == 1
    assert "nan" in failed.err
    held = record("runs/noisy")
    assert held["status"] == "failed"
    assert len(held["events"]) > 1


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
        "notes.txt", "result.tif", "contact_sheet.png", "history.csv", "history.png", "run.json",
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
            second.open({}, fresh=fresh)

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
    original = pictures.write_atomically

    def write_atomically(path, data):
        if wrong(Path(path)):
            raise DipFastError(f"cannot write {path}: No space left on device; make room there")
        original(path, data)

    monkeypatch.setattr("dip_fast.runs.folder.write_atomically", write_atomically)


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
