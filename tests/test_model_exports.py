"""Model files written: kept only when they draw what they should, from a run or later, in other formats."""

import hashlib
import importlib.util
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from model_files import PICTURES, SHORT, broken, check_formats, read, record, use, write
from onnx.reference import ReferenceEvaluator

import dip_fast
from dip_fast.errors import DipFastError, UsageError
from dip_fast.models import exporting, fitted, onnx_engine, replaying, torch_formats
from dip_fast.models.formats import FORMATS, Format
from dip_fast.models.model import open_model
from dip_fast.models.verifying import verify
from dip_fast.pictures import read_picture
from dip_fast.presets import PRESETS
from dip_fast.runs.folder import Folder

pytestmark = pytest.mark.usefixtures("place", "from_random_input")


# --- kept only when it draws what it should ---------------------------------------------------------------------------


def test_result_falls_back_to_pytorch_where_onnxruntime_draws_something_else(dip, monkeypatch):
    use(monkeypatch, "nearest")
    write("rgb.png", *PICTURES["rgb.png"])
    assert dip("run", "rgb.png", *SHORT, "-o", "right").code == 0
    broken(monkeypatch)
    ended = dip("run", "rgb.png", *SHORT[:-1], "-o", "wrong")
    assert ended.code == 1
    assert "drew another picture than PyTorch does" in ended.err
    assert "there is no model file" in ended.err
    assert not list(Path("wrong").glob("model*"))
    assert record("wrong")["summary"]["drawn_by"].startswith("torch")
    assert np.abs(read("wrong/result.png").astype(int) - read("right/result.png").astype(int)).max() <= 1


def test_file_that_draws_something_else_is_not_kept(ran, dip, monkeypatch):
    ran("nearest", "gray.png")
    before = sorted(Path("run").rglob("*"))

    def run(format_, data, label, *, fused=False):
        return original(format_, data, label, fused=fused) + np.float32(0.5)

    original = torch_formats.run
    monkeypatch.setattr(torch_formats, "run", run)
    ended = dip("export", "run", "--format", "torchscript")
    assert ended.code == 1
    assert "was not kept" in ended.err
    assert sorted(Path("run").rglob("*")) == before


def test_nothing_is_overwritten_unasked(ran, dip):
    ran("nearest", "gray.png", formats="onnx")
    before = Path("run/model.onnx").read_bytes()
    refused = dip("export", "run", "--format", "onnx")
    assert (refused.code, "exists" in refused.err) == (2, True)
    assert dip("replay", "run/model.onnx").code == 0
    assert Path("model-replay.png").exists()
    refused = dip("replay", "run/model.onnx")
    assert (refused.code, "exists" in refused.err) == (2, True)
    assert dip("replay", "run/model.onnx", "--overwrite").code == 0
    assert Path("run/model.onnx").read_bytes() == before


def test_run_ends_with_the_line_that_replays_it(dip, monkeypatch):
    use(monkeypatch, "nearest")
    write("gray.png", *PICTURES["gray.png"])
    ended = dip("run", "gray.png", *SHORT[:-1], "-o", "my runs/a", "--export", "onnx,torchscript")
    lines = ended.out.decode().splitlines()
    assert lines[-2:] == [
        "replay: dip-fast replay 'my runs/a/model.onnx'",
        "replay: dip-fast replay 'my runs/a/model.pt' --trust",
    ]
    assert dip("replay", "my runs/a/model.onnx").code == 0


