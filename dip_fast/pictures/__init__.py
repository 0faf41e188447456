"""Picture files in and out: a file and its kind to and from a float32 image ``(H, W, C)``."""

from dip_fast.pictures.picture import (
    Picture,
    encode_picture,
    encode_samples,
    read_mask,
    read_picture,
    to_samples,
    write_atomically,
)

__all__ = [
    "Picture",
    "encode_picture",
    "encode_samples",
    "read_mask",
    "read_picture",
    "to_samples",
    "write_atomically",
]
