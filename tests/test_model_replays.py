"""Model files replayed: verified, into other kinds of files, without torch."""

import base64
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from model_files import broken, pixels, read
from PIL import Image

import dip_fast
from dip_fast.errors import DipFastError
from dip_fast.models import onnx_format
from dip_fast.models.packing import pack, unpack
from dip_fast.models.verifying import compare, require_alike, tolerance
from dip_fast.pictures import Kind
from dip_fast.presets import PRESETS

pytestmark = pytest.mark.usefixtures("place", "from_random_input")


def changed(path, change):
    """Write a copy of a model with other arrays, its metadata and pixels as they are."""
    program, metadata, blobs = onnx_format.read(Path(path).read_bytes())
    metadata.pop("program")
    schema = metadata.pop("schema")
    assert schema == 1
    Path("changed.onnx").write_bytes(onnx_format.write(change(program), metadata, blobs))
    return "changed.onnx"


def with_bias(program, shift):
    """Move what the last convolution draws, before the sigmoid."""
    return replace(program, arrays=program.arrays | {"head.bias": program.arrays["head.bias"] + np.float32(shift)})


def test_verify_says_same_within_or_differs(model, dip):
    ended = dip("replay", model, "--verify", "--json")
    assert (ended.code, ended.err) == (0, "")
    held = json.loads(ended.out)
    assert (held["verdict"], held["samples"], held["worst"], held["result"]) == ("same", 0, None, None)

    near = changed(model, lambda program: with_bias(program, 2e-5))
    ended = dip("replay", near, "--verify")
    assert ended.code == 0
    assert "float output differs by rounding" in ended.out.decode() or "within the tolerance" in ended.out.decode()

    far = changed(model, lambda program: with_bias(program, 0.1))
    ended = dip("replay", far, "--verify", "--json", "--difference", "difference.png", "-o", "far.png")
    assert ended.code == 4
    held = json.loads(ended.out)
    assert held["verdict"] == "differs"
    was, now = read("run/result.png").astype(int), read("far.png").astype(int)
    assert held["largest"] == np.abs(was - now).max() > 1
    assert held["samples"] == held["pixels"] == (was != now).sum()
    row, column, channel = held["worst"]
    assert abs(was - now)[row, column, channel] == held["largest"]
    assert f"by {held['largest']:g} at most (row {row}, column {column}" in ended.err
    shown = read("difference.png")[..., 0]
    np.testing.assert_array_equal(shown > 0, (was != now)[..., 0])
    assert shown.max() == 255


def test_verify_notices_a_single_changed_weight_and_a_changed_z(model, dip):
    def flip(program):
        (part,) = program.inputs
        codes = part.codes.copy()
        codes[0, 0, 0, 0] ^= 1
        return replace(program, inputs=(part._replace(codes=codes),))

    ended = dip("replay", changed(model, flip), "--verify")
    assert ended.code == 4
    assert "changed after it was written" in ended.err


def test_rounding_that_moves_a_sample_is_within_the_tolerance():
    kind = Kind("", 100, 10, 1, "uint8", (0.0, 255.0))
    recorded = np.full((10, 100, 1), 7, np.uint8)
    output = np.full((10, 100, 1), 7.2, np.float32)
    output[3, 4] = 7.504  # 7.499 was rounded to 7 at export
    found = compare(output, recorded, kind, tolerance(kind))
    assert (found.same, found.within, found.samples, found.worst) == (False, True, 1, (3, 4, 0))
    output[3, 4] = 7.54
    assert not compare(output, recorded, kind, tolerance(kind)).within
    output[:] = 7.5001  # half a level off is one thing; that many are another
    output[:, ::2] = 7
    assert not compare(output, recorded, kind, tolerance(kind)).within


