"""Programs drawn in tiles: a large picture in memory that does not grow with it.  Needs numpy alone.

A program has no statistics of the whole picture, so each sample is a function of what lies around its place in z.  A
tile that reaches as far beyond its own part draws the same samples as the whole would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from dip_fast import large
from dip_fast.programs.program import INPUT, Layer, Program

SIDE = 1024  # of a tile; a picture of no more pixels than a square of it is drawn whole
LOOKED_AT = 3  # tiles that `draws` compares


class Tile(NamedTuple):
    """A part of a picture, and the window of z that it is drawn from.

    Attributes
    ----------
    window : tuple of slice
        Rows and columns of z.
    place : tuple of slice
        Rows and columns of what is drawn whole that the tile is for, in the window.
    """

    window: tuple[slice, slice]
    place: tuple[slice, slice]


def reach(program: Program) -> tuple[int, int] | None:
    """Find how far around its place in z a sample of the picture sees, and what the places of windows are multiples of.

    Returns
    -------
    tuple of int or None
        None where the picture is not drawn at the resolution of z, so that no part of z stands for a part of it.

    Notes
    -----
    Sample i of an image with s pixels of z a sample stands for the pixels from ``s i`` to ``s (i + 1)``, and depends on
    r more on both sides.
    """
    seen: dict[str, tuple[float, float]] = {INPUT: (1.0, 0.0)}  # s and r
    coarsest = 1.0
    for layer in program.layers:
        s, r = seen[layer.inputs[0]]
        r = max(seen[name][1] for name in layer.inputs)
        seen[layer.name] = _through(layer, s, r, program)
        coarsest = max(coarsest, seen[layer.name][0])
    s, r = seen[program.layers[-1].name]
    if s != 1 or min(scale for scale, _ in seen.values()) < 1:
        return None
    return math.ceil(r), int(coarsest)


def _through(layer: Layer, s: float, r: float, program: Program) -> tuple[float, float]:
    """Take s and r of a layer's input to those of its output."""
    if layer.kind == "conv":
        kernel = program.arrays[f"{layer.name}.weight"].shape[2]
        stride, padding = layer.options["stride"], layer.options["padding"]
        return s * stride, r + s * max(padding, kernel - padding - stride)
    if layer.kind in ("average_pool", "max_pool"):
        return 2 * s, r
    if layer.kind in ("upsample", "conv_transpose"):
        return s / 2, r + s
    if layer.kind == "upsample_conv2d":
        return s / 2, r + s + s / 2
    return s, r


def tiles(program: Program) -> list[Tile]:
    """Divide a program's picture into tiles, whose windows are of one size; one tile where it is small."""
    height, width = program.inputs[0].codes.shape[2:]
    found = reach(program) if height * width > SIDE**2 else None
    if found is None:
        whole = slice(0, height), slice(0, width)
        return [Tile(whole, whole)]
    rows, columns = (_windows(length, *found) for length in (height, width))
    return [Tile((a, b), (c, d)) for a, c in rows for b, d in columns]


