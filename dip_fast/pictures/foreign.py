"""Files that people hand in for a picture and that are none: what each is, and what to do with it."""

from __future__ import annotations

import re

_ARCHIVES = {
    b"PK\x03\x04": "zip",
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar",
}
_FRAME = "it is a video; save one frame as PNG, as with ffmpeg -i VIDEO -frames:v 1 frame.png"
_MICROSCOPE = "it is a microscope's own file ({}); export one plane as OME-TIFF"
# How a file begins, and what is said of it.
_BEGINNINGS = {
    b"\x1a\x45\xdf\xa3": _FRAME,
    b"\0\0\x01\xba": _FRAME,
    b"%PDF": "it is a PDF document; export its page as PNG, or take the picture out of it with pdfimages",
    b"%!PS": "it is a PostScript document; export its page as PNG",
    b"8BPS": "it is a Photoshop file; export it as TIFF",
    b"gimp xcf": "it is a GIMP file; export it as TIFF",
    b"XISF0100": "it is an XISF file; save it as FITS",
    b"ZISRAWFILE": _MICROSCOPE.format("CZI"),
    b"\xda\xce\xbe\x0a": _MICROSCOPE.format("ND2"),
    b"\x70\0\0\0": _MICROSCOPE.format("LIF"),
    b"\xd0\xcf\x11\xe0": _MICROSCOPE.format("OIB or ZVI"),
    b"\x89HDF\r\n\x1a\n": "it is an HDF5 file; save one array of it as .npy",
    b"\0\0\x01\0": "it is an icon; convert it to PNG",
}
# Brands of ISO media files, which share their first bytes with AVIF and HEIF.
_VIDEOS = (b"isom", b"iso2", b"iso4", b"iso5", b"iso6", b"mp41", b"mp42", b"avc1", b"M4V ", b"qt  ", b"3gp4", b"dash")
_SCHEME = re.compile(r"(https?|s?ftp|s3|gs|file|data|blob):", re.IGNORECASE)


def advice(data: bytes) -> str | None:
    """Find what a file is that no format recognises, from how it begins.

    Returns
    -------
    str or None
        What it is, and what to do; None where that is not known.
    """
    for beginning, kind in _ARCHIVES.items():
        if data.startswith(beginning):
            return f"it is an archive ({kind}); unpack it and name one picture"
    if data[257:262] == b"ustar":
        return "it is an archive (tar); unpack it and name one picture"
    for beginning, text in _BEGINNINGS.items():
        if data.startswith(beginning):
            return text
    if (data[4:8] == b"ftyp" and data[8:12] in _VIDEOS) or (data[:4] == b"RIFF" and data[8:12] == b"AVI "):
        return _FRAME
    if data[128:132] == b"DICM":
        return "it is a DICOM file; export it as TIFF"
    start = data[:1000].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "it is a web page; save the picture that it shows, and name that"
    if start.startswith(b"<svg") or (start.startswith(b"<?xml") and b"<svg" in start):
        return "it is a drawing (SVG); export it as PNG"
    return None


def is_address(source: str) -> bool:
    """Find whether what was named as a file is an address on the web or elsewhere."""
    return _SCHEME.match(source) is not None
