"""Time of drawing a folded network: onnxruntime with the exported file, and PyTorch with the same layers.

    python benchmarks/replay.py --sizes 256 512 --threads 1

Both are warm and take turns; medians.  "layers" is the ONNX file with upsampling and convolution as the layers that
they are, in place of a convolution with 2x2 taps: what the exported form gains.  The weights are random, which changes
no time.
"""

import argparse
import statistics
import time
from unittest import mock

import numpy as np
import onnxruntime
import torch

from dip_fast import PRESETS, networks
from dip_fast.models import onnx_format
from dip_fast.networks.network_input import draw
from dip_fast.programs import folding
from dip_fast.programs.drawing import Drawing


def session(data: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def as_layers(program) -> bytes:
    """Write nearest upsampling and its convolution as the layers that they are."""
    original = onnx_format._layer

    def layer(graph, layer, inputs, arrays):
        if layer.kind != "upsample_conv2d" or layer.options["mode"] != "nearest":
            return original(graph, layer, inputs, arrays)
        name, padding_mode = layer.name, layer.options["padding_mode"]
        x = onnx_format._upsampled(graph, f"{name}/up", inputs[0], "nearest")
        if padding_mode != "zeros":
            x = graph.pad(x, f"{name}/pad", 1, padding_mode)
        weight, bias = (graph.constant(f"{name}.{part}", arrays[f"{name}.{part}"]) for part in ("weight", "bias"))
        pads = [0 if padding_mode != "zeros" else 1] * 4
        return graph.node("Conv", [x, weight, bias], name, kernel_shape=[3, 3], pads=pads)

    with (
        mock.patch.object(onnx_format, "_layer", layer),
        mock.patch.object(onnx_format, "_resizes", lambda layer: layer.kind in ("upsample", "upsample_conv2d")),
    ):
        return onnx_format.write(program)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["quick", "paper", "hourglass", "decoder"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[256])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {arguments.threads} thread(s), median ms")
    for name in arguments.presets:
        recipe = PRESETS[name].recipe
        for size in arguments.sizes:
            torch.manual_seed(0)
            network = networks.build(recipe.network, recipe.in_channels, 3, **recipe.network_options)
            z = draw(recipe.distribution, recipe.in_channels, network.input_size(size, size), seed=0)
            program = folding.fold(network, z, (size, size), (0.0, 255.0))
            module = Drawing(program)
            ours, layers = (
                session(data, arguments.threads) for data in (onnx_format.write(program), as_layers(program))
            )
            calls = {
                "onnxruntime": lambda ours=ours: ours.run(None, {})[0],
                "torch": lambda module=module: module().numpy(),
                "layers": lambda layers=layers: layers.run(None, {})[0],
            }
            drawn = {engine: call() for engine, call in calls.items()}  # and warm
            assert max(np.abs(image - drawn["torch"]).max() for image in drawn.values()) < 0.1, "they draw other things"
            times = {engine: [] for engine in calls}
            for _ in range(arguments.rounds):
                for engine, call in calls.items():
                    started = time.perf_counter()
                    call()
                    times[engine].append(1e3 * (time.perf_counter() - started))
            medians = {engine: statistics.median(values) for engine, values in times.items()}
            spread = {engine: f"{min(v):.0f}-{max(v):.0f}" for engine, v in times.items()}
            print(
                f"{name} {size}x{size}: "
                + ", ".join(f"{engine} {medians[engine]:.1f} ({spread[engine]})" for engine in calls)
                + f"; onnxruntime/torch {medians['onnxruntime'] / medians['torch']:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
