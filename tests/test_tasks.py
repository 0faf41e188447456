"""Tasks by name or by the files given, the registries they come from, errors in two spellings, classical baselines."""

import sys

import numpy as np
import pytest

from dip_fast.cli.parameters import spelling
from dip_fast.cli.verbs import cli
from dip_fast.errors import Argument, UsageError
from dip_fast.guides.diffusion import fill
from dip_fast.guides.non_local import non_local_means
from dip_fast.pictures.metrics import psnr
from dip_fast.registry import Registry
from dip_fast.runs.job import complete
from dip_fast.tasks import TASKS, Data, Option, choose


def test_task_follows_from_the_inputs():
    assert choose(None, []).name == "denoise"
    assert choose(None, ["mask"]).name == "inpaint"
    assert choose("inpaint", ["mask"]).name == "inpaint"
    assert choose(None, ["kernel"]).name == "deblur"
    assert choose(None, ["guide"]).name == "guided"
    assert choose("superres", ["kernel"]).name == choose("superres", []).name == "superres"


@pytest.mark.parametrize(
    ("name", "given", "message", "on_the_command_line"),
    [
        ("inpaint", [], "task='inpaint' needs mask: White = known", "--task inpaint needs --mask: White = known"),
        (
            "denoise",
            ["mask"],
            "task='denoise' has no use for mask; use task='inpaint'",
            "--task denoise has no use for --mask; use --task inpaint",
        ),
        (None, ["flash"], "no task takes flash; see dip-fast tasks", "no task takes flash; see dip-fast tasks"),
        (
            "unblur",
            [],
            "task must be one of denoise, inpaint, superres, deblur, jpeg, guided, got 'unblur'; did you mean deblur?",
            "task must be one of",
        ),
    ],
)
def test_task_that_does_not_fit_its_inputs(name, given, message, on_the_command_line):
    with pytest.raises(UsageError) as caught:
        choose(name, given)
    assert str(caught.value).startswith(message)
    assert caught.value.spelled(spelling(cli.commands["run"])).startswith(on_the_command_line)


def test_options_are_those_of_the_task():
    assert TASKS["inpaint"].complete({}) == {"composite": True, "mask_white": "known"}
    assert TASKS["inpaint"].complete({"composite": False}) == {"composite": False, "mask_white": "known"}
    assert TASKS["superres"].complete({"scale": 4}) == {"scale": 4}
    with pytest.raises(UsageError, match="task='denoise' has no option composite; leave it out"):
        complete({"composite": True})
    with pytest.raises(UsageError, match="composite must be bool, got 1"):
        complete({"composite": 1}, ["mask"])
    scale = Option("scale", (2, 4), 2, "How many times larger.")
    with pytest.raises(UsageError, match="scale must be one of 2, 4, got 3"):
        scale.check(3)
    Option("width", float, 1.0, "In pixels.").check(2)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"iterations": 0}, "iterations must be an integer of at least 1, got 0"),
        ({"iterations": True}, "iterations must be an integer of at least 1, got True"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"seed": 2**63}, "seed must be at most"),
        ({"snapshot_every": -1}, "snapshot_every must be an integer of at least 0"),
        ({"upsampling": "lanczos"}, "upsampling must be one of nearest, bilinear, got 'lanczos'"),
        ({"threads": 10_000}, "threads=10000: this machine has"),
        ({"device": "abacus"}, "device must be one of auto, cpu, cuda, got 'abacus'"),
        ({"engine": "fast"}, "engine must be one of auto, fused, plain, got 'fast'"),
        ({"precision": "fp16"}, "precision must be one of fp32, tf32, bf16, got 'fp16'"),
        ({"network": "decoder", "preset": "quick"}, "network='decoder' does not go with preset='quick'"),
        ({"network": "hourglass", "upsampling": "nearest"}, "upsampling: the hourglass network has no such choice"),
        ({"network": "hourglass", "engine": "fused"}, "engine='fused' is not available: no block of the hourglass"),
    ],
)
def test_job_is_checked_alike_for_all_callers(asked, message):
    with pytest.raises(UsageError) as caught:
        complete(asked)
    assert str(caught.value).startswith(message)


