"""Devices, engines, and the memory a fit needs."""

import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from dip_fast import networks
from dip_fast.device import devices, engines
from dip_fast.errors import UsageError
from dip_fast.names import PRECISIONS
from dip_fast.presets import PRESETS

QUICK = PRESETS["quick"].recipe


@pytest.mark.parametrize("engine", ["plain", "fused"])
def test_estimate_of_memory_comes_near_the_peak(engine: str) -> None:
    code = f"""
import torch
from pathlib import Path
from dip_fast.device import devices, memory
from dip_fast.fitting.degradations import Identity
from dip_fast.fitting import prepare
from dip_fast.presets import PRESETS

def peak():  # getrusage would give the peak of the process that forked this one, where that is larger
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])

torch.set_num_threads(1)
memory.keep_memory()
recipe = PRESETS["quick"].recipe
fit = prepare(Identity(torch.rand(1, 3, 32, 32)), recipe, engine={engine!r})
fit.step()
before = peak()
fit = prepare(Identity(torch.rand(1, 3, 256, 256)), recipe, engine={engine!r})
fit.step()
fit.step()
print(peak() - before)
"""
    peak = int(subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True).stdout)
    # About 1.1 (plain) and 1.4 (fused) here, where the first fit has loaded what PyTorch loads with its optimisers.
    assert 0.6 < devices.needed_bytes(QUICK, 3, (256, 256), engine) / peak < 1.6


def test_picture_that_does_not_fit_is_refused_with_the_size_that_would(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    free = devices.needed_bytes(QUICK, 3, (300, 600))
    monkeypatch.setattr(devices, "available_bytes", lambda device: free)
    assert devices.require_memory(QUICK, 3, (300, 600), cpu, "plain") == free
    with pytest.raises(UsageError, match=r"a 2400x1200 picture needs about .* GB .*; (\d+)x(\d+) would fit") as caught:
        devices.require_memory(QUICK, 3, (1200, 2400), cpu, "plain")
    width, height = (int(side) for side in str(caught.value).split("; ")[1].split(" ")[0].split("x"))
    assert devices.needed_bytes(QUICK, 3, (height, width)) <= free
    assert width / height == pytest.approx(2, rel=0.02)
    assert width > 500


def test_cuda_without_a_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"device='cuda': .*; use device='cpu'"):
        devices.choose("cuda")
    assert devices.choose("auto") == torch.device("cpu")


def test_engine_is_fused_where_there_is_a_fused_form() -> None:
    cpu, skip, hourglass = torch.device("cpu"), networks.build("skip", 4, 3), networks.build("hourglass", 3, 3)
    assert engines.choose("plain", skip, cpu) == "plain"
    assert engines.choose("auto", skip, cpu) == "fused"
    assert engines.choose("auto", hourglass, cpu) == "plain"
    with pytest.raises(UsageError, match="no block of the hourglass network has a fused form"):
        engines.choose("fused", hourglass, cpu)
    with pytest.raises(UsageError, match="no kernels for mps"):
        engines.choose("fused", skip, torch.device("mps"))
    with pytest.raises(ValueError, match="one of auto, fused, plain, got 'fast'"):
        engines.choose("fast", skip, cpu)


def test_engine_is_fused_on_a_gpu_if_the_kernels_were_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    from dip_fast.ops import extension

    skip, gpu = networks.build("skip", 4, 3), torch.device("cuda")
    build = extension.info()
    monkeypatch.setattr(extension, "_loaded", replace(build, record=build.record | {"cuda": "13.0 sm_90"}))
    assert engines.choose("auto", skip, gpu) == "fused"
    monkeypatch.setattr(extension, "_loaded", replace(build, record=build.record | {"cuda": "none: no nvcc here"}))
    with pytest.raises(UsageError, match="the operators were built without CUDA: no nvcc here; use engine='plain'"):
        engines.choose("fused", skip, gpu)
    assert engines.choose("auto", skip, gpu) == "plain"
    assert engines.choose("auto", skip, torch.device("cpu")) == "fused"


@pytest.mark.parametrize("name", ["quick", "hourglass"])
def test_estimate_of_memory_counts_what_torch_itself_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    estimate = devices.needed_bytes(PRESETS[name].recipe, 3, (40, 64))
    monkeypatch.setattr(devices, "_Shapes", nullcontext)
    assert devices.needed_bytes(PRESETS[name].recipe, 3, (40, 64)) == estimate


def test_fused_fit_on_a_gpu_needs_room_for_nine_fields() -> None:
    of = [devices.needed_bytes(QUICK, 3, (256, 256), "fused", device) for device in ("cpu", "cuda")]
    assert of[1] - of[0] == 9 / 4 * 32 * 256 * 256 * 4
    of = [devices.needed_bytes(QUICK, 3, (256, 256), "plain", device) for device in ("cpu", "cuda")]
    assert of[1] == of[0]


def test_images_that_a_cpu_stores_in_16_bits_need_half_the_memory() -> None:
    """Those between the layers of the fused engine; z and the drawn image are in float32."""
    fused = [devices.needed_bytes(QUICK, 3, (256, 256), "fused", precision=name) for name in PRECISIONS]
    assert fused[0] == fused[1]
    # At each scale the skip branch, merge and mix, and at half its size reduce and deepen.
    images = sum((4 + 32 + 32 + (32 + 32) / 4) / 4**scale for scale in range(5))
    assert fused[0] - fused[2] == 2 * images * 256 * 256
    plain = [devices.needed_bytes(QUICK, 3, (256, 256), "plain", precision=name) for name in PRECISIONS]
    assert len(set(plain)) == 1


def test_without_the_extension_only_an_explicit_fused_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from dip_fast.ops import extension

    monkeypatch.setattr(extension, "_loaded", extension.Extension(reason="no compiler here"))
    skip = networks.build("skip", 4, 3)
    with pytest.raises(UsageError, match="no compiler here; use engine='plain'"):
        engines.choose("fused", skip, torch.device("cpu"))
    assert engines.choose("auto", skip, torch.device("cpu")) == "plain"
