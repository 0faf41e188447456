"""A model file in, its picture out.  The ONNX path imports neither torch nor the extension.

An ONNX file is parsed, compared with what this package writes, and only then given to onnxruntime
(`onnx_format`).  TorchScript and .pt2 files can run code when they are loaded, so they are opened only for a
user who trusts where they come from.
"""

from __future__ import annotations

import base64
import binascii
import importlib.util
import io
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dip_fast.device import memory
from dip_fast.errors import DipFastError, UsageError
from dip_fast.models.formats import FORMATS, SCHEMA, Difference, Kind, compare, digest, unpack
from dip_fast.pictures.samples import to_dtype
from dip_fast.programs.program import Program

LARGEST_FILE = 2**31 - 1  # of protobuf; model files are kept below it when they are written
METADATA_ENTRY = "dip_fast"  # name in TorchScript's and .pt2's extra files


@dataclass(frozen=True, eq=False)
class Model:
    """A model file, read but not run.

    Attributes
    ----------
    label : str
        What to call it in messages.
    format : str
        A key of `FORMATS`.
    data : bytes
        The file.
    program : Program, optional
        Of an ONNX file.
    metadata : dict
    kind : Kind
        Of the picture.
    pixels : ndarray
        As they were drawn at export: what `verify` compares with.
    alpha : ndarray, optional
        ``(H, W)``, in the picture's dtype.
    icc_profile : bytes, optional
    """

    label: str
    format: str
    data: bytes
    program: Program | None
    metadata: dict[str, Any]
    kind: Kind
    pixels: np.ndarray
    alpha: np.ndarray | None
    icc_profile: bytes | None

    def draw(self, provider: str = "cpu", threads: int | None = None) -> np.ndarray:
        """Run the model: float32 ``(H, W, C)``, in the picture's range.

        Raises
        ------
        DipFastError
            If the engine fails, or what it draws is no picture.
        UsageError
            If there is no such provider, or not enough memory.
        """
        if self.program is not None:
            needed, available = self.program.needed_bytes, memory.available_bytes()
            if needed > available:
                raise UsageError(
                    f"cannot replay {self.label}: drawing it takes {needed / 1e9:.3g} GB of memory and "
                    f"{available / 1e9:.3g} GB are free; free some, or take a larger machine"
                )
            from dip_fast.models import onnx_format

            # Not the file's own bytes: nothing that two parsers could read in two ways reaches the engine.
            data = onnx_format.write(self.program)
            output = run_onnx(data, provider=provider, threads=threads, label=self.label)
        else:
            if provider != "cpu":
                raise UsageError(f"--provider {provider}: {self.format} files are drawn on the CPU; leave it out")
            require("torch")
            from dip_fast.models import torch_formats

            output = torch_formats.run(self.format, self.data, self.label, fused=self.metadata.get("fused_ops") is True)
        if output.shape != (self.kind.height, self.kind.width, self.kind.channels) or output.dtype != np.float32:
            raise UsageError(f"cannot replay {self.label}: it draws no picture of the size that it names")
        if not np.isfinite(output).all():
            raise UsageError(f"cannot replay {self.label}: it draws NaN or infinite values; get an intact copy")
        return output

    def samples(self, output: np.ndarray) -> np.ndarray:
        """Turn what was drawn into the picture's samples, ``(H, W, C)``."""
        return to_dtype(output, np.dtype(self.kind.dtype))

    def encode(self, samples: np.ndarray, suffix: str | None = None) -> bytes:
        """Encode samples as a file of the picture's kind, with its alpha and its profile."""
        from dip_fast import pictures
        from dip_fast.pictures.samples import to_unit

        kind = self.kind
        picture = pictures.Picture(
            name=kind.name,
            image=to_unit(samples, kind.value_range),
            dtype=np.dtype(kind.dtype),
            value_range=kind.value_range,
            alpha=self.alpha,
            icc_profile=self.icc_profile,
            exif=None,
            suffix=kind.suffix,
            notes=(),
            alpha_kind=kind.alpha or "unassalpha",
        )
        return pictures.encode_samples(samples, picture, suffix=suffix)


