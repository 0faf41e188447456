"""Time of drawing a folded network: onnxruntime with the exported file, and PyTorch with the same layers.

    python benchmarks/replay.py --sizes 256 512 --threads 1

Both are warm and take turns; medians.  "layers" is the ONNX file with upsampling and convolution as the layers that
they are, in place of a convolution with 2x2 taps: what the exported form gains.  The weights are random, which changes
no time.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace

import common
import numpy as np
import onnxruntime
import torch

from dip_fast import networks
from dip_fast.bench.meters import CPUMeter, in_turn
from dip_fast.models import onnx_format
from dip_fast.networks.network_input import draw
from dip_fast.presets import PRESETS
from dip_fast.programs import folding
from dip_fast.programs.drawing import Drawing
from dip_fast.programs.program import Layer, Program


def in_onnxruntime(program: Program, threads: int) -> Callable[[], np.ndarray]:
    """Write a program as an ONNX file and open it; return what draws its picture."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(onnx_format.write(program), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {})[0]


def in_torch(program: Program) -> Callable[[], np.ndarray]:
    """Return what draws the picture of a program in PyTorch."""
    module = Drawing(program)
    return lambda: module().numpy()


def with_separate_upsampling(program: Program) -> Program:
    """Replace each nearest upsampling with its convolution by the two layers."""
    layers = []
    for layer in program.layers:
        if layer.kind == "upsample_conv2d" and layer.options["mode"] == "nearest":
            up = Layer("upsample", f"{layer.name}.up", layer.inputs, {"mode": "nearest"})
            padding = {"stride": 1, "padding": 1, "padding_mode": layer.options["padding_mode"]}
            layers += [up, Layer("conv", layer.name, (up.name,), padding)]
        else:
            layers.append(layer)
    return replace(program, layers=tuple(layers))


def folded(preset: str, size: int) -> Program:
    """Fold the network of a preset, with random weights."""
    recipe = PRESETS[preset].recipe
    torch.manual_seed(0)
    network = networks.build(recipe.network, recipe.in_channels, 3, **recipe.network_options)
    z = draw(recipe.distribution, recipe.in_channels, network.input_size(size, size), seed=0)
    return folding.fold(network, z, (size, size), (0.0, 255.0))


@torch.no_grad()
def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[256])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {options.threads} thread(s), median ms")
    for preset in options.presets:
        for size in options.sizes:
            program = folded(preset, size)
            calls = {
                "onnxruntime": in_onnxruntime(program, options.threads),
                "torch": in_torch(program),
                "layers": in_onnxruntime(with_separate_upsampling(program), options.threads),
            }
            drawn = {engine: call() for engine, call in calls.items()}
            assert max(np.abs(image - drawn["torch"]).max() for image in drawn.values()) < 0.1, "the images differ"
            times = in_turn(calls, CPUMeter(), runs=options.rounds)
            medians = {engine: 1e3 * statistics.median(seconds) for engine, seconds in times.items()}
            shown = [
                f"{engine} {medians[engine]:.1f} ({1e3 * min(seconds):.0f}-{1e3 * max(seconds):.0f})"
                for engine, seconds in times.items()
            ]
            ratio = medians["onnxruntime"] / medians["torch"]
            print(f"{preset} {size}x{size}: {', '.join(shown)}; onnxruntime/torch {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
