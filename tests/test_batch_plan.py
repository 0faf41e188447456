"""What belongs to a batch, what each picture is called, and what belongs to it."""

import dataclasses
import os
from pathlib import Path

import pytest
from batch_cases import batch, picture

from dip_fast.errors import UsageError
from dip_fast.runs.batch import control, plan
from dip_fast.runs.batch.settings import Settings, file_hash, keep


def names(*sources, out="out", recursive=False):
    found = plan.find(sources, Path(out), recursive=recursive)
    return [os.path.relpath(path, found.root) for path in found.pictures]


@pytest.fixture
def tree(place):
    for name in ("a.png", "b.TIF", ".hidden.png", "sub/a.png", "sub/.git/c.png", "out/a.png/result.png"):
        picture(f"in/{name}")
    Path("in/notes.txt").write_text("no picture")
    return place / "in"


def test_folders_are_looked_into_where_asked(tree):
    assert names("in", out="in/out") == ["a.png", "b.TIF"]
    assert names("in", out="in/out", recursive=True) == ["a.png", "b.TIF", "sub/a.png"]
    assert plan.find(["in"], Path("in/out")).ignored == [str(tree / "notes.txt")]


def test_files_and_patterns(tree):
    assert names("in/*.png") == ["a.png"]
    assert names("in/**/a.png", out="in/out") == ["a.png", "out/a.png/result.png", "sub/a.png"][::2]
    assert names("in/a.png", "in/sub/a.png") == ["a.png", "sub/a.png"]
    assert names("in/a.png", "in/a.png") == ["a.png"]
    picture("in/[1].png")
    assert names("in/[1].png") == ["[1].png"]  # a name of a file is no pattern


@pytest.mark.parametrize("source", ["nothing", "in/*.jpg", "in/sub/deep"])
def test_nothing_to_do_is_refused(tree, source):
    Path("in/sub/deep").mkdir()
    with pytest.raises(UsageError, match="there is no picture"):
        names("in", source) if source == "nothing" else names(source)


def test_links_to_folders_are_not_followed(tree):
    Path("in/sub/up").symlink_to(tree)
    assert names("in", out="in/out", recursive=True) == ["a.png", "b.TIF", "sub/a.png"]


def items(**options):
    found = control.planned(batch(recursive=True, **options))
    return {item.name: item for item in found.items}


def test_masks_lie_beside_their_pictures(place):
    for name in ("a.png", "a_mask.png", "b.tif", "b_mask.png", "c.png", "d.png", "d_mask.tif", "d_mask.pgm"):
        picture(f"in/{name}")
    found = items(mask_suffix="_mask")
    assert sorted(found) == ["a.png", "b.tif", "c.png", "d.png"]
    assert [Path(found[name].inputs["mask"]).name for name in ("a.png", "b.tif")] == ["a_mask.png", "b_mask.png"]
    assert "there is no mask" in found["c.png"].problem
    assert "there are 2 masks" in found["d.png"].problem


def test_mask_of_a_single_file_is_found(place):
    picture("in/a.png")
    picture("in/a_mask.png")
    found = control.planned(batch("in/a.png", mask_suffix="_mask"))
    assert found.items[0].inputs == {"mask": str(place / "in" / "a_mask.png")}


def test_references_have_the_same_names(place):
    for name in ("in/a.png", "in/sub/b.png", "in/c.png", "clean/a.png", "clean/sub/b.tif"):
        picture(name)
    found = items(reference="clean")
    assert {name: item.reference for name, item in found.items()} == {
        "a.png": "clean/a.png",
        "sub/b.png": "clean/sub/b.tif",
        "c.png": None,
    }
    with pytest.raises(UsageError, match="no folder"):
        items(reference="in/a.png")


def test_names_stay_when_fewer_pictures_are_given(place):
    picture("in/a.png")
    picture("in/sub/b.png")
    everything = batch(recursive=True)
    Path("out").mkdir()
    keep(everything.out, everything.settings, control.planned(everything).root)
    assert [item.name for item in control.planned(batch("in/sub")).items] == ["sub/b.png"]
    Path("in").rename("moved")  # the same tree elsewhere
    assert {item.name for item in control.planned(batch("moved", recursive=True)).items} == {"a.png", "sub/b.png"}


def test_each_picture_belongs_to_one_job():
    all_of_them = [plan.Item(f"{index}.png", "", "", {}) for index in range(200)]
    parts = [plan.shard(all_of_them, (index, 7)) for index in range(1, 8)]
    assert sorted(item.name for part in parts for item in part) == sorted(item.name for item in all_of_them)
    assert min(map(len, parts)) > 10


def test_size_comes_from_the_header_or_the_length(place):
    assert plan._pixels(str(picture("a.png", 20, 30))) == 600
    Path("b.png").write_bytes(b"x" * 3000)
    assert plan._pixels("b.png") == 1000
    os.mkfifo("pipe.png")  # nobody writes into it: to open it must not be to wait
    assert plan._pixels("pipe.png") == 0
    assert plan._pixels("nothing.png") == 0


def test_settings_survive_the_way_to_a_worker():
    settings = Settings({"noise": "25"}, {"mask": "m.png"}, None, "clean", "center", 64, 2, ("onnx",), True)
    assert Settings.from_json(settings.to_json()) == settings
    assert Settings.from_json(Settings().to_json()) == Settings()


def test_key_depends_on_what_a_result_does(place):
    picture("mask.png")
    picture("other.png", seed=1)
    settings = Settings({"seed": 1})
    key = settings.key({"mask": "mask.png"})
    assert key == dataclasses.replace(settings, overwrite=True, asked={"seed": 1, "threads": 9}).key(
        {"mask": "mask.png"}
    )
    Path("mask.png").rename("moved.png")
    assert key == settings.key({"mask": "moved.png"})
    assert key != settings.key({"mask": "other.png"})
    assert key != settings.key({})
    assert key != Settings({"seed": 2}).key({"mask": "moved.png"})
    assert settings.key({"kernel": "gaussian:1"}) != settings.key({"kernel": "gaussian:2"})


def test_a_pipe_is_never_waited_for(place):
    """A batch with a pipe among its pictures, which it had recorded as bad, hung for ever the second time."""
    with pytest.raises(OSError, match="no regular file"):
        file_hash(os.devnull)
    os.mkfifo("pipe.png")
    with pytest.raises(OSError, match="no regular file"):
        file_hash("pipe.png")


@pytest.mark.parametrize("out", ["in", "in/", "link"])
def test_the_folder_of_the_pictures_is_not_that_of_the_batch(place, out):
    """Each run's folder has the path of its picture, and every picture failed, three times."""
    picture("in/a.png")
    picture("in/sub/b.png")
    Path("link").symlink_to("in")
    for sources in ("in", "in/*.png"):
        with pytest.raises(UsageError, match="holds the pictures; choose another folder"):
            control.planned(batch(sources, out=out))
    assert list(items(out="in/restored")) == ["a.png", "sub/b.png"]


def test_masks_alone_are_refused(place):
    picture("in/a_mask.png")
    with pytest.raises(UsageError, match="no picture: all names end with mask_suffix='_mask'"):
        items(mask_suffix="_mask")
    with pytest.raises(UsageError, match="mask_suffix is empty"):
        items(mask_suffix="")