def require(*libraries: str) -> None:
    """Refuse to begin what could not be ended.

    Raises
    ------
    UsageError
        If a library is missing.
    """
    for name in libraries:
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"{name} is missing, which drawing a model file needs; pip install {name}")


def open_model(path: str | os.PathLike[str], *, trust: bool = False) -> Model:
    """Read a model file of any format.

    Parameters
    ----------
    path : str or os.PathLike
    trust : bool
        Open formats that can run code.

    Raises
    ------
    UsageError
        In one line, if the file is missing, damaged, foreign, of a later schema version, or not trusted.
    """
    label = str(path).encode("utf-8", "replace").decode()
    try:
        return _model(label, _content(Path(path)), trust)
    except UsageError as error:
        raise UsageError(f"cannot replay {label}: {error}") from error


def _content(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise UsageError("it is a folder; name the model file in it")
        if path.stat().st_size > LARGEST_FILE:
            raise UsageError("it is larger than any model file; get the right one")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{getattr(error, 'strerror', None) or error}; check the path") from error


def _model(label: str, data: bytes, trust: bool) -> Model:
    if data[:4] == b"PK\3\4":
        format_, document, blobs = _read_archive(data, trust)
        program = None
    else:
        require("onnx", "onnxruntime")
        from dip_fast.models import onnx_format

        format_ = "onnx"
        program, document, blobs = onnx_format.read(data)
    try:
        kind = Kind.of(document["picture"])
        if program is not None and program.size != (kind.height, kind.width):
            raise ValueError("the picture is of another size")
        if program is not None and (program.channels, program.value_range) != (kind.channels, kind.value_range):
            raise ValueError("the picture has other channels, or another range")
        if program is not None and program.known is not None and program.known[1].dtype != kind.dtype:
            raise ValueError("the known pixels are of another kind")
        shape = (kind.height, kind.width)
        _check_metadata(document)
        pixels = unpack(blobs["pixels"], (*shape, kind.channels), kind.dtype)
        if not np.isfinite(pixels).all():
            raise ValueError("the pixels are no numbers")
        alpha = None if kind.alpha is None else unpack(blobs["alpha"], shape, kind.dtype)
        profile = base64.b64decode(blobs["icc_profile"], validate=True) if "icc_profile" in blobs else None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, binascii.Error, MemoryError) as error:
        raise UsageError("its metadata are damaged; get an intact copy") from error
    return Model(label, format_, data, program, document, kind, pixels, alpha, profile)


def _check_metadata(document: dict[str, Any]) -> None:
    """Check what `verify` relies on."""
    hashes, allowed = document["sha256"], document["tolerance"]
    if not all(isinstance(hashes[name], str) and len(hashes[name]) == 64 for name in ("z", "float_output", "pixels")):
        raise ValueError("a hash is none")
    numbers = [allowed["float"], allowed["fraction"], *([] if allowed["levels"] is None else [allowed["levels"]])]
    if not all(isinstance(number, int | float) and 0 <= number < 2**16 for number in numbers):
        raise ValueError("a tolerance is none")


