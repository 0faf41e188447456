"""What a task is: options, inputs, degradation or objective, the kind of its result, and a baseline.

Needs neither numpy nor torch to be imported: the command line reads the tasks for its help.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dip_fast.errors import Argument, UsageError
from dip_fast.presets import PRESETS, Recipe

if TYPE_CHECKING:
    import numpy as np

    from dip_fast.fitting import Degradation, Objective
    from dip_fast.networks import NetworkInput
    from dip_fast.pictures import Extras, Kind, Picture
    from dip_fast.pictures.tiling import Box, Grid


@dataclass(frozen=True)
class Option:
    """An option of a task, on the command line and in Python.

    Attributes
    ----------
    name : str
        The argument's name in Python; the command line puts dashes for underscores.
    type : type or tuple of str
        bool, int, float or str, or the values to choose from.
    default : object
        What holds where nothing is said.
    help : str
        One sentence.
    """

    name: str
    type: Any
    default: Any
    help: str

    def check(self, value: Any) -> None:
        """Refuse a value of another type.

        Raises
        ------
        UsageError
        """
        if isinstance(self.type, tuple):
            if value not in self.type:
                raise UsageError(f"{self.name} must be one of {', '.join(map(str, self.type))}, got {value!r}")
        elif type(value) is not self.type and not (self.type is float and type(value) is int):
            raise UsageError(f"{self.name} must be {self.type.__name__}, got {value!r}")


@dataclass(frozen=True)
class Input:
    """An input of a task beside the picture: a file or a description on the command line, an array in Python.

    Attributes
    ----------
    name : str
        The argument's name.
    help : str
        What it must be, in one sentence.
    required : bool
        Whether the task cannot do without it.
    is_estimate : bool
        Whether it is an estimate of the result: `Task.read` scales that of a file to the picture's range, and an array
        is scaled as the image is.
    in_place : bool
        Whether it has a value for each pixel of the picture, or of the result, and a part of it belongs to a part.
    """

    name: str
    help: str
    required: bool = True
    is_estimate: bool = False
    in_place: bool = False


@dataclass(frozen=True)
class Tile:
    """A part of a picture that is fitted by itself, with what its fit has in common with those of the other tiles.

    Attributes
    ----------
    box : Box
        Its place in the picture.
    whole : tuple of int
        Height and width of the picture.
    recipe : dict
        Changes of the recipe, see `Recipe.with_`.
    deviation : float, optional
        Of the noise in the picture; each fit measures it by default.
    """

    box: Box
    whole: tuple[int, int]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    deviation: float | None = None


@dataclass(frozen=True, eq=False)
class Data:
    """What a task works on.

    Attributes
    ----------
    image : ndarray
        The damaged picture, float32 ``(H, W, C)``, range [0, 1]; or several that one network is fitted to,
        ``(N, H, W, C)``.
    inputs : dict of str to ndarray
        The other inputs by name, as `Task.read` returned them.
    picture : Picture, optional
        The file that the image was read from; None where it came as an array.
    aside : ndarray, optional
        Samples that were set aside, bool, of the image's shape: those that the result has as they were, and for which
        the image has an estimate, that is not to be fitted.
    notes : list of str
        What a user should know of what was read; `Task.read` adds to it.
    tile : Tile, optional
        What part of a larger picture all of this is.
    """

    image: np.ndarray
    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    picture: Picture | None = None
    aside: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)
    tile: Tile | None = None


@dataclass(frozen=True, eq=False)
class Baseline:
    """What a classical method makes of the same picture, to compare with.

    Attributes
    ----------
    name : str
        The method, in the words of the field.
    image : ndarray
        float32, of the result's shape, range [0, 1].
    """

    name: str
    image: np.ndarray


class Task:
    """One task.  A subclass sets the attributes and overrides what differs; `degradation` at the least.

    Attributes
    ----------
    name : str
        What it is called.
    summary : str
        One line for lists.
    doing : str
        What a run does meanwhile, in one word or two, for its progress.
    options : tuple of Option
        Its own options.
    inputs : tuple of Input
        What it needs beside the picture.
    stop : {"auto", "never"}, optional
        What holds for the option of this name where a user says nothing and the fit is from a random input; that of
        the preset where it is None.
    reads_preset : bool
        Whether what was read decides on the preset, see `preset_of`.
    may_miss : bool
        Whether samples of the picture may be missing: NaN in a file.
    aside : tuple of str
        What of a picture is set aside, see `dip_fast.pictures.read_picture`.  ``"outliers"`` for a task whose result
        has each sample at its place.
    has_tiles : bool
        Whether a part of what was read can be restored by itself, see `cropped`: no pixel of the picture depends on
        what is far from its place in the result.
    """

    name: str = ""
    summary: str = ""
    doing: str = "restoring"
    options: tuple[Option, ...] = ()
    inputs: tuple[Input, ...] = ()
    stop: Literal["auto", "never"] | None = None
    reads_preset: bool = False
    may_miss: bool = False
    aside: tuple[str, ...] = ("hidden",)
    has_tiles: bool = False

    def preset(self, device: str) -> str:
        """Choose the preset for a user who names none, by the type of the device."""
        return "quick" if device == "cpu" else "paper"

    def preset_of(self, data: Data, options: Mapping[str, Any]) -> str | None:
        """Choose the preset by what was read, for a user who names none; None where `preset` is right."""
        return None

    def adapted(self, recipe: Recipe, options: Mapping[str, Any]) -> Recipe:
        """Change what a preset says, for this task: by default nothing.

        What a user asks for counts more than what this returns.
        """
        return recipe

    def fitted_to(self, data: Data, recipe: Recipe) -> Recipe:
        """Change a recipe for what was read: by default nothing."""
        return recipe

    def has_rounds(self, recipe: Recipe, options: Mapping[str, Any]) -> bool:
        """Whether rounds of patches and data may follow the fit, see `dip_fast.fitting.patch_prior`."""
        return False

    def drawings(self, recipe: Recipe, options: Mapping[str, Any], size: tuple[int, int]) -> int:
        """Count the drawings of the whole picture that a fit which hides samples makes its estimate of."""
        if recipe.masking is None:
            return 0
        from dip_fast.fitting.masked import masks_of

        return masks_of(recipe.masking, size)

    def complete(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Fill in the defaults of the options that are not given.

        Raises
        ------
        UsageError
            For an option that this task has not, or a value of another type.
        """
        own = {option.name: option for option in self.options}
        for name, value in options.items():
            if name not in own:
                raise UsageError("{} has no option {}; leave it out", Argument("task", self.name), Argument(name))
            own[name].check(value)
        return {option.name: options.get(option.name, option.default) for option in self.options}

    def read(self, name: str, source: Path | str | np.ndarray, data: Data, options: Mapping[str, Any]) -> np.ndarray:
        """Read an input, from a file, a description or an array, and check it against the picture.

        Parameters
        ----------
        name : str
            Of one of `inputs`.
        source : Path, str or ndarray
            The file or description, or the user's array with its channels, if any, last.
        data : Data
            The picture, without the inputs.  Its image, ``(H, W, C)``, has the range of the array where it came as one.
        options : mapping
            The task's own.

        Raises
        ------
        UsageError
            If it does not fit the picture.
        """
        raise TypeError(f"{type(self).__name__} has inputs and must define read()")

    def known(self, data: Data) -> np.ndarray | None:
        """Find which pixels hold anything of the picture, bool ``(H, W)``; None for all."""
        return None

    def degradation(self, data: Data, options: Mapping[str, Any]) -> Degradation:
        """Make the degradation: what happened to the picture, with what is left of it."""
        raise TypeError(f"{type(self).__name__} must define degradation() or objective()")

    def network_input(self, data: Data, options: Mapping[str, Any]) -> NetworkInput | None:
        """Make the fixed input of the network, of the result's size; None for a random one."""
        return None

    def objective(self, data: Data, options: Mapping[str, Any], recipe: Recipe, seed: int) -> Objective:
        """Make the objective: by default the degradation's data term, at the network input of the task."""
        from dip_fast.fitting.start import Place, deep_image_prior

        if recipe.masking is not None:
            able = ", ".join(name for name in PRESETS if PRESETS[name].recipe.masking is None)
            raise UsageError("{} needs a preset that fits from random input; take one of {}", self.name, able)
        degradation, z, place = self.degradation(data, options), self.network_input(data, options), None
        if (tile := data.tile) is not None:
            degradation.known_deviation = tile.deviation
            by = degradation.size[0] // tile.box.height
            place = Place((by * tile.box.top, by * tile.box.left), (by * tile.whole[0], by * tile.whole[1]))
        return deep_image_prior(degradation, recipe, seed=seed, z=z, place=place)

    def grid(self, data: Data) -> Grid:
        """Find what the sides of tiles of the picture must be multiples of: by default of nothing."""
        from dip_fast.pictures.tiling import Grid

        return Grid()

    def cropped(self, data: Data, options: Mapping[str, Any], tile: Tile) -> Data:
        """Cut a tile out of what was read."""
        import numpy as np

        height, width = tile.whole
        by = self.result_size(tile.whole, options)[0] // height
        inputs = dict(data.inputs)
        for name in (entry.name for entry in self.inputs if entry.in_place and entry.name in inputs):
            scale = by if inputs[name].shape[:2] != (height, width) else 1
            inputs[name] = np.ascontiguousarray(inputs[name][tile.box.scaled(scale).place])
        place = tile.box.place
        return replace(
            data,
            image=np.ascontiguousarray(data.image[place]),
            inputs=inputs,
            picture=None if data.picture is None else data.picture.cropped(*place),
            aside=None if data.aside is None else np.ascontiguousarray(data.aside[place]),
            tile=tile,
        )

    def is_done(self, data: Data, options: Mapping[str, Any]) -> bool:
        """Whether the result is the picture as it is, in a tile that holds nothing to be restored."""
        return data.aside is not None and bool(data.aside.all())

    def result_size(self, size: tuple[int, int], options: Mapping[str, Any]) -> tuple[int, int]:
        """Compute height and width of the result of a picture of this height and width."""
        from dip_fast.pictures import Kind

        return self.result_kind(Kind("", size[1], size[0], 1, "float32", (0.0, 1.0)), options).size

    def result_kind(self, kind: Kind, options: Mapping[str, Any]) -> Kind:
        """Describe the result: by default it is of the picture's own kind."""
        return kind

    def result_extras(self, extras: Extras, data: Data) -> Extras:
        """Choose what goes along with the result: by default what goes along with the picture."""
        return extras

    def baseline(self, data: Data, options: Mapping[str, Any]) -> Baseline | None:
        """Compute what a classical method makes of the picture; None where there is none worth comparing."""
        return None


def as_target(image: np.ndarray) -> Any:
    """Convert an image ``(H, W, C)``, or several, to a Tensor ``(1, C, H, W)`` or ``(N, C, H, W)`` of its dtype."""
    import torch

    from dip_fast import large

    images = image.reshape(-1, *image.shape[-3:])
    target = large.empty((len(images), images.shape[3], *images.shape[1:3]), image.dtype)
    for rows in large.bands(images.shape, axis=1):
        target[:, :, rows] = images[:, rows].transpose(0, 3, 1, 2)
    return torch.from_numpy(target)
