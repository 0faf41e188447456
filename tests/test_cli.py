"""The command line: options, streams, exit codes, and one clear line for each wrong input."""

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from cli_cases import FITTED, KEYS, ONE, PROGRAM, SHORT, decoded, encoded, gray
from PIL import Image

import dip_fast
from dip_fast import __version__
from dip_fast.cli import batch
from dip_fast.pictures import metrics
from dip_fast.runs import progress

pytestmark = pytest.mark.usefixtures("place")


# --- what is under test -------------------------------------------------------------------------------------------


def test_package_is_the_installed_one():
    checkout = Path(__file__).parents[1] / "dip_fast"
    assert "PYTHONPATH" in os.environ or Path(dip_fast.__file__).parent != checkout


def test_script_is_the_same_program():
    script = Path(sys.executable).parent / "dip-fast"
    if "PYTHONPATH" in os.environ and not script.exists():
        pytest.skip("not installed: the checkout is under test")
    for program in ([script], PROGRAM):
        ended = subprocess.run([*program, "--version"], capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout == f"dip-fast, version {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["bench", "--help"], ["presets"]])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print(*(m for m in ('torch', 'numpy', 'PIL', 'cv2', 'scipy', 'matplotlib', 'skimage',"
        " 'tifffile') if m in sys.modules), file=sys.stderr))\n"
        "from dip_fast.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    ended = subprocess.run([sys.executable, "-P", "-c", code, *arguments], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr.strip()) == (0, "")
    assert ended.stdout


# --- standard output and standard error ---------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_json_is_all_there_is_on_standard_output(dip, noisy):
    restored = dip("run", noisy, *SHORT, "--json", "--seed", "9", "--reference", noisy)
    assert restored.code == 0
    summary = json.loads(restored.out)
    assert summary.keys() >= KEYS
    assert (summary["steps"], summary["best_step"], summary["stop_reason"]) == (3, 3, "iterations")
    assert (summary["device"], summary["engine"], summary["seed"]) == ("cpu", "fused", 9)
    assert Path(summary["result"]) == Path("runs/noisy/result.png")
    restored, original = (decoded(path.read_bytes())[..., None] / 255 for path in (Path(summary["result"]), noisy))
    assert summary["psnr"] == pytest.approx(metrics.psnr(restored, original), abs=0.05)
    assert summary["ssim"] == pytest.approx(metrics.ssim(restored, original), abs=0.01)
    assert summary["psnr_input"] > 100  # the reference is the picture itself: JSON has no infinity


@pytest.mark.usefixtures("small")
def test_json_without_a_reference_has_no_psnr(dip, noisy):
    restored = dip("run", noisy, *SHORT, "--json", "--quiet")
    assert restored.err == ""
    summary = json.loads(restored.out)
    assert summary["psnr"] is None
    assert summary["ssim"] is None


@pytest.mark.usefixtures("small")
def test_quiet_prints_nothing(dip, noisy):
    restored = dip("run", noisy, *SHORT, "--quiet")
    assert (restored.code, restored.out, restored.err) == (0, b"", "")


@pytest.mark.usefixtures("small")
def test_log_begins_with_the_device_and_the_engine(dip, noisy):
    restored = dip("run", noisy, *SHORT, "--reference", noisy)
    first, second, *lines = restored.err.splitlines()
    assert first.startswith("device cpu (1 thread), engine fused")
    assert "18x16" in second
    assert "gray" in second
    assert lines
    for line in lines:  # plain lines: no bar in a pipe
        assert re.fullmatch(r"noise about .* of 255|(cleaning|finishing) \d+%, about \d+.\d dB, \d\d:\d\d left", line)
    assert "\r" not in restored.err
    verbose = dip("run", noisy, *SHORT, "--reference", noisy, "--preset", "quick", "-v", "-o", "quick").err.splitlines()
    build = r"operators (that came with the package|compiled on this machine), for torch \S+, kernels \w+"
    assert re.fullmatch(build, verbose[1])
    for line in verbose[3:]:
        assert re.fullmatch(r"step \d+/3, [\d.e+]+ steps/s, loss .*, PSNR .*, \d\d:\d\d left", line)
    assert "variance" in verbose[-1]
    closing = restored.out.decode()
    assert "result: runs/noisy/result.png\nreport: runs/noisy/report.html\n" in closing
    assert "PSNR" in closing
    assert "SSIM" in closing


@pytest.mark.usefixtures("small")
def test_conversions_are_said(dip):
    Image.fromarray(gray(16, 16)).convert("P").save("palette.png")
    assert "palette" in dip("run", "palette.png", *SHORT).err.lower()


@pytest.mark.usefixtures("small")
def test_terminal_shows_a_bar(dip, noisy, monkeypatch):
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))
    chunks = []

    def read():
        with contextlib.suppress(OSError):  # the other end was closed
            while chunk := os.read(terminal, 4096):
                chunks.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    with open(end, "w") as stream, monkeypatch.context() as patch:  # noqa: PTH123  (a descriptor has no path)
        patch.setattr(sys, "stderr", stream)
        assert dip("run", noisy, *SHORT, "--reference", noisy).code == 0
    reader.join()
    os.close(terminal)
    shown = b"".join(chunks).decode()
    assert "\r" in shown
    assert "100%" in shown
    assert "cleaning" in shown or "finishing" in shown
    assert " left" in shown
    assert "dB" in shown
    assert shown.startswith("loading ...\r")  # before anything is imported that takes long
    lines = [line for line in shown.replace("\n", "\r").split("\r") if "|" in line and " left" in line]
    assert lines
    assert max(map(len, lines)) <= 80
    assert "engine fused" in shown


