"""Programs drawn in tiles are the programs drawn whole, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_folding import NETWORKS
from test_masked import LEARNING, NOISE, RECIPE, SIGMA, clean, noisy

from dip_fast.errors import UsageError
from dip_fast.fitting import masked_prediction, objectives, prepare
from dip_fast.models import fitted, onnx_engine, onnx_format
from dip_fast.models.verifying import are_same
from dip_fast.networks import Skip
from dip_fast.networks.frozen import freeze
from dip_fast.networks.network_input import draw
from dip_fast.pictures import Kind
from dip_fast.programs import drawing, folding, tiles
from dip_fast.programs.blend import Blend
from dip_fast.programs.program import Program

LOCAL = [name for name in NETWORKS if name not in ("decoder", "coarse")]  # which draw from a smaller z
SIZE = (300, 170)


def made(case: str, size: tuple[int, int] = SIZE, known: bool = False) -> Program:
    torch.manual_seed(0)
    network = NETWORKS[case]()
    z = draw("gaussian", 5, network.input_size(*size), seed=0)
    pixels = None
    if known:
        mask = np.random.default_rng(0).random((*size, 1)) < 0.3
        pixels = mask, np.full((*size, 3), 77, np.uint8)
    return folding.fold(network, z, size, (0.0, 255.0), pixels)


def whole(program: Program) -> np.ndarray:
    return drawing.Drawing(program)().numpy()


@pytest.mark.parametrize("case", LOCAL)
def test_reach_is_as_far_as_a_sample_sees(case: str) -> None:
    """No sample of z farther away changes a sample of the picture, and the farthest within it is not far inside."""
    program = made(case, (512, 64))
    around, multiple = tiles.reach(program)
    assert program.inputs[0].codes.shape[2] % multiple == 0
    codes = program.inputs[0].codes.copy()
    codes[..., 256, :] = -codes[..., 256, :]  # one row of z
    changed = replace(program, inputs=(program.inputs[0]._replace(codes=codes),))
    rows = np.flatnonzero((whole(program) != whole(changed)).any(axis=(1, 2)))
    seen = max(256 - rows.min(), rows.max() - 256)
    assert seen <= around
    assert seen > around / 3


@pytest.mark.parametrize("case", ["nearest", "bilinear", "zeros", "average", "max"])
@pytest.mark.parametrize("side", [128, 160, 224])
def test_tiles_draw_the_bits_of_the_whole(case: str, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In onnxruntime; PyTorch adds in another order where an image is smaller, 7e-7 of the range at most here."""
    program = made(case)
    torch_whole, onnx_whole = whole(program), onnx_engine.run_file(onnx_format.write(program))
    monkeypatch.setattr(tiles, "SIDE", side)
    assert len(tiles.tiles(program)) > 1
    np.testing.assert_array_equal(onnx_engine.draw(program), onnx_whole)
    np.testing.assert_allclose(drawing.draw(program), torch_whole, rtol=0, atol=2e-6 * 255)


def test_known_pixels_are_put_back_into_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    program = made("nearest", known=True)
    expected = whole(program)
    monkeypatch.setattr(tiles, "SIDE", 128)
    assert len(tiles.tiles(program)) > 1
    np.testing.assert_allclose(drawing.draw(program), expected, rtol=0, atol=2e-6 * 255)
    assert (expected == 77).all(axis=2).mean() > 0.25


