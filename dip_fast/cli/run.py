"""``dip-fast run``."""

from __future__ import annotations

import contextlib
import copy
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dip_fast.cli.output import greet, put, show, standard_input
from dip_fast.cli.parameters import F, debug_option, is_named_as_picture, json_option
from dip_fast.cli.restoring import Restoring, how_options, what_options
from dip_fast.cli.signals import INTERRUPTED, importing
from dip_fast.errors import Argument, DipFastError, UsageError
from dip_fast.names import counted
from dip_fast.runs import commands
from dip_fast.tasks import TASKS

if TYPE_CHECKING:
    from dip_fast.runs.record import Summary

MOST_MODELS = 3  # that are named in the end


@click.command(cls=Restoring, short_help="Restore one picture.")
@click.argument("picture", type=click.Path(allow_dash=True))  # so that a shell completes it
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the result and all about it; or a file for the result, as restored.png, besides.  [default: "
    "runs/<name of the picture>]",
)
@click.option("--only-result", is_flag=True, help="Write the file that --out names, and no folder.")
@click.option(
    "--quality",
    type=click.IntRange(1, 100),
    metavar="N",
    help="Of a result named .jpg.  [default: that of a JPEG picture, or 95]",
)
@what_options
@click.option("--reference", type=click.Path(path_type=Path), help="Clean picture, to log PSNR and SSIM with.")
@how_options
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the run in --out, as if it had never stopped; with more --iterations, extend it.",
)
@click.option("--overwrite", is_flag=True, help="Replace the run in --out.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="Print loss and stopping statistic of the steps, and which build of the operators is used.",
)
@json_option
@click.option(
    "--json-events",
    is_flag=True,
    help="Print what happens as JSON on standard output, a line each: notes, progress, and at the end the summary.",
)
@debug_option
def run(
    picture: str,
    out: Path | None,
    only_result: bool,
    quality: int | None,
    preview: str | None,
    max_size: int | None,
    reference: Path | None,
    fused: bool | None,
    export: tuple[str, ...] | None,
    page: int | None,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    verbose: bool,
    as_json: bool,
    json_events: bool,
    **options: Any,
) -> int:
    """Restore PICTURE, one damaged picture; - reads standard input and writes standard output.

    The folder of the run holds result.png (result.tif for TIFF and float pictures), report.html to look at it in a
    browser, snapshots of the iterates, a contact sheet, the history as a table and as a plot, run.json with all that
    is needed to repeat the run, a checkpoint for --resume, and model.onnx, which draws the result again: dip-fast
    replay, or onnxruntime alone.
    Ctrl-C, SIGTERM and SIGHUP end the fit after its step; what there is by then is written.

    Exit codes: 0 done; 1 failed, also where a file could not be written (the message says where the result is then);
    2 wrong usage or input; 130 stopped by the user.
    """
    if not quiet and not json_events:
        greet()
    from_stdin = picture == "-"
    out, file = _places(out)
    to_stdout = from_stdin and file is None
    if to_stdout:
        _check_filter(out, json="json_events" if json_events else as_json and "json", resume=resume, export=export)
    if as_json and json_events:
        both = Argument("json_events", True), Argument("json", True)
        raise UsageError("{} prints the summary too; leave out {}", *both)
    _check_file(file, only_result=only_result, quality=quality, resume=resume, export=export)
    content = content_of(picture)  # before torch is imported, which takes seconds
    with importing():
        from dip_fast.device.memory import keep_memory

    keep_memory()

    names = {entry.name for task in TASKS.values() for entry in task.inputs}
    inputs = {name: path for name in names if (path := options.pop(name, None)) is not None}
    asked = {name: value for name, value in options.items() if value is not None}
    if fused is not None:
        asked["engine"] = "fused" if fused else "plain"
    with importing():
        from dip_fast.runs.material import Request
        from dip_fast.runs.parts import Part
        from dip_fast.runs.run import run as restore
        from dip_fast.runs.target import Target

    with contextlib.ExitStack() as stack:
        is_kept = not (only_result or (to_stdout and out is None))
        if not is_kept:
            out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dip-fast-"))) / "stdin"
            export = ()
        request = Request(
            source=content if from_stdin else Path(picture),
            content=content,
            asked=asked,
            inputs=inputs,
            out=out,
            target=None if file is None else Target(file, quality, alone=only_result),
            part=Part(preview, max_size),
            reference=reference,
            resume=resume,
            overwrite=overwrite,
            quiet=quiet,
            verbose=verbose,
            export=export,
            page=page,
        )
        del content  # which the run lets go of once it is read
        emit = emitted if json_events else None
        summary = restore(request, noter(emit) if emit else speaker(quiet), emit)
        if to_stdout:
            _write_to_stdout(Path(summary.result), keep=is_kept)
    if summary.copy is not None:
        summary = replace(summary, result=summary.copy, folder=summary.folder if is_kept else "")
    facts = {"event": "done", **asdict(summary)} if json_events else asdict(summary) if as_json else None
    return reported(summary, facts, quiet=quiet or json_events, to_stdout=to_stdout, has_folder=is_kept)


def shared(names: Sequence[str], helps: Mapping[str, str]) -> Callable[[F], F]:
    """Add options of `run` to another verb, some of them with another help."""
    own = {param.name: param for param in run.params}

    def add(function: F) -> F:
        found = getattr(function, "__click_params__", [])  # where click's own decorators put them, the last one first
        for name in reversed(names):
            option = copy.copy(own[name])
            assert isinstance(option, click.Option), "arguments have no help"
            option.help = helps.get(name, option.help)
            found.append(option)
        vars(function)["__click_params__"] = found
        return function

    return add


