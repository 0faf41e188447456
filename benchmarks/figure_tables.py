"""The figures of README and docs: what stands between the markers ``<!-- figures:NAME -->`` and ``<!-- /figures -->``.

Each function of `TABLES` writes one of them in Markdown, from the measurements in ``dip_fast/data/figures.json``.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import common

from dip_fast.figures import Measurement, duration, preset_rows
from dip_fast.presets import PRESETS
from dip_fast.tasks import TASKS

BEGIN, END = re.compile(r"<!-- figures:([\w-]+) -->"), "<!-- /figures -->"
# What a figure looks like in a cell of a table: a number with the unit of a measurement.
MEASURED = re.compile(r"\d ?(dB|ms|s|min|MB)\b|\d\.\d+x\b")
Measurements = Mapping[str, Measurement]
WIDTH = 124  # of the lines of the documents


def documents(root: Path = common.ROOT) -> list[Path]:
    """List the documents in which figures may stand."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def render(text: str, measurements: Measurements, path: Path) -> str:
    """Replace what stands between the markers of a document.

    Raises
    ------
    ValueError
        If a marker names no table of `TABLES` or is not closed, or if a table outside of the markers of a document that
        has some holds a figure.
    """
    pieces: list[str] = []
    rest = text
    while found := BEGIN.search(rest):
        name = found[1]
        if name not in TABLES:
            raise ValueError(f"{path}: no figures are named {name}; there are {', '.join(TABLES)}")
        before, after = rest[: found.start()], rest[found.end() :]
        between, closed, rest = after.partition(END)
        if not closed or BEGIN.search(between):
            raise ValueError(f"{path}: {found[0]} is not closed; write {END} after its table")
        pieces += [before, found[0], "\n", TABLES[name](measurements, path), "\n", END]
        _require_no_figures(before, path)
    if pieces:
        _require_no_figures(rest, path)
    return "".join([*pieces, rest])


def _require_no_figures(text: str, path: Path) -> None:
    for line in text.splitlines():
        if line.lstrip().startswith("|") and MEASURED.search(line):
            raise ValueError(f"{path}: a figure stands outside of the markers, without its source: {line.strip()}")


# --- tables -------------------------------------------------------------------------------------------------------


