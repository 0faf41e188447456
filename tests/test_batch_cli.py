"""``dip-fast batch``: what it prints, and its exit codes."""

import json
import os
import signal
from pathlib import Path

import pytest
from batch_cases import Inline, picture

from dip_fast.cli import batch as cli
from dip_fast.errors import DipFastError
from dip_fast.runs.batch import control

SHORT = ("--threads", "1", "--iterations", "2", "--export", "none")


@pytest.fixture
def scripted(monkeypatch, place):
    """Pictures whose outcomes are the words of a script."""

    def script(*words, count=2):
        for index in range(count):
            picture(f"in/{index}.png", seed=index)
        monkeypatch.setattr(control, "local_pool", lambda batch: Inline(batch, [*words]))

    return script


@pytest.mark.usefixtures("small")
def test_batch_and_the_same_command_again(dip, scripted):
    scripted()
    Path("in/bad.png").write_bytes(b"no picture")
    Path("in/notes.txt").write_text("")
    ended = dip("batch", "in", "-o", "out", *SHORT)
    assert ended.code == 3
    assert ended.out.decode().splitlines() == [
        "1 bad, 2 done",
        "manifest: out/manifest.csv",
        "index: out/index.html",
    ]
    assert "3 pictures to restore, 1 other file ignored" in ended.err
    assert "bad: bad.png: cannot read" in ended.err
    assert "dip-fast: 1 of 3 pictures failed; out/manifest.csv says why" in ended.err
    again = dip("batch", "in", "-o", "out", *SHORT, "--json")
    assert again.code == 3
    facts = json.loads(again.out)
    assert facts["counts"] == {"bad": 1, "done": 2}
    assert facts["skipped"] == 2
    os.unlink("in/bad.png")  # noqa: PTH108
    assert dip("batch", "in", "-o", "out", *SHORT, "-q").code == 0
    status = dip("batch", "--status", "out")
    assert status.code == 0
    assert status.out.decode().startswith("1 bad, 2 done\nbad: bad.png: cannot read")
    dry = dip("batch", "in", "-o", "out", *SHORT, "--dry-run")
    assert dry.out.decode().splitlines()[-1] == "0 to restore, 2 done, 1 other file ignored"


@pytest.mark.usefixtures("small")
def test_what_stands_in_the_way_is_named_again(dip, scripted):
    """Only a count was printed of pictures that had been bad before or are blocked, and not which."""
    scripted()
    Path("in/bad.png").write_bytes(b"no picture")
    assert dip("batch", "in", "-o", "out", *SHORT).code == 3
    picture("in/0.png", seed=9)
    ended = dip("batch", "in", "-o", "out", *SHORT)
    assert ended.code == 3
    assert "0 pictures to restore, 1 is done, 2 cannot be restored" in ended.err
    assert "blocked: 0.png: out/0.png holds the run of another picture" in ended.err
    assert "bad: bad.png: cannot read" in ended.err
    assert ended.out.decode().splitlines()[0] == "1 bad, 1 blocked, 1 done (1 before)"


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--preview", "1,2,3"], "--preview 1,2,3: name left, top"),
        (["--preview", "0,0,8,8"], "--preview 0,0,8,8 must have at least 16x16"),
        (["--preset", "fast", "--stop", "auto"], "--stop auto: the steps"),
    ],
)
def test_what_is_wrong_for_all_is_refused_before_anything_is_written(dip, scripted, more, option, words):
    """A wrong preview made every picture bad and kept the batch; a dry run took any settings."""
    scripted()
    ended = dip("batch", "in", "-o", "out", *option, *more)
    assert ended.code == 2
    assert words in ended.err
    assert not Path("out").exists()


def test_pictures_without_a_reference_are_counted(dip, scripted):
    """Nothing was said of them, not even where the folder was a wrong one."""
    scripted("done", "done")
    picture("clean/0.png")
    ended = dip("batch", "in", "-o", "out", "--reference", "clean", *SHORT)
    assert "1 of 2 pictures has none of their name in clean, and get no PSNR" in ended.err


def test_dry_run_writes_nothing(dip, scripted, place):
    scripted()
    ended = dip("batch", "in", "-o", "out", "--dry-run")
    assert ended.code == 0
    assert ended.out.decode().splitlines() == [
        f"{place}/in/0.png -> out/0.png",
        f"{place}/in/1.png -> out/1.png",
        "2 to restore, 0 done, 0 other files ignored",
    ]
    assert not Path("out").exists()


def test_events_are_lines_of_json(dip, scripted):
    scripted("done", "bad")
    ended = dip("batch", "in", "-o", "out", *SHORT, "--json-events")
    events = [json.loads(line) for line in ended.out.splitlines()]
    assert [event["event"] for event in events] == ["batch", *["started", "ended", "picture"] * 2, "done"]
    assert events[-1]["counts"] == {"bad": 1, "done": 1}
    assert ended.code == 3


def test_a_log_says_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setattr(cli, "SECONDS_BETWEEN_LINES", -1.0)
    shower = cli.Shower(quiet=False, verbose=False, json_events=False)
    shower({"event": "batch", "waiting": 3, "done": 0, "ignored": [], "faults": []})
    shower(
        {"event": "picture", "picture": "a.png", "status": "failed", "error": "why", "done": 1, "seconds_left": None}
    )
    shower({"event": "picture", "picture": "b.png", "status": "done", "error": None, "done": 2, "seconds_left": 75.0})
    assert capsys.readouterr().err.splitlines() == [
        "3 pictures to restore",
        "0 of 3",
        "failed: a.png: why",
        "1 of 3, 1 failed",
        "2 of 3, 1 failed, 01:15 left",
    ]


def test_events_that_nobody_takes_stop_no_batch(monkeypatch):
    def refuse(text):
        raise DipFastError("cannot write to standard output: Broken pipe")

    monkeypatch.setattr(cli, "show", refuse)
    cli.Shower(quiet=False, verbose=False, json_events=True)({"event": "started", "picture": "a.png"})


def test_ctrl_c_ends_with_130(dip, scripted):
    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        return "interrupted"

    scripted(interrupt, "done")
    ended = dip("batch", "in", "-o", "out", *SHORT)
    assert ended.code == 130
    assert "stopped by the user; the same command goes on" in ended.err


def test_giving_up_ends_with_3(dip, scripted):
    scripted("bad", "bad", "bad", count=3)
    ended = dip("batch", "in", "-o", "out", *SHORT, "--max-failures", "2")
    assert ended.code == 3
    assert "too many pictures failed in a row" in ended.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["in"], "--out is missing"),
        (["-o", "out"], "name pictures, folders or patterns"),
        (["in", "-o", "out", "--shard", "0/4"], "from 1/100 to 100/100"),
        (["in", "-o", "out", "--json", "--json-events"], "leave out --json"),
        (["in", "-o", "out", "--mask", "m.png", "--mask-suffix", "_mask"], "leave out one of the two"),
        (["in", "-o", "in/0.png"], "is a file"),
        (["none", "-o", "out"], "there is no picture none"),
        (["in", "--status", "out"], "--status looks at a batch"),
        (["--status", "in"], "in holds no runs"),
        (["in", "-o", "in"], "--out in holds the pictures"),
        (["in", "-o", "out", "--mask-suffix", ""], "--mask-suffix is empty"),
    ],
)
def test_wrong_usage(dip, scripted, arguments, words):
    scripted()
    ended = dip("batch", *arguments)
    assert ended.code == 2
    assert words in ended.err
    assert not Path("out").exists()
