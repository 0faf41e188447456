"""The page in a browser: from a dropped picture to a model file, and what closing, killing and two tabs leave."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dip_fast.models import verifying
from dip_fast.models.model import open_model

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: make test-browser")
for library in ("starlette", "uvicorn"):
    pytest.importorskip(library, reason=f"{library} is missing")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")
ROOT = Path(__file__).parents[1]
SECONDS = 60  # that a run of a few steps may take on a machine that is busy
LONG = "100000"  # steps: such a run is at work until it is stopped


class Server:
    """The server in a process of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.start()

    def start(self):
        command = [sys.executable, "-m", "dip_fast", "ui", "photos", "--out", "runs", "--no-browser"]
        self.process = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.PIPE, text=True)
        self.address = self.process.stdout.readline().split()[1]

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def record(self, name):
        return json.loads((self.folder / "runs" / name / "run.json").read_text())


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ui")
    (folder / "photos").mkdir()
    with Image.open(ROOT / "examples" / "noisy.png") as image:
        image.save(folder / "noisy.png")
        image.crop((150, 100, 246, 164)).save(folder / "photos" / "small.png")
    server = Server(folder)
    yield server
    server.kill()
    for path in (folder / "runs/.ui/jobs").glob("*.json"):  # those that were left at work
        try:
            os.kill(json.loads(path.read_text())["pid"], signal.SIGKILL)
        except (OSError, ValueError, KeyError):
            continue


@pytest.fixture
def said():
    """What a browser had to complain of."""
    return []


@pytest.fixture
def show(browser, server, said):
    """Open the page; in the end no request has left it, and nothing complained."""
    asked, contexts = [], []

    def show(where="", **options):
        contexts.append(browser.new_context(**{"viewport": {"width": 660, "height": 1600}, **options}))
        page = contexts[-1].new_page()
        page.set_default_timeout(1000 * SECONDS)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.on("response", lambda answer: answer.ok or said.append(f"{answer.status} {answer.url}"))
        page.goto(server.address + where)
        return page

    yield show
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))] == []


def until(page, expression):
    """Wait for something; the policy of the page lets nobody wait in the page itself."""
    deadline = time.monotonic() + SECONDS
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"{expression}: {page.locator('main').inner_text()}"
        page.wait_for_timeout(50)


def order(page, *, picture="small.png", **fields):
    """Choose a picture of the folder, and fill in what to do with it."""
    page.locator("#folder-box summary").click()
    page.get_by_role("button", name=picture).first.click()
    until(page, "document.getElementById('size').textContent.includes('x')")
    for name, value in fields.items():  # those of the folded part too
        page.evaluate("([id, value]) => { part(id).value = value; }", [name, value])
        page.locator(f"#{name}").dispatch_event("change")


def shown_box(element):
    """Bring an element to where a mouse reaches it, and find its place."""
    element.scroll_into_view_if_needed()
    return element.bounding_box()


def begin(page):
    page.locator("#start").click()
    until(page, "location.hash.startsWith('#run/')")
    return page.evaluate("location.hash").removeprefix("#run/")


def wait_for(page, text):
    until(page, f"document.getElementById('run-status').textContent.includes('{text}')")


def begin_and_wait(page):
    name = begin(page)
    wait_for(page, "Done")
    return name


def keep(page, name, part):
    """With DIP_FAST_SCREENSHOTS=docs/images the pictures of the documentation are kept there."""
    if target := os.environ.get("DIP_FAST_SCREENSHOTS"):
        page.locator(part).screenshot(path=Path(target, name))


def test_whole_way_from_a_dropped_picture_to_a_model_file(show, server):
    page = show()
    page.locator("#file").set_input_files(server.folder / "noisy.png")
    until(page, "document.getElementById('size').textContent.includes('256x256')")
    page.locator("#task").select_option("denoise")
    page.locator("#preset").select_option("quick")
    until(page, "document.getElementById('cost').textContent.includes('two cores')")
    page.locator("#more summary").click()
    page.locator("#steps").fill("200" if os.environ.get("DIP_FAST_SCREENSHOTS") else "60")
    name = begin(page)
    page.locator("#at").fill("30")
    until(page, "Number(/estimate at step (\\d+)/.exec(document.getElementById('shown').textContent)?.[1]) >= 49")
    until(page, "document.querySelector('#stage .over').naturalWidth === 256")
    keep(page, "ui-running.png", "#run")
    wait_for(page, "Done")
    page.locator("#strength").fill("70")
    assert page.evaluate("getComputedStyle(document.querySelector('#stage .over')).opacity") == "0.7"
    step = page.locator("#step option").nth(-2).get_attribute("value")
    page.locator("#step").select_option(step)
    page.locator("#export").click()
    until(page, "document.getElementById('shown').textContent.includes('as it is in the folder')")
    summary = server.record(name)["summary"]
    assert (summary["best_step"], summary["strength"]) == (int(step), 0.7)
    with page.expect_download() as download:
        page.locator("#link-model").click()
    model = open_model(download.value.path().rename(server.folder / "saved.onnx"))
    assert verifying.verify(model, model.draw()).verdict == "same"
    with Image.open(server.folder / "runs" / name / "result.png") as image:
        np.testing.assert_array_equal(model.samples(model.draw()), np.asarray(image))
    page.locator("#at").fill("50")
    keep(page, "ui-picking.png", "#run")
    page.reload()
    wait_for(page, "Done")
    assert page.locator("#strength").input_value() == "70"
    assert page.locator("#step").input_value() == step


