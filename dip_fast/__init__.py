"""Restore one damaged picture with no training data: a fast Deep Image Prior.

Importing the package is quick and loads neither torch nor the extension; a name that needs them loads them.
"""

from __future__ import annotations

__version__ = "0.1.0"
