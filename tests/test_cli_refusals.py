"""The command line: options, streams, exit codes, and one clear line for each wrong input."""

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from cli_cases import ONE, SHORT, assert_not_resumed, assert_refused, encoded, gray
from click.shell_completion import BashComplete
from PIL import Image

from dip_fast.cli.verbs import cli
from dip_fast.device import devices

pytestmark = pytest.mark.usefixtures("place", "from_random_input")


# --- help and completion -------------------------------------------------------------------------------------------


def test_help_keeps_the_lines_of_its_examples(dip):
    text = dip("--help").out.decode()
    assert "\\b" not in text
    assert re.search(r"^ +dip-fast run photo\.png  +denoise\n +dip-fast run photo\.png --mask mask\.png ", text, re.M)


@pytest.mark.parametrize("words", ["run", "run --mask", "run --reference", "replay", "export"])
def test_a_shell_completes_the_names_of_files(words):
    found = BashComplete(cli, {}, "dip-fast", "_DIP_FAST_COMPLETE").get_completions(words.split(), "ph")
    assert [item.type for item in found] == ["file"]


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


@pytest.mark.usefixtures("small")
def test_a_mask_that_may_be_the_wrong_way_round_is_not_passed_over(dip):
    mask = np.zeros((32, 32), np.uint8)
    mask[:3] = 255
    Path("holed.png").write_bytes(PNG)
    for name, picture in (("inverted.png", mask), ("mask.png", 255 - mask)):
        Path(name).write_bytes(encoded(picture))
        ended = dip("run", "holed.png", "--mask", name, "-o", name[:-4], *SHORT)
        said = "the mask leaves 91% of the picture to be drawn: if it marks the unknown part, invert it" in ended.err
        assert (ended.code, said) == (0, name == "inverted.png")


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


@pytest.mark.parametrize(
    "arguments", [["stack"], ["compare", "--presets", "fast"], ["batch"]], ids=lambda each: each[0]
)
def test_folder_for_results_is_not_named_as_a_picture(dip, arguments):
    """A folder clean.tif was made, where a file was meant."""
    Path("in.png").write_bytes(PNG)
    ended = dip(*arguments, "in.png", "-o", "clean.tif")
    assert_refused(ended, "'clean.tif' is named as a picture, and the results need a folder; leave out .tif")
    assert not Path("clean.tif").exists()
    Path("clean.tif").mkdir()  # which somebody wants
    Path("clean.tif/mine").touch()
    assert "named as a picture" not in dip(*arguments, "in.png", "-o", "clean.tif", "--noise", "wrong").err


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
    Path("out/run.json").write_text("{}")
    assert_refused(dip("run", noisy, "-o", "out"), "out exists", "--resume", "--overwrite")
    assert [path.name for path in Path("out").iterdir()] == ["run.json"]


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


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--iterations", "8"], "--iterations 8"),
        (["--seed", "1"], "--seed 1: the run has --seed 0"),
        (["--upsampling", "bilinear"], "upsampling"),
        (["--preset", "hourglass"], "preset"),
        (["--snapshot-every", "3"], "--snapshot-every"),
        (["--stop", "never"], "stop"),
        (["--no-fused"], "--no-fused: the run has --fused"),
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

    monkeypatch.setitem(PRESETS._entries, "quick", PRESETS["paper"])
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
    assert b"dip-fast checkpoint 4" in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b"dip-fast checkpoint 4", b"dip-fast checkpoint 3"))
    assert_not_resumed(dip(*stopped), "is not a checkpoint of this version", "--overwrite")


def test_checkpoint_of_another_network_is_refused(dip, stopped):
    Image.fromarray(np.dstack([gray(16, 18)] * 3)).save("colour.png")
    assert dip("run", "colour.png", *SHORT, "--quiet", "-o", "other").code == 0
    Path("other/checkpoint.safetensors").replace("runs/noisy/checkpoint.safetensors")
    assert_not_resumed(dip(*stopped), "checkpoint.safetensors")


def test_folder_without_pictures_is_refused_in_the_spelling_of_the_command_line(dip):
    """It said to give recursive=True, which is Python's spelling."""
    Path("empty").mkdir()
    assert_refused(dip("batch", "empty", "--out", "out"), "no picture in empty", "or give --recursive to look")
