"""`dip_fast.fit` on anybody's physics: functions, objects with A, Modules, operators on arrays."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fit_cases import TINY, target, tiny
from physics_cases import PLAIN, by_hand
from torch import nn

import dip_fast
from dip_fast import PRESETS, UsageError, fit, linear
from dip_fast.fitting import Measurement
from dip_fast.fitting.likelihoods import poisson

THREE = tiny(iterations=3, consolidation=0)
X = target(32, 36, 2)
FOURIER = torch.rand(1, 1, 32, 36, generator=torch.Generator().manual_seed(1)) < 0.5
MATRIX = torch.randn(300, 32 * 36, generator=torch.Generator().manual_seed(2)) / 17
FUNCTIONS = {
    "plain": lambda x: x,
    "fewer dimensions": lambda x: MATRIX @ x[0, 0].flatten(),
    "complex": lambda x: FOURIER * torch.fft.fft2(torch.view_as_complex(x.movedim(1, -1).contiguous()), norm="ortho"),
    "list": lambda x: [x[..., ::2], x.sum(1, keepdim=True)],
    "one number": lambda x: x.square().mean(),
    "list with a number": lambda x: [x[..., ::2], x.mean()],
    "nonlinear": lambda x: torch.fft.fft2(x).abs() + x.mean() ** 2,
}


class Physics(nn.Module):
    """As deepinv's: A, A_adjoint, a call that is random."""

    def __init__(self, seen=None):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.seen = [] if seen is None else seen

    def forward(self, x):
        raise AssertionError("the call adds noise: A is what was measured")

    def A(self, x):  # noqa: N802
        self.seen.append((self.training, self.weight.requires_grad))
        return self.weight * x.sum(1)

    def A_adjoint(self, y):  # noqa: N802
        return self.weight * y[:, None].expand(-1, 3, -1, -1)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_fit_equals_a_loop_by_hand(name):
    function = FUNCTIONS[name]
    y = function(X)
    result = fit(function, y, shape=X.shape[1:], preset=PLAIN, engine="plain")
    assert result.history["loss"][-1] < result.history["loss"][0]
    assert torch.allclose(result.tensor, by_hand(function, y, result, PLAIN), rtol=0, atol=1e-5)
    assert torch.equal(result.tensor, fit(function, y, shape=X.shape[1:], preset=PLAIN, engine="plain").tensor)


@pytest.mark.parametrize("of", [lambda y: y, lambda y: y[0], lambda y: y.double().numpy(), lambda y: (255 * y).int()])
def test_y_may_be_an_array_of_other_numbers_or_lack_sides_of_one(of):
    y = of(X)
    result = fit(lambda x: x, y, shape=X.shape[1:], preset=THREE)
    assert result.tensor.shape == X.shape


def test_a_module_is_copied_and_stays_as_it_is():
    physics = Physics()
    y = physics.A(target(16, 20)).detach()
    del physics.seen[:]
    result = fit(physics, y, preset=THREE)
    assert result.tensor.shape == (1, 3, 16, 20)  # of A_adjoint(y)
    assert physics.training
    assert physics.weight.requires_grad
    assert physics.weight.grad is None
    assert not physics.seen
    assert (True, True) not in Measurement(physics, y).physics.seen


def test_the_physics_goes_to_the_device_of_the_fit():
    measured = Measurement(Physics(), torch.ones(1, 16, 20), device="cpu")
    assert measured.to("cpu") is measured
    moved = measured.to("meta")
    assert moved.physics.weight.is_meta
    assert moved.y.is_meta
    assert not measured.y.is_meta


def test_shape_is_looked_for_and_asked_for():
    y = X[:, :1, ::2]
    with pytest.raises(UsageError, match=r"A\(x\) must have the shape of y.*\(1, 1, 8, 36\).*give the shape of x"):
        fit(lambda x: x[..., ::2, :], y, preset=THREE)
    result = fit(lambda x: x[..., ::2, :], y, shape=(32, 36), preset=THREE)
    assert result.tensor.shape == (1, 1, 32, 36)
    result = fit(lambda x: x[:, :1, ::2], y, shape=(32, 36), channels=2, preset=THREE)
    assert result.tensor.shape == (1, 2, 32, 36)
    with pytest.raises(UsageError, match="only pictures of two dimensions"):
        fit(lambda x: x, torch.ones(1, 1, 8, 8, 8), shape=(2, 8, 8, 8), preset=THREE)
    with pytest.raises(UsageError, match=r"cannot be derived.*give shape="):
        fit(FUNCTIONS["fewer dimensions"], torch.ones(300), preset=THREE)


