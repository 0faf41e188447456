"""``dip-fast bench``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from dip_fast.cli.output import say, show
from dip_fast.cli.parameters import Choice, Lists, debug_option, json_option
from dip_fast.cli.signals import importing
from dip_fast.errors import Argument, DipFastError, UsageError
from dip_fast.names import BENCH_ENGINES, PRECISIONS
from dip_fast.presets import PRESETS


@click.command(cls=Lists, short_help="Compare the engines: time of a step, and peak memory.")
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
    help="fused, plain, compile; on a CPU fused-bf16, plain-retained, on a GPU plain-channels-last, "
    "compile-max-autotune.  "
    "[default: all that run here]",
)
@click.option("--device", type=Choice(["auto", "cpu", "cuda"]), default="auto", help="[default: auto]")
@click.option("--precision", type=Choice(list(PRECISIONS)), help="As that of `run`.  [default: tf32]")
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
@json_option
@debug_option
def bench(
    upsampling: str,
    engines: tuple[str, ...],
    seconds: float | None,
    steps: int | None,
    profiled: bool,
    plot: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Compare the engines: time of a whole fitting step, and peak memory.

    Each runs in a process of its own, and they take turns, whose first step is not measured: fused, as dip-fast
    run has it; fused-bf16, the same with --precision bf16; plain, which is plain PyTorch; plain-retained, the same
    with freed memory kept by the allocator; and plain under torch.compile, which needs minutes the first time.  On
    a GPU plain lets cuDNN try its algorithms; plain-channels-last keeps the images so, and compile-max-autotune is
    torch.compile in that mode.
    Ratios are to fused.

    Exit codes: 0 done; 1 failed; 2 wrong usage; 130 stopped by the user.
    """
    if seconds is not None and steps is not None:
        raise UsageError("{} and {} exclude each other; give one of the two", Argument("seconds"), Argument("steps"))
    if profiled:
        for name, given in (("--plot", plot), ("--engines", engines), ("--seconds", seconds is not None)):
            if given:
                raise UsageError(f"--profile and {name} exclude each other; leave one of the two out")
    if plot is not None:
        _require_new_png(plot)
    with importing():
        from dip_fast.bench import measuring, profile_tables, tables
        from dip_fast.bench.configurations import BenchSettings
        from dip_fast.bench.machine import machine, machine_line

    if seconds is not None:
        options["seconds"] = seconds
    settings = BenchSettings(
        upsampling=("nearest", "bilinear") if upsampling == "both" else (upsampling,),
        engines=tuple(dict.fromkeys(engines)) or None,
        steps=steps,
        **{**options, "sizes": tuple(dict.fromkeys(options["sizes"]))},
    )

    if profiled:
        found = measuring.profile(settings, say)
        if as_json:
            show(json.dumps(found))
            return 0
        show(machine_line(found))
        for profile in found["profiles"]:
            show("\n".join(["", *profile_tables.profile_lines(profile)]))
        return 0
    records: list[dict[str, Any]] = []
    for group in measuring.measure(settings, say):
        if not as_json:
            if not records:
                show(machine_line({**machine(), **group[0]}))
            show("\n".join(tables.table(group, head=not records)))
        records += group
    if as_json:
        show(json.dumps(records))
    if plot is not None:
        try:
            with plot.open("xb") as file:
                file.write(tables.plot(records))
        except OSError as error:
            raise DipFastError(f"cannot write {plot}: {error.strerror}") from error
    return 0


def _require_new_png(path: Path) -> None:
    """Refuse a plot that could not be written, before the minutes of measuring."""
    from dip_fast.pictures.files import check_free, check_suffix

    check_suffix(path, ".png", Argument("plot"))
    check_free(path, overwrite=True)  # a name that no file can have
    if path.exists():
        raise UsageError(f"{path} exists; give --plot another name, or remove it")
