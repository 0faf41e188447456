"""Checkpoints and records that are another run's, or were changed: one line, exit 2; and runs that are extended."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_cases import assert_not_resumed
from PIL import Image
from run_cases import ONE, SHORT, assert_same_run, record, signal_after
from safetensors import safe_open
from safetensors.torch import save_file

from dip_fast.runs import checkpoints

pytestmark = pytest.mark.usefixtures("place", "from_random_input", "small")
CHECKPOINT = Path("runs/noisy/checkpoint.safetensors")
RECORD = Path("runs/noisy/run.json")


# --- of another run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["seed", "picture", "preset"])
def test_checkpoint_of_another_run_is_refused(dip, stopped, noisy, other):
    arguments = {"seed": ["--seed", 1], "preset": ["--stop", "never"]}.get(other, [])
    if other == "picture":
        Image.fromarray(np.zeros((16, 18), np.uint8)).save("black.png")
    picture = "black.png" if other == "picture" else noisy
    assert dip("run", picture, *SHORT, *arguments, "-o", "other").code == 0
    Path("other/checkpoint.safetensors").replace(CHECKPOINT)
    assert_not_resumed(dip(*stopped), "checkpoint.safetensors", "another picture, seed or recipe", "--overwrite")


@pytest.mark.parametrize(("name", "value"), [("seed", 1), ("engine", "plain"), ("options", {"noise": "25"})])
def test_settings_changed_in_the_record_are_refused(dip, stopped, name, value):
    document = json.loads(RECORD.read_text())
    document["settings"][name] = value
    RECORD.write_text(json.dumps(document))
    assert_not_resumed(dip(*stopped), "another picture, seed or recipe")


# --- changed ------------------------------------------------------------------------------------------------------


def test_checkpoint_with_a_changed_bit_is_refused(dip, stopped):
    data = bytearray(CHECKPOINT.read_bytes())
    data[-5] ^= 1
    CHECKPOINT.write_bytes(data)
    assert_not_resumed(dip(*stopped), "checkpoint.safetensors is damaged", "hash", "--overwrite")


def rewrite(change):
    """Change tensors and numbers of the checkpoint's states, and its hash with them."""
    with safe_open(CHECKPOINT, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    numbers = {which: json.loads(metadata[which]) for which in checkpoints.WHICH if which in metadata}
    change(tensors, numbers)
    texts = {which: value if isinstance(value, str) else json.dumps(value) for which, value in numbers.items()}
    metadata |= texts | {"sha256": checkpoints.digest_of(tensors, texts)}
    save_file(tensors, CHECKPOINT, metadata)


def tensor(name, change):
    """A change of the first tensor whose name begins so."""

    def apply(tensors, numbers):
        key = next(key for key in sorted(tensors) if key.startswith(f"now/{name}"))
        if (changed := change(tensors[key])) is None:
            del tensors[key]
        else:
            tensors[key] = changed.contiguous()

    return apply


def number(name, value):
    return lambda tensors, numbers: numbers["now"].__setitem__(name, value)


def one_of_numbers(index, value):
    return lambda tensors, numbers: numbers["now"]["numbers"].__setitem__(index, value)


EVENT = {"step": 1, "fault": "", "back_to_step": 0, "learning_rate_factor": 0.5}
CHANGES = {
    "nothing": lambda tensors, numbers: None,
    "NaN moments": tensor("exp_avg.", lambda t: t * torch.nan),
    "infinite weights": tensor("network.", lambda t: t + torch.inf),
    "huge weights": tensor("network.", lambda t: t + 1e30),
    "negative moments": tensor("exp_avg_sq.", lambda t: -1 - t),
    "another type": tensor("network.", torch.Tensor.double),
    "another shape": tensor("network.", lambda t: t[None]),
    "missing": tensor("average.", lambda t: None),
    "one more": lambda tensors, numbers: tensors.update({"now/best.more": torch.zeros(1)}),
    "short history": tensor("history", lambda t: t[:-1]),
    "history of other steps": tensor("history", lambda t: t + 1),
    "steps of another type": number("steps", "3"),
    "steps as a float": number("steps", 3.0),
    "more steps than there are": number("steps", 10**400),
    "negative steps": number("steps", -1),
    "endless": number("seconds", float("inf")),
    "seconds as text": number("seconds", "1"),
    "events of another type": number("events", [1]),
    "events of other things": number("events", [{"step": []}]),
    "too many events": number("events", [EVENT] * 99),
    "learning rate": number("learning_rate_factor", 1e90),
    "no numbers": number("numbers", []),
    "NaN level": one_of_numbers(1, float("nan")),
    "another level": one_of_numbers(1, 0.5),
    "another variance": one_of_numbers(2, 0.5),
    "no value": one_of_numbers(3, float("nan")),
    "another value": one_of_numbers(3, 0.5),
    "another minimum": one_of_numbers(4, 0.5),
    "another best step": one_of_numbers(5, 1.0),
    "best step to come": one_of_numbers(5, 1e6),
    "text": one_of_numbers(0, "3"),
    "deep": lambda tensors, numbers: numbers.update(now="[" * 100_000),
    "no JSON": lambda tensors, numbers: numbers.update(now="{"),
    "a list": lambda tensors, numbers: numbers.update(now="[]"),
    "long number": lambda tensors, numbers: numbers.update(now='{"steps": ' + "9" * 5000 + "}"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_state_that_no_fit_has_is_refused(dip, stopped, change):
    rewrite(change)
    before = CHECKPOINT.read_bytes()
    outcome = dip(*stopped)
    if change is CHANGES["nothing"]:
        assert outcome.code == 0
        return
    assert_not_resumed(outcome, "checkpoint.safetensors is damaged", "--overwrite")
    assert CHECKPOINT.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"status": ' + b"9" * 5000 + b"}",
        ("status", 5), ("status", "gone"), ("started", None), ("started", float("nan")), ("settings", []),
        ("inputs", {"picture": 5}), ("inputs", {}), ("recipe", {}), ("recipe", 3), ("versions", []), ("events", [None]),
        ("summary", {}), ("settings.seed", -1), ("settings.seed", True), ("settings.seed", 10**400),
        ("settings.iterations", 1e400), ("settings.iterations", 10**400), ("settings.threads", 10**400),
        ("settings.threads", "1"), ("settings.engine", 5), ("settings.device", "toaster"), ("settings.precision", []),
        ("settings.options", {"noise": 25}), ("settings.options", None), ("settings.task", "gone"),
        ("settings.stop", "soon"), ("settings.snapshot_every", 0.5), ("settings.keep_metadata", 1),
        ("summary.stop_reason", "x"), ("summary.models", [{}]), ("summary.result", 5), ("summary.psnr", "high"),
        ("summary.baseline", {"name": 1}), ("summary.problems", "none"),
    ],
    ids=lambda content: str(content)[:40],
)  # fmt: skip
def test_record_with_wrong_values_is_refused(dip, stopped, content):
    if isinstance(content, tuple):
        document = json.loads(RECORD.read_text())
        *path, name = content[0].split(".")
        holder = document[path[0]] if path else document
        holder[name] = content[1]
        content = json.dumps(document).encode()
    RECORD.write_bytes(content)
    assert_not_resumed(dip(*stopped), "--overwrite")
    assert RECORD.read_bytes() == content


# --- extended -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", ["never", "auto"])
@pytest.mark.parametrize("moment", [None, 20], ids=["done", "interrupted"])
def test_extended_run_equals_one_that_had_its_steps_from_the_start(dip, noisy, monkeypatch, stop, moment):
    arguments = ("run", noisy, *ONE, "--preset", "quick", "--quiet", "--stop", stop, "--snapshot-every", "10")
    assert dip(*arguments, "--iterations", "70", "-o", "whole").code == 0
    with monkeypatch.context() as patch:
        if moment is not None:
            signal_after(patch, lambda fit: fit.steps == moment)
        assert dip(*arguments, "--iterations", "30", "-o", "parts").code == (0 if moment is None else 130)
    assert dip(*arguments, "--iterations", "70", "-o", "parts", "--resume").code == 0
    assert_same_run("whole", "parts")
    held = record("parts")
    assert held["settings"]["iterations"] == held["recipe"]["options"]["iterations"] == 70
    assert held["summary"]["sha256"] == record("whole")["summary"]["sha256"]


def test_run_that_stopped_by_itself_goes_on_where_more_steps_have_more_patience(dip, noisy, monkeypatch):
    monkeypatch.setattr("dip_fast.fitting.stopping.IGNORED_STEPS", 2)
    arguments = ("run", noisy, *ONE, "--preset", "quick", "--quiet", "--snapshot-every", "0")
    assert dip(*arguments, "--iterations", "30", "-o", "parts").code == 0
    before = record("parts")["summary"]
    assert before["stop_reason"] == "variance"
    assert dip(*arguments, "--iterations", "90", "-o", "parts", "--resume").code == 0
    assert dip(*arguments, "--iterations", "90", "-o", "whole").code == 0
    assert record("parts")["summary"]["steps"] == record("whole")["summary"]["steps"] > before["steps"]
    assert_same_run("whole", "parts")


def test_run_that_was_killed_once_extended_goes_on(dip, noisy, monkeypatch):
    arguments = ("run", noisy, *ONE, "--preset", "quick", "--quiet", "--snapshot-every", "0")
    assert dip(*arguments, "--iterations", "20", "-o", "parts").code == 0
    checkpoint = Path("parts/checkpoint.safetensors").read_bytes()
    assert dip(*arguments, "--iterations", "40", "-o", "parts", "--resume").code == 0
    assert dip(*arguments, "--iterations", "40", "-o", "whole").code == 0
    Path("parts/checkpoint.safetensors").write_bytes(checkpoint)  # as if it had been killed before the next one
    document = record("parts")
    del document["summary"]
    Path("parts/run.json").write_text(json.dumps(document | {"status": "running"}))
    assert dip(*arguments, "-o", "parts", "--resume").code == 0
    assert_same_run("whole", "parts")


@pytest.mark.parametrize("preset", ["default", "fast"])
def test_run_whose_learning_rates_depend_on_its_length_is_not_extended(dip, noisy, preset):
    arguments = ("run", noisy, *ONE, "--preset", preset, "--quiet", "-o", "out")
    assert dip(*arguments, "--iterations", "3").code == 0
    before = {path: path.read_bytes() for path in Path("out").glob("*.*")}
    refused = dip(*arguments, "--iterations", "6", "--resume")
    assert_not_resumed(refused, "--iterations 6", "learning rate", "3 iterations", "--overwrite")
    assert {path: path.read_bytes() for path in Path("out").glob("*.*")} == before
    assert dip(*arguments, "--iterations", "3", "--resume").code == 0
