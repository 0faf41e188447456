"""Many pictures: what is done once stays done, what is bad is left, what was lost goes on."""

import csv
import io
import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from batch_cases import Inline, batch, carried_out, changed, hashes, picture, rows
from run_cases import after

import dip_fast
from dip_fast.errors import BusyError, TooLargeError, UsageError
from dip_fast.runs import recorder
from dip_fast.runs.batch import control, driver, interface, manifest, messages, work, worker
from dip_fast.runs.places import found

pytestmark = pytest.mark.usefixtures("small", "plainly_finished")


@pytest.fixture
def plainly_finished(monkeypatch):
    """Leave out what takes longest once a tiny fit is over, and is the same for one picture and for many."""
    monkeypatch.setattr("dip_fast.runs.charts.plot", lambda *_: b"plot")
    monkeypatch.setattr("dip_fast.runs.report.page", lambda *_: b"report")
    monkeypatch.setattr("dip_fast.runs.finish.sheet_of", lambda looks: looks.result.image)


@pytest.fixture
def two(place):
    """A folder of two pictures, the second of which is larger."""
    return [picture("in/a.png"), picture("in/b.png", 20, 24, seed=1)]


def test_pictures_of_one_name_have_a_folder_each(place):
    for index, name in enumerate(("a.png", "a.tif", "sub/a.png", "sub/deep/a.png")):
        picture(f"in/{name}", seed=index)
    result, _, _ = carried_out(batch(recursive=True))
    assert [row["path"] for row in result.rows] == ["a.png", "a.tif", "sub/a.png", "sub/deep/a.png"]
    assert {row["status"] for row in result.rows} == {"done"}
    assert len(set(hashes(result).values())) == 4
    assert all(Path(row["out_path"]).parent == Path("out", row["path"]) for row in result.rows)
    index = result.index.read_text()
    assert all(f"./{row['path']}/report.html" in index for row in result.rows)


def test_result_is_that_of_a_single_run(two, dip):
    result, _, _ = carried_out(batch())
    assert dip("run", two[0], "--iterations", "4", "--threads", "1", "--out", "alone", "--export", "none").code == 0
    assert rows(result)["a.png"]["out_sha256"] == found(Path("alone"))["summary"]["sha256"]


def test_what_is_done_is_skipped(two):
    first, _, _ = carried_out(batch())
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("run.json")}
    picture("in/c.png", seed=3)
    second, _, pool = carried_out(batch())
    assert pool.submitted == ["c.png"]
    assert second.skipped == 2
    assert hashes(first).items() <= hashes(second).items()
    assert before.items() <= {path: path.stat().st_mtime_ns for path in Path("out").rglob("run.json")}.items()


def test_what_is_done_and_gone_is_made_again(two):
    first, _, _ = carried_out(batch())
    Path("out/a.png/result.png").unlink()
    second, _, pool = carried_out(batch())
    assert pool.submitted == ["a.png"]
    assert hashes(first) == hashes(second)


def test_the_largest_comes_first(two):
    picture("in/c.png", 18, 20)
    _, events, pool = carried_out(batch(), ["done"] * 3)
    assert pool.submitted == ["b.png", "c.png", "a.png"]
    left = [event["seconds_left"] for event in events if event["event"] == "picture"]
    assert left[-1] == 0
    assert None not in left


def test_other_settings_are_refused_by_name(two):
    first, _, _ = carried_out(batch())
    with pytest.raises(UsageError, match=r"was started with iterations=4; .* overwrite=True"):
        carried_out(batch(iterations=5))
    with pytest.raises(UsageError, match="was started without seed"):
        carried_out(batch(seed=1))
    assert hashes(carried_out(batch(threads=2))[0]) == hashes(first)  # no bit depends on them
    second, _, pool = carried_out(batch(iterations=5, overwrite=True))
    assert sorted(pool.submitted) == ["a.png", "b.png"]
    assert not set(hashes(first).values()) & set(hashes(second).values())


def test_refused_settings_are_not_kept(two, dip, monkeypatch):
    """A batch that never began does not stand in the way of one with the right settings."""
    monkeypatch.setattr(control, "local_pool", Inline)
    ended = dip("batch", "in", "--out", "out", "--stop", "auto", "--preset", "fast", "--threads", "1", "--quiet")
    assert ended.code == 2
    assert "--stop auto: the steps of --preset fast" in ended.err
    assert not Path("out").exists()


