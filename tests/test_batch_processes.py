"""Batches of real processes, which are killed: nothing is lost, nothing is done twice, the bits are the same."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from batch_cases import batch, picture

from dip_fast.errors import DipFastError
from dip_fast.runs.batch import control
from dip_fast.runs.batch.local import LocalPool
from dip_fast.runs.batch.plan import Item
from dip_fast.runs.places import found

OPTIONS = {"preset": "fast", "iterations": 2}


def until(condition, seconds=120.0):
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.02)


def is_gone(pid):
    """Whether a process has ended; one that nobody waits for is a zombie until its new parent looks."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def run(asked):
    events = []
    return control.run(asked, events.append), events


def of(events, name, key):
    return [event[key] for event in events if event["event"] == name]


def test_one_process_restores_all_pictures(place):
    picture("in/a.png")
    picture("in/b.png", 20, 20)
    result, events = run(batch(**OPTIONS))
    assert result.counts == {"done": 2}
    assert len(set(of(events, "started", "pid"))) == 1
    assert is_gone(of(events, "started", "pid")[0])


# A worker that restores nothing: what becomes of a picture is the content of its file.
PRETENDED = """
import json, os, signal, sys
def send(**event): print(json.dumps(event), flush=True)
sys.stdin.readline()
for line in sys.stdin:
    item = json.loads(line)
    send(event="started", picture=item["name"], host="here", pid=os.getpid())
    tries = item["picture"] + ".tries"
    open(tries, "a").write("x")
    what = open(item["picture"]).read().split(",")[len(open(tries).read()) - 1]
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "crash":
        raise MemoryError("a crash")
    send(event="ended", picture=item["name"], status=what, error=None)
    if what == "failed":
        break
"""


@pytest.mark.parametrize("workers", [1, 3])
def test_processes_that_end_are_replaced(place, monkeypatch, workers):
    monkeypatch.setattr("dip_fast.runs.batch.local.START", PRETENDED)
    monkeypatch.setattr("dip_fast.runs.batch.work.leave", lambda *_: None)
    Path("in").mkdir()
    contents = {
        "a": "kill,done",
        "b": "done",
        "c": "crash,failed,done",
        "d": "kill,kill,crash",
        "e": "bad",
        "f": "done",
    }
    for name, content in contents.items():
        Path(f"in/{name}.png").write_text(content)
    result, events = run(batch(workers=workers))
    statuses = {row["path"][0]: row["status"] for row in result.rows}
    assert statuses == {**dict.fromkeys("abcf", "done"), "d": "failed", "e": "bad"}
    tries = {name: len(Path(f"in/{name}.png.tries").read_text()) for name in contents}
    assert tries == {name: len(content.split(",")) for name, content in contents.items()}
    errors = [error for error in of(events, "ended", "error") if error]
    assert any("signal SIGKILL" in error for error in errors)
    assert any("exit code 1): MemoryError: a crash" in error for error in errors)
    assert all(map(is_gone, of(events, "started", "pid")))


def test_process_that_cannot_start_is_an_error(place, monkeypatch):
    picture("in/a.png")
    monkeypatch.setattr("dip_fast.runs.batch.local.START", "raise SystemExit('no torch')")
    with pytest.raises(DipFastError, match=r"no worker of the batch could start: .*exit code 1.*no torch"):
        control.run(batch(**OPTIONS), lambda event: None)


def test_killed_pool_leaves_no_process(place, monkeypatch):
    monkeypatch.setattr("dip_fast.runs.batch.local.START", "import time; time.sleep(600)")
    pool = LocalPool(batch().settings, 2)
    for name in ("a", "b"):
        pool.submit(Item(name, name, name, {}))
    assert pool.free() == 0
    processes = [worker.process for worker in pool._workers]
    pool.kill()
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 2
    pool.close()


PROGRAM = [sys.executable, "-m", "dip_fast", "batch", "in", "-o", "out", "--threads", "1", "--json-events"]
LONG = ["--preset", "fast", "--iterations", "150", "--export", "none", "--snapshot-every", "0"]


def started_pids(log):
    lines = [line for line in Path(log).read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    return [event["pid"] for event in map(json.loads, lines) if event["event"] == "started"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["driver killed", "Ctrl-C"])
def test_driver_that_ends_leaves_checkpoints(place, number):
    """Its workers see the end of their requests, and stop; the same command goes on, to the same bits."""
    picture("in/a.png", 32, 32)
    whole = control.run(batch(out="whole", preset="fast", iterations=150), lambda event: None)
    with open("log", "wb") as log:  # noqa: PTH123
        process = subprocess.Popen([*PROGRAM, *LONG], stdout=log)
        until(lambda: b'"progress"' in Path("log").read_bytes())
        process.send_signal(number)
        assert process.wait() == (130 if number == signal.SIGINT else -number)
    (worker,) = started_pids("log")
    again = subprocess.run([*PROGRAM, *LONG], capture_output=True)  # at once: the old worker may not have ended yet
    assert again.returncode == 0
    assert is_gone(worker)
    record = found(Path("out/a.png"))
    assert record["attempts"] == 2
    assert record["summary"]["sha256"] == whole.rows[0]["out_sha256"]
    assert b"resumed after step" in again.stdout


@pytest.mark.slow
def test_several_workers_give_the_same_bits(place):
    for index in range(4):
        picture(f"in/{index}.png", 32, 30 + index, seed=index)
    one = control.run(batch(out="one", **OPTIONS), lambda event: None)
    several = control.run(batch(workers=3, **OPTIONS), lambda event: None)
    assert [row["out_sha256"] for row in one.rows] == [row["out_sha256"] for row in several.rows]
    assert all(row["out_sha256"] for row in one.rows)
