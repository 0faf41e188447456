"""Figures in README, docs and `dip-fast presets` are those of one file, with their source."""

import datetime
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dip_fast import figures
from dip_fast.presets import PRESETS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def scripts(monkeypatch):
    """The modules of benchmarks/ that measure and render figures."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in ("figures", "figure_tables")})


@pytest.fixture
def measurements():
    return figures.read()


def test_documents_hold_the_figures_of_the_file(scripts):
    assert scripts.figures.render(write=False) == [], "run: python benchmarks/figures.py --render"


def test_installed_figures_are_those_of_the_checkout(measurements):
    assert figures.read(ROOT / "dip_fast" / "data" / "figures.json") == measurements


def test_each_measurement_names_its_source(measurements, scripts):
    assert measurements.keys() == scripts.figures.MEASURES.keys()
    for name, measurement in measurements.items():
        assert measurement.name == name
        assert datetime.date.fromisoformat(measurement.date) >= datetime.date(2026, 11, 23)
        assert all((measurement.commit, measurement.machine, measurement.command, measurement.rows))
        assert str(ROOT) not in json.dumps(measurement.command)


def test_measurements_survive_being_written(measurements, tmp_path):
    figures.write(measurements, tmp_path / "figures.json")
    assert figures.read(tmp_path / "figures.json") == measurements


def test_presets_are_listed_with_machine_and_date(dip, measurements):
    listed = dip("presets").out.decode()
    measured = measurements["presets"]
    assert all(text in listed for text in (measured.date, measured.machine, measured.command, measured.note))
    assert all(figures.preset_cost(name) in listed for name in PRESETS)
    assert figures.preset_cost("mine") == "not measured"


@pytest.mark.parametrize(("seconds", "text"), [(0.5, "0.5 s"), (31, "31 s"), (150, "2.5 min"), (4500, "75 min")])
def test_durations_are_for_people(seconds, text):
    assert figures.duration(seconds) == text


# --- rendering ----------------------------------------------------------------------------------------------------


def test_each_table_renders_with_its_source_and_only_once(scripts, measurements):
    tables = scripts.figure_tables
    text = "".join(f"# Head\n\n<!-- figures:{name} -->\nold\n<!-- /figures -->\n\nWords.\n" for name in tables.TABLES)
    once = tables.render(text, measurements, ROOT / "docs" / "page.md")
    assert "old" not in once
    assert once.count("Words.") == len(tables.TABLES)
    assert tables.render(once, measurements, ROOT / "docs" / "page.md") == once
    for measurement in measurements.values():
        assert measurement.command in once
        assert f"{measurement.date} at commit {measurement.commit}: {measurement.machine}" in " ".join(once.split())
    assert "(images/restored.png)" in once
    assert "(../examples/noisy.png)" in once


def test_figures_that_were_not_measured_are_named_so(scripts, measurements):
    tables = scripts.figure_tables
    for name in ("presets", "speed"):
        rows = [row for row in measurements[name].rows if row["preset"] == "quick"]
        measurements[name] = figures.Measurement(name, "2026-11-26", "abc", "a machine", "a command", rows)
    assert tables.presets(measurements, ROOT / "README.md").count("not measured") == len(PRESETS) - 1
    assert "`paper`" not in tables.speed(measurements, ROOT / "README.md")
    assert tables.summary(measurements, ROOT / "README.md").count("| `quick`") == 2  # two sizes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<!-- figures:sped -->\n<!-- /figures -->", "no figures are named sped; there are example, "),
        ("<!-- figures:speed -->\n", "<!-- figures:speed --> is not closed"),
        ("<!-- figures:speed -->\n<!-- figures:presets -->\n<!-- /figures -->", "<!-- figures:speed --> is not closed"),
        ("<!-- figures:speed -->\n<!-- /figures -->\n| quick | 12 dB |", "without its source: | quick | 12 dB |"),
        ("| quick | 2.9x |\n<!-- figures:speed -->\n<!-- /figures -->", "without its source: | quick | 2.9x |"),
    ],
)
def test_wrong_documents_are_refused(scripts, measurements, text, words):
    with pytest.raises(ValueError, match=r"page\.md: ") as raised:
        scripts.figure_tables.render(text, measurements, Path("page.md"))
    assert words in str(raised.value)


def test_only_documents_that_change_are_written(scripts, tmp_path):
    (tmp_path / "docs").mkdir()
    page, readme = tmp_path / "docs" / "page.md", tmp_path / "README.md"
    readme.write_text("No figures, and | no table of 3 dB.\n")
    page.write_text("<!-- figures:operator -->\n<!-- /figures -->\n")
    assert scripts.figures.render(write=True, root=tmp_path) == [page]
    assert "128, 64x64" in page.read_text()
    assert scripts.figures.render(write=True, root=tmp_path) == []


# --- from records to rows -----------------------------------------------------------------------------------------


def test_records_of_bench_become_rows(scripts):
    record = {"preset": "quick", "size": 16, "upsampling": "nearest", "threads": 1}
    records = [
        {**record, "engine": engine, "median_step_seconds": seconds, "peak_memory_bytes": peak}
        for engine, seconds, peak in (("fused", 0.02, 400e6), ("plain", 0.06, 600e6))
    ]
    (group,) = scripts.figures.groups(records)
    row = scripts.figures.speed_row(group)
    assert (row["fused_seconds"], row["ratios"], row["fused_mb"], row["plain_mb"]) == (0.02, {"plain": 3.0}, 400, 600)
    with pytest.raises(SystemExit, match="fused engine is missing"):
        scripts.figures.speed_row({"plain": records[1]})


def test_records_of_the_operator_become_rows(scripts):
    records = [
        {"channels": 8, "height": 4, "mode": "nearest", "pass": which, "engine": engine, "median_seconds": seconds}
        for which, engine, seconds in [
            ("forward", "fused", 1.0),
            ("forward", "plain", 3.0),
            ("forward+backward", "fused", 2.0),
            ("forward+backward", "plain", 5.0),
        ]
    ]
    (row,) = scripts.figures.operator_rows(records)
    assert row == {"channels": 8, "size": 4, "mode": "nearest", "forward": 3.0, "forward_backward": 2.5}


def test_each_measurement_runs_a_command_that_exists(scripts, measurements, monkeypatch, tmp_path):
    """The commands are those of the command line and of the scripts; what they print is made up here."""
    ran = []

    def run(*arguments):
        ran.append(arguments)
        return "a command", answers[arguments[2] if arguments[0] == "-m" else Path(arguments[0]).stem]

    picture = tmp_path / "result.png"
    picture.write_bytes(b"a picture")
    quality = {"psnr_input": 20.0, "psnr": 30.0, "ssim_input": 0.3, "ssim": 0.8}
    kept = {"picture": "clean", "width": 16, "height": 16, "damage": "sigma 25"}
    cost = {"psnr_damaged": 20.0, "psnr_result": 30.0, "step_seconds": 0.1, "fit_seconds": 9.0}
    bench = {"preset": "quick", "size": 16, "upsampling": "nearest", "threads": 1, "engine": "fused"}
    operator = {"channels": 8, "height": 4, "mode": "nearest", "pass": "forward", "median_seconds": 1.0}
    answers = {
        "run": {"result": str(picture), "seconds": 3.0, **quality},
        "presets": [{"preset": name, **kept, **cost} for name in PRESETS],
        "denoising": {"rows": measurements["denoising"].rows},
        "bench": [{**bench, "median_step_seconds": 0.1, "peak_memory_bytes": 1e9}],
        "upsample_conv": [{**operator, "engine": engine} for engine in ("fused", "plain")],
        "curves": [{"fit": name, "largest_distance_db": 0.5} for name in ("fused", "plain, bits 1")],
    }
    file = tmp_path / "figures.json"
    figures.write(measurements, file)
    monkeypatch.setattr(scripts.figures, "run", run)
    monkeypatch.setattr(scripts.figures, "IMAGES", tmp_path)
    monkeypatch.setattr(scripts.figures, "FILE", file)
    monkeypatch.setattr(scripts.figures, "measured_commit", lambda: "abcdef0")
    names = list(scripts.figures.MEASURES)
    options = SimpleNamespace(
        **{"names": names, "threads": 1, "picture": "examples/clean.png", "halve": False, "whole": ["quick"]},
        **{"denoising": "examples/clean.png --halve"},
        **{"sizes": [16], "speed_presets": ["quick"], "engines": ["fused", "plain"], "seconds": 1.0},
    )
    scripts.figures.measure(options)
    assert {each.commit for each in figures.read(file).values()} == {"abcdef0"}
    assert {path.name for path in tmp_path.iterdir()} >= {"restored.png", "filled.png", "bench.png"}
    for arguments in ran:
        if arguments[0] == "-m":  # in a process of its own: click keeps the help option of its first context
            command = [sys.executable, *arguments, "--help"]
            ended = subprocess.run(command, capture_output=True, text=True)
            assert ended.returncode == 0, ended.stderr  # it refuses options that do not exist
        else:
            assert (ROOT / arguments[0]).is_file()