def paragraph(text: str) -> str:
    """Break text into lines, but not inside of a command."""
    joined = re.sub("`[^`]*`", lambda code: code[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(joined, WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")


def source(measurement: Measurement, what: str = "Measured", *, with_note: bool = True) -> str:
    """Write where figures are from."""
    text = f"{what} on {measurement.date} at commit {measurement.commit}: {measurement.machine}, by"
    note = f" {measurement.note}" if measurement.note and with_note else ""
    return f"{text} `{measurement.command}`.{note}"


def example(measurements: Measurements, path: Path) -> str:
    """Show the example pictures, before and after."""
    noisy, holed = measurements["example-denoise"], measurements["example-inpaint"]
    (denoised,), (inpainted,) = noisy.rows, holed.rows

    def picture(title: str, file: str) -> str:
        return f"![{title}]({os.path.relpath(common.ROOT / file, path.parent)})"

    head = [f"noisy, {denoised['psnr_damaged']:.2f} dB", f"restored, {denoised['psnr_result']:.2f} dB", "clean"]
    row = [
        picture("noisy", "examples/noisy.png"),
        picture("restored", "docs/images/restored.png"),
        picture("clean", "examples/clean.png"),
    ]
    text = (
        f"The noise is Gaussian, of sigma 25/255. The preset `{denoised['preset']}` takes "
        f"{duration(denoised['seconds'])}; PSNR is taken over all channels, and SSIM rises from "
        f"{denoised['ssim_damaged']:.3f} to {denoised['ssim_result']:.3f}. {source(noisy)}"
    )
    lines = [common.markdown(head, [row]), "", paragraph(text), ""]
    head = [f"written over, {inpainted['psnr_damaged']:.2f} dB", f"filled in, {inpainted['psnr_result']:.2f} dB"]
    row = [picture("holed", "examples/holed.png"), picture("filled", "docs/images/filled.png")]
    return "\n".join([*lines, common.markdown(head, [row]), "", paragraph(source(holed))])


def presets(measurements: Measurements, path: Path) -> str:
    """Write cost and quality of each preset."""
    measured = measurements["presets"]
    rows = preset_rows(measured)
    first = next(iter(rows.values()))
    head = ["preset", "network", "steps", "a step", "in all", _damaged(first)]
    table = []
    size = first["height"], first["width"]
    for name, preset in PRESETS.items():
        recipe, row = preset.recipe, rows.get(name)
        label = f"`{name}`{_default_of(name)}"
        figures = ["-", "-", "not measured"]
        if row is not None:
            result = "not run to its end" if row["psnr_result"] is None else f"{row['psnr_result']:.2f} dB"
            figures = [f"{row['step_seconds']:.2g} s", duration(row["fit_seconds"]), result]
        table.append([label, _network(recipe), recipe.iterations(size), *figures])
    others = [
        f"{row['picture']}, {row['damage']}, {row['psnr_damaged']:.2f} -> {row['psnr_result']:.2f} dB"
        for row in measured.rows
        if row is not rows.get(row["preset"]) and row["psnr_result"] is not None
    ]
    pixels = f"{first['width']}x{first['height']}"
    text = f"Steps and times are those of a {pixels} picture; a step costs more on a larger one. {source(measured)}"
    lines = [common.markdown(head, table), "", paragraph(text)]
    if others:
        lines += ["", paragraph(f"`quick` on other pictures: {'; '.join(others)}.")]
    return "\n".join(lines)


def _default_of(preset: str) -> str:
    """Name the tasks, and where it depends on the device the device, whose default a preset is."""
    found = []
    for name, task in TASKS.items():
        devices = [label for label, device in (("CPU", "cpu"), ("GPU", "cuda")) if task.preset(device) == preset]
        found += [f", default of `{name}`" + (f" on a {devices[0]}" if len(devices) == 1 else "")] if devices else []
    return "".join(found)


def _damaged(row: Mapping[str, Any]) -> str:
    return f"{row['picture']}, {row['damage']} ({row['psnr_damaged']:.2f} dB)"


def _network(recipe: Any) -> str:
    """Name the network of a recipe, with its width and upsampling where they are options."""
    options = recipe.network_options
    if "upsampling" not in options:
        return f"`{recipe.network}`"
    return f"`{recipe.network}`, {options.get('down', 128)} channels, {options['upsampling']}"


def denoising(measurements: Measurements, path: Path) -> str:
    """Write what presets and yardsticks make of noise."""
    measured = measurements["denoising"]
    text = (
        "PSNR in dB over all channels, in parentheses the time of the fit; the noise is drawn from the seed 0 and "
        "clipped. NLM: scikit-image's non-local means at the best of six strengths. BM3D, for colour CBM3D, has "
        f"the true noise, `dip-fast` measures it. Estimated: without the clean picture. {source(measured)}"
    )
    return "\n".join([denoising_table(measured.rows), "", paragraph(text)])


def denoising_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows of ``benchmarks/denoising.py``, with the means of pictures of one kind with the same noise."""
    presets = [*dict.fromkeys(name for row in rows for name in row["presets"])]
    head = ["picture, noise", "noisy", "NLM", "BM3D"]
    groups: dict[tuple[str, str], list[tuple[str, list[Any]]]] = {}
    for row in rows:
        found = [row["noisy"], row["nlm"], row["bm3d"], *(row["presets"].get(name) for name in presets)]
        label = f"{row['picture']} {row['width']}x{row['height']}, {row['noise']}"
        groups.setdefault((row["kind"], row["noise"]), []).append((label, found))
    table = []
    for (_, noise), group in groups.items():
        if len(group) > 1:
            columns = zip(*(found for _, found in group), strict=True)
            group.append((f"**mean**, {noise}", [_mean(column) for column in columns]))
        for label, found in group:
            reached = [_reached(each, noise) for each in found]
            estimated = [_decibels((each or {}).get("estimated_psnr")) for each in found[3:]]
            pairs = zip(reached[3:], estimated, strict=True)
            table.append([label, *reached[:3], *(cell for pair in pairs for cell in pair)])
    return common.markdown([*head, *(cell for name in presets for cell in (f"`{name}`", "estimated"))], table)


def _mean(column: Sequence[Mapping[str, float | None] | None]) -> dict[str, float | None] | None:
    """Average each figure of a column; None where one is missing."""
    known = [found for found in column if found is not None]
    if len(known) < len(column):
        return None
    return {name: common.mean([found[name] for found in known]) for name in known[0]}


def _reached(found: Mapping[str, float | None] | None, noise: str) -> str:
    """Write a PSNR and the time it took; of a picture without noise, the mean change in levels of 255."""
    if found is None or (noise == "no noise" and "levels" not in found):
        return "-"
    figure = f"{found['levels']:.2f} levels off" if noise == "no noise" else _decibels(found["psnr"])
    seconds = found.get("seconds")
    return figure if seconds is None else f"{figure} ({duration(seconds)})"


def _decibels(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def speed(measurements: Measurements, path: Path) -> str:
    """Write time and memory of a step, by engine."""
    measured = measurements["speed"]
    engines = ["fused", "fused, bf16", "plain", "plain, memory retained", "torch.compile"]
    head = ["network, picture", *engines, "peak memory, fused of plain"]
    table = [
        [
            f"`{row['preset']}`, {row['size']}x{row['size']} {row['upsampling']}",
            f"{row['fused_seconds']:.3f} s",
            _seconds_in_bf16(row),
            *(_ratio(row, engine) for engine in ("plain", "plain-retained", "compile")),
            _memory(row),
        ]
        for row in measured.rows
    ]
    plot = os.path.relpath(common.ROOT / "docs/images/bench.png", path.parent)
    return "\n".join(
        [
            common.markdown(head, table),
            "",
            f"![time of a step and peak memory]({plot})",
            "",
            paragraph(f"Ratios say how much longer than `fused` the others take. {source(measured)}"),
        ]
    )


def _ratio(row: Mapping[str, Any], engine: str) -> str:
    return f"{row['ratios'][engine]:.1f}x" if engine in row["ratios"] else "-"


def _seconds_in_bf16(row: Mapping[str, Any]) -> str:
    ratio = row["ratios"].get("fused-bf16")
    return "-" if ratio is None else f"{row['fused_seconds'] * ratio:.3f} s"


def _memory(row: Mapping[str, Any]) -> str:
    return "-" if row["plain_mb"] is None else f"{row['fused_mb']:,.0f} of {row['plain_mb']:,.0f} MB"


def summary(measurements: Measurements, path: Path) -> str:
    """Write how fast and how good the presets are, with their own upsampling."""
    fast, good = measurements["speed"], measurements["presets"]
    reached = preset_rows(good)
    first = next(iter(reached.values()))
    engines = ["fused step", "with `--precision bf16`", "plain PyTorch", "torch.compile"]
    head = ["preset, picture", *engines, "peak memory, of plain", _damaged(first)]
    table = []
    for name, preset in PRESETS.items():
        rows = [row for row in fast.rows if row["preset"] == name]
        for row in [row for row in rows if row["upsampling"] == preset.recipe.network_options["upsampling"]]:
            quality = "-"
            if name in reached and row["size"] == reached[name]["width"]:
                result = reached[name]["psnr_result"]
                quality = "not run to its end" if result is None else f"{result:.2f} dB"
            others = _ratio(row, "plain"), _ratio(row, "compile"), _memory(row)
            figures = [f"{row['fused_seconds']:.3f} s", _seconds_in_bf16(row), *others]
            table.append([f"`{name}`, {row['size']}x{row['size']}", *figures, quality])
    speeds = source(fast, "Times and memory were measured", with_note=False)
    text = paragraph(f"Ratios say how much longer than the fused step the others take. {speeds}")
    quality = paragraph(source(good, "PSNR was measured", with_note=False))
    return "\n".join([common.markdown(head, table), "", text, "", quality])


def operator(measurements: Measurements, path: Path) -> str:
    """Write how much longer PyTorch's layers take than the operator."""
    measured = measurements["operator"]
    table = [
        [
            f"{row['channels']}, {row['size']}x{row['size']}",
            row["mode"],
            f"{row['forward']:.1f}x",
            f"{row['forward_backward']:.1f}x",
        ]
        for row in measured.rows
    ]
    head = ["channels, input", "mode", "forward", "forward + backward"]
    return "\n".join([common.markdown(head, table), "", paragraph(f"Medians of alternating runs. {source(measured)}")])


def curves(measurements: Measurements, path: Path) -> str:
    """Write how far the curve of the fused engine is from plain ones."""
    measured = measurements["curves"]
    table = [
        [f"`{row['preset']}`, {row['upsampling']}", f"{row['fused_db']:.2f} dB", ", ".join(f"{x:.2f}" for x in others)]
        for row in measured.rows
        for others in [row["others_db"]]
    ]
    head = ["largest distance from the plain curve", "fused", "plain, other last bits of *z*"]
    return "\n".join([common.markdown(head, table), "", paragraph(source(measured))])


TABLES: dict[str, Callable[[Measurements, Path], str]] = {
    "example": example,
    "summary": summary,
    "presets": presets,
    "denoising": denoising,
    "speed": speed,
    "operator": operator,
    "curves": curves,
}
