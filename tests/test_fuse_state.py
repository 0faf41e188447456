"""Fused models share parameters and hooks with the plain ones, follow changes of state, and can be copied."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from fuse_models import Blocks, CarefulUpsample, SuperResolutionTail, VaeUpsample, check, conv, picture
from torch import Tensor, nn

import dip_fast

pytestmark = pytest.mark.usefixtures("fixed_seed")


class Shared(nn.Module):
    """One upsampling and one convolution used by several callers, and an upsampled image read three times."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Upsample(scale_factor=2)
        self.conv = conv()
        self.other = conv(padding_mode="replicate")
        self.tail = nn.Sequential(self.up, self.conv, self.conv)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(x)
        return self.tail(self.conv(up) + self.other(up) + up + self.conv(F.interpolate(x, scale_factor=2)))


def test_shared_layers_and_skip_connections(fused_calls: list[tuple[str, str]]) -> None:
    model = Shared()
    check(model, picture(), fused_calls, 4)
    kept = "the upsampled image is read elsewhere too, and still computed"
    # A shared module goes by its first name in the model.
    pairs = sorted((pair.where, pair.note) for pair in dip_fast.fusion_report(model).replaced)
    assert pairs == [("conv", ""), ("conv", ""), ("conv", kept), ("other", kept)]


@pytest.mark.parametrize("position", [0, 1, 2])
def test_hooks_are_called(position: int, fused_calls: list[tuple[str, str]]) -> None:
    model = nn.Sequential(nn.Upsample(scale_factor=2), nn.ReflectionPad2d(1), conv(padding=0))
    fused = dip_fast.fuse(model)
    shapes = []
    handle = fused[position].register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    torch.testing.assert_close(fused(picture(1, 4, 5, 6)).shape, (1, 4, 10, 12))
    assert (len(shapes), len(fused_calls)) == (1, 0)
    handle.remove()
    fused(picture())
    assert (len(shapes), len(fused_calls)) == (1, 1)


def test_hook_that_is_there_when_fusing() -> None:
    model = nn.Sequential(nn.Upsample(scale_factor=2), conv())
    model[1].register_forward_hook(lambda module, args, output: 2 * output)
    x = picture()
    torch.testing.assert_close(dip_fast.fuse(model)(x), model(x), atol=0, rtol=0)
    assert "1 (Conv2d) has hooks, or a forward of its own" in str(dip_fast.fusion_report(model))


def test_weight_norm(fused_calls: list[tuple[str, str]]) -> None:
    model = nn.Sequential(nn.Upsample(scale_factor=2), nn.utils.parametrizations.weight_norm(conv()))
    check(model, picture(), fused_calls, 1)
    with pytest.warns(FutureWarning, match="weight_norm"):
        hooked = nn.Sequential(nn.Upsample(scale_factor=2), nn.utils.weight_norm(conv()))  # works through a hook
    hooked(picture())
    check(hooked, picture(), fused_calls, 0)


def test_convolution_with_a_forward_of_its_own(fused_calls: list[tuple[str, str]]) -> None:
    class Doubled(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    # What it calls is the function F.conv2d.
    check(nn.Sequential(nn.Upsample(scale_factor=2), Doubled(4, 4, 3, padding=1)), picture(), fused_calls, 1)


def test_training_mode(fused_calls: list[tuple[str, str]]) -> None:
    model = nn.Sequential(nn.Upsample(scale_factor=2), conv(), nn.BatchNorm2d(4), nn.Dropout(0.5))
    fused = dip_fast.fuse(model)
    assert (fused(picture()) == 0).any()
    fused.eval()
    x = picture()
    torch.testing.assert_close(fused(x), model.eval()(x), atol=1e-5, rtol=1e-5)
    assert fused[2].num_batches_tracked == 1
    assert len(fused_calls) == 2


def test_flags_in_code_are_read_at_each_run(fused_calls: list[tuple[str, str]]) -> None:
    fused = dip_fast.fuse(VaeUpsample())
    x = picture()
    fused.with_conv = False
    torch.testing.assert_close(fused(x), F.interpolate(x, scale_factor=2), atol=0, rtol=0)
    fused.with_conv = True
    fused(x)
    assert len(fused_calls) == 1


def test_changed_sequence_is_noticed() -> None:
    fused = dip_fast.fuse(nn.Sequential(nn.Upsample(scale_factor=2), conv()))
    fused.append(nn.ReLU())
    assert (fused(picture()) >= 0).all()
    fused[1].padding = (0, 0)
    assert fused(picture(1, 4, 5, 6)).shape == (1, 4, 8, 10)
    assert fused[:1](picture(1, 4, 5, 6)).shape == (1, 4, 10, 12)


def test_training_goes_on_and_checkpoints_load(fused_calls: list[tuple[str, str]]) -> None:
    model = SuperResolutionTail()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fused = dip_fast.fuse(model)
    before = model.first.weight.clone()
    fused(picture()).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model.first.weight, before)
    other = dip_fast.fuse(SuperResolutionTail())
    other.load_state_dict(model.state_dict())
    x = picture()
    torch.testing.assert_close(other(x), model(x), atol=1e-5, rtol=1e-5)


