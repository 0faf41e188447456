"""Two drawn pictures compared, and a model file with what it recorded when it was written.  Needs numpy alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dip_fast import large
from dip_fast.errors import DipFastError
from dip_fast.models.packing import digest
from dip_fast.names import counted
from dip_fast.pictures import Kind
from dip_fast.programs.program import Program, part_name

if TYPE_CHECKING:
    from dip_fast.models.model import Model

# Between engines, which add in another order.  Worst seen, of a fit of one step: 9.8e-5 (docs/notes/export.md); of full
# fits 4.2e-5, of a flat frame with noise of 2 levels, else 2e-5.
FLOAT_TOLERANCE = 1e-4  # of the range
FRACTION_TOLERANCE = 0.005  # of the 8-bit values that may be a level apart


def tolerance(kind: Kind) -> dict[str, Any]:
    """Return how far the picture of another engine, or of another machine, may be off.

    A float output that is off by 1e-4 of the range can move a sample to the next level, but not farther, in 8 bits, and
    seldom; in 16 bits seven levels far, and often; float samples are the float output.
    """
    low, high = kind.value_range
    levels = None if kind.is_float else math.ceil(FLOAT_TOLERANCE * (high - low))
    return {
        "float": FLOAT_TOLERANCE,
        "levels": levels,
        "fraction": FRACTION_TOLERANCE if kind.dtype == "uint8" else 1.0,
    }


@dataclass(frozen=True)
class Difference:
    """The difference between one drawn picture and another.

    Attributes
    ----------
    same : bool
        Whether the samples agree byte for byte.
    within : bool
        Whether they are within the tolerance.
    largest : float
        The largest difference of two samples, in samples' units: levels of an integer picture.
    samples, pixels : int
        The numbers of samples and of pixels that differ.
    fraction : float
        The part of all samples that differs.
    worst : tuple of int, optional
        The row, column and channel, from 0, of the largest difference.
    box : tuple of int, optional
        The first and last row, first and last column of the pixels that differ.
    """

    same: bool
    within: bool
    largest: float
    samples: int
    pixels: int
    fraction: float
    worst: tuple[int, int, int] | None
    box: tuple[int, int, int, int] | None

    def text(self) -> str:
        """Describe the difference in words."""
        if self.same or self.worst is None or self.box is None:
            return "no sample differs"
        row, column, channel = self.worst
        top, bottom, left, right = self.box
        return (
            f"{counted(self.pixels, 'pixel')} ({self.fraction:.3%} of the values) "
            f"{'differs' if self.pixels == 1 else 'differ'}, by {self.largest:g} at most "
            f"(row {row}, column {column}, channel {channel}), all in rows {top}-{bottom}, columns {left}-{right}"
        )


def compare(output: np.ndarray, expected: np.ndarray, kind: Kind, allowed: dict[str, Any]) -> Difference:
    """Compare a float output with the samples that were drawn from another one.

    Parameters
    ----------
    output : ndarray
        float32, ``(H, W, C)``, in the picture's range.
    expected : ndarray
        Samples, of the picture's dtype.
    kind : Kind
        The kind of both pictures.
    allowed : dict
        The bounds that `tolerance` returned.

    Notes
    -----
    The other float output, ``e``, is not at hand; but it was rounded to ``expected``, so it lies within half a level
    of it, and ``|output - e| <= t`` implies ``|output - expected| <= t + 1/2``.  This must hold beside the bounds on
    levels.
    """
    low, high = kind.value_range
    half = 0.5 if allowed["levels"] is not None else 0.0
    bounds = (-np.inf, np.inf)
    if half:
        bounds = (0, 1) if kind.dtype == "bool" else (np.iinfo(kind.dtype).min, np.iinfo(kind.dtype).max)
    off, largest, samples, pixels, worst = 0.0, 0.0, 0, 0, None
    in_rows, in_columns = (np.zeros(length, bool) for length in output.shape[:2])
    for rows in large.bands(output.shape):
        part = expected[rows].astype(np.float64)  # no difference of samples is rounded, or wraps around
        drawn = kind.rounded(output[rows])
        distance, differs = np.abs(drawn.astype(np.float64) - part), drawn != expected[rows]
        off = max(off, float(np.abs(np.clip(output[rows].astype(np.float64), *bounds) - part).max()))
        if differs.any() and (worst is None or distance.max() > largest):
            row, column, channel = (int(i) for i in np.unravel_index(int(distance.argmax()), distance.shape))
            worst = (rows.start + row, column, channel)
        largest = max(largest, float(distance.max()))
        hit = differs.any(axis=2)
        samples, pixels = samples + int(differs.sum()), pixels + int(hit.sum())
        in_rows[rows] = hit.any(axis=1)
        in_columns |= hit.any(axis=0)
    # The float output itself may be off by one rounding of float32.
    rounding = float(np.spacing(np.float32(max(abs(low), abs(high)))))
    fraction, levels = samples / output.size, allowed["levels"]
    near = off <= half + allowed["float"] * (high - low) + rounding
    return Difference(
        same=not samples,
        within=near and (levels is None or (largest <= levels and fraction <= allowed["fraction"])),
        largest=largest,
        samples=samples,
        pixels=pixels,
        fraction=fraction,
        worst=worst,
        box=(*_ends(in_rows), *_ends(in_columns)) if samples else None,
    )


def _ends(found: np.ndarray) -> tuple[int, int]:
    """Find the first and the last place."""
    places = np.flatnonzero(found)
    return int(places[0]), int(places[-1])


def _farthest(one: np.ndarray, other: np.ndarray) -> float:
    """Compute the largest difference of two pictures in float64, a few rows at a time: they may be large."""
    return max(
        float(np.abs(one[rows].astype(np.float64) - other[rows].astype(np.float64)).max())
        for rows in large.bands(one.shape)
    )


def require_alike(output: np.ndarray, expected: np.ndarray, kind: Kind, name: str) -> None:
    """Check that an engine draws what PyTorch draws, within the tolerance of floats.

    Parameters
    ----------
    output, expected : ndarray
        float32, ``(H, W, C)``, in the picture's range: the engine's picture, and PyTorch's.
    kind : Kind
        The kind of both pictures.
    name : str
        The engine's name in messages.

    Raises
    ------
    DipFastError
        If they differ by more; it says by how much.

    Notes
    -----
    Both float pictures are at hand, so theirs is the whole test: it implies the bound on levels.  How many samples
    differ says nothing more, as a flat area that lies between two levels may be rounded up by one engine and down by
    the other, all of it.
    """
    low, high = kind.value_range
    allowed = tolerance(kind)
    if output.shape != expected.shape or not is_finite(output):
        raise DipFastError(f"{name} drew no picture")
    largest = _farthest(output, expected) / (high - low)
    if largest > allowed["float"]:
        difference = compare(output, kind.rounded(expected), kind, allowed)
        raise DipFastError(
            f"{name} drew another picture than PyTorch does: off by {largest:.2g} of the range "
            f"(allowed: {allowed['float']:g}); {difference.text()}"
        )


def is_finite(picture: np.ndarray) -> bool:
    """Whether no sample of a picture is NaN or infinite."""
    return all(bool(np.isfinite(part).all()) for part in large.parts(picture))


def are_same(one: Program, other: Program) -> bool:
    """Whether two programs are one, bit for bit, so that they draw the same picture."""
    arrays, others = _every_array(one), _every_array(other)
    return (
        one.outline() == other.outline()
        and arrays.keys() == others.keys()
        and all(_are_same_bits(arrays[name], others[name]) for name in arrays)
    )


def _every_array(program: Program) -> dict[str, np.ndarray]:
    """List the arrays by name, with those of z, of the known samples and of the blend."""
    arrays = program.arrays | {part_name(i): part.codes for i, part in enumerate(program.inputs)}
    if program.known is not None:
        arrays |= {"known.mask": program.known[0], "known.samples": program.known[1]}
    if program.blend is not None:
        arrays["blend.samples"] = program.blend.samples
    return arrays


def _are_same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    pairs = zip(large.parts(one), large.parts(other), strict=True)
    return all(
        np.array_equal(np.ascontiguousarray(a).view(np.uint8), np.ascontiguousarray(b).view(np.uint8)) for a, b in pairs
    )


@dataclass(frozen=True)
class Verdict:
    """The outcome of `verify`.

    Attributes
    ----------
    verdict : {"same", "within tolerance", "differs"}
        The outcome in a word or two.
    text : str
        The outcome in a sentence.
    difference : Difference
        The difference from the recorded picture.
    """

    verdict: str
    text: str
    difference: Difference


def verify(model: Model, output: np.ndarray) -> Verdict:
    """Compare a picture that was drawn now with the one that was recorded at export.

    Parameters
    ----------
    model : Model
        The file.
    output : ndarray
        The picture that it draws now: float32 ``(H, W, C)``, in its range.
    """
    hashes = model.metadata["sha256"]
    difference = compare(output, model.pixels, model.kind, model.metadata["tolerance"])
    if digest(model.pixels) != hashes["pixels"] or (
        model.program is not None and digest(*(part.codes for part in model.program.inputs)) != hashes["z"]
    ):
        text = "the file does not hold what its own hashes say: it was changed after it was written"
        return Verdict("differs", text, difference)
    if difference.same:
        if digest(output) == hashes["float_output"]:
            return Verdict("same", "the same bits as at export, pixels and float output", difference)
        return Verdict("same", "the same pixels as at export; the float output differs by rounding", difference)
    if difference.within:
        return Verdict("within tolerance", f"within the tolerance for other machines: {difference.text()}", difference)
    return Verdict("differs", difference.text(), difference)


def difference_picture(samples: np.ndarray, expected: np.ndarray, kind: Kind) -> bytes:
    """Encode where two pictures differ, as an 8-bit PNG: black where they agree, white where they differ most."""
    from dip_fast.pictures import raster

    distance = np.abs(samples.astype(np.float64) - expected.astype(np.float64))
    if kind.is_float or distance.max() == 0:
        scaled = distance * (255 / max(distance.max(), 1e-300))
    else:  # a single level must be visible
        scaled = np.where(distance > 0, 63 + 192 * distance / distance.max(), 0)
    return raster.encode_png(np.rint(scaled).astype(np.uint8))
