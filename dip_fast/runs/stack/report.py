"""The report of a stack: the first picture, the middle one and the last, and what was done with all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dip_fast.errors import Argument, UsageError
from dip_fast.pictures.files import is_there
from dip_fast.pictures.ranges import find
from dip_fast.pictures.samples import to_unit
from dip_fast.pictures.stacks import Stack, open_stack
from dip_fast.runs import commands, report, views
from dip_fast.runs.record import Summary
from dip_fast.runs.stack.record import StackRecord
from dip_fast.runs.stack.survey import survey
from dip_fast.runs.views import View, Views, eight_bits

SHOWN = 3  # pictures that are looked at
SamplesOf = Callable[[int], np.ndarray]


def units(*samples: np.ndarray) -> list[np.ndarray]:
    """Scale the samples of pictures to the range of the first."""
    limits = find(samples[0]).limits
    return [to_unit(each, limits) for each in samples]


def looks(stack: Stack, reference: Stack | None, restored: SamplesOf) -> Iterator[tuple[str, Views]]:
    """Collect what there is to look at of the first picture, the middle one and the last, with their names."""
    for number in sorted({round(place) for place in np.linspace(0, stack.count - 1, SHOWN)}):
        truth = [] if reference is None else [reference.read(number).samples]
        image, result, *clean = units(stack.read(number).samples, restored(number), *truth)
        yield stack.label(number), views.collect(image, result, reference=clean[0] if clean else None)


def small(looked: Views) -> Views:
    """Keep of what there is to look at what the report of several pictures has room for."""

    def rounded(view: View) -> View:
        return View(view.name, eight_bits(view.image))

    return replace(
        looked,
        before=rounded(looked.before),
        result=rounded(looked.result),
        others=[rounded(view) for view in looked.others],
        windows=looked.windows[:1],
    )


def page(record: StackRecord, shown: Sequence[tuple[str, Views]], folder: str) -> bytes:
    """Write the report.

    Parameters
    ----------
    record : StackRecord
        With its summary.
    shown : sequence of tuple
        As `looks` and `small` make them.
    folder : str
        As in `report.page`.
    """
    summary = record.summary
    assert summary is not None, "a run that gave nothing has no report"
    few = replace(summary, models=summary.models[:SHOWN])
    return report.fitted(
        shown,
        title=record.inputs["picture"]["name"],
        lead=list(_lead(record, summary, len(shown))),
        problems=summary.problems,
        curves=[],
        best_step=None,
        commands=[
            ("make the same run again", commands.repeat(record, folder, record.chunk)),
            ("go on", commands.resume(record, folder)),
            *((f"draw {Path(model['path']).stem} again", commands.replay(model)) for model in few.models),
            ("write this report again", commands.report(folder)),
        ],
        tables=[("Networks", list(_networks(record))), *report.tables(record, few)],
    )


def _lead(record: StackRecord, summary: Summary, shown: int) -> Iterator[str]:
    """Describe in sentences what was done and reached."""
    facts, networks = record.inputs["picture"], len(record.chunks)
    yield (
        f"Task {record.settings.task}, preset {record.settings.preset}: {facts['axes']}, restored by "
        f"{'one network' if networks == 1 else f'{networks} networks'} in {summary.steps} steps and "
        f"{summary.seconds:.0f} s."
    )
    if facts["pictures"] > shown:
        yield "The first picture, the middle one and the last are shown."
    if summary.psnr is not None:
        yield "What follows is the mean over all pictures."
    yield from report.quality_lines(summary)


def _networks(record: StackRecord) -> Iterator[tuple[str, str]]:
    """Describe which pictures each network has restored, and how well."""
    begins = {"start": "", "scene": ", where another scene begins", "size": ""}
    for chunk in record.chunks:
        first, last, estimated = chunk["first"] + 1, chunk["first"] + chunk["count"], chunk["estimated_psnrs"]
        quality = f", {min(estimated):.1f} to {max(estimated):.1f} dB as estimated" if estimated else ""
        name = f"pictures {first} to {last}" if last > first else f"picture {first}"
        yield name, f"{chunk['steps']} steps in {chunk['seconds']:.0f} s{quality}{begins[chunk['why']]}"


@contextlib.contextmanager
def results_of(record: StackRecord, folder: Path) -> Iterator[Stack]:
    """Open the restored pictures of a stack.

    Raises
    ------
    UsageError
        If they are gone.
    """
    names = [Path(name).name for name in record.results]
    with contextlib.closing(open_stack([folder / name for name in names])) as opened:
        yield opened


def again(record: StackRecord, folder: Path, inputs: Path | None) -> bytes:
    """Write the report once more, from the pictures that the stack was read from and its results.

    Raises
    ------
    UsageError
        If they are not there, or are others.
    """
    moved = Argument("inputs")
    with contextlib.ExitStack() as opened:

        def open_(sources: Sequence[Path], name: str) -> Stack:
            try:
                stack = opened.enter_context(contextlib.closing(open_stack(sources)))
            except UsageError as error:
                raise UsageError("{}; where the stack's files are elsewhere by now, give {}", error, moved) from error
            if survey(stack).sha256 != record.inputs[name]["sha256"]:
                raise UsageError("{} is not what this stack was read from; give the same, by {}", stack.name, moved)
            return stack

        named = record.sources or [record.files["picture"]]
        stack = open_(_found([Path(name) for name in named], inputs), "picture")
        reference = None
        if "reference" in record.inputs:
            reference = open_(_found([Path(record.files["reference"])], inputs), "reference")
        result = opened.enter_context(results_of(record, folder))
        if (result.count, result.kind.size) != (stack.count, stack.kind.size):
            raise UsageError("{} does not hold the results of this stack any more; put them back", folder)
        shown = [
            (name, small(looked))
            for name, looked in looks(stack, reference, lambda number: result.read(number).samples)
        ]
        return page(record, shown, str(folder))


def _found(sources: list[Path], inputs: Path | None) -> list[Path]:
    """Find files, a folder or a pattern, also where they are elsewhere: in a folder, or it is that folder."""
    if inputs is None:
        return sources
    held = [inputs / source.name for source in sources]
    if len(held) > 1 or "%" in held[0].name or is_there(held[0]):
        return held
    return sources if is_there(sources[0]) else [inputs]