@pytest.mark.parametrize(
    ("physics", "y", "message"),
    [
        (lambda x: x.detach(), X, r"does not depend on x.*dip_fast.linear"),
        (lambda x: torch.from_numpy(x.numpy() * 2), X, r"failed where a gradient is asked for.*dip_fast.linear"),
        (lambda x: x.numpy(), X, r"must return a tensor.*ndarray.*dip_fast.linear"),
        (lambda x: x @ torch.ones(3), X, r"A failed on x of \(1, 2, 32, 36\).*RuntimeError.*give shape="),
        (lambda x: x[:1], torch.cat([X, X]), r"y holds 2 measurements.*y\[i : i \+ 1\].*interop"),
        (lambda x: torch.fft.fft2(x), X, "must both be complex or both be real.*view_as_real"),
        (lambda x: x, X / 0 * 0, "y must be finite, got 2304 NaN"),
        (lambda x: (x - 0.5).sqrt(), X, "not finite, at an x amid limits"),
        (3, X, "must be a function of x, or have a method A, got int"),
        (lambda x: x, None, r"fit\(physics, y\)"),
        (lambda x: x, "noisy.png", "y must be a tensor"),
        (lambda x: [x, x], X, r"\(1, 2, 32, 36\), \(1, 2, 32, 36\)"),
    ],
)
def test_what_does_not_go_together_is_refused_before_the_first_step(physics, y, message):
    with pytest.raises(UsageError, match=message):
        fit(physics, y, preset=THREE, callbacks=[lambda fit: pytest.fail("a step was made")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "default"}, "begins with a random input: quick, paper"),
        ({"limits": (1, 0)}, "limits must be"),
        ({"limits": (0, 1, 2)}, "limits must be"),
        ({"noise": -2}, "noise must be a number of at least 0, got -2"),
        ({"noise": "auto"}, "noise must be a number of at least 0, got 'auto'"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"channels": 0}, "channels must be an integer of at least 1, got 0"),
        ({"shape": 32}, r"shape must be \(channels, height, width\) or \(height, width\) of x, got 32"),
        ({"z": torch.rand(4, 32, 36)}, r"z must be a tensor or an array \(1, .*, got the shape \(4, 32, 36\)"),
        ({"z": "noise"}, "z must be a tensor or an array .*, got str"),
        ({"z": np.full((1, 4, 32, 36), np.nan)}, "z must be real and finite"),
        ({"z": np.ones((1, 4, 32, 36))}, "z is the same at all places"),
        ({"z": torch.rand(1, 4, 99, 36)}, r"z must be at most \(32, 36\), what the network reads .*, got \(99, 36\)"),
        ({"callbacks": print}, "callbacks must be a list of functions of the fit, got .*print"),
        ({"callbacks": [3]}, r"callbacks must be a list of functions of the fit, got \[3\]"),
        ({"iterations": 2.5}, "iterations must be an integer of at least 1, got 2.5"),
        ({"loss": "huber"}, "loss must be one of squares, absolute, poisson"),
        ({"loss": lambda made, y: made - y}, "one real number"),
        ({"iterations": 0}, "iterations must be an integer of at least 1, got 0"),
        ({"reference": X[..., 1:]}, "reference must be real, and have the shape of x"),
        ({"network": "skip"}, "network must be a Module"),
        ({"network": nn.Conv2d(4, 1, 1)}, r"must draw an image \(1, 2, 32, 36\), got \(1, 1, 32, 36\)"),
        (
            {"network": nn.Conv2d(4, 2, 3, stride=2)},
            r"draws \(1, 2, 63, 63\) of z \(1, 4, 128, 128\); pass its input as z=",
        ),
        ({"network": nn.Upsample(scale_factor=2)}, "no parameters"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        fit(lambda x: x, X, **({"preset": THREE} | options))
    with pytest.raises(UsageError, match="limits is for fit"):
        fit(dip_fast.Identity(X), THREE, limits=(0, 1))


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_no_unit_matters(unit):
    """Raw data of a scanner are of any size; neither Adam's epsilon nor the sigmoid may stop a fit of them."""
    limits = (0.0, unit)
    function = FUNCTIONS["fewer dimensions"]
    result = fit(function, unit * function(X), shape=(32, 36), limits=limits, preset=tiny(iterations=9))
    expected = fit(function, function(X), shape=(32, 36), limits=(0.0, 1.0), preset=tiny(iterations=9))
    assert np.allclose(result.history["loss"], expected.history["loss"], rtol=1e-2)
    assert np.isclose(fit(lambda x: x, unit * X, preset=THREE).limits[1], max(1.0, unit), rtol=0.5) == (unit >= 1)


def test_limits_are_chosen_by_a_rough_solution():
    assert fit(lambda x: x, X, preset=THREE).limits == (0, 1)
    assert fit(lambda x: x, X + 0.3 * torch.randn_like(X), preset=THREE).limits == (0, 1)  # noise is no range
    low, high = fit(
        FUNCTIONS["complex"], FUNCTIONS["complex"](1e-5 * (X - 0.5)), shape=X.shape[1:], preset=THREE
    ).limits
    assert -2e-5 < low < -2e-6
    assert 2e-6 < high < 2e-5
    counts = 40 * X
    low, high = fit(lambda x: x, counts, loss="poisson", preset=THREE).limits
    assert low == 0
    assert high > 40


def test_the_reference_is_measured_in_the_range_of_the_limits():
    result = fit(lambda x: x, 10 * X, limits=(0, 10), reference=10 * X, preset=tiny(iterations=2, consolidation=0))
    expected = fit(lambda x: x, X, limits=(0, 1), reference=X, preset=tiny(iterations=2, consolidation=0))
    assert np.allclose(result.history["psnr"], expected.history["psnr"], atol=1e-3)


def test_noise_decides_on_the_perturbation():
    options = {"shape": X.shape[1:]}
    unknown = Measurement(lambda x: x, X, **options)
    assert unknown.noise() == pytest.approx(0.1)
    physics = Physics()
    physics.noise_model = nn.Module()
    physics.noise_model.sigma = torch.tensor([0.02])
    y = torch.full((1, 16, 20), 0.5)
    assert Measurement(physics, y).noise() == pytest.approx(0.02)
    assert Measurement(physics, 1000 * y, noise=20).noise() == pytest.approx(0.02)


def test_poisson_is_the_likelihood_at_any_gain():
    counts = torch.poisson(30 * X[:, :1], generator=torch.Generator().manual_seed(0))
    rates = (30 * X[:, :1]).requires_grad_()
    loss = poisson([rates], [counts])
    (gradient,) = torch.autograd.grad(loss, rates)
    direct = rates.detach().clone().requires_grad_()
    likelihood = -torch.distributions.Poisson(direct).log_prob(counts).mean()
    (wanted,) = torch.autograd.grad(likelihood, direct)
    some = rates.detach() > 0.1
    assert torch.allclose((gradient / gradient.abs().max())[some], (wanted / wanted.abs().max())[some], atol=1e-4)
    assert poisson([7 * rates], [7 * counts]).item() == pytest.approx(loss.item(), rel=1e-4)
    assert float(poisson([counts], [counts])) == pytest.approx(0, abs=1e-5)
    below = torch.full_like(counts, -1.0, requires_grad=True)
    assert bool((torch.autograd.grad(poisson([below], [counts]), below)[0] < 0).all())  # it leads back
    with pytest.raises(UsageError, match="for counts, and y has values below zero"):
        fit(lambda x: x, -counts, loss="poisson", preset=THREE)


def test_a_loss_of_ones_own_reads_what_a_returns():
    seen = []

    def loss(made, y):
        seen.append((type(made), type(y), len(y)))
        return sum((a - b).abs().mean() for a, b in zip(made, y, strict=True))

    y = FUNCTIONS["list"](X)
    assert fit(FUNCTIONS["list"], y, shape=X.shape[1:], loss=loss, preset=THREE).steps == 3
    assert set(seen) == {(list, list, 2)}
    assert fit(FUNCTIONS["list"], y, shape=X.shape[1:], loss="absolute", preset=THREE).steps == 3


def test_callbacks_iterations_and_seed_are_those_of_any_fit():
    steps = []
    result = fit(lambda x: x, X, preset=TINY, iterations=4, callbacks=[lambda fit: steps.append(fit.steps)], seed=3)
    assert steps[:4] == [1, 2, 3, 4]
    assert not torch.equal(result.tensor, fit(lambda x: x, X, preset=TINY, iterations=4).tensor)
    assert fit(dip_fast.Identity(X), replace(PRESETS["quick"], recipe=TINY), iterations=2).steps == 2


def test_an_operator_on_arrays_has_its_adjoint_as_gradient():
    matrix = MATRIX.numpy()
    operator = linear(lambda x: matrix @ x.ravel(), lambda y: (matrix.T @ y).reshape(32, 36), (32, 36))
    y = operator.A(X[:, :1])
    assert not y.requires_grad
    x = X[:, :1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(operator.A(x).square().sum(), x)
    assert torch.allclose(gradient.flatten(), 2 * MATRIX.T @ (MATRIX @ x.detach().flatten()), rtol=1e-3, atol=1e-3)
    result = fit(operator, y.numpy(), preset=PLAIN, engine="plain")
    assert torch.allclose(result.tensor, by_hand(operator.A, y, result, PLAIN), rtol=0, atol=1e-5)


def test_an_operator_on_arrays_may_be_complex():
    def adjoint(y):
        return np.fft.ifft2(y, norm="ortho")

    operator = linear(lambda x: np.fft.fft2(x, norm="ortho"), adjoint, (1, 2, 32, 36))
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(torch.view_as_real(operator.A(x)).square().sum(), x)
    assert torch.allclose(gradient, 2 * X, atol=1e-5)
    assert fit(operator, operator.A(X), preset=THREE).tensor.shape == X.shape


class Matvec:
    """As pylops and SciPy have it."""

    dims = (32, 36)

    def matvec(self, x):
        return MATRIX.double().numpy() @ x

    def rmatvec(self, y):
        return MATRIX.double().numpy().T @ y


def test_operators_of_pylops_fit_as_they_are():
    assert fit(Matvec(), Matvec().matvec(X[0, 0].numpy().ravel()), preset=THREE).tensor.shape == (1, 1, 32, 36)
    operator = linear(Physics(), shape=(3, 16, 20))
    assert operator.A(torch.ones(1, 3, 16, 20)).shape == (1, 16, 20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((lambda x: 2 * x, lambda y: y, (8, 8)), "is 0.5 times.*check=False"),
        ((lambda x: x, None, (8, 8)), "needs A and A_adjoint"),
        ((lambda x: x, lambda y: y), "give shape="),
        ((lambda x: x, lambda y: y, (8,)), "shape must be"),
    ],
)
def test_half_an_operator_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        linear(*arguments)
    assert linear(lambda x: 2 * x, lambda y: y, (8, 8), check=False).img_size == (1, 8, 8)


def test_numbers_of_numpy_and_arrays_are_taken_as_pythons_own():
    z = target(32, 36, 4)
    options = {"iterations": np.int64(2), "seed": np.int32(1), "noise": np.float32(0.25), "z": z.numpy()}
    found = fit(lambda x: x, X, preset=THREE, **options)
    assert torch.equal(found.tensor, fit(lambda x: x, X, preset=THREE, iterations=2, seed=1, noise=0.25, z=z).tensor)


def test_any_module_can_be_the_network():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.Softplus(), nn.Upsample(scale_factor=2), nn.Conv2d(8, 2, 3, padding=1)
    )
    before = [parameter.clone() for parameter in network.parameters()]
    z = torch.rand(1, 4, 16, 18)
    result = fit(lambda x: x, X, network=network, z=z, preset=PLAIN)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))  # a copy was fitted
    assert result.network.is_fused() == (dip_fast.ops.extension.load() is not None)
    assert result.limits == (0, 1)
    assert torch.allclose(result.network(z).detach(), result.tensor, atol=1e-5)
    assert torch.allclose(result.tensor, by_hand(lambda x: x, X, result, PLAIN, network, z), rtol=0, atol=1e-5)