def test_a_changed_picture_never_replaces_a_result_unasked(two):
    first, _, _ = carried_out(batch())
    changed(two[0])
    second, _, pool = carried_out(batch())
    assert pool is None
    assert rows(second)["a.png"]["status"] == "blocked"
    assert "another picture" in rows(second)["a.png"]["error"]
    assert second.faults == 1
    assert hashes(first) == hashes(second)
    third, _, pool = carried_out(batch(overwrite=True))
    assert pool.submitted == ["a.png"]
    assert rows(third)["a.png"]["status"] == "done"


def test_bad_file_is_never_tried_again(two):
    Path("in/bad.png").write_bytes(b"no picture")
    first, _, pool = carried_out(batch())
    assert pool.submitted.count("bad.png") == 1
    row = rows(first)["bad.png"]
    assert (row["status"], row["attempts"], first.faults) == ("bad", 1, 1)
    assert "cannot read" in row["error"]
    second, _, pool = carried_out(batch())
    assert pool is None
    assert rows(second)["bad.png"]["error"] == row["error"]
    picture("in/bad.png", seed=5)  # mended
    third, _, pool = carried_out(batch())
    assert pool.submitted == ["bad.png"]
    assert rows(third)["bad.png"]["status"] == "done"


def test_crash_goes_on_from_the_checkpoint(two, monkeypatch):
    whole, _, _ = carried_out(batch(out="whole"))
    monkeypatch.setattr(recorder, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)

    def crash():
        raise RuntimeError("crash")

    with monkeypatch.context() as patch:
        after(patch, lambda fit: fit.steps == 3, crash)
        result, events, pool = carried_out(batch())
    assert pool.submitted == ["b.png", "a.png", "b.png"]
    assert any(event.get("text") == "resumed after step 2" for event in events)
    assert rows(result)["b.png"]["attempts"] == 2
    assert hashes(result) == hashes(whole)


def test_damaged_checkpoint_starts_again(two, monkeypatch):
    whole, _, _ = carried_out(batch(out="whole"))
    with monkeypatch.context() as patch:
        after(patch, lambda fit: fit.steps == 3, lambda: os.kill(os.getpid(), signal.SIGINT))
        carried_out(batch(retries=0))
    assert found(Path("out/b.png"))["status"] == "interrupted"
    Path("out/b.png/checkpoint.safetensors").write_bytes(b"damaged")
    result, events, _ = carried_out(batch())
    assert any("starting again" in event.get("text", "") for event in events)
    assert hashes(result) == hashes(whole)


def test_lost_picture_is_tried_so_often_and_then_failed(two):
    result, events, pool = carried_out(batch(retries=2), ["lost", None, "lost", "lost"])
    assert pool.submitted == ["b.png", "a.png", "b.png", "b.png"]
    assert rows(result)["b.png"]["status"] == "failed"
    assert [event["picture"] for event in events if event["event"] == "retry"] == ["b.png"] * 2
    assert found(Path("out/b.png"))["status"] == "failed"  # the tree says so too
    again, _, pool = carried_out(batch())
    assert pool.submitted == ["b.png"]
    assert rows(again)["b.png"]["status"] == "done"


def test_nobody_is_blamed_for_a_worker_that_did_not_start(two):
    result, _, _ = carried_out(batch(retries=0), ["unstarted", "unstarted"])
    assert result.counts == {"done": 2}


def test_too_large_is_not_tried_again_in_the_batch(two, monkeypatch):
    def refuse(*_):
        raise TooLargeError("a 24x20 picture needs about 900.0 GB and 1.0 GB are free")

    with monkeypatch.context() as patch:
        patch.setattr("dip_fast.runs.estimate.memory", refuse)
        picture("in/c.png")
        result, _, pool = carried_out(batch())
    assert len(pool.submitted) == 3
    assert result.counts == {"too-large": 3}
    assert "900.0 GB" in rows(result)["c.png"]["error"]
    assert carried_out(batch())[0].counts == {"done": 3}  # on a larger machine


