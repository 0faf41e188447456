"""Model files from anywhere: one clear line and exit 2 for whatever is damaged, foreign or meant badly."""

import base64
import io
import json
import pickle
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from dip_fast.models import onnx_format
from dip_fast.programs.program import InputPart, Layer

pytestmark = pytest.mark.usefixtures("place")


@pytest.fixture
def refused(dip):
    """Replay some bytes, which must end in one line that holds the words, exit 2, and nothing written."""

    def replay(content, *words, suffix=".onnx", arguments=()):
        Path(f"bad{suffix}").write_bytes(content)
        ended = dip("replay", f"bad{suffix}", *arguments)
        (line,) = ended.err.splitlines()
        assert (ended.code, ended.out) == (2, b""), line
        assert line.startswith(f"dip-fast: cannot replay bad{suffix}: ")
        for word in words:
            assert word in line
        assert not Path("bad-replay.tif").exists()

    return replay


def edited(data, change):
    """Bytes of a model whose message was changed."""
    model = onnx.load_model_from_string(data)
    change(model)
    return model.SerializeToString()


def document(change):
    """A change of the JSON in the metadata."""

    def apply(model):
        for entry in model.metadata_props:
            if entry.key == "dip_fast":
                held = json.loads(entry.value)
                change(held)
                entry.value = json.dumps(held)

    return apply


def foreign():
    """An ONNX model of somebody else's."""
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    return helper.make_model(graph).SerializeToString()


def test_whole_file_is_replayed(small_models, dip):
    Path("good.onnx").write_bytes(small_models[".onnx"])
    assert dip("replay", "good.onnx", "--verify").code == 0


@pytest.mark.parametrize("content", [b"", b"\0", b"hello, world", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(10_000)])
def test_what_is_no_model_at_all(refused, content):
    refused(content)


def test_missing_files_and_folders(dip):
    for name, word in (("none.onnx", "No such file"), (".", "folder")):
        ended = dip("replay", name)
        assert ended.code == 2
        assert word in ended.err
        assert len(ended.err.splitlines()) == 1


def test_model_of_somebody_else(refused):
    refused(foreign(), "no model that dip-fast wrote")


