"""Measuring: time of a step and peak memory of each engine, where the time goes, and how near the floor it is."""
