"""Time and size of the report of a large picture, and of what a browser does until its slider moves.

    python benchmarks/report_page.py --check

By default a noisy picture of 12 megapixels with its result, a mask and snapshots.  "written" is all that a run does for
its report; "browser" counts from the start of the navigation, from disk, until the slider has been moved and drawn.
--check fails where a bar is missed: 2 s to write, 4 MB, 1 s in the browser.  The browser is Debian's Chromium, with
playwright (requirements/browser.txt); without them that line is left out.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import common
import cv2
import numpy as np

from dip_fast.pictures.raster import encode_png
from dip_fast.runs import job, report, views
from dip_fast.runs.record import Record, Summary

BARS = {"written": 2.0, "browser": 1.0}  # seconds
STEPS = 1000
MOVED = """async () => {
  const slider = document.querySelector(".at");
  slider.value = 20;
  slider.dispatchEvent(new Event("input"));
  await document.querySelector(".stage .left").decode();
  await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
  return performance.now();
}"""


def a_record() -> Record:
    """Make the record of a run that was never made."""
    settings = job.complete({"task": "denoise", "preset": "quick", "iterations": STEPS}, ())
    summary = Summary(
        result="runs/x/result.png", folder="runs/x", steps=STEPS, best_step=STEPS, stop_reason="iterations",
        seconds=1.0, device="cpu", engine="fused", precision="fp32", seed=0, psnr=None, ssim=None, psnr_input=None,
        ssim_input=None, estimated_psnr=None, baseline=None, sha256="0" * 64, drawn_by="nobody", models=[], problems=[],
    )  # fmt: skip
    return Record("done", settings, {}, {"picture": {"name": "large.png", "sha256": "0" * 64}}, summary=summary)


def pictures(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a noisy picture and what it is without the noise."""
    rng = np.random.default_rng(0)
    coarse = rng.random((max(2, height // 100), max(2, width // 100), 3), np.float32)
    clean = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    noisy = clean + rng.standard_normal(clean.shape, np.float32) * np.float32(0.1)
    return np.clip(noisy, 0, 1), clean


def in_browser(path: Path, rounds: int) -> list[float] | None:
    """Open the page, each time in a new context; None where there is no browser."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if chromium is None:
        return None
    found = []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(rounds + 1):
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            page = context.new_page()
            page.goto(path.as_uri(), wait_until="commit")
            page.wait_for_load_state("domcontentloaded")
            found.append(page.evaluate(MOVED) / 1000)
            context.close()
        browser.close()
    return found[1:]  # the first one starts processes


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--height", type=int, default=3000)
    parser.add_argument("--width", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-browser", action="store_true")
    parser.add_argument("--check", action="store_true", help="fail where a bar is missed")
    options = parser.parse_args()
    image, result = pictures(options.height, options.width)
    known = np.ones(image.shape[:2], bool)
    known[: options.height // 4, : options.width // 4] = False
    steps = np.arange(1.0, STEPS + 1)
    record, history = a_record(), {"step": steps, "loss": 1 / steps}
    with tempfile.TemporaryDirectory() as folder:
        path, snapshot = Path(folder, report.NAME), Path(folder, "snapshot.png")
        snapshot.write_bytes(encode_png(views.eight_bits(image)))
        snapshots = dict.fromkeys(range(100, STEPS + 1, 100), snapshot)
        times: dict[str, list[float]] = {"written": []}
        for _ in range(options.rounds):
            start = time.perf_counter()
            shown = views.collect(image, result, known=known, snapshots=snapshots)
            path.write_bytes(report.page(record, shown, history, "runs/x"))
            times["written"].append(time.perf_counter() - start)
        size = path.stat().st_size
        found = None if options.no_browser else in_browser(path, options.rounds)
        if found is not None:
            times["browser"] = found
    print(f"{options.width}x{options.height} pixels: {size / 1e6:.2f} MB, at most {report.MAX_BYTES / 1e6:g}")
    missed = ["size"] if size > report.MAX_BYTES else []
    for name, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{name}: {median:.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), at most {BARS[name]:g}")
        missed += [name] if median > BARS[name] else []
    if "browser" not in times:
        print("browser: not measured")
    if options.check and missed:
        sys.exit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
