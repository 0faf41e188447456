"""The index of many runs: a row for each, with names, links and records that somebody else may have written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from report_cases import HOSTILE, assert_asks_for_nothing, page
from run_cases import ONE, SHORT, record

pytestmark = pytest.mark.usefixtures("place", "small", "from_random_input")


@pytest.fixture
def many(dip, noisy):
    """A folder of three runs: one whole, one of a hostile name, and one whose record is damaged."""
    assert dip("run", noisy, *SHORT, "--reference", noisy).code == 0
    for name in ("<img src=x onerror=alert(1)>", "javascript:alert(1)", "broken"):
        shutil.copytree("runs/noisy", f"runs/{name}")
    Path("runs/broken/run.json").write_text("{")
    Path("runs/no run").mkdir()
    return Path("runs")


def test_index_lists_the_runs_with_links_and_thumbnails(dip, many):
    assert dip("report", many).code == 0
    parsed = page(many, "index.html")
    addresses = [entry["href"] for entry in parsed.all("a")]
    assert addresses == [
        "./%3Cimg%20src%3Dx%20onerror%3Dalert%281%29%3E/report.html", "./broken/report.html",
        "./javascript%3Aalert%281%29/report.html", "./noisy/report.html",
    ]  # fmt: skip
    assert_asks_for_nothing(parsed, addresses)
    assert len(parsed.all("img")) == 3
    assert "run.json is unreadable" in parsed.text
    assert "<img src=x" in parsed.text
    figures = [entry["data-value"] for entry in parsed.all("td") if "data-value" in entry]
    assert "6.0" in figures  # the steps, as a number to sort by
    assert dip("report", many).code == 0  # its own index is replaced


def test_texts_of_a_hostile_record_are_text(dip, many):
    """Whoever sends a folder of runs has written what stands in their records."""
    held = record("runs/noisy")
    held["inputs"]["picture"]["name"] = held["started"] = held["versions"]["torch"] = HOSTILE
    held["platform"] = held["summary"]["drawn_by"] = "</script><script>alert(1)</script>"
    held["files"]["picture"] = "noisy.png"
    held["summary"]["problems"] = ["<b>no</b>"]
    Path("runs/noisy/run.json").write_text(json.dumps(held))
    for path, name in (("runs/noisy", "report.html"), (many, "index.html")):
        assert dip("report", path).code == 0
        parsed = page(path, name)
        links = [entry["href"] for entry in parsed.all("a")]
        assert_asks_for_nothing(parsed, links)
        assert all(link.startswith("./") for link in links)
        assert len(parsed.all("script")) == 1
        assert "b" not in [tag for tag, *_ in parsed.tags]
        assert HOSTILE in parsed.text


def test_index_shows_results_of_any_number_of_channels(dip, many):
    tifffile.imwrite(
        "seven.tif",
        np.random.default_rng(0).integers(0, 255, (24, 24, 7), np.uint8),
        photometric="minisblack",
        planarconfig="contig",
    )
    assert dip("run", "seven.tif", *ONE, "--iterations", "2", "--out", Path(many) / "seven").code == 0
    assert dip("report", many).code == 0
    assert len(page(many, "index.html").all("img")) == 4


def test_index_of_somebody_else_is_kept(dip, many):
    (many / "index.html").write_text("mine")
    refused = dip("report", many)
    assert refused.code == 2
    assert "--overwrite" in refused.err
    assert (many / "index.html").read_text() == "mine"
    assert dip("report", many, "--overwrite").code == 0
    (many / "index.html").unlink()
    Path("mine.html").write_text("mine")
    (many / "index.html").symlink_to("../mine.html")
    assert dip("report", many).code == 2
    assert dip("report", many, "--overwrite").code == 0
    assert Path("mine.html").read_text() == "mine"


def test_index_of_many_results_leaves_out_thumbnails(dip, many, monkeypatch):
    from dip_fast.runs import rewriting

    monkeypatch.setattr(rewriting, "MAX_THUMBNAIL_BYTES", 1500)
    assert dip("report", many).code == 0
    parsed = page(many, "index.html")
    assert len(parsed.all("img")) < 3
    assert "thumbnails are left out" in parsed.text


# --- events -------------------------------------------------------------------------------------------------------


def test_events_are_lines_of_json(dip, noisy):
    ran = dip("run", noisy, *ONE, "--iterations", "6", "--json-events", "--reference", noisy)
    assert (ran.code, ran.err) == (0, "")
    events = [json.loads(line) for line in ran.out.decode().splitlines()]
    assert {event["event"] for event in events} == {"note", "progress", "done"}
    assert events[-1] == {"event": "done", **record("runs/noisy")["summary"]} | {
        key: None for key in events[-1].keys() - record("runs/noisy")["summary"].keys() - {"event"}
    }
    progress = [event for event in events if event["event"] == "progress"]
    assert progress[0]["step"] == 1
    assert progress[-1]["done"] == progress[-1]["total"]
    assert progress[-1]["psnr"] > 0


def test_events_go_neither_with_a_summary_nor_with_a_picture_on_standard_output(dip, noisy):
    assert "--json" in dip("run", noisy, "--json-events", "--json").err
    assert "--json-events" in dip("run", "-", "--json-events").err
