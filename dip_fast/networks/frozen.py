"""Networks whose batch norms no longer look at the picture: a picture too large to be drawn at once."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from dip_fast.networks.layers import Network
from dip_fast.networks.network_input import NetworkInput
from dip_fast.programs import drawing, folding


@torch.no_grad()
def freeze(network: Network, weights: Mapping[str, Tensor], inputs: Iterable[Tensor]) -> Network:
    """Copy a network, with batch norms that normalise with the mean statistics of its images of some inputs.

    What the copy draws at a place depends on what is around it alone, so that a picture can be drawn in tiles.

    Parameters
    ----------
    network : Network
        It is left as it is.
    weights : mapping of str to Tensor
        What takes the place of its parameters, by name.
    inputs : iterable of Tensor
        Network inputs, ``(1, C, H, W)`` of any size; windows of the picture, as large as those it was fitted on.

    Returns
    -------
    Network
        In the plain engine, in ``eval`` mode.
    """
    frozen = copy.deepcopy(network).use("plain")
    frozen.load_state_dict(dict(weights))
    seen: dict[nn.BatchNorm2d, list[Tensor]] = {
        module: [] for module in frozen.modules() if isinstance(module, nn.BatchNorm2d)
    }

    def measure(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        variance, mean = torch.var_mean(args[0].double(), (0, 2, 3), correction=0)
        seen[norm].append(torch.stack((mean, variance)))

    hooks = [norm.register_forward_pre_hook(measure) for norm in seen]
    for z in inputs:
        frozen(z)
    for hook in hooks:
        hook.remove()
    for norm, statistics in seen.items():
        mean, variance = torch.stack(statistics).mean(0).to(norm.weight)
        norm.register_buffer("running_mean", mean)
        norm.register_buffer("running_var", variance)
    return frozen.eval()


def draw(network: Network, z: NetworkInput, size: tuple[int, int]) -> Tensor:
    """Draw an image of any size with a frozen network, ``(1, C, H, W)``, on the CPU."""
    program = folding.fold(network, z.surrounded(*network.input_size(*size)), size)
    return torch.from_numpy(drawing.draw(program)).permute(2, 0, 1)[None]
