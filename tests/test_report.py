"""The report of a run: one file that asks for nothing, shows what is there, and takes names for text."""

import base64
import hashlib
import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import pixels
from PIL import Image
from run_cases import ONE, SHORT, after, record, texture, write

from dip_fast.runs import report, views
from dip_fast.tasks import Baseline

pytestmark = pytest.mark.usefixtures("place", "small", "from_random_input")
HOSTILE = """<img src=x onerror=alert(1)>'"$(touch x).png"""
VOID = ("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "path", "line", "source", "wbr")


class Page(HTMLParser):
    """Tags with their attributes, the text, and the content of each tag that a test asks for."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.inside = [], [], []
        self.texts = {}
        self.feed(text)
        self.close()
        assert not self.inside, f"{self.inside} are not closed"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes), list(self.inside)))
        if tag not in VOID:
            self.inside.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes), list(self.inside)))

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag

    def handle_data(self, data):
        if self.inside:
            self.texts.setdefault(self.inside[-1], []).append(data)
        self.words.append(data)

    @property
    def text(self):
        return "".join(self.words)

    def all(self, tag):
        return [attributes for name, attributes, _ in self.tags if name == tag]


def page(folder, name="report.html"):
    return Page((Path(folder) / name).read_text())


def assert_asks_for_nothing(parsed, links=()):
    """No address leads out of the page, no attribute holds a script, and the policy names what the page holds."""
    for tag, attributes, _ in parsed.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "srcset", "action")]
        for name in ("src", "href"):
            address = attributes.get(name, "data:")
            assert address.startswith("data:") or address in links, f"{tag} {name}={address[:60]}"
    assert {"iframe", "object", "embed", "form", "base"}.isdisjoint(tag for tag, *_ in parsed.tags)
    (policy,) = [entry["content"] for entry in parsed.all("meta") if "http-equiv" in entry]
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag in ("style", "script"):
        (content,) = parsed.texts[tag]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
        assert not re.search(r"url\(|@import|fetch|http", content)


def commands(parsed):
    return [shlex.split(text) for text in parsed.texts["code"]]


def test_report_is_one_page_that_asks_for_nothing(dip, noisy):
    assert dip("run", noisy, *SHORT, "--snapshot-every", "2", "--reference", noisy).code == 0
    assert Path("runs/noisy/report.html").stat().st_size <= report.MAX_BYTES
    parsed = page("runs/noisy")
    assert_asks_for_nothing(parsed)
    assert {entry["id"] for entry in parsed.all("section") if "id" in entry} == {
        "compare", "pictures", "crops", "histograms", "history", "iterates", "commands", "tables",
    }  # fmt: skip
    for image in parsed.all("img")[2:]:  # those of the slider are filled in by the script
        assert {"src", "alt", "width", "height"} <= image.keys()
    names = [text for text in parsed.texts["figcaption"] if text.strip()]
    assert names[:5] == ["input", "result", names[2], "non-local means", "reference"]
    assert names[2].startswith("difference")
    assert names[-3:] == ["step 2", "step 4", "step 6"]
    assert record("runs/noisy")["summary"]["sha256"] in parsed.text
    assert record("runs/noisy")["versions"]["torch"] in parsed.text


def test_report_can_be_used_by_keys_and_heard(dip, noisy):
    assert dip("run", noisy, *SHORT, "--snapshot-every", "3").code == 0
    parsed = page("runs/noisy")
    assert parsed.all("html") == [{"lang": "en"}]
    assert len(parsed.all("h1")) == 1
    assert "width=device-width" in [entry.get("content", "") for entry in parsed.all("meta")][2]
    for tag, _, inside in parsed.tags:
        if tag in ("input", "select"):
            assert "label" in inside
    for chart in parsed.all("svg"):
        assert chart["role"] == "img"
        assert chart["aria-label"]
    assert all("aria-label" in section for section in parsed.all("section"))


def test_names_of_others_appear_as_text(dip, noisy):
    exif = Image.Exif()
    exif[270] = "<script>alert(2)</script>"
    Image.fromarray(pixels(16, 18)).save(HOSTILE, "PNG", exif=exif)
    write("<b>mask.png", np.where(np.arange(18) < 4, 0, 255).astype(np.uint8)[None].repeat(16, axis=0))
    assert dip("run", HOSTILE, *SHORT, "--keep-metadata", "--mask", "<b>mask.png", "--out", "<i>").code == 0
    parsed = page("<i>")
    assert_asks_for_nothing(parsed)
    assert {"b", "i"}.isdisjoint(tag for tag, *_ in parsed.tags)
    assert len(parsed.all("script")) == 1
    assert HOSTILE in parsed.text
    assert {HOSTILE, "<b>mask.png", "<i>-again"} <= set(commands(parsed)[0])


def test_damaged_bytes_of_a_name_make_no_damaged_page(dip):
    name = b"\xff\xfe.png".decode("utf-8", "surrogateescape")
    Image.fromarray(pixels(16, 18)).save(name)
    assert dip("run", name, *SHORT, "--out", "out").code == 0
    assert "??.png" in page("out").text


@pytest.mark.parametrize(
    "options",
    [
        ("--mask", "mask.png", "--no-composite", "--preset", "quick", "--upsampling", "bilinear", "--stop", "never"),
        ("--noise", "25", "--preset", "default", "--no-fused", "--export", "none", "--keep-metadata"),
        ("--task", "superres", "--scale", "3"),
        ("--kernel", "gaussian:1.6", "--reference", "noisy.png"),
    ],
    ids=["inpaint", "masked", "superres", "deblur"],
)
def test_commands_of_the_report_do_what_they_say(dip, noisy, options):
    write("mask.png", np.where(np.arange(18) < 4, 0, 255).astype(np.uint8)[None].repeat(16, axis=0))
    assert dip("run", "noisy.png", *SHORT, "--seed", "5", "--snapshot-every", "2", *options, "--out", "-o").code == 0
    again, resume, *replays, choices, rewrite = commands(page("-o"))
    assert dip(*again[1:], "--quiet").code == 0
    first, second = record("-o"), record("./-o-again")
    assert first["settings"] == second["settings"]
    assert first["summary"]["sha256"] == second["summary"]["sha256"]
    assert "nothing is left to resume" in dip(*resume[1:]).err
    assert all(dip(*replay[1:], "--verify").code == 0 for replay in replays)
    assert len(replays) == ("none" not in options)
    assert b"now: step" in dip(*choices[1:]).out
    before = Path("-o/report.html").read_bytes()
    Path("-o/report.html").unlink()
    assert dip(*rewrite[1:]).code == 0
    assert Path("-o/report.html").read_bytes() == before


def test_what_was_filled_in_is_marked(dip, noisy):
    write("mask.png", np.where(np.arange(18) < 9, 0, 255).astype(np.uint8)[None].repeat(16, axis=0))
    assert dip("run", noisy, *SHORT, "--mask", "mask.png").code == 0
    parsed = page("runs/noisy")
    assert "50.0% of the picture was filled in" in parsed.text
    overlays = [image for image in parsed.all("img") if image.get("class") == "overlay"]
    assert len(overlays) == 2
    encoded = base64.b64decode(overlays[0]["src"].partition(",")[2])
    Path("overlay.png").write_bytes(encoded)
    with Image.open("overlay.png") as overlay:
        alpha = np.asarray(overlay)[..., 3]
    assert (alpha[:, :9] > 0).all()
    assert not alpha[:, 9:].any()


def test_report_that_cannot_be_made_costs_no_result(dip, noisy, monkeypatch):
    def fail(*_):
        raise MemoryError("there is no more")

    monkeypatch.setattr(report, "page", fail)
    ended = dip("run", noisy, *SHORT)
    assert ended.code == 1
    assert "report.html could not be made" in ended.err
    assert "result.png" in ended.err
    assert record("runs/noisy")["status"] == "done"
    assert Path("runs/noisy/result.png").exists()
    monkeypatch.undo()


def test_resumed_run_has_a_report_of_its_end(dip, stopped):
    assert "the user stopped it, 3 steps" in page("runs/noisy").text
    assert dip(*stopped).code == 0
    assert "all steps were done, 9 steps" in page("runs/noisy").text


def test_run_that_fails_keeps_no_report_of_the_one_it_replaced(dip, noisy, monkeypatch):
    assert dip("run", noisy, *SHORT).code == 0

    def fail():
        raise RuntimeError("broken")

    after(monkeypatch, lambda fit: fit.steps == 2, fail)
    assert dip("run", noisy, *SHORT, "--overwrite").code == 1
    assert not Path("runs/noisy/report.html").exists()


def test_pages_of_noise_are_small():
    rng = np.random.default_rng(0)
    image, result = (rng.random((700, 1000, 3), np.float32) for _ in range(2))
    shown = views.collect(image, result, baseline=Baseline("other", result), reference=image)
    for side, quality in report.SIZES[1:]:
        size = sum(len(entry["src"]) for entry in report._pictures(shown, side, quality)["views"])
        if size < report.MAX_BYTES / 3:
            return
    pytest.fail("the smallest page is too large")


# --- written again ------------------------------------------------------------------------------------------------


def test_report_is_written_again_where_the_files_are_elsewhere(dip, noisy):
    assert dip("run", "noisy.png", *SHORT).code == 0
    Path("moved").mkdir()
    shutil.move("runs/noisy", "moved/run")
    shutil.move("noisy.png", "moved/noisy.png")
    missing = dip("report", "moved/run")
    assert missing.code == 2
    assert "noisy.png" in missing.err
    assert "--inputs" in missing.err
    assert "--inputs none" in dip("report", "moved/run", "--inputs", "none").err
    written = dip("report", "moved/run", "--inputs", "moved", "--json")
    assert json.loads(written.out) == {"report": "moved/run/report.html"}
    assert ["dip-fast", "replay", "moved/run/model.onnx"] in commands(page("moved/run"))
    write("moved/noisy.png", texture(16, 18))
    other = dip("report", "moved/run", "--inputs", "moved")
    assert other.code == 2
    assert "another picture" in other.err


def test_report_is_never_written_through_a_link(dip, noisy):
    assert dip("run", noisy, *SHORT).code == 0
    Path("mine.html").write_text("mine")
    Path("runs/noisy/report.html").unlink()
    Path("runs/noisy/report.html").symlink_to("../../mine.html")
    refused = dip("report", "runs/noisy")
    assert refused.code == 2
    assert "report.html is no file" in refused.err
    assert Path("mine.html").read_text() == "mine"


LIES = [
    (lambda held: held.pop("summary"), "no result yet"),
    (lambda held: held["inputs"].pop("picture"), "damaged"),
    (lambda held: (held.pop("files"), held["inputs"]["picture"].update(name=5)), "damaged"),
    (lambda held: held["inputs"]["picture"].pop("sha256"), "another picture"),
    (lambda held: held["summary"].update(result="../../mine.png"), "not the result"),
    (lambda held: held["files"].update(picture="/dev/zero"), "/dev/zero"),
    (lambda held: held.update(files=[]), "damaged"),
    (lambda held: held["summary"]["models"][0].update(format="exe"), "exe"),
]


def test_records_that_lie_are_refused_in_one_line(dip, noisy):
    assert dip("run", noisy, *SHORT).code == 0
    write("runs/noisy/mine.png", texture(20, 20))
    whole = json.dumps(record("runs/noisy"))
    for change, words in LIES:
        held = json.loads(whole)
        change(held)
        Path("runs/noisy/run.json").write_text(json.dumps(held))
        refused = dip("report", "runs/noisy")
        assert (refused.code, len(refused.err.splitlines())) == (2, 1), refused.err
        assert words in refused.err


@pytest.mark.parametrize("name", ["none", "file", "."])
def test_what_holds_no_run_has_no_report(dip, name):
    Path("file").touch()
    refused = dip("report", name)
    assert refused.code == 2
    assert len(refused.err.splitlines()) == 1


# --- the index ----------------------------------------------------------------------------------------------------


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
