"""Arrays of large pictures in files: they are arrays like any other, and a run with them has the same bits."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import pixels
from PIL import Image
from run_cases import read, record
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from dip_fast import large
from dip_fast.fitting import noise_level
from dip_fast.models import onnx_fields, onnx_format, packing
from dip_fast.models.verifying import are_same
from dip_fast.pictures import metrics
from dip_fast.pictures.samples import from_unit, to_unit
from dip_fast.programs.program import InputPart, Layer, Program
from dip_fast.runs import views


@pytest.fixture
def in_files(tmp_path, monkeypatch):
    """All arrays are large, and all work is done in bands of few samples."""
    monkeypatch.setattr(large, "LEAST", 1)
    monkeypatch.setattr(large, "BAND", 1000)
    with large.arrays_in(tmp_path / "not" / "there"):
        yield tmp_path


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_what_was_worked_on_leaves_memory_and_is_there_again(tmp_path):
    with large.arrays_in(tmp_path):
        before = resident()
        array = large.empty((64, 2**18))  # 64 MB
        most = 0
        for rows in large.bands(array.shape):
            array[rows] = np.arange(rows.start, rows.stop)[:, None]
            most = max(most, resident() - before)
        assert most < 32e6
        assert resident() - before < 4e6
        assert (array[:, 0] == np.arange(64)).all()
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("reason", ["small", "no folder", "no room"])
def test_memory_takes_what_no_file_takes(reason, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(large, "LEAST", 100)
    if reason == "no room":
        monkeypatch.setattr(os, "posix_fallocate", full)
    if reason == "no folder":
        assert not large.is_in_file(large.empty((1000,)))
    with large.arrays_in(tmp_path):
        assert large.is_in_file(large.zeros((20 if reason == "small" else 1000,))) == (reason == "no folder")
        assert not large.zeros((1000,)).any()
    assert not large.is_in_file(large.empty((1000,)))


def test_single_samples_are_the_same_in_bands(in_files):
    samples = np.arange(50 * 40 * 3, dtype=np.uint16).reshape(50, 40, 3)
    image = to_unit(samples, (0.0, 65535.0))
    assert large.is_in_file(image)
    assert image.tobytes() == (samples / 65535).astype(np.float32).tobytes()
    assert from_unit(image, (0.0, 65535.0), np.dtype(np.uint16)).tobytes() == samples.tobytes()
    image[49, 0, 0] = np.nan
    with pytest.raises(ValueError, match="must not hold NaN"):
        from_unit(image, (0.0, 1.0), np.dtype(np.uint8))


def test_quality_is_the_same_in_bands(in_files):
    reference = pixels(60, 50, 3) / np.float32(255)
    image = (reference + np.random.default_rng(0).normal(0, 0.1, reference.shape)).astype(np.float32)
    kept = image.clip(0, 1)
    assert metrics.psnr(image, reference) == pytest.approx(peak_signal_noise_ratio(reference, kept, data_range=1))
    options = {"channel_axis": 2, "data_range": 1, "gaussian_weights": True, "sigma": 1.5}
    assert metrics.ssim(image, reference) == pytest.approx(structural_similarity(reference, kept, **options))


def test_noise_is_measured_the_same_in_bands(in_files, monkeypatch):
    y = torch.from_numpy(pixels(60, 80, 3) / np.float32(255)).permute(2, 0, 1)[None].contiguous()
    y += torch.randn(y.shape, generator=torch.Generator().manual_seed(0)) / 10
    y.clamp_(0, 1)
    values = (y - 0.5).square()
    assert noise_level._median(values) == float(values.median())
    found = noise_level.measure_noise(y), noise_level.is_correlated(y), noise_level.correlated_noise(y, 1 - y)
    monkeypatch.setattr(large, "BAND", 2**21)
    assert found == (noise_level.measure_noise(y), noise_level.is_correlated(y), noise_level.correlated_noise(y, 1 - y))


def test_a_thumbnail_of_a_large_picture_is_its_mean_by_squares(in_files):
    image = pixels(97, 130, 3) / np.float32(255)
    coarse = views._coarse(image, 4)
    squares = image[:96, :128].reshape(24, 4, 32, 4, 3).mean((1, 3))
    np.testing.assert_allclose(coarse, squares, atol=1e-6)
    assert views.reduced(image, 20).shape == (15, 20, 3)


def program():
    """One that has arrays of all kinds."""
    generator = np.random.default_rng(0)
    layer = Layer("conv", "constant", ("z",), {"stride": 1, "padding": 0, "padding_mode": "zeros"})
    arrays = {"constant.weight": generator.random((3, 6, 1, 1), np.float32), "constant.bias": np.zeros(3, np.float32)}
    codes = generator.integers(0, 60000, (1, 3, 24, 32)).astype(np.uint16)
    ones = np.broadcast_to(np.ones((), np.uint8), (1, 3, 24, 32))  # as of a large picture: one sample for all
    known = generator.random((24, 32, 1)) < 0.5, generator.integers(0, 255, (24, 32, 3)).astype(np.uint8)
    return Program((layer,), arrays, (InputPart(codes, 65535), InputPart(ones, 1)), (24, 32), (0.0, 255.0), known)


def test_a_model_file_has_the_same_bytes_whatever_protobuf_is_spared(tmp_path, monkeypatch):
    made = program()
    samples = made.known[1]
    whole = onnx_format.write(made, {"a": 1}, {"pixels": packing.pack(samples), "alpha": "text"})
    monkeypatch.setattr(large, "LEAST", 100)
    monkeypatch.setattr(large, "BAND", 1000)
    with large.arrays_in(tmp_path):
        apart = onnx_format.write(made, {"a": 1}, {"pixels": packing.pack(samples), "alpha": "text"})
        assert isinstance(apart, memoryview)
        assert bytes(apart) == whole
        small, fields = onnx_fields.split(apart)
        assert len(small) < len(apart) / 4
        assert sum(array is not None for array in fields.arrays) == 4
        found, document, texts = onnx_format.read(apart)
        assert are_same(found, made)
        assert document["a"] == 1
        assert (packing.unpack(texts["pixels"], samples.shape, "uint8") == samples).all()


def test_what_protobuf_would_read_otherwise_is_left_to_it(monkeypatch):
    monkeypatch.setattr(large, "LEAST", 100)
    tensor = onnx.TensorProto(name="z", raw_data=bytes(200)).SerializeToString()

    def model(initializer):
        graph = onnx_fields._message(onnx_fields.INITIALIZER, [initializer])
        return b"".join(onnx_fields._message(onnx_fields.GRAPH, graph))

    assert len(onnx_fields.split(model(tensor))[0]) < 20
    again = onnx_fields._message(onnx_fields.RAW_DATA, [b"ab"])  # the last one counts
    for other in (model(tensor + b"".join(again)), model(tensor)[:-1], b"\x3a\xff", b"\x80\x00", b"\x0b"):
        assert onnx_fields.split(other) == (other, onnx_fields.Fields())


def test_runs_have_the_same_bits_with_their_arrays_in_files(dip, place, small, monkeypatch):
    monkeypatch.setattr("dip_fast.fitting.objectives.LARGEST_WHOLE", 64)
    monkeypatch.setattr("dip_fast.fitting.pieces.LARGEST_WHOLE", 64)
    monkeypatch.setattr("dip_fast.fitting.pieces.SIDE", 48)
    Image.fromarray(pixels(72, 80, 3)).save("a.png")
    verb = ("run", "a.png", "--threads", "1", "--iterations", "3", "--reference", "a.png", "--quiet")
    ways = {"masked": ("--preset", "fast"), "tiles": ("--kernel", "gaussian:1", "--tile", "64")}
    for way, options in ways.items():
        assert dip(*verb, *options, "--out", f"{way}-1").code == 0
    monkeypatch.setattr(large, "LEAST", 1000)
    monkeypatch.setattr(large, "BAND", 3000)
    for way, options in ways.items():
        ended = dip(*verb, *options, "--out", f"{way}-2")
        assert ended.code == 0, ended.err
        one, other = (record(f"{way}-{number}") for number in (1, 2))
        assert one["inputs"] == other["inputs"]
        assert one["summary"]["models"][0]["pixels"] == other["summary"]["models"][0]["pixels"]
        assert one["summary"]["psnr"] == pytest.approx(other["summary"]["psnr"], abs=1e-9)
        assert one["summary"]["ssim"] == pytest.approx(other["summary"]["ssim"], abs=1e-9)
        assert (read(Path(f"{way}-1/result.png")) == read(Path(f"{way}-2/result.png"))).all()
        assert dip("replay", f"{way}-2", "--verify").code == 0
