"""The state of the caller's process: the same bits as in a fresh one, and nothing of it is changed."""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fit_cases import TINY, target, tiny, tiny_image
from torch import Tensor, nn

import dip_fast
from dip_fast import Identity, networks
from dip_fast.fitting import fit, prepare, start
from dip_fast.fitting.results import Result
from dip_fast.networks import Network
from dip_fast.networks.layers import cover
from dip_fast.ops import extension

pytestmark = [pytest.mark.usefixtures("small"), pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")]

NOISY = np.random.default_rng(0).random((20, 18)).astype(np.float32)
KNOWN = NOISY > 0.2

needs_extension = pytest.mark.skipif(extension.load() is None, reason="there is no compiled extension")


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


STATES: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", torch.float16),
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype float16": lambda: default_dtype(torch.float16),
    "default device meta": lambda: default_device("meta"),
    "within torch.device meta": lambda: torch.device("meta"),
    "deterministic": deterministic,
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True, check_nan=True),
}


def restored() -> dict[str, np.ndarray]:
    """Restore a picture by each objective, with both engines."""
    return {
        "denoise": dip_fast.denoise(NOISY, iterations=2),
        "denoise, quick": dip_fast.denoise(NOISY, iterations=2, preset="quick"),
        "denoise, plain": dip_fast.denoise(NOISY, iterations=2, preset="quick", engine="plain"),
        "inpaint": dip_fast.inpaint(NOISY, KNOWN, iterations=2),
    }


@pytest.fixture
def expected() -> dict[str, np.ndarray]:
    """What a fresh process restores, as far as these tests know: it is kept from the first one on."""
    if not KEPT:
        KEPT.update(restored())
    return KEPT


KEPT: dict[str, np.ndarray] = {}


def assert_same(results: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, image in expected.items():
        np.testing.assert_array_equal(results[name], image, err_msg=name)


@pytest.mark.parametrize("state", STATES)
def test_same_bits_in_each_state(state: str, expected: dict[str, np.ndarray]) -> None:
    with STATES[state]():
        assert_same(restored(), expected)


@pytest.fixture(scope="module")
def fitted() -> Result:
    return fit(Identity(target()), TINY)


@pytest.mark.parametrize("state", STATES)
def test_model_files_draw_the_same_in_each_state(state: str, fitted: Result, tmp_path: Path) -> None:
    for suffix in (".onnx", ".pt"):
        expected = dip_fast.replay(dip_fast.export(fitted, tmp_path / f"expected{suffix}"), trust=True)
        with STATES[state]():
            drawn = dip_fast.replay(dip_fast.export(fitted, tmp_path / f"model{suffix}"), trust=True)
        np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize("state", STATES)
def test_state_is_as_it_was_after_an_error(state: str) -> None:
    def modes() -> tuple[object, ...]:
        made = torch.empty(0)
        switches = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        return made.dtype, made.device, *switches, torch.get_num_threads()

    def fail(fit: dip_fast.Fit) -> None:
        raise ZeroDivisionError

    with STATES[state]():
        before = modes()
        with pytest.raises(ZeroDivisionError):
            dip_fast.denoise(NOISY, iterations=2, callbacks=[fail])
        assert modes() == before


def test_target_made_in_inference_mode() -> None:
    """Autograd keeps no tensor that was made so."""
    expected = fit(Identity(target()), tiny(iterations=2))
    with torch.inference_mode():
        result = fit(Identity(target()), tiny(iterations=2))
    np.testing.assert_array_equal(result.image, expected.image)


@pytest.mark.parametrize(
    ("network", "options"), [("skip", TINY.network_options), ("hourglass", {}), ("decoder", {"depth": 2})]
)
def test_first_weights_are_those_of_torchs_generator_with_the_seed(network: str, options: dict[str, object]) -> None:
    """They always were: what was fitted before is fitted again."""
    recipe = replace(TINY, network=network, network_options=options)
    prepared = prepare(Identity(target(64, 64)), recipe, seed=5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(start.streams(5)[0])
        expected = networks.build(network, recipe.in_channels, 3, **options)
    assert list(prepared.network.state_dict()) == list(expected.state_dict())
    assert all(map(torch.equal, prepared.network.parameters(), expected.parameters()))


class DrawsInManyWays(Network):
    """A network of somebody's, whose weights come from other functions than those of the layers here."""

    multiple = 4

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(in_channels, out_channels, 1)
        nn.init.orthogonal_(self.head.weight)
        nn.init.trunc_normal_(self.head.bias)
        draws = (torch.rand(3), torch.randn(3), torch.randperm(3), torch.randint(0, 9, (3,)))
        self.drawn = nn.Parameter(torch.cat([each.float() for each in draws] + [nn.functional.dropout(torch.ones(3))]))

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return cover(height, self.multiple), cover(width, self.multiple)

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.head(z) * self.drawn.mean())


def test_no_draw_of_a_network_comes_from_torchs_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(networks.NETWORKS._entries, "of somebody", DrawsInManyWays)
    recipe = replace(TINY, network="of somebody", network_options={})
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        weights.append(list(prepare(Identity(target()), recipe).network.parameters()))
        assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, *weights))