def test_painted_mask_arrives_bit_for_bit_at_12_megapixels(show, server):
    Image.fromarray(np.zeros((3000, 4000), np.uint8) + np.arange(4000, dtype=np.uint16).astype(np.uint8)).save(
        server.folder / "photos" / "large.png"
    )
    page = show()
    order(page, picture="large.png", task="inpaint")
    until(page, "paint.width === 4000")
    box = shown_box(canvas := page.locator("#mask"))
    page.locator("#radius").fill("37")
    for row in (0.2, 0.4):
        page.mouse.move(box["x"] + 50, box["y"] + row * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 400, box["y"] + (row + 0.1) * box["height"], steps=7)
        page.mouse.up()
    page.locator("#eraser").check()
    page.mouse.click(box["x"] + 200, box["y"] + 0.25 * box["height"])
    canvas.focus()
    page.keyboard.press("b")
    for key in ("ArrowRight", "ArrowDown", "Space"):
        page.keyboard.press(key)
    before = page.evaluate("paint.count()")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    page.keyboard.press("Control+z")
    assert page.evaluate("paint.count()") == before
    page.evaluate("now.saving")
    bits = np.array(page.evaluate("Array.from(paint.packed())"), np.uint8)
    (draft,) = [path for path in (server.folder / "runs/.ui/drafts").iterdir() if path.stat().st_size > 9000]
    with Image.open(draft) as image:
        holes = np.asarray(image) == 0
    assert holes.shape == (3000, 4000)
    np.testing.assert_array_equal(np.packbits(holes), bits)
    assert before == holes.sum() > 10_000
    page.reload()  # the mask that was being painted is there again
    page.locator("#task").select_option("inpaint")
    until(page, f"paint.count() === {before}")


def test_mask_is_painted_loaded_and_filled_in(show, server):
    mask = np.full((64, 96), 255, np.uint8)
    mask[20:30, 40:60] = 0
    Image.fromarray(mask).save(server.folder / "mask.png")
    page = show()
    order(page, task="inpaint", preset="quick", steps="20")
    until(page, "paint.width === 96")
    page.locator("#mask-file").set_input_files(server.folder / "mask.png")
    until(page, "document.getElementById('filled').textContent.startsWith('3.3%')")
    keep(page, "ui-mask.png", "#order")
    found = Path(server.record(begin_and_wait(page))["files"]["mask"])
    with Image.open(found) as image:
        np.testing.assert_array_equal(np.asarray(image), mask)
    assert page.locator("#strength").is_disabled()


def test_picture_that_cannot_be_read_says_why_and_is_not_started(show, server, said):
    whole = (server.folder / "photos" / "small.png").read_bytes()
    (server.folder / "photos" / "cut.png").write_bytes(whole[: len(whole) // 2])
    page = show("#picture/here%2Fcut.png")
    until(page, "document.getElementById('said').textContent.includes('damaged or cut short')")
    assert page.locator("#start").is_disabled()
    assert page.locator("#size").inner_text() == ""
    page.locator("#file").set_input_files(server.folder / "photos" / "small.png")
    until(page, "document.getElementById('size').textContent.includes('96x64')")
    until(page, "!part('start').disabled")
    said.clear()


def test_mask_that_cannot_be_read_or_was_let_go(show, server, said):
    (server.folder / "text.png").write_text("no picture")
    page = show()
    order(page, task="inpaint")
    until(page, "!part('start').disabled")
    page.locator("#mask-file").set_input_files(server.folder / "text.png")
    until(page, "document.getElementById('said').textContent.includes('cannot read text.png')")
    with page.expect_file_chooser():  # the same file, once it was changed, is another choice
        page.locator("#mask-file").click()
    assert page.locator("#mask-file").input_value() == ""
    said.clear()


def test_mask_of_a_layer_a_colour_and_what_is_transparent(show, server):
    """What is painted on a partly transparent layer was read by its colours."""
    layer = np.zeros((64, 96, 4), np.uint8)
    layer[20:30, 40:60] = 255  # white, on black of which nothing shows
    Image.fromarray(layer).save(server.folder / "layer.png")
    picture = np.full((64, 96, 4), 255, np.uint8)
    picture[:4, :, 3] = 0
    picture[32:40, 8:16, :3] = (255, 0, 255)
    Image.fromarray(picture).save(server.folder / "photos" / "marked.png")
    page = show()
    order(page, picture="marked.png", task="inpaint")
    until(page, "!part('start').disabled")
    page.locator("#mask-file").set_input_files(server.folder / "layer.png")
    until(page, "paint.count() === 200")
    page.locator("#clear").click()
    page.locator("#dropper").check()
    box = shown_box(page.locator("#mask"))
    page.mouse.click(box["x"] + 12 * box["width"] / 96, box["y"] + 36 * box["height"] / 64)
    until(page, "paint.count() === 64")
    page.locator("#by-alpha").click()
    until(page, "paint.count() === 64 + 4 * 96")
    page.locator("#undo").click()
    assert page.evaluate("paint.count()") == 64
    page.evaluate("now.saving")


def test_part_of_a_picture_with_a_guide_and_a_seed(show, server):
    with Image.open(server.folder / "photos" / "small.png") as image:
        image.resize((192, 128)).save(server.folder / "photos" / "guide.png")
        image.save(server.folder / "guide.png")
    page = show()
    order(page, task="guided", preset="quick", steps="12", seed="7")
    until(page, "part('guide').options.length > 1")
    page.locator("#guide").select_option("here/guide.png")
    until(page, "part('guide-size').textContent.startsWith('192x128 pixels, 2 times the picture')")
    assert page.locator("[data-name=scale]").input_value() == "2"
    page.locator("#guide-file").set_input_files(server.folder / "guide.png")
    until(page, "part('guide-size').textContent.startsWith('96x64 pixels, as the picture')")
    page.locator("#more summary").click()
    page.locator("#draw-region").click()
    box = shown_box(page.locator("#picture"))
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 4)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 0.75 * box["height"], steps=3)
    page.mouse.up()
    assert page.locator("#region").input_value() == "24,16,24,32"
    keep(page, "ui-guided.png", "#order")
    found = server.record(begin_and_wait(page))
    assert (found["settings"]["seed"], found["settings"]["options"]["scale"]) == (7, 1)
    assert found["inputs"]["picture"]["region"] == "24,16,24,32"
    assert Path(found["files"]["guide"]).read_bytes() == (server.folder / "guide.png").read_bytes()


