"""Make the example pictures of this folder from scikit-image's ``coffee``: python examples/make_pictures.py."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from skimage import data

folder = Path(__file__).parent

clean = cv2.resize(data.coffee(), (384, 256), interpolation=cv2.INTER_AREA)[:, 64:320]
Image.fromarray(clean).save(folder / "clean.png", optimize=True)

noise = np.random.default_rng(0).normal(0, 25 / 255, clean.shape)
noisy = np.rint(255 * np.clip(clean / 255 + noise, 0, 1)).astype(np.uint8)
Image.fromarray(noisy).save(folder / "noisy.png", optimize=True)

mask = np.full(clean.shape[:2], 255, np.uint8)  # white: known
for line, text in enumerate(("the quick brown", "fox jumps over", "the lazy dog")):
    cv2.putText(mask, text, (12, 70 + 70 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.9, 0, 3)
Image.fromarray(mask).save(folder / "mask.png", optimize=True)
holed = np.where(mask[..., None] > 0, clean, 255).astype(np.uint8)
Image.fromarray(holed).save(folder / "holed.png", optimize=True)