def test_a_network_of_ones_own_reads_sides_that_it_can_halve_and_keeps_its_buffers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Conv2d(4, 8, 3, stride=2, padding=1)
            self.norm = nn.BatchNorm2d(8)  # with running statistics
            self.up = nn.ConvTranspose2d(8, 3, 2, stride=2)
            self.skip = nn.Conv2d(4, 3, 1)

        def forward(self, z):
            return torch.sigmoid(self.up(self.norm(self.down(z)).relu()) + self.skip(z))

    y = target(17, 21)
    result = fit(dip_fast.Identity(y), tiny(iterations=2), network=Net())
    assert result.z.size == (18, 22)
    assert result.tensor.shape == y.shape


def test_deepinv_s_interface_fits_one_after_the_other():
    physics = Physics()
    x = torch.cat([target(16, 20), target(16, 20, seed=1)])
    y = physics.A(x).detach()
    model = dip_fast.interop.DeepImagePrior(preset=THREE)
    restored = model(y, physics)
    assert restored.shape == x.shape
    assert torch.equal(restored[1:], fit(physics, y[1:], preset=THREE).tensor)
    assert len(model.results) == 2


def test_a_model_file_draws_in_the_units_of_the_physics(tmp_path):
    result = fit(lambda x: x, 300 * X[:, :1] - 100, preset=THREE)
    dip_fast.export(result, tmp_path / "model.onnx")
    drawn = dip_fast.replay(tmp_path / "model.onnx")
    low, high = result.limits
    assert high > 200
    assert np.allclose(drawn[..., 0] if drawn.ndim == 3 else drawn, result.tensor[0, 0], atol=2e-5 * (high - low))
