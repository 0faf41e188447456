"""Pictures restored in tiles: `dip-fast run --tile`, its model files, and the same from Python."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import pixels
from PIL import Image
from run_cases import ONE, after, read, record, signal_after

import dip_fast
from dip_fast.errors import UsageError
from dip_fast.runs import recorder
from dip_fast.runs.tiled import plan, run

pytestmark = pytest.mark.usefixtures("place", "small")

SHORT = (*ONE, "--iterations", "4", "--quiet")
BLUR = ("--kernel", "gaussian:1")


class Killed(BaseException):
    """What ends a process, as far as this one can go on afterwards."""


def kill():
    raise Killed


@pytest.fixture
def blurred(place):
    """A picture of four tiles of 64 pixels."""
    Image.fromarray(pixels(72, 80, 3)).save("blurred.png")
    return "blurred.png"


@pytest.fixture
def wide(place):
    """One of two tiles."""
    Image.fromarray(pixels(40, 80, 3)).save("wide.png")
    return "wide.png"


@pytest.fixture
def boxes():
    """The tiles of it."""
    return [(0, 0, 44, 48), (0, 32, 44, 48), (28, 0, 44, 48), (28, 32, 44, 48)]


def test_a_run_in_tiles_leaves_what_any_run_leaves(dip, blurred, boxes):
    verb = ("run", blurred, *BLUR, "--tile", "64", *ONE, "--iterations", "4")
    ended = dip(*verb, "--out", "out", "--reference", blurred)
    assert ended.code == 0, ended.err
    assert "in 4 tiles of at most 64 pixels a side" in ended.err
    assert "replay: dip-fast replay out/model.json" in ended.out.decode()
    held = record("out")
    assert (held["status"], held["settings"]["tile"], held["summary"]["steps"]) == ("done", 64, 4)
    assert held["summary"]["psnr"] > 10
    assert [(each["top"], each["left"], each["height"], each["width"]) for each in held["tiles"]] == boxes
    assert [each["steps"] for each in held["tiles"]] == [4] * 4
    page = Path("out/report.html").read_text()
    assert "The picture is made of 4 tiles" in page
    assert "--tile 64" in page
    assert "dip-fast pick" not in page
    assert {path.name for path in Path("out").iterdir()} == {
        *(f"model_{n:04}.onnx" for n in range(1, 5)), "model.json", "result.png", "run.json", "report.html",
        "contact_sheet.png", "history.csv", "history.svg", "snapshots",
    }  # fmt: skip
    assert len(Path("out/history.csv").read_text().splitlines()) == 5
    image = np.asarray(Image.open(blurred))
    options = {"tile": 64, "iterations": 4, "channel_axis": 2, "device": "cpu"}
    drawn = dip_fast.deblur(image, "gaussian:1", **options)
    # The model files draw it in float32; the function rounds what PyTorch has drawn.
    assert np.abs(drawn.astype(int) - read(Path("out/result.png"))).max() <= 1
    replays(dip)


def replays(dip):
    """Replay blends the tiles to the bytes of the result."""
    replayed = dip("replay", "out", "--verify")
    assert (replayed.code, "the same bits as at export" in replayed.out.decode()) == (0, True)
    assert dip("replay", "out/model.json", "--out", "again.png").code == 0
    assert Path("again.png").read_bytes() == Path("out/result.png").read_bytes()
    np.testing.assert_array_equal(dip_fast.replay("out"), read(Path("out/result.png")))
    one = dip_fast.replay("out/model_0004.onnx")
    np.testing.assert_array_equal(one[16:, 16:], read(Path("out/result.png"))[44:, 48:])  # where no other tile reaches


def test_a_list_draws_no_other_files_than_its_own(dip, wide):
    assert dip("run", wide, *BLUR, "--tile", "64", *SHORT, "--out", "out").code == 0
    listed, first = json.loads(Path("out/model.json").read_text()), Path("out/model_0001.onnx").read_bytes()
    shutil.copy("out/model_0002.onnx", "out/model_0001.onnx")
    refused = dip("replay", "out")
    assert refused.code == 2
    assert "model_0001.onnx is not the file that it lists" in refused.err
    Path("out/model_0001.onnx").write_bytes(first)
    for changes in (
        {"files": [{**each, "name": f"../out/{each['name']}"} for each in listed["files"]]},
        {"files": listed["files"][:1]},
        {"columns": [[0, 40], [50, 80]]},
        {"columns": [[0, 48], [32, 10**9]]},
        {"columns": [[0, "48"], [32, 80]]},
        {"rows": []},
        {"blobs": {}},
        {"picture": None},
    ):
        Path("out/model.json").write_text(json.dumps({**listed, **changes}))
        refused = dip("replay", "out")
        assert (refused.code, refused.err.count("\n")) == (2, 1), changes
        assert "its metadata are damaged" in refused.err
    Path("out/model.json").write_text(json.dumps({**listed, "dip_fast_tiles": 2}))
    assert "it is of schema 2" in dip("replay", "out").err
    Path("out/model.json").write_text(json.dumps(listed))
    assert "holds no network of its own" in dip("export", "out", "--format", "pt2").err


@pytest.mark.parametrize("moment", ["in a probe", "in a tile", "between two tiles"])
def test_a_run_that_was_killed_goes_on_to_the_same_bits(dip, wide, monkeypatch, moment):
    monkeypatch.setattr(recorder, "SECONDS_BETWEEN_CHECKPOINTS", -1)  # one after each step
    arguments = ("run", wide, *BLUR, "--tile", "64", "--stop", "auto", *SHORT)
    assert dip(*arguments, "--out", "whole").code == 0
    probes = record("whole")["shared"]["probes"]
    part = f"probe {probes[0][0]}" if moment == "in a probe" else "tile 1"
    original = run._Tile._fitted
    with monkeypatch.context() as patch:

        def fitted(self, name, **options):
            if name == part and moment == "between two tiles":
                patch.setattr(run.Folder, "remove", lambda *given: kill())
            elif name == part:
                after(patch, lambda fit: fit.steps == 3, kill)
            return original(self, name, **options)

        patch.setattr(run._Tile, "_fitted", fitted)
        with pytest.raises(Killed):
            dip(*arguments, "--out", "killed")
    held = record("killed")
    done = 0 if moment == "in a probe" else 1
    assert [each["sha256"] is not None for each in held["tiles"]] == [n < done for n in range(2)]
    assert [best > 0 for _, best in held["shared"]["probes"]] == [done > 0] * 2
    resumed = dip(*arguments[:-1], "--out", "killed", "--resume")
    assert resumed.code == 0, resumed.err
    assert f"resumed after step {4 if moment == 'between two tiles' else 2}" in resumed.err
    for name in ("result.png", "history.csv"):
        assert Path("killed", name).read_bytes() == Path("whole", name).read_bytes()
    assert record("killed")["shared"] == record("whole")["shared"]


def test_a_run_that_was_stopped_in_a_tile_goes_on_from_its_checkpoint(dip, wide, monkeypatch):
    arguments = ("run", wide, *BLUR, "--tile", "64", "--stop", "never", *ONE, "--iterations", "4")
    assert dip(*arguments, "--out", "whole").code == 0
    # In the second tile: the first one has a result.
    signal_after(monkeypatch, lambda fit: fit.steps == 3 and Path("stopped/model_0001.onnx").exists())
    stopped = dip(*arguments, "--out", "stopped")
    assert stopped.code == 130
    assert "go on with the same command and --resume" in stopped.err
    kept = Path("stopped/tile_0001.npz").read_bytes()
    resumed = dip(*arguments, "--out", "stopped", "--resume")
    assert resumed.code == 0, resumed.err
    assert "tile 2 of 2, resumed after step 3" in resumed.err
    assert "tile 1 of 2" not in resumed.err
    assert kept
    assert Path("stopped/result.png").read_bytes() == Path("whole/result.png").read_bytes()
    assert record("stopped")["summary"]["sha256"] == record("whole")["summary"]["sha256"]
    assert Path("stopped/history.csv").read_bytes() == Path("whole/history.csv").read_bytes()
    assert "nothing is left to resume" in dip(*arguments, "--out", "stopped", "--resume").err
    Path("stopped/model_0002.onnx").unlink()
    assert "nothing is left" not in dip(*arguments, "--out", "stopped", "--resume").err
    assert dip("replay", "stopped", "--verify").code == 0
    refused = dip(*arguments[:-1], "5", "--out", "stopped", "--resume")
    assert (refused.code, "a run in tiles has the settings that it began with" in refused.err) == (2, True)


def test_memory_decides_where_nobody_does(dip, wide, monkeypatch):
    from dip_fast.device import devices

    monkeypatch.setattr(plan, "SIDES", (76, 70, 64))
    needed = devices.needed_bytes

    def of(recipe, channels, size, *more):
        return 10**9 * size[0] * size[1] if max(size) > 70 else needed(recipe, channels, size, *more)

    monkeypatch.setattr(devices, "needed_bytes", of)
    arguments = ("run", wide, *BLUR, *SHORT, "--export", "none")
    refused = dip(*arguments, "--tile", "never", "--out", "never")
    assert (refused.code, "a 80x40 picture needs about" in refused.err) == (2, True)
    assert dip(*arguments, "--out", "auto").code == 0
    assert record("auto")["settings"]["tile"] == 70
    assert not [*Path("auto").glob("model*")]
    monkeypatch.setattr(devices, "needed_bytes", needed)
    assert dip(*arguments, "--tile", "auto", "--out", "whole").code == 0
    assert record("whole")["settings"]["tile"] == "never"
    assert dip(*arguments, "--tile", "80", "--out", "one").code == 0  # one tile is the whole
    assert Path("one/result.png").read_bytes() == Path("whole/result.png").read_bytes()


def test_what_is_known_of_a_tile_stays_and_what_is_not_cannot_be_made_up(dip, blurred):
    known = np.ones((72, 80), bool)
    known[50:60, 60:70] = False
    Image.fromarray(known).save("mask.png")
    arguments = ("run", blurred, "--mask", "mask.png", "--preset", "quick", "--tile", "64", "--stop", "never")
    ended = dip(*arguments, *SHORT, "--out", "out")
    assert ended.code == 0, ended.err
    assert [each["steps"] for each in record("out")["tiles"]] == [1, 1, 1, 4]
    image, result = np.asarray(Image.open(blurred)), read(Path("out/result.png"))
    np.testing.assert_array_equal(result[known], image[known])
    assert (result[~known] != image[~known]).mean() > 0.5
    np.testing.assert_array_equal(dip_fast.replay("out"), result)
    known[:48, :60] = False
    Image.fromarray(known).save("mask.png")
    refused = dip(*arguments, *SHORT, "--out", "hole")
    assert refused.code == 2
    assert "--tile 64: the tile of 48x44 pixels at 0,0 lies in a hole" in refused.err
    assert not Path("hole").exists()


@pytest.mark.parametrize("task", ["superres", "jpeg", "guided", "denoise"])
def test_every_task_that_fits_from_a_random_input_has_tiles(dip, wide, task):
    image = np.asarray(Image.open(wide))
    Image.fromarray(image).save("photo.jpg", quality=40)
    guide = np.kron(image, np.ones((2, 2, 1), np.uint8))
    guide[:, :100] = 9  # a tile of it shows nothing
    Image.fromarray(guide).save("guide.png")
    given = {
        "superres": (wide, "--task", "superres", "--scale", "2"),
        "jpeg": ("photo.jpg", "--task", "jpeg"),
        "guided": (wide, "--guide", "guide.png", "--scale", "2"),
        "denoise": (wide, "--preset", "quick", "--stop", "never"),
    }
    ended = dip("run", *given[task], "--tile", "64", *SHORT, "--out", "out")
    assert ended.code == 0, ended.err
    result, held = read(Path("out/result.png")), record("out")
    assert result.shape == ((80, 160, 3) if task in ("superres", "guided") else (40, 80, 3))
    assert not held["summary"]["problems"]
    np.testing.assert_array_equal(dip_fast.replay("out"), result)
    if task == "jpeg":
        assert {each["left"] % 16 for each in held["tiles"]} == {0}


@pytest.mark.parametrize("given", [("--preset", "quick"), ("--mask", "mask.png", "--preset", "quick")])
def test_a_tile_that_is_transparent_stays_as_it_is(dip, wide, given):
    image = np.dstack([np.asarray(Image.open(wide)), np.full((40, 80), 255, np.uint8)])
    image[:, :50, 3] = 0
    Image.fromarray(image).save("cut.png")
    known = np.ones((40, 80), bool)
    known[10:16, 60:70] = False
    Image.fromarray(known).save("mask.png")
    ended = dip("run", "cut.png", *given, "--tile", "64", "--stop", "never", *SHORT, "--out", "out")
    assert ended.code == 0, ended.err
    assert record("out")["tiles"][0]["steps"] == 1
    result = read(Path("out/result.png"))
    np.testing.assert_array_equal(result[:, :50], image[:, :50])
    np.testing.assert_array_equal(dip_fast.replay("out"), result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tile", "63"), "--tile 63 must be auto or never, or pixels, at least 64"),
        (("--tile", "large"), "--tile large must be auto or never, or pixels, at least 64"),
        (("--tile", "64", "--preset", "default"), "learns from squares of a picture of any size"),
        (("--tile", "64", "--export", "onnx,pt2"), "--export onnx,pt2: the model of a picture in tiles is a list"),
    ],
)
def test_what_cannot_be_done_in_tiles_is_refused_in_one_line(dip, wide, arguments, message):
    verb = ("run", wide, *arguments, *ONE, "--quiet", "--out", "out", *(() if "default" in arguments else BLUR))
    refused = dip(*verb)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert message in refused.err
    assert not Path("out").exists()


def test_functions_have_no_result_of_tiles_and_callbacks_of_each():
    image, seen = pixels(40, 80), []
    options = {"tile": 64, "iterations": 2, "stop": "never", "device": "cpu"}
    dip_fast.deblur(image, "gaussian:1", callbacks=[lambda fit: seen.append(fit.steps)], **options)
    assert seen.count(1) == 2
    with pytest.raises(UsageError, match=r"return_result=True: the tiles of tile=64 have a network each"):
        dip_fast.deblur(image, "gaussian:1", return_result=True, **options)


def test_a_run_in_tiles_is_replaced_whole(dip, wide):
    assert dip("run", wide, *BLUR, "--tile", "64", *SHORT, "--out", "out").code == 0
    assert "restored in tiles" in dip("pick", "out").err
    assert dip("run", wide, *BLUR, *SHORT, "--out", "out", "--overwrite").code == 0
    assert {path.name for path in Path("out").glob("model*")} == {"model.onnx"}