def test_job_of_a_cpu_computes_in_float32():
    assert complete({"device": "cpu"}).precision == "fp32"
    assert complete({"device": "cpu", "precision": "tf32"}).precision == "fp32"


# --- registries and messages --------------------------------------------------------------------------------------


def test_registry_resolves_names_when_they_are_used(tmp_path, monkeypatch):
    (tmp_path / "late_module.py").write_text("THING = object()\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("thing", {"late": "late_module:THING"})
    assert "late" in registry
    assert "late_module" not in sys.modules
    assert registry["late"] is registry["late"]
    assert "late_module" in sys.modules


def test_registry_replaces_nothing_and_suggests():
    registry = Registry("thing", {"one": 1})
    registry.register("two", 2)
    registry.register("two", 2)
    with pytest.raises(ValueError, match="there is a thing 'two' already"):
        registry.register("two", 3)
    assert dict(registry) == {"one": 1, "two": 2}
    with pytest.raises(UsageError, match="thing must be one of one, two, got 'onw'; did you mean one"):
        registry["onw"]


def test_message_is_spelled_for_its_reader():
    error = UsageError("{} and {} {}; {{}} {}", Argument("overwrite", True), Argument("out"), "text", Argument("a", 1))
    assert str(error) == "overwrite=True and out text; {} a=1"
    assert error.spelled(lambda argument: f"<{argument.name}>") == "<overwrite> and <out> text; {} <a>"
    assert str(UsageError("braces {stay} where there are no parts")) == "braces {stay} where there are no parts"


@pytest.mark.parametrize(
    ("argument", "spelled"),
    [
        (Argument("engine", "plain"), "--no-fused"),
        (Argument("engine", "fused"), "--fused"),
        (Argument("device", "cuda"), "--device cuda"),
        (Argument("out"), "--out"),
        (Argument("overwrite", True), "--overwrite"),
        (Argument("composite", False), "--no-composite"),
        (Argument("snapshot_every", 3), "--snapshot-every 3"),
        (Argument("json", True), "--json"),
        (Argument("picture"), "PICTURE"),
        (Argument("elsewhere", 1), "elsewhere=1"),
    ],
)
def test_command_line_spells_arguments_as_its_options(argument, spelled):
    spell = spelling(cli.commands["run"])
    assert spell(argument) == spelled
    with spell.in_use():
        assert f"{UsageError('{}', argument)}; going on" == f"{spelled}; going on"  # in a note or a record too
    assert str(UsageError("{}", argument)) == str(argument)


# --- classical methods --------------------------------------------------------------------------------------------


def smooth(height=48, width=61, channels=3):
    rows, columns = np.mgrid[:height, :width] / 50
    planes = [0.5 + 0.3 * np.sin(4 * rows + i) * np.cos(3 * columns) for i in range(channels)]
    return np.stack(planes, axis=2).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 3])
def test_denoising_is_compared_with_a_filter_that_denoises(channels):
    clean = smooth(channels=channels)
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 0.1, clean.shape), 0, 1).astype(np.float32)
    baseline = TASKS["denoise"].baseline(Data(noisy), TASKS["denoise"].complete({}))
    assert (baseline.image.shape, baseline.image.dtype) == (clean.shape, np.float32)
    assert psnr(baseline.image, clean) > psnr(noisy, clean) + 8
    np.testing.assert_array_equal(non_local_means(clean, 0.0), clean)


@pytest.mark.parametrize("channels", [1, 3])
def test_inpainting_is_compared_with_a_smooth_filling(channels):
    clean = smooth(channels=channels)
    known = np.random.default_rng(1).random(clean.shape[:2]) < 0.4
    known[10:22, 15:30] = False
    holed = np.where(known[..., None], clean, 0).astype(np.float32)
    filled = TASKS["inpaint"].baseline(Data(holed, {"mask": known}), {"composite": True}).image
    np.testing.assert_array_equal(filled[known], clean[known])
    assert np.abs(filled - clean)[~known].max() < 0.1
    assert psnr(filled, clean) > 35


def test_filling_reaches_from_a_single_pixel():
    known = np.zeros((33, 20), bool)
    known[5, 7] = True
    filled = fill(np.where(known[..., None], 0.25, 0.9).astype(np.float32), known)
    np.testing.assert_allclose(filled, 0.25, atol=1e-6)
