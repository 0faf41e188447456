"""ONNX files whose network input must be fed, for engines and tools that expect it so.

The file that a run keeps has its input as an initialiser, which need not be fed.  OpenCV's dnn cannot draw such a file,
and programs that simplify graphs take the initialiser for a constant, draw the picture, and leave nothing else in the
file.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from dip_fast.errors import DipFastError
from dip_fast.models import onnx_engine
from dip_fast.models.fitted import FittedModel
from dip_fast.models.model import open_model
from dip_fast.models.packing import digest
from dip_fast.models.writing import write
from dip_fast.pictures import write_atomically
from dip_fast.programs.program import part_name


def write_fed(fitted: FittedModel, path: Path, input_files: dict[str, Path], **options: Any) -> dict[str, Any]:
    """Write an ONNX file with plain inputs, and beside it their values.

    Parameters
    ----------
    fitted : FittedModel
        The folded network with its picture.
    path : Path
        The file; one that is there is replaced.
    input_files : dict of str to Path
        The ``.npy`` file of each input, as `files_of_inputs` names them; those that are there are replaced.
    **options
        As those of `dip_fast.models.writing.write`.

    Returns
    -------
    dict
        As `dip_fast.models.writing.write`, and ``inputs``, the paths of their values.

    Raises
    ------
    DipFastError
        As `dip_fast.models.writing.write`, and if it draws other bits than the file that it is made of.
    """
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / "model.onnx"
        written = write(fitted, stored, "onnx", **options)
        drawn = open_model(stored).draw()
        model = onnx.load(stored)
    inputs = {}
    for tensor in [*model.graph.initializer]:
        if tensor.name in input_files:
            inputs[tensor.name] = numpy_helper.to_array(tensor)
            model.graph.initializer.remove(tensor)
    data = model.SerializeToString()
    if digest(onnx_engine.run_file(data, inputs=inputs)) != digest(drawn):
        raise DipFastError(f"{path} was not written: it draws other bits than the run's own file; please report it")
    for name, values in inputs.items():
        file = io.BytesIO()
        np.save(file, values)
        write_atomically(input_files[name], file.getvalue())
    write_atomically(path, data)
    return written | {
        "path": str(path),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "inputs": [str(file) for file in input_files.values()],
    }


def files_of_inputs(fitted: FittedModel, path: Path) -> dict[str, Path]:
    """Name the files of the values of a model's inputs: ``model-inputs.z.npy`` beside ``model-inputs.onnx``."""
    names = [part_name(index) for index in range(len(fitted.program.inputs))]
    return {name: path.with_name(f"{path.stem}.{name}.npy") for name in names}
