"""Model files of schema 2, whose network input has parts of other kinds: damaged, and meant badly."""

import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper

from dip_fast import networks
from dip_fast.errors import DipFastError, UsageError
from dip_fast.fitting.results import Result
from dip_fast.models import exporting, fitted, onnx_format, verifying, writing
from dip_fast.models import model as models
from dip_fast.networks import network_input

pytestmark = pytest.mark.usefixtures("place")
SIZE = (11, 14)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    """Bytes of a small ONNX file of each schema."""
    torch.manual_seed(0)
    network = networks.build("skip", 4, 1, down=4, up=4, skip=2, scales=1, upsampling="nearest")
    size = network.input_size(*SIZE)
    image = torch.rand(1, 2, *SIZE)
    inputs = {
        1: network_input.draw("uniform", 4, size, seed=0),
        2: network_input.joined(
            network_input.draw("uniform", 1, size, seed=0),
            network_input.of_image(image).surrounded(*size),
            network_input.of_image(image[:, :1], bits=32).surrounded(*size),
        ),
    }
    path = tmp_path_factory.mktemp("models") / "model.onnx"
    written = {}
    for schema, z in inputs.items():
        result = Result(np.zeros((*SIZE, 1), np.float32), network, z, {}, 0, 0, "iterations", 0.0, [])
        written[schema] = exporting.export(result, path, overwrite=True).read_bytes()
    model = fitted.blended(fitted.from_file(path), np.zeros((*SIZE, 1), np.float32), 0.5)
    writing.write(model, path, "onnx")
    return written | {4: path.read_bytes()}


