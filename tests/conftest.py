"""One thread for all tests: the tensors are tiny, and threads that wait for each other would take most of the time.

With DIP_FAST_EMULATED=build/cpp/libdip_fast_emulated.so the operators run the CUDA kernels, on an emulated GPU.
"""

import io
import os
import signal
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from model_files import model, ran, small_models  # noqa: F401  (fixtures of several files)
from ui_cases import client, desk  # noqa: F401

torch.set_num_threads(1)
pytest.register_assert_rewrite(
    "cli_cases",
    "fit_cases",
    "fuse_models",
    "masking_cases",
    "norm_conv_cases",
    "run_cases",
    "step_cases",
    "upsample_conv_cases",
)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with it ignored

EMULATED = os.environ.get("DIP_FAST_EMULATED")
if EMULATED:
    from dip_fast.ops import extension as _extension

    assert _extension.load() is not None, _extension.info().reason
    torch.backends.cudnn.allow_tf32 = False  # float32 is tested as such
    torch.ops.load_library(EMULATED)  # says on standard error that it takes the place of the CPU's kernels, once


def pytest_collection_modifyitems(items):
    """Leave out what is about the kernels of the CPU where they are not in use."""
    if EMULATED:
        for item in items:
            if item.get_closest_marker("cpu_only"):
                item.add_marker(pytest.mark.skip(reason="about the kernels of the CPU"))


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc):
    """Run tests that ask for a `level` once for each instruction set that this CPU has, one right after the other.

    Those that ask for a `device` run once more on a GPU, which has no such sets.
    """
    levels, devices = "level" in metafunc.fixturenames, "device" in metafunc.fixturenames
    on_gpu = ["cuda"] * devices
    if levels:
        from dip_fast.ops import extension  # here, since it loads or builds the extension

        module = extension.load()
        of_cpu = ["reference"] if module is None else ["emulated"] if EMULATED else module.cpu_levels()
        if "avx512_bf16" in of_cpu:  # that of avx512 in all but tests/test_products_in_16_bits.py
            of_cpu.remove("avx512_bf16")
        metafunc.parametrize("level", [*of_cpu, *_marked(on_gpu)], indirect=True)
    elif devices:
        metafunc.parametrize("device", ["cpu", *_marked(on_gpu)], indirect=True)


@pytest.fixture
def level(request):
    """The kernels of one instruction set, in use."""
    from dip_fast.ops import extension

    module = extension.load()
    if module is None or EMULATED or request.param == "cuda":
        yield request.param
        return
    before = module.cpu_level()
    module.select_cpu_level(request.param)
    yield request.param
    module.select_cpu_level(before)


@pytest.fixture
def dip(capsysbinary, monkeypatch):
    """The command line in this process: exit code, standard output in bytes, standard error."""

    def run(*arguments, stdin=b""):
        from dip_fast.cli import main

        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsysbinary.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        printed = capsysbinary.readouterr()
        return SimpleNamespace(code=ended.value.code, out=printed.out, err=printed.err.decode())

    return run


@pytest.fixture
def small(monkeypatch):
    """The presets fast, default and quick with networks of milliseconds a step, and little to do after the steps."""
    from dip_fast.presets import PRESETS

    tiny = {"down": 8, "up": 8, "skip": 2, "scales": 2}
    for name, changes in (("fast", {}), ("default", {}), ("quick", {"in_channels": 4})):
        recipe = PRESETS[name].recipe
        recipe = replace(
            recipe,
            network_options=recipe.network_options | tiny,
            options=replace(recipe.options, consolidation=8),
            masking=recipe.masking and replace(recipe.masking, passes=2),
            **changes,
        )
        monkeypatch.setitem(PRESETS._entries, name, replace(PRESETS[name], recipe=recipe))


