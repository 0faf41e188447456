"""Uses an installed wheel as a user does, and checks that its own library runs: ``.ci/test_wheel.sh`` starts this.

The argument is an empty folder to work in.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

COMMAND = Path(sys.executable).with_name("dip-fast")
SIZE, STEPS = 32, 3

# One OpenMP in the process, the one that torch brought, and the operators use its threads.
THREADS = """
import re, sys
from pathlib import Path
import torch
from dip_fast.ops import extension, upsample_conv2d
info = extension.info()
assert info.origin == "shipped", info
assert Path(info.library).parent == Path(sys.argv[1]), info.library
assert info.interface.build_information()["parallel"]
x, w = torch.randn(1, 64, 64, 64), torch.randn(64, 64, 3, 3)
bits = []
for threads in (1, 2):
    torch.set_num_threads(threads)
    bits.append(upsample_conv2d(x, w, mode="bilinear", padding_mode="reflect"))
    with info.interface.own_threads():
        bits.append(upsample_conv2d(x, w, mode="bilinear", padding_mode="reflect"))
assert all(torch.equal(bits[0], other) for other in bits)
assert int(re.search(r"Threads:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) > 1
files = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line}
runtimes = sorted(file for file in files if re.search(r"lib(gomp|iomp|omp)\\b", file))
assert len(runtimes) == 1 and "torch" in runtimes[0], runtimes
print(f"{info}; OpenMP {runtimes[0].rpartition('/')[2]}, torch's own")
"""


def dip(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line; end the program where it fails."""
    command = [str(COMMAND), *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def main(work: Path) -> None:
    """Run, replay and export a tiny picture, and look into a process."""
    os.chdir(work)  # not a checkout, whose package would be imported
    package = Path(np.__file__).parents[1] / "dip_fast"
    subprocess.run([sys.executable, "-W", "error", "-c", THREADS, str(package)], check=True)

    info = json.loads(dip("info", "--json").stdout)
    assert info["operators"]["build"] == "shipped", info["operators"]
    y, x = np.mgrid[:SIZE, :SIZE]
    clean = np.stack([x * 6, y * 6, (x + y) * 3], -1)
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 20, clean.shape), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save("noisy.png")

    # The main job, with the kernels of every instruction set of this CPU.
    levels = info["operators"]["kernels"].split(" of ")[1].split("/")
    fit = ("run", "noisy.png", "--iterations", STEPS, "--device", "cpu", "--verbose")
    expected = f"operators that came with the package, for torch {info['operators']['for torch']}, kernels"
    for level in levels:
        done = dip(*fit, "--out", level, DIP_FAST_CPU=level)
        assert f"{expected} {level}\n" in done.stdout + done.stderr, done
        assert ", engine fused" in done.stdout + done.stderr, done
        assert Image.open(f"{level}/result.png").size == (SIZE, SIZE)
    dip("replay", levels[-1], "--verify")
    for name in ("torchscript", "pt2"):
        dip("export", levels[-1], "--format", name)
    dip("export", levels[-1], "--format", "torchscript", "--fused-ops", "--out", "fused.pt")
    dip("replay", "fused.pt", "--trust", "--verify")
    dip("replay", Path(levels[-1], "model.onnx"), "--out", "again.png")
    assert not [*Path(os.environ["XDG_CACHE_HOME"]).rglob("*.so")], "something was compiled"
    print(f"Python {info['python']}, torch {info['torch']}: run ({', '.join(levels)}), export and replay work")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
