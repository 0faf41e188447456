"""Physics of deepinv and operators of pylops, as they are; both are dependencies of this test alone.

pip install --no-deps -r requirements/deepinv.txt
pytest -m slow tests/test_deepinv.py
"""

import importlib
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pixels
from physics_cases import PLAIN, by_hand
from torch import nn

from dip_fast import fit, interop

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import other_models

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

SIZE = (64, 64)
COLOUR, GRAY, COMPLEX = (
    torch.from_numpy(pixels(*SIZE, channels, dtype=np.float32)).permute(2, 0, 1)[None] for channels in (3, 1, 2)
)
MASK = (torch.rand(1, 1, *SIZE, generator=torch.Generator().manual_seed(0)) < 0.4).float()


@pytest.fixture(scope="module")
def physics():
    """The physics of deepinv, imported without what it warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other_models.declare_torchvision_operators()
        try:
            return importlib.import_module("deepinv").physics
        except Exception as error:  # torchvision raises RuntimeError where it does not go with torch
            pytest.skip(f"deepinv cannot be imported: {error}; pip install --no-deps -r requirements/deepinv.txt")


def kernel(p):
    return p.blur.gaussian_blur(sigma=(1.0, 1.0))


def stacked(p):
    return p.StackedLinearPhysics([p.Inpainting((3, *SIZE), mask=0.5), p.Blur(kernel(p), padding="circular")])


def coils():
    return torch.complex(torch.rand(1, 3, *SIZE), torch.rand(1, 3, *SIZE))


CASES = {
    "Denoising": (lambda p: p.Denoising(p.GaussianNoise(0.1)), COLOUR),
    "Poisson": (lambda p: p.Denoising(p.PoissonNoise(0.05)), COLOUR),
    "Inpainting": (lambda p: p.Inpainting((3, *SIZE), mask=0.5), COLOUR),
    "Demosaicing": (lambda p: p.Demosaicing((3, *SIZE)), COLOUR),
    "Blur": (lambda p: p.Blur(kernel(p), padding="valid"), COLOUR),
    "BlurFFT": (lambda p: p.BlurFFT((3, *SIZE), kernel(p)), COLOUR),
    "Downsampling": (lambda p: p.Downsampling((3, *SIZE), filter="bicubic", factor=2), COLOUR),
    "Tomography": (lambda p: p.Tomography(30, SIZE[0]), GRAY),
    "MRI": (lambda p: p.MRI(mask=MASK, img_size=SIZE), COMPLEX),
    "MultiCoilMRI": (lambda p: p.MultiCoilMRI(mask=MASK, coil_maps=coils(), img_size=SIZE), COMPLEX),
    "CompressedSensing": (lambda p: p.CompressedSensing(m=1200, img_size=(1, *SIZE)), GRAY),
    "SinglePixelCamera": (lambda p: p.SinglePixelCamera(m=1500, img_size=(1, *SIZE)), GRAY),
    "Pansharpen": (lambda p: p.Pansharpen((3, *SIZE)), COLOUR),
    "Decolorize": (lambda p: p.Decolorize(), COLOUR),
    "stacked": (stacked, COLOUR),
    "composed": (lambda p: p.Decolorize() * p.BlurFFT((3, *SIZE), kernel(p)), COLOUR),
    "nonlinear": (lambda p: p.PhaseRetrieval(p.CompressedSensing(m=1500, img_size=(1, *SIZE))), GRAY),
}


@pytest.fixture(params=CASES)
def measured(request, physics):
    """A physics, and what it measured."""
    torch.manual_seed(0)
    make, x = CASES[request.param]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        operator = make(physics)
        return operator, operator(x), x.shape


def test_a_fit_of_deepinv_s_physics_equals_a_loop_by_hand(measured):
    operator, y, shape = measured
    result = fit(operator, y, preset=PLAIN, engine="plain")
    assert result.tensor.shape == shape
    assert result.history["loss"][-1] < result.history["loss"][0]
    expected = by_hand(operator.A, y, result, PLAIN)
    assert torch.allclose(result.tensor, expected, rtol=0, atol=1e-5)


def test_a_network_of_ones_own_fits_deepinv_s_physics_as_torch_does(measured):
    """Fused, and compared with plain layers; with no batch norm, behind which rounding grows."""
    operator, y, (_, channels, height, width) = measured
    torch.manual_seed(1)
    layers = [nn.Conv2d(8, 16, 3, padding=1), nn.Softplus(), nn.Upsample(scale_factor=2)]
    network = nn.Sequential(*layers, nn.Conv2d(16, channels, 3, padding=1), nn.Sigmoid())
    z = torch.rand(1, 8, height // 2, width // 2)
    result = fit(operator, y, preset=PLAIN, network=network, z=z)
    assert torch.allclose(result.tensor, by_hand(operator.A, y, result, PLAIN, network, z), rtol=0, atol=1e-5)


def test_the_quick_preset_gives_the_same_bits_twice(measured):
    operator, y, shape = measured
    first, second = (fit(operator, y, iterations=30, seed=1) for _ in range(2))
    assert first.tensor.shape == shape
    assert torch.equal(first.tensor, second.tensor)
    assert first.history["loss"][-1] < first.history["loss"][0]


def test_it_is_a_reconstructor_of_deepinv(physics):
    x = torch.cat([COLOUR, COLOUR.flip(-1)])
    operator = physics.Inpainting((3, *SIZE), mask=0.5)
    restored = interop.DeepImagePrior(iterations=3)(operator(x), operator)
    assert restored.shape == x.shape


def test_operators_of_pylops_fit_as_they_are():
    pylops = pytest.importorskip("pylops", exc_type=ImportError)
    operator = pylops.FirstDerivative(SIZE, axis=0) + 0.1 * pylops.Identity(SIZE[0] * SIZE[1])
    operator.dims = SIZE
    y = operator.matvec(GRAY.numpy().ravel().astype(np.float64))
    result = fit(operator, y, iterations=10)
    assert result.tensor.shape == GRAY.shape
    assert result.history["loss"][-1] < result.history["loss"][0]
