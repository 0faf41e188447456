"""Model files: every network and every kind of picture, in every format, drawn again to the last bit."""

import base64
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import onnx
import onnxruntime
import pytest
import tifffile
import torch
from PIL import Image

import dip_fast
from dip_fast.errors import DipFastError
from dip_fast.models import onnx_format, replaying, torch_formats
from dip_fast.models.formats import FORMATS, compare, digest, pack, tolerance, unpack
from dip_fast.presets import PRESETS

pytestmark = pytest.mark.usefixtures("place")

SHORT = ("--threads", "1", "--iterations", "3", "--quiet")

SKIP = {"down": 8, "up": 8, "skip": 2, "scales": 2, "upsampling": "nearest"}
RECIPES = {
    "nearest": ("skip", SKIP, 4, "uniform"),
    "bilinear": ("skip", SKIP | {"upsampling": "bilinear"}, 4, "uniform"),
    "zeros": ("skip", SKIP | {"padding_mode": "zeros"}, 4, "uniform"),
    "replicate": ("skip", SKIP | {"padding_mode": "replicate", "upsampling": "bilinear"}, 4, "uniform"),
    "average": ("skip", SKIP | {"downsampling": "average"}, 4, "uniform"),
    "max": ("skip", SKIP | {"downsampling": "max"}, 4, "uniform"),
    "no-branch": ("skip", SKIP | {"skip": 0}, 4, "gaussian"),
    "no-1x1": ("skip", SKIP | {"conv1x1": False}, 4, "uniform"),
    "kernels": ("skip", SKIP | {"kernel_down": 5, "kernel_up": 5, "kernel_skip": 3}, 4, "uniform"),
    "hourglass": ("hourglass", {}, 3, "gaussian"),
    "decoder": ("decoder", {"depth": 3}, 8, "gaussian"),
}
PICTURES = {
    "gray.png": ((33, 45), np.uint8),
    "rgb.png": ((45, 33, 3), np.uint8),
    "rgba.png": ((16, 19, 4), np.uint8),
    "la.png": ((18, 16, 2), np.uint8),
    "gray16.png": ((16, 17), np.uint16),
    "rgba16.png": ((17, 16, 4), np.uint16),
    "rgb16.tif": ((17, 16, 3), np.uint16),
    "float.tif": ((17, 23), np.float32),
    "range.tif": ((19, 16, 3), np.float32),
}


