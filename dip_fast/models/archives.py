"""TorchScript and .pt2 files as the ZIP archives that they are.  Imports no torch until one is run.

Loading such a file can run any code that its writer put in.  So its metadata are read here without loading it, and
`dip_fast.models.model.open_model` refuses it unless the user trusts where it comes from.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from dip_fast.errors import Argument, UsageError
from dip_fast.models.formats import SCHEMA, Contents, require
from dip_fast.models.packing import Text, as_text, parse_metadata

METADATA_ENTRY = "dip_fast"  # name in TorchScript's and .pt2's extra files
_FORMATS = ("torchscript", "pt2")


def texts(schema: int, facts: dict[str, Any], blobs: Mapping[str, Text]) -> dict[str, str]:
    """Return the extra files of an archive by name: the metadata as JSON, and the texts that go with them."""
    document = json.dumps({"schema": schema, **facts}, allow_nan=False)
    return {METADATA_ENTRY: document, **{f"{METADATA_ENTRY}.{name}": as_text(text) for name, text in blobs.items()}}


def read(data: bytes | memoryview) -> Contents:
    """Read the metadata of a TorchScript or .pt2 file without loading the model in it.

    Raises
    ------
    UsageError
        If it is damaged, foreign or of a later schema version.
    """
    try:
        found = _extra_files(data)
        document = parse_metadata(found.pop(""))
        schema, format_ = document["schema"], document["format"]
        if type(schema) is not int or schema < 1 or format_ not in _FORMATS:
            raise ValueError("metadata")
    except UsageError:
        raise
    except Exception as error:  # zipfile raises many kinds on damaged archives
        raise UsageError("it is damaged, or no model file; get an intact copy") from error
    if schema > SCHEMA:
        raise UsageError(f"it is of schema version {schema} and this dip-fast reads up to {SCHEMA}; update dip-fast")
    return Contents(format_, data, None, document, found)


def _extra_files(data: bytes | memoryview) -> dict[str, str]:
    """Return the texts that `texts` put into an archive, by their names without the prefix."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        found = [name for name in names if name.endswith(f"/extra/{METADATA_ENTRY}")]
        if len(found) != 1:
            raise UsageError("it is no model that dip-fast wrote; open it with what made it")
        prefix = found[0]
        extra = {}
        for name in names:
            if name.startswith(prefix):
                if archive.getinfo(name).file_size > len(data):  # they are stored, not compressed
                    raise UsageError("it is damaged; get an intact copy")
                extra[name.removeprefix(prefix).removeprefix(".")] = archive.read(name).decode()
    return extra


def run(contents: Contents, label: str, provider: str, threads: int | None) -> np.ndarray:
    """Load a trusted file and draw its picture: float32 ``(H, W, C)``, in its range.

    Parameters
    ----------
    contents : Contents
        The file, which can run code.
    label : str
        The model's name in messages.
    provider : str
        ``"cpu"`` alone.
    threads : int, optional
        Unused: PyTorch runs such a file on one thread, so that the bits are the same each time.

    Raises
    ------
    UsageError
        For another provider, or without torch.
    DipFastError
        If PyTorch fails.
    """
    if provider != "cpu":
        chosen = Argument("provider", provider)
        raise UsageError("{}: {} files are drawn on the CPU; leave it out", chosen, contents.format)
    require("torch")
    from dip_fast.models import torch_formats

    return torch_formats.run(contents.format, contents.data, label, fused=contents.metadata.get("fused_ops") is True)