def test_flat_area_between_two_levels_is_no_other_picture():
    """Two engines may round all of it apart; their float pictures are 1.2e-5 of the range apart, and 1e-4 may be."""
    kind = Kind("", 100, 10, 1, "uint8", (0.0, 255.0))
    expected = np.full((10, 100, 1), 7.4985, np.float32)
    require_alike(expected + np.float32(0.003), expected, kind, "the engine")
    with pytest.raises(DipFastError, match=r"off by 0\.00012 of the range \(allowed: 0\.0001\); 1,000 pixels"):
        require_alike(expected + np.float32(0.03), expected, kind, "the engine")
    output = expected.copy()
    output[3, 4] = 7.6  # a single sample, off by much
    with pytest.raises(DipFastError, match="drew another picture than PyTorch does"):
        require_alike(output, expected, kind, "the engine")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_packed_samples_come_back(dtype):
    samples = pixels(17, 9, 3, dtype=dtype)
    text = pack(samples)
    np.testing.assert_array_equal(unpack(text, samples.shape, dtype), samples)
    for wrong in (text[:-40], text + "!", "", base64.b64encode(b"x" * 50).decode()):
        with pytest.raises(ValueError, match="packed samples"):
            unpack(wrong, samples.shape, dtype)


def test_replay_to_standard_output(model, dip):
    ended = dip("replay", model, "-o", "-")
    assert ended.out == Path("run/result.png").read_bytes()
    assert dip("replay", model, "-o", "-", "--json").code == 2


def test_replay_into_another_kind_of_file(model, dip):
    assert dip("replay", model, "-o", "again.tif").code == 0
    np.testing.assert_array_equal(read("again.tif"), read("run/result.png"))
    refused = dip("replay", model, "-o", "again.bmp")
    assert (refused.code, ".png, .jpg, .tif" in refused.err) == (2, True)


def test_cuda_provider_says_what_is_missing(model, dip):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime has CUDA here")
    refused = dip("replay", model, "--provider", "cuda")
    assert (refused.code, "onnxruntime-gpu" in refused.err) == (2, True)


def test_onnx_path_imports_no_torch(model):
    code = (
        "import sys\n"
        "from dip_fast.cli import main\n"
        "try: main(['replay', 'run/model.onnx', '--verify', '-o', 'x.png'])\n"
        "except SystemExit as ended: assert ended.code == 0, ended.code\n"
        "print(*(name for name in sys.modules if name.split('.')[0] in ('torch', 'cv2', 'matplotlib', 'skimage')))\n"
    )
    ended = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr == ""
    assert ended.stdout.splitlines()[-1] == ""


def test_file_of_the_first_schema_is_replayed_for_ever(dip):
    # tests/data/model.onnx is of schema version 1: what `onnx_format.write` makes of its program must not change.
    path = Path(__file__).parent / "data" / "model.onnx"
    assert dip("replay", path, "--verify", "-o", "drawn.png").code == 0
    assert dip_fast.replay(path).shape == (23, 31, 4)
    with Image.open("drawn.png") as image:
        assert image.info["icc_profile"]


MODEL = Path(__file__).parent / "data" / "model.onnx"