def pixels(*shape, dtype=np.uint8):
    """Slopes with noise on them; floats in [0, 1]."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] / max(shape[:2])
    planes = np.stack([0.2 + 0.5 * rows, 0.7 - 0.4 * columns, 0.3 + 0.4 * rows * columns, 0.9 - rows], axis=2)
    values = planes[..., : shape[2] if len(shape) == 3 else 1] + np.random.default_rng(0).normal(
        0, 0.05, (*shape[:2], 1)
    )
    values = np.clip(values, 0, 1).reshape(shape)
    return values.astype(dtype) if np.dtype(dtype).kind == "f" else (values * np.iinfo(dtype).max).astype(dtype)


def use(monkeypatch, name):
    """Let the quick preset be another network, of milliseconds a step."""
    network, options, channels, distribution = RECIPES[name]
    recipe = PRESETS["quick"].recipe
    recipe = replace(
        recipe,
        network=network,
        network_options=options,
        in_channels=channels,
        distribution=distribution,
        options=replace(recipe.options, consolidation=2),
    )
    monkeypatch.setitem(PRESETS, "quick", replace(PRESETS["quick"], recipe=recipe))


def write(name, shape, dtype):
    samples = pixels(*shape, dtype=dtype)
    if name == "range.tif":
        samples = 300 * samples - 1000
    if name.endswith(".tif"):
        tifffile.imwrite(name, samples, photometric="rgb" if samples.ndim == 3 else "minisblack")
    else:
        Path(name).write_bytes(imagecodecs.png_encode(samples))
    return samples


def read(path):
    path = Path(path)
    samples = tifffile.imread(path) if path.suffix == ".tif" else imagecodecs.png_decode(path.read_bytes())
    return samples.reshape(*samples.shape[:2], -1)


def record(folder):
    return json.loads((Path(folder) / "run.json").read_text())


@pytest.fixture
def ran(dip, monkeypatch):
    """Run a picture through a network, into the folder ``run``, with all formats."""

    def run(recipe="nearest", name="rgb.png", *arguments, formats="onnx"):
        use(monkeypatch, recipe)
        samples = write(name, *PICTURES[name])
        ended = dip("run", name, *SHORT, "-o", "run", "--export", formats, *arguments)
        assert (ended.code, ended.err) == (0, "")
        return samples

    return run


@pytest.fixture
def model(ran):
    """A small ONNX file."""
    ran("nearest", "gray.png")
    return Path("run/model.onnx")


# --- the result is what the file draws ----------------------------------------------------------------------------


def check_formats(folder="run"):
    """Every file draws the result, each the bits that it recorded, all within the tolerance of one another."""
    (result,) = Path(folder).glob("result.*")
    outputs = {}
    for name, format_ in FORMATS.items():
        path = Path(folder) / f"model{format_.suffix}"
        if not path.exists():
            continue
        opened = replaying.open_model(path, trust=True)
        outputs[name] = output = opened.draw()
        assert replaying.verify(opened, output).text == "the same bits as at export, pixels and float output"
    samples = replaying.open_model(Path(folder) / "model.onnx").samples(outputs["onnx"])
    drawn = dip_fast.replay(Path(folder) / "model.onnx")
    np.testing.assert_array_equal(drawn, read(result))
    assert drawn.dtype == read(result).dtype
    assert digest(samples) == record(folder)["summary"]["sha256"]
    low, high = opened.kind.value_range
    for output in outputs.values():
        assert np.abs(output - outputs["onnx"]).max() <= 2e-5 * (high - low)
        if opened.kind.dtype == "uint8":
            steps = np.abs(opened.samples(output).astype(int) - samples.astype(int))
            assert steps.max() <= 1
            assert (steps > 0).mean() < 0.005
    return outputs


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
    program = replaying.open_model("run/model.onnx").program
    channels = program.channels
    known = mask > 0
    tolerated = 0 if samples.dtype.kind == "u" else 1e-4  # a float sample goes through [0, 1] and back
    for output in outputs.values():
        np.testing.assert_allclose(output[known], samples[known][:, :channels], rtol=0, atol=tolerated)
    # Unknown samples, which the user may have painted over for a reason, are not in the file.
    assert not program.known[1][~known].any()


def test_inpainting_without_compositing_keeps_nothing_of_the_picture(ran):
    Image.fromarray(np.full((33, 45), 255, np.uint8)).save("mask.png")
    ran("nearest", "gray.png", "--mask", "mask.png", "--no-composite")
    assert replaying.open_model("run/model.onnx").program.known is None


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
    outputs = [replaying.run_onnx(data, threads=threads) for threads in (1, 2) for _ in range(5)]
    for output in outputs[1:]:
        np.testing.assert_array_equal(output, outputs[0])
    assert digest(outputs[0]) == replaying.open_model("run/model.onnx").metadata["sha256"]["float_output"]


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
    subprocess.run([sys.executable, "-c", program], check=True)
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
    program = replaying.open_model(model).program
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


def exported(program):
    return torch_formats.save("torchscript", program, {})


def test_another_z_can_be_set_in_torchscript(model):
    program = replaying.open_model(model).program
    import io
    import warnings

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
    program = replaying.open_model(path).program
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
    whole, half = replaying.open_model("run/model.onnx"), replaying.open_model("run/model-fp16.onnx")
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


# --- metadata -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", FORMATS)
def test_metadata_say_what_the_file_is(ran, format_):
    ran("nearest", "rgba.png", "--seed", "5", formats=",".join({"onnx", format_}))
    opened = replaying.open_model(Path("run") / f"model{FORMATS[format_].suffix}", trust=True)
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
    assert held["tolerance"] == {"float": 2e-5, "levels": 1, "fraction": 0.005}
    assert held["license"] == ""
    assert held["date"].startswith("20")
    assert "untouched" in held["alpha_rule"]
    output = opened.draw()
    assert held["sha256"]["float_output"] == digest(output)
    assert held["sha256"]["pixels"] == digest(opened.samples(output))
    assert held["sha256"]["z"] == digest(replaying.open_model("run/model.onnx").program.inputs[0].codes)
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
    assert replaying.open_model("run/model.onnx").metadata["license"] == "CC BY 4.0, Ada"


# --- kept only when it draws what it should -----------------------------------------------------------------------


def broken(monkeypatch):
    """Let every file draw another picture than the network does."""
    original = onnx_format._layer

    def layer(graph, layer, inputs, arrays):
        name = original(graph, layer, inputs, arrays)
        if layer.kind == "conv" and layer.name == "head":
            graph.nodes[-1].input[2] = graph.constant("wrong/bias", arrays["head.bias"] + np.float32(0.01))
        return name

    monkeypatch.setattr(onnx_format, "_layer", layer)


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
    monkeypatch.setattr(replaying.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else name)
    refused = dip("run", "gray.png", *SHORT)
    assert refused.code == 2
    assert "pip install onnxruntime" in refused.err
    assert not Path("runs").exists()


# --- later, in other formats --------------------------------------------------------------------------------------


def test_export_from_a_folder_is_what_the_run_writes(ran, dip):
    ran("nearest", "rgb.png", formats="onnx,torchscript,pt2")
    for name in ("torchscript", "pt2"):
        path = Path(f"run/model{FORMATS[name].suffix}")
        held = replaying.open_model(path, trust=True).metadata
        path.unlink()
        assert dip("export", "run", "--format", name).code == 0
        again = replaying.open_model(path, trust=True).metadata
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
    opened = replaying.open_model("run/model-fused.pt", trust=True)
    assert opened.metadata["fused_ops"]
    assert replaying.verify(opened, opened.draw()).verdict == "same"
    assert "ops.dip_fast.upsample_conv2d" in code("run/model-fused.pt")
    assert np.abs(opened.draw() - replaying.open_model("run/model.onnx").draw()).max() <= 2e-5 * 255
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
    assert ended.code == 1
    assert "cannot write nowhere/model.onnx: No such file" in ended.err


def test_formats_are_listed(dip):
    listed = dip("formats").out.decode()
    facts = json.loads(dip("formats", "--json").out)
    from dip_fast.cli.main import FORMAT_NAMES

    assert tuple(facts) == tuple(FORMATS) == FORMAT_NAMES
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
    with pytest.raises(ValueError, match="--trust"):
        dip_fast.replay("model.pt")
    known = torch.rand(1, 1, 20, 25) < 0.5
    result = dip_fast.fit(dip_fast.Mask(target, known), recipe)
    drawn = dip_fast.replay(dip_fast.export(result, "model.onnx"))
    np.testing.assert_allclose(drawn, result.image, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(drawn[known[0, 0].numpy()], result.image[known[0, 0].numpy()])


# --- verified -----------------------------------------------------------------------------------------------------


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
    from dip_fast.models.formats import Kind

    kind = Kind("", 100, 10, 1, "uint8", (0.0, 255.0))
    recorded = np.full((10, 100, 1), 7, np.uint8)
    output = np.full((10, 100, 1), 7.2, np.float32)
    output[3, 4] = 7.504  # 7.499 was rounded to 7 at export
    found = compare(output, recorded, kind, tolerance(kind))
    assert (found.same, found.within, found.samples, found.worst) == (False, True, 1, (3, 4, 0))
    output[3, 4] = 7.52
    assert not compare(output, recorded, kind, tolerance(kind)).within
    output[:] = 7.5001  # half a level off is one thing; that many are another
    output[:, ::2] = 7
    assert not compare(output, recorded, kind, tolerance(kind)).within


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
    refused = dip("replay", model, "-o", "again.jpg")
    assert (refused.code, ".png or .tif" in refused.err) == (2, True)


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
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr == ""
    assert ended.stdout.splitlines()[-1] == ""


def test_file_of_the_first_schema_is_replayed_for_ever(dip):
    # tests/data/model.onnx is of schema version 1: what `onnx_format.write` makes of its program must not change.
    path = Path(__file__).parent / "data" / "model.onnx"
    assert dip("replay", path, "--verify", "-o", "drawn.png").code == 0
    assert dip_fast.replay(path).shape == (23, 31, 4)
    with Image.open("drawn.png") as image:
        assert image.info["icc_profile"]


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