def test_a_file_with_plain_inputs_is_drawn_by_other_engines(ran, dip):
    """OpenCV's dnn cannot draw the run's own file, whose input is an initialiser."""
    ran("nearest", "rgb.png")
    ended = dip("export", "run", "--format", "onnx", "--inputs", "z")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.decode().splitlines()[1:] == ["input: run/model-inputs.z.npy"]
    z, expected = np.load("run/model-inputs.z.npy"), open_model("run").draw()
    session = onnxruntime.InferenceSession("run/model-inputs.onnx", providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["z"]
    assert not session.get_overridable_initializers()
    np.testing.assert_array_equal(session.run(None, {"z": z})[0], expected)
    # 2e-5 of the range, as between all engines.
    np.testing.assert_allclose(ReferenceEvaluator("run/model-inputs.onnx").run(None, {"z": z})[0], expected, atol=5e-3)
    if int(cv2.__version__.split(".")[0]) >= 5:
        net = cv2.dnn.readNetFromONNX("run/model-inputs.onnx")
        net.setInput(z, "z")
        np.testing.assert_allclose(net.forward(), expected, atol=5e-3)


def test_a_file_with_plain_inputs_replaces_nothing_and_is_not_replayed(ran, dip):
    ran("nearest", "gray.png")
    Path("run/model-inputs.z.npy").write_text("mine")
    ended = dip("export", "run", "--format", "onnx", "--inputs", "z")
    assert (ended.code, "model-inputs.z.npy exists; choose another name or give --overwrite" in ended.err) == (2, True)
    assert not Path("run/model-inputs.onnx").exists()
    assert dip("export", "run", "--format", "onnx", "--inputs", "z", "--overwrite").code == 0
    ended = dip("replay", "run/model-inputs.onnx")
    assert (ended.code, "its network input must be fed" in ended.err) == (2, True)
    ended = dip("export", "run", "--format", "pt2", "--inputs", "z")
    assert (ended.code, "--inputs z is for onnx files: pt2 files draw by themselves" in ended.err) == (2, True)


def test_models_of_the_summary_are_named_by_the_hash_of_their_files(ran, dip):
    ran("nearest", "gray.png", formats="onnx,torchscript")
    exported = json.loads(dip("export", "run", "--format", "pt2", "--json").out)
    summary = json.loads(Path("run/run.json").read_text())["summary"]
    for model in (*summary["models"], exported):
        assert hashlib.sha256(Path(model["path"]).read_bytes()).hexdigest() == model["sha256"], model["path"]
    assert summary["models"][0]["pixels"] == summary["sha256"]


def test_missing_model_can_be_made_from_a_finished_run(ran, dip):
    ran("nearest", "gray.png", formats="none")
    refused = dip("export", "run", "--format", "onnx")
    assert refused.code == 2
    assert "--resume --export onnx" in refused.err
    result = Path("run/result.png").read_bytes()
    assert dip("run", "gray.png", *SHORT, "-o", "run", "--resume", "--export", "onnx").code == 0
    assert Path("run/result.png").read_bytes() == result
    check_formats()


def test_missing_library_is_told_before_the_fit(dip, monkeypatch):
    write("gray.png", *PICTURES["gray.png"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else name)
    refused = dip("run", "gray.png", *SHORT)
    assert refused.code == 2
    assert "pip install onnxruntime" in refused.err
    assert not Path("runs").exists()


# --- later, in other formats ------------------------------------------------------------------------------------------


def test_export_from_a_folder_is_what_the_run_writes(ran, dip):
    ran("nearest", "rgb.png", formats="onnx,torchscript,pt2")
    for name in ("torchscript", "pt2"):
        path = Path(f"run/model{FORMATS[name].suffix}")
        held = open_model(path, trust=True).metadata
        path.unlink()
        assert dip("export", "run", "--format", name).code == 0
        again = open_model(path, trust=True).metadata
        assert {**again, "date": ""} == {**held, "date": ""}
    check_formats()


def code(path):
    """Programs in a TorchScript file."""
    with zipfile.ZipFile(path) as archive:
        return "".join(archive.read(name).decode() for name in archive.namelist() if name.endswith(".py"))


def test_fused_operators_in_torchscript(ran, dip):
    ran("bilinear", "rgb.png")
    refused = dip("export", "run", "--format", "onnx", "--fused-ops", "-o", "x.onnx")
    assert (refused.code, "--fused-ops is for torchscript" in refused.err) == (2, True)
    assert dip("export", "run", "--format", "torchscript", "--fused-ops").code == 0
    opened = open_model("run/model-fused.pt", trust=True)
    assert opened.metadata["fused_ops"]
    assert verify(opened, opened.draw()).verdict == "same"
    assert "ops.dip_fast.upsample_conv2d" in code("run/model-fused.pt")
    assert np.abs(opened.draw() - open_model("run/model.onnx").draw()).max() <= 2e-5 * 255
    assert dip("export", "run", "--format", "torchscript").code == 0
    assert "ops.dip_fast" not in code("run/model.pt")


@pytest.mark.parametrize(
    "arguments", [("run", "--format", "onx"), ("nowhere", "--format", "onnx"), (".", "--format", "pt2")]
)
def test_wrong_exports(dip, arguments):
    ended = dip("export", *arguments)
    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1


def test_file_that_cannot_be_written_is_named(ran, dip):
    ran("nearest", "gray.png")
    ended = dip("export", "run", "--format", "onnx", "-o", "nowhere/model.onnx")
    assert ended.code == 2
    assert "cannot write nowhere/model.onnx: there is no folder nowhere; make it first" in ended.err


def test_formats_are_listed(dip):
    listed = dip("formats").out.decode()
    facts = json.loads(dip("formats", "--json").out)
    assert tuple(facts) == tuple(FORMATS) == ("onnx", "torchscript", "pt2")
    for name, format_ in FORMATS.items():
        assert f"{name}: {format_.suffix}, on {format_.device}; replayed by {format_.replayed_by}" in listed


def test_export_and_replay_from_python(small):
    target = torch.rand(1, 3, 20, 25, generator=torch.Generator().manual_seed(0))
    recipe = PRESETS["quick"].recipe
    recipe = replace(recipe, options=replace(recipe.options, iterations=3))
    result = dip_fast.fit(dip_fast.Identity(target), recipe)
    for suffix in (".onnx", ".pt", ".pt2"):
        path = dip_fast.export(result, f"model{suffix}", license="mine")
        drawn = dip_fast.replay(path, trust=True)
        assert (drawn.shape, drawn.dtype) == ((20, 25, 3), np.float32)
        np.testing.assert_allclose(drawn, result.image, rtol=0, atol=2e-5)
    with pytest.raises(ValueError, match=r'not written as ".h5"'):
        dip_fast.export(result, "model.h5")
    with pytest.raises(ValueError, match="trust=True"):
        dip_fast.replay("model.pt")
    known = torch.rand(1, 1, 20, 25) < 0.5
    result = dip_fast.fit(dip_fast.Mask(target, known), recipe)
    before = Path("model.onnx").read_bytes()
    with pytest.raises(UsageError, match=r"^model\.onnx exists; choose another name or give overwrite=True$"):
        dip_fast.export(result, "model.onnx")
    assert Path("model.onnx").read_bytes() == before
    drawn = dip_fast.replay(dip_fast.export(result, "model.onnx", overwrite=True))
    np.testing.assert_allclose(drawn, result.image, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(drawn[known[0, 0].numpy()], result.image[known[0, 0].numpy()])


def test_a_name_of_255_bytes_is_none_too_long(dip, monkeypatch):
    """What is written aside must not have a longer one."""
    model, longest = Path(__file__).parent / "data" / "model.onnx", f"{83 * '網'}a.onnx"
    assert len(longest.encode()) == 255
    assert dip("export", model, "--format", "onnx", "-o", longest).code == 0
    assert dip("replay", longest, "-o", f"{83 * '網'}aa.png").code == 0
    out = Folder(Path(85 * "網"), print)
    monkeypatch.setattr(out, "_write", Mock(side_effect=DipFastError("the disk is full")))
    assert out.write_result("result.png", b"").read_bytes() == b""


def test_errors_name_the_arguments_of_python(ran):
    ran("nearest", "gray.png")
    with pytest.raises(UsageError, match=r"model\.onnx exists; choose another name or give overwrite=True$"):
        exporting.convert(Path("run"), "onnx")
    with pytest.raises(UsageError, match=r"^fused_ops=True is for torchscript files: pt2 has standard operators only"):
        exporting.convert(Path("run"), "pt2", fused_ops=True)
    path = Path(exporting.convert(Path("run"), "torchscript")["path"])
    with pytest.raises(UsageError, match=r"^cannot replay run/model\.pt: .*; give trust=True if you know"):
        dip_fast.replay(path)
    with pytest.raises(UsageError, match=r"^provider='cuda': torchscript files are drawn on the CPU; leave it out$"):
        dip_fast.replay(path, trust=True, provider="cuda")
    with pytest.raises(UsageError, match=r"^difference shows what verify=True compares"):
        replaying.run(replaying.Request(path=path, difference=Path("x.png")))


@pytest.mark.usefixtures("small")
def test_a_result_of_another_size_than_its_picture():
    """As super-resolution makes them: the kind is the result's, and an alpha of the picture's size does not fit it."""
    recipe = PRESETS["quick"].recipe
    recipe = replace(recipe, options=replace(recipe.options, iterations=2))
    result = dip_fast.fit(dip_fast.Identity(torch.rand(1, 3, 32, 40)), recipe)
    write("rgb.png", (16, 20, 3), np.uint8)
    write("rgba.png", (16, 20, 4), np.uint8)
    picture = read_picture("rgb.png")
    samples = dip_fast.replay(dip_fast.export(result, "model.onnx", picture=picture))
    assert (samples.shape, samples.dtype) == ((32, 40, 3), np.uint8)
    with pytest.raises(ValueError, match=r"alpha must be \(32, 40\) of uint8 as the result is, got \(16, 20\)"):
        dip_fast.export(result, "other.onnx", picture=read_picture("rgba.png"))
    with pytest.raises(ValueError, match=r"kind must be of \(32, 40, 3\) as the result is, got \(16, 20, 3\)"):
        fitted.from_result(result, picture.kind)


# --- a format of a plugin's -------------------------------------------------------------------------------------------


@pytest.fixture
def wrapped(monkeypatch):
    """Register a format as a plugin does, for one test: an ONNX file behind a mark of its own."""

    def write(program, facts, blobs, fused_ops):
        return b"WRAP" + onnx_engine.write(program, facts, blobs)

    def read(data):
        return replace(onnx_engine.read(data[4:]), format="wrapped", data=data)

    monkeypatch.setattr(FORMATS, "_entries", dict(FORMATS._entries))
    format_ = Format(
        ".wrap",
        "cpu",
        "this test",
        runs_code=False,
        sniff=lambda data: data.startswith(b"WRAP"),
        write=write,
        read=read,
        run=onnx_engine.run,
        engine=lambda: "wrapped onnxruntime",
    )
    FORMATS.register("wrapped", format_)
    return format_


def test_a_registered_format_is_written_read_and_run(ran, wrapped):
    ran("nearest", "rgba.png")
    path = Path(exporting.convert(Path("run"), "wrapped")["path"])
    assert path == Path("run/model.wrap")
    model = open_model(path)
    assert (model.format, model.metadata["drawn_by"]) == ("wrapped", "wrapped onnxruntime")
    assert verify(model, model.draw()).verdict == "same"
    np.testing.assert_array_equal(dip_fast.replay(path), dip_fast.replay("run/model.onnx"))


def test_a_registered_format_that_runs_code_needs_trust(ran, wrapped, monkeypatch):
    ran("nearest", "gray.png")
    path = Path(exporting.convert(Path("run"), "wrapped")["path"])
    monkeypatch.setitem(FORMATS._entries, "wrapped", replace(wrapped, runs_code=True))
    with pytest.raises(UsageError, match=r"it is a wrapped file, .* can run any code .*trust=True"):
        open_model(path)
    assert open_model(path, trust=True).format == "wrapped"
