"""Model files of a stack: the network, fitted a little further for each picture until it draws that one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from dip_fast.errors import DipFastError, in_words
from dip_fast.fitting import Fit
from dip_fast.models import fitted, writing
from dip_fast.pictures import Extras, Kind
from dip_fast.pictures.stacks import Stack
from dip_fast.pictures.upright import extras_of
from dip_fast.runs.folder import Folder
from dip_fast.runs.record import ModelFile
from dip_fast.runs.stack.fitting import Together
from dip_fast.runs.stack.record import Chunk, StackRecord, model_names


def write(
    fit: Fit, pictures: Together, stack: Stack, chunk: Chunk, record: StackRecord, folder: Folder
) -> Iterator[tuple[int, np.ndarray]]:
    """Write the model files of the pictures of a chunk.

    Where one cannot be written the picture stays as the fit has made it: a folder remembers what is missing.

    Parameters
    ----------
    fit : Fit
        One that is over.
    pictures : Together
        Those of the chunk.
    stack, chunk, record, folder
        The record gets the files.

    Yields
    ------
    number : int
        Of a picture in the chunk.
    samples : ndarray
        What its files draw, ``(H, W, C)``: its result.
    """
    job = record.settings
    told: dict[str, Any] = {**vars(job), "recipe": record.recipe}
    names = {*model_names(chunk["first"], chunk["count"], record.export)}
    record.models = [model for model in record.models if Path(model["path"]).name not in names]
    for n in range(chunk["count"]):
        number = chunk["first"] + n
        result = fit.result(n)
        if fit.interrupted:
            return
        try:
            kind, extras = _described(pictures, stack, n, number)
            model = fitted.from_result(result, kind, extras, options=told, seed=job.seed, threads=job.threads)
            written = _written(model, model_names(number, 1, record.export), record.export, folder.place, job.threads)
        except Exception as error:  # whatever it is, the fit is worth more
            folder.note(DipFastError("{} has no model file: {}", stack.label(number), in_words(error)))
            continue
        record.models += written
        yield n, model.samples


def _described(pictures: Together, stack: Stack, n: int, number: int) -> tuple[Kind, Extras]:
    """Describe a picture of a stack as a picture of its own, with what was set aside in it."""
    found = pictures.range
    kind = replace(stack.kind, name=stack.label(number), value_range=found.whole, channel_ranges=found.channels)
    extras = extras_of(stack.read(number), keep_metadata=False)
    if pictures.data.aside is not None:
        off, samples = pictures.data.aside[n], pictures.samples[n]
        extras = replace(extras, aside=(off, np.where(off, samples, np.zeros((), samples.dtype))))
    return kind, extras


def _written(
    model: fitted.FittedModel, names: Sequence[str], formats: Sequence[str], place: Path, threads: int
) -> list[ModelFile]:
    return [
        cast(ModelFile, writing.write(model, place / name, format_, threads=threads))
        for name, format_ in zip(names, formats, strict=True)
    ]
