"""The report of a run: one file that asks for nothing, shows what is there, and takes names for text."""

import base64
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import pixels
from PIL import Image
from report_cases import HOSTILE, assert_asks_for_nothing, page
from run_cases import SHORT, after, record, texture, write

from dip_fast.runs import report, views
from dip_fast.tasks import Baseline

pytestmark = pytest.mark.usefixtures("place", "small", "from_random_input")


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


def test_page_of_all_there_can_be_is_small(tmp_path):
    """Noise throughout: no file of it is small."""
    rng = np.random.default_rng(0)
    image, result = (rng.random((700, 1000, 3), np.float32) for _ in range(2))
    Image.fromarray(views.eight_bits(result)).save(tmp_path / "0.png", compress_level=0)
    shown = views.collect(
        image,
        result,
        baseline=Baseline("other", result),
        reference=image,
        known=rng.random((700, 1000)) < 0.5,
        snapshots=dict.fromkeys(range(20), tmp_path / "0.png"),
    )
    assert len(shown.iterates) == views.MAX_ITERATES
    facts = {"title": "", "lead": [], "problems": [], "curves": [], "best_step": 1, "commands": [], "tables": []}
    assert len(report.fitted([("", shown)], **facts)) <= report.MAX_BYTES


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
