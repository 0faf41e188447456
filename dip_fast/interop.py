"""The interfaces of other packages on top of this one."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn

from dip_fast.fitting.interface import fit
from dip_fast.fitting.measurement import mapped
from dip_fast.fitting.results import Result
from dip_fast.presets import Preset, Recipe


class DeepImagePrior(nn.Module):
    """A model in the manner of deepinv: ``x_hat = model(y, physics)``, fitted anew at each call.

    Parameters
    ----------
    preset : str, Preset or Recipe, optional
        See `dip_fast.fit`, as for the other options.
    **options
        Of `dip_fast.fit`: ``iterations``, ``limits``, ``loss``, ``seed``, ``device`` and so on.

    Attributes
    ----------
    results : list of Result
        Those of the last call, one a measurement.

    Notes
    -----
    Each measurement of a batch is fitted alone, with the same seed.  A physics whose own parameters are a batch, one
    mask an image for example, is to be called with one measurement at a time.

    Examples
    --------
    >>> import deepinv as dinv  # doctest: +SKIP
    >>> physics = dinv.physics.Inpainting((3, 64, 64), mask=0.5)  # doctest: +SKIP
    >>> model = dip_fast.interop.DeepImagePrior(preset="quick")  # doctest: +SKIP
    >>> x_hat = model(physics(x), physics)  # doctest: +SKIP
    """

    def __init__(self, preset: str | Preset | Recipe | None = None, **options: Any) -> None:
        super().__init__()
        self.preset, self.options = preset, options
        self.results: list[Result] = []

    def forward(self, y: Any, physics: Any, **kwargs: Any) -> Tensor:
        """Restore what a physics measured, ``(B, channels, height, width)``, on the device of y.

        Parameters
        ----------
        y : Tensor or list of Tensor
            A batch of measurements.
        physics : object
            As in `dip_fast.fit`.
        **kwargs
            Ignored, as deepinv's models do with what they have no use for.
        """
        held = getattr(y, "x", y)
        first = held[0] if isinstance(held, list | tuple) else held
        self.results = []
        for index in range(first.shape[0]):
            one = mapped(operator.itemgetter(slice(index, index + 1)), y)
            self.results.append(fit(physics, one, preset=self.preset, **self.options))
        return torch.cat([result.tensor for result in self.results]).to(first.device)
