"""The options of a restoration, which ``dip-fast run`` and ``dip-fast batch`` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from dip_fast.cli.models import model_formats
from dip_fast.cli.parameters import Choice, F, Formats, Named, Tile, task_parameters
from dip_fast.names import DEVICES, PRECISIONS, STOPS, UPSAMPLINGS
from dip_fast.networks import NETWORKS
from dip_fast.presets import PRESETS
from dip_fast.tasks import TASKS


class Restoring(click.Command):
    """A command with the options of all tasks beside its own."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Add the tasks' options, once, behind the first of its own."""
        names = {param.name for param in self.params}
        self.params[3:3] = [param for param in task_parameters(TASKS) if param.name not in names]
        return super().get_params(ctx)


WHAT = (
    click.option(
        "--task", type=Named(lambda: TASKS), help="See dip-fast tasks.  [default: the one that needs the inputs given]"
    ),
    click.option("--page", type=click.IntRange(min=1), metavar="N", help="Which page of a TIFF file that has several."),
)
HOW = (
    click.option(
        "--preset",
        type=Named(lambda: PRESETS),
        help="Network and how it is fitted; see dip-fast presets.  [default: default for noise and small holes, "
        "outline for large ones; otherwise quick on a CPU, paper on a GPU]",
    ),
    click.option("--network", type=Named(lambda: NETWORKS), help="Selects the preset of that network."),
    click.option("--upsampling", type=Choice(list(UPSAMPLINGS)), help="Of the skip network.  [default: the preset's]"),
    click.option("--iterations", type=click.IntRange(min=1), metavar="N", help="Most steps.  [default: the preset's]"),
    click.option(
        "--stop",
        type=Choice(list(STOPS)),
        help="Whether the moving variance of the iterates may end a fit from random input.  [default: the task's, or "
        "the preset's]",
    ),
    click.option(
        "--fused/--no-fused",
        default=None,
        help="Engine; the two differ in rounding only.  [default: fused where the network has a fused form]",
    ),
    click.option("--device", type=Choice(list(DEVICES)), help="[default: auto]"),
    click.option(
        "--precision",
        type=Choice(list(PRECISIONS)),
        help="Of products on a GPU; bf16 also halves the memory of images.  A CPU computes in fp32; bf16 halves that "
        "memory there too, and rounds products where the CPU multiplies them faster.  [default: tf32]",
    ),
    click.option(
        "--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads, at most one a core.  [default: all]"
    ),
    click.option("--seed", type=click.IntRange(0, 2**63 - 1), metavar="N", help="[default: 0]"),
    click.option(
        "--snapshot-every",
        type=click.IntRange(min=0),
        metavar="N",
        help="Steps between iterates written to disk; 0 for none.  [default: 100]",
    ),
    click.option(
        "--keep-metadata",
        is_flag=True,
        default=None,
        help="Copy the EXIF data into the result: description, artist, copyright, date, camera with its settings, "
        "place. Profile, resolution and pixel size are kept in any case, the thumbnail never.",
    ),
    click.option(
        "--preview",
        metavar="REGION",
        help="Restore a part only: left,top,width,height in pixels, or center for the middle 256x256.",
    ),
    click.option(
        "--max-size",
        type=click.IntRange(min=16),
        metavar="N",
        help="Reduce a picture whose longer side has more pixels.",
    ),
    click.option(
        "--tile",
        type=Tile(),
        metavar="PIXELS",
        help="Restore in tiles of so many pixels a side, with a network each, a picture for which memory is too small; "
        "auto, as large as memory allows where it does not hold the whole; never.  [default: auto]",
    ),
    click.option(
        "--export",
        type=Formats(model_formats),
        metavar="FORMATS",
        help="Model files to write: onnx, torchscript, pt2, with commas between them, or none.  [default: onnx]",
    ),
)


def what_options(function: F) -> F:
    """Add the options that say what is restored."""
    return _with(WHAT, function)


def how_options(function: F) -> F:
    """Add the options that say how."""
    return _with(HOW, function)


def _with(options: Sequence[Callable[[Any], Any]], function: F) -> F:
    for option in reversed(options):
        function = option(function)
    return function
