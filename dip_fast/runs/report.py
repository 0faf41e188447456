"""The report of a run: one HTML file that holds all it shows, and asks nothing of the network."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from dip_fast import __version__, large
from dip_fast.names import counted
from dip_fast.runs import charts, commands
from dip_fast.runs.record import Record, Summary
from dip_fast.runs.views import WINDOW, Views, eight_bits, reduced

NAME = "report.html"
GENERATOR = f"dip-fast {__version__}"
HEAD = 2**12  # bytes from the start of a page, in which its generator stands
MAX_BYTES = 4_000_000
# Longest side in pixels and quality (of JPEG; None for PNG) of the pictures, from the best down to what always fits.
SIZES = ((1200, None), (1200, 92), (1200, 80), (1000, 65), (800, 50), (600, 35), (400, 25))
DATA = Path(__file__).parents[1] / "data"
REASONS = {
    "iterations": "all steps were done",
    "variance": "the fit stopped by itself",
    "interrupted": "the user stopped it",
}


def page(record: Record, views: Views, history: Mapping[str, np.ndarray], folder: str) -> bytes:
    """Write the report.

    Parameters
    ----------
    record : Record
        With its summary.
    views : Views
        What there is to look at.
    history : mapping of str to ndarray
        As in `Result`.
    folder : str
        The run's folder, as the commands name it.

    Returns
    -------
    bytes
        HTML of at most `MAX_BYTES`.
    """
    summary = record.summary
    assert summary is not None, "a run that gave nothing has no report"
    facts = {
        "title": record.inputs["picture"]["name"],
        "lead": list(_lead(record, summary)),
        "problems": summary.problems,
        "curves": charts.curves(history, summary.best_step),
        "best_step": summary.best_step,
        "commands": _commands(record, summary, folder),
        "tables": tables(record, summary),
    }
    return fitted([("", views)], **facts)


def fitted(shown: Sequence[tuple[str, Views]], **facts: Any) -> bytes:
    """Fill in the report with pictures as large as `MAX_BYTES` allow.

    Parameters
    ----------
    shown : sequence of tuple
        Names of what was restored, and what there is to look at of each.
    **facts
        What the template needs besides.
    """
    for side, quality in SIZES:
        if quality is None and 4 * sum(_raw_bytes(views) for _, views in shown) > MAX_BYTES:
            continue
        parts = [
            {"name": name, "prefix": f"{number}-" if number else "", **_pictures(views, side, quality)}
            for number, (name, views) in enumerate(shown)
        ]
        written = render("report.html", parts=parts, **facts)
        if len(written) <= MAX_BYTES:
            break
    return written


def render(template: str, **facts: Any) -> bytes:
    """Fill in a template of `dip_fast/data`; whatever is put in appears as text.

    The policy in the page's head names the hashes of its own style and script, so that a browser runs no other and
    loads nothing, even where a text had found its way into the page as a tag.
    """
    style, script = (DATA / "report.css").read_text(), (DATA / "report.js").read_text()
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    own = {"policy": policy, "style": style, "script": script, "generator": GENERATOR}
    return filled(template, **own, **facts)


def filled(template: str, **facts: Any) -> bytes:
    """Fill in a template of `dip_fast/data` that has a policy of its own; whatever is put in appears as text."""
    text = _templates().get_template(template).render(**facts)
    return text.encode("utf-8", "replace")  # a file's name may hold what no encoding has


def is_own(head: bytes) -> bool:
    """Check whether a page, of which these are the first bytes, is one that this program wrote."""
    return b'<meta name="generator" content="dip-fast ' in head


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(DATA),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def picture(image: np.ndarray, quality: int | None) -> dict[str, Any]:
    """Encode an image as it stands in a page: address, width and height."""
    samples = eight_bits(image)
    file = io.BytesIO()
    shown = Image.fromarray(samples[..., 0] if samples.ndim == 3 and samples.shape[2] == 1 else samples)
    if quality is None:
        shown.save(file, "PNG")
    else:
        shown.save(file, "JPEG", quality=quality, subsampling=0)  # halved colour would hide its noise
    kind = "png" if quality is None else "jpeg"
    address = f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"src": address, "width": samples.shape[1], "height": samples.shape[0]}


def _raw_bytes(views: Views) -> int:
    """Count the samples of the pictures, which no lossless file of noise falls much below."""
    return sum(view.image.size for view in views.shown) + views.result.image.size


def _pictures(views: Views, side: int, quality: int | None) -> dict[str, Any]:
    """Encode all pictures of the report."""
    height, width = views.result.image.shape[:2]
    small = views.compared(partial(reduced, side=side))  # averaging is linear: its difference is that of the averages
    crops = []
    for window in views.windows:
        parts = [{"name": name, **picture(part, None)} for name, part in views.compared(window.of)]
        crops.append({"window": window, "pictures": parts})
    return {
        "views": [{"name": name, **picture(image, quality)} for name, image in small],
        "is_whole": max(height, width) <= side,
        "size": (width, height),
        "crops": crops,
        "enlarged": max(1, WINDOW // views.windows[0].side),
        "overlay": None if views.unknown is None else _overlay(views.unknown, side),
        "unknown": None if views.unknown is None else f"{views.unknown.mean():.1%}",
        "histograms": charts.histograms(views.histograms),
        "iterates": [{"step": step, **picture(image, quality or 92)} for step, image in views.iterates.items()],
    }


def _overlay(unknown: np.ndarray, side: int) -> dict[str, Any]:
    """Draw what is unknown in a colour that no photograph has, over nothing."""
    floats = large.mapped(lambda rows: rows.astype(np.float32)[..., None], unknown)
    marked = reduced(floats, side)[..., 0] > 0
    samples = np.zeros((*marked.shape, 4), np.uint8)
    samples[marked] = (255, 0, 255, 160)
    return picture(samples, None)


def _lead(record: Record, summary: Summary) -> Iterator[str]:
    """Describe in sentences what was done and reached."""
    job = record.settings
    yield (
        f"Task {job.task}, preset {job.preset}: {REASONS[summary.stop_reason]}, {counted(summary.steps, 'step')} in "
        f"{summary.seconds:.0f} s. The answer is that of step {summary.best_step}."
    )
    if record.tiles is not None:
        yield f"The picture is made of {counted(len(record.tiles), 'tile')}, each drawn by a network of its own."
    if summary.strength < 1:
        yield f"The result goes {summary.strength:.0%} of the way from the input to it."
    yield from quality_lines(summary)


def quality_lines(summary: Summary) -> Iterator[str]:
    """Describe in sentences how good the result is, as far as that is known."""
    if summary.psnr is not None and summary.ssim is not None:
        before = "" if summary.psnr_input is None else f"{summary.psnr_input:.2f} to "
        yield f"Against the reference: PSNR {before}{summary.psnr:.2f} dB, SSIM {summary.ssim:.3f}."
    if summary.baseline is not None and summary.baseline["psnr"] is not None:
        yield f"To compare, {summary.baseline['name']}: PSNR {summary.baseline['psnr']:.2f} dB."
    if summary.estimated_psnr is not None:
        alone = "" if summary.guide_psnr is None else f", of the guide alone {summary.guide_psnr:.1f} dB"
        yield f"PSNR as estimated without a reference: {summary.estimated_psnr:.1f} dB{alone}."


def _commands(record: Record, summary: Summary, folder: str) -> list[tuple[str, str]]:
    """List what there is to do with a run, each with its command."""
    found = [("make the same run again", commands.repeat(record, folder)), ("go on", commands.resume(record, folder))]
    found += [(f"draw the result from the {model['format']} file", commands.replay(model)) for model in summary.models]
    if record.tiles is None:
        found.append(("see what else there is to pick: earlier steps, a blend with the input", commands.pick(folder)))
    return [*found, ("write this report again", commands.report(folder))]


def tables(record: Record, summary: Summary) -> list[tuple[str, list[tuple[str, str]]]]:
    """Collect the tables: settings, files, versions."""
    settings = {**asdict(record.settings), **record.settings.options}
    del settings["options"]
    files = [(name, f"{facts['name']}: {facts['sha256']}") for name, facts in record.inputs.items()]
    files.append(("result, its samples", summary.sha256))
    files += [(f"{Path(model['path']).name}, the file", model["sha256"]) for model in summary.models]
    versions = {**record.versions, "python": record.python, "platform": record.platform}
    times = {"started": record.started, "ended": record.ended, "drawn by": summary.drawn_by}
    return [
        ("Settings", _rows(settings)),
        ("SHA-256 of the files", files),
        ("Versions and times", _rows({**versions, **times})),
    ]


def _rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    words = {True: "yes", False: "no", None: "-"}
    return [
        (name.replace("_", " "), words[value] if value is None or isinstance(value, bool) else str(value))
        for name, value in facts.items()
    ]
