"""The fixed input z of a network: random, an image, or both, on grids that its model file holds exactly.

z is the concatenation of parts along the channels.  A part is stored as codes, and its values are ``codes /
denominator``: 8 bits for random values, 16 bits for images; or as float32 values, with a denominator of 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dip_fast import large
from dip_fast.errors import Argument, UsageError

DTYPES = (torch.uint8, torch.int8, torch.uint16, torch.float32)
MAX_CODE = 2**16 - 1


@dataclass(frozen=True, eq=False)
class Part:
    """Some channels of a network input: ``codes / denominator``.

    Attributes
    ----------
    codes : Tensor
        ``(1, C, H, W)``, uint8, int8, uint16 or float32.
    denominator : int
        The step of the grid is its reciprocal; 1 for float32.
    """

    codes: Tensor
    denominator: int = 1

    def __post_init__(self) -> None:
        codes = self.codes
        if codes.dtype not in DTYPES:
            raise TypeError(f"codes must be uint8, int8, uint16 or float32, got {codes.dtype}")
        if codes.dim() != 4 or codes.shape[0] != 1 or not codes.numel():
            raise ValueError(f"codes must be (1, C, H, W), got {tuple(codes.shape)}")
        if codes.dtype == torch.float32:
            if self.denominator != 1:
                raise ValueError(f"denominator must be 1 for float32 values, got {self.denominator}")
            if not bool(codes.isfinite().all()):
                raise ValueError("codes must be finite, got NaN or infinity")
        elif not 0 < self.denominator < 2**24:
            raise ValueError(f"denominator must be from 1 to 2**24 - 1, got {self.denominator}")

    def tensor(self, device: torch.device | str = "cpu") -> Tensor:
        """Return the values, ``(1, C, H, W)``, float32: each is the quotient, correctly rounded."""
        values = self.codes.to(device, torch.float32, copy=True)
        return values if self.codes.dtype == torch.float32 else values.div_(self.denominator)


@dataclass(frozen=True, eq=False)
class NetworkInput:
    """A network input z: the concatenation of its parts along the channels.

    Attributes
    ----------
    parts : tuple of Part
        Of one size.
    """

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("a network input must have a part, got none")
        sizes = [tuple(part.codes.shape[-2:]) for part in self.parts]
        if len(set(sizes)) > 1:
            raise ValueError(f"the parts of a network input must have one height and width, got {sizes}")

    @property
    def channels(self) -> int:
        """Channels of all parts together."""
        return sum(part.codes.shape[1] for part in self.parts)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.parts[0].codes.shape[-2:]
        return height, width

    @property
    def nbytes(self) -> int:
        """Bytes that a model file takes for it."""
        return sum(part.codes.nbytes for part in self.parts)

    @property
    def codes(self) -> Tensor:
        """Codes of the only part."""
        return self._only_part().codes

    @property
    def denominator(self) -> int:
        """Denominator of the only part."""
        return self._only_part().denominator

    def _only_part(self) -> Part:
        if len(self.parts) != 1:
            raise ValueError(f"this needs a network input of one part, and it has {len(self.parts)}; use z.parts")
        return self.parts[0]

    def tensor(self, device: torch.device | str = "cpu") -> Tensor:
        """Return z, ``(1, channels, H, W)``, float32: each value is the quotient, correctly rounded."""
        values = [part.tensor(device) for part in self.parts]
        return torch.cat(values, dim=1) if len(values) > 1 else values[0]

    def surrounded(self, height: int, width: int) -> NetworkInput:
        """Return the same input on a larger grid, continued around all sides; see `surround`."""
        if self.size == (height, width):
            return self
        if height < self.size[0] or width < self.size[1]:
            raise ValueError(f"height and width must be at least {self.size}, got {(height, width)}")
        rows = _mirrored(self.size[0], height, torch.device("cpu")).numpy()
        columns = _mirrored(self.size[1], width, torch.device("cpu")).numpy()
        parts = []
        for part in self.parts:
            codes = part.codes.cpu().numpy()
            made = large.empty((*codes.shape[:2], height, width), codes.dtype)
            for band in large.bands(made.shape, 2):
                made[:, :, band] = codes[:, :, rows[band]][..., columns]
            parts.append(Part(torch.from_numpy(made), part.denominator))
        return NetworkInput(tuple(parts))


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Part:
    """Uniform in [0, 0.1): k / 2560 for k = 0..255."""
    return Part(torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8), 2560)


def _gaussian(shape: tuple[int, ...], generator: torch.Generator) -> Part:
    """N(0, 1) rounded to k / 32, cut at 127 / 32, beyond which one value in 14,000 lies."""
    codes = (32 * torch.randn(shape, generator=generator)).round_().clamp_(-127, 127)
    return Part(codes.to(torch.int8), 32)


def meshgrid(size: tuple[int, int]) -> NetworkInput:
    """Make the coordinates of the pixels, ``(1, 2, H, W)``: columns and rows, each from 0 to 1."""
    rows, columns = (torch.linspace(0, 1, side, dtype=torch.float64, device="cpu") for side in size)
    return of_image(torch.stack((columns.expand(size), rows[:, None].expand(size)))[None])


DISTRIBUTIONS: dict[str, Callable[[tuple[int, ...], torch.Generator], Part]] = {
    "uniform": _uniform,
    "gaussian": _gaussian,
}


def draw(distribution: str, channels: int, size: tuple[int, int], *, seed: int) -> NetworkInput:
    """Draw a random network input, or make one of coordinates.

    Parameters
    ----------
    distribution : {"uniform", "gaussian", "meshgrid"}
        Uniform in [0, 0.1) on multiples of 1/2560, or N(0, 1) on multiples of 1/32; or see `meshgrid`.
    channels : int
        Of a random one.
    size : tuple of int
        Height and width.
    seed : int
        Seeds a generator on the CPU, so that every device gets the same input.
    """
    if distribution == "meshgrid":
        return meshgrid(size)
    if distribution not in DISTRIBUTIONS:
        raise UsageError(f"distribution must be one of {', '.join(DISTRIBUTIONS)}, meshgrid, got {distribution!r}")
    return NetworkInput((DISTRIBUTIONS[distribution]((1, channels, *size), torch.Generator().manual_seed(seed)),))


def of_image(image: Tensor | np.ndarray, bits: int = 16, *, clipped: bool = False) -> NetworkInput:
    """Make a network input from an image: a guide, features of the picture, or the picture itself.

    Parameters
    ----------
    image : Tensor or ndarray
        ``(1, C, H, W)``, in [0, 1] for 16 bits, finite for 32.  It is copied, to the CPU.
    bits : {16, 32}
        16 rounds to multiples of 1/65535; 32 keeps float32 values as they are, in twice the bytes.
    clipped : bool
        Whether 16 bits take what lies outside of [0, 1] for the end that is nearer.

    Raises
    ------
    TypeError
        For integers.
    ValueError
        For another shape, other values or other bits.
    """
    if bits not in (16, 32):
        raise ValueError(f"bits must be 16 or 32, got {bits!r}")
    whole = image.detach().to("cpu") if isinstance(image, Tensor) else torch.from_numpy(np.array(image))
    if not whole.is_floating_point():
        raise TypeError(f"image must hold floating-point values, got {whole.dtype}; scale it to [0, 1]")
    if bits == 32:
        return NetworkInput((Part(whole.to(torch.float32, copy=True)),))
    codes = large.empty(tuple(whole.shape), np.uint16)
    for rows in large.bands(codes.shape, codes.ndim - 2):
        values = whole[..., rows, :].to(torch.float64, copy=True)
        if clipped:
            values.clamp_(0, 1)
        if values.numel() and not (values.min() >= 0 and values.max() <= 1):  # NaN is in no range
            raise ValueError(
                f"image must lie in [0, 1] for bits=16, got {values.min():g} to {values.max():g}; "
                "scale it, or use bits=32"
            )
        codes[..., rows, :] = values.mul_(MAX_CODE).round_().numpy()
    return NetworkInput((Part(torch.from_numpy(codes), MAX_CODE),))


def joined(*inputs: NetworkInput) -> NetworkInput:
    """Concatenate network inputs of one size along the channels."""
    return NetworkInput(tuple(part for z in inputs for part in z.parts))


def require_contrast(name: str, values: Tensor) -> None:
    """Refuse an input in which all places are alike: batch norms of it have gradients that overflow.

    Raises
    ------
    UsageError
    """
    if bool((values == values[..., :1, :1]).all()):
        raise UsageError("{} is the same at all places, from which nothing can be drawn; give another", Argument(name))


def surround(x: Tensor, height: int, width: int) -> Tensor:
    """Continue an image around all sides to a larger size: the inverse of `crop`.

    Parameters
    ----------
    x : Tensor
        ``(..., H, W)``.
    height, width : int
        At least those of ``x``.

    Returns
    -------
    Tensor
        ``(..., height, width)``: x in the middle, mirrored at its edges without repeating the edge pixels, over and
        over where that does not suffice.  A side of one pixel is repeated.  ``crop(surround(x, ...), H, W)`` is x; of
        the size of x, it is x itself.
    """
    if (height, width) == tuple(x.shape[-2:]):
        return x
    if height < x.shape[-2] or width < x.shape[-1]:
        raise ValueError(f"height and width must be at least {tuple(x.shape[-2:])}, got {(height, width)}")
    # Mirroring moves values and computes none, so 16-bit codes go as int16, which every operation of torch knows.
    whole = x.view(torch.int16) if x.dtype == torch.uint16 else x
    rows, columns = _mirrored(x.shape[-2], height, x.device), _mirrored(x.shape[-1], width, x.device)
    surrounded = whole.index_select(-2, rows).index_select(-1, columns)
    return surrounded.view(x.dtype) if x.dtype == torch.uint16 else surrounded


def _mirrored(side: int, length: int, device: torch.device) -> Tensor:
    """Index of the pixel that stands at each place of the longer side: 0 1 2 1 0 1 2 ... with 0 where `crop` begins.

    It is computed on the device, so that a step that surrounds its input can be captured as a CUDA graph.
    """
    period = max(2 * (side - 1), 1)
    places = torch.arange(length, device=device) - (length - side) // 2
    places = places % period  # of the sign of the period: never negative
    return torch.minimum(places, period - places) if side > 1 else torch.zeros_like(places)
