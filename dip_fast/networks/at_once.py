"""All layers of a network as one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dip_fast.networks.layers import is_supported

if TYPE_CHECKING:
    from dip_fast.ops.norm_layers import Program


class AtOnce:
    """What a network draws, all of whose layers are calls of the fused operators, as one call.

    The first call for images of some dtypes makes the single ones and notes them.

    Parameters
    ----------
    network : Module
        In its fused form.
    """

    def __init__(self, network: nn.Module) -> None:
        blocks = list(network.modules())[1:]
        self._parameters = [module._parameters for module in blocks if module._parameters]
        self._hooks = [hooks for module in blocks for hooks in (module._forward_hooks, module._forward_pre_hooks)]
        self._programs: dict[tuple[torch.dtype | None, ...], Program] = {}

    def __call__(self, z: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """Do what ``draw(z)`` does, which calls the layers one by one."""
        from dip_fast.ops import norm_conv, norm_layers  # here, since it loads or builds the extension

        # On a GPU steps are graphs, which need no help; and somebody may trace the layers, or watch them.
        if z.device.type != "cpu" or any(self._hooks) or torch.compiler.is_compiling() or not is_supported(z):
            return draw(z)
        parameters = [p for of_module in self._parameters for p in of_module.values() if p is not None]
        dtypes = (z.dtype, norm_conv.stored())
        program = self._programs.get(dtypes)
        if program is not None:
            return program(z, parameters) if program.is_whole else draw(z)
        program = norm_layers.Program(z, parameters)
        with norm_layers.noting(program):
            drawn = draw(z)
        program.finish(drawn)
        self._programs[dtypes] = program
        return drawn
