"""What a worker of a batch says of an error: what the command says."""

from dataclasses import replace

import numpy as np
import pytest
from batch_cases import batch, carried_out, picture, rows
from PIL import Image

from dip_fast.cli.parameters import spelling
from dip_fast.cli.verbs import cli
from dip_fast.runs.batch.settings import Settings


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "gone"),
            "cannot use gone: No such file or directory; check the path and the drive",
        ),
        (MemoryError(), "there is not enough memory; free some, or take a smaller preset (dip-fast presets)"),
        (ModuleNotFoundError("No module named 'x'", name="x"), "x is missing; pip install it, or dip-fast with all"),
        (KeyError("a\nb"), "unexpected KeyError: 'a\\nb'; please report it with the output of --debug"),
    ],
    ids=["file", "memory", "module", "unforeseen"],
)
def test_a_worker_says_in_one_line_what_the_command_says(error, line, place, small, dip, monkeypatch):
    """The manifest had Python's name of the error and no word of what to do."""

    picture("in/a.png")

    def fails(*_):
        raise error

    monkeypatch.setattr("dip_fast.runs.run.start", fails)
    result, _, _ = carried_out(batch(retries=0))
    reason = rows(result)["a.png"]["error"]
    assert reason.startswith(line)
    assert dip("run", "in/a.png", "--threads", "1", "--out", "alone").err.splitlines()[-1] == f"dip-fast: {reason}"


def test_a_worker_spells_arguments_as_whoever_asked_for_the_batch(place):
    """The manifest of a command named mask, as Python does, in place of --mask."""
    picture("in/a.png")
    Image.fromarray(np.full((16, 18), 255, np.uint8)).save("white.png")
    with spelling(cli.commands["batch"]).in_use():
        asked = batch(mask="white.png", out="command")
    asked = replace(asked, settings=Settings.from_json(asked.settings.to_json()))  # as it comes to a worker
    for each, name in ((asked, "--mask"), (batch(mask="white.png", out="python"), "mask")):
        result, _, _ = carried_out(each)
        assert rows(result)["a.png"]["error"].startswith(f"{name} leaves nothing to fill in: ")
    assert asked.settings.named() == batch(mask="white.png").settings.named()  # results do not depend on it
