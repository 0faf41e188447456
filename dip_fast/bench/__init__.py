"""Measuring: time of a step and peak memory of each engine, where the time goes, and how near the floor it is.

`configurations` says what is measured, `measuring` measures it in `workers`, which run `serving`, and `tables` and
`profile_tables` print what was found.  `meters` are the clocks; `profiling` and `roofline` look into a step.
"""
