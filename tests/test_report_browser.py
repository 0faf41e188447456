"""The report and the index in a browser: the slider by its pixels, keys, a phone's width, no script, no request."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dip_fast import pictures
from dip_fast.runs import report, views
from dip_fast.runs.job import Job
from dip_fast.runs.record import Record, Summary

sync = pytest.importorskip("playwright.sync_api", reason="playwright is missing: make test-browser installs it")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")
ROOT = Path(__file__).parents[1]
RED, BLUE, LONG = (255, 0, 0), (0, 0, 255), "a" * 200 + "<b>.png"
STEPS = {100: (255, 255, 0), 200: (0, 255, 255), 300: (255, 0, 255)}


def flat(colour, side=400):
    return np.full((side, side, 3), colour, np.uint8)


def a_record(name):
    job = Job("denoise", "quick", "skip", "nearest", 300, "auto", 0, "cpu", "fused", "fp32", 2, {"noise": "auto"})
    summary = Summary(
        result="runs/x/result.png", folder="runs/x", steps=300, best_step=200, stop_reason="iterations", seconds=1.0,
        device="cpu", engine="fused", precision="fp32", seed=0, psnr=None, ssim=None, psnr_input=None, ssim_input=None,
        estimated_psnr=30.0, baseline=None, sha256="0" * 64, drawn_by="nobody", models=[], problems=["none " * 30],
    )  # fmt: skip
    return Record("done", job, {}, {"picture": {"name": name, "sha256": "0" * 64}}, summary=summary)


HISTORY = {"step": np.arange(1, 301.0), "loss": 1 / np.arange(1, 301.0)}


@pytest.fixture(scope="module")
def flats(tmp_path_factory):
    """A report of a red picture that became blue, by way of other colours."""
    folder = tmp_path_factory.mktemp("report")
    for step, colour in STEPS.items():
        Image.fromarray(flat(colour)).save(folder / f"{step}.png")
    known = np.ones((400, 400), bool)
    known[:, :200] = False
    shown = views.collect(
        flat(RED) / np.float32(255),
        flat(BLUE) / np.float32(255),
        known=known,
        snapshots={step: folder / f"{step}.png" for step in STEPS},
    )
    path = folder / "report.html"
    path.write_bytes(report.page(a_record(LONG), shown, HISTORY, "runs/" + "x" * 100))
    return path


@pytest.fixture(scope="module")
def browser():
    with sync.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def show(browser):
    """Open a file; at the end nothing has been asked for but the file itself, and nothing complained."""
    said, asked, contexts = [], [], []

    def show(path, **options):
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        return page

    yield show
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == len(contexts)


def colours(element):
    """Colours of a screenshot at a quarter and at three quarters of its width."""
    with Image.open(io.BytesIO(element.screenshot())) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    height, width = pixels.shape[:2]
    return [tuple(pixels[height // 2, width * part // 4]) for part in (1, 3)]


def assert_near(found, wanted):
    np.testing.assert_allclose(found, wanted, atol=3)


def test_slider_shows_the_left_picture_up_to_its_place(show, flats):
    page = show(flats)
    stage = page.locator(".stage")
    for value, wanted in ((50, (RED, BLUE)), (0, (BLUE, BLUE)), (100, (RED, RED))):
        page.locator(".at").fill(str(value))
        assert_near(colours(stage), wanted)
    page.locator(".at").focus()
    page.keyboard.press("Home")
    assert_near(colours(stage), (BLUE, BLUE))
    for _ in range(40):
        page.keyboard.press("ArrowRight")
    assert_near(colours(stage), (RED, BLUE))
    box = stage.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 50)
    page.mouse.up()
    assert_near(colours(stage), (RED, RED))


def test_other_pictures_and_the_mask_can_be_chosen(show, flats):
    page = show(flats)
    page.locator(".choose-left").select_option(label="result")
    page.locator(".choose-right").select_option(label="input")
    assert_near(colours(page.locator(".stage")), (BLUE, RED))
    page.locator(".choose-left").select_option(label="input")
    page.get_by_label("Mark what was filled in").check()
    left, right = colours(page.locator(".stage"))
    assert_near(right, RED)
    assert left[2] > 100  # magenta over red


def test_keys_scrub_the_iterates(show, flats):
    page = show(flats)
    scrub, visible = page.locator(".scrub"), page.locator(".iterates figure:visible")
    assert visible.count() == 1
    scrub.focus()
    for step in (200, 100):
        page.keyboard.press("ArrowLeft")
        assert scrub.get_attribute("aria-valuetext") == f"step {step}"
        assert_near(colours(visible.locator("img"))[0], STEPS[step])
    assert page.locator("#history svg .now[visibility=visible]").count() == 1


def test_without_scripts_pictures_stand_side_by_side(show, flats):
    page = show(flats, java_script_enabled=False)
    assert not page.locator("#compare").is_visible()
    before, after = (page.locator(f"#view-{index}") for index in (0, 1))
    assert before.bounding_box()["y"] == after.bounding_box()["y"]
    assert_near(colours(after), (BLUE, BLUE))
    assert page.locator(".iterates figure:visible").count() == len(STEPS)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone_in_light_and_dark(show, flats, scheme):
    page = show(flats, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


def test_name_of_a_file_is_text(show, flats):
    page = show(flats)
    assert page.locator("h1").inner_text() == LONG
    assert page.locator("b").count() == 0


def test_rows_of_the_index_are_sorted_as_numbers(show, tmp_path):
    steps = (9, 100, 20)
    runs = [
        {
            "name": f"run {count}",
            "link": None,
            "thumbnail": None,
            "cells": [{"text": f"run {count}", "sort": None}, {"text": str(count), "sort": count}],
        }
        for count in steps
    ]
    path = tmp_path / "index.html"
    path.write_bytes(report.render("index.html", columns=("run", "steps"), runs=runs, left_out=0))
    page = show(path, viewport={"width": 360, "height": 740})
    button = page.get_by_role("button", name="steps")
    for direction, wanted in (("ascending", sorted(steps)), ("descending", sorted(steps, reverse=True))):
        button.press("Enter")
        assert page.locator(f"th[aria-sort={direction}]").count() == 1
        assert [int(text) for text in page.locator("tbody td:nth-child(3)").all_inner_texts()] == wanted
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_screenshot_of_the_documentation(show, tmp_path):
    """With DIP_FAST_SCREENSHOT=docs/images/report.png it is kept there."""
    noisy, clean, restored = (
        pictures.read_picture(ROOT / path).image
        for path in ("examples/noisy.png", "examples/clean.png", "docs/images/restored.png")
    )
    path = tmp_path / "report.html"
    shown = views.collect(noisy, restored, reference=clean)
    path.write_bytes(report.page(a_record("noisy.png"), shown, HISTORY, "runs/noisy"))
    page = show(path, viewport={"width": 632, "height": 800})
    data = page.locator("#compare").screenshot()
    if target := os.environ.get("DIP_FAST_SCREENSHOT"):
        Path(target).write_bytes(data)
    with Image.open(io.BytesIO(data)) as image:
        assert image.width == 600


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(show, flats, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is missing")
    page = show(flats, color_scheme=scheme)
    found = axe.Axe().run(page).response["violations"]
    assert [(entry["id"], entry["help"]) for entry in found if entry["impact"] in ("serious", "critical")] == []
