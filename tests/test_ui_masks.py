"""Masks of the page: painted, loaded, or found in the picture itself; each means what it means in a run."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_cases import texture, write

from dip_fast.errors import UsageError

pytest.importorskip("starlette", reason="starlette is missing")
pytest.importorskip("httpx2", reason="httpx2 is missing")
from ui_cases import HOSTILE

pytestmark = pytest.mark.usefixtures("place")


@pytest.mark.parametrize("size", [(16, 18), (17, 19)])
def test_mask_arrives_bit_for_bit(client, desk, size):
    height, width = size
    write(str(desk.root / "photo.png"), texture(height, width))
    holes = np.random.default_rng(0).random(size) < 0.3
    asked = {"of": "here/photo.png", "width": width, "height": height}
    assert client.get("mask", params={"of": "here/photo.png"}).status_code == 204
    state = client.post("mask", params=asked, content=np.packbits(holes).tobytes()).json()["mask"]
    shown = client.get("mask", params={"of": "here/photo.png"}).content
    Path("shown.png").write_bytes(shown)
    kept = desk.painted(desk.picture("here/photo.png"), state)
    for path in (Path("shown.png"), kept):
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(image) == 0, holes)
    with pytest.raises(UsageError, match="another tab"):
        desk.painted(desk.picture("here/photo.png"), "0" * 64)


@pytest.mark.parametrize("change", [{"width": 17}, {"height": "x"}, {"width": -18}, {"of": "here/none.png"}])
def test_mask_of_another_size_is_refused(client, desk, change):
    asked = {"of": "here/noisy.png", "width": 18, "height": 16} | change
    assert client.post("mask", params=asked, content=bytes(36)).status_code == 422
    assert list((desk.own / "drafts").iterdir()) == []


def as_mask(answer):
    assert answer.status_code == 200, answer.text
    Path("answer.png").write_bytes(answer.content)
    with Image.open("answer.png") as image:
        return np.asarray(image)


@pytest.mark.parametrize("kind", ["layer", "opaque", "gray"])
def test_mask_that_is_loaded_means_what_it_means_in_a_run(client, desk, kind):
    """The page took the colours of a layer, on which something is painted over nothing, for the mask."""
    from dip_fast.pictures import read_mask

    painted = np.zeros((16, 18), bool)
    painted[3:7, 4:9] = True
    white, alpha = np.full((16, 18, 3), 255, np.uint8), np.where(painted, 255, 0).astype(np.uint8)
    drawn = np.where(painted, 0, 255).astype(np.uint8)
    files = {
        "layer": np.dstack([white, alpha]), "opaque": np.dstack([drawn, drawn, drawn, white[..., 0]]), "gray": drawn,
    }  # fmt: skip
    Image.fromarray(files[kind]).save("mask.png")
    content = Path("mask.png").read_bytes()
    found = as_mask(client.post("mask-file", params={"of": "here/noisy.png", "name": "mask.png"}, content=content))
    np.testing.assert_array_equal(found == 0, painted)
    np.testing.assert_array_equal(found == 255, read_mask("mask.png", (16, 18)))


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"text", HOSTILE), ((16, 19), "19x16"), ((16, 18), "nothing known")],
    ids=["no picture", "size", "black"],
)
def test_mask_that_cannot_be_read_says_why(client, desk, content, words):
    if not isinstance(content, bytes):
        Image.fromarray(np.zeros(content, np.uint8)).save("mask.png")
        content = Path("mask.png").read_bytes()
    answer = client.post("mask-file", params={"of": "here/noisy.png", "name": HOSTILE}, content=content)
    assert answer.status_code == 422
    assert words in answer.json()["error"]
    assert list((desk.own / "drafts").iterdir()) == []


def test_mask_is_found_in_the_picture_itself(client, desk):
    image = np.full((16, 18, 4), 255, np.uint8)
    image[2:5, 2:5, 3], image[8:11, 3:9, :3] = 0, (255, 0, 255)
    Image.fromarray(image).save(desk.root / "layer.png")
    asked = {"of": "here/layer.png"}
    np.testing.assert_array_equal(as_mask(client.get("mask", params=asked | {"by": "alpha"})) == 0, image[..., 3] == 0)
    found = as_mask(client.get("mask", params=asked | {"by": "#ff00ff"}))
    np.testing.assert_array_equal(found == 0, image[..., 1] == 0)
    costs = client.get("costs", params=asked | {"task": "inpaint"}).json()
    assert (costs["has_alpha"], costs["has_missing"]) == (True, False)
    for by in ("#00ff00", "../private.png", str(desk.root.parent / "private.png"), ""):
        assert client.get("mask", params=asked | {"by": by}).status_code == 422
