"""Thousands of damaged ONNX files: each draws a picture or is refused in one line."""

import random
import sys
from pathlib import Path

import pytest

from dip_fast.errors import DipFastError, UsageError
from dip_fast.models.model import open_model
from dip_fast.models.verifying import verify

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import mutations

pytestmark = pytest.mark.usefixtures("place")


def mutated(data, rng):
    """Damage bytes in one of a few ways."""
    held = bytearray(data)
    kind = rng.randrange(6)
    at = rng.randrange(len(held))
    if kind == 0:
        for _ in range(rng.randrange(1, 9)):
            held[rng.randrange(len(held))] = rng.randrange(256)
    elif kind == 1:
        held[at] ^= 1 << rng.randrange(8)
    elif kind == 2:
        del held[at : at + rng.randrange(1, 200)]
    elif kind == 3:
        held[at:at] = rng.randbytes(rng.randrange(1, 200))
    elif kind == 4:
        length = rng.randrange(1, 500)
        other = rng.randrange(len(held))
        held[at : at + length] = held[other : other + length]
    else:
        del held[at:]
    return bytes(held)


def replays_or_refuses(data):
    """Whatever it is, it draws a picture or one of our errors is raised; return which."""
    Path("mutated.onnx").write_bytes(data)
    try:
        model = open_model("mutated.onnx")
        output = model.draw(threads=1)
        verify(model, output)
        model.encode(model.samples(output))
    except UsageError as error:
        return str(error)
    except DipFastError as error:
        pytest.fail(f"an engine was given what it cannot run: {error}")
    return "drawn"


def survive(small_models, count, seed):
    rng, outcomes = random.Random(seed), []
    for i in range(count):
        mutate = mutations.damaged_message if i % 3 == 0 else mutated
        outcomes.append(replays_or_refuses(mutate(small_models[".onnx"], rng)))
    assert not any("\n" in outcome for outcome in outcomes)
    assert 0.02 * count < outcomes.count("drawn") < 0.7 * count  # some changes of z and weights are as good as any


def test_mutated_files_neither_crash_nor_trace(small_models):
    survive(small_models, 2000, seed=0)


@pytest.mark.slow
def test_many_more_mutated_files(small_models):
    survive(small_models, 40_000, seed=1)
