"""The run's folder, and what it lives through: interruptions, kills, losses gone wrong, full disks."""

import csv
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
from run_cases import ONE, SHORT, after, answer, assert_same_run, read, record, signal_after, write

from dip_fast.fitting import degradations
from dip_fast.fitting.loop import KEEP_EVERY
from dip_fast.runs import finish
from dip_fast.runs import run as runs

pytestmark = pytest.mark.usefixtures("place", "from_random_input")


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
        [lambda fit: fit.consolidated == 3],
        [lambda fit: fit.consolidated == 6],
        [lambda fit: fit.steps == 4, lambda fit: fit.steps == 9],
        [lambda fit: fit.steps == 7, lambda fit: fit.consolidated == 2],
        [lambda fit: fit.consolidated == 2, lambda fit: fit.consolidated == 5],
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
@pytest.mark.parametrize("name", ["result.png", "model.onnx"])
def test_going_on_does_not_write_over_what_somebody_has_changed(dip, noisy, monkeypatch, name):
    signal_after(monkeypatch, lambda fit: fit.steps == 5, signal.SIGINT)
    assert dip("run", noisy, *SIXTY).code == 130
    file = Path("runs/noisy", name)
    written = file.read_bytes()
    file.write_bytes(b"retouched")
    ended = dip("run", noisy, *SIXTY, "--resume")
    assert ended.code == 2
    assert f"cannot resume: {file} is not as the run wrote it; move what you have changed away" in ended.err
    assert file.read_bytes() == b"retouched"
    file.write_bytes(written)
    assert dip("run", noisy, *SIXTY, "--resume").code == 0
    file.write_bytes(b"retouched")  # with nothing left to do, nothing is written
    assert dip("run", noisy, *SIXTY, "--resume").code == 0
    assert dip("run", noisy, *SIXTY[:2], "--iterations", "70", "--resume").code == 2
    assert file.read_bytes() == b"retouched"


@pytest.mark.usefixtures("small")
def test_a_resumed_run_that_is_killed_still_knows_what_it_had_written(dip, noisy, monkeypatch):
    """Its record had lost the hashes, so the next start wrote over what the user had made of the result."""

    def killed(*_):
        raise KeyboardInterrupt

    file = Path("runs/noisy/result.png")
    with monkeypatch.context() as patch:
        signal_after(patch, lambda fit: fit.steps == 5, signal.SIGINT)
        assert dip("run", noisy, *SIXTY).code == 130
    with monkeypatch.context() as patch:
        after(patch, lambda fit: fit.steps == 9, killed)
        assert dip("run", noisy, *SIXTY, "--resume").code == 130
    written = file.read_bytes()
    file.write_bytes(b"retouched")
    assert "is not as the run wrote it" in dip("run", noisy, *SIXTY, "--resume").err
    assert file.read_bytes() == b"retouched"
    file.write_bytes(written)
    with monkeypatch.context() as patch:  # what it has written itself is no reason to refuse it
        patch.setattr(finish, "_models", killed)
        assert dip("run", noisy, *SIXTY, "--resume").code == 130
    assert file.read_bytes() != written
    assert dip("run", noisy, *SIXTY, "--resume").code == 0


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
    assert len(list(Path("runs/noisy/snapshots").glob("iter_*"))) == 60


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
