"""Stacks: one network for many pictures, and the folder that the results go to."""