def _places(out: Path | None) -> tuple[Path | None, Path | None]:
    """Tell a folder for the run from a file for the result: that has the suffix of a picture."""
    return (None, out) if out is not None and is_named_as_picture(out) else (out, None)


def _check_file(
    file: Path | None, *, only_result: bool, quality: int | None, resume: bool, export: tuple[str, ...] | None
) -> None:
    """Refuse options that have no meaning without a file for the result, or without a folder."""
    if file is None:
        for argument, is_given in ((Argument("only_result", True), only_result), (Argument("quality"), quality)):
            if is_given:
                example = Argument("out", "restored.jpg")
                raise UsageError(
                    "{} needs a file for the result; name one of a format of results, as with {}", argument, example
                )
    elif only_result and (resume or export):
        raise UsageError(
            "{} keeps no folder, which {} needs; leave out one of the two",
            *(Argument("only_result", True), Argument("resume", True) if resume else Argument("export")),
        )


def content_of(picture: str) -> bytes:
    """Read the picture's file, and check its format and its size."""
    from dip_fast.pictures.reading import check_header, read_content

    content = standard_input() if picture == "-" else read_content(picture)
    check_header(content, "stdin" if picture == "-" else picture)
    return content


def _check_filter(out: Path | None, *, json: str | bool, resume: bool, export: tuple[str, ...] | None) -> None:
    """Refuse options that have no meaning where the picture comes from standard input."""
    if json:
        raise UsageError(
            "{} and a result on standard output exclude each other; name the picture's file", Argument(str(json), True)
        )
    if resume and out is None:
        raise UsageError(
            "{} needs the run's folder when the picture comes from standard input; give {}",
            *(Argument("resume", True), Argument("out")),
        )
    if export and out is None:
        raise UsageError(
            "{} needs a folder when the result goes to standard output; give {}", Argument("export"), Argument("out")
        )


def speaker(quiet: bool) -> Any:
    """Make the function that prints lines for the user without disturbing the progress bar."""
    from tqdm import tqdm

    def say(line: str) -> None:
        if not quiet:
            with contextlib.suppress(OSError):  # a log that nobody takes is no reason to lose the fit
                tqdm.write(line, file=sys.stderr)

    return say


def emitted(event: dict[str, Any]) -> None:
    """Print an event; a program that takes them no more is no reason to lose the fit."""
    with contextlib.suppress(DipFastError):
        show(json.dumps(event, allow_nan=False))


def noter(emit: Any) -> Any:
    """Make the function that hands on lines for the user as events."""
    return lambda line: emit({"event": "note", "text": line})


def _write_to_stdout(result: Path, *, keep: bool) -> None:
    """Copy the result to standard output; where that fails, the message says where it is."""
    from dip_fast.runs.folder import write_elsewhere

    try:
        put(result.read_bytes())
    except DipFastError as error:
        safe = result if keep else write_elsewhere(result.name, result.read_bytes())
        raise DipFastError(f"{error}; the result is in {safe}") from error


def reported(summary: Summary, facts: dict[str, Any] | None, *, quiet: bool, to_stdout: bool, has_folder: bool) -> int:
    """Print what a run gave, in words or as these facts, and choose the exit code."""
    say = speaker(quiet)
    models = [f"replay: {commands.replay(model)}" for model in summary.models[:MOST_MODELS]]
    if more := len(summary.models) - len(models):
        models.append(f"... and {counted(more, 'model file')} more")
    try:
        if to_stdout:
            say(_figures(summary))
        elif facts is not None:
            show(json.dumps(facts, allow_nan=False))
        elif not quiet:
            show("\n".join([_figures(summary), f"result: {summary.result}", *_page(summary, has_folder), *models]))
    except DipFastError as error:
        raise DipFastError(f"{error}; the result is in {summary.result}") from error
    if problems := summary.problems:
        where = "" if to_stdout and not has_folder else f"the result is in {summary.result}, "
        raise DipFastError(f"{problems[0]}; {where}{counted(len(problems), 'file')} of the run could not be written")
    if summary.stop_reason != "interrupted":
        return 0
    if has_folder:
        say(f"stopped after step {summary.steps}; go on with the same command and --resume")
    return INTERRUPTED


def _page(summary: Summary, has_folder: bool) -> list[str]:
    """Name the report, to be opened in a browser, if there is one."""
    from dip_fast.runs.report import NAME

    path = Path(summary.folder, NAME)
    return [f"report: {path}"] if has_folder and path.is_file() else []


def _figures(summary: Summary) -> str:
    """Describe what was reached."""
    lines = []
    if summary.psnr is not None:
        before = "" if summary.psnr_input is None else f"{summary.psnr_input:.2f} -> "
        similar = "" if summary.ssim_input is None else f"{summary.ssim_input:.3f} -> "
        lines.append(f"PSNR {before}{summary.psnr:.2f} dB, SSIM {similar}{summary.ssim:.3f}")
        if summary.baseline is not None and summary.baseline["psnr"] is not None:
            figures = summary.baseline
            lines.append(f"{figures['name']}, to compare: PSNR {figures['psnr']:.2f} dB, SSIM {figures['ssim']:.3f}")
    if summary.estimated_psnr is not None:
        alone = "" if summary.guide_psnr is None else f", of the guide alone {summary.guide_psnr:.1f} dB"
        lines.append(f"PSNR as estimated without a reference: {summary.estimated_psnr:.1f} dB{alone}")
    reason = {"iterations": "all steps done", "variance": "stopped by itself", "interrupted": "stopped"}
    lines.append(
        f"{reason[summary.stop_reason]}: step {summary.steps}, answer from step {summary.best_step}, "
        f"{summary.seconds:.0f} s"
    )
    return "\n".join(lines)