def test_a_full_disk_is_no_fault_of_the_pictures(two, monkeypatch):
    """They were noted as bad, and left for good."""
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
        result, _, pool = carried_out(batch(retries=1))
    assert len(pool.submitted) == 4
    assert result.counts == {"failed": 2}
    assert "make room" in rows(result)["a.png"]["error"]
    assert carried_out(batch())[0].counts == {"done": 2}


def test_busy_folder_is_waited_for(two, monkeypatch):
    monkeypatch.setattr(driver, "SECONDS_BETWEEN_TRIES", 0.0)
    result, _, pool = carried_out(batch(retries=0), ["busy", "busy", "busy"])
    assert result.counts == {"done": 2}
    assert len(pool.submitted) == 5


def test_a_dead_drivers_worker_keeps_its_folder(two):
    """The lock is that of the run's folder; a second process finds it taken, and does nothing there."""
    from dip_fast.runs.folder import Folder

    asked = batch()
    (item, *_) = control.planned(asked).items
    Path(item.folder).mkdir(parents=True)
    folder = Folder(Path(item.folder), print)
    folder.lock()
    assert work.perform(asked.settings, item, print).status == "busy"
    assert not list(Path(item.folder).iterdir())
    folder.close()
    assert work.perform(asked.settings, item, print).status == "done"


