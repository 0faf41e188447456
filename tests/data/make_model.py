"""Makes model.onnx: a file of schema version 1, which every later version must replay.  Not to be made anew for that.

python tests/data/make_model.py
"""

import io
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image, ImageCms

from dip_fast.presets import PRESETS
from dip_fast.runs import run as runs

HERE = Path(__file__).parent


def main() -> None:
    recipe = PRESETS["quick"].recipe
    recipe = replace(
        recipe,
        network_options={"down": 8, "up": 8, "skip": 2, "scales": 2, "upsampling": ("nearest", "bilinear")},
        in_channels=4,
    )
    with Image.open(HERE.parents[1] / "examples" / "noisy.png") as image:
        colours = np.asarray(image)[100:123, 90:121]
    alpha = np.broadcast_to(np.arange(31, dtype=np.uint8) * 8, colours.shape[:2])
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file = io.BytesIO()
    Image.fromarray(np.dstack([colours, alpha])).save(file, "PNG", icc_profile=profile)
    changed = mock.patch.dict(PRESETS, quick=replace(PRESETS["quick"], recipe=recipe))
    with changed, tempfile.TemporaryDirectory() as folder:
        request = runs.Request(
            file.getvalue(), {"iterations": 300, "threads": 1, "stop": "never"}, Path(folder) / "run"
        )
        runs.run(request, print)
        (HERE / "model.onnx").write_bytes((Path(folder) / "run" / "model.onnx").read_bytes())


if __name__ == "__main__":
    main()
