"""Picture files in and out: a file and its kind to and from a float32 image ``(H, W, C)``.

Importing this loads numpy and no decoder.
"""

from dip_fast.pictures.decoded import Decoded
from dip_fast.pictures.files import write_atomically, write_in
from dip_fast.pictures.format import Format
from dip_fast.pictures.formats import FORMATS
from dip_fast.pictures.kind import Kind
from dip_fast.pictures.picture import Extras, Picture
from dip_fast.pictures.reading import read_mask, read_picture
from dip_fast.pictures.writing import encode_image, encode_samples

__all__ = [
    "FORMATS",
    "Decoded",
    "Extras",
    "Format",
    "Kind",
    "Picture",
    "encode_image",
    "encode_samples",
    "read_mask",
    "read_picture",
    "write_atomically",
    "write_in",
]
