"""The network input: random, images, and mixtures of both, from the first step to the model file."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dip_fast import networks
from dip_fast.fitting.results import Result
from dip_fast.models import exporting, onnx_format, verifying
from dip_fast.models import model as models
from dip_fast.models.packing import digest
from dip_fast.networks import NetworkInput, Part, network_input
from dip_fast.programs import drawing as torch_program
from dip_fast.programs import folding

SIZE = (19, 23)


def picture(channels: int = 3, size: tuple[int, int] = SIZE, seed: int = 0) -> Tensor:
    return torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("distribution", "denominator"), [("uniform", 2560), ("gaussian", 32)])
def test_random_input_lies_on_a_grid_that_8_bits_hold(distribution: str, denominator: int) -> None:
    z = network_input.draw(distribution, 3, (32, 40), seed=1)
    values = z.tensor()
    assert z.codes.element_size() == 1
    assert values.shape == (1, 3, 32, 40)
    assert torch.equal((values.double() * denominator).round().to(z.codes.dtype), z.codes)
    # Correctly rounded quotients: what a model file that divides codes by the denominator computes.
    expected = (z.codes.numpy().astype(np.float64) / denominator).astype(np.float32)
    np.testing.assert_array_equal(values.numpy(), expected)


def test_random_input_has_the_distribution_it_is_named_after() -> None:
    uniform = network_input.draw("uniform", 8, (64, 64), seed=2).tensor()
    assert uniform.min() >= 0
    assert uniform.max() < 0.1
    assert uniform.mean() == pytest.approx(0.05, abs=1e-3)
    gaussian = network_input.draw("gaussian", 8, (64, 64), seed=2).tensor()
    assert gaussian.mean() == pytest.approx(0, abs=0.02)
    assert gaussian.std() == pytest.approx(1, abs=0.02)
    assert gaussian.abs().max() <= 127 / 32


@pytest.mark.parametrize(
    ("distribution", "sha256"),
    [
        ("uniform", "199f0fee8fdf5bea27a42092dc5c6f9da456f3a8086541146d68cdafb35ee036"),
        ("gaussian", "8c9cd472e78097777e4b45714b1d6bab3217b72aed753d5c4ceab58191244c1b"),
    ],
)
def test_random_input_keeps_its_bits(distribution: str, sha256: str) -> None:
    # A fit is resumed from its seed, so the same seed must draw the same z in every version.
    z = network_input.draw(distribution, 2, (8, 12), seed=3)
    assert digest(z.codes.numpy()) == sha256


def test_16_bit_picture_is_held_exactly() -> None:
    codes = np.arange(2**16, dtype=np.uint16).reshape(1, 1, 256, 256)
    z = network_input.of_image((codes / 65535).astype(np.float32))
    np.testing.assert_array_equal(z.codes.numpy(), codes)
    np.testing.assert_array_equal(z.tensor().numpy(), (codes / np.float64(65535)).astype(np.float32))
    assert z.nbytes == 2 * 2**16


def test_features_are_held_in_float32() -> None:
    features = 100 * picture() - 50
    z = network_input.of_image(features, bits=32)
    assert torch.equal(z.tensor(), features)
    before = features.clone()
    features.zero_()
    z.tensor().zero_()
    assert torch.equal(z.tensor(), before)  # neither is a view of it


def test_inputs_are_joined_along_the_channels() -> None:
    random, guide = network_input.draw("uniform", 2, SIZE, seed=0), network_input.of_image(picture(3))
    features = network_input.of_image(picture(1, seed=1).double().numpy(), bits=32)
    z = network_input.joined(random, guide, features)
    assert (z.channels, z.size, z.nbytes) == (6, SIZE, (2 + 2 * 3 + 4) * SIZE[0] * SIZE[1])
    assert [part.codes.dtype for part in z.parts] == [torch.uint8, torch.uint16, torch.float32]
    assert torch.equal(z.tensor(), torch.cat((random.tensor(), guide.tensor(), features.tensor()), dim=1))
    with pytest.raises(ValueError, match=r"one part, and it has 3; use z\.parts"):
        _ = z.codes
    with pytest.raises(ValueError, match=r"one part, and it has 3; use z\.parts"):
        _ = z.denominator


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: NetworkInput(()), ValueError, "must have a part"),
        (lambda: Part(torch.zeros(1, 1, 2, 2, dtype=torch.int32), 5), TypeError, "uint16 or float32, got torch.int32"),
        (lambda: Part(torch.zeros(1, 2, 2)), ValueError, r"\(1, C, H, W\), got \(1, 2, 2\)"),
        (lambda: Part(torch.zeros(1, 0, 2, 2)), ValueError, r"got \(1, 0, 2, 2\)"),
        (lambda: Part(torch.zeros(1, 1, 2, 2), 7), ValueError, "must be 1 for float32 values, got 7"),
        (lambda: Part(torch.full((1, 1, 2, 2), torch.inf)), ValueError, "must be finite"),
        (lambda: Part(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), 0), ValueError, r"from 1 to 2\*\*24 - 1, got 0"),
        (lambda: network_input.of_image(2 * picture()), ValueError, r"\[0, 1\] for bits=16, got .* use bits=32"),
        (lambda: network_input.of_image(np.full((1, 1, 2, 2), np.nan)), ValueError, r"\[0, 1\] for bits=16, got nan"),
        (lambda: network_input.of_image(picture(), bits=8), ValueError, "16 or 32, got 8"),
        (lambda: network_input.of_image(np.zeros((1, 1, 2, 2), np.uint8)), TypeError, "floating-point values"),
        (
            lambda: network_input.joined(
                network_input.of_image(picture()), network_input.of_image(picture(size=(19, 24)))
            ),
            ValueError,
            r"one height and width, got \[\(19, 23\), \(19, 24\)\]",
        ),
        (lambda: networks.surround(picture(), 18, 40), ValueError, r"at least \(19, 23\), got \(18, 40\)"),
    ],
)
def test_what_is_no_input_is_refused(make: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()  # type: ignore[operator]


# --- on the network's grid ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SIZE, (20, 25), (32, 32), (36, 44), (37, 45), (64, 64), (200, 131)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.uint16])
def test_surrounded_image_is_reflected_around_its_place(size: tuple[int, int], dtype: torch.dtype) -> None:
    x = (200 * picture()).to(dtype)
    larger = networks.surround(x, *size)
    assert (larger.shape, larger.dtype) == ((1, 3, *size), dtype)
    assert torch.equal(networks.crop(larger, *SIZE), x)
    top, left = (size[0] - SIZE[0]) // 2, (size[1] - SIZE[1]) // 2
    amounts = ((0, 0), (0, 0), (top, size[0] - SIZE[0] - top), (left, size[1] - SIZE[1] - left))
    np.testing.assert_array_equal(larger.numpy(), np.pad(x.numpy(), amounts, mode="reflect"))


def test_surrounded_side_of_one_or_two_pixels() -> None:
    x = torch.tensor([[1.0, 2.0]])[None, None]
    expected = torch.tensor([2.0, 1.0, 2.0, 1.0, 2.0]).expand(1, 1, 3, 5)
    assert torch.equal(networks.surround(x, 3, 5), expected)


def test_image_of_the_size_asked_for_is_not_copied() -> None:
    x = picture()
    assert networks.surround(x, *SIZE) is x


def test_input_is_surrounded_part_by_part() -> None:
    z = network_input.joined(network_input.draw("gaussian", 2, SIZE, seed=0), network_input.of_image(picture()))
    larger = z.surrounded(32, 64)
    assert [(part.codes.dtype, part.denominator) for part in larger.parts] == [(torch.int8, 32), (torch.uint16, 65535)]
    assert larger.size == (32, 64)
    assert torch.equal(larger.tensor(), networks.surround(z.tensor(), 32, 64))


# --- folded, and in every format ----------------------------------------------------------------------------------


INPUTS = {
    "random": lambda size: network_input.draw("uniform", 3, size, seed=0),
    "image": lambda size: network_input.of_image(picture(3)).surrounded(*size),
    "features": lambda size: network_input.of_image(8 * picture(2) - 4, bits=32).surrounded(*size),
    "mixture": lambda size: network_input.joined(
        network_input.draw("gaussian", 2, size, seed=0),
        network_input.of_image(picture(3)).surrounded(*size),
        network_input.of_image(8 * picture(2, seed=1) - 4, bits=32).surrounded(*size),
    ),
}


def result(case: str) -> Result:
    """What a fit of no steps comes to, from an input of some kind."""
    channels = INPUTS[case]((32, 32)).channels
    torch.manual_seed(0)
    network = networks.build("skip", channels, 3, down=4, up=4, skip=2, scales=2, upsampling="nearest")
    z = INPUTS[case](network.input_size(*SIZE))
    with torch.no_grad():
        image = networks.crop(network(z.tensor()), *SIZE)[0].permute(1, 2, 0).numpy()
    return Result(image, network, z, {}, 0, 0, "iterations", 0.0, [])


@pytest.mark.parametrize("case", INPUTS)
def test_every_input_in_every_format(case: str, place: Path) -> None:
    made = result(case)
    for suffix in (".onnx", ".pt", ".pt2"):
        model = models.open_model(exporting.export(made, f"model{suffix}"), trust=True)
        assert model.metadata["schema"] == (1 if case == "random" else 2)
        assert model.metadata["sha256"]["z"] == digest(*(part.codes.numpy() for part in made.z.parts))
        output = model.draw()
        np.testing.assert_allclose(output, made.image, rtol=0, atol=2e-5)
        assert verifying.verify(model, output).text == "the same bits as at export, pixels and float output"


@pytest.mark.parametrize("case", INPUTS)
def test_input_survives_its_file(case: str) -> None:
    made = result(case)
    program = folding.fold(made.network, made.z, SIZE)
    np.testing.assert_array_equal(torch_program.Drawing(program).network_input().numpy(), made.z.tensor().numpy())
    data = onnx_format.write(program)
    again, _, _ = onnx_format.read(data)
    assert onnx_format.write(again) == data
    for ours, theirs in zip(program.inputs, again.inputs, strict=True):
        np.testing.assert_array_equal(ours.codes, theirs.codes)
        assert (ours.codes.dtype, ours.denominator) == (theirs.codes.dtype, theirs.denominator)


def test_another_guide_can_be_set() -> None:
    import onnxruntime

    made = result("mixture")
    program = folding.fold(made.network, made.z, SIZE)
    session = onnxruntime.InferenceSession(onnx_format.write(program), providers=["CPUExecutionProvider"])
    given = {entry.name: entry.type for entry in session.get_overridable_initializers()}
    assert given == {"z": "tensor(int8)", "z.1": "tensor(uint16)", "z.2": "tensor(float)"}
    other = program.inputs[1].codes[..., ::-1].copy()
    (moved,) = session.run(None, {"z.1": other})
    module = torch_program.Drawing(program)
    module.z_1 = torch.from_numpy(other)
    with torch.no_grad():
        np.testing.assert_allclose(moved, module().numpy(), rtol=0, atol=2e-5)
    assert np.abs(moved - made.image).mean() > 1e-3


def test_verify_notices_a_changed_guide(place: Path) -> None:
    path = exporting.export(result("mixture"), "model.onnx")
    program, metadata, blobs = onnx_format.read(path.read_bytes())
    del metadata["program"], metadata["schema"]
    random, guide, features = program.inputs
    codes = guide.codes.copy()
    codes[0, 0, 0, 0] ^= 1
    program = replace(program, inputs=(random, guide._replace(codes=codes), features))
    path.write_bytes(onnx_format.write(program, metadata, blobs))
    model = models.open_model(path)
    assert "changed after it was written" in verifying.verify(model, model.draw()).text


def test_summary_of_a_file_with_a_guide(place: Path, dip) -> None:
    exporting.export(result("mixture"), "model.onnx")
    ended = dip("replay", "model.onnx", "--verify", "--json", "-o", "again.tif")
    assert (ended.code, json.loads(ended.out)["verdict"]) == (0, "same")
