"""Model files: every network and every kind of picture, in every format, drawn again to the last bit."""

import io
import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from model_files import PICTURES, RECIPES, SHORT, check_formats, exported, pixels, read, record, use
from PIL import Image

import dip_fast
from dip_fast.models import onnx_engine, torch_formats
from dip_fast.models.formats import FORMATS
from dip_fast.models.model import open_model
from dip_fast.models.packing import digest

pytestmark = pytest.mark.usefixtures("place", "from_random_input")


# --- the result is what the file draws --------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_network_in_every_format(ran, recipe):
    ran(recipe, formats="onnx,torchscript,pt2")
    assert len(check_formats()) == 3


@pytest.mark.parametrize("name", PICTURES)
def test_every_kind_of_picture(ran, dip, name):
    ran("nearest", name, formats="onnx,torchscript")
    assert len(check_formats()) == 2
    (result,) = Path("run").glob("result.*")
    assert dip("replay", "run/model.onnx", "-o", f"again{result.suffix}").code == 0
    assert Path(f"again{result.suffix}").read_bytes() == result.read_bytes()


@pytest.mark.parametrize("name", ["gray.png", "rgba.png", "rgba16.png", "range.tif"])
def test_inpainting_runs(ran, name):
    mask = np.full(PICTURES[name][0][:2], 255, np.uint8)
    mask[4:12, 5:13] = 0
    Image.fromarray(mask).save("mask.png")
    samples = ran("nearest", name, "--mask", "mask.png", formats="onnx,torchscript,pt2").reshape(*mask.shape, -1)
    outputs = check_formats()
    program = open_model("run/model.onnx").program
    channels = program.channels
    known = mask > 0
    tolerated = 0 if samples.dtype.kind == "u" else 1e-4  # a float sample goes through [0, 1] and back
    for output in outputs.values():
        np.testing.assert_allclose(output[known], samples[known][:, :channels], rtol=0, atol=tolerated)
    # Unknown samples, which the user may have painted over for a reason, are not in the file.
    assert not program.known[1][~known].any()


def test_inpainting_without_compositing_keeps_nothing_of_the_picture(ran):
    mask = np.full((33, 45), 255, np.uint8)
    mask[:4, :4] = 0
    Image.fromarray(mask).save("mask.png")
    ran("nearest", "gray.png", "--mask", "mask.png", "--no-composite")
    assert open_model("run/model.onnx").program.known is None


def test_profile_is_carried(ran, dip):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    ran("nearest", "rgb.png")  # to have the preset
    Image.fromarray(pixels(20, 24, 3)).save("profile.png", icc_profile=profile)
    assert dip("run", "profile.png", *SHORT, "-o", "other").code == 0
    assert dip("replay", "other/model.onnx", "-o", "again.png").code == 0
    assert Path("again.png").read_bytes() == Path("other/result.png").read_bytes()
    with Image.open("again.png") as image:
        assert image.info["icc_profile"] == profile


def test_bits_do_not_depend_on_threads_or_time(ran):
    ran("bilinear")
    data = Path("run/model.onnx").read_bytes()
    outputs = [onnx_engine.run_file(data, threads=threads) for threads in (1, 2) for _ in range(5)]
    for output in outputs[1:]:
        np.testing.assert_array_equal(output, outputs[0])
    assert digest(outputs[0]) == open_model("run/model.onnx").metadata["sha256"]["float_output"]


