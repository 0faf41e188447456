"""What the tests of `dip_fast.fit` on anybody's physics share."""

from dataclasses import replace

import torch
from fit_cases import TINY

from dip_fast import networks
from dip_fast.device.modes import drawn_from
from dip_fast.fitting.measurement import entries
from dip_fast.fitting.reductions import mean_square
from dip_fast.fitting.start import streams

PLAIN = replace(
    TINY, options=replace(TINY.options, perturbation=0.0, averaging=0.0, stop="never", consolidation=0, iterations=30)
)  # the answer is the network as the last step left it


def by_hand(function, y, result, recipe, network=None, z=None):
    """What a loop in plain torch makes of ``function`` and ``y``, with the network and Adam of a fit."""
    channels, height, width = result.tensor.shape[1:]
    for_weights, for_input, _ = streams(0)
    if network is None:
        with drawn_from(torch.Generator().manual_seed(for_weights)):
            network = networks.build(recipe.network, recipe.in_channels, channels, **recipe.network_options)
        size = network.input_size(height, width)
        z = networks.network_input.draw(recipe.distribution, recipe.in_channels, size, seed=for_input).tensor()
    low, high = result.limits
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    scale = sum(float(entry.double().square().mean()) for entry in entries(y))
    for step in range(1, recipe.options.iterations + 1):
        optimizer.param_groups[0]["lr"] = recipe.options.learning_rate_at(step)
        x = low + (high - low) * networks.crop(network(z), height, width)
        errors = [mean_square(a, b) for a, b in zip(entries(function(x)), entries(y), strict=True)]
        optimizer.zero_grad()
        (torch.stack(errors).sum() / scale).backward()
        optimizer.step()
    with torch.no_grad():
        return low + (high - low) * networks.crop(network(z), height, width)