@pytest.mark.parametrize("side", [128, 1024])
def test_large_picture_is_compared_in_a_few_tiles(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first to the last, blended and with known samples; a picture that is drawn whole is compared whole."""
    program = made("nearest", known=True)
    program = replace(program, blend=Blend(np.full((*SIZE, 3), 9, np.uint8), 0.5))
    monkeypatch.setattr(tiles, "SIDE", side)
    count = len(tiles.tiles(program))
    assert (count > 2 * tiles.LOOKED_AT) == (side == 128)
    picture = onnx_engine.draw(program)
    drawn: list[Program] = []

    def draw_part(part: Program) -> np.ndarray:
        drawn.append(part)
        return onnx_engine.draw(part)

    assert tiles.draws(program, draw_part, picture)
    assert len(drawn) == min(count, tiles.LOOKED_AT)
    unknown = np.argwhere(~program.known[0])
    for row, column, _ in (unknown[0], unknown[-1]):
        other = picture.copy()
        other[row, column, 2] = np.nextafter(other[row, column, 2], np.float32(300))
        assert not onnx_engine.draws(program, other)


def test_program_equals_itself_alone() -> None:
    program = made("nearest", known=True)
    assert are_same(program, replace(program))
    name, weight = next(iter(program.arrays.items()))
    codes = program.inputs[0].codes.copy()
    codes[..., -1, -1] ^= 1
    for other in (
        made("nearest"),
        replace(program, arrays=program.arrays | {name: np.nextafter(weight, np.float32(9))}),
        replace(program, arrays=program.arrays | {name: weight.astype(np.float16)}),
        replace(program, inputs=(program.inputs[0]._replace(codes=codes),)),
        replace(program, known=(~program.known[0], program.known[1])),
        replace(program, blend=Blend(program.known[1], 0.5)),
        replace(program, value_range=(0.0, 1.0)),
    ):
        assert not are_same(program, other)
        assert not are_same(other, program)


@pytest.mark.parametrize("name", ["decoder", "coarse"])
def test_picture_that_is_drawn_from_a_smaller_z_is_drawn_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = made(name)
    monkeypatch.setattr(tiles, "SIDE", 16)
    assert tiles.reach(program) is None
    assert len(tiles.tiles(program)) == 1


def test_memory_of_a_large_picture_is_that_of_a_tile() -> None:
    def needed(height: int) -> int:
        network = Skip(6, 3, down=32, up=32, skip=16, kernel_skip=3, upsampling="nearest")
        program = folding.fold(network, draw("gaussian", 6, (64, 64), seed=0), (64, 64))
        codes = np.broadcast_to(np.int8(1), (1, 6, height, 4096))
        large = replace(program, inputs=(program.inputs[0]._replace(codes=codes),), size=(height, 4096))
        return tiles.needed_bytes(large)

    small, large = needed(2048), needed(8192)
    assert large - small == 4096 * (8192 - 2048) * (6 + 4 * 3)  # codes and picture
    assert small < 1.2e9


# --- frozen networks -----------------------------------------------------------------------------------------------


def test_frozen_network_normalises_with_the_mean_statistics_of_its_inputs() -> None:
    torch.manual_seed(0)
    network = Skip(5, 3, down=8, up=8, skip=4, scales=3, upsampling="nearest")
    z = draw("gaussian", 5, (64, 64), seed=0).tensor()
    weights = {name: value + 0.1 for name, value in network.state_dict().items()}
    with torch.no_grad():
        frozen = freeze(network, weights, [z])
        # Of its only input it draws the same.
        expected = torch.func.functional_call(network, weights, (z,))
        torch.testing.assert_close(frozen(z), expected, atol=1e-5, rtol=0)
        assert not torch.allclose(expected, network(z), atol=1e-3)
        # It does not look at what it draws any more.
        np.testing.assert_allclose(frozen(torch.cat((z, 5 * z), dim=3))[..., :32], frozen(z)[..., :32], atol=1e-6)
        both = freeze(network, weights, [z, 2 * z])
    mean = torch.stack([freeze(network, weights, [part]).scale.skip.norm.running_var for part in (z, 2 * z)]).mean(0)
    torch.testing.assert_close(both.scale.skip.norm.running_var, mean)


def test_frozen_network_is_folded_from_a_corner_of_its_input() -> None:
    torch.manual_seed(0)
    network = Skip(5, 3, down=8, up=8, skip=4, scales=3, upsampling="nearest")
    z = draw("gaussian", 5, (96, 64), seed=0)
    frozen = freeze(network, network.state_dict(), [z.tensor(), 2 * z.tensor()])
    program = folding.fold(frozen, z, (90, 60))
    with torch.no_grad():
        expected = drawing.crop(frozen(z.tensor()), 90, 60)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(drawing.draw(program), expected, atol=2e-6)
    assert program.inputs[0].codes.shape == (1, 5, 96, 64)
    frozen.train()
    with pytest.raises(ValueError, match="to be folded"):
        folding.fold(frozen, z, (90, 60))


# --- large pictures ------------------------------------------------------------------------------------------------


def test_large_picture_is_drawn_in_tiles_by_a_frozen_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectives, "LARGEST_WHOLE", 100 * 100)
    monkeypatch.setattr(tiles, "SIDE", 96)
    height, width = 130, 150
    recipe = replace(RECIPE, options=replace(RECIPE.options, iterations=200))
    recipe = replace(recipe, masking=replace(RECIPE.masking, crop=64))
    run = prepare(masked_prediction(noisy(height, width), NOISE, recipe, seed=3), recipe, seed=3)
    drawn: list[tuple[int, ...]] = []
    run.network.register_forward_pre_hook(lambda module, args: drawn.append(tuple(args[0].shape[2:])))
    run.run()
    assert max(drawn) == run.objective.step_size  # nothing was drawn whole
    result = run.result()
    assert sum(weight.numel() for weight in result.network.parameters()) < 5000  # a small one draws what was made
    image = torch.from_numpy(result.image).permute(2, 0, 1)[None]
    noisy_psnr = -20 * np.log10(SIGMA)
    assert -10 * float((image - clean(height, width)).square().mean().log10()) > noisy_psnr + 5

    def no_drawing(program: Program) -> None:
        raise AssertionError("PyTorch has drawn it before")

    monkeypatch.setattr(drawing, "draw", no_drawing)
    ranges = ((5.0, 250.0), (-3.0, 99.0), (0.0, 1.0))[: result.image.shape[2]]
    kind = Kind("", width, height, len(ranges), "float32", (-3.0, 250.0), suffix=".tif", channel_ranges=ranges)
    model = fitted.from_result(result, kind)
    assert len(tiles.tiles(model.program)) > 1
    low = np.array([low for low, _ in ranges], np.float32)
    high = np.array([high for _, high in ranges], np.float32)
    np.testing.assert_allclose(model.output, low + (high - low) * result.image, atol=2e-6 * 253)
    np.testing.assert_allclose(model.reference, model.output, atol=2e-6 * 253)


def test_interrupted_fit_of_a_large_picture_has_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectives, "LARGEST_WHOLE", 64 * 64)
    recipe = replace(LEARNING, options=replace(RECIPE.options, iterations=100))
    run = prepare(masked_prediction(noisy(96, 96), NOISE, recipe, seed=3), recipe, seed=3)
    run.run([lambda fit: fit.interrupt() if fit.steps == 50 else None])
    assert run.consolidated == 0  # the network of the answer corrects its input, if that of the steps does not
    image = torch.from_numpy(run.result().image).permute(2, 0, 1)[None]
    assert bool(image.isfinite().all())


def test_memory_of_a_large_picture_is_asked_for_before_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dip_fast.device.memory.available_bytes", lambda: 10**8)
    with pytest.raises(UsageError, match="GB are free"):
        prepare(masked_prediction(torch.rand(1, 3, 1200, 1200), NOISE, RECIPE), RECIPE)
