"""`dip_fast.fit`: one function for any forward operator, degradation or objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dip_fast import networks
from dip_fast.device import devices
from dip_fast.device.modes import fresh_state
from dip_fast.errors import UsageError
from dip_fast.fitting.callbacks import shown
from dip_fast.fitting.degradations import Degradation
from dip_fast.fitting.loop import Fit
from dip_fast.fitting.measurement import Measurement, as_measured
from dip_fast.fitting.objectives import Objective
from dip_fast.fitting.results import Result
from dip_fast.fitting.start import deep_image_prior, prepare, streams
from dip_fast.networks.network_input import NetworkInput, Part, draw, require_contrast
from dip_fast.networks.own import OwnNetwork
from dip_fast.presets import PRESETS, Preset, Recipe, recipe_of
from dip_fast.values import integer


@fresh_state()
def fit(
    target: Any,
    y: Any = None,
    *,
    shape: Sequence[int] | None = None,
    channels: int | None = None,
    limits: tuple[float, float] | None = None,
    loss: str | Callable[[Any, Any], Tensor] | None = None,
    noise: float | None = None,
    preset: str | Preset | Recipe | None = None,
    network: nn.Module | None = None,
    z: Tensor | np.ndarray | NetworkInput | None = None,
    iterations: int | None = None,
    seed: int = 0,
    device: torch.device | str = "auto",
    engine: str = "auto",
    precision: str = "tf32",
    reference: Any = None,
    callbacks: Sequence[Callable[[Fit], None]] = (),
    progress: bool = False,
) -> Result:
    """Fit an untrained network to what any forward operator measured: ``fit(physics, y)``.

    Minimises ``mean |A(x) - y|^2 / mean |y|^2`` with ``x = low + (high - low) f(z)`` over the weights of a network f,
    at a fixed random z.

    Parameters
    ----------
    target : object, callable, Degradation or Objective
        The physics: an object with a method ``A``, as every physics of deepinv has; a function or Module in torch; or
        a linear operator with ``matvec`` and ``rmatvec``, as those of pylops.  A takes a real tensor ``(1, channels,
        height, width)`` and returns what y is.  A Module is copied to the device.  `dip_fast.linear` makes a physics of
        an operator that autograd does not know.
        Or a `Degradation`, or an `Objective` of one's own; these hold their y.
    y : Tensor, ndarray, or list of them
        What was measured: any shape, complex numbers too, or a list where A returns one.  After a Degradation or an
        Objective a preset may stand in its place.
    shape : tuple of int, optional
        ``(channels, height, width)`` or ``(height, width)`` of x.  By default that of ``physics.A_adjoint(y)``, then
        ``physics.img_size``, then that of y: the first for which A(x) has the shape of y.
    channels : int, optional
        Channels of x; 2 for a complex picture whose A takes real and imaginary part.
    limits : tuple of float, optional
        Least and largest value of x.  By default (0, 1) where a rough solution of least squares lies about there, else
        its range with a quarter of it at either end; with a ``network`` of one's own (0, 1), which changes nothing.
    loss : {"squares", "absolute", "poisson"} or callable, optional
        ``"poisson"`` is the likelihood of counts, at any gain.  A function takes A(x) and y, and returns a scalar.
    noise : float, optional
        Standard deviation of the noise in y, which decides on the perturbation of z; by default that of
        ``physics.noise_model``.
    preset : str, Preset or Recipe, optional
        One whose fit begins with a random input; ``"quick"`` on a CPU and ``"paper"`` on a GPU by default.
    network : Module, optional
        What is fitted in place of the preset's network, from the weights that it has; it is copied.  Its upsamplings
        run fused where `dip_fast.fuse` can fuse them.
    z : Tensor or ndarray, optional
        The network's fixed input, ``(1, C, h, w)``, not all one value; drawn by default.
    iterations : int, optional
        Most steps; the preset's by default.
    seed : int
        The same seed gives the same bits, on the same machine with the same number of threads.
    device : device or str
        ``"auto"`` is the GPU where there is a usable one; for physics that is no Module, the device of y.
    engine : {"auto", "fused", "plain"}
        How the network is computed; ``auto`` is fused where the network has a fused form here.
    precision : {"tf32", "fp32", "bf16"}
        Precision of the products in the steps, on a GPU, and of images; see `Fit`.
    reference : Tensor or ndarray, optional
        Ground truth of the shape of x, for the PSNR in the history: at a data range of the limits.
    callbacks : sequence of callable
        Called with the `Fit` after each step, or less often, see `Fit.run`; ``fit.interrupt()`` ends it.
    progress : bool
        Whether to show a bar, on a terminal or in a notebook.

    Returns
    -------
    Result
        ``result.tensor`` is x, in the units of the physics.

    Raises
    ------
    DipFastError
        If the loss goes wrong again and again.
    UsageError
        If A and y do not belong together, A has no gradient, or the fused engine, the device or the precision is not
        available here, or there is not enough memory.

    References
    ----------
    D. Ulyanov, A. Vedaldi, V. Lempitsky, "Deep Image Prior", arXiv 1711.10925.

    Examples
    --------
    >>> import torch
    >>> import dip_fast
    >>> row_sums = lambda x: torch.stack((x.sum(2), x.sum(3)))
    >>> y = row_sums(torch.rand(1, 1, 16, 16))
    >>> dip_fast.fit(row_sums, y, shape=(1, 16, 16), iterations=3).tensor.shape
    torch.Size([1, 1, 16, 16])
    """
    seed = integer("seed", seed, least=0)
    where = devices.choose(_default_device(target, y) if device == "auto" else device)
    if isinstance(target, Degradation | Objective):
        about_y = {"shape": shape, "channels": channels, "limits": limits, "loss": loss, "noise": noise}
        if given := [name for name, value in about_y.items() if value is not None]:
            raise UsageError(f"{given[0]} is for fit(physics, y); a {type(target).__name__} has its own")
        preset = y if preset is None else preset
    else:
        target = _measurement(
            target, y, shape=shape, channels=channels, limits=_limits(limits, network), loss=loss, noise=noise,
            device=where,
        )  # fmt: skip
    recipe = _recipe(target, preset, where, iterations)
    objective, own = _objective(target, recipe, network, z, seed)
    limits = getattr(target, "limits", (0.0, 1.0))
    run = prepare(
        objective, recipe, seed=seed, device=where, engine=engine, precision=precision, network=own,
        reference=_reference(reference, objective, limits),
    )  # fmt: skip
    with shown(run, callbacks, progress) as called:
        run.run(called)
    return replace(run.result(), limits=limits)


def _default_device(target: Any, y: Any) -> torch.device | str:
    """Choose the GPU, unless what the physics reads lies where nobody can move it from."""
    if isinstance(target, nn.Module | Degradation | Objective):
        return "auto"
    held = getattr(y, "x", y)
    first = held[0] if isinstance(held, list | tuple) and held else held
    return first.device if isinstance(first, Tensor) else "cpu"


def _measurement(physics: Any, y: Any, **options: Any) -> Measurement:
    if y is None or isinstance(y, Recipe | Preset):
        raise UsageError("fit needs what was measured: fit(physics, y)")
    return Measurement(physics, y, **options)


def _limits(limits: tuple[float, float] | None, network: nn.Module | None) -> tuple[float, float] | None:
    """Leave what a network of one's own draws as it is, unless limits are given."""
    return (0.0, 1.0) if limits is None and network is not None else limits


