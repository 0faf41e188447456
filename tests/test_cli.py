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
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import dip_fast
from dip_fast import __version__
from dip_fast.device import devices
from dip_fast.pictures import metrics

pytestmark = pytest.mark.usefixtures("place")

ONE = ("--threads", "1")
SHORT = (*ONE, "--iterations", "3")
# Of the preset's own network at 2x2 pixels in its deepest scale: unfitted, two engines differ by 2.5e-5 of the range.
FITTED = (*ONE, "--iterations", "20")
KEYS = {"result", "steps", "best_step", "stop_reason", "seconds", "device", "engine", "precision", "seed", "psnr"}
PROGRAM = [sys.executable, "-m", "dip_fast"]


def encoded(samples, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(samples).save(file, kind)
    return file.getvalue()


def gray(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width), np.uint8)


def decoded(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def assert_refused(outcome, *words, code=2):
    """One line on standard error that holds the words, nothing on standard output, nothing written."""
    assert outcome.code == code
    assert outcome.out == b""
    (line,) = outcome.err.splitlines()
    assert line.startswith("dip-fast: ")
    for word in words:
        assert word in line
    assert not Path("runs").exists()


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
    ended = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
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
        assert re.fullmatch(r"step \d+/3, .*, [\d.e+]+ steps/s, \d\d:\d\d left", line)
    assert "\r" not in restored.err
    assert "loss" in lines[0]
    assert "variance" in lines[0]
    assert "PSNR" in lines[0]
    closing = restored.out.decode()
    assert "result: runs/noisy/result.png" in closing
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
    assert "3/3" in shown
    assert "step/s" in shown or "s/step" in shown
    assert "loss" in shown
    assert "variance" in shown
    assert "PSNR" in shown
    assert "engine fused" in shown


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


# --- wrong usage and wrong input: one line, exit 2, nothing written ------------------------------------------------


def bomb():
    """A PNG that says it is 100,000 pixels high and wide."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def nan_tiff():
    file = io.BytesIO()
    samples = np.zeros((16, 16), np.float32)
    samples[3, 4] = np.nan
    tifffile.imwrite(file, samples)
    return file.getvalue()


PNG, JPEG = encoded(gray(32, 32)), encoded(gray(32, 32), "JPEG")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"hello, world", "cannot read"),
        (PNG[: len(PNG) // 2], "cut short"),
        (JPEG[: len(JPEG) // 2], "cut short"),
        (bomb(), "pixels"),
        (encoded(gray(8, 8)), "16x16"),
        (nan_tiff(), "NaN"),
        (encoded(np.zeros((16, 16, 4), np.uint8)[..., :3], "TIFF")[:60], "cannot read"),
    ],
    ids=["missing", "empty", "text", "cut-png", "cut-jpeg", "bomb", "tiny", "nan", "cut-tiff"],
)
def test_bad_picture(dip, content, word):
    if content is not None:
        Path("picture.png").write_bytes(content)
    assert_refused(dip("run", "picture.png"), "picture.png", word)
    if content is not None:
        assert_refused(dip("run", "-", stdin=content), "stdin", word)


def test_folder_is_no_picture(dip):
    assert_refused(dip("run", "/"), "it is a folder")
    assert_refused(dip("run", ".."), "it is a folder")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--iterations", "-5"], ["--iterations", "-5"]),
        (["--iterations", "0"], ["--iterations"]),
        (["--iterations", "many"], ["--iterations", "many"]),
        (["--seed", "-1"], ["--seed"]),
        (["--seed", str(2**63)], ["--seed"]),
        (["--threads", "0"], ["--threads"]),
        (["--threads", "100000"], ["--threads", "cores"]),
        (["--snapshot-every", "-1"], ["--snapshot-every"]),
        (["--preset", "quik"], ["quik", "did you mean quick", "paper", "hourglass", "decoder"]),
        (["--preset", "zzz"], ["quick, paper, hourglass, decoder"]),
        (["--iteration", "5"], ["--iteration", "--iterations"]),
        (["--snapshot-evry", "5"], ["--snapshot-every"]),
        (["--stop", "nevr"], ["did you mean never"]),
        (["--fused", "--network", "hourglass"], ["hourglass", "no block", "--no-fused"]),
        (["--precision", "bf16", "--device", "cpu"], ["--precision bf16 needs a GPU, and this is cpu"]),
        (["--precision", "fp16"], ["fp32, tf32, bf16"]),
        (["--task", "inpaint"], ["--mask"]),
        (["--task", "inpant"], ["did you mean inpaint"]),
        (["--task", "denoise", "--mask", "white.png"], ["--task"]),
        (["--network", "skip", "--preset", "hourglass"], ["--network", "--preset"]),
        (["--network", "hourglass", "--upsampling", "nearest"], ["--upsampling"]),
        (["--resume"], ["nothing to resume"]),
        (["--resume", "--overwrite"], ["--resume", "--overwrite"]),
        (["--mask", "small.png"], ["small.png", "18x16", "17x16"]),
        (["--mask", "black.png"], ["black.png", "nothing known"]),
        (["--mask", "missing.png"], ["missing.png", "no such file"]),
        (["--reference", "small.png"], ["small.png", "18x16", "17x16"]),
        (["--reference", "colour.png"], ["colour.png", "3 channels"]),
        (["--reference", "missing.png"], ["missing.png", "no such file"]),
        (["-o", "white.png"], ["white.png"]),
        (["-o", "white.png/below"], ["white.png/below"]),
        (["-o", "n" * 300], ["too long"]),
        (["-o", "/proc/nowhere"], ["/proc/nowhere"]),
        (["-o", "users"], ["users", "exists"]),
        (["-o", "users", "--overwrite"], ["users", "not a run's folder"]),
        (["another.png"], ["another.png"]),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_wrong_usage(dip, noisy, arguments, words):
    for name, samples in (
        ("white.png", np.full((16, 18), 255, np.uint8)),
        ("black.png", np.zeros((16, 18), np.uint8)),
        ("small.png", gray(16, 17)),
        ("colour.png", np.dstack([gray(16, 18, seed) for seed in range(3)])),
    ):
        Image.fromarray(samples).save(name)
    Path("users").mkdir()
    Path("users/thesis.txt").write_text("mine")
    before = sorted(Path().rglob("*"))
    assert_refused(dip("run", noisy, *arguments), *words)
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rum", "x.png"], ["rum", "did you mean run"]),
        (["run"], ["PICTURE"]),
        (["run", "-", "--json"], ["--json", "standard output"]),
        (["run", "-", "--resume"], ["--out"]),
        (["run", "-", "--export", "onnx"], ["--export", "--out"]),
        (["run", "x.png", "--export", "onx"], ["onx", "did you mean onnx"]),
        (["run", "x.png", "--export", "onnx,none"], ["none", "onnx, torchscript, pt2"]),
        (["--nonsense"], ["--nonsense"]),
        (["info", "--jsn"], ["--json"]),
    ],
    ids=" ".join,
)
def test_wrong_words(dip, arguments, words):
    assert_refused(dip(*arguments), *words)


def test_no_words_at_all_print_the_help(dip):
    outcome = dip()
    assert outcome.code == 2
    assert "Usage: dip-fast" in outcome.err


def test_cuda_without_a_gpu_is_an_error(dip, noisy, monkeypatch):
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: False)
    assert_refused(dip("run", noisy, "--device", "cuda"), "--device cuda", "--device cpu")


def test_existing_folder_is_refused(dip, noisy):
    Path("out").mkdir()
    assert_refused(dip("run", noisy, "-o", "out"), "out exists", "--resume", "--overwrite")
    assert not list(Path("out").iterdir())


def test_picture_too_large_for_the_memory_is_told_the_size_that_fits(dip, monkeypatch):
    Image.fromarray(gray(300, 400)).save("large.png")
    monkeypatch.setattr(devices, "available_bytes", lambda device: 60_000_000)
    refused = dip("run", "large.png")
    assert_refused(refused, "400x300", "GB")
    width, height = map(int, re.search(r"(\d+)x(\d+) would fit", refused.err).groups())
    assert width / height == pytest.approx(4 / 3, rel=0.05)
    Image.fromarray(gray(height, width)).save("fits.png")
    assert dip("run", "fits.png", *ONE, "--iterations", "1", "--stop", "never", "--quiet").code == 0


def test_traceback_is_for_debugging(dip):
    assert "Traceback" not in dip("run", "missing.png").err
    shown = dip("run", "missing.png", "--debug")
    assert shown.code == 2
    assert "Traceback" in shown.err
    assert shown.err.splitlines()[-1].startswith("dip-fast: cannot read missing.png")


def test_fault_of_the_program_is_one_line_too(dip, noisy, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("division by\nzero")

    monkeypatch.setattr(devices, "require_memory", fail)
    assert_refused(dip("run", noisy), "ZeroDivisionError: division by zero", "--debug", code=1)
    assert "in fail" in dip("run", noisy, "--debug").err


# --- resuming what cannot be resumed ------------------------------------------------------------------------------


@pytest.fixture
def stopped(dip, noisy, small, monkeypatch):
    """Arguments of a run that was interrupted after its third step."""
    from dip_fast.runs.progress import Progress

    call = Progress.__call__

    def interrupting(self, fit):
        call(self, fit)
        if fit.steps == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "__call__", interrupting)
        assert dip("run", noisy, *ONE, "--iterations", "9", "--quiet").code == 130
    return ("run", noisy, *ONE, "--resume")


def assert_not_resumed(outcome, *words):
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith("dip-fast: ")
    for word in ("cannot resume", *words):
        assert word in line


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--iterations", "10"], "iterations"),
        (["--seed", "1"], "seed"),
        (["--upsampling", "bilinear"], "upsampling"),
        (["--preset", "hourglass"], "preset"),
        (["--snapshot-every", "3"], "snapshot every"),
        (["--stop", "never"], "stop"),
        (["--no-fused"], "engine"),
        (["--precision", "fp32"], "precision"),
        (["--task", "inpaint"], "task"),
        (["--mask", "white.png"], "mask"),
        (["--reference", "noisy.png"], "reference"),
        (["--threads", "2"], "threads"),
        (["--no-composite"], "composite"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_resuming_with_other_options_is_refused(dip, stopped, arguments, word):
    Image.fromarray(np.full((16, 18), 255, np.uint8)).save("white.png")
    before = Path("runs/noisy/run.json").read_bytes()
    assert_not_resumed(dip(*stopped, *arguments), word, "--overwrite")
    assert Path("runs/noisy/run.json").read_bytes() == before


@pytest.mark.parametrize(
    "arguments", [[], ["--device", "auto"], ["--iterations", "9", "--fused"], ["--precision", "tf32"]]
)
def test_resuming_with_the_same_options_goes_on(dip, stopped, arguments):
    restored = dip(*stopped, *arguments)
    assert restored.code == 0
    assert "resumed after step 3" in restored.err


def test_resuming_with_another_picture_is_refused(dip, stopped, noisy):
    Image.fromarray(gray(16, 18, seed=8)).save(noisy)
    assert_not_resumed(dip(*stopped), "picture")


def test_resuming_with_a_preset_that_changed_is_refused(dip, stopped, monkeypatch):
    from dip_fast.presets import PRESETS

    monkeypatch.setitem(PRESETS, "quick", PRESETS["paper"])
    assert_not_resumed(dip(*stopped), "quick")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"settings": {"seed": 0}}', b"\xff\xfe", None, "preset"]
)
def test_damaged_record_is_refused(dip, stopped, content):
    path = Path("runs/noisy/run.json")
    if content is None:
        path.unlink()
        outcome = dip(*stopped)
        assert outcome.code == 2
        assert "nothing to resume" in outcome.err
        return
    if content == "preset":
        content = path.read_bytes().replace(b'"preset": "quick"', b'"preset": "gone"')
    path.write_bytes(content)
    assert_not_resumed(dip(*stopped), "run.json", "--overwrite")


def _cut(data):
    return data[: len(data) // 2]


def _other_tensor(data):
    return data.replace(b'"now/network.', b'"now/netw0rk.')


@pytest.mark.parametrize("damage", [_cut, _other_tensor, lambda data: b"", lambda data: b"pickle" * 99])
def test_damaged_checkpoint_is_refused(dip, stopped, damage):
    path = Path("runs/noisy/checkpoint.safetensors")
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    assert_not_resumed(dip(*stopped), "checkpoint.safetensors", "--overwrite")
    assert path.read_bytes() == damaged


def test_checkpoint_of_another_version_is_refused(dip, stopped):
    path = Path("runs/noisy/checkpoint.safetensors")
    assert b"dip-fast checkpoint 2" in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b"dip-fast checkpoint 2", b"dip-fast checkpoint 1"))
    assert_not_resumed(dip(*stopped), "is not a checkpoint of this version", "--overwrite")


def test_checkpoint_of_another_network_is_refused(dip, stopped):
    Image.fromarray(np.dstack([gray(16, 18)] * 3)).save("colour.png")
    assert dip("run", "colour.png", *SHORT, "--quiet", "-o", "other").code == 0
    Path("other/checkpoint.safetensors").replace("runs/noisy/checkpoint.safetensors")
    assert_not_resumed(dip(*stopped), "checkpoint.safetensors")


# --- signals from outside -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_signal_ends_the_process_after_its_step(noisy, number):
    command = [*PROGRAM, "run", noisy, *ONE, "--iterations", "100000", "--stop", "never"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("step "):
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
        assert f"{facts[name]['iterations']} steps" in listed


def test_info_says_what_a_bug_report_needs(dip):
    facts = json.loads(dip("info", "--json").out)
    assert facts["dip_fast"] == __version__
    assert {"python", "platform", "torch", "libraries", "cpu", "cpu_capability", "engines", "gpus"} <= facts.keys()
    listed = dip("info").out.decode()
    for name in facts:
        assert f"{name}: " in listed
