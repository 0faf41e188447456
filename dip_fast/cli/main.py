"""Verbs and options; each verb is one call into the library, which is imported only when the verb needs it."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import json
import logging
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from dip_fast import __version__
from dip_fast.errors import Argument, DipFastError, ReplayDiffersError, UsageError
from dip_fast.names import BENCH_ENGINES, PRECISIONS
from dip_fast.presets import PRESETS

INTERRUPTED = 130
FORMAT_NAMES = ("onnx", "torchscript", "pt2")  # of dip_fast.models.formats, which imports numpy


class Verbs(click.Group):
    """A group that suggests the verb that was meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise click.UsageError(f"no such command: {args[0]!r}{_suggest(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


class Choice(click.Choice[str]):
    """A choice that suggests the value that was meant."""

    def get_invalid_choice_message(self, value: str, ctx: click.Context | None) -> str:
        """Say which values there are."""
        choices = [str(choice) for choice in self.choices]
        return f"{value!r} is not one of {', '.join(choices)}{_suggest(str(value), choices)}"


class Lists(click.Command):
    """A command whose options of several values take them at once too: ``--sizes 256 512`` or ``--sizes 256,512``.

    It has no arguments, so that every word after such an option, up to the next option, is a value of it.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option before each of its values, which is what click parses."""
        names = {name for param in self.params if getattr(param, "multiple", False) for name in param.opts}
        given: list[str] = []
        option = ""  # whose values the next words are
        for word, following in itertools.pairwise([*args, "--"]):
            name, equals, values = word.partition("=")
            if name in names and equals:
                given += [f"{name}={value}" for value in values.split(",")]
                option = ""
            elif name in names and not following.startswith("-"):
                option = name
            elif option and not word.startswith("-"):
                given += [f"{option}={value}" for value in word.split(",")]
            else:
                given.append(word)
                option = ""
        return super().parse_args(ctx, given)


class Formats(click.ParamType[tuple[str, ...]]):
    """Names of formats with commas between them, or none."""

    name = "formats"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Parse the names."""
        names = [name.strip() for name in value.split(",")] if isinstance(value, str) else list(value)
        if names == ["none"]:
            return ()
        for name in names:
            if name not in FORMAT_NAMES:
                choices = [*FORMAT_NAMES, "none alone"]
                self.fail(f"{name!r} is not one of {', '.join(choices)}{_suggest(name, choices)}", param, ctx)
        return tuple(dict.fromkeys(names))


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="dip-fast")
def cli() -> None:
    r"""Restore one damaged picture with no training data: a fast Deep Image Prior.

    \b
    dip-fast run photo.png                     denoise
    dip-fast run photo.png --mask mask.png     fill in what the mask leaves black
    dip-fast replay runs/photo/model.onnx      draw the result again, from the fitted network
    """


@cli.command()
@click.argument("picture")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the result and all about it.  [default: runs/<name of the picture>]",
)
@click.option("--task", type=Choice(["denoise", "inpaint"]), help="[default: denoise; inpaint with --mask]")
@click.option("--mask", type=click.Path(path_type=Path), help="White = known, black = to be filled in.")
@click.option("--reference", type=click.Path(path_type=Path), help="Clean picture, to log PSNR and SSIM with.")
@click.option(
    "--preset",
    type=Choice(list(PRESETS)),
    help="Network and how it is fitted; see dip-fast presets.  [default: quick on a CPU, paper on a GPU]",
)
@click.option(
    "--network",
    type=Choice(["skip", "hourglass", "decoder"]),
    help="Takes the preset of that network.",
)
@click.option(
    "--upsampling", type=Choice(["nearest", "bilinear"]), help="Of the skip network.  [default: the preset's]"
)
@click.option("--iterations", type=click.IntRange(min=1), metavar="N", help="Most steps.  [default: preset's]")
@click.option(
    "--stop",
    type=Choice(["auto", "never"]),
    help="Whether the moving variance of the iterates may end the fit.  [default: preset's, mostly auto]",
)
@click.option(
    "--fused/--no-fused",
    default=None,
    help="Engine; the two differ in rounding only.  [default: fused where it can be had]",
)
@click.option("--device", type=Choice(["auto", "cpu", "cuda"]), help="[default: auto]")
@click.option(
    "--precision",
    type=Choice(list(PRECISIONS)),
    help="Of products on a GPU; bf16 also halves the memory of images.  A CPU computes in fp32.  [default: tf32]",
)
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads, at most one a core.  [default: all]"
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), metavar="N", help="[default: 0]")
@click.option(
    "--snapshot-every",
    type=click.IntRange(min=0),
    metavar="N",
    help="Steps between iterates written to disk; 0 for none.  [default: 100]",
)
@click.option("--composite/--no-composite", default=None, help="Keep the known pixels when inpainting.  [default: on]")
@click.option("--keep-metadata", is_flag=True, default=None, help="Copy the EXIF data into the result.")
@click.option(
    "--export",
    type=Formats(),
    metavar="FORMATS",
    help="Model files to write: onnx, torchscript, pt2, with commas between them, or none.  [default: onnx]",
)
@click.option("--resume", is_flag=True, help="Go on with the run in --out, as if it had never stopped.")
@click.option("--overwrite", is_flag=True, help="Replace the run in --out.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON summary on standard output, and nothing else there."
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def run(
    picture: str,
    out: Path | None,
    mask: Path | None,
    reference: Path | None,
    fused: bool | None,
    export: tuple[str, ...] | None,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
    debug: bool,
    **options: Any,
) -> int:
    """Restore PICTURE, one noisy or holed picture; - reads standard input and writes standard output.

    The folder of the run holds result.png (result.tif for TIFF and float pictures), snapshots of the iterates, a
    contact sheet, the history as a table and as a plot, run.json with all that is needed to repeat the run, a
    checkpoint for --resume, and model.onnx, which draws the result again: dip-fast replay, or onnxruntime alone.
    Ctrl-C ends the fit after its step; what there is by then is written.

    Exit codes: 0 done; 1 failed, also where a file could not be written (the message says where the result is then);
    2 wrong usage or input; 130 stopped by the user.
    """
    from_stdin = picture == "-"
    if from_stdin and as_json:
        raise UsageError("--json and a result on standard output exclude each other; name the picture's file")
    if from_stdin and resume and out is None:
        raise UsageError("--resume needs the run's folder when the picture comes from standard input; give --out")
    if from_stdin and export and out is None:
        raise UsageError("--export needs a folder when the result goes to standard output; give --out")
    from dip_fast.device.memory import keep_memory

    keep_memory()
    from tqdm import tqdm

    from dip_fast.runs import run as runs

    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of its font cache

    said = {field: value for field, value in options.items() if value is not None}
    if fused is not None:
        said["engine"] = "fused" if fused else "plain"

    def say(line: str) -> None:
        if not quiet:
            with contextlib.suppress(OSError):  # a log that nobody takes is no reason to lose the fit
                tqdm.write(line, file=sys.stderr)

    with contextlib.ExitStack() as stack:
        kept = out
        if from_stdin and out is None:
            out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dip-fast-"))) / "stdin"
            export = ()
        request = runs.Request(
            source=_standard_input() if from_stdin else Path(picture),
            said=said,
            out=out,
            mask=mask,
            reference=reference,
            resume=resume,
            overwrite=overwrite,
            quiet=quiet,
            export=export,
        )
        summary = runs.run(request, say)
        result = Path(summary["result"])
        if from_stdin:
            try:
                _put(result.read_bytes())
            except DipFastError as error:
                safe = result if kept else runs.write_elsewhere(result.name, result.read_bytes())
                raise DipFastError(f"{error}; the result is in {safe}") from error
    if from_stdin:
        say(_figures(summary))
    elif as_json:
        _print(json.dumps(summary, allow_nan=False))
    elif not quiet:
        lines = [_figures(summary), f"result: {result}", *(f"replay: {_replay_line(m)}" for m in summary["models"])]
        _print("\n".join(lines))
    if problems := summary["problems"]:
        where = f"the result is in {result}, " if kept or not from_stdin else ""
        raise DipFastError(f"{problems[0]}; {where}{len(problems)} files of the run could not be written")
    if summary["stop_reason"] != "interrupted":
        return 0
    if kept or not from_stdin:
        say(f"stopped after step {summary['steps']}; go on with the same command and --resume")
    return INTERRUPTED


@cli.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--format", "format_", type=Choice(list(FORMAT_NAMES)), required=True, help="See dip-fast formats.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file.  [default: in the run's folder, model with the format's suffix]",
)
@click.option("--fp16", is_flag=True, help="Store the weights in 16 bits, and say what it costs.")
@click.option("--fused-ops", is_flag=True, help="Call this project's operators: torchscript, for C++ users of them.")
@click.option("--license", "license_", default="", metavar="TEXT", help="Your words on what may be done with the file.")
@click.option("--overwrite", is_flag=True, help="Replace the file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON summary, and nothing else.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def export(
    run_dir: Path,
    format_: str,
    out: Path | None,
    fp16: bool,
    fused_ops: bool,
    license_: str,
    overwrite: bool,
    as_json: bool,
    debug: bool,
) -> int:
    """Write the fitted network of RUN_DIR, a run's folder or its model.onnx, in another format.

    The new file is run and compared with the network before it is kept.  Exit codes: 0 done; 1 it drew another picture
    and was not kept, or could not be written; 2 wrong usage or input.
    """
    from dip_fast.models import exporting

    written = exporting.convert(
        run_dir, format_, out, fp16=fp16, fused_ops=fused_ops, license_=license_, overwrite=overwrite
    )
    if as_json:
        _print(json.dumps(written))
        return 0
    if error := written.get("error"):
        _print(
            f"16-bit weights: off by {error['largest']:.2g} of the range at most, PSNR {error['psnr']:.1f} dB, "
            f"{error['fraction']:.2%} of the samples changed"
        )
    _print(f"model: {written['path']} ({written['bytes'] / 1e6:.1f} MB)\nreplay: {_replay_line(written)}")
    return 0


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="The picture, .png or .tif; - is standard output.  [default: model-replay.png here; nothing with --verify]",
)
@click.option("--verify", is_flag=True, help="Compare with what was drawn when the file was written.")
@click.option("--difference", type=click.Path(path_type=Path), metavar="PNG", help="With --verify: where it differs.")
@click.option("--provider", type=Choice(["cpu", "cuda"]), default="cpu", help="Of onnxruntime.  [default: cpu]")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads of onnxruntime.  [default: all]")
@click.option("--trust", is_flag=True, help="Open TorchScript and .pt2 files, which can run code of their writer's.")
@click.option("--overwrite", is_flag=True, help="Replace the picture.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON summary, and nothing else.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def replay(as_json: bool, debug: bool, model: Path, **options: Any) -> int:
    """Draw the picture of MODEL, a file that dip-fast run or dip-fast export wrote.

    An ONNX file needs onnxruntime alone, not PyTorch.  Exit codes: 0 done, also where --verify finds a difference
    within the tolerance that the file names for other machines; 1 failed; 2 wrong usage or input; 4 --verify finds
    another picture.
    """
    from dip_fast.models import replaying

    if as_json and options["out"] == Path("-"):
        raise UsageError("--json and a picture on standard output exclude each other; name a file")
    summary, picture = replaying.run(replaying.Request(path=model, **options))
    if picture is not None:
        _put(picture)
    elif as_json:
        _print(json.dumps(summary, allow_nan=False))
    else:
        lines = [f"verify: {summary['text']}"] if summary["verdict"] else []
        _print("\n".join([*lines, *([f"result: {summary['result']}"] if summary["result"] else [])]))
    if summary["verdict"] == "differs":
        raise ReplayDiffersError(f"{model} does not draw the picture that it was kept for: {summary['text']}")
    return 0


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def formats(as_json: bool) -> None:
    """List the formats of model files: suffix, where they run, what replays them."""
    from dip_fast.models.formats import FORMATS

    if as_json:
        _print(json.dumps({name: format_.facts() for name, format_ in FORMATS.items()}))
        return
    for name, format_ in FORMATS.items():
        _print(f"{name}: {format_.suffix}, on {format_.device}; replayed by {format_.replayed_by}")


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def presets(as_json: bool) -> None:
    """List the presets, with what they cost and reach."""
    if as_json:
        facts = {name: {"summary": preset.summary, **_shown(name)} for name, preset in PRESETS.items()}
        _print(json.dumps(facts))
        return
    _print("Costs at 256x256 on two CPU threads (AMD Zen 3), PSNR on the picture F16 with noise of sigma 25.")
    for name, preset in PRESETS.items():
        shown = _shown(name)
        _print(f"{name}: {preset.summary}")
        _print(f"    network {shown['network']}, {shown['iterations']} steps; {preset.cost}")


@cli.command(cls=Lists)
@click.option(
    "--sizes",
    type=click.IntRange(min=16),
    multiple=True,
    default=(256, 512),
    metavar="N ...",
    help="Sides of the square pictures.  [default: 256 512]",
)
@click.option("--upsampling", type=Choice(["nearest", "bilinear", "both"]), default="both", help="[default: both]")
@click.option(
    "--preset",
    type=Choice([name for name, preset in PRESETS.items() if preset.recipe.network == "skip"]),
    default="paper",
    help="[default: paper]",
)
@click.option(
    "--engines",
    type=Choice(list(BENCH_ENGINES)),
    multiple=True,
    metavar="NAME ...",
    help="fused, plain, compile; on a CPU plain-retained, on a GPU plain-channels-last, compile-max-autotune.  "
    "[default: all that can be had]",
)
@click.option("--device", type=Choice(["auto", "cpu", "cuda"]), default="auto", help="[default: auto]")
@click.option("--precision", type=Choice(list(PRECISIONS)), help="Of the products, on a GPU.  [default: tf32]")
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads, at most one a core.  [default: all]"
)
@click.option(
    "--seconds", type=click.FloatRange(min=0), metavar="S", help="Time that all of it may take.  [default: 540]"
)
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Measured steps an engine, in place of a time.")
@click.option(
    "--profile", "profiled", is_flag=True, help="Say where the time of the fused step goes, and how near its floor is."
)
@click.option("--plot", type=click.Path(path_type=Path), metavar="PNG", help="Draw the figures as bars.")
@click.option("--json", "as_json", is_flag=True, help="Print the records as JSON, and nothing else there.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def bench(
    upsampling: str,
    engines: tuple[str, ...],
    seconds: float | None,
    steps: int | None,
    profiled: bool,
    plot: Path | None,
    as_json: bool,
    debug: bool,
    **options: Any,
) -> int:
    """Compare the engines: time of a whole fitting step, and peak memory.

    Each runs in a process of its own, and they take turns, whose first step is not measured: fused, as dip-fast
    run has it; plain, which is plain PyTorch; plain-retained, the same with freed memory kept by the
    allocator; and plain under torch.compile, which needs minutes the first time.  On a GPU plain lets cuDNN try its
    algorithms; plain-channels-last keeps the images so, and compile-max-autotune is torch.compile in that mode.
    Ratios are to fused.

    Exit codes: 0 done; 1 failed; 2 wrong usage; 130 stopped by the user.
    """
    if seconds is not None and steps is not None:
        raise UsageError("--seconds and --steps exclude each other; give one of the two")
    if profiled:
        for name, given in (("--plot", plot), ("--engines", engines), ("--seconds", seconds is not None)):
            if given:
                raise UsageError(f"--profile and {name} exclude each other; leave one of the two out")
    if plot is not None:
        _require_new_png(plot)
    from dip_fast.bench import benchmarking

    if seconds is not None:
        options["seconds"] = seconds
    settings = benchmarking.Settings(
        upsampling=("nearest", "bilinear") if upsampling == "both" else (upsampling,),
        engines=tuple(dict.fromkeys(engines)) or None,
        steps=steps,
        **{**options, "sizes": tuple(dict.fromkeys(options["sizes"]))},
    )

    def say(line: str) -> None:
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr)

    if profiled:
        found = benchmarking.profile(settings, say)
        if as_json:
            _print(json.dumps(found))
            return 0
        _print(benchmarking.machine_line(found))
        for profile in found["profiles"]:
            _print("\n".join(["", *benchmarking.profile_lines(profile)]))
        return 0
    records: list[dict[str, Any]] = []
    for group in benchmarking.measure(settings, say):
        if not as_json:
            if not records:
                _print(benchmarking.machine_line({**benchmarking.machine(), **group[0]}))
            _print("\n".join(benchmarking.table(group, head=not records)))
        records += group
    if as_json:
        _print(json.dumps(records))
    if plot is not None:
        try:
            with plot.open("xb") as file:
                file.write(benchmarking.plot(records))
        except OSError as error:
            raise DipFastError(f"cannot write {plot}: {error.strerror}") from error
    return 0


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(as_json: bool) -> None:
    """Print what a bug report needs: versions, CPU, what is built, GPUs."""
    from dip_fast.info import collect

    facts = collect()
    if as_json:
        _print(json.dumps(facts))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value)) or "none"
        _print(f"{name}: {value}")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code; an error is one line on standard error."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if sys.stderr is None:  # closed by the caller; print would take standard output in its place
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  (it stays open)
    try:
        code = cli.main(arguments, prog_name="dip-fast", standalone_mode=False)
    except click.exceptions.Exit as exit_request:
        code = exit_request.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        code = 2
    except click.ClickException as error:
        code = _complain(error.format_message(), error.exit_code, arguments)
    except (KeyboardInterrupt, click.exceptions.Abort):
        code = _complain("stopped by the user", INTERRUPTED, arguments)
    except DipFastError as error:
        code = _complain(error.spelled(_option), error.exit_code, arguments)
    except ModuleNotFoundError as error:
        code = _complain(f"{error.name} is missing; pip install it, or dip-fast with all it needs", 1, arguments)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        code = _complain(f"unexpected {text}; please report it with the output of --debug", 1, arguments)
    sys.exit(code)


def _option(argument: Argument) -> str:
    """Spell an argument as the option that it is here."""
    name = f"--{argument.name.replace('_', '-')}"
    return name if argument.value is Argument.UNSET or argument.value is True else f"{name} {argument.value}"


def _complain(message: str, code: int, arguments: Sequence[str]) -> int:
    """Print an error, after its traceback if that is wanted."""
    with contextlib.suppress(OSError):
        if "--debug" in arguments:
            traceback.print_exc()
        print("dip-fast: " + " ".join(message.split()), file=sys.stderr)
    return code


def _figures(summary: dict[str, Any]) -> str:
    """Say what was reached."""
    lines = []
    if summary["psnr"] is not None:
        lines.append(
            f"PSNR {summary['psnr_input']:.2f} -> {summary['psnr']:.2f} dB, "
            f"SSIM {summary['ssim_input']:.3f} -> {summary['ssim']:.3f}"
        )
    reason = {"iterations": "all steps done", "variance": "stopped by itself", "interrupted": "stopped"}
    lines.append(
        f"{reason[summary['stop_reason']]}: step {summary['steps']}, answer from step {summary['best_step']}, "
        f"{summary['seconds']:.0f} s"
    )
    return "\n".join(lines)


def _replay_line(model: dict[str, Any]) -> str:
    """Give the command that draws a model's picture again."""
    path = model["path"] if not model["path"].startswith("-") else f"./{model['path']}"
    from dip_fast.models.formats import FORMATS

    return f"dip-fast replay {shlex.quote(path)}{' --trust' if FORMATS[model['format']].runs_code else ''}"


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise UsageError("standard input is closed; name the picture's file")
    return sys.stdin.buffer.read()


def _print(text: str) -> None:
    """Print to standard output; a path may hold what its encoding has not."""
    _put(f"{text}\n".encode(getattr(sys.stdout, "encoding", "utf-8"), "backslashreplace"))


def _put(data: bytes) -> None:
    """Write to standard output, at once: an error has to show here, and not when the interpreter ends."""
    if sys.stdout is None:
        raise DipFastError("cannot write to standard output: it is closed")
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        # What is left in the buffer would raise once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise DipFastError(f"cannot write to standard output: {error.strerror}") from error


def _require_new_png(path: Path) -> None:
    """Refuse a plot that could not be written, before the minutes of measuring."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"--plot {path}: the plot is a PNG file; give a name that ends in .png")
    if path.exists():
        raise UsageError(f"{path} exists; give --plot another name, or remove it")
    if not path.parent.is_dir():
        raise UsageError(f"--plot {path}: there is no folder {path.parent}")


def _shown(name: str) -> dict[str, Any]:
    recipe = PRESETS[name].recipe
    return {"network": recipe.network, "iterations": recipe.options.iterations, "cost": PRESETS[name].cost}


def _suggest(word: str, words: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {near[0]}?" if near else ""