def _recipe(target: Any, preset: str | Preset | Recipe | None, device: torch.device, iterations: int | None) -> Recipe:
    """Find the recipe, with its iterations, and refuse one that does not go with the target."""
    if preset is None:
        preset = "quick" if device.type == "cpu" else "paper"
    recipe = recipe_of(preset)
    if recipe.masking is not None and not isinstance(target, Objective):
        names = ", ".join(name for name, each in PRESETS.items() if each.recipe.masking is None)
        raise UsageError(f"preset must be one whose fit begins with a random input: {names}; this one hides samples")
    if iterations is None:
        return recipe
    iterations = integer("iterations", iterations, least=1)
    return replace(recipe, options=replace(recipe.options, iterations=iterations))


def _objective(
    target: Degradation | Objective, recipe: Recipe, network: nn.Module | None, z: Any, seed: int
) -> tuple[Objective, OwnNetwork | None]:
    """Make the objective, and the network where it is the user's own."""
    z = None if z is None else _given_input(z)
    if isinstance(target, Objective):
        if z is not None:
            raise UsageError("z is for fit(physics, y) and degradations; an Objective has its own")
        z = target.z
    if network is None:
        own = None
    elif isinstance(network, nn.Module):
        own = OwnNetwork(network, target.channels, target.size, None if z is None else _beside(z.tensor(), network))
        z = z or draw(recipe.distribution, own.in_channels, own.input_size(*target.size), seed=streams(seed)[1])
        if z.channels != own.in_channels:  # coordinates are two, whatever the network reads
            raise UsageError(f"network reads {own.in_channels} channels, and its input has {z.channels}; pass z=")
    else:
        raise UsageError(f"network must be a Module, got {type(network).__name__}; preset= names a network of ours")
    if isinstance(target, Objective):
        return target, own
    if z is not None and own is None:
        most = networks.input_size(recipe.network, target.scene, **recipe.network_options)
        if z.size[0] > most[0] or z.size[1] > most[1]:
            raise UsageError(f"z must be at most {most}, what the network reads for this picture, got {z.size}")
    if own is not None:  # what it draws is the answer
        recipe = replace(recipe, options=replace(recipe.options, rounds=0))
    return deep_image_prior(target, recipe, seed=seed, z=z), own


def _given_input(z: Any) -> NetworkInput:
    """Make a network input of a tensor or an array."""
    if not isinstance(z, NetworkInput):
        if not isinstance(z, Tensor | np.ndarray) or z.ndim != 4 or z.shape[0] != 1 or not all(z.shape):
            got = f"the shape {tuple(z.shape)}" if isinstance(z, Tensor | np.ndarray) else type(z).__name__
            raise UsageError(f"z must be a tensor or an array (1, channels, height, width), got {got}")
        values = as_measured(z).cpu()
        if values.is_complex() or not bool(values.isfinite().all()):
            raise UsageError("z must be real and finite")
        z = NetworkInput((Part(values),))
    require_contrast("z", z.tensor())
    return z


def _beside(z: Tensor, network: nn.Module) -> Tensor:
    """Copy z to where a network lies."""
    weight = next(network.parameters(), z)
    return z.to(weight.device)


def _reference(reference: Any, objective: Objective, limits: tuple[float, float]) -> Tensor | None:
    """Convert the ground truth to the range of the network."""
    if reference is None:
        return None
    shape = (objective.pictures, objective.channels, *objective.size)
    found = as_measured(reference)
    if found.numel() != np.prod(shape) or found.is_complex() or found.shape[-2:] != objective.size:
        raise UsageError(f"reference must be real, and have the shape of x, {shape}, got {tuple(found.shape)}")
    low, high = limits
    return (found.reshape(shape) - low) / (high - low)