@pytest.fixture
def from_random_input(monkeypatch):
    """Denoise by the fit from a random input unless a preset is named: its steps draw iterates, it stops by itself."""
    from dip_fast.tasks.denoise import Denoise

    monkeypatch.setattr(Denoise, "preset", lambda self, device: "quick")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pixels(*shape, dtype=np.uint8, seed=0):
    """Draw gray or colour shapes with noise, over most of the dtype's range."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]] / max(shape[:2])
    planes = [np.sin(7 * rows + i) * np.cos(5 * columns - i) for i in range(shape[2] if len(shape) == 3 else 1)]
    values = 0.5 + 0.35 * np.stack(planes, axis=2) + rng.normal(0, 0.05, (*shape[:2], len(planes)))
    values = np.clip(values, 0, 1).reshape(shape)
    return values.astype(dtype) if np.dtype(dtype).kind == "f" else (values * np.iinfo(dtype).max).astype(dtype)


@pytest.fixture
def noisy(place):
    """Path of a gray 16x18 picture."""
    from PIL import Image  # here, so that the operators' tests run where there is none

    Image.fromarray(pixels(16, 18)).save(place / "noisy.png")
    return place / "noisy.png"


def _marked(names):
    return [pytest.param(name, marks=pytest.mark.gpu) for name in names]


@pytest.fixture
def device(request):
    """A device that has kernels: the CPU, and the GPU in tests that are marked so."""
    name = getattr(request, "param", None) or ("cuda" if request.getfixturevalue("level") == "cuda" else "cpu")
    if name == "cuda":
        request.getfixturevalue("gpu")
    return torch.device(name)


@pytest.fixture
def from_a_graph(gpu):
    """Call a function on another stream, and capture it: what it gives there, and once the graph is repeated."""
    from dip_fast.fitting import graphs

    def run(function):
        made = []
        replay = graphs.repeatable(lambda: made.append(function()), [], gpu)
        calls = len(made)
        replay()
        replay()
        assert len(made) == calls, "it was not captured"
        return made[0], made[-1]

    return run


@pytest.fixture
def gpu():
    """A GPU that has kernels, with products of float32 in float32, unless a test says otherwise."""
    from dip_fast.ops import extension  # here, since it loads or builds the extension

    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    if extension.load() is None or not torch._C._dispatch_has_kernel_for_dispatch_key("dip_fast::norm_conv2d", "CUDA"):
        pytest.skip("the extension has no CUDA kernels")
    from dip_fast.device.precision import products

    device = torch.device("cuda")
    with products("fp32", device):
        yield device


@pytest.fixture
def fixed_seed():
    """Parameters and inputs of a test are drawn from the same random numbers each time."""
    torch.manual_seed(0)


@pytest.fixture
def fused_calls(monkeypatch):
    """List the modes (of upsampling, of padding) of each call of the operator by a fused model."""
    from dip_fast.ops import pair_calls  # here, since it loads or builds the extension

    made = []
    operator = pair_calls.upsample_conv2d

    def counting(*args, mode, padding_mode):
        made.append((mode, padding_mode))
        return operator(*args, mode=mode, padding_mode=padding_mode)

    monkeypatch.setattr(pair_calls, "upsample_conv2d", counting)
    monkeypatch.setattr(pair_calls, "MIN_PIXELS", 0)  # so that small pictures do
    monkeypatch.setattr(pair_calls, "MIN_VALUES", 0)
    monkeypatch.setattr(pair_calls, "MIN_CHANNELS_BESIDE_OTHERS", 0)
    return made


@pytest.fixture
def stopped(dip, noisy, small, monkeypatch):
    """Arguments of a run that was interrupted after its third step."""
    from dip_fast.runs.progress import Progress

    call = Progress.__call__

    def interrupting(self, fit):
        call(self, fit)
        if fit.steps == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "__call__", interrupting)
        assert dip("run", noisy, "--threads", "1", "--iterations", "9", "--quiet").code == 130
    return ("run", noisy, "--threads", "1", "--resume")
