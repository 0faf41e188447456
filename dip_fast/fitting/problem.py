"""What is fitted, to what: the network and the objective, with what they are measured against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dip_fast import networks
from dip_fast.device.precision import drawing, is_stored_alone
from dip_fast.fitting.objectives import Objective
from dip_fast.networks.layers import full


@dataclass(frozen=True, eq=False)
class Problem:
    """A network, an objective, and where and how they are computed.

    Attributes
    ----------
    network : Network
        Maps the objective's input to an image that covers the picture.
    objective : Objective
        On the device.
    reference : Tensor or None
        The ground truth, ``(1, C, H, W)``, range [0, 1], for the PSNR in the history.
    precision : {"fp32", "tf32", "bf16"}
        Precision of a step.
    device : device
        Where all of it lies.
    """

    network: networks.Network
    objective: Objective
    reference: Tensor | None
    precision: str
    device: torch.device

    def draw(self, z: Tensor, weights: dict[str, Tensor] | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """Draw an image, in the precision of a step.

        Parameters
        ----------
        z : Tensor
            The network's input, of the size that it reads or of the image's.
        weights : dict of str to Tensor, optional
            What takes the place of the network's parameters.
        size : tuple of int, optional
            Height and width of the image; the picture's by default, the middle of the scene.

        Returns
        -------
        Tensor
            ``(1, C, H, W)``, in float32 at least.
        """
        z = networks.surround(z, *self.network.input_size(*(size or self.objective.scene)))
        if self.precision == "bf16" and not is_stored_alone(self.precision, self.device, self.network):
            z = z.bfloat16()
        with drawing(self.precision, self.device, self.network):
            output = self.network(z) if weights is None else torch.func.functional_call(self.network, weights, (z,))
        return full(networks.crop(output, *(size or self.objective.size)))