def test_replay_and_verify_take_a_runs_folder_as_export_does(dip):
    Path("run").mkdir()
    ended = dip("replay", "run")
    assert (ended.code, ended.err) == (2, "dip-fast: run is not a run's folder; name one, or a model.onnx\n")
    Path("run/run.json").write_text("{}")
    for verb in (["replay", "run"], ["export", "run", "--format", "onnx"]):
        ended = dip(*verb)
        assert ended.code == 2
        assert ended.err.startswith("dip-fast: run holds no model.onnx; make it with dip-fast run PICTURE")
    shutil.copy(MODEL, "run/model.onnx")
    assert dip("replay", "run", "--verify").code == 0
    assert json.loads(dip("replay", "run", "--json").out)["model"] == "run/model.onnx"
    np.testing.assert_array_equal(read("model-replay.png"), dip_fast.replay("run"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("replay", MODEL, "-o", "PLACE.png"),
        ("replay", MODEL, "--verify", "--difference", "PLACE.png"),
        ("export", MODEL, "--format", "onnx", "-o", "PLACE.onnx"),
    ],
    ids=lambda arguments: " ".join(str(word)[:12] for word in arguments),
)
@pytest.mark.parametrize(
    ("place_", "words"),
    [
        ("nowhere/x", "there is no folder nowhere; make it first"),
        ("shut/x", "you may not write to the folder shut; choose another place"),
        ("shut/there", "you may not write to the folder shut; choose another place"),
        ("link", "there is no folder "),
        ("pipe", "it is no regular file; choose another name"),
    ],
)
def test_places_that_take_no_file_are_refused_before_any_work(dip, monkeypatch, arguments, place_, words):
    """The picture was drawn, or the network exported, before it turned out that nothing could be written."""
    Path("shut").mkdir()
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "shut" and allowed(path, mode))
    for suffix in (".png", ".onnx"):
        Path(f"shut/there{suffix}").touch()
        Path(f"link{suffix}").symlink_to("nowhere/x")
        os.mkfifo(f"pipe{suffix}")
    monkeypatch.setattr("dip_fast.models.model.Model.draw", lambda *_: pytest.fail("it was drawn"))
    words_ = [str(word).replace("PLACE", place_) for word in arguments]
    for more in ([], ["--overwrite"])[place_ == "shut/there" :]:
        ended = dip(*words_, *more)
        (line,) = ended.err.splitlines()
        assert (ended.code, ended.out) == (2, b"")
        assert words in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", MODEL, "--format", "onnx", "-o", "x.png"], "x.png: --format onnx is written as a file .onnx; give"),
        (["export", MODEL, "--format", "pt2", "-o", "x.pt"], "x.pt: --format pt2 is written as a file .pt2; give a"),
        (["replay", MODEL, "--verify", "--difference", "x.jpg"], "x.jpg: --difference is written as a file .png; give"),
        (["bench", "--plot", "x.jpg"], "x.jpg: --plot is written as a file .png; give a name that ends so"),
    ],
    ids=["export", "pt2", "difference", "plot"],
)
def test_a_name_that_says_another_format_is_refused(dip, arguments, words):
    """An ONNX model was written as x.png, and a PNG as x.jpg."""
    ended = dip(*arguments)
    (line,) = ended.err.splitlines()
    assert (ended.code, ended.out, [*Path().iterdir()]) == (2, b"", [])
    assert words in line


@pytest.mark.parametrize(
    "arguments",
    [
        ("replay", MODEL, "-o", "LONG.png"),
        ("replay", MODEL, "--verify", "--difference", "LONG.png"),
        ("replay", "LONG"),
        ("replay", f"{'m' * 245}.onnx"),  # its own name is none too long, that of the picture is
        ("export", MODEL, "--format", "onnx", "-o", "LONG.onnx"),
        ("export", "LONG", "--format", "onnx"),
        ("export", f"{'m' * 250}.onnx", "--format", "onnx", "--fp16"),
        ("bench", "--plot", "LONG.png"),
    ],
    ids=lambda arguments: " ".join(str(word)[:12] for word in arguments),
)
def test_names_of_more_than_255_bytes_are_one_line(dip, arguments):
    for name in arguments:
        if str(name).startswith("mmm"):
            shutil.copy(MODEL, name)
    ended = dip(*(str(word).replace("LONG", 300 * "n") for word in arguments))
    (line,) = ended.err.splitlines()
    assert (ended.code, ended.out) == (2, b"")
    assert "File name too long; c" in line  # choose another name, or check the path


def test_engine_that_fails_is_one_line(model, dip, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no\nmore threads")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    ended = dip("replay", model)
    assert ended.code == 1
    (line,) = ended.err.splitlines()
    assert "onnxruntime cannot draw run/model.onnx: no more threads" in line


def test_fold_fault_is_an_error_from_python(small, monkeypatch):
    broken(monkeypatch)
    recipe = PRESETS["quick"].recipe
    recipe = replace(recipe, options=replace(recipe.options, iterations=2))
    result = dip_fast.fit(dip_fast.Identity(torch.rand(1, 1, 16, 16)), recipe)
    with pytest.raises(DipFastError, match="drew another picture"):
        dip_fast.export(result, "model.onnx")
    assert not list(Path().iterdir())
