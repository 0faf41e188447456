"""How far the engines are from one another, for the model files of finished runs.

    dip-fast run photo.png --export onnx,torchscript,pt2
    python benchmarks/exactness.py runs/photo...

For each folder: whether onnxruntime draws the recorded bytes on 1 and 2 threads, five times each in sessions of their
own; and for each other format, and for plain PyTorch, the largest difference of the float outputs from onnxruntime's in
parts of the range, the largest difference of the samples in levels, and how many samples differ.
"""

from __future__ import annotations

from pathlib import Path

import common
import numpy as np
import torch

from dip_fast.models import onnx_engine
from dip_fast.models.formats import FORMATS
from dip_fast.models.model import open_model
from dip_fast.models.packing import digest
from dip_fast.programs import drawing as torch_program


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    for folder in parser.parse_args().folders:
        report(folder)


def report(folder: Path) -> None:
    """Compare the model files of one run."""
    model = open_model(folder / "model.onnx")
    assert model.program is not None
    outputs = [onnx_engine.run_file(model.data, threads=threads) for threads in (1, 2) for _ in range(5)]
    samples = model.samples(outputs[0])
    same = all((output == outputs[0]).all() for output in outputs)
    same &= digest(samples) == model.metadata["sha256"]["pixels"]
    print(
        f"{folder}: {model.kind.width}x{model.kind.height}; onnx {len(model.data) / 1e6:.1f} MB; "
        f"ten replays give the result's bytes: {'yes' if same else 'NO'}"
    )
    low, high = model.kind.value_range
    others = {"torch": torch_program.draw(model.program)}
    for name in ("torchscript", "pt2"):
        path = folder / f"model{FORMATS[name].suffix}"
        if path.exists():
            other = open_model(path, trust=True)
            others[name] = other.draw()
            recorded = digest(other.samples(others[name])) == other.metadata["sha256"]["pixels"]
            print(f"    {name}: the recorded bytes: {'yes' if recorded else 'NO'}")
    for name, output in others.items():
        off = np.abs(output.astype(np.float64) - outputs[0]) / (high - low)
        levels = np.abs(model.samples(output).astype(np.float64) - samples)
        changed = (levels > 0).mean()
        print(f"    {name}: {off.max():.1e} of the range, {levels.max():g} levels, {changed:.4%} of the samples")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
