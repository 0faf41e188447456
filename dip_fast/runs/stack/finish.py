"""The end of a stack: all chunks become the files of the results, and what shows some of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from dip_fast.models import onnx_engine
from dip_fast.models.packing import digest
from dip_fast.pictures import metrics
from dip_fast.pictures.stacks import Stack
from dip_fast.runs import report, reporting
from dip_fast.runs.contact_sheet import sheet_of
from dip_fast.runs.record import NAME, Summary, now
from dip_fast.runs.stack.record import StackFolder, StackRecord
from dip_fast.runs.stack.report import looks, page, small, units


class Restored:
    """The restored pictures, read from the files of their chunks when they are asked for."""

    def __init__(self, record: StackRecord, folder: Path) -> None:
        self.arrays = [np.load(folder / chunk["file"], mmap_mode="r", allow_pickle=False) for chunk in record.chunks]
        self.places = [(k, n) for k, chunk in enumerate(record.chunks) for n in range(chunk["count"])]

    def __call__(self, number: int) -> np.ndarray:
        """Read the samples of a picture, ``(H, W, C)``."""
        chunk, place = self.places[number]
        return np.asarray(self.arrays[chunk][place])


def load(path: Path) -> np.ndarray | None:
    """Open the results of a chunk; None where they are damaged."""
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError):
        return None


def finish(record: StackRecord, stack: Stack, reference: Stack | None, folder: StackFolder) -> Summary:
    """Write the results, and then the record."""
    restored = Restored(record, folder.place)
    for name in stack.results:
        with folder.stream(name) as file:
            stack.write(name, file, restored)
    place = folder.place
    folder.result = place if len(stack.results) > 1 else place / stack.results[0]
    shown, sheets = [], []
    for label, looked in looks(stack, reference, restored):
        sheets.append(sheet_of(looked))
        shown.append((label, small(looked)))
    folder.write("contact_sheet.png", lambda: reporting.preview(np.concatenate(sheets)))
    found, sums = hashlib.sha256(), np.zeros(4)
    for number in range(stack.count):
        samples = restored(number)
        found.update(digest(samples).encode())
        if reference is not None:
            sums += _quality(stack.read(number).samples, samples, reference.read(number).samples)
    psnr_input, ssim_input, psnr, ssim = (None if reference is None else float(s) / stack.count for s in sums)
    estimated = [each for chunk in record.chunks for each in chunk["estimated_psnrs"]]
    steps, job = sum(chunk["steps"] for chunk in record.chunks), record.settings
    summary = Summary(
        result=str(folder.result),
        folder=str(place),
        steps=steps,
        best_step=steps,
        stop_reason="iterations",
        seconds=round(sum(chunk["seconds"] for chunk in record.chunks), 3),
        device=job.device,
        engine=job.engine,
        precision=job.precision,
        seed=job.seed,
        psnr=psnr,
        ssim=ssim,
        psnr_input=psnr_input,
        ssim_input=ssim_input,
        estimated_psnr=sum(estimated) / len(estimated) if estimated else None,
        baseline=None,
        sha256=found.hexdigest(),
        drawn_by=onnx_engine.version() if record.models else f"torch {torch.__version__}",
        models=record.models,
        problems=folder.problems,
    )
    record.status, record.ended, record.summary = "done", now(), summary
    record.seconds_per_step = summary.seconds / max(steps, 1)
    folder.write(report.NAME, lambda: page(record, shown, str(place)))
    folder.rewrite(NAME, record.json())
    folder.remove([chunk["file"] for chunk in record.chunks])
    folder.remove_snapshots()
    return summary


def _quality(before: np.ndarray, after: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Measure PSNR and SSIM of a picture and of its result, in the range of the picture."""
    noisy, clean, truth = units(before, after, reference)
    return np.array([measure(image, truth) for image in (noisy, clean) for measure in (metrics.psnr, metrics.ssim)])