def refuse(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> str:
    """One line, before anything reaches the engine."""
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **k: pytest.fail("it reached the engine"))
    Path("bad.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UsageError) as caught:
        models.open_model("bad.onnx")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change_document(model: onnx.ModelProto, change: Callable[[dict], object]) -> None:
    for entry in model.metadata_props:
        if entry.key == "dip_fast":
            held = json.loads(entry.value)
            change(held)
            entry.value = json.dumps(held)


@pytest.mark.parametrize("schema", [1, 2, 4])
def test_whole_files_are_replayed(files: dict[int, bytes], schema: int) -> None:
    Path("good.onnx").write_bytes(files[schema])
    model = models.open_model("good.onnx")
    assert model.metadata["schema"] == schema
    assert verifying.verify(model, model.draw()).verdict == "same"


@pytest.mark.parametrize(
    ("schema", "change"),
    [
        (1, lambda held: held.update(schema=2)),
        (2, lambda held: held.update(schema=1)),
        (1, lambda held: held["program"].update(denominators=[held["program"].pop("denominator")])),
        (1, lambda held: held["program"].update(denominators=[held["program"]["denominator"]])),
        (2, lambda held: held["program"].update(denominator=2560)),
        (2, lambda held: held["program"].pop("denominators")),
        (2, lambda held: held["program"].update(denominators=[])),
        (2, lambda held: held["program"].update(denominators=[2560])),
        (2, lambda held: held["program"].update(denominators=[2560, 65535])),
        (2, lambda held: held["program"].update(denominators=[2560, 65535, 1, 1])),
        (2, lambda held: held["program"].update(denominators=[1] * 10**6)),
        (2, lambda held: held["program"].update(denominators=[65535, 2560, 1])),
        (2, lambda held: held["program"].update(denominators=[2560, 65535, 2])),
        (2, lambda held: held["program"].update(denominators=[2560, 0, 1])),
        (2, lambda held: held["program"].update(denominators=[2560, -1, 1])),
        (2, lambda held: held["program"].update(denominators=[2560, 65535.0, 1])),
        (2, lambda held: held["program"].update(denominators=[2560, 10**400, 1])),
        (2, lambda held: held["program"].update(denominators=[2560, None, 1])),
        (2, lambda held: held["program"].update(denominators=[2560, True, 1])),
        (2, lambda held: held["program"].update(denominators={"0": 2560, "1": 65535, "2": 1})),
        (2, lambda held: held["program"].update(denominators="abc")),
        (2, lambda held: held["program"].update(denominators=3)),
        (2, lambda held: held["program"]["layers"][0].update(name="z.1")),
        (2, lambda held: held["program"]["layers"][0].update(inputs=["z.1"])),
        (2, lambda held: held["program"]["layers"][0].update(name="picture")),
        (2, lambda held: held["program"].update(strength=0.5)),
        (4, lambda held: held.update(schema=2)),
        (4, lambda held: held["program"].pop("strength")),
        (4, lambda held: held["program"].update(strength=0.25)),
        (4, lambda held: held["program"].update(strength=1.0)),
        (4, lambda held: held["program"].update(strength="0.5")),
        (4, lambda held: held["program"]["layers"][0].update(name="blend.samples")),
    ],
)
def test_metadata_that_say_nonsense_of_the_input(
    files: dict[int, bytes], schema: int, change: Callable[[dict], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load_model_from_string(files[schema])
    change_document(model, change)
    assert "damaged" in refuse(model, monkeypatch)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_metadata_with_numbers_that_json_has_not(small_models: dict[str, bytes], number: str, suffix: str) -> None:
    """Python's reader lets them pass, and its writer does not: such a file was replayed and could not be exported."""
    data = small_models[suffix]
    if suffix == ".onnx":
        model = onnx.load_model_from_string(data)
        (entry,) = (entry for entry in model.metadata_props if entry.key == "dip_fast")
        entry.value = entry.value.replace('"seed": null', f'"seed": {number}')
        data = model.SerializeToString()
    else:
        file = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
            for name in old.namelist():
                new.writestr(name, old.read(name).replace(b'"seed": null', f'"seed": {number}'.encode()))
        data = file.getvalue()
    Path(f"bad{suffix}").write_bytes(data)
    with pytest.raises(UsageError, match="damaged"):
        models.open_model(f"bad{suffix}", trust=True)


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    return tensor


def missing(model: onnx.ModelProto) -> None:
    model.graph.initializer.remove(initializer(model, "z.1"))


def another_kind(model: onnx.ModelProto) -> None:
    tensor = initializer(model, "z.1")
    tensor.data_type, tensor.dims[1] = TensorProto.UINT8, 4


def huge(model: onnx.ModelProto) -> None:
    initializer(model, "z.1").dims[1] = 2**40


def not_finite(model: onnx.ModelProto) -> None:
    tensor = initializer(model, "z.2")
    tensor.raw_data = np.full(len(tensor.raw_data) // 4, np.inf, np.float32).tobytes()


def of_another_size(model: onnx.ModelProto) -> None:
    dims = initializer(model, "z.2").dims
    dims[2], dims[3] = dims[3], dims[2]


def transposed(model: onnx.ModelProto) -> None:
    dims = initializer(model, "z.2").dims
    dims[1], dims[2] = dims[2], dims[1]


def one_more(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1, 12, 14), np.uint8), "z.3"))


def swapped(model: onnx.ModelProto) -> None:
    concat = next(node for node in model.graph.node if node.output[0] == "z/parts")
    concat.input[0], concat.input[1] = concat.input[1], concat.input[0]


def declared_otherwise(model: onnx.ModelProto) -> None:
    model.graph.input[1].type.tensor_type.elem_type = TensorProto.UINT8


def not_declared(model: onnx.ModelProto) -> None:
    del model.graph.input[2]


def divided_otherwise(model: onnx.ModelProto) -> None:
    tensor = initializer(model, "z.1/denominator")
    tensor.raw_data = np.float32(0).tobytes()


@pytest.mark.parametrize(
    "change",
    [
        missing, another_kind, huge, not_finite, of_another_size, transposed, one_more, swapped, declared_otherwise,
        not_declared, divided_otherwise,
    ],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_parts_that_are_not_ours(
    files: dict[int, bytes], change: Callable[[onnx.ModelProto], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load_model_from_string(files[2])
    change(model)
    assert "damaged" in refuse(model, monkeypatch)


def test_file_of_a_later_schema_says_that_dip_fast_must_be_updated(
    files: dict[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load_model_from_string(files[2])
    change_document(model, lambda held: held.update(schema=5))
    assert "schema version 5" in refuse(model, monkeypatch)
    # What a version that knew schema 1 alone says of ours.
    monkeypatch.setattr(onnx_format, "SCHEMA", 1)
    said = refuse(onnx.load_model_from_string(files[2]), monkeypatch)
    assert "schema version 2" in said
    assert said.endswith("update dip-fast")


def test_mutated_files_neither_crash_nor_trace(files: dict[int, bytes]) -> None:
    rng, drawn = random.Random(0), 0
    for _ in range(700):
        held = bytearray(files[2])
        at = rng.randrange(len(held))
        if rng.randrange(2):
            held[at] = rng.randrange(256)
        else:
            held[at : at + rng.randrange(1, 50)] = rng.randbytes(rng.randrange(50))
        Path("mutated.onnx").write_bytes(held)
        try:
            model = models.open_model("mutated.onnx")
            verifying.verify(model, model.draw(threads=1))
            drawn += 1
        except UsageError:
            continue
        except DipFastError as error:
            pytest.fail(f"an engine was given what it cannot run: {error}")
    assert drawn  # some changes of z and weights are as good as any