def _read_archive(data: bytes, trust: bool) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Read the metadata of a TorchScript or .pt2 file, which are ZIP archives, without opening the model in it."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            found = [name for name in names if name.endswith(f"/extra/{METADATA_ENTRY}")]
            if len(found) != 1:
                raise UsageError("it is no model that dip-fast wrote; open it with what made it")
            prefix = found[0]
            texts = {}
            for name in names:
                if name.startswith(prefix):
                    if archive.getinfo(name).file_size > len(data):  # they are stored, not compressed
                        raise UsageError("it is damaged; get an intact copy")
                    texts[name.removeprefix(prefix).removeprefix(".")] = archive.read(name).decode()
        document = json.loads(texts.pop(""))
        schema = document["schema"]
        if type(schema) is not int or schema < 1 or document["format"] not in FORMATS:
            raise ValueError("metadata")
    except UsageError:
        raise
    except Exception as error:  # zipfile raises many kinds on damaged archives
        raise UsageError("it is damaged, or no model file; get an intact copy") from error
    if schema > SCHEMA:
        raise UsageError(f"it is of schema version {schema} and this dip-fast reads up to {SCHEMA}; update dip-fast")
    if not trust:
        raise UsageError(
            f"it is a {document['format']} file, and loading such a file can run any code that its writer put in; "
            "give --trust if you know where it comes from, or take the ONNX file, which cannot"
        )
    return document["format"], document, texts


def run_onnx(data: bytes, *, provider: str = "cpu", threads: int | None = None, label: str = "the model") -> np.ndarray:
    """Draw with onnxruntime.

    Parameters
    ----------
    data : bytes
        An ONNX file of ours.
    provider : {"cpu", "cuda"}
    threads : int, optional
        One a core by default; the bits do not depend on it.
    label : str
        For messages.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; they are raised as well
    options.intra_op_num_threads = threads or 0
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # one picture; do not wait for more
    providers: list[Any] = ["CPUExecutionProvider"]
    if provider == "cuda":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise UsageError(
                "--provider cuda: this onnxruntime has no CUDA; pip install onnxruntime-gpu in place of onnxruntime"
            )
        providers = [("CUDAExecutionProvider", {"use_tf32": "0"}), *providers]
    try:
        session = onnxruntime.InferenceSession(data, options, providers=providers)
        if provider == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
            raise UsageError("--provider cuda: onnxruntime finds no usable GPU; take --provider cpu")
        output: np.ndarray = session.run(None, {})[0]
    except DipFastError:
        raise
    except Exception as error:  # onnxruntime has a kind for each of its status codes
        text = " ".join(str(error).split())[:200]
        raise DipFastError(f"onnxruntime cannot draw {label}: {text}; see dip-fast info") from error
    return output


def replay(
    path: str | os.PathLike[str], *, provider: str = "cpu", threads: int | None = None, trust: bool = False
) -> np.ndarray:
    """Draw the picture of a model file.

    Parameters
    ----------
    path : str or os.PathLike
        A file that ``dip-fast run``, ``dip-fast export`` or `dip_fast.export` wrote.
    provider : {"cpu", "cuda"}
        Of onnxruntime, for ONNX files.
    threads : int, optional
        CPU threads of onnxruntime, one a core by default; the bits do not depend on it.
    trust : bool
        Open TorchScript and .pt2 files, which can run code.

    Returns
    -------
    ndarray
        The picture's samples, ``(H, W, C)`` in its dtype, C 1 or 3 and one more where there is an alpha.

    Raises
    ------
    UsageError
        If the file is not a model file of ours, or not trusted, or the provider cannot be had.
    DipFastError
        If the engine fails.

    Examples
    --------
    >>> import dip_fast
    >>> dip_fast.replay("runs/photo/model.onnx").shape  # doctest: +SKIP
    (512, 512, 3)
    """
    model = open_model(path, trust=trust)
    samples = model.samples(model.draw(provider, threads))
    return samples if model.alpha is None else np.dstack([samples, model.alpha])


@dataclass(frozen=True)
class Verdict:
    """What `verify` found.

    Attributes
    ----------
    verdict : {"same", "within tolerance", "differs"}
    text : str
        In words.
    difference : Difference
    """

    verdict: str
    text: str
    difference: Difference


def verify(model: Model, output: np.ndarray) -> Verdict:
    """Compare what was drawn now with what was recorded at export."""
    hashes = model.metadata["sha256"]
    difference = compare(output, model.pixels, model.kind, model.metadata["tolerance"])
    if digest(model.pixels) != hashes["pixels"] or (
        model.program is not None and digest(*(part.codes for part in model.program.inputs)) != hashes["z"]
    ):
        text = "the file does not hold what its own hashes say: it was changed after it was written"
        return Verdict("differs", text, difference)
    if difference.same:
        if digest(output) == hashes["float_output"]:
            return Verdict("same", "the same bits as at export, pixels and float output", difference)
        return Verdict("same", "the same pixels as at export; the float output differs by rounding", difference)
    if difference.within:
        return Verdict("within tolerance", f"within the tolerance for other machines: {difference.text()}", difference)
    return Verdict("differs", difference.text(), difference)


def difference_picture(samples: np.ndarray, expected: np.ndarray, kind: Kind) -> bytes:
    """Encode where two pictures differ, as an 8-bit PNG: black where they agree, white where they differ most."""
    from dip_fast.pictures import codecs as _codecs

    distance = np.abs(samples.astype(np.float64) - expected)
    if kind.dtype == "float32" or distance.max() == 0:
        scaled = distance * (255 / max(distance.max(), 1e-300))
    else:  # a single level has to be seen
        scaled = np.where(distance > 0, 63 + 192 * distance / distance.max(), 0)
    return _codecs.encode_png(np.rint(scaled).astype(np.uint8), None, None)


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes
    ----------
    path : Path
        The model file.
    out : Path, optional
        Where the picture goes: by default ``<name of the model>-replay.png`` (or ``.tif``) in the working folder, or
        nowhere when it is only verified; ``-`` is standard output.
    verify, trust, overwrite : bool
    provider : {"cpu", "cuda"}
    threads : int, optional
    difference : Path, optional
        Where a picture of the differences goes.
    """

    path: Path
    out: Path | None = None
    verify: bool = False
    provider: str = "cpu"
    threads: int | None = None
    trust: bool = False
    difference: Path | None = None
    overwrite: bool = False


