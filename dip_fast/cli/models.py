"""``dip-fast export`` and ``dip-fast replay``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from dip_fast.cli.output import greet, put, show
from dip_fast.cli.parameters import Choice, Named, debug_option, json_option
from dip_fast.cli.signals import importing
from dip_fast.errors import Argument, ReplayDiffersError, UsageError
from dip_fast.runs import commands


def model_formats() -> Mapping[str, Any]:
    """List the formats of model files."""
    from dip_fast.models.formats import FORMATS  # here, since it imports numpy

    return FORMATS


@click.command(short_help="Write a run's fitted network in another format.")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--format", "format_", type=Named(model_formats), required=True, help="See dip-fast formats.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file.  [default: in the run's folder, model with the format's suffix]",
)
@click.option("--fp16", is_flag=True, help="Store the weights in 16 bits, and print what that changes.")
@click.option("--fused-ops", is_flag=True, help="Call this project's operators: torchscript, for C++ users of them.")
@click.option(
    "--inputs",
    type=Choice(["z"]),
    help="For other engines and tools: an ONNX file whose network input z must be fed, its values beside it as .npy.",
)
@click.option("--license", "license_", default="", metavar="TEXT", help="Your words on what may be done with the file.")
@click.option("--overwrite", is_flag=True, help="Replace the file.")
@json_option
@debug_option
def export(run_dir: Path, format_: str, as_json: bool, **options: Any) -> int:
    """Write the fitted network of RUN_DIR, a run's folder or its model.onnx, in another format.

    The new file is run and compared with the network before it is kept.  Exit codes: 0 done; 1 it drew another picture
    and was not kept, or could not be written; 2 wrong usage or input.
    """
    greet(then_stdout=True)
    with importing():
        from dip_fast.models import exporting

    written = exporting.convert(run_dir, format_, **options)
    if as_json:
        show(json.dumps(written))
        return 0
    if error := written.get("error"):
        show(
            f"16-bit weights: off by {error['largest']:.2g} of the range at most, PSNR {error['psnr']:.1f} dB, "
            f"{error['fraction']:.2%} of the samples changed"
        )
    show(f"model: {written['path']} ({written['bytes'] / 1e6:.1f} MB)")
    for path in written.get("inputs", ()):
        show(f"input: {path}")
    if "inputs" not in written:
        show(f"replay: {commands.replay(written)}")
    return 0


@click.command(short_help="Draw the picture of a model file again.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="The picture, .png, .tif or of another format of results; - is standard output.  [default: model-replay.png "
    "here; nothing with --verify]",
)
@click.option("--verify", is_flag=True, help="Compare with what was drawn when the file was written.")
@click.option("--difference", type=click.Path(path_type=Path), metavar="PNG", help="With --verify: where it differs.")
@click.option("--provider", type=Choice(["cpu", "cuda"]), default="cpu", help="Of onnxruntime.  [default: cpu]")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads of onnxruntime.  [default: all]")
@click.option("--trust", is_flag=True, help="Open TorchScript and .pt2 files, which can run code of their writer's.")
@click.option("--overwrite", is_flag=True, help="Replace the picture.")
@json_option
@debug_option
def replay(as_json: bool, model: Path, **options: Any) -> int:
    """Draw the picture of MODEL, a file that dip-fast run or dip-fast export wrote, or a run's folder.

    An ONNX file needs onnxruntime alone, not PyTorch.  Exit codes: 0 done, also where --verify finds a difference
    within the tolerance that the file names for other machines; 1 failed; 2 wrong usage or input; 4 --verify finds
    another picture.
    """
    with importing():
        from dip_fast.models import replaying

    if as_json and options["out"] == Path("-"):
        raise UsageError("{} and a picture on standard output exclude each other; name a file", Argument("json", True))
    summary, picture = replaying.run(replaying.Request(path=model, **options))
    if picture is not None:
        put(picture)
    elif as_json:
        show(json.dumps(summary, allow_nan=False))
    else:
        lines = [f"verify: {summary['text']}"] if summary["verdict"] else []
        show("\n".join([*lines, *([f"result: {summary['result']}"] if summary["result"] else [])]))
    if summary["verdict"] == "differs":
        raise ReplayDiffersError(f"{model} does not draw the picture that it was kept for: {summary['text']}")
    return 0