def _windows(length: int, around: int, multiple: int) -> list[tuple[slice, slice]]:
    """Lay windows over one side: each with the place in it that it is for."""
    if length <= SIDE:
        return [(slice(0, length), slice(0, length))]
    margin = multiple * -(-around // multiple)
    side = SIDE // multiple * multiple
    stride = side - 2 * margin
    if stride <= 0:  # nothing is gained by parts
        return [(slice(0, length), slice(0, length))]
    windows, done = [], 0
    while done < length:
        start = min(max(done - margin, 0), length - side)
        end = length if start + side >= length else start + side - margin
        windows.append((slice(start, start + side), slice(done - start, end - start)))
        done = end
    return windows


def parts(program: Program) -> Iterator[tuple[Program, Tile]]:
    """Make the program of each tile: all of them are one graph, with other codes.

    It draws its whole window; it is blended, and known pixels are put back, later.
    """
    for tile in tiles(program):
        inputs = tuple(part._replace(codes=part.codes[(..., *tile.window)]) for part in program.inputs)
        size = (tile.window[0].stop - tile.window[0].start, tile.window[1].stop - tile.window[1].start)
        yield replace(program, inputs=inputs, size=size, known=None, blend=None), tile


def needed_bytes(program: Program) -> int:
    """Estimate the most memory that drawing a program takes: that of a tile, with the picture and all codes."""
    if len(tiles(program)) == 1:
        return program.needed_bytes
    part, _ = next(parts(program))
    stored = sum(codes.nbytes for codes, _ in program.inputs)
    return part.needed_bytes + stored + 4 * program.channels * math.prod(program.size)


def draw(program: Program, draw_part: Callable[[Program], np.ndarray]) -> np.ndarray:
    """Draw the picture of a program, whole or in tiles.

    Parameters
    ----------
    program : Program
    draw_part : callable
        Draws a program whole: float32 ``(H, W, C)``.  Where it is called more than once, it is with programs that
        differ in the codes of their inputs alone.

    Returns
    -------
    ndarray
        float32 ``(H, W, C)``, in the picture's range.
    """
    if len(tiles(program)) == 1:
        return draw_part(program)
    picture = large.empty((*program.size, program.channels))
    for place, drawn in _drawn(program, draw_part):
        picture[place] = drawn
    return picture


def draws(program: Program, draw_part: Callable[[Program], np.ndarray], picture: np.ndarray) -> bool:
    """Whether a program draws the bits of a picture: of one in tiles, a few of them, from the first to the last.

    Parameters
    ----------
    program, draw_part
        As in `draw`.
    picture : ndarray
        float32 ``(H, W, C)``, in the picture's range.
    """
    count = len(tiles(program))
    if count == 1:
        return draw_part(program).tobytes() == picture.tobytes()
    chosen = sorted({(count - 1) * i // (LOOKED_AT - 1) for i in range(LOOKED_AT)})
    return all(picture[place].tobytes() == drawn.tobytes() for place, drawn in _drawn(program, draw_part, chosen))


def _drawn(
    program: Program, draw_part: Callable[[Program], np.ndarray], chosen: Sequence[int] | None = None
) -> Iterator[tuple[tuple[slice, slice], np.ndarray]]:
    """Draw tiles, all or those with these numbers: each with its place in the picture."""
    (height, width), (rows, columns) = program.inputs[0].codes.shape[2:], program.size
    top, left = (height - rows) // 2, (width - columns) // 2  # of the picture, in what is drawn
    for number, (part, (window, place)) in enumerate(parts(program)):
        if chosen is None or number in chosen:
            large.give_back()  # 100 MB more after each tile of a long process otherwise
            of_rows, to_rows = _overlap(window[0], place[0], top, rows)
            of_columns, to_columns = _overlap(window[1], place[1], left, columns)
            yield (to_rows, to_columns), finished(program, draw_part(part)[of_rows, of_columns], (to_rows, to_columns))
    large.give_back()


def finished(program: Program, drawn: np.ndarray, place: tuple[slice, slice]) -> np.ndarray:
    """Finish what was drawn of the rows and columns of a place, float32: blend it, and put known samples back."""
    if program.blend is not None:
        drawn = program.blend._replace(samples=program.blend.samples[place]).of(drawn)
    if program.known is not None:
        mask, samples = program.known
        drawn = np.where(mask[place], samples[place].astype(np.float32), drawn)
    return np.ascontiguousarray(drawn)


def _overlap(window: slice, place: slice, start: int, length: int) -> tuple[slice, slice]:
    """Find what a tile draws of the picture along one side: where in the window, and where in the picture."""
    first = max(window.start + place.start, start)
    last = min(window.start + place.stop, start + length)
    return slice(first - window.start, last - window.start), slice(first - start, last - start)
