"""OpenEXR: floats of 16 or 32 bits, by channels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import OpenEXR

from dip_fast.errors import UsageError
from dip_fast.pictures.decoded import Decoded
from dip_fast.pictures.formats import check_size
from dip_fast.pictures.kind import Kind
from dip_fast.pictures.picture import Extras


def read(data: bytes, keep_metadata: bool) -> Decoded:
    """Decode an OpenEXR file of one part with the channels R, G and B, or Y, and perhaps A.

    Parameters
    ----------
    data : bytes
        The file's content.
    keep_metadata : bool
        Unused: the format has no EXIF data.
    """
    with _in_memory(data) as path, OpenEXR.File(path, separate_channels=True, header_only=True) as file:
        if len(file.parts) > 1:
            raise UsageError(f"it holds {len(file.parts)} parts; save one as a file of its own")
        low, high = file.header()["dataWindow"]
        check_size(int(high[1] - low[1]) + 1, int(high[0] - low[0]) + 1)
    with _in_memory(data) as path, OpenEXR.File(path, separate_channels=True) as file:
        channels = {name: channel.pixels for name, channel in file.channels().items()}
    alpha = channels.pop("A", None)
    names = ["Y"] if "Y" in channels else ["R", "G", "B"] if "R" in channels else [*channels]
    if {*channels} != {*names} or len(names) not in (1, 3):
        raise UsageError(f"it holds the channels {', '.join(channels)}; save R, G and B, or Y, as a file of its own")
    samples = np.stack([np.asarray(channels[name], np.float32) for name in names], axis=2)
    if alpha is None:
        return Decoded(samples)
    return Decoded(samples, np.asarray(alpha, np.float32), alpha_kind="assocalpha")


def write(samples: np.ndarray, kind: Kind, extras: Extras) -> bytes:
    """Encode float samples as an OpenEXR file."""
    names = ["Y"] if kind.channels == 1 else ["R", "G", "B"]
    channels = {name: np.ascontiguousarray(samples[..., i]) for i, name in enumerate(names)}
    if extras.alpha is not None:
        channels["A"] = np.ascontiguousarray(extras.alpha)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with _in_memory(b"") as path:
        with OpenEXR.File(header, channels) as file:
            file.write(path)
        return Path(path).read_bytes()


@contextmanager
def _in_memory(data: bytes) -> Iterator[str]:
    """Put content into a file that has a path, which the library wants, and no place on a disk."""
    descriptor = os.memfd_create("picture.exr")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
