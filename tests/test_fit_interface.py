"""What a user of `dip_fast.fit` expects of Python: presets with other values, progress, a result that shows itself."""

import base64
import html
import io
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from fit_cases import target, tiny
from matplotlib import pyplot
from PIL import Image

import dip_fast
from dip_fast import PRESETS, DipFastError, UsageError, fit
from dip_fast.runs.recorder import Snapshots

THREE = tiny(iterations=3, consolidation=0)
X = target(32, 36, 2)


class Look:
    """A callback that is to be called at some steps."""

    def __init__(self, every):
        self.every = every
        self.seen = []

    def __call__(self, fit):
        self.seen.append(fit.steps)


def test_a_callback_is_called_when_it_asks_to_be():
    """One that asks for each third step was called after each on a CPU, and with 0 it is called at any."""
    looks = [Look(3), Look(0)]
    fit(lambda x: x, X, preset=tiny(iterations=7, consolidation=0), callbacks=looks)
    assert looks[0].seen == [3, 6]
    assert looks[1].seen == [1, 2, 3, 4, 5, 6, 7]


def test_a_preset_with_other_values():
    changed = PRESETS["quick"].with_(iterations=60, width=64, in_channels=8, network_options={"scales": 3})
    assert changed.recipe.options.iterations == 60
    assert changed.recipe.network_options == PRESETS["quick"].recipe.network_options | {
        "down": 64,
        "up": 64,
        "scales": 3,
    }
    assert changed.recipe.in_channels == 8
    assert PRESETS["quick"].recipe.options.iterations == 1000
    assert PRESETS["default"].with_(passes=2, stop="auto").recipe.masking.passes == 2
    with pytest.raises(UsageError, match="no 'iteration'; did you mean iterations"):
        PRESETS["quick"].with_(iteration=3)
    with pytest.raises(UsageError, match="width is of the skip network"):
        PRESETS["decoder"].with_(width=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 0}, "iterations must be an integer of at least 1, got 0"),
        ({"iterations": 2.5}, "iterations must be an integer of at least 1, got 2.5"),
        ({"stop": "nver"}, "stop must be one of auto, never, got 'nver'"),
        ({"decay": "cos"}, "decay must be one of none, cosine, got 'cos'"),
        ({"optimizer": "sgd"}, "optimizer must be one of adam, muon, got 'sgd'"),
        ({"learning_rate": -1}, "learning_rate must be a number of at least 0, got -1"),
        ({"learning_rate": "a"}, "learning_rate must be a number of at least 0, got 'a'"),
        ({"perturbation": -0.1}, "perturbation must be a number of at least 0, got -0.1"),
        ({"averaging": 1}, "averaging must be less than 1, got 1"),
        ({"in_channels": 0}, "in_channels must be an integer of at least 1, got 0"),
        ({"width": 3.5}, "down must be an integer of at least 1, got 3.5"),
        ({"network_options": {"skip": -1}}, "skip must be an integer of at least 0, got -1"),
        ({"network_options": {"upsamplng": 1}}, "the skip network has no 'upsamplng'; did you mean upsampling"),
    ],
)
def test_value_that_no_recipe_has_is_refused(changes, message):
    """Most of them were taken in silence, and something else was fitted."""
    with pytest.raises(UsageError, match=message):
        fit(lambda x: x, X, preset=PRESETS["quick"].with_(**{"iterations": 2} | changes), device="cpu")


def test_a_result_is_shown_in_a_line_and_a_thumbnail():
    result = fit(lambda x: x, target(20, 700), preset=THREE)
    assert repr(result).startswith("<Result: 20 x 700 x 3, 3 steps in ")
    assert len(repr(result)) < 100
    png, line = re.fullmatch(
        '<img src="data:image/png;base64,(.*?)"><br><code>(.*)</code>', result._repr_html_()
    ).groups()
    assert Image.open(io.BytesIO(base64.b64decode(png))).size == (256, 7)
    assert html.unescape(line) == repr(result)
    assert fit(lambda x: x, X, preset=THREE)._repr_html_().startswith("<code>&lt;Result: 32 x 36 x 2")