def run(request: Request) -> tuple[dict[str, Any], bytes | None]:
    """Replay a model file as ``dip-fast replay`` does.

    Returns
    -------
    dict
        The summary that ``--json`` prints; ``verdict`` is None where nothing was verified.
    bytes or None
        The picture's file, where it goes to standard output.

    Raises
    ------
    UsageError, DipFastError
        As `replay`; a result in the way is not overwritten.
    """
    from dip_fast.pictures.picture import write_atomically

    if request.difference is not None and not request.verify:
        raise UsageError("--difference shows what --verify compares; give both")
    model = open_model(request.path, trust=request.trust)
    out, to_stdout = request.out, request.out == Path("-")
    if out is None and not request.verify:
        out = Path(f"{request.path.stem}-replay{model.kind.suffix}")
    suffix = model.kind.suffix if to_stdout or out is None else out.suffix
    for path in (None if to_stdout else out, request.difference):
        if path is not None and path.exists() and not request.overwrite:
            raise UsageError(f"{path} exists; choose another name or give --overwrite")
    output = model.draw(request.provider, request.threads)
    samples = model.samples(output)
    summary: dict[str, Any] = {
        "model": str(request.path),
        "format": model.format,
        "provider": request.provider,
        "result": None if out is None else str(out),
        "width": model.kind.width,
        "height": model.kind.height,
        "channels": model.kind.channels,
        "dtype": model.kind.dtype,
        "sha256": {"float_output": digest(output), "pixels": digest(samples)},
        "verdict": None,
    }
    if request.verify:
        found = verify(model, output)
        summary |= {"verdict": found.verdict, "text": found.text}
        summary |= {
            name: getattr(found.difference, name)
            for name in ("largest", "samples", "pixels", "fraction", "worst", "box")
        }
        if request.difference is not None:
            write_atomically(request.difference, difference_picture(samples, model.pixels, model.kind))
    if out is None:
        return summary, None
    if to_stdout:
        return summary, model.encode(samples, suffix)
    write_atomically(out, model.encode(samples, suffix))
    return summary, None