def test_fits_in_two_threads_begin_with_their_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both draw their weights at once, a layer each in turn, and never touch the generator of all threads."""
    alone = [prepare(Identity(target()), TINY, seed=seed).network.state_dict() for seed in (1, 2)]
    before, reset, turns = torch.get_rng_state(), nn.Conv2d.reset_parameters, threading.Barrier(2, timeout=20)
    touched = []

    def reset_in_turn(layer: nn.Conv2d) -> None:
        if not layer.weight.is_meta:
            turns.wait()
            reset(layer)
            touched.append(not torch.equal(torch.get_rng_state(), before))

    monkeypatch.setattr(nn.Conv2d, "reset_parameters", reset_in_turn)
    with ThreadPoolExecutor(2) as pool:
        fits = list(pool.map(lambda seed: prepare(Identity(target()), TINY, seed=seed), (1, 2)))
    for each, expected in zip(fits, alone, strict=True):
        assert all(torch.equal(value, expected[name]) for name, value in each.network.state_dict().items())
    assert touched
    assert not any(touched)


def test_threads_of_python(expected: dict[str, np.ndarray]) -> None:
    with ThreadPoolExecutor(3) as pool:
        for results in [pool.submit(restored) for _ in range(3)]:
            assert_same(results.result(), expected)


def test_asyncio(expected: dict[str, np.ndarray]) -> None:
    async def both() -> list[dict[str, np.ndarray]]:
        return [*await asyncio.gather(asyncio.to_thread(restored), asyncio.to_thread(restored)), restored()]

    for results in asyncio.run(both()):
        assert_same(results, expected)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_one_core_of_several(expected: dict[str, np.ndarray]) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert_same(restored(), expected)
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize("engine", [pytest.param("fused", marks=needs_extension), "plain"])
def test_child_forked_after_torch_has_used_two_threads(engine: str) -> None:
    """It has lost PyTorch's threads, and waited for them without end."""
    alone, before = dip_fast.denoise(NOISY, iterations=2, engine=engine), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.rand(1, 64, 64, 64).relu().sum()  # as any fit of two threads does
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # ends it, if it hangs
            same = np.array_equal(dip_fast.denoise(NOISY, iterations=2, engine=engine), alone)
            os._exit(0 if same and torch.get_num_threads() == 2 else 1)
    finally:
        torch.set_num_threads(before)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@needs_extension  # bits of PyTorch's convolutions depend on the number of threads
@pytest.mark.parametrize(
    "settings",
    [
        {"OMP_NUM_THREADS": "3", "OMP_DYNAMIC": "true", "OMP_SCHEDULE": "dynamic,1"},
        pytest.param({"OMP_THREAD_LIMIT": "1", "OMP_WAIT_POLICY": "passive"}, marks=pytest.mark.slow),
        pytest.param({"OMP_PROC_BIND": "close", "OMP_MAX_ACTIVE_LEVELS": "0"}, marks=pytest.mark.slow),
        pytest.param({"MKL_NUM_THREADS": "1", "OMP_NESTED": "true"}, marks=pytest.mark.slow),
    ],
    ids=lambda settings: " ".join(settings),
)
def test_spawned_child_with_settings_of_openmp(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        np.testing.assert_array_equal(pool.submit(tiny_image).result(), tiny_image())
