"""Many layers as one call, ``dip_fast::norm_layers``.

A network calls `norm_conv2d` and `norm_upsample_conv2d` some fifty times a step, forward and back; of a small picture a
good part of the step is Python and autograd between these calls.  So they are written down once, while the network
makes them, and from then on made again by one operator, which is one function for autograd.  The results are the same,
bit for bit.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dip_fast.ops.reference import MODES, PADDING_MODES

if TYPE_CHECKING:
    from dip_fast.ops.norm_conv import NormedInput

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
NONE = -1  # of what is absent


class Program:
    """Calls of `norm_conv2d` and `norm_upsample_conv2d`, each of which reads what those before it wrote.

    Parameters
    ----------
    z : Tensor, (1, C, H, W)
        The image that the first calls read.
    parameters : sequence of Tensor
        What the calls use beside images.

    Attributes
    ----------
    rows : list of int
        What ``dip_fast::norm_layers`` takes, see csrc/schema.cpp.
    numbers : list of float
        Slope and epsilon of each call.
    is_whole : bool
        Whether the calls are all that was computed: none reads what no call wrote, and the last wrote the result.
    """

    def __init__(self, z: Tensor, parameters: Sequence[Tensor]) -> None:
        self.rows: list[int] = []
        self.numbers: list[float] = []
        self.is_whole = True
        self._held = [z]  # so that no other tensor takes the place, and the id, of one
        self._images = {id(z): 0}
        self._statistics: list[Tensor | None] = [None]  # of the images
        self._parameters = {id(parameter): index for index, parameter in enumerate(parameters)}

    def add(
        self,
        result: tuple[Tensor, Tensor],
        image: NormedInput,
        skip: NormedInput | None,
        norm: tuple[Tensor, Tensor] | None,
        weight: Tensor,
        bias: Tensor | None,
        stride_or_mode: int | str,
        padding_mode: str,
        dtype: torch.dtype | None,
        slope: float,
        eps: float,
    ) -> None:
        """Note a call; without ``norm`` it is one of `norm_conv2d`."""
        try:
            read = *self._read(image), *self._read(skip), *map(self._parameter, (*(norm or (None, None)), weight, bias))
        except KeyError:
            self.is_whole = False
            return
        self.rows += [
            int(norm is not None), *read,
            MODES.index(stride_or_mode) if isinstance(stride_or_mode, str) else stride_or_mode,
            PADDING_MODES.index(padding_mode), NONE if dtype is None else DTYPES.index(dtype),
        ]  # fmt: skip
        self.numbers += [slope, eps]
        self._images[id(result[0])] = len(self._held)
        self._statistics.append(result[1])
        self._held.append(result[0])

    def finish(self, drawn: Tensor) -> None:
        """Find out whether the last call wrote what was drawn, and forget the tensors of the calls."""
        last = self._held[-1]
        self.is_whole &= drawn.data_ptr() == last.data_ptr() and drawn.shape == last.shape
        self._held, self._statistics, self._images, self._parameters = [], [], {}, {}

    def __call__(self, z: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """Make all calls again, with another z and with parameters in the same order."""
        drawn: Tensor = torch.ops.dip_fast.norm_layers(z, parameters, self.rows, self.numbers)
        return drawn

    def _read(self, image: NormedInput | None) -> tuple[int, int, int]:
        if image is None:
            return NONE, NONE, NONE
        index = self._images[id(image.tensor)]
        if image.statistics is not None and image.statistics is not self._statistics[index]:
            raise KeyError(index)
        return index, self._parameter(image.weight), self._parameter(image.bias)

    def _parameter(self, parameter: Tensor | None) -> int:
        return NONE if parameter is None else self._parameters[id(parameter)]


class _Noting(threading.local):
    """The program that a thread writes down."""

    def __init__(self) -> None:
        self.program: Program | None = None


_noting = _Noting()


@contextmanager
def noting(program: Program) -> Iterator[None]:
    """Note all calls of this thread in a program."""
    _noting.program = program
    try:
        yield
    finally:
        _noting.program = None


def note(*call: object) -> None:
    """Note a call, if there is a program to note it in."""
    if _noting.program is not None:
        _noting.program.add(*call)  # type: ignore[arg-type]
