"""MRC, the format of electron microscopy, read and written by mrcfile: one section, with the size of its voxels."""

from __future__ import annotations

import io

import numpy as np
from mrcfile.mrcinterpreter import MrcInterpreter

from dip_fast.errors import UsageError
from dip_fast.pictures.decoded import Decoded
from dip_fast.pictures.formats import check_size
from dip_fast.pictures.geometry import Geometry
from dip_fast.pictures.kind import Kind
from dip_fast.pictures.picture import Extras

_PER_CM = 1e8  # ångström in a centimetre


def read(data: bytes, keep_metadata: bool) -> Decoded:
    """Decode an MRC file of one section.

    Parameters
    ----------
    data : bytes
        The file's content.
    keep_metadata : bool
        Unused: labels of the header belong to the old file.
    """
    header = np.frombuffer(data, "<i4", count=3)
    if not (0 < header[:2].max() < 2**20):  # written on a machine of the other byte order
        header = header.byteswap()
    check_size(int(header[1]), int(header[0]))
    if header[2] != 1:
        raise UsageError(f"it holds {header[2]} sections; save one as a file of its own")
    with MrcInterpreter(io.BytesIO(data)) as file:
        samples, notes = np.asarray(file.data), []
        voxel = file.voxel_size
        across, down = float(voxel.x), float(voxel.y)
    samples = samples.reshape(samples.shape[-2:])
    if samples.dtype.kind == "i":
        notes.append(f"{samples.dtype} samples were converted to 32-bit float.")
        samples = samples.astype(np.float32)
    if samples.dtype.kind not in "uf":
        raise UsageError(f"its samples are {samples.dtype}; save them as 32-bit float")
    samples = samples.astype(samples.dtype.newbyteorder("="))[..., None]
    if across > 0 and down > 0:
        return Decoded(samples, notes=notes, geometry=Geometry((_PER_CM / across, _PER_CM / down), "cm"))
    return Decoded(samples, notes=notes)


def write(samples: np.ndarray, kind: Kind, extras: Extras) -> bytes:
    """Encode samples of one channel as an MRC file of one section."""
    target = io.BytesIO()
    with MrcInterpreter() as file:
        file._iostream = target
        file._create_default_attributes()
        file.header.label[0] = b"restored by dip-fast"  # in place of the time: a replay has to give the same bytes
        file.set_data(samples[..., 0])
        geometry = extras.geometry
        if geometry is not None and geometry.actual is not None and geometry.unit == "cm":
            across, down = (_PER_CM / number for number in geometry.actual)
            file.voxel_size = (across, down, across)
        file.flush()
        return target.getvalue()
