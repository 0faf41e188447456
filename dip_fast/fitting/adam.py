"""Adam, with the learning rate and the number of the step in tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dip_fast.fitting.flat import flatten


class Adam:
    """Adam as PyTorch computes it, with a flag that skips a step.

    It calls the operator that ``torch.optim.Adam(fused=True)`` calls; that class imports ``torch._dynamo`` when it is
    made, which takes a second and 70 MB.

    Parameters
    ----------
    parameters : sequence of Tensor

    Attributes
    ----------
    moments : tuple of Tensor
        The first and the second moments, each flat in one piece of memory.

    References
    ----------
    D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", arXiv 1412.6980.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        first, self._first = flatten(self.parameters)
        second, self._second = flatten(self.parameters)
        self.moments = first, second

    @torch.no_grad()
    def update(self, gradients: Sequence[Tensor | None], step: Tensor, rate: Tensor, skipped: Tensor | None) -> None:
        """Update the parameters in place.

        Parameters
        ----------
        gradients : sequence of Tensor or None
            One a parameter; a parameter without one stays as it is.
        step : Tensor
            0-dim float32, counted from 1.
        rate : Tensor
            The learning rate, 0-dim float64.
        skipped : Tensor or None
            0-dim float32; at 1 nothing changes.
        """
        used = [i for i, gradient in enumerate(gradients) if gradient is not None]
        if self.parameters[0].device.type != "cpu":
            rate = rate.to(step)  # the kernels of other devices read float32
        torch._fused_adam_(
            [self.parameters[i] for i in used],
            [gradients[i].contiguous() for i in used],  # type: ignore[union-attr]
            [self._first[i] for i in used],
            [self._second[i] for i in used],
            [],
            [step] * len(used),
            lr=rate,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
            found_inf=skipped,
        )