def test_worker_stops_with_a_checkpoint_where_its_driver_is_gone(two, monkeypatch):
    """The driver's end of the pipe is closed, whatever has ended it; the fit under way ends after its step."""
    whole, _, _ = carried_out(batch(out="whole"))
    asked = batch()
    (item, *_) = control.planned(asked).items
    requests, driver_end = os.pipe()
    events = io.BytesIO()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    lines = os.fdopen(requests, "rb")
    try:
        stop = worker.Stop()
        pending = worker._listen(lines, stop)
        os.write(driver_end, messages.line(item.to_dict()))

        def die():
            os.close(driver_end)
            deadline = time.monotonic() + 30
            while not stop.is_wished and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.05)  # the signal follows the wish

        with monkeypatch.context() as patch:
            after(patch, lambda fit: fit.steps == 2, die)
            assert not worker._serve(work, asked.settings, pending.get(), events, stop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        lines.close()
    *_, ended = map(json.loads, events.getvalue().splitlines())
    assert (ended["event"], ended["status"]) == ("ended", "interrupted")
    assert Path(item.folder, "checkpoint.safetensors").exists()
    result, said, _ = carried_out(batch())
    assert any(event.get("text") == "resumed after step 2" for event in said)
    assert hashes(result) == hashes(whole)


def test_too_many_failures_in_a_row_stop_the_batch(place):
    for index in range(6):
        picture(f"in/{index}.png", seed=index)
    result, _, pool = carried_out(batch(max_failures=3), ["bad", "bad", "done", *["bad"] * 9])
    assert len(pool.submitted) == 6
    assert result.gave_up
    result, _, pool = carried_out(batch(max_failures=2), ["bad"] * 9)
    assert len(pool.submitted) == 2
    assert result.gave_up
    assert result.counts == {"bad": 2, "waiting": 4}


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    return "interrupted"


def test_ctrl_c_lets_what_is_under_way_end(two):
    result, _, pool = carried_out(batch(), [interrupt])
    assert (pool.submitted, pool.calls) == (["b.png"], ["close"])
    assert result.is_stopped
    assert result.counts == {"interrupted": 1, "waiting": 1}


def test_ctrl_c_twice_ends_it_at_once(two):
    def twice():
        interrupt()
        return interrupt()

    picture("in/c.png")
    result, _, pool = carried_out(batch(workers=2), [twice])
    assert pool.calls == ["stop", "kill", "close"]
    assert result.counts == {"interrupted": 1, "waiting": 2}


def test_what_was_ended_at_once_is_unfinished_in_the_manifest(two):
    """The manifest had what was in hand as waiting."""
    asked = batch()
    keeper = control._Keeper(asked, control.planned(asked), lambda event: None)
    Path("out/b.png").mkdir(parents=True)
    keeper.take({"event": "started", "picture": "b.png"})
    assert [row["status"] for row in csv.DictReader(asked.manifest.read_text().splitlines())] == ["waiting", "waiting"]
    Path("out/b.png/run.json").write_text('{"status": "running"}')
    assert keeper.result(None).counts == {"unfinished": 1, "waiting": 1}


def test_an_index_of_another_program_is_replaced_where_asked(two):
    """It was kept, and the advice to overwrite it led nowhere."""
    Path("out").mkdir()
    Path("out/index.html").write_text("mine")
    result, events, _ = carried_out(batch())
    assert result.index is None
    assert "is no index of this program" in events[-1]["text"]
    assert Path("out/index.html").read_text() == "mine"
    changed(two[0])
    result, _, _ = carried_out(batch(overwrite=True))
    assert result.index == Path("out/index.html")


def test_a_manifest_of_another_program_is_left_alone(two):
    """It was replaced."""
    Path("out").mkdir()
    Path("out/manifest.csv").write_text("mine")
    for refused in (lambda: carried_out(batch()), lambda: control.planned(batch(overwrite=True))):
        with pytest.raises(UsageError, match=r"out/manifest.csv is no manifest of a batch; move it away"):
            refused()
    Path("out/a.png").mkdir()
    Path("out/a.png/run.json").write_text("{}")
    with pytest.raises(UsageError, match="is no manifest"):
        control.status(Path("out"))
    assert Path("out/manifest.csv").read_text() == "mine"


def test_status_knows_what_has_not_begun(two):
    """It named the runs there are, and lost the rows of all other pictures."""
    picture("in/c.png")
    first, _, _ = carried_out(batch(workers=1), [None, interrupt])
    assert first.counts == {"done": 1, "interrupted": 1, "waiting": 1}
    for _ in range(2):
        assert control.status(Path("out")).counts == {"done": 1, "waiting": 2}


def test_second_driver_is_refused(two):
    def second():
        with pytest.raises(BusyError, match="another batch is at work in out"):
            carried_out(batch())
        with pytest.raises(BusyError, match="another batch"):
            carried_out(batch(shard=(1, 2)))
        return "done"

    carried_out(batch(), [second, "done"])


def test_jobs_of_an_array_share_a_folder(two):
    picture("in/1.png", seed=2)
    picture("in/2.png", seed=3)
    parts = []

    def third():
        parts.append(carried_out(batch(shard=(3, 3)))[0])
        with pytest.raises(BusyError, match="another batch"):
            carried_out(batch(shard=(1, 3)))

    for index in (1, 2):
        parts.append(carried_out(batch(shard=(index, 3)), [third] if index == 1 else None)[0])
    names = [row["path"] for part in parts for row in part.rows]
    assert sorted(names) == sorted(path.name for path in Path("in").iterdir())
    assert {path.name for path in Path("out").glob("manifest*")} == {f"manifest-{i}-of-3.csv" for i in (1, 2, 3)}
    assert [row["status"] for row in control.status(Path("out")).rows] == ["done"] * 4


def test_manifest_is_a_view_of_the_tree(two):
    Path("in/bad.png").write_bytes(b"no picture")
    result, _, _ = carried_out(batch())
    written = result.manifest.read_bytes()
    assert [row["path"] for row in csv.DictReader(written.decode().splitlines())] == ["a.png", "b.png", "bad.png"]
    result.manifest.unlink()
    assert control.status(Path("out")).rows == result.rows
    assert result.manifest.read_bytes() == written
    assert tuple(result.rows[0]) == manifest.COLUMNS


def test_record_remembers_what_was_asked_for(two):
    carried_out(batch())
    record = found(Path("out/a.png"))
    assert (record["attempts"], len(record["key"]), record["host"]) == (1, 64, os.uname().nodename)
    assert json.loads(Path("out/batch.json").read_text())["settings"] == {"iterations": 4, "snapshot_every": 0}


def test_python_function(two, monkeypatch):
    monkeypatch.setattr(control, "local_pool", Inline)
    events = []
    done = dip_fast.batch("in", "out", threads=1, iterations=4, export=(), on_event=events.append)
    assert [row["status"] for row in done] == ["done", "done"]
    assert events[0] == {"event": "batch", "pictures": 2, "waiting": 2, "done": 0, "ignored": [], "faults": []}
    with pytest.raises(UsageError, match="mask is of all pictures and mask_suffix of each"):
        interface.batch("in", "out", mask="m.png", mask_suffix="_mask")
