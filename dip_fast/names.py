"""The names that options and arguments are chosen from.  Plain data: the command line reads it without torch."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """Write a number with what it counts: ``1 picture``, ``1,000 pictures``."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


ENGINES = ("auto", "fused", "plain")
PRECISIONS = ("fp32", "tf32", "bf16")
DEVICES = ("auto", "cpu", "cuda")
STOPS = ("auto", "never")
TILES = ("auto", "never")
UPSAMPLINGS = ("nearest", "bilinear")
# What `dip-fast bench` compares, on a CPU, on a GPU, or on both.
BENCH_ENGINES = (
    "fused",
    "fused-bf16",
    "plain",
    "plain-retained",
    "plain-channels-last",
    "compile",
    "compile-max-autotune",
)
