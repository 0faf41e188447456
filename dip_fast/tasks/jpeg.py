"""JPEG artefacts: the picture was compressed, and its file says how far each coefficient may have been rounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dip_fast.errors import Argument, UsageError
from dip_fast.tasks.task import Baseline, Data, Task, Tile, as_target

if TYPE_CHECKING:
    from dip_fast.fitting import Degradation
    from dip_fast.pictures.tiling import Grid
    from dip_fast.presets import Recipe


class Jpeg(Task):
    """Undo JPEG compression: each coefficient lies in the box that its code stands for."""

    name = "jpeg"
    summary = "remove the artefacts of JPEG compression"
    doing = "cleaning"
    has_tiles = True
    stop = "never"  # what the boxes leave open cannot be fitted, and the blocks lie within them

    def has_rounds(self, recipe: Recipe, options: Mapping[str, Any]) -> bool:
        """Whether rounds may follow: they do in any fit."""
        return True

    def degradation(self, data: Data, options: Mapping[str, Any]) -> Degradation:
        """Measure how far the coefficients are from the boxes of the file."""
        import torch

        from dip_fast.fitting import Quantised
        from dip_fast.fitting.quantisation import Component
        from dip_fast.pictures import jpeg

        tile = data.tile
        coding = self._found(data, jpeg.read_coding, *(() if tile is None else (tile.box, tile.whole)))
        components = [
            Component(torch.from_numpy(found.low), torch.from_numpy(found.high), found.reduction)
            for found in coding.components
        ]
        return Quantised(as_target(data.image), components, coding.orientation)

    def grid(self, data: Data) -> Grid:
        """Let tiles begin at blocks, and at those of the colours where these are reduced."""
        from dip_fast.pictures import jpeg

        found: Grid = self._found(data, jpeg.grid)
        return found

    def cropped(self, data: Data, options: Mapping[str, Any], tile: Tile) -> Data:
        """Cut a tile out of the picture; the file remains, of which `degradation` reads the tile's blocks."""
        cropped = super().cropped(data, options, tile)
        picture = cropped.picture
        assert picture is not None, "it has blocks"
        return replace(cropped, picture=replace(picture, jpeg=None if data.picture is None else data.picture.jpeg))

    def _found(self, data: Data, read: Callable[..., Any], *about: Any) -> Any:
        """Read something in the picture's JPEG file.

        Raises
        ------
        UsageError
            If there is none, or it is not coded in the ordinary way.
        """
        picture = data.picture
        if picture is not None and picture.jpeg is None and picture.extras.jpeg is not None:
            raise UsageError(
                "{} needs the whole JPEG file, for a part or a reduced copy has no blocks; leave {} and {} out",
                *(Argument("task", self.name), Argument("preview"), Argument("max_size")),
            )
        if picture is None or picture.jpeg is None:
            name = "the picture" if picture is None else picture.name
            raise UsageError(
                "{} needs a JPEG file, which says how it was compressed, and {} is none; give the file as it was "
                "before it was converted",
                *(Argument("task", self.name), name),
            )
        try:
            return read(picture.jpeg, *about)
        except UsageError as error:
            raise UsageError("cannot find how {} was compressed: {}", picture.name, str(error)) from error

    def baseline(self, data: Data, options: Mapping[str, Any]) -> Baseline:
        """Take the picture as every program shows it."""
        return Baseline("decoded picture", data.image)


JPEG = Jpeg()
