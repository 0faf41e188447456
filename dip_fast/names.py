"""The names that options and arguments are chosen from.  Plain data: the command line reads it without torch."""

from __future__ import annotations

ENGINES = ("auto", "fused", "plain")
PRECISIONS = ("fp32", "tf32", "bf16")
DEVICES = ("auto", "cpu", "cuda")
STOPS = ("auto", "never")
UPSAMPLINGS = ("nearest", "bilinear")
# What `dip-fast bench` compares, on a CPU, on a GPU, or on both.
BENCH_ENGINES = ("fused", "plain", "plain-retained", "plain-channels-last", "compile", "compile-max-autotune")
