"""Files are written whole or not at all."""

import os

import pytest

from dip_fast.errors import DipFastError
from dip_fast.pictures import write_atomically


def test_a_file_is_written_whole_and_alone(tmp_path):
    path = tmp_path / "result.png"
    write_atomically(path, b"old")
    write_atomically(str(path), b"new content")
    assert path.read_bytes() == b"new content"
    assert list(tmp_path.iterdir()) == [path]
    reference = tmp_path / "reference"
    reference.touch()
    assert path.stat().st_mode == reference.stat().st_mode  # the user's umask, not a private temporary file's


def test_the_longest_name_and_a_link(tmp_path):
    path = tmp_path / ("n" * 251 + ".png")
    write_atomically(path, b"1")
    link = tmp_path / "link.png"
    link.symlink_to(path)
    write_atomically(link, b"2")
    assert link.is_symlink()
    assert path.read_bytes() == b"2"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(step, tmp_path, monkeypatch):
    path = tmp_path / "result.png"
    path.write_bytes(b"old")

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (os, "replace")), fail)
    with pytest.raises(DipFastError, match=r"cannot write .*result\.png: No space left on device") as caught:
        write_atomically(path, b"new")
    assert caught.value.exit_code == 1
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_writing_where_no_file_can_be(tmp_path):
    with pytest.raises(DipFastError, match="No such file or directory"):
        write_atomically(tmp_path / "missing" / "result.png", b"x")
    with pytest.raises(DipFastError, match="not a regular file"):
        write_atomically(tmp_path, b"x")


def test_the_content_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (steps.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda *names, **ids: (steps.append("replace"), replace(*names, **ids))[1])
    write_atomically(tmp_path / "result.png", b"x")
    assert steps == ["fsync", "replace", "fsync"]  # the second one is the folder's