@pytest.mark.parametrize(
    "arguments",
    [("pick", "none"), ("report", "none"), ("export", "none", "--format", "pt2"), ("info",), ("ui", "none")],
)
def test_what_loads_long_is_seen_at_once(dip, monkeypatch, arguments):
    """pick and report showed nothing for two seconds."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for shows in (True, False):
        stream = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            patch.setattr("sys.stdout.isatty", lambda shows=shows: shows, raising=False)
            dip(*arguments)
        assert stream.getvalue().startswith("loading ...\r") == shows


@pytest.mark.usefixtures("small")
def test_dash_reads_standard_input_and_writes_standard_output(dip):
    samples = gray(17, 23)
    restored = dip("run", "-", *SHORT, stdin=encoded(samples))
    assert restored.code == 0
    assert decoded(restored.out).shape == samples.shape
    assert "engine fused" in restored.err
    assert "all steps done" in restored.err
    assert not list(Path().iterdir())  # nothing is left anywhere


@pytest.mark.usefixtures("small")
def test_dash_with_a_folder_keeps_the_run(dip):
    data = encoded(gray(16, 16))
    restored = dip("run", "-", *SHORT, "-o", "kept", "--quiet", stdin=data)
    assert (restored.code, restored.err) == (0, "")
    assert Path("kept/result.png").read_bytes() == restored.out
    again = dip("run", "-", *ONE, "-o", "kept", "--resume", stdin=data)
    assert (again.code, again.out) == (0, restored.out)


@pytest.mark.usefixtures("small")
def test_float_picture_passes_through_the_streams(dip):
    file = io.BytesIO()
    tifffile.imwrite(file, np.random.default_rng(0).random((16, 16), np.float32))
    restored = dip("run", "-", *SHORT, stdin=file.getvalue())
    assert tifffile.imread(io.BytesIO(restored.out)).dtype == np.float32


def test_processes_on_a_pipe(noisy):
    restored = subprocess.run([*PROGRAM, "run", "-", *FITTED], input=noisy.read_bytes(), capture_output=True)
    assert restored.returncode == 0
    assert decoded(restored.stdout).shape == (16, 18)
    assert b"engine fused" in restored.stderr


@pytest.mark.parametrize("output", ["closed pipe", "/dev/full"])
def test_standard_output_that_takes_nothing_does_not_lose_the_result(noisy, output):
    if output == "closed pipe":
        read, write = os.pipe()
        os.close(read)
    else:
        write = os.open(output, os.O_WRONLY)
    ended = subprocess.run(
        [*PROGRAM, "run", "-", *FITTED, "--quiet"], input=noisy.read_bytes(), stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert ended.returncode == 1
    (line,) = ended.stderr.decode().splitlines()
    (result,) = Path.cwd().glob("dip-fast-*-result.png")
    assert str(result) in line


def test_log_that_nobody_takes_does_not_end_the_run(noisy):
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run([*PROGRAM, "run", noisy, *FITTED, "--json"], stdout=subprocess.PIPE, stderr=full)
    assert ended.returncode == 0
    assert json.loads(ended.stdout)["steps"] == 20


# --- names and folders --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("two words.png", "two words"),
        ("Bäume 木.png", "Bäume 木"),
        (".png", ".png"),
        ("name", "name"),
        ("a.b.c.png", "a.b.c"),
        ("sub/inner.png", "inner"),
        ("./-n.png", "-n"),
        (os.fsdecode(b"caf\xe9.png"), os.fsdecode(b"caf\xe9")),
    ],
)
def test_names_of_all_kinds(dip, name, folder):
    Path("sub").mkdir()
    Path(name).write_bytes(encoded(gray(16, 16)))
    restored = dip("run", name, *SHORT)
    assert restored.code == 0, restored.err
    assert (Path("runs") / folder / "result.png").exists()


@pytest.mark.usefixtures("small")
def test_leading_dash_after_two_dashes(dip):
    Path("-n.png").write_bytes(encoded(gray(16, 16)))
    assert dip("run", *SHORT, "--", "-n.png").code == 0


@pytest.mark.usefixtures("small")
def test_out_may_lie_deep(dip, noisy):
    assert dip("run", noisy, *SHORT, "-o", "a/b c/d").code == 0
    assert Path("a/b c/d/result.png").exists()


# --- signals from outside -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_signal_ends_the_process_after_its_step(noisy, number):
    command = [*PROGRAM, "run", noisy, *ONE, "--iterations", "100000", "--stop", "never"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("cleaning "):
                break
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopping after this step" in err
    assert "--resume" in err
    assert "stopped" in out
    assert {"result.png", "run.json", "checkpoint.safetensors"} <= {path.name for path in Path("runs/noisy").iterdir()}


# --- the other verbs ----------------------------------------------------------------------------------------------


def test_presets_lists_each_with_what_it_costs(dip):
    from dip_fast.presets import PRESETS

    listed = dip("presets").out.decode()
    facts = json.loads(dip("presets", "--json").out)
    assert facts.keys() == PRESETS.keys() >= {"quick", "paper"}
    for name, preset in PRESETS.items():
        assert f"{name}: " in listed
        assert preset.summary in listed
        assert facts[name]["cost"] in listed
        assert f"{facts[name]['iterations']:,} steps" in listed


def test_info_says_what_a_bug_report_needs(dip):
    facts = json.loads(dip("info", "--json").out)
    assert facts["dip_fast"] == __version__
    assert {"python", "platform", "torch", "libraries", "cpu", "cpu_capability", "engines", "gpus"} <= facts.keys()
    listed = dip("info").out.decode()
    for name in facts:
        assert f"{name}: " in listed


def test_bar_is_shown_on_a_terminal_of_no_known_size(monkeypatch):
    """Those of containers and logs have none; tqdm took its 0 lines for no room, and drew nothing."""
    reader, writer = os.openpty()
    with open(writer, "w") as terminal:  # noqa: PTH123
        assert os.get_terminal_size(writer) == (0, 0)
        monkeypatch.setattr(sys, "stderr", terminal)
        progress._bar(SimpleNamespace(fraction=0.0, seconds_left=None)).close()
        shower = batch.Shower(quiet=False, verbose=False, json_events=False)
        shower({"event": "batch", "waiting": 3, "done": 0, "faults": [], "ignored": []})
        shower.close()
    shown = b""
    with contextlib.suppress(OSError):  # the other side is closed: that was all
        while True:
            shown += os.read(reader, 4096)
    os.close(reader)
    assert b"0% |" in shown
    assert b"0 of 3 |" in shown
