"""Picture files for tests, made by Pillow, tifffile or byte by byte, and what is read of them."""

import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import tifffile
from PIL import Image, ImageCms

from dip_fast.pictures import encode_image

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
TALL = (21, 18)  # height, width: neither square nor a multiple of 16


def noise(*shape, dtype=np.uint8, seed=0):
    """Independent samples over the whole range of the dtype; floats in [0, 1)."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.random(shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def smooth(*shape):
    """uint8 ramps, gentle on lossy formats."""
    ramp = np.add.outer(np.arange(shape[0]) * 5, np.arange(shape[1]) * 3) % 256
    return np.dstack([np.roll(ramp, 7 * i, axis=0) for i in range(shape[2])]).astype(np.uint8)


def pillow(picture, kind, **options):
    """Return the bytes of an array or an Image as Pillow writes it."""
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, kind, **options)
    return file.getvalue()


def tiff(samples, **options):
    file = io.BytesIO()
    options = {"photometric": "rgb" if samples.shape[-1] in (3, 4) else "minisblack", "metadata": None, **options}
    tifffile.imwrite(file, samples, **options)
    return file.getvalue()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(size, depth, colour, rows, *chunks):
    """Return a PNG made by hand, for what no library at hand writes; `rows` are bytes, one row each."""
    header = struct.pack(">IIBBBBB", size[1], size[0], depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def samples_of(picture):
    """Return what the file held: colour and alpha, gray without a channel axis."""
    samples = picture.kind.to_samples(picture.image)
    alpha = picture.extras.alpha
    samples = samples if alpha is None else np.dstack([samples, alpha])
    return samples[..., 0] if samples.shape[2] == 1 else samples


def encode_picture(image, picture, suffix=None):
    """Encode an image of any size as a file of a picture's kind, with all that goes along with the picture."""
    height, width, channels = image.shape
    kind = replace(picture.kind, height=height, width=width, channels=channels)
    return encode_image(image, kind, picture.extras, suffix=suffix)


def palette_picture(colours, **info):
    picture = Image.fromarray(noise(*TALL) % len(colours)).convert("P")
    picture.putpalette([value for colour in colours for value in colour])
    picture.info.update(info)
    return picture


COLOURS = np.array([(250, 10, 20), (1, 2, 3), (90, 180, 60), (255, 255, 255)], np.uint8)
GRAYS = np.array([(10, 10, 10), (200, 200, 200), (33, 33, 33)], np.uint8)


def full_exif():
    """A block as a camera writes it, by hand: two directories of text and numbers, and a thumbnail."""
    exif = Image.Exif()
    exif[274], exif[271], exif[315] = 6, "Camera & Söhne".encode("latin-1"), "A. Nobody"
    exif[0x8769] = {0x829A: 0.004, 0x9003: "2020:01:02 03:04:05", 0xA002: 4000}
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 12.5)}
    block = exif.tobytes()
    thumbnail = b"THUMBNAIL" * 20
    body = bytearray(block.removeprefix(b"Exif\0\0"))
    body += bytes(len(body) % 2)
    order = "<" if body[:2] == b"II" else ">"
    (first,) = struct.unpack_from(order + "I", body, 4)
    (count,) = struct.unpack_from(order + "H", body, first)
    struct.pack_into(order + "I", body, first + 2 + 12 * count, len(body))
    directory = struct.pack(order + "HHHIIHHIII", 2, 513, 4, 1, len(body) + 30, 514, 4, 1, len(thumbnail), 0)
    return b"Exif\0\0" + bytes(body) + directory + thumbnail