def test_original_stays_plain_unless_in_place(fused_calls: list[tuple[str, str]]) -> None:
    model = nn.Sequential(nn.Upsample(scale_factor=2), conv())
    assert dip_fast.fuse(model) is not model
    model(picture())
    assert fused_calls == []
    assert dip_fast.fuse(model, inplace=True) is model
    model(picture())
    assert len(fused_calls) == 1


def test_fusing_twice(fused_calls: list[tuple[str, str]]) -> None:
    fused = dip_fast.fuse(dip_fast.fuse(Blocks()))
    fused(picture())
    assert len(fused_calls) == 2


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "copy.deepcopy": copy.deepcopy,
    "copy.copy": copy.copy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


def _saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [*COPIES.values(), _saved], ids=[*COPIES, "torch.save"])
def test_copies_are_fused_and_compute_the_same(
    copied: Callable[[nn.Module], nn.Module], fused_calls: list[tuple[str, str]]
) -> None:
    x = picture()
    for model in (nn.Sequential(nn.Upsample(scale_factor=2), conv()), nn.Sequential(nn.Identity(), conv())):
        fused = dip_fast.fuse(model)
        wanted = fused(x)
        expected = len(fused_calls)
        fused_calls.clear()
        torch.testing.assert_close(copied(fused)(x), wanted, atol=0, rtol=0)
        assert len(fused_calls) == expected
        fused_calls.clear()


def test_copy_has_parameters_of_its_own() -> None:
    fused = dip_fast.fuse(nn.Sequential(nn.Upsample(scale_factor=2), conv()))
    other = copy.deepcopy(fused)
    nn.init.zeros_(other[1].weight)
    nn.init.zeros_(other[1].bias)
    assert (other(picture()) == 0).all()
    assert (fused(picture()) != 0).any()


def test_unbatched_and_other_dimensions_run_plain(fused_calls: list[tuple[str, str]]) -> None:
    model = nn.Sequential(nn.Upsample(scale_factor=2), conv())
    x = picture(1, 4, 6)  # for nn.Upsample a row of 6, for the convolution an image without a batch
    with pytest.raises(RuntimeError) as plain:
        model(x)
    with pytest.raises(RuntimeError) as fused:
        dip_fast.fuse(model)(x)
    assert str(fused.value) == str(plain.value)
    assert fused_calls == []


def test_layer_of_our_own_stays() -> None:
    model = nn.Sequential(dip_fast.UpsampleConv2d(4, 4), nn.Upsample(scale_factor=2), conv())
    x = picture()
    torch.testing.assert_close(dip_fast.fuse(model)(x), model(x), atol=1e-5, rtol=1e-5)


def test_bfloat16_and_double(fused_calls: list[tuple[str, str]]) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.bfloat16, 3e-2)):
        model = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), conv()).to(dtype)
        x = picture().to(dtype)
        got = dip_fast.fuse(model)(x)
        assert got.dtype == dtype
        torch.testing.assert_close(got, model(x), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("kind", [CarefulUpsample, Blocks, SuperResolutionTail])
def test_compiles_in_one_graph(kind: Callable[[], nn.Module], fused_calls: list[tuple[str, str]]) -> None:
    model = kind()
    fused = dip_fast.fuse(model)
    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, backend="eager")
    x = picture()
    for training in (True, False, True):
        model.train(training)
        fused.train(training)
        fused_calls.clear()
        wanted = fused(x)
        assert fused_calls
        torch.testing.assert_close(compiled(x), wanted, atol=1e-5, rtol=1e-5)


def test_exports() -> None:
    model = nn.Sequential(nn.Upsample(scale_factor=2), conv()).eval()
    x = picture()
    program = torch.export.export(dip_fast.fuse(model), (x,))
    assert "dip_fast.upsample_conv2d" in str(program.graph)
    torch.testing.assert_close(program.module()(x), model(x), atol=1e-5, rtol=1e-5)