def test_answer_that_is_being_written_is_not_called_unwritten(show, server):
    page = show()
    order(page, task="denoise", preset="quick", steps="30")
    begin_and_wait(page)
    page.route("**/pick", lambda route: (page.wait_for_timeout(200), route.continue_()))
    page.locator("#strength").fill("50")
    page.evaluate("document.getElementById('export').click(); preview()")  # as each look at the folder does
    assert page.locator("#shown").inner_text() == "Writing ..."
    until(page, "document.getElementById('shown').textContent.includes('as it is in the folder')")


def test_mask_of_another_tab_is_not_taken(show, said):
    one, other = show(), show()
    for page in (one, other):
        order(page, task="inpaint", preset="quick", steps="20")
        until(page, "paint.width === 96")  # what is painted from now on is kept
        page.locator("#mask").focus()
        page.keyboard.press("Space" if page is one else "ArrowRight")
        page.keyboard.press("Space")
        page.evaluate("now.saving")
    one.locator("#start").click()
    until(one, "document.getElementById('said').textContent.includes('another tab')")
    one.evaluate("list()")  # as every five seconds: it takes no message away
    assert "another tab" in one.locator("#said").inner_text()
    said.clear()  # a browser notes each answer that is an error


def test_two_tabs_stop_and_go_on_and_a_killed_server_loses_nothing(show, server):
    one = show()
    order(one, task="denoise", preset="quick", steps=LONG)
    name = begin(one)
    wait_for(one, "left")
    other = show(f"#run/{name}")
    wait_for(other, "left")
    pid = json.loads((server.folder / f"runs/.ui/jobs/{name}.json").read_text())["pid"]
    for page in (one, other):
        page.goto("about:blank")
    server.kill()
    time.sleep(1)
    os.kill(pid, 0)  # the run goes on
    server.start()
    again = show(f"#run/{name}")
    wait_for(again, "left")
    again.locator("#stop").click()
    wait_for(again, "Stopped")
    assert server.record(name)["status"] == "interrupted"
    steps = server.record(name)["summary"]["steps"]
    assert again.locator("#step option").count() > 1
    again.locator("#resume").click()
    wait_for(again, "left")
    again.locator("#stop").click()
    wait_for(again, "Stopped")
    assert server.record(name)["summary"]["steps"] >= steps


def test_names_of_files_are_text(show, server):
    name = """<img src=x onerror=alert(1)>'"&.png"""
    with Image.open(server.folder / "photos" / "small.png") as image:
        image.save(server.folder / "photos" / name)
    page = show()
    order(page, picture=name)
    assert page.locator("#name").inner_text() == name
    assert page.locator("img[src=x]").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone_and_axe_finds_nothing_serious(show, server, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is missing")
    runs = sorted(path.parent.name for path in (server.folder / "runs").glob("*/report.html"))
    page = show(viewport={"width": 360, "height": 740}, color_scheme=scheme, bypass_csp=True)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    order(page, task="inpaint")
    for where in ("", *(f"run/{name}" for name in runs[:1])):
        if where:
            page.goto(f"{server.address}#{where}")
            until(page, "!document.getElementById('pick').hidden")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        found = axe.Axe().run(page).response["violations"]
        assert [(entry["id"], entry["help"]) for entry in found if entry["impact"] in ("serious", "critical")] == []
