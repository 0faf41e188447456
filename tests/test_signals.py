"""Signals outside a fit: one line, exit 130, and what is ignored stays ignored."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from run_cases import SHORT, after, record

from dip_fast.cli import signals
from dip_fast.errors import Stopped

ALL = pytest.mark.parametrize("number", signals.SIGNALS, ids=lambda number: number.name)


@ALL
def test_signal_while_the_program_starts_is_one_line_and_exit_130(number):
    # The first of the modules that take long to import is never there.
    slow = (
        "import sys, time, types; sys.meta_path.insert(0, types.SimpleNamespace(find_spec=lambda *_: time.sleep(60)))"
    )
    program = f"from dip_fast import cli; print('ready', flush=True); {slow}; cli.main(['run', 'x.png'])"
    with subprocess.Popen([sys.executable, "-P", "-c", program], stdout=-1, stderr=-1, text=True) as process:
        process.stdout.readline()
        while not caught(process.pid, number):
            time.sleep(0.005)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "dip-fast: stopped by the user\n")


def caught(pid, number):
    """Whether a process has a handler for a signal."""
    with open(f"/proc/{pid}/status") as status:  # noqa: PTH123
        (mask,) = [line.split()[1] for line in status if line.startswith("SigCgt")]
    return int(mask, 16) >> (number - 1) & 1 and (number != signal.SIGINT or int(mask, 16) >> (signal.SIGTERM - 1) & 1)


@ALL
@pytest.mark.usefixtures("place", "from_random_input", "small")
def test_signal_while_a_run_prepares_is_one_line_and_leaves_nothing(dip, noisy, monkeypatch, number, place):
    from dip_fast.runs import run

    monkeypatch.setattr(run, "start", lambda *_: os.kill(os.getpid(), number))
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    stopped = dip("run", noisy, *SHORT)
    assert (stopped.code, stopped.err) == (130, "dip-fast: stopped by the user\n")
    assert [path.name for path in place.iterdir()] == ["noisy.png"]
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before


@pytest.mark.usefixtures("place", "from_random_input", "small")
def test_closed_terminal_ends_the_fit_after_its_step(dip, noisy, monkeypatch):
    after(monkeypatch, lambda fit: fit.steps == 3, lambda: os.kill(os.getpid(), signal.SIGHUP))
    assert dip("run", noisy, *SHORT).code == 130
    assert record("runs/noisy")["summary"]["steps"] == 3


@pytest.mark.usefixtures("place", "from_random_input", "small")
def test_signal_that_is_ignored_ends_nothing(dip, noisy, monkeypatch):
    """As under nohup, and for a job that a script runs in the background."""
    after(monkeypatch, lambda fit: fit.steps == 3, lambda: os.kill(os.getpid(), signal.SIGHUP))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert dip("run", noisy, *SHORT).code == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_command_line_runs_in_another_thread_which_has_no_signals(dip):
    ended = []
    thread = threading.Thread(target=lambda: ended.append(dip("tasks")))
    thread.start()
    thread.join()
    assert not ended[0].code
    assert b"denoise" in ended[0].out


def test_one_that_the_user_stops_has_its_exit_code():
    assert Stopped("stopped by the user").exit_code == signals.INTERRUPTED == 130