def test_progress_is_shown_where_it_is_asked_for(capsys):
    fit(lambda x: x, X, preset=THREE)
    assert not capsys.readouterr().err
    fit(lambda x: x, X, preset=THREE, progress=True)
    assert "3/3" in capsys.readouterr().err


def test_snapshots_of_steps_that_are_made_once_more_are_written_once_more():
    """A fit that falls back between two snapshots tells nobody but by its events."""
    written = []
    folder = SimpleNamespace(write=lambda name, write: written.append(int(name[-10:-4])))
    fit = SimpleNamespace(steps=0, events=[], objective=SimpleNamespace(is_large=False))
    snapshots = Snapshots(folder, SimpleNamespace(settings=SimpleNamespace(snapshot_every=7)), fit)

    def at(steps, *events):
        fit.steps, fit.events = steps, [*fit.events, *events]
        snapshots(fit)

    at(56)
    at(63)
    at(63)  # it polishes
    at(56, {"back_to_step": 50})
    at(63)
    assert written == [56, 63, 56, 63]


GRAY = np.random.default_rng(0).integers(0, 255, (18, 21)).astype(np.uint8)
CALLS = {
    "denoise": lambda **how: dip_fast.denoise(GRAY, preset="fast", **how),
    "frames": lambda **how: dip_fast.denoise(GRAY[None].repeat(2, 0), preset="fast", frames_axis=0, **how),
    "inpaint": lambda **how: dip_fast.inpaint(GRAY, GRAY > 20, **how),
    "superres": lambda **how: dip_fast.superres(GRAY, 2, **how),
    "deblur": lambda **how: dip_fast.deblur(GRAY, "gaussian:1", **how),
    "guided": lambda **how: dip_fast.guided(GRAY, 255 - GRAY, **how),
    "dejpeg": lambda **how: dip_fast.dejpeg(encoded_jpeg(), **how),
}


def encoded_jpeg():
    file = io.BytesIO()
    Image.fromarray(GRAY).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", CALLS)
def test_functions_on_arrays_return_what_is_known_of_the_image(name):
    restored = CALLS[name](iterations=2, return_result=True)
    np.testing.assert_array_equal(restored.image, CALLS[name](iterations=2))
    assert repr(restored).startswith(f"<Restored: {' x '.join(map(str, restored.image.shape))} uint8, 2 steps in ")
    assert restored._repr_html_().startswith('<img src="data:image/png;base64,')
    assert (restored.estimated_psnr is not None) == (name in ("denoise", "frames", "inpaint"))
    assert restored.result.network is not None
    axes = restored.plot()
    titles = [axis.get_title() for axis in axes]
    assert titles[:3] == ["given", "restored", "loss"]
    assert axes[1].images[0].get_array().shape == restored.result.image.shape[:2]
    pyplot.close(axes[0].figure)


def test_result_is_plotted_with_its_history():
    result = fit(lambda x: x, X, preset=THREE, reference=X)
    axes = result.plot()
    titles = [axis.get_title() for axis in axes]
    assert titles[:3] == ["result, channel 0", "result, channel 1", "loss"]
    assert titles[-1] == "PSNR of the iterate, dB"
    pyplot.close(axes[0].figure)


def test_plot_without_matplotlib_says_so(monkeypatch):
    result = fit(lambda x: x, X, preset=THREE)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DipFastError, match=r"plot\(\) needs matplotlib, which is not installed; pip"):
        result.plot()


@pytest.mark.usefixtures("small")
def test_array_functions_show_their_progress(capsys):
    dip_fast.superres(GRAY, 2, iterations=2, progress=True)
    assert "loss" in capsys.readouterr().err
    dip_fast.superres(GRAY, 2, iterations=2)
    assert capsys.readouterr().err == ""
