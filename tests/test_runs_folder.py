"""What a run may not do to a folder, and what is done to it meanwhile: links, kills, other runs, late failures."""

import errno
import json
import os
import resource
import shutil
from pathlib import Path

import pytest
from run_cases import ONE, SHORT, after, record

from dip_fast.errors import DipFastError, UsageError
from dip_fast.runs import charts, finish
from dip_fast.runs import run as runs
from dip_fast.runs.record import Record

pytestmark = pytest.mark.usefixtures("place", "from_random_input", "small")

WRITTEN = ("run.json", "result.png", "model.onnx", "checkpoint.safetensors", "history.csv", "report.html")


def contents(folder):
    """Bytes of all files below a folder; links and folders by what they are."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and not path.is_symlink() else path.is_dir()
        for path in Path(folder).rglob("*")
    }


@pytest.fixture
def done(dip, noisy):
    """Arguments of a run that is done, in the folder out."""
    arguments = ("run", noisy, *SHORT, "--snapshot-every", "3", "-o", "out")
    assert dip(*arguments).code == 0
    return arguments


# --- what lies in the way -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--overwrite", "--resume"])
@pytest.mark.parametrize("name", [*WRITTEN, "snapshots", "snapshots/iter_000003.png"])
def test_link_in_the_folder_leads_nothing_out_of_it(dip, done, name, option):
    Path("album").mkdir()
    shutil.move(f"out/{name}", "album/iter_000001.png" if name != "snapshots" else "album/snapshots")
    (target,) = Path("album").iterdir()
    Path("out", name).symlink_to(target.resolve())
    before = contents("."), contents("album")
    refused = dip(*done, option)
    assert (refused.code, len(refused.err.splitlines())) == (2, 1)
    assert name in refused.err
    assert (contents("."), contents("album")) == before


@pytest.mark.parametrize("name", [*WRITTEN, "snapshots/iter_000003.png"])
def test_folder_in_place_of_a_file_is_refused_before_anything_is_deleted(dip, done, name):
    Path("out", name).unlink()
    Path("out", name).mkdir()
    before = contents("out")
    refused = dip(*done, "--overwrite")
    assert refused.code == 2
    assert name in refused.err
    assert contents("out") == before


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "run.json"])
@pytest.mark.parametrize("option", ["--overwrite", "--resume"])
def test_pipe_in_place_of_a_file_is_refused(dip, done, option, name):
    Path("out", name).unlink()
    os.mkfifo(f"out/{name}")
    assert dip(*done, option).code == 2  # and nobody waits for a writer


def test_record_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(UsageError, match=r"run\.json is unreadable \(it is a device or a pipe, .*; start again with"):
        Record.read(tmp_path)


def test_link_that_appears_during_the_run_is_not_followed(dip, noisy, monkeypatch):
    Path("album").mkdir()
    Path("album/mine.png").write_text("mine")

    def plant():
        Path("out/snapshots").rename("out/moved")
        Path("out/snapshots").symlink_to(Path("album").resolve())
        Path("out/result.png").symlink_to(Path("album/mine.png").resolve())

    after(monkeypatch, lambda fit: fit.steps == 3, plant)
    assert dip("run", noisy, *SHORT, "--snapshot-every", "1", "-o", "out").code == 0
    assert contents("album") == {"mine.png": b"mine"}
    assert not Path("out/result.png").is_symlink()
    assert len(list(Path("out/moved").iterdir())) == 6


# --- killed while it starts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [[], ["snapshots"], ["snapshots", ".dip-fast-0123456789abcdef.tmp"]])
@pytest.mark.parametrize("options", [(), ("--overwrite",)], ids=["plain", "overwrite"])
def test_folder_of_a_run_that_was_killed_before_its_record_is_free(dip, noisy, left, options):
    Path("out").mkdir()
    for name in left:
        Path("out", name).mkdir() if name == "snapshots" else Path("out", name).write_text("{")
    again = dip("run", noisy, *SHORT, "-o", "out", "--resume")
    assert (again.code, "leave out --resume" in again.err) == (2, True)
    assert dip("run", noisy, *SHORT, "-o", "out", *options).code == 0
    assert not list(Path("out").glob("*.tmp"))


# --- two runs -----------------------------------------------------------------------------------------------------


def test_run_that_ends_while_another_prepares_keeps_its_folder(dip, noisy, monkeypatch):
    start, held = runs.start, []

    def start_late(*arguments):
        fit = start(*arguments)
        if not held:
            held.append(None)
            request = runs.Request(noisy, {"threads": 1, "iterations": 6, "seed": 5}, out=Path("out"), quiet=True)
            runs.run(request, print)
            held.append(contents("out"))
        return fit

    monkeypatch.setattr(runs, "start", start_late)
    refused = dip("run", noisy, *SHORT, "-o", "out")
    assert refused.code == 2
    assert "out exists" in refused.err
    assert contents("out") == held[1]


def test_run_to_be_resumed_is_locked_before_it_is_read(dip, done):
    first = runs.Folder(Path("out"), print)
    first.lock()
    for option in ("--resume", "--overwrite"):
        refused = dip(*done, option)
        assert (refused.code, "another run is at work in out" in refused.err) == (2, True)
    first.close()
    with pytest.raises(UsageError, match="exists"):
        runs.run(runs.Request(Path("noisy.png"), {}, out=Path("out")), print)


# --- once there is a result ---------------------------------------------------------------------------------------


def test_folder_moved_during_the_run_is_still_the_runs(dip, noisy, monkeypatch):
    def move():
        Path("out").rename("moved")
        Path("out").mkdir()

    after(monkeypatch, lambda fit: fit.steps == 3, move)
    ended = dip("run", noisy, *SHORT, "-o", "out", "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["result"] == str(Path("moved/result.png").resolve())
    assert record("moved")["status"] == "done"
    assert {*WRITTEN} <= contents("moved").keys()
    assert contents("out") == {}


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError(), ValueError("a\nb")])
def test_failure_beside_the_result_is_a_problem_and_no_more(dip, noisy, monkeypatch, error):
    def fail(*_):
        raise type(error)(*error.args)  # a new one, since the old would keep all frames, and the fit, for ever

    monkeypatch.setattr(charts, "plot", fail)
    ended = dip("run", noisy, *SHORT, "-o", "out")
    assert ended.code == 1
    assert "the result is in out/result.png" in ended.err.splitlines()[-1]
    held = record("out")
    assert (held["status"], len(held["summary"]["problems"])) == ("done", 1)
    assert type(error).__name__ in held["summary"]["problems"][0]
    assert Path("out/contact_sheet.png").exists()


@pytest.mark.parametrize("error", [OSError(errno.EROFS, "Read-only file system"), KeyboardInterrupt()])
def test_last_line_names_the_result_whatever_happens(dip, noisy, monkeypatch, error):
    def fail(*_):
        raise type(error)(*error.args)  # a new one, since the old would keep all frames, and the fit, for ever

    monkeypatch.setattr(finish, "_quality", fail)
    ended = dip("run", noisy, *SHORT, "-o", "out")
    assert ended.code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    (line,) = ended.err.splitlines()
    assert "the result is in out/result.png" in line
    assert Path("out/result.png").exists()
    assert record("out")["status"] == ("running" if isinstance(error, KeyboardInterrupt) else "failed")


def test_run_without_descriptors_keeps_its_result(dip, noisy, monkeypatch):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def exhaust():
        free = os.open(os.devnull, os.O_RDONLY)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))

    after(monkeypatch, lambda fit: fit.steps == 3, exhaust)
    try:
        ended = dip("run", noisy, *ONE, "--iterations", "6", "--quiet", "-o", "out")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert ended.code == 1
    assert "the result is in out/result.png" in ended.err.splitlines()[-1]
    assert Path("out/result.png").exists()


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["plain", "json"])
def test_last_line_names_the_result_where_standard_output_takes_nothing(dip, noisy, monkeypatch, options):
    def fail(data):
        raise DipFastError("cannot write to standard output: No space left on device")

    monkeypatch.setattr("dip_fast.cli.output.put", fail)
    ended = dip("run", noisy, *ONE, "--iterations", "3", "-o", "out", *options)
    assert ended.code == 1
    assert ended.err.splitlines()[-1].endswith(
        "standard output: No space left on device; the result is in out/result.png"
    )


def test_result_that_is_saved_elsewhere_takes_no_name_that_is_in_use(dip, noisy, monkeypatch):
    Path(f"dip-fast-{os.getpid()}-out-result.png").symlink_to("mine.png")
    after(monkeypatch, lambda fit: fit.steps == 3, lambda: shutil.rmtree("out"))
    ended = dip("run", noisy, *SHORT, "-o", "out", "--json")
    assert ended.code == 1
    assert Path(json.loads(ended.out)["result"]).is_file()
    assert not Path("mine.png").exists()