def test_file_cut_short(refused, small_models):
    data = small_models[".onnx"]
    for length in (10, 100, len(data) // 4, len(data) // 2, len(data) - 1):
        refused(data[:length])


def test_schema_from_the_future(refused, small_models):
    refused(
        edited(small_models[".onnx"], document(lambda held: held.update(schema=5))),
        "schema version 5",
        "update dip-fast",
    )
    future = edited(small_models[".onnx"], document(lambda held: (held.update(schema=99), held.pop("program"))))
    refused(future, "schema version 99", "reads up to 4")


def external(model):
    tensor = model.graph.initializer[1]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"


def test_external_data(refused, small_models):
    refused(edited(small_models[".onnx"], external), "keeps data in other files")


def large_constant(model):
    """Let a node make 8 GB of a number."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([2**31]), "many"))
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["many"], ["huge"]))


def large_dims(model):
    model.graph.initializer[1].dims[0] = 2**40


def another_operator(model):
    model.graph.node[-1].op_type = "Identity"


def another_domain(model):
    model.graph.node[3].domain = "com.evil"


def a_function(model):
    model.functions.append(
        helper.make_function("", "Relu", ["x"], ["y"], [helper.make_node("Neg", ["x"], ["y"])], model.opset_import)
    )


def a_subgraph(model):
    graph = helper.make_graph([], "g", [], [])
    model.graph.node.append(helper.make_node("If", ["z"], ["w"], then_branch=graph, else_branch=graph))


def another_attribute(model):
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    next(a for a in node.attribute if a.name == "pads").ints[:] = [10**6] * 4


def no_z(model):
    del model.graph.initializer[0]


def a_later_opset(model):
    model.opset_import[0].version = 20


def nan_weight(model):
    tensor = next(t for t in model.graph.initializer if t.name.endswith(".weight"))
    tensor.raw_data = np.full(len(tensor.raw_data) // 4, np.nan, np.float32).tobytes()


CHANGES = {
    name: value
    for name, value in globals().items()
    if name in {
        "large_constant", "large_dims", "another_operator", "another_domain", "a_function", "a_subgraph",
        "another_attribute", "no_z", "a_later_opset", "nan_weight",
    }
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_graph_that_is_not_ours(refused, small_models, change, monkeypatch):
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **k: pytest.fail("it reached the engine"))
    refused(edited(small_models[".onnx"], CHANGES[change]))


@pytest.mark.parametrize(
    "change",
    [
        lambda held: held.pop("picture"),
        lambda held: held["picture"].update(width=10**9),
        lambda held: held["picture"].update(width=17),
        lambda held: held["picture"].update(channels=1),
        lambda held: held["picture"].update(channels="3"),
        lambda held: held["picture"].update(dtype="object"),
        lambda held: held["picture"].update(dtype="uint8"),
        lambda held: held["picture"].update(suffix="/etc/passwd"),
        lambda held: held["picture"].update(value_range=[0]),
        lambda held: held["picture"].update(value_range=[0, "x"]),
        lambda held: held["picture"].update(alpha="unassalpha"),
        lambda held: held["picture"].update(alpha=5),
        lambda held: held["picture"].update(orientation=6),
        lambda held: held.pop("tolerance"),
        lambda held: held["tolerance"].update(float="x"),
        lambda held: held["tolerance"].update(fraction=-1),
        lambda held: held["sha256"].pop("pixels"),
        lambda held: held["sha256"].update(z=None),
        lambda held: held.update(schema="1"),
        lambda held: held.update(schema=True),
        lambda held: held.update(schema=-1),
        lambda held: held.update(program=None),
        lambda held: held["program"].update(layers=5),
        lambda held: held["program"].update(layers=[]),
        lambda held: held["program"].update(size=[10**9, 10**9]),
        lambda held: held["program"].update(size="ab"),
        lambda held: held["program"].update(denominator=0),
        lambda held: held["program"].update(denominator=1e300),
        lambda held: held["program"]["layers"][0].pop("kind"),
        lambda held: held["program"]["layers"][0].update(inputs=["head"]),
        lambda held: held["program"]["layers"][0].update(inputs=7),
        lambda held: held["program"]["layers"][0].update(name="../x"),
        lambda held: held["program"]["layers"][0].update(padding=10**9),
        lambda held: held["program"]["layers"][0].update(padding=1.0),
        lambda held: held["program"]["layers"][0].update(more=[[]]),
    ],
)  # fmt: skip
def test_metadata_that_say_nonsense(refused, small_models, change):
    refused(edited(small_models[".onnx"], document(change)))


def test_metadata_that_nest_without_end(refused, small_models):
    def nest(model):
        for entry in model.metadata_props:
            if entry.key == "dip_fast":
                entry.value = "[" * 100_000

    refused(edited(small_models[".onnx"], nest), "metadata are damaged")


@pytest.mark.parametrize("part", [b"dip_fast.pixels", b"float_output", b"scale.reduce.conv.weight"])
def test_text_that_is_no_utf8(refused, small_models, part):
    data = small_models[".onnx"]
    assert part in data
    refused(data.replace(part, b"\xff" * len(part)))


def test_packed_pixels_that_would_fill_the_memory(refused, small_models):
    import zlib

    def bomb(model):
        for entry in model.metadata_props:
            if entry.key == "dip_fast.pixels":
                entry.value = base64.b64encode(zlib.compress(bytes(2**28))).decode()

    data = edited(small_models[".onnx"], bomb)
    tracemalloc.start()
    refused(data, "metadata are damaged")
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def test_graph_that_asks_for_gigabytes(refused, small_models, monkeypatch):
    """A file of 5 MB, consistent in itself and written as we would, whose first layer draws 400 GB."""
    program, metadata, blobs = onnx_format.read(small_models[".onnx"])
    del metadata["program"], metadata["schema"]
    layers = (
        Layer("conv", "first", ("z",), {"stride": 1, "padding": 0, "padding_mode": "zeros"}),
        Layer("conv", "last", ("first",), {"stride": 1, "padding": 0, "padding_mode": "zeros"}),
    )
    arrays = {
        "first.weight": np.ones((100_000, 1, 1, 1), np.float32),
        "first.bias": np.zeros(100_000, np.float32),
        "last.weight": np.ones((3, 100_000, 1, 1), np.float32),
        "last.bias": np.zeros(3, np.float32),
    }
    large = replace(
        program, layers=layers, arrays=arrays, inputs=(InputPart(np.zeros((1, 1, 1000, 1000), np.uint8), 1),)
    )
    large.check()
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **k: pytest.fail("it reached the engine"))
    refused(onnx_format.write(large, metadata, blobs), "GB of memory")


def test_values_that_overflow_are_no_picture(refused, small_models):
    program, metadata, blobs = onnx_format.read(small_models[".onnx"])
    del metadata["program"], metadata["schema"]
    head = next(layer for layer in program.layers if layer.name == "head")
    layers = (*program.layers[: program.layers.index(head) + 1],)
    arrays = {
        name: np.full_like(array, 3e38) if name == "head.weight" else array for name, array in program.arrays.items()
    }
    huge = replace(program, layers=layers, arrays=arrays, known=None)
    refused(onnx_format.write(huge, metadata, blobs), "NaN or infinite values")


# --- TorchScript and .pt2 can run code ----------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("owned"),)


def archive(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize("suffix", [".pt", ".pt2"])
def test_formats_that_can_run_code_need_trust(refused, small_models, dip, suffix, monkeypatch):
    with monkeypatch.context() as patch:
        for module in (torch.jit, torch.export, torch):
            patch.setattr(module, "load", lambda *a, **k: pytest.fail("it was loaded"))
        refused(small_models[suffix], "can run any code", "--trust", suffix=suffix)
        refused(small_models[suffix], "--trust", suffix=".onnx")  # whatever it is called
    Path(f"good{suffix}").write_bytes(small_models[suffix])
    assert dip("replay", f"good{suffix}", "--trust", "--verify").code == 0


@pytest.mark.parametrize("suffix", [".pt", ".pt2"])
def test_damaged_archives(refused, small_models, suffix):
    data = small_models[suffix]
    for length in (5, len(data) // 2, len(data) - 10):
        refused(data[:length], suffix=suffix, arguments=("--trust",))
    refused(archive({"a": "b"}), "no model that dip-fast wrote", suffix=suffix, arguments=("--trust",))
    future = archive({"m/extra/dip_fast": json.dumps({"schema": 7, "format": "pt2"})})
    refused(future, "schema version 7", suffix=suffix, arguments=("--trust",))
    refused(archive({"m/extra/dip_fast": "{"}), "damaged", suffix=suffix, arguments=("--trust",))
    for arguments in ((), ("--trust",)):  # a format that is not an archive, and one that does not exist
        for name in ("onnx", "none"):
            named = archive({"m/extra/dip_fast": json.dumps({"schema": 1, "format": name})})
            refused(named, "damaged", suffix=suffix, arguments=arguments)


def test_pickle_in_an_untrusted_archive_is_not_run(refused, small_models):
    with zipfile.ZipFile(io.BytesIO(small_models[".pt"])) as whole:
        members = {name: whole.read(name) for name in whole.namelist()}
    members = {name: pickle.dumps(Evil()) if name.endswith(".pkl") else content for name, content in members.items()}
    refused(archive(members), "--trust", suffix=".pt")
    assert not Path("owned").exists()
