"""Verbs and options of ``dip-fast``."""

from dip_fast.cli.main import main

__all__ = ["main"]
