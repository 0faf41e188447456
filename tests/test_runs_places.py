"""Where a result goes: a file that is named, a folder, a folder of its own for each of two pictures of one name."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from run_cases import ONE, record, signal_after, texture, write

from dip_fast.errors import DipFastError
from dip_fast.runs import target

pytestmark = pytest.mark.usefixtures("place", "from_random_input", "small")

SHORT = (*ONE, "--iterations", "3", "--snapshot-every", "0", "--export", "none")
ONLY = (*ONE, "--iterations", "3", "--only-result")


def pixels(path):
    with Image.open(path) as file:
        return np.asarray(file)


def coding(file):
    """How a JPEG file was compressed: its tables, and which component has how many samples."""
    return vars(file)["quantization"], vars(file)["layer"]


def refusal(ended):
    assert (ended.code, ended.out) == (2, b"")
    (line,) = ended.err.splitlines()
    return line


def test_out_that_names_a_picture_is_that_file(dip, noisy):
    ended = dip("run", noisy, *SHORT, "-o", "restored.png")
    assert ended.code == 0
    assert b"result: restored.png" in ended.out
    np.testing.assert_array_equal(pixels("restored.png"), pixels("runs/noisy/result.png"))
    assert [*record("runs/noisy")["copies"]] == [str(Path("restored.png").absolute())]
    refused = refusal(dip("run", noisy, *SHORT, "-o", "restored.png"))
    assert "runs/noisy exists and holds the finished run of noisy.png: result.png of step" in refused


def test_only_result_leaves_nothing_else(dip, noisy):
    before = {*Path().iterdir()}
    ended = dip("run", noisy, *ONLY, "-o", "restored.tif", "--json")
    summary = json.loads(ended.out)
    assert (ended.code, summary["result"], summary["folder"], summary["models"]) == (0, "restored.tif", "", [])
    assert {*Path().iterdir()} - before == {Path("restored.tif")}
    assert tifffile.imread("restored.tif").shape == (16, 18)
    assert "restored.tif exists; choose another name or give --overwrite" in refusal(
        dip("run", noisy, *ONLY, "-o", "restored.tif")
    )
    assert dip("run", noisy, *ONLY, "-o", "restored.tif", "--overwrite").code == 0


def test_a_stopped_run_that_leaves_only_its_result_offers_no_resume(dip, noisy, monkeypatch):
    signal_after(monkeypatch, lambda fit: fit.steps == 2)
    ended = dip("run", noisy, *ONE, "--iterations", "30", "--only-result", "-o", "restored.png")
    assert (ended.code, "--resume" in ended.err, Path("restored.png").exists()) == (130, False, True)


def test_a_path_without_suffix_is_a_folder(dip, noisy):
    assert dip("run", noisy, *SHORT, "-q", "-o", "v1.2").code == 0
    assert Path("v1.2/result.png").exists()


def test_a_result_from_standard_input_goes_to_the_file_that_is_named(dip, noisy):
    ended = dip("run", "-", *ONLY, "-q", "-o", "restored.png", stdin=noisy.read_bytes())
    assert (ended.code, ended.out) == (0, b"")
    assert pixels("restored.png").shape == (16, 18)


def test_two_pictures_of_one_name_have_a_folder_each(dip, place):
    for folder, seed in (("a", 0), ("b", 1)):
        Path(folder).mkdir()
        Image.fromarray(np.roll(texture(16, 18), seed)).save(f"{folder}/photo.png")
        assert dip("run", f"{folder}/photo.png", *SHORT, "-q").code == 0
    assert record("runs/photo")["file"] != record("runs/photo-2")["file"]
    # Each goes on with its own, and is refused for its own.
    assert dip("run", "b/photo.png", *SHORT, "-q", "--resume").code == 0
    line = refusal(dip("run", "b/photo.png", *SHORT))
    assert "runs/photo-2 exists and holds the finished run of photo.png" in line
    assert "go on with --resume, replace with --overwrite, or choose another --out" in line
    # A copy elsewhere is the same picture.
    Path("c").mkdir()
    Path("c/photo.png").write_bytes(Path("b/photo.png").read_bytes())
    assert "runs/photo-2 exists" in refusal(dip("run", "c/photo.png", *SHORT))


def test_resume_replaces_the_file_that_the_run_wrote_and_no_other(dip, noisy, monkeypatch):
    words = ("run", noisy, *ONE, "--iterations", "9", "--snapshot-every", "0", "--export", "none", "-o", "restored.png")
    with monkeypatch.context() as patch:
        signal_after(patch, lambda fit: fit.steps == 2)
        assert dip(*words, "-q").code == 130
    first = Path("restored.png").read_bytes()
    Path("restored.png").write_bytes(b"mine")
    assert "restored.png exists; choose" in refusal(dip(*words, "--resume"))
    assert Path("restored.png").read_bytes() == b"mine"
    Path("restored.png").write_bytes(first)
    assert dip(*words, "-q", "--resume").code == 0
    np.testing.assert_array_equal(pixels("restored.png"), pixels("runs/noisy/result.png"))


def test_a_jpeg_on_request_keeps_the_quality_of_the_picture(dip, place):
    rgb = (np.indices((32, 32)).sum(0) * 3).astype(np.uint8)[..., None].repeat(3, axis=2)
    Image.fromarray(rgb).save("photo.jpg", quality=71, dpi=(300, 300))
    assert dip("run", "photo.jpg", *ONLY, "-q", "-o", "restored.jpg").code == 0
    with Image.open("photo.jpg") as before, Image.open("restored.jpg") as after:
        assert (after.format, coding(after)) == ("JPEG", coding(before))
        assert after.info["dpi"] == (300, 300)
    assert dip("run", "photo.jpg", *ONLY, "-q", "-o", "fine.jpg", "--quality", "98").code == 0
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=98)
    with Image.open("fine.jpg") as after, Image.open(buffer) as wanted:
        assert coding(after) == coding(wanted)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["-o", "noisy.png", "--overwrite"],
            "noisy.png is read by this run, and is not replaced; choose another",
        ),
        (["-o", "nowhere/restored.png"], "there is no folder nowhere; make it first"),
        (["-o", "restored.bmp"], 'results are not written as ".bmp": name the file .png, .jpg, .tif'),
        (
            ["-o", "restored.png", "--quality", "80"],
            "--quality is for JPEG files; leave it out, or name the result",
        ),
        (
            ["--only-result"],
            "--only-result needs a file for the result; name one of a format of results, as with --out restored.jpg",
        ),
        (["--quality", "80"], "--quality needs a file for the result; name one"),
        (["-o", "restored.png", "--only-result", "--resume"], "--only-result keeps no folder, which --resume needs"),
        (["-o", "restored.png", "--only-result", "--export", "onnx"], "keeps no folder, which --export needs"),
        (["-o", "a" * 300 + ".png"], "File name too long; choose another name"),
        (["-o", "a" * 300 + "/restored.png"], "File name too long; choose another name"),
        (["-o", "restored.mrc"], "MRC cannot hold uint8 samples"),
    ],
)
def test_refusals_before_the_fit(dip, noisy, arguments, words):
    assert words in refusal(dip("run", noisy, *ONE, *arguments))
    assert [*Path().iterdir()] == [noisy.relative_to(Path.cwd())]


def test_a_format_that_cannot_hold_the_picture_is_refused_before_the_fit(dip, place):
    write("deep.tif", texture(16, 18, dtype=np.uint16))
    write("rgba.tif", texture(16, 18, 4))
    assert "JPEG cannot hold uint16 samples" in refusal(dip("run", "deep.tif", *ONE, "-o", "restored.jpg"))
    Image.fromarray(texture(16, 18, 4)).save("rgba.png")
    assert "JPEG cannot hold alpha" in refusal(dip("run", "rgba.png", *ONE, "-o", "restored.jpg"))
    assert not Path("runs").exists()


def test_a_result_that_cannot_be_written_where_it_was_asked_for_is_in_the_folder(dip, noisy, monkeypatch):
    def refuse(path, data):
        raise DipFastError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(target, "write_atomically", refuse)
    ended = dip("run", noisy, *SHORT, "-o", "restored.png")
    assert ended.code == 1
    assert "No space left" in ended.err
    assert "the result is in runs/noisy/result.png" in ended.err.replace(str(Path.cwd()) + "/", "")


def test_a_record_that_names_what_no_file_can_be_named_makes_the_run_anew(dip, noisy):
    arguments = ["run", noisy, *ONE, "--iterations", "3", "--snapshot-every", "0", "-o", "out"]
    assert dip(*arguments).code == 0
    place = Path("out/run.json")
    document = json.loads(place.read_text())
    document["summary"]["models"][0]["path"] = "a" * 300
    place.write_text(json.dumps(document))
    assert dip(*arguments, "--resume").code == 0
    assert json.loads(place.read_text())["summary"]["models"][0]["path"] == "out/model.onnx"
