"""Short fits whose bits are recorded: a change that is not meant to change any result leaves them alone.

The bits depend on the processor's instructions and on the versions of torch and onnxruntime, so the records in
`golden.json` are kept by these.  On a machine without a record the tests are skipped; to make one there, from a
commit that is known to be good:

    python tests/test_golden.py --record
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest

pytestmark = pytest.mark.slow
RECORDS = Path(__file__).parent / "data" / "golden.json"
FUSED_AND_PLAIN = {"quick": ("fused", "no-fused"), "paper": ("fused", "no-fused"), "decoder": ("fused", "no-fused")}
CASES = [
    *(("rgb8", "denoise", preset, engine) for preset, engines in FUSED_AND_PLAIN.items() for engine in engines),
    *(("gray16", "inpaint", preset, engine) for preset, engines in FUSED_AND_PLAIN.items() for engine in engines),
    ("rgb8", "denoise", "hourglass", "no-fused"),
    ("gray16", "inpaint", "hourglass", "no-fused"),
    ("rgb8", "inpaint", "quick", "fused"),
    ("gray16", "denoise", "quick", "fused"),
]
RESUMED = ("rgb8", "denoise", "quick", "fused")


def machine() -> str:
    """Name what the bits depend on."""
    facts = json.loads(
        subprocess.run(
            [sys.executable, "-P", "-m", "dip_fast", "info", "--json"], check=True, stdout=subprocess.PIPE, text=True
        ).stdout
    )
    # Fits here are in float32, in which both have the same kernels.
    kernels = facts["operators"].get("kernels", "none").split()[0].removesuffix("_bf16")
    return f"{kernels}, {facts['cpu_capability']}, torch {facts['torch']}, onnxruntime {onnxruntime.__version__}"


def write_inputs(folder: Path) -> None:
    """Write the two pictures, with noise and edges, and their masks."""
    rng = np.random.default_rng(0)
    for name, (height, width), channels, dtype in (
        ("rgb8", (72, 64), 3, np.uint8),
        ("gray16", (64, 80), 1, np.uint16),
    ):
        rows, columns = np.mgrid[:height, :width]
        clean = 0.5 + 0.2 * np.sin(rows / 6)[..., None] * np.cos(
            columns / 9 + np.arange(channels)[:, None, None]
        ).T.swapaxes(0, 1)
        clean[20:40, 10:30] += 0.2
        noisy = np.clip(clean + rng.normal(0, 0.1, clean.shape), 0, 1)
        cv2.imwrite(str(folder / f"{name}.png"), np.rint(noisy * np.iinfo(dtype).max).astype(dtype).squeeze())
        cv2.imwrite(
            str(folder / f"{name}-mask.png"), np.where(rng.random((height, width)) < 0.7, 255, 0).astype(np.uint8)
        )


def command(folder: Path, case: tuple[str, str, str, str], out: Path) -> list[str]:
    picture, task, preset, engine = case
    mask = ["--mask", str(folder / f"{picture}-mask.png")] if task == "inpaint" else []
    return [
        *(sys.executable, "-P", "-m", "dip_fast", "run", str(folder / f"{picture}.png"), *mask, "--preset", preset),
        *(f"--{engine}", "--iterations", "40", "--threads", "2", "--seed", "3", "--snapshot-every", "5", "--quiet"),
        *("--out", str(out)),
    ]


def hashes(out: Path) -> dict[str, str]:
    """Hash what a run left: the result's samples, what its model draws, and the history."""
    (drawn,) = onnxruntime.InferenceSession(out / "model.onnx").run(None, {})
    found = {
        "result": cv2.imread(str(out / "result.png"), cv2.IMREAD_UNCHANGED).tobytes(),
        "model": drawn.tobytes(),
        "history": (out / "history.csv").read_bytes(),
    }
    return {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def recorded():
    name = machine()
    records = json.loads(RECORDS.read_text())
    if name not in records:
        pytest.skip(f"golden.json has no record of {name}")
    return records[name]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_fit_is_the_recorded_one(case, inputs, recorded, tmp_path):
    subprocess.run(command(inputs, case, tmp_path / "run"), check=True)
    assert hashes(tmp_path / "run") == recorded["-".join(case)]


def test_resumed_fit_is_the_recorded_one(inputs, recorded, tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(command(inputs, RESUMED, out))
    while not (out / "snapshots" / "iter_000010.png").exists():
        assert process.poll() is None, "the run ended before it could be interrupted"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() == 130
    subprocess.run([*command(inputs, RESUMED, out), "--resume"], check=True)
    assert hashes(out) == recorded["-".join(RESUMED)]


def record() -> None:
    """Add this machine's hashes to the records."""
    records = json.loads(RECORDS.read_text()) if RECORDS.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        folder, found = Path(name), {}
        write_inputs(folder)
        for case in CASES:
            out = folder / "-".join(case)
            subprocess.run(command(folder, case, out), check=True)
            found["-".join(case)] = hashes(out)
            print("-".join(case), flush=True)
    records[machine()] = found
    RECORDS.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__" and sys.argv[1:] == ["--record"]:
    record()