def test_file_draws_the_result_without_this_package(ran):
    ran("nearest", "rgb.png")
    program = """
import sys
import numpy, onnxruntime
session = onnxruntime.InferenceSession("run/model.onnx", providers=["CPUExecutionProvider"])
(picture,) = session.run(None, {})
numpy.save("drawn.npy", numpy.rint(picture).clip(0, 255).astype(numpy.uint8))
assert not {"dip_fast", "torch"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-P", "-c", program], check=True)
    np.testing.assert_array_equal(np.load("drawn.npy"), read("run/result.png"))


def test_result_is_drawn_so_without_a_file_too(ran, dip):
    ran("nearest", "rgb.png")
    assert dip("run", "rgb.png", *SHORT, "-o", "none", "--export", "none").code == 0
    assert not list(Path("none").glob("model*"))
    assert Path("none/result.png").read_bytes() == Path("run/result.png").read_bytes()
    assert record("none")["summary"]["drawn_by"] == f"onnxruntime {onnxruntime.__version__}"


def test_network_is_not_folded_into_a_stored_picture(model):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = "optimised.onnx"
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.read_bytes(), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_overridable_initializers()
    assert (given.name, given.type) == ("z", "tensor(uint8)")
    assert not session.get_inputs()
    program = open_model(model).program
    for graph in (onnx.load(model).graph, onnx.load("optimised.onnx").graph):
        convolutions = [node for node in graph.node if "Conv" in node.op_type]
        assert len(convolutions) >= sum("conv" in layer.kind for layer in program.layers)
    # The sixteen taps are made when the session is: nothing is left of the way there.
    assert not {"Einsum"} & {node.op_type for node in onnx.load("optimised.onnx").graph.node}
    (part,) = program.inputs
    other = np.roll(part.codes, 5, axis=3)
    (picture,), (moved,) = session.run(None, {}), session.run(None, {"z": other})
    assert np.abs(picture - moved).mean() > 1
    scripted = torch_formats.load("torchscript", exported(program))
    scripted_other = torch_formats.load("torchscript", exported(replace(program, inputs=(part._replace(codes=other),))))
    assert (scripted() - scripted_other()).abs().mean() > 1


def test_another_z_can_be_set_in_torchscript(model):
    program = open_model(model).program

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(io.BytesIO(exported(program)))
    before = module()
    module.z = torch.roll(module.z, 5, 3)
    assert (module() - before).abs().mean() > 1


def test_file_is_small_standard_and_whole(ran):
    ran("nearest", "rgb.png")
    path = Path("run/model.onnx")
    held = onnx.load(path)
    onnx.checker.check_model(held, full_check=True)
    assert [(entry.domain, entry.version) for entry in held.opset_import] == [("", 17)]
    assert {node.domain for node in held.graph.node} == {""}
    assert [output.name for output in held.graph.output] == ["picture"]
    assert [dim.dim_value for dim in held.graph.output[0].type.tensor_type.shape.dim] == [45, 33, 3]
    program = open_model(path).program
    arrays = sum(array.nbytes for array in program.arrays.values())
    (part,) = program.inputs
    assert part.codes.dtype == np.uint8
    assert path.stat().st_size < arrays + part.codes.nbytes + 2 * 45 * 33 * 3 + 30_000


def test_weights_in_16_bits_say_what_they_cost(ran, dip):
    ran("bilinear", "rgb.png")
    ended = dip("export", "run", "--format", "onnx", "--fp16", "--json")
    assert ended.code == 0
    written = json.loads(ended.out)
    assert written["path"] == "run/model-fp16.onnx"
    whole, half = open_model("run/model.onnx"), open_model("run/model-fp16.onnx")
    off = np.abs(whole.draw() - half.draw()) / 255
    assert written["error"]["largest"] == pytest.approx(off.max(), rel=1e-6)
    assert 0 < written["error"]["largest"] < 0.05
    assert written["error"] == half.metadata["fp16_error"]
    assert {array.dtype for array in half.program.arrays.values()} == {np.dtype(np.float16)}
    saved, arrays = len(whole.data) - len(half.data), half.program.arrays
    assert saved > sum(array.nbytes for array in arrays.values()) - 150 * len(arrays)  # each has a node that widens it
    assert dip("replay", "run/model-fp16.onnx", "--verify").code == 0
    refused = dip("export", "run/model-fp16.onnx", "--format", "torchscript")
    assert (refused.code, "16-bit weights" in refused.err) == (2, True)


# --- metadata ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", FORMATS)
def test_metadata_say_what_the_file_is(ran, format_):
    ran("nearest", "rgba.png", "--seed", "5", formats=",".join({"onnx", format_}))
    opened = open_model(Path("run") / f"model{FORMATS[format_].suffix}", trust=True)
    held, summary = opened.metadata, record("run")["summary"]
    assert held["schema"] == 1
    assert (held["dip_fast"], held["torch"]) == (dip_fast.__version__, torch.__version__)
    assert (held["seed"], held["steps"], held["stop_reason"]) == (5, 3, "iterations")
    assert held["options"]["recipe"]["network_options"] == RECIPES["nearest"][1]
    assert held["options"]["preset"] == "quick"
    picture = held["picture"]
    assert (picture["name"], picture["width"], picture["height"], picture["channels"]) == ("rgba.png", 19, 16, 3)
    assert (picture["bit_depth"], picture["dtype"], picture["value_range"]) == (8, "uint8", [0.0, 255.0])
    assert (picture["alpha"], picture["orientation"]) == ("unassalpha", 1)
    assert held["tolerance"] == {"float": 1e-4, "levels": 1, "fraction": 0.005}
    assert held["license"] == ""
    assert held["date"].startswith("20")
    assert "untouched" in held["alpha_rule"]
    output = opened.draw()
    assert held["sha256"]["float_output"] == digest(output)
    assert held["sha256"]["pixels"] == digest(opened.samples(output))
    assert held["sha256"]["z"] == digest(open_model("run/model.onnx").program.inputs[0].codes)
    if format_ == "onnx":
        assert held["sha256"]["pixels"] == summary["sha256"]


def test_metadata_tell_nothing_of_the_file_system_or_of_exif(dip, monkeypatch):
    use(monkeypatch, "nearest")
    exif = Image.Exif()
    exif[0x010F] = "SecretCamera"
    exif[0x8825] = {1: "N", 2: (52.0, 30.0, 0.0)}
    Path("private").mkdir()
    Image.fromarray(pixels(16, 18, 3)).save("private/photo.png", exif=exif)
    assert dip("run", "private/photo.png", *SHORT, "-o", "run", "--keep-metadata", "--export", "onnx,pt2").code == 0
    with Image.open("run/result.png") as image:
        assert image.getexif()[0x010F] == "SecretCamera"
    for suffix in (".onnx", ".pt2"):
        data = Path(f"run/model{suffix}").read_bytes()
        assert b"photo.png" in data
        for word in (b"SecretCamera", b"private", str(Path.cwd()).encode(), str(Path.home()).encode() + b"/"):
            assert word not in data, word


def test_licence_is_the_users(ran, dip):
    ran("nearest", "gray.png")
    assert dip("export", "run", "--format", "onnx", "--license", "CC BY 4.0, Ada", "--overwrite").code == 0
    assert open_model("run/model.onnx").metadata["license"] == "CC BY 4.0, Ada"
